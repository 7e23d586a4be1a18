//! Up to where a stamped column has settled.

use super::Db;
use std::collections::BTreeSet;
use std::time::Duration;
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::error::code;
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::query::{Condition, Cut, Term, Test};
use synctool_core::schema::TableId;
use synctool_core::source::{ReadContext, Settled};

async fn settled(db: &Db, column: &str, margin: Duration) -> synctool_core::error::Result<Settled> {
    let source = db.source();
    let table = TableId::bare("t");
    let schema = source.describe(&table).await?;
    let column = schema.column(column).unwrap();
    source.settled(&table, column, None, margin).await
}

const STAMPED: &str = "PRAGMA journal_mode = WAL;
    CREATE TABLE t (id INTEGER PRIMARY KEY, at DATETIME DEFAULT (datetime('now')), iso TEXT DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
        blank TEXT DEFAULT CURRENT_TIMESTAMP, seconds INTEGER DEFAULT (unixepoch()), day DATE DEFAULT (date('now')), other REAL);
    INSERT INTO t (id) VALUES (1);";

#[tokio::test]
async fn without_a_writer_the_clock_is_the_bound_in_the_columns_form() {
    let db = Db::with(STAMPED);
    for (column, is) in [
        ("at", "____-__-__ __:__:__"),
        ("iso", "____-__-__T__:__:__"),
        ("blank", "____-__-__ __:__:__"),
        ("seconds", "__________"),
        ("day", "____-__-__"),
    ] {
        let before: String = db.one(&format!("SELECT substr({column}, 1, 19) FROM t"));
        let s = settled(&db, column, Duration::ZERO).await.unwrap();
        let shape: String = s
            .bound
            .chars()
            .map(|c| if c.is_ascii_digit() { '_' } else { c })
            .collect();
        assert_eq!((shape.as_str(), &s.held_by), (is, &None), "{column}");
        assert!(s.bound >= before, "{column}: {} is before {before}", s.bound);
        db.run("INSERT INTO t (id) SELECT max(id) + 1 FROM t");
        let later: String = db.one(&format!(
            "SELECT CAST({column} AS TEXT) FROM t ORDER BY id DESC LIMIT 1"
        ));
        assert!(
            later >= s.bound,
            "{column}: {later} was stamped before the bound {}",
            s.bound
        );
        let early = settled(&db, column, Duration::from_secs(100_000)).await.unwrap();
        assert!(early.bound < s.bound, "{column}: the margin counts");
    }
    let e = settled(&db, "other", Duration::ZERO).await.unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
    db.run("INSERT INTO t (id, blank) VALUES (1000, 'yesterday')");
    assert_eq!(
        settled(&db, "blank", Duration::ZERO).await.unwrap_err().code(),
        code::UNSUPPORTED
    );
}

#[tokio::test]
async fn an_open_writer_holds_the_bound_back() {
    for mode in ["WAL", "DELETE"] {
        let db = Db::with(&STAMPED.replace("WAL", mode));
        db.run(
            "UPDATE t SET at = '2020-01-01 00:00:00', iso = '2020-01-01T00:00:00.000Z', blank = '2020-01-01 00:00:00', \
                seconds = 1577836800, day = '2020-01-01'",
        );
        let writer = db.conn();
        writer
            .execute_batch("BEGIN IMMEDIATE; INSERT INTO t (id) VALUES (2)")
            .unwrap();
        for column in ["at", "iso", "blank", "seconds", "day"] {
            let stamp: String = writer
                .query_row(&format!("SELECT CAST({column} AS TEXT) FROM t WHERE id = 2"), [], |r| {
                    r.get(0)
                })
                .unwrap();
            let s = settled(&db, column, Duration::ZERO).await.unwrap();
            assert!(
                s.bound <= stamp,
                "{mode} {column}: {} is behind the open {stamp}",
                s.bound
            );
            let committed: String = db.one(&format!("SELECT CAST({column} AS TEXT) FROM t WHERE id = 1"));
            assert!(
                committed.starts_with(&s.bound),
                "{mode} {column}: {} is not the newest, {committed}",
                s.bound
            );
            assert!(
                s.held_by.is_some_and(|h| h.contains("write transaction")),
                "{mode} {column}"
            );
        }
        writer.execute_batch("COMMIT").unwrap();
        let s = settled(&db, "at", Duration::ZERO).await.unwrap();
        assert_eq!(s.held_by, None);
        assert!(s.bound.as_str() > "2020-01-02");
    }
}

