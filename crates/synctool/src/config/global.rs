//! The global configuration: what holds for every pipeline of an installation.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::at::At;
use super::decode::{Anything, Later};
use super::error::ConfigError;
use super::secret::SecretUrl;
use super::units::{ByteSize, Span};

/// The global configuration with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Global {
    /// The file it came from; none = defaults alone.
    #[serde(skip)]
    pub file: Option<PathBuf>,
    /// Where everything is kept that the other keys do not place elsewhere.
    pub data_dir: At<PathBuf>,
    /// Where runs and their state are kept.
    pub state: State,
    /// Bytes that rows on their way may take.
    pub memory: At<ByteSize>,
    /// Partitions worked on at once.
    pub workers: At<u32>,
    /// The datastores file of pipelines that do not stand beside one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datastores_path: Option<At<PathBuf>>,
    /// Files for people and dashboards.
    pub storage: Storage,
    /// The queue.
    pub redis: Redis,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// Workers of the queue.
    pub worker: Worker,
    /// Building and deploying pipelines.
    pub build_system: BuildSystem,
    /// Calls to the scheduler.
    pub http: Http,
    /// How workers send their log.
    pub log_batching: LogBatching,
    /// Keys that were read and that this version does nothing with.
    #[serde(skip)]
    pub not_yet: Vec<super::decode::Notice>,
}

/// Where runs and their state are kept.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum State {
    /// In a file, for one host.
    Sqlite {
        /// The file.
        path: At<PathBuf>,
    },
    /// In PostgreSQL, for many.
    Postgres {
        /// A datastore by name.
        #[serde(skip_serializing_if = "Option::is_none")]
        datastore: Option<At<String>>,
        /// A URL.
        #[serde(skip_serializing_if = "Option::is_none")]
        url: Option<At<SecretUrl>>,
    },
}

/// Files for people and dashboards.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storage {
    /// State and history as JSON.
    pub state_dir: At<PathBuf>,
    /// Logs of runs.
    pub logs_dir: At<PathBuf>,
    /// Metrics of runs.
    pub metrics_dir: At<PathBuf>,
    /// Runs kept per strategy.
    pub max_runs_per_strategy: At<u32>,
}

/// The queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Redis {
    /// Where it is.
    pub url: At<SecretUrl>,
    /// Number of the database.
    pub db: At<u32>,
}

/// The scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Scheduler {
    /// Whether it runs.
    pub enabled: At<bool>,
    /// Port of its HTTP API.
    pub http_port: At<u16>,
    /// How often it looks for what is due.
    pub check_interval: At<Span>,
    /// How long a lock lives unless it is renewed.
    pub lock_timeout: At<Span>,
    /// Jobs at once, per class.
    pub slot_definitions: BTreeMap<String, At<u32>>,
}

/// Workers of the queue.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worker {
    /// Jobs at once.
    pub max_jobs: At<u32>,
    /// How long a job may take.
    pub job_timeout: At<Span>,
    /// How often a worker says that it lives.
    pub health_check_interval: At<Span>,
}

/// Building and deploying pipelines.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BuildSystem {
    /// Pipelines as users write them.
    pub user_config_dir: At<PathBuf>,
    /// Pipelines as they are deployed.
    pub built_config_dir: At<PathBuf>,
    /// Whether a starting scheduler builds.
    pub auto_build_on_startup: At<bool>,
    /// What happens where DDL is outstanding.
    pub ddl_check_on_build: At<DdlCheck>,
    /// What happens to the deployed pipeline when a build fails.
    pub on_build_failure: At<OnBuildFailure>,
    /// Whether deployed pipelines without a source are removed.
    pub remove_orphaned_configs: At<bool>,
    /// Whether a folder without pipelines is fine.
    pub allow_empty_source_dir: At<bool>,
    /// How long to wait for another build.
    pub build_lock_timeout: At<Span>,
}

/// Calls to the scheduler.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Http {
    /// How long a call may take.
    pub timeout: At<Span>,
    /// Tries after the first.
    pub max_retries: At<u32>,
}

/// How workers send their log.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LogBatching {
    /// Lines at once.
    pub batch_size: At<u32>,
    /// At the latest after.
    pub flush_interval: At<Span>,
}

/// What happens where DDL is outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DdlCheck {
    /// The pipeline waits for it.
    Required,
    /// A warning.
    Optional,
    /// Nobody looks.
    Skip,
}

/// What happens to the deployed pipeline when a build fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnBuildFailure {
    /// It stays.
    KeepOld,
    /// It goes.
    Remove,
}

// ---------------------------------------------------------------------------------------------------------------------
// The file

