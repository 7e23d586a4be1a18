//! The PostgreSQL destination and sink on servers 15 and 18.

mod conformance;
mod direct;
mod end_to_end;
mod load;
mod publish;
mod repair;
mod speed;

use arrow_array::RecordBatch;
use std::sync::Arc;
use synctool_connectors::postgres::{DestinationOptions, Postgres as Database, PostgresConfig, PostgresDestination};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy, Verify, Work,
};
use synctool_core::progress::{Advance, Generation, PartitionId, Position};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::{Destination, Sink};
use synctool_core::text::ColumnBuilder;
use synctool_testkit::{PgVersion, Postgres, TestDb};

/// Defines each case once per server version.
macro_rules! on_servers {
    ($($(#[$doc:meta])* async fn $name:ident($version:ident: PgVersion) $body:block)*) => {
        $(
            $(#[$doc])*
            mod $name {
                use super::*;
                async fn case($version: PgVersion) $body

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn pg15() {
                    case(PgVersion::V15).await;
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn pg18() {
                    case(PgVersion::V18).await;
                }
            }
        )*
    };
}
pub(crate) use on_servers;

/// A database and a destination for it.
pub(crate) struct Fixture {
    pub(crate) db: TestDb,
    pub(crate) destination: PostgresDestination,
}

pub(crate) async fn fixture(version: PgVersion) -> Fixture {
    let db = Postgres::shared(version).database("sink");
    let destination = open(&db.url(), DestinationOptions::default()).await;
    Fixture { db, destination }
}

pub(crate) async fn open(url: &str, options: DestinationOptions) -> PostgresDestination {
    let database = Database::open(PostgresConfig::from_url(url).unwrap()).unwrap();
    PostgresDestination::open(database, options).await.unwrap()
}

pub(crate) fn items() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("name", ColumnType::Text { max: None }),
            Column::new("price", ColumnType::Int32),
        ],
        key: vec!["id".into()],
    }
}

/// A batch from the canonical text of its cells.
pub(crate) fn batch(schema: &TableSchema, rows: &[&[Option<&str>]]) -> RecordBatch {
    let mut builders: Vec<ColumnBuilder> = schema.columns.iter().map(ColumnBuilder::new).collect();
    for row in rows {
        assert_eq!(row.len(), builders.len());
        for (builder, cell) in builders.iter_mut().zip(*row) {
            builder.append_cell(*cell).unwrap();
        }
    }
    RecordBatch::try_new(
        schema.arrow_schema(),
        builders.iter_mut().map(ColumnBuilder::finish).collect(),
    )
    .unwrap()
}

/// Items as `(id, name, price)`.
pub(crate) fn item_rows(rows: impl IntoIterator<Item = (i64, &'static str, i32)>) -> RecordBatch {
    let cells: Vec<[String; 3]> = rows
        .into_iter()
        .map(|(id, name, price)| [id.to_string(), name.to_string(), price.to_string()])
        .collect();
    let rows: Vec<Vec<Option<&str>>> = cells
        .iter()
        .map(|r| r.iter().map(|c| Some(c.as_str())).collect())
        .collect();
    let rows: Vec<&[Option<&str>]> = rows.iter().map(Vec::as_slice).collect();
    batch(&items(), &rows)
}

pub(crate) fn plan(table: &TableId, schema: &TableSchema, publish: Publish, partitions: &[&str]) -> Plan {
    Plan {
        remember: Default::default(),
        pipeline: "shop".into(),
        run_id: "20260101_000000_abcdef".into(),
        generation: Generation(0),
        strategy: Strategy::Full,
        reasons: vec![],
        semantics: serde_json::json!({}),
        tables: vec![PlannedTable::new(
            ReadSpec::all(table.clone(), &schema.columns),
            table.clone(),
            schema.clone(),
            publish,
        )],
        phases: vec![Phase {
            name: "load".into(),
            partitions: partitions
                .iter()
                .map(|id| Partition::new(*id, Work::Read(Slice::All)))
                .collect(),
        }]
        .into(),
        verify: Verify::Count,
        guard: DeleteGuard::default(),
        created_at: "2026-01-01T00:00:00Z".into(),
    }
}

pub(crate) fn inserts(table: &TableId, rows: RecordBatch) -> Event {
    Event::Rows(ChangeBatch::inserts(Arc::new(table.clone()), rows, Hold::none()))
}

pub(crate) fn advance(partition: &str, from: Option<&str>, to: &str, done: bool) -> Advance {
    Advance {
        rejects: Vec::new(),
        partition: PartitionId::from(partition),
        from: from.map(Position::from),
        to: Position::from(to),
        done,
        accounts: Accounts::default(),
    }
}

/// A sink that has taken over partition `p`.
pub(crate) async fn sink(destination: &PostgresDestination, plan: &Plan, p: &str) -> Box<dyn Sink> {
    let mut sink = destination.open_sink(plan).await.unwrap();
    sink.recover(&[PartitionId::from(p)]).await.unwrap();
    sink
}

/// Loads rows as the only partition `all` and publishes them.
pub(crate) async fn run(
    destination: &PostgresDestination,
    plan: Plan,
    rows: impl IntoIterator<Item = RecordBatch>,
) -> synctool_core::error::Result<Applied> {
    let plan = destination.prepare(plan).await?;
    let mut s = sink(destination, &plan, "all").await;
    let table = plan.tables[0].destination.clone();
    for batch in rows {
        s.write(inserts(&table, batch)).await?;
    }
    s.commit(&[advance("all", None, "end", true)]).await?;
    drop(s);
    destination.seal(&plan).await?;
    let published = destination.publish(&plan).await?;
    assert_eq!(
        destination.publish(&plan).await?,
        published,
        "publishing a finished plan says what it did then"
    );
    Ok(published.applied)
}

/// What the database holds, one row a line.
pub(crate) fn dump(db: &TestDb, table: &str) -> String {
    db.psql(&format!("SELECT t FROM {table} t ORDER BY t::text"))
}
