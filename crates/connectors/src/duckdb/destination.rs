//! DuckDB as a destination: control tables, load tables, publishing.

use super::DuckDb;
use super::apply::{add_column, is_collated};
use super::session::{Session, execute, rows, transaction};
use super::sink::DuckDbSink;
use super::source::{DuckDbSource, describe};
use super::sql::{CONTROL, equal, list, quote, table as table_name};
use super::types::store_as;
use adbc_driver_manager::ManagedConnection;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, PlannedTable, Publish, short_hash};
use synctool_core::progress::{Checkpoint, Generation};
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::{Destination, Guarantee, Published, Sink, SinkTraits, StoredAs, StoredPlan, not_widened};
use synctool_core::source::{Finding, Source};
use tokio::sync::OnceCell;

pub(super) struct DuckDbDestination {
    duckdb: DuckDb,
    session: OnceCell<Session>,
}

impl DuckDbDestination {
    pub(super) fn new(duckdb: DuckDb) -> Self {
        DuckDbDestination {
            duckdb,
            session: OnceCell::new(),
        }
    }

    /// The control session; the control tables are there when it is.
    async fn control(&self) -> Result<&Session> {
        self.session
            .get_or_try_init(|| async {
                let session = self.duckdb.database.session().await?;
                session
                    .run(|c| CONTROL.iter().try_for_each(|sql| execute(c, sql, &[]).map(drop)))
                    .await?;
                Ok(session)
            })
            .await
    }

    /// The statements that make the table which rows of a planned table go to, and add the columns that its destination
    /// lacks; the load table's name is known once the plan has its generation.
    async fn table_statements(&self, t: &PlannedTable) -> Result<MakeTable> {
        let mut statements = Vec::new();
        if let Some(schema) = &t.destination.schema {
            statements.push(format!("CREATE SCHEMA IF NOT EXISTS {}", quote(schema)));
        }
        let direct = t.publish == Publish::Direct;
        match describe(&self.duckdb, &t.destination).await? {
            None if direct => statements.push(create_table(&t.destination, t, true)),
            Some(existing) if !matches!(t.publish, Publish::Create | Publish::Swap) => {
                statements.extend(t.widen.iter().map(|w| w.statement.clone()));
                let has = |name: &str| existing.columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
                for column in t.schema.columns.iter().filter(|c| !has(&c.name)) {
                    if !t.evolve || t.schema.key.contains(&column.name) {
                        return Err(Error::new(
                            code::SCHEMA_MISMATCH,
                            format!("the destination has no column {}", column.name),
                        )
                        .at("table", t.destination.to_string())
                        .hint("add the column, or leave it out of the pipeline"));
                    }
                    statements.push(add_column(&table_name(&t.destination), column));
                }
            }
            _ => {}
        }
        let planned = t.clone();
        Ok(Box::new(move |load| {
            if !direct {
                statements.push(create_table(load, &planned, false));
            }
            statements
        }))
    }

    /// What would not let a column have another type: indexes of its table, and keys that it is part of.
    async fn held_by(&self, table: &TableId, column: &str) -> Result<Vec<String>> {
        let schema = table.schema.as_deref().unwrap_or("main");
        let sql = "SELECT 'index ' || index_name || ' depends on the table' FROM duckdb_indexes() \
                   WHERE database_name = current_database() AND schema_name = ?1 AND table_name = ?2 \
                   UNION ALL SELECT 'its ' || lower(constraint_type) || ' holds it' FROM duckdb_constraints() \
                   WHERE database_name = current_database() AND schema_name = ?1 AND table_name = ?2 \
                   AND constraint_type NOT IN ('CHECK', 'NOT NULL') AND list_contains(constraint_column_names, ?3)";
        let found = self.control().await?.rows(sql, &[schema, &table.name, column]).await?;
        Ok(found.into_iter().flatten().flatten().collect())
    }

    /// Runs `work` in one transaction.
    async fn transaction<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ManagedConnection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let session = self.control().await?;
        session.run(move |c| transaction(c, work)).await
    }
}

/// Says the statements once the load table has its name.
type MakeTable = Box<dyn FnOnce(&TableId) -> Vec<String> + Send>;

/// The table that rows of a planned table are loaded into.
pub(super) fn load_table(plan: &Plan, index: usize) -> TableId {
    TableId {
        schema: plan.tables[index].destination.schema.clone(),
        name: plan.load_name(index),
    }
}

