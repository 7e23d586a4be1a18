//! Logs that are followed, by the whole program on real servers: from nothing to a running capture, steered while it
//! runs, refused and mended, killed anywhere.

mod archive;
mod binlog;
mod capture;
mod kills;
mod sinks;
mod steering;
mod storm;

use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use synctool_testkit::kill::{KillRun, Running};
use synctool_testkit::{PgVersion, Postgres, TestDb, wait_for};
use tempfile::TempDir;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The three tables of the original's walk-through.
const SHOP: &str = "
    CREATE TABLE users (id serial PRIMARY KEY, first_name varchar(255) NOT NULL, email varchar(255) NOT NULL UNIQUE,
        date_of_birth date, address text, interests text[]);
    CREATE TABLE restaurant (id varchar(255) PRIMARY KEY, name varchar(255) NOT NULL, rating int, tags text[]);
    CREATE TABLE visit (user_id int REFERENCES users(id), restaurant_id varchar(255) REFERENCES restaurant(id),
        amount_spent decimal(10, 2) NOT NULL, visit_rating int, PRIMARY KEY (user_id, restaurant_id));
    INSERT INTO users (first_name, email, date_of_birth, address, interests)
        SELECT 'n' || i, i || '@example.com', date '1990-01-01' + i, repeat('street ', 20), ARRAY['a' || i, NULL]
        FROM generate_series(1, 900) i;
    INSERT INTO restaurant SELECT 'r' || i, 'place ' || i, i % 6, '{pasta,wine}' FROM generate_series(1, 60) i;
    INSERT INTO visit SELECT i, 'r' || 1 + i % 60, i / 7.0, NULLIF(i % 6, 0) FROM generate_series(1, 900) i;
    ANALYZE";

const TABLES: &[&str] = &["users", "restaurant", "visit"];

/// A source, a destination and a folder with a pipeline `shop` between them.
struct Stage {
    from: TestDb,
    to: TestDb,
    home: TempDir,
    slot: String,
}

/// The program in a folder.
fn command_in(home: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
    command.current_dir(home).args(arguments);
    for name in ["RUST_LOG", "SYNCTOOL_LOG_LEVEL", "SYNCTOOL_FAILPOINT"] {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end: exit code, output, errors.
#[track_caller]
fn finished(command: &Command) -> (i32, String, String) {
    let outcome = KillRun::new(command).run();
    assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
    (outcome.code.unwrap_or(-1), outcome.stdout, outcome.stderr)
}

impl Stage {
    fn new(version: PgVersion) -> Stage {
        let server = Postgres::shared(version);
        let stage = Stage::between(server.database_from("cdc", &server.template("cdc_shop", SHOP)), server);
        stage.pipeline("tables: [users, restaurant, visit]", "");
        stage
    }

    fn between(from: TestDb, to: &Postgres) -> Stage {
        Stage {
            slot: format!("s_{}", from.name()),
            from,
            to: to.database("cdc_to"),
            home: tempfile::tempdir().expect("a folder"),
        }
    }

    /// Writes the pipeline: what of the source, and further keys of the strategy.
    fn pipeline(&self, tables: &str, log: &str) {
        let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", self.to.url());
        self.pipeline_to(&to, tables, log);
    }

    fn pipeline_to(&self, to: &str, tables: &str, log: &str) {
        let text = format!(
            "name: shop\ndatastores:\n  from: {{type: postgres, connection: {{url: \"{}\"}}}}\n  to: {to}\n\
             source: {{datastore: from, {tables}}}\ndestination: {{datastore: to}}\n\
             strategies:\n  - {{type: log, slot: {}, chunk_rows: 100, heartbeat: 1s{log}}}\n",
            self.from.url(),
            self.slot
        );
        std::fs::write(self.home.path().join("shop.yaml"), text).expect("written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command_in(self.home.path(), arguments)
    }

    /// Runs the program to its end: exit code, output, errors.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        finished(&self.command(arguments))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}\n{out}\n{err}");
        out
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, out, err) = self.run(&[arguments, &["--output", "json"]].concat());
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{out}\n{err}"));
        (code, json)
    }

    /// Follows the log to its present end.
    #[track_caller]
    fn catch_up(&self) -> Value {
        let (code, summary) = self.json(&["run", "shop.yaml", "--until-caught-up"]);
        assert_eq!(code, 0, "{summary:#}");
        summary
    }

    /// Follows it until it is stopped.
    fn start(&self) -> Running {
        KillRun::new(&self.command(&["run", "shop.yaml"])).start()
    }

    #[track_caller]
    fn status(&self) -> Value {
        let (code, status) = self.json(&["cdc", "status", "shop.yaml"]);
        assert_eq!(code, 0, "{status:#}");
        status
    }

    fn rows(db: &TestDb, table: &str) -> String {
        db.psql(&format!("SELECT t::text FROM {table} t ORDER BY t::text COLLATE \"C\""))
    }

    /// The tables that differ now.
    fn different<'a>(&self, tables: &[&'a str]) -> Vec<&'a str> {
        let differs = |t: &&&str| {
            let found = self
                .to
                .try_psql(&format!("SELECT t::text FROM {t} t ORDER BY t::text COLLATE \"C\""));
            found.ok() != Some(Stage::rows(&self.from, t))
        };
        tables.iter().filter(differs).copied().collect()
    }

    #[track_caller]
    fn assert_equal(&self, case: &str) {
        let different = self.different(TABLES);
        let rows = |db: &TestDb, table: &str| -> std::collections::BTreeSet<String> {
            let rows = db
                .try_psql(&format!("SELECT t::text FROM {table} t"))
                .unwrap_or_default();
            rows.lines().map(str::to_owned).collect()
        };
        let told = different.iter().map(|table| {
            let (from, to) = (rows(&self.from, table), rows(&self.to, table));
            let some = |a: &std::collections::BTreeSet<String>, b| -> Vec<String> {
                a.difference(b).take(3).map(|r| r.chars().take(90).collect()).collect()
            };
            format!(
                "{table}: only at the source {:?}, only at the destination {:?}",
                some(&from, &to),
                some(&to, &from)
            )
        });
        let told: Vec<String> = told.collect();
        assert!(told.is_empty(), "{case}: tables differ: {told:#?}");
    }

    #[track_caller]
    fn until_equal(&self, running: &Running) {
        wait_for("both ends to be equal", PATIENCE, || {
            let different = self.different(TABLES);
            match different.is_empty() {
                true => Ok(()),
                false => Err(format!("{different:?} differ; the program said: {}", running.stderr())),
            }
        });
    }
}

