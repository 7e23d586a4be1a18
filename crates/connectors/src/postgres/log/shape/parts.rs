//! The partitions of a followed table. Rows that come or go with a partition (ATTACH, DETACH, DROP), or with a TRUNCATE
//! of one that is published by its root, are in no row of the log: the catalog is compared with what it had, and the
//! table is read anew where they differ.

use super::super::super::catalog;
use super::super::super::client::Connection;
use super::{Attribute, Look};
use postgres_types::{ToSql, Type};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};

/// The partitions of the `wanted` tables, at every level: of which of these, by which transaction, in which file, and whether
/// it was made as a partition. That is so where some column is as the statement had it that made the table, and the same
/// transaction made it a partition: attaching writes every column anew, in a later command, and the one statement that
/// does both at once writes none but those with defaults, in its second command.
const PARTS: &str = "
    tree(root, oid, since) AS (
        SELECT c.oid, i.inhrelid, i.xmin FROM pg_catalog.pg_class c JOIN pg_catalog.pg_inherits i ON i.inhparent = c.oid
        WHERE c.oid IN (SELECT oid FROM wanted) AND c.relkind = 'p'
        UNION ALL
        SELECT t.root, i.inhrelid, i.xmin FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
    ), parts AS (
        SELECT root, oid, since::text::int8 AS since, coalesce(pg_catalog.pg_relation_filenode(oid), 0)::int8 AS file,
               EXISTS (SELECT FROM pg_catalog.pg_attribute m JOIN pg_catalog.pg_attribute c ON c.attrelid = m.attrelid
                       WHERE m.attrelid = t.oid AND m.attnum = -1 AND m.xmin = t.since AND m.xmax::text = '0'
                         AND c.attnum > 0 AND c.xmin = m.xmin AND c.xmax::text = '0'
                         AND c.cmin::text::int8 <= m.cmin::text::int8 + 1) AS born
        FROM tree t
    )";

/// How the partitions of a table are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in super::super) struct Ways {
    /// The table itself is, or what it is a part of: so is every partition of it, whenever it comes.
    pub(in super::super) whole: bool,
    /// Their rows come under the table's name, and the log does not tell that a single one was emptied.
    pub(in super::super) by_root: bool,
}

/// A partition as the catalog has it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub(super) struct Part {
    /// By which transaction it is one.
    since: u32,
    /// In which file its rows are; 0 where it has none.
    file: u32,
    /// Whether it was made as one: it never had rows that are not in the log.
    born: bool,
}

impl From<(u32, u32)> for Part {
    fn from((since, file): (u32, u32)) -> Self {
        let born = false;
        Part { since, file, born }
    }
}

impl From<Part> for (u32, u32) {
    fn from(part: Part) -> Self {
        (part.since, part.file)
    }
}

impl PartialEq for Part {
    fn eq(&self, other: &Part) -> bool {
        (self.since, self.file) == (other.since, other.file)
    }
}

impl Eq for Part {}

/// The partitions of a table, at every level, by their numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(in super::super) struct Parts(BTreeMap<u32, Part>);

impl Parts {
    fn of(rows: BTreeMap<u32, (u32, u32, bool)>) -> Parts {
        let part = |(oid, (since, file, born))| (oid, Part { since, file, born });
        Parts(rows.into_iter().map(part).collect())
    }

    pub(in super::super) fn has(&self, oid: u32) -> bool {
        self.0.contains_key(&oid)
    }

    /// Those that have rows.
    pub(in super::super) fn leaves(&self) -> HashSet<u32> {
        let leaves = self.0.iter().filter(|(_, part)| part.file > 0);
        leaves.map(|(oid, _)| *oid).collect()
    }

