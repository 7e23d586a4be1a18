//! Changes applied directly: what each op does to each row, and how it is counted.

use super::*;
use arrow_array::UInt8Array;
use arrow_buffer::BooleanBuffer;
use synctool_core::change::{KeyRange, Op, Ops, Presence, SchemaChange};
use synctool_core::error::code;
use synctool_core::schema::{Column, ColumnType, SchemaDifference};

fn schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("name", ColumnType::Text { max: Some(40) }),
            Column::new("n", ColumnType::Int32),
        ],
        key: vec!["id".into()],
    }
}

/// A direct plan for table `t`, with a sink that holds its partition.
async fn following(db: &Db, schema: &TableSchema) -> (Plan, Box<dyn Sink>) {
    let plan = db
        .destination
        .prepare(plan("t", schema, Publish::Direct))
        .await
        .unwrap();
    let sink = sink(db, &plan).await;
    (plan, sink)
}

fn changes(schema: &TableSchema, ops: &[Op], rows: &[Row], before: Option<&[Row]>, present: Option<Presence>) -> Event {
    let ops = Ops::Each(UInt8Array::from_iter_values(ops.iter().map(|o| *o as u8)));
    let rows = batch(schema, rows).unwrap();
    let before = before.map(|b| batch(schema, b).unwrap());
    Event::Rows(ChangeBatch::new(Arc::new(TableId::bare("t")), rows, ops, present, before, Hold::none()).unwrap())
}

