//! Faults: each call of a run fails in turn (sampled), connections are cut, sessions are ended, servers crash. Afterwards
//! both ends are equal.

use super::*;
use synctool_core::backfill::{Pending, Request, Wish};
use synctool_core::testing::faults::{FaultPlan, FaultyDestination, FaultySource, Looks, When};
use synctool_testkit::proxy::Mode;
use synctool_testkit::{FaultProxy, is_soak};

const TABLES: &[&str] = &["a", "b"];
const DDL: &str = "CREATE TABLE a (id int PRIMARY KEY, v int, big text); ALTER TABLE a ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE b (k text, n int, v text, PRIMARY KEY (k, n));
    INSERT INTO a SELECT i, i, repeat('x', 3000) FROM generate_series(1, 40) i; INSERT INTO b SELECT 'k' || i % 3, i, 'v' FROM generate_series(1, 40) i";

/// A little of everything, as other people write it.
fn write(db: &TestDb, n: i32) {
    db.psql(&format!(
        "BEGIN; UPDATE a SET v = v + 1 WHERE id % 4 = {n} % 4; UPDATE b SET n = n + 1000 WHERE n % 11 = {n} % 11; COMMIT;
         BEGIN; DELETE FROM a WHERE id % 13 = {n} % 13; INSERT INTO a VALUES ({n} + 1000, {n}, repeat('y', 3000)); UPDATE b SET v = 'w{n}' WHERE k = 'k1'; COMMIT"
    ));
}

/// One run with a fault, and more without until one succeeds; in between, others write.
async fn survives(c: &Capture, faults: FaultPlan, case: &str) {
    let options = LogOptions {
        until_now: true,
        ..c.options.clone()
    };
    for run in 0..3 {
        let faults = if run == 0 { faults.clone() } else { FaultPlan::none() };
        let source = c.source(options.clone());
        let through = Arc::new(FaultySource(source.clone(), faults.clone()));
        let destination = Arc::new(FaultyDestination(c.destination().await, faults));
        match follow(source, through, destination, &c.request).await {
            Ok(_) => break,
            Err(e) if run == 2 => panic!("{case}: the run after the fault failed: {e}"),
            Err(_) => write(&c.from, run),
        }
    }
    c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
    c.assert_equal(TABLES);
}

