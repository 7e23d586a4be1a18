//! The oldest generation: everything below `sync_job`, with connections written out where they are used.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::datastores::{DatastoreEntry, PostgresConnection};
use super::super::decode::{Anything, Later};
use super::super::error::ConfigError;
use super::super::form::{
    ColumnEntry, ColumnFile, ColumnsFile, DestinationFile, DimensionFile, EnrichmentFile, PartitioningFile,
    PipelineFile, SourceFile, SourceName, StrategyFile,
};
use super::super::pipeline::{Filter, Join, JoinKind};
use super::super::secret::Secret;
use super::super::strategy::StrategyKind;
use super::super::types::SizedType;

/// The form of the original's first examples.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline, oldest generation", deny_unknown_fields)]
pub(in super::super) struct G0File {
    /// The pipeline.
    sync_job: At<Job>,
}

/// The pipeline.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
struct Job {
    /// The pipeline's id. Default: the file's name without its ending.
    name: Option<At<String>>,
    /// What it is for.
    description: Option<At<String>>,
    /// Whether a scheduler may run it. Default: true.
    enabled: Option<At<bool>>,
    /// Where rows come from.
    source_provider: SourceProvider,
    /// Where they go.
    destination_provider: DestinationProvider,
    /// Its `column_mapping.unique_column` is the key.
    source_state_provider: Option<Later<StateProvider>>,
    /// Its `column_mapping.unique_column` is the key.
    destination_state_provider: Option<Later<StateProvider>>,
    /// How runs are cut.
    partition: Option<PartitionFile>,
    /// Partitions worked on at once. Default: the global `workers`.
    max_concurrent_partitions: Option<At<u32>>,
    /// The ways to bring the destination up to date. Default: one named full.
    strategies: Option<Vec<At<OldStrategy>>>,
    /// Tables and computed columns that are added to rows.
    enrichment: Option<EnrichmentFile>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct SourceProvider {
    /// The kind of datastore.
    #[serde(rename = "type")]
    kind: At<ProviderKind>,
    /// How to reach it.
    connection: At<ProviderConnection>,
    /// The table, with its alias behind it.
    table: At<String>,
    schema: Option<At<String>>,
    /// Further tables whose columns come along.
    join: Option<Vec<OldJoin>>,
    /// Conditions that a row must meet, all of them.
    filters: Option<Vec<At<Filter>>>,
    /// The columns. Default: all.
    columns: Option<Vec<At<OldColumn>>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DestinationProvider {
    /// The kind of datastore.
    #[serde(rename = "type")]
    kind: At<ProviderKind>,
    /// How to reach it.
    connection: At<ProviderConnection>,
    /// The table, or the file.
    table: At<String>,
    schema: Option<At<String>>,
    /// false = rows are only ever appended. Default: true.
    supports_update: Option<At<bool>>,
}

/// The kind of a datastore.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum ProviderKind {
    /// A PostgreSQL server.
    Postgres,
    /// Files, in S3 or in a folder (`connection.path`).
    ObjectStorage,
    /// The same in S3.
    S3,
    /// A MySQL server.
    #[serde(rename = "mysql")]
    MySql,
    /// A StarRocks server.
    #[serde(rename = "starrocks")]
    StarRocks,
    /// A ClickHouse server.
    #[serde(rename = "clickhouse")]
    ClickHouse,
}

/// How a datastore is reached.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(
    dead_code,
    reason = "the keys of object stores are read and checked, and not acted upon in this version"
)]
struct ProviderConnection {
    host: Option<At<String>>,
    port: Option<At<u16>>,
    user: Option<At<String>>,
    password: Option<At<Secret>>,
    dbname: Option<At<String>>,
    database: Option<At<String>>,
    schema: Option<At<String>>,
    min_connections: Option<Later<At<u32>>>,
    max_connections: Option<At<u32>>,
    /// A folder of this machine, in place of a bucket.
    path: Option<At<PathBuf>>,
    s3_bucket: Option<At<String>>,
    s3_prefix: Option<At<String>>,
    aws_access_key_id: Option<At<Secret>>,
    aws_secret_access_key: Option<At<Secret>>,
    region: Option<At<String>>,
    endpoint_url: Option<At<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OldJoin {
    /// The table, with its alias behind it.
    table: At<String>,
    alias: Option<At<String>>,
    /// The condition, in the source's SQL.
    on: At<String>,
    /// Which rows stay. Default: inner.
    #[serde(rename = "type", default)]
    kind: At<JoinKind>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OldColumn {
    /// Name at the source, with the table's alias.
    name: At<String>,
    /// Name at the destination.
    dest: Option<At<String>>,
    /// Type at the destination.
    data_type: Option<At<SizedType>>,
    /// Another name of `data_type`.
    dtype: Option<At<SizedType>>,
    /// false = read, and not written. Default: true.
    insert: Option<bool>,
    /// Part of what identifies a row.
    unique_key: Option<bool>,
    /// Has no effect: rows are read in the order in which a run can go on after an interruption.
    order_key: Option<bool>,
    /// Runs are cut along it.
    partition_key: Option<bool>,
}

/// Tables in which the original kept hashes of rows.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "the state stands elsewhere")]
struct StateProvider {
    #[serde(rename = "type")]
    kind: Option<Anything>,
    connection: Option<Anything>,
    table: Option<Anything>,
    column_mapping: Option<StateColumns>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "the state stands elsewhere")]
struct StateColumns {
    /// The columns that identify a row.
    unique_column: Option<Vec<At<String>>>,
    partition_column: Option<Anything>,
    order_column: Option<Anything>,
    row_hash: Option<Anything>,
    block_hash: Option<Anything>,
}

/// How runs are cut.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(
    dead_code,
    reason = "there is one strategy of cutting, and the source knows the type"
)]
struct PartitionFile {
    /// range is the only one.
    strategy: Option<PartitionStrategy>,
    /// The column, as it is called at the source.
    column: At<String>,
    /// Its type.
    #[serde(rename = "type")]
    data_type: Option<At<SizedType>>,
    /// The width of a partition in units of the column.
    step: Option<At<u64>>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum PartitionStrategy {
    /// Ranges of equal width.
    Range,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct OldStrategy {
    /// Its name; where there is no type, the type.
    name: Option<At<String>>,
    /// What it does. Default: what its name says.
    #[serde(rename = "type")]
    kind: Option<At<StrategyKind>>,
    /// The column by which it cuts, and by which a delta tells what changed.
    column: Option<At<String>>,
    /// The type of that column.
    data_type: Option<At<SizedType>>,
    /// The width of a partition in units of the column.
    partition_step: Option<At<u64>>,
    /// The width of a partition inside one.
    sub_partition_step: Option<At<u64>>,
    page_size: Option<At<u32>>,
    cron: Option<At<String>>,
    /// Default: true.
    enabled: Option<At<bool>>,
    /// Whether it may be chosen where none was named. Default: true.
    default: Option<At<bool>>,
}

/// The same in the current form.
pub(super) fn current(file: G0File, errors: &mut Vec<ConfigError>) -> Option<PipelineFile> {
    let job = file.sync_job.into_inner();
    let before = errors.len();
    let mut datastores = BTreeMap::new();
    for (name, kind, connection) in [
        ("source", &job.source_provider.kind, job.source_provider.connection),
        (
            "destination",
            &job.destination_provider.kind,
            job.destination_provider.connection,
        ),
    ] {
        let place = connection.with(());
        match datastore(kind, connection) {
            Ok(entry) => {
                datastores.insert(name.to_owned(), place.with(entry));
            }
            Err(error) => errors.push(error),
        }
    }
    let (table, alias) = with_alias(&job.source_provider.table);
    let columns = job.source_provider.columns.map(|columns| {
        ColumnsFile::Listed(
            columns
                .into_iter()
                .map(|c| ColumnEntry::Mapping(Box::new(column(c))))
                .collect(),
        )
    });
    let unique = |state: Option<Later<StateProvider>>| state?.0.column_mapping?.unique_column;
    let of_state = unique(job.destination_state_provider).or_else(|| unique(job.source_state_provider));
    let partition = job.partition.map(|p| (p.column, p.step));
    let strategies = job.strategies.map(|strategies| {
        let mut current = Vec::new();
        for old in strategies {
            current.extend(strategy(old, errors));
        }
        current
    });
    let source = SourceFile {
        datastore: job.source_provider.kind.with("source".to_owned()),
        table: Some(table),
        tables: None,
        schema: job.source_provider.schema,
        alias,
        joins: job
            .source_provider
            .join
            .map(|joins| joins.into_iter().map(join).collect()),
        filters: job.source_provider.filters,
        type_name: None,
    };
    let destination = DestinationFile {
        datastore: job.destination_provider.kind.with("destination".to_owned()),
        table: Some(job.destination_provider.table),
        schema: job.destination_provider.schema,
        supports_update: job.destination_provider.supports_update,
        distinct_keys: None,
        control_schema: None,
        type_name: None,
    };
    (errors.len() == before).then_some(PipelineFile {
        name: job.name,
        description: job.description,
        enabled: job.enabled,
        datastores: Some(datastores),
        columns,
        key: of_state,
        partitioning: partition.map(|(column, step)| PartitioningFile {
            column: Some(column),
            step,
        }),
        max_concurrent_partitions: job.max_concurrent_partitions,
        strategies,
        enrichment: job.enrichment,
        ..PipelineFile::new(source, destination)
    })
}

fn datastore(kind: &At<ProviderKind>, connection: At<ProviderConnection>) -> Result<DatastoreEntry, ConfigError> {
    let place = connection.with(());
    let c = connection.into_inner();
    let server = PostgresConnection {
        host: c.host,
        port: c.port,
        user: c.user,
        password: c.password,
        dbname: c.dbname,
        database: c.database,
        schema: c.schema,
        min_connections: c.min_connections,
        max_connections: c.max_connections,
        ..PostgresConnection::default()
    };
    Ok(match (**kind, c.path) {
        (ProviderKind::Postgres, _) => DatastoreEntry::postgres(place.with(server)),
        (ProviderKind::ObjectStorage, Some(path)) => DatastoreEntry::parquet(path),
        (ProviderKind::ObjectStorage | ProviderKind::S3, _) if c.s3_bucket.is_none() => {
            return Err(place
                .error("missing key \"s3_bucket\" in the connection of an object store")
                .with_help("name the bucket, or a folder of this machine by path"));
        }
        (ProviderKind::ObjectStorage | ProviderKind::S3, _) => DatastoreEntry::S3(Anything),
        (ProviderKind::MySql, _) => DatastoreEntry::mysql(place.with(server)),
        (ProviderKind::StarRocks, _) => DatastoreEntry::StarRocks(Anything),
        (ProviderKind::ClickHouse, _) => DatastoreEntry::ClickHouse(Anything),
    })
}

/// `users u` → table and alias.
fn with_alias(table: &At<String>) -> (At<String>, Option<At<String>>) {
    let mut words = table.split_whitespace().filter(|word| !word.eq_ignore_ascii_case("as"));
    match (words.next(), words.next(), words.next()) {
        (Some(name), Some(alias), None) => (table.with(name.to_owned()), Some(table.with(alias.to_owned()))),
        _ => (table.clone(), None),
    }
}

fn join(old: OldJoin) -> Join {
    let (table, alias) = with_alias(&old.table);
    Join {
        table,
        schema: None,
        alias: old.alias.or(alias),
        on: old.on,
        kind: old.kind,
    }
}

fn column(old: At<OldColumn>) -> At<ColumnFile> {
    let place = old.with(());
    let old = old.into_inner();
    place.with(ColumnFile {
        source: SourceName::Column(old.name),
        dest: old.dest,
        data_type: old.data_type.or(old.dtype),
        insert: old.insert,
        unique_column: old.unique_key,
        order_column: old.order_key,
        partition_column: old.partition_key,
        ..ColumnFile::default()
    })
}

fn strategy(old: At<OldStrategy>, errors: &mut Vec<ConfigError>) -> Option<At<StrategyFile>> {
    let place = old.with(());
    let old = old.into_inner();
    let by_name = || {
        let name = old.name.as_ref()?;
        let kinds = [StrategyKind::Full, StrategyKind::Delta, StrategyKind::Hash];
        kinds
            .into_iter()
            .find(|k| k.name() == name.as_str())
            .map(|kind| name.with(kind))
    };
    let Some(kind) = old.kind.clone().or_else(by_name) else {
        errors.push(
            place
                .error("missing key \"type\" in a strategy whose name is none")
                .with_help("types: full, delta, hash"),
        );
        return None;
    };
    let primary = old
        .column
        .clone()
        .filter(|_| old.partition_step.is_some())
        .map(|column| vec![place.with(DimensionFile::range(column, old.partition_step, old.data_type))]);
    Some(place.with(StrategyFile {
        name: old.name,
        column: old.column.filter(|_| kind.has_cursor()),
        primary_partitions: primary,
        sub_partition_step: old.sub_partition_step,
        page_size: old.page_size,
        cron: old.cron,
        enabled: old.enabled,
        default: old.default,
        ..StrategyFile::new(kind)
    }))
}
