//! Stages that compute. Expressions, joins and enrichment (DataFusion) come here with the strategies; for now there is
//! the value map of the original's transform stage.

mod value_map;

pub use value_map::ValueMap;

use std::sync::Arc;
use synctool_core::error::Result;
use synctool_core::schema::TableSchema;
use synctool_core::stage::{Stage, Stages};

/// A stage as it is configured: checked once against the columns, then opened for every partition.
pub trait StageSpec: Send + Sync {
    /// What comes out, given what comes in; an error names a column that is not there.
    fn output(&self, input: &TableSchema) -> Result<TableSchema>;

    /// A fresh stage.
    fn open(&self) -> Result<Box<dyn Stage>>;
}

/// The stages of a pipeline in their order.
#[derive(Clone, Default)]
pub struct Chain(Vec<Arc<dyn StageSpec>>);

impl Chain {
    /// Adds a stage at the end.
    pub fn push(&mut self, stage: impl StageSpec + 'static) {
        self.0.push(Arc::new(stage));
    }
}

impl Stages for Chain {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        self.0
            .iter()
            .try_fold(input.clone(), |schema, stage| stage.output(&schema))
    }

    fn open(&self) -> Result<Vec<Box<dyn Stage>>> {
        self.0.iter().map(|s| s.open()).collect()
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
