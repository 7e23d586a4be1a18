//! What the logs of all databases have in common, whoever keeps them.

mod drift;

pub use drift::Drift;
pub(crate) use drift::{Drifting, beyond_plan, judge, widens};

use crate::postgres::log::LogSource;
use crate::postgres::log::status::{Standing, Steering};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, UInt8Array};
use arrow_buffer::BooleanBuffer;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use synctool_core::backfill::{Backfill, BackfillPosition, Pending};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event, Op, Ops, Presence};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::progress::Position;
use synctool_core::schema::TableId;
use synctool_core::source::{Assignment, ReadContext, Reader};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// How often it is told what holds a backfill up.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// The log with its backfill, as it is looked at from outside.
pub(crate) struct Follow {
    inner: Backfill,
    steering: Arc<Steering>,
    /// What a position of this log says to people.
    standing: fn(&Position) -> Result<Standing>,
    /// When it was last told what holds the backfill up.
    told: Instant,
    _watch: AbortOnDropHandle<()>,
}

impl Follow {
    /// `watch` looks at the end of the log as long as it is followed.
    pub(crate) fn new(
        inner: Backfill,
        steering: Arc<Steering>,
        standing: fn(&Position) -> Result<Standing>,
        watch: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        Follow {
            inner,
            steering,
            standing,
            told: Instant::now(),
            _watch: AbortOnDropHandle::new(tokio::spawn(watch)),
        }
    }
}

#[async_trait]
impl Reader for Follow {
    async fn next(&mut self) -> Result<Option<Event>> {
        let requests = self.steering.requests().clone();
        let event = {
            let mut next = std::pin::pin!(self.inner.next());
            loop {
                tokio::select! {
                    event = &mut next => break event,
                    () = tokio::time::sleep_until(self.told + TELL_EVERY) => {
                        self.told = Instant::now();
                        requests.held_up().into_iter().for_each(|why| tracing::warn!("{why}"));
                    }
                }
            }
        };
        if let Ok(Some(event)) = &event {
            self.steering.saw(event);
            self.steering.backfill(&self.inner);
        }
        event
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        if let Some(log) = &BackfillPosition::parse(durable)?.log {
            self.steering.durable((self.standing)(log)?);
        }
        failpoint("log.acknowledge.before")?;
        self.inner.acknowledge(durable).await?;
        failpoint("log.acknowledge.after")
    }
}

/// A chunk should not hold more than about this.
pub(crate) const CHUNK_BYTES: usize = 8 << 20;

/// Rows of a table whose rows' size is not known yet.
const FIRST: usize = 64;

/// How many rows make a chunk, by what rows of the table took so far.
#[derive(Debug, Default)]
pub(crate) struct Widths(Mutex<HashMap<TableId, usize>>);

impl Widths {
    pub(crate) fn rows(&self, table: &TableId, most: usize) -> usize {
        let widths = self.0.lock().expect("nothing panics while holding it");
        let rows = widths.get(table).map_or(FIRST, |width| (CHUNK_BYTES / width).max(1));
        rows.min(most)
    }

    pub(crate) fn saw(&self, table: &TableId, rows: usize, bytes: usize) {
        if let Some(width) = usize::checked_div(bytes, rows) {
            let mut widths = self.0.lock().expect("nothing panics while holding it");
            widths.insert(table.clone(), width.max(1));
        }
    }
}

/// Has a table compared and made equal from its beginning on, besides what is to be read already.
pub(crate) fn compare(pending: &mut Vec<Pending>, table: &TableId) {
    Pending::resync(table.clone()).besides(pending);
}

/// Refuses to make a log good where one of the followed tables (each with its key) has none: it cannot be compared.
pub(crate) fn must_compare<'a>(followed: impl IntoIterator<Item = (&'a TableId, &'a [String])>) -> Result<()> {
    match followed.into_iter().find(|(_, key)| key.is_empty()) {
        None => Ok(()),
        Some((table, _)) => Err(Error::new(
            code::KEY_MISSING,
            format!("{table} has no key, so it cannot be compared and repaired"),
        )
        .hint("give it a primary key, or leave it out of the pipeline")),
    }
}

