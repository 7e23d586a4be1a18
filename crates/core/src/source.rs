//! Where rows come from.

use crate::blocks::BlockHashes;
use crate::budget::Budget;
use crate::change::{Event, RawFormat};
use crate::error::{Error, Result, code};
use crate::keys::Collation;
use crate::ledger::Tally;
use crate::plan::{Partition, ReadSpec, Slice};
use crate::progress::{PartitionId, Position};
use crate::query::{Condition, Term};
use crate::schema::{Column, TableId, TableSchema};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// A table as a catalog lists it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct TableInfo {
    /// Its name.
    pub table: TableId,
    /// What it is: `table`, `partitioned table`, `view`, `file` …
    pub kind: String,
    /// Rows by the catalog's estimate, if it has one.
    pub rows: Option<u64>,
    /// Bytes on disk, if known.
    pub bytes: Option<u64>,
}

/// One prerequisite, privilege or setting that was looked at.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Finding {
    /// What was looked at.
    pub what: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What to do about it, ready to run; empty where nothing is to be done.
    pub fix: String,
}

impl Finding {
    /// What was found of something, and what to do if that is not as it should be.
    pub fn new(what: impl Into<String>, ok: bool, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding {
            what: what.into(),
            ok,
            found: found.into(),
            fix: if ok { String::new() } else { fix.into() },
        }
    }

    /// Something that is as it should be.
    pub fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        Finding::new(what, true, found, "")
    }

    /// Something that is no fault and could be better.
    pub fn note(what: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding {
            fix: fix.into(),
            ..Finding::good(what, found)
        }
    }

    /// A table that can be described, or not.
    pub fn of_table(what: impl Into<String>, described: Result<TableSchema>) -> Self {
        match described {
            Ok(schema) => Finding::good(what, format!("{} columns", schema.columns.len())),
            Err(e) => Finding::of_error(what, &e),
        }
    }

    /// Something that is not, as an error says.
    pub fn of_error(what: impl Into<String>, e: &Error) -> Self {
        Finding::new(what, false, e.message(), e.next_step().unwrap_or_default())
    }
}

/// A slice with the planner's estimate.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedSlice {
    /// The readable end of its partition id (`id_1_250001`, `all`).
    pub label: String,
    /// The slice.
    pub slice: Slice,
    /// Rows expected.
    pub rows: u64,
    /// Bytes expected.
    pub bytes: u64,
}

impl PlannedSlice {
    /// The whole table.
    pub fn all(rows: u64, bytes: u64) -> Self {
        PlannedSlice {
            label: "all".into(),
            slice: Slice::All,
            rows,
            bytes,
        }
    }
}

/// What the planner asks a source to cut a table into.
#[derive(Debug, Clone)]
pub struct SliceRequest {
    /// The key to cut by, in source names; empty where the table has none.
    pub key: Vec<String>,
    /// Rows per slice, if the user fixed them; otherwise the source balances by its statistics.
    pub step: Option<u64>,
    /// At least so many slices for a table that is worth cutting.
    pub min_slices: usize,
    /// No slice should be larger than this, so that a kill loses little.
    pub max_slice_bytes: u64,
    /// One slice is wanted: by the destination (a single file), or for rows that are in no range of the key.
    pub single: bool,
}

/// What a reader gets from the engine.
#[derive(Debug, Clone)]
pub struct ReadContext {
    /// Reserve here before decoding.
    pub budget: Budget,
    /// Aim for batches of this many bytes.
    pub batch_bytes: usize,
    /// Refuse a larger row by name (table, partition, size).
    pub max_row_bytes: usize,
    /// Checked at boundaries.
    pub cancel: CancellationToken,
}

impl Default for ReadContext {
    fn default() -> Self {
        ReadContext {
            budget: Budget::new(256 << 20),
            batch_bytes: 4 << 20,
            max_row_bytes: 256 << 20,
            cancel: CancellationToken::new(),
        }
    }
}

/// A change in which partitions of a log this process reads.
#[derive(Debug, Clone, PartialEq)]
pub enum Assignment {
    /// These are ours now.
    Added(Vec<Partition>),
    /// These are no longer ours: commit at the last boundary and let go.
    Removed(Vec<PartitionId>),
}

/// Up to where a column that grows with every change has settled.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Settled {
    /// The first value that a transaction still open may yet write, as canonical text of the column's type. Every row
    /// with a smaller value that will ever be committed is committed.
    pub bound: String,
    /// The source's clock when it was looked at, RFC 3339 UTC.
    pub now: String,
    /// What holds the bound back by more than the margin (`pid 812, idle in transaction for 14 min, user app`).
    pub held_by: Option<String>,
}

/// The smallest and largest value of a term.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extent {
    /// The smallest, as canonical text.
    pub min: String,
    /// The largest.
    pub max: String,
}

