//! SQLite as a source: describing, cutting, and reading in key order.
//!
//! A reader has one statement open in one snapshot and steps through it, so its order is its index's and nothing is
//! sorted twice. Its position is the key of the last row in exactly the form SQLite stores it. A table without a key is
//! read in rowid order; rowids of such a table change when the database is vacuumed, so the position carries the schema
//! version, which a vacuum raises. A view has no order to resume in and is committed once, at its end; so are joins,
//! groups and lists of keys.

use super::catalog;
use super::client::{self, Access, failed, with_connection};
use super::query::{self, Order, Query};
use super::slices::{self, value_bytes};
use super::types::{self, Cell};
use super::{SqliteConfig, ddl, settled};
use arrow_array::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, Row};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::blocks::BlockHashes;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::Collation;
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::{Condition, Term};
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{
    Extent, Finding, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo,
};
use synctool_core::text::ColumnBuilder;
use tokio::sync::{mpsc, oneshot};

/// SQLite as a source.
#[derive(Debug)]
pub(super) struct SqliteSource {
    pub(super) config: Arc<SqliteConfig>,
}

impl SqliteSource {
    pub(super) fn new(config: Arc<SqliteConfig>) -> Self {
        SqliteSource { config }
    }

    /// Works in one snapshot.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        with_connection(&self.config, Access::Read, |conn| {
            // One snapshot for everything that is looked at.
            conn.execute_batch("BEGIN DEFERRED")
                .map_err(failed(|| "beginning to read".into()))?;
            work(conn)
        })
        .await
    }
}

#[async_trait]
impl Source for SqliteSource {
    fn engine(&self) -> &'static str {
        "sqlite"
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        if schema.is_some_and(|s| !s.eq_ignore_ascii_case("main")) {
            return Ok(Vec::new());
        }
        self.read(|conn| {
            Ok(catalog::names(conn)?
                .into_iter()
                .map(|(name, kind)| TableInfo {
                    table: TableId::bare(name),
                    kind: if kind == "virtual" {
                        "virtual table".into()
                    } else {
                        kind
                    },
                    rows: None,
                    bytes: None,
                })
                .collect())
        })
        .await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        let table = table.clone();
        self.read(move |conn| Ok(catalog::must_find(conn, &table)?.schema()))
            .await
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        let read = read.clone();
        self.read(move |conn| query::describe(conn, &read)).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let (read, term, slice) = (read.clone(), term.clone(), slice.clone());
        self.read(move |conn| query::extent(conn, &read, &term, &slice)).await
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let (read, terms, slice) = (read.clone(), terms.to_vec(), slice.clone());
        self.read(move |conn| query::distinct(conn, &read, &terms, &slice, limit))
            .await
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        let (read, conditions) = (read.clone(), conditions.to_vec());
        self.read(move |conn| query::counting(conn, &read, &conditions)).await
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        let (table, column, zone) = (table.clone(), column.clone(), zone.map(str::to_string));
        settled::settled(&self.config, &table, &column, zone.as_deref(), margin).await
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        Some(self)
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let (read, request) = (read.clone(), request.clone());
        self.read(move |conn| slices::cut(conn, &read, &request)).await
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        // A destination's file is made when the first plan is stored.
        if !std::fs::metadata(&self.config.path).is_ok_and(|m| m.len() > 0) {
            return Ok(columns.iter().map(slices::to_make).collect());
        }
        let (table, columns) = (table.clone(), columns.to_vec());
        self.read(move |conn| slices::collations(conn, &table, &columns)).await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let Work::Read(slice) = &partition.work else {
            return Err(Error::new(code::UNSUPPORTED, "SQLite has no log to follow"));
        };
        let request = Request {
            read: read.clone(),
            slice: slice.clone(),
            after: after.cloned(),
            max_row_bytes: context.max_row_bytes as u64,
        };
        let (commands, queue) = mpsc::unbounded_channel();
        let (ready, opened) = oneshot::channel();
        let config = self.config.clone();
        std::thread::Builder::new()
            .name("sqlite-reader".into())
            .spawn(move || run(&config, &request, ready, queue))
            .map_err(|e| Error::new(code::SERVER_BUSY, "no thread could be started for SQLite").caused_by(e))?;
        let place = Place {
            file: self.config.path.display().to_string(),
            table: Arc::new(read.table.clone()),
            partition: partition.id.to_string(),
        };
        let interrupt = opened
            .await
            .map_err(|_| client::gone())
            .and_then(|r| r)
            .map_err(|e| place.on(e))?;
        Ok(Box::new(SqliteReader {
            commands,
            interrupt,
            context: context.clone(),
            place,
            want: context.batch_bytes,
            pending: None,
            queue: VecDeque::new(),
            ended: false,
        }))
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let names = tables.to_vec();
        let found = self
            .read(move |conn| {
                let mode: String = conn
                    .query_row("PRAGMA journal_mode", [], |r| r.get(0))
                    .map_err(failed(|| "reading the journal mode".into()))?;
                let mut findings = vec![match mode.eq_ignore_ascii_case("wal") {
                    true => Finding::good("journal mode", mode),
                    false => Finding::note(
                        "journal mode",
                        format!("{mode}: a long read keeps writers waiting"),
                        "PRAGMA journal_mode = WAL",
                    ),
                }];
                for table in &names {
                    findings.push(examine_table(conn, table));
                }
                Ok(findings)
            })
            .await;
        found.unwrap_or_else(|e| {
            let what = format!("file {}", self.config.path.display());
            vec![Finding::new(
                what,
                false,
                e.to_string(),
                e.next_step().unwrap_or_default(),
            )]
        })
    }
}

