//! Archived log as the source of a pipeline: files of a production that is never asked, into every engine that takes
//! changes, killed anywhere, refused where it is not the log that was followed.

use super::{PATIENCE, command_in, finished, stop};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use synctool_testkit::kill::{KillRun, Running};
use synctool_testkit::{PgVersion, Postgres, TestDb, is_soak, wait_for};
use tempfile::TempDir;

const SHOP: &str = "
    CREATE TYPE mood AS ENUM ('low', 'high');
    CREATE TABLE users (id int PRIMARY KEY, email text UNIQUE DEFERRABLE INITIALLY DEFERRED, address text, born timestamptz,
        amount numeric(12, 2), twice int GENERATED ALWAYS AS (id * 2) STORED);
    CREATE TABLE pair (a int, b text, v jsonb, PRIMARY KEY (b, a));
    CREATE TABLE visit (id int, side int, note text, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
    CREATE TABLE visit_1 PARTITION OF visit FOR VALUES IN (1);
    CREATE TABLE visit_2 PARTITION OF visit FOR VALUES IN (2);
    CREATE TABLE other (id int);
    INSERT INTO users (id, email, address, born, amount) SELECT g, 'e' || g, repeat(md5(g::text), g % 150), '2020-01-01'::timestamptz + g * interval '1 h', g / 3.0
        FROM generate_series(1, 900) g;
    INSERT INTO pair SELECT g, 'b' || g % 7, jsonb_build_object('n', g) FROM generate_series(1, 300) g;
    INSERT INTO visit SELECT g, 1 + g % 2, NULLIF('n' || g % 5, 'n0') FROM generate_series(1, 400) g;";

/// A table, and its columns that are carried.
const TABLES: [(&str, &str); 3] = [
    ("users", "id, email, address, born, amount"),
    ("pair", "a, b, v"),
    ("visit", "id, side, note"),
];

/// What happens in production: new rows, wide rows that stay and that change, keys that wander, unique values that change
/// hands, rows that change partitions, work that is rolled back, a transaction beside.
fn change(n: u32) -> String {
    format!(
        "INSERT INTO users SELECT {n} * 10000 + g, 'n' || {n} * 10000 + g, repeat('w', 20 * g), now(), NULL FROM generate_series(1, 60) g;
         UPDATE users SET amount = amount + 1 WHERE id % 7 = {n} % 7;
         UPDATE users SET address = repeat(md5('{n}'), 120) WHERE id % 31 = {n} % 31;
         BEGIN; UPDATE users SET email = CASE id WHEN 1 THEN (SELECT email FROM users WHERE id = 2) ELSE (SELECT email FROM users WHERE id = 1) END
            WHERE id IN (1, 2); COMMIT;
         DELETE FROM users WHERE id % 41 = {n} % 41 AND id > 2; UPDATE users SET id = -id WHERE id > 0 AND id % 37 = {n} % 37;
         UPDATE pair SET a = a + 1000 WHERE a % 11 = {n} % 11; DELETE FROM pair WHERE a % 13 = {n} % 13;
         INSERT INTO pair VALUES ({n}, 'new', '[1]') ON CONFLICT DO NOTHING; UPDATE pair SET v = NULL WHERE a % 5 = {n} % 5;
         UPDATE visit SET side = 3 - side WHERE id % 9 = {n} % 9; DELETE FROM visit WHERE id % 23 = {n} % 23;
         INSERT INTO visit VALUES (1000 + {n}, 1, 'came'); BEGIN; UPDATE users SET amount = 0; DELETE FROM visit; ROLLBACK;
         BEGIN; SAVEPOINT s; DELETE FROM pair; ROLLBACK TO s; UPDATE pair SET v = '\"s\"' WHERE a % 17 = 0; COMMIT; CHECKPOINT; INSERT INTO other VALUES ({n})"
    )
}

/// A production that archives, a folder with its archive, its backup and the pipeline; whatever was started ends with it.
struct Stage {
    production: Postgres,
    to: TestDb,
    home: TempDir,
}

impl Stage {
    fn new(version: PgVersion) -> Stage {
        Stage::of(version, SHOP)
    }

    fn of(version: PgVersion, schema: &str) -> Stage {
        let home = tempfile::Builder::new().prefix("archive").tempdir().expect("a folder");
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let production = Postgres::builder(version)
            .setting("wal_level", "replica")
            .archiving_to(&home.path().join("archive"))
            .setting("autovacuum_naptime", "1s")
            .start();
        production.psql(schema);
        let stage = Stage {
            production,
            to: Postgres::shared(version).database("archive_to"),
            home,
        };
        stage.pipeline("tables: [users, pair, visit]", "");
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn pipeline(&self, tables: &str, log: &str) {
        let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", self.to.url());
        self.pipeline_to("shop", &to, tables, log);
    }

    fn pipeline_to(&self, name: &str, to: &str, tables: &str, log: &str) {
        let bin = self.production.tool("postgres");
        let text = format!(
            "name: {name}\ndatastores:\n  from:\n    type: wal_archive\n    dbname: postgres\n    archive_dir: archive\n    \
             base_backup: backup\n    scratch_dir: scratch\n    pg_bin_dir: {}\n    batch_segments: 2\n    frequency: 500ms\n  to: {to}\n\
             source: {{datastore: from, {tables}}}\ndestination: {{datastore: to}}\n\
             strategies:\n  - {{type: log, chunk_rows: 100{log}}}\n",
            bin.parent().expect("a folder").display()
        );
        std::fs::write(self.path(&format!("{name}.yaml")), text).expect("written");
    }

    /// A base backup, and everything that it needs to be of use.
    fn backup(&self) {
        self.production.base_backup(&self.path("backup"));
        self.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        self.archived();
    }

    fn archived(&self) {
        self.production.archive_now(&self.path("archive"), PATIENCE);
    }

    fn happens(&self, sql: &str) {
        self.production.psql(sql);
        self.archived();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command_in(self.home.path(), arguments)
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finished(&self.command(arguments))
    }

    #[track_caller]
    fn fails(&self, arguments: &[&str], code: i32, says: &str) {
        let (found, out, err) = self.run(arguments);
        assert!(
            found == code && err.contains(says),
            "{found}, no {says:?} in\n{out}\n{err}"
        );
    }

    fn once(&self) -> KillRun {
        KillRun::new(&self.command(&["run", "shop.yaml", "--until-caught-up"]))
    }

    #[track_caller]
    fn catch_up(&self) {
        let outcome = self.once().run();
        assert_eq!(outcome.code, Some(0), "{}\n{}", outcome.stdout, outcome.stderr);
        assert!(self.scratch_pid().is_none(), "the scratch server ends with the run");
    }

    fn start(&self) -> Running {
        KillRun::new(&self.command(&["run", "shop.yaml"])).start()
    }

    /// The main process of the scratch server, if it lives.
    fn scratch_pid(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.path("scratch/data/postmaster.pid")).ok()?;
        let pid = text.lines().next()?.to_owned();
        Path::new("/proc").join(&pid).exists().then_some(pid)
    }

    fn different(&self) -> Vec<&'static str> {
        let rows = |table: &str, columns: &str| format!("SELECT ({columns})::text FROM {table} ORDER BY 1");
        let rows = |table, columns: &str| rows(table, &format!("ROW({columns})"));
        let differs = |(table, columns): &&(&'static str, &str)| {
            self.to.try_psql(&rows(table, columns)).ok() != Some(self.production.psql(&rows(table, columns)))
        };
        TABLES.iter().filter(differs).map(|(table, _)| *table).collect()
    }

    #[track_caller]
    fn same(&self, case: &str) {
        assert_eq!(self.different(), [""; 0], "{case}: tables differ");
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(pid) = self.scratch_pid() {
            let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        }
    }
}

