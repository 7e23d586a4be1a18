//! Files of the log: their names, their sizes, and how timelines follow each other.

use crate::error::{Error, Result};
use crate::lsn::Lsn;
use std::fmt;

/// The size of a server's segments: a power of two between 1 MiB and 1 GiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SegmentSize(u64);

impl SegmentSize {
    /// None for a size that no server can have.
    pub fn new(bytes: u64) -> Option<Self> {
        (bytes.is_power_of_two() && (1 << 20..=1 << 30).contains(&bytes)).then_some(SegmentSize(bytes))
    }

    /// The bytes of a segment.
    pub fn bytes(self) -> u64 {
        self.0
    }

    /// How far into its segment an address is.
    #[inline]
    pub fn offset(self, at: Lsn) -> u64 {
        at.0 & (self.0 - 1)
    }

    /// The number of the segment that holds an address.
    #[inline]
    pub fn number(self, at: Lsn) -> u64 {
        at.0 / self.0
    }

    /// The first address of a segment.
    #[inline]
    pub fn start(self, number: u64) -> Lsn {
        Lsn(number.saturating_mul(self.0))
    }

    fn per_id(self) -> u64 {
        (1 << 32) / self.0
    }
}

/// The name of a segment: timeline and number, told apart from the number by the size. Ordered by timeline, then place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: u32,
    high: u32,
    low: u32,
}

impl SegmentName {
    /// The segment with this number on a timeline.
    pub fn new(timeline: u32, number: u64, size: SegmentSize) -> Self {
        SegmentName {
            timeline,
            high: (number / size.per_id()) as u32,
            low: (number % size.per_id()) as u32,
        }
    }

    /// Reads `000000010000000A000000FE`: 24 upper-case hexadecimal digits and nothing else.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 24 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
        let part = |range| u32::from_str_radix(text.get(range)?, 16).ok();
        match digits {
            true => Some(SegmentName {
                timeline: part(0..8)?,
                high: part(8..16)?,
                low: part(16..24)?,
            }),
            false => None,
        }
    }

    /// Its timeline.
    pub fn timeline(self) -> u32 {
        self.timeline
    }

    /// Its number, or None if segments of this size have no such name.
    pub fn number(self, size: SegmentSize) -> Option<u64> {
        let low = u64::from(self.low);
        (low < size.per_id()).then(|| u64::from(self.high) * size.per_id() + low)
    }

    /// Its first address.
    pub fn start(self, size: SegmentSize) -> Option<Lsn> {
        Some(size.start(self.number(size)?))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline, self.high, self.low)
    }
}

/// Where a timeline ended and the next one began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The timeline that ended.
    pub timeline: u32,
    /// Its last address; the next timeline goes on from here.
    pub at: Lsn,
}

/// The ancestors of a timeline, the oldest first: a `.history` file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    timeline: u32,
    forks: Vec<Fork>,
}

impl History {
    /// The history of the first timeline, which has no file.
    pub fn first() -> Self {
        History {
            timeline: 1,
            forks: Vec::new(),
        }
    }

    /// Reads the file `NNNNNNNN.history` of a timeline.
    pub fn parse(timeline: u32, text: &str) -> Result<Self> {
        let mut forks: Vec<Fork> = Vec::new();
        for line in text.lines() {
            let line = line.trim_start();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let parent = words.next().and_then(|w| w.parse::<u32>().ok());
            let at = words.next().and_then(|w| w.parse::<Lsn>().ok());
            let fork = parent.zip(at).map(|(timeline, at)| Fork { timeline, at });
            let in_order =
                |fork: &Fork| fork.timeline < timeline && forks.last().is_none_or(|last| last.timeline < fork.timeline);
            match fork.filter(in_order) {
                Some(fork) => forks.push(fork),
                None => {
                    return Err(Error::Text {
                        what: "not a line of a timeline's history",
                        text: line.into(),
                    });
                }
            }
        }
        Ok(History { timeline, forks })
    }

    /// The timeline whose history it is.
    pub fn timeline(&self) -> u32 {
        self.timeline
    }

    /// Its forks, the oldest first.
    pub fn forks(&self) -> &[Fork] {
        &self.forks
    }

    /// Where this timeline left an ancestor, or None if that is none of its ancestors.
    pub fn left(&self, ancestor: u32) -> Option<Lsn> {
        self.forks.iter().find(|f| f.timeline == ancestor).map(|f| f.at)
    }

    /// The timeline on which an address lies.
    pub fn timeline_of(&self, at: Lsn) -> u32 {
        let fork = self.forks.iter().find(|f| at < f.at);
        fork.map_or(self.timeline, |f| f.timeline)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_the_size() {
        let mib = |n: u64| SegmentSize::new(n << 20).unwrap();
        let name = SegmentName::parse("000000010000000A000000FE").unwrap();
        assert_eq!(name.number(mib(16)), Some(10 * 256 + 0xFE));
        assert_eq!(name.start(mib(16)), Some("A/FE000000".parse().unwrap()));
        assert_eq!(name.number(mib(1)), Some(10 * 4096 + 0xFE));
        assert_eq!(name.number(mib(64)), None);
        for size in [1, 16, 64, 1024].map(mib) {
            for number in [0, 1, size.per_id() - 1, size.per_id(), 77 * size.per_id() + 3] {
                let name = SegmentName::new(3, number, size);
                assert_eq!(name.number(size), Some(number));
                assert_eq!(SegmentName::parse(&name.to_string()), Some(name));
            }
        }
        for text in [
            "",
            "000000010000000A000000F",
            "000000010000000A000000FEE",
            "000000010000000a000000FE",
            "00000001+00000A0000000FE",
        ] {
            assert_eq!(SegmentName::parse(text), None, "{text}");
        }
        for bytes in [0, 1, (1 << 20) - 1, 3 << 20, 1 << 31] {
            assert!(SegmentSize::new(bytes).is_none());
        }
    }

    #[test]
    fn histories_say_where_an_address_lies() {
        let text = "1\t0/3000000\tno recovery target specified\n\n# note\n2\t0/5000028\tbefore 2000-01-01\n";
        let history = History::parse(3, text).unwrap();
        let at = |text: &str| history.timeline_of(text.parse().unwrap());
        assert_eq!(
            ["0/2FFFFFF", "0/3000000", "0/5000027", "0/5000028"].map(at),
            [1, 2, 2, 3]
        );
        assert_eq!(history.left(2), Some(Lsn(0x5000028)));
        assert_eq!(history.left(3), None);
        assert_eq!(History::first().timeline_of(Lsn(5)), 1);
        for bad in ["x", "1", "1 3000000", "3 0/1", "2 0/1\n1 0/2"] {
            assert!(History::parse(3, bad).is_err(), "{bad}");
        }
    }
}
