//! The model of a strategy: one way to bring the destination up to date, and how its work is cut.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::at::At;
use super::types::DataType;
use super::units::{ByteSize, Span};

/// One way to bring the destination up to date.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Strategy {
    /// Its name, unique in the pipeline.
    pub name: At<String>,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: At<StrategyKind>,
    /// What it is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<At<String>>,
    /// The column that says when a row changed, as it is called at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<At<String>>,
    /// Who writes that column; none = the database (a delta may then trust open transactions alone).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stamped_by: Option<At<StampedBy>>,
    /// How far behind now the upper bound stays, for a column that applications stamp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lag: Option<At<Span>>,
    /// What is taken off the oldest open transaction's start; none = 1 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin: Option<At<Span>>,
    /// The zone of times without one, for partitions and bounds; none = UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<At<String>>,
    /// How rows that are gone at the source are found; none = the strategy's own way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deletes: Option<At<Deletes>>,
    /// Joined tables whose own changes count, and the columns that tell.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cursor_tables: Vec<CursorTable>,
    /// How the work is cut; empty = by [`Partitioning`](super::Partitioning) of the pipeline, else as the data suggests.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub primary_partitions: Vec<Dimension>,
    /// How a primary partition is cut again. Never without primary ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secondary_partitions: Vec<Dimension>,
    /// What identifies the groups that changed rows belong to (aggregates by delta). They are those of `group_by`: what
    /// stands here and not there has no effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub delta_partitions: Vec<Dimension>,
    /// Partitions worked on at once in this strategy; none = the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent_partitions: Option<At<u32>>,
    /// Rows per page. Without effect: rows are read in one stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_size: Option<At<u32>>,
    /// The algorithm of this strategy's hashes; none = the pipeline's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hash_algo: Option<At<HashAlgorithm>>,
    /// Only rows that differ are written: always so, whatever is said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prevent_update_unless_changed: Option<At<bool>>,
    /// Without effect: rows are always counted, and hashes compared beside the counts.
    pub match_row_count: At<bool>,
    /// How a full run replaces; none = swap when the pipeline made the table, else upsert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_mode: Option<At<FullMode>>,
    /// What a run proves before it is done; none = what costs nothing extra.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<At<Verify>>,
    /// How a log is followed.
    #[serde(flatten)]
    pub log: LogSettings,
    /// When a scheduler runs it. Without effect: this version has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cron: Option<At<String>>,
    /// Whether it may run.
    pub enabled: At<bool>,
    /// Whether it may be chosen where none was named.
    pub default: At<bool>,
    /// What a scheduler does when a lock is held or a run fails.
    #[serde(flatten)]
    pub scheduling: Scheduling,
}

impl Strategy {
    /// A strategy of a kind, named after it, with every default.
    pub fn new(kind: StrategyKind) -> Self {
        Self {
            name: kind.name().into(),
            kind: kind.into(),
            description: None,
            column: None,
            stamped_by: None,
            lag: None,
            margin: None,
            time_zone: None,
            deletes: None,
            cursor_tables: Vec::new(),
            primary_partitions: Vec::new(),
            secondary_partitions: Vec::new(),
            delta_partitions: Vec::new(),
            max_concurrent_partitions: None,
            page_size: None,
            hash_algo: None,
            prevent_update_unless_changed: None,
            match_row_count: true.into(),
            full_mode: None,
            verify: None,
            log: LogSettings::default(),
            cron: None,
            enabled: true.into(),
            default: true.into(),
            scheduling: Scheduling::default(),
        }
    }

    /// All the dimensions it cuts along: primary, secondary, delta.
    pub fn dimensions(&self) -> impl Iterator<Item = &Dimension> {
        self.primary_partitions
            .iter()
            .chain(&self.secondary_partitions)
            .chain(&self.delta_partitions)
    }
}

/// What a strategy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StrategyKind {
    /// Reads everything.
    Full,
    /// Reads what changed since the last run, by a column.
    Delta,
    /// Compares both ends and repairs what differs.
    Hash,
    /// Recomputes the groups whose rows changed: the delta of a pipeline of sync_type aggregate.
    Aggregate,
    /// Follows the source's log.
    Log,
}

impl StrategyKind {
    /// The word of the `type` key.
    pub fn name(self) -> &'static str {
        match self {
            StrategyKind::Full => "full",
            StrategyKind::Delta => "delta",
            StrategyKind::Hash => "hash",
            StrategyKind::Aggregate => "aggregate",
            StrategyKind::Log => "log",
        }
    }

    /// Whether it goes by a column that tells when a row changed.
    pub fn has_cursor(self) -> bool {
        matches!(self, StrategyKind::Delta | StrategyKind::Aggregate)
    }
}

/// Who writes the column that says when a row changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StampedBy {
    /// The database, at the transaction's start or later (a default, a trigger).
    Database,
    /// Applications, by their own clocks: bounds lag behind, and a hash run repairs what came later still.
    App,
}

