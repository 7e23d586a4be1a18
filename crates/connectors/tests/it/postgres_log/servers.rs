//! Servers: a standby that takes over, with the slot and without; a backup that was restored; and a standby that is read
//! itself.

use super::*;
use synctool_core::error::{ErrorKind, code};
use synctool_testkit::{eventually, psql_url, wait_for};

const PATIENCE: Duration = Duration::from_secs(60);

const T: &str =
    "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 200) i";
const GAP: &str = "DELETE FROM t WHERE id % 10 = 0; UPDATE t SET a = 'gap' WHERE id % 10 = 1; INSERT INTO t SELECT i, 'new' FROM generate_series(1000, 1010) i";
const ROWS: &str = "SELECT t::text FROM t ORDER BY id";

/// Waits until a standby has everything that its primary wrote.
fn until_replayed(primary: &Postgres, standby: &Postgres) {
    let there = primary.psql("SELECT pg_current_wal_flush_lsn()");
    wait_for("the standby to have it", PATIENCE, || {
        standby.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{there}'")) == "t"
    });
}

/// Makes a standby the server that the capture's URL names.
fn promote(c: &mut Capture, standby: &Postgres) {
    assert_eq!(standby.psql("SELECT pg_promote()"), "t");
    c.url = standby.url(c.from.name());
}

/// The server that is followed now and the destination have the same rows.
#[track_caller]
fn assert_same(c: &Capture) {
    assert_eq!(c.to.psql(ROWS), psql_url(&c.url, ROWS).unwrap());
}

/// The log is refused with this code, nothing is written, and a repair makes both ends equal.
async fn refused_and_repaired(c: &mut Capture, wanted: &'static synctool_core::error::Code) {
    let before = c.to.psql(ROWS);
    let e = c.catch_up().await.unwrap_err();
    assert_eq!((e.code(), e.kind()), (wanted, ErrorKind::Refused), "{e}");
    assert!(e.next_step().is_some_and(|h| h.contains("--repair")), "{e}");
    assert_eq!(c.to.psql(ROWS), before, "nothing may be written");
    c.options.repair = Repair::once(true);
    c.catch_up().await.unwrap();
    c.options.repair = Repair::once(false);
    assert_same(c);
    psql_url(&c.url, "INSERT INTO t VALUES (-1, 'after')").unwrap();
    c.catch_up().await.unwrap();
    assert_same(c);
}

on_servers! {
    /// F23: a standby takes over that does not have the slot.
    async fn a_promoted_standby_without_the_slot_is_refused(version: PgVersion) {
        let primary = Postgres::start(version);
        let mut c = Capture::on(&primary, &["t"], T);
        c.catch_up().await.unwrap();
        let standby = primary.standby();
        c.from.psql(GAP);
        until_replayed(&primary, &standby);
        primary.stop();
        promote(&mut c, &standby);
        refused_and_repaired(&mut c, code::LOG_LOST).await;
    }

    /// F24: a server of the same cluster that does not have all that the destination has, on a timeline of its own.
    async fn a_backup_that_was_restored_is_refused(version: PgVersion) {
        let primary = Postgres::start(version);
        let mut c = Capture::on(&primary, &["t"], T);
        c.catch_up().await.unwrap();
        let standby = primary.standby();
        until_replayed(&primary, &standby);
        standby.stop();
        c.from.psql(GAP);
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        primary.stop();
        standby.restart();
        promote(&mut c, &standby);
        refused_and_repaired(&mut c, code::LOG_DIVERGED).await;
    }
}

