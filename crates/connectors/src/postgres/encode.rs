//! Arrow columns into COPY fields, binary or text.

use super::decode::{EPOCH_DAYS, EPOCH_MICROS};
use super::digits::Digits;
use super::numeric;
use super::types::Wire;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{
    Array, BinaryArray, BooleanArray, FixedSizeBinaryArray, PrimitiveArray, StringArray, types::ArrowPrimitiveType,
};
use arrow_buffer::NullBuffer;
use arrow_schema::{DataType, TimeUnit};
use bytes::{BufMut, BytesMut};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::Column;
use synctool_core::text;

/// Encodes the cells of one column as COPY binary fields of a column of a PostgreSQL type.
#[derive(Debug, Clone)]
pub struct Encoder {
    column: String,
    type_name: String,
    arrow: DataType,
    wire: Wire,
    digits: Option<Digits>,
}

/// Whether cells of `column` (in its carrier) have a binary form for a destination column of type `type_name` (as
/// `store_as` or the catalog names it). If not for one column, the table is written in COPY's text format.
pub fn binary_supported(column: &Column, type_name: &str) -> bool {
    Encoder::new(column, type_name).is_some()
}

impl Encoder {
    /// An encoder, if there is a binary form; see [`binary_supported`].
    pub fn new(column: &Column, type_name: &str) -> Option<Encoder> {
        use DataType as D;
        let wire = Wire::of_type_name(type_name)?;
        let arrow = column.arrow_type();
        let fits = match (&arrow, wire) {
            (D::Boolean, Wire::Bool) => true,
            (
                D::Int8 | D::Int16 | D::Int32 | D::Int64 | D::UInt8 | D::UInt16 | D::UInt32 | D::UInt64,
                Wire::Int2 | Wire::Int4 | Wire::Int8 | Wire::Numeric,
            ) => true,
            (D::Float32, Wire::Float4 | Wire::Float8) | (D::Float64, Wire::Float8) => true,
            (D::Decimal128(_, s), Wire::Numeric) => *s >= 0,
            (D::Decimal256(_, s), Wire::Numeric) => *s >= 0,
            (D::Utf8, Wire::Text | Wire::Jsonb | Wire::Numeric) => true,
            (D::Date32, Wire::Date) | (D::Time64(TimeUnit::Microsecond), Wire::Time) => true,
            (D::Timestamp(TimeUnit::Microsecond, None), Wire::Timestamp) => true,
            (D::Timestamp(TimeUnit::Microsecond, Some(_)), Wire::Timestamptz) => true,
            (D::Binary, Wire::Bytea) | (D::FixedSizeBinary(16), Wire::Uuid) => true,
            _ => false,
        };
        fits.then(|| Encoder {
            column: column.name.clone(),
            type_name: type_name.to_string(),
            arrow,
            wire,
            digits: Digits::of(&column.name, type_name),
        })
    }

    /// The cells of one batch, ready to be written; the array must be in the column's Arrow type.
    pub fn bind<'a>(&'a self, array: &'a dyn Array) -> Result<Cells<'a>> {
        use DataType as D;
        if *array.data_type() != self.arrow {
            return Err(Error::bug(format!(
                "column {} comes as {}, not {}",
                self.column,
                array.data_type(),
                self.arrow
            )));
        }
        let from = match (array.data_type(), self.wire) {
            (D::Boolean, _) => From::Bool(array.as_boolean()),
            (D::Int8, _) => From::I8(array.as_primitive()),
            (D::Int16, _) => From::I16(array.as_primitive()),
            (D::Int32, _) => From::I32(array.as_primitive()),
            (D::Int64, _) => From::I64(array.as_primitive()),
            (D::UInt8, _) => From::U8(array.as_primitive()),
            (D::UInt16, _) => From::U16(array.as_primitive()),
            (D::UInt32, _) => From::U32(array.as_primitive()),
            (D::UInt64, _) => From::U64(array.as_primitive()),
            (D::Float32, _) => From::F32(array.as_primitive()),
            (D::Float64, _) => From::F64(array.as_primitive()),
            (D::Decimal128(_, s), _) => From::D128(array.as_primitive(), *s as u8),
            (D::Decimal256(..), _) => From::D256,
            (D::Date32, _) => From::Date(array.as_primitive()),
            (D::Time64(_), _) => From::Time(array.as_primitive()),
            (D::Timestamp(..), _) => From::Timestamp(array.as_primitive()),
            (D::Binary, _) => From::Bytes(array.as_binary()),
            (D::FixedSizeBinary(_), _) => From::Uuid(array.as_fixed_size_binary()),
            (D::Utf8, Wire::Numeric) => From::NumericText(array.as_string()),
            (D::Utf8, Wire::Jsonb) => From::Jsonb(array.as_string()),
            (D::Utf8, _) => From::Text(array.as_string()),
            (other, _) => return Err(Error::bug(format!("no binary form for Arrow type {other}"))),
        };
        Ok(Cells {
            encoder: self,
            nulls: array.nulls(),
            array,
            from,
        })
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(
            code::VALUE_UNSUPPORTED,
            format!("column {} ({}): {why}", self.column, self.type_name),
        )
    }
}

