//! Since when tables are in the publication, and who wrote to them before: what happens while a table is not in it is
//! not in the log.

use super::super::catalog::rows;
use super::super::client::Connection;
use super::super::sql::{ident, table as quoted};
use postgres_types::{ToSql, Type};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::short_hash;
use synctool_core::schema::TableId;
use tokio::time::Instant;

/// How long new tables of a publication may wait for transactions that began before they were in it.
const SETTLE_WAIT: Duration = Duration::from_secs(60);

/// A longer membership is remembered by its hash: positions are written often.
const LONGEST: usize = 48;

/// A text that is remembered in positions, or its hash where it is long.
pub(super) fn short(text: String) -> String {
    match text.len() {
        ..=LONGEST => text,
        _ => format!("#{}", short_hash(&text)),
    }
}

fn names(tables: &[TableId], schema: &str) -> Vec<String> {
    tables.iter().map(|t| quoted(t, schema)).collect()
}

/// How a table is in a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Membership {
    /// By what, as a position remembers it.
    pub(super) by: String,
    /// Whether it is itself, or something that it is a part of: not only partitions of it, one by one.
    pub(super) whole: bool,
}

/// By what each table is in the publication: the numbers of the table and of the entries by which it, its partitions or
/// those that it is a partition of are published. A table that was taken out and put back, or got another filter or list
/// of columns, has other entries. `None` for a table that is not there or not published.
pub(super) async fn memberships(
    connection: &Connection,
    publication: &str,
    tables: &[TableId],
    schema: &str,
) -> Result<Vec<Option<Membership>>> {
    let by_schema = match connection.version() {
        150_000.. => {
            "UNION SELECT f.place, 'n' || n.oid, whole FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.relid
             JOIN pg_catalog.pg_publication_namespace n ON n.pnnspid = c.relnamespace JOIN pub p ON p.oid = n.pnpubid"
        }
        _ => "",
    };
    let sql = format!(
        "WITH wanted AS (
             SELECT place, pg_catalog.to_regclass(name)::oid AS oid
             FROM pg_catalog.unnest($2::text[]) WITH ORDINALITY AS n(name, place)
         ), pub AS (
             SELECT oid, puballtables FROM pg_catalog.pg_publication WHERE pubname = $1::text
         ), family AS (
             SELECT place, oid AS relid, true AS whole FROM wanted
             UNION SELECT w.place, t.relid::oid, false
                   FROM wanted w, LATERAL pg_catalog.pg_partition_tree(w.oid::regclass) t WHERE t.relid <> w.oid
             UNION SELECT w.place, a.relid::oid, true
                   FROM wanted w, LATERAL pg_catalog.pg_partition_ancestors(w.oid::regclass) a(relid)
         ), ways AS (
             SELECT w.place, 'a' || p.oid AS way, true AS whole FROM wanted w, pub p WHERE p.puballtables
             UNION SELECT f.place, r.oid::text, whole FROM family f
                   JOIN pg_catalog.pg_publication_rel r ON r.prrelid = f.relid JOIN pub p ON p.oid = r.prpubid
             {by_schema}
         )
         SELECT w.place, w.oid::text || ':' || pg_catalog.string_agg(DISTINCT y.way COLLATE \"C\", '+' ORDER BY y.way COLLATE \"C\"),
                pg_catalog.bool_or(whole)
         FROM wanted w JOIN ways y USING (place) WHERE w.oid IS NOT NULL GROUP BY w.place, w.oid"
    );
    let names = names(tables, schema);
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&publication, Type::TEXT), (&names, Type::TEXT_ARRAY)];
    let mut found = vec![None; tables.len()];
    for row in rows(connection, &sql, params, "reading the publication").await? {
        let at = row.get::<_, i64>(0) as usize - 1;
        found[at] = Some(Membership {
            by: short(row.get(1)),
            whole: row.get(2),
        });
    }
    Ok(found)
}

