//! Production's archived log and base backups: files that others write, read without touching production.
//!
//! [`Archive`] is where the files are; [`Follower`] hands on segment after segment, each only when it is whole, checked
//! and in sequence. Nothing else of SyncTool reads an archive.

pub mod archive;
pub mod compression;
pub mod follow;
pub mod names;

pub use archive::{Archive, Listing, Segment, Trouble};
pub use follow::{Follower, Next, Waiting};
pub use names::Kind;
