//! Tables, columns and types as SyncTool names them, and how each type travels in Arrow.
//!
//! A [`ColumnType`] is the logical type; a [`Carrier`] says in which Arrow form its values travel between this
//! source and this sink. The carrier is decided per column when the plan is made, never per batch: a type (or a
//! value such as NaN in a numeric) without a faithful Arrow form travels as text.

use crate::error::{Among, Error, Result, code};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A table's name at a datastore: the exact bytes, never folded.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TableId {
    /// The schema, where the engine has schemas; `None` means the connection's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// The table's own name.
    pub name: String,
}

impl TableId {
    /// A table in a schema.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableId {
            schema: Some(schema.into()),
            name: name.into(),
        }
    }

    /// A table in the connection's default schema.
    pub fn bare(name: impl Into<String>) -> Self {
        TableId {
            schema: None,
            name: name.into(),
        }
    }

    /// Reads `name`, `schema.name`, `"Odd.Schema"."Odd Name"`. A dot inside double quotes belongs to the name.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| {
            Error::new(
                code::CONFIG_INVALID,
                format!("table name {text:?} cannot be read: {why}"),
            )
            .hint("write name, schema.name or \"Schema\".\"Name\"")
        };
        let mut parts = vec![String::new()];
        let mut chars = text.trim().chars().peekable();
        let mut quoted = false;
        while let Some(c) = chars.next() {
            match c {
                '"' if quoted && chars.peek() == Some(&'"') => {
                    chars.next();
                    parts.last_mut().expect("never empty").push('"');
                }
                '"' => quoted = !quoted,
                '.' if !quoted => parts.push(String::new()),
                c => parts.last_mut().expect("never empty").push(c),
            }
        }
        if quoted {
            return Err(bad("a double quote is not closed"));
        }
        if parts.iter().any(String::is_empty) {
            return Err(bad("a part is empty"));
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(name), None, _) => Ok(TableId::bare(name)),
            (Some(schema), Some(name), None) => Ok(TableId::new(schema, name)),
            _ => Err(bad("it has more than two parts")),
        }
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |f: &mut fmt::Formatter<'_>, s: &str| {
            if s.contains(['.', '"']) {
                write!(f, "\"{}\"", s.replace('"', "\"\""))
            } else {
                f.write_str(s)
            }
        };
        if let Some(schema) = &self.schema {
            part(f, schema)?;
            f.write_str(".")?;
        }
        part(f, &self.name)
    }
}

/// The logical type of a column.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ColumnType {
    /// True or false.
    Bool,
    /// Signed integers.
    Int8,
    /// 16 bits, signed.
    Int16,
    /// 32 bits, signed.
    Int32,
    /// 64 bits, signed.
    Int64,
    /// 8 bits, unsigned.
    UInt8,
    /// 16 bits, unsigned.
    UInt16,
    /// 32 bits, unsigned.
    UInt32,
    /// 64 bits, unsigned.
    UInt64,
    /// Exact decimal of a declared size. PostgreSQL allows NaN in it, and a negative scale.
    Decimal {
        /// Significant digits.
        precision: u16,
        /// Digits after the point.
        scale: i16,
    },
    /// Exact decimal of any size: always carried as text, since no scale may be guessed.
    Numeric,
    /// IEEE 754, 32 bits.
    Float32,
    /// IEEE 754, 64 bits.
    Float64,
    /// A calendar day.
    Date,
    /// Time of day in microseconds; 24:00:00 is allowed.
    Time,
    /// Time of day with an offset: always carried as text.
    TimeTz,
    /// Wall-clock date and time, microseconds, no zone.
    Timestamp,
    /// An instant, microseconds UTC.
    TimestampTz,
    /// Months, days and microseconds: always carried as text.
    Interval,
    /// Text, with its length limit in characters where it has one.
    Text {
        /// The limit of varchar(n).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        max: Option<u32>,
    },
    /// Text padded with blanks to n characters.
    Char {
        /// The n of char(n).
        length: u32,
    },
    /// Bytes.
    Bytes,
    /// 128 bits.
    Uuid,
    /// JSON as text, kept letter by letter.
    Json,
    /// JSON in a normalised binary form (PostgreSQL's jsonb).
    Jsonb,
    /// Anything else, as the text its engine prints, with the engine's own type name beside it.
    Native,
}

