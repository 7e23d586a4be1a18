//! The second generation: `backends`, `stages`, `pipeline_columns`.
//!
//! A column stands in several places by one name, and the nearer place wins: the stage's, the backend's, the
//! pipeline's. What a backend calls `expr` is the column (or the SQL) there; `name` is what the pipeline calls it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::datastores::DatastoreEntry;
use super::super::decode::{Anything, Later};
use super::super::error::{ConfigError, suggestion};
use super::super::form::{
    ApplicableOn, AsOfFile, CacheConfigFile, CacheEntry, CacheFile, ColumnEntry, ColumnFile, ColumnsFile,
    DestinationFile, DimensionTable, EnrichFile, EnrichOn, EnrichmentFile, FieldEntry, FieldFile, PipelineFile,
    SourceFile, SourceName, StageFile, StrategyFile, TransformationFile, WriteFile, enrichment_stages, must_stay,
    transformations,
};
use super::super::pipeline::{Direction, Filter, Join, Operator, SchemaDrift, Source, SyncType};
use super::super::secret::SecretUrl;
use super::super::stage::{CacheStore, Cardinality, EnrichJoin, EnrichKey, StageWork};
use super::super::strategy::HashAlgorithm;
use super::super::types::SizedType;
use super::super::units::Span;

/// The form of the original's later guides.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline, second generation", deny_unknown_fields)]
pub(in super::super) struct G2File {
    /// Version of the configuration's form; may be left out.
    #[serde(rename = "apiVersion")]
    #[allow(dead_code, reason = "there is one version")]
    api_version: Option<String>,
    /// The pipeline's id. Default: the file's name without its ending.
    name: Option<At<String>>,
    /// What it is for.
    description: Option<At<String>>,
    /// Whether a scheduler may run it. Default: true.
    enabled: Option<At<bool>>,
    /// Datastores of this pipeline alone, as in a datastores file.
    datastores: Option<BTreeMap<String, At<DatastoreEntry>>>,
    /// What the unit of the sync is. Default: row-level; aggregate where data is fetched by group_by.
    sync_type: Option<At<SyncType>>,
    /// The algorithm of hashes.
    hash_algo: Option<At<HashAlgorithm>>,
    /// Partitions worked on at once. Default: the global `workers`.
    max_concurrent_partitions: Option<At<u32>>,
    /// The ways to bring the destination up to date. Default: one named full.
    strategies: Option<Vec<At<StrategyFile>>>,
    /// What holds for columns of these names wherever they stand.
    pipeline_columns: Option<Vec<At<G2Column>>>,
    /// Another name of `pipeline_columns`.
    columns: Option<Vec<At<G2Column>>>,
    /// The tables that are read and written.
    backends: Vec<At<Backend>>,
    /// What happens, in order. Default: data is fetched and populated.
    stages: Option<Vec<At<StageEntry>>>,
    /// What the destination may be asked to do.
    write: Option<WriteFile>,
    /// What happens when the source's columns change. Default: evolve where all columns go along, else freeze.
    schema_drift: Option<At<SchemaDrift>>,
}

/// A column in one of its places.
#[derive(Debug, Default, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
struct G2Column {
    /// What the pipeline calls it.
    name: At<String>,
    /// The column, or the SQL, that it is here. Default: its name.
    expr: Option<At<String>>,
    /// Its type.
    data_type: Option<At<SizedType>>,
    /// Another name of `data_type`.
    #[serde(rename = "type")]
    type_: Option<At<SizedType>>,
    /// Whether the column counts in comparisons.
    hash_column: Option<bool>,
    /// Part of what identifies a row.
    unique_column: Option<bool>,
    /// Rows are ordered by it.
    order_column: Option<bool>,
    /// Up or down, for the order column.
    direction: Option<Direction>,
    /// Runs are cut into partitions along it.
    partition_column: Option<bool>,
    /// It says when a row changed.
    delta_column: Option<bool>,
    /// It stores the hash of a row.
    hash_key: Option<bool>,
    /// true = no column of the table.
    #[serde(rename = "virtual")]
    is_virtual: Option<bool>,
    /// Characters of a varchar or char.
    max_length: Option<At<u32>>,
    /// Another name of `max_length`.
    length: Option<At<u32>>,
    /// Digits of a decimal.
    precision: Option<At<u32>>,
    /// Digits after the point.
    scale: Option<At<u32>>,
    /// Whether NULL is allowed at the destination. Default: as at the source.
    nullable: Option<bool>,
    data_column: Option<Later<bool>>,
}

