//! What a record does: to rows, to files, to transactions.

use crate::bytes::Bytes;
use crate::error::Result;
use crate::lsn::Lsn;
use crate::page::Major;
use crate::record::{Fork, Parts, Record};
use crate::rmgr::Rmgr;
use crate::xact::{End, Prepared, Timestamp};
use std::fmt;

/// The file of a relation. TRUNCATE, VACUUM FULL and the like give a table another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFile {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID; zero for what all databases share.
    pub database: u32,
    /// The file's number (`relfilenode`).
    pub file: u32,
}

impl RelFile {
    #[inline]
    fn read(b: &mut Bytes<'_>) -> Option<Self> {
        Some(RelFile {
            tablespace: b.u32()?,
            database: b.u32()?,
            file: b.u32()?,
        })
    }

    pub(crate) fn many(b: &mut Bytes<'_>, n: usize) -> Option<Vec<Self>> {
        let mut items = Bytes::new(b.take(n.checked_mul(12)?)?);
        (0..n).map(|_| RelFile::read(&mut items)).collect()
    }
}

impl fmt::Display for RelFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.file)
    }
}

/// What happened at a row's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Touched {
    /// A row was put there.
    Inserted,
    /// A new version of a row was put there.
    Updated,
    /// The version there was replaced by one elsewhere.
    Replaced,
    /// The row there was deleted.
    Deleted,
    /// An insertion by `INSERT … ON CONFLICT` that lost a race was taken back.
    Withdrawn,
}

/// A row's address that a record touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Touch {
    /// The block.
    pub block: u32,
    /// The line pointer in it.
    pub offset: u16,
    /// What happened there.
    pub what: Touched,
}

/// How much a server writes to its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalLevel {
    /// Not enough to replay an archive.
    Minimal,
    /// Enough for standbys.
    Replica,
    /// Enough for logical decoding.
    Logical,
}

impl WalLevel {
    /// None for a number that means no level.
    pub fn from_number(number: i32) -> Option<Self> {
        [WalLevel::Minimal, WalLevel::Replica, WalLevel::Logical]
            .get(usize::try_from(number).ok()?)
            .copied()
    }

    /// PostgreSQL's word.
    pub fn name(self) -> &'static str {
        match self {
            WalLevel::Minimal => "minimal",
            WalLevel::Replica => "replica",
            WalLevel::Logical => "logical",
        }
    }
}

/// Settings of a server that its standbys must not fall below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are PostgreSQL's settings")]
pub struct Parameters {
    pub max_connections: i32,
    pub max_worker_processes: i32,
    pub max_wal_senders: i32,
    pub max_prepared_transactions: i32,
    pub max_locks_per_transaction: i32,
    /// None for a number that means no level.
    pub wal_level: Option<WalLevel>,
    pub wal_log_hints: bool,
    pub track_commit_timestamp: bool,
}

/// The transactions that were open at some moment shortly before the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Transactions, and after them their subtransactions unless there were too many.
    pub xids: Vec<u32>,
    /// How many of them are subtransactions.
    pub subtransactions: usize,
    /// Whether subtransactions are missing from the list.
    pub overflowed: bool,
    /// The next number to be given.
    pub next: u32,
    /// The lowest number still open.
    pub oldest: u32,
}

/// The tables of a TRUNCATE; written only at the level `logical`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TruncatedTables {
    /// The database.
    pub database: u32,
    /// The tables' OIDs, and those of sequences that restart.
    pub relations: Vec<u32>,
}

/// What a record means to someone who follows rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Rows of this file were touched. The addresses are in the vector handed to [`Meaning::of`].
    Rows(RelFile),
    /// A catalog row was changed where it stands, outside any transaction.
    InPlace(RelFile, Touch),
    /// Tables were truncated; the change of their files says so too.
    Truncated(TruncatedTables),
    /// A transaction committed.
    Commit(End),
    /// A transaction, or a subtransaction, came to nothing.
    Abort(End),
    /// A transaction was prepared.
    Prepare(Prepared),
    /// Subtransactions were assigned to their transaction.
    Assignment {
        /// The transaction.
        top: u32,
        /// Its subtransactions.
        subtransactions: Vec<u32>,
    },
    /// The open transactions.
    Running(Running),
    /// A checkpoint.
    Checkpoint {
        /// Where replay would begin.
        redo: Lsn,
        /// The timeline from here on.
        timeline: u32,
        /// Whether the server stood still: no transaction is open except prepared ones.
        shutdown: bool,
    },
    /// A recovery ended, and a timeline began.
    EndOfRecovery {
        /// The timeline from here on.
        timeline: u32,
        /// The one it came from.
        previous: u32,
    },
    /// The server's settings changed.
    Parameters(Parameters),
    /// A base backup ended that had begun there.
    BackupEnd(Lsn),
    /// A named place.
    RestorePoint(Timestamp, String),
    /// A record that was begun before a crash was given up.
    Overwritten(Lsn),
    /// The server went on with the next segment.
    Switch,
    /// A relation's file was made.
    FileCreated(RelFile, Fork),
    /// A relation's file was cut to so many blocks.
    FileTruncated(RelFile, u32),
    /// A database was made, with the files of another or block by block.
    DatabaseCreated(u32),
    /// A database was dropped.
    DatabaseDropped(u32),
    /// A tablespace was made, at this place.
    TablespaceCreated(String),
    /// Nothing that concerns rows.
    Other,
}

