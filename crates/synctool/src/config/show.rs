//! The resolved configuration as text: every value with its origin, secrets masked; and a pipeline written to a file.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::at::{ORIGIN, VALUE};
use super::datastores::{Connection, Datastore, Datastores};
use super::global::Global;
use super::load::Loaded;
use super::pipeline::{ColumnMapping, Columns, Direction, Pipeline, StrategyKind};

impl Loaded {
    /// The pipeline and its datastores in the current form of files, each value followed by its origin.
    pub fn to_yaml(&self) -> String {
        let mut out = format!("# {}, resolved\n", self.file.display());
        if let Some(found) = self.datastores.found_in() {
            out.push_str(&format!("# datastores: {} ({})\n", found.path.display(), found.rule));
        }
        emit(&self.tree(), 0, &mut out);
        for notice in self.notices() {
            out.push_str(&format!("# {notice}\n"));
        }
        out
    }

    /// The same as JSON: `resolved` holds the values, `origins` their places by path.
    pub fn to_json(&self) -> Value {
        let mut json = with_origins(&self.tree());
        json["file"] = self.file.display().to_string().into();
        if let Some(found) = self.datastores.found_in() {
            json["datastores_file"] = json!({ "path": found.path.display().to_string(), "rule": found.rule });
        }
        json["not_yet"] = self.notices().map(ToString::to_string).collect();
        json
    }

    fn tree(&self) -> Value {
        let mut tree = pipeline_tree(&self.pipeline);
        let mut used: Vec<&Datastore> = self.source().into_iter().chain(self.destination()).collect();
        used.dedup_by_key(|d| &d.name);
        tree.insert(
            "datastores".into(),
            used.into_iter().map(named_tree).collect::<Map<_, _>>().into(),
        );
        tree.into()
    }
}

impl Datastores {
    /// All of them as a datastores file, each value followed by its origin.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        emit(&self.tree(), 0, &mut out);
        out
    }

    /// The same as JSON: `resolved` holds the values, `origins` their places by path.
    pub fn to_json(&self) -> Value {
        with_origins(&self.tree())
    }

    fn tree(&self) -> Value {
        json!({ "datastores": self.iter().map(named_tree).collect::<Map<_, _>>() })
    }
}

impl Global {
    /// The global configuration, each value followed by its origin.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        emit(&value(self), 0, &mut out);
        out
    }

    /// The same as JSON: `resolved` holds the values, `origins` their places by path.
    pub fn to_json(&self) -> Value {
        with_origins(&value(self))
    }
}

/// A pipeline file made by the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SavedPipeline {
    /// The text of the file.
    pub yaml: String,
    /// Variables that stand in the file for secrets, to be set before it is used.
    pub variables: Vec<String>,
}

impl Pipeline {
    /// The pipeline as a file that needs no other: with these datastores in it, without what is default, and with
    /// variables in place of secrets.
    pub fn save(&self, datastores: &[&Datastore]) -> SavedPipeline {
        let mut tree = plain(&Value::Object(pipeline_tree(self)));
        let defaults = plain(&Value::Object(pipeline_tree(&Pipeline::copy("", ("", ""), ("", "")))));
        drop_defaults(&mut tree, &defaults);
        // The only strategy of a pipeline without any.
        let one = plain(&value(super::pipeline::Strategy::new(StrategyKind::Full)));
        if let Some(Value::Array(strategies)) = tree.get_mut("strategies") {
            strategies.iter_mut().for_each(|s| drop_defaults(s, &one));
        }
        let mut variables = Vec::new();
        let mut entries = Map::new();
        for datastore in datastores {
            let (name, entry) = named_tree(datastore);
            let mut entry = plain(&entry);
            let server = match datastore.connection {
                Connection::Postgres(_) => Some(value(super::datastores::Postgres::new("", "", ""))),
                Connection::Mysql(_) => Some(value(super::datastores::Mysql::new("", "", ""))),
                _ => None,
            };
            if let Some(defaults) = server {
                let defaults = plain(&defaults);
                drop_defaults(&mut entry["connection"], &defaults);
                if entry["connection"].get("password").is_some() {
                    let variable = variable_name(&name);
                    entry["connection"]["password"] = Value::from(format!("${{{variable}}}"));
                    variables.push(variable);
                }
            }
            entries.insert(name, entry);
        }
        if let (false, Value::Object(tree)) = (entries.is_empty(), &mut tree) {
            tree.insert("datastores".into(), entries.into());
        }
        let mut yaml = String::new();
        emit_with(&tree, 0, &mut yaml, &variables);
        SavedPipeline { yaml, variables }
    }
}

