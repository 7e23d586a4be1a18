//! Sources in memory: tables that are read by slices, and a log with transactions, partial updates, key changes,
//! truncates, watermarks, invisible commits and partitions that can be given away.

use super::memory::Memory;
use super::rows::{Row, Rows, batch, key_of};
use crate::backfill::{Backfill, BackfillPosition, Chunk, ChunkSource, Pending, Requests, WATERMARK_PREFIX};
use crate::budget::Hold;
use crate::change::{ChangeBatch, Event, KeyRange, Op, Ops, Presence, Tx};
use crate::error::{Error, Result, code};
use crate::plan::{Partition, ReadSpec, Slice, Work};
use crate::progress::Position;
use crate::query::{Comparison, Condition, Filter, Term, Test};
use crate::schema::{Column, ColumnType, TableId, TableSchema};
use crate::source::{Assignment, Extent, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo};
use arrow_array::UInt8Array;
use arrow_buffer::BooleanBuffer;
use async_trait::async_trait;
use futures::stream::{BoxStream, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// The tables of a [`Memory`] as a query source: what a full run reads.
#[derive(Debug, Clone)]
pub struct MemoryTables(pub Memory);

#[async_trait]
impl Source for MemoryTables {
    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn tables(&self, _: Option<&str>) -> Result<Vec<TableInfo>> {
        let info = |table| TableInfo {
            table,
            kind: "table".into(),
            rows: None,
            bytes: None,
        };
        Ok(self.0.names().into_iter().map(info).collect())
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        let missing = || Error::new(code::TABLE_MISSING, format!("table {table} does not exist"));
        self.0.table(table).map(|t| t.schema).ok_or_else(missing)
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        let schema = self.describe(&read.table).await?;
        read.columns
            .iter()
            .map(|c| {
                let found = match c.term() {
                    Term::Column { name, .. } => schema.column(&name).cloned(),
                    Term::Sql(_) => Some(Column::new("", ColumnType::Text { max: None })),
                };
                let found = found.ok_or_else(|| Error::new(code::COLUMN_MISSING, format!("no column {}", c.source)))?;
                Ok(Column {
                    name: c.column.name.clone(),
                    ..found
                })
            })
            .collect()
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let values: Vec<String> = self
            .select(read, slice)?
            .1
            .iter()
            .filter_map(|(_, r)| {
                let schema = self.0.table(&read.table)?.schema;
                value(&schema, r, term)
            })
            .collect();
        Ok(values.iter().min().map(|min| Extent {
            min: min.clone(),
            max: values.iter().max().cloned().unwrap_or_default(),
        }))
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let (schema, rows) = self.select(read, slice)?;
        let found: BTreeSet<Vec<Option<String>>> = rows
            .iter()
            .map(|(_, r)| terms.iter().map(|t| value(&schema, r, t)).collect())
            .collect();
        Ok(found.into_iter().take(limit).collect())
    }

    async fn counting(&self, _: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        let conditions = serde_json::to_string(conditions).map_err(|e| Error::bug(e.to_string()))?;
        Ok(Term::Sql(format!("count_if({conditions})")))
    }

    async fn settled(&self, _: &TableId, _: &Column, _: Option<&str>, _: Duration) -> Result<Settled> {
        Ok(Settled {
            bound: self.0.clock(),
            now: self.0.clock(),
            held_by: None,
        })
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let table = self.0.table(&read.table).ok_or_else(|| Error::bug("no table"))?;
        let keys: Vec<&Vec<String>> = table.rows.keys().collect();
        let all = PlannedSlice::all(keys.len() as u64, 0);
        if request.single || request.key.is_empty() || keys.len() < 2 {
            return Ok(vec![all]);
        }
        let step = keys.len().div_ceil(request.min_slices.min(keys.len())).max(1);
        let bounds: Vec<Option<Vec<String>>> = std::iter::once(None)
            .chain(keys.iter().skip(step).step_by(step).map(|k| Some((*k).clone())))
            .collect();
        let slice = |(i, lower): (usize, &Option<Vec<String>>)| PlannedSlice {
            label: format!("part_{i}"),
            slice: Slice::Key(KeyRange {
                columns: request.key.clone(),
                lower: lower.clone(),
                upper: bounds.get(i + 1).cloned().flatten(),
            }),
            rows: step as u64,
            bytes: 0,
        };
        Ok(bounds.iter().enumerate().map(slice).collect())
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let Work::Read(slice) = &partition.work else {
            return Err(Error::bug("not a slice of a table in memory"));
        };
        let (schema, rows) = self.select(read, slice)?;
        let after: Option<Vec<String>> = after
            .map(|p| serde_json::from_str(p.as_str()))
            .transpose()
            .map_err(|e| Error::bug(e.to_string()))?;
        let rows = rows
            .into_iter()
            .filter(|(k, _)| after.as_ref().is_none_or(|a| k > a))
            .collect::<Vec<_>>();
        let rows = match read.group_by.is_empty() {
            true => rows
                .into_iter()
                .map(|(k, r)| (k, read.columns.iter().map(|c| value(&schema, &r, &c.term())).collect()))
                .collect(),
            false => grouped(&schema, read, &rows),
        };
        Ok(Box::new(SliceReader {
            read: read.clone(),
            rows,
            context: context.clone(),
            boundary: None,
        }))
    }
}

/// A row under its key.
type Keyed = (Vec<String>, Row);

impl MemoryTables {
    /// The rows of a slice that meet the conditions, whole.
    fn select(&self, read: &ReadSpec, slice: &Slice) -> Result<(TableSchema, Vec<Keyed>)> {
        let table = self
            .0
            .table(&read.table)
            .ok_or_else(|| Error::new(code::TABLE_MISSING, "no table"))?;
        let schema = table.schema;
        let inside = |k: &Vec<String>, range: &KeyRange| {
            range.lower.as_ref().is_none_or(|l| k >= l) && range.upper.as_ref().is_none_or(|u| k < u)
        };
        let rows = table
            .rows
            .into_iter()
            .filter(|(k, r)| match slice {
                Slice::All => true,
                Slice::Key(range) => inside(k, range),
                Slice::Cut(cut) => {
                    cut.key.as_ref().is_none_or(|range| inside(k, range))
                        && cut.conditions.iter().all(|c| meets(&schema, r, c))
                }
                Slice::Keys(list) => {
                    let key: Vec<Option<String>> = list.terms.iter().map(|t| value(&schema, r, t)).collect();
                    list.keys.contains(&key)
                }
                Slice::File { .. } => false,
            })
            .filter(|(_, r)| read.filters.iter().all(|f| keeps(&schema, r, f)))
            .collect();
        Ok((schema, rows))
    }
}

fn value(schema: &TableSchema, row: &Row, term: &Term) -> Option<String> {
    match term {
        Term::Column { name, .. } => row[schema.index_of(name)?].clone(),
        Term::Sql(_) => None,
    }
}

/// One row per group. The aggregates of this engine are `count(*)`, `sum(column)` of whole numbers and
/// `count_if(conditions)`, any of which counts.
fn grouped(schema: &TableSchema, read: &ReadSpec, rows: &[(Vec<String>, Row)]) -> VecDeque<(Vec<String>, Row)> {
    let by: Vec<Term> = read
        .group_by
        .iter()
        .filter_map(|g| read.columns.iter().find(|c| c.column.name == *g))
        .map(|c| c.term())
        .collect();
    let mut groups: BTreeMap<Vec<Option<String>>, Vec<&Row>> = BTreeMap::new();
    for (_, row) in rows {
        let group = by.iter().map(|t| value(schema, row, t)).collect();
        groups.entry(group).or_default().push(row);
    }
    let made = |rows: &[&Row], term: &Term| match term {
        Term::Sql(sql) if sql == "count(*)" => Some(rows.len().to_string()),
        Term::Sql(sql) if sql.starts_with("count_if(") => {
            let conditions = sql.strip_prefix("count_if(")?.strip_suffix(')')?;
            let conditions: Vec<Condition> = serde_json::from_str(conditions).ok()?;
            let counts = |row: &&&Row| conditions.iter().any(|c| meets(schema, row, c));
            Some(rows.iter().filter(counts).count().to_string())
        }
        Term::Sql(sql) => {
            let column = Term::column(sql.strip_prefix("sum(")?.strip_suffix(')')?);
            let values = rows
                .iter()
                .filter_map(|r| value(schema, r, &column)?.parse::<i64>().ok());
            Some(values.sum::<i64>().to_string())
        }
        term => value(schema, rows.first()?, term),
    };
    groups
        .into_iter()
        .map(|(group, rows)| {
            let key = group.into_iter().map(Option::unwrap_or_default).collect();
            (key, read.columns.iter().map(|c| made(&rows, &c.term())).collect())
        })
        .collect()
}

fn keeps(schema: &TableSchema, row: &Row, filter: &Filter) -> bool {
    match filter {
        Filter::Test(condition) => meets(schema, row, condition),
        Filter::Sql(_) => false,
    }
}

/// Values compare as texts here.
fn meets(schema: &TableSchema, row: &Row, condition: &Condition) -> bool {
    let value = value(schema, row, &condition.term);
    match (&condition.test, value) {
        (Test::Null, v) => v.is_none(),
        (Test::NullOrIn(values), v) => v.is_none_or(|v| values.contains(&v)),
        (Test::NullOrNotIn(values), v) => v.is_none_or(|v| !values.contains(&v)),
        (Test::NullOrRange { .. }, None) => true,
        (_, None) => false,
        (Test::NotNull, _) => true,
        (Test::Range { lower, upper } | Test::NullOrRange { lower, upper }, Some(v)) => {
            lower.as_ref().is_none_or(|l| v >= *l) && upper.as_ref().is_none_or(|u| v < *u)
        }
        (Test::In(values), Some(v)) => values.contains(&v),
        (Test::NotIn(values), Some(v)) => !values.contains(&v),
        (Test::Compare(Comparison::Equal, w), Some(v)) => v == *w,
        (Test::Compare(Comparison::NotEqual, w), Some(v)) => v != *w,
        (Test::Compare(Comparison::Less, w), Some(v)) => v < *w,
        (Test::Compare(Comparison::LessOrEqual, w), Some(v)) => v <= *w,
        (Test::Compare(Comparison::Greater, w), Some(v)) => v > *w,
        (Test::Compare(Comparison::GreaterOrEqual, w), Some(v)) => v >= *w,
    }
}

/// Reads pages of at most three rows, with a boundary after each.
struct SliceReader {
    read: ReadSpec,
    rows: VecDeque<(Vec<String>, Row)>,
    context: ReadContext,
    boundary: Option<Position>,
}

#[async_trait]
impl Reader for SliceReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        if let Some(position) = self.boundary.take() {
            return Ok(Some(Event::Boundary {
                position,
                committed_at: None,
                tx: None,
            }));
        }
        if self.rows.is_empty() {
            return Ok(None);
        }
        let hold = self.context.budget.reserve(1024).await;
        let page: Vec<(Vec<String>, Row)> = self.rows.drain(..self.rows.len().min(3)).collect();
        let last = page.last().map(|(k, _)| k.clone()).unwrap_or_default();
        self.boundary = Some(Position(
            serde_json::to_string(&last).map_err(|e| Error::bug(e.to_string()))?,
        ));
        let rows = batch(&self.read.schema(), page.iter().map(|(_, r)| r))?;
        Ok(Some(Event::Rows(ChangeBatch::inserts(
            Arc::new(self.read.table.clone()),
            rows,
            hold,
        ))))
    }
}

