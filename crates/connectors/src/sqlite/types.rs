//! SQLite's types: declared names, affinities, and how each value is stored so that it reads back as it was.
//!
//! SQLite stores values, not columns: a column only has an *affinity*, taken from its declared name by substring, which
//! converts what is written. `NUMERIC` turns '1.10' into 1.1, `INTEGER` turns a large digit string into a float. So the
//! names we declare say the logical type and have an affinity that leaves our values alone:
//!
//! | logical type | declared | stored as |
//! | --- | --- | --- |
//! | boolean | `BOOLEAN` | 0 or 1 |
//! | 8, 16, 32 bits | `INT8BIT`, `INT16BIT`, `INT32BIT`, `UINT8BIT`, `UINT16BIT`, `UINT32BIT` | integer |
//! | 64 bits | `INTEGER` | integer (a sole key column is the rowid) |
//! | 64 bits unsigned | `UNSIGNED64_BLOB` | integer; above 2^63-1 as 20 digits of text, which sort behind integers |
//! | decimal, numeric | `DECIMAL_TEXT(p,s)`, `NUMERIC_TEXT` | text with its scale |
//! | float, double | `FLOAT32`, `DOUBLE` | real; NaN as text 'NaN', minus zero as text '-0x0' (see [`MINUS_ZERO`]) |
//! | date, time … | `DATE_TEXT`, `TIME_TEXT`, `TIMETZ_TEXT`, `TIMESTAMP_TEXT`, `TIMESTAMPTZ_TEXT`, `DURATION_TEXT` | text that SQLite's date functions read |
//! | text | `TEXT`, `VARCHAR(n)`, `BPCHAR(n)` | text |
//! | bytes | `BLOB` | blob |
//! | uuid, json, others | `UUID_TEXT`, `JSON_TEXT`, `JSONB_TEXT`, `NATIVE_TEXT` | text |
//!
//! `INTERVAL` is not among them because it contains `INT`. Any other declared name belongs to a foreign database and is
//! read by SQLite's own rules, value by value: one that does not fit is refused, never changed.

use arrow_array::cast::AsArray;
use arrow_array::types::{Float32Type, Int8Type, Int16Type, UInt8Type, UInt16Type, UInt32Type};
use arrow_array::{
    Array, BinaryArray, BooleanArray, Float64Array, Int32Array, Int64Array, StringArray, TimestampMicrosecondArray,
    UInt64Array,
};
use arrow_schema::{DataType, TimeUnit};
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use std::borrow::Cow;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType};
use synctool_core::sink::{Fidelity, StoredAs};
use synctool_core::text::{self, ColumnBuilder};

/// What a REAL column stores for -0.0, which SQLite would store as the integer 0: a text that is no number to SQLite's
/// affinity, but whose numeric prefix is minus zero, so that arithmetic on it still works.
pub(super) const MINUS_ZERO: &str = "-0x0";

/// What a column's declared type does to values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Affinity {
    Integer,
    Text,
    Blob,
    Real,
    Numeric,
}

/// SQLite's rules, in their order.
pub(super) fn affinity(declared: &str) -> Affinity {
    let d = declared.to_ascii_uppercase();
    let has = |part: &str| d.contains(part);
    if has("INT") {
        Affinity::Integer
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Affinity::Text
    } else if has("BLOB") || d.trim().is_empty() {
        Affinity::Blob
    } else if has("REAL") || has("FLOA") || has("DOUB") {
        Affinity::Real
    } else {
        Affinity::Numeric
    }
}

