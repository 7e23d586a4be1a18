//! Create, swap, merge, append: what stays, what is refused, what is counted; and who else holds the file.

use super::{Db, advance, inserts, load, load_plan, plan, read_all, row, sink};
use std::sync::Arc;
use synctool_core::engine::{Engine, Report};
use synctool_core::error::code;
use synctool_core::ledger::Applied;
use synctool_core::plan::{DeleteGuard, Publish, Verify};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;
use synctool_core::testing::rows::{Row, text_schema};

const MERGE: Publish = Publish::Merge { delete_missing: true };

fn items() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("name", ColumnType::Text { max: None }),
        ],
        key: vec!["id".into()],
    }
}

fn rows(range: std::ops::Range<i64>) -> Vec<Row> {
    range.map(|i| row(&[&i.to_string(), &format!("name {i}")])).collect()
}

#[tokio::test]
async fn names_are_exact_however_odd() {
    let db = Db::new();
    let schema = text_schema(
        &[
            "select",
            "a \"b\"",
            "rowid",
            "ünïcode 😀",
            "semi;colon--",
            "'q'",
            "[b]",
            "%s ?1 :x",
        ],
        2,
    );
    let one = [row(&["1", "2", "3", "4", "5", "6", "7", "8"])];
    for name in [
        "order",
        "we\"ird 'name'",
        "dots.and spaces",
        "😀",
        "x; DROP TABLE y; --",
    ] {
        load(&db, name, &schema, Publish::Create, &one).await.unwrap();
        assert_eq!(read_all(&db, name).await.unwrap(), one, "{name}");
        for publish in [Publish::Swap, MERGE] {
            load(&db, name, &schema, publish, &one).await.unwrap();
            assert_eq!(read_all(&db, name).await.unwrap(), one, "{name}");
        }
        let described = db.destination().describe(&TableId::bare(name)).await.unwrap().unwrap();
        let names: Vec<&str> = described.columns.iter().map(|c| c.name.as_str()).collect();
        assert_eq!(
            names,
            schema.columns.iter().map(|c| c.name.as_str()).collect::<Vec<_>>()
        );
    }
    for (name, columns) in [
        ("t", vec!["id", "ID"]),
        ("t", vec!["a\0b"]),
        ("a\0b", vec!["id"]),
        ("sqlite_x", vec!["id"]),
        ("_synctool_plan", vec!["id"]),
    ] {
        let e = load(&db, name, &text_schema(&columns, 0), Publish::Create, &[])
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::IDENTIFIER, "{name:?} {columns:?}: {e}");
    }
}

