//! The run loop: the only caller of `Sink::commit`.
//!
//! A run loads the destination's unfinished plan or makes a new one, writes its partitions (several at once, each with
//! its own reader, stages and sink), then seals, verifies and publishes. The sink's checkpoint is the only truth about
//! what is done: after any failure the sink is dropped and `recover` asks where things stand.

mod departures;
mod flow;
mod progress;

pub use progress::{Observer, PartitionStatus, PartitionView, Progress, RunEvent, Silent, Step};

use crate::budget::Budget;
use crate::error::{Error, Result, code};
use crate::failpoint::failpoint;
use crate::ledger::{Accounts, Applied, Compared, Ledger, Tally};
use crate::plan::{Compare, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Repair, Slice, Verify, Work};
use crate::progress::{Advance, Checkpoint, PartitionId, PartitionState, Position};
use crate::retry::RetryPolicy;
use crate::sink::{Destination, Sink, StoredPlan};
use crate::source::{Assignment, ReadContext, Reader, SliceRequest, Source};
use crate::stage::{Reject, Stage, Stages, Written};
use crate::strategy::present::{Kept, OnlyNew, Present};
use crate::strategy::{hash, regroup, unmatched};
use departures::Departures;
use flow::{Flow, Rejections, Rows};
use futures::StreamExt;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a run uses the machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Partitions at once; the destination may allow fewer.
    pub workers: usize,
    /// Bytes of rows in memory, all partitions together.
    pub memory: usize,
    /// A larger row is refused.
    pub max_row_bytes: usize,
    /// How transient errors are tried again.
    pub retry: RetryPolicy,
    /// A commit is made at the first boundary after so many bytes …
    pub commit_bytes: u64,
    /// … or, following a log, so much time …
    pub commit_interval: Duration,
    /// … or, with this, as soon as nothing more of the log is at hand. What came then is seen soon, at the price of more
    /// commits; they never take more than about half of the time, but for those of chunks, which are made at the first boundary.
    pub commit_when_idle: bool,
    /// … or, loading a table, so much: a commit costs, and a load is seen by nobody before it is published.
    pub load_commit_interval: Duration,
    /// How long work may go on to its next boundary after the user asked to stop.
    pub grace: Duration,
    /// How many rows stages may reject in a run.
    pub reject_limit: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            workers: 2,
            memory: 256 << 20,
            max_row_bytes: 256 << 20,
            retry: RetryPolicy::default(),
            commit_bytes: 64 << 20,
            commit_interval: Duration::from_millis(100),
            commit_when_idle: false,
            load_commit_interval: Duration::from_secs(30),
            grace: Duration::from_secs(10),
            reject_limit: 0,
        }
    }
}

/// Batches are at most this large (one larger row excepted).
const MAX_BATCH_BYTES: usize = 2 << 20;

/// How soon a sink whose commits reach the disk later is asked again whether they have.
const ASK_AGAIN: Duration = Duration::from_millis(250);

/// A commit is not put off for less: what comes during one is in the next.
const NEAR: Duration = Duration::from_millis(2);

/// What a commit takes at least, before any was made.
const CHEAP: Duration = Duration::from_millis(1);

/// How the stored rows were proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// By what.
    pub by: Verify,
    /// How many rows.
    pub rows: u64,
}

/// What a run did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Report {
    /// The plan it followed.
    #[serde(skip)]
    pub plan: Plan,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// Partitions in all.
    pub partitions: usize,
    /// Partitions that an earlier run had finished.
    pub skipped: usize,
    /// Its row accounts; they balance.
    pub ledger: Ledger,
    /// How the stored rows were proved, if they were loaded.
    pub verified: Option<Verified>,
    /// How often something was tried again.
    pub retries: u64,
}

/// Everything a run needs.
pub struct Engine {
    /// Where rows come from.
    pub source: Arc<dyn Source>,
    /// Where rows go.
    pub destination: Arc<dyn Destination>,
    /// What happens on the way.
    pub stages: Arc<dyn Stages>,
    /// How the machine is used.
    pub options: Options,
    /// Stops the run at the next boundary.
    pub cancel: CancellationToken,
    /// The live picture.
    pub progress: Arc<Progress>,
    /// Who hears of it.
    pub observer: Arc<dyn Observer>,
}

/// What a partition's tasks share.
struct Shared {
    /// Deletes found by one phase and made by a later one.
    deferred: Arc<hash::Deferred>,
    engine: Arc<Engine>,
    plan: Plan,
    /// Stop at the next boundary: the user's wish, or another partition's failure.
    stop: CancellationToken,
    /// Stop now: the grace is over.
    context: ReadContext,
    skipped: AtomicU64,
    rejections: Arc<Rejections>,
    departures: Departures,
}

impl Engine {
    /// An engine between two ends, with defaults for the rest.
    pub fn new(source: Arc<dyn Source>, destination: Arc<dyn Destination>) -> Engine {
        Engine {
            source,
            destination,
            stages: Arc::new(crate::stage::NoStages),
            options: Options::default(),
            cancel: CancellationToken::new(),
            progress: Arc::default(),
            observer: Arc::new(Silent),
        }
    }

