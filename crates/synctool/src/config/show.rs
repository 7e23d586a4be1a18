//! The resolved configuration as text: every value with its origin, secrets masked; and a pipeline written to a file.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::at::{ORIGIN, VALUE, WRITTEN};
use super::datastores::{Connection, Datastore, Datastores};
use super::global::Global;
use super::load::Loaded;
use super::pipeline::{ColumnMapping, Columns, Direction, Pipeline};
use super::strategy::StrategyKind;
use super::vars::name_after;

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
        let used = self
            .pipeline
            .datastores()
            .filter_map(|name| self.datastores.known(name).ok());
        tree.insert("datastores".into(), used.map(named_tree).collect::<Map<_, _>>().into());
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
        emit(&self.tree(), 0, &mut out);
        out
    }

    /// The same as JSON: `resolved` holds the values, `origins` their places by path.
    pub fn to_json(&self) -> Value {
        with_origins(&self.tree())
    }

    /// Of what this version does nothing with only what the file says is shown: a default would pass for something that runs.
    fn tree(&self) -> Value {
        let mut tree = value(self);
        if let Value::Object(sections) = &mut tree {
            for name in UNUSED {
                if let Some(Value::Object(keys)) = sections.get_mut(*name) {
                    keys.retain(|key, of| key == "user_config_dir" || is_said(of));
                }
            }
            sections.retain(|name, keys| {
                !UNUSED.contains(&name.as_str()) || keys.as_object().is_none_or(|keys| !keys.is_empty())
            });
        }
        tree
    }
}

/// Sections of the global configuration of which this version uses no more than `user_config_dir`.
const UNUSED: &[&str] = &["scheduler", "worker", "build_system", "http", "log_batching"];

