//! What servers begin with, made once per test run and copied: to make it takes longer than many a test.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::supervisor::Supervisor;

/// The variable that names the run's directory for it.
const VARIABLE: &str = "SYNCTOOL_TEST_PREPARED";

/// A directory for what many servers of a test run begin with; it goes with this value, however the process ends. The
/// tests find it by a variable; without one each server's data is made anew.
#[derive(Debug)]
pub struct Prepared(Supervisor);

impl Prepared {
    /// Makes it, empty.
    pub fn new() -> Result<Self> {
        let supervisor = Supervisor::new("prepared", None, "KILL")?;
        // What root starts makes its part as a user of its own.
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(supervisor.directory(), fs::Permissions::from_mode(0o777))?;
        }
        Ok(Self(supervisor))
    }

    /// The variable that tests find it by, and its value.
    pub fn variable(&self) -> (&'static str, &Path) {
        (VARIABLE, self.0.directory())
    }
}

/// Makes `data` in a server's directory by `make`, which is told where, or copies what that made under this name before.
/// Says whether it is a copy.
pub(crate) fn data(supervisor: &Supervisor, name: &str, make: impl Fn(&str) -> Result<()>) -> Result<bool> {
    let place = text(&supervisor.directory().join("data"))?;
    let Some(all) = env::var_os(VARIABLE).filter(|value| !value.is_empty()) else {
        make(&place)?;
        return Ok(false);
    };
    let all = PathBuf::from(all);
    let made = all.join(name);
    // Test processes make it one at a time; a half made one never has the final name.
    let lock = all.join(format!("{name}.lock"));
    let lock = File::create(&lock).with_context(|| format!("cannot write {}", lock.display()))?;
    lock.lock()?;
    if !made.exists() {
        let draft = all.join(format!("{name}.draft"));
        if draft.exists() {
            fs::remove_dir_all(&draft)?;
        }
        make(&text(&draft)?)?;
        fs::rename(&draft, &made)?;
    }
    drop(lock);
    let made = text(&made)?;
    supervisor.prepare(
        Path::new("/bin/cp"),
        &["-a", "--reflink=auto", "--sparse=always", &made, &place],
    )?;
    Ok(true)
}

fn text(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))?;
    Ok(text.to_owned())
}
