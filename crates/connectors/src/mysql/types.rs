//! Types: what a column of the catalog is, how a column is stored, and how values are read and written as text.
//!
//! Values come as the server prints them (text protocol) and go as text, quoted as data. What MySQL has no type for is
//! stored as text or DATETIME, with `synctool:<type>` in the column's comment, so that it is known again when it is read.

use super::ENGINE;
use super::client::Flavor;
use super::sql;
use arrow_array::Array;
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Float32Type, Float64Type, Time64MicrosecondType, TimestampMicrosecondType};
use arrow_schema::{DataType, TimeUnit};
use std::fmt::Write;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType};
use synctool_core::sink::{Fidelity, StoredAs};
use synctool_core::text::{self, ColumnBuilder};

/// What begins a logical type in a column's comment.
const MARK: &str = "synctool:";

/// A longer varchar is stored as longtext: a row holds 65,535 bytes of varchars at most.
const MAX_VARCHAR: u32 = 1000;

/// The types of columns that hold texts.
pub(super) const TEXTS: [&str; 8] = [
    "char",
    "varchar",
    "tinytext",
    "text",
    "mediumtext",
    "longtext",
    "enum",
    "set",
];

/// What the catalog says of a column's type.
#[derive(Debug, Clone, Default)]
pub(super) struct Declared {
    /// `varchar`, `bigint` …
    pub(super) data_type: String,
    /// `varchar(20)`, `bigint(20) unsigned` …
    pub(super) column_type: String,
    pub(super) precision: u64,
    pub(super) scale: u64,
    pub(super) characters: u64,
    pub(super) comment: String,
    /// MariaDB says JSON by a check.
    pub(super) json: bool,
}

/// The logical type of a declared column.
pub(super) fn column_type(d: &Declared) -> ColumnType {
    use ColumnType::*;
    let unsigned = d.column_type.contains("unsigned");
    let plain = match d.data_type.as_str() {
        "tinyint" if d.column_type.starts_with("tinyint(1)") && !unsigned => Bool,
        "tinyint" => {
            if unsigned {
                UInt8
            } else {
                Int8
            }
        }
        "smallint" => {
            if unsigned {
                UInt16
            } else {
                Int16
            }
        }
        "mediumint" | "int" | "integer" => {
            if unsigned {
                UInt32
            } else {
                Int32
            }
        }
        "bigint" => {
            if unsigned {
                UInt64
            } else {
                Int64
            }
        }
        "bit" if d.column_type == "bit(1)" => Bool,
        "bit" => UInt64,
        "year" => Int16,
        "decimal" | "numeric" => Decimal {
            precision: d.precision as u16,
            scale: d.scale as i16,
        },
        "float" => Float32,
        "double" | "real" => Float64,
        "date" => Date,
        "time" => Time,
        "datetime" => Timestamp,
        "timestamp" => TimestampTz,
        "char" => Char {
            length: d.characters as u32,
        },
        "varchar" => Text {
            max: Some(d.characters as u32),
        },
        "longtext" if d.json => Json,
        "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => Text { max: None },
        "json" => Json,
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "vector" => Bytes,
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" | "geomcollection" => Bytes,
        "uuid" => Uuid,
        _ => Native,
    };
    let marked = d
        .comment
        .split_once(MARK)
        .and_then(|(_, rest)| rest.split([' ', ';', ',']).next())
        .and_then(|name| name.parse::<ColumnType>().ok());
    match (&plain, marked) {
        (Timestamp, Some(TimestampTz)) => TimestampTz,
        (Bytes, Some(Uuid)) if d.column_type == "binary(16)" => Uuid,
        (
            Char { .. } | Text { .. } | Json,
            Some(ty @ (Uuid | TimeTz | Interval | Numeric | Json | Jsonb | Native | Text { max: None })),
        ) => ty,
        _ => plain,
    }
}

