//! The current form of a pipeline file, and how it resolves to the model. Older generations are turned into this form
//! first (`generations.rs`), so that rules and defaults stand here once.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::at::At;
use super::datastores::DatastoreEntry;
use super::decode::{Anything, Later, Notice};
use super::error::{ConfigError, nearest};
use super::pipeline::{
    ColumnMapping, Columns, Destination, Direction, Filter, FullMode, Join, Partitioning, Pipeline, Roles, Source,
    Strategy, StrategyKind, Transform, Verify, Write,
};
use super::types::{DataType, SizedType};

/// A pipeline: keeps one table equal to another.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool pipeline", deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) struct PipelineFile {
    /// Version of the configuration's form; may be left out.
    #[serde(rename = "apiVersion")]
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
    pub(super) source: SourceFile,
    /// Where they go.
    pub(super) destination: DestinationFile,
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
    /// What happens to rows on their way, in this order. Default: nothing.
    pub(super) transform: Option<Vec<Transform>>,
    /// The ways to bring the destination up to date. Default: one named full.
    pub(super) strategies: Option<Vec<At<StrategyFile>>>,
    /// What the destination may be asked to do.
    pub(super) write: Option<WriteFile>,
    /// Only row-level is in this version.
    pub(super) sync_type: Option<At<SyncType>>,
    pub(super) hash_algo: Option<Later<HashAlgorithm>>,
    pub(super) enrichment: Option<Later<Anything>>,
    pub(super) pipeline_config: Option<Later<Anything>>,
}

/// Where rows come from.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct SourceFile {
    /// Name of a datastore.
    pub(super) datastore: At<String>,
    /// The table, with its schema before a dot where it is not the connection's own.
    pub(super) table: At<String>,
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
    /// The table, with its schema before a dot where it is not the connection's own.
    pub(super) table: At<String>,
    /// The schema, where it stands apart; the table's name is then taken as it is.
    pub(super) schema: Option<At<String>>,
    /// false = rows are only ever appended. Default: true.
    pub(super) supports_update: Option<At<bool>>,
    /// Where SyncTool's own tables stand. Default: synctool.
    pub(super) control_schema: Option<At<String>>,
    #[serde(skip)]
    pub(super) type_name: Option<At<String>>,
}

/// Which columns go along: the word all, or a list of names and mappings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Columns", untagged)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) enum ColumnsFile {
    #[serde(rename = "text")]
    All(At<AllColumns>),
    #[serde(rename = "list")]
    Listed(Vec<ColumnEntry>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum AllColumns {
    /// Every column of the source.
    All,
}

/// A column: its name, or how it is mapped.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Column", untagged)]
pub(super) enum ColumnEntry {
    #[serde(rename = "text")]
    Name(At<String>),
    #[serde(rename = "map")]
    Mapping(Box<At<ColumnFile>>),
}

/// How a column is mapped.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) struct ColumnFile {
    /// The column's name at both ends, where `source` and `dest` do not say otherwise.
    pub(super) name: Option<At<String>>,
    /// Name at the source, with the table's alias where there are joins; null = made on the way.
    #[serde(default)]
    pub(super) source: SourceName,
    /// Another name of `source`.
    #[serde(default)]
    pub(super) src: SourceName,
    /// Name at the destination. Default: that of the source.
    pub(super) dest: Option<At<String>>,
    /// Type at the destination. Default: the source's.
    pub(super) data_type: Option<At<SizedType>>,
    /// Another name of `data_type`.
    #[serde(rename = "type")]
    pub(super) type_: Option<At<SizedType>>,
    /// Digits of a decimal.
    pub(super) precision: Option<At<u32>>,
    /// Digits after the point.
    pub(super) scale: Option<At<u32>>,
    /// Characters of a varchar or char.
    pub(super) length: Option<At<u32>>,
    /// Another name of `length`.
    pub(super) max_length: Option<At<u32>>,
    /// What the column is for.
    #[serde(default)]
    pub(super) roles: Vec<At<Role>>,
    /// The role of the same name.
    pub(super) unique_column: Option<bool>,
    /// The role of the same name.
    pub(super) order_column: Option<bool>,
    /// Up or down, for the order column.
    pub(super) direction: Option<Direction>,
    /// The role of the same name.
    pub(super) partition_column: Option<bool>,
    /// The role of the same name.
    pub(super) delta_column: Option<bool>,
    /// The column stores the hash of a row.
    pub(super) hash_key: Option<bool>,
    /// Whether the column counts in comparisons.
    pub(super) hash_column: Option<bool>,
    /// Whether NULL is allowed at the destination. Default: as at the source.
    pub(super) nullable: Option<bool>,
    /// Carried as text.
    pub(super) as_text: Option<bool>,
    /// false = read, and not written. Default: true.
    pub(super) insert: Option<bool>,
    #[serde(rename = "virtual")]
    pub(super) virtual_: Option<Later<bool>>,
    pub(super) expr: Option<Later<String>>,
}

