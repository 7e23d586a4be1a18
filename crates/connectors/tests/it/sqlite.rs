//! SQLite against real files.

mod changes;
mod publishing;
mod queries;
mod reading;
mod settled;
mod types;

use rusqlite::Connection;
use std::sync::Arc;
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
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
use tempfile::TempDir;

/// A database file in a folder that goes with it.
struct Db {
    dir: TempDir,
    sqlite: Sqlite,
}

impl Db {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = SqliteConfig::new(dir.path().join("a.db"));
        config.busy_timeout = std::time::Duration::from_secs(5);
        let sqlite = Sqlite::open(config).unwrap();
        Db { dir, sqlite }
    }

    fn with(sql: &str) -> Self {
        let db = Db::new();
        db.run(sql);
        db
    }

    /// A connection of somebody else's.
    fn conn(&self) -> Connection {
        Connection::open(self.dir.path().join("a.db")).unwrap()
    }

    fn run(&self, sql: &str) {
        self.conn().execute_batch(sql).unwrap();
    }

    /// All values of a query as SQLite's own literals, a row a line.
    fn dump(&self, sql: &str) -> String {
        let conn = self.conn();
        let mut statement = conn.prepare(sql).unwrap();
        let columns = statement.column_count();
        let mut rows = statement.query([]).unwrap();
        let mut out = Vec::new();
        while let Some(row) = rows.next().unwrap() {
            let cells: Vec<String> = (0..columns).map(|i| format!("{:?}", row.get_ref(i).unwrap())).collect();
            out.push(cells.join(" "));
        }
        out.join("\n")
    }

    fn one<T: rusqlite::types::FromSql>(&self, sql: &str) -> T {
        self.conn().query_row(sql, [], |r| r.get(0)).unwrap()
    }

    fn source(&self) -> Arc<dyn Source> {
        self.sqlite.source()
    }

    fn destination(&self) -> Arc<dyn Destination> {
        self.sqlite.destination()
    }
}

fn row(cells: &[&str]) -> Row {
    cells.iter().map(|c| (*c != "NULL").then(|| (*c).to_string())).collect()
}

/// A plan of one table and one partition, `all`.
fn plan(table: &str, schema: &TableSchema, publish: Publish) -> Plan {
    Plan {
        remember: Default::default(),
        pipeline: "p".into(),
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

fn partition(slice: Slice) -> Partition {
    Partition::new("all", Work::Read(slice))
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
    let mut sink = db.destination().open_sink(plan).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink
}

/// Prepares, loads and publishes.
async fn load(db: &Db, table: &str, schema: &TableSchema, publish: Publish, rows: &[Row]) -> Result<Applied> {
    load_plan(db, plan(table, schema, publish), rows).await
}

async fn load_plan(db: &Db, plan: Plan, rows: &[Row]) -> Result<Applied> {
    let d = db.destination();
    let plan = d.prepare(plan).await?;
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["all".into()]).await?;
    let t = &plan.tables[0];
    sink.write(inserts(&t.destination.name, &t.schema, rows)).await?;
    sink.commit(&[advance(None, "end", true, rows.len() as u64)]).await?;
    drop(sink);
    d.seal(&plan).await?;
    Ok(d.publish(&plan).await?.applied)
}

/// Reads a slice after a position: the rows, and the positions with how many rows stand before each.
async fn read(
    source: &dyn Source,
    spec: &ReadSpec,
    slice: Slice,
    after: Option<&Position>,
    context: &ReadContext,
) -> Result<(Vec<Row>, Vec<(usize, Position)>)> {
    let mut reader = source.open(spec, &partition(slice), after, context).await?;
    let (mut rows, mut stops) = (Vec::new(), Vec::new());
    while let Some(event) = reader.next().await? {
        match event {
            Event::Rows(b) => rows.extend(texts(&b.rows)?),
            Event::Boundary { position, .. } => stops.push((rows.len(), position)),
            other => panic!("unexpected {other:?}"),
        }
    }
    Ok((rows, stops))
}

async fn read_all(db: &Db, table: &str) -> Result<Vec<Row>> {
    let source = db.source();
    let table = TableId::bare(table);
    let schema = source.describe(&table).await?;
    let spec = ReadSpec::all(table, &schema.columns);
    Ok(read(source.as_ref(), &spec, Slice::All, None, &ReadContext::default())
        .await?
        .0)
}

fn subject() -> (Db, Subject) {
    let db = Db::new();
    let subject = Subject {
        destination: db.destination(),
        source: db.source(),
        schema: None,
    };
    (db, subject)
}

#[tokio::test]
async fn conformance_loads() {
    let (_db, s) = subject();
    conformance::loads(&s).await;
}

#[tokio::test]
async fn conformance_memory() {
    let (_db, s) = subject();
    conformance::memory(&s).await;
}

#[tokio::test]
async fn conformance_fences() {
    let (_db, s) = subject();
    conformance::fences(&s).await;
}

#[tokio::test]
async fn conformance_changes() {
    let (_db, s) = subject();
    conformance::changes(&s).await;
}

#[tokio::test]
async fn conformance_types() {
    let (_db, s) = subject();
    conformance::types(&s).await;
}

#[tokio::test]
async fn conformance_crashes() {
    let (_db, s) = subject();
    conformance::crashes(&s, 41).await;
}