    /// The destination's unfinished plan for this pipeline if it fits `semantics`, or else a draft made by `draft` and
    /// prepared there. The flag says whether it was resumed.
    pub async fn plan(
        &self,
        pipeline: &str,
        semantics: &serde_json::Value,
        draft: impl Future<Output = Result<Plan>>,
    ) -> Result<(Plan, bool)> {
        let stored = self
            .retry("planning", || unfinished(&*self.destination, pipeline, semantics))
            .await?;
        let resumed = matches!(&stored, Some((plan, checkpoint)) if !plan.is_stale(checkpoint));
        let plan = match stored {
            Some((plan, _)) if resumed => plan,
            stale => {
                let mut draft = draft.await?;
                draft.check_ids()?;
                if let Some((stale, _)) = stale {
                    draft.reasons.insert(0, stale.starts_over());
                }
                failpoint("engine.planned")?;
                // Not tried again: whether a prepare that failed took place is found out by the next run.
                self.destination.prepare(draft).await?
            }
        };
        self.progress.planned(&plan);
        self.observer.event(&RunEvent::Planned { plan: &plan, resumed });
        Ok((plan, resumed))
    }

    async fn retry<T, F: Future<Output = Result<T>>>(&self, what: &str, work: impl Fn() -> F) -> Result<T> {
        let mut failed = 0;
        let id = PartitionId::from(what);
        loop {
            match work().await {
                Err(e) if e.kind().is_transient() && failed + 1 < self.options.retry.attempts => {
                    failed += 1;
                    let delay = self.options.retry.delay(failed);
                    self.observer.event(&RunEvent::Retrying {
                        partition: &id,
                        error: &e,
                        delay,
                    });
                    tokio::select! {
                        () = tokio::time::sleep(delay) => {}
                        () = self.cancel.cancelled() => return Err(interrupted()),
                    }
                }
                other => return other,
            }
        }
    }

    fn shared(self: &Arc<Self>, plan: Plan) -> Arc<Shared> {
        let now = CancellationToken::new();
        let workers = self.workers(&plan);
        // At least half of the memory stays for rows on their way.
        let held = workers.saturating_mul(self.destination.held_per_writer());
        let memory = self.options.memory - held.min(self.options.memory / 2);
        Arc::new(Shared {
            deferred: Arc::default(),
            engine: self.clone(),
            plan,
            stop: self.cancel.child_token(),
            context: ReadContext {
                budget: Budget::new(memory),
                // Each partition has about IN_FLIGHT × 2 + 3 batches on their way.
                batch_bytes: (memory / (12 * workers)).clamp(16 << 10, MAX_BATCH_BYTES),
                max_row_bytes: self.options.max_row_bytes,
                cancel: now,
            },
            skipped: AtomicU64::new(0),
            rejections: Arc::new(Rejections::new(self.options.reject_limit)),
            departures: Departures::default(),
        })
    }

    fn workers(&self, plan: &Plan) -> usize {
        let held = self.destination.held_per_writer();
        let fitting = (self.options.memory / 2).checked_div(held).unwrap_or(usize::MAX);
        self.options
            .workers
            .min(self.destination.traits().writers)
            .min(fitting)
            .min(plan.partitions().count())
            .max(1)
    }

    fn step(&self, step: Step) {
        self.progress.set_step(step);
        self.observer.event(&RunEvent::Step(step));
    }

    /// Runs a prepared plan of bounded partitions to its end: phases, seal, verify, publish.
    pub async fn run(self: &Arc<Self>, plan: Plan, resumed: bool) -> Result<Report> {
        let shared = self.shared(plan);
        let plan = &shared.plan;
        let grace = abort_after_grace(&shared);
        self.step(Step::Partitions);
        for phase in plan.phases.iter() {
            self.guard(&shared, phase).await?;
            self.phase(&shared, &phase.partitions).await?;
        }
        drop(grace);
        let partitions = plan.partitions().count();
        let mut ledger = self.retry("ledger", || self.ledger(plan)).await?;
        ledger.check()?;
        let loads = plan.tables.iter().any(|t| t.publish != Publish::Direct);
        let mut verified = None;
        if loads {
            self.step(Step::Sealing);
            self.retry("sealing", || self.destination.seal(plan)).await?;
            self.stop_here()?;
            self.step(Step::Verifying);
            verified = self.retry("verifying", || self.verify(&shared, &ledger)).await?;
            self.stop_here()?;
        }
        self.step(Step::Publishing);
        let published = self.retry("publishing", || self.destination.publish(plan)).await?;
        if loads {
            ledger.published = Some(published.applied);
            ledger.check()?;
        }
        self.step(Step::Finished);
        self.observer.event(&RunEvent::Finished { ledger: &ledger });
        Ok(Report {
            plan: plan.clone(),
            resumed,
            partitions,
            skipped: shared.skipped.load(Ordering::Relaxed) as usize,
            ledger,
            verified,
            retries: self.progress.retries(),
        })
    }

