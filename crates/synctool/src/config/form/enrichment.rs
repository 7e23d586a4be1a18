//! Stages in the first generation's form: `enrichment`, `pipeline_config`, `data_fetch`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::decode::{Anything, Later};
use super::super::error::ConfigError;
use super::super::pipeline::Source;
use super::super::secret::SecretUrl;
use super::super::stage::{
    Cache, CacheStore, Cardinality, Computed, Enrich, EnrichJoin, EnrichKey, Stage, StageWork, ValueMap,
};
use super::super::types::SizedType;
use super::super::units::Span;
use super::stages::{FieldEntry, fields};

/// Tables and computed columns that are added to rows.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct EnrichmentFile {
    /// Default: true.
    pub(in super::super) enabled: Option<At<bool>>,
    /// Where rows of dimensions are kept: memory or redis.
    pub(in super::super) cache_backend: Option<At<CacheStore>>,
    /// How they are kept.
    pub(in super::super) cache_config: Option<CacheConfigFile>,
    /// Tables whose columns are added.
    #[serde(default)]
    pub(in super::super) dimensions: Vec<At<DimensionTable>>,
    /// Columns that are computed.
    #[serde(default)]
    pub(in super::super) transformations: Vec<At<TransformationFile>>,
}

/// How rows of dimensions are kept.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct CacheConfigFile {
    /// Rows at most.
    maxsize: Option<At<u64>>,
    /// Another name of `maxsize`.
    max_size: Option<At<u64>>,
    /// Seconds that a row is good.
    ttl: Option<At<Span>>,
    /// The address of a Redis.
    url: Option<At<SecretUrl>>,
    /// Another name of `url`.
    redis_url: Option<At<SecretUrl>>,
    /// What keys in a Redis begin with.
    key_prefix: Option<At<String>>,
}

/// A table whose columns are added.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct DimensionTable {
    /// Its name.
    name: Option<At<String>>,
    /// The column that both have in common.
    join_key: At<String>,
    /// Where it is.
    source: DimensionSource,
    /// The columns that are added.
    fields: At<Vec<FieldEntry>>,
}

/// Where a dimension is.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DimensionSource {
    /// The datastore's type; must be what the datastore says.
    #[serde(rename = "type")]
    type_name: Option<At<String>>,
    /// Datastore and table.
    config: DimensionSourceConfig,
}

/// Datastore and table of a dimension.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DimensionSourceConfig {
    /// Name of a datastore. Default: that of the source.
    datastore_name: Option<At<String>>,
    /// The table.
    table: At<String>,
    /// Its schema.
    schema: Option<At<String>>,
}

/// A column that is computed, or one of the other transformations of the original.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct TransformationFile {
    /// transform (the default), column_cast or value_map.
    #[serde(rename = "type")]
    kind: Option<At<TransformationKind>>,
    /// The columns it reads.
    #[serde(default)]
    columns: Vec<At<String>>,
    /// The one column it reads; the expression is then over its value. For value_map the column that is mapped.
    column: Option<At<String>>,
    /// The expression.
    transform: Option<At<String>>,
    /// The column that gets the value.
    dest: Option<At<String>>,
    /// Another name of `dest`.
    name: Option<At<String>>,
    /// Another name of `dest`.
    expr: Option<At<String>>,
    /// The type of the result.
    data_type: Option<At<SizedType>>,
    /// For column_cast: column to type.
    casts: Option<BTreeMap<String, At<SizedType>>>,
    /// For value_map: value to new value.
    mapping: Option<BTreeMap<String, Option<At<String>>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum TransformationKind {
    /// An expression.
    Transform,
    /// Other types.
    ColumnCast,
    /// Other values.
    ValueMap,
}

/// How rows are read.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
pub(in super::super) struct DataFetchFile {
    /// Must not be false: a run without reading would do nothing.
    pub(in super::super) enabled: Option<At<bool>>,
    /// Rows per page.
    pub(in super::super) page_size: Option<At<u32>>,
    use_pagination: Option<Later<bool>>,
}

/// How rows are processed, in the first generation's form.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
pub(in super::super) struct PipelineConfigFile {
    /// Rows per batch.
    pub(super) batch_size: Option<At<u32>>,
    pub(super) max_concurrent_batches: Option<Later<Anything>>,
    /// The stages.
    pub(super) stages: Option<PipelineStagesFile>,
}

/// The stages of the first generation, by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct PipelineStagesFile {
    /// Must not be disabled.
    pub(super) change_detection: Option<FixedStageFile>,
    /// How rows are read.
    pub(super) data_fetch: Option<DataFetchFile>,
    /// What is made of them.
    pub(super) transform: Option<TransformStageFile>,
    /// Whether dimensions are added.
    pub(super) enrich: Option<FixedStageFile>,
    /// How many rows make a batch.
    pub(super) batcher: Option<BatcherFile>,
    /// Must not be disabled.
    pub(super) populate: Option<FixedStageFile>,
}

