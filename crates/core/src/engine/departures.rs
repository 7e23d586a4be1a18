//! The guard of a delta: rows that leave are found while it runs, so they are counted as they go.
//!
//! A row may be called gone that the destination never had (one that met the filters neither before nor after a change).
//! As long as all that are called gone are no more than the guard lets go anyway, nobody asks; beyond that the destination
//! is asked which of them it has.

use super::{Shared, stored};
use crate::change::{ChangeBatch, Op};
use crate::error::{Error, Result, code};
use crate::plan::{PlannedTable, Strategy};
use crate::progress::PartitionId;
use crate::strategy::hash::{Key, key_of};
use crate::strategy::present::Present;
use std::collections::HashMap;
use tokio::sync::Mutex;

/// Rows that leave in a run, by partition.
#[derive(Default)]
pub(super) struct Departures(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    gone: HashMap<PartitionId, u64>,
    /// How many rows the destination had when it was last counted, and whether those were all.
    before: Option<(u64, bool)>,
}

impl Departures {
    /// A partition begins, or begins again, where so many of its rows are gone.
    pub(super) async fn begin(&self, partition: &PartitionId, deleted: u64) {
        self.0.lock().await.gone.insert(partition.clone(), deleted);
    }

    /// Counts the rows of a batch that leave; an error if they are more than the guard lets go.
    pub(super) async fn judge(
        &self,
        shared: &Shared,
        table: &PlannedTable,
        partition: &PartitionId,
        batch: &ChangeBatch,
    ) -> Result<()> {
        let guard = shared.plan.guard;
        if shared.plan.strategy != Strategy::Delta || guard.allow {
            return Ok(());
        }
        let names = &table.schema.key;
        let keys = (0..batch.len())
            .filter(|row| batch.ops.get(*row) == Op::Delete)
            .map(|row| key_of(&batch.rows, names, row))
            .collect::<Result<Vec<Key>>>()?;
        if keys.is_empty() {
            return Ok(());
        }
        let mut counted = self.0.lock().await;
        let so_far: u64 = counted.gone.values().sum();
        let mut leaving = keys.len() as u64;
        if so_far + leaving > guard.max_rows {
            let destination = stored(&*shared.engine.destination)?;
            let present = Present::of(destination, &table.destination, names, &shared.context).await?;
            leaving = present.find(&keys).await?.len() as u64;
            let gone = so_far + leaving;
            // Counted no further than the answer matters now and for some batches more.
            let enough = gone.saturating_mul(10);
            let known = |(rows, all): &(u64, bool)| *all || guard.allows(*rows, gone, 1);
            if gone > guard.max_rows && !counted.before.as_ref().is_some_and(known) {
                let rows = present.count(enough).await?;
                counted.before = Some((rows + so_far, rows < enough));
            }
            if let Some((before, _)) = counted.before
                && !guard.allows(before, gone, 1)
            {
                return Err(Error::new(
                    code::MASS_DELETE,
                    format!(
                        "{gone} of {before} rows of {} would be deleted: they are marked as gone, or do not meet the filters and \
                         joins any more",
                        table.destination
                    ),
                )
                .at("pipeline", &shared.plan.pipeline)
                .hint("look at the source and the filters; if the deletes are meant, run again with --allow-mass-delete"));
            }
        }
        *counted.gone.entry(partition.clone()).or_default() += leaving;
        Ok(())
    }
}
