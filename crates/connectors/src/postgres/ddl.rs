//! How columns are stored in PostgreSQL, and the statements that make tables.

use super::ENGINE;
use super::digits::{cut_in_arrays, differ_in_digits};
use super::sql::{MAX_NAME, check_ident, ident, literal, table};
use std::collections::HashSet;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::{Fidelity, StoredAs};

/// The longest varchar(n).
const MAX_VARCHAR: u32 = 10_485_760;

/// The types a server knows, by the names its catalog prints.
#[derive(Debug, Clone, Default)]
pub(super) struct KnownTypes {
    names: HashSet<String>,
    /// numeric(p,s) with s < 0 or s > p.
    wide_scales: bool,
}

impl KnownTypes {
    /// `names` are `format_type(oid, NULL)` of every type; `version` is `server_version_num`.
    pub(super) fn new(names: impl IntoIterator<Item = String>, version: u32) -> Self {
        KnownTypes {
            names: names.into_iter().collect(),
            wide_scales: version >= 150_000,
        }
    }

    /// Whether a type as a catalog prints it (with modifiers and array brackets) exists here.
    pub(super) fn has(&self, printed: &str) -> bool {
        let element = printed.trim_end_matches("[]");
        self.names.contains(element) || self.names.contains(&without_modifier(element))
    }
}

/// `numeric(12,2)` → `numeric`, `timestamp(3) without time zone` → `timestamp without time zone`,
/// `interval day to second(3)` → `interval`. Quoted names are left alone.
pub(super) fn without_modifier(printed: &str) -> String {
    if printed.starts_with("interval ") || printed.starts_with("interval(") {
        return "interval".into();
    }
    let (mut out, mut quoted, mut inside) = (String::with_capacity(printed.len()), false, false);
    for c in printed.chars() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => inside = true,
            ')' if !quoted => {
                inside = false;
                continue;
            }
            _ => {}
        }
        if !inside {
            out.push(c);
        }
    }
    out
}

/// The statement that gives a column a wider type; `None` for one of the user's own types, and where it would not become
/// wider.
pub(super) fn widen(id: &TableId, there: &Column, wanted: &Column) -> Option<String> {
    const OWN: [&str; 9] = [
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "real",
        "character varying",
        "time without time zone",
        "timestamp without time zone",
        "timestamp with time zone",
    ];
    let (has, gets) = (there.source_type.as_deref()?, wanted.source_type.as_deref()?);
    let kind = without_modifier(has);
    let wider = there.ty != wanted.ty || (kind == without_modifier(gets) && second_digits(has) < second_digits(gets));
    (wider && OWN.contains(&kind.as_str())).then(|| {
        format!(
            "ALTER TABLE {} ALTER COLUMN {} TYPE {gets}",
            quoted(id),
            ident(&there.name)
        )
    })
}

/// Whether a column of times that is here would round those of another server's: that keeps more digits of a second.
pub(super) fn rounds(there: &Column, wanted: &Column) -> bool {
    use ColumnType::*;
    let digits = |c: &Column| c.source_type.as_deref().map_or(6, second_digits);
    let times = matches!(there.ty, Time | TimeTz | Timestamp | TimestampTz);
    times && there.ty == wanted.ty && digits(there) < digits(wanted)
}

/// The digits of a second that a type of times keeps.
pub(super) fn second_digits(printed: &str) -> u8 {
    let said = modifier(printed).and_then(|n| n.parse().ok());
    said.unwrap_or(6)
}

/// What stands in the brackets of a built-in type.
pub(super) fn modifier(printed: &str) -> Option<&str> {
    let (_, rest) = printed.split_once('(').filter(|_| !printed.contains('"'))?;
    rest.split(')').next()
}

