//! The local tables of Data Sync as commands see them, whether the service runs or not: its state, its log and its
//! counts to look at, requests to leave.

use super::ddl;
use super::journal::{self, Entry, Tallies};
use super::sql;
use super::tables;
use crate::postgres::{Connection, Postgres, PostgresConfig};
use serde_json::Value;
use std::time::{Duration, SystemTime};
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::Lsn;

/// A session that looks at the local tables of Data Sync.
#[derive(Debug)]
pub struct Board {
    local: Connection,
}

/// What somebody wants of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wanted {
    /// It should end.
    pub stop: bool,
    /// Something is to be done between batches.
    pub tend: bool,
}

/// What the service answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it did what was asked for.
    pub ok: bool,
    /// What it says.
    pub text: String,
}

/// What was being done when an error came.
#[derive(Debug, Clone, Default)]
pub struct UnderWay {
    /// The stored place.
    pub from: Option<Lsn>,
    /// The end of the batch, as far as it was read.
    pub to: Option<Lsn>,
    /// Its first and its last segment.
    pub segments: Option<(String, String)>,
}

/// How long the archive has brought nothing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quiet {
    /// For so long the same segment is awaited.
    pub lasts: Duration,
    /// Whether that was told.
    pub told: bool,
}

/// Which lines of the log.
#[derive(Debug, Clone, Default)]
pub struct LogFilter {
    /// At most so many, the newest.
    pub limit: i64,
    /// Only this table's.
    pub table: Option<String>,
    /// Only `error`, or `warn` and worse.
    pub level: Option<String>,
}

/// Which counts.
#[derive(Debug, Clone, Default)]
pub struct MetricsFilter {
    /// At most so many, the newest.
    pub limit: i64,
    /// Only this table's; `*` is the whole.
    pub table: Option<String>,
    /// `window`, `week` or `month`.
    pub period: Option<String>,
}

/// Makes the local tables, if they are not there.
pub async fn create(local: &Connection) -> Result<()> {
    let run = |e| {
        let error = local.error(e, "making the tables of Data Sync in the local database");
        match error.code() == code::PERMISSION {
            true => error.hint_instead("the role needs CREATE on the database and on its schema public"),
            false => error,
        }
    };
    let exists: bool = local.query_one(ddl::EXISTS, &[]).await.map_err(run)?.get(0);
    match exists {
        true => Ok(()),
        false => local.batch_execute(ddl::CREATE).await.map_err(run),
    }
}

impl Board {
    /// Opens a session; makes the tables.
    pub async fn open(config: &PostgresConfig) -> Result<Board> {
        let local = Postgres::open(config.clone())?.connect().await?;
        create(&local).await?;
        Ok(Board { local })
    }

    /// The session.
    pub fn session(&self) -> &Connection {
        &self.local
    }

    /// Whether a process works on these tables.
    pub async fn is_locked(&self) -> Result<bool> {
        let row = self.local.query_one(sql::LOCKED, &[]).await;
        Ok(row.map_err(|e| self.local.error(e, "looking for the service"))?.get(0))
    }

    /// Waits a moment for the lock that only one process may have, and keeps it as long as the session.
    pub async fn lock(&self) -> Result<()> {
        super::sync::lock(&self.local).await
    }

    /// Everything about the service and the place, as one document.
    pub async fn status(&self) -> Result<Value> {
        self.json(sql::STATUS, &[]).await
    }

    /// Every table, as a list.
    pub async fn tables(&self) -> Result<Value> {
        self.json(sql::TABLE_LIST, &[]).await
    }

    /// Lines of the log, the oldest first.
    pub async fn logs(&self, filter: &LogFilter) -> Result<Value> {
        let table = filter.table.as_deref().map(full_name);
        self.json(sql::LOGS, &[&filter.limit, &table, &filter.level]).await
    }

    /// Counts, the newest first.
    pub async fn metrics(&self, filter: &MetricsFilter) -> Result<Value> {
        let table = filter.table.as_deref().map(full_name);
        self.json(sql::METRICS, &[&filter.limit, &table, &filter.period]).await
    }

    async fn json(&self, sql: &str, values: &[&(dyn postgres_types::ToSql + Sync)]) -> Result<Value> {
        let row = self.local.query_one(sql, values).await;
        let text: Option<String> = row
            .map_err(|e| self.local.error(e, "reading the local tables of Data Sync"))?
            .get(0);
        serde_json::from_str(text.as_deref().unwrap_or("[]"))
            .map_err(|e| Error::bug("JSON of the server that is none").caused_by(e))
    }

    /// Whether these tables exist here: those that do not are told.
    pub async fn missing(&self, names: &[String]) -> Result<Vec<String>> {
        let found = tables::find(&self.local, names.iter().map(String::as_str)).await?;
        Ok(names
            .iter()
            .filter(|n| !found.names.contains_key(*n))
            .cloned()
            .collect())
    }

