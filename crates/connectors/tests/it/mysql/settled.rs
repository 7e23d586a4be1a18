//! Up to where a column has settled, with transactions open in every way.

use super::*;
use mysql_async::prelude::Queryable;
use std::time::Duration;
use synctool_core::error::code;
use synctool_core::schema::{Column, ColumnType};

/// A session of somebody else's.
async fn session(db: &Db) -> mysql_async::Conn {
    mysql_async::Conn::new(mysql_async::Opts::from_url(&db.database.url()).unwrap())
        .await
        .unwrap()
}

async fn settled(db: &Db, margin: u64) -> synctool_core::error::Result<synctool_core::source::Settled> {
    let column = Column::new("at", ColumnType::TimestampTz);
    db.source()
        .settled(&TableId::bare("t"), &column, None, Duration::from_secs(margin))
        .await
}

/// Waits until a statement waits and the bound says so.
async fn a_statement_waits(db: &Db) {
    synctool_testkit::eventually("the statement waits", Duration::from_secs(10), async || {
        settled(db, 0)
            .await
            .unwrap()
            .held_by
            .is_some_and(|h| h.contains("waiting"))
    })
    .await;
}

async fn on(server: &MariaDb, name: &str) -> Db {
    let database = server.database(name);
    let mysql = Mysql::open(MysqlConfig::new("127.0.0.1", server.port(), "root", database.name())).unwrap();
    let destination = mysql.destination().await.unwrap();
    Db {
        database,
        mysql,
        destination,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_open_is_before_the_bound() {
    // A server of its own: every open transaction counts, whichever test's.
    let server = MariaDb::start();
    let db = on(&server, "settled").await;
    db.sql("CREATE TABLE t (id int PRIMARY KEY, at timestamp(6) DEFAULT current_timestamp(6))");
    let free = settled(&db, 0).await.unwrap();
    assert_eq!(free.held_by, None);
    assert!(free.bound < free.now.replace('T', " "), "{free:?}");
    // An open transaction holds the bound before what it stamped, though it is idle.
    let mut writer = session(&db).await;
    writer.query_drop("BEGIN").await.unwrap();
    writer.query_drop("INSERT INTO t (id) VALUES (1)").await.unwrap();
    let stamped: String = writer
        .query_first("SELECT CAST(at AS CHAR) FROM t")
        .await
        .unwrap()
        .unwrap();
    synctool_testkit::eventually(
        "the transaction holds the bound back",
        Duration::from_secs(10),
        async || settled(&db, 0).await.unwrap().held_by.is_some(),
    )
    .await;
    let held = settled(&db, 0).await.unwrap();
    assert!(
        held.bound.trim_end_matches("+00") <= stamped.as_str(),
        "{held:?} {stamped}"
    );
    let by = held.held_by.unwrap();
    assert!(
        by.contains(&format!("connection {}", writer.id())) && by.contains("idle in transaction"),
        "{by}"
    );
    writer.query_drop("COMMIT").await.unwrap();
    // A statement that waits for a table's lock has stamped, and is in no transaction.
    let mut locker = session(&db).await;
    locker.query_drop("LOCK TABLES t WRITE").await.unwrap();
    let waiter = tokio::spawn(async move {
        writer.query_drop("INSERT INTO t (id) VALUES (2)").await.unwrap();
        let at: String = writer
            .query_first("SELECT CAST(at AS CHAR) FROM t WHERE id = 2")
            .await
            .unwrap()
            .unwrap();
        at
    });
    a_statement_waits(&db).await;
    let held = settled(&db, 0).await.unwrap();
    locker.query_drop("UNLOCK TABLES").await.unwrap();
    let stamped = waiter.await.unwrap();
    assert!(
        held.bound.trim_end_matches("+00") <= stamped.as_str(),
        "{held:?} {stamped}"
    );
    // The first statement of a transaction that waited stamped before its transaction began: of that the server tells
    // nothing once the wait is over, so the margin has to cover it.
    let mut writer = session(&db).await;
    writer.query_drop("BEGIN").await.unwrap();
    locker.query_drop("LOCK TABLES t WRITE").await.unwrap();
    let waiter = tokio::spawn(async move {
        writer.query_drop("INSERT INTO t (id) VALUES (4)").await.unwrap();
        writer
    });
    a_statement_waits(&db).await;
    locker.query_drop("UNLOCK TABLES").await.unwrap();
    let mut writer = waiter.await.unwrap();
    let stamped: String = writer
        .query_first("SELECT CAST(at AS CHAR) FROM t WHERE id = 4")
        .await
        .unwrap()
        .unwrap();
    let held = settled(&db, 60).await.unwrap();
    assert!(
        held.bound.trim_end_matches("+00") <= stamped.as_str(),
        "{held:?} {stamped}"
    );
    writer.query_drop("COMMIT").await.unwrap();
    // A prepared transaction outlives its session.
    let mut writer = session(&db).await;
    writer.query_drop("XA START 'x'").await.unwrap();
    writer.query_drop("INSERT INTO t (id) VALUES (3)").await.unwrap();
    writer.query_drop("XA END 'x'").await.unwrap();
    writer.query_drop("XA PREPARE 'x'").await.unwrap();
    writer.disconnect().await.unwrap();
    // The server began a moment ago, so it may be one from before a restart: nobody knows its age.
    let e = settled(&db, 0).await;
    match e {
        Err(e) => assert_eq!(e.code(), code::UNSUPPORTED, "{e}"),
        Ok(held) => assert!(held.held_by.is_some_and(|h| h.contains("prepared XA")), "not held back"),
    }
    db.sql("XA ROLLBACK 'x'");
    // The margin goes off the bound.
    let (now, earlier) = (settled(&db, 0).await.unwrap(), settled(&db, 3600).await.unwrap());
    assert!(earlier.bound < now.bound && earlier.held_by.is_none());
}

/// Wall-clock times that come again are not below the bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_are_about_to_go_back_hold_the_bound() {
    // A server of its own: zones are the whole server's.
    let server = MariaDb::start();
    let db = on(&server, "back").await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    // At the next quarter that is not too near, from two hours east of UTC to one.
    let back = (now.as_secs() as i64 + 120).div_euclid(900) * 900 + 900;
    db.sql(&format!(
        "INSERT INTO mysql.time_zone (Time_zone_id, Use_leap_seconds) VALUES (1000, 'N'); \
         INSERT INTO mysql.time_zone_name (Name, Time_zone_id) VALUES ('Test/Back', 1000); \
         INSERT INTO mysql.time_zone_transition_type (Time_zone_id, Transition_type_id, `Offset`, Is_DST, Abbreviation) \
         VALUES (1000, 0, 7200, 1, 'SUMMER'), (1000, 1, 3600, 0, 'WINTER'); \
         INSERT INTO mysql.time_zone_transition (Time_zone_id, Transition_time, Transition_type_id) \
         VALUES (1000, 0, 0), (1000, {back}, 1)"
    ));
    let column = Column::new("at", ColumnType::Timestamp);
    let table = TableId::bare("t");
    let settled = db
        .source()
        .settled(&table, &column, Some("Test/Back"), Duration::ZERO)
        .await;
    let mut winter = String::new();
    synctool_core::text::write_timestamp(&mut winter, (back + 3600) * 1_000_000, false);
    assert_eq!(settled.unwrap().bound, winter);
}

/// A column without digits cuts its stamps off, and `now()` without digits cuts them off for any column: whatever is
/// stamped after the bound was taken is not below it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stamp_that_is_cut_to_its_second_is_not_below_the_bound() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE t (id int AUTO_INCREMENT PRIMARY KEY, cut timestamp NOT NULL DEFAULT current_timestamp, \
         fine timestamp(6) NULL, plain datetime)",
    );
    let mut writer = session(&db).await;
    for _ in 0..8 {
        for (name, ty) in [
            ("cut", ColumnType::TimestampTz),
            ("fine", ColumnType::TimestampTz),
            ("plain", ColumnType::Timestamp),
        ] {
            let column = Column::new(name, ty);
            let (source, table) = (db.source(), TableId::bare("t"));
            let settled = source.settled(&table, &column, Some("UTC"), Duration::ZERO).await;
            let bound = settled.unwrap().bound;
            let stamps = "INSERT INTO t (fine, plain) VALUES (now(), utc_timestamp())";
            writer.query_drop(stamps).await.unwrap();
            let newest = format!("SELECT DATE_FORMAT({name}, '%Y-%m-%d %H:%i:%s') FROM t ORDER BY id DESC LIMIT 1");
            let stamp: String = writer.query_first(newest.as_str()).await.unwrap().unwrap();
            let bound = bound.trim_end_matches("+00");
            assert!(bound <= stamp.as_str(), "{name}: {stamp} lies below {bound}");
            assert!(!bound.contains('.'), "{name}: {bound}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_column_without_a_zone_has_its_bound_in_its_zone() {
    let db = Db::new().await;
    let column = Column::new("at", ColumnType::Timestamp);
    let ask = async |zone: Option<&str>| {
        db.source()
            .settled(&TableId::bare("t"), &column, zone, Duration::from_secs(1))
            .await
    };
    let (utc, east) = (ask(Some("UTC")).await.unwrap(), ask(Some("+05:30")).await.unwrap());
    assert!(
        !utc.bound.ends_with("+00") && east.bound > utc.bound,
        "{utc:?} {east:?}"
    );
    assert_eq!(
        ask(Some("Nowhere/Town")).await.unwrap_err().code(),
        code::CONFIG_INVALID
    );
    let number = Column::new("n", ColumnType::Int64);
    let e = db
        .source()
        .settled(&TableId::bare("t"), &number, None, Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONFIG_TYPE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_see_it_fails() {
    let db = Db::new().await;
    let name = db.database.name();
    db.sql(&format!(
        "CREATE USER 's_{name}'@'%'; GRANT SELECT ON {name}.* TO 's_{name}'@'%'"
    ));
    let mut c = config(name);
    c.user = format!("s_{name}");
    let column = Column::new("at", ColumnType::TimestampTz);
    let source = Mysql::open(c).unwrap().source();
    let e = source
        .settled(&TableId::bare("t"), &column, None, Duration::ZERO)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::PERMISSION);
    assert!(e.to_string().contains("PROCESS"), "{e}");
    db.sql(&format!("DROP USER 's_{name}'@'%'"));
}
