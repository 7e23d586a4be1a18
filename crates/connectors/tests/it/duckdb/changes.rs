//! Changes applied directly.

use arrow_array::UInt8Array;
use arrow_buffer::BooleanBuffer;
use std::sync::Arc;
use synctool_connectors::duckdb::{DuckDb, DuckDbConfig};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event, KeyRange, Op, Ops, Presence};
use synctool_core::error::code;
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy, Verify, Work,
};
use synctool_core::progress::{Advance, Generation, Position};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::{Destination, Sink};
use synctool_core::source::Source;
use synctool_core::testing::conformance;
use synctool_core::testing::rows::{Row, Rows, batch};

struct Db {
    _folder: tempfile::TempDir,
    to: Arc<dyn Destination>,
    from: Arc<dyn Source>,
}

async fn open() -> Db {
    let folder = tempfile::tempdir().unwrap();
    let config = DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library: Some(synctool_testkit::libduckdb()),
        create: true,
    };
    let duckdb = DuckDb::open(config).await.unwrap();
    Db {
        _folder: folder,
        to: duckdb.destination(),
        from: duckdb.source(),
    }
}

fn schema(more: bool) -> TableSchema {
    let mut schema = TableSchema {
        columns: vec![
            Column::new("k", ColumnType::Int64).not_null(),
            Column::new("price", ColumnType::Decimal { precision: 8, scale: 2 }),
            Column::new("at", ColumnType::Timestamp),
        ],
        key: vec!["k".into()],
    };
    if more {
        schema
            .columns
            .push(Column::new("extra", ColumnType::Text { max: None }));
    }
    schema
}

fn plan(schema: &TableSchema, evolve: bool) -> Plan {
    let table = TableId::bare("t");
    Plan {
        pipeline: "p".into(),
        run_id: "20260101_000000_abcdef".into(),
        generation: Generation(0),
        strategy: Strategy::Delta,
        reasons: Vec::new(),
        semantics: serde_json::Value::Null,
        tables: vec![PlannedTable {
            evolve,
            ..PlannedTable::new(
                ReadSpec::all(table.clone(), &schema.columns),
                table,
                schema.clone(),
                Publish::Direct,
            )
        }],
        phases: vec![Phase {
            name: "delta".into(),
            partitions: vec![Partition::new("all", Work::Read(Slice::All))],
        }]
        .into(),
        verify: Verify::None,
        guard: DeleteGuard::default(),
        remember: Default::default(),
        created_at: "2026-01-01T00:00:00Z".into(),
    }
}

fn row(cells: &[&str]) -> Row {
    cells.iter().map(|c| (*c != "NULL").then(|| c.to_string())).collect()
}

fn changes(schema: &TableSchema, ops: &[(Op, &[&str])]) -> Event {
    let rows: Vec<Row> = ops.iter().map(|(_, cells)| row(cells)).collect();
    let ops = Ops::Each(UInt8Array::from_iter_values(ops.iter().map(|(op, _)| *op as u8)));
    let batch = batch(schema, &rows).unwrap();
    Event::Rows(ChangeBatch::new(Arc::new(TableId::bare("t")), batch, ops, None, None, Hold::none()).unwrap())
}

fn inserts(schema: &TableSchema, rows: &[Row]) -> Event {
    let (table, rows) = (Arc::new(TableId::bare("t")), batch(schema, rows).unwrap());
    Event::Rows(ChangeBatch::new(table, rows, Ops::All(Op::Insert), None, None, Hold::none()).unwrap())
}

/// A table of somebody else's whose key folds case, and what it holds.
async fn folding(rows: &[&str]) -> (Db, TableSchema) {
    let folder = tempfile::tempdir().unwrap();
    let config = DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library: Some(synctool_testkit::libduckdb()),
        create: true,
    };
    let made = "CREATE TABLE t (k VARCHAR COLLATE NOCASE PRIMARY KEY, v BIGINT)";
    super::queries::foreign(&config.path, &[&[made], rows].concat());
    let duckdb = DuckDb::open(config).await.unwrap();
    let db = Db {
        _folder: folder,
        to: duckdb.destination(),
        from: duckdb.source(),
    };
    let schema = TableSchema {
        columns: vec![
            Column::new("k", ColumnType::Text { max: None }).not_null(),
            Column::new("v", ColumnType::Int64),
        ],
        key: vec!["k".into()],
    };
    (db, schema)
}

