//! The log of a server as a source of the engine.

use super::super::client::{Mysql, Session, number, text};
use super::super::source::{MysqlSource, snapshot};
use super::super::{ENGINE, catalog, examine};
use super::capture;
use super::charset::Charsets;
use super::chunks::{self, Chunks, Marks, place};
use super::dump::Dump;
use super::gtid::Gtids;
use super::position::{LogPosition, Origin, Place, REPAIR, shown};
use super::reader::{LogReader, World};
use super::shape::{Followed, Shape, Shapes};
use super::statements::is_same;
use crate::logs::{self, Drift};
use crate::postgres::log::capture::{self as plans, CaptureRequest, Initial};
use crate::postgres::log::status::{LogStatus, Standing, Steering, at_rest};
use crate::postgres::log::{LogOptions, Outlook, Watermarks};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use synctool_core::backfill::{Backfill, BackfillPosition, Pending};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::Collation;
use synctool_core::plan::{Partition, Plan, ReadSpec, Work};
use synctool_core::progress::Position;
use synctool_core::retry::oftener_at_first;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{Assignment, Finding, ReadContext, Reader, Source, TableInfo};

/// How often the end of the log is looked at, for those who ask how far we are.
const WATCH: Duration = Duration::from_secs(1);

/// How often it is looked whether every followed table is there; oftener at first.
const MEMBERS: Duration = Duration::from_secs(10);

/// What is told of a followed table that is not there.
const GONE: &str = "no table has its name at the source any more (dropped, or renamed): its copy stays as it is, \
    and is read anew when a table gets that name again";

/// The log of a MariaDB server, and the tables of one database in it.
///
/// [`BinlogSource::follow`] says which tables it is about, as the plan has them; then the engine follows it.
#[derive(Debug)]
pub struct BinlogSource {
    database: Mysql,
    tables: MysqlSource,
    options: LogOptions,
    followed: Mutex<Vec<Followed>>,
    /// Where the log begins for a plan that goes on where another stood.
    from: Mutex<Option<Position>>,
    steering: Arc<Steering>,
    /// New tables that are left out, and why, as it was told.
    left_out: Mutex<BTreeMap<TableId, String>>,
}

/// A log that goes on where a position stands.
struct GoesOn {
    dump: Dump,
    position: LogPosition,
    after: BackfillPosition,
    /// It does not go on where it stood: every table is compared.
    repaired: bool,
}

impl Mysql {
    /// The server's log as a source.
    pub fn log(&self, options: LogOptions) -> Result<BinlogSource> {
        Ok(BinlogSource {
            database: self.clone(),
            tables: MysqlSource::new(self.clone()),
            options,
            followed: Mutex::default(),
            from: Mutex::default(),
            steering: Arc::new(Steering::showing(shown)),
            left_out: Mutex::default(),
        })
    }
}

impl BinlogSource {
    /// How it is followed.
    pub fn options(&self) -> &LogOptions {
        &self.options
    }

    /// What steers it while it is followed.
    pub fn steering(&self) -> &Arc<Steering> {
        &self.steering
    }

