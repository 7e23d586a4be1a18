//! Tables one by one: added, removed, copied anew, put aside; the others go on.

use super::{PATIENCE, Session, World, files, rows, stopped_at};
use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use synctool_testkit::{PgVersion, wait_for};

const SCHEMA: &str = "
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE DOMAIN small AS int CHECK (VALUE < 1000);
CREATE TABLE good (id int PRIMARY KEY, n int);
CREATE TABLE moody (id int PRIMARY KEY, m mood);
CREATE TABLE smalls (id int PRIMARY KEY, s small);
CREATE TABLE wider (id int PRIMARY KEY, v int);
CREATE TABLE keyed (id int PRIMARY KEY, alt int NOT NULL);
CREATE UNLOGGED TABLE fleeting (id int PRIMARY KEY);
CREATE TABLE absent (id int PRIMARY KEY);
CREATE TABLE strict (id int PRIMARY KEY, n int);
CREATE TABLE looked (id int PRIMARY KEY);
CREATE TABLE base (id int PRIMARY KEY);
CREATE TABLE heir (note text) INHERITS (base);
CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler;
CREATE TABLE kept (id int PRIMARY KEY) USING other_heap;
CREATE VIEW seen AS SELECT * FROM good;";

fn filled(version: PgVersion) -> World {
    let world = World::new(version, SCHEMA);
    world.production.psql(
        "INSERT INTO good SELECT g, g FROM generate_series(1, 100) g; INSERT INTO moody SELECT g, 'low' FROM generate_series(1, 10) g;
         INSERT INTO smalls SELECT g, g FROM generate_series(1, 10) g; INSERT INTO wider SELECT g, g FROM generate_series(1, 10) g;
         INSERT INTO keyed SELECT g, g FROM generate_series(1, 10) g; INSERT INTO strict SELECT g, g FROM generate_series(1, 10) g;
         INSERT INTO absent VALUES (1); INSERT INTO base VALUES (1); INSERT INTO heir VALUES (2, 'h'); INSERT INTO kept VALUES (1)",
    );
    world
}

