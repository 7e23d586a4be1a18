//! Block hashes: what engines compute inside is what is computed from the rows they give, and the same in every engine.

use proptest::prelude::*;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_connectors::mysql::{Mysql, MysqlConfig};
use synctool_connectors::object::{CsvOptions, Format, ObjectConfig, Objects, ParquetOptions};
use synctool_connectors::postgres::{DestinationOptions, Postgres, PostgresConfig, PostgresDestination};
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::blocks::{Block, BlockHashes, Blocks, Field, HashRequest, ReadingHashes, RowForm};
use synctool_core::engine::{Engine, Options};
use synctool_core::plan::{ReadSpec, Slice, Verify};
use synctool_core::query::{Comparison, Condition, Cut, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::{Destination, Fidelity};
use synctool_core::source::{ReadContext, Source};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;
use synctool_core::testing::conformance::edges;
use synctool_core::testing::memory::Memory;
use synctool_core::testing::memory_log::MemoryTables;
use synctool_core::testing::rows::Row;
use synctool_testkit::{MariaDb, PgVersion};

struct Place {
    name: &'static str,
    destination: Arc<dyn Destination>,
    source: Arc<dyn Source>,
    /// Goes with it: a folder, or a database of a server.
    _kept: Box<dyn Any>,
}

fn sqlite() -> Place {
    let folder = tempfile::tempdir().unwrap();
    let sqlite = Sqlite::open(SqliteConfig::new(folder.path().join("a.db"))).unwrap();
    Place {
        name: "sqlite",
        destination: sqlite.destination(),
        source: sqlite.source(),
        _kept: Box::new(folder),
    }
}

fn files(name: &'static str, format: Format) -> Place {
    let folder = tempfile::tempdir().unwrap();
    let files = Objects::open(ObjectConfig {
        path: folder.path().to_path_buf(),
        format,
    })
    .unwrap();
    Place {
        name,
        destination: files.destination(),
        source: files.source(),
        _kept: Box::new(folder),
    }
}

#[cfg(feature = "duckdb")]
async fn duckdb() -> Place {
    use synctool_connectors::duckdb::{DuckDb, DuckDbConfig};
    let folder = tempfile::tempdir().unwrap();
    let config = DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library: Some(synctool_testkit::libduckdb()),
        create: true,
    };
    let duckdb = DuckDb::open(config).await.unwrap();
    Place {
        name: "duckdb",
        destination: duckdb.destination(),
        source: duckdb.source(),
        _kept: Box::new(folder),
    }
}

async fn postgresql(name: &'static str, version: PgVersion) -> Place {
    let db = synctool_testkit::Postgres::shared(version).database("edges");
    let postgres = Postgres::open(PostgresConfig::from_url(&db.url()).unwrap()).unwrap();
    let destination = PostgresDestination::open(postgres.clone(), DestinationOptions::default())
        .await
        .unwrap();
    Place {
        name,
        destination: Arc::new(destination),
        source: Arc::new(postgres.live_source()),
        _kept: Box::new(db),
    }
}

async fn mariadb() -> Place {
    let db = MariaDb::shared().database("edges");
    let config = MysqlConfig::new("127.0.0.1", MariaDb::shared().port(), "root", db.name());
    let mysql = Mysql::open(config).unwrap();
    Place {
        name: "mariadb",
        destination: mysql.destination().await.unwrap(),
        source: mysql.source(),
        _kept: Box::new(db),
    }
}

/// The engines that need no server.
async fn places() -> Vec<Place> {
    let mut places = vec![sqlite()];
    #[cfg(feature = "duckdb")]
    places.push(duckdb().await);
    places.push(files("parquet", Format::Parquet(ParquetOptions::default())));
    places.push(files("csv", Format::Csv(CsvOptions::default())));
    places
}

fn table() -> TableId {
    TableId::bare("t")
}

fn tables(schema: &TableSchema, rows: &[Row]) -> Arc<MemoryTables> {
    let memory = Memory::default();
    let keyed = rows.iter().map(|r| (vec![r[0].clone().unwrap()], r.clone())).collect();
    memory.put(&table(), schema.clone(), keyed);
    Arc::new(MemoryTables(memory))
}