/// The declared name of a type in tables we make.
pub(super) fn declared(ty: &ColumnType) -> String {
    let name = match ty {
        ColumnType::Bool => "BOOLEAN",
        ColumnType::Int8 => "INT8BIT",
        ColumnType::Int16 => "INT16BIT",
        ColumnType::Int32 => "INT32BIT",
        ColumnType::Int64 => "INTEGER",
        ColumnType::UInt8 => "UINT8BIT",
        ColumnType::UInt16 => "UINT16BIT",
        ColumnType::UInt32 => "UINT32BIT",
        ColumnType::UInt64 => "UNSIGNED64_BLOB",
        ColumnType::Decimal { precision, scale } => return format!("DECIMAL_TEXT({precision},{scale})"),
        ColumnType::Numeric => "NUMERIC_TEXT",
        ColumnType::Float32 => "FLOAT32",
        ColumnType::Float64 => "DOUBLE",
        ColumnType::Date => "DATE_TEXT",
        ColumnType::Time => "TIME_TEXT",
        ColumnType::TimeTz => "TIMETZ_TEXT",
        ColumnType::Timestamp => "TIMESTAMP_TEXT",
        ColumnType::TimestampTz => "TIMESTAMPTZ_TEXT",
        ColumnType::Interval => "DURATION_TEXT",
        ColumnType::Text { max: None } => "TEXT",
        ColumnType::Text { max: Some(n) } => return format!("VARCHAR({n})"),
        ColumnType::Char { length } => return format!("BPCHAR({length})"),
        ColumnType::Bytes => "BLOB",
        ColumnType::Uuid => "UUID_TEXT",
        ColumnType::Json => "JSON_TEXT",
        ColumnType::Jsonb => "JSONB_TEXT",
        ColumnType::Native => "NATIVE_TEXT",
    };
    name.into()
}

/// The logical type of a declared name: ours exactly, any other by what people mean with it and by its affinity.
pub(super) fn column_type(declared: &str) -> ColumnType {
    let upper = declared.trim().to_ascii_uppercase();
    let (base, args) = match upper.split_once('(') {
        Some((b, rest)) => (b.trim(), rest.split(')').next().unwrap_or("")),
        None => (upper.as_str(), ""),
    };
    let args: Vec<i32> = args.split(',').map_while(|a| a.trim().parse().ok()).collect();
    let decimal = |args: &[i32]| match args {
        [p, s, ..] if (1..=i32::from(u16::MAX)).contains(p) => Some(ColumnType::Decimal {
            precision: *p as u16,
            scale: *s as i16,
        }),
        [p] if (1..=i32::from(u16::MAX)).contains(p) => Some(ColumnType::Decimal {
            precision: *p as u16,
            scale: 0,
        }),
        _ => None,
    };
    let limit = args.first().filter(|n| **n > 0).map(|n| *n as u32);
    match base {
        "INT8BIT" => ColumnType::Int8,
        "INT16BIT" => ColumnType::Int16,
        "INT32BIT" => ColumnType::Int32,
        "UINT8BIT" => ColumnType::UInt8,
        "UINT16BIT" => ColumnType::UInt16,
        "UINT32BIT" => ColumnType::UInt32,
        "UNSIGNED64_BLOB" => ColumnType::UInt64,
        "FLOAT32" => ColumnType::Float32,
        "DECIMAL_TEXT" => decimal(&args).unwrap_or(ColumnType::Numeric),
        "NUMERIC_TEXT" => ColumnType::Numeric,
        "DATE_TEXT" | "DATE" => ColumnType::Date,
        "TIME_TEXT" | "TIME" => ColumnType::Time,
        "TIMETZ_TEXT" => ColumnType::TimeTz,
        "TIMESTAMP_TEXT" | "TIMESTAMP" | "DATETIME" => ColumnType::Timestamp,
        "TIMESTAMPTZ_TEXT" | "TIMESTAMPTZ" | "TIMESTAMP WITH TIME ZONE" => ColumnType::TimestampTz,
        "DURATION_TEXT" => ColumnType::Interval,
        "BPCHAR" => limit.map_or(ColumnType::Text { max: None }, |length| ColumnType::Char { length }),
        "UUID_TEXT" | "UUID" => ColumnType::Uuid,
        "JSON_TEXT" | "JSON" => ColumnType::Json,
        "JSONB_TEXT" => ColumnType::Jsonb,
        "NATIVE_TEXT" => ColumnType::Native,
        "BOOLEAN" | "BOOL" => ColumnType::Bool,
        "DECIMAL" | "NUMERIC" | "DEC" => decimal(&args).unwrap_or(ColumnType::Numeric),
        // A column without a type may hold anything: as text it keeps every number and text.
        "" | "STRING" | "ANY" => ColumnType::Text { max: None },
        _ => match affinity(&upper) {
            Affinity::Integer => ColumnType::Int64,
            Affinity::Text => ColumnType::Text {
                max: limit.filter(|_| base.contains("CHAR")),
            },
            Affinity::Blob => ColumnType::Bytes,
            Affinity::Real => ColumnType::Float64,
            Affinity::Numeric => ColumnType::Native,
        },
    }
}

