//! Rows that were touched, as many as there may be: in memory while they are few, in a file without a name where they
//! are many. Such a file is gone with whoever holds it, also when that was killed.

use super::archive::file_error;
use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synctool_core::error::{Error, Result};
use synctool_pgwal::{Overflow, Row, Touch, Touched};

/// How many rows are kept in memory, and where the others go.
#[derive(Debug, Clone)]
pub struct Room {
    /// Rows of one batch that are kept in memory, and as many of unfinished transactions.
    pub rows: usize,
    /// A directory for the others.
    pub directory: PathBuf,
}

/// A row's address: block and place in it.
pub type Address = (u32, u16);

/// Bytes of an address in a file.
const ADDRESS: usize = 6;
/// Bytes of a row in a file.
const ROW: usize = 11;
/// Addresses or rows that are read at once.
const PIECE: usize = 4096;

/// A growing file that has no name.
#[derive(Debug, Clone)]
struct Hidden {
    file: Arc<File>,
    end: u64,
    directory: PathBuf,
}

/// A part of it.
#[derive(Debug, Clone)]
struct Part {
    file: Arc<File>,
    directory: PathBuf,
    at: u64,
    end: u64,
}

impl Hidden {
    fn make(directory: &Path) -> Result<Self> {
        let path = directory.join("touched");
        let failed = |e: std::io::Error| file_error(&path, &e);
        fs::create_dir_all(directory).map_err(failed)?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.map_err(failed)?;
        fs::remove_file(&path).map_err(failed)?;
        Ok(Hidden {
            file: Arc::new(file),
            end: 0,
            directory: directory.into(),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<Part> {
        let at = self.end;
        let done = self.file.write_all_at(bytes, at);
        done.map_err(|e| file_error(&self.directory, &e))?;
        self.end += bytes.len() as u64;
        Ok(Part {
            file: self.file.clone(),
            directory: self.directory.clone(),
            at,
            end: self.end,
        })
    }
}

impl Part {
    /// The next bytes, whole items of this size; empty at the end.
    fn read(&mut self, item: usize) -> Result<Vec<u8>> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let mut bytes = vec![0; left.min(item * PIECE)];
        let done = self.file.read_exact_at(&mut bytes, self.at);
        done.map_err(|e| file_error(&self.directory, &e))?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// Addresses in one file of production's.
#[derive(Debug, Clone, Default)]
pub struct Addresses {
    memory: Vec<Address>,
    /// Each in order.
    runs: Vec<Part>,
}

impl Addresses {
    /// Adds some.
    pub(super) fn extend(&mut self, more: impl IntoIterator<Item = Address>) {
        self.memory.extend(more);
    }

    /// How many are in memory.
    fn held(&self) -> usize {
        self.memory.len()
    }

    /// Each once, in order.
    pub(super) fn settle(&mut self) {
        self.memory.sort_unstable();
        self.memory.dedup();
    }

    fn spill(&mut self, file: &mut Hidden) -> Result<()> {
        self.settle();
        let mut bytes = Vec::with_capacity(ADDRESS * PIECE);
        let mut run: Option<Part> = None;
        for piece in std::mem::take(&mut self.memory).chunks(PIECE) {
            bytes.clear();
            for (block, offset) in piece {
                bytes.extend_from_slice(&block.to_le_bytes());
                bytes.extend_from_slice(&offset.to_le_bytes());
            }
            let part = file.write(&bytes)?;
            match &mut run {
                Some(run) => run.end = part.end,
                None => run = Some(part),
            }
        }
        self.runs.extend(run);
        Ok(())
    }

    /// Whether some are not in memory.
    pub fn is_spilled(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Each once, in the order of the file.
    pub fn walk(&self) -> Result<Walk<'_>> {
        Walk::new(Cow::Borrowed(&self.memory), &self.runs)
    }

    /// The same, for somebody who keeps them.
    pub fn into_walk(self) -> Result<Walk<'static>> {
        Walk::new(Cow::Owned(self.memory), &self.runs)
    }
}

impl<'a> Walk<'a> {
    fn new(memory: Cow<'a, [Address]>, runs: &[Part]) -> Result<Self> {
        let mut walk = Walk {
            memory,
            at: 0,
            runs: Vec::new(),
            heads: BinaryHeap::new(),
            last: None,
        };
        for part in runs {
            let mut run = Run {
                part: part.clone(),
                read: Vec::new(),
                at: 0,
            };
            if let Some(first) = run.next()? {
                walk.heads.push(Reverse((first, walk.runs.len())));
            }
            walk.runs.push(run);
        }
        Ok(walk)
    }
}

#[derive(Debug)]
struct Run {
    part: Part,
    read: Vec<u8>,
    at: usize,
}

impl Run {
    fn next(&mut self) -> Result<Option<Address>> {
        if self.at == self.read.len() {
            (self.read, self.at) = (self.part.read(ADDRESS)?, 0);
        }
        let Some([a, b, c, d, e, f]) = self.read.get(self.at..self.at + ADDRESS) else {
            return Ok(None);
        };
        self.at += ADDRESS;
        Ok(Some((
            u32::from_le_bytes([*a, *b, *c, *d]),
            u16::from_le_bytes([*e, *f]),
        )))
    }
}

/// Goes through addresses.
#[derive(Debug)]
pub struct Walk<'a> {
    memory: Cow<'a, [Address]>,
    /// So many of them are behind us.
    at: usize,
    runs: Vec<Run>,
    /// The next of each run.
    heads: BinaryHeap<Reverse<(Address, usize)>>,
    last: Option<Address>,
}

impl Walk<'_> {
    /// The next, at most so many; none at the end.
    pub fn next(&mut self, most: usize) -> Result<Vec<Address>> {
        let mut some = Vec::with_capacity(most.min(self.memory.len() - self.at + self.runs.len() * PIECE));
        while some.len() < most {
            let from_memory = self.memory.get(self.at).copied();
            let next = match self.heads.peek() {
                Some(Reverse((address, nth))) if from_memory.is_none_or(|m| *address < m) => {
                    let (address, nth) = (*address, *nth);
                    self.heads.pop();
                    let run = &mut self.runs[nth];
                    if let Some(following) = run.next()? {
                        self.heads.push(Reverse((following, nth)));
                    }
                    address
                }
                _ => match from_memory {
                    Some(address) => {
                        self.at += 1;
                        address
                    }
                    None => break,
                },
            };
            if self.last != Some(next) {
                some.push(next);
                self.last = Some(next);
            }
        }
        Ok(some)
    }
}

/// Takes the largest out of memory until half of the room is free.
pub(super) fn make_room<'a>(
    all: impl Iterator<Item = &'a mut Addresses>,
    room: &Room,
    spill: &mut Spill,
) -> Result<usize> {
    let mut all: Vec<&mut Addresses> = all.collect();
    // Rows that were touched again and again take no room.
    all.iter_mut().for_each(|addresses| addresses.settle());
    let mut held = all.iter().map(|addresses| addresses.held()).sum::<usize>();
    all.sort_unstable_by_key(|addresses| Reverse(addresses.held()));
    for addresses in all {
        if held <= room.rows / 2 {
            break;
        }
        held -= addresses.held();
        addresses.spill(spill.file(room)?)?;
    }
    Ok(held)
}