/// The comment of a column that we make, where its type alone does not say what it is.
pub(super) fn comment(type_name: &str, ty: &ColumnType) -> Option<String> {
    use ColumnType::*;
    let marked = match ty {
        TimestampTz => type_name.starts_with("datetime"),
        Uuid => type_name != "uuid",
        TimeTz | Interval | Numeric | Jsonb => true,
        Json => type_name != "json",
        Native => matches!(type_name, "longtext"),
        // As long a text as a key may be stands for a text without a limit.
        Text { max: None } => type_name.starts_with("varchar"),
        Decimal { .. } => return (type_name == "longtext").then(|| format!("{MARK}{Numeric}")),
        _ => false,
    };
    marked.then(|| format!("{MARK}{ty}"))
}

/// How a source column is stored here.
pub(super) fn store_as(flavor: &Flavor, source_engine: &str, column: &Column) -> StoredAs {
    if source_engine == ENGINE
        && let Some(printed) = &column.source_type
        && (flavor.mariadb || !(printed.starts_with("uuid") || printed.starts_with("inet")))
    {
        return StoredAs {
            type_name: printed.clone(),
            // As text, so that zero dates, times beyond a day and a boolean's other numbers pass as they are.
            carrier: match column.ty {
                ColumnType::Bool
                | ColumnType::Date
                | ColumnType::Time
                | ColumnType::Timestamp
                | ColumnType::TimestampTz => Carrier::Text,
                _ => Carrier::Arrow,
            },
            fidelity: Fidelity::Exact,
        };
    }
    let (type_name, fidelity) = by_logical_type(&column.ty, column.source_type.as_deref());
    let carrier = match &column.ty {
        ColumnType::Decimal { .. } if type_name == "longtext" => Carrier::Text,
        _ => Carrier::Arrow,
    };
    StoredAs {
        type_name,
        carrier,
        fidelity,
    }
}

fn by_logical_type(ty: &ColumnType, source_type: Option<&str>) -> (String, Fidelity) {
    use ColumnType::*;
    let exact = |name: &str| (name.to_string(), Fidelity::Exact);
    let wider = |name: &str, note: &str| (name.to_string(), Fidelity::Widened(note.to_string()));
    match ty {
        Bool => exact("tinyint(1)"),
        Int8 => exact("tinyint"),
        Int16 => exact("smallint"),
        Int32 => exact("int"),
        Int64 => exact("bigint"),
        UInt8 => exact("tinyint unsigned"),
        UInt16 => exact("smallint unsigned"),
        UInt32 => exact("int unsigned"),
        UInt64 => exact("bigint unsigned"),
        Decimal { precision, scale } => {
            let has = (1..=65).contains(precision) && (0..=30).contains(scale) && *scale <= *precision as i16;
            if has {
                (format!("decimal({precision},{scale})"), Fidelity::Exact)
            } else {
                wider(
                    "longtext",
                    "as text: DECIMAL ends at 65 digits, 30 of them behind the point",
                )
            }
        }
        Numeric => wider("longtext", "as text: MySQL has no decimal without a limit"),
        Float32 => exact("float"),
        Float64 => exact("double"),
        Date => exact("date"),
        Time => exact("time(6)"),
        TimeTz => wider("varchar(64)", "as text"),
        Timestamp => exact("datetime(6)"),
        TimestampTz => wider("datetime(6)", "DATETIME in UTC: TIMESTAMP ends in 2038"),
        Interval => wider("varchar(255)", "as text"),
        Text { max: Some(n) } if (1..=MAX_VARCHAR).contains(n) => (format!("varchar({n})"), Fidelity::Exact),
        Text { .. } => exact("longtext"),
        // CHAR would lose blanks at the end, which others may keep.
        Char { length } if (1..=MAX_VARCHAR).contains(length) => {
            wider(&format!("varchar({length})"), &format!("varchar({length})"))
        }
        Char { .. } => wider("longtext", "longtext"),
        Bytes => exact("longblob"),
        Uuid => wider("char(36)", "as text"),
        Json | Jsonb => exact("longtext"),
        Native => (
            "longtext".into(),
            Fidelity::Normalised(match source_type {
                Some(t) => format!("stored as text, in the form {t} prints"),
                None => "stored as text".into(),
            }),
        ),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Reading

/// The expression that reads a column so that its text loses nothing.
pub(super) fn select(expression: &str, column: &Column) -> String {
    let printed = column.source_type.as_deref().unwrap_or_default();
    match column.ty {
        // FLOAT prints six digits; as a double it prints all.
        ColumnType::Float32 => format!("({expression} * 1e0)"),
        _ if printed.starts_with("bit") => format!("({expression} + 0)"),
        _ => expression.to_string(),
    }
}

/// Adds a value as the server printed it.
pub(super) fn read_cell(column: &Column, builder: &mut ColumnBuilder, bytes: &[u8]) -> Result<()> {
    let plain = |builder: &mut ColumnBuilder| match std::str::from_utf8(bytes) {
        Ok(s) => builder.append_text(s),
        Err(_) => builder.append_bytes(bytes),
    };
    match &column.ty {
        ColumnType::Bytes if column.carrier == Carrier::Arrow => builder.append_bytes(bytes),
        ColumnType::Uuid if bytes.len() == 16 && column.carrier == Carrier::Arrow => builder.append_bytes(bytes),
        ColumnType::Uuid if column.carrier == Carrier::Arrow => plain(builder),
        ColumnType::TimestampTz if column.carrier == Carrier::Arrow => {
            let mut s = utf8(column, bytes)?.to_string();
            s.push_str("+00");
            builder.append_text(&s)
        }
        _ if column.carrier == Carrier::Arrow => plain(builder),
        _ => builder.append_text(&canonical(column, bytes)?),
    }
}

fn utf8<'a>(column: &Column, bytes: &'a [u8]) -> Result<&'a str> {
    std::str::from_utf8(bytes).map_err(|_| {
        Error::new(
            code::VALUE_MALFORMED,
            format!("column {}: a value is not UTF-8", column.name),
        )
    })
}