impl G2Column {
    /// This column, and where it says nothing, what a farther place says.
    fn over(&self, farther: &Self) -> Self {
        macro_rules! nearer {
            ($($key:ident),*) => {
                Self { name: self.name.clone(), data_column: None, $($key: self.$key.clone().or_else(|| farther.$key.clone())),* }
            };
        }
        nearer!(
            expr,
            data_type,
            type_,
            hash_column,
            unique_column,
            order_column,
            direction,
            partition_column,
            delta_column,
            hash_key,
            is_virtual,
            max_length,
            length,
            precision,
            scale,
            nullable
        )
    }

    fn expr(&self) -> &At<String> {
        self.expr.as_ref().unwrap_or(&self.name)
    }

    fn is_virtual(&self) -> bool {
        self.is_virtual == Some(true)
    }

    fn is_hash(&self) -> bool {
        self.hash_key == Some(true)
    }
}

/// A table that is read or written.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Backend {
    /// What stages call it.
    name: At<String>,
    /// The datastore's type; must be what the datastore says.
    #[serde(rename = "type")]
    type_name: Option<At<String>>,
    /// Name of a datastore.
    datastore_name: At<String>,
    /// The table.
    table: At<String>,
    /// Its schema.
    schema: Option<At<String>>,
    /// The name of the table in filters, joins and columns.
    alias: Option<At<String>>,
    /// Further tables whose columns come along.
    join: Option<Vec<Join>>,
    /// Conditions that a row must meet, all of them.
    filters: Option<Vec<At<Filter>>>,
    /// The columns that make a group.
    group_by: Option<Vec<At<String>>>,
    /// The columns. Default: all.
    columns: Option<Vec<At<G2Column>>>,
    /// false = rows are only ever appended. Default: true.
    supports_update: Option<At<bool>>,
    /// Where SyncTool's own tables stand. Default: synctool.
    control_schema: Option<At<String>>,
}

/// One stage.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
struct StageEntry {
    /// Its name.
    name: Option<At<String>>,
    /// What it does.
    #[serde(rename = "type")]
    kind: At<StageKind>,
    /// Whether it is passed through. Default: true.
    enabled: Option<At<bool>>,
    /// The strategies it is for, by name or type. Default: all.
    applicable_on: Option<ApplicableOn>,
    /// The backend that is read.
    source: Option<StageEnd>,
    /// The backend that is written.
    destination: Option<StageEnd>,
    /// Further keys of its type.
    config: Option<StageConfig>,
    /// Computed columns, for transform and enrich.
    transformations: Option<Vec<At<TransformationFile>>>,
    /// The columns of the stage, for populate.
    columns: Option<Vec<At<G2Column>>>,
    /// The algorithm of hashes.
    hash_algo: Option<At<HashAlgorithm>>,
    /// A class of the original's, for custom.
    class_path: Option<At<String>>,
    strategies: Option<Later<Anything>>,
}

/// What a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum StageKind {
    /// Cuts a run into partitions.
    Partition,
    /// Finds out what differs.
    ChangeDetection,
    /// Reads rows.
    DataFetch,
    /// Computes columns.
    Transform,
    /// Adds dimensions.
    Enrich,
    /// Adds columns of another backend.
    Join,
    /// Keeps one row per key.
    Dedup,
    /// Makes batches.
    Batcher,
    /// Writes rows.
    Populate,
    /// A class of the original's.
    Custom,
}

impl StageKind {
    fn name(self) -> &'static str {
        match self {
            StageKind::Partition => "partition",
            StageKind::ChangeDetection => "change_detection",
            StageKind::DataFetch => "data_fetch",
            StageKind::Transform => "transform",
            StageKind::Enrich => "enrich",
            StageKind::Join => "join",
            StageKind::Dedup => "dedup",
            StageKind::Batcher => "batcher",
            StageKind::Populate => "populate",
            StageKind::Custom => "custom",
        }
    }

    /// Whether a run is made of it, so that it is always there.
    fn is_fixed(self) -> bool {
        matches!(
            self,
            StageKind::Partition | StageKind::ChangeDetection | StageKind::DataFetch | StageKind::Populate
        )
    }
}

/// A backend in a stage.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StageEnd {
    /// The backend's name.
    name: At<String>,
    /// The columns here. Default: those of the backend.
    columns: Option<Vec<At<G2Column>>>,
    /// The columns that make a group, for data_fetch.
    group_by: Option<Vec<At<String>>>,
}

