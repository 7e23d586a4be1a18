//! Lets rows through by a condition.

use crate::chain::Step;
use crate::expr::{Expression, columns_of};
use crate::rows::{Passage, PerSchema, has_all, let_through, rejects};
use arrow_array::Array;
use arrow_array::cast::AsArray;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::change::ChangeBatch;
use synctool_core::error::{Error, Result};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::TableSchema;
use synctool_core::stage::{Stage, Staged};

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    name: Arc<str>,
    condition: Arc<str>,
    key: Arc<[String]>,
}

impl Filter {
    pub(crate) fn new(name: &str, condition: String, key: Arc<[String]>) -> Result<Self> {
        columns_of(&condition)?;
        Ok(Filter {
            name: name.into(),
            condition: condition.into(),
            key,
        })
    }
}

impl Step for Filter {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        Expression::condition(&self.condition, &input.columns)?;
        Ok(input.clone())
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Filtering {
            config: self.clone(),
            plan: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        columns_of(&self.condition).unwrap_or_default()
    }
}

struct Filtering {
    config: Filter,
    plan: PerSchema<Expression>,
}

#[async_trait]
impl Stage for Filtering {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let config = &self.config;
        let condition = self.plan.get(&batch.rows.schema(), |columns| {
            Expression::condition(&config.condition, &columns).map_err(Error::from)
        })?;
        let (array, failures) = condition.evaluate(&batch.rows)?;
        let truth = array
            .as_boolean_opt()
            .ok_or_else(|| Error::bug("a condition gave no truth values"))?;
        let failures: HashMap<usize, &'static str> = failures.into_iter().collect();
        let original = batch.clone();
        let passed = let_through(batch, &config.key, |row| {
            if !has_all(&original, &condition.inputs, row) {
                return Passage::Refused("column_absent");
            }
            match failures.get(&row) {
                Some(reason) => Passage::Refused(reason),
                None if truth.is_valid(row) && truth.value(row) => Passage::Through,
                None => Passage::Stopped,
            }
        })?;
        Ok(Staged {
            account: StageAccount {
                rows_in,
                rows_out: passed.batch.len() as u64,
                filtered: passed.filtered,
                rejected: passed.refused.len() as u64,
                ..StageAccount::default()
            },
            rejects: rejects(&config.name, &original, &config.key, &passed.refused)?,
            batches: vec![passed.batch],
        })
    }
}