    /// Follows a log until it ends or the run is cancelled: partitions come and go by the source's assignment.
    pub async fn follow(self: &Arc<Self>, plan: Plan) -> Result<Ledger> {
        let shared = self.shared(plan);
        let grace = abort_after_grace(&shared);
        self.step(Step::Partitions);
        let mut assignments = self.source.assignments().await?;
        let mut running: JoinSet<(PartitionId, Result<()>)> = JoinSet::new();
        let mut stops: HashMap<PartitionId, CancellationToken> = HashMap::new();
        // Given back to us before we had let go of it: starts when we have, so that we do not fence ourselves.
        let mut returning: HashMap<PartitionId, Partition> = HashMap::new();
        let mut open = true;
        let mut failure = None;
        while open || !running.is_empty() {
            let mut starting = Vec::new();
            tokio::select! {
                change = assignments.next(), if open => match change {
                    Some(Assignment::Added(partitions)) => {
                        for partition in partitions {
                            if stops.contains_key(&partition.id) {
                                returning.insert(partition.id.clone(), partition);
                            } else {
                                starting.push(partition);
                            }
                        }
                    }
                    Some(Assignment::Removed(ids)) => {
                        for id in ids {
                            returning.remove(&id);
                            stops.get(&id).inspect(|stop| stop.cancel());
                        }
                    }
                    None => open = false,
                },
                Some(ended) = running.join_next() => {
                    let (id, result) = ended.map_err(|e| Error::bug(format!("a partition's task died: {e}")))?;
                    let given_away = stops.remove(&id).is_some_and(|s| s.is_cancelled()) && !shared.stop.is_cancelled();
                    match result {
                        Ok(()) => {}
                        Err(e) if given_away && (e.code() == code::INTERRUPTED || e.code() == code::FENCED) => {}
                        Err(e) => {
                            shared.stop.cancel();
                            failure = worse(failure, e);
                            open = false;
                        }
                    }
                    if !shared.stop.is_cancelled() {
                        starting.extend(returning.remove(&id));
                    }
                }
                () = shared.stop.cancelled(), if open => open = false,
            }
            for partition in starting {
                let stop = shared.stop.child_token();
                stops.insert(partition.id.clone(), stop.clone());
                let shared = shared.clone();
                running.spawn(async move {
                    let done = partition_with_retries(&shared, &partition, &stop).await;
                    (partition.id, done)
                });
            }
        }
        drop(grace);
        match failure {
            Some(e) if e.code() != code::INTERRUPTED => Err(e),
            _ if self.cancel.is_cancelled() => Err(interrupted()),
            Some(e) => Err(e),
            None => {
                let ledger = self.ledger(&shared.plan).await?;
                ledger.check()?;
                Ok(ledger)
            }
        }
    }

    async fn phase(&self, shared: &Arc<Shared>, partitions: &[Partition]) -> Result<()> {
        let mut waiting = partitions.iter();
        let mut running: JoinSet<Result<()>> = JoinSet::new();
        let mut failure = None;
        loop {
            while failure.is_none() && !shared.stop.is_cancelled() && running.len() < self.workers(&shared.plan) {
                let Some(partition) = waiting.next().cloned() else {
                    break;
                };
                let shared = shared.clone();
                running.spawn(async move { partition_with_retries(&shared, &partition, &shared.stop).await });
            }
            match running.join_next().await {
                None => break,
                Some(Ok(Ok(()))) => {}
                Some(Ok(Err(e))) => {
                    shared.stop.cancel();
                    failure = worse(failure, e);
                }
                Some(Err(e)) => {
                    shared.stop.cancel();
                    failure = worse(failure, Error::bug(format!("a partition's task died: {e}")));
                }
            }
        }
        match failure {
            Some(e) => Err(e),
            None => self.stop_here(),
        }
    }

    /// Before anything is deleted that a comparison found, or a group that has no rows any more, their number is judged.
    async fn guard(&self, shared: &Shared, phase: &Phase) -> Result<()> {
        let plan = &shared.plan;
        let compares = |p: &Partition| matches!(&p.work, Work::Compare(c) if c.repair == Repair::Deletes);
        let groups = |p: &Partition| matches!(&p.work, Work::Recompute { deletes: true, .. });
        let (before, deleted, after) = if phase.partitions.iter().any(groups) {
            let ledger = self.retry("guard", || self.ledger(plan)).await?;
            let deleted = ledger.accounts.compared.only_destination;
            if deleted == 0 || plan.guard.allow {
                return Ok(());
            }
            // Groups are not compared: how many there are is asked as far as the answer matters.
            let enough = match deleted > plan.guard.max_rows {
                true => u64::MAX,
                false => deleted + 1,
            };
            let checkpoint = self.retry("guard", || self.destination.checkpoint(plan)).await?;
            let states = phase.partitions.iter().filter_map(|p| checkpoint.get(&p.id));
            // Those that an earlier process deleted were there, too.
            let earlier: u64 = states.map(|s| s.applied.deleted).sum();
            let before = earlier + self.retry("guard", || self.groups(shared, enough)).await?;
            (before, deleted, before.saturating_sub(deleted))
        } else if phase.partitions.iter().any(compares) {
            let found = self.found(shared, phase).await?;
            (found.destination, found.only_destination, found.source)
        } else {
            return Ok(());
        };
        if plan.guard.allows(before, deleted, after) {
            return Ok(());
        }
        Err(Error::new(
            code::MASS_DELETE,
            format!(
                "{deleted} of {before} rows of {} would be deleted: the source does not have them",
                plan.tables
                    .first()
                    .map(|t| t.destination.to_string())
                    .unwrap_or_default()
            ),
        )
        .at("pipeline", &plan.pipeline)
        .hint("look at the source; if the deletes are meant, run again with --allow-mass-delete"))
    }

