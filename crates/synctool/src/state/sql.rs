//! The store over any SQL database that takes `$n` parameters, `ON CONFLICT` and `RETURNING`: one set of statements for
//! all of them.

use super::model::{Time, now, partition_status};
use super::{
    Area, Holder, PartitionRecord, PipelineMemory, Proof, Retention, Run, RunError, RunLock, RunStatus, Store,
};
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::HashMap;
use synctool_core::error::{Error, Result, code};

/// What goes into a statement and comes out of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Int(i64),
    Real(f64),
    Text(String),
    Bytes(Vec<u8>),
}

impl From<u64> for Value {
    fn from(n: u64) -> Self {
        Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }
}

impl From<&str> for Value {
    fn from(s: &str) -> Self {
        // PostgreSQL's text cannot hold it, and nobody misses it.
        Value::Text(s.replace('\0', ""))
    }
}

impl From<Time> for Value {
    fn from(t: Time) -> Self {
        Value::Int(t.timestamp_millis())
    }
}

impl<T: Into<Value>> From<Option<T>> for Value {
    fn from(o: Option<T>) -> Self {
        o.map_or(Value::Null, Into::into)
    }
}

/// One statement and its parameters.
pub struct Statement {
    pub sql: &'static str,
    pub values: Vec<Value>,
}

pub(super) fn statement(sql: &'static str, values: Vec<Value>) -> Statement {
    Statement { sql, values }
}

/// The rows of one statement.
pub type Rows = Vec<Vec<Value>>;

/// A database that runs statements, and what is particular to it.
#[async_trait]
pub trait Database: Send + Sync + 'static {
    fn place(&self) -> &str;

    /// All statements in one transaction; the rows of each.
    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<Rows>>;

    /// The lock of a pipeline, or the error that names its holder.
    async fn lock(&self, pipeline: &str) -> Result<RunLock>;

    /// The lock if it is free; does not wait.
    async fn try_lock(&self, pipeline: &str) -> Result<Option<RunLock>>;

    async fn holder(&self, pipeline: &str) -> Result<Option<Holder>>;
}

/// What changed in the tables, version by version; never edited, only added to. `{blob}` and `{key}` (text compared by
/// bytes) and `{real}` are the database's words.
pub(super) const MIGRATIONS: &[&[&str]] = &[&[
    "CREATE TABLE runs (
        run_id TEXT NOT NULL PRIMARY KEY,
        pipeline TEXT NOT NULL,
        strategy TEXT NOT NULL,
        strategy_type TEXT NOT NULL,
        status TEXT NOT NULL,
        started_at BIGINT NOT NULL,
        updated_at BIGINT NOT NULL,
        completed_at BIGINT,
        worker TEXT NOT NULL,
        resumed_from TEXT,
        reasons TEXT NOT NULL,
        partitions_total BIGINT NOT NULL,
        partitions_completed BIGINT NOT NULL,
        partitions_skipped BIGINT NOT NULL,
        partitions_failed BIGINT NOT NULL,
        rows_processed BIGINT NOT NULL,
        rows_inserted BIGINT NOT NULL,
        rows_updated BIGINT NOT NULL,
        rows_deleted BIGINT NOT NULL,
        rows_unchanged BIGINT NOT NULL,
        rows_rejected BIGINT NOT NULL,
        bytes BIGINT NOT NULL,
        retries BIGINT NOT NULL,
        verified TEXT,
        ledger TEXT,
        error TEXT
    )",
    "CREATE INDEX runs_by_pipeline ON runs (pipeline, started_at)",
    "CREATE TABLE partitions (
        run_id TEXT NOT NULL REFERENCES runs ON DELETE CASCADE,
        partition_id TEXT NOT NULL,
        status TEXT NOT NULL,
        rows_read BIGINT NOT NULL,
        bytes BIGINT NOT NULL,
        seconds {real} NOT NULL,
        completed_at BIGINT,
        error TEXT,
        first_seen BIGINT NOT NULL,
        PRIMARY KEY (run_id, partition_id)
    )",
    "CREATE TABLE resets (
        pipeline TEXT NOT NULL,
        strategy TEXT NOT NULL,
        reset_at BIGINT NOT NULL,
        PRIMARY KEY (pipeline, strategy)
    )",
    "CREATE TABLE areas (
        pipeline TEXT NOT NULL,
        area TEXT NOT NULL,
        entry {key} NOT NULL,
        content {blob} NOT NULL,
        PRIMARY KEY (pipeline, area, entry)
    )",
]];