/// A name, nothing (made on the way), or not said.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "SourceName", untagged)]
pub(super) enum SourceName {
    #[default]
    #[serde(skip)]
    NotSaid,
    #[serde(rename = "null")]
    Made,
    #[serde(rename = "text")]
    Column(At<String>),
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    /// Part of what identifies a row.
    Unique,
    /// The same as unique.
    UniqueColumn,
    /// Runs are cut into partitions along it.
    Partition,
    /// The same as partition.
    PartitionColumn,
    /// Rows are ordered by it.
    Order,
    /// The same as order.
    OrderColumn,
    /// It says when a row changed.
    Delta,
    /// The same as delta.
    DeltaColumn,
    /// It stores the hash of a row.
    HashKey,
    /// It comes from another table on the way.
    EnrichedKey,
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

/// One way to bring the destination up to date.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) struct StrategyFile {
    /// Its name, unique in the pipeline. Default: its type.
    name: Option<At<String>>,
    /// What it does.
    #[serde(rename = "type")]
    kind: At<StrategyKind>,
    /// The column that says when a row changed.
    column: Option<At<String>>,
    /// When a scheduler runs it: minute, hour, day of month, month, day of week.
    cron: Option<At<String>>,
    /// Default: true.
    enabled: Option<At<bool>>,
    /// Whether it may be chosen where none was named. Default: true.
    default: Option<At<bool>>,
    /// Rows per page, the unit of commit inside a partition. Default: by bytes.
    page_size: Option<At<u32>>,
    /// How a full run replaces. Default: swap when the pipeline made the table, else upsert.
    full_mode: Option<At<FullMode>>,
    /// What a run proves before it is done. Default: what costs nothing extra.
    verify: Option<At<Verify>>,
    use_pagination: Option<Later<bool>>,
    use_sub_partition: Option<Later<bool>>,
    sub_partition_step: Option<Later<u64>>,
    prevent_update_unless_changed: Option<Later<bool>>,
    match_row_count: Option<Later<bool>>,
    primary_partitions: Option<Later<Vec<DimensionFile>>>,
    secondary_partitions: Option<Later<Vec<DimensionFile>>>,
    delta_partitions: Option<Later<Vec<DimensionFile>>>,
    pipeline_config: Option<Later<Anything>>,
    data_fetch: Option<Later<Anything>>,
}

/// One dimension along which a strategy cuts.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
struct DimensionFile {
    /// The column.
    column: At<String>,
    /// The width; -1 = one per distinct value.
    step: Option<i64>,
    /// What the width counts in. Default: seconds for times.
    step_unit: Option<StepUnit>,
    /// The column's type.
    data_type: Option<SizedType>,
    /// By range or by value. Default: range.
    #[serde(rename = "type")]
    kind: Option<DimensionKind>,
    /// Whether only the last step is looked at in a first run.
    bounded: Option<bool>,
    start: Option<Anything>,
    end: Option<Anything>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum StepUnit {
    Second,
    Timestamp,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DimensionKind {
    Range,
    Value,
    UpperBound,
    LowerBound,
}

/// What the destination may be asked to do.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct WriteFile {
    /// Deletes of more than 30 % and more than 1,000 rows, and an empty source, are carried out. Default: false.
    allow_mass_delete: Option<At<bool>>,
}

/// The unit of the sync.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum SyncType {
    /// Rows.
    RowLevel,
    /// Groups.
    Aggregate,
}

/// The algorithm of row hashes.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum HashAlgorithm {
    /// Sums of 32-bit numbers.
    Md5SumHash,
    /// An MD5 of MD5s.
    HashMd5Hash,
}

