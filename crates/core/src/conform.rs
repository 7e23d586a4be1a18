//! The last step before the sink: the columns that are written, in their order and in the form they travel in.

use crate::blocks::{digest, push_field};
use crate::change::{ChangeBatch, Op, Ops, Presence};
use crate::error::{Error, Result};
use crate::plan::{Changes, PlannedTable, StoredForm, StoredHash};
use crate::schema::{Column, ColumnType, TableSchema};
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
/// them. The hash of a row is made here, of the values as they are written.
pub fn conform(batch: ChangeBatch, table: &PlannedTable) -> Result<ChangeBatch> {
    let (schema, hash) = (&table.schema, table.row_hash.as_ref());
    let places: Vec<Option<usize>> = schema
        .columns
        .iter()
        .map(|c| match hash.is_some_and(|h| h.column == c.name) {
            true => Ok(None),
            false => batch
                .rows
                .schema_ref()
                .index_of(&c.name)
                .map(Some)
                .map_err(|_| Error::bug(format!("column {} was lost on the way", c.name))),
        })
        .collect::<Result<_>>()?;
    if hash.is_some() && batch.present.is_some() {
        return Err(Error::bug("the hash of a row that is not whole"));
    }
    let rows = project(&batch.rows, &places, schema, hash)?;
    let before = batch
        .before
        .as_ref()
        .map(|b| project(b, &places, schema, hash))
        .transpose()?;
    let present = batch.present.map(|p| {
        let of = |place: &Option<usize>| place.and_then(|i| p.0.get(i).cloned().flatten());
        Presence(places.iter().map(of).collect())
    });
    Ok(ChangeBatch {
        rows,
        before,
        present,
        ..batch
    })
}

fn project(
    rows: &RecordBatch,
    places: &[Option<usize>],
    schema: &TableSchema,
    hash: Option<&StoredHash>,
) -> Result<RecordBatch> {
    let mut arrays = places
        .iter()
        .zip(&schema.columns)
        .map(|(place, column)| match place {
            Some(i) => carried(rows.column(*i), column),
            // Filled below, when what is hashed stands.
            None => Ok(arrow_array::new_null_array(&column.arrow_type(), rows.num_rows())),
        })
        .collect::<Result<Vec<ArrayRef>>>()?;
    if let Some(hash) = hash
        && let Some(place) = schema.index_of(&hash.column)
    {
        arrays[place] = row_hashes(hash, &arrays, schema, &schema.columns[place], rows.num_rows())?;
    }
    RecordBatch::try_new_with_options(
        schema.arrow_schema(),
        arrays,
        &arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows())),
    )
    .map_err(|e| Error::bug(format!("rows do not fit the planned table: {e}")))
}

/// The hash of each row's canonical form ([`crate::blocks`]).
fn row_hashes(
    hash: &StoredHash,
    arrays: &[ArrayRef],
    schema: &TableSchema,
    column: &Column,
    rows: usize,
) -> Result<ArrayRef> {
    let of = hash
        .of
        .iter()
        .map(|name| {
            schema
                .index_of(name)
                .map(|place| (&arrays[place], &schema.columns[place].ty))
                .ok_or_else(|| Error::bug(format!("column {name} is hashed and not written")))
        })
        .collect::<Result<Vec<_>>>()?;
    let mut builder = ColumnBuilder::new(column);
    let mut form = Vec::new();
    for row in 0..rows {
        form.clear();
        for (array, ty) in &of {
            push_field(&mut form, ty, text::cell(array.as_ref(), row)?.as_deref())?;
        }
        let digest = digest(&form);
        builder.append_text(&match (hash.form, &column.ty) {
            (StoredForm::Sum, _) => (digest >> 96).to_string(),
            (StoredForm::Md5, ColumnType::Int64) => ((digest >> 64) as u64 as i64).to_string(),
            (StoredForm::Md5, _) => format!("{digest:032x}"),
        })?;
    }
    Ok(builder.finish())
}

/// The same values in the form the column travels in; other forms meet in canonical text.
pub fn carried(array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
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
            |row| match says_gone(&tombstone, row, changes.tombstone_value.as_deref()) {
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

/// The value that was named; else true, a number that is not zero, or anything else but NULL.
fn says_gone(array: &ArrayRef, row: usize, named: Option<&str>) -> bool {
    match array.data_type() {
        _ if named.is_some() => {
            let cell = text::cell(array.as_ref(), row).ok().flatten();
            named.zip(cell).is_some_and(|(named, cell)| named == cell)
        }
        DataType::Boolean => says_true(array, row),
        _ if array.is_null(row) => false,
        t if t.is_numeric() => matches!(text::cell(array.as_ref(), row), Ok(Some(v)) if v != "0"),
        _ => true,
    }
}