async fn commit(sink: &mut dyn Sink, from: Option<&str>, to: &str, done: bool) -> Applied {
    let step = Advance {
        rejects: Vec::new(),
        partition: "all".into(),
        from: from.map(Position::from),
        to: to.into(),
        done,
        accounts: Accounts::default(),
    };
    sink.commit(&[step]).await.unwrap()
}

fn counts(a: Applied) -> [u64; 6] {
    [a.written, a.inserted, a.updated, a.deleted, a.unchanged, a.removed]
}

async fn stored(db: &Db) -> Rows {
    let schema = db.from.describe(&TableId::bare("t")).await.unwrap();
    conformance::read(db.from.as_ref(), &TableId::bare("t"), &schema)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_changed_with_exact_counts() {
    let db = open().await;
    let schema = schema(false);
    let plan_ = db.to.prepare(plan(&schema, false)).await.unwrap();
    let mut sink = db.to.open_sink(&plan_).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    use Op::*;
    sink.write(changes(
        &schema,
        &[
            (Upsert, &["1", "1.10", "2024-01-01 00:00:00"]),
            (Upsert, &["2", "2.00", "infinity"]),
            (Insert, &["3", "NULL", "0044-03-15 12:00:00 BC"]),
            (Upsert, &["1", "1.20", "2024-01-01 00:00:00"]),
            (Delete, &["9", "NULL", "NULL"]),
        ],
    ))
    .await
    .unwrap();
    assert_eq!(
        counts(commit(sink.as_mut(), None, "1", false).await),
        [5, 3, 1, 0, 1, 0]
    );
    sink.write(changes(
        &schema,
        &[
            (Upsert, &["2", "2.00", "infinity"]),
            (Delete, &["1", "NULL", "NULL"]),
            (Upsert, &["1", "5.00", "NULL"]),
            (Update, &["7", "1.00", "NULL"]),
            (Upsert, &["4", "4.00", "NULL"]),
            (Delete, &["4", "NULL", "NULL"]),
        ],
    ))
    .await
    .unwrap();
    assert_eq!(
        counts(commit(sink.as_mut(), Some("1"), "2", false).await),
        [6, 2, 0, 2, 2, 0]
    );
    let want: Vec<Row> = vec![
        row(&["1", "5.00", "NULL"]),
        row(&["2", "2.00", "infinity"]),
        row(&["3", "NULL", "0044-03-15 12:00:00 BC"]),
    ];
    assert_eq!(stored(&db).await.into_values().collect::<Vec<_>>(), want);

    // A part of a row, and keys that change places.
    let rows = batch(
        &schema,
        &[
            row(&["2", "9.99", "NULL"]),
            row(&["1", "NULL", "NULL"]),
            row(&["11", "NULL", "NULL"]),
        ],
    )
    .unwrap();
    let before = batch(
        &schema,
        &[
            row(&["1", "NULL", "NULL"]),
            row(&["2", "NULL", "NULL"]),
            row(&["8", "NULL", "NULL"]),
        ],
    )
    .unwrap();
    let present = Presence(vec![
        None,
        Some(BooleanBuffer::from(vec![true, false, false])),
        Some(BooleanBuffer::from(vec![false; 3])),
    ]);
    let batch_ = ChangeBatch::new(
        Arc::new(TableId::bare("t")),
        rows,
        Ops::All(Update),
        Some(present),
        Some(before),
        Hold::none(),
    )
    .unwrap();
    sink.write(Event::Rows(batch_)).await.unwrap();
    // The row that had key 2 gave way to the one that had key 1 and goes back to it; nobody had key 8.
    assert_eq!(
        counts(commit(sink.as_mut(), Some("2"), "3", false).await),
        [3, 0, 2, 0, 1, 0]
    );
    let want = [
        row(&["1", "9.99", "NULL"]),
        row(&["3", "NULL", "0044-03-15 12:00:00 BC"]),
    ];
    assert_eq!(stored(&db).await.into_values().collect::<Vec<_>>(), want);
    sink.write(Event::ReplaceRange {
        table: Arc::new(TableId::bare("t")),
        range: KeyRange {
            columns: vec!["k".into()],
            lower: Some(vec!["3".into()]),
            upper: None,
        },
        rows: batch(&schema, &[row(&["5", "5.00", "NULL"])]).unwrap(),
    })
    .await
    .unwrap();
    assert_eq!(
        counts(commit(sink.as_mut(), Some("3"), "4", true).await),
        [1, 1, 0, 0, 0, 1]
    );
    drop(sink);
    assert!(db.to.checkpoint(&plan_).await.unwrap()[&"all".into()].done);
    db.to.seal(&plan_).await.unwrap();
    db.to.publish(&plan_).await.unwrap();
    let want = [row(&["1", "9.99", "NULL"]), row(&["5", "5.00", "NULL"])];
    assert_eq!(stored(&db).await.into_values().collect::<Vec<_>>(), want);
}

/// Nobody sends such rows, and whoever did would lose them without a word.
#[tokio::test(flavor = "multi_thread")]
async fn rows_to_insert_that_lack_a_value_are_refused() {
    for op in [Op::Insert, Op::Upsert] {
        let db = open().await;
        let schema = schema(false);
        let plan_ = db.to.prepare(plan(&schema, false)).await.unwrap();
        let mut sink = db.to.open_sink(&plan_).await.unwrap();
        sink.recover(&["all".into()]).await.unwrap();
        let Event::Rows(whole) = changes(&schema, &[(op, &["1", "1.00", "NULL"])]) else {
            panic!("these are rows");
        };
        let lacking = Some(BooleanBuffer::from(vec![false]));
        let batch = ChangeBatch {
            present: Some(Presence(vec![None, None, lacking])),
            ..whole
        };
        let e = sink.write(Event::Rows(batch)).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_MALFORMED, "{op:?}: {e}");
        assert!(
            e.to_string().contains("column at") && e.to_string().contains("table t"),
            "{e}"
        );
        assert!(e.next_step().is_some(), "{e}");
    }
}

