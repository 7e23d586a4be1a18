//! Reading tables by COPY, all partitions under one snapshot.

use super::catalog::{self, Described};
use super::copy::{self, Found, Frame, Span};
use super::query::{Query, Text};
use super::types::{self, Decoder, Wire};
use super::{Connection, ENGINE, Postgres, examine, settled, slices};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use postgres_types::{ToSql, Type};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use synctool_core::blocks::BlockHashes;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event, RawFormat};
use synctool_core::error::{Error, ErrorKind, Result, code};
use synctool_core::keys::Collation;
use synctool_core::ledger::Tally;
use synctool_core::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::{Condition, Term};
use synctool_core::rowhash;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{
    Extent, Finding, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo,
};
use tokio::sync::Mutex;
use tokio_postgres::{CopyOutStream, SimpleQueryMessage, Statement};

/// What the names of sessions begin with while they only read for us.
pub(super) const READING: &str = "synctool reading";

/// Raw rows are passed on in chunks of about this size: what waits between the two servers is some of them per worker,
/// and should be full with a small table already.
const RAW_CHUNK: usize = 128 << 10;

/// Rows are decoded in runs of about this many bytes: what is found out about their fields stays near.
const RUN: usize = 64 << 10;

/// Tables of a PostgreSQL database, read by query.
///
/// Every reader of one `PostgresSource` sees the same snapshot, taken when the first is opened. A source made anew
/// sees what is committed by then; one made by [`Postgres::live_source`] shares none.
#[derive(Debug)]
pub struct PostgresSource {
    pub(super) database: Postgres,
    snapshot: Mutex<Snapshot>,
    /// The snapshot of [`ReadSpec::one_snapshot`]: the one that was shared when a plan asked for it. It is that very one, not
    /// one of its name: a server that was started again gives the names of earlier ones.
    only: OnceLock<Arc<str>>,
}

/// The snapshot that readers share.
#[derive(Debug)]
enum Snapshot {
    /// None was asked for yet.
    Untaken,
    /// Exported by a session that stays open.
    Exported { id: Arc<str>, keeper: Box<Connection> },
    /// This server exports none; each reader has its own.
    Unavailable,
}

impl Postgres {
    /// The database as a source.
    pub fn source(&self) -> PostgresSource {
        PostgresSource {
            database: self.clone(),
            snapshot: Mutex::new(Snapshot::Untaken),
            only: OnceLock::new(),
        }
    }

    /// The database as a source whose readers each see what is committed when they are opened.
    pub fn live_source(&self) -> PostgresSource {
        PostgresSource {
            database: self.clone(),
            snapshot: Mutex::new(Snapshot::Unavailable),
            only: OnceLock::new(),
        }
    }
}

impl PostgresSource {
    pub(super) fn schema(&self) -> &str {
        &self.database.config().schema
    }

    /// The table with its schema, as the catalog describes it.
    pub async fn described(&self, table: &TableId) -> Result<Described> {
        let connection = self.database.connect().await?;
        let described = catalog::describe(&connection, table, self.schema()).await?;
        connection.recycle();
        Ok(described)
    }