/// Fails unless the plan is the newest of its pipeline. It writes the row it reads, so that a plan prepared meanwhile
/// is a conflict: DuckDB's snapshots alone would not notice.
pub(super) fn check_generation(c: &mut ManagedConnection, plan: &Plan) -> Result<()> {
    let changed = execute(
        c,
        "UPDATE main._synctool_generation SET generation = generation WHERE pipeline = ? AND generation = CAST(? AS BIGINT)",
        &[&plan.pipeline, &plan.generation.to_string()],
    )?;
    let newest = changed == 1 || generation(c, &plan.pipeline)? == plan.generation;
    if newest {
        Ok(())
    } else {
        Err(Error::new(code::FENCED, "a newer plan has taken over the pipeline"))
    }
}

fn generation(c: &mut ManagedConnection, pipeline: &str) -> Result<Generation> {
    let found = rows(
        c,
        "SELECT CAST(generation AS VARCHAR) FROM main._synctool_generation WHERE pipeline = ?",
        &[pipeline],
    )?;
    Ok(Generation(
        found.first().and_then(|r| r[0].as_deref()?.parse().ok()).unwrap_or(0),
    ))
}

fn raise_generation(c: &mut ManagedConnection, pipeline: &str) -> Result<Generation> {
    let next = Generation(generation(c, pipeline)?.0 + 1);
    let sql = if next.0 == 1 {
        "INSERT INTO main._synctool_generation (generation, pipeline) VALUES (CAST(? AS BIGINT), ?)"
    } else {
        "UPDATE main._synctool_generation SET generation = CAST(? AS BIGINT) WHERE pipeline = ?"
    };
    execute(c, sql, &[&next.to_string(), pipeline])?;
    Ok(next)
}

fn stored_plan(c: &mut ManagedConnection, pipeline: &str) -> Result<Option<(StoredPlan, Published)>> {
    let found = rows(
        c,
        "SELECT plan, CAST(finished AS VARCHAR), published FROM main._synctool_plan WHERE pipeline = ?",
        &[pipeline],
    )?;
    let Some([Some(plan), finished, published]) = found.first().map(Vec::as_slice) else {
        return Ok(None);
    };
    let bad = |e| Error::unreadable_plan(pipeline).caused_by(e);
    let applied: Applied = published
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .map_err(bad)?
        .unwrap_or_default();
    let plan = serde_json::from_str(plan).map_err(bad)?;
    Ok(Some((
        StoredPlan {
            plan,
            finished: finished.as_deref() == Some("true"),
        },
        Published { applied },
    )))
}

fn count(c: &mut ManagedConnection, sql: &str) -> Result<u64> {
    let found = rows(c, sql, &[])?;
    found
        .first()
        .and_then(|r| r[0].as_deref()?.parse().ok())
        .ok_or_else(|| Error::bug("a count without a number"))
}

fn drop_loads(c: &mut ManagedConnection, plan: &Plan) -> Result<()> {
    (0..plan.tables.len()).try_for_each(|i| {
        execute(
            c,
            &format!("DROP TABLE IF EXISTS {}", table_name(&load_table(plan, i))),
            &[],
        )
        .map(drop)
    })
}

/// The load tables of a pipeline: all of them, of whichever plan.
fn load_tables(c: &mut ManagedConnection, pipeline: &str) -> Result<Vec<TableId>> {
    let prefix = format!("_synctool_load_{}_", short_hash(pipeline));
    let sql = "SELECT schema_name, table_name FROM duckdb_tables() \
               WHERE database_name = current_database() AND starts_with(table_name, ?)";
    let found = rows(c, sql, &[&prefix])?;
    let named = found.into_iter().filter_map(|row| {
        let mut names = row.into_iter().flatten();
        names.next().zip(names.next())
    });
    Ok(named.map(|(schema, name)| TableId::new(schema, name)).collect())
}

/// `CREATE TABLE`; a load table gets its key when it is sealed.
fn create_table(id: &TableId, table: &PlannedTable, with_key: bool) -> String {
    let column = |c: &Column| {
        format!(
            "{} {}{}",
            quote(&c.name),
            store_as(c).type_name,
            if c.nullable { "" } else { " NOT NULL" }
        )
    };
    let mut columns: Vec<String> = table.schema.columns.iter().map(column).collect();
    if with_key && !table.schema.key.is_empty() {
        let key = list("", table.schema.key.iter().map(String::as_str));
        columns.push(format!("PRIMARY KEY ({key})"));
    }
    format!("CREATE TABLE {} ({})", table_name(id), columns.join(", "))
}