fn ddl_pauses_only_the_table_concerned(version: PgVersion) {
    let world = filled(version);
    world.ready();
    world.add(&[
        "good", "moody", "smalls", "wider", "keyed", "fleeting", "absent", "strict", "seen", "looked", "base", "heir",
        "kept",
    ]);
    world.local.psql(
        "DROP TABLE absent, looked; CREATE VIEW looked AS SELECT 1 AS id; INSERT INTO tables_to_sync VALUES ('nothing'); ALTER TABLE strict ADD CHECK (n < 10)",
    );
    world.run(&["run-once"]).ok();
    world.same(&["good", "moody", "smalls", "wider", "keyed"]);
    // What cannot be followed is said, each with what to do.
    assert!(
        world
            .state("public.absent")
            .starts_with("paused: table public.absent does not exist locally -> create it")
    );
    assert!(
        world
            .state("public.fleeting")
            .contains("is unlogged in production: its changes are not in WAL")
    );
    assert!(world.state("public.seen").contains("is no table with rows of its own"));
    // One that shows rows of others, and one whose rows are logged in a way of their own.
    let heirs =
        "paused: table public.base has tables that inherit from it (public.heir): it shows their rows as its own";
    assert!(
        world.state("public.base").starts_with(heirs),
        "{}",
        world.state("public.base")
    );
    world.same(&["heir"]);
    let method =
        "paused: table public.kept has the access method other_heap: its changes are not logged as rows -> ALTER TABLE";
    assert!(
        world.state("public.kept").starts_with(method),
        "{}",
        world.state("public.kept")
    );
    assert!(
        world
            .state("public.strict")
            .contains("synctool datasync resync public.strict"),
        "{}",
        world.state("public.strict")
    );
    let looked = "paused: table public.looked is no ordinary table locally -> put an ordinary table in its place";
    assert!(
        world.state("public.looked").starts_with(looked),
        "{}",
        world.state("public.looked")
    );
    assert_eq!(world.state("nothing"), "unknown: there is no such table in production");
    let (code, status) = world.json(&["status"]);
    assert_eq!((code, status["well"].as_bool()), (1, Some(false)));

    // A column with a default, a renamed label, another rule of a domain, another key, an heir: none of them touches a row.
    world.production.psql(
        "ALTER TABLE wider ADD COLUMN w int DEFAULT 7; ALTER TYPE mood RENAME VALUE 'low' TO 'lowest';
         ALTER DOMAIN small DROP CONSTRAINT small_check; ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (alt);
         CREATE TABLE late () INHERITS (heir); UPDATE good SET n = n + 1",
    );
    world.sync();
    world.same(&["good"]);
    for (table, says) in [
        ("wider", "production (w integer), local (nothing more)"),
        ("moody", "['lowest', 'high']"),
        ("smalls", "columns of public.smalls differ"),
        ("keyed", "alt integer key 1"),
        ("heir", "has tables that inherit from it (public.late)"),
    ] {
        let state = world.state(&format!("public.{table}"));
        assert!(state.starts_with("paused: ") && state.contains(says), "{state}");
        assert!(
            state.contains(&format!("synctool datasync resync public.{table}")),
            "{state}"
        );
    }
    // Nothing happens to a paused table, whatever happens in production.
    world
        .production
        .psql("UPDATE wider SET v = 99; UPDATE moody SET m = 'high'; INSERT INTO absent VALUES (2)");
    world.sync();
    assert_eq!(world.local.psql("SELECT sum(v) FROM wider"), "55");
    // The user's DDL, then resync; while the service does not run the request waits.
    world.local.psql(
        "ALTER TABLE wider ADD COLUMN w int; ALTER TYPE mood RENAME VALUE 'low' TO 'lowest';
         ALTER DOMAIN small DROP CONSTRAINT small_check; ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (alt);
         CREATE TABLE absent (id int PRIMARY KEY); ALTER TABLE strict DROP CONSTRAINT strict_n_check;
         DROP VIEW looked; CREATE TABLE looked (id int PRIMARY KEY)",
    );
    let all = ["wider", "moody", "smalls", "keyed", "absent", "strict", "looked"];
    let mut arguments = vec!["resync"];
    arguments.extend(all);
    world
        .run(&arguments)
        .fails(0, &["public.wider: waits until the service starts"]);
    world.run(&["run-once"]).ok();
    world.same(&["good"]);
    world.same(&all);
    // It goes on from there; and a table made in production later is found by itself.
    world.production.psql("UPDATE wider SET w = 8 WHERE id = 1; CREATE TABLE nothing (id int PRIMARY KEY); INSERT INTO nothing VALUES (5)");
    world.local.psql("CREATE TABLE nothing (id int PRIMARY KEY)");
    world.sync();
    world.same(&all);
    world.same(&["nothing"]);
    // Production's DDL and the same DDL here before it is applied: old rows are read anew.
    world.production.psql("ALTER TABLE wider ADD COLUMN z int DEFAULT 5");
    world.local.psql("ALTER TABLE wider ADD COLUMN z int");
    world.sync();
    world.same(&["wider"]);
    // One that is dropped is told and keeps its rows here, and so does one that is not logged any more.
    let kept = ["smalls", "strict"].map(|table| world.local.psql(&rows(table)));
    world
        .production
        .psql("DROP TABLE smalls; ALTER TABLE strict SET UNLOGGED; UPDATE good SET n = n + 1");
    world.sync();
    world.same(&["good"]);
    assert_eq!(world.state("smalls"), "unknown: there is no such table in production");
    let unlogged = "paused: table public.strict is unlogged in production: its changes are not in WAL";
    assert!(
        world.state("public.strict").starts_with(unlogged),
        "{}",
        world.state("public.strict")
    );
    assert_eq!(["smalls", "strict"].map(|table| world.local.psql(&rows(table))), kept);
    // Once they are there again they are copied: the one by itself, the other when it is asked for.
    world.production.psql(
        "CREATE TABLE smalls (id int PRIMARY KEY, s small); INSERT INTO smalls VALUES (77, 7); ALTER TABLE strict SET LOGGED",
    );
    world.run(&["resync", "strict"]).ok();
    world.sync();
    world.same(&["smalls", "strict", "good"]);
}

#[test]
fn ddl_in_production_pauses_only_the_table_concerned() {
    ddl_pauses_only_the_table_concerned(PgVersion::V18);
}

