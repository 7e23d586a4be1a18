//! Up to where a stamped column has settled.

use std::time::Duration;
use synctool_connectors::postgres::{Postgres, PostgresConfig};
use synctool_core::error::{Error, ErrorKind, code};
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::query::{Condition, Cut, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{ReadContext, Settled, Source};
use synctool_core::text;
use synctool_testkit::{PgVersion, Postgres as Server, TestDb};

const SECOND: Duration = Duration::from_secs(1);

fn open(url: &str) -> Postgres {
    Postgres::open(PostgresConfig::from_url(url).unwrap()).unwrap()
}

fn table() -> TableId {
    TableId::new("public", "t")
}

fn stamp() -> Column {
    Column::new("at", ColumnType::TimestampTz).with_source_type("timestamp with time zone")
}

async fn ask(url: &str, margin: Duration) -> Result<Settled, Error> {
    open(url).source().settled(&table(), &stamp(), None, margin).await
}

/// Whether a bound is behind an SQL expression, as the server compares.
fn behind(db: &TestDb, bound: &str, what: &str) -> bool {
    db.psql(&format!("SELECT '{bound}'::timestamptz <= {what}")) == "t"
}

async fn the_oldest_transaction_holds_the_bound(version: PgVersion) {
    let db = Server::shared(version).database("settled");
    db.psql("CREATE TABLE t (id int, at timestamptz)");
    let free = ask(&db.url(), SECOND).await.unwrap();
    assert_eq!(free.held_by, None);
    assert!(behind(&db, &free.bound, "clock_timestamp() - interval '1 s'"));
    assert!(!behind(&db, &free.bound, "clock_timestamp() - interval '60 s'"));
    assert!(free.now.ends_with('Z') && free.now.contains('T'), "{}", free.now);

    // It has written nothing yet, so it has no number either.
    let writer = db.connect().await;
    writer.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let start: String = writer.query_one("SELECT now()::text", &[]).await.unwrap().get(0);
    let pid: i32 = writer.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let held = ask(&db.url(), Duration::ZERO).await.unwrap();
    assert!(
        behind(&db, &held.bound, &format!("'{start}'")),
        "{} {start}",
        held.bound
    );
    let why = held.held_by.expect("it is older than no margin at all");
    assert!(
        why.contains(&format!("pid {pid}")) && why.contains("idle in transaction") && why.contains("user postgres"),
        "{why}"
    );
    let margin = ask(&db.url(), Duration::from_secs(3600)).await.unwrap();
    assert_eq!(margin.held_by, None, "the margin is longer than its age");
    writer.batch_execute("COMMIT").await.unwrap();
    let after = ask(&db.url(), Duration::ZERO).await.unwrap();
    assert!(!behind(&db, &after.bound, &format!("'{start}'")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_transaction_holds_the_bound_pg15() {
    the_oldest_transaction_holds_the_bound(PgVersion::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_transaction_holds_the_bound_pg18() {
    the_oldest_transaction_holds_the_bound(PgVersion::V18).await;
}

fn slice(lower: Option<String>, upper: String) -> Partition {
    Partition::new(
        "p",
        Work::Read(Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("at"),
                test: Test::Range {
                    lower,
                    upper: Some(upper),
                },
            }],
            key: None,
        })),
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_row_is_read_once_however_late_it_commits() {
    let db = Server::shared(PgVersion::V18).database("settled");
    db.psql("CREATE TABLE t (id int, at timestamptz DEFAULT now())");
    let late = db.connect().await;
    let mut seen: Vec<String> = Vec::new();
    let mut lo = None;
    for round in 0..6 {
        if round % 2 == 0 {
            late.batch_execute("BEGIN; SELECT 1").await.unwrap();
        }
        // Committed at once, behind and before the open transaction's own row.
        db.psql(&format!("INSERT INTO t VALUES ({})", round * 10));
        late.batch_execute(&format!("INSERT INTO t VALUES ({})", round * 10 + 1))
            .await
            .unwrap();
        let source = open(&db.url()).source();
        let hi = source
            .settled(&table(), &stamp(), None, Duration::ZERO)
            .await
            .unwrap()
            .bound;
        let schema = source.describe(&table()).await.unwrap();
        let read = ReadSpec::all(table(), &schema.columns);
        let mut reader = source
            .open(&read, &slice(lo.clone(), hi.clone()), None, &ReadContext::default())
            .await
            .unwrap();
        while let Some(event) = reader.next().await.unwrap() {
            if let synctool_core::change::Event::Rows(batch) = event {
                for row in 0..batch.len() {
                    seen.push(text::cell(batch.rows.column(0), row).unwrap().unwrap());
                }
            }
        }
        // While we read, and still: our own transaction holds nothing back.
        let again = open(&db.url()).source();
        let later = again.settled(&table(), &stamp(), None, Duration::ZERO).await.unwrap();
        if round % 2 == 1 {
            assert_eq!(later.held_by, None, "our own snapshot is no writer");
        }
        lo = Some(hi);
        if round % 2 == 0 {
            late.batch_execute("COMMIT").await.unwrap();
        }
    }
    let all = open(&db.url()).source();
    let hi = all
        .settled(&table(), &stamp(), None, Duration::ZERO)
        .await
        .unwrap()
        .bound;
    let schema = all.describe(&table()).await.unwrap();
    let read = ReadSpec::all(table(), &schema.columns);
    let mut reader = all
        .open(&read, &slice(lo, hi), None, &ReadContext::default())
        .await
        .unwrap();
    while let Some(event) = reader.next().await.unwrap() {
        if let synctool_core::change::Event::Rows(batch) = event {
            for row in 0..batch.len() {
                seen.push(text::cell(batch.rows.column(0), row).unwrap().unwrap());
            }
        }
    }
    seen.sort_by_key(|n| n.parse::<i32>().unwrap());
    let wanted: Vec<String> = (0..6)
        .flat_map(|r| [(r * 10).to_string(), (r * 10 + 1).to_string()])
        .collect();
    assert_eq!(seen, wanted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_seen_is_never_overlooked() {
    // Roles and prepared transactions belong to the whole server.
    let server = Server::start(PgVersion::V15);
    let db = server.database("settled");
    db.psql("CREATE TABLE t (at timestamptz); CREATE ROLE reader LOGIN; CREATE ROLE app LOGIN");
    let (client, connection) = tokio_postgres::connect(&db.url_as("app"), tokio_postgres::NoTls)
        .await
        .unwrap();
    tokio::spawn(connection);
    client.batch_execute("BEGIN").await.unwrap();
    let e = ask(&db.url_as("reader"), SECOND).await.unwrap_err();
    assert_eq!(e.code(), code::PERMISSION, "{e}");
    assert!(e.to_string().contains("GRANT pg_read_all_stats TO \"reader\""), "{e}");
    db.psql("GRANT pg_read_all_stats TO reader");
    let seen = ask(&db.url_as("reader"), Duration::ZERO).await.unwrap();
    assert!(seen.held_by.unwrap().contains("user app"));
    drop(client);

    db.psql("BEGIN; INSERT INTO t VALUES (now()); PREPARE TRANSACTION 'odd''one'");
    let e = ask(&db.url(), SECOND).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    assert!(e.to_string().contains("'odd''one'"), "{e}");
    db.psql("COMMIT PREPARED 'odd''one'");
    ask(&db.url(), SECOND).await.unwrap();

    let blind = db.connect().await;
    blind.batch_execute("SET track_activities = off").await.unwrap();
    blind.batch_execute("BEGIN; SELECT 1").await.unwrap();
    let e = ask(&db.url(), SECOND).await.unwrap_err();
    assert!(
        e.code() == code::UNSUPPORTED && e.to_string().contains("track_activities"),
        "{e}"
    );
}

/// Rows of a subscription have stamps of another server and commit here later: no transaction of this one tells.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_a_subscription_do_not_settle() {
    // Slots and roles belong to the whole server.
    let server = Server::start(PgVersion::V15);
    let (publisher, db) = (server.database("publisher"), server.database("subscriber"));
    const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, at timestamptz); CREATE TABLE own (LIKE t);
        CREATE TABLE parts (id int, at timestamptz) PARTITION BY RANGE (id);
        CREATE TABLE part PARTITION OF parts FOR VALUES FROM (0) TO (10);
        CREATE TABLE root (id int, at timestamptz) PARTITION BY RANGE (id);
        CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (10);";
    publisher.psql(TABLES);
    publisher.psql(
        "CREATE PUBLICATION p FOR TABLE t, part; CREATE PUBLICATION q FOR TABLE root WITH (publish_via_partition_root)",
    );
    publisher.psql("SELECT pg_create_logical_replication_slot('lagging', 'pgoutput')");
    db.psql(TABLES);
    db.psql("CREATE VIEW shown AS SELECT * FROM t; CREATE ROLE reader LOGIN; GRANT pg_read_all_stats TO reader");
    db.psql(&format!(
        "CREATE SUBSCRIPTION lagging CONNECTION '{}' PUBLICATION p, q WITH (create_slot = false, copy_data = false)",
        publisher.url()
    ));
    let of = async |table: &str| {
        let source = open(&db.url_as("reader")).source();
        source.settled(&TableId::bare(table), &stamp(), None, SECOND).await
    };
    let of_subscribed = async |when: &str| {
        for table in ["t", "parts", "part", "root", "leaf", "shown"] {
            let e = of(table).await.expect_err(table);
            assert_eq!(e.code(), code::UNSUPPORTED, "{table}, {when}: {e}");
            assert!(
                e.to_string().contains("subscription lagging") && e.to_string().contains("stamped_by: app"),
                "{table}, {when}: {e}"
            );
        }
    };
    of_subscribed("enabled").await;
    of("own").await.unwrap();
    db.psql("ALTER SUBSCRIPTION lagging DISABLE");
    of_subscribed("disabled").await;
    db.psql("DROP SUBSCRIPTION lagging");
    of("t").await.unwrap();
    of("shown").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bound_is_a_value_of_the_column() {
    let db = Server::shared(PgVersion::V15).database("settled");
    db.psql(
        "CREATE TABLE t (at timestamptz); ALTER ROLE postgres IN DATABASE \"{db}\" SET timezone = 'UTC'"
            .replace("{db}", db.name())
            .as_str(),
    );
    let source = open(&db.url()).source();
    let of = async |ty: ColumnType, name: &str, zone: Option<&str>, margin| {
        let column = Column::new("at", ty).with_source_type(name);
        source.settled(&table(), &column, zone, margin).await.unwrap().bound
    };
    // In autumn 2024 the clocks of Berlin went from 03:00 back to 02:00, at 01:00 UTC.
    let since = |utc: &str| {
        let micros = db.psql(&format!(
            "SELECT (extract(epoch FROM clock_timestamp() - '{utc}'::timestamptz) * 1000000)::bigint"
        ));
        Duration::from_micros(micros.parse().unwrap())
    };
    let naive = "timestamp without time zone";
    let berlin = Some("Europe/Berlin");
    let before = of(ColumnType::Timestamp, naive, berlin, since("2024-10-25 12:00+00")).await;
    assert!(before.starts_with("2024-10-25 14:00:0"), "{before}");
    let inside = of(ColumnType::Timestamp, naive, berlin, since("2024-10-27 00:40+00")).await;
    assert_eq!(inside, "2024-10-27 02:00:00", "02:00 comes again");
    let second = of(ColumnType::Timestamp, naive, berlin, since("2024-10-27 01:20+00")).await;
    assert!(second.starts_with("2024-10-27 02:20:0"), "{second}");
    let day = of(
        ColumnType::Date,
        "date",
        Some("Asia/Tokyo"),
        since("2024-05-05 20:00+00"),
    )
    .await;
    assert_eq!(day, "2024-05-06");
    // now() in a column without fractions is rounded, up or down; so is the bound.
    let rounded = of(
        ColumnType::TimestampTz,
        "timestamp(0) with time zone",
        None,
        since("2024-05-05 20:00:00.3+00"),
    )
    .await;
    assert!(
        rounded.starts_with("2024-05-05 20:00:0") && rounded.ends_with("+00") && !rounded.contains('.'),
        "{rounded}"
    );

    let e = source
        .settled(
            &table(),
            &Column::new("at", ColumnType::Timestamp),
            Some("Nowhere/Land"),
            SECOND,
        )
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONFIG_INVALID, "{e}");
    let e = source
        .settled(&table(), &Column::new("id", ColumnType::Int64), None, SECOND)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONFIG_TYPE);
}
