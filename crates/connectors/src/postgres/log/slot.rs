//! The slot, the publication and the watermark table: made, checked and adopted; every refusal says what to do.

use super::super::catalog;
use super::super::client::Connection;
use super::super::sql::{ident, table as quoted};
use super::pgoutput::Lsn;
use super::position::SlotState;
use super::status::SlotStatus;
use super::{LogOptions, Watermarks, identity, membership};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;
use tokio::time::Instant;
use tokio_postgres::types::PgLsn;

/// The plugin whose messages are understood here.
const PLUGIN: &str = "pgoutput";

/// How long to wait for a slot that another session still holds.
const SLOT_WAIT: Duration = Duration::from_secs(10);

/// How long making a slot may wait for transactions that are open.
const CREATION_WAIT: Duration = Duration::from_secs(60);

/// A published table.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Published {
    pub(super) table: TableId,
    /// The columns that are published, if the server says (15+).
    pub(super) columns: Option<Vec<String>>,
    /// Which rows are, as a condition; `None` for all.
    pub(super) filter: Option<String>,
}

/// A publication as it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Publication {
    pub(super) tables: Vec<Published>,
    /// Whether partitions come under their root's name.
    pub(super) via_root: bool,
}

impl Published {
    /// Whether it lets through what another table's entry does.
    fn is_like(&self, other: &Published) -> bool {
        let mut columns = [self, other].map(|p| p.columns.clone().unwrap_or_default());
        columns.iter_mut().for_each(|c| c.sort_unstable());
        self.filter == other.filter && columns[0] == columns[1]
    }
}

impl Publication {
    /// By which entry a table is published: its own, or that of its partitions (the `leaves`). Whoever reads the table has
    /// one filter and one list of columns, so theirs must be the same.
    pub(super) fn entry(&self, table: &TableId, leaves: &[(u32, TableId)]) -> Result<Option<&Published>> {
        let find = |table: &TableId| self.tables.iter().find(|p| p.table == *table);
        if let Some(own) = find(table) {
            return Ok(Some(own));
        }
        let mut parts = leaves.iter().filter_map(|(_, leaf)| find(leaf));
        let first = parts.next();
        match parts.find(|part| first.is_some_and(|first| !part.is_like(first))) {
            None => Ok(first),
            Some(other) => Err(wrong(
                format!(
                    "partitions of {table} are published with different filters or columns: {} and {}",
                    other.table,
                    first.map_or(table, |first| &first.table)
                ),
                format!("publish them alike; or {table} itself, with publish_via_partition_root = true"),
            )),
        }
    }
}

fn wrong(why: impl Into<String>, fix: impl Into<String>) -> Error {
    Error::new(code::LOG_SETUP, why).hint(fix)
}

/// Looks at the settings of the server.
pub(super) async fn check_server(connection: &Connection) -> Result<()> {
    let row = connection
        .query_one(
            "SELECT pg_catalog.current_setting('wal_level'), rolreplication OR rolsuper, current_user::text \
             FROM pg_catalog.pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .map_err(|e| connection.error(e, "looking at the server's settings"))?;
    let level: &str = row.get(0);
    if level != "logical" {
        return Err(wrong(
            format!("wal_level is {level}: the server's log does not say what changed in tables"),
            "ALTER SYSTEM SET wal_level = 'logical'; then restart the server",
        ));
    }
    if !row.get::<_, bool>(1) {
        let role: &str = row.get(2);
        return Err(
            Error::new(code::PERMISSION, format!("the role {role} may not follow the log"))
                .hint(format!("ALTER ROLE {} REPLICATION;", ident(role))),
        );
    }
    Ok(())
}

/// What is done about what is missing at the server.
pub(super) enum Missing<'a> {
    /// It is made.
    Make,
    /// The statements that would make it are told.
    Tell(&'a mut Vec<String>),
}

impl Missing<'_> {
    async fn run(&mut self, connection: &Connection, statement: String, what: &str) -> Result<()> {
        match self {
            Missing::Make => run(connection, &statement, what).await,
            Missing::Tell(statements) => {
                statements.push(statement);
                Ok(())
            }
        }
    }

    pub(super) fn only_tells(&self) -> bool {
        matches!(self, Missing::Tell(_))
    }
}