/// Further keys of a stage, by its type.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
struct StageConfig {
    /// join: left, inner, asof_left.
    join_type: Option<At<JoinType>>,
    /// join: what must be equal.
    join_on: Option<At<Vec<JoinOn>>>,
    /// join: which of several rows is the one valid at a time.
    asof: Option<At<AsofConfig>>,
    /// join: the columns that are added. Default: all of the backend but the keys.
    fetch_columns: Option<Vec<At<G2Column>>>,
    /// join: where rows are kept.
    cache: Option<At<CacheSettings>>,
    /// join: whether a row may have several partners. Default: one_to_one.
    cardinality: Option<At<Cardinality>>,
    /// join: true is the only one.
    merge: Option<At<bool>>,
    /// join: belongs to merge: false.
    output_key: Option<At<String>>,
    /// dedup: of rows with the same values in these columns the last one stays.
    dedup_keys: Option<At<Vec<At<String>>>>,
    /// batcher: rows of a batch.
    target_batch_size: Option<At<u32>>,
    /// transform and enrich: computed columns.
    transformations: Option<Vec<At<TransformationFile>>>,
    /// enrich: tables whose columns are added.
    dimensions: Option<Vec<At<DimensionTable>>>,
    /// enrich: where rows of dimensions are kept.
    cache_backend: Option<At<CacheStore>>,
    /// enrich: how they are kept.
    cache_config: Option<CacheConfigFile>,
    /// data_fetch: rows per page of strategies which say none.
    page_size: Option<At<u32>>,
    use_pagination: Option<Later<bool>>,
    /// Rows of a batch; another place of the batcher's.
    batch_size: Option<At<u32>>,
    batch_timeout: Option<Later<Anything>>,
    batch_timeout_unit: Option<Later<Anything>>,
    batch_timeout_value: Option<Later<Anything>>,
}

/// Which rows of a join stay.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum JoinType {
    /// All.
    Left,
    /// Those with a partner.
    Inner,
    /// All; the partner is the one that was valid at the row's time.
    AsofLeft,
    /// Not possible: it would add rows that the source does not have.
    Right,
}

/// A pair of columns that are compared.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct JoinOn {
    /// The column of the row.
    data_key: At<String>,
    /// The column of the backend.
    backend_key: At<String>,
    /// = (the default); with asof_left one may be <=, <, >= or >.
    operator: Option<At<Operator>>,
}

/// Which of several rows is the one valid at a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct AsofConfig {
    /// The column of the row that has the time.
    data_key: At<String>,
    /// The column of the backend that has the begin of the validity.
    valid_from_column: At<String>,
    /// The column of the backend that has its end.
    valid_to_column: Option<At<String>>,
    /// How the begin must stand to the row's time: <= (the default) or <.
    operator: Option<At<Operator>>,
    /// Whether a row without an end is still valid. Default: true.
    include_open_ended: Option<At<bool>>,
}