fn follows(version: PgVersion) {
    let stage = Stage::new(version);
    stage.fails(&["run", "shop.yaml", "--until-caught-up"], 1, "backup");
    stage.backup();
    let (code, out, err) = stage.run(&["plan", "shop.yaml"]);
    assert_eq!(code, 0, "{out}\n{err}");
    assert!(
        out.contains("users") && out.contains("twice is computed and left out"),
        "{out}"
    );
    assert!(stage.scratch_pid().is_none(), "looking leaves nothing behind");
    stage.catch_up();
    stage.same("the first load");
    for n in 1..4 {
        stage.happens(&change(n));
        stage.happens(&change(n + 100));
        stage.catch_up();
        stage.same("what changed");
    }
    // What the log does not say row by row.
    stage.happens(
        "VACUUM FULL users; TRUNCATE pair; INSERT INTO pair VALUES (1, 'x', NULL); CLUSTER visit_1 USING visit_1_pkey",
    );
    stage.happens(
        "CREATE TABLE visit_3 PARTITION OF visit FOR VALUES IN (3); INSERT INTO visit VALUES (1, 3, 'a'), (2, 3, 'b')",
    );
    stage.catch_up();
    stage.same("rewritten tables");
    // A column that comes, for rows that nobody touches too.
    stage.happens("ALTER TABLE pair ADD COLUMN c int DEFAULT 7; INSERT INTO pair VALUES (2, 'y', NULL, 8)");
    stage.catch_up();
    let columns = "SELECT a, b, v, c FROM pair ORDER BY a";
    assert_eq!(stage.to.psql(columns), stage.production.psql(columns));
    stage.happens("UPDATE pair SET c = 9 WHERE a = 2; DROP TABLE visit_2");
    stage.catch_up();
    assert_eq!(stage.to.psql(columns), stage.production.psql(columns));
    stage.same("after a change of shape");
    // One that goes and comes again, as if nothing had been.
    stage.happens("ALTER TABLE pair DROP COLUMN c; ALTER TABLE pair ADD COLUMN c int DEFAULT 11");
    stage.catch_up();
    assert_eq!(stage.to.psql(columns), stage.production.psql(columns));
    assert!(stage.to.psql(columns).contains("|11"));
    let (code, out, err) = stage.run(&["verify", "shop.yaml"]);
    assert_eq!(code, 0, "{out}\n{err}");
    let tampered = "UPDATE users SET amount = -1 WHERE id = (SELECT max(id) FROM users)";
    stage.to.psql(tampered);
    assert_eq!(stage.run(&["verify", "shop.yaml"]).0, 3);
    // Read again while the log goes on.
    stage.happens("CREATE TABLE visit_2 PARTITION OF visit FOR VALUES IN (2)");
    stage.happens(&change(9));
    let (code, out, err) = stage.run(&["cdc", "refresh", "shop.yaml", "users"]);
    assert_eq!(code, 0, "{out}\n{err}");
    stage.catch_up();
    stage.same("after a refresh");
    let (code, out, _) = stage.run(&["cdc", "status", "shop.yaml", "--output", "json"]);
    let status: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, status["state"].as_str()), (0, Some("stopped")), "{status:#}");
    // A change that is not followed is refused until somebody acts.
    stage.happens("ALTER TABLE users DROP COLUMN born");
    stage.fails(
        &["run", "shop.yaml", "--until-caught-up"],
        2,
        "column born of public.users is gone",
    );
    stage.to.psql("ALTER TABLE users DROP COLUMN born");
    let (code, out, err) = stage.run(&["run", "shop.yaml", "--until-caught-up", "--restart"]);
    assert_eq!(code, 0, "{out}\n{err}");
    let columns = "SELECT id, email, address, amount FROM users ORDER BY id";
    assert_eq!(stage.to.psql(columns), stage.production.psql(columns));
}