/// What a position keeps in the place of a membership while a table is left out: whatever it comes back by, it is
/// compared.
pub(super) const OUT: &str = "-";

/// Why changes of a followed table do not come any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// No table has its name.
    Gone,
    /// The publication does not have it.
    Unpublished,
}

impl Absent {
    /// The same for people; `all`: the tables are those of the publication, not named ones.
    pub(super) fn told(self, table: &TableId, publication: &str, schema: &str, all: bool) -> String {
        let leave = if all { "" } else { ", or take it out of `tables`" };
        match self {
            Absent::Gone if all => {
                "no table has its name at the source any more (dropped, or renamed): without it the next start leaves it out, \
                 and its copy stays as it is"
                    .into()
            }
            Absent::Gone => {
                "no table has its name at the source any more (dropped, or renamed), and the next start ends at that: take it \
                 out of `tables` (its copy stays as it is), or make it again"
                    .into()
            }
            Absent::Unpublished => format!(
                "it is not in the publication {publication} any more, so its changes do not come and its copy grows old: \
                 ALTER PUBLICATION {} ADD TABLE {}; has it followed again, and compared first{leave}",
                ident(publication),
                quoted(table, schema)
            ),
        }
    }
}

/// Those of the followed tables whose changes do not come any more.
pub(super) async fn absent(
    connection: &Connection,
    publication: &str,
    tables: &[TableId],
    schema: &str,
) -> Result<Vec<(TableId, Absent)>> {
    const THERE: &str = "SELECT pg_catalog.to_regclass(name) IS NOT NULL FROM pg_catalog.unnest($1::text[]) \
        WITH ORDINALITY AS n(name, place) ORDER BY place";
    let members = memberships(connection, publication, tables, schema).await?;
    let out = tables.iter().zip(members).filter(|(_, member)| member.is_none());
    let out: Vec<TableId> = out.map(|(table, _)| table.clone()).collect();
    if out.is_empty() {
        return Ok(Vec::new());
    }
    let names = names(&out, schema);
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&names, Type::TEXT_ARRAY)];
    let there = rows(connection, THERE, params, "looking for the followed tables").await?;
    let why = |there: bool| if there { Absent::Unpublished } else { Absent::Gone };
    Ok(out.into_iter().zip(there.iter().map(|r| why(r.get(0)))).collect())
}

/// Under which name a position keeps what [`kinds`] says; no table has it.
pub(super) const KINDS: &str = "";

/// Since when the publication publishes the kinds of changes that it does: another text after each change of them, also
/// where it was put back.
pub(super) async fn kinds(connection: &Connection, publication: &str) -> Result<Option<String>> {
    const SQL: &str = "
        SELECT xmin::text || ':' || (pubinsert::int + 2 * pubupdate::int + 4 * pubdelete::int + 8 * pubtruncate::int)
        FROM pg_catalog.pg_publication WHERE pubname = $1::text";
    let found = rows(
        connection,
        SQL,
        &[(&publication, Type::TEXT)],
        "reading the publication",
    )
    .await?;
    Ok(found.first().map(|r| r.get(0)))
}

/// Tables with the transactions that may have written to them before they were first looked at.
#[derive(Debug, Default)]
pub(super) struct Writers(BTreeMap<TableId, BTreeSet<String>>);

impl Writers {
    /// Looks at published tables: each one that is new here is known with the transactions that are open now, and what
    /// was known is kept as far as it is open yet. Tables that are not looked at are forgotten.
    pub(super) async fn look(&mut self, connection: &Connection, tables: &[TableId], schema: &str) -> Result<()> {
        let mut now = open_writers(connection, tables, schema).await?;
        self.0.retain(|t, _| tables.contains(t));
        for (table, open) in tables.iter().zip(&mut now) {
            match self.0.get_mut(table) {
                Some(known) => known.retain(|w| open.contains(w)),
                None => drop(self.0.insert(table.clone(), std::mem::take(open))),
            }
        }
        Ok(())
    }

