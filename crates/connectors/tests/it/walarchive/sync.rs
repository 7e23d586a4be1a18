//! Production's rows arrive in a local database from archived log alone, and a kill at any step changes nothing.

use super::{Place, bin_dir, scratch_config};
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;
use synctool_connectors::postgres::PostgresConfig;
use synctool_connectors::walarchive::{Archive, DataSync, ReplayConfig, Step, SyncConfig};
use synctool_testkit::{KillRun, PgVersion, Postgres, TestDb};
use tokio_util::sync::CancellationToken;

const SCHEMA: &str = "
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE TABLE acc (id int PRIMARY KEY, n int, m mood DEFAULT 'low', body text, twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE swap (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE nokey (a int, b text, j json);
CREATE TABLE wide (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body text);
CREATE TABLE pair (a int, b text, v jsonb, PRIMARY KEY (b, a));
CREATE TABLE parted (id int, side int, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
CREATE TABLE leaf_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE leaf_2 PARTITION OF parted FOR VALUES IN (2);
CREATE TABLE other (id int);
";

const TABLES: &[&str] = &["acc", "swap", "nokey", "wide", "pair", "leaf_1", "leaf_2"];

pub(super) struct World {
    pub(super) production: Postgres,
    pub(super) local: TestDb,
    pub(super) place: Place,
}

impl World {
    pub(super) fn new() -> Self {
        Self::on(PgVersion::V18)
    }

    pub(super) fn on(version: PgVersion) -> Self {
        let place = Place::new();
        let archive = place.path().join("archive");
        let production = Postgres::builder(version)
            .setting("wal_level", "replica")
            .archiving_to(&archive)
            .setting("autovacuum_naptime", "1s")
            .start();
        production.psql(SCHEMA);
        production.psql(
            "INSERT INTO acc SELECT g, 0, 'high', repeat('x', g % 300) FROM generate_series(1, 2000) g;
             INSERT INTO swap SELECT g, -g FROM generate_series(1, 50) g;
             INSERT INTO nokey SELECT g % 20, NULLIF('v' || g % 3, 'v0'), '{\"a\": 1}' FROM generate_series(1, 300) g;
             INSERT INTO wide (body) SELECT string_agg(md5((g * s)::text), '') FROM generate_series(1, 200) g, generate_series(1, 40) s GROUP BY s;
             INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 200) g;",
        );
        let local = Postgres::shared(version).database("datasync");
        local.psql(SCHEMA);
        World {
            production,
            local,
            place,
        }
    }

    pub(super) fn backup(&self) {
        self.production.base_backup(&self.place.path().join("backup"));
    }

    /// Ends the segment and waits until it is archived.
    pub(super) fn archived(&self) {
        let archive = self.place.path().join("archive");
        self.production.archive_now(&archive, Duration::from_secs(60));
    }

    pub(super) fn config(&self) -> SyncConfig {
        config(&bin_dir(&self.production), self.place.path(), &self.local.url())
    }

    /// Runs until there is nothing more, comparing at every place.
    pub(super) async fn sync(&self) -> u32 {
        self.sync_with(self.config()).await
    }

    async fn sync_with(&self, config: SyncConfig) -> u32 {
        let mut sync = DataSync::open(config).await.unwrap();
        let mut batches = 0;
        loop {
            match sync.step().await.unwrap() {
                Step::Idle(_) => return batches,
                Step::Applied(_) => {
                    batches += 1;
                    let session = sync.scratch().connect("postgres").await.unwrap();
                    session.batch_execute("SET lock_timeout = '2s'").await.unwrap();
                    for table in TABLES {
                        let there: String = match session.query_one(&rows(table), &[]).await {
                            Ok(row) => row.get(0),
                            // A vacuum of production holds a lock at this very place: nobody can look.
                            Err(e) if e.code().is_some_and(|code| code.code() == "55P03") => continue,
                            Err(e) => panic!("{table}: {e}"),
                        };
                        assert_eq!(self.local.psql(&rows(table)), there, "{table}");
                    }
                }
            }
        }
    }

    /// A run in a process of its own.
    pub(super) fn run(&self) -> KillRun {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "walarchive::sync::one_run", "--ignored", "--nocapture"]);
        command.env("DATASYNC_TEST_BIN", bin_dir(&self.production));
        command
            .env("DATASYNC_TEST_PLACE", self.place.path())
            .env("DATASYNC_TEST_LOCAL", self.local.url());
        KillRun::new(&command)
    }

    fn same_as_production(&self) {
        for table in TABLES {
            assert_eq!(
                self.local.psql(&rows(table)),
                self.production.psql(&rows(table)),
                "{table}"
            );
        }
    }
}