/// The publication, with the tables that it should have; made or completed if the options allow it, or only told.
pub(super) async fn publication(
    connection: &Connection,
    options: &LogOptions,
    wanted: &[TableId],
    schema: &str,
    mut act: Missing<'_>,
) -> Result<Publication> {
    let name = &options.publication;
    let marks = matches!(options.watermarks, Watermarks::Table).then(|| options.watermark_table());
    let is_there = exists(connection, name).await?;
    if !is_there {
        identity::check_publishable(connection, wanted, schema).await?;
    }
    if let (true, Some(marks)) = (options.create, &marks) {
        watermark_table(connection, marks, &mut act).await?;
    }
    let all: Vec<TableId> = wanted
        .iter()
        .map(|t| TableId::new(t.schema.as_deref().unwrap_or(schema), &t.name))
        .chain(marks.clone())
        .collect();
    if !is_there {
        if !options.create {
            return Err(wrong(
                format!("the publication {name} does not exist"),
                create_publication(name, &all, connection.version()),
            ));
        }
        if wanted.is_empty() {
            return Err(wrong(
                format!("the publication {name} does not exist, and no tables are named that it could have"),
                "name the tables to capture",
            ));
        }
        let create = create_publication(name, &all, connection.version());
        act.run(connection, create, "making the publication").await?;
        if act.only_tells() {
            return Ok(Publication {
                tables: all.iter().map(whole).collect(),
                via_root: connection.version() >= 130_000,
            });
        }
    }
    let mut found = read(connection, name).await?;
    let mut missing = missing(connection, &found, &all, marks.as_ref().filter(|_| act.only_tells())).await?;
    missing.dedup();
    if !missing.is_empty() {
        let tables = missing.iter().filter(|t| marks.as_ref() != Some(*t)).cloned();
        identity::check_publishable(connection, &Vec::from_iter(tables), schema).await?;
        let add = format!("ALTER PUBLICATION {} ADD TABLE {}", ident(name), list(&missing));
        if !options.create {
            return Err(wrong(
                format!("the publication {name} does not have {}", names(&missing)),
                format!("{add};"),
            ));
        }
        if !act.only_tells() {
            tracing::info!(
                publication = name,
                tables = names(&missing),
                "adding tables to the publication"
            );
        }
        act.run(connection, add, "adding tables to the publication").await?;
        if act.only_tells() {
            found.tables.extend(missing.iter().map(whole));
            return Ok(found);
        }
        membership::settle_all(connection, &missing, schema).await?;
        found = read(connection, name).await?;
    }
    Ok(found)
}

/// A publication, if it is there.
pub(super) async fn as_it_is(connection: &Connection, name: &str) -> Result<Option<Publication>> {
    match exists(connection, name).await? {
        true => read(connection, name).await.map(Some),
        false => Ok(None),
    }
}

/// The tables of a publication besides that of watermarks.
pub(super) async fn published(connection: &Connection, options: &LogOptions) -> Result<Vec<TableId>> {
    let found = read(connection, &options.publication).await?;
    let marks = options.watermark_table();
    Ok(found
        .tables
        .into_iter()
        .map(|p| p.table)
        .filter(|t| *t != marks)
        .collect())
}

fn whole(table: &TableId) -> Published {
    Published {
        table: table.clone(),
        columns: None,
        filter: None,
    }
}

fn list(tables: &[TableId]) -> String {
    let quoted: Vec<String> = tables.iter().map(|t| quoted(t, "public")).collect();
    quoted.join(", ")
}

fn names(tables: &[TableId]) -> String {
    let names: Vec<String> = tables.iter().map(ToString::to_string).collect();
    names.join(", ")
}

fn create_publication(name: &str, tables: &[TableId], version: u32) -> String {
    let root = if version >= 130_000 {
        " WITH (publish_via_partition_root = true)"
    } else {
        ""
    };
    format!("CREATE PUBLICATION {} FOR TABLE {}{root}", ident(name), list(tables))
}

async fn run(connection: &Connection, statement: &str, what: &str) -> Result<()> {
    match connection.batch_execute(statement).await {
        Ok(()) => Ok(()),
        // Somebody else was faster: what stands there is checked afterwards.
        Err(e) if matches!(e.code().map(|c| c.code()), Some("42710" | "42P06" | "42P07" | "23505")) => Ok(()),
        Err(e) => Err(connection
            .error(e, what)
            .hint(format!("let an administrator run: {statement};"))),
    }
}

async fn exists(connection: &Connection, name: &str) -> Result<bool> {
    let row = connection
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = $1::text)",
            &[&name],
        )
        .await
        .map_err(|e| connection.error(e, "looking for the publication"))?;
    Ok(row.get(0))
}

