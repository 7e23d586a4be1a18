//! Older generations of pipeline files: recognised by their keys, read into the current form.

mod g0;
mod g1;
mod g2;

use super::decode::{Notice, decode};
use super::error::ConfigError;
use super::form::PipelineFile;
use super::text::{Kind, Node, Text};

pub(super) use g0::G0File;
pub(super) use g1::G1File;
pub(super) use g2::G2File;

/// Keys at the top that only the second generation has; and so on.
pub(super) const G2_KEYS: &[&str] = &["backends", "stages", "pipeline_columns"];
pub(super) const G1_KEYS: &[&str] = &["source_provider", "destination_provider", "column_map"];
pub(super) const G0_KEYS: &[&str] = &["sync_job", "source_state_provider", "destination_state_provider"];

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
    if has(G2_KEYS) {
        Generation::G2
    } else if has(G0_KEYS) {
        Generation::G0
    } else if has(G1_KEYS) {
        Generation::G1
    } else {
        Generation::Current
    }
}

/// What a user should know of a key that is read and not yet used.
pub(super) fn later(path: &str) -> String {
    let key = path.rsplit('.').next().unwrap_or(path);
    let what = match key {
        "use_pagination" => "has no effect: rows are always read in pages",
        "enable_pipeline" => "has no effect: every strategy goes through the stages",
        "min_sub_partition_step" | "interval_reduction_factor" => {
            "has no effect: partitions that differ are halved until the rows are found"
        }
        "batch_timeout" | "batch_timeout_unit" | "batch_timeout_value" => {
            "has no effect: a batch goes on as soon as it is full or its partition ends"
        }
        "source_state_provider" | "destination_state_provider" => {
            "has no effect but for its unique_column: the state stands beside the rows at the destination"
        }
        "data_column" => "has no effect: every column that is listed is fetched",
        "strategies" => "has no effect in a stage: strategies stand at the top of the file",
        "max_concurrent_batches" => "has no effect: batches on their way are bounded by the memory budget",
        "scheduler" | "worker" | "http" | "log_batching" => {
            "has no effect: the scheduler and its workers come with a later version"
        }
        _ => "has no effect in this version yet",
    };
    if what.starts_with(key) {
        what.to_owned()
    } else {
        format!("{path} {what}")
    }
}

impl Generation {
    /// Its keys in words.
    pub(super) fn describe(self) -> &'static str {
        match self {
            Generation::Current => "the current form",
            Generation::G1 => "the first generation (source_provider, destination_provider, column_map)",
            Generation::G2 => "the second generation (backends, stages)",
            Generation::G0 => "the oldest generation (sync_job)",
        }
    }
}

impl Generation {
    /// Keys that stand elsewhere in the current form, from where to where.
    pub(super) fn renamed(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Generation::Current => &[
                ("partition_column", "partitioning.column"),
                ("partition_step", "partitioning.step"),
                ("enrichment", "transform"),
                ("pipeline_config", "transform"),
                ("data_fetch", "strategies[].page_size"),
            ],
            Generation::G1 => &[
                ("source_provider.data_backend", "source"),
                ("destination_provider.data_backend", "destination"),
                ("column_map", "columns, key"),
                ("columns", "columns, key"),
                ("partition_column", "partitioning.column"),
                ("partition_step", "partitioning.step"),
                ("enrichment", "transform"),
                ("pipeline_config", "transform"),
                ("data_fetch", "strategies[].page_size"),
            ],
            Generation::G2 => &[
                ("pipeline_columns", "columns"),
                ("columns", "columns"),
                (
                    "backends",
                    "source, destination, columns, key; tables of joins: transform[].enrich",
                ),
                ("stages", "transform; data_fetch: columns, group_by"),
            ],
            Generation::G0 => &[
                ("sync_job.source_provider", "datastores.source, source, columns"),
                ("sync_job.destination_provider", "datastores.destination, destination"),
                ("sync_job.source_state_provider", "key"),
                ("sync_job.destination_state_provider", "key"),
                ("sync_job.partition", "partitioning"),
                ("sync_job.strategies", "strategies"),
                ("sync_job.enrichment", "transform"),
            ],
        }
    }
}

/// A pipeline's tree, however it is written, as the current form.
pub(super) fn read(
    text: &Text,
    root: &Node,
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> Option<PipelineFile> {
    match recognise(root) {
        Generation::Current => decode(root, text, errors, notices),
        Generation::G1 => Some(decode::<G1File>(root, text, errors, notices)?.into()),
        Generation::G2 => g2::current(decode(root, text, errors, notices)?, notices, errors),
        Generation::G0 => g0::current(decode(root, text, errors, notices)?, errors),
    }
}
