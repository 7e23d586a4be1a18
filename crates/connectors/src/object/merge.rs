//! Changes by key into a table of files: copy on write, as the table formats of data lakes do it (Iceberg's
//! "copy-on-write" mode of row-level operations, Delta Lake's `MERGE`).
//!
//! 1. The touched keys are looked for: only key columns are read, and of Parquet only the row groups whose statistics
//!    allow one of the keys (`prune.rs`).
//! 2. A file that holds one is read whole, each touched row is decided, and the file is written anew with what is left:
//!    changed rows stay in their places, so a table that is sorted by its key stays so. If no row differs, the file
//!    stays as it is.
//! 3. Rows with new keys go behind the last file while that is small, else into a file of their own. A table that is
//!    one file stays one.
//!
//! Changes come in pieces that fit into memory; each works on what the one before left, and nobody sees any of it: the
//! new files lie apart until a new manifest names them (`settle.rs`).
//!
//! What becomes of a row: an upsert or insert of a key that is there is an update, unless every value is stored already;
//! an update of a key that is not there changes nothing; a delete takes the row. Columns of the table that are not
//! written keep their values, and are NULL in new rows.

use super::parquet;
use super::pending::{Changes, Step};
use super::prune::{self, Run, Wanted};
use super::publish::{SMALL, counted};
use super::rewrite::{Columns, Output};
use super::sink::extension;
use super::source;
use super::table::{DataFile, Located, Shape};
use super::{Format, store};
use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{
    Array, ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringArray, UInt32Array, new_null_array,
};
use arrow_buffer::BooleanBufferBuilder;
use arrow_schema::{ArrowError, DataType};
use arrow_select::filter::filter_record_batch;
use arrow_select::interleave::interleave;
use arrow_select::take::take_record_batch;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use synctool_core::blocks::push_field;
use synctool_core::change::Op;
use synctool_core::conform::carried;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::text;

/// New rows that are written at once.
const BATCH_ROWS: usize = 8 << 10;

/// A table's files as they will be.
pub(super) struct View {
    format: Format,
    shape: Shape,
    /// Where the table's files lie, and where new ones are written.
    root: PathBuf,
    dir: PathBuf,
    /// How the names of new files begin.
    prefix: String,
    number: usize,
    /// The table's columns, and where each is among those that are written.
    schema: TableSchema,
    places: Vec<Option<usize>>,
    /// The places of the key's columns in the table.
    key: Vec<usize>,
    /// The schema by which files without a header are read.
    known: bool,
    files: Vec<Member>,
    /// Whether rows are noted whose keys came ([`View::forget_unseen`]).
    noting: bool,
    changed: bool,
    kept: bool,
}

struct Member {
    file: DataFile,
    /// Whether it is one of ours that nobody knows yet.
    fresh: bool,
    /// Rows whose keys came, where they are noted.
    seen: BooleanBufferBuilder,
}

/// The files of a changed table.
pub(super) struct Changed {
    /// All of them, in order.
    pub(super) files: Vec<DataFile>,
    /// The names of those that are new: they lie where they were written.
    pub(super) fresh: Vec<String>,
}

type Key = Box<[u8]>;

/// What is known of a key that came.
#[derive(Default)]
struct Touched {
    /// Its changes, by their rows.
    changes: Vec<u32>,
    /// The file that holds it, and its row there.
    place: Option<(usize, usize)>,
}

type Keys = HashMap<Key, Touched>;

/// Forms of keys, equal where keys are: both sides are in the table's own types.
struct Forms<'a> {
    columns: Vec<Cells<'a>>,
}

enum Cells<'a> {
    Int(Int64Array),
    Text(&'a StringArray),
    Other(&'a ArrayRef, &'a ColumnType),
}

