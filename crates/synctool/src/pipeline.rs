//! A pipeline from Rust: loaded, checked, planned, run.
//!
//! A run: the state store is opened and the pipeline locked (a second run fails with `ST-TXN-003`), both ends are opened,
//! the destination's unfinished plan is taken up or a new one made, and the engine does it. Everything else (the
//! command line, a scheduler, a worker) is a caller of [`Pipeline::start`].

mod choose;
mod definition;
mod draft;
mod drift;
pub mod followed;
mod groups;
pub mod log;
mod misspelt;
mod request;
mod stages;
mod verify;

use crate::config::{self, Datastores, Loaded, Loader, StrategyKind};
use crate::open;
use crate::state::{self, RunInfo, RunRecorder};
use choose::{Facts, Unfinished};
use draft::Ends;
use followed::Log;
use log::{Desk, LogPipeline, LogPreview, Stopped};
pub(crate) use request::{table_id, tables};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use synctool_connectors::postgres::log::status::LogStatus;
use synctool_core::engine::{
    Engine, Observer, Options, PartitionStatus, Progress, Report, RunEvent, Verified, unfinished,
};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Ledger;
use synctool_core::plan::{Plan, Publish, Strategy, Verify};
use synctool_core::progress::Checkpoint;
use synctool_core::query::{Condition, Term};
use synctool_core::retry::RetryPolicy;
use synctool_core::sink::{Destination, Guarantee, StoredAs};
use synctool_core::source::{Finding, Source};
use synctool_core::strategy::delta;
use synctool_core::strategy::full::FullMode;
use synctool_transform::Chain;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
pub use verify::{DifferentKey, Proved, VerifyOptions, VerifyReport};

/// How often a lock that another run holds is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long it is waited for where a strategy waits and does not say how long.
const LOCK_WAIT: Duration = Duration::from_secs(60);

/// A pipeline with its datastores, ready to be looked at and run.
#[derive(Debug, Clone)]
pub struct Pipeline {
    loaded: Arc<Loaded>,
}

/// What a caller may say about one run. The default says nothing: the pipeline's files decide.
#[derive(Clone)]
pub struct RunOptions {
    /// The strategy, by name or by type; none = the one that is likely cheapest now.
    pub strategy: Option<String>,
    /// Both ends are compared and what differs is mended, whatever the strategy.
    pub repair: bool,
    /// How a full run replaces what is there.
    pub full_mode: Option<FullMode>,
    /// Only rows that meet these, in the source's names: a backfill; rows outside stay as they are.
    pub bounds: Vec<Condition>,
    /// How the stored rows are proved.
    pub verify: Option<Verify>,
    /// Mass deletes and an empty source are meant.
    pub allow_mass_delete: bool,
    /// The source's columns are right as they are now, whatever `schema_drift` says.
    pub accept_schema: bool,
    /// An unfinished run is forgotten first.
    pub restart: bool,
    /// Partitions at once.
    pub workers: Option<usize>,
    /// Bytes that rows on their way may take.
    pub memory: Option<u64>,
    /// Whether rows may pass undecoded; `false` forces the slow path.
    pub raw: bool,
    /// Hears every event of the run; it must not block.
    pub observer: Option<Arc<dyn Observer>>,
    /// A log is followed to where it ends when the run begins, once every table is loaded, and not further.
    pub until_caught_up: bool,
    /// Stops the run at its next boundary.
    pub cancel: CancellationToken,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            strategy: None,
            repair: false,
            full_mode: None,
            bounds: Vec::new(),
            verify: None,
            allow_mass_delete: false,
            accept_schema: false,
            restart: false,
            workers: None,
            memory: None,
            raw: std::env::var_os("SYNCTOOL_NO_RAW").is_none(),
            observer: None,
            until_caught_up: false,
            cancel: CancellationToken::new(),
        }
    }
}

/// What examining both ends of a pipeline found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Examination {
    /// At the source.
    pub source: Vec<Finding>,
    /// At the destination.
    pub destination: Vec<Finding>,
}