/// In which Arrow form a column's values travel in this plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Carrier {
    /// The Arrow type that fits the logical type.
    #[default]
    Arrow,
    /// Text, in the canonical form of [`crate::text`].
    Text,
}

/// One column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// The exact name.
    pub name: String,
    /// The logical type.
    #[serde(rename = "type")]
    pub ty: ColumnType,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// How its values travel.
    #[serde(default)]
    pub carrier: Carrier,
    /// The engine's own name of the type (`int4[]`, `inet`, `numeric(12,2)`), as its catalog prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_type: Option<String>,
    /// Computed by the database from other columns: never written.
    #[serde(default)]
    pub generated: bool,
    /// Filled by the database unless given (identity, serial, auto increment).
    #[serde(default)]
    pub identity: bool,
}

/// The name of the type of a column that is guessed from its values and has none yet.
pub const NO_VALUE: &str = "no value";

impl Column {
    /// Whether nobody can tell its type, because it has no value yet: any type holds all that it has.
    pub fn has_no_value(&self) -> bool {
        self.source_type.as_deref() == Some(NO_VALUE)
    }

    /// A nullable column of a type.
    pub fn new(name: impl Into<String>, ty: ColumnType) -> Self {
        Column {
            name: name.into(),
            ty,
            nullable: true,
            carrier: Carrier::Arrow,
            source_type: None,
            generated: false,
            identity: false,
        }
    }

    /// The same column, NOT NULL.
    pub fn not_null(mut self) -> Self {
        self.nullable = false;
        self
    }

    /// The same column with its engine's type name.
    pub fn with_source_type(mut self, name: impl Into<String>) -> Self {
        self.source_type = Some(name.into());
        self
    }

    /// Whether it would keep all its values as a column of another type of the same kind that holds more: more digits, more
    /// characters. Of times only the engine knows which type keeps more digits of a second.
    pub fn widens_to(&self, wanted: &Column) -> bool {
        use ColumnType::*;
        let same_kind = match (&self.ty, &wanted.ty) {
            (Time | Timestamp | TimestampTz, to) => return self.ty == *to && self.source_type != wanted.source_type,
            (from, to) if from.is_integer() => to.is_integer() || matches!(to, Decimal { .. } | Numeric),
            (Decimal { .. }, to) => matches!(to, Decimal { .. } | Numeric),
            (Float32, to) => *to == Float64,
            (Text { max: Some(_) }, to) => matches!(to, Text { .. }),
            _ => false,
        };
        same_kind && self.ty != wanted.ty && self.ty.fits(&wanted.ty)
    }

    /// The Arrow type its values travel in.
    pub fn arrow_type(&self) -> DataType {
        if self.carrier == Carrier::Text {
            return DataType::Utf8;
        }
        match &self.ty {
            ColumnType::Bool => DataType::Boolean,
            ColumnType::Int8 => DataType::Int8,
            ColumnType::Int16 => DataType::Int16,
            ColumnType::Int32 => DataType::Int32,
            ColumnType::Int64 => DataType::Int64,
            ColumnType::UInt8 => DataType::UInt8,
            ColumnType::UInt16 => DataType::UInt16,
            ColumnType::UInt32 => DataType::UInt32,
            ColumnType::UInt64 => DataType::UInt64,
            ColumnType::Decimal { precision, scale } if *precision <= 38 && (0..=*precision as i16).contains(scale) => {
                DataType::Decimal128(*precision as u8, *scale as i8)
            }
            ColumnType::Decimal { precision, scale } if *precision <= 76 && (0..=*precision as i16).contains(scale) => {
                DataType::Decimal256(*precision as u8, *scale as i8)
            }
            ColumnType::Float32 => DataType::Float32,
            ColumnType::Float64 => DataType::Float64,
            ColumnType::Date => DataType::Date32,
            ColumnType::Time => DataType::Time64(TimeUnit::Microsecond),
            ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            ColumnType::Bytes => DataType::Binary,
            ColumnType::Uuid => DataType::FixedSizeBinary(16),
            ColumnType::Decimal { .. }
            | ColumnType::Numeric
            | ColumnType::TimeTz
            | ColumnType::Interval
            | ColumnType::Text { .. }
            | ColumnType::Char { .. }
            | ColumnType::Json
            | ColumnType::Jsonb
            | ColumnType::Native => DataType::Utf8,
        }
    }

