//! A record: its header, its block references, its data.

use crate::bytes::Bytes;
use crate::checksum;
use crate::error::{Error, Result};
use crate::lsn::Lsn;
use crate::meaning::RelFile;
use crate::page::Major;
use crate::rmgr::{Rmgr, kind};
use std::borrow::Cow;
use std::ops::Range;

pub(crate) const HEADER: usize = 24;
/// The longest record a server writes.
pub(crate) const MAX_RECORD: usize = 1020 << 20;
const BLOCK_SIZE: u16 = 8192;

const MAX_BLOCK_ID: u8 = 32;
const ID_DATA_SHORT: u8 = 255;
const ID_DATA_LONG: u8 = 254;
const ID_ORIGIN: u8 = 253;
const ID_TOPLEVEL_XID: u8 = 252;

const FORK_MASK: u8 = 0x0F;
const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_RELATION: u8 = 0x80;

const IMAGE_HAS_HOLE: u8 = 0x01;
const IMAGE_APPLY: u8 = 0x02;
const IMAGE_COMPRESSED: u8 = 0x04 | 0x08 | 0x10;

/// The fixed part, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    xid: u32,
    pub(crate) previous: Lsn,
    info: u8,
    rmgr: Rmgr,
    checksum: u32,
}

impl Header {
    #[inline]
    pub(crate) fn read(at: Lsn, bytes: &[u8]) -> Result<Self> {
        let Some((head, rest)) = bytes.split_first_chunk::<HEADER>() else {
            return Err(Error::record(at, "it is shorter than its header"));
        };
        let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
        let found = u32_at(20);
        let summed = head
            .first_chunk()
            .ok_or_else(|| Error::record(at, "it is shorter than its header"))?;
        let expected = checksum::of_record(summed, rest);
        if expected != found {
            return Err(Error::Checksum { at, found, expected });
        }
        let Some(rmgr) = Rmgr::new(head[17]) else {
            let what = format!("there is no resource manager with number {}", head[17]);
            return Err(Error::record(at, what));
        };
        Ok(Header {
            xid: u32_at(4),
            previous: Lsn(u64::from(u32_at(12)) << 32 | u64::from(u32_at(8))),
            info: head[16],
            rmgr,
            checksum: found,
        })
    }

    /// Whether the rest of the segment is left empty after it.
    #[inline]
    pub(crate) fn is_switch(&self) -> bool {
        self.rmgr == Rmgr::XLOG && self.info & 0xF0 == 0x40
    }
}

/// One whole record whose checksum and place are right.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    major: Major,
    lsn: Lsn,
    end: Lsn,
    header: Header,
    bytes: &'a [u8],
}

impl<'a> Record<'a> {
    #[inline]
    pub(crate) fn new(major: Major, lsn: Lsn, end: Lsn, header: Header, bytes: &'a [u8]) -> Self {
        Record {
            major,
            lsn,
            end,
            header,
            bytes,
        }
    }

    /// The server that wrote it.
    #[inline]
    pub fn major(&self) -> Major {
        self.major
    }

    /// Where it starts.
    #[inline]
    pub fn lsn(&self) -> Lsn {
        self.lsn
    }

    /// Where the next one may start. A standby that replayed this record stands here.
    #[inline]
    pub fn end(&self) -> Lsn {
        self.end
    }

    /// Where the record before it starts.
    pub fn previous(&self) -> Lsn {
        self.header.previous
    }

    /// The transaction (or subtransaction) that wrote it; zero for none.
    #[inline]
    pub fn xid(&self) -> u32 {
        self.header.xid
    }

    /// The part of the server that wrote it.
    #[inline]
    pub fn rmgr(&self) -> Rmgr {
        self.header.rmgr
    }

    /// What the resource manager uses to tell its records apart.
    #[inline]
    pub fn info(&self) -> u8 {
        self.header.info & 0xF0
    }

