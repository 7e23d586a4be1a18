//! DBLog: a snapshot in chunks between the events of a log that keeps flowing.
//!
//! After Andreakis and Papapanagiotou, "DBLog: A Watermark Based Change-Data-Capture Framework" (2020). A chunk is read
//! between two watermarks that this reader writes into the log. When the log reaches the high one, the chunk's rows are
//! emitted just before that transaction's boundary, except rows whose key was touched in the window: the log knows
//! better. While the log is busy they are emitted in slices between its transactions, so that these do not wait for all of
//! them. Three traps are handled beyond the paper:
//!
//! 1. A touched row may lack values (unchanged TOAST). The chunk supplies them: the emitted row is the chunk's with
//!    everything the window's events carried laid over it.
//! 2. An update of a row that the sink does not have never becomes an insert with NULLs. While a table is backfilled,
//!    complete updates travel as upserts, and a key change without every value has its new key fetched again. So has,
//!    always, a new row without every value: a filter lets it in, and its large values did not change.
//! 3. A transaction whose commit the log has shown already may still be invisible to the chunk's SELECT. The chunk
//!    says which transactions were in progress for it; if one of them was seen as committed before the low watermark,
//!    the chunk is read again. So it is if the log showed the commit of a transaction that is newer than the snapshot
//!    itself, and while one of them was in progress already when this reader started and was not
//!    seen since: its commit may stand in the log before the place where we started to read.

use crate::budget::Hold;
use crate::change::{ChangeBatch, Event, KeyRange, Op, Ops, SchemaChange};
use crate::error::{Error, ErrorKind, Result, code};
use crate::failpoint::failpoint;
use crate::progress::Position;
use crate::schema::{TableId, TableSchema};
use crate::source::Reader;
use crate::text;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, UInt8Array, UInt32Array};
use arrow_select::concat::concat_batches;
use arrow_select::filter::filter_record_batch;
use arrow_select::interleave::interleave;
use arrow_select::take::take_record_batch;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The prefix of the messages that carry watermarks.
pub const WATERMARK_PREFIX: &str = "synctool.watermark";

/// How many commits are remembered for the third trap. A transaction stays invisible after its commit record for
/// microseconds, in practice; this many commits take longer.
const REMEMBERED_COMMITS: usize = 65_536;

/// Transactions become visible in their own time; asking again at once would only load the source. Each wait in vain is
/// twice as long as the one before it, up to the longer one.
const REDO_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A chunk that is in vain for so long is told of.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// What the log says while a window is open is kept up to here; with more, the chunk is read again behind it.
const WINDOW_BYTES: usize = 64 << 20;
const WINDOW_KEYS: usize = 200_000;

/// So many rows of a chunk are emitted at once while the log is busy: what it brings meanwhile waits for them.
const SLICE: usize = 1_000;

/// The next chunk is read while so many rows are left of one.
const LEFT: usize = 3 * SLICE;

/// Keys that are fetched at once.
const KEYS_AT_ONCE: usize = 1_000;

/// How many requests a position remembers as taken, besides those that no durable one has yet: whoever keeps them forgets
/// them long before.
const REMEMBERED_REQUESTS: usize = 64;

/// How many are told to be safe: more than anybody hands over between two looks at them.
const TOLD_REQUESTS: usize = 4096;

/// Rows of one table, read in one snapshot.
#[derive(Debug, Clone)]
pub struct Chunk {
    /// All rows of `range` (or of the keys asked for), complete.
    pub rows: RecordBatch,
    /// What it covers: from where it was asked to start up to `next`.
    pub range: KeyRange,
    /// The first key of the next chunk; `None` at the table's end.
    pub next: Option<Vec<String>>,
    /// Transactions that the snapshot could not see yet.
    pub in_progress: Vec<u64>,
    /// The first number that the snapshot knew nothing of: transactions from here on are invisible to it, too.
    pub future: Option<u64>,
}

/// What a log source must offer so that tables can be backfilled beside its log.
#[async_trait]
pub trait ChunkSource: Send + Sync {
    /// Writes a message that comes back in the log as [`Event::Message`] with [`WATERMARK_PREFIX`], in a transaction
    /// of its own.
    async fn write_watermark(&self, content: &str) -> Result<()>;

    /// The table's columns and key.
    async fn schema(&self, table: &TableId) -> Result<TableSchema>;

    /// Reads up to `limit` rows in key order, from a key on (`None`: from the start).
    async fn read_chunk(&self, table: &TableId, from: Option<&[String]>, limit: usize) -> Result<Chunk>;

    /// Reads the rows of these keys.
    async fn read_keys(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Chunk>;

    /// Whether the log is read on while a chunk is: its watermarks come in the log by themselves. Where they are put into
    /// it at the place of the chunk's snapshot, the log must not be beyond that place already.
    fn beside_log(&self) -> bool {
        false
    }

    /// Whether this table is followed now. What is asked of another one is not read.
    fn follows(&self, table: &TableId) -> bool {
        let _ = table;
        true
    }

    /// The places of a table's key in its rows, where new ones may come without all of their values.
    fn key_places(&self, table: &TableId) -> Option<Vec<usize>> {
        let _ = table;
        None
    }

    /// What must be read again after a change of shape: a new column may have values in rows that nobody touched.
    fn refill(&self, change: &SchemaChange) -> Option<Pending> {
        let _ = change;
        None
    }
}

/// What is left to do for one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pending {
    /// The table.
    pub table: TableId,
    /// Where its next chunk starts; `None` at the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Vec<String>>,
    /// Whether the chunks are through and only `keys` are left.
    #[serde(default)]
    pub through: bool,
    /// Keys to fetch again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<Vec<String>>,
    /// Whether each chunk replaces its range at the sink (a re-sync), or is only upserted into it (a first load).
    #[serde(default)]
    pub replace: bool,
    /// Rows of chunks so far, for progress only.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows: u64,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands a reference")]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl Pending {
    /// A whole table, to be loaded.
    pub fn load(table: TableId) -> Self {
        Pending {
            table,
            from: None,
            through: false,
            keys: Vec::new(),
            replace: false,
            rows: 0,
        }
    }

    /// A whole table, to be made equal: rows that only the destination has go.
    pub fn resync(table: TableId) -> Self {
        Pending {
            replace: true,
            ..Pending::load(table)
        }
    }

    /// Joins what is to be read already; a whole table begins anew.
    pub fn besides(self, all: &mut Vec<Pending>) {
        let Some(there) = all.iter_mut().find(|p| p.table == self.table) else {
            all.push(self);
            return;
        };
        if !self.through {
            (there.from, there.through, there.rows) = (None, false, 0);
            there.replace |= self.replace;
        }
        let mut known: HashSet<Vec<String>> = there.keys.iter().cloned().collect();
        there
            .keys
            .extend(self.keys.into_iter().filter(|key| known.insert(key.clone())));
    }

