//! Applying changes to a table by op, inside the sink's transaction.
//!
//! - Insert and Upsert of a key that is there become an update; one of a key that is not there inserts. One that lacks a
//!   value is refused.
//! - Update of a key that is not there changes nothing. A key change updates the row in place, so that absent values
//!   stay; a row that already has the new key gives way.
//! - A row whose values are all stored already is not written, and counted as unchanged.
//!
//! Neighbouring changes of one kind and of different keys go together, by a temporary table; everything else one by one,
//! in order.

use super::catalog::find;
use super::client::{Session, number};
use super::ddl;
use super::merge::Mapping;
use super::sql::{self, exact, ident, list, table as quoted};
use super::types;
use arrow_array::RecordBatch;
use std::collections::HashSet;
use synctool_core::change::{ChangeBatch, KeyRange, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{TableId, TableSchema};

/// So many changes, or so many bytes of them, go together at most.
const TOGETHER_ROWS: usize = 2000;
const TOGETHER_BYTES: usize = 1 << 20;

/// The cells of one row as literals: `None` where the batch has no value for a column.
type Row = Vec<Option<String>>;

/// A table that changes are applied to.
pub(super) struct Target {
    /// Its place in the plan.
    pub(super) index: usize,
    /// Its name, with its database.
    pub(super) table: TableId,
    /// The columns and key written.
    pub(super) schema: TableSchema,
    name: String,
    stage: String,
    mapping: Mapping,
}

/// Neighbouring changes of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Whole rows that are to be there.
    Put,
    /// Whole rows that change if they are there.
    Update,
    /// Keys that go.
    Delete,
}

#[derive(Default)]
struct Group {
    kind: Option<Kind>,
    rows: Vec<Row>,
    keys: HashSet<String>,
    bytes: usize,
}

/// What happened to a row.
enum Did {
    Inserted,
    Updated,
    Deleted,
    Nothing,
}

fn writing() -> &'static str {
    "writing a row"
}

fn keyless(what: &str) -> Error {
    Error::new(code::UNSUPPORTED, format!("{what} needs a key, and the table has none"))
        .hint("name the key columns in the pipeline, or let the source send whole old rows (REPLICA IDENTITY FULL)")
}

impl Target {
    pub(super) async fn open(
        session: &mut Session,
        index: usize,
        table: &TableId,
        schema: TableSchema,
    ) -> Result<Self> {
        let existing = find(session, table)
            .await?
            .ok_or_else(|| Error::gone_at_destination(table))?;
        let mapping = Mapping::new(&existing, &schema)?;
        let stage = TableId {
            schema: existing.table.schema.clone(),
            name: format!("_synctool_stage_{index}"),
        };
        if !schema.key.is_empty() {
            let name = quoted(&stage);
            session
                .run(
                    &format!("DROP TEMPORARY TABLE IF EXISTS {name}"),
                    "making a temporary table",
                )
                .await?;
            let create = ddl::create_beside(&stage, &schema, &existing, true)?;
            session.run(&create, "making a temporary table").await.map_err(|e| {
                e.hint(format!(
                    "GRANT CREATE TEMPORARY TABLES ON {}.* TO the user",
                    ident(existing.table.schema.as_deref().unwrap_or_default())
                ))
            })?;
        }
        Ok(Target {
            index,
            name: quoted(&existing.table),
            table: existing.table,
            stage: quoted(&stage),
            schema,
            mapping,
        })
    }

    /// Where the columns written stand in a batch; refuses a batch with columns that the table has not.
    fn places(&self, rows: &RecordBatch) -> Result<Vec<Option<usize>>> {
        let schema = rows.schema_ref();
        let known = |name: &String| {
            self.mapping.generated.contains(name) || self.mapping.columns.iter().any(|c| c.name == *name)
        };
        if let Some(unknown) = schema.fields().iter().find(|f| !known(f.name())) {
            return Err(Error::new(
                code::COLUMN_MISSING,
                format!("rows have a column {} that the table has not", unknown.name()),
            ));
        }
        Ok(self
            .mapping
            .columns
            .iter()
            .map(|c| schema.index_of(&c.name).ok())
            .collect())
    }