#[test]
fn postgres_follows_an_archive_pg15() {
    follows(PgVersion::V15);
}

#[test]
fn postgres_follows_an_archive_pg18() {
    follows(PgVersion::V18);
}

/// Into another engine; both ends are compared by hashes of every row.
fn follows_into(to: &str, uri: impl Fn(&Stage) -> String) {
    let stage = Stage::new(PgVersion::V18);
    let uri = uri(&stage);
    stage.pipeline_to(
        "shop",
        &to.replace("$URI", &uri)
            .replace("$PATH", uri.split_once(':').map_or("", |u| u.1)),
        "tables: [users, pair, visit]",
        "",
    );
    stage.backup();
    let same = |case: &str| {
        for (table, columns) in TABLES {
            let columns = columns.replace(", ", ",");
            let from = stage.production.url("postgres");
            let (code, out, err) = stage.run(&["diff", &from, table, &uri, table, "--columns", &columns]);
            assert_eq!(code, 0, "{case}: {table}\n{out}\n{err}");
        }
    };
    stage.catch_up();
    same("the first load");
    stage.happens(&change(1));
    stage.once().at("sink.commit.before", 1).run().assert_killed();
    stage.happens(&change(2));
    stage.catch_up();
    same("what changed");
    stage.happens("TRUNCATE visit; INSERT INTO visit VALUES (5, 2, NULL); VACUUM FULL pair");
    stage.catch_up();
    same("rewritten tables");
}