    /// What a reading transaction begins with. It is marked by its name, because its age says nothing of what may yet
    /// be written ([`super::settled`]).
    fn begin_reading(&self) -> Result<String> {
        let name = match self.database.config().application_name.as_str() {
            "synctool" => READING.to_string(),
            own => format!("{READING}: {own}"),
        };
        Ok(format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL application_name = {}",
            super::sql::literal(&name)?
        ))
    }

    /// Whether readers share a snapshot at all: one connection is not enough for a reader and its keeper.
    fn shares(&self) -> bool {
        self.database.config().max_connections > 1
    }

    /// Begins a reading transaction of a load that must be read in one snapshot.
    async fn begin_only(&self, connection: &Connection) -> Result<()> {
        let gone = || {
            Error::new(
                code::SNAPSHOT_LOST,
                "the snapshot that all partitions of this load must be read in is gone",
            )
            .hint("run it again: it starts over")
        };
        let shared = match self.shares() {
            true => self.snapshot_id().await?.ok_or_else(gone)?,
            false => return Err(gone()),
        };
        let id = self.only.get_or_init(|| shared.clone());
        if !Arc::ptr_eq(id, &shared) {
            return Err(gone());
        }
        let import = format!("{}; SET TRANSACTION SNAPSHOT '{id}'", self.begin_reading()?);
        let begun = connection.batch_execute(&import).await;
        begun.map_err(|e| match is_snapshot_gone(&e) {
            true => gone(),
            false => connection.error(e, "beginning a read"),
        })
    }

    /// A session in a reading transaction, under the shared snapshot or (`now`) one of its own.
    pub(super) async fn reading(&self, now: bool) -> Result<Connection> {
        let connection = self.database.connect().await?;
        connection.working(true);
        match now {
            true => connection
                .batch_execute(&self.begin_reading()?)
                .await
                .map_err(|e| connection.error(e, "beginning a read"))?,
            false => self.begin(&connection).await?,
        }
        Ok(connection)
    }

    /// Ends a reading transaction and gives its session back.
    pub(super) async fn end_reading(connection: Connection) -> Result<()> {
        connection
            .batch_execute("COMMIT")
            .await
            .map_err(|e| connection.error(e, "ending a read"))?;
        connection.working(false);
        connection.recycle();
        Ok(())
    }

    /// Begins a reading transaction under the shared snapshot.
    async fn begin(&self, connection: &Connection) -> Result<()> {
        let begin = self.begin_reading()?;
        for _ in 0..2 {
            let id = if self.shares() { self.snapshot_id().await? } else { None };
            let Some(id) = id else {
                return connection
                    .batch_execute(&begin)
                    .await
                    .map_err(|e| connection.error(e, "beginning a read"));
            };
            let import = format!("{begin}; SET TRANSACTION SNAPSHOT '{id}'");
            match connection.batch_execute(&import).await {
                Ok(()) => return Ok(()),
                Err(e) if is_snapshot_gone(&e) => {
                    // Its keeper is gone (a restart, an administrator). Key ranges need no common snapshot to be
                    // complete, so the rest of the readers share a newer one.
                    tracing::info!("the exported snapshot is gone; a new one is taken");
                    connection
                        .batch_execute("ROLLBACK")
                        .await
                        .map_err(|e| connection.error(e, "beginning a read"))?;
                    self.forget(&id).await;
                }
                Err(e) => return Err(connection.error(e, "beginning a read")),
            }
        }
        Err(Error::new(
            code::CONFLICT,
            "the exported snapshot was lost twice while a reader began",
        ))
    }

    /// Refuses a snapshot that is older than a statement which wrote the rows of a table anew: they are not there to it. To
    /// be asked where the table is locked already, by a statement that was prepared or has run.
    pub(super) async fn check_snapshot(&self, connection: &Connection, read: &ReadSpec) -> Result<()> {
        let tables = std::iter::once(&read.table).chain(read.joins.iter().map(|j| &j.table));
        let names: Vec<String> = tables.map(|t| super::sql::table(t, self.schema())).collect();
        if !catalog::is_written_anew(connection, &names).await? {
            return Ok(());
        }
        let why = format!(
            "a statement wrote the rows of {} anew since the snapshot was taken",
            read.table
        );
        if read.one_snapshot {
            return Err(Error::new(code::SNAPSHOT_LOST, why).hint("run it again: it starts over"));
        }
        // The rest of the readers share a newer one. What is given up may be one already, taken since ours was: in vain, but
        // harmless, for ranges of a table may be read in whatever snapshots, and what must be read in one refuses another.
        let mut snapshot = self.snapshot.lock().await;
        if matches!(&*snapshot, Snapshot::Exported { .. }) {
            *snapshot = Snapshot::Untaken;
        }
        Err(Error::new(code::CONFLICT, why))
    }

    async fn forget(&self, lost: &str) {
        let mut snapshot = self.snapshot.lock().await;
        if matches!(&*snapshot, Snapshot::Exported { id, .. } if **id == *lost) {
            *snapshot = Snapshot::Untaken;
        }
    }

    async fn snapshot_id(&self) -> Result<Option<Arc<str>>> {
        let mut snapshot = self.snapshot.lock().await;
        if matches!(&*snapshot, Snapshot::Exported { keeper, .. } if keeper.is_closed()) {
            *snapshot = Snapshot::Untaken;
        }
        if matches!(&*snapshot, Snapshot::Untaken) {
            *snapshot = self.export().await?;
        }
        Ok(match &*snapshot {
            Snapshot::Exported { id, .. } => Some(id.clone()),
            _ => None,
        })
    }

    async fn export(&self) -> Result<Snapshot> {
        let export = format!("{}; SELECT pg_catalog.pg_export_snapshot()", self.begin_reading()?);
        let keeper = self.database.connect().await?;
        match keeper.simple_query(&export).await {
            Ok(messages) => {
                let id = messages.iter().find_map(|m| match m {
                    SimpleQueryMessage::Row(row) => row.get(0).map(Arc::from),
                    _ => None,
                });
                match id {
                    Some(id) => Ok(Snapshot::Exported {
                        id,
                        keeper: Box::new(keeper),
                    }),
                    None => Err(Error::bug("pg_export_snapshot returned nothing")),
                }
            }
            Err(e) => {
                let e = keeper.error(e, "exporting a snapshot");
                if e.kind() == ErrorKind::Unavailable {
                    return Err(e);
                }
                tracing::info!(error = %e, "this server exports no snapshot; each reader has its own");
                Ok(Snapshot::Unavailable)
            }
        }
    }
}

