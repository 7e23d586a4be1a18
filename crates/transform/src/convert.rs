//! Values of one column type as values of another, by their canonical text. Nothing is rounded or cut: a value that has
//! no place in the new type fails. What may be lost is what the user names by the new type: a timestamp becomes a date
//! without its time of day, an instant becomes a timestamp in UTC.

use crate::rows::Failure;
use arrow_array::{Array, ArrayRef};
use synctool_core::error::Result;
use synctool_core::schema::{Column, ColumnType};
use synctool_core::text::{self, ColumnBuilder};

/// Whether there is a way from one type to the other at all.
pub(crate) fn possible(from: &ColumnType, to: &ColumnType) -> bool {
    use ColumnType::*;
    let text = |t: &ColumnType| matches!(t, Text { .. } | Char { .. } | Native);
    let number = |t: &ColumnType| {
        matches!(
            t,
            Int8 | Int16
                | Int32
                | Int64
                | UInt8
                | UInt16
                | UInt32
                | UInt64
                | Decimal { .. }
                | Numeric
                | Float32
                | Float64
        )
    };
    let whole = |t: &ColumnType| number(t) && !matches!(t, Decimal { .. } | Numeric | Float32 | Float64);
    from == to
        || text(from)
        || text(to)
        || number(from) && number(to)
        || *from == Bool && whole(to)
        || whole(from) && *to == Bool
        || matches!(
            (from, to),
            (Date, Timestamp | TimestampTz)
                | (Timestamp | TimestampTz, Date | Timestamp | TimestampTz | Time)
                | (Json, Jsonb)
                | (Jsonb, Json)
                | (Time, TimeTz)
        )
}

/// The values of a column as another column's. A value without a place there is NULL and a failure.
pub(crate) fn convert(array: &ArrayRef, from: &Column, to: &Column) -> Result<(ArrayRef, Vec<Failure>)> {
    let mut failures = Vec::new();
    let fits = from.ty == to.ty || from.ty.fits(&to.ty);
    if fits && *array.data_type() == to.arrow_type() {
        return Ok((array.clone(), failures));
    }
    let limit = match to.ty {
        ColumnType::Text { max: Some(n) } => Some(n as usize),
        ColumnType::Char { length } => Some(length as usize),
        _ => None,
    };
    // A carrier of text takes any text: the type must be asked.
    let mut strict = ColumnBuilder::new(&Column::new(to.name.clone(), to.ty.clone()));
    let mut builder = ColumnBuilder::new(to);
    let (mut cell, mut made) = (String::new(), String::new());
    for row in 0..array.len() {
        if array.is_null(row) {
            builder.append_null();
            continue;
        }
        cell.clear();
        text::write_cell(&mut cell, array, row)?;
        made.clear();
        let value = reshape(&cell, &from.ty, &to.ty, &mut made);
        let long = limit.is_some_and(|n| value.chars().count() > n);
        let known = fits || to.arrow_type() == Column::new("", to.ty.clone()).arrow_type() || {
            let ok = strict.append_text(value).is_ok();
            if strict.bytes() > 1 << 16 {
                strict.finish();
            }
            ok
        };
        let other = numeric_text(&to.ty).is_some_and(|is| !is(value)) || !survives(value, &to.ty);
        if long || !known || other || builder.append_text(value).is_err() {
            builder.append_null();
            failures.push((row, if long { "too_long" } else { "bad_cast" }));
        }
    }
    Ok((builder.finish(), failures))
}

/// Whether a float holds a number: exactly, or as the float whose shortest text it is.
fn survives(value: &str, to: &ColumnType) -> bool {
    let (finite, shortest, exact) = match to {
        ColumnType::Float32 => match value.parse::<f32>() {
            Ok(v) => (v.is_finite(), format!("{v:e}"), f64::from(v)),
            Err(_) => return false,
        },
        ColumnType::Float64 => match value.parse::<f64>() {
            Ok(v) => (v.is_finite(), format!("{v:e}"), v),
            Err(_) => return false,
        },
        _ => return true,
    };
    let Some(wanted) = digits_of(value) else {
        return !finite;
    };
    // No float has more digits behind the point.
    finite && (digits_of(&shortest) == Some(wanted.clone()) || digits_of(&format!("{exact:.1074}")) == Some(wanted))
}