/// How rows that are gone at the source are found.
#[derive(Debug, Clone, PartialEq)]
pub enum Deletes {
    /// Not at all.
    None,
    /// By comparing the keys of both ends.
    AntiJoin,
    /// A column of the source says it.
    Tombstone(Tombstone),
}

/// A column that says that a row is deleted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Tombstone {
    /// The column, as it is called at the source.
    pub column: At<String>,
    /// Its value in deleted rows. Default: true for a boolean column, anything but NULL for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<At<String>>,
}

impl Serialize for Deletes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Deletes::None => serializer.serialize_str("none"),
            Deletes::AntiJoin => serializer.serialize_str("anti_join"),
            Deletes::Tombstone(tombstone) => {
                use serde::ser::SerializeMap;
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry("tombstone", tombstone)?;
                map.end()
            }
        }
    }
}

/// A joined table whose own changes count.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CursorTable {
    /// The table's alias, or its name where it has none.
    pub table: At<String>,
    /// The column of it that says when a row changed.
    pub column: At<String>,
}

/// One dimension along which work is cut.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Dimension {
    /// The column as it is called at the source (`o.id`), or its name in the pipeline where it is an expression.
    pub column: At<String>,
    /// What stands for it at the source, where that is an expression of the source's SQL. Follows from the columns.
    #[serde(skip)]
    pub expr: Option<At<String>>,
    /// What it is at the destination: a column, or an expression of a virtual column; none = it is not there. Follows
    /// from the columns.
    #[serde(skip)]
    pub destination: Option<At<String>>,
    /// By ranges, by values or by a list.
    #[serde(rename = "type")]
    pub kind: At<DimensionKind>,
    /// How wide a range is, in `step_unit`s for times, in the first 32 bits for UUIDs; none = one piece from `start` to
    /// `end`, and where neither is said as the data suggests. Texts have no steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<At<u64>>,
    /// What a step counts in; none = seconds for times, days for dates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_unit: Option<At<StepUnit>>,
    /// The type as written; none = what the source's catalog says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<At<DataType>>,
    /// The zone in which days, weeks and months begin; none = the strategy's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<At<String>>,
    /// Whether a first run looks at the last step only.
    pub bounded: At<bool>,
    /// The first value inside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<At<Bound>>,
    /// The first value behind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<At<Bound>>,
    /// The values of a list, as texts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<At<String>>,
    /// Whether no row ever changes the column.
    #[serde(skip_serializing_if = "is_false")]
    pub immutable: At<bool>,
}

fn is_false(said: &At<bool>) -> bool {
    !**said
}

impl Dimension {
    /// A dimension by ranges whose width the data decides.
    pub fn range(column: At<String>) -> Self {
        Self {
            column,
            expr: None,
            destination: None,
            kind: DimensionKind::Range.into(),
            step: None,
            step_unit: None,
            data_type: None,
            time_zone: None,
            bounded: false.into(),
            start: None,
            end: None,
            values: Vec::new(),
            immutable: false.into(),
        }
    }
}

/// How a dimension is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DimensionKind {
    /// Ranges of equal width, each from its start to before the next one's.
    #[default]
    Range,
    /// One per distinct value.
    Value,
    /// One per value of a list.
    List,
}

/// What a step counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StepUnit {
    /// Seconds.
    Second,
    /// The same as second.
    Timestamp,
    /// Minutes.
    Minute,
    /// Hours.
    Hour,
    /// Days.
    Day,
    /// Weeks, from Monday 1970-01-05.
    Week,
    /// Months, from 1970-01.
    Month,
    /// Quarters, from 1970-01.
    Quarter,
    /// Years.
    Year,
}

impl StepUnit {
    /// Whether a date can be cut by it.
    pub fn is_whole_days(self) -> bool {
        !matches!(
            self,
            StepUnit::Second | StepUnit::Timestamp | StepUnit::Minute | StepUnit::Hour
        )
    }

    /// The word that is printed.
    pub fn name(self) -> &'static str {
        match self {
            StepUnit::Second | StepUnit::Timestamp => "second",
            StepUnit::Minute => "minute",
            StepUnit::Hour => "hour",
            StepUnit::Day => "day",
            StepUnit::Week => "week",
            StepUnit::Month => "month",
            StepUnit::Quarter => "quarter",
            StepUnit::Year => "year",
        }
    }
}

/// An end of a dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Bound {
    /// A value, as text.
    Value(String),
    /// A moment reckoned from when the run begins.
    Moment {
        /// From the last midnight of the dimension's zone, and not from the moment itself.
        midnight: bool,
        /// Seconds after it; negative = before.
        seconds: i64,
    },
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Bound::Value(text) => f.write_str(text),
            Bound::Moment { midnight, seconds } => {
                f.write_str(if *midnight { "today" } else { "now" })?;
                match seconds.cmp(&0) {
                    std::cmp::Ordering::Equal => Ok(()),
                    order => {
                        let sign = if order.is_lt() { '-' } else { '+' };
                        write!(f, " {sign} {}", Span::seconds(seconds.unsigned_abs()))
                    }
                }
            }
        }
    }
}

