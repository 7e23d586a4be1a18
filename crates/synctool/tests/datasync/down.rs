//! The local server goes down at any step, and disks are full: rows are right afterwards, and nothing is lost or counted
//! twice.

use super::{World, stopped_at};
use synctool_testkit::{PgVersion, Postgres, SmallDisk};

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int, body text); CREATE TABLE nokey (a int, b text)";
const TABLES: &[&str] = &["acc", "nokey"];
/// Production's operations, as they were counted.
const COUNTED: &str = "SELECT sum(added), sum(updated), sum(deleted) FROM data_sync_metrics
    WHERE table_name = 'public.acc' AND period = 'month'";

/// Changes rows and archives it; adds 200 rows to a table, updates 150, deletes 50.
fn load(world: &World, round: usize) {
    world.production.psql(&format!(
        "INSERT INTO acc SELECT {round} * 1000 + g, g, repeat(md5(g::text), 8) FROM generate_series(1, 200) g;
         UPDATE acc SET n = n + 1 WHERE id BETWEEN {round} * 1000 + 1 AND {round} * 1000 + 150;
         DELETE FROM acc WHERE id BETWEEN {round} * 1000 + 101 AND {round} * 1000 + 150;
         INSERT INTO nokey SELECT g % 5, NULLIF(g % 3, 1)::text FROM generate_series(1, 50) g;
         DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey LIMIT 20); CHECKPOINT; INSERT INTO other VALUES (1)"
    ));
    world.archived();
}

#[test]
fn a_local_server_that_is_killed_at_any_step_has_the_right_rows_afterwards() {
    let server = Postgres::start(PgVersion::V18);
    let world = World::between(PgVersion::V18, SCHEMA, |p| p, server.database("datasync"));
    world.backup();
    world.add(TABLES);
    load(&world, 0);
    let points = [
        "datasync.first_copy",
        "datasync.before_commit",
        "datasync.table_copied",
        "datasync.answered",
        "datasync.before_plan",
        "datasync.planned",
        "datasync.replayed",
        "datasync.before_commit",
        "datasync.committed",
    ];
    for (round, point) in (1..).zip(points) {
        if ["datasync.table_copied", "datasync.answered"].contains(&point) {
            world.run(&["resync", "--wait", "0", "acc"]).ok();
        }
        let mut run = stopped_at(&world.once(), point, 1).start();
        run.wait_stopped();
        // Half of the times it is there again when the program goes on, half of the times not yet.
        server.kill9();
        if round % 2 == 0 {
            server.restart();
        }
        run.resume();
        let ended = run.wait();
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        if round % 2 == 1 {
            assert_ne!(ended.code, Some(0), "at {point} it cannot end well");
            server.restart();
        }
        world.once().run().assert_success();
        world.same(TABLES);
        world.run(&["verify"]).ok();
        load(&world, round);
    }
    world.once().run().assert_success();
    world.same(TABLES);
    let rounds = points.len() + 1;
    let counted = format!("{}|{}|{}", 200 * rounds, 150 * rounds, 50 * rounds);
    assert_eq!(world.local.psql(COUNTED), counted, "each batch is counted once");
}

#[test]
fn a_full_local_disk_is_told_and_nothing_is_lost() {
    let disk = SmallDisk::new(64);
    let space = disk.folder("space");
    let server = Postgres::start(PgVersion::V18);
    server.psql(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()));
    let local = server.database("datasync");
    server.psql(&format!(
        "ALTER DATABASE {} SET default_tablespace = 'small'",
        local.name()
    ));
    let world = World::between(PgVersion::V18, SCHEMA, |p| p, local);
    world.ready();
    world.add(TABLES);
    world.run(&["run-once"]).ok();
    load(&world, 1);
    world.run(&["run-once"]).ok();
    world
        .production
        .psql("INSERT INTO acc SELECT 100000 + g, g, repeat(md5(g::text), 16) FROM generate_series(1, 4000) g");
    world.archived();
    let before = world.local.psql("SELECT count(*) FROM acc");
    let filler = disk.fill(256);
    world.run(&["run-once"]).fails(1, &["ST-IO-001"]);
    assert_eq!(
        world.local.psql("SELECT count(*) FROM acc"),
        before,
        "nothing was changed"
    );
    std::fs::remove_file(filler).unwrap();
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    world.run(&["verify"]).ok();
}

