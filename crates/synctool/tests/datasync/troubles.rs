//! What goes wrong around the service, and that it goes on afterwards.

use super::{PATIENCE, World, kill};
use std::fs;
use std::process::Command;
use synctool_testkit::{PgVersion, wait_for};

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";

fn running(version: PgVersion) -> World {
    let world = World::new(version, SCHEMA);
    world
        .production
        .psql("INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g");
    world.ready();
    world.add(&["acc"]);
    world.run(&["start"]).ok();
    world.eventually_same(&["acc"]);
    world
}

/// Waits until status says this.
fn told(world: &World, part: &str) {
    wait_for(part, PATIENCE, || {
        let said = world.run(&["status"]).stdout;
        match said.contains(part) {
            true => Ok(()),
            false => Err(said),
        }
    });
}

#[test]
fn a_missing_segment_is_told_and_once_it_is_back_all_goes_on() {
    let world = running(PgVersion::V18);
    // The segment is taken away before it is seen.
    world.run(&["stop"]).ok();
    let name = world
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    world.production.psql("UPDATE acc SET n = 0");
    world.archived();
    world
        .production
        .psql("INSERT INTO other SELECT generate_series(1, 20000)");
    world.archived();
    let (from, to) = (world.path("archive").join(&name), world.path("aside"));
    fs::rename(&from, &to).unwrap();
    world.run(&["start"]).ok();
    told(&world, &format!("WAL segment {name} is missing from the archive but"));
    let (code, status) = world.json(&["status"]);
    assert_eq!((code, status["last_error"]["code"].as_str()), (1, Some("ST-WAL-001")));
    assert!(status["segments_behind"].as_u64().unwrap() > 0 && status["lag_seconds"].as_f64().unwrap() > 0.0);
    // One log line, however often it looked.
    assert_eq!(
        world
            .local
            .psql("SELECT count(*) FROM data_sync_logs WHERE error_code = 'ST-WAL-001'"),
        "1"
    );
    fs::rename(&to, &from).unwrap();
    world.eventually_same(&["acc"]);
    told(&world, "is not archived yet");
    assert!(world.json(&["status"]).1["last_error"].is_null());
}

