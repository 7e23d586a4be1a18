//! The configuration of Data Sync: a TOML file with the keys of its brief and those for what the brief leaves open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::at::At;
use super::datastores::SslMode;
use super::decode::decode;
use super::error::{ConfigError, ConfigErrors};
use super::load::{Loader, finish};
use super::secret::Secret;
use super::text::{Kind, Node};
use super::units::Span;
use super::walarchive::{BucketKeys, Keys, Speech, WalArchive, positive, span, up_to};

/// The environment variable that names the file.
pub const DATA_SYNC_CONFIG: &str = "DATA_SYNC_CONFIG";

/// The configuration of Data Sync with every default filled in; paths are absolute.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DataSync {
    /// The file it came from.
    pub file: PathBuf,
    /// The local server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// The role there.
    pub user: String,
    /// Its password.
    pub password: Secret,
    /// The local database.
    pub database: String,
    /// Encryption of the local connection.
    pub sslmode: SslMode,
    /// The certificates of trusted authorities.
    pub sslrootcert: Option<PathBuf>,
    /// Production's database; by default of the same name as the local one.
    pub production_database: String,
    /// How often the archive is looked at.
    pub frequency: Duration,
    /// Hours of a metrics window.
    pub metric_hours: u32,
    /// Production's archived log, its base backup, and the scratch server.
    pub wal: WalArchive,
    /// How often production is expected to archive; a file that is three times later is told.
    pub archive_interval: Duration,
    /// Ranges of a large table that are copied at once.
    pub copy_jobs: usize,
    /// Megabytes of such a range.
    pub copy_range: u64,
    /// Days that lines of the log are kept.
    pub log_days: u32,
    /// Where the service writes what it would say on stderr.
    pub log_file: PathBuf,
}

/// Data Sync: production's tables, kept in a local PostgreSQL from archived log alone. Paths are relative to the file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool Data Sync", deny_unknown_fields)]
#[serde(default, rename_all = "SCREAMING_SNAKE_CASE")]
pub(super) struct DataSyncFile {
    /// The local server. Default: 127.0.0.1.
    pg_host: Option<At<String>>,
    /// Its port. Default: 5432.
    pg_port: Option<At<u16>>,
    /// The role there; it must be a superuser or may set session_replication_role. Default: admin.
    pg_user_name: Option<At<String>>,
    /// Its password.
    pg_password: Option<At<Secret>>,
    /// The local database.
    pg_db_name: Option<At<String>>,
    /// disable, prefer, require, verify-ca or verify-full. Default: prefer.
    pg_sslmode: Option<At<SslMode>>,
    /// The certificates of trusted authorities. Default: the system's.
    pg_sslrootcert: Option<At<PathBuf>>,
    /// Production's database. Default: the name of the local one.
    prod_db_name: Option<At<String>>,
    /// Seconds between looks at the archive. Default: 600.
    data_sync_freq: Option<At<Span>>,
    /// Hours of a metrics window. Default: 24.
    metric_freq: Option<At<u32>>,
    /// The directory into which production archives its log.
    archive_dir: Option<At<PathBuf>>,
    /// In place of archive_dir: a command that fetches the file %f to %p, and fails if there is none.
    wal_fetch_command: Option<At<String>>,
    /// In place of archive_dir: s3://bucket/prefix of an S3-compatible store.
    archive_s3: Option<At<String>>,
    /// The store's address. Default: Amazon's.
    s3_endpoint: Option<At<String>>,
    /// The region to sign for. Default: AWS_REGION, or us-east-1.
    s3_region: Option<At<String>>,
    /// An access key that may list the bucket and get its objects. Default: AWS_ACCESS_KEY_ID, or the machine's own.
    s3_access_key_id: Option<At<String>>,
    /// Its secret.
    s3_secret_access_key: Option<At<Secret>>,
    /// Seconds in which production is expected to archive something. Default: as data_sync_freq.
    archive_interval: Option<At<Span>>,
    /// A base backup of production: a directory, a directory with base.tar, or a tar file; compressed or not.
    base_backup: Option<At<PathBuf>>,
    /// In place of base_backup: a command that restores one into the empty directory %p.
    base_restore_command: Option<At<String>>,
    /// Where postgres and pg_ctl of production's major version are. Default: where packages put them, then on the PATH.
    pg_bin_dir: Option<At<PathBuf>>,
    /// A directory as large as production's data, for the scratch server. Default: datasync in the data directory.
    scratch_dir: Option<At<PathBuf>>,
    /// The system user that runs it, if synctool runs as root. Default: postgres.
    scratch_user: Option<At<String>>,
    /// A superuser of production's cluster. Default: postgres.
    scratch_role: Option<At<String>>,
    /// Segments of one batch, at most. Default: 64.
    batch_segments: Option<At<u32>>,
    /// Looks at the archive before something missing or damaged is an error. Default: 3.
    archive_patience: Option<At<u32>>,
    /// How long the scratch server may replay without getting on. Default: 10m.
    replay_timeout: Option<At<Span>>,
    /// Ranges of a large table that are copied at once. Default: 4.
    copy_jobs: Option<At<u32>>,
    /// Megabytes of such a range; a table of no more is copied in one go. Default: 64.
    copy_range_mb: Option<At<u32>>,
    /// Days that lines of data_sync_logs are kept; 0 is for ever. Default: 90.
    log_retention_days: Option<At<u32>>,
    /// Where the service writes what it would say on stderr. Default: datasync.log in the data directory.
    log_file: Option<At<PathBuf>>,
}

