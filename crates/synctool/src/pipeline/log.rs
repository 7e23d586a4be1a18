//! Pipelines that follow a log: from the file to the log and back, how a run follows it, how it is steered and looked at.
//!
//! The destination holds the plan and the position; what is asked of a log from outside ([`LogPipeline::refresh`],
//! [`LogPipeline::pause`]) waits in a private area of the state store, where the process that follows it (the [`Desk`])
//! finds it, and where it leaves a picture of itself.

use super::followed::Log;
use super::request::{default_schema, table_id};
use super::{Pipeline, RunOptions};
use crate::config::{InitialRows, Loaded, OverBudget, Strategy, WatermarkKind};
use crate::open;
use crate::state::{self, Area, Holder, Store};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use synctool_connectors::postgres::log::capture::{self, CaptureRequest, Initial};
use synctool_connectors::postgres::log::status::{LogStatus, SlotStatus};
use synctool_connectors::postgres::log::{Drift, LogOptions, LogSource, Outlook, Repair, Watermarks};
use synctool_core::backfill::{Pause, Pending, Request, Wish};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, short_hash};
use synctool_core::progress::Position;
use synctool_core::retry::oftener_at_first;
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::sink::{Destination, StoredPlan};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// The private area in which a log is steered.
const AREA: &str = "cdc";
const PAUSE: &str = "pause";
const STATUS: &str = "status";
const REQUEST: &str = "request/";
const REFUSED: &str = "refused/";
/// So many refusals are kept, the newest: whoever waits for one looks oftener than so many can come.
const REFUSALS: usize = 100;

/// How often the desk looks for requests and writes down how far the log is.
const LOOK: Duration = Duration::from_millis(500);
/// How often it looks at the publication and at what the source keeps for us; oftener at first, as long as a log is set up.
const ROUND: Duration = Duration::from_secs(10);
/// A picture that is older was left by a process that is gone or stuck.
const FRESH: i64 = 15;

/// A pipeline that follows a log.
pub struct LogPipeline {
    pipeline: Pipeline,
}

/// What a request to read a table again would ask for.
pub struct WouldRefresh {
    /// The table, as the log knows it.
    pub table: TableId,
    /// Of how many keys the rows would be read; `None`: all of the table.
    pub keys: Option<usize>,
    /// Whether the log was followed before; if not, the first run reads every table anyway.
    pub followed: bool,
    /// Who would hear of it now.
    pub holder: Option<Holder>,
}

/// What a run would do at the source, and how far the log is.
pub struct LogPreview {
    /// What would be run at the source.
    pub source_statements: Vec<String>,
    /// The tables.
    pub tables: Vec<LogTable>,
    /// Whether the log goes on where the destination stands.
    pub outlook: Outlook,
    /// Whether tables came or went since the plan was made.
    pub changed: bool,
    /// Whether the source keeps its log for us, in a slot.
    pub has_slot: bool,
}

/// A table of a log's plan.
#[derive(Debug, Clone, Serialize)]
pub struct LogTable {
    /// At the source.
    pub source: String,
    /// At the destination.
    pub destination: String,
    /// The columns by which rows are found.
    pub key: Vec<String>,
    /// What is done with the rows that were there before the log.
    pub initial: Initial,
    /// How many the catalog expects.
    pub rows: Option<u64>,
    /// Whether it is followed already.
    pub goes_on: bool,
}

/// How far a pipeline's log is, and who follows it.
#[derive(Debug, Serialize)]
pub struct LogReport {
    /// The pipeline.
    pub pipeline: String,
    /// `running`, `paused`, `stopped`, `not begun` or `refused`.
    pub state: &'static str,
    /// Who follows it.
    pub holder: Option<String>,
    /// How far it is; none before the first run.
    #[serde(flatten)]
    pub status: Option<LogStatus>,
    /// The slot as the source has it.
    pub slot_at_source: Option<SlotStatus>,
    /// Whether the source has slots at all, or keeps its log for nobody.
    pub has_slot: bool,
    /// Requests that wait for the log to be followed.
    pub waiting: Vec<String>,
    /// Why the log cannot go on, if it cannot.
    #[serde(skip)]
    pub refused: Option<Error>,
}

