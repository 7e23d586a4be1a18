//! The digits that a column keeps: a server rounds to them, and tells nobody.

use super::ddl;
use super::types::Wire;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Time64MicrosecondType, TimestampMicrosecondType};
use arrow_schema::{DataType, TimeUnit};
use synctool_core::error::{Error, Result, code};
use synctool_core::text;

/// What a column keeps of its values, or of those of its arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kept {
    /// So many digits of a second.
    Second(u8),
    /// So many digits behind the point.
    Point(i32),
}

/// Refuses values that a column would round.
#[derive(Debug, Clone)]
pub(super) struct Digits {
    column: String,
    type_name: String,
    kept: Kept,
}

impl Digits {
    /// Those of a column of this type; `None` where it keeps what it takes.
    pub(super) fn of(column: &str, type_name: &str) -> Option<Digits> {
        Some(Digits {
            column: column.to_string(),
            type_name: type_name.to_string(),
            kept: Kept::by(type_name)?,
        })
    }

    /// Fails where the column would keep another value than this one.
    pub(super) fn check(&self, array: &dyn Array, row: usize) -> Result<()> {
        if array.is_null(row) || !self.rounds(array, row)? {
            return Ok(());
        }
        let Digits { column, type_name, .. } = self;
        Err(Error::new(
            code::VALUE_UNSUPPORTED,
            format!("column {column} ({type_name}): a value has more digits than it keeps, and would be rounded"),
        )
        .hint(format!(
            "give column {column} a type that keeps them, at the destination (a run that is unfinished starts over after \
             `synctool state reset`), or cast the values in the pipeline"
        )))
    }

    fn rounds(&self, array: &dyn Array, row: usize) -> Result<bool> {
        Ok(match (array.data_type(), self.kept) {
            (DataType::Time64(TimeUnit::Microsecond), Kept::Second(kept)) => {
                array.as_primitive::<Time64MicrosecondType>().value(row) % unit(kept) != 0
            }
            (DataType::Timestamp(TimeUnit::Microsecond, _), Kept::Second(kept)) => {
                match array.as_primitive::<TimestampMicrosecondType>().value(row) {
                    // Infinity.
                    i64::MAX | i64::MIN => false,
                    micros => micros % unit(kept) != 0,
                }
            }
            (DataType::Utf8, Kept::Second(kept)) => seconds_round(array.as_string::<i32>().value(row), kept),
            (DataType::Utf8, Kept::Point(kept)) => numbers_round(array.as_string::<i32>().value(row), kept),
            (DataType::Decimal128(_, scale) | DataType::Decimal256(_, scale), Kept::Point(kept))
                if i32::from(*scale) > kept =>
            {
                let mut shown = String::new();
                text::write_cell(&mut shown, array, row)?;
                numbers_round(&shown, kept)
            }
            _ => false,
        })
    }
}

impl Kept {
    fn by(type_name: &str) -> Option<Kept> {
        let element = type_name.strip_suffix("[]").unwrap_or(type_name);
        match ddl::without_modifier(element).as_str() {
            "numeric" | "decimal" => {
                let sizes = ddl::modifier(element)?;
                let scale = sizes.split_once(',').map_or("0", |(_, scale)| scale.trim());
                Some(Kept::Point(scale.parse().ok()?))
            }
            times if times == "interval" || times.starts_with("time") => {
                let kept = ddl::second_digits(element);
                (kept < 6).then_some(Kept::Second(kept))
            }
            _ => None,
        }
    }
}

/// Whether two types differ in nothing but the digits that their columns keep.
pub(super) fn differ_in_digits(one: &str, other: &str) -> bool {
    let kind = |name: &str| {
        let element = name.strip_suffix("[]");
        (ddl::without_modifier(element.unwrap_or(name)), element.is_some())
    };
    kind(one) == kind(other) && Kept::by(one) != Kept::by(other)
}

/// Whether values of an array of the type `from` may lose something as those of one of the type `to`, and no error tells.
pub(super) fn cut_in_arrays(from: &str, to: &str) -> bool {
    use Wire::*;
    let element = |name: &str| Wire::of_type_name(name.strip_suffix("[]")?);
    let (Some(was), Some(is)) = (element(from), element(to)) else {
        return false;
    };
    match (was, is) {
        (Text, Text) => pads(to).is_some_and(|kept| pads(from).is_none_or(|length| length > kept)),
        (Text, _) => Kept::by(to).is_some(),
        (Numeric, Numeric) => match (Kept::by(from), Kept::by(to)) {
            (Some(Kept::Point(has)), Some(Kept::Point(kept))) => has > kept,
            (_, kept) => kept.is_some(),
        },
        (Int2, Float4 | Float8) | (Int4 | Float4, Float8) | (Date, Timestamp) => false,
        (Numeric | Float4 | Float8, Int2 | Int4 | Int8 | Numeric) => true,
        (was, is) => was != is && matches!(is, Float4 | Float8 | Date | Time | Timestamp | Timestamptz),
    }
}

/// The length of a `character(n)`, to which a cast cuts.
fn pads(type_name: &str) -> Option<u32> {
    let padded = type_name.starts_with("character(");
    padded.then(|| ddl::modifier(type_name)?.parse().ok()).flatten()
}

/// The microseconds of the last digit of a second that is kept.
fn unit(kept: u8) -> i64 {
    10i64.pow(6 - u32::from(kept.min(6)))
}

/// Whether a text of times has a second with more digits, which are no zeros.
fn seconds_round(text: &str, kept: u8) -> bool {
    let beyond = |behind: &str| {
        let digits = behind.bytes().take_while(u8::is_ascii_digit);
        digits.skip(kept.into()).any(|digit| digit != b'0')
    };
    text.split('.').skip(1).any(beyond)
}

