//! MariaDB as source and destination, against a real server.

mod changes;
mod hashes;
mod publishing;
mod reading;
mod session;
mod settled;
mod types;

use std::sync::Arc;
use synctool_connectors::mysql::{LoadPath, Mysql, MysqlConfig};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::Result;
use synctool_core::ledger::{Accounts, Applied, Tally};
use synctool_core::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy, Verify, Work,
};
use synctool_core::progress::{Advance, Generation, Position};
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::sink::{Destination, Sink};
use synctool_core::source::{ReadContext, Source};
use synctool_core::testing::conformance::{self, Subject};
use synctool_core::testing::rows::{Row, batch, texts};
use synctool_testkit::{MariaDb, MariaDbDatabase};

/// A database of its own on the shared server.
struct Db {
    database: MariaDbDatabase,
    mysql: Mysql,
    destination: Arc<dyn Destination>,
}

fn config(database: &str) -> MysqlConfig {
    MysqlConfig::new("127.0.0.1", MariaDb::shared().port(), "root", database)
}

impl Db {
    async fn new() -> Self {
        Db::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut MysqlConfig)) -> Self {
        let database = MariaDb::shared().database("mysql");
        let mut config = config(database.name());
        change(&mut config);
        let mysql = Mysql::open(config).unwrap();
        let destination = mysql.destination().await.unwrap();
        Db {
            database,
            mysql,
            destination,
        }
    }

    /// Runs SQL with the server's own client; tab-separated rows.
    fn sql(&self, sql: &str) -> String {
        self.database.sql(sql)
    }

    fn source(&self) -> Arc<dyn Source> {
        self.mysql.source()
    }

    fn subject(&self) -> Subject {
        Subject {
            destination: self.destination.clone(),
            source: self.source(),
            schema: None,
        }
    }
}

fn row(cells: &[&str]) -> Row {
    cells.iter().map(|c| (*c != "NULL").then(|| (*c).to_string())).collect()
}

fn partition(slice: Slice) -> Partition {
    Partition::new("all", Work::Read(slice))
}

/// A plan of one table and one partition, `all`.
fn plan(table: &str, schema: &TableSchema, publish: Publish) -> Plan {
    Plan {
        remember: Default::default(),
        pipeline: format!("p {table}"),
        run_id: "20260101_000000_abcdef".into(),
        generation: Generation(0),
        strategy: Strategy::Full,
        reasons: Vec::new(),
        semantics: serde_json::Value::Null,
        tables: vec![PlannedTable::new(
            ReadSpec::all(TableId::bare(table), &schema.columns),
            TableId::bare(table),
            schema.clone(),
            publish,
        )],
        phases: vec![Phase {
            name: "load".into(),
            partitions: vec![partition(Slice::All)],
        }]
        .into(),
        verify: Verify::Count,
        guard: DeleteGuard::default(),
        created_at: "2026-01-01T00:00:00Z".into(),
    }
}

fn advance(from: Option<&str>, to: &str, done: bool, rows: u64) -> Advance {
    let tally = Tally {
        rows,
        ..Tally::default()
    };
    Advance {
        rejects: Vec::new(),
        partition: "all".into(),
        from: from.map(Position::from),
        to: to.into(),
        done,
        accounts: Accounts {
            compared: Default::default(),
            own: 0,
            read: tally,
            stages: Vec::new(),
            written: tally,
        },
    }
}

fn inserts(table: &str, schema: &TableSchema, rows: &[Row]) -> Event {
    Event::Rows(ChangeBatch::inserts(
        Arc::new(TableId::bare(table)),
        batch(schema, rows).unwrap(),
        Hold::none(),
    ))
}

async fn sink(db: &Db, plan: &Plan) -> Box<dyn Sink> {
    let mut sink = db.destination.open_sink(plan).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink
}

/// Prepares and loads; does not publish.
async fn loaded(db: &Db, plan: Plan, rows: &[Row]) -> Result<Plan> {
    let plan = db.destination.prepare(plan).await?;
    let mut sink = db.destination.open_sink(&plan).await?;
    sink.recover(&["all".into()]).await?;
    let t = &plan.tables[0];
    sink.write(inserts(&t.destination.name, &t.schema, rows)).await?;
    sink.commit(&[advance(None, "end", true, rows.len() as u64)]).await?;
    drop(sink);
    db.destination.seal(&plan).await?;
    Ok(plan)
}

/// Prepares, loads and publishes.
async fn load(db: &Db, table: &str, schema: &TableSchema, publish: Publish, rows: &[Row]) -> Result<Applied> {
    let plan = loaded(db, plan(table, schema, publish), rows).await?;
    Ok(db.destination.publish(&plan).await?.applied)
}

async fn read_spec(source: &dyn Source, spec: &ReadSpec, slice: Slice) -> Result<Vec<Row>> {
    let context = ReadContext::default();
    let mut reader = source.open(spec, &partition(slice), None, &context).await?;
    let mut rows = Vec::new();
    while let Some(event) = reader.next().await? {
        if let Event::Rows(b) = event {
            rows.extend(texts(&b.rows)?);
        }
    }
    Ok(rows)
}

async fn read_all(db: &Db, table: &str) -> Result<Vec<Row>> {
    let source = db.source();
    let table = TableId::bare(table);
    let schema = source.describe(&table).await?;
    let mut rows = read_spec(source.as_ref(), &ReadSpec::all(table, &schema.columns), Slice::All).await?;
    rows.sort();
    Ok(rows)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_loads() {
    for path in [LoadPath::Infile, LoadPath::Insert] {
        let db = Db::with(|c| c.load = path).await;
        conformance::loads(&db.subject()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_fences() {
    let db = Db::new().await;
    conformance::fences(&db.subject()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_changes() {
    let db = Db::new().await;
    conformance::changes(&db.subject()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_types() {
    for path in [LoadPath::Infile, LoadPath::Insert] {
        let db = Db::with(|c| c.load = path).await;
        conformance::types_except(&db.subject(), |ty, value| {
            // MySQL's floats are finite and their zero has no sign; such a row stops the run.
            use synctool_core::schema::ColumnType::{Float32, Float64};
            matches!(ty, Float32 | Float64) && ["NaN", "Infinity", "-Infinity", "-0"].contains(&value)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conformance_crashes() {
    let db = Db::new().await;
    conformance::crashes(&db.subject(), 37).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_tables_may_stand_in_a_database_of_their_own() {
    let own = synctool_testkit::MariaDb::shared().database("control");
    let db = Db::with(|c| c.control_schema = Some(own.name().to_string())).await;
    conformance::fences(&db.subject()).await;
    assert_eq!(db.sql("SHOW TABLES LIKE '\\_synctool\\_plan'"), "");
    assert_eq!(own.sql("SELECT count(*) > 0 FROM _synctool_plan"), "1");
}
