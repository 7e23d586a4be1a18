//! The publication's tables: taken out and put back, and new ones that somebody is writing to.

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use synctool_connectors::postgres::log::capture::{Initial, extend};
use synctool_core::backfill::{Pending, Request, Wish};
use synctool_core::plan::PlannedTable;

const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 200) i";
const GAP: &str = "DELETE FROM t WHERE id % 10 = 0; UPDATE t SET a = 'gap' WHERE id % 10 = 1; INSERT INTO t SELECT i, 'new' FROM generate_series(1000, 1010) i";
const LATER: &str =
    "INSERT INTO t VALUES (10, 'again'); UPDATE t SET a = 'later' WHERE id IN (5, 11); DELETE FROM t WHERE id = 12";

/// Makes a plan of all tables of the publication that goes on where the stored one stands, and catches up by it. Says
/// which tables it has.
async fn extended(c: &Capture) -> Result<Vec<String>> {
    let (source, destination) = (c.source(c.options.clone()), c.destination().await);
    let stored = destination.stored_plan(&c.request.pipeline).await?.expect("a plan");
    let plan = extend(&source, destination.as_ref(), &stored.plan, c.request.clone()).await?;
    let name = |t: &PlannedTable| t.read.table.name.clone();
    let tables = plan.tables.iter().map(name).collect();
    destination.prepare(plan).await?;
    c.catch_up().await?;
    Ok(tables)
}

/// A session with a transaction that wrote this and is idle now.
async fn idle_writer(c: &Capture, sql: &str) -> tokio_postgres::Client {
    let (client, connection) = tokio_postgres::connect(&c.url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("BEGIN; {sql}")).await.unwrap();
    client
}

/// Ends a writer's transaction as soon as somebody waits for it, or nobody did until the end.
async fn end_when_awaited(c: &Capture, writer: &tokio_postgres::Client, over: &AtomicBool) {
    synctool_testkit::eventually("somebody to wait for the writer", Duration::from_secs(60), async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_locks%' AND application_name <> 'psql' \
            AND datname = current_database()";
        over.load(Ordering::Relaxed) || c.from.psql(waiting) != "0"
    })
    .await;
    writer.batch_execute("COMMIT").await.unwrap();
}