    /// The Arrow field, with type, carrier and source type in its metadata so that a file can give them back.
    pub fn field(&self) -> Field {
        let mut metadata = HashMap::new();
        metadata.insert(
            META_COLUMN.to_string(),
            serde_json::to_string(self).expect("a column is plain data and always serialises"),
        );
        Field::new(&self.name, self.arrow_type(), true).with_metadata(metadata)
    }
}

/// The key under which an Arrow field carries its [`Column`] as JSON.
pub const META_COLUMN: &str = "synctool.column";

/// A table's columns and key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TableSchema {
    /// The columns in their order.
    pub columns: Vec<Column>,
    /// The names of the primary key's columns in the key's order; empty where there is none.
    #[serde(default)]
    pub key: Vec<String>,
}

impl TableSchema {
    /// Finds a column by its exact name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|c| c.name == name)
    }

    /// Finds a column by its exact name, to change it.
    pub fn column_mut(&mut self, name: &str) -> Option<&mut Column> {
        self.columns.iter_mut().find(|c| c.name == name)
    }

    /// The place of a column.
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|c| c.name == name)
    }

    /// A column by name; the error of one that is not there names those that `table` has.
    pub fn must_column(&self, name: &str, table: &TableId) -> Result<&Column> {
        self.column(name).ok_or_else(|| {
            let known: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
            Error::no_column(Among::Table, name, format!("column {name} is not in {table}"))
                .hint(format!("it has: {}", known.join(", ")))
        })
    }

    /// The places of the key's columns; an error names one that is not there.
    pub fn key_indices(&self) -> Result<Vec<usize>> {
        self.key
            .iter()
            .map(|k| {
                self.index_of(k).ok_or_else(|| {
                    let columns: Vec<&str> = self.columns.iter().map(|c| c.name.as_str()).collect();
                    Error::no_column(Among::Table, k, format!("key column {k} is not among the columns"))
                        .hint(format!("a key may be made of: {}", columns.join(", ")))
                })
            })
            .collect()
    }

    /// The Arrow schema batches of this table have. Fields are always nullable in Arrow: NOT NULL is the
    /// destination's to enforce, and a key-only row (a delete) has no values for the others.
    pub fn arrow_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.columns.iter().map(Column::field).collect::<Vec<_>>()))
    }

    /// Reads the columns back from an Arrow schema that [`Self::arrow_schema`] made; `None` for a foreign one.
    pub fn from_arrow_metadata(schema: &Schema) -> Option<Vec<Column>> {
        schema
            .fields()
            .iter()
            .map(|f| serde_json::from_str(f.metadata().get(META_COLUMN)?).ok())
            .collect()
    }

    /// What differs between this schema (have) and another (want), by column name.
    pub fn difference(&self, want: &TableSchema) -> SchemaDifference {
        let mut diff = SchemaDifference::default();
        for w in &want.columns {
            match self.column(&w.name) {
                None => diff.missing.push(w.clone()),
                Some(h) if h.ty != w.ty => diff.retyped.push((h.clone(), w.clone())),
                Some(_) => {}
            }
        }
        diff.extra = self
            .columns
            .iter()
            .filter(|h| want.column(&h.name).is_none())
            .cloned()
            .collect();
        diff
    }
}

/// The difference between two schemas, as a value that plans and drift policies can show and judge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SchemaDifference {
    /// Wanted but not there.
    pub missing: Vec<Column>,
    /// There but not wanted.
    pub extra: Vec<Column>,
    /// There with another type: (have, want).
    pub retyped: Vec<(Column, Column)>,
}

impl ColumnType {
    /// Whether it is a whole number of a fixed width.
    pub fn is_integer(&self) -> bool {
        use ColumnType::*;
        matches!(self, Int8 | Int16 | Int32 | Int64 | UInt8 | UInt16 | UInt32 | UInt64)
    }

