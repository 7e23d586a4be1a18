//! The picture of a log: how far it is and what is still read beside it, while it is followed and at rest; and the way
//! in which it is steered from outside.

use super::super::client::{Connection, Postgres};
use super::capture::{Initial, follows_all, initial_of, position_of};
use super::membership::{self, Absent};
use super::pgoutput::Lsn;
use super::position::LogPosition;
use super::source::LogSource;
use super::transport::end_of_log;
use super::{LogOptions, slot};
use crate::logs::bytes_between;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use synctool_core::backfill::{Backfill, BackfillPosition, Cancelled, Pause, Pending, Requests};
use synctool_core::change::{Event, Op};
use synctool_core::error::Result;
use synctool_core::plan::Plan;
use synctool_core::progress::Position;
use synctool_core::retry::oftener_at_first;
use synctool_core::schema::TableId;
use tokio_postgres::types::PgLsn;

/// Rates are of so much time.
const WINDOW: Duration = Duration::from_secs(10);

/// Looks at the end of the log that are kept, to tell since when we are behind.
const LOOKS: usize = 4096;

/// How far a log is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LogStatus {
    /// The replication slot.
    pub slot: String,
    /// The publication.
    pub publication: String,
    /// Every transaction before this place is at the destination, durably.
    pub position: Option<String>,
    /// Where the server's log ended when it was looked at.
    pub end: Option<String>,
    /// Bytes of the log between the two: an upper bound, as the log is of all databases and tables.
    pub lag_bytes: Option<u64>,
    /// How long ago the server wrote the oldest thing that is not at the destination yet; 0 when nothing is missing.
    pub lag_seconds: Option<f64>,
    /// About how many rows those bytes are, at the bytes per row seen since the log was opened.
    pub lag_rows: Option<u64>,
    /// About how long it takes until nothing is missing, at the pace of late; none while it falls behind.
    pub eta_seconds: Option<f64>,
    /// When the last transaction that is at the destination committed, microseconds UTC.
    pub applied_up_to: Option<i64>,
    /// What holds still on request.
    pub paused: Pause,
    /// What is to be told of an archive that has brought nothing for too long.
    pub silent: Option<String>,
    /// What the archive's command said that did not bring the next segment.
    pub said: Option<String>,
    /// The tables that are followed.
    pub tables: Vec<TableStatus>,
}

/// How far a table is.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TableStatus {
    /// The table at the source.
    pub table: String,
    /// Where it goes.
    pub destination: String,
    /// Rows inserted, since the log was opened.
    pub inserted: u64,
    /// Rows updated.
    pub updated: u64,
    /// Rows put, whether they were there or not: chunks, and changes beside them.
    pub put: u64,
    /// Rows deleted.
    pub deleted: u64,
    /// About how many rows of it are missing, if it has as large a part of the log as so far.
    pub lag_rows: Option<u64>,
    /// What is still read of it beside the log.
    pub backfill: Option<BackfillStatus>,
    /// What was given up of reading it: until it is refreshed, its copy may not be what the source has.
    pub cancelled: Option<CancelledStatus>,
    /// Why its changes do not come any more, if they do not: it was dropped, or taken out of the publication.
    pub absent: Option<String>,
}

/// What was given up of reading a table, and not read since.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CancelledStatus {
    /// `load` (rows are missing), `resync` (the rest was not compared) or `keys`.
    pub kind: String,
    /// Rows read before that.
    pub rows: u64,
    /// Keys that were not read.
    pub keys: u64,
}

/// What is still read of a table beside its log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BackfillStatus {
    /// `load`, `resync` or `keys`.
    pub kind: String,
    /// Whether it is read now; others wait for their turn.
    pub active: bool,
    /// Rows read.
    pub rows: u64,
    /// Rows that the catalog expected when the plan was made.
    pub expected: Option<u64>,
    /// Rows per second, of late.
    pub rows_per_second: Option<f64>,
    /// How long it will take at that rate.
    pub eta_seconds: Option<f64>,
    /// Keys to be read one by one.
    pub keys: usize,
}