fn examine_table(conn: &Connection, table: &TableId) -> Finding {
    let what = format!("table {table}");
    match catalog::must_find(conn, table) {
        Err(e) => Finding::of_error(what, &e),
        Ok(t) if t.kind != "table" => Finding::good(what, format!("a {}: read as one partition", t.kind)),
        Ok(t) if t.key().is_empty() => Finding::good(what, "no key: read as one partition, in rowid order"),
        Ok(t) => {
            let parents = ddl::has_parents(conn, &t.name).unwrap_or(false);
            let note = if parents { ", with foreign keys" } else { "" };
            Finding::good(what, format!("key {}{note}", t.key().join(", ")))
        }
    }
}

/// What a reading thread does.
struct Request {
    read: ReadSpec,
    slice: Slice,
    after: Option<Position>,
    max_row_bytes: u64,
}

/// One batch's worth of rows is asked for.
struct Fill {
    bytes: u64,
    reply: oneshot::Sender<Result<Filled>>,
}

enum Filled {
    Batch(RecordBatch, Option<Position>),
    /// The next row alone needs so many bytes.
    NeedsMore(u64),
    End,
}

fn run(
    config: &SqliteConfig,
    request: &Request,
    ready: oneshot::Sender<Result<InterruptHandle>>,
    mut queue: mpsc::UnboundedReceiver<Fill>,
) {
    let setup = || -> Result<_> {
        let conn = client::open(config, Access::Read)?;
        conn.execute_batch("BEGIN DEFERRED")
            .map_err(failed(|| "beginning to read".into()))?;
        let query = Query::build(&conn, &request.read, &request.slice, |order| {
            request.after.as_ref().map(|after| resume(order, after)).transpose()
        })?;
        Ok((conn, query))
    };
    let (conn, query) = match setup() {
        Ok(set) => set,
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    let mut statement = match conn.prepare(&query.sql).map_err(failed(|| "reading".into())) {
        Ok(s) => s,
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    for (i, p) in query.parameters.iter().enumerate() {
        if let Err(e) = statement
            .raw_bind_parameter(i + 1, p)
            .map_err(failed(|| "reading".into()))
        {
            let _ = ready.send(Err(e));
            return;
        }
    }
    if ready.send(Ok(conn.get_interrupt_handle())).is_err() {
        return;
    }
    let mut cursor = Cursor {
        rows: statement.raw_query(),
        builders: query.columns.iter().map(ColumnBuilder::new).collect(),
        query: &query,
        max_row_bytes: request.max_row_bytes,
        waiting: false,
        ended: false,
        last: Vec::new(),
    };
    while let Some(fill) = queue.blocking_recv() {
        let filled = cursor.fill(fill.bytes);
        if fill.reply.send(filled).is_err() {
            return;
        }
    }
}

/// A position: `{"key":[…]}` or `{"rowid":n,"schema":v}`. Integers and text stand for themselves.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum Stand {
    Key { key: Vec<KeyPart> },
    Rowid { rowid: i64, schema: i64 },
}

#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
enum KeyPart {
    Integer(i64),
    Text(String),
    /// The bits, as a float's text may lose one.
    Real {
        bits: u64,
    },
    Blob {
        bytes: Vec<u8>,
    },
}

impl KeyPart {
    /// Takes over a value, in the buffer that is there if it fits.
    fn set(slot: &mut KeyPart, value: ValueRef<'_>) -> Result<()> {
        match (slot, value) {
            (KeyPart::Integer(old), ValueRef::Integer(i)) => *old = i,
            (KeyPart::Text(old), ValueRef::Text(t)) => {
                old.clear();
                old.push_str(std::str::from_utf8(t).map_err(|_| not_utf8())?);
            }
            (slot, value) => *slot = KeyPart::new(value)?,
        }
        Ok(())
    }

    fn new(value: ValueRef<'_>) -> Result<KeyPart> {
        Ok(match value {
            ValueRef::Integer(i) => KeyPart::Integer(i),
            ValueRef::Text(t) => KeyPart::Text(std::str::from_utf8(t).map_err(|_| not_utf8())?.to_string()),
            ValueRef::Real(r) => KeyPart::Real { bits: r.to_bits() },
            ValueRef::Blob(b) => KeyPart::Blob { bytes: b.to_vec() },
            ValueRef::Null => return Err(Error::new(code::VALUE_MALFORMED, "a key holds NULL")),
        })
    }

    fn cell(self) -> Cell<'static> {
        match self {
            KeyPart::Integer(i) => Cell::Integer(i),
            KeyPart::Text(t) => Cell::Text(t.into()),
            KeyPart::Real { bits } => Cell::Real(f64::from_bits(bits)),
            KeyPart::Blob { bytes } => Cell::Blob(bytes.into()),
        }
    }
}

