//! Between our columns and the types that expressions compute with.

use crate::rows::Failure;
use arrow_array::cast::AsArray;
use arrow_array::types::{Decimal128Type, Decimal256Type, DecimalType, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};
use synctool_core::error::{Error, Result};
use synctool_core::schema::{Carrier, Column, ColumnType};
use synctool_core::text::{self, ColumnBuilder};

/// A numeric without a size has these digits in expressions.
const NUMERIC: ColumnType = ColumnType::Decimal {
    precision: 38,
    scale: 10,
};

/// The column in the form in which expressions see it.
fn seen(column: &Column) -> Column {
    let ty = match &column.ty {
        ColumnType::Numeric => NUMERIC,
        ColumnType::Uuid => ColumnType::Text { max: None },
        ColumnType::Decimal { .. } => {
            let own = Column::new("", column.ty.clone());
            if own.arrow_type() == DataType::Utf8 {
                NUMERIC
            } else {
                own.ty
            }
        }
        ty => ty.clone(),
    };
    Column {
        ty,
        carrier: Carrier::Arrow,
        ..column.clone()
    }
}

/// The type in which expressions see a column.
pub(super) fn appears_as(column: &Column) -> DataType {
    seen(column).arrow_type()
}

/// A column's values as expressions see them. A value that has no place there is NULL and a failure.
pub(super) fn present(array: &ArrayRef, column: &Column, failures: &mut Vec<Failure>) -> Result<ArrayRef> {
    let seen = seen(column);
    if *array.data_type() == seen.arrow_type() {
        return Ok(array.clone());
    }
    let mut builder = ColumnBuilder::new(&seen);
    let mut cell = String::new();
    for row in 0..array.len() {
        if array.is_null(row) {
            builder.append_null();
            continue;
        }
        cell.clear();
        text::write_cell(&mut cell, array, row)?;
        if builder.append_text(&cell).is_err() {
            builder.append_null();
            failures.push((row, "not_representable"));
        }
    }
    Ok(builder.finish())
}

/// What an expression's result becomes.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) ty: ColumnType,
    pub(super) arrow: DataType,
}

impl Output {
    /// The column type of a result, or why it has none.
    pub(super) fn of(ty: &DataType) -> Result<Output, String> {
        let ty = match ty {
            DataType::Boolean => ColumnType::Bool,
            DataType::Int8 => ColumnType::Int8,
            DataType::Int16 => ColumnType::Int16,
            DataType::Int32 => ColumnType::Int32,
            DataType::Int64 => ColumnType::Int64,
            DataType::UInt8 => ColumnType::UInt8,
            DataType::UInt16 => ColumnType::UInt16,
            DataType::UInt32 => ColumnType::UInt32,
            DataType::UInt64 => ColumnType::UInt64,
            DataType::Float16 | DataType::Float32 => ColumnType::Float32,
            DataType::Float64 => ColumnType::Float64,
            DataType::Decimal32(p, s)
            | DataType::Decimal64(p, s)
            | DataType::Decimal128(p, s)
            | DataType::Decimal256(p, s)
                if *s >= 0 =>
            {
                ColumnType::Decimal {
                    precision: u16::from(*p),
                    scale: i16::from(*s),
                }
            }
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => ColumnType::Text { max: None },
            DataType::Date32 => ColumnType::Date,
            DataType::Time32(_) | DataType::Time64(_) => ColumnType::Time,
            DataType::Date64 | DataType::Timestamp(_, None) => ColumnType::Timestamp,
            DataType::Timestamp(_, Some(_)) => ColumnType::TimestampTz,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView | DataType::FixedSizeBinary(_) => {
                ColumnType::Bytes
            }
            DataType::Null => return Err("the value is always NULL, so it has no type".into()),
            DataType::Interval(_) | DataType::Duration(_) => {
                return Err("the value is an interval, and no column holds one".into());
            }
            DataType::List(_) | DataType::LargeList(_) | DataType::FixedSizeList(..) => {
                return Err("the value is a list, and a column holds one value".into());
            }
            other => return Err(format!("a value of type {other} has no column type")),
        };
        let arrow = Column::new("", ty.clone()).arrow_type();
        Ok(Output { ty, arrow })
    }

    /// The result in the column's Arrow type. Rows that would lose something there fail.
    pub(super) fn settle(&self, array: ArrayRef, from: usize, failures: &mut Vec<Failure>) -> Result<ArrayRef> {
        if let DataType::Timestamp(TimeUnit::Nanosecond, _) = array.data_type() {
            let values = array.as_primitive::<TimestampNanosecondType>();
            let finer = (0..values.len()).filter(|r| values.is_valid(*r) && values.value(*r) % 1000 != 0);
            failures.extend(finer.map(|r| (from + r, "finer_than_microseconds")));
        }
        match array.data_type() {
            DataType::Decimal128(p, s) => {
                let values = array.as_primitive::<Decimal128Type>();
                let wide = (0..values.len()).filter(|r| {
                    values.is_valid(*r) && Decimal128Type::validate_decimal_precision(values.value(*r), *p, *s).is_err()
                });
                failures.extend(wide.map(|r| (from + r, "overflow")));
            }
            DataType::Decimal256(p, s) => {
                let values = array.as_primitive::<Decimal256Type>();
                let wide = (0..values.len()).filter(|r| {
                    values.is_valid(*r) && Decimal256Type::validate_decimal_precision(values.value(*r), *p, *s).is_err()
                });
                failures.extend(wide.map(|r| (from + r, "overflow")));
            }
            _ => {}
        }
        if *array.data_type() == self.arrow {
            return Ok(array);
        }
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        cast_with_options(&array, &self.arrow, &options).map_err(|_| {
            Error::bug(format!(
                "a result of type {} does not become {}",
                array.data_type(),
                self.arrow
            ))
        })
    }
}
