//! Production's archived log and base backups: files that others write, read without touching production.
//!
//! [`Archive`] is where the files are; [`Follower`] hands on segment after segment, each only when it is whole, checked
//! and in sequence. [`Scratch`] is a server that replays exactly what it is given, so that rows can be read at a known place
//! of production's log. [`Scan`] says which rows committed transactions touched between two places.
//! [`DataSync`] brings them to a local database, where [`Board`] shows what it does and takes requests; [`ArchiveLog`] is
//! the same as a source of pipelines.

pub mod archive;
pub mod base;
pub mod batch;
pub mod board;
pub mod bucket;
pub mod compression;
pub mod control;
mod ddl;
pub mod examine;
pub mod follow;
pub mod journal;
pub mod log;
pub mod names;
mod readable;
pub mod replay;
mod room;
pub mod scratch;
mod silence;
mod sql;
pub mod sync;
mod tables;
pub mod touched;

pub use archive::{Archive, Brought, Listing, Segment, Trouble};
pub use base::Backup;
pub use batch::{Batch, Changes, Scan};
pub use board::Board;
pub use bucket::{Bucket, BucketConfig};
pub use follow::{Follower, Next, Waiting};
pub use log::ArchiveLog;
pub use names::Kind;
pub use replay::ReplayConfig;
pub use scratch::{Scratch, ScratchConfig};
use silence::silence;
pub use sync::{Claim, Compared, DataSync, Step, SyncConfig};
pub use touched::Room;