/// How a source column is stored in a table we make.
pub(super) fn store_as(source_engine: &str, column: &Column) -> StoredAs {
    let carrier = match column.ty {
        // These are stored as text anyway, and text holds NaN and any scale.
        ColumnType::Decimal { .. } | ColumnType::Numeric => Carrier::Text,
        _ => Carrier::Arrow,
    };
    let fidelity = match &column.ty {
        ColumnType::Native => Fidelity::Widened(match &column.source_type {
            Some(t) => format!("the text of {source_engine}'s {t}"),
            None => "text".into(),
        }),
        _ => Fidelity::Exact,
    };
    StoredAs {
        type_name: declared(&column.ty),
        carrier,
        fidelity,
    }
}

/// In which storage class a column's values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Store {
    Integer,
    /// Integers, and 20 digits of text above `i64::MAX`.
    Unsigned,
    Real,
    Text,
    /// Text in a column whose affinity would turn a number-like text into a number: such a text is refused.
    GuardedText,
    /// A decimal in a column of NUMERIC affinity: refused unless it reads back as itself.
    Number,
    Blob,
}

/// How values are written into a column of a declared type.
pub(super) fn store(declared: &str) -> Store {
    let texty = matches!(affinity(declared), Affinity::Text | Affinity::Blob);
    match column_type(declared) {
        ColumnType::Bool
        | ColumnType::Int8
        | ColumnType::Int16
        | ColumnType::Int32
        | ColumnType::Int64
        | ColumnType::UInt8
        | ColumnType::UInt16
        | ColumnType::UInt32 => Store::Integer,
        ColumnType::UInt64 => Store::Unsigned,
        ColumnType::Float32 | ColumnType::Float64 => Store::Real,
        ColumnType::Bytes => Store::Blob,
        _ if texty => Store::Text,
        ColumnType::Decimal { .. } | ColumnType::Numeric => Store::Number,
        _ => Store::GuardedText,
    }
}

/// One value on its way into SQLite.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Cell<'a> {
    Null,
    Integer(i64),
    Real(f64),
    Text(Cow<'a, str>),
    Blob(Cow<'a, [u8]>),
}

impl Cell<'_> {
    pub(super) fn into_owned(self) -> Cell<'static> {
        match self {
            Cell::Null => Cell::Null,
            Cell::Integer(i) => Cell::Integer(i),
            Cell::Real(r) => Cell::Real(r),
            Cell::Text(t) => Cell::Text(Cow::Owned(t.into_owned())),
            Cell::Blob(b) => Cell::Blob(Cow::Owned(b.into_owned())),
        }
    }
}

/// A stored value, kept.
pub(super) fn owned(value: ValueRef<'_>) -> Cell<'static> {
    match value {
        ValueRef::Null => Cell::Null,
        ValueRef::Integer(i) => Cell::Integer(i),
        ValueRef::Real(r) => Cell::Real(r),
        ValueRef::Text(t) => Cell::Text(Cow::Owned(String::from_utf8_lossy(t).into_owned())),
        ValueRef::Blob(b) => Cell::Blob(Cow::Owned(b.to_vec())),
    }
}

impl ToSql for Cell<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Cell::Null => ValueRef::Null,
            Cell::Integer(i) => ValueRef::Integer(*i),
            Cell::Real(r) => ValueRef::Real(*r),
            Cell::Text(t) => ValueRef::Text(t.as_bytes()),
            Cell::Blob(b) => ValueRef::Blob(b),
        }))
    }
}

