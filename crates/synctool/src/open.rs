//! From configured datastores to open connectors, and from the global configuration to the program's memory.

use crate::config::{ArchivePlace, BackupPlace, Connection, Datastore, Datastores, Global, State, WalArchive};
use crate::pipeline::followed::Log;
use crate::state::{Outputs, PostgresStore, SqliteStore, Store};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use synctool_connectors::mysql::{Mysql, MysqlConfig};
use synctool_connectors::object::{CsvOptions, Format, ObjectConfig, Objects, ParquetOptions};
use synctool_connectors::postgres::log::LogOptions;
use synctool_connectors::postgres::{DestinationOptions, Postgres, PostgresConfig, PostgresDestination, SslMode};
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_connectors::walarchive::{Archive, ArchiveLog, Backup, Bucket, BucketConfig, ReplayConfig, ScratchConfig};
use synctool_core::error::{Error, Result, code};
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// Connections beside those of the workers: catalogs, statistics, a held snapshot, control tables.
const EXTRA_CONNECTIONS: usize = 3;

/// Connections that following a log needs beside those: chunks, heartbeats, looks at its end and at the catalog.
const LOG_CONNECTIONS: usize = 4;

/// How long one file of an archive may take to be fetched.
const FETCH: Duration = Duration::from_secs(600);
/// How long a scratch server may take to start or to stop.
const START: Duration = Duration::from_secs(300);
/// Touched rows that are kept in memory: some tens of megabytes.
const TOUCHED_ROWS: usize = 1 << 20;

/// Opens a datastore for reading. `workers` partitions may be read at once.
pub async fn source(datastore: &Datastore, workers: usize) -> Result<Arc<dyn Source>> {
    let opened: Result<Arc<dyn Source>> = async {
        Ok(match &datastore.connection {
            Connection::Postgres(p) => Arc::new(postgres(p, workers)?.source()),
            Connection::Mysql(m) => mysql(m, None, workers)?.source(),
            Connection::Sqlite { path } => sqlite(path)?.source(),
            Connection::Csv { .. } | Connection::Parquet { .. } => objects(datastore)?.source(),
            Connection::WalArchive(a) => {
                let replay = replay(&a.wal, &a.database)?;
                Arc::new(ArchiveLog::standing(replay, a.schema.as_str()).await?)
            }
            #[cfg(feature = "duckdb")]
            Connection::DuckDb { path, library } => duckdb(path, library.as_deref(), false).await?.source(),
            other => return Err(unsupported(other)),
        })
    }
    .await;
    opened.map_err(|e| e.at("datastore", &datastore.name))
}

/// Opens a datastore for writing. `control_schema` is where SyncTool's own tables stand, where the user moved them.
pub async fn destination(
    datastore: &Datastore,
    control_schema: Option<&str>,
    workers: usize,
) -> Result<Arc<dyn Destination>> {
    let opened: Result<Arc<dyn Destination>> = async {
        Ok(match &datastore.connection {
            Connection::Postgres(p) => {
                let mut options = DestinationOptions::default();
                if let Some(schema) = control_schema {
                    schema.clone_into(&mut options.control_schema);
                }
                Arc::new(PostgresDestination::open(postgres(p, workers)?, options).await?)
            }
            Connection::Mysql(m) => mysql(m, control_schema, workers)?.destination().await?,
            Connection::Sqlite { path } => sqlite(path)?.destination(),
            Connection::Csv { .. } | Connection::Parquet { .. } => objects(datastore)?.destination(),
            #[cfg(feature = "duckdb")]
            Connection::DuckDb { path, library } => duckdb(path, library.as_deref(), true).await?.destination(),
            other => return Err(unsupported(other)),
        })
    }
    .await;
    opened.map_err(|e| e.at("datastore", &datastore.name))
}

/// Refuses two ends that would wait for each other: one SQLite file, unless it is in WAL mode.
pub async fn check_ends(source: &Datastore, destination: &Datastore) -> Result<()> {
    let (Connection::Sqlite { path: from }, Connection::Sqlite { path: to }) =
        (&source.connection, &destination.connection)
    else {
        return Ok(());
    };
    match (from.canonicalize(), to.canonicalize()) {
        (Ok(one), Ok(other)) if one == other => sqlite(from)?.check_both_ends().await,
        _ => Ok(()),
    }
}

