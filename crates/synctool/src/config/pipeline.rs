//! The one model of a pipeline. Every generation of files is read into it; nothing else in the program knows how a file
//! was written.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::at::At;
use super::datastores::Datastore;
use super::decode::Notice;
use super::error::ConfigError;
use super::types::DataType;

/// A pipeline: one source, what happens on the way, one destination, and the ways to keep the two equal.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Its id.
    pub name: At<String>,
    /// What it is for.
    pub description: Option<At<String>>,
    /// Whether a scheduler may run it.
    pub enabled: At<bool>,
    /// Where rows come from.
    pub source: Source,
    /// Where they go.
    pub destination: Destination,
    /// Which columns.
    pub columns: Columns,
    /// Columns of the destination that identify a row; empty = the source's primary key.
    pub key: Vec<At<String>>,
    /// How a run is cut into partitions; where it says nothing, the data decides.
    pub partitioning: Partitioning,
    /// Partitions worked on at once; the global `workers` where there is none.
    pub max_concurrent_partitions: Option<At<u32>>,
    /// What happens to rows on their way, in this order.
    pub transform: Vec<Transform>,
    /// The ways to bring the destination up to date, at least one.
    pub strategies: Vec<Strategy>,
    /// What the destination may be asked to do.
    pub write: Write,
    /// Keys that were read and that this version does nothing with.
    pub not_yet: Vec<Notice>,
}

/// One step on the way of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Transform {
    /// Values of a column that are replaced by others.
    pub value_map: ValueMap,
}

/// Values of a column and what stands for them; others stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ValueMap {
    /// The column, as it is called at the destination.
    pub column: At<String>,
    /// Value to new value; null = NULL.
    pub mapping: BTreeMap<String, Option<String>>,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// Name of the datastore.
    pub datastore: At<String>,
    /// Table as written; [`Source::table_ref`] takes it apart.
    pub table: At<String>,
    /// Schema, where it stands apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// The name of the table in filters, joins and columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<At<String>>,
    /// Further tables whose columns come along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Join>,
    /// Conditions that a row must meet, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<At<Filter>>,
    /// The type that the pipeline says the datastore is of, to be checked against it.
    #[serde(skip)]
    pub type_name: Option<At<String>>,
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Destination {
    /// Name of the datastore.
    pub datastore: At<String>,
    /// Table as written; [`Destination::table_ref`] takes it apart.
    pub table: At<String>,
    /// Schema, where it stands apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// `false` = rows are only ever appended.
    pub supports_update: At<bool>,
    /// Where SyncTool's own tables stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_schema: Option<At<String>>,
    /// The type that the pipeline says the datastore is of, to be checked against it.
    #[serde(skip)]
    pub type_name: Option<At<String>>,
}

/// A table's name, taken apart for one datastore.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// Schema; none where the datastore has none.
    pub schema: Option<String>,
    /// Table, without quotes.
    pub name: String,
}

/// A table that is read along with the source's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Join {
    /// Table.
    pub table: At<String>,
    /// Schema; that of the source where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// Its name in the condition and in columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<At<String>>,
    /// The condition, in the source's SQL.
    pub on: At<String>,
    /// Which rows stay. Default: inner.
    #[serde(rename = "type", default)]
    pub kind: At<JoinKind>,
}

/// Which rows of a join stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinKind {
    /// Those with a partner.
    #[default]
    Inner,
    /// All of the source's own.
    Left,
    /// All of the joined table's.
    Right,
    /// All.
    Full,
}

/// A condition on rows of the source.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Filter", untagged)]
pub enum Filter {
    /// A condition in the source's SQL.
    #[serde(rename = "text")]
    Sql(String),
    /// A column compared with a value.
    #[serde(rename = "map")]
    Compare(Comparison),
}

impl Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Filter::Sql(sql) => serializer.serialize_str(sql),
            Filter::Compare(comparison) => comparison.serialize(serializer),
        }
    }
}

