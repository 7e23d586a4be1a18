//! What committed between two places of the log: which rows to read again, and what to count.

use super::archive::{self, Segment};
use super::touched::{self, Addresses, Elsewhere, Room, Spill};
use std::collections::{BTreeMap, BTreeSet};
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{
    Committed, Counts, Decoder, Event, Identity, Lsn, Meaning, Parameters, Record, RelFile, Row, Scanner, SegmentName,
    Timestamp, WalLevel,
};

const HOUR_MICROS: i64 = 3_600_000_000;

/// Rows of a file that committed transactions touched.
#[derive(Debug, Clone, Default)]
pub struct Changes {
    /// Their addresses.
    pub addresses: Addresses,
    /// Operations by the hour (since 1970, UTC) in which they committed.
    pub hours: BTreeMap<i64, Counts>,
}

impl Changes {
    /// All operations.
    pub fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        self.hours.values().for_each(|counts| sum.add(*counts));
        sum
    }
}

/// What committed between two places.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Behind this place.
    pub from: Lsn,
    /// Up to this place: where the scratch server stands when it has replayed the batch.
    pub to: Lsn,
    /// From here a new scan must begin to know as much as this one at `to`.
    pub restart: Lsn,
    /// Transactions that committed.
    pub commits: u64,
    /// When the last one did, by production's clock.
    pub last_commit: Option<Timestamp>,
    /// The hours (since 1970, UTC) in which they did.
    pub hours: BTreeSet<i64>,
    /// By the file they were in when they were touched.
    pub files: BTreeMap<RelFile, Changes>,
    /// Production's settings, if they changed: the scratch server's must not be lower.
    pub parameters: Option<Parameters>,
    /// What the log between the two places holds, in one number: another log of the same length has another.
    pub log: u64,
}

/// Reads admitted segments in order and collects batches.
#[derive(Debug)]
pub struct Scan {
    decoder: Decoder,
    scanner: Scanner,
    batch: Batch,
    room: Room,
    /// Addresses of the batch that are in memory.
    held: usize,
    spill: Spill,
    elsewhere: Elsewhere,
    /// Where base backups began that ended in what was read.
    backups: BTreeSet<Lsn>,
}

impl Scan {
    /// Begins at `start` and collects what commits behind `applied`: for a new scratch server both are where its base
    /// backup begins, later they are the stored restart and the stored position.
    pub fn new(identity: Identity, database: Option<u32>, start: Lsn, applied: Lsn, room: Room) -> Self {
        Scan {
            decoder: Decoder::at(identity, start),
            scanner: Scanner::new(database).limit(room.rows),
            batch: Batch::new(applied),
            room,
            held: 0,
            spill: Spill::default(),
            elsewhere: Elsewhere::default(),
            backups: BTreeSet::new(),
        }
    }

    /// The segment address that must be taken next.
    pub fn needs(&self) -> Lsn {
        self.decoder.needs()
    }

    /// Where the last whole record ended.
    pub fn position(&self) -> Lsn {
        self.decoder.position()
    }

    /// From here a new scan must begin to know as much as this one. A record that is still unfinished belongs to what
    /// comes: a new scan must see its beginning.
    pub fn restart(&self) -> Lsn {
        self.scanner.restart().min(self.position())
    }

    /// Whether nothing that is still open began before the scan: only from such a place on can batches be applied.
    pub fn is_complete(&self) -> bool {
        self.scanner.is_complete()
    }

    /// Whether the base backup that began here ended in what was read. Others may be made at the same time.
    pub fn backup_ended(&self, begun: Lsn) -> bool {
        self.backups.contains(&begun)
    }

    /// Production's settings, if they changed in what was read since the last batch.
    pub fn parameters(&self) -> Option<&Parameters> {
        self.batch.parameters.as_ref()
    }

    /// What was read since the last batch ([`Batch::log`]).
    pub fn log(&self) -> u64 {
        self.batch.log
    }

    /// Goes over to another timeline's copy of the log, which is the same up to our place.
    pub fn change_timeline(&mut self) {
        self.decoder = Decoder::at(*self.decoder.identity(), self.decoder.position());
    }

    /// Takes the next segment.
    pub fn take(&mut self, segment: &Segment) -> Result<()> {
        let read = segment.read(|at, piece| self.take_piece(segment.name, at, piece));
        read.map_err(|e| archive::file_error(&segment.path, &e))??;
        for xid in self.scanner.withdrawn() {
            self.elsewhere.forget(xid);
        }
        Ok(())
    }

