//! Production's rows, brought to a local database from archived log alone, exactly once.
//!
//! A step takes the next segments (plan), reads what will change from the scratch server while it still stands at the
//! old place (pre-image), stores that durably, lets the scratch server replay to the new place, reads the rows as they
//! are there (post-image), and changes the local tables in one transaction together with the place. Whatever step a
//! crash interrupts, the stored plan and the stored place say how to go on; nothing is planned twice.
//!
//! Between batches the scratch server stands still, and [`DataSync::tend`] copies tables that are new or to be copied
//! anew: the next batch follows from the same place.

mod apply;
mod copy;
mod listen;
mod settle;
mod tend;
mod verify;

pub use verify::Compared;

use super::batch::Batch;
use super::board::{self, UnderWay};
use super::control::Control;
use super::follow::{Waited, Waiting};
use super::journal::{self, Entry, Net};
use super::readable::UNREADABLE;
use super::replay::{Replay, ReplayConfig, Stored, by_address};
use super::scratch::{Hold, Scratch, blamed};
use super::silence;
use super::sql;
use super::tables::{self, Found, Name};
use crate::postgres::sql::ident;
use crate::postgres::{Connection, Postgres, PostgresConfig};
use apply::{State, Work};
use listen::Ears;
use settle::{Counted, Phases};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_pgwal::{Lsn, RelFile};
use tokio_util::sync::CancellationToken;

/// What Data Sync needs to know.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// Where production's log comes from.
    pub replay: ReplayConfig,
    /// The local database.
    pub local: PostgresConfig,
    /// Hours of a metrics window.
    pub metric_hours: u32,
    /// Ranges of a large table that are copied at once.
    pub copy_jobs: usize,
    /// Bytes of such a range; a table of no more is copied in one go.
    pub copy_range: u64,
    /// Ends a wait between batches, and a copy at its next range; the next start goes on behind it.
    pub stop: CancellationToken,
}

/// How far a look at the archive came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A batch was applied; the local tables are production's as of this place.
    Applied(Lsn),
    /// There is nothing new.
    Idle(Waiting),
}

/// What a stored plan knows of production before the batch.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Plan {
    /// The timeline at its end; one that an older version stored does not say.
    #[serde(default)]
    timeline: Option<u32>,
    /// What its log holds ([`Batch::log`]); one that an older version stored does not say.
    #[serde(default)]
    log: Option<u64>,
    /// Whether every table is read whole: of the rows before the batch nothing is known.
    #[serde(default)]
    whole: bool,
    /// Every table's file. A table that has none here is read whole.
    files: Vec<(Name, [u32; 3])>,
    /// How the selected tables were made.
    shapes: Vec<(Name, String)>,
}

impl Plan {
    fn read(text: &str) -> Result<Plan> {
        serde_json::from_str(text)
            .map_err(|e| Error::new(code::STATE_STORE, "the stored plan cannot be read").caused_by(e))
    }
}

/// A running Data Sync. Only one at a time works on a local database. After an error it is of no use any more: open it
/// again, so that what is stored says where things stand.
#[derive(Debug)]
pub struct DataSync {
    config: SyncConfig,
    replay: Replay,
    local: Connection,
    _hold: Hold,
    /// None until the first copy is done.
    applied: Option<Lsn>,
    /// The place of a stored plan that was not applied yet.
    planned: Option<Lsn>,
    /// Whether the scratch server was brought to the stored place since we opened it.
    standing: bool,
    /// Whether copies that an earlier process began were looked for.
    resumed: bool,
    /// The trouble of the archive that is stored, for whoever looks next.
    waited: Option<Waited>,
    ears: Ears,
}

/// The right to work on a local database, which one process has at a time.
#[derive(Debug)]
pub struct Claim {
    local: Connection,
}

impl Claim {
    /// Takes it; makes the local tables.
    pub async fn take(local: &PostgresConfig) -> Result<Claim> {
        let local = Postgres::open(local.clone())?.connect().await?;
        let set = local.batch_execute(sql::SESSION).await;
        set.map_err(|e| local.error(e, "preparing the local session"))?;
        board::create(&local).await?;
        lock(&local).await?;
        Ok(Claim { local })
    }

