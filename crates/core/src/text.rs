//! The canonical text form of every type, both ways.
//!
//! It is what PostgreSQL prints with DateStyle ISO, IntervalStyle postgres and time zone UTC, so a destination that
//! reads text reads it exactly: `2024-01-31`, `0044-03-15 BC`, `2024-01-31 23:59:59.000001+00`, `infinity`, `NaN`,
//! `\xdeadbeef`, `true`. Text, JSON and native values are their own form. Microseconds lose trailing zeros.
//!
//! In Arrow, the extremes of a date or timestamp stand for infinity (`i32::MAX`, `i64::MAX` and the minima), as in
//! PostgreSQL's own binary form and in DuckDB's Arrow.

use crate::error::{Error, Result, code};
use crate::schema::{Carrier, Column, ColumnType};
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Date32Builder, Decimal128Builder, Decimal256Builder, FixedSizeBinaryBuilder,
    Float32Builder, Float64Builder, Int8Builder, Int16Builder, Int32Builder, Int64Builder, StringBuilder,
    Time64MicrosecondBuilder, TimestampMicrosecondBuilder, UInt8Builder, UInt16Builder, UInt32Builder, UInt64Builder,
};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type,
    Time64MicrosecondType, TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_buffer::i256;
use arrow_schema::{DataType, TimeUnit};
use std::fmt::Write;
use std::sync::Arc;

/// Days from 1970-01-01 to 0001-01-01 of the proleptic Gregorian calendar and back use Howard Hinnant's
/// "chrono-compatible low-level date algorithms" (days_from_civil, civil_from_days), in 64 bits.
pub fn days_from_civil(year: i64, month: u32, day: u32) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let doy = (153 * (i64::from(month) + if month > 2 { -3 } else { 9 }) + 2) / 5 + i64::from(day) - 1;
    let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
    era * 146_097 + doe - 719_468
}

/// Year (astronomical: 0 is 1 BC), month, day of a day number since 1970-01-01.
pub fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = (doy - (153 * mp + 2) / 5 + 1) as u32;
    let month = (if mp < 10 { mp + 3 } else { mp - 9 }) as u32;
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

const DAY_MICROS: i64 = 86_400_000_000;

/// Writes a date.
pub fn write_date(out: &mut String, days: i32) {
    match days {
        i32::MAX => out.push_str("infinity"),
        i32::MIN => out.push_str("-infinity"),
        d => {
            let (y, m, d) = civil_from_days(i64::from(d));
            push_date(out, y, m, d);
            push_era(out, y);
        }
    }
}

fn push_date(out: &mut String, year: i64, month: u32, day: u32) {
    let shown = if year <= 0 { 1 - year } else { year };
    let _ = write!(out, "{shown:04}-{month:02}-{day:02}");
}

fn push_era(out: &mut String, year: i64) {
    if year <= 0 {
        out.push_str(" BC");
    }
}

/// Writes a time of day.
pub fn write_time(out: &mut String, micros: i64) {
    let (s, us) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let _ = write!(out, "{:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60);
    if us != 0 {
        let digits = format!("{us:06}");
        out.push('.');
        out.push_str(digits.trim_end_matches('0'));
    }
}

/// Writes a timestamp, with `+00` if it is an instant.
pub fn write_timestamp(out: &mut String, micros: i64, instant: bool) {
    match micros {
        i64::MAX => out.push_str("infinity"),
        i64::MIN => out.push_str("-infinity"),
        t => {
            let (y, m, d) = civil_from_days(t.div_euclid(DAY_MICROS));
            push_date(out, y, m, d);
            out.push(' ');
            write_time(out, t.rem_euclid(DAY_MICROS));
            if instant {
                out.push_str("+00");
            }
            push_era(out, y);
        }
    }
}

/// Writes bytes as `\x` and lower hex.
pub fn write_bytes(out: &mut String, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + bytes.len() * 2);
    out.push_str("\\x");
    for b in bytes {
        out.push(HEX[usize::from(b >> 4)] as char);
        out.push(HEX[usize::from(b & 15)] as char);
    }
}

