//! Killed with -9 at any step, the local tables equal production at the stored place.

use super::{PATIENCE, Session, World, files, followed, kill, stopped_at};
use std::collections::BTreeSet;
use std::fs;
use synctool_testkit::{KillRun, PgVersion, wait_for};

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
        ("archive.half_open", 1),
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
    assert_eq!(killed.len(), 7);
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

/// The scratch server dies at these steps, and the service that uses it lives: it goes on by itself.
fn the_scratch_server_dies(version: PgVersion, points: &[&str]) {
    let world = World::new(version, SCHEMA);
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    for (round, &point) in (1..).zip(points) {
        if ["datasync.table_copied", "datasync.answered"].contains(&point) {
            world.run(&["resync", "--wait", "0", "nokey"]).ok();
        }
        let mut service = stopped_at(&world.service(), point, 1).start();
        service.wait_stopped();
        let pid = world.scratch_pid().expect("it runs");
        kill("-9", &pid);
        service.resume();
        world.eventually_same(TABLES);
        // And on, from where it stands now.
        load(&world, round);
        world.eventually_same(TABLES);
        world.run(&["verify"]).ok();
        service.interrupt();
        service.wait().assert_success();
        load(&world, round + 100);
    }
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn a_scratch_server_that_dies_at_any_step_changes_nothing() {
    let points = [
        "datasync.first_copy",
        "datasync.before_commit",
        "datasync.before_plan",
        "datasync.planned",
        "datasync.replayed",
        "datasync.before_commit",
        "datasync.committed",
        "datasync.table_copied",
        "datasync.answered",
    ];
    the_scratch_server_dies(PgVersion::V18, &points);
}

/// While the first copy is made, and on both sides of what a batch lets it replay.
#[test]
fn a_scratch_server_that_dies_beside_a_plan_changes_nothing_15() {
    let points = ["datasync.first_copy", "datasync.planned", "datasync.replayed"];
    the_scratch_server_dies(PgVersion::V15, &points);
}

/// The scratch server has got one segment of a batch that was planned, and not the others.
fn killed_while_the_gate_is_half_open(version: PgVersion) {
    let world = World::new(version, SCHEMA);
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    world.run(&["run-once"]).ok();
    let is_planned = || world.local.psql("SELECT count(*) FROM synctool.datasync_plan") == "1";
    for round in 1..=3 {
        // Several segments, of one batch.
        (0..3).for_each(|more| load(&world, round * 10 + more));
        // What was open at the stored place may be let through once more before the batch is planned.
        for nth in 1..=2 {
            world.once().at("archive.half_open", nth).run().assert_killed();
            if is_planned() {
                break;
            }
        }
        assert!(is_planned());
        assert!(
            !files(&world.path("scratch/ready")).is_empty(),
            "all of it was let through"
        );
        let pid = world.scratch_pid().expect("it runs");
        match round {
            1 => {}
            2 => kill("-9", &pid),
            _ => {
                kill("-INT", &pid);
                wait_for("the end of the scratch server", PATIENCE, || {
                    world.scratch_pid().is_none()
                });
                fs::remove_dir_all(world.path("scratch")).unwrap();
            }
        }
        world.run(&["run-once"]).ok();
        world.same(TABLES);
        world.run(&["verify"]).ok();
    }
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn a_kill_while_the_gate_is_half_open_changes_nothing() {
    killed_while_the_gate_is_half_open(PgVersion::V18);
}

#[test]
fn a_kill_while_the_gate_is_half_open_changes_nothing_15() {
    killed_while_the_gate_is_half_open(PgVersion::V15);
}

/// Between the plan and its batch all that the scratch server was is lost. What the rows were before is stored, and is
/// not read again: the server that is made anew is asked for the rows behind the batch only.
#[test]
fn a_scratch_directory_that_is_removed_within_a_batch_changes_nothing() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    world.run(&["run-once"]).ok();
    let stored = || {
        let plan = "SELECT plan_lsn, xmin FROM synctool.datasync_plan";
        let before = "SELECT count(*) > 0, min(xmin::text), max(xmin::text) FROM synctool.datasync_pre";
        (world.local.psql(plan), world.local.psql(before))
    };
    for (round, point) in (1..).zip(["datasync.planned", "datasync.replayed", "datasync.before_commit"]) {
        load(&world, round);
        world.once().at(point, 1).run().assert_killed();
        let planned = stored();
        assert!(planned.1.starts_with("t|"), "{planned:?}");
        kill("-INT", &world.scratch_pid().expect("it runs"));
        wait_for("the end of the scratch server", PATIENCE, || {
            world.scratch_pid().is_none()
        });
        fs::remove_dir_all(world.path("scratch")).unwrap();
        // There is more to come by now.
        load(&world, round + 100);
        world.once().at("datasync.before_commit", 1).run().assert_killed();
        assert_eq!(stored(), planned, "nothing is planned twice");
        world.run(&["run-once"]).ok();
        world.same(TABLES);
        world.run(&["verify"]).ok();
    }
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

/// Whoever asks for an end while there is much to do gets it at the end of the batch at hand.
#[test]
fn a_stop_with_a_backlog_ends_at_the_end_of_a_batch() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    world.run(&["run-once"]).ok();
    let batches = || -> u32 {
        let sql = "SELECT count(*) FROM data_sync_logs WHERE event = 'batch'";
        world.local.psql(sql).parse().unwrap()
    };
    let behind = |world: &World| world.json(&["status"]).1["segments_behind"].as_u64().unwrap();
    (1..=6).for_each(|round| load(&world, round));
    for point in ["datasync.planned", "datasync.replayed", "datasync.before_commit"] {
        let (before, backlog) = (batches(), behind(&world));
        assert!(backlog > 1);
        let mut service = stopped_at(&world.service(), point, 1).start();
        service.wait_stopped();
        match point {
            "datasync.planned" => drop(world.run(&["stop", "--wait", "0"]).ok()),
            _ => service.interrupt(),
        }
        service.resume();
        service.wait().assert_success();
        assert_eq!(batches(), before + 1, "the one at hand, at {point}");
        assert!((1..backlog).contains(&behind(&world)));
        let open =
            "SELECT (SELECT count(*) FROM synctool.datasync_plan) + (SELECT count(*) FROM synctool.datasync_pre)";
        assert_eq!(world.local.psql(open), "0");
        assert_eq!(
            world.local.psql("SELECT state FROM synctool.datasync_service"),
            "stopped"
        );
        assert!(world.scratch_pid().is_none(), "the scratch server runs");
        world.run(&["verify"]).ok();
    }
    world.run(&["run-once"]).ok();
    world.same(TABLES);
}

/// Whoever asks for an end while the archive's command does not end is heard, before the first copy and behind it, by a
/// request and by a signal.
#[test]
fn a_stop_is_heard_while_a_command_does_not_end() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.ready();
    let script =
        "if [ -e \"$0.held\" ]; then echo asked >\"$0.asked\"; while [ -e \"$0.held\" ]; do sleep 0.1; done; exit 1; fi
        exec cp \"$(dirname \"$0\")/archive/$1\" \"$2\"";
    fs::write(world.path("fetch"), script).unwrap();
    let fetch = format!("WAL_FETCH_COMMAND = \"sh {} %f %p\"", world.path("fetch").display());
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &fetch);
    world.add(TABLES);
    for round in 0..3 {
        load(&world, round);
        fs::write(world.path("fetch.held"), "").unwrap();
        let service = world.service().start();
        wait_for("a fetch that does not end", PATIENCE, || {
            world.path("fetch.asked").exists()
        });
        match round {
            2 => service.interrupt(),
            _ => drop(world.run(&["stop", "--wait", "0"]).ok()),
        }
        service.wait().assert_success();
        assert_eq!(
            world.local.psql("SELECT state, error FROM synctool.datasync_service"),
            "stopped|"
        );
        fs::remove_file(world.path("fetch.held")).unwrap();
        fs::remove_file(world.path("fetch.asked")).unwrap();
        world.run(&["run-once"]).ok();
        world.same(TABLES);
    }
    world.run(&["verify"]).ok();
}