    fn cells(
        &self,
        rows: &RecordBatch,
        places: &[Option<usize>],
        row: usize,
        has: impl Fn(usize) -> bool,
    ) -> Result<Row> {
        places
            .iter()
            .zip(&self.mapping.writers)
            .map(|(place, writer)| match place {
                Some(at) if has(*at) => writer.literal(rows.column(*at).as_ref(), row).map(Some),
                _ => Ok(None),
            })
            .collect()
    }

    /// The key of a row; `None` if a part of it is absent or NULL.
    fn key_of(&self, row: &Row) -> Option<Vec<String>> {
        self.mapping
            .key
            .iter()
            .map(|k| row[*k].clone().filter(|c| c != "NULL"))
            .collect()
    }

    /// Applies a batch of changes.
    pub(super) async fn apply(&self, session: &mut Session, batch: &ChangeBatch) -> Result<Applied> {
        batch.check_whole()?;
        let places = self.places(&batch.rows)?;
        let before = match &batch.before {
            Some(b) => Some((b, self.places(b)?)),
            None => None,
        };
        let mut applied = Applied::default();
        let mut group = Group::default();
        for row in 0..batch.len() {
            let has = |at: usize| batch.present.as_ref().is_none_or(|p| p.has(at, row));
            let cells = self.cells(&batch.rows, &places, row, has)?;
            let old = match &before {
                Some((b, places)) => Some(self.cells(b, places, row, |_| true)?),
                None => None,
            };
            applied += self.next(session, &mut group, batch.ops.get(row), cells, old).await?;
        }
        applied += self.flush(session, &mut group).await?;
        Ok(applied)
    }

    /// Takes rows away by key (or as whole rows where there is none), then puts others.
    pub(super) async fn net(
        &self,
        session: &mut Session,
        remove: &RecordBatch,
        insert: &RecordBatch,
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        for (rows, op) in [(remove, Op::Delete), (insert, Op::Insert)] {
            let places = self.places(rows)?;
            let mut group = Group::default();
            for row in 0..rows.num_rows() {
                let cells = self.cells(rows, &places, row, |_| true)?;
                let old = (op == Op::Delete).then(|| cells.clone());
                applied += self.next(session, &mut group, op, cells, old).await?;
            }
            applied += self.flush(session, &mut group).await?;
        }
        Ok(applied)
    }

