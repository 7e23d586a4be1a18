//! Changes applied directly, against a model.

use super::{Db, advance, inserts, plan, row, sink};
use arrow_array::UInt8Array;
use arrow_buffer::BooleanBuffer;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event, KeyRange, Op, Ops, Presence, SchemaChange};
use synctool_core::error::{Result, code};
use synctool_core::ledger::Applied;
use synctool_core::plan::Publish;
use synctool_core::schema::{Column, ColumnType, SchemaDifference, TableId, TableSchema};
use synctool_core::testing::rows::{Row, batch, text_schema};

fn schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("k", ColumnType::Int64).not_null(),
            Column::new("a", ColumnType::Text { max: None }),
            Column::new("b", ColumnType::Float64),
        ],
        key: vec!["k".into()],
    }
}

/// One change: its op, the row, which cells are there, and the key before.
#[derive(Debug, Clone)]
struct Change {
    op: Op,
    row: Row,
    has: [bool; 2],
    old: Option<i64>,
}

fn changes(schema: &TableSchema, changes: &[Change]) -> Event {
    let rows: Vec<Row> = changes.iter().map(|c| c.row.clone()).collect();
    let before: Vec<Row> = changes
        .iter()
        .map(|c| vec![c.old.map(|k| k.to_string()), None, None])
        .collect();
    let present = Presence(vec![
        None,
        Some(BooleanBuffer::from_iter(changes.iter().map(|c| c.has[0]))),
        Some(BooleanBuffer::from_iter(changes.iter().map(|c| c.has[1]))),
    ]);
    Event::Rows(
        ChangeBatch::new(
            Arc::new(TableId::bare("t")),
            batch(schema, &rows).unwrap(),
            Ops::Each(UInt8Array::from_iter_values(changes.iter().map(|c| c.op as u8))),
            Some(present),
            Some(batch(schema, &before).unwrap()),
            Hold::none(),
        )
        .unwrap(),
    )
}

type Model = BTreeMap<i64, [Option<String>; 2]>;

/// What a change must do, said as simply as it can be.
fn apply(model: &mut Model, c: &Change) -> Applied {
    let key: i64 = c.row[0].as_ref().unwrap().parse().unwrap();
    let mut done = Applied {
        written: 1,
        ..Applied::default()
    };
    let set = |stored: &mut [Option<String>; 2]| {
        let was = stored.clone();
        for ((cell, has), new) in stored.iter_mut().zip(c.has).zip(&c.row[1..]) {
            if has {
                cell.clone_from(new);
            }
        }
        *stored != was
    };
    if c.op == Op::Delete {
        let gone = model.remove(&c.old.unwrap_or(key)).is_some();
        *(if gone { &mut done.deleted } else { &mut done.unchanged }) = 1;
        return done;
    }
    if let Some(old) = c.old.filter(|old| *old != key) {
        if let Some(mut moved) = model.remove(&old) {
            set(&mut moved);
            model.insert(key, moved);
            done.updated = 1;
            return done;
        }
        if c.op == Op::Update {
            done.unchanged = 1;
            return done;
        }
    }
    match model.get_mut(&key) {
        Some(stored) => {
            *(if set(stored) {
                &mut done.updated
            } else {
                &mut done.unchanged
            }) = 1
        }
        None if c.op != Op::Update => {
            model.insert(key, [c.row[1].clone(), c.row[2].clone()]);
            done.inserted = 1;
        }
        _ => done.unchanged = 1,
    }
    done
}

fn a_change() -> impl Strategy<Value = Change> {
    let text = prop_oneof![Just(None), "[aA1]{0,2}".prop_map(Some)];
    let float = prop_oneof![
        Just(None),
        prop::sample::select(vec!["0", "-0", "1", "NaN", "Infinity", "0.1"]).prop_map(|s| Some(s.to_string())),
    ];
    let op = prop::sample::select(vec![Op::Insert, Op::Update, Op::Upsert, Op::Delete]);
    (
        op,
        0..8_i64,
        text,
        float,
        any::<[bool; 2]>(),
        any::<bool>(),
        prop::option::of(0..8_i64),
    )
        .prop_map(|(op, key, a, b, has, whole, old)| Change {
            op,
            row: vec![Some(key.to_string()), a, b],
            // Rows to insert bring all of their values.
            has: match whole || matches!(op, Op::Insert | Op::Upsert) {
                true => [true, true],
                false => has,
            },
            old,
        })
}

