//! Write-ahead log of PostgreSQL 15 to 18: bytes in, records out. No I/O, no async, no allocation per record.
//!
//! Four layers, each usable alone:
//!
//! * [`Decoder`] takes pages in order and gives whole, verified [`Record`]s, wherever they cross pages and segments.
//! * [`Record::parse`] finds the block references and the data of a record; page images are skipped, not unpacked.
//! * [`Meaning::of`] says what a record does to rows, files and transactions.
//! * [`Scanner`] keeps what each transaction touched until it commits, and forgets it when it aborts.
//!
//! Formats differ between majors; [`Major`] is told by the magic number of every page, and any other is refused by
//! name. Nothing here trusts a length: a wrong byte is an [`Error`], never a panic.

mod bytes;
mod checksum;
mod decode;
mod error;
mod lsn;
mod meaning;
mod page;
mod record;
mod rmgr;
mod scanner;
mod segment;
mod stats;
mod xact;

pub use decode::{Decoder, Feed};
pub use error::{Error, Result};
pub use lsn::Lsn;
pub use meaning::{Meaning, Parameters, RelFile, Running, Touch, Touched, TruncatedTables, WalLevel};
pub use page::{Identity, Major, PAGE_SIZE, PageHeader};
pub use record::{Block, Fork, Image, Parts, Record};
pub use rmgr::{Rmgr, kind};
pub use scanner::{Committed, Counts, Event, Overflow, Row, Scanner};
pub use segment::{Fork as TimelineFork, History, SegmentName, SegmentSize};
pub use stats::{Count, Stats};
pub use xact::{End, Prepared, Timestamp};