impl Meaning {
    /// What a record means. `parts` and `touches` are filled; both are used again and again.
    pub fn of(record: &Record<'_>, parts: &mut Parts, touches: &mut Vec<Touch>) -> Result<Meaning> {
        touches.clear();
        let rmgr = record.rmgr();
        let wanted = matches!(
            rmgr,
            Rmgr::XLOG
                | Rmgr::TRANSACTION
                | Rmgr::STORAGE
                | Rmgr::DATABASE
                | Rmgr::TABLESPACE
                | Rmgr::STANDBY
                | Rmgr::HEAP
                | Rmgr::HEAP2
        );
        if !wanted {
            return Ok(Meaning::Other);
        }
        record.parse(parts)?;
        let main = record.main(parts);
        let info = record.info();
        let meaning = match rmgr {
            Rmgr::XLOG => xlog(info, main),
            Rmgr::TRANSACTION => transaction(record.major(), record.xid(), info, main),
            Rmgr::STORAGE => storage(info, main),
            Rmgr::DATABASE => database(info, main),
            Rmgr::TABLESPACE => tablespace(info, main),
            Rmgr::STANDBY => standby(info, main),
            Rmgr::HEAP => heap(info, main, parts, touches),
            _ => heap2(info, main, parts, touches),
        };
        meaning.ok_or_else(|| record.wrong(format!("a {rmgr} {} record cannot look like this", record.kind())))
    }
}

fn xlog(info: u8, main: &[u8]) -> Option<Meaning> {
    let mut b = Bytes::new(main);
    Some(match info {
        0x00 | 0x10 => {
            let (redo, timeline) = (Lsn(b.u64()?), b.u32()?);
            Meaning::Checkpoint {
                redo,
                timeline,
                shutdown: info == 0x00,
            }
        }
        0x40 => Meaning::Switch,
        0x50 => Meaning::BackupEnd(Lsn(b.u64()?)),
        0x60 => Meaning::Parameters(Parameters {
            max_connections: b.i32()?,
            max_worker_processes: b.i32()?,
            max_wal_senders: b.i32()?,
            max_prepared_transactions: b.i32()?,
            max_locks_per_transaction: b.i32()?,
            wal_level: WalLevel::from_number(b.i32()?),
            wal_log_hints: b.u8()? != 0,
            track_commit_timestamp: b.u8()? != 0,
        }),
        0x70 => {
            let at = Timestamp(b.i64()?);
            let name = b.rest().split(|byte| *byte == 0).next().unwrap_or_default();
            Meaning::RestorePoint(at, String::from_utf8_lossy(name).into_owned())
        }
        0x90 => {
            b.skip(8)?;
            let (timeline, previous) = (b.u32()?, b.u32()?);
            Meaning::EndOfRecovery { timeline, previous }
        }
        0xD0 => Meaning::Overwritten(Lsn(b.u64()?)),
        _ => Meaning::Other,
    })
}

fn transaction(major: Major, xid: u32, info: u8, main: &[u8]) -> Option<Meaning> {
    Some(match info & 0x70 {
        0x00 | 0x30 => Meaning::Commit(End::read(major, xid, info, main)?),
        0x20 | 0x40 => Meaning::Abort(End::read(major, xid, info, main)?),
        0x10 => Meaning::Prepare(Prepared::read(main)?),
        0x50 => {
            let mut b = Bytes::new(main);
            let top = b.u32()?;
            let n = b.count()?;
            Meaning::Assignment {
                top,
                subtransactions: b.u32s(n)?,
            }
        }
        _ => Meaning::Other,
    })
}

fn storage(info: u8, main: &[u8]) -> Option<Meaning> {
    let mut b = Bytes::new(main);
    Some(match info {
        0x10 => {
            let file = RelFile::read(&mut b)?;
            Meaning::FileCreated(file, Fork(u8::try_from(b.u32()?).ok()?))
        }
        0x20 => {
            let block = b.u32()?;
            let file = RelFile::read(&mut b)?;
            const HEAP: u32 = 1;
            match b.u32()? & HEAP {
                0 => Meaning::Other,
                _ => Meaning::FileTruncated(file, block),
            }
        }
        _ => Meaning::Other,
    })
}