/// The canonical text of a value as the server printed it. What is no value of the type (a zero date, a time beyond a
/// day) stays as it is.
pub(super) fn canonical(column: &Column, bytes: &[u8]) -> Result<String> {
    let mut out = String::new();
    match &column.ty {
        ColumnType::Bytes => {
            text::write_bytes(&mut out, bytes);
            return Ok(out);
        }
        ColumnType::Uuid if bytes.len() == 16 => {
            text::write_bytes(&mut out, bytes);
            let hex = &out[2..];
            let parts = [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]];
            return Ok(parts.join("-"));
        }
        _ => {}
    }
    let s = utf8(column, bytes)?;
    let shorter = |s: &str| match s.contains('.') {
        true => s.trim_end_matches('0').trim_end_matches('.').to_string(),
        false => s.to_string(),
    };
    Ok(match &column.ty {
        ColumnType::Bool => match s {
            "1" => "true".into(),
            "0" => "false".into(),
            other => other.into(),
        },
        ty if ty.is_integer() => s.parse::<i128>().map_or_else(|_| s.to_string(), |n| n.to_string()),
        ColumnType::Float32 => match s.parse::<f32>() {
            Ok(v) => {
                text::write_float(&mut out, f64::from(v), v);
                out
            }
            Err(_) => s.into(),
        },
        ColumnType::Float64 => match s.parse::<f64>() {
            Ok(v) => {
                text::write_float(&mut out, v, v);
                out
            }
            Err(_) => s.into(),
        },
        ColumnType::Time | ColumnType::Timestamp => shorter(s),
        ColumnType::TimestampTz => format!("{}+00", shorter(s)),
        ColumnType::Uuid => s.to_ascii_lowercase(),
        _ => s.into(),
    })
}

// ---------------------------------------------------------------------------------------------------------------------
// Writing

