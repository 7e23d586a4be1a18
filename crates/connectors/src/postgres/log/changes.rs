//! Every change of a database for a program of one's own: name the tables, take events, acknowledge what is safe.
//!
//! ```no_run
//! # async fn example() -> synctool_core::error::Result<()> {
//! use synctool_connectors::postgres::log::changes::Changes;
//! use synctool_core::change::Event;
//!
//! let mut changes = Changes::from_env()?.for_tables(["users", "visit"]).open(None).await?;
//! while let Some(event) = changes.next().await? {
//!     match event {
//!         Event::Rows(batch) => println!("{} rows of {}", batch.len(), batch.table),
//!         // Once everything so far is safe: the database may forget it, and the position resumes right behind it.
//!         Event::Boundary { position, .. } => changes.acknowledge(&position).await?,
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Row by row there are [`Changes::next_change`] and [`Changes::into_stream`], a [`Handler`](super::consume::Handler) and
//! a [`Batcher`](super::consume::Batcher). Tables, or rows by key, are read again while changes go on
//! ([`Changes::refresh`]). [`Changes::control`] does that, pauses, resumes, and tells how far the log is, while somebody
//! else takes the changes.

use super::super::PostgresConfig;
use super::super::catalog::{self, Described};
use super::super::client::{Connection, Postgres};
use super::capture;
use super::consume::{Change, Keys};
use super::position::LogPosition;
use super::shape::{self, Followed, Initial};
use super::slot::Missing;
use super::source::LogSource;
use super::status::{LogStatus, Steering, Watched};
use super::{LogOptions, identity, membership, slot};
use crate::logs;
use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use synctool_core::backfill::{BackfillPosition, Pause, Pending, Request, Wish};
use synctool_core::change::Event;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::ReadSpec;
use synctool_core::progress::Position;
use synctool_core::schema::TableId;
use synctool_core::source::{ReadContext, Reader, Source};

/// What to follow, before it is followed.
#[derive(Debug, Clone)]
pub struct ChangesBuilder {
    config: PostgresConfig,
    options: LogOptions,
    tables: Vec<String>,
    initial: Initial,
    keyless: bool,
    context: ReadContext,
}

/// Events of a database as they come, transaction by transaction: first the rows that are there, in chunks beside the
/// log, then every change.
pub struct Changes {
    reader: Box<dyn Reader>,
    control: Control,
    /// Rows that are taken apart and not handed out yet.
    pub(super) changes: VecDeque<Change>,
}

/// Steers changes from beside whoever takes them; clones may be anywhere.
#[derive(Debug, Clone)]
pub struct Control {
    source: Arc<LogSource>,
    keys: Arc<Keys>,
    watched: Arc<[Watched]>,
    asked: Arc<AtomicU64>,
    instance: u64,
}

impl Control {
    /// Reads rows again while changes go on: a whole table, or the rows of some keys. What was read comes as
    /// [`Change::Refresh`]; keys that are not there come as deletes.
    pub async fn refresh(&self, selection: Selection) -> Result<()> {
        let table = TableId::parse(&selection.table)?;
        let pending = self.source.refresh(&table, &selection.keys).await?;
        let wish = Wish::Read(Pending {
            replace: false,
            ..pending
        });
        self.ask(wish);
        Ok(())
    }

    /// Reads every followed table again that has a key, as [`Control::refresh`] reads one.
    pub fn refresh_all(&self) {
        for (table, _) in self.keys.iter().filter(|(_, key)| !key.is_empty()) {
            self.ask(Wish::Read(Pending::load(table.clone())));
        }
    }

    /// Gives up what is still to be read of a table. [`Control::status`] tells it until the table is refreshed.
    pub fn cancel(&self, table: &str) -> Result<()> {
        let parsed = TableId::parse(table)?;
        let known = self
            .keys
            .keys()
            .find(|t| t.name == parsed.name && (parsed.schema.is_none() || t.schema == parsed.schema));
        let known = known.ok_or_else(|| Error::new(code::TABLE_MISSING, format!("{table} is not followed")))?;
        self.ask(Wish::Cancel(known.clone()));
        Ok(())
    }

    fn ask(&self, wish: Wish) {
        let id = format!("{:016x}", self.asked.fetch_add(1, Ordering::Relaxed) ^ self.instance);
        self.source.steering().requests().ask(Request { id, wish });
    }

    /// Holds changes still, or only the reading of tables; or lets them go on.
    pub fn pause(&self, pause: Pause) {
        self.source.steering().requests().pause(pause);
    }