/// A number's sign, its digits without zeros around them, and the power of ten of the first; `None` if it has none.
fn digits_of(text: &str) -> Option<(bool, String, i64)> {
    let (negative, body) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (mantissa, exponent) = match body.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i64>().ok()?),
        None => (body, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let kept = digits.trim_start_matches('0');
    if kept.is_empty() {
        return Some((false, String::new(), 0));
    }
    let before = (digits.len() - kept.len()) as i64;
    let first = exponent.saturating_add(whole.len() as i64 - before);
    Some((negative, kept.trim_end_matches('0').to_string(), first))
}

/// The test of types that travel as text and take any.
fn numeric_text(ty: &ColumnType) -> Option<fn(&str) -> bool> {
    match ty {
        ColumnType::Numeric => Some(|s| {
            let digits = s.strip_prefix(['-', '+']).unwrap_or(s);
            let mantissa = digits.split_once(['e', 'E']).map_or(digits, |(m, _)| m);
            matches!(s, "NaN" | "Infinity" | "-Infinity")
                || s.parse::<f64>().is_ok() && mantissa.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        }),
        ColumnType::Json | ColumnType::Jsonb => Some(|s| serde_json::from_str::<serde::de::IgnoredAny>(s).is_ok()),
        _ => None,
    }
}

