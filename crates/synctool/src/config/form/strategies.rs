//! Strategies: how they stand in files, and how they resolve.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::decode::{Later, Notice};
use super::super::error::{ConfigError, nearest};
use super::super::pipeline::{ColumnMapping, Pipeline, SyncType, find_column};
use super::super::strategy::{
    CursorTable, Deletes, Dimension, FullMode, HashAlgorithm, InitialRows, OverBudget, Scheduling, StampedBy, Strategy,
    StrategyKind, Tombstone, Verify, WatermarkKind,
};
use super::super::units::{ByteSize, Span};
use super::dimensions::{Around, DimensionFile, at_source, check_nesting, check_zone, dimensions, placed};
use super::enrichment::{DataFetchFile, PipelineConfigFile};

/// One way to bring the destination up to date.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
pub(in super::super) struct StrategyFile {
    /// Its name, unique in the pipeline. Default: its type.
    pub(in super::super) name: Option<At<String>>,
    /// What it does.
    #[serde(rename = "type")]
    pub(in super::super) kind: At<StrategyKind>,
    /// What it is for.
    pub(in super::super) description: Option<At<String>>,
    /// The column that says when a row changed. Default: that of the first primary partition, else the one with the
    /// role delta.
    pub(in super::super) column: Option<At<String>>,
    /// Who writes that column: database (the default) or app.
    pub(in super::super) stamped_by: Option<At<StampedBy>>,
    /// How far behind now a delta stays, for a column that applications stamp.
    pub(in super::super) lag: Option<At<Span>>,
    /// What is taken off the oldest open transaction's start. Default: 1s.
    pub(in super::super) margin: Option<At<Span>>,
    /// The zone of times without one, for partitions and bounds, such as Europe/Berlin or +02:00. Default: UTC.
    pub(in super::super) time_zone: Option<At<String>>,
    /// How rows that are gone at the source are found: none, anti_join, or a tombstone column. Default: hash and full
    /// find them by comparing, delta does not.
    pub(in super::super) deletes: Option<At<DeletesFile>>,
    /// Joined tables whose own changes count.
    pub(in super::super) cursor_tables: Option<Vec<CursorTable>>,
    /// How the work is cut. Default: by the pipeline's `partitioning`.
    pub(in super::super) primary_partitions: Option<Vec<At<DimensionFile>>>,
    /// How a primary partition is cut again.
    pub(in super::super) secondary_partitions: Option<Vec<At<DimensionFile>>>,
    /// What identifies the groups of changed rows (aggregates by delta): the columns of `group_by`, said once more. What
    /// is not among these has no effect.
    pub(in super::super) delta_partitions: Option<Vec<At<DimensionFile>>>,
    /// Partitions worked on at once. Default: the pipeline's.
    pub(in super::super) max_concurrent_partitions: Option<At<u32>>,
    /// Has no effect: rows are read in one stream, in batches that the memory budget bounds.
    pub(in super::super) page_size: Option<At<u32>>,
    /// The algorithm of hashes. Default: the pipeline's.
    pub(in super::super) hash_algo: Option<At<HashAlgorithm>>,
    /// Always so, whatever is said: rows that are equal are never written.
    pub(in super::super) prevent_update_unless_changed: Option<At<bool>>,
    /// Has no effect: rows are always counted, and hashes compared beside the counts.
    pub(in super::super) match_row_count: Option<At<bool>>,
    /// How a full run replaces. Default: swap when the pipeline made the table, else upsert.
    pub(in super::super) full_mode: Option<At<FullMode>>,
    /// What a run proves before it is done. Default: what costs nothing extra.
    pub(in super::super) verify: Option<At<Verify>>,
    /// log: the replication slot, one per pipeline. Default: synctool_ and the pipeline's name.
    pub(in super::super) slot: Option<At<String>>,
    /// log: the publication. Default: synctool_ and the pipeline's name.
    pub(in super::super) publication: Option<At<String>>,
    /// log: the schema of the table of watermarks at the source. Default: synctool.
    pub(in super::super) control_schema: Option<At<String>>,
    /// log: the table of watermarks. Default: watermark.
    pub(in super::super) watermark_table: Option<At<String>>,
    /// log: how chunks are marked in the log: message (the default), table, or read_only, which writes nothing.
    pub(in super::super) watermarks: Option<At<WatermarkKind>>,
    /// log: what is done with rows that are there already. Default: load into empty tables, resync others.
    pub(in super::super) initial: Option<At<InitialRows>>,
    /// log: rows per chunk. Default: 10000.
    pub(in super::super) chunk_rows: Option<At<u32>>,
    /// log: how often an idle log is written to, so that its slot moves on. Default: 10s; 0 = never.
    pub(in super::super) heartbeat: Option<At<Span>>,
    /// log: a longer backlog is read by SQL, which is faster than streaming. Default: 256MiB; 0 = never.
    pub(in super::super) catch_up: Option<At<ByteSize>>,
    /// log: whether slot and publication are made where they are missing. Default: true.
    pub(in super::super) create: Option<At<bool>>,
    /// log: whether a new slot goes along when a standby takes over (PostgreSQL 17 and newer). Default: false.
    pub(in super::super) failover: Option<At<bool>>,
    /// log: whether tables without a key are followed, from now on alone. Default: false.
    pub(in super::super) keyless: Option<At<bool>>,
    /// log: bytes of log that the source may keep for this pipeline. Default: any.
    pub(in super::super) wal_budget: Option<At<ByteSize>>,
    /// log: what is done beyond wal_budget: warn (the default), pause what is read beside the log until the source keeps
    /// less, or drop the slot to save the source's disk.
    pub(in super::super) over_budget: Option<At<OverBudget>>,
    /// When a scheduler runs it: minute, hour, day of month, month, day of week. Has no effect: this version has none.
    pub(in super::super) cron: Option<At<String>>,
    /// Default: true.
    pub(in super::super) enabled: Option<At<bool>>,
    /// Whether it may be chosen where none was named. Default: true.
    pub(in super::super) default: Option<At<bool>>,
    /// Wait for another run of the pipeline rather than fail. Default: false.
    pub(in super::super) wait_for_pipeline_lock: Option<At<bool>>,
    /// How long to wait for it. Default: 60s.
    pub(in super::super) pipeline_lock_wait_timeout: Option<At<Span>>,
    /// Has no effect: for a scheduler, which this version does not have.
    pub(in super::super) wait_for_table_lock: Option<At<bool>>,
    /// Has no effect, like wait_for_table_lock.
    pub(in super::super) table_lock_wait_timeout: Option<At<Span>>,
    /// Has no effect: for a scheduler, which this version does not have.
    pub(in super::super) max_retry_on_lock_failure: Option<At<u32>>,
    /// Has no effect: for a scheduler, which this version does not have.
    pub(in super::super) max_consecutive_failures: Option<At<u32>>,
    /// By how much each wait for a server that is away is longer than the one before. Default: 2.
    pub(in super::super) retry_backoff_multiplier: Option<At<f64>>,
    /// The longest first wait for a server that is away. Default: 0.2s.
    pub(in super::super) initial_retry_delay: Option<At<Span>>,
    /// false = `sub_partition_step` is left aside.
    pub(in super::super) use_sub_partition: Option<At<bool>>,
    /// A secondary partition on the column of the primary one, of this step.
    pub(in super::super) sub_partition_step: Option<At<u64>>,
    /// Stages of this strategy alone, in the first generation's form.
    pub(in super::super) pipeline_config: Option<PipelineConfigFile>,
    /// Its `page_size` is another place of the strategy's.
    pub(in super::super) data_fetch: Option<DataFetchFile>,
    pub(in super::super) use_pagination: Option<Later<bool>>,
    pub(in super::super) enable_pipeline: Option<Later<bool>>,
    pub(in super::super) min_sub_partition_step: Option<Later<u64>>,
    pub(in super::super) interval_reduction_factor: Option<Later<f64>>,
}