    /// What was found of the slices of a phase that deletes. Of those that this process did not see from their beginning
    /// nobody knows the keys, and the source may be another by now: they are looked at again.
    async fn found(&self, shared: &Shared, phase: &Phase) -> Result<Compared> {
        let plan = &shared.plan;
        let checkpoint = self.retry("guard", || self.destination.checkpoint(plan)).await?;
        let mut earlier: HashMap<&str, Compared> = HashMap::new();
        for partition in plan.partitions() {
            if let (Work::Compare(compare), Some(state)) = (&partition.work, checkpoint.get(&partition.id))
                && compare.repair != Repair::Deletes
            {
                *earlier.entry(hash::label_of(&partition.id)).or_default() += state.accounts.compared;
            }
        }
        let (mut found, mut again) = (Compared::default(), Vec::new());
        for partition in &phase.partitions {
            let Work::Compare(compare) = &partition.work else {
                continue;
            };
            let label = hash::label_of(&partition.id);
            let state = checkpoint.get(&partition.id);
            // Where everything is deleted already, nothing more will be.
            if shared.deferred.knows(label) || state.is_some_and(|s| s.done) {
                found += earlier.get(label).copied().unwrap_or_default();
                continue;
            }
            // What an earlier process deleted counts, too.
            let deleted = state.map_or(0, |s| s.applied.deleted);
            found.destination += deleted;
            found.only_destination += deleted;
            again.push((label.to_string(), compare.clone()));
        }
        let table = phase.partitions.first().and_then(|p| plan.tables.get(p.table));
        let Some(table) = table.filter(|_| !again.is_empty()) else {
            return Ok(found);
        };
        let comparing = &comparing(shared, table)?;
        let look = |(label, compare): (String, Compare)| async move {
            let found = || hash::find_again(comparing, &label, &compare);
            self.retry("guard", found).await
        };
        let looks = again.into_iter().map(look);
        let mut looks = futures::stream::iter(looks).buffer_unordered(self.workers(plan));
        loop {
            tokio::select! {
                () = shared.stop.cancelled() => return Err(interrupted()),
                looked = looks.next() => match looked {
                    Some(counts) => found += counts?,
                    None => return Ok(found),
                }
            }
        }
    }

    /// How many groups an aggregate's destination has; not counted beyond `enough`.
    async fn groups(&self, shared: &Shared, enough: u64) -> Result<u64> {
        let table = shared
            .plan
            .tables
            .first()
            .ok_or_else(|| Error::bug("an aggregate's plan without its tables"))?;
        let stored = Present::of(
            stored(&*self.destination)?,
            &table.destination,
            &table.schema.key,
            &shared.context,
        );
        stored.await?.count(enough).await
    }

    fn stop_here(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            Err(interrupted())
        } else {
            Ok(())
        }
    }

    async fn ledger(&self, plan: &Plan) -> Result<Ledger> {
        let mut ledger = Ledger::default();
        for state in self.destination.checkpoint(plan).await?.values() {
            ledger.add(&state.accounts, state.applied);
        }
        Ok(ledger)
    }

    /// Compares what was handed to the sink with what is stored: a live source has moved on, so it is not read twice.
    async fn verify(&self, shared: &Arc<Shared>, ledger: &Ledger) -> Result<Option<Verified>> {
        let plan = &shared.plan;
        if plan.verify != Verify::Hash {
            // Counts are compared by the sink at every commit and again when publishing.
            let rows = ledger.accounts.written.rows;
            return Ok((plan.verify == Verify::Count).then_some(Verified {
                by: Verify::Count,
                rows,
            }));
        }
        let mut stored = Tally::default();
        for (i, table) in plan.tables.iter().enumerate() {
            let Some((source, load)) = self.destination.read_back(plan, i) else {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!(
                        "what is stored in {} cannot be read back, so it cannot be verified by hash",
                        self.destination.engine()
                    ),
                )
                .hint("set `verify: count`"));
            };
            let mut read = ReadSpec::all(load, &table.schema.columns);
            read.raw = table.read.raw.clone();
            let request = SliceRequest {
                key: table.schema.key.clone(),
                step: None,
                min_slices: self.options.workers,
                max_slice_bytes: u64::MAX,
                single: false,
            };
            let slices = source.slices(&read, &request).await?;
            let mut running = JoinSet::new();
            for slice in slices {
                let (source, read, context) = (source.clone(), read.clone(), shared.context.clone());
                running.spawn(async move { tally_slice(source, read, slice.slice, i, context).await });
            }
            while let Some(tally) = running.join_next().await {
                stored += tally.map_err(|e| Error::bug(format!("verifying died: {e}")))??;
            }
        }
        let written = ledger.accounts.written;
        if !stored.same_rows(&written) {
            return Err(Error::new(
                code::VERIFY_FAILED,
                format!(
                    "what was stored ({} rows) is not what was read ({} rows); the destination table was not touched",
                    stored.rows, written.rows
                ),
            )
            .hint("run again; if it happens again, compare the column types with `synctool plan`"));
        }
        Ok(Some(Verified {
            by: Verify::Hash,
            rows: stored.rows,
        }))
    }
}