    /// What names the order of values that is the same in every engine that stores them as what they are; `None` where
    /// there is none, as of texts.
    pub fn shared_order(&self) -> Option<&'static str> {
        use ColumnType::*;
        match self {
            Decimal { .. } | Numeric => Some("numbers"),
            integer if integer.is_integer() => Some("numbers"),
            Date => Some("dates"),
            Time => Some("times"),
            Timestamp => Some("timestamps"),
            TimestampTz => Some("instants"),
            Uuid => Some("uuids"),
            Bytes => Some("strings of bytes"),
            _ => None,
        }
    }

    /// Whether every value of this type has a place in `to`, in the same form or as text.
    pub fn fits(&self, to: &ColumnType) -> bool {
        use ColumnType::*;
        let signed = |t: &ColumnType| match t {
            Int8 => Some(8),
            Int16 => Some(16),
            Int32 => Some(32),
            Int64 => Some(64),
            _ => None,
        };
        let unsigned = |t: &ColumnType| match t {
            UInt8 => Some(8),
            UInt16 => Some(16),
            UInt32 => Some(32),
            UInt64 => Some(64),
            _ => None,
        };
        let integer_digits = |t: &ColumnType| match t {
            Int8 | UInt8 => Some(3),
            Int16 | UInt16 => Some(5),
            Int32 | UInt32 => Some(10),
            Int64 => Some(19),
            UInt64 => Some(20),
            _ => None,
        };
        if self == to {
            return true;
        }
        match (self, to) {
            (_, Text { max: None }) => true,
            (Text { max: Some(a) } | Char { length: a }, Text { max: Some(b) }) => a <= b,
            (Uuid, Char { length: 36 }) => true,
            (Float32, Float64) | (Json, Jsonb) => *self == Float32,
            (Decimal { .. }, Numeric) => true,
            (Decimal { precision: p, scale: s }, Decimal { precision: q, scale: t }) => {
                s <= t && i32::from(*p) - i32::from(*s) <= i32::from(*q) - i32::from(*t)
            }
            (from, Numeric) if integer_digits(from).is_some() => true,
            (from, Decimal { precision, scale }) if integer_digits(from).is_some() => {
                // A negative scale rounds digits before the point.
                *scale >= 0 && integer_digits(from).is_some_and(|d| d <= i32::from(*precision) - i32::from(*scale))
            }
            (from, to) => match (signed(from), unsigned(from), signed(to), unsigned(to)) {
                (Some(a), _, Some(b), _) | (_, Some(a), _, Some(b)) => a <= b,
                (_, Some(a), Some(b), _) => a < b,
                _ => false,
            },
        }
    }
}

impl fmt::Display for ColumnType {
    /// The name people write in a pipeline (`decimal(12,2)`, `varchar(20)`, `timestamptz`).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::Bool => f.write_str("boolean"),
            ColumnType::Int8 => f.write_str("int8bit"),
            ColumnType::Int16 => f.write_str("smallint"),
            ColumnType::Int32 => f.write_str("integer"),
            ColumnType::Int64 => f.write_str("bigint"),
            ColumnType::UInt8 => f.write_str("uint8bit"),
            ColumnType::UInt16 => f.write_str("uint16bit"),
            ColumnType::UInt32 => f.write_str("uint32bit"),
            ColumnType::UInt64 => f.write_str("uint64bit"),
            ColumnType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            ColumnType::Numeric => f.write_str("numeric"),
            ColumnType::Float32 => f.write_str("float"),
            ColumnType::Float64 => f.write_str("double"),
            ColumnType::Date => f.write_str("date"),
            ColumnType::Time => f.write_str("time"),
            ColumnType::TimeTz => f.write_str("timetz"),
            ColumnType::Timestamp => f.write_str("timestamp"),
            ColumnType::TimestampTz => f.write_str("timestamptz"),
            ColumnType::Interval => f.write_str("interval"),
            ColumnType::Text { max: None } => f.write_str("text"),
            ColumnType::Text { max: Some(n) } => write!(f, "varchar({n})"),
            ColumnType::Char { length } => write!(f, "char({length})"),
            ColumnType::Bytes => f.write_str("bytes"),
            ColumnType::Uuid => f.write_str("uuid"),
            ColumnType::Json => f.write_str("json"),
            ColumnType::Jsonb => f.write_str("jsonb"),
            ColumnType::Native => f.write_str("native"),
        }
    }
}