/// What a run would do. Nothing was changed to find out.
pub struct Preview {
    /// The plan: the destination's unfinished one, or a draft.
    pub plan: Plan,
    /// Where an unfinished plan stands; none for a draft.
    pub resumes: Option<Checkpoint>,
    /// How each column of the plan's table is stored.
    pub columns: Vec<StoredAs>,
    /// The statements that preparing and publishing would run.
    pub statements: Vec<String>,
    /// What the destination promises.
    pub guarantee: Guarantee,
    /// What the user should know.
    pub notices: Vec<String>,
    /// What it is about, where it follows a log.
    pub log: Option<LogPreview>,
}

/// What a completed run did.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RunReport {
    /// Its id.
    pub run_id: String,
    /// The pipeline.
    pub pipeline: String,
    /// The strategy's name.
    pub strategy: String,
    /// The table read, after its datastore: `shop:public.orders`.
    pub source: String,
    /// The table written, after its datastore.
    pub destination: String,
    /// What was done with the loaded rows at the end.
    pub publish: Publish,
    /// Whether an earlier run had begun it.
    pub resumed: bool,
    /// Partitions in all.
    pub partitions: usize,
    /// Partitions that an earlier run had finished.
    pub skipped: usize,
    /// Its row accounts; they balance.
    pub ledger: Ledger,
    /// Rows read by this run alone; the ledger counts those of the runs that it took up too.
    pub rows_now: u64,
    /// How the stored rows were proved.
    pub verified: Option<Verified>,
    /// How often something was tried again.
    pub retries: u64,
    /// How long this run took.
    pub duration: Duration,
    /// Why it was done this way.
    pub reasons: Vec<String>,
    /// What the user should know.
    pub notices: Vec<String>,
}

impl Pipeline {
    /// Reads a pipeline file, its datastores and the global configuration.
    pub fn load(file: impl AsRef<Path>) -> Result<Self> {
        Ok(Self::from_loaded(Loader::new().pipeline(file.as_ref())?))
    }

    /// A pipeline whose files were read by a [`Loader`].
    pub fn from_loaded(loaded: Loaded) -> Self {
        Pipeline {
            loaded: Arc::new(loaded),
        }
    }

    /// A pipeline without files, such as [`config::Pipeline::copy`] makes.
    pub fn from_parts(pipeline: config::Pipeline, datastores: Datastores, global: config::Global) -> Self {
        Self::from_loaded(Loaded {
            pipeline,
            datastores,
            global,
            file: "".into(),
        })
    }

    /// Its id.
    pub fn name(&self) -> &str {
        &self.loaded.pipeline.name
    }

    /// What its files say.
    pub fn config(&self) -> &Loaded {
        &self.loaded
    }

    /// Opens both ends and fails with the first prerequisite that is not met.
    pub async fn check(&self) -> Result<()> {
        let found = self.examine().await?;
        match found.source.into_iter().chain(found.destination).find(|f| !f.ok) {
            None => Ok(()),
            Some(finding) => {
                let error = Error::new(
                    code::CONFIG_INVALID,
                    format!("{} is not as it must be: {}", finding.what, finding.found),
                );
                Err(error.at("pipeline", self.name()).hint(if finding.fix.is_empty() {
                    "synctool doctor".into()
                } else {
                    finding.fix
                }))
            }
        }
    }

    /// Looks at every prerequisite, privilege and setting at both ends.
    pub async fn examine(&self) -> Result<Examination> {
        if self.loaded.pipeline.log().is_some() {
            return self.examine_log().await;
        }
        let (read, written) = tables(&self.loaded)?;
        let source = self.open_source().await?;
        let destination = self.open_destination().await?;
        Ok(Examination {
            source: source.examine(&[read]).await,
            destination: destination.examine(&[written]).await,
        })
    }

    async fn open_source(&self) -> Result<Arc<dyn Source>> {
        open::source(self.loaded.source()?, self.connections()).await
    }

    async fn open_destination(&self) -> Result<Arc<dyn Destination>> {
        let control = self.loaded.pipeline.destination.control_schema.as_deref();
        let datastore = self.loaded.destination()?;
        open::check_ends(self.loaded.source()?, datastore).await?;
        open::destination(datastore, control.map(String::as_str), self.connections()).await
    }

