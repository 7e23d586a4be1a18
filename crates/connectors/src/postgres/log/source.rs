//! The log of a database as a source of the engine.

use super::super::client::{Connection, Postgres};
use super::super::source::PostgresSource;
use super::super::{ENGINE, examine};
use super::capture;
use super::chunks::{self, Chunks, Marks};
use super::client::{Replication, System};
use super::membership::Writers;
use super::pgoutput::Lsn;
use super::position::{self, LogPosition, Origin, SlotState};
use super::reader::{LogReader, World};
use super::shape::{Followed, Initial, Shape, Shapes};
use super::slot::Missing;
use super::status::{Steering, Watch, told_absent};
use super::timeline::Timeline;
use super::transport::{Feed, Route, end_of_log};
use super::{HEARTBEAT_PREFIX, LogOptions, Watermarks, capture::CaptureRequest, identity, membership, slot};
use crate::logs;
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use synctool_core::backfill::{Backfill, BackfillPosition, Pending};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::Collation;
use synctool_core::plan::{Partition, Plan, ReadSpec, Work};
use synctool_core::progress::Position;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{Assignment, Finding, ReadContext, Reader, Source, TableInfo};
use tokio_util::sync::{CancellationToken, DropGuard};

/// The one partition of a log.
const PARTITION: &str = "log";

/// How often the end of the log is looked at, for those who ask how far we are.
const WATCH: std::time::Duration = std::time::Duration::from_secs(1);

/// The log of a PostgreSQL database, through one slot.
///
/// [`LogSource::follow`] says which tables it is about, as the plan has them; then the engine follows it.
#[derive(Debug)]
pub struct LogSource {
    database: Postgres,
    tables: PostgresSource,
    options: LogOptions,
    followed: Mutex<Vec<Followed>>,
    /// Whether they are all tables of the publication, not named ones: what leaves it is left out then, not put back.
    all: AtomicBool,
    /// Where the log begins for a plan that goes on where another stood.
    from: Mutex<Option<Position>>,
    as_text: Arc<AtomicBool>,
    steering: Arc<Steering>,
    /// By what the followed tables were in the publication when the log was opened.
    members: Mutex<BTreeMap<TableId, String>>,
    /// Since when the publication published what it did then.
    kinds: Mutex<Option<String>>,
    /// Who was writing to tables that are to be read anew.
    writers: tokio::sync::Mutex<Writers>,
    /// New tables that are left out, and why, as it was told.
    left_out: Mutex<BTreeMap<TableId, String>>,
}

/// What the server has for a stored position.
struct Judged {
    stored: LogPosition,
    after: BackfillPosition,
    origin: Origin,
    verdict: Result<()>,
    slot_is_there: bool,
    behind: u64,
}

/// Where a log is read from.
struct Started {
    position: LogPosition,
    after: BackfillPosition,
    /// It does not go on where it stood: every table is compared.
    repaired: bool,
}

/// What a log does not have of the followed tables.
struct Missed {
    /// Tables that it did not have all the time: they are compared.
    missed: Vec<TableId>,
    /// Those that are published as a whole, not partition by partition.
    whole: BTreeSet<TableId>,
    /// Those that are not published, or not there: they are left out.
    out: BTreeSet<TableId>,
}

/// Whether a log goes on where it stands.
#[derive(Debug)]
pub enum Outlook {
    /// It was never read.
    Begins {
        /// Whether its slot exists.
        slot_is_there: bool,
    },
    /// It was never read, and begins with what comes from now on: nothing is kept for us.
    BeginsNow,
    /// It goes on.
    GoesOn {
        /// Bytes that are to be read.
        behind: u64,
    },
    /// It does not, and what would mend it.
    Refused(Error),
}

impl Postgres {
    /// The database's log as a source.
    pub fn log(&self, options: LogOptions) -> Result<LogSource> {
        options.check()?;
        Ok(LogSource {
            database: self.clone(),
            tables: self.source(),
            options,
            followed: Mutex::default(),
            all: AtomicBool::default(),
            from: Mutex::default(),
            as_text: Arc::default(),
            steering: Arc::default(),
            members: Mutex::default(),
            kinds: Mutex::default(),
            writers: tokio::sync::Mutex::default(),
            left_out: Mutex::default(),
        })
    }
}