/// One change inside a transaction.
#[derive(Debug, Clone)]
enum Change {
    Row {
        table: TableId,
        op: Op,
        row: Row,
        present: Vec<bool>,
        before: Option<Row>,
    },
    Truncate(TableId),
    Message(String, String),
}

#[derive(Debug, Clone)]
struct Transaction {
    id: u64,
    changes: Vec<Change>,
}

#[derive(Debug, Default)]
struct LogWorld {
    tables: BTreeMap<TableId, (TableSchema, Rows)>,
    /// One list of transactions per partition of the log.
    logs: Vec<Vec<Transaction>>,
    next_tx: u64,
    /// What readers of tables see: behind `tables` while a commit is in the log but not visible yet.
    visible: Option<BTreeMap<TableId, (TableSchema, Rows)>>,
    invisible: Vec<u64>,
    acknowledged: Vec<Option<Position>>,
    /// Runs after every chunk read, between the two watermarks: other people's transactions.
    between: VecDeque<Between>,
    /// Runs right behind a chunk's high watermark.
    behind: VecDeque<Between>,
}

struct Between(Box<dyn FnOnce(&MemoryLog) + Send>);

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

/// A database in memory with a log; clones share it, as connections share a server.
#[derive(Debug, Clone)]
pub struct MemoryLog {
    world: Arc<Mutex<LogWorld>>,
    /// Where a reader of partition 0 without a position starts: a backfill brings what came before.
    start: BackfillPosition,
    chunk_rows: usize,
    requests: Arc<Requests>,
    /// What `assignments` gives, in order; `None` adds all partitions at once.
    script: Option<Vec<Assignment>>,
    /// Whether transactions come as one until a message.
    joining: bool,
}

