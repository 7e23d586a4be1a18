//! From the Arrow types that files hold to those that rows travel in. Every value arrives exactly or is refused.

use super::types::FileColumn;
use arrow_array::builder::StringBuilder;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Time32MillisecondType, Time64MicrosecondType, Time64NanosecondType, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, StringArray, new_null_array};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType};
use synctool_core::text::{self, ColumnBuilder};

/// A file's column as rows want it.
pub(super) fn to_wanted(array: &ArrayRef, from: &FileColumn, wanted: &Column) -> Result<ArrayRef> {
    let target = wanted.arrow_type();
    if *array.data_type() == target {
        return Ok(array.clone());
    }
    if target == DataType::Utf8
        && let Some(texts) = nanosecond_texts(array)
    {
        return Ok(texts);
    }
    let plain = normalise(array, &from.column)?;
    if *plain.data_type() == target {
        return Ok(plain);
    }
    if target == DataType::Utf8 {
        return texts(&plain);
    }
    if *plain.data_type() != DataType::Utf8 && !from.column.ty.fits(&wanted.ty) {
        return Err(Error::new(
            code::SCHEMA_MISMATCH,
            format!(
                "column {} is {} in this file, which does not fit {}",
                wanted.name, from.column.ty, wanted.ty
            ),
        )
        .hint("make the files of the table agree, or read the column with `as_text: true`"));
    }
    // Rare (files of one table that differ, a column typed by the pipeline), so by way of text: exact for all pairs.
    let mut builder = ColumnBuilder::new(wanted);
    let mut scratch = String::new();
    for row in 0..plain.len() {
        if plain.is_null(row) {
            builder.append_null();
            continue;
        }
        scratch.clear();
        text::write_cell(&mut scratch, &plain, row)?;
        builder.append_text(&scratch)?;
    }
    Ok(builder.finish())
}

fn texts(array: &ArrayRef) -> Result<ArrayRef> {
    texts_by(array, |out, row| text::write_cell(out, array, row))
}

/// What is written of each value; NULL stays NULL.
fn texts_by(array: &ArrayRef, write: impl Fn(&mut String, usize) -> Result<()>) -> Result<ArrayRef> {
    let mut out = StringBuilder::with_capacity(array.len(), array.len() * 16);
    let mut scratch = String::new();
    for row in 0..array.len() {
        if array.is_null(row) {
            out.append_null();
            continue;
        }
        scratch.clear();
        write(&mut scratch, row)?;
        out.append_value(&scratch);
    }
    Ok(Arc::new(out.finish()))
}

/// Nanoseconds have no place in microseconds, but they have one in text.
fn nanosecond_texts(array: &ArrayRef) -> Option<ArrayRef> {
    let print = |nanos: i64, write: &dyn Fn(&mut String, i64)| {
        let (seconds, fraction) = (nanos.div_euclid(1_000_000_000), nanos.rem_euclid(1_000_000_000));
        let mut text = String::new();
        write(&mut text, seconds * 1_000_000);
        if fraction != 0 {
            let clock = text.find(' ').map_or(0, |blank| blank + 1) + "00:00:00".len();
            text.insert_str(clock, format!(".{fraction:09}").trim_end_matches('0'));
        }
        text
    };
    let out: StringArray = match array.data_type() {
        DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
            let write = |s: &mut String, micros| text::write_timestamp(s, micros, zone.is_some());
            let values = array.as_primitive::<TimestampNanosecondType>();
            values.iter().map(|v| v.map(|n| print(n, &write))).collect()
        }
        DataType::Time64(TimeUnit::Nanosecond) => {
            let values = array.as_primitive::<Time64NanosecondType>();
            values.iter().map(|v| v.map(|n| print(n, &text::write_time))).collect()
        }
        _ => return None,
    };
    Some(Arc::new(out))
}

/// The column in the Arrow type of its own description.
fn normalise(array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
    let mut native = column.clone();
    if column.ty == ColumnType::Native {
        native.carrier = Carrier::Text;
    }
    let target = native.arrow_type();
    Ok(match (array.data_type(), &target) {
        (from, to) if from == to => array.clone(),
        (DataType::Null, to) => new_null_array(to, array.len()),
        (DataType::Time32(TimeUnit::Millisecond), _) => {
            scale::<Time32MillisecondType, Time64MicrosecondType>(array, column, |v| i64::from(v).checked_mul(1000))?
        }
        (DataType::Time64(TimeUnit::Nanosecond), _) => {
            scale::<Time64NanosecondType, Time64MicrosecondType>(array, column, whole_micros)?
        }
        (DataType::Timestamp(TimeUnit::Millisecond, _), to) => with_zone(
            scale::<TimestampMillisecondType, TimestampMicrosecondType>(array, column, |v| v.checked_mul(1000))?,
            to,
        ),
        (DataType::Timestamp(TimeUnit::Nanosecond, _), to) => with_zone(
            scale::<TimestampNanosecondType, TimestampMicrosecondType>(array, column, whole_micros)?,
            to,
        ),
        (DataType::Timestamp(TimeUnit::Microsecond, _), to) => with_zone(array.clone(), to),
        (DataType::Binary, DataType::Utf8)
        | (DataType::FixedSizeBinary(_), DataType::Binary)
        | (DataType::Float16, DataType::Float32)
        | (DataType::Decimal128(..) | DataType::Decimal256(..), DataType::Decimal128(..) | DataType::Decimal256(..)) => {
            let strict = CastOptions {
                safe: false,
                ..CastOptions::default()
            };
            cast_with_options(array, &target, &strict)
                .map_err(|_| refuse(column, "it does not fit its declared type"))?
        }
        (DataType::Decimal128(..) | DataType::Decimal256(..), DataType::Utf8) => texts(array)?,
        (DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::Map(..), DataType::Utf8) => {
            nested_texts(array, column)?
        }
        (from, _) => {
            return Err(Error::new(
                code::TYPE_UNSUPPORTED,
                format!("column {}: Parquet type {from} is not supported", column.name),
            )
            .hint(format!("leave column {} out", column.name)));
        }
    })
}

