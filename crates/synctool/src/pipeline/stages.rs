//! From the stages of a pipeline to the chain that rows pass.

use super::misspelt;
use super::request::{self, Names};
use crate::config::{
    self, At, CacheStore, Cardinality, ColumnMapping, DataType, Datastore, EnrichJoin, FieldSource, Loaded, Operator,
    SizedType, Stage, expression,
};
use crate::config::{StageWork, Strategy};
use crate::open;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::Result;
use synctool_core::plan::short_hash;
use synctool_core::query::Term;
use synctool_core::schema::ColumnType;
use synctool_core::source::Source;
use synctool_transform::{
    AsOf, CacheSpec, CastTo, Chain, Computed, DedupSpec, EnrichSpec, Field, JoinOn, Keep, NamedStage, RedisSpec,
    Several, Sources, StageSpec,
};

/// The chain of a pipeline for one strategy. Without a run (a plan, a comparison) no cache is shared with others: what
/// is compared with a dimension is compared with the dimension.
pub(super) async fn chain(
    loaded: &Loaded,
    strategy: &Strategy,
    source: &dyn Source,
    run: Option<&str>,
) -> Result<Chain> {
    let mut stages = Vec::new();
    let named = |name: &str, spec| NamedStage {
        name: Some(name.to_owned()),
        spec,
    };
    for stage in loaded.pipeline.transform.iter().filter(|s| s.applies_to(strategy)) {
        stages.extend(
            specs(loaded, stage, run)?
                .into_iter()
                .map(|spec| named(&stage.name, spec)),
        );
    }
    let texts = uuid_texts(loaded, source).await?;
    stages.extend(casts(texts).into_iter().map(|spec| named("uuids", spec)));
    let key: Vec<String> = loaded.pipeline.key.iter().map(|k| k.to_string()).collect();
    let built = Chain::build(stages, &key, &Dimensions(loaded)).await;
    built.map_err(|e| misspelt::placed(e, loaded, strategy))
}

/// The columns that are written as texts of uuids, as the last stage makes them. A uuid of the source is written with
/// dashes as it is read.
async fn uuid_texts(loaded: &Loaded, source: &dyn Source) -> Result<Vec<(String, At<SizedType>)>> {
    let written = |c: &&ColumnMapping| c.is_written() && (c.is_read() || !c.roles.hash_key);
    let uuids: Vec<(&ColumnMapping, At<SizedType>)> = loaded
        .pipeline
        .listed()
        .iter()
        .filter(written)
        .filter_map(|c| Some((c, uuid_text(c.data_type.as_ref()?)?)))
        .collect();
    if uuids.is_empty() {
        return Ok(Vec::new());
    }
    let (read, _) = request::tables(loaded)?;
    let names = Names::of(loaded, &read)?;
    let at_source = source.describe(&read).await?;
    let is_uuid = |c: &ColumnMapping| match c.source.as_ref().map(|s| names.term(s)) {
        Some(Term::Column { relation: None, name }) => {
            at_source.column(&name).is_some_and(|c| c.ty == ColumnType::Uuid)
        }
        _ => false,
    };
    let as_read = |c: &ColumnMapping, to: &SizedType| to.data_type == DataType::UuidTextDash && is_uuid(c);
    let made = uuids.into_iter().filter(|(c, to)| !as_read(c, to));
    Ok(made.map(|(c, to)| (c.dest.to_string(), to)).collect())
}

/// The type of a column that is the text of a uuid.
fn uuid_text(said: &At<DataType>) -> Option<At<SizedType>> {
    is_uuid_text(**said).then(|| {
        said.with(SizedType {
            data_type: **said,
            sizes: [None, None],
        })
    })
}

fn is_uuid_text(ty: DataType) -> bool {
    matches!(ty, DataType::UuidText | DataType::UuidTextDash)
}

/// Stages that turn columns into types. The text of a uuid is made of a uuid, so that what is none is rejected.
fn casts(wanted: impl IntoIterator<Item = (String, At<SizedType>)>) -> Vec<StageSpec> {
    let (mut first, mut then) = (Vec::new(), Vec::new());
    for (column, to) in wanted {
        let cast = |to| CastTo {
            column: column.clone(),
            to,
        };
        first.push(cast(made_as(&to)));
        if is_uuid_text(to.data_type) {
            then.push(cast(sized(&to)));
        }
    }
    let stages = [first, then].into_iter().filter(|casts| !casts.is_empty());
    stages.map(|casts| StageSpec::Cast { casts }).collect()
}