fn database(info: u8, main: &[u8]) -> Option<Meaning> {
    let mut b = Bytes::new(main);
    Some(match info {
        0x00 | 0x10 => Meaning::DatabaseCreated(b.u32()?),
        0x20 => Meaning::DatabaseDropped(b.u32()?),
        _ => Meaning::Other,
    })
}

fn tablespace(info: u8, main: &[u8]) -> Option<Meaning> {
    if info != 0x00 {
        return Some(Meaning::Other);
    }
    let mut b = Bytes::new(main);
    b.skip(4)?;
    let place = b.rest().split(|byte| *byte == 0).next().unwrap_or_default();
    Some(Meaning::TablespaceCreated(String::from_utf8_lossy(place).into_owned()))
}

fn standby(info: u8, main: &[u8]) -> Option<Meaning> {
    if info != 0x10 {
        return Some(Meaning::Other);
    }
    let mut b = Bytes::new(main);
    let (tops, subtransactions) = (b.count()?, b.count()?);
    let overflowed = b.u8()? != 0;
    b.skip(3)?;
    let (next, oldest) = (b.u32()?, b.u32()?);
    b.skip(4)?;
    Some(Meaning::Running(Running {
        xids: b.u32s(tops.checked_add(subtransactions)?)?,
        subtransactions,
        overflowed,
        next,
        oldest,
    }))
}

const INIT_PAGE: u8 = 0x80;

fn heap(info: u8, main: &[u8], parts: &Parts, touches: &mut Vec<Touch>) -> Option<Meaning> {
    let mut b = Bytes::new(main);
    let opcode = info & 0x70;
    let target = |id: u8| parts.block(id).filter(|block| block.fork == Fork::MAIN);
    match opcode {
        // Insert.
        0x00 => {
            let (block, offset) = (target(0)?, b.u16()?);
            touches.push(Touch {
                block: block.number,
                offset,
                what: Touched::Inserted,
            });
            Some(Meaning::Rows(block.relation))
        }
        // Delete.
        0x10 => {
            const IS_SUPER: u8 = 1 << 3;
            b.skip(4)?;
            let (block, offset) = (target(0)?, b.u16()?);
            b.skip(1)?;
            let what = match b.u8()? & IS_SUPER {
                0 => Touched::Deleted,
                _ => Touched::Withdrawn,
            };
            touches.push(Touch {
                block: block.number,
                offset,
                what,
            });
            Some(Meaning::Rows(block.relation))
        }
        // Update, and update within a page.
        0x20 | 0x40 => {
            b.skip(4)?;
            let old = b.u16()?;
            b.skip(2 + 4)?;
            let new = b.u16()?;
            let block = target(0)?;
            // The old page stands in the record only if it is another one.
            let old_block = match opcode {
                0x20 => target(1).unwrap_or(block),
                _ => block,
            };
            touches.push(Touch {
                block: old_block.number,
                offset: old,
                what: Touched::Replaced,
            });
            touches.push(Touch {
                block: block.number,
                offset: new,
                what: Touched::Updated,
            });
            Some(Meaning::Rows(block.relation))
        }
        // Truncate.
        0x30 => {
            let (database, n) = (b.u32()?, b.u32()? as usize);
            b.skip(4)?;
            Some(Meaning::Truncated(TruncatedTables {
                database,
                relations: b.u32s(n)?,
            }))
        }
        // In place.
        0x70 => {
            let (block, offset) = (target(0)?, b.u16()?);
            let touch = Touch {
                block: block.number,
                offset,
                what: Touched::Updated,
            };
            Some(Meaning::InPlace(block.relation, touch))
        }
        // Confirmations and locks change no row.
        _ => Some(Meaning::Other),
    }
}

fn heap2(info: u8, main: &[u8], parts: &Parts, touches: &mut Vec<Touch>) -> Option<Meaning> {
    // Everything but insertions is pruning, freezing, locking, or help for logical decoding: no visible row moves.
    if info & 0x70 != 0x50 {
        return Some(Meaning::Other);
    }
    let mut b = Bytes::new(main);
    b.skip(2)?;
    let n = b.u16()?;
    let block = parts.block(0).filter(|block| block.fork == Fork::MAIN)?;
    for i in 0..n {
        // On a fresh page the rows stand in order, and their places are not written.
        let offset = match info & INIT_PAGE {
            0 => b.u16()?,
            _ => i.checked_add(1)?,
        };
        touches.push(Touch {
            block: block.number,
            offset,
            what: Touched::Inserted,
        });
    }
    Some(Meaning::Rows(block.relation))
}