    /// Begins to work. The first time this unpacks the base backup, which takes its time.
    pub async fn open(self, config: SyncConfig) -> Result<DataSync> {
        DataSync::open_on(self.local, config).await
    }
}

/// Addresses in one statement.
const CHUNK: usize = 5_000;
/// Rows from which on the planner should know how many there are.
const ANALYZE_FROM: u64 = 1_000;
/// So many rows with a key are looked up one by one, whatever the planner thinks.
const FEW: u64 = 5_000;

impl DataSync {
    /// Makes or finds everything, and finds out where things stand.
    pub async fn open(config: SyncConfig) -> Result<DataSync> {
        Claim::take(&config.local).await?.open(config).await
    }

    async fn open_on(local: Connection, config: SyncConfig) -> Result<DataSync> {
        let run = |e| local.error(e, "reading the state");
        let hold = Hold::take(&config.replay.scratch)?;
        let state = local.query_opt(sql::STATE, &[]).await.map_err(run)?;
        let system: Option<String> = state.as_ref().map(|row| row.get(0));
        // What can be seen before the base backup is unpacked is told before.
        if let Some(control) = config.replay.backup.control() {
            check_local(&control, &local)?;
            if !Scratch::exists(&config.replay.scratch) {
                check_system(system.as_deref(), &control)?;
            }
        }
        let scratch = Replay::create(&config.replay)?;
        check_local(scratch.control(), &local)?;
        check_system(system.as_deref(), scratch.control())?;
        let mut stored = None;
        if let Some(row) = state {
            let database: Option<String> = row.get(4);
            if let Some(database) = database.filter(|name| *name != config.replay.database) {
                let what = format!(
                    "the local tables were made from production's database {database}, and this is {}",
                    config.replay.database
                );
                return Err(Error::new(code::REFUSED, what).hint(format!(
                    "set PROD_DB_NAME = \"{database}\", or start over: synctool datasync clear --rebuild"
                )));
            }
            let at = parse(row.get(2))?;
            stored = Some(Stored {
                timeline: u32::try_from(row.get::<_, i64>(1)).unwrap_or(scratch.label().timeline),
                at,
                restart: parse(row.get(3))?,
                furthest: at,
            });
        }
        let plan = local
            .query_opt("SELECT plan_lsn::text, tables FROM synctool.datasync_plan", &[])
            .await
            .map_err(run)?;
        let mut planned = None;
        if let (Some(row), Some(stored)) = (plan, &mut stored) {
            stored.furthest = parse(row.get(0))?;
            stored.timeline = Plan::read(row.get(1))?.timeline.unwrap_or(stored.timeline);
            planned = Some(stored.furthest);
        }
        if let Some(stored) = stored {
            scratch.within(stored.furthest)?;
        }
        let waited = local.query_opt(sql::WAITED, &[]).await.map_err(run)?;
        // One that cannot be understood is counted anew.
        let waited: Option<Waited> = waited.and_then(|row| serde_json::from_str(row.get(0)).ok());
        let mut replay = Replay::begin(config.replay.clone(), scratch, stored).await?;
        replay.follower.has_waited(waited.clone());
        Ok(DataSync {
            ears: Ears::new(config.stop.clone(), replay.end.clone()),
            replay,
            _hold: hold,
            config,
            local,
            applied: stored.map(|s| s.at),
            planned,
            standing: false,
            resumed: false,
            waited,
        })
    }

    /// The place of the local tables.
    pub fn applied(&self) -> Option<Lsn> {
        self.applied
    }

    /// The scratch server, for comparing.
    pub fn scratch(&self) -> &Scratch {
        &self.replay.scratch
    }

    /// What is being done, as far as it is known.
    pub fn under_way(&self) -> UnderWay {
        let to = self.planned.or_else(|| {
            let read = !self.replay.taken.is_empty();
            read.then(|| self.replay.scan.position())
        });
        UnderWay {
            from: self.applied,
            to,
            segments: self.segments(),
        }
    }

    /// The first and the last segment of the batch.
    fn segments(&self) -> Option<(String, String)> {
        let taken = &self.replay.taken;
        Some((taken.first()?.to_string(), taken.last()?.to_string()))
    }

    /// The segment that comes next, and what the command said that did not bring it.
    pub fn awaited(&self) -> (String, Option<&str>) {
        let follower = &self.replay.follower;
        (follower.awaited().to_string(), follower.said())
    }