fn variable_name(datastore: &str) -> String {
    let word: String = datastore
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() {
                c.to_ascii_uppercase()
            } else {
                '_'
            }
        })
        .collect();
    let digit = word.starts_with(|c: char| c.is_ascii_digit());
    format!("{}{word}_PASSWORD", if digit { "_" } else { "" })
}

/// Keys that say what something is stay, whatever their value.
const ALWAYS: &[&str] = &[
    "name",
    "type",
    "datastore",
    "table",
    "host",
    "user",
    "dbname",
    "source",
    "destination",
];

fn drop_defaults(tree: &mut Value, defaults: &Value) {
    let (Value::Object(tree), Value::Object(defaults)) = (tree, defaults) else {
        return;
    };
    for (key, default) in defaults {
        let Some(value) = tree.get_mut(key) else { continue };
        drop_defaults(value, default);
        let empty = matches!(value, Value::Object(map) if map.is_empty());
        if !ALWAYS.contains(&key.as_str()) && (value == default || empty) {
            tree.shift_remove(key);
        }
    }
}

fn value(of: impl Serialize) -> Value {
    // Nothing that is shown has a key that is not text, the only thing JSON refuses.
    serde_json::to_value(of).unwrap_or(Value::Null)
}

fn pipeline_tree(p: &Pipeline) -> Map<String, Value> {
    let mut tree = Map::new();
    let mut put = |key: &str, value: Value| {
        tree.insert(key.to_owned(), value);
    };
    put("name", value(&p.name));
    if let Some(description) = &p.description {
        put("description", value(description));
    }
    put("enabled", value(&p.enabled));
    put("source", value(&p.source));
    put("destination", value(&p.destination));
    put(
        "columns",
        match &p.columns {
            Columns::All => "all".into(),
            Columns::Listed(columns) => columns.iter().map(column_tree).collect(),
        },
    );
    if !p.key.is_empty() {
        put("key", value(&p.key));
    }
    if p.partitioning != Default::default() {
        put("partitioning", value(&p.partitioning));
    }
    if let Some(n) = &p.max_concurrent_partitions {
        put("max_concurrent_partitions", value(n));
    }
    if !p.transform.is_empty() {
        put("transform", value(&p.transform));
    }
    put("strategies", value(&p.strategies));
    put("write", value(&p.write));
    tree
}

fn column_tree(c: &ColumnMapping) -> Value {
    if *c == ColumnMapping::same(c.dest.clone()) {
        return value(&c.dest);
    }
    let mut tree = Map::new();
    let mut put = |key: &str, value: Value| {
        tree.insert(key.to_owned(), value);
    };
    put("source", value(&c.source));
    put("dest", value(&c.dest));
    if let Some(data_type) = &c.data_type {
        put("data_type", value(data_type));
    }
    for (key, number) in [("precision", c.precision), ("scale", c.scale), ("length", c.length)] {
        if let Some(n) = number {
            put(key, n.into());
        }
    }
    let roles: Vec<&str> = [
        ("unique_column", c.roles.unique),
        ("partition_column", c.roles.partition),
        ("order_column", c.roles.order.is_some()),
        ("delta_column", c.roles.delta),
        ("hash_key", c.roles.hash_key),
        ("enriched_key", c.roles.enriched),
    ]
    .iter()
    .filter(|(_, has)| *has)
    .map(|(role, _)| *role)
    .collect();
    if !roles.is_empty() {
        put("roles", value(roles));
    }
    if c.roles.order == Some(Direction::Desc) {
        put("direction", value(Direction::Desc));
    }
    for (key, said) in [("nullable", c.nullable), ("hash_column", c.hashed)] {
        if let Some(said) = said {
            put(key, said.into());
        }
    }
    if c.as_text {
        put("as_text", true.into());
    }
    if !c.insert {
        put("insert", false.into());
    }
    tree.into()
}