fn config(bin_dir: &Path, place: &Path, local: &str) -> SyncConfig {
    SyncConfig {
        replay: ReplayConfig {
            archive: Archive::Directory(place.join("archive")),
            backup: place.join("backup").into(),
            scratch: scratch_config(bin_dir, place),
            database: "postgres".into(),
            batch_segments: 4,
            patience: 3,
            pace: Duration::ZERO,
            replay_patience: Duration::from_secs(90),
            touched_rows: 1 << 20,
        },
        local: PostgresConfig::from_url(local).unwrap(),
        metric_hours: 24,
        copy_jobs: 2,
        copy_range: 64 << 20,
        stop: CancellationToken::new(),
    }
}

/// Everything in a table, whatever its order.
pub(super) fn rows(table: &str) -> String {
    format!(
        "SELECT count(*)::text || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\")), '') FROM ONLY public.{table} t"
    )
}

/// A bit of everything, by several sessions at once.
fn load(production: &Postgres, round: u32) {
    thread::scope(|scope| {
        for session in 0..3 {
            scope.spawn(move || {
                let script = "
                    DO $$ BEGIN FOR i IN 1..60 LOOP
                      UPDATE acc SET n = n + 1, body = repeat('y', (random() * 400)::int) WHERE id = 1 + (random() * 1999)::int;
                      DELETE FROM acc WHERE id = 1 + (random() * 1999)::int;
                      INSERT INTO acc (id, n, body) VALUES (1 + (random() * 2500)::int, -1, 'new') ON CONFLICT (id) DO UPDATE SET n = -2, m = 'low';
                      UPDATE swap SET u = u + 1000 WHERE id = 1 + (random() * 49)::int;
                      BEGIN
                        DELETE FROM nokey WHERE a = (random() * 20)::int;
                        UPDATE parted SET side = 3 - side WHERE id = (random() * 200)::int;
                        INSERT INTO pair VALUES (i, 'r$R s$S', '{\"k\": 1}');
                        IF random() < 0.3 THEN RAISE EXCEPTION 'back'; END IF;
                      EXCEPTION WHEN raise_exception THEN NULL; END;
                      INSERT INTO nokey VALUES (i % 20, NULL, '[1,  2]'), (i % 20, NULL, '[1,  2]');
                      UPDATE pair SET b = b || 'x' WHERE a = i AND b LIKE 'r$R s$S%';
                      IF random() < 0.4 THEN COMMIT; END IF;
                      IF random() < 0.1 THEN ROLLBACK; END IF;
                    END LOOP; END $$;
                    UPDATE wide SET body = body || 'z' WHERE id % 7 = $S; INSERT INTO wide (body) VALUES (repeat('w', 5000));
                    BEGIN; UPDATE acc SET n = 77 WHERE id % 100 = $S; SAVEPOINT x; DELETE FROM nokey WHERE a = 7; ROLLBACK TO x;
                    PREPARE TRANSACTION 'p$S'; COMMIT PREPARED 'p$S';";
                let script = script.replace("$S", &session.to_string()).replace("$R", &round.to_string());
                // Sessions may deadlock; then one did less.
                let _ = production.try_psql(&script);
                let _ = production.try_psql(&format!("ROLLBACK PREPARED 'p{session}'"));
            });
        }
    });
    let chore = [
        "BEGIN; TRUNCATE nokey; INSERT INTO nokey VALUES (1, 'after', '{}'); COMMIT; VACUUM FULL wide",
        "BEGIN; TRUNCATE acc; ROLLBACK; VACUUM (FREEZE) acc; BEGIN; UPDATE swap SET u = 900 - u; COMMIT",
        "CLUSTER acc USING acc_pkey; BEGIN; INSERT INTO acc (id, n) VALUES (9000 + 1, 1); PREPARE TRANSACTION 'long'; INSERT INTO other SELECT generate_series(1, 3000)",
        "COMMIT PREPARED 'long'; DELETE FROM acc WHERE id > 9000; VACUUM acc; VACUUM nokey; CHECKPOINT",
    ];
    production.psql(chore[round as usize % chore.len()]);
}

