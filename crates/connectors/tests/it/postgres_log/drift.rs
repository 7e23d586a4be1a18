//! What becomes of a log when its tables get other columns, by policy: live, in mid-transaction, and while nobody follows.

use super::*;
use synctool_connectors::postgres::log::Drift;
use synctool_core::error::code;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b int NOT NULL, c int NOT NULL); INSERT INTO t SELECT i, 'a' || i, i, i FROM generate_series(1, 50) i";

fn following(version: PgVersion, drift: Drift) -> Capture {
    let mut c = Capture::new(version, &["t"], T);
    c.options.drift = drift;
    c
}

/// Waits until these columns are equal at both ends, whichever way the log is followed.
pub(super) async fn until_same(c: &Capture, running: Option<&Following>, columns: &str) {
    if running.is_none() {
        c.catch_up().await.unwrap();
    }
    let all = format!("SELECT {columns} FROM t ORDER BY id");
    let wanted = c.from.psql(&all);
    let patience = Duration::from_secs(if running.is_some() { 60 } else { 1 });
    synctool_testkit::eventually("both ends to be equal", patience, async || match c.to.try_psql(&all) {
        Ok(found) if found == wanted => Ok(()),
        Ok(found) => Err(format!("{found}\nis not\n{wanted}")),
        Err(e) => Err(e.to_string()),
    })
    .await;
}