/// A replication slot of a server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SlotStatus {
    /// Its name.
    pub slot: String,
    /// Its plugin; none for a physical one.
    pub plugin: Option<String>,
    /// Its database.
    pub database: Option<String>,
    /// The session that reads it now.
    pub active_pid: Option<i32>,
    /// Up to where its reader has confirmed.
    pub confirmed: Option<String>,
    /// Bytes of log that the server keeps for it.
    pub retained_bytes: Option<u64>,
    /// Bytes that may still be written before the server gives it up, where that is limited.
    pub safe_bytes: Option<i64>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// Why the server gave it up.
    pub invalidated: Option<String>,
}

#[derive(Debug, Default, Clone)]
struct Counts {
    inserted: u64,
    updated: u64,
    put: u64,
    deleted: u64,
    /// Rows that the log brought since it was opened.
    logged: u64,
}

/// A place of a log that is at the destination.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Standing {
    /// The place, as a number that grows with the log.
    pub(crate) at: u64,
    /// When the last transaction before it committed, microseconds UTC.
    pub(crate) committed_at: Option<i64>,
}

#[derive(Debug)]
struct Picture {
    /// When the log was seen to end where.
    ends: VecDeque<(Instant, Lsn)>,
    /// The server has sent everything before this place.
    reached: Lsn,
    /// The end of the last transaction that had anything for us.
    read: Lsn,
    durable: Option<Standing>,
    /// Where it was opened, and how many rows came of the log since.
    opened: u64,
    rows: u64,
    /// Where we were, and where the log ended, of late.
    pace: VecDeque<(Instant, u64, u64)>,
    counts: BTreeMap<String, Counts>,
    pending: Vec<Pending>,
    cancelled: Vec<Cancelled>,
    /// Followed tables whose changes do not come any more, and why.
    absent: BTreeMap<String, String>,
    /// What is to be told of an archive that brings nothing, and what its command said.
    quiet: (Option<String>, Option<String>),
    /// Rows of the active backfill of late.
    rate: VecDeque<(Instant, u64)>,
    /// How people write a place.
    shown: fn(u64) -> String,
    /// The files of a log that is not counted through: where each begins, and its length.
    files: Vec<(u64, u64)>,
}

impl Default for Picture {
    fn default() -> Self {
        Picture {
            ends: VecDeque::new(),
            reached: 0,
            read: 0,
            durable: None,
            opened: 0,
            rows: 0,
            pace: VecDeque::new(),
            counts: BTreeMap::new(),
            pending: Vec::new(),
            cancelled: Vec::new(),
            absent: BTreeMap::new(),
            quiet: (None, None),
            rate: VecDeque::new(),
            shown: lsn,
            files: Vec::new(),
        }
    }
}

/// A place of PostgreSQL's log, as people write it.
pub(crate) fn lsn(at: u64) -> String {
    PgLsn::from(at).to_string()
}

/// Steers a log that is followed, and looks at it. Shared by everybody who has to do with it.
#[derive(Debug, Default)]
pub struct Steering {
    requests: Arc<Requests>,
    picture: Mutex<Picture>,
    peeked: AtomicU64,
}

impl Steering {
    /// Where requests are left.
    pub fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// How often a part of a backlog was peeked by SQL instead of being streamed.
    pub fn peeked(&self) -> u64 {
        self.peeked.load(Ordering::Relaxed)
    }

    pub(super) fn peeks(&self) {
        self.peeked.fetch_add(1, Ordering::Relaxed);
    }