/// The type of a column that is here, where values stored as another type of its kind are to be written as that, so that
/// what it would round is refused ([`super::digits::Digits`]) and what it would cut, too: a cast does both unseen.
pub(super) fn narrowed(there: &Column, type_name: &str) -> Result<Option<String>> {
    use ColumnType::*;
    let Some(own) = there.source_type.as_deref().filter(|own| *own != type_name) else {
        return Ok(None);
    };
    let (fewer, unseen) = match there.ty {
        Time | TimeTz | Timestamp | TimestampTz => (second_digits(own) < second_digits(type_name), false),
        Interval => (
            second_digits(own) < second_digits(type_name),
            last_field(own) < last_field(type_name),
        ),
        // A cast cuts bits, too.
        Native => (
            own.starts_with("bit(")
                || (differ_in_digits(own, type_name) && second_digits(own) < second_digits(type_name)),
            cut_in_arrays(type_name, own),
        ),
        _ => (false, false),
    };
    match unseen {
        true => Err(would_round(there, type_name)),
        false => Ok(fewer.then(|| own.to_owned())),
    }
}

/// The refusal of a column that keeps less of values than the type that is wanted.
pub(super) fn would_round(there: &Column, wanted: &str) -> Error {
    let name = &there.name;
    let has = there.source_type.clone().unwrap_or_else(|| there.ty.to_string());
    Error::new(
        code::SCHEMA_MISMATCH,
        format!("column {name} is {has} at the destination, which would round values of {wanted}"),
    )
    .hint(format!(
        "ALTER TABLE … ALTER COLUMN {name} TYPE {wanted}; at the destination"
    ))
}

/// The last field that a type of intervals keeps, counted from the years.
fn last_field(printed: &str) -> usize {
    const FIELDS: [&str; 6] = ["year", "month", "day", "hour", "minute", "second"];
    let names = printed.split('(').next().unwrap_or_default();
    let last = names.rsplit(' ').next();
    FIELDS.iter().position(|f| Some(*f) == last).unwrap_or(FIELDS.len() - 1)
}

/// How a source column is stored here.
pub(super) fn store_as(known: &KnownTypes, source_engine: &str, column: &Column) -> StoredAs {
    let own = source_engine == ENGINE;
    if own && let Some(printed) = &column.source_type {
        if known.has(printed) {
            return StoredAs {
                type_name: printed.clone(),
                carrier: carrier(&column.ty),
                fidelity: Fidelity::Exact,
            };
        }
        if column.ty == ColumnType::Native {
            return StoredAs {
                type_name: "text".into(),
                carrier: Carrier::Text,
                fidelity: Fidelity::Normalised(format!(
                    "stored as text: type {printed} does not exist at the destination"
                )),
            };
        }
    }
    let (type_name, mut fidelity) = by_logical_type(known, own, column);
    if own && let (Some(printed), Fidelity::Exact) = (&column.source_type, &fidelity) {
        // A domain that is missing here: its values have a place in its base type, its checks do not.
        fidelity = Fidelity::Widened(format!("{type_name}: type {printed} does not exist at the destination"));
    }
    StoredAs {
        type_name,
        carrier: carrier(&column.ty),
        fidelity,
    }
}

/// Values whose Arrow form would lose something (NaN and scale of a numeric, an offset), or that PostgreSQL has no
/// type of the same width for, travel as text.
fn carrier(ty: &ColumnType) -> Carrier {
    match ty {
        ColumnType::Decimal { .. }
        | ColumnType::Numeric
        | ColumnType::TimeTz
        | ColumnType::Interval
        | ColumnType::Native
        | ColumnType::Int8
        | ColumnType::UInt8
        | ColumnType::UInt16
        | ColumnType::UInt32
        | ColumnType::UInt64 => Carrier::Text,
        _ => Carrier::Arrow,
    }
}