/// What holds for every pipeline of an installation. Paths are relative to the folder in which synctool is started.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool global configuration", deny_unknown_fields)]
#[serde(default)]
pub(super) struct GlobalFile {
    /// Where everything is kept that `storage` does not place elsewhere. Default: ./data.
    data_dir: Option<At<PathBuf>>,
    /// Where runs and their state are kept. Default: an SQLite file in the data directory.
    state: Option<At<StateFile>>,
    /// Bytes that rows on their way may take. Default: 256MiB.
    memory: Option<At<ByteSize>>,
    /// Partitions worked on at once. Default: 2.
    workers: Option<At<u32>>,
    /// The datastores file of pipelines that do not stand beside one.
    datastores_path: Option<At<PathBuf>>,
    storage: StorageFile,
    redis: RedisFile,
    /// The scheduler. Has no effect: it comes with a later version.
    scheduler: Option<Later<SchedulerFile>>,
    /// Workers of the queue. Has no effect: they come with a later version.
    worker: Option<Later<WorkerFile>>,
    build_system: BuildSystemFile,
    /// Calls to the scheduler. Has no effect: it comes with a later version.
    http: Option<Later<HttpFile>>,
    /// How workers send their log. Has no effect: they come with a later version.
    log_batching: Option<Later<LogBatchingFile>>,
    config_manager: Option<Later<Anything>>,
}

/// Where runs and their state are kept.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(tag = "type")]
enum StateFile {
    /// In a file, for one host.
    Sqlite(SqliteState),
    /// In PostgreSQL, for many.
    Postgres(PostgresState),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct SqliteState {
    /// The file. Default: state.db in the data directory.
    path: Option<At<PathBuf>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct PostgresState {
    /// A datastore by name.
    datastore: Option<At<String>>,
    /// A URL, in place of a datastore.
    url: Option<At<SecretUrl>>,
}

/// Files for people and dashboards.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct StorageFile {
    /// State and history as JSON. Default: pipeline_states in the data directory.
    state_dir: Option<At<PathBuf>>,
    /// Logs of runs. Default: logs in the data directory.
    logs_dir: Option<At<PathBuf>>,
    /// Metrics of runs. Default: metrics in the data directory.
    metrics_dir: Option<At<PathBuf>>,
    /// Runs kept per strategy. Default: 50.
    max_runs_per_strategy: Option<At<u32>>,
}

/// The queue.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct RedisFile {
    /// Default: redis://localhost:6379.
    url: Option<At<SecretUrl>>,
    /// Number of the database. Default: that of the URL, else 0.
    db: Option<At<u32>>,
    /// Another name of `db`.
    database: Option<At<u32>>,
}

/// The scheduler.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct SchedulerFile {
    /// Default: true.
    enabled: Option<At<bool>>,
    /// Port of its HTTP API. Default: 8001.
    http_port: Option<At<u16>>,
    /// How often it looks for what is due. Default: 60s.
    check_interval: Option<At<Span>>,
    /// Another name of `check_interval`.
    schedule_interval: Option<At<Span>>,
    /// How long a lock lives unless it is renewed. Default: 1h.
    lock_timeout: Option<At<Span>>,
    /// Jobs at once, per class.
    slot_definitions: BTreeMap<String, At<u32>>,
}

/// Workers of the queue.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct WorkerFile {
    /// Jobs at once. Default: 4.
    max_jobs: Option<At<u32>>,
    /// How long a job may take. Default: 1h.
    job_timeout: Option<At<Span>>,
    /// How often a worker says that it lives. Default: 30s.
    health_check_interval: Option<At<Span>>,
}

/// Building and deploying pipelines: comes with a later version. `user_config_dir` and `datastores_path` count already.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct BuildSystemFile {
    /// Pipelines as users write them. Default: ./pipelines.
    user_config_dir: Option<At<PathBuf>>,
    /// Pipelines as they are deployed. Default: ./built.
    built_config_dir: Option<At<PathBuf>>,
    /// The datastores file of pipelines that do not stand beside one.
    datastores_path: Option<At<PathBuf>>,
    /// Whether a starting scheduler builds. Default: true.
    auto_build_on_startup: Option<At<bool>>,
    /// What happens where DDL is outstanding. Default: required.
    ddl_check_on_build: Option<At<DdlCheck>>,
    /// What happens to the deployed pipeline when a build fails. Default: keep_old.
    on_build_failure: Option<At<OnBuildFailure>>,
    /// Whether deployed pipelines without a source are removed. Default: true.
    remove_orphaned_configs: Option<At<bool>>,
    /// Whether a folder without pipelines is fine. Default: false.
    allow_empty_source_dir: Option<At<bool>>,
    /// How long to wait for another build. Default: 30s.
    build_lock_timeout: Option<At<Span>>,
}