// ---------------------------------------------------------------------------------------------------------------------
// From the form to the model

/// Resolves a file. `stem` is its name without the ending, the default of the pipeline's. Mistakes go to `errors`; the
/// result is then only good for finding more of them.
pub(super) fn resolve(file: PipelineFile, stem: &str, not_yet: Vec<Notice>, errors: &mut Vec<ConfigError>) -> Pipeline {
    let name = file.name.unwrap_or_else(|| stem.into());
    check_name(&name, errors);
    if let Some(kind) = file.sync_type.as_ref().filter(|kind| ***kind == SyncType::Aggregate) {
        errors.push(
            kind.error("sync_type aggregate is not in this version yet")
                .with_help("this version copies rows: sync_type row-level"),
        );
    }
    let columns = match file.columns {
        None | Some(ColumnsFile::All(_)) => Columns::All,
        Some(ColumnsFile::Listed(entries)) => {
            Columns::Listed(entries.into_iter().filter_map(|entry| column(entry, errors)).collect())
        }
    };
    let listed: &[ColumnMapping] = match &columns {
        Columns::All => &[],
        Columns::Listed(columns) => columns,
    };
    check_columns(listed, errors);

    let key = match file.key {
        Some(key) => {
            for name in &key {
                known_column(name, "key", listed, errors);
            }
            key
        }
        None => listed
            .iter()
            .filter(|c| c.roles.unique)
            .map(|c| c.dest.clone())
            .collect(),
    };
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
    let strategies = strategies(file.strategies.unwrap_or_default(), listed, errors);
    let source = Source {
        datastore: file.source.datastore,
        table: file.source.table,
        schema: file.source.schema,
        alias: file.source.alias,
        joins: file.source.joins.unwrap_or_default(),
        filters: file.source.filters.unwrap_or_default(),
        type_name: file.source.type_name,
    };
    let destination = Destination {
        datastore: file.destination.datastore,
        table: file.destination.table,
        schema: file.destination.schema,
        supports_update: file.destination.supports_update.unwrap_or_else(|| true.into()),
        control_schema: file.destination.control_schema,
        type_name: file.destination.type_name,
    };
    for (key, value) in [
        ("source.datastore", &source.datastore),
        ("source.table", &source.table),
        ("destination.datastore", &destination.datastore),
        ("destination.table", &destination.table),
    ] {
        if value.trim().is_empty() {
            errors.push(value.error(format!("{key} is empty")));
        }
    }
    Pipeline {
        name,
        description: file.description,
        enabled: file.enabled.unwrap_or_else(|| true.into()),
        source,
        destination,
        columns,
        key,
        partitioning,
        max_concurrent_partitions: file.max_concurrent_partitions,
        transform: file.transform.unwrap_or_default(),
        strategies,
        write: Write {
            allow_mass_delete: file.write.and_then(|w| w.allow_mass_delete).unwrap_or_default(),
        },
        not_yet,
    }
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

fn column(entry: ColumnEntry, errors: &mut Vec<ConfigError>) -> Option<ColumnMapping> {
    let file = match entry {
        ColumnEntry::Name(name) => return Some(ColumnMapping::same(name)),
        ColumnEntry::Mapping(file) => *file,
    };
    let place = file.with(());
    let file = file.into_inner();
    let source = match (file.source, file.src) {
        (SourceName::Column(_) | SourceName::Made, SourceName::Column(_) | SourceName::Made) => {
            errors.push(place.error("source and src of a column are the same key"));
            return None;
        }
        (SourceName::Column(name), _) | (_, SourceName::Column(name)) => Some(name),
        (SourceName::Made, _) | (_, SourceName::Made) => None,
        (SourceName::NotSaid, SourceName::NotSaid) => match file.name.clone().or_else(|| file.dest.clone()) {
            Some(name) => Some(name),
            None => {
                errors.push(place.error("a column needs its name: source, dest or name"));
                return None;
            }
        },
    };
    let Some(dest) = file
        .dest
        .or(file.name)
        .or_else(|| source.as_ref().map(|s| s.with(last_part(s))))
    else {
        errors.push(place.error("a column without a source needs dest"));
        return None;
    };
    if let (Some(_), Some(second)) = (&file.data_type, &file.type_) {
        errors.push(second.error("type and data_type of a column are the same key"));
    }
    if let (Some(_), Some(second)) = (&file.length, &file.max_length) {
        errors.push(second.error("length and max_length of a column are the same key"));
    }
    let sized = file.data_type.or(file.type_);
    let data_type = sized.as_ref().map(|t| t.data_type);
    let (precision, scale) = (file.precision, file.scale);
    let length = file.length.or(file.max_length);
    for (key, value) in [("precision", &precision), ("scale", &scale)] {
        if let (Some(value), Some(other)) = (value, data_type.filter(|t| *t != DataType::Decimal)) {
            errors.push(value.error(format!(
                "{key} belongs to decimal, and column {} is {other}",
                dest.shown()
            )));
        }
    }
    if let (Some(value), Some(other)) = (
        &length,
        data_type.filter(|t| !matches!(t, DataType::Varchar | DataType::Char)),
    ) {
        errors.push(value.error(format!(
            "length belongs to varchar and char, and column {} is {other}",
            dest.shown()
        )));
    }
    let sizes = sized.as_ref().map_or([None, None], |t| t.sizes);
    let decimal = data_type == Some(DataType::Decimal);
    let in_brackets = |i: usize, of_decimal: bool| sizes[i].filter(|_| decimal == of_decimal);
    let digits = precision.as_deref().copied().or(in_brackets(0, true));
    let after_point = scale.as_deref().copied().or(in_brackets(1, true));
    if let Some(scale_value) = after_point
        && digits.is_none_or(|digits| scale_value > digits)
    {
        let at = scale
            .as_ref()
            .map(|s| s.with(()))
            .or(sized.as_ref().map(|s| s.with(())))
            .unwrap_or(place);
        errors.push(at.error(match digits {
            Some(digits) => format!(
                "scale {scale_value} of column {} is more than its precision {digits}",
                dest.shown()
            ),
            None => format!("column {} has a scale and no precision", dest.shown()),
        }));
    }
    let length_value = length.as_deref().copied().or(in_brackets(0, false));
    if digits == Some(0) || length_value == Some(0) {
        let at = precision
            .as_ref()
            .or(length.as_ref())
            .map(|n| n.with(()))
            .or(sized.as_ref().map(|s| s.with(())));
        errors.push(at.unwrap_or_default().error(format!(
            "precision and length of column {} must be at least 1",
            dest.shown()
        )));
    }
    let has = |plain: Role, long: Role| file.roles.iter().any(|r| **r == plain || **r == long);
    let roles = Roles {
        unique: has(Role::Unique, Role::UniqueColumn) || file.unique_column == Some(true),
        partition: has(Role::Partition, Role::PartitionColumn) || file.partition_column == Some(true),
        order: (has(Role::Order, Role::OrderColumn) || file.order_column == Some(true))
            .then(|| file.direction.unwrap_or_default()),
        delta: has(Role::Delta, Role::DeltaColumn) || file.delta_column == Some(true),
        hash_key: has(Role::HashKey, Role::HashKey) || file.hash_key == Some(true),
        enriched: has(Role::EnrichedKey, Role::EnrichedKey),
    };
    Some(ColumnMapping {
        source,
        dest,
        data_type: sized.map(|t| t.with(t.data_type)),
        precision: digits,
        scale: after_point,
        length: length_value,
        roles,
        nullable: file.nullable,
        as_text: file.as_text.unwrap_or(false),
        insert: file.insert.unwrap_or(true),
        hashed: file.hash_column,
    })
}

/// `o.id` → `id`.
fn last_part(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_owned()
}

fn check_columns(columns: &[ColumnMapping], errors: &mut Vec<ConfigError>) {
    for (i, column) in columns.iter().enumerate() {
        if column.dest.trim().is_empty() {
            errors.push(column.dest.error("a column's name is empty"));
        } else if columns[..i].iter().any(|c| *c.dest == *column.dest) {
            errors.push(
                column
                    .dest
                    .error(format!("column \"{}\" is written twice", column.dest.shown())),
            );
        }
    }
    type Has = fn(&Roles) -> bool;
    let at_most_one: [(&str, Has); 3] = [
        ("partition_column", |roles| roles.partition),
        ("delta_column", |roles| roles.delta),
        ("hash_key", |roles| roles.hash_key),
    ];
    for (role, has) in at_most_one {
        let mut with_role = columns.iter().filter(|c| has(&c.roles));
        if let (Some(first), Some(second)) = (with_role.next(), with_role.next()) {
            errors.push(second.dest.error(format!(
                "two columns have the role {role}: {} and {}",
                first.dest.shown(),
                second.dest.shown()
            )));
        }
    }
}

/// A column that is named elsewhere must be among those listed, where they are listed.
fn known_column<'a>(
    name: &At<String>,
    whose: &str,
    listed: &'a [ColumnMapping],
    errors: &mut Vec<ConfigError>,
) -> Option<&'a ColumnMapping> {
    let found = listed.iter().find(|c| c.is_called(name));
    if found.is_none() && !listed.is_empty() {
        let error = name.error(format!(
            "{whose} names \"{}\", which is not among the columns",
            name.shown()
        ));
        errors.push(match nearest(name, listed.iter().map(|c| c.dest.as_str())) {
            Some(candidate) => error.with_help(format!("did you mean \"{candidate}\"?")),
            None => error,
        });
    }
    found
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
    let mapped = role.or_else(|| listed.iter().find(|c| named.as_ref().is_some_and(|n| c.is_called(n))));
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