    /// How far the log is, per table, too.
    pub fn status(&self) -> LogStatus {
        self.source.steering().status_of(&self.watched, self.source.options())
    }
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Changes {
    /// Changes of a database.
    pub fn of(config: PostgresConfig) -> ChangesBuilder {
        ChangesBuilder {
            config,
            options: LogOptions::default(),
            tables: Vec::new(),
            initial: Initial::Load,
            keyless: false,
            context: ReadContext::default(),
        }
    }

    /// Changes of the database that the environment names: `POSTGRES_CONNSTR`, or `POSTGRES_HOST`, `POSTGRES_PORT`,
    /// `POSTGRES_USER`, `POSTGRES_PASSWORD` and `POSTGRES_NAME` (or `POSTGRES_DB`); and `DBSYNC_REPLSLOT` (else
    /// dbsync_replslot), `DBSYNC_PUBNAME` (dbsync_mypub), `DBSYNC_CTRL_NAMESPACE` (dbsync_ctrl), `DBSYNC_WM_TABLENAME`
    /// (dbsync_wmtable).
    pub fn from_env() -> Result<ChangesBuilder> {
        Changes::from_variables(|name| std::env::var(name).ok())
    }

    /// The same, from anything that knows variables.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<ChangesBuilder> {
        let set = |name: &str| variable(name).filter(|v| !v.is_empty());
        let config = match set("POSTGRES_CONNSTR") {
            Some(url) => PostgresConfig::from_url(&url)?,
            None => {
                let port = set("POSTGRES_PORT").unwrap_or_else(|| "5432".into());
                let port = port
                    .parse()
                    .map_err(|_| Error::new(code::CONFIG_URI, "POSTGRES_PORT is not the number of a port"))?;
                let user = set("POSTGRES_USER").unwrap_or_else(|| "postgres".into());
                let database = set("POSTGRES_NAME")
                    .or_else(|| set("POSTGRES_DB"))
                    .unwrap_or_else(|| user.clone());
                let host = set("POSTGRES_HOST").unwrap_or_else(|| "localhost".into());
                PostgresConfig {
                    password: set("POSTGRES_PASSWORD"),
                    ..PostgresConfig::new(host, port, user, database)
                }
            }
        };
        let mut builder = Changes::of(config);
        let name = |variable: &str, otherwise: &str| set(variable).unwrap_or_else(|| otherwise.into());
        builder.options.slot = name("DBSYNC_REPLSLOT", "dbsync_replslot");
        builder.options.publication = name("DBSYNC_PUBNAME", "dbsync_mypub");
        builder.options.control_schema = name("DBSYNC_CTRL_NAMESPACE", "dbsync_ctrl");
        builder.options.watermark_table = name("DBSYNC_WM_TABLENAME", "dbsync_wmtable");
        Ok(builder)
    }

    /// What steers these changes while somebody else takes them: get it before [`Changes::handle`],
    /// [`Changes::batches`] or [`Changes::into_stream`] takes the changes themselves.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    /// [`Control::refresh`].
    pub async fn refresh(&self, selection: Selection) -> Result<()> {
        self.control.refresh(selection).await
    }

    /// [`Control::refresh_all`].
    pub fn refresh_all(&self) {
        self.control.refresh_all();
    }

    /// [`Control::cancel`].
    pub fn cancel(&self, table: &str) -> Result<()> {
        self.control.cancel(table)
    }

    /// [`Control::pause`].
    pub fn pause(&self, pause: Pause) {
        self.control.pause(pause);
    }

    /// What steers the log, to be shared.
    pub fn steering(&self) -> Arc<Steering> {
        self.control.source.steering().clone()
    }

    /// [`Control::status`].
    pub fn status(&self) -> LogStatus {
        self.control.status()
    }

    /// The names of the columns that find a table's rows.
    pub(super) fn key_of(&self, table: &TableId) -> &[String] {
        self.control.keys.get(table).map_or(&[], Vec::as_slice)
    }

    /// Ends the log; the server has heard what was acknowledged.
    pub async fn close(self) -> Result<()> {
        drop(self.reader);
        let source = &self.control.source;
        let connection = source.database().connect().await?;
        let options = source.options();
        slot::wait_free(&connection, &options.slot, options.status_interval).await?;
        connection.recycle();
        Ok(())
    }

    /// The next event; `None` only where the builder was told to end. Cancel safe.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        self.reader.next().await
    }

    /// Everything up to this boundary's position is safe: the database may forget its log, and whoever opens at this
    /// position goes on right behind it. A long backlog is read part by part (`catch_up_bytes`), each when the one before it
    /// is safe: whoever acknowledges nothing waits there for ever.
    pub async fn acknowledge(&mut self, position: &Position) -> Result<()> {
        self.reader.acknowledge(position).await
    }
}

impl ChangesBuilder {
    /// How the database is reached.
    pub fn config(&self) -> &PostgresConfig {
        &self.config
    }