    fn take_piece(&mut self, name: SegmentName, at: Lsn, piece: &[u8]) -> Result<()> {
        let damaged = |e: synctool_pgwal::Error| {
            Error::new(code::WAL_DAMAGED, format!("WAL segment {name} cannot be read: {e}"))
                .at("segment", name.to_string())
        };
        let mut feed = self.decoder.feed(at, piece).map_err(damaged)?;
        while let Some(record) = feed.next().map_err(damaged)? {
            self.batch.read(&record);
            let event = self.scanner.take(&record).map_err(damaged)?;
            if self.scanner.is_full() {
                for overflow in self.scanner.overflow() {
                    self.elsewhere.put(&overflow, &self.room)?;
                }
            }
            match event {
                Some(Event::Committed(commit)) => {
                    let counts = commit.end > self.batch.from;
                    let mut add = |rows: &[Row]| {
                        if !counts {
                            return Ok(());
                        }
                        self.batch.touch(&self.scanner, &commit, rows);
                        self.held += rows.len();
                        if self.held > self.room.rows {
                            let all = self.batch.files.values_mut().map(|changes| &mut changes.addresses);
                            self.held = touched::make_room(all, &self.room, &mut self.spill)?;
                        }
                        Ok(())
                    };
                    for xid in &commit.overflowed {
                        self.elsewhere.take(*xid, &mut add)?;
                    }
                    add(&commit.rows)?;
                    if counts {
                        self.batch.add(&commit);
                    }
                }
                Some(Event::Note(Meaning::Parameters(parameters))) => {
                    if parameters.wal_level == Some(WalLevel::Minimal) && record.end() > self.batch.from {
                        return Err(Error::new(
                            code::UNSUPPORTED,
                            "production wal_level is minimal: not enough for replay (replica or logical needed)",
                        )
                        .at("lsn", record.lsn().to_string())
                        .hint("set wal_level = replica in production, restart it, and take a new base backup"));
                    }
                    self.batch.parameters = Some(parameters);
                }
                // One without a place of its own lies in the data directory.
                Some(Event::Note(Meaning::TablespaceCreated(place))) if place.starts_with('/') => {
                    return Err(Error::new(
                        code::UNSUPPORTED,
                        format!("production made a tablespace in {place}: the scratch server would write into that directory of this machine"),
                    )
                    .at("lsn", record.lsn().to_string())
                    .hint("tablespaces cannot be followed: move the tables back and drop it in production, then take a new base backup"));
                }
                Some(Event::Note(Meaning::BackupEnd(begun))) => {
                    self.backups.insert(begun);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A batch that was ended goes on. Its rows need not be known any more: every table will be read whole.
    pub(super) fn resume(&mut self, mut batch: Batch) {
        let all = batch.files.values_mut();
        all.for_each(|changes| changes.addresses = Addresses::default());
        self.batch = batch;
    }

    /// Ends the batch here and begins the next.
    pub fn finish(&mut self) -> Batch {
        let (to, restart) = (self.position(), self.restart());
        let mut batch = std::mem::replace(&mut self.batch, Batch::new(to));
        (batch.to, batch.restart) = (to, restart);
        for changes in batch.files.values_mut() {
            changes.addresses.settle();
        }
        (self.held, self.spill) = (0, Spill::default());
        self.scanner.tidy();
        batch
    }
}

impl Batch {
    fn new(from: Lsn) -> Self {
        Batch {
            from,
            to: from,
            restart: from,
            commits: 0,
            last_commit: None,
            hours: BTreeSet::new(),
            files: BTreeMap::new(),
            parameters: None,
            log: 0,
        }
    }

    /// Remembers a record of the batch by its checksum.
    fn read(&mut self, record: &Record<'_>) {
        if record.end() > self.from {
            let sum = u64::from(record.checksum());
            self.log = (self.log.rotate_left(5) ^ sum).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        }
    }

    /// Whether there were more touched rows than there was room for in memory.
    pub fn is_spilled(&self) -> bool {
        self.files.values().any(|changes| changes.addresses.is_spilled())
    }

    fn add(&mut self, commit: &Committed) {
        self.commits += 1;
        self.last_commit = self.last_commit.max(Some(commit.transaction.at));
        self.hours.insert(hour_of(commit));
    }

    fn touch(&mut self, scanner: &Scanner, commit: &Committed, rows: &[Row]) {
        let hour = hour_of(commit);
        // Rows of one file mostly follow each other.
        for rows in rows.chunk_by(|a, b| a.file == b.file) {
            let changes = self.files.entry(scanner.file(rows[0].file)).or_default();
            let counts = changes.hours.entry(hour).or_default();
            rows.iter().for_each(|row| counts.touch(row.touch.what));
            let addresses = rows.iter().map(|row| (row.touch.block, row.touch.offset));
            changes.addresses.extend(addresses);
        }
    }
}

/// The hour in which it committed.
fn hour_of(commit: &Committed) -> i64 {
    commit.transaction.at.unix_micros().div_euclid(HOUR_MICROS)
}