    /// The rows of some keys, to be made equal.
    pub fn keys(table: TableId, keys: Vec<Vec<String>>) -> Self {
        Pending {
            through: true,
            keys,
            ..Pending::load(table)
        }
    }
}

/// What was given up of a table. Until all of it is read anew, its copy may not be what the source has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The table.
    pub table: TableId,
    /// Whether rows were never read there; otherwise they were only not compared.
    #[serde(default)]
    pub load: bool,
    /// Rows of the chunks before it was given up.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub rows: u64,
    /// Keys that were not fetched; the chunks were through, or none were asked for, where it is not 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keys: u64,
}

impl Cancelled {
    fn of(given_up: &Pending) -> Self {
        Cancelled {
            table: given_up.table.clone(),
            load: !given_up.through && !given_up.replace,
            rows: given_up.rows,
            keys: if given_up.through {
                given_up.keys.len() as u64
            } else {
                0
            },
        }
    }

    /// Joins what was given up already: a copy that lacks rows still lacks them.
    fn besides(self, all: &mut Vec<Cancelled>) {
        match all.iter_mut().find(|c| c.table == self.table) {
            None => all.push(self),
            Some(there) if self.keys > 0 => there.keys = there.keys.saturating_add(self.keys),
            Some(there) if there.load && !self.load => {}
            Some(there) => *there = self,
        }
    }
}

/// What is asked of a backfill that is going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Read this besides what is to be read already; a whole table begins anew.
    Read(Pending),
    /// Read no more chunks of a table: what was read stays, and the position says that it is not all.
    Cancel(TableId),
}

/// A wish with its name: one that was taken before is not taken again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Its name, unique among the requests of a pipeline.
    pub id: String,
    /// What is wished.
    pub wish: Wish,
}

/// How much of a log and its backfill holds still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// Nothing.
    #[default]
    None,
    /// No chunk is read; the log goes on.
    Chunks,
    /// Nothing is read, and the source keeps its log.
    All,
}

/// Where requests to a running backfill are left, and where it says which of them are safe.
#[derive(Debug, Default)]
pub struct Requests {
    state: Mutex<Asked>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Asked {
    waiting: Vec<Request>,
    /// Taken, but no durable position has them yet: a reader that begins anew takes them again.
    taken: Vec<Request>,
    accepted: Vec<String>,
    pause: Pause,
    /// Backfills that are not through.
    pending: usize,
    held_up: Option<String>,
}

impl Requests {
    fn state(&self) -> std::sync::MutexGuard<'_, Asked> {
        self.state.lock().expect("nothing panics while holding it")
    }

    /// Leaves a request.
    pub fn ask(&self, request: Request) {
        self.state().waiting.push(request);
        self.changed.notify_one();
    }

    /// Holds still, or goes on; always between transactions.
    pub fn pause(&self, pause: Pause) {
        self.state().pause = pause;
        self.changed.notify_one();
    }

    /// What holds still.
    pub fn paused(&self) -> Pause {
        self.state().pause
    }

    /// Requests that a durable position has by now: whoever keeps them may forget them.
    pub fn accepted(&self) -> Vec<String> {
        self.state().accepted.clone()
    }

    /// How much is left to read besides the log: backfills that are not through, and requests that were not taken yet.
    pub fn left(&self) -> usize {
        let state = self.state();
        state.pending + state.waiting.len()
    }

    /// Why the backfill has not come further for some time, if it has not.
    pub fn held_up(&self) -> Option<String> {
        self.state().held_up.clone()
    }

    fn take(&self) -> Vec<Request> {
        let mut state = self.state();
        let new = std::mem::take(&mut state.waiting);
        state.taken.extend(new.iter().cloned());
        new
    }

    /// A reader begins: what an earlier one took and did not bring to safety is to be taken again.
    fn begin(&self) {
        let mut state = self.state();
        let again = std::mem::take(&mut state.taken);
        state.waiting.splice(0..0, again);
    }

    fn accept(&self, taken: Vec<String>) {
        let mut state = self.state();
        state.taken.retain(|r| !taken.contains(&r.id));
        state.accepted.retain(|id| !taken.contains(id));
        state.accepted.extend(taken);
        let excess = state.accepted.len().saturating_sub(TOLD_REQUESTS);
        state.accepted.drain(..excess);
    }

    /// Forgets the oldest names that a position has. One that no durable position has yet stays: only by it does anybody
    /// learn that the request is safe.
    fn forget(&self, names: &mut Vec<String>) {
        let mut excess = names.len().saturating_sub(REMEMBERED_REQUESTS);
        let state = self.state();
        names.retain(|id| {
            let forgotten = excess > 0 && state.taken.iter().all(|r| r.id != *id);
            excess -= usize::from(forgotten);
            !forgotten
        });
    }
}

/// The position of a log with a backfill beside it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BackfillPosition {
    /// The log's own position.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<Position>,
    /// Tables still to do, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// The latest requests that were taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub taken: Vec<String>,
    /// What was given up and not read since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cancelled: Vec<Cancelled>,
}

impl BackfillPosition {
    /// Reads a position that [`Backfill`] made.
    pub fn parse(position: &Position) -> Result<Self> {
        serde_json::from_str(position.as_str())
            .map_err(|e| Error::new(code::STATE_STORE, "a stored position cannot be read").caused_by(e))
    }

    /// The position as a text, for a log that is to begin there.
    pub fn encode(&self) -> Position {
        Position(serde_json::to_string(self).expect("plain data"))
    }
}

type Key = Vec<Option<String>>;

/// What the window's events said of one key.
#[derive(Default)]
struct Touch {
    gone: bool,
    complete: bool,
    /// Column → the newest cell that an event carried: (batch, row).
    cells: HashMap<usize, (usize, usize)>,
    /// A key change brought it here without all values: only a fetch can tell.
    unknown: bool,
}

/// Transactions whose commit the log showed, the latest of them.
#[derive(Default)]
struct Commits {
    /// How many came before each of them.
    numbers: HashMap<u64, u64>,
    order: VecDeque<u64>,
    seen: u64,
}

impl Commits {
    fn saw(&mut self, tx: u64) {
        if let Entry::Vacant(new) = self.numbers.entry(tx) {
            new.insert(self.seen);
            self.order.push_back(tx);
        }
        self.seen += 1;
    }

    fn forget_old(&mut self) {
        while self.order.len() > REMEMBERED_COMMITS
            && let Some(old) = self.order.pop_front()
        {
            self.numbers.remove(&old);
        }
    }

    /// Trap 3: whether one of the first `low` commits that the log showed is one that a chunk could not see.
    fn were_missed_by(&self, chunk: &Chunk, low: u64) -> bool {
        let early = |tx: &u64| self.numbers.get(tx).is_some_and(|n| *n < low);
        chunk.in_progress.iter().any(early)
            || chunk
                .future
                .is_some_and(|f| self.numbers.iter().any(|(tx, n)| *tx >= f && *n < low))
    }
}

