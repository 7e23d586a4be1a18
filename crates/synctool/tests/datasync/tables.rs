//! Tables one by one: added, removed, copied anew, put aside; the others go on.

use super::{World, rows};
use std::fs;
use synctool_testkit::PgVersion;

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
CREATE VIEW seen AS SELECT * FROM good;";

fn filled(version: PgVersion) -> World {
    let world = World::new(version, SCHEMA);
    world.production.psql(
        "INSERT INTO good SELECT g, g FROM generate_series(1, 100) g; INSERT INTO moody SELECT g, 'low' FROM generate_series(1, 10) g;
         INSERT INTO smalls SELECT g, g FROM generate_series(1, 10) g; INSERT INTO wider SELECT g, g FROM generate_series(1, 10) g;
         INSERT INTO keyed SELECT g, g FROM generate_series(1, 10) g; INSERT INTO strict SELECT g, g FROM generate_series(1, 10) g;
         INSERT INTO absent VALUES (1)",
    );
    world
}

#[test]
fn ddl_in_production_pauses_only_the_table_concerned() {
    let world = filled(PgVersion::V18);
    world.ready();
    world.add(&[
        "good", "moody", "smalls", "wider", "keyed", "fleeting", "absent", "strict", "seen",
    ]);
    world.local.psql(
        "DROP TABLE absent; INSERT INTO tables_to_sync VALUES ('nothing'); ALTER TABLE strict ADD CHECK (n < 10)",
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
    assert!(
        world
            .state("public.strict")
            .contains("synctool datasync resync public.strict"),
        "{}",
        world.state("public.strict")
    );
    assert_eq!(world.state("nothing"), "unknown: there is no such table in production");
    let (code, status) = world.json(&["status"]);
    assert_eq!((code, status["well"].as_bool()), (1, Some(false)));

    // A column with a default, a renamed label, another rule of a domain, another key: none of them touches a row.
    world.production.psql(
        "ALTER TABLE wider ADD COLUMN w int DEFAULT 7; ALTER TYPE mood RENAME VALUE 'low' TO 'lowest';
         ALTER DOMAIN small DROP CONSTRAINT small_check; ALTER TABLE keyed DROP CONSTRAINT keyed_pkey, ADD PRIMARY KEY (alt);
         UPDATE good SET n = n + 1",
    );
    world.sync();
    world.same(&["good"]);
    for (table, says) in [
        ("wider", "production (w integer), local (nothing more)"),
        ("moody", "['lowest', 'high']"),
        ("smalls", "columns of public.smalls differ"),
        ("keyed", "alt integer key 1"),
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
         CREATE TABLE absent (id int PRIMARY KEY); ALTER TABLE strict DROP CONSTRAINT strict_n_check",
    );
    let all = ["wider", "moody", "smalls", "keyed", "absent", "strict"];
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
}

#[test]
fn a_users_write_is_healed_once_and_then_the_table_is_paused() {
    let world = filled(PgVersion::V18);
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
    world.run(&["resync", "--wait", "0", "good", "strict"]).ok();
    change(3);
    world.sync();
    world.same(&["good", "wider", "strict"]);
    world.run(&["verify"]).ok();
}

#[test]
fn tables_are_added_removed_and_copied_anew_while_the_service_runs() {
    let world = filled(PgVersion::V18);
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
fn partitions_come_go_and_move_rows() {
    let schema = "CREATE TABLE parted (id int, side int, body text, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
        CREATE TABLE p1 PARTITION OF parted FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF parted FOR VALUES IN (2);";
    let world = World::new(PgVersion::V18, schema);
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
    world
        .production
        .psql("ALTER TABLE parted ATTACH PARTITION p2 FOR VALUES IN (2)");
    world.sync();
    world.same(&["p1", "p2", "p3"]);
    world.run(&["resync", "--wait", "0", "parted"]).ok();
    world.run(&["run-once"]).ok();
    assert_eq!(
        world
            .local
            .psql("SELECT count(*) FROM data_sync_logs WHERE event = 'request' AND message LIKE '%3 tables copied%'"),
        "1"
    );
}
