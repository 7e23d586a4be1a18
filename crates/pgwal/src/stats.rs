//! How many records of which kind, and how large.

use crate::error::Result;
use crate::record::{Parts, Record};
use crate::rmgr::Rmgr;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Records of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// How many.
    pub records: u64,
    /// Their bytes without page images.
    pub bytes: u64,
    /// Bytes of page images.
    pub image_bytes: u64,
}

impl Count {
    /// Adds another.
    pub fn add(&mut self, other: Count) {
        self.records += other.records;
        self.bytes += other.bytes;
        self.image_bytes += other.image_bytes;
    }
}

/// Counts per resource manager and kind.
#[derive(Debug, Clone)]
pub struct Stats {
    /// By resource manager and the upper four bits of the info byte; a fixed place each.
    cells: Vec<[Count; 16]>,
    kinds: BTreeMap<(Rmgr, u8), Cow<'static, str>>,
    parts: Parts,
}

impl Default for Stats {
    fn default() -> Self {
        Stats {
            cells: vec![[Count::default(); 16]; 256],
            kinds: BTreeMap::new(),
            parts: Parts::default(),
        }
    }
}

impl Stats {
    /// Counts a record.
    pub fn count(&mut self, record: &Record<'_>) -> Result<()> {
        record.parse(&mut self.parts)?;
        let image_bytes = self.parts.image_bytes();
        // The highest bit of a transaction record says only that more follows; it is no kind of its own.
        let info = match record.rmgr() {
            Rmgr::TRANSACTION => record.info() & 0x70,
            _ => record.info(),
        };
        let cell = &mut self.cells[usize::from(record.rmgr().number())][usize::from(info >> 4)];
        if cell.records == 0 {
            self.kinds.insert((record.rmgr(), info >> 4), record.kind());
        }
        cell.add(Count {
            records: 1,
            bytes: record.bytes().len() as u64 - image_bytes,
            image_bytes,
        });
        Ok(())
    }

    /// Every kind that was seen, in the order of the resource managers.
    pub fn kinds(&self) -> impl Iterator<Item = (Rmgr, &str, Count)> {
        let cell = |rmgr: &Rmgr, info: &u8| self.cells[usize::from(rmgr.number())][usize::from(*info)];
        self.kinds
            .iter()
            .map(move |((rmgr, info), kind)| (*rmgr, kind.as_ref(), cell(rmgr, info)))
    }

    /// Every resource manager that was seen.
    pub fn rmgrs(&self) -> BTreeMap<Rmgr, Count> {
        let mut sums: BTreeMap<Rmgr, Count> = BTreeMap::new();
        for (rmgr, _, count) in self.kinds() {
            sums.entry(rmgr).or_default().add(count);
        }
        sums
    }

    /// All of them.
    pub fn total(&self) -> Count {
        let mut total = Count::default();
        self.rmgrs().values().for_each(|count| total.add(*count));
        total
    }
}