/// What a publication has; refuses one that does not publish every kind of change.
async fn read(connection: &Connection, name: &str) -> Result<Publication> {
    let version = connection.version();
    let root = if version >= 130_000 { "pubviaroot" } else { "false" };
    let row = connection
        .query_one(
            &format!(
                "SELECT pubinsert, pubupdate, pubdelete, pubtruncate, {root} FROM pg_catalog.pg_publication \
                 WHERE pubname = $1::text"
            ),
            &[&name],
        )
        .await
        .map_err(|e| connection.error(e, "reading the publication"))?;
    if (0..4).any(|i| !row.get::<_, bool>(i)) {
        return Err(wrong(
            format!("the publication {name} leaves out some kinds of change: the destination would not stay equal"),
            format!(
                "ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');",
                ident(name)
            ),
        ));
    }
    let more = if version >= 150_000 {
        "attnames::text[], rowfilter"
    } else {
        "NULL::text[], NULL::text"
    };
    let tables = connection
        .query(
            &format!(
                "SELECT schemaname::text, tablename::text, {more} FROM pg_catalog.pg_publication_tables \
                 WHERE pubname = $1::text ORDER BY 1, 2"
            ),
            &[&name],
        )
        .await
        .map_err(|e| connection.error(e, "reading the publication"))?;
    Ok(Publication {
        via_root: row.get(4),
        tables: tables
            .iter()
            .map(|r| Published {
                table: TableId::new(r.get::<_, String>(0), r.get::<_, String>(1)),
                columns: r.get(2),
                filter: r.get(3),
            })
            .collect(),
    })
}

/// Which of the wanted tables are neither published themselves nor by all their partitions.
async fn missing(
    connection: &Connection,
    found: &Publication,
    wanted: &[TableId],
    to_come: Option<&TableId>,
) -> Result<Vec<TableId>> {
    let has = |t: &TableId| found.tables.iter().any(|p| p.table == *t);
    let mut missing = Vec::new();
    for table in wanted.iter().filter(|t| !has(t)) {
        if to_come == Some(table) {
            missing.push(table.clone());
            continue;
        }
        // A table that does not exist has an error of its own, with similar names.
        let described = catalog::describe(connection, table, "public").await?;
        let leaves = leaves(connection, described.oid).await?;
        if leaves.is_empty() || !leaves.iter().all(|(_, t)| has(t)) {
            missing.push(table.clone());
        }
    }
    Ok(missing)
}

/// The partitions of a partitioned table that hold rows.
pub(super) async fn leaves(connection: &Connection, oid: u32) -> Result<Vec<(u32, TableId)>> {
    let rows = connection
        .query(
            "SELECT c.oid, n.nspname::text, c.relname::text FROM pg_catalog.pg_partition_tree($1::oid::regclass) t \
             JOIN pg_catalog.pg_class c ON c.oid = t.relid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE t.isleaf AND t.level > 0",
            &[&oid],
        )
        .await
        .map_err(|e| connection.error(e, "reading a table's partitions"))?;
    Ok(rows
        .iter()
        .map(|r| (r.get(0), TableId::new(r.get::<_, String>(1), r.get::<_, String>(2))))
        .collect())
}

async fn watermark_table(connection: &Connection, marks: &TableId, act: &mut Missing<'_>) -> Result<()> {
    // CREATE … IF NOT EXISTS asks for the right even where there is nothing to do.
    if catalog::find(connection, marks, "public").await?.is_some() {
        return Ok(());
    }
    let schema = ident(marks.schema.as_deref().unwrap_or_default());
    let make = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
    act.run(connection, make, "making the control schema").await?;
    let table = quoted(marks, "public");
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} (selectionid varchar(50) PRIMARY KEY, wm_type varchar(10) NOT NULL)"
    );
    act.run(connection, create, "making the table of watermarks").await
}