/// What is kept of a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Kept {
    table: TableId,
    #[serde(default)]
    keys: Vec<Vec<String>>,
    #[serde(default)]
    cancel: bool,
}

/// The picture that a process leaves of the log it follows.
#[derive(Debug, Serialize, Deserialize)]
struct Left {
    at: i64,
    status: LogStatus,
}

fn area(pipeline: &str) -> Area {
    Area {
        pipeline: pipeline.into(),
        name: AREA.into(),
    }
}

/// A name made of a pipeline's that servers take for slots: lower case, digits, underscores. Two pipelines never share one.
fn plain_name(pipeline: &str) -> String {
    const LONGEST: usize = 40;
    let plain: String = pipeline
        .chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
            _ => '_',
        })
        .take(LONGEST)
        .collect();
    match plain == pipeline {
        true => format!("synctool_{plain}"),
        false => format!("synctool_{plain}_{}", short_hash(pipeline)),
    }
}

/// How a strategy says that its log is followed.
pub(super) fn options(loaded: &Loaded, strategy: &Strategy, run: &RunOptions) -> LogOptions {
    let said = &strategy.log;
    let own = plain_name(&loaded.pipeline.name);
    let defaults = LogOptions::default();
    let text = |said: &Option<crate::config::At<String>>, otherwise: String| {
        said.as_ref().map_or(otherwise, |s| s.to_string())
    };
    LogOptions {
        slot: text(&said.slot, own.clone()),
        publication: text(&said.publication, own),
        control_schema: text(&said.control_schema, defaults.control_schema),
        watermark_table: text(&said.watermark_table, defaults.watermark_table),
        create: said.create.as_deref().copied().unwrap_or(defaults.create),
        failover: said.failover.as_deref().copied().unwrap_or(defaults.failover),
        repair: Repair::once(run.repair),
        drift: match loaded.pipeline.schema_drift.as_deref() {
            Some(_) if run.accept_schema => Drift::Evolve,
            Some(policy) => (*policy).into(),
            None => Drift::Added,
        },
        watermarks: match said.watermarks.as_deref() {
            None | Some(WatermarkKind::Message) => Watermarks::Message,
            Some(WatermarkKind::Table) => Watermarks::Table,
            Some(WatermarkKind::ReadOnly) => Watermarks::ReadOnly,
        },
        chunk_rows: said.chunk_rows.as_deref().map_or(defaults.chunk_rows, |n| *n as usize),
        heartbeat: match said.heartbeat.as_deref() {
            Some(span) => Some(span.0).filter(|pause| !pause.is_zero()),
            None => defaults.heartbeat,
        },
        catch_up_bytes: match said.catch_up.as_deref() {
            Some(size) => Some(size.0).filter(|n| *n > 0),
            None => defaults.catch_up_bytes,
        },
        together: true,
        until_now: run.until_caught_up,
        ..defaults
    }
}

/// The tables that the file names; empty means all of the publication.
fn named(loaded: &Loaded) -> Result<Vec<TableId>> {
    let (from, source) = (loaded.source()?, &loaded.pipeline.source);
    let mut tables = Vec::new();
    for table in source.tables.iter().chain([&source.table]).filter(|t| !t.is_empty()) {
        let one = crate::config::Source {
            table: table.clone(),
            ..source.clone()
        };
        tables.push(table_id(one.table_ref(from)?, from));
    }
    Ok(tables)
}