fn strategies(files: Vec<At<StrategyFile>>, listed: &[ColumnMapping], errors: &mut Vec<ConfigError>) -> Vec<Strategy> {
    if files.is_empty() {
        return vec![Strategy::new(StrategyKind::Full)];
    }
    let mut strategies: Vec<Strategy> = Vec::with_capacity(files.len());
    for file in files {
        let place = file.with(());
        let file = file.into_inner();
        let kind = file.kind;
        let name = file.name.unwrap_or_else(|| kind.with(kind.name().to_owned()));
        if let Some(twin) = strategies.iter().find(|s| *s.name == *name) {
            let first = twin
                .name
                .origin()
                .map(|o| format!("the first stands in line {}", o.line));
            let error = name.error(format!("two strategies are named \"{}\"", name.shown()));
            errors.push(match first {
                Some(help) => error.with_help(help),
                None => error,
            });
        }
        let by_dimension = || Some(file.primary_partitions.as_ref()?.0.first()?.column.clone());
        let by_role = || listed.iter().find(|c| c.roles.delta)?.source.clone();
        let column = match *kind {
            StrategyKind::Delta | StrategyKind::Aggregate => {
                let column = file.column.or_else(by_dimension).or_else(by_role);
                if column.is_none() {
                    errors.push(
                        place
                            .error(format!(
                                "strategy \"{}\" of type {} needs a column",
                                name.shown(),
                                kind.name()
                            ))
                            .with_help("say which column tells when a row changed, such as column: updated_at"),
                    );
                }
                column
            }
            _ => file.column,
        };
        // Where a mapping names it, the mapping's name at the source is meant.
        let column = column.map(|named| {
            let mapped = listed
                .iter()
                .find(|c| c.is_called(&named))
                .and_then(|c| c.source.as_ref());
            mapped.map_or_else(|| named.clone(), |source| named.with(source.to_string()))
        });
        if let Some(cron) = &file.cron
            && !looks_like_cron(cron)
        {
            errors.push(
                cron.error(format!("cron of strategy \"{}\" is not a schedule", name.shown()))
                    .with_help("write five fields: minute hour day-of-month month day-of-week, such as 0 * * * *"),
            );
        }
        if let Some(zero) = file.page_size.as_ref().filter(|n| ***n == 0) {
            errors.push(zero.error("page_size must be at least 1"));
        }
        if let Some(mode) = file.full_mode.as_ref().filter(|_| *kind != StrategyKind::Full) {
            errors.push(mode.error(format!(
                "full_mode belongs to strategies of type full, and \"{}\" is {}",
                name.shown(),
                kind.name()
            )));
        }
        strategies.push(Strategy {
            name,
            kind,
            column,
            cron: file.cron,
            enabled: file.enabled.unwrap_or_else(|| true.into()),
            default: file.default.unwrap_or_else(|| true.into()),
            page_size: file.page_size,
            full_mode: file.full_mode,
            verify: file.verify,
        });
    }
    strategies
}

/// Five fields of the usual characters; the scheduler reads them in earnest.
fn looks_like_cron(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    fields.len() == 5
        && fields
            .iter()
            .all(|f| f.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-#?".contains(c)))
}
