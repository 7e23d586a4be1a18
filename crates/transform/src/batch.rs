//! Cuts and joins batches to a size (`target_batch_size`).
//!
//! Rows held back are not counted in the process's budget, since whoever waits for the budget may be the reader whose
//! rows are held back; they are bounded by [`HELD_BYTES`] per partition instead.

use crate::chain::Step;
use crate::rows::{pick, record};
use arrow_array::{Array, ArrayRef, RecordBatch, UInt8Array, new_null_array};
use arrow_buffer::{BooleanBuffer, BooleanBufferBuilder};
use arrow_select::concat::concat;
use async_trait::async_trait;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Ops, Presence};
use synctool_core::error::{Error, Result};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::TableSchema;
use synctool_core::stage::{Stage, Staged};

/// More is never held back.
const HELD_BYTES: usize = 1 << 20;

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Batch {
    target: usize,
}

impl Batch {
    pub(crate) fn new(target: usize) -> Self {
        Batch { target: target.max(1) }
    }
}

impl Step for Batch {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        Ok(input.clone())
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Batching {
            target: self.target,
            held: Vec::new(),
            rows: 0,
            bytes: 0,
        }))
    }
}

struct Batching {
    target: usize,
    held: Vec<ChangeBatch>,
    rows: usize,
    bytes: usize,
}

impl Batching {
    fn release(&mut self, out: &mut Vec<ChangeBatch>) -> Result<()> {
        let held = std::mem::take(&mut self.held);
        (self.rows, self.bytes) = (0, 0);
        if let Some(joined) = join(held)? {
            out.push(joined);
        }
        Ok(())
    }
}

#[async_trait]
impl Stage for Batching {
    fn name(&self) -> &str {
        "batch"
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let mut out = Vec::new();
        let fits = |held: &ChangeBatch| held.table == batch.table && held.rows.schema() == batch.rows.schema();
        if !self.held.first().is_none_or(fits) {
            self.release(&mut out)?;
        }
        let mut from = 0;
        while from < batch.len() {
            let take = (self.target - self.rows).min(batch.len() - from);
            let part = if take == batch.len() {
                batch.clone()
            } else {
                let rows: Vec<u32> = (from..from + take).map(|r| r as u32).collect();
                pick(&batch, &rows)?
            };
            from += take;
            self.rows += take;
            self.bytes += part.bytes();
            self.held.push(part);
            if self.rows >= self.target || self.bytes >= HELD_BYTES {
                self.release(&mut out)?;
            }
        }
        for held in &mut self.held {
            held.hold = Hold::none();
        }
        let rows_out = out.iter().map(|b| b.len() as u64).sum();
        Ok(Staged {
            batches: out,
            account: StageAccount {
                rows_in,
                rows_out,
                ..StageAccount::default()
            },
            rejects: Vec::new(),
        })
    }

    async fn flush(&mut self) -> Result<Staged> {
        let mut out = Vec::new();
        self.release(&mut out)?;
        let rows_out = out.iter().map(|b| b.len() as u64).sum();
        Ok(Staged {
            batches: out,
            account: StageAccount {
                rows_out,
                ..StageAccount::default()
            },
            rejects: Vec::new(),
        })
    }
}

/// Batches of one table and schema as one.
fn join(mut batches: Vec<ChangeBatch>) -> Result<Option<ChangeBatch>> {
    if batches.len() < 2 {
        return Ok(batches.pop());
    }
    let first = &batches[0];
    let schema = first.rows.schema();
    let total = batches.iter().map(ChangeBatch::len).sum();
    let joined = |pick: &dyn Fn(&ChangeBatch, usize) -> ArrayRef| -> Result<RecordBatch> {
        let columns = (0..schema.fields().len())
            .map(|c| {
                let arrays: Vec<ArrayRef> = batches.iter().map(|b| pick(b, c)).collect();
                let arrays: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
                concat(&arrays).map_err(|e| Error::bug(format!("joining batches: {e}")))
            })
            .collect::<Result<_>>()?;
        record(&schema, columns, total)
    };
    let rows = joined(&|b, c| b.rows.column(c).clone())?;
    let before = if batches.iter().any(|b| b.before.is_some()) {
        Some(joined(&|b, c| match &b.before {
            Some(before) => before.column(c).clone(),
            None => new_null_array(schema.field(c).data_type(), b.len()),
        })?)
    } else {
        None
    };
    let one = match &first.ops {
        Ops::All(op) if batches.iter().all(|b| matches!(&b.ops, Ops::All(o) if o == op)) => Some(*op),
        _ => None,
    };
    let ops = one.map_or_else(
        || {
            let each = batches.iter().flat_map(|b| (0..b.len()).map(|r| b.ops.get(r) as u8));
            Ops::Each(UInt8Array::from_iter_values(each))
        },
        Ops::All,
    );
    let present = batches.iter().any(|b| b.present.is_some()).then(|| {
        let columns = (0..schema.fields().len()).map(|c| presence(&batches, c, total));
        Presence(columns.collect())
    });
    ChangeBatch::new(Arc::clone(&first.table), rows, ops, present, before, Hold::none()).map(Some)
}

fn presence(batches: &[ChangeBatch], column: usize, total: usize) -> Option<BooleanBuffer> {
    let of = |b: &ChangeBatch| b.present.as_ref().and_then(|p| p.0.get(column).cloned().flatten());
    if batches.iter().all(|b| of(b).is_none()) {
        return None;
    }
    let mut all = BooleanBufferBuilder::new(total);
    for b in batches {
        match of(b) {
            Some(rows) => all.append_buffer(&rows),
            None => all.append_n(b.len(), true),
        }
    }
    Some(all.finish())
}