    /// What is to be told of an archive that has not brought that segment for so long, where one is expected as often as
    /// `interval` says.
    pub fn silence(&self, interval: Duration, lasts: Duration) -> Option<String> {
        let archive = &self.config.replay.archive;
        silence(archive, interval, lasts, self.replay.follower.said())
    }

    /// Does the next batch, if there is one.
    pub async fn step(&mut self) -> Result<Step> {
        let step = Box::pin(self.advance()).await;
        let noted = self.note_waited().await;
        let step = step?;
        noted.map(|()| step)
    }

    /// Stores how often the same trouble of the archive was seen: whoever is started anew for each look has no other
    /// memory.
    async fn note_waited(&mut self) -> Result<()> {
        let waited = self.replay.follower.waited();
        if self.waited.as_ref() == waited {
            return Ok(());
        }
        let run = |e| self.local.error(e, "storing what the archive lacks");
        match waited {
            Some(waited) => {
                let text = serde_json::to_string(waited);
                let text = text.map_err(|e| Error::bug("a trouble that is no JSON").caused_by(e))?;
                self.local.execute(sql::SET_WAITED, &[&text]).await.map_err(run)?;
            }
            None => self.local.batch_execute(sql::NOT_WAITED).await.map_err(run)?,
        }
        self.waited = waited.cloned();
        Ok(())
    }

    async fn advance(&mut self) -> Result<Step> {
        let Some(applied) = self.applied else {
            return self.first_copy().await;
        };
        // What was stored is read again up to the place it was stored for.
        let known = self.planned.unwrap_or(applied);
        if self.replay.scan.position() < known {
            let taking = self.replay.take_up_to(known);
            if let Some(why) = self.ears.over(&self.local, taking).await? {
                return Ok(Step::Idle(why));
            }
            let planned = self.stored_plan().await?;
            self.replay.check_log(planned.and_then(|plan| plan.log))?;
            self.replay.check_backup()?;
            self.replay.passed(applied);
        }
        if !self.standing && (self.replay.passing.is_some() || !self.replay.is_readable().await?) {
            return Box::pin(self.pass_over(known)).await;
        }
        if !self.standing && self.planned.is_none() {
            let parameters = self.replay.scan.parameters().cloned();
            let opening = self.replay.open_gate(applied, parameters.as_ref());
            self.ears.over(&self.local, opening).await?;
        }
        self.standing = true;
        if self.planned.is_none() {
            self.resume_copies(applied).await?;
            return self.next_batch(applied).await;
        }
        let batch = self.replay.scan.finish();
        self.carry_out(batch, Instant::now()).await
    }

    /// The scratch server cannot be read where it should stand: the batch goes on to the next place at which it can, and
    /// every table is read whole there. Of what the rows were before nothing is wanted then.
    async fn pass_over(&mut self, known: Lsn) -> Result<Step> {
        if self.replay.passing.is_none() {
            let why = format!("{UNREADABLE}; behind the end of that transaction every table is read whole");
            self.begin_passing(known, why).await?;
        }
        let batch = match self.ears.over(&self.local, self.replay.take_beyond()).await? {
            Ok(batch) => batch,
            Err(why) => return Ok(Step::Idle(why)),
        };
        let began = Instant::now();
        // Which files they were in is known if the batch was planned before.
        let files = self.stored_plan().await?.map_or_else(Vec::new, |plan| plan.files);
        self.begin().await?;
        let plan = Plan {
            timeline: Some(self.replay.follower.timeline()),
            log: Some(batch.log),
            whole: true,
            files,
            shapes: Vec::new(),
        };
        self.store_plan(batch.to, &plan).await?;
        self.commit("storing the plan").await?;
        failpoint("datasync.planned")?;
        self.planned = Some(batch.to);
        self.carry_out(batch, began).await
    }

    /// From here on the batch goes on until the scratch server can be read, and it is told why.
    async fn begin_passing(&mut self, at: Lsn, why: String) -> Result<()> {
        (self.standing, self.replay.passing) = (false, Some(at));
        journal::log(&self.local, &Entry::new("warn", "unreadable", why).to(at)).await
    }