#[test]
fn sqlite_follows_an_archive() {
    follows_into("{type: sqlite, connection: {path: \"$PATH\"}}", |stage| {
        format!("sqlite:{}", stage.path("copy.db").display())
    });
}

#[test]
fn mariadb_follows_an_archive() {
    let to = synctool_testkit::MariaDb::shared().database("archive");
    follows_into("{type: mysql, connection: {url: \"$URI\"}}", |_| to.url());
}

#[cfg(feature = "duckdb")]
#[test]
fn duckdb_follows_an_archive() {
    follows_into("{type: duckdb, connection: {path: \"$PATH\"}}", |stage| {
        format!("duckdb:{}", stage.path("copy.duckdb").display())
    });
}

/// The scratch server is started again where it can never be read.
#[test]
fn a_transaction_with_many_subtransactions_stays_open_over_a_restart() {
    let stage = Stage::new(PgVersion::V18);
    stage.backup();
    stage.catch_up();
    let savepoints: String = (1..=100)
        .map(|n| format!("SAVEPOINT s{n}; UPDATE users SET amount = {n} WHERE id = {n};"))
        .collect();
    stage.happens(&format!(
        "BEGIN; {savepoints} PREPARE TRANSACTION 'many'; CHECKPOINT; INSERT INTO other VALUES (1)"
    ));
    stage.catch_up();
    stage.same("while it is open");
    stage.happens("DELETE FROM users WHERE id > 500; UPDATE pair SET v = '1' WHERE a < 50");
    stage.happens("COMMIT PREPARED 'many'; CHECKPOINT; INSERT INTO other VALUES (1)");
    stage.once().at("archive.replayed", 1).run().assert_killed();
    stage.catch_up();
    stage.same("when it is over");
    stage.happens(&change(2));
    stage.catch_up();
    stage.same("behind it");
}

fn killed_anywhere(version: PgVersion) {
    let stage = Stage::new(version);
    stage.backup();
    let points = [
        ("sink.write", 1),
        ("engine.commit.before", 2),
        ("engine.commit.after", 3),
        ("archive.before_kept", 1),
        ("archive.kept", 1),
        ("archive.half_open", 1),
        ("archive.replayed", 1),
        ("sink.write", 2),
        ("archive.handed", 1),
        ("sink.commit.before", 1),
        ("sink.commit.after", 1),
        ("archive.kept", 2),
        ("archive.replayed", 2),
        ("engine.commit.before", 2),
    ];
    // The first load's on both, and of the others each server has every other one; a soak has all on both.
    let has = |n: usize| n == 0 || is_soak() || n.is_multiple_of(2) == (version == PgVersion::V15);
    let points = points.into_iter().enumerate().filter(|(n, _)| has(*n));
    for (round, (_, (point, nth))) in (1..).zip(points) {
        stage.once().at(point, nth).run().assert_killed();
        // The scratch server may die as well, at any time.
        if round % 3 == 0
            && let Some(pid) = stage.scratch_pid()
        {
            let status = Command::new("kill").args(["-9", &pid]).status().expect("kill");
            assert!(status.success());
        }
        // Killed once more where it goes on.
        if point == "archive.replayed" {
            stage.once().at("sink.commit.before", 1).run().assert_killed();
        }
        stage.catch_up();
        stage.same(&format!("killed at {point}, {nth}"));
        for half in 0..3 {
            stage.happens(&change(round * 3 + half));
        }
    }
    // The scratch server is made again from the base backup; what is at the destination stays.
    stage.catch_up();
    std::fs::remove_dir_all(stage.path("scratch")).expect("removed");
    stage.happens(&change(99));
    stage.catch_up();
    stage.same("with another scratch server");
}

#[test]
fn killed_anywhere_it_ends_equal_pg15() {
    killed_anywhere(PgVersion::V15);
}

#[test]
fn killed_anywhere_it_ends_equal_pg18() {
    killed_anywhere(PgVersion::V18);
}