fn not_utf8() -> Error {
    Error::new(code::VALUE_MALFORMED, "a key holds text that is not UTF-8")
}

/// The values of a position, which must fit the order.
fn resume(order: &Order, after: &Position) -> Result<Vec<Cell<'static>>> {
    let unknown = || {
        Error::new(code::STATE_STORE, "the stored position does not fit the table's key")
            .hint("the key changed since the run began: `synctool state reset` starts over")
    };
    let stand: Stand = serde_json::from_str(after.as_str()).map_err(|e| unknown().caused_by(e))?;
    match (order, stand) {
        (Order::Key(names), Stand::Key { key }) if key.len() == names.len() => {
            Ok(key.into_iter().map(KeyPart::cell).collect())
        }
        (Order::Rowid(_, version), Stand::Rowid { rowid, schema }) => {
            if schema != *version {
                return Err(Error::new(
                    code::STATE_STORE,
                    "the database was vacuumed or altered since the run began, so its rows without a key may have new numbers",
                )
                .hint("`synctool state reset` starts over"));
            }
            Ok(vec![Cell::Integer(rowid)])
        }
        _ => Err(unknown()),
    }
}

/// The open statement and where it stands.
struct Cursor<'s, 'q> {
    rows: rusqlite::Rows<'s>,
    builders: Vec<ColumnBuilder>,
    query: &'q Query,
    max_row_bytes: u64,
    /// The statement stands on a row that did not fit into the last batch.
    waiting: bool,
    ended: bool,
    /// The key of the last row taken.
    last: Vec<KeyPart>,
}

impl Cursor<'_, '_> {
    fn fill(&mut self, bytes: u64) -> Result<Filled> {
        use rusqlite::fallible_streaming_iterator::FallibleStreamingIterator;
        let (mut taken, mut held) = (0_usize, 0_u64);
        let columns = self.query.columns.len();
        while !self.ended {
            if !self.waiting {
                self.rows.advance().map_err(failed(|| "reading".into()))?;
            }
            let Some(row) = self.rows.get() else {
                self.ended = true;
                break;
            };
            let size = row_bytes(row, columns)?;
            if size > self.max_row_bytes {
                return Err(Error::new(
                    code::ROW_TOO_LARGE,
                    format!("a row has {size} bytes; max_row_bytes is {}", self.max_row_bytes),
                )
                .hint("raise max_row_bytes, or leave the large column out"));
            }
            if held + size > bytes {
                self.waiting = true;
                if taken == 0 {
                    return Ok(Filled::NeedsMore(size));
                }
                break;
            }
            for (i, (builder, column)) in self.builders.iter_mut().zip(&self.query.columns).enumerate() {
                types::read_cell(column, builder, row.get_ref(i).map_err(failed(|| "reading".into()))?)?;
            }
            note(&self.query.order, &mut self.last, row, columns)?;
            self.waiting = false;
            held += size;
            taken += 1;
        }
        if taken == 0 {
            return Ok(Filled::End);
        }
        let schema = TableSchema {
            columns: self.query.columns.clone(),
            key: Vec::new(),
        }
        .arrow_schema();
        let arrays = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(taken));
        let batch = RecordBatch::try_new_with_options(schema, arrays, &options)
            .map_err(|e| Error::bug("a batch does not fit its schema").caused_by(e))?;
        Ok(Filled::Batch(batch, self.position()?))
    }

    fn position(&self) -> Result<Option<Position>> {
        let stand = match (&self.query.order, self.last.first()) {
            (Order::None, _) => return Ok(None),
            (Order::Rowid(_, schema), Some(KeyPart::Integer(rowid))) => Stand::Rowid {
                rowid: *rowid,
                schema: *schema,
            },
            (Order::Rowid(..), _) => return Err(Error::bug("a rowid that is no integer")),
            (Order::Key(_), _) => Stand::Key { key: self.last.clone() },
        };
        serde_json::to_string(&stand)
            .map(|s| Some(Position(s)))
            .map_err(|e| Error::bug("a position does not serialise").caused_by(e))
    }
}