    /// Stores a plan in the open transaction, in the place of another.
    async fn store_plan(&self, to: Lsn, plan: &Plan) -> Result<()> {
        let text = serde_json::to_string(plan).map_err(|e| Error::bug("a plan that is no JSON").caused_by(e))?;
        let run = |e| self.local.error(e, "storing the plan");
        let forget = "DELETE FROM synctool.datasync_plan";
        self.local.batch_execute(forget).await.map_err(run)?;
        let store = "INSERT INTO synctool.datasync_plan (plan_lsn, tables) VALUES ($1::text::pg_lsn, $2)";
        let done = self.local.execute(store, &[&to.to_string(), &text]).await;
        done.map(drop).map_err(run)
    }

    /// The plan that was stored and not applied yet.
    async fn stored_plan(&self) -> Result<Option<Plan>> {
        let row = self
            .local
            .query_opt("SELECT tables FROM synctool.datasync_plan", &[])
            .await;
        let row = row.map_err(|e| self.local.error(e, "reading the plan"))?;
        row.map(|row| Plan::read(row.get(0))).transpose()
    }

    /// Stops the scratch server.
    pub async fn close(self) -> Result<()> {
        self.replay.scratch.stop().await
    }

    /// The selected names.
    async fn selected(&self) -> Result<Vec<String>> {
        let rows = self.local.query(sql::SELECTED, &[]).await;
        let rows = rows.map_err(|e| self.local.error(e, "reading tables_to_sync"))?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }

    /// The selected tables as they are at the scratch server's place, and as they are here.
    async fn find(&self, session: &Connection) -> Result<(Found, Found)> {
        let selected = self.selected().await?;
        let there = tables::find(session, selected.iter().map(String::as_str)).await;
        let there = there.map_err(blamed)?;
        // Selected tables may have other partitions here.
        let names: BTreeSet<String> = there.tables.keys().map(tables::display).chain(selected).collect();
        let here = tables::find(&self.local, names.iter().map(String::as_str)).await?;
        Ok((there, here))
    }

    async fn next_batch(&mut self, applied: Lsn) -> Result<Step> {
        let batch = match self.ears.over(&self.local, self.replay.take_next(applied)).await? {
            Ok(batch) => batch,
            Err(why) => return Ok(Step::Idle(why)),
        };
        let began = Instant::now();
        // The gate is still shut: the scratch server stands at the old place.
        self.ears.over(&self.local, self.replay.stand(batch.from)).await?;
        self.plan(&batch).await?;
        failpoint("datasync.planned")?;
        self.planned = Some(batch.to);
        self.carry_out(batch, began).await
    }

    /// Stores what the batch will take away, and from which files.
    async fn plan(&mut self, batch: &Batch) -> Result<()> {
        let session = self.replay.session().await?;
        let mut files = tables::files(&session).await?;
        let selected = self.selected().await?;
        let there = tables::find(&session, selected.iter().map(String::as_str)).await;
        let there = there.map_err(blamed)?;
        let known = self.known().await?;
        self.begin().await?;
        // The batch before has left nothing, and a DELETE that finds nothing makes no files.
        let run = |e| self.local.error(e, "storing the plan");
        let clear = "DELETE FROM synctool.datasync_pre";
        self.local.batch_execute(clear).await.map_err(run)?;
        let mut rows = 0;
        for (name, table) in &there.tables {
            if known.get(name).is_none_or(|k| k.state != State::Synced) {
                continue;
            }
            let Some(changes) = files.get(name).and_then(|file| batch.files.get(file)) else {
                continue;
            };
            if tables::is_blocked(&session, table).await? {
                // Without a pre-image it will be read whole.
                files.remove(name);
                continue;
            }
            let identity = table.identity();
            let mut walk = changes.addresses.walk()?;
            let next = || {
                let at = walk.next(CHUNK)?;
                let read = (!at.is_empty()).then(|| sql::read_pre(&name.0, &name.1, &identity, &at));
                read.transpose()
            };
            let what = format!("reading {} before the batch", table.display());
            by_address(&session, true).await?;
            let read = tables::copy_each(&session, next, &self.local, sql::WRITE_PRE, &what).await;
            let read = read.map_err(|e| e.at("table", table.display()))?;
            // Those of the others are found one by one, whatever is known of them.
            if table.key().is_empty() || read > FEW {
                rows += read;
            }
            by_address(&session, false).await?;
        }
        self.tell_planner("synctool.datasync_pre", rows).await?;
        let files = files.into_iter();
        let files = files.map(|(name, f)| (name, [f.tablespace, f.database, f.file]));
        let shapes = there.tables.into_iter().map(|(name, table)| (name, table.shape()));
        let plan = Plan {
            timeline: Some(self.replay.follower.timeline()),
            log: Some(batch.log),
            whole: false,
            files: files.collect(),
            shapes: shapes.collect(),
        };
        self.store_plan(batch.to, &plan).await?;
        failpoint("datasync.before_plan")?;
        self.commit("storing the plan").await
    }

