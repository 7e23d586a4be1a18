//! A folder with a datastores file and pipelines, and the real program run in it.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;
use synctool_testkit::TestDb;
use tempfile::TempDir;

/// A folder of a test's own.
pub struct Place {
    folder: TempDir,
    /// What the program finds in its environment.
    env: Vec<(String, String)>,
}

impl Place {
    /// With datastores, each by its name and what stands behind it.
    pub fn new(datastores: &[(&str, String)]) -> Place {
        let place = Place {
            folder: tempfile::tempdir().expect("a folder"),
            env: Vec::new(),
        };
        let mut text = String::from("datastores:\n");
        for (name, entry) in datastores {
            text.push_str(&format!("  {name}: {entry}\n"));
        }
        place.write("datastores.yaml", &text);
        place
    }

    /// A variable of the program's environment.
    #[allow(dead_code, reason = "not every test needs one")]
    pub fn env(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.env.push((name.into(), value.into()));
        self
    }

    pub fn write(&self, name: &str, text: &str) {
        let path = self.path().join(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("the folder");
        std::fs::write(path, text).expect("written");
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
        command.current_dir(self.path()).args(arguments);
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    pub fn synctool(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs and expects an exit code; the JSON on stdout.
    #[track_caller]
    pub fn json(&self, arguments: &[&str], exit: i32) -> serde_json::Value {
        let output = self.synctool(&[arguments, &["--output", "json"]].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(exit), "{arguments:?}: {told}{said}");
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{arguments:?}: {e}: {told}{said}"))
    }

    /// Runs until what `found` says is `wanted`: what was stamped just now settles when its margin has passed.
    #[allow(dead_code, reason = "not every test needs it")]
    #[track_caller]
    pub fn until(&self, arguments: &[&str], found: impl Fn() -> String, wanted: &str) {
        synctool_testkit::wait_for("the rows to arrive", Duration::from_secs(30), || {
            self.json(arguments, 0);
            let rows = found();
            match rows.trim() == wanted {
                true => Ok(()),
                false => Err(format!("found {rows:?}, wanted {wanted:?}")),
            }
        });
    }
}

/// The entry of a PostgreSQL database.
pub fn postgres(db: &TestDb) -> String {
    format!("{{type: postgres, connection: {{url: \"{}\"}}}}", db.url())
}

/// Some columns of all rows of a folder's CSV files, by the number in the first of them.
pub fn csv_lines(folder: &Path, columns: &[&str]) -> String {
    let mut rows = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().into_string().expect("a name");
        if name.starts_with('.') || !name.ends_with(".csv") {
            continue;
        }
        let text = std::fs::read_to_string(entry.path()).expect("a file");
        let mut lines = text.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let header = lines.next().expect("a header");
        let places: Vec<usize> = columns
            .iter()
            .map(|c| header.iter().position(|h| h == c).expect("a column"))
            .collect();
        rows.extend(lines.map(|line| {
            let cells: Vec<String> = places.iter().map(|at| line[*at].to_string()).collect();
            (cells[0].parse::<i64>().expect("a number"), cells.join(" "))
        }));
    }
    rows.sort();
    rows.into_iter().map(|(_, line)| line).collect::<Vec<_>>().join("\n")
}