impl LogSource {
    /// How it is followed.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// What steers it while it is followed.
    pub fn steering(&self) -> &Arc<Steering> {
        &self.steering
    }

    pub(super) fn database(&self) -> &Postgres {
        &self.database
    }

    /// Follows the tables of a plan that [`super::capture`] made. To be called before the engine opens the log.
    pub fn follow(&self, plan: &Plan) {
        *self.from.lock().expect("nothing panics while holding it") = capture::from_of(plan);
        let tables = plan.tables.iter().map(|t| Followed::of(plan, t)).collect();
        self.follow_tables(tables, capture::follows_all(plan));
    }

    pub(super) fn follow_tables(&self, tables: Vec<Followed>, all: bool) {
        self.all.store(all, Ordering::Relaxed);
        *self.followed.lock().expect("nothing panics while holding it") = tables;
    }

    /// The partition that the engine follows.
    pub fn partition() -> Partition {
        Partition {
            id: PARTITION.into(),
            table: 0,
            work: Work::Log,
            estimated_rows: 0,
            estimated_bytes: 0,
        }
    }

    /// The statements that take away everything that was made at the source: slot, publication, watermark table.
    pub fn removal(&self) -> Vec<String> {
        slot::removal(&self.options)
    }

    /// What the server has for a stored position.
    async fn judge(&self, connection: &Connection, link: &mut Replication, after: &Position) -> Result<Judged> {
        let name = &self.options.slot;
        let (system, origin) = self.origin(connection, link).await?;
        let state = slot::find(connection, name).await;
        let after = BackfillPosition::parse(after)?;
        let stored = match &after.log {
            Some(log) => LogPosition::parse(log)?,
            None => {
                return Err(Error::new(
                    code::STATE_STORE,
                    "a stored position has no place in the log",
                ));
            }
        };
        let history = match stored.origin.timeline == system.timeline {
            true => Vec::new(),
            false => link.history(system.timeline).await?,
        };
        let end = end_of_log(connection).await?;
        // Whose log it is comes before what is wrong with the slot.
        let unknown = SlotState {
            confirmed: Some(0),
            lost: None,
        };
        let known = match &state {
            Ok(state) => state.as_ref(),
            Err(_) => Some(&unknown),
        };
        let verdict = position::check(&stored, &system, origin.database, name, known, &history, end);
        let slot_is_there = match (&verdict, state) {
            (_, Ok(state)) => state.is_some(),
            (Ok(()), Err(e)) => return Err(e),
            (Err(_), Err(_)) => false,
        };
        Ok(Judged {
            behind: end.saturating_sub(stored.lsn),
            verdict: verdict.map_err(|e| e.at("server", self.database.config().server())),
            stored,
            after,
            origin,
            slot_is_there,
        })
    }

    async fn origin(&self, connection: &Connection, link: &mut Replication) -> Result<(System, Origin)> {
        let system = link.identify().await?;
        let row = connection
            .query_one(
                "SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()",
                &[],
            )
            .await
            .map_err(|e| connection.error(e, "identifying the database"))?;
        let origin = Origin {
            system: system.id.clone(),
            timeline: system.timeline,
            database: row.get(0),
            slot: self.options.slot.clone(),
        };
        Ok((system, origin))
    }

