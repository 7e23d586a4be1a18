//! Tables that cannot be followed are refused before anything is made; keys that may be broken within a transaction, and
//! columns that come into the publication.

use super::drift::until_same;
use super::*;
use synctool_connectors::postgres::log::capture::extend;
use synctool_core::error::code;

const GOOD: &str = "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'a')";

/// Tables named `bad` that cannot be followed, whether tables without a key are allowed, and what the refusal says.
const BAD: [(&str, bool, &str); 10] = [
    ("CREATE TABLE bad (id int, a text)", false, "it has no key"),
    ("CREATE TABLE bad (id int, a text)", true, "REPLICA IDENTITY FULL"),
    (
        "CREATE TABLE bad (id int, a text); ALTER TABLE bad REPLICA IDENTITY FULL",
        false,
        "has no key",
    ),
    (
        "CREATE TABLE bad (id int PRIMARY KEY, a text); ALTER TABLE bad REPLICA IDENTITY NOTHING",
        true,
        "REPLICA IDENTITY NOTHING",
    ),
    (
        "CREATE TABLE bad (id int PRIMARY KEY DEFERRABLE, a text)",
        false,
        "DEFERRABLE",
    ),
    (
        "CREATE TABLE bad (id int PRIMARY KEY DEFERRABLE, a text); ALTER TABLE bad REPLICA IDENTITY FULL",
        false,
        "DEFERRABLE",
    ),
    (
        "CREATE UNLOGGED TABLE bad (id int PRIMARY KEY, a text)",
        false,
        "SET LOGGED",
    ),
    (
        "CREATE TABLE bad (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
         CREATE UNLOGGED TABLE bad_1 PARTITION OF bad FOR VALUES FROM (0) TO (1000)",
        false,
        "bad_1 is an unlogged",
    ),
    (
        "CREATE TABLE bad (id int PRIMARY KEY, a text); CREATE TABLE heir () INHERITS (bad)",
        false,
        "inherit",
    ),
    ("CREATE VIEW bad AS SELECT * FROM t", false, "is a view"),
];

fn made(c: &Capture) -> String {
    c.from.psql(&format!(
        "SELECT (SELECT count(*) FROM pg_publication_tables), \
         (SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}')",
        c.options.slot
    ))
}