async fn tally_slice(
    source: Arc<dyn Source>,
    read: ReadSpec,
    slice: Slice,
    table: usize,
    context: ReadContext,
) -> Result<Tally> {
    let partition = Partition {
        id: "verify".into(),
        table,
        work: Work::Read(slice),
        estimated_rows: 0,
        estimated_bytes: 0,
    };
    let mut reader = source.open(&read, &partition, None, &context).await?;
    let mut hasher = crate::rowhash::RowHasher::new();
    let mut tally = Tally::default();
    while let Some(event) = reader.next().await? {
        match event {
            crate::change::Event::Rows(batch) => hasher.add(&batch.rows, &mut tally)?,
            crate::change::Event::Raw { bytes, .. } => source.tally_raw(&bytes, &mut tally)?,
            _ => {}
        }
    }
    Ok(tally)
}

/// When the user asks to stop, work goes on to its next boundary, but not for longer than the grace.
fn abort_after_grace(shared: &Arc<Shared>) -> tokio_util::task::AbortOnDropHandle<()> {
    let (stop, now, grace) = (
        shared.stop.clone(),
        shared.context.cancel.clone(),
        shared.engine.options.grace,
    );
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
        now.cancel();
    }))
}

fn interrupted() -> Error {
    Error::new(
        code::INTERRUPTED,
        "stopped on request; everything committed so far is kept",
    )
    .hint("run the same command again to go on from here")
}

/// Of two failures, the one worth telling: an interruption caused by the other is not.
fn worse(a: Option<Error>, b: Error) -> Option<Error> {
    match a {
        Some(a) if a.code() != code::INTERRUPTED => Some(a),
        _ => Some(b),
    }
}

/// A pipeline's unfinished plan and where it stands; an error where the pipeline does not mean what it meant then and
/// something was done already. It may be stale ([`Plan::is_stale`]).
pub async fn unfinished(
    destination: &dyn Destination,
    pipeline: &str,
    semantics: &serde_json::Value,
) -> Result<Option<(Plan, Checkpoint)>> {
    let stored = destination.stored_plan(pipeline).await?;
    let Some(StoredPlan { plan, .. }) = stored.filter(|s| !s.finished) else {
        return Ok(None);
    };
    let checkpoint = destination.checkpoint(&plan).await?;
    match check_unchanged(&plan, semantics) {
        // Nothing would be thrown away: whoever corrects what let the first run fail need not say so twice.
        Err(_) if !checkpoint.values().any(PartitionState::has_begun) => Ok(None),
        Err(e) => Err(e),
        Ok(()) => Ok(Some((plan, checkpoint))),
    }
}

/// Fails where a pipeline does not mean what it meant when the plan of its unfinished run was made.
fn check_unchanged(plan: &Plan, semantics: &serde_json::Value) -> Result<()> {
    if plan.semantics == *semantics {
        return Ok(());
    }
    let changed = match (plan.semantics.as_object(), semantics.as_object()) {
        (Some(a), Some(b)) => {
            let mut keys: Vec<&str> = a
                .keys()
                .chain(b.keys())
                .filter(|k| a.get(*k) != b.get(*k))
                .map(String::as_str)
                .collect();
            keys.sort_unstable();
            keys.dedup();
            keys.join(", ")
        }
        _ => "everything".into(),
    };
    Err(Error::new(
        code::CONFIG_CHANGED,
        format!(
            "the pipeline changed ({changed}) while its run {} is unfinished",
            plan.run_id
        ),
    )
    .at("pipeline", &plan.pipeline)
    .hint(format!(
        "undo the change and run again, or start over: synctool state reset {}",
        plan.pipeline
    )))
}