on_servers! {
    /// F1 (at every call of source and sink, sampled): backfill and log, as in the crash matrix in memory.
    async fn a_fault_at_any_call_ends_equal(version: PgVersion) {
        let fresh = || {
            let mut c = Capture::new(version, TABLES, DDL);
            c.options.chunk_rows = 9;
            c
        };
        let counted = FaultPlan::none();
        survives(&fresh(), counted.clone(), "undisturbed").await;
        let calls = counted.calls();
        assert!(calls > 30, "the matrix covers only {calls} calls");
        // Each fault looks one way on one server and the other way on the other; a soak has both on both.
        let all = is_soak();
        for (i, at) in (1..=calls).step_by((calls / 10).max(1) as usize).enumerate() {
            let when = if i % 2 == 0 { When::Before } else { When::After };
            for (n, looks) in [Looks::Transient, Looks::Fatal].into_iter().enumerate() {
                if !all && ((i / 2 + n) % 2 == 0) == (version == PgVersion::V18) {
                    continue;
                }
                let case = format!("call {at} of {calls} fails {when:?}, {looks:?}");
                survives(&fresh(), FaultPlan::fail(at, when, looks), &case).await;
            }
        }
    }

    /// F7: the source's connections are cut in the middle, again and again.
    async fn cut_connections_of_the_source(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, DDL);
        let proxy = FaultProxy::to(Postgres::shared(version).port());
        c.url = proxy.through(&c.from.url());
        c.catch_up().await.unwrap();
        for (n, mode) in [Mode::CutToClient(3000), Mode::CutToClient(20_000), Mode::CutToServer(900), Mode::Reset].into_iter().enumerate() {
            for i in 0..5 {
                write(&c.from, i + 10 * n as i32);
            }
            proxy.set_once(mode);
            match c.catch_up().await {
                Ok(_) => {}
                Err(e) => assert!(e.kind().is_transient(), "{mode:?}: {e}"),
            }
            proxy.set(Mode::Forward);
            c.catch_up().await.unwrap();
            c.assert_equal(TABLES);
        }
        assert!(proxy.counts().broken >= 3, "{:?}", proxy.counts());
    }

    /// F7: a connection that is open and says nothing is given up, and another one goes on.
    async fn a_silent_connection_is_given_up(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, DDL);
        let proxy = FaultProxy::to(Postgres::shared(version).port());
        c.url = proxy.through(&c.from.url());
        c.options.status_interval = Duration::from_millis(100);
        let running = Following::start(&c).await;
        let all = "SELECT md5(t::text) FROM a t";
        shapes::until_equal(&c, all, all).await;
        proxy.set(Mode::Hang);
        let before = proxy.counts().connections;
        write(&c.from, 1);
        synctool_testkit::eventually("another connection", Duration::from_secs(60), async || proxy.counts().connections > before + 1).await;
        assert!(!running.task.is_finished());
        write(&c.from, 2);
        proxy.set(Mode::Forward);
        shapes::until_equal(&c, all, all).await;
        running.stop().await.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
    }

    /// F7: far away and thin, at either end, everything only takes longer.
    async fn latency_and_thin_lines(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, DDL);
        let port = Postgres::shared(version).port();
        let (source, sink) = (FaultProxy::to(port), FaultProxy::to(port));
        c.url = source.through(&c.from.url());
        c.options.chunk_rows = 15;
        for (n, (at_source, at_sink)) in [
            (Mode::Delay(Duration::from_millis(30)), Mode::Forward),
            (Mode::Forward, Mode::Delay(Duration::from_millis(10))),
            (Mode::Throttle(200_000), Mode::Throttle(400_000)),
        ].into_iter().enumerate() {
            if !has(version, n) {
                continue;
            }
            source.set(at_source);
            sink.set(at_sink);
            for i in 0..3 {
                write(&c.from, i + 7 * n as i32);
            }
            let to = PostgresDestination::open(database(&sink.through(&c.to.url())), DestinationOptions::default()).await.unwrap();
            c.catch_up_into(Arc::new(to)).await.unwrap_or_else(|e| panic!("{at_source:?}, {at_sink:?}: {e}"));
            c.assert_equal(TABLES);
        }
    }

    /// F10, F3: the sessions at the source are ended by an administrator, and the run is stopped in the middle.
    async fn ended_sessions_and_a_stop_in_the_middle(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, DDL);
        c.options.chunk_rows = 9;
        let running = Following::start(&c).await;
        for i in 0..6 {
            write(&c.from, i);
            c.from.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()");
        }
        let all = "SELECT md5(t::text) FROM a t";
        shapes::until_equal(&c, all, all).await;
        write(&c.from, 7);
        running.stop().await.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
        // Nobody holds the slot any more.
        assert_eq!(c.from.psql(&format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{}'", c.options.slot)), "f");
    }

    /// F21: the source's server crashes and comes back.
    async fn a_crashed_source_is_waited_for(version: PgVersion) {
        let server = Postgres::builder(version).setting("fsync", "on").start();
        let c = Capture::on(&server, TABLES, DDL);
        let running = Following::start(&c).await;
        let all = "SELECT md5(t::text) FROM a t";
        for i in 0..2 {
            write(&c.from, i);
            shapes::until_equal(&c, all, all).await;
            write(&c.from, i + 20);
            server.kill9();
            server.restart();
        }
        write(&c.from, 3);
        shapes::until_equal(&c, all, all).await;
        running.stop().await.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
    }

    /// F6: commits of servers whose clocks are years ahead or behind, as another server's have them, arrive like all others.
    async fn commits_whose_clock_jumps_arrive(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        let origin = c.from.name();
        c.from.psql(&format!("SELECT pg_replication_origin_create('{origin}')"));
        for (n, at) in ["2199-12-31Z", "1970-01-02Z", "2199-12-30Z", "2001-09-09Z"].into_iter().enumerate() {
            c.from.psql(&format!("SELECT pg_replication_origin_session_setup('{origin}');
                BEGIN; SELECT pg_replication_origin_xact_setup('0/10', '{at}'); UPDATE a SET v = v + 100 WHERE id % 3 = {n} % 3; DELETE FROM b WHERE n = {n}; COMMIT;
                SELECT pg_replication_origin_session_reset()"));
            // A BEGIN of pgoutput has its commit's time behind its place.
            let told = c.from.psql(&format!("SELECT substr(encode(data, 'hex'), 19, 16) BETWEEN '0010' AND '8' FROM pg_logical_slot_peek_binary_changes('{}', NULL, NULL,
                'proto_version', '1', 'publication_names', 'synctool') WHERE get_byte(data, 0) = ascii('B') ORDER BY lsn DESC LIMIT 1", c.options.slot));
            assert_eq!(told == "t", at.starts_with("2199"), "{at}: the log says a time after 2140");
            c.catch_up().await.unwrap_or_else(|e| panic!("{at}: {e}"));
            c.assert_equal(TABLES);
            write(&c.from, n as i32);
            c.catch_up().await.unwrap_or_else(|e| panic!("after {at}: {e}"));
            c.assert_equal(TABLES);
        }
        c.from.psql(&format!("SELECT pg_replication_origin_drop('{origin}')"));
    }

    /// F36: the end that a run goes to is within a transaction of more than one segment, which is open: nothing of it is
    /// seen, and a later run brings it whole; so does one that was stopped in it.
    async fn an_end_within_a_transaction_shows_none_of_it(version: PgVersion) {
        let mut c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        // Streamed, and peeked.
        for (from, peek) in [(10_000, None), (20_000, Some(1 << 16))] {
            c.options.catch_up_bytes = peek;
            let other = c.from.connect().await;
            // A segment is 16 MiB.
            other.batch_execute(&format!("BEGIN; INSERT INTO a SELECT i, i, repeat('s', 3000) FROM generate_series({from}, {from} + 5999) i")).await.unwrap();
            c.from.psql(&format!("UPDATE a SET v = -{from} WHERE id = 2"));
            c.catch_up().await.unwrap();
            let seen = || c.to.psql(&format!("SELECT count(*) FROM a WHERE id >= {from}"));
            assert_eq!((c.to.psql("SELECT v FROM a WHERE id = 2"), seen()), (format!("-{from}"), "0".into()));
            other.batch_execute(&format!("UPDATE a SET v = -v WHERE id >= {from} AND id % 5 = 0; COMMIT")).await.unwrap();
            let running = Following::start(&c).await;
            c.until_read().await;
            running.stop().await.unwrap();
            assert!(["0", "6000"].contains(&seen().as_str()), "{} rows are a part of it", seen());
            c.catch_up().await.unwrap();
            c.assert_equal(TABLES);
        }
    }

    /// F32: large transactions of several sessions, one among the other, end in another order than they began, and one of
    /// them in nothing; with little memory.
    async fn large_transactions_among_one_another_arrive(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        let sessions = [c.from.connect().await, c.from.connect().await, c.from.connect().await];
        for session in &sessions {
            session.batch_execute("BEGIN").await.unwrap();
        }
        for round in 0..5 {
            for (n, session) in sessions.iter().enumerate() {
                let (from, to) = (100_000 * (n + 1) + 1000 * round, 100_000 * (n + 1) + 1000 * round + 999);
                session.batch_execute(&format!("INSERT INTO a SELECT i, {n}, repeat('l', 1000) FROM generate_series({from}, {to}) i;
                    SAVEPOINT s; DELETE FROM a WHERE id BETWEEN {from} AND {to}; ROLLBACK TO s; UPDATE a SET v = 10 WHERE id BETWEEN {from} AND {to} AND id % 3 = 0;
                    INSERT INTO b SELECT 'session {n}', i, 'v' FROM generate_series({from}, {from} + 99) i")).await.unwrap();
            }
        }
        for (n, end) in [(2, "COMMIT"), (0, "ROLLBACK"), (1, "COMMIT")] {
            sessions[n].batch_execute(end).await.unwrap();
        }
        let source = c.source(LogOptions { until_now: true, queue_bytes: 1 << 20, ..c.options.clone() });
        let (engine, plan) = prepare(source.clone(), source.clone(), c.destination().await, &c.request).await.unwrap();
        let mut small = Engine::new(source, engine.destination.clone());
        small.options = Options { memory: 4 << 20, ..options() };
        Arc::new(small).follow(plan).await.unwrap();
        c.assert_equal(TABLES);
        assert_eq!(c.to.psql("SELECT count(*) FROM a WHERE id >= 100000"), "10000");
    }

    /// F58: days later the same plan goes on; F33: a message inside a transaction, then rows, then a restart.
    async fn messages_inside_transactions_do_no_harm(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        for transactional in ["true", "false"] {
            c.from.psql(&format!("BEGIN; UPDATE a SET v = -1 WHERE id = 1; SELECT pg_logical_emit_message({transactional}, 'theirs', 'x'); \
                UPDATE a SET v = -2 WHERE id = 2; SELECT pg_logical_emit_message({transactional}, 'synctool.watermark', 'low nobody:1'); DELETE FROM b WHERE n < 5; COMMIT; \
                SELECT pg_logical_emit_message(false, 'theirs', 'outside')"));
            c.catch_up().await.unwrap();
            c.assert_equal(TABLES);
            c.catch_up().await.unwrap();
        }
    }

    /// F31: prepared transactions come when they are committed, across our restarts.
    async fn prepared_transactions_come_with_their_commit(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        let gid = c.from.name().to_string();
        c.from.psql(&format!("BEGIN; UPDATE a SET v = -7 WHERE id = 3; PREPARE TRANSACTION '{gid}_1'; BEGIN; UPDATE a SET v = -8 WHERE id = 4; PREPARE TRANSACTION '{gid}_2'; UPDATE a SET v = -9 WHERE id = 5"));
        c.catch_up().await.unwrap();
        assert_eq!(c.to.psql("SELECT v FROM a WHERE id IN (3, 4, 5) ORDER BY id"), "3\n4\n-9");
        c.from.psql(&format!("COMMIT PREPARED '{gid}_1'"));
        c.from.psql(&format!("ROLLBACK PREPARED '{gid}_2'"));
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
    }

    /// A COMMIT PREPARED that waits for a synchronous standby is in the log, and in no snapshot yet: chunks wait for it.
    async fn a_commit_that_waits_for_a_standby_is_not_lost(version: PgVersion) {
        let patience = Duration::from_secs(30);
        let server = Postgres::builder(version).setting("synchronous_standby_names", "nobody").setting("synchronous_commit", "local").start();
        let c = Capture::on(&server, &["t"], "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t VALUES (1, 0)");
        c.catch_up().await.unwrap();
        c.from.psql("BEGIN; UPDATE t SET v = 1; PREPARE TRANSACTION 'waits'");
        let source = c.source(c.options.clone());
        let running = Following::of(&c, source.clone()).await;
        let other = c.from.connect().await;
        other.batch_execute("SET synchronous_commit = on").await.unwrap();
        let commit = tokio::spawn(async move { other.batch_execute("COMMIT PREPARED 'waits'").await });
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        synctool_testkit::eventually("it to wait", patience, async || c.from.psql(waiting) == "1").await;
        synctool_testkit::eventually("the log to show it", patience, async || c.to.psql("SELECT v FROM t") == "1").await;
        let next = || c.from.psql("SELECT txid_snapshot_xmax(txid_current_snapshot())").parse::<u64>().unwrap();
        let before = next();
        source.steering().requests().ask(Request {
            id: "again".into(),
            wish: Wish::Read(Pending::resync(TableId::new("public", "t"))),
        });
        // Each time has two marks.
        synctool_testkit::eventually("the chunk to be read again and again", patience, async || next() > before + 6).await;
        c.from.psql("SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        commit.await.unwrap().unwrap();
        synctool_testkit::eventually("the end of it", patience, async || source.steering().requests().left() == 0).await;
        c.from.psql("INSERT INTO t VALUES (2, 2)");
        shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
        running.stop().await.unwrap();
    }

    /// F28 (bounded): one transaction far larger than the memory for rows.
    async fn a_huge_transaction_arrives_whole(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        c.from.psql("BEGIN; INSERT INTO a SELECT i, i, repeat('h', 500) FROM generate_series(100000, 180000) i; UPDATE a SET v = -v WHERE id % 10 = 0; DELETE FROM a WHERE id % 3 = 0; COMMIT");
        let source = c.source(LogOptions { until_now: true, queue_bytes: 1 << 20, ..c.options.clone() });
        let destination = c.destination().await;
        let (engine, plan) = prepare(source.clone(), source.clone(), destination, &c.request).await.unwrap();
        let mut small = Engine::new(source, engine.destination.clone());
        small.options = Options { memory: 8 << 20, ..options() };
        Arc::new(small).follow(plan).await.unwrap();
        c.assert_equal(TABLES);
    }

    /// F45: a row beyond the limit is refused by name, and comes once the limit allows it.
    async fn a_giant_row_is_refused_without_loss(version: PgVersion) {
        let c = Capture::new(version, TABLES, DDL);
        c.catch_up().await.unwrap();
        c.from.psql("UPDATE a SET v = 100 WHERE id = 1; INSERT INTO a VALUES (77777, 1, repeat('g', 3000000)); UPDATE a SET v = 200 WHERE id = 2");
        let source = c.source(LogOptions { until_now: true, ..c.options.clone() });
        let (engine, plan) = prepare(source.clone(), source.clone(), c.destination().await, &c.request).await.unwrap();
        let mut small = Engine::new(source, engine.destination.clone());
        small.options = Options { max_row_bytes: 1 << 20, ..options() };
        let e = Arc::new(small).follow(plan).await.unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::ROW_TOO_LARGE, "{e}");
        c.catch_up().await.unwrap();
        c.assert_equal(TABLES);
    }
}