/// How values of one destination column are written.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    name: String,
    ty: ColumnType,
    /// The destination's own type, as its catalog prints it.
    declared: String,
    /// Digits of a second that the column keeps.
    fraction: Option<usize>,
    /// Digits behind the point that the column keeps.
    scale: Option<usize>,
    /// The same of a float that says them (`double(10,2)`): the server rounds to them, and warns of nothing.
    places: Option<usize>,
}

impl Writer {
    /// For a column of a plan, stored in a column declared like this.
    pub(super) fn new(column: &Column, declared: &str) -> Self {
        let declared = declared.to_ascii_lowercase();
        let arguments = declared
            .split_once('(')
            .and_then(|(_, rest)| rest.split(')').next())
            .unwrap_or_default()
            .to_string();
        let temporal = ["time", "datetime", "timestamp"]
            .iter()
            .any(|t| declared.starts_with(t));
        let decimal = declared.starts_with("decimal");
        let float = declared.starts_with("float") || declared.starts_with("double");
        let behind = arguments.split(',').nth(1).and_then(|s| s.trim().parse().ok());
        Writer {
            name: column.name.clone(),
            ty: column.ty.clone(),
            fraction: temporal.then(|| arguments.parse().unwrap_or(0)),
            scale: decimal.then(|| behind.unwrap_or(0)),
            places: behind.filter(|_| float),
            declared,
        }
    }

    fn unsupported(&self, why: &str) -> Error {
        Error::new(
            code::VALUE_UNSUPPORTED,
            format!(
                "column {}: a value cannot be stored as {}: {why}",
                self.name, self.declared
            ),
        )
        .hint(format!(
            "set `as_text: true` for column {} if such values are meant, or widen the column",
            self.name
        ))
    }

    /// Whether values are bytes and not text.
    pub(super) fn is_binary(&self) -> bool {
        self.declared.contains("blob")
            || self.declared.starts_with("binary")
            || self.declared.starts_with("varbinary")
            || (self.ty == ColumnType::Bytes && !self.declared.contains("text") && !self.declared.contains("char"))
    }

    /// Whether the column's collation may hide differences between values.
    pub(super) fn is_text(&self) -> bool {
        TEXTS.iter().any(|t| self.declared.starts_with(t))
    }

    /// The expression that stores a given one. Bits are taken from a number, not from its digits' bytes; MariaDB's own
    /// types for uuids and addresses take texts for texts only if they are not binary, as those of a loaded file are.
    pub(super) fn stored(&self, expression: &str) -> String {
        if self.declared.starts_with("bit") {
            format!("CAST({expression} AS UNSIGNED)")
        } else if self.declared.starts_with("uuid") || self.declared.starts_with("inet") {
            format!("CONVERT({expression} USING utf8mb4)")
        } else {
            expression.to_string()
        }
    }

    /// Appends the value's bytes; `false` for NULL.
    pub(super) fn write(&self, array: &dyn Array, row: usize, out: &mut Vec<u8>) -> Result<bool> {
        if array.is_null(row) {
            return Ok(false);
        }
        let mut buffer = String::new();
        match array.data_type() {
            DataType::Boolean => out.push(if array.as_boolean().value(row) { b'1' } else { b'0' }),
            // The exact double, so that the shortest text of a float is not rounded beyond its largest value.
            DataType::Float32 => self.float(f64::from(array.as_primitive::<Float32Type>().value(row)), true, out)?,
            DataType::Float64 => self.float(array.as_primitive::<Float64Type>().value(row), false, out)?,
            DataType::Binary => out.extend_from_slice(array.as_binary::<i32>().value(row)),
            DataType::FixedSizeBinary(16) if self.declared == "binary(16)" => {
                out.extend_from_slice(array.as_fixed_size_binary().value(row));
            }
            DataType::Date32 => {
                text::write_date(&mut buffer, array.as_primitive::<Date32Type>().value(row));
                self.calendar(&buffer, out)?;
            }
            DataType::Time64(TimeUnit::Microsecond) => {
                text::write_time(&mut buffer, array.as_primitive::<Time64MicrosecondType>().value(row));
                self.calendar(&buffer, out)?;
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
                text::write_timestamp(&mut buffer, micros, false);
                self.calendar(&buffer, out)?;
            }
            DataType::Utf8 => self.text(array.as_string::<i32>().value(row), out)?,
            _ => {
                text::write_cell(&mut buffer, array, row)?;
                if self.declared.starts_with("year") {
                    // A year of one or two digits means another one.
                    buffer = format!("{buffer:0>4}");
                }
                self.digits(&buffer, out)?;
            }
        }
        Ok(true)
    }

