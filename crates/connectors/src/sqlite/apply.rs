//! Applying changes to a table by op, row by row in order, inside the sink's transaction.
//!
//! - Insert and Upsert of a key that is there become an update; one of a key that is not there inserts. One that lacks a
//!   value is refused.
//! - Update of a key that is not there changes nothing. A key change updates the row in place, so that absent values
//!   stay; a row that already has the new key gives way.
//! - A row whose values are all stored already is not written, and counted as unchanged.

use super::catalog::CatalogTable;
use super::client::failed;
use super::ddl;
use super::sql::{differs, equal, joined, list, placeholders, quote};
use super::types::{self, Affinity, Cell, ColumnInput, Store};
use arrow_array::{Array, RecordBatch};
use rusqlite::{CachedStatement, Connection};
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, KeyRange, Op, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{Column, ColumnType, TableSchema};

/// A table that rows are written to.
#[derive(Debug)]
pub(super) struct Target {
    name: String,
    columns: Vec<Column>,
    stores: Vec<Store>,
    affinities: Vec<Affinity>,
    /// The places of the key's columns.
    key: Vec<usize>,
    /// Those of them whose collation calls different texts equal: an update sets them too.
    folding: Vec<usize>,
    rowid: Option<&'static str>,
    insert: String,
    exists: String,
    delete: String,
    /// Columns that the database computes: given in vain.
    generated: Vec<String>,
    updates: Updates,
}

/// A table of many columns has more patterns of present values than need be kept.
const MOST_UPDATES: usize = 256;

/// `UPDATE` statements by the columns they set: those that keep the key, and those that change it.
type Updates = [HashMap<Vec<usize>, Arc<str>>; 2];

/// The cells of one row: `None` where the batch has no value for a column.
type Row<'a> = Vec<Option<Cell<'a>>>;

fn writing() -> String {
    "writing a row".into()
}

impl Target {
    /// A table as it is, for the columns and key of a plan. Columns that the database computes are not written.
    pub(super) fn new(table: &CatalogTable, schema: &TableSchema) -> Result<Self> {
        let mut target = Target {
            name: table.name.clone(),
            columns: Vec::new(),
            stores: Vec::new(),
            affinities: Vec::new(),
            key: Vec::new(),
            folding: Vec::new(),
            rowid: table.rowid(),
            insert: String::new(),
            exists: String::new(),
            delete: String::new(),
            generated: Vec::new(),
            updates: Updates::default(),
        };
        for column in &schema.columns {
            let there = table.column(&column.name).ok_or_else(|| {
                Error::new(
                    code::SCHEMA_MISMATCH,
                    format!("table {} has no column {}", table.name, column.name),
                )
            })?;
            if there.generated {
                target.generated.push(column.name.clone());
                continue;
            }
            if there.folds() && schema.key.contains(&column.name) {
                target.folding.push(target.columns.len());
            }
            target.stores.push(types::store(&there.declared));
            target.affinities.push(types::affinity(&there.declared));
            target.columns.push(column.clone());
        }
        for k in &schema.key {
            let at = target.columns.iter().position(|c| c.name == *k);
            target.key.push(at.ok_or_else(|| {
                Error::new(
                    code::COLUMN_MISSING,
                    format!("key column {k} is not among the columns written"),
                )
            })?);
        }
        target.rebuild();
        Ok(target)
    }

    fn rebuild(&mut self) {
        let table = quote(&self.name);
        let names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        self.insert = format!(
            "INSERT INTO {table} ({}) VALUES ({})",
            list("", &names),
            placeholders(1, names.len())
        );
        let by_key = self.by_key(1);
        self.exists = format!("SELECT 1 FROM {table} WHERE {by_key}");
        // A row that another key of the same letters has taken meanwhile is not the one to go.
        let exactly = self.key.iter().enumerate().filter(|(_, k)| self.folding.contains(k));
        let exactly: String = exactly
            .map(|(i, k)| format!(" AND {} COLLATE BINARY = ?{}", quote(&self.columns[*k].name), i + 1))
            .collect();
        self.delete = format!("DELETE FROM {table} WHERE {by_key}{exactly}");
        self.updates = Updates::default();
    }

    /// `k1 = ?n AND …`
    fn by_key(&self, first_parameter: usize) -> String {
        equal(
            self.key
                .iter()
                .enumerate()
                .map(|(i, k)| (quote(&self.columns[*k].name), format!("?{}", first_parameter + i))),
        )
    }

