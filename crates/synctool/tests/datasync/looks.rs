//! What is written down and shown, and what is refused before anything is done.

use super::{PATIENCE, World, followed, kill};
use std::fs;
use synctool_testkit::{PgVersion, Postgres, wait_for};

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";
const ROWS: &str = "INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g";

/// Place, segments and table of the newest line with a code.
fn row_of(world: &World, code: &str) -> String {
    world.local.psql(&format!(
        "SELECT from_lsn = (SELECT applied_lsn FROM synctool.datasync_state), to_lsn > from_lsn, first_segment, last_segment, table_name
         FROM data_sync_logs WHERE level = 'error' AND error_code = '{code}' ORDER BY id DESC LIMIT 1"
    ))
}

#[test]
fn an_error_is_written_down_with_its_place() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let segment = || {
        world
            .production
            .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)")
    };
    let first = segment();
    world.production.psql("UPDATE acc SET n = n + 1");
    world.archived();
    let last = segment();
    world.production.psql("INSERT INTO acc VALUES (1000, 1)");
    world.archived();
    // The local transaction fails with something that may pass: the whole batch is tried again.
    let refuse = |state: &str| {
        world.local.psql(&format!(
            "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END $$"
        ));
    };
    refuse("40001");
    world.local.psql(
        "CREATE TRIGGER refuse BEFORE INSERT ON acc FOR EACH ROW EXECUTE FUNCTION refuse(); ALTER TABLE acc ENABLE ALWAYS TRIGGER refuse",
    );
    world.run(&["run-once"]).fails(5, &["ST-TXN-001"]);
    assert_eq!(row_of(&world, "ST-TXN-001"), format!("t|t|{first}|{last}|public.acc"));
    // With trouble of its own the table is paused, and the place moves.
    refuse("P0001");
    world.run(&["run-once"]).ok();
    let paused = "SELECT to_lsn = (SELECT applied_lsn FROM synctool.datasync_state), to_lsn > from_lsn, first_segment, last_segment, table_name
        FROM data_sync_logs WHERE event = 'paused'";
    assert_eq!(world.local.psql(paused), format!("t|t|{first}|{last}|public.acc"));
    world.local.psql("DROP TRIGGER refuse ON acc");
    world.run(&["resync", "--wait", "0", "acc"]).ok();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    // What is missing is named.
    let missing = segment();
    world.production.psql("UPDATE acc SET n = 3");
    world.archived();
    world.production.psql("UPDATE acc SET n = 4");
    world.archived();
    let (there, aside) = (world.path("archive").join(&missing), world.path("aside"));
    fs::rename(&there, &aside).unwrap();
    wait_for("an error", PATIENCE, || world.run(&["run-once"]).code != 0);
    assert!(
        row_of(&world, "ST-WAL-001").ends_with(&format!("|{missing}|{missing}|")),
        "{}",
        row_of(&world, "ST-WAL-001")
    );
    fs::rename(&aside, &there).unwrap();
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}

#[test]
fn a_base_backup_of_another_version_is_refused_before_it_is_unpacked() {
    let local = Postgres::shared(PgVersion::V15).database("datasync");
    let world = World::between(PgVersion::V18, SCHEMA, |p| p, local);
    world.ready();
    world.add(&["acc"]);
    let says = [
        "base backup PG_VERSION is 18, local server is 15",
        "use a local PostgreSQL 18",
    ];
    world.run(&["run-once"]).fails(2, &says);
    world.run(&["start"]).fails(2, &says);
    world.run(&["doctor"]).fails(1, &says);
    assert!(!world.path("scratch/data").exists());
}

#[test]
fn a_production_that_logs_too_little_is_refused_before_its_backup_is_unpacked() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.ready();
    world.add(&["acc"]);
    let file = world.path("backup/global/pg_control");
    let whole = fs::read(&file).unwrap();
    let mut control = whole.clone();
    // Where wal_level stands, and the checksum of what is before it.
    control[172..176].fill(0);
    let sum = crc32c(&control[..292]).to_le_bytes();
    control[292..296].copy_from_slice(&sum);
    fs::write(&file, control).unwrap();
    let says = [
        "production wal_level is minimal: not enough for replay (replica or logical needed)",
        "ALTER SYSTEM SET wal_level = 'replica' in production",
    ];
    world.run(&["run-once"]).fails(2, &says);
    world.run(&["start"]).fails(2, &says);
    world.run(&["doctor"]).fails(1, &says);
    assert!(!world.path("scratch/data").exists());
    fs::write(&file, whole).unwrap();
    world.run(&["run-once"]).ok();
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
}