async fn partition_with_retries(shared: &Arc<Shared>, partition: &Partition, stop: &CancellationToken) -> Result<()> {
    let engine = &shared.engine;
    let mut failed = 0;
    loop {
        let mut moved = false;
        let result = write_partition(shared, partition, stop, &mut moved).await;
        if moved {
            failed = 0;
        }
        match result {
            Err(e) if e.kind().is_transient() && failed + 1 < engine.options.retry.attempts => {
                failed += 1;
                let delay = engine.options.retry.delay(failed);
                engine.progress.set_status(&partition.id, PartitionStatus::Retrying);
                engine.observer.event(&RunEvent::Retrying {
                    partition: &partition.id,
                    error: &e,
                    delay,
                });
                tokio::select! {
                    () = tokio::time::sleep(delay) => {}
                    () = stop.cancelled() => return Err(interrupted()),
                }
            }
            Ok(()) => return Ok(()),
            Err(e) => {
                if e.code() != code::INTERRUPTED {
                    engine.progress.set_status(&partition.id, PartitionStatus::Failed);
                }
                let e = match partition.work {
                    Work::Log => of_a_log(e),
                    _ => e,
                };
                return Err(e
                    .at("pipeline", &shared.plan.pipeline)
                    .at("partition", partition.id.as_str()));
            }
        }
    }
}

/// An error of a log, whose columns are followed as they are: what a pipeline can say of its columns elsewhere is no help.
fn of_a_log(e: Error) -> Error {
    let is_value = e.code() == code::VALUE_UNSUPPORTED || e.code() == code::VALUE_MALFORMED;
    match is_value && e.next_step().is_none_or(|hint| hint.contains("as_text")) {
        true => e.hint_instead(
            "make the column a text without a limit at the destination (ALTER TABLE there), then synctool state reset and \
             run again; or leave the table out of the pipeline",
        ),
        false => e,
    }
}

/// Rows that stages have put aside.
fn rejected(accounts: &Accounts) -> u64 {
    accounts.stages.iter().map(|(_, s)| s.rejected).sum()
}

/// Where a partition stands between the sink and the engine.
struct Writing {
    id: PartitionId,
    sink: Box<dyn Sink>,
    /// Where the sink stood when it was opened: perhaps of another log than the one that is read now.
    found: Option<Position>,
    /// Where the sink stands.
    committed: Option<Position>,
    /// Accounts up to the last event written.
    accounts: Accounts,
    /// Rows put aside since the last commit, and how many there were before.
    rejects: Vec<Reject>,
    rejected: u64,
    /// Written since the last commit.
    pending_bytes: u64,
    pending: bool,
    /// Whether rows of a chunk are among it: what waits behind them waits no longer than for them.
    fresh: bool,
    since: Instant,
    /// When the first boundary since the last commit was reached.
    waits: Option<Instant>,
    /// How long commits take: the last one, or twice as long as it was thought before.
    took: Duration,
    /// The boundary reached, if nothing was written after it.
    boundary: Option<Position>,
    /// When the sink is asked what it holds durably, if that is not yet all of it.
    ask: Option<Instant>,
    applied: Applied,
}

impl Writing {
    async fn commit(&mut self, to: Position, done: bool) -> Result<Applied> {
        let advance = Advance {
            partition: self.id.clone(),
            from: self.committed.take(),
            to: to.clone(),
            done,
            accounts: self.accounts.clone(),
            rejects: (self.rejected..).zip(std::mem::take(&mut self.rejects)).collect(),
        };
        self.rejected = rejected(&self.accounts);
        let begun = Instant::now();
        failpoint("engine.commit.before")?;
        let applied = self.sink.commit(&[advance]).await?;
        failpoint("engine.commit.after")?;
        self.applied += applied;
        self.committed = Some(to);
        self.boundary = None;
        (self.pending, self.pending_bytes, self.since) = (false, 0, Instant::now());
        self.fresh = false;
        // A dear one among cheap ones, with the rows of a chunk say, says nothing of the next.
        (self.waits, self.took) = (None, begun.elapsed().min(2 * self.took.max(CHEAP)));
        Ok(applied)
    }

    /// Tells the reader what is durable of this run; where that is not all, the sink is asked again.
    fn acknowledge(&mut self, durable: &Checkpoint, flow: &Flow) {
        let position = durable.get(&self.id).and_then(|s| s.position.clone());
        self.ask = (position != self.committed).then(|| Instant::now() + ASK_AGAIN);
        if let Some(position) = position.filter(|p| self.found.as_ref() != Some(p)) {
            flow.acknowledge(position);
        }
    }

    /// Before the work ends, everything is durable and the reader knows.
    async fn settle(&mut self, flow: &Flow) -> Result<()> {
        if self.ask.is_some() {
            let durable = self.sink.settle().await?;
            self.acknowledge(&durable, flow);
        }
        Ok(())
    }
}

/// The destination's tables, to be read.
fn stored(destination: &dyn Destination) -> Result<Arc<dyn Source>> {
    destination.as_source().ok_or_else(|| {
        Error::new(
            code::UNSUPPORTED,
            format!("tables of {} cannot be read back", destination.engine()),
        )
    })
}

/// Both ends of a table that is compared.
fn comparing(shared: &Shared, table: &PlannedTable) -> Result<hash::Comparing> {
    let engine = &shared.engine;
    let pair = hash::Pair::new(
        engine.source.clone(),
        stored(&*engine.destination)?,
        engine.stages.clone(),
        table,
        &shared.context,
    )?;
    Ok(hash::Comparing {
        pair: Arc::new(pair),
        deferred: shared.deferred.clone(),
        // A group that came back does so with rows that the next delta sees.
        as_found: shared.plan.strategy == crate::plan::Strategy::Aggregate,
    })
}