impl Serialize for Bound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// How rows are hashed: the canonical form, or an algorithm of the original under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HashAlgorithm {
    /// The canonical form of rows, by the cheapest hash that both ends have.
    Canonical,
    /// A row is the first 32 bits of its MD5, a partition their sum.
    Md5SumHash,
    /// A row is its MD5, a partition the MD5 of the rows' in order.
    HashMd5Hash,
}

impl HashAlgorithm {
    /// The word of the `hash_algo` key.
    pub fn name(self) -> &'static str {
        match self {
            HashAlgorithm::Canonical => "canonical",
            HashAlgorithm::Md5SumHash => "md5_sum_hash",
            HashAlgorithm::HashMd5Hash => "hash_md5_hash",
        }
    }
}

/// How a full run replaces what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FullMode {
    /// Loads beside, then takes the place in one transaction.
    Swap,
    /// Writes rows that differ and deletes those that are gone.
    Upsert,
}

/// What a run proves before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// Nothing.
    None,
    /// As many rows stored as were read.
    Count,
    /// The rows stored are the rows read.
    Hash,
    /// After the run both ends are compared by hash over the settled part.
    AfterRun,
}

/// How a log is followed. Where a key says nothing, names follow from the pipeline's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct LogSettings {
    /// The replication slot. Default: synctool_ and the pipeline's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot: Option<At<String>>,
    /// The publication. Default: the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publication: Option<At<String>>,
    /// The schema of the table of watermarks at the source. Default: synctool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_schema: Option<At<String>>,
    /// The table of watermarks. Default: watermark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark_table: Option<At<String>>,
    /// How chunks are marked in the log. Default: message.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermarks: Option<At<WatermarkKind>>,
    /// What is done with rows that are there already. Default: load into empty tables, resync others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<At<InitialRows>>,
    /// Rows per chunk. Default: 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunk_rows: Option<At<u32>>,
    /// How often an idle log is written to. Default: 10s; 0 = never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heartbeat: Option<At<Span>>,
    /// A longer backlog is read by SQL. Default: 256MiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catch_up: Option<At<ByteSize>>,
    /// Whether slot and publication are made where they are missing. Default: true.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create: Option<At<bool>>,
    /// Whether a new slot goes along when a standby takes over. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failover: Option<At<bool>>,
    /// Whether tables without a key are followed. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keyless: Option<At<bool>>,
    /// Bytes of log that the source may keep for us.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wal_budget: Option<At<ByteSize>>,
    /// What is done beyond that. Default: warn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<At<OverBudget>>,
}

impl LogSettings {
    /// The keys that are said, with their places.
    pub(super) fn places(&self) -> Vec<(&'static str, At<()>)> {
        macro_rules! said {
            ($($key:ident),*) => {
                [$((stringify!($key), self.$key.as_ref().map(|v| v.with(())))),*]
            };
        }
        let all = said!(
            slot,
            publication,
            control_schema,
            watermark_table,
            watermarks,
            initial,
            chunk_rows,
            heartbeat,
            catch_up,
            create,
            failover,
            keyless,
            wal_budget,
            over_budget
        );
        all.into_iter().filter_map(|(key, place)| Some((key, place?))).collect()
    }
}

/// How the moment of a chunk is marked in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WatermarkKind {
    /// By messages (PostgreSQL 14 and newer): no row is written.
    Message,
    /// By rows of a table.
    Table,
    /// By places in the log alone: nothing is written at the source.
    ReadOnly,
}

/// What is done with rows that were there before the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum InitialRows {
    /// They are loaded.
    Load,
    /// Both ends are made equal: rows that only the destination has go.
    Resync,
    /// They are left out.
    Skip,
}

/// What is done when the source keeps more log for us than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OverBudget {
    /// It is said.
    Warn,
    /// What is read beside the log waits until the source keeps less again, so that all of the time is the log's.
    Pause,
    /// The slot is dropped, so that the source's disk stays free; a run with --repair mends by difference.
    Drop,
}

/// What is done when a lock is held or a server is away.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scheduling {
    /// Wait for another run of the pipeline rather than fail. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for_pipeline_lock: Option<At<bool>>,
    /// How long. Default: 60 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline_lock_wait_timeout: Option<At<Span>>,
    /// For a scheduler; without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for_table_lock: Option<At<bool>>,
    /// For a scheduler; without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table_lock_wait_timeout: Option<At<Span>>,
    /// For a scheduler; without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_retry_on_lock_failure: Option<At<u32>>,
    /// For a scheduler; without effect here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_consecutive_failures: Option<At<u32>>,
    /// By how much each wait for a server that is away is longer than the one before. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_backoff_multiplier: Option<At<f64>>,
    /// The longest first wait for a server that is away. Default: 0.2 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_retry_delay: Option<At<Span>>,
}