fn stored(db: &Db) -> Model {
    let conn = db.conn();
    let mut statement = conn
        .prepare("SELECT k, a, CASE WHEN b = '-0x0' THEN '-0' WHEN b = 9e999 THEN 'Infinity' WHEN b = CAST(b AS INT) THEN CAST(CAST(b AS INT) AS TEXT) ELSE CAST(b AS TEXT) END FROM t")
        .unwrap();
    let rows = statement
        .query_map([], |r| Ok((r.get(0)?, [r.get(1)?, r.get(2)?])))
        .unwrap();
    rows.map(std::result::Result::unwrap).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]
    /// Any changes in any batches and commits leave what the model has, and are counted as the model counts.
    #[test]
    fn changes_do_what_the_model_does(commits in prop::collection::vec(prop::collection::vec(prop::collection::vec(a_change(), 1..12), 1..4), 1..4)) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
            let db = Db::new();
            let plan = db.destination().prepare(plan("t", &schema(), Publish::Direct)).await.unwrap();
            let mut writer = sink(&db, &plan).await;
            let mut model = Model::new();
            let mut from: Option<String> = None;
            for (n, batches) in commits.iter().enumerate() {
                let mut expected = Applied::default();
                for batch in batches {
                    for c in batch {
                        expected += apply(&mut model, c);
                    }
                    writer.write(changes(&schema(), batch)).await.unwrap();
                }
                let to = n.to_string();
                let applied = writer.commit(&[advance(from.as_deref(), &to, false, 0)]).await.unwrap();
                assert_eq!(applied, expected);
                assert_eq!(stored(&db), model);
                from = Some(to);
            }
        });
    }
}

async fn direct(schema: &TableSchema) -> (Db, Box<dyn synctool_core::sink::Sink>) {
    let db = Db::new();
    let plan = db
        .destination()
        .prepare(plan("t", schema, Publish::Direct))
        .await
        .unwrap();
    let writer = sink(&db, &plan).await;
    (db, writer)
}

/// Nobody sends such rows, and whoever did would lose them without a word.
#[tokio::test]
async fn rows_to_insert_that_lack_a_value_are_refused() {
    let mut keyless = schema();
    keyless.key.clear();
    for (op, schema) in [(Op::Insert, schema()), (Op::Upsert, schema()), (Op::Insert, keyless)] {
        let (db, mut writer) = direct(&schema).await;
        let row = row(&["1", "a", "NULL"]);
        let lacking = Change {
            op,
            row: row.clone(),
            has: [true, false],
            old: None,
        };
        let e = writer.write(changes(&schema, &[lacking])).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_MALFORMED, "{op:?}: {e}");
        assert!(
            e.to_string().contains("column b") && e.to_string().contains("table t"),
            "{e}"
        );
        assert!(e.next_step().is_some(), "{e}");
        assert_eq!(db.one::<i64>("SELECT count(*) FROM t"), 0);
        // Nor one without the column itself.
        let (_db, mut writer) = direct(&schema).await;
        let mut less = schema.clone();
        less.columns.pop();
        let e = writer.write(inserts("t", &less, &[row[..2].to_vec()])).await;
        assert_eq!(e.unwrap_err().code(), code::VALUE_MALFORMED);
    }
}

#[tokio::test]
async fn a_replaced_range_is_exactly_its_rows() {
    let schema = text_schema(&["a", "b", "v"], 2);
    let (db, mut writer) = direct(&schema).await;
    let first: Vec<Row> = ["a1", "a2", "b1", "b2", "c1"]
        .iter()
        .map(|k| row(&[&k[..1], &k[1..], "old"]))
        .collect();
    writer.write(inserts("t", &schema, &first)).await.unwrap();
    let bound = |k: &str| Some(vec![k[..1].to_string(), k[1..].to_string()]);
    let now = [
        row(&["a", "2", "old"]),
        row(&["a", "3", "new"]),
        row(&["b", "1", "new"]),
    ];
    writer
        .write(Event::ReplaceRange {
            table: Arc::new(TableId::bare("t")),
            range: KeyRange {
                columns: vec!["a".into(), "b".into()],
                lower: bound("a2"),
                upper: bound("c1"),
            },
            rows: batch(&schema, &now).unwrap(),
        })
        .await
        .unwrap();
    let applied = writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    let expected = Applied {
        written: 8,
        inserted: 6,
        updated: 1,
        unchanged: 1,
        removed: 1,
        deleted: 0,
        own: 0,
    };
    assert_eq!(applied, expected);
    assert_eq!(
        db.one::<String>("SELECT group_concat(a || b || v, ' ') FROM (SELECT * FROM t ORDER BY a, b)"),
        "a1old a2old a3new b1new c1old"
    );
}