impl<'a> Forms<'a> {
    fn new(columns: &'a [ArrayRef], types: impl Iterator<Item = &'a ColumnType>) -> Result<Self> {
        let columns = columns.iter().zip(types).map(|(array, ty)| {
            Ok(match array.data_type() {
                DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
                    let wide = arrow_cast::cast(array, &DataType::Int64).map_err(bug)?;
                    Cells::Int(wide.as_primitive::<Int64Type>().clone())
                }
                DataType::Utf8 if matches!(ty, ColumnType::Text { .. }) => Cells::Text(array.as_string::<i32>()),
                _ => Cells::Other(array, ty),
            })
        });
        Ok(Forms {
            columns: columns.collect::<Result<_>>()?,
        })
    }

    /// The form of a row's key; `false` where a part of it is NULL.
    fn write(&self, row: usize, form: &mut Vec<u8>) -> Result<bool> {
        form.clear();
        for cells in &self.columns {
            match cells {
                Cells::Int(values) if values.is_valid(row) => {
                    form.extend_from_slice(&values.value(row).to_le_bytes());
                }
                Cells::Text(values) if values.is_valid(row) => {
                    let text = values.value(row);
                    form.extend_from_slice(&(text.len() as u64).to_le_bytes());
                    form.extend_from_slice(text.as_bytes());
                }
                Cells::Other(array, ty) if array.is_valid(row) => {
                    push_field(form, ty, text::cell(array.as_ref(), row)?.as_deref())?;
                }
                _ => return Ok(false),
            }
        }
        Ok(true)
    }
}

/// What a row becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Stored,
    Gone,
    /// The row of a change. Columns that are not written keep the stored values if the stored row was never away.
    Given {
        row: usize,
        keeps: bool,
    },
}

impl View {
    /// The table as it is. New files go to `dir`, under names that begin with `prefix`.
    pub(super) fn new(
        located: &Located,
        written: &TableSchema,
        (dir, prefix): (&Path, String),
        noting: bool,
    ) -> Result<Self> {
        let schema = source::describe(located)?;
        let place = |c: &Column| written.index_of(&c.name);
        let places: Vec<Option<usize>> = schema.columns.iter().map(place).collect();
        let key = written
            .key
            .iter()
            .map(|k| {
                schema
                    .index_of(k)
                    .ok_or_else(|| Error::new(code::COLUMN_MISSING, format!("the table has no key column {k}")))
            })
            .collect::<Result<_>>()?;
        if let Some(new) = written.columns.iter().find(|c| schema.column(&c.name).is_none()) {
            return Err(Error::new(
                code::SCHEMA_MISMATCH,
                format!("the table has no column {}", new.name),
            ));
        }
        let mut files = Vec::new();
        for file in counted(located)? {
            files.push(Member {
                seen: noted(if noting { file.rows } else { None }, false),
                file,
                fresh: false,
            });
        }
        Ok(View {
            format: located.format.clone(),
            shape: located.shape,
            root: located.root.clone(),
            dir: dir.to_path_buf(),
            prefix,
            number: 0,
            schema,
            places,
            key,
            known: located.known.is_some(),
            files,
            noting,
            changed: false,
            kept: false,
        })
    }

    /// All rows.
    pub(super) fn rows(&self) -> u64 {
        self.files.iter().filter_map(|m| m.file.rows).sum()
    }

    /// Works on a piece.
    pub(super) fn step(&mut self, step: Step) -> Result<Applied> {
        match step {
            Step::Empty => {
                self.changed |= !self.files.is_empty();
                for member in std::mem::take(&mut self.files) {
                    self.drop_file(&member)?;
                }
                Ok(Applied::default())
            }
            Step::Change(changes) => self.change(&changes),
        }
    }

