//! Sealing and publishing of loads: keys are built on the load table, then it takes its place or its rows are merged,
//! in one transaction with the plan's end.

use super::client::{Connection, map_error};
use super::control::{Outcome, PlanStatus};
use super::ddl::{self, derived_name, quoted};
use super::destination::{PostgresDestination, Target, permission};
use super::integrity::{Integrity, may_replicate};
use super::merge::{Mapping, columns_of, oid_of};
use super::sql::{ident, idents, literal};
use super::swap;
use std::collections::HashMap;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Publish, Verify};
use synctool_core::progress::PartitionId;
use synctool_core::schema::TableId;
use synctool_core::sink::Published;
use tokio_postgres::error::SqlState;
use tokio_postgres::{GenericClient, Transaction};

/// The name of the load table's key while it is not in its place.
pub(super) fn load_key_name(target: &Target) -> String {
    derived_name(&target.load.name, "_pkey")
}

/// Builds the key (and for a swap everything else the table must have) on a load table. Repeatable.
pub(super) async fn seal(
    destination: &PostgresDestination,
    client: &mut Connection,
    plan: &Plan,
    target: &Target,
) -> Result<()> {
    let at = |e: Error| e.at("table", target.table.to_string());
    let Some((load, _)) = oid_of(&**client, &target.load).await? else {
        return gone(destination, client, plan, target).await;
    };
    let load_name = quoted(&target.load);
    let tx = client
        .transaction()
        .await
        .map_err(|e| map_error(e, "beginning a transaction"))?;
    // Two of us at once would build it twice.
    tx.batch_execute(&format!("LOCK TABLE {load_name} IN SHARE ROW EXCLUSIVE MODE"))
        .await
        .map_err(|e| at(map_error(e, "locking the load table")))?;
    if target.publish == Publish::Swap {
        swap::seal(&tx, target, load, destination.version).await.map_err(at)?;
    }
    let has_key = tx
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint WHERE conrelid = $1 AND contype = 'p')",
            &[&load],
        )
        .await
        .map_err(|e| at(map_error(e, "looking for the key")))?
        .get::<_, bool>(0);
    if !has_key && !target.schema.key.is_empty() {
        tx.batch_execute(&add_key(target))
            .await
            .map_err(|e| at(map_error(e, "building the primary key")).hint_of_doubles())?;
    }
    tx.commit().await.map_err(|e| at(map_error(e, "building the key")))?;
    if target.publish == Publish::Swap {
        // The table is in use from the moment of the swap, and autovacuum comes later.
        client
            .batch_execute(&format!("ANALYZE {load_name}"))
            .await
            .map_err(|e| at(map_error(e, "analysing the load table")))?;
    }
    Ok(())
}

fn add_key(target: &Target) -> String {
    format!(
        "ALTER TABLE {} ADD CONSTRAINT {} PRIMARY KEY ({})",
        quoted(&target.load),
        ident(&load_key_name(target)),
        idents(&target.schema.key)
    )
}

/// A load table that is not there: the plan was published by a call whose answer got lost, or a newer run has dropped it.
async fn gone(destination: &PostgresDestination, client: &mut Connection, plan: &Plan, target: &Target) -> Result<()> {
    let tx = client
        .transaction()
        .await
        .map_err(|e| map_error(e, "beginning a transaction"))?;
    destination.control.hold_generation(&tx, plan).await?;
    match destination.control.lock_plan(&tx, plan).await? {
        PlanStatus::Finished(_) => Ok(()),
        PlanStatus::Active => Err(Error::new(
            code::TABLE_MISSING,
            format!("the load table {} was dropped by somebody", target.load),
        )
        .hint(format!("start over: synctool state reset {}", plan.pipeline))),
    }
}

/// Publishes a plan. A deadlock with somebody is tried again here: what was loaded is safe and stays.
pub(super) async fn publish(destination: &PostgresDestination, plan: &Plan) -> Result<Published> {
    const ATTEMPTS: u32 = 3;
    let mut attempt = 1;
    loop {
        match publish_once(destination, plan).await {
            Err(e) if attempt < ATTEMPTS && e.context().contains(&("sqlstate", "40P01".into())) => attempt += 1,
            other => return other,
        }
    }
}