impl FromStr for ColumnType {
    type Err = Error;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(s: &str) -> Result<Self> {
        let unknown = || Error::new(code::CONFIG_TYPE, format!("type {s:?} is not known"));
        let (base, args) = match s.split_once('(') {
            Some((b, rest)) => (b, rest.strip_suffix(')').ok_or_else(unknown)?),
            None => (s, ""),
        };
        let num = |t: &str| t.trim().parse::<i32>().map_err(|_| unknown());
        Ok(match (base.trim(), args) {
            ("boolean", "") => ColumnType::Bool,
            ("int8bit", "") => ColumnType::Int8,
            ("smallint", "") => ColumnType::Int16,
            ("integer", "") => ColumnType::Int32,
            ("bigint", "") => ColumnType::Int64,
            ("uint8bit", "") => ColumnType::UInt8,
            ("uint16bit", "") => ColumnType::UInt16,
            ("uint32bit", "") => ColumnType::UInt32,
            ("uint64bit", "") => ColumnType::UInt64,
            ("decimal", a) => {
                let (p, sc) = a.split_once(',').ok_or_else(unknown)?;
                ColumnType::Decimal {
                    precision: num(p)? as u16,
                    scale: num(sc)? as i16,
                }
            }
            ("numeric", "") => ColumnType::Numeric,
            ("float", "") => ColumnType::Float32,
            ("double", "") => ColumnType::Float64,
            ("date", "") => ColumnType::Date,
            ("time", "") => ColumnType::Time,
            ("timetz", "") => ColumnType::TimeTz,
            ("timestamp", "") => ColumnType::Timestamp,
            ("timestamptz", "") => ColumnType::TimestampTz,
            ("interval", "") => ColumnType::Interval,
            ("text", "") => ColumnType::Text { max: None },
            ("varchar", a) => ColumnType::Text {
                max: Some(num(a)? as u32),
            },
            ("char", a) => ColumnType::Char { length: num(a)? as u32 },
            ("bytes", "") => ColumnType::Bytes,
            ("uuid", "") => ColumnType::Uuid,
            ("json", "") => ColumnType::Json,
            ("jsonb", "") => ColumnType::Jsonb,
            ("native", "") => ColumnType::Native,
            _ => return Err(unknown()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_keep_their_bytes() {
        for text in ["items", "public.items", "\"My.Schema\".\"a \"\"b\"\"\"", "\"x.y\""] {
            let t = TableId::parse(text).unwrap();
            assert_eq!(TableId::parse(&t.to_string()).unwrap(), t);
        }
        assert_eq!(TableId::parse("\"a.b\".c").unwrap(), TableId::new("a.b", "c"));
        for bad in ["", "a.", ".b", "a.b.c", "\"a"] {
            assert!(TableId::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn types_read_what_they_write() {
        let all = [
            ColumnType::Decimal {
                precision: 12,
                scale: 2,
            },
            ColumnType::Decimal {
                precision: 3,
                scale: -2,
            },
            ColumnType::Text { max: Some(20) },
            ColumnType::Char { length: 5 },
            ColumnType::UInt64,
            ColumnType::Native,
        ];
        for t in all {
            assert_eq!(t.to_string().parse::<ColumnType>().unwrap(), t);
        }
    }

    #[test]
    fn integers_fit_only_where_every_digit_is_kept() {
        let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
        assert!(ColumnType::Int32.fits(&decimal(10, 0)) && ColumnType::Int32.fits(&decimal(12, 2)));
        assert!(!ColumnType::Int32.fits(&decimal(11, 2)) && !ColumnType::Int32.fits(&decimal(12, -2)));
    }

    #[test]
    fn a_schema_survives_arrow() {
        let mut price = Column::new(
            "price",
            ColumnType::Decimal {
                precision: 12,
                scale: 2,
            },
        );
        price.carrier = Carrier::Text;
        let schema = TableSchema {
            columns: vec![Column::new("id", ColumnType::Int64).not_null(), price],
            key: vec!["id".into()],
        };
        let arrow = schema.arrow_schema();
        assert_eq!(arrow.field(1).data_type(), &DataType::Utf8);
        assert_eq!(TableSchema::from_arrow_metadata(&arrow).unwrap(), schema.columns);
    }
}