    /// Connections that one end may need at once.
    fn connections(&self) -> usize {
        let strategies = self.loaded.pipeline.strategies.iter();
        let most = strategies.map(|s| *self.loaded.workers_of(s)).max();
        most.unwrap_or(*self.loaded.workers()) as usize
    }

    /// What a run would do: an unfinished plan that it would take up, or a new one. Changes nothing.
    pub async fn plan(&self, options: &RunOptions) -> Result<Preview> {
        let destination = self.open_destination().await?;
        let history = self.history().await?;
        let chosen = self.choose(options, &*destination, history).await?;
        if chosen.kind == StrategyKind::Log {
            return self.plan_log(options, &*destination, chosen).await;
        }
        let source = self.open_source().await?;
        let semantics = request::semantics(&self.loaded.pipeline, &chosen.strategy, options);
        let stored = match options.restart {
            true => None,
            false => unfinished(&*destination, self.name(), &semantics).await?,
        };
        let (plan, resumes) = match stored {
            Some((mut plan, checkpoint)) if !plan.is_stale(&checkpoint) => {
                plan.reasons.insert(0, chosen.reason);
                (plan, Some(checkpoint))
            }
            stale => {
                let chain = self.chain(&chosen.strategy, &*source, None).await?;
                let mut draft = self
                    .draft(&*source, &*destination, &chosen, options, &state::new_run_id(), &chain)
                    .await?;
                if let Some((stale, _)) = stale {
                    draft.reasons.insert(0, stale.starts_over());
                }
                (draft, None)
            }
        };
        let columns = plan.tables.first().map_or_else(Vec::new, |table| {
            table
                .asked()
                .map(|c| destination.store_as(source.engine(), &c))
                .collect()
        });
        Ok(Preview {
            statements: destination.preview(&plan).await?,
            columns,
            guarantee: destination.traits().guarantee,
            notices: chosen.notices,
            plan,
            resumes,
            log: None,
        })
    }

    async fn plan_log(&self, options: &RunOptions, destination: &dyn Destination, chosen: Chosen) -> Result<Preview> {
        let strategy = self.loaded.pipeline.strategy(&chosen.strategy)?;
        let (mut plan, resumes, preview) = log::preview(&self.loaded, strategy, destination, options).await?;
        let resumes = match resumes {
            true => Some(destination.checkpoint(&plan).await?),
            false => {
                plan.reasons.insert(0, chosen.reason);
                None
            }
        };
        Ok(Preview {
            statements: destination.preview(&plan).await?,
            columns: Vec::new(),
            guarantee: destination.traits().guarantee,
            notices: chosen.notices,
            plan,
            resumes,
            log: Some(preview),
        })
    }

    async fn examine_log(&self) -> Result<Examination> {
        let following = LogPipeline::of(self)?;
        let destination = self.open_destination().await?;
        let source = following.source()?;
        Ok(Examination {
            source: source.examine(&following.tables()?).await,
            destination: destination.examine(&[]).await,
        })
    }

    /// Which strategy a run follows.
    async fn choose(
        &self,
        options: &RunOptions,
        destination: &dyn Destination,
        history: Vec<state::Run>,
    ) -> Result<Chosen> {
        let pipeline = &self.loaded.pipeline;
        let notices = self.loaded.notices().map(ToString::to_string).collect();
        let chosen = |strategy: &config::Strategy, reason| Chosen {
            strategy: strategy.name.to_string(),
            kind: match (*strategy.kind, *pipeline.sync_type) {
                (StrategyKind::Delta, config::SyncType::Aggregate) => StrategyKind::Aggregate,
                (kind, _) => kind,
            },
            reason,
            notices,
        };
        let named = options.strategy.as_ref().map(|name| pipeline.strategy(name));
        let named = named.transpose()?;
        let unfinished = match options.restart {
            true => None,
            false => Unfinished::at(destination, self.name()).await?,
        };
        if let Some(unfinished) = &unfinished {
            unfinished.check(pipeline, named, options)?;
        }
        if let Some(strategy) = named {
            return Ok(chosen(
                strategy,
                format!("strategy {}: named by the caller", *strategy.name),
            ));
        }
        if let Some((strategy, reason)) = unfinished.as_ref().and_then(|u| u.goes_on(pipeline)) {
            return Ok(chosen(strategy, reason));
        }
        if options.repair {
            let strategy = choose::comparing(pipeline)?;
            let reason = format!(
                "strategy {}: the whole table is compared, by its stages",
                *strategy.name
            );
            return Ok(chosen(strategy, reason));
        }
        let candidates = choose::candidates(&self.loaded)?;
        let facts = match candidates.len() {
            1 => Facts::default(),
            _ => {
                let (_, written) = tables(&self.loaded)?;
                let known = definition::known(destination, pipeline, &written).await?;
                Facts {
                    empty: known.empty,
                    watermarks: self
                        .watermarks(candidates.iter().copied(), &known.counts)?
                        .into_iter()
                        .map(|(strategy, _, through)| (strategy.name.to_string(), through))
                        .collect(),
                    doubt: known.doubt,
                    history,
                    now: Some(state::now()),
                }
            }
        };
        let (strategy, reason) = choose::cheapest(&candidates, &facts);
        Ok(chosen(strategy, reason))
    }