struct Window {
    token: String,
    /// The chunk on its way, with its watermarks.
    reading: Option<AbortOnDropHandle<Result<Chunk>>>,
    chunk: Option<Chunk>,
    /// Which pending keys were asked for; `None` for a chunk in key order.
    keys: Option<Vec<Vec<String>>>,
    /// Open since the log had shown so many commits.
    low: Option<u64>,
    closed: bool,
    /// The chunk missed a transaction or cannot be completed: read it again.
    redo: bool,
    touched: HashMap<Key, Touch>,
    batches: Vec<RecordBatch>,
    /// What those hold.
    bytes: usize,
}

impl Window {
    /// Keeps rows of the log for as long as the window is open; says under which number.
    fn keep(&mut self, rows: &RecordBatch) -> Option<usize> {
        if self.closed {
            // They are newer than the chunk and go to the sink before it.
            self.redo = true;
        }
        if self.low.is_none() || self.redo {
            return None;
        }
        self.bytes += rows.get_array_memory_size();
        if self.bytes > WINDOW_BYTES || self.touched.len() > WINDOW_KEYS {
            self.redo = true;
            (self.touched, self.batches) = (HashMap::new(), Vec::new());
            return None;
        }
        self.batches.push(rows.clone());
        Some(self.batches.len() - 1)
    }

    /// The chunk's rows with what the events of the window said of them. `anew`: rows that came whole are given again;
    /// `all`: those that the chunk does not have, too.
    fn merged(&self, chunk: &RecordBatch, key: &[usize], columns: usize, all: bool, anew: bool) -> Result<RecordBatch> {
        let mut untouched = Vec::with_capacity(chunk.num_rows());
        // Where each cell of each other row comes from: batch 0 is the chunk, the others are the window's.
        let mut rows: Vec<Vec<(usize, usize)>> = Vec::new();
        let mut in_chunk = HashSet::new();
        for row in 0..chunk.num_rows() {
            let touch = self.touched.get_key_value(&row_key(chunk, key, row)?);
            untouched.push(touch.is_none());
            let Some((key, t)) = touch else { continue };
            in_chunk.insert(key);
            if t.gone || t.unknown || (t.complete && !anew) {
                continue;
            }
            // Trap 1.
            let cell = |c| t.cells.get(&c).map_or((0, row), |(batch, row)| (batch + 1, *row));
            rows.push((0..columns).map(cell).collect());
        }
        if all {
            for (key, t) in &self.touched {
                if !t.gone && t.complete && !in_chunk.contains(key) {
                    let cells = (0..columns).map(|c| t.cells[&c]);
                    rows.push(cells.map(|(batch, row)| (batch + 1, row)).collect());
                }
            }
        }
        let arrow = |e: arrow_schema::ArrowError| Error::bug(format!("backfill: {e}"));
        let untouched = filter_record_batch(chunk, &BooleanArray::from(untouched)).map_err(arrow)?;
        if rows.is_empty() {
            return Ok(untouched);
        }
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(columns);
        for c in 0..columns {
            let mut from: Vec<&dyn Array> = vec![chunk.column(c).as_ref()];
            from.extend(self.batches.iter().map(|b| b.column(c).as_ref()));
            let picks: Vec<(usize, usize)> = rows.iter().map(|r| r[c]).collect();
            arrays.push(interleave(&from, &picks).map_err(arrow)?);
        }
        let touched = RecordBatch::try_new(chunk.schema(), arrays).map_err(arrow)?;
        concat_batches(&chunk.schema(), [&untouched, &touched]).map_err(arrow)
    }
}

/// What is left to emit of a chunk. The rows are the table's where the log is read; when it says something of one of them,
/// that takes the row's place.
struct Rest {
    batch: ChangeBatch,
    /// How many rows were emitted.
    emitted: usize,
    /// Where the rows stand, by their keys; made when it is needed first.
    places: Option<HashMap<Key, usize>>,
    overtaken: HashSet<usize>,
    /// The chunk's end, and how many rows it had.
    next: Option<Vec<String>>,
    rows: u64,
}

impl Rest {
    /// The log has said all there is to say of a row.
    fn overtake(&mut self, row: &Key, key: &[usize]) -> Result<()> {
        if self.places.is_none() {
            let rows = self.emitted..self.batch.len();
            let places = rows.map(|at| Ok((row_key(&self.batch.rows, key, at)?, at)));
            self.places = Some(places.collect::<Result<_>>()?);
        }
        let place = self.places.as_ref().and_then(|places| places.get(row));
        self.overtaken.extend(place);
        Ok(())
    }

    fn left(&self) -> usize {
        self.batch.len() - self.emitted
    }

    /// The next rows, at most so many.
    fn slice(&mut self, most: usize, hold: Hold) -> Result<ChangeBatch> {
        let rows = most.min(self.left());
        let places = self.emitted..self.emitted + rows;
        let mut slice = self.batch.rows.slice(self.emitted, rows);
        if !self.overtaken.is_empty() {
            let stay = places.clone().map(|at| !self.overtaken.contains(&at));
            slice = filter_record_batch(&slice, &BooleanArray::from_iter(stay.map(Some)))
                .map_err(|e| Error::bug(format!("backfill: {e}")))?;
        }
        self.emitted = places.end;
        Ok(ChangeBatch {
            rows: slice,
            hold,
            ..self.batch.clone()
        })
    }
}

/// Chunks that were read in vain, one after the other.
struct Vain {
    since: Instant,
    pause: Duration,
    until: Instant,
}

/// The end of a transaction.
struct End {
    position: Position,
    committed_at: Option<i64>,
    tx: Option<u64>,
}

/// A log reader with a backfill beside it.
pub struct Backfill {
    log: Box<dyn Reader>,
    source: Arc<dyn ChunkSource>,
    position: BackfillPosition,
    schema: Option<(TableId, TableSchema, Vec<usize>)>,
    window: Option<Window>,
    rest: Option<Rest>,
    /// Held by a slice until the sink has it: the next one goes behind what the log brought meanwhile.
    slices: Arc<Semaphore>,
    /// Whether the log brought rows since the last chunk.
    busy: bool,
    chunk_rows: usize,
    commits: Commits,
    /// In progress when the first chunk was read, and not seen to commit since.
    unsettled: Option<HashSet<u64>>,
    out: VecDeque<Event>,
    /// After a window that was in vain: when the first of them was, how long the wait is now, and until when.
    vain: Option<Vain>,
    /// A change of shape that went by and is still to be looked at.
    reshaped: Option<SchemaChange>,
    /// A transaction's end that was read and not passed on yet.
    end: Option<End>,
    tokens: u64,
    instance: String,
    requests: Arc<Requests>,
    /// Whether a transaction has begun and not ended.
    inside: bool,
}