#[tokio::test]
async fn a_thousand_columns_are_created_merged_and_changed() {
    let db = Db::new();
    let names: Vec<String> = (0..1200).map(|i| format!("column {i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let schema = text_schema(&names, 1);
    let wide = |id: usize, last: &str| -> Row {
        let mut r: Row = (0..1200).map(|c| Some(format!("{id}.{c}"))).collect();
        r[1199] = Some(last.into());
        r
    };
    let first: Vec<Row> = (0..5).map(|i| wide(i, "old")).collect();
    load(&db, "wide", &schema, Publish::Create, &first).await.unwrap();
    let second: Vec<Row> = (0..5).map(|i| wide(i, if i == 3 { "new" } else { "old" })).collect();
    let applied = load(&db, "wide", &schema, MERGE, &second).await.unwrap();
    assert_eq!((applied.updated, applied.unchanged), (1, 4));
    assert_eq!(read_all(&db, "wide").await.unwrap(), second);
    let e = load(
        &db,
        "wider",
        &text_schema(&(0..2001).map(|_| "c").collect::<Vec<_>>(), 0),
        Publish::Create,
        &[],
    )
    .await
    .unwrap_err();
    assert_eq!(e.code(), code::SCHEMA_MISMATCH, "{e}");
}

#[tokio::test]
async fn a_swap_keeps_everything_that_hangs_on_the_table() {
    let db = Db::with(
        "CREATE TABLE [old items](id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT DEFAULT 'none' CHECK (length(name) < 20) UNIQUE);
         CREATE INDEX by_name ON [old items](name DESC) WHERE id > 0;
         CREATE VIEW shown AS SELECT id, name FROM \"old items\" WHERE id > 1;
         CREATE TRIGGER on_view INSTEAD OF INSERT ON shown BEGIN INSERT INTO \"old items\" VALUES (new.id, new.name); END;
         INSERT INTO [old items] VALUES (1, 'a'), (500, 'b');",
    );
    let before = db.one::<String>("SELECT group_concat(replace(sql, '[old items]', '\"old items\"'), ';') FROM (SELECT sql FROM sqlite_master WHERE sql LIKE '%items%' ORDER BY name)");
    let applied = load(&db, "old items", &items(), Publish::Swap, &rows(1..4))
        .await
        .unwrap();
    assert_eq!(
        applied,
        Applied {
            written: 3,
            inserted: 2,
            updated: 1,
            deleted: 1,
            ..Applied::default()
        }
    );
    assert_eq!(read_all(&db, "old items").await.unwrap(), rows(1..4));
    let after = db.one::<String>("SELECT group_concat(replace(sql, '[old items]', '\"old items\"'), ';') FROM (SELECT sql FROM sqlite_master WHERE sql LIKE '%items%' ORDER BY name)");
    assert_eq!(before, after, "the definitions are the same");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM shown"), 2);
    db.run("INSERT INTO shown VALUES (77, 'through the view')");
    db.run("INSERT INTO [old items](name) VALUES ('next')");
    assert_eq!(
        db.one::<i64>("SELECT max(id) FROM [old items]"),
        501,
        "numbers are not given twice"
    );
    assert_eq!(
        db.one::<i64>("SELECT count(*) FROM sqlite_master WHERE name LIKE '_synctool_load%'"),
        0
    );
    assert_eq!(db.one::<String>("PRAGMA integrity_check"), "ok");
    let made = db.destination().made_here(&TableId::bare("old items")).await.unwrap();
    assert!(made, "what was swapped in is ours");
}

#[tokio::test]
async fn what_a_swap_would_lose_is_named() {
    let db = Db::with(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, more TEXT);
         CREATE TABLE child(t_id INT REFERENCES t(id));
         CREATE TRIGGER watch AFTER INSERT ON t BEGIN SELECT 1; END;
         CREATE TABLE plain(id INTEGER PRIMARY KEY, name TEXT);",
    );
    let d = db.destination();
    let obstacles = d
        .swap_obstacles(&TableId::bare("t"), &items())
        .await
        .unwrap()
        .join("; ");
    for part in ["trigger watch", "child", "more"] {
        assert!(obstacles.contains(part), "{part} is not in: {obstacles}");
    }
    assert!(
        d.swap_obstacles(&TableId::bare("plain"), &items())
            .await
            .unwrap()
            .is_empty()
    );
    assert!(!d.made_here(&TableId::bare("plain")).await.unwrap());
    let findings = d.examine(&[TableId::bare("t")]).await;
    let said: String = findings.iter().map(|f| format!("{}: {}\n", f.what, f.found)).collect();
    assert!(
        said.contains("watch") && said.contains("foreign keys of t") && said.contains("journal mode"),
        "{said}"
    );
}

#[tokio::test]
async fn a_merge_writes_only_what_differs_in_value_or_kind() {
    let db = Db::with(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, name COLLATE NOCASE, mine TEXT DEFAULT 'kept', twice AS (id * 2));
         CREATE TABLE log(id INT);
         CREATE TRIGGER noted AFTER UPDATE ON t BEGIN INSERT INTO log VALUES (new.id); END;
         INSERT INTO t(id, name) VALUES (1, 'same'), (2, 'Case'), (3, 3), (4, NULL), (5, 'gone'), (6, 'x'), (7, x'78');",
    );
    let wanted: Vec<Row> = [
        ("1", "same"),
        ("2", "case"),
        ("3", "3"),
        ("4", "NULL"),
        ("6", "NULL"),
        ("7", "x"),
        ("8", "new"),
    ]
    .iter()
    .map(|(id, name)| row(&[id, name]))
    .collect();
    let applied = load(&db, "t", &items(), MERGE, &wanted).await.unwrap();
    assert_eq!(
        applied,
        Applied {
            written: 7,
            inserted: 1,
            updated: 4,
            deleted: 1,
            unchanged: 2,
            removed: 0,
            own: 0,
        }
    );
    assert_eq!(
        db.dump("SELECT id, name, typeof(name), mine, twice FROM t ORDER BY id")
            .lines()
            .count(),
        7
    );
    assert_eq!(
        db.one::<String>("SELECT group_concat(id || quote(name) || mine, ' ') FROM (SELECT * FROM t ORDER BY id)"),
        "1'same'kept 2'case'kept 3'3'kept 4NULLkept 6NULLkept 7'x'kept 8'new'kept"
    );
    assert_eq!(db.one::<i64>("SELECT count(*) FROM log"), 0, "triggers do not fire");
    let again = load(
        &db,
        "t",
        &items(),
        Publish::Merge { delete_missing: false },
        &wanted[..2],
    )
    .await
    .unwrap();
    assert_eq!(
        again,
        Applied {
            written: 2,
            unchanged: 2,
            ..Applied::default()
        }
    );
}