/// Writes one transaction.
#[derive(Debug)]
pub struct Writer<'a> {
    world: MutexGuard<'a, LogWorld>,
    partition: usize,
    changes: Vec<Change>,
}

impl MemoryLog {
    /// An empty database whose log has `partitions` partitions.
    pub fn new(partitions: usize) -> Self {
        let world = LogWorld {
            logs: vec![Vec::new(); partitions],
            acknowledged: vec![None; partitions],
            next_tx: 100,
            ..LogWorld::default()
        };
        MemoryLog {
            world: Arc::new(Mutex::new(world)),
            start: BackfillPosition::default(),
            chunk_rows: 3,
            requests: Arc::default(),
            script: None,
            joining: false,
        }
    }

    fn world(&self) -> MutexGuard<'_, LogWorld> {
        self.world.lock().expect("not poisoned")
    }

    /// The same database, whose log is read from here on, with these backfills beside it.
    pub fn with_backfill(mut self, pending: Vec<Pending>, chunk_rows: usize) -> Self {
        let log = Some(Position(self.world().logs[0].len().to_string()));
        (self.start, self.chunk_rows) = (
            BackfillPosition {
                log,
                pending,
                ..BackfillPosition::default()
            },
            chunk_rows,
        );
        self
    }

    /// Where its readers hear requests.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// The same database, whose partitions come and go as told.
    pub fn with_script(mut self, script: Vec<Assignment>) -> Self {
        self.script = Some(script);
        self
    }

    /// The same database, whose log gives transactions that follow each other as one: the boundary behind them names the
    /// last one only.
    pub fn joining(mut self, joining: bool) -> Self {
        self.joining = joining;
        self
    }

    /// Makes a table.
    pub fn create(&self, table: &TableId, schema: TableSchema) {
        self.world().tables.insert(table.clone(), (schema, Rows::new()));
    }

    /// The rows of a table as they are committed.
    pub fn rows(&self, table: &TableId) -> Rows {
        self.world().tables[table].1.clone()
    }

    /// The watermarks in the log so far.
    pub fn watermarks(&self) -> Vec<String> {
        let world = self.world();
        let changes = world.logs.iter().flatten().flat_map(|tx| &tx.changes);
        let said = changes.filter_map(|change| match change {
            Change::Message(prefix, content) if prefix == WATERMARK_PREFIX => Some(content.to_string()),
            _ => None,
        });
        said.collect()
    }

    /// Up to where a partition's log was acknowledged.
    pub fn acknowledged(&self, partition: usize) -> Option<Position> {
        self.world().acknowledged[partition].clone()
    }

    /// The partition ids, as the engine knows them.
    pub fn partition(&self, n: usize) -> Partition {
        Partition::new(format!("log_{n}"), Work::Log)
    }

    /// Something that happens after the next chunk is read, before its high watermark.
    pub fn between(&self, work: impl FnOnce(&MemoryLog) + Send + 'static) {
        self.world().between.push_back(Between(Box::new(work)));
    }

    /// Something that happens right behind the next chunk's high watermark, before that is read.
    pub fn behind(&self, work: impl FnOnce(&MemoryLog) + Send + 'static) {
        self.world().behind.push_back(Between(Box::new(work)));
    }

    /// Begins a transaction in a partition of the log.
    pub fn begin(&self, partition: usize) -> Writer<'_> {
        Writer {
            world: self.world(),
            partition,
            changes: Vec::new(),
        }
    }

    /// From here on, commits are in the log but not visible to chunks, until [`Self::reveal`].
    pub fn hide(&self) {
        let mut world = self.world();
        world.visible = Some(world.tables.clone());
    }

    /// Makes hidden commits visible.
    pub fn reveal(&self) {
        let mut world = self.world();
        world.visible = None;
        world.invisible.clear();
    }
}