on_servers! {
    /// F50: kinds of changes that were not published for a while are made good, whether that was while nobody followed
    /// or before the log was opened last.
    async fn kinds_that_were_switched_off_are_compared(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        c.catch_up().await.unwrap();
        c.from.psql("UPDATE t SET a = 'unread' WHERE id = 3");
        c.from.psql("ALTER PUBLICATION synctool SET (publish = 'insert, update')");
        c.from.psql(GAP);
        c.from.psql("ALTER PUBLICATION synctool SET (publish = 'insert, update, delete, truncate')");
        c.from.psql(LATER);
        let before = c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        c.from.psql("UPDATE t SET a = 'after' WHERE id = 4");
        let after = c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(after.accounts.written.rows - before.accounts.written.rows, 1, "compared once");
    }

    /// F50: what became of a table while it was not in the publication is made good when it is put back, by us or by
    /// somebody else; so it is when its filter lets more rows through.
    async fn a_table_that_is_put_back_is_compared(version: PgVersion) {
        let gap = format!("{GAP}; ALTER TABLE t ADD COLUMN n int; UPDATE t SET n = id");
        let out = "ALTER PUBLICATION synctool DROP TABLE t";
        for (made, out, gap, back) in [
            ("FOR TABLE t", out, GAP, ""),
            ("FOR TABLE t", out, GAP, "ALTER PUBLICATION synctool ADD TABLE t"),
            ("FOR TABLE t", out, gap.as_str(), "ALTER PUBLICATION synctool ADD TABLE t"),
            ("FOR TABLE t WHERE (id < 100)", "", GAP, "ALTER PUBLICATION synctool SET TABLE t WHERE (id < 5000)"),
            ("FOR TABLES IN SCHEMA public", "ALTER PUBLICATION synctool DROP TABLES IN SCHEMA public", GAP,
                "ALTER PUBLICATION synctool ADD TABLES IN SCHEMA public"),
        ] {
            let c = Capture::new(version, &["t"], T);
            c.from.psql(&format!("CREATE PUBLICATION synctool {made}"));
            c.catch_up().await.unwrap();
            c.from.psql("UPDATE t SET a = 'read later' WHERE id = 7");
            for sql in [out, gap, back] {
                c.from.psql(sql);
            }
            let case = format!("{made}, {back}");
            if !back.is_empty() {
                c.from.psql(&LATER.replace("(10, 'again')", "(10, 'again') ON CONFLICT DO NOTHING").replace("t VALUES", "t (id, a) VALUES"));
            }
            let ledger = c.catch_up().await.unwrap_or_else(|e| panic!("{case}: {e}"));
            c.assert_equal(&["t"]);
            c.from.psql("UPDATE t SET a = 'after' WHERE id = 3");
            let next = c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
            assert_eq!(next.accounts.written.rows - ledger.accounts.written.rows, 1, "{case}: compared once");
        }
    }

    /// F50: where all tables of the publication are followed, one that is taken out of it, or dropped for good, is left
    /// out: it is not put back, the others go on, and its copy stays. If it comes back it is compared first.
    async fn a_table_that_leaves_all_is_left_out(version: PgVersion) {
        for (leave, back) in [
            ("ALTER PUBLICATION synctool DROP TABLE t2", "ALTER PUBLICATION synctool ADD TABLE t2"),
            ("DROP TABLE t2", "CREATE TABLE t2 (id int PRIMARY KEY, a text); INSERT INTO t2 VALUES (7, 'again'); ALTER PUBLICATION synctool ADD TABLE t2"),
        ] {
            let mut c = Capture::new(version, &[], &format!("{T}; CREATE TABLE t2 (id int PRIMARY KEY, a text);
                INSERT INTO t2 SELECT i, 'b' || i FROM generate_series(1, 50) i; CREATE PUBLICATION synctool FOR TABLE t, t2"));
            c.request.initial = Some(Initial::Load);
            c.catch_up().await.unwrap();
            let copy = c.to.psql("SELECT * FROM t2 ORDER BY 1");
            c.from.psql("UPDATE t2 SET a = 'unread' WHERE id = 3");
            c.from.psql(leave);
            c.from.psql("UPDATE t SET a = 'on' WHERE id = 4");
            c.from.try_psql("DELETE FROM t2 WHERE id < 10; INSERT INTO t2 VALUES (70, 'unseen')").ok();
            // Whoever asks for it while it is out, asks in vain.
            let source = c.source(LogOptions { until_now: true, ..c.options.clone() });
            source.steering().requests().ask(Request { id: "r".into(), wish: Wish::Read(Pending::resync(TableId::new("public", "t2"))) });
            follow(source.clone(), source.clone(), c.destination().await, &c.request).await.unwrap_or_else(|e| panic!("{leave}: {e}"));
            c.assert_equal(&["t"]);
            assert_eq!(c.to.psql("SELECT * FROM t2 ORDER BY 1"), copy, "{leave}");
            assert_eq!(c.from.psql("SELECT string_agg(tablename, ' ') FROM pg_publication_tables"), "t", "{leave}");
            let destination = c.destination().await;
            let plan = destination.stored_plan("capture").await.unwrap().unwrap().plan;
            let position = destination.checkpoint(&plan).await.unwrap().into_values().next().unwrap().position;
            let told = source.at_rest(&plan, position.as_ref()).await.unwrap().tables;
            assert!(told[0].absent.is_none() && told[1].absent.is_some(), "{told:?}");
            assert!(source.columns(&plan, position.as_ref()).await.unwrap()[1].is_empty(), "{leave}");
            let e = source.refresh(&TableId::new("public", "t2"), &[]).await.unwrap_err();
            assert!(e.message().contains("left out"), "{e}");
            c.from.psql(back);
            c.from.psql("UPDATE t2 SET a = 'later' WHERE id > 60");
            c.catch_up().await.unwrap();
            c.assert_equal(&["t", "t2"]);
            // A plan that was made without it knows that there is a copy, and compares it, too.
            c.from.psql("ALTER PUBLICATION synctool DROP TABLE t2; CREATE TABLE t3 (id int PRIMARY KEY); ALTER PUBLICATION synctool ADD TABLE t3");
            assert_eq!(extended(&c).await.unwrap(), ["t", "t3"]);
            c.from.psql("DELETE FROM t2 WHERE id = 7; DELETE FROM t2 WHERE id = 70; INSERT INTO t2 VALUES (71, 'x')");
            c.from.psql("ALTER PUBLICATION synctool ADD TABLE t2");
            assert_eq!(extended(&c).await.unwrap(), ["t", "t2", "t3"]);
            c.assert_equal(&["t", "t2", "t3"]);
        }
    }

    /// A table that is named, followed and dropped for good ends the log with what to do; without it the others go on.
    async fn a_named_table_that_is_gone_is_told(version: PgVersion) {
        let mut c = Capture::new(version, &["t", "t2"], &format!("{T}; CREATE TABLE t2 (id int PRIMARY KEY); INSERT INTO t2 VALUES (1)"));
        c.catch_up().await.unwrap();
        c.from.psql("DROP TABLE t2; UPDATE t SET a = 'on' WHERE id = 4");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::TABLE_MISSING, "{e}");
        assert!(e.next_step().is_some_and(|n| n.contains("take it out of `tables`")), "{e}");
        c.request.tables.pop();
        assert_eq!(extended(&c).await.unwrap(), ["t"]);
        c.assert_equal(&["t"]);
        assert_eq!(c.to.psql("SELECT count(*) FROM t2"), "1");
    }

    /// A table that leaves while it is followed is told with what to do, and the others go on; put back, it is compared.
    async fn a_table_that_leaves_is_told_meanwhile(version: PgVersion) {
        let c = Capture::new(version, &["t", "t2", "t3"], &format!("{T}; CREATE TABLE t2 (id int PRIMARY KEY); CREATE TABLE t3 (id int PRIMARY KEY); INSERT INTO t2 VALUES (1); INSERT INTO t3 VALUES (1)"));
        let source = c.source(c.options.clone());
        let running = Following::of(&c, source.clone()).await;
        shapes::until_equal(&c, "SELECT * FROM t3", "SELECT * FROM t3").await;
        let plan = c.destination().await.stored_plan("capture").await.unwrap().unwrap().plan;
        c.from.psql("ALTER PUBLICATION synctool DROP TABLE t2; INSERT INTO t3 VALUES (2); DROP TABLE t3; INSERT INTO t2 VALUES (2)");
        synctool_testkit::eventually("both to be told", Duration::from_secs(60), async || {
            let told = source.steering().status(&plan, source.options()).tables;
            let says = |n: usize, what: &str| told[n].absent.as_ref().is_some_and(|why| why.contains(what));
            (told[0].absent.is_none() && says(1, "ADD TABLE \"public\".\"t2\"") && says(2, "dropped, or renamed")).then_some(()).ok_or(format!("{told:?}"))
        }).await;
        c.from.psql("INSERT INTO t VALUES (5000, 'on')");
        shapes::until_equal(&c, "SELECT * FROM t", "SELECT * FROM t").await;
        running.stop().await.unwrap();
        c.from.psql("CREATE TABLE t3 (id int PRIMARY KEY); INSERT INTO t3 VALUES (9)");
        c.catch_up().await.unwrap();
        c.assert_equal(&["t", "t2", "t3"]);
    }

    /// F50: partitions that are published one by one: rows that one of them got before it was published.
    async fn a_partition_that_is_put_back_is_compared(version: PgVersion) {
        let c = Capture::new(version, &["p"], "CREATE TABLE p (id int PRIMARY KEY, a text) PARTITION BY RANGE (id);
            CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100); CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (300);
            INSERT INTO p SELECT i, 'a' || i FROM generate_series(1, 200) i; CREATE PUBLICATION synctool FOR TABLE p1, p2");
        c.catch_up().await.unwrap();
        c.from.psql("ALTER PUBLICATION synctool DROP TABLE p2");
        c.from.psql("DELETE FROM p WHERE id % 3 = 0; INSERT INTO p SELECT i, 'new' FROM generate_series(210, 220) i");
        c.from.psql("ALTER PUBLICATION synctool ADD TABLE p2");
        c.from.psql("UPDATE p SET a = 'later' WHERE id IN (5, 110)");
        c.catch_up().await.unwrap();
        c.assert_equal(&["p"]);
    }

    /// F50: a table is added while somebody writes to it: what they wrote before is not in the log, and not in a
    /// chunk either before they commit.
    async fn a_table_that_is_added_waits_for_its_writers(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], &format!("{T}; CREATE TABLE t2 (id int PRIMARY KEY, a text); INSERT INTO t2 VALUES (1, 'there')"));
        c.request.tables = Vec::new();
        c.from.psql("CREATE PUBLICATION synctool FOR TABLE t");
        c.catch_up().await.unwrap();
        // Somebody who does not touch it is nobody to wait for.
        let other = idle_writer(&c, "INSERT INTO t VALUES (-5, 'other')").await;
        let writer = idle_writer(&c, "INSERT INTO t2 VALUES (2, 'before it was published'); UPDATE t2 SET a = 'changed' WHERE id = 1").await;
        c.from.psql("ALTER PUBLICATION synctool ADD TABLE t2");
        let over = AtomicBool::new(false);
        let work = async {
            let tables = extended(&c).await;
            over.store(true, Ordering::Relaxed);
            tables
        };
        let (tables, ()) = tokio::join!(work, end_when_awaited(&c, &writer, &over));
        assert_eq!(tables.unwrap(), ["t", "t2"]);
        other.batch_execute("COMMIT").await.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(&["t", "t2"]);
    }

    /// The same where slot and publication were there before us.
    async fn an_adopted_slot_waits_for_writers(version: PgVersion) {
        let c = Capture::new(version, &["t"], &format!("{T}; CREATE TABLE other (id int PRIMARY KEY); CREATE PUBLICATION synctool FOR TABLE other"));
        c.from.psql(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput')", c.options.slot));
        let writer = idle_writer(&c, "INSERT INTO t VALUES (-5, 'before it was published')").await;
        c.from.psql("ALTER PUBLICATION synctool ADD TABLE t");
        let over = AtomicBool::new(false);
        let work = async {
            let done = c.catch_up().await;
            over.store(true, Ordering::Relaxed);
            done
        };
        let (done, ()) = tokio::join!(work, end_when_awaited(&c, &writer, &over));
        done.unwrap();
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
    }

    /// A table without a key that the publication gets by itself is left out until it has one; the others go on.
    async fn a_new_table_without_a_key_waits_for_one(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], T);
        c.request.tables = Vec::new();
        c.from.psql("CREATE PUBLICATION synctool FOR ALL TABLES");
        c.catch_up().await.unwrap();
        c.from.psql("CREATE TABLE bare (a int, b text); INSERT INTO bare VALUES (1, 'x'); CREATE TABLE t2 (id int PRIMARY KEY); INSERT INTO t2 VALUES (3); UPDATE t SET a = 'on' WHERE id = 4");
        assert_eq!(extended(&c).await.unwrap(), ["t", "t2"]);
        c.assert_equal(&["t", "t2"]);
        c.from.psql("INSERT INTO bare VALUES (2, 'y'); ALTER TABLE bare ADD PRIMARY KEY (a); UPDATE bare SET b = 'z' WHERE a = 1");
        assert_eq!(extended(&c).await.unwrap(), ["bare", "t", "t2"]);
        c.assert_equal(&["t", "t2", "bare"]);
        // Named, or there from the first, it is refused as ever.
        c.from.psql("CREATE TABLE bare2 (a int)");
        c.request.tables = vec![TableId::new("public", "t"), TableId::new("public", "bare2")];
        assert_eq!(extended(&c).await.unwrap_err().code(), synctool_core::error::code::KEY_MISSING);
    }
}
