//! SQLite as a source: describing, cutting, and reading in key order.
//!
//! A reader has one statement open in one snapshot and steps through it, so its order is its index's and nothing is
//! sorted twice. Its position is the key of the last row in exactly the form SQLite stores it. A table without a key is
//! read in rowid order; rowids of such a table change when the database is vacuumed, so the position carries the schema
//! version, which a vacuum raises. A view has no order to resume in and is committed once, at its end.

use super::catalog::{self, CatalogTable};
use super::client::{self, Access, failed, with_connection};
use super::slices::{self, value_bytes};
use super::sql::{list, quote, row_compare};
use super::types::{self, Cell};
use super::{SqliteConfig, ddl};
use arrow_array::{RecordBatch, RecordBatchOptions};
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, InterruptHandle, Row};
use std::collections::VecDeque;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::{Finding, PlannedSlice, ReadContext, Reader, SliceRequest, Source, TableInfo};
use synctool_core::text::ColumnBuilder;
use tokio::sync::{mpsc, oneshot};

/// SQLite as a source.
#[derive(Debug)]
pub(super) struct SqliteSource {
    config: Arc<SqliteConfig>,
}

impl SqliteSource {
    pub(super) fn new(config: Arc<SqliteConfig>) -> Self {
        SqliteSource { config }
    }

    async fn read<T: Send + 'static>(&self, work: impl FnOnce(&Connection) -> Result<T> + Send + 'static) -> Result<T> {
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

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let (read, request) = (read.clone(), request.clone());
        self.read(move |conn| slices::cut(conn, &read, &request)).await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        read.plain_only(self.engine())?;
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
                let wal = mode.eq_ignore_ascii_case("wal");
                let mut findings = vec![Finding {
                    what: "journal mode".into(),
                    ok: true,
                    found: if wal {
                        mode
                    } else {
                        format!("{mode}: a long read keeps writers waiting")
                    },
                    fix: if wal {
                        String::new()
                    } else {
                        "PRAGMA journal_mode = WAL".into()
                    },
                }];
                for table in &names {
                    findings.push(examine_table(conn, table));
                }
                Ok(findings)
            })
            .await;
        found.unwrap_or_else(|e| {
            vec![Finding {
                what: format!("file {}", self.config.path.display()),
                ok: false,
                found: e.to_string(),
                fix: e.next_step().unwrap_or("").into(),
            }]
        })
    }
}

fn examine_table(conn: &Connection, table: &TableId) -> Finding {
    let (ok, found, fix) = match catalog::must_find(conn, table) {
        Err(e) => (false, e.message().to_string(), e.next_step().unwrap_or("").to_string()),
        Ok(t) if t.kind != "table" => (true, format!("a {}: read as one partition", t.kind), String::new()),
        Ok(t) if t.key().is_empty() => (
            true,
            "no key: read as one partition, in rowid order".into(),
            String::new(),
        ),
        Ok(t) => {
            let parents = ddl::has_parents(conn, &t.name).unwrap_or(false);
            let note = if parents { ", with foreign keys" } else { "" };
            (true, format!("key {}{note}", t.key().join(", ")), String::new())
        }
    };
    Finding {
        what: format!("table {table}"),
        ok,
        found,
        fix,
    }
}

/// What a reading thread does.
struct Request {
    read: ReadSpec,
    slice: Slice,
    after: Option<Position>,
    max_row_bytes: u64,
}