/// Writes a float: the shortest text that reads back to the same bits.
pub fn write_float(out: &mut String, v: f64, shortest: impl std::fmt::Display + std::fmt::LowerExp) {
    if v.is_nan() {
        out.push_str("NaN");
    } else if v.is_infinite() {
        out.push_str(if v > 0.0 { "Infinity" } else { "-Infinity" });
    } else if v != 0.0 && !(1e-4..1e15).contains(&v.abs()) {
        let _ = write!(out, "{shortest:e}");
    } else {
        let _ = write!(out, "{shortest}");
    }
}

fn write_decimal(out: &mut String, digits: &str, scale: i8) {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |d| ("-", d));
    let scale = scale.max(0) as usize;
    out.push_str(sign);
    if scale == 0 {
        out.push_str(digits);
    } else if digits.len() > scale {
        out.push_str(&digits[..digits.len() - scale]);
        out.push('.');
        out.push_str(&digits[digits.len() - scale..]);
    } else {
        out.push_str("0.");
        out.extend(std::iter::repeat_n('0', scale - digits.len()));
        out.push_str(digits);
    }
}

/// Appends the canonical text of a cell that is not NULL.
pub fn write_cell(out: &mut String, array: &dyn Array, row: usize) -> Result<()> {
    macro_rules! int {
        ($t:ty) => {{
            let _ = write!(out, "{}", array.as_primitive::<$t>().value(row));
        }};
    }
    match array.data_type() {
        DataType::Utf8 => out.push_str(array.as_string::<i32>().value(row)),
        DataType::Boolean => out.push_str(if array.as_boolean().value(row) { "true" } else { "false" }),
        DataType::Int8 => int!(Int8Type),
        DataType::Int16 => int!(Int16Type),
        DataType::Int32 => int!(Int32Type),
        DataType::Int64 => int!(Int64Type),
        DataType::UInt8 => int!(UInt8Type),
        DataType::UInt16 => int!(UInt16Type),
        DataType::UInt32 => int!(UInt32Type),
        DataType::UInt64 => int!(UInt64Type),
        DataType::Float32 => {
            let v = array.as_primitive::<Float32Type>().value(row);
            write_float(out, f64::from(v), v);
        }
        DataType::Float64 => {
            let v = array.as_primitive::<Float64Type>().value(row);
            write_float(out, v, v);
        }
        DataType::Decimal128(_, s) => {
            write_decimal(out, &array.as_primitive::<Decimal128Type>().value(row).to_string(), *s);
        }
        DataType::Decimal256(_, s) => {
            write_decimal(out, &array.as_primitive::<Decimal256Type>().value(row).to_string(), *s);
        }
        DataType::Date32 => write_date(out, array.as_primitive::<Date32Type>().value(row)),
        DataType::Time64(TimeUnit::Microsecond) => {
            write_time(out, array.as_primitive::<Time64MicrosecondType>().value(row));
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            write_timestamp(
                out,
                array.as_primitive::<TimestampMicrosecondType>().value(row),
                zone.is_some(),
            );
        }
        DataType::Binary => write_bytes(out, array.as_binary::<i32>().value(row)),
        DataType::FixedSizeBinary(16) => {
            let b = array.as_fixed_size_binary().value(row);
            for (i, byte) in b.iter().enumerate() {
                if matches!(i, 4 | 6 | 8 | 10) {
                    out.push('-');
                }
                let _ = write!(out, "{byte:02x}");
            }
        }
        other => return Err(Error::bug(format!("no text form for Arrow type {other}"))),
    }
    Ok(())
}

/// The canonical text of a cell, or `None` for NULL.
pub fn cell(array: &dyn Array, row: usize) -> Result<Option<String>> {
    if array.is_null(row) {
        return Ok(None);
    }
    let mut out = String::new();
    write_cell(&mut out, array, row)?;
    Ok(Some(out))
}

/// Builds one column from typed or textual values. It refuses what the column cannot hold; the error names the
/// column and type, never the value.
#[derive(Debug)]
pub struct ColumnBuilder {
    name: String,
    ty: ColumnType,
    to: To,
    bytes: usize,
}

#[derive(Debug)]
enum To {
    Bool(BooleanBuilder),
    I8(Int8Builder),
    I16(Int16Builder),
    I32(Int32Builder),
    I64(Int64Builder),
    U8(UInt8Builder),
    U16(UInt16Builder),
    U32(UInt32Builder),
    U64(UInt64Builder),
    F32(Float32Builder),
    F64(Float64Builder),
    D128(Decimal128Builder, u8, i8),
    D256(Decimal256Builder, u8, i8),
    Date(Date32Builder),
    Time(Time64MicrosecondBuilder),
    Timestamp(TimestampMicrosecondBuilder, bool),
    Bytes(BinaryBuilder),
    Uuid(FixedSizeBinaryBuilder),
    Text(StringBuilder),
}

