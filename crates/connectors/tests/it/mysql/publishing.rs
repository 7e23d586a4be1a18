//! What publishing keeps, refuses and repeats.

use super::*;
use synctool_core::error::code;
use synctool_core::schema::{Column, ColumnType};

fn schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("name", ColumnType::Text { max: Some(40) }),
        ],
        key: vec!["id".into()],
    }
}

fn rows(n: usize) -> Vec<Row> {
    (1..=n).map(|i| row(&[&i.to_string(), &format!("name {i}")])).collect()
}

fn leftovers(db: &Db) -> String {
    db.sql("SELECT table_name FROM information_schema.tables WHERE table_schema = database() AND (table_name LIKE '\\_synctool\\_load%' OR table_name LIKE '\\_synctool\\_old%')")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_keeps_indexes_and_the_counter() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint AUTO_INCREMENT PRIMARY KEY, name varchar(40) COLLATE utf8mb4_general_ci DEFAULT 'x' COMMENT 'hello', KEY by_name (name)) COMMENT = 'kept'");
    db.sql("INSERT INTO t VALUES (1, 'old')");
    load(&db, "t", &schema(), Publish::Swap, &rows(3)).await.unwrap();
    let created = db.sql("SHOW CREATE TABLE t");
    for part in [
        "by_name",
        "general_ci",
        "COMMENT \\'hello\\'",
        "COMMENT=\\'kept\\'",
        "AUTO_INCREMENT",
    ] {
        assert!(created.contains(&part.replace("\\'", "'")), "{part}: {created}");
    }
    db.sql("INSERT INTO t (name) VALUES ('next')");
    assert_eq!(db.sql("SELECT id, name FROM t WHERE name = 'next'"), "4\tnext");
    assert_eq!(leftovers(&db), "");
    assert!(db.destination.made_here(&TableId::bare("t")).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swap_is_refused_where_it_would_lose_something() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40), extra int)");
    db.sql("CREATE TABLE child (id int PRIMARY KEY, t bigint, CONSTRAINT to_t FOREIGN KEY (t) REFERENCES t (id))");
    db.sql("CREATE TRIGGER tr BEFORE INSERT ON t FOR EACH ROW SET NEW.extra = 1");
    let found = db
        .destination
        .swap_obstacles(&TableId::bare("t"), &schema())
        .await
        .unwrap()
        .join("; ");
    for part in ["trigger tr", "to_t", "extra"] {
        assert!(found.contains(part), "{part}: {found}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_merge_changes_only_what_differs_and_exchanges_unique_values() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40) UNIQUE)");
    db.sql("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c'), (9, 'z')");
    let wanted = [row(&["1", "b"]), row(&["2", "a"]), row(&["3", "c"]), row(&["4", "d"])];
    let merge = Publish::Merge { delete_missing: true };
    let a = load(&db, "t", &schema(), merge, &wanted).await.unwrap();
    assert_eq!((a.inserted, a.updated, a.deleted, a.unchanged), (1, 2, 1, 1));
    assert_eq!(read_all(&db, "t").await.unwrap(), wanted);
    assert_eq!(leftovers(&db), "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_table_does_not_take_leaves_it_as_it_was() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40) NOT NULL, CHECK (name <> 'bad'))");
    db.sql("INSERT INTO t VALUES (1, 'a')");
    let merge = Publish::Merge { delete_missing: false };
    let bad = [row(&["1", "b"]), row(&["2", "bad"])];
    let e = load(&db, "t", &schema(), merge.clone(), &bad).await.unwrap_err();
    assert_eq!(e.code(), code::CONSTRAINT, "{e}");
    let null = [row(&["1", "b"]), row(&["2", "NULL"])];
    let e = load(&db, "t", &schema(), merge, &null).await.unwrap_err();
    assert_eq!(e.code(), code::CONSTRAINT, "{e}");
    assert_eq!(db.sql("SELECT * FROM t"), "1\ta");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_load_paths_refuse_what_the_server_would_alter() {
    for path in [LoadPath::Infile, LoadPath::Insert] {
        let db = Db::with(|c| c.load = path).await;
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(3))");
        let too_long = [row(&["1", "abcd"])];
        let e = load(&db, "t", &schema(), Publish::Append, &too_long).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{path:?}: {e}");
        assert!(!e.to_string().contains("abcd"), "{e}");
        let twice = [row(&["1", "a"]), row(&["1", "b"])];
        let e = load(&db, "t", &schema(), Publish::Append, &twice).await.unwrap_err();
        assert_eq!(e.code(), code::DUPLICATE_KEY, "{path:?}: {e}");
        assert_eq!(db.sql("SELECT count(*) FROM t"), "0");
    }
}

