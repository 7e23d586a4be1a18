//! The guide of docs/data-sync.md, followed word by word where nothing is set up: its blocks in their order, with other
//! names only for what each machine has of its own.

use super::ran::Ran;
use super::{PATIENCE, rows};
use std::env;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use synctool_testkit::{PgVersion, Postgres, psql_url, wait_for};
use tempfile::TempDir;

const TABLES: &[&str] = &["orders", "items"];
const SCHEMA: &str = "
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, total numeric, at timestamptz DEFAULT now());
CREATE TABLE items (order_id bigint REFERENCES orders, n int, body text);
CREATE TABLE elsewhere (id int);
INSERT INTO orders (total) SELECT g / 7.0 FROM generate_series(1, 500) g;
INSERT INTO items SELECT 1 + g % 500, g, md5(g::text) FROM generate_series(1, 2000) g;";

/// A block of the guide.
struct Block {
    language: String,
    /// The line before it.
    under: String,
    text: String,
}

fn blocks() -> Vec<Block> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/data-sync.md");
    let page = fs::read_to_string(page).expect("docs/data-sync.md");
    let (_, guide) = page
        .split_once("## From nothing to a running service\n")
        .expect("the guide");
    let (guide, _) = guide.split_once("\n## ").expect("what follows the guide");
    let mut blocks: Vec<Block> = Vec::new();
    let (mut open, mut under) = (false, String::new());
    for line in guide.lines() {
        match (open, line.strip_prefix("```")) {
            (false, Some(language)) => blocks.push(Block {
                language: language.into(),
                under: under.clone(),
                text: String::new(),
            }),
            (true, None) => {
                let block = blocks.last_mut().expect("an open block");
                block.text.push_str(line);
                block.text.push('\n');
            }
            (false, None) if !line.is_empty() => under = line.into(),
            _ => {}
        }
        open ^= line.starts_with("```");
    }
    blocks
}

/// A production that archives nothing, a local server with nothing in it, and a place for files.
struct Machine {
    production: Postgres,
    local: Postgres,
    home: TempDir,
    /// What the guide's shell exported.
    exports: String,
    /// What the guide calls it, and what it is here.
    names: Vec<(&'static str, String)>,
}

impl Machine {
    fn new() -> Self {
        let home = tempfile::Builder::new().prefix("guide").tempdir().expect("a folder");
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        let production = Postgres::start(PgVersion::V18);
        production.psql("CREATE DATABASE shop");
        psql_url(&production.url("shop"), SCHEMA).expect("production's tables");
        let local = Postgres::builder(PgVersion::V18).password("superuser").start();
        let place = |name: &str| home.path().join(name).display().to_string();
        let names = vec![
            ("-h PRODUCTION", format!("-h 127.0.0.1 -p {}", production.port())),
            ("/archive", place("archive")),
            ("/backup", place("backup")),
            ("/etc/synctool", place("etc")),
            ("/var/lib/synctool", place("lib")),
            ("/usr/local/bin/synctool", env!("CARGO_BIN_EXE_synctool").into()),
            ("PG_PORT = 5432", format!("PG_PORT = {}", local.port())),
            // A minute is long for a test.
            ("DATA_SYNC_FREQ = 60", "DATA_SYNC_FREQ = 1".into()),
        ];
        // Production's server archives into it.
        let archive = home.path().join("archive");
        fs::create_dir(&archive).expect("the archive");
        fs::set_permissions(archive, fs::Permissions::from_mode(0o777)).expect("permissions");
        Machine {
            production,
            local,
            home,
            exports: String::new(),
            names,
        }
    }