    /// The names that are selected.
    pub async fn selected(&self) -> Result<Vec<String>> {
        self.names(sql::SELECTED).await
    }

    /// The tables that hold the rows of selected names.
    pub async fn followed(&self) -> Result<Vec<String>> {
        self.names(sql::FOLLOWED).await
    }

    /// The tables of the local database.
    pub async fn tables_here(&self) -> Result<Vec<String>> {
        self.names(sql::TABLES_HERE).await
    }

    async fn names(&self, sql: &str) -> Result<Vec<String>> {
        let rows = self.local.query(sql, &[]).await;
        let rows = rows.map_err(|e| self.local.error(e, "reading the names of tables"))?;
        Ok(rows.iter().map(|row| full_name(row.get(0))).collect())
    }

    /// Adds tables to those that are selected; says which are new.
    pub async fn select(&self, names: &[String]) -> Result<Vec<String>> {
        let rows = self.local.query(sql::SELECT, &[&names]).await;
        let rows = rows.map_err(|e| self.local.error(e, "writing tables_to_sync"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Takes tables away from those that are selected; says which were there.
    pub async fn deselect(&self, names: &[String]) -> Result<Vec<String>> {
        let names: Vec<String> = names.iter().map(|name| full_name(name)).collect();
        let rows = self.local.query(sql::DESELECT, &[&names]).await;
        let rows = rows.map_err(|e| self.local.error(e, "writing tables_to_sync"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// Leaves a request; its number is for asking after the answer.
    pub async fn request(&self, kind: &str, table: Option<&str>) -> Result<i64> {
        let row = self.local.query_one(sql::REQUEST, &[&kind, &table]).await;
        Ok(row.map_err(|e| self.local.error(e, "leaving a request"))?.get(0))
    }

    /// The answer, once it is there.
    pub async fn answer(&self, request: i64) -> Result<Option<Answer>> {
        let sql = "SELECT ok, answer FROM synctool.datasync_requests WHERE id = $1 AND done_at IS NOT NULL";
        let row = self.local.query_opt(sql, &[&request]).await;
        let row = row.map_err(|e| self.local.error(e, "looking for an answer"))?;
        Ok(row.map(|row| Answer {
            ok: row.get(0),
            text: row.get(1),
        }))
    }

    /// What is wanted of the service.
    pub async fn wanted(&self) -> Result<Wanted> {
        let row = self.local.query_one(sql::WANTED, &[]).await;
        let row = row.map_err(|e| self.local.error(e, "looking for requests"))?;
        Ok(Wanted {
            stop: row.get(0),
            tend: row.get(1),
        })
    }

    /// The service begins: what was said to an earlier one is past.
    pub async fn begin_service(&self, host: &str) -> Result<()> {
        let pid = i64::from(std::process::id());
        let version = env!("CARGO_PKG_VERSION");
        let done = self.local.execute(sql::BEGIN_SERVICE, &[&host, &pid, &version]).await;
        done.map_err(|e| self.local.error(e, "storing that the service began"))?;
        self.stops_are_past().await
    }

    /// Nobody is there any more whom somebody asked to end: whoever works now is not meant.
    pub async fn stops_are_past(&self) -> Result<()> {
        let past =
            "UPDATE synctool.datasync_requests SET done_at = clock_timestamp(), ok = true, answer = 'it had ended'
                    WHERE done_at IS NULL AND kind = 'stop'";
        let done = self.local.batch_execute(past).await;
        done.map_err(|e| self.local.error(e, "storing that a request is past"))
    }

    /// The service says what it does.
    pub async fn beat(&self, state: &str, waiting_for: Option<&str>) -> Result<()> {
        let sql = "UPDATE synctool.datasync_service SET state = $1, waiting_for = $2, beat_at = clock_timestamp()";
        let done = self.local.execute(sql, &[&state, &waiting_for]).await;
        done.map(drop)
            .map_err(|e| self.local.error(e, "storing what the service does"))
    }

    /// The service lives.
    pub async fn beat_again(&self) -> Result<()> {
        let sql = "UPDATE synctool.datasync_service SET beat_at = clock_timestamp()
                   WHERE beat_at < clock_timestamp() - interval '5 seconds'";
        let done = self.local.batch_execute(sql).await;
        done.map_err(|e| self.local.error(e, "storing what the service does"))
    }

    /// The service has done what it was asked for and ends.
    pub async fn stopped(&self) -> Result<()> {
        let done = "UPDATE synctool.datasync_requests SET done_at = clock_timestamp(), ok = true, answer = 'stopped'
                    WHERE done_at IS NULL AND kind = 'stop'";
        self.beat("stopped", None).await?;
        let done = self.local.batch_execute(done).await;
        done.map_err(|e| self.local.error(e, "storing that the service ends"))
    }

    /// Stores an error, counts it and writes it down; the same one again is only stored.
    pub async fn failed(&self, error: &Error, under_way: UnderWay, window_hours: u32) -> Result<()> {
        let (id, message, next) = (error.code().id, error.message(), error.next_step());
        let row = self.local.query_opt(sql::FAILED, &[&id, &message, &next]).await;
        let news = row.map_err(|e| self.local.error(e, "storing an error"))?;
        if news.is_none_or(|row| row.get(0)) {
            let mut entry = Entry::of_error("error", "error", error);
            entry.from = match under_way.from {
                None => self.applied().await?,
                from => from,
            };
            entry.to = under_way.to.or(entry.to);
            // The one that is the trouble says more than those of the batch.
            entry.segments = entry.segments.or(under_way.segments);
            journal::log(&self.local, &entry).await?;
        }
        let tallies = Tallies {
            errors: 1,
            ..Tallies::default()
        };
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        let hour = i64::try_from(now.as_secs() / 3600).unwrap_or_default();
        journal::count(&self.local, journal::ALL, hour, window_hours, &tallies).await
    }

    /// The archive was looked at and did not bring this segment; says for how long it has not.
    pub async fn looked(&self, awaited: &str, said: Option<&str>) -> Result<Quiet> {
        let row = self.local.query_one(sql::LOOKED, &[&awaited, &said]).await;
        let row = row.map_err(|e| self.local.error(e, "storing what the archive lacks"))?;
        Ok(Quiet {
            lasts: Duration::try_from_secs_f64(row.get(0)).unwrap_or_default(),
            told: row.get(1),
        })
    }

    /// That it is silent was told.
    pub async fn silence_is_told(&self) -> Result<()> {
        let done = self.local.batch_execute(sql::SILENCE_TOLD).await;
        done.map_err(|e| self.local.error(e, "storing what was told"))
    }

    /// There is no error any more.
    pub async fn well_again(&self) -> Result<()> {
        let sql =
            "UPDATE synctool.datasync_service SET error_code = NULL, error = NULL, error_next = NULL, error_at = NULL
                   WHERE error IS NOT NULL";
        let done = self.local.batch_execute(sql).await;
        done.map_err(|e| self.local.error(e, "storing what the service does"))
    }

    /// Writes a line of the log.
    pub async fn log(&self, entry: &Entry<'_>) -> Result<()> {
        journal::log(&self.local, entry).await
    }

    /// Removes lines of the log that are older, and answered requests.
    pub async fn forget_older(&self, days: u32) -> Result<u64> {
        let days = f64::from(days);
        let done = self.local.execute(sql::FORGET_LOGS, &[&days]).await;
        let gone = done.map_err(|e| self.local.error(e, "removing old lines of data_sync_logs"))?;
        let done = self.local.execute(sql::FORGET_REQUESTS, &[&days]).await;
        done.map_err(|e| self.local.error(e, "removing old requests"))?;
        Ok(gone)
    }

    /// Forgets the place: the next start begins anew from a base backup, and copies every table. Only for who holds the
    /// lock.
    pub async fn forget_place(&self) -> Result<()> {
        let done = self.local.batch_execute(sql::FORGET_PLACE).await;
        done.map_err(|e| self.local.error(e, "forgetting the place"))
    }

    /// The stored place.
    pub async fn applied(&self) -> Result<Option<Lsn>> {
        let row = self.local.query_opt(sql::STATE, &[]).await;
        let row = row.map_err(|e| self.local.error(e, "reading the state"))?;
        let text: Option<String> = row.map(|row| row.get(2));
        text.map(|text| {
            text.parse()
                .map_err(|e| Error::new(code::STATE_STORE, "the stored place cannot be read").caused_by(e))
        })
        .transpose()
    }
}

/// Refuses a table that belongs to the server, or to Data Sync itself.
pub fn check_name(text: &str) -> Result<()> {
    let name = tables::parse_name(text);
    let schema = name.0.trim_matches('"');
    if schema.starts_with("pg_") || matches!(schema, "information_schema" | "synctool") {
        let what = format!("{} belongs to the server itself", tables::display(&name));
        return Err(Error::new(code::REFUSED, what).hint("name tables of users; nothing was added"));
    }
    match tables::is_own(&name) {
        true => Err(tables::own(&tables::display(&name))),
        false => Ok(()),
    }
}

/// `schema.table`; without a schema it is `public`. The name of the whole stays.
pub fn full_name(text: &str) -> String {
    match text {
        journal::ALL => text.to_owned(),
        text => tables::display(&tables::parse_name(text)),
    }
}
