//! What a checkpoint depends on: the meaning of a pipeline, as a small value to be stored beside it.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::at::At;
use super::pipeline::{ColumnMapping, Columns, Filter, Pipeline, SyncType};
use super::stage::{FieldSource, Keep, Stage, StageWork};
use super::strategy::{Bound, Deletes, Dimension, StampedBy, Strategy, StrategyKind};
use super::types::SizedType;

impl Pipeline {
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
        let filters: Vec<Value> = self.source.filters.iter().map(filter_semantics).collect();
        let columns = match &self.columns {
            Columns::All => json!("all"),
            Columns::Listed(columns) => Value::Object(
                columns
                    .iter()
                    .map(|c| (c.name.to_string(), column_semantics(c)))
                    .collect(),
            ),
        };
        let strategies: Map<String, Value> = self
            .strategies
            .iter()
            .map(|s| (s.name.to_string(), self.strategy_semantics(s)))
            .collect();
        let mut semantics = json!({
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
            "transform": self.transform.iter().filter_map(stage_semantics).collect::<Vec<_>>(),
            "strategies": strategies,
        });
        if !self.source.tables.is_empty() {
            semantics["source"]["tables"] = self.source.tables.iter().map(meaning).collect();
        }
        if *self.sync_type == SyncType::Aggregate {
            semantics["group_by"] = self.group_by.iter().map(meaning).collect();
        }
        semantics
    }

    /// What a strategy reads, and how it finds out; not when it runs, nor in how many pieces.
    fn strategy_semantics(&self, s: &Strategy) -> Value {
        let mut all = json!({
            "type": *s.kind,
            "column": s.column.as_ref().map(meaning),
            "full_mode": s.full_mode.as_deref(),
        });
        // A key stands here only where it is used, so that a newer version reads the meaning of older ones as its own.
        let mut put = |key: &str, value: Value| all[key] = value;
        if let Some(StampedBy::App) = s.stamped_by.as_deref() {
            put("stamped_by", json!("app"));
        }
        if let Some(deletes) = &s.deletes {
            put(
                "deletes",
                match &**deletes {
                    Deletes::None => json!("none"),
                    Deletes::AntiJoin => json!("anti_join"),
                    Deletes::Tombstone(t) => json!([meaning(&t.column), t.value.as_ref().map(meaning)]),
                },
            );
        }
        if let Some(zone) = &s.time_zone {
            put("time_zone", json!(meaning(zone)));
        }
        if !s.cursor_tables.is_empty() {
            let tables = s
                .cursor_tables
                .iter()
                .map(|t| json!([meaning(&t.table), meaning(&t.column)]));
            put("cursor_tables", tables.collect());
        }
        for (key, name) in [("slot", &s.log.slot), ("publication", &s.log.publication)] {
            if let Some(name) = name {
                put(key, json!(meaning(name)));
            }
        }
        for (key, dimensions) in [
            ("primary_partitions", &s.primary_partitions),
            ("secondary_partitions", &s.secondary_partitions),
            ("delta_partitions", &s.delta_partitions),
        ] {
            if !dimensions.is_empty() {
                put(key, dimensions.iter().map(dimension_semantics).collect());
            }
        }
        if let (StrategyKind::Hash, Some(algorithm)) = (*s.kind, self.hash_algo_of(s)) {
            put("hash_algo", json!(algorithm));
        }
        all
    }

    /// [`Pipeline::semantics`] of one strategy alone: adding another strategy does not disturb its checkpoint.
    pub fn semantics_of(&self, strategy: &str) -> Value {
        let mut semantics = self.semantics();
        if let Some(Value::Object(strategies)) = semantics.get_mut("strategies") {
            strategies.retain(|name, _| name == strategy);
        }
        semantics
    }

    /// The hash of what the rows of the table depend on, as 32 hexadecimal digits: [`Pipeline::semantics`] without the
    /// strategies and the order of work.
    pub fn content_hash(&self) -> String {
        let mut semantics = self.semantics();
        if let Value::Object(all) = &mut semantics {
            all.retain(|name, _| name != "strategies" && name != "partition_column");
        }
        hash_of(&semantics)
    }

    /// The hash of what makes a delta's watermark its own, as 32 hexadecimal digits: the stages that its rows pass, what it
    /// does with rows that are gone, and whose clock stamps the cursor. Not where it begins, nor how its work is cut.
    pub fn delta_hash(&self, s: &Strategy) -> String {
        // A comparison of keys looks at all rows each time.
        let deletes = match s.deletes.as_deref() {
            None | Some(Deletes::AntiJoin) => Value::Null,
            Some(Deletes::None) => json!("none"),
            Some(Deletes::Tombstone(t)) => json!([meaning(&t.column), t.value.as_ref().map(meaning)]),
        };
        let by_app = matches!(s.stamped_by.as_deref(), Some(StampedBy::App));
        let zone = s.time_zone.as_ref().map(meaning);
        hash_of(&json!({"stages": self.stages_of(s), "deletes": deletes, "by_app": by_app, "time_zone": zone}))
    }

    /// Whether the rows of two strategies pass the same stages.
    pub fn pass_alike(&self, one: &Strategy, other: &Strategy) -> bool {
        self.stages_of(one) == self.stages_of(other)
    }

    fn stages_of(&self, s: &Strategy) -> Vec<Value> {
        let stages = self.transform.iter().filter(|stage| stage.applies_to(s));
        let mut stages: Vec<Value> = stages.filter_map(stage_semantics).collect();
        for stage in stages.iter_mut().filter_map(Value::as_object_mut) {
            stage.remove("applicable_on");
        }
        stages
    }
}