    /// Whether such a transaction of a table is open yet.
    pub(super) fn has(&self, table: &TableId) -> bool {
        self.0.get(table).is_some_and(|writers| !writers.is_empty())
    }
}

/// The open transactions that may have written to each table: those that hold its lock, as a writer does to its end. A
/// standby does not see locks, so there it is every transaction.
async fn open_writers(connection: &Connection, tables: &[TableId], schema: &str) -> Result<Vec<BTreeSet<String>>> {
    const SQL: &str = "
        WITH wanted AS (
            SELECT place, pg_catalog.to_regclass(name)::oid AS oid
            FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS n(name, place)
        ), family AS (
            SELECT place, oid AS relid FROM wanted
            UNION SELECT w.place, t.relid::oid FROM wanted w, LATERAL pg_catalog.pg_partition_tree(w.oid::regclass) t
        )
        SELECT f.place, l.virtualtransaction FROM family f JOIN pg_catalog.pg_locks l ON l.relation = f.relid
        JOIN pg_catalog.pg_database d ON d.oid = l.database AND d.datname = pg_catalog.current_database()
        WHERE l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
          AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
        UNION SELECT w.place, x::text FROM wanted w,
                     LATERAL pg_catalog.txid_snapshot_xip(pg_catalog.txid_current_snapshot()) x
        WHERE pg_catalog.pg_is_in_recovery()";
    let names = names(tables, schema);
    let mut found = vec![BTreeSet::new(); tables.len()];
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&names, Type::TEXT_ARRAY)];
    for row in rows(connection, SQL, params, "looking at open transactions").await? {
        found[row.get::<_, i64>(0) as usize - 1].insert(row.get(1));
    }
    Ok(found)
}

/// Refuses to go on with a table whose log misses something and that cannot be compared.
pub(super) fn not_comparable(table: &TableId, why: &str) -> Error {
    Error::new(
        code::KEY_MISSING,
        format!("{table} cannot be followed on: {why}, and without a key it cannot be compared"),
    )
    .hint("give it a primary key and start over (synctool state reset), or leave it out of the pipeline")
}

/// Waits for the transactions that are open now and may have written to these tables: what they wrote before the
/// publication had the table is not in the log, so a chunk must see it. Says which tables wait in vain.
pub(super) async fn settle(connection: &Connection, tables: &[TableId], schema: &str) -> Result<Vec<TableId>> {
    let begun = Instant::now();
    let mut writers = Writers::default();
    loop {
        writers.look(connection, tables, schema).await?;
        let waiting: Vec<TableId> = tables.iter().filter(|t| writers.has(t)).cloned().collect();
        if waiting.is_empty() || begun.elapsed() > SETTLE_WAIT {
            return Ok(waiting);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The same, where all of them are needed.
pub(super) async fn settle_all(connection: &Connection, tables: &[TableId], schema: &str) -> Result<()> {
    let waiting = settle(connection, tables, schema).await?;
    if waiting.is_empty() {
        return Ok(());
    }
    let oldest = connection
        .query_opt(
            "SELECT format('pid %s of %s, open since %s', pid, usename, xact_start) FROM pg_catalog.pg_stat_activity \
             WHERE backend_xid IS NOT NULL AND pid <> pg_catalog.pg_backend_pid() ORDER BY xact_start LIMIT 1",
            &[],
        )
        .await
        .ok()
        .flatten()
        .map_or("a transaction".to_string(), |r| r.get(0));
    let names: Vec<String> = waiting.iter().map(ToString::to_string).collect();
    Err(Error::new(
        code::SERVER_BUSY,
        format!(
            "{} came into the publication while a transaction was open that may have written to it, and which does not end: {oldest}",
            names.join(", ")
        ),
    )
    .hint("end that transaction (commit, roll back, or pg_terminate_backend), then run again"))
}