impl Writer<'_> {
    fn table(&mut self, table: &TableId) -> &mut (TableSchema, Rows) {
        self.world.tables.get_mut(table).expect("the table exists")
    }

    /// Inserts a row, or replaces it if the key is there.
    pub fn put(mut self, table: &TableId, row: Row) -> Self {
        let (schema, rows) = self.table(table);
        let key = key_of(schema, &row).expect("has a key");
        let op = if rows.insert(key, row.clone()).is_some() {
            Op::Update
        } else {
            Op::Insert
        };
        let present = vec![true; row.len()];
        self.changes.push(Change::Row {
            table: table.clone(),
            op,
            row,
            present,
            before: None,
        });
        self
    }

    /// Changes some columns of a row (unchanged ones are not in the log, as with TOAST); its key may change.
    /// Nothing happens if there is no such row, or the new key is taken.
    pub fn update(mut self, table: &TableId, key: &[String], set: &[(usize, Option<String>)]) -> Self {
        let (schema, rows) = self.table(table);
        let Some(old) = rows.get(key).cloned() else { return self };
        let mut row = old.clone();
        set.iter().for_each(|(c, v)| row[*c] = v.clone());
        let new_key = key_of(schema, &row).expect("has a key");
        let keys = schema.key_indices().expect("has a key");
        if new_key != key && rows.contains_key(&new_key) {
            return self;
        }
        rows.remove(key);
        rows.insert(new_key.clone(), row.clone());
        let present: Vec<bool> = (0..row.len())
            .map(|c| keys.contains(&c) || set.iter().any(|(s, _)| *s == c))
            .collect();
        let before = (new_key != key).then(|| {
            (0..old.len())
                .map(|c| {
                    if keys.contains(&c) || set.len() > 1 {
                        old[c].clone()
                    } else {
                        None
                    }
                })
                .collect()
        });
        let shown = row
            .iter()
            .zip(&present)
            .map(|(v, p)| if *p { v.clone() } else { None })
            .collect();
        self.changes.push(Change::Row {
            table: table.clone(),
            op: Op::Update,
            row: shown,
            present,
            before,
        });
        self
    }

    /// A row comes that is not there yet, and one of its values is not in the log: as where a filter lets it in.
    /// Nothing happens if its key is taken.
    pub fn enter(mut self, table: &TableId, row: Row, without: usize) -> Self {
        let (schema, rows) = self.table(table);
        let key = key_of(schema, &row).expect("has a key");
        if rows.contains_key(&key) {
            return self;
        }
        rows.insert(key, row.clone());
        let present = (0..row.len()).map(|c| c != without).collect();
        let shown = row.into_iter().enumerate();
        self.changes.push(Change::Row {
            table: table.clone(),
            op: Op::Insert,
            row: shown.map(|(c, v)| v.filter(|_| c != without)).collect(),
            present,
            before: None,
        });
        self
    }

    /// Deletes a row, if it is there.
    pub fn delete(mut self, table: &TableId, key: &[String]) -> Self {
        let (schema, rows) = self.table(table);
        let Some(old) = rows.remove(key) else { return self };
        let keys = schema.key_indices().expect("has a key");
        let row: Row = (0..old.len())
            .map(|c| if keys.contains(&c) { old[c].clone() } else { None })
            .collect();
        let present = (0..old.len()).map(|c| keys.contains(&c)).collect();
        self.changes.push(Change::Row {
            table: table.clone(),
            op: Op::Delete,
            row,
            present,
            before: None,
        });
        self
    }

    /// Empties a table.
    pub fn truncate(mut self, table: &TableId) -> Self {
        self.table(table).1.clear();
        self.changes.push(Change::Truncate(table.clone()));
        self
    }

    /// Writes a message.
    pub fn message(mut self, prefix: &str, content: &str) -> Self {
        self.changes.push(Change::Message(prefix.into(), content.into()));
        self
    }

    /// Commits.
    pub fn commit(mut self) {
        let id = self.world.next_tx;
        self.world.next_tx += 1;
        let changes = std::mem::take(&mut self.changes);
        // A watermark is written by whoever takes the snapshot, so it is over by then.
        let message = |c: &Change| matches!(c, Change::Message(..));
        if self.world.visible.is_some() && !changes.iter().all(message) {
            self.world.invisible.push(id);
        }
        let partition = self.partition;
        self.world.logs[partition].push(Transaction { id, changes });
    }
}