#[test]
fn ddl_in_production_pauses_only_the_table_concerned_15() {
    ddl_pauses_only_the_table_concerned(PgVersion::V15);
}

fn a_users_write_is_healed_once(version: PgVersion) {
    let world = filled(version);
    world.ready();
    world.add(&["good", "wider", "strict"]);
    world.run(&["run-once"]).ok();
    let change = |n: i32| {
        world
            .production
            .psql(&format!("UPDATE good SET n = {n}; UPDATE wider SET v = {n}"))
    };
    // Verify finds what no batch has met yet.
    world
        .local
        .psql("UPDATE strict SET n = 0 WHERE id = 3; DELETE FROM good WHERE id = 5");
    let (code, proof) = world.json(&["verify"]);
    assert_eq!((code, proof["equal"].as_bool()), (3, Some(false)));
    assert_eq!(proof["tables"][0]["local_rows"], 99);
    change(1);
    world.sync();
    world.same(&["good", "wider"]);
    let healed =
        "SELECT count(*) FROM data_sync_logs WHERE event = 'healed' AND level = 'warn' AND table_name = 'public.good'";
    assert_eq!(world.local.psql(healed), "1");
    // A second time within a day. An inserted row is met as well as a deleted one.
    world.local.psql("INSERT INTO good VALUES (777, 0)");
    world.production.psql("INSERT INTO good VALUES (777, 1)");
    change(2);
    world.sync();
    world.same(&["wider"]);
    let state = world.state("public.good");
    assert!(state.starts_with("paused: table public.good has diverged"), "{state}");
    assert!(
        state.ends_with("somebody changed the local table; copy it anew: synctool datasync resync public.good"),
        "{state}"
    );
    world
        .run(&["verify"])
        .fails(3, &["not compared: table public.good has diverged"]);
    let counted = "SELECT table_name, errors FROM data_sync_metrics WHERE period = 'month' AND errors > 0 ORDER BY 1";
    assert_eq!(world.local.psql(counted), "*|1\npublic.good|1");
    // What was written down, by how bad it is and by table.
    let lines = |arguments: &[&str]| {
        let mut all = vec!["logs", "--limit", "1000"];
        all.extend(arguments);
        let (_, lines) = world.json(&all);
        let line = |l: &serde_json::Value| {
            let text = |key: &str| l[key].as_str().unwrap_or_default().to_owned();
            format!("{} {} {}", text("level"), text("event"), text("table_name"))
        };
        lines.as_array().unwrap().iter().map(line).collect::<Vec<_>>()
    };
    let paused = "error paused public.good";
    let healed = "warn healed public.good";
    assert_eq!(lines(&["--level", "error"]), [paused]);
    let verified = "warn verified ";
    assert_eq!(lines(&["--level", "warn"]), [verified, healed, paused, verified]);
    assert_eq!(lines(&["--level", "warn", "--table", "wider"]), [""; 0]);
    assert_eq!(
        lines(&["--table", "public.good"]),
        [
            "info copied public.good",
            "info request public.good",
            "info copied public.good",
            healed,
            paused
        ]
    );
    assert_eq!(
        lines(&["--table", "wider"]),
        ["info copied public.wider", "info request public.wider"]
    );
    assert!(lines(&[]).iter().any(|line| line.starts_with("info batch")));
    assert_eq!(
        world.local.psql("SELECT level, event, table_name, error_code IS NOT NULL, details IS NOT NULL FROM data_sync_errors WHERE table_name <> '' ORDER BY id"),
        "warn|healed|public.good|t|t\nerror|paused|public.good|t|t"
    );
    world.run(&["resync", "--wait", "0", "good", "strict"]).ok();
    change(3);
    world.sync();
    world.same(&["good", "wider", "strict"]);
    world.run(&["verify"]).ok();
}

#[test]
fn a_users_write_is_healed_once_and_then_the_table_is_paused() {
    a_users_write_is_healed_once(PgVersion::V18);
}

#[test]
fn a_users_write_is_healed_once_and_then_the_table_is_paused_15() {
    a_users_write_is_healed_once(PgVersion::V15);
}

