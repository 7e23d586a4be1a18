//! Transactions with more subtransactions than production lists: where one is open, a standby that begins to replay cannot
//! be read.

use super::{PATIENCE, World, kill};
use synctool_testkit::{PgVersion, wait_for};

const SCHEMA: &str = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE nokey (a int, b text)";
const TABLES: &[&str] = &["t", "nokey"];

/// Each subtransaction writes something; they stay open, also when production is started again.
fn many(world: &World) {
    let savepoints: String = (1..=100)
        .map(|n| {
            format!("SAVEPOINT s{n}; UPDATE t SET n = -{n} WHERE id = {n}; INSERT INTO nokey VALUES ({n}, 'many');")
        })
        .collect();
    world
        .production
        .psql(&format!("BEGIN; {savepoints} PREPARE TRANSACTION 'many'"));
}

fn filled(version: PgVersion) -> World {
    let world = World::new(version, SCHEMA);
    // What cannot be read is not waited for long.
    world.configure("REPLAY_TIMEOUT = 15\n");
    world.production.psql(
        "INSERT INTO t SELECT g, 0 FROM generate_series(1, 300) g; INSERT INTO nokey SELECT g % 5, 'x' FROM generate_series(1, 50) g",
    );
    world
}

const LIST: &str = "CHECKPOINT; INSERT INTO other VALUES (1)";

fn open_at_the_backup(version: PgVersion) {
    let world = filled(version);
    many(&world);
    world.backup();
    world.add(TABLES);
    world.production.psql(LIST);
    world.archived();
    world.run(&["run-once"]).fails(0, &["no place yet"]);
    // It ends, and production has not said since what is open.
    world
        .production
        .psql("COMMIT PREPARED 'many'; UPDATE t SET n = 7 WHERE id = 200");
    world.archived();
    world.run(&["run-once"]).ok();
    world.production.psql(LIST);
    world.sync();
    world.same(TABLES);
    world
        .production
        .psql("DELETE FROM nokey WHERE a = 3; UPDATE t SET n = n + 1");
    world.sync();
    world.same(TABLES);
}

#[test]
fn more_than_64_subtransactions_are_open_at_the_backup_18() {
    open_at_the_backup(PgVersion::V18);
}

#[test]
fn more_than_64_subtransactions_are_open_at_the_backup_15() {
    open_at_the_backup(PgVersion::V15);
}

fn open_over_a_restart(version: PgVersion) {
    let world = filled(version);
    world.ready();
    world.add(TABLES);
    world.run(&["run-once"]).ok();
    many(&world);
    world.production.psql(LIST);
    world.sync();
    world.same(TABLES);
    // It was stopped, and begins again where the list is too short.
    world
        .production
        .psql("UPDATE t SET n = 1 WHERE id > 250; DELETE FROM nokey WHERE a = 1");
    let before = world.local.psql("SELECT sum(n) FROM t");
    world.archived();
    world.run(&["run-once"]).ok();
    assert_eq!(world.local.psql("SELECT sum(n) FROM t"), before);
    let told =
        "SELECT count(*) > 0 FROM data_sync_errors WHERE event = 'unreadable' AND message LIKE '%64 subtransactions%'";
    assert_eq!(world.local.psql(told), "t");
    world.production.psql("COMMIT PREPARED 'many'");
    world.production.psql(LIST);
    world.archived();
    world.once().at("datasync.planned", 1).run().assert_killed();
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    world.run(&["verify"]).ok();
    // From there on all is as ever.
    world
        .production
        .psql("UPDATE t SET n = n + 1; DELETE FROM nokey WHERE a = 2");
    world.sync();
    world.same(TABLES);
    let copied = "SELECT count(*) FROM data_sync_logs WHERE event = 'copied' AND table_name = 'public.t'";
    assert_eq!(world.local.psql(copied), "2");
}

#[test]
fn more_than_64_subtransactions_are_open_over_a_restart_18() {
    open_over_a_restart(PgVersion::V18);
}

#[test]
fn more_than_64_subtransactions_are_open_over_a_restart_15() {
    open_over_a_restart(PgVersion::V15);
}

/// A plan is stored, and where it leads the scratch server cannot be read when it is started again.
#[test]
fn a_stored_plan_that_leads_where_nothing_can_be_read_is_replaced() {
    let world = filled(PgVersion::V18);
    world.ready();
    world.add(TABLES);
    world.run(&["run-once"]).ok();
    world
        .production
        .psql("UPDATE t SET n = 3 WHERE id > 200; DELETE FROM nokey WHERE a = 1");
    many(&world);
    world.production.psql(LIST);
    world.archived();
    world.once().at("datasync.replayed", 1).run().assert_killed();
    let pid = world.scratch_pid().expect("it runs");
    kill("-INT", &pid);
    wait_for("the end of the scratch server", PATIENCE, || {
        world.scratch_pid().is_none()
    });
    world.run(&["run-once"]).ok();
    world.production.psql("COMMIT PREPARED 'many'");
    world.production.psql(LIST);
    world.sync();
    world.same(TABLES);
    world.run(&["verify"]).ok();
}