/// Rows that a swap takes away: those whose key the loaded table does not have.
fn swapped_away(
    c: &mut ManagedConnection,
    t: &PlannedTable,
    load: &str,
    table: &str,
    before: u64,
    after: u64,
) -> Result<u64> {
    let there = rows(c, &format!("SELECT column_name FROM (DESCRIBE {table})"), &[])?;
    let has = |key: &String| {
        there
            .iter()
            .any(|row| row.first().is_some_and(|name| name.as_ref() == Some(key)))
    };
    if t.schema.key.is_empty() || !t.schema.key.iter().all(has) {
        return Ok(before.saturating_sub(after));
    }
    count(
        c,
        &format!("SELECT CAST(count(*) AS VARCHAR) {}", missing(t, load, table)),
    )
}

/// `FROM … WHERE …` of the rows whose key the loaded table does not have.
fn missing(t: &PlannedTable, load: &str, table: &str) -> String {
    let same = equal("d", "l", t.schema.key.iter().map(String::as_str));
    format!("FROM {table} AS d WHERE NOT EXISTS (SELECT 1 FROM {load} AS l WHERE {same})")
}

/// Refuses loaded rows that are one here, of which an update has taken any: the load table has no collation.
fn check_shared(c: &mut ManagedConnection, t: &PlannedTable, load: &str, table: &str) -> Result<()> {
    let key = || t.schema.key.iter().map(String::as_str);
    let (same, by) = (equal("d", "l", key()), list("d.", key()));
    let shared = count(
        c,
        &format!(
            "SELECT CAST(count(*) AS VARCHAR) FROM (SELECT 1 FROM {table} AS d, {load} AS l WHERE {same} GROUP BY {by} \
             HAVING count(*) > 1)"
        ),
    )?;
    match shared {
        0 => Ok(()),
        _ => Err(Error::equal_at_destination().at("table", t.destination.to_string())),
    }
}

/// What publishing one table does, in order.
fn publish_table(c: &mut ManagedConnection, plan: &Plan, index: usize) -> Result<Applied> {
    let t = &plan.tables[index];
    if t.publish == Publish::Direct {
        // Its rows are there already.
        return Ok(Applied::default());
    }
    let (load, table) = (table_name(&load_table(plan, index)), table_name(&t.destination));
    let written = count(c, &format!("SELECT CAST(count(*) AS VARCHAR) FROM {load}"))?;
    let columns: Vec<&str> = t.schema.columns.iter().map(|c| c.name.as_str()).collect();
    let mut applied = Applied {
        written,
        ..Applied::default()
    };
    match &t.publish {
        Publish::Direct => {}
        Publish::Create | Publish::Swap => {
            if t.publish == Publish::Swap {
                let before = count(c, &format!("SELECT CAST(count(*) AS VARCHAR) FROM {table}"))?;
                let deleted = swapped_away(c, t, &load, &table, before, written)?;
                plan.guard.check(&t.destination, before, deleted, written)?;
                execute(c, &format!("DROP TABLE {table}"), &[])?;
                applied = Applied::swapped(before, deleted, written);
            } else {
                applied.inserted = written;
            }
            execute(
                c,
                &format!("ALTER TABLE {load} RENAME TO {}", quote(&t.destination.name)),
                &[],
            )?;
        }
        Publish::Append => {
            let names = list("", columns.iter().copied());
            execute(
                c,
                &format!("INSERT INTO {table} ({names}) SELECT {names} FROM {load}"),
                &[],
            )?;
            applied.inserted = written;
        }
        Publish::Merge { delete_missing } => {
            let same = equal("d", "l", t.schema.key.iter().map(String::as_str));
            let differs: Vec<String> = columns
                .iter()
                .map(|n| format!("d.{0} IS DISTINCT FROM l.{0}", quote(n)))
                .collect();
            let differs = differs.join(" OR ");
            if *delete_missing {
                let missing = missing(t, &load, &table);
                applied.deleted = count(c, &format!("SELECT CAST(count(*) AS VARCHAR) {missing}"))?;
                let before = count(c, &format!("SELECT CAST(count(*) AS VARCHAR) FROM {table}"))?;
                plan.guard.check(&t.destination, before, applied.deleted, written)?;
                execute(c, &format!("DELETE {missing}"), &[])?;
            }
            applied.updated = count(
                c,
                &format!(
                    "SELECT CAST(count(*) AS VARCHAR) FROM {table} AS d, {load} AS l WHERE {same} AND ({differs})"
                ),
            )?;
            let others: Vec<&str> = columns
                .iter()
                .copied()
                .filter(|n| !t.schema.key.iter().any(|k| k == n))
                .collect();
            if applied.updated > 0 && !others.is_empty() {
                let set: Vec<String> = others.iter().map(|n| format!("{0} = l.{0}", quote(n))).collect();
                execute(
                    c,
                    &format!(
                        "UPDATE {table} AS d SET {} FROM {load} AS l WHERE {same} AND ({differs})",
                        set.join(", ")
                    ),
                    &[],
                )?;
            }
            let absent = format!("FROM {load} AS l WHERE NOT EXISTS (SELECT 1 FROM {table} AS d WHERE {same})");
            applied.inserted = count(c, &format!("SELECT CAST(count(*) AS VARCHAR) {absent}"))?;
            let (names, values) = (list("", columns.iter().copied()), list("l.", columns.iter().copied()));
            execute(
                c,
                &format!("INSERT INTO {table} ({names}) SELECT {values} {absent}"),
                &[],
            )?;
            if is_collated(c, &t.destination)? {
                check_shared(c, t, &load, &table)?;
            }
            applied.unchanged = written
                .checked_sub(applied.inserted + applied.updated)
                .ok_or_else(Error::doubled_at_destination)?;
        }
    }
    Ok(applied)
}

