//! Adds columns by expressions, or replaces them.

use crate::chain::Step;
use crate::convert;
use crate::expr::{Expression, columns_of};
use crate::rows::{Parts, PerSchema, Refused, arrow_schema, has_all, presence_of_all, rejects, without};
use crate::spec::Computed;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, TableSchema};
use synctool_core::stage::{Stage, Staged};

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Compute {
    name: Arc<str>,
    columns: Arc<[Computed]>,
    key: Arc<[String]>,
}

/// One column, ready.
#[derive(Debug)]
struct Ready {
    expression: Expression,
    output: Column,
    /// Part of the key, but made of columns that are not: a delete does not carry them.
    foreign_key: bool,
}

#[derive(Debug)]
struct Plan {
    columns: Vec<Ready>,
    schema: SchemaRef,
}

impl Compute {
    pub(crate) fn new(name: &str, columns: Vec<Computed>, key: Arc<[String]>) -> Result<Self> {
        for column in &columns {
            columns_of(&column.expression).map_err(|e| Error::from(e).at("column", column.name.as_str()))?;
        }
        Ok(Compute {
            name: name.into(),
            columns: columns.into(),
            key,
        })
    }

    fn plan(&self, mut columns: Vec<Column>) -> Result<Plan> {
        let mut ready = Vec::with_capacity(self.columns.len());
        for computed in self.columns.iter() {
            let place = |e: Error| e.at("column", computed.name.as_str());
            let expression =
                Expression::compile(&computed.name, &computed.expression, &columns).map_err(|e| place(e.into()))?;
            let mut output = expression.output.clone();
            if let Some(to) = &computed.to {
                if !convert::possible(&output.ty, to) {
                    let message = format!("the expression gives {}, which never becomes {to}", output.ty);
                    return Err(place(Error::new(code::CONFIG_TYPE, message)));
                }
                output = Column::new(output.name, to.clone());
            }
            let foreign_key = self.key.contains(&computed.name)
                && expression.inputs.iter().any(|i| !self.key.contains(&columns[*i].name));
            match columns.iter_mut().find(|c| c.name == output.name) {
                Some(column) => *column = output.clone(),
                None => columns.push(output.clone()),
            }
            ready.push(Ready {
                expression,
                output,
                foreign_key,
            });
        }
        Ok(Plan {
            columns: ready,
            schema: arrow_schema(&columns),
        })
    }
}

impl Step for Compute {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let plan = self.plan(input.columns.clone())?;
        let mut output = input.clone();
        for ready in plan.columns {
            match output.column_mut(&ready.output.name) {
                Some(column) => *column = ready.output,
                None => output.columns.push(ready.output),
            }
        }
        Ok(output)
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Computing {
            config: self.clone(),
            plan: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        let mut made: BTreeSet<&str> = BTreeSet::new();
        let mut read = Vec::new();
        for column in self.columns.iter() {
            let named = columns_of(&column.expression).unwrap_or_default();
            read.extend(named.into_iter().filter(|n| !made.contains(n.as_str())));
            made.insert(&column.name);
        }
        read
    }

    fn makes(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }
}

struct Computing {
    config: Compute,
    plan: PerSchema<Plan>,
}

#[async_trait]
impl Stage for Computing {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let config = &self.config;
        let plan = self.plan.get(&batch.rows.schema(), |columns| config.plan(columns))?;
        let has_deletes = match &batch.ops {
            Ops::All(op) => *op == Op::Delete,
            Ops::Each(_) => (0..batch.len()).any(|r| batch.ops.get(r) == Op::Delete),
        };
        let mut refused = Refused::new();
        let mut work = batch;
        for (at, ready) in plan.columns.iter().enumerate() {
            if ready.foreign_key && (has_deletes || work.before.is_some()) {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!(
                        "key column {} is computed from columns that deletes do not carry",
                        ready.output.name
                    ),
                )
                .hint("compute key columns from key columns, or leave them as they are"));
            }
            let inputs = &ready.expression.inputs;
            let (array, failures) = value(ready, &work.rows)?;
            for (row, reason) in failures {
                let counts = work.ops.get(row) != Op::Delete && has_all(&work, inputs, row);
                if counts {
                    refused
                        .entry(row)
                        .or_insert_with(|| (Some(ready.output.name.clone()), reason));
                }
            }
            // The row as it was may hold no more than its key: what cannot be computed of it is NULL.
            let before = work
                .before
                .as_ref()
                .map(|b| value(ready, b).map(|(a, _)| a))
                .transpose()?;
            let present = presence_of_all(&work, inputs);
            let mut parts = Parts::of(&work)?;
            parts.set(ready.output.clone(), array, present, before);
            let last = at + 1 == plan.columns.len();
            let schema = if last {
                plan.schema.clone()
            } else {
                arrow_schema(&parts.columns)
            };
            work = parts.into_batch(work, &schema)?;
        }
        let rejects = rejects(&config.name, &work, &config.key, &refused)?;
        let out = without(work, &refused)?;
        Ok(Staged {
            account: StageAccount {
                rows_in,
                rows_out: out.len() as u64,
                rejected: refused.len() as u64,
                ..StageAccount::default()
            },
            batches: vec![out],
            rejects,
        })
    }
}

fn value(ready: &Ready, rows: &RecordBatch) -> Result<(ArrayRef, Vec<crate::rows::Failure>)> {
    let (array, mut failures) = ready.expression.evaluate(rows)?;
    let (array, more) = convert::convert(&array, &ready.expression.output, &ready.output)?;
    failures.extend(more);
    debug_assert_eq!(array.len(), rows.num_rows(), "one value per row");
    Ok((array, failures))
}