/// What is captured, and under which names it goes on.
pub(super) fn request(loaded: &Loaded, strategy: &Strategy, run_id: &str) -> Result<CaptureRequest> {
    let (to, destination) = (loaded.destination()?, &loaded.pipeline.destination);
    let postgres = to.connection.is_postgres() && loaded.source()?.connection.is_postgres();
    let said = destination.schema.as_ref().map(|s| s.to_string());
    let schema = said.or_else(|| match postgres {
        // Tables keep the schema that they have at the source.
        true => None,
        false => default_schema(to),
    });
    let to_table = match destination.table.is_empty() {
        true => None,
        false => Some(table_id(destination.table_ref(to)?, to)),
    };
    Ok(CaptureRequest {
        run_id: run_id.into(),
        tables: named(loaded)?,
        bare: !to.connection.has_schemas() || (schema.is_none() && !postgres),
        schema,
        to: to_table,
        initial: strategy.log.initial.as_deref().map(|initial| match initial {
            InitialRows::Load => Initial::Load,
            InitialRows::Resync => Initial::Resync,
            InitialRows::Skip => Initial::Skip,
        }),
        keyless: strategy.log.keyless.as_deref() == Some(&true),
        distinct_keys: destination.distinct_keys.as_deref() == Some(&true),
        ..CaptureRequest::new(loaded.pipeline.name.as_str(), state::rfc3339(&state::now()))
    })
}

/// A destination that takes rows as a log says.
pub(super) fn check_destination(destination: &dyn Destination) -> Result<()> {
    match destination.traits().applies_changes {
        true => Ok(()),
        false => Err(Error::new(
            code::UNSUPPORTED,
            format!("{} cannot take the changes of a log", destination.engine()),
        )
        .hint("PostgreSQL, MySQL, SQLite and DuckDB can")),
    }
}

/// Whether the stored plan is to be gone on with, or others of its tables are followed from now on.
async fn has_other_tables(
    log: &Log,
    stored: &StoredPlan,
    semantics: &serde_json::Value,
    request: &CaptureRequest,
) -> Result<bool> {
    if stored.finished {
        return Ok(false);
    }
    if stored.plan.semantics != *semantics {
        return Ok(capture::differ_in_tables_alone(&stored.plan.semantics, semantics));
    }
    log.follow(&stored.plan);
    Ok(request.tables.is_empty() && !log.newcomers(request).await?.is_empty())
}

/// Prepares a plan of other tables where that is wanted; the engine takes it up from there.
pub(super) async fn prepare_extension(
    log: &Log,
    destination: &dyn Destination,
    request: &CaptureRequest,
    semantics: &serde_json::Value,
) -> Result<()> {
    let Some(stored) = destination.stored_plan(&request.pipeline).await? else {
        return Ok(());
    };
    if !has_other_tables(log, &stored, semantics, request).await? {
        return Ok(());
    }
    let plan = log.extend(destination, &stored.plan, request.clone()).await?;
    destination.prepare(plan).await?;
    Ok(())
}

/// What a run would do; changes nothing.
pub(super) async fn preview(
    loaded: &Loaded,
    strategy: &Strategy,
    destination: &dyn Destination,
    run: &RunOptions,
) -> Result<(Plan, bool, LogPreview)> {
    check_destination(destination)?;
    let log = open::log(loaded.source()?, options(loaded, strategy, run), 2)?;
    log.check_drift()?;
    let request = request(loaded, strategy, &state::new_run_id())?;
    let semantics = log.semantics(&request);
    let stored = match run.restart {
        true => None,
        false => destination
            .stored_plan(&loaded.pipeline.name)
            .await?
            .filter(|s| !s.finished),
    };
    let changed = match &stored {
        Some(stored) => has_other_tables(&log, stored, &semantics, &request).await?,
        None => false,
    };
    let mut known: Vec<TableId> = Vec::new();
    let (plan, source_statements, position) = match stored {
        Some(stored) => {
            known.extend(stored.plan.tables.iter().map(|t| t.read.table.clone()));
            let position = stored_position(destination, &stored.plan).await?;
            match changed {
                false => (stored.plan, Vec::new(), position),
                true => {
                    let (plan, statements) = log.preview(destination, request, Some(&stored.plan)).await?;
                    (plan, statements, position)
                }
            }
        }
        None => {
            let (plan, statements) = log.preview(destination, request, None).await?;
            (plan, statements, None)
        }
    };
    let tables = plan.tables.iter().map(|t| {
        let (initial, rows) = capture::initial_of(&plan, &t.read.table);
        LogTable {
            source: t.read.table.to_string(),
            destination: t.destination.to_string(),
            key: t.schema.key.clone(),
            initial,
            rows,
            goes_on: position.is_some() && known.contains(&t.read.table),
        }
    });
    let preview = LogPreview {
        tables: tables.collect(),
        outlook: log.outlook(position.as_ref()).await?,
        source_statements,
        changed,
        has_slot: log.has_slot(),
    };
    log.close().await?;
    let resumes = position.is_some();
    Ok((plan, resumes, preview))
}

