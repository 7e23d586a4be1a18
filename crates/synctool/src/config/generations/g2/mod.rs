//! The second generation: `backends`, `stages`, `pipeline_columns`.
//!
//! A column stands in several places by one name, and the nearer place wins: the stage's, the backend's, the
//! pipeline's. What a backend calls `expr` is the column (or the SQL) there; `name` is what the pipeline calls it.

mod columns;
mod stages;
mod unheard;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use self::columns::{by_name, columns, merged};
use self::stages::transform;
use self::unheard::unheard_columns;
use super::super::at::At;
use super::super::datastores::DatastoreEntry;
use super::super::decode::{Anything, Later, Notice};
use super::super::error::{ConfigError, suggestion};
use super::super::form::{
    ApplicableOn, CacheConfigFile, ColumnEntry, ColumnFile, ColumnsFile, DestinationFile, DimensionTable, PipelineFile,
    SourceFile, SourceName, StageFile, StrategyFile, TransformationFile, WriteFile, must_stay,
};
use super::super::pipeline::{Direction, Filter, Join, Operator, SchemaDrift, SyncType};
use super::super::secret::SecretUrl;
use super::super::stage::{CacheStore, Cardinality, StageWork};
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
    /// What happens when the source's columns change. Left out, nobody watches them: where all columns go along, new ones
    /// are added; a list stays what it is.
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
    /// Has no effect: rows are read in the order in which a run can go on after an interruption.
    order_column: Option<bool>,
    /// Has no effect, like order_column.
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
    /// true = no two keys are equal in the destination's collation, whatever it calls equal. Default: false.
    distinct_keys: Option<At<bool>>,
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
    /// The columns here, for the source of data_fetch and join and the destination of populate; elsewhere they have no
    /// effect. Default: those of the backend.
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
pub(super) fn current(file: G2File, notices: &mut Vec<Notice>, errors: &mut Vec<ConfigError>) -> Option<PipelineFile> {
    let before = errors.len();
    let stages: Vec<StageEntry> = file
        .stages
        .unwrap_or_default()
        .into_iter()
        .map(At::into_inner)
        .collect();
    let backends: Vec<Backend> = file.backends.into_iter().map(At::into_inner).collect();
    for (i, backend) in backends.iter().enumerate() {
        if backends[..i].iter().any(|b| *b.name == *backend.name) {
            errors.push(
                backend
                    .name
                    .error(format!("two backends are named \"{}\"", backend.name.shown())),
            );
        }
    }
    let general = merged(
        file.pipeline_columns.or(file.columns).as_deref().unwrap_or_default(),
        &[],
    );
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
            errors.push(ConfigError::new(
                "a pipeline needs a backend to read from and one to write to",
            ));
        }
        return None;
    };
    for stage in &stages {
        for end in [&stage.source, &stage.destination].into_iter().flatten() {
            find_backend(&end.name, &backends, errors);
        }
    }
    for backend in backends.iter().filter(|b| *b.name != *source.name) {
        only_of_the_source(backend, *backend.name == *destination.name, errors);
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
        Some(columns) => merged(
            columns,
            &at_destination.iter().chain(&general).cloned().collect::<Vec<_>>(),
        ),
        None => at_destination.clone(),
    };
    let own_hash = |name: &str| of_destination.iter().any(|c| *c.name == *name && c.is_hash());
    let mut transform = transform(&stages, &backends, &general, source, errors);
    let group_by = fetched
        .and_then(|f| f.group_by.clone())
        .or_else(|| source.group_by.clone());
    let page = fetch.and_then(|f| f.config.as_ref()?.page_size.clone());
    let mut columns = columns(&at_source, of_fetch.as_deref(), &written, own_hash, errors);
    if !columns.is_empty() {
        hide_what_is_made(&transform, &mut columns);
    }
    let fetched_there = of_fetch.iter().flatten();
    let known: [(&Backend, Vec<&G2Column>); 2] = [
        (source, at_source.iter().chain(fetched_there).collect()),
        (destination, at_destination.iter().chain(&written).collect()),
    ];
    unheard_columns(&stages, &known, &columns, notices, errors);
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
        table: Some(source.table.clone()),
        tables: None,
        schema: source.schema.clone(),
        alias: source.alias.clone(),
        joins: source.join.clone(),
        filters: source.filters.clone(),
        type_name: source.type_name.clone(),
    };
    let destination = DestinationFile {
        datastore: destination.datastore_name.clone(),
        table: Some(destination.table.clone()),
        schema: destination.schema.clone(),
        supports_update: destination.supports_update.clone(),
        distinct_keys: destination.distinct_keys.clone(),
        control_schema: destination.control_schema.clone(),
        type_name: destination.type_name.clone(),
    };
    let listed = columns
        .into_iter()
        .map(|c| ColumnEntry::Mapping(Box::new(c)))
        .collect::<Vec<_>>();
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
        errors.push(
            further
                .kind
                .error(format!("a pipeline has one stage of type {}", kind.name())),
        );
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

/// What says which rows are read has no meaning in another backend: left aside, other rows would be compared, written
/// and deleted than the file seems to say. (The table of a join has filters of its own.)
fn only_of_the_source(backend: &Backend, is_destination: bool, errors: &mut Vec<ConfigError>) {
    let join = backend.join.as_ref().and_then(|joins| joins.first());
    let group = backend.group_by.as_ref().and_then(|names| names.first());
    let filter = backend.filters.as_ref().and_then(|filters| filters.first());
    let said = [
        ("join", join.map(|j| j.table.with(()))),
        ("group_by", group.map(|g| g.with(()))),
        ("filters", filter.map(|f| f.with(())).filter(|_| is_destination)),
    ];
    for (key, at) in said {
        let Some(at) = at else { continue };
        let error = at.error(format!(
            "{key} belongs to the backend that rows are read from, and \"{}\" is another",
            backend.name.shown()
        ));
        errors.push(match (key, is_destination) {
            ("filters", _) => error.with_help(
                "the source's filters say which rows the table holds; where it holds others too, write `deletes: none` \
                 in each strategy",
            ),
            (_, false) => error.with_help("join from a view that does it"),
            (_, true) => error,
        });
    }
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
    let Some(own) = by_name(at_source, named).map(|c| c.expr()) else {
        return;
    };
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