/// A run that goes on: changes arrive with their files, requests are heard, and it stops when told.
#[test]
fn a_run_that_goes_on_brings_what_is_archived() {
    let stage = Stage::new(PgVersion::V18);
    stage.backup();
    let running = stage.start();
    let until_equal = |running: &Running| {
        wait_for("both ends to be equal", PATIENCE, || match stage.different() {
            none if none.is_empty() => Ok(()),
            some => Err(format!("{some:?} differ; the program said: {}", running.stderr())),
        });
    };
    until_equal(&running);
    stage.happens(&change(1));
    until_equal(&running);
    stage.fails(&["plan", "shop.yaml"], 0, "");
    stage.fails(&["verify", "shop.yaml"], 6, "in use by another process");
    stage.to.psql("DELETE FROM users WHERE id = 2; UPDATE pair SET v = '0'");
    let keys = ["cdc", "refresh", "shop.yaml", "users", "--keys", "2"];
    assert_eq!(stage.run(&keys).0, 0);
    assert_eq!(stage.run(&["cdc", "refresh", "shop.yaml", "pair"]).0, 0);
    until_equal(&running);
    assert!(running.kill().killed);
    stage.happens(&change(2));
    let running = stage.start();
    until_equal(&running);
    stop(running);
    assert!(stage.scratch_pid().is_none());
}

/// A session of production with a transaction that stays open.
struct Session {
    ask: ChildStdin,
    says: BufReader<ChildStdout>,
    open: Child,
}

