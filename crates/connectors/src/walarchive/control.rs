//! What a data directory says about its server: `global/pg_control`.

use super::archive::file_error;
use std::fs;
use std::path::Path;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{Lsn, Parameters, SegmentSize, WalLevel};

/// The part of pg_control that matters here. The layout is the same from 15 to 18, up to the checksum at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// The major version, from the file PG_VERSION.
    pub major: u32,
    /// The system identifier that initdb made.
    pub system: u64,
    /// What the server was doing when it wrote this.
    pub state: State,
    /// Where replay of the last checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub timeline: u32,
    /// How far replay has to go before the data is consistent.
    pub min_recovery: Lsn,
    /// The server's settings that a standby must not fall below.
    pub parameters: Parameters,
    /// The size of its segments.
    pub segment_size: SegmentSize,
}

/// What a server was doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It stands, after an orderly end.
    ShutDown,
    /// It stands, after an orderly end during recovery.
    ShutDownInRecovery,
    /// It replays an archive.
    InArchiveRecovery,
    /// It runs, or has crashed, or is being copied.
    Other,
}

/// By the version of pg_control: PostgreSQL 15 and 16, 17, 18.
const CHECKSUM_AT: [(u32, usize); 3] = [(1300, 288), (1700, 288), (1800, 292)];

impl Control {
    /// Reads it from a data directory.
    pub fn read(data: &Path) -> Result<Self> {
        let file = data.join("PG_VERSION");
        let version = fs::read_to_string(&file).map_err(|e| {
            file_error(&file, &e)
                .hint("a base backup is a copy of a whole data directory, made by pg_basebackup or the like")
        })?;
        let major = version
            .trim()
            .parse()
            .map_err(|_| Error::new(code::FILE_MALFORMED, format!("{} holds no version", file.display())))?;
        let file = data.join("global/pg_control");
        // A running server may be writing it at this moment.
        for _ in 0..3 {
            let bytes = fs::read(&file).map_err(|e| file_error(&file, &e))?;
            if let Some(control) = Self::parse(major, &bytes) {
                return Ok(control);
            }
        }
        Err(Error::new(
            code::FILE_MALFORMED,
            format!("{} is damaged or of another PostgreSQL than 15 to 18", file.display()),
        )
        .at("version", major.to_string()))
    }

    fn parse(major: u32, bytes: &[u8]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let i32_at = |at: usize| Some(i32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let bool_at = |at: usize| bytes.get(at).map(|b| *b != 0);
        let version = u32_at(8)?;
        let (_, sum) = CHECKSUM_AT.into_iter().find(|(v, _)| *v == version)?;
        if crc32c(bytes.get(..sum)?) != u32_at(sum)? {
            return None;
        }
        Some(Control {
            major,
            system: u64_at(0)?,
            state: match u32_at(16)? {
                1 => State::ShutDown,
                2 => State::ShutDownInRecovery,
                5 => State::InArchiveRecovery,
                _ => State::Other,
            },
            redo: Lsn(u64_at(40)?),
            timeline: u32_at(48)?,
            min_recovery: Lsn(u64_at(136)?),
            parameters: Parameters {
                wal_level: WalLevel::from_number(i32_at(172)?),
                wal_log_hints: bool_at(176)?,
                max_connections: i32_at(180)?,
                max_worker_processes: i32_at(184)?,
                max_wal_senders: i32_at(188)?,
                max_prepared_transactions: i32_at(192)?,
                max_locks_per_transaction: i32_at(196)?,
                track_commit_timestamp: bool_at(200)?,
            },
            segment_size: SegmentSize::new(u64::from(u32_at(228)?))?,
        })
    }
}

/// Bit by bit: it is done once per file of 300 bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 }
        })
    };
    !bytes.iter().fold(!0, step)
}