/// Where rows of a joined backend are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "there is one policy")]
struct CacheSettings {
    /// Default: true.
    enabled: Option<At<bool>>,
    /// memory (the default) or redis.
    backend: Option<At<CacheStore>>,
    /// The address of a Redis. Default: the global one.
    url: Option<At<SecretUrl>>,
    /// What keys in a Redis begin with.
    key_prefix: Option<At<String>>,
    /// How long a row is good. Default: as long as the run.
    ttl: Option<At<Span>>,
    /// lru is the only one.
    policy: Option<CachePolicy>,
    /// Rows at most. Default: by the memory budget.
    max_size: Option<At<u64>>,
    /// Another name of `max_size`.
    maxsize: Option<At<u64>>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum CachePolicy {
    /// The least recently used go first.
    Lru,
}

// ---------------------------------------------------------------------------------------------------------------------
// To the current form

/// The same in the current form.
pub(super) fn current(file: G2File, errors: &mut Vec<ConfigError>) -> Option<PipelineFile> {
    let before = errors.len();
    let stages: Vec<StageEntry> = file.stages.unwrap_or_default().into_iter().map(At::into_inner).collect();
    let backends: Vec<Backend> = file.backends.into_iter().map(At::into_inner).collect();
    for (i, backend) in backends.iter().enumerate() {
        if backends[..i].iter().any(|b| *b.name == *backend.name) {
            errors.push(backend.name.error(format!("two backends are named \"{}\"", backend.name.shown())));
        }
    }
    let general = merged(file.pipeline_columns.or(file.columns).as_deref().unwrap_or_default(), &[]);
    let fetch = only(&stages, StageKind::DataFetch, errors);
    let populate = only(&stages, StageKind::Populate, errors);
    let detection = only(&stages, StageKind::ChangeDetection, errors);
    let partition = only(&stages, StageKind::Partition, errors);
    for stage in [fetch, populate, detection, partition].into_iter().flatten() {
        must_stay(stage.kind.name(), stage.enabled.clone(), errors);
        if let Some(first) = stage.applicable_on.as_ref().and_then(ApplicableOn::first) {
            errors.push(first.error(format!(
                "stage {} is there for every strategy, and applicable_on names some",
                stage.kind.name()
            )));
        }
    }
    let end = |of: &[Option<&StageEntry>], end: fn(&StageEntry) -> Option<&StageEnd>| {
        of.iter().flatten().find_map(|s| end(s)).map(|e| e.name.clone())
    };
    let source_name = end(&[fetch, detection, partition], |s| s.source.as_ref());
    let destination_name = end(&[populate, fetch, detection, partition], |s| s.destination.as_ref());
    let source = the_backend(source_name, "source", 0, &backends, errors);
    let destination = the_backend(destination_name, "destination", 1, &backends, errors);
    let (Some(source), Some(destination)) = (source, destination) else {
        if errors.len() == before {
            errors.push(ConfigError::new("a pipeline needs a backend to read from and one to write to"));
        }
        return None;
    };
    for stage in &stages {
        for end in [&stage.source, &stage.destination].into_iter().flatten() {
            find_backend(&end.name, &backends, errors);
        }
    }

    let at_source = merged(source.columns.as_deref().unwrap_or_default(), &general);
    let fetched = fetch.and_then(|f| f.source.as_ref());
    let of_fetch = fetched
        .and_then(|end| end.columns.as_ref())
        .map(|columns| merged(columns, &at_source.iter().chain(&general).cloned().collect::<Vec<_>>()));
    let of_destination = destination.columns.as_deref().unwrap_or_default();
    let at_destination = merged(of_destination, &general);
    let populated = populate.and_then(|p| p.columns.as_ref().or(p.destination.as_ref()?.columns.as_ref()));
    let written = match populated {
        Some(columns) => merged(columns, &at_destination.iter().chain(&general).cloned().collect::<Vec<_>>()),
        None => at_destination,
    };
    let own_hash = |name: &str| of_destination.iter().any(|c| *c.name == *name && c.is_hash());
    let mut transform = transform(&stages, &backends, &general, source, errors);
    let group_by = fetched.and_then(|f| f.group_by.clone()).or_else(|| source.group_by.clone());
    let page = fetch.and_then(|f| f.config.as_ref()?.page_size.clone());
    let mut columns = columns(&at_source, of_fetch.as_deref(), &written, own_hash, errors);
    if !columns.is_empty() {
        hide_what_is_made(&transform, &mut columns);
    }
    let mut strategies = file.strategies;
    for strategy in strategies.iter_mut().flatten() {
        let file = strategy.value_mut();
        file.page_size = file.page_size.take().or_else(|| page.clone());
        if let Some(column) = &mut file.column {
            below_aggregate(column, &at_source, &columns);
        }
        for dimension in file.dimensions_mut() {
            below_aggregate(&mut dimension.value_mut().column, &at_source, &columns);
        }
    }
    if let Some(size) = populate.and_then(|p| p.config.as_ref()?.batch_size.clone())
        && !stages.iter().any(|s| *s.kind == StageKind::Batcher)
    {
        transform.push(StageFile::of(StageWork::Batch(size)).into());
    }
    let hash_algo = file.hash_algo.or_else(|| detection.and_then(|d| d.hash_algo.clone()));
    let source = SourceFile {
        datastore: source.datastore_name.clone(),
        table: source.table.clone(),
        schema: source.schema.clone(),
        alias: source.alias.clone(),
        joins: source.join.clone(),
        filters: source.filters.clone(),
        type_name: source.type_name.clone(),
    };
    let destination = DestinationFile {
        datastore: destination.datastore_name.clone(),
        table: destination.table.clone(),
        schema: destination.schema.clone(),
        supports_update: destination.supports_update.clone(),
        control_schema: destination.control_schema.clone(),
        type_name: destination.type_name.clone(),
    };
    let listed = columns.into_iter().map(|c| ColumnEntry::Mapping(Box::new(c))).collect::<Vec<_>>();
    (errors.len() == before).then_some(PipelineFile {
        name: file.name,
        description: file.description,
        enabled: file.enabled,
        datastores: file.datastores,
        columns: (!listed.is_empty()).then_some(ColumnsFile::Listed(listed)),
        max_concurrent_partitions: file.max_concurrent_partitions,
        sync_type: file.sync_type,
        group_by,
        transform: Some(transform),
        strategies,
        write: file.write,
        schema_drift: file.schema_drift,
        hash_algo,
        ..PipelineFile::new(source, destination)
    })
}

/// The one stage of a kind of which there can be one.
fn only<'a>(stages: &'a [StageEntry], kind: StageKind, errors: &mut Vec<ConfigError>) -> Option<&'a StageEntry> {
    let mut of_kind = stages.iter().filter(|s| *s.kind == kind);
    let first = of_kind.next();
    for further in of_kind {
        errors.push(further.kind.error(format!("a pipeline has one stage of type {}", kind.name())));
    }
    first
}