macro_rules! each_builder {
    ($to:expr, $b:ident => $e:expr) => {
        match $to {
            To::Bool($b) => $e,
            To::I8($b) => $e,
            To::I16($b) => $e,
            To::I32($b) => $e,
            To::I64($b) => $e,
            To::U8($b) => $e,
            To::U16($b) => $e,
            To::U32($b) => $e,
            To::U64($b) => $e,
            To::F32($b) => $e,
            To::F64($b) => $e,
            To::D128($b, ..) => $e,
            To::D256($b, ..) => $e,
            To::Date($b) => $e,
            To::Time($b) => $e,
            To::Timestamp($b, ..) => $e,
            To::Bytes($b) => $e,
            To::Uuid($b) => $e,
            To::Text($b) => $e,
        }
    };
}

impl ColumnBuilder {
    /// A builder for a column in its carrier.
    pub fn new(column: &Column) -> Self {
        let to = match column.arrow_type() {
            DataType::Boolean => To::Bool(BooleanBuilder::new()),
            DataType::Int8 => To::I8(Int8Builder::new()),
            DataType::Int16 => To::I16(Int16Builder::new()),
            DataType::Int32 => To::I32(Int32Builder::new()),
            DataType::Int64 => To::I64(Int64Builder::new()),
            DataType::UInt8 => To::U8(UInt8Builder::new()),
            DataType::UInt16 => To::U16(UInt16Builder::new()),
            DataType::UInt32 => To::U32(UInt32Builder::new()),
            DataType::UInt64 => To::U64(UInt64Builder::new()),
            DataType::Float32 => To::F32(Float32Builder::new()),
            DataType::Float64 => To::F64(Float64Builder::new()),
            t @ DataType::Decimal128(p, s) => To::D128(Decimal128Builder::new().with_data_type(t), p, s),
            t @ DataType::Decimal256(p, s) => To::D256(Decimal256Builder::new().with_data_type(t), p, s),
            DataType::Date32 => To::Date(Date32Builder::new()),
            DataType::Time64(_) => To::Time(Time64MicrosecondBuilder::new()),
            t @ DataType::Timestamp(..) => {
                let instant = matches!(t, DataType::Timestamp(_, Some(_)));
                To::Timestamp(TimestampMicrosecondBuilder::new().with_data_type(t), instant)
            }
            DataType::Binary => To::Bytes(BinaryBuilder::new()),
            DataType::FixedSizeBinary(n) => To::Uuid(FixedSizeBinaryBuilder::new(n)),
            _ => To::Text(StringBuilder::new()),
        };
        ColumnBuilder {
            name: column.name.clone(),
            ty: column.ty.clone(),
            to,
            bytes: 0,
        }
    }

    /// Roughly the bytes held since the last `finish`.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds NULL.
    pub fn append_null(&mut self) {
        self.bytes += 8;
        each_builder!(&mut self.to, b => b.append_null());
    }

    /// Adds a value by its canonical text, or NULL.
    pub fn append_cell(&mut self, value: Option<&str>) -> Result<()> {
        match value {
            Some(text) => self.append_text(text),
            None => {
                self.append_null();
                Ok(())
            }
        }
    }

    fn refuse(&self, got: &str) -> Error {
        Error::new(
            code::VALUE_MALFORMED,
            format!("column {}: a value ({got}) does not fit type {}", self.name, self.ty),
        )
        .hint(format!(
            "set `data_type: text` (or `as_text: true`) for column {} if such values are meant",
            self.name
        ))
    }

