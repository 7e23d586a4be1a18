//! Ways: each kind of watermark beside other people's writing, streaming and peeking, encrypted and with passwords, into
//! SQLite; and a sink that is slow.

use super::*;
use synctool_connectors::postgres::SslMode;
use synctool_connectors::postgres::log::Watermarks;
use synctool_connectors::postgres::log::capture::Initial;
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::change::Event;
use synctool_core::source::ReadContext;
use synctool_testkit::Authority;

const KEYED: &str = "
    CREATE TABLE by_text (k text PRIMARY KEY, v int, big text); ALTER TABLE by_text ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE by_three (a uuid, b date, c numeric(10,2), v text, PRIMARY KEY (b, a, c));
    CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad'); CREATE TABLE by_enum (m mood, n smallint, v int, PRIMARY KEY (m, n));
    INSERT INTO by_text SELECT chr(65 + i % 50) || '''\\ä' || i, i, repeat(i::text, 3000) FROM generate_series(1, 400) i;
    INSERT INTO by_three SELECT md5(i::text)::uuid, '2026-01-01'::date - i % 30, i / 3.0, 'v' FROM generate_series(1, 400) i;
    INSERT INTO by_enum SELECT (ARRAY['sad', 'ok', 'glad']::mood[])[1 + i % 3], i, i FROM generate_series(1, 400) i;";

const TABLES: &[&str] = &["by_text", "by_three", "by_enum"];

/// What other people do meanwhile: keys that wander, rows behind the cursor, deletes, partial updates.
async fn meddle(db: &TestDb, rounds: usize, stop: &tokio_util::sync::CancellationToken) {
    let client = db.connect().await;
    for i in 0..rounds {
        let sql = format!(
            "UPDATE by_text SET v = v + 1 WHERE v % 17 = {i} % 17;
             BEGIN; UPDATE by_text SET k = left(md5(random()::text), 6) || k WHERE v % 41 = {i} % 41; DELETE FROM by_three WHERE c % 13 < 1 AND (c * 3)::int % 29 = {i} % 29; COMMIT;
             BEGIN; INSERT INTO by_three VALUES (md5('n{i}')::uuid, '2025-12-01'::date + {i} % 60, {i}, 'new') ON CONFLICT DO NOTHING; UPDATE by_enum SET n = -n, m = 'ok' WHERE n = {i}; SAVEPOINT s;
             DELETE FROM by_enum; ROLLBACK TO s; COMMIT;
             UPDATE by_text SET big = repeat('z', 4000) WHERE v % 53 = {i} % 53; DELETE FROM by_text WHERE v % 61 = {i} % 61;
             INSERT INTO by_text VALUES ('0behind{i}', {i}, repeat('b', 5000)) ON CONFLICT DO NOTHING;"
        );
        client.batch_execute(&sql).await.unwrap();
        if stop.is_cancelled() {
            return;
        }
    }
}

on_servers! {
    /// F53, F54, F56 with each kind of watermark; F61 for the read-only one.
    async fn every_kind_of_watermark_ends_equal(version: PgVersion) {
        for watermarks in [Watermarks::Message, Watermarks::Table, Watermarks::ReadOnly] {
            let mut c = Capture::new(version, TABLES, KEYED);
            c.to.psql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad')");
            c.options.watermarks = watermarks;
            c.options.chunk_rows = 23;
            let stop = tokio_util::sync::CancellationToken::new();
            let (synced, ()) = tokio::join!(c.catch_up(), meddle(&c.from, 25, &stop));
            synced.unwrap_or_else(|e| panic!("{watermarks:?}: {e}"));
            c.catch_up().await.unwrap();
            c.assert_equal(TABLES);
            if watermarks == Watermarks::Table {
                assert_eq!(c.from.psql("SELECT count(*) FROM synctool.watermark"), "0", "marks are cleaned up");
            }
        }
    }

    /// A re-sync in chunks beside the same traffic takes away what only the destination has.
    async fn a_resync_under_load_ends_equal(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, KEYED);
        c.to.psql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad')");
        c.to.psql(&KEYED.replace("CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');", ""));
        c.to.psql("DELETE FROM by_text WHERE v % 3 = 0; UPDATE by_text SET v = -1, big = 'wrong' WHERE v % 5 = 0; INSERT INTO by_text VALUES ('Zmuch', 1, ''), ('', 2, '');
                   UPDATE by_three SET v = 'wrong'; INSERT INTO by_enum VALUES ('sad', -500, 0), ('glad', 30000, 0)");
        c.options.chunk_rows = 31;
        let stop = tokio_util::sync::CancellationToken::new();
        let (synced, ()) = tokio::join!(c.catch_up(), meddle(&c.from, 20, &stop));
        synced.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
    }

    /// A backlog that is peeked: the same rows, and the slot moves on.
    async fn a_backlog_is_peeked_and_then_streamed(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, KEYED);
        c.to.psql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad')");
        c.catch_up().await.unwrap();
        let before = c.confirmed();
        let stop = tokio_util::sync::CancellationToken::new();
        meddle(&c.from, 12, &stop).await;
        c.from.psql("INSERT INTO by_enum SELECT 'glad', 20000 + i, i FROM generate_series(1, 5000) i");
        c.options.catch_up_bytes = Some(1 << 16);
        c.options.peek_changes = 500;
        let source = c.source(LogOptions { until_now: true, ..c.options.clone() });
        follow(source.clone(), source.clone(), c.destination().await, &c.request).await.unwrap();
        assert!(source.steering().peeked() > 1, "{} peeks", source.steering().peeked());
        c.assert_equal(TABLES);
        assert_ne!(c.confirmed(), before);
        // And with traffic beside it, so that both ways are taken in one run.
        meddle(&c.from, 12, &stop).await;
        let running = Following::start(&c).await;
        meddle(&c.from, 8, &stop).await;
        for t in TABLES {
            let sql = format!("SELECT md5(t::text) FROM {t} t");
            shapes::until_equal(&c, &sql, &sql).await;
        }
        running.stop().await.unwrap();
    }

    /// A stream that falls behind peeks by itself, and streams again; the same rows, none twice.
    async fn a_stream_that_falls_behind_peeks(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text)");
        (c.options.catch_up_bytes, c.options.lag_check) = (Some(1 << 16), Duration::ZERO);
        c.options.status_interval = Duration::from_millis(20);
        let source = c.source(c.options.clone());
        let running = Following::of(&c, source.clone()).await;
        c.from.psql("INSERT INTO t (a) VALUES ('first')");
        let sum = "SELECT count(*), sum(id), md5(string_agg(a, '' ORDER BY id)) FROM t";
        shapes::until_equal(&c, sum, sum).await;
        let reader = format!("SELECT backend_type FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid WHERE slot_name = '{}'", c.options.slot);
        let streams = async || synctool_testkit::eventually("a stream", Duration::from_secs(60), async || c.from.psql(&reader) == "walsender").await;
        streams().await;
        let before = source.steering().peeked();
        synctool_testkit::eventually("a peek", Duration::from_secs(60), async || {
            c.from.psql("INSERT INTO t (a) SELECT repeat(md5(i::text), 20) FROM generate_series(1, 5000) i");
            source.steering().peeked() > before
        }).await;
        shapes::until_equal(&c, sum, sum).await;
        streams().await;
        c.from.psql("INSERT INTO t (a) VALUES ('last')");
        shapes::until_equal(&c, sum, sum).await;
        running.stop().await.unwrap();
    }

    /// A server without room for a peek (it spools what it decodes to a temporary file) has its backlog streamed.
    async fn a_backlog_that_cannot_be_peeked_is_streamed(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (0, 'first')");
        c.catch_up().await.unwrap();
        c.from.psql("INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 5000) i");
        c.from.psql("UPDATE t SET a = 'later' WHERE id % 7 = 0");
        c.from.psql(&format!("ALTER DATABASE {0} SET temp_file_limit = '64kB'; ALTER DATABASE {0} SET work_mem = '64kB'", c.from.name()));
        c.options.catch_up_bytes = Some(0);
        let source = c.source(LogOptions { until_now: true, ..c.options.clone() });
        let done = follow(source.clone(), source.clone(), c.destination().await, &c.request);
        tokio::time::timeout(Duration::from_secs(120), done).await.expect("it does not try for ever").unwrap();
        assert!(source.steering().peeked() > 0);
        c.from.psql(&format!("ALTER DATABASE {} RESET ALL", c.from.name()));
        c.assert_equal(&["t"]);
    }

    /// Where there was no room to peek at one backlog, the next one is tried again.
    async fn a_backlog_is_peeked_again_after_one_without_room(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, a text)");
        c.catch_up().await.unwrap();
        (c.options.catch_up_bytes, c.options.lag_check) = (Some(1 << 16), Duration::ZERO);
        c.options.status_interval = Duration::from_millis(20);
        let more = "INSERT INTO t (a) SELECT repeat(md5(i::text), 30) FROM generate_series(1, 5000) i";
        c.from.psql(more);
        c.from.psql(&format!("ALTER DATABASE {0} SET temp_file_limit = '64kB'; ALTER DATABASE {0} SET work_mem = '64kB'", c.from.name()));
        let source = c.source(c.options.clone());
        let running = Following::of(&c, source.clone()).await;
        // Without room there is none to sort, either.
        let sum = "SELECT count(*), sum(id), sum(length(a)) FROM t";
        shapes::until_equal(&c, sum, sum).await;
        c.from.psql(&format!("ALTER DATABASE {} RESET ALL", c.from.name()));
        let before = source.steering().peeked();
        assert!(before > 0);
        synctool_testkit::eventually("another peek", Duration::from_secs(60), async || {
            c.from.psql(more);
            source.steering().peeked() > before
        }).await;
        shapes::until_equal(&c, sum, sum).await;
        running.stop().await.unwrap();
    }

    /// What came is seen as soon as nothing more is at hand, however long commits may wait for more.
    async fn what_came_is_seen_soon(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (0)");
        let source = c.source(c.options.clone());
        let (engine, plan) = prepare(source.clone(), source.clone(), c.destination().await, &c.request).await.unwrap();
        let mut patient = Engine::new(source, engine.destination.clone());
        patient.options = Options { commit_interval: Duration::from_secs(3600), commit_when_idle: true, ..options() };
        let patient = Arc::new(patient);
        let task = tokio::spawn({
            let patient = patient.clone();
            async move { patient.follow(plan).await }
        });
        for i in 1..5 {
            c.from.psql(&format!("INSERT INTO t VALUES ({i})"));
            shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
        }
        patient.cancel.cancel();
        let e = task.await.unwrap().unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::INTERRUPTED, "{e}");
    }

    /// F9: a reader that takes nothing for longer than wal_sender_timeout keeps its connection.
    async fn a_slow_sink_keeps_the_stream_alive(version: PgVersion) {
        let server = Postgres::builder(version).setting("wal_sender_timeout", "1s").start();
        let mut c = Capture::on(&server, &["t"], "CREATE TABLE t (id int PRIMARY KEY, big text)");
        c.options.status_interval = Duration::from_millis(200);
        c.options.queue_bytes = 1 << 16;
        c.catch_up().await.unwrap();
        c.from.psql("INSERT INTO t SELECT i, repeat(md5(i::text), 100) FROM generate_series(1, 20000) i");
        let source = c.source(c.options.clone());
        let destination = c.destination().await;
        let (_, plan) = prepare(source.clone(), source.clone(), destination.clone(), &c.request).await.unwrap();
        let position = destination.checkpoint(&plan).await.unwrap().into_values().next().unwrap().position;
        let mut reader = source.open(&plan.tables[0].read, &LogSource::partition(), position.as_ref(), &ReadContext::default()).await.unwrap();
        let mut rows = 0;
        let first = reader.next().await.unwrap();
        assert!(first.is_some());
        let begun = tokio::time::Instant::now();
        let pid = || c.from.psql("SELECT active_pid FROM pg_replication_slots");
        let walsender = pid();
        synctool_testkit::eventually("longer than the server's patience", Duration::from_secs(20), async || begun.elapsed() > Duration::from_millis(3500)).await;
        while rows < 20000 {
            match reader.next().await.unwrap() {
                Some(Event::Rows(b)) => rows += b.len(),
                Some(_) => {}
                None => panic!("the log ended"),
            }
        }
        assert_eq!(pid(), walsender, "the same connection all the time");
        assert!(!server.log().contains("terminating walsender process due to replication timeout"));
    }

    /// What a log says arrives in SQLite, too.
    async fn sqlite_follows_a_log(version: PgVersion) {
        let mut c = Capture::new(version, &["t", "u"], "
            CREATE TABLE t (id int PRIMARY KEY, a text, n numeric(12,2), at timestamptz, big text); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE u (a text, b int, v bytea, PRIMARY KEY (a, b));
            INSERT INTO t SELECT i, 'a' || i, i / 4.0, '2026-01-01Z', repeat('q', 4000) FROM generate_series(1, 300) i;
            INSERT INTO u SELECT 'k' || i % 9, i, '\\x00ff' FROM generate_series(1, 300) i");
        c.options.chunk_rows = 40;
        c.request.bare = true;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.db");
        let sqlite = Sqlite::open(SqliteConfig::new(&file)).unwrap();
        let destination = sqlite.destination();
        let same = |c: &Capture| {
            let conn = rusqlite::Connection::open(&file).unwrap();
            for (table, columns) in [("t", "id, a, CAST(n AS text), big"), ("u", "a, b, hex(v)")] {
                let mut statement = conn.prepare(&format!("SELECT {columns} FROM {table}")).unwrap();
                let n = statement.column_count();
                let rows = statement.query_map([], |r| {
                    let cell = |i: usize| match r.get_ref(i).unwrap() {
                        rusqlite::types::ValueRef::Null => String::new(),
                        rusqlite::types::ValueRef::Integer(v) => v.to_string(),
                        rusqlite::types::ValueRef::Real(v) => v.to_string(),
                        rusqlite::types::ValueRef::Text(t) | rusqlite::types::ValueRef::Blob(t) => String::from_utf8_lossy(t).into_owned(),
                    };
                    Ok((0..n).map(cell).collect::<Vec<_>>().join("|"))
                });
                let mut found: Vec<String> = rows.unwrap().map(Result::unwrap).collect();
                found.sort_unstable();
                let columns = columns.replace("hex(v)", "upper(encode(v, 'hex'))");
                let mut wanted: Vec<String> = c.from.psql(&format!("SELECT {columns} FROM {table}")).lines().map(str::to_string).collect();
                wanted.sort_unstable();
                assert_eq!(found, wanted, "{table}");
            }
        };
        c.catch_up_into(destination.clone()).await.unwrap();
        same(&c);
        c.from.psql("UPDATE t SET a = 'b' WHERE id % 3 = 0; UPDATE t SET id = -id WHERE id % 5 = 0; DELETE FROM t WHERE id % 7 = 0;
            UPDATE u SET a = 'z' || a WHERE b % 4 = 0; ALTER TABLE t ADD COLUMN extra int DEFAULT 4; INSERT INTO t VALUES (1000, 'n', 0, NULL, NULL, 5)");
        c.catch_up_into(destination.clone()).await.unwrap();
        same(&c);
        let conn = rusqlite::Connection::open(&file).unwrap();
        assert_eq!(conn.query_row("SELECT count(*) FROM t WHERE extra IS NOT NULL", [], |r| r.get::<_, i64>(0)).unwrap().to_string(), c.from.psql("SELECT count(*) FROM t"));
        c.from.psql("TRUNCATE t; INSERT INTO t VALUES (1, 'last', 1, NULL, '', 1)");
        c.catch_up_into(destination).await.unwrap();
        same(&c);
    }

    /// F11: a password that changes while the log is followed does no harm to what is connected; whoever must connect
    /// anew is refused by name, and goes on with the new one.
    async fn a_password_that_changes_meanwhile(version: PgVersion) {
        let server = Postgres::builder(version).password("sesame-open").start();
        server.psql("CREATE ROLE sync LOGIN SUPERUSER PASSWORD 'first'");
        let mut c = Capture::on(&server, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let good = c.url.clone();
        c.url = good.replace("postgres:sesame%2Dopen@", "sync:first@");
        let running = Following::start(&c).await;
        let all = "SELECT * FROM t";
        shapes::until_equal(&c, all, all).await;
        server.psql("ALTER ROLE sync PASSWORD 'second'");
        c.from.psql("INSERT INTO t VALUES (2)");
        shapes::until_equal(&c, all, all).await;
        server.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sync'");
        let e = tokio::time::timeout(Duration::from_secs(60), running.task).await.expect("it ends by itself").unwrap().unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::AUTH_FAILED, "{e}");
        assert!(!e.to_string().contains("first"), "{e}");
        c.from.psql("INSERT INTO t VALUES (3)");
        c.url = good.replace("postgres:sesame%2Dopen@", "sync:second@");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// SCRAM, MD5 and clear passwords on the replication connection.
    async fn passwords_of_every_kind(version: PgVersion) {
        let server = Postgres::builder(version).password("sesame-open")
            .hba("host all,replication old 127.0.0.1/32 md5\nhost all,replication clear 127.0.0.1/32 password\nhost all,replication all 127.0.0.1/32 scram-sha-256").start();
        server.psql("SET password_encryption = 'md5'; CREATE ROLE old LOGIN SUPERUSER PASSWORD 'sesame-md5'; CREATE ROLE clear LOGIN SUPERUSER PASSWORD 'sesame-clear'");
        let mut c = Capture::on(&server, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        let good = c.url.clone();
        for (n, (user, password)) in [("postgres", "sesame-open"), ("old", "sesame-md5"), ("clear", "sesame-clear")].into_iter().enumerate() {
            c.url = good.replace("postgres:sesame%2Dopen@", &format!("{user}:{password}@"));
            assert!(c.url.contains(password), "{}", c.url);
            c.from.psql(&format!("INSERT INTO t VALUES (10 + {n})"));
            c.catch_up().await.unwrap_or_else(|e| panic!("{user}: {e}"));
            c.assert_equal(&["t"]);
        }
    }
}

/// Each sslmode as elsewhere; PostgreSQL 18's build here has no TLS.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_log() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Postgres::builder(PgVersion::V15)
        .tls(&ours.localhost())
        .password("sesame")
        .start();
    let c = Capture::on(
        &server,
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)",
    );
    let config = |mode, root: Option<&Authority>| PostgresConfig {
        sslmode: mode,
        sslrootcert: root.map(Authority::path),
        ..PostgresConfig::from_url(&c.url).unwrap()
    };
    let follow_by = async |config: PostgresConfig| {
        let options = LogOptions {
            until_now: true,
            ..c.options.clone()
        };
        let source = Arc::new(Database::open(config).unwrap().log(options).unwrap());
        follow(source.clone(), source, c.destination().await, &c.request).await
    };
    for (n, good) in [
        config(SslMode::Prefer, None),
        config(SslMode::Require, None),
        config(SslMode::VerifyFull, Some(&ours)),
    ]
    .into_iter()
    .enumerate()
    {
        c.from.psql(&format!("INSERT INTO t VALUES (10 + {n})"));
        follow_by(good).await.unwrap();
        c.assert_equal(&["t"]);
    }
    assert!(follow_by(config(SslMode::VerifyCa, Some(&theirs))).await.is_err());
    assert!(follow_by(config(SslMode::Disable, None)).await.is_err());
    // F11: another certificate while the log is followed, of the same authority: whoever connects anew goes on.
    let rotate = |to: &Authority| {
        let certificate = to.localhost();
        for (setting, pem) in [
            ("ssl_cert_file", certificate.certificate()),
            ("ssl_key_file", certificate.key()),
        ] {
            std::fs::write(server.psql(&format!("SHOW {setting}")), pem).unwrap();
        }
        server.psql("SELECT pg_reload_conf()");
    };
    let source = Database::open(config(SslMode::VerifyFull, Some(&ours))).unwrap();
    let running = Following::of(&c, Arc::new(source.log(c.options.clone()).unwrap())).await;
    c.until_read().await;
    rotate(&ours);
    for sql in [
        "INSERT INTO t VALUES (20)",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_replication; INSERT INTO t VALUES (21)",
    ] {
        c.from.psql(sql);
        shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
    }
    running.stop().await.unwrap();
    // Of another one: refused, until we know it.
    rotate(&theirs);
    c.from.psql("INSERT INTO t VALUES (30)");
    synctool_testkit::eventually("the new certificate to be shown", Duration::from_secs(30), async || {
        follow_by(config(SslMode::VerifyFull, Some(&ours))).await.is_err()
    })
    .await;
    follow_by(config(SslMode::VerifyFull, Some(&theirs))).await.unwrap();
    c.assert_equal(&["t"]);
}

/// The versions that the other tests do not run on: a load beside writing, a backlog that is peeked, and a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_other_versions_are_followed() {
    for version in PgVersion::ALL.into_iter().filter(|v| ![15, 18].contains(&v.major())) {
        let server = Postgres::start(version);
        let mut c = Capture::on(&server, TABLES, KEYED);
        c.to.psql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad')");
        if version.major() < 14 {
            let e = c.catch_up().await.unwrap_err();
            assert!(e.to_string().contains("before 14"), "{version}: {e}");
            c.options.watermarks = Watermarks::Table;
        }
        (c.options.chunk_rows, c.options.together) = (23, true);
        let stop = tokio_util::sync::CancellationToken::new();
        let (synced, ()) = tokio::join!(c.catch_up(), meddle(&c.from, 12, &stop));
        synced.unwrap_or_else(|e| panic!("{version}: {e}"));
        c.options.catch_up_bytes = Some(1 << 16);
        c.catch_up().await.unwrap_or_else(|e| panic!("{version}: {e}"));
        c.assert_equal(TABLES);
        let running = Following::start(&c).await;
        meddle(&c.from, 6, &stop).await;
        for t in TABLES {
            let sql = format!("SELECT md5(t::text) FROM {t} t");
            shapes::until_equal(&c, &sql, &sql).await;
        }
        running.stop().await.unwrap();
    }
}

/// A program of one's own takes events, acknowledges them, and goes on where it stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_of_ones_own_follows_changes() {
    use synctool_connectors::postgres::log::changes::Changes;
    let c = Capture::new(
        PgVersion::V18,
        &["t"],
        "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'there')",
    );
    let builder = || {
        Changes::of(PostgresConfig::from_url(&c.url).unwrap())
            .for_tables(["t"])
            .slot(&c.options.slot)
            .options(|o| o.until_now = true)
    };
    let mut seen = Vec::new();
    let mut last = None;
    for round in 0..3 {
        let mut changes = builder().open(last.as_ref()).await.unwrap();
        let mut open = 0;
        while let Some(event) = changes.next().await.unwrap() {
            match event {
                Event::Begin(_) => open += 1,
                Event::Rows(b) => {
                    for row in 0..b.len() {
                        let cell = synctool_core::text::cell(b.rows.column(0).as_ref(), row)
                            .unwrap()
                            .unwrap();
                        seen.push(format!("{:?} {cell}", b.ops.get(row)));
                    }
                }
                Event::Boundary { position, .. } => {
                    open = 0;
                    changes.acknowledge(&position).await.unwrap();
                    last = Some(position);
                }
                _ => {}
            }
        }
        assert_eq!(open, 0, "a transaction is not at its end");
        c.from.psql(&format!(
            "BEGIN; INSERT INTO t VALUES (1{round}, 'new'); UPDATE t SET a = 'x' WHERE id = 1; COMMIT"
        ));
    }
    assert_eq!(seen, ["Upsert 1", "Insert 10", "Update 1", "Insert 11", "Update 1"]);
    let confirmed = c.confirmed();
    assert!(!confirmed.is_empty());
}

/// F56: chunks of a text key in the order of a language, into tables that order texts otherwise: no row of one chunk
/// is taken for a surplus row of another one's range. And where the source orders as the destination does not.
#[tokio::test(flavor = "multi_thread")]
async fn texts_of_another_collation_lose_nothing() {
    // The servers of other versions are built without ICU.
    let version = PgVersion::V15;
    const COLLATED: &str = "
        CREATE TABLE by_language (k text COLLATE \"en-x-icu\" PRIMARY KEY, v int);
        CREATE TABLE by_both (n int, k varchar(20) COLLATE \"de-x-icu\", c char(6) COLLATE \"en-x-icu\", v int, PRIMARY KEY (n, k, c));
        INSERT INTO by_language SELECT (ARRAY['a', 'B', 'c', 'D', 'é', 'Z', '_', 'Ä'])[1 + i % 8] || i, i FROM generate_series(1, 200) i;
        INSERT INTO by_both SELECT i % 3, (ARRAY['a', 'B', 'ß', 'Ss', ' '])[1 + i % 5] || i, chr(65 + i % 2 * 32) || i % 7, i FROM generate_series(1, 200) i;";
    let tables = ["by_language", "by_both"];
    for initial in [Initial::Load, Initial::Resync] {
        let mut c = Capture::new(version, &tables, COLLATED);
        c.options.chunk_rows = 7;
        c.request.initial = Some(initial);
        c.catch_up().await.unwrap();
        c.assert_equal(&tables);
        // The other way round: the source by bytes, the destination by a language.
        let mut back = Capture::new(
            version,
            &tables,
            &COLLATED.replace("en-x-icu", "C").replace("de-x-icu", "C"),
        );
        back.to.psql(COLLATED);
        back.to.psql("UPDATE by_language SET v = 0 WHERE v % 3 = 0; DELETE FROM by_both WHERE v % 4 = 0; INSERT INTO by_both VALUES (1, 'zz', 'A', 0)");
        back.options.chunk_rows = 7;
        back.request.initial = Some(Initial::Resync);
        back.catch_up().await.unwrap();
        back.assert_equal(&tables);
    }
}

/// Two rows of the source would be one there.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_the_destination_may_call_equal_are_refused() {
    let mut c = Capture::new(PgVersion::V15, &["t"], "CREATE TABLE t (k text PRIMARY KEY, v int)");
    c.to.psql(
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE TABLE t (k text COLLATE blind PRIMARY KEY, v int)",
    );
    for knows in [false, true] {
        c.request.distinct_keys = knows;
        let planned = prepare(
            c.source(c.options.clone()),
            c.source(c.options.clone()),
            c.destination().await,
            &c.request,
        )
        .await;
        match planned {
            Ok(_) => assert!(knows, "keys may become one"),
            Err(e) => assert!(
                !knows && e.to_string().contains("key column k is compared by blind"),
                "{e}"
            ),
        }
    }
}

/// Where both databases have one collation in one version, the source's own index serves its chunks.
#[tokio::test(flavor = "multi_thread")]
async fn texts_of_one_collation_need_no_bytes() {
    let version = PgVersion::V15;
    for (same, locale, ty) in [
        (true, "en-US", "text"),
        (false, "de-DE", "text"),
        (true, "en-US", "char(5)"),
    ] {
        let table = format!("CREATE TABLE t (k {ty} PRIMARY KEY, v int)");
        let mut c = Capture::new(version, &["t"], "SELECT 1");
        let server = Postgres::shared(version);
        let (from, to) = (
            server.database_in_language("texts_from", "en-US"),
            server.database_in_language("texts_to", locale),
        );
        from.psql(&format!(
            "{table}; INSERT INTO t SELECT chr(97 - i % 2 * 32) || i, i FROM generate_series(1, 100) i"
        ));
        to.psql(&format!("{table}; INSERT INTO t VALUES ('B1', 1), ('b2', 0)"));
        (c.url, c.from, c.to) = (from.url(), from, to);
        c.options.chunk_rows = 9;
        let (_, plan) = prepare(
            c.source(c.options.clone()),
            c.source(c.options.clone()),
            c.destination().await,
            &c.request,
        )
        .await
        .unwrap();
        let cut = plan.columns_cut_by_bytes(&TableId::new("public", "t"));
        assert_eq!(cut.is_empty(), same, "{locale}, {ty}: {cut:?}");
        let told = |reason: &String| reason.contains("in the order of the bytes of k");
        assert_eq!(plan.reasons.iter().any(told), !same, "{locale}: {:?}", plan.reasons);
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }
}
