//! Types both ways, and Arrow arrays in the form the engine wants.

use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, TimestampMicrosecondType};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType};
use synctool_core::sink::{Fidelity, StoredAs};
use synctool_core::text::{self, ColumnBuilder};

/// How a column is stored.
pub(super) fn store_as(column: &Column) -> StoredAs {
    let exact = |name: &str| (name.to_string(), Carrier::Arrow, Fidelity::Exact);
    let as_text = || {
        (
            "VARCHAR".to_string(),
            Carrier::Text,
            Fidelity::Widened("stored as its text".into()),
        )
    };
    let (type_name, carrier, fidelity) = match &column.ty {
        ColumnType::Bool => exact("BOOLEAN"),
        ColumnType::Int8 => exact("TINYINT"),
        ColumnType::Int16 => exact("SMALLINT"),
        ColumnType::Int32 => exact("INTEGER"),
        ColumnType::Int64 => exact("BIGINT"),
        ColumnType::UInt8 => exact("UTINYINT"),
        ColumnType::UInt16 => exact("USMALLINT"),
        ColumnType::UInt32 => exact("UINTEGER"),
        ColumnType::UInt64 => exact("UBIGINT"),
        ColumnType::Decimal { precision, scale } if *precision <= 38 && (0..=*precision as i16).contains(scale) => {
            exact(&format!("DECIMAL({precision},{scale})"))
        }
        ColumnType::Float32 => exact("REAL"),
        ColumnType::Float64 => exact("DOUBLE"),
        ColumnType::Date => exact("DATE"),
        ColumnType::Time => exact("TIME"),
        ColumnType::Timestamp => exact("TIMESTAMP"),
        ColumnType::TimestampTz => exact("TIMESTAMPTZ"),
        ColumnType::Text { .. } => exact("VARCHAR"),
        ColumnType::Bytes => exact("BLOB"),
        ColumnType::Uuid => ("UUID".into(), Carrier::Text, Fidelity::Exact),
        ColumnType::Json | ColumnType::Jsonb => exact("JSON"),
        ColumnType::Char { .. }
        | ColumnType::Decimal { .. }
        | ColumnType::Numeric
        | ColumnType::TimeTz
        | ColumnType::Interval
        | ColumnType::Native => as_text(),
    };
    let carrier = if column.carrier == Carrier::Text {
        Carrier::Text
    } else {
        carrier
    };
    StoredAs {
        type_name,
        carrier,
        fidelity,
    }
}

/// The column type of a DuckDB type name.
pub(super) fn column_type(name: &str) -> ColumnType {
    let args = |s: &str| -> Option<(u16, i16)> {
        let (p, s) = s.strip_suffix(')')?.split_once(',')?;
        Some((p.trim().parse().ok()?, s.trim().parse().ok()?))
    };
    match name {
        "BOOLEAN" => ColumnType::Bool,
        "TINYINT" => ColumnType::Int8,
        "SMALLINT" => ColumnType::Int16,
        "INTEGER" => ColumnType::Int32,
        "BIGINT" => ColumnType::Int64,
        "UTINYINT" => ColumnType::UInt8,
        "USMALLINT" => ColumnType::UInt16,
        "UINTEGER" => ColumnType::UInt32,
        "UBIGINT" => ColumnType::UInt64,
        "FLOAT" | "REAL" => ColumnType::Float32,
        "DOUBLE" => ColumnType::Float64,
        "DATE" => ColumnType::Date,
        "TIME" => ColumnType::Time,
        "TIMESTAMP" => ColumnType::Timestamp,
        "TIMESTAMP WITH TIME ZONE" | "TIMESTAMPTZ" => ColumnType::TimestampTz,
        "VARCHAR" => ColumnType::Text { max: None },
        "BLOB" => ColumnType::Bytes,
        "UUID" => ColumnType::Uuid,
        "JSON" => ColumnType::Json,
        "HUGEINT" => ColumnType::Decimal {
            precision: 39,
            scale: 0,
        },
        other => match other.strip_prefix("DECIMAL(").and_then(args) {
            Some((precision, scale)) => ColumnType::Decimal { precision, scale },
            None => ColumnType::Native,
        },
    }
}

/// Whether DuckDB's own Arrow form of a type is one we read; others are read as their text.
pub(super) fn reads_as_arrow(column: &Column) -> bool {
    match &column.ty {
        ColumnType::Decimal { precision, .. } => *precision <= 38,
        ColumnType::Uuid | ColumnType::Native | ColumnType::Interval | ColumnType::TimeTz | ColumnType::Numeric => {
            false
        }
        _ => true,
    }
}

/// DuckDB's minus infinity is one above the minimum, ours is the minimum.
const DUCKDB_MINUS_DATE: i32 = -i32::MAX;
const DUCKDB_MINUS_TIMESTAMP: i64 = -i64::MAX;

/// An array as DuckDB gave it, in the Arrow type the column travels in.
pub(super) fn from_duckdb(array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
    let bug = |e: arrow_schema::ArrowError| Error::bug(format!("DuckDB's Arrow: {e}"));
    let array = match array.data_type() {
        DataType::Date32 => {
            let mapped: arrow_array::Date32Array = array
                .as_primitive::<Date32Type>()
                .unary(|v| if v == DUCKDB_MINUS_DATE { i32::MIN } else { v });
            Arc::new(mapped) as ArrayRef
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let mapped: arrow_array::TimestampMicrosecondArray = array
                .as_primitive::<TimestampMicrosecondType>()
                .unary(|v| if v == DUCKDB_MINUS_TIMESTAMP { i64::MIN } else { v });
            Arc::new(if zone.is_some() {
                mapped.with_timezone("UTC")
            } else {
                mapped
            })
        }
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => {
            arrow_cast::cast(array, &DataType::Utf8).map_err(bug)?
        }
        DataType::LargeBinary | DataType::BinaryView => arrow_cast::cast(array, &DataType::Binary).map_err(bug)?,
        _ => array.clone(),
    };
    if *array.data_type() == column.arrow_type() {
        return Ok(array);
    }
    // What is stored in another type than it travels in meets it in its text.
    let mut builder = ColumnBuilder::new(column);
    for row in 0..array.len() {
        builder.append_cell(text::cell(&array, row)?.as_deref())?;
    }
    Ok(builder.finish())
}

/// An array as it travels, in a form DuckDB takes.
pub(super) fn to_duckdb(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Date32 => {
            let mapped: arrow_array::Date32Array = array
                .as_primitive::<Date32Type>()
                .unary(|v| if v == i32::MIN { DUCKDB_MINUS_DATE } else { v });
            Arc::new(mapped)
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let mapped: arrow_array::TimestampMicrosecondArray = array
                .as_primitive::<TimestampMicrosecondType>()
                .unary(|v| if v == i64::MIN { DUCKDB_MINUS_TIMESTAMP } else { v });
            Arc::new(mapped.with_timezone_opt(zone.clone()))
        }
        DataType::FixedSizeBinary(_) | DataType::Decimal256(..) => {
            return Err(Error::new(code::BUG, "a column that should have travelled as text"));
        }
        _ => array.clone(),
    })
}
