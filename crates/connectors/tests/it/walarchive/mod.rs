//! Archives of real servers.

mod archive;
mod batch;
mod counts;
mod failover;
mod scratch;
mod sync;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use synctool_connectors::walarchive::{Archive, Follower, Next, ScratchConfig, Waiting};
use synctool_core::error::Error;
use synctool_pgwal::{History, Identity, Lsn, SegmentName};
use synctool_testkit::{PgVersion, Postgres};
use tempfile::TempDir;

/// A server with small segments that keeps its log; what it writes is archived by the test.
struct Production {
    server: Postgres,
}

impl Production {
    fn start(version: PgVersion) -> Self {
        let server = Postgres::builder(version)
            .initdb("--wal-segsize=1")
            .setting("wal_level", "replica")
            .setting("wal_keep_size", "1GB")
            .setting("max_wal_size", "1GB")
            .setting("checkpoint_timeout", "1h")
            .setting("autovacuum", "off")
            .start();
        server.psql("CREATE TABLE t (id serial PRIMARY KEY, body text)");
        Production { server }
    }

    /// Writes a few segments and ends the last one.
    fn work(&self) {
        self.server.psql(
            "INSERT INTO t (body) SELECT repeat(md5(g::text), 5) FROM generate_series(1, 9000) g;
             UPDATE t SET body = body || 'x' WHERE id % 3 = 0; SELECT pg_switch_wal();",
        );
    }

    /// Every finished segment on every timeline, and the histories.
    fn finished(&self) -> Vec<(String, PathBuf)> {
        finished(&self.server)
    }
}

/// Every finished segment of a server on every timeline, and the histories.
fn finished(server: &Postgres) -> Vec<(String, PathBuf)> {
    // At the border of two segments the name is that of the earlier one.
    let current = server.psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    let directory = server.data_directory().join("pg_wal");
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let finished = SegmentName::parse(&name).is_some() && name[8..] < current[8..] && name[..8] <= current[..8];
        if finished || name.ends_with(".history") {
            found.push((name, entry.path()));
        }
    }
    found.sort();
    found
}

/// A standby that fell behind: it has what was written so far and gets nothing more.
fn lagging(server: &Postgres) -> Postgres {
    let heir = server.standby();
    let at = server.psql("SELECT pg_current_wal_lsn()");
    synctool_testkit::wait_for("the standby", Duration::from_secs(60), || {
        heir.psql(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'")) == "t"
    });
    heir.psql("ALTER SYSTEM SET primary_conninfo = ''");
    heir.psql("SELECT pg_reload_conf()");
    synctool_testkit::wait_for("the end of streaming", Duration::from_secs(60), || {
        heir.psql("SELECT count(*) FROM pg_stat_wal_receiver") == "0"
    });
    heir
}

/// It takes over, on a timeline of its own.
fn promote(heir: &Postgres) {
    heir.psql("SELECT pg_promote()");
    synctool_testkit::wait_for("the promotion", Duration::from_secs(60), || {
        heir.psql("SELECT pg_is_in_recovery()") == "f"
    });
}

/// A directory that another user may pass through. A scratch server in it ends with the test, however that ends.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("walarchive").tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Place(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// The main process of the scratch server.
    fn scratch_pid(&self) -> Option<String> {
        let text = fs::read_to_string(self.path().join("scratch/data/postmaster.pid")).ok()?;
        text.lines().next().map(str::to_owned)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(pid) = self.scratch_pid() {
            let _ = Command::new("kill").args(["-QUIT", &pid]).status();
        }
    }
}

fn scratch_config(bin_dir: &Path, directory: &Path) -> ScratchConfig {
    ScratchConfig {
        directory: directory.join("scratch"),
        bin_dir: bin_dir.into(),
        user: Some("postgres".into()),
        role: "postgres".into(),
        patience: Duration::from_secs(90),
    }
}

/// Where the programs of a server's version are.
fn bin_dir(server: &Postgres) -> PathBuf {
    server.tool("postgres").parent().unwrap().into()
}

/// Who wrote a segment, and where it starts.
fn identity(path: &Path) -> (Identity, Lsn) {
    let bytes = fs::read(path).unwrap();
    let start = Lsn(u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
    (Identity::read(start, &bytes).unwrap().0, start)
}

/// Follows an archive from a segment's first page header on.
fn follower(archive: Archive, first: &Path, patience: u32) -> Follower {
    let (identity, start) = identity(first);
    // The first record of the very first segment stands right behind the page header.
    let bytes = fs::read(first).unwrap();
    let rest = match bytes[2] & 1 {
        1 => u64::from(u32::from_le_bytes(bytes[16..20].try_into().unwrap())),
        _ => 0,
    };
    assert!(
        rest < 8000,
        "choose another segment: its first page holds no beginning of a record"
    );
    let from = Lsn((start.0 + 40 + rest).next_multiple_of(8));
    Follower::new(archive, identity, History::first(), from, patience)
}

/// Takes everything there is; returns the names and why there is no more.
async fn drain(follower: &mut Follower) -> Result<(Vec<String>, Waiting), Error> {
    let mut names = Vec::new();
    loop {
        match follower.next().await? {
            Next::Segment(segment) => names.push(segment.name.to_string()),
            Next::Waiting(why) => return Ok((names, why)),
        }
    }
}
