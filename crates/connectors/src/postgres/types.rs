//! PostgreSQL's types: their binary forms, how a column is selected, and which rows may pass undecoded.

pub use super::decode::Decoder;
pub use super::encode::{Cells, Encoder, binary_supported, copy_text_field};

use synctool_core::change::RawFormat;
use synctool_core::schema::{Carrier, Column, ColumnType};

/// The name of the raw format: tuples of COPY's binary form without header and trailer.
pub const RAW_KIND: &str = "pgcopy-binary";

/// What a COPY binary stream begins with: signature, flags, length of the header extension.
pub const COPY_HEADER: &[u8; 19] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

/// What it ends with: a field count of -1.
pub const COPY_TRAILER: &[u8; 2] = b"\xff\xff";

/// The binary forms that are known here; several types share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Wire {
    Bool,
    Int2,
    Int4,
    Int8,
    Float4,
    Float8,
    Numeric,
    /// text, varchar, char(n), name, json: the characters themselves.
    Text,
    /// A version byte and the characters.
    Jsonb,
    Bytea,
    Uuid,
    /// Days since 2000-01-01.
    Date,
    /// Microseconds since midnight.
    Time,
    /// Microseconds since 2000-01-01.
    Timestamp,
    /// The same, UTC.
    Timestamptz,
}

impl Wire {
    /// The form of a type named as the catalog or a DDL writes it; `None` for one without a form here.
    pub fn of_type_name(name: &str) -> Option<Wire> {
        Some(match base_name(name).as_str() {
            "boolean" | "bool" => Wire::Bool,
            "smallint" | "int2" => Wire::Int2,
            "integer" | "int4" | "int" => Wire::Int4,
            "bigint" | "int8" => Wire::Int8,
            "real" | "float4" => Wire::Float4,
            "double precision" | "float8" => Wire::Float8,
            "numeric" | "decimal" => Wire::Numeric,
            "text" | "character varying" | "varchar" | "character" | "char" | "bpchar" | "name" | "json" => Wire::Text,
            "jsonb" => Wire::Jsonb,
            "bytea" => Wire::Bytea,
            "uuid" => Wire::Uuid,
            "date" => Wire::Date,
            "time without time zone" | "time" => Wire::Time,
            "timestamp without time zone" | "timestamp" => Wire::Timestamp,
            "timestamp with time zone" | "timestamptz" => Wire::Timestamptz,
            _ => return None,
        })
    }

    /// The form of a built-in type by its oid.
    pub(super) fn of_type(ty: &postgres_types::Type) -> Option<Wire> {
        use postgres_types::Type;
        Some(match *ty {
            Type::BOOL => Wire::Bool,
            Type::INT2 => Wire::Int2,
            Type::INT4 => Wire::Int4,
            Type::INT8 => Wire::Int8,
            Type::FLOAT4 => Wire::Float4,
            Type::FLOAT8 => Wire::Float8,
            Type::NUMERIC => Wire::Numeric,
            Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME | Type::JSON => Wire::Text,
            Type::JSONB => Wire::Jsonb,
            Type::BYTEA => Wire::Bytea,
            Type::UUID => Wire::Uuid,
            Type::DATE => Wire::Date,
            Type::TIME => Wire::Time,
            Type::TIMESTAMP => Wire::Timestamp,
            Type::TIMESTAMPTZ => Wire::Timestamptz,
            _ => return None,
        })
    }

    /// The form in which a logical type of a PostgreSQL source arrives.
    pub(super) fn of_column_type(ty: &ColumnType) -> Option<Wire> {
        Some(match ty {
            ColumnType::Bool => Wire::Bool,
            ColumnType::Int16 => Wire::Int2,
            ColumnType::Int32 => Wire::Int4,
            ColumnType::Int64 => Wire::Int8,
            ColumnType::Float32 => Wire::Float4,
            ColumnType::Float64 => Wire::Float8,
            ColumnType::Decimal { .. } | ColumnType::Numeric => Wire::Numeric,
            ColumnType::Text { .. } | ColumnType::Char { .. } | ColumnType::Json => Wire::Text,
            ColumnType::Jsonb => Wire::Jsonb,
            ColumnType::Bytes => Wire::Bytea,
            ColumnType::Uuid => Wire::Uuid,
            ColumnType::Date => Wire::Date,
            ColumnType::Time => Wire::Time,
            ColumnType::Timestamp => Wire::Timestamp,
            ColumnType::TimestampTz => Wire::Timestamptz,
            _ => return None,
        })
    }

    /// The form in which a column is read, or `None` if it is cast to text by the server: a type without a form
    /// here, or one whose text the server writes best.
    pub(super) fn to_read(column: &Column) -> Option<Wire> {
        let own = Wire::of_column_type(&column.ty)?;
        let as_is = column.carrier == Carrier::Arrow || matches!(own, Wire::Text | Wire::Jsonb | Wire::Numeric);
        as_is.then_some(own)
    }
}

/// A type's name without its modifiers: `numeric(12,2)` → `numeric`, `time(3) without time zone` → `time without time zone`.
fn base_name(name: &str) -> String {
    match (name.find('('), name.find(')')) {
        (Some(open), Some(close)) if open < close && !name.starts_with('"') => {
            format!("{}{}", &name[..open], &name[close + 1..])
        }
        _ => name.to_string(),
    }
}