/// Whether a new table can be followed, as it was checked; that one is left out is told once for each reason.
pub(crate) fn can_follow(
    told: &Mutex<BTreeMap<TableId, String>>,
    table: &TableId,
    checked: Result<()>,
) -> Result<bool> {
    let why = match checked {
        Ok(()) => return Ok(true),
        Err(e) if e.kind().is_transient() => return Err(e),
        Err(e) => e,
    };
    let mut told = told.lock().expect("nothing panics while holding it");
    let text = why.to_string();
    if told.insert(table.clone(), text.clone()).as_ref() != Some(&text) {
        tracing::warn!(%table, error = %why, "a new table is left out for now, the others go on");
    }
    Ok(false)
}

/// Opens a log, unless that is stopped.
pub(crate) async fn opened(
    context: &ReadContext,
    opening: impl Future<Output = Result<Box<dyn Reader>>>,
) -> Result<Box<dyn Reader>> {
    tokio::select! {
        reader = opening => reader,
        () = context.cancel.cancelled() => Err(Error::new(code::INTERRUPTED, "opening the log was stopped")),
    }
}

/// The one partition of a log, which is never taken away; nothing comes after it where the log is read to its present
/// end only.
pub(crate) fn assignments(until_now: bool) -> BoxStream<'static, Assignment> {
    let added = futures::stream::iter([Assignment::Added(vec![LogSource::partition()])]);
    match until_now {
        true => added.boxed(),
        false => added.chain(futures::stream::pending()).boxed(),
    }
}

/// Bytes of a log between two places. A log of several files has, for each of them, the place of its beginning and its
/// length; one that is counted through has none.
pub(crate) fn bytes_between(files: &[(u64, u64)], from: u64, to: u64) -> u64 {
    let Some(last) = files.iter().map(|(start, _)| *start).filter(|s| *s <= to).max() else {
        return to.saturating_sub(from);
    };
    let part = |(start, length): &(u64, u64)| {
        // The last one grows while it is looked at.
        let end = if *start == last { to } else { start + length };
        end.min(to).saturating_sub(from.max(*start))
    };
    files.iter().map(part).sum()
}

/// The shapes of all followed tables, shared by the reader of the log and that of the chunks.
#[derive(Debug)]
pub(crate) struct Shapes<S>(Mutex<Vec<Arc<S>>>);

impl<S> Shapes<S> {
    pub(crate) fn new(shapes: Vec<S>) -> Self {
        Shapes(Mutex::new(shapes.into_iter().map(Arc::new).collect()))
    }

    pub(crate) fn all(&self) -> Vec<Arc<S>> {
        self.0.lock().expect("nothing panics while holding it").clone()
    }

    pub(crate) fn find(&self, is: impl Fn(&S) -> bool) -> Option<Arc<S>> {
        self.all().into_iter().find(|s| is(s))
    }

    /// Puts another shape where there is one.
    pub(crate) fn replace(&self, shape: S, of: impl Fn(&S) -> bool) {
        let mut all = self.0.lock().expect("nothing panics while holding it");
        if let Some(there) = all.iter_mut().find(|s| of(s)) {
            *there = Arc::new(shape);
        }
    }

    pub(crate) fn set(&self, index: usize, shape: Arc<S>) {
        self.0.lock().expect("nothing panics while holding it")[index] = shape;
    }
}

/// Where chunks stand in a log that tells the place of a snapshot exactly, and how far its reader is.
#[derive(Debug, Default)]
pub(crate) struct Marks<P> {
    state: Mutex<Marked<P>>,
    pub(crate) added: Notify,
}

#[derive(Debug, Default)]
struct Marked<P> {
    waiting: VecDeque<(P, String)>,
    /// The end of the last transaction that was read.
    read: P,
    /// The watermark before a chunk, until the chunk's place is known; and the place of the last chunk.
    low: Option<String>,
    chunk: P,
}

