//! From nothing to a running service, and what an administrator sees.

use super::{PATIENCE, SECRET, World, files, followed, kill};
use std::fs;
use synctool_testkit::{PgVersion, Postgres, wait_for};

const SCHEMA: &str = "
CREATE TABLE orders (id int PRIMARY KEY, total numeric(10,2), note text);
CREATE TABLE events (at timestamptz, what text);";

fn from_nothing_to_a_running_service(version: PgVersion) {
    let world = World::new(version, SCHEMA);
    world
        .production
        .psql("INSERT INTO orders SELECT g, g / 7.0, 'n' || g FROM generate_series(1, 500) g");
    // Before anything is there, everything that is missing is told.
    world.run(&["doctor"]).fails(1, &["base backup", "to do"]);
    world.run(&["status"]).fails(1, &["stopped", "nothing was copied"]);
    world.run(&["stop"]).fails(4, &["not running"]);
    world
        .run(&["add-tables", "orders", "nowhere"])
        .fails(2, &["table public.nowhere does not exist locally"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM tables_to_sync"), "0");
    world.ready();
    world
        .run(&["add-tables", "orders", "public.events"])
        .fails(0, &["waits until the service starts"]);
    let (code, report) = world.json(&["doctor"]);
    assert_eq!((code, report["failed"].as_u64()), (0, Some(0)), "{report:#}");

    let (_, started) = world.json(&["start"]);
    let pid = started["pid"].to_string();
    world.eventually_same(&["orders", "events"]);
    world.run(&["start"]).fails(6, &["already running"]);
    world.run(&["run-once"]).fails(6, &["already running"]);

    // Changes arrive by themselves.
    world.production.psql(
        "INSERT INTO events SELECT now(), 'e' || g FROM generate_series(1, 30) g;
         UPDATE orders SET note = NULL WHERE id <= 20; DELETE FROM orders WHERE id > 490",
    );
    world.archived();
    world.eventually_same(&["orders", "events"]);
    let (code, status) = world.json(&["status"]);
    assert_eq!(code, 0, "{status:#}");
    assert_eq!(status["state"], "waiting");
    assert_eq!(status["service"]["pid"].to_string(), pid);
    assert_eq!(
        (status["well"].as_bool(), status["segments_behind"].as_u64()),
        (Some(true), Some(0))
    );
    assert_eq!(status["lag_seconds"].as_f64(), Some(0.0));
    assert!(status["archive"]["newest_file_age_seconds"].is_number());
    assert_eq!(status["tables"].as_array().map(Vec::len), Some(2));
    let text = world.run(&["status"]).ok().stdout;
    for part in [
        "public.orders",
        "synced",
        "newest file",
        "behind",
        "is not archived yet",
    ] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let (code, proof) = world.json(&["verify"]);
    assert_eq!((code, proof["equal"].as_bool()), (0, Some(true)), "{proof:#}");
    assert_eq!(proof["tables"][1]["local_rows"], 490);

    // What was done, and how much.
    let (_, logs) = world.json(&["logs", "--limit", "1000"]);
    let events: Vec<&str> = logs
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|l| l["event"].as_str())
        .collect();
    for event in ["started", "copied", "batch"] {
        assert!(events.contains(&event), "no {event} in {events:?}");
    }
    let batch = logs
        .as_array()
        .unwrap()
        .iter()
        .rfind(|l| l["event"] == "batch" && l["added"] == 30)
        .unwrap();
    assert_eq!(
        (batch["updated"].as_u64(), batch["deleted"].as_u64()),
        (Some(20), Some(10))
    );
    assert_eq!(
        (batch["net_added"].as_u64(), batch["net_updated"].as_u64()),
        (Some(30), Some(20))
    );
    assert!(batch["first_segment"].is_string() && batch["from_lsn"].is_string() && batch["duration_ms"].is_number());
    let (_, metrics) = world.json(&["metrics", "--table", "orders", "--period", "week"]);
    assert_eq!(
        (metrics[0]["updated"].as_u64(), metrics[0]["deleted"].as_u64()),
        (Some(20), Some(10))
    );

    // It stops, and goes on where it was.
    let (code, stopped) = world.json(&["stop"]);
    assert_eq!((code, stopped["status"].as_str()), (0, Some("stopped")));
    assert!(world.scratch_pid().is_none(), "the scratch server runs");
    wait_for("the end of the process", PATIENCE, || {
        !fs::exists(format!("/proc/{pid}")).unwrap() || is_zombie(&pid)
    });
    world.production.psql("INSERT INTO orders VALUES (10000, 1, 'later')");
    world.archived();
    world.run(&["start"]).ok();
    world.eventually_same(&["orders", "events"]);
    // SIGTERM is as good as stop.
    let pid = world.local.psql("SELECT pid FROM synctool.datasync_service");
    kill("-TERM", &pid);
    wait_for("the service to end", PATIENCE, || {
        world.local.psql("SELECT state FROM synctool.datasync_service") == "stopped"
    });
    world.run(&["status"]).fails(1, &["stopped"]);
    for file in files(world.home.path()) {
        let bytes = fs::read(&file).unwrap_or_default();
        assert!(
            !bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()),
            "{} tells",
            file.display()
        );
    }
}