/// The columns of a run, in the order of [`run_values`] and [`run_of`].
macro_rules! run_columns {
    () => {
        "run_id, pipeline, strategy, strategy_type, status, started_at, updated_at, completed_at, worker, resumed_from, \
         reasons, partitions_total, partitions_completed, partitions_skipped, partitions_failed, rows_processed, \
         rows_inserted, rows_updated, rows_deleted, rows_unchanged, rows_rejected, bytes, retries, verified, ledger, error"
    };
}

fn text_of(value: &impl Serialize) -> Result<String> {
    serde_json::to_string(value).map_err(|e| Error::bug(format!("a state record: {e}")))
}

fn name_of(value: &impl Serialize) -> Result<String> {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(name)) => Ok(name),
        _ => Err(Error::bug("a state record's name is not a text")),
    }
}

fn run_values(run: &Run) -> Result<Vec<Value>> {
    let optional = |text: Option<String>| Value::from(text.as_deref());
    Ok(vec![
        run.run_id.as_str().into(),
        run.pipeline.as_str().into(),
        run.strategy.as_str().into(),
        name_of(&run.strategy_type)?.as_str().into(),
        run.status.as_str().into(),
        run.started_at.into(),
        run.updated_at.into(),
        run.completed_at.into(),
        run.worker.as_str().into(),
        run.resumed_from.as_deref().into(),
        text_of(&run.reasons)?.as_str().into(),
        run.partitions.total.into(),
        run.partitions.completed.into(),
        run.partitions.skipped.into(),
        run.partitions.failed.into(),
        run.rows.processed.into(),
        run.rows.inserted.into(),
        run.rows.updated.into(),
        run.rows.deleted.into(),
        run.rows.unchanged.into(),
        run.rows.rejected.into(),
        run.bytes.into(),
        run.retries.into(),
        optional(run.verified.as_ref().map(text_of).transpose()?),
        optional(run.ledger.as_ref().map(text_of).transpose()?),
        optional(run.error.as_ref().map(text_of).transpose()?),
    ])
}

/// Takes the values of a row one after the other.
struct Row(std::vec::IntoIter<Value>);

impl Row {
    fn broken() -> Error {
        Error::new(code::STATE_STORE, "the state store holds a record that cannot be read")
            .hint("it was written by another version or by hand; restore it, or move it away to start afresh")
    }

    fn next(&mut self) -> Result<Value> {
        self.0.next().ok_or_else(Self::broken)
    }

    fn optional_text(&mut self) -> Result<Option<String>> {
        match self.next()? {
            Value::Text(s) => Ok(Some(s)),
            Value::Null => Ok(None),
            _ => Err(Self::broken()),
        }
    }

    fn text(&mut self) -> Result<String> {
        self.optional_text()?.ok_or_else(Self::broken)
    }

    fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        serde_json::from_str(&self.text()?).map_err(|_| Self::broken())
    }

    fn optional_json<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
        let text = self.optional_text()?;
        text.map(|t| serde_json::from_str(&t).map_err(|_| Self::broken()))
            .transpose()
    }

    fn optional_int(&mut self) -> Result<Option<i64>> {
        match self.next()? {
            Value::Int(n) => Ok(Some(n)),
            Value::Null => Ok(None),
            _ => Err(Self::broken()),
        }
    }

    fn count(&mut self) -> Result<u64> {
        let n = self.optional_int()?.ok_or_else(Self::broken)?;
        u64::try_from(n).map_err(|_| Self::broken())
    }

    fn real(&mut self) -> Result<f64> {
        match self.next()? {
            Value::Real(x) => Ok(x),
            Value::Int(n) => Ok(n as f64),
            _ => Err(Self::broken()),
        }
    }

    fn optional_time(&mut self) -> Result<Option<Time>> {
        self.optional_int()?
            .map(|ms| DateTime::<Utc>::from_timestamp_millis(ms).ok_or_else(Self::broken))
            .transpose()
    }

    fn time(&mut self) -> Result<Time> {
        self.optional_time()?.ok_or_else(Self::broken)
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        match self.next()? {
            Value::Bytes(b) => Ok(b),
            _ => Err(Self::broken()),
        }
    }
}