/// The file of one batch, made when it is needed.
#[derive(Debug, Default)]
pub(super) struct Spill(Option<Hidden>);

impl Spill {
    fn file(&mut self, room: &Room) -> Result<&mut Hidden> {
        if self.0.is_none() {
            self.0 = Some(Hidden::make(&room.directory)?);
        }
        self.0
            .as_mut()
            .ok_or_else(|| Error::bug("a file that was made and is not there"))
    }
}

/// Rows of unfinished transactions for which there was no room.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    file: Spill,
    parts: BTreeMap<u32, Vec<Part>>,
}

impl Elsewhere {
    pub(super) fn put(&mut self, overflow: &Overflow, room: &Room) -> Result<()> {
        let mut bytes = Vec::with_capacity(ROW * PIECE);
        for piece in overflow.rows.chunks(PIECE) {
            bytes.clear();
            piece.iter().for_each(|row| encode(row, &mut bytes));
            let part = self.file.file(room)?.write(&bytes)?;
            let parts = self.parts.entry(overflow.xid).or_default();
            match parts.last_mut() {
                Some(last) if last.end == part.at => last.end = part.end,
                _ => parts.push(part),
            }
        }
        Ok(())
    }

    /// Gives the rows of a transaction back, piece by piece.
    pub(super) fn take(&mut self, xid: u32, mut each: impl FnMut(&[Row]) -> Result<()>) -> Result<()> {
        for mut part in self.parts.remove(&xid).unwrap_or_default() {
            loop {
                let bytes = part.read(ROW)?;
                if bytes.is_empty() {
                    break;
                }
                let rows: Option<Vec<Row>> = bytes.chunks_exact(ROW).map(decode).collect();
                each(&rows.ok_or_else(|| Error::bug("a spilled row that is none"))?)?;
            }
        }
        self.tidy();
        Ok(())
    }