fn row_bytes(row: &Row<'_>, columns: usize) -> Result<u64> {
    let mut total = 8;
    for i in 0..columns {
        total += value_bytes(row.get_ref(i).map_err(failed(|| "reading".into()))?);
    }
    Ok(total)
}

/// Remembers a row's key, which is selected behind its columns.
fn note(order: &Order, last: &mut Vec<KeyPart>, row: &Row<'_>, columns: usize) -> Result<()> {
    let n = match order {
        Order::Key(names) => names.len(),
        Order::Rowid(..) => 1,
        Order::None => 0,
    };
    for i in 0..n {
        let value = row.get_ref(columns + i).map_err(failed(|| "reading".into()))?;
        match last.get_mut(i) {
            Some(slot) => KeyPart::set(slot, value)?,
            None => last.push(KeyPart::new(value)?),
        }
    }
    Ok(())
}

/// Where a reader is, for its errors.
struct Place {
    file: String,
    table: Arc<TableId>,
    partition: String,
}

impl Place {
    fn on(&self, e: Error) -> Error {
        e.at("table", self.table.to_string())
            .at("partition", &self.partition)
            .at("file", &self.file)
    }
}

struct SqliteReader {
    commands: mpsc::UnboundedSender<Fill>,
    interrupt: InterruptHandle,
    context: ReadContext,
    place: Place,
    /// The bytes to ask for next.
    want: usize,
    /// What was asked for, with the memory reserved for it: a dropped `next` loses neither.
    pending: Option<(oneshot::Receiver<Result<Filled>>, Hold)>,
    queue: VecDeque<Event>,
    ended: bool,
}

impl Drop for SqliteReader {
    fn drop(&mut self) {
        self.interrupt.interrupt();
    }
}

#[async_trait]
impl Reader for SqliteReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            if self.context.cancel.is_cancelled() {
                return Err(self
                    .place
                    .on(Error::new(code::INTERRUPTED, "reading was stopped on request")));
            }
            if self.pending.is_none() {
                let hold = tokio::select! {
                    hold = self.context.budget.reserve(self.want) => hold,
                    () = self.context.cancel.cancelled() => continue,
                };
                let (reply, answer) = oneshot::channel();
                let bytes = self.want as u64;
                self.commands
                    .send(Fill { bytes, reply })
                    .map_err(|_| self.place.on(client::gone()))?;
                self.pending = Some((answer, hold));
            }
            let Some((answer, _)) = self.pending.as_mut() else {
                continue;
            };
            let filled = answer.await.map_err(|_| client::gone()).and_then(|r| r);
            let hold = self.pending.take().map_or(Hold::none(), |(_, hold)| hold);
            match filled.map_err(|e| self.place.on(e))? {
                Filled::End => self.ended = true,
                Filled::NeedsMore(bytes) => self.want = bytes as usize,
                Filled::Batch(rows, position) => {
                    self.want = self.context.batch_bytes;
                    let batch = ChangeBatch::inserts(self.place.table.clone(), rows, hold);
                    self.queue.push_back(Event::Rows(batch));
                    self.queue.extend(position.map(|position| Event::Boundary {
                        position,
                        committed_at: None,
                        tx: None,
                    }));
                }
            }
        }
    }
}