on_servers! {
    /// F46: a column that widens, one that goes and one that comes, in one transaction with rows of each shape.
    async fn an_evolving_log_follows(version: PgVersion) {
        for down in [true, false] {
            let mut c = following(version, Drift::Evolve);
            c.catch_up().await.unwrap();
            let running = match down {
                true => None,
                false => Some(Following::start(&c).await),
            };
            c.from.psql("BEGIN; UPDATE t SET b = -1, c = 1000 WHERE id = 1; INSERT INTO t VALUES (99, 'narrow', 5, 7); ALTER TABLE t ALTER b TYPE bigint; INSERT INTO t VALUES (100, 'wide', 5000000000, 7); \
                ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (101, 'without', 6000000000); ALTER TABLE t ADD COLUMN d numeric(8,2) DEFAULT 1.5; \
                INSERT INTO t VALUES (102, 'with', 7, 2.5); COMMIT");
            c.from.psql("UPDATE t SET a = 'later', d = 3 WHERE id = 2; DELETE FROM t WHERE id = 3");
            until_same(&c, running.as_ref(), "id, a, b, d").await;
            let kept = c.to.psql("SELECT c FROM t WHERE id = 5");
            assert!(kept == "5" || kept.is_empty(), "a column that is gone keeps its value or has none, not another: {kept}");
            if let Some(running) = running {
                running.stop().await.unwrap();
            }
            // What was followed once needs no policy any more, nor another comparison.
            c.options.drift = Drift::Added;
            let before = c.catch_up().await.unwrap();
            c.from.psql("UPDATE t SET b = b + 8000000000 WHERE id IN (6, 100); INSERT INTO t VALUES (103, 'n', 1, 1)");
            until_same(&c, None, "id, a, b, d").await;
            let after = c.catch_up().await.unwrap();
            assert_eq!(after.accounts.written.rows - before.accounts.written.rows, 3);
        }
    }

    /// Times that get more digits of a second: the destination's column gets them, too, before a value needs them.
    async fn times_that_get_more_digits_are_followed(version: PgVersion) {
        for down in [true, false] {
            let made = "CREATE TABLE t (id int PRIMARY KEY, at timestamp(0), o time(3)); INSERT INTO t VALUES (1, '2026-01-01', '10:00')";
            let mut c = Capture::new(version, &["t"], made);
            c.options.drift = Drift::Evolve;
            c.catch_up().await.unwrap();
            let running = match down {
                true => None,
                false => Some(Following::start(&c).await),
            };
            c.from.psql("BEGIN; INSERT INTO t VALUES (2, '2026-01-02', '11:00:00.5'); ALTER TABLE t ALTER at TYPE timestamp, ALTER o TYPE time; \
                INSERT INTO t VALUES (3, '2026-01-03 00:00:00.123456', '12:00:00.000001'); COMMIT");
            until_same(&c, running.as_ref(), "id, at, o").await;
            if let Some(running) = running {
                running.stop().await.unwrap();
            }
            let types = "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute \
                WHERE attrelid = 't'::regclass AND attname IN ('at', 'o')";
            assert_eq!(c.to.psql(types), "timestamp without time zone, time without time zone");
            c.from.psql("INSERT INTO t VALUES (4, '2026-01-04 00:00:00.5', '13:00:00.25')");
            until_same(&c, None, "id, at, o").await;
        }
    }

    /// A table that is read again while its columns change gives the values that it has.
    async fn chunks_beside_changes_of_columns_end_equal(version: PgVersion) {
        let mut c = following(version, Drift::Evolve);
        c.options.chunk_rows = 7;
        c.catch_up().await.unwrap();
        let source = c.source(c.options.clone());
        source.steering().requests().pause(synctool_core::backfill::Pause::Chunks);
        source.steering().requests().ask(synctool_core::backfill::Request {
            id: "again".into(),
            wish: synctool_core::backfill::Wish::Read(synctool_core::backfill::Pending::resync(TableId::new("public", "t"))),
        });
        let running = Following::of(&c, source.clone()).await;
        c.from.psql("UPDATE t SET b = 0 WHERE id = 4; ALTER TABLE t ALTER b TYPE bigint; ALTER TABLE t DROP COLUMN c");
        source.steering().requests().pause(synctool_core::backfill::Pause::None);
        c.from.psql("UPDATE t SET b = 9000000000 WHERE id = 40");
        until_same(&c, Some(&running), "id, a, b").await;
        running.stop().await.unwrap();
    }

    /// A row that comes beside a chunk of a re-sync stays, also where its table lost a column.
    async fn a_row_beside_a_chunk_of_a_table_that_lost_a_column_stays(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, a text, c int);
            INSERT INTO t SELECT i, 'a' || i, i FROM generate_series(1, 50) i");
        c.options.drift = Drift::Evolve;
        c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (51, 'without')");
        until_same(&c, None, "id, a").await;
        c.to.psql("UPDATE t SET a = 'wrong' WHERE id = 1");
        let source = c.source(c.options.clone());
        source.steering().requests().ask(synctool_core::backfill::Request {
            id: "again".into(),
            wish: synctool_core::backfill::Wish::Read(synctool_core::backfill::Pending::resync(TableId::new("public", "t"))),
        });
        let following = c.while_a_chunk_of(source, "INSERT INTO t VALUES (60, 'beside')").await;
        // The chunk that mends the one is the one that could take the other away.
        synctool_testkit::eventually("the chunk to be written", Duration::from_secs(60), async || {
            c.to.psql("SELECT a FROM t WHERE id = 1") == "a1"
        })
        .await;
        assert_eq!(c.to.psql("SELECT a FROM t WHERE id = 60"), "beside");
        following.stop().await.unwrap();
        until_same(&c, None, "id, a").await;
    }

    /// New columns stay behind, in every way to meet them; they are compared when they may come.
    async fn a_new_column_that_is_discarded_stays_behind(version: PgVersion) {
        for down in [true, false] {
            let mut c = following(version, Drift::Discard);
            c.catch_up().await.unwrap();
            let running = match down {
                true => None,
                false => Some(Following::start(&c).await),
            };
            c.from.psql("BEGIN; UPDATE t SET a = 'first' WHERE id = 1; ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = id WHERE id < 9; COMMIT");
            c.from.psql("UPDATE t SET a = 'second', x = -1 WHERE id = 2; ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (90, 'n', 1)");
            until_same(&c, running.as_ref(), "id, a, b").await;
            if let Some(running) = running {
                running.stop().await.unwrap();
            }
            assert!(c.to.try_psql("SELECT x FROM t").is_err(), "it stays behind");
            c.from.psql("UPDATE t SET a = 'third' WHERE id = 3");
            until_same(&c, None, "id, a, b").await;
            c.options.drift = Drift::Evolve;
            c.from.psql("ALTER TABLE t RENAME x TO y; UPDATE t SET a = 'fourth' WHERE id = 4");
            until_same(&c, None, "id, a, b, y").await;
        }
    }

    /// It ends before the first row of another shape, and nothing of that transaction is seen.
    async fn a_frozen_log_and_a_waiting_one_end_before_other_columns(version: PgVersion) {
        for (policy, (drift, wanted)) in [(Drift::Freeze, code::SCHEMA_MISMATCH), (Drift::Pause, code::REFUSED)].into_iter().enumerate() {
            for (n, (ddl, says)) in [
                ("ALTER TABLE t ADD COLUMN x int DEFAULT 5", "x (integer) is new"),
                ("ALTER TABLE t DROP COLUMN c", "c is gone"),
                ("ALTER TABLE t ALTER b TYPE bigint", "b was integer and is bigint"),
                ("ALTER TABLE t RENAME c TO z", "c is called z"),
            ].into_iter().enumerate() {
                // Each change by one policy on one server, and by the other on the other.
                if !has(version, policy + n) {
                    continue;
                }
                let mut c = following(version, drift);
                c.catch_up().await.unwrap();
                c.from.psql("UPDATE t SET a = 'before' WHERE id = 1");
                c.from.psql(&format!("BEGIN; INSERT INTO t VALUES (60, 'mid', 1, 1); {ddl}; UPDATE t SET a = 'mid' WHERE id = 2; COMMIT"));
                for _ in 0..2 {
                    let e = c.catch_up().await.unwrap_err();
                    assert_eq!(e.code(), wanted, "{ddl}: {e}");
                    assert!(e.message().contains(says), "{ddl}: {e}");
                    assert!(e.next_step().is_some_and(|n| n.contains("--accept-schema")), "{ddl}: {e}");
                }
                assert_eq!(c.to.psql("SELECT count(*) FROM t WHERE a = 'mid'"), "0", "{ddl}");
                // Accepted once, it goes on, and stays accepted.
                c.options.drift = Drift::Evolve;
                let columns = match ddl.contains("ADD") {
                    true => "id, a, b, x",
                    false => "id, a, b",
                };
                until_same(&c, None, columns).await;
                c.options.drift = drift;
                c.from.psql("UPDATE t SET a = 'after' WHERE id = 7");
                until_same(&c, None, columns).await;
            }
        }
    }

    /// What an evolving destination cannot follow is refused by name.
    async fn what_does_not_widen_is_refused(version: PgVersion) {
        for (ddl, says) in [
            ("ALTER TABLE t ALTER a TYPE int USING 1", "column a was"),
            ("ALTER TABLE t ALTER b TYPE smallint", "column b was"),
            ("ALTER TABLE t DROP COLUMN id", "column id is gone"),
        ] {
            let c = following(version, Drift::Evolve);
            c.catch_up().await.unwrap();
            c.from.psql(&format!("ALTER TABLE t REPLICA IDENTITY FULL; {ddl}; INSERT INTO t SELECT * FROM t WHERE b = 3 AND false"));
            c.from.psql("UPDATE t SET c = 5 WHERE b = 1");
            let e = c.catch_up().await.unwrap_err();
            assert!(e.message().contains(says), "{ddl}: {e}");
        }
    }
}
