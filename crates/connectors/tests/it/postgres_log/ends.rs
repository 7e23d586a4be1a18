//! Ends: slots, publications and servers that are not what the position says; and what repairs them.

use super::*;
use synctool_core::error::{ErrorKind, code};

const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 200) i";
const GAP: &str = "DELETE FROM t WHERE id % 10 = 0; UPDATE t SET a = 'gap' WHERE id % 10 = 1; INSERT INTO t SELECT i, 'new' FROM generate_series(1000, 1010) i";

/// The log is refused with this code, nothing is written, and a repair makes both ends equal, deletes included.
async fn refused_and_repaired(c: &mut Capture, wanted: &'static synctool_core::error::Code) {
    let before = c.to.psql("SELECT sum(hashtext(t::text)) FROM t");
    let e = c.catch_up().await.unwrap_err();
    assert_eq!(e.code(), wanted, "{e}");
    assert_eq!(e.kind(), ErrorKind::Refused);
    assert!(e.next_step().is_some_and(|h| h.contains("--repair")), "{e}");
    assert_eq!(
        c.to.psql("SELECT sum(hashtext(t::text)) FROM t"),
        before,
        "nothing may be written"
    );
    c.options.repair = Repair::once(true);
    c.catch_up().await.unwrap();
    c.assert_equal(&["t"]);
    c.options.repair = Repair::once(false);
    c.from.psql("INSERT INTO t VALUES (-1, 'after')");
    c.catch_up().await.unwrap();
    c.assert_equal(&["t"]);
}