    /// The statement that inserts a whole row.
    pub(super) fn insert_sql(&self) -> &str {
        &self.insert
    }

    /// The inputs of a batch in this table's column order; `None` for a column that the batch does not have.
    pub(super) fn inputs<'a>(&'a self, rows: &'a RecordBatch) -> Result<Vec<Option<ColumnInput<'a>>>> {
        let schema = rows.schema_ref();
        let known = |name: &String| self.generated.contains(name) || self.columns.iter().any(|c| c.name == *name);
        if let Some(unknown) = schema.fields().iter().find(|f| !known(f.name())) {
            return Err(Error::new(
                code::COLUMN_MISSING,
                format!("rows have a column {} that table {} has not", unknown.name(), self.name),
            )
            .hint("add the column at the destination, or leave it out of the pipeline"));
        }
        Ok(self
            .columns
            .iter()
            .zip(&self.stores)
            .enumerate()
            .map(|(i, (c, store))| {
                // Batches almost always have the plan's order.
                let at = if schema.fields().get(i).is_some_and(|f| *f.name() == c.name) {
                    i
                } else {
                    schema.fields().iter().position(|f| *f.name() == c.name)?
                };
                Some(ColumnInput::new(c, *store, rows.column(at).as_ref() as &dyn Array))
            })
            .collect())
    }

    /// Applies a batch of changes.
    pub(super) fn apply(&mut self, conn: &Connection, batch: &ChangeBatch) -> Result<Applied> {
        let mut updates = std::mem::take(&mut self.updates);
        let result = self.apply_with(conn, batch, &mut updates);
        self.updates = updates;
        result
    }

    fn apply_with(&self, conn: &Connection, batch: &ChangeBatch, updates: &mut Updates) -> Result<Applied> {
        batch.check_whole()?;
        let inputs = self.inputs(&batch.rows)?;
        let before = batch.before.as_ref().map(|b| self.inputs(b)).transpose()?;
        // Presence speaks of the batch's columns, inputs of the table's.
        let places: Vec<Option<usize>> = self
            .columns
            .iter()
            .map(|c| batch.rows.schema_ref().index_of(&c.name).ok())
            .collect();
        let mut applied = Applied::default();
        let mut change = Change {
            conn,
            target: self,
            updates,
        };
        for row in 0..batch.len() {
            let cells = inputs
                .iter()
                .zip(&places)
                .map(|(input, place)| match (input, place) {
                    (Some(input), Some(at)) if batch.present.as_ref().is_none_or(|p| p.has(*at, row)) => {
                        input.cell(row).map(Some)
                    }
                    _ => Ok(None),
                })
                .collect::<Result<Row>>()?;
            let old = before
                .as_ref()
                .map(|b| {
                    b.iter()
                        .map(|input| input.as_ref().map(|i| i.cell(row)).transpose())
                        .collect::<Result<Row>>()
                })
                .transpose()?;
            applied += change.row(batch.ops.get(row), cells, old)?;
        }
        Ok(applied)
    }

    /// Takes rows away by key (or as whole rows where there is none), then puts others.
    pub(super) fn net(&mut self, conn: &Connection, remove: &RecordBatch, insert: &RecordBatch) -> Result<Applied> {
        let mut updates = std::mem::take(&mut self.updates);
        let result = (|| {
            let mut change = Change {
                conn,
                target: self,
                updates: &mut updates,
            };
            let mut applied = Applied::default();
            for (rows, op) in [(remove, Op::Delete), (insert, Op::Insert)] {
                let inputs = self.inputs(rows)?;
                for row in 0..rows.num_rows() {
                    let cells: Row = inputs
                        .iter()
                        .map(|i| i.as_ref().map(|i| i.cell(row)).transpose())
                        .collect::<Result<_>>()?;
                    let old = (op == Op::Delete).then(|| cells.clone());
                    applied += change.row(op, cells, old)?;
                }
            }
            Ok(applied)
        })();
        self.updates = updates;
        result
    }