/// Calls to the scheduler.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct HttpFile {
    /// How long a call may take. Default: 5s.
    timeout: Option<At<Span>>,
    /// Tries after the first. Default: 3.
    max_retries: Option<At<u32>>,
}

/// How workers send their log.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[serde(default)]
struct LogBatchingFile {
    /// Lines at once. Default: 50.
    batch_size: Option<At<u32>>,
    /// At the latest after. Default: 2s.
    flush_interval: Option<At<Span>>,
}

/// One notice for all keys of `build_system` that nothing uses yet.
fn unheard_build(file: &BuildSystemFile) -> Option<super::decode::Notice> {
    let unheard = [
        file.built_config_dir.as_ref().map(|key| key.with(())),
        file.auto_build_on_startup.as_ref().map(|key| key.with(())),
        file.ddl_check_on_build.as_ref().map(|key| key.with(())),
        file.on_build_failure.as_ref().map(|key| key.with(())),
        file.remove_orphaned_configs.as_ref().map(|key| key.with(())),
        file.allow_empty_source_dir.as_ref().map(|key| key.with(())),
        file.build_lock_timeout.as_ref().map(|key| key.with(())),
    ];
    let first = unheard.into_iter().flatten().next()?;
    let message = "build_system has no effect but for user_config_dir and datastores_path: building and deploying \
                   pipelines comes with a later version";
    super::decode::Notice::at(&first, "build_system", message.into())
}

/// Where the queue is. Its database may stand in the URL or beside it, and not differently in both.
fn redis(file: RedisFile, errors: &mut Vec<ConfigError>) -> Redis {
    let url = file
        .url
        .unwrap_or_else(|| SecretUrl::new("redis://localhost:6379").into());
    let of_url = database_of(url.reveal());
    let said = file.db.or(file.database);
    if let (Some(said), Some(named)) = (&said, of_url)
        && **said != named
    {
        errors.push(
            said.error(format!(
                "redis.db is {}, and redis.url names database {named}",
                said.shown()
            ))
            .with_help("name it in one place"),
        );
    }
    let db = said.or_else(|| of_url.map(|named| url.with(named))).unwrap_or_default();
    Redis { url, db }
}

/// The number of the database that a URL of Redis names.
fn database_of(url: &str) -> Option<u32> {
    let url = url.split_once('#').map_or(url, |(url, _)| url);
    let (place, query) = url.split_once('?').unwrap_or((url, ""));
    let (scheme, rest) = place.split_once("://")?;
    let named = match scheme.ends_with("unix") {
        true => query.split('&').find_map(|pair| pair.strip_prefix("db="))?,
        false => rest.split_once('/')?.1.trim_matches('/'),
    };
    named.parse().ok()
}

impl Redis {
    /// The URL with the number of the database in it.
    pub fn url_of_database(&self) -> String {
        let url = self.url.reveal();
        if *self.db == 0 || database_of(url).is_some() {
            return url.to_owned();
        }
        let (place, more) = url.split_at(url.find(['?', '#']).unwrap_or(url.len()));
        let of_socket = place
            .split_once("://")
            .is_some_and(|(scheme, _)| scheme.ends_with("unix"));
        match (of_socket, more.strip_prefix('?')) {
            (false, _) => format!("{}/{}{more}", place.trim_end_matches('/'), *self.db),
            (true, Some(query)) => format!("{place}?db={}&{query}", *self.db),
            (true, None) => format!("{place}?db={}{more}", *self.db),
        }
    }
}

