//! A pipeline from Rust: loaded, checked, planned, run.
//!
//! A run: the state store is opened and the pipeline locked (a second run fails with `ST-TXN-003`), both ends are opened,
//! the destination's unfinished plan is taken up or a new one made, and the engine does it. Everything else (the
//! command line, a scheduler, a worker) is a caller of [`Pipeline::start`].

mod request;

use crate::config::{self, Datastores, Loaded, Loader, StrategyKind};
use crate::open;
use crate::state::{self, RunInfo, RunRecorder};
use request::choose_strategy;
pub(crate) use request::{table_id, tables};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use synctool_core::change::KeyRange;
use synctool_core::engine::{Engine, Observer, Options, PartitionStatus, Progress, Report, RunEvent, Verified};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Ledger;
use synctool_core::plan::{Plan, Publish, Strategy, Verify};
use synctool_core::progress::Checkpoint;
use synctool_core::sink::{Destination, Guarantee, StoredAs};
use synctool_core::source::{Finding, Source};
use synctool_core::strategy::full::{self, FullMode};
use synctool_transform::{Chain, ValueMap};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

/// A pipeline with its datastores, ready to be looked at and run.
#[derive(Debug, Clone)]
pub struct Pipeline {
    loaded: Arc<Loaded>,
}

/// What a caller may say about one run. The default says nothing: the pipeline's files decide.
#[derive(Clone)]
pub struct RunOptions {
    /// The strategy, by name or by type; none = the first that is enabled.
    pub strategy: Option<String>,
    /// How a full run replaces what is there.
    pub full_mode: Option<FullMode>,
    /// Only rows inside this range of the key's one column: a backfill; rows outside stay as they are.
    pub bounds: Option<KeyRange>,
    /// How the stored rows are proved.
    pub verify: Option<Verify>,
    /// Mass deletes and an empty source are meant.
    pub allow_mass_delete: bool,
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
    /// Stops the run at its next boundary.
    pub cancel: CancellationToken,
}

