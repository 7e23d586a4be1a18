//! The current form of a pipeline file, and how it resolves to the model. Older generations are turned into this form
//! first (`generations.rs`), so that rules and defaults stand here once.

mod columns;
mod dimensions;
mod enrichment;
mod log;
mod stage_columns;
mod stages;
mod strategies;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

pub(super) use self::columns::{ColumnEntry, ColumnFile, ColumnsFile, SourceName};
use self::columns::{check_columns, column, known_column};
pub(super) use self::dimensions::DimensionFile;
pub(super) use self::enrichment::{
    CacheConfigFile, DataFetchFile, DimensionTable, EnrichmentFile, PipelineConfigFile, TransformationFile,
    enrichment_stages, transformations,
};
pub(super) use self::stages::{
    ApplicableOn, AsOfFile, CacheEntry, CacheFile, EnrichFile, EnrichOn, FieldEntry, FieldFile, StageFile, must_stay,
};
pub(super) use self::strategies::StrategyFile;
use super::at::At;
use super::datastores::DatastoreEntry;
use super::decode::Notice;
use super::error::ConfigError;
use super::pipeline::{
    ColumnMapping, Columns, Destination, Filter, Join, Partitioning, Pipeline, SchemaDrift, Source, SyncType, Write,
    find_column,
};
use super::strategy::HashAlgorithm;

/// A pipeline: keeps one table equal to another.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline", deny_unknown_fields)]
pub(super) struct PipelineFile {
    /// Version of the configuration's form; may be left out.
    #[serde(rename = "apiVersion")]
    #[allow(dead_code, reason = "there is one version")]
    pub(super) api_version: Option<String>,
    /// The pipeline's id. Default: the file's name without its ending.
    pub(super) name: Option<At<String>>,
    /// What it is for.
    pub(super) description: Option<At<String>>,
    /// Whether a scheduler may run it. Default: true.
    pub(super) enabled: Option<At<bool>>,
    /// Datastores of this pipeline alone, as in a datastores file.
    pub(super) datastores: Option<BTreeMap<String, At<DatastoreEntry>>>,
    /// Where rows come from.
    pub(super) source: At<SourceFile>,
    /// Where they go.
    pub(super) destination: At<DestinationFile>,
    /// Which columns: the word all (the default), or a list.
    pub(super) columns: Option<ColumnsFile>,
    /// Columns of the destination that identify a row. Default: those with the role unique, else the primary key.
    pub(super) key: Option<Vec<At<String>>>,
    /// How a run is cut into partitions. Default: as the data suggests.
    pub(super) partitioning: Option<PartitioningFile>,
    /// Another place of `partitioning.column`.
    pub(super) partition_column: Option<At<String>>,
    /// Another place of `partitioning.step`.
    pub(super) partition_step: Option<At<u64>>,
    /// Partitions worked on at once. Default: the global `workers`.
    pub(super) max_concurrent_partitions: Option<At<u32>>,
    /// What the unit of the sync is. Default: row-level; aggregate where there is a group_by.
    pub(super) sync_type: Option<At<SyncType>>,
    /// The columns that make a group; every other column is then an aggregate.
    pub(super) group_by: Option<Vec<At<String>>>,
    /// What happens to rows on their way, in this order. Default: nothing.
    pub(super) transform: Option<Vec<At<StageFile>>>,
    /// The ways to bring the destination up to date. Default: one named full.
    pub(super) strategies: Option<Vec<At<StrategyFile>>>,
    /// What the destination may be asked to do.
    pub(super) write: Option<WriteFile>,
    /// What happens when the source's columns change. Left out, nobody watches them: where all columns go along, new ones
    /// are added; a list stays what it is.
    pub(super) schema_drift: Option<At<SchemaDrift>>,
    /// The algorithm of hashes, where it is to be that of the original.
    pub(super) hash_algo: Option<At<HashAlgorithm>>,
    /// Further stages, in the first generation's form.
    pub(super) enrichment: Option<EnrichmentFile>,
    /// Further stages, in the first generation's form.
    pub(super) pipeline_config: Option<PipelineConfigFile>,
    /// Its `page_size` is that of strategies which say none.
    pub(super) data_fetch: Option<DataFetchFile>,
}