#[tokio::test]
async fn a_table_without_an_index_on_the_key_is_merged_too() {
    let db = Db::with("CREATE TABLE t(name TEXT, id INT) STRICT; INSERT INTO t VALUES ('old', 1), ('gone', 2)");
    let applied = load(&db, "t", &items(), MERGE, &rows(0..2)).await.unwrap();
    assert_eq!((applied.inserted, applied.updated, applied.deleted), (1, 1, 1));
    assert_eq!(
        db.one::<String>("SELECT group_concat(id || name) FROM (SELECT * FROM t ORDER BY id)"),
        "0name 0,1name 1"
    );
}

#[tokio::test]
async fn unique_values_may_change_places() {
    let db = Db::with(
        "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT UNIQUE);
         INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
    );
    let wanted = [row(&["1", "b"]), row(&["2", "a"]), row(&["3", "c"]), row(&["5", "d"])];
    let applied = load(&db, "t", &items(), MERGE, &wanted).await.unwrap();
    assert_eq!(
        (applied.inserted, applied.updated, applied.deleted, applied.unchanged),
        (1, 2, 1, 1)
    );
    assert_eq!(read_all(&db, "t").await.unwrap(), wanted);
}

#[tokio::test]
async fn orphans_stop_the_publication() {
    let db = Db::with(
        "PRAGMA foreign_keys = OFF;
         CREATE TABLE child(id INTEGER PRIMARY KEY, name TEXT REFERENCES parent(name));
         CREATE TABLE parent(name TEXT PRIMARY KEY);
         INSERT INTO parent VALUES ('name 1'); INSERT INTO child VALUES (9, 'already lost');",
    );
    load(
        &db,
        "child",
        &items(),
        Publish::Merge { delete_missing: false },
        &rows(1..2),
    )
    .await
    .unwrap();
    let e = load(
        &db,
        "child",
        &items(),
        Publish::Merge { delete_missing: false },
        &rows(2..4),
    )
    .await
    .unwrap_err();
    assert_eq!(e.code(), code::CONSTRAINT, "{e}");
    assert!(e.to_string().contains("2 more rows"), "{e}");
    assert_eq!(db.one::<i64>("SELECT count(*) FROM child"), 2, "nothing was published");
}

#[tokio::test]
async fn the_guard_and_broken_rules_leave_everything_as_it_was() {
    let db = Db::with("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT NOT NULL CHECK (name <> 'bad'))");
    load(&db, "t", &items(), MERGE, &rows(0..3000)).await.unwrap();
    for publish in [MERGE, Publish::Swap] {
        for left in [0..0, 0..1500] {
            let e = load(&db, "t", &items(), publish.clone(), &rows(left))
                .await
                .unwrap_err();
            assert_eq!(e.code(), code::MASS_DELETE, "{e}");
            assert_eq!(db.one::<i64>("SELECT count(*) FROM t"), 3000);
        }
    }
    let mut meant = plan("t", &items(), MERGE);
    meant.guard = DeleteGuard {
        allow: true,
        ..DeleteGuard::default()
    };
    assert_eq!(load_plan(&db, meant, &rows(0..1)).await.unwrap().deleted, 2999);
    let e = load(&db, "t", &items(), MERGE, &[row(&["0", "bad"])])
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONSTRAINT, "{e}");
    let e = load(&db, "t", &items(), Publish::Create, &[]).await.unwrap_err();
    assert_eq!(e.code(), code::SCHEMA_MISMATCH, "{e}");
    let twice = [row(&["1", "a"]), row(&["1", "secret"])];
    let e = load(&db, "t", &items(), Publish::Swap, &twice).await.unwrap_err();
    assert_eq!(e.code(), code::DUPLICATE_KEY, "{e}");
    assert!(!e.to_string().contains("secret"));
    assert_eq!(read_all(&db, "t").await.unwrap(), rows(0..1));
}

#[tokio::test]
async fn the_journal_mode_is_ours_only_in_a_database_of_ours() {
    let ours = Db::new();
    load(&ours, "t", &items(), Publish::Create, &rows(0..2)).await.unwrap();
    assert_eq!(ours.one::<String>("PRAGMA journal_mode"), "wal");
    let theirs = Db::with("CREATE TABLE x(a)");
    load(&theirs, "t", &items(), Publish::Create, &rows(0..2))
        .await
        .unwrap();
    assert_eq!(theirs.one::<String>("PRAGMA journal_mode"), "delete");
}