#[async_trait]
impl Source for MemoryLog {
    fn engine(&self) -> &'static str {
        "memory"
    }

    async fn tables(&self, _: Option<&str>) -> Result<Vec<TableInfo>> {
        let info = |table: &TableId| TableInfo {
            table: table.clone(),
            kind: "table".into(),
            rows: None,
            bytes: None,
        };
        Ok(self.world().tables.keys().map(info).collect())
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.schema(table).await
    }

    async fn assignments(&self) -> Result<BoxStream<'static, Assignment>> {
        let n = self.world().logs.len();
        let all = vec![Assignment::Added((0..n).map(|i| self.partition(i)).collect())];
        Ok(futures::stream::iter(self.script.clone().unwrap_or(all)).boxed())
    }

    async fn open(
        &self,
        _: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        _: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let n: usize = partition
            .id
            .as_str()
            .trim_start_matches("log_")
            .parse()
            .map_err(|_| Error::bug("not a log partition"))?;
        let start = match after {
            Some(p) => BackfillPosition::parse(p)?,
            None if n == 0 => self.start.clone(),
            None => BackfillPosition::default(),
        };
        let next = match &start.log {
            Some(p) => p.as_str().parse().map_err(|_| Error::bug("not a log position"))?,
            None => 0,
        };
        let log = LogReader {
            log: self.clone(),
            partition: n,
            next,
            out: VecDeque::new(),
            inside: false,
            ended: Vec::new(),
        };
        let backfill = Backfill::new(Box::new(log), Arc::new(self.clone()), start, self.chunk_rows);
        Ok(Box::new(backfill.hearing(self.requests.clone())))
    }
}