fn added_removed_and_copied_anew(version: PgVersion) {
    let world = filled(version);
    world.ready();
    world.add(&["good"]);
    world.run(&["start"]).ok();
    world.eventually_same(&["good"]);
    // At a standing place: nothing new is archived meanwhile.
    world
        .run(&["add-tables", "wider", "keyed"])
        .fails(0, &["public.wider: copied, 10 rows"]);
    world.same(&["wider", "keyed"]);
    world.local.psql("INSERT INTO tables_to_sync VALUES ('moody')");
    world.eventually_same(&["moody"]);
    world.local.psql("DELETE FROM wider; UPDATE good SET n = 0");
    // What would be done is told, and nothing is done.
    let requests = "SELECT count(*) FROM synctool.datasync_requests";
    let before = world.local.psql(requests);
    world.run(&["resync", "wider", "--dry-run"]).fails(
        0,
        &[
            "public.wider: every row would be copied anew",
            "rows that production did not have at",
            "the service would do it between batches",
            "nothing was asked",
        ],
    );
    let (code, told) = world.json(&["clear", "--dry-run"]);
    assert_eq!((code, told["request"].as_str()), (0, Some("clear")), "{told}");
    assert_eq!(told["tables"].as_array().map(Vec::len), Some(4), "{told}");
    world
        .run(&["resync", "smalls", "--dry-run"])
        .fails(2, &["table public.smalls is not in tables_to_sync"]);
    world
        .run(&["clear", "--rebuild", "--dry-run"])
        .fails(6, &["already running"]);
    assert_eq!(world.local.psql(requests), before);
    assert_eq!(world.local.psql("SELECT count(*) FROM wider"), "0");
    world.run(&["resync", "wider"]).fails(0, &["10 rows"]);
    world.same(&["wider"]);
    world.run(&["clear"]).fails(4, &["Nobody is there to answer"]);
    world
        .run(&["clear", "--yes"])
        .fails(0, &["all tables: 4 tables copied"]);
    world.same(&["good", "wider", "keyed", "moody"]);
    world
        .run(&["resync", "smalls"])
        .fails(2, &["table public.smalls is not in tables_to_sync"]);
    world
        .run(&["remove-tables", "public.keyed"])
        .fails(0, &["its rows stay"]);
    let kept = world.local.psql(&rows("keyed"));
    world.production.psql("DELETE FROM keyed; UPDATE wider SET v = -1");
    world.archived();
    world.eventually_same(&["wider"]);
    assert_eq!(world.local.psql(&rows("keyed")), kept);
    world
        .run(&["remove-tables", "keyed"])
        .fails(2, &["is not in tables_to_sync"]);
    // The tables can be read all the time.
    world
        .run(&["clear", "--rebuild", "--yes"])
        .fails(6, &["already running"]);
    let (code, _) = world.json(&["verify"]);
    assert_eq!(code, 0);
    world.run(&["stop"]).ok();
    let place = "SELECT count(*) FROM synctool.datasync_state";
    world
        .run(&["clear", "--rebuild", "--dry-run"])
        .fails(0, &["would be forgotten", "public.good", "scratch", "nothing was done"]);
    assert_eq!(world.local.psql(place), "1", "the place stays");
    // Everything anew, from a new base backup.
    fs::remove_dir_all(world.path("backup")).unwrap();
    world
        .production
        .psql("INSERT INTO good SELECT g, 1 FROM generate_series(5000, 5100) g");
    world.run(&["clear", "--rebuild", "--yes"]).ok();
    world.ready();
    world.run(&["start"]).ok();
    world.eventually_same(&["good", "wider", "moody"]);
}

#[test]
fn tables_are_added_removed_and_copied_anew_while_the_service_runs() {
    added_removed_and_copied_anew(PgVersion::V18);
}

#[test]
fn tables_are_added_removed_and_copied_anew_while_the_service_runs_15() {
    added_removed_and_copied_anew(PgVersion::V15);
}

