//! The logs that a pipeline can follow, as one: what differs between them stands here and nowhere else.

use std::sync::Arc;
use synctool_connectors::mysql::log::{BinlogSource, capture as binlog};
use synctool_connectors::postgres::log::capture::{self, CaptureRequest};
use synctool_connectors::postgres::log::status::{LogStatus, SlotStatus, Steering};
use synctool_connectors::postgres::log::{Drift, LogOptions, LogSource, Outlook};
use synctool_connectors::walarchive::ArchiveLog;
use synctool_connectors::walarchive::log::capture as archived;
use synctool_core::backfill::Pending;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::Plan;
use synctool_core::progress::Position;
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::source::{Finding, Source};

/// A log of a datastore.
#[derive(Debug, Clone)]
pub enum Log {
    /// PostgreSQL's, through a replication slot.
    Postgres(Arc<LogSource>),
    /// MariaDB's binary log.
    Mysql(Arc<BinlogSource>),
    /// PostgreSQL's, from archived files.
    Archive(Arc<ArchiveLog>),
}

/// The same call on whichever log it is.
macro_rules! either {
    ($log:expr, $name:ident => $call:expr) => {
        match $log {
            Log::Postgres($name) => $call,
            Log::Mysql($name) => $call,
            Log::Archive($name) => $call,
        }
    };
}

impl Log {
    /// How it is followed.
    pub fn options(&self) -> &LogOptions {
        either!(self, log => log.options())
    }

    /// What steers it while it is followed.
    pub fn steering(&self) -> &Arc<Steering> {
        either!(self, log => log.steering())
    }

    /// The log as a source of the engine.
    pub fn as_source(&self) -> Arc<dyn Source> {
        either!(self, log => log.clone())
    }

    /// Looks at what following the log of these tables needs.
    pub async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        either!(self, log => log.examine(tables).await)
    }

    /// Follows the tables of a plan. To be called before the engine opens the log.
    pub fn follow(&self, plan: &Plan) {
        either!(self, log => log.follow(plan));
    }

    /// What is to be read again of a followed table: all of it, or the rows of some keys.
    pub async fn refresh(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Pending> {
        either!(self, log => log.refresh(table, keys).await)
    }

    /// Tables that could be followed and are not: they came since the plan was made.
    pub async fn newcomers(&self, request: &CaptureRequest) -> Result<Vec<TableId>> {
        either!(self, log => log.newcomers(request).await)
    }

    /// Tables for which the log is to be opened anew: new ones, if the request is about all, and those that were out of
    /// the log for a while.
    pub async fn due(&self, request: &CaptureRequest) -> Result<Vec<TableId>> {
        match (self, request.tables.is_empty()) {
            (Log::Postgres(log), all) => log.due(request, all).await,
            (Log::Mysql(_) | Log::Archive(_), true) => self.newcomers(request).await,
            (Log::Mysql(_) | Log::Archive(_), false) => Ok(Vec::new()),
        }
    }

    /// Whether the log goes on where a position stands; nothing is changed.
    pub async fn outlook(&self, after: Option<&Position>) -> Result<Outlook> {
        either!(self, log => log.outlook(after).await)
    }

    /// How far the log is when nobody follows it.
    pub async fn at_rest(&self, plan: &Plan, position: Option<&Position>) -> Result<LogStatus> {
        either!(self, log => log.at_rest(plan, position).await)
    }

    /// Whether the server keeps its log for us, in a slot.
    pub fn has_slot(&self) -> bool {
        matches!(self, Log::Postgres(_))
    }

    /// Nobody follows it any more: what was started for it ends.
    pub async fn close(&self) -> Result<()> {
        match self {
            Log::Postgres(_) | Log::Mysql(_) => Ok(()),
            Log::Archive(log) => log.close().await,
        }
    }

    /// The replication slots of the server; a server without slots keeps its log for nobody.
    pub async fn slots(&self) -> Result<Vec<SlotStatus>> {
        match self {
            Log::Postgres(log) => log.slots().await,
            Log::Mysql(_) | Log::Archive(_) => Ok(Vec::new()),
        }
    }

    /// Makes the source forget the log that it keeps for us.
    pub async fn give_up(&self) -> Result<()> {
        match self {
            Log::Postgres(log) => log.give_up().await,
            Log::Mysql(_) => Err(Error::new(code::UNSUPPORTED, "MariaDB keeps its log for nobody")),
            Log::Archive(_) => Err(Error::new(code::UNSUPPORTED, "an archive is kept by whoever made it")),
        }
    }

    /// The statements that take away everything that was made at the source.
    pub fn removal(&self) -> Vec<String> {
        match self {
            Log::Postgres(log) => log.removal(),
            Log::Mysql(_) | Log::Archive(_) => Vec::new(),
        }
    }

    /// Refuses a policy for changed columns that this log cannot hold.
    pub(super) fn check_drift(&self) -> Result<()> {
        let drift = self.options().drift;
        let can = match self {
            Log::Postgres(_) | Log::Mysql(_) => true,
            Log::Archive(_) => matches!(drift, Drift::Added | Drift::Evolve),
        };
        match can {
            true => Ok(()),
            false => Err(Error::new(
                code::UNSUPPORTED,
                "this log does not hold to the pipeline's schema_drift",
            )
            .hint("leave schema_drift out, or say evolve: new columns are followed, anything else ends the log")),
        }
    }

    /// What must not change while the plan of a request is unfinished.
    pub(super) fn semantics(&self, request: &CaptureRequest) -> serde_json::Value {
        match self {
            Log::Postgres(log) => request.semantics(log),
            Log::Mysql(log) => binlog::semantics(log, request),
            Log::Archive(log) => archived::semantics(log, request),
        }
    }

    /// Makes the plan of a capture, and at the source what it needs there.
    pub(super) async fn capture(&self, destination: &dyn Destination, request: CaptureRequest) -> Result<Plan> {
        match self {
            Log::Postgres(log) => capture::capture(log, destination, request).await,
            Log::Mysql(log) => binlog::capture(log, destination, request).await,
            Log::Archive(log) => archived::capture(log, destination, request).await,
        }
    }

    /// The plan that a capture would make, beside a stored one where it goes on, and the statements that would be run at
    /// the source for it.
    pub(super) async fn preview(
        &self,
        destination: &dyn Destination,
        request: CaptureRequest,
        stored: Option<&Plan>,
    ) -> Result<(Plan, Vec<String>)> {
        match self {
            Log::Postgres(log) => capture::preview(log, destination, request, stored).await,
            Log::Mysql(log) => Ok((binlog::draft(log, destination, request, stored).await?, Vec::new())),
            Log::Archive(log) => Ok((archived::draft(log, destination, request, stored).await?, Vec::new())),
        }
    }

    /// A plan for other tables than those of a stored one, which goes on where that one stands.
    pub(super) async fn extend(
        &self,
        destination: &dyn Destination,
        stored: &Plan,
        request: CaptureRequest,
    ) -> Result<Plan> {
        match self {
            Log::Postgres(log) => capture::extend(log, destination, stored, request).await,
            Log::Mysql(log) => binlog::extend(log, destination, stored, request).await,
            Log::Archive(log) => archived::extend(log, destination, stored, request).await,
        }
    }
}