/// The typed array of a column: looked up once per batch, not once per cell.
#[derive(Debug)]
enum Input<'a> {
    I64(&'a Int64Array),
    I32(&'a Int32Array),
    U64(&'a UInt64Array),
    F64(&'a Float64Array),
    Bool(&'a BooleanArray),
    Utf8(&'a StringArray),
    Binary(&'a BinaryArray),
    Stamp(&'a TimestampMicrosecondArray, bool),
    Other(&'a dyn Array),
}

/// Turns the cells of one column of a batch into what SQLite stores.
#[derive(Debug)]
pub(super) struct ColumnInput<'a> {
    name: &'a str,
    ty: &'a ColumnType,
    store: Store,
    array: &'a dyn Array,
    input: Input<'a>,
}

impl<'a> ColumnInput<'a> {
    pub(super) fn new(column: &'a Column, store: Store, array: &'a dyn Array) -> Self {
        let input = match array.data_type() {
            DataType::Int64 => Input::I64(array.as_primitive()),
            DataType::Int32 => Input::I32(array.as_primitive()),
            DataType::UInt64 => Input::U64(array.as_primitive()),
            DataType::Float64 => Input::F64(array.as_primitive()),
            DataType::Boolean => Input::Bool(array.as_boolean()),
            DataType::Utf8 => Input::Utf8(array.as_string()),
            DataType::Binary => Input::Binary(array.as_binary()),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => Input::Stamp(array.as_primitive(), zone.is_some()),
            _ => Input::Other(array),
        };
        ColumnInput {
            name: &column.name,
            ty: &column.ty,
            store,
            array,
            input,
        }
    }

    /// What is stored for a cell.
    pub(super) fn cell(&self, row: usize) -> Result<Cell<'a>> {
        if self.array.is_null(row) {
            return Ok(Cell::Null);
        }
        match self.store {
            Store::Integer | Store::Unsigned => self.integer(row),
            Store::Real => self.real(row),
            Store::Text => Ok(Cell::Text(self.text(row)?)),
            Store::GuardedText => {
                let text = self.text(row)?;
                if looks_numeric(&text) {
                    return Err(self.refuse("SQLite would turn the text into a number there"));
                }
                Ok(Cell::Text(text))
            }
            Store::Number => self.number(row),
            Store::Blob => self.blob(row),
        }
    }

    fn refuse(&self, why: &str) -> Error {
        Error::new(
            code::VALUE_UNSUPPORTED,
            format!(
                "column {}: a value of type {} cannot be stored: {why}",
                self.name, self.ty
            ),
        )
        .hint("declare the destination's column as SyncTool would (`synctool plan` prints the type), or leave it out")
    }

    fn integer(&self, row: usize) -> Result<Cell<'a>> {
        let wide = |v: u64| match i64::try_from(v) {
            Ok(v) => Ok(Cell::Integer(v)),
            Err(_) if self.store == Store::Unsigned => Ok(Cell::Text(Cow::Owned(format!("{v:020}")))),
            Err(_) => Err(self.refuse("it is larger than SQLite's integers")),
        };
        Ok(Cell::Integer(match &self.input {
            Input::I64(a) => a.value(row),
            Input::I32(a) => i64::from(a.value(row)),
            Input::U64(a) => return wide(a.value(row)),
            Input::Bool(a) => i64::from(a.value(row)),
            Input::Utf8(a) => {
                let s = a.value(row);
                match (s, s.parse::<i64>(), s.parse::<u64>()) {
                    ("true", ..) => 1,
                    ("false", ..) => 0,
                    (_, Ok(v), _) => v,
                    (_, _, Ok(v)) => return wide(v),
                    _ => return Err(self.refuse("its text is no integer")),
                }
            }
            Input::Other(a) => match a.data_type() {
                DataType::Int8 => i64::from(a.as_primitive::<Int8Type>().value(row)),
                DataType::Int16 => i64::from(a.as_primitive::<Int16Type>().value(row)),
                DataType::UInt8 => i64::from(a.as_primitive::<UInt8Type>().value(row)),
                DataType::UInt16 => i64::from(a.as_primitive::<UInt16Type>().value(row)),
                DataType::UInt32 => i64::from(a.as_primitive::<UInt32Type>().value(row)),
                _ => return Err(self.refuse("the column holds integers")),
            },
            _ => return Err(self.refuse("the column holds integers")),
        }))
    }

    fn real(&self, row: usize) -> Result<Cell<'a>> {
        let v = match &self.input {
            Input::F64(a) => a.value(row),
            Input::Utf8(a) => a.value(row).parse().map_err(|_| self.refuse("its text is no number"))?,
            Input::Other(a) if a.data_type() == &DataType::Float32 => {
                f64::from(a.as_primitive::<Float32Type>().value(row))
            }
            _ => match self.integer(row)? {
                Cell::Integer(i) if i.unsigned_abs() <= 1 << 53 => i as f64,
                _ => return Err(self.refuse("the column holds floating point numbers")),
            },
        };
        Ok(if v.is_nan() {
            // SQLite stores NaN as NULL.
            Cell::Text(Cow::Borrowed("NaN"))
        } else if v == 0.0 && v.is_sign_negative() {
            Cell::Text(Cow::Borrowed(MINUS_ZERO))
        } else {
            Cell::Real(v)
        })
    }

    fn text(&self, row: usize) -> Result<Cow<'a, str>> {
        let canonical = match &self.input {
            Input::Utf8(a) => Cow::Borrowed(a.value(row)),
            Input::Stamp(a, instant) => {
                let mut out = String::with_capacity(32);
                text::write_timestamp(&mut out, a.value(row), *instant);
                Cow::Owned(out)
            }
            _ => {
                let mut out = String::new();
                text::write_cell(&mut out, self.array, row)?;
                Cow::Owned(out)
            }
        };
        Ok(if *self.ty == ColumnType::TimestampTz {
            stored_instant(canonical)
        } else {
            canonical
        })
    }

    fn number(&self, row: usize) -> Result<Cell<'a>> {
        let text = self.text(row)?;
        if let Ok(i) = text.parse::<i64>() {
            return Ok(Cell::Integer(i));
        }
        let refuse = || self.refuse("SQLite's NUMERIC would change it");
        let r: f64 = text.parse().map_err(|_| refuse())?;
        let mut back = ColumnBuilder::new(&Column::new(self.name, self.ty.clone()));
        back.append_text(&r.to_string()).map_err(|_| refuse())?;
        let back = text::cell(&back.finish(), 0)?;
        if !r.is_finite() || back.as_deref() != Some(&*text) {
            return Err(refuse());
        }
        Ok(Cell::Real(r))
    }

    fn blob(&self, row: usize) -> Result<Cell<'a>> {
        match &self.input {
            Input::Binary(a) => Ok(Cell::Blob(Cow::Borrowed(a.value(row)))),
            Input::Utf8(a) if *self.ty == ColumnType::Bytes => from_hex(a.value(row))
                .map(|b| Cell::Blob(Cow::Owned(b)))
                .ok_or_else(|| self.refuse("its text is not \\x and hex digits")),
            Input::Other(a) if matches!(a.data_type(), DataType::FixedSizeBinary(_)) => {
                Ok(Cell::Blob(Cow::Borrowed(a.as_fixed_size_binary().value(row))))
            }
            _ => Err(self.refuse("the column holds bytes")),
        }
    }
}

/// SQLite's date functions read `+00:00`, not `+00`.
fn stored_instant(canonical: Cow<'_, str>) -> Cow<'_, str> {
    if let Some(body) = canonical.strip_suffix("+00") {
        Cow::Owned(format!("{body}+00:00"))
    } else if let Some(body) = canonical.strip_suffix("+00 BC") {
        Cow::Owned(format!("{body}+00:00 BC"))
    } else {
        canonical
    }
}

fn canonical_instant(stored: &str) -> Cow<'_, str> {
    if let Some(body) = stored.strip_suffix("+00:00") {
        Cow::Owned(format!("{body}+00"))
    } else if let Some(body) = stored.strip_suffix("+00:00 BC") {
        Cow::Owned(format!("{body}+00 BC"))
    } else {
        Cow::Borrowed(stored)
    }
}

/// Whether an affinity other than TEXT and BLOB would convert this text.
fn looks_numeric(text: &str) -> bool {
    let t = text.trim_matches(|c: char| c.is_ascii_whitespace());
    t.bytes().any(|b| b.is_ascii_digit()) && t.parse::<f64>().is_ok()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let hex = text.strip_prefix("\\x")?.as_bytes();
    let nibble = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
    (hex.len() % 2 == 0)
        .then(|| {
            hex.chunks(2)
                .map(|c| Some(nibble(c[0])? << 4 | nibble(c[1])?))
                .collect()
        })
        .flatten()
}

/// The stored form of a key's value given as canonical text, for range bounds.
pub(super) fn bound(column: &Column, store: Store, value: &str) -> Result<Cell<'static>> {
    let as_text = text::as_text(column.clone());
    let mut one = ColumnBuilder::new(&as_text);
    one.append_text(value)?;
    let array = one.finish();
    Ok(ColumnInput::new(&as_text, store, &array).cell(0)?.into_owned())
}