    fn picture(&self) -> MutexGuard<'_, Picture> {
        self.picture.lock().expect("nothing panics while holding it")
    }

    /// A log whose places are written like this.
    pub(crate) fn showing(shown: fn(u64) -> String) -> Self {
        let steering = Steering::default();
        steering.picture().shown = shown;
        steering
    }

    /// A log is opened at this position.
    pub(crate) fn opened(&self, position: Standing, beside: &BackfillPosition) {
        let mut picture = self.picture();
        (picture.reached, picture.read) = (position.at, position.at);
        picture.durable = Some(position);
        (picture.opened, picture.rows) = (position.at, 0);
        picture.pace.clear();
        picture.counts.values_mut().for_each(|c| c.logged = 0);
        picture.pending.clone_from(&beside.pending);
        picture.cancelled.clone_from(&beside.cancelled);
        picture.rate.clear();
    }

    pub(crate) fn reached(&self, lsn: Lsn) {
        let mut picture = self.picture();
        picture.reached = picture.reached.max(lsn);
    }

    pub(crate) fn read_up_to(&self, lsn: Lsn) {
        let mut picture = self.picture();
        (picture.read, picture.reached) = (lsn, picture.reached.max(lsn));
    }

    /// The followed tables whose changes do not come any more, and why; each is told once.
    pub(crate) fn absent(&self, now: BTreeMap<String, String>) {
        let mut picture = self.picture();
        for (table, why) in now
            .iter()
            .filter(|(table, why)| picture.absent.get(*table) != Some(why))
        {
            tracing::warn!(table, "{why}");
        }
        picture.absent = now;
    }

    /// How an archive that was looked at is silent, and what its command said.
    pub(crate) fn is_quiet(&self, silent: Option<String>, said: Option<String>) {
        self.picture().quiet = (silent, said);
    }

    pub(crate) fn durable(&self, position: Standing) {
        self.picture().durable = Some(position);
    }

    /// What is still to be read, and what was given up.
    pub(crate) fn backfill(&self, backfill: &Backfill) {
        let (pending, cancelled) = (backfill.pending(), backfill.cancelled());
        let mut picture = self.picture();
        if picture.cancelled != cancelled {
            for table in cancelled
                .iter()
                .filter(|c| !picture.cancelled.contains(c))
                .map(|c| &c.table)
            {
                tracing::warn!(%table, "reading the table was given up: its copy may not be whole until it is refreshed");
            }
            picture.cancelled = cancelled.to_vec();
        }
        let active = |p: &[Pending]| p.first().map(|p| (p.table.clone(), p.rows));
        let (before, now) = (active(&picture.pending), active(pending));
        if before == now {
            if picture.pending.len() != pending.len() {
                picture.pending = pending.to_vec();
            }
            return;
        }
        if before.map(|(table, _)| table) != now.as_ref().map(|(table, _)| table.clone()) {
            picture.rate.clear();
        }
        let at = Instant::now();
        picture.rate.extend(now.map(|(_, rows)| (at, rows)));
        while picture.rate.len() > 2 && at - picture.rate[1].0 > WINDOW {
            picture.rate.pop_front();
        }
        picture.pending = pending.to_vec();
    }

    /// Counts what passes.
    pub(crate) fn saw(&self, event: &Event) {
        let (table, rows) = match event {
            Event::Rows(batch) => (&batch.table, None),
            Event::ReplaceRange { table, rows, .. } => (table, Some(rows.num_rows() as u64)),
            _ => return,
        };
        let mut picture = self.picture();
        let counts = picture.counts.entry(table.to_string()).or_default();
        match (event, rows) {
            (Event::Rows(batch), _) => {
                counts.logged += batch.len() as u64;
                for row in 0..batch.len() {
                    match batch.ops.get(row) {
                        Op::Insert => counts.inserted += 1,
                        Op::Update => counts.updated += 1,
                        Op::Upsert => counts.put += 1,
                        Op::Delete => counts.deleted += 1,
                    }
                }
            }
            (_, rows) => counts.put += rows.unwrap_or_default(),
        }
        if let Event::Rows(batch) = event {
            picture.rows += batch.len() as u64;
        }
    }

    /// The log consists of these files, each with the place of its beginning and its length.
    pub(crate) fn files(&self, files: Vec<(u64, u64)>) {
        self.picture().files = files;
    }

    /// The log ends here now.
    pub(crate) fn ends(&self, end: Lsn) {
        let mut picture = self.picture();
        let at = picture.effective();
        while picture.ends.front().is_some_and(|(_, lsn)| *lsn <= at) && picture.ends.len() > 1 {
            picture.ends.pop_front();
        }
        if picture.ends.back().is_none_or(|(_, last)| *last < end) {
            picture.ends.push_back((Instant::now(), end));
        }
        let now = Instant::now();
        picture.pace.push_back((now, at, end));
        while picture.pace.len() > 2 && now - picture.pace[1].0 > WINDOW {
            picture.pace.pop_front();
        }
        if picture.ends.len() > LOOKS {
            let mut keep = false;
            picture.ends.retain(|_| {
                keep = !keep;
                keep
            });
        }
    }

    /// How far a log is that is followed by this plan.
    pub fn status(&self, plan: &Plan, options: &LogOptions) -> LogStatus {
        self.status_of(&Watched::of(plan), options)
    }

    /// How far a log of these tables is.
    pub fn status_of(&self, watched: &[Watched], options: &LogOptions) -> LogStatus {
        let picture = self.picture();
        let (at, end) = (picture.effective(), picture.ends.back().map(|(_, lsn)| *lsn));
        let since = picture.ends.iter().find(|(_, lsn)| *lsn > at);
        let mut status = LogStatus {
            slot: options.slot.clone(),
            publication: options.publication.clone(),
            position: picture.durable.as_ref().map(|p| (picture.shown)(p.at)),
            end: end.map(picture.shown),
            lag_bytes: end.map(|end| bytes_between(&picture.files, at, end)),
            lag_seconds: end.map(|_| since.map_or(0.0, |(then, _)| then.elapsed().as_secs_f64())),
            lag_rows: None,
            eta_seconds: None,
            applied_up_to: picture.durable.as_ref().and_then(|p| p.committed_at),
            paused: self.requests.paused(),
            silent: picture.quiet.0.clone(),
            said: picture.quiet.1.clone(),
            tables: tables(watched, &picture.pending, &picture.cancelled),
        };
        status.lag_rows = status.lag_bytes.and_then(|lag| picture.rows_in(lag));
        status.eta_seconds = status.lag_bytes.and_then(|lag| picture.eta(lag));
        for table in &mut status.tables {
            table.absent = picture.absent.get(&table.table).cloned();
            if let Some(counts) = picture.counts.get(&table.table) {
                let share = counts.logged as f64 / picture.rows.max(1) as f64;
                table.lag_rows = status.lag_rows.map(|rows| (rows as f64 * share).round() as u64);
                (table.inserted, table.updated) = (counts.inserted, counts.updated);
                (table.put, table.deleted) = (counts.put, counts.deleted);
            }
            let Some(backfill) = table.backfill.as_mut().filter(|b| b.active) else {
                continue;
            };
            let (first, last) = (picture.rate.front(), picture.rate.back());
            if let (Some((then, before)), Some((_, after))) = (first, last) {
                let seconds = then.elapsed().as_secs_f64();
                let rate = after.saturating_sub(*before) as f64 / seconds.max(0.001);
                if seconds > 0.2 && rate > 0.0 {
                    backfill.rows_per_second = Some(rate);
                    let left = backfill.expected.map(|n| n.saturating_sub(backfill.rows));
                    backfill.eta_seconds = left.map(|n| n as f64 / rate);
                }
            }
        }
        status
    }
}