/// Opens the log of a datastore. `workers` connections besides those of the log itself may be needed at once.
pub fn log(datastore: &Datastore, options: LogOptions, workers: usize) -> Result<Log> {
    match &datastore.connection {
        Connection::Postgres(p) => {
            let log = postgres(p, workers + LOG_CONNECTIONS)?.log(options);
            log.map(|log| Log::Postgres(Arc::new(log)))
        }
        Connection::Mysql(m) => {
            let log = mysql(m, None, workers + LOG_CONNECTIONS)?.log(options);
            log.map(|log| Log::Mysql(Arc::new(log)))
        }
        Connection::WalArchive(a) => replay(&a.wal, &a.database)
            .and_then(|replay| ArchiveLog::new(replay, a.schema.as_str(), a.frequency.0, options))
            .map(|log| Log::Archive(Arc::new(log.expecting(a.archive_interval.0)))),
        other => Err(Error::new(
            code::UNSUPPORTED,
            format!("the log of {} cannot be followed", other.type_name()),
        )
        .hint("a source of type postgres, mariadb or wal_archive has a log")),
    }
    .map_err(|e| e.at("datastore", &datastore.name))
}

/// How a scratch server follows an archive.
pub(crate) fn replay(wal: &WalArchive, database: &str) -> Result<ReplayConfig> {
    Ok(ReplayConfig {
        archive: match &wal.archive {
            ArchivePlace::Directory(directory) => Archive::Directory(directory.clone()),
            ArchivePlace::Command(command) => Archive::Command {
                command: command.clone(),
                scratch: wal.scratch_dir.join("fetched"),
                timeout: FETCH,
            },
            ArchivePlace::Bucket(place) => Archive::Bucket {
                bucket: Bucket::new(&BucketConfig {
                    url: place.url.clone(),
                    endpoint: place.endpoint.clone(),
                    region: place.region.clone(),
                    keys: place
                        .keys
                        .as_ref()
                        .map(|(key, secret)| (key.clone(), secret.reveal().to_owned())),
                })?,
                scratch: wal.scratch_dir.join("fetched"),
            },
        },
        backup: match &wal.backup {
            BackupPlace::Files(path) => Backup::Files(path.clone()),
            BackupPlace::Command(command) => Backup::Command(command.clone()),
        },
        scratch: ScratchConfig {
            directory: wal.scratch_dir.clone(),
            bin_dir: bin_dir(wal)?,
            user: Some(wal.scratch_user.clone()),
            role: wal.scratch_role.clone(),
            patience: START,
        },
        database: database.to_owned(),
        batch_segments: wal.batch_segments as usize,
        patience: wal.patience,
        pace: Duration::ZERO,
        replay_patience: wal.replay_timeout.0,
        touched_rows: TOUCHED_ROWS,
    })
}

/// Where PostgreSQL's programs are: as configured, else of the backup's version where packages put them, else on the
/// PATH.
fn bin_dir(wal: &WalArchive) -> Result<PathBuf> {
    if let Some(directory) = &wal.bin_dir {
        return Ok(directory.clone());
    }
    let mut versions = vec![wal.scratch_dir.join("data/PG_VERSION")];
    if let BackupPlace::Files(path) = &wal.backup {
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
            .hint("set pg_bin_dir to the directory with postgres and pg_ctl of production's major version")
    })
}

fn unsupported(connection: &Connection) -> Error {
    let error = Error::new(
        code::UNSUPPORTED,
        format!("this build of SyncTool cannot open {}", connection.type_name()),
    );
    match connection {
        Connection::DuckDb { .. } => error.hint("build it with: cargo build --features duckdb"),
        Connection::WalArchive(_) => error.hint("an archive is read only: name it as the source"),
        _ => error.hint("this build opens postgres, mysql, sqlite, csv and parquet"),
    }
}

fn sqlite(path: &Path) -> Result<Sqlite> {
    Sqlite::open(SqliteConfig::new(path))
}

#[cfg(feature = "duckdb")]
async fn duckdb(
    path: &Path,
    library: Option<&std::path::PathBuf>,
    create: bool,
) -> Result<synctool_connectors::duckdb::DuckDb> {
    let config = synctool_connectors::duckdb::DuckDbConfig {
        path: path.to_owned(),
        library: library.cloned(),
        create,
    };
    synctool_connectors::duckdb::DuckDb::open(config).await
}

fn objects(datastore: &Datastore) -> Result<Objects> {
    let (path, format) = match &datastore.connection {
        Connection::Csv { path, options } => {
            let format = Format::Csv(CsvOptions {
                delimiter: options.delimiter,
                quote: options.quote,
                header: options.header,
                // Left out, an empty field is NULL and a quoted empty one is the empty text.
                null: Some(options.null.clone()).filter(|null| !null.is_empty()),
                infer: true,
            });
            (path, format)
        }
        Connection::Parquet { path } => (path, Format::Parquet(ParquetOptions::default())),
        _ => return Err(Error::bug("not a datastore of files")),
    };
    Objects::open(ObjectConfig {
        path: path.to_path_buf(),
        format,
    })
}