impl Backfill {
    /// Puts a backfill beside a log that was opened at `position.log`.
    pub fn new(
        log: Box<dyn Reader>,
        source: Arc<dyn ChunkSource>,
        position: BackfillPosition,
        chunk_rows: usize,
    ) -> Self {
        // Watermarks of another instance (a zombie, an earlier life) must not open our windows.
        let instance = format!("{:016x}", rand::random::<u64>());
        Backfill {
            log,
            source,
            position,
            schema: None,
            window: None,
            rest: None,
            slices: Arc::new(Semaphore::new(1)),
            busy: false,
            chunk_rows: chunk_rows.max(1),
            commits: Commits::default(),
            unsettled: None,
            out: VecDeque::new(),
            vain: None,
            reshaped: None,
            end: None,
            tokens: 0,
            instance,
            requests: Arc::default(),
            inside: false,
        }
    }

    /// The same, hearing requests.
    pub fn hearing(mut self, requests: Arc<Requests>) -> Self {
        self.requests = requests;
        self.requests.begin();
        self.tell_left();
        self
    }

    /// Says how much is left to do.
    fn tell_left(&self) {
        self.requests.state().pending = self.position.pending.len();
    }

    /// Takes what was asked meanwhile. It is safe once a position that has it is.
    fn take_requests(&mut self) {
        let new = self.requests.take();
        let came = !new.is_empty();
        for request in new {
            if self.position.taken.contains(&request.id) {
                continue;
            }
            self.position.taken.push(request.id);
            match request.wish {
                Wish::Read(wanted) if self.source.follows(&wanted.table) => self.read_besides(wanted),
                Wish::Read(_) => {}
                Wish::Cancel(table) => self.give_up(&table),
            }
        }
        if came {
            self.requests.forget(&mut self.position.taken);
        }
        self.tell_left();
    }

    fn give_up(&mut self, table: &TableId) {
        self.forget_window(table);
        let position = &mut self.position;
        for given_up in position.pending.extract_if(.., |p| p.table == *table) {
            Cancelled::of(&given_up).besides(&mut position.cancelled);
        }
    }

    /// Nothing is missing of a table any more.
    fn is_whole(&mut self, table: &TableId) {
        self.position.cancelled.retain(|c| c.table != *table);
    }

    /// What was read of an open window of this table is of no use any more.
    fn forget_window(&mut self, table: &TableId) {
        if self.active(table) {
            self.window = None;
            self.rest = None;
            self.schema = None;
        }
    }

    fn read_besides(&mut self, wanted: Pending) {
        if !wanted.through {
            self.forget_window(&wanted.table);
        }
        wanted.besides(&mut self.position.pending);
    }

    /// What is left to do.
    pub fn pending(&self) -> &[Pending] {
        &self.position.pending
    }

    /// What was given up and not read since.
    pub fn cancelled(&self) -> &[Cancelled] {
        &self.position.cancelled
    }

    fn active(&self, table: &TableId) -> bool {
        self.position.pending.first().is_some_and(|p| p.table == *table)
    }

    /// Knows the table that is backfilled: from here on its rows are taken for what they are. Also while no chunk is
    /// read, as long as some of it is read already and some is not.
    async fn know_table(&mut self) -> Result<()> {
        let Some(pending) = self.position.pending.first() else {
            return Ok(());
        };
        if self.schema.as_ref().is_none_or(|(t, ..)| *t != pending.table) {
            let schema = self.source.schema(&pending.table).await?;
            let key = schema.key_indices()?;
            if key.is_empty() {
                return Err(Error::new(
                    code::KEY_MISSING,
                    format!("{} has no key: it cannot be backfilled", pending.table),
                ));
            }
            self.schema = Some((pending.table.clone(), schema, key));
        }
        Ok(())
    }

    /// Starts the next window if there is work: its chunk is read in a task of its own, which a dropped call does not
    /// interrupt.
    fn start_window(&mut self) {
        let Some(mut pending) = self.position.pending.first().cloned() else {
            return;
        };
        if let Some(rest) = &self.rest {
            let Some(next) = rest.next.as_ref().filter(|_| rest.left() <= LEFT) else {
                return;
            };
            pending.from = Some(next.clone());
        }
        self.commits.forget_old();
        self.tokens += 1;
        let token = format!("{}:{}", self.instance, self.tokens);
        let some = || Vec::from_iter(pending.keys.iter().take(KEYS_AT_ONCE).cloned());
        let keys = (pending.through || !pending.keys.is_empty()).then(some);
        let reading = read_chunk(
            self.source.clone(),
            token.clone(),
            pending,
            keys.clone(),
            self.chunk_rows,
        );
        self.window = Some(Window {
            token,
            reading: Some(AbortOnDropHandle::new(tokio::spawn(reading))),
            chunk: None,
            keys,
            low: None,
            closed: false,
            redo: false,
            touched: HashMap::new(),
            batches: Vec::new(),
            bytes: 0,
        });
    }

    fn is_reading(&self) -> bool {
        self.window.as_ref().is_some_and(|w| w.reading.is_some())
    }

    fn is_closed(&self) -> bool {
        self.window.as_ref().is_some_and(|w| w.closed)
    }

    /// Waits for the chunk that is being read. Cancel safe.
    async fn await_chunk(&mut self) -> Result<()> {
        let read = chunk_of(self.window.as_mut()).await;
        self.take_chunk(read)
    }

    /// Takes the chunk that was read, or could not be.
    fn take_chunk(&mut self, read: Result<Chunk>) -> Result<()> {
        let chunk = match read {
            Ok(chunk) => chunk,
            Err(e) => {
                // Its task is over: whoever asks again begins another.
                self.window = None;
                if e.kind() != ErrorKind::Conflict {
                    return Err(e);
                }
                // The table is ahead of the log, which will show what was done to it.
                self.put_off(&[], Some(&e));
                return Ok(());
            }
        };
        let numbers = &self.commits.numbers;
        self.unsettled.get_or_insert_with(|| {
            let unseen = chunk.in_progress.iter().filter(|tx| !numbers.contains_key(tx));
            unseen.copied().collect()
        });
        if let Some(w) = &mut self.window {
            (w.reading, w.chunk) = (None, Some(chunk));
        }
        Ok(())
    }

    fn watermark(&mut self, content: &[u8]) {
        let Some(w) = &mut self.window else { return };
        let text = String::from_utf8_lossy(content);
        if text == format!("low {}", w.token) {
            w.low = Some(self.commits.seen);
        } else if text == format!("high {}", w.token) {
            w.closed = true;
        }
    }

    fn saw_commit(&mut self, tx: u64) {
        if let Some(unsettled) = &mut self.unsettled {
            unsettled.remove(&tx);
        }
        self.commits.saw(tx);
        // Which of them the window's chunk could see is still to be told.
        if self.window.is_none() {
            self.commits.forget_old();
        }
    }

