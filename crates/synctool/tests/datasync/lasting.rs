//! Much at once, and for long.

use super::witness::{Proved, Witness};
use super::{PATIENCE, World, kill};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use synctool_testkit::{PgVersion, Postgres, is_soak, wait_for};

/// Half of them are rows that come, the others change half of the rows.
fn changes_arrive_at_once(version: PgVersion, changes: u32) {
    let (half, all) = (changes / 2, changes);
    let world = World::new(version, "CREATE TABLE t (id int PRIMARY KEY, n int, body text)");
    world.production.psql(&format!(
        "INSERT INTO t SELECT g, 0, md5(g::text) FROM generate_series(1, {half}) g"
    ));
    world.ready();
    world.reconfigure("BATCH_SEGMENTS = 4", "BATCH_SEGMENTS = 1000");
    world.add(&["t"]);
    world.run(&["run-once"]).ok();
    world.production.psql(&format!(
        "INSERT INTO t SELECT g, 0, md5(g::text) FROM generate_series({half} + 1, {all}) g;
         UPDATE t SET n = 1 WHERE id % 5 < 2; DELETE FROM t WHERE id % 10 = 9"
    ));
    world.archived();
    world.run(&["run-once"]).ok();
    world.same(&["t"]);
    let counted = "SELECT sum(added), sum(updated), sum(deleted) FROM data_sync_metrics WHERE table_name = 'public.t' AND period = 'month'";
    let (updated, deleted) = (changes / 5 * 2, changes / 10);
    assert_eq!(world.local.psql(counted), format!("{half}|{updated}|{deleted}"));
}

#[test]
fn a_million_changes_arrive_at_once() {
    changes_arrive_at_once(PgVersion::V18, 1_000_000);
}

#[test]
fn a_hundred_thousand_changes_arrive_at_once_15() {
    changes_arrive_at_once(PgVersion::V15, 100_000);
}