on_servers! {
    /// What a repair was allowed for one gap does not hold for the next one of the same process.
    async fn a_repair_is_allowed_once(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        let drop = format!("SELECT pg_drop_replication_slot('{}'); {GAP}", c.options.slot);
        c.from.psql(&drop);
        // Both runs share what their process was allowed.
        c.options.repair = Repair::once(true);
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        c.from.psql(&drop.replace("1000, 1010", "2000, 2010"));
        let e = c.catch_up().await.unwrap_err();
        assert_eq!((e.code(), e.kind()), (code::LOG_LOST, ErrorKind::Refused), "{e}");
    }

    /// F12.
    async fn a_slot_that_is_gone(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{}'); {GAP}", c.options.slot));
        refused_and_repaired(&mut c, code::LOG_LOST).await;
    }

    /// F12, F46: a column came while nothing of the log was kept: its values come with the repair.
    async fn a_column_that_came_in_the_gap(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{}'); {GAP}; ALTER TABLE t ADD COLUMN n int, ADD COLUMN twice int GENERATED ALWAYS AS (id * 2) STORED; UPDATE t SET n = id", c.options.slot));
        c.options.repair = Repair::once(true);
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        c.options.repair = Repair::once(false);
        c.from.psql("INSERT INTO t VALUES (-1, 'after', 3); UPDATE t SET n = 4 WHERE id = 2");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// F12, F46: a column that came after the plan, and is called otherwise by now, keeps the destination's name and its values.
    async fn a_later_column_keeps_its_name_over_a_repair(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t ADD COLUMN n text DEFAULT 'filled'; UPDATE t SET n = a WHERE id < 9");
        c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t RENAME n TO m; UPDATE t SET m = 'renamed' WHERE id = 1");
        c.catch_up().await.unwrap();
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{}'); {GAP}", c.options.slot));
        c.options.repair = Repair::once(true);
        c.catch_up().await.unwrap();
        c.from.psql("UPDATE t SET m = 'later' WHERE id = 3");
        c.catch_up().await.unwrap();
        let rows = |column: &str| format!("SELECT string_agg(concat_ws(' ', id, a, {column}), ',' ORDER BY id) FROM t");
        assert_eq!(c.to.psql(&rows("n")), c.from.psql(&rows("m")));
        let columns = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0";
        assert_eq!(c.to.psql(columns).trim(), "id a n");
    }

    /// F14 (a newer point).
    async fn a_slot_that_was_made_again(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        let slot = c.options.slot.clone();
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{slot}'); {GAP}"));
        c.from.psql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        refused_and_repaired(&mut c, code::LOG_SKIPPED).await;
    }

    /// F14 (an older point): nothing is missing, and nothing comes twice.
    async fn a_slot_that_is_older_than_the_position(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let slot = c.options.slot.clone();
        c.catch_up().await.unwrap();
        c.from.psql(&format!("SELECT pg_copy_logical_replication_slot('{slot}', '{slot}_old')"));
        c.from.psql("ALTER TABLE t ADD COLUMN n int");
        c.from.psql("INSERT INTO t VALUES (500, 'once', 1); UPDATE t SET n = coalesce(n, 0) + 1");
        c.catch_up().await.unwrap();
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{slot}'); SELECT pg_copy_logical_replication_slot('{slot}_old', '{slot}'); SELECT pg_drop_replication_slot('{slot}_old')"));
        let before = c.catch_up().await.unwrap();
        c.from.psql("DELETE FROM t WHERE id = 500");
        let after = c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(after.accounts.written.rows - before.accounts.written.rows, 1, "what was read once does not come again");
    }

    /// F15, F16 (the position behind confirmed_flush).
    async fn a_slot_that_was_moved_by_hand(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(GAP);
        c.from.psql(&format!("SELECT pg_replication_slot_advance('{}', pg_current_wal_lsn())", c.options.slot));
        refused_and_repaired(&mut c, code::LOG_SKIPPED).await;
    }

    /// F16 (the position ahead of confirmed_flush): the last feedback was lost.
    async fn a_position_ahead_of_the_slot_goes_on(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(GAP);
        c.catch_up().await.unwrap();
        c.from.psql("INSERT INTO t VALUES (2000, 'x')");
        let ledger = c.catch_up().await.unwrap();
        let again = c.catch_up().await.unwrap();
        assert_eq!(again.accounts.written.rows, ledger.accounts.written.rows, "nothing comes twice");
        c.assert_equal(&["t"]);
    }

    /// F13: the log was removed because the slot held too much.
    async fn a_slot_that_the_server_gave_up(version: PgVersion) {
        let server = Postgres::builder(version).setting("max_slot_wal_keep_size", "1MB").setting("max_wal_size", "32MB").setting("min_wal_size", "32MB").start();
        let mut c = Capture::on(&server, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(GAP);
        synctool_testkit::wait_for("the slot to be lost", Duration::from_secs(60), || {
            c.from.psql("CREATE TABLE IF NOT EXISTS waste (t text); INSERT INTO waste SELECT repeat(md5(i::text), 100) FROM generate_series(1, 3000) i; TRUNCATE waste; SELECT pg_switch_wal(); CHECKPOINT");
            c.from.psql("SELECT wal_status FROM pg_replication_slots") == "lost"
        });
        refused_and_repaired(&mut c, code::LOG_LOST).await;
    }

    /// F17: somebody else reads the slot; once they are gone, the log goes on.
    async fn a_slot_that_somebody_else_reads(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql(GAP);
        let slot = c.options.slot.clone();
        let reading = || {
            let mut command = std::process::Command::new(Postgres::shared(version).tool("pg_recvlogical"));
            let options = format!("-d {} --slot {slot} --start --no-loop -o proto_version=1 -o publication_names=synctool -s 0 -F 0 -f /dev/null", c.from.url());
            let child = command.args(options.split(' ')).stderr(std::process::Stdio::null()).spawn().unwrap();
            synctool_testkit::wait_for("the slot to be read", Duration::from_secs(30), || {
                c.from.psql(&format!("SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}'")) == "t"
            });
            child
        };
        let end = |mut child: std::process::Child| {
            child.kill().unwrap();
            child.wait().unwrap();
        };
        let reader = reading();
        let source = c.source(c.options.clone());
        let destination = c.destination().await;
        let (_, plan) = prepare(source.clone(), source.clone(), destination.clone(), &c.request).await.unwrap();
        let position = destination.checkpoint(&plan).await.unwrap().into_values().next().unwrap().position;
        let opened = source.open(&plan.tables[0].read, &LogSource::partition(), position.as_ref(), &synctool_core::source::ReadContext::default()).await;
        let Err(e) = opened else { panic!("two read one slot") };
        assert_eq!(e.code(), code::CONFLICT, "{e}");
        assert!(e.message().contains("read by another session (pid") && e.kind().is_transient(), "{e}");
        // Who waits gets it as soon as it is free; what the other one read is not lost, as it confirmed nothing.
        let (done, ()) = tokio::join!(c.catch_up(), async { end(reader) });
        done.unwrap();
        c.assert_equal(&["t"]);
    }

    /// F25: another cluster, and another database, behind the same address.
    async fn another_server_or_database(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        let server = Postgres::start(version);
        let other = server.database("other");
        other.psql(T);
        c.url = other.url();
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), code::LOG_OTHER_SERVER, "{e}");
        let second = Postgres::shared(version).database("second");
        second.psql(T);
        c.url = second.url();
        assert_eq!(c.catch_up().await.unwrap_err().code(), code::LOG_OTHER_SERVER);
        // Meant so (an upgrade): a repair goes on there.
        other.psql("DELETE FROM t WHERE id < 20");
        c.url = other.url();
        c.options.repair = Repair::once(true);
        c.catch_up().await.unwrap();
        assert_eq!(c.to.psql("SELECT count(*) FROM t"), "181");
    }

    /// What was set up wrong is said with the statement that rights it.
    async fn wrong_slots_and_publications(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        let slot = c.options.slot.clone();
        let refused = async |c: &Capture, says: &str| {
            let e = c.catch_up().await.unwrap_err();
            assert_eq!(e.code(), code::LOG_SETUP, "{e}");
            assert!(e.message().contains(says) && e.next_step().is_some(), "{says}: {e}");
        };
        c.options.create = false;
        refused(&c, "does not exist").await;
        c.from.psql("CREATE PUBLICATION synctool FOR TABLE t WITH (publish = 'insert, update')");
        refused(&c, "leaves out some kinds").await;
        c.from.psql("ALTER PUBLICATION synctool SET (publish = 'insert, update, delete, truncate'); CREATE TABLE t2 (id int PRIMARY KEY); ALTER PUBLICATION synctool SET TABLE t2");
        refused(&c, "does not have public.t").await;
        c.from.psql("ALTER PUBLICATION synctool SET TABLE t");
        refused(&c, "slot").await;
        c.options.create = true;
        c.from.psql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'test_decoding')"));
        refused(&c, "test_decoding").await;
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_physical_replication_slot('{slot}')"));
        refused(&c, "physical").await;
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{slot}'); SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput', false, true)"));
        refused(&c, "two_phase").await;
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
        c.to.psql(&format!("SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"));
        refused(&c, "of database").await;
        c.to.psql(&format!("SELECT pg_drop_replication_slot('{slot}')"));
        c.from.psql("CREATE ROLE nobody_special LOGIN; GRANT ALL ON t TO nobody_special");
        let good = std::mem::replace(&mut c.url, c.from.url_as("nobody_special"));
        assert_eq!(c.catch_up().await.unwrap_err().code(), code::PERMISSION);
        c.from.psql("DROP OWNED BY nobody_special; DROP ROLE nobody_special");
        c.url = good;
        c.options.slot = "Not-A-Slot".into();
        assert!(database(&c.url).log(c.options.clone()).is_err());
    }

    async fn a_server_without_logical_log(version: PgVersion) {
        let server = Postgres::builder(version).setting("wal_level", "replica").start();
        let c = Capture::on(&server, &["t"], T);
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), code::LOG_SETUP, "{e}");
        assert!(e.next_step().is_some_and(|h| h.contains("wal_level")), "{e}");
    }

    /// F19, F20: a database in which nothing happens lets the server forget what others write; by keep-alives alone,
    /// and by heartbeats.
    async fn an_idle_database_holds_no_log(version: PgVersion) {
        for heartbeat in [None, Some(Duration::from_millis(100))] {
            let mut c = Capture::new(version, &["t"], T);
            c.options.heartbeat = heartbeat;
            c.options.status_interval = Duration::from_millis(200);
            let running = Following::start(&c).await;
            shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
            // Other people's traffic, in another database.
            c.to.psql("CREATE TABLE busy (t text); INSERT INTO busy SELECT repeat(md5(i::text), 30) FROM generate_series(1, 5000) i");
            let there = c.to.psql("SELECT pg_current_wal_lsn()");
            synctool_testkit::eventually("the slot to move on", Duration::from_secs(30), async || {
                c.from.psql(&format!("SELECT '{}'::pg_lsn >= '{there}'::pg_lsn", c.confirmed())) == "t"
            })
            .await;
            running.stop().await.unwrap();
            c.catch_up().await.unwrap();
        }
    }
}

