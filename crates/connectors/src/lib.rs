//! Datastores that SyncTool reads from and writes to: one folder each, the same file names wherever there is such a thing.

#[cfg(feature = "duckdb")]
pub mod duckdb;
mod logs;
pub mod mysql;
mod names;
pub mod object;
pub mod postgres;
pub mod sqlite;
mod strata;
pub mod walarchive;
