//! Ends of transactions, and what prepared ones are.

use crate::bytes::Bytes;
use crate::meaning::RelFile;
use crate::page::Major;
use std::fmt;

const HAS_DATABASE: u32 = 1 << 0;
const HAS_SUBTRANSACTIONS: u32 = 1 << 1;
const HAS_FILES: u32 = 1 << 2;
const HAS_INVALIDATIONS: u32 = 1 << 3;
const HAS_TWOPHASE: u32 = 1 << 4;
const HAS_ORIGIN: u32 = 1 << 5;
const HAS_GID: u32 = 1 << 7;
const HAS_DROPPED_STATISTICS: u32 = 1 << 8;

const INVALIDATION: usize = 16;

/// A moment as PostgreSQL writes it: microseconds since 2000-01-01 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

/// Seconds between 1970-01-01 and 2000-01-01.
const EPOCH: i64 = 946_684_800;

impl Timestamp {
    /// Microseconds since 1970-01-01 UTC.
    pub fn unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH * 1_000_000)
    }

    /// The moment so many microseconds after 1970-01-01 UTC.
    pub fn from_unix_micros(micros: i64) -> Self {
        Timestamp(micros.saturating_sub(EPOCH * 1_000_000))
    }
}

impl fmt::Display for Timestamp {
    /// `2026-01-31 12:00:00.000001 UTC`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.unix_micros();
        let (seconds, fraction) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
        let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        // Days to a date in the Gregorian calendar: eras of 400 years that begin on 1 March.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        write!(
            f,
            "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}.{fraction:06} UTC",
            second / 3600,
            second / 60 % 60,
            second % 60
        )
    }
}

/// The end of a transaction: a commit or an abort.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    /// The transaction. For a prepared one, not the transaction that wrote the record.
    pub xid: u32,
    /// When it ended, by the clock of the server.
    pub at: Timestamp,
    /// The database it worked in, where the record says so.
    pub database: Option<u32>,
    /// Its subtransactions that share its end.
    pub subtransactions: Vec<u32>,
    /// Relation files that are removed.
    pub dropped: Vec<RelFile>,
    /// Whether it had been prepared.
    pub prepared: bool,
    /// The name of the prepared transaction, where the record says so.
    pub gid: Option<String>,
}

impl End {
    /// None if the data ends too early.
    pub(crate) fn read(major: Major, xid: u32, info: u8, main: &[u8]) -> Option<Self> {
        let mut b = Bytes::new(main);
        let opcode = info & 0x70;
        let mut end = End {
            xid,
            at: Timestamp(b.i64()?),
            database: None,
            subtransactions: Vec::new(),
            dropped: Vec::new(),
            prepared: matches!(opcode, 0x30 | 0x40),
            gid: None,
        };
        let has = if info & 0x80 != 0 { b.u32()? } else { 0 };
        if has & HAS_DATABASE != 0 {
            end.database = Some(b.u32()?);
            b.skip(4)?;
        }
        if has & HAS_SUBTRANSACTIONS != 0 {
            let n = b.count()?;
            end.subtransactions = b.u32s(n)?;
        }
        if has & HAS_FILES != 0 {
            let n = b.count()?;
            end.dropped = RelFile::many(&mut b, n)?;
        }
        if has & HAS_DROPPED_STATISTICS != 0 {
            let item = if major >= Major::V18 { 16 } else { 12 };
            let n = b.count()?;
            b.skip(n.checked_mul(item)?)?;
        }
        if has & HAS_INVALIDATIONS != 0 {
            let n = b.count()?;
            b.skip(n.checked_mul(INVALIDATION)?)?;
        }
        if has & HAS_TWOPHASE != 0 {
            end.xid = b.u32()?;
            if has & HAS_GID != 0 {
                let length = b.rest().iter().position(|byte| *byte == 0)?;
                end.gid = Some(String::from_utf8_lossy(b.take(length)?).into_owned());
                b.skip(1)?;
            }
        }
        if has & HAS_ORIGIN != 0 {
            b.skip(16)?;
        }
        Some(end)
    }
}

/// A transaction that was prepared and waits for its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// The transaction.
    pub xid: u32,
    /// The database it worked in.
    pub database: u32,
    /// When it was prepared.
    pub at: Timestamp,
    /// Its subtransactions.
    pub subtransactions: Vec<u32>,
    /// Its name.
    pub gid: String,
}

impl Prepared {
    /// None if the data ends too early.
    pub(crate) fn read(main: &[u8]) -> Option<Self> {
        let mut b = Bytes::new(main);
        b.skip(8)?;
        let (xid, database, at) = (b.u32()?, b.u32()?, Timestamp(b.i64()?));
        b.skip(4)?;
        let subtransactions = b.count()?;
        // Files and statistics to drop either way, invalidations, a flag and its padding.
        b.skip(5 * 4 + 2)?;
        let length = usize::from(b.u16()?);
        b.skip(16)?;
        let gid = b.take(length.next_multiple_of(8))?;
        let gid = gid.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Prepared {
            xid,
            database,
            at,
            subtransactions: b.u32s(subtransactions)?,
            gid: String::from_utf8_lossy(gid).into_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_dates() {
        let text = |micros| Timestamp(micros).to_string();
        assert_eq!(text(0), "2000-01-01 00:00:00.000000 UTC");
        assert_eq!(text(-1), "1999-12-31 23:59:59.999999 UTC");
        assert_eq!(text(5_097_600_000_000), "2000-02-29 00:00:00.000000 UTC");
        assert_eq!(
            Timestamp::from_unix_micros(1_709_210_096_000_007).to_string(),
            "2024-02-29 12:34:56.000007 UTC"
        );
        assert_eq!(Timestamp::from_unix_micros(5).unix_micros(), 5);
    }
}
