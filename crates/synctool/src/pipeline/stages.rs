//! From the stages of a pipeline to the chain that rows pass.

use super::request;
use crate::config::{
    self, At, CacheStore, Cardinality, DataType, EnrichJoin, FieldSource, Filter, Loaded, Operator, Stage,
};
use crate::config::{StageWork, Strategy};
use crate::open;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::{Error, Result};
use synctool_core::schema::ColumnType;
use synctool_core::source::Source;
use synctool_transform::{
    AsOf, CacheSpec, CastTo, Chain, Computed, DedupSpec, EnrichSpec, Field, JoinOn, Keep, NamedStage, RedisSpec,
    Several, Sources, StageSpec,
};

/// The chain of a pipeline for one strategy. Without a run (a plan, a comparison) no cache is shared with others: what
/// is compared with a dimension is compared with the dimension.
pub(super) async fn chain(loaded: &Loaded, strategy: &Strategy, run: Option<&str>) -> Result<Chain> {
    let mut stages = Vec::new();
    for stage in loaded.pipeline.transform.iter().filter(|s| s.applies_to(strategy)) {
        for spec in specs(loaded, stage, run)? {
            stages.push(NamedStage {
                name: Some(stage.name.to_string()),
                spec,
            });
        }
    }
    let key: Vec<String> = loaded.pipeline.key.iter().map(|k| k.to_string()).collect();
    Chain::build(stages, &key, &Dimensions(loaded)).await
}

/// The datastores that dimensions stand in.
struct Dimensions<'a>(&'a Loaded);

#[async_trait]
impl Sources for Dimensions<'_> {
    async fn source(&self, datastore: &str) -> Result<Arc<dyn Source>> {
        open::source(self.0.datastores.get(&datastore.into())?, 1).await
    }
}

fn specs(loaded: &Loaded, stage: &Stage, run: Option<&str>) -> Result<Vec<StageSpec>> {
    Ok(match &stage.work {
        StageWork::Compute(columns) => vec![StageSpec::Compute {
            columns: columns.iter().map(computed).collect::<Result<_>>()?,
        }],
        StageWork::Cast(casts) => vec![StageSpec::Cast {
            casts: casts
                .iter()
                .map(|(column, to)| {
                    Ok(CastTo {
                        column: column.clone(),
                        to: sized(to)?,
                    })
                })
                .collect::<Result<_>>()?,
        }],
        StageWork::ValueMap(map) => vec![StageSpec::ValueMap {
            column: map.column.to_string(),
            mapping: map.mapping.clone(),
        }],
        StageWork::Filter(filters) => filters
            .iter()
            .map(|f| {
                Ok(StageSpec::Filter {
                    condition: condition(f)?,
                })
            })
            .collect::<Result<_>>()?,
        StageWork::Dedup(dedup) => vec![StageSpec::Dedup(DedupSpec {
            order_by: dedup.by.as_ref().map(|by| by.to_string()),
            keep: match *dedup.keep {
                config::Keep::Last => Keep::Last,
                config::Keep::First => Keep::First,
            },
            ..DedupSpec::last(dedup.keys.iter().map(|k| k.to_string()))
        })],
        StageWork::Enrich(enrich) => enriched(loaded, &stage.name, enrich, run)?,
        StageWork::Batch(rows) => vec![StageSpec::Batch {
            target_rows: **rows as usize,
        }],
    })
}

fn computed(column: &config::Computed) -> Result<Computed> {
    let expression = column.expression.trim();
    let expression = match &column.column {
        // The parameter is the value of one column.
        Some(over) => over_column(expression, over),
        None if expression.starts_with("lambda") || !looks_like_python(expression) => expression.to_owned(),
        None => format!("lambda x: {expression}"),
    };
    check(&expression, &column.expression)?;
    Ok(Computed {
        name: column.name.to_string(),
        expression,
        to: column.data_type.as_ref().map(sized).transpose()?,
    })
}

/// What stands after a lambda's colon, written without the rest.
fn looks_like_python(expression: &str) -> bool {
    expression.contains("x[") || expression.contains("x.get(")
}

