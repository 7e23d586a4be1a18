//! The reader of the archived log: batch after batch, each as one transaction.

use super::super::replay::by_address;
use super::super::{silence, sql, tables};
use super::batch::{Difference, Idle, Job, Step, at_addresses, step};
use super::chunks::{Marks, Rows};
use super::kept::{self, Kept, Texts};
use super::position::LogPosition;
use super::shape::{Shape, Shapes};
use super::world::Place;
use crate::logs::CHUNK_BYTES;
use crate::postgres::log::LogOptions;
use crate::postgres::log::status::Steering;
use arrow_array::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::backfill::WATERMARK_PREFIX;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event, Op, Ops, SchemaChange, Tx};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::progress::Position;
use synctool_core::schema::{Column, SchemaDifference};
use synctool_core::source::{ReadContext, Reader};
use synctool_core::text::ColumnBuilder;
use synctool_pgwal::{Lsn, SegmentName};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// Addresses in one statement.
const CHUNK: usize = 5_000;
/// Blocks of a part that are read at once, and how many rows one holds, about.
const BLOCKS: usize = 64;
const DENSITY: usize = 60;
/// A missing file is looked for again so soon, where somebody waits for the end.
const SOON: Duration = Duration::from_secs(1);

/// What the reader shares with the rest of its source.
#[derive(Debug, Clone)]
pub(super) struct Shared {
    pub(super) rows: Arc<Rows>,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
    pub(super) steering: Arc<Steering>,
    pub(super) options: LogOptions,
    /// How often the archive is looked at.
    pub(super) frequency: Duration,
    /// How often it should bring something.
    pub(super) interval: Duration,
}

/// A segment that is awaited.
struct Quiet {
    awaited: SegmentName,
    since: Instant,
    /// That it is awaited for too long was told.
    told: bool,
}

enum Phase {
    /// The scratch server stands at the position.
    Standing,
    /// There was nothing new; until then.
    Resting(Instant),
    /// On the way to the next place.
    Working(AbortOnDropHandle<Result<Step>>),
    /// What a batch changed is handed out.
    Handing(Box<Difference>),
}

/// What is open where a log is opened.
pub(super) enum Open {
    Nothing,
    /// A batch that was begun and is not at the destination.
    Begun(Kept),
    /// The first rows of tables that cannot be read in chunks.
    First(Box<Difference>),
}

/// Reads an archived log.
pub(super) struct LogReader {
    shared: Shared,
    context: ReadContext,
    position: LogPosition,
    /// The destination holds everything up to here.
    durable: Option<Lsn>,
    phase: Phase,
    /// The archive had nothing more when it was looked at last.
    ended: bool,
    quiet: Option<Quiet>,
    out: VecDeque<Event>,
}

impl LogReader {
    /// Goes on from a position that is at the destination (`durable`), or begins there.
    pub(super) fn new(
        shared: Shared,
        context: ReadContext,
        position: LogPosition,
        durable: bool,
        open: Open,
    ) -> LogReader {
        let mut out = VecDeque::new();
        // A sink that was opened anew knows the plan's columns only.
        for shape in shared.shapes.all().iter().filter(|s| !s.added().is_empty()) {
            out.push_back(reshaped(shape, shape.added_columns()));
        }
        let mut reader = LogReader {
            durable: durable.then_some(position.at),
            phase: Phase::Standing,
            ended: false,
            quiet: None,
            shared,
            context,
            position,
            out: VecDeque::new(),
        };
        if !durable || !out.is_empty() {
            out.push_back(reader.boundary(None));
        }
        reader.out = out;
        reader.shared.marks.read_up_to(&reader.position.at);
        match open {
            Open::Nothing => {}
            Open::Begun(kept) => reader.work(Some(kept)),
            Open::First(difference) => {
                // The position is the destination's when it has the rows too.
                reader.out.clear();
                reader.hand_out(difference);
            }
        }
        reader
    }

    /// Begins to hand out what is one transaction.
    fn hand_out(&mut self, difference: Box<Difference>) {
        self.out.push_back(Event::Begin(Tx {
            id: difference.position.at.0,
            committed_at: difference.position.committed_at,
        }));
        self.phase = Phase::Handing(difference);
    }