#[tokio::test]
async fn a_range_that_sqlite_sorts_otherwise_is_refused_or_spared() {
    let of = |ty| TableSchema {
        columns: vec![Column::new("k", ty).not_null()],
        key: vec!["k".into()],
    };
    let replace = |schema: &TableSchema, lower: &str, upper: &str| Event::ReplaceRange {
        table: Arc::new(TableId::bare("t")),
        range: KeyRange {
            columns: vec!["k".into()],
            lower: Some(vec![lower.into()]),
            upper: Some(vec![upper.into()]),
        },
        rows: batch(schema, &[] as &[Row]).unwrap(),
    };
    let dates = of(ColumnType::Date);
    let (db, mut writer) = direct(&dates).await;
    let days = ["1999-12-31", "2000-01-01", "2024-01-01", "2500-01-01 BC", "20240-01-01"];
    let days: Vec<Row> = days.iter().map(|d| row(&[d])).collect();
    writer.write(inserts("t", &dates, &days)).await.unwrap();
    writer.write(replace(&dates, "2000-01-01", "3000-01-01")).await.unwrap();
    writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    assert_eq!(
        db.one::<String>("SELECT group_concat(k) FROM (SELECT k FROM t ORDER BY k)"),
        "1999-12-31,20240-01-01,2500-01-01 BC"
    );
    // A collation that ignores case does not widen a range.
    let texts = of(ColumnType::Text { max: None });
    let db = Db::with("CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY); INSERT INTO t VALUES ('B'), ('c')");
    let plan = db
        .destination()
        .prepare(plan("t", &texts, Publish::Direct))
        .await
        .unwrap();
    let mut writer = sink(&db, &plan).await;
    writer.write(replace(&texts, "a", "z")).await.unwrap();
    writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    assert_eq!(db.one::<String>("SELECT group_concat(k) FROM t"), "B");
    let unsigned = of(ColumnType::UInt64);
    let (db, mut writer) = direct(&unsigned).await;
    let numbers = ["9", "10", "9223372036854775808", "18446744073709551615"];
    let numbers: Vec<Row> = numbers.iter().map(|d| row(&[d])).collect();
    writer.write(inserts("t", &unsigned, &numbers)).await.unwrap();
    writer
        .write(replace(&unsigned, "10", "18446744073709551615"))
        .await
        .unwrap();
    writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    assert_eq!(
        db.one::<String>("SELECT group_concat(k) FROM t"),
        "9,18446744073709551615"
    );
    let decimals = of(ColumnType::Decimal { precision: 5, scale: 2 });
    let (_db, mut writer) = direct(&decimals).await;
    let e = writer.write(replace(&decimals, "9.00", "10.00")).await.unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
}