    /// How the log is followed: the names of slot and publication, and everything else.
    pub fn log_options(&self) -> &LogOptions {
        &self.options
    }

    /// The tables, `schema.table` or `table`. Without any, all of the publication.
    pub fn for_tables<S: Into<String>>(mut self, tables: impl IntoIterator<Item = S>) -> Self {
        self.tables.extend(tables.into_iter().map(Into::into));
        self
    }

    /// The replication slot, one per program.
    pub fn slot(mut self, name: impl Into<String>) -> Self {
        self.options.slot = name.into();
        self
    }

    /// The publication.
    pub fn publication(mut self, name: impl Into<String>) -> Self {
        self.options.publication = name.into();
        self
    }

    /// The database, as a URL.
    pub fn connection(mut self, url: &str) -> Result<Self> {
        self.config = PostgresConfig::from_url(url)?;
        Ok(self)
    }

    /// The schema of the table of watermarks, if one is used.
    pub fn control_schema(mut self, name: impl Into<String>) -> Self {
        self.options.control_schema = name.into();
        self
    }

    /// Everything else about the log.
    pub fn options(mut self, change: impl FnOnce(&mut LogOptions)) -> Self {
        change(&mut self.options);
        self
    }

    /// Whether tables without a key are followed, too: their rows from before do not come, and updates and deletes of
    /// them need REPLICA IDENTITY FULL. Without it such a table is refused.
    pub fn keyless(mut self, keyless: bool) -> Self {
        self.keyless = keyless;
        self
    }

    /// What is done with rows that are there already.
    pub fn initial(mut self, initial: Initial) -> Self {
        self.initial = initial;
        self
    }

    /// How much memory rows may take.
    pub fn context(mut self, context: ReadContext) -> Self {
        self.context = context;
        self
    }

    /// Opens the log: at the beginning, or right behind the position of a boundary. Tables that this position does not
    /// know, because they are named or published since, are read from their beginning.
    pub async fn open(self, after: Option<&Position>) -> Result<Changes> {
        let database = Postgres::open(self.config)?;
        let source = database.log(self.options)?;
        let schema = database.config().schema.clone();
        let mut tables: Vec<TableId> = self.tables.iter().map(|t| TableId::parse(t)).collect::<Result<_>>()?;
        let connection = database.connect().await?;
        slot::check_server(&connection).await?;
        let all = tables.is_empty();
        for table in &tables {
            // Before anything is made for it.
            found_by(&connection, table, &schema, self.keyless).await?;
        }
        let publication = slot::publication(&connection, source.options(), &tables, &schema, Missing::Make).await?;
        if all {
            let marks = source.options().watermark_table();
            tables.extend(
                publication
                    .tables
                    .iter()
                    .map(|p| p.table.clone())
                    .filter(|t| *t != marks),
            );
        }
        let resumed = after.map(BackfillPosition::parse).transpose()?;
        let stored = resumed.as_ref().and_then(|resumed| resumed.log.as_ref());
        let stored = stored.map(LogPosition::parse).transpose()?;
        let mut followed = Vec::with_capacity(tables.len());
        for table in tables {
            let (described, key) = found_by(&connection, &table, &schema, self.keyless).await?;
            let published = publication.tables.iter().find(|p| p.table == described.table);
            let columns = published.and_then(|p| p.columns.as_ref());
            let may = connection.version() >= 180_000;
            let comes = |name: &str, generated: bool| {
                columns.map_or(!generated, |c| (may || !generated) && c.iter().any(|c| c == name))
            };
            let now = shape::look(&connection, described.oid, &[]).await?;
            let known = match &stored {
                Some(stored) => shape::planned_at(stored, &described.table, &now.columns),
                None => now.columns,
            };
            let planned = |name: &String| key.contains(name) || known.iter().any(|a| a.name == *name);
            let mut all = described.schema.columns;
            all.retain(|c| comes(&c.name, c.generated) && planned(&c.name));
            followed.push(Followed {
                read: ReadSpec::all(described.table, &all),
                key,
                by_bytes: Vec::new(),
                known,
                // Nobody keeps this plan: positions say it.
                oid: 0,
                files: String::new(),
                parts: None,
                member: None,
                initial: self.initial,
            });
        }
        let mut after = after.cloned();
        if let (Some(mut resumed), Some(stored)) = (resumed, &stored) {
            let new = newcomers(stored, &followed, self.initial);
            membership::settle_all(&connection, &new, &schema).await?;
            resumed
                .pending
                .retain(|p| followed.iter().any(|f| f.read.table == p.table));
            new.iter().for_each(|table| logs::compare(&mut resumed.pending, table));
            after = Some(resumed.encode());
        }
        connection.recycle();
        let keys: Keys = followed.iter().map(|f| (f.read.table.clone(), f.key.clone())).collect();
        let watched = followed.iter().map(|f| Watched::same(&f.read.table)).collect();
        source.follow_tables(followed, all);
        let read = ReadSpec::of(TableId::bare(""), Vec::new());
        let reader = source
            .open(&read, &LogSource::partition(), after.as_ref(), &self.context)
            .await?;
        Ok(Changes {
            reader,
            control: Control {
                source: Arc::new(source),
                keys: Arc::new(keys),
                watched,
                asked: Arc::default(),
                instance: RandomState::new().build_hasher().finish(),
            },
            changes: VecDeque::new(),
        })
    }
}