const TOUCHED: &str = "
CREATE TABLE first (id int PRIMARY KEY, n int);
CREATE TABLE wide (id int PRIMARY KEY, n int, body text);
CREATE TABLE nokey (a int, b text);
CREATE TABLE swap (id int PRIMARY KEY, u int UNIQUE);
CREATE TABLE parted (id int, side int, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
CREATE TABLE leaf_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE leaf_2 PARTITION OF parted FOR VALUES IN (2);";
const TOUCHED_TABLES: &[&str] = &["first", "wide", "nokey", "swap", "leaf_1", "leaf_2"];

/// What one transaction does to every table, and to rows that only it touches.
fn touches(from: i32) -> String {
    let (to, gone) = (from + 40, from + 20);
    format!(
        "UPDATE wide SET n = -{from}, body = body || 'x' WHERE id BETWEEN {from} AND {to}; DELETE FROM wide WHERE id = {gone};
         INSERT INTO wide VALUES ({from} + 100000, 1, 'new'); SAVEPOINT a; DELETE FROM wide WHERE id BETWEEN {from} AND {to};
         DELETE FROM nokey WHERE a = {from}; ROLLBACK TO a; SAVEPOINT b; DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey WHERE a = {from} LIMIT 3);
         INSERT INTO nokey VALUES ({from}, NULL), ({from}, NULL); RELEASE b; UPDATE swap SET u = -u WHERE id BETWEEN {from} AND {to};
         UPDATE swap SET u = 2 * {from} + 40 + u WHERE id BETWEEN {from} AND {to}; UPDATE parted SET side = 3 - side WHERE id BETWEEN {from} AND {to};
         UPDATE first SET n = {from} WHERE id BETWEEN {from} AND {to}"
    )
}

/// A table is copied at a standing place that transactions of production have touched already, which end later: what they
/// did is in segments that were applied before the copy.
fn touched_before_it_is_copied(version: PgVersion, lives: bool) {
    let world = World::new(version, TOUCHED);
    // A large table is copied range by range.
    world.configure("COPY_RANGE_MB = 1\nCOPY_JOBS = 2\n");
    world.production.psql(
        "INSERT INTO first SELECT g, 0 FROM generate_series(1, 400) g; INSERT INTO wide SELECT g, 0, repeat(md5(g::text), 10) FROM generate_series(1, 6000) g;
         INSERT INTO nokey SELECT 100 * (1 + g % 4), NULLIF(g % 3, 1)::text FROM generate_series(1, 100) g; INSERT INTO swap SELECT g, g FROM generate_series(1, 500) g;
         INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 500) g",
    );
    world.ready();
    world.add(&["first"]);
    let arrives = |tables: &[&str]| match lives {
        true => {
            world.archived();
            let all = files(&world.path("archive")).into_iter();
            let names = all.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()));
            let newest = names.filter(|name| name.len() == 24).max().expect("a segment");
            let at = "SELECT last_segment FROM synctool.datasync_state";
            wait_for("the segment", PATIENCE, || world.local.psql(at) >= newest);
            world.same(tables);
        }
        false => {
            world.sync();
            world.same(tables);
        }
    };
    match lives {
        true => drop(world.run(&["start"]).ok()),
        false => drop(world.run(&["run-once"]).ok()),
    }
    let mut open = Session::open(&world.production);
    let mut lost = Session::open(&world.production);
    open.run(&format!("BEGIN; {}", touches(100)));
    lost.run(&format!("BEGIN; {}", touches(200)));
    world
        .production
        .psql(&format!("BEGIN; {}; PREPARE TRANSACTION 'later'", touches(300)));
    world
        .production
        .psql(&format!("BEGIN; {}; PREPARE TRANSACTION 'never'", touches(400)));
    world
        .production
        .psql("UPDATE first SET n = 7 WHERE id < 10; UPDATE wide SET n = 7 WHERE id < 10");
    arrives(&["first"]);
    // Here they are copied: some for the first time, one again.
    let asked = [
        vec!["add-tables", "wide", "nokey", "swap", "parted"],
        vec!["resync", "first"],
    ];
    for request in &asked {
        let mut arguments = request.clone();
        arguments.extend(if lives { ["--wait", "60"] } else { ["--wait", "0"] });
        world.run(&arguments).ok();
    }
    if !lives {
        world.run(&["run-once"]).ok();
    }
    world.same(TOUCHED_TABLES);
    // Others change the same tables, while those are still open.
    let others = "UPDATE wide SET n = n + 1 WHERE id > 4000; DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey WHERE a = 100 OFFSET 5 LIMIT 2);
        INSERT INTO nokey VALUES (100, NULL); UPDATE parted SET side = 3 - side WHERE id < 50";
    world.production.psql(others);
    arrives(TOUCHED_TABLES);
    world.production.psql("COMMIT PREPARED 'later'");
    arrives(TOUCHED_TABLES);
    if lives {
        // All of them once more, while one has still not ended.
        world.run(&["clear", "--yes", "--wait", "60"]).ok();
        world.same(TOUCHED_TABLES);
    }
    open.run("INSERT INTO wide VALUES (200000, 2, 'last'); COMMIT");
    lost.run("ROLLBACK");
    arrives(TOUCHED_TABLES);
    world.production.psql("ROLLBACK PREPARED 'never'");
    world.production.psql(others);
    arrives(TOUCHED_TABLES);
    world.run(&["verify"]).ok();
    if lives {
        world.run(&["stop"]).ok();
    }
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn what_open_transactions_did_before_a_copy_arrives_when_they_commit() {
    touched_before_it_is_copied(PgVersion::V18, false);
}

