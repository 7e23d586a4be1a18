//! Datastores that SyncTool reads from and writes to: one folder each, always the same file names.

#[cfg(feature = "duckdb")]
pub mod duckdb;
mod logs;
pub mod mysql;
pub mod object;
pub mod postgres;
pub mod sqlite;
mod strata;
pub mod walarchive;