/// Whether an exported snapshot could not be imported because its keeper is gone.
fn is_snapshot_gone(e: &tokio_postgres::Error) -> bool {
    matches!(e.code().map(|c| c.code()), Some("22023" | "42704" | "55000"))
}

#[async_trait]
impl Source for PostgresSource {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        let connection = self.database.connect().await?;
        let tables = catalog::tables(&connection, schema).await?;
        connection.recycle();
        Ok(tables)
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        Ok(self.described(table).await?.schema)
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        self.describe_terms(read).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        self.extent_of(read, term, slice).await
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        self.distinct_of(read, terms, slice, limit).await
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        Query::new(read, self.schema()).counting(conditions)
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        settled::bound(&self.database, table, column, zone, margin).await
    }

    async fn shares_snapshot(&self) -> Result<bool> {
        Ok(self.shares() && self.snapshot_id().await?.is_some())
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        Some(self)
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let connection = self.database.connect().await?;
        connection.working(true);
        let described = catalog::describe(&connection, &read.table, self.schema()).await?;
        let slices = slices::cut(&connection, &described, request).await?;
        connection.working(false);
        connection.recycle();
        Ok(slices)
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        let connection = self.database.connect().await?;
        // Known as soon as anything was asked of the server.
        let utf8 = self.database.server().is_some_and(|server| server.utf8);
        let collations = slices::collations(&connection, utf8, table, self.schema(), columns).await?;
        connection.recycle();
        Ok(collations)
    }

    fn raw_format(&self, columns: &[(String, Column)]) -> Option<RawFormat> {
        types::raw_format(columns)
    }

    fn tally_raw(&self, tuples: &[u8], tally: &mut Tally) -> Result<()> {
        copy::each_tuple(tuples, |tuple| rowhash::add_raw_row(tally, tuple)).map(|_| ())
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let place = |e: Error| {
            e.at("table", read.table.to_string())
                .at("partition", partition.id.as_str())
        };
        if after.is_some() {
            return Err(place(Error::bug(
                "a slice of a PostgreSQL table has no positions inside",
            )));
        }
        let Work::Read(slice) = &partition.work else {
            return Err(place(Error::new(
                code::UNSUPPORTED,
                "PostgreSQL tables are read by slices",
            )));
        };
        let select = Query::new(read, self.schema()).select(slice).map_err(place)?;
        let start = async {
            let connection = self.database.connect().await?;
            connection.working(true);
            match read.one_snapshot {
                true => self.begin_only(&connection).await?,
                false => self.begin(&connection).await?,
            }
            CopyReader::start(self, connection, read, &select, context).await
        };
        // The server may work long before it has the first row of a view.
        let reader = tokio::select! {
            reader = start => reader,
            () = context.cancel.cancelled() => Err(stopped(&read.table)),
        };
        Ok(Box::new(reader.map_err(place)?.in_partition(partition)))
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        examine::reading(&self.database, tables).await
    }
}

/// Reads one slice: a COPY in a transaction of its own connection.
struct CopyReader {
    connection: Option<Connection>,
    stream: Pin<Box<CopyOutStream>>,
    stage: Stage,
    frame: Frame,
    /// What has come and is not decoded yet.
    bytes: Pieces,
    rows: Rows,
    hold: Option<Hold>,
    table: Arc<TableId>,
    partition: String,
    what: String,
    context: ReadContext,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Copying,
    /// The server sent everything; the transaction is to be ended.
    Ending,
    Done,
}

