//! An archive of production's log with a base backup, and the scratch server that replays it: what Data Sync and
//! pipelines say alike.

use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use std::time::Duration;

use super::at::At;
use super::error::ConfigError;
use super::secret::Secret;
use super::units::Span;

/// An archive of production's log, and how it is replayed; every default is filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WalArchive {
    /// Where production archives its log.
    #[serde(flatten)]
    pub archive: ArchivePlace,
    /// Production's base backup.
    #[serde(flatten)]
    pub backup: BackupPlace,
    /// Where PostgreSQL's programs are; looked for if not said.
    #[serde(rename = "pg_bin_dir", skip_serializing_if = "Option::is_none")]
    pub bin_dir: Option<PathBuf>,
    /// Where the scratch server is made.
    pub scratch_dir: PathBuf,
    /// The system user that runs it, if we are root.
    pub scratch_user: String,
    /// A superuser of production's cluster.
    pub scratch_role: String,
    /// Segments of one batch, at most.
    pub batch_segments: u32,
    /// Looks at the archive before something missing or damaged is an error.
    #[serde(rename = "archive_patience")]
    pub patience: u32,
    /// How long the scratch server may replay without getting on.
    pub replay_timeout: Span,
}

/// Where production archives its log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum ArchivePlace {
    /// A directory.
    #[serde(rename = "archive_dir")]
    Directory(PathBuf),
    /// A command with `%f` and `%p`.
    #[serde(rename = "wal_fetch_command")]
    Command(String),
    /// A bucket of an S3-compatible store.
    #[serde(rename = "archive_s3")]
    Bucket(BucketPlace),
}

/// A bucket of an S3-compatible store.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BucketPlace {
    /// `s3://bucket/prefix`.
    pub url: String,
    /// The store's address, where it is not Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The region to sign for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The access key and its secret; none = those of the environment or of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keys: Option<(String, Secret)>,
}

/// What a file says of a bucket.
#[derive(Default)]
pub(super) struct BucketKeys {
    pub(super) url: Option<At<String>>,
    pub(super) endpoint: Option<At<String>>,
    pub(super) region: Option<At<String>>,
    pub(super) key: Option<At<String>>,
    pub(super) secret: Option<At<Secret>>,
}

impl BucketKeys {
    /// The bucket, if one is named.
    fn resolve(self, spell: fn(&str) -> String, errors: &mut Vec<ConfigError>) -> Option<At<BucketPlace>> {
        let Some(url) = self.url else {
            let others = [
                ("s3_endpoint", self.endpoint.map(|v| v.with(()))),
                ("s3_region", self.region.map(|v| v.with(()))),
                ("s3_access_key_id", self.key.map(|v| v.with(()))),
                ("s3_secret_access_key", self.secret.map(|v| v.with(()))),
            ];
            for (key, at) in others {
                if let Some(at) = at {
                    let what = format!("{} belongs to {}, and there is none", spell(key), spell("archive_s3"));
                    errors.push(at.error(what));
                }
            }
            return None;
        };
        if !url
            .strip_prefix("s3://")
            .is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
        {
            let what = format!("{} is no bucket", spell("archive_s3"));
            errors.push(url.error(what).with_help("write s3://bucket/prefix"));
        }
        if let Some(endpoint) = &self.endpoint
            && !(endpoint.starts_with("http://") || endpoint.starts_with("https://"))
        {
            let what = format!("{} is no address", spell("s3_endpoint"));
            errors.push(endpoint.error(what).with_help("write https://host:port"));
        }
        let keys = match (self.key, self.secret) {
            (Some(key), Some(secret)) => Some((key.into_inner(), secret.into_inner())),
            (Some(key), None) => {
                errors.push(key.error(format!("{} is missing", spell("s3_secret_access_key"))));
                None
            }
            (None, Some(secret)) => {
                errors.push(secret.error(format!("{} is missing", spell("s3_access_key_id"))));
                None
            }
            (None, None) => None,
        };
        Some(url.with(BucketPlace {
            url: url.to_string(),
            endpoint: self.endpoint.map(At::into_inner),
            region: self.region.map(At::into_inner),
            keys,
        }))
    }
}

/// Where production's base backup is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum BackupPlace {
    /// A directory or a tar file.
    #[serde(rename = "base_backup")]
    Files(PathBuf),
    /// A command with `%p`.
    #[serde(rename = "base_restore_command")]
    Command(String),
}

/// What a file says of it.
#[derive(Default)]
pub(super) struct Keys {
    pub(super) archive_dir: Option<At<PathBuf>>,
    pub(super) wal_fetch_command: Option<At<String>>,
    pub(super) bucket: BucketKeys,
    pub(super) base_backup: Option<At<PathBuf>>,
    pub(super) base_restore_command: Option<At<String>>,
    pub(super) pg_bin_dir: Option<At<PathBuf>>,
    pub(super) scratch_dir: Option<At<PathBuf>>,
    pub(super) scratch_user: Option<At<String>>,
    pub(super) scratch_role: Option<At<String>>,
    pub(super) batch_segments: Option<At<u32>>,
    pub(super) archive_patience: Option<At<u32>>,
    pub(super) replay_timeout: Option<At<Span>>,
}

/// How the file that is read speaks.
pub(super) struct Speech<'a> {
    /// How it spells a key.
    pub(super) spell: fn(&str) -> String,
    /// The error for a key that is missing, with what to do.
    pub(super) missing: &'a dyn Fn(&str, &str) -> ConfigError,
    /// Where it stands.
    pub(super) folder: &'a Path,
    /// Where the scratch server is made if nothing is said; none if something must be.
    pub(super) scratch_dir: Option<PathBuf>,
}