#[test]
fn a_full_disk_of_the_scratch_server_is_told_and_nothing_is_lost() {
    let disk = SmallDisk::new(400);
    let world = World::new(PgVersion::V18, SCHEMA);
    world.reconfigure(
        "SCRATCH_DIR = \"scratch\"",
        &format!("SCRATCH_DIR = \"{}\"", disk.folder("scratch").display()),
    );
    world.ready();
    world.add(TABLES);
    world.run(&["run-once"]).ok();
    load(&world, 1);
    world.run(&["run-once"]).ok();
    for (round, left) in [(2, 64), (3, 700), (4, 1500), (5, 3000)] {
        load(&world, round);
        world.production.psql(&format!(
            "INSERT INTO acc SELECT {round} * 100000 + g, g, repeat(md5(g::text), 16) FROM generate_series(1, 4000) g"
        ));
        world.archived();
        let filler = disk.fill(left);
        let ran = world.run(&["run-once"]);
        // Where it stops depends on the room that is left; it may even be enough.
        assert!(ran.code == 0 || !ran.stderr.is_empty(), "round {round}: {}", ran.stdout);
        if left == 64 {
            ran.fails(1, &["space"]);
        }
        std::fs::remove_file(filler).unwrap();
        world.run(&["run-once"]).ok();
        world.same(TABLES);
    }
    world.run(&["verify"]).ok();
}

#[test]
fn a_base_backup_that_does_not_fit_is_not_unpacked() {
    let disk = SmallDisk::new(30);
    let world = World::new(PgVersion::V18, SCHEMA);
    let scratch = disk.folder("scratch");
    world.reconfigure(
        "SCRATCH_DIR = \"scratch\"",
        &format!("SCRATCH_DIR = \"{}\"", scratch.display()),
    );
    world.ready();
    world.add(TABLES);
    let filler = disk.fill(8 << 10);
    world.run(&["doctor"]).fails(
        1,
        &[
            "scratch needs about 1 GB (size of production cluster), 0 GB free",
            "or set SCRATCH_DIR to a larger disk",
        ],
    );
    std::fs::remove_file(filler).unwrap();
    for command in [["run-once"].as_slice(), &["start"]] {
        world.run(command).fails(
            1,
            &[
                "no space is left for the scratch server",
                "MB are needed in",
                "set scratch_dir to a larger disk",
            ],
        );
        assert!(!scratch.join("data").exists());
    }
    disk.resize(400);
    world.run(&["run-once"]).ok();
    world.same(TABLES);
}

#[test]
fn a_segment_that_does_not_fit_is_not_fetched() {
    let disk = SmallDisk::new(400);
    let world = World::new(PgVersion::V18, SCHEMA);
    world.reconfigure(
        "SCRATCH_DIR = \"scratch\"",
        &format!("SCRATCH_DIR = \"{}\"", disk.folder("scratch").display()),
    );
    let (archive, asked) = (world.path("archive"), world.path("asked"));
    let fetch = format!(
        "WAL_FETCH_COMMAND = \"echo %f >> {}; cp {}/%f %p\"",
        asked.display(),
        archive.display()
    );
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &fetch);
    world.ready();
    world.add(TABLES);
    world.run(&["run-once"]).ok();
    load(&world, 1);
    let segments = || {
        let asked = std::fs::read_to_string(&asked).unwrap();
        asked.lines().filter(|name| !name.ends_with(".history")).count()
    };
    let (before, rows) = (segments(), world.local.psql("SELECT count(*) FROM acc"));
    let filler = disk.fill(20_000);
    world.run(&["run-once"]).fails(
        1,
        &["ST-IO-001", "no space is left for WAL segment", "nothing was lost"],
    );
    assert_eq!(
        (segments(), world.local.psql("SELECT count(*) FROM acc")),
        (before, rows)
    );
    std::fs::remove_file(filler).unwrap();
    world.run(&["run-once"]).ok();
    world.same(TABLES);
}
