//! COPY binary fields into Arrow columns.

use super::numeric::{self, Fixed, Unfit};
use super::types::Wire;
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, FixedSizeBinaryBuilder, Float32Builder,
    Float64Builder, Int16Builder, Int32Builder, Int64Builder, StringBuilder, Time64MicrosecondBuilder,
    TimestampMicrosecondBuilder,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::Column;
use synctool_core::text::ColumnBuilder;

/// Days from 1970-01-01 to PostgreSQL's epoch 2000-01-01.
pub(super) const EPOCH_DAYS: i32 = 10_957;
/// The same in microseconds.
pub(super) const EPOCH_MICROS: i64 = EPOCH_DAYS as i64 * 86_400_000_000;

/// Decodes the fields of one column, selected as [`super::types::select_expression`] says.
#[derive(Debug)]
pub struct Decoder {
    column: Column,
    to: To,
    scratch: String,
}

#[derive(Debug)]
enum To {
    Bool(BooleanBuilder),
    I16(Int16Builder),
    I32(Int32Builder),
    I64(Int64Builder),
    F32(Float32Builder),
    F64(Float64Builder),
    Decimal(Decimal128Builder, u8, i8),
    NumericText(StringBuilder),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder),
    Text(StringBuilder),
    Jsonb(StringBuilder),
    Bytes(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
    /// A numeric wider than Arrow's 128-bit decimal, by its text.
    ParseNumeric(Box<ColumnBuilder>),
    /// Text from the server into a typed column.
    ParseText(Box<ColumnBuilder>),
}

/// What a builder gets room for when the one before had so much: batches of a table are about equal.
fn room(before: usize) -> usize {
    before + before / 16
}