/// The text of a value as the other type writes it.
fn reshape<'a>(cell: &'a str, from: &ColumnType, to: &ColumnType, made: &'a mut String) -> &'a str {
    use ColumnType::*;
    match (from, to) {
        (Bool, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64) => {
            if cell == "true" {
                "1"
            } else {
                "0"
            }
        }
        (Decimal { .. } | Numeric, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64 | Bool) => {
            match cell.split_once('.') {
                Some((whole, zeros)) if zeros.bytes().all(|b| b == b'0') => whole,
                _ => cell,
            }
        }
        // Without an exponent, which whole numbers do not have.
        (Float64, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64) => match cell.parse::<f64>() {
            Ok(v) if v.is_finite() => {
                made.push_str(&v.to_string());
                made
            }
            _ => cell,
        },
        (Float32, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64) => match cell.parse::<f32>() {
            Ok(v) if v.is_finite() => {
                made.push_str(&f64::from(v).to_string());
                made
            }
            _ => cell,
        },
        (Date, Timestamp | TimestampTz) if !cell.ends_with("infinity") => {
            let (day, era) = cell.split_once(' ').map_or((cell, ""), |(d, e)| (d, e));
            let zone = if *to == TimestampTz { "+00" } else { "" };
            made.push_str(day);
            made.push_str(" 00:00:00");
            made.push_str(zone);
            if !era.is_empty() {
                made.push(' ');
                made.push_str(era);
            }
            made
        }
        (Timestamp | TimestampTz, Date) if !cell.ends_with("infinity") => {
            let day = cell.split(' ').next().unwrap_or(cell);
            made.push_str(day);
            if cell.ends_with(" BC") {
                made.push_str(" BC");
            }
            made
        }
        (Timestamp | TimestampTz, Time) => {
            let time = cell.split(' ').nth(1).unwrap_or(cell);
            time.strip_suffix("+00").unwrap_or(time)
        }
        (TimestampTz, Timestamp) => {
            made.push_str(&cell.replacen("+00", "", 1));
            made
        }
        (Timestamp, TimestampTz) if !cell.ends_with("infinity") => {
            let (point, era) = cell.strip_suffix(" BC").map_or((cell, ""), |p| (p, " BC"));
            made.push_str(point);
            made.push_str("+00");
            made.push_str(era);
            made
        }
        // Its digits alone: with dashes it would not fit.
        (Uuid, Char { length: 32 }) => {
            made.extend(cell.chars().filter(|c| *c != '-'));
            made
        }
        (Time, TimeTz) => {
            made.push_str(cell);
            made.push_str("+00");
            made
        }
        _ => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(from: ColumnType, value: &str, to: ColumnType) -> Result<Option<String>, &'static str> {
        let (from, to) = (Column::new("a", from), Column::new("a", to));
        let mut b = ColumnBuilder::new(&from);
        b.append_text(value).unwrap();
        let (array, failures) = convert(&b.finish(), &from, &to).unwrap();
        match failures.first() {
            Some((0, reason)) => Err(reason),
            _ => Ok(text::cell(&array, 0).unwrap()),
        }
    }

    #[test]
    fn nothing_is_rounded_and_what_is_asked_for_happens() {
        use ColumnType::*;
        let money = || Decimal { precision: 6, scale: 2 };
        let good = |from: ColumnType, value: &str, to: ColumnType, want: &str| {
            assert!(possible(&from, &to), "{from} to {to}");
            assert_eq!(one(from, value, to).unwrap().as_deref(), Some(want), "{value}");
        };
        good(Text { max: None }, "12.5", money(), "12.50");
        good(Float64, "12.5", money(), "12.50");
        good(money(), "12.00", Int32, "12");
        good(Float64, "1", Int64, "1");
        good(Int64, "1", Bool, "true");
        good(Bool, "true", Int16, "1");
        good(Timestamp, "2024-01-31 23:59:59.5", Date, "2024-01-31");
        good(Timestamp, "0044-03-15 12:00:00 BC", Date, "0044-03-15 BC");
        good(Date, "2024-01-31", TimestampTz, "2024-01-31 00:00:00+00");
        good(Date, "infinity", Timestamp, "infinity");
        good(TimestampTz, "2024-01-31 10:00:00+00", Timestamp, "2024-01-31 10:00:00");
        good(
            Timestamp,
            "0044-03-15 12:00:00 BC",
            TimestampTz,
            "0044-03-15 12:00:00+00 BC",
        );
        good(Int32, "7", Text { max: None }, "7");
        good(Text { max: None }, "NaN", Numeric, "NaN");
        let (dashed, digits) = (
            "0b6cd1f4-92e5-4b1e-8f5a-0123456789ab",
            "0b6cd1f492e54b1e8f5a0123456789ab",
        );
        good(Uuid, dashed, Char { length: 32 }, digits);
        good(Uuid, dashed, Char { length: 36 }, dashed);
        good(Text { max: None }, &digits.to_uppercase(), Uuid, dashed);
        let bad = |from: ColumnType, value: &str, to: ColumnType, reason: &str| {
            assert_eq!(one(from, value, to), Err(reason), "{value}");
        };
        bad(Text { max: None }, "12.345", money(), "bad_cast");
        bad(money(), "12.50", Int32, "bad_cast");
        bad(Int64, "40000", Int16, "bad_cast");
        bad(Text { max: None }, "äöü", Text { max: Some(2) }, "too_long");
        bad(Text { max: None }, "{", Json, "bad_cast");
        bad(Text { max: None }, "0b6cd1f4", Uuid, "bad_cast");
        bad(Text { max: None }, "0x1", Numeric, "bad_cast");
        bad(Text { max: None }, "inf", Numeric, "bad_cast");
        good(Float64, "1e18", Int64, "1000000000000000000");
        bad(Float64, "1.5", Int64, "bad_cast");
        assert!(!possible(&Date, &Int32) && !possible(&Uuid, &Int64));
    }

    #[test]
    fn a_float_holds_what_reads_back_as_the_same() {
        use ColumnType::*;
        let cents = || Decimal {
            precision: 12,
            scale: 2,
        };
        for (from, value, to, want) in [
            (Float64, "1e300", Float32, None),
            (Float64, "0.1", Float32, Some("0.1")),
            (Float64, "0.123456789", Float32, None),
            (Float64, "NaN", Float32, Some("NaN")),
            (Float64, "-Infinity", Float32, Some("-Infinity")),
            (Float64, "-0", Float32, Some("-0")),
            (cents(), "9999999999.99", Float32, None),
            (cents(), "9999999999.99", Float64, Some("9999999999.99")),
            (cents(), "0.10", Float32, Some("0.1")),
            (Int64, "9007199254740993", Float64, None),
            (Int64, "9007199254740992", Float64, Some("9.007199254740992e15")),
            (Int64, "1152921504606846976", Float64, Some("1.152921504606847e18")),
            (Int64, "16777217", Float32, None),
            (Numeric, "0.12345678901234567890", Float64, None),
            (Numeric, "NaN", Float64, Some("NaN")),
            (Numeric, "0.00", Float64, Some("0")),
            (Text { max: None }, "1e999", Float64, None),
            (Text { max: None }, "1E2", Float64, Some("100")),
            (Text { max: None }, "1e-400", Float64, None),
        ] {
            let made = one(from, value, to).map_or(None, |v| v);
            assert_eq!(made.as_deref(), want, "{value}");
        }
    }

    #[test]
    fn a_carrier_of_text_is_no_way_around_the_type() {
        let from = Column::new("a", ColumnType::Text { max: None });
        let to = text::as_text(Column::new("a", ColumnType::Decimal { precision: 4, scale: 1 }));
        let mut b = ColumnBuilder::new(&from);
        b.append_text("12.3").unwrap();
        b.append_text("12.34").unwrap();
        let (array, failures) = convert(&b.finish(), &from, &to).unwrap();
        assert_eq!(failures, [(1, "bad_cast")]);
        assert_eq!(text::cell(&array, 0).unwrap().as_deref(), Some("12.3"));
    }
}
