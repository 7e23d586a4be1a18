//! A file system that is soon full.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// A small file system of memory; it goes with this value.
#[derive(Debug)]
pub struct SmallDisk(TempDir);

impl SmallDisk {
    /// Mounts one.
    ///
    /// # Panics
    /// If that is not possible: it needs the right to mount.
    #[track_caller]
    pub fn new(megabytes: u32) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("small-disk")
            .tempdir_in("/var/tmp")
            .unwrap_or_else(|e| panic!("a folder for a small disk: {e}"));
        let options = format!("size={megabytes}m,mode=0777");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder.path());
        run(
            mount,
            "a small file system needs the right to mount: run the tests as root",
        );
        Self(folder)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A new folder on it that belongs to the servers' user.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.path().join(name);
        std::fs::create_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut own = Command::new("chown");
        own.arg("postgres").arg(&folder);
        run(own, "the folder is given to the servers' user");
        folder
    }

    /// Makes it larger or smaller.
    ///
    /// # Panics
    /// If that is not possible.
    #[track_caller]
    pub fn resize(&self, megabytes: u32) {
        let mut mount = Command::new("mount");
        mount
            .args(["-o", &format!("remount,size={megabytes}m")])
            .arg(self.path());
        run(mount, "the small file system is resized");
    }

    /// Fills it but for so many kilobytes, until the file that this gives is removed.
    ///
    /// # Panics
    /// If that is not possible.
    #[track_caller]
    pub fn fill(&self, left: u64) -> PathBuf {
        let output = Command::new("df").args(["-Pk"]).arg(self.path()).output();
        let output = output.unwrap_or_else(|e| panic!("df: {e}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let free = text.lines().nth(1).and_then(|line| line.split_whitespace().nth(3));
        let free: u64 = free.and_then(|kb| kb.parse().ok()).unwrap_or_else(|| panic!("{text}"));
        let filler = self.path().join("filler");
        let bytes = vec![0; usize::try_from(free.saturating_sub(left) * 1024).unwrap_or_default()];
        std::fs::write(&filler, bytes).unwrap_or_else(|e| panic!("{}: {e}", filler.display()));
        filler
    }
}

#[track_caller]
fn run(mut command: Command, why: &str) {
    assert!(command.status().is_ok_and(|status| status.success()), "{why}");
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
