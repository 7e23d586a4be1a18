//! The scratch server is worth nothing that could not be made again, and is made again when it has to be, and only then.

use super::{World, files, followed};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use synctool_testkit::PgVersion;

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";
const ROWS: &str = "INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g";
const REBUILT: &str = "SELECT count(*) FROM data_sync_logs WHERE event = 'scratch_rebuilt' AND level = 'warn'";

fn change(world: &World, n: usize) {
    world.production.psql(&format!("UPDATE acc SET n = {n}"));
    world.archived();
}

/// Whatever is lost of it: the third run that meets it throws it away, and the next one makes it anew.
#[test]
fn what_is_lost_of_a_scratch_server_is_made_anew() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let data = || world.path("scratch/data");
    let damages: [&dyn Fn(); 4] = [
        &|| fs::remove_dir_all(data()).unwrap(),
        &|| fs::write(data().join("global/pg_control"), b"nothing").unwrap(),
        &|| fs::remove_file(data().join("PG_VERSION")).unwrap(),
        &|| fs::remove_file(world.path("scratch/backup_label")).unwrap(),
    ];
    for (round, damage) in (1..).zip(damages) {
        change(&world, round);
        damage();
        for _ in 0..3 {
            world.run(&["run-once"]).fails(
                1,
                &[
                    "ST-WAL-005",
                    "the scratch server's data is damaged",
                    "after the third time",
                ],
            );
        }
        assert_eq!(world.local.psql(REBUILT), round.to_string());
        world.run(&["run-once"]).ok();
        world.same(&["acc"]);
    }
    // What is in the gate is given again.
    change(&world, 10);
    fs::remove_dir_all(world.path("scratch/gate")).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    assert_eq!(world.local.psql(REBUILT), "4");
}

/// Faults before and after one that works are not in a row.
#[test]
fn a_fault_that_passed_counts_no_more() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let (control, aside) = (world.path("scratch/data/global/pg_control"), world.path("aside"));
    for n in 0..2 {
        change(&world, n);
        fs::rename(&control, &aside).unwrap();
        for _ in 0..2 {
            world.run(&["run-once"]).fails(1, &["ST-WAL-005"]);
        }
        fs::rename(&aside, &control).unwrap();
        world.run(&["run-once"]).ok();
        world.same(&["acc"]);
    }
    assert_eq!(world.local.psql(REBUILT), "0");
}

/// Nor are those of several batches: one that is applied shows that it works, however many are waiting.
#[test]
fn a_batch_that_is_applied_ends_a_row_of_faults() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    (1..3).for_each(|n| change(&world, n));
    let faults = world.path("scratch/faults");
    fs::write(&faults, "2").unwrap();
    world.once().at("datasync.planned", 2).run().assert_killed();
    assert!(!faults.exists());
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

/// What could not be made again is kept, and it is told what is missing.
#[test]
fn a_scratch_server_is_kept_where_the_log_behind_its_backup_is_gone() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let label = fs::read_to_string(world.path("scratch/backup_label")).unwrap();
    let first = label.split_once("(file ").unwrap().1.split_once(')').unwrap().0;
    let (segment, aside) = (world.path("archive").join(first), world.path("aside"));
    fs::rename(&segment, &aside).unwrap();
    change(&world, 7);
    let (control, hidden) = (world.path("scratch/data/global/pg_control"), world.path("control"));
    fs::rename(&control, &hidden).unwrap();
    for _ in 0..2 {
        world
            .run(&["run-once"])
            .fails(1, &["ST-WAL-005", "after the third time"]);
    }
    let says = format!("it cannot be made anew: the archive holds no segment {first}");
    for _ in 0..2 {
        world
            .run(&["run-once"])
            .fails(1, &["ST-WAL-005", &says, "put back what is missing"]);
    }
    assert_eq!(world.local.psql(REBUILT), "0");
    // It may be well again, and otherwise what is missing is put back.
    fs::rename(&hidden, &control).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    fs::rename(&aside, &segment).unwrap();
    change(&world, 8);
    fs::remove_file(&control).unwrap();
    for _ in 0..3 {
        world
            .run(&["run-once"])
            .fails(1, &["ST-WAL-005", "after the third time"]);
    }
    assert_eq!(world.local.psql(REBUILT), "1");
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

/// It follows while its log is read again: all of that would not find room at once.
#[test]
fn a_scratch_server_that_is_made_anew_comes_along() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    (1..6).for_each(|n| change(&world, n));
    world.run(&["run-once"]).ok();
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.once().at("archive.came_along", 2).run().assert_killed();
    assert!(world.scratch_pid().is_some(), "it runs");
    assert!(files(&world.path("scratch/ready")).is_empty());
    // Broken off on the way, it goes on from there.
    change(&world, 7);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world.run(&["verify"]).ok();
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

/// As systemd starts it again and again.
#[test]
fn a_service_that_cannot_begin_makes_its_scratch_server_anew_too() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    change(&world, 7);
    fs::write(world.path("scratch/data/global/pg_control"), b"nothing").unwrap();
    for _ in 0..3 {
        world.run(&["start", "--foreground"]).fails(1, &["ST-WAL-005"]);
    }
    assert_eq!(world.local.psql(REBUILT), "1");
    world.run(&["start"]).ok();
    world.eventually_same(&["acc"]);
}

/// Whether it runs is seen by the path that it was started with.
#[test]
fn a_scratch_directory_with_dots_in_its_path_is_like_any_other() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.reconfigure("SCRATCH_DIR = \"scratch\"", "SCRATCH_DIR = \"aside/../scratch\"");
    world.production.psql(ROWS);
    world.ready();
    world.add(&["acc"]);
    for n in 0..2 {
        change(&world, n);
        world.run(&["run-once"]).ok();
        world.same(&["acc"]);
        assert!(world.scratch_pid().is_none(), "it runs");
    }
}

/// Unpacking it again would not help.
#[test]
fn a_backup_that_begins_behind_the_stored_place_is_refused_for_good() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    change(&world, 7);
    world.production.base_backup(&world.path("late"));
    world.archived();
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.reconfigure("BASE_BACKUP = \"backup\"", "BASE_BACKUP = \"late\"");
    let refused = || {
        world.run(&["run-once"]).fails(
            2,
            &[
                "the base backup begins at",
                "behind the stored place",
                "use an older base backup and remove the scratch directory",
            ],
        );
    };
    refused();
    let unpacked = || fs::metadata(world.path("scratch/finished")).unwrap().ino();
    let first = unpacked();
    for _ in 0..4 {
        refused();
    }
    assert_eq!((unpacked(), world.local.psql(REBUILT)), (first, "0".into()));
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.reconfigure("BASE_BACKUP = \"late\"", "BASE_BACKUP = \"backup\"");
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}