fn whole_micros(nanos: i64) -> Option<i64> {
    (nanos % 1000 == 0).then_some(nanos / 1000)
}

fn scale<F: ArrowPrimitiveType, T: ArrowPrimitiveType>(
    array: &ArrayRef,
    column: &Column,
    to: impl Fn(F::Native) -> Option<T::Native>,
) -> Result<ArrayRef> {
    let scaled: PrimitiveArray<T> = array.as_primitive::<F>().try_unary(|v| {
        to(v).ok_or_else(|| refuse(column, "it is not a whole number of microseconds, or out of range"))
    })?;
    Ok(Arc::new(scaled))
}

fn with_zone(array: ArrayRef, target: &DataType) -> ArrayRef {
    match target {
        DataType::Timestamp(_, zone) => {
            let values = array.as_primitive::<TimestampMicrosecondType>();
            Arc::new(values.clone().with_timezone_opt(zone.clone()))
        }
        _ => array,
    }
}

pub(super) fn refuse(column: &Column, why: &str) -> Error {
    Error::new(
        code::VALUE_UNSUPPORTED,
        format!("column {}: a value cannot be carried: {why}", column.name),
    )
    .hint(format!("set `as_text: true` for column {}", column.name))
}

/// Lists, structs and maps as JSON.
fn nested_texts(array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
    texts_by(array, |out, row| write_json(out, array, row, column))
}

fn write_json(out: &mut String, array: &dyn Array, row: usize, column: &Column) -> Result<()> {
    if array.is_null(row) {
        out.push_str("null");
        return Ok(());
    }
    let list = |out: &mut String, values: &dyn Array| -> Result<()> {
        out.push('[');
        for i in 0..values.len() {
            if i > 0 {
                out.push(',');
            }
            write_json(out, values, i, column)?;
        }
        out.push(']');
        Ok(())
    };
    match array.data_type() {
        DataType::List(_) => list(out, &array.as_list::<i32>().value(row))?,
        DataType::LargeList(_) => list(out, &array.as_list::<i64>().value(row))?,
        DataType::Struct(fields) => {
            let columns = array.as_struct().columns();
            out.push('{');
            for (i, (field, values)) in fields.iter().zip(columns).enumerate() {
                if i > 0 {
                    out.push(',');
                }
                push_string(out, field.name());
                out.push(':');
                write_json(out, values, row, column)?;
            }
            out.push('}');
        }
        DataType::Map(..) => {
            // Keys need not be text, nor be told apart as text: a list of pairs says what is there.
            let entries = array.as_map().value(row);
            let (keys, values) = (entries.column(0), entries.column(1));
            out.push('[');
            for i in 0..entries.len() {
                out.push_str(if i > 0 { ",[" } else { "[" });
                write_json(out, keys, i, column)?;
                out.push(',');
                write_json(out, values, i, column)?;
                out.push(']');
            }
            out.push(']');
        }
        ty => {
            let single = array.slice(row, 1);
            let scalar = if *ty == DataType::Utf8 {
                single
            } else {
                leaf(single, column)?
            };
            let mut text = String::new();
            text::write_cell(&mut text, &scalar, 0)?;
            let bare = matches!(scalar.data_type(), DataType::Boolean)
                || scalar.data_type().is_numeric() && !matches!(text.as_str(), "NaN" | "Infinity" | "-Infinity");
            if bare {
                out.push_str(&text);
            } else {
                push_string(out, &text);
            }
        }
    }
    Ok(())
}

/// A value inside a nested one, in the Arrow type that canonical texts are printed from.
fn leaf(array: ArrayRef, column: &Column) -> Result<ArrayRef> {
    let ty = match array.data_type() {
        DataType::Timestamp(_, None) => ColumnType::Timestamp,
        DataType::Timestamp(_, Some(_)) => ColumnType::TimestampTz,
        DataType::Time32(_) | DataType::Time64(_) => ColumnType::Time,
        DataType::Float16 => ColumnType::Float32,
        DataType::FixedSizeBinary(n) if *n != 16 => ColumnType::Bytes,
        _ => return Ok(array),
    };
    if let Some(texts) = nanosecond_texts(&array) {
        return Ok(texts);
    }
    normalise(&array, &Column::new(&column.name, ty))
}

fn push_string(out: &mut String, text: &str) {
    out.push_str(&serde_json::to_string(text).expect("a string always serialises"));
}