#[test]
fn what_open_transactions_did_before_a_copy_arrives_when_they_commit_15() {
    touched_before_it_is_copied(PgVersion::V15, false);
}

#[test]
fn what_open_transactions_did_before_a_copy_arrives_at_a_running_service() {
    touched_before_it_is_copied(PgVersion::V18, true);
}

/// A reader sees the old rows or the new ones, and is never kept waiting for the end of a copy.
#[test]
fn tables_can_be_read_all_the_time_while_they_are_copied_anew() {
    let world = World::new(
        PgVersion::V18,
        "CREATE TABLE large (id int PRIMARY KEY, n int, body text); CREATE TABLE small (id int PRIMARY KEY, n int)",
    );
    world.configure("COPY_RANGE_MB = 1\nCOPY_JOBS = 2\n");
    world.production.psql(
        "INSERT INTO large SELECT g, 0, repeat(md5(g::text), 10) FROM generate_series(1, 6000) g; INSERT INTO small SELECT g, 0 FROM generate_series(1, 200) g",
    );
    world.ready();
    let tables = ["large", "small"];
    world.add(&tables);
    world.run(&["run-once"]).ok();
    world.same(&tables);
    // The rows of before are others than those that come, and as many.
    let look = |table: &str| {
        // Whoever would be kept waiting fails.
        let sql = format!(
            "SET lock_timeout = '20s'; SET statement_timeout = '60s'; {}",
            rows(table)
        );
        world.local.try_psql(&sql).unwrap_or_else(|e| panic!("{table}: {e:#}"))
    };
    let tampered = "UPDATE large SET n = 1 WHERE id % 3 = 0; UPDATE small SET n = 1 WHERE id % 3 = 0";
    let new: Vec<String> = tables.iter().map(|table| look(table)).collect();
    world.local.psql(tampered);
    let old: Vec<String> = tables.iter().map(|table| look(table)).collect();
    let allowed: Vec<BTreeSet<&String>> = old
        .iter()
        .zip(&new)
        .map(|(old, new)| BTreeSet::from([old, new]))
        .collect();
    let (ended, looks) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !ended.load(Ordering::SeqCst) {
                for (table, allowed) in tables.iter().zip(&allowed) {
                    let seen = look(table);
                    assert!(allowed.contains(&seen), "{table}: {seen} is none of {allowed:?}");
                }
                looks.store(true, Ordering::SeqCst);
            }
        });
        let work = || {
            // In the middle of each copy, of the transaction that puts the rows in place, and before its end.
            for point in ["datasync.range_copied", "datasync.table_copied", "datasync.answered"] {
                world.local.psql(tampered);
                world.run(&["resync", "--wait", "0", "large", "small"]).ok();
                let mut run = stopped_at(&world.once(), point, 1).start();
                run.wait_stopped();
                if point == "datasync.range_copied" {
                    assert_eq!(look("large"), old[0], "nothing is seen before all is there");
                }
                for (table, allowed) in tables.iter().zip(&allowed) {
                    assert!(allowed.contains(&look(table)), "{table} at {point}");
                }
                run.resume();
                run.wait().assert_success();
                assert_eq!(look("large"), new[0]);
                assert_eq!(look("small"), new[1]);
            }
            // From a new beginning.
            world.local.psql(tampered);
            world.run(&["clear", "--rebuild", "--yes"]).ok();
            assert_eq!(look("large"), old[0], "what was forgotten is the place");
            for point in ["datasync.first_copy", "datasync.table_copied"] {
                let mut run = stopped_at(&world.once(), point, 1).start();
                run.wait_stopped();
                assert_eq!(look("large"), old[0], "at {point}");
                run.kill();
            }
            world.run(&["run-once"]).ok();
            world.same(&tables);
        };
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        ended.store(true, Ordering::SeqCst);
        if let Err(e) = worked {
            std::panic::resume_unwind(e);
        }
        reader.join().expect("what the reader saw");
    });
    assert!(looks.load(Ordering::SeqCst));
}