fn run_of(row: Vec<Value>) -> Result<Run> {
    let r = &mut Row(row.into_iter());
    Ok(Run {
        run_id: r.text()?,
        pipeline: r.text()?,
        strategy: r.text()?,
        strategy_type: serde_json::from_value(r.text()?.into()).map_err(|_| Row::broken())?,
        status: RunStatus::parse(&r.text()?).ok_or_else(Row::broken)?,
        started_at: r.time()?,
        updated_at: r.time()?,
        completed_at: r.optional_time()?,
        worker: r.text()?,
        resumed_from: r.optional_text()?,
        reasons: r.json()?,
        partitions: super::PartitionCounts {
            total: r.count()?,
            completed: r.count()?,
            skipped: r.count()?,
            failed: r.count()?,
        },
        rows: super::RowCounts {
            processed: r.count()?,
            inserted: r.count()?,
            updated: r.count()?,
            deleted: r.count()?,
            unchanged: r.count()?,
            rejected: r.count()?,
        },
        bytes: r.count()?,
        retries: r.count()?,
        verified: r.optional_json::<Proof>()?,
        ledger: r.optional_json()?,
        error: r.optional_json()?,
    })
}

fn partition_of(row: Vec<Value>) -> Result<PartitionRecord> {
    let r = &mut Row(row.into_iter());
    Ok(PartitionRecord {
        id: r.text()?,
        status: partition_status::parse(&r.text()?).ok_or_else(Row::broken)?,
        rows: r.count()?,
        bytes: r.count()?,
        seconds: r.real()?,
        completed_at: r.optional_time()?,
        error: r.optional_text()?,
    })
}

const BEGIN_RUN: &str = concat!(
    "INSERT INTO runs (",
    run_columns!(),
    ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22, $23, \
     $24, $25, $26)"
);
const SAVE_RUN: &str = "UPDATE runs SET status = $2, updated_at = $3, completed_at = $4, resumed_from = $5, reasons = $6, \
    partitions_total = $7, partitions_completed = $8, partitions_skipped = $9, partitions_failed = $10, \
    rows_processed = $11, rows_inserted = $12, rows_updated = $13, rows_deleted = $14, rows_unchanged = $15, \
    rows_rejected = $16, bytes = $17, retries = $18, verified = $19, ledger = $20, error = $21, strategy_type = $22 WHERE run_id = $1 AND status = 'running' RETURNING run_id";
/// Which of the values of a run [`SAVE_RUN`] takes: what is settled at the beginning stays.
const SAVED: [usize; 22] = [
    0, 4, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 3,
];
/// A late writer of a run that is over adds no partitions either.
const SAVE_PARTITION: &str = "INSERT INTO partitions \
    (run_id, partition_id, status, rows_read, bytes, seconds, completed_at, error, first_seen) \
    SELECT run_id, $2, $3, $4, $5, $6, $7, $8, $9 FROM runs WHERE run_id = $1 AND status = 'running' \
    ON CONFLICT (run_id, partition_id) DO UPDATE SET status = excluded.status, rows_read = excluded.rows_read, \
    bytes = excluded.bytes, seconds = excluded.seconds, completed_at = excluded.completed_at, error = excluded.error";
const SETTLE: &str = "UPDATE runs SET status = 'interrupted', completed_at = updated_at, error = $2 \
    WHERE pipeline = $1 AND status = 'running'";
const PARTITIONS: &str = "SELECT partition_id, status, rows_read, bytes, seconds, completed_at, error FROM partitions \
    WHERE run_id = $1 ORDER BY first_seen, partition_id";
