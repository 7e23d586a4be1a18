//! Damaged logs: never a panic, never a wrong record.

use crate::load;
use crate::wal::Wal;
use proptest::prelude::*;
use std::sync::OnceLock;
use synctool_pgwal::{Decoder, Error, Lsn, Meaning, PAGE_SIZE, Parts, Result, Scanner, Stats};
use synctool_testkit::{PgVersion, Postgres};

struct Original {
    wal: Wal,
    /// Start, end of the bytes, end of the place of every record.
    records: Vec<(u64, u64, u64)>,
    _server: Postgres,
}

const PAGES: usize = 32;
const LENGTH: usize = PAGES * PAGE_SIZE;
/// Where the second segment begins.
const BORDER: usize = LENGTH / 2;

fn original() -> &'static Original {
    static ORIGINAL: OnceLock<Original> = OnceLock::new();
    ORIGINAL.get_or_init(|| {
        let server = load::builder(PgVersion::V18).initdb("--wal-segsize=1").start();
        load::everything(&server);
        let mut wal = Wal::of(&server);
        // A stretch around the border of two segments is enough, and many cases can be tried.
        let from = wal.bytes.len() / 2 / (1 << 20) * (1 << 20) - BORDER;
        wal.start = Lsn(wal.start.0 + from as u64);
        wal.bytes = wal.bytes[from..from + LENGTH].to_vec();
        let mut records = Vec::new();
        let mut decoder = Decoder::seek(wal.identity, wal.start);
        let mut feed = decoder.feed(wal.start, &wal.bytes).unwrap();
        while let Some(record) = feed.next().unwrap() {
            let crossing = record.end().0 - record.lsn().0 > record.bytes().len() as u64 + 7;
            let bytes = if crossing { 0 } else { record.bytes().len() as u64 };
            records.push((record.lsn().0, record.lsn().0 + bytes, record.end().0));
        }
        Original {
            wal,
            records,
            _server: server,
        }
    })
}

/// Reads everything there is to read; returns where the records started.
fn read(wal: &Wal, bytes: &[u8]) -> (Vec<u64>, Result<()>) {
    let mut found = Vec::new();
    let mut decoder = Decoder::seek(wal.identity, wal.start);
    let mut scanner = Scanner::new(None);
    let (mut parts, mut touches, mut stats) = (Parts::default(), Vec::new(), Stats::default());
    let mut work = || {
        let mut feed = decoder.feed(wal.start, bytes)?;
        while let Some(record) = feed.next()? {
            found.push(record.lsn().0);
            Meaning::of(&record, &mut parts, &mut touches)?;
            for block in parts.blocks() {
                let _ = record.data(block);
            }
            scanner.take(&record)?;
            stats.count(&record)?;
        }
        Ok(())
    };
    let result = work();
    (found, result)
}