    pub(super) fn forget(&mut self, xid: u32) {
        self.parts.remove(&xid);
        self.tidy();
    }

    /// Nothing is in the file any more: its space is given back.
    fn tidy(&mut self) {
        if self.parts.is_empty() {
            self.file = Spill::default();
        }
    }
}

const WHAT: [Touched; 5] = [
    Touched::Inserted,
    Touched::Updated,
    Touched::Replaced,
    Touched::Deleted,
    Touched::Withdrawn,
];

fn encode(row: &Row, out: &mut Vec<u8>) {
    out.extend_from_slice(&row.file.to_le_bytes());
    out.extend_from_slice(&row.touch.block.to_le_bytes());
    out.extend_from_slice(&row.touch.offset.to_le_bytes());
    let what = WHAT.iter().position(|what| *what == row.touch.what);
    out.push(what.map_or(u8::MAX, |what| what as u8));
}

fn decode(bytes: &[u8]) -> Option<Row> {
    Some(Row {
        file: u32::from_le_bytes(bytes.get(..4)?.try_into().ok()?),
        touch: Touch {
            block: u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?),
            offset: u16::from_le_bytes(bytes.get(8..10)?.try_into().ok()?),
            what: *WHAT.get(usize::from(*bytes.get(10)?))?,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn room(rows: usize) -> (tempfile::TempDir, Room) {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("room");
        (place, Room { rows, directory })
    }

    fn all(addresses: &Addresses, most: usize) -> Vec<Address> {
        let mut walk = addresses.walk().unwrap();
        let mut found = Vec::new();
        loop {
            let some = walk.next(most).unwrap();
            assert!(some.len() <= most);
            if some.is_empty() {
                return found;
            }
            found.extend(some);
        }
    }

    proptest! {
        #[test]
        fn every_address_comes_once_and_in_order(
            adds in prop::collection::vec(prop::collection::vec((0u32..40, 1u16..5), 0..60), 0..12),
            rows in 1usize..80,
            most in 1usize..50,
        ) {
            let (_place, room) = room(rows);
            let mut spill = Spill::default();
            let (mut addresses, mut expected) = (Addresses::default(), BTreeSet::new());
            for add in adds {
                expected.extend(add.iter().copied());
                addresses.extend(add);
                let held = make_room([&mut addresses].into_iter(), &room, &mut spill).unwrap();
                prop_assert!(held <= rows / 2 && held == addresses.held());
            }
            addresses.settle();
            prop_assert_eq!(all(&addresses, most), expected.into_iter().collect::<Vec<_>>());
        }
    }

    #[test]
    fn rows_come_back_as_they_went_and_leave_nothing() {
        let (_place, room) = room(1);
        let rows = |seed: u32, n: u32| -> Vec<Row> {
            let row = |i: u32| Row {
                file: seed,
                touch: Touch {
                    block: i.wrapping_mul(0x0101_0101),
                    offset: (i % 300) as u16,
                    what: WHAT[i as usize % WHAT.len()],
                },
            };
            (0..n).map(row).collect()
        };
        let mut elsewhere = Elsewhere::default();
        let n = 3 * PIECE as u32 + 7;
        for (xid, rows) in [(7, rows(1, n)), (8, rows(2, 5)), (7, rows(3, 9))] {
            elsewhere.put(&Overflow { xid, rows }, &room).unwrap();
        }
        elsewhere.forget(8);
        let mut found = Vec::new();
        let mut take = |some: &[Row]| {
            found.extend_from_slice(some);
            Ok(())
        };
        elsewhere.take(7, &mut take).unwrap();
        assert_eq!(found, [rows(1, n), rows(3, 9)].concat());
        assert!(elsewhere.file.0.is_none());
        assert_eq!(std::fs::read_dir(&room.directory).unwrap().count(), 0);
    }
}