/// Locks a table. Whoever asks for it after us waits behind us, so we wait shortly, let the others go first and ask
/// again; what the transaction did so far stays.
pub(super) async fn lock(tx: &impl GenericClient, table: &str, mode: &str, attempts: u32) -> Result<()> {
    let fail = |e| map_error(e, "locking the table");
    for attempt in 1.. {
        tx.batch_execute("SAVEPOINT synctool_lock").await.map_err(fail)?;
        let locked = tx.batch_execute(&format!("LOCK TABLE {table} IN {mode} MODE")).await;
        let (again, end) = match locked {
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) && attempt < attempts => (
                true,
                "ROLLBACK TO SAVEPOINT synctool_lock; RELEASE SAVEPOINT synctool_lock",
            ),
            Err(e) if e.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => {
                return Err(Error::new(
                    code::CONFLICT,
                    format!("{table} could not be locked ({mode}): others keep using it"),
                )
                .hint("nothing was changed; run again when it is less busy, or end long transactions on it"));
            }
            Err(e) => return Err(fail(e)),
            Ok(()) => (false, "RELEASE SAVEPOINT synctool_lock"),
        };
        tx.batch_execute(end).await.map_err(fail)?;
        if !again {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100 * u64::from(attempt.min(20)))).await;
    }
    Ok(())
}

async fn publish_once(destination: &PostgresDestination, plan: &Plan) -> Result<Published> {
    let targets = destination.targets(plan)?;
    let mut client = destination.session().await?;
    let may_replicate = may_replicate(&*client, destination.version).await?;
    client.working(true);
    let tx = client
        .transaction()
        .await
        .map_err(|e| map_error(e, "beginning a transaction"))?;
    tx.batch_execute(&format!(
        "SET LOCAL lock_timeout = {}; SET LOCAL work_mem = '64MB'",
        destination.options.lock_timeout.as_millis()
    ))
    .await
    .map_err(|e| map_error(e, "setting up the transaction"))?;
    destination.control.hold_generation(&tx, plan).await?;
    if let PlanStatus::Finished(applied) = destination.control.lock_plan(&tx, plan).await? {
        return Ok(Published { applied });
    }
    let applied = Publishing {
        destination,
        plan,
        may_replicate,
        tx,
    }
    .run_all(&targets)
    .await?;
    client.working(false);
    for t in targets.iter().filter(|t| t.publish == Publish::Swap) {
        // The plan is finished: a failure here is none of the run.
        if let Err(e) = analyse_again(&client, &t.table).await {
            tracing::info!(error = %map_error(e, "ANALYZE"), table = %t.table, "the swapped table could not be analysed");
        }
    }
    Ok(Published { applied })
}

/// The load table was analysed when it was sealed; only extended statistics, which the swap made again, are empty.
async fn analyse_again(client: &Connection, table: &TableId) -> std::result::Result<(), tokio_postgres::Error> {
    const EXTENDED: &str = "SELECT EXISTS (SELECT FROM pg_catalog.pg_statistic_ext \
         WHERE stxrelid = pg_catalog.to_regclass($1))";
    let name = quoted(table);
    if client.query_one(EXTENDED, &[&name]).await?.get(0) {
        client.batch_execute(&format!("ANALYZE {name}")).await?;
    }
    Ok(())
}

/// What the partitions of each table did so far.
async fn loaded(
    destination: &PostgresDestination,
    tx: &impl GenericClient,
    plan: &Plan,
) -> Result<HashMap<usize, Applied>> {
    let tables: HashMap<&PartitionId, usize> = plan.partitions().map(|p| (&p.id, p.table)).collect();
    let mut loaded = HashMap::<usize, Applied>::new();
    for (id, state) in destination.control.checkpoint(tx, plan).await? {
        *loaded.entry(tables.get(&id).copied().unwrap_or(0)).or_default() += state.applied;
    }
    Ok(loaded)
}

struct Publishing<'a> {
    destination: &'a PostgresDestination,
    plan: &'a Plan,
    may_replicate: bool,
    tx: Transaction<'a>,
}

