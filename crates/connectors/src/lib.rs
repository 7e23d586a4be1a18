//! Datastores that SyncTool reads from and writes to: one folder each, always the same file names.
//! Datastores: one folder each, the same file names everywhere.

#[cfg(feature = "duckdb")]
pub mod duckdb;
pub mod object;
pub mod postgres;
pub mod sqlite;
