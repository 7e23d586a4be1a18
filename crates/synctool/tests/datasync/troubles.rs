//! What goes wrong around the service, and that it goes on afterwards.

use super::{PATIENCE, Ran, SECRET, Session, World, files, followed, kill};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use synctool_testkit::{PgVersion, Postgres, S3, wait_for};

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";
const ROWS: &str = "INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g";

fn running(version: PgVersion) -> World {
    let world = World::new(version, SCHEMA);
    world.production.psql(ROWS);
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

fn a_missing_segment_is_told(version: PgVersion) {
    let world = running(version);
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
    // A service that waits for help can be stopped, and leaves no scratch server behind.
    world.run(&["stop"]).ok();
    assert!(world.scratch_pid().is_none(), "the scratch server runs");
    fs::rename(&to, &from).unwrap();
    world.run(&["start"]).ok();
    world.eventually_same(&["acc"]);
    told(&world, "is not archived yet");
    assert!(world.json(&["status"]).1["last_error"].is_null());
}

#[test]
fn a_missing_segment_is_told_and_once_it_is_back_all_goes_on() {
    a_missing_segment_is_told(PgVersion::V18);
}

#[test]
fn a_missing_segment_is_told_and_once_it_is_back_all_goes_on_15() {
    a_missing_segment_is_told(PgVersion::V15);
}

/// Runs once, again and again, until it is told.
fn told_by_runs(world: &World, waits: &str) -> Ran {
    world.run(&["run-once"]).fails(0, &[waits]);
    // Looks that follow each other at once count as one.
    for _ in 0..12 {
        let ran = world.run(&["run-once"]);
        if ran.code != 0 {
            return ran;
        }
    }
    panic!("nothing was told");
}

fn a_damaged_segment(version: PgVersion) {
    let world = running(version);
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
    let text = format!("WAL segment {name} cannot be used: ");
    told_by_runs(&world, &format!("segment {name} cannot be taken yet: ")).fails(
        1,
        &[
            "ST-WAL-002",
            &text,
            " is damaged: ",
            "copy the segment again from production",
        ],
    );
    assert_eq!(world.local.psql("SELECT sum(n) FROM acc"), before);
    let told = "SELECT error_code, message FROM data_sync_errors ORDER BY id DESC LIMIT 1";
    assert!(world.local.psql(told).starts_with(&format!("ST-WAL-002|{text}")));
    assert_eq!(world.json(&["status"]).1["last_error"]["code"], "ST-WAL-002");
    assert!(!world.path("scratch/gate").join(&name).exists(), "it came to the gate");
    let counted = "SELECT errors > 0 FROM data_sync_metrics WHERE table_name = '*' AND period = 'month'";
    assert_eq!(world.local.psql(counted), "t");
    // Half of it is waited for, the whole of it is taken.
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    world.run(&["run-once"]).fails(0, &["cannot be taken yet"]);
    fs::write(&path, &whole).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    assert!(world.json(&["status"]).1["last_error"].is_null());
}

#[test]
fn a_damaged_segment_never_reaches_the_tables() {
    a_damaged_segment(PgVersion::V18);
}

#[test]
fn a_damaged_segment_never_reaches_the_tables_15() {
    a_damaged_segment(PgVersion::V15);
}

/// Somebody let the scratch server have more than was asked for: it stands at no known place any more.
#[test]
fn a_scratch_server_beyond_its_place_is_made_anew() {
    let world = running(PgVersion::V18);
    world.run(&["stop"]).ok();
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    let gate = world.path("scratch/gate");
    let owner = fs::metadata(&gate).unwrap();
    let mut ahead = Vec::new();
    for round in 1..=3 {
        let sql = "SELECT pg_walfile_name(pg_current_wal_lsn() + 1)";
        ahead.push(world.production.psql(sql));
        world.production.psql(&format!(
            "UPDATE acc SET n = n + {round}; DELETE FROM acc WHERE id = {round}"
        ));
        world.archived();
    }
    for name in &ahead {
        let to = gate.join(name);
        fs::copy(world.path("archive").join(name), &to).unwrap();
        std::os::unix::fs::chown(&to, Some(owner.uid()), Some(owner.gid())).unwrap();
    }
    let before = world.local.psql("SELECT sum(n) FROM acc");
    world
        .run(&["run-once"])
        .fails(1, &["ST-WAL-005", "the scratch server stands at ", ", beyond "]);
    assert_eq!(world.local.psql("SELECT sum(n) FROM acc"), before);
    world.run(&["start"]).ok();
    world.eventually_same(&["acc"]);
    world.run(&["verify"]).ok();
    let rebuilt = "SELECT count(*) FROM data_sync_logs WHERE event = 'scratch_rebuilt'";
    assert_eq!(world.local.psql(rebuilt), "1");
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

/// Production was set back to a copy of its disk, and archives another log under the names of the one that was followed.
#[test]
fn another_log_under_the_same_names_is_refused() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let data = world.production.data_directory();
    world.production.stop();
    let copy = world.path("copy");
    let duplicate = |from: &Path, to: &Path| {
        let _ = fs::remove_dir_all(to);
        let status = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    duplicate(&data, &copy);
    world.production.restart();
    let name = world
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    world.once().at("datasync.planned", 1).run().assert_killed();
    let (archive, aside) = (world.path("archive"), world.path("aside"));
    fs::create_dir(&aside).unwrap();
    let newer = || {
        let mut all = files(&archive);
        all.retain(|path| *path.file_name().unwrap() >= *name);
        all
    };
    world.production.stop();
    for path in newer() {
        fs::rename(&path, aside.join(path.file_name().unwrap())).unwrap();
    }
    // Other changes up to the same place, and up to another.
    for (other, says) in [
        (
            "UPDATE acc SET n = 2 WHERE id < 9",
            "it comes to the same place with other changes",
        ),
        (
            "INSERT INTO acc SELECT g, 2 FROM generate_series(1000, 100000) g",
            "and not to ",
        ),
    ] {
        duplicate(&copy, &data);
        world.production.restart();
        world.production.psql(other);
        world.archived();
        assert!(archive.join(&name).is_file(), "it archives under the same name");
        let known = "the archive holds another log than the one that was followed: ";
        for _ in 0..2 {
            world.run(&["run-once"]).fails(
                1,
                &[
                    "ST-WAL-002",
                    known,
                    says,
                    "put back the segments as production archived them",
                ],
            );
        }
        assert_eq!(world.local.psql("SELECT max(n) FROM acc"), "100");
        world.production.stop();
        newer().iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    // What was followed is put back.
    for path in files(&aside) {
        fs::rename(&path, archive.join(path.file_name().unwrap())).unwrap();
    }
    world.run(&["run-once"]).ok();
    assert_eq!(world.local.psql("SELECT min(n), max(n), count(*) FROM acc"), "1|1|100");
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
fn a_scratch_server_that_somebody_left_who_was_killed_is_stopped() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    world.once().at("datasync.planned", 1).run().assert_killed();
    assert!(world.scratch_pid().is_some(), "it lives on");
    world.run(&["stop"]).ok();
    assert!(world.scratch_pid().is_none(), "the scratch server runs");
    world.run(&["stop"]).fails(4, &["not running"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
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

fn a_lock_makes_one_table_wait(version: PgVersion) {
    let schema = "CREATE TABLE acc (id int PRIMARY KEY, n int); CREATE TABLE held (id int PRIMARY KEY, n int)";
    let world = World::new(version, schema);
    world
        .production
        .psql("INSERT INTO acc VALUES (1, 1); INSERT INTO held SELECT g, 1 FROM generate_series(1, 50) g");
    world.ready();
    world.add(&["acc", "held"]);
    world.run(&["run-once"]).ok();
    // Its rows change, and then it is locked by a transaction that stays open.
    world.production.psql("UPDATE held SET n = 2; UPDATE acc SET n = 2");
    let held = held(
        &world,
        "TRUNCATE held; INSERT INTO held VALUES (7, 7)",
        "'held'::regclass",
    );
    world.sync();
    world.same(&["acc"]);
    assert!(
        world
            .state("public.held")
            .starts_with("waiting: locked in production at this place")
    );
    held.end(&world);
    world.production.psql("UPDATE held SET n = 3 WHERE id < 10; CHECKPOINT");
    world.sync();
    world.same(&["acc", "held"]);
}

#[test]
fn a_lock_of_production_makes_one_table_wait_and_the_others_go_on() {
    a_lock_makes_one_table_wait(PgVersion::V18);
}

#[test]
fn a_lock_of_production_makes_one_table_wait_and_the_others_go_on_15() {
    a_lock_makes_one_table_wait(PgVersion::V15);
}

/// Transactions that write tables anew are open at the place; they commit later, or come to nothing.
fn rewrites_are_open_at_the_place(version: PgVersion) {
    let tables = ["acc", "emptied", "moved", "lost"];
    let each = |sql: &str| tables.map(|table| sql.replace("$T", table)).join("; ");
    let world = World::new(version, &each("CREATE TABLE $T (id int PRIMARY KEY, n int)"));
    world
        .production
        .psql(&each("INSERT INTO $T SELECT g, 1 FROM generate_series(1, 50) g"));
    world.ready();
    world.add(&tables);
    world.run(&["run-once"]).ok();
    world.same(&tables);
    world.production.psql(
        "UPDATE acc SET n = 2; UPDATE emptied SET n = 2; UPDATE moved SET n = 2; UPDATE lost SET n = 2;
         BEGIN; TRUNCATE emptied; INSERT INTO emptied VALUES (7, 7); PREPARE TRANSACTION 'emptied';
         BEGIN; CLUSTER moved USING moved_pkey; UPDATE moved SET n = 8 WHERE id > 40; PREPARE TRANSACTION 'moved';
         BEGIN; TRUNCATE lost; PREPARE TRANSACTION 'lost'",
    );
    // Each look is by a process of its own, and the scratch server is started again.
    for n in 3..5 {
        world.production.psql(&format!("UPDATE acc SET n = {n}; CHECKPOINT"));
        world.sync();
        world.same(&["acc"]);
        for table in &tables[1..] {
            let state = world.state(&format!("public.{table}"));
            assert!(
                state.starts_with("waiting: locked in production at this place"),
                "{table}: {state}"
            );
        }
    }
    world
        .production
        .psql("COMMIT PREPARED 'emptied'; COMMIT PREPARED 'moved'; ROLLBACK PREPARED 'lost'; CHECKPOINT");
    world.sync();
    world.same(&tables);
    assert_eq!(world.local.psql("SELECT count(*) FROM emptied"), "1");
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn rewrites_that_are_open_at_the_place_arrive_when_they_commit() {
    rewrites_are_open_at_the_place(PgVersion::V18);
}

#[test]
fn rewrites_that_are_open_at_the_place_arrive_when_they_commit_15() {
    rewrites_are_open_at_the_place(PgVersion::V15);
}

/// Not the table is locked, but the index of where its long values are.
#[test]
fn a_lock_on_what_is_read_with_a_table_makes_it_wait() {
    let schema = "CREATE TABLE acc (id int PRIMARY KEY, n int); CREATE TABLE nokey (a int, body text)";
    let world = World::new(PgVersion::V18, schema);
    world.production.psql(
        "INSERT INTO acc VALUES (1, 1); ALTER TABLE nokey ALTER body SET STORAGE EXTERNAL;
         INSERT INTO nokey SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 20) g",
    );
    world.ready();
    world.add(&["acc", "nokey"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc", "nokey"]);
    world
        .production
        .psql("UPDATE nokey SET a = a + 100 WHERE a < 5; UPDATE acc SET n = 2");
    let index = "(SELECT i.indexrelid FROM pg_index i JOIN pg_class c ON c.reltoastrelid = i.indrelid WHERE c.relname = 'nokey')";
    let held = held(&world, "REINDEX TABLE nokey", index);
    world.sync();
    world.same(&["acc"]);
    assert!(world.state("public.nokey").starts_with("waiting: locked in production"));
    held.end(&world);
    world
        .production
        .psql("UPDATE nokey SET body = 'short' WHERE a = 10; CHECKPOINT");
    world.sync();
    world.same(&["acc", "nokey"]);
}

/// A transaction of production that stays open.
struct Held {
    client: Child,
    locked: String,
}

/// Begins one that locks something.
fn held(world: &World, sql: &str, relation: &str) -> Held {
    let port = world.production.port().to_string();
    let client = Command::new(world.production.tool("psql"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-p", &port, "-qAt"])
        .args(["-c", &format!("BEGIN; {sql}; SELECT pg_sleep(3600)")])
        .spawn()
        .unwrap();
    let locked = format!(
        "SELECT count(*) FROM pg_locks WHERE relation = {relation} AND mode = 'AccessExclusiveLock' AND granted"
    );
    wait_for("the lock", PATIENCE, || world.production.psql(&locked) == "1");
    Held { client, locked }
}

impl Held {
    fn end(mut self, world: &World) {
        let _ = self.client.kill();
        let _ = self.client.wait();
        world.production.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; %pg_sleep(3600)' AND pid <> pg_backend_pid()");
        wait_for("the end of the lock", PATIENCE, || {
            world.production.psql(&self.locked) == "0"
        });
    }
}

fn a_failover_behind_us_is_followed(version: PgVersion) {
    let world = World::with(version, SCHEMA, |p| p.setting("wal_keep_size", "1GB"));
    world.production.psql(ROWS);
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
    // Where its way is not told, it is not guessed.
    let (history, aside) = (world.path("archive/00000002.history"), world.path("aside"));
    fs::rename(&history, &aside).unwrap();
    world.production.psql("INSERT INTO acc VALUES (502, 1)");
    world.archived();
    world.run(&["run-once"]).fails(
        1,
        &[
            "ST-WAL-004",
            "the history of timeline 2 is not in the archive",
            "copy it there from production's pg_wal",
        ],
    );
    fs::rename(&aside, &history).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

#[test]
fn a_failover_is_followed_where_it_forked_behind_us() {
    a_failover_behind_us_is_followed(PgVersion::V18);
}

#[test]
fn a_failover_is_followed_where_it_forked_behind_us_15() {
    a_failover_behind_us_is_followed(PgVersion::V15);
}

#[test]
fn an_archive_behind_a_command_and_a_backup_behind_another() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql(ROWS);
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
    assert!(files(&world.path("scratch/fetched")).is_empty());
}

/// As an administrator without pg_basebackup makes one, which the packages of these versions do not have.
fn backup_by_hand(world: &World) {
    let (data, backup) = (world.production.data_directory(), world.path("backup"));
    fs::create_dir(&backup).unwrap();
    let owner = fs::metadata(&data).unwrap();
    std::os::unix::fs::chown(&backup, Some(owner.uid()), Some(owner.gid())).unwrap();
    let label = world.production.psql(&format!(
        "SELECT pg_backup_start('by hand', true) IS NULL;
         COPY (SELECT 1) TO PROGRAM 'cp -a {}/. {}/';
         SELECT labelfile FROM pg_backup_stop()",
        data.display(),
        backup.display()
    ));
    let label = label
        .lines()
        .filter(|line| line.contains(": "))
        .collect::<Vec<_>>()
        .join("\n");
    fs::remove_file(backup.join("postmaster.pid")).unwrap();
    for entry in fs::read_dir(backup.join("pg_wal")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::remove_file(path).unwrap();
        }
    }
    fs::write(backup.join("backup_label"), label + "\n").unwrap();
}

/// A nightly backup begins before ours and ends within it: that is not the end of ours.
#[test]
fn the_end_of_another_backup_is_not_the_end_of_ours() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql(ROWS);
    let (data, backup) = (world.production.data_directory(), world.path("backup"));
    let (mut nightly, mut ours) = (Session::open(&world.production), Session::open(&world.production));
    nightly.run("SELECT pg_backup_start('nightly', true)");
    ours.run("SELECT pg_backup_start('ours', true)");
    let copied = Command::new("cp").arg("-a").args([&data, &backup]).status();
    assert!(copied.is_ok() && backup.join("PG_VERSION").is_file());
    // Everything that a first copy needs, but the end of ours.
    world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
    nightly.run("SELECT pg_backup_stop()");
    world.production.psql("UPDATE acc SET n = n + 1");
    world.archived();
    let label = backup.join("backup_label");
    ours.run(&format!(
        "SELECT labelfile FROM pg_backup_stop() \\g '{}'\nSELECT 1",
        label.display()
    ));
    world.archived();
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

/// The versions between: they differ in what their control file says.
#[test]
fn the_other_versions_are_followed() {
    for version in [PgVersion::new(16), PgVersion::new(17)] {
        let world = World::new(version, SCHEMA);
        world.production.psql(ROWS);
        backup_by_hand(&world);
        world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        world.archived();
        world.run(&["doctor"]).ok();
        world.add(&["acc"]);
        world.run(&["run-once"]).ok();
        world.same(&["acc"]);
        world
            .production
            .psql("UPDATE acc SET n = n + 1; DELETE FROM acc WHERE id < 9");
        world.sync();
        world.same(&["acc"]);
    }
}

/// The scratch server is of another minor version than production; it says so itself.
fn another_minor_version(production: PgVersion, scratch: PgVersion) {
    let schema = "CREATE TABLE acc (id int PRIMARY KEY, n int); CREATE TABLE wide (a int, body text)";
    let local = Postgres::shared(PgVersion::V18).database("datasync");
    let world = World::between(production, schema, |p| p, local);
    let programs = |version: PgVersion| format!("PG_BIN_DIR = \"{}\"", version.programs().display());
    world.reconfigure(&programs(production), &programs(scratch));
    world.production.psql(&format!(
        "{ROWS}; ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
         INSERT INTO wide SELECT g, repeat(md5(g::text), 100) FROM generate_series(1, 40) g"
    ));
    backup_by_hand(&world);
    world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
    world.archived();
    world.run(&["doctor"]).ok();
    let tables = ["acc", "wide"];
    world.add(&tables);
    world.run(&["run-once"]).ok();
    world.same(&tables);
    let theirs = world.production.psql("SHOW server_version");
    let log = fs::read_to_string(world.path("scratch/log")).unwrap();
    let is_another =
        log.contains("starting PostgreSQL 18.") && !log.contains(&format!("starting PostgreSQL {theirs} "));
    assert!(is_another, "production is {theirs}\n{log}");
    for change in [
        "UPDATE acc SET n = n + 1; DELETE FROM acc WHERE id < 9; UPDATE wide SET body = body || 'x' WHERE a % 3 = 0; DELETE FROM wide WHERE a = 7",
        "BEGIN; UPDATE acc SET n = 0 WHERE id > 50; SAVEPOINT s; DELETE FROM acc; ROLLBACK TO s; PREPARE TRANSACTION 'p'; COMMIT PREPARED 'p'; REINDEX TABLE acc",
        "TRUNCATE wide; INSERT INTO wide SELECT g, repeat('w', g * 100) FROM generate_series(1, 90) g; VACUUM FULL acc; INSERT INTO acc VALUES (500, 5)",
    ] {
        world.production.psql(change);
        world.sync();
        world.same(&tables);
    }
    world.run(&["verify"]).ok();
}

/// The scratch server is the newer one, as PostgreSQL asks of standbys.
#[test]
fn another_minor_version_replays() {
    another_minor_version(PgVersion::V18_1, PgVersion::V18);
}

/// Production was updated first.
#[test]
fn an_older_minor_version_replays() {
    another_minor_version(PgVersion::V18, PgVersion::V18_1);
}

/// Its files would be written at the same place of this machine, whatever is there.
#[test]
fn a_tablespace_that_is_made_later_is_refused_before_it_is_replayed() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let place = world.path("tablespace");
    fs::create_dir(&place).unwrap();
    // It must belong to the server's user.
    let owner = fs::metadata(world.production.data_directory()).unwrap();
    std::os::unix::fs::chown(&place, Some(owner.uid()), Some(owner.gid())).unwrap();
    world
        .production
        .psql(&format!("CREATE TABLESPACE ts LOCATION '{}'", place.display()));
    world
        .production
        .psql("CREATE TABLE there (id int) TABLESPACE ts; INSERT INTO there VALUES (1); UPDATE acc SET n = 0");
    world.archived();
    let before = files(&place);
    for _ in 0..2 {
        world
            .run(&["run-once"])
            .fails(2, &["made a tablespace", "take a new base backup"]);
    }
    assert_eq!(files(&place), before, "nothing of it was replayed");
    assert_ne!(world.local.psql("SELECT max(n) FROM acc"), "0");
}

#[test]
fn tables_of_the_server_itself_are_not_followed() {
    let world = running(PgVersion::V18);
    for own in [
        "pg_catalog.pg_class",
        "information_schema.sql_features",
        "synctool.datasync_tables",
    ] {
        world
            .run(&["add-tables", own])
            .fails(4, &["belongs to the server itself"]);
    }
    // Nor where somebody writes one into the table by hand.
    world
        .local
        .psql("INSERT INTO tables_to_sync VALUES ('pg_catalog.pg_ts_dict')");
    let before = world.local.psql("SELECT count(*) FROM pg_ts_dict");
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    world.eventually_same(&["acc"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM pg_ts_dict"), before);
}

/// Nobody can look at a database whose catalog is locked, nor at one that is dropped: the batch goes on to a place where
/// that is over.
#[test]
fn a_batch_that_ends_where_the_database_cannot_be_looked_at_goes_on() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.production.psql("INSERT INTO other VALUES (2)");
    let mut open = Command::new(world.production.tool("psql"))
        .args(["-qXAt", &world.production.url("postgres")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("psql");
    let mut ask = open.stdin.take().expect("stdin");
    let mut says = BufReader::new(open.stdout.take().expect("stdout"));
    writeln!(
        ask,
        "BEGIN; UPDATE acc SET n = 55 WHERE id = 5; LOCK TABLE pg_class IN ACCESS EXCLUSIVE MODE; SELECT 'locked';"
    )
    .unwrap();
    says.read_line(&mut String::new()).unwrap();
    // The lock's own session is the only one that can still work there.
    writeln!(ask, "SELECT pg_walfile_name(pg_switch_wal());").unwrap();
    let mut name = String::new();
    says.read_line(&mut name).unwrap();
    let segment = world.path("archive").join(name.trim());
    wait_for("the segment", PATIENCE, || segment.is_file());
    let _ = world.run(&["run-once"]);
    assert_eq!(world.local.psql("SELECT n FROM acc WHERE id = 5"), "5", "as it was");
    writeln!(ask, "UPDATE acc SET n = 50 WHERE id = 50; COMMIT; SELECT 'done';").unwrap();
    says.read_line(&mut String::new()).unwrap();
    drop(ask);
    open.wait().unwrap();
    world
        .production
        .psql("UPDATE acc SET n = n + 1 WHERE id > 90; DELETE FROM acc WHERE id = 1");
    world.archived();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world.production.psql("INSERT INTO acc VALUES (1000, 1)");
    world.sync();
    world.same(&["acc"]);
    // Everything was counted; which rows a table that is read whole changed is not known.
    let counted = "SELECT added, updated, deleted, incomplete FROM data_sync_metrics WHERE table_name = 'public.acc' AND period = 'month'";
    assert_eq!(world.local.psql(counted), "1|12|1|t");
}

/// Whoever is started for each look counts what the ones before saw, and tells it as soon as the service would.
#[test]
fn a_missing_segment_is_told_by_runs_that_look_once() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
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
    told_by_runs(&world, "is missing, though").fails(
        1,
        &[
            &format!("WAL segment {name} is missing from the archive but"),
            "ST-WAL-001",
        ],
    );
    world.run(&["run-once"]).fails(1, &["ST-WAL-001"]);
    assert!(world.scratch_pid().is_none(), "the scratch server runs");
    fs::rename(&to, &from).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM synctool.datasync_waited"), "0");
}

#[test]
fn an_archive_in_a_bucket() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql(ROWS);
    world.ready();
    let server = S3::shared();
    let bucket = server.bucket("datasync");
    let upload = || {
        for path in files(&world.path("archive")) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let put = server.request("PUT", &format!("/{bucket}/prod/{name}"), &fs::read(&path).unwrap());
            assert_eq!(put.unwrap().0, 200);
        }
    };
    let s3 = |secret: &str| {
        format!(
            "ARCHIVE_S3 = \"s3://{bucket}/prod\"\nS3_ENDPOINT = \"{}\"\nS3_REGION = \"{}\"\nS3_ACCESS_KEY_ID = \"{}\"\n\
             S3_SECRET_ACCESS_KEY = \"{secret}\"",
            server.endpoint(),
            S3::REGION,
            S3::ACCESS_KEY
        )
    };
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &s3(SECRET));
    world.run(&["doctor"]).fails(1, &["archive", "refuses"]);
    world.reconfigure(&s3(SECRET), &s3(S3::SECRET_KEY));
    world.run(&["doctor"]).fails(1, &["archive", "has no segment"]);
    upload();
    world.run(&["doctor"]).ok();
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world
        .production
        .psql("UPDATE acc SET n = n + 1; DELETE FROM acc WHERE id = 7");
    world.archived();
    upload();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    assert!(files(&world.path("scratch/fetched")).is_empty());
}

#[test]
fn a_scratch_directory_belongs_to_one_service() {
    let world = running(PgVersion::V18);
    let other = Postgres::shared(PgVersion::V18).database("datasync");
    other.psql(SCHEMA);
    let text = fs::read_to_string(world.path("datasync.toml")).unwrap();
    fs::write(world.path("other.toml"), text.replace(world.local.name(), other.name())).unwrap();
    let refused = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["--config", "other.toml"]);
        world
            .run(&all)
            .fails(6, &["the scratch directory is in use by another process"]);
    };
    refused(&["run-once"]);
    refused(&["clear", "--rebuild", "--yes"]);
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    world.eventually_same(&["acc"]);
}

/// The scratch server is lost, and the only backup was not over yet at the place of the rows: nothing can stand there.
#[test]
fn a_backup_that_ends_behind_the_stored_place_is_refused() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let mut client = Command::new(world.production.tool("psql"))
        .args(["-h", "127.0.0.1", "-U", "postgres", "-qAt", "-p"])
        .arg(world.production.port().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut ask, mut says) = (
        client.stdin.take().unwrap(),
        BufReader::new(client.stdout.take().unwrap()),
    );
    writeln!(ask, "SELECT pg_backup_start('late', true);").unwrap();
    says.read_line(&mut String::new()).unwrap();
    world.production.psql("UPDATE acc SET n = 9");
    world.sync();
    let late = world.path("late");
    let copied = Command::new("cp")
        .arg("-a")
        .args([&world.production.data_directory(), &late])
        .status();
    assert!(copied.is_ok() && late.join("PG_VERSION").is_file());
    writeln!(ask, "SELECT labelfile FROM pg_backup_stop();").unwrap();
    drop(ask);
    let mut label = String::new();
    says.read_to_string(&mut label).unwrap();
    client.wait().unwrap();
    fs::write(late.join("backup_label"), label).unwrap();
    world.archived();
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.reconfigure("BASE_BACKUP = \"backup\"", "BASE_BACKUP = \"late\"");
    world
        .run(&["run-once"])
        .fails(2, &["ends behind the stored place", "use an older base backup"]);
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.reconfigure("BASE_BACKUP = \"late\"", "BASE_BACKUP = \"backup\"");
    world.production.psql("UPDATE acc SET n = 10 WHERE id < 9");
    world.sync();
    world.same(&["acc"]);
}

/// It is seen before it is unpacked, so that the right one has its place.
#[test]
fn a_base_backup_of_another_production_is_refused() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let other = Postgres::builder(PgVersion::V18)
        .setting("wal_level", "replica")
        .start();
    other.base_backup(&world.path("theirs"));
    fs::remove_dir_all(world.path("scratch")).unwrap();
    world.reconfigure("BASE_BACKUP = \"backup\"", "BASE_BACKUP = \"theirs\"");
    for _ in 0..2 {
        world.run(&["run-once"]).fails(
            2,
            &[
                "ST-WAL-003",
                "the local tables were made from system id",
                "use a base backup of the same production",
            ],
        );
    }
    assert!(!world.path("scratch/data").exists(), "it was unpacked");
    world.reconfigure("BASE_BACKUP = \"theirs\"", "BASE_BACKUP = \"backup\"");
    world.production.psql("UPDATE acc SET n = 1");
    world.sync();
    world.same(&["acc"]);
}

#[test]
fn another_database_of_production_is_another_beginning() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql("INSERT INTO acc VALUES (1, 1)");
    world.production.psql("CREATE DATABASE second");
    world.ready();
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.reconfigure("PROD_DB_NAME = \"postgres\"", "PROD_DB_NAME = \"second\"");
    let says = "were made from production's database postgres, and this is second";
    world.run(&["run-once"]).fails(4, &[says, "clear --rebuild"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM acc"), "1");
    world.run(&["clear", "--rebuild", "--yes"]).ok();
    world.run(&["run-once"]).ok();
    assert_eq!(world.state("acc"), "unknown: there is no such table in production");
}

#[test]
fn a_role_that_production_does_not_have_is_a_mistake_of_the_configuration() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.configure("SCRATCH_ROLE = \"nobody_here\"\n");
    world.ready();
    world.add(&["acc"]);
    world
        .run(&["run-once"])
        .fails(2, &["scratch_role: production has no role nobody_here"]);
    world.configure("");
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

/// Where long values are stands nothing any more: that is no trouble of the table, and the scratch server is made anew.
#[test]
fn damaged_data_of_the_scratch_server_is_made_anew_and_no_table_is_blamed() {
    let world = World::new(PgVersion::V18, "CREATE TABLE wide (id int PRIMARY KEY, body text)");
    world.production.psql(
        "ALTER TABLE wide ALTER body SET STORAGE EXTERNAL; INSERT INTO wide SELECT g, repeat(md5(g::text), 200) FROM generate_series(1, 50) g",
    );
    world.ready();
    world.add(&["wide"]);
    world.run(&["run-once"]).ok();
    world.same(&["wide"]);
    let file = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE relname = 'wide'";
    let file = world.path("scratch/data").join(world.production.psql(file));
    assert!(fs::metadata(&file).unwrap().len() > 0);
    fs::write(file, b"").unwrap();
    world.run(&["resync", "--wait", "0", "wide"]).ok();
    world.run(&["start"]).ok();
    let rebuilt = "SELECT count(*) FROM data_sync_logs WHERE event = 'scratch_rebuilt'";
    wait_for("another scratch server", PATIENCE, || {
        match world.local.psql(rebuilt).as_str() {
            "0" => Err(world.run(&["status"]).stdout),
            _ => Ok(()),
        }
    });
    let answered = "SELECT count(*) FROM synctool.datasync_requests WHERE kind = 'resync' AND ok";
    wait_for("the copy", PATIENCE, || world.local.psql(answered) == "1");
    world.same(&["wide"]);
    assert_eq!(world.state("public.wide"), "synced");
    let blamed = "SELECT count(*) FROM data_sync_logs WHERE event = 'paused'";
    assert_eq!(world.local.psql(blamed), "0");
}

fn an_idle_production_is_no_error(version: PgVersion) {
    let world = running(version);
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

#[test]
fn an_idle_production_is_no_error_and_its_silence_is_told() {
    an_idle_production_is_no_error(PgVersion::V18);
}

#[test]
fn an_idle_production_is_no_error_and_its_silence_is_told_15() {
    an_idle_production_is_no_error(PgVersion::V15);
}