impl PipelineFile {
    /// A pipeline that says nothing but its ends.
    pub(super) fn new(source: SourceFile, destination: DestinationFile) -> Self {
        Self {
            api_version: None,
            name: None,
            description: None,
            enabled: None,
            datastores: None,
            source: source.into(),
            destination: destination.into(),
            columns: None,
            key: None,
            partitioning: None,
            partition_column: None,
            partition_step: None,
            max_concurrent_partitions: None,
            sync_type: None,
            group_by: None,
            transform: None,
            strategies: None,
            write: None,
            schema_drift: None,
            hash_algo: None,
            enrichment: None,
            pipeline_config: None,
            data_fetch: None,
        }
    }
}

/// Where rows come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct SourceFile {
    /// Name of a datastore.
    pub(super) datastore: At<String>,
    /// The table, with its schema before a dot where it is not the connection's own. Required, but where a log is
    /// followed.
    pub(super) table: Option<At<String>>,
    /// The tables whose log is followed, in place of one. Default for a log without any: all of the publication.
    pub(super) tables: Option<Vec<At<String>>>,
    /// The schema, where it stands apart; the table's name is then taken as it is.
    pub(super) schema: Option<At<String>>,
    /// The name of the table in filters, joins and columns.
    pub(super) alias: Option<At<String>>,
    /// Further tables whose columns come along.
    pub(super) joins: Option<Vec<Join>>,
    /// Conditions that a row must meet, all of them: SQL, or column, operator and value.
    pub(super) filters: Option<Vec<At<Filter>>>,
    #[serde(skip)]
    pub(super) type_name: Option<At<String>>,
}

/// Where rows go.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct DestinationFile {
    /// Name of a datastore.
    pub(super) datastore: At<String>,
    /// The table, with its schema before a dot where it is not the connection's own. Required, but where a log is
    /// followed: its tables keep their names.
    pub(super) table: Option<At<String>>,
    /// The schema, where it stands apart; the table's name is then taken as it is. Where a log is followed: the schema
    /// of all its tables.
    pub(super) schema: Option<At<String>>,
    /// false = rows are only ever appended. Default: true.
    pub(super) supports_update: Option<At<bool>>,
    /// true = no two keys are equal in the destination's collation, whatever it calls equal. Default: false, which refuses
    /// a table that may call keys equal.
    pub(super) distinct_keys: Option<At<bool>>,
    /// Where SyncTool's own tables stand. Default: synctool.
    pub(super) control_schema: Option<At<String>>,
    #[serde(skip)]
    pub(super) type_name: Option<At<String>>,
}

/// How a run is cut into partitions.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct PartitioningFile {
    /// The column, as it is called at the source.
    pub(super) column: Option<At<String>>,
    /// The width of a partition in units of the column.
    pub(super) step: Option<At<u64>>,
}

/// What the destination may be asked to do.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct WriteFile {
    /// Deletes of more than 30 % and more than 1,000 rows, and an empty source, are carried out. Default: false.
    allow_mass_delete: Option<At<bool>>,
    /// Rows that may be rejected before a run fails. Default: 0.
    reject_limit: Option<At<u64>>,
}

// ---------------------------------------------------------------------------------------------------------------------
// From the form to the model

