//! Rows that come and go with partitions: no row of the log says so.

use super::*;

const P: &str = "CREATE TABLE p (id int, a text, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
    CREATE TABLE p3 PARTITION OF p FOR VALUES FROM (300) TO (400) PARTITION BY LIST (id);
    CREATE TABLE p31 PARTITION OF p3 FOR VALUES IN (301, 302, 303); CREATE TABLE p32 PARTITION OF p3 FOR VALUES IN (304, 305, 306);
    INSERT INTO p SELECT i, 'a' || i FROM generate_series(1, 190) i; INSERT INTO p SELECT i, 'sub' FROM generate_series(301, 306) i";

/// A table of its own with rows, made to be a partition by the next statement.
const APART: &str =
    "CREATE TABLE more (LIKE p INCLUDING ALL); INSERT INTO more SELECT i, 'more' FROM generate_series(400, 450) i";
const ATTACH: &str = "ALTER TABLE p ATTACH PARTITION more FOR VALUES FROM (400) TO (500)";
const DETACH: &str = "ALTER TABLE p DETACH PARTITION p1";

/// What becomes of partitions, in statements that are transactions of their own, and which of them the log has.
fn cases() -> Vec<(&'static str, Vec<String>)> {
    let case = |name, statements: &[&str]| (name, statements.iter().map(|s| s.to_string()).collect());
    let together = format!("BEGIN; {APART}; {ATTACH}; COMMIT");
    vec![
        case("attached", &[APART, ATTACH]),
        case("attached in the transaction that made it", &[&together]),
        case("attached, and written to", &[APART, ATTACH, "UPDATE p SET a = 'changed' WHERE id IN (5, 401); DELETE FROM p WHERE id = 402; INSERT INTO p VALUES (499, 'new')"]),
        case("attached with partitions of its own", &[
            "CREATE TABLE more (LIKE p INCLUDING ALL) PARTITION BY RANGE (id); CREATE TABLE more1 PARTITION OF more FOR VALUES FROM (400) TO (500);
             INSERT INTO more VALUES (444, 'deep')",
            ATTACH,
        ]),
        case("attached further down", &["CREATE TABLE more (LIKE p INCLUDING ALL); INSERT INTO more VALUES (307, 'deep')", "ALTER TABLE p3 ATTACH PARTITION more FOR VALUES IN (307)"]),
        case("detached", &[DETACH]),
        case("detached, and written to before and after", &["UPDATE p SET a = 'before' WHERE id < 50", DETACH, "UPDATE p1 SET a = 'after' WHERE id < 20; DELETE FROM p1 WHERE id = 90; UPDATE p SET a = 'other' WHERE id = 150"]),
        case("detached while others go on", &["ALTER TABLE p DETACH PARTITION p2 CONCURRENTLY"]),
        case("put back", &[DETACH, "UPDATE p1 SET a = 'apart' WHERE id < 20; DELETE FROM p1 WHERE id BETWEEN 30 AND 40; INSERT INTO p1 VALUES (0, 'apart')",
            "ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100)"]),
        case("put back at once", &["BEGIN; ALTER TABLE p DETACH PARTITION p1; DELETE FROM p1 WHERE id < 50; ALTER TABLE p ATTACH PARTITION p1 FOR VALUES FROM (0) TO (100); COMMIT"]),
        case("dropped", &["DROP TABLE p1, p31"]),
        case("emptied", &["TRUNCATE p1"]),
        case("emptied further down, and filled", &["TRUNCATE p3; INSERT INTO p VALUES (304, 'again')"]),
        case("made, filled and dropped", &["CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (200) TO (300)", "INSERT INTO p SELECT i, 'short' FROM generate_series(200, 220) i", "DROP TABLE p4"]),
        case("made, filled and detached", &["CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (200) TO (300)", "INSERT INTO p SELECT i, 'short' FROM generate_series(200, 220) i", "ALTER TABLE p DETACH PARTITION p4"]),
    ]
}

/// Every case with both ways of publishing, of which each server has one for each case. A soak has all on both.
fn cases_on(version: PgVersion) -> Vec<(String, bool, Vec<String>)> {
    let all = synctool_testkit::is_soak();
    let mut chosen = Vec::new();
    for (n, (case, statements)) in cases().into_iter().enumerate() {
        for by_root in [true, false] {
            if all || (n % 2 == 0) == (by_root == (version == PgVersion::V18)) {
                chosen.push((format!("{case}, by root {by_root}"), by_root, statements.clone()));
            }
        }
    }
    chosen
}

fn published(c: &Capture, by_root: bool) {
    c.from.psql(&format!(
        "CREATE PUBLICATION synctool FOR TABLE p WITH (publish_via_partition_root = {by_root})"
    ));
}