    /// Where those of some strategies go on that have a cursor and a watermark among what is remembered.
    fn watermarks<'a>(
        &self,
        strategies: impl Iterator<Item = &'a config::Strategy>,
        remembered: &BTreeMap<String, String>,
    ) -> Result<Vec<(&'a config::Strategy, Term, String)>> {
        let names = request::Names::of(&self.loaded, &tables(&self.loaded)?.0)?;
        let mark = |strategy: &'a config::Strategy| {
            let cursor = request::cursor(&self.loaded.pipeline, strategy, &names);
            let cursor = cursor.filter(|_| strategy.kind.has_cursor())?;
            let through = remembered.get(&delta::watermark_name(&cursor))?;
            Some((strategy, cursor, through.clone()))
        };
        Ok(strategies.filter_map(mark).collect())
    }

    /// Its latest runs, where there is a memory of them.
    async fn history(&self) -> Result<Vec<state::Run>> {
        match open::memory_if_any(&self.loaded.global, &self.loaded.datastores).await? {
            Some(memory) => memory.store.runs(Some(self.name()), choose::HISTORY).await,
            None => Ok(Vec::new()),
        }
    }

    /// The stages that rows pass, in a run or beside one.
    async fn chain(&self, strategy: &str, source: &dyn Source, run: Option<&str>) -> Result<Chain> {
        stages::chain(&self.loaded, self.loaded.pipeline.strategy(strategy)?, source, run).await
    }

    async fn draft(
        &self,
        source: &dyn Source,
        destination: &dyn Destination,
        chosen: &Chosen,
        options: &RunOptions,
        run_id: &str,
        chain: &Chain,
    ) -> Result<Plan> {
        let strategy = self.loaded.pipeline.strategy(&chosen.strategy)?;
        let now = state::rfc3339(&state::now());
        let ends = Ends {
            loaded: &self.loaded,
            source,
            destination,
            chain,
            options,
        };
        let plan = Box::pin(ends.plan(strategy, run_id, now)).await;
        let mut plan = plan.map_err(|e| misspelt::placed(e, &self.loaded, strategy))?;
        plan.reasons.insert(0, chosen.reason.clone());
        Ok(plan)
    }

    /// Forgets an unfinished run: plan, checkpoint and load tables at the destination, and what the state store
    /// remembers of the strategy, or of all of them. Fails while the pipeline is running.
    pub async fn reset(&self, strategy: Option<&str>) -> Result<()> {
        let memory = open::memory(&self.loaded.global, &self.loaded.datastores).await?;
        let lock = memory.store.lock(self.name()).await?;
        let done = async {
            self.open_destination().await?.forget(self.name()).await?;
            state::reset(&*memory.store, &memory.outputs, &lock, strategy).await
        };
        let done = done.await;
        lock.release().await;
        done.map_err(|e| e.at("pipeline", self.name()))
    }

    /// The destination's newest plan for this pipeline and where it stands.
    pub async fn stored(&self) -> Result<Option<(Plan, bool, Checkpoint)>> {
        let destination = self.open_destination().await?;
        let Some(stored) = destination.stored_plan(self.name()).await? else {
            return Ok(None);
        };
        let checkpoint = match stored.finished {
            true => Checkpoint::default(),
            false => destination.checkpoint(&stored.plan).await?,
        };
        Ok(Some((stored.plan, stored.finished, checkpoint)))
    }

    /// The right to run. Where the strategies say so, another run of the pipeline is waited for.
    async fn lock(&self, store: &dyn state::Store, options: &RunOptions) -> Result<state::RunLock> {
        let patience = self.patience(options)?;
        let deadline = Instant::now() + patience;
        let mut told = false;
        loop {
            match store.lock(self.name()).await {
                Err(e) if e.code() == code::LOCKED && Instant::now() < deadline => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!("{e}; its end is waited for, {} s at most", patience.as_secs());
                    }
                    let look_again = async {
                        tokio::time::sleep(LOOK).await;
                        Ok(())
                    };
                    stoppable(&options.cancel, look_again).await?;
                }
                done => return done,
            }
        }
    }

    /// How long a run waits for another one of its pipeline.
    fn patience(&self, options: &RunOptions) -> Result<Duration> {
        let pipeline = &self.loaded.pipeline;
        let named = options
            .strategy
            .as_ref()
            .map(|name| pipeline.strategy(name))
            .transpose()?;
        let may = |s: &&config::Strategy| named.map_or(*s.enabled && *s.default, |n| *n.name == *s.name);
        let waits = pipeline.strategies.iter().filter(may).map(|s| &s.scheduling);
        let waits = waits.filter(|s| s.wait_for_pipeline_lock.as_deref() == Some(&true));
        let longest = waits.map(|s| s.pipeline_lock_wait_timeout.as_deref().map_or(LOCK_WAIT, |span| span.0));
        Ok(longest.max().unwrap_or_default())
    }

    /// Starts a run. It goes on by itself; [`Run::finish`] waits for it, and dropping the [`Run`] stops it at its next
    /// boundary.
    pub async fn start(&self, options: RunOptions) -> Result<Run> {
        let memory = open::memory(&self.loaded.global, &self.loaded.datastores).await?;
        let lock = self.lock(&*memory.store, &options).await?;
        let lost = lock.lost();
        let run_id = state::new_run_id();
        let waits = self.loaded.pipeline.log().is_some() && !options.until_caught_up;
        let destination = waiting(waits, &options.cancel, || self.open_destination()).await?;
        let history = memory.store.runs(Some(self.name()), choose::HISTORY).await?;
        let choice = || self.choose(&options, &*destination, history.clone());
        let chosen = waiting(waits, &options.cancel, choice).await?;
        let progress = Arc::new(Progress::default());
        let store = memory.store.clone();
        let info = RunInfo {
            run_id: run_id.clone(),
            strategy: chosen.strategy.clone(),
            strategy_type: chosen.plan_kind(options.repair),
            progress: progress.clone(),
        };
        let recorder = RunRecorder::start(memory.store, memory.outputs, lock, info).await?;
        let log = LogView::default();
        let task = Task {
            log: log.clone(),
            read_before: AtomicU64::new(0),
            pipeline: self.clone(),
            options: options.clone(),
            chosen: chosen.clone(),
            destination,
            store,
            run_id: run_id.clone(),
            progress: progress.clone(),
            recorder,
            lost,
        };
        Ok(Run {
            id: run_id,
            log,
            pipeline: self.name().into(),
            notices: chosen.notices,
            progress,
            stop_when_dropped: Some(options.cancel.clone().drop_guard()),
            cancel: options.cancel,
            task: tokio::spawn(task.execute()),
        })
    }
}