/// Its parent, the test, never asked how it ended.
fn is_zombie(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "))
}

#[test]
fn from_nothing_to_a_running_service_18() {
    from_nothing_to_a_running_service(PgVersion::V18);
}

#[test]
fn from_nothing_to_a_running_service_15() {
    from_nothing_to_a_running_service(PgVersion::V15);
}

#[test]
fn mistakes_of_the_configuration_are_told_with_their_place() {
    let world = World::new(PgVersion::V18, SCHEMA);
    world.configure("DATA_SYNC_FREK = 5\n");
    world.run(&["status"]).fails(
        2,
        &[
            "datasync.toml:14:1: unknown key \"DATA_SYNC_FREK\"",
            "did you mean \"DATA_SYNC_FREQ\"?",
        ],
    );
    world.configure("");
    let mut command = world.command(&["status"]);
    let out = command.env_remove("DATA_SYNC_CONFIG").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("DATA_SYNC_CONFIG is not set"));
    let out = world
        .command(&["status"])
        .env_remove("LOCAL_PASSWORD")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("the variable LOCAL_PASSWORD is not set"));
    // What keeps the service from starting is told where it was started.
    world.run(&["start"]).fails(1, &["backup"]);
    world.run(&["status"]).fails(1, &["stopped"]);
}

#[test]
fn names_that_mean_nothing_are_refused() {
    let world = followed(
        "CREATE TABLE orders (id int PRIMARY KEY); CREATE TABLE items (id int PRIMARY KEY)",
        "INSERT INTO orders VALUES (1)",
        &["orders"],
    );
    let told = ["resync", "remove-tables"];
    for command in told {
        let ran = world.run(&[command, "order"]);
        ran.fails(
            2,
            &["table public.order is not in tables_to_sync", "did you mean orders?"],
        );
        world
            .run(&[command, "orders", "nothing.like.it"])
            .fails(2, &["table nothing.like.it is not in tables_to_sync"]);
    }
    world
        .run(&["resync", "items"])
        .fails(2, &["table public.items is not in tables_to_sync"]);
    world
        .run(&["add-tables", "item"])
        .fails(2, &["table public.item does not exist locally", "did you mean items?"]);
    // Nothing was done for those that are known.
    assert_eq!(world.local.psql("SELECT table_name FROM tables_to_sync"), "orders");
    let waiting = "SELECT count(*) FROM synctool.datasync_requests WHERE done_at IS NULL";
    assert_eq!(world.local.psql(waiting), "0");
    world.run(&["resync", "public.orders"]).ok();
    world.run(&["remove-tables", "public.orders"]).ok();
}

/// Production may have tables of the names that ours have here; they are not written into ours.
#[test]
fn tables_of_data_sync_itself_are_never_synced() {
    let world = World::new(PgVersion::V18, "CREATE TABLE good (id int PRIMARY KEY)");
    world.production.psql(
        "CREATE TABLE tables_to_sync (table_name text PRIMARY KEY, added_at timestamptz NOT NULL DEFAULT now());
         CREATE TABLE data_sync_logs (id int PRIMARY KEY); CREATE TABLE data_sync_metrics (id int PRIMARY KEY);
         INSERT INTO tables_to_sync VALUES ('theirs'); INSERT INTO good VALUES (1)",
    );
    world.ready();
    world.add(&["good"]);
    for own in ["tables_to_sync", "data_sync_logs", "public.data_sync_metrics"] {
        world
            .run(&["add-tables", own])
            .fails(4, &["is a table of Data Sync itself here"]);
    }
    // However it is asked for.
    let names = "INSERT INTO tables_to_sync VALUES ('tables_to_sync'), ('data_sync_logs')";
    world.local.psql(names);
    world.run(&["run-once"]).ok();
    world.same(&["good"]);
    for own in ["tables_to_sync", "data_sync_logs"] {
        let state = world.state(&format!("public.{own}"));
        assert!(
            state.contains("paused: ") && state.contains("is a table of Data Sync itself here"),
            "{state}"
        );
    }
    let selected = "SELECT string_agg(table_name, ',' ORDER BY table_name) FROM tables_to_sync";
    assert_eq!(world.local.psql(selected), "data_sync_logs,good,tables_to_sync");
    world
        .production
        .psql("INSERT INTO tables_to_sync VALUES ('more'); INSERT INTO good VALUES (2)");
    world.sync();
    world.same(&["good"]);
    assert_eq!(world.local.psql(selected), "data_sync_logs,good,tables_to_sync");
}