/// A datastore that rows are read from. Shared by all partitions of a run; each partition gets a [`Reader`] of its own.
///
/// Contract, held by the conformance suite (`testing::conformance`): what `open` yields after a position is exactly
/// what came after it the first time; a bounded slice ends with `None`; slices of one request do not overlap and leave
/// no gap.
#[async_trait]
pub trait Source: Send + Sync {
    /// The engine's name (`postgresql`, `sqlite` …), as type names in [`Column::source_type`] are its.
    fn engine(&self) -> &'static str;

    /// Tables and views that the user may read, in all schemas or the one given.
    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>>;

    /// A table's columns and key; an error that names similar tables if it is not there.
    async fn describe(&self, table: &TableId) -> Result<TableSchema>;

    /// The columns that reading `read` would yield: for plain columns what [`Source::describe`] says, for terms what the
    /// engine says of the expression. In `read`, only names and terms of columns count.
    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        if !read.is_plain() {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!("{} computes no expressions, joins or filters", self.engine()),
            ));
        }
        let schema = self.describe(&read.table).await?;
        read.columns
            .iter()
            .map(|c| {
                Ok(Column {
                    name: c.column.name.clone(),
                    ..schema.must_column(&c.source, &read.table)?.clone()
                })
            })
            .collect()
    }

    /// The smallest and largest value of a term among the rows of a slice, NULLs apart; `None` where there are none.
    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let _ = (read, slice);
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} cannot tell the range of {term}", self.engine()),
        ))
    }

    /// The distinct values of some terms among the rows of a slice, as canonical texts (`None` is NULL), at most
    /// `limit` of them.
    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let _ = (read, terms, slice, limit);
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} cannot list distinct values", self.engine()),
        ))
    }

    /// An expression of the source's SQL that counts, of the rows of a group, those that meet one of these conditions.
    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        let _ = (read, conditions);
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} cannot count the rows of groups", self.engine()),
        ))
    }

    /// Up to where a column stamped by the database has settled: the smaller of the clock and the start of the oldest
    /// open transaction, less the margin. To be asked before the reading snapshot is taken. Fails closed where open
    /// transactions cannot be seen, naming the missing right. `zone` is the time zone of a column without one.
    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        let _ = (column, zone, margin);
        Err(Error::new(
            code::UNSUPPORTED,
            format!(
                "{} shows no open transactions, so nobody knows which rows of {table} have settled",
                self.engine()
            ),
        )
        .hint("set `stamped_by: app` with a lag, and let a hash strategy repair what comes later than that"))
    }

    /// Whether all readers of this source see one snapshot, so that a table may be cut by values that rows change. A
    /// reader of [`ReadSpec::one_snapshot`] is refused ([`code::SNAPSHOT_LOST`]) where that snapshot is gone.
    async fn shares_snapshot(&self) -> Result<bool> {
        Ok(false)
    }

    /// What computes hashes of blocks of rows inside the datastore; `None` where rows must be read for that
    /// ([`crate::blocks::ReadingHashes`]).
    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        None
    }

    /// Cuts a table into slices by statistics and key. Only for query sources.
    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let _ = (read, request);
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} is not read by slices", self.engine()),
        ))
    }

    /// How keys here compare the values of each of these columns of a table (named as here). A table that is not there is
    /// one that would be made for these columns.
    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        let _ = table;
        Ok(columns.iter().map(|c| Collation::of(&c.ty)).collect())
    }

    /// The wire format in which rows of these columns could pass undecoded, if there is one. The first is the column's
    /// name at this table.
    fn raw_format(&self, columns: &[(String, Column)]) -> Option<RawFormat> {
        let _ = columns;
        None
    }

    /// Adds every tuple of a chunk of raw rows to a tally ([`crate::rowhash::add_raw_row`]). Only for sources that
    /// offer a raw format.
    fn tally_raw(&self, tuples: &[u8], tally: &mut Tally) -> Result<()> {
        let _ = (tuples, tally);
        Err(Error::bug(format!("{} offers no raw format", self.engine())))
    }

    /// Partitions of a log come and go by this stream. Only for log sources.
    async fn assignments(&self) -> Result<BoxStream<'static, Assignment>> {
        Err(Error::new(
            code::UNSUPPORTED,
            format!("{} has no log to follow", self.engine()),
        ))
    }

    /// Opens a partition for reading right after a position (`None`: from its start).
    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>>;

    /// Looks at every prerequisite, privilege and setting that reading these tables needs.
    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let _ = tables;
        Vec::new()
    }
}

/// Reads one partition.
#[async_trait]
pub trait Reader: Send {
    /// The next event; `None` when a bounded partition is done. Cancel safe: a dropped call loses nothing, because
    /// the reader owns its partial state. Rows after the last boundary are not committed.
    async fn next(&mut self) -> Result<Option<Event>>;

    /// Transactions whose end was read since this was asked last, where boundaries do not name each of them: in a log in
    /// which several come as one. A backfill must know of each before it hears the watermark behind it.
    fn ended(&mut self) -> Vec<u64> {
        Vec::new()
    }

    /// The sink holds everything up to here durably: a log may forget it.
    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let _ = durable;
        Ok(())
    }
}