/// The followed tables that a position knows nothing of: what they had and what became of it is still to be told. Older
/// positions do not say what they know.
fn newcomers(stored: &LogPosition, followed: &[Followed], initial: Initial) -> Vec<TableId> {
    if initial == Initial::Skip || stored.members.is_empty() {
        return Vec::new();
    }
    let is_new = |f: &&Followed| !f.key.is_empty() && !stored.members.contains_key(&f.read.table.to_string());
    let new = followed.iter().filter(is_new);
    new.map(|f| f.read.table.clone()).collect()
}

/// A table as the catalog has it, and the columns by which its changes find their rows. Refuses what cannot be followed,
/// and a table without such columns where nobody asked for it.
async fn found_by(
    connection: &Connection,
    table: &TableId,
    schema: &str,
    keyless: bool,
) -> Result<(Described, Vec<String>)> {
    let described = catalog::describe(connection, table, schema).await?;
    let key = capture::key(connection, &described, &mut Vec::new()).await?;
    identity::check_followable(connection, &described, &key).await?;
    match key.is_empty() && !keyless {
        true => Err(capture::without_key(table).hint(format!(
            "ALTER TABLE {table} ADD PRIMARY KEY (…); or ask for it by ChangesBuilder::keyless, which follows only what \
             comes from now on"
        ))),
        false => Ok((described, key)),
    }
}

/// Rows that are to be read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    table: String,
    keys: Vec<Vec<String>>,
}

impl Selection {
    /// A whole table.
    pub fn table(name: impl Into<String>) -> Self {
        Selection {
            table: name.into(),
            keys: Vec::new(),
        }
    }

    /// The rows of these keys, each with the values of the table's key columns, as people write them.
    pub fn keys<K, V>(table: impl Into<String>, keys: impl IntoIterator<Item = K>) -> Self
    where
        K: IntoIterator<Item = V>,
        V: Into<String>,
    {
        Selection {
            table: table.into(),
            keys: keys
                .into_iter()
                .map(|key| key.into_iter().map(Into::into).collect())
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_read() {
        let all = |pairs: &'static [(&'static str, &'static str)]| {
            Changes::from_variables(move |name| pairs.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_string()))
        };
        let b = all(&[
            ("POSTGRES_HOST", "db"),
            ("POSTGRES_PORT", "6543"),
            ("POSTGRES_USER", "me"),
            ("POSTGRES_PASSWORD", "sesame"),
            ("POSTGRES_NAME", "shop"),
            ("DBSYNC_REPLSLOT", "my_slot"),
            ("DBSYNC_PUBNAME", "my_pub"),
        ])
        .unwrap();
        assert_eq!(b.config.server(), "db:6543/shop");
        assert_eq!(
            (b.options.slot.as_str(), b.options.publication.as_str()),
            ("my_slot", "my_pub")
        );
        assert_eq!(
            (b.options.control_schema.as_str(), b.options.watermark_table.as_str()),
            ("dbsync_ctrl", "dbsync_wmtable")
        );
        assert!(!format!("{b:?}").contains("sesame"));
        let b = all(&[
            ("POSTGRES_DB", "shop"),
            ("DBSYNC_CTRL_NAMESPACE", "ctrl"),
            ("DBSYNC_WM_TABLENAME", "marks"),
        ])
        .unwrap();
        assert_eq!(b.config.server(), "localhost:5432/shop");
        assert_eq!(
            (b.options.slot.as_str(), b.options.publication.as_str()),
            ("dbsync_replslot", "dbsync_mypub")
        );
        assert_eq!(
            (b.options.control_schema.as_str(), b.options.watermark_table.as_str()),
            ("ctrl", "marks")
        );
        let both = all(&[("POSTGRES_DB", "other"), ("POSTGRES_NAME", "shop")]).unwrap();
        assert_eq!(both.config.server(), "localhost:5432/shop");
        let b = all(&[("POSTGRES_CONNSTR", "postgres://a@b:1/c"), ("POSTGRES_HOST", "other")]).unwrap();
        assert_eq!(b.config.server(), "b:1/c");
        assert!(all(&[("POSTGRES_PORT", "x")]).is_err());
    }
}
