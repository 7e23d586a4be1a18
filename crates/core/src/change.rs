//! What flows from a source to a sink: batches of rows with their ops, and the events between them.
//!
//! An Arrow [`RecordBatch`] is the one row format. The op stands beside the batch, never as a column in it; a value
//! that is not there (an unchanged TOAST value) is said by [`Presence`], never by NULL. A bulk load pays for neither.

use crate::budget::Hold;
use crate::error::{Error, Result, code};
use crate::progress::Position;
use crate::schema::{SchemaDifference, TableId};
use arrow_array::{Array, RecordBatch, UInt8Array};
use arrow_buffer::BooleanBuffer;
use bytes::Bytes;
use std::sync::Arc;

/// What happened to a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Op {
    /// The row is new; there should be none with its key. It has all of its values.
    Insert = 1,
    /// The row exists and has these values now. With a `before` of another key, the key changed.
    Update = 2,
    /// The row has these values now, whether it existed or not: all of its values.
    Upsert = 3,
    /// The row is gone; only its key columns need values.
    Delete = 4,
}

impl Op {
    /// The op of a number in [`Ops::Each`].
    pub fn from_u8(n: u8) -> Option<Op> {
        [Op::Insert, Op::Update, Op::Upsert, Op::Delete]
            .into_iter()
            .find(|op| *op as u8 == n)
    }
}

/// The ops of a batch: one for all rows, or one per row.
#[derive(Debug, Clone)]
pub enum Ops {
    /// Every row has this op.
    All(Op),
    /// Row i has op `Op::from_u8(values[i])`.
    Each(UInt8Array),
}

impl Ops {
    /// The op of a row.
    pub fn get(&self, row: usize) -> Op {
        match self {
            Ops::All(op) => *op,
            Ops::Each(values) => Op::from_u8(values.value(row)).expect("checked by ChangeBatch::new"),
        }
    }
}

/// Which rows carry a value, per column. `None` for a column means all of them.
#[derive(Debug, Clone, Default)]
pub struct Presence(pub Vec<Option<BooleanBuffer>>);

impl Presence {
    /// Whether a cell carries a value (NULL counts as a value).
    pub fn has(&self, column: usize, row: usize) -> bool {
        self.0
            .get(column)
            .and_then(Option::as_ref)
            .is_none_or(|rows| rows.value(row))
    }
}

/// Rows of one table with what happened to them.
#[derive(Debug, Clone)]
pub struct ChangeBatch {
    /// The destination table the rows are for.
    pub table: Arc<TableId>,
    /// The rows as they are after the change, in the table's schema.
    pub rows: RecordBatch,
    /// What happened to each.
    pub ops: Ops,
    /// Which cells carry a value; `None` means every one.
    pub present: Option<Presence>,
    /// The rows as they were, aligned with `rows` and in the same schema: the old key at least where the key changed.
    pub before: Option<RecordBatch>,
    /// Whether the destination hardly has any of these rows yet, as in a first load: a hint at the faster way to write
    /// them, from which nothing follows for what is written.
    pub fresh: bool,
    /// The memory these rows hold, given back when the batch is dropped.
    pub hold: Hold,
}

impl ChangeBatch {
    /// A batch of inserted rows: what a full read produces.
    pub fn inserts(table: Arc<TableId>, rows: RecordBatch, hold: Hold) -> Self {
        ChangeBatch {
            table,
            rows,
            ops: Ops::All(Op::Insert),
            present: None,
            before: None,
            fresh: false,
            hold,
        }
    }

    /// A batch of changes; refuses ops, presence or before-rows that do not fit the rows.
    pub fn new(
        table: Arc<TableId>,
        rows: RecordBatch,
        ops: Ops,
        present: Option<Presence>,
        before: Option<RecordBatch>,
        hold: Hold,
    ) -> Result<Self> {
        if let Ops::Each(values) = &ops
            && (values.len() != rows.num_rows()
                || values.null_count() > 0
                || values.values().iter().any(|v| Op::from_u8(*v).is_none()))
        {
            return Err(Error::bug("ops do not fit the rows"));
        }
        if before.as_ref().is_some_and(|b| b.num_rows() != rows.num_rows()) {
            return Err(Error::bug("rows before do not fit the rows"));
        }
        if present.as_ref().is_some_and(|p| {
            p.0.len() != rows.num_columns() || p.0.iter().flatten().any(|b| b.len() != rows.num_rows())
        }) {
            return Err(Error::bug("presence does not fit the rows"));
        }
        Ok(ChangeBatch {
            table,
            rows,
            ops,
            present,
            before,
            fresh: false,
            hold,
        })
    }