/// A number that is not 0.
pub(super) fn positive(value: Option<At<u32>>, default: u32, key: &str, errors: &mut Vec<ConfigError>) -> u32 {
    match value {
        Some(n) if *n == 0 => {
            errors.push(n.error(format!("{key} must be at least 1")));
            default
        }
        value => value.map_or(default, At::into_inner),
    }
}

/// The same that is not beyond all sense either.
pub(super) fn up_to(
    value: Option<At<u32>>,
    default: u32,
    most: (u32, &str),
    key: &str,
    errors: &mut Vec<ConfigError>,
) -> u32 {
    let (most, unit) = most;
    match value {
        Some(n) if *n > most => {
            errors.push(n.error(format!("{key} must be at most {most} {unit}")));
            default
        }
        value => positive(value, default, key, errors),
    }
}

/// The longest span of time that means anything: a year.
const LONGEST: Duration = Duration::from_secs(366 * 86_400);

/// A span of time that is not 0, nor beyond all sense.
pub(super) fn span(value: Option<At<Span>>, default: u64, key: &str, errors: &mut Vec<ConfigError>) -> Span {
    match value {
        Some(span) if span.0 > LONGEST => {
            errors.push(span.error(format!("{key} must be at most 366 days")));
            Span::seconds(default)
        }
        Some(span) if span.0.is_zero() => {
            errors.push(span.error(format!("{key} must be more than 0")));
            Span::seconds(default)
        }
        value => value.map_or(Span::seconds(default), At::into_inner),
    }
}

/// Spelled as PostgreSQL's programs do, by which a running server is known: without `..` and a second slash in front.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

impl Keys {
    /// None where something is missing.
    pub(super) fn resolve(self, speech: Speech<'_>, errors: &mut Vec<ConfigError>) -> Option<WalArchive> {
        let Speech {
            spell, missing, folder, ..
        } = speech;
        // The scratch server's programs do not run where we do.
        let place = |path: At<PathBuf>| {
            let path = folder.join(path.into_inner());
            std::path::absolute(&path).unwrap_or(path)
        };
        let exclude = |a, b| format!("{} and {} exclude each other", spell(a), spell(b));
        let (archive_dir, fetch) = ("archive_dir", "wal_fetch_command");
        let bucket = self.bucket.resolve(spell, errors);
        let archive = match (self.archive_dir, self.wal_fetch_command, bucket) {
            (Some(dir), None, None) => Some(ArchivePlace::Directory(place(dir))),
            (None, None, Some(bucket)) => Some(ArchivePlace::Bucket(bucket.into_inner())),
            (None, Some(command), None) => {
                for part in ["%f", "%p"] {
                    if !command.contains(part) {
                        let what = format!("{} has no {part}", spell(fetch));
                        errors.push(
                            command
                                .error(what)
                                .with_help("%f is the file wanted, %p where it is to be put"),
                        );
                    }
                }
                Some(ArchivePlace::Command(command.into_inner()))
            }
            (Some(_), Some(command), _) => {
                errors.push(command.error(exclude(archive_dir, fetch)));
                None
            }
            (dir, _, Some(bucket)) => {
                let other = if dir.is_some() { archive_dir } else { fetch };
                errors.push(bucket.error(exclude(other, "archive_s3")));
                None
            }
            (None, None, None) => {
                let help = format!(
                    "name the directory of production's archived log, or {}, or {}",
                    spell(fetch),
                    spell("archive_s3")
                );
                errors.push(missing(&spell(archive_dir), &help));
                None
            }
        };
        let (base_backup, restore) = ("base_backup", "base_restore_command");
        let backup = match (self.base_backup, self.base_restore_command) {
            (Some(path), None) => Some(BackupPlace::Files(place(path))),
            (None, Some(command)) => {
                if !command.contains("%p") {
                    let error = command.error(format!("{} has no %p", spell(restore)));
                    errors.push(error.with_help("%p is the empty directory into which the backup is to be restored"));
                }
                Some(BackupPlace::Command(command.into_inner()))
            }
            (Some(_), Some(command)) => {
                errors.push(command.error(exclude(base_backup, restore)));
                None
            }
            (None, None) => {
                let help = format!("name a base backup of production, or {}", spell(restore));
                errors.push(missing(&spell(base_backup), &help));
                None
            }
        };
        let scratch_dir = self.scratch_dir.map(place).or(speech.scratch_dir);
        let scratch_dir = scratch_dir.map(|path| plain(&path));
        if scratch_dir.is_none() {
            let help = "name a directory as large as production's data, for the scratch server";
            errors.push(missing(&spell("scratch_dir"), help));
        }
        let or = |value: Option<At<String>>, default: &str| value.map_or(default.to_owned(), At::into_inner);
        Some(WalArchive {
            bin_dir: self.pg_bin_dir.map(place),
            scratch_user: or(self.scratch_user, "postgres"),
            scratch_role: or(self.scratch_role, "postgres"),
            batch_segments: positive(self.batch_segments, 64, &spell("batch_segments"), errors),
            patience: positive(self.archive_patience, 3, &spell("archive_patience"), errors),
            replay_timeout: span(self.replay_timeout, 600, &spell("replay_timeout"), errors),
            archive: archive?,
            backup: backup?,
            scratch_dir: scratch_dir?,
        })
    }
}
