//! An archive that brings nothing: whether nothing happened, or nobody could ask, is told.

use super::{PATIENCE, World, files, followed};
use std::fs;
use synctool_testkit::{PgVersion, S3, wait_for};

const SCHEMA: &str = "CREATE TABLE acc (id int PRIMARY KEY, n int)";
const ROWS: &str = "INSERT INTO acc SELECT g, g FROM generate_series(1, 100) g";
const TOLD: &str = "SELECT count(*) FROM data_sync_logs WHERE event = 'archive_silent' AND level = 'warn'";

/// Looks until it is told that the archive is silent.
fn silent(world: &World) {
    wait_for("a line about silence", PATIENCE, || {
        world.run(&["run-once"]).ok();
        world.local.psql(TOLD) == "1"
    });
}

/// Credentials that have expired look like a file that was not archived yet: after a while it is told, with what the command
/// says.
#[test]
fn a_command_that_cannot_ask_any_more_is_told() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql(ROWS);
    world.ready();
    let script = "if [ -e \"$0.broken\" ]; then echo 'asking' >&2; echo 'the token has expired' >&2; exit 1; fi; exec cp \"$(dirname \"$0\")/archive/$1\" \"$2\"";
    fs::write(world.path("fetch"), script).unwrap();
    let fetch = format!("WAL_FETCH_COMMAND = \"sh {} %f %p\"", world.path("fetch").display());
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &fetch);
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    let (_, status) = world.json(&["status"]);
    assert_eq!(status["archive"]["silent"], false, "{status:#}");
    assert!(status["archive"]["quiet_seconds"].is_number() && status["archive"]["awaited"].is_string());

    fs::write(world.path("fetch.broken"), "").unwrap();
    world.reconfigure("ARCHIVE_INTERVAL = 3600", "ARCHIVE_INTERVAL = \"100ms\"");
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    silent(&world);
    let says = "SELECT message FROM data_sync_logs WHERE event = 'archive_silent'";
    let says = world.local.psql(says);
    for part in [
        "no segment was taken for",
        "wal_fetch_command cannot ask",
        "exit status 1: asking; the token has expired",
    ] {
        assert!(says.contains(part), "no {part:?} in {says}");
    }
    // However often somebody looks.
    world.run(&["run-once"]).ok();
    assert_eq!(world.local.psql(TOLD), "1");
    world.run(&["start"]).ok();
    wait_for("a status that says so", PATIENCE, || {
        let (code, status) = world.json(&["status"]);
        assert_eq!(
            (code, status["archive"]["silent"].as_bool()),
            (1, Some(true)),
            "{status:#}"
        );
        status["state"] == "waiting"
    });
    let text = world.run(&["status"]).stdout;
    for part in ["SILENT", "is awaited for", "fetch says", "the token has expired"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    fs::remove_file(world.path("fetch.broken")).unwrap();
    world.eventually_same(&["acc"]);
}

#[test]
fn silence_is_told_once_however_often_somebody_looks() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.reconfigure("ARCHIVE_INTERVAL = 3600", "ARCHIVE_INTERVAL = \"100ms\"");
    silent(&world);
    for _ in 0..2 {
        world.run(&["run-once"]).ok();
    }
    assert_eq!(world.local.psql(TOLD), "1");
    // What came since may be the last again.
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    wait_for("another line", PATIENCE, || {
        world.run(&["run-once"]).ok();
        world.local.psql(TOLD) == "2"
    });
    world.same(&["acc"]);
}

/// A folder in which nothing is mounted has no newest file; that is silence, too.
#[test]
fn an_archive_without_a_segment_is_silent_as_well() {
    let world = followed(SCHEMA, ROWS, &["acc"]);
    world.reconfigure("ARCHIVE_INTERVAL = 3600", "ARCHIVE_INTERVAL = \"100ms\"");
    fs::create_dir(world.path("empty")).unwrap();
    world.reconfigure("ARCHIVE_DIR = \"archive\"", "ARCHIVE_DIR = \"empty\"");
    silent(&world);
    let says = "SELECT message FROM data_sync_logs WHERE event = 'archive_silent'";
    let says = world.local.psql(says);
    for part in ["no segment was taken for", "or nothing is mounted in ", "/empty"] {
        assert!(says.contains(part), "no {part:?} in {says}");
    }
    let (_, status) = world.json(&["status"]);
    assert_eq!(status["archive"]["silent"], true, "{status:#}");
    world.run(&["status"]).fails(1, &["is awaited for", "SILENT"]);
    world.reconfigure("ARCHIVE_DIR = \"empty\"", "ARCHIVE_DIR = \"archive\"");
    world.production.psql("UPDATE acc SET n = 1");
    world.sync();
    world.same(&["acc"]);
}

#[test]
fn a_segment_that_a_bucket_lacks_is_told_and_so_is_its_silence() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.production.psql(ROWS);
    world.ready();
    let server = S3::shared();
    let bucket = server.bucket("datasync-gap");
    let upload = |without: &str| {
        for path in files(&world.path("archive")) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name != without {
                let put = server.request("PUT", &format!("/{bucket}/prod/{name}"), &fs::read(&path).unwrap());
                assert_eq!(put.unwrap().0, 200);
            }
        }
    };
    let s3 = format!(
        "ARCHIVE_S3 = \"s3://{bucket}/prod\"\nS3_ENDPOINT = \"{}\"\nS3_REGION = \"{}\"\nS3_ACCESS_KEY_ID = \"{}\"\n\
         S3_SECRET_ACCESS_KEY = \"{}\"",
        server.endpoint(),
        S3::REGION,
        S3::ACCESS_KEY,
        S3::SECRET_KEY
    );
    world.reconfigure("ARCHIVE_DIR = \"archive\"", &s3);
    upload("");
    world.add(&["acc"]);
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
    world.reconfigure("ARCHIVE_INTERVAL = 3600", "ARCHIVE_INTERVAL = \"100ms\"");
    silent(&world);
    let says = "SELECT message FROM data_sync_logs WHERE event = 'archive_silent'";
    assert!(world.local.psql(says).starts_with("no segment was taken for"));
    // A later one is there.
    let name = world
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    world.production.psql("UPDATE acc SET n = 0");
    world.archived();
    world.production.psql("UPDATE acc SET n = 1");
    world.archived();
    upload(&name);
    wait_for("an error", PATIENCE, || world.run(&["run-once"]).code != 0);
    world.run(&["run-once"]).fails(
        1,
        &[
            &format!("WAL segment {name} is missing from the archive but"),
            "ST-WAL-001",
        ],
    );
    upload("");
    world.run(&["run-once"]).ok();
    world.same(&["acc"]);
}
