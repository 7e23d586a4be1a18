//! Writes partitions: rows of a load by COPY into the load table, changes of a log by [`super::apply`], and the
//! checkpoint in the same transaction.

use super::apply::Applier;
use super::client::{Connection, map_error};
use super::control::{Control, Move, Moves, end_sessions, whoami};
use super::rows::{CopyForm, RowEncoder};
use super::stage::Failed;
use super::types::{COPY_HEADER, COPY_TRAILER};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::SinkExt;
use futures::future::{try_join, try_join5};
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use synctool_core::change::{Event, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Work};
use synctool_core::progress::{Advance, Checkpoint, Epoch, PartitionId};
use synctool_core::schema::TableId;
use synctool_core::sink::Sink;
use tokio_postgres::CopyInSink;
use tokio_postgres::types::{PgLsn, ToSql};

/// Bytes per CopyData message: large enough that a message costs nothing, small enough that reading goes on meanwhile.
const CHUNK: usize = 256 << 10;

/// How long an answer where the WAL is flushed is taken for the present.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Where rows of one planned table go in load mode.
pub(super) struct LoadTarget {
    /// The destination table, as events name it.
    pub(super) table: TableId,
    /// `COPY load (…) FROM STDIN (…)`.
    pub(super) copy: String,
    pub(super) encoder: RowEncoder,
}

/// A COPY in progress.
struct OpenCopy {
    target: usize,
    stream: Pin<Box<CopyInSink<Bytes>>>,
    /// Encoded but not yet handed to the connection.
    buffer: BytesMut,
    rows: u64,
}

/// How rows are written: beside the table, or into it by op.
pub(super) enum Mode {
    Load(Vec<LoadTarget>),
    Direct(Box<Applier>),
}

/// A writer of partitions: one session, one transaction at a time.
pub(super) struct PgSink {
    session: Connection,
    control: Control,
    plan: Arc<Plan>,
    mode: Mode,
    writer: String,
    epochs: HashMap<PartitionId, Epoch>,
    /// Where the partitions stand after the last commit.
    standing: Checkpoint,
    open: Option<OpenCopy>,
    in_transaction: bool,
    /// Rows loaded since the last commit, by planned table.
    loaded: HashMap<usize, u64>,
    /// Commits that the server has not flushed yet, oldest first; unused while every commit waits for its flush.
    unflushed: VecDeque<(PgLsn, Checkpoint)>,
    /// Whether something was committed since it was asked last where the WAL ends.
    unasked: bool,
    durable: Checkpoint,
    flush: Flush,
    moves: Moves,
    /// When it was asked last what is flushed.
    asked: Instant,
}

/// When what is committed reaches the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flush {
    /// With the commit.
    AtCommit,
    /// Whenever the server does it, as it was told.
    Later,
    /// The same by our own wish, as a subscription does it: what a log brought can be read again until it is acknowledged,
    /// so its commits need not wait for the disk.
    LaterForLogs,
}

impl Flush {
    async fn of(session: &Connection, plan: &Plan) -> Result<Flush> {
        let settings = session
            .query_one(
                "SELECT setting, source, pg_catalog.current_setting('synchronous_standby_names') \
                 FROM pg_catalog.pg_settings WHERE name = 'synchronous_commit'",
                &[],
            )
            .await
            .map_err(|e| map_error(e, "reading synchronous_commit"))?;
        let follows = plan.partitions().any(|p| p.work == Work::Log);
        Ok(Flush::when(settings.get(0), settings.get(1), settings.get(2), follows))
    }

    /// What a transaction of one statement sets; all else is as in those that we begin, for every session of ours has their
    /// isolation level.
    fn settings(self) -> Vec<&'static str> {
        match self {
            Flush::LaterForLogs => vec!["pg_catalog.set_config('synchronous_commit', 'off', true)"],
            Flush::AtCommit | Flush::Later => Vec::new(),
        }
    }

    /// The statements that begin a transaction.
    fn begin(self) -> &'static str {
        match self {
            Flush::LaterForLogs => "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off",
            Flush::AtCommit | Flush::Later => "BEGIN ISOLATION LEVEL READ COMMITTED",
        }
    }

    /// `source` says where the setting comes from: one that was made for the database, the role or this session is meant,
    /// and so is waiting for standbys.
    fn when(setting: &str, source: &str, standbys: &str, follows: bool) -> Flush {
        let is_general = ["default", "configuration file", "command line"].contains(&source);
        match setting {
            "off" => Flush::Later,
            _ if follows && is_general && standbys.is_empty() => Flush::LaterForLogs,
            _ => Flush::AtCommit,
        }
    }
}