    /// Makes a key range hold exactly these rows; those that only the destination had are counted as removed.
    pub(super) fn replace_range(&mut self, conn: &Connection, range: &KeyRange, rows: &RecordBatch) -> Result<Applied> {
        let doing = || format!("replacing a key range of {}", self.name);
        if self.key.is_empty() {
            return Err(keyless("replacing a key range"));
        }
        let (mut terms, parameters) = self.within(range)?;
        // The keys given, in a table of their own: they may be more than a statement takes parameters.
        conn.execute_batch("DROP TABLE IF EXISTS temp.\"_synctool_keys\"")
            .map_err(failed(doing))?;
        let key: Vec<&str> = self.key.iter().map(|k| self.columns[*k].name.as_str()).collect();
        conn.execute_batch(&format!(
            "CREATE TEMP TABLE \"_synctool_keys\" AS SELECT {} FROM {} WHERE 0",
            list("", &key),
            quote(&self.name)
        ))
        .map_err(failed(doing))?;
        {
            let inputs = self.inputs(rows)?;
            let sql = format!(
                "INSERT INTO temp.\"_synctool_keys\" VALUES ({})",
                placeholders(1, key.len())
            );
            let mut put = conn.prepare(&sql).map_err(failed(doing))?;
            for row in 0..rows.num_rows() {
                for (i, k) in self.key.iter().enumerate() {
                    let input = inputs[*k]
                        .as_ref()
                        .ok_or_else(|| Error::bug("rows without their key"))?;
                    put.raw_bind_parameter(i + 1, input.cell(row)?).map_err(failed(doing))?;
                }
                put.raw_execute().map_err(failed(doing))?;
            }
        }
        conn.execute_batch(&format!(
            "CREATE INDEX temp.\"_synctool_keys_i\" ON \"_synctool_keys\" ({})",
            list("", &key)
        ))
        .map_err(failed(doing))?;
        let given = equal(
            key.iter()
                .map(|k| (format!("t.{}", quote(k)), format!("g.{}", quote(k)))),
        );
        terms.push(format!(
            "NOT EXISTS (SELECT 1 FROM temp.\"_synctool_keys\" AS g WHERE {given})"
        ));
        let sql = format!("DELETE FROM {} AS t WHERE {}", quote(&self.name), joined(&terms, "AND"));
        let removed = conn
            .execute(&sql, rusqlite::params_from_iter(&parameters))
            .map_err(failed(doing))? as u64;
        conn.execute_batch("DROP TABLE temp.\"_synctool_keys\"")
            .map_err(failed(doing))?;
        let removed = removed + self.give_way(conn, range, rows)?;
        let mut updates = std::mem::take(&mut self.updates);
        let result = (|| {
            let inputs = self.inputs(rows)?;
            let mut change = Change {
                conn,
                target: self,
                updates: &mut updates,
            };
            let mut applied = Applied {
                removed,
                ..Applied::default()
            };
            for row in 0..rows.num_rows() {
                let cells: Row = inputs
                    .iter()
                    .map(|i| i.as_ref().map(|i| i.cell(row)).transpose())
                    .collect::<Result<_>>()?;
                applied += change.row(Op::Upsert, cells, None)?;
            }
            Ok(applied)
        })();
        self.updates = updates;
        result
    }

    /// The conditions for rows of a range, with their parameters.
    fn within(&self, range: &KeyRange) -> Result<(Vec<String>, Vec<Cell<'static>>)> {
        let bounds: Vec<usize> = range
            .columns
            .iter()
            .map(|c| {
                self.columns.iter().position(|t| t.name == *c).ok_or_else(|| {
                    Error::new(
                        code::COLUMN_MISSING,
                        format!("range column {c} is not in table {}", self.name),
                    )
                })
            })
            .collect::<Result<_>>()?;
        let (mut terms, mut parameters) = (Vec::new(), Vec::new());
        for (op, bound) in [(">=", &range.lower), ("<", &range.upper)] {
            let Some(values) = bound else { continue };
            if values.len() != bounds.len() {
                return Err(Error::bug("a range's bound has another number of columns"));
            }
            // Ranges are cut by bytes, whatever the column's collation.
            let left = range
                .columns
                .iter()
                .map(|c| format!("{} COLLATE BINARY", quote(c)))
                .collect::<Vec<_>>();
            let right = placeholders(parameters.len() + 1, left.len());
            terms.push(format!("({}) {op} ({right})", left.join(", ")));
            for (at, value) in bounds.iter().zip(values) {
                parameters.push(types::bound(&self.columns[*at], self.stores[*at], value)?);
            }
        }
        if !terms.is_empty() {
            for at in &bounds {
                terms.extend(self.ordered_as_text(*at)?);
            }
        }
        Ok((terms, parameters))
    }