/// A type's name without its modifiers, as a cast that neither cuts nor rounds; `None` where leaving them out says
/// another type.
pub(super) fn unmodified(printed: &str) -> Option<String> {
    if printed.starts_with("interval") {
        return Some("interval".into());
    }
    Some(match base_name(printed).as_str() {
        // Without a length these two mean a length of one.
        "character" => "bpchar".into(),
        "bit" => return None,
        other => other.into(),
    })
}

/// How a value is selected so that its [`Decoder`] understands it.
pub fn select_expression(expression: &str, column: &Column) -> String {
    match Wire::to_read(column) {
        Some(_) => expression.to_string(),
        None => text_expression(expression, column),
    }
}

/// A value as the text its type prints.
pub(super) fn text_expression(expression: &str, column: &Column) -> String {
    match column.source_type.as_deref() {
        // Its cast to text adds a netmask that its own text form does not have.
        Some("inet") => format!("pg_catalog.textin(pg_catalog.inet_out({expression}))"),
        _ => format!("{expression}::pg_catalog.text"),
    }
}

/// The raw format of columns, if rows of them may pass undecoded: built-in types only (their binary forms carry no
/// numbers of this database), each named in full, because a server rounds to the modifiers it has.
/// Source and destination both ask here; equal signatures mean equal bytes.
pub fn raw_format(columns: &[(String, Column)]) -> Option<RawFormat> {
    let mut signature = String::from("UTF8");
    for (_, column) in columns {
        let name = column.source_type.as_deref()?;
        let element = name.strip_suffix("[]").unwrap_or(name);
        if !is_portable(&base_name(element)) {
            return None;
        }
        signature.push(';');
        signature.push_str(name);
    }
    Some(RawFormat {
        kind: RAW_KIND.into(),
        signature,
    })
}

/// Built-in types whose binary form means the same on every server: not those that stand for catalog rows (`regclass`)
/// or depend on a locale (`money`), nothing user-made.
fn is_portable(base: &str) -> bool {
    const PORTABLE: &[&str] = &[
        "boolean",
        "smallint",
        "integer",
        "bigint",
        "real",
        "double precision",
        "numeric",
        "text",
        "character varying",
        "character",
        "bpchar",
        "name",
        "\"char\"",
        "bytea",
        "uuid",
        "json",
        "jsonb",
        "jsonpath",
        "xml",
        "date",
        "time without time zone",
        "time with time zone",
        "timestamp without time zone",
        "timestamp with time zone",
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "bit",
        "bit varying",
        "point",
        "line",
        "lseg",
        "box",
        "path",
        "polygon",
        "circle",
        "tsvector",
        "tsquery",
        "pg_lsn",
        "oid",
        "xid8",
        "int4range",
        "int8range",
        "numrange",
        "daterange",
        "tsrange",
        "tstzrange",
        "int4multirange",
        "int8multirange",
        "nummultirange",
        "datemultirange",
        "tsmultirange",
        "tstzmultirange",
    ];
    PORTABLE.contains(&base) || base == "interval" || base.starts_with("interval ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(source_type: &str) -> (String, Column) {
        (
            "c".into(),
            Column::new("c", ColumnType::Native).with_source_type(source_type),
        )
    }

    #[test]
    fn only_built_in_types_pass_undecoded() {
        for name in [
            "bigint",
            "numeric(12,2)",
            "timestamp(3) with time zone",
            "text[]",
            "interval day to second(3)",
            "\"char\"",
        ] {
            assert!(raw_format(&[column(name)]).is_some(), "{name}");
        }
        for name in [
            "public.mood",
            "public.mood[]",
            "money",
            "regclass",
            "\"odd(type)\".\"t\"",
            "public.hstore",
        ] {
            assert!(raw_format(&[column(name)]).is_none(), "{name}");
        }
        let narrow = raw_format(&[column("numeric(10,1)")]);
        assert_ne!(narrow, raw_format(&[column("numeric(12,2)")]));
    }

    #[test]
    fn type_names_are_read_with_their_modifiers() {
        assert_eq!(Wire::of_type_name("numeric(12,2)"), Some(Wire::Numeric));
        assert_eq!(Wire::of_type_name("time(3) without time zone"), Some(Wire::Time));
        assert_eq!(Wire::of_type_name("timestamptz(0)"), Some(Wire::Timestamptz));
        assert_eq!(Wire::of_type_name("\"char\""), None);
        assert_eq!(Wire::of_type_name("public.text"), None);
    }

    #[test]
    fn text_is_asked_for_where_there_is_no_binary_form() {
        let mut stamp = Column::new("t", ColumnType::Timestamp);
        assert_eq!(select_expression("\"T\"", &stamp), "\"T\"");
        stamp.carrier = Carrier::Text;
        assert_eq!(select_expression("\"T\"", &stamp), "\"T\"::pg_catalog.text");
        // A cast would strip the blanks.
        let mut padded = Column::new("c", ColumnType::Char { length: 3 });
        padded.carrier = Carrier::Text;
        assert_eq!(select_expression("\"c\"", &padded), "\"c\"");
        let address = column("inet").1;
        assert!(select_expression("a", &address).contains("inet_out"));
    }
}