fn by_logical_type(known: &KnownTypes, own: bool, column: &Column) -> (String, Fidelity) {
    use ColumnType::*;
    let exact = |name: &str| (name.to_string(), Fidelity::Exact);
    let wider = |name: &str| (name.to_string(), Fidelity::Widened(name.to_string()));
    match &column.ty {
        Bool => exact("boolean"),
        Int8 | UInt8 => wider("smallint"),
        Int16 => exact("smallint"),
        UInt16 => wider("integer"),
        Int32 => exact("integer"),
        UInt32 => wider("bigint"),
        Int64 => exact("bigint"),
        UInt64 => wider("numeric(20,0)"),
        Decimal { precision, scale } => {
            let usual = (0..=*precision as i32).contains(&(*scale as i32));
            if *precision <= 1000 && (usual || known.wide_scales && (-1000..=1000).contains(scale)) {
                (format!("numeric({precision},{scale})"), Fidelity::Exact)
            } else {
                wider("numeric")
            }
        }
        Numeric => exact("numeric"),
        Float32 => exact("real"),
        Float64 => exact("double precision"),
        Date => exact("date"),
        Time => exact("time without time zone"),
        TimeTz => exact("time with time zone"),
        Timestamp => exact("timestamp without time zone"),
        TimestampTz => exact("timestamp with time zone"),
        Interval => exact("interval"),
        Text { max: Some(n) } if *n <= MAX_VARCHAR && *n > 0 => (format!("character varying({n})"), Fidelity::Exact),
        Text { .. } => exact("text"),
        // Other engines give char(n) without its padding; bpchar would add it.
        Char { length } if !own && *length <= MAX_VARCHAR && *length > 0 => {
            wider(&format!("character varying({length})"))
        }
        Char { length } if own => (format!("character({length})"), Fidelity::Exact),
        Char { .. } => wider("text"),
        Bytes => exact("bytea"),
        Uuid => exact("uuid"),
        Json => exact("json"),
        Jsonb if own => exact("jsonb"),
        Jsonb => (
            "jsonb".into(),
            Fidelity::Normalised("jsonb: key order, duplicate keys and white space are not kept".into()),
        ),
        Native => (
            "text".into(),
            Fidelity::Normalised(match &column.source_type {
                Some(t) => format!("stored as text, in the form {t} prints"),
                None => "stored as text".into(),
            }),
        ),
    }
}