pub(crate) fn sslmode(mode: crate::config::SslMode) -> SslMode {
    match mode {
        crate::config::SslMode::Disable => SslMode::Disable,
        crate::config::SslMode::Prefer => SslMode::Prefer,
        crate::config::SslMode::Require => SslMode::Require,
        crate::config::SslMode::VerifyCa => SslMode::VerifyCa,
        crate::config::SslMode::VerifyFull => SslMode::VerifyFull,
    }
}

fn mysql(m: &crate::config::Mysql, control_schema: Option<&str>, workers: usize) -> Result<Mysql> {
    let mut config = MysqlConfig::new(m.host.as_str(), *m.port, m.user.as_str(), m.database.as_str());
    config.password = m.password.as_ref().map(|secret| secret.reveal().to_owned());
    config.sslmode = sslmode(*m.sslmode);
    config.sslrootcert = m.sslrootcert.as_deref().cloned();
    config.sslcert = m.sslcert.as_deref().cloned();
    config.sslkey = m.sslkey.as_deref().cloned();
    config.connect_timeout = m.connect_timeout.0;
    config.max_connections = (*m.max_connections as usize).max(workers + EXTRA_CONNECTIONS);
    config.control_schema = control_schema.map(str::to_owned);
    Mysql::open(config)
}

fn postgres(p: &crate::config::Postgres, workers: usize) -> Result<Postgres> {
    let mut config = PostgresConfig::new(p.host.as_str(), *p.port, p.user.as_str(), p.database.as_str());
    config.password = p.password.as_ref().map(|secret| secret.reveal().to_owned());
    config.schema = p.schema.to_string();
    config.sslmode = sslmode(*p.sslmode);
    config.sslrootcert = p.sslrootcert.as_deref().cloned();
    config.sslcert = p.sslcert.as_deref().cloned();
    config.sslkey = p.sslkey.as_deref().cloned();
    config.connect_timeout = p.connect_timeout.0;
    if let Some(timeout) = p.tcp_user_timeout.as_deref() {
        config.tcp_user_timeout = Some(timeout.0).filter(|t| !t.is_zero());
    }
    config.statement_timeout = p.statement_timeout.as_deref().map(|span| span.0);
    config.application_name = p.application_name.to_string();
    config.max_connections = (*p.max_connections as usize).max(workers + EXTRA_CONNECTIONS);
    Postgres::open(config)
}

/// What the program remembers between runs, and the files that mirror it.
#[derive(Clone)]
pub struct Memory {
    /// Runs, locks, private areas.
    pub store: Arc<dyn Store>,
    /// JSON files and logs.
    pub outputs: Outputs,
}

/// Opens the memory that the global configuration names; it is made if it is not there.
pub async fn memory(global: &Global, datastores: &Datastores) -> Result<Memory> {
    let store: Arc<dyn Store> = match &global.state {
        State::Sqlite { path } => Arc::new(SqliteStore::open_file(path).await?),
        State::Postgres { datastore, url } => {
            let server = match (datastore, url) {
                (Some(name), _) => datastores.get(name)?.clone(),
                (None, Some(url)) => Datastore::from_uri(url.reveal())?,
                (None, None) => return Err(Error::bug("a state store without a place")),
            };
            let Connection::Postgres(server) = &server.connection else {
                return Err(Error::new(
                    code::CONFIG_INVALID,
                    "the datastore of the state store is not PostgreSQL",
                )
                .hint("set state: {type: sqlite}, or name a datastore of type postgres"));
            };
            Arc::new(PostgresStore::open(postgres(server, 1)?, None).await?)
        }
    };
    Ok(Memory {
        store,
        outputs: outputs(global),
    })
}

/// The same for a look: a memory that was never made is not made for it.
pub async fn memory_if_any(global: &Global, datastores: &Datastores) -> Result<Option<Memory>> {
    match &global.state {
        State::Sqlite { path } if !path.exists() => Ok(None),
        _ => memory(global, datastores).await.map(Some),
    }
}

fn outputs(global: &Global) -> Outputs {
    Outputs {
        state_dir: global.storage.state_dir.to_path_buf(),
        metrics_dir: global.storage.metrics_dir.to_path_buf(),
        logs_dir: global.storage.logs_dir.to_path_buf(),
        keep_runs: *global.storage.max_runs_per_strategy as usize,
    }
}