fn hash_of(meaning: &Value) -> String {
    let mut canonical = String::new();
    write_canonical(meaning, &mut canonical);
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(canonical.as_bytes()))
}

/// What a dimension covers; the width of its pieces is the plan's affair.
fn dimension_semantics(d: &Dimension) -> Value {
    let text = |value: &Option<At<String>>| value.as_ref().map(meaning);
    let bound = |bound: &Option<At<Bound>>| {
        let bound = bound.as_ref()?;
        Some(meaning(&bound.with(bound.to_string())))
    };
    json!({
        "column": meaning(&d.column), "expr": text(&d.expr), "destination": text(&d.destination), "type": *d.kind,
        "bounded": *d.bounded, "start": bound(&d.start), "end": bound(&d.end),
        "values": d.values.iter().map(meaning).collect::<Vec<_>>(), "time_zone": text(&d.time_zone),
    })
}

/// What a stage makes of rows; none for one that makes nothing of them.
fn stage_semantics(stage: &Stage) -> Option<Value> {
    if !*stage.enabled {
        return None;
    }
    let text = |value: &Option<At<String>>| value.as_ref().map(meaning);
    let sized = |value: &Option<At<SizedType>>| value.as_ref().map(|t| t.to_string());
    let work = match &stage.work {
        StageWork::ValueMap(map) => {
            let mapping: BTreeMap<&String, Option<String>> = map.mapping.iter().map(|(k, to)| (k, text(to))).collect();
            json!({"column": meaning(&map.column), "mapping": mapping})
        }
        StageWork::Compute(columns) => columns
            .iter()
            .map(|c| json!({"name": meaning(&c.name), "expression": meaning(&c.expression), "column": text(&c.column), "data_type": sized(&c.data_type)}))
            .collect(),
        StageWork::Cast(casts) => casts
            .iter()
            .map(|(column, to)| (column.clone(), Value::from(to.to_string())))
            .collect::<Map<_, _>>()
            .into(),
        StageWork::Filter(filters) => filters.iter().map(filter_semantics).collect(),
        StageWork::Dedup(d) if d.by.is_none() && *d.keep == Keep::Last => d.keys.iter().map(meaning).collect(),
        StageWork::Dedup(d) => {
            json!({"keys": d.keys.iter().map(meaning).collect::<Vec<_>>(), "keep": *d.keep, "by": text(&d.by)})
        }
        StageWork::Enrich(e) => {
            let fields = e.fields.iter().map(|f| {
                let from = match &f.source {
                    FieldSource::Source(column) => json!(meaning(column)),
                    FieldSource::Expr(sql) => json!({"expr": meaning(sql)}),
                    FieldSource::Hash(_) => json!({"hash": true}),
                };
                json!({"from": from, "dest": meaning(&f.dest), "data_type": sized(&f.data_type), "transform": text(&f.transform)})
            });
            let as_of = e.as_of.as_ref().map(|a| {
                json!([meaning(&a.column), meaning(&a.valid_from), text(&a.valid_to), *a.operator, *a.include_open_ended])
            });
            json!({
                "datastore": meaning(&e.datastore), "table": meaning(&e.table), "schema": text(&e.schema),
                "filters": e.filters.iter().map(filter_semantics).collect::<Vec<_>>(), "join": *e.join,
                "on": e.on.iter().map(|k| json!([meaning(&k.column), meaning(&k.key)])).collect::<Vec<_>>(),
                "as_of": as_of, "cardinality": *e.cardinality, "fields": fields.collect::<Vec<_>>(),
            })
        }
        StageWork::Batch(_) => return None,
    };
    let mut all = json!({ stage.work.name(): work });
    if !stage.applicable_on.is_empty() {
        all["applicable_on"] = stage.applicable_on.iter().map(meaning).collect();
    }
    Some(all)
}

fn filter_semantics(filter: &At<Filter>) -> Value {
    match &**filter {
        Filter::Sql(sql) => json!(meaning(&filter.with(sql.trim().to_owned()))),
        Filter::Compare(c) => {
            let value = match hidden(&c.value, &c.value.to_string()) {
                Some(hash) => Value::from(hash),
                None => (*c.value).clone(),
            };
            json!({"column": meaning(&c.column), "operator": c.operator, "value": value})
        }
    }
}

fn column_semantics(c: &ColumnMapping) -> Value {
    let mut all = json!({
        "source": c.source.as_ref().map(meaning),
        "data_type": c.data_type.as_ref().map(|t| t.name()),
        "precision": c.precision, "scale": c.scale, "length": c.length,
        "unique": c.roles.unique, "delta": c.roles.delta, "hash_key": c.roles.hash_key,
        "nullable": c.nullable, "as_text": c.as_text, "insert": c.insert, "hashed": c.hashed,
    });
    if let Some(sql) = &c.expr {
        all["expr"] = json!(meaning(sql));
    }
    if let Some(sql) = &c.dest_expr {
        all["dest_expr"] = json!(meaning(sql));
    }
    if c.is_virtual {
        all["virtual"] = json!(true);
    }
    if c.name != c.dest {
        all["dest"] = json!(meaning(&c.dest));
    }
    all
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