impl StrategyFile {
    /// A strategy that says nothing but its kind.
    pub(in super::super) fn new(kind: At<StrategyKind>) -> Self {
        Self {
            name: None,
            kind,
            description: None,
            column: None,
            stamped_by: None,
            lag: None,
            margin: None,
            time_zone: None,
            deletes: None,
            cursor_tables: None,
            primary_partitions: None,
            secondary_partitions: None,
            delta_partitions: None,
            max_concurrent_partitions: None,
            page_size: None,
            hash_algo: None,
            prevent_update_unless_changed: None,
            match_row_count: None,
            full_mode: None,
            verify: None,
            slot: None,
            publication: None,
            control_schema: None,
            watermark_table: None,
            watermarks: None,
            initial: None,
            chunk_rows: None,
            heartbeat: None,
            catch_up: None,
            create: None,
            failover: None,
            keyless: None,
            wal_budget: None,
            over_budget: None,
            cron: None,
            enabled: None,
            default: None,
            wait_for_pipeline_lock: None,
            pipeline_lock_wait_timeout: None,
            wait_for_table_lock: None,
            table_lock_wait_timeout: None,
            max_retry_on_lock_failure: None,
            max_consecutive_failures: None,
            retry_backoff_multiplier: None,
            initial_retry_delay: None,
            use_sub_partition: None,
            sub_partition_step: None,
            pipeline_config: None,
            data_fetch: None,
            use_pagination: None,
            enable_pipeline: None,
            min_sub_partition_step: None,
            interval_reduction_factor: None,
        }
    }