impl Session {
    fn begin(stage: &Stage, first: &str) -> Session {
        let mut open = Command::new(stage.production.tool("psql"))
            .args(["-qXAt", &stage.production.url("postgres")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("psql");
        let mut session = Session {
            ask: open.stdin.take().expect("stdin"),
            says: BufReader::new(open.stdout.take().expect("stdout")),
            open,
        };
        session.say(&format!("BEGIN; {first};"));
        session
    }

    /// Locks a catalog, so that nobody else can look at the database, and archives the segment in which that is so.
    fn lock(&mut self, stage: &Stage) {
        self.say("LOCK TABLE pg_class IN ACCESS EXCLUSIVE MODE;");
        self.archive(stage);
    }

    /// The lock's own session is the only one that can still work there.
    fn archive(&mut self, stage: &Stage) {
        let name = self.say("SELECT pg_walfile_name(pg_switch_wal());");
        let file = stage.path("archive").join(name.trim());
        wait_for("the segment", PATIENCE, || file.is_file());
    }

    fn say(&mut self, sql: &str) -> String {
        writeln!(self.ask, "{sql} SELECT 'done';").expect("psql listens");
        let (mut said, mut line) = (String::new(), String::new());
        loop {
            line.clear();
            assert!(self.says.read_line(&mut line).expect("psql answers") > 0, "psql ended");
            if line.trim() == "done" {
                return said;
            }
            said.push_str(&line);
        }
    }

    fn commit(mut self, last: &str) {
        self.say(&format!("{last}; COMMIT;"));
        drop(self.ask);
        self.open.wait().expect("psql ends");
    }
}

/// Nobody can look at a database whose catalog is locked: the batch goes on to a place where that is over, in a run that
/// goes on as well as in the next one, from where it began as well as from where it goes on.
#[test]
fn a_batch_that_ends_where_the_database_cannot_be_looked_at_goes_on() {
    let stage = Stage::new(PgVersion::V18);
    // A place that cannot be looked at is tried eight times.
    let soon = ", initial_retry_delay: 20ms, retry_backoff_multiplier: 1";
    stage.pipeline("tables: [users, pair, visit]", soon);
    // The first place at which it could begin: what was open at the backup has ended just there.
    let elder = Session::begin(&stage, "UPDATE users SET amount = 9 WHERE id = 9");
    stage.production.base_backup(&stage.path("backup"));
    let mut lock = Session::begin(&stage, "UPDATE users SET amount = 1 WHERE id = 5");
    lock.say("LOCK TABLE pg_class IN ACCESS EXCLUSIVE MODE;");
    elder.commit("SELECT 1");
    lock.archive(&stage);
    let once = ["run", "shop.yaml", "--until-caught-up"];
    stage.fails(&once, 5, "cannot be looked at");
    lock.commit("UPDATE pair SET v = '7' WHERE a = 5");
    stage.happens("INSERT INTO other VALUES (3)");
    stage.catch_up();
    stage.same("begun behind it");
    // Each run ends where it cannot be looked at; nothing arrives, and nothing is lost.
    stage.happens(&change(1));
    let mut lock = Session::begin(
        &stage,
        "UPDATE users SET amount = 55 WHERE id = 5; DELETE FROM pair WHERE a < 9",
    );
    lock.lock(&stage);
    let found = stage.once().run();
    assert!([Some(0), Some(5)].contains(&found.code), "{}", found.stderr);
    let found = stage.once().run();
    assert!([Some(0), Some(5)].contains(&found.code), "{}", found.stderr);
    lock.commit("UPDATE users SET amount = 50 WHERE id = 50");
    stage.happens("DELETE FROM visit WHERE id > 300");
    stage.once().at("archive.handed", 1).run().assert_killed();
    stage.catch_up();
    stage.same("behind it");
    stage.happens(&change(2));
    stage.catch_up();
    stage.same("and on");
    // A run that goes on.
    let running = stage.start();
    let mut lock = Session::begin(&stage, "UPDATE users SET amount = 77 WHERE id = 7");
    lock.lock(&stage);
    wait_for("the run to be told", PATIENCE, || match running.stderr() {
        said if said.contains("cannot be looked at") => Ok(()),
        said => Err(said),
    });
    lock.commit("UPDATE users SET amount = 70 WHERE id = 70");
    stage.happens(&change(3));
    wait_for("both ends to be equal", PATIENCE, || match stage.different() {
        none if none.is_empty() => Ok(()),
        some => Err(format!("{some:?} differ; the program said: {}", running.stderr())),
    });
    stop(running);
}

/// The operator that finds a key of an extension's type stands in the extension's schema.
#[test]
fn keys_of_an_extensions_type_are_found() {
    let stage = Stage::of(
        PgVersion::V15,
        "CREATE SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext; CREATE TABLE other (id int);
         CREATE TABLE tree (k ext.ltree PRIMARY KEY, n int); INSERT INTO tree SELECT ('a.n' || g)::ext.ltree, g FROM generate_series(1, 50) g",
    );
    stage.backup();
    stage.pipeline("tables: [tree]", "");
    stage.catch_up();
    let rows = "SELECT k::text, n FROM tree ORDER BY n";
    let same = || assert_eq!(stage.to.psql(rows), stage.production.psql(rows));
    same();
    stage.happens("UPDATE tree SET n = n + 100 WHERE n < 10; DELETE FROM tree WHERE n BETWEEN 20 AND 30; INSERT INTO tree VALUES ('a.n25', 0)");
    stage.catch_up();
    same();
}

/// Tables without a key are followed where that is wished, as the pipeline begins and after.
#[test]
fn a_table_without_a_key_is_followed_where_that_is_wished() {
    let stage = Stage::of(
        PgVersion::V18,
        "CREATE TABLE other (id int); CREATE TABLE loose (a int, b text);
         INSERT INTO loose SELECT g % 5, NULLIF(g % 3, 0)::text FROM generate_series(1, 50) g",
    );
    stage.backup();
    stage.pipeline("tables: [loose]", "");
    stage.fails(&["run", "shop.yaml", "--until-caught-up"], 2, "public.loose has no key");
    stage.pipeline("tables: [loose]", ", keyless: true");
    stage.catch_up();
    let rows = "SELECT a, b FROM loose ORDER BY 1, 2";
    let same = || assert_eq!(stage.to.psql(rows), stage.production.psql(rows));
    same();
    stage.happens("DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose WHERE a = 2 LIMIT 4); UPDATE loose SET b = 'x' WHERE a = 1; INSERT INTO loose VALUES (1, NULL)");
    stage.once().at("archive.handed", 1).run().assert_killed();
    stage.catch_up();
    same();
    stage.happens("VACUUM FULL loose; UPDATE loose SET a = 9 WHERE b IS NULL");
    stage.catch_up();
    same();
}

/// A table that shows rows of others, and one whose rows are logged in a way of their own, are refused.
#[test]
fn tables_whose_rows_the_log_does_not_have_are_refused() {
    let stage = Stage::of(
        PgVersion::V18,
        "CREATE TABLE other (id int); CREATE TABLE base (id int PRIMARY KEY); CREATE TABLE heir () INHERITS (base);
         CREATE ACCESS METHOD other_heap TYPE TABLE HANDLER heap_tableam_handler; CREATE TABLE kept (id int PRIMARY KEY) USING other_heap",
    );
    stage.backup();
    for (table, says) in [
        ("base", "public.base has tables that inherit from it (public.heir)"),
        ("kept", "public.kept has the access method other_heap"),
    ] {
        stage.pipeline(&format!("tables: [{table}]"), "");
        stage.fails(&["run", "shop.yaml", "--until-caught-up"], 2, says);
    }
}

/// An archive that brings nothing any more looks like a production in which nothing happens: it is told, with what the
/// command says.
#[test]
fn a_command_that_cannot_ask_any_more_is_told() {
    let stage = Stage::new(PgVersion::V18);
    let script = "if [ -e \"$0.broken\" ]; then echo 'the token has expired' >&2; exit 1; fi; exec cp \"$(dirname \"$0\")/archive/$1\" \"$2\"";
    std::fs::write(stage.path("fetch"), script).expect("written");
    let file = stage.path("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("the pipeline");
    let fetch = format!(
        "wal_fetch_command: sh {} %f %p\n    archive_interval: 200ms",
        stage.path("fetch").display()
    );
    std::fs::write(&file, text.replace("archive_dir: archive", &fetch)).expect("written");
    stage.backup();
    stage.catch_up();
    let running = stage.start();
    let status = || {
        let (_, out, _) = stage.run(&["cdc", "status", "shop.yaml", "--output", "json"]);
        serde_json::from_str::<Value>(&out).expect("JSON")
    };
    std::fs::write(stage.path("fetch.broken"), "").expect("written");
    let says = "exit status 1: the token has expired";
    wait_for("a word about the silence", PATIENCE, || {
        let status = status();
        match status["silent"].as_str().is_some_and(|text| text.contains(says)) {
            true => Ok(()),
            false => Err(format!("{status:#}")),
        }
    });
    let (_, out, err) = stage.run(&["cdc", "status", "shop.yaml"]);
    for part in [
        "SILENT: no segment was taken for",
        "wal_fetch_command cannot ask",
        "fetch says: exit status 1",
    ] {
        assert!(out.contains(part), "no {part:?} in\n{out}\n{err}");
    }
    // Once it can ask again, there is nothing to tell.
    std::fs::remove_file(stage.path("fetch.broken")).expect("removed");
    stage.happens(&change(1));
    wait_for("the rows", PATIENCE, || stage.different().is_empty());
    stop(running);
    stage.same("after all");
}

/// What is not the log that was followed is refused, and changes nothing.
#[test]
fn another_log_is_refused() {
    let stage = Stage::new(PgVersion::V18);
    stage.backup();
    stage.catch_up();
    let once = ["run", "shop.yaml", "--until-caught-up"];
    let archive = stage.path("archive");
    let segments = || {
        let all = std::fs::read_dir(&archive).expect("the archive").flatten();
        let mut names: Vec<String> = all
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .filter(|n| n.len() == 24)
            .collect();
        names.sort();
        names
    };
    // A hole.
    let before = segments().len();
    stage.happens(&change(1));
    let hole = segments()[before].clone();
    stage.happens(&change(2));
    let (there, aside) = (archive.join(&hole), stage.path("aside"));
    std::fs::rename(&there, &aside).expect("moved");
    stage.fails(&once, 1, &format!("WAL segment {hole} is missing"));
    let (code, out, _) = stage.run(&["cdc", "status", "shop.yaml"]);
    assert!(code != 0 && out.contains("refused"), "{code}\n{out}");
    std::fs::rename(&aside, &there).expect("moved");
    stage.catch_up();
    stage.same("the hole is filled");
    // Two pipelines do not share a scratch server.
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    stage.pipeline_to("twin", &to, "tables: [pair]", "");
    stage.fails(
        &["run", "twin.yaml", "--until-caught-up"],
        4,
        "belongs to the log synctool_shop",
    );
    // It is a log and nothing else.
    let file = std::fs::read_to_string(stage.path("shop.yaml")).expect("the pipeline");
    let full = file
        .replace("type: log, chunk_rows: 100", "type: full")
        .replace("tables: [users, pair, visit]", "table: users");
    std::fs::write(
        stage.path("full.yaml"),
        full.replace(
            "destination: {datastore: to}",
            "destination: {datastore: to, table: users}",
        ),
    )
    .expect("written");
    stage.fails(
        &["plan", "full.yaml"],
        2,
        "is an archived log, which strategies of type log follow",
    );
    // Another production, whose files and backup take the place.
    let stranger = Stage::new(PgVersion::V18);
    stranger.backup();
    std::fs::remove_dir_all(stage.path("scratch")).expect("removed");
    for folder in ["archive", "backup"] {
        std::fs::rename(stage.path(folder), stage.path(&format!("{folder}.old"))).expect("moved");
        let copied = Command::new("cp")
            .arg("-a")
            .arg(stranger.path(folder))
            .arg(stage.path(folder))
            .status();
        assert!(copied.expect("cp").success());
    }
    stage.fails(&once, 2, "the position was made from system id");
    stage.same("nothing was changed");
    // With --repair it is followed from now on, and every table is made equal.
    stranger.happens(&change(5));
    std::fs::remove_dir_all(stage.path("archive")).expect("removed");
    let copied = Command::new("cp")
        .arg("-a")
        .arg(stranger.path("archive"))
        .arg(stage.path("archive"))
        .status();
    assert!(copied.expect("cp").success());
    let (code, out, err) = stage.run(&["run", "shop.yaml", "--until-caught-up", "--repair"]);
    assert_eq!(code, 0, "{out}\n{err}");
    for (table, columns) in TABLES {
        let rows = format!("SELECT ROW({columns})::text FROM {table} ORDER BY 1");
        assert_eq!(stage.to.psql(&rows), stranger.production.psql(&rows), "{table}");
    }
}

/// Runs that meet a damaged scratch server fail, and then it is made anew.
#[test]
fn a_damaged_scratch_server_is_made_anew() {
    let stage = Stage::new(PgVersion::V18);
    stage.backup();
    stage.catch_up();
    stage.happens(&change(1));
    std::fs::write(stage.path("scratch/data/global/pg_control"), b"nothing").expect("written");
    let says = "the scratch server's data is damaged";
    let run = || stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    let failed = (0..4).take_while(|_| match run() {
        (0, ..) => false,
        (code, _, err) => {
            assert!(code == 1 && err.contains(says), "{code}: {err}");
            true
        }
    });
    assert!((1..4).contains(&failed.count()));
    stage.catch_up();
    stage.same("after it was made anew");
}

/// Production was set back to a copy of its disk, and archives another log under the names of the one of which a batch was
/// kept.
#[test]
fn another_log_under_the_same_names_is_refused() {
    let stage = Stage::new(PgVersion::V18);
    stage.backup();
    stage.catch_up();
    let (data, copy) = (stage.production.data_directory(), stage.path("copy"));
    let duplicate = |from: &Path, to: &Path| {
        let _ = std::fs::remove_dir_all(to);
        let status = Command::new("cp").arg("-a").args([from, to]).status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    stage.production.stop();
    duplicate(&data, &copy);
    stage.production.restart();
    let name = stage
        .production
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    stage.happens("UPDATE users SET amount = 1");
    stage.once().at("archive.kept", 1).run().assert_killed();
    let (segment, aside) = (stage.path("archive").join(name), stage.path("aside"));
    std::fs::rename(&segment, &aside).expect("put aside");
    stage.production.stop();
    duplicate(&copy, &data);
    stage.production.restart();
    stage.happens("DELETE FROM pair WHERE a < 50");
    stage.fails(
        &["run", "shop.yaml", "--until-caught-up"],
        1,
        // By its changes, or because its records do not begin where the others ended.
        "the archive h",
    );
    // What was followed is put back, and nothing of the other has arrived.
    std::fs::rename(&aside, &segment).expect("put back");
    stage.catch_up();
    let rows = "SELECT (SELECT count(*) FROM users WHERE amount = 1), (SELECT count(*) FROM pair)";
    assert_eq!(stage.to.psql(rows), "900|300");
}