impl Picture {
    /// About how many rows are in so many bytes of the log, by those that came so far.
    fn rows_in(&self, bytes: u64) -> Option<u64> {
        let through = bytes_between(&self.files, self.opened, self.reached.max(self.read));
        match (bytes, through) {
            (0, _) => Some(0),
            (_, 0) => None,
            (bytes, through) => Some((bytes as f64 * (self.rows as f64 / through as f64)).round() as u64),
        }
    }

    /// About how long so many bytes take, while the log grows as it did of late.
    fn eta(&self, bytes: u64) -> Option<f64> {
        if bytes == 0 {
            return Some(0.0);
        }
        let ((then, from, end), (now, at, now_end)) = (self.pace.front()?, self.pace.back()?);
        let seconds = (*now - *then).as_secs_f64();
        let done = bytes_between(&self.files, *from, *at) as f64;
        let came = bytes_between(&self.files, *end, *now_end) as f64;
        (seconds > 0.5 && done > came).then(|| bytes as f64 * seconds / (done - came))
    }

    /// Nothing before this place is missing at the destination.
    fn effective(&self) -> Lsn {
        let durable = self.durable.as_ref().map_or(0, |p| p.at);
        match durable >= self.read {
            true => durable.max(self.reached),
            false => durable,
        }
    }
}

/// A table that is looked at.
#[derive(Debug, Clone)]
pub struct Watched {
    table: TableId,
    destination: TableId,
    rows: Option<u64>,
}

