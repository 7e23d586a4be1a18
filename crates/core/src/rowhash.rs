//! Row hashes of Arrow rows, for proving that what was stored is what was read.
//!
//! A row's bytes are unambiguous: per column in order, a tag (0 for NULL, 1 for a value) and the value with its length.
//! They are hashed with XXH3-128 and summed into a [`Tally`]. This hash never leaves the process in a form that
//! another engine would have to compute; the hash strategy has its own canonical form.

use crate::error::{Error, Result};
use crate::ledger::Tally;
use arrow_array::RecordBatch;
use arrow_row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_128;

/// Hashes batches of one schema.
#[derive(Debug)]
pub struct RowHasher {
    converter: Option<RowConverter>,
}

impl RowHasher {
    /// A hasher; the schema is learnt from the first batch.
    pub fn new() -> Self {
        RowHasher { converter: None }
    }

    /// Adds every row of a batch to a tally, with the bytes of its Arrow buffers.
    pub fn add(&mut self, batch: &RecordBatch, tally: &mut Tally) -> Result<()> {
        let arrow = |e: arrow_schema::ArrowError| Error::bug(format!("row hash: {e}"));
        tally.bytes += batch.get_array_memory_size() as u64;
        if batch.num_columns() == 0 {
            tally.rows += batch.num_rows() as u64;
            return Ok(());
        }
        if self.converter.is_none() {
            let fields = batch
                .columns()
                .iter()
                .map(|c| SortField::new(c.data_type().clone()))
                .collect();
            self.converter = Some(RowConverter::new(fields).map_err(arrow)?);
        }
        // The row format is unambiguous: it sorts, so different rows have different bytes.
        let rows = self
            .converter
            .as_ref()
            .expect("set above")
            .convert_columns(batch.columns())
            .map_err(arrow)?;
        for row in rows.iter() {
            tally.add_row(xxh3_128(row.as_ref()));
        }
        Ok(())
    }
}

impl Default for RowHasher {
    fn default() -> Self {
        RowHasher::new()
    }
}

/// Adds one row in wire form to a tally.
pub fn add_raw_row(tally: &mut Tally, tuple: &[u8]) {
    tally.bytes += tuple.len() as u64;
    tally.add_row(xxh3_128(tuple));
}
