//! Datastores that SyncTool reads from and writes to: one folder each, always the same file names.

pub mod sqlite;
