//! The archived log as a source of pipelines: what Data Sync does for a local PostgreSQL, for every destination that takes
//! changes.
//!
//! A *batch* of archived files is one transaction: [`ArchiveLog`] hands out the difference between the rows of the
//! scratch server before and after it has replayed them. What the rows were is on the disk before the gate opens
//! (`kept`); only the position is at the destination, in its own transaction. The gate opens for the next batch when
//! the one before is there durably, so whatever is killed, a batch is handed out again as it was. Between batches the
//! scratch server stands still, and chunks of tables are read there.

mod batch;
pub mod capture;
mod chunks;
mod kept;
mod position;
mod reader;
mod shape;
mod source;
mod world;

pub use source::ArchiveLog;
