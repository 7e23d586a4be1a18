//! From records to committed transactions and the rows they touched.

use crate::error::Result;
use crate::lsn::Lsn;
use crate::meaning::{Meaning, RelFile, Running, Touch, Touched};
use crate::record::{Parts, Record};
use crate::xact::{End, Timestamp};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

/// Multiplies; transaction numbers and file numbers need no more.
#[derive(Debug, Clone, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|b| self.write_u32(u32::from(*b)));
    }

    fn write_u32(&mut self, n: u32) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(n)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

type Map<K, V> = HashMap<K, V, BuildHasherDefault<Spread>>;
type Set<K> = HashSet<K, BuildHasherDefault<Spread>>;

/// Operations on the rows of a file, as a client would count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub inserted: u64,
    pub updated: u64,
    pub deleted: u64,
}

impl Counts {
    /// Counts a touch. A replaced version belongs to the update that replaced it.
    pub fn touch(&mut self, what: Touched) {
        match what {
            Touched::Inserted => self.inserted += 1,
            Touched::Updated => self.updated += 1,
            Touched::Deleted => self.deleted += 1,
            Touched::Withdrawn => self.inserted = self.inserted.saturating_sub(1),
            Touched::Replaced => {}
        }
    }

    /// Adds another.
    pub fn add(&mut self, other: Counts) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }
}

/// A touched row, with its file as a number that [`Scanner::file`] knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The file.
    pub file: u32,
    /// The address and what happened there.
    pub touch: Touch,
}

/// A committed transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The commit's own record.
    pub lsn: Lsn,
    /// Where a standby stands after it.
    pub end: Lsn,
    /// The transaction, when it ended, and what it dropped.
    pub transaction: End,
    /// Every row it touched, in the order of the log for each of its subtransactions.
    pub rows: Vec<Row>,
    /// It and those of its subtransactions whose earlier rows [`Scanner::overflow`] gave away: they belong before `rows`.
    pub overflowed: Vec<u32>,
}

/// Earlier rows of an unfinished transaction, for which there is no room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overflow {
    /// The transaction, or the subtransaction.
    pub xid: u32,
    /// The rows, in the order of the log.
    pub rows: Vec<Row>,
}

/// What a record told the scanner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A transaction committed.
    Committed(Committed),
    /// Something else that may concern a reader; never rows, commits or aborts.
    Note(Meaning),
}

#[derive(Debug, Clone)]
struct Pending {
    first: Lsn,
    rows: Vec<Row>,
    overflowed: bool,
}

/// Keeps what unfinished transactions touched. A scanner that is started again must be started at
/// [`Scanner::restart`], or else it misses the beginnings of transactions.
#[derive(Debug, Clone)]
pub struct Scanner {
    database: Option<u32>,
    limit: usize,
    held: usize,
    pending: Map<u32, Pending>,
    /// Transactions that overflowed and came to nothing.
    withdrawn: Vec<u32>,
    /// Prepared transactions with their subtransactions: they outlive the server.
    prepared: Map<u32, Vec<u32>>,
    /// Transactions that were open before the scan began, as far as they are known and still open.
    strangers: Option<Set<u32>>,
    files: Vec<RelFile>,
    numbers: Map<RelFile, u32>,
    last_file: Option<(RelFile, u32)>,
    position: Lsn,
    last_commit: Option<Timestamp>,
    parts: Parts,
    touches: Vec<Touch>,
}

/// Rows of unfinished transactions that there is room for: 16 bytes each.
const LIMIT: usize = 1 << 20;
/// So many files take no room worth a look.
const FILES: usize = 4096;

impl Scanner {
    /// Follows the rows of one database, or of all.
    pub fn new(database: Option<u32>) -> Self {
        Scanner {
            database,
            limit: LIMIT,
            held: 0,
            pending: Map::default(),
            withdrawn: Vec::new(),
            prepared: Map::default(),
            strangers: None,
            files: Vec::new(),
            numbers: Map::default(),
            last_file: None,
            position: Lsn(0),
            last_commit: None,
            parts: Parts::default(),
            touches: Vec::new(),
        }
    }

    /// There is room for so many rows of unfinished transactions.
    #[must_use]
    pub fn limit(mut self, rows: usize) -> Self {
        self.limit = rows;
        self
    }

    /// Whether more rows are kept than there is room for. Whoever does not ask lets them grow.
    pub fn is_full(&self) -> bool {
        self.held > self.limit
    }

