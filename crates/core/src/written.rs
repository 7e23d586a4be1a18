//! Values as people write them in files and commands, as canonical text.

use crate::schema::ColumnType;
use crate::text as t;

/// A value that a person wrote, as canonical text of the type; dates stand for their midnight. `None` if it is no value
/// of the type.
pub fn canonical(text: &str, ty: &ColumnType) -> Option<String> {
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
            let date = spaced.split(' ').next().unwrap_or_default();
            t::write_date(&mut out, t::parse_date(date)?);
        }
        ColumnType::Timestamp | ColumnType::TimestampTz => {
            let instant = *ty == ColumnType::TimestampTz;
            let full = match t::parse_date(&spaced) {
                Some(_) => format!("{spaced} 00:00:00"),
                None => spaced,
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