fn find_backend<'a>(name: &At<String>, backends: &'a [Backend], errors: &mut Vec<ConfigError>) -> Option<&'a Backend> {
    let found = backends.iter().find(|b| *b.name == **name);
    if found.is_none() {
        let names: Vec<&str> = backends.iter().map(|b| b.name.as_str()).collect();
        let error = name.error(format!("there is no backend \"{}\"", name.shown()));
        errors.push(match suggestion(name, "backends", &names) {
            Some(help) => error.with_help(help),
            None => error,
        });
    }
    found
}

/// The backend of an end: as a stage names it, else by its own name, else by its place.
fn the_backend<'a>(
    named: Option<At<String>>,
    word: &str,
    place: usize,
    backends: &'a [Backend],
    errors: &mut Vec<ConfigError>,
) -> Option<&'a Backend> {
    match named {
        Some(name) => find_backend(&name, backends, errors),
        None => backends
            .iter()
            .find(|b| b.name.starts_with(word))
            .or_else(|| backends.get(place).filter(|_| backends.len() == 2)),
    }
}

/// Columns over what farther places say of the same names; of a name that stands twice both say something.
fn merged(columns: &[At<G2Column>], farther: &[G2Column]) -> Vec<G2Column> {
    let mut all: Vec<G2Column> = Vec::new();
    for column in columns {
        match all.iter_mut().find(|c| *c.name == *column.name) {
            Some(twin) => *twin = column.over(twin),
            None => all.push((**column).clone()),
        }
    }
    for column in &mut all {
        for f in farther {
            if *f.name == *column.name {
                *column = column.over(f);
            }
        }
    }
    all
}

fn by_name<'a>(columns: &'a [G2Column], name: &str) -> Option<&'a G2Column> {
    columns.iter().find(|c| **c.name == *name)
}

/// Whether a text names a column, and is no SQL to be computed.
fn is_column(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
    };
    let parts: Vec<&str> = text.split('.').collect();
    let keyword = ["null", "true", "false", "current_date", "current_timestamp", "current_user"];
    parts.len() <= 2 && parts.iter().all(|p| part(p)) && !keyword.contains(&text.to_ascii_lowercase().as_str())
}

/// The columns of the pipeline: those of the destination with what they are at the source, then those that are
/// fetched for stages alone.
fn columns(
    at_source: &[G2Column],
    of_fetch: Option<&[G2Column]>,
    written: &[G2Column],
    own_hash: impl Fn(&str) -> bool,
    errors: &mut Vec<ConfigError>,
) -> Vec<At<ColumnFile>> {
    let read = of_fetch.unwrap_or(at_source);
    let mut all = Vec::new();
    for column in written {
        let source = by_name(read, &column.name).or_else(|| {
            // What stands for a partition column at the destination stands for the source's own column.
            by_name(at_source, &column.name).filter(|s| column.is_virtual() || s.is_hash())
        });
        let hash = source.is_some_and(G2Column::is_hash) || own_hash(&column.name);
        let dest = column.expr();
        if !column.is_virtual() && !is_column(dest) {
            errors.push(
                dest.error(format!(
                    "expr of column \"{}\" at the destination must be the name of a column",
                    column.name.shown()
                ))
                .with_help("SQL belongs to the source, or to a virtual column"),
            );
        }
        let mut file = ColumnFile {
            name: Some(column.name.clone()),
            dest: Some(if column.is_virtual() { column.name.clone() } else { dest.clone() }),
            is_virtual: column.is_virtual().then_some(true),
            dest_expr: column.expr.clone().filter(|_| column.is_virtual()),
            ..roles(column, source, hash)
        };
        (file.source, file.expr) = origin(source, hash);
        all.push(column.name.with(file));
    }
    for column in read.iter().filter(|c| by_name(written, &c.name).is_none() && !written.is_empty()) {
        let hash = column.is_hash();
        let (source, expr) = origin(Some(column), hash);
        all.push(column.name.with(ColumnFile {
            name: Some(column.name.clone()),
            source,
            expr,
            is_virtual: column.is_virtual().then_some(true),
            insert: (!column.is_virtual()).then_some(false),
            ..roles(&G2Column::default(), Some(column), hash)
        }));
    }
    if written.is_empty() {
        for column in read {
            let hash = column.is_hash();
            let (source, expr) = origin(Some(column), hash);
            all.push(column.name.with(ColumnFile {
                name: Some(column.name.clone()),
                source,
                expr,
                is_virtual: column.is_virtual().then_some(true),
                ..roles(column, Some(column), hash)
            }));
        }
    }
    all
}