impl<P: Ord + Clone> Marks<P> {
    fn state(&self) -> MutexGuard<'_, Marked<P>> {
        self.state.lock().expect("nothing panics while holding it")
    }

    /// The oldest mark, if the log has reached its place.
    pub(crate) fn reached(&self, at: &P) -> Option<String> {
        let waiting = &mut self.state().waiting;
        if waiting.front().is_some_and(|(place, _)| place <= at) {
            return waiting.pop_front().map(|(_, content)| content);
        }
        None
    }

    /// Whether a mark waits that stands at this place or before it.
    pub(crate) fn is_at_most(&self, place: &P) -> bool {
        self.state().waiting.front().is_some_and(|(mark, _)| mark <= place)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// A transaction that ends here was read.
    pub(crate) fn read_up_to(&self, place: &P) {
        self.state().read.clone_from(place);
    }

    /// Whether a snapshot at this place has everything that the log has shown.
    pub(crate) fn covers(&self, place: &P) -> bool {
        *place >= self.state().read
    }

    pub(crate) fn write(&self, content: &str) {
        let mut state = self.state();
        if content.starts_with("low ") {
            state.low = Some(content.to_string());
            return;
        }
        let place = state.chunk.clone();
        state.waiting.push_back((place, content.to_string()));
        self.added.notify_one();
    }

    /// The place of the last chunk.
    pub(crate) fn chunk(&self) -> P {
        self.state().chunk.clone()
    }

    pub(crate) fn chunk_at(&self, place: P) {
        let mut state = self.state();
        let low = state.low.take();
        state.waiting.extend(low.map(|low| (place.clone(), low)));
        state.chunk = place;
    }
}

/// Collected rows of a table as a batch. `ops` has the number of an [`Op`] per row; `absent` are the cells, as column and
/// row, that carry no value.
pub(crate) fn batch(
    (table, schema): (&Arc<TableId>, &SchemaRef),
    rows: Vec<ArrayRef>,
    before: Option<Vec<ArrayRef>>,
    ops: Vec<u8>,
    absent: Vec<(usize, usize)>,
    hold: Hold,
) -> Result<ChangeBatch> {
    let (count, width) = (ops.len(), rows.len());
    let options = RecordBatchOptions::new().with_row_count(Some(count));
    let batch = |columns| {
        RecordBatch::try_new_with_options(schema.clone(), columns, &options)
            .map_err(|e| Error::bug(format!("rows of the log do not fit their schema: {e}")))
    };
    let rows = batch(rows)?;
    let before = before.map(batch).transpose()?;
    let first = ops.first().copied().unwrap_or(Op::Insert as u8);
    let ops = match Op::from_u8(first) {
        Some(op) if ops.iter().all(|o| *o == first) => Ops::All(op),
        _ => Ops::Each(UInt8Array::from(ops)),
    };
    let present = (!absent.is_empty()).then(|| {
        let mut columns: Vec<Option<Vec<bool>>> = vec![None; width];
        for (column, row) in absent {
            columns[column].get_or_insert_with(|| vec![true; count])[row] = false;
        }
        Presence(columns.into_iter().map(|c| c.map(BooleanBuffer::from)).collect())
    });
    ChangeBatch::new(table.clone(), rows, ops, present, before, hold)
}

/// Refuses keys, as people write them, that are none of the table: `found` of its key's columns are followed.
pub(crate) fn check_keys(table: &TableId, key: &[String], found: usize, keys: &[Vec<String>]) -> Result<()> {
    if found == 0 {
        return Err(Error::new(
            code::KEY_MISSING,
            format!("{table} has no key by which rows could be read again"),
        )
        .hint("refresh works by keys: give the table a primary key"));
    }
    if keys.iter().any(|k| k.len() != found) {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!("a key of {table} has {found} values: {}", key.join(", ")),
        )
        .hint(r#"write for example --keys 1,2,3, or for a key of several columns --keys '[["a", 1], ["b", 2]]'"#));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::bytes_between;

    #[test]
    fn bytes_are_counted_across_files() {
        assert_eq!(bytes_between(&[], 100, 250), 150);
        assert_eq!(bytes_between(&[], 250, 100), 0);
        let file = |n: u64| n << 40;
        let files = [(file(3), 1000), (file(4), 500), (file(5), 20)];
        assert_eq!(bytes_between(&files, file(4) + 100, file(4) + 300), 200);
        assert_eq!(bytes_between(&files, file(3) + 900, file(5) + 70), 100 + 500 + 70);
        assert_eq!(bytes_between(&files, file(5) + 70, file(5) + 70), 0);
        // What was removed is not counted, and an unknown file is what is known of it.
        assert_eq!(bytes_between(&files, file(1) + 900, file(4) + 7), 1000 + 7);
        assert_eq!(bytes_between(&[(file(5), 0)], file(3) + 900, file(5) + 70), 70);
    }
}
