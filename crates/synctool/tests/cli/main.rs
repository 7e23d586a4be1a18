//! The command line as users and scripts meet it: the real program, real files, real servers.

#[path = "../ran/mod.rs"]
mod ran;

mod commands;
mod mistakes;
mod resume;
mod servers;
mod wal;

use ran::{Ran, program};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A password that must never be seen anywhere.
const SECRET: &str = "hunter2-s3ntinel";

/// A folder of a test's own, and the program run in it.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Home { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        std::fs::write(path, text).expect("the file");
        self
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("the file")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.current_dir(self.dir.path()).args(arguments);
        command.env("SHOP_PASSWORD", SECRET);
        command
    }

    /// Runs the program to its end. Whatever it does, it shows no secret.
    #[track_caller]
    fn run(&self, arguments: &[&str]) -> Ran {
        let ran = Ran::of(&mut self.command(arguments));
        ran.keeps_secrets();
        assert!(
            !ran.stderr.contains("panicked") && !ran.stderr.contains("this is a bug"),
            "{}",
            ran.stderr
        );
        assert!(
            !ran.stdout.contains('\u{1b}') && !ran.stderr.contains('\u{1b}'),
            "colours without a terminal"
        );
        ran
    }

    /// Runs it with `--output json` and reads what it printed.
    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let ran = self.run(&all);
        let json = ran.json();
        (ran.code, json)
    }

    /// A SQLite database with a table `items` of so many rows, keys 3 apart.
    fn items(&self, file: &str, rows: usize) -> &Self {
        let mut db = rusqlite::Connection::open(self.path(file)).expect("a database");
        let change = db.transaction().expect("a transaction");
        change
            .execute_batch(
                "CREATE TABLE items(id INTEGER PRIMARY KEY, name TEXT NOT NULL, price REAL, note TEXT);
                 CREATE TABLE item_tags(item INTEGER, tag TEXT);",
            )
            .expect("tables");
        {
            let mut insert = change
                .prepare("INSERT INTO items VALUES (?, ?, ?, ?)")
                .expect("a statement");
            for i in 0..rows {
                let note = (i % 3 == 0).then(|| format!("naïve 🎈 \"{i}\""));
                insert
                    .execute((i as i64 * 3, format!("item {i}"), i as f64 / 8.0, note))
                    .expect("a row");
            }
        }
        change.commit().expect("committed");
        self
    }

    fn sql(&self, file: &str, statement: &str) {
        rusqlite::Connection::open(self.path(file))
            .and_then(|db| db.execute_batch(statement))
            .expect(statement);
    }

    /// The rows of `items` in the order of their keys.
    fn rows(&self, file: &str) -> Vec<(i64, String, Option<f64>, Option<String>)> {
        let db = rusqlite::Connection::open(self.path(file)).expect("a database");
        let mut query = db
            .prepare("SELECT id, name, price, note FROM items ORDER BY id")
            .expect("a table");
        let rows = query
            .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?)))
            .expect("rows");
        rows.map(|r| r.expect("a row")).collect()
    }

    /// A pipeline `items` from `from.db` to `to.db`, cut into partitions of `step` rows.
    fn pipeline(&self, step: usize) -> &Self {
        self.write(
            "items.yaml",
            &format!(
                "name: items\ndatastores:\n  from: {{type: sqlite, path: from.db}}\n  to: {{type: sqlite, path: to.db}}\n\
                 source: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: items}}\n\
                 partitioning: {{step: {step}}}\nstrategies: [{{name: nightly, type: full}}]\n"
            ),
        )
    }

    /// Every file below the folder.
    fn files(&self) -> Vec<PathBuf> {
        fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
            for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
                match entry.path() {
                    path if path.is_dir() => walk(&path, files),
                    path => files.push(path),
                }
            }
        }
        let mut files = Vec::new();
        walk(self.dir.path(), &mut files);
        files
    }

    /// No file but those named holds the secret.
    #[track_caller]
    fn no_file_tells(&self, but: &[&str]) {
        for file in self.files() {
            let bytes = std::fs::read(&file).expect("a file");
            let found = bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes());
            let may = but.iter().any(|name| file.ends_with(name));
            assert!(!found || may, "{} holds the secret", file.display());
        }
    }
}

impl Ran {
    #[track_caller]
    fn keeps_secrets(&self) {
        for text in [&self.stdout, &self.stderr] {
            assert!(!text.contains(SECRET), "a secret was shown:\n{text}");
        }
    }

    /// It failed with this exit code, and stderr says these things.
    #[track_caller]
    fn fails(self, code: i32, says: &[&str]) -> Self {
        assert_eq!(self.code, code, "{}\n{}", self.stdout, self.stderr);
        for part in says {
            assert!(self.stderr.contains(part), "no {part:?} in\n{}", self.stderr);
        }
        self
    }
}
