//! Values as people write them in files and commands, as canonical text.

use crate::schema::{Column, ColumnType};
use crate::text::{self as t, ColumnBuilder};

/// A value that a person wrote, as canonical text of the type; dates stand for their midnight. `None` if it is no value
/// of the type.
pub fn canonical(text: &str, ty: &ColumnType) -> Option<String> {
    // Blanks around a text are part of it.
    if matches!(ty, ColumnType::Text { .. } | ColumnType::Char { .. }) {
        return Some(text.into());
    }
    let text = text.trim();
    let spaced = text.replacen('T', " ", 1);
    let spaced = spaced.strip_suffix('Z').map_or(spaced.clone(), |s| format!("{s}+00"));
    let mut out = String::new();
    match ty {
        ColumnType::Bool => {
            out = match text.to_ascii_lowercase().as_str() {
                "true" | "t" | "1" | "yes" | "on" => "true".into(),
                "false" | "f" | "0" | "no" | "off" => "false".into(),
                _ => return None,
            }
        }
        ColumnType::Date => {
            let day = spaced.split(' ').next().unwrap_or_default();
            let date = t::parse_date(&spaced).or_else(|| t::parse_date(day))?;
            t::write_date(&mut out, date);
        }
        ColumnType::Timestamp | ColumnType::TimestampTz => {
            let instant = *ty == ColumnType::TimestampTz;
            let full = match t::parse_date(&spaced) {
                // What is no day has no midnight.
                Some(_) if !text.ends_with("infinity") => format!("{spaced} 00:00:00"),
                _ => spaced,
            };
            let with_zone = format!("{full}+00");
            let micros = t::parse_timestamp(&full, instant)
                .or_else(|| t::parse_timestamp(&with_zone, instant))
                .or_else(|| t::parse_timestamp(full.strip_suffix("+00")?, instant))?;
            t::write_timestamp(&mut out, micros, instant);
        }
        ty if ty.is_integer() => out = text.parse::<i128>().ok()?.to_string(),
        _ => out = text.into(),
    }
    Some(out)
}

/// Whether a text is a value of the type, whatever it travels in. What only an engine can judge is let through.
pub fn is_value(text: &str, ty: &ColumnType) -> bool {
    let as_long_as = |max: u32| text.chars().count() <= max as usize;
    let column = Column::new("", ty.clone());
    match ty {
        ColumnType::Text { max } => max.is_none_or(as_long_as),
        ColumnType::Char { length } => as_long_as(*length),
        ColumnType::Json | ColumnType::Jsonb => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        ColumnType::Numeric => text.parse::<f64>().is_ok(),
        // PostgreSQL keeps it in a decimal of any size.
        ColumnType::Decimal { .. } if text == "NaN" => true,
        ColumnType::Decimal { .. } if column.arrow_type() == arrow_schema::DataType::Utf8 => {
            text.parse::<f64>().is_ok()
        }
        _ => ColumnBuilder::new(&column).append_text(text).is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_without_an_end_are_moments() {
        for ty in [ColumnType::Date, ColumnType::Timestamp, ColumnType::TimestampTz] {
            for text in ["infinity", "-infinity"] {
                assert_eq!(canonical(text, &ty).as_deref(), Some(text), "{ty}");
            }
        }
    }

    #[test]
    fn days_before_our_era_stay_there() {
        let day = |text: &str| canonical(text, &ColumnType::Date);
        assert_eq!(day("0044-03-15 BC").as_deref(), Some("0044-03-15 BC"));
        assert_eq!(day("2024-01-15 12:00").as_deref(), Some("2024-01-15"));
    }

    #[test]
    fn blanks_count_in_texts_alone() {
        assert_eq!(
            canonical(" eu", &ColumnType::Text { max: None }).as_deref(),
            Some(" eu")
        );
        assert_eq!(canonical(" 7 ", &ColumnType::Int32).as_deref(), Some("7"));
        assert_eq!(canonical(" yes", &ColumnType::Bool).as_deref(), Some("true"));
    }

    #[test]
    fn values_are_told_from_other_texts_whatever_they_travel_in() {
        use ColumnType as T;
        let text = |max| T::Text { max };
        for (ty, values, others) in [
            (T::Int16, &["-7", "32767"][..], &["many", "32768", "1.5", ""][..]),
            (T::Numeric, &["1.50", "-1e400", "NaN"], &["1,5", "one", ""]),
            (
                T::Decimal { precision: 4, scale: 2 },
                &["12.5", "NaN"],
                &["123.4", "1.234", "x"],
            ),
            (
                T::Decimal {
                    precision: 90,
                    scale: 2,
                },
                &["12.5"],
                &["x"],
            ),
            (T::Bool, &["true", "no"], &["perhaps"]),
            (T::Date, &["2024-02-29", "infinity"], &["2023-02-29", "today"]),
            (
                T::TimestampTz,
                &["2024-01-01 00:00:00+00"],
                &["2024-01-01 00:00:00", "now"],
            ),
            (T::Json, &["{}", "1"], &["{", ""]),
            (text(Some(3)), &["", "äöü"], &["abcd"]),
            (text(None), &["of any length"], &[]),
            (T::Char { length: 2 }, &["ab"], &["abc"]),
            (T::Uuid, &["12345678-9abc-def0-1234-56789abcdef0"], &["12345678"]),
            (T::Native, &["anything"], &[]),
        ] {
            assert!(values.iter().all(|v| is_value(v, &ty)), "{ty}");
            assert!(!others.iter().any(|v| is_value(v, &ty)), "{ty}");
        }
    }
}
