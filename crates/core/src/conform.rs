//! The last step before the sink: the columns that are written, in their order and in the form they travel in.

use crate::change::{ChangeBatch, Op, Ops, Presence};
use crate::error::{Error, Result};
use crate::plan::{Changes, PlannedTable};
use crate::schema::{Column, TableSchema};
use crate::text::{self, ColumnBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, UInt8Array};
use arrow_schema::DataType;

/// Whether rows of this table need anything done to them at all.
pub fn is_needed(table: &PlannedTable, staged: bool) -> bool {
    let same = table.read.columns.len() == table.schema.columns.len()
        && table
            .read
            .columns
            .iter()
            .zip(&table.schema.columns)
            .all(|(r, w)| r.column.name == w.name && r.column.arrow_type() == w.arrow_type());
    staged || !same
}

/// Brings a batch into the schema that is written: columns by name, others dropped, values carried as the sink wants
/// them.
pub fn conform(batch: ChangeBatch, schema: &TableSchema) -> Result<ChangeBatch> {
    let places: Vec<usize> = schema
        .columns
        .iter()
        .map(|c| {
            batch
                .rows
                .schema_ref()
                .index_of(&c.name)
                .map_err(|_| Error::bug(format!("column {} was lost on the way", c.name)))
        })
        .collect::<Result<_>>()?;
    let rows = project(&batch.rows, &places, schema)?;
    let before = batch.before.as_ref().map(|b| project(b, &places, schema)).transpose()?;
    let present = batch
        .present
        .map(|p| Presence(places.iter().map(|&i| p.0.get(i).cloned().flatten()).collect()));
    Ok(ChangeBatch {
        rows,
        before,
        present,
        ..batch
    })
}

fn project(rows: &RecordBatch, places: &[usize], schema: &TableSchema) -> Result<RecordBatch> {
    let arrays = places
        .iter()
        .zip(&schema.columns)
        .map(|(&i, column)| carried(rows.column(i), column))
        .collect::<Result<Vec<ArrayRef>>>()?;
    RecordBatch::try_new_with_options(
        schema.arrow_schema(),
        arrays,
        &arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows())),
    )
    .map_err(|e| Error::bug(format!("rows do not fit the planned table: {e}")))
}

/// The same values in the form the column travels in; other forms meet in canonical text.
fn carried(array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
    if *array.data_type() == column.arrow_type() {
        return Ok(array.clone());
    }
    let mut builder = ColumnBuilder::new(column);
    for row in 0..array.len() {
        match text::cell(array.as_ref(), row)? {
            Some(value) => builder.append_text(&value).map_err(|e| e.at("column", &column.name))?,
            None => builder.append_null(),
        }
    }
    Ok(builder.finish())
}

/// Makes changes of rows that were read: inserts become upserts, and rows that are gone become deletes.
pub fn as_changes(batch: ChangeBatch, changes: &Changes) -> Result<ChangeBatch> {
    let Ops::All(Op::Insert) = batch.ops else {
        return Ok(batch);
    };
    let column = |name: &Option<String>| -> Result<Option<ArrayRef>> {
        name.as_ref()
            .map(|name| {
                batch
                    .rows
                    .column_by_name(name)
                    .cloned()
                    .ok_or_else(|| Error::bug(format!("column {name} was lost on the way")))
            })
            .transpose()
    };
    let ops = match column(&changes.tombstone)? {
        None => Ops::All(Op::Upsert),
        Some(tombstone) => Ops::Each(UInt8Array::from_iter_values((0..batch.len()).map(
            |row| match says_gone(&tombstone, row) {
                true => Op::Delete as u8,
                false => Op::Upsert as u8,
            },
        ))),
    };
    Ok(ChangeBatch { ops, ..batch })
}

fn says_true(array: &ArrayRef, row: usize) -> bool {
    match array.data_type() {
        DataType::Boolean => array.is_valid(row) && array.as_boolean().value(row),
        _ => matches!(text::cell(array.as_ref(), row), Ok(Some(v)) if matches!(v.as_str(), "true" | "t" | "1")),
    }
}

/// True, a number that is not zero, or anything else but NULL.
fn says_gone(array: &ArrayRef, row: usize) -> bool {
    match array.data_type() {
        DataType::Boolean => says_true(array, row),
        _ if array.is_null(row) => false,
        t if t.is_numeric() => matches!(text::cell(array.as_ref(), row), Ok(Some(v)) if v != "0"),
        _ => true,
    }
}