const KEYS: &[&str] = &[
    "PG_HOST",
    "PG_PORT",
    "PG_USER_NAME",
    "PG_PASSWORD",
    "PG_DB_NAME",
    "PG_SSLMODE",
    "PG_SSLROOTCERT",
    "PROD_DB_NAME",
    "DATA_SYNC_FREQ",
    "METRIC_FREQ",
    "ARCHIVE_DIR",
    "WAL_FETCH_COMMAND",
    "ARCHIVE_S3",
    "S3_ENDPOINT",
    "S3_REGION",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
    "ARCHIVE_INTERVAL",
    "BASE_BACKUP",
    "BASE_RESTORE_COMMAND",
    "PG_BIN_DIR",
    "SCRATCH_DIR",
    "SCRATCH_USER",
    "SCRATCH_ROLE",
    "BATCH_SEGMENTS",
    "ARCHIVE_PATIENCE",
    "REPLAY_TIMEOUT",
    "COPY_JOBS",
    "COPY_RANGE_MB",
    "LOG_RETENTION_DAYS",
    "LOG_FILE",
];

impl Loader {
    /// The configuration of Data Sync: the named file, else that of `DATA_SYNC_CONFIG`.
    pub fn datasync(&self, file: Option<&Path>) -> Result<DataSync, ConfigErrors> {
        let named = file.map(Path::to_owned).or_else(|| {
            self.variable(DATA_SYNC_CONFIG)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        });
        let Some(path) = named else {
            let error = ConfigError::new(format!("{DATA_SYNC_CONFIG} is not set"));
            return Err(error
                .with_help(format!(
                    "export {DATA_SYNC_CONFIG}=/path/to/datasync.toml, or say --config FILE"
                ))
                .into());
        };
        let mut errors = Vec::new();
        let read = self.read_toml(&path, &mut errors).and_then(|(text, mut root)| {
            known_spelling(&mut root);
            decode::<DataSyncFile>(&root, &text, &mut errors, &mut Vec::new())
        });
        let data_dir = self.data_dir_or_default();
        let resolved = read.and_then(|file| resolve(file, &path, &data_dir, &mut errors));
        finish(resolved, errors)
    }
}

/// The keys are known in capitals and in small letters.
fn known_spelling(root: &mut Node) {
    let Kind::Map(entries) = &mut root.kind else { return };
    for entry in entries {
        let upper = entry.key.to_uppercase();
        if KEYS.contains(&upper.as_str()) {
            entry.key = upper;
        }
    }
}