async fn commit(sink: &mut dyn Sink, from: Option<&str>, to: &str) -> (u64, u64, u64, u64, u64) {
    let a = sink.commit(&[advance(from, to, false, 0)]).await.unwrap();
    assert_eq!(a.written, a.inserted + a.updated + a.deleted + a.unchanged, "{a:?}");
    (a.inserted, a.updated, a.deleted, a.unchanged, a.removed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_op_is_counted_as_what_it_did() {
    let db = Db::new().await;
    let (_, mut sink) = following(&db, &schema()).await;
    let rows: Vec<Row> = (1..=5).map(|i| row(&[&i.to_string(), "a", "1"])).collect();
    sink.write(changes(&schema(), &[Op::Insert; 5], &rows, None, None))
        .await
        .unwrap();
    assert_eq!(commit(sink.as_mut(), None, "1").await, (5, 0, 0, 0, 0));
    // An upsert of the same, one that differs, a new one; an update of one that is not there; a delete of one that is.
    let ops = [
        Op::Upsert,
        Op::Upsert,
        Op::Upsert,
        Op::Update,
        Op::Update,
        Op::Delete,
        Op::Delete,
    ];
    let rows = [
        row(&["1", "a", "1"]),
        row(&["2", "A", "1"]),
        row(&["6", "f", "NULL"]),
        row(&["77", "x", "1"]),
        row(&["3", "c", "3"]),
        row(&["4", "NULL", "NULL"]),
        row(&["44", "NULL", "NULL"]),
    ];
    sink.write(changes(&schema(), &ops, &rows, None, None)).await.unwrap();
    assert_eq!(commit(sink.as_mut(), Some("1"), "2").await, (1, 2, 1, 3, 0));
    assert_eq!(
        read_all(&db, "t").await.unwrap(),
        [
            row(&["1", "a", "1"]),
            row(&["2", "A", "1"]),
            row(&["3", "c", "3"]),
            row(&["5", "a", "1"]),
            row(&["6", "f", "NULL"]),
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absent_values_stay_and_keys_move() {
    let db = Db::new().await;
    let (_, mut sink) = following(&db, &schema()).await;
    let rows = [row(&["1", "one", "1"]), row(&["2", "two", "2"])];
    sink.write(changes(&schema(), &[Op::Insert; 2], &rows, None, None))
        .await
        .unwrap();
    commit(sink.as_mut(), None, "1").await;
    // Row 1 gets another number, and its name was not sent; row 2 takes the key 1 away from it, its number not sent.
    let present = Presence(vec![
        None,
        Some(BooleanBuffer::from(vec![false, true])),
        Some(BooleanBuffer::from(vec![true, false])),
    ]);
    let rows = [row(&["1", "NULL", "11"]), row(&["1", "moved", "NULL"])];
    let before = [row(&["1", "NULL", "NULL"]), row(&["2", "NULL", "NULL"])];
    sink.write(changes(
        &schema(),
        &[Op::Update; 2],
        &rows,
        Some(&before),
        Some(present),
    ))
    .await
    .unwrap();
    assert_eq!(commit(sink.as_mut(), Some("1"), "2").await, (0, 2, 0, 0, 0));
    assert_eq!(read_all(&db, "t").await.unwrap(), [row(&["1", "moved", "2"])]);
}

/// Nobody sends such rows, and whoever did would lose them without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_to_insert_that_lack_a_value_are_refused() {
    for op in [Op::Insert, Op::Upsert] {
        let db = Db::new().await;
        let (_, mut sink) = following(&db, &schema()).await;
        let present = Presence(vec![None, None, Some(BooleanBuffer::from(vec![true, false]))]);
        let rows = [row(&["8", "x", "1"]), row(&["9", "x", "NULL"])];
        let e = sink
            .write(changes(&schema(), &[op; 2], &rows, None, Some(present)))
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::VALUE_MALFORMED, "{op:?}: {e}");
        assert!(
            e.to_string().contains("column n") && e.to_string().contains("table t"),
            "{e}"
        );
        assert!(e.next_step().is_some(), "{e}");
        drop(sink);
        assert!(read_all(&db, "t").await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unique_values_may_wander() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40) UNIQUE, n int)");
    let (_, mut sink) = following(&db, &schema()).await;
    let rows = [row(&["1", "a", "1"]), row(&["2", "b", "1"])];
    sink.write(changes(&schema(), &[Op::Insert; 2], &rows, None, None))
        .await
        .unwrap();
    let ops = [Op::Delete, Op::Update, Op::Insert];
    let rows = [
        row(&["1", "NULL", "NULL"]),
        row(&["2", "a", "1"]),
        row(&["1", "b", "1"]),
    ];
    sink.write(changes(&schema(), &ops, &rows, None, None)).await.unwrap();
    assert_eq!(commit(sink.as_mut(), None, "1").await, (3, 1, 1, 0, 0));
    assert_eq!(
        read_all(&db, "t").await.unwrap(),
        [row(&["1", "b", "1"]), row(&["2", "a", "1"])]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_without_a_key_takes_whole_rows() {
    let db = Db::new().await;
    let mut schema = schema();
    schema.key.clear();
    let (_, mut sink) = following(&db, &schema).await;
    let same = row(&["1", "a", "NULL"]);
    sink.write(changes(
        &schema,
        &[Op::Insert; 3],
        &[same.clone(), same.clone(), same.clone()],
        None,
        None,
    ))
    .await
    .unwrap();
    let before = [same.clone(), same.clone()];
    let rows = [row(&["1", "a", "2"]), row(&["NULL", "NULL", "NULL"])];
    sink.write(changes(&schema, &[Op::Update, Op::Delete], &rows, Some(&before), None))
        .await
        .unwrap();
    assert_eq!(commit(sink.as_mut(), None, "1").await, (3, 1, 1, 0, 0));
    assert_eq!(
        read_all(&db, "t").await.unwrap(),
        [row(&["1", "a", "NULL"]), row(&["1", "a", "2"])]
    );
    let e = sink
        .write(changes(&schema, &[Op::Delete], &[same], None, None))
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_are_replaced_and_differences_are_net() {
    let db = Db::new().await;
    let (_, mut sink) = following(&db, &schema()).await;
    let rows: Vec<Row> = (1..=6).map(|i| row(&[&i.to_string(), "a", "1"])).collect();
    sink.write(changes(&schema(), &[Op::Insert; 6], &rows, None, None))
        .await
        .unwrap();
    commit(sink.as_mut(), None, "1").await;
    let range = KeyRange {
        columns: vec!["id".into()],
        lower: Some(vec!["2".into()]),
        upper: Some(vec!["6".into()]),
    };
    sink.write(Event::ReplaceRange {
        table: Arc::new(TableId::bare("t")),
        range,
        rows: batch(
            &schema(),
            &[row(&["2", "a", "1"]), row(&["3", "b", "1"]), row(&["33", "c", "1"])],
        )
        .unwrap(),
    })
    .await
    .unwrap();
    assert_eq!(commit(sink.as_mut(), Some("1"), "2").await, (1, 1, 0, 1, 2));
    sink.write(Event::Net {
        table: Arc::new(TableId::bare("t")),
        remove: batch(&schema(), &[row(&["6", "NULL", "NULL"]), row(&["3", "NULL", "NULL"])]).unwrap(),
        insert: batch(&schema(), &[row(&["3", "z", "1"])]).unwrap(),
    })
    .await
    .unwrap();
    assert_eq!(commit(sink.as_mut(), Some("2"), "3").await, (1, 0, 2, 0, 0));
    let keys = db.sql("SELECT group_concat(id ORDER BY id), group_concat(name ORDER BY id) FROM t");
    assert_eq!(keys, "1,2,3,33\ta,a,z,c");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_are_added_outside_of_a_transaction() {
    let db = Db::new().await;
    let (_, mut sink) = following(&db, &schema()).await;
    let added = || {
        Event::Schema(SchemaChange {
            table: Arc::new(TableId::bare("t")),
            difference: SchemaDifference {
                missing: vec![Column::new("extra", ColumnType::TimestampTz)],
                ..SchemaDifference::default()
            },
        })
    };
    sink.write(changes(&schema(), &[Op::Insert], &[row(&["1", "a", "1"])], None, None))
        .await
        .unwrap();
    // ALTER TABLE would commit the row without its position.
    let e = sink.write(added()).await.unwrap_err();
    assert!(e.kind().is_transient(), "{e}");
    drop(sink);
    assert_eq!(db.sql("SELECT count(*) FROM t"), "0");
    let stored = db.destination.stored_plan("p t").await.unwrap().unwrap();
    let mut sink = db.destination.open_sink(&stored.plan).await.unwrap();
    sink.recover(&["all".into()]).await.unwrap();
    sink.write(changes(&schema(), &[Op::Insert], &[row(&["1", "a", "1"])], None, None))
        .await
        .unwrap();
    sink.write(added()).await.unwrap();
    let mut wider = schema();
    wider.columns.push(Column::new("extra", ColumnType::TimestampTz));
    let more = row(&["2", "b", "1", "2038-01-19 03:14:08+00"]);
    sink.write(changes(&wider, &[Op::Insert], &[more], None, None))
        .await
        .unwrap();
    assert_eq!(commit(sink.as_mut(), None, "1").await, (2, 0, 0, 0, 0));
    assert_eq!(
        db.sql("SELECT id, extra FROM t ORDER BY id"),
        "1\tNULL\n2\t2038-01-19 03:14:08.000000"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collation_hides_no_change() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id varchar(10) COLLATE utf8mb4_general_ci PRIMARY KEY, name varchar(40) COLLATE utf8mb4_general_ci, n int)");
    let mut schema = schema();
    schema.columns[0].ty = ColumnType::Text { max: Some(10) };
    let (_, mut sink) = following(&db, &schema).await;
    let rows = [row(&["a", "x", "1"]), row(&["b", "y", "1"])];
    sink.write(changes(&schema, &[Op::Insert; 2], &rows, None, None))
        .await
        .unwrap();
    let rows = [row(&["a", "X", "1"]), row(&["B", "y", "1"])];
    sink.write(changes(&schema, &[Op::Upsert; 2], &rows, None, None))
        .await
        .unwrap();
    assert_eq!(commit(sink.as_mut(), None, "1").await, (2, 2, 0, 0, 0));
    assert_eq!(db.sql("SELECT id, name FROM t ORDER BY id"), "a\tX\nB\ty");
}

/// Ranges of texts are cut by bytes: rows that the column's own order has elsewhere are none of another range's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_go_by_bytes_whatever_order_the_column_has() {
    let low = "00000000-0000-4000-8000-0000000000ff";
    let (between, high) = (
        "80000000-0000-4000-8000-000000000000",
        "ff000000-0000-4000-8000-000000000000",
    );
    for (declared, ty, keys, bound) in [
        (
            "varchar(40) COLLATE utf8mb4_general_ci",
            ColumnType::Text { max: Some(40) },
            ["B", "C", "a", "d"],
            "a",
        ),
        // MariaDB's own uuids go by their last bytes first.
        (
            "uuid",
            ColumnType::Uuid,
            [low, "00000001-0000-4000-8000-0000000000ff", between, high],
            between,
        ),
    ] {
        let db = Db::new().await;
        db.sql(&format!(
            "CREATE TABLE t (id {declared} PRIMARY KEY, name varchar(40), n int)"
        ));
        let mut schema = schema();
        schema.columns[0].ty = ty;
        let mut planned = plan("t", &schema, Publish::Direct);
        let read = planned.tables[0].read.table.clone();
        planned.cut_by_bytes(&read, vec!["id".into()]);
        let planned = db.destination.prepare(planned).await.unwrap();
        let mut sink = sink(&db, &planned).await;
        let rows = keys.map(|id| row(&[id, "x", "1"]));
        sink.write(changes(&schema, &[Op::Insert; 4], &rows, None, None))
            .await
            .unwrap();
        assert_eq!(commit(sink.as_mut(), None, "1").await, (4, 0, 0, 0, 0), "{declared}");
        for (lower, upper, rows) in [(None, Some(bound), &rows[..2]), (Some(bound), None, &rows[2..])] {
            let bound = |key: Option<&str>| key.map(|key| vec![key.to_string()]);
            let range = KeyRange {
                columns: vec!["id".into()],
                lower: bound(lower),
                upper: bound(upper),
            };
            let (table, rows) = (Arc::new(TableId::bare("t")), batch(&schema, rows).unwrap());
            sink.write(Event::ReplaceRange { table, range, rows }).await.unwrap();
        }
        assert_eq!(
            commit(sink.as_mut(), Some("1"), "2").await,
            (0, 0, 0, 4, 0),
            "{declared}"
        );
        assert_eq!(db.sql("SELECT count(*) FROM t"), "4", "{declared}");
    }
}