/// Fills in the defaults. `data_dir` is the command line's and outranks everything the file places.
pub(super) fn resolve(
    file: GlobalFile,
    path: Option<PathBuf>,
    data_dir: Option<&Path>,
    mut not_yet: Vec<super::decode::Notice>,
    errors: &mut Vec<ConfigError>,
) -> Global {
    fn or<T>(value: Option<At<T>>, default: T) -> At<T> {
        value.unwrap_or_else(|| default.into())
    }
    fn heard<T: Default>(section: Option<Later<T>>) -> T {
        section.map_or_else(T::default, |section| section.0)
    }
    let (scheduler, worker) = (heard(file.scheduler), heard(file.worker));
    let (http, log_batching) = (heard(file.http), heard(file.log_batching));
    not_yet.extend(unheard_build(&file.build_system));
    let from_command_line = data_dir.is_some();
    let data_dir = match data_dir {
        Some(dir) => dir.to_owned().into(),
        None => or(file.data_dir, PathBuf::from("./data")),
    };
    let below = |named: Option<At<PathBuf>>, name: &str| match named {
        Some(path) if !from_command_line => path,
        _ => data_dir.with(data_dir.join(name)),
    };
    let state = match file.state {
        None => State::Sqlite {
            path: below(None, "state.db"),
        },
        Some(state) => {
            let place = state.with(());
            match state.into_inner() {
                StateFile::Sqlite(sqlite) => State::Sqlite {
                    path: below(sqlite.path, "state.db"),
                },
                StateFile::Postgres(postgres) => {
                    if postgres.datastore.is_some() == postgres.url.is_some() {
                        errors.push(place.error("state of type postgres needs either datastore or url"));
                    }
                    if let Some(url) = &postgres.url
                        && let Err(message) = super::uri::postgres(url.reveal())
                    {
                        errors.push(url.error(format!("state.url: {message}")));
                    }
                    State::Postgres {
                        datastore: postgres.datastore,
                        url: postgres.url,
                    }
                }
            }
        }
    };
    for (one, other, names) in [
        (
            file.build_system.datastores_path.as_ref().map(|p| p.with(())),
            file.datastores_path.is_some(),
            "datastores_path and build_system.datastores_path",
        ),
        (
            file.redis.database.as_ref().map(|p| p.with(())),
            file.redis.db.is_some(),
            "redis.db and redis.database",
        ),
        (
            scheduler.schedule_interval.as_ref().map(|p| p.with(())),
            scheduler.check_interval.is_some(),
            "scheduler.check_interval and scheduler.schedule_interval",
        ),
    ] {
        if let (Some(place), true) = (one, other) {
            errors.push(place.error(format!("{names} are the same key")));
        }
    }
    for (key, value) in [("workers", &file.workers), ("worker.max_jobs", &worker.max_jobs)] {
        if let Some(zero) = value.as_ref().filter(|n| ***n == 0) {
            errors.push(zero.error(format!("{key} must be at least 1")));
        }
    }
    if let Some(memory) = file.memory.as_ref().filter(|m| m.0 < 16 << 20) {
        errors.push(memory.error("memory must be at least 16MiB"));
    }
    let redis = redis(file.redis, errors);
    Global {
        file: path,
        state,
        memory: or(file.memory, ByteSize::mib(256)),
        workers: or(file.workers, 2),
        datastores_path: file.datastores_path.or(file.build_system.datastores_path),
        storage: Storage {
            state_dir: below(file.storage.state_dir, "pipeline_states"),
            logs_dir: below(file.storage.logs_dir, "logs"),
            metrics_dir: below(file.storage.metrics_dir, "metrics"),
            max_runs_per_strategy: or(file.storage.max_runs_per_strategy, 50),
        },
        redis,
        scheduler: Scheduler {
            enabled: or(scheduler.enabled, true),
            http_port: or(scheduler.http_port, 8001),
            check_interval: or(
                scheduler.check_interval.or(scheduler.schedule_interval),
                Span::seconds(60),
            ),
            lock_timeout: or(scheduler.lock_timeout, Span::seconds(3600)),
            slot_definitions: scheduler.slot_definitions,
        },
        worker: Worker {
            max_jobs: or(worker.max_jobs, 4),
            job_timeout: or(worker.job_timeout, Span::seconds(3600)),
            health_check_interval: or(worker.health_check_interval, Span::seconds(30)),
        },
        build_system: BuildSystem {
            user_config_dir: or(file.build_system.user_config_dir, "./pipelines".into()),
            built_config_dir: or(file.build_system.built_config_dir, "./built".into()),
            auto_build_on_startup: or(file.build_system.auto_build_on_startup, true),
            ddl_check_on_build: or(file.build_system.ddl_check_on_build, DdlCheck::Required),
            on_build_failure: or(file.build_system.on_build_failure, OnBuildFailure::KeepOld),
            remove_orphaned_configs: or(file.build_system.remove_orphaned_configs, true),
            allow_empty_source_dir: or(file.build_system.allow_empty_source_dir, false),
            build_lock_timeout: or(file.build_system.build_lock_timeout, Span::seconds(30)),
        },
        http: Http {
            timeout: or(http.timeout, Span::seconds(5)),
            max_retries: or(http.max_retries, 3),
        },
        log_batching: LogBatching {
            batch_size: or(log_batching.batch_size, 50),
            flush_interval: or(log_batching.flush_interval, Span::seconds(2)),
        },
        data_dir,
        not_yet,
    }
}