/// What a column is at the source: a column, an expression, or nothing.
fn origin(source: Option<&G2Column>, hash: bool) -> (SourceName, Option<At<String>>) {
    match source {
        None => (SourceName::Made, None),
        Some(s) if s.is_virtual() && (hash || s.expr.is_none()) => (SourceName::Made, None),
        Some(s) if is_column(s.expr()) => (SourceName::Column(s.expr().clone()), None),
        Some(s) => (SourceName::NotSaid, Some(s.expr().clone())),
    }
}

/// Types and roles: the destination's word first.
fn roles(column: &G2Column, source: Option<&G2Column>, hash: bool) -> ColumnFile {
    let nothing = G2Column::default();
    let both = column.over(source.unwrap_or(&nothing));
    ColumnFile {
        data_type: column.data_type.clone().or_else(|| column.type_.clone()),
        precision: column.precision.clone(),
        scale: column.scale.clone(),
        length: column.max_length.clone().or_else(|| column.length.clone()),
        unique_column: both.unique_column,
        order_column: both.order_column,
        direction: both.direction,
        partition_column: both.partition_column,
        delta_column: both.delta_column,
        hash_key: hash.then_some(true),
        hash_column: both.hash_column,
        nullable: column.nullable,
        ..ColumnFile::default()
    }
}

/// What stages make and the destination does not have is not written.
fn hide_what_is_made(transform: &[At<StageFile>], columns: &mut Vec<At<ColumnFile>>) {
    for name in transform.iter().flat_map(|stage| stage.makes()) {
        let known = |c: &At<ColumnFile>| [&c.name, &c.dest].into_iter().flatten().any(|n| **n == *name);
        if !columns.iter().any(known) {
            columns.push(name.with(ColumnFile {
                name: Some(name.clone()),
                source: SourceName::Made,
                insert: Some(false),
                ..ColumnFile::default()
            }));
        }
    }
}

/// A name by which a strategy goes means the source's own column, also where data is fetched as an aggregate of that name.
fn below_aggregate(named: &mut At<String>, at_source: &[G2Column], columns: &[At<ColumnFile>]) {
    let Some(own) = by_name(at_source, named).map(|c| c.expr()) else { return };
    let in_pipeline = columns.iter().find(|c| c.name.as_ref().is_some_and(|n| **n == **named));
    let same = in_pipeline.is_some_and(|c| match (&c.source, &c.expr) {
        (SourceName::Column(source), _) => **source == **own,
        (_, Some(sql)) => **sql == **own,
        _ => false,
    });
    if !same {
        *named = named.with(own.to_string());
    }
}

/// The stages between fetching and populating, in their order.
fn transform(
    stages: &[StageEntry],
    backends: &[Backend],
    general: &[G2Column],
    source: &Backend,
    errors: &mut Vec<ConfigError>,
) -> Vec<At<StageFile>> {
    let mut all: Vec<At<StageFile>> = Vec::new();
    for stage in stages {
        foreign_keys(stage, errors);
        if stage.kind.is_fixed() {
            continue;
        }
        let mut files: Vec<StageFile> = Vec::new();
        let nothing = StageConfig::default();
        let config = stage.config.as_ref().unwrap_or(&nothing);
        let computed = || {
            let said = stage.transformations.as_ref().or(config.transformations.as_ref());
            said.cloned().unwrap_or_default()
        };
        match *stage.kind {
            StageKind::Transform => {
                files.extend(transformations(computed(), errors).into_iter().map(StageFile::of));
            }
            StageKind::Enrich => {
                let enrichment = EnrichmentFile {
                    cache_backend: config.cache_backend.clone(),
                    cache_config: config.cache_config.clone(),
                    dimensions: config.dimensions.clone().unwrap_or_default(),
                    transformations: computed(),
                    ..EnrichmentFile::default()
                };
                let source = Source {
                    datastore: source.datastore_name.clone(),
                    table: source.table.clone(),
                    schema: None,
                    alias: None,
                    joins: Vec::new(),
                    filters: Vec::new(),
                    type_name: None,
                };
                for made in enrichment_stages(enrichment, &source, errors) {
                    files.push(StageFile {
                        name: Some(made.name),
                        ..StageFile::of(made.work)
                    });
                }
            }
            StageKind::Join => files.extend(join(stage, config, backends, general, errors)),
            StageKind::Dedup => match &config.dedup_keys {
                Some(keys) => files.push(StageFile::of(StageWork::Dedup((**keys).clone()))),
                None => errors.push(stage.kind.error("a stage of type dedup needs config.dedup_keys")),
            },
            StageKind::Batcher => {
                let size = config.target_batch_size.as_ref().or(config.batch_size.as_ref());
                let size = size.cloned().unwrap_or_else(|| stage.kind.with(1000));
                files.push(StageFile::of(StageWork::Batch(size)));
            }
            StageKind::Custom => errors.push(
                stage
                    .class_path
                    .as_ref()
                    .map_or_else(|| stage.kind.with(()), |c| c.with(()))
                    .error("a stage of type custom is a Python class, which SyncTool does not run")
                    .with_help("write what it does as a stage of type transform"),
            ),
            StageKind::Partition | StageKind::ChangeDetection | StageKind::DataFetch | StageKind::Populate => {}
        }
        for mut file in files {
            file.name = stage.name.clone().or(file.name);
            file.enabled.clone_from(&stage.enabled);
            file.applicable_on.clone_from(&stage.applicable_on);
            all.push(stage.kind.with(file));
        }
    }
    all
}

