//! How values compare where SQLite's own order is not the type's.
//!
//! SQLite compares what it stores: numbers by value, text by its column's collation, blobs by bytes. Integers, text and
//! blobs are compared like that, so that indexes serve. Times, decimals, floats and uuids may be stored in several forms
//! (`2024-01-31T10:00`, 1.10 as real or text, minus zero as text), so functions that we register turn them into one
//! that sorts. A range of dates or timestamps also says what every form of it begins with, which an index can use; so
//! such ranges know the years 1 to 9999 only, which all forms write with four digits.

use super::types::{self, Affinity, Cell, Store};
use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use rusqlite::types::ValueRef;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType};
use synctool_core::text;

/// The function that turns a stored value of a type into one that sorts; none where SQLite's own order is right.
fn function(ty: &ColumnType) -> Option<&'static str> {
    Some(match ty {
        ColumnType::Date => "_synctool_date",
        ColumnType::Time => "_synctool_time",
        ColumnType::Timestamp => "_synctool_timestamp",
        ColumnType::TimestampTz => "_synctool_instant",
        ColumnType::Decimal { .. } | ColumnType::Numeric => "_synctool_decimal",
        ColumnType::Float32 | ColumnType::Float64 => "_synctool_float",
        ColumnType::Uuid => "_synctool_uuid",
        _ => return None,
    })
}

/// Registers the functions.
pub(super) fn register(conn: &Connection) -> rusqlite::Result<()> {
    let types = [
        ColumnType::Date,
        ColumnType::Time,
        ColumnType::Timestamp,
        ColumnType::TimestampTz,
        ColumnType::Numeric,
        ColumnType::Float64,
        ColumnType::Uuid,
    ];
    let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
    for ty in types {
        let Some(name) = function(&ty) else { continue };
        conn.create_scalar_function(name, 1, flags, move |context| {
            sorting(&ty, context.get_raw(0)).ok_or_else(|| {
                rusqlite::Error::UserFunctionError(
                    format!("a value does not fit type {ty}, which SQLite declares but does not enforce").into(),
                )
            })
        })?;
    }
    Ok(())
}

/// What sorts in the place of a stored value; `None` if it is not of the type.
fn sorting(ty: &ColumnType, value: ValueRef<'_>) -> Option<Cell<'static>> {
    let text = match value {
        ValueRef::Null => return Some(Cell::Null),
        ValueRef::Text(t) => Some(std::str::from_utf8(t).ok()?),
        _ => None,
    };
    Some(match ty {
        ColumnType::Date => Cell::Integer(match text::parse_date(text?)? {
            i32::MAX => i64::MAX,
            i32::MIN => i64::MIN,
            days => i64::from(days),
        }),
        ColumnType::Time => Cell::Integer(text::parse_time(text?)?),
        ColumnType::Timestamp => Cell::Integer(text::parse_timestamp(text?, false)?),
        ColumnType::TimestampTz => Cell::Integer(text::parse_timestamp(text?, true)?),
        ColumnType::Decimal { .. } | ColumnType::Numeric => Cell::Blob(
            match value {
                ValueRef::Integer(i) => decimal(&i.to_string()),
                ValueRef::Real(r) => decimal(&r.to_string()),
                _ => decimal(text?),
            }?
            .into(),
        ),
        ColumnType::Float32 | ColumnType::Float64 => {
            let v = match value {
                ValueRef::Integer(i) => i as f64,
                ValueRef::Real(r) => r,
                _ if text? == types::MINUS_ZERO => 0.0,
                _ if *ty == ColumnType::Float32 => f64::from(text?.parse::<f32>().ok()?),
                _ => text?.parse().ok()?,
            };
            match v.is_nan() {
                true => Cell::Text("NaN".into()),
                false => Cell::Real(v + 0.0),
            }
        }
        ColumnType::Uuid => match value {
            ValueRef::Blob(b) if b.len() == 16 => {
                Cell::Text(b.iter().map(|b| format!("{b:02x}")).collect::<String>().into())
            }
            _ => {
                let hex: String = text?.chars().filter(|c| *c != '-').collect();
                (hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()))
                    .then(|| Cell::Text(hex.to_ascii_lowercase().into()))?
            }
        },
        _ => return None,
    })
}

/// A decimal as bytes that sort by value.
fn decimal(value: &str) -> Option<Vec<u8>> {
    match value {
        "-Infinity" => return Some(vec![0]),
        "Infinity" => return Some(vec![4]),
        "NaN" => return Some(vec![5]),
        _ => {}
    }
    let (negative, digits) = value.strip_prefix('-').map_or((false, value), |d| (true, d));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let all = format!("{whole}{fraction}");
    let digits = all.trim_end_matches('0');
    if digits.is_empty() {
        return Some(vec![2]);
    }
    let mut size = u32::try_from(whole.len()).ok()?.to_be_bytes().to_vec();
    size.extend_from_slice(digits.as_bytes());
    if negative {
        // What is larger is smaller, also where it is longer.
        size.push(0);
        size.iter_mut().for_each(|b| *b = !*b);
    }
    size.insert(0, if negative { 1 } else { 3 });
    Some(size)
}