    /// What kind of record it is, in PostgreSQL's word.
    pub fn kind(&self) -> Cow<'static, str> {
        kind(self.major, self.header.rmgr, self.info())
    }

    /// Its checksum, which is that of its content and of its place among the others.
    #[inline]
    pub fn checksum(&self) -> u32 {
        self.header.checksum
    }

    /// All its bytes, header included.
    #[inline]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Finds its block references and its data. `parts` is used again and again, so that nothing is allocated.
    pub fn parse(&self, parts: &mut Parts) -> Result<()> {
        parts.blocks.clear();
        parts.main = 0..0;
        parts.toplevel_xid = None;
        parts.origin = None;
        let mut b = Bytes::new(self.bytes.get(HEADER..).unwrap_or_default());
        let result = self.references(&mut b, parts);
        let total = result.ok_or_else(|| self.wrong("it ends inside its headers"))??;
        let start = self.bytes.len() - b.rest().len();
        if b.rest().len() != total {
            return Err(self.wrong(format!("it has {} bytes of data, not {total}", b.rest().len())));
        }
        let mut at = start;
        for block in &mut parts.blocks {
            at += block.image.map_or(0, |image| usize::from(image.length));
            let length = block.data.end;
            block.data = at..at + length;
            at += length;
        }
        parts.main = at..self.bytes.len();
        Ok(())
    }

    /// Reads all headers; returns the length of what follows them. The ranges hold lengths until that is known.
    fn references(&self, b: &mut Bytes<'_>, parts: &mut Parts) -> Option<Result<usize>> {
        let wrong = |what: String| Some(Err(self.wrong(what)));
        let mut total = 0usize;
        let mut main = 0usize;
        let mut relation: Option<RelFile> = None;
        while b.rest().len() > total {
            match b.u8()? {
                ID_DATA_SHORT => {
                    main = usize::from(b.u8()?);
                    total += main;
                    break;
                }
                ID_DATA_LONG => {
                    main = b.u32()? as usize;
                    total += main;
                    break;
                }
                ID_ORIGIN => parts.origin = Some(b.u16()?),
                ID_TOPLEVEL_XID => parts.toplevel_xid = Some(b.u32()?),
                id if id <= MAX_BLOCK_ID => {
                    if parts.blocks.last().is_some_and(|last| last.id >= id) {
                        return wrong(format!("block reference {id} is out of order"));
                    }
                    let flags = b.u8()?;
                    let length = usize::from(b.u16()?);
                    if (flags & HAS_DATA != 0) != (length > 0) {
                        return wrong(format!(
                            "block reference {id} has {length} bytes of data and says otherwise"
                        ));
                    }
                    let image = match flags & HAS_IMAGE {
                        0 => None,
                        _ => match Image::read(b)? {
                            Some(image) => Some(image),
                            None => return wrong(format!("block reference {id} has an impossible page image")),
                        },
                    };
                    if flags & SAME_RELATION == 0 {
                        relation = Some(RelFile {
                            tablespace: b.u32()?,
                            database: b.u32()?,
                            file: b.u32()?,
                        });
                    }
                    let Some(relation) = relation else {
                        return wrong(format!("block reference {id} names no relation"));
                    };
                    total += length + image.map_or(0, |image| usize::from(image.length));
                    parts.blocks.push(Block {
                        id,
                        relation,
                        fork: Fork(flags & FORK_MASK),
                        number: b.u32()?,
                        image,
                        initialized: flags & WILL_INIT != 0,
                        data: 0..length,
                    });
                }
                id => return wrong(format!("unknown part {id}")),
            }
        }
        parts.main = 0..main;
        Some(Ok(total))
    }

    pub(crate) fn wrong(&self, what: impl Into<String>) -> Error {
        Error::record(self.lsn, what)
    }

    /// The data that belongs to no block.
    #[inline]
    pub fn main<'p>(&self, parts: &'p Parts) -> &'p [u8]
    where
        'a: 'p,
    {
        self.bytes.get(parts.main.clone()).unwrap_or_default()
    }

    /// The data that belongs to a block, without its page image.
    #[inline]
    pub fn data(&self, block: &Block) -> &'a [u8] {
        self.bytes.get(block.data.clone()).unwrap_or_default()
    }
}

/// What stands in a record, as ranges of its bytes.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    blocks: Vec<Block>,
    main: Range<usize>,
    toplevel_xid: Option<u32>,
    origin: Option<u16>,
}

impl Parts {
    /// Its block references, in the order of their numbers.
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The reference with this number.
    #[inline]
    pub fn block(&self, id: u8) -> Option<&Block> {
        self.blocks.iter().find(|block| block.id == id)
    }

    /// The transaction above the one that wrote it, where the record says so.
    pub fn toplevel_xid(&self) -> Option<u32> {
        self.toplevel_xid
    }

    /// The replication origin it came from.
    pub fn origin(&self) -> Option<u16> {
        self.origin
    }

    /// Bytes of page images.
    #[inline]
    pub fn image_bytes(&self) -> u64 {
        let images = self.blocks.iter().filter_map(|block| block.image);
        images.map(|image| u64::from(image.length)).sum()
    }
}

/// A block of a relation that a record changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// Its number in the record.
    pub id: u8,
    /// The relation's file.
    pub relation: RelFile,
    /// Which of the relation's files.
    pub fork: Fork,
    /// The block.
    pub number: u32,
    /// The page image, if one was logged.
    pub image: Option<Image>,
    /// Whether the page is made anew.
    pub initialized: bool,
    data: Range<usize>,
}

/// One of a relation's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fork(pub u8);

impl Fork {
    /// The rows.
    pub const MAIN: Fork = Fork(0);

    /// PostgreSQL's name for it.
    pub fn name(self) -> &'static str {
        match self.0 {
            0 => "main",
            1 => "fsm",
            2 => "vm",
            3 => "init",
            _ => "unknown",
        }
    }
}

/// A page image: skipped, never unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Image {
    /// Its bytes in the record.
    pub length: u16,
    /// Zeros that were left out.
    pub hole: u16,
    /// Whether replay puts it in place.
    pub applied: bool,
    /// How it is compressed: pglz, lz4 or zstd.
    pub compression: Option<&'static str>,
}

impl Image {
    /// The outer None is an early end, the inner one an impossible image.
    #[inline]
    fn read(b: &mut Bytes<'_>) -> Option<Option<Self>> {
        let (length, offset, flags) = (b.u16()?, b.u16()?, b.u8()?);
        let compressed = flags & IMAGE_COMPRESSED;
        let has_hole = flags & IMAGE_HAS_HOLE != 0;
        let hole = match (compressed != 0, has_hole) {
            (true, true) => b.u16()?,
            (true, false) => 0,
            (false, _) => match BLOCK_SIZE.checked_sub(length) {
                Some(hole) => hole,
                None => return Some(None),
            },
        };
        let compression = match compressed {
            0 => None,
            0x04 => Some("pglz"),
            0x08 => Some("lz4"),
            0x10 => Some("zstd"),
            _ => return Some(None),
        };
        let possible = match (has_hole, compression) {
            (true, _) => offset != 0 && hole != 0 && length != 0 && length < BLOCK_SIZE,
            (false, None) => offset == 0 && length == BLOCK_SIZE,
            (false, Some(_)) => offset == 0 && length < BLOCK_SIZE,
        };
        let image = Image {
            length,
            hole,
            applied: flags & IMAGE_APPLY != 0,
            compression,
        };
        Some(possible.then_some(image))
    }
}
