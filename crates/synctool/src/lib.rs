//! SyncTool: keeps tables in one place equal to tables in another.
//!
//! ```no_run
//! # async fn example() -> synctool::Result<()> {
//! let pipeline = synctool::Pipeline::load("pipeline.yaml")?;
//! pipeline.check().await?;
//! let run = pipeline.start(synctool::RunOptions::default()).await?;
//! println!("{} is at {:?}", run.id(), run.progress().step());
//! let report = run.finish().await?;
//! println!("{} rows inserted", report.ledger.outcome().inserted);
//! # Ok(())
//! # }
//! ```
//!
//! The command line (`cli`) is a thin layer over [`Pipeline`].

pub mod cli;
pub mod config;
pub mod datasync;
mod fault;
pub mod open;
pub mod pipeline;
pub mod state;

pub use pipeline::{Pipeline, Run, RunOptions, RunReport};
pub use synctool_core::error::{Error, Result};