#[test]
fn a_damaged_segment_never_reaches_the_tables() {
    let world = running(PgVersion::V18);
    world.run(&["stop"]).ok();
    let name = world
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    world.production.psql("UPDATE acc SET n = n + 1");
    world.archived();
    let path = world.path("archive").join(&name);
    let whole = fs::read(&path).unwrap();
    let mut broken = whole.clone();
    // Inside the first records.
    broken[200] ^= 0xff;
    fs::write(&path, &broken).unwrap();
    let before = world.local.psql("SELECT sum(n) FROM acc");
    for _ in 0..2 {
        world.run(&["run-once"]);
        assert_eq!(world.local.psql("SELECT sum(n) FROM acc"), before);
    }
    // Half of it is waited for, the whole of it is taken.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    world.run(&["run-once"]).fails(0, &["cannot be taken yet"]);
    fs::write(&path, &whole).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

#[test]
fn a_scratch_server_that_is_killed_or_lost_is_there_again() {
    let world = running(PgVersion::V18);
    for round in 0..3 {
        kill("-9", &world.scratch_pid().expect("it runs"));
        world.production.psql(&format!("UPDATE acc SET n = {round}"));
        world.archived();
        world.eventually_same(&["acc"]);
    }
    // Its data is lost; the base backup and the archive are there.
    world.run(&["stop"]).ok();
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world
        .production
        .psql("UPDATE acc SET n = n + 7; INSERT INTO acc VALUES (1000, 1)");
    world.archived();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world.run(&["verify"]).ok();
    // Its data is damaged: after some attempts it is made again.
    world.run(&["start"]).ok();
    wait_for("the scratch server", PATIENCE, || world.scratch_pid().is_some());
    world.run(&["stop"]).ok();
    // That is where it keeps the names of databases.
    fs::write(world.path("scratch/data/global/1262"), b"").unwrap();
    world.production.psql("UPDATE acc SET n = 70");
    world.archived();
    world.run(&["start"]).ok();
    world.eventually_same(&["acc"]);
    assert_eq!(
        world
            .local
            .psql("SELECT count(*) FROM data_sync_logs WHERE event = 'scratch_rebuilt'"),
        "1"
    );
}

#[test]
fn settings_of_production_that_rise_are_followed() {
    let world = running(PgVersion::V18);
    world
        .production
        .psql("ALTER SYSTEM SET max_connections = 333; ALTER SYSTEM SET max_prepared_transactions = 55");
    world.production.restart();
    world.production.psql("UPDATE acc SET n = 333");
    world.archived();
    world.eventually_same(&["acc"]);
    let conf = fs::read_to_string(world.path("scratch/data/postgresql.conf")).unwrap();
    assert!(conf.contains("max_connections = '333'"), "{conf}");
}

#[test]
fn a_lock_of_production_makes_one_table_wait_and_the_others_go_on() {
    let schema = "CREATE TABLE acc (id int PRIMARY KEY, n int); CREATE TABLE held (id int PRIMARY KEY, n int)";
    let world = World::new(PgVersion::V18, schema);
    world
        .production
        .psql("INSERT INTO acc VALUES (1, 1); INSERT INTO held SELECT g, 1 FROM generate_series(1, 50) g");
    world.ready();
    world.add(&["acc", "held"]);
    world.run(&["run-once"]).ok();
    // Its rows change, and then it is locked by a transaction that stays open.
    world.production.psql("UPDATE held SET n = 2; UPDATE acc SET n = 2");
    let mut client = Command::new(world.production.tool("psql"))
        .args([
            "-h",
            "127.0.0.1",
            "-U",
            "postgres",
            "-p",
            &world.production.port().to_string(),
            "-qAt",
        ])
        .args([
            "-c",
            "BEGIN; TRUNCATE held; INSERT INTO held VALUES (7, 7); SELECT pg_sleep(3600)",
        ])
        .spawn()
        .unwrap();
    let locked =
        "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass AND mode = 'AccessExclusiveLock' AND granted";
    wait_for("the lock", PATIENCE, || world.production.psql(locked) == "1");
    world.sync();
    world.same(&["acc"]);
    assert!(
        world
            .state("public.held")
            .starts_with("waiting: locked in production at this place")
    );
    let _ = client.kill();
    let _ = client.wait();
    world.production.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; TRUNCATE held%' AND pid <> pg_backend_pid()");
    wait_for("the end of the lock", PATIENCE, || world.production.psql(locked) == "0");
    world.production.psql("UPDATE held SET n = 3 WHERE id < 10; CHECKPOINT");
    world.sync();
    world.same(&["acc", "held"]);
}

#[test]
fn a_failover_is_followed_where_it_forked_behind_us() {
    let world = World::with(PgVersion::V18, SCHEMA, |p| p.setting("wal_keep_size", "1GB"));
    world
        .production
        .psql("INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g");
    world.ready();
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.production.psql("UPDATE acc SET n = 5; SELECT pg_switch_wal()");
    world.sync();
    // A standby is promoted: here the same data directory, which goes through recovery and comes out on timeline 2.
    world.production.psql("UPDATE acc SET n = 6 WHERE id < 50");
    let data = world.production.data_directory();
    world.production.stop();
    fs::write(data.join("standby.signal"), b"").unwrap();
    world.production.restart();
    world.production.psql("SELECT pg_promote()");
    world
        .production
        .psql("UPDATE acc SET n = 7 WHERE id < 20; INSERT INTO acc VALUES (500, 5)");
    world.archived();
    wait_for("the history", PATIENCE, || {
        world.path("archive/00000002.history").is_file()
    });
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    assert_eq!(world.local.psql("SELECT timeline FROM synctool.datasync_state"), "2");
    world.production.psql("DELETE FROM acc WHERE id % 2 = 0");
    world.sync();
    world.same(&["acc"]);
    // A scratch server made anew goes the same way.
    fs::remove_dir_all(world.path("scratch")).ok();
    world.production.psql("INSERT INTO acc VALUES (501, 1)");
    world.sync();
    world.same(&["acc"]);
}

#[test]
fn an_archive_behind_a_command_and_a_backup_behind_another() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world
        .production
        .psql("INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g");
    world.ready();
    let fetch = format!("WAL_FETCH_COMMAND = \"cp {}/%f %p\"", world.path("archive").display());
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &fetch);
    let restore = format!(
        "BASE_RESTORE_COMMAND = \"cp -a {}/. %p/\"",
        world.path("backup").display()
    );
    world.reconfigure("BASE_BACKUP = \"backup\"", &restore);
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world.production.psql("UPDATE acc SET n = 1");
    world.sync();
    world.same(&["acc"]);
    world.run(&["status"]).fails(1, &["stopped", "public.acc"]);
}

#[test]
fn an_idle_production_is_no_error_and_its_silence_is_told() {
    let world = running(PgVersion::V18);
    world.run(&["stop"]).ok();
    world.reconfigure("ARCHIVE_INTERVAL = 3600", "ARCHIVE_INTERVAL = \"100ms\"");
    world.run(&["start"]).ok();
    told(&world, "SILENT");
    let lines = "SELECT count(*) FROM data_sync_logs WHERE event = 'archive_silent'";
    wait_for("a line of the log", PATIENCE, || world.local.psql(lines) == "1");
    assert!(world.json(&["status"]).1["last_error"].is_null());
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    world.eventually_same(&["acc"]);
}