/// A log that a run follows, to be looked at: none before it is opened.
#[derive(Clone, Default)]
pub struct LogView(Arc<std::sync::Mutex<Option<Followed>>>);

/// A log, and the plan by which it is followed.
type Followed = (Log, Arc<Plan>);

impl LogView {
    /// How far it is.
    pub fn status(&self) -> Option<LogStatus> {
        let seen = self.0.lock().expect("nothing panics while holding it").clone();
        let (log, plan) = seen?;
        Some(log.steering().status(&plan, log.options()))
    }

    fn show(&self, log: &Log, plan: &Plan) {
        let seen = Some((log.clone(), Arc::new(plan.clone())));
        *self.0.lock().expect("nothing panics while holding it") = seen;
    }
}

/// A run that is going on.
pub struct Run {
    id: String,
    log: LogView,
    pipeline: String,
    notices: Vec<String>,
    progress: Arc<Progress>,
    cancel: CancellationToken,
    stop_when_dropped: Option<DropGuard>,
    task: JoinHandle<Result<RunReport>>,
}

impl Run {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pipeline it runs.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// What the user should know before it is done.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// The live picture.
    pub fn progress(&self) -> Arc<Progress> {
        self.progress.clone()
    }

    /// The log that it follows, if it follows one.
    pub fn log(&self) -> LogView {
        self.log.clone()
    }