/// The stages that a partition's rows pass: the pipeline's, and a last one of a run that only adds rows, or deletes none.
async fn open_stages(shared: &Shared, table: &PlannedTable, work: &Work) -> Result<Vec<Box<dyn Stage>>> {
    let changes = table.changes.as_ref().filter(|_| matches!(work, Work::Read(_)));
    let adds = changes.is_some_and(|c| c.only_new);
    let written = match work {
        Work::Read(_) if adds || table.publish != Publish::Direct => Written::Once,
        Work::Read(_) => Written::InOrder,
        _ => Written::Stepwise,
    };
    let mut stages = shared.engine.stages.open_for(&table.staged(), written)?;
    if adds {
        let destination = stored(&*shared.engine.destination)?;
        let present = Present::of(destination, &table.destination, &table.schema.key, &shared.context);
        stages.push(Box::new(OnlyNew(present.await?)));
    } else if changes.is_some_and(|c| c.keeps) && !stages.is_empty() {
        stages.push(Box::new(Kept));
    }
    Ok(stages)
}

/// Opens what a partition reads: a source's slice or log, or work that looks at both ends.
async fn open_reader(
    shared: &Arc<Shared>,
    table: &PlannedTable,
    partition: &Partition,
    after: Option<&Position>,
) -> Result<Box<dyn Reader>> {
    let engine = &shared.engine;
    let destination = || stored(&*engine.destination);
    match &partition.work {
        Work::Read(_) if table.changes.as_ref().is_some_and(|c| c.unmatched) => {
            unmatched::open(engine.source.clone(), table, partition, &shared.context).await
        }
        Work::Read(_) | Work::Log => engine.source.open(&table.read, partition, after, &shared.context).await,
        Work::Compare(compare) => Ok(hash::open(&comparing(shared, table)?, &partition.id, compare, after)),
        Work::Touch { .. } | Work::Vanished(_) | Work::Recompute { .. } | Work::Regroup { .. } | Work::Clear => {
            let groups = regroup::Groups {
                source: engine.source.clone(),
                destination: destination()?,
                tables: shared.plan.tables.clone().into(),
                deferred: shared.deferred.clone(),
                guard: shared.plan.guard,
                context: shared.context.clone(),
            };
            regroup::open(&groups, &partition.work, after).await
        }
    }
}

