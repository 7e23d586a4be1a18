//! Writes down a run while it goes on: log, store and JSON files, on a thread of its own, so that the engine never waits.
//!
//! The sink's checkpoint is the truth. So a store or disk that fails in mid-run does not stop the run; what could not be
//! written is told at the end.

use super::documents::{BatchSizes, MetricsDocument, PipelineMetrics, history};
use super::log::{Level, LogLine, LogWriter};
use super::model::{Proof, RunError, now, redacted};
use super::outputs::{Lasting, Outputs, write_json};
use super::{PartitionRecord, PipelineMemory, Retention, Run, RunLock, RunStatus, Store};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use synctool_core::engine::{Observer, PartitionStatus, Progress, Report, RunEvent, Step};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::{Applied, Ledger};
use synctool_core::plan::{Publish, Strategy};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Files and store are written at most so often …
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// … and never take more than this share of the time, however large they are.
const WRITE_SHARE: u32 = 10;
/// A run without news is written down all the same, so that one sees that it lives.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A partition's commits are logged at most so often.
const LOG_COMMITS_EVERY: Duration = Duration::from_secs(5);
/// How long one call of the store may take.
const STORE_PATIENCE: Duration = Duration::from_secs(15);
/// The last word is said again until it is heard, as often as this.
const LAST_WORD_TRIES: u32 = 4;

/// What a run is called and how it is watched.
pub struct RunInfo {
    /// Its id: the plan's too, if it makes one.
    pub run_id: String,
    /// The strategy's name in the pipeline.
    pub strategy: String,
    /// What kind it is; the plan may decide otherwise.
    pub strategy_type: Strategy,
    /// The engine's live picture.
    pub progress: Arc<Progress>,
}

/// What a run that went well leaves behind.
#[derive(Debug, Clone, Default)]
pub struct Summary {
    /// Its row accounts.
    pub ledger: Ledger,
    /// How the stored rows were proved.
    pub verified: Option<Proof>,
}

impl From<&Report> for Summary {
    fn from(report: &Report) -> Self {
        Summary {
            ledger: report.ledger.clone(),
            verified: report.verified.map(|v| Proof { by: v.by, rows: v.rows }),
        }
    }
}

impl From<&Ledger> for Summary {
    fn from(ledger: &Ledger) -> Self {
        Summary {
            ledger: ledger.clone(),
            verified: None,
        }
    }
}

/// A run, written down.
#[derive(Debug)]
pub struct Recorded {
    /// As it was written.
    pub run: Run,
    /// What could not be written.
    pub warnings: Vec<Error>,
}

enum Note {
    Planned {
        total: u64,
        strategy: Strategy,
        reasons: Vec<String>,
        resumed_from: Option<String>,
        /// Rows count only once they are published.
        loads: bool,
    },
    Started(String),
    Committed(String, Applied),
    Done {
        id: String,
        rows: u64,
        took: Duration,
        skipped: bool,
    },
    Retrying {
        id: String,
        error: RunError,
        delay: Duration,
    },
    Step(Step),
    Log(Level, String),
    End(Box<End>, oneshot::Sender<Recorded>),
}

enum End {
    Well(Summary),
    Badly {
        status: RunStatus,
        error: RunError,
        partition: Option<String>,
    },
}

/// Hears a run and writes it down.
pub struct RunRecorder {
    run_id: String,
    notes: mpsc::Sender<Note>,
}