    /// Takes away rows of other keys that hold a unique value that one of these rows is to have, as far as they stand in a
    /// range that is replaced later; in one that was, they are a conflict. Says how many those were.
    fn give_way(&self, conn: &Connection, range: &KeyRange, rows: &RecordBatch) -> Result<u64> {
        let ahead = KeyRange {
            upper: None,
            ..range.clone()
        };
        let (terms, parameters) = self.within(&ahead)?;
        let ahead: String = terms.iter().map(|t| format!(" AND {t}")).collect();
        let first = parameters.len() + 1;
        let doing = || format!("making way in {}", self.name);
        let inputs = self.inputs(rows)?;
        let place = |name: &String| self.columns.iter().position(|c| c.name == *name);
        let mut removed = 0;
        for unique in super::catalog::unique_indexes(conn, &self.name)? {
            let Some(unique) = unique.iter().map(place).collect::<Option<Vec<usize>>>() else {
                continue;
            };
            if self.key.iter().all(|k| unique.contains(k)) {
                continue;
            }
            let named = unique.iter().enumerate();
            let same = equal(named.map(|(i, at)| (quote(&self.columns[*at].name), format!("?{}", first + i))));
            let sql = format!(
                "DELETE FROM {} WHERE {same} AND NOT ({}){ahead}",
                quote(&self.name),
                self.by_key(first + unique.len())
            );
            let mut delete = conn.prepare(&sql).map_err(failed(doing))?;
            for (i, value) in parameters.iter().enumerate() {
                delete.raw_bind_parameter(i + 1, value).map_err(failed(doing))?;
            }
            for row in 0..rows.num_rows() {
                for (i, at) in unique.iter().chain(&self.key).enumerate() {
                    let input = inputs[*at]
                        .as_ref()
                        .ok_or_else(|| Error::bug("rows without one of their columns"))?;
                    delete
                        .raw_bind_parameter(first + i, input.cell(row)?)
                        .map_err(failed(doing))?;
                }
                removed += delete.raw_execute().map_err(failed(doing))? as u64;
            }
        }
        Ok(removed)
    }

    /// Whether stored values of a column sort as the type does: then nothing; a condition that leaves out those that
    /// do not; or a refusal.
    fn ordered_as_text(&self, at: usize) -> Result<Option<String>> {
        let column = &self.columns[at];
        match (&column.ty, self.stores[at]) {
            (_, Store::Integer | Store::Unsigned | Store::Blob) => Ok(None),
            (ColumnType::Text { .. } | ColumnType::Uuid, _) => Ok(None),
            // Four-digit years sort; a year before Christ or beyond 9999 is left alone rather than deleted wrongly.
            (ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz, _) => {
                let name = quote(&column.name);
                Ok(Some(format!(
                    "{name} GLOB '[0-9][0-9][0-9][0-9]-*' AND {name} NOT GLOB '* BC'"
                )))
            }
            (ColumnType::Time, _) => Ok(None),
            (ty, _) => Err(Error::new(
                code::UNSUPPORTED,
                format!(
                    "a range of column {} cannot be replaced: SQLite does not sort {ty} as other databases do",
                    column.name
                ),
            )
            .hint("repair the whole table instead, or choose a key of integers, text, uuids or dates")),
        }
    }

    /// Empties the table.
    pub(super) fn truncate(&self, conn: &Connection, restart_identity: bool) -> Result<()> {
        let doing = || format!("emptying {}", self.name);
        conn.execute(&format!("DELETE FROM {}", quote(&self.name)), [])
            .map_err(failed(doing))?;
        let counted: bool = conn
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')",
                [],
                |r| r.get(0),
            )
            .map_err(failed(doing))?;
        if restart_identity && counted {
            conn.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [&self.name])
                .map_err(failed(doing))?;
        }
        Ok(())
    }

    /// Adds the columns that a change of shape adds; anything else is refused.
    pub(super) fn alter(&mut self, conn: &Connection, change: &SchemaChange) -> Result<()> {
        change.must_only_add()?;
        for column in &change.difference.missing {
            if !self.columns.iter().any(|c| c.name == column.name) {
                let found = super::catalog::find(conn, &self.name)?;
                let there = found.as_ref().and_then(|t| t.column(&column.name));
                let declared = match there {
                    Some(there) => there.declared.clone(),
                    None => {
                        conn.execute_batch(&ddl::add_column(&self.name, column))
                            .map_err(failed(|| format!("adding column {} to {}", column.name, self.name)))?;
                        types::declared(&column.ty)
                    }
                };
                self.stores.push(types::store(&declared));
                self.affinities.push(types::affinity(&declared));
                self.columns.push(column.clone());
            }
        }
        self.rebuild();
        Ok(())
    }
}

