//! What can be wrong with a log.

use crate::lsn::Lsn;

/// The result of almost everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why bytes are not the log they should be. Every message names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The log ends here: nothing was ever written at this place. Natural in the newest segment of a running server,
    /// a sign of a half copied file anywhere else.
    #[error("the log ends at {at}")]
    EndOfLog {
        /// Where the next record would stand.
        at: Lsn,
    },
    /// A page of a server that is not supported.
    #[error("page {at} has the magic number {magic:#06X}: {what}; PostgreSQL 15 to 18 can be read")]
    Magic {
        /// The page.
        at: Lsn,
        /// What stands there.
        magic: u16,
        /// Which server that would be.
        what: &'static str,
    },
    /// A page header that cannot be.
    #[error("page {at}: {what}")]
    Page {
        /// The page.
        at: Lsn,
        /// What is wrong.
        what: String,
    },
    /// The pages belong to another server, major or segment size than those before.
    #[error("page {at} is foreign: {what} is {found}, not {expected}")]
    Foreign {
        /// The page.
        at: Lsn,
        /// Which mark differs.
        what: &'static str,
        /// What stands there.
        found: String,
        /// What should.
        expected: String,
    },
    /// A record whose checksum is wrong.
    #[error("record {at}: the checksum is {found:08X}, it should be {expected:08X}")]
    Checksum {
        /// Where the record starts.
        at: Lsn,
        /// The checksum in the record.
        found: u32,
        /// The checksum of what stands there.
        expected: u32,
    },
    /// A record that cannot be.
    #[error("record {at}: {what}")]
    Record {
        /// Where the record starts.
        at: Lsn,
        /// What is wrong.
        what: String,
    },
    /// Pages were handed over out of order.
    #[error("pages were expected from {expected} on, not from {found}")]
    OutOfOrder {
        /// The address that was due.
        expected: Lsn,
        /// The address that came.
        found: Lsn,
    },
    /// A text that is not what it should be: an LSN, a segment's name, a timeline's history.
    #[error("{what}: {text:?}")]
    Text {
        /// What it should be and is not.
        what: &'static str,
        /// What it is.
        text: String,
    },
}

impl Error {
    pub(crate) fn page(at: Lsn, what: impl Into<String>) -> Self {
        Error::Page { at, what: what.into() }
    }

    pub(crate) fn record(at: Lsn, what: impl Into<String>) -> Self {
        Error::Record { at, what: what.into() }
    }
}