/// A slot as it is, checked to be one that can be read here; `None` if there is none.
pub(super) async fn find(connection: &Connection, name: &str) -> Result<Option<SlotState>> {
    let version = connection.version();
    let status = if version >= 130_000 { "wal_status" } else { "NULL::text" };
    let two_phase = if version >= 140_000 { "two_phase" } else { "false" };
    let reason = invalidation(version);
    let row = connection
        .query_opt(
            &format!(
                "SELECT plugin::text, slot_type, database::text, pg_catalog.current_database()::text, confirmed_flush_lsn, \
                 {status}, {reason}, {two_phase} FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text"
            ),
            &[&name],
        )
        .await
        .map_err(|e| connection.error(e, "looking for the replication slot"))?;
    let Some(row) = row else { return Ok(None) };
    let (plugin, kind, database, here): (Option<&str>, &str, Option<&str>, &str) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let other =
        format!("choose another slot, or drop it if nobody needs it: SELECT pg_drop_replication_slot('{name}');");
    if kind != "logical" {
        return Err(wrong(
            format!("the replication slot {name} is {kind}, not logical"),
            other,
        ));
    }
    if plugin != Some(PLUGIN) {
        let plugin = plugin.unwrap_or("nothing");
        return Err(wrong(
            format!("the replication slot {name} is for {plugin}, not for {PLUGIN}"),
            other,
        ));
    }
    if database != Some(here) {
        let database = database.unwrap_or_default();
        return Err(wrong(
            format!("the replication slot {name} is of database {database}, not of {here}"),
            other,
        ));
    }
    if row.get(7) {
        return Err(wrong(
            format!("the replication slot {name} shows transactions before their COMMIT PREPARED (two_phase)"),
            other,
        ));
    }
    let (status, reason): (Option<&str>, Option<&str>) = (row.get(5), row.get(6));
    let given_up = reason.or_else(|| status.filter(|s| *s == "lost").map(|_| "its log was removed"));
    Ok(Some(SlotState {
        confirmed: row.get::<_, Option<PgLsn>>(4).map(Lsn::from),
        lost: given_up.map(str::to_string),
    }))
}

/// What the making of a slot says besides its name and plugin: not temporary, not two-phase.
fn creation_arguments(options: &LogOptions, version: u32) -> String {
    let failover = options.failover && version >= 170_000;
    match version {
        170_000.. => format!(", false, false, {failover}"),
        140_000.. => ", false, false".to_string(),
        _ => ", false".to_string(),
    }
}

/// Every slot of the server.
pub(super) async fn all(connection: &Connection) -> Result<Vec<SlotStatus>> {
    let version = connection.version();
    let (status, safe) = match version {
        130_000.. => ("wal_status", "safe_wal_size"),
        _ => ("NULL::text", "NULL::bigint"),
    };
    let reason = invalidation(version);
    let rows = connection
        .query(
            &format!(
                "SELECT slot_name::text, plugin::text, database::text, active_pid, confirmed_flush_lsn::text, \
                 pg_catalog.pg_wal_lsn_diff(CASE WHEN pg_catalog.pg_is_in_recovery() \
                 THEN pg_catalog.pg_last_wal_replay_lsn() ELSE pg_catalog.pg_current_wal_lsn() END, restart_lsn)::int8, \
                 {safe}, {status}, {reason} FROM pg_catalog.pg_replication_slots ORDER BY slot_name"
            ),
            &[],
        )
        .await
        .map_err(|e| connection.error(e, "listing the replication slots"))?;
    let one = |r: &tokio_postgres::Row| SlotStatus {
        slot: r.get(0),
        plugin: r.get(1),
        database: r.get(2),
        active_pid: r.get(3),
        confirmed: r.get(4),
        retained_bytes: r.get::<_, Option<i64>>(5).map(|n| n.max(0) as u64),
        safe_bytes: r.get(6),
        wal_status: r.get(7),
        invalidated: r.get(8),
    };
    Ok(rows.iter().map(one).collect())
}

/// The expression that says why the server gave a slot up.
fn invalidation(version: u32) -> &'static str {
    match version {
        170_000.. => "invalidation_reason",
        160_000.. => "CASE WHEN conflicting THEN 'conflict with recovery' END",
        _ => "NULL::text",
    }
}

/// The statement that makes the slot.
pub(super) fn creation(options: &LogOptions, version: u32) -> String {
    let more = creation_arguments(options, version);
    format!(
        "SELECT pg_create_logical_replication_slot('{}', '{PLUGIN}'{more})",
        options.slot
    )
}

/// Makes a slot; says from where on it has the log. Waits for the transactions that are open.
pub(super) async fn create(connection: &Connection, options: &LogOptions) -> Result<Lsn> {
    let more = creation_arguments(options, connection.version());
    let sql = format!("SELECT lsn FROM pg_catalog.pg_create_logical_replication_slot($1::text, '{PLUGIN}'{more})");
    connection.working(true);
    let made = tokio::time::timeout(CREATION_WAIT, connection.query_one(&sql, &[&options.slot])).await;
    match made {
        Err(_) => Err(Error::new(
            code::SERVER_BUSY,
            format!(
                "the replication slot {} could not be made within {} s: it waits for the transactions that are open",
                options.slot,
                CREATION_WAIT.as_secs()
            ),
        )
        .hint("end the oldest transaction (pg_stat_activity, pg_prepared_xacts), then run again")),
        Ok(row) => {
            connection.working(false);
            let row = row.map_err(|e| connection.error(e, "making the replication slot"))?;
            Ok(row.get::<_, PgLsn>(0).into())
        }
    }
}

