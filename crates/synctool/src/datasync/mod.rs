//! Data Sync: production's tables in a local PostgreSQL, from archived log alone. The work itself is
//! [`synctool_connectors::walarchive`]; here are its configuration's meaning and the service that goes on and on.

mod service;

pub use service::{Served, Service};

use crate::config::DataSync as Config;
use crate::open;
use synctool_connectors::postgres::PostgresConfig;
use synctool_connectors::walarchive::{ReplayConfig, SyncConfig};
use synctool_core::error::Result;
use tokio_util::sync::CancellationToken;

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
    let replay = open::replay(&config.wal, &config.production_database);
    let replay = replay.map_err(|e| e.at("config", config.file.display().to_string()))?;
    Ok(SyncConfig {
        replay: ReplayConfig {
            // Whoever is started for each look counts as the service does, however often that is.
            pace: config.frequency / 2,
            ..replay
        },
        local: local(config),
        metric_hours: config.metric_hours,
        copy_jobs: config.copy_jobs,
        copy_range: config.copy_range << 20,
        stop: CancellationToken::new(),
    })
}

/// This machine's name.
pub fn host() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
