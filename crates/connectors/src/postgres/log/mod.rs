//! The log of a PostgreSQL database: every committed change, in order, as events of the engine; and tables as they
//! stand, read in chunks beside it.
//!
//! [`LogSource`] follows one slot of the plugin `pgoutput`. Its positions say whose log they belong to, and live in the
//! destination's own transaction; a log that does not go on where they stand is refused. [`capture`] makes the plan.
//!
//! ```text
//!  server ──stream or peek──► transport ──► pgoutput ──► decode ──► LogReader ──► Backfill ──► engine
//!            ◄─ confirmed ──                                 chunks of tables ──────┘
//! ```

pub mod capture;
pub mod changes;
pub(crate) mod chunks;
mod client;
mod compared;
pub mod consume;
mod decode;
mod drift;
mod examine;
mod identity;
mod membership;
pub mod pgoutput;
mod position;
mod reader;
pub(crate) mod shape;
mod slot;
mod source;
pub mod status;
mod timeline;
mod transport;

pub use source::{LogSource, Outlook};

pub use crate::logs::Drift;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;

/// The prefix of the messages that keep an idle log moving.
pub const HEARTBEAT_PREFIX: &str = "synctool.heartbeat";

/// How the moment of a chunk is marked in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Watermarks {
    /// By messages (PostgreSQL 14 and newer): writes no row.
    #[default]
    Message,
    /// By rows of a table in the control schema, which the publication must have: any version.
    Table,
    /// By places in the log and the snapshot's transactions alone: writes nothing at the source, as on a standby.
    ReadOnly,
}

/// How a log is followed.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// The replication slot, one per pipeline.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Where the table of watermarks is, if one is used.
    pub control_schema: String,
    /// The name of the table of watermarks.
    pub watermark_table: String,
    /// Whether slot, publication and watermark table are made if they are not there.
    pub create: bool,
    /// Whether a new slot goes along when a standby takes over (17 and newer).
    pub failover: bool,
    /// Whether a log that is lost is made good by a new slot and a comparison of every table.
    pub repair: Repair,
    /// What becomes of it when its tables get other columns.
    pub drift: Drift,
    /// How chunks are marked.
    pub watermarks: Watermarks,
    /// Rows per chunk of a backfill.
    pub chunk_rows: usize,
    /// An idle log is written to so often, so that its slot moves on; `None` never writes.
    pub heartbeat: Option<Duration>,
    /// How often the server hears of us.
    pub status_interval: Duration,
    /// A longer backlog is peeked by SQL, which is faster than streaming it; `None` always streams.
    pub catch_up_bytes: Option<u64>,
    /// How often a stream looks whether the backlog is so long by now.
    pub lag_check: Duration,
    /// Changes per peek.
    pub peek_changes: u32,
    /// Bytes of the log that wait for the reader.
    pub queue_bytes: usize,
    /// Whether transactions that are at hand one behind the other may come as one, and the rows of each table within
    /// them together. Who applies them to a database loses nothing by that; it is several times as fast where they are
    /// small.
    pub together: bool,
    /// Whether to end where the log ended when it was opened, once every backfill is through.
    pub until_now: bool,
}

/// Leave to make good what a log does not say any more. What was allowed for one gap does not hold for the next one: it
/// is spent with the first position that is durable.
#[derive(Debug, Clone, Default)]
pub struct Repair {
    asked: bool,
    spent: Arc<AtomicBool>,
}

impl Repair {
    /// Leave, if it was asked for.
    pub fn once(asked: bool) -> Repair {
        Repair {
            asked,
            ..Repair::default()
        }
    }

    /// Whether it was asked for when we started.
    pub fn asked(&self) -> bool {
        self.asked
    }

    /// Whether it still holds.
    pub(crate) fn holds(&self) -> bool {
        self.asked && !self.spent.load(Ordering::Relaxed)
    }

    pub(crate) fn spend(&self) {
        self.spent.store(true, Ordering::Relaxed);
    }
}

impl Default for LogOptions {
    fn default() -> Self {
        LogOptions {
            slot: "synctool".into(),
            publication: "synctool".into(),
            control_schema: "synctool".into(),
            watermark_table: "watermark".into(),
            create: true,
            failover: false,
            repair: Repair::default(),
            drift: Drift::default(),
            watermarks: Watermarks::default(),
            chunk_rows: 10_000,
            heartbeat: Some(Duration::from_secs(10)),
            status_interval: Duration::from_secs(5),
            catch_up_bytes: Some(256 << 20),
            lag_check: Duration::from_secs(15),
            peek_changes: 200_000,
            queue_bytes: 8 << 20,
            together: false,
            until_now: false,
        }
    }
}

impl LogOptions {
    /// Refuses names that the server would refuse or change.
    pub fn check(&self) -> Result<()> {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if self.slot.is_empty() || self.slot.len() > 63 || !self.slot.chars().all(plain) {
            return Err(Error::new(
                code::IDENTIFIER,
                format!("{:?} cannot be the name of a replication slot", self.slot),
            )
            .hint("at most 63 lower-case letters, digits and underscores"));
        }
        super::sql::check_ident(&self.publication)?;
        super::sql::check_ident(&self.watermark_table)?;
        super::sql::check_ident(&self.control_schema)
    }

    /// The table of watermarks.
    pub(super) fn watermark_table(&self) -> TableId {
        TableId::new(&self.control_schema, &self.watermark_table)
    }
}
