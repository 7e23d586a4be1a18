//! The real program, run to its end.

use serde_json::Value;
use std::process::Command;

/// How the program ended and what it said.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// The program, with nothing in its environment that would change what it says or does.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
    for name in [
        "RUST_LOG",
        "RUST_BACKTRACE",
        "SYNCTOOL_LOG_LEVEL",
        "NO_COLOR",
        "SYNCTOOL_FAILPOINT",
    ] {
        command.env_remove(name);
    }
    command
}

impl Ran {
    #[track_caller]
    pub fn of(command: &mut Command) -> Ran {
        let out = command.output().expect("the program starts");
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8(out.stdout).expect("UTF-8"),
            stderr: String::from_utf8(out.stderr).expect("UTF-8"),
        }
    }

    /// What it printed as one document.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| {
            panic!(
                "stdout is not one JSON document ({e}):\n{}\n{}",
                self.stdout, self.stderr
            )
        })
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{}\n{}", self.stdout, self.stderr);
        self
    }
}
