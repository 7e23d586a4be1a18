//! What the state store holds, as values.

use chrono::{DateTime, SubsecRound, Utc};
use serde::{Deserialize, Serialize};
use std::fmt;
use synctool_core::engine::PartitionStatus;
use synctool_core::error::Error;
use synctool_core::ledger::{Applied, Ledger};
use synctool_core::plan::{Strategy, Verify};

/// A moment, UTC.
pub type Time = DateTime<Utc>;

/// Now, in the store's precision of one millisecond.
pub fn now() -> Time {
    Utc::now().trunc_subsecs(3)
}

/// `2024-01-15T14:00:00Z`: the form of every time that users see.
pub fn rfc3339(time: &Time) -> String {
    time.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A new run's id: `20240115_140000_` and six hex digits.
pub fn new_run_id() -> String {
    format!(
        "{}_{:06x}",
        Utc::now().format("%Y%m%d_%H%M%S"),
        rand::random::<u32>() & 0xff_ffff
    )
}

pub(crate) mod time_text {
    use super::{Time, rfc3339};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Time, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&rfc3339(time))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Time, D::Error> {
        Time::deserialize(d)
    }
}

pub(crate) mod opt_time_text {
    use super::{Time, rfc3339};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(time: &Option<Time>, s: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => s.serialize_str(&rfc3339(time)),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Time>, D::Error> {
        Option::<Time>::deserialize(d)
    }
}

/// How a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Going on.
    Running,
    /// Done.
    Completed,
    /// Given up with an error.
    Failed,
    /// Stopped on request, or its process ended without a word.
    Interrupted,
}

impl RunStatus {
    const ALL: [RunStatus; 4] = [
        RunStatus::Running,
        RunStatus::Completed,
        RunStatus::Failed,
        RunStatus::Interrupted,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            RunStatus::Running => "running",
            RunStatus::Completed => "completed",
            RunStatus::Failed => "failed",
            RunStatus::Interrupted => "interrupted",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who runs a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// The host's name.
    pub host: String,
    /// The process there.
    pub pid: u32,
    /// Since when.
    #[serde(with = "time_text")]
    pub since: Time,
}

impl Holder {
    /// This process, from now on.
    pub fn here() -> Self {
        Holder {
            host: host_name(),
            pid: std::process::id(),
            since: now(),
        }
    }

    /// `host-pid`.
    pub fn worker(&self) -> String {
        format!("{}-{}", self.host, self.pid)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "process {} on host {} since {}",
            self.pid,
            self.host,
            rfc3339(&self.since)
        )
    }
}

fn host_name() -> String {
    let named = |text: String| Some(text.trim().to_string()).filter(|t| !t.is_empty());
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .and_then(named)
        .or_else(|| {
            let out = std::process::Command::new("hostname").output().ok()?;
            named(String::from_utf8(out.stdout).ok()?)
        })
        .unwrap_or_else(|| "localhost".into())
}

/// Partitions of a run by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionCounts {
    /// In all.
    pub total: u64,
    /// Finished, the skipped ones included.
    pub completed: u64,
    /// Finished by an earlier run of the same plan.
    pub skipped: u64,
    /// Given up.
    pub failed: u64,
}

/// What became of the rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RowCounts {
    /// Read from the source, by the runs before it of the same plan too.
    pub processed: u64,
    /// New at the destination.
    pub inserted: u64,
    /// Changed there.
    pub updated: u64,
    /// Gone from there.
    pub deleted: u64,
    /// Already right.
    pub unchanged: u64,
    /// Put aside with a reason.
    pub rejected: u64,
}

impl RowCounts {
    pub(crate) fn set_applied(&mut self, applied: Applied) {
        self.inserted = applied.inserted;
        self.updated = applied.updated;
        self.deleted = applied.deleted;
        self.unchanged = applied.unchanged;
    }
}

/// How the stored rows were proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// By what.
    pub by: Verify,
    /// How many rows.
    pub rows: u64,
}

/// Why a run failed: a stable code and a sentence without values or secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunError {
    /// `ST-…`.
    pub code: String,
    /// What failed and where.
    pub message: String,
    /// What to try next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl From<&Error> for RunError {
    fn from(e: &Error) -> Self {
        let mut message = e.message().to_string();
        if !e.context().is_empty() {
            let place: Vec<String> = e.context().iter().map(|(k, v)| format!("{k} {v}")).collect();
            message.push_str(&format!(" ({})", place.join(", ")));
        }
        RunError {
            code: e.code().id.into(),
            message: redacted(&message),
            hint: e.next_step().map(redacted),
        }
    }
}

/// A text without the passwords of the URIs in it: the last net under the rule that errors hold no secrets.
pub(crate) fn redacted(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (head, tail) = rest.split_at(at + 3);
        out.push_str(head);
        let authority = tail
            .find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\''))
            .unwrap_or(tail.len());
        rest = tail;
        if let Some(end) = tail[..authority].rfind('@') {
            match tail[..end].split_once(':') {
                Some((user, _)) => out.push_str(&format!("{user}:***")),
                None => out.push_str(&tail[..end]),
            }
            rest = &tail[end..];
        }
    }
    out.push_str(rest);
    out
}