/// Resolves a file. `stem` is its name without the ending, the default of the pipeline's. Mistakes go to `errors`; the
/// result is then only good for finding more of them.
pub(super) fn resolve(
    file: PipelineFile,
    stem: &str,
    mut not_yet: Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> Pipeline {
    let name = file.name.unwrap_or_else(|| stem.into());
    check_name(&name, errors);
    let follows = log::follows(file.strategies.as_deref().unwrap_or_default());
    let mut table_of = |table: Option<At<String>>, end: &str, place: At<()>, instead: bool| {
        table.unwrap_or_else(|| {
            if !follows && !instead {
                errors.push(place.error(format!("missing key \"table\" in {end}")));
            }
            At::from(String::new())
        })
    };
    let (of_source, of_destination) = (file.source.with(()), file.destination.with(()));
    let (from, to) = (file.source.into_inner(), file.destination.into_inner());
    let tables = from.tables.unwrap_or_default();
    let source = Source {
        datastore: from.datastore,
        table: table_of(from.table, "source", of_source, !tables.is_empty()),
        tables,
        schema: from.schema,
        alias: from.alias,
        joins: from.joins.unwrap_or_default(),
        filters: from.filters.unwrap_or_default(),
        type_name: from.type_name,
    };
    let destination = Destination {
        datastore: to.datastore,
        table: table_of(to.table, "destination", of_destination, !source.tables.is_empty()),
        schema: to.schema,
        supports_update: to.supports_update.unwrap_or_else(|| true.into()),
        distinct_keys: to.distinct_keys,
        control_schema: to.control_schema,
        type_name: to.type_name,
    };
    for (key, value) in [
        ("source.datastore", &source.datastore),
        ("source.table", &source.table),
        ("destination.datastore", &destination.datastore),
        ("destination.table", &destination.table),
    ] {
        if value.trim().is_empty() && value.origin().is_some() {
            errors.push(value.error(format!("{key} is empty")));
        }
    }
    let mut strategy_files = file.strategies.unwrap_or_default();
    let transform = stages::resolve(
        stages::StagesOfFile {
            transform: file.transform.unwrap_or_default(),
            enrichment: file.enrichment,
            configs: take_configs(&mut strategy_files, file.pipeline_config, file.data_fetch, errors),
            strategies: strategy_files.iter().map(name_of).collect(),
        },
        &source,
        errors,
    );
    super::expression::check(&transform, errors);
    let mut columns = match file.columns {
        None | Some(ColumnsFile::All(_)) => Columns::All,
        Some(ColumnsFile::Listed(entries)) => {
            let read = |entry| column(entry, &mut not_yet, errors);
            Columns::Listed(entries.into_iter().filter_map(read).collect())
        }
    };
    if let Columns::Listed(listed) = &mut columns {
        check_columns(listed, errors);
        stage_columns::complete_columns(&transform, &source, listed, errors);
    }
    let listed: &[ColumnMapping] = match &columns {
        Columns::All => &[],
        Columns::Listed(columns) => columns,
    };

    let (sync_type, group_by) = groups(file.sync_type, file.group_by.unwrap_or_default(), &columns, errors);
    let key = key(file.key, &group_by, listed, errors);
    let partitioning = partitioning(
        file.partitioning,
        file.partition_column,
        file.partition_step,
        listed,
        errors,
    );
    if let Some(n) = file.max_concurrent_partitions.as_ref().filter(|n| ***n == 0) {
        errors.push(n.error("max_concurrent_partitions must be at least 1"));
    }
    let around = dimensions::Around {
        listed,
        group_by: &group_by,
        sync_type: *sync_type,
        source: &source,
        partitioning: &partitioning,
    };
    let strategies = strategies::resolve(strategy_files, &around, &mut not_yet, errors);
    let (allow_mass_delete, reject_limit) = file
        .write
        .map_or((None, None), |w| (w.allow_mass_delete, w.reject_limit));
    let mut pipeline = Pipeline {
        name,
        description: file.description,
        enabled: file.enabled.unwrap_or_else(|| true.into()),
        source,
        destination,
        sync_type,
        columns,
        key,
        group_by,
        partitioning,
        max_concurrent_partitions: file.max_concurrent_partitions,
        transform,
        strategies,
        hash_algo: file.hash_algo,
        schema_drift: file.schema_drift,
        write: Write {
            allow_mass_delete: allow_mass_delete.unwrap_or_default(),
            reject_limit: reject_limit.unwrap_or_default(),
        },
        not_yet,
    };
    log::check(&pipeline, errors);
    let unheard = strategies::unheard_algorithms(&pipeline);
    pipeline.not_yet.extend(unheard);
    let schedule = strategies::unheard_schedule(&pipeline);
    pipeline.not_yet.extend(schedule);
    pipeline
}

fn name_of(file: &At<StrategyFile>) -> At<String> {
    let named = file.name.clone();
    named.unwrap_or_else(|| file.kind.with(file.kind.name().to_owned()))
}

/// The stages that the pipeline and its strategies say in the first generation's form; what they say of pages goes to
/// the strategies.
fn take_configs(
    strategies: &mut [At<StrategyFile>],
    of_pipeline: Option<PipelineConfigFile>,
    fetch: Option<DataFetchFile>,
    errors: &mut Vec<ConfigError>,
) -> Vec<(Option<At<String>>, PipelineConfigFile)> {
    let of_fetch = fetch.and_then(|f| {
        must_stay("data_fetch", f.enabled, errors);
        f.page_size
    });
    let page = of_pipeline
        .as_ref()
        .and_then(PipelineConfigFile::page_size)
        .or(of_fetch);
    let mut configs: Vec<(Option<At<String>>, PipelineConfigFile)> = Vec::new();
    for strategy in strategies {
        let name = name_of(strategy);
        let file = strategy.value_mut();
        let own = file.data_fetch.as_mut().and_then(|f| {
            must_stay("data_fetch", f.enabled.take(), errors);
            f.page_size.take()
        });
        let config = file.pipeline_config.take();
        let in_config = config.as_ref().and_then(PipelineConfigFile::page_size);
        file.page_size = file.page_size.take().or(own).or(in_config).or_else(|| page.clone());
        configs.extend(config.map(|config| (Some(name), config)));
    }
    configs.extend(of_pipeline.map(|config| (None, config)));
    configs
}

/// The unit of the sync, and the groups where it is groups.
fn groups(
    said: Option<At<SyncType>>,
    group_by: Vec<At<String>>,
    columns: &Columns,
    errors: &mut Vec<ConfigError>,
) -> (At<SyncType>, Vec<At<String>>) {
    let sync_type = match (said, group_by.first()) {
        (Some(said), _) => said,
        (None, Some(first)) => first.with(SyncType::Aggregate),
        (None, None) => SyncType::RowLevel.into(),
    };
    match (*sync_type, group_by.first()) {
        (SyncType::RowLevel, Some(first)) => errors.push(
            first
                .error("group_by belongs to sync_type aggregate, and the pipeline copies rows")
                .with_help("leave out group_by, or write sync_type: aggregate"),
        ),
        (SyncType::Aggregate, None) => errors.push(
            sync_type
                .error("sync_type aggregate needs group_by")
                .with_help("say which columns make a group, such as group_by: [user_id, date]"),
        ),
        _ => {}
    }
    if *sync_type == SyncType::Aggregate {
        match columns {
            Columns::All => errors.push(
                sync_type
                    .error("sync_type aggregate needs its columns listed")
                    .with_help("list the groups and the aggregates, such as {name: total, expr: sum(amount)}"),
            ),
            Columns::Listed(listed) => check_groups(&group_by, listed, errors),
        }
    }
    (sync_type, group_by)
}

/// In an aggregate every column is a group or computed over one.
fn check_groups(group_by: &[At<String>], listed: &[ColumnMapping], errors: &mut Vec<ConfigError>) {
    let groups: Vec<&ColumnMapping> = group_by
        .iter()
        .filter_map(|name| {
            let column = known_column(name, "group_by", listed, errors)?;
            if !column.is_read() {
                errors.push(name.error(format!(
                    "group_by names \"{}\", which the source does not have",
                    name.shown()
                )));
            }
            Some(column)
        })
        .collect();
    if groups.is_empty() {
        return;
    }
    for column in listed.iter().filter(|c| c.is_written() && c.source.is_some()) {
        if !groups.iter().any(|g| *g.name == *column.name) {
            errors.push(
                column
                    .dest
                    .error(format!(
                        "column \"{}\" is neither in group_by nor an aggregate",
                        column.name.shown()
                    ))
                    .with_help("add it to group_by, or give it an expr such as max(updated_at)"),
            );
        }
    }
}

/// The columns of the destination that identify a row: as written, else by their role, else the groups.
fn key(
    said: Option<Vec<At<String>>>,
    group_by: &[At<String>],
    listed: &[ColumnMapping],
    errors: &mut Vec<ConfigError>,
) -> Vec<At<String>> {
    let groups: Vec<At<String>> = group_by
        .iter()
        .filter_map(|name| find_column(listed, name))
        .map(|c| c.dest.clone())
        .collect();
    let key: Vec<At<String>> = match said {
        Some(key) => {
            for name in &key {
                known_column(name, "key", listed, errors);
            }
            key
        }
        None => {
            let unique: Vec<At<String>> = listed
                .iter()
                .filter(|c| c.roles.unique && (c.is_written() || !c.is_virtual))
                .map(|c| c.dest.clone())
                .collect();
            if unique.is_empty() { groups.clone() } else { unique }
        }
    };
    if let (Some(first), false) = (key.first(), groups.is_empty()) {
        let differs = key.len() != groups.len() || !key.iter().all(|k| groups.iter().any(|g| **g == **k));
        if differs {
            errors.push(
                first
                    .error("the key of an aggregate must be the columns of group_by")
                    .with_help("leave out the key: the groups are it"),
            );
        }
    }
    key
}

/// A name is part of file names and addresses.
fn check_name(name: &At<String>, errors: &mut Vec<ConfigError>) {
    let fine = !name.is_empty()
        && name.len() <= 128
        && !name.starts_with('.')
        && name.chars().all(|c| c.is_alphanumeric() || "._- ".contains(c));
    if !fine {
        errors.push(
            name.error("name must be 1 to 128 letters, digits, spaces, dots, dashes and underscores")
                .with_help("state files and logs are called by it"),
        );
    }
}

fn partitioning(
    block: Option<PartitioningFile>,
    column: Option<At<String>>,
    step: Option<At<u64>>,
    listed: &[ColumnMapping],
    errors: &mut Vec<ConfigError>,
) -> Partitioning {
    let (block_column, block_step) = block.map_or((None, None), |b| (b.column, b.step));
    for (key, a, b) in [
        ("column", block_column.is_some(), column.as_ref().map(|c| c.with(()))),
        ("step", block_step.is_some(), step.as_ref().map(|s| s.with(()))),
    ] {
        if let (true, Some(b)) = (a, b) {
            errors.push(b.error(format!("partitioning.{key} and partition_{key} are the same key")));
        }
    }
    let named = block_column.or(column);
    let role = listed.iter().find(|c| c.roles.partition);
    if let (Some(named), Some(role)) = (&named, role)
        && !role.is_called(named)
    {
        errors.push(named.error(format!(
            "the partition column is \"{}\" here, and \"{}\" by its role",
            named.shown(),
            role.dest.shown()
        )));
    }
    // The role says which of several joined tables is meant, so its name at the source is the better one.
    let mapped = role.or_else(|| find_column(listed, named.as_ref()?));
    let at_source = mapped.and_then(|c| c.source.clone());
    let step = block_step.or(step);
    if let Some(zero) = step.as_ref().filter(|s| ***s == 0) {
        errors.push(zero.error("the partition step must be at least 1"));
    }
    Partitioning {
        column: at_source.or(named),
        step,
    }
}