    /// Why the log since then does not tell all that became of the table, given what is there now.
    pub(super) fn missed(&self, now: &Parts, ways: Ways) -> Option<&'static str> {
        let gone = |(oid, then): (&u32, &Part)| now.0.get(oid).is_none_or(|part| part.since != then.since);
        let emptied =
            |(oid, then): (&u32, &Part)| ways.by_root && now.0.get(oid).is_some_and(|part| part.file != then.file);
        if self.0.iter().any(gone) {
            return Some("a partition of it went, or was taken out and put back");
        }
        if self.0.iter().any(emptied) {
            return Some("a partition of it was emptied or written anew");
        }
        let mut came = now.0.iter().filter(|(oid, _)| !self.has(**oid));
        came.any(|(_, part)| !part.born || !ways.whole)
            .then_some("a partition came that may have had rows before")
    }
}

/// The partitions of these tables, by each one's number; those that are not partitioned are not among them.
pub(in super::super) async fn of_all(connection: &Connection, oids: &[u32]) -> Result<BTreeMap<u32, Parts>> {
    let sql = format!(
        "WITH RECURSIVE wanted AS (SELECT unnest AS oid FROM pg_catalog.unnest($1::oid[])), {PARTS}
         SELECT c.oid, coalesce(pg_catalog.json_object_agg(p.oid, pg_catalog.json_build_array(since, file, born))
                                    FILTER (WHERE p.oid > 0), '{{}}')::text
         FROM wanted w JOIN pg_catalog.pg_class c ON c.oid = w.oid AND c.relkind = 'p' LEFT JOIN parts p ON p.root = c.oid
         GROUP BY c.oid"
    );
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&oids, Type::OID_ARRAY)];
    let rows = catalog::rows(connection, &sql, params, "looking at partitions").await?;
    let one = |r: &tokio_postgres::Row| Ok((r.get(0), Parts::of(parsed(r.get(1))?)));
    rows.iter().map(one).collect()
}

fn parsed<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|e| Error::new(code::SERVER_ERROR, "what the catalog says of a table cannot be read").caused_by(e))
}

/// A table as the catalog has it, in one look: the one of this number, or the one of `followed` that it is a partition of.
pub(in super::super) async fn look(connection: &Connection, oid: u32, followed: &[u32]) -> Result<Look> {
    let sql = format!(
        "WITH RECURSIVE wanted AS (
             SELECT coalesce((SELECT relid::oid
                              FROM pg_catalog.pg_partition_ancestors($1::oid::regclass) WITH ORDINALITY a(relid, place)
                              WHERE relid::oid = ANY ($2::oid[]) ORDER BY place LIMIT 1), $1::oid) AS oid
         ), {PARTS}
         SELECT w.oid, coalesce((SELECT relkind = 'p' FROM pg_catalog.pg_class c WHERE c.oid = w.oid), false),
                (SELECT coalesce(pg_catalog.json_agg(pg_catalog.json_build_object(
                            'name', attname, 'number', attnum, 'type_oid', atttypid::int8, 'modifier', atttypmod,
                            'filled', atthasmissing OR atthasdef OR attgenerated <> '' OR attnotnull,
                            'written', a.xmin::text::int8) ORDER BY attnum), '[]')::text
                 FROM pg_catalog.pg_attribute a WHERE attrelid = w.oid AND attnum > 0 AND NOT attisdropped),
                (SELECT coalesce(pg_catalog.json_object_agg(oid, pg_catalog.json_build_array(since, file, born)), '{{}}')::text
                 FROM parts),
                pg_catalog.concat_ws('+', pg_catalog.pg_relation_filenode(w.oid),
                    (SELECT pg_catalog.string_agg(file::text, '+' ORDER BY oid) FROM parts WHERE file > 0))
         FROM wanted w"
    );
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&oid, Type::OID), (&followed, Type::OID_ARRAY)];
    let rows = catalog::rows(connection, &sql, params, "looking at a table").await?;
    let row = rows
        .first()
        .ok_or_else(|| Error::bug("a look at the catalog without an answer"))?;
    let columns: Vec<Attribute> = parsed(row.get(2))?;
    let parts = Parts::of(parsed(row.get(3))?);
    Ok(Look {
        oid: row.get(0),
        partitioned: row.get(1),
        columns,
        leaves: Arc::new(parts.leaves()),
        parts,
        files: super::short(row.get(4)),
    })
}