    /// Stops it at its next boundary; what is committed stays, and the next run goes on from there.
    pub fn stop(&self) {
        self.cancel.cancel();
    }

    /// Waits for its end.
    pub async fn finish(mut self) -> Result<RunReport> {
        let done = (&mut self.task).await;
        if let Some(guard) = self.stop_when_dropped.take() {
            guard.disarm();
        }
        done.unwrap_or_else(|_| Err(Error::bug("the run's task died")))
    }
}

/// What is decided before a plan is made.
#[derive(Clone)]
struct Chosen {
    strategy: String,
    kind: StrategyKind,
    reason: String,
    notices: Vec<String>,
}

impl Chosen {
    fn plan_kind(&self, repair: bool) -> Strategy {
        match self.kind {
            StrategyKind::Log => Strategy::Log,
            _ if repair => Strategy::Hash,
            StrategyKind::Full => Strategy::Full,
            StrategyKind::Delta => Strategy::Delta,
            StrategyKind::Hash => Strategy::Hash,
            StrategyKind::Aggregate => Strategy::Aggregate,
        }
    }
}

/// Tells several.
struct All(Vec<Arc<dyn Observer>>);

impl Observer for All {
    fn event(&self, event: &RunEvent<'_>) {
        self.0.iter().for_each(|o| o.event(event));
    }
}

/// A run's task and all it owns.
struct Task {
    log: LogView,
    /// Rows of a log that earlier runs read.
    read_before: AtomicU64,
    pipeline: Pipeline,
    options: RunOptions,
    chosen: Chosen,
    destination: Arc<dyn Destination>,
    store: Arc<dyn state::Store>,
    run_id: String,
    progress: Arc<Progress>,
    recorder: Arc<RunRecorder>,
    /// The run lock was lost.
    lost: CancellationToken,
}

impl Task {
    async fn execute(self) -> Result<RunReport> {
        let began = Instant::now();
        for notice in &self.chosen.notices {
            self.recorder.log(state::Level::Warning, notice);
        }
        let done = {
            let mut work = Box::pin(self.work());
            tokio::select! {
                done = &mut work => done,
                () = self.lost.cancelled() => {
                    self.options.cancel.cancel();
                    work.await
                }
            }
        };
        let done = done.map_err(|e| e.at("pipeline", self.pipeline.name()));
        let recorded = self.recorder.finish(done.as_ref()).await?;
        let report = done?;
        let table = report.plan.tables.first();
        let table = table.ok_or_else(|| Error::bug("a plan without a table"))?;
        let now = self.progress.partitions().into_iter();
        let now = now.filter(|p| p.status != PartitionStatus::Skipped);
        let ends = &self.pipeline.loaded.pipeline;
        let all = report.plan.tables.len();
        let named = |table: &dyn std::fmt::Display| match all {
            1 => table.to_string(),
            _ => format!("{all} tables"),
        };
        let mut notices = self.chosen.notices;
        notices.extend(recorded.warnings.iter().map(|w| w.message().to_owned()));
        Ok(RunReport {
            run_id: self.run_id,
            pipeline: report.plan.pipeline.clone(),
            strategy: self.chosen.strategy,
            source: format!("{}:{}", *ends.source.datastore, named(&table.read.table)),
            destination: format!("{}:{}", *ends.destination.datastore, named(&table.destination)),
            publish: table.publish.clone(),
            resumed: report.resumed,
            partitions: report.partitions,
            skipped: report.skipped,
            reasons: report.plan.reasons,
            ledger: report.ledger,
            rows_now: now
                .map(|p| p.rows)
                .sum::<u64>()
                .saturating_sub(self.read_before.into_inner()),
            verified: report.verified,
            retries: report.retries,
            duration: began.elapsed(),
            notices,
        })
    }