fn keyless(what: &str) -> Error {
    Error::new(code::UNSUPPORTED, format!("{what} needs a key, and the table has none"))
        .hint("name the key columns in the pipeline, or let the source send whole old rows (REPLICA IDENTITY FULL)")
}

/// One row's change, with the statements it needs.
struct Change<'c> {
    conn: &'c Connection,
    target: &'c Target,
    updates: &'c mut Updates,
}

impl Change<'_> {
    fn prepare(&self, sql: &str) -> Result<CachedStatement<'_>> {
        self.conn.prepare_cached(sql).map_err(failed(writing))
    }

    fn run<'a>(&self, sql: &str, cells: impl Iterator<Item = &'a Cell<'a>>) -> Result<bool> {
        let mut statement = self.prepare(sql)?;
        for (i, cell) in cells.enumerate() {
            statement.raw_bind_parameter(i + 1, cell).map_err(failed(writing))?;
        }
        Ok(statement.raw_execute().map_err(failed(writing))? > 0)
    }

    fn exists(&self, key: &[Cell<'_>]) -> Result<bool> {
        let mut statement = self.prepare(&self.target.exists)?;
        for (i, cell) in key.iter().enumerate() {
            statement.raw_bind_parameter(i + 1, cell).map_err(failed(writing))?;
        }
        let found = statement.raw_query().next().map_err(failed(writing))?.is_some();
        Ok(found)
    }

    /// The key of a row; `None` if a part of it is absent or NULL.
    fn key_of<'a>(&self, row: &Row<'a>) -> Option<Vec<Cell<'a>>> {
        self.target
            .key
            .iter()
            .map(|k| row[*k].clone().filter(|c| *c != Cell::Null))
            .collect()
    }

    fn row(&mut self, op: Op, row: Row<'_>, old: Option<Row<'_>>) -> Result<Applied> {
        let mut applied = Applied {
            written: 1,
            ..Applied::default()
        };
        let counter = match self.change(op, row, old)? {
            Did::Inserted => &mut applied.inserted,
            Did::Updated => &mut applied.updated,
            Did::Deleted => &mut applied.deleted,
            Did::Nothing => &mut applied.unchanged,
        };
        *counter = 1;
        Ok(applied)
    }

    fn change(&mut self, op: Op, row: Row<'_>, old: Option<Row<'_>>) -> Result<Did> {
        if self.target.key.is_empty() {
            return self.keyless_row(op, &row, old.as_ref());
        }
        let old_key = old.as_ref().and_then(|o| self.key_of(o));
        let new_key = self.key_of(&row);
        if op == Op::Delete {
            let key = old_key.or(new_key).ok_or_else(Error::without_key)?;
            return Ok(if self.run(&self.target.delete, key.iter())? {
                Did::Deleted
            } else {
                Did::Nothing
            });
        }
        // A key that was not sent is the old one.
        let new_key = new_key.or_else(|| old_key.clone()).ok_or_else(Error::without_key)?;
        if let Some(old_key) = old_key
            && old_key != new_key
        {
            if self.exists(&old_key)? {
                self.move_row(&row, &old_key, &new_key)?;
                return Ok(Did::Updated);
            }
            if op == Op::Update {
                return Ok(Did::Nothing);
            }
        }
        if op == Op::Update {
            return self.update(&row, &new_key);
        }
        if self.exists(&new_key)? {
            return self.update(&row, &new_key);
        }
        self.insert(&row)
    }

    fn insert(&self, row: &Row<'_>) -> Result<Did> {
        if let Some(lacks) = row.iter().position(Option::is_none) {
            return Err(Error::not_whole(&self.target.columns[lacks].name));
        }
        self.run(&self.target.insert, row.iter().flatten())?;
        Ok(Did::Inserted)
    }

    /// Sets the values that are present on the row of a key, if one of them differs.
    fn update(&mut self, row: &Row<'_>, key: &[Cell<'_>]) -> Result<Did> {
        let set: Vec<usize> = (0..row.len())
            .filter(|i| row[*i].is_some() && (!self.target.key.contains(i) || self.target.folding.contains(i)))
            .collect();
        if set.is_empty() {
            return Ok(Did::Nothing);
        }
        let sql = self.update_sql(&set, false);
        let cells = set.iter().filter_map(|i| row[*i].as_ref()).chain(key);
        Ok(if self.run(&sql, cells)? {
            Did::Updated
        } else {
            Did::Nothing
        })
    }

    /// Gives the row of the old key the new key and values. A row that has the new key already gives way: it is what
    /// this row is now.
    fn move_row(&mut self, row: &Row<'_>, old_key: &[Cell<'_>], new_key: &[Cell<'_>]) -> Result<()> {
        let n = self.target.key.len();
        let give_way = format!(
            "DELETE FROM {} WHERE {} AND NOT {}",
            quote(&self.target.name),
            self.target.by_key(1),
            self.target.by_key(n + 1)
        );
        self.run(&give_way, new_key.iter().chain(old_key))?;
        let set: Vec<usize> = (0..row.len()).filter(|i| row[*i].is_some()).collect();
        let sql = self.update_sql(&set, true);
        self.run(&sql, set.iter().filter_map(|i| row[*i].as_ref()).chain(old_key))?;
        Ok(())
    }

    /// `UPDATE … SET` the columns `WHERE` the key, and unless the key moves, where one differs.
    fn update_sql(&mut self, set: &[usize], moves: bool) -> Arc<str> {
        if let Some(sql) = self.updates[usize::from(moves)].get(set) {
            return sql.clone();
        }
        let t = self.target;
        let assignments: Vec<String> = set
            .iter()
            .enumerate()
            .map(|(i, c)| format!("{} = ?{}", quote(&t.columns[*c].name), i + 1))
            .collect();
        let mut sql = format!(
            "UPDATE {} SET {} WHERE {}",
            quote(&t.name),
            assignments.join(", "),
            t.by_key(set.len() + 1)
        );
        if !moves {
            let different: Vec<String> = set
                .iter()
                .enumerate()
                .map(|(i, c)| differs(&quote(&t.columns[*c].name), &format!("?{}", i + 1), t.affinities[*c]))
                .collect();
            sql.push_str(" AND ");
            sql.push_str(&joined(&different, "OR"));
        }
        let sql: Arc<str> = sql.into();
        if self.updates[usize::from(moves)].len() >= MOST_UPDATES {
            self.updates[usize::from(moves)].clear();
        }
        self.updates[usize::from(moves)].insert(set.to_vec(), sql.clone());
        sql
    }

    /// Without a key only whole rows can be found again.
    fn keyless_row(&self, op: Op, row: &Row<'_>, old: Option<&Row<'_>>) -> Result<Did> {
        let t = self.target;
        if op == Op::Insert {
            return self.insert(row);
        }
        let old = old
            .filter(|o| op != Op::Upsert && o.iter().all(Option::is_some))
            .ok_or_else(|| keyless("an update or delete"))?;
        let rowid = t.rowid.ok_or_else(|| keyless("an update or delete"))?;
        let set: Vec<usize> = match op {
            Op::Update => (0..row.len()).filter(|i| row[*i].is_some()).collect(),
            _ => Vec::new(),
        };
        let same: Vec<String> = (0..t.columns.len())
            .map(|i| {
                let (name, value) = (quote(&t.columns[i].name), format!("?{}", set.len() + i + 1));
                format!("NOT ({})", differs(&name, &value, t.affinities[i]))
            })
            .collect();
        let one = format!(
            "{rowid} = (SELECT {rowid} FROM {} WHERE {} LIMIT 1)",
            quote(&t.name),
            joined(&same, "AND")
        );
        let old_cells = old.iter().flatten();
        if op == Op::Delete {
            let sql = format!("DELETE FROM {} WHERE {one}", quote(&t.name));
            return Ok(if self.run(&sql, old_cells)? {
                Did::Deleted
            } else {
                Did::Nothing
            });
        }
        if set.iter().all(|i| row[*i] == old[*i]) {
            return Ok(Did::Nothing);
        }
        let assignments: Vec<String> = set
            .iter()
            .enumerate()
            .map(|(i, c)| format!("{} = ?{}", quote(&t.columns[*c].name), i + 1))
            .collect();
        let sql = format!("UPDATE {} SET {} WHERE {one}", quote(&t.name), assignments.join(", "));
        let cells = set.iter().filter_map(|i| row[*i].as_ref()).chain(old_cells);
        Ok(if self.run(&sql, cells)? {
            Did::Updated
        } else {
            Did::Nothing
        })
    }
}

/// What happened to a row.
enum Did {
    Inserted,
    Updated,
    Deleted,
    Nothing,
}