/// Rows collected for the next event.
enum Rows {
    Decoded {
        schema: SchemaRef,
        decoders: Vec<Decoder>,
        /// The fields of rows at hand, row by row; they are decoded together, column by column.
        spans: Vec<Span>,
        count: usize,
        bytes: usize,
        /// Arrow's bytes for a row of NULLs.
        width: usize,
    },
    Raw {
        tuples: BytesMut,
        count: u64,
    },
}

impl CopyReader {
    async fn start(
        source: &PostgresSource,
        connection: Connection,
        read: &ReadSpec,
        select: &Text,
        context: &ReadContext,
    ) -> Result<CopyReader> {
        let what = format!("reading {}", read.table);
        // The plan may be older than the table: what the columns are now is checked before any byte is decoded.
        let statement = connection
            .prepare(select.sql())
            .await
            .map_err(|e| select.error(&connection, e, &what))?;
        match &read.raw {
            None => {
                for (actual, planned) in statement.columns().iter().zip(&read.columns) {
                    check_type(actual.type_(), planned, read)?;
                }
            }
            Some(_) => check_names(&connection, &statement, read).await?,
        }
        // Partitions and heirs are locked by whoever plans their reading, and not before.
        connection
            .batch_execute(&format!(
                "DECLARE synctool_look NO SCROLL CURSOR FOR {}; CLOSE synctool_look",
                select.sql()
            ))
            .await
            .map_err(|e| select.error(&connection, e, &what))?;
        source.check_snapshot(&connection, read).await?;
        let stream = connection
            .copy_out(&format!("COPY ({}) TO STDOUT (FORMAT binary)", select.sql()))
            .await
            .map_err(|e| connection.error(e, &what))?;
        let rows = match &read.raw {
            Some(_) => Rows::Raw {
                tuples: BytesMut::new(),
                count: 0,
            },
            None => {
                let columns: Vec<&Column> = read.columns.iter().map(|c| &c.column).collect();
                Rows::Decoded {
                    schema: read.schema().arrow_schema(),
                    decoders: columns.iter().map(|c| Decoder::new(c)).collect(),
                    spans: Vec::new(),
                    count: 0,
                    bytes: 0,
                    width: columns
                        .iter()
                        .map(|c| c.arrow_type().primitive_width().unwrap_or(4))
                        .sum(),
                }
            }
        };
        Ok(CopyReader {
            connection: Some(connection),
            stream: Box::pin(stream),
            stage: Stage::Copying,
            frame: Frame::new(read.columns.len()),
            bytes: Pieces::default(),
            rows,
            hold: None,
            table: Arc::new(read.table.clone()),
            partition: String::new(),
            what,
            context: context.clone(),
        })
    }

    fn in_partition(mut self, partition: &Partition) -> Self {
        self.partition = partition.id.to_string();
        self
    }

    fn place(&self, e: Error) -> Error {
        e.at("table", self.table.to_string()).at("partition", &self.partition)
    }

    fn lost(&self, e: tokio_postgres::Error) -> Error {
        match &self.connection {
            Some(connection) => connection.error(e, &self.what),
            None => super::map_error(e, &self.what),
        }
    }

    fn too_large(&self, bytes: usize) -> Error {
        Error::new(
            code::ROW_TOO_LARGE,
            format!(
                "a row of {} has {bytes} bytes or more, the limit is {}",
                self.table, self.context.max_row_bytes
            ),
        )
        .hint("raise max_row_bytes, or leave the large column out")
    }

    /// Takes tuples out of the bytes at hand until they are used up or an event is full.
    async fn consume(&mut self) -> Result<Option<Event>> {
        loop {
            let at_hand = self.bytes.get();
            match self.frame.next(at_hand)? {
                Found::More => {
                    if at_hand.len() > self.context.max_row_bytes {
                        return Err(self.too_large(at_hand.len()));
                    }
                    return Ok(None);
                }
                Found::Skip(n) => self.bytes.advance(n),
                Found::Tuple(n) => {
                    if n > self.context.max_row_bytes {
                        return Err(self.too_large(n));
                    }
                    if self.hold.is_none() {
                        // One reservation for the whole event, before the first row of it is decoded.
                        let size = self.rows.target(&self.context).max(n);
                        self.hold = Some(self.context.budget.reserve(size).await);
                    } else if !self.rows.is_empty() && n > self.rows.target(&self.context) {
                        // A giant needs a reservation of its own.
                        return self.emit().map(Some);
                    }
                    let taken = self.rows.take(&mut self.frame, self.bytes.get(), n, &self.context)?;
                    self.bytes.advance(taken);
                    if self.rows.is_full(&self.context) {
                        return self.emit().map(Some);
                    }
                }
            }
        }
    }

