//! Data Sync as an administrator meets it: the real program, a production that archives its log, a local server.

#[path = "../ran/mod.rs"]
mod ran;

mod door;
mod down;
mod guide;
mod killed;
mod lasting;
mod looks;
mod overflow;
mod rebuilt;
mod rights;
mod shapes;
mod silent;
mod tables;
mod tools;
mod troubles;
mod types;
mod witness;

use ran::{Ran, program};
use serde_json::Value;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use synctool_testkit::kill::{Action, Failpoint};
use synctool_testkit::{KillRun, PgVersion, Postgres, PostgresBuilder, TestDb, wait_for};
use tempfile::TempDir;

const NOT_SYNCED: &str = "SELECT table_name, state, why FROM data_sync_tables WHERE state <> 'synced'";
/// A password that must never be seen anywhere.
const SECRET: &str = "hunter2-s3ntinel";
const PATIENCE: Duration = Duration::from_secs(120);

/// Production with its archive, a local database, and a folder with the configuration. Whatever was started ends with it.
struct World {
    production: Postgres,
    local: TestDb,
    home: TempDir,
}

impl World {
    fn new(version: PgVersion, schema: &str) -> Self {
        Self::with(version, schema, |production| production)
    }

    /// With settings of production that matter to the test.
    fn with(version: PgVersion, schema: &str, settings: impl FnOnce(PostgresBuilder) -> PostgresBuilder) -> Self {
        let local = Postgres::shared(version).database("datasync");
        Self::between(version, schema, settings, local)
    }

    /// With a local database that matters to the test.
    fn between(
        version: PgVersion,
        schema: &str,
        settings: impl FnOnce(PostgresBuilder) -> PostgresBuilder,
        local: TestDb,
    ) -> Self {
        let home = tempfile::Builder::new().prefix("datasync").tempdir().expect("a folder");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let archive = home.path().join("archive");
        let builder = Postgres::builder(version)
            .setting("wal_level", "replica")
            .archiving_to(&archive)
            .setting("autovacuum_naptime", "1s");
        let production = settings(builder).start();
        production.psql(&format!("CREATE TABLE other (id int); {schema}"));
        local.psql(schema);
        let world = World {
            production,
            local,
            home,
        };
        world.configure("");
        world
    }

    /// Writes the configuration, with more keys.
    fn configure(&self, more: &str) {
        let url = self.local.url();
        let port = url
            .rsplit_once(':')
            .and_then(|(_, rest)| rest.split_once('/'))
            .expect("a port")
            .0;
        let bin = self.production.tool("postgres");
        let text = format!(
            "PG_PORT = \"{port}\"\nPG_USER_NAME = \"postgres\"\nPG_PASSWORD = \"${{LOCAL_PASSWORD}}\"\nPG_DB_NAME = \"{}\"\n\
             PROD_DB_NAME = \"postgres\"\nDATA_SYNC_FREQ = 1\nARCHIVE_INTERVAL = 3600\nARCHIVE_DIR = \"archive\"\n\
             BASE_BACKUP = \"backup\"\nPG_BIN_DIR = \"{}\"\nSCRATCH_DIR = \"scratch\"\nLOG_FILE = \"service.log\"\n\
             BATCH_SEGMENTS = 4\n{more}",
            self.local.name(),
            bin.parent().expect("a folder").display(),
        );
        fs::write(self.path("datasync.toml"), text).expect("the configuration");
    }