    /// A float, or (`single`) one of 32 bits.
    fn float(&self, v: f64, single: bool, out: &mut Vec<u8>) -> Result<()> {
        if !v.is_finite() {
            return Err(self.unsupported("MySQL has neither NaN nor infinity"));
        }
        if v == 0.0 && v.is_sign_negative() {
            // The server drops the sign as it stores it.
            return Err(self.unsupported("MySQL has no negative zero"));
        }
        if let Some(places) = self.places {
            let kept = format!("{v:.places$}");
            let same = match single {
                true => kept.parse::<f32>() == Ok(v as f32),
                false => kept.parse::<f64>() == Ok(v),
            };
            if !same {
                return Err(self.unsupported("it keeps fewer digits behind the point"));
            }
        }
        let mut s = String::new();
        let _ = write!(s, "{v:e}");
        out.extend_from_slice(s.as_bytes());
        Ok(())
    }

    /// A date, time or timestamp without an offset.
    fn calendar(&self, s: &str, out: &mut Vec<u8>) -> Result<()> {
        let s = s.strip_suffix("+00").unwrap_or(s);
        if self.is_text() {
            out.extend_from_slice(s.as_bytes());
            return Ok(());
        }
        if s.ends_with("infinity") || s.ends_with(" BC") || s.find('-').is_some_and(|year| year > 4) {
            return Err(self.unsupported("its calendar has the years 1 to 9999 and no infinity"));
        }
        if let (Some((_, digits)), Some(kept)) = (s.split_once('.'), self.fraction)
            && digits.len() > kept
            && digits.as_bytes()[kept..].iter().any(|d| *d != b'0')
        {
            return Err(self.unsupported("it keeps fewer digits of a second"));
        }
        out.extend_from_slice(s.as_bytes());
        Ok(())
    }

    fn digits(&self, s: &str, out: &mut Vec<u8>) -> Result<()> {
        if let Some(scale) = self.scale
            && let Some((_, fraction)) = s.split_once('.')
            && fraction.len() > scale
            && fraction.as_bytes()[scale..].iter().any(|d| *d != b'0')
        {
            return Err(self.unsupported("it keeps fewer digits behind the point"));
        }
        out.extend_from_slice(s.as_bytes());
        Ok(())
    }

    fn text(&self, s: &str, out: &mut Vec<u8>) -> Result<()> {
        match &self.ty {
            ColumnType::Bool if !self.is_text() => {
                out.extend_from_slice(match s {
                    "true" => b"1",
                    "false" => b"0",
                    other => other.as_bytes(),
                });
            }
            ColumnType::Date | ColumnType::Time | ColumnType::Timestamp | ColumnType::TimestampTz => {
                self.calendar(s, out)?;
            }
            ColumnType::Bytes if !self.is_text() => {
                let column = Column::new(&self.name, ColumnType::Bytes);
                let mut one = ColumnBuilder::new(&column);
                one.append_text(s)?;
                out.extend_from_slice(one.finish().as_binary::<i32>().value(0));
            }
            ColumnType::Uuid if self.declared == "binary(16)" => {
                let column = Column::new(&self.name, ColumnType::Uuid);
                let mut one = ColumnBuilder::new(&column);
                one.append_text(s)?;
                out.extend_from_slice(one.finish().as_fixed_size_binary().value(0));
            }
            ColumnType::Float32 | ColumnType::Float64 if !self.is_text() => {
                let v: f64 = s.parse().map_err(|_| self.unsupported("it is no number"))?;
                self.float(v, self.ty == ColumnType::Float32, out)?;
            }
            _ if self.scale.is_some() => {
                if matches!(s, "NaN" | "Infinity" | "-Infinity") {
                    return Err(self.unsupported("MySQL has neither NaN nor infinity"));
                }
                self.digits(s, out)?;
            }
            _ => out.extend_from_slice(s.as_bytes()),
        }
        Ok(())
    }