on_servers! {
    /// Whoever is refused has changed nothing: neither a slot nor a publication, which would cost the application its
    /// updates.
    async fn refusals_come_before_anything_is_made(version: PgVersion) {
        for (ddl, keyless, says) in BAD {
            let mut c = Capture::new(version, &["t", "bad"], &format!("{GOOD}; {ddl}"));
            c.request.keyless = keyless;
            let e = c.catch_up().await.unwrap_err();
            let told = format!("{} {}", e.message(), e.next_step().unwrap_or_default());
            assert!(told.contains("bad") && told.contains(says), "{ddl}: no {says:?} in {told}");
            assert_eq!(made(&c), "0|0", "{ddl}");
            c.from.psql("UPDATE t SET a = 'theirs'");
            if !ddl.starts_with("CREATE VIEW") {
                c.from.psql("INSERT INTO bad VALUES (1, 'b'); UPDATE bad SET a = 'theirs'; DELETE FROM bad");
            }
        }
        // A table that comes later, too.
        let mut c = Capture::new(version, &["t"], &format!("{GOOD}; {}", BAD[0].0));
        c.catch_up().await.unwrap();
        c.request.tables.push(TableId::new("public", "bad"));
        let (source, destination) = (c.source(c.options.clone()), c.destination().await);
        let stored = destination.stored_plan(&c.request.pipeline).await.unwrap().expect("a plan");
        let e = extend(&source, destination.as_ref(), &stored.plan, c.request.clone()).await.unwrap_err();
        assert_eq!((e.code(), made(&c).as_str()), (code::KEY_MISSING, "1|1"), "{e}");
        c.from.psql("INSERT INTO bad VALUES (1, 'b'); UPDATE bad SET a = 'theirs'");
    }

    /// A key that becomes deferrable lets rows trade keys: that is refused, at the start and in between, and nothing is
    /// lost at the destination. So is a table from which another one inherits by now.
    async fn a_key_that_may_be_broken_is_refused(version: PgVersion) {
        let ddl = "CREATE TABLE t (id int CONSTRAINT k PRIMARY KEY, a text); ALTER TABLE t REPLICA IDENTITY FULL; INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 300) i";
        let alter = "ALTER TABLE t DROP CONSTRAINT k, ADD CONSTRAINT k PRIMARY KEY (id) DEFERRABLE; UPDATE t SET id = id + 1";
        for live in [false, true] {
            let c = Capture::new(version, &["t"], ddl);
            c.catch_up().await.unwrap();
            let e = match live {
                false => {
                    c.from.psql(alter);
                    c.catch_up().await.unwrap_err()
                }
                true => {
                    let running = Following::start(&c).await;
                    c.from.psql(alter);
                    let ended = tokio::time::timeout(Duration::from_secs(60), running.task).await;
                    ended.expect("it ends").unwrap().unwrap_err()
                }
            };
            assert_eq!(e.code(), code::LOG_SETUP, "{e}");
            assert!(e.message().contains("DEFERRABLE") && e.next_step().is_some_and(|n| n.contains("synctool repair")), "{e}");
            assert_eq!(c.to.psql("SELECT count(*), min(id) FROM t"), "300|1");
        }
        let c = Capture::new(version, &["t"], GOOD);
        c.catch_up().await.unwrap();
        c.from.psql("CREATE TABLE heir () INHERITS (t); INSERT INTO heir VALUES (2, 'not ours')");
        let e = c.catch_up().await.unwrap_err();
        assert!(e.message().contains("public.heir"), "{e}");
        assert_eq!(c.to.psql("SELECT count(*) FROM t"), "1");
    }

    /// A key that changes to an equal value with another text keeps its row and has the new text; so does what comes
    /// after it.
    async fn keys_that_stay_equal_keep_their_rows(version: PgVersion) {
        let cases = [
            ("interval", "'1 day'", "'24:00:00'"),
            ("jsonb", "'[1]'", "'[1.0]'"),
            ("float8", "'0'", "'-0'"),
            ("numeric", "1", "1.0"),
            ("numeric[]", "'{1}'", "'{1.00}'"),
        ];
        for (n, (ty, was, is)) in cases.into_iter().enumerate() {
            if !has(version, n) {
                continue;
            }
            let c = Capture::new(version, &["t"], &format!("CREATE TABLE t (k {ty} PRIMARY KEY, a text); INSERT INTO t VALUES ({was}, 'a')"));
            c.catch_up().await.unwrap();
            for (n, step) in [
                format!("UPDATE t SET k = {is}"),
                format!("UPDATE t SET k = {was}, a = 'b'"),
                format!("BEGIN; UPDATE t SET k = {is}; UPDATE t SET a = 'c'; COMMIT; UPDATE t SET k = {was}"),
                format!("DELETE FROM t; INSERT INTO t VALUES ({is}, 'd')"),
                format!("UPDATE t SET k = {was}; DELETE FROM t"),
                format!("INSERT INTO t VALUES ({was}, 'e'); UPDATE t SET k = {is}"),
            ].into_iter().enumerate() {
                c.from.psql(&step);
                c.catch_up().await.unwrap();
                let same = |db: &TestDb| db.psql("SELECT k::text, a FROM t");
                assert_eq!(same(&c.to), same(&c.from), "{ty}, step {n}: {step}");
            }
        }
    }

    /// The values of a column that was there before it came into the publication are read from the table: by another
    /// list of columns, whether anything changes then or not, and by a computed column that is none any more.
    async fn columns_that_enter_bring_their_values(version: PgVersion) {
        let ddl = "CREATE TABLE t (id int PRIMARY KEY, w text, late text, twice int GENERATED ALWAYS AS (id * 2) STORED); \
            INSERT INTO t SELECT i, 'w' || i, 'late' || i FROM generate_series(1, 250) i; CREATE PUBLICATION synctool FOR TABLE t (id, w)";
        for (live, change) in [(false, ""), (false, "UPDATE t SET w = 'new' WHERE id = 3"), (true, "UPDATE t SET w = 'new' WHERE id = 3")] {
            let c = Capture::new(version, &["t"], ddl);
            c.catch_up().await.unwrap();
            assert!(c.to.try_psql("SELECT late FROM t").is_err());
            c.from.psql(&format!("ALTER PUBLICATION synctool SET TABLE t; {change}"));
            // Whoever follows hears of another list when the pipeline asks; here it is opened again.
            until_same(&c, None, "id, w, late").await;
            let running = match live {
                true => Some(Following::start(&c).await),
                false => None,
            };
            c.from.psql("ALTER TABLE t ALTER twice DROP EXPRESSION; UPDATE t SET w = 'newer' WHERE id = 4");
            until_same(&c, running.as_ref(), "id, w, late, twice").await;
            if let Some(running) = running {
                running.stop().await.unwrap();
            }
        }
    }

    /// A repair converges although a unique value of the destination wandered from one row to another far away.
    async fn a_repair_lets_unique_values_wander(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, email text, n int); INSERT INTO t SELECT i, 'e' || i, i FROM generate_series(1, 1000) i");
        c.options.chunk_rows = 100;
        c.catch_up().await.unwrap();
        c.to.psql("CREATE UNIQUE INDEX ON t (email); CREATE UNIQUE INDEX ON t (n, id)");
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{}'); DELETE FROM t WHERE id = 999; UPDATE t SET email = 'e999' WHERE id = 5; \
            UPDATE t SET email = CASE id WHEN 20 THEN 'e820' ELSE 'e20' END WHERE id IN (20, 820); UPDATE t SET email = CASE id WHEN 31 THEN 'e32' ELSE 'e31' END WHERE id IN (31, 32); \
            UPDATE t SET email = NULL WHERE id > 990", c.options.slot));
        c.options.repair = Repair::once(true);
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        // Two rows that cannot both be there are told: neither gives way to the other.
        c.from.psql(&format!("SELECT pg_drop_replication_slot('{}'); UPDATE t SET email = 'twice' WHERE id IN (7, 600)", c.options.slot));
        c.options.repair = Repair::once(true);
        let e = c.catch_up().await.unwrap_err();
        assert!(e.to_string().contains("unique") || e.context().iter().any(|(_, v)| v.contains("23505")), "{e}");
        assert_eq!(c.to.psql("SELECT count(*) FROM t"), "999");
    }
}
