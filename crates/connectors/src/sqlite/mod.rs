//! SQLite: one file, read by many, written by one.
//!
//! Calls into SQLite block, so every connection lives on a named thread of its own ([`client`]) and takes work from a
//! queue; the runtime's threads never wait for a lock or a disk.
//!
//! What is particular here:
//! - There is one writer per file. A sink holds the write lock from its first write to its commit (`BEGIN IMMEDIATE`);
//!   another process that holds it makes us wait for `busy_timeout`, then [`SERVER_BUSY`] says to try again. A forgotten
//!   writer in this process is ended by whoever takes over its partitions; one in another process cannot be, so a stopped
//!   zombie has to be killed (the error names it). What it wrote is fenced in either case.
//! - A database that we create gets the journal mode WAL, so that readers and the writer do not wait for each other;
//!   an existing one keeps its mode. `synchronous` stays FULL unless configured: a commit survives a power cut.
//! - DDL is transactional, so prepare and publish are one transaction each.
//! - Triggers do not fire and foreign keys are not enforced while we write, as rows come from a database that has done
//!   both; after publishing, rows that lost their parent refuse the whole publication.
//! - How values keep their type is told in [`types`].
//!
//! [`SERVER_BUSY`]: synctool_core::error::code::SERVER_BUSY

mod apply;
mod catalog;
mod client;
mod compare;
mod control;
mod ddl;
mod destination;
mod hashes;
mod publish;
mod query;
mod settled;
mod sink;
mod slices;
mod source;
mod sql;
mod types;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// How hard a commit is pressed onto the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// A commit survives a power cut.
    #[default]
    Full,
    /// In WAL mode a power cut may take the last commits, whole; the database stays sound and the run goes on from there.
    Normal,
}

/// Where a SQLite database is and how to open it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SqliteConfig {
    /// The file.
    pub path: PathBuf,
    /// How long to wait for another process's lock.
    pub busy_timeout: Duration,
    /// How hard a commit is pressed onto the disk.
    pub synchronous: Synchronous,
    /// The page cache of a writing connection, in bytes.
    pub cache_bytes: usize,
}

impl SqliteConfig {
    /// The defaults for a file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        SqliteConfig {
            path: path.into(),
            busy_timeout: Duration::from_secs(10),
            synchronous: Synchronous::Full,
            cache_bytes: 16 << 20,
        }
    }
}

/// A SQLite database.
#[derive(Debug, Clone)]
pub struct Sqlite {
    config: Arc<SqliteConfig>,
}

impl Sqlite {
    /// Takes a config. Nothing is opened yet: a source complains about a missing file when it is used, a destination
    /// creates it when a plan is prepared.
    pub fn open(config: SqliteConfig) -> Result<Self> {
        let path = config.path.as_os_str();
        if path.is_empty() || path == ":memory:" {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("SQLite path {path:?} is not a file: every connection would see a database of its own"),
            )
            .hint("give the path of a database file"));
        }
        Ok(Sqlite {
            config: Arc::new(config),
        })
    }

    /// The database as a source.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(source::SqliteSource::new(self.config.clone()))
    }

    /// Refuses a file that cannot be read and written at the same time, as both ends of a pipeline are: outside of WAL
    /// the reader's lock would keep every commit waiting, for ever.
    pub async fn check_both_ends(&self) -> Result<()> {
        let mode: String = client::with_connection(&self.config, client::Access::Read, |conn| {
            conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))
                .map_err(client::failed(|| "reading the journal mode".into()))
        })
        .await?;
        if mode.eq_ignore_ascii_case("wal") {
            return Ok(());
        }
        let what =
            format!("one SQLite file is read and written, and in journal mode {mode} its writer waits for its readers");
        Err(Error::new(code::CONFIG_INVALID, what)
            .at("file", self.config.path.display().to_string())
            .hint("run `PRAGMA journal_mode = WAL` in it once (the file keeps the mode), or write into another file"))
    }

    /// The database as a destination.
    pub fn destination(&self) -> Arc<dyn Destination> {
        Arc::new(destination::SqliteDestination::new(self.config.clone()))
    }
}