    /// New rows that the log does not bring whole never become rows with NULLs: they change what is there, if anything is,
    /// and are fetched by their keys, or by those that they get before that.
    fn fetch_incomplete(&mut self, mut batch: ChangeBatch) -> Result<ChangeBatch> {
        if batch.present.is_none() && batch.before.is_none() {
            return Ok(batch);
        }
        let lacking = lacking(&batch);
        let active = self.active(&batch.table);
        let pending = self.position.pending.iter().find(|p| p.table == *batch.table);
        // Rows of the table that is backfilled are followed to their new keys there.
        let asked = pending.filter(|_| !active && batch.before.is_some()).map(|p| &p.keys);
        if !lacking.contains(&true) && asked.is_none_or(Vec::is_empty) {
            return Ok(batch);
        }
        let Some(places) = self.source.key_places(&batch.table) else {
            return Ok(batch);
        };
        let mut wanted: HashSet<Key> = (asked.into_iter().flatten())
            .map(|key| key.iter().cloned().map(Some).collect())
            .collect();
        let mut keys: Vec<Vec<String>> = Vec::new();
        let mut ops = Vec::with_capacity(batch.len());
        for (row, lacks) in lacking.into_iter().enumerate() {
            let op = batch.ops.get(row);
            ops.push(if lacks { Op::Update } else { op } as u8);
            let moves = match &batch.before {
                Some(before) if op == Op::Update && !active => wanted.contains(&row_key(before, &places, row)?),
                _ => false,
            };
            if !lacks && !moves {
                continue;
            }
            let key = row_key(&batch.rows, &places, row)?;
            keys.push(texts_of(&key));
            // A window that asks for this key may be too early for it.
            if let Some(w) = self
                .window
                .as_mut()
                .filter(|w| active && w.keys.is_some() && w.low.is_some())
            {
                w.touched.entry(key.clone()).or_default().unknown = true;
            }
            wanted.insert(key);
        }
        if keys.is_empty() {
            return Ok(batch);
        }
        Pending::keys(TableId::clone(&batch.table), keys).besides(&mut self.position.pending);
        self.tell_left();
        batch.ops = Ops::Each(UInt8Array::from(ops));
        Ok(batch)
    }

    /// Passes rows of the table that is being backfilled, remembering what they say of each key.
    fn rows(&mut self, batch: ChangeBatch) -> Result<Vec<Event>> {
        let Some((_, schema, key)) = &self.schema else {
            return Ok(vec![Event::Rows(batch)]);
        };
        let columns = schema.columns.len();
        let mut ops = Vec::with_capacity(batch.len());
        let mut split = Vec::new();
        let mut fetch = Vec::new();
        let stored = self.window.as_mut().and_then(|w| w.keep(&batch.rows));
        for row in 0..batch.len() {
            let new = row_key(&batch.rows, key, row)?;
            let old = match &batch.before {
                Some(before) => Some(row_key(before, key, row)?).filter(|old| old.iter().any(Option::is_some)),
                None => None,
            };
            let moved = old.as_ref().is_some_and(|old| *old != new);
            let complete = is_complete(&batch, row);
            let op = batch.ops.get(row);
            // Trap 2: the sink may not have the row yet.
            ops.push(if op == Op::Update && complete && !moved {
                Op::Upsert
            } else {
                op
            } as u8);
            split.push(op == Op::Update && complete && moved);
            if op == Op::Update && moved && !complete {
                fetch.push(texts_of(&new));
            }
            if let Some(rest) = &mut self.rest {
                for key_of_row in old.iter().chain([&new]) {
                    rest.overtake(key_of_row, key)?;
                }
            }
            let Some(stored) = stored else { continue };
            let w = self.window.as_mut().expect("open");
            if let Some(old) = old.filter(|_| moved) {
                w.touched.insert(
                    old,
                    Touch {
                        gone: true,
                        ..Touch::default()
                    },
                );
            }
            let touch = w.touched.entry(new).or_default();
            match op {
                Op::Delete => {
                    *touch = Touch {
                        gone: true,
                        ..Touch::default()
                    }
                }
                Op::Insert | Op::Upsert => {
                    *touch = Touch {
                        complete,
                        ..Touch::default()
                    }
                }
                Op::Update if moved => {
                    *touch = Touch {
                        complete,
                        unknown: !complete,
                        ..Touch::default()
                    }
                }
                Op::Update => touch.complete |= complete,
            }
            if op != Op::Delete {
                for c in 0..columns {
                    if batch.present.as_ref().is_none_or(|p| p.has(c, row)) {
                        touch.cells.insert(c, (stored, row));
                    }
                }
            }
        }
        if !fetch.is_empty() {
            let table = self.position.pending[0].table.clone();
            Pending::keys(table, fetch).besides(&mut self.position.pending);
        }
        let batch = ChangeBatch {
            ops: Ops::Each(UInt8Array::from(ops)),
            ..batch
        };
        if split.iter().any(|s| *s) {
            split_moves(batch, &split)
        } else {
            Ok(vec![Event::Rows(batch)])
        }
    }

    /// The chunk's rows as they are now, given what the window said; `None` if it must be read again.
    fn close(&mut self) -> Result<Option<Vec<Event>>> {
        let w = self.window.as_ref().expect("a window is open");
        let (Some(chunk), Some(low)) = (&w.chunk, w.low) else {
            return Ok(None);
        };
        let (table, schema, key) = self.schema.as_ref().expect("a window has a schema");
        let replace = self.position.pending[0].replace && w.keys.is_none();
        let unsettled = |tx: &u64| self.unsettled.as_ref().is_some_and(|u| u.contains(tx));
        if w.redo || self.commits.were_missed_by(chunk, low) || chunk.in_progress.iter().any(unsettled) {
            return Ok(None);
        }
        // Keys that were asked for and are not there, nor came in the window.
        let mut found = HashSet::new();
        let rows_of_keys = w.keys.as_ref().map_or(0, |_| chunk.rows.num_rows());
        for row in 0..rows_of_keys {
            found.insert(row_key(&chunk.rows, key, row)?);
        }
        let gone: Vec<Key> = (w.keys.iter().flatten())
            .map(|k| k.iter().cloned().map(Some).collect::<Key>())
            .filter(|k| !found.contains(k) && !w.touched.contains_key(k))
            .collect();
        // Where rows are taken away, those of the window are put again: two keys that differ as texts may be one.
        let anew = replace || !gone.is_empty();
        if anew && w.touched.values().any(|t| t.unknown) {
            return Ok(None);
        }
        let rows = match w.touched.is_empty() {
            true => chunk.rows.clone(),
            false => w.merged(&chunk.rows, key, schema.columns.len(), replace, anew)?,
        };
        let table = Arc::new(table.clone());
        if replace {
            let range = chunk.range.clone();
            return Ok(Some(vec![Event::ReplaceRange { table, range, rows }]));
        }
        let batch = |rows, op| ChangeBatch::new(table.clone(), rows, Ops::All(op), None, None, Hold::none());
        let mut events = Vec::new();
        if !gone.is_empty() {
            let rows = key_rows(schema, key, &gone, chunk.rows.schema())?;
            events.push(Event::Rows(batch(rows, Op::Delete)?));
        }
        if rows.num_rows() > 0 || events.is_empty() {
            let fresh = w.keys.is_none();
            events.push(Event::Rows(ChangeBatch {
                fresh,
                ..batch(rows, Op::Upsert)?
            }));
        }
        Ok(Some(events))
    }