/// Texts are the same in whatever order a database has them: another one is told, and in nobody's way.
#[test]
fn another_collation_is_told_and_does_not_stand_in_the_way() {
    let local = Postgres::shared(PgVersion::V15).database_in_language("datasync", "en-US");
    let schema = "CREATE TABLE words (word text PRIMARY KEY, n int); CREATE TABLE loose (word text)";
    let world = World::between(PgVersion::V15, schema, |p| p, local);
    world.production.psql(
        "INSERT INTO words SELECT chr(97 - g % 2 * 32) || ' ä-' || g, g FROM generate_series(1, 300) g; INSERT INTO loose SELECT word FROM words",
    );
    world.ready();
    world.add(&["words", "loose"]);
    // It looks into the scratch server if that runs.
    world.run(&["start"]).ok();
    world.eventually_same(&["words", "loose"]);
    wait_for("what doctor says", PATIENCE, || {
        let ran = world.run(&["doctor"]);
        let says = "collation or its version differs: production c C.UTF-8, local i C";
        match ran.code == 0 && ran.stdout.contains(says) && ran.stdout.contains("only the order of text is concerned") {
            true => Ok(()),
            false => Err(ran.stdout),
        }
    });
    world.production.psql(
        "UPDATE words SET word = lower(word) || '!' WHERE n % 5 = 0; UPDATE words SET n = -n WHERE word < 'b'; DELETE FROM words WHERE n > 290;
         DELETE FROM loose WHERE word > 'a'; INSERT INTO loose VALUES ('B'), ('a'), (NULL)",
    );
    world.archived();
    world.eventually_same(&["words", "loose"]);
    world.run(&["verify"]).ok();
}

#[test]
fn doctor_tells_what_is_missing_and_how_to_mend_it() {
    let schema = "CREATE TABLE ok (id int PRIMARY KEY); CREATE TABLE loose (a int, j json); CREATE TABLE gone (id int PRIMARY KEY)";
    let world = World::new(PgVersion::V18, schema);
    world.ready();
    world.add(&["ok", "loose", "gone"]);
    world.run(&["run-once"]).ok();
    world.local.psql("DROP TABLE gone; ALTER TABLE ok ADD extra int; CREATE PUBLICATION p FOR TABLE loose; INSERT INTO tables_to_sync VALUES ('nothing')");
    world.production.psql("ALTER TABLE ok ADD other text");
    // It looks into the scratch server if that runs.
    world.run(&["start"]).ok();
    wait_for("the scratch server", PATIENCE, || world.scratch_pid().is_some());
    let told = [
        "table public.gone does not exist locally",
        "there is no table public.nothing in production",
        "columns of public.ok differ: production (nothing more), local (extra integer)",
        "local publication p publishes public.loose, which has no replica identity: deletes would fail; drop it",
        "table public.loose has no primary key: whole rows are compared",
        "column j of type json cannot be compared directly; text is used",
        "DROP PUBLICATION",
    ];
    wait_for("what doctor says", PATIENCE, || {
        let ran = world.run(&["doctor"]);
        assert_eq!(ran.code, 1);
        match told.iter().find(|part| !ran.stdout.contains(**part)) {
            Some(part) => Err(format!("no {part:?} in\n{}", ran.stdout)),
            None => Ok(()),
        }
    });
    world.run(&["stop"]).ok();
    // Another server's archive, and one that does not reach back far enough.
    fs::remove_dir_all(world.path("scratch")).unwrap();
    let other = Postgres::shared(PgVersion::V18);
    let theirs = other.psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    let system = |server: &Postgres| server.psql("SELECT system_identifier FROM pg_control_system()");
    fs::create_dir(world.path("foreign")).unwrap();
    let segment = other.data_directory().join("pg_wal").join(&theirs);
    fs::copy(segment, world.path("foreign").join(&theirs)).unwrap();
    world.reconfigure("ARCHIVE_DIR = \"archive\"", "ARCHIVE_DIR = \"foreign\"");
    let says = format!(
        "base backup was taken from system id {}, archive has {}",
        system(&world.production),
        system(other)
    );
    world
        .run(&["doctor"])
        .fails(1, &[&says, "name the archive and a base backup of the same server"]);
    world.reconfigure("ARCHIVE_DIR = \"foreign\"", "ARCHIVE_DIR = \"archive\"");
    let label = fs::read_to_string(world.path("backup/backup_label")).unwrap();
    let first = label.split_once("(file ").unwrap().1.split_once(')').unwrap().0;
    let mut segments: Vec<_> = files(&world.path("archive"));
    segments.sort();
    for segment in segments
        .iter()
        .filter(|s| s.extension().is_none())
        .take(segments.len() - 1)
    {
        fs::rename(
            segment,
            world.path("aside").with_extension(segment.file_name().unwrap()),
        )
        .unwrap();
    }
    world
        .production
        .psql("INSERT INTO other SELECT generate_series(1, 30000)");
    world.archived();
    world.run(&["doctor"]).fails(
        1,
        &[
            &format!("base backup starts at segment {first} but the oldest archived file is "),
            ": WAL between them is gone, take a new base backup",
        ],
    );
}
