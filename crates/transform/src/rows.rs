//! What stages do to batches: reading their columns, replacing some, dropping or refusing rows, with ops, presence and
//! the rows before kept right.

use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt8Array, UInt32Array};
use arrow_buffer::BooleanBuffer;
use arrow_schema::SchemaRef;
use arrow_select::interleave::interleave;
use arrow_select::take::take;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Op, Ops, Presence};
use synctool_core::error::{Among, Error, Result};
use synctool_core::schema::{Column, TableSchema};
use synctool_core::stage::Reject;
use synctool_core::text;

/// A row that has no value, by its place, and why.
pub(crate) type Failure = (usize, &'static str);

/// Rows that are refused, by their places: the column that could not be made, and why.
pub(crate) type Refused = BTreeMap<usize, (Option<String>, &'static str)>;

/// The columns of a batch, as its schema's metadata says.
pub(crate) fn columns_of(schema: &SchemaRef) -> Result<Vec<Column>> {
    TableSchema::from_arrow_metadata(schema)
        .ok_or_else(|| Error::bug("a batch without column metadata reached a stage"))
}

/// The place of a column, or an error that names those there are.
pub(crate) fn place(columns: &[Column], name: &str) -> Result<usize> {
    columns.iter().position(|c| c.name == name).ok_or_else(|| {
        Error::no_column(Among::Rows, name, format!("column {name} is not in the pipeline")).hint(
            crate::position::did_you_mean(name, columns.iter().map(|c| c.name.as_str())),
        )
    })
}

/// Something worked out once per schema of batches.
#[derive(Debug)]
pub(crate) struct PerSchema<T>(Option<(SchemaRef, T)>);

impl<T> Default for PerSchema<T> {
    fn default() -> Self {
        PerSchema(None)
    }
}

impl<T> PerSchema<T> {
    /// What was worked out for this schema, now or before.
    pub(crate) fn get(&mut self, schema: &SchemaRef, make: impl FnOnce(Vec<Column>) -> Result<T>) -> Result<&mut T> {
        let known = self
            .0
            .as_ref()
            .is_some_and(|(s, _)| Arc::ptr_eq(s, schema) || s == schema);
        if !known {
            self.0 = Some((schema.clone(), make(columns_of(schema)?)?));
        }
        match &mut self.0 {
            Some((_, value)) => Ok(value),
            None => Err(Error::bug("nothing was worked out for a schema")),
        }
    }
}

/// A batch taken apart into columns.
pub(crate) struct Parts {
    pub(crate) columns: Vec<Column>,
    pub(crate) arrays: Vec<ArrayRef>,
    /// `None`: every row has a value.
    pub(crate) present: Vec<Option<BooleanBuffer>>,
    pub(crate) before: Option<Vec<ArrayRef>>,
}

impl Parts {
    pub(crate) fn of(batch: &ChangeBatch) -> Result<Parts> {
        let columns = columns_of(&batch.rows.schema())?;
        let present = match &batch.present {
            Some(p) => p.0.clone(),
            None => vec![None; columns.len()],
        };
        Ok(Parts {
            columns,
            arrays: batch.rows.columns().to_vec(),
            present,
            before: batch.before.as_ref().map(|b| b.columns().to_vec()),
        })
    }

    /// Replaces the column of that name, or adds it.
    pub(crate) fn set(
        &mut self,
        column: Column,
        array: ArrayRef,
        present: Option<BooleanBuffer>,
        before: Option<ArrayRef>,
    ) {
        let at = self.columns.iter().position(|c| c.name == column.name);
        let before = before.unwrap_or_else(|| arrow_array::new_null_array(array.data_type(), array.len()));
        match at {
            Some(at) => {
                self.columns[at] = column;
                self.arrays[at] = array;
                self.present[at] = present;
                if let Some(b) = &mut self.before {
                    b[at] = before;
                }
            }
            None => {
                self.columns.push(column);
                self.arrays.push(array);
                self.present.push(present);
                if let Some(b) = &mut self.before {
                    b.push(before);
                }
            }
        }
    }

    /// The batch again, with the ops it had.
    pub(crate) fn into_batch(self, from: ChangeBatch, schema: &SchemaRef) -> Result<ChangeBatch> {
        let rows = from.len();
        let present = self
            .present
            .iter()
            .any(Option::is_some)
            .then_some(Presence(self.present));
        ChangeBatch::new(
            from.table,
            record(schema, self.arrays, rows)?,
            from.ops,
            present,
            self.before.map(|b| record(schema, b, rows)).transpose()?,
            from.hold,
        )
    }
}

pub(crate) fn record(schema: &SchemaRef, arrays: Vec<ArrayRef>, rows: usize) -> Result<RecordBatch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(schema.clone(), arrays, &options)
        .map_err(|e| Error::bug(format!("a stage made columns that do not fit: {e}")))
}

/// The Arrow schema of columns.
pub(crate) fn arrow_schema(columns: &[Column]) -> SchemaRef {
    TableSchema {
        columns: columns.to_vec(),
        key: Vec::new(),
    }
    .arrow_schema()
}

/// Whether the row has values in all of these columns.
pub(crate) fn has_all(batch: &ChangeBatch, columns: &[usize], row: usize) -> bool {
    batch
        .present
        .as_ref()
        .is_none_or(|p| columns.iter().all(|c| p.has(*c, row)))
}

/// Which rows have values in all of these columns; `None`: every one.
pub(crate) fn presence_of_all(batch: &ChangeBatch, columns: &[usize]) -> Option<BooleanBuffer> {
    let present = batch.present.as_ref()?;
    let mut all: Option<BooleanBuffer> = None;
    for column in columns {
        if let Some(rows) = present.0.get(*column).and_then(Option::as_ref) {
            all = Some(match all {
                None => rows.clone(),
                Some(before) => &before & rows,
            });
        }
    }
    all
}

/// Some rows of a batch, in that order, perhaps several times.
pub(crate) fn pick(batch: &ChangeBatch, rows: &[u32]) -> Result<ChangeBatch> {
    let indices = UInt32Array::from(rows.to_vec());
    let picked = |from: &RecordBatch| -> Result<RecordBatch> {
        let arrays = from
            .columns()
            .iter()
            .map(|c| take(c, &indices, None).map_err(|e| Error::bug(format!("picking rows: {e}"))))
            .collect::<Result<_>>()?;
        record(&from.schema(), arrays, rows.len())
    };
    let ops = match &batch.ops {
        Ops::All(op) => Ops::All(*op),
        Ops::Each(values) => Ops::Each(
            rows.iter()
                .map(|r| values.value(*r as usize))
                .collect::<Vec<u8>>()
                .into(),
        ),
    };
    let present = batch.present.as_ref().map(|p| {
        let columns = p.0.iter().map(|column| {
            column
                .as_ref()
                .map(|b| BooleanBuffer::collect_bool(rows.len(), |i| b.value(rows[i] as usize)))
        });
        Presence(columns.collect())
    });
    ChangeBatch::new(
        batch.table.clone(),
        picked(&batch.rows)?,
        ops,
        present,
        batch.before.as_ref().map(picked).transpose()?,
        batch.hold.clone(),
    )
}

/// The batch without some rows.
pub(crate) fn without(batch: ChangeBatch, gone: &Refused) -> Result<ChangeBatch> {
    if gone.is_empty() {
        return Ok(batch);
    }
    let rows: Vec<u32> = (0..batch.len())
        .filter(|r| !gone.contains_key(r))
        .map(|r| r as u32)
        .collect();
    pick(&batch, &rows)
}

/// The rejects for some rows, by their places, with the column and the reason.
pub(crate) fn rejects(stage: &str, batch: &ChangeBatch, key: &[String], rows: &Refused) -> Result<Vec<Reject>> {
    let schema = batch.rows.schema();
    rows.iter()
        .map(|(row, (column, reason))| {
            let mut values = Vec::with_capacity(key.len());
            for name in key {
                if let Ok(at) = schema.index_of(name) {
                    values.push((name.clone(), text::cell(batch.rows.column(at), *row)?));
                }
            }
            Ok(Reject {
                stage: stage.to_string(),
                table: batch.table.clone(),
                reason,
                column: column.clone(),
                key: values,
            })
        })
        .collect()
}

/// What becomes of a row that a condition does not let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It goes on.
    Through,
    /// It goes on if it is a delete, and is dropped or deleted otherwise.
    Stopped,
    /// It is refused.
    Refused(&'static str),
}

/// The outcome of a condition over a batch.
pub(crate) struct Passed {
    pub(crate) batch: ChangeBatch,
    pub(crate) filtered: u64,
    pub(crate) refused: Refused,
}

/// Lets rows through by a condition. New rows that do not meet it are dropped. Changed rows that do not meet it any more
/// become deletes of the row as it was, and changed rows that meet it are written whole, since the row before may not
/// have met it. Deletes pass.
pub(crate) fn let_through(batch: ChangeBatch, key: &[String], passage: impl Fn(usize) -> Passage) -> Result<Passed> {
    let mut kept = Vec::with_capacity(batch.len());
    let mut ops = Vec::with_capacity(batch.len());
    let mut refused = BTreeMap::new();
    let mut filtered = 0;
    let mut deleted = Vec::new();
    let whole = |row: usize| has_all(&batch, &(0..batch.rows.num_columns()).collect::<Vec<_>>(), row);
    for row in 0..batch.len() {
        let op = batch.ops.get(row);
        let op = match (op, passage(row)) {
            (Op::Delete, _) => Op::Delete,
            (_, Passage::Refused(reason)) => {
                refused.insert(row, (None, reason));
                continue;
            }
            (Op::Update, Passage::Through) if batch.before.is_none() && whole(row) => Op::Upsert,
            (op, Passage::Through) => op,
            (Op::Insert, Passage::Stopped) => {
                filtered += 1;
                continue;
            }
            (_, Passage::Stopped) => {
                deleted.push(kept.len());
                Op::Delete
            }
        };
        kept.push(row as u32);
        ops.push(op as u8);
    }
    let same = matches!(&batch.ops, Ops::All(op) if ops.iter().all(|o| *o == *op as u8));
    if same && kept.len() == batch.len() {
        return Ok(Passed {
            batch,
            filtered,
            refused,
        });
    }
    let mut out = pick(&batch, &kept)?;
    if !same {
        out.ops = Ops::Each(UInt8Array::from(ops));
    }
    if !deleted.is_empty() && out.before.is_some() {
        out = with_old_keys(out, key, &deleted)?;
    }
    Ok(Passed {
        batch: out,
        filtered,
        refused,
    })
}

/// Deletes name the row as it was: under its old key.
fn with_old_keys(mut batch: ChangeBatch, key: &[String], rows: &[usize]) -> Result<ChangeBatch> {
    let Some(before) = &batch.before else {
        return Ok(batch);
    };
    let schema = batch.rows.schema();
    let mut arrays = batch.rows.columns().to_vec();
    for name in key {
        let Ok(at) = schema.index_of(name) else { continue };
        let old = before.column(at);
        let indices: Vec<(usize, usize)> = (0..batch.len())
            .map(|row| (usize::from(rows.contains(&row) && old.is_valid(row)), row))
            .collect();
        let both: [&dyn Array; 2] = [arrays[at].as_ref(), old.as_ref()];
        arrays[at] = interleave(&both, &indices).map_err(|e| Error::bug(format!("old keys: {e}")))?;
    }
    batch.rows = record(&schema, arrays, batch.len())?;
    Ok(batch)
}
