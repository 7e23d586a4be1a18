//! Counts the records of segment files, and says how fast. `cargo run --release --example wal_stats -- SEGMENT…`
//!
//! Times are of the processor, not of the clock, so that a busy machine does not blur them.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::fs;
use synctool_pgwal::{Decoder, Event, Identity, Lsn, Scanner, SegmentName, Stats};

/// Seconds that this thread has worked.
fn worked() -> Result<f64, Box<dyn std::error::Error>> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(text.split(' ').next().unwrap_or_default().parse::<f64>()? / 1e9)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut segments: Vec<_> = std::env::args().skip(1).collect();
    segments.sort();
    let (mut stats, mut scanner) = (Stats::default(), Scanner::new(None));
    let (mut bytes, mut commits, mut counting, mut scanning) = (0, 0u64, 0.0, 0.0);
    let mut decoders: Option<(Decoder, Decoder)> = None;
    for path in segments {
        let content = fs::read(&path)?;
        let start = Lsn(u64::from_le_bytes(content[8..16].try_into()?));
        let (identity, _) = Identity::read(start, &content)?;
        let name = path.rsplit('/').next().and_then(SegmentName::parse);
        if name.and_then(|n| n.start(identity.segment_size)) != Some(start) {
            return Err(format!("{path} does not hold what its name says").into());
        }
        bytes += content.len();
        let (first, second) =
            decoders.get_or_insert_with(|| (Decoder::seek(identity, start), Decoder::seek(identity, start)));
        let begin = worked()?;
        let mut feed = first.feed(start, &content)?;
        while let Some(record) = feed.next()? {
            stats.count(&record)?;
        }
        counting += worked()? - begin;
        let begin = worked()?;
        let mut feed = second.feed(start, &content)?;
        while let Some(record) = feed.next()? {
            commits += u64::from(matches!(scanner.take(&record)?, Some(Event::Committed(_))));
        }
        scanning += worked()? - begin;
    }
    let mb = bytes as f64 / 1e6;
    println!("{} records, {commits} commits in {mb:.0} MB", stats.total().records);
    println!("counting: {counting:.3} s, {:.0} MB/s", mb / counting);
    println!("scanning: {scanning:.3} s, {:.0} MB/s", mb / scanning);
    Ok(())
}
