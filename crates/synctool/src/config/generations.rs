//! Older generations of pipeline files: recognised by their keys, read into the current form.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::at::At;
use super::datastores::DatastoreEntry;
use super::decode::{Anything, Later};
use super::form::{
    ColumnEntry, ColumnsFile, DestinationFile, HashAlgorithm, PipelineFile, SourceFile, StrategyFile, SyncType,
    WriteFile,
};
use super::pipeline::{Filter, Join};
use super::text::{Kind, Node};

/// How a pipeline file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Generation {
    /// `source`, `destination`, `columns`.
    Current,
    /// `source_provider`, `destination_provider`, `column_map`.
    G1,
    /// `backends`, `stages`.
    G2,
    /// Everything below `sync_job`.
    G0,
}

/// The generation of a file, by the keys at its top.
pub(super) fn recognise(root: &Node) -> Generation {
    let has = |keys: &[&str]| match &root.kind {
        Kind::Map(entries) => entries.iter().any(|e| keys.contains(&e.key.as_str())),
        _ => false,
    };
    if has(&["backends", "stages", "pipeline_columns"]) {
        Generation::G2
    } else if has(&["sync_job", "source_state_provider", "destination_state_provider"]) {
        Generation::G0
    } else if has(&["source_provider", "destination_provider", "column_map"]) {
        Generation::G1
    } else {
        Generation::Current
    }
}

/// Why a generation is not read, as message and help.
pub(super) fn refusal(generation: Generation) -> Option<(&'static str, &'static str)> {
    const HELP: &str = "write the pipeline with source, destination and columns (synctool config schema pipeline), or \
                        with source_provider, destination_provider and column_map";
    match generation {
        Generation::Current | Generation::G1 => None,
        Generation::G2 => Some((
            "generation G2 of pipeline files (backends, stages) is not in this version yet",
            HELP,
        )),
        Generation::G0 => Some((
            "generation G0 of pipeline files (sync_job) is not in this version yet",
            HELP,
        )),
    }
}

/// What a user should know of a key that is read and not yet used.
pub(super) fn later(path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let what = match key {
        "enrichment" => "enrichment is not in this version yet; its columns are not written",
        "primary_partitions" | "secondary_partitions" | "delta_partitions" => {
            "is read and does not cut partitions in this version yet"
        }
        "use_sub_partition" | "sub_partition_step" => "does not cut partitions in this version yet",
        "use_pagination" => "has no effect: rows are always read in pages",
        "prevent_update_unless_changed" => "has no effect: rows that are equal are never written",
        "match_row_count" | "hash_algo" => "has no effect in this version yet: hash strategies are not in it",
        "pipeline_config" | "data_fetch" => "has no effect: batches are sized by the memory budget",
        "virtual" | "expr" => "is not computed in this version yet",
        _ => "has no effect in this version yet",
    };
    if what.starts_with(key) {
        what.to_owned()
    } else {
        format!("{path} {what}")
    }
}

/// The form of the original's first guides.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline, first generation", deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) struct G1File {
    /// Version of the configuration's form; may be left out.
    #[serde(rename = "apiVersion")]
    api_version: Option<String>,
    /// The pipeline's id. Default: the file's name without its ending.
    name: Option<At<String>>,
    /// What it is for.
    description: Option<At<String>>,
    /// Whether a scheduler may run it. Default: true.
    enabled: Option<At<bool>>,
    /// Datastores of this pipeline alone, as in a datastores file.
    datastores: Option<BTreeMap<String, At<DatastoreEntry>>>,
    /// Where rows come from.
    source_provider: G1Source,
    /// Where they go.
    destination_provider: G1Destination,
    /// The columns. Default: all of the source.
    column_map: Option<Vec<ColumnEntry>>,
    /// The column along which runs are cut into partitions.
    partition_column: Option<At<String>>,
    /// The width of a partition.
    partition_step: Option<At<u64>>,
    /// Partitions worked on at once. Default: the global `workers`.
    max_concurrent_partitions: Option<At<u32>>,
    /// The ways to bring the destination up to date. Default: one named full.
    strategies: Option<Vec<At<StrategyFile>>>,
    /// What the destination may be asked to do.
    write: Option<WriteFile>,
    /// Only row-level is in this version.
    sync_type: Option<At<SyncType>>,
    hash_algo: Option<Later<HashAlgorithm>>,
    enrichment: Option<Later<Anything>>,
    pipeline_config: Option<Later<Anything>>,
    columns: Option<Later<Anything>>,
}

/// Where rows come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct G1Source {
    /// Datastore and table.
    data_backend: G1SourceTable,
}

/// Where rows go.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct G1Destination {
    /// Datastore and table.
    data_backend: G1DestinationTable,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct G1SourceTable {
    /// The datastore's type; must be what the datastore says.
    #[serde(rename = "type")]
    type_name: Option<At<String>>,
    /// Name of a datastore.
    datastore_name: At<String>,
    table: At<String>,
    schema: Option<At<String>>,
    /// The name of the table in filters, joins and columns.
    alias: Option<At<String>>,
    /// Further tables whose columns come along.
    join: Option<Vec<Join>>,
    /// Conditions that a row must meet, all of them.
    filters: Option<Vec<At<Filter>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
struct G1DestinationTable {
    /// The datastore's type; must be what the datastore says.
    #[serde(rename = "type")]
    type_name: Option<At<String>>,
    /// Name of a datastore.
    datastore_name: At<String>,
    table: At<String>,
    schema: Option<At<String>>,
    /// false = rows are only ever appended. Default: true.
    supports_update: Option<At<bool>>,
    /// Where SyncTool's own tables stand. Default: synctool.
    control_schema: Option<At<String>>,
    alias: Option<Later<Anything>>,
}

impl From<G1File> for PipelineFile {
    fn from(file: G1File) -> Self {
        let source = file.source_provider.data_backend;
        let destination = file.destination_provider.data_backend;
        PipelineFile {
            api_version: file.api_version,
            name: file.name,
            description: file.description,
            enabled: file.enabled,
            transform: None,
            datastores: file.datastores,
            source: SourceFile {
                datastore: source.datastore_name,
                table: source.table,
                schema: source.schema,
                alias: source.alias,
                joins: source.join,
                filters: source.filters,
                type_name: source.type_name,
            },
            destination: DestinationFile {
                datastore: destination.datastore_name,
                table: destination.table,
                schema: destination.schema,
                supports_update: destination.supports_update,
                control_schema: destination.control_schema,
                type_name: destination.type_name,
            },
            columns: file.column_map.map(ColumnsFile::Listed),
            key: None,
            partitioning: None,
            partition_column: file.partition_column,
            partition_step: file.partition_step,
            max_concurrent_partitions: file.max_concurrent_partitions,
            strategies: file.strategies,
            write: file.write,
            sync_type: file.sync_type,
            hash_algo: file.hash_algo,
            enrichment: file.enrichment,
            pipeline_config: file.pipeline_config,
        }
    }
}