/// A column compared with a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Comparison {
    /// The column.
    pub column: At<String>,
    /// How. Default: =.
    #[serde(default)]
    pub operator: Operator,
    /// With what: a number, a text, true or false; a list for `in`.
    pub value: At<Value>,
}

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Operator {
    #[default]
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = "<=")]
    LessOrEqual,
    #[serde(rename = ">")]
    Greater,
    #[serde(rename = ">=")]
    GreaterOrEqual,
    #[serde(rename = "in")]
    In,
}

/// Which columns go along.
#[derive(Debug, Clone, PartialEq)]
pub enum Columns {
    /// Every column of the source, under its own name and type.
    All,
    /// These.
    Listed(Vec<ColumnMapping>),
}

/// One column, from source to destination.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMapping {
    /// Name at the source, with the table's alias where one was written (`o.id`); none = made on the way.
    pub source: Option<At<String>>,
    /// Name at the destination.
    pub dest: At<String>,
    /// Type at the destination; none = the source's.
    pub data_type: Option<At<DataType>>,
    /// Digits of a decimal.
    pub precision: Option<u32>,
    /// Digits after the point.
    pub scale: Option<u32>,
    /// Characters of a varchar or char.
    pub length: Option<u32>,
    /// What the column is for.
    pub roles: Roles,
    /// Whether NULL is allowed at the destination; none = as at the source.
    pub nullable: Option<bool>,
    /// Carried as text, for a type without a counterpart.
    pub as_text: bool,
    /// `false` = read, and not written.
    pub insert: bool,
    /// Whether it counts in comparisons; none = it does unless another column says true.
    pub hashed: Option<bool>,
}

impl ColumnMapping {
    /// A column under the same name at both ends.
    pub fn same(name: impl Into<At<String>>) -> Self {
        let dest = name.into();
        Self {
            source: Some(dest.clone()),
            dest,
            data_type: None,
            precision: None,
            scale: None,
            length: None,
            roles: Roles::default(),
            nullable: None,
            as_text: false,
            insert: true,
            hashed: None,
        }
    }

    /// Whether `name` means this column: its name at either end, with or without the alias.
    pub fn is_called(&self, name: &str) -> bool {
        let source = self.source.as_ref().map_or("", |s| s.as_str());
        *name == **self.dest || name == source || source.rsplit('.').next() == Some(name)
    }
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles {
    /// Part of what identifies a row.
    pub unique: bool,
    /// Runs are cut into partitions along it.
    pub partition: bool,
    /// Rows are ordered by it.
    pub order: Option<Direction>,
    /// It says when a row changed.
    pub delta: bool,
    /// It stores the hash of a row.
    pub hash_key: bool,
    /// It comes from another table on the way.
    pub enriched: bool,
}

/// Up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Direction {
    #[default]
    Asc,
    Desc,
}

/// How a run is cut into partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Partitioning {
    /// The column, as it is called at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<At<String>>,
    /// The width of a partition in units of the column (keys, seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<At<u64>>,
}

/// One way to bring the destination up to date.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strategy {
    /// Its name, unique in the pipeline.
    pub name: At<String>,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: At<StrategyKind>,
    /// The column that says when a row changed, as it is called at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<At<String>>,
    /// When a scheduler runs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<At<String>>,
    /// Whether it may run.
    pub enabled: At<bool>,
    /// Whether it may be chosen where none was named.
    pub default: At<bool>,
    /// Rows per page, the unit of commit inside a partition; none = by bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_size: Option<At<u32>>,
    /// How a full run replaces; none = swap when the pipeline made the table, else upsert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_mode: Option<At<FullMode>>,
    /// What a run proves before it is done; none = what costs nothing extra.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<At<Verify>>,
}