impl Publishing<'_> {
    /// Publishes every table, finishes the plan and commits.
    async fn run_all(mut self, targets: &[Target]) -> Result<Applied> {
        let loaded = loaded(self.destination, &self.tx, self.plan).await?;
        let mut total = Applied::default();
        let mut outcomes = Vec::with_capacity(targets.len());
        for target in targets {
            let loaded = loaded.get(&target.index).copied().unwrap_or_default();
            let (applied, publish) = self
                .table(target, loaded)
                .await
                .map_err(|e| permission(e, &target.table))?;
            total += applied;
            let oid = oid_of(&self.tx, &target.table).await?.map_or(0, |(oid, _)| oid);
            outcomes.push(Outcome {
                index: target.index,
                table: target.table.clone(),
                oid,
                publish,
                applied,
            });
        }
        self.destination
            .control
            .finish(&self.tx, self.plan, total, &outcomes)
            .await?;
        self.tx.commit().await.map_err(|e| map_error(e, "publishing"))?;
        Ok(total)
    }

    async fn run(&self, statement: &str, what: &str) -> Result<u64> {
        self.tx.execute(statement, &[]).await.map_err(|e| map_error(e, what))
    }

    async fn count(&self, statement: &str) -> Result<u64> {
        let row = self
            .tx
            .query_one(statement, &[])
            .await
            .map_err(|e| map_error(e, "counting rows"))?;
        Ok(row.get::<_, i64>(0) as u64)
    }

    async fn table(&mut self, target: &Target, loaded: Applied) -> Result<(Applied, &'static str)> {
        let rows = loaded.written;
        if target.publish != Publish::Direct && self.plan.verify == Verify::Count {
            let stored = self.stored(target, rows).await?;
            if stored != rows {
                return Err(Error::new(
                    code::VERIFY_FAILED,
                    format!(
                        "{stored} rows are stored where {rows} were written; the destination table was not touched"
                    ),
                ));
            }
        }
        Ok(match &target.publish {
            Publish::Direct => (loaded, "direct"),
            Publish::Create => {
                self.create(target).await?;
                (Applied::inserts(rows), "create")
            }
            Publish::Swap => (self.swap(target, rows).await?, "swap"),
            Publish::Append => (self.append(target, rows).await?, "append"),
            Publish::Merge { delete_missing } => (self.merge(target, rows, *delete_missing).await?, "merge"),
        })
    }

    /// How many rows the load table holds. Building the key counted them; the catalog keeps that number exactly as long
    /// as a float can.
    async fn stored(&self, target: &Target, expected: u64) -> Result<u64> {
        const EXACT: u64 = 1 << 24;
        let load = quoted(&target.load);
        if expected > 0 && expected < EXACT && !target.schema.key.is_empty() {
            let counted = self
                .count(&format!(
                    "SELECT reltuples::bigint FROM pg_catalog.pg_class WHERE oid = {}::regclass",
                    literal(&load)?
                ))
                .await?;
            if counted == expected {
                return Ok(counted);
            }
        }
        self.count(&format!("SELECT pg_catalog.count(*) FROM {load}")).await
    }

    async fn create(&self, target: &Target) -> Result<()> {
        let load = quoted(&target.load);
        let schema = target.table.schema.as_deref().unwrap_or_default();
        self.tx
            .batch_execute(&format!(
                "LOCK TABLE {load} IN ACCESS EXCLUSIVE MODE; ALTER TABLE {load} RESET (autovacuum_enabled); \
                 COMMENT ON TABLE {load} IS NULL"
            ))
            .await
            .map_err(|e| map_error(e, "locking the load table"))?;
        if !target.schema.key.is_empty() {
            let name = free_name(&self.tx, schema, &derived_name(&target.table.name, "_pkey")).await?;
            self.tx
                .batch_execute(&format!(
                    "ALTER TABLE {load} RENAME CONSTRAINT {} TO {}",
                    ident(&load_key_name(target)),
                    ident(&name)
                ))
                .await
                .map_err(|e| map_error(e, "naming the key"))?;
        }
        for (column, ty) in target.schema.columns.iter().zip(&target.types) {
            if column.identity && ddl::is_integer(ty) {
                self.identity(target, &column.name).await?;
            }
        }
        self.tx
            .batch_execute(&format!("ALTER TABLE {load} RENAME TO {}", ident(&target.table.name)))
            .await
            .map_err(|e| match e.code() {
                Some(&SqlState::DUPLICATE_TABLE) => Error::new(
                    code::SCHEMA_MISMATCH,
                    format!("{} was made by somebody else while it was loaded", target.table),
                )
                .hint(format!(
                    "drop it, or start over: synctool state reset {}",
                    self.plan.pipeline
                )),
                _ => map_error(e, "putting the table in its place"),
            })
    }

    /// Moves an identity's sequence behind the largest value and gives it its usual name.
    async fn identity(&self, target: &Target, column: &str) -> Result<()> {
        let fail = |e| map_error(e, "moving the identity's sequence").at("column", column);
        let (load, c) = (quoted(&target.load), ident(column));
        let row = self
            .tx
            .query_one(
                &format!(
                    "SELECT s, pg_catalog.setval(s::regclass, greatest(m, 1), m IS NOT NULL AND m >= 1) FROM \
                     (SELECT pg_catalog.pg_get_serial_sequence($1, $2) AS s, (SELECT max({c})::bigint FROM {load}) AS m) AS x"
                ),
                &[&load, &column],
            )
            .await
            .map_err(fail)?;
        let sequence: String = row.get(0);
        let schema = target.table.schema.as_deref().unwrap_or_default();
        let name = derived_name(&format!("{}_{column}", target.table.name), "_seq");
        let name = free_name(&self.tx, schema, &name).await?;
        self.tx
            .batch_execute(&format!("ALTER SEQUENCE {sequence} RENAME TO {}", ident(&name)))
            .await
            .map_err(fail)
    }

    /// The existing table, locked against writers, with what is written and the transaction set up for it.
    async fn existing(&self, target: &Target) -> Result<Mapping> {
        let attempts = self.destination.options.lock_attempts;
        lock(&self.tx, &quoted(&target.table), "SHARE ROW EXCLUSIVE", attempts).await?;
        let (oid, _) = oid_of(&self.tx, &target.table)
            .await?
            .ok_or_else(|| Error::new(code::TABLE_MISSING, format!("{} is gone", target.table)))?;
        let columns = columns_of(&self.tx, oid).await?;
        let mapping = Mapping::new(&target.table, &target.schema, &target.types, &columns)?;
        if target.publish != Publish::Append {
            mapping.check_updatable(&target.table)?;
        }
        let integrity = Integrity::of(&self.tx, oid).await?;
        if let Some(statement) = integrity.statement(self.may_replicate, &target.table)? {
            self.run(statement, "switching triggers off").await?;
        }
        Ok(mapping)
    }

    async fn drop_load(&self, target: &Target) -> Result<()> {
        self.run(
            &format!("DROP TABLE {}", quoted(&target.load)),
            "dropping the load table",
        )
        .await
        .map(drop)
    }

    async fn append(&self, target: &Target, rows: u64) -> Result<Applied> {
        let mapping = self.existing(target).await?;
        let inserted = self
            .run(
                &mapping.insert_all(&quoted(&target.table), &quoted(&target.load)),
                "adding the loaded rows",
            )
            .await?;
        self.drop_load(target).await?;
        Ok(Applied {
            written: rows,
            inserted,
            ..Applied::default()
        })
    }

    async fn merge(&mut self, target: &Target, rows: u64, delete_missing: bool) -> Result<Applied> {
        if target.schema.key.is_empty() {
            return Err(Error::new(
                code::KEY_MISSING,
                format!("rows cannot be merged into {} without a key", target.table),
            ));
        }
        let mapping = self.existing(target).await?;
        let (table, load) = (quoted(&target.table), quoted(&target.load));
        let mut applied = Applied {
            written: rows,
            ..Applied::default()
        };
        if delete_missing {
            applied.deleted = self
                .run(
                    &mapping.delete_missing(&table, &load),
                    "deleting rows that the source does not have",
                )
                .await?;
            self.guard(target, applied.deleted, rows).await?;
        }
        let mut put_back = 0;
        if let Some(update) = mapping.update_differing(&table, &load) {
            let nested = self
                .tx
                .savepoint("synctool_update")
                .await
                .map_err(|e| map_error(e, "setting a savepoint"))?;
            match nested.execute(&update, &[]).await {
                Ok(n) => {
                    nested
                        .commit()
                        .await
                        .map_err(|e| map_error(e, "releasing a savepoint"))?;
                    applied.updated = n;
                }
                // Two rows exchange a unique value: neither can go first. Taking both away and putting them back can,
                // if nothing else hangs on the rows.
                Err(e) if e.code() == Some(&SqlState::UNIQUE_VIOLATION) && mapping.whole => {
                    nested.rollback().await.map_err(|e| map_error(e, "rolling back"))?;
                    put_back = self
                        .run(&mapping.delete_differing(&table, &load), "replacing rows that differ")
                        .await?;
                    applied.updated = put_back;
                }
                Err(e) => return Err(map_error(e, "updating rows that differ")),
            }
        }
        applied.inserted = self
            .run(
                &mapping.insert_missing(&table, &load),
                "inserting rows that are missing",
            )
            .await?
            .saturating_sub(put_back);
        // Of several that are one row there, an update has taken any.
        if let Some(shared) = mapping.count_shared(&table, &load)
            && self.count(&shared).await? > 0
        {
            return Err(Error::equal_at_destination().at("table", target.table.to_string()));
        }
        applied.unchanged = rows
            .checked_sub(applied.inserted + applied.updated)
            .ok_or_else(Error::doubled_at_destination)?;
        self.drop_load(target).await?;
        Ok(applied)
    }

    async fn guard(&self, target: &Target, deleted: u64, after: u64) -> Result<()> {
        let guard = self.plan.guard;
        // The count of the rows before is needed only where the number alone does not settle it.
        let before = if guard.allow || (deleted <= guard.max_rows && after > 0) || deleted == 0 {
            deleted
        } else {
            deleted
                + self
                    .count(&format!("SELECT pg_catalog.count(*) FROM {}", quoted(&target.table)))
                    .await?
        };
        guard.check(&target.table, before, deleted, after)
    }

    async fn swap(&self, target: &Target, rows: u64) -> Result<Applied> {
        let attempts = self.destination.options.lock_attempts;
        let applied = swap::account(&self.tx, target, rows, attempts).await?;
        let before = applied.deleted + applied.updated + applied.unchanged;
        self.plan.guard.check(&target.table, before, applied.deleted, rows)?;
        swap::swap(&self.tx, target, self.destination.version, attempts).await?;
        Ok(applied)
    }
}