    fn change(&mut self, changes: &Changes) -> Result<Applied> {
        let rows = self.as_stored(&changes.rows)?;
        self.check_not_null(changes, &rows)?;
        let mut applied = Applied {
            written: rows.num_rows() as u64,
            ..Applied::default()
        };
        let mut keys = Keys::new();
        let mut new = Vec::new();
        if self.key.is_empty() {
            changes.only_inserts()?;
            new.extend(0..rows.num_rows());
            applied.inserted = applied.written;
        } else {
            keys = self.keys_of(&rows)?;
            let wanted: Vec<Wanted> = self
                .key
                .iter()
                .filter_map(|k| Wanted::of(&self.schema.columns[*k].name, rows.column(*k)))
                .collect();
            for at in 0..self.files.len() {
                self.find(at, &wanted, &mut keys)
                    .map_err(|e| e.at("file", self.files[at].file.name.clone()))?;
            }
            for touched in keys.values().filter(|t| t.place.is_none()) {
                if let Outcome::Given { row, .. } = self.decide(changes, &rows, touched, None, &mut applied)? {
                    new.push(row);
                }
            }
            new.sort_unstable();
        }
        let receiver = self.receiver();
        let mut holding: BTreeMap<usize, Vec<(usize, &Touched)>> = BTreeMap::new();
        for touched in keys.values() {
            if let Some((file, row)) = touched.place {
                holding.entry(file).or_default().push((row, touched));
            }
        }
        if let (Some(last), false) = (receiver, new.is_empty()) {
            holding.entry(last).or_default();
        }
        for (at, mut touched) in holding {
            touched.sort_unstable_by_key(|(row, _)| *row);
            let behind: &[usize] = match receiver == Some(at) {
                true => &new,
                false => &[],
            };
            self.rewrite(at, changes, &rows, &touched, behind, &mut applied)?;
        }
        if receiver.is_none() {
            self.write_new(&rows, &new)?;
        }
        // Those of which nothing is left.
        self.files.retain(|m| m.file.rows != Some(0));
        Ok(applied)
    }

    /// The file that new rows go behind.
    fn receiver(&self) -> Option<usize> {
        let last = self.files.len().checked_sub(1)?;
        (self.shape == Shape::File || self.files[last].file.bytes < SMALL).then_some(last)
    }

    /// Rows as they are written, in the table's columns and types.
    fn as_stored(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let arrays = self
            .schema
            .columns
            .iter()
            .zip(&self.places)
            .map(|(column, place)| match place {
                Some(at) => carried(rows.column(*at), column),
                None => Ok(new_null_array(&column.arrow_type(), rows.num_rows())),
            })
            .collect::<Result<Vec<_>>>()?;
        self.batch(arrays, rows.num_rows())
    }

    fn check_not_null(&self, changes: &Changes, rows: &RecordBatch) -> Result<()> {
        for (column, array) in self.schema.columns.iter().zip(rows.columns()) {
            if column.nullable || array.null_count() == 0 {
                continue;
            }
            for row in (0..array.len()).filter(|row| array.is_null(*row)) {
                if changes.op(row)? != Op::Delete {
                    return Err(Error::new(
                        code::CONSTRAINT,
                        format!("column {} is NOT NULL and a row has NULL there", column.name),
                    )
                    .hint("filter such rows, or replace the table with one that allows NULL"));
                }
            }
        }
        Ok(())
    }