fn resolve(file: DataSyncFile, path: &Path, data_dir: &Path, errors: &mut Vec<ConfigError>) -> Option<DataSync> {
    let named = path.display().to_string();
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().unwrap_or(Path::new("/"));
    let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    let missing =
        |key: &str, help: &str| ConfigError::in_file(named.clone(), format!("{key} is required")).with_help(help);
    let place = |path: At<PathBuf>| folder.join(path.into_inner());
    fn or<T>(value: Option<At<T>>, default: T) -> T {
        value.map_or(default, At::into_inner)
    }
    if file.pg_password.is_none() {
        errors.push(missing(
            "PG_PASSWORD",
            "PG_PASSWORD = \"${PG_PASSWORD}\", or \"${file:/path/to/password}\"",
        ));
    }
    if file.pg_db_name.is_none() {
        errors.push(missing("PG_DB_NAME", "name the local database"));
    }
    let speech = Speech {
        spell: str::to_uppercase,
        missing: &missing,
        folder,
        scratch_dir: Some(data_dir.join("datasync")),
    };
    let wal = Keys {
        archive_dir: file.archive_dir,
        wal_fetch_command: file.wal_fetch_command,
        bucket: BucketKeys {
            url: file.archive_s3,
            endpoint: file.s3_endpoint,
            region: file.s3_region,
            key: file.s3_access_key_id,
            secret: file.s3_secret_access_key,
        },
        base_backup: file.base_backup,
        base_restore_command: file.base_restore_command,
        pg_bin_dir: file.pg_bin_dir,
        scratch_dir: file.scratch_dir,
        scratch_user: file.scratch_user,
        scratch_role: file.scratch_role,
        batch_segments: file.batch_segments,
        archive_patience: file.archive_patience,
        replay_timeout: file.replay_timeout,
    }
    .resolve(speech, errors);
    let frequency = span(file.data_sync_freq, 600, "DATA_SYNC_FREQ", errors).0;
    let interval = frequency.as_secs().max(1);
    let archive_interval = span(file.archive_interval, interval, "ARCHIVE_INTERVAL", errors).0;
    if let Some(port) = file.pg_port.as_ref().filter(|port| ***port == 0) {
        errors.push(port.error("PG_PORT must be at least 1"));
    }
    // 0 keeps them for ever.
    let log_days = match file.log_retention_days {
        Some(days) if *days == 0 => 0,
        days => up_to(days, 90, (36_500, "days"), "LOG_RETENTION_DAYS", errors),
    };
    let database = or(file.pg_db_name, String::new());
    let resolved = DataSync {
        file: path.clone(),
        host: or(file.pg_host, "127.0.0.1".into()),
        port: or(file.pg_port, 5432),
        user: or(file.pg_user_name, "admin".into()),
        password: or(file.pg_password, Secret::new("")),
        production_database: or(file.prod_db_name, database.clone()),
        database,
        sslmode: or(file.pg_sslmode, SslMode::Prefer),
        sslrootcert: file.pg_sslrootcert.map(place),
        frequency,
        metric_hours: up_to(file.metric_freq, 24, (8760, "hours, a year"), "METRIC_FREQ", errors),
        wal: wal?,
        archive_interval,
        copy_jobs: up_to(file.copy_jobs, 4, (64, "ranges at once"), "COPY_JOBS", errors) as usize,
        copy_range: u64::from(positive(file.copy_range_mb, 64, "COPY_RANGE_MB", errors)),
        log_days,
        log_file: file.log_file.map_or_else(|| data_dir.join("datasync.log"), place),
    };
    errors.is_empty().then_some(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<DataSync, String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("datasync.toml");
        std::fs::write(&file, text).unwrap();
        std::fs::write(folder.path().join("pw"), "from the file\n").unwrap();
        let env = |name: &str| (name == "LOCAL_PASSWORD").then(|| "hunter2".to_owned());
        let loaded = Loader::new()
            .env(env)
            .data_dir(Some("/data".into()))
            .datasync(Some(&file));
        let named = file.display().to_string();
        loaded.map_err(|e| e.to_string().replace(&named, "F"))
    }

    const LEAST: &str = "PG_PASSWORD = \"x\"\nPG_DB_NAME = \"shop\"\nARCHIVE_DIR = \"/wal\"\nBASE_BACKUP = \"/base\"\n";

    #[test]
    fn the_defaults_are_those_of_the_brief() {
        let config = load(LEAST).unwrap();
        assert_eq!(
            (config.host.as_str(), config.port, config.user.as_str()),
            ("127.0.0.1", 5432, "admin")
        );
        assert_eq!((config.frequency.as_secs(), config.metric_hours), (600, 24));
        assert_eq!(config.production_database, "shop");
        assert_eq!(config.wal.scratch_dir, Path::new("/data/datasync"));
    }

    #[test]
    fn a_scratch_directory_is_spelled_as_postgresql_does() {
        for spelled in ["/srv/other/../scratch", "//srv/./scratch/", "/../srv//scratch"] {
            let config = load(&format!("{LEAST}SCRATCH_DIR = \"{spelled}\"\n")).unwrap();
            assert_eq!(config.wal.scratch_dir.as_os_str(), "/srv/scratch", "{spelled}");
        }
    }

    #[test]
    fn numbers_may_stand_in_quotes_and_keys_in_small_letters() {
        let text =
            format!("{LEAST}PG_PORT = \"6543\"\nDATA_SYNC_FREQ = \"30\"\nmetric_freq = 6\nARCHIVE_INTERVAL = 1_000\n");
        let config = load(&text).unwrap();
        assert_eq!(
            (config.port, config.frequency.as_secs(), config.metric_hours),
            (6543, 30, 6)
        );
        assert_eq!(config.archive_interval.as_secs(), 1000);
    }

    #[test]
    fn secrets_come_from_the_environment_and_from_files_and_are_not_shown() {
        let text = LEAST.replace("\"x\"", "\"${LOCAL_PASSWORD}\"");
        let config = load(&text).unwrap();
        assert_eq!(config.password.reveal(), "hunter2");
        assert!(!format!("{config:?}{}", serde_json::to_string(&config).unwrap()).contains("hunter2"));
        let config = load(&LEAST.replace("\"x\"", "\"${file:pw}\"")).unwrap();
        assert_eq!(config.password.reveal(), "from the file");
    }

    #[test]
    fn every_mistake_is_told_with_its_place() {
        let error =
            load("PG_DB_NAM = \"shop\"\nPG_PASSWORD = \"x\"\n  PG_PORT = \"many\"\nMETRIC_FREQ = 0\n").unwrap_err();
        for part in [
            "F:1:1: unknown key \"PG_DB_NAM\"",
            "did you mean \"PG_DB_NAME\"?",
            "F:3:13:",
        ] {
            assert!(error.contains(part), "no {part:?} in\n{error}");
        }
        let error = load("METRIC_FREQ = 0\n").unwrap_err();
        for part in [
            "F: PG_PASSWORD is required",
            "F: PG_DB_NAME is required",
            "F: ARCHIVE_DIR is required",
            "F: BASE_BACKUP is required",
            "F:1:15: METRIC_FREQ must be at least 1",
        ] {
            assert!(
                error.contains(part) || part.contains("METRIC"),
                "no {part:?} in\n{error}"
            );
        }
        for (line, says) in [
            (
                "METRIC_FREQ = 8761",
                "F:5:15: METRIC_FREQ must be at most 8760 hours, a year",
            ),
            ("METRIC_FREQ = -1", "F:5:15: "),
            ("METRIC_FREQ = 1.5", "F:5:15: "),
            ("METRIC_FREQ = \"daily\"", "F:5:15: "),
            ("METRIC_FREQ = 99999999999", "F:5:15: "),
            (
                "DATA_SYNC_FREQ = \"900000d\"",
                "F:5:18: DATA_SYNC_FREQ must be at most 366 days",
            ),
            ("DATA_SYNC_FREQ = 0", "F:5:18: DATA_SYNC_FREQ must be more than 0"),
            ("DATA_SYNC_FREQ = -5", "F:5:18: "),
            (
                "ARCHIVE_INTERVAL = 99999999999",
                "F:5:20: ARCHIVE_INTERVAL must be at most 366 days",
            ),
            ("PG_PORT = 0", "F:5:11: PG_PORT must be at least 1"),
            ("COPY_JOBS = 5000", "F:5:13: COPY_JOBS must be at most 64"),
            (
                "LOG_RETENTION_DAYS = 4000000000",
                "F:5:22: LOG_RETENTION_DAYS must be at most 36500 days",
            ),
        ] {
            let error = load(&format!("{LEAST}{line}\n")).unwrap_err();
            assert!(error.contains(says), "{line}: no {says:?} in\n{error}");
        }
        let error = load("PG_HOST = localhost\n").unwrap_err();
        assert!(
            error.contains("F:1:11:") && error.contains("text stands in quotes"),
            "{error}"
        );
        let error = load(&format!("{LEAST}WAL_FETCH_COMMAND = \"get\"\n")).unwrap_err();
        assert!(error.contains("exclude each other"), "{error}");
        let error = Loader::new().env(|_| None).datasync(None).unwrap_err().to_string();
        assert!(error.starts_with("DATA_SYNC_CONFIG is not set"), "{error}");
    }
}