/// The text of a stored key value, as [`bound`] reads it; `None` where the value is not in its column's storage class.
pub(super) fn bound_text(store: Store, value: ValueRef<'_>) -> Option<String> {
    match (store, value) {
        (Store::Integer | Store::Unsigned, ValueRef::Integer(i)) => Some(i.to_string()),
        (Store::Unsigned, ValueRef::Text(t)) => {
            let t = std::str::from_utf8(t).ok()?;
            Some(unpadded(t).to_string())
        }
        (Store::Text | Store::GuardedText, ValueRef::Text(t)) => std::str::from_utf8(t).ok().map(str::to_string),
        (Store::Blob, ValueRef::Blob(b)) => {
            let mut out = String::new();
            text::write_bytes(&mut out, b);
            Some(out)
        }
        _ => None,
    }
}

fn unpadded(digits: &str) -> &str {
    match digits.trim_start_matches('0') {
        "" => "0",
        rest => rest,
    }
}

/// Adds a decimal with exactly its type's scale, so that every engine shows the same text; NaN and infinity pass where
/// the carrier is text.
fn decimal(column: &Column, to: &mut ColumnBuilder, text: &str, what: &str) -> Result<()> {
    let ColumnType::Decimal { precision, scale } = column.ty else {
        return Err(Error::bug("not a decimal"));
    };
    if column.carrier != Carrier::Text || scale < 0 || text.bytes().any(|b| b.is_ascii_alphabetic()) {
        return to.append_text(text).map_err(|_| malformed(column, what));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let scale = scale as usize;
    if fraction.len() == scale && !whole.is_empty() {
        return to.append_text(text);
    }
    let kept = fraction.trim_end_matches('0');
    let digits = whole.trim_start_matches(['-', '+', '0']).len();
    if kept.len() > scale || digits + scale > usize::from(precision) || whole.is_empty() {
        return Err(malformed(column, what));
    }
    to.append_text(&match scale {
        0 => whole.to_string(),
        _ => format!("{whole}.{kept:0<scale$}"),
    })
}

fn malformed(column: &Column, what: &str) -> Error {
    Error::new(
        code::VALUE_MALFORMED,
        format!(
            "column {}: a value stored as {what} does not fit type {} (SQLite declares it {:?} but does not enforce it)",
            column.name,
            column.ty,
            column.source_type.as_deref().unwrap_or("")
        ),
    )
    .hint(format!(
        "set `data_type: text` (or `as_text: true`) for column {} if such values are meant; \
         `SELECT typeof(column), count(*) FROM table GROUP BY 1` shows them",
        column.name
    ))
}

/// Adds a stored value to a column, if it fits the column's type exactly.
pub(super) fn read_cell(column: &Column, to: &mut ColumnBuilder, value: ValueRef<'_>) -> Result<()> {
    use ColumnType as T;
    let as_text = column.carrier == Carrier::Text;
    match value {
        ValueRef::Null => {
            to.append_null();
            Ok(())
        }
        ValueRef::Integer(i) => match column.ty {
            T::Decimal { .. } => decimal(column, to, &i.to_string(), "an integer"),
            T::Bool if as_text && (i == 0 || i == 1) => to.append_text(if i == 1 { "true" } else { "false" }),
            T::Date | T::Time | T::TimeTz | T::Timestamp | T::TimestampTz | T::Interval | T::Uuid | T::Bytes
                if !as_text =>
            {
                Err(malformed(column, "an integer"))
            }
            _ => to.append_i64(i).map_err(|_| malformed(column, "an integer")),
        },
        ValueRef::Real(r) => match column.ty {
            // The shortest text of a float is the decimal that was meant.
            T::Decimal { .. } => decimal(column, to, &r.to_string(), "a real"),
            T::Numeric => to.append_text(&r.to_string()).map_err(|_| malformed(column, "a real")),
            T::Date | T::Time | T::TimeTz | T::Timestamp | T::TimestampTz | T::Interval | T::Uuid | T::Bytes
                if !as_text =>
            {
                Err(malformed(column, "a real"))
            }
            T::Float32 if as_text => {
                let mut out = String::new();
                text::write_float(&mut out, r, r as f32);
                to.append_text(&out)
            }
            _ => to.append_f64(r).map_err(|_| malformed(column, "a real")),
        },
        ValueRef::Text(t) => {
            let t = std::str::from_utf8(t).map_err(|_| malformed(column, "text that is not UTF-8"))?;
            let fits = match column.ty {
                T::Float32 | T::Float64 if t == MINUS_ZERO => return to.append_text("-0"),
                T::TimestampTz if as_text => return to.append_text(&canonical_instant(t)),
                T::UInt64 if as_text => return to.append_text(unpadded(t)),
                T::Decimal { .. } => return decimal(column, to, t, "text"),
                T::Bytes => as_text,
                T::Text { max: Some(n) } | T::Char { length: n } => {
                    t.len() <= n as usize || t.chars().nth(n as usize).is_none()
                }
                _ => true,
            };
            if !fits {
                return Err(malformed(column, "text"));
            }
            to.append_text(t).map_err(|_| malformed(column, "text"))
        }
        ValueRef::Blob(b) => match column.ty {
            T::Bytes if as_text => {
                let mut out = String::new();
                text::write_bytes(&mut out, b);
                to.append_text(&out)
            }
            T::Bytes => to.append_bytes(b),
            T::Uuid if b.len() == 16 && !as_text => to.append_bytes(b),
            _ => Err(malformed(column, "a blob")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_types() -> Vec<ColumnType> {
        use ColumnType::*;
        vec![
            Bool,
            Int8,
            Int16,
            Int32,
            Int64,
            UInt8,
            UInt16,
            UInt32,
            UInt64,
            Decimal {
                precision: 12,
                scale: 2,
            },
            Decimal {
                precision: 3,
                scale: -2,
            },
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
            Text { max: Some(20) },
            Char { length: 5 },
            Bytes,
            Uuid,
            Json,
            Jsonb,
            Native,
        ]
    }

    #[test]
    fn our_names_give_their_type_back_and_leave_values_alone() {
        for ty in all_types() {
            let name = declared(&ty);
            assert_eq!(column_type(&name), ty, "{name}");
            let (aff, store) = (affinity(&name), store(&name));
            let harmless = match store {
                Store::Integer => matches!(aff, Affinity::Integer | Affinity::Numeric),
                Store::Unsigned | Store::Blob => aff == Affinity::Blob,
                Store::Real => aff == Affinity::Real,
                Store::Text => aff == Affinity::Text,
                Store::GuardedText | Store::Number => false,
            };
            assert!(harmless, "{name} has affinity {aff:?} for {store:?}");
        }
    }

    #[test]
    fn foreign_names_go_by_affinity() {
        use ColumnType::*;
        for (name, ty) in [
            ("int", Int64),
            ("BIGINT UNSIGNED", Int64),
            ("varchar(20)", Text { max: Some(20) }),
            ("NATIVE CHARACTER(70)", Text { max: Some(70) }),
            ("CLOB", Text { max: None }),
            ("", Text { max: None }),
            (
                "numeric(10, 2)",
                Decimal {
                    precision: 10,
                    scale: 2,
                },
            ),
            ("DECIMAL", Numeric),
            ("double precision", Float64),
            ("datetime", Timestamp),
            ("GEOMETRY", Native),
            ("FLOATING POINT", Int64),
        ] {
            assert_eq!(column_type(name), ty, "{name}");
        }
    }

    #[test]
    fn instants_are_stored_as_sqlite_reads_them() {
        for (canonical, stored) in [
            ("2024-01-31 23:59:59.5+00", "2024-01-31 23:59:59.5+00:00"),
            ("0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00:00 BC"),
            ("infinity", "infinity"),
        ] {
            assert_eq!(stored_instant(canonical.into()), stored);
            assert_eq!(canonical_instant(stored), canonical);
        }
    }

    #[test]
    fn texts_that_an_affinity_would_change_are_found() {
        for t in ["1", " 1.50 ", "1e5", "-0", "007"] {
            assert!(looks_numeric(t), "{t:?}");
        }
        for t in ["", "inf", "NaN", "0x10", "2024-01-01", "1 day"] {
            assert!(!looks_numeric(t), "{t:?}");
        }
    }
}