#[tokio::test]
async fn net_differences_truncates_and_new_columns() {
    let (db, mut writer) = direct(&schema()).await;
    let table = Arc::new(TableId::bare("t"));
    let all = [row(&["1", "a", "1"]), row(&["2", "b", "2"]), row(&["3", "c", "3"])];
    writer.write(inserts("t", &schema(), &all)).await.unwrap();
    let some = |rows: &[Row]| batch(&schema(), rows).unwrap();
    writer
        .write(Event::Net {
            table: table.clone(),
            remove: some(&[row(&["1", "a", "1"]), row(&["9", "x", "1"])]),
            insert: some(&[row(&["1", "z", "1"]), row(&["3", "c", "3"])]),
        })
        .await
        .unwrap();
    let applied = writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    assert_eq!(
        applied,
        Applied {
            written: 7,
            inserted: 4,
            deleted: 1,
            unchanged: 2,
            ..Applied::default()
        }
    );
    let grown = |column: &str, retyped| {
        Event::Schema(SchemaChange {
            table: table.clone(),
            difference: SchemaDifference {
                missing: vec![Column::new(column, ColumnType::Date)],
                retyped,
                ..SchemaDifference::default()
            },
        })
    };
    writer.write(grown("born", Vec::new())).await.unwrap();
    // Told twice, as after a crash.
    writer.write(grown("born", Vec::new())).await.unwrap();
    let mut wider = schema();
    wider.columns.push(Column::new("born", ColumnType::Date));
    writer
        .write(inserts("t", &wider, &[row(&["2", "b", "2", "2024-02-29"])]))
        .await
        .unwrap();
    let applied = writer.commit(&[advance(Some("1"), "2", false, 0)]).await.unwrap();
    assert_eq!((applied.updated, applied.written), (1, 1));
    assert_eq!(
        db.one::<String>("SELECT group_concat(k || a || coalesce(born, ''), ' ') FROM (SELECT * FROM t ORDER BY k)"),
        "1z 2b2024-02-29 3c"
    );
    writer
        .write(Event::Truncate {
            tables: vec![table.clone()],
            cascade: false,
            restart_identity: true,
        })
        .await
        .unwrap();
    writer
        .write(inserts("t", &wider, &[row(&["5", "e", "NULL", "NULL"])]))
        .await
        .unwrap();
    writer.commit(&[advance(Some("2"), "3", false, 0)]).await.unwrap();
    assert_eq!(db.one::<i64>("SELECT sum(k) FROM t"), 5);
    let change = (
        Column::new("a", ColumnType::Int64),
        Column::new("a", ColumnType::Text { max: None }),
    );
    let e = writer.write(grown("x", vec![change])).await.unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
}

async fn one_change(writer: &mut dyn synctool_core::sink::Sink, op: Op, now: Row, before: Option<Row>) -> Result<()> {
    let mut schema = schema();
    schema.key.clear();
    let event = ChangeBatch::new(
        Arc::new(TableId::bare("t")),
        batch(&schema, &[now])?,
        Ops::All(op),
        None,
        before.map(|b| batch(&schema, &[b])).transpose()?,
        Hold::none(),
    )?;
    writer.write(Event::Rows(event)).await
}

#[tokio::test]
async fn without_a_key_only_whole_rows_are_found_again() {
    let mut keyless = schema();
    keyless.key.clear();
    let (db, mut writer) = direct(&keyless).await;
    let same = row(&["1", "NULL", "NaN"]);
    for _ in 0..3 {
        one_change(writer.as_mut(), Op::Insert, same.clone(), None)
            .await
            .unwrap();
    }
    one_change(writer.as_mut(), Op::Update, row(&["1", "x", "-0"]), Some(same.clone()))
        .await
        .unwrap();
    one_change(writer.as_mut(), Op::Delete, same.clone(), Some(same.clone()))
        .await
        .unwrap();
    one_change(
        writer.as_mut(),
        Op::Delete,
        row(&["1", "x", "0"]),
        Some(row(&["1", "x", "0"])),
    )
    .await
    .unwrap();
    let applied = writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    let expected = Applied {
        written: 6,
        inserted: 3,
        updated: 1,
        deleted: 1,
        unchanged: 1,
        removed: 0,
        own: 0,
    };
    assert_eq!(applied, expected);
    assert_eq!(
        db.one::<String>("SELECT group_concat(k || coalesce(a, '-') || b, ' ') FROM (SELECT * FROM t ORDER BY a)"),
        "1-NaN 1x-0x0"
    );
    let e = one_change(writer.as_mut(), Op::Update, same, None).await.unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
}

/// A table that somebody else made, with a column it computes, one of its own and no unique index on the key.
#[tokio::test]
async fn changes_go_into_a_table_of_others() {
    let db = Db::with(
        "CREATE TABLE t (own TEXT DEFAULT 'kept', b REAL, k INT, a TEXT AS (k || '!') STORED);
         INSERT INTO t (k, b) VALUES (1, 1.0)",
    );
    let plan = db
        .destination()
        .prepare(plan("t", &schema(), Publish::Direct))
        .await
        .unwrap();
    let mut writer = sink(&db, &plan).await;
    let rows = [row(&["1", "x", "2"]), row(&["2", "x", "3"]), row(&["2", "x", "3"])];
    writer.write(inserts("t", &schema(), &rows)).await.unwrap();
    let applied = writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
    assert_eq!((applied.inserted, applied.updated, applied.unchanged), (1, 1, 1));
    assert_eq!(
        db.one::<String>("SELECT group_concat(k || a || b || own, ' ') FROM t"),
        "11!2.0kept 22!3.0kept"
    );
    let mut unknown = schema();
    unknown.columns.push(Column::new("nobody", ColumnType::Date));
    let e = writer
        .write(inserts("t", &unknown, &[row(&["1", "x", "2", "NULL"])]))
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::COLUMN_MISSING, "{e}");
}