/// Ranges of texts are cut by bytes: rows that the column's collation has elsewhere are none of another range's.
#[tokio::test(flavor = "multi_thread")]
async fn ranges_go_by_bytes_whatever_order_the_column_has() {
    let (db, schema) = folding(&[]).await;
    let to = &db.to;
    let planned = to.prepare(plan(&schema, false)).await.unwrap();
    let mut sink = to.open_sink(&planned).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    let rows = ["B", "C", "a", "d"].map(|k| row(&[k, "1"]));
    sink.write(inserts(&schema, &rows)).await.unwrap();
    assert_eq!(
        counts(commit(sink.as_mut(), None, "1", false).await),
        [4, 4, 0, 0, 0, 0]
    );
    for (lower, upper, rows) in [(None, Some("a"), &rows[..2]), (Some("a"), None, &rows[2..])] {
        let bound = |key: Option<&str>| key.map(|key| vec![key.to_string()]);
        let range = KeyRange {
            columns: vec!["k".into()],
            lower: bound(lower),
            upper: bound(upper),
        };
        let (table, rows) = (Arc::new(TableId::bare("t")), batch(&schema, rows).unwrap());
        sink.write(Event::ReplaceRange { table, range, rows }).await.unwrap();
    }
    assert_eq!(
        counts(commit(sink.as_mut(), Some("1"), "2", false).await),
        [4, 0, 0, 0, 4, 0]
    );
}

