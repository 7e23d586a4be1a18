//! What happens to rows on their way.

use crate::change::ChangeBatch;
use crate::error::Result;
use crate::ledger::StageAccount;
use crate::schema::TableSchema;
use async_trait::async_trait;

/// A step between reader and sink. One instance per partition; it may keep state inside the partition.
#[async_trait]
pub trait Stage: Send {
    /// Its name in the ledger.
    fn name(&self) -> &str;

    /// Takes a batch, gives any number back and accounts for every row.
    async fn apply(&mut self, batch: ChangeBatch) -> Result<(Vec<ChangeBatch>, StageAccount)>;
}

/// Makes the stages of a pipeline, one set per partition.
pub trait Stages: Send + Sync {
    /// What comes out, given what comes in: checked when the plan is made.
    fn output(&self, input: &TableSchema) -> Result<TableSchema>;

    /// Fresh stages for a partition.
    fn open(&self) -> Result<Vec<Box<dyn Stage>>>;

    /// Whether there are none, so that rows may pass undecoded.
    fn is_empty(&self) -> bool;
}

/// No stages at all.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoStages;

impl Stages for NoStages {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        Ok(input.clone())
    }

    fn open(&self) -> Result<Vec<Box<dyn Stage>>> {
        Ok(Vec::new())
    }

    fn is_empty(&self) -> bool {
        true
    }
}