    /// Gives the chunk up, to be read again.
    fn redo(&mut self) {
        let Some(w) = self.window.take() else { return };
        let open = |tx: &u64| self.unsettled.as_ref().is_some_and(|u| u.contains(tx));
        let waits_for: Vec<u64> = (w.chunk.iter().flat_map(|c| &c.in_progress).copied())
            .filter(open)
            .collect();
        self.put_off(&waits_for, None);
    }

    /// Until when no chunk is read, after one that was in vain.
    fn waits_until(&self) -> Option<Instant> {
        let idle = self.window.is_none() && !self.position.pending.is_empty();
        let until = self.vain.as_ref().filter(|_| idle)?.until;
        (until > Instant::now()).then_some(until)
    }

    /// Reads the next chunk after a while, because it could not be read, or was of no use for these transactions.
    fn put_off(&mut self, waits_for: &[u64], error: Option<&Error>) {
        let now = Instant::now();
        let vain = self.vain.get_or_insert(Vain {
            since: now,
            pause: REDO_PAUSE,
            until: now,
        });
        vain.until = now + vain.pause;
        vain.pause = (vain.pause * 2).min(LONGEST_PAUSE);
        if now - vain.since > TELL_AFTER {
            let table = &self.position.pending[0].table;
            self.requests.state().held_up = Some(match error {
                Some(error) => format!("a chunk of {table} cannot be read yet: {error}"),
                None => format!(
                    "a chunk of {table} is read again and again: transactions {waits_for:?} were open when the log was \
                     opened, and only when they end is it known whether the chunk has what they did"
                ),
            });
        }
    }

    /// Emits what the window just closed has: all of it, or a first slice while the log is busy.
    fn emit(&mut self, mut events: Vec<Event>) -> Result<()> {
        self.vain = None;
        self.requests.state().held_up = None;
        let busy = std::mem::take(&mut self.busy);
        let Some(window) = self.window.take() else {
            return Ok(());
        };
        let Some(chunk) = window.chunk else { return Ok(()) };
        let rows = chunk.rows.num_rows() as u64;
        if let Some(keys) = window.keys {
            self.out.extend(events);
            let keys: HashSet<Vec<String>> = keys.into_iter().collect();
            self.position.pending[0].keys.retain(|k| {
                let key: Key = k.iter().cloned().map(Some).collect();
                !keys.contains(k) || window.touched.get(&key).is_some_and(|t| t.unknown)
            });
            self.finish_table();
            return Ok(());
        }
        let last = events.pop();
        self.out.extend(events);
        match last {
            Some(Event::Rows(batch)) if busy && batch.len() > SLICE => {
                self.rest = Some(Rest {
                    batch,
                    emitted: 0,
                    places: None,
                    overtaken: HashSet::new(),
                    next: chunk.next,
                    rows,
                });
                self.pass_slice(SLICE, Hold::none())
            }
            last => {
                self.out.extend(last);
                self.advance(chunk.next, rows);
                Ok(())
            }
        }
    }

    /// Emits rows of the chunk that is being emitted, if there is one.
    fn pass_slice(&mut self, most: usize, hold: Hold) -> Result<()> {
        let Some(rest) = &mut self.rest else { return Ok(()) };
        let slice = rest.slice(most, hold)?;
        self.out.push_back(Event::Rows(slice));
        if rest.left() == 0 {
            let (next, rows) = (rest.next.take(), rest.rows);
            self.rest = None;
            self.advance(next, rows);
        }
        Ok(())
    }

    /// Emits all that is left of it.
    fn pass_rest(&mut self) -> Result<()> {
        self.pass_slice(usize::MAX, Hold::none())
    }

    /// Emits a slice between transactions.
    fn pass_apart(&mut self, hold: Hold) -> Result<()> {
        self.pass_slice(SLICE, hold)?;
        self.out.push_back(Event::Boundary {
            position: self.position.encode(),
            committed_at: None,
            tx: None,
        });
        Ok(())
    }

    /// Moves the backfill past a chunk that was emitted.
    fn advance(&mut self, next: Option<Vec<String>>, rows: u64) {
        let pending = &mut self.position.pending[0];
        pending.through = next.is_none();
        pending.from = next;
        pending.rows += rows;
        if pending.through {
            let table = pending.table.clone();
            self.is_whole(&table);
        }
        self.finish_table();
    }

    /// Goes on to the next table, if nothing is left to read of this one.
    fn finish_table(&mut self) {
        let pending = &self.position.pending[0];
        if pending.through && pending.keys.is_empty() {
            self.position.pending.remove(0);
            self.schema = None;
        }
        self.tell_left();
    }

    /// Takes a change of shape: what the open window has does not fit any more, and there may be more to read.
    async fn reshape(&mut self) -> Result<()> {
        let Some(change) = self.reshaped.clone() else {
            return Ok(());
        };
        if self.active(&change.table) {
            let schema = self.source.schema(&change.table).await?;
            let key = schema.key_indices()?;
            self.schema = Some((TableId::clone(&change.table), schema, key));
            if let Some(w) = &mut self.window {
                w.redo = true;
            }
        }
        if let Some(again) = self.source.refill(&change) {
            again.besides(&mut self.position.pending);
        }
        self.reshaped = None;
        Ok(())
    }

    /// Passes on a transaction's end, and just before it the rows of the chunk whose window it closes.
    async fn pass_end(&mut self) -> Result<()> {
        if self.end.is_none() {
            return Ok(());
        }
        if self.is_closed() && self.is_reading() {
            self.await_chunk().await?;
        }
        let Some(End {
            position,
            committed_at,
            tx,
        }) = self.end.take()
        else {
            return Ok(());
        };
        self.position.log = Some(position);
        if self.is_closed() {
            // The rows of one chunk are all there before those of the next.
            self.pass_rest()?;
            match self.close()? {
                Some(rows) => {
                    failpoint("backfill.close")?;
                    self.emit(rows)?;
                }
                None => self.redo(),
            }
        } else if self.rest.is_some()
            && let Ok(permit) = self.slices.clone().try_acquire_owned()
        {
            self.pass_slice(SLICE, Hold::of(permit))?;
        }
        self.out.push_back(Event::Boundary {
            position: self.position.encode(),
            committed_at,
            tx,
        });
        Ok(())
    }

