//! Data Sync: production's tables in a local PostgreSQL, from archived log alone. The work itself is
//! [`synctool_connectors::walarchive`]; here are its configuration's meaning and the service that goes on and on.

mod service;

pub use service::{Served, Service};

use crate::config::{ArchivePlace, BackupPlace, DataSync as Config};
use crate::open;
use std::path::{Path, PathBuf};
use std::time::Duration;
use synctool_connectors::postgres::PostgresConfig;
use synctool_connectors::walarchive::{Archive, Backup, ScratchConfig, SyncConfig, Waiting};
use synctool_core::error::{Error, Result, code};

/// How long one file may take to be fetched.
const FETCH: Duration = Duration::from_secs(600);
/// How long the scratch server may take to start or to stop.
const START: Duration = Duration::from_secs(300);

/// Touched rows that are kept in memory: some tens of megabytes.
const TOUCHED_ROWS: usize = 1 << 20;

/// The local database.
pub fn local(config: &Config) -> PostgresConfig {
    let mut local = PostgresConfig::new(&config.host, config.port, &config.user, &config.database);
    local.password = Some(config.password.reveal().to_owned()).filter(|text| !text.is_empty());
    local.sslmode = open::sslmode(config.sslmode);
    local.sslrootcert.clone_from(&config.sslrootcert);
    local.application_name = "synctool datasync".into();
    local
}

/// What the work needs to know.
pub fn settings(config: &Config) -> Result<SyncConfig> {
    Ok(SyncConfig {
        archive: match &config.archive {
            ArchivePlace::Directory(directory) => Archive::Directory(directory.clone()),
            ArchivePlace::Command(command) => Archive::Command {
                command: command.clone(),
                scratch: config.scratch_dir.join("fetched"),
                timeout: FETCH,
            },
        },
        backup: match &config.backup {
            BackupPlace::Files(path) => Backup::Files(path.clone()),
            BackupPlace::Command(command) => Backup::Command(command.clone()),
        },
        scratch: ScratchConfig {
            directory: config.scratch_dir.clone(),
            bin_dir: bin_dir(config)?,
            user: Some(config.scratch_user.clone()),
            role: config.scratch_role.clone(),
            patience: START,
        },
        local: local(config),
        database: config.production_database.clone(),
        batch_segments: config.batch_segments,
        patience: config.patience,
        replay_patience: config.replay_timeout,
        metric_hours: config.metric_hours,
        copy_jobs: config.copy_jobs,
        copy_range: config.copy_range << 20,
        touched_rows: TOUCHED_ROWS,
    })
}

/// Where PostgreSQL's programs are: as configured, else of the backup's version where packages put them, else on the
/// PATH.
fn bin_dir(config: &Config) -> Result<PathBuf> {
    if let Some(directory) = &config.bin_dir {
        return Ok(directory.clone());
    }
    let mut versions = vec![config.scratch_dir.join("data/PG_VERSION")];
    if let BackupPlace::Files(path) = &config.backup {
        versions.push(path.join("PG_VERSION"));
    }
    let major = versions.iter().find_map(|file| std::fs::read_to_string(file).ok());
    let is_there = |directory: &PathBuf| directory.join("postgres").is_file() && directory.join("pg_ctl").is_file();
    let packaged = major.iter().flat_map(|major| {
        let major = major.trim();
        [
            format!("/usr/lib/postgresql/{major}/bin"),
            format!("/usr/pgsql-{major}/bin"),
        ]
        .map(PathBuf::from)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|directory| {
        // A link on the PATH leads to where the other programs and their files are.
        let real = std::fs::canonicalize(directory.join("postgres")).ok();
        real.as_deref().and_then(Path::parent).map_or(directory, Path::to_owned)
    });
    packaged.chain(on_path).find(is_there).ok_or_else(|| {
        Error::new(code::CONFIG_INVALID, "pg_bin_dir: PostgreSQL's programs were not found")
            .at("config", config.file.display().to_string())
            .hint("set PG_BIN_DIR to the directory with postgres and pg_ctl of production's major version")
    })
}

/// This machine's name.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// Why there is nothing new, as a sentence.
pub fn sentence(waiting: &Waiting) -> String {
    match waiting {
        Waiting::NotYet(name) => format!("segment {name} is not archived yet"),
        Waiting::Partial(name) => format!("of segment {name} only the beginning is archived"),
        Waiting::Unready(name, why) => format!("segment {name} cannot be taken yet: {why}"),
        Waiting::Gap { missing, later } => format!("segment {missing} is missing, though {later} is there"),
    }
}