impl RunRecorder {
    /// Begins a run of the locked pipeline. The lock is given back at the end, after the last word is written.
    pub async fn start(store: Arc<dyn Store>, outputs: Outputs, lock: RunLock, info: RunInfo) -> Result<Arc<Self>> {
        let pipeline = lock.pipeline().to_string();
        let run = Run::begin(
            &pipeline,
            &info.run_id,
            &info.strategy,
            info.strategy_type,
            lock.holder(),
        );
        let log = LogWriter::create(&outputs.log_file(&pipeline, &run.run_id))?;
        store.begin_run(&lock, &run).await?;
        let memory = store.state(&pipeline).await?.unwrap_or(PipelineMemory {
            run: run.clone(),
            last_partition: None,
            strategies: vec![(run.clone(), 0)],
        });
        let mut writing = Writing {
            runtime: Handle::current(),
            store,
            outputs,
            log,
            memory,
            run,
            progress: info.progress,
            partitions: Vec::new(),
            index: HashMap::new(),
            changed: BTreeSet::new(),
            commits: HashMap::new(),
            batches: BatchSizes::default(),
            applied: Applied::default(),
            loads: false,
            unwritten: BTreeMap::new(),
        };
        // Whoever looks finds the run from its first moment, and an unwritable folder ends it before it did anything.
        writing.say(writing.line(Level::Info, format!("Starting sync with strategy {}", info.strategy)));
        writing.log.flush()?;
        let runs = writing.store.runs(Some(&pipeline), writing.outputs.keep_runs).await?;
        writing.mirror(Some(&runs), Lasting::Process)?;
        let run_id = writing.run.run_id.clone();
        let (notes, heard) = mpsc::channel();
        std::thread::Builder::new()
            .name("run-recorder".into())
            .spawn(move || writing.listen(lock, &heard))
            .map_err(|e| Error::new(code::STATE_STORE, format!("no thread to write the run down: {e}")))?;
        Ok(Arc::new(RunRecorder { run_id, notes }))
    }

    /// The run's id.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// Adds a line to the run's log. No values, no secrets.
    pub fn log(&self, level: Level, message: impl Into<String>) {
        self.note(Note::Log(level, redacted(&message.into())));
    }

    /// Writes the last word and gives the lock back.
    pub async fn finish<S: Into<Summary>>(&self, result: std::result::Result<S, &Error>) -> Result<Recorded> {
        let end = match result {
            Ok(summary) => End::Well(summary.into()),
            Err(e) => End::Badly {
                status: if e.code() == code::INTERRUPTED {
                    RunStatus::Interrupted
                } else {
                    RunStatus::Failed
                },
                error: RunError::from(e),
                partition: e
                    .context()
                    .iter()
                    .find(|(k, _)| *k == "partition")
                    .map(|(_, v)| v.clone()),
            },
        };
        let (reply, recorded) = oneshot::channel();
        self.note(Note::End(Box::new(end), reply));
        recorded
            .await
            .map_err(|_| Error::bug("the run was written down as finished twice, or its recorder died"))
    }

    fn note(&self, note: Note) {
        // The other side is gone only after the end, when nothing is worth telling.
        let _ = self.notes.send(note);
    }
}

impl Observer for RunRecorder {
    fn event(&self, event: &RunEvent<'_>) {
        self.note(match event {
            RunEvent::Planned { plan, resumed } => Note::Planned {
                total: plan.partitions().count() as u64,
                strategy: plan.strategy,
                reasons: plan.reasons.clone(),
                resumed_from: resumed.then(|| plan.run_id.clone()),
                loads: plan.tables.iter().any(|t| t.publish != Publish::Direct),
            },
            RunEvent::PartitionStarted { partition } => Note::Started(partition.0.clone()),
            RunEvent::Committed { partition, applied } => Note::Committed(partition.0.clone(), *applied),
            RunEvent::PartitionDone {
                partition,
                rows,
                took,
                skipped,
            } => Note::Done {
                id: partition.0.clone(),
                rows: *rows,
                took: *took,
                skipped: *skipped,
            },
            RunEvent::Retrying {
                partition,
                error,
                delay,
            } => Note::Retrying {
                id: partition.0.clone(),
                error: RunError::from(*error),
                delay: *delay,
            },
            RunEvent::Step(step) => Note::Step(*step),
            // The ledger counts rejected rows.
            RunEvent::Rejected { .. } => return,
            // The caller's `finish` says so, with the whole result.
            RunEvent::Finished { .. } => return,
        });
    }
}

