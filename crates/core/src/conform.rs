//! The last step before the sink: the columns that are written, in their order and in the form they travel in.

use crate::blocks::{digest, form_of, push_field};
use crate::change::{ChangeBatch, Op, Ops, Presence};
use crate::error::{Error, Result};
use crate::plan::{PlannedTable, StoredForm, StoredHash};
use crate::query::Test;
use crate::schema::{Column, ColumnType, TableSchema};
use crate::strategy::delta;
use crate::text::{self, ColumnBuilder};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt8Array};

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
        let value = text::cell(array.as_ref(), row)?;
        builder
            .append_cell(value.as_deref())
            .map_err(|e| e.at("column", &column.name))?;
    }
    Ok(builder.finish())
}

/// Makes changes of rows that were read: inserts become upserts, and rows that are gone become deletes.
pub fn as_changes(batch: ChangeBatch, table: &PlannedTable) -> Result<ChangeBatch> {
    let Some(changes) = &table.changes else {
        return Ok(batch);
    };
    let Ops::All(Op::Insert) = batch.ops else {
        return Ok(batch);
    };
    let ops = match &changes.tombstone {
        None => Ops::All(Op::Upsert),
        Some(name) => tombstones(&batch, table, name, changes.tombstone_value.as_deref())?,
    };
    Ok(ChangeBatch { ops, ..batch })
}

/// What a tombstone column says of each row. Its cells are judged by the type it has at the source, whatever form they
/// travel in, and by the condition that living rows meet there.
fn tombstones(batch: &ChangeBatch, table: &PlannedTable, name: &str, value: Option<&str>) -> Result<Ops> {
    let lost = || Error::bug(format!("column {name} was lost on the way"));
    let cells = batch.rows.column_by_name(name).ok_or_else(lost)?;
    let read = table.read.columns.iter().find(|c| c.column.name == name);
    let ty = &read.ok_or_else(lost)?.column.ty;
    let living = delta::living(ty, value)?;
    let op = |row| -> Result<u8> {
        let cell = text::cell(cells.as_ref(), row)?;
        Ok(match cell.is_some_and(|cell| is_gone(&cell, ty, &living)) {
            true => Op::Delete as u8,
            false => Op::Upsert as u8,
        })
    };
    let ops: Vec<u8> = (0..batch.len()).map(op).collect::<Result<_>>()?;
    Ok(Ops::Each(UInt8Array::from(ops)))
}

/// Whether a cell that is not NULL is none that living rows have.
fn is_gone(cell: &str, ty: &ColumnType, living: &Test) -> bool {
    let among = |values: &[String]| values.iter().any(|value| is_same(value, cell, ty));
    match living {
        Test::NullOrIn(values) => !among(values),
        Test::NullOrNotIn(values) => among(values),
        _ => true,
    }
}

/// Whether two texts are one value of a type: `0.00` is `0`, and blanks behind a char are no part of it. What is no value
/// of its type (MariaDB's booleans may be 2) is only equal to itself.
fn is_same(a: &str, b: &str, ty: &ColumnType) -> bool {
    let form = |value| form_of([(ty, Some(value))]);
    match (form(a), form(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a cell of a type says that its row is gone, in whatever form it travels.
    fn gone(ty: ColumnType, value: Option<&str>, cell: &str) -> bool {
        let living = delta::living(&ty, value).unwrap();
        is_gone(cell, &ty, &living)
    }

    #[test]
    fn a_tombstone_is_judged_by_its_type() {
        use ColumnType::*;
        let decimal = Decimal { precision: 3, scale: 2 };
        for (ty, living, dead) in [
            (Bool, &["false", "f", "0"][..], &["true", "t", "1", "2", "-1"][..]),
            (UInt8, &["0"], &["1", "255"]),
            (Int32, &["0"], &["1", "-1"]),
            (UInt64, &["0"], &["18446744073709551615"]),
            (decimal, &["0", "0.00", "-0.00"], &["0.01", "1.00", "NaN"]),
            (Numeric, &["0", "0.000"], &["0.001", "NaN"]),
            (Float64, &["0", "-0", "0.0"], &["1", "0.5", "NaN", "Infinity"]),
            (Float32, &["0"], &["1e-30"]),
            (Text { max: None }, &[], &["", "0", "no"]),
            (TimestampTz, &[], &["2026-01-01 00:00:00+00"]),
        ] {
            assert!(living.iter().all(|cell| !gone(ty.clone(), None, cell)), "{ty}");
            assert!(dead.iter().all(|cell| gone(ty.clone(), None, cell)), "{ty}");
        }
    }

    #[test]
    fn a_tombstone_s_own_value_is_known_in_every_form() {
        use ColumnType::*;
        let decimal = Decimal { precision: 3, scale: 2 };
        for (ty, value, dead, living) in [
            (Bool, "true", &["true", "t", "1"][..], &["false", "0", "2"][..]),
            (Bool, "no", &["false", "f", "0"], &["true", "1"]),
            (UInt8, "09", &["9"], &["0", "1"]),
            (decimal, "1", &["1", "1.00"], &["0.00", "1.01"]),
            (
                Char { length: 10 },
                "deleted",
                &["deleted", "deleted   "],
                &["active    ", ""],
            ),
            (Date, "2026-01-31", &["2026-01-31"], &["0000-00-00"]),
            (Text { max: None }, "z", &["z"], &["z ", "Z"]),
        ] {
            let value = Some(value);
            assert!(dead.iter().all(|cell| gone(ty.clone(), value, cell)), "{ty}");
            assert!(living.iter().all(|cell| !gone(ty.clone(), value, cell)), "{ty}");
        }
    }
}
