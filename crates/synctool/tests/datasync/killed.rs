//! Killed with -9 at any step, the local tables equal production at the stored place.

use super::{World, kill};
use std::collections::BTreeSet;
use synctool_testkit::{KillRun, PgVersion};

const SCHEMA: &str = "
CREATE TABLE acc (id int PRIMARY KEY, n int, body text);
CREATE TABLE nokey (a int, b text);
CREATE TABLE late (id int PRIMARY KEY);";
const TABLES: &[&str] = &["acc", "nokey"];

fn load(world: &World, round: usize) {
    world.production.psql(&format!(
        "INSERT INTO acc SELECT {round} * 1000 + g, g, repeat('x', g) FROM generate_series(1, 200) g;
         UPDATE acc SET n = n + 1 WHERE id % 3 = {round} % 3; DELETE FROM acc WHERE id % 17 = {round} % 17;
         INSERT INTO nokey SELECT g % 5, NULLIF(g % 3, 1)::text FROM generate_series(1, 50) g;
         DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey LIMIT 20);
         BEGIN; UPDATE acc SET n = -1; ROLLBACK; INSERT INTO late VALUES ({round}); CHECKPOINT; INSERT INTO other VALUES (1)"
    ));
    world.archived();
}

fn killed_anywhere(version: PgVersion) {
    let world = World::new(version, SCHEMA);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    let run = world.once();
    let points = [
        ("datasync.first_copy", 1),
        ("datasync.before_commit", 1),
        ("datasync.before_plan", 1),
        ("datasync.planned", 1),
        ("datasync.replayed", 1),
        ("datasync.before_commit", 1),
        ("datasync.committed", 1),
        ("datasync.planned", 2),
        ("datasync.before_commit", 2),
    ];
    let mut killed = BTreeSet::new();
    for (round, (point, nth)) in (1..).zip(points) {
        run.clone().at(point, nth).run().assert_killed();
        killed.insert(point);
        // The scratch server may die as well, at any time.
        if round % 3 == 0
            && let Some(pid) = world.scratch_pid()
        {
            kill("-9", &pid);
        }
        run.run().assert_success();
        world.same(TABLES);
        world.run(&["verify"]).ok();
        load(&world, round);
        // Two batches, so that the second pass of a point is reached.
        load(&world, round + 100);
    }
    assert_eq!(killed.len(), 6);
    run.run().assert_success();
    world.same(TABLES);
}

#[test]
fn a_kill_at_any_step_of_a_batch_changes_nothing() {
    killed_anywhere(PgVersion::V18);
}

#[test]
fn a_kill_at_any_step_of_a_batch_changes_nothing_15() {
    killed_anywhere(PgVersion::V15);
}

#[test]
fn a_kill_while_tables_are_copied_anew_changes_nothing() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    world.run(&["run-once"]).ok();
    world.run(&["resync", "--wait", "0", "acc"]).ok();
    world.add(&["late"]);
    let run = world.once();
    for (round, point) in (1..).zip(["datasync.table_copied", "datasync.table_copied", "datasync.answered"]) {
        run.clone().at(point, 1).run().assert_killed();
        load(&world, round);
    }
    run.clone().at("datasync.answered", 1).run().assert_killed();
    world.same(TABLES);
    run.run().assert_success();
    world.same(&["acc", "nokey", "late"]);
    let open = "SELECT count(*) FROM synctool.datasync_requests WHERE done_at IS NULL OR NOT ok";
    assert_eq!(world.local.psql(open), "0");
    world.run(&["verify"]).ok();
}

#[test]
fn a_service_that_was_killed_goes_on_when_it_is_started_again() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    let serve = KillRun::new(&world.command(&["start", "--foreground", "--config", "datasync.toml"]));
    let running = serve.start();
    world.eventually_same(TABLES);
    load(&world, 1);
    assert!(running.kill().killed);
    load(&world, 2);
    let running = serve.start();
    world.eventually_same(TABLES);
    world.run(&["verify"]).ok();
    running.interrupt();
    running.wait().assert_success();
}