impl PgSink {
    pub(super) async fn open(session: Connection, control: Control, plan: Arc<Plan>, mut mode: Mode) -> Result<Self> {
        let writer = whoami(&*session).await?;
        let flush = Flush::of(&session, &plan).await?;
        let moves = control.moves(&*session).await?;
        if let Mode::Direct(applier) = &mut mode {
            applier.commits_by(&moves, flush.begin(), flush.settings());
        }
        Ok(PgSink {
            session,
            control,
            plan,
            mode,
            writer,
            epochs: HashMap::new(),
            standing: Checkpoint::new(),
            open: None,
            in_transaction: false,
            loaded: HashMap::new(),
            unflushed: VecDeque::new(),
            unasked: false,
            durable: Checkpoint::new(),
            flush,
            moves,
            asked: Instant::now(),
        })
    }

    /// Begins a transaction; where changes are applied, with the first thing that is done to a table.
    async fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            if let Mode::Load(_) = self.mode {
                let begun = self.session.batch_execute(self.flush.begin()).await;
                begun.map_err(|e| map_error(e, "beginning a transaction"))?;
            }
            self.session.working(true);
            self.in_transaction = true;
        }
        Ok(())
    }

    /// Moves the partitions and commits. Where that does not wait for the disk, now and then a place in the WAL is asked for
    /// that is behind all that was committed.
    async fn end(&mut self, moves: &[Move<'_>], standing: &Checkpoint) -> Result<(), Failed> {
        let later = self.flush != Flush::AtCommit;
        let place = self.transact(moves, later && self.asked.elapsed() >= ASK_AGAIN).await?;
        self.unasked = later;
        match place {
            Some(place) => self.flushed_to(place, standing),
            None if later => {}
            None => self.durable.clone_from(standing),
        }
        Ok(())
    }

    /// The end of a transaction, in one round trip: where a partition or the generation is another one's by now, the
    /// transaction has failed before COMMIT comes to it. `ask`: also where the WAL is written and flushed.
    async fn transact(&self, moves: &[Move<'_>], ask: bool) -> Result<Option<(PgLsn, PgLsn)>, Failed> {
        // Rejected rows are kept only once it is sure that the partition is ours.
        let apart = moves.iter().any(|to| !to.advance.rejects.is_empty());
        let (last, earlier) = match moves.split_last() {
            Some((last, earlier)) if !apart => (Some(last), earlier),
            _ => (None, moves),
        };
        let (ours, session, plan) = (&self.moves, &*self.session, &*self.plan);
        if !earlier.is_empty() {
            // Before any partition moves: whoever raises the generation goes on to the partitions.
            ours.hold_generation(session, plan).await?;
        }
        for to in earlier {
            ours.advance(session, plan, to).await?;
            self.control.keep_rejects(session, plan, to.advance).await?;
        }
        let asked = async {
            match ask {
                true => Ok(Some(self.place().await?)),
                false => Ok(None),
            }
        };
        let applier = match &self.mode {
            Mode::Direct(applier) => Some(applier),
            Mode::Load(_) => None,
        };
        // Each of these is sent when it is first polled, and they are polled in this order.
        if let (Some((statement, arrays, table)), Some(to)) = (applier.and_then(|a| a.whole()), last) {
            let arrays = arrays.iter().map(|array| array as &(dyn ToSql + Sync));
            let parameters: Vec<_> = to.parameters(plan).into_iter().chain(arrays).collect();
            let whole = async {
                session
                    .execute(statement, &parameters)
                    .await
                    .map_err(|e| Failed::or_refused(e).at(table))
            };
            return Ok(try_join(whole, asked).await?.1);
        }
        let rows = async {
            match applier {
                Some(applier) => applier.send_last(&self.session).await,
                None => Ok(()),
            }
        };
        let held = async { Ok(ours.hold_generation(session, plan).await?) };
        let moved = async {
            match last {
                Some(to) => Ok(ours.advance(session, plan, to).await?),
                None => Ok(()),
            }
        };
        let committed = async {
            let committed = session.batch_execute("COMMIT").await;
            committed.map_err(|e| Failed::Other(map_error(e, "committing")))
        };
        Ok(try_join5(rows, held, moved, committed, asked).await?.4)
    }

    /// Takes back what was to go with the commit; `false` if that was nothing.
    fn again(&mut self) -> bool {
        match &mut self.mode {
            Mode::Direct(applier) => applier.again(),
            Mode::Load(_) => false,
        }
    }

    /// Whether not all that was committed is known to be durable.
    fn is_behind(&self) -> bool {
        self.unasked || !self.unflushed.is_empty()
    }

    /// Where the WAL ends, and up to where it is flushed.
    async fn place(&self) -> Result<(PgLsn, PgLsn)> {
        let row = self.session.query_one(&self.moves.flushed, &[]).await;
        let row = row.map_err(|e| map_error(e, "asking what is flushed"))?;
        Ok((row.get(0), row.get(1)))
    }

    async fn ask(&mut self) -> Result<()> {
        let place = self.place().await?;
        let standing = self.standing.clone();
        self.flushed_to(place, &standing);
        Ok(())
    }

    /// All that was committed up to `standing` is before the `end` of the WAL, which is `flushed` up to there.
    fn flushed_to(&mut self, (end, flushed): (PgLsn, PgLsn), standing: &Checkpoint) {
        self.asked = Instant::now();
        if std::mem::take(&mut self.unasked) {
            self.unflushed.push_back((end, standing.clone()));
        }
        while self.unflushed.front().is_some_and(|(lsn, _)| *lsn <= flushed) {
            if let Some((_, checkpoint)) = self.unflushed.pop_front() {
                self.durable = checkpoint;
            }
        }
    }

    /// The COPY for a target, opened on its first rows. Another table's COPY is ended first.
    async fn copy_for(&mut self, target: usize) -> Result<()> {
        if self.open.as_ref().is_some_and(|c| c.target == target) {
            return Ok(());
        }
        self.end_copy().await?;
        self.begin().await?;
        let Mode::Load(targets) = &self.mode else {
            return Err(Error::bug("a COPY of a sink that applies changes"));
        };
        let t = &targets[target];
        let stream = self
            .session
            .copy_in::<_, Bytes>(&t.copy)
            .await
            .map_err(|e| map_error(e, "starting COPY").at("table", t.table.to_string()))?;
        let mut buffer = BytesMut::with_capacity(CHUNK + CHUNK / 4);
        if t.encoder.form() == CopyForm::Binary {
            buffer.extend_from_slice(COPY_HEADER);
        }
        self.open = Some(OpenCopy {
            target,
            stream: Box::pin(stream),
            buffer,
            rows: 0,
        });
        Ok(())
    }

    async fn end_copy(&mut self) -> Result<()> {
        let Some(mut copy) = self.open.take() else {
            return Ok(());
        };
        let Mode::Load(targets) = &self.mode else {
            return Err(Error::bug("a COPY of a sink that applies changes"));
        };
        let t = &targets[copy.target];
        let fail = |e| map_error(e, "loading rows by COPY").at("table", t.table.to_string());
        if t.encoder.form() == CopyForm::Binary {
            copy.buffer.extend_from_slice(COPY_TRAILER);
        }
        if !copy.buffer.is_empty() {
            copy.stream.feed(copy.buffer.split().freeze()).await.map_err(fail)?;
        }
        let stored = copy.stream.as_mut().finish().await.map_err(fail)?;
        if stored != copy.rows {
            return Err(Error::new(
                code::VERIFY_FAILED,
                format!("the server stored {stored} of {} rows", copy.rows),
            )
            .at("table", t.table.to_string()));
        }
        *self.loaded.entry(copy.target).or_default() += stored;
        Ok(())
    }

    /// How far each partition moves, and where all stand then. Rows carry no partition: where several are committed together,
    /// the first one of a table takes those of its load table, and the first of all what was done directly.
    fn moves_of<'a>(
        &self,
        advances: &'a [Advance],
        mut direct: Applied,
        mut loaded: HashMap<usize, u64>,
    ) -> Result<(Vec<Move<'a>>, Checkpoint)> {
        let mut after = self.standing.clone();
        let mut moves = Vec::with_capacity(advances.len());
        for advance in advances {
            let epoch = *self
                .epochs
                .get(&advance.partition)
                .ok_or_else(|| Error::bug(format!("partition {} was committed without recover", advance.partition)))?;
            let state = after.entry(advance.partition.clone()).or_default();
            let table = self
                .plan
                .partitions()
                .find(|p| p.id == advance.partition)
                .map(|p| p.table);
            let rows = table.and_then(|t| loaded.remove(&t)).unwrap_or_default();
            state.applied += Applied::inserts(rows);
            state.applied += std::mem::take(&mut direct);
            state.position = Some(advance.to.clone());
            state.done = advance.done;
            state.accounts = advance.accounts.clone();
            moves.push(Move::new(epoch, advance, state.applied));
        }
        match loaded.is_empty() {
            true => Ok((moves, after)),
            false => Err(Error::bug("rows of a table none of whose partitions is committed")),
        }
    }

    fn target_of(&self, table: &TableId) -> Result<usize> {
        let Mode::Load(targets) = &self.mode else {
            return Err(Error::bug("a sink that applies changes has no load tables"));
        };
        targets
            .iter()
            .position(|t| t.table == *table)
            .ok_or_else(|| Error::bug(format!("rows for {table}, which is not in the plan")))
    }

    async fn load(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Rows(batch) if batch.is_empty() => Ok(()),
            Event::Rows(batch) => {
                if !matches!(batch.ops, Ops::All(Op::Insert | Op::Upsert)) || batch.present.is_some() {
                    return Err(Error::bug("a load takes whole rows only"));
                }
                let target = self.target_of(&batch.table)?;
                self.copy_for(target).await?;
                let (Mode::Load(targets), Some(copy)) = (&self.mode, &mut self.open) else {
                    return Err(Error::bug("no COPY is open"));
                };
                let t = &targets[target];
                let at = |e: Error| e.at("table", t.table.to_string());
                let rows = t.encoder.bind(&batch.rows).map_err(at)?;
                for row in 0..batch.len() {
                    rows.write(row, &mut copy.buffer).map_err(at)?;
                    if copy.buffer.len() >= CHUNK {
                        let chunk = copy.buffer.split().freeze();
                        copy.buffer.reserve(CHUNK + CHUNK / 4);
                        copy.stream
                            .feed(chunk)
                            .await
                            .map_err(|e| at(map_error(e, "loading rows by COPY")))?;
                    }
                }
                copy.rows += batch.len() as u64;
                Ok(())
            }
            Event::Raw {
                table,
                bytes,
                rows,
                hold,
            } => {
                let target = self.target_of(&table)?;
                self.copy_for(target).await?;
                let Some(copy) = &mut self.open else {
                    return Err(Error::bug("no COPY is open"));
                };
                let fail = |e| map_error(e, "loading rows by COPY").at("table", table.to_string());
                copy.rows += rows;
                if bytes.len() >= CHUNK / 2 {
                    if !copy.buffer.is_empty() {
                        copy.stream.feed(copy.buffer.split().freeze()).await.map_err(fail)?;
                    }
                    copy.stream.feed(bytes).await.map_err(fail)?;
                } else {
                    copy.buffer.extend_from_slice(&bytes);
                    if copy.buffer.len() >= CHUNK {
                        copy.stream.feed(copy.buffer.split().freeze()).await.map_err(fail)?;
                    }
                }
                drop(hold);
                Ok(())
            }
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) | Event::Boundary { .. } => Ok(()),
            Event::Schema(_) | Event::Truncate { .. } | Event::Net { .. } | Event::ReplaceRange { .. } => Err(
                Error::bug("a load takes rows only; changes belong into a plan that applies them directly"),
            ),
        }
    }
}

