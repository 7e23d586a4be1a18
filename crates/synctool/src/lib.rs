//! SyncTool as a library: what the command line does, as values.

pub mod config;
pub mod state;
