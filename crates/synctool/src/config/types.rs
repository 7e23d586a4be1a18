//! The column types a configuration may name.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A column type as users write it. It describes the destination; the source's catalog says how to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum DataType {
    SmallInt,
    Integer,
    BigInt,
    Float,
    Double,
    Decimal,
    Varchar,
    Text,
    Char,
    Date,
    Time,
    Timestamp,
    TimestampTz,
    Boolean,
    Binary,
    Json,
    Uuid,
    /// A UUID as 32 characters of text, without dashes.
    UuidText,
    /// A UUID as 36 characters of text, with dashes.
    UuidTextDash,
}

/// Every spelling; the first of a type is the one we print.
const SPELLINGS: &[(DataType, &[&str])] = &[
    (DataType::Integer, &["integer", "int", "int4"]),
    (DataType::SmallInt, &["smallint", "int2", "tinyint"]),
    (DataType::BigInt, &["bigint", "int8"]),
    (DataType::Float, &["float", "real", "float4"]),
    (DataType::Double, &["double", "double precision", "float8"]),
    (DataType::Decimal, &["decimal", "numeric"]),
    (DataType::Varchar, &["varchar", "character varying"]),
    (DataType::Text, &["text", "string", "str"]),
    (DataType::Char, &["char", "character"]),
    (DataType::Date, &["date"]),
    (DataType::Time, &["time"]),
    (
        DataType::Timestamp,
        &["timestamp", "datetime", "timestamp without time zone"],
    ),
    (DataType::TimestampTz, &["timestamptz", "timestamp with time zone"]),
    (DataType::Boolean, &["boolean", "bool"]),
    (DataType::Binary, &["binary", "blob", "bytea", "varbinary"]),
    (DataType::Json, &["json", "jsonb"]),
    (DataType::Uuid, &["uuid"]),
    (DataType::UuidText, &["uuid_text"]),
    (DataType::UuidTextDash, &["uuid_text_dash"]),
];

impl DataType {
    /// The name under which the type is printed.
    pub fn name(self) -> &'static str {
        SPELLINGS
            .iter()
            .find(|(t, _)| *t == self)
            .map_or("", |(_, names)| names[0])
    }

    fn all_names() -> impl Iterator<Item = &'static str> {
        SPELLINGS.iter().flat_map(|(_, names)| names.iter().copied())
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DataType {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let folded = text.trim().to_ascii_lowercase();
        SPELLINGS
            .iter()
            .find(|(_, names)| names.contains(&folded.as_str()))
            .map(|(t, _)| *t)
            .ok_or(())
    }
}

/// A type with its sizes, as in `varchar(50)` or `decimal(10, 2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizedType {
    /// The type.
    pub data_type: DataType,
    /// Its sizes in their order: length, or precision and scale.
    pub sizes: [Option<u32>; 2],
}

impl fmt::Display for SizedType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.sizes {
            [Some(first), Some(second)] => write!(f, "{}({first}, {second})", self.data_type),
            [Some(first), None] => write!(f, "{}({first})", self.data_type),
            _ => self.data_type.fmt(f),
        }
    }
}

impl Serialize for SizedType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl FromStr for SizedType {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (name, sizes) = match text.trim().strip_suffix(')').and_then(|t| t.split_once('(')) {
            Some((name, sizes)) => (name, Some(sizes)),
            None => (text, None),
        };
        let Ok(data_type) = name.parse::<DataType>() else {
            // Inside { } YAML ends a value at its comma.
            if text.contains('(') && !text.contains(')') {
                let example = "\"decimal(14,2)\"";
                return Err(format!(
                    "must be a type; one with a comma stands in quotes, such as {example}"
                ));
            }
            let names: Vec<&str> = SPELLINGS.iter().map(|(_, names)| names[0]).collect();
            let meant = super::error::nearest(name.trim(), DataType::all_names());
            let meant = meant.map(|m| format!("did you mean \"{m}\"? ")).unwrap_or_default();
            return Err(format!("must be a type; {meant}types: {}", names.join(", ")));
        };
        let mut parsed = [None, None];
        if let Some(sizes) = sizes {
            let parts: Vec<&str> = sizes.split(',').map(str::trim).collect();
            let most = match data_type {
                DataType::Decimal => 2,
                DataType::Varchar | DataType::Char => 1,
                _ => return Err(format!("must not have a size: {data_type} has none")),
            };
            if parts.len() > most {
                return Err(format!("must have at most {most} sizes in the brackets"));
            }
            for (slot, part) in parsed.iter_mut().zip(parts) {
                *slot = Some(
                    part.parse()
                        .map_err(|_| "must have whole numbers in the brackets".to_owned())?,
                );
            }
        }
        Ok(Self {
            data_type,
            sizes: parsed,
        })
    }
}

impl<'de> Deserialize<'de> for SizedType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for SizedType {
    fn schema_name() -> Cow<'static, str> {
        "DataType".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A column type; varchar, char and decimal may carry their sizes in brackets.",
            "anyOf": [
                { "enum": DataType::all_names().collect::<Vec<_>>() },
                { "type": "string", "pattern": "^[A-Za-z0-9_ ]+(\\([0-9, ]+\\))?$" }
            ]
        })
    }
}

impl Serialize for DataType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