#[async_trait]
impl Sink for PgSink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        self.session.reusable(false);
        let writers = self.control.writers(&*self.session, &self.plan, partitions).await?;
        end_sessions(&self.session, &writers).await?;
        let tx = self
            .session
            .transaction()
            .await
            .map_err(|e| map_error(e, "beginning a transaction"))?;
        // A process that is stopped right here holds the partition's row and is not its writer yet: the server ends such
        // a session by itself, so that an heir does not wait for it.
        tx.batch_execute("SET LOCAL idle_in_transaction_session_timeout = '10s'")
            .await
            .map_err(|e| map_error(e, "taking over partitions"))?;
        if self.flush == Flush::Later {
            // What is found counts as durable: the source may forget it from here on, so it is on the disk first.
            tx.batch_execute("SET LOCAL synchronous_commit = local")
                .await
                .map_err(|e| map_error(e, "taking over partitions"))?;
        }
        self.moves.hold_generation(&tx, &self.plan).await?;
        let (checkpoint, epochs) = self
            .control
            .take_over(&tx, &self.plan, partitions, &self.writer)
            .await?;
        tx.commit().await.map_err(|e| map_error(e, "taking over partitions"))?;
        self.epochs.extend(epochs);
        for (p, state) in &checkpoint {
            self.standing.insert(p.clone(), state.clone());
            self.durable.insert(p.clone(), state.clone());
        }
        failpoint("sink.recover.after")?;
        Ok(checkpoint)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        failpoint("sink.write")?;
        if let Mode::Direct(_) = self.mode {
            self.begin().await?;
            let Mode::Direct(applier) = &mut self.mode else {
                return Err(Error::bug("the sink changed its mode"));
            };
            return applier.write(&self.session, event).await;
        }
        self.load(event).await
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        self.end_copy().await?;
        self.begin().await?;
        let shares = std::mem::take(&mut self.loaded);
        let alone = matches!(advances, [advance] if advance.rejects.is_empty());
        let (applied, after) = loop {
            let direct = match &mut self.mode {
                Mode::Load(_) => Applied::default(),
                Mode::Direct(applier) => applier.finish(&self.session, alone).await?,
            };
            failpoint("sink.commit.before")?;
            let (moves, after) = self.moves_of(advances, direct, shares.clone())?;
            match self.end(&moves, &after).await {
                Ok(()) => {
                    let mut applied = direct;
                    shares.values().for_each(|rows| applied += Applied::inserts(*rows));
                    break (applied, after);
                }
                // Nothing of it was done: COMMIT came to a transaction that had failed.
                Err(Failed::Conflict(_)) if self.again() => {}
                Err(e) => return Err(e.into()),
            }
        };
        self.session.working(false);
        self.in_transaction = false;
        self.standing = after;
        failpoint("sink.commit.after")?;
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        // A commit asks too.
        if self.is_behind() && !self.in_transaction && self.asked.elapsed() >= ASK_AGAIN {
            self.ask().await?;
        }
        Ok(self.durable.clone())
    }

    async fn settle(&mut self) -> Result<Checkpoint> {
        if self.is_behind() && !self.in_transaction {
            // A commit that waits for the disk takes along what was committed before it. Where that ends is asked before: others
            // may write on without waiting.
            self.ask().await?;
            self.control.touch(&*self.session, &self.plan).await?;
            self.ask().await?;
        }
        Ok(self.durable.clone())
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        if self.in_transaction || self.open.is_some() {
            // Uncommitted work of a released partition must not be committed with another one's.
            self.open = None;
            self.session
                .batch_execute("ROLLBACK")
                .await
                .map_err(|e| map_error(e, "rolling back"))?;
            self.session.working(false);
            self.in_transaction = false;
            self.loaded.clear();
            if let Mode::Direct(applier) = &mut self.mode {
                applier.rolled_back();
            }
        }
        self.control
            .release(&*self.session, &self.plan, partitions, &self.writer)
            .await?;
        for p in partitions {
            self.epochs.remove(p);
            self.standing.remove(p);
            self.durable.remove(p);
            for (_, checkpoint) in &mut self.unflushed {
                checkpoint.remove(p);
            }
        }
        // A new session costs the server more than a small partition.
        if self.epochs.is_empty() {
            let clean = match &mut self.mode {
                Mode::Direct(applier) => applier.clear_away(&self.session).await.is_ok(),
                Mode::Load(_) => true,
            };
            self.session.reusable(clean);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Flush;

    #[test]
    fn only_logs_commit_before_the_disk_and_nobody_is_overruled() {
        for general in ["default", "configuration file", "command line"] {
            assert_eq!(Flush::when("on", general, "", true), Flush::LaterForLogs);
            assert_eq!(Flush::when("on", general, "", false), Flush::AtCommit);
            assert_eq!(Flush::when("on", general, "FIRST 1 (a)", true), Flush::AtCommit);
        }
        for meant in ["database", "user", "database user", "client", "session", "override"] {
            assert_eq!(Flush::when("on", meant, "", true), Flush::AtCommit);
        }
        for follows in [true, false] {
            assert_eq!(Flush::when("off", "database", "", follows), Flush::Later);
        }
    }
}
