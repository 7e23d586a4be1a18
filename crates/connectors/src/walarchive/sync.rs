//! Production's rows, brought to a local database from archived log alone, exactly once.
//!
//! A step takes the next segments (plan), reads what will change from the scratch server while it still stands at the
//! old place (pre-image), stores that durably, lets the scratch server replay to the new place, reads the rows as they
//! are there (post-image), and changes the local tables in one transaction together with the place. Whatever step a
//! crash interrupts, the stored plan and the stored place say how to go on; nothing is planned twice.

use super::archive::{self, Archive, Listing};
use super::batch::{Batch, Scan};
use super::control::Control;
use super::follow::{Follower, Next, Waiting};
use super::scratch::{Scratch, ScratchConfig};
use super::sql;
use super::tables::{self, Name, Table};
use crate::postgres::{Connection, Postgres, PostgresConfig};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_pgwal::{History, Identity, Lsn, Major, RelFile, SegmentName};

/// What Data Sync needs to know.
#[derive(Debug, Clone)]
pub struct SyncConfig {
    /// Where production archives its log.
    pub archive: Archive,
    /// A base backup of production.
    pub backup: PathBuf,
    /// The scratch server.
    pub scratch: ScratchConfig,
    /// The local database.
    pub local: PostgresConfig,
    /// Production's database.
    pub database: String,
    /// Segments of one batch, at most.
    pub batch_segments: usize,
    /// Looks at the archive before something that is missing or broken is an error.
    pub patience: u32,
    /// How long the scratch server may replay without getting on.
    pub replay_patience: Duration,
    /// Hours of a metrics window.
    pub metric_hours: f64,
}

/// How far a look at the archive came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A batch was applied; the local tables are production's as of this place.
    Applied(Lsn),
    /// There is nothing new.
    Idle(Waiting),
}

/// A running Data Sync. Only one at a time works on a local database. After an error it is of no use any more: open it
/// again, so that what is stored says where things stand.
#[derive(Debug)]
pub struct DataSync {
    config: SyncConfig,
    scratch: Scratch,
    local: Connection,
    follower: Follower,
    scan: Scan,
    /// None until the first copy is done.
    applied: Option<Lsn>,
    /// The place of a stored plan that was not applied yet.
    planned: Option<Lsn>,
    /// What the scan holds beyond the last batch.
    taken: usize,
}

/// Addresses in one statement.
const CHUNK: usize = 5_000;

impl DataSync {
    /// Makes or finds everything, and finds out where things stand.
    pub async fn open(config: SyncConfig) -> Result<DataSync> {
        let local = Postgres::open(config.local.clone())?.connect().await?;
        let run = |e| local.error(e, "preparing the local tables");
        local.batch_execute(sql::CREATE).await.map_err(run)?;
        // A predecessor that was killed a moment ago may not have left yet.
        let end = Instant::now() + Duration::from_secs(5);
        while !local.query_one(sql::LOCK, &[]).await.map_err(run)?.get::<_, bool>(0) {
            if Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
            return Err(
                Error::new(code::LOCKED, "Data Sync is already running on this local database")
                    .hint("stop the other one first"),
            );
        }
        let scratch = Scratch::create(config.scratch.clone(), &config.backup)?;
        // What an earlier attempt got ready may not be what this one will want.
        let ready = config.scratch.directory.join("ready");
        if ready.exists() {
            std::fs::remove_dir_all(&ready).map_err(|e| archive::file_error(&ready, &e))?;
        }
        let control = scratch.control();
        let major = Major::ALL.into_iter().find(|m| u32::from(m.number()) == control.major);
        let identity = Identity {
            major: major.ok_or_else(|| {
                Error::new(
                    code::SERVER_VERSION,
                    format!("PostgreSQL {} is not supported", control.major),
                )
            })?,
            system: control.system,
            segment_size: control.segment_size,
        };
        let state = local.query_opt(sql::STATE, &[]).await.map_err(run)?;
        let mut timeline = scratch.label().timeline;
        let (mut start, mut applied) = (scratch.label().start, None);
        if let Some(row) = state {
            let system: String = row.get(0);
            if system != control.system.to_string() {
                return Err(Error::new(
                    code::WAL_FOREIGN,
                    format!(
                        "the local tables were made from system id {system}, the base backup is of {}",
                        control.system
                    ),
                )
                .hint("clear the local tables, or use a base backup of the same production"));
            }
            timeline = u32::try_from(row.get::<_, i64>(1)).unwrap_or(timeline);
            applied = Some(parse(row.get(2))?);
            start = parse(row.get(3))?;
        }
        let plan = local
            .query_opt("SELECT plan_lsn::text FROM synctool.datasync_plan", &[])
            .await
            .map_err(run)?;
        let planned = plan.map(|row| parse(row.get(0))).transpose()?;
        let history = history(&config.archive, timeline)?;
        Ok(DataSync {
            follower: Follower::new(config.archive.clone(), identity, history, start, config.patience),
            scan: Scan::new(identity, None, start, applied.unwrap_or(start)),
            config,
            scratch,
            local,
            applied,
            planned,
            taken: 0,
        })
    }