/// Where the destination stands.
async fn stored_position(destination: &dyn Destination, plan: &Plan) -> Result<Option<Position>> {
    let mut checkpoint = destination.checkpoint(plan).await?;
    let stored = checkpoint
        .remove(&LogSource::partition().id)
        .and_then(|state| state.position);
    Ok(capture::position_of(plan, stored))
}

/// The columns of a planned table that the source has, where it knows them by their names.
fn by_name(at_source: &TableSchema, table: &PlannedTable) -> Vec<(String, String)> {
    let planned = table.read.columns.iter();
    let mut columns: Vec<(String, String)> = planned
        .filter(|c| at_source.column(&c.source).is_some())
        .map(|c| (c.source.clone(), c.column.name.clone()))
        .collect();
    for column in at_source.columns.iter().filter(|c| !c.generated) {
        if !columns
            .iter()
            .any(|(now, name)| *now == column.name || *name == column.name)
        {
            columns.push((column.name.clone(), column.name.clone()));
        }
    }
    columns
}

/// Why a desk stopped a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stopped {
    /// It is to be opened anew, perhaps by another plan: tables came, or came back.
    Replan,
    /// The source keeps more than it may: the slot goes.
    OverBudget,
}

/// Brings requests to a log that is followed, and leaves a picture of it, until it is dropped.
pub(super) struct Desk {
    work: DeskWork,
    _task: AbortOnDropHandle<()>,
}

#[derive(Clone)]
struct DeskWork {
    store: Arc<dyn Store>,
    pipeline: String,
    log: Log,
    plan: Arc<Plan>,
    budget: Option<u64>,
    over_budget: OverBudget,
    /// The source keeps too much: chunks wait.
    crowded: Arc<AtomicBool>,
    request: CaptureRequest,
    /// Requests that were handed to the log.
    asked: Arc<Mutex<Vec<String>>>,
    stopped: Arc<Mutex<Option<Stopped>>>,
}