    pub(super) fn database(&self) -> &Mysql {
        &self.database
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

    /// The number that the server knows us by, made of the name of this log: no two pipelines share one.
    fn replica_id(&self) -> u32 {
        let mut hasher = DefaultHasher::new();
        ("synctool", &self.options.slot).hash(&mut hasher);
        1 << 30 | hasher.finish() as u32 >> 2
    }

    /// What is to be read again of a followed table: all of it, or the rows of some keys as people write them.
    pub async fn refresh(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Pending> {
        let followed = self.followed();
        let default = &self.database.config().database;
        let full = |t: &TableId| TableId::new(t.schema.as_deref().unwrap_or(default), &t.name);
        let Some(followed) = followed.iter().find(|f| full(&f.read.table) == full(table)) else {
            let names: Vec<String> = followed.iter().map(|f| f.read.table.to_string()).collect();
            return Err(Error::new(code::TABLE_MISSING, format!("{table} is not followed"))
                .hint(format!("followed are: {}", names.join(", "))));
        };
        // Says whether there is a key, too.
        let keys = chunks::canonical_keys(&self.database, followed, keys).await?;
        Ok(match keys.is_empty() {
            true => Pending::resync(followed.read.table.clone()),
            false => Pending::keys(followed.read.table.clone(), keys),
        })
    }

    /// Tables of the database that are not followed, although they could be: they came since the plan was made.
    pub async fn newcomers(&self, request: &CaptureRequest) -> Result<Vec<TableId>> {
        let followed = self.followed();
        let mut session = self.database.connect().await?;
        let all = tables_of(&mut session).await?;
        let default = &self.database.config().database;
        let is_followed = |t: &TableId| {
            followed
                .iter()
                .any(|f| f.read.table.name == t.name && f.read.table.schema.as_ref().unwrap_or(default) == default)
        };
        let mut found = Vec::new();
        for table in all.into_iter().filter(|t| !is_followed(t)) {
            let checked = capture::check_newcomer(&mut session, request, &table).await;
            if logs::can_follow(&self.left_out, &table, checked)? {
                found.push(table);
            }
        }
        session.recycle();
        Ok(found)
    }

    /// Whether the log goes on where a position stands; nothing is changed.
    pub async fn outlook(&self, after: Option<&Position>) -> Result<Outlook> {
        let mut session = self.database.connect().await?;
        check_server(&mut session).await?;
        let Some(after) = after else {
            session.recycle();
            return Ok(Outlook::BeginsNow);
        };
        // Known by another number than whoever follows it now: the server ends the elder of two with one number.
        let stranger = 1 << 31 | rand_id();
        let found = match self.go_on(&mut session, stranger, after).await {
            Ok(on) => Outlook::GoesOn {
                behind: behind(&mut session, &on.position.place).await?,
            },
            Err(e) if e.kind().is_transient() => return Err(e),
            Err(e) => Outlook::Refused(e),
        };
        session.recycle();
        Ok(found)
    }

    /// Opens the log where a position stands; refuses another log, and one whose beginning is gone.
    async fn go_on(&self, session: &mut Session, id: u32, after: &Position) -> Result<GoesOn> {
        let after = BackfillPosition::parse(after)?;
        let mut stored = match &after.log {
            Some(log) => LogPosition::parse(log)?,
            None => {
                return Err(Error::new(
                    code::STATE_STORE,
                    "a stored position has no place in the log",
                ));
            }
        };
        let origin = origin(session).await?;
        let same = origin == stored.origin;
        let end = place(session).await?;
        let refuse = |e: Error| match e.kind().is_transient() || e.code() == code::PERMISSION {
            true => e,
            false => e.at("position", stored.gtids.to_string()).hint(REPAIR),
        };
        let other = || {
            refuse(Error::new(
                code::LOG_OTHER_SERVER,
                format!(
                    "the position belongs to server {}, and this is server {}",
                    stored.origin.server_id, origin.server_id
                ),
            ))
        };
        let proved = match &stored.last {
            None => None,
            Some(last) => {
                let begun = async {
                    let mut dump = Dump::open(&self.database, id, &last.before, &end).await?;
                    let place = dump.prove(last, &end).await?;
                    Ok::<_, Error>((dump, place))
                };
                match begun.await {
                    Ok(begun) => Some(begun),
                    // Its file may be the last one that was purged, and the next one be there.
                    Err(e) if same && e.code() == code::LOG_LOST => None,
                    Err(e) => return Err(refuse(e)),
                }
            }
        };
        let dump = match proved {
            Some((dump, place)) => {
                stored.place = place;
                dump
            }
            None if !same => return Err(other()),
            None => {
                let there = gtids_at(session, &stored.place).await?;
                if end < stored.place || there.is_some_and(|there| there != stored.gtids) {
                    return Err(refuse(Error::new(
                        code::LOG_DIVERGED,
                        "the server's log does not have the position in its place: it was reset or restored",
                    )));
                }
                {
                    let dump = Dump::open(&self.database, id, &stored.gtids, &end).await;
                    dump.map_err(refuse)?
                }
            }
        };
        stored.origin = origin;
        Ok(GoesOn {
            dump,
            position: stored,
            after,
            repaired: false,
        })
    }

    /// Opens the log from now on.
    async fn begin(&self, session: &mut Session, id: u32) -> Result<(Dump, LogPosition)> {
        // What the place says is committed, and can be seen by every snapshot from now on.
        snapshot(session).await?;
        let place = place(session).await?;
        session.run("COMMIT", "looking at the log").await?;
        let position = LogPosition {
            gtids: gtids_at(session, &place).await?.unwrap_or_default(),
            place,
            origin: origin(session).await?,
            ..LogPosition::nowhere()
        };
        let dump = Dump::open(&self.database, id, &position.gtids, &position.place).await?;
        Ok((dump, position))
    }

    /// Checks what the log needs at the server, and opens it where it is to be read from.
    async fn start(&self, session: &mut Session, after: Option<&Position>, followed: &[Followed]) -> Result<GoesOn> {
        let id = self.replica_id();
        let keyed = || followed.iter().filter(|f| !f.key.is_empty());
        let Some(after) = after else {
            let (dump, position) = self.begin(session, id).await?;
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
            return Ok(GoesOn {
                dump,
                position,
                after,
                repaired: false,
            });
        };
        match self.go_on(session, id, after).await {
            Err(e) if self.options.repair.holds() && !e.kind().is_transient() && e.code() != code::PERMISSION => {
                tracing::warn!(error = %e, "the log is followed from now on, and every table is compared");
                logs::must_compare(followed.iter().map(|f| (&f.read.table, &f.key[..])))?;
                let stored = BackfillPosition::parse(after)?;
                let (added, dropped, tables) = match stored.log.as_ref().map(LogPosition::parse).transpose()? {
                    Some(log) => (log.added, log.dropped, log.tables),
                    None => Default::default(),
                };
                let (dump, position) = self.begin(session, id).await?;
                let position = LogPosition {
                    added,
                    dropped,
                    tables,
                    ..position
                };
                let after = BackfillPosition {
                    log: Some(position.encode()),
                    pending: keyed().map(|f| Pending::resync(f.read.table.clone())).collect(),
                    taken: stored.taken,
                    cancelled: stored.cancelled,
                };
                Ok(GoesOn {
                    dump,
                    position,
                    after,
                    repaired: true,
                })
            }
            other => other,
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
            return Err(
                Error::new(code::UNSUPPORTED, "MariaDB's log is read without a table of watermarks")
                    .hint("leave watermarks out: chunks are marked by the place of their snapshot"),
            );
        }
        let mut session = self.database.connect().await?;
        check_server(&mut session).await?;
        let from = self.from.lock().expect("nothing panics while holding it").clone();
        let after = after.or(from.as_ref());
        let started = self.start(&mut session, after, &followed).await?;
        // Where no chunk follows, nothing but this keeps the place.
        let keeps_place = after.is_none() && started.after.pending.is_empty();
        let (dump, mut position) = (started.dump, started.position);
        self.steering.opened(standing(&position), &started.after);
        let mut shapes = Vec::with_capacity(followed.len());
        for f in &followed {
            let shape = Shape::load(&mut session, f, &position, !started.repaired, self.options.drift).await?;
            shape.check(&mut session).await?;
            shape.note(&mut position);
            shapes.push(shape);
        }
        let charsets = Charsets::load(&mut session).await?;
        let end = place(&mut session).await?;
        session.recycle();
        tracing::info!(from = %position.gtids, place = %position.place, %end, "following the log");
        let world = World {
            database: self.database.clone(),
            options: self.options.clone(),
            shapes: Arc::new(Shapes::new(shapes)),
            marks: Arc::new(Marks::default()),
            remade: Arc::default(),
            steering: self.steering.clone(),
        };
        let chunks = Arc::new(Chunks {
            database: self.database.clone(),
            shapes: world.shapes.clone(),
            marks: world.marks.clone(),
            widths: logs::Widths::default(),
            remade: world.remade.clone(),
        });
        let until = self.options.until_now.then_some(end);
        let mut log = LogReader::new(world, context.clone(), dump, charsets, position, until);
        if keeps_place {
            log.keep_place();
        }
        let inner = Backfill::new(Box::new(log), chunks, started.after, self.options.chunk_rows)
            .hearing(self.steering.requests().clone());
        let tables = followed.iter().map(|f| f.read.table.clone()).collect();
        let watch = watch(self.database.clone(), self.steering.clone(), tables);
        Ok(Box::new(logs::Follow::new(
            inner,
            self.steering.clone(),
            |p| Ok(standing(&LogPosition::parse(p)?)),
            watch,
        )))
    }

    /// How far a log is that nobody follows at the moment, by the position that the destination holds.
    pub async fn at_rest(&self, plan: &Plan, position: Option<&Position>) -> Result<LogStatus> {
        let stored = plans::position_of(plan, position.cloned());
        let stored = stored.as_ref().map(BackfillPosition::parse).transpose()?;
        let log = match stored.as_ref().and_then(|p| p.log.as_ref()) {
            Some(log) => Some(LogPosition::parse(log)?),
            None => None,
        };
        let mut session = self.database.connect().await?;
        let end = place(&mut session).await?;
        let files = files(&mut session, &end).await;
        let names: Vec<TableId> = plan.tables.iter().map(|t| t.read.table.clone()).collect();
        let mut absent = match &stored {
            Some(_) => gone(&mut session, &names).await?,
            None => BTreeMap::new(),
        };
        session.recycle();
        let mut status = at_rest(
            plan,
            &self.options,
            stored.as_ref(),
            log.as_ref().map(standing),
            (end.ordinal(), &files),
            shown,
        );
        for table in &mut status.tables {
            table.absent = absent.remove(&table.table);
        }
        Ok(status)
    }

    /// The columns of each table of a plan as they are now, by their names at the source and at the destination: those of
    /// the plan by the names that they have by now, without those that the policy let go, and those that came since,
    /// whether the log has shown them or not.
    pub async fn columns(&self, plan: &Plan, position: Option<&Position>) -> Result<Vec<Vec<(String, String)>>> {
        let stored = plans::position_of(plan, position.cloned());
        let stored = stored.as_ref().map(BackfillPosition::parse).transpose()?;
        let log = stored
            .and_then(|p| p.log)
            .as_ref()
            .map(LogPosition::parse)
            .transpose()?;
        let log = log.unwrap_or_else(LogPosition::nowhere);
        let mut session = self.database.connect().await?;
        let drift = self.options.drift;
        let mut tables = Vec::with_capacity(plan.tables.len());
        for table in &plan.tables {
            let shape = Shape::load(&mut session, &Followed::of(plan, table), &log, true, drift).await?;
            let there = catalog::columns(&mut session, &table.read.table).await?;
            let is_there = |name: &str| there.iter().any(|c| is_same(&c.column.name, name));
            let ours = shape.columns.iter().filter(|c| c.is_there() && is_there(&c.source));
            let mut columns: Vec<(String, String)> = ours.map(|c| (c.source.clone(), c.column.name.clone())).collect();
            let plain = there.iter().map(|c| &c.column).filter(|c| !c.generated);
            for column in plain.filter(|_| drift != Drift::Discard) {
                let known = |(now, name): &(String, String)| is_same(now, &column.name) || *name == column.name;
                if !columns.iter().any(known) {
                    columns.push((column.name.clone(), column.name.clone()));
                }
            }
            tables.push(columns);
        }
        session.recycle();
        Ok(tables)
    }
}

/// The transactions before a place of the log; `None` where the server does not have the place.
async fn gtids_at(session: &mut Session, place: &Place) -> Result<Option<Gtids>> {
    let file = super::super::sql::literal(&place.file);
    let row = session
        .row(
            &format!("SELECT BINLOG_GTID_POS({file}, {})", place.offset),
            "asking for the position in the log",
        )
        .await?;
    text(&row, 0)
        .map(|gtids| {
            let wrong = |why| Error::new(code::SERVER_ERROR, format!("the server's position is {why}"));
            gtids.parse().map_err(wrong)
        })
        .transpose()
}

/// A number that is nobody else's.
pub(super) fn rand_id() -> u32 {
    uuid::Uuid::new_v4().as_u128() as u32 >> 1
}

fn standing(position: &LogPosition) -> Standing {
    Standing {
        at: position.place.ordinal(),
        committed_at: position.committed_at,
    }
}

/// Refuses MySQL itself, by name.
fn check_mariadb(mariadb: bool) -> Result<()> {
    match mariadb {
        true => Ok(()),
        false => Err(Error::new(
            code::UNSUPPORTED,
            "the log of MySQL itself is not followed yet, MariaDB's is",
        )
        .hint("read its tables by a delta or hash strategy")),
    }
}

/// Refuses a server whose log cannot be followed.
pub(super) async fn check_server(session: &mut Session) -> Result<()> {
    check_mariadb(session.flavor().mariadb)?;
    let row = session
        .row(
            "SELECT @@log_bin, @@global.binlog_format, @@global.binlog_row_image",
            "looking at the log's settings",
        )
        .await?;
    let setup = |what: String, hint: &str| Err(Error::new(code::LOG_SETUP, what).hint(hint));
    if number(&row, 0) != 1 {
        return setup(
            "the server keeps no binary log".into(),
            "set log_bin in the server's configuration file and restart it",
        );
    }
    let format = text(&row, 1).unwrap_or_default();
    if !format.eq_ignore_ascii_case("ROW") {
        return setup(
            format!("binlog_format is {format}: the log has statements in place of rows"),
            "SET GLOBAL binlog_format = 'ROW', and the same in the server's configuration file; sessions that are open keep theirs",
        );
    }
    let image = text(&row, 2).unwrap_or_default();
    if !image.to_ascii_uppercase().starts_with("FULL") {
        return setup(
            format!("binlog_row_image is {image}: the log has parts of rows only"),
            "SET GLOBAL binlog_row_image = 'FULL', and the same in the server's configuration file; sessions that are open keep theirs",
        );
    }
    Ok(())
}

/// Which server this is.
async fn origin(session: &mut Session) -> Result<Origin> {
    let id = session.row("SELECT @@server_id", "identifying the server").await?;
    let uid = session
        .rows("SHOW GLOBAL VARIABLES LIKE 'server\\_uid'", "identifying the server")
        .await?;
    Ok(Origin {
        server_id: number(&id, 0) as u32,
        uid: uid.first().and_then(|r| text(r, 1)),
    })
}

/// Bytes of the log behind a place, as far as this user may know.
async fn behind(session: &mut Session, from: &Place) -> Result<u64> {
    let end = place(session).await?;
    let files = files(session, &end).await;
    Ok(logs::bytes_between(&files, from.ordinal(), end.ordinal()))
}

/// The files of the log, each with the place of its beginning and its length; the last one alone where this user may not
/// see the others.
async fn files(session: &mut Session, end: &Place) -> Vec<(u64, u64)> {
    let beginning = |file: String| Place { file, offset: 0 }.ordinal();
    let listed = session.rows("SHOW BINARY LOGS", "listing the files of the log").await;
    let mut files: Vec<(u64, u64)> = listed
        .iter()
        .flatten()
        .filter_map(|r| Some((beginning(text(r, 0)?), number(r, 1))))
        .collect();
    if files.is_empty() {
        files.push((beginning(end.file.clone()), end.offset));
    }
    files
}

/// The tables of the connection's database that can be followed.
pub(super) async fn tables_of(session: &mut Session) -> Result<Vec<TableId>> {
    let database = session.database().config().database.clone();
    let all = catalog::tables(session, Some(&database)).await?;
    Ok(all.into_iter().filter(|t| t.kind == "table").map(|t| t.table).collect())
}

/// Those of the followed tables that are not there, and what is told of them.
async fn gone(session: &mut Session, tables: &[TableId]) -> Result<BTreeMap<String, String>> {
    let mut gone = BTreeMap::new();
    for table in tables {
        if !catalog::is_there(session, table).await? {
            gone.insert(table.to_string(), GONE.to_owned());
        }
    }
    Ok(gone)
}

/// Looks at the end of the log, and whether its tables are there, as long as it is followed.
async fn watch(database: Mysql, steering: Arc<Steering>, tables: Vec<TableId>) {
    let mut file = String::new();
    let (begun, mut looked) = (Instant::now(), None::<Instant>);
    loop {
        if let Ok(mut session) = database.connect().await
            && let Ok(end) = place(&mut session).await
        {
            // Those that are written to their end stay as they are.
            if end.file != file {
                steering.files(files(&mut session, &end).await);
                file.clone_from(&end.file);
            }
            let pause = oftener_at_first(MEMBERS, begun.elapsed());
            if looked.is_none_or(|then| then.elapsed() >= pause)
                && let Ok(gone) = gone(&mut session, &tables).await
            {
                steering.absent(gone);
                looked = Some(Instant::now());
            }
            session.recycle();
            steering.ends(end.ordinal());
        }
        tokio::time::sleep(WATCH).await;
    }
}

#[async_trait]
impl Source for BinlogSource {
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
        let mut found = examine::reading(&self.database, tables, false).await;
        found.extend(self.examine_log(tables).await);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mysql_itself_is_refused_by_name() {
        assert!(check_mariadb(true).is_ok());
        let e = check_mariadb(false).expect_err("refused");
        assert!(
            e.code() == code::UNSUPPORTED && e.message().contains("MySQL") && e.next_step().is_some(),
            "{e}"
        );
    }
}