/// A name that no relation of the schema has: `base`, or `base` with a number, as the server itself would choose.
pub(super) async fn free_name(client: &impl GenericClient, schema: &str, base: &str) -> Result<String> {
    let mut name = base.to_string();
    for n in 1.. {
        let taken = client
            .query_one(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE n.nspname = $1 AND c.relname = $2)",
                &[&schema, &name],
            )
            .await
            .map_err(|e| map_error(e, "looking for a free name"))?;
        if !taken.get::<_, bool>(0) {
            break;
        }
        name = derived_name(base, &n.to_string());
    }
    Ok(name)
}

/// What seal and publish would run for one table, each with the lock it takes.
pub(super) async fn preview(
    destination: &PostgresDestination,
    client: &Connection,
    target: &Target,
) -> Result<Vec<String>> {
    let (table, load) = (quoted(&target.table), quoted(&target.load));
    let mut out = Vec::new();
    if target.publish != Publish::Direct && target.publish != Publish::Swap && !target.schema.key.is_empty() {
        out.push(format!("{}  -- seal; locks only the load table", add_key(target)));
    }
    if target.publish == Publish::Create {
        out.push(format!(
            "ALTER TABLE {load} RENAME TO {}  -- publish; ACCESS EXCLUSIVE on the load table only",
            ident(&target.table.name)
        ));
        return Ok(out);
    }
    let Some((oid, _)) = oid_of(&**client, &target.table).await? else {
        return Ok(out);
    };
    if target.publish == Publish::Swap {
        out.extend(swap::preview(client, target, oid).await?);
        return Ok(out);
    }
    let mapping = destination.mapping(client, target, oid).await?;
    let integrity = Integrity::of(&**client, oid).await?;
    let may = may_replicate(&**client, destination.version).await?;
    if let Some(statement) = integrity.statement(may, &target.table)? {
        out.push(format!(
            "{statement}  -- triggers and foreign keys do not act on copied rows"
        ));
    }
    let lock = "-- publish; SHARE ROW EXCLUSIVE: readers go on, writers wait";
    match &target.publish {
        Publish::Append => out.push(format!("{}  {lock}", mapping.insert_all(&table, &load))),
        Publish::Merge { delete_missing } => {
            if *delete_missing {
                out.push(format!("{}  {lock}", mapping.delete_missing(&table, &load)));
            }
            out.extend(mapping.update_differing(&table, &load).map(|s| format!("{s}  {lock}")));
            out.push(format!("{}  {lock}", mapping.insert_missing(&table, &load)));
        }
        _ => out.push(format!(
            "-- rows of {table} are written by op, in transactions of the source; ROW EXCLUSIVE"
        )),
    }
    if target.publish != Publish::Direct {
        out.push(format!("DROP TABLE {load}  -- publish"));
    }
    Ok(out)
}