    /// From a stored plan to the new place.
    async fn carry_out(&mut self, batch: Batch, began: Instant) -> Result<Step> {
        let planned = began.elapsed();
        let stored = self.stored_plan().await?;
        let stored = stored.ok_or_else(|| Error::bug("a batch without a plan"))?;
        let whole = stored.whole;
        let file = |[tablespace, database, file]: [u32; 3]| RelFile {
            tablespace,
            database,
            file,
        };
        let before: BTreeMap<Name, RelFile> = stored
            .files
            .into_iter()
            .map(|(name, parts)| (name, file(parts)))
            .collect();
        let shapes: BTreeMap<Name, String> = stored.shapes.into_iter().collect();
        let arrived = self.arrive(&batch).await?;
        failpoint("datasync.replayed")?;
        let Some(session) = arrived else {
            let to = batch.to;
            self.standing = false;
            self.replay.scan.resume(batch);
            return Box::pin(self.pass_over(to)).await;
        };
        let replayed = began.elapsed();
        let after = tables::files(&session).await?;
        let (there, here) = self.find(&session).await?;
        self.begin().await?;
        let known = self.known().await?;
        let mut nets = BTreeMap::new();
        // What production did to a file that came and went within the batch belongs to a table whose file is another now.
        let rewritten = before
            .iter()
            .filter(|(name, file)| after.get(*name).is_some_and(|now| now != *file));
        let mut uncounted: BTreeSet<Name> = rewritten.map(|(name, _)| name.clone()).collect();
        for (name, table) in &there.tables {
            let state = known.get(name);
            if state.is_some_and(|k| k.state == State::Paused) {
                continue;
            }
            let file = before.get(name);
            let synced = state.is_some_and(|k| k.state == State::Synced);
            let work = match file.and_then(|file| batch.files.get(file)) {
                _ if !synced || whole || file.is_none() || file != after.get(name) => Work::Whole,
                // Old rows may look different now though nothing touched them.
                _ if shapes.get(name) != Some(&table.shape()) => Work::Whole,
                Some(changes) => Work::Rows(&changes.addresses),
                None => Work::Nothing,
            };
            if !matches!(work, Work::Nothing) && tables::is_blocked(&session, table).await? {
                self.wait_for_lock(table, batch.to).await?;
                uncounted.insert(name.clone());
                continue;
            }
            let healed = state.is_some_and(|k| k.healed);
            let local = here.tables.get(name);
            let net = self
                .bring(&session, table, local, work, batch.from, batch.to, healed)
                .await;
            match net.map_err(|e| e.at("table", table.display()))? {
                Some(net) if net != Net::default() => {
                    nets.insert(name.clone(), net);
                }
                None if synced => {
                    uncounted.insert(name.clone());
                }
                _ => {}
            }
        }
        let misparted = tables::misparted(&self.local, &there, &here).await?;
        // A table that is selected no more keeps its rows.
        let followed = |name: &Name| there.tables.contains_key(name) || misparted.contains_key(name);
        for name in known.keys().filter(|name| !followed(name)) {
            self.forget(name).await?;
        }
        self.note_partitions(&misparted, batch.from, batch.to).await?;
        self.note_selected(&there).await?;
        let mut names: BTreeMap<RelFile, Name> = BTreeMap::new();
        names.extend(before.into_iter().chain(after).map(|(name, file)| (file, name)));
        let phases = Phases {
            began,
            planned,
            replayed: replayed - planned,
            applied: began.elapsed() - replayed,
        };
        self.move_to(&batch, &names, &Counted { nets, uncounted }, phases)
            .await?;
        failpoint("datasync.committed")?;
        self.replay.tidy()?;
        self.standing = true;
        Ok(Step::Applied(batch.to))
    }