/// Whether a value, or one below it, stands in a file.
fn is_said(tree: &Value) -> bool {
    match part(tree) {
        (_, Some(origin)) => !origin.is_null(),
        (Value::Object(below), None) => below.values().any(is_said),
        _ => false,
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
    /// The tree of the pipeline without what is default.
    pub(super) fn short_tree(&self) -> Value {
        let mut tree = Value::Object(pipeline_tree(self));
        let defaults = plain(&Value::Object(pipeline_tree(&Pipeline::copy("", ("", ""), ("", "")))));
        drop_defaults(&mut tree, &defaults);
        // The only strategy of a pipeline without any.
        let one = plain(&value(super::strategy::Strategy::new(StrategyKind::Full)));
        let dimension = json!({ "bounded": false });
        for strategy in items(&mut tree, "strategies") {
            drop_defaults(strategy, &one);
            for key in ["primary_partitions", "secondary_partitions", "delta_partitions"] {
                for cut in items(strategy, key) {
                    drop_defaults(cut, &dimension);
                    if cut.get("type").is_some_and(|kind| plain(kind) == "range") {
                        remove(cut, "type");
                    }
                }
            }
        }
        let stage = json!({
            "enabled": true,
            "enrich": { "join": "left", "cardinality": "one_to_one", "cache": { "store": "memory" },
                        "as_of": { "operator": "<=", "include_open_ended": true } },
        });
        for entry in items(&mut tree, "transform") {
            drop_defaults(entry, &stage);
            let named_by_itself = entry
                .get("name")
                .and_then(|name| plain(name).as_str().map(ToOwned::to_owned))
                .is_some_and(|name| entry.get(&name).is_some() && name != "name");
            if named_by_itself {
                remove(entry, "name");
            }
        }
        tree
    }

    /// The pipeline as a file that needs no other: with these datastores in it, without what is default, and with
    /// variables in place of secrets.
    pub fn save(&self, datastores: &[&Datastore]) -> SavedPipeline {
        let mut tree = plain(&self.short_tree());
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
                    let variable = format!("{}_PASSWORD", name_after(&name));
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
        emit_with(&tree, 0, &mut yaml, Style::Plain(&variables));
        SavedPipeline { yaml, variables }
    }
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

/// Takes out what is as it would be anyway. `defaults` are plain values; a value that holds a variable stays.
fn drop_defaults(tree: &mut Value, defaults: &Value) {
    let (Value::Object(tree), Value::Object(defaults)) = (tree, defaults) else {
        return;
    };
    for (key, default) in defaults {
        let Some(value) = tree.get_mut(key) else { continue };
        let is_pair = part(value).1.is_some();
        if !is_pair {
            drop_defaults(value, default);
        }
        let variable = value.get(WRITTEN).is_some_and(|written| !written.is_null());
        let empty = matches!(value, Value::Object(map) if map.is_empty());
        if !ALWAYS.contains(&key.as_str()) && !variable && (plain(value) == *default || empty) {
            tree.shift_remove(key);
        }
    }
}

/// The items of a list below a key, if there is one.
fn items<'a>(tree: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    tree.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn remove(tree: &mut Value, key: &str) {
    if let Value::Object(map) = tree {
        map.shift_remove(key);
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
    put("sync_type", value(&p.sync_type));
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
    if !p.group_by.is_empty() {
        put("group_by", value(&p.group_by));
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
    if let Some(algorithm) = &p.hash_algo {
        put("hash_algo", value(algorithm));
    }
    if let Some(policy) = &p.schema_drift {
        put("schema_drift", value(policy));
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
    if c.name != c.dest {
        put("name", value(&c.name));
    }
    match &c.expr {
        Some(sql) => put("expr", value(sql)),
        None => put("source", value(&c.source)),
    }
    put("dest", value(&c.dest));
    if c.is_virtual {
        put("virtual", true.into());
    }
    if let Some(sql) = &c.dest_expr {
        put("dest_expr", value(sql));
    }
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
        Connection::WalArchive(archived) => {
            if let Value::Object(keys) = value(archived) {
                tree.extend(keys);
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

/// How a tree is written.
#[derive(Clone, Copy)]
pub(super) enum Style<'a> {
    /// Every value followed by its origin.
    Origins,
    /// Values alone; these variables are named on purpose, and any other `${` is text.
    Plain(&'a [String]),
    /// Values alone, and variables as they stood in the file.
    Written,
}

/// Writes a tree as YAML, a value's origin as the comment after it.
fn emit(tree: &Value, indent: usize, out: &mut String) {
    emit_with(tree, indent, out, Style::Origins);
}

pub(super) fn emit_with(tree: &Value, indent: usize, out: &mut String, style: Style<'_>) {
    let pad = "  ".repeat(indent);
    match part(tree).0 {
        Value::Object(map) => {
            for (key, item) in map {
                out.push_str(&format!("{pad}{}:", scalar(&Value::from(key.as_str()), Style::Origins)));
                emit_item(item, indent + 1, out, style);
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
                        emit_with(item, indent + 1, &mut block, style);
                        out.push(' ');
                        out.push_str(block.trim_start());
                    }
                    _ => emit_item(item, indent + 1, out, style),
                }
            }
        }
        _ => {
            out.push_str(&pad);
            out.push_str(&scalar(tree, style));
            out.push('\n');
        }
    }
}

/// What stands after `key:` or `-`.
fn emit_item(item: &Value, indent: usize, out: &mut String, style: Style<'_>) {
    let (value, origin) = part(item);
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            emit_with(value, indent, out, style);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            emit_with(value, indent, out, style);
        }
        _ => {
            out.push(' ');
            out.push_str(&scalar(item, style));
            match (style, origin) {
                (Style::Origins, Some(Value::String(origin))) => out.push_str(&format!("  # {origin}")),
                (Style::Origins, Some(_)) => out.push_str("  # default"),
                _ => {}
            }
            out.push('\n');
        }
    }
}

fn scalar(item: &Value, style: Style<'_>) -> String {
    let written = item.get(WRITTEN).and_then(Value::as_str);
    let text = match (style, written, part(item).0) {
        (Style::Written, Some(written), _) => written.to_owned(),
        (_, _, Value::Object(_)) => return "{}".into(),
        (_, _, Value::Array(_)) => return "[]".into(),
        (Style::Plain(variables), _, Value::String(text))
            if variables.iter().any(|name| *text == format!("${{{name}}}")) =>
        {
            text.clone()
        }
        (_, _, Value::String(text)) => text.replace("${", "$${"),
        (_, _, other) => return other.to_string(),
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