/// Commits of a partition since its last log line.
struct Commits {
    rows: u64,
    total: u64,
    logged: Instant,
    begun: Instant,
}

/// The thread's side.
struct Writing {
    /// The caller's: the store's connections live there.
    runtime: Handle,
    store: Arc<dyn Store>,
    outputs: Outputs,
    log: LogWriter,
    /// The pipeline as it was when the run began, kept in line with it.
    memory: PipelineMemory,
    run: Run,
    progress: Arc<Progress>,
    partitions: Vec<PartitionRecord>,
    index: HashMap<String, usize>,
    /// Partitions that the store does not know as they are.
    changed: BTreeSet<usize>,
    commits: HashMap<String, Commits>,
    batches: BatchSizes,
    applied: Applied,
    loads: bool,
    /// What is not written at the moment, and why.
    unwritten: BTreeMap<&'static str, Error>,
}

impl Writing {
    fn listen(mut self, lock: RunLock, notes: &mpsc::Receiver<Note>) {
        let mut unwritten = false;
        let mut next_write = Instant::now() + WRITE_EVERY;
        loop {
            let patience = if unwritten {
                next_write.saturating_duration_since(Instant::now())
            } else {
                HEARTBEAT
            };
            match notes.recv_timeout(patience) {
                Ok(Note::End(end, reply)) => {
                    self.end(*end, lock.lost().is_cancelled());
                    self.last_word(lock);
                    let _ = reply.send(Recorded {
                        run: self.run,
                        warnings: self.unwritten.into_values().collect(),
                    });
                    return;
                }
                Ok(note) => {
                    self.hear(note);
                    unwritten = true;
                }
                Err(mpsc::RecvTimeoutError::Timeout) => unwritten = true,
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let error = Error::new(code::INTERRUPTED, "the run was given up without a result");
                    let end = End::Badly {
                        status: RunStatus::Interrupted,
                        error: RunError::from(&error),
                        partition: None,
                    };
                    self.end(end, lock.lost().is_cancelled());
                    self.last_word(lock);
                    return;
                }
            }
            if unwritten && Instant::now() >= next_write {
                let begun = Instant::now();
                self.write();
                next_write = Instant::now() + WRITE_EVERY.max(begun.elapsed() * WRITE_SHARE);
                unwritten = false;
            }
        }
    }

    fn line(&self, level: Level, message: impl Into<String>) -> LogLine {
        LogLine::new(&self.run.run_id, level, message)
    }

    fn say(&mut self, line: LogLine) {
        let written = self.log.write(&line);
        self.try_("log", written);
    }

    /// Remembers what could not be written until it can.
    fn try_<T>(&mut self, what: &'static str, result: Result<T>) -> Option<T> {
        match result {
            Ok(done) => {
                self.unwritten.remove(what);
                Some(done)
            }
            Err(e) => {
                if self.unwritten.insert(what, e).is_none() {
                    tracing::warn!(
                        "the run goes on, but its {what} cannot be written: {}",
                        self.unwritten[what]
                    );
                }
                None
            }
        }
    }

    /// The record of a partition, begun if it is new, and marked as changed.
    fn partition(&mut self, id: &str) -> &mut PartitionRecord {
        let at = match self.index.get(id) {
            Some(at) => *at,
            None => {
                self.partitions.push(PartitionRecord::begin(id));
                self.index.insert(id.into(), self.partitions.len() - 1);
                self.partitions.len() - 1
            }
        };
        self.changed.insert(at);
        &mut self.partitions[at]
    }

    fn hear(&mut self, note: Note) {
        match note {
            Note::Planned {
                total,
                strategy,
                reasons,
                resumed_from,
                loads,
            } => {
                let from = resumed_from.as_ref().map(|r| format!(", going on with run {r}"));
                let plural = if total == 1 { "" } else { "s" };
                let text = format!(
                    "Planned {total} partition{plural} ({strategy}{})",
                    from.unwrap_or_default()
                );
                self.say(self.line(Level::Info, text));
                for reason in &reasons {
                    self.say(self.line(Level::Info, reason));
                }
                self.run.strategy_type = strategy;
                self.run.partitions.total = total;
                self.run.reasons = reasons;
                self.run.resumed_from = resumed_from;
                self.loads = loads;
            }
            Note::Started(id) => {
                self.say(
                    self.line(Level::Info, format!("Processing partition {id}"))
                        .partition(&id),
                );
                let now = Instant::now();
                self.commits.entry(id.clone()).or_insert(Commits {
                    rows: 0,
                    total: 0,
                    logged: now,
                    begun: now,
                });
                self.partition(&id).status = PartitionStatus::Running;
            }
            Note::Committed(id, applied) => self.committed(&id, applied),
            Note::Done {
                id,
                rows,
                took,
                skipped,
            } => {
                let seconds = took.as_secs_f64();
                let line = if skipped {
                    self.line(
                        Level::Info,
                        format!("Skipped partition {id}: an earlier run finished it"),
                    )
                } else {
                    self.line(Level::Info, format!("Finished partition {id}: {rows} rows"))
                        .seconds(seconds)
                };
                self.say(line.partition(&id).rows(rows));
                self.commits.remove(&id);
                let record = self.partition(&id);
                record.status = if skipped {
                    PartitionStatus::Skipped
                } else {
                    PartitionStatus::Done
                };
                record.completed_at = Some(now());
                (record.rows, record.seconds, record.error) = (rows, seconds, None);
                if !skipped {
                    self.memory.last_partition = Some(record.clone());
                }
            }
            Note::Retrying { id, error, delay } => {
                let text = format!("Trying again in {:.1} s: {}", delay.as_secs_f64(), error.message);
                self.say(self.line(Level::Warning, text).partition(&id).error(&error));
                self.run.retries += 1;
                // Steps of the whole run are tried again under their own name.
                if self.index.contains_key(&id) {
                    let record = self.partition(&id);
                    record.status = PartitionStatus::Retrying;
                    record.error = Some(error.message);
                }
            }
            Note::Step(step) => {
                let text = match step {
                    Step::Planning => "Planning",
                    Step::Partitions => "Writing partitions",
                    Step::Sealing => "Building keys",
                    Step::Verifying => "Verifying what was stored",
                    Step::Publishing => "Publishing",
                    Step::Finished => return,
                };
                self.say(self.line(Level::Info, text));
            }
            Note::Log(level, message) => self.say(self.line(level, message)),
            Note::End(..) => {}
        }
    }

    fn committed(&mut self, id: &str, applied: Applied) {
        self.applied += applied;
        self.batches.add(applied.written);
        let now = Instant::now();
        let commits = self.commits.entry(id.into()).or_insert(Commits {
            rows: 0,
            total: 0,
            logged: now,
            begun: now,
        });
        commits.rows += applied.written;
        commits.total += applied.written;
        let (total, begun) = (commits.total, commits.begun);
        if now.duration_since(commits.logged) >= LOG_COMMITS_EVERY {
            let rows = std::mem::take(&mut commits.rows);
            commits.logged = now;
            self.say(
                self.line(Level::Info, format!("Processed {rows} rows"))
                    .partition(id)
                    .rows(rows),
            );
        }
        let record = self.partition(id);
        record.rows = record.rows.max(total);
        record.seconds = begun.elapsed().as_secs_f64();
        record.status = PartitionStatus::Running;
    }

    /// Brings the run in line with its partitions and the engine's picture.
    fn sum_up(&mut self) {
        for view in self.progress.partitions() {
            let Some(at) = self.index.get(view.id.as_str()).copied() else {
                continue;
            };
            let record = &mut self.partitions[at];
            let before = record.clone();
            record.bytes = record.bytes.max(view.bytes);
            if !record.is_complete() {
                record.rows = record.rows.max(view.rows);
                if view.status == PartitionStatus::Failed && record.status != PartitionStatus::Failed {
                    record.status = PartitionStatus::Failed;
                    record.completed_at = Some(now());
                }
                if let Some(commits) = self.commits.get(view.id.as_str()) {
                    record.seconds = commits.begun.elapsed().as_secs_f64();
                }
            }
            if *record != before {
                self.changed.insert(at);
            }
        }
        let count = |status| self.partitions.iter().filter(|p| p.status == status).count() as u64;
        let counts = &mut self.run.partitions;
        counts.skipped = count(PartitionStatus::Skipped);
        counts.completed = counts.skipped + count(PartitionStatus::Done);
        counts.failed = count(PartitionStatus::Failed);
        // Partitions of a log come and go without a plan.
        counts.total = counts.total.max(self.partitions.len() as u64);
        self.run.bytes = self.partitions.iter().map(|p| p.bytes).sum();
        self.run.updated_at = now();
        if self.run.ledger.is_none() {
            self.run.rows.processed = self.partitions.iter().map(|p| p.rows).sum();
            if !self.loads {
                self.run.rows.set_applied(self.applied);
            }
        }
        self.memory.run = self.run.clone();
        let own = self.memory.strategies.iter_mut();
        for (run, _) in own.filter(|(r, _)| r.strategy == self.run.strategy) {
            *run = self.run.clone();
        }
    }

    fn end(&mut self, end: End, lock_lost: bool) {
        if lock_lost {
            self.say(self.line(Level::Warning, "The run lock was lost, so the run had to stop"));
        }
        self.run.completed_at = Some(now());
        match end {
            End::Well(summary) => {
                self.run.status = RunStatus::Completed;
                self.run.rows.processed = summary.ledger.accounts.read.rows;
                self.run.rows.set_applied(summary.ledger.outcome());
                self.run.rows.rejected = summary.ledger.accounts.stages.iter().map(|(_, s)| s.rejected).sum();
                self.run.verified = summary.verified;
                self.run.ledger = Some(summary.ledger);
            }
            End::Badly {
                status,
                error,
                partition,
            } => {
                self.run.status = status;
                if let Some(id) = partition.filter(|id| status == RunStatus::Failed && self.index.contains_key(id)) {
                    let record = self.partition(&id);
                    record.status = PartitionStatus::Failed;
                    record.completed_at = Some(now());
                    record.error = Some(error.message.clone());
                }
                self.run.error = Some(error);
            }
        }
        self.sum_up();
        self.run.updated_at = self.run.completed_at.unwrap_or(self.run.updated_at);
        // What was begun and not finished waits for the next run.
        for (at, p) in self.partitions.iter_mut().enumerate() {
            if matches!(p.status, PartitionStatus::Running | PartitionStatus::Retrying) {
                p.status = PartitionStatus::Waiting;
                self.changed.insert(at);
            }
        }
        let seconds = self.run.seconds();
        let line = match (self.run.status, self.run.error.clone()) {
            (RunStatus::Completed, _) | (_, None) => {
                let r = &self.run.rows;
                let text = format!(
                    "Completed: {} rows read, {} inserted, {} updated, {} deleted, {} unchanged, {} rejected",
                    r.processed, r.inserted, r.updated, r.deleted, r.unchanged, r.rejected
                );
                self.line(Level::Info, text).rows(r.processed)
            }
            (RunStatus::Failed, Some(e)) => self.line(Level::Error, format!("Failed: {}", e.message)).error(&e),
            (_, Some(e)) => self
                .line(Level::Warning, format!("Interrupted: {}", e.message))
                .error(&e),
        };
        self.say(line.seconds(seconds));
    }

    /// Has something done by the store.
    fn ask<T, F>(&self, patience: Duration, work: impl FnOnce(Arc<dyn Store>) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let work = work(self.store.clone());
        self.runtime.spawn(async move {
            let _ = answer.send(tokio::time::timeout(patience, work).await);
        });
        let place = self.store.place();
        match answered.blocking_recv() {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(Error::new(
                code::STATE_STORE,
                format!("the state store {place} did not answer within {} s", patience.as_secs()),
            )),
            Err(_) => Err(Error::new(
                code::STATE_STORE,
                "the program ended before the run was written down",
            )),
        }
    }

    fn save(&mut self, tries: u32) -> Result<()> {
        let records: Vec<PartitionRecord> = self.changed.iter().map(|at| self.partitions[*at].clone()).collect();
        let run = self.run.clone();
        self.ask(STORE_PATIENCE * tries, async move |store: Arc<dyn Store>| {
            let mut tried = 1;
            loop {
                match store.save_run(&run, &records).await {
                    Err(e) if e.kind().is_transient() && tried < tries => {
                        tokio::time::sleep(Duration::from_millis(500) * tried).await;
                        tried += 1;
                    }
                    saved => return saved,
                }
            }
        })?;
        self.changed.clear();
        Ok(())
    }

    /// Writes the pictures of the run, and of all of its pipeline's `runs`, at once: each waits for the disk.
    fn mirror(&self, runs: Option<&[Run]>, lasting: Lasting) -> Result<()> {
        let (outputs, run) = (&self.outputs, &self.run);
        let pipeline = &run.pipeline;
        let metrics = MetricsDocument::new(run, &self.partitions, Some(self.batches));
        std::thread::scope(|scope| {
            let mut writing = vec![
                scope.spawn(|| outputs.write_state(pipeline, Some(&self.memory), lasting)),
                scope.spawn(|| write_json(&outputs.run_metrics_file(pipeline, &run.run_id), &metrics, lasting)),
                scope.spawn(|| write_json(&outputs.latest_run_file(pipeline), &metrics, lasting)),
            ];
            if let Some(runs) = runs {
                let metrics = PipelineMetrics::new(pipeline, runs);
                writing.push(scope.spawn(|| write_json(&outputs.history_file(pipeline), &history(runs), lasting)));
                writing.push(scope.spawn(move || write_json(&outputs.metrics_file(pipeline), &metrics, lasting)));
            }
            let died = |_| Err(Error::bug("a thread that writes a file died"));
            writing.into_iter().try_for_each(|w| w.join().unwrap_or_else(died))
        })
    }

    fn write(&mut self) {
        self.sum_up();
        let flushed = self.log.flush();
        self.try_("log", flushed);
        let saved = self.save(1);
        self.try_("state", saved);
        let mirrored = self.mirror(None, Lasting::Process);
        self.try_("files", mirrored);
    }

    fn last_word(&mut self, lock: RunLock) {
        let saved = self.save(LAST_WORD_TRIES);
        let mut runs = None;
        if self.try_("state", saved).is_some() {
            let known = self.look_back();
            runs = self.try_("history", known);
        }
        let mirrored = self.mirror(runs.as_deref(), Lasting::PowerCut);
        self.try_("files", mirrored);
        let synced = self.log.sync();
        self.try_("log", synced);
        let released = self.ask(STORE_PATIENCE, async move |_| {
            lock.release().await;
            Ok(())
        });
        self.try_("lock", released);
    }

    /// Forgets what is too old, and takes the pipeline's state (with its failures counted anew) and its runs from the
    /// store.
    fn look_back(&mut self) -> Result<Vec<Run>> {
        let retention = Retention {
            pipeline: Some(self.run.pipeline.clone()),
            per_strategy: Some(self.outputs.keep_runs),
            ..Retention::default()
        };
        let (pipeline, outputs) = (self.run.pipeline.clone(), self.outputs.clone());
        let (memory, runs) = self.ask(STORE_PATIENCE, async move |store: Arc<dyn Store>| {
            super::cleanup(&*store, &outputs, &retention).await?;
            let runs = store.runs(Some(&pipeline), outputs.keep_runs).await?;
            Ok((store.state(&pipeline).await?, runs))
        })?;
        if let Some(memory) = memory.filter(|m| m.run.run_id == self.run.run_id) {
            self.memory = memory;
        }
        Ok(runs)
    }
}