/// Somebody who reads in the scratch server holds up its replay, for as long as he likes. A service that waits for it on
/// the way to the stored place hears whoever asks for an end.
#[test]
fn a_stop_is_heard_while_the_scratch_server_does_not_get_on() {
    let fill = "INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g";
    let world = followed(SCHEMA, fill, TABLES);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    (1..6).for_each(|round| load(&world, round));
    world
        .production
        .psql("BEGIN; LOCK TABLE acc IN ACCESS EXCLUSIVE MODE; UPDATE acc SET n = 0; COMMIT");
    (6..8).for_each(|round| load(&world, round));
    world.run(&["run-once"]).ok();
    let at = || world.local.psql("SELECT applied_lsn FROM synctool.datasync_state");
    let place = at();
    for way in ["request", "signal"] {
        fs::remove_dir_all(world.path("scratch")).unwrap();
        let mut service = stopped_at(&world.service(), "archive.came_along", 1).start();
        service.wait_stopped();
        let mut reader = Session::of(&mut world.scratch_psql());
        reader.run("BEGIN; SELECT count(*) FROM acc");
        service.resume();
        wait_for("a replay that waits for the reader", PATIENCE, || {
            let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'acc'::regclass";
            let asked = world.scratch_psql().args(["-c", waits]).output().expect("psql");
            match asked.stdout.trim_ascii() {
                b"1" => Ok(()),
                _ => Err(format!("{asked:?}")),
            }
        });
        match way {
            "request" => drop(world.run(&["stop", "--wait", "0"]).ok()),
            _ => service.interrupt(),
        }
        service.wait().assert_success();
        assert!(world.scratch_pid().is_none(), "the scratch server runs");
        assert_eq!(at(), place);
    }
    load(&world, 8);
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    world.run(&["verify"]).ok();
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

const LARGE: &str = "CREATE TABLE large (id int, body text, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE TABLE small (id int PRIMARY KEY);";
/// When the rows of each range came that are beside the table.
const RANGES: &str = "SELECT DISTINCT xmin::text FROM synctool.$T ORDER BY 1";

/// A large table is copied range by range; whoever goes on after a kill begins at the first that is missing, and the
/// rows that are there stay until all new ones are.
#[test]
fn a_killed_copy_of_a_large_table_goes_on_at_the_first_range_that_is_missing() {
    let world = World::new(PgVersion::V18, LARGE);
    world.configure("COPY_RANGE_MB = 1\nCOPY_JOBS = 1\n");
    world.production.psql(
        "INSERT INTO large SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g; INSERT INTO small VALUES (1)",
    );
    world.backup();
    world.add(&["large", "small"]);
    world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
    world.archived();
    let run = world.once();
    let staging = |world: &World| {
        world
            .local
            .psql("SELECT relname FROM pg_class WHERE relname LIKE 'datasync_copy%' AND relkind = 'r'")
    };
    let ranges = |world: &World| -> BTreeSet<String> {
        let sql = RANGES.replace("$T", &staging(world));
        world.local.psql(&sql).lines().map(str::to_owned).collect()
    };
    let of_copies = |world: &World, condition: &str| -> u32 {
        let sql = format!("SELECT count(*) FROM synctool.datasync_copies WHERE {condition}");
        world.local.psql(&sql).parse().unwrap()
    };
    // The first copy.
    run.clone().at("datasync.range_copied", 2).run().assert_killed();
    assert!(of_copies(&world, "true") >= 5);
    assert_eq!(of_copies(&world, "done"), 2);
    let first = ranges(&world);
    assert_eq!(first.len(), 2);
    assert_eq!(world.local.psql("SELECT count(*) FROM large"), "0");
    let at = "SELECT applied_lsn FROM synctool.datasync_state";
    let place = world.local.psql(at);
    // Meanwhile production goes on; the copy is finished where it was begun.
    world
        .production
        .psql("UPDATE large SET body = 'changed' WHERE id % 7 = 0; DELETE FROM large WHERE id > 19000");
    world.archived();
    run.clone().at("datasync.before_range", 2).run().assert_killed();
    assert_eq!(world.local.psql(at), place);
    assert_eq!(of_copies(&world, "done"), 3);
    let second = ranges(&world);
    assert!(second.is_superset(&first) && second.len() == 3, "{first:?} {second:?}");
    run.clone().at("datasync.table_copied", 1).run().assert_killed();
    assert_eq!(
        (
            of_copies(&world, "NOT done"),
            world.local.psql("SELECT count(*) FROM large")
        ),
        (0, "0".into())
    );
    assert!(ranges(&world).is_superset(&second));
    run.run().assert_success();
    world.same(&["large", "small"]);
    assert_eq!((staging(&world), of_copies(&world, "true")), (String::new(), 0));

    // Copied anew by several at once: the old rows stay until the new ones are whole, and the request is not begun again.
    world.reconfigure("COPY_JOBS = 1", "COPY_JOBS = 3");
    world.local.psql("UPDATE large SET body = 'tampered' WHERE id = 5");
    world.run(&["verify"]).fails(3, &["DIFFERENT in 2 rows"]);
    let old = world.local.psql(&super::rows("large"));
    world.run(&["resync", "--wait", "0", "large"]).ok();
    run.clone().at("datasync.range_copied", 2).run().assert_killed();
    assert_eq!(world.local.psql(&super::rows("large")), old);
    assert!(world.state("public.large").starts_with("waiting: it is being copied"));
    let begun = ranges(&world);
    assert!(!begun.is_empty());
    run.clone().at("datasync.table_copied", 1).run().assert_killed();
    assert!(ranges(&world).is_superset(&begun));
    assert_eq!(world.local.psql(&super::rows("large")), old);
    run.run().assert_success();
    world.same(&["large", "small"]);
    assert_eq!((staging(&world), of_copies(&world, "true")), (String::new(), 0));
    let copied = "SELECT count(*) FROM data_sync_logs WHERE event = 'copied' AND table_name = 'public.large'";
    assert_eq!(world.local.psql(copied), "2");
    world.run(&["verify"]).ok();

    // Taken off the list in the middle, nothing is left beside it.
    world.run(&["resync", "--wait", "0", "large"]).ok();
    run.clone().at("datasync.range_copied", 2).run().assert_killed();
    world.run(&["remove-tables", "--wait", "0", "large"]).ok();
    run.run().assert_success();
    assert_eq!((staging(&world), of_copies(&world, "true")), (String::new(), 0));
}

/// A service that is asked to stop while it copies a large table ends behind the range at hand; what is copied stays.
#[test]
fn a_copy_that_is_asked_to_stop_ends_at_a_range_and_goes_on_there() {
    let world = World::new(PgVersion::V18, LARGE);
    world.configure("COPY_RANGE_MB = 1\nCOPY_JOBS = 1\n");
    world
        .production
        .psql("INSERT INTO large SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g");
    world.ready();
    world.add(&["large"]);
    let open = || {
        let sql = "SELECT count(*) FILTER (WHERE done) || ' ' || count(*) FROM synctool.datasync_copies";
        world.local.psql(sql)
    };
    for round in 1..=2 {
        let mut running = stopped_at(&world.service(), "datasync.range_copied", 1).start();
        running.wait_stopped();
        match round {
            1 => {
                world.run(&["stop", "--wait", "0"]);
            }
            _ => running.interrupt(),
        }
        running.resume();
        let outcome = running.wait();
        assert!(!outcome.killed, "{}", outcome.stderr);
        let found = open();
        let (done, all) = found.split_once(' ').expect("two numbers");
        let (done, all): (u32, u32) = (done.parse().unwrap(), all.parse().unwrap());
        assert!(done >= round && done < all, "round {round}: {found}");
        assert_eq!(world.local.psql("SELECT count(*) FROM large"), "0");
    }
    world.run(&["run-once"]).ok();
    world.same(&["large"]);
}

/// The service was asked to end, and was killed before it did: whoever works next is not meant.
#[test]
fn a_request_to_stop_that_nobody_answered_stops_nobody_else() {
    let world = World::new(PgVersion::V18, LARGE);
    world.configure("COPY_RANGE_MB = 1\nCOPY_JOBS = 1\n");
    world
        .production
        .psql("INSERT INTO large SELECT g, repeat(md5(g::text), 8) FROM generate_series(1, 20000) g");
    world.ready();
    world.add(&["large"]);
    let mut service = stopped_at(&world.service(), "datasync.range_copied", 1).start();
    service.wait_stopped();
    world.run(&["stop", "--wait", "0"]).ok();
    assert!(service.kill().killed);
    let held = "SELECT count(*) FROM pg_locks l JOIN pg_database d ON d.oid = l.database WHERE locktype = 'advisory' AND datname = current_database()";
    wait_for("the end of its sessions", PATIENCE, || world.local.psql(held) == "0");
    // It finishes the copy before it compares.
    world.run(&["verify"]).ok();
    world.same(&["large"]);
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