    /// The dimensions of all three kinds, to be renamed in their place.
    pub(in super::super) fn dimensions_mut(&mut self) -> impl Iterator<Item = &mut At<DimensionFile>> {
        let lists = [
            &mut self.primary_partitions,
            &mut self.secondary_partitions,
            &mut self.delta_partitions,
        ];
        lists.into_iter().flatten().flatten()
    }
}

/// How rows that are gone at the source are found.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Deletes", untagged)]
pub(in super::super) enum DeletesFile {
    #[serde(rename = "text")]
    Word(DeletesWord),
    #[serde(rename = "map")]
    Column(DeletesColumn),
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum DeletesWord {
    /// Not at all.
    None,
    /// By comparing the keys of both ends.
    AntiJoin,
}

/// A column of the source says it.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct DeletesColumn {
    /// The column, or the column and its value in deleted rows.
    tombstone: TombstoneFile,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "TombstoneColumn", untagged)]
enum TombstoneFile {
    #[serde(rename = "text")]
    Name(At<String>),
    #[serde(rename = "map")]
    Full(Tombstone),
}

/// Resolves the strategies of a file; where there is none, one that reads everything.
pub(super) fn resolve(
    files: Vec<At<StrategyFile>>,
    around: &Around<'_>,
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> Vec<Strategy> {
    if files.is_empty() {
        let kind = match around.source.tables.is_empty() {
            true => StrategyKind::Full,
            false => StrategyKind::Log,
        };
        return vec![Strategy::new(kind)];
    }
    let mut strategies: Vec<Strategy> = Vec::with_capacity(files.len());
    for file in files {
        let place = file.with(());
        let strategy = one(place, file.into_inner(), around, notices, errors);
        if let Some(twin) = strategies.iter().find(|s| *s.name == *strategy.name) {
            let first = twin
                .name
                .origin()
                .map(|o| format!("the first stands in line {}", o.line));
            let error = strategy
                .name
                .error(format!("two strategies are named \"{}\"", strategy.name.shown()));
            errors.push(match first {
                Some(help) => error.with_help(help),
                None => error,
            });
        }
        strategies.push(strategy);
    }
    strategies
}

fn one(
    place: At<()>,
    mut file: StrategyFile,
    around: &Around<'_>,
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> Strategy {
    let kind = file.kind.clone();
    let name = file.name.clone().unwrap_or_else(|| kind.with(kind.name().to_owned()));
    if *kind == StrategyKind::Aggregate && around.sync_type != SyncType::Aggregate {
        errors.push(
            kind.error(format!(
                "strategy \"{}\" recomputes groups, and the pipeline copies rows",
                name.shown()
            ))
            .with_help("write sync_type: aggregate and group_by, or type: delta"),
        );
    }
    check_words(&file, &name, errors);
    notices.extend(without_effect(&file, &name));
    let log = super::log::settings(&mut file, &name, errors);
    let primary = dimensions(file.primary_partitions, around, errors);
    let secondary = dimensions(file.secondary_partitions, around, errors);
    let delta = dimensions(file.delta_partitions, around, errors);
    let column = cursor(&place, &name, &kind, file.column, &primary, around, errors);
    let (primary, secondary) = match (file.sub_partition_step, file.use_sub_partition) {
        (Some(step), wanted) if wanted.as_ref().is_none_or(|w| **w) => {
            sub_partition(step, primary, secondary, column.as_ref(), around, notices, errors)
        }
        _ => (primary, secondary),
    };
    if let (Some(first), true, None) = (
        secondary.first(),
        primary.is_empty(),
        around.partitioning.column.as_ref(),
    ) {
        errors.push(
            first
                .column
                .error(format!(
                    "strategy \"{}\" has secondary partitions and no primary ones",
                    name.shown()
                ))
                .with_help("secondary_partitions cut the pieces of primary_partitions again"),
        );
    }
    check_nesting(&primary, &secondary, errors);
    if let (Some(first), SyncType::RowLevel) = (delta.first(), around.sync_type) {
        errors.push(
            first
                .column
                .error(format!(
                    "strategy \"{}\" has delta_partitions, and the pipeline copies rows",
                    name.shown()
                ))
                .with_help("they name the groups of sync_type: aggregate"),
        );
    }
    if around.sync_type == SyncType::Aggregate {
        notices.extend(unheard_groups(&delta, around));
    }
    let deletes = file.deletes.map(|d| deletes(d, &kind, &name, around, errors));
    if let (Some(said), false) = (
        deletes.as_ref().filter(|d| ***d == Deletes::AntiJoin),
        kind.has_cursor(),
    ) {
        let message = format!(
            "deletes: anti_join has no effect in strategy \"{}\": strategies of type {} find what is gone by comparing",
            name.shown(),
            kind.name()
        );
        notices.extend(Notice::at(said, "deletes", message));
    }
    for table in file.cursor_tables.iter().flatten() {
        let joins = &around.source.joins;
        let names: Vec<&str> = joins
            .iter()
            .map(|j| j.alias.as_ref().unwrap_or(&j.table).as_str())
            .collect();
        if !names.contains(&table.table.as_str()) {
            let error = table.table.error(format!(
                "cursor_tables names \"{}\", which is not joined",
                table.table.shown()
            ));
            errors.push(
                match super::super::error::suggestion(&table.table, "joined tables", &names) {
                    Some(help) => error.with_help(help),
                    None => error,
                },
            );
        }
    }
    let page_of_fetch = file.data_fetch.and_then(|f| f.page_size);
    let page_size = file.page_size.or(page_of_fetch);
    if let Some(said) = &page_size {
        let message = "page_size has no effect: rows are read in one stream, in batches that the memory budget bounds";
        notices.extend(Notice::at(said, "page_size", message.into()));
    }
    Strategy {
        name,
        kind,
        description: file.description,
        column,
        stamped_by: file.stamped_by,
        lag: file.lag,
        margin: file.margin,
        time_zone: file.time_zone,
        deletes,
        cursor_tables: file.cursor_tables.unwrap_or_default(),
        primary_partitions: primary,
        secondary_partitions: secondary,
        delta_partitions: delta,
        max_concurrent_partitions: file.max_concurrent_partitions,
        page_size,
        hash_algo: file.hash_algo,
        prevent_update_unless_changed: file.prevent_update_unless_changed,
        match_row_count: file.match_row_count.unwrap_or_else(|| true.into()),
        full_mode: file.full_mode,
        verify: file.verify,
        log,
        cron: file.cron,
        enabled: file.enabled.unwrap_or_else(|| true.into()),
        default: file.default.unwrap_or_else(|| true.into()),
        scheduling: Scheduling {
            wait_for_pipeline_lock: file.wait_for_pipeline_lock,
            pipeline_lock_wait_timeout: file.pipeline_lock_wait_timeout,
            wait_for_table_lock: file.wait_for_table_lock,
            table_lock_wait_timeout: file.table_lock_wait_timeout,
            max_retry_on_lock_failure: file.max_retry_on_lock_failure,
            max_consecutive_failures: file.max_consecutive_failures,
            retry_backoff_multiplier: file.retry_backoff_multiplier,
            initial_retry_delay: file.initial_retry_delay,
        },
    }
}

/// Keys that change nothing in a strategy.
fn without_effect(file: &StrategyFile, name: &At<String>) -> Vec<Notice> {
    const SCHEDULER: &str = "it is for a scheduler, and this version has none";
    let hash = *file.kind == StrategyKind::Hash;
    let mut notices = Vec::new();
    let mut tell = |key: &str, said: Option<At<()>>, why: &str| {
        let message = |_: &At<()>| format!("{key} has no effect in strategy \"{}\": {why}", name.shown());
        notices.extend(said.and_then(|said| Notice::at(&said, key, message(&said))));
    };
    let place = |said: &Option<At<bool>>| said.as_ref().map(|s| s.with(()));
    for (key, said, why) in [
        (
            "prevent_update_unless_changed",
            &file.prevent_update_unless_changed,
            "rows that are equal are never written",
        ),
        (
            "match_row_count",
            &file.match_row_count,
            "rows are always counted, and hashes compared beside the counts",
        ),
    ] {
        match (hash, said.as_deref()) {
            (false, _) => tell(key, place(said), "only strategies of type hash compare"),
            (true, Some(false)) => tell(key, place(said), why),
            (true, _) => {}
        }
    }
    tell("wait_for_table_lock", place(&file.wait_for_table_lock), SCHEDULER);
    let timeout = file.table_lock_wait_timeout.as_ref().map(|s| s.with(()));
    tell("table_lock_wait_timeout", timeout, SCHEDULER);
    for (key, said) in [
        ("max_retry_on_lock_failure", &file.max_retry_on_lock_failure),
        ("max_consecutive_failures", &file.max_consecutive_failures),
    ] {
        tell(key, said.as_ref().map(|s| s.with(())), SCHEDULER);
    }
    if file.wait_for_pipeline_lock.as_deref() != Some(&true) {
        let timeout = file.pipeline_lock_wait_timeout.as_ref().map(|s| s.with(()));
        tell(
            "pipeline_lock_wait_timeout",
            timeout,
            "nobody waits without `wait_for_pipeline_lock: true`",
        );
    }
    notices
}

/// A column of hashes has one algorithm, whichever strategy writes a row.
pub(super) fn unheard_algorithms(pipeline: &Pipeline) -> Vec<Notice> {
    let (Some(column), Some(kept)) = (pipeline.kept_hash(), pipeline.kept_hash_algo()) else {
        return Vec::new();
    };
    let notice = |strategy: &Strategy| {
        let said = strategy.hash_algo.as_ref().filter(|said| ***said != kept)?;
        let message = format!(
            "hash_algo of strategy \"{}\" has no effect on column \"{}\": all strategies keep hashes by one algorithm, {}",
            strategy.name.shown(),
            column.dest.shown(),
            kept.name()
        );
        Notice::at(said, "hash_algo", message)
    };
    pipeline.strategies.iter().filter_map(notice).collect()
}

/// Nobody starts runs by a schedule: told once, at the first one.
pub(super) fn unheard_schedule(pipeline: &Pipeline) -> Option<Notice> {
    let cron = pipeline.strategies.iter().find_map(|s| s.cron.as_ref())?;
    let message = format!(
        "cron has no effect: this version has no scheduler, and a run follows the strategy that is named or chosen; start \
         `synctool run {} --strategy …` from cron, a timer or a job",
        pipeline.name.shown()
    );
    Notice::at(cron, "cron", message)
}

/// Dimensions of a delta that say something else than `group_by` does.
fn unheard_groups(delta: &[Dimension], around: &Around<'_>) -> Vec<Notice> {
    let is_group = |d: &Dimension| {
        let name = d.column.rsplit('.').next().unwrap_or(&d.column);
        // The day of a time is a group, and may be named by the time.
        let below = |sql: &At<String>| {
            let mut words = sql.split(|c: char| !(c.is_alphanumeric() || c == '_'));
            words.any(|word| word == name)
        };
        let named = |c: &ColumnMapping| {
            c.is_called(&d.column) || c.source.as_deref() == Some(&*d.column) || c.expr.as_ref().is_some_and(below)
        };
        let is = |group: &At<String>| {
            let mut columns = around.listed.iter().filter(|c| c.is_called(group));
            **group == *d.column || d.destination.as_ref() == Some(group) || columns.any(named)
        };
        around.group_by.iter().any(is)
    };
    let notice = |d: &Dimension| {
        let whole = d.start.is_none() && d.end.is_none() && d.values.is_empty();
        let message = match (is_group(d), whole) {
            (true, true) => return None,
            (true, false) => {
                "start, end and values of delta_partitions have no effect: all groups of changed rows are computed"
            }
            (false, _) => {
                "this entry of delta_partitions has no effect: the groups of changed rows are those of group_by"
            }
        };
        Notice::at(&d.column, "delta_partitions", message.into())
    };
    delta.iter().filter_map(notice).collect()
}

/// What a strategy's keys say by themselves.
fn check_words(file: &StrategyFile, name: &At<String>, errors: &mut Vec<ConfigError>) {
    let kind = *file.kind;
    if let Some(cron) = file.cron.as_ref().filter(|cron| !looks_like_cron(cron)) {
        errors.push(
            cron.error(format!("cron of strategy \"{}\" is not a schedule", name.shown()))
                .with_help("write five fields: minute hour day-of-month month day-of-week, such as 0 * * * *"),
        );
    }
    for (key, value) in [
        ("page_size", &file.page_size),
        ("max_concurrent_partitions", &file.max_concurrent_partitions),
    ] {
        if let Some(zero) = value.as_ref().filter(|n| ***n == 0) {
            errors.push(zero.error(format!("{key} must be at least 1")));
        }
    }
    if let Some(less) = file.retry_backoff_multiplier.as_ref().filter(|n| ***n < 1.0) {
        errors.push(less.error("retry_backoff_multiplier must be at least 1"));
    }
    let belongs = |at: At<()>, key: &str, to: &str| {
        at.error(format!(
            "{key} belongs to strategies of type {to}, and \"{}\" is {}",
            name.shown(),
            kind.name()
        ))
    };
    if let Some(mode) = file.full_mode.as_ref().filter(|_| kind != StrategyKind::Full) {
        errors.push(belongs(mode.with(()), "full_mode", "full"));
    }
    if let Some(algorithm) = file.hash_algo.as_ref().filter(|_| kind != StrategyKind::Hash) {
        errors.push(belongs(algorithm.with(()), "hash_algo", "hash"));
    }
    let of_cursor = [
        ("stamped_by", file.stamped_by.as_ref().map(|v| v.with(()))),
        ("lag", file.lag.as_ref().map(|v| v.with(()))),
        ("margin", file.margin.as_ref().map(|v| v.with(()))),
        (
            "cursor_tables",
            file.cursor_tables
                .as_ref()
                .and_then(|t| Some(t.first()?.table.with(()))),
        ),
    ];
    for (key, at) in of_cursor {
        if let Some(at) = at.filter(|_| !kind.has_cursor()) {
            errors.push(belongs(at, key, "delta"));
        }
    }
    let app = file.stamped_by.as_deref() == Some(&StampedBy::App);
    if let Some(lag) = file.lag.as_ref().filter(|_| kind.has_cursor() && !app) {
        errors.push(lag.error("lag belongs to stamped_by: app").with_help(
            "a column that the database stamps needs no lag: open transactions hold the bound back; see margin",
        ));
    }
    if let Some(zone) = &file.time_zone {
        check_zone(zone, errors);
    }
}

/// The column that tells when a row changed, by its name at the source.
fn cursor(
    place: &At<()>,
    name: &At<String>,
    kind: &At<StrategyKind>,
    said: Option<At<String>>,
    primary: &[Dimension],
    around: &Around<'_>,
    errors: &mut Vec<ConfigError>,
) -> Option<At<String>> {
    let column = match kind.has_cursor() {
        true => {
            let by_dimension = || primary.first().map(|d| d.column.clone());
            let by_role = || around.listed.iter().find(|c| c.roles.delta)?.source.clone();
            let column = said.or_else(by_dimension).or_else(by_role);
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
        false => said,
    };
    column.map(|named| at_source(&named, around).0)
}

/// The first generation's sub-partitions: a secondary partition on the column of the primary one.
fn sub_partition(
    step: At<u64>,
    mut primary: Vec<Dimension>,
    mut secondary: Vec<Dimension>,
    cursor: Option<&At<String>>,
    around: &Around<'_>,
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> (Vec<Dimension>, Vec<Dimension>) {
    if *step == 0 {
        errors.push(step.error("sub_partition_step must be at least 1"));
        return (primary, secondary);
    }
    if let Some(first) = secondary.first() {
        errors.push(
            first
                .column
                .error("secondary_partitions and sub_partition_step say the same"),
        );
        return (primary, secondary);
    }
    let outer = match primary.first() {
        Some(first) => first.clone(),
        None => {
            let column = around.partitioning.column.as_ref().or(cursor);
            let Some(column) = column else {
                errors.push(
                    step.error("sub_partition_step cuts partitions again, and there is no partition column")
                        .with_help("say which one: partition_column, or primary_partitions"),
                );
                return (primary, secondary);
            };
            let mut dimension = placed(Dimension::range(column.clone()), around);
            dimension.step = around.partitioning.step.clone();
            dimension
        }
    };
    // The original took a step in seconds for a time and a step in keys for a number, whichever column it met.
    if outer.step.as_ref().is_some_and(|wider| **wider <= *step) {
        let message = format!(
            "sub_partition_step {} has no effect: partitions of \"{}\" are not wider than that",
            *step,
            outer.column.shown()
        );
        notices.extend(Notice::at(&step, "sub_partition_step", message));
        return (primary, secondary);
    }
    if primary.is_empty() {
        primary.push(outer.clone());
    }
    secondary.push(Dimension {
        step: Some(step),
        bounded: false.into(),
        start: None,
        end: None,
        ..outer
    });
    (primary, secondary)
}

fn deletes(
    file: At<DeletesFile>,
    kind: &At<StrategyKind>,
    name: &At<String>,
    around: &Around<'_>,
    errors: &mut Vec<ConfigError>,
) -> At<Deletes> {
    let place = file.with(());
    let tombstone = match file.into_inner() {
        DeletesFile::Word(DeletesWord::None) => return place.with(Deletes::None),
        DeletesFile::Word(DeletesWord::AntiJoin) => return place.with(Deletes::AntiJoin),
        DeletesFile::Column(DeletesColumn {
            tombstone: TombstoneFile::Name(column),
        }) => Tombstone { column, value: None },
        DeletesFile::Column(DeletesColumn {
            tombstone: TombstoneFile::Full(tombstone),
        }) => tombstone,
    };
    if !kind.has_cursor() {
        errors.push(tombstone.column.error(format!(
            "a tombstone belongs to strategies of type delta, and \"{}\" is {}",
            name.shown(),
            kind.name()
        )));
    }
    if find_column(around.listed, &tombstone.column).is_none() && !around.listed.is_empty() {
        let error = tombstone.column.error(format!(
            "the tombstone column \"{}\" is not among the columns",
            tombstone.column.shown()
        ));
        let names = around.listed.iter().map(|c| c.name.as_str());
        errors.push(error.with_help(match nearest(&tombstone.column, names) {
            Some(candidate) => format!("did you mean \"{candidate}\"?"),
            None => "list it, with `insert: false` where it is not to be written".to_owned(),
        }));
    }
    let column = at_source(&tombstone.column, around).0;
    place.with(Deletes::Tombstone(Tombstone { column, ..tombstone }))
}

/// Five fields of the usual characters; the scheduler reads them in earnest.
fn looks_like_cron(text: &str) -> bool {
    let fields: Vec<&str> = text.split_whitespace().collect();
    fields.len() == 5
        && fields
            .iter()
            .all(|f| f.chars().all(|c| c.is_ascii_alphanumeric() || "*/,-#?".contains(c)))
}