/// Stages that compute columns, one after the other.
fn computes(columns: impl IntoIterator<Item = (String, String, Option<At<SizedType>>)>) -> Vec<StageSpec> {
    let (mut stages, mut together) = (Vec::new(), Vec::new());
    for (name, expression, to) in columns {
        together.push(Computed {
            name: name.clone(),
            expression,
            to: to.as_ref().map(made_as),
        });
        if let Some(to) = to.filter(|to| is_uuid_text(to.data_type)) {
            stages.push(StageSpec::Compute {
                columns: std::mem::take(&mut together),
            });
            let casts = vec![CastTo {
                column: name,
                to: sized(&to),
            }];
            stages.push(StageSpec::Cast { casts });
        }
    }
    if !together.is_empty() {
        stages.push(StageSpec::Compute { columns: together });
    }
    stages
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
        StageWork::Compute(columns) => {
            let one = |c: &config::Computed| -> Result<_> {
                Ok((c.name.to_string(), expression::computed(c)?, c.data_type.clone()))
            };
            computes(columns.iter().map(one).collect::<Result<Vec<_>>>()?)
        }
        StageWork::Cast(wanted) => casts(wanted.iter().map(|(column, to)| (column.clone(), to.clone()))),
        StageWork::ValueMap(map) => vec![value_map(loaded, map)],
        StageWork::Filter(filters) => filters
            .iter()
            .map(|f| {
                Ok(StageSpec::Filter {
                    condition: expression::condition(f)?,
                })
            })
            .collect::<Result<_>>()?,
        StageWork::Dedup(dedup) => vec![StageSpec::Dedup(DedupSpec {
            order_by: dedup.by.as_ref().map(|by| by.to_string()),
            keep: match *dedup.keep {
                config::Keep::Last => Keep::Last,
                config::Keep::First => Keep::First,
            },
            max_bytes: loaded.global.memory.0 as usize,
            ..DedupSpec::last(dedup.keys.iter().map(|k| k.to_string()))
        })],
        StageWork::Enrich(enrich) => enriched(loaded, &stage.name, enrich, run)?,
        StageWork::Batch(rows) => vec![StageSpec::Batch {
            target_rows: **rows as usize,
        }],
    })
}

fn value_map(loaded: &Loaded, map: &config::ValueMap) -> StageSpec {
    let written = map.mapping.iter().filter_map(|(value, to)| Some((value, to.as_ref()?)));
    let places = written.filter_map(|(value, to)| Some((value.clone(), to.origin()?.to_string())));
    let said = loaded.pipeline.column(&map.column);
    StageSpec::ValueMap {
        column: map.column.to_string(),
        places: places.collect(),
        mapping: map
            .mapping
            .iter()
            .map(|(value, to)| (value.clone(), to.as_deref().cloned()))
            .collect(),
        fixed: said.is_some_and(|c| c.data_type.is_some() && c.length.is_some()),
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
            FieldSource::Expr(_) => expression::not_in_sql(field)?,
            FieldSource::Hash(_) => match hash.replace(field.dest.to_string()) {
                None => {}
                Some(_) => return Err(field.dest.error("an enrichment has one hash of its fields").into()),
            },
        }
        let itself = || format!("lambda x: x[{}]", expression::quoted(&field.dest));
        let turned = expression::transform(field).transpose()?;
        if let Some(expression) = turned.or_else(|| field.data_type.is_some().then(itself)) {
            after.push((field.dest.to_string(), expression, field.data_type.clone()));
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
        cache: cache(loaded, enrich, datastore, run),
    };
    let mut specs = vec![StageSpec::Enrich(spec)];
    specs.extend(computes(after));
    Ok(specs)
}

fn cache(loaded: &Loaded, enrich: &config::Enrich, datastore: &Datastore, run: Option<&str>) -> CacheSpec {
    let cache = &enrich.cache;
    let standard = CacheSpec::default();
    let max_size = cache.max_size.as_deref().map_or(standard.max_size, |n| *n as usize);
    let redis = match (*cache.store, run) {
        (CacheStore::Redis, Some(run)) => {
            let url = match &cache.url {
                Some(url) => url.reveal().to_owned(),
                None => loaded.global.redis.url_of_database(),
            };
            let mut redis = RedisSpec::new(url);
            if let Some(prefix) = &cache.key_prefix {
                redis.prefix = prefix.to_string();
            }
            // Installations that share a Redis may call other databases by the same name.
            redis.prefix = format!("{}:{}", redis.prefix, short_hash(&datastore.display_uri()));
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

/// The type that a value has to be of first.
fn made_as(written: &At<SizedType>) -> ColumnType {
    match is_uuid_text(written.data_type) {
        true => ColumnType::Uuid,
        false => sized(written),
    }
}

/// A type as a file writes it, as the engine knows it.
fn sized(written: &SizedType) -> ColumnType {
    use ColumnType as T;
    let [first, second] = written.sizes;
    let text = |max: Option<u32>| T::Text { max };
    match written.data_type {
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
        DataType::Text => text(None),
        DataType::Date => T::Date,
        DataType::Time => T::Time,
        DataType::Timestamp => T::Timestamp,
        DataType::TimestampTz => T::TimestampTz,
        DataType::Boolean => T::Bool,
        DataType::Binary => T::Bytes,
        DataType::Json => T::Json,
        DataType::Uuid => T::Uuid,
        DataType::UuidText => T::Char { length: 32 },
        DataType::UuidTextDash => T::Char { length: 36 },
    }
}