const LAST_PARTITION: &str = "SELECT partition_id, status, rows_read, bytes, seconds, completed_at, error FROM partitions \
    WHERE run_id = $1 AND status = 'done' ORDER BY completed_at DESC, partition_id DESC LIMIT 1";
/// The newest run of each strategy since its last reset.
const STATE: &str = concat!(
    "SELECT ",
    run_columns!(),
    " FROM runs AS r WHERE pipeline = $1 \
     AND NOT EXISTS (SELECT 1 FROM resets AS x WHERE x.pipeline = r.pipeline \
         AND (x.strategy = '' OR x.strategy = r.strategy) AND x.reset_at >= r.started_at) \
     AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.pipeline = r.pipeline AND n.strategy = r.strategy \
         AND (n.started_at > r.started_at OR (n.started_at = r.started_at AND n.run_id > r.run_id))) \
     ORDER BY started_at DESC, run_id DESC"
);
const FAILURES: &str = "SELECT strategy, count(*) FROM runs AS r WHERE pipeline = $1 AND status = 'failed' \
    AND NOT EXISTS (SELECT 1 FROM runs AS n WHERE n.pipeline = r.pipeline AND n.strategy = r.strategy \
        AND n.status = 'completed' AND n.started_at > r.started_at) GROUP BY strategy";
const RESET: &str = "INSERT INTO resets (pipeline, strategy, reset_at) VALUES ($1, $2, $3) \
    ON CONFLICT (pipeline, strategy) DO UPDATE SET reset_at = excluded.reset_at";
const FORGET: &str = concat!(
    "DELETE FROM runs WHERE run_id IN (SELECT run_id FROM (SELECT run_id, status, \
         coalesce(completed_at, updated_at) AS ended, \
         row_number() OVER (PARTITION BY pipeline, strategy ORDER BY started_at DESC, run_id DESC) AS nth \
         FROM runs WHERE pipeline = $1 OR $1 = '') AS ranked \
     WHERE status <> 'running' AND nth > 1 AND (ended < $2 OR nth > $3)) RETURNING ",
    run_columns!()
);
const AREA_PUT: &str = "INSERT INTO areas (pipeline, area, entry, content) VALUES ($1, $2, $3, $4) \
    ON CONFLICT (pipeline, area, entry) DO UPDATE SET content = excluded.content";

/// The error for tables that a newer version made.
pub(super) fn newer(place: &str) -> Error {
    Error::new(
        code::STATE_STORE,
        format!("the state store {place} was written by a newer version of synctool"),
    )
    .hint("use that version, or another data directory")
}

/// A [`Store`] over a [`Database`].
pub struct SqlStore<D> {
    pub(super) database: D,
}

impl<D: Database> SqlStore<D> {
    async fn one(&self, sql: &'static str, values: Vec<Value>) -> Result<Rows> {
        let mut all = self.database.transaction(vec![statement(sql, values)]).await?;
        all.pop().ok_or_else(|| Error::bug("a statement without an answer"))
    }

    async fn runs_where(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Run>> {
        self.one(sql, values).await?.into_iter().map(run_of).collect()
    }

    /// A run that is called running although nobody holds its pipeline's lock is dead. Returns whether any was found.
    async fn settle_dead(&self, runs: &[Run]) -> Result<bool> {
        let mut pipelines: Vec<&str> = runs
            .iter()
            .filter(|r| r.status == RunStatus::Running)
            .map(|r| r.pipeline.as_str())
            .collect();
        pipelines.sort_unstable();
        pipelines.dedup();
        let mut found = false;
        for pipeline in pipelines {
            if self.database.holder(pipeline).await?.is_none()
                && let Some(lock) = self.database.try_lock(pipeline).await?
            {
                self.one(SETTLE, vec![pipeline.into(), died()?]).await?;
                lock.release().await;
                found = true;
            }
        }
        Ok(found)
    }

    /// Runs by a query, with the dead ones called so.
    async fn settled(&self, sql: &'static str, values: Vec<Value>) -> Result<Vec<Run>> {
        let runs = self.runs_where(sql, values.clone()).await?;
        if self.settle_dead(&runs).await? {
            return self.runs_where(sql, values).await;
        }
        Ok(runs)
    }
}

fn died() -> Result<Value> {
    let error = RunError {
        code: code::INTERRUPTED.id.into(),
        message: "the process ended without finishing the run".into(),
        hint: Some("run the same command again to go on from here".into()),
    };
    Ok(text_of(&error)?.as_str().into())
}

#[async_trait]
impl<D: Database> Store for SqlStore<D> {
    fn place(&self) -> &str {
        self.database.place()
    }