on_servers! {
    /// F20: the same database is busy with a table that nobody follows: its log is not kept.
    async fn a_busy_table_that_nobody_follows_holds_no_log(version: PgVersion) {
        for heartbeat in [None, Some(Duration::from_millis(100))] {
            let mut c = Capture::new(version, &["t"], &format!("{T}; CREATE TABLE busy (t text)"));
            c.options.heartbeat = heartbeat;
            c.options.status_interval = Duration::from_millis(200);
            let running = Following::start(&c).await;
            shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
            for _ in 0..5 {
                c.from.psql("INSERT INTO busy SELECT repeat(md5(i::text), 30) FROM generate_series(1, 2000) i; DELETE FROM busy");
            }
            let there = c.from.psql("SELECT pg_current_wal_lsn()");
            synctool_testkit::eventually("the slot to move on", Duration::from_secs(60), async || {
                c.from.psql(&format!("SELECT '{}'::pg_lsn >= '{there}'::pg_lsn", c.confirmed())) == "t"
            })
            .await;
            c.from.psql("UPDATE t SET a = 'after' WHERE id = 5");
            shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
            running.stop().await.unwrap();
        }
    }
}

/// F13: the log was given up because nobody read it for a while (18).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_was_idle_for_too_long() {
    let server = Postgres::builder(PgVersion::V18)
        .setting("idle_replication_slot_timeout", "1s")
        .start();
    let mut c = Capture::on(&server, &["t"], T);
    c.catch_up().await.unwrap();
    c.from.psql(GAP);
    synctool_testkit::wait_for("the slot to be given up", Duration::from_secs(60), || {
        c.from.psql("SELECT pg_switch_wal(); CHECKPOINT");
        c.from.psql("SELECT invalidation_reason FROM pg_replication_slots") == "idle_timeout"
    });
    refused_and_repaired(&mut c, code::LOG_LOST).await;
}