    /// A text of the guide as it is meant here.
    fn here(&self, text: &str) -> String {
        let replace = |text: String, (name, here): &(&str, String)| text.replace(name, here);
        self.names.iter().fold(text.to_owned(), replace)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A shell as the guide's reader has one: all programs at hand, the local server as the usual one.
    fn shell(&self, script: &str) -> Command {
        let ours = PathBuf::from(env!("CARGO_BIN_EXE_synctool"));
        let programs = [ours, self.local.tool("psql")].map(|program| program.parent().expect("a folder").to_owned());
        let path = env::var_os("PATH").unwrap_or_default();
        let path = env::join_paths(programs.into_iter().chain(env::split_paths(&path))).expect("a path");
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("set -e\n{}{script}", self.exports)]);
        shell
            .current_dir(self.home.path())
            .env("PATH", path)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.local.port().to_string())
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", "superuser")
            .env_remove("RUST_LOG");
        shell
    }

    /// Runs a block; who looks at the service's state in it looks until all is well.
    #[track_caller]
    fn run(&mut self, script: &str) {
        const LOOK: &str = "synctool datasync status\n";
        Ran::of(&mut self.shell(script.trim_end_matches(LOOK))).ok();
        if script.ends_with(LOOK) {
            wait_for("a state in which all is well", PATIENCE, || {
                let ran = Ran::of(&mut self.shell(LOOK));
                match ran.code {
                    0 => Ok(()),
                    _ => Err(ran.stdout + &ran.stderr),
                }
            });
        }
        let exports = script.lines().filter(|line| line.starts_with("export "));
        self.exports.extend(exports.flat_map(|line| [line, "\n"]));
    }

    fn ask(&self, sql: &str) -> String {
        psql_url(&self.local.url("shop"), sql).expect("the local server")
    }

    /// Production has other rows, and after a while they are here.
    fn changes_arrive(&self) {
        let change = "UPDATE orders SET total = total + 1 WHERE id % 3 = 0; DELETE FROM items WHERE n % 10 = 0;
            INSERT INTO items SELECT 1, g, 'new' FROM generate_series(1, 50) g";
        psql_url(&self.production.url("shop"), change).expect("production");
        self.production.archive_now(&self.path("archive"), PATIENCE);
        self.are_same();
    }

    fn are_same(&self) {
        for table in TABLES {
            wait_for(table, PATIENCE, || {
                let there = psql_url(&self.production.url("shop"), &rows(table)).expect("production");
                match self.ask(&rows(table)) == there {
                    true => Ok(()),
                    false => Err(Ran::of(&mut self.shell("synctool datasync status")).stdout),
                }
            });
        }
    }

    fn state(&self) -> String {
        self.ask("SELECT state FROM data_sync_status")
    }

    /// Runs what a service manager would, until the guide's own word for its end.
    fn serves(&mut self, unit: &str) {
        let value = |name: &str| {
            let line = unit.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name} in\n{unit}")).to_owned()
        };
        let script = format!("export {}\nexec {}", value("Environment="), value("ExecStart="));
        let mut service = self.shell(&script);
        let mut service = service.stdout(Stdio::null()).spawn().expect("the service");
        wait_for("the service", PATIENCE, || self.state() != "stopped");
        self.changes_arrive();
        self.run("synctool datasync stop");
        assert!(service.wait().expect("its end").success());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self
            .shell("synctool datasync stop >/dev/null 2>&1")
            .stdout(Stdio::null())
            .status();
        if let Ok(text) = fs::read_to_string(self.path("lib/datasync/data/postmaster.pid")) {
            let pid = text.lines().next().unwrap_or_default();
            let _ = Command::new("kill").args(["-QUIT", pid]).status();
        }
    }
}

#[test]
fn the_guide_leads_from_nothing_to_a_running_service() {
    let blocks = blocks();
    let mut machine = Machine::new();
    for (name, _) in &machine.names {
        let is_there = blocks.iter().any(|block| block.text.contains(name));
        assert!(is_there, "the guide says {name:?} no more");
    }
    let config = machine.path("etc/datasync.toml");
    let (mut others, mut units) = (Vec::new(), Vec::new());
    for block in &blocks {
        let text = machine.here(&block.text);
        match &*block.language {
            "ini" if block.under.contains("postgresql.conf") => {
                let conf = machine.production.data_directory().join("postgresql.conf");
                let conf = OpenOptions::new().append(true).open(conf);
                conf.expect("production's configuration")
                    .write_all(text.as_bytes())
                    .expect("a longer one");
                machine.production.restart();
            }
            "ini" => units.push(text),
            "sql" => drop(machine.ask(&text)),
            "toml" if block.under.contains("datasync.toml") => fs::write(&config, text).expect("the configuration"),
            "toml" => others.push(text),
            "sh" => {
                // Before it is compared there is something to compare, and something that happened since.
                if text.contains("datasync verify") {
                    machine.are_same();
                    machine.changes_arrive();
                }
                machine.run(&text);
            }
            other => panic!("the guide has a block of {other:?}:\n{text}"),
        }
    }
    assert_eq!(machine.state(), "stopped", "the guide ends with a word for the end");
    let troubled = "SELECT table_name, state, why FROM data_sync_tables WHERE state <> 'synced'";
    assert_eq!(machine.ask(troubled), "");
    let wrong = "SELECT level, message FROM data_sync_logs WHERE level = 'error'";
    assert_eq!(machine.ask(wrong), "");

    // The other ways to say where things are can be written there.
    assert!(!others.is_empty());
    let whole = fs::read_to_string(&config).expect("the configuration");
    for other in others {
        let lines = whole.lines().filter(|line| !line.starts_with("ARCHIVE_DIR"));
        let text = format!("{}\n{other}", lines.collect::<Vec<_>>().join("\n"));
        fs::write(machine.path("other.toml"), text).expect("another configuration");
        let ran = Ran::of(&mut machine.shell("synctool datasync status --config other.toml"));
        assert_eq!(ran.code, 1, "it is stopped, and nothing else is wrong:\n{}", ran.stderr);
    }

    // A service manager's way.
    assert_eq!(units.len(), 1);
    machine.serves(&units[0]);
}