/// The cells of one column of a batch.
#[derive(Debug)]
pub struct Cells<'a> {
    encoder: &'a Encoder,
    nulls: Option<&'a NullBuffer>,
    array: &'a dyn Array,
    from: From<'a>,
}

type Primitive<'a, T> = &'a PrimitiveArray<T>;

#[derive(Debug)]
enum From<'a> {
    Bool(&'a BooleanArray),
    I8(Primitive<'a, Int8Type>),
    I16(Primitive<'a, Int16Type>),
    I32(Primitive<'a, Int32Type>),
    I64(Primitive<'a, Int64Type>),
    U8(Primitive<'a, UInt8Type>),
    U16(Primitive<'a, UInt16Type>),
    U32(Primitive<'a, UInt32Type>),
    U64(Primitive<'a, UInt64Type>),
    F32(Primitive<'a, Float32Type>),
    F64(Primitive<'a, Float64Type>),
    D128(Primitive<'a, Decimal128Type>, u8),
    D256,
    Date(Primitive<'a, Date32Type>),
    Time(Primitive<'a, Time64MicrosecondType>),
    Timestamp(Primitive<'a, TimestampMicrosecondType>),
    Bytes(&'a BinaryArray),
    Uuid(&'a FixedSizeBinaryArray),
    Text(&'a StringArray),
    Jsonb(&'a StringArray),
    NumericText(&'a StringArray),
}

impl Cells<'_> {
    /// Appends the field of a row: its length (-1 for NULL) and its bytes.
    #[inline]
    pub fn write(&self, row: usize, out: &mut BytesMut) -> Result<()> {
        if self.nulls.is_some_and(|n| n.is_null(row)) {
            out.put_i32(-1);
            return Ok(());
        }
        if let Some(digits) = &self.encoder.digits {
            digits.check(self.array, row)?;
        }
        match &self.from {
            From::Bool(a) => fixed(out, [u8::from(a.value(row))]),
            From::I8(a) => self.integer(out, a, row)?,
            From::I16(a) => self.integer(out, a, row)?,
            From::I32(a) => self.integer(out, a, row)?,
            From::I64(a) => self.integer(out, a, row)?,
            From::U8(a) => self.integer(out, a, row)?,
            From::U16(a) => self.integer(out, a, row)?,
            From::U32(a) => self.integer(out, a, row)?,
            From::U64(a) => self.integer(out, a, row)?,
            From::F32(a) if self.encoder.wire == Wire::Float4 => fixed(out, a.value(row).to_be_bytes()),
            From::F32(a) => fixed(out, f64::from(a.value(row)).to_be_bytes()),
            From::F64(a) => fixed(out, a.value(row).to_be_bytes()),
            From::D128(a, scale) => sized(out, |out| {
                numeric::put_i128(out, a.value(row), *scale);
                Some(())
            })
            .expect("a decimal has a numeric form"),
            From::D256 => {
                let mut shown = String::new();
                text::write_cell(&mut shown, self.array, row)?;
                sized(out, |out| numeric::put_text(out, &shown)).expect("a decimal has a numeric form");
            }
            From::NumericText(a) => sized(out, |out| numeric::put_text(out, a.value(row)))
                .ok_or_else(|| self.encoder.refuse("a text is no number that PostgreSQL holds"))?,
            From::Date(a) => fixed(
                out,
                match a.value(row) {
                    v @ (i32::MAX | i32::MIN) => v,
                    v => v
                        .checked_sub(EPOCH_DAYS)
                        .ok_or_else(|| self.encoder.refuse("a date is before what PostgreSQL holds"))?,
                }
                .to_be_bytes(),
            ),
            From::Time(a) => fixed(out, a.value(row).to_be_bytes()),
            From::Timestamp(a) => fixed(
                out,
                match a.value(row) {
                    v @ (i64::MAX | i64::MIN) => v,
                    v => v
                        .checked_sub(EPOCH_MICROS)
                        .ok_or_else(|| self.encoder.refuse("a timestamp is before what PostgreSQL holds"))?,
                }
                .to_be_bytes(),
            ),
            From::Bytes(a) => bytes(out, a.value(row)),
            From::Uuid(a) => bytes(out, a.value(row)),
            From::Text(a) => {
                let v = a.value(row).as_bytes();
                self.no_nul(v)?;
                bytes(out, v);
            }
            From::Jsonb(a) => {
                let v = a.value(row).as_bytes();
                self.no_nul(v)?;
                out.put_i32(v.len() as i32 + 1);
                out.put_u8(1);
                out.put_slice(v);
            }
        }
        Ok(())
    }

    #[inline]
    fn integer<T>(&self, out: &mut BytesMut, array: &PrimitiveArray<T>, row: usize) -> Result<()>
    where
        T: ArrowPrimitiveType,
        T::Native: Into<i128> + Copy,
    {
        let v: i128 = array.value(row).into();
        let out_of_range = |_| self.encoder.refuse("an integer is out of its range");
        match self.encoder.wire {
            Wire::Int2 => fixed(out, i16::try_from(v).map_err(out_of_range)?.to_be_bytes()),
            Wire::Int4 => fixed(out, i32::try_from(v).map_err(out_of_range)?.to_be_bytes()),
            Wire::Int8 => fixed(out, i64::try_from(v).map_err(out_of_range)?.to_be_bytes()),
            _ => sized(out, |out| {
                numeric::put_i128(out, v, 0);
                Some(())
            })
            .expect("an integer has a numeric form"),
        }
        Ok(())
    }

    fn no_nul(&self, text: &[u8]) -> Result<()> {
        match memchr::memchr(0, text) {
            None => Ok(()),
            Some(_) => Err(self
                .encoder
                .refuse("a text holds a NUL character, which PostgreSQL cannot store")),
        }
    }
}

#[inline]
fn fixed<const N: usize>(out: &mut BytesMut, value: [u8; N]) {
    out.put_i32(N as i32);
    out.put_slice(&value);
}

#[inline]
fn bytes(out: &mut BytesMut, value: &[u8]) {
    out.put_i32(value.len() as i32);
    out.put_slice(value);
}

/// A field whose length is known only afterwards.
fn sized(out: &mut BytesMut, write: impl FnOnce(&mut BytesMut) -> Option<()>) -> Option<()> {
    let at = out.len();
    out.put_i32(0);
    write(out)?;
    let length = (out.len() - at - 4) as i32;
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Some(())
}

/// Appends a cell in COPY's text format (`\N` for NULL), for a column of any type; delimiters are the caller's.
pub fn copy_text_field(out: &mut BytesMut, array: &dyn Array, row: usize) -> Result<()> {
    if array.is_null(row) {
        out.put_slice(b"\\N");
        return Ok(());
    }
    let mut scratch = String::new();
    let mut value = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value(row),
        _ => {
            text::write_cell(&mut scratch, array, row)?;
            &scratch
        }
    }
    .as_bytes();
    if memchr::memchr(0, value).is_some() {
        return Err(Error::new(
            code::VALUE_UNSUPPORTED,
            "a text holds a NUL character, which PostgreSQL cannot store",
        ));
    }
    let special = |b: &u8| matches!(b, b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0b | 0x0c);
    while let Some(at) = value.iter().position(special) {
        out.put_slice(&value[..at]);
        out.put_slice(match value[at] {
            b'\\' => b"\\\\",
            b'\n' => b"\\n",
            b'\r' => b"\\r",
            b'\t' => b"\\t",
            0x08 => b"\\b",
            0x0b => b"\\v",
            _ => b"\\f",
        });
        value = &value[at + 1..];
    }
    out.put_slice(value);
    Ok(())
}

#[cfg(test)]
#[path = "codec_tests.rs"]
mod tests;
