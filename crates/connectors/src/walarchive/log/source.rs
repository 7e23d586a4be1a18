//! The archived log as a source of the engine.

use super::super::examine;
use super::super::follow::{Follower, Next, Waiting};
use super::super::replay::{ReplayConfig, history, identity, ready};
use super::super::{sql, tables};
use super::batch::{first, is_parted, parts};
use super::capture;
use super::chunks::{Chunks, Marks, Rows};
use super::position::LogPosition;
use super::reader::{LogReader, Open, Shared};
use super::shape::{Followed, Shape, Shapes, full_name};
use super::world::{Found, Place, World};
use crate::logs;
use crate::postgres::log::capture::{self as plans, CaptureRequest, Initial};
use crate::postgres::log::chunks::canonical_keys;
use crate::postgres::log::shape::travelling;
use crate::postgres::log::status::{LogStatus, Steering, at_rest, lsn};
use crate::postgres::log::{LogOptions, Outlook, Watermarks};
use crate::postgres::source::PostgresSource;
use crate::postgres::{Connection, ENGINE, catalog};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synctool_core::backfill::{Backfill, BackfillPosition, Pending};
use synctool_core::blocks::BlockHashes;
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::Collation;
use synctool_core::plan::{Partition, Plan, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::Term;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{
    Assignment, Extent, Finding, PlannedSlice, ReadContext, Reader, SliceRequest, Source, TableInfo,
};
use synctool_pgwal::Lsn;

/// What to do about a log that cannot be followed on.
const REPAIR: &str = "with a base backup and an archive that reach on from now, run with --repair: every table is compared and made equal";

/// How often an archive should bring something where nobody says it.
const INTERVAL: Duration = Duration::from_secs(600);

/// The archived log of a PostgreSQL server, and the tables of one of its databases.
///
/// [`ArchiveLog::follow`] says which tables it is about, as the plan has them; then the engine follows it. Where the
/// scratch server stands, its tables can be read as those of any server ([`ArchiveLog::standing`]).
#[derive(Debug)]
pub struct ArchiveLog {
    world: Arc<World>,
    tables: PostgresSource,
    schema: String,
    frequency: Duration,
    interval: Duration,
    options: LogOptions,
    followed: Mutex<Vec<Followed>>,
    /// Where the log begins for a plan that goes on where another stood.
    from: Mutex<Option<Position>>,
    steering: Arc<Steering>,
    /// New tables that are left out, and why, as it was told.
    left_out: Mutex<BTreeMap<TableId, String>>,
}

impl ArchiveLog {
    /// A log whose archive is looked at so often; `schema` is that of tables that are named without one.
    pub fn new(config: ReplayConfig, schema: &str, frequency: Duration, options: LogOptions) -> Result<ArchiveLog> {
        let world = World::new(config, Some(options.slot.clone()), schema)?;
        Ok(ArchiveLog::of(world, schema, frequency, options))
    }

    /// How often the archive should bring something; one that brought nothing for three times as long is told.
    #[must_use]
    pub fn expecting(mut self, interval: Duration) -> ArchiveLog {
        self.interval = interval;
        self
    }

    /// The tables where the scratch server stands, whoever follows the log.
    pub async fn standing(config: ReplayConfig, schema: &str) -> Result<ArchiveLog> {
        let world = World::new(config, None, schema)?;
        let log = ArchiveLog::of(world, schema, Duration::ZERO, LogOptions::default());
        log.stand().await?;
        Ok(log)
    }

    fn of(world: World, schema: &str, frequency: Duration, options: LogOptions) -> ArchiveLog {
        ArchiveLog {
            tables: world.database().live_source(),
            world: Arc::new(world),
            schema: schema.into(),
            frequency,
            interval: INTERVAL,
            options,
            followed: Mutex::default(),
            from: Mutex::default(),
            steering: Arc::default(),
            left_out: Mutex::default(),
        }
    }

    /// How it is followed.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// What steers it while it is followed.
    pub fn steering(&self) -> &Arc<Steering> {
        &self.steering
    }

    /// Follows the tables of a plan that [`super::capture`] made. To be called before the engine opens the log.
    pub fn follow(&self, plan: &Plan) {
        *self.from.lock().expect("nothing panics while holding it") = plans::from_of(plan);
        let tables = plan.tables.iter().map(|t| Followed::of(plan, t)).collect();
        *self.followed.lock().expect("nothing panics while holding it") = tables;
    }

    fn followed(&self) -> Vec<Followed> {
        self.followed.lock().expect("nothing panics while holding it").clone()
    }

    /// Brings the scratch server to where it stood last, or where it can be read first, so that its tables can be looked at.
    /// The first time this unpacks the base backup, which takes its time.
    pub(super) async fn stand(&self) -> Result<()> {
        self.world.stand().await
    }

    /// Stops the scratch server: nobody follows the log or looks at its tables any more.
    pub async fn close(&self) -> Result<()> {
        self.world.close().await
    }

    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// A session at the scratch server, where it stands.
    pub(super) async fn session(&self) -> Result<Connection> {
        self.world.session().await
    }

    /// What is to be read again of a followed table: all of it, or the rows of some keys as people write them.
    pub async fn refresh(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Pending> {
        let followed = self.followed();
        let full = |t: &TableId| full_name(t, &self.schema);
        let Some(followed) = followed.iter().find(|f| full(&f.read.table) == full(table)) else {
            let names: Vec<String> = followed.iter().map(|f| f.read.table.to_string()).collect();
            return Err(Error::new(code::TABLE_MISSING, format!("{table} is not followed"))
                .hint(format!("followed are: {}", names.join(", "))));
        };
        let database = self.world.database();
        // Says whether there is a key, too.
        let keys = match canonical_keys(database, &followed.read, &followed.key, keys).await {
            Err(e) if e.kind().is_transient() => {
                return Err(Error::new(
                    code::REFUSED,
                    "keys are looked up at the scratch server, which does not run now",
                )
                .caused_by(e)
                .hint("ask while the pipeline runs, or refresh the whole table"));
            }
            other => other?,
        };
        Ok(match keys.is_empty() {
            true => Pending::resync(followed.read.table.clone()),
            false => Pending::keys(followed.read.table.clone(), keys),
        })
    }

    /// Tables that are not followed, although they could be: they came since the plan was made. None while the scratch server does not stand.
    pub async fn newcomers(&self, request: &CaptureRequest) -> Result<Vec<TableId>> {
        if !matches!(*self.world.place().borrow(), Place::Standing(_)) {
            return Ok(Vec::new());
        }
        let followed = self.followed();
        let session = self.session().await?;
        let all = logged(&session).await?;
        let is_followed = |t: &TableId| {
            let name = full_name(t, &self.schema);
            followed.iter().any(|f| full_name(&f.read.table, &self.schema) == name)
        };
        let mut found = Vec::new();
        for table in all.into_iter().filter(|t| !is_followed(t)) {
            let checked = capture::check_newcomer(&session, &self.schema, request, &table).await;
            if logs::can_follow(&self.left_out, &table, checked)? {
                found.push(table);
            }
        }
        session.recycle();
        Ok(found)
    }

    /// Whether the log goes on where a position stands; nothing is changed, and the scratch server is left alone.
    pub async fn outlook(&self, after: Option<&Position>) -> Result<Outlook> {
        let stored = match after.map(BackfillPosition::parse).transpose()?.and_then(|p| p.log) {
            Some(log) => LogPosition::parse(&log)?,
            None => return Ok(Outlook::BeginsNow),
        };
        match self.look(&stored).await {
            Ok(()) => Ok(Outlook::GoesOn {
                behind: self.world.end().map_or(0, |end| end.0.saturating_sub(stored.at.0)),
            }),
            Err(e) if e.kind().is_transient() => Err(e),
            Err(e) => Ok(Outlook::Refused(e.at("position", stored.at.to_string()).hint(REPAIR))),
        }
    }

    /// Looks at the first segment behind a position.
    async fn look(&self, stored: &LogPosition) -> Result<()> {
        let Some(control) = self.world.control() else {
            return Ok(());
        };
        check_system(stored, control.system)?;
        let archive = &self.world.config().archive;
        let history = history(archive, stored.timeline).await?;
        let follower = Follower::new(archive.clone(), identity(&control)?, history, stored.at, 0);
        let mut follower = follower.unpacking_in(ready(self.world.config()));
        match follower.next().await? {
            Next::Waiting(why @ Waiting::Gap { .. }) => Err(Error::new(code::WAL_MISSING, why.to_string())),
            Next::Segment(_) | Next::Waiting(_) => Ok(()),
        }
    }

    /// Brings the scratch server to where the log is to be read from; says what is to be read besides it.
    async fn start(&self, after: Option<&Position>, followed: &[Followed]) -> Result<(Found, BackfillPosition)> {
        let keyed = || followed.iter().filter(|f| !f.key.is_empty());
        let Some(after) = after else {
            let position = self.world.begin().await?;
            let pending = keyed().filter_map(|f| match f.initial {
                Initial::Load => Some(Pending::load(f.read.table.clone())),
                Initial::Resync => Some(Pending::resync(f.read.table.clone())),
                Initial::Skip => None,
            });
            let after = BackfillPosition {
                log: Some(position.encode()),
                pending: pending.collect(),
                ..BackfillPosition::default()
            };
            return Ok((Found { position, begun: None }, after));
        };
        let after = BackfillPosition::parse(after)?;
        let log = after
            .log
            .as_ref()
            .ok_or_else(|| Error::new(code::STATE_STORE, "a stored position has no place in the log"))?;
        let stored = LogPosition::parse(log)?;
        let names: Vec<_> = followed
            .iter()
            .map(|f| full_name(&f.read.table, &self.schema))
            .collect();
        match Box::pin(self.world.go_on(&stored, &names)).await {
            Err(e) if self.options.repair.holds() && !e.kind().is_transient() && e.code() != code::LOCKED => {
                tracing::warn!(error = %e, "the log is followed from the base backup on, and every table is compared");
                logs::must_compare(followed.iter().map(|f| (&f.read.table, &f.key[..])))?;
                self.world.discard().await?;
                let position = LogPosition {
                    added: stored.added,
                    ..self.world.begin().await?
                };
                let after = BackfillPosition {
                    log: Some(position.encode()),
                    pending: keyed().map(|f| Pending::resync(f.read.table.clone())).collect(),
                    taken: after.taken,
                    cancelled: after.cancelled,
                };
                Ok((Found { position, begun: None }, after))
            }
            Err(e) => Err(e.at("position", stored.at.to_string()).hint(REPAIR)),
            Ok(found) => Ok((found, after)),
        }
    }

    async fn open_log(&self, after: Option<&Position>, context: &ReadContext) -> Result<Box<dyn Reader>> {
        let followed = self.followed();
        if followed.is_empty() {
            return Err(Error::bug(
                "a log is opened before it is known which tables it is about",
            ));
        }
        if self.options.watermarks == Watermarks::Table {
            return Err(Error::new(
                code::UNSUPPORTED,
                "an archived log is read without a table of watermarks",
            )
            .hint("leave watermarks out: chunks are read where the scratch server stands"));
        }
        let from = self.from.lock().expect("nothing panics while holding it").clone();
        let after = after.or(from.as_ref());
        let (found, beside) = self.start(after, &followed).await?;
        let (position, begun) = (found.position, found.begun);
        // A position of another plan, or of a repair, is not at the destination yet.
        let durable =
            after.is_some() && beside.log == after.map(BackfillPosition::parse).transpose()?.and_then(|p| p.log);
        self.steering.opened(position.standing(), &beside);
        let shapes = self.shapes(&followed, &position).await?;
        tracing::info!(from = %position.at, "following the archived log");
        let shared = Shared {
            rows: Arc::new(Rows {
                world: self.world.clone(),
                widths: logs::Widths::default(),
            }),
            shapes: Arc::new(Shapes::new(shapes)),
            marks: Arc::new(Marks::default()),
            steering: self.steering.clone(),
            options: self.options.clone(),
            frequency: self.frequency,
            interval: self.interval,
        };
        let mut open = match begun {
            Some(kept) => Open::Begun(kept),
            None => Open::Nothing,
        };
        if after.is_none() {
            let initial = followed.iter().map(|f| f.initial);
            let all: Vec<_> = shared.shapes.all().into_iter().zip(initial).collect();
            let first = first(&shared.rows, &all, &position).await?;
            if !first.jobs.is_empty() || first.position != position {
                open = Open::First(Box::new(first));
            }
        }
        let chunks = Arc::new(Chunks {
            rows: shared.rows.clone(),
            shapes: shared.shapes.clone(),
            marks: shared.marks.clone(),
        });
        let log = LogReader::new(shared, context.clone(), position, durable, open);
        let inner = Backfill::new(Box::new(log), chunks, beside, self.options.chunk_rows)
            .hearing(self.steering.requests().clone());
        Ok(Box::new(logs::Follow::new(
            inner,
            self.steering.clone(),
            |p| Ok(LogPosition::parse(p)?.standing()),
            std::future::pending(),
        )))
    }

    /// The followed tables as the plan and the position have them.
    async fn shapes(&self, followed: &[Followed], position: &LogPosition) -> Result<Vec<Shape>> {
        // Where a batch was begun the scratch server may be on its way: its catalog is one or the other place's.
        self.world.run().await?;
        let session = self.session().await?;
        let selected = followed.iter().map(|f| f.read.table.to_string()).collect();
        let names = followed
            .iter()
            .map(|f| full_name(&f.read.table, &self.schema))
            .collect();
        let found = tables::find_named(&session, selected, names).await?;
        let mut shapes = Vec::with_capacity(followed.len());
        for f in followed {
            let table = &f.read.table;
            let mut added = Vec::new();
            if let Some(names) = position.added.get(&table.to_string()) {
                let described = catalog::describe(&session, table, &self.schema).await?;
                let known = names.iter().filter_map(|name| described.schema.column(name));
                added.extend(known.cloned().map(travelling));
            }
            let parted = is_parted(&parts(&found, table)?, &full_name(table, &self.schema));
            shapes.push(Shape::new(f, &added, parted, &self.schema)?);
        }
        session.recycle();
        Ok(shapes)
    }

    /// How far a log is that nobody follows at the moment, by the position that the destination holds.
    pub async fn at_rest(&self, plan: &Plan, position: Option<&Position>) -> Result<LogStatus> {
        let stored = plans::position_of(plan, position.cloned());
        let stored = stored.as_ref().map(BackfillPosition::parse).transpose()?;
        let log = match stored.as_ref().and_then(|p| p.log.as_ref()) {
            Some(log) => Some(LogPosition::parse(log)?),
            None => None,
        };
        let at = log.as_ref().map_or(Lsn(0), |p| p.at);
        let end = self.world.end().unwrap_or_default().max(at);
        let standing = log.as_ref().map(LogPosition::standing);
        Ok(at_rest(
            plan,
            &self.options,
            stored.as_ref(),
            standing,
            (end.0, &[]),
            lsn,
        ))
    }
}

/// Refuses another server's log.
pub(super) fn check_system(position: &LogPosition, system: u64) -> Result<()> {
    match position.system == system {
        true => Ok(()),
        false => Err(Error::new(
            code::WAL_FOREIGN,
            format!(
                "the position was made from system id {}, the base backup is of {system}",
                position.system
            ),
        )
        .hint("name the archive and a base backup of the same production")),
    }
}

/// The tables that can be followed.
pub(super) async fn logged(session: &Connection) -> Result<Vec<TableId>> {
    let rows = session.query(sql::LOGGED, &[]).await;
    let rows = rows.map_err(|e| session.error(e, "reading the catalog"))?;
    let table = |r: &tokio_postgres::Row| TableId::new(r.get::<_, String>(0), r.get::<_, String>(1));
    Ok(rows.iter().map(table).collect())
}

#[async_trait]
impl Source for ArchiveLog {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        self.tables.tables(schema).await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.tables.describe(table).await
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        self.tables.describe_query(read).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        self.tables.extent(read, term, slice).await
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        self.tables.block_hashes()
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        self.tables.slices(read, request).await
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        self.tables.collations(table, columns).await
    }

    async fn assignments(&self) -> Result<BoxStream<'static, Assignment>> {
        Ok(logs::assignments(self.options.until_now))
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        if partition.work != Work::Log {
            return self.tables.open(read, partition, after, context).await;
        }
        logs::opened(context, Box::pin(self.open_log(after, context))).await
    }

    async fn examine(&self, _: &[TableId]) -> Vec<Finding> {
        examine::replayed(self.world.config()).await
    }
}