    /// Brings the scratch server to the end of a batch, and gives a session there. That nobody can look at it there is told;
    /// the batch goes on then.
    async fn arrive(&mut self, batch: &Batch) -> Result<Option<Connection>> {
        let selected = self.selected().await?;
        let names: Vec<Name> = selected.iter().map(|name| tables::parse_name(name)).collect();
        let arriving = self.replay.arrive(batch.to, batch.parameters.as_ref(), &names);
        let arrived = match self.planned {
            // A batch that was planned is brought to its end.
            Some(_) => arriving.await?,
            None => self.ears.over(&self.local, arriving).await?,
        };
        let why = match arrived {
            Ok(session) => return Ok(Some(session)),
            Err(why) => why,
        };
        let why = format!(
            "production's database cannot be looked at where the batch ends ({}): it goes on to a later place, where every table is read whole",
            why.message()
        );
        self.begin_passing(batch.to, why).await?;
        Ok(None)
    }

    async fn begin(&self) -> Result<()> {
        // Triggers and foreign keys did their work in production.
        let sql = "BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = '60s'";
        let done = self.local.batch_execute(sql).await;
        done.map_err(|e| {
            let error = self.local.error(e, "beginning the local transaction");
            match error.code() == code::PERMISSION {
                true => error.hint_instead(format!(
                    "session_replication_role needs superuser or SET privilege on the local server: \
                     GRANT SET ON PARAMETER session_replication_role TO {}",
                    ident(&self.config.local.user)
                )),
                false => error,
            }
        })
    }

    /// A large table that was filled just now looks small to the planner, which then joins it row by row.
    async fn tell_planner(&self, table: &str, rows: u64) -> Result<()> {
        if rows < ANALYZE_FROM {
            return Ok(());
        }
        let done = self.local.batch_execute(&format!("ANALYZE {table}")).await;
        done.map_err(|e| self.local.error(e, "looking at the rows of a batch"))
    }

    /// Ends the transaction in which something failed. Where that cannot be done the session is gone, and it with it.
    async fn abandon(&self) {
        let _ = self.local.batch_execute("ROLLBACK").await;
    }

    async fn commit(&self, what: &str) -> Result<()> {
        self.local
            .batch_execute("COMMIT")
            .await
            .map_err(|e| self.local.error(e, what))
    }
}

/// Rows of one major version may mean something else to another.
fn check_local(production: &Control, local: &Connection) -> Result<()> {
    let (theirs, ours) = (production.major, local.version() / 10_000);
    match theirs == ours {
        true => Ok(()),
        false => Err(Error::new(
            code::SERVER_VERSION,
            format!("base backup PG_VERSION is {theirs}, local server is {ours}"),
        )
        .hint(format!("use a local PostgreSQL {theirs}"))),
    }
}

/// Rows of one production say nothing of another's log.
fn check_system(stored: Option<&str>, backup: &Control) -> Result<()> {
    let found = backup.system.to_string();
    let Some(system) = stored.filter(|system| *system != found) else {
        return Ok(());
    };
    let what = format!("the local tables were made from system id {system}, the base backup is of {found}");
    Err(Error::new(code::WAL_FOREIGN, what).hint(
        "use a base backup of the same production and remove the scratch directory, or start over: synctool datasync clear --rebuild",
    ))
}

/// One process at a time.
pub(super) async fn lock(local: &Connection) -> Result<()> {
    let run = |e| local.error(e, "locking the local tables");
    // A predecessor that was killed a moment ago may not have left yet.
    let end = Instant::now() + Duration::from_secs(5);
    while !local.query_one(sql::LOCK, &[]).await.map_err(run)?.get::<_, bool>(0) {
        if Instant::now() >= end {
            return Err(
                Error::new(code::LOCKED, "Data Sync is already running on this local database")
                    .hint("synctool datasync status; synctool datasync stop"),
            );
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

fn parse(text: String) -> Result<Lsn> {
    text.parse()
        .map_err(|e| Error::new(code::STATE_STORE, "the stored place cannot be read").caused_by(e))
}
