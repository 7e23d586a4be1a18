//! The log of PostgreSQL as a source, through the engine, on servers 15 and 18.

#![allow(clippy::large_futures, reason = "a test waits for one at a time")]

mod doctor;
mod drift;
mod ends;
mod events;
mod faults;
mod identity;
mod members;
mod modes;
mod own;
mod partitions;
mod rows;
mod servers;
mod shapes;
mod workload;

use std::sync::Arc;
use std::time::Duration;
use synctool_connectors::postgres::log::capture::{CaptureRequest, capture};
use synctool_connectors::postgres::log::{LogOptions, LogSource, Repair};
use synctool_connectors::postgres::{DestinationOptions, Postgres as Database, PostgresConfig, PostgresDestination};
use synctool_core::backfill::Pause;
use synctool_core::engine::{Engine, Options};
use synctool_core::error::Result;
use synctool_core::ledger::Ledger;
use synctool_core::plan::Plan;
use synctool_core::retry::RetryPolicy;
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::source::Source;
use synctool_testkit::{PgVersion, Postgres, TestDb};

use crate::postgres_sink::on_servers;

/// A source database and one that its tables are captured into.
struct Capture {
    from: TestDb,
    to: TestDb,
    options: LogOptions,
    request: CaptureRequest,
    /// How the source is reached: its own URL, or through a proxy.
    url: String,
}

impl Capture {
    /// Makes the tables at the source; all of them are captured.
    fn new(version: PgVersion, tables: &[&str], ddl: &str) -> Capture {
        Capture::on(Postgres::shared(version), tables, ddl)
    }

    fn on(server: &Postgres, tables: &[&str], ddl: &str) -> Capture {
        let from = server.database("logfrom");
        let to = Postgres::shared(server.version()).database("logto");
        from.psql(ddl);
        let mut request = CaptureRequest::new("capture", "2026-01-01T00:00:00Z");
        request.tables = tables.iter().map(|t| TableId::new("public", *t)).collect();
        Capture {
            options: LogOptions {
                slot: format!("s_{}", from.name()),
                heartbeat: None,
                // Both ways end equal.
                together: server.version() == PgVersion::V18,
                ..LogOptions::default()
            },
            url: from.url(),
            from,
            to,
            request,
        }
    }

    fn source(&self, options: LogOptions) -> Arc<LogSource> {
        Arc::new(database(&self.url).log(options).unwrap())
    }

    async fn destination(&self) -> Arc<PostgresDestination> {
        let to = PostgresDestination::open(database(&self.to.url()), DestinationOptions::default()).await;
        Arc::new(to.unwrap())
    }

    /// Follows the log to its present end, into the other database.
    async fn catch_up(&self) -> Result<Ledger> {
        let destination = self.destination().await;
        self.catch_up_into(destination).await
    }

    async fn catch_up_into(&self, destination: Arc<dyn Destination>) -> Result<Ledger> {
        let options = LogOptions {
            until_now: true,
            ..self.options.clone()
        };
        let source = self.source(options);
        let done = follow(source.clone(), source, destination, &self.request).await?;
        // The server notices a moment later that its reader has left.
        let held = format!(
            "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}' AND active",
            self.options.slot
        );
        synctool_testkit::eventually("the slot to be let go", Duration::from_secs(20), async || {
            !synctool_testkit::psql_url(&self.url, &held).is_ok_and(|held| held != "0")
        })
        .await;
        Ok(done)
    }

    /// Both ends have the same rows in these tables.
    #[track_caller]
    fn assert_equal(&self, tables: &[&str]) {
        for table in tables {
            let dump = |db: &TestDb| {
                let columns = self.from.psql(&format!(
                    "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute \
                     WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
                ));
                db.psql(&format!(
                    "SELECT r::text FROM (SELECT {columns} FROM {table}) r ORDER BY r::text"
                ))
            };
            let (wanted, found) = (dump(&self.from), dump(&self.to));
            if wanted != found {
                let short = |text: &str, other: &str| -> Vec<String> {
                    let other: std::collections::HashSet<&str> = other.lines().collect();
                    text.lines()
                        .filter(|l| !other.contains(l))
                        .take(5)
                        .map(|l| l.chars().take(200).collect())
                        .collect()
                };
                panic!(
                    "{table} differs: {} rows and {} rows; only at the source {:?}; only at the destination {:?}",
                    wanted.lines().count(),
                    found.lines().count(),
                    short(&wanted, &found),
                    short(&found, &wanted)
                );
            }
        }
    }

