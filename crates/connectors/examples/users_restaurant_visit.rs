//! Change data capture, step by step: three tables are made, their changes are printed as they arrive, and copies of
//! them are kept in a second schema. It ends with a comparison.
//!
//! Needs a PostgreSQL server with `wal_level = logical`, named by POSTGRES_HOST, POSTGRES_PORT, POSTGRES_USER,
//! POSTGRES_PASSWORD and POSTGRES_NAME (or by POSTGRES_CONNSTR). Slot and publication are those that DBSYNC_REPLSLOT and
//! DBSYNC_PUBNAME name, else dbsync_replslot and dbsync_mypub:
//!
//! ```text
//! POSTGRES_NAME=postgres cargo run -p synctool-connectors --example users_restaurant_visit
//! ```

#![allow(clippy::large_futures, reason = "an example waits for one at a time")]
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use synctool_connectors::postgres::log::LogOptions;
use synctool_connectors::postgres::log::capture::{CaptureRequest, capture};
use synctool_connectors::postgres::log::changes::{Changes, ChangesBuilder};
use synctool_connectors::postgres::{DestinationOptions, Postgres, PostgresDestination};
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::engine::Engine;
use synctool_core::error::Result;
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::stage::{Stage, Staged, Stages};
use synctool_core::text;

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS users (
        id SERIAL PRIMARY KEY, first_name VARCHAR(255) NOT NULL, user_name VARCHAR(255) NOT NULL,
        email VARCHAR(255) NOT NULL UNIQUE, avatar VARCHAR(255), homepage VARCHAR(255), date_of_birth DATE, address TEXT,
        interests TEXT[]);
    CREATE TABLE IF NOT EXISTS restaurant (
        id VARCHAR(255) PRIMARY KEY, name VARCHAR(255) NOT NULL, description TEXT, address TEXT, rating INT, tags TEXT[]);
    CREATE TABLE IF NOT EXISTS visit (
        user_id INT REFERENCES users(id), restaurant_id VARCHAR(255) REFERENCES restaurant(id),
        amount_spent DECIMAL(10, 2) NOT NULL, visit_rating INT, PRIMARY KEY (user_id, restaurant_id));
    INSERT INTO users VALUES (1, 'Ada', 'ada', 'ada@example.com', NULL, NULL, '1815-12-10', 'London', '{engines,flowers}')
        ON CONFLICT DO NOTHING;
    INSERT INTO restaurant VALUES ('corner', 'The Corner', 'small', 'Main Street', 4, '{pasta,wine}') ON CONFLICT DO NOTHING;";

const CHANGES: &str = "
    BEGIN;
    INSERT INTO users VALUES (2, 'Alan', 'alan', 'alan@example.com', NULL, NULL, '1912-06-23', NULL, '{running}')
        ON CONFLICT DO NOTHING;
    INSERT INTO visit VALUES (1, 'corner', 12.50, 5), (2, 'corner', 7.20, NULL) ON CONFLICT DO NOTHING;
    COMMIT;
    UPDATE restaurant SET rating = 5, tags = tags || '{cheese}' WHERE id = 'corner';
    UPDATE visit SET amount_spent = amount_spent + 1 WHERE user_id = 2;
    DELETE FROM visit WHERE user_id = 1;";

/// Prints every row that passes, and counts them.
#[derive(Clone, Default)]
struct Print(Arc<AtomicU64>);

#[async_trait]
impl Stage for Print {
    fn name(&self) -> &str {
        "print"
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        for row in 0..batch.len() {
            let what = match batch.ops.get(row) {
                Op::Insert => "insert",
                Op::Update => "update",
                Op::Upsert => "is",
                Op::Delete => "delete",
            };
            let mut cells = Vec::new();
            for (i, column) in batch.rows.columns().iter().enumerate() {
                if batch.present.as_ref().is_none_or(|p| p.has(i, row)) {
                    cells.push(text::cell(column.as_ref(), row)?.unwrap_or_else(|| "NULL".into()));
                }
            }
            println!("{:>6} {}: {}", what, batch.table.name, cells.join(" | "));
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Staged::all(batch))
    }
}

impl Stages for Print {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        Ok(input.clone())
    }

    fn open(&self) -> Result<Vec<Box<dyn Stage>>> {
        Ok(vec![Box::new(self.clone())])
    }

    fn is_empty(&self) -> bool {
        false
    }
}

/// Follows the log to its present end; position and copies are one transaction each time.
async fn follow(database: &Postgres, options: &LogOptions, print: &Print) -> Result<()> {
    let source = Arc::new(database.log(LogOptions {
        until_now: true,
        ..options.clone()
    })?);
    let destination = Arc::new(PostgresDestination::open(database.clone(), DestinationOptions::default()).await?);
    let mut request = CaptureRequest::new("users_restaurant_visit", "2026-01-01T00:00:00Z");
    request.tables = ["users", "restaurant", "visit"]
        .map(|t| TableId::new("public", t))
        .to_vec();
    request.schema = Some("copies".into());
    let mut engine = Engine::new(source.clone(), destination.clone());
    engine.stages = Arc::new(print.clone());
    let engine = Arc::new(engine);
    let semantics = request.semantics(&source);
    let draft = capture(&source, destination.as_ref(), request);
    let (plan, _) = engine.plan("users_restaurant_visit", &semantics, draft).await?;
    source.follow(&plan);
    engine.follow(plan).await?;
    Ok(())
}

/// The whole walk of the database that a builder names, with its slot and publication: how many changes were seen, and
/// whether every copy equals its table at the end.
pub async fn run(named: &ChangesBuilder) -> Result<(u64, bool)> {
    let (database, options) = (Postgres::open(named.config().clone())?, named.log_options());
    let session = database.connect().await?;
    let fail = |e| session.error(e, "running the example");
    session.batch_execute("SET search_path = public").await.map_err(fail)?;
    session.batch_execute(TABLES).await.map_err(fail)?;
    let print = Print::default();
    println!("-- the rows that are there");
    follow(&database, options, &print).await?;
    println!("-- what changes");
    session.batch_execute(CHANGES).await.map_err(fail)?;
    follow(&database, options, &print).await?;
    let mut all = true;
    for table in ["users", "restaurant", "visit"] {
        let row = session
            .query_one(
                &format!(
                    "SELECT NOT EXISTS ((TABLE public.{table} EXCEPT TABLE copies.{table}) UNION ALL \
                     (TABLE copies.{table} EXCEPT TABLE public.{table}))"
                ),
                &[],
            )
            .await
            .map_err(fail)?;
        let equal: bool = row.get(0);
        println!("-- {table}: {}", if equal { "equal" } else { "DIFFERENT" });
        all &= equal;
    }
    Ok((print.0.load(Ordering::Relaxed), all))
}

#[tokio::main]
#[allow(dead_code, reason = "a test runs the example by itself")]
async fn main() -> Result<()> {
    let (_, equal) = run(&Changes::from_env()?).await?;
    std::process::exit(i32::from(!equal));
}