    async fn lock(&self, pipeline: &str) -> Result<RunLock> {
        self.database.lock(pipeline).await
    }

    async fn holder(&self, pipeline: &str) -> Result<Option<Holder>> {
        self.database.holder(pipeline).await
    }

    async fn begin_run(&self, lock: &RunLock, run: &Run) -> Result<()> {
        if lock.pipeline() != run.pipeline {
            return Err(Error::bug("a run begins under another pipeline's lock"));
        }
        let settle = statement(SETTLE, vec![run.pipeline.as_str().into(), died()?]);
        let begin = statement(BEGIN_RUN, run_values(run)?);
        self.database.transaction(vec![settle, begin]).await.map(drop)
    }

    async fn save_run(&self, run: &Run, changed: &[PartitionRecord]) -> Result<()> {
        let first_seen = Value::from(now());
        // The partitions first: they are refused after the run's own row says that it is over.
        let mut all: Vec<Statement> = changed
            .iter()
            .map(|p| {
                statement(
                    SAVE_PARTITION,
                    vec![
                        run.run_id.as_str().into(),
                        p.id.as_str().into(),
                        partition_status::name(p.status).into(),
                        p.rows.into(),
                        p.bytes.into(),
                        Value::Real(p.seconds),
                        p.completed_at.into(),
                        p.error.as_deref().into(),
                        first_seen.clone(),
                    ],
                )
            })
            .collect();
        let values = run_values(run)?;
        all.push(statement(SAVE_RUN, SAVED.iter().map(|i| values[*i].clone()).collect()));
        let answers = self.database.transaction(all).await?;
        if answers.last().is_some_and(|rows| !rows.is_empty()) {
            return Ok(());
        }
        Err(Error::new(
            code::FENCED,
            format!(
                "run {} is over in the state store: another process took it for dead",
                run.run_id
            ),
        )
        .at("pipeline", &run.pipeline)
        .hint(format!("synctool runs list {}", run.pipeline)))
    }

    async fn run(&self, run_id: &str) -> Result<Run> {
        const SQL: &str = concat!("SELECT ", run_columns!(), " FROM runs WHERE run_id = $1");
        let run = self.settled(SQL, vec![run_id.into()]).await?.pop();
        run.ok_or_else(|| Error::new(code::RUN_UNKNOWN, format!("there is no run {run_id}")).hint("synctool runs list"))
    }

    async fn runs(&self, pipeline: Option<&str>, limit: usize) -> Result<Vec<Run>> {
        const OF_ONE: &str = concat!(
            "SELECT ",
            run_columns!(),
            " FROM runs WHERE pipeline = $1 ORDER BY started_at DESC, run_id DESC LIMIT $2"
        );
        const OF_ALL: &str = concat!(
            "SELECT ",
            run_columns!(),
            " FROM runs ORDER BY started_at DESC, run_id DESC LIMIT $1"
        );
        let limit = Value::from(limit as u64);
        match pipeline {
            Some(pipeline) => self.settled(OF_ONE, vec![pipeline.into(), limit]).await,
            None => self.settled(OF_ALL, vec![limit]).await,
        }
    }

    async fn partitions(&self, run_id: &str) -> Result<Vec<PartitionRecord>> {
        let rows = self.one(PARTITIONS, vec![run_id.into()]).await?;
        rows.into_iter().map(partition_of).collect()
    }

    async fn pipelines(&self) -> Result<Vec<String>> {
        let rows = self
            .one("SELECT DISTINCT pipeline FROM runs ORDER BY pipeline", Vec::new())
            .await?;
        rows.into_iter().map(|r| Row(r.into_iter()).text()).collect()
    }