    /// Adds an integer, if the column can hold it exactly.
    pub fn append_i64(&mut self, v: i64) -> Result<()> {
        macro_rules! fit {
            ($b:expr) => {
                match v.try_into() {
                    Ok(v) => $b.append_value(v),
                    Err(_) => return Err(self.refuse("integer")),
                }
            };
        }
        self.bytes += 8;
        match &mut self.to {
            To::Bool(b) if v == 0 || v == 1 => b.append_value(v == 1),
            To::I8(b) => fit!(b),
            To::I16(b) => fit!(b),
            To::I32(b) => fit!(b),
            To::I64(b) => b.append_value(v),
            To::U8(b) => fit!(b),
            To::U16(b) => fit!(b),
            To::U32(b) => fit!(b),
            To::U64(b) => fit!(b),
            // 2^53: beyond it an integer may not be a float.
            To::F64(b) if v.unsigned_abs() <= 1 << 53 => b.append_value(v as f64),
            To::F32(b) if v.unsigned_abs() <= 1 << 24 => b.append_value(v as f32),
            To::D128(..) | To::D256(..) => return self.append_text(&v.to_string()),
            To::Text(b) => b.append_value(v.to_string()),
            _ => return Err(self.refuse("integer")),
        }
        Ok(())
    }

    /// Adds a float, if the column can hold it exactly.
    pub fn append_f64(&mut self, v: f64) -> Result<()> {
        self.bytes += 8;
        match &mut self.to {
            To::F64(b) => b.append_value(v),
            To::F32(b) if v.is_nan() || f64::from(v as f32) == v => b.append_value(v as f32),
            To::Text(b) => {
                let mut s = String::new();
                write_float(&mut s, v, v);
                b.append_value(s);
            }
            To::I8(_) | To::I16(_) | To::I32(_) | To::I64(_) | To::U8(_) | To::U16(_) | To::U32(_)
                if v.fract() == 0.0 && v.abs() <= (1u64 << 53) as f64 =>
            {
                return self.append_i64(v as i64);
            }
            _ => return Err(self.refuse("float")),
        }
        Ok(())
    }

    /// Adds bytes, if the column holds bytes, a uuid or (valid UTF-8) text.
    pub fn append_bytes(&mut self, v: &[u8]) -> Result<()> {
        self.bytes += v.len() + 4;
        match &mut self.to {
            To::Bytes(b) => b.append_value(v),
            To::Uuid(b) if v.len() == 16 => b.append_value(v).map_err(|e| Error::bug(e.to_string()))?,
            _ => match std::str::from_utf8(v) {
                Ok(s) => return self.append_text(s),
                Err(_) => return Err(self.refuse("bytes")),
            },
        }
        Ok(())
    }

    /// Adds a value from its canonical text (and the spellings other engines print that mean the same).
    pub fn append_text(&mut self, s: &str) -> Result<()> {
        self.bytes += s.len() + 4;
        macro_rules! parse {
            ($b:expr, $v:expr) => {
                match $v {
                    Some(v) => $b.append_value(v),
                    None => return Err(self.refuse("text")),
                }
            };
        }
        match &mut self.to {
            To::Text(b) => b.append_value(s),
            To::Bool(b) => parse!(b, parse_bool(s)),
            To::I8(b) => parse!(b, s.parse().ok()),
            To::I16(b) => parse!(b, s.parse().ok()),
            To::I32(b) => parse!(b, s.parse().ok()),
            To::I64(b) => parse!(b, s.parse().ok()),
            To::U8(b) => parse!(b, s.parse().ok()),
            To::U16(b) => parse!(b, s.parse().ok()),
            To::U32(b) => parse!(b, s.parse().ok()),
            To::U64(b) => parse!(b, s.parse().ok()),
            To::F32(b) => parse!(b, s.parse().ok()),
            To::F64(b) => parse!(b, s.parse().ok()),
            To::D128(b, p, sc) => parse!(b, parse_decimal(s, *p, *sc).and_then(|d| d.parse().ok())),
            To::D256(b, p, sc) => parse!(b, parse_decimal(s, *p, *sc).and_then(|d| i256::from_string(&d))),
            To::Date(b) => parse!(b, parse_date(s)),
            To::Time(b) => parse!(b, parse_time(s)),
            To::Timestamp(b, instant) => parse!(b, parse_timestamp(s, *instant)),
            To::Bytes(b) => parse!(b, parse_bytes(s)),
            To::Uuid(b) => match parse_uuid(s) {
                Some(v) => b.append_value(v).map_err(|e| Error::bug(e.to_string()))?,
                None => return Err(self.refuse("text")),
            },
        }
        Ok(())
    }