/// A run as the store knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Its id.
    pub run_id: String,
    /// The pipeline.
    pub pipeline: String,
    /// The strategy's name in the pipeline.
    pub strategy: String,
    /// What kind of strategy it is.
    pub strategy_type: Strategy,
    /// How it stands.
    pub status: RunStatus,
    /// When it began.
    #[serde(with = "time_text")]
    pub started_at: Time,
    /// When it was last heard of.
    #[serde(with = "time_text")]
    pub updated_at: Time,
    /// When it ended.
    #[serde(with = "opt_time_text", default)]
    pub completed_at: Option<Time>,
    /// `host-pid` of its process.
    pub worker: String,
    /// The run that began the plan this one went on with.
    #[serde(default)]
    pub resumed_from: Option<String>,
    /// Why this strategy and this way.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// Its partitions.
    #[serde(default)]
    pub partitions: PartitionCounts,
    /// Its rows.
    #[serde(default)]
    pub rows: RowCounts,
    /// Bytes read.
    #[serde(default)]
    pub bytes: u64,
    /// How often something was tried again.
    #[serde(default)]
    pub retries: u64,
    /// How the stored rows were proved.
    #[serde(default)]
    pub verified: Option<Proof>,
    /// Its row accounts, once they balance.
    #[serde(default)]
    pub ledger: Option<Ledger>,
    /// Why it did not complete.
    #[serde(default)]
    pub error: Option<RunError>,
}

impl Run {
    /// A run that begins now in the process of `holder`.
    pub fn begin(pipeline: &str, run_id: &str, strategy: &str, strategy_type: Strategy, holder: &Holder) -> Self {
        let now = now();
        Run {
            run_id: run_id.into(),
            pipeline: pipeline.into(),
            strategy: strategy.into(),
            strategy_type,
            status: RunStatus::Running,
            started_at: now,
            updated_at: now,
            completed_at: None,
            worker: holder.worker(),
            resumed_from: None,
            reasons: Vec::new(),
            partitions: PartitionCounts::default(),
            rows: RowCounts::default(),
            bytes: 0,
            retries: 0,
            verified: None,
            ledger: None,
            error: None,
        }
    }

    /// How long it took, or has taken until it was last heard of.
    pub fn seconds(&self) -> f64 {
        let end = self.completed_at.unwrap_or(self.updated_at);
        (end - self.started_at).num_milliseconds().max(0) as f64 / 1000.0
    }

    /// Failures counted as the original's metrics do.
    pub fn errors(&self) -> u64 {
        self.partitions.failed.max(u64::from(self.status == RunStatus::Failed))
    }
}

/// A partition of a run that was at least begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PartitionRecord {
    /// Its id.
    #[serde(rename = "partition_id")]
    pub id: String,
    /// Where it is.
    #[serde(with = "partition_status")]
    pub status: PartitionStatus,
    /// Rows read.
    pub rows: u64,
    /// Bytes read.
    pub bytes: u64,
    /// How long this run worked on it.
    pub seconds: f64,
    /// When it was finished or given up.
    #[serde(with = "opt_time_text", default)]
    pub completed_at: Option<Time>,
    /// The last thing that failed in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl PartitionRecord {
    /// A partition that has just begun.
    pub fn begin(id: &str) -> Self {
        PartitionRecord {
            id: id.into(),
            status: PartitionStatus::Running,
            rows: 0,
            bytes: 0,
            seconds: 0.0,
            completed_at: None,
            error: None,
        }
    }

    /// Whether nothing is left to do for it.
    pub fn is_complete(&self) -> bool {
        matches!(self.status, PartitionStatus::Done | PartitionStatus::Skipped)
    }
}

pub(crate) mod partition_status {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use synctool_core::engine::PartitionStatus::{self, *};

    const NAMES: [(PartitionStatus, &str); 6] = [
        (Waiting, "waiting"),
        (Running, "running"),
        (Retrying, "retrying"),
        (Skipped, "skipped"),
        (Done, "done"),
        (Failed, "failed"),
    ];

    pub(crate) fn name(status: PartitionStatus) -> &'static str {
        NAMES.iter().find(|(s, _)| *s == status).map_or("waiting", |(_, n)| n)
    }

    pub(crate) fn parse(text: &str) -> Option<PartitionStatus> {
        NAMES.iter().find(|(_, n)| *n == text).map(|(s, _)| *s)
    }

    pub(crate) fn serialize<S: Serializer>(status: &PartitionStatus, s: S) -> Result<S::Ok, S::Error> {
        name(*status).serialize(s)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PartitionStatus, D::Error> {
        let text = String::deserialize(d)?;
        parse(&text).ok_or_else(|| D::Error::custom(format!("{text} is no partition status")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_never_pass() {
        for (text, clean) in [
            (
                "cannot reach postgres://app:s3cret@db:5432/shop now",
                "cannot reach postgres://app:***@db:5432/shop now",
            ),
            ("mysql://app:p:a@s@s@db", "mysql://app:***@db"),
            ("see https://example.org/a@b", "see https://example.org/a@b"),
            ("postgres://app@db and s3://u:k@h", "postgres://app@db and s3://u:***@h"),
            ("nothing here", "nothing here"),
        ] {
            assert_eq!(redacted(text), clean);
        }
    }

    #[test]
    fn names_and_times_read_back() {
        for s in RunStatus::ALL {
            assert_eq!(RunStatus::parse(s.as_str()), Some(s));
            assert_eq!(serde_json::to_value(s).unwrap(), s.as_str());
        }
        let id = new_run_id();
        assert_eq!(id.len(), 22, "{id}");
        let holder = Holder::here();
        let json = serde_json::to_string(&holder).unwrap();
        let back: Holder = serde_json::from_str(&json).unwrap();
        assert_eq!((back.host, back.pid), (holder.host, holder.pid));
        assert_eq!(
            rfc3339(&"2024-01-15T15:00:00.789+01:00".parse().unwrap()),
            "2024-01-15T14:00:00Z"
        );
    }
}