    /// Waits until somebody reads the log.
    async fn until_read(&self) {
        // A slot that is still being made is active, too, and would wait for transactions that are open.
        let is_read = format!(
            "SELECT count(*) > 0 FROM pg_replication_slots s JOIN pg_stat_replication r ON r.pid = s.active_pid \
             WHERE s.slot_name = '{}'",
            self.options.slot
        );
        let patience = Duration::from_secs(30);
        synctool_testkit::eventually("the log to be read", patience, async || self.from.psql(&is_read) == "t").await;
    }

    /// Follows the log; while its first chunk of `t` waits for the table, another session does this to it and commits.
    async fn while_a_chunk_waits(&self, sql: &str) -> Following {
        self.while_a_chunk_of(self.source(self.options.clone()), sql).await
    }

    /// The same through a source that was asked for something.
    async fn while_a_chunk_of(&self, source: Arc<LogSource>, sql: &str) -> Following {
        source.steering().requests().pause(Pause::Chunks);
        let following = Following::of(self, source.clone()).await;
        self.until_read().await;
        let other = self.from.connect().await;
        other
            .batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            .await
            .unwrap();
        source.steering().requests().pause(Pause::None);
        let patience = Duration::from_secs(30);
        let waits = "SELECT count(*) > 0 FROM pg_locks WHERE relation = 't'::regclass AND NOT granted";
        synctool_testkit::eventually("a chunk to wait", patience, async || self.from.psql(waits) == "t").await;
        other.batch_execute(&format!("{sql}; COMMIT")).await.unwrap();
        following
    }

    /// Up to where the server may forget its log.
    fn confirmed(&self) -> String {
        self.from.psql(&format!(
            "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = '{}'",
            self.options.slot
        ))
    }
}

/// Whether a case is tried on this server: where no server behaves otherwise than another, each has every other case. A
/// soak has all on both.
fn has(version: PgVersion, case: usize) -> bool {
    synctool_testkit::is_soak() || case.is_multiple_of(2) == (version == PgVersion::V18)
}

fn database(url: &str) -> Database {
    Database::open(PostgresConfig::from_url(url).unwrap()).unwrap()
}

fn options() -> Options {
    Options {
        retry: RetryPolicy {
            attempts: 60,
            initial: Duration::from_millis(20),
            max: Duration::from_millis(500),
            ..RetryPolicy::default()
        },
        commit_interval: Duration::from_millis(20),
        grace: Duration::from_secs(2),
        ..Options::default()
    }
}

/// Makes or resumes the plan and follows the log. `through` is the source as the engine sees it: with faults, perhaps.
async fn follow(
    source: Arc<LogSource>,
    through: Arc<dyn Source>,
    destination: Arc<dyn Destination>,
    request: &CaptureRequest,
) -> Result<Ledger> {
    let (engine, plan) = prepare(source, through, destination, request).await?;
    let ledger = engine.follow(plan).await?;
    ledger.check()?;
    Ok(ledger)
}

async fn prepare(
    source: Arc<LogSource>,
    through: Arc<dyn Source>,
    destination: Arc<dyn Destination>,
    request: &CaptureRequest,
) -> Result<(Arc<Engine>, Plan)> {
    let mut engine = Engine::new(through, destination.clone());
    engine.options = options();
    let engine = Arc::new(engine);
    let semantics = request.semantics(&source);
    let draft = capture(&source, destination.as_ref(), request.clone());
    let (plan, _) = engine.plan(&request.pipeline, &semantics, draft).await?;
    source.follow(&plan);
    Ok((engine, plan))
}

/// A log that is followed until the test says stop.
struct Following {
    engine: Arc<Engine>,
    task: tokio::task::JoinHandle<Result<Ledger>>,
}

impl Following {
    async fn start(capture: &Capture) -> Following {
        Following::of(capture, capture.source(capture.options.clone())).await
    }

    async fn of(capture: &Capture, source: Arc<LogSource>) -> Following {
        let destination = capture.destination().await;
        let (engine, plan) = prepare(source.clone(), source, destination, &capture.request)
            .await
            .unwrap();
        let task = tokio::spawn({
            let engine = engine.clone();
            async move { engine.follow(plan).await }
        });
        Following { engine, task }
    }

    /// Stops at the next boundary.
    async fn stop(self) -> Result<()> {
        self.engine.cancel.cancel();
        match self.task.await.expect("the task does not panic") {
            Err(e) if e.code() == synctool_core::error::code::INTERRUPTED => Ok(()),
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        }
    }
}