    /// Gives away what the largest transactions touched so far, until half of the room is free. It is to be kept
    /// elsewhere until the transaction ends: [`Committed::overflowed`] and [`Scanner::withdrawn`] tell.
    pub fn overflow(&mut self) -> Vec<Overflow> {
        let mut largest: Vec<(usize, u32)> = self.pending.iter().map(|(xid, p)| (p.rows.len(), *xid)).collect();
        largest.sort_unstable_by(|a, b| b.cmp(a));
        let mut given = Vec::new();
        for (rows, xid) in largest {
            if self.held <= self.limit / 2 || rows == 0 {
                break;
            }
            let Some(pending) = self.pending.get_mut(&xid) else {
                continue;
            };
            pending.overflowed = true;
            self.held -= rows;
            given.push(Overflow {
                xid,
                rows: std::mem::take(&mut pending.rows),
            });
        }
        given
    }

    /// Transactions that overflowed and came to nothing since this was last asked.
    pub fn withdrawn(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.withdrawn)
    }

    /// The file with this number.
    pub fn file(&self, number: u32) -> RelFile {
        self.files[number as usize]
    }

    /// Forgets files in which no unfinished transaction touched a row, once they are many: each TRUNCATE and rewrite makes
    /// another. What was handed out before must have been looked up. Rows that were given away carry their numbers with
    /// them: while there are any, nothing is forgotten.
    pub fn tidy(&mut self) {
        if self.files.len() < FILES || self.pending.values().any(|pending| pending.overflowed) {
            return;
        }
        let files = std::mem::take(&mut self.files);
        (self.numbers, self.last_file) = (Map::default(), None);
        let mut pending = std::mem::take(&mut self.pending);
        for row in pending.values_mut().flat_map(|pending| &mut pending.rows) {
            row.file = self.number(files[row.file as usize]);
        }
        self.pending = pending;
    }

    /// The end of the last record taken.
    pub fn position(&self) -> Lsn {
        self.position
    }

    /// The time of the last commit taken.
    pub fn last_commit(&self) -> Option<Timestamp> {
        self.last_commit
    }

    /// How many transactions have touched rows and not ended.
    pub fn unresolved(&self) -> usize {
        self.pending.len()
    }

    /// From where a new scanner must read to know as much: the first touch of the oldest unfinished transaction.
    pub fn restart(&self) -> Lsn {
        let firsts = self.pending.values().map(|pending| pending.first);
        firsts.min().unwrap_or(self.position)
    }

    /// Whether every transaction that began before the scan has ended: from here on no touch was missed. False until
    /// the log has said which transactions were open.
    pub fn is_complete(&self) -> bool {
        self.strangers.as_ref().is_some_and(|set| set.is_empty())
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &Record<'_>) -> Result<Option<Event>> {
        let meaning = Meaning::of(record, &mut self.parts, &mut self.touches)?;
        self.position = record.end();
        Ok(match meaning {
            Meaning::Other => None,
            Meaning::Rows(file) => {
                if record.xid() != 0 && self.database.is_none_or(|d| d == file.database) {
                    self.keep(record.lsn(), record.xid(), file);
                }
                None
            }
            Meaning::Commit(end) => {
                self.last_commit = Some(end.at);
                Some(Event::Committed(self.commit(record, end)))
            }
            Meaning::Abort(end) => {
                self.forget(end.xid);
                end.subtransactions.iter().for_each(|xid| self.forget(*xid));
                None
            }
            Meaning::Prepare(prepared) => {
                self.prepared.insert(prepared.xid, prepared.subtransactions.clone());
                Some(Event::Note(Meaning::Prepare(prepared)))
            }
            Meaning::Running(running) => {
                self.running(&running);
                Some(Event::Note(Meaning::Running(running)))
            }
            note => {
                if let Meaning::Checkpoint { shutdown: true, .. } = note {
                    self.stood_still();
                }
                Some(Event::Note(note))
            }
        })
    }

    fn keep(&mut self, lsn: Lsn, xid: u32, file: RelFile) {
        let number = self.number(file);
        let pending = self.pending.entry(xid).or_insert_with(|| Pending {
            first: lsn,
            rows: Vec::new(),
            overflowed: false,
        });
        let rows = self.touches.iter().map(|touch| Row {
            file: number,
            touch: *touch,
        });
        pending.rows.extend(rows);
        self.held += self.touches.len();
    }

    fn number(&mut self, file: RelFile) -> u32 {
        if let Some((last, number)) = self.last_file
            && last == file
        {
            return number;
        }
        let number = *self.numbers.entry(file).or_insert_with(|| {
            self.files.push(file);
            (self.files.len() - 1) as u32
        });
        self.last_file = Some((file, number));
        number
    }

    fn commit(&mut self, record: &Record<'_>, end: End) -> Committed {
        let mut rows = Vec::new();
        let mut overflowed = Vec::new();
        let ended = std::iter::once(&end.xid).chain(&end.subtransactions);
        for xid in ended {
            if let Some(pending) = self.end(*xid) {
                match rows.is_empty() {
                    true => rows = pending.rows,
                    false => rows.extend(pending.rows),
                }
                overflowed.extend(pending.overflowed.then_some(*xid));
            }
        }
        Committed {
            lsn: record.lsn(),
            end: record.end(),
            transaction: end,
            rows,
            overflowed,
        }
    }

    fn end(&mut self, xid: u32) -> Option<Pending> {
        self.prepared.remove(&xid);
        if let Some(strangers) = &mut self.strangers {
            strangers.remove(&xid);
        }
        let pending = self.pending.remove(&xid)?;
        self.held -= pending.rows.len();
        Some(pending)
    }

    fn forget(&mut self, xid: u32) {
        if self.end(xid).is_some_and(|pending| pending.overflowed) {
            self.withdrawn.push(xid);
        }
    }

    /// Transactions older than the oldest open one have ended, even if a crash let them end without a record.
    fn running(&mut self, running: &Running) {
        let over: Vec<u32> = self
            .pending
            .keys()
            .copied()
            .filter(|xid| precedes(*xid, running.oldest))
            .collect();
        over.into_iter().for_each(|xid| self.forget(xid));
        let open: Set<u32> = running.xids.iter().copied().collect();
        match &mut self.strangers {
            // The list may name transactions whose end stands in the log already: the next list will not.
            Some(strangers) => {
                strangers.retain(|xid| !precedes(*xid, running.oldest) && (running.overflowed || open.contains(xid)))
            }
            None => self.strangers = Some(open),
        }
    }

    /// After a shutdown, or a crash and its recovery, only prepared transactions are left.
    fn stood_still(&mut self) {
        let kept: Set<u32> = self
            .prepared
            .iter()
            .flat_map(|(top, subs)| subs.iter().chain([top]))
            .copied()
            .collect();
        let over: Vec<u32> = self.pending.keys().copied().filter(|xid| !kept.contains(xid)).collect();
        over.into_iter().for_each(|xid| self.forget(xid));
    }
}

