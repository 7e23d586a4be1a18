//! SyncTool: keeps tables in one place equal to tables in another.

pub mod config;