    fn boundary(&self, tx: Option<Lsn>) -> Event {
        Event::Boundary {
            position: self.position.encode(),
            committed_at: tx.and(self.position.committed_at),
            tx: tx.map(|at| at.0),
        }
    }

    /// Begins to bring the scratch server to the next place; that goes on whoever waits for it.
    fn work(&mut self, begun: Option<Kept>) {
        let (shared, position) = (self.shared.clone(), self.position.clone());
        let work = async move {
            let done = step(&shared.rows, &shared.shapes, &position, begun).await;
            if done.is_err() {
                shared.rows.world.is(Place::Lost);
            }
            shared.rows.world.judged(done)
        };
        self.phase = Phase::Working(AbortOnDropHandle::new(tokio::spawn(work)));
    }

    /// Puts the marks of chunks that were read here.
    fn pass_marks(&mut self) -> bool {
        let mut any = false;
        while let Some(content) = self.shared.marks.reached(&self.position.at) {
            self.out.push_back(Event::Message {
                prefix: WATERMARK_PREFIX.into(),
                content: Bytes::from(content),
            });
            any = true;
        }
        if any {
            let boundary = self.boundary(None);
            self.out.push_back(boundary);
        }
        any
    }

    /// What a look at the archive brought.
    fn took(&mut self, step: Step) -> Result<()> {
        let steering = &self.shared.steering;
        if let Some(end) = self.shared.rows.world.end() {
            steering.ends(end.0.max(self.position.at.0));
        }
        match step {
            Step::Batch(difference) => {
                self.ended = false;
                self.quiet = None;
                self.shared.steering.is_quiet(None, None);
                self.hand_out(difference);
            }
            Step::Idle(idle) => {
                tracing::debug!(why = %idle.why, "nothing new in the archive");
                let passing = idle.why.is_trouble();
                self.listen(idle);
                self.ended = !passing;
                if self.ended {
                    self.shared.rows.world.is_well();
                }
                let pause = match passing && self.shared.options.until_now {
                    true => SOON.min(self.shared.frequency),
                    false => self.shared.frequency,
                };
                self.phase = Phase::Resting(Instant::now() + pause);
            }
        }
        Ok(())
    }

    /// Tells once for each segment that is awaited that the archive has brought nothing for too long.
    fn listen(&mut self, idle: Idle) {
        let quiet = match self.quiet.take().filter(|quiet| quiet.awaited == idle.awaited) {
            Some(quiet) => quiet,
            None => Quiet {
                awaited: idle.awaited,
                since: Instant::now(),
                told: false,
            },
        };
        let quiet = self.quiet.insert(quiet);
        let archive = &self.shared.rows.world.config().archive;
        let silent = silence(
            archive,
            self.shared.interval,
            quiet.since.elapsed(),
            idle.said.as_deref(),
        );
        if let Some(text) = silent.as_ref().filter(|_| !quiet.told) {
            tracing::warn!("{text}");
            quiet.told = true;
        }
        self.shared.steering.is_quiet(silent, idle.said);
    }

    /// Everything that was wanted is handed out.
    fn is_over(&self) -> Result<bool> {
        let over = self.shared.options.until_now && self.ended && self.durable == Some(self.position.at);
        if over && !self.shared.marks.is_empty() {
            return Err(Error::new(
                code::CONFLICT,
                "production holds a lock on a table where the archive ends, so that it cannot be read there",
            )
            .hint("run again once more of the log is archived"));
        }
        Ok(over && self.shared.steering.requests().left() == 0)
    }

