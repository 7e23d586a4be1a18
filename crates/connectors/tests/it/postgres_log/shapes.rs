//! Shapes: tables that are altered, renamed, dropped and made again while their log is followed.

use super::*;
use synctool_connectors::postgres::log::Drift;
use synctool_core::error::code;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text, b int); INSERT INTO t SELECT i, 'a' || i, i FROM generate_series(1, 50) i";

on_servers! {
    /// F46: a column that goes while chunks are still to be read is told at once, not tried for ever; one that gets
    /// another name is read by it.
    async fn columns_that_change_before_a_chunk(version: PgVersion) {
        async fn altered(version: PgVersion, made: &str, ddl: &str) -> (Capture, Following) {
            let c = Capture::new(version, &["t"], made);
            let source = c.source(c.options.clone());
            source.steering().requests().pause(Pause::Chunks);
            let following = Following::of(&c, source.clone()).await;
            c.until_read().await;
            c.from.psql(ddl);
            source.steering().requests().pause(Pause::None);
            (c, following)
        }
        let (c, following) = altered(version, T, "ALTER TABLE t RENAME COLUMN a TO renamed").await;
        until_equal(&c, "SELECT id, renamed FROM t", "SELECT id, a FROM t").await;
        following.stop().await.unwrap();

        // The publication's filter names it, too.
        let made = format!("{T}; CREATE PUBLICATION synctool FOR TABLE t WHERE (id > 25)");
        let (c, following) = altered(version, &made, "ALTER TABLE t RENAME COLUMN id TO no").await;
        until_equal(&c, "SELECT no, a, b FROM t WHERE no > 25", "SELECT id, a, b FROM t").await;
        following.stop().await.unwrap();

        let (_c, following) = altered(version, T, "ALTER TABLE t DROP COLUMN b").await;
        let ended = tokio::time::timeout(Duration::from_secs(30), following.task).await;
        let e = ended.expect("it does not go on for ever").unwrap().unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
        assert!(e.to_string().contains("column b is gone") && e.next_step().is_some(), "{e}");
    }

    /// A chunk that waits for a statement that writes all rows anew: to its snapshot they are not there, and they are not
    /// lost, whether the table is loaded or compared.
    async fn a_table_that_is_written_anew_before_a_chunk_keeps_its_rows(version: PgVersion) {
        for compared in [false, true] {
            let c = Capture::new(version, &["t"], T);
            if compared {
                c.to.psql(&format!("{T}; UPDATE t SET a = 'other'"));
            }
            let following = c.while_a_chunk_waits("ALTER TABLE t ALTER b TYPE int USING b + 0").await;
            until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
            following.stop().await.unwrap();
        }
    }

    /// F46 (add, in one transaction with rows, and while we are down), F47 (defaults of rows that nobody touched).
    async fn new_columns_are_followed_with_their_defaults(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("BEGIN; INSERT INTO t VALUES (100, 'before', 1); ALTER TABLE t ADD COLUMN x numeric(8,2) DEFAULT 1.50; \
            INSERT INTO t VALUES (101, 'after', 2, 3.25); ALTER TABLE t ADD COLUMN y timestamptz; UPDATE t SET y = '2026-01-01Z' WHERE id = 5; COMMIT");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        // A run that begins after the columns came knows them, and does not read the table again.
        c.from.psql("UPDATE t SET x = 9 WHERE id = 6; INSERT INTO t (id, x) VALUES (102, 7)");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        let ledger = c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t ADD COLUMN z text; UPDATE t SET z = 'zz' WHERE id = 7; DELETE FROM t WHERE id = 8");
        let next = c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(next.accounts.written.rows - ledger.accounts.written.rows, 2, "a column without a default needs no reading again");
    }

    /// F46 (rename): the destination's column keeps its name and goes on.
    async fn renamed_columns_and_tables_go_on(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("UPDATE t SET b = 0 WHERE id = 1; ALTER TABLE t RENAME b TO c; UPDATE t SET c = 1000 WHERE id = 2; INSERT INTO t VALUES (60, 'n', 6)");
        c.catch_up().await.unwrap();
        let same = |c: &Capture, from: &str| {
            let wanted = c.from.psql(&format!("SELECT id, a, c FROM {from} ORDER BY id"));
            assert_eq!(c.to.psql("SELECT id, a, b FROM t ORDER BY id"), wanted);
        };
        same(&c, "t");
        // The table's own name, too: it is followed by its number as long as a run lasts.
        let running = Following::start(&c).await;
        c.from.psql("UPDATE t SET c = -1 WHERE id = 3");
        until_equal(&c, "SELECT id, a, c FROM t", "SELECT id, a, b FROM t").await;
        c.from.psql("ALTER TABLE t RENAME TO u; UPDATE u SET c = -2 WHERE id = 4");
        until_equal(&c, "SELECT id, a, c FROM u", "SELECT id, a, b FROM t").await;
        running.stop().await.unwrap();
        same(&c, "u");
    }

    /// F46 (drop, type change): what a destination cannot follow is said, and nothing is lost.
    async fn what_cannot_be_followed_is_refused(version: PgVersion) {
        for (ddl, named) in [("ALTER TABLE t DROP COLUMN b", "b"), ("ALTER TABLE t ALTER b TYPE text", "b")] {
            let c = Capture::new(version, &["t"], T);
            c.catch_up().await.unwrap();
            c.from.psql(&format!("UPDATE t SET a = 'kept' WHERE id = 1; {ddl}; UPDATE t SET a = 'later' WHERE id = 2"));
            for _ in 0..2 {
                let e = c.catch_up().await.unwrap_err();
                assert_eq!(e.code(), code::UNSUPPORTED, "{ddl}: {e}");
                assert!(e.message().contains(named), "{ddl}: {e}");
            }
            // Dropped and added again under the same name, but filled anew: the rows differ, and nobody is misled.
            if ddl.contains("DROP") {
                c.from.psql("ALTER TABLE t ADD COLUMN b int");
                assert_eq!(c.catch_up().await.unwrap_err().code(), code::UNSUPPORTED);
            }
        }
    }

    /// F46: a column that is dropped and made again under the same name and type is another one, and so are its values,
    /// whether a later row tells of it or not.
    async fn a_column_that_is_made_again_is_read_again(version: PgVersion) {
        let again = "ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD COLUMN b int";
        let filled = "ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD COLUMN b int DEFAULT 3";
        let renamed = "ALTER TABLE t RENAME b TO was; ALTER TABLE t ADD COLUMN b int";
        let swapped = "ALTER TABLE t ADD COLUMN w int; UPDATE t SET w = -id; ALTER TABLE t RENAME b TO v; ALTER TABLE t RENAME w TO b; ALTER TABLE t RENAME v TO w";
        let cases = [(again, true), (filled, true), (renamed, true), (swapped, true), (filled, false), (again, false)];
        for (n, (ddl, later)) in cases.into_iter().enumerate() {
            if !has(version, n) {
                continue;
            }
            let c = Capture::new(version, &["t"], T);
            c.catch_up().await.unwrap();
            c.from.psql(&format!("UPDATE t SET a = 'unread', b = -1 WHERE id = 1; {ddl}"));
            if later {
                c.from.psql("UPDATE t SET b = 7 WHERE id = 3; INSERT INTO t (id, b) VALUES (70, 70)");
            }
            let ledger = c.catch_up().await.unwrap_or_else(|e| panic!("down, {ddl}: {e}"));
            c.assert_equal(&["t"]);
            // It is known by now.
            c.from.psql("UPDATE t SET a = 'after' WHERE id = 4");
            let next = c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
            assert_eq!(next.accounts.written.rows - ledger.accounts.written.rows, 1, "{ddl}: read again once");
            if ddl == swapped {
                continue;
            }
            let running = Following::start(&c).await;
            c.from.psql("UPDATE t SET b = 8 WHERE id = 9");
            until_equal(&c, "SELECT id, a, b FROM t", "SELECT id, a, b FROM t").await;
            c.from.psql(&ddl.replace("was", "was2"));
            c.from.psql("UPDATE t SET b = 7 WHERE id = 3; INSERT INTO t (id, b) VALUES (71, 71)");
            until_equal(&c, "SELECT id, a, b FROM t", "SELECT id, a, b FROM t").await;
            running.stop().await.unwrap();
            c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
        }
    }

    /// The same of a column that came while the log was followed.
    async fn a_later_column_that_is_made_again_is_read_again(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = id");
        c.catch_up().await.unwrap();
        for later in ["UPDATE t SET x = 7 WHERE id = 3", ""] {
            c.from.psql(&format!("ALTER TABLE t DROP COLUMN x; ALTER TABLE t ADD COLUMN x int; {later}"));
            c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
        }
    }

    /// A later column that went is another one when it comes again: the destination has the values of the one before.
    async fn a_later_column_that_comes_again_has_its_own_values(version: PgVersion) {
        for (n, (again, live)) in [("x int", false), ("x int DEFAULT 7", false), ("x int", true)].into_iter().enumerate() {
            if !has(version, n) {
                continue;
            }
            let c = Capture::new(version, &["t"], T);
            c.catch_up().await.unwrap();
            c.from.psql("ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = 1");
            c.catch_up().await.unwrap();
            for a in ["gone", "still"] {
                c.from.psql(&format!("ALTER TABLE t DROP COLUMN IF EXISTS x; UPDATE t SET a = '{a}' WHERE id = 1"));
                c.catch_up().await.unwrap();
            }
            let running = match live {
                true => Some(Following::start(&c).await),
                false => None,
            };
            if live {
                c.until_read().await;
            }
            c.from.psql(&format!("ALTER TABLE t ADD COLUMN {again}; UPDATE t SET a = 'again' WHERE id = 2"));
            match running {
                Some(running) => {
                    until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
                    running.stop().await.unwrap();
                }
                None => {
                    c.catch_up().await.unwrap();
                    c.assert_equal(&["t"]);
                }
            }
        }
    }

    /// A column that came later keeps the name that it has at the destination, whatever it is called at the source, and
    /// however often that changed unseen.
    async fn a_later_column_that_is_renamed_goes_on(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = id");
        c.catch_up().await.unwrap();
        let same = |name: &str, case: &str| {
            let wanted = c.from.psql(&format!("SELECT id, a, b, {name} FROM t ORDER BY id"));
            assert_eq!(c.to.psql("SELECT id, a, b, x FROM t ORDER BY id"), wanted, "{case}");
            let columns = "SELECT count(*) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped";
            assert_eq!(c.to.psql(columns), "4", "{case}: no other column came");
        };
        c.from.psql("ALTER TABLE t RENAME x TO y; UPDATE t SET y = 7 WHERE id = 3");
        c.catch_up().await.unwrap();
        same("y", "renamed");
        c.from.psql("UPDATE t SET y = 8 WHERE id = 4; INSERT INTO t VALUES (70, 'n', 1, 2)");
        c.catch_up().await.unwrap();
        same("y", "another run");
        // Names that the catalog does not know any more when they are read.
        c.from.psql("UPDATE t SET y = 9 WHERE id = 5; ALTER TABLE t RENAME y TO z; UPDATE t SET z = 10 WHERE id = 6; \
            ALTER TABLE t RENAME z TO w; UPDATE t SET w = 11 WHERE id = 7; ALTER TABLE t RENAME w TO v");
        c.catch_up().await.unwrap();
        same("v", "renamed again and again");
        c.from.psql("UPDATE t SET b = 9 WHERE id = 5; ALTER TABLE t RENAME b TO bb; UPDATE t SET bb = 10 WHERE id = 6; ALTER TABLE t RENAME bb TO b");
        c.catch_up().await.unwrap();
        same("v", "there and back");
    }

    /// Values that a statement rewrote without a row in the log: the table is compared.
    async fn values_that_were_rewritten_are_read_again(version: PgVersion) {
        for down in [true, false] {
            for (n, (ddl, later)) in [
                ("ALTER TABLE t ALTER a TYPE text USING upper(a)", "UPDATE t SET b = 0 WHERE id = 1"),
                ("ALTER TABLE t ALTER b TYPE int USING -b", "UPDATE t SET b = 0 WHERE id = 1"),
                ("ALTER TABLE t ADD u uuid DEFAULT gen_random_uuid(); ALTER TABLE t ALTER u DROP DEFAULT", "UPDATE t SET b = 0 WHERE id = 1"),
                ("ALTER TABLE t ADD n int DEFAULT 5; ALTER TABLE t ALTER n DROP DEFAULT; VACUUM FULL t", "UPDATE t SET b = 0 WHERE id = 1"),
            ].into_iter().enumerate() {
                if !has(version, n + usize::from(down)) {
                    continue;
                }
                let c = Capture::new(version, &["t"], T);
                c.catch_up().await.unwrap();
                let running = match down {
                    true => None,
                    false => Some(Following::start(&c).await),
                };
                for statement in ddl.split("; ") {
                    c.from.psql(statement);
                }
                c.from.psql(later);
                match running {
                    None => drop(c.catch_up().await.unwrap()),
                    Some(running) => {
                        let all = c.from.psql("SELECT string_agg(attname, ', ' ORDER BY attname) FROM pg_attribute WHERE attrelid = 't'::regclass AND attnum > 0 AND NOT attisdropped");
                        let all = format!("SELECT {all} FROM t ORDER BY id");
                        let wanted = c.from.psql(&all);
                        synctool_testkit::eventually("both ends to be equal", Duration::from_secs(60), async || {
                            c.to.try_psql(&all).is_ok_and(|found| found == wanted)
                        })
                        .await;
                        running.stop().await.unwrap();
                    }
                }
                c.assert_equal(&["t"]);
            }
        }
        // What moves a table's rows and not their values costs no comparison.
        let c = Capture::new(version, &["t"], T);
        let before = c.catch_up().await.unwrap();
        for harmless in ["VACUUM FULL t", "SELECT 1"] {
            c.from.psql(harmless);
            c.from.psql("UPDATE t SET b = 0 WHERE id = 1");
            c.catch_up().await.unwrap();
        }
        c.from.psql("ALTER TABLE t ALTER a SET NOT NULL; UPDATE t SET b = 0 WHERE id = 1");
        let after = c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(after.accounts.written.rows - before.accounts.written.rows, 3);
    }

    /// The bytes of one type are never taken for a value of another.
    async fn a_text_that_becomes_a_number_is_refused(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        // As bytes these numbers are letters.
        c.from.psql("ALTER TABLE t ALTER a TYPE int USING 1094861636; INSERT INTO t VALUES (80, 1094861636, 1)");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
        assert!(e.message().contains("column a was"), "{e}");
        assert_eq!(c.to.psql("SELECT count(*) FROM t WHERE id = 80"), "0");
    }

    /// F46: a type of the same kind that keeps more (digits of a second, of an array's numbers) is another type, for the
    /// destination would round by what it has; one that keeps less goes on.
    async fn a_type_that_keeps_more_digits_is_told(version: PgVersion) {
        let more = [
            ("timestamp(0)", "timestamp", Drift::Added),
            ("time(0)", "time(3)", Drift::Discard),
            ("interval(0)", "interval", Drift::Evolve),
            ("real[]", "double precision[]", Drift::Added),
            ("numeric(8,2)[]", "numeric(8,4)[]", Drift::Freeze),
        ];
        for (was, is, drift) in more {
            let made = format!("CREATE TABLE t (id int PRIMARY KEY, v {was}); INSERT INTO t VALUES (1, NULL)");
            let mut c = Capture::new(version, &["t"], &made);
            c.options.drift = drift;
            c.catch_up().await.unwrap();
            c.from.psql(&format!("ALTER TABLE t ALTER v TYPE {is}; INSERT INTO t VALUES (2, NULL)"));
            for _ in 0..2 {
                let e = c.catch_up().await.unwrap_err();
                assert!(e.message().contains("v was") && e.next_step().is_some(), "{was}: {e}");
            }
            assert_eq!(c.to.psql("SELECT max(id) FROM t"), "1", "{was}");
        }
        let made = "CREATE TABLE t (id int PRIMARY KEY, v timestamp(6)); INSERT INTO t VALUES (1, '2026-01-01 00:00:00.123456')";
        let c = Capture::new(version, &["t"], made);
        c.catch_up().await.unwrap();
        // As many digits, said otherwise.
        c.from.psql("ALTER TABLE t ALTER v TYPE timestamp; INSERT INTO t VALUES (3, '2026-01-01 00:00:00.654321')");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        c.from.psql("ALTER TABLE t ALTER v TYPE timestamp(3); INSERT INTO t VALUES (2, '2026-01-01 00:00:00.789')");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// A column of the destination that keeps fewer digits of a second is refused before anything is written.
    async fn a_column_that_would_round_is_refused(version: PgVersion) {
        let made = "CREATE TABLE t (id int PRIMARY KEY, at timestamptz); INSERT INTO t VALUES (1, '2026-01-01 00:00:00.5Z')";
        let c = Capture::new(version, &["t"], made);
        c.to.psql("CREATE TABLE t (id int PRIMARY KEY, at timestamptz(0))");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), code::SCHEMA_MISMATCH, "{e}");
        assert!(e.message().contains("column at is timestamp(0) with time zone"), "{e}");
        assert_eq!(c.to.psql("SELECT count(*) FROM t"), "0");
        c.to.psql("ALTER TABLE t ALTER at TYPE timestamptz");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// A column that comes later and is there by somebody's hand, with fewer digits of a second: a value that it would round
    /// ends the log, which goes on when it keeps them.
    async fn a_later_column_that_is_there_rounds_nothing(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        c.catch_up().await.unwrap();
        c.to.psql("ALTER TABLE t ADD COLUMN at timestamp(0)");
        c.from.psql("ALTER TABLE t ADD COLUMN at timestamp; INSERT INTO t VALUES (2, '2026-01-01 00:00:00')");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        c.from.psql("INSERT INTO t VALUES (3, '2026-01-01 00:00:00.5')");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{e}");
        assert!(e.message().contains("column at") && e.next_step().is_some(), "{e}");
        assert_eq!(c.to.psql("SELECT max(id) FROM t"), "2");
        c.to.psql("ALTER TABLE t ALTER at TYPE timestamp");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// A later column that is made again with another type: its older values in the log are none of the new one.
    async fn a_later_column_that_gets_another_type_is_told(version: PgVersion) {
        for down in [true, false] {
            let c = Capture::new(version, &["t"], T);
            c.catch_up().await.unwrap();
            c.from.psql("ALTER TABLE t ADD COLUMN x numeric(9,2); UPDATE t SET x = id");
            c.catch_up().await.unwrap();
            let running = match down {
                true => None,
                false => Some(Following::start(&c).await),
            };
            c.from.psql("UPDATE t SET x = 5 WHERE id = 9; ALTER TABLE t DROP COLUMN x; ALTER TABLE t ADD COLUMN x text DEFAULT 'new'; UPDATE t SET x = 'set' WHERE id = 3");
            let e = match running {
                None => c.catch_up().await.unwrap_err(),
                Some(running) => {
                    let ended = tokio::time::timeout(Duration::from_secs(30), running.task).await;
                    ended.expect("it ends").unwrap().unwrap_err()
                }
            };
            assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
            assert!(e.message().contains("column x") && e.next_step().is_some(), "{e}");
            // As the hint says.
            c.to.psql("ALTER TABLE t DROP COLUMN x");
            c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
        }
    }

    /// F49 and F51: a table of the same name is another table; a new value of an enum is only a value.
    async fn a_table_made_again_is_read_again(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.from.psql("CREATE PUBLICATION synctool FOR ALL TABLES; CREATE TYPE mood AS ENUM ('sad'); ALTER TABLE t ADD COLUMN m mood");
        c.catch_up().await.unwrap();
        let running = Following::start(&c).await;
        c.from.psql("ALTER TYPE mood ADD VALUE 'glad'");
        c.from.psql("UPDATE t SET m = 'glad' WHERE id = 1");
        until_equal(&c, "SELECT id, a, b, m::text FROM t", "SELECT id, a, b, m::text FROM t").await;
        c.from.psql("BEGIN; DROP TABLE t; CREATE TABLE t (b int, id int PRIMARY KEY, a text, m mood); INSERT INTO t VALUES (7, 1, 'new', 'sad'), (8, 2, 'new', 'glad'); COMMIT");
        until_equal(&c, "SELECT id, a, b, m::text FROM t", "SELECT id, a, b, m::text FROM t").await;
        running.stop().await.unwrap();
    }

    /// F49 while nobody follows: the rows of the table that is gone go, those of the new one come, whether the log tells
    /// of the new one or not.
    async fn a_table_made_again_meanwhile_is_read_again(version: PgVersion) {
        for (publication, later) in [("FOR ALL TABLES", true), ("FOR ALL TABLES", false), ("FOR TABLE t", true), ("FOR TABLE t", false)] {
            let c = Capture::new(version, &["t"], T);
            c.from.psql(&format!("CREATE PUBLICATION synctool {publication}"));
            c.catch_up().await.unwrap();
            c.from.psql("UPDATE t SET a = 'unread'; DROP TABLE t; CREATE TABLE t (b int, id int PRIMARY KEY, a text); INSERT INTO t VALUES (7, 1, 'new'), (8, 100, 'new')");
            let case = format!("{publication}, with later rows: {later}");
            if later {
                c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
                c.from.psql("UPDATE t SET b = -1 WHERE id = 1; INSERT INTO t VALUES (9, 101, 'newer')");
            }
            c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
            let rows = |db: &TestDb| db.psql("SELECT id, a, b FROM t ORDER BY id");
            assert_eq!(rows(&c.to), rows(&c.from), "{case}");
        }
    }

    /// F50: a table that is taken out of the publication stays followed when it is put back, and another table in it
    /// is nobody's business.
    async fn other_tables_of_the_publication_are_left_alone(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("CREATE TABLE other (id int PRIMARY KEY, p point, x tsvector); ALTER PUBLICATION synctool ADD TABLE other; \
            INSERT INTO other VALUES (1, '(1,2)', 'a'); UPDATE t SET b = -1 WHERE id = 9; TRUNCATE other");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(c.to.psql("SELECT count(*) FROM pg_class WHERE relname = 'other'"), "0");
    }
}

/// Waits until two queries give the same rows at both ends.
pub(super) async fn until_equal(c: &Capture, from: &str, to: &str) {
    synctool_testkit::eventually("both ends to be equal", Duration::from_secs(60), async || {
        let sorted = |db: &TestDb, sql: &str| {
            let mut lines: Vec<String> = db.psql(sql).lines().map(str::to_string).collect();
            lines.sort_unstable();
            lines
        };
        let (wanted, found) = (sorted(&c.from, from), sorted(&c.to, to));
        if wanted == found {
            Ok(())
        } else {
            Err(format!("{} rows and {} rows", wanted.len(), found.len()))
        }
    })
    .await;
}