    /// What is to be read again of a followed table: all of it, or the rows of some keys as people write them.
    pub async fn refresh(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Pending> {
        let followed = self.followed.lock().expect("nothing panics while holding it").clone();
        let default = &self.database.config().schema;
        let full = |t: &TableId| TableId::new(t.schema.as_deref().unwrap_or(default), &t.name);
        let Some(followed) = followed.iter().find(|f| full(&f.read.table) == full(table)) else {
            let names: Vec<String> = followed.iter().map(|f| f.read.table.to_string()).collect();
            return Err(Error::new(code::TABLE_MISSING, format!("{table} is not followed"))
                .hint(format!("followed are: {}", names.join(", "))));
        };
        let members = self.members.lock().expect("nothing panics while holding it").clone();
        if members
            .get(&followed.read.table)
            .is_some_and(|by| by == membership::OUT)
        {
            return Err(Error::new(
                code::TABLE_MISSING,
                format!("{table} is left out: the publication does not have it"),
            )
            .hint("put it back into the publication: it is compared then by itself"));
        }
        // Says whether there is a key, too.
        let keys = chunks::canonical_keys(&self.database, &followed.read, &followed.key, keys).await?;
        Ok(match keys.is_empty() {
            true => Pending::resync(followed.read.table.clone()),
            false => Pending::keys(followed.read.table.clone(), keys),
        })
    }

    /// Tables that the publication has and that are not followed, although they could be: they came since the plan was
    /// made.
    pub async fn newcomers(&self, request: &CaptureRequest) -> Result<Vec<TableId>> {
        let connection = self.database.connect().await?;
        let found = self.newcomers_on(&connection, request).await?;
        connection.recycle();
        Ok(found)
    }

    async fn newcomers_on(&self, connection: &Connection, request: &CaptureRequest) -> Result<Vec<TableId>> {
        let followed = self.followed.lock().expect("nothing panics while holding it").clone();
        let default = &self.database.config().schema;
        let is_followed = |t: &TableId| {
            followed.iter().any(|f| {
                f.read.table.name == t.name
                    && f.read.table.schema.as_ref().unwrap_or(default) == t.schema.as_ref().unwrap_or(default)
            })
        };
        let mut found = Vec::new();
        for table in slot::published(connection, &self.options).await? {
            if is_followed(&table) {
                continue;
            }
            let checked = capture::check_newcomer(connection, request, &table, default).await;
            if logs::can_follow(&self.left_out, &table, checked)? {
                found.push(table);
            }
        }
        Ok(found)
    }

    /// Tables for which the log is to be opened anew by a plan that has them: new ones, if `all` of the publication are
    /// followed, and those that were taken out of the publication and put back. Whom somebody is writing to since before
    /// that waits.
    pub async fn due(&self, request: &CaptureRequest, all: bool) -> Result<Vec<TableId>> {
        let noted = self.members.lock().expect("nothing panics while holding it").clone();
        let schema = &self.database.config().schema;
        let connection = self.database.connect().await?;
        let names: Vec<TableId> = noted.keys().cloned().collect();
        let now = membership::memberships(&connection, &self.options.publication, &names, schema).await?;
        let kinds = membership::kinds(&connection, &self.options.publication).await?;
        let switched = {
            let then = self.kinds.lock().expect("nothing panics while holding it");
            then.is_some() && kinds.is_some() && *then != kinds
        };
        let back = noted
            .iter()
            .zip(now)
            .filter(|((_, then), now)| now.as_ref().is_some_and(|now| switched || now.by != **then));
        let mut due: Vec<TableId> = back.map(|((table, _), _)| table.clone()).collect();
        if all {
            due.extend(self.newcomers_on(&connection, request).await?);
        }
        let mut writers = self.writers.lock().await;
        writers.look(&connection, &due, schema).await?;
        connection.recycle();
        due.retain(|table| !writers.has(table));
        Ok(due)
    }

    /// Whether the log goes on where a position stands; nothing is changed.
    pub async fn outlook(&self, after: Option<&Position>) -> Result<Outlook> {
        let connection = self.database.connect().await?;
        slot::check_server(&connection).await?;
        let looked = async {
            let Some(after) = after else {
                let state = slot::find(&connection, &self.options.slot).await?;
                if let Some(state) = &state {
                    usable(&self.options.slot, state)?;
                }
                return Ok(Outlook::Begins {
                    slot_is_there: state.is_some(),
                });
            };
            let mut link = Replication::connect(&self.database).await?;
            let judged = self.judge(&connection, &mut link, after).await?;
            Ok(match judged.verdict {
                Ok(()) => Outlook::GoesOn { behind: judged.behind },
                Err(e) => Outlook::Refused(e),
            })
        };
        let looked = looked.await;
        connection.recycle();
        looked
    }

    /// Checks and completes what the log needs at the server, and says from where it is read.
    async fn start(
        &self,
        connection: &Connection,
        link: &mut Replication,
        after: Option<&Position>,
        followed: &[Followed],
    ) -> Result<Started> {
        let name = &self.options.slot;
        let keyed = || followed.iter().filter(|f| !f.key.is_empty());
        let at = |log: LogPosition, beside: BackfillPosition| Started {
            after: BackfillPosition {
                log: Some(log.encode()),
                ..beside
            },
            position: log,
            repaired: false,
        };
        let Some(after) = after else {
            let (_, origin) = self.origin(connection, link).await?;
            let lsn = match slot::find(connection, name).await? {
                Some(state) => {
                    let lsn = usable(name, &state)?;
                    let names: Vec<TableId> = followed.iter().map(|f| f.read.table.clone()).collect();
                    membership::settle_all(connection, &names, &self.database.config().schema).await?;
                    lsn
                }
                None if self.options.create => slot::create(connection, &self.options).await?,
                None => {
                    return Err(
                        Error::new(code::LOG_SETUP, format!("the replication slot {name} does not exist")).hint(
                            format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput');"),
                        ),
                    );
                }
            };
            let pending = keyed().filter_map(|f| match f.initial {
                Initial::Load => Some(Pending::load(f.read.table.clone())),
                Initial::Resync => Some(Pending::resync(f.read.table.clone())),
                Initial::Skip => None,
            });
            let beside = BackfillPosition {
                pending: pending.collect(),
                ..BackfillPosition::default()
            };
            return Ok(at(LogPosition::new(lsn, origin), beside));
        };
        let judged = self.judge(connection, link, after).await?;
        let (stored, origin) = (judged.stored, judged.origin);
        match judged.verdict {
            Ok(()) => Ok(at(LogPosition { origin, ..stored }, judged.after)),
            Err(e) if self.options.repair.holds() => {
                tracing::warn!(error = %e, "the log is made good by a new slot and a comparison of every table");
                logs::must_compare(followed.iter().map(|f| (&f.read.table, &f.key[..])))?;
                if judged.slot_is_there {
                    slot::wait_free(connection, name, self.options.status_interval).await?;
                    slot::drop(connection, name).await?;
                }
                let lsn = slot::create(connection, &self.options).await?;
                let beside = BackfillPosition {
                    pending: keyed().map(|f| Pending::resync(f.read.table.clone())).collect(),
                    ..judged.after
                };
                let mut position = LogPosition { lsn, ..stored };
                if position.origin.is_another_history(&origin) {
                    // There columns that came later have other numbers.
                    position.numbers.clear();
                    position.names.clear();
                }
                position.origin = origin;
                Ok(Started {
                    repaired: true,
                    ..at(position, beside)
                })
            }
            Err(e) => Err(e),
        }
    }

    async fn open_log(&self, after: Option<&Position>, context: &ReadContext) -> Result<Box<dyn Reader>> {
        let mut followed = self.followed.lock().expect("nothing panics while holding it").clone();
        let all = self.all.load(Ordering::Relaxed);
        if followed.is_empty() {
            return Err(Error::bug(
                "a log is opened before it is known which tables it is about",
            ));
        }
        let config = self.database.config();
        let connection = self.database.connect().await?;
        slot::check_server(&connection).await?;
        let timeline = Timeline::of(&connection, &self.database).await?;
        let messages = connection.version() >= 140_000;
        if !messages && self.options.watermarks == Watermarks::Message {
            return Err(Error::new(
                code::SERVER_VERSION,
                "PostgreSQL before 14 does not show messages in its log",
            )
            .hint("use watermarks by table"));
        }
        let names: Vec<TableId> = followed.iter().map(|f| f.read.table.clone()).collect();
        // What somebody took out of the publication is their word, where it says what is followed.
        let wanted = if all { &[] } else { names.as_slice() };
        let publication = slot::publication(&connection, &self.options, wanted, &config.schema, Missing::Make)
            .await
            .map_err(|e| match e.code() == code::TABLE_MISSING {
                true => e.hint_instead("take it out of `tables` (its copy at the destination stays), or make it again"),
                false => e,
            })?;
        let mut link = Replication::connect(&self.database).await?;
        let from = self.from.lock().expect("nothing panics while holding it").clone();
        let after = after.or(from.as_ref());
        let Started {
            mut position,
            after: mut start,
            repaired,
        } = self.start(&connection, &mut link, after, &followed).await?;
        let Missed { missed, whole, out } = self.missed(&connection, &mut position, &followed, repaired).await?;
        followed.retain(|f| !out.contains(&f.read.table));
        start.pending.retain(|p| !out.contains(&p.table));
        let absent = told_absent(&connection, &self.options.publication, &names, &config.schema, all).await?;
        self.steering.absent(absent);
        let mut shapes = Vec::with_capacity(followed.len());
        for f in &followed {
            let table = &f.read.table;
            let all_along = !repaired && !missed.contains(table);
            let loaded = Shape::load(
                &connection,
                f,
                &position,
                all_along,
                (&publication, whole.contains(table)),
                (&config.schema, self.options.drift),
            )
            .await?;
            let key = loaded.shape.key_now();
            identity::check_followed_on(&connection, (table, loaded.shape.oid), &key).await?;
            if let Some(why) = loaded.anew {
                tracing::warn!(%table, "{why}: the table is read anew");
            }
            if loaded.anew.is_some() || missed.contains(table) {
                if f.key.is_empty() {
                    let why = loaded.anew.unwrap_or("the log does not tell all of its changes");
                    return Err(membership::not_comparable(table, why));
                }
                logs::compare(&mut start.pending, table);
            }
            position.keep(&loaded.shape);
            shapes.push(loaded.shape);
        }
        start.log = Some(position.encode());
        self.steering.opened(position.standing(), &start);
        // A type without a binary form here may be in any published table: then everything comes as text.
        let binary = messages && !self.as_text.load(Ordering::Relaxed) && shapes.iter().all(Shape::is_binary);
        slot::wait_free(&connection, &self.options.slot, self.options.status_interval).await?;
        let row = connection
            .query_one(
                "SELECT pg_catalog.txid_snapshot_xmax(pg_catalog.txid_current_snapshot())",
                &[],
            )
            .await
            .map_err(|e| connection.error(e, "asking for the next transaction"))?;
        let xid_near = row.get::<_, i64>(0) as u64;
        let end = end_of_log(&connection).await?;
        connection.recycle();
        let behind = end.saturating_sub(position.lsn);
        let peek = self.options.catch_up_bytes.is_some_and(|limit| behind > limit);
        tracing::info!(slot = self.options.slot, behind, binary, peek, "following the log");
        let route = Route {
            database: self.database.clone(),
            slot: self.options.slot.clone(),
            publication: self.options.publication.clone(),
            binary,
            messages,
            catch_up_bytes: self.options.catch_up_bytes,
            peek_changes: self.options.peek_changes,
            queue_bytes: self.options.queue_bytes,
            max_row_bytes: context.max_row_bytes,
            status_interval: self.options.status_interval,
            lag_check: self.options.lag_check,
            steering: self.steering.clone(),
        };
        let world = World {
            database: self.database.clone(),
            options: self.options.clone(),
            shapes: Arc::new(Shapes::new(shapes)),
            marks: Arc::new(Marks::default()),
            remade: Arc::default(),
            as_text: self.as_text.clone(),
            steering: self.steering.clone(),
        };
        let chunks = Arc::new(Chunks {
            database: self.database.clone(),
            options: self.options.clone(),
            shapes: world.shapes.clone(),
            marks: world.marks.clone(),
            widths: logs::Widths::default(),
            remade: world.remade.clone(),
        });
        let until = self.options.until_now.then_some(end);
        let feed = Feed::start(route, link, position.lsn, peek);
        let heartbeat = self.heartbeat();
        let log = LogReader::new(
            world,
            context.clone(),
            feed,
            binary,
            position,
            timeline,
            xid_near,
            until,
            heartbeat,
        );
        let inner = Backfill::new(Box::new(log), chunks, start, self.options.chunk_rows)
            .hearing(self.steering.requests().clone());
        let watch = Watch {
            database: self.database.clone(),
            steering: self.steering.clone(),
            publication: self.options.publication.clone(),
            tables: (names, all),
        };
        let watch = watch.run(WATCH);
        Ok(Box::new(logs::Follow::new(
            inner,
            self.steering.clone(),
            |p| Ok(LogPosition::parse(p)?.standing()),
            watch,
        )))
    }

    /// Notes by what the tables are in the publication. Says which of them were taken out of it and put back since that
    /// was noted last: the log does not have what happened to them meanwhile; which are published as a whole, not
    /// partition by partition; and which are left out.
    async fn missed(
        &self,
        connection: &Connection,
        position: &mut LogPosition,
        followed: &[Followed],
        repaired: bool,
    ) -> Result<Missed> {
        let schema = &self.database.config().schema;
        let names: Vec<TableId> = followed.iter().map(|f| f.read.table.clone()).collect();
        let now = membership::memberships(connection, &self.options.publication, &names, schema).await?;
        let (mut members, mut noted, mut missed) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
        let (mut whole, mut out) = (BTreeSet::new(), BTreeSet::new());
        let kinds = membership::kinds(connection, &self.options.publication).await?;
        let switched = position
            .members
            .get(membership::KINDS)
            .is_some_and(|then| Some(then) != kinds.as_ref());
        if switched && !repaired {
            tracing::warn!(
                publication = self.options.publication,
                "the publication was altered: the log may not have every kind of change, so every table is compared"
            );
        }
        self.kinds
            .lock()
            .expect("nothing panics while holding it")
            .clone_from(&kinds);
        members.extend(kinds.map(|kinds| (membership::KINDS.to_owned(), kinds)));
        for (f, now) in followed.iter().zip(now) {
            let table = &f.read.table;
            let name = table.to_string();
            let Some(now) = now else {
                members.insert(name, membership::OUT.to_owned());
                noted.insert(table.clone(), membership::OUT.to_owned());
                out.insert(table.clone());
                continue;
            };
            whole.extend(now.whole.then(|| table.clone()));
            let now = now.by;
            let then = position.members.get(&name).or(f.member.as_ref());
            if !repaired && then.is_some_and(|then| *then != now) {
                tracing::warn!(
                    %table,
                    "the table was not in the publication all the time, or not with all of its rows: it is compared"
                );
                missed.push(table.clone());
            } else if switched && !repaired {
                missed.push(table.clone());
            }
            members.insert(name, now.clone());
            noted.insert(table.clone(), now);
        }
        membership::settle_all(connection, &missed, schema).await?;
        position.members = members;
        *self.members.lock().expect("nothing panics while holding it") = noted;
        Ok(Missed { missed, whole, out })
    }

    /// Writes into the log now and then, so that the slot of an idle database moves on; ends when dropped.
    fn heartbeat(&self) -> DropGuard {
        let token = CancellationToken::new();
        if let Some(pause) = self
            .options
            .heartbeat
            .filter(|_| self.options.watermarks != Watermarks::ReadOnly)
        {
            let (database, end, slot) = (self.database.clone(), token.clone(), self.options.slot.clone());
            tokio::spawn(async move {
                let mut told = false;
                while tokio::time::timeout(pause, end.cancelled()).await.is_err() {
                    match beat(&database, &slot).await {
                        Ok(()) => told = false,
                        Err(e) if !told => {
                            tracing::warn!(error = %e, "the heartbeat could not be written; the slot moves on by keep-alives alone");
                            told = true;
                        }
                        Err(_) => {}
                    }
                }
            });
        }
        token.drop_guard()
    }
}

async fn beat(database: &Postgres, slot: &str) -> Result<()> {
    let connection = database.connect().await?;
    connection
        .query(
            "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
             pg_catalog.pg_logical_emit_message(true, $1, $2::text)",
            &[&HEARTBEAT_PREFIX, &slot],
        )
        .await
        .map_err(|e| connection.error(e, "writing a heartbeat"))?;
    connection.recycle();
    Ok(())
}

/// The place from which a slot that was there already is read for the first time.
pub(super) fn usable(name: &str, state: &SlotState) -> Result<Lsn> {
    let fix = format!("SELECT pg_drop_replication_slot('{name}'); then run again: it is made anew");
    if let Some(why) = &state.lost {
        return Err(Error::new(
            code::LOG_LOST,
            format!("the replication slot {name} was given up by the server ({why})"),
        )
        .hint(fix));
    }
    state.confirmed.ok_or_else(|| {
        Error::new(
            code::LOG_SETUP,
            format!("the making of the replication slot {name} was never finished"),
        )
        .hint(fix)
    })
}

#[async_trait]
impl Source for LogSource {
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

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        self.tables.collations(table, columns).await
    }

    async fn assignments(&self) -> Result<BoxStream<'static, Assignment>> {
        Ok(logs::assignments(self.options.until_now))
    }

    async fn open(
        &self,
        _: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        if partition.work != Work::Log {
            return Err(Error::new(code::UNSUPPORTED, "a log is not read by slices"));
        }
        logs::opened(context, self.open_log(after, context)).await
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let mut found = examine::reading(&self.database, tables).await;
        found.extend(self.examine_log(tables).await);
        found
    }
}