/// Whether a number, or one of an array's text, has more digits behind the point, which are no zeros.
fn numbers_round(text: &str, kept: i32) -> bool {
    let apart = |c: char| matches!(c, '{' | '}' | ',' | '"' | ' ');
    text.split(apart).any(|number| number_rounds(number, kept))
}

fn number_rounds(number: &str, kept: i32) -> bool {
    let (digits, exponent) = match number.split_once(['e', 'E']) {
        Some((digits, exponent)) => (digits, exponent.parse().unwrap_or(0i32)),
        None => (number, 0),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let behind = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
    let beyond = behind
        .saturating_sub(i64::from(exponent))
        .saturating_sub(i64::from(kept));
    let beyond = usize::try_from(beyond).unwrap_or(0);
    let mut last = whole.bytes().chain(fraction.bytes()).rev().take(beyond);
    last.any(|digit| matches!(digit, b'1'..=b'9'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::{Int64Array, StringArray, TimestampMicrosecondArray};

    fn takes(type_name: &str, text: &str) -> bool {
        let array = StringArray::from(vec![text]);
        let digits = Digits::of("c", type_name).expect("a type that rounds");
        digits.check(&array, 0).is_ok()
    }

    #[test]
    fn a_text_that_would_be_rounded_is_refused() {
        for (type_name, fine, bad) in [
            ("numeric(10,2)", "-1.50", "1.005"),
            ("numeric(10,2)", "1.5000", "0.001"),
            ("numeric(10,2)", "150e-2", "15e-3"),
            ("numeric(10,2)", "1.005e1", "1.005e0"),
            ("numeric(5,0)", "NaN", "0.5"),
            ("numeric(5,-2)", "1200", "1250"),
            ("numeric(10,2)[]", "{1.50,NULL,{2}}", "{1.50,2.001}"),
            ("interval(0)", "1 day 00:00:01", "00:00:01.5"),
            ("interval day to second(3)", "00:00:01.5", "00:00:01.0005"),
            ("time(3) with time zone", "10:00:00.123000+02", "10:00:00.1234+02"),
            (
                "timestamp(0) without time zone[]",
                "{\"2026-01-01 00:00:00\"}",
                "{\"2026-01-01 00:00:00\",\"2026-01-01 00:00:00.5\"}",
            ),
        ] {
            assert!(takes(type_name, fine), "{type_name}: {fine}");
            assert!(!takes(type_name, bad), "{type_name}: {bad}");
        }
        for all in [
            "numeric",
            "interval",
            "timestamp without time zone",
            "time(6)",
            "text",
            "real",
            "\"time(0)\"",
        ] {
            assert!(Digits::of("c", all).is_none(), "{all}");
        }
    }

    #[test]
    fn a_moment_that_would_be_rounded_is_refused_by_name() {
        let moments = TimestampMicrosecondArray::from(vec![Some(-1_000_000), Some(i64::MAX), None, Some(-1)]);
        let digits = Digits::of("at", "timestamp(0) without time zone").expect("a type that rounds");
        for row in 0..3 {
            digits.check(&moments, row).expect("whole seconds, infinity and NULL");
        }
        let e = digits.check(&moments, 3).unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
        assert!(e.message().contains("column at") && e.next_step().is_some(), "{e}");
        let numbers = Int64Array::from(vec![12]);
        assert!(Digits::of("n", "numeric(10,2)").is_some_and(|d| d.check(&numbers, 0).is_ok()));
    }

    #[test]
    fn arrays_that_a_cast_would_cut_are_known() {
        for (from, to) in [
            ("double precision[]", "real[]"),
            ("double precision[]", "numeric[]"),
            ("numeric[]", "integer[]"),
            ("numeric(12,4)[]", "numeric(12,2)[]"),
            ("numeric[]", "numeric(12,2)[]"),
            ("text[]", "numeric(12,2)[]"),
            ("timestamp without time zone[]", "date[]"),
            ("character(9)[]", "character(5)[]"),
            ("text[]", "character(5)[]"),
        ] {
            assert!(cut_in_arrays(from, to), "{from} as {to}");
        }
        for (from, to) in [
            ("integer[]", "bigint[]"),
            ("bigint[]", "integer[]"),
            ("real[]", "double precision[]"),
            ("numeric(12,2)[]", "numeric(12,4)[]"),
            ("numeric(12,2)[]", "numeric[]"),
            ("character(5)[]", "text[]"),
            ("character(5)[]", "character(9)[]"),
            ("timestamp without time zone[]", "timestamp(0) without time zone[]"),
            ("double precision", "real"),
            ("shop.mood[]", "shop.mood2[]"),
        ] {
            assert!(!cut_in_arrays(from, to), "{from} as {to}");
        }
    }

    #[test]
    fn types_of_other_digits_are_told_from_others() {
        assert!(differ_in_digits(
            "timestamp without time zone",
            "timestamp(0) without time zone"
        ));
        assert!(differ_in_digits("numeric(10,4)[]", "numeric(10,2)[]"));
        assert!(differ_in_digits("interval[]", "interval(0)[]"));
        for (one, other) in [
            ("timestamp without time zone", "timestamp(0) with time zone"),
            ("numeric(10,2)", "numeric(10,2)[]"),
            ("numeric(10,2)", "numeric(12,2)"),
            ("text", "character varying(3)"),
        ] {
            assert!(!differ_in_digits(one, other), "{one}, {other}");
        }
    }
}