/// A load whose keys are one by the table's collation ends, where an update would take any of the two rows.
#[tokio::test(flavor = "multi_thread")]
async fn a_merge_ends_at_keys_that_are_one_there() {
    let (db, schema) = folding(&["INSERT INTO t VALUES ('a', 1)"]).await;
    let mut load = plan(&schema, false);
    load.tables[0].publish = Publish::Merge { delete_missing: true };
    let load = db.to.prepare(load).await.unwrap();
    let mut sink = db.to.open_sink(&load).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    let rows = [["a", "1"], ["A", "2"], ["b", "3"]].map(|cells| row(&cells));
    sink.write(inserts(&schema, &rows)).await.unwrap();
    commit(sink.as_mut(), None, "1", true).await;
    drop(sink);
    db.to.seal(&load).await.unwrap();
    let e = db.to.publish(&load).await.unwrap_err();
    assert_eq!(e.code(), code::DUPLICATE_KEY, "{e}");
    assert!(e.next_step().is_some(), "{e}");
    assert_eq!(stored(&db).await.into_values().collect::<Vec<_>>(), [rows[0].clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn columns_are_added_only_where_that_is_wanted() {
    let db = open().await;
    let first = db.to.prepare(plan(&schema(false), false)).await.unwrap();
    let mut sink = db.to.open_sink(&first).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink.write(changes(&schema(false), &[(Op::Upsert, &["1", "1.00", "NULL"])]))
        .await
        .unwrap();
    commit(sink.as_mut(), None, "1", true).await;
    drop(sink);
    db.to.publish(&first).await.unwrap();
    let more = schema(true);
    let e = db.to.prepare(plan(&more, false)).await.unwrap_err();
    assert_eq!(e.code(), code::SCHEMA_MISMATCH, "{e}");
    let preview = db.to.preview(&plan(&more, true)).await.unwrap();
    assert!(
        preview
            .iter()
            .any(|s| s.contains("ADD COLUMN") && s.contains("\"extra\"")),
        "{preview:?}"
    );
    let second = db.to.prepare(plan(&more, true)).await.unwrap();
    let mut sink = db.to.open_sink(&second).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink.write(changes(&more, &[(Op::Upsert, &["2", "2.00", "NULL", "new"])]))
        .await
        .unwrap();
    commit(sink.as_mut(), None, "1", true).await;
    drop(sink);
    let want = [row(&["1", "1.00", "NULL", "NULL"]), row(&["2", "2.00", "NULL", "new"])];
    assert_eq!(stored(&db).await.into_values().collect::<Vec<_>>(), want);
    // A pipeline that knows fewer columns leaves the others as they are.
    let third = db.to.prepare(plan(&schema(false), false)).await.unwrap();
    let mut sink = db.to.open_sink(&third).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink.write(changes(
        &schema(false),
        &[
            (Op::Upsert, &["2", "7.00", "NULL"]),
            (Op::Delete, &["1", "NULL", "NULL"]),
        ],
    ))
    .await
    .unwrap();
    assert_eq!(counts(commit(sink.as_mut(), None, "1", true).await), [2, 0, 1, 1, 0, 0]);
    assert_eq!(
        stored(&db).await.into_values().collect::<Vec<_>>(),
        [row(&["2", "7.00", "NULL", "new"])]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clock_is_the_bound_while_nobody_writes() {
    let db = open().await;
    let plan = db.to.prepare(plan(&schema(false), false)).await.unwrap();
    let table = TableId::bare("t");
    let column = Column::new("at", ColumnType::Timestamp);
    let ask = |zone| {
        db.from
            .settled(&table, &column, zone, std::time::Duration::from_secs(1))
    };
    let settled = ask(None).await.unwrap();
    assert!(
        settled.bound.replacen(' ', "T", 1) < settled.now && settled.bound.as_str() > "2025",
        "{settled:?}"
    );
    // Without a zone in the column, the bound is what clocks of its zone show.
    let utc = ask(Some("UTC")).await.unwrap().bound;
    assert!(ask(Some("-05:00")).await.unwrap().bound < utc && ask(Some("+05:00")).await.unwrap().bound > utc);
    assert_eq!(ask(Some("Nowhere")).await.unwrap_err().code(), code::CONFIG_INVALID);
    let sink = db.to.open_sink(&plan).await.unwrap();
    assert!(ask(None).await.unwrap_err().kind().is_transient());
    drop(sink);
    ask(None).await.unwrap();
}