/// The change at so many bytes from the start.
fn changed(offset: usize, value: u8) -> Vec<u8> {
    let mut bytes = original().wal.bytes.clone();
    bytes[offset] ^= value;
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// One wrong byte anywhere: what is read before it is right, and a wrong byte in a record is found.
    #[test]
    fn one_wrong_byte_is_found(offset in 0..LENGTH, value in 1u8..) {
        let original = original();
        let place = original.wal.start.0 + offset as u64;
        let (found, result) = read(&original.wal, &changed(offset, value));
        let truth: Vec<u64> = original.records.iter().map(|r| r.0).collect();
        prop_assert!(truth.starts_with(&found), "a record that is none");
        let hit = original.records.iter().find(|r| r.0 <= place && place < r.1);
        if let Some(record) = hit {
            // A length that leads beyond what was read is found out by what comes behind.
            let in_length = place < record.0 + 4;
            prop_assert!(in_length || result.is_err());
            prop_assert!(found.iter().all(|lsn| *lsn < record.0));
        }
    }

    /// Bytes in disorder: anything but a panic or a record that is none.
    #[test]
    fn noise_is_survived(from in 0..LENGTH, noise in prop::collection::vec(any::<u8>(), 1..300)) {
        let original = original();
        let mut bytes = original.wal.bytes.clone();
        let to = (from + noise.len()).min(bytes.len());
        bytes[from..to].copy_from_slice(&noise[..to - from]);
        let (found, _) = read(&original.wal, &bytes);
        let truth: Vec<u64> = original.records.iter().map(|r| r.0).collect();
        prop_assert!(truth.starts_with(&found));
    }

    /// A file that was copied only in part, with zeros or an older segment behind: the end is noticed.
    #[test]
    fn a_half_copied_file_is_noticed(pages in 0..PAGES, older in any::<bool>()) {
        let original = original();
        let mut bytes = original.wal.bytes.clone();
        let cut = pages * PAGE_SIZE;
        if older {
            bytes.copy_within(0..BORDER, BORDER);
        }
        let from = if older { BORDER } else { cut };
        if !older {
            bytes[cut..].fill(0);
        }
        let (found, result) = read(&original.wal, &bytes);
        let end = original.wal.start.0 + from as u64;
        let expected = original.records.iter().filter(|r| r.2 <= end).count();
        prop_assert!(found.len() <= expected);
        prop_assert!(matches!(result, Err(Error::EndOfLog { .. })), "{result:?}");
    }

    /// Records whose checksum is right and whose content is not: an error, never a panic.
    #[test]
    fn lies_with_a_right_checksum_are_survived(nth in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let original = original();
        let whole: Vec<_> = original.records.iter().filter(|r| r.1 > r.0 + 24).collect();
        let record = nth.get(&whole);
        let from = (record.0 - original.wal.start.0) as usize;
        let length = (record.1 - record.0) as usize;
        let mut bytes = original.wal.bytes.clone();
        let slice = &mut bytes[from..from + length];
        for (index, value) in changes {
            // Everything but the length and the pointer to the record before.
            let at = match 16 + index.index(length - 16) {
                at @ 20..24 => at - 4,
                at => at,
            };
            slice[at] = value;
        }
        let sum = crc32c::crc32c_append(crc32c::crc32c(&slice[24..]), &slice[..20]);
        slice[20..24].copy_from_slice(&sum.to_le_bytes());
        let (found, _) = read(&original.wal, &bytes);
        let truth: Vec<u64> = original.records.iter().map(|r| r.0).collect();
        prop_assert!(truth.starts_with(&found) || found.starts_with(&truth[..nth.index(whole.len()).min(1)]));
    }
}

fn the_original_is_read_to_its_end() {
    let original = original();
    let (found, result) = read(&original.wal, &original.wal.bytes);
    assert_eq!(result, Ok(()));
    assert_eq!(found.len(), original.records.len());
    assert!(found.len() > 300, "{}", found.len());
}

fn foreign_pages_are_told_apart() {
    let original = original();
    let what = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = original.wal.bytes.clone();
        change(&mut bytes);
        read(&original.wal, &bytes).1.unwrap_err().to_string()
    };
    let second = BORDER;
    assert!(what(&|b| b[second + 24] ^= 1).contains("the system identifier is"));
    assert!(
        what(&|b| b[second..second + 2].copy_from_slice(&0xD110u16.to_le_bytes()))
            .contains("major version is 15, not 18")
    );
    assert!(
        what(&|b| b[second..second + 2].copy_from_slice(&0xD10Du16.to_le_bytes())).contains("that is PostgreSQL 14")
    );
    assert!(
        what(&|b| b[second..second + 2].copy_from_slice(&0xD119u16.to_le_bytes()))
            .contains("that is a newer PostgreSQL")
    );
    assert!(
        what(&|b| b[second..second + 2].copy_from_slice(&0xD118u16.to_be_bytes())).contains("the other byte order")
    );
    assert!(what(&|b| b[second..second + 2].copy_from_slice(b"PK")).contains("no page of a log"));
    assert!(
        what(&|b| b[second + 32..second + 36].copy_from_slice(&(16u32 << 20).to_le_bytes()))
            .contains("the segment size is 16777216, not 1048576")
    );
    assert!(
        what(&|b| b[second + 36..second + 40].copy_from_slice(&4096u32.to_le_bytes())).contains("pages of 4096 bytes")
    );
}

fn pages_must_come_in_order() {
    let original = original();
    let mut decoder = Decoder::seek(original.wal.identity, original.wal.start);
    let later = Lsn(original.wal.start.0 + PAGE_SIZE as u64);
    assert!(matches!(
        decoder.feed(later, &original.wal.bytes),
        Err(Error::OutOfOrder { .. })
    ));
    assert!(
        decoder
            .feed(original.wal.start, &original.wal.bytes[..100])
            .unwrap()
            .next()
            .unwrap()
            .is_none()
    );
}

#[test]
fn damage_is_named() {
    the_original_is_read_to_its_end();
    foreign_pages_are_told_apart();
    pages_must_come_in_order();
}