/// The rows of `p`, as far as they can be told apart.
fn rows(db: &TestDb) -> String {
    db.psql("SELECT count(*), md5(string_agg(format('%s %s', id, a), ',' ORDER BY id)) FROM p")
}

fn capture(version: PgVersion, by_root: bool) -> Capture {
    let mut c = Capture::new(version, &["p"], P);
    c.options.status_interval = Duration::from_millis(100);
    published(&c, by_root);
    c
}

on_servers! {
    /// F42: what became of partitions while nobody followed.
    async fn partitions_that_came_or_went_meanwhile_are_compared(version: PgVersion) {
        for (case, by_root, statements) in cases_on(version) {
            let c = capture(version, by_root);
            c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
            statements.iter().for_each(|sql| drop(c.from.psql(sql)));
            let ledger = c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
            assert_eq!(rows(&c.from), rows(&c.to), "{case}");
            c.from.psql("UPDATE p SET a = 'next' WHERE id = 160");
            let written = c.from.psql("SELECT count(*) FROM p WHERE a = 'next'");
            let next = c.catch_up().await.unwrap();
            assert_eq!(rows(&c.from), rows(&c.to), "{case}");
            assert_eq!((next.accounts.written.rows - ledger.accounts.written.rows).to_string(), written, "{case}: compared once");
        }
    }

    /// F42: the same while the log is followed, with and without rows of the log that come behind it.
    async fn partitions_that_come_or_go_are_noticed(version: PgVersion) {
        for (case, by_root, statements) in cases_on(version) {
            // One log after the other in a database that is made anew.
            let c = capture(version, by_root);
            let following = Following::start(&c).await;
            let equal = |what: &str| {
                let what = format!("{case}: {what}");
                let c = &c;
                async move { synctool_testkit::eventually(&what, Duration::from_secs(60), async || !c.to.psql("SELECT to_regclass('p')").is_empty() && rows(&c.from) == rows(&c.to)).await }
            };
            equal("the first load").await;
            for (n, sql) in statements.iter().enumerate() {
                c.from.psql(sql);
                if n % 2 == by_root as usize {
                    equal(sql).await;
                }
            }
            equal("the end").await;
            c.from.psql("INSERT INTO p VALUES (305, 'next') ON CONFLICT (id) DO UPDATE SET a = 'next'");
            equal("the next row").await;
            following.stop().await.unwrap();
        }
    }

    /// A partition that is made as one is no reason to read anything: all of its rows are in the log.
    async fn partitions_that_are_made_are_not_compared(version: PgVersion) {
        let c = Capture::new(version, &["p", "d"], &format!("{P};
            CREATE TABLE d (id bigint GENERATED BY DEFAULT AS IDENTITY, day date NOT NULL DEFAULT '2026-01-01', n int DEFAULT 4, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
            CREATE TABLE d1 PARTITION OF d FOR VALUES FROM ('2026-01-01') TO ('2026-02-01'); INSERT INTO d SELECT FROM generate_series(1, 100)"));
        let first = c.catch_up().await.unwrap();
        c.from.psql("CREATE TABLE d2 PARTITION OF d FOR VALUES FROM ('2026-02-01') TO ('2026-03-01'); CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (200) TO (300)");
        c.from.psql("BEGIN; INSERT INTO d (day) VALUES ('2026-02-02'); CREATE TABLE d3 PARTITION OF d FOR VALUES FROM ('2026-03-01') TO ('2026-04-01'); INSERT INTO d (day) VALUES ('2026-03-02'); COMMIT");
        c.from.psql("INSERT INTO p VALUES (210, 'x'); ANALYZE; VACUUM; CREATE TABLE p5 PARTITION OF p FOR VALUES FROM (500) TO (600)");
        let second = c.catch_up().await.unwrap();
        c.assert_equal(&["p", "d"]);
        assert_eq!(second.accounts.written.rows - first.accounts.written.rows, 3);
        // Those that are known are so whatever is done to their columns.
        c.from.psql("ALTER TABLE p ALTER id SET STATISTICS 10, ALTER a SET STATISTICS 10; ALTER TABLE p4 SET (fillfactor = 50)");
        c.from.psql("INSERT INTO p VALUES (510, 'x'); CREATE TABLE d4 PARTITION OF d FOR VALUES FROM ('2026-04-01') TO ('2026-05-01')");
        let third = c.catch_up().await.unwrap();
        c.assert_equal(&["p", "d"]);
        assert_eq!(third.accounts.written.rows - second.accounts.written.rows, 1);
    }

    /// What writes the rows of a partition into another file cannot be told from a TRUNCATE of it: a table that is published
    /// by its root is compared, all of it.
    async fn a_partition_that_is_written_anew_is_compared(version: PgVersion) {
        for (by_root, sql) in [(true, "VACUUM FULL p1"), (true, "CLUSTER p1 USING p1_pkey"), (false, "VACUUM FULL p1")] {
            let c = capture(version, by_root);
            c.catch_up().await.unwrap();
            c.to.psql("UPDATE p SET a = 'wrong' WHERE id = 150");
            c.from.psql(sql);
            c.catch_up().await.unwrap();
            assert_eq!(c.to.psql("SELECT a FROM p WHERE id = 150"), if by_root { "a150" } else { "wrong" }, "{sql}, by root {by_root}");
        }
    }

    /// Partitions that are published one by one: a new one is published with its table.
    async fn a_partition_that_nothing_publishes_is_read(version: PgVersion) {
        let mut c = Capture::new(version, &["p"], P);
        c.options.status_interval = Duration::from_millis(100);
        c.from.psql("CREATE PUBLICATION synctool FOR TABLE p1, p2, p31, p32");
        let following = Following::start(&c).await;
        let equal = async |what| synctool_testkit::eventually(what, Duration::from_secs(60), async || !c.to.psql("SELECT to_regclass('p')").is_empty() && rows(&c.from) == rows(&c.to)).await;
        equal("the first load").await;
        c.from.psql("CREATE TABLE p4 PARTITION OF p FOR VALUES FROM (200) TO (300); INSERT INTO p VALUES (210, 'unpublished')");
        equal("the new partition").await;
        c.from.psql("INSERT INTO p VALUES (211, 'published'); UPDATE p SET a = 'changed' WHERE id IN (210, 11); DROP TABLE p2");
        equal("its next rows").await;
        following.stop().await.unwrap();
    }

    /// Chunks read all partitions by one filter and one list of columns: partitions that are published one by one must have
    /// the same ones, at the first start and at every other one.
    async fn partitions_that_are_published_differently_are_refused(version: PgVersion) {
        let refused = async |c: &Capture, published: &str| {
            let e = c.catch_up().await.unwrap_err();
            assert_eq!(e.code(), synctool_core::error::code::LOG_SETUP, "{published}: {e}");
            assert!(e.message().contains("published with different") && e.next_step().is_some(), "{published}: {e}");
        };
        for first in ["p1 WHERE (id % 2 = 0)", "p1 (id)"] {
            let c = Capture::new(version, &["p"], P);
            let published = format!("{first}, p2, p31, p32");
            c.from.psql(&format!("CREATE PUBLICATION synctool FOR TABLE {published}"));
            refused(&c, &published).await;
        }
        let c = Capture::new(version, &["p"], P);
        let all = ["p1", "p2", "p31", "p32"].map(|p| format!("{p} (a, id) WHERE (id > 50)")).join(", ");
        c.from.psql(&format!("CREATE PUBLICATION synctool FOR TABLE {all}"));
        c.catch_up().await.unwrap();
        let over = "SELECT count(*) FROM p WHERE id > 50";
        assert_eq!(c.to.psql("SELECT count(*) FROM p"), c.from.psql(over));
        let published = all.replacen("50", "60", 1);
        c.from.psql(&format!("ALTER PUBLICATION synctool SET TABLE {published}"));
        refused(&c, &published).await;
    }

    /// Without a key nothing can be compared, so it is refused by name.
    async fn partitions_of_a_table_without_a_key_are_refused(version: PgVersion) {
        for sql in ["CREATE TABLE k2 (n int); INSERT INTO k2 VALUES (150); ALTER TABLE k2 REPLICA IDENTITY FULL; ALTER TABLE k ATTACH PARTITION k2 FOR VALUES FROM (100) TO (200)", "ALTER TABLE k DETACH PARTITION k1", "TRUNCATE k1"] {
            let mut c = Capture::new(version, &["k"], "CREATE TABLE k (n int) PARTITION BY RANGE (n); CREATE TABLE k1 PARTITION OF k FOR VALUES FROM (0) TO (100);
                ALTER TABLE k REPLICA IDENTITY FULL; ALTER TABLE k1 REPLICA IDENTITY FULL");
            c.request.keyless = true;
            c.catch_up().await.unwrap();
            c.from.psql("INSERT INTO k VALUES (1)");
            c.catch_up().await.unwrap();
            c.from.psql(sql);
            let e = c.catch_up().await.unwrap_err();
            assert_eq!(e.code(), synctool_core::error::code::KEY_MISSING, "{sql}: {e}");
        }
    }
}