impl Strategy {
    /// A strategy of a kind, named after it, with every default.
    pub fn new(kind: StrategyKind) -> Self {
        Self {
            name: kind.name().into(),
            kind: kind.into(),
            column: None,
            cron: None,
            enabled: true.into(),
            default: true.into(),
            page_size: None,
            full_mode: None,
            verify: None,
        }
    }
}

/// What a strategy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StrategyKind {
    /// Reads everything.
    Full,
    /// Reads what changed since the last run, by a column.
    Delta,
    /// Compares both ends and repairs what differs.
    Hash,
    /// Recomputes the groups whose rows changed.
    Aggregate,
    /// Follows the source's log.
    Log,
}

impl StrategyKind {
    /// The word of the `type` key.
    pub fn name(self) -> &'static str {
        match self {
            StrategyKind::Full => "full",
            StrategyKind::Delta => "delta",
            StrategyKind::Hash => "hash",
            StrategyKind::Aggregate => "aggregate",
            StrategyKind::Log => "log",
        }
    }
}

/// How a full run replaces what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FullMode {
    /// Loads beside, then takes the place in one transaction.
    Swap,
    /// Writes rows that differ and deletes those that are gone.
    Upsert,
}

/// What a run proves before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// Nothing.
    None,
    /// As many rows stored as were read.
    Count,
    /// The rows stored are the rows read.
    Hash,
}

/// What the destination may be asked to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Write {
    /// Deletes of more than 30 % and more than 1,000 rows, and an empty source, are carried out and not refused.
    pub allow_mass_delete: At<bool>,
}