pub(super) fn select(local: &TestDb) {
    local.psql("INSERT INTO tables_to_sync VALUES ('acc'), ('swap'), ('nokey'), ('wide'), ('public.pair'), ('parted')");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_local_tables_are_productions_at_every_place() {
    let world = World::new();
    // A transaction is open while the base backup is made, and one is prepared.
    world
        .production
        .psql("BEGIN; UPDATE acc SET n = 5 WHERE id = 1; DELETE FROM nokey WHERE a = 3; PREPARE TRANSACTION 'early'");
    world.backup();
    // The control tables must be there to select anything.
    drop(DataSync::open(world.config()).await.unwrap());
    select(&world.local);
    world
        .production
        .psql("INSERT INTO other SELECT generate_series(1, 20000); SELECT pg_switch_wal()");
    world.production.psql("COMMIT PREPARED 'early'");
    load(&world.production, 0);
    load(&world.production, 1);
    world.archived();
    // What was open when the backup began must end, and the log must say so, before the first copy.
    world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
    world.archived();
    assert!(world.sync().await >= 1);
    for round in 2..6 {
        load(&world.production, round);
        world.archived();
        assert!(world.sync().await >= 1, "round {round}");
    }
    world.same_as_production();

    // Counts are production's operations.
    world.production.psql("INSERT INTO pair SELECT g, 'counted', '{}' FROM generate_series(1, 100) g; UPDATE pair SET v = '1' WHERE b = 'counted' AND a <= 40; DELETE FROM pair WHERE b = 'counted' AND a > 90");
    let count = "SELECT added, updated, deleted FROM data_sync_metrics WHERE table_name = 'public.pair' AND period = 'month' ORDER BY starts_at DESC LIMIT 1";
    let before: Vec<i64> = world.local.psql(count).split('|').map(|n| n.parse().unwrap()).collect();
    world.archived();
    world.sync().await;
    let after: Vec<i64> = world.local.psql(count).split('|').map(|n| n.parse().unwrap()).collect();
    let difference: Vec<i64> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
    assert_eq!(difference, [100, 40, 10]);
    world.same_as_production();

    // A few rows are found by their key, whatever the planner thinks; nothing is compiled for them; and what is stored is on
    // the disk, whatever the server is set to.
    let name = world.local.name();
    world
        .local
        .psql(&format!("ALTER DATABASE {name} SET synchronous_commit = off"));
    world.local.psql(
        "CREATE TABLE planned (what text, jit text, hashed text, flushed text);
         CREATE FUNCTION planned() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.planned VALUES (TG_TABLE_NAME, current_setting('jit'), current_setting('enable_hashjoin'),
                 current_setting('synchronous_commit'));
             RETURN NULL; END $$;
         CREATE TRIGGER planned AFTER DELETE ON acc FOR EACH STATEMENT EXECUTE FUNCTION planned();
         CREATE TRIGGER planned AFTER UPDATE ON synctool.datasync_state FOR EACH STATEMENT EXECUTE FUNCTION planned();
         ALTER TABLE acc ENABLE ALWAYS TRIGGER planned; ALTER TABLE synctool.datasync_state ENABLE ALWAYS TRIGGER planned",
    );
    world.production.psql("UPDATE acc SET n = 7 WHERE id < 50");
    world.archived();
    world.sync().await;
    let planned = world
        .local
        .psql("SELECT DISTINCT what, jit, hashed, flushed FROM planned ORDER BY 1");
    assert_eq!(planned, "acc|off|off|local\ndatasync_state|off|on|local");
    world.local.psql("DROP FUNCTION planned CASCADE");

    // Somebody changes a local row: the batch that meets it copies the table anew, and says so.
    world.local.psql("DELETE FROM pair WHERE b = 'counted' AND a = 1");
    world
        .production
        .psql("UPDATE pair SET v = '2' WHERE b = 'counted'; UPDATE acc SET n = 3 WHERE id < 50");
    world.archived();
    assert!(world.sync().await >= 1);
    world.same_as_production();
    let told = "SELECT table_name FROM data_sync_logs WHERE event = 'healed' AND message LIKE '%has diverged%'";
    assert_eq!(world.local.psql(told), "public.pair");
    // A second time within a day it is put aside, and the others go on.
    world.local.psql("DELETE FROM pair WHERE b = 'counted' AND a = 1");
    world
        .production
        .psql("UPDATE pair SET v = '3' WHERE b = 'counted'; UPDATE acc SET n = 4 WHERE id < 50");
    world.archived();
    let mut sync = DataSync::open(world.config()).await.unwrap();
    while let Step::Applied(_) = sync.step().await.unwrap() {}
    let paused = "SELECT state, next_step FROM data_sync_tables WHERE table_name = 'public.pair'";
    assert!(
        world
            .local
            .psql(paused)
            .starts_with("paused|somebody changed the local table")
    );
    assert_eq!(world.local.psql(&rows("acc")), world.production.psql(&rows("acc")));
    // Asked for, it is copied anew.
    world
        .local
        .psql("INSERT INTO synctool.datasync_requests (kind, table_name) VALUES ('resync', 'public.pair')");
    assert!(sync.tend().await.unwrap());
    drop(sync);
    world.same_as_production();

    // A trigger of a local table that leaves rows out is noticed at once, where it takes them away and where it keeps them.
    world.local.psql(
        "CREATE FUNCTION leave_out() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$;
         CREATE TRIGGER leave_out BEFORE INSERT ON pair FOR EACH ROW WHEN (NEW.b = 'left out') EXECUTE FUNCTION leave_out();
         CREATE TRIGGER leave_out BEFORE DELETE ON nokey FOR EACH ROW EXECUTE FUNCTION leave_out();
         ALTER TABLE pair ENABLE ALWAYS TRIGGER leave_out; ALTER TABLE nokey ENABLE ALWAYS TRIGGER leave_out",
    );
    world.production.psql(
        "INSERT INTO pair VALUES (1, 'left out', '{}'), (2, 'kept', '{}'); UPDATE acc SET n = 5 WHERE id < 50;
         TRUNCATE nokey; INSERT INTO nokey VALUES (1, 'new', '{}')",
    );
    world.archived();
    let mut sync = DataSync::open(world.config()).await.unwrap();
    while let Step::Applied(_) = sync.step().await.unwrap() {}
    let told = "SELECT table_name, state, error_code FROM data_sync_tables WHERE why LIKE '%accounts for%' OR why LIKE '%stay though%' ORDER BY 1";
    let expected = "public.nokey|paused|ST-VER-003\npublic.pair|paused|ST-VER-003";
    assert_eq!(world.local.psql(told), expected);
    assert_eq!(world.local.psql(&rows("acc")), world.production.psql(&rows("acc")));
    world.local.psql(
        "DROP FUNCTION leave_out CASCADE;
         INSERT INTO synctool.datasync_requests (kind, table_name) VALUES ('resync', 'public.pair'), ('resync', 'public.nokey')",
    );
    assert!(sync.tend().await.unwrap());
    drop(sync);
    world.same_as_production();
    DataSync::open(world.config()).await.unwrap().close().await.unwrap();
}

/// Next to no memory for touched rows, and ranges of single blocks: what comes is the same.
#[tokio::test(flavor = "multi_thread")]
async fn with_little_memory_the_rows_are_the_same() {
    let world = World::new();
    let config = || SyncConfig {
        replay: ReplayConfig {
            touched_rows: 50,
            ..world.config().replay
        },
        copy_range: 1,
        copy_jobs: 3,
        ..world.config()
    };
    world.backup();
    drop(DataSync::open(config()).await.unwrap());
    select(&world.local);
    for round in 0..5 {
        load(&world.production, round);
        world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        world.archived();
        assert!(world.sync_with(config()).await >= 1, "round {round}");
    }
    world.same_as_production();
    let spilled = "SELECT count(*) > 2 FROM data_sync_logs WHERE event = 'batch' AND details -> 'touched_rows_in_a_file' = 'true'";
    assert_eq!(world.local.psql(spilled), "t");
    let left = std::fs::read_dir(world.place.path().join("scratch")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.contains(&"touched".into()), "{left:?}");

    // Hashes of blocks of rows, made by both servers.
    let mut sync = DataSync::open(config()).await.unwrap();
    let (_, proof) = sync.verify().await.unwrap();
    assert!(
        proof.iter().all(|c| c.equal && c.different_rows == Some(0)),
        "{proof:?}"
    );
    world.local.psql(
        "UPDATE acc SET body = body || ' ' WHERE id IN (SELECT min(id) FROM acc); INSERT INTO nokey VALUES (NULL, NULL, NULL);
         DELETE FROM wide WHERE id IN (SELECT max(id) FROM wide); UPDATE leaf_1 SET id = id + 1000 WHERE id = (SELECT min(id) FROM leaf_1)",
    );
    let (_, proof) = sync.verify().await.unwrap();
    let found: Vec<_> = proof
        .iter()
        .filter(|c| !c.equal)
        .map(|c| (&*c.table, c.different_rows))
        .collect();
    let expected = [
        ("public.acc", 1),
        ("public.leaf_1", 2),
        ("public.nokey", 1),
        ("public.wide", 1),
    ];
    assert_eq!(found, expected.map(|(table, n)| (table, Some(n))));
    sync.close().await.unwrap();
}

/// One run in a process of its own, for [`a_kill_at_any_step_changes_nothing`].
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a part of another test"]
async fn one_run() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let place = variable("DATASYNC_TEST_PLACE");
    let bin_dir = variable("DATASYNC_TEST_BIN");
    let config = config(Path::new(&bin_dir), Path::new(&place), &variable("DATASYNC_TEST_LOCAL"));
    let mut sync = DataSync::open(config).await.unwrap();
    while let Step::Applied(_) = sync.step().await.unwrap() {}
}

#[test]
fn a_kill_at_any_step_changes_nothing() {
    let world = World::new();
    world.backup();
    let run = world.run();
    // The control tables must be there to select anything; a step would already copy, though no table is selected.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    drop(runtime.block_on(DataSync::open(world.config())).unwrap());
    select(&world.local);
    let rounds = std::cell::Cell::new(0);
    let step = || {
        load(&world.production, rounds.replace(rounds.get() + 1));
        world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        world.archived();
    };
    step();
    let mut killed = BTreeSet::new();
    let points = [
        "datasync.first_copy",
        "datasync.before_commit",
        "datasync.before_plan",
        "datasync.planned",
        "datasync.replayed",
        "datasync.before_commit",
        "datasync.committed",
    ];
    for (round, point) in (1..).zip(points) {
        run.clone().at(point, 1).run().assert_killed();
        killed.insert(point);
        // The scratch server may die as well, at any time.
        if round % 2 == 0
            && let Some(pid) = world.place.scratch_pid()
        {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
        run.run().assert_success();
        world.same_as_production();
        step();
        run.run().assert_success();
        world.same_as_production();
        step();
    }
    assert_eq!(killed.len(), 6);
}