fn remember(c: &mut ManagedConnection, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
    for (fact, value) in facts {
        execute(
            c,
            "INSERT OR REPLACE INTO main._synctool_memory VALUES (?, ?, ?)",
            &[pipeline, fact, value],
        )?;
    }
    Ok(())
}

#[async_trait]
impl Destination for DuckDbDestination {
    fn engine(&self) -> &'static str {
        "duckdb"
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits {
            writers: 1,
            guarantee: Guarantee::ExactlyOnce,
            applies_changes: true,
            single_partition: false,
        }
    }

    fn store_as(&self, _: &str, column: &Column) -> StoredAs {
        store_as(column)
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        describe(&self.duckdb, table).await
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        let found = self
            .control()
            .await?
            .rows(format!("SELECT '1' FROM {} LIMIT 1", table_name(table)), &[])
            .await?;
        Ok(found.is_empty())
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        let sql = "SELECT run_id FROM main._synctool_history WHERE table_name = ? LIMIT 1";
        Ok(!self.control().await?.rows(sql, &[&table_name(table)]).await?.is_empty())
    }

    async fn widen(&self, table: &TableId, there: &Column, wanted: &Column) -> Result<Option<String>> {
        let type_name = store_as(wanted).type_name;
        if there.ty == wanted.ty || type_name == "VARCHAR" {
            return Ok(None);
        }
        let statement = format!(
            "ALTER TABLE {} ALTER COLUMN {} SET DATA TYPE {type_name}",
            table_name(table),
            quote(&there.name)
        );
        let obstacles = self.held_by(table, &there.name).await?;
        match obstacles.is_empty() {
            true => Ok(Some(statement)),
            false => Err(not_widened(table, there, &obstacles, &statement)),
        }
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let mut obstacles = Vec::new();
        if let Some(existing) = self.describe(table).await? {
            let extra = existing.difference(wanted).extra;
            obstacles.extend(
                extra
                    .iter()
                    .map(|c| format!("column {} is not in the pipeline", c.name)),
            );
        }
        let schema = table.schema.as_deref().unwrap_or("main");
        let found = self
            .control()
            .await?
            .rows(
                "SELECT 'index ' || index_name FROM duckdb_indexes() WHERE database_name = current_database() \
                 AND schema_name = ?1 AND table_name = ?2 \
                 UNION ALL SELECT lower(constraint_type) || ' constraint' FROM duckdb_constraints() \
                 WHERE database_name = current_database() AND schema_name = ?1 AND table_name = ?2 \
                 AND constraint_type NOT IN ('PRIMARY KEY', 'NOT NULL')",
                &[schema, &table.name],
            )
            .await?;
        obstacles.extend(found.into_iter().flatten().flatten());
        Ok(obstacles)
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        let mut statements = Vec::new();
        for (i, t) in plan.tables.iter().enumerate() {
            let load = load_table(plan, i);
            statements.extend(self.table_statements(t).await?(&load));
            if t.publish == Publish::Direct {
                continue;
            }
            statements.push(format!(
                "-- {:?} of {} from {}, in one transaction",
                t.publish, t.destination, load
            ));
        }
        Ok(statements)
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        let pipeline = pipeline.to_string();
        let session = self.control().await?;
        Ok(session
            .run(move |c| stored_plan(c, &pipeline))
            .await?
            .map(|(plan, _)| plan))
    }

    async fn prepare(&self, mut plan: Plan) -> Result<Plan> {
        let mut statements = Vec::new();
        for t in &plan.tables {
            statements.push(self.table_statements(t).await?);
        }
        failpoint("prepare.before")?;
        let plan = self
            .transaction(move |c| {
                plan.generation = raise_generation(c, &plan.pipeline)?;
                if let Some((old, _)) = stored_plan(c, &plan.pipeline)? {
                    drop_loads(c, &old.plan)?;
                }
                for (i, make) in statements.into_iter().enumerate() {
                    for sql in make(&load_table(&plan, i)) {
                        execute(c, &sql, &[])?;
                    }
                }
                let json = serde_json::to_string(&plan).map_err(|e| Error::bug(e.to_string()))?;
                execute(
                    c,
                    "DELETE FROM main._synctool_plan WHERE pipeline = ?",
                    &[&plan.pipeline],
                )?;
                execute(
                    c,
                    "DELETE FROM main._synctool_checkpoint WHERE pipeline = ?",
                    &[&plan.pipeline],
                )?;
                execute(
                    c,
                    "INSERT INTO main._synctool_plan VALUES (?, CAST(? AS BIGINT), ?, false, NULL)",
                    &[&plan.pipeline, &plan.generation.to_string(), &json],
                )?;
                Ok(plan)
            })
            .await?;
        failpoint("prepare.after")?;
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let found = self
            .control()
            .await?
            .rows(
                "SELECT \"partition\", state FROM main._synctool_checkpoint WHERE pipeline = ? AND generation = CAST(? AS BIGINT)",
                &[&plan.pipeline, &plan.generation.to_string()],
            )
            .await?;
        let mut checkpoint = Checkpoint::new();
        for row in found {
            if let [Some(id), Some(state)] = row.as_slice() {
                let bad = |e| Error::new(code::STATE_STORE, "a stored partition cannot be read").caused_by(e);
                checkpoint.insert(id.as_str().into(), serde_json::from_str(state).map_err(bad)?);
            }
        }
        Ok(checkpoint)
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        self.control().await?;
        Ok(Box::new(DuckDbSink::open(&self.duckdb, plan).await?))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        let mut statements = Vec::new();
        for (i, t) in plan
            .tables
            .iter()
            .enumerate()
            .filter(|(_, t)| t.publish != Publish::Direct)
        {
            let load = load_table(plan, i);
            let sealed = self.describe(&load).await?.is_none_or(|s| !s.key.is_empty());
            if !sealed && !t.schema.key.is_empty() {
                let key = list("", t.schema.key.iter().map(String::as_str));
                statements.push(format!("ALTER TABLE {} ADD PRIMARY KEY ({key})", table_name(&load)));
            }
        }
        let plan = plan.clone();
        self.transaction(move |c| {
            check_generation(c, &plan)?;
            statements.iter().try_for_each(|sql| execute(c, sql, &[]).map(drop))
        })
        .await
        .map_err(Error::hint_of_doubles)?;
        failpoint("seal.after")
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        let planned = plan.tables.get(index)?;
        let table = match planned.publish {
            Publish::Direct => planned.destination.clone(),
            _ => load_table(plan, index),
        };
        Some((Arc::new(DuckDbSource(self.duckdb.clone())), table))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(DuckDbSource(self.duckdb.clone())))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        let sql = "SELECT fact, value FROM main._synctool_memory WHERE pipeline = ?";
        let found = self.control().await?.rows(sql, &[pipeline]).await?;
        Ok(found
            .into_iter()
            .filter_map(|row| {
                let mut row = row.into_iter().flatten();
                row.next().zip(row.next())
            })
            .collect())
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let (pipeline, facts) = (pipeline.to_string(), facts.clone());
        self.transaction(move |c| remember(c, &pipeline, &facts)).await
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        failpoint("publish.before")?;
        let plan = plan.clone();
        let published = self
            .transaction(move |c| {
                check_generation(c, &plan)?;
                let (stored, published) =
                    stored_plan(c, &plan.pipeline)?.ok_or_else(|| Error::new(code::FENCED, "the plan is gone"))?;
                if stored.finished {
                    return Ok(published);
                }
                let mut published = Published::default();
                for (i, t) in plan.tables.iter().enumerate() {
                    let applied = publish_table(c, &plan, i)?;
                    let json = serde_json::to_string(&applied).map_err(|e| Error::bug(e.to_string()))?;
                    if matches!(t.publish, Publish::Create | Publish::Swap) {
                        execute(
                            c,
                            "INSERT INTO main._synctool_history VALUES (?, CAST(? AS BIGINT), ?, ?, ?, now()::TIMESTAMP)",
                            &[&plan.pipeline, &plan.generation.to_string(), &plan.run_id, &table_name(&t.destination), &json],
                        )?;
                    }
                    published.applied += applied;
                }
                let json = serde_json::to_string(&published.applied).map_err(|e| Error::bug(e.to_string()))?;
                execute(c, "UPDATE main._synctool_plan SET finished = true, published = ? WHERE pipeline = ?", &[&json, &plan.pipeline])?;
                execute(c, "DELETE FROM main._synctool_checkpoint WHERE pipeline = ?", &[&plan.pipeline])?;
                remember(c, &plan.pipeline, &plan.remember)?;
                drop_loads(c, &plan)?;
                Ok(published)
            })
            .await?;
        failpoint("publish.after")?;
        Ok(published)
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let pipeline = pipeline.to_string();
        self.transaction(move |c| {
            raise_generation(c, &pipeline)?;
            // A plan that cannot be read is what forgetting is for: it is not asked which load tables it had.
            for load in load_tables(c, &pipeline)? {
                execute(c, &format!("DROP TABLE IF EXISTS {}", table_name(&load)), &[])?;
            }
            execute(c, "DELETE FROM main._synctool_plan WHERE pipeline = ?", &[&pipeline])?;
            execute(c, "DELETE FROM main._synctool_memory WHERE pipeline = ?", &[&pipeline])?;
            execute(
                c,
                "DELETE FROM main._synctool_checkpoint WHERE pipeline = ?",
                &[&pipeline],
            )?;
            Ok(())
        })
        .await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let control = self.control().await.map(drop);
        let mut findings = vec![match control {
            Ok(()) => Finding::good("control tables", "writable"),
            Err(e) => Finding::of_error("control tables", &e),
        }];
        for table in tables {
            let what = format!("table {table}");
            findings.push(match self.describe(table).await {
                Ok(None) => Finding::good(what, "will be created"),
                Ok(Some(schema)) => Finding::of_table(what, Ok(schema)),
                Err(e) => Finding::of_error(what, &e),
            });
        }
        findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::duckdb::DuckDbConfig;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_plan_that_cannot_be_read_is_forgotten_with_its_load_tables() {
        let folder = tempfile::tempdir().unwrap();
        let config = DuckDbConfig {
            path: folder.path().join("t.duckdb"),
            library: Some(synctool_testkit::libduckdb()),
            create: true,
        };
        let destination = DuckDbDestination::new(DuckDb::open(config).await.unwrap());
        let control = destination.control().await.unwrap();
        let load = |pipeline: &str, index: usize| format!("_synctool_load_{}_1_{index}", short_hash(pipeline));
        for sql in [
            "CREATE SCHEMA sales".to_string(),
            format!("CREATE TABLE {} (k BIGINT)", load("p", 0)),
            format!("CREATE TABLE sales.{} (k BIGINT)", load("p", 1)),
            format!("CREATE TABLE {} (k BIGINT)", load("another", 0)),
            "INSERT INTO main._synctool_plan VALUES ('p', 1, '{\"no\": \"plan\"}', false, NULL)".to_string(),
        ] {
            control.run(move |c| execute(c, &sql, &[]).map(drop)).await.unwrap();
        }
        let e = destination.stored_plan("p").await.unwrap_err();
        assert_eq!(e.code(), code::STATE_STORE, "{e}");
        destination.forget("p").await.unwrap();
        assert_eq!(destination.stored_plan("p").await.unwrap(), None);
        let left = "SELECT table_name FROM duckdb_tables() WHERE starts_with(table_name, '_synctool_load_')";
        let left = control.rows(left, &[]).await.unwrap();
        assert_eq!(left, [[Some(load("another", 0))]]);
    }
}