/// By what the rows of a slice are ordered and resumed.
enum Order {
    Key(Vec<String>),
    /// The rowid, good for as long as the schema version stays.
    Rowid(&'static str, i64),
    None,
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
        let query = Query::build(&conn, request)?;
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

struct Query {
    sql: String,
    parameters: Vec<Cell<'static>>,
    columns: Vec<Column>,
    order: Order,
}

impl Query {
    fn build(conn: &Connection, request: &Request) -> Result<Self> {
        let table = catalog::must_find(conn, &request.read.table)?;
        let mut selected = Vec::new();
        for c in &request.read.columns {
            // A name that is not there would be taken for a text in double quotes.
            let found = table.column(&c.source).ok_or_else(|| {
                let known: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
                Error::new(code::COLUMN_MISSING, format!("column {} does not exist", c.source))
                    .hint(format!("it has: {}", known.join(", ")))
            })?;
            selected.push(quote(&found.name));
        }
        let order = order(conn, &table, &request.slice)?;
        let (mut terms, mut parameters) = (Vec::new(), Vec::new());
        if let Slice::Key(range) = &request.slice {
            for (op, bound) in [(">=", &range.lower), ("<", &range.upper)] {
                let Some(values) = bound else { continue };
                terms.push(row_compare(&range.columns, op, parameters.len() + 1));
                for (name, value) in range.columns.iter().zip(values) {
                    let column = table
                        .column(name)
                        .ok_or_else(|| Error::new(code::COLUMN_MISSING, format!("column {name} does not exist")))?;
                    let plain = Column::new(name, types::column_type(&column.declared));
                    parameters.push(types::bound(&plain, types::store(&column.declared), value)?);
                }
            }
        }
        if let Some(after) = &request.after {
            let (names, values) = resume(&order, after)?;
            let at = parameters.len() + 1;
            terms.push(match (&order, names.as_slice()) {
                (Order::Rowid(name, _), _) => format!("{name} > ?{at}"),
                (_, names) => row_compare(names, ">", at),
            });
            parameters.extend(values);
        }
        let by = match &order {
            Order::Key(names) => list("", names),
            Order::Rowid(name, _) => (*name).to_string(),
            Order::None => String::new(),
        };
        if !by.is_empty() {
            selected.push(by.clone());
        }
        let sql = format!(
            "SELECT {} FROM {}{}{}",
            if selected.is_empty() {
                "1".to_string()
            } else {
                selected.join(", ")
            },
            quote(&table.name),
            if terms.is_empty() {
                String::new()
            } else {
                format!(" WHERE {}", terms.join(" AND "))
            },
            if by.is_empty() {
                String::new()
            } else {
                format!(" ORDER BY {by}")
            },
        );
        Ok(Query {
            sql,
            parameters,
            columns: request.read.columns.iter().map(|c| c.column.clone()).collect(),
            order,
        })
    }
}

fn order(conn: &Connection, table: &CatalogTable, slice: &Slice) -> Result<Order> {
    let whole = |key: &[String]| key.iter().all(|k| table.column(k).is_some_and(|c| table.never_null(c)));
    match slice {
        Slice::Key(range) => {
            if !whole(&range.columns) && slices::holds_null(conn, table, &range.columns)? {
                return Err(Error::new(
                    code::VALUE_MALFORMED,
                    format!("a key column ({}) holds NULL", range.columns.join(", ")),
                )
                .hint("give these rows a key, or read the table without one"));
            }
            Ok(Order::Key(range.columns.clone()))
        }
        Slice::File { .. } => Err(Error::bug("a file slice for a SQLite table")),
        Slice::Cut(_) | Slice::Keys(_) => Err(Error::new(
            code::UNSUPPORTED,
            "SQLite tables are read whole or by key ranges",
        )),
        Slice::All => {
            let key = table.key();
            if !key.is_empty() && whole(&key) {
                return Ok(Order::Key(key));
            }
            match table.rowid() {
                Some(rowid) => {
                    let version = conn
                        .query_row("PRAGMA schema_version", [], |r| r.get(0))
                        .map_err(failed(|| "reading the schema version".into()))?;
                    Ok(Order::Rowid(rowid, version))
                }
                None => Ok(Order::None),
            }
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

/// The columns and values of a position.
fn resume(order: &Order, after: &Position) -> Result<(Vec<String>, Vec<Cell<'static>>)> {
    let unknown = || {
        Error::new(code::STATE_STORE, "the stored position does not fit the table's key")
            .hint("the key changed since the run began: `synctool state reset` starts over")
    };
    let stand: Stand = serde_json::from_str(after.as_str()).map_err(|e| unknown().caused_by(e))?;
    match (order, stand) {
        (Order::Key(names), Stand::Key { key }) if key.len() == names.len() => {
            Ok((names.clone(), key.into_iter().map(KeyPart::cell).collect()))
        }
        (Order::Rowid(_, version), Stand::Rowid { rowid, schema }) => {
            if schema != *version {
                return Err(Error::new(
                    code::STATE_STORE,
                    "the database was vacuumed or altered since the run began, so its rows without a key may have new numbers",
                )
                .hint("`synctool state reset` starts over"));
            }
            Ok((Vec::new(), vec![Cell::Integer(rowid)]))
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