async fn write_partition(
    shared: &Arc<Shared>,
    partition: &Partition,
    stop: &CancellationToken,
    moved: &mut bool,
) -> Result<()> {
    let (engine, plan, id) = (&shared.engine, &shared.plan, &partition.id);
    let started = Instant::now();
    let table = plan
        .tables
        .get(partition.table)
        .ok_or_else(|| Error::bug("a partition of no table"))?;
    // Where nothing was found that must go, there is nothing to do and nothing to commit.
    if let Work::Compare(compare) = &partition.work
        && compare.repair == Repair::Deletes
        && shared.deferred.is_empty(hash::label_of(id))
    {
        engine.progress.set_status(id, PartitionStatus::Done);
        engine.observer.event(&RunEvent::PartitionStarted { partition: id });
        engine.observer.event(&RunEvent::PartitionDone {
            partition: id,
            rows: 0,
            took: started.elapsed(),
            skipped: false,
        });
        return Ok(());
    }
    let mut sink = engine.destination.open_sink(plan).await?;
    let state = sink
        .recover(std::slice::from_ref(id))
        .await?
        .remove(id)
        .unwrap_or_default();
    engine
        .progress
        .set_read(id, state.accounts.read.rows, state.accounts.read.bytes);
    shared.departures.begin(id, state.applied.deleted).await;
    if state.done {
        shared.skipped.fetch_add(1, Ordering::Relaxed);
        engine.progress.set_status(id, PartitionStatus::Skipped);
        sink.release(std::slice::from_ref(id)).await?;
        let rows = state.accounts.read.rows;
        engine.observer.event(&RunEvent::PartitionDone {
            partition: id,
            rows,
            took: started.elapsed(),
            skipped: true,
        });
        return Ok(());
    }
    engine.progress.set_status(id, PartitionStatus::Running);
    engine.observer.event(&RunEvent::PartitionStarted { partition: id });
    let reader = open_reader(shared, table, partition, state.position.as_ref()).await?;
    shared.rejections.begin(id, &state.accounts);
    let mut flow = Flow::start(
        (engine.source.clone(), engine.destination.clone()),
        reader,
        open_stages(shared, table, &partition.work).await?,
        plan.tables.clone(),
        plan.verify,
        match partition.work {
            Work::Log => Rows::OfALog,
            // A comparison's rows have passed the stages already.
            Work::Compare(_) => Rows::Staged,
            _ => Rows::Read,
        },
        (shared.rejections.clone(), id.clone()),
    );
    let mut w = Writing {
        id: id.clone(),
        sink,
        found: state.position.clone(),
        committed: state.position,
        rejects: Vec::new(),
        rejected: rejected(&state.accounts),
        accounts: state.accounts,
        pending_bytes: 0,
        pending: false,
        fresh: false,
        since: Instant::now(),
        waits: None,
        took: Duration::ZERO,
        boundary: None,
        ask: None,
        applied: Applied::default(),
    };
    let endless = partition.work == Work::Log;
    // What stages remember is lost with them, so such a partition is committed as a whole.
    let whole = matches!(partition.work, Work::Read(_)) && engine.stages.remembers();
    loop {
        let interval = match endless {
            // A sink whose commits are dear makes fewer of them.
            true => engine.options.commit_interval.max(4 * w.took),
            false => engine.options.load_commit_interval,
        };
        // A finished boundary may be committed as long as nothing is written after it.
        let due = match w.waits {
            Some(waits) if endless && engine.options.commit_when_idle => (waits + w.took).min(w.since + interval),
            _ => w.since + interval,
        };
        let item = tokio::select! {
            biased;
            () = shared.context.cancel.cancelled() => return Err(interrupted()),
            () = stop.cancelled(), if w.boundary.is_some() || (!w.pending && endless) => {
                if let Some(to) = w.boundary.take() {
                    commit(shared, &mut w, &flow, to, false, moved).await?;
                }
                w.settle(&flow).await?;
                flow.end().await;
                w.sink.release(std::slice::from_ref(id)).await?;
                return Err(interrupted());
            }
            item = flow.next() => item?,
            () = until(due), if w.boundary.is_some() => {
                let to = w.boundary.take().expect("checked");
                commit(shared, &mut w, &flow, to, false, moved).await?;
                continue;
            }
            () = tokio::time::sleep_until(w.ask.unwrap_or(due)), if w.ask.is_some() && !w.pending => {
                let durable = w.sink.durable().await?;
                w.acknowledge(&durable, &flow);
                continue;
            }
        };
        w.accounts += &item.accounts;
        engine
            .progress
            .set_read(id, w.accounts.read.rows, w.accounts.read.bytes);
        if !item.rejects.is_empty() {
            engine.observer.event(&RunEvent::Rejected {
                partition: id,
                rejects: &item.rejects,
            });
            w.rejects.extend(item.rejects);
        }
        match item.event {
            Some(crate::change::Event::Boundary { .. }) if whole => w.pending = true,
            Some(crate::change::Event::Boundary { position, .. }) => {
                w.boundary = Some(position.clone());
                w.waits.get_or_insert_with(Instant::now);
                w.pending = true;
                let soon = w.fresh && endless && engine.options.commit_when_idle;
                if soon || w.pending_bytes >= engine.options.commit_bytes || w.since.elapsed() >= interval {
                    commit(shared, &mut w, &flow, position, false, moved).await?;
                }
            }
            // Only the accounts mind it.
            Some(crate::change::Event::Compared(_)) => w.pending = true,
            Some(event) => {
                if let crate::change::Event::Rows(batch) = &event {
                    shared.departures.judge(shared, table, id, batch).await?;
                    w.fresh |= batch.fresh;
                }
                w.boundary = None;
                w.pending = true;
                w.pending_bytes += event.bytes();
                w.sink.write(event).await?;
            }
            None if endless => {
                if let Some(to) = w.boundary.take() {
                    commit(shared, &mut w, &flow, to, false, moved).await?;
                } else if w.pending {
                    return Err(Error::new(code::CONNECTION_LOST, "the log ended inside a transaction"));
                }
                w.settle(&flow).await?;
                flow.end().await;
                w.sink.release(std::slice::from_ref(id)).await?;
                engine.progress.set_status(id, PartitionStatus::Done);
                return Ok(());
            }
            None => {
                let end = w
                    .boundary
                    .take()
                    .or_else(|| w.committed.clone())
                    .unwrap_or_else(|| Position::from("end"));
                commit(shared, &mut w, &flow, end, true, moved).await?;
                w.sink.release(std::slice::from_ref(id)).await?;
                engine.progress.set_status(id, PartitionStatus::Done);
                let rows = w.accounts.read.rows;
                engine.observer.event(&RunEvent::PartitionDone {
                    partition: id,
                    rows,
                    took: started.elapsed(),
                    skipped: false,
                });
                return Ok(());
            }
        }
    }
}

/// Waits for what is not near enough to be now.
async fn until(due: Instant) {
    if due.saturating_duration_since(Instant::now()) >= NEAR {
        tokio::time::sleep_until(due).await;
    }
}

async fn commit(
    shared: &Shared,
    w: &mut Writing,
    flow: &Flow,
    to: Position,
    done: bool,
    moved: &mut bool,
) -> Result<()> {
    let applied = w.commit(to, done).await?;
    *moved = true;
    shared.engine.observer.event(&RunEvent::Committed {
        partition: &w.id,
        applied,
    });
    let durable = w.sink.durable().await?;
    w.acknowledge(&durable, flow);
    Ok(())
}
