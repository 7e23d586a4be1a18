//! Applying changes to a table: what the events of a commit make of the rows they touch is worked out in memory, exactly
//! and in order, and the difference is written set-wise: deletes, moved keys, updates, inserts.
//!
//! - Insert and Upsert of a key that is there become an update; one of a key that is not there inserts. One that lacks a
//!   value is refused.
//! - Update of a key that is not there changes nothing. A row that has the new key of a moved one gives way to it.
//! - A row whose values are all stored already is not written, and counted as unchanged.

mod shape;

pub(super) use shape::add_column;

use super::query::{batch_texts, from_text, key_batch, readable};
use super::session::{execute, ingest, query, rows};
use super::sql::{MADE, has_collations, list, quote, table as table_name};
use super::types::to_duckdb;
use adbc_driver_manager::ManagedConnection;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{Field, Schema};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Event, KeyRange, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::plan::Plan;
use synctool_core::schema::{Column, TableId};
use synctool_core::text::{self, ColumnBuilder};

/// So many touched rows are held before they are written.
const MOST_ROWS: usize = 50_000;
const STAGE: &str = "_synctool_changes";
/// Rows whose key changes, with what they have in columns that are not ours.
const MOVED: &str = "_synctool_moved";

type Key = Vec<String>;
/// Canonical texts; `None` is NULL.
type Row = Vec<Option<String>>;
/// Canonical texts of what is there; `None` where there is no value.
type Cells = Vec<Option<Option<String>>>;

/// A row as it will be.
#[derive(Debug, Clone)]
struct Live {
    row: Row,
    /// The key under which it is stored; `None` for a new row.
    origin: Option<Key>,
}

/// A table that changes are applied to.
#[derive(Debug)]
struct Target {
    name: String,
    columns: Vec<Column>,
    /// DuckDB's names of the columns' types.
    types: Vec<String>,
    /// Whether columns of texts may have a collation: ranges of them go by bytes.
    collated: bool,
    key: Vec<usize>,
    /// What stands under each key that was touched; `None`: nothing.
    now: HashMap<Key, Option<Live>>,
    /// The touched rows as they are stored.
    stored: HashMap<Key, Row>,
    /// New rows of a table without a key.
    appended: Vec<Row>,
    /// Columns of the table that are not ours, and are not computed.
    others: Vec<String>,
    /// Whether the open transaction has changed rows of the table.
    written: bool,
}

/// Applies the events of a sink.
#[derive(Debug)]
pub(super) struct Applier {
    plan: Arc<Plan>,
    targets: BTreeMap<usize, Target>,
    /// What was done to each table since the last commit.
    done: BTreeMap<usize, Applied>,
}

/// Whether texts of a table may be compared otherwise than by their bytes.
pub(super) fn is_collated(c: &mut ManagedConnection, table: &TableId) -> Result<bool> {
    let made = rows(c, MADE, &[table.schema.as_deref().unwrap_or("main"), &table.name])?;
    let made = made.into_iter().flatten().flatten().next();
    Ok(made.is_none_or(|made| has_collations(&made)))
}

fn keyless(what: &str) -> Error {
    Error::new(code::UNSUPPORTED, format!("{what} needs a key, and the table has none"))
        .hint("name the key columns in the pipeline")
}

impl Applier {
    pub(super) fn new(plan: Arc<Plan>) -> Self {
        Applier {
            plan,
            targets: BTreeMap::new(),
            done: BTreeMap::new(),
        }
    }

    fn target(&mut self, c: &mut ManagedConnection, table: &TableId) -> Result<(usize, &mut Target)> {
        let index = self.plan.tables.iter().position(|t| t.destination == *table);
        let index = index.ok_or_else(|| Error::bug(format!("rows came for {table}, which is not in the plan")))?;
        if !self.targets.contains_key(&index) {
            let planned = &self.plan.tables[index];
            let mut target = Target {
                name: table_name(table),
                columns: planned.schema.columns.clone(),
                types: Vec::new(),
                collated: is_collated(c, table)?,
                key: planned.schema.key_indices()?,
                now: HashMap::new(),
                stored: HashMap::new(),
                appended: Vec::new(),
                others: Vec::new(),
                written: false,
            };
            target.look(c)?;
            self.targets.insert(index, target);
        }
        let target = self
            .targets
            .get_mut(&index)
            .ok_or_else(|| Error::bug("a target was lost"))?;
        Ok((index, target))
    }