/// A term that values are compared with.
#[derive(Debug)]
pub(super) struct Comparable {
    /// The side that holds the term.
    pub(super) sql: String,
    column: Column,
    how: How,
    /// A column of dates or timestamps by itself, for what its forms begin with.
    plain: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// As it is stored.
    Stored(Store),
    /// As text, whatever it is stored as.
    AsText,
    /// By a registered function.
    Function,
}

impl Comparable {
    /// A column by its declared type.
    pub(super) fn column(sql: String, name: &str, declared: &str) -> Self {
        let column = Column::new(name, types::column_type(declared)).with_source_type(declared);
        let store = types::store(declared);
        // Ours are in canonical form already.
        let how = match (function(&column.ty), store) {
            (Some(_), _) if declared != "UUID_TEXT" => How::Function,
            (_, Store::Text) if types::affinity(declared) != Affinity::Text => How::AsText,
            (_, Store::GuardedText) => How::AsText,
            (_, store) => How::Stored(store),
        };
        Comparable::new(sql, column, how, true)
    }

    /// An expression, of the type that was found or asked for.
    pub(super) fn expression(sql: String, column: Column) -> Self {
        let how = match (function(&column.ty), types::store(&types::declared(&column.ty))) {
            (Some(_), _) => How::Function,
            (None, Store::Text) => How::AsText,
            (None, store) => How::Stored(store),
        };
        Comparable::new(sql, column, how, false)
    }

    fn new(sql: String, column: Column, how: How, plain: bool) -> Self {
        let dated = matches!(
            column.ty,
            ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz
        );
        let bare = (plain && dated).then(|| sql.clone());
        let sql = match how {
            How::Function => format!("{}({sql})", function(&column.ty).unwrap_or_default()),
            How::AsText => format!("CAST({sql} AS TEXT)"),
            How::Stored(_) if matches!(column.ty, ColumnType::Char { .. }) => format!("rtrim({sql}, ' ')"),
            How::Stored(_) => sql,
        };
        Comparable {
            sql,
            column,
            how,
            plain: bare,
        }
    }

    /// The term as it was read, for its values.
    pub(super) fn described(&self) -> &Column {
        &self.column
    }

    /// Fails where SQLite does not sort the type as other databases do.
    pub(super) fn ordered(&self) -> Result<()> {
        match self.column.ty {
            ColumnType::TimeTz | ColumnType::Interval | ColumnType::Json | ColumnType::Jsonb => Err(Error::new(
                code::UNSUPPORTED,
                format!(
                    "{} is of type {}, which SQLite does not sort as other databases do",
                    self.column.name, self.column.ty
                ),
            )
            .hint("compare for equality, or choose another column")),
            _ => Ok(()),
        }
    }

    /// The other side: a canonical text in the form the term is compared in.
    pub(super) fn value(&self, text: &str) -> Result<Cell<'static>> {
        match self.how {
            How::Stored(_) if matches!(self.column.ty, ColumnType::Char { .. }) => {
                Ok(Cell::Text(text.trim_end_matches(' ').to_string().into()))
            }
            How::Stored(store) => types::bound(&self.column, store, text),
            How::AsText => Ok(Cell::Text(text.to_string().into())),
            How::Function => sorting(&self.column.ty, ValueRef::Text(text.as_bytes())).ok_or_else(|| {
                Error::new(
                    code::VALUE_MALFORMED,
                    format!(
                        "a value that {} is compared with is not of type {}",
                        self.column.name, self.column.ty
                    ),
                )
            }),
        }
    }

    /// A condition an index can use, which every value from `lower` on, or below `upper`, meets.
    pub(super) fn coarse(&self, lower: Option<&str>, upper: Option<&str>) -> Vec<(String, Cell<'static>)> {
        let Some(plain) = &self.plain else { return Vec::new() };
        // A stored offset moves the day that is written.
        let slack = if self.column.ty == ColumnType::TimestampTz {
            1
        } else {
            0
        };
        let day = |value: &str, shift: i32| -> Option<String> {
            let days = text::parse_date(value.get(..10)?)?.checked_add(shift)?;
            let mut out = String::new();
            text::write_date(&mut out, days);
            (out.len() == 10 && !value.ends_with(" BC")).then_some(out)
        };
        let bound = |op: &str, day: Option<String>| day.map(|d| (format!("{plain} {op} "), Cell::Text(d.into())));
        [
            lower.and_then(|v| bound(">=", day(v, -slack))),
            upper.and_then(|v| bound("<", day(v, 1 + slack))),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_sort_by_value() {
        let sorted = [
            "-Infinity",
            "-100",
            "-99.5",
            "-1.10",
            "-1",
            "-0.5",
            "-0.05",
            "0",
            "0.0001",
            "0.05",
            "0.5",
            "1",
            "1.1",
            "9",
            "10",
            "10.5",
            "99999999999999999999",
            "Infinity",
            "NaN",
        ];
        let forms: Vec<Vec<u8>> = sorted.iter().map(|d| decimal(d).unwrap()).collect();
        assert!(forms.is_sorted_by(|a, b| a < b), "{forms:?}");
        assert_eq!(decimal("-0.00"), decimal("0"));
        assert_eq!(decimal("1.10"), decimal("01.1"));
        assert_eq!(decimal("1e3"), None);
    }
}
