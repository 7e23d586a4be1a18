//! MariaDB and MySQL, read by query or by log ([`log`], MariaDB only) and written by LOAD DATA or INSERT.
//!
//! [`Mysql`] is one server and database with its limit of connections. What is particular here:
//! - A database is a schema: a table's schema is its database, and the control tables (`_synctool_*`) stand in the
//!   connection's database unless `control_schema` names another.
//! - DDL commits by itself. So load tables are made before a plan is stored; publishing notes what it will do before it
//!   renames a table and can be repeated at every step; columns are added only outside of a transaction.
//! - A session is known to its successor by a named lock that it holds (`GET_LOCK`): whoever takes over its work finds
//!   the connection by the lock, ends it, and waits until the lock is free. A reused connection id is never ended.
//! - Every session has the time zone UTC, strict mode and utf8mb4. Foreign keys are not checked while we write, as rows
//!   come from a database that has done so; triggers cannot be switched off and do fire.
//! - What a type cannot say in MySQL's words (a uuid, an instant beyond 2038, an unbounded numeric) stands in the column's
//!   comment as `synctool:<type>`, so that it comes back as what it was ([`types`]).

mod apply;
mod catalog;
mod client;
mod control;
mod ddl;
mod destination;
mod errors;
mod examine;
mod hashes;
mod load;
mod locks;
pub mod log;
mod merge;
mod publish;
mod settled;
mod sink;
mod slices;
mod source;
mod sql;
mod types;

pub use client::Mysql;

pub use crate::postgres::SslMode;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::Result;
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// The engine's name: type names in `Column::source_type` are MySQL's if the source says this.
pub const ENGINE: &str = "mysql";

/// How rows are written into load tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LoadPath {
    /// By LOAD DATA LOCAL INFILE where the server allows it, else by INSERT.
    #[default]
    Auto,
    /// By LOAD DATA LOCAL INFILE.
    Infile,
    /// By INSERT of many rows at once.
    Insert,
}

/// How to reach a MariaDB or MySQL database.
#[derive(Clone)]
pub struct MysqlConfig {
    /// A host name or an address.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The user.
    pub user: String,
    /// The password, where the server asks for one.
    pub password: Option<String>,
    /// The database; where tables without a schema in their name are looked for.
    pub database: String,
    /// Encryption and trust.
    pub sslmode: SslMode,
    /// The certificates of trusted authorities; without it the usual public ones.
    pub sslrootcert: Option<PathBuf>,
    /// Our own certificate.
    pub sslcert: Option<PathBuf>,
    /// The key of our own certificate.
    pub sslkey: Option<PathBuf>,
    /// How long making a connection, or waiting for a free one, may take.
    pub connect_timeout: Duration,
    /// Connections open at the same time.
    pub max_connections: usize,
    /// The database of the control tables; the connection's where left out.
    pub control_schema: Option<String>,
    /// How rows are written into load tables.
    pub load: LoadPath,
}

impl fmt::Debug for MysqlConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MysqlConfig")
            .field("server", &self.server())
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("sslmode", &self.sslmode)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

impl MysqlConfig {
    /// A database of a server, with everything else as usual.
    pub fn new(host: impl Into<String>, port: u16, user: impl Into<String>, database: impl Into<String>) -> Self {
        MysqlConfig {
            host: host.into(),
            port,
            user: user.into(),
            password: None,
            database: database.into(),
            sslmode: SslMode::default(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_secs(10),
            max_connections: 10,
            control_schema: None,
            load: LoadPath::Auto,
        }
    }

    /// Host, port and database, for messages.
    pub fn server(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }
}

impl Mysql {
    /// The database as a source.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(source::MysqlSource::new(self.clone()))
    }

    /// The database as a destination. Connects once to learn what kind of server it is.
    pub async fn destination(&self) -> Result<Arc<dyn Destination>> {
        Ok(Arc::new(destination::MysqlDestination::open(self.clone()).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden() {
        let mut config = MysqlConfig::new("h", 3306, "u", "d");
        config.password = Some("sesame".into());
        assert!(!format!("{config:?}").contains("sesame"));
    }
}