/// Where commits are not pressed onto the disk one by one, they are not called durable either.
#[tokio::test]
async fn a_lazy_commit_is_not_called_durable() {
    use synctool_connectors::sqlite::{Sqlite, SqliteConfig, Synchronous};
    let dir = tempfile::tempdir().unwrap();
    for (synchronous, durable) in [(Synchronous::Normal, None), (Synchronous::Full, Some("1".into()))] {
        let mut config = SqliteConfig::new(dir.path().join(format!("{synchronous:?}.db")));
        config.synchronous = synchronous;
        let d = Sqlite::open(config).unwrap().destination();
        let plan = d.prepare(plan("t", &schema(), Publish::Direct)).await.unwrap();
        let mut writer = d.open_sink(&plan).await.unwrap();
        writer.recover(&["all".into()]).await.unwrap();
        writer.commit(&[advance(None, "1", false, 0)]).await.unwrap();
        assert_eq!(
            writer.durable().await.unwrap()[&"all".into()].position,
            durable,
            "{synchronous:?}"
        );
        assert_eq!(
            d.checkpoint(&plan).await.unwrap()[&"all".into()].position,
            Some("1".into())
        );
    }
}

/// What a delta does to a table of somebody else's: upserts and deletes by key, with exact counts, and new columns where
/// that is wanted.
#[tokio::test]
async fn a_delta_goes_into_a_table_with_more_columns() {
    let db = Db::with(
        "CREATE TABLE t (k INTEGER PRIMARY KEY, a TEXT, b DOUBLE, theirs TEXT DEFAULT 'x'); INSERT INTO t VALUES (1, 'a', 1, 'y'), (2, 'b', 2, 'y')",
    );
    let d = db.destination();
    let mut schema = schema();
    let direct = |schema: &TableSchema, evolve| {
        let mut plan = plan("t", schema, Publish::Direct);
        plan.tables[0].evolve = evolve;
        plan
    };
    let first = d.prepare(direct(&schema, false)).await.unwrap();
    let mut sink = sink(&db, &first).await;
    let change = |op, cells: &[&str]| Change {
        op,
        row: row(cells),
        has: [true, true],
        old: None,
    };
    let event = changes(
        &schema,
        &[
            change(Op::Upsert, &["1", "a", "1"]),
            change(Op::Upsert, &["2", "B", "2"]),
            change(Op::Upsert, &["3", "c", "NULL"]),
            change(Op::Delete, &["9", "NULL", "NULL"]),
        ],
    );
    sink.write(event).await.unwrap();
    let applied = sink.commit(&[advance(None, "end", true, 4)]).await.unwrap();
    let counts = (
        applied.written,
        applied.inserted,
        applied.updated,
        applied.deleted,
        applied.unchanged,
    );
    assert_eq!(counts, (4, 1, 1, 0, 2));
    drop(sink);
    d.seal(&first).await.unwrap();
    d.publish(&first).await.unwrap();
    assert_eq!(
        db.one::<String>("SELECT group_concat(k || a || theirs, ' ') FROM t"),
        "1ay 2By 3cx"
    );
    schema.columns.push(Column::new("later", ColumnType::Int64).not_null());
    assert_eq!(
        d.prepare(direct(&schema, false)).await.unwrap_err().code(),
        code::SCHEMA_MISMATCH
    );
    let preview = d.preview(&direct(&schema, true)).await.unwrap();
    assert!(
        preview.iter().any(|s| s.contains("ADD COLUMN \"later\"")),
        "{preview:?}"
    );
    d.prepare(direct(&schema, true)).await.unwrap();
    assert_eq!(db.one::<i64>("SELECT count(*) FROM t WHERE later IS NULL"), 3);
    let unfinished = d.prepare(direct(&schema, true)).await.unwrap();
    d.publish(&unfinished).await.unwrap_err();
}