/// Requests that are left while a batch is under way are carried out once it has ended, and the batches behind follow.
fn requests_are_left_while_batches_run(version: PgVersion, rounds: usize) {
    let world = World::new(version, TOUCHED);
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1");
    world.production.psql(
        "INSERT INTO first SELECT g, 0 FROM generate_series(1, 400) g; INSERT INTO wide SELECT g, 0, md5(g::text) FROM generate_series(1, 600) g;
         INSERT INTO nokey SELECT g % 5, NULLIF(g % 3, 1)::text FROM generate_series(1, 100) g; INSERT INTO swap SELECT g, g FROM generate_series(1, 500) g;
         INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 500) g",
    );
    world.ready();
    world.add(&["first", "wide"]);
    world.run(&["run-once"]).ok();
    let backlog = |round: usize| {
        for part in 0..4 {
            world.production.psql(&format!(
                "UPDATE first SET n = n + 1 WHERE id % 4 = {part}; UPDATE wide SET n = {round} * 10 + {part} WHERE id % 5 = {part};
                 INSERT INTO nokey VALUES ({part}, NULL); DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey LIMIT 2);
                 UPDATE parted SET side = 3 - side WHERE id % 7 = {part}; DELETE FROM swap WHERE id = {round} * 10 + {part}"
            ));
            world.archived();
        }
    };
    let points = [
        ("datasync.before_plan", 1),
        ("datasync.planned", 2),
        ("datasync.replayed", 2),
        ("datasync.before_commit", 2),
        ("datasync.committed", 1),
    ];
    let mut followed = vec!["first", "wide", "nokey", "swap", "leaf_1", "leaf_2"];
    for (round, (point, nth)) in (1..=rounds).zip(points) {
        backlog(round);
        let mut service = stopped_at(&world.service(), point, nth).start();
        service.wait_stopped();
        let requests: &[&[&str]] = match round {
            1 => &[&["add-tables", "nokey", "swap", "parted"], &["resync", "wide"]],
            2 => &[&["resync", "first", "nokey"], &["remove-tables", "swap"]],
            3 => &[&["add-tables", "swap"], &["resync", "parted", "swap"]],
            4 => &[&["clear", "--yes"], &["remove-tables", "first"]],
            // Taken off and put on again before anybody has seen it.
            _ => &[
                &["add-tables", "first"],
                &["remove-tables", "wide"],
                &["add-tables", "wide"],
            ],
        };
        for request in requests {
            let mut arguments = request.to_vec();
            arguments.extend(["--wait", "0"]);
            world.run(&arguments).ok();
        }
        service.resume();
        match round {
            2 => followed.retain(|table| *table != "swap"),
            3 => followed.push("swap"),
            4 => followed.retain(|table| *table != "first"),
            5 => followed.push("first"),
            _ => {}
        }
        world.eventually_same(&followed);
        let open = "SELECT count(*) FROM synctool.datasync_requests WHERE done_at IS NULL";
        wait_for("answers", PATIENCE, || world.local.psql(open) == "0");
        world.run(&["verify"]).ok();
        service.interrupt();
        service.wait().assert_success();
    }
    // Not selected when the batch is planned, selected when it is applied: what the rows were before is not known.
    world.run(&["remove-tables", "--wait", "0", "nokey", "wide"]).ok();
    backlog(6);
    world.once().at("datasync.planned", 1).run().assert_killed();
    world.add(&["nokey", "wide"]);
    world.run(&["run-once"]).ok();
    world.same(&followed);
    let refused = "SELECT kind, table_name, answer FROM synctool.datasync_requests WHERE NOT ok";
    assert_eq!(world.local.psql(refused), "");
    let wrong = "SELECT table_name, message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn requests_that_are_left_while_batches_run_are_done_between_them() {
    requests_are_left_while_batches_run(PgVersion::V18, 5);
}