impl Default for RunOptions {
    fn default() -> Self {
        RunOptions {
            strategy: None,
            full_mode: None,
            bounds: None,
            verify: None,
            allow_mass_delete: false,
            restart: false,
            workers: None,
            memory: None,
            raw: std::env::var_os("SYNCTOOL_NO_RAW").is_none(),
            observer: None,
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
        open::destination(datastore, control.map(String::as_str), self.connections()).await
    }

    /// Connections that one end may need at once.
    fn connections(&self) -> usize {
        *self.loaded.workers() as usize
    }

    /// What a run would do: an unfinished plan that it would take up, or a new one. Changes nothing.
    pub async fn plan(&self, options: &RunOptions) -> Result<Preview> {
        let chosen = Chosen::new(&self.loaded, options)?;
        let source = self.open_source().await?;
        let destination = self.open_destination().await?;
        let stored = match options.restart {
            true => None,
            false => destination.stored_plan(self.name()).await?.filter(|s| !s.finished),
        };
        let (plan, resumes) = match stored {
            Some(stored) => {
                let checkpoint = destination.checkpoint(&stored.plan).await?;
                (stored.plan, Some(checkpoint))
            }
            None => {
                let draft = self
                    .draft(&*source, &*destination, &chosen, options, &state::new_run_id())
                    .await?;
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
        })
    }

    /// What happens to rows on their way.
    fn stages(&self) -> Chain {
        let mut chain = Chain::default();
        for stage in &self.loaded.pipeline.transform {
            let config::StageWork::ValueMap(map) = &stage.work else {
                continue;
            };
            chain.push(ValueMap::new(
                map.column.as_str(),
                map.mapping.clone().into_iter().collect(),
            ));
        }
        chain
    }

    async fn draft(
        &self,
        source: &dyn Source,
        destination: &dyn Destination,
        chosen: &Chosen,
        options: &RunOptions,
        run_id: &str,
    ) -> Result<Plan> {
        let (read, _) = tables(&self.loaded)?;
        let at_source = source.describe(&read).await?;
        let strategy = self.loaded.pipeline.strategy(&chosen.strategy)?;
        let now = state::rfc3339(&state::now());
        let request = request::full_request(&self.loaded, strategy, options, &at_source, run_id, now)?;
        let mut plan = full::plan(source, destination, &self.stages(), request).await?;
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

    /// Starts a run. It goes on by itself; [`Run::finish`] waits for it, and dropping the [`Run`] stops it at its next
    /// boundary.
    pub async fn start(&self, options: RunOptions) -> Result<Run> {
        let chosen = Chosen::new(&self.loaded, &options)?;
        let memory = open::memory(&self.loaded.global, &self.loaded.datastores).await?;
        let lock = memory.store.lock(self.name()).await?;
        let lost = lock.lost();
        let run_id = state::new_run_id();
        let progress = Arc::new(Progress::default());
        let info = RunInfo {
            run_id: run_id.clone(),
            strategy: chosen.strategy.clone(),
            strategy_type: Strategy::Full,
            progress: progress.clone(),
        };
        let recorder = RunRecorder::start(memory.store, memory.outputs, lock, info).await?;
        let task = Task {
            pipeline: self.clone(),
            options: options.clone(),
            chosen: chosen.clone(),
            run_id: run_id.clone(),
            progress: progress.clone(),
            recorder,
            lost,
        };
        Ok(Run {
            id: run_id,
            pipeline: self.name().into(),
            notices: chosen.notices,
            progress,
            stop_when_dropped: Some(options.cancel.clone().drop_guard()),
            cancel: options.cancel,
            task: tokio::spawn(task.execute()),
        })
    }
}

/// A run that is going on.
pub struct Run {
    id: String,
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

/// What is decided before either end is opened.
#[derive(Clone)]
struct Chosen {
    strategy: String,
    reason: String,
    notices: Vec<String>,
}

impl Chosen {
    fn new(loaded: &Loaded, options: &RunOptions) -> Result<Self> {
        request::refuse_what_is_not_there_yet(loaded)?;
        let (strategy, reason) = choose_strategy(loaded, options.strategy.as_deref())?;
        let later = loaded.pipeline.not_yet.iter().chain(&loaded.global.not_yet);
        let mut notices: Vec<String> = later.map(ToString::to_string).collect();
        match *strategy.kind {
            StrategyKind::Full => {}
            StrategyKind::Delta | StrategyKind::Hash => notices.push(format!(
                "strategy {} is of type {}, which this version runs as full: everything is read, and only rows that differ are written",
                *strategy.name,
                strategy.kind.name()
            )),
            StrategyKind::Aggregate | StrategyKind::Log => {
                let error = strategy.kind.error(format!(
                    "strategy {} is of type {}, which is not in this version yet",
                    *strategy.name,
                    strategy.kind.name()
                ));
                return Err(error.with_help("this version runs full, delta and hash").into());
            }
        }
        Ok(Chosen {
            strategy: strategy.name.to_string(),
            reason,
            notices,
        })
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
    pipeline: Pipeline,
    options: RunOptions,
    chosen: Chosen,
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
        let mut notices = self.chosen.notices;
        notices.extend(recorded.warnings.iter().map(|w| w.message().to_owned()));
        Ok(RunReport {
            run_id: self.run_id,
            pipeline: report.plan.pipeline.clone(),
            strategy: self.chosen.strategy,
            source: format!("{}:{}", *ends.source.datastore, table.read.table),
            destination: format!("{}:{}", *ends.destination.datastore, table.destination),
            publish: table.publish.clone(),
            resumed: report.resumed,
            partitions: report.partitions,
            skipped: report.skipped,
            reasons: report.plan.reasons,
            ledger: report.ledger,
            rows_now: now.map(|p| p.rows).sum(),
            verified: report.verified,
            retries: report.retries,
            duration: began.elapsed(),
            notices,
        })
    }

    async fn work(&self) -> Result<Report> {
        let (pipeline, options) = (&self.pipeline, &self.options);
        let loaded = &pipeline.loaded;
        let source = stoppable(&options.cancel, pipeline.open_source()).await?;
        let destination = stoppable(&options.cancel, pipeline.open_destination()).await?;
        if options.restart {
            destination.forget(pipeline.name()).await?;
        }
        let mut observers: Vec<Arc<dyn Observer>> = vec![self.recorder.clone()];
        observers.extend(options.observer.clone());
        let mut engine = Engine::new(source, destination);
        engine.options = Options {
            workers: options.workers.unwrap_or(*loaded.workers() as usize),
            memory: options.memory.unwrap_or(loaded.global.memory.0) as usize,
            ..Options::default()
        };
        engine.stages = Arc::new(pipeline.stages());
        engine.cancel = options.cancel.clone();
        engine.progress = self.progress.clone();
        engine.observer = Arc::new(All(observers));
        let engine = Arc::new(engine);
        let semantics = request::semantics(&loaded.pipeline, &self.chosen.strategy, options);
        let (source, destination) = (&*engine.source, &*engine.destination);
        let draft = pipeline.draft(source, destination, &self.chosen, options, &self.run_id);
        let (mut plan, resumed) = stoppable(&options.cancel, engine.plan(pipeline.name(), &semantics, draft)).await?;
        // Said after a refusal, it is about the run that was refused.
        plan.guard.allow |= options.allow_mass_delete;
        engine.run(plan, resumed).await
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