    /// The same with another text in one place.
    #[track_caller]
    fn reconfigure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("datasync.toml")).expect("the configuration");
        assert!(text.contains(from), "no {from} in\n{text}");
        fs::write(self.path("datasync.toml"), text.replace(from, to)).expect("the configuration");
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn backup(&self) {
        self.production.base_backup(&self.path("backup"));
    }

    /// Ends the segment and waits until it is archived.
    fn archived(&self) {
        self.production.archive_now(&self.path("archive"), PATIENCE);
    }

    /// Everything that a first copy needs: the end of the backup, and what was open then.
    fn ready(&self) {
        self.backup();
        self.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
        self.archived();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command
            .current_dir(self.home.path())
            .arg("datasync")
            .args(arguments)
            .env("DATA_SYNC_CONFIG", self.path("datasync.toml"))
            .env("LOCAL_PASSWORD", SECRET);
        command
    }

    /// Runs the program to its end. Whatever it does, it shows no secret.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        let ran = Ran::of(&mut self.command(arguments));
        for text in [&ran.stdout, &ran.stderr] {
            assert!(!text.contains(SECRET), "a secret was shown:\n{text}");
            assert!(!text.contains("panicked"), "{text}");
        }
        ran
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let ran = self.run(&all);
        let json = ran.json();
        (ran.code, json)
    }

    #[track_caller]
    fn add(&self, tables: &[&str]) {
        let mut arguments = vec!["add-tables", "--wait", "0"];
        arguments.extend(tables);
        self.run(&arguments).ok();
    }

    /// Archives what happened and applies it.
    #[track_caller]
    fn sync(&self) {
        self.archived();
        self.run(&["run-once"]).ok();
    }

    fn once(&self) -> KillRun {
        KillRun::new(&self.command(&["run-once"]))
    }

    /// The service in the foreground.
    fn service(&self) -> KillRun {
        KillRun::new(&self.command(&["start", "--foreground"]))
    }

    #[track_caller]
    fn same(&self, tables: &[&str]) {
        for table in tables {
            assert_eq!(
                self.local.psql(&rows(table)),
                self.production.psql(&rows(table)),
                "{table}"
            );
        }
    }

    #[track_caller]
    fn eventually_same(&self, tables: &[&str]) {
        for table in tables {
            wait_for(table, PATIENCE, || {
                match self.local.psql(&rows(table)) == self.production.psql(&rows(table)) {
                    true => Ok(()),
                    // Not the program's words: it would take the processor from the service at each look.
                    false => Err(format!("{:?}", self.local.try_psql(NOT_SYNCED))),
                }
            });
        }
    }

    /// State and reason of a table.
    fn state(&self, table: &str) -> String {
        self.local.psql(&format!(
            "SELECT state || coalesce(': ' || why, '') || coalesce(' -> ' || next_step, '') FROM data_sync_tables WHERE table_name = '{table}'"
        ))
    }

    /// A client of the scratch server, which must run.
    fn scratch_psql(&self) -> Command {
        let mut psql = Command::new(self.production.tool("psql"));
        psql.args(["-qXAt", "-p", "5432", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(self.path("scratch/socket"));
        psql
    }

    fn scratch_pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.path("scratch/data/postmaster.pid")).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

/// A session of a server that stays open.
struct Session {
    client: Child,
    ask: ChildStdin,
    says: BufReader<ChildStdout>,
}

impl Session {
    fn open(server: &Postgres) -> Self {
        let mut psql = Command::new(server.tool("psql"));
        Session::of(psql.args(["-qXAt", "-v", "ON_ERROR_STOP=1", &server.url("postgres")]))
    }

    fn of(psql: &mut Command) -> Self {
        let mut client = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("psql");
        let ask = client.stdin.take().expect("stdin");
        let says = BufReader::new(client.stdout.take().expect("stdout"));
        Session { client, ask, says }
    }

    /// Waits until it is done.
    #[track_caller]
    fn run(&mut self, sql: &str) {
        writeln!(self.ask, "{sql};\n\\echo done").expect("psql listens");
        let mut line = String::new();
        while line.trim() != "done" {
            line.clear();
            assert_ne!(self.says.read_line(&mut line).expect("psql speaks"), 0, "{sql}");
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.client.kill();
        let _ = self.client.wait();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The service first, then the server that it would start again.
        let pid = self
            .local
            .try_psql("SELECT pid FROM synctool.datasync_service WHERE state <> 'stopped'");
        let pid = pid.unwrap_or_default();
        let is_ours = fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&*self.home.path().to_string_lossy()));
        if is_ours {
            let _ = Command::new("kill").args(["-9", &pid]).status();
        }
        if let Some(pid) = self.scratch_pid() {
            let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        }
    }
}

impl Ran {
    #[track_caller]
    fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        for part in says {
            let said = self.stderr.contains(part) || self.stdout.contains(part);
            assert!(said, "no {part:?} in\n{}\n{}", self.stdout, self.stderr);
        }
        self
    }
}

/// A world whose tables were copied once.
fn followed(schema: &str, fill: &str, tables: &[&str]) -> World {
    followed_on(PgVersion::V18, schema, fill, tables)
}

/// The same with servers of this version.
fn followed_on(version: PgVersion, schema: &str, fill: &str, tables: &[&str]) -> World {
    let world = World::new(version, schema);
    world.production.psql(fill);
    world.ready();
    world.add(tables);
    world.run(&["run-once"]).ok();
    world.same(tables);
    world
}

/// Everything in a table, whatever its order.
fn rows(table: &str) -> String {
    format!(
        "SELECT count(*)::text || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\")), '') FROM ONLY {table} t"
    )
}

/// The nth time that a run comes to a place, it stops there until it is told to go on.
fn stopped_at(run: &KillRun, name: &str, nth: u32) -> KillRun {
    run.clone()
        .accident(&Failpoint { name: name.into(), nth }, Action::Stop)
}

fn kill(signal: &str, pid: &str) {
    let status = Command::new("kill").args([signal, pid]).status().expect("kill");
    assert!(status.success());
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.path() {
            path if path.is_dir() => found.extend(files(&path)),
            path => found.push(path),
        }
    }
    found
}