    /// A value as a literal, ready to be stored or compared.
    pub(super) fn literal(&self, array: &dyn Array, row: usize) -> Result<String> {
        let mut bytes = Vec::new();
        if !self.write(array, row, &mut bytes)? {
            return Ok("NULL".into());
        }
        Ok(self.stored(&self.quoted(&bytes)))
    }

    /// Written bytes as a literal.
    pub(super) fn quoted(&self, bytes: &[u8]) -> String {
        if self.is_binary() {
            return sql::hex_literal(bytes);
        }
        match std::str::from_utf8(bytes) {
            Ok(s) if self.is_number() => s.to_string(),
            Ok(s) => sql::literal(s),
            Err(_) => sql::hex_literal(bytes),
        }
    }

    fn is_number(&self) -> bool {
        is_number(&self.ty)
            && [
                "tinyint",
                "smallint",
                "mediumint",
                "int",
                "bigint",
                "decimal",
                "float",
                "double",
            ]
            .iter()
            .any(|t| self.declared.starts_with(t))
            && !matches!(self.ty, ColumnType::Bool)
    }
}

/// Whether values are texts, which a collation compares.
pub(super) fn is_text(ty: &ColumnType) -> bool {
    matches!(ty, ColumnType::Text { .. } | ColumnType::Char { .. })
}

fn is_number(ty: &ColumnType) -> bool {
    use ColumnType::*;
    ty.is_integer() || matches!(ty, Bool | Decimal { .. } | Float32 | Float64)
}