/// Keys of a stage's config that belong to stages of another type.
fn foreign_keys(stage: &StageEntry, errors: &mut Vec<ConfigError>) {
    let Some(c) = &stage.config else { return };
    use StageKind as K;
    let all: [(&str, Option<At<()>>, &[StageKind]); 15] = [
        ("join_type", c.join_type.as_ref().map(|v| v.with(())), &[K::Join]),
        ("join_on", c.join_on.as_ref().map(|v| v.with(())), &[K::Join]),
        ("asof", c.asof.as_ref().map(|v| v.with(())), &[K::Join]),
        (
            "fetch_columns",
            c.fetch_columns.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Join],
        ),
        ("cardinality", c.cardinality.as_ref().map(|v| v.with(())), &[K::Join]),
        ("merge", c.merge.as_ref().map(|v| v.with(())), &[K::Join]),
        ("output_key", c.output_key.as_ref().map(|v| v.with(())), &[K::Join]),
        ("dedup_keys", c.dedup_keys.as_ref().map(|v| v.with(())), &[K::Dedup]),
        ("target_batch_size", c.target_batch_size.as_ref().map(|v| v.with(())), &[K::Batcher]),
        ("cache_backend", c.cache_backend.as_ref().map(|v| v.with(())), &[K::Enrich]),
        (
            "dimensions",
            c.dimensions.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Enrich],
        ),
        (
            "transformations",
            c.transformations.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Transform, K::Enrich],
        ),
        ("page_size", c.page_size.as_ref().map(|v| v.with(())), &[K::DataFetch]),
        ("batch_size", c.batch_size.as_ref().map(|v| v.with(())), &[K::Batcher, K::Populate]),
        ("cache", c.cache.as_ref().map(|v| v.with(())), &[K::Join]),
    ];
    for (key, at, kinds) in all {
        if let Some(at) = at.filter(|_| !kinds.contains(&stage.kind)) {
            let words: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
            errors.push(at.error(format!(
                "config.{key} belongs to stages of type {}, and this one is {}",
                words.join(" and "),
                stage.kind.name()
            )));
        }
    }
}