impl Source {
    /// The table, taken apart for its datastore. The schema is none where none was written: the connection's own.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

impl Destination {
    /// The table, taken apart for its datastore. The schema is none where none was written: the connection's own.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

fn table_ref(table: &At<String>, schema: Option<&At<String>>, datastore: &Datastore) -> Result<TableRef, ConfigError> {
    if !datastore.connection.has_schemas() {
        return Ok(TableRef {
            schema: None,
            name: table.to_string(),
        });
    }
    match schema {
        // A schema of its own leaves nothing to take apart, so that any name can be written.
        Some(schema) => Ok(TableRef {
            schema: Some(schema.to_string()),
            name: table.to_string(),
        }),
        None => TableRef::parse(table).map_err(|message| table.error(message)),
    }
}

impl TableRef {
    /// Reads `table`, `schema.table`, and either part in double quotes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (first, rest) = part(text)?;
        match rest.strip_prefix('.') {
            None if rest.is_empty() => Ok(TableRef {
                schema: None,
                name: first,
            }),
            None => Err("a table's name goes on after its closing quote".into()),
            Some(rest) => {
                let (second, rest) = part(rest)?;
                if !rest.is_empty() {
                    return Err(
                        "a table is named by at most schema and table; put a name with a dot in double quotes".into(),
                    );
                }
                Ok(TableRef {
                    schema: Some(first),
                    name: second,
                })
            }
        }
    }
}

/// One name and what follows it.
fn part(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.strip_prefix('"') {
        None => {
            let end = text.find('.').unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
        Some(quoted) => {
            let mut name = String::new();
            let mut rest = quoted;
            loop {
                let end = rest
                    .find('"')
                    .ok_or("a table's name has a double quote without its end")?;
                name.push_str(&rest[..end]);
                rest = &rest[end + 1..];
                match rest.strip_prefix('"') {
                    Some(after) => {
                        name.push('"');
                        rest = after;
                    }
                    None => break (name, rest),
                }
            }
        }
    };
    if name.is_empty() {
        Err("a part of the table's name is empty".into())
    } else {
        Ok((name, rest))
    }
}

impl Pipeline {
    /// A pipeline that copies one table, with every default.
    pub fn copy(name: &str, source: (&str, &str), destination: (&str, &str)) -> Self {
        Self {
            name: name.into(),
            description: None,
            enabled: true.into(),
            source: Source {
                datastore: source.0.into(),
                table: source.1.into(),
                schema: None,
                alias: None,
                joins: Vec::new(),
                filters: Vec::new(),
                type_name: None,
            },
            destination: Destination {
                datastore: destination.0.into(),
                table: destination.1.into(),
                schema: None,
                supports_update: true.into(),
                control_schema: None,
                type_name: None,
            },
            columns: Columns::All,
            key: Vec::new(),
            partitioning: Partitioning::default(),
            max_concurrent_partitions: None,
            strategies: vec![Strategy::new(StrategyKind::Full)],
            write: Write::default(),
            transform: Vec::new(),
            not_yet: Vec::new(),
        }
    }

    /// The strategy that `wanted` means: by name first, then by type if exactly one is of it.
    pub fn strategy(&self, wanted: &str) -> Result<&Strategy, ConfigError> {
        if let Some(strategy) = self.strategies.iter().find(|s| **s.name == *wanted) {
            return Ok(strategy);
        }
        let mut of_type = self.strategies.iter().filter(|s| s.kind.name() == wanted);
        match (of_type.next(), of_type.next()) {
            (Some(strategy), None) => Ok(strategy),
            (Some(_), Some(_)) => {
                let names: Vec<&str> = self
                    .strategies
                    .iter()
                    .filter(|s| s.kind.name() == wanted)
                    .map(|s| s.name.as_str())
                    .collect();
                Err(self
                    .name
                    .error(format!("several strategies are of type {wanted}"))
                    .with_help(format!("name one: {}", names.join(", "))))
            }
            (None, _) => {
                let names: Vec<&str> = self.strategies.iter().map(|s| s.name.as_str()).collect();
                let error = self
                    .name
                    .error(format!("pipeline {} has no strategy \"{wanted}\"", self.name.shown()));
                Err(match super::error::suggestion(wanted, "strategies", &names) {
                    Some(help) => error.with_help(help),
                    None => error,
                })
            }
        }
    }

    /// What a checkpoint depends on, as a small value to be stored beside it: tables, key, columns, filters and what the
    /// strategies read. Not the layout of the file, descriptions, schedules, page sizes or secrets.
    pub fn semantics(&self) -> Value {
        let text = |value: &Option<At<String>>| value.as_ref().map(meaning);
        let joins: Vec<Value> = self
            .source
            .joins
            .iter()
            .map(|j| json!({"table": meaning(&j.table), "schema": text(&j.schema), "alias": text(&j.alias), "on": meaning(&j.on), "type": *j.kind}))
            .collect();
        let filters: Vec<Value> = self
            .source
            .filters
            .iter()
            .map(|filter| match &**filter {
                Filter::Sql(sql) => json!(meaning(&filter.with(sql.trim().to_owned()))),
                Filter::Compare(c) => {
                    let value = match hidden(&c.value, &c.value.to_string()) {
                        Some(hash) => Value::from(hash),
                        None => (*c.value).clone(),
                    };
                    json!({"column": meaning(&c.column), "operator": c.operator, "value": value})
                }
            })
            .collect();
        let columns = match &self.columns {
            Columns::All => json!("all"),
            Columns::Listed(columns) => Value::Object(
                columns
                    .iter()
                    .map(|c| (c.dest.to_string(), column_semantics(c)))
                    .collect(),
            ),
        };
        let strategies: serde_json::Map<String, Value> = self
            .strategies
            .iter()
            .map(|s| {
                (
                    s.name.to_string(),
                    json!({"type": *s.kind, "column": text(&s.column), "full_mode": s.full_mode.as_deref()}),
                )
            })
            .collect();
        json!({
            "version": 1,
            "source": {
                "datastore": meaning(&self.source.datastore), "table": meaning(&self.source.table), "schema": text(&self.source.schema),
                "alias": text(&self.source.alias), "joins": joins, "filters": filters,
            },
            "destination": {
                "datastore": meaning(&self.destination.datastore), "table": meaning(&self.destination.table),
                "schema": text(&self.destination.schema), "supports_update": *self.destination.supports_update,
                "control_schema": text(&self.destination.control_schema),
            },
            "columns": columns,
            "key": self.key.iter().map(meaning).collect::<Vec<_>>(),
            "partition_column": text(&self.partitioning.column),
            "transform": self.transform.iter().map(|t| {
                json!({"value_map": {"column": meaning(&t.value_map.column), "mapping": t.value_map.mapping}})
            }).collect::<Vec<_>>(),
            "strategies": strategies,
        })
    }

    /// [`Pipeline::semantics`] of one strategy alone: adding another strategy does not disturb its checkpoint.
    pub fn semantics_of(&self, strategy: &str) -> Value {
        let mut semantics = self.semantics();
        if let Some(Value::Object(strategies)) = semantics.get_mut("strategies") {
            strategies.retain(|name, _| name == strategy);
        }
        semantics
    }

    /// The hash of [`Pipeline::semantics_of`], as 32 hexadecimal digits.
    pub fn semantic_hash(&self, strategy: &str) -> String {
        let mut canonical = String::new();
        write_canonical(&self.semantics_of(strategy), &mut canonical);
        format!("{:032x}", xxhash_rust::xxh3::xxh3_128(canonical.as_bytes()))
    }
}

fn column_semantics(c: &ColumnMapping) -> Value {
    json!({
        "source": c.source.as_ref().map(meaning),
        "data_type": c.data_type.as_ref().map(|t| t.name()),
        "precision": c.precision, "scale": c.scale, "length": c.length,
        "unique": c.roles.unique, "delta": c.roles.delta, "hash_key": c.roles.hash_key,
        "nullable": c.nullable, "as_text": c.as_text, "insert": c.insert, "hashed": c.hashed,
    })
}

/// A text as it stands in the semantics: a secret by its hash, so that a change is seen and the secret is not.
fn meaning(text: &At<String>) -> String {
    hidden(text, text).unwrap_or_else(|| text.to_string())
}

fn hidden<T>(value: &At<T>, text: &str) -> Option<String> {
    value
        .is_secret()
        .then(|| format!("secret {:032x}", xxhash_rust::xxh3::xxh3_128(text.as_bytes())))
}

/// JSON with sorted keys: the store may have reordered them.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(map) => {
            out.push('{');
            let sorted: BTreeMap<&String, &Value> = map.iter().collect();
            for (key, value) in sorted {
                out.push_str(&Value::from(key.as_str()).to_string());
                out.push(':');
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => out.push_str(&scalar.to_string()),
    }
}

/// The keys in which two stored [`Pipeline::semantics`] differ, as paths (`source.table`, `columns.email.data_type`).
pub fn semantic_difference(a: &Value, b: &Value) -> Vec<String> {
    let mut paths = Vec::new();
    differ(a, b, "", &mut paths);
    paths
}

fn differ(a: &Value, b: &Value, path: &str, paths: &mut Vec<String>) {
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: std::collections::BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let below = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                differ(
                    left.get(key).unwrap_or(&Value::Null),
                    right.get(key).unwrap_or(&Value::Null),
                    &below,
                    paths,
                );
            }
        }
        _ if a == b => {}
        _ => paths.push(path.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names() {
        let table = |schema: Option<&str>, name: &str| TableRef {
            schema: schema.map(Into::into),
            name: name.into(),
        };
        assert_eq!(TableRef::parse("users"), Ok(table(None, "users")));
        assert_eq!(TableRef::parse("public.users"), Ok(table(Some("public"), "users")));
        assert_eq!(
            TableRef::parse("\"My.Schema\".\"a\"\"b\""),
            Ok(table(Some("My.Schema"), "a\"b"))
        );
        for wrong in ["", ".", "a.", "a.b.c", "\"a", "\"a\"b", "\"\"", ".a"] {
            assert!(TableRef::parse(wrong).is_err(), "{wrong}");
        }
    }
}