/// A stage that is only there or not.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct FixedStageFile {
    /// Default: true.
    pub(super) enabled: Option<At<bool>>,
}

/// What is made of rows.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct TransformStageFile {
    /// Default: true.
    pub(super) enabled: Option<At<bool>>,
    /// In their order.
    #[serde(default)]
    pub(super) transformations: Vec<At<TransformationFile>>,
}

/// How many rows make a batch.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct BatcherFile {
    /// Default: true.
    pub(super) enabled: Option<At<bool>>,
    /// Rows.
    pub(super) target_batch_size: Option<At<u32>>,
}

impl PipelineConfigFile {
    /// The page size it says, if it does.
    pub(super) fn page_size(&self) -> Option<At<u32>> {
        self.stages.as_ref()?.data_fetch.as_ref()?.page_size.clone()
    }
}

pub(in super::super) fn enrichment_stages(
    file: EnrichmentFile,
    source: &Source,
    errors: &mut Vec<ConfigError>,
) -> Vec<Stage> {
    let enabled = file.enabled.unwrap_or_else(|| true.into());
    let config = file.cache_config.unwrap_or_default();
    let cache = Cache {
        store: file.cache_backend.unwrap_or_default(),
        url: config.url.or(config.redis_url),
        key_prefix: config.key_prefix,
        ttl: config.ttl,
        max_size: config.maxsize.or(config.max_size),
    };
    let mut stages: Vec<Stage> = Vec::new();
    for table in file.dimensions {
        let table = table.into_inner();
        let config = table.source.config;
        let work = StageWork::Enrich(Box::new(Enrich {
            datastore: config.datastore_name.unwrap_or_else(|| source.datastore.clone()),
            table: config.table,
            schema: config.schema,
            filters: Vec::new(),
            join: EnrichJoin::Left.into(),
            on: vec![EnrichKey {
                column: table.join_key.clone(),
                key: table.join_key,
            }],
            as_of: None,
            fields: fields(table.fields, errors),
            cardinality: Cardinality::OneToOne.into(),
            cache: cache.clone(),
            type_name: table.source.type_name,
        }));
        stages.push(Stage {
            name: table.name.unwrap_or_else(|| work.name().into()),
            ..Stage::new(work)
        });
    }
    stages.extend(
        transformations(file.transformations, errors)
            .into_iter()
            .map(Stage::new),
    );
    for stage in &mut stages {
        stage.enabled = enabled.clone();
    }
    stages
}

/// Transformations of the original as the work of stages; neighbours that compute are one stage.
pub(in super::super) fn transformations(
    files: Vec<At<TransformationFile>>,
    errors: &mut Vec<ConfigError>,
) -> Vec<StageWork> {
    let mut works: Vec<StageWork> = Vec::new();
    for file in files {
        let place = file.with(());
        let file = file.into_inner();
        let kind = file
            .kind
            .as_deref()
            .copied()
            .unwrap_or(match (&file.casts, &file.mapping) {
                (Some(_), _) => TransformationKind::ColumnCast,
                (_, Some(_)) => TransformationKind::ValueMap,
                _ => TransformationKind::Transform,
            });
        match (kind, file.casts, file.mapping, file.column, file.transform) {
            (TransformationKind::ColumnCast, Some(casts), ..) => works.push(StageWork::Cast(casts)),
            (TransformationKind::ColumnCast, None, ..) => {
                errors.push(place.error("a transformation of type column_cast needs casts"));
            }
            (TransformationKind::ValueMap, _, Some(mapping), Some(column), _) => {
                works.push(StageWork::ValueMap(ValueMap { column, mapping }));
            }
            (TransformationKind::ValueMap, ..) => {
                errors.push(place.error("a transformation of type value_map needs column and mapping"));
            }
            (TransformationKind::Transform, _, _, column, Some(expression)) => {
                let replaced = || {
                    column
                        .clone()
                        .or_else(|| <[_; 1]>::try_from(file.columns.clone()).ok().map(|[only]| only))
                };
                let Some(name) = file.dest.or(file.name).or(file.expr).or_else(replaced) else {
                    errors.push(place.error("a transformation needs dest, the column that gets the value"));
                    continue;
                };
                let computed = Computed {
                    name,
                    expression,
                    column,
                    columns: file.columns,
                    data_type: file.data_type,
                };
                match works.last_mut() {
                    Some(StageWork::Compute(before)) => before.push(computed),
                    _ => works.push(StageWork::Compute(vec![computed])),
                }
            }
            (TransformationKind::Transform, ..) => {
                errors.push(place.error("a transformation needs transform, its expression"));
            }
        }
    }
    works
}