    /// Takes one event.
    pub(super) fn write(&mut self, c: &mut ManagedConnection, event: Event) -> Result<()> {
        match event {
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) => Ok(()),
            Event::Boundary { .. } => Err(Error::bug("a boundary was written to a sink")),
            Event::Raw { .. } => Err(Error::bug("DuckDB takes no rows in wire form")),
            Event::Rows(batch) => {
                let (index, target) = self.target(c, &batch.table)?;
                let applied = target
                    .batch(c, &batch)
                    .map_err(|e| e.at("table", batch.table.to_string()))?;
                *self.done.entry(index).or_default() += applied;
                Ok(())
            }
            Event::Net { table, remove, insert } => {
                let (index, target) = self.target(c, &table)?;
                let mut applied = Applied::default();
                for (rows, op) in [(remove, Op::Delete), (insert, Op::Upsert)] {
                    applied += target
                        .rows(c, &rows, op)
                        .map_err(|e| e.at("table", table.to_string()))?;
                }
                *self.done.entry(index).or_default() += applied;
                Ok(())
            }
            Event::ReplaceRange { table, range, rows } => {
                let (index, target) = self.target(c, &table)?;
                let applied = target
                    .replace_range(c, &range, &rows)
                    .map_err(|e| e.at("table", table.to_string()))?;
                *self.done.entry(index).or_default() += applied;
                Ok(())
            }
            Event::Truncate { tables, .. } => {
                for table in tables {
                    let (_, target) = self.target(c, &table)?;
                    target.forget();
                    target.written = true;
                    execute(c, &format!("DELETE FROM {}", target.name), &[])?;
                }
                Ok(())
            }
            Event::Schema(change) => self.reshape(c, &change),
        }
    }

    /// Writes what is still in memory, before the transaction commits; says what was done to each table in it.
    pub(super) fn finish(&mut self, c: &mut ManagedConnection) -> Result<BTreeMap<usize, Applied>> {
        for target in self.targets.values_mut() {
            target.flush(c).map_err(|e| e.at("table", target.name.clone()))?;
            target.written = false;
        }
        Ok(std::mem::take(&mut self.done))
    }
}