    /// The place of the local tables.
    pub fn applied(&self) -> Option<Lsn> {
        self.applied
    }

    /// The scratch server, for comparing.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Does the next batch, if there is one.
    pub async fn step(&mut self) -> Result<Step> {
        let Some(applied) = self.applied else {
            return self.first_copy().await;
        };
        // What was stored is read again up to the place it was stored for.
        while self.scan.position() < applied {
            if let Some(why) = self.take().await? {
                return Ok(Step::Idle(why));
            }
            self.taken = 0;
        }
        let Some(to) = self.planned else {
            return self.next_batch(applied).await;
        };
        while self.scan.position() < to {
            if let Some(why) = self.take().await? {
                return Ok(Step::Idle(why));
            }
        }
        let batch = self.scan.finish();
        self.carry_out(batch).await
    }

    /// Stops the scratch server.
    pub async fn close(self) -> Result<()> {
        self.scratch.stop().await
    }

    /// Takes the next segment into the scan and gets it ready for the gate; or says why there is none.
    async fn take(&mut self) -> Result<Option<Waiting>> {
        let timeline = self.follower.timeline();
        match self.follower.next().await? {
            Next::Waiting(why) => Ok(Some(why)),
            Next::Segment(segment) => {
                if self.follower.timeline() != timeline {
                    self.scan.change_timeline();
                }
                self.scan.take(&segment)?;
                self.taken += 1;
                let ready = self.ready();
                std::fs::create_dir_all(&ready).map_err(|e| archive::file_error(&ready, &e))?;
                let file = ready.join(segment.name.to_string());
                std::fs::write(&file, &segment.bytes).map_err(|e| archive::file_error(&file, &e))?;
                Ok(None)
            }
        }
    }

    /// Where segments wait until the gate is opened for them.
    fn ready(&self) -> PathBuf {
        self.config.scratch.directory.join("ready")
    }