    fn emit(&mut self) -> Result<Event> {
        let hold = self.hold.take().unwrap_or_default();
        Ok(match &mut self.rows {
            Rows::Raw { tuples, count } => Event::Raw {
                table: self.table.clone(),
                bytes: tuples.split().freeze(),
                rows: std::mem::take(count),
                hold,
            },
            Rows::Decoded {
                schema,
                decoders,
                count,
                bytes,
                ..
            } => {
                let columns = decoders.iter_mut().map(Decoder::finish).collect();
                let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(*count));
                let batch = RecordBatch::try_new_with_options(schema.clone(), columns, &options)
                    .map_err(|e| Error::bug(format!("a batch does not fit its schema: {e}")))?;
                (*count, *bytes) = (0, 0);
                Event::Rows(ChangeBatch::inserts(self.table.clone(), batch, hold))
            }
        })
    }

    /// Everything has come: the server must agree that nothing went wrong after the last row.
    async fn end(&mut self) -> Result<()> {
        if !self.frame.ended() || !self.bytes.get().is_empty() {
            return Err(Error::new(
                code::CONNECTION_LOST,
                format!("{} failed: the stream ended before its last row", self.what),
            ));
        }
        if let Some(connection) = &self.connection {
            // In a transaction that failed after the last row the SELECT fails too.
            connection
                .batch_execute("SELECT 1; COMMIT")
                .await
                .map_err(|e| connection.error(e, &self.what))?;
        }
        if let Some(connection) = self.connection.take() {
            connection.working(false);
            connection.recycle();
        }
        Ok(())
    }

    async fn step(&mut self) -> Result<Option<Event>> {
        let cancel = self.context.cancel.clone();
        if cancel.is_cancelled() {
            return Err(stopped(&self.table));
        }
        loop {
            match self.stage {
                Stage::Done => return Ok(None),
                Stage::Ending => {
                    self.end().await?;
                    self.stage = Stage::Done;
                    if !self.rows.is_empty() {
                        return self.emit().map(Some);
                    }
                    self.hold = None;
                }
                Stage::Copying => {
                    if let Some(event) = self.consume().await? {
                        return Ok(Some(event));
                    }
                    // The server sends row by row: the token is looked at only where there is nothing to read.
                    let piece = tokio::select! {
                        biased;
                        piece = self.stream.next() => piece,
                        () = cancel.cancelled() => return Err(stopped(&self.table)),
                    };
                    match piece {
                        Some(Ok(piece)) => self.bytes.push(piece),
                        Some(Err(e)) => return Err(self.lost(e)),
                        None => self.stage = Stage::Ending,
                    }
                }
            }
        }
    }
}

#[async_trait]
impl Reader for CopyReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        match self.step().await {
            Ok(event) => Ok(event),
            Err(e) => Err(self.place(e)),
        }
    }
}

impl Rows {
    fn target(&self, context: &ReadContext) -> usize {
        match self {
            Rows::Decoded { .. } => context.batch_bytes,
            Rows::Raw { .. } => RAW_CHUNK.min(context.batch_bytes),
        }
    }

    fn is_empty(&self) -> bool {
        match self {
            Rows::Decoded { count, .. } => *count == 0,
            Rows::Raw { count, .. } => *count == 0,
        }
    }

    fn is_full(&self, context: &ReadContext) -> bool {
        let held = match self {
            Rows::Decoded { bytes, .. } => *bytes,
            Rows::Raw { tuples, .. } => tuples.len(),
        };
        held >= self.target(context)
    }