#[tokio::test]
async fn another_process_with_the_lock_is_waited_for_and_then_named() {
    let db = Db::new();
    let d = db.destination();
    let plan = d.prepare(plan("t", &items(), Publish::Create)).await.unwrap();
    let mut writer = sink(&db, &plan).await;
    let mut config = synctool_connectors::sqlite::SqliteConfig::new(db.dir.path().join("a.db"));
    config.busy_timeout = std::time::Duration::from_millis(20);
    let hurried = synctool_connectors::sqlite::Sqlite::open(config).unwrap().destination();
    let other = db.conn();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let mut second = hurried.open_sink(&plan).await.unwrap();
    let e = second.recover(&["all".into()]).await.unwrap_err();
    assert_eq!(e.code(), code::SERVER_BUSY, "{e}");
    let text = e.to_string();
    assert!(e.kind().is_transient() && text.contains("lsof"), "{text}");
    assert!(
        text.contains(&format!("last writer process {}", std::process::id())),
        "{text}"
    );
    let busy = hurried.examine(&[]).await;
    assert!(busy.iter().any(|f| f.what == "write lock" && !f.ok), "{busy:?}");
    other.execute_batch("COMMIT").unwrap();
    drop(second);
    // The first was ended by the attempt to take over; the next one goes on.
    let e = writer.write(inserts("t", &items(), &rows(0..1))).await.unwrap_err();
    assert_eq!(e.code(), code::FENCED, "{e}");
    let mut third = sink(&db, &plan).await;
    third.write(inserts("t", &items(), &rows(0..1))).await.unwrap();
    third.commit(&[advance(None, "end", true, 1)]).await.unwrap();
}

/// A writer that dies in the middle of a transaction leaves nothing, and its successor is told where it stood.
#[tokio::test]
async fn a_writer_that_dies_leaves_its_last_commit() {
    let db = Db::new();
    let d = db.destination();
    let plan = d.prepare(plan("t", &items(), Publish::Create)).await.unwrap();
    let mut first = sink(&db, &plan).await;
    first.write(inserts("t", &items(), &rows(0..10))).await.unwrap();
    first.commit(&[advance(None, "ten", false, 10)]).await.unwrap();
    first.write(inserts("t", &items(), &rows(10..20))).await.unwrap();
    drop(first);
    let mut second = d.open_sink(&plan).await.unwrap();
    let state = second
        .recover(&["all".into()])
        .await
        .unwrap()
        .remove(&"all".into())
        .unwrap();
    assert_eq!((state.position, state.applied.inserted), (Some("ten".into()), 10));
    second.write(inserts("t", &items(), &rows(10..15))).await.unwrap();
    let applied = second.commit(&[advance(Some("ten"), "end", true, 15)]).await.unwrap();
    assert_eq!(applied, Applied::inserts(5));
    drop(second);
    assert_eq!(d.publish(&plan).await.unwrap().applied, Applied::inserts(15));
    assert_eq!(read_all(&db, "t").await.unwrap(), rows(0..15));
}

#[tokio::test]
async fn a_preview_shows_the_statements_and_changes_nothing() {
    let db = Db::new();
    let d = db.destination();
    let shown = d
        .preview(&plan("t", &items(), Publish::Create))
        .await
        .unwrap()
        .join("\n");
    assert!(
        shown.contains("_synctool_generation") && shown.contains("\"id\" INTEGER NOT NULL"),
        "{shown}"
    );
    assert!(!db.dir.path().join("a.db").exists(), "the preview made a file");
    load(&db, "t", &items(), Publish::Create, &rows(0..1)).await.unwrap();
    let shown = d.preview(&plan("t", &items(), MERGE)).await.unwrap().join("\n");
    assert!(shown.contains("are there") && shown.contains("UPDATE \"t\""), "{shown}");
    assert!(d.describe(&TableId::bare("nothing")).await.unwrap().is_none());
}

#[tokio::test]
async fn a_file_that_may_not_be_written_says_so() {
    let db = Db::with("CREATE TABLE x(a)");
    let file = db.dir.path().join("a.db");
    let mut rights = std::fs::metadata(&file).unwrap().permissions();
    rights.set_readonly(true);
    std::fs::set_permissions(&file, rights).unwrap();
    let findings = db.destination().examine(&[]).await;
    let bad = findings.iter().find(|f| !f.ok).expect("a finding");
    assert!(bad.found.contains("read-only") && bad.fix.contains("chmod"), "{bad:?}");
}