impl Target {
    fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|k| self.columns[*k].name.as_str()).collect()
    }

    fn key_of(&self, cells: &Cells) -> Option<Key> {
        self.key.iter().map(|k| cells[*k].clone().flatten()).collect()
    }

    /// The cells of a batch's row in the order of the columns. A column that the batch has not has no value.
    fn cells(&self, rows: &RecordBatch, places: &[Option<usize>], row: usize) -> Result<Cells> {
        places
            .iter()
            .map(|p| p.map(|p| text::cell(rows.column(p), row)).transpose())
            .collect()
    }

    fn places(&self, rows: &RecordBatch) -> Result<Vec<Option<usize>>> {
        let schema = rows.schema_ref();
        if let Some(unknown) = schema
            .fields()
            .iter()
            .find(|f| !self.columns.iter().any(|c| c.name == *f.name()))
        {
            return Err(Error::new(
                code::COLUMN_MISSING,
                format!("rows have a column {} that table {} has not", unknown.name(), self.name),
            )
            .hint("add the column at the destination, or leave it out of the pipeline"));
        }
        Ok(self.columns.iter().map(|c| schema.index_of(&c.name).ok()).collect())
    }

    fn batch(&mut self, c: &mut ManagedConnection, batch: &ChangeBatch) -> Result<Applied> {
        batch.check_whole()?;
        let places = self.places(&batch.rows)?;
        let before = batch
            .before
            .as_ref()
            .map(|b| Ok::<_, Error>((b, self.places(b)?)))
            .transpose()?;
        let mut changes = Vec::with_capacity(batch.len());
        for row in 0..batch.len() {
            let mut cells = self.cells(&batch.rows, &places, row)?;
            if let Some(present) = &batch.present {
                for (cell, place) in cells.iter_mut().zip(&places) {
                    if place.is_some_and(|p| !present.has(p, row)) {
                        *cell = None;
                    }
                }
            }
            let old = before.as_ref().map(|(b, p)| self.cells(b, p, row)).transpose()?;
            changes.push((batch.ops.get(row), cells, old));
        }
        self.changes(c, changes)
    }

    fn rows(&mut self, c: &mut ManagedConnection, rows: &RecordBatch, op: Op) -> Result<Applied> {
        let places = self.places(rows)?;
        let changes = (0..rows.num_rows())
            .map(|row| Ok((op, self.cells(rows, &places, row)?, None)))
            .collect::<Result<_>>()?;
        self.changes(c, changes)
    }

    fn changes(&mut self, c: &mut ManagedConnection, changes: Vec<(Op, Cells, Option<Cells>)>) -> Result<Applied> {
        if self.now.len() + self.appended.len() > MOST_ROWS {
            self.flush(c)?;
        }
        let mut applied = Applied {
            written: changes.len() as u64,
            ..Applied::default()
        };
        if self.key.is_empty() {
            for (op, cells, _) in changes {
                if op != Op::Insert {
                    return Err(keyless("anything but inserting rows"));
                }
                let row = self.whole(cells)?;
                self.appended.push(row);
                applied.inserted += 1;
            }
            return Ok(applied);
        }
        let mut touched = HashSet::new();
        for (_, cells, old) in &changes {
            touched.extend(self.key_of(cells));
            touched.extend(old.as_ref().and_then(|o| self.key_of(o)));
        }
        self.fetch(c, touched)?;
        for (op, cells, old) in changes {
            let counter = match self.change(op, cells, old)? {
                Did::Inserted => &mut applied.inserted,
                Did::Updated => &mut applied.updated,
                Did::Deleted => &mut applied.deleted,
                Did::Nothing => &mut applied.unchanged,
            };
            *counter += 1;
        }
        Ok(applied)
    }

    /// Reads the rows of keys that were not touched yet.
    fn fetch(&mut self, c: &mut ManagedConnection, keys: HashSet<Key>) -> Result<()> {
        let keys: Vec<Vec<Option<String>>> = keys
            .into_iter()
            .filter(|k| !self.now.contains_key(k))
            .map(|k| k.into_iter().map(Some).collect())
            .collect();
        if keys.is_empty() {
            return Ok(());
        }
        execute(c, &format!("DROP TABLE IF EXISTS temp.{STAGE}"), &[])?;
        ingest(
            c,
            STAGE,
            true,
            key_batch(self.key.len(), keys.iter().map(Vec::as_slice))?,
        )?;
        let selected: Vec<String> = self
            .columns
            .iter()
            .map(|c| readable(format!("t.{}", quote(&c.name)), c))
            .collect();
        let typed: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(i, k)| format!("{} AS c{i}", from_text(&format!("c{i}"), &self.types[*k])))
            .collect();
        let same: Vec<String> = self
            .key_names()
            .iter()
            .enumerate()
            .map(|(i, name)| format!("t.{} = k.c{i}", quote(name)))
            .collect();
        let sql = format!(
            "SELECT {} FROM {} AS t JOIN (SELECT {} FROM temp.{STAGE}) AS k ON {}",
            selected.join(", "),
            self.name,
            typed.join(", "),
            same.join(" AND ")
        );
        let mut found = Vec::new();
        for batch in query(c, &sql, &[])? {
            let batch = batch.map_err(|e| Error::new(code::SERVER_ERROR, "DuckDB stopped in a query").caused_by(e))?;
            batch_texts(&batch, &self.columns, &mut found)?;
        }
        for key in keys {
            self.now.insert(key.into_iter().flatten().collect(), None);
        }
        for row in found {
            let key: Key = self
                .key
                .iter()
                .map(|k| {
                    row[*k]
                        .clone()
                        .ok_or_else(|| Error::bug("a key that was found is NULL"))
                })
                .collect::<Result<_>>()?;
            if self.stored.insert(key.clone(), row.clone()).is_some() {
                return Err(Error::new(code::DUPLICATE_KEY, "two stored rows have the same key")
                    .hint("give the destination table a primary key"));
            }
            let origin = Some(key.clone());
            self.now.insert(key, Some(Live { row, origin }));
        }
        Ok(())
    }

    fn change(&mut self, op: Op, cells: Cells, old: Option<Cells>) -> Result<Did> {
        let old_key = old.as_ref().and_then(|o| self.key_of(o));
        let new_key = self.key_of(&cells);
        if op == Op::Delete {
            let key = old_key.or(new_key).ok_or_else(Error::without_key)?;
            return Ok(match self.now.insert(key, None) {
                Some(Some(_)) => Did::Deleted,
                _ => Did::Nothing,
            });
        }
        // A key that was not sent is the old one.
        let new_key = new_key.or_else(|| old_key.clone()).ok_or_else(Error::without_key)?;
        if let Some(old_key) = old_key.filter(|k| *k != new_key) {
            if let Some(mut live) = self.now.insert(old_key, None).flatten() {
                set(&mut live.row, cells);
                self.now.insert(new_key, Some(live));
                return Ok(Did::Updated);
            }
            if op == Op::Update {
                return Ok(Did::Nothing);
            }
        }
        if let Some(Some(live)) = self.now.get_mut(&new_key) {
            return Ok(match set(&mut live.row, cells) {
                true => Did::Updated,
                false => Did::Nothing,
            });
        }
        if op == Op::Update {
            return Ok(Did::Nothing);
        }
        let row = self.whole(cells)?;
        self.now.insert(new_key, Some(Live { row, origin: None }));
        Ok(Did::Inserted)
    }

    /// The row to insert.
    fn whole(&self, cells: Cells) -> Result<Row> {
        let columns = self.columns.iter().zip(cells);
        columns
            .map(|(column, cell)| cell.ok_or_else(|| Error::not_whole(&column.name)))
            .collect()
    }

    /// Makes a key range hold exactly these rows; those that only the destination had are counted as removed.
    fn replace_range(&mut self, c: &mut ManagedConnection, range: &KeyRange, rows: &RecordBatch) -> Result<Applied> {
        if self.key.is_empty() {
            return Err(keyless("replacing a key range"));
        }
        self.flush(c)?;
        let (mut terms, mut parameters) = (Vec::new(), Vec::new());
        for (op, bound) in [(">=", &range.lower), ("<", &range.upper)] {
            let Some(values) = bound else { continue };
            // Column by column: two comparisons of rows become one BETWEEN, which rows do not have.
            let mut any = Vec::new();
            for last in 0..range.columns.len() {
                let mut all = Vec::new();
                for (nth, (name, value)) in range.columns.iter().zip(values).take(last + 1).enumerate() {
                    let at = self.columns.iter().position(|c| c.name == *name).ok_or_else(|| {
                        Error::new(
                            code::COLUMN_MISSING,
                            format!("range column {name} is not in table {}", self.name),
                        )
                    })?;
                    let op = match (nth < last, last + 1 == range.columns.len()) {
                        (true, _) => "=",
                        (false, true) => op,
                        (false, false) => &op[..1],
                    };
                    let (left, right) = (quote(name), from_text("?", &self.types[at]));
                    all.push(match self.collated && self.types[at] == "VARCHAR" {
                        true => format!("encode({left}) {op} encode({right})"),
                        false => format!("{left} {op} {right}"),
                    });
                    parameters.push(value.as_str());
                }
                any.push(format!("({})", all.join(" AND ")));
            }
            terms.push(format!("({})", any.join(" OR ")));
        }
        let filter = match terms.as_slice() {
            [] => String::new(),
            terms => format!(" WHERE {}", terms.join(" AND ")),
        };
        let keys: Vec<Column> = self.key.iter().map(|k| self.columns[*k].clone()).collect();
        let selected: Vec<String> = keys.iter().map(|k| readable(quote(&k.name), k)).collect();
        let sql = format!("SELECT {} FROM {}{filter}", selected.join(", "), self.name);
        let mut inside = Vec::new();
        for batch in query(c, &sql, &parameters)? {
            let batch = batch.map_err(|e| Error::new(code::SERVER_ERROR, "DuckDB stopped in a query").caused_by(e))?;
            batch_texts(&batch, &keys, &mut inside)?;
        }
        let places = self.places(rows)?;
        let mut given = HashSet::new();
        for row in 0..rows.num_rows() {
            given.extend(self.key_of(&self.cells(rows, &places, row)?));
        }
        let gone: HashSet<Key> = inside
            .into_iter()
            .map(|k| k.into_iter().flatten().collect::<Key>())
            .filter(|k| !given.contains(k))
            .collect();
        let removed = gone.len() as u64;
        self.fetch(c, gone.clone())?;
        for key in gone {
            self.now.insert(key, None);
        }
        let mut applied = self.rows(c, rows, Op::Upsert)?;
        applied.removed = removed;
        Ok(applied)
    }

    fn forget(&mut self) {
        self.now.clear();
        self.stored.clear();
        self.appended.clear();
    }

    /// Writes the difference between what is stored and what is to be.
    fn flush(&mut self, c: &mut ManagedConnection) -> Result<()> {
        let mut kept = HashSet::new();
        let (mut moved, mut changed, mut new) = (Vec::new(), Vec::new(), std::mem::take(&mut self.appended));
        for (key, live) in self.now.drain() {
            let Some(live) = live else { continue };
            match live.origin {
                None => new.push(live.row),
                Some(origin) => {
                    if origin != key {
                        moved.push((origin.clone(), live.row));
                    } else if self.stored.get(&origin) != Some(&live.row) {
                        changed.push((origin.clone(), live.row));
                    }
                    kept.insert(origin);
                }
            }
        }
        let gone: Vec<Vec<Option<String>>> = self
            .stored
            .drain()
            .filter(|(key, _)| !kept.contains(key))
            .map(|(key, _)| key.into_iter().map(Some).collect())
            .collect();
        let stored_key: Vec<String> = self
            .key
            .iter()
            .enumerate()
            .map(|(i, k)| {
                format!(
                    "t.{} = {}",
                    quote(&self.columns[*k].name),
                    from_text(&format!("s.c{i}"), &self.types[*k])
                )
            })
            .collect();
        let stored_key = stored_key.join(" AND ");
        self.written |= !(gone.is_empty() && moved.is_empty() && changed.is_empty() && new.is_empty());
        if !gone.is_empty() {
            self.stage(c, key_batch(self.key.len(), gone.iter().map(Vec::as_slice))?)?;
            let sql = format!(
                "DELETE FROM {} AS t USING temp.{STAGE} AS s WHERE {stored_key}",
                self.name
            );
            execute(c, &sql, &[])?;
        }
        if !moved.is_empty() {
            self.stage_both(c, &moved)?;
            self.move_rows(c, &stored_key)?;
        }
        if !changed.is_empty() {
            self.stage_both(c, &changed)?;
            let set: Vec<String> = (0..self.columns.len())
                .filter(|i| !self.key.contains(i))
                .map(|i| format!("{} = CAST(s.v{i} AS {})", quote(&self.columns[i].name), self.types[i]))
                .collect();
            let sql = format!(
                "UPDATE {} AS t SET {} FROM temp.{STAGE} AS s WHERE {stored_key}",
                self.name,
                set.join(", ")
            );
            execute(c, &sql, &[])?;
        }
        if !new.is_empty() {
            let values = self.arrow(new.iter())?;
            self.stage(c, values)?;
            let names = list("", self.columns.iter().map(|c| c.name.as_str()));
            let values: Vec<String> = (0..self.columns.len())
                .map(|i| format!("CAST(v{i} AS {})", self.types[i]))
                .collect();
            let sql = format!(
                "INSERT INTO {} ({names}) SELECT {} FROM temp.{STAGE}",
                self.name,
                values.join(", ")
            );
            execute(c, &sql, &[])?;
        }
        Ok(())
    }

    /// Gives the staged rows their new keys and values. DuckDB looks for doubled keys after every couple of thousand rows
    /// of an UPDATE, where rows that have not moved yet still have the keys of those that have: so all of them go, and
    /// come again.
    fn move_rows(&self, c: &mut ManagedConnection, stored_key: &str) -> Result<()> {
        let mut from = STAGE;
        let mut names: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
        let mut values: Vec<String> = (0..self.columns.len())
            .map(|i| format!("CAST(v{i} AS {})", self.types[i]))
            .collect();
        if !self.others.is_empty() {
            from = MOVED;
            let others: Vec<String> = (self.others.iter().enumerate())
                .map(|(i, name)| format!("t.{} AS o{i}", quote(name)))
                .collect();
            names.extend(self.others.iter().map(String::as_str));
            values.extend((0..self.others.len()).map(|i| format!("o{i}")));
            let sql = format!(
                "CREATE OR REPLACE TEMPORARY TABLE {MOVED} AS SELECT s.*, {} FROM {} AS t JOIN temp.{STAGE} AS s ON {stored_key}",
                others.join(", "),
                self.name
            );
            execute(c, &sql, &[])?;
        }
        let sql = format!(
            "DELETE FROM {} AS t USING temp.{STAGE} AS s WHERE {stored_key}",
            self.name
        );
        execute(c, &sql, &[])?;
        let sql = format!(
            "INSERT INTO {} ({}) SELECT {} FROM temp.{from}",
            self.name,
            list("", names),
            values.join(", ")
        );
        execute(c, &sql, &[])?;
        if from == MOVED {
            execute(c, &format!("DROP TABLE temp.{MOVED}"), &[])?;
        }
        Ok(())
    }

    /// Stages rows with the keys under which they are stored.
    fn stage_both(&self, c: &mut ManagedConnection, rows: &[(Key, Row)]) -> Result<()> {
        let keys: Vec<Vec<Option<String>>> = rows
            .iter()
            .map(|(k, _)| k.iter().cloned().map(Some).collect())
            .collect();
        let keys = key_batch(self.key.len(), keys.iter().map(Vec::as_slice))?;
        let values = self.arrow(rows.iter().map(|(_, row)| row))?;
        let (mut fields, mut arrays) = (keys.schema().fields().to_vec(), keys.columns().to_vec());
        fields.extend(values.schema().fields().iter().cloned());
        arrays.extend(values.columns().iter().cloned());
        let both =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| Error::bug(e.to_string()))?;
        self.stage(c, both)
    }

    fn stage(&self, c: &mut ManagedConnection, rows: RecordBatch) -> Result<()> {
        execute(c, &format!("DROP TABLE IF EXISTS temp.{STAGE}"), &[])?;
        ingest(c, STAGE, true, rows)
    }

    /// Rows in columns `v0`, `v1` …, in a form DuckDB takes.
    fn arrow<'r>(&self, rows: impl Iterator<Item = &'r Row>) -> Result<RecordBatch> {
        let mut builders: Vec<ColumnBuilder> = self.columns.iter().map(ColumnBuilder::new).collect();
        for row in rows {
            for (builder, cell) in builders.iter_mut().zip(row) {
                builder.append_cell(cell.as_deref())?;
            }
        }
        let arrays: Vec<ArrayRef> = builders
            .iter_mut()
            .map(|b| to_duckdb(&b.finish()))
            .collect::<Result<_>>()?;
        let fields: Vec<Field> = arrays
            .iter()
            .enumerate()
            .map(|(i, a)| Field::new(format!("v{i}"), a.data_type().clone(), true))
            .collect();
        RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| Error::bug(e.to_string()))
    }
}

/// Sets the values that are there; whether one of them differed.
fn set(row: &mut Row, cells: Cells) -> bool {
    let mut differed = false;
    for (stored, cell) in row.iter_mut().zip(cells) {
        if let Some(value) = cell
            && *stored != value
        {
            *stored = value;
            differed = true;
        }
    }
    differed
}

/// What happened to a row.
enum Did {
    Inserted,
    Updated,
    Deleted,
    Nothing,
}