    /// Takes tuples from the beginning of the bytes, the first of which has `n`, until the bytes are used up or this is
    /// full. Gives how many bytes are done with.
    fn take(&mut self, frame: &mut Frame, bytes: &[u8], n: usize, context: &ReadContext) -> Result<usize> {
        let (target, max) = (self.target(context), RUN.max(n));
        // Whoever calls looks at a giant first.
        let fits = |at: usize, tuple: usize| at == 0 || (tuple <= target && tuple <= context.max_row_bytes);
        let mut at = 0;
        match self {
            Rows::Raw { tuples, count } => {
                let mut frames = 0;
                while tuples.len() + at < target && at < max {
                    match frame.next_at(bytes, at, |_| ())? {
                        Found::Tuple(n) if fits(at, n) => at += n,
                        Found::Skip(n) => {
                            frames = n;
                            break;
                        }
                        Found::Tuple(_) | Found::More => break,
                    }
                    *count += 1;
                }
                if tuples.is_empty() {
                    tuples.reserve(target + n);
                }
                tuples.extend_from_slice(&bytes[..at]);
                Ok(at + frames)
            }
            Rows::Decoded {
                decoders,
                spans,
                count,
                bytes: held,
                width,
                ..
            } => {
                spans.clear();
                let mut whole = 0;
                while *held < target && at < max {
                    let found = frame.next_at(bytes, at, |span| spans.push(span))?;
                    let n = match found {
                        Found::Tuple(n) if fits(at, n) => n,
                        Found::Skip(n) => {
                            at += n;
                            break;
                        }
                        Found::Tuple(_) | Found::More => break,
                    };
                    at += n;
                    whole = spans.len();
                    *count += 1;
                    *held += n.max(*width);
                }
                let fields = &spans[..whole];
                let columns = decoders.len();
                for (i, decoder) in decoders.iter_mut().enumerate() {
                    let column = fields.get(i..).unwrap_or_default().iter().step_by(columns);
                    decoder.extend(column.map(|span| span.of(bytes)))?;
                }
                Ok(at)
            }
        }
    }
}

/// Bytes of a stream, usually a whole message at a time, joined only where a tuple is cut.
#[derive(Debug, Default)]
struct Pieces {
    current: Bytes,
    joined: Option<BytesMut>,
}

impl Pieces {
    fn get(&self) -> &[u8] {
        self.joined.as_deref().unwrap_or(&self.current)
    }

    fn advance(&mut self, n: usize) {
        match &mut self.joined {
            Some(joined) => {
                joined.advance(n);
                if joined.is_empty() {
                    self.joined = None;
                }
            }
            None => self.current.advance(n),
        }
    }

    fn push(&mut self, piece: Bytes) {
        match &mut self.joined {
            Some(joined) => joined.extend_from_slice(&piece),
            None if self.current.is_empty() => self.current = piece,
            None => {
                let mut joined = BytesMut::from(&self.current[..]);
                joined.extend_from_slice(&piece);
                self.current = Bytes::new();
                self.joined = Some(joined);
            }
        }
    }
}

fn stopped(table: &TableId) -> Error {
    Error::new(code::INTERRUPTED, format!("reading {table} was stopped"))
}

/// Refuses a column whose type is not what the plan says: its bytes would be taken for something else.
pub(super) fn check_type(actual: &Type, planned: &ReadColumn, read: &ReadSpec) -> Result<()> {
    let expected = Wire::to_read(&planned.column).unwrap_or(Wire::Text);
    if Wire::of_type(actual) == Some(expected) {
        return Ok(());
    }
    Err(altered(actual.name(), planned, read))
}

/// The same for bytes that pass undecoded: the type's full name must be the planned one, because the destination
/// rounds to the modifiers that it has.
async fn check_names(connection: &Connection, statement: &Statement, read: &ReadSpec) -> Result<()> {
    // The prepared statement knows the table as it is; the catalog's rows are those of the snapshot.
    const SQL: &str = "SELECT pg_catalog.format_type(t, m) \
         FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::int4[])) \
         WITH ORDINALITY AS c(t, m, place) ORDER BY place";
    let oids: Vec<u32> = statement.columns().iter().map(|c| c.type_().oid()).collect();
    let modifiers: Vec<i32> = statement.columns().iter().map(|c| c.type_modifier()).collect();
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&oids, Type::OID_ARRAY), (&modifiers, Type::INT4_ARRAY)];
    let what = format!("reading {}", read.table);
    let names = catalog::rows(connection, SQL, params, &what).await?;
    for (planned, row) in read.columns.iter().zip(&names) {
        let actual: &str = row.get(0);
        if planned.column.source_type.as_deref() != Some(actual) {
            return Err(altered(actual, planned, read));
        }
    }
    Ok(())
}

fn altered(actual: &str, planned: &ReadColumn, read: &ReadSpec) -> Error {
    let before = planned.column.source_type.clone();
    Error::new(
        code::SCHEMA_MISMATCH,
        format!(
            "column {} of {} is {actual} now; the plan was made for {}",
            planned.source,
            read.table,
            before.unwrap_or_else(|| planned.column.ty.to_string())
        ),
    )
    .hint("the table was altered while the run was unfinished: `synctool state reset` and run again")
}
