//! The first generation, in both of its dialects: `source_provider`, `destination_provider`, `column_map`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::datastores::DatastoreEntry;
use super::super::decode::{Anything, Later};
use super::super::form::{
    ColumnEntry, ColumnsFile, DataFetchFile, DestinationFile, EnrichmentFile, PipelineConfigFile, PipelineFile,
    SourceFile, StrategyFile, WriteFile,
};
use super::super::pipeline::{Filter, Join, SchemaDrift, SyncType};
use super::super::strategy::HashAlgorithm;

/// The form of the original's first guides.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline, first generation", deny_unknown_fields)]
pub(in super::super) struct G1File {
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
    /// What the unit of the sync is. Default: row-level.
    sync_type: Option<At<SyncType>>,
    /// The columns that make a group of an aggregate.
    group_by: Option<Vec<At<String>>>,
    /// What happens when the source's columns change. Left out, nobody watches them: where all columns go along, new ones
    /// are added; a list stays what it is.
    schema_drift: Option<At<SchemaDrift>>,
    /// The algorithm of hashes.
    hash_algo: Option<At<HashAlgorithm>>,
    /// Tables and computed columns that are added to rows.
    enrichment: Option<EnrichmentFile>,
    /// Stages of every strategy.
    pipeline_config: Option<PipelineConfigFile>,
    /// Its `page_size` is that of strategies which say none.
    data_fetch: Option<DataFetchFile>,
    /// Another name of `column_map`.
    columns: Option<Vec<ColumnEntry>>,
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
    /// true = no two keys are equal in the destination's collation, whatever it calls equal. Default: false.
    distinct_keys: Option<At<bool>>,
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
            source: At::from(SourceFile {
                datastore: source.datastore_name,
                table: Some(source.table),
                tables: None,
                schema: source.schema,
                alias: source.alias,
                joins: source.join,
                filters: source.filters,
                type_name: source.type_name,
            }),
            destination: At::from(DestinationFile {
                datastore: destination.datastore_name,
                table: Some(destination.table),
                schema: destination.schema,
                supports_update: destination.supports_update,
                distinct_keys: destination.distinct_keys,
                control_schema: destination.control_schema,
                type_name: destination.type_name,
            }),
            columns: file.column_map.or(file.columns).map(ColumnsFile::Listed),
            key: None,
            partitioning: None,
            partition_column: file.partition_column,
            partition_step: file.partition_step,
            max_concurrent_partitions: file.max_concurrent_partitions,
            strategies: file.strategies,
            write: file.write,
            sync_type: file.sync_type,
            group_by: file.group_by,
            schema_drift: file.schema_drift,
            hash_algo: file.hash_algo,
            enrichment: file.enrichment,
            pipeline_config: file.pipeline_config,
            data_fetch: file.data_fetch,
        }
    }
}
