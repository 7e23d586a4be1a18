//! What Data Sync writes down: lines of the log, and counts.

use super::sql;
use crate::postgres::Connection;
use futures::future::try_join_all;
use serde_json::Value;
use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};
use synctool_core::error::{Error, Result};
use synctool_pgwal::{Counts, Lsn};
use tokio_postgres::ToStatement;

/// Rows that changed in a local table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Net {
    /// Rows that were not there before.
    pub added: u64,
    /// Rows that were there and are, perhaps as they were.
    pub updated: u64,
    /// Rows that are there no more.
    pub deleted: u64,
}

impl Net {
    /// Adds another.
    pub fn add(&mut self, other: Net) {
        self.added += other.added;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

/// A line of `data_sync_logs`.
#[derive(Debug, Clone, Default)]
pub struct Entry<'a> {
    /// `info`, `warn` or `error`.
    pub level: &'a str,
    /// What it is about, in one word.
    pub event: &'a str,
    /// The table concerned.
    pub table: Option<String>,
    /// The place before.
    pub from: Option<Lsn>,
    /// The place after.
    pub to: Option<Lsn>,
    /// The first and the last segment.
    pub segments: Option<(String, String)>,
    /// Production's operations.
    pub operations: Option<Counts>,
    /// Rows that changed here.
    pub net: Option<Net>,
    /// How long it took.
    pub took: Option<Duration>,
    /// The code of an error.
    pub code: Option<&'a str>,
    /// A sentence.
    pub message: String,
    /// More.
    pub details: Option<Value>,
}

impl<'a> Entry<'a> {
    /// A line with nothing but a sentence.
    pub fn new(level: &'a str, event: &'a str, message: impl Into<String>) -> Self {
        Entry {
            level,
            event,
            message: message.into(),
            ..Entry::default()
        }
    }

    /// A line about an error, with what it says of its place.
    pub fn of_error(level: &'a str, event: &'a str, error: &Error) -> Self {
        let context: serde_json::Map<String, Value> = error
            .context()
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.as_str().into()))
            .collect();
        let told = |key: &str| context.get(key).and_then(Value::as_str).map(str::to_owned);
        Entry {
            code: Some(error.code().id),
            table: told("table"),
            to: told("lsn").and_then(|lsn| lsn.parse().ok()),
            segments: told("segment").map(|segment| (segment.clone(), segment)),
            details: Some(serde_json::json!({ "at": context, "next": error.next_step() })),
            ..Entry::new(level, event, error.message())
        }
    }

    /// The same about a table.
    #[must_use]
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = Some(name.into());
        self
    }

    /// The same at a place.
    #[must_use]
    pub fn to(mut self, at: Lsn) -> Self {
        self.to = Some(at);
        self
    }
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Writes a line.
pub async fn log(local: &Connection, entry: &Entry<'_>) -> Result<()> {
    let text = |lsn: Option<Lsn>| lsn.map(|lsn| lsn.to_string());
    let (first, last) = entry.segments.clone().unzip();
    let counts = entry.operations;
    let operation = |of: fn(Counts) -> u64| counts.map(|c| number(of(c)));
    let net = |of: fn(Net) -> u64| entry.net.map(|net| number(of(net)));
    local
        .execute(
            sql::LOG,
            &[
                &entry.level,
                &entry.event,
                &entry.table,
                &text(entry.from),
                &text(entry.to),
                &first,
                &last,
                &operation(|c| c.inserted),
                &operation(|c| c.updated),
                &operation(|c| c.deleted),
                &net(|n| n.added),
                &net(|n| n.updated),
                &net(|n| n.deleted),
                &entry.took.map(|t| i64::try_from(t.as_millis()).unwrap_or(i64::MAX)),
                &entry.code,
                &entry.message,
                &entry.details.as_ref().map(Value::to_string),
            ],
        )
        .await
        .map(drop)
        .map_err(|e| local.error(e, "writing data_sync_logs"))
}

/// What is counted of an hour.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tallies {
    /// Production's operations.
    pub operations: Counts,
    /// Rows that changed here.
    pub net: Net,
    /// Batches that were applied.
    pub batches: u64,
    /// Transactions in them.
    pub transactions: u64,
    /// Segments in them.
    pub segments: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Errors.
    pub errors: u64,
    /// How far the rows were behind, at most.
    pub lag: Option<f64>,
    /// The newest commit of production that was brought then, in seconds since 1970.
    pub rows_as_of: Option<f64>,
    /// Not everything could be counted.
    pub incomplete: bool,
}

impl Tallies {
    /// Adds what else was counted of the same hour.
    pub fn add(&mut self, other: &Tallies) {
        let greatest = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
        self.operations.add(other.operations);
        self.net.add(other.net);
        self.batches += other.batches;
        self.transactions += other.transactions;
        self.segments += other.segments;
        self.bytes += other.bytes;
        self.errors += other.errors;
        self.lag = greatest(self.lag, other.lag);
        self.rows_as_of = greatest(self.rows_as_of, other.rows_as_of);
        self.incomplete |= other.incomplete;
    }
}

/// What is counted at once, by table and hour.
pub type Counted = BTreeMap<(String, i64), Tallies>;

/// The row of `data_sync_metrics` that counts the whole.
pub const ALL: &str = "*";

/// Counts a fault of this moment, a table's or [`ALL`].
pub async fn count_error(local: &Connection, table: &str, window_hours: u32) -> Result<()> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let hour = i64::try_from(now.unwrap_or_default().as_secs() / 3600).unwrap_or_default();
    let tallies = Tallies {
        errors: 1,
        ..Tallies::default()
    };
    count(local, table, hour, window_hours, &tallies).await
}

/// Adds to the window, the week and the month of an hour (since 1970, UTC).
pub async fn count(local: &Connection, table: &str, hour: i64, window_hours: u32, tallies: &Tallies) -> Result<()> {
    count_by(local, sql::COUNT, table, hour, window_hours, tallies).await
}

/// The same for many, which are all on their way at once.
pub async fn count_all(local: &Connection, counted: &Counted, window_hours: u32) -> Result<()> {
    let statement = local.prepare(sql::COUNT).await;
    let statement = statement.map_err(|e| local.error(e, "writing data_sync_metrics"))?;
    let mut each = Vec::with_capacity(counted.len());
    for ((table, hour), tallies) in counted {
        each.push(count_by(local, &statement, table, *hour, window_hours, tallies));
    }
    try_join_all(each).await.map(drop)
}

async fn count_by<S: ?Sized + ToStatement + Sync>(
    local: &Connection,
    statement: &S,
    table: &str,
    hour: i64,
    window_hours: u32,
    tallies: &Tallies,
) -> Result<()> {
    let Tallies {
        operations,
        net,
        batches,
        transactions,
        segments,
        bytes,
        errors,
        lag,
        rows_as_of,
        incomplete,
    } = *tallies;
    let numbers: Vec<i64> = [
        operations.inserted,
        operations.updated,
        operations.deleted,
        net.added,
        net.updated,
        net.deleted,
        batches,
        transactions,
        segments,
        bytes,
        errors,
    ]
    .into_iter()
    .map(number)
    .collect();
    let (seconds, hours) = (hour as f64 * 3600.0, f64::from(window_hours));
    local
        .execute(
            statement,
            &[&table, &seconds, &hours, &numbers, &lag, &incomplete, &rows_as_of],
        )
        .await
        .map(drop)
        .map_err(|e| local.error(e, "writing data_sync_metrics"))
}