/// Every place where publishing can be killed: whatever was done is found done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishing_goes_on_where_it_was_killed() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, name varchar(40)); INSERT INTO t VALUES (7, 'old'), (8, 'older')");
    let plan = loaded(&db, plan("t", &schema(), Publish::Swap), &rows(3))
        .await
        .unwrap();
    // As if the process had died after it noted what to do and renamed: the journal is there, the load table is gone.
    let load = plan.load_name(0);
    let old = load.replace("_load_", "_old_");
    let journal = serde_json::json!([{"index": 0, "table": {"schema": db.database.name(), "name": "t"}, "publish": "swap",
        "applied": {"written": 3, "inserted": 3, "deleted": 2}}]);
    db.sql(&format!("UPDATE _synctool_plan SET journal = '{journal}'"));
    db.sql(&format!("RENAME TABLE t TO `{old}`, `{load}` TO t"));
    db.destination.seal(&plan).await.unwrap();
    let applied = db.destination.publish(&plan).await.unwrap().applied;
    assert_eq!((applied.inserted, applied.deleted), (3, 2));
    assert_eq!(read_all(&db, "t").await.unwrap(), rows(3));
    assert_eq!(leftovers(&db), "");
    assert_eq!(db.destination.publish(&plan).await.unwrap().applied, applied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn facts_are_remembered_with_the_plan_and_forgotten_with_the_pipeline() {
    let db = Db::new().await;
    let mut p = plan("t", &schema(), Publish::Create);
    p.remember.insert("watermark".into(), "2026-01-01".into());
    let pipeline = p.pipeline.clone();
    assert!(db.destination.remembered(&pipeline).await.unwrap().is_empty());
    let p = loaded(&db, p, &rows(1)).await.unwrap();
    assert!(
        db.destination.remembered(&pipeline).await.unwrap().is_empty(),
        "not before it is published"
    );
    db.destination.publish(&p).await.unwrap();
    let more = [("verified_through".to_string(), "5".to_string())].into();
    db.destination.remember(&pipeline, &more).await.unwrap();
    let facts = db.destination.remembered(&pipeline).await.unwrap();
    assert_eq!(
        (
            facts["watermark"].as_str(),
            facts["verified_through"].as_str(),
            facts.len()
        ),
        ("2026-01-01", "5", 2)
    );
    db.destination.forget(&pipeline).await.unwrap();
    assert!(db.destination.remembered(&pipeline).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_writer_is_ended_and_its_locks_with_it() {
    let db = Db::new().await;
    let p = db
        .destination
        .prepare(plan("t", &schema(), Publish::Create))
        .await
        .unwrap();
    let mut zombie = sink(&db, &p).await;
    // More than is gathered, so that its rows are in the server and locked there.
    let large = "x".repeat(40);
    let many: Vec<Row> = (0..120_000).map(|i| row(&[&i.to_string(), &large])).collect();
    zombie.write(inserts("t", &schema(), &many)).await.unwrap();
    let mut heir = sink(&db, &p).await;
    heir.write(inserts("t", &schema(), &rows(2))).await.unwrap();
    heir.commit(&[advance(None, "end", true, 2)]).await.unwrap();
    let e = zombie.commit(&[advance(None, "end", true, 120_000)]).await.unwrap_err();
    assert!(e.kind().is_transient() || e.code() == code::FENCED, "{e}");
}