/// Loads a table as a full run does.
async fn load(place: &Place, schema: &TableSchema, rows: &[Row]) {
    let source = tables(schema, rows);
    let mut engine = Engine::new(source.clone(), place.destination.clone());
    engine.options = Options::default();
    let engine = Arc::new(engine);
    let request = FullRequest {
        table: TableRequest {
            run_id: "20260101_000000_abcdef".into(),
            partition_bytes: 64 << 20,
            semantics: serde_json::Value::Null,
            now: "2026-01-01T00:00:00Z".into(),
            ..TableRequest::new("p", table(), table())
        },
        mode: FullMode::Swap,
        deletes: true,
        verify: Some(Verify::Count),
        remember: Default::default(),
    };
    let draft = full::plan(
        source.as_ref(),
        place.destination.as_ref(),
        engine.stages.as_ref(),
        request,
    );
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await.unwrap();
    engine.run(plan, resumed).await.unwrap();
}

fn request(read: &ReadSpec, compared: &[(usize, ColumnType)], blocks: Blocks) -> HashRequest {
    let field = |(place, ty): &(usize, ColumnType)| Field {
        place: *place,
        ty: ty.clone(),
    };
    HashRequest {
        read: read.clone(),
        compared: compared.iter().map(field).collect(),
        key: vec![Field {
            place: 0,
            ty: ColumnType::Int64,
        }],
        slice: Slice::All,
        form: RowForm::Canonical,
        blocks,
    }
}

async fn spec(source: &dyn Source) -> ReadSpec {
    let schema = source.describe(&table()).await.unwrap();
    ReadSpec::all(table(), &schema.columns)
}

/// The blocks by every way that a place has.
async fn ways(place: &Place, request: &HashRequest) -> Vec<(String, BTreeMap<i64, Block>)> {
    let reading = ReadingHashes::new(place.source.clone(), ReadContext::default());
    let mut found = vec![(format!("{} read", place.name), reading.blocks(request).await.unwrap())];
    if let Some(inside) = place.source.block_hashes() {
        let own = |f: &Field| inside.canonical(&request.read.columns[f.place].column.ty, &f.ty);
        if request.compared.iter().chain(&request.key).all(own) {
            let blocks = inside.blocks(request).await.unwrap();
            found.push((format!("{} inside", place.name), blocks));
        }
    }
    found
}

/// Rows of every type with its edge values, and the columns that are stored without a change in all these places.
fn edge_table(extra: bool) -> (TableSchema, Vec<Row>) {
    let mut edges = edges();
    if extra {
        edges.retain(|e| matches!(e.ty, ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz));
        for e in &mut edges {
            e.values.extend(match e.ty {
                ColumnType::Date => vec!["infinity", "-infinity", "0044-03-15 BC"],
                ColumnType::Timestamp => vec!["infinity", "-infinity", "0044-03-15 12:00:00 BC"],
                _ => vec!["infinity", "-infinity", "0001-01-01 00:00:00+00"],
            });
        }
    }
    let mut schema = TableSchema {
        columns: vec![Column::new("id", ColumnType::Int64).not_null()],
        key: vec!["id".into()],
    };
    for (i, e) in edges.iter().enumerate() {
        schema.columns.push(Column::new(format!("c{i}"), e.ty.clone()));
    }
    let height = edges.iter().map(|e| e.values.len()).max().unwrap() + 1;
    let rows = (0..height)
        .map(|r| {
            let cells = edges.iter().map(|e| e.values.get(r).map(ToString::to_string));
            std::iter::once(Some((r as i64 - 3).to_string())).chain(cells).collect()
        })
        .collect();
    (schema, rows)
}

async fn agree(places: &[Place], schema: &TableSchema, rows: &[Row]) -> BTreeMap<String, usize> {
    let reference = tables(schema, rows);
    let mut compared = BTreeMap::new();
    for place in places {
        load(place, schema, rows).await;
    }
    for blocks in [Blocks::Divide { width: 2 }, Blocks::Spread { count: 3 }] {
        for (i, column) in schema.columns.iter().enumerate() {
            let wanted = [(i, column.ty.clone())];
            let all = ReadSpec::all(table(), &schema.columns);
            let reading = ReadingHashes::new(reference.clone(), ReadContext::default());
            let truth = reading.blocks(&request(&all, &wanted, blocks)).await.unwrap();
            assert!(truth.len() > 1);
            for place in places {
                if matches!(
                    place.destination.store_as("memory", column).fidelity,
                    Fidelity::Normalised(_)
                ) {
                    continue;
                }
                let read = spec(place.source.as_ref()).await;
                for (way, found) in ways(place, &request(&read, &wanted, blocks)).await {
                    assert_eq!(found, truth, "{way}: column {} of type {}", column.name, column.ty);
                    *compared.entry(way).or_default() += 1;
                }
            }
        }
    }
    compared
}