    async fn pull(&mut self) -> Result<Option<()>> {
        self.reshape().await?;
        self.pass_end().await?;
        if !self.out.is_empty() {
            return Ok(Some(()));
        }
        self.take_requests();
        self.know_table().await?;
        let requests = self.requests.clone();
        let pause = requests.paused();
        if pause == Pause::All && !self.inside {
            requests.changed.notified().await;
            return Ok(Some(()));
        }
        // Asked once: between two looks at the clock a wait may end, and nobody would read the next chunk.
        let wait = self.waits_until().filter(|_| pause == Pause::None);
        if pause == Pause::None && self.window.is_none() && wait.is_none() {
            self.start_window();
        }
        if self.is_reading() && !self.source.beside_log() {
            self.await_chunk().await?;
        }
        let reading = self.is_reading();
        let between = self.rest.is_some() && !self.inside;
        let event = tokio::select! {
            biased;
            read = chunk_of(self.window.as_mut()), if reading => {
                self.take_chunk(read)?;
                return Ok(Some(()));
            }
            event = self.log.next() => event?,
            () = requests.changed.notified() => return Ok(Some(())),
            () = tokio::time::sleep_until(wait.unwrap_or_else(Instant::now)), if wait.is_some() => return Ok(Some(())),
            permit = turn(self.slices.clone()), if between => {
                self.pass_apart(Hold::of(permit?))?;
                return Ok(Some(()));
            }
        };
        let Some(event) = event else {
            if between {
                self.pass_apart(Hold::none())?;
                return Ok(Some(()));
            }
            // A log that ends where nothing more was written goes on with the next watermark.
            if reading {
                self.await_chunk().await?;
                return Ok(Some(()));
            }
            let Some(until) = wait else { return Ok(None) };
            tokio::time::sleep_until(until).await;
            return Ok(Some(()));
        };
        for tx in self.log.ended() {
            self.saw_commit(tx);
        }
        self.inside = !matches!(event, Event::Boundary { .. });
        self.busy |= matches!(event, Event::Rows(_));
        let event = match event {
            Event::Rows(batch) => Event::Rows(self.fetch_incomplete(batch)?),
            other => other,
        };
        match event {
            Event::Message { prefix, content } if prefix == WATERMARK_PREFIX => self.watermark(&content),
            Event::Rows(batch) if self.active(&batch.table) => {
                if self.rest.is_some() && (0..batch.len()).any(|row| lacks_values(&batch, row)) {
                    // What they lack is to be there before them.
                    self.pass_rest()?;
                }
                let events = self.rows(batch)?;
                self.out.extend(events);
            }
            Event::Schema(change) => {
                if self.active(&change.table) {
                    self.pass_rest()?;
                }
                self.reshaped = Some(change.clone());
                self.out.push_back(Event::Schema(change));
            }
            Event::Truncate {
                tables,
                cascade,
                restart_identity,
            } => {
                if tables.iter().any(|t| self.active(t)) {
                    self.rest = None;
                    if let Some(w) = &mut self.window {
                        // Nothing of the chunk is left; what comes later is in later events or chunks.
                        w.redo = true;
                    }
                    let pending = &mut self.position.pending[0];
                    pending.keys.clear();
                }
                // An empty table lacks nothing.
                tables.iter().for_each(|t| self.is_whole(t));
                self.out.push_back(Event::Truncate {
                    tables,
                    cascade,
                    restart_identity,
                });
            }
            Event::Boundary {
                position,
                committed_at,
                tx,
            } => {
                if let Some(tx) = tx {
                    self.saw_commit(tx);
                }
                self.end = Some(End {
                    position,
                    committed_at,
                    tx,
                });
            }
            other => self.out.push_back(other),
        }
        Ok(Some(()))
    }
}

#[async_trait]
impl Reader for Backfill {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Ok(Some(event));
            }
            if self.pull().await?.is_none() {
                return Ok(None);
            }
        }
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let durable = BackfillPosition::parse(durable)?;
        self.requests.accept(durable.taken);
        match durable.log {
            Some(log) => self.log.acknowledge(&log).await,
            None => Ok(()),
        }
    }
}

/// A chunk between its watermarks.
async fn read_chunk(
    source: Arc<dyn ChunkSource>,
    token: String,
    pending: Pending,
    keys: Option<Vec<Vec<String>>>,
    limit: usize,
) -> Result<Chunk> {
    source.write_watermark(&format!("low {token}")).await?;
    failpoint("backfill.low")?;
    let chunk = match &keys {
        Some(keys) => source.read_keys(&pending.table, keys).await,
        None => source.read_chunk(&pending.table, pending.from.as_deref(), limit).await,
    }?;
    failpoint("backfill.read")?;
    source.write_watermark(&format!("high {token}")).await?;
    failpoint("backfill.high")?;
    Ok(chunk)
}

/// A slice's turn: when the log has nothing at hand, not even where it only gave way to other tasks, and the sink has the
/// one before. Cancel safe.
async fn turn(slices: Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    tokio::task::yield_now().await;
    let permit = slices.acquire_owned().await;
    permit.map_err(|_| Error::bug("slices have no turn"))
}

/// The chunk of a window that is being read. Cancel safe.
async fn chunk_of(window: Option<&mut Window>) -> Result<Chunk> {
    match window.and_then(|w| w.reading.as_mut()) {
        Some(task) => task
            .await
            .unwrap_or_else(|e| Err(Error::bug(format!("reading a chunk died: {e}")))),
        None => std::future::pending().await,
    }
}

/// Which rows are new and not whole.
fn lacking(batch: &ChangeBatch) -> Vec<bool> {
    let lacks = |row: usize| batch.ops.get(row) == Op::Insert && !is_complete(batch, row);
    (0..batch.len()).map(lacks).collect()
}

/// Rows that have nothing but their key.
fn key_rows(schema: &TableSchema, key: &[usize], keys: &[Key], arrow: arrow_schema::SchemaRef) -> Result<RecordBatch> {
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (at, column) in schema.columns.iter().enumerate() {
        let mut builder = text::ColumnBuilder::new(column);
        let place = key.iter().position(|k| *k == at);
        for key in keys {
            builder.append_cell(place.and_then(|p| key[p].as_deref()))?;
        }
        columns.push(builder.finish());
    }
    RecordBatch::try_new(arrow, columns).map_err(|e| Error::bug(format!("keys do not fit their schema: {e}")))
}

/// A key as it is asked for.
fn texts_of(key: &Key) -> Vec<String> {
    key.iter().map(|value| value.clone().unwrap_or_default()).collect()
}