const SCHEMA: &str = "
CREATE TABLE acc (id int PRIMARY KEY, n int, body text);
CREATE TABLE nokey (a int, b text);
CREATE TABLE swap (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE wide (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
CREATE TABLE parted (id int, side int, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
CREATE TABLE leaf_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE leaf_2 PARTITION OF parted FOR VALUES IN (2);";
const TABLES: &[&str] = &["acc", "nokey", "swap", "wide", "leaf_1", "leaf_2"];
const SELECTED: &[&str] = &["acc", "nokey", "swap", "wide", "parted"];

const WRITE: &str = "
DO $$ BEGIN FOR i IN 1..40 LOOP
  UPDATE acc SET n = n + 1, body = repeat('y', (random() * 400)::int) WHERE id = 1 + (random() * 999)::int;
  DELETE FROM acc WHERE id = 1 + (random() * 999)::int;
  INSERT INTO acc VALUES (1 + (random() * 1200)::int, -1, 'new') ON CONFLICT (id) DO UPDATE SET n = -2;
  UPDATE swap SET u = u + 1000 WHERE id = 1 + (random() * 49)::int;
  BEGIN
    DELETE FROM nokey WHERE a = (random() * 20)::int; UPDATE parted SET side = 3 - side WHERE id = (random() * 200)::int;
    IF random() < 0.3 THEN RAISE EXCEPTION 'back'; END IF;
  EXCEPTION WHEN raise_exception THEN NULL; END;
  INSERT INTO nokey VALUES (i % 20, NULL), (i % 20, NULL), (i, 'x');
  IF random() < 0.4 THEN COMMIT; END IF; IF random() < 0.1 THEN ROLLBACK; END IF;
END LOOP; END $$;
UPDATE wide SET body = body || 'z' WHERE id % 7 = $S; INSERT INTO wide (body) VALUES (repeat(md5(random()::text), 200));
BEGIN; UPDATE acc SET n = 77 WHERE id % 100 = $S; SAVEPOINT x; DELETE FROM nokey WHERE a = 7; ROLLBACK TO x;
PREPARE TRANSACTION 'p$S';
COMMIT PREPARED 'p$S';";

/// Open over many segments, with subtransactions; whether it comes to something is not known before.
const LONG: &str = "
BEGIN; UPDATE acc SET n = n + 5 WHERE id % 50 = $R % 50; INSERT INTO nokey SELECT $R, 'long' FROM generate_series(1, 30);
SAVEPOINT a; DELETE FROM wide WHERE id % 11 = $R % 11; ROLLBACK TO a; SAVEPOINT b; UPDATE parted SET side = 3 - side WHERE id % 9 = 0; RELEASE b;
SELECT pg_sleep($R % 4); $END;";

const CHORES: &[&str] = &[
    "BEGIN; UPDATE wide SET body = body || 'h' WHERE id % 5 = 0; INSERT INTO nokey VALUES (99, 'held'); PREPARE TRANSACTION 'held'",
    "COMMIT PREPARED 'held'",
    "ROLLBACK PREPARED 'held'",
    "BEGIN; ALTER TABLE acc ADD COLUMN extra int DEFAULT 7; UPDATE acc SET extra = 8 WHERE id < 100; ALTER TABLE acc DROP COLUMN extra; COMMIT",
    "BEGIN; ALTER TABLE parted DETACH PARTITION leaf_2; UPDATE leaf_2 SET id = id + 1000 WHERE id < 20; ALTER TABLE parted ATTACH PARTITION leaf_2 FOR VALUES IN (2); COMMIT",
    "BEGIN; ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTENDED; UPDATE wide SET body = body || 'c' WHERE id % 6 = 0; ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL; COMMIT; ALTER TABLE acc SET (fillfactor = 60)",
    "BEGIN; TRUNCATE nokey; INSERT INTO nokey VALUES (1, 'after'); COMMIT",
    "VACUUM FULL wide; VACUUM (FREEZE) acc",
    "BEGIN; TRUNCATE acc; ROLLBACK; CLUSTER acc USING acc_pkey",
    "DELETE FROM wide WHERE id % 3 = 0; VACUUM wide; ANALYZE; CHECKPOINT",
    "BEGIN; UPDATE swap SET u = -u; COMMIT; REINDEX TABLE acc; SELECT pg_switch_wal()",
];

/// Leaves a request beside the load: a table that is copied anew, taken off the list, or put on it again.
fn ask(world: &World, what: u64) {
    let request: &[&str] = match what {
        0 => &["resync", "--wait", "0", "acc", "parted"],
        1 => &["remove-tables", "--wait", "0", "nokey"],
        2 => &["add-tables", "--wait", "0", "nokey"],
        _ => &["clear", "--yes", "--wait", "0"],
    };
    // One that is not on the list is refused.
    let _ = world.run(request);
}

/// The service under load, with its processes killed at random; at every stored place both sides are equal, as a standby
/// and a trigger have it that know nothing of us.
#[allow(clippy::print_stdout, reason = "a soak says how much it did")]
fn under_random_load_and_kills(version: PgVersion, short: Duration) {
    let soak = is_soak();
    let minutes: u64 = std::env::var("SYNCTOOL_SOAK_MINUTES")
        .ok()
        .and_then(|m| m.parse().ok())
        .unwrap_or(60);
    let length = match soak {
        true => Duration::from_secs(60 * minutes.clamp(1, 30)),
        false => short,
    };
    let seed: u64 = std::env::var("SYNCTOOL_TEST_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(42);
    // Soaks draw their version: the machine is theirs alone.
    let drawn = [PgVersion::V18, PgVersion::V15][(seed % 2) as usize];
    if soak && drawn != version {
        return println!("PostgreSQL {drawn} was drawn");
    }
    println!("PostgreSQL {version}, SYNCTOOL_TEST_SEED={seed}");
    // A server of its own here, that may be killed as well.
    let server = Postgres::start(version);
    let world = World::between(version, SCHEMA, |p| p, server.database("datasync"));
    // Long values stand outside their rows, as they are: these would become short enough to stay.
    world.production.psql(
        "ALTER TABLE wide ALTER COLUMN body SET STORAGE EXTERNAL;
         INSERT INTO acc SELECT g, 0, repeat('x', g % 300) FROM generate_series(1, 1000) g; INSERT INTO swap SELECT g, -g FROM generate_series(1, 50) g;
         INSERT INTO nokey SELECT g % 20, NULLIF('v' || g % 3, 'v0') FROM generate_series(1, 300) g; INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 200) g;
         INSERT INTO wide (body) SELECT repeat(md5(g::text), 200) FROM generate_series(1, 40) g",
    );
    let witness = Witness::of(&world);
    world.ready();
    world.add(SELECTED);
    witness.watch(&world);
    world.run(&["start"]).ok();
    // The next of a sequence that a seed determines.
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) % below
    };
    let end = Instant::now() + length;
    let (mut rounds, mut kills, mut proved, mut all) = (0, 0, 0, Proved::default());
    while Instant::now() < end {
        rounds += 1;
        let ended = AtomicBool::new(false);
        thread::scope(|scope| {
            for session in 0..3 {
                let (world, ended) = (&world, &ended);
                scope.spawn(move || {
                    let script = format!("SET lock_timeout = '2s'; {}", WRITE.replace("$S", &session.to_string()));
                    for _ in 0..10 {
                        let _ = world.production.try_psql(&script);
                        let _ = world.production.try_psql(&format!("ROLLBACK PREPARED 'p{session}'"));
                        if ended.load(Ordering::SeqCst) {
                            break;
                        }
                    }
                });
            }
            for _ in 0..2 {
                let script = LONG.replace("$R", &random(1000).to_string());
                let script = script.replace("$END", ["COMMIT", "ROLLBACK"][random(2) as usize]);
                let world = &world;
                scope.spawn(move || drop(world.production.try_psql(&format!("SET lock_timeout = '2s'; {script}"))));
            }
            for _ in 0..3 {
                let chore = CHORES[random(CHORES.len() as u64) as usize];
                let _ = world.production.try_psql(&format!("SET lock_timeout = '2s'; {chore}"));
                world.archived();
                match random(8) {
                    0 | 1 => {
                        let pid = world.local.psql("SELECT pid FROM synctool.datasync_service");
                        kill("-9", &pid);
                        kills += 1;
                        wait_for("the end of the killed service", PATIENCE, || {
                            world.run(&["start"]).code == 0
                        });
                    }
                    2 => {
                        server.kill9();
                        server.restart();
                        kills += 1;
                        // What it has lost with its session it takes up again.
                        wait_for("the service", PATIENCE, || {
                            let working = "SELECT state IN ('working', 'waiting') FROM synctool.datasync_service";
                            world.local.psql(working) == "t"
                        });
                    }
                    3 => ask(&world, random(4)),
                    4 | 5 => {
                        if let Some(pid) = world.scratch_pid() {
                            let _ = std::process::Command::new("kill").args(["-9", &pid]).status();
                            kills += 1;
                        }
                    }
                    _ => {}
                }
            }
            ask(&world, random(4));
            // Wherever the service stands by now, both sides are equal there.
            let mut proof = serde_json::Value::Null;
            wait_for("an answer of verify", PATIENCE, || {
                // Whose scratch server was killed just now says so.
                let (code, said) = world.json(&["verify"]);
                let answered = said["tables"].is_array();
                proof = said;
                match answered || code != 5 {
                    true => Ok(()),
                    false => Err(format!("{proof}")),
                }
            });
            for table in proof["tables"].as_array().unwrap_or_else(|| panic!("{proof}")) {
                let is_equal = table["equal"] == true;
                assert!(is_equal || table["skipped"].is_string(), "round {rounds}: {proof}");
                proved += u64::from(is_equal);
            }
            ended.store(true, Ordering::SeqCst);
        });
        let _ = world.production.try_psql("COMMIT PREPARED 'held'");
        world.archived();
        world.add(SELECTED);
        world.eventually_same(TABLES);
        world.run(&["verify"]).ok();
        let paused = world
            .local
            .psql("SELECT table_name, why FROM data_sync_tables WHERE state <> 'synced'");
        assert_eq!(paused, "", "round {rounds}");
        all.add(witness.prove(&world));
    }
    world.run(&["stop"]).ok();
    all.add(witness.prove(&world));
    assert_eq!(Witness::missed(&world), "", "a stored place that nobody looked at");
    assert!(all.tables > all.locked, "{all:?}");
    let wrong = "SELECT message FROM data_sync_logs WHERE event IN ('healed', 'paused')";
    assert_eq!(world.local.psql(wrong), "");
    assert!(proved > 0, "no table could be compared under load");
    assert!(!soak || kills > 0, "{rounds} rounds without a kill");
    println!("PostgreSQL {version}: {rounds} rounds, {kills} kills, {proved} tables equal under load; {all:?}");
}

#[test]
fn random_load_and_random_kills() {
    under_random_load_and_kills(PgVersion::V18, Duration::from_secs(25));
}

#[test]
fn random_load_and_random_kills_15() {
    under_random_load_and_kills(PgVersion::V15, Duration::from_secs(15));
}