/// `lambda x: "abc" + x` over a column becomes `lambda x: "abc" + x['column']`.
fn over_column(expression: &str, column: &str) -> String {
    let (parameter, body) = match expression.strip_prefix("lambda").and_then(|rest| rest.split_once(':')) {
        Some((parameter, body)) => (parameter.trim(), body.trim()),
        None => ("x", expression),
    };
    let value = format!("x[{}]", quoted(column));
    let mut out = String::from("lambda x: ");
    let mut quote: Option<char> = None;
    let mut word = String::new();
    let finish = |word: &mut String, out: &mut String| {
        match word == parameter {
            true => out.push_str(&value),
            false => out.push_str(word),
        }
        word.clear();
    };
    for c in body.chars() {
        match quote {
            Some(q) => {
                out.push(c);
                if c == q {
                    quote = None;
                }
            }
            None if c.is_alphanumeric() || c == '_' => word.push(c),
            None => {
                finish(&mut word, &mut out);
                if matches!(c, '\'' | '"') {
                    quote = Some(c);
                }
                out.push(c);
            }
        }
    }
    finish(&mut word, &mut out);
    out
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// An expression that cannot be understood is a mistake of the file, told at its place.
fn check(expression: &str, written: &At<String>) -> Result<()> {
    synctool_transform::check_syntax(expression).map_err(|e| {
        let place = match (e.line, e.column) {
            (1, column) => format!("at its character {column}"),
            (line, column) => format!("at its line {line}, character {column}"),
        };
        let error = written.error(format!("the expression is not understood {place}: {}", e.message));
        match &e.hint {
            Some(hint) => error.with_help(hint.clone()).into(),
            None => Error::from(error),
        }
    })
}

fn condition(filter: &At<Filter>) -> Result<String> {
    match &**filter {
        Filter::Sql(sql) => {
            let sql = match sql.trim_start().starts_with("lambda") || !looks_like_python(sql) {
                true => sql.clone(),
                false => format!("lambda x: {sql}"),
            };
            check(&sql, &filter.with(sql.clone()))?;
            Ok(sql)
        }
        Filter::Compare(c) => {
            let column = format!("\"{}\"", c.column.replace('"', "\"\""));
            let literal = |v: &serde_json::Value| match v {
                serde_json::Value::String(text) => format!("'{}'", text.replace('\'', "''")),
                other => other.to_string(),
            };
            let sql = match (c.operator, &*c.value) {
                (Operator::Equal, serde_json::Value::Null) => return Ok(format!("{column} IS NULL")),
                (Operator::NotEqual, serde_json::Value::Null) => return Ok(format!("{column} IS NOT NULL")),
                (Operator::In, serde_json::Value::Array(values)) => {
                    let values: Vec<String> = values.iter().map(literal).collect();
                    return Ok(format!("{column} IN ({})", values.join(", ")));
                }
                (Operator::Equal | Operator::In, _) => "=",
                (Operator::NotEqual, _) => "<>",
                (Operator::Less, _) => "<",
                (Operator::LessOrEqual, _) => "<=",
                (Operator::Greater, _) => ">",
                (Operator::GreaterOrEqual, _) => ">=",
            };
            Ok(format!("{column} {sql} {}", literal(&c.value)))
        }
    }
}

fn enriched(loaded: &Loaded, name: &str, enrich: &config::Enrich, run: Option<&str>) -> Result<Vec<StageSpec>> {
    let datastore = loaded.datastores.get(&enrich.datastore)?;
    let table = request::table_id(enrich.table_ref(datastore)?, datastore);
    let (mut fields, mut hash) = (Vec::new(), None);
    let mut after = Vec::new();
    for field in &enrich.fields {
        match &field.source {
            FieldSource::Source(source) => fields.push(Field {
                source: source.to_string(),
                dest: field.dest.to_string(),
            }),
            FieldSource::Expr(expr) => {
                return Err(expr
                    .error("expressions of the table's own SQL are not in an enrichment yet")
                    .with_help("enrich from a view that computes the field")
                    .into());
            }
            FieldSource::Hash(_) => match hash.replace(field.dest.to_string()) {
                None => {}
                Some(_) => return Err(field.dest.error("an enrichment has one hash of its fields").into()),
            },
        }
        if let Some(transform) = &field.transform {
            let expression = over_column(transform.trim(), &field.dest);
            check(&expression, transform)?;
            after.push(Computed {
                name: field.dest.to_string(),
                expression,
                to: field.data_type.as_ref().map(sized).transpose()?,
            });
        } else if let Some(to) = &field.data_type {
            after.push(Computed {
                name: field.dest.to_string(),
                expression: format!("lambda x: x[{}]", quoted(&field.dest)),
                to: Some(sized(to)?),
            });
        }
    }
    let spec = EnrichSpec {
        dimension: name.to_owned(),
        datastore: enrich.datastore.to_string(),
        table,
        on: enrich
            .on
            .iter()
            .map(|k| JoinOn {
                column: k.column.to_string(),
                key: k.key.to_string(),
            })
            .collect(),
        fields,
        hash,
        filters: request::dimension_filters(&enrich.filters),
        join: match *enrich.join {
            EnrichJoin::Inner => synctool_transform::EnrichJoin::Inner,
            EnrichJoin::Left | EnrichJoin::AsOf => synctool_transform::EnrichJoin::Left,
        },
        several: match *enrich.cardinality {
            Cardinality::OneToOne => Several::Refuse,
            Cardinality::OneToMany => Several::Expand,
        },
        as_of: enrich.as_of.as_ref().map(|a| AsOf {
            column: a.column.to_string(),
            valid_from: a.valid_from.to_string(),
            valid_to: a.valid_to.as_deref().cloned(),
            after: *a.operator == Operator::Less,
            to_inclusive: false,
            include_open_ended: *a.include_open_ended,
        }),
        cache: cache(loaded, enrich, run),
    };
    let mut specs = vec![StageSpec::Enrich(spec)];
    if !after.is_empty() {
        specs.push(StageSpec::Compute { columns: after });
    }
    Ok(specs)
}

fn cache(loaded: &Loaded, enrich: &config::Enrich, run: Option<&str>) -> CacheSpec {
    let cache = &enrich.cache;
    let standard = CacheSpec::default();
    let max_size = cache.max_size.as_deref().map_or(standard.max_size, |n| *n as usize);
    let redis = match (*cache.store, run) {
        (CacheStore::Redis, Some(run)) => {
            let url = match &cache.url {
                Some(url) => url.reveal().to_owned(),
                None => loaded.global.redis.url.reveal().to_owned(),
            };
            let mut redis = RedisSpec::new(url);
            if let Some(prefix) = &cache.key_prefix {
                redis.prefix = prefix.to_string();
            }
            redis.run = cache.ttl.is_none().then(|| run.to_owned());
            Some(redis)
        }
        _ => None,
    };
    CacheSpec {
        max_size: match *cache.store {
            CacheStore::None => 0,
            _ => max_size,
        },
        ttl: match &cache.ttl {
            Some(ttl) => ttl.0,
            // As long as any run lasts.
            None => Duration::from_secs(10 * 365 * 86_400),
        },
        redis,
    }
}

/// A type as a file writes it, as the engine knows it.
fn sized(written: &At<config::SizedType>) -> Result<ColumnType> {
    use ColumnType as T;
    let [first, second] = written.sizes;
    let text = |max: Option<u32>| T::Text { max };
    Ok(match written.data_type {
        DataType::Integer => T::Int32,
        DataType::SmallInt => T::Int16,
        DataType::BigInt => T::Int64,
        DataType::Float => T::Float32,
        DataType::Double => T::Float64,
        DataType::Decimal => match first {
            Some(precision) => T::Decimal {
                precision: u16::try_from(precision).unwrap_or(u16::MAX),
                scale: i16::try_from(second.unwrap_or(0)).unwrap_or(i16::MAX),
            },
            None => T::Numeric,
        },
        DataType::Varchar => text(first),
        DataType::Char => T::Char {
            length: first.unwrap_or(1),
        },
        DataType::Text | DataType::UuidText | DataType::UuidTextDash => text(None),
        DataType::Date => T::Date,
        DataType::Time => T::Time,
        DataType::Timestamp => T::Timestamp,
        DataType::TimestampTz => T::TimestampTz,
        DataType::Boolean => T::Bool,
        DataType::Binary => T::Bytes,
        DataType::Json => T::Json,
        DataType::Uuid => T::Uuid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_one_columns_value() {
        assert_eq!(over_column("lambda x: \"x\" + x", "a b"), "lambda x: \"x\" + x['a b']");
        assert_eq!(
            over_column("lambda v: str(v).upper()", "n"),
            "lambda x: str(x['n']).upper()"
        );
        assert_eq!(over_column("max(x, 1)", "n"), "lambda x: max(x['n'], 1)");
    }
}