impl Desk {
    /// Sets what was asked before the log begins, and begins to look for more.
    pub(super) async fn open(
        store: Arc<dyn Store>,
        loaded: &Loaded,
        strategy: &Strategy,
        log: Log,
        plan: &Plan,
        request: CaptureRequest,
        stop: CancellationToken,
    ) -> Result<Desk> {
        let work = DeskWork {
            store,
            pipeline: loaded.pipeline.name.to_string(),
            log,
            plan: Arc::new(plan.clone()),
            budget: strategy.log.wal_budget.as_deref().map(|size| size.0),
            over_budget: strategy.log.over_budget.as_deref().copied().unwrap_or(OverBudget::Warn),
            crowded: Arc::default(),
            request,
            asked: Arc::default(),
            stopped: Arc::default(),
        };
        if let Some(budget) = work.budget {
            work.guard(budget, &stop).await;
        }
        let paused = work.look().await?;
        if paused != Pause::None && work.log.options().until_now {
            return Err(Error::new(
                code::REFUSED,
                "the pipeline is paused, so its log will not be at its end",
            )
            .hint(format!("synctool cdc resume {}", work.pipeline)));
        }
        let task = tokio::spawn(work.clone().serve(stop));
        Ok(Desk {
            work,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Leaves the last picture; says why the desk stopped the log, if it did.
    pub(super) async fn close(self) -> Option<Stopped> {
        // The picture is for people: that it cannot be left is no reason to fail.
        let _ = self.work.look().await;
        *self.work.stopped()
    }
}

/// Drops a slot whose log takes too much of the source's disk.
pub(super) async fn give_up(log: &Log) -> Error {
    let slot = &log.options().slot;
    let dropped = log.give_up().await;
    if let Err(e) = dropped {
        return e;
    }
    Error::new(
        code::LOG_LOST,
        format!("the source kept more log for this pipeline than wal_budget allows, so its slot {slot} was dropped"),
    )
    .hint("run with --repair: a new slot is made and every table is compared and made equal, while its log goes on")
}

impl DeskWork {
    fn stopped(&self) -> MutexGuard<'_, Option<Stopped>> {
        self.stopped.lock().expect("nothing panics while holding it")
    }

    fn stop(&self, why: Stopped, stop: &CancellationToken) {
        self.stopped().get_or_insert(why);
        stop.cancel();
    }

    async fn serve(self, stop: CancellationToken) {
        let mut told = false;
        let begun = tokio::time::Instant::now();
        let mut rounds: Option<tokio::time::Instant> = None;
        loop {
            tokio::time::sleep(LOOK).await;
            if let Err(e) = self.look().await
                && !told
            {
                told = true;
                tracing::warn!(error = %e, "requests to the log cannot be looked for at the moment");
            }
            let pause = oftener_at_first(ROUND, begun.elapsed());
            if rounds.is_some_and(|then| then.elapsed() < pause) {
                continue;
            }
            rounds = Some(tokio::time::Instant::now());
            if let Ok(due) = self.log.due(&self.request).await
                && !due.is_empty()
            {
                let tables: Vec<String> = due.iter().map(ToString::to_string).collect();
                tracing::info!(pipeline = self.pipeline, ?tables, "tables came, or came back");
                self.stop(Stopped::Replan, &stop);
            }
            if let Some(budget) = self.budget {
                self.guard(budget, &stop).await;
            }
        }
    }

    /// Takes what was asked to the log, forgets what the log has safely, and leaves a picture of it, in one step: whoever
    /// sees a request gone sees what became of it. Says what holds still.
    async fn look(&self) -> Result<Pause> {
        let area = area(&self.pipeline);
        let requests = self.log.steering().requests();
        let accepted = requests.accepted();
        let mut changes = Vec::new();
        let mut pause = Pause::None;
        let mut refused = Vec::new();
        for (key, value) in self.store.area_scan(&area, None, 1000).await? {
            if key == PAUSE {
                pause = serde_json::from_slice(&value).unwrap_or_default();
            }
            if key.starts_with(REFUSED) {
                refused.push(key);
                continue;
            }
            let Some(id) = key.strip_prefix(REQUEST) else { continue };
            if accepted.iter().any(|a| a == id) {
                changes.push((key, None));
                continue;
            }
            let new = {
                let mut asked = self.asked.lock().expect("nothing panics while holding it");
                let new = !asked.iter().any(|a| a == id);
                if new {
                    asked.push(id.to_owned());
                }
                new
            };
            if !new {
                continue;
            }
            match self.wish(&value).await {
                Ok(wish) => requests.ask(Request { id: id.into(), wish }),
                Err(e) if e.kind().is_transient() => {
                    let mut asked = self.asked.lock().expect("nothing panics while holding it");
                    asked.retain(|a| a != id);
                }
                Err(e) => {
                    tracing::warn!(error = %e, "a request to the log is refused");
                    changes.push((format!("{REFUSED}{id}"), Some(e.message().as_bytes().to_vec())));
                    changes.push((key, None));
                }
            }
        }
        // The oldest come first: ids begin with their time.
        refused.truncate(refused.len().saturating_sub(REFUSALS));
        changes.extend(refused.into_iter().map(|key| (key, None)));
        let held = match self.crowded.load(Ordering::Relaxed) {
            true if pause == Pause::None => Pause::Chunks,
            _ => pause,
        };
        if requests.paused() != held {
            requests.pause(held);
        }
        let left = Left {
            at: state::now().timestamp(),
            status: self.log.steering().status(&self.plan, self.log.options()),
        };
        let json = serde_json::to_vec(&left).map_err(|e| Error::bug(e.to_string()))?;
        changes.push((STATUS.into(), Some(json)));
        self.store.area_put(&area, &changes).await?;
        Ok(pause)
    }

    async fn wish(&self, kept: &[u8]) -> Result<Wish> {
        let kept: Kept = serde_json::from_slice(kept)
            .map_err(|e| Error::new(code::STATE_STORE, "a request cannot be read").caused_by(e))?;
        let pending: Pending = self.log.refresh(&kept.table, &kept.keys).await?;
        Ok(match kept.cancel {
            true => Wish::Cancel(pending.table),
            false => Wish::Read(pending),
        })
    }

    /// Looks at what the source keeps for us. Its disk is worth more than our way of catching up.
    async fn guard(&self, budget: u64, stop: &CancellationToken) {
        let name = &self.log.options().slot;
        let Ok(slots) = self.log.slots().await else { return };
        let Some(kept) = slots.iter().find(|s| s.slot == *name).and_then(|s| s.retained_bytes) else {
            return;
        };
        if kept <= budget {
            if self.crowded.swap(false, Ordering::Relaxed) {
                tracing::info!(slot = name, kept, "the source keeps less log again: chunks go on");
            }
            return;
        }
        tracing::warn!(
            slot = name,
            kept,
            budget,
            "the source keeps more log for this pipeline than it may"
        );
        match self.over_budget {
            OverBudget::Warn => {}
            OverBudget::Pause if self.crowded.swap(true, Ordering::Relaxed) => {}
            OverBudget::Pause => tracing::warn!(slot = name, "chunks of tables wait until it is less"),
            OverBudget::Drop => self.stop(Stopped::OverBudget, stop),
        }
    }
}

impl LogPipeline {
    /// A pipeline, if it follows a log.
    pub fn of(pipeline: &Pipeline) -> Result<LogPipeline> {
        match pipeline.loaded.pipeline.log() {
            Some(_) => Ok(LogPipeline {
                pipeline: pipeline.clone(),
            }),
            None => Err(Error::new(
                code::CONFIG_INVALID,
                format!("pipeline {} does not follow a log", pipeline.name()),
            )
            .hint("give it a strategy of type log")),
        }
    }

    fn strategy(&self) -> Result<&Strategy> {
        let found = self.pipeline.loaded.pipeline.log();
        found.ok_or_else(|| Error::bug("a log pipeline without its strategy"))
    }

    async fn memory(&self) -> Result<open::Memory> {
        let loaded = &self.pipeline.loaded;
        open::memory(&loaded.global, &loaded.datastores).await
    }

    fn log(&self) -> Result<Log> {
        let loaded = &self.pipeline.loaded;
        open::log(
            loaded.source()?,
            options(loaded, self.strategy()?, &RunOptions::default()),
            2,
        )
    }

    /// The log as it would be opened, to be looked at.
    pub fn source(&self) -> Result<Log> {
        self.log()
    }

    /// The tables that the file names; empty means all of the publication.
    pub fn tables(&self) -> Result<Vec<TableId>> {
        named(&self.pipeline.loaded)
    }

    /// In which columns both ends of each table of a stored plan are to be equal by now, by their names at the source and
    /// at the destination.
    pub async fn columns(&self, plan: &Plan) -> Result<Vec<Vec<(String, String)>>> {
        let destination = self.pipeline.open_destination().await?;
        let mut tables = match self.log()? {
            Log::Postgres(log) => {
                let position = stored_position(&*destination, plan).await?;
                log.columns(plan, position.as_ref()).await?
            }
            Log::Mysql(log) => {
                let position = stored_position(&*destination, plan).await?;
                log.columns(plan, position.as_ref()).await?
            }
            Log::Archive(_) => {
                let source = self.pipeline.open_source().await?;
                let mut tables = Vec::with_capacity(plan.tables.len());
                for table in &plan.tables {
                    tables.push(by_name(&source.describe(&table.read.table).await?, table));
                }
                tables
            }
        };
        for (columns, table) in tables.iter_mut().zip(&plan.tables) {
            // What the destination computes is its own.
            if let Some(there) = destination.describe(&table.destination).await? {
                columns.retain(|(_, name)| there.column(name).is_none_or(|c| !c.generated));
            }
        }
        Ok(tables)
    }

    /// How far the log is, whether it is followed or not.
    pub async fn report(&self) -> Result<LogReport> {
        let name = self.pipeline.name();
        let memory = self.memory().await?;
        let holder = memory.store.holder(name).await?;
        let area = area(name);
        let mut report = LogReport {
            pipeline: name.into(),
            state: "running",
            holder: holder.as_ref().map(Holder::to_string),
            status: None,
            slot_at_source: None,
            has_slot: true,
            waiting: Vec::new(),
            refused: None,
        };
        let mut pause = Pause::None;
        let mut left: Option<Left> = None;
        for (key, value) in memory.store.area_scan(&area, None, 1000).await? {
            if let Some(id) = key.strip_prefix(REQUEST) {
                report.waiting.push(id.to_owned());
            } else if key == PAUSE {
                pause = serde_json::from_slice(&value).unwrap_or_default();
            } else if key == STATUS {
                left = serde_json::from_slice(&value).ok();
            }
        }
        let log = self.log()?;
        let slot = &log.options().slot;
        report.has_slot = log.has_slot();
        report.slot_at_source = log.slots().await?.into_iter().find(|s| s.slot == *slot);
        let live = left.filter(|l| holder.is_some() && state::now().timestamp() - l.at <= FRESH);
        if let Some(left) = live {
            report.status = Some(left.status);
            report.state = if pause == Pause::All { "paused" } else { "running" };
            return Ok(report);
        }
        let destination = self.pipeline.open_destination().await?;
        let Some(stored) = destination.stored_plan(name).await?.filter(|s| !s.finished) else {
            report.state = if holder.is_some() { "running" } else { "not begun" };
            return Ok(report);
        };
        let position = stored_position(&*destination, &stored.plan).await?;
        let mut status = log.at_rest(&stored.plan, position.as_ref()).await?;
        status.paused = pause;
        report.status = Some(status);
        report.state = match (&holder, pause) {
            (Some(_), _) => "running",
            (None, Pause::All) => "paused",
            (None, _) => "stopped",
        };
        if holder.is_none()
            && let Outlook::Refused(e) = log.outlook(position.as_ref()).await?
        {
            report.state = "refused";
            report.refused = Some(e);
        }
        Ok(report)
    }

    /// Holds the log still, or only its chunks; or lets it go on. Whoever follows it hears of it within a second; it
    /// holds for later runs too.
    pub async fn pause(&self, pause: Pause) -> Result<Option<Holder>> {
        let memory = self.memory().await?;
        let value = match pause {
            Pause::None => None,
            pause => Some(serde_json::to_vec(&pause).map_err(|e| Error::bug(e.to_string()))?),
        };
        let area = area(self.pipeline.name());
        memory.store.area_put(&area, &[(PAUSE.into(), value)]).await?;
        memory.store.holder(self.pipeline.name()).await
    }

    /// The table that is meant, and what is to be read of it where the log was followed before, as far as the destination
    /// can be asked. What cannot be done is refused now, not when nobody looks.
    async fn meant(&self, table: &str, keys: &[Vec<String>]) -> Result<(TableId, Result<Option<Pending>>)> {
        let from = self.pipeline.loaded.source()?;
        let parsed = TableId::parse(table)?;
        let table = TableId {
            schema: parsed.schema.or_else(|| default_schema(from)),
            name: parsed.name,
        };
        let log = self.log()?;
        let destination = match self.pipeline.open_destination().await {
            Ok(destination) => destination,
            Err(e) => return Ok((table, Err(e))),
        };
        let mut pending = None;
        if let Some(stored) = destination.stored_plan(self.pipeline.name()).await? {
            log.follow(&stored.plan);
            pending = Some(log.refresh(&table, keys).await?);
        }
        Ok((table, Ok(pending)))
    }

    /// What [`LogPipeline::refresh`] would ask for. Refuses what that refuses, and leaves no request.
    pub async fn would_refresh(&self, table: &str, keys: &[Vec<String>]) -> Result<WouldRefresh> {
        let (table, pending) = self.meant(table, keys).await?;
        let pending = pending?;
        let loaded = &self.pipeline.loaded;
        let holder = match open::memory_if_any(&loaded.global, &loaded.datastores).await? {
            Some(memory) => memory.store.holder(self.pipeline.name()).await?,
            None => None,
        };
        Ok(WouldRefresh {
            keys: (!keys.is_empty()).then_some(keys.len()),
            followed: pending.is_some(),
            table: pending.map_or(table, |pending| pending.table),
            holder,
        })
    }

    /// Asks for a table to be read again and made equal while its log goes on: all of it, or the rows of some keys; or
    /// for its chunks to be given up. Returns the request's id, and who will hear of it now.
    pub async fn refresh(&self, table: &str, keys: Vec<Vec<String>>, cancel: bool) -> Result<(String, Option<Holder>)> {
        let (table, _) = self.meant(table, &keys).await?;
        let memory = self.memory().await?;
        let id = state::new_run_id();
        let kept = serde_json::to_vec(&Kept { table, keys, cancel }).map_err(|e| Error::bug(e.to_string()))?;
        let area = area(self.pipeline.name());
        memory
            .store
            .area_put(&area, &[(format!("{REQUEST}{id}"), Some(kept))])
            .await?;
        Ok((id, memory.store.holder(self.pipeline.name()).await?))
    }

    /// Whether a request is done: taken by the log, and nothing of its table left to read. An error if it was refused.
    pub async fn is_done(&self, request: &str, table: &str) -> Result<bool> {
        let memory = self.memory().await?;
        let area = area(self.pipeline.name());
        if let Some(why) = memory.store.area_get(&area, &format!("{REFUSED}{request}")).await? {
            return Err(Error::new(code::REFUSED, String::from_utf8_lossy(&why).into_owned()));
        }
        if memory
            .store
            .area_get(&area, &format!("{REQUEST}{request}"))
            .await?
            .is_some()
        {
            return Ok(false);
        }
        let parsed = TableId::parse(table)?;
        let report = self.report().await?;
        Ok(report.status.is_none_or(|status| {
            status.tables.iter().all(|t| {
                let is_it = TableId::parse(&t.table)
                    .is_ok_and(|id| id.name == parsed.name && (parsed.schema.is_none() || id.schema == parsed.schema));
                !is_it || t.backfill.is_none()
            })
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::plain_name;

    #[test]
    fn pipelines_that_differ_have_slots_that_differ() {
        assert_eq!(plain_name("shop"), "synctool_shop");
        let names = ["Shop", "shop 1", "shop-1", "shop_1"].map(plain_name);
        for (i, name) in names.iter().enumerate() {
            assert!(name.len() <= 63 && !names[..i].contains(name), "{names:?}");
        }
        assert!(plain_name(&"x".repeat(128)).len() <= 63);
    }
}