    /// The column so far; the builder starts over.
    pub fn finish(&mut self) -> ArrayRef {
        self.bytes = 0;
        each_builder!(&mut self.to, b => Arc::new(b.finish()) as ArrayRef)
    }
}

fn parse_bool(s: &str) -> Option<bool> {
    match s.to_ascii_lowercase().as_str() {
        "true" | "t" | "1" | "yes" | "y" | "on" => Some(true),
        "false" | "f" | "0" | "no" | "n" | "off" => Some(false),
        _ => None,
    }
}

/// The unscaled digits of a decimal text, or `None` if it has more digits than the type keeps: nothing is rounded.
fn parse_decimal(s: &str, precision: u8, scale: i8) -> Option<String> {
    let (negative, body) = match s.as_bytes().first()? {
        b'-' => (true, &s[1..]),
        b'+' => (false, &s[1..]),
        _ => (false, s),
    };
    let (mantissa, exponent) = match body.find(['e', 'E']) {
        Some(at) => (&body[..at], body[at + 1..].parse::<i32>().ok()?),
        None => (body, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let mut digits = format!("{whole}{fraction}");
    let behind = i32::try_from(fraction.len()).ok()?;
    let shift = i32::from(scale).saturating_add(exponent).saturating_sub(behind);
    if !(-10_000..=10_000).contains(&shift) {
        return digits.bytes().all(|b| b == b'0').then(|| "0".to_string());
    }
    if shift >= 0 {
        digits.extend(std::iter::repeat_n('0', shift as usize));
    } else {
        let cut = digits.len().saturating_sub(shift.unsigned_abs() as usize);
        if digits[cut..].bytes().any(|b| b != b'0') {
            return None;
        }
        digits.truncate(cut);
    }
    let digits = digits.trim_start_matches('0');
    if digits.len() > usize::from(precision) {
        return None;
    }
    Some(if digits.is_empty() {
        "0".into()
    } else {
        format!("{}{digits}", if negative { "-" } else { "" })
    })
}

/// Reads a date: `YYYY-MM-DD`, more year digits, ` BC`, `infinity`.
pub fn parse_date(s: &str) -> Option<i32> {
    match s {
        "infinity" => return Some(i32::MAX),
        "-infinity" => return Some(i32::MIN),
        _ => {}
    }
    let (s, bc) = s.strip_suffix(" BC").map_or((s, false), |s| (s, true));
    let days = parse_ymd(s, bc)?;
    i32::try_from(days).ok().filter(|d| *d != i32::MAX && *d != i32::MIN)
}

fn parse_ymd(s: &str, bc: bool) -> Option<i64> {
    let mut parts = s.splitn(3, '-');
    let (y, m, d) = (parts.next()?, parts.next()?, parts.next()?);
    let are_digits = s.bytes().all(|b| b == b'-' || b.is_ascii_digit());
    // Years of more digits are none of any engine's.
    if !(4..=9).contains(&y.len()) || m.len() != 2 || d.len() != 2 || !are_digits {
        return None;
    }
    let (mut y, m, d): (i64, u32, u32) = (y.parse().ok()?, m.parse().ok()?, d.parse().ok()?);
    if bc {
        y = 1 - y;
    } else if y == 0 {
        return None;
    }
    let days = days_from_civil(y, m, d);
    // A day that does not exist comes back as another one.
    ((1..=12).contains(&m) && civil_from_days(days) == (y, m, d)).then_some(days)
}

/// Reads a time of day up to 24:00:00, microseconds at most.
pub fn parse_time(s: &str) -> Option<i64> {
    let (hms, fraction) = s.split_once('.').unwrap_or((s, ""));
    let mut parts = hms.split(':');
    let (h, m, sec) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
    if parts.next().is_some()
        || [h, m, sec]
            .iter()
            .any(|p| p.len() != 2 || !p.bytes().all(|b| b.is_ascii_digit()))
    {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 6 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let us: i64 = format!("{fraction:0<6}").parse().ok()?;
    let (h, m, sec): (i64, i64, i64) = (h.parse().ok()?, m.parse().ok()?, sec.parse().ok()?);
    let total = ((h * 60 + m) * 60 + sec) * 1_000_000 + us;
    (m < 60 && sec < 60 && total <= DAY_MICROS).then_some(total)
}

/// Reads a timestamp; an instant needs an offset (`Z`, `+00`, `+05:30`) and becomes UTC, a naive one must not have one.
pub fn parse_timestamp(s: &str, instant: bool) -> Option<i64> {
    match s {
        "infinity" => return Some(i64::MAX),
        "-infinity" => return Some(i64::MIN),
        _ => {}
    }
    let (s, bc) = s.strip_suffix(" BC").map_or((s, false), |s| (s, true));
    let (date, time) = s.split_once([' ', 'T'])?;
    let (time, offset) = match time.find(['+', '-', 'Z']) {
        Some(at) => (&time[..at], Some(&time[at..])),
        None => (time, None),
    };
    let offset = match (instant, offset) {
        (false, None) => 0,
        (true, Some("Z")) => 0,
        (true, Some(o)) => parse_offset(o)?,
        _ => return None,
    };
    let days = parse_ymd(date, bc)?;
    let t = days
        .checked_mul(DAY_MICROS)?
        .checked_add(parse_time(time)?)?
        .checked_sub(offset * 1_000_000)?;
    (t != i64::MAX && t != i64::MIN).then_some(t)
}

fn parse_offset(s: &str) -> Option<i64> {
    let sign = if s.starts_with('-') { -1 } else { 1 };
    let mut total = 0;
    for (i, part) in s[1..].split(':').enumerate() {
        if i > 2 || part.len() != 2 {
            return None;
        }
        total += part.parse::<i64>().ok()? * [3600, 60, 1][i];
    }
    Some(sign * total)
}

fn parse_bytes(s: &str) -> Option<Vec<u8>> {
    let hex = s.strip_prefix("\\x")?.as_bytes();
    let nibble = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    (hex.len() % 2 == 0).then(|| {
        hex.chunks(2)
            .map(|c| Some(nibble(c[0])? << 4 | nibble(c[1])?))
            .collect()
    })?
}

fn parse_uuid(s: &str) -> Option<[u8; 16]> {
    let hex: Vec<u8> = s.bytes().filter(|b| *b != b'-').collect();
    if hex.len() != 32 || !matches!(s.len(), 32 | 36) {
        return None;
    }
    let mut out = [0; 16];
    for (i, o) in out.iter_mut().enumerate() {
        let n = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        *o = n(hex[2 * i])? << 4 | n(hex[2 * i + 1])?;
    }
    Some(out)
}

/// The same column, carried as text.
pub fn as_text(mut column: Column) -> Column {
    column.carrier = Carrier::Text;
    column
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round_trip(ty: ColumnType, values: &[&str]) {
        let mut b = ColumnBuilder::new(&Column::new("c", ty.clone()));
        for v in values {
            b.append_text(v).unwrap_or_else(|e| panic!("{ty}: {v}: {e}"));
        }
        b.append_null();
        let array = b.finish();
        for (i, v) in values.iter().enumerate() {
            assert_eq!(cell(&array, i).unwrap().as_deref(), Some(*v), "{ty}");
        }
        assert_eq!(cell(&array, values.len()).unwrap(), None);
    }

    fn refused(ty: ColumnType, values: &[&str]) {
        for v in values {
            let mut b = ColumnBuilder::new(&Column::new("c", ty.clone()));
            let e = b.append_text(v).expect_err(&format!("{ty} took {v:?}"));
            assert!(v.len() < 4 || !e.to_string().contains(v), "the value leaked: {e}");
        }
    }

    #[test]
    fn every_type_reads_what_it_writes() {
        use ColumnType::*;
        round_trip(Bool, &["true", "false"]);
        round_trip(Int64, &["-9223372036854775808", "9223372036854775807"]);
        round_trip(UInt64, &["18446744073709551615"]);
        round_trip(
            Decimal {
                precision: 38,
                scale: 10,
            },
            &[
                "1234567890123456789012345678.0123456789",
                "-0.0000000001",
                "0.0000000000",
            ],
        );
        round_trip(
            Decimal {
                precision: 76,
                scale: 3,
            },
            &["-1234567890123456789012345678901234567890123456789012345678901234567890123.999"],
        );
        round_trip(Float64, &["NaN", "Infinity", "-Infinity", "0.1", "-0", "5e-324"]);
        round_trip(Float32, &["0.1", "NaN"]);
        round_trip(
            Date,
            &[
                "1970-01-01",
                "0001-01-01",
                "0001-12-31 BC",
                "4713-01-01 BC",
                "9999-12-31",
                "5874897-12-31",
                "infinity",
                "-infinity",
                "2024-02-29",
                "1582-10-10",
            ],
        );
        round_trip(Time, &["00:00:00", "24:00:00", "23:59:59.999999", "12:30:00.5"]);
        round_trip(
            Timestamp,
            &[
                "1969-12-31 23:59:59.999999",
                "0044-03-15 12:00:00 BC",
                "infinity",
                "2024-01-31 00:00:00",
            ],
        );
        round_trip(
            TimestampTz,
            &["2038-01-19 03:14:08+00", "2262-04-12 00:00:00.000001+00", "-infinity"],
        );
        round_trip(Bytes, &["\\x", "\\x00ff10"]);
        round_trip(
            Uuid,
            &[
                "00000000-0000-0000-0000-000000000000",
                "12345678-9abc-def0-1234-56789abcdef0",
            ],
        );
        round_trip(Text { max: None }, &["", " ", "NULL", "\\N", "ä€😀"]);
        round_trip(Numeric, &["NaN", "1e400", "-Infinity", "0.00"]);
    }

    #[test]
    fn what_does_not_fit_is_refused_and_not_shown() {
        use ColumnType::*;
        refused(Int16, &["32768", "1.0", ""]);
        refused(
            Decimal { precision: 4, scale: 2 },
            &["100.00", "1.234", "NaN", "", "1e9"],
        );
        refused(
            Date,
            &["2023-02-29", "0000-01-01", "2024-13-01", "24-01-01", "2024-00-15"],
        );
        refused(Time, &["24:00:01", "23:60:00", "1:2:3", "12:00:00.1234567"]);
        refused(Timestamp, &["2024-01-01 00:00:00+00", "294277-01-01 00:00:00"]);
        refused(TimestampTz, &["2024-01-01 00:00:00"]);
        refused(Bytes, &["\\x0", "\\xzz", "abc"]);
        refused(
            Uuid,
            &[
                "12345678-9abc-def0-1234-56789abcdef",
                "zz345678-9abc-def0-1234-56789abcdef0",
            ],
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: ProptestConfig::default().cases.max(1000),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Whatever a text says, it is refused, or what is read of it reads the same again.
        #[test]
        fn texts_of_any_kind_never_panic(
            text in "[-+]?[0-9]{0,21}([-:. TZ+eE][-+]?[0-9]{0,12}){0,6}( BC)?|\\\\x[0-9a-fg]{0,9}|\\PC{0,40}",
        ) {
            use ColumnType::*;
            let decimal = |precision, scale| Decimal { precision, scale };
            let types = [
                Bool, Int8, Int64, UInt64, Float32, Float64, decimal(9, 2), decimal(38, 38), decimal(60, 20), Date, Time,
                Timestamp, TimestampTz, Bytes, Uuid, Numeric,
            ];
            for ty in types {
                let read = |text: &str| {
                    let mut builder = ColumnBuilder::new(&Column::new("c", ty.clone()));
                    builder.append_text(text).map(|()| cell(&builder.finish(), 0).unwrap().unwrap())
                };
                if let Ok(written) = read(&text) {
                    prop_assert_eq!(read(&written).unwrap(), written, "{}", ty);
                }
            }
        }
    }

    #[test]
    fn numbers_that_no_type_holds_are_refused() {
        refused(
            ColumnType::Decimal { precision: 9, scale: 2 },
            &["1e2147483647", "1.5e-2147483648"],
        );
        refused(
            ColumnType::Date,
            &["9223372036854775807-01-01", "9223372036854775807-01-01 BC"],
        );
    }

    #[test]
    fn offsets_become_utc_and_exponents_stay_exact() {
        assert_eq!(parse_timestamp("1970-01-01T05:30:00+05:30", true), Some(0));
        assert_eq!(parse_timestamp("1969-12-31 19:00:00-05", true), Some(0));
        assert_eq!(parse_decimal("1.5e2", 5, 1).as_deref(), Some("1500"));
        assert_eq!(parse_decimal("-0.00", 5, 1).as_deref(), Some("0"));
        assert_eq!(parse_decimal("12.30", 3, 1).as_deref(), Some("123"));
    }
}