fn join(
    stage: &StageEntry,
    config: &StageConfig,
    backends: &[Backend],
    general: &[G2Column],
    errors: &mut Vec<ConfigError>,
) -> Option<StageFile> {
    let Some(end) = &stage.source else {
        errors.push(stage.kind.error("a stage of type join needs source, the backend that is joined"));
        return None;
    };
    let backend = backends.iter().find(|b| *b.name == *end.name)?;
    let mut table = merged(backend.columns.as_deref().unwrap_or_default(), general);
    if let Some(columns) = &end.columns {
        let farther: Vec<G2Column> = table.iter().chain(general).cloned().collect();
        table = merged(columns, &farther);
    }
    let real = |name: &At<String>| by_name(&table, name).map_or_else(|| name.clone(), |c| name.with(c.expr().to_string()));
    if let Some(merge) = config.merge.as_ref().filter(|m| !***m) {
        errors.push(
            merge
                .error("merge: false keeps joined rows apart, which is not supported")
                .with_help("leave it out: joined columns are added to the row"),
        );
    }
    let kind = config.join_type.clone().unwrap_or_else(|| stage.kind.with(JoinType::Left));
    let join = match *kind {
        JoinType::Left => EnrichJoin::Left,
        JoinType::Inner => EnrichJoin::Inner,
        JoinType::AsofLeft => EnrichJoin::AsOf,
        JoinType::Right => {
            errors.push(
                kind.error("a right join adds rows that the source does not have")
                    .with_help("use left or inner, or join in the source backend"),
            );
            return None;
        }
    };
    let Some(pairs) = &config.join_on else {
        errors.push(stage.kind.error("a stage of type join needs config.join_on"));
        return None;
    };
    let mut on: Vec<EnrichOn> = Vec::new();
    let mut keys: Vec<&str> = Vec::new();
    let mut as_of: Option<At<AsOfFile>> = None;
    for pair in pairs.iter() {
        keys.push(&pair.backend_key);
        let operator = pair.operator.clone().unwrap_or_else(|| pair.data_key.with(Operator::Equal));
        // The original says how the row's value stands to the backend's.
        let begins = match *operator {
            Operator::Equal => {
                on.push(EnrichOn::Pair(EnrichKey {
                    column: pair.data_key.clone(),
                    key: real(&pair.backend_key),
                }));
                continue;
            }
            Operator::GreaterOrEqual => Operator::LessOrEqual,
            Operator::Greater => Operator::Less,
            _ => {
                errors.push(
                    operator
                        .error("a join compares by =, and with asof_left one pair by >= or >")
                        .with_help("data_key >= backend_key takes the newest row that had begun by then"),
                );
                continue;
            }
        };
        if join != EnrichJoin::AsOf || as_of.is_some() || config.asof.is_some() {
            errors.push(operator.error("one pair of a join of type asof_left may compare by >= or >, and no other"));
            continue;
        }
        as_of = Some(pair.data_key.with(AsOfFile {
            column: pair.data_key.clone(),
            valid_from: real(&pair.backend_key),
            valid_to: None,
            operator: Some(operator.with(begins)),
            include_open_ended: None,
        }));
    }
    if let Some(said) = &config.asof {
        as_of = Some(said.with(AsOfFile {
            column: said.data_key.clone(),
            valid_from: real(&said.valid_from_column),
            valid_to: said.valid_to_column.as_ref().map(real),
            operator: said.operator.clone(),
            include_open_ended: said.include_open_ended.clone(),
        }));
    }
    let added = match &config.fetch_columns {
        Some(columns) => merged(columns, &table),
        None => table.clone(),
    };
    let fields: Vec<FieldEntry> = added
        .iter()
        .filter(|c| !keys.contains(&c.name.as_str()))
        .map(|c| {
            let mut field = FieldFile {
                dest: Some(c.name.clone()),
                ..FieldFile::default()
            };
            match (c.is_virtual() && c.is_hash(), is_column(c.expr())) {
                (true, _) => field.hash = Some(true),
                (false, true) => field.source = Some(c.expr().clone()),
                (false, false) => field.expr = Some(c.expr().clone()),
            }
            FieldEntry::Field(Box::new(c.name.with(field)))
        })
        .collect();
    let cache = config.cache.as_ref().map(|c| {
        let off = c.enabled.as_ref().filter(|e| !***e).map(|e| e.with(CacheStore::None));
        CacheEntry::Full(CacheFile {
            store: off.or_else(|| c.backend.clone()),
            url: c.url.clone(),
            key_prefix: c.key_prefix.clone(),
            ttl: c.ttl.clone(),
            max_size: c.max_size.clone().or_else(|| c.maxsize.clone()),
        })
    });
    Some(StageFile {
        enrich: Some(EnrichFile {
            datastore: Some(backend.datastore_name.clone()),
            table: backend.table.clone(),
            schema: backend.schema.clone(),
            filters: backend.filters.clone().unwrap_or_default(),
            join: Some(kind.with(join)),
            on: pairs.with(on),
            as_of,
            fields: end.name.with(fields),
            cardinality: config.cardinality.clone(),
            cache,
        }),
        ..StageFile::default()
    })
}

#[cfg(test)]
mod tests {
    use super::is_column;

    #[test]
    fn columns_and_expressions() {
        for column in ["id", "u.id", "_x", "größe", "a$1"] {
            assert!(is_column(column), "{column}");
        }
        for sql in ["count(1)", "a + b", "CAST(x AS DATE)", "'x'", "1", "a.b.c", "current_date", "NULL", ""] {
            assert!(!is_column(sql), "{sql}");
        }
    }
}