impl Decoder {
    /// A decoder for a column in its carrier.
    pub fn new(column: &Column) -> Self {
        let arrow = column.arrow_type();
        let parse = || Box::new(ColumnBuilder::new(column));
        let to = match (Wire::to_read(column), arrow) {
            (Some(Wire::Bool), _) => To::Bool(BooleanBuilder::new()),
            (Some(Wire::Int2), _) => To::I16(Int16Builder::new()),
            (Some(Wire::Int4), _) => To::I32(Int32Builder::new()),
            (Some(Wire::Int8), _) => To::I64(Int64Builder::new()),
            (Some(Wire::Float4), _) => To::F32(Float32Builder::new()),
            (Some(Wire::Float8), _) => To::F64(Float64Builder::new()),
            (Some(Wire::Numeric), t @ DataType::Decimal128(p, s)) => {
                To::Decimal(Decimal128Builder::new().with_data_type(t), p, s)
            }
            (Some(Wire::Numeric), DataType::Utf8) => To::NumericText(StringBuilder::new()),
            (Some(Wire::Numeric), _) => To::ParseNumeric(parse()),
            (Some(Wire::Date), _) => To::Date(Date32Builder::new()),
            (Some(Wire::Time), _) => To::Time(Time64MicrosecondBuilder::new()),
            (Some(Wire::Timestamp | Wire::Timestamptz), t) => {
                To::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(t))
            }
            (Some(Wire::Jsonb), _) => To::Jsonb(StringBuilder::new()),
            (Some(Wire::Bytea), _) => To::Bytes(BinaryBuilder::new()),
            (Some(Wire::Uuid), _) => To::Uuid(FixedSizeBinaryBuilder::new(16)),
            (Some(Wire::Text) | None, DataType::Utf8) => To::Text(StringBuilder::new()),
            (Some(Wire::Text) | None, _) => To::ParseText(parse()),
        };
        Decoder {
            column: column.clone(),
            to,
            scratch: String::new(),
        }
    }

    /// Adds fields; `None` is NULL.
    pub fn extend<'a>(&mut self, fields: impl Iterator<Item = Option<&'a [u8]>>) -> Result<()> {
        let scratch = &mut self.scratch;
        // Per column, not per cell, is it found out what to do.
        macro_rules! all {
            ($b:expr, $field:ident => $append:expr) => {
                for field in fields {
                    match field {
                        None => $b.append_null(),
                        Some($field) => $append,
                    }
                }
            };
        }
        macro_rules! fixed {
            ($b:expr, $t:ty, $v:ident => $e:expr) => {
                all!($b, field => match field.try_into().map(<$t>::from_be_bytes) {
                    Ok($v) => $b.append_value($e),
                    Err(_) => return Err(self.malformed()),
                })
            };
        }
        match &mut self.to {
            To::Bool(b) => all!(b, field => match field {
                [v @ 0..=1] => b.append_value(*v == 1),
                _ => return Err(self.malformed()),
            }),
            To::I16(b) => fixed!(b, i16, v => v),
            To::I32(b) => fixed!(b, i32, v => v),
            To::I64(b) => fixed!(b, i64, v => v),
            To::F32(b) => fixed!(b, f32, v => v),
            To::F64(b) => fixed!(b, f64, v => v),
            To::Time(b) => fixed!(b, i64, v => v),
            To::Date(b) => fixed!(b, i32, v => match v {
                i32::MAX | i32::MIN => v,
                _ => match v.checked_add(EPOCH_DAYS) {
                    Some(v) if v != i32::MAX => v,
                    _ => return Err(self.unsupported("a date after the year 5 874 897")),
                },
            }),
            To::Timestamp(b) => fixed!(b, i64, v => match v {
                i64::MAX | i64::MIN => v,
                _ => match v.checked_add(EPOCH_MICROS) {
                    Some(v) if v != i64::MAX => v,
                    _ => return Err(self.unsupported("a timestamp beyond the year 294 247")),
                },
            }),
            To::Decimal(b, precision, scale) => {
                let to = Fixed::new(*precision, *scale);
                all!(b, field => match to.read(field) {
                    Ok(v) => b.append_value(v),
                    Err(unfit) => return Err(self.unfit(unfit)),
                });
            }
            To::NumericText(b) => all!(b, field => {
                scratch.clear();
                match numeric::write_text(scratch, field) {
                    Ok(()) => b.append_value(&*scratch),
                    Err(unfit) => return Err(self.unfit(unfit)),
                }
            }),
            To::ParseNumeric(b) => all!(b, field => {
                scratch.clear();
                if let Err(unfit) = numeric::write_text(scratch, field) {
                    return Err(self.unfit(unfit));
                }
                if matches!(scratch.as_str(), "NaN" | "Infinity" | "-Infinity") {
                    return Err(self.unfit(Unfit::NotFinite));
                }
                b.append_text(scratch)?;
            }),
            To::Text(b) => all!(b, field => match std::str::from_utf8(field) {
                Ok(s) => b.append_value(s),
                Err(_) => return Err(self.not_utf8()),
            }),
            To::Jsonb(b) => all!(b, field => match field.split_first() {
                Some((1, text)) => match std::str::from_utf8(text) {
                    Ok(s) => b.append_value(s),
                    Err(_) => return Err(self.not_utf8()),
                },
                _ => return Err(self.malformed()),
            }),
            To::ParseText(b) => all!(b, field => match std::str::from_utf8(field) {
                Ok(s) => b.append_text(s)?,
                Err(_) => return Err(self.not_utf8()),
            }),
            To::Bytes(b) => all!(b, field => b.append_value(field)),
            To::Uuid(b) => all!(b, field => {
                if b.append_value(field).is_err() {
                    return Err(self.malformed());
                }
            }),
        }
        Ok(())
    }

    /// The column so far. The decoder starts over, with room for as much again.
    pub fn finish(&mut self) -> ArrayRef {
        macro_rules! plain {
            ($b:expr, $new:ty) => {{
                let array = $b.finish();
                *$b = <$new>::with_capacity(room(array.len()));
                Arc::new(array)
            }};
        }
        macro_rules! typed {
            ($b:expr, $new:ty) => {{
                let array = $b.finish();
                *$b = <$new>::with_capacity(room(array.len())).with_data_type(array.data_type().clone());
                Arc::new(array)
            }};
        }
        macro_rules! texts {
            ($b:expr, $new:ty) => {{
                let array = $b.finish();
                *$b = <$new>::with_capacity(room(array.len()), room(array.value_data().len()));
                Arc::new(array)
            }};
        }
        match &mut self.to {
            To::Bool(b) => plain!(b, BooleanBuilder),
            To::I16(b) => plain!(b, Int16Builder),
            To::I32(b) => plain!(b, Int32Builder),
            To::I64(b) => plain!(b, Int64Builder),
            To::F32(b) => plain!(b, Float32Builder),
            To::F64(b) => plain!(b, Float64Builder),
            To::Date(b) => plain!(b, Date32Builder),
            To::Time(b) => plain!(b, Time64MicrosecondBuilder),
            To::Decimal(b, ..) => typed!(b, Decimal128Builder),
            To::Timestamp(b) => typed!(b, TimestampMicrosecondBuilder),
            To::NumericText(b) | To::Text(b) | To::Jsonb(b) => texts!(b, StringBuilder),
            To::Bytes(b) => texts!(b, BinaryBuilder),
            To::Uuid(b) => {
                let array = b.finish();
                *b = FixedSizeBinaryBuilder::with_capacity(room(array.len()), 16);
                Arc::new(array)
            }
            To::ParseNumeric(b) | To::ParseText(b) => b.finish(),
        }
    }

    fn named(&self, code: &'static synctool_core::error::Code, why: &str) -> Error {
        let ty = self
            .column
            .source_type
            .clone()
            .unwrap_or_else(|| self.column.ty.to_string());
        Error::new(code, format!("column {} ({ty}): {why}", self.column.name))
    }

    fn unsupported(&self, what: &str) -> Error {
        self.named(
            code::VALUE_UNSUPPORTED,
            &format!("{what} has no place in its Arrow type"),
        )
        .hint(format!("set as_text: true for column {}", self.column.name))
    }

    fn malformed(&self) -> Error {
        self.named(
            code::VALUE_MALFORMED,
            "a value does not have the binary form of the type",
        )
    }

    fn not_utf8(&self) -> Error {
        self.named(code::VALUE_MALFORMED, "a text is not UTF-8")
            .hint("the database's encoding does not check texts (SQL_ASCII); correct the rows, or leave the column out")
    }

    fn unfit(&self, unfit: Unfit) -> Error {
        match unfit {
            Unfit::Malformed => self.malformed(),
            Unfit::NotFinite => self.unsupported("NaN or an infinity"),
            Unfit::TooLong => self.unsupported("a number with more digits than declared"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use synctool_core::schema::{Carrier, ColumnType};

    /// Every type in each of its carriers.
    fn columns() -> Vec<Column> {
        use ColumnType::*;
        let decimal = |precision, scale| Decimal { precision, scale };
        let types = [
            Bool,
            Int8,
            Int16,
            Int32,
            Int64,
            UInt8,
            UInt16,
            UInt32,
            UInt64,
            decimal(9, 2),
            decimal(38, 0),
            decimal(38, 38),
            decimal(60, 20),
            Numeric,
            Float32,
            Float64,
            Date,
            Time,
            TimeTz,
            Timestamp,
            TimestampTz,
            Interval,
            Text { max: None },
            Text { max: Some(5) },
            Char { length: 3 },
            Bytes,
            Uuid,
            Json,
            Jsonb,
            Native,
        ];
        let each = types.into_iter().flat_map(|ty| {
            [Carrier::Arrow, Carrier::Text].map(|carrier| Column {
                carrier,
                ..Column::new("c", ty.clone())
            })
        });
        each.collect()
    }

    /// The room that 8 bytes of a numeric may take as a text: all the digits that its head may ask for.
    const LONGEST: usize = 4 * 32_768 + 65_535 + 8;

    /// Decodes a field as every column would; each gives a value or an error.
    fn decode(bytes: &[u8]) {
        for column in columns() {
            let mut decoder = Decoder::new(&column);
            let taken = decoder.extend([Some(bytes), None].into_iter());
            let array = decoder.finish();
            assert!(taken.is_err() || array.len() == 2, "{column:?}");
            assert!(
                array.get_array_memory_size() <= 4 * LONGEST + 64 * bytes.len(),
                "{column:?}: {} bytes of {}",
                array.get_array_memory_size(),
                bytes.len()
            );
        }
    }

    #[test]
    fn digits_that_are_none_are_refused() {
        let column = Column::new("c", ColumnType::Numeric);
        let digits = [0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10];
        assert!(Decoder::new(&column).extend([Some(&digits[..])].into_iter()).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: ProptestConfig::default().cases.max(1000),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn fields_of_any_bytes_never_panic(bytes in any::<Vec<u8>>()) {
            decode(&bytes);
        }

        #[test]
        fn fields_of_every_width_never_panic(bytes in any::<[u8; 16]>(), width in 0..17usize) {
            decode(&bytes[..width]);
        }

        #[test]
        fn damaged_numerics_never_panic(
            head in (0..8u16, any::<i16>(), prop_oneof![Just(0u16), Just(0x4000), any::<u16>()], any::<u16>()),
            digits in prop::collection::vec(prop_oneof![0..10_000u16, any::<u16>()], 0..8),
            honest in any::<bool>(),
        ) {
            let (count, weight, sign, scale) = head;
            let count = if honest { digits.len() as u16 } else { count };
            let words = [count, weight as u16, sign, scale].into_iter().chain(digits);
            let bytes: Vec<u8> = words.flat_map(u16::to_be_bytes).collect();
            decode(&bytes);
        }

        #[test]
        fn texts_of_any_words_never_panic(text in "(-?[0-9]{0,12}[-:. TZ+eE]?){0,5}( BC)?|\\PC{0,20}") {
            decode(text.as_bytes());
        }
    }
}