    async fn state(&self, pipeline: &str) -> Result<Option<PipelineMemory>> {
        let newest = self.settled(STATE, vec![pipeline.into()]).await?;
        let Some(run) = newest.first().cloned() else {
            return Ok(None);
        };
        let mut answers = self
            .database
            .transaction(vec![
                statement(LAST_PARTITION, vec![run.run_id.as_str().into()]),
                statement(FAILURES, vec![pipeline.into()]),
            ])
            .await?
            .into_iter();
        let (last, counted) = (answers.next().unwrap_or_default(), answers.next().unwrap_or_default());
        let failures = counted
            .into_iter()
            .map(|row| {
                let r = &mut Row(row.into_iter());
                Ok((r.text()?, r.count()?))
            })
            .collect::<Result<HashMap<String, u64>>>()?;
        let strategies = newest
            .into_iter()
            .map(|run| {
                let failed = failures.get(&run.strategy).copied().unwrap_or(0);
                (run, failed)
            })
            .collect();
        Ok(Some(PipelineMemory {
            run,
            last_partition: last.into_iter().next().map(partition_of).transpose()?,
            strategies,
        }))
    }

    async fn reset(&self, lock: &RunLock, strategy: Option<&str>) -> Result<()> {
        let pipeline = Value::from(lock.pipeline());
        let mut all = vec![
            statement(SETTLE, vec![pipeline.clone(), died()?]),
            statement(
                RESET,
                vec![pipeline.clone(), strategy.unwrap_or("").into(), now().into()],
            ),
        ];
        if strategy.is_none() {
            all.push(statement("DELETE FROM areas WHERE pipeline = $1", vec![pipeline]));
        }
        self.database.transaction(all).await.map(drop)
    }

    async fn forget_runs(&self, retention: &Retention) -> Result<Vec<Run>> {
        let values = vec![
            retention.pipeline.as_deref().unwrap_or("").into(),
            Value::Int(retention.ended_before.map_or(i64::MIN, |t| t.timestamp_millis())),
            Value::from(retention.per_strategy.map_or(u64::MAX, |n| n as u64)),
        ];
        self.runs_where(FORGET, values).await
    }

    async fn area_get(&self, area: &Area, key: &str) -> Result<Option<Vec<u8>>> {
        const SQL: &str = "SELECT content FROM areas WHERE pipeline = $1 AND area = $2 AND entry = $3";
        let values = vec![area.pipeline.as_str().into(), area.name.as_str().into(), key.into()];
        let found = self.one(SQL, values).await?.pop();
        found.map(|row| Row(row.into_iter()).bytes()).transpose()
    }

    async fn area_put(&self, area: &Area, changes: &[(String, Option<Vec<u8>>)]) -> Result<()> {
        const DELETE: &str = "DELETE FROM areas WHERE pipeline = $1 AND area = $2 AND entry = $3";
        let all = changes
            .iter()
            .map(|(key, content)| {
                let mut values: Vec<Value> = vec![
                    area.pipeline.as_str().into(),
                    area.name.as_str().into(),
                    key.as_str().into(),
                ];
                match content {
                    Some(content) => {
                        values.push(Value::Bytes(content.clone()));
                        statement(AREA_PUT, values)
                    }
                    None => statement(DELETE, values),
                }
            })
            .collect();
        self.database.transaction(all).await.map(drop)
    }

    async fn area_scan(&self, area: &Area, after: Option<&str>, limit: usize) -> Result<Vec<(String, Vec<u8>)>> {
        const SQL: &str = "SELECT entry, content FROM areas WHERE pipeline = $1 AND area = $2 AND entry > $3 \
            ORDER BY entry LIMIT $4";
        let rows = self
            .one(
                SQL,
                vec![
                    area.pipeline.as_str().into(),
                    area.name.as_str().into(),
                    after.unwrap_or("").into(),
                    Value::from(limit as u64),
                ],
            )
            .await?;
        rows.into_iter()
            .map(|row| {
                let r = &mut Row(row.into_iter());
                Ok((r.text()?, r.bytes()?))
            })
            .collect()
    }
}