    /// Lets the scratch server have everything that is ready, and waits until it stands at `to`.
    async fn open_gate(&mut self, to: Lsn) -> Result<()> {
        if let Archive::Directory(directory) = &self.config.archive {
            for (timeline, path) in Listing::of(directory)?.histories {
                let name = format!("{timeline:08X}.history");
                if timeline <= self.follower.timeline() && !self.scratch.admitted(&name) {
                    let text = std::fs::read(&path).map_err(|e| archive::file_error(&path, &e))?;
                    self.scratch.admit(&name, &text)?;
                }
            }
        }
        let ready = self.ready();
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&ready) {
            Ok(entries) => entries.flatten().map(|e| e.path()).collect(),
            Err(_) => Vec::new(),
        };
        files.sort();
        for file in files {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
            let bytes = std::fs::read(&file).map_err(|e| archive::file_error(&file, &e))?;
            self.scratch.admit(&name, &bytes)?;
            std::fs::remove_file(&file).map_err(|e| archive::file_error(&file, &e))?;
        }
        self.scratch.start().await?;
        self.scratch.wait_for(to, self.config.replay_patience).await
    }

    /// A session that waits only shortly for what production has locked.
    async fn session(&self) -> Result<Connection> {
        let session = self.scratch.connect(&self.config.database).await?;
        let set = session.batch_execute("SET lock_timeout = '2s'").await;
        set.map_err(|e| session.error(e, "preparing a session of the scratch server"))?;
        Ok(session)
    }

    async fn selected(&self) -> Result<BTreeSet<Name>> {
        let rows = self
            .local
            .query("SELECT table_name FROM public.tables_to_sync", &[])
            .await;
        let rows = rows.map_err(|e| self.local.error(e, "reading tables_to_sync"))?;
        Ok(rows.iter().map(|row| tables::parse_name(row.get(0))).collect())
    }

    /// The selected tables as they are at the scratch server's place.
    async fn tables(&self, session: &Connection) -> Result<BTreeMap<Name, Table>> {
        let mut found = BTreeMap::new();
        for name in self.selected().await? {
            for table in tables::leaves(session, &name).await? {
                found.insert(table.name.clone(), table);
            }
        }
        Ok(found)
    }

    /// Whether the scratch server can be read here, and every touch from here on is known.
    fn is_consistent(&self) -> bool {
        let ended = match self.scratch.label().from_standby {
            true => self.scan.position() >= self.scratch.control().min_recovery,
            false => self.scan.backup_ended(),
        };
        ended && self.scan.is_complete()
    }

    /// Replays until nothing open began before the scan, and copies the selected tables there.
    async fn first_copy(&mut self) -> Result<Step> {
        loop {
            // An earlier attempt may have let more through: the scratch server stands behind that.
            let next = self.follower.awaited().to_string();
            if self.is_consistent() && !self.scratch.admitted(&next) {
                break;
            }
            if let Some(why) = self.take().await? {
                return Ok(Step::Idle(why));
            }
        }
        let batch = self.scan.finish();
        self.taken = 0;
        self.open_gate(batch.to).await?;
        failpoint("datasync.first_copy")?;
        let session = self.session().await?;
        let tables = self.tables(&session).await?;
        self.begin().await?;
        for table in tables.values() {
            self.replace(&session, table, batch.to).await?;
        }
        self.move_to(&batch, &BTreeMap::new()).await?;
        Ok(Step::Applied(batch.to))
    }

    async fn next_batch(&mut self, applied: Lsn) -> Result<Step> {
        // A segment in which nothing ends is no batch.
        while self.taken < self.config.batch_segments || self.scan.position() <= applied {
            if let Some(why) = self.take().await? {
                match self.scan.position() > applied {
                    true => break,
                    false => return Ok(Step::Idle(why)),
                }
            }
        }
        let batch = self.scan.finish();
        // The gate is still shut: the scratch server stands at the old place.
        self.scratch.start().await?;
        self.scratch.wait_for(batch.from, self.config.replay_patience).await?;
        self.plan(&batch).await?;
        failpoint("datasync.planned")?;
        self.planned = Some(batch.to);
        self.carry_out(batch).await
    }

    /// Stores what the batch will take away, and from which files.
    async fn plan(&mut self, batch: &Batch) -> Result<()> {
        let session = self.session().await?;
        let mut files = tables::files(&session).await?;
        let tables = self.tables(&session).await?;
        for table in tables.values() {
            if tables::is_blocked(&session, table).await? {
                // Without a pre-image it will be read whole.
                files.remove(&table.name);
            }
        }
        self.begin().await?;
        let run = |e| self.local.error(e, "storing the plan");
        self.local
            .batch_execute("TRUNCATE synctool.datasync_pre")
            .await
            .map_err(run)?;
        for (name, table) in &tables {
            let Some(changes) = files
                .get(name)
                .and_then(|file| batch.files.get(file))
                .filter(|c| !c.whole)
            else {
                continue;
            };
            for at in changes.addresses.chunks(CHUNK) {
                let read = sql::read_pre(&name.0, &name.1, &table.identity(), at)?;
                let what = format!("reading {} before the batch", table.display());
                tables::copy(&session, &read, &self.local, sql::WRITE_PRE, &what).await?;
            }
        }
        let stored: Vec<(&Name, [u32; 3])> = files
            .iter()
            .map(|(name, f)| (name, [f.tablespace, f.database, f.file]))
            .collect();
        let text = serde_json::to_string(&stored).map_err(|e| Error::bug("a plan that is no JSON").caused_by(e))?;
        self.local
            .execute(
                "INSERT INTO synctool.datasync_plan (plan_lsn, tables) VALUES ($1::text::pg_lsn, $2)",
                &[&batch.to.to_string(), &text],
            )
            .await
            .map_err(run)?;
        failpoint("datasync.before_plan")?;
        self.commit("storing the plan").await
    }

    /// From a stored plan to the new place.
    async fn carry_out(&mut self, batch: Batch) -> Result<Step> {
        self.taken = 0;
        let run = |e| self.local.error(e, "reading the plan");
        let row = self
            .local
            .query_one("SELECT tables FROM synctool.datasync_plan", &[])
            .await
            .map_err(run)?;
        let stored: Vec<(Name, [u32; 3])> = serde_json::from_str(row.get(0))
            .map_err(|e| Error::new(code::STATE_STORE, "the stored plan cannot be read").caused_by(e))?;
        let before: BTreeMap<Name, RelFile> = stored
            .into_iter()
            .map(|(name, [tablespace, database, file])| {
                (
                    name,
                    RelFile {
                        tablespace,
                        database,
                        file,
                    },
                )
            })
            .collect();
        self.open_gate(batch.to).await?;
        failpoint("datasync.replayed")?;
        let session = self.session().await?;
        let after = tables::files(&session).await?;
        let tables = self.tables(&session).await?;
        self.begin().await?;
        let known = self.known().await?;
        for (name, table) in &tables {
            if tables::is_blocked(&session, table).await? {
                self.forget(name).await?;
                self.log(
                    "warn",
                    "blocked",
                    Some(table),
                    batch.to,
                    "locked in production; it is copied later",
                )
                .await?;
                continue;
            }
            let file = before.get(name);
            let changes = file.and_then(|file| batch.files.get(file));
            let stays = file.is_some() && file == after.get(name) && known.contains(name);
            match changes {
                _ if !stays => self.replace(&session, table, batch.to).await?,
                Some(changes) if changes.whole => self.replace(&session, table, batch.to).await?,
                Some(changes) => self.apply(&session, table, &changes.addresses).await?,
                None => {}
            }
        }
        // A table that is selected no more keeps its rows.
        for name in known.iter().filter(|name| !tables.contains_key(*name)) {
            self.forget(name).await?;
        }
        let mut names: BTreeMap<RelFile, Name> = BTreeMap::new();
        names.extend(before.into_iter().chain(after).map(|(name, file)| (file, name)));
        self.move_to(&batch, &names).await?;
        failpoint("datasync.committed")?;
        self.tidy()?;
        Ok(Step::Applied(batch.to))
    }

    /// Segments before the place from which the scratch server would replay are not needed any more.
    fn tidy(&self) -> Result<()> {
        let control = Control::read(&self.config.scratch.directory.join("data"))?;
        let size = control.segment_size;
        let first = size.number(control.redo);
        self.scratch.forget(|name| {
            let number = SegmentName::parse(name).and_then(|name| name.number(size));
            number.is_none_or(|number| number >= first)
        })
    }

    /// Tables that hold a copy.
    async fn known(&self) -> Result<BTreeSet<Name>> {
        let rows = self
            .local
            .query("SELECT schema_name, table_name FROM synctool.datasync_tables", &[])
            .await;
        let rows = rows.map_err(|e| self.local.error(e, "reading the state"))?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Whatever is known of a table's place is no longer true: if it is selected, it is copied anew.
    async fn forget(&self, name: &Name) -> Result<()> {
        let sql = "DELETE FROM synctool.datasync_tables WHERE schema_name = $1 AND table_name = $2";
        let done = self.local.execute(sql, &[&name.0, &name.1]).await;
        done.map(drop).map_err(|e| self.local.error(e, "writing the state"))
    }

    async fn begin(&self) -> Result<()> {
        // Triggers and foreign keys did their work in production.
        let sql = "BEGIN; SET LOCAL session_replication_role = replica; SET LOCAL lock_timeout = '60s'";
        let done = self.local.batch_execute(sql).await;
        done.map_err(|e| {
            self.local
                .error(e, "beginning the local transaction")
                .hint("session_replication_role needs superuser or SET privilege on the local server")
        })
    }

    async fn commit(&self, what: &str) -> Result<()> {
        self.local
            .batch_execute("COMMIT")
            .await
            .map_err(|e| self.local.error(e, what))
    }

    /// The local table must be as production's.
    async fn check(&self, table: &Table) -> Result<()> {
        let local = tables::leaves(&self.local, &table.name).await?;
        let Some(local) = local.into_iter().find(|t| t.name == table.name) else {
            return Err(Error::new(
                code::TABLE_MISSING,
                format!("table {} does not exist locally", table.display()),
            )
            .hint("create it as it is in production: pg_dump --schema-only"));
        };
        match local.columns == table.columns {
            true => Ok(()),
            false => {
                let list = |t: &Table| {
                    let each = t.columns.iter().map(|c| format!("{} {}", c.name, c.kind));
                    each.collect::<Vec<_>>().join(", ")
                };
                let what = format!("columns differ: production ({}), local ({})", list(table), list(&local));
                Err(Error::new(code::SCHEMA_MISMATCH, what)
                    .at("table", table.display())
                    .hint("change the local table as production's was changed"))
            }
        }
    }

    /// Reads a table whole at the scratch server's place.
    async fn replace(&self, session: &Connection, table: &Table, at: Lsn) -> Result<()> {
        self.check(table).await?;
        let (schema, name) = (&table.name.0, &table.name.1);
        let target = sql::table(schema, name);
        let what = format!("copying {}", table.display());
        let run = |e| self.local.error(e, &what);
        self.local
            .batch_execute(&format!("DELETE FROM ONLY {target}"))
            .await
            .map_err(run)?;
        let columns = table.stored();
        let (read, write) = (
            sql::read_rows(schema, name, &columns, None),
            sql::write_rows(&target, &columns),
        );
        let rows = tables::copy(session, &read, &self.local, &write, &what).await?;
        let sql = "INSERT INTO synctool.datasync_tables (schema_name, table_name, applied_lsn)
                   VALUES ($1, $2, $3::text::pg_lsn) ON CONFLICT (schema_name, table_name)
                   DO UPDATE SET applied_lsn = excluded.applied_lsn, paused = NULL";
        self.local
            .execute(sql, &[schema, name, &at.to_string()])
            .await
            .map_err(run)?;
        self.log("info", "copied", Some(table), at, &format!("{rows} rows copied"))
            .await
    }

    /// Takes the pre-images away and puts the rows in as they are now.
    async fn apply(&self, session: &Connection, table: &Table, addresses: &[(u32, u16)]) -> Result<()> {
        self.check(table).await?;
        let (schema, name) = (&table.name.0, &table.name.1);
        let what = format!("changing {}", table.display());
        let run = |e| self.local.error(e, &what);
        let columns = table.stored();
        self.local
            .batch_execute(&sql::create_post(schema, name, &columns))
            .await
            .map_err(run)?;
        let write = sql::write_rows("pg_temp.datasync_post", &columns);
        for at in addresses.chunks(CHUNK) {
            let read = sql::read_rows(schema, name, &columns, Some(at));
            tables::copy(session, &read, &self.local, &write, &what).await?;
        }
        let sql = "SELECT count(*) FROM synctool.datasync_pre WHERE schema_name = $1 AND table_name = $2";
        let expected: i64 = self.local.query_one(sql, &[schema, name]).await.map_err(run)?.get(0);
        let delete = match table.key() {
            key if key.is_empty() => sql::delete_by_row(schema, name, &columns)?,
            key => sql::delete_by_key(schema, name, &key)?,
        };
        let deleted = self.local.execute(&delete, &[]).await.map_err(run)?;
        if i64::try_from(deleted) != Ok(expected) {
            return Err(Error::new(
                code::DIFFERENT,
                format!(
                    "table {} has diverged: {deleted} rows were found where {expected} should be",
                    table.display()
                ),
            )
            .at("table", table.display())
            .hint("somebody changed the local table; copy it anew with synctool datasync resync"));
        }
        self.local
            .execute(&sql::insert_post(schema, name, &columns), &[])
            .await
            .map_err(run)?;
        Ok(())
    }

    /// Counts, moves the place and commits: the batch has happened.
    async fn move_to(&mut self, batch: &Batch, names: &BTreeMap<RelFile, Name>) -> Result<()> {
        let run = |e| self.local.error(e, "storing the new place");
        for (file, changes) in &batch.files {
            let Some(name) = names.get(file) else { continue };
            let table = format!("{}.{}", name.0, name.1);
            for (hour, counts) in &changes.hours {
                let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
                let (hour, hours) = (*hour as f64 * 3600.0, self.config.metric_hours);
                let (added, updated, deleted) =
                    (number(counts.inserted), number(counts.updated), number(counts.deleted));
                let values: [&(dyn postgres_types::ToSql + Sync); 6] =
                    [&table, &hour, &added, &updated, &deleted, &hours];
                self.local.execute(sql::COUNT, &values).await.map_err(run)?;
            }
        }
        let commit = batch.last_commit.map(|at| at.unix_micros() as f64 / 1e6);
        let system = self.scratch.control().system.to_string();
        let timeline = i64::from(self.follower.timeline());
        let (to, restart) = (batch.to.to_string(), batch.restart.to_string());
        self.local
            .execute(sql::MOVE, &[&system, &timeline, &to, &restart, &commit])
            .await
            .map_err(run)?;
        let clear = "DELETE FROM synctool.datasync_plan; TRUNCATE synctool.datasync_pre";
        self.local.batch_execute(clear).await.map_err(run)?;
        let text = format!("{} transactions up to {}", batch.commits, batch.to);
        self.log("info", "batch", None, batch.to, &text).await?;
        failpoint("datasync.before_commit")?;
        self.commit("storing the new place").await?;
        self.applied = Some(batch.to);
        self.planned = None;
        Ok(())
    }

    async fn log(&self, level: &str, event: &str, table: Option<&Table>, at: Lsn, message: &str) -> Result<()> {
        let sql = "INSERT INTO public.data_sync_logs (level, event, table_name, lsn, message)
                   VALUES ($1, $2, $3, $4::text::pg_lsn, $5)";
        let table = table.map(Table::display);
        let done = self
            .local
            .execute(sql, &[&level, &event, &table, &at.to_string(), &message])
            .await;
        done.map(drop)
            .map_err(|e| self.local.error(e, "writing data_sync_logs"))
    }
}

fn parse(text: String) -> Result<Lsn> {
    text.parse()
        .map_err(|e| Error::new(code::STATE_STORE, "the stored place cannot be read").caused_by(e))
}

/// The history of a timeline, from the archive; the first has none.
fn history(archive: &Archive, timeline: u32) -> Result<History> {
    if timeline == 1 {
        return Ok(History::first());
    }
    let listing = archive.list()?;
    match listing.histories.get(&timeline) {
        Some(path) => archive::read_history(timeline, Path::new(path)),
        None => Err(Error::new(
            code::WAL_TIMELINE,
            format!("the history of timeline {timeline} is not in the archive"),
        )
        .hint("copy it there from production's pg_wal")),
    }
}