/// A name of at most 63 bytes ending in `suffix`, as the server itself would choose (`items_pkey`).
pub(super) fn derived_name(base: &str, suffix: &str) -> String {
    let mut end = base.len().min(MAX_NAME - suffix.len());
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

/// Checks every name of a table to be written.
pub(super) fn check_names(table: &TableId, schema: &TableSchema) -> Result<()> {
    for name in table.schema.iter().chain([&table.name]) {
        check_ident(name)?;
    }
    let mut seen = HashSet::new();
    for c in &schema.columns {
        check_ident(&c.name).map_err(|e| e.at("table", table.to_string()))?;
        if !seen.insert(&c.name) {
            return Err(
                Error::new(code::IDENTIFIER, format!("column {} is written twice", c.name))
                    .at("table", table.to_string()),
            );
        }
    }
    Ok(())
}

/// CREATE TABLE for `schema`, every column as `type_of` says. With `final_name`, constraints get the names they have
/// once the table is called that.
pub(super) fn create_table(
    name: &TableId,
    schema: &TableSchema,
    types: &[String],
    final_name: &str,
    load: bool,
) -> String {
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (c, ty) in schema.columns.iter().zip(types) {
        let mut text = format!("{} {ty}", ident(&c.name));
        if c.identity && is_integer(ty) {
            text.push_str(" GENERATED BY DEFAULT AS IDENTITY");
        }
        if !c.nullable {
            // PostgreSQL 18 keeps a name for it; older servers read and forget it.
            let name = derived_name(&format!("{final_name}_{}", c.name), "_not_null");
            text.push_str(&format!(" CONSTRAINT {} NOT NULL", ident(&name)));
        }
        columns.push(text);
    }
    format!(
        "CREATE TABLE {} ({}){}",
        quoted(name),
        columns.join(", "),
        if load { " WITH (autovacuum_enabled = false)" } else { "" }
    )
}

/// Whether a column of this type can be an identity.
pub(super) fn is_integer(type_name: &str) -> bool {
    matches!(type_name, "smallint" | "integer" | "bigint")
}

/// `COMMENT ON TABLE` that says whose load table it is, so that a later generation may drop it.
pub(super) fn mark_load(name: &TableId, pipeline: &str) -> Result<String> {
    Ok(format!(
        "COMMENT ON TABLE {} IS {}",
        quoted(name),
        literal(&load_mark(pipeline))?
    ))
}

/// A table's quoted name; its schema was filled in before.
pub(super) fn quoted(name: &TableId) -> String {
    table(name, "public")
}

/// The comment of a pipeline's load tables.
pub(super) fn load_mark(pipeline: &str) -> String {
    format!("SyncTool loads rows of pipeline {pipeline} here; it goes when the run ends.")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> KnownTypes {
        KnownTypes::new(
            [
                "numeric",
                "timestamp without time zone",
                "interval",
                "text",
                "shop.\"Mood (odd)\"",
                "integer",
                "character",
            ]
            .map(String::from),
            150_000,
        )
    }

    #[test]
    fn printed_types_are_found_without_their_modifiers() {
        let k = known();
        for there in [
            "numeric(12,2)",
            "numeric(3,-2)[]",
            "timestamp(3) without time zone",
            "interval day to second(3)",
            "interval(3)",
            "shop.\"Mood (odd)\"[]",
            "integer[]",
            "character(5)",
        ] {
            assert!(k.has(there), "{there}");
        }
        assert!(!k.has("shop.mood"));
    }

    #[test]
    fn types_that_are_missing_here_become_text_and_say_so() {
        let native = Column::new("c", ColumnType::Native).with_source_type("shop.mood");
        let stored = store_as(&known(), ENGINE, &native);
        assert_eq!(stored.type_name, "text");
        assert!(matches!(stored.fidelity, Fidelity::Normalised(_)));
        let there = Column::new("c", ColumnType::Native).with_source_type("shop.\"Mood (odd)\"");
        assert_eq!(store_as(&known(), ENGINE, &there).type_name, "shop.\"Mood (odd)\"");
    }

    #[test]
    fn other_engines_are_stored_by_logical_type() {
        let of = |ty| store_as(&known(), "mysql", &Column::new("c", ty).with_source_type("whatever")).type_name;
        assert_eq!(of(ColumnType::UInt64), "numeric(20,0)");
        assert_eq!(
            of(ColumnType::Decimal {
                precision: 65,
                scale: 30
            }),
            "numeric(65,30)"
        );
        assert_eq!(of(ColumnType::Char { length: 3 }), "character varying(3)");
        assert_eq!(of(ColumnType::Native), "text");
        let old = KnownTypes::new([], 140_000);
        let negative = Column::new(
            "c",
            ColumnType::Decimal {
                precision: 3,
                scale: -2,
            },
        );
        assert_eq!(store_as(&old, "mysql", &negative).type_name, "numeric");
    }

    #[test]
    fn a_column_of_fewer_digits_is_written_in_its_own_type() {
        let there = |ty, name: &str| Column::new("c", ty).with_source_type(name);
        let own = |there: &Column, wanted: &str| narrowed(there, wanted).unwrap();
        let (seconds, all) = ("timestamp(0) without time zone", "timestamp without time zone");
        assert_eq!(
            own(&there(ColumnType::Timestamp, seconds), all).as_deref(),
            Some(seconds)
        );
        assert_eq!(own(&there(ColumnType::Timestamp, all), seconds), None);
        assert_eq!(own(&there(ColumnType::Timestamp, "shop.\"moment(0)\""), all), None);
        let months = there(ColumnType::Interval, "interval year to month");
        assert_eq!(own(&months, "interval year"), None);
        let refused = narrowed(&months, "interval day to second(3)").unwrap_err();
        assert_eq!(refused.code(), code::SCHEMA_MISMATCH);
        assert_eq!(
            own(&there(ColumnType::Interval, "interval(0)"), "interval").as_deref(),
            Some("interval(0)")
        );
        assert_eq!(
            own(&there(ColumnType::Native, "bit(4)"), "bit(8)").as_deref(),
            Some("bit(4)")
        );
        assert!(narrowed(&there(ColumnType::Native, "real[]"), "double precision[]").is_err());
    }

    #[test]
    fn derived_names_are_cut_at_a_character() {
        let cut = derived_name(&"ä".repeat(31), "_pkey");
        assert!(cut.len() <= 63 && cut.ends_with("ä_pkey"));
    }
}