fn is_complete(batch: &ChangeBatch, row: usize) -> bool {
    let present = batch.present.as_ref();
    present.is_none_or(|p| (0..batch.rows.num_columns()).all(|c| p.has(c, row)))
}

fn lacks_values(batch: &ChangeBatch, row: usize) -> bool {
    batch.ops.get(row) != Op::Delete && !is_complete(batch, row)
}

fn row_key(rows: &RecordBatch, key: &[usize], row: usize) -> Result<Key> {
    key.iter().map(|c| text::cell(rows.column(*c), row)).collect()
}

/// A key change with every value, as a delete of the old key and an upsert of the new, in place among the other rows.
fn split_moves(batch: ChangeBatch, split: &[bool]) -> Result<Vec<Event>> {
    let before = batch
        .before
        .as_ref()
        .ok_or_else(|| Error::bug("a key change without the old key"))?;
    let mut out = Vec::new();
    let mut at = 0;
    let plain = |from: usize, to: usize, out: &mut Vec<Event>| -> Result<()> {
        if from < to {
            let n = to - from;
            let mut part = ChangeBatch {
                rows: cut(&batch.rows, from..to)?,
                ops: Ops::Each((from..to).map(|r| Some(batch.ops.get(r) as u8)).collect()),
                before: Some(cut(before, from..to)?),
                present: None,
                ..batch.clone()
            };
            part.present = batch
                .present
                .as_ref()
                .map(|p| crate::change::Presence(p.0.iter().map(|c| c.as_ref().map(|b| b.slice(from, n))).collect()));
            out.push(Event::Rows(part));
        }
        Ok(())
    };
    for (row, moved) in split.iter().enumerate() {
        if *moved {
            plain(at, row, &mut out)?;
            let one = |rows: RecordBatch, op| ChangeBatch {
                rows,
                ops: Ops::All(op),
                present: None,
                before: None,
                ..batch.clone()
            };
            out.push(Event::Rows(one(cut(before, row..row + 1)?, Op::Delete)));
            out.push(Event::Rows(one(cut(&batch.rows, row..row + 1)?, Op::Upsert)));
            at = row + 1;
        }
    }
    plain(at, split.len(), &mut out)?;
    Ok(out)
}

/// Some of the rows, in buffers of their own: a slice counts as many bytes as all of them have, and a sink that was given
/// many of those would think that it holds enough.
fn cut(rows: &RecordBatch, places: Range<usize>) -> Result<RecordBatch> {
    let places = UInt32Array::from_iter_values(places.map(|row| row as u32));
    take_record_batch(rows, &places).map_err(|e| Error::bug(format!("backfill: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::{Column, ColumnType};
    use crate::testing::rows::batch;
    use crate::testing::scenario::{row, schema};
    use arrow_schema::Schema;

    fn chunk(in_progress: &[u64], future: Option<u64>) -> Chunk {
        Chunk {
            rows: RecordBatch::new_empty(Arc::new(Schema::empty())),
            range: KeyRange::default(),
            next: None,
            in_progress: in_progress.to_vec(),
            future,
        }
    }

    #[test]
    fn a_commit_before_the_window_that_the_chunk_could_not_see_is_missed() {
        let mut commits = Commits::default();
        (1..=9).for_each(|tx| commits.saw(tx * 10));
        assert!(commits.were_missed_by(&chunk(&[30], None), 3));
        assert!(!commits.were_missed_by(&chunk(&[30], None), 2), "it came in the window");
        assert!(!commits.were_missed_by(&chunk(&[35], None), 9), "it did not commit");
        assert!(commits.were_missed_by(&chunk(&[], Some(30)), 3));
        assert!(!commits.were_missed_by(&chunk(&[], Some(31)), 3));
    }

    #[test]
    fn key_changes_that_are_split_count_no_more_bytes_than_they_have() {
        let large = "x".repeat(1_000);
        let new: Vec<_> = (0..100).map(|n| row(&[&format!("new {n}"), "a", &large])).collect();
        let old: Vec<_> = (0..100).map(|n| vec![Some(format!("old {n}")), None, None]).collect();
        let (rows, before) = (batch(&schema(), &new).unwrap(), batch(&schema(), &old).unwrap());
        let table = Arc::new(TableId::bare("t"));
        let changes = ChangeBatch::new(table, rows, Ops::All(Op::Update), None, Some(before), Hold::none()).unwrap();
        let all = changes.bytes() as u64;
        let mut moved = [true; 100];
        moved[50] = false;
        let parts = split_moves(changes, &moved).unwrap();
        assert_eq!(parts.len(), 2 * 99 + 1);
        assert_eq!(parts.iter().map(Event::rows).sum::<u64>(), 2 * 99 + 1);
        let counted: u64 = parts.iter().map(Event::bytes).sum();
        assert!(counted < 10 * all, "{counted} bytes of {all}");
    }

    /// A table that cannot be read, beside a log that says nothing.
    struct Unreadable;

    #[async_trait]
    impl Reader for Unreadable {
        async fn next(&mut self) -> Result<Option<Event>> {
            std::future::pending().await
        }
    }

    #[async_trait]
    impl ChunkSource for Unreadable {
        async fn write_watermark(&self, _: &str) -> Result<()> {
            Ok(())
        }

        async fn schema(&self, _: &TableId) -> Result<TableSchema> {
            Ok(TableSchema {
                columns: vec![Column::new("id", ColumnType::Int64).not_null()],
                key: vec!["id".into()],
            })
        }

        async fn read_chunk(&self, _: &TableId, _: Option<&[String]>, _: usize) -> Result<Chunk> {
            Err(Error::new(code::CONNECTION_LOST, "the table cannot be read"))
        }

        async fn read_keys(&self, _: &TableId, _: &[Vec<String>]) -> Result<Chunk> {
            Err(Error::new(code::CONNECTION_LOST, "the table cannot be read"))
        }
    }

    #[tokio::test]
    async fn whoever_asks_again_after_an_error_is_answered() {
        let position = BackfillPosition {
            pending: vec![Pending::load(TableId::bare("t"))],
            ..BackfillPosition::default()
        };
        let mut backfill = Backfill::new(Box::new(Unreadable), Arc::new(Unreadable), position, 10);
        for _ in 0..3 {
            let e = backfill.next().await.unwrap_err();
            assert_eq!(e.code(), code::CONNECTION_LOST, "{e}");
        }
    }

    #[test]
    fn commits_are_forgotten_between_windows() {
        let mut commits = Commits::default();
        let all = REMEMBERED_COMMITS as u64 + 10;
        (0..all).for_each(|tx| commits.saw(tx));
        assert!(commits.were_missed_by(&chunk(&[3], None), all));
        commits.forget_old();
        assert_eq!(commits.numbers.len(), REMEMBERED_COMMITS);
        assert!(!commits.were_missed_by(&chunk(&[3], None), all));
        assert!(commits.were_missed_by(&chunk(&[10], None), all));
    }
}