#[tokio::test(flavor = "multi_thread")]
async fn every_engine_hashes_the_edges_alike() {
    let (schema, rows) = edge_table(false);
    let compared = agree(&places().await, &schema, &rows).await;
    let columns = schema.columns.len() * 2;
    assert_eq!(compared["sqlite inside"], columns, "{compared:?}");
    assert_eq!(compared["parquet read"], columns, "{compared:?}");
    #[cfg(feature = "duckdb")]
    assert!(compared["duckdb inside"] >= 36, "{compared:?}");
}

/// The same list: so rows that are equal hash alike in PostgreSQL and MariaDB, in SQLite and files, whichever two there are.
#[tokio::test(flavor = "multi_thread")]
async fn every_server_hashes_the_edges_alike() {
    let (schema, rows) = edge_table(false);
    let postgres = [
        postgresql("postgresql 15", PgVersion::V15).await,
        postgresql("postgresql 18", PgVersion::V18).await,
    ];
    let compared = agree(&postgres, &schema, &rows).await;
    // All but jsonb, which the server writes in a form of its own.
    let columns = (schema.columns.len() - 1) * 2;
    for way in ["15 inside", "15 read", "18 inside", "18 read"] {
        assert_eq!(compared[&format!("postgresql {way}")], columns, "{compared:?}");
    }
    let compared = agree(&[mariadb().await], &schema, &finite(&schema, rows)).await;
    assert_eq!(compared["mariadb read"], schema.columns.len() * 2, "{compared:?}");
    assert!(compared["mariadb inside"] >= 36, "{compared:?}");
}

/// Without the floats that MySQL has not: such rows are refused there.
fn finite(schema: &TableSchema, mut rows: Vec<Row>) -> Vec<Row> {
    for row in &mut rows {
        for (cell, column) in row.iter_mut().zip(&schema.columns) {
            let lacks = |v: &str| matches!(v, "NaN" | "Infinity" | "-Infinity" | "-0");
            if matches!(column.ty, ColumnType::Float32 | ColumnType::Float64) && cell.as_deref().is_some_and(lacks) {
                *cell = None;
            }
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn infinity_and_years_before_christ_hash_alike() {
    let (schema, rows) = edge_table(true);
    let mut places: Vec<Place> = places()
        .await
        .into_iter()
        .filter(|p| matches!(p.name, "sqlite" | "duckdb"))
        .collect();
    places.push(postgresql("postgresql 15", PgVersion::V15).await);
    places.push(postgresql("postgresql 18", PgVersion::V18).await);
    agree(&places, &schema, &rows).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_blocks_and_cuts() {
    let schema = TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("h", ColumnType::Text { max: None }),
            Column::new("n", ColumnType::Int64),
        ],
        key: vec!["id".into()],
    };
    let texts = [
        "0123456789abcdef0123",
        "FF",
        "xyz",
        "",
        "-1",
        "12345678901234567890123",
        "+7",
        " 5",
        "9.0",
    ];
    let rows: Vec<Row> = texts
        .iter()
        .map(|t| Some(t.to_string()))
        .chain([None])
        .enumerate()
        .map(|(i, t)| {
            vec![
                Some((i as i64 - 2).to_string()),
                t,
                (i % 2 == 0).then(|| (-(i as i64)).to_string()),
            ]
        })
        .collect();
    for place in places().await {
        load(&place, &schema, &rows).await;
        let Some(inside) = place.source.block_hashes() else {
            continue;
        };
        let read = spec(place.source.as_ref()).await;
        let reading = ReadingHashes::new(place.source.clone(), ReadContext::default());
        let mut request = request(
            &read,
            &[(1, ColumnType::Text { max: None }), (2, ColumnType::Int64)],
            Blocks::Divide { width: 3 },
        );
        let blocks = reading.blocks(&request).await.unwrap();
        assert_eq!(inside.blocks(&request).await.unwrap(), blocks, "{}", place.name);
        let some: Vec<i64> = blocks.keys().copied().take(2).collect();
        let sorted = |mut rows: Vec<synctool_core::blocks::RowHash>| {
            rows.sort_by(|a, b| a.key.cmp(&b.key));
            rows
        };
        let (a, b) = (
            inside.rows(&request, &some).await.unwrap(),
            reading.rows(&request, &some).await.unwrap(),
        );
        assert_eq!(sorted(a), sorted(b), "{}", place.name);
        assert!(inside.rows(&request, &[]).await.unwrap().is_empty());
        request.slice = Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("id"),
                test: Test::Compare(Comparison::Greater, "3".into()),
            }],
            key: None,
        });
        let cut = inside.blocks(&request).await.unwrap();
        assert_eq!(cut.values().map(|b| b.rows).sum::<u64>(), 4);
        assert_eq!(cut, reading.blocks(&request).await.unwrap());
    }
}