/// A pipeline `shop` that people write to, whatever follows the log of what.
trait Shop {
    fn command(&self, arguments: &[&str]) -> Command;
    fn catch_up(&self) -> Value;
    fn assert_equal(&self, case: &str);
    fn until_equal(&self, running: &Running);
    /// What other people do meanwhile.
    fn writer(&self) -> Writer;
    /// SQL at the source.
    fn change(&self, sql: &str);
    /// SQL at the destination.
    fn copy(&self, sql: &str) -> String;

    /// Runs the program to its end, for its exit code and what it says in JSON.
    #[track_caller]
    fn answer(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, out, err) = finished(&self.command(&[arguments, &["--output", "json"]].concat()));
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{out}\n{err}"));
        (code, json)
    }

    /// What `cdc status` says.
    #[track_caller]
    fn standing(&self) -> Value {
        let (code, status) = self.answer(&["cdc", "status", "shop.yaml"]);
        assert_eq!(code, 0, "{status:#}");
        status
    }
}

impl Shop for Stage {
    fn command(&self, arguments: &[&str]) -> Command {
        Stage::command(self, arguments)
    }

    fn catch_up(&self) -> Value {
        Stage::catch_up(self)
    }

    fn assert_equal(&self, case: &str) {
        Stage::assert_equal(self, case);
    }

    fn until_equal(&self, running: &Running) {
        Stage::until_equal(self, running);
    }

    fn writer(&self) -> Writer {
        Writer::start(self)
    }

    fn change(&self, sql: &str) {
        self.from.psql(sql);
    }

    fn copy(&self, sql: &str) -> String {
        self.to.psql(sql)
    }
}

/// Ends a capture as Ctrl-C does.
#[track_caller]
fn stop(running: Running) -> String {
    running.interrupt();
    let outcome = running.wait();
    assert_eq!(outcome.code, Some(130), "{}\n{}", outcome.stdout, outcome.stderr);
    outcome.stderr
}

/// What other people do to the shop meanwhile, until this is dropped.
struct Writer {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Writer {
    fn start(stage: &Stage) -> Writer {
        let url = stage.from.url();
        Writer::of(move |over| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls)
                    .await
                    .expect("a session");
                tokio::spawn(connection);
                let mut n: u64 = 0;
                while !over.load(Ordering::Relaxed) {
                    n += 1;
                    client.batch_execute(&change(n)).await.expect("a change");
                }
                n
            })
        })
    }

    /// One that works until it is told that it is over, and says how many transactions it made.
    fn of(work: impl FnOnce(&AtomicBool) -> u64 + Send + 'static) -> Writer {
        let over = Arc::new(AtomicBool::new(false));
        let until = over.clone();
        Writer {
            over,
            thread: Some(std::thread::spawn(move || work(&until))),
        }
    }

    /// Ends it; says how many transactions it made.
    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("it wrote")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The nth change: partial updates, keys that wander, deletes, and rows behind every cursor; at a pace that an unoptimised
/// program on a busy machine can follow.
fn change(n: u64) -> String {
    let (a, b) = (1 + n * 7 % 900, 1 + n * 31 % 900);
    format!(
        "BEGIN; UPDATE users SET first_name = 'w{n}' WHERE id = {a};
         UPDATE visit SET amount_spent = amount_spent + 1, visit_rating = NULL WHERE user_id = {b}; COMMIT;
         BEGIN; DELETE FROM visit WHERE user_id = {a};
         INSERT INTO visit VALUES ({a}, 'r' || 1 + {n} % 60, {n} % 1000 / 10.0, 1) ON CONFLICT DO NOTHING; COMMIT;
         UPDATE visit SET restaurant_id = 'r' || 1 + ({n} + 13) % 60 WHERE user_id = {b};
         INSERT INTO users VALUES (-{n}, 'behind', 'b{n}@example.com', NULL, repeat('x', 3000), NULL) ON CONFLICT DO NOTHING;
         DELETE FROM users WHERE id = 40 - {n} AND id < 0;
         UPDATE restaurant SET rating = {n} % 7, tags = ARRAY['n{n}'] || tags[1:9] WHERE id = 'r' || 1 + {n} % 60;
         SELECT pg_sleep(0.03)"
    )
}

macro_rules! on_servers {
    ($($(#[$doc:meta])* fn $name:ident($version:ident: PgVersion) $body:block)*) => {
        $(
            $(#[$doc])*
            mod $name {
                use super::*;
                fn case($version: PgVersion) $body

                #[test]
                fn pg15() {
                    case(PgVersion::V15);
                }

                #[test]
                fn pg18() {
                    case(PgVersion::V18);
                }
            }
        )*
    };
}
pub(crate) use on_servers;
