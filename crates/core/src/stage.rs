//! What happens to rows on their way.

use crate::change::ChangeBatch;
use crate::error::Result;
use crate::ledger::StageAccount;
use crate::schema::{TableId, TableSchema};
use async_trait::async_trait;
use serde::Serialize;
use std::sync::Arc;

/// A row that a stage put aside. The engine stops the run when there are more than its limit allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reject {
    /// The stage that refused it.
    pub stage: String,
    /// The table the row was for.
    pub table: Arc<TableId>,
    /// Why, as a short stable word (`overflow`, `bad_cast`, `missing_dimension`).
    pub reason: &'static str,
    /// The column that could not be made or checked.
    pub column: Option<String>,
    /// The row's key: column names with canonical texts. It goes to where rejected rows are kept; error messages name
    /// the columns only.
    pub key: Vec<(String, Option<String>)>,
}

impl Reject {
    /// The row's key as a JSON object of canonical texts.
    pub fn key_json(&self) -> String {
        let key: serde_json::Map<String, serde_json::Value> = self
            .key
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into()))
            .collect();
        serde_json::Value::Object(key).to_string()
    }
}

/// What a stage makes of a batch.
#[derive(Debug, Default)]
pub struct Staged {
    /// What goes on, in order.
    pub batches: Vec<ChangeBatch>,
    /// What happened to every row; `rejected` counts `rejects`.
    pub account: StageAccount,
    /// The rows put aside.
    pub rejects: Vec<Reject>,
}

impl Staged {
    /// Every row went into this batch.
    pub fn all(batch: ChangeBatch) -> Self {
        let rows = batch.len() as u64;
        Staged {
            batches: vec![batch],
            account: StageAccount {
                rows_in: rows,
                rows_out: rows,
                ..StageAccount::default()
            },
            rejects: Vec::new(),
        }
    }
}

/// A step between reader and sink. One instance per partition; it may keep state inside the partition.
#[async_trait]
pub trait Stage: Send {
    /// Its name in the ledger.
    fn name(&self) -> &str;

    /// Takes a batch, gives any number back and accounts for every row.
    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged>;

    /// Gives up what it held back. Called before anything but rows passes, so that no row is left behind a boundary, unless
    /// no commit is made there ([`Written`]).
    async fn flush(&mut self) -> Result<Staged> {
        Ok(Staged::default())
    }

    /// The rows have ended: gives up all that is left.
    async fn finish(&mut self) -> Result<Staged> {
        self.flush().await
    }
}

/// How the rows of a partition are written when they have passed the stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// With commits at boundaries, behind which no row may wait.
    Stepwise,
    /// In their order: a later row takes the place of an earlier one with its key. Where stages remember, with one commit.
    InOrder,
    /// Loaded, added or compared: there is no place for a second row with a key. Where stages remember, with one commit.
    Once,
}

/// Makes the stages of a pipeline, one set per partition.
pub trait Stages: Send + Sync {
    /// What comes out, given what comes in: checked when the plan is made.
    fn output(&self, input: &TableSchema) -> Result<TableSchema>;

    /// Fresh stages for a partition.
    fn open(&self) -> Result<Vec<Box<dyn Stage>>>;

    /// Fresh stages for a partition whose rows must come out in the columns of the plan, in the types and forms on which
    /// the destination agreed.
    fn open_for(&self, planned: &TableSchema, written: Written) -> Result<Vec<Box<dyn Stage>>> {
        let _ = (planned, written);
        self.open()
    }

    /// Whether what becomes of a row depends on rows before it. A partition whose rows are read then has one commit, at its
    /// end: whoever begins in its middle knows nothing of them.
    fn remembers(&self) -> bool {
        false
    }

    /// Whether there are none, so that rows may pass undecoded.
    fn is_empty(&self) -> bool;

    /// Whether values of this column may come out otherwise than they came in, or come in nowhere.
    fn changes(&self, column: &str) -> bool {
        let _ = column;
        !self.is_empty()
    }

    /// Where the user wrote the values that this column gets, if they stand in a file.
    fn written_at(&self, column: &str) -> Option<String> {
        let _ = column;
        None
    }
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