async fn copy(from: &Db, to: &Db, table: &str, mode: FullMode) -> Report {
    let engine = Arc::new(Engine::new(from.source(), to.destination()));
    let request = FullRequest {
        table: TableRequest {
            run_id: "20260101_000000_abcdef".into(),
            partition_bytes: 64 << 20,
            semantics: serde_json::Value::Null,
            now: "2026-01-01T00:00:00Z".into(),
            ..TableRequest::new(format!("copy {table}"), TableId::bare(table), TableId::bare(table))
        },
        mode,
        deletes: true,
        verify: Some(Verify::Hash),
        remember: Default::default(),
    };
    let pipeline = request.table.pipeline.clone();
    let draft = full::plan(
        engine.source.as_ref(),
        engine.destination.as_ref(),
        engine.stages.as_ref(),
        request,
    );
    let (plan, resumed) = engine.plan(&pipeline, &serde_json::Value::Null, draft).await.unwrap();
    engine
        .run(plan, resumed)
        .await
        .unwrap_or_else(|e| panic!("{table}: {e}"))
}

/// From somebody's database into ours, into somebody else's, and on: verified by hash, in many partitions.
#[tokio::test(flavor = "multi_thread")]
async fn whole_runs_from_file_to_file() {
    let from = Db::with(
        "CREATE TABLE sales (shop VARCHAR(10), no INT, price NUMERIC(10,2), at DATETIME, paid BOOLEAN, note, raw BLOB, f REAL,
           PRIMARY KEY (shop, no));
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
           INSERT INTO sales SELECT 'shop ' || (i % 7), i, i / 100.0, datetime(i * 86400, 'unixepoch'), i % 2, i, x'00', i / 3.0 FROM n;
         CREATE TABLE events (v TEXT); INSERT INTO events SELECT shop FROM sales LIMIT 100;",
    );
    let ours = Db::new();
    let report = copy(&from, &ours, "sales", FullMode::Auto).await;
    assert!(report.partitions >= 20, "{} partitions", report.partitions);
    assert_eq!(report.ledger.outcome(), Applied::inserts(30_000));
    assert_eq!(copy(&from, &ours, "events", FullMode::Auto).await.partitions, 1);
    let same = |a: Vec<Row>, b: Vec<Row>| {
        let sorted = |mut rows: Vec<Row>| {
            rows.sort();
            rows
        };
        assert!(sorted(a) == sorted(b), "the tables differ");
    };
    same(
        read_all(&from, "sales").await.unwrap(),
        read_all(&ours, "sales").await.unwrap(),
    );
    from.run("UPDATE sales SET note = 'changed' WHERE no % 1000 = 0; DELETE FROM sales WHERE no = 5");
    // Ours is swapped; theirs gets the difference.
    let theirs = Db::with(&from.one::<String>("SELECT sql FROM sqlite_master WHERE name = 'sales'"));
    assert_eq!(
        copy(&from, &ours, "sales", FullMode::Auto).await.plan.tables[0].publish,
        Publish::Swap
    );
    copy(&ours, &theirs, "sales", FullMode::Auto).await;
    from.run("UPDATE sales SET price = price + 1 WHERE no = 7; DELETE FROM sales WHERE no = 6");
    let report = copy(&from, &theirs, "sales", FullMode::Auto).await;
    let done = report.ledger.outcome();
    assert_eq!(
        (done.inserted, done.updated, done.deleted, done.unchanged),
        (0, 1, 1, 29_997)
    );
    same(
        read_all(&from, "sales").await.unwrap(),
        read_all(&theirs, "sales").await.unwrap(),
    );
}

/// A killed writer of a database with a rollback journal leaves it behind: a destination rolls it back, a source, which
/// never writes, says what to do.
#[tokio::test]
async fn a_journal_left_behind_is_rolled_back() {
    let db = Db::with("CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT); INSERT INTO t VALUES (1, 'before')");
    let killed = Db::new();
    let writer = db.conn();
    writer
        .execute_batch(
            "PRAGMA cache_size = 1; BEGIN; UPDATE t SET name = 'never committed';
             WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
               INSERT INTO t SELECT i, hex(zeroblob(1000)) FROM n;",
        )
        .unwrap();
    for file in ["a.db", "a.db-journal"] {
        std::fs::copy(db.dir.path().join(file), killed.dir.path().join(file)).unwrap();
    }
    let e = read_all(&killed, "t").await.unwrap_err();
    assert_eq!(e.code(), code::FILE, "{e}");
    assert!(e.to_string().contains("a writer died"), "{e}");
    assert_eq!(killed.destination().stored_plan("p").await.unwrap(), None);
    assert_eq!(read_all(&killed, "t").await.unwrap(), [row(&["1", "before"])]);
}