    /// Follows a log until it is told to stop, or to its present end.
    async fn follow(&self) -> Result<Report> {
        let (pipeline, options) = (&self.pipeline, &self.options);
        let loaded = &pipeline.loaded;
        let destination = self.destination.clone();
        log::check_destination(&*destination)?;
        // A server that is away is waited for, however long.
        let (waits, cancel) = (!options.until_caught_up, &options.cancel);
        if options.restart {
            waiting(waits, cancel, || destination.forget(pipeline.name())).await?;
        }
        let strategy = loaded.pipeline.strategy(&self.chosen.strategy)?;
        let how = log::options(loaded, strategy, options);
        loop {
            let source = open::log(loaded.source()?, how.clone(), pipeline.connections())?;
            source.check_drift()?;
            let request = log::request(loaded, strategy, &self.run_id)?;
            let semantics = source.semantics(&request);
            // Tables that came or went make another plan, which goes on where the one before stands.
            let extended = || Box::pin(log::prepare_extension(&source, &*destination, &request, &semantics));
            waiting(waits, cancel, extended).await?;
            let mut observers: Vec<Arc<dyn Observer>> = vec![self.recorder.clone()];
            observers.extend(options.observer.clone());
            let mut engine = Engine::new(source.as_source(), destination.clone());
            engine.options = Options {
                memory: options.memory.unwrap_or(loaded.global.memory.0) as usize,
                // Who only catches up is seen at the end.
                commit_when_idle: !options.until_caught_up,
                retry: retries(&strategy.scheduling),
                ..Options::default()
            };
            if waits {
                engine.options.retry.attempts = u32::MAX;
            }
            engine.cancel = options.cancel.child_token();
            engine.progress = self.progress.clone();
            engine.observer = Arc::new(All(observers));
            let engine = Arc::new(engine);
            let draft = async {
                let mut plan = source.capture(&*destination, request.clone()).await?;
                plan.reasons.insert(0, self.chosen.reason.clone());
                Ok(plan)
            };
            let planned = engine.plan(pipeline.name(), &semantics, draft);
            let (plan, resumed) = Box::pin(stoppable(&options.cancel, planned)).await?;
            source.follow(&plan);
            let standing = waiting(waits, cancel, || destination.checkpoint(&plan)).await?;
            let read = standing.values().map(|s| s.accounts.read.rows).sum();
            self.read_before.store(read, Ordering::Relaxed);
            self.log.show(&source, &plan);
            let stop = engine.cancel.clone();
            let desk = Desk::open(
                self.store.clone(),
                loaded,
                strategy,
                source.clone(),
                &plan,
                request,
                stop,
            )
            .await?;
            let done = engine.follow(plan.clone()).await;
            // What ends with it has no say in how the run went.
            if let Err(e) = source.close().await {
                tracing::warn!(error = %e, "what was started for the log did not end");
            }
            match desk.close().await.filter(|_| !options.cancel.is_cancelled()) {
                Some(Stopped::Replan) => continue,
                Some(Stopped::OverBudget) => return Err(log::give_up(&source).await),
                None => {}
            }
            return Ok(Report {
                plan,
                resumed,
                partitions: 1,
                skipped: 0,
                ledger: done?,
                verified: None,
                retries: self.progress.retries(),
            });
        }
    }

    async fn work(&self) -> Result<Report> {
        if self.chosen.kind == StrategyKind::Log {
            return Box::pin(self.follow()).await;
        }
        if self.options.restart {
            self.destination.forget(self.pipeline.name()).await?;
        }
        // A server that restarted takes the snapshot of a load with it; from the second time on it is trouble.
        match Box::pin(self.work_once()).await {
            Err(e) if e.code() == code::SNAPSHOT_LOST => {
                tracing::warn!(error = %e, "the load starts over");
                Box::pin(self.work_once()).await
            }
            other => other,
        }
    }