/// The literal of a canonical text that compares in the column's own order.
pub(super) fn literal(column: &Column, value: &str) -> Result<String> {
    let printed = column.source_type.as_deref().unwrap_or_default();
    // What Rust reads as a finite number is one token of SQL, too.
    let number = |v: &str| v.parse::<f64>().is_ok_and(f64::is_finite) && !v.starts_with('+');
    let malformed = || {
        Error::new(
            code::VALUE_MALFORMED,
            format!(
                "a value to compare column {} with is not of its type {}",
                column.name, column.ty
            ),
        )
    };
    Ok(match &column.ty {
        ColumnType::Bool => match value {
            "true" | "t" | "1" => "1".into(),
            "false" | "f" | "0" => "0".into(),
            _ => return Err(malformed()),
        },
        ColumnType::Float32 | ColumnType::Float64 if number(value) => {
            // Without an exponent it would be compared as a decimal.
            if value.contains(['e', 'E']) {
                value.into()
            } else {
                format!("{value}e0")
            }
        }
        ty if is_number(ty) && number(value) => value.into(),
        ty if is_number(ty) => return Err(malformed()),
        ColumnType::TimestampTz => sql::literal(value.strip_suffix("+00").unwrap_or(value)),
        ColumnType::Bytes => {
            let hex = value.strip_prefix("\\x").ok_or_else(malformed)?;
            if !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            format!("X'{hex}'")
        }
        ColumnType::Uuid if printed == "binary(16)" => {
            let hex: String = value.chars().filter(|c| *c != '-').collect();
            if hex.len() != 32 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(malformed());
            }
            format!("X'{hex}'")
        }
        _ => sql::literal(value),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(data_type: &str, column_type: &str) -> Declared {
        Declared {
            data_type: data_type.into(),
            column_type: column_type.into(),
            ..Declared::default()
        }
    }

    #[test]
    fn types_are_what_the_catalog_and_the_comment_say() {
        for (data_type, printed, ty) in [
            ("tinyint", "tinyint(1)", ColumnType::Bool),
            ("tinyint", "tinyint(4)", ColumnType::Int8),
            ("tinyint", "tinyint(1) unsigned", ColumnType::UInt8),
            ("bigint", "bigint(20) unsigned", ColumnType::UInt64),
            ("bit", "bit(1)", ColumnType::Bool),
            ("bit", "bit(9)", ColumnType::UInt64),
            ("year", "year(4)", ColumnType::Int16),
            ("enum", "enum('a','b')", ColumnType::Text { max: None }),
            ("geometry", "geometry", ColumnType::Bytes),
            ("inet6", "inet6", ColumnType::Native),
        ] {
            assert_eq!(column_type(&declared(data_type, printed)), ty, "{printed}");
        }
        let marked = |data_type, printed, comment: &str| {
            column_type(&Declared {
                comment: comment.into(),
                ..declared(data_type, printed)
            })
        };
        assert_eq!(
            marked("datetime", "datetime(6)", "synctool:timestamptz"),
            ColumnType::TimestampTz
        );
        assert_eq!(marked("binary", "binary(16)", "the id synctool:uuid"), ColumnType::Uuid);
        assert_eq!(marked("int", "int(11)", "synctool:uuid"), ColumnType::Int32);
    }

    #[test]
    fn what_would_be_rounded_is_refused() {
        let writer = |ty, printed: &str| Writer::new(&Column::new("c", ty), printed);
        let text = |w: &Writer, s: &str| {
            let mut out = Vec::new();
            w.text(s, &mut out).map(|()| String::from_utf8(out).unwrap())
        };
        let seconds = writer(ColumnType::Timestamp, "datetime");
        assert_eq!(text(&seconds, "2024-01-31 12:00:00").unwrap(), "2024-01-31 12:00:00");
        assert!(text(&seconds, "2024-01-31 12:00:00.5").is_err());
        let micros = writer(ColumnType::TimestampTz, "timestamp(6)");
        assert_eq!(
            text(&micros, "2024-01-31 12:00:00.5+00").unwrap(),
            "2024-01-31 12:00:00.5"
        );
        for bad in ["infinity", "0044-03-15 12:00:00 BC", "10000-01-01 00:00:00"] {
            assert!(text(&micros, bad).is_err(), "{bad}");
        }
        let money = writer(
            ColumnType::Decimal {
                precision: 10,
                scale: 2,
            },
            "decimal(10,2)",
        );
        assert!(text(&money, "1.005").is_err() && text(&money, "1.500").is_ok() && text(&money, "NaN").is_err());
        for (ty, printed) in [
            (ColumnType::Float64, "double(10,2)"),
            (ColumnType::Float32, "float(7,2) unsigned"),
        ] {
            let float = writer(ty, printed);
            assert!(
                text(&float, "1.005").is_err() && text(&float, "1.5").is_ok(),
                "{printed}"
            );
        }
        let single = |printed: &str| {
            let array = arrow_array::Float32Array::from(vec![1.1]);
            writer(ColumnType::Float32, printed).write(&array, 0, &mut Vec::new())
        };
        assert!(single("float(7,3)").is_ok() && single("float").is_ok() && single("float(7,0)").is_err());
    }

    #[test]
    fn literals_compare_in_the_columns_order() {
        let of = |ty, v| literal(&Column::new("c", ty), v);
        assert_eq!(of(ColumnType::Int64, "-5").unwrap(), "-5");
        assert!(of(ColumnType::Int64, "1 OR 1=1").is_err());
        assert_eq!(of(ColumnType::Float64, "0.1").unwrap(), "0.1e0");
        assert_eq!(
            of(ColumnType::TimestampTz, "2024-01-01 00:00:00+00").unwrap(),
            "'2024-01-01 00:00:00'"
        );
        assert!(of(ColumnType::Bytes, "\\x0'").is_err());
    }
}