/// Whether one transaction number was given before another; numbers wrap around.
fn precedes(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_wrap_around() {
        assert!(precedes(3, 4) && !precedes(4, 4) && !precedes(5, 4));
        assert!(precedes(u32::MAX, 3) && !precedes(3, u32::MAX));
    }

    #[test]
    fn files_that_nobody_touches_any_more_are_forgotten() {
        let file = |file: u32| RelFile {
            tablespace: 1,
            database: 2,
            file,
        };
        let mut scanner = Scanner::new(None);
        scanner.touches.push(Touch {
            block: 3,
            offset: 4,
            what: Touched::Inserted,
        });
        let open = [7, 4000];
        for n in 1..=FILES as u32 {
            scanner.keep(Lsn(u64::from(n)), n, file(n));
            scanner.keep(Lsn(u64::from(n)), n, file(1));
            if !open.contains(&n) {
                scanner.forget(n);
            }
        }
        scanner.tidy();
        assert_eq!((scanner.files.len(), scanner.numbers.len()), (3, 3));
        for n in open {
            let pending = scanner.end(n).unwrap();
            let touched: Vec<RelFile> = pending.rows.iter().map(|row| scanner.file(row.file)).collect();
            assert_eq!(touched, [file(n), file(1)]);
        }
        assert_eq!(scanner.held, 0);
    }

    #[test]
    fn rows_that_were_given_away_keep_their_files() {
        let mut scanner = Scanner::new(None).limit(1);
        scanner.touches.push(Touch {
            block: 3,
            offset: 4,
            what: Touched::Inserted,
        });
        for n in 1..=FILES as u32 {
            let file = RelFile {
                tablespace: 1,
                database: 2,
                file: n,
            };
            scanner.keep(Lsn(1), 9, file);
        }
        let given = scanner.overflow();
        scanner.tidy();
        assert_eq!(scanner.files.len(), FILES);
        assert!(
            given[0]
                .rows
                .iter()
                .all(|row| scanner.file(row.file).file == row.file + 1)
        );
    }

    #[test]
    fn a_withdrawn_insertion_counts_nothing() {
        let mut counts = Counts::default();
        for what in [
            Touched::Inserted,
            Touched::Withdrawn,
            Touched::Inserted,
            Touched::Replaced,
            Touched::Updated,
            Touched::Deleted,
        ] {
            counts.touch(what);
        }
        let expected = Counts {
            inserted: 1,
            updated: 1,
            deleted: 1,
        };
        assert_eq!(counts, expected);
    }
}