    /// Plans or takes up what is unfinished, and does it.
    async fn work_once(&self) -> Result<Report> {
        let (pipeline, options) = (&self.pipeline, &self.options);
        let loaded = &pipeline.loaded;
        let source = Box::pin(stoppable(&options.cancel, pipeline.open_source())).await?;
        let destination = self.destination.clone();
        let mut observers: Vec<Arc<dyn Observer>> = vec![self.recorder.clone()];
        observers.extend(options.observer.clone());
        let mut engine = Engine::new(source, destination);
        let strategy = loaded.pipeline.strategy(&self.chosen.strategy)?;
        engine.options = Options {
            workers: options.workers.unwrap_or(*loaded.workers_of(strategy) as usize),
            memory: options.memory.unwrap_or(loaded.global.memory.0) as usize,
            reject_limit: *loaded.pipeline.write.reject_limit,
            retry: retries(&strategy.scheduling),
            ..Options::default()
        };
        let chain = stoppable(
            &options.cancel,
            pipeline.chain(&self.chosen.strategy, &*engine.source, Some(&self.run_id)),
        )
        .await?;
        engine.stages = Arc::new(chain.clone());
        engine.cancel = options.cancel.clone();
        engine.progress = self.progress.clone();
        engine.observer = Arc::new(All(observers));
        let engine = Arc::new(engine);
        let semantics = request::semantics(&loaded.pipeline, &self.chosen.strategy, options);
        let (source, destination) = (&*engine.source, &*engine.destination);
        let draft = pipeline.draft(source, destination, &self.chosen, options, &self.run_id, &chain);
        let (mut plan, resumed) = stoppable(&options.cancel, engine.plan(pipeline.name(), &semantics, draft)).await?;
        // Said after a refusal, it is about the run that was refused.
        plan.guard.allow |= options.allow_mass_delete;
        let compares = strategy.verify.as_deref() == Some(&config::Verify::AfterRun);
        if compares && !options.bounds.is_empty() {
            // A backfill mends some rows, and says nothing of the others.
            let told = "nothing is compared after a run with --bounds, whatever `verify: after_run` says: synctool verify does";
            plan.reasons.push(told.into());
        }
        let report = engine.run(plan, resumed).await?;
        if compares && options.bounds.is_empty() {
            let asked = VerifyOptions {
                strategy: Some(self.chosen.strategy.clone()),
                workers: options.workers,
                ..VerifyOptions::default()
            };
            let mend = format!(
                "synctool repair {} --strategy {}",
                pipeline.name(),
                self.chosen.strategy
            );
            Box::pin(pipeline.verify(&asked)).await?.into_result(&mend)?;
        }
        Ok(report)
    }
}

/// How a server that is away is asked again.
fn retries(said: &config::Scheduling) -> RetryPolicy {
    let usual = RetryPolicy::default();
    let initial = said.initial_retry_delay.as_deref().map_or(usual.initial, |span| span.0);
    RetryPolicy {
        initial,
        factor: said
            .retry_backoff_multiplier
            .as_deref()
            .copied()
            .unwrap_or(usual.factor),
        max: usual.max.max(initial),
        ..usual
    }
}

/// Tries again, where a server that is away is waited for: until it is there, or that is stopped.
async fn waiting<T, F: Future<Output = Result<T>>>(
    waits: bool,
    cancel: &CancellationToken,
    work: impl Fn() -> F,
) -> Result<T> {
    let mut failed = 0;
    loop {
        match stoppable(cancel, work()).await {
            Err(e) if waits && e.kind().is_transient() => {
                failed += 1;
                tracing::warn!(error = %e, "a server is away: it is waited for");
                let wait = tokio::time::sleep(RetryPolicy::default().delay(failed));
                let waited = async {
                    wait.await;
                    Ok(())
                };
                stoppable(cancel, waited).await?;
            }
            done => return done,
        }
    }
}

/// Work that may be dropped at any moment: nothing is written, or the next run finds out what was.
async fn stoppable<T>(cancel: &CancellationToken, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        () = cancel.cancelled() => Err(Error::new(code::INTERRUPTED, "stopped on request before any row was written")
            .hint("run the same command again")),
    }
}