#[tokio::test]
async fn a_file_that_may_not_be_written_settles_up_to_its_newest_row() {
    let db = Db::with(&STAMPED.replace("WAL", "DELETE"));
    let path = db.dir.path().join("a.db");
    let mut rights = std::fs::metadata(&path).unwrap().permissions();
    rights.set_readonly(true);
    std::fs::set_permissions(&path, rights).unwrap();
    let newest: String = db.one("SELECT at FROM t");
    let source = Sqlite::open(SqliteConfig::new(&path)).unwrap().source();
    let column = source
        .describe(&TableId::bare("t"))
        .await
        .unwrap()
        .column("at")
        .unwrap()
        .clone();
    let s = source
        .settled(&TableId::bare("t"), &column, None, Duration::ZERO)
        .await
        .unwrap();
    // The superuser may write any file.
    match &s.held_by {
        Some(why) => assert!(s.bound == newest && why.contains("written"), "{s:?}"),
        None => assert!(s.bound >= newest, "{s:?}"),
    }
}

/// Writers that commit late, and windows read up to what had settled: nothing is lost and nothing comes twice.
#[tokio::test(flavor = "multi_thread")]
async fn windows_lose_nothing() {
    let db = Db::with(
        "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY, at TEXT DEFAULT (datetime('now')));
         CREATE INDEX t_at ON t (at);",
    );
    let path = db.dir.path().join("a.db");
    let writing = std::thread::spawn(move || {
        let conn = rusqlite::Connection::open(path).unwrap();
        conn.busy_timeout(Duration::from_secs(10)).unwrap();
        for n in 0..60 {
            conn.execute_batch("BEGIN IMMEDIATE; INSERT INTO t DEFAULT VALUES")
                .unwrap();
            // Stays open for a while, like somebody who computes before he commits.
            let until = std::time::Instant::now() + Duration::from_millis(if n % 10 == 0 { 400 } else { 15 });
            while std::time::Instant::now() < until {
                conn.query_row("SELECT count(*) FROM t", [], |r| r.get::<_, i64>(0))
                    .unwrap();
            }
            conn.execute_batch("INSERT INTO t DEFAULT VALUES; COMMIT").unwrap();
        }
    });
    let source = db.source();
    let table = TableId::bare("t");
    let schema = source.describe(&table).await.unwrap();
    let spec = ReadSpec::all(table.clone(), &schema.columns);
    let (mut low, mut seen) = (String::new(), BTreeSet::new());
    let mut last = false;
    while !last {
        // The last window is read when all is written, up to a bound far ahead.
        last = writing.is_finished();
        let bound = match last {
            true => "9999".to_string(),
            false => {
                source
                    .settled(&table, &schema.columns[1], None, Duration::ZERO)
                    .await
                    .unwrap()
                    .bound
            }
        };
        let slice = Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("at"),
                test: Test::Range {
                    lower: Some(low.clone()),
                    upper: Some(bound.clone()),
                },
            }],
            key: None,
        });
        let (rows, _) = super::read(source.as_ref(), &spec, slice, None, &ReadContext::default())
            .await
            .unwrap();
        for row in rows {
            assert!(seen.insert(row[0].clone()), "a row came twice");
        }
        low = bound;
    }
    writing.join().unwrap();
    assert_eq!(seen.len(), 120);
}
