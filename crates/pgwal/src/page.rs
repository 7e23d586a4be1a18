//! Page headers: who wrote a page, and where it belongs.

use crate::bytes::Bytes;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::segment::SegmentSize;
use std::fmt;

/// Bytes of a page of the log. A server can be built with another size; such pages are refused.
pub const PAGE_SIZE: usize = 8192;

const SHORT_HEADER: usize = 24;
const LONG_HEADER: usize = 40;

const FIRST_IS_CONTRECORD: u16 = 0x0001;
const LONG: u16 = 0x0002;
const FIRST_IS_OVERWRITE: u16 = 0x0008;
const ALL_FLAGS: u16 = 0x000F;

/// A major version whose log can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Major {
    /// PostgreSQL 15.
    V15,
    /// PostgreSQL 16.
    V16,
    /// PostgreSQL 17.
    V17,
    /// PostgreSQL 18.
    V18,
}

impl Major {
    /// Every version, the oldest first.
    pub const ALL: [Major; 4] = [Major::V15, Major::V16, Major::V17, Major::V18];

    /// The number.
    pub fn number(self) -> u8 {
        match self {
            Major::V15 => 15,
            Major::V16 => 16,
            Major::V17 => 17,
            Major::V18 => 18,
        }
    }

    /// The magic number of its pages.
    pub fn magic(self) -> u16 {
        match self {
            Major::V15 => 0xD110,
            Major::V16 => 0xD113,
            Major::V17 => 0xD116,
            Major::V18 => 0xD118,
        }
    }

    fn from_magic(at: Lsn, magic: u16) -> Result<Self> {
        if let Some(major) = Major::ALL.into_iter().find(|m| m.magic() == magic) {
            return Ok(major);
        }
        let what = match magic {
            0xD097 => "that is PostgreSQL 10",
            0xD098 => "that is PostgreSQL 11",
            0xD101 => "that is PostgreSQL 12",
            0xD106 => "that is PostgreSQL 13",
            0xD10D => "that is PostgreSQL 14",
            0xD060..=0xD117 => "that is an older or unreleased PostgreSQL",
            0xD119..=0xD1FF => "that is a newer PostgreSQL",
            m if (0xD060..=0xD1FF).contains(&m.swap_bytes()) => "that is a machine with the other byte order",
            _ => "that is no page of a log",
        };
        Err(Error::Magic { at, magic, what })
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// What all segments of one server have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Its major version.
    pub major: Major,
    /// The system identifier that initdb made.
    pub system: u64,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

/// A page header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageHeader {
    /// Who wrote it.
    pub major: Major,
    /// The timeline of the first record on the page.
    pub timeline: u32,
    /// The page's own address.
    pub address: Lsn,
    /// Bytes still to come of a record of earlier pages.
    pub remaining: u32,
    /// Whether the page begins with such a rest.
    pub continued: bool,
    /// Whether the rest that should stand here was never written: a crash took it, and the record with it.
    pub overwritten: bool,
    /// What only the first page of a segment says.
    pub identity: Option<Identity>,
}

impl PageHeader {
    /// Reads the header of the page that should stand at `at`.
    pub fn read(at: Lsn, page: &[u8]) -> Result<Self> {
        let mut bytes = Bytes::new(page);
        Self::fields(at, &mut bytes).unwrap_or_else(|| Err(Error::page(at, "it is too short for a header")))
    }

    fn fields(at: Lsn, bytes: &mut Bytes<'_>) -> Option<Result<Self>> {
        let magic = bytes.u16()?;
        let flags = bytes.u16()?;
        let timeline = bytes.u32()?;
        let address = Lsn(bytes.u64()?);
        let remaining = bytes.u32()?;
        bytes.skip(4)?;
        if magic == 0 && flags == 0 && address == Lsn(0) {
            return Some(Err(Error::EndOfLog { at }));
        }
        let major = match Major::from_magic(at, magic) {
            Ok(major) => major,
            Err(error) => return Some(Err(error)),
        };
        if flags & !ALL_FLAGS != 0 {
            return Some(Err(Error::page(at, format!("unknown flags {flags:04X}"))));
        }
        let identity = if flags & LONG != 0 {
            let (system, size, page) = (bytes.u64()?, bytes.u32()?, bytes.u32()?);
            if page as usize != PAGE_SIZE {
                let what = format!("the log has pages of {page} bytes; only {PAGE_SIZE} can be read");
                return Some(Err(Error::page(at, what)));
            }
            let Some(segment_size) = SegmentSize::new(u64::from(size)) else {
                return Some(Err(Error::page(at, format!("segments cannot have {size} bytes"))));
            };
            Some(Identity {
                major,
                system,
                segment_size,
            })
        } else {
            None
        };
        Some(Ok(PageHeader {
            major,
            timeline,
            address,
            remaining,
            continued: flags & FIRST_IS_CONTRECORD != 0,
            overwritten: flags & FIRST_IS_OVERWRITE != 0,
            identity,
        }))
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self.identity {
            Some(_) => LONG_HEADER,
            None => SHORT_HEADER,
        }
    }

    /// Never: a header has bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether it belongs to this server and this place.
    pub(crate) fn check(&self, at: Lsn, expected: &Identity) -> Result<()> {
        let foreign = |what, found: String, expected: String| {
            Err(Error::Foreign {
                at,
                what,
                found,
                expected,
            })
        };
        if self.major != expected.major {
            return foreign("the major version", self.major.to_string(), expected.major.to_string());
        }
        if let Some(found) = &self.identity {
            if found.system != expected.system {
                return foreign(
                    "the system identifier",
                    found.system.to_string(),
                    expected.system.to_string(),
                );
            }
            if found.segment_size != expected.segment_size {
                let text = |size: SegmentSize| size.bytes().to_string();
                return foreign(
                    "the segment size",
                    text(found.segment_size),
                    text(expected.segment_size),
                );
            }
        }
        let first = expected.segment_size.offset(at) == 0;
        if self.address != at {
            // A segment's file is used again for a later one: what was not overwritten yet is the end of the log.
            if self.address < at {
                return Err(Error::EndOfLog { at });
            }
            return Err(Error::page(at, format!("it says that it is page {}", self.address)));
        }
        if first != self.identity.is_some() {
            return Err(Error::page(
                at,
                if first {
                    "a segment begins without its long header"
                } else {
                    "a long header in the middle of a segment"
                },
            ));
        }
        if self.continued && self.remaining == 0 {
            return Err(Error::page(at, "a continued record without a length"));
        }
        Ok(())
    }
}

impl Identity {
    /// Reads who wrote a segment, from its first page.
    pub fn read(at: Lsn, page: &[u8]) -> Result<(Identity, PageHeader)> {
        let header = PageHeader::read(at, page)?;
        match header.identity {
            Some(identity) => Ok((identity, header)),
            None => Err(Error::page(at, "a segment begins without its long header")),
        }
    }
}