    /// Waits for what is to come next: a mark, an acknowledgement (which ends this call), or time. Cancel safe.
    async fn wait(&mut self) -> Result<()> {
        let resting = match &self.phase {
            Phase::Resting(until) => Some(*until),
            _ => None,
        };
        let rest = async {
            match resting {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(interrupted()),
            () = self.shared.marks.added.notified() => Ok(()),
            () = rest => {
                self.phase = Phase::Standing;
                Ok(())
            }
        }
    }

    /// The next event of the batch at hand; `None` when it is handed out. A call that is dropped loses nothing: what was
    /// read is forgotten only when its event is made.
    async fn hand(&mut self) -> Result<Option<Event>> {
        let Phase::Handing(difference) = &mut self.phase else {
            return Err(Error::bug("nothing is handed out"));
        };
        let shared = &self.shared;
        while let Some(job) = difference.jobs.front_mut() {
            let hold = match job {
                Job::Gone { .. } | Job::Rows { .. } | Job::Part { .. } => {
                    self.context.budget.reserve(self.context.batch_bytes).await
                }
                Job::Reshaped(..) | Job::Emptied(_) => Hold::default(),
            };
            let (event, done) = shared.rows.world.judged(shared.event(job, hold).await)?;
            if done {
                difference.jobs.pop_front();
            }
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }
}

impl Shared {
    /// The next event of a job, and whether that was all of it.
    async fn event(&self, job: &mut Job, hold: Hold) -> Result<(Option<Event>, bool)> {
        match job {
            Job::Reshaped(shape, new) => {
                let all = self.shapes.all();
                let index = all.iter().position(|s| s.table == shape.table);
                self.shapes.set(
                    index.ok_or_else(|| Error::bug("a table that is not followed"))?,
                    shape.clone(),
                );
                let event = (!new.is_empty()).then(|| reshaped(shape, new.clone()));
                Ok((event, true))
            }
            Job::Emptied(shape) => {
                let event = Event::Truncate {
                    tables: vec![shape.table.clone()],
                    cascade: false,
                    restart_identity: false,
                };
                Ok((Some(event), true))
            }
            Job::Gone { shape, all, at, left } => {
                let identity = shape.identity();
                let directory = self.rows.world.directory();
                let most = (CHUNK as u64).min(*left);
                let (rows, next) = kept::read_rows(&directory, *at, most, identity.len(), CHUNK_BYTES)?;
                let count = rows.len() as u64;
                let gone = match *all {
                    true => rows,
                    false => self.absent(shape, rows).await?,
                };
                (*at, *left) = (next, *left - count);
                let event = match gone.is_empty() {
                    true => None,
                    false => Some(deleted(shape, &identity, &gone, hold)?),
                };
                Ok((event, *left == 0))
            }
            Job::Rows { shape, part, walk, at } => {
                if at.is_empty() {
                    *at = walk.next(self.rows.widths.rows(&shape.table, CHUNK))?;
                }
                if at.is_empty() {
                    return Ok((None, true));
                }
                let session = self.rows.session().await?;
                by_address(&session, true).await?;
                let rows = self.rows.read(&session, shape, None, &at_addresses(part, at)).await?;
                by_address(&session, false).await?;
                session.recycle();
                at.clear();
                Ok((put(shape, rows.ok_or_else(|| locked(shape))?, hold)?, false))
            }
            Job::Part {
                shape,
                part,
                block,
                end,
            } => {
                if *block >= *end {
                    return Ok((None, true));
                }
                let rows = self.rows.widths.rows(&shape.table, BLOCKS * DENSITY);
                let blocks = u32::try_from(rows / DENSITY).unwrap_or(1).max(1);
                let next = block.saturating_add(blocks).min(*end);
                let table = sql::table(&part.0, &part.1);
                let from = format!("ONLY {table} WHERE ctid >= '({block},0)'::tid AND ctid < '({next},0)'::tid");
                let session = self.rows.session().await?;
                let rows = self.rows.read(&session, shape, None, &from).await?;
                session.recycle();
                *block = next;
                Ok((put(shape, rows.ok_or_else(|| locked(shape))?, hold)?, false))
            }
        }
    }

    /// Those of the rows whose key no row has now.
    async fn absent(&self, shape: &Shape, rows: Vec<Texts>) -> Result<Vec<Texts>> {
        let key: Vec<(&str, &str)> = shape
            .key
            .iter()
            .map(|k| &shape.read.columns[*k])
            .map(|c| (c.source.as_str(), c.column.source_type.as_deref().unwrap_or("text")))
            .collect();
        let session = self.rows.session().await?;
        let equals = tables::equals(&session, &shape.name).await?;
        let sql = sql::absent(&shape.from(), &tables::found_by(&key, &equals), &rows)?;
        let found = session.query(&sql, &[]).await;
        let found = found.map_err(|e| session.error(e, &format!("looking for rows of {}", shape.table)))?;
        session.recycle();
        let numbers: Vec<usize> = found
            .iter()
            .filter_map(|r| usize::try_from(r.get::<_, i64>(0)).ok())
            .collect();
        Ok(numbers.into_iter().filter_map(|n| rows.get(n).cloned()).collect())
    }
}

/// The table has columns that a sink does not know.
fn reshaped(shape: &Shape, new: Vec<Column>) -> Event {
    Event::Schema(SchemaChange {
        table: shape.table.clone(),
        difference: SchemaDifference {
            missing: new,
            ..SchemaDifference::default()
        },
    })
}

/// Rows as they are now.
fn put(shape: &Shape, rows: RecordBatch, hold: Hold) -> Result<Option<Event>> {
    if rows.num_rows() == 0 {
        return Ok(None);
    }
    // Without a key every row that is there now is new: those that were went before.
    let op = match shape.key.is_empty() {
        true => Op::Insert,
        false => Op::Upsert,
    };
    let batch = ChangeBatch::new(shape.table.clone(), rows, Ops::All(op), None, None, hold)?;
    Ok(Some(Event::Rows(batch)))
}

/// Rows that go, known by some of their columns.
fn deleted(shape: &Shape, identity: &[usize], rows: &[Texts], hold: Hold) -> Result<Event> {
    let schema = shape.schema();
    let mut columns = Vec::with_capacity(schema.columns.len());
    for (at, column) in schema.columns.iter().enumerate() {
        let mut builder = ColumnBuilder::new(column);
        let place = identity.iter().position(|k| *k == at);
        for row in rows {
            builder.append_cell(place.and_then(|p| row.get(p)?.as_deref()))?;
        }
        columns.push(builder.finish());
    }
    let batch = RecordBatch::try_new(shape.arrow.clone(), columns)
        .map_err(|e| Error::bug(format!("rows that go do not fit their schema: {e}")))?;
    let before = shape.key.is_empty().then(|| batch.clone());
    let batch = ChangeBatch::new(shape.table.clone(), batch, Ops::All(Op::Delete), None, before, hold)?;
    Ok(Event::Rows(batch))
}

fn locked(shape: &Shape) -> Error {
    Error::new(
        code::CONFLICT,
        format!("{} was locked while it was read, though nothing moves", shape.table),
    )
}

fn interrupted() -> Error {
    Error::new(code::INTERRUPTED, "reading the log was stopped")
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Ok(Some(event));
            }
            let between = matches!(self.phase, Phase::Standing | Phase::Resting(_));
            if between && self.pass_marks() {
                continue;
            }
            match &mut self.phase {
                Phase::Handing(_) => {
                    let cancel = self.context.cancel.clone();
                    let event = tokio::select! {
                        biased;
                        () = cancel.cancelled() => return Err(interrupted()),
                        event = self.hand() => event?,
                    };
                    if event.is_some() {
                        return Ok(event);
                    }
                    self.handed()?;
                }
                Phase::Working(work) => {
                    let step = tokio::select! {
                        biased;
                        () = self.context.cancel.cancelled() => return Err(interrupted()),
                        step = work => step,
                    };
                    self.phase = Phase::Standing;
                    let step = step.map_err(|e| Error::bug("the work on a batch died").caused_by(e))?;
                    self.took(step?)?;
                }
                Phase::Resting(_) => {
                    if self.is_over()? {
                        return Ok(None);
                    }
                    self.wait().await?;
                }
                // The gate opens only when the destination holds what was before.
                Phase::Standing if self.durable != Some(self.position.at) => self.wait().await?,
                Phase::Standing => self.work(None),
            }
        }
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        self.durable = Some(LogPosition::parse(durable)?.at);
        self.shared.options.repair.spend();
        Ok(())
    }
}

impl LogReader {
    /// A batch is over.
    fn handed(&mut self) -> Result<()> {
        failpoint("archive.handed")?;
        let Phase::Handing(difference) = std::mem::replace(&mut self.phase, Phase::Standing) else {
            return Err(Error::bug("nothing is handed out"));
        };
        self.position = difference.position;
        let at = self.position.at;
        self.shared.marks.read_up_to(&at);
        self.shared.steering.read_up_to(at.0);
        let boundary = self.boundary(Some(at));
        self.out.push_back(boundary);
        Ok(())
    }
}
