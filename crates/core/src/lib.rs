//! The vocabulary and the engine of SyncTool. No driver, no SQL text, no HTTP; it names no database.
//!
//! Start at [`plan`] (what a run does), [`source`] and [`sink`] (the contracts), [`change`] (what flows between them)
//! and [`engine`] (the run loop, the only caller of `Sink::commit`).

pub mod backfill;
pub mod blocks;
pub mod budget;
pub mod change;
pub mod conform;
pub mod engine;
pub mod error;
pub mod failpoint;
pub mod keys;
pub mod ledger;
pub mod plan;
pub mod progress;
pub mod query;
pub mod retry;
pub mod rowhash;
pub mod schema;
pub mod select;
pub mod sink;
pub mod source;
pub mod stage;
pub mod strategy;
pub mod testing;
pub mod text;
pub mod written;