/// Reads the log to its present end.
struct LogReader {
    log: MemoryLog,
    partition: usize,
    next: usize,
    out: VecDeque<Event>,
    /// Whether a transaction was handed out and its boundary was not.
    inside: bool,
    ended: Vec<u64>,
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        tokio::task::yield_now().await;
        while self.out.is_empty() {
            let world = self.log.world();
            let Some(tx) = world.logs[self.partition].get(self.next).cloned() else {
                return Ok(None);
            };
            self.next += 1;
            if !self.inside {
                self.out.push_back(Event::Begin(Tx {
                    id: tx.id,
                    committed_at: None,
                }));
            }
            for change in tx.changes {
                self.out.push_back(event(&world, change)?);
            }
            self.inside = self.log.joining && self.next < world.logs[self.partition].len();
            match self.inside {
                true => self.ended.push(tx.id),
                false => self.out.push_back(Event::Boundary {
                    position: Position(self.next.to_string()),
                    committed_at: None,
                    tx: Some(tx.id),
                }),
            }
        }
        Ok(self.out.pop_front())
    }

    fn ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        self.log.world().acknowledged[self.partition] = Some(durable.clone());
        Ok(())
    }
}

fn event(world: &LogWorld, change: Change) -> Result<Event> {
    Ok(match change {
        Change::Message(prefix, content) => Event::Message {
            prefix,
            content: content.into(),
        },
        Change::Truncate(table) => Event::Truncate {
            tables: vec![Arc::new(table)],
            cascade: false,
            restart_identity: false,
        },
        Change::Row {
            table,
            op,
            row,
            present,
            before,
        } => {
            let schema = &world.tables[&table].0;
            let presence = (!present.iter().all(|p| *p))
                .then(|| Presence(present.iter().map(|p| Some(BooleanBuffer::from(vec![*p]))).collect()));
            let before = before.map(|b| batch(schema, [&b])).transpose()?;
            let ops = Ops::Each(UInt8Array::from(vec![op as u8]));
            let rows = batch(schema, [&row])?;
            Event::Rows(ChangeBatch::new(
                Arc::new(table),
                rows,
                ops,
                presence,
                before,
                Hold::none(),
            )?)
        }
    })
}

