//! Changes that a sink holds until its commit: in memory up to a limit, beyond it in files beside the parts.

use super::store::{self, io_error};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, UInt8Array};
use arrow_ipc::reader::StreamReader;
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field, Schema, SchemaRef};
use arrow_select::concat::concat_batches;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableSchema;

/// So many bytes of changes of a table are held in memory, and worked on at once.
pub(super) const HELD_BYTES: usize = 32 << 20;

/// What a changed row costs beside its values: its key, and what is known of it.
const ROW_BYTES: usize = 128;

/// The memory that working on some rows takes.
pub(super) fn weight(rows: &RecordBatch) -> usize {
    rows.get_array_memory_size() + ROW_BYTES * rows.num_rows()
}

/// Changes of one table, in order.
#[derive(Debug)]
pub(super) struct Pending {
    /// The columns that are written, and behind them the op.
    schema: SchemaRef,
    pieces: Vec<Piece>,
    held: Vec<RecordBatch>,
    bytes: usize,
}

#[derive(Debug)]
enum Piece {
    Held(Vec<RecordBatch>),
    Spilled(PathBuf),
    /// The table was emptied.
    Emptied,
}

/// A part of the changes that is worked on at once.
pub(super) enum Step {
    /// All rows go.
    Empty,
    /// These change.
    Change(Changes),
}

/// Changes in memory.
pub(super) struct Changes {
    pub(super) rows: RecordBatch,
    ops: UInt8Array,
}

impl Changes {
    /// Rows with one op.
    pub(super) fn all(rows: RecordBatch, op: Op) -> Self {
        let ops = UInt8Array::from_value(op as u8, rows.num_rows());
        Changes { rows, ops }
    }

    /// Without a key nothing but inserting is possible: no row could be found again.
    pub(super) fn only_inserts(&self) -> Result<()> {
        match self.ops.values().iter().all(|op| *op == Op::Insert as u8) {
            true => Ok(()),
            false => Err(Error::new(
                code::UNSUPPORTED,
                "anything but inserting rows needs a key, and the table has none",
            )
            .hint("name the key columns in the pipeline")),
        }
    }

    /// What happens to a row.
    pub(super) fn op(&self, row: usize) -> Result<Op> {
        Op::from_u8(self.ops.value(row)).ok_or_else(|| Error::bug("a change without its op"))
    }
}

impl Pending {
    pub(super) fn new(table: &TableSchema) -> Self {
        let mut fields: Vec<Arc<Field>> = table.arrow_schema().fields().iter().cloned().collect();
        fields.push(Arc::new(Field::new("", DataType::UInt8, false)));
        Pending {
            schema: Arc::new(Schema::new(fields)),
            pieces: Vec::new(),
            held: Vec::new(),
            bytes: 0,
        }
    }

    /// Takes a batch; what has become too much goes to `dir`.
    pub(super) fn add(&mut self, batch: &ChangeBatch, dir: &Path) -> Result<()> {
        let ops = UInt8Array::from_iter_values((0..batch.len()).map(|row| batch.ops.get(row) as u8));
        let mut columns = batch.rows.columns().to_vec();
        columns.push(Arc::new(ops) as ArrayRef);
        let options = RecordBatchOptions::new().with_row_count(Some(batch.len()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| Error::bug(format!("a batch does not fit its table: {e}")))?;
        self.bytes += weight(&rows);
        self.held.push(rows);
        if self.bytes > HELD_BYTES {
            self.spill(dir)?;
        }
        Ok(())
    }

    /// All rows of the table go, before the changes that come.
    pub(super) fn empty(&mut self) {
        self.close();
        self.pieces.push(Piece::Emptied);
    }

    fn close(&mut self) {
        if !self.held.is_empty() {
            self.pieces.push(Piece::Held(std::mem::take(&mut self.held)));
        }
        self.bytes = 0;
    }

    fn spill(&mut self, dir: &Path) -> Result<()> {
        let path = dir.join(format!("{}.changes", uuid::Uuid::new_v4().simple()));
        let failed = |e: ArrowError| spilling(&path, e);
        let file = File::create(&path).map_err(|e| io_error("write", &path, e))?;
        let mut writer = StreamWriter::try_new(BufWriter::new(file), &self.schema).map_err(failed)?;
        for batch in self.held.drain(..) {
            writer.write(&batch).map_err(failed)?;
        }
        // Nothing that is spilled outlives a crash, so nothing is pressed onto the disk.
        writer.finish().map_err(failed)?;
        self.bytes = 0;
        self.pieces.push(Piece::Spilled(path));
        Ok(())
    }

    /// The changes, piece by piece; each is gone once it was given.
    pub(super) fn steps(mut self) -> impl Iterator<Item = Result<Step>> {
        self.close();
        let (pieces, schema) = (std::mem::take(&mut self.pieces), self.schema.clone());
        pieces.into_iter().map(move |piece| match piece {
            Piece::Emptied => Ok(Step::Empty),
            Piece::Held(batches) => joined(&schema, &batches).map(Step::Change),
            Piece::Spilled(path) => {
                let failed = |e: ArrowError| spilling(&path, e);
                let file = File::open(&path).map_err(|e| io_error("read", &path, e))?;
                let batches = StreamReader::try_new(BufReader::new(file), None)
                    .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
                    .map_err(failed)?;
                store::remove(&path)?;
                joined(&schema, &batches).map(Step::Change)
            }
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        for piece in &self.pieces {
            if let Piece::Spilled(path) = piece {
                // The whole folder goes with its load anyway.
                let _ = store::remove(path);
            }
        }
    }
}

fn joined(schema: &SchemaRef, batches: &[RecordBatch]) -> Result<Changes> {
    let bug = |e: ArrowError| Error::bug(format!("changes that were held: {e}"));
    let mut rows = concat_batches(schema, batches).map_err(bug)?;
    let last = rows.num_columns() - 1;
    let ops = rows.remove_column(last);
    let ops = ops
        .as_any()
        .downcast_ref::<UInt8Array>()
        .cloned()
        .ok_or_else(|| Error::bug("changes that were held have no ops"))?;
    Ok(Changes { rows, ops })
}

fn spilling(path: &Path, e: ArrowError) -> Error {
    match e {
        ArrowError::IoError(_, e) => io_error("write or read", path, e),
        e => Error::new(code::FILE, format!("{}: {e}", path.display())),
    }
}