fn cell(ty: &ColumnType) -> BoxedStrategy<Option<String>> {
    let text = match ty {
        ColumnType::Int64 => any::<i64>().prop_map(|v| v.to_string()).boxed(),
        ColumnType::Int16 => any::<i16>().prop_map(|v| v.to_string()).boxed(),
        ColumnType::UInt64 => any::<u64>().prop_map(|v| v.to_string()).boxed(),
        ColumnType::Bool => any::<bool>().prop_map(|v| v.to_string()).boxed(),
        ColumnType::Decimal { .. } => (any::<i32>(), 0..100_u32)
            .prop_map(|(a, b)| format!("{a}.{b:02}"))
            .boxed(),
        ColumnType::Numeric => prop_oneof!["-?[1-9][0-9]{0,30}(\\.[0-9]{1,20})?", Just("NaN".to_string())].boxed(),
        ColumnType::Timestamp => (-62_000_000_000_i64..250_000_000_000, 0..1_000_000_i64)
            .prop_map(|(s, us)| {
                let mut out = String::new();
                synctool_core::text::write_timestamp(&mut out, s * 1_000_000 + us, false);
                out
            })
            .boxed(),
        ColumnType::Float64 => any::<f64>()
            .prop_map(|v| {
                let mut out = String::new();
                synctool_core::text::write_float(&mut out, v, v);
                out
            })
            .boxed(),
        ColumnType::Bytes => prop::collection::vec(any::<u8>(), 0..8)
            .prop_map(|b| {
                let mut out = String::new();
                synctool_core::text::write_bytes(&mut out, &b);
                out
            })
            .boxed(),
        _ => "[^\\x00]{0,6}".boxed(),
    };
    prop::option::weighted(0.9, text).boxed()
}

fn any_table() -> (TableSchema, BoxedStrategy<Vec<Row>>) {
    let types = [
        ColumnType::Int64,
        ColumnType::Int16,
        ColumnType::UInt64,
        ColumnType::Bool,
        ColumnType::Decimal {
            precision: 12,
            scale: 2,
        },
        ColumnType::Numeric,
        ColumnType::Timestamp,
        ColumnType::Float64,
        ColumnType::Bytes,
        ColumnType::Text { max: None },
    ];
    let mut schema = TableSchema {
        columns: vec![Column::new("id", ColumnType::Int64).not_null()],
        key: vec!["id".into()],
    };
    schema.columns.extend(
        types
            .iter()
            .enumerate()
            .map(|(i, ty)| Column::new(format!("c{i}"), ty.clone())),
    );
    let row: Vec<_> = types.iter().map(cell).collect();
    let rows = prop::collection::btree_map(-1000_i64..1000, row, 1..30)
        .prop_map(|rows| {
            rows.into_iter()
                .map(|(id, mut row)| {
                    row.insert(0, Some(id.to_string()));
                    row
                })
                .collect()
        })
        .boxed();
    (schema, rows)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// SQLite's and DuckDB's own hashes are what reading their rows gives.
    #[test]
    fn inside_is_as_read(rows in any_table().1) {
        let schema = any_table().0;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let mut places = vec![sqlite()];
            #[cfg(feature = "duckdb")]
            places.push(duckdb().await);
            for place in places {
                load(&place, &schema, &rows).await;
                let read = spec(place.source.as_ref()).await;
                for blocks in [Blocks::Divide { width: 7 }, Blocks::Spread { count: 4 }] {
                    let inside = place.source.block_hashes().unwrap();
                    let compared: Vec<(usize, ColumnType)> = schema
                        .columns
                        .iter()
                        .enumerate()
                        .filter(|(i, c)| inside.canonical(&read.columns[*i].column.ty, &c.ty))
                        .map(|(i, c)| (i, c.ty.clone()))
                        .collect();
                    assert!(compared.len() >= 8, "{}: {compared:?}", place.name);
                    let request = request(&read, &compared, blocks);
                    let found = ways(&place, &request).await;
                    assert_eq!(found.len(), 2);
                    assert_eq!(found[0].1, found[1].1, "{}", place.name);
                    let all: Vec<i64> = found[0].1.keys().copied().collect();
                    assert_eq!(inside.rows(&request, &all).await.unwrap().len(), rows.len());
                }
            }
        });
    }
}