/// F22: the slot goes along (17 and newer), and the log goes on at the standby that took over: nothing is read twice.
async fn a_slot_that_goes_along(version: PgVersion) {
    let primary = Postgres::start(version);
    let mut c = Capture::on(&primary, &["t"], T);
    c.options.failover = true;
    c.catch_up().await.unwrap();
    primary.psql("SELECT pg_create_physical_replication_slot('phys')");
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", primary.port());
    let standby = primary.standby_with(&[
        ("primary_conninfo", &conninfo),
        ("primary_slot_name", "phys"),
        ("hot_standby_feedback", "on"),
        ("sync_replication_slots", "on"),
    ]);
    // So that nobody reads what the standby does not have.
    primary.psql("ALTER SYSTEM SET synchronized_standby_slots = 'phys'");
    primary.psql("SELECT pg_reload_conf()");
    let synced = |c: &Capture| {
        let sql = format!(
            "SELECT coalesce(max(confirmed_flush_lsn)::text, '') FROM pg_replication_slots \
             WHERE slot_name = '{}' AND synced AND NOT temporary AND invalidation_reason IS NULL",
            c.options.slot
        );
        standby.psql(&sql)
    };
    // The slot is only kept once the standby's log has all that it needs, which traffic brings.
    let mut n = 0;
    eventually("the slot to go along", PATIENCE, async || {
        n += 1;
        c.from.psql(&format!("UPDATE t SET a = 'beat {n}' WHERE id = 2"));
        c.catch_up().await.unwrap();
        c.from.psql("CHECKPOINT");
        !synced(&c).is_empty()
    })
    .await;
    let ledger = c.catch_up().await.unwrap();
    // Never beyond what the destination has, or changes would be skipped.
    let confirmed = c.confirmed();
    wait_for("the slot to be as far", PATIENCE, || {
        let there = synced(&c);
        match there == confirmed {
            true => Ok(()),
            false => Err(format!("{there} and {confirmed}")),
        }
    });
    c.from.psql(GAP);
    until_replayed(&primary, &standby);
    primary.stop();
    promote(&mut c, &standby);
    let next = c.catch_up().await.unwrap();
    assert_same(&c);
    let rows = next.accounts.written.rows - ledger.accounts.written.rows;
    assert!((51..60).contains(&rows), "{rows} rows instead of the gap's 51");
    psql_url(&c.url, "INSERT INTO t VALUES (-1, 'on the new timeline')").unwrap();
    c.catch_up().await.unwrap();
    assert_same(&c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_goes_along_pg17() {
    a_slot_that_goes_along(PgVersion::new(17)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slot_that_goes_along_pg18() {
    a_slot_that_goes_along(PgVersion::V18).await;
}

/// A primary's table, and its standby, at which it is followed and has been read.
async fn at_a_standby(primary: &Postgres) -> (Capture, Postgres) {
    use synctool_connectors::postgres::log::Watermarks;
    let mut c = Capture::on(primary, &["t"], T);
    c.from.psql("CREATE PUBLICATION synctool FOR TABLE t");
    let standby = primary.standby_with(&[("hot_standby_feedback", "on")]);
    c.url = standby.url(c.from.name());
    c.options.watermarks = Watermarks::ReadOnly;
    c.options.chunk_rows = 17;
    until_replayed(primary, &standby);
    // A slot of a standby begins where its primary tells of the transactions that are open.
    let telling = eventually("the slot to be made", PATIENCE, async || {
        primary.psql("SELECT pg_log_standby_snapshot()").is_empty()
    });
    tokio::select! {
        done = c.catch_up() => drop(done.unwrap()),
        () = telling => {}
    }
    assert_same(&c);
    (c, standby)
}

/// F27, F61: a standby is followed and read (16 and newer), and nothing is written anywhere at the source.
async fn a_standby_is_followed(version: PgVersion) {
    let primary = Postgres::start(version);
    let (c, standby) = at_a_standby(&primary).await;
    for round in 0..4 {
        c.from.psql(&format!(
            "{}; UPDATE t SET a = a || '{round}' WHERE id % 7 = {round}",
            GAP.replace("1000, 1010", &format!("{0}000, {0}010", round + 2))
        ));
        until_replayed(&primary, &standby);
        c.catch_up().await.unwrap();
        assert_same(&c);
    }
    // A session of ours that is cancelled because of what the primary removes only begins again.
    let running = Following::start(&c).await;
    for round in 0..6 {
        c.from.psql(&format!(
            "DELETE FROM t WHERE id % 11 = {round}; VACUUM FREEZE t; UPDATE t SET a = 'v{round}'"
        ));
        standby.psql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()");
    }
    until_replayed(&primary, &standby);
    shapes::until_equal(&c, ROWS, ROWS).await;
    running.stop().await.unwrap();
    c.catch_up().await.unwrap();
    assert_same(&c);
    let slots = primary.psql("SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical'");
    assert_eq!(slots, "0", "the primary keeps nothing for us");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_followed_pg16() {
    a_standby_is_followed(PgVersion::new(16)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_followed_pg18() {
    a_standby_is_followed(PgVersion::V18).await;
}

/// F23: a standby that is followed takes over meanwhile. What is read then is of its new timeline, on which the next start
/// goes on.
async fn a_standby_takes_over_while_it_is_followed(version: PgVersion) {
    let primary = Postgres::start(version);
    let (mut c, standby) = at_a_standby(&primary).await;
    let running = Following::start(&c).await;
    c.from.psql("INSERT INTO t VALUES (500, 'before')");
    until_replayed(&primary, &standby);
    primary.stop();
    promote(&mut c, &standby);
    psql_url(&c.url, GAP).unwrap();
    eventually("both ends to be equal", PATIENCE, async || {
        c.to.psql(ROWS) == psql_url(&c.url, ROWS).unwrap()
    })
    .await;
    running.stop().await.unwrap();
    psql_url(&c.url, "INSERT INTO t VALUES (-1, 'after')").unwrap();
    c.catch_up().await.unwrap();
    assert_same(&c);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_while_it_is_followed_pg16() {
    a_standby_takes_over_while_it_is_followed(PgVersion::new(16)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_takes_over_while_it_is_followed_pg18() {
    a_standby_takes_over_while_it_is_followed(PgVersion::V18).await;
}