#[async_trait]
impl ChunkSource for MemoryLog {
    async fn write_watermark(&self, content: &str) -> Result<()> {
        self.begin(0).message(WATERMARK_PREFIX, content).commit();
        if content.starts_with("high") {
            let work = self.world().behind.pop_front();
            self.run(work);
        }
        Ok(())
    }

    async fn schema(&self, table: &TableId) -> Result<TableSchema> {
        let missing = || Error::new(code::TABLE_MISSING, format!("table {table} does not exist"));
        self.world().tables.get(table).map(|t| t.0.clone()).ok_or_else(missing)
    }

    async fn read_chunk(&self, table: &TableId, from: Option<&[String]>, limit: usize) -> Result<Chunk> {
        let chunk = {
            let world = self.world();
            let (schema, rows) = &world.visible.as_ref().unwrap_or(&world.tables)[table];
            let mut rows = rows.iter().filter(|(k, _)| from.is_none_or(|f| k.as_slice() >= f));
            let page: Vec<&Row> = rows.by_ref().take(limit).map(|(_, r)| r).collect();
            let next = rows.next().map(|(k, _)| k.clone());
            Chunk {
                rows: batch(schema, page)?,
                range: KeyRange {
                    columns: schema.key.clone(),
                    lower: from.map(<[String]>::to_vec),
                    upper: next.clone(),
                },
                next,
                in_progress: world.invisible.clone(),
                future: None,
            }
        };
        self.run_between();
        Ok(chunk)
    }

    fn key_places(&self, table: &TableId) -> Option<Vec<usize>> {
        let world = self.world();
        world
            .tables
            .get(table)
            .and_then(|(schema, _)| schema.key_indices().ok())
    }

    async fn read_keys(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Chunk> {
        let chunk = {
            let world = self.world();
            let (schema, rows) = &world.visible.as_ref().unwrap_or(&world.tables)[table];
            let found = keys.iter().filter_map(|k| rows.get(k));
            let rows = batch(schema, found)?;
            Chunk {
                rows,
                range: KeyRange::default(),
                next: None,
                in_progress: world.invisible.clone(),
                future: None,
            }
        };
        self.run_between();
        Ok(chunk)
    }
}

impl MemoryLog {
    fn run_between(&self) {
        let work = self.world().between.pop_front();
        self.run(work);
    }

    fn run(&self, work: Option<Between>) {
        if let Some(Between(work)) = work {
            work(self);
        }
    }
}