/// Drops a slot that nobody reads.
pub(super) async fn drop(connection: &Connection, name: &str) -> Result<()> {
    connection
        .query("SELECT pg_catalog.pg_drop_replication_slot($1::text)", &[&name])
        .await
        .map(|_| ())
        .map_err(|e| connection.error(e, "dropping the replication slot"))
}

/// Ends the session that reads the slot, if there is one.
pub(super) async fn end_reader(connection: &Connection, name: &str) -> Result<()> {
    connection
        .query(
            "SELECT pg_catalog.pg_terminate_backend(active_pid) FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = $1::text AND active_pid IS NOT NULL",
            &[&name],
        )
        .await
        .map(|_| ())
        .map_err(|e| connection.error(e, "ending the session that reads the slot"))
}

/// Waits until nobody reads the slot. A session of ours that does not answer any more is ended: whoever comes here has
/// taken over the partition at the destination.
///
/// A reader tells by its own clock when it answered last (`reply_time`), so that is no measure: whose answer does not
/// change while we look does not answer. How often others answer nobody knows, so they are never ended.
pub(super) async fn wait_free(connection: &Connection, name: &str, status_interval: Duration) -> Result<()> {
    const HOLDER: &str = "
        SELECT s.active_pid,
               CASE WHEN a.application_name = pg_catalog.current_setting('application_name') THEN r.reply_time::text END,
               a.application_name, coalesce(a.client_addr::text, 'a local socket')
        FROM pg_catalog.pg_replication_slots s
        LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = s.active_pid
        LEFT JOIN pg_catalog.pg_stat_replication r ON r.pid = s.active_pid
        WHERE s.slot_name = $1::text AND s.active_pid IS NOT NULL";
    let patience = status_interval * 3 + Duration::from_secs(1);
    let mut waiting = SLOT_WAIT;
    let begun = Instant::now();
    let mut seen: Option<(i32, Option<String>, Instant)> = None;
    loop {
        let holder = connection
            .query_opt(HOLDER, &[&name])
            .await
            .map_err(|e| connection.error(e, "looking who reads the slot"))?;
        let Some(holder) = holder else { return Ok(()) };
        let (pid, reply): (i32, Option<String>) = (holder.get(0), holder.get(1));
        match &seen {
            Some((known, last, since)) if *known == pid && *last == reply => {
                if reply.is_some() && since.elapsed() > patience {
                    end_silent(connection, name, pid).await?;
                    (seen, waiting) = (None, begun.elapsed() + SLOT_WAIT);
                }
            }
            // One that answers is not waited for any longer.
            Some((known, ..)) if *known == pid => waiting = SLOT_WAIT,
            _ => {
                if reply.is_some() {
                    waiting = waiting.max(begun.elapsed() + patience + SLOT_WAIT);
                }
                seen = Some((pid, reply, Instant::now()));
            }
        }
        if begun.elapsed() > waiting {
            let (application, address): (Option<String>, String) = (holder.get(2), holder.get(3));
            return Err(Error::new(
                code::CONFLICT,
                format!(
                    "the replication slot {name} is read by another session (pid {pid}, {}, from {address})",
                    application.unwrap_or_default()
                ),
            )
            .hint("stop the other process, or give this pipeline a slot of its own"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn end_silent(connection: &Connection, slot: &str, pid: i32) -> Result<()> {
    tracing::warn!(
        slot,
        pid,
        "a session that reads the slot does not answer any more and is ended"
    );
    connection
        .query("SELECT pg_catalog.pg_terminate_backend($1)", &[&pid])
        .await
        .map(|_| ())
        .map_err(|e| connection.error(e, "ending the session that reads the slot"))
}

/// The statements that take away everything that was made at the source for a pipeline.
pub(super) fn removal(options: &LogOptions) -> Vec<String> {
    vec![
        format!(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) FROM pg_catalog.pg_replication_slots WHERE slot_name = '{}'",
            options.slot.replace('\'', "''")
        ),
        format!("DROP PUBLICATION IF EXISTS {}", ident(&options.publication)),
        format!("DROP TABLE IF EXISTS {}", quoted(&options.watermark_table(), "public")),
    ]
}