impl Watched {
    fn of(plan: &Plan) -> Vec<Watched> {
        let one = |t: &synctool_core::plan::PlannedTable| Watched {
            table: t.read.table.clone(),
            destination: t.destination.clone(),
            rows: initial_of(plan, &t.read.table).1,
        };
        plan.tables.iter().map(one).collect()
    }

    /// A table that goes nowhere else.
    pub(super) fn same(table: &TableId) -> Watched {
        Watched {
            table: table.clone(),
            destination: table.clone(),
            rows: None,
        }
    }
}

fn tables(watched: &[Watched], pending: &[Pending], cancelled: &[Cancelled]) -> Vec<TableStatus> {
    let given_up = |w: &Watched| {
        let c = cancelled.iter().find(|c| c.table == w.table)?;
        Some(CancelledStatus {
            kind: match (c.load, c.keys) {
                (true, _) => "load",
                (false, 0) => "resync",
                (false, _) => "keys",
            }
            .into(),
            rows: c.rows,
            keys: c.keys,
        })
    };
    let backfill = |w: &Watched| {
        let at = pending.iter().position(|p| p.table == w.table)?;
        let p = &pending[at];
        Some(BackfillStatus {
            kind: match (p.through, p.replace) {
                (true, _) => "keys",
                (false, true) => "resync",
                (false, false) => "load",
            }
            .into(),
            active: at == 0,
            rows: p.rows,
            expected: w.rows.filter(|_| !p.through),
            keys: p.keys.len(),
            ..BackfillStatus::default()
        })
    };
    let one = |w: &Watched| TableStatus {
        table: w.table.to_string(),
        destination: w.destination.to_string(),
        backfill: backfill(w),
        cancelled: given_up(w),
        ..TableStatus::default()
    };
    watched.iter().map(one).collect()
}

/// How far a log is that nobody follows at the moment, given where it stands, where it ends and of which files it is.
pub(crate) fn at_rest(
    plan: &Plan,
    options: &LogOptions,
    beside: Option<&BackfillPosition>,
    standing: Option<Standing>,
    (end, files): (u64, &[(u64, u64)]),
    shown: fn(u64) -> String,
) -> LogStatus {
    let behind = standing.map(|p| bytes_between(files, p.at, end));
    let committed_at = standing.and_then(|p| p.committed_at);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default()
        .as_micros() as i64;
    LogStatus {
        slot: options.slot.clone(),
        publication: options.publication.clone(),
        position: standing.map(|p| shown(p.at)),
        end: Some(shown(end)),
        lag_bytes: behind,
        lag_seconds: match behind {
            Some(0) => Some(0.0),
            // A clock that is ahead of ours says no age.
            _ => committed_at
                .filter(|at| *at <= now)
                .map(|at| now.saturating_sub(at) as f64 / 1e6),
        },
        lag_rows: behind.filter(|n| *n == 0),
        eta_seconds: None,
        applied_up_to: committed_at,
        paused: Pause::None,
        silent: None,
        said: None,
        tables: match beside {
            Some(beside) => tables(&Watched::of(plan), &beside.pending, &beside.cancelled),
            None => tables(&Watched::of(plan), &first_pending(plan), &[]),
        },
    }
}

/// What a plan reads beside its log at the beginning.
fn first_pending(plan: &Plan) -> Vec<Pending> {
    let one = |t: &synctool_core::plan::PlannedTable| {
        let table = t.read.table.clone();
        match initial_of(plan, &table).0 {
            _ if t.schema.key.is_empty() => None,
            Initial::Load => Some(Pending::load(table)),
            Initial::Resync => Some(Pending::resync(table)),
            Initial::Skip => None,
        }
    };
    plan.tables.iter().filter_map(one).collect()
}

/// How often it is looked whether every followed table is in the publication; oftener at first, as long as a log is set up.
const MEMBERS: Duration = Duration::from_secs(10);

/// Looks at the source for those who ask how far its log is.
pub(super) struct Watch {
    pub(super) database: Postgres,
    pub(super) steering: Arc<Steering>,
    pub(super) publication: String,
    /// The followed tables, and whether they are all of the publication.
    pub(super) tables: (Vec<TableId>, bool),
}

