//! DuckDB, through ADBC: `libduckdb.so` is loaded at run time, Arrow goes in and comes out.
//!
//! One process may have a database file open, and one writer works at a time. Loads are exactly once (data and
//! checkpoint in one transaction), and so are changes applied to tables directly.

mod apply;
mod destination;
mod hashes;
mod query;
mod session;
mod settled;
mod sink;
mod source;
mod sql;
mod types;

use session::Database;
use std::path::PathBuf;
use std::sync::Arc;
use synctool_core::error::Result;
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// Which database, and where its library is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DuckDbConfig {
    /// The database file.
    pub path: PathBuf,
    /// `libduckdb.so`; `None` looks at `SYNCTOOL_DUCKDB_LIBRARY`, then where the system's loader looks.
    pub library: Option<PathBuf>,
    /// Whether the file may be made: true for a destination.
    pub create: bool,
}

/// An open database. Cloning shares it.
#[derive(Debug, Clone)]
pub struct DuckDb {
    database: Arc<Database>,
}

impl DuckDb {
    /// Loads the library and opens the database. Errors: no library (with where to get it), no file, a file in use by
    /// another process, not a DuckDB file.
    pub async fn open(config: DuckDbConfig) -> Result<DuckDb> {
        Ok(DuckDb {
            database: Arc::new(Database::open(config).await?),
        })
    }

    /// The database as a source.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(source::DuckDbSource(self.clone()))
    }

    /// The database as a destination.
    pub fn destination(&self) -> Arc<dyn Destination> {
        Arc::new(destination::DuckDbDestination::new(self.clone()))
    }
}