    fn batch(&self, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.schema.arrow_schema(), arrays, &options).map_err(bug)
    }

    /// The keys that came, each with its changes in order.
    fn keys_of(&self, rows: &RecordBatch) -> Result<Keys> {
        let columns: Vec<ArrayRef> = self.key.iter().map(|k| rows.column(*k).clone()).collect();
        let forms = Forms::new(&columns, self.key_types())?;
        let mut keys = Keys::with_capacity(rows.num_rows());
        let mut form = Vec::new();
        for row in 0..rows.num_rows() {
            if !forms.write(row, &mut form)? {
                return Err(Error::without_key());
            }
            match keys.get_mut(form.as_slice()) {
                Some(touched) => touched.changes.push(row as u32),
                None => {
                    let touched = Touched {
                        changes: vec![row as u32],
                        place: None,
                    };
                    keys.insert(form.as_slice().into(), touched);
                }
            }
        }
        Ok(keys)
    }

    fn key_types(&self) -> impl Iterator<Item = &ColumnType> {
        self.key.iter().map(|k| &self.schema.columns[*k].ty)
    }

    /// Notes which keys a file holds.
    fn find(&mut self, at: usize, wanted: &[Wanted], keys: &mut Keys) -> Result<()> {
        let runs: Vec<Option<Run>> = match &self.format {
            Format::Csv(_) => vec![None],
            Format::Parquet(_) => {
                let path = self.path(&self.files[at]);
                let footer = parquet::footer(&path)?;
                prune::runs(&path, &footer, wanted)?.into_iter().map(Some).collect()
            }
        };
        let (types, mut form) = (self.key_types().cloned().collect::<Vec<_>>(), Vec::new());
        for run in runs {
            let mut reading = self.open(at, &self.key, run.map(|r| (r.0, r.1)))?;
            let mut row = run.map_or(0, |r| r.2 as usize);
            while let Some(columns) = reading.next()? {
                let forms = Forms::new(&columns, types.iter())?;
                for i in 0..reading.height {
                    if forms.write(i, &mut form)?
                        && let Some(touched) = keys.get_mut(form.as_slice())
                    {
                        if touched.place.replace((at, row + i)).is_some() {
                            return Err(Error::new(code::DUPLICATE_KEY, "two stored rows have the same key")
                                .hint("put the files right, or replace the table with full_mode: swap"));
                        }
                        let seen = &mut self.files[at].seen;
                        if row + i < seen.len() {
                            seen.set_bit(row + i, true);
                        }
                    }
                }
                row += reading.height;
            }
        }
        Ok(())
    }

    /// What its changes make of a row, and what each of them did.
    fn decide(
        &self,
        changes: &Changes,
        rows: &RecordBatch,
        touched: &Touched,
        stored: Option<(&[ArrayRef], usize)>,
        applied: &mut Applied,
    ) -> Result<Outcome> {
        let mut now = match stored {
            Some(_) => Outcome::Stored,
            None => Outcome::Gone,
        };
        for row in touched.changes.iter().map(|row| *row as usize) {
            let same = |there: &[ArrayRef], at: usize| -> Result<bool> {
                for (place, _) in self.places.iter().enumerate().filter(|(_, p)| p.is_some()) {
                    if !same_value(&there[place], at, rows.column(place), row)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            };
            let given = |keeps| Outcome::Given { row, keeps };
            now = match (changes.op(row)?, now) {
                (Op::Delete, Outcome::Gone) | (Op::Update, Outcome::Gone) => {
                    applied.unchanged += 1;
                    Outcome::Gone
                }
                (Op::Delete, _) => {
                    applied.deleted += 1;
                    Outcome::Gone
                }
                (_, Outcome::Gone) => {
                    applied.inserted += 1;
                    given(false)
                }
                (_, there) => {
                    let (equal, keeps) = match (there, stored) {
                        (Outcome::Given { row: before, keeps }, _) => (same(rows.columns(), before)?, keeps),
                        (_, Some((columns, at))) => (same(columns, at)?, true),
                        (_, None) => return Err(Error::bug("a stored row that is not stored")),
                    };
                    match equal {
                        true => {
                            applied.unchanged += 1;
                            there
                        }
                        false => {
                            applied.updated += 1;
                            given(keeps)
                        }
                    }
                }
            };
        }
        Ok(now)
    }

    /// Writes a file anew, if anything in it changes.
    fn rewrite(
        &mut self,
        at: usize,
        changes: &Changes,
        rows: &RecordBatch,
        touched: &[(usize, &Touched)],
        behind: &[usize],
        applied: &mut Applied,
    ) -> Result<()> {
        let in_file = |e: Error| e.at("file", self.files[at].file.name.clone());
        let all: Vec<usize> = (0..self.schema.columns.len()).collect();
        let mut out = self.output();
        let mut changed = !behind.is_empty();
        let mut reading = self.open(at, &all, None).map_err(in_file)?;
        let mut touched = touched.iter().peekable();
        let mut first = 0;
        while let Some(columns) = reading.next().map_err(in_file)? {
            let height = reading.height;
            // Where each row's written columns come from, and its others: 0 is the file, 1 the changes.
            let (mut written, mut others) = (Vec::new(), Vec::new());
            let mut differs = false;
            // Most rows lie in batches that nothing touches.
            let whole = touched.peek().is_none_or(|(row, _)| *row >= first + height);
            for row in (0..height).filter(|_| !whole) {
                let outcome = match touched.next_if(|(at, _)| *at == first + row) {
                    Some((_, touched)) => self.decide(changes, rows, touched, Some((&columns, row)), applied)?,
                    None => Outcome::Stored,
                };
                differs |= outcome != Outcome::Stored;
                match outcome {
                    Outcome::Gone => {}
                    Outcome::Stored => {
                        written.push((0, row));
                        others.push((0, row));
                    }
                    Outcome::Given { row: given, keeps } => {
                        written.push((1, given));
                        others.push(if keeps { (0, row) } else { (1, given) });
                    }
                }
            }
            first += height;
            let batch = match differs {
                false => self.batch(columns, height)?,
                true => {
                    let arrays = columns
                        .iter()
                        .zip(rows.columns())
                        .zip(&self.places)
                        .map(|((stored, given), place)| {
                            let picks = if place.is_some() { &written } else { &others };
                            interleave(&[stored.as_ref(), given.as_ref()], picks).map_err(bug)
                        })
                        .collect::<Result<Vec<_>>>()?;
                    self.batch(arrays, written.len())?
                }
            };
            changed |= differs;
            out.write(&batch)?;
        }
        for some in behind.chunks(BATCH_ROWS) {
            out.write(&picked(rows, some)?)?;
        }
        if touched.next().is_some() {
            return Err(in_file(Error::bug("a row that was found is not there any more")));
        }
        if !changed {
            return out.discard();
        }
        let file = out.finish()?;
        let mut seen = std::mem::replace(&mut self.files[at].seen, noted(None, true));
        if self.noting {
            seen.append_n(behind.len(), true);
        }
        self.put(at, file, seen)
    }

    /// Writes rows with new keys into a file of their own.
    fn write_new(&mut self, rows: &RecordBatch, new: &[usize]) -> Result<()> {
        if new.is_empty() {
            return Ok(());
        }
        let mut out = self.output();
        for some in new.chunks(BATCH_ROWS) {
            out.write(&picked(rows, some)?)?;
        }
        let file = out.finish()?;
        self.number += 1;
        self.changed = true;
        self.files.push(Member {
            seen: noted(file.rows.filter(|_| self.noting), true),
            file,
            fresh: true,
        });
        Ok(())
    }

    /// Of how many rows the keys never came.
    pub(super) fn unseen(&self) -> u64 {
        self.files
            .iter()
            .map(|m| (m.seen.len() - m.seen.finish_cloned().count_set_bits()) as u64)
            .sum()
    }

    /// Takes the rows away whose keys never came.
    pub(super) fn forget_unseen(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.schema.columns.len()).collect();
        for at in 0..self.files.len() {
            let seen = self.files[at].seen.finish_cloned();
            if seen.count_set_bits() == seen.len() {
                continue;
            }
            let in_file = |e: Error| e.at("file", self.files[at].file.name.clone());
            let mut out = self.output();
            let mut reading = self.open(at, &all, None).map_err(in_file)?;
            let mut first = 0;
            while let Some(columns) = reading.next().map_err(in_file)? {
                let height = reading.height;
                if first + height > seen.len() {
                    return Err(in_file(Error::bug("a file has more rows than it had")));
                }
                let (batch, some) = (self.batch(columns, height)?, seen.slice(first, height));
                out.write(&filter_record_batch(&batch, &some.into()).map_err(bug)?)?;
                first += height;
            }
            let file = out.finish()?;
            let seen = noted(file.rows, true);
            self.put(at, file, seen)?;
        }
        self.files.retain(|m| m.file.rows != Some(0));
        Ok(())
    }

    /// A file takes another's place.
    fn put(&mut self, at: usize, file: DataFile, seen: BooleanBufferBuilder) -> Result<()> {
        self.number += 1;
        self.changed = true;
        let member = Member {
            file,
            fresh: true,
            seen,
        };
        let old = std::mem::replace(&mut self.files[at], member);
        let empty = self.files[at].file.rows == Some(0);
        if empty {
            self.drop_file(&self.files[at])?;
        }
        self.drop_file(&old)
    }

    /// A file that nobody knows yet goes at once, to save space.
    fn drop_file(&self, member: &Member) -> Result<()> {
        match member.fresh {
            true => store::remove(&self.dir.join(&member.file.name)),
            false => Ok(()),
        }
    }

    fn path(&self, member: &Member) -> PathBuf {
        match member.fresh {
            true => self.dir.join(&member.file.name),
            false => self.root.join(&member.file.name),
        }
    }

    fn output(&self) -> Output {
        let name = format!("{}{:05}.{}", self.prefix, self.number, extension(&self.format));
        Output::new(&self.dir, name, &self.schema, &self.format)
    }

    /// Columns of a file, of all rows or of some row groups.
    fn open(&self, at: usize, columns: &[usize], groups: Option<(usize, usize)>) -> Result<Columns> {
        let member = &self.files[at];
        let wanted: Vec<Column> = columns.iter().map(|c| self.schema.columns[*c].clone()).collect();
        let known = (self.known || member.fresh).then_some(&self.schema);
        Columns::open(&self.path(member), &member.file, wanted, (&self.format, known), groups)
    }

    /// The files as they are now, if anything changed. A table without rows has a file that says its columns.
    pub(super) fn finish(mut self) -> Result<Option<Changed>> {
        if !self.changed {
            return Ok(None);
        }
        if self.files.is_empty() {
            let mut out = self.output();
            out.begin(None)?;
            let file = out.finish()?;
            self.files.push(Member {
                seen: noted(None, true),
                file,
                fresh: true,
            });
        }
        self.kept = true;
        let fresh = self.files.iter().filter(|m| m.fresh);
        Ok(Some(Changed {
            fresh: fresh.map(|m| m.file.name.clone()).collect(),
            files: self.files.iter().map(|m| m.file.clone()).collect(),
        }))
    }
}

impl Drop for View {
    /// What was written in vain goes: after a full disk that is what helps.
    fn drop(&mut self) {
        if !self.kept {
            for member in &self.files {
                let _ = self.drop_file(member);
            }
        }
    }
}

/// A note per row of a file, where rows are noted.
fn noted(rows: Option<u64>, seen: bool) -> BooleanBufferBuilder {
    let rows = rows.unwrap_or(0) as usize;
    let mut notes = BooleanBufferBuilder::new(rows);
    notes.append_n(rows, seen);
    notes
}

fn picked(rows: &RecordBatch, which: &[usize]) -> Result<RecordBatch> {
    let places = UInt32Array::from_iter_values(which.iter().map(|row| *row as u32));
    take_record_batch(rows, &places).map_err(bug)
}

/// Whether two cells of one type hold the same value, in every digit.
fn same_value(a: &ArrayRef, i: usize, b: &ArrayRef, k: usize) -> Result<bool> {
    Ok(text::cell(a.as_ref(), i)? == text::cell(b.as_ref(), k)?)
}

fn bug(e: ArrowError) -> Error {
    Error::bug(format!("rows of a table of files: {e}"))
}