impl Watch {
    /// Looks again and again, as long as it is awaited.
    pub(super) async fn run(self, every: Duration) {
        let begun = Instant::now();
        let mut members: Option<Instant> = None;
        loop {
            let pause = oftener_at_first(MEMBERS, begun.elapsed());
            let due = members.is_none_or(|then| then.elapsed() >= pause);
            if let Ok(connection) = self.database.connect().await
                && let Ok(end) = end_of_log(&connection).await
            {
                self.steering.ends(end);
                if due && self.look_at_members(&connection).await.is_ok() {
                    members = Some(Instant::now());
                }
                connection.recycle();
            }
            tokio::time::sleep(every).await;
        }
    }

    async fn look_at_members(&self, connection: &Connection) -> Result<()> {
        let schema = &self.database.config().schema;
        let (tables, all) = &self.tables;
        let absent = told_absent(connection, &self.publication, tables, schema, *all).await?;
        self.steering.absent(absent);
        Ok(())
    }
}

/// The tables whose changes do not come any more, with the reason for people.
pub(super) async fn told_absent(
    connection: &Connection,
    publication: &str,
    tables: &[TableId],
    schema: &str,
    all: bool,
) -> Result<BTreeMap<String, String>> {
    let absent = membership::absent(connection, publication, tables, schema).await?;
    let told = |(table, why): (TableId, Absent)| (table.to_string(), why.told(&table, publication, schema, all));
    Ok(absent.into_iter().map(told).collect())
}

impl LogSource {
    /// How far a log is that nobody follows at the moment, by the position that the destination holds.
    pub async fn at_rest(&self, plan: &Plan, position: Option<&Position>) -> Result<LogStatus> {
        let stored = position_of(plan, position.cloned());
        let stored = stored.as_ref().map(BackfillPosition::parse).transpose()?;
        let log = match stored.as_ref().and_then(|p| p.log.as_ref()) {
            Some(log) => Some(LogPosition::parse(log)?),
            None => None,
        };
        let connection = self.database().connect().await?;
        let end = end_of_log(&connection).await?;
        let names: Vec<TableId> = plan.tables.iter().map(|t| t.read.table.clone()).collect();
        let (publication, schema) = (&self.options().publication, &self.database().config().schema);
        let mut absent = match &stored {
            Some(_) => told_absent(&connection, publication, &names, schema, follows_all(plan)).await?,
            None => BTreeMap::new(),
        };
        connection.recycle();
        let standing = log.as_ref().map(LogPosition::standing);
        let mut status = at_rest(plan, self.options(), stored.as_ref(), standing, (end, &[]), lsn);
        for table in &mut status.tables {
            table.absent = absent.remove(&table.table);
        }
        Ok(status)
    }

    /// The replication slots of the server.
    pub async fn slots(&self) -> Result<Vec<SlotStatus>> {
        self.database().slots().await
    }

    /// Drops the slot, whoever reads it: the server may forget its log. Only a repair goes on from there.
    pub async fn give_up(&self) -> Result<()> {
        let connection = self.database().connect().await?;
        slot::end_reader(&connection, &self.options().slot).await?;
        slot::wait_free(&connection, &self.options().slot, self.options().status_interval).await?;
        slot::drop(&connection, &self.options().slot).await?;
        connection.recycle();
        Ok(())
    }
}

impl Postgres {
    /// The replication slots of the server, with what they hold back.
    pub async fn slots(&self) -> Result<Vec<SlotStatus>> {
        let connection = self.connect().await?;
        let found = slot::all(&connection).await?;
        connection.recycle();
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_time_are_estimated_from_what_came() {
        let mut picture = Picture {
            opened: 1000,
            read: 3000,
            rows: 40,
            ..Picture::default()
        };
        assert_eq!(picture.rows_in(500), Some(10));
        assert_eq!(picture.rows_in(0), Some(0));
        assert_eq!(picture.eta(500), None, "no pace is known");
        let now = Instant::now();
        picture.pace = [(now - Duration::from_secs(10), 1000, 4000), (now, 3000, 5000)].into();
        // Two thousand bytes done while one thousand came, in ten seconds.
        assert_eq!(picture.eta(500).map(f64::round), Some(5.0));
        picture.pace[1].2 = 9000;
        assert_eq!(picture.eta(500), None, "it falls behind");
        picture.read = picture.opened;
        assert_eq!(picture.rows_in(500), None, "nothing came yet");
    }
}