/// The rounds that add, remove and copy anew.
#[test]
fn requests_that_are_left_while_batches_run_are_done_between_them_15() {
    requests_are_left_while_batches_run(PgVersion::V15, 3);
}

fn partitions_come_and_go(version: PgVersion) {
    let schema = "CREATE TABLE parted (id int, side int, body text, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
        CREATE TABLE p1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF parted FOR VALUES IN (2);";
    let world = World::new(version, schema);
    world
        .production
        .psql("INSERT INTO parted SELECT g, 1 + g % 2, 'b' FROM generate_series(1, 100) g");
    world.ready();
    world.add(&["parted"]);
    world.run(&["run-once"]).ok();
    world.same(&["p1", "p2"]);
    let third = "CREATE TABLE p3 PARTITION OF parted FOR VALUES IN (3)";
    world.local.psql(third);
    world.production.psql(&format!("{third}; UPDATE parted SET side = 3 WHERE id < 30; UPDATE parted SET side = 3 - side WHERE id > 90 AND side < 3"));
    world.sync();
    world.same(&["p1", "p2", "p3"]);
    // A detached partition is followed no more; attached, it is again.
    world
        .production
        .psql("ALTER TABLE parted DETACH PARTITION p2; DELETE FROM p2 WHERE id % 3 = 0; DELETE FROM p1 WHERE id > 80");
    world.sync();
    world.same(&["p1", "p3"]);
    // Here it is a partition still, and its rows are seen in the table: that is told until both sides agree.
    let apart = "paused: table public.parted has other partitions here than in production";
    let told = format!("{apart} (only here: public.p2) -> here, as in production: DETACH or DROP public.p2; it is");
    let state = world.state("public.parted");
    assert!(state.starts_with(&told), "{state}");
    world
        .run(&["verify"])
        .fails(3, &["table public.parted has other partitions here than in production"]);
    world
        .production
        .psql("ALTER TABLE parted ATTACH PARTITION p2 FOR VALUES IN (2)");
    world.sync();
    world.same(&["p1", "p2", "p3"]);
    assert_eq!(world.state("public.parted"), "");
    world.run(&["verify"]).ok();
    world.run(&["resync", "--wait", "0", "parted"]).ok();
    world.run(&["run-once"]).ok();
    assert_eq!(
        world
            .local
            .psql("SELECT count(*) FROM data_sync_logs WHERE event = 'request' AND message LIKE '%3 tables copied%'"),
        "1"
    );
    // One that is dropped there, one that is none here, and one that is made ahead: that shows no rows.
    world.local.psql(
        "CREATE TABLE p4 (id int, side int, body text, PRIMARY KEY (id, side)); CREATE TABLE p5 PARTITION OF parted FOR VALUES IN (5)",
    );
    world.production.psql(
        "DROP TABLE p3; CREATE TABLE p4 PARTITION OF parted FOR VALUES IN (4); INSERT INTO parted VALUES (400, 4, 'b')",
    );
    world.sync();
    world.same(&["p1", "p2", "p4"]);
    let told = format!("{apart} (only here: public.p3; only there: public.p4) -> ");
    let state = world.state("public.parted");
    assert!(state.starts_with(&told), "{state}");
    world
        .local
        .psql("ALTER TABLE parted DETACH PARTITION p3; ALTER TABLE parted ATTACH PARTITION p4 FOR VALUES IN (4)");
    world.production.psql("DELETE FROM parted WHERE id = 400");
    world.sync();
    assert_eq!(world.state("public.parted"), "");
    let all = "SELECT count(*), sum(id) FROM parted";
    assert_eq!(world.local.psql(all), world.production.psql(all));
    assert_eq!(world.local.psql("SELECT count(*) > 0 FROM p3"), "t");
}

#[test]
fn partitions_come_go_and_move_rows() {
    partitions_come_and_go(PgVersion::V18);
}

#[test]
fn partitions_come_go_and_move_rows_15() {
    partitions_come_and_go(PgVersion::V15);
}