fn named_tree(datastore: &Datastore) -> (String, Value) {
    let mut tree = Map::new();
    tree.insert("type".into(), datastore.connection.type_name().into());
    match &datastore.connection {
        Connection::Postgres(postgres) => {
            tree.insert("connection".into(), value(postgres));
        }
        Connection::Mysql(mysql) => {
            tree.insert("connection".into(), value(mysql));
        }
        Connection::Sqlite { path } | Connection::Parquet { path } => {
            tree.insert("path".into(), value(path));
        }
        Connection::DuckDb { path, library } => {
            tree.insert("path".into(), value(path));
            if let Some(library) = library {
                tree.insert("library".into(), value(library));
            }
        }
        Connection::Csv { path, options } => {
            tree.insert("path".into(), value(path));
            if let Value::Object(options) = value(options) {
                tree.extend(options);
            }
        }
        Connection::NotYet { .. } => {}
    }
    if let Some(description) = &datastore.description {
        tree.insert("description".into(), value(description));
    }
    if !datastore.tags.is_empty() {
        tree.insert("tags".into(), value(&datastore.tags));
    }
    (datastore.name.clone(), tree.into())
}

/// A value with its origin, taken apart: `(value, origin)`; the origin is none for plain values.
fn part(tree: &Value) -> (&Value, Option<&Value>) {
    match tree {
        Value::Object(map) => match (map.get(VALUE), map.get(ORIGIN)) {
            (Some(value), Some(origin)) => (value, Some(origin)),
            _ => (tree, None),
        },
        _ => (tree, None),
    }
}

/// The values alone.
fn plain(tree: &Value) -> Value {
    match part(tree).0 {
        Value::Object(map) => map
            .iter()
            .map(|(k, v)| (k.clone(), plain(v)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(items) => items.iter().map(plain).collect(),
        scalar => scalar.clone(),
    }
}

fn with_origins(tree: &Value) -> Value {
    let mut origins = Map::new();
    collect_origins(tree, String::new(), &mut origins);
    json!({ "resolved": plain(tree), "origins": origins })
}

fn collect_origins(tree: &Value, path: String, origins: &mut Map<String, Value>) {
    let (value, origin) = part(tree);
    if let Some(origin) = origin {
        origins.insert(
            path.clone(),
            if origin.is_null() {
                "default".into()
            } else {
                origin.clone()
            },
        );
    }
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                collect_origins(value, path, origins);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                collect_origins(item, format!("{path}[{i}]"), origins);
            }
        }
        _ => {}
    }
}

/// Writes a tree as YAML, a value's origin as the comment after it.
fn emit(tree: &Value, indent: usize, out: &mut String) {
    emit_with(tree, indent, out, &[]);
}

/// `variables` are those that the file names on purpose; any other `${` is text.
fn emit_with(tree: &Value, indent: usize, out: &mut String, variables: &[String]) {
    let pad = "  ".repeat(indent);
    match part(tree).0 {
        Value::Object(map) => {
            for (key, item) in map {
                out.push_str(&format!("{pad}{}:", scalar(&Value::from(key.as_str()), &[])));
                emit_item(item, indent + 1, out, variables);
            }
        }
        Value::Array(items) => {
            for item in items {
                out.push_str(&pad);
                out.push('-');
                match part(item).0 {
                    // The first key of a mapping stands behind the dash.
                    Value::Object(map) if !map.is_empty() => {
                        let mut block = String::new();
                        emit_with(item, indent + 1, &mut block, variables);
                        out.push(' ');
                        out.push_str(block.trim_start());
                    }
                    _ => emit_item(item, indent + 1, out, variables),
                }
            }
        }
        _ => {
            out.push_str(&pad);
            out.push_str(&scalar(tree, variables));
            out.push('\n');
        }
    }
}

/// What stands after `key:` or `-`.
fn emit_item(item: &Value, indent: usize, out: &mut String, variables: &[String]) {
    let (value, origin) = part(item);
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            emit_with(value, indent, out, variables);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            emit_with(value, indent, out, variables);
        }
        _ => {
            out.push(' ');
            out.push_str(&scalar(value, variables));
            match origin {
                Some(Value::String(origin)) => out.push_str(&format!("  # {origin}")),
                Some(_) => out.push_str("  # default"),
                None => {}
            }
            out.push('\n');
        }
    }
}

fn scalar(value: &Value, variables: &[String]) -> String {
    let text = match value {
        Value::Object(_) => return "{}".into(),
        Value::Array(_) => return "[]".into(),
        Value::String(text) => text,
        other => return other.to_string(),
    };
    let is_variable = variables.iter().any(|name| *text == format!("${{{name}}}"));
    let text = if is_variable {
        text.clone()
    } else {
        text.replace("${", "$${")
    };
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || "_/$".contains(c))
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_./-@{}$".contains(c));
    let special =
        ["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    // A number begins with no letter, but for the special ones, which have a dot in front.
    if word && !special {
        text
    } else {
        Value::from(text).to_string()
    }
}