#[test]
fn a_scratch_server_is_not_run_as_root() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.ready();
    world.configure("SCRATCH_USER = \"root\"\n");
    world.add(&["acc"]);
    let says = "scratch cannot run as root; set scratch_user";
    world.run(&["run-once"]).fails(2, &[says]);
    world.run(&["doctor"]).fails(1, &[says]);
    world.configure("SCRATCH_USER = \"nobody-of-that-name\"\n");
    world
        .run(&["run-once"])
        .fails(2, &["there is no user nobody-of-that-name", "set scratch_user"]);
}

/// An extension without files matters where a table that is synced uses it, through whatever other type.
#[test]
fn doctor_names_the_tables_that_use_a_missing_extension() {
    let schema = "CREATE TYPE mood AS ENUM ('low'); CREATE DOMAIN best AS mood; CREATE TYPE felt AS (m best[]);
        CREATE TYPE other_mood AS ENUM ('low'); CREATE TABLE t (id int PRIMARY KEY, f felt); CREATE TABLE plain (id int PRIMARY KEY);
        CREATE TABLE aside (m other_mood);";
    let world = World::new(PgVersion::V18, schema);
    // As if these types came with extensions whose files are not here.
    world.production.psql(
        "INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
            VALUES (77701, 'absent', 10, 2200, true, '1'), (77702, 'unneeded', 10, 2200, true, '1'), (77703, 'unused', 10, 2200, true, '1');
         INSERT INTO pg_depend VALUES ('pg_type'::regclass, 'mood'::regtype, 0, 'pg_extension'::regclass, 77701, 0, 'e'),
            ('pg_type'::regclass, 'other_mood'::regtype, 0, 'pg_extension'::regclass, 77702, 0, 'e')",
    );
    world.ready();
    world.add(&["t", "plain"]);
    world.run(&["start"]).ok();
    // It looks into the scratch server once that runs.
    wait_for("what doctor says", PATIENCE, || {
        world.run(&["doctor"]).stdout.contains("extension absent")
    });
    let (code, report) = world.json(&["doctor"]);
    let text = report.to_string();
    for part in [
        "extension absent is missing in the scratch installation; table public.t uses its type",
        "extension unneeded is missing in the scratch installation; table public.aside uses its type, not selected",
        "extension unused is missing in the scratch installation; no table uses a type of it",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{report:#}");
    }
    assert_eq!((code, report["failed"].as_u64()), (1, Some(1)), "{report:#}");
    world.run(&["remove-tables", "t"]).ok();
    world.run(&["doctor"]).ok();
}

#[test]
fn a_service_that_was_killed_is_shown_as_stopped() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.run(&["start"]).ok();
    let shown = "SELECT state FROM data_sync_status";
    wait_for("a service that waits", PATIENCE, || {
        world.local.psql(shown) == "waiting"
    });
    // One that has not been heard for a while, and holds its lock, works on something that takes long.
    let long_ago = "UPDATE synctool.datasync_service SET beat_at = now() - interval '1 hour'";
    world.local.psql(long_ago);
    assert_ne!(world.local.psql(shown), "stopped");
    kill("-9", &world.local.psql("SELECT pid FROM synctool.datasync_service"));
    wait_for("the end of its lock", PATIENCE, || {
        world.local.psql(long_ago);
        world.local.psql(shown) == "stopped"
    });
    assert_ne!(
        world.local.psql("SELECT state FROM synctool.datasync_service"),
        "stopped"
    );
}

#[test]
fn metrics_say_how_fresh_they_are_in_tables_of_older_versions_too() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    let fresh =
        "SELECT count(*), count(*) FILTER (WHERE rows_as_of = (SELECT last_commit FROM synctool.datasync_state))
        FROM data_sync_metrics WHERE period = 'month' AND table_name IN ('*', 'public.acc')";
    world.production.psql("UPDATE acc SET n = 1");
    world.sync();
    assert_eq!(world.local.psql(fresh), "2|2");
    // As an older version left them.
    world.local.psql(
        "DROP VIEW data_sync_metrics_now, data_sync_metrics_closed; ALTER TABLE data_sync_metrics DROP COLUMN rows_as_of;
         DROP TABLE synctool.datasync_archive",
    );
    world.run(&["status"]);
    assert_eq!(world.local.psql(fresh), "2|0");
    world.production.psql("UPDATE acc SET n = 2");
    world.sync();
    assert_eq!(world.local.psql(fresh), "2|2");
    let now = "SELECT bool_and(rows_as_of IS NOT NULL) FROM data_sync_metrics_now WHERE table_name = 'public.acc'";
    assert_eq!(world.local.psql(now), "t");
    // Nothing happened to the others: there is no row of them.
    let rows = "SELECT string_agg(DISTINCT table_name, ',') FROM data_sync_metrics WHERE table_name NOT IN ('*', 'public.other')";
    assert_eq!(world.local.psql(rows), "public.acc");
}