    /// Makes a key range hold exactly these rows; those that only the destination had are counted as removed. Some columns
    /// of the key have ranges that are cut `by_bytes`.
    pub(super) async fn replace_range(
        &self,
        session: &mut Session,
        range: &KeyRange,
        by_bytes: &[String],
        rows: &RecordBatch,
    ) -> Result<Applied> {
        if self.mapping.key.is_empty() {
            return Err(keyless("replacing a key range"));
        }
        let condition = self.within(range, by_bytes)?;
        let places = self.places(rows)?;
        self.clear_stage(session).await?;
        let mut group = Group::default();
        let mut all = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let cells = self.cells(rows, &places, row, |_| true)?;
            group.add(cells.clone(), None);
            all.push(cells);
            if group.is_full() {
                self.stage(session, &group.rows).await?;
                group = Group::default();
            }
        }
        self.stage(session, &group.rows).await?;
        let condition = (!condition.is_empty()).then(|| format!("({condition})"));
        let delete = self
            .mapping
            .delete_missing(&self.name, &self.stage, condition.as_deref());
        let mut applied = Applied {
            removed: session.run(&delete, "replacing a key range").await?,
            ..Applied::default()
        };
        // What a row of the range is to have may stand in a row of a range that is replaced later; in one that was, it is a
        // conflict.
        let ahead = KeyRange {
            upper: None,
            ..range.clone()
        };
        let ahead = self.within(&ahead, by_bytes)?;
        for statement in self.mapping.give_way(&self.name, &self.stage, &ahead) {
            applied.removed += session.run(&statement, "replacing a key range").await?;
        }
        let mut group = Group::default();
        for cells in all {
            applied += self.next(session, &mut group, Op::Upsert, cells, None).await?;
        }
        applied += self.flush(session, &mut group).await?;
        Ok(applied)
    }

    /// The condition of rows of a range; empty for one without bounds. What is cut by the bytes of texts is compared by
    /// them, whatever order the column has.
    fn within(&self, range: &KeyRange, by_bytes: &[String]) -> Result<String> {
        let places: Vec<usize> = range
            .columns
            .iter()
            .map(|name| {
                let place = self.mapping.columns.iter().position(|c| c.name == *name);
                place
                    .ok_or_else(|| Error::new(code::COLUMN_MISSING, format!("range column {name} is not in the table")))
            })
            .collect::<Result<_>>()?;
        let cut = |at: usize| by_bytes.contains(&self.mapping.columns[at].name);
        let exactly = |at: usize| cut(at) && !self.mapping.by_bytes[at];
        let name = |at: &usize| exact(&format!("d.{}", ident(&self.mapping.columns[*at].name)), exactly(*at));
        let names: Vec<String> = places.iter().map(name).collect();
        sql::bounds(range, &names, |i, value| match places[i] {
            at if exactly(at) => Ok(sql::hex_literal(value.as_bytes())),
            at if cut(at) && self.mapping.writers[at].is_text() => Ok(sql::literal(value)),
            at => types::literal(&self.mapping.columns[at], value),
        })
    }

    /// Empties the table. TRUNCATE would commit; the counter of an auto-increment column goes on.
    pub(super) async fn truncate(&self, session: &mut Session) -> Result<()> {
        session
            .run(
                &format!("DELETE FROM {}", self.name),
                &format!("emptying {}", self.table),
            )
            .await
            .map(|_| ())
    }

    /// Takes the next change: into the group where it belongs to it, else after the group was applied.
    async fn next(
        &self,
        session: &mut Session,
        group: &mut Group,
        op: Op,
        row: Row,
        old: Option<Row>,
    ) -> Result<Applied> {
        let mut applied = Applied::default();
        match self.groups(op, &row, old.as_ref()) {
            Some((kind, key)) => {
                let apart =
                    group.kind.is_some_and(|k| k != kind) || key.as_ref().is_some_and(|k| group.keys.contains(k));
                if apart || group.is_full() {
                    applied += self.flush(session, group).await?;
                }
                group.kind = Some(kind);
                let row = if kind == Kind::Delete && old.is_some() && self.key_of(&row).is_none() {
                    old.unwrap_or(row)
                } else {
                    row
                };
                group.add(row, key);
            }
            None => {
                applied += self.flush(session, group).await?;
                applied += counted(self.change(session, op, &row, old.as_ref()).await?);
            }
        }
        Ok(applied)
    }

    /// The kind of group that a change may go into, with its key; `None` where it must be applied by itself.
    fn groups(&self, op: Op, row: &Row, old: Option<&Row>) -> Option<(Kind, Option<String>)> {
        if self.mapping.key.is_empty() {
            return (op == Op::Insert && row.iter().all(Option::is_some)).then_some((Kind::Put, None));
        }
        if self.mapping.fragile || !self.mapping.exact_key {
            return None;
        }
        let (new_key, old_key) = (self.key_of(row), old.and_then(|o| self.key_of(o)));
        if op == Op::Delete {
            return Some((Kind::Delete, Some(old_key.or(new_key)?.join(","))));
        }
        let new_key = new_key?;
        if old_key.is_some_and(|o| o != new_key) || row.iter().any(Option::is_none) {
            return None;
        }
        let kind = if op == Op::Update { Kind::Update } else { Kind::Put };
        Some((kind, Some(new_key.join(","))))
    }

    /// Applies a group.
    async fn flush(&self, session: &mut Session, group: &mut Group) -> Result<Applied> {
        let group = std::mem::take(group);
        let Some(kind) = group.kind else {
            return Ok(Applied::default());
        };
        let written = group.rows.len() as u64;
        let mut applied = Applied {
            written,
            ..Applied::default()
        };
        if self.mapping.key.is_empty() {
            self.insert_into(session, &self.name, &group.rows).await?;
            return Ok(Applied::inserts(written));
        }
        if let [row] = &group.rows[..] {
            let op = match kind {
                Kind::Put => Op::Upsert,
                Kind::Update => Op::Update,
                Kind::Delete => Op::Delete,
            };
            return Ok(counted(self.change(session, op, row, None).await?));
        }
        if kind == Kind::Delete {
            let mut keys = Vec::with_capacity(group.rows.len());
            for row in &group.rows {
                keys.push(format!(
                    "({})",
                    self.key_of(row).ok_or_else(Error::without_key)?.join(", ")
                ));
            }
            let sql = format!(
                "DELETE FROM {} WHERE ({}) IN ({})",
                self.name,
                list("", &self.mapping.key_names()),
                keys.join(", ")
            );
            applied.deleted = session.run(&sql, "deleting rows").await?;
        } else {
            self.clear_stage(session).await?;
            self.stage(session, &group.rows).await?;
            if let Some(sql) = self.mapping.update_differing(&self.name, &self.stage) {
                applied.updated = session.run(&sql, writing()).await?;
            }
            if kind == Kind::Put {
                let sql = self.mapping.insert_missing(&self.name, &self.stage);
                applied.inserted = session.run(&sql, writing()).await?;
            }
        }
        applied.balance()?;
        Ok(applied)
    }

    async fn clear_stage(&self, session: &mut Session) -> Result<()> {
        session
            .run(&format!("DELETE FROM {}", self.stage), "emptying a temporary table")
            .await
            .map(|_| ())
    }

    async fn stage(&self, session: &mut Session, rows: &[Row]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.insert_into(session, &self.stage, rows).await
    }

    async fn insert_into(&self, session: &mut Session, table: &str, rows: &[Row]) -> Result<()> {
        let tuples: Vec<String> = rows
            .iter()
            .map(|row| {
                let cells: Option<Vec<&str>> = row.iter().map(Option::as_deref).collect();
                let cells = cells.ok_or_else(|| Error::bug("a row that is not whole in a group of whole rows"))?;
                Ok(format!("({})", cells.join(", ")))
            })
            .collect::<Result<_>>()?;
        let sql = format!(
            "INSERT INTO {table} ({}) VALUES {}",
            list("", &self.mapping.names()),
            tuples.join(", ")
        );
        session.run(&sql, writing()).await.map(|_| ())
    }

    /// `k1 = … AND …`
    fn by_key(&self, key: &[String]) -> String {
        let terms: Vec<String> = self
            .mapping
            .key
            .iter()
            .zip(key)
            .map(|(k, v)| format!("{} = {v}", ident(&self.mapping.columns[*k].name)))
            .collect();
        terms.join(" AND ")
    }

    fn same(&self, i: usize, value: &str) -> String {
        let text = self.mapping.writers[i].is_text();
        let name = ident(&self.mapping.columns[i].name);
        format!("{} <=> {}", exact(&name, text), exact(value, text && value != "NULL"))
    }

    async fn change(&self, session: &mut Session, op: Op, row: &Row, old: Option<&Row>) -> Result<Did> {
        if self.mapping.key.is_empty() {
            return self.keyless_row(session, op, row, old).await;
        }
        let (old_key, new_key) = (old.and_then(|o| self.key_of(o)), self.key_of(row));
        if op == Op::Delete {
            let key = old_key.or(new_key).ok_or_else(Error::without_key)?;
            let mut sql = format!("DELETE FROM {} WHERE {}", self.name, self.by_key(&key));
            if !self.mapping.exact_key {
                let same = self.mapping.key.iter().zip(&key).map(|(k, v)| self.same(*k, v));
                same.for_each(|same| sql.push_str(&format!(" AND {same}")));
            }
            return Ok(match session.run(&sql, "deleting a row").await? {
                0 => Did::Nothing,
                _ => Did::Deleted,
            });
        }
        // A key that was not sent is the old one.
        let new_key = new_key.or_else(|| old_key.clone()).ok_or_else(Error::without_key)?;
        if let Some(old_key) = old_key
            && old_key != new_key
        {
            if self.exists(session, &old_key).await? {
                self.move_row(session, row, &old_key, &new_key).await?;
                return Ok(Did::Updated);
            }
            if op == Op::Update {
                return Ok(Did::Nothing);
            }
        }
        if op == Op::Update || self.exists(session, &new_key).await? {
            return self.update(session, row, &new_key).await;
        }
        self.insert(session, row).await
    }

    async fn insert(&self, session: &mut Session, row: &Row) -> Result<Did> {
        if let Some(lacks) = row.iter().position(Option::is_none) {
            return Err(Error::not_whole(&self.mapping.columns[lacks].name));
        }
        self.insert_into(session, &self.name, std::slice::from_ref(row)).await?;
        Ok(Did::Inserted)
    }

    async fn exists(&self, session: &mut Session, key: &[String]) -> Result<bool> {
        let sql = format!(
            "SELECT count(*) FROM {} WHERE {} FOR UPDATE",
            self.name,
            self.by_key(key)
        );
        Ok(number(&session.row(&sql, writing()).await?, 0) > 0)
    }

    /// Sets the values that are present on the row of a key, if one of them differs.
    async fn update(&self, session: &mut Session, row: &Row, key: &[String]) -> Result<Did> {
        let (mut set, mut differs) = (Vec::new(), Vec::new());
        for (i, value) in row.iter().enumerate() {
            let Some(value) = value else { continue };
            if self.mapping.key.contains(&i) && self.mapping.exact_key {
                continue;
            }
            set.push(format!("{} = {value}", ident(&self.mapping.columns[i].name)));
            differs.push(format!("NOT ({})", self.same(i, value)));
        }
        if set.is_empty() {
            return Ok(Did::Nothing);
        }
        let sql = format!(
            "UPDATE {} SET {} WHERE {} AND ({})",
            self.name,
            set.join(", "),
            self.by_key(key),
            differs.join(" OR ")
        );
        Ok(match session.run(&sql, writing()).await? {
            0 => Did::Nothing,
            _ => Did::Updated,
        })
    }

    /// Gives the row of the old key the new key and values. A row that has the new key already gives way: it is what
    /// this row is now.
    async fn move_row(&self, session: &mut Session, row: &Row, old_key: &[String], new_key: &[String]) -> Result<()> {
        let sql = format!(
            "DELETE FROM {} WHERE {} AND NOT ({})",
            self.name,
            self.by_key(new_key),
            self.by_key(old_key)
        );
        session.run(&sql, writing()).await?;
        let set: Vec<String> = row
            .iter()
            .zip(&self.mapping.columns)
            .filter_map(|(value, c)| value.as_ref().map(|v| format!("{} = {v}", ident(&c.name))))
            .collect();
        let sql = format!(
            "UPDATE {} SET {} WHERE {}",
            self.name,
            set.join(", "),
            self.by_key(old_key)
        );
        session.run(&sql, writing()).await.map(|_| ())
    }

    /// Without a key only whole rows can be found again.
    async fn keyless_row(&self, session: &mut Session, op: Op, row: &Row, old: Option<&Row>) -> Result<Did> {
        if op == Op::Insert {
            return self.insert(session, row).await;
        }
        let old = old
            .filter(|o| op != Op::Upsert && o.iter().all(Option::is_some))
            .ok_or_else(|| keyless("an update or delete"))?;
        let same: Vec<String> = old
            .iter()
            .enumerate()
            .filter_map(|(i, v)| v.as_ref().map(|v| self.same(i, v)))
            .collect();
        let one = format!("WHERE {} LIMIT 1", same.join(" AND "));
        if op == Op::Delete {
            return Ok(
                match session
                    .run(&format!("DELETE FROM {} {one}", self.name), writing())
                    .await?
                {
                    0 => Did::Nothing,
                    _ => Did::Deleted,
                },
            );
        }
        let set: Vec<String> = row
            .iter()
            .zip(old)
            .zip(&self.mapping.columns)
            .filter(|((new, old), _)| new.is_some() && new != old)
            .filter_map(|((new, _), c)| new.as_ref().map(|v| format!("{} = {v}", ident(&c.name))))
            .collect();
        if set.is_empty() {
            return Ok(Did::Nothing);
        }
        let sql = format!("UPDATE {} SET {} {one}", self.name, set.join(", "));
        Ok(match session.run(&sql, writing()).await? {
            0 => Did::Nothing,
            _ => Did::Updated,
        })
    }
}

impl Group {
    fn add(&mut self, row: Row, key: Option<String>) {
        self.bytes += row.iter().flatten().map(|c| c.len() + 2).sum::<usize>();
        self.keys.extend(key);
        self.rows.push(row);
    }

    fn is_full(&self) -> bool {
        self.rows.len() >= TOGETHER_ROWS || self.bytes >= TOGETHER_BYTES
    }
}

fn counted(did: Did) -> Applied {
    let mut applied = Applied {
        written: 1,
        ..Applied::default()
    };
    let counter = match did {
        Did::Inserted => &mut applied.inserted,
        Did::Updated => &mut applied.updated,
        Did::Deleted => &mut applied.deleted,
        Did::Nothing => &mut applied.unchanged,
    };
    *counter = 1;
    applied
}