    /// Refuses rows to insert that lack a value: sinks would pass over them, or make it NULL.
    pub fn check_whole(&self) -> Result<()> {
        let Some(present) = &self.present else {
            return Ok(());
        };
        for row in 0..self.len() {
            if !matches!(self.ops.get(row), Op::Insert | Op::Upsert) {
                continue;
            }
            if let Some(column) = (0..self.rows.num_columns()).find(|column| !present.has(*column, row)) {
                return Err(Error::not_whole(self.rows.schema_ref().field(column).name()));
            }
        }
        Ok(())
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes its Arrow buffers hold.
    pub fn bytes(&self) -> usize {
        self.rows.get_array_memory_size() + self.before.as_ref().map_or(0, RecordBatch::get_array_memory_size)
    }
}

/// A transaction of a log source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tx {
    /// The source's number of the transaction.
    pub id: u64,
    /// When it committed, microseconds UTC, if known.
    pub committed_at: Option<i64>,
}

/// A change of a table's shape, in order with its rows.
#[derive(Debug, Clone)]
pub struct SchemaChange {
    /// The table.
    pub table: Arc<TableId>,
    /// What differs from the shape before.
    pub difference: SchemaDifference,
}

impl SchemaChange {
    /// Refuses every change but new columns, for a sink that can do no other.
    pub fn must_only_add(&self) -> Result<()> {
        let d = &self.difference;
        if d.extra.is_empty() && d.retyped.is_empty() {
            return Ok(());
        }
        let retyped = d.retyped.iter().map(|(_, want)| want);
        let names: Vec<&str> = d.extra.iter().chain(retyped).map(|c| c.name.as_str()).collect();
        Err(Error::new(
            code::UNSUPPORTED,
            format!(
                "table {}: only added columns are followed, not the change of {}",
                self.table,
                names.join(", ")
            ),
        )
        .hint("alter the destination's table by hand, `synctool state reset`, and run again: its rows are compared"))
    }
}

/// Bytes that pass undecoded because source and sink speak the same wire format.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RawFormat {
    /// The wire format (`pgcopy-binary`).
    pub kind: String,
    /// Everything both ends must agree on (encoding, types in order); equal text means equal bytes.
    pub signature: String,
}

/// A half-open range of keys, as the texts of the key's values: `lower <= key < upper`. `None` is unbounded.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct KeyRange {
    /// The key columns, in order.
    pub columns: Vec<String>,
    /// The first key inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<Vec<String>>,
    /// The first key behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<Vec<String>>,
}

/// What a reader yields and a sink takes.
#[derive(Debug)]
pub enum Event {
    /// A source transaction begins. Everything up to its [`Event::Boundary`] belongs together.
    Begin(Tx),
    /// Rows changed.
    Rows(ChangeBatch),
    /// Rows in wire form. Whole tuples only, never a part of one.
    Raw {
        /// The table the rows are for.
        table: Arc<TableId>,
        /// The tuples, without the format's header and trailer.
        bytes: Bytes,
        /// How many tuples.
        rows: u64,
        /// The memory they hold.
        hold: Hold,
    },
    /// A table changed its shape.
    Schema(SchemaChange),
    /// Tables were emptied.
    Truncate {
        /// Which.
        tables: Vec<Arc<TableId>>,
        /// Tables that refer to them too.
        cascade: bool,
        /// Sequences start over.
        restart_identity: bool,
    },
    /// A net difference: take `remove` away (by key), then put `insert`.
    Net {
        /// The table.
        table: Arc<TableId>,
        /// Rows whose keys go.
        remove: RecordBatch,
        /// Rows that come.
        insert: RecordBatch,
    },
    /// This key range is exactly these rows at the destination.
    ReplaceRange {
        /// The table.
        table: Arc<TableId>,
        /// The range; bounds as in [`KeyRange`].
        range: KeyRange,
        /// All its rows.
        rows: RecordBatch,
    },
    /// Rows were compared by hash. No sink minds it; it is for the accounts.
    Compared(crate::ledger::Compared),
    /// A message that somebody wrote into the log.
    Message {
        /// Whose message.
        prefix: String,
        /// Its content.
        content: Bytes,
    },
    /// Here a commit is allowed; the reader resumes right after `position`.
    Boundary {
        /// Where.
        position: Position,
        /// When the source committed, microseconds UTC, if known.
        committed_at: Option<i64>,
        /// Which transaction ends here, if one does.
        tx: Option<u64>,
    },
}

impl Event {
    /// How many rows it carries.
    pub fn rows(&self) -> u64 {
        match self {
            Event::Rows(b) => b.len() as u64,
            Event::Raw { rows, .. } => *rows,
            Event::Net { remove, insert, .. } => (remove.num_rows() + insert.num_rows()) as u64,
            Event::ReplaceRange { rows, .. } => rows.num_rows() as u64,
            _ => 0,
        }
    }

    /// How many bytes of rows it carries.
    pub fn bytes(&self) -> u64 {
        match self {
            Event::Rows(b) => b.bytes() as u64,
            Event::Raw { bytes, .. } => bytes.len() as u64,
            Event::Net { remove, insert, .. } => {
                (remove.get_array_memory_size() + insert.get_array_memory_size()) as u64
            }
            Event::ReplaceRange { rows, .. } => rows.get_array_memory_size() as u64,
            _ => 0,
        }
    }
}
