//! Chooses the columns that are written and turns them into what the destination takes.

use crate::chain::Step;
use crate::convert::{convert, possible};
use crate::rows::{Failure, Parts, PerSchema, Refused, arrow_schema, has_all, place, rejects, without};
use crate::spec::Projected;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, TableSchema};
use synctool_core::stage::{Stage, Staged};

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Project {
    name: Arc<str>,
    columns: Arc<[Projected]>,
    key: Arc<[String]>,
}

impl Project {
    pub(crate) fn new(name: &str, columns: Vec<Projected>, key: Arc<[String]>) -> Self {
        Project {
            name: name.into(),
            columns: columns.into(),
            key,
        }
    }
}

/// Checks that one column can become another.
pub(crate) fn check(from: &Column, to: &Column) -> Result<()> {
    if possible(&from.ty, &to.ty) {
        return Ok(());
    }
    Err(Error::new(
        code::CONFIG_TYPE,
        format!("column {} ({}) never becomes {}", from.name, from.ty, to.ty),
    ))
}

/// One column of a batch in its new form.
pub(crate) fn convert_column(
    batch: &ChangeBatch,
    parts: &Parts,
    at: usize,
    to: &Column,
    refused: &mut Refused,
) -> Result<(arrow_array::ArrayRef, Option<arrow_array::ArrayRef>)> {
    let from = &parts.columns[at];
    let (array, failures) = convert(&parts.arrays[at], from, to)?;
    refuse(batch, at, &to.name, failures, refused);
    // Of the row before, what cannot be converted cannot be at the destination either.
    let before = match &parts.before {
        Some(b) => Some(convert(&b[at], from, to)?.0),
        None => None,
    };
    Ok((array, before))
}

fn refuse(batch: &ChangeBatch, at: usize, name: &str, failures: Vec<Failure>, refused: &mut Refused) {
    for (row, reason) in failures {
        if batch.ops.get(row) != Op::Delete && has_all(batch, &[at], row) {
            refused.entry(row).or_insert_with(|| (Some(name.to_string()), reason));
        }
    }
}

impl Step for Project {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let mut columns = Vec::with_capacity(self.columns.len());
        for p in self.columns.iter() {
            check(&input.columns[place(&input.columns, &p.from)?], &p.column)?;
            columns.push(p.column.clone());
        }
        let output = TableSchema {
            columns,
            key: self.key.to_vec(),
        };
        output.key_indices()?;
        Ok(output)
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Projecting {
            config: self.clone(),
            plan: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.from.clone()).collect()
    }

    fn makes(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.column.name.clone()).collect()
    }

    fn narrows(&self) -> bool {
        true
    }
}

struct Projecting {
    config: Project,
    plan: PerSchema<(Vec<usize>, SchemaRef)>,
}

#[async_trait]
impl Stage for Projecting {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let config = &self.config;
        let (places, schema) = self.plan.get(&batch.rows.schema(), |columns| {
            let places = config
                .columns
                .iter()
                .map(|p| place(&columns, &p.from))
                .collect::<Result<_>>()?;
            let out: Vec<Column> = config.columns.iter().map(|p| p.column.clone()).collect();
            Ok((places, arrow_schema(&out)))
        })?;
        let parts = Parts::of(&batch)?;
        let mut out = Parts {
            columns: Vec::new(),
            arrays: Vec::new(),
            present: Vec::new(),
            before: parts.before.as_ref().map(|_| Vec::new()),
        };
        let mut refused = Refused::new();
        for (at, to) in places.iter().zip(config.columns.iter()) {
            let (array, before) = convert_column(&batch, &parts, *at, &to.column, &mut refused)?;
            out.columns.push(to.column.clone());
            out.arrays.push(array);
            out.present.push(parts.present[*at].clone());
            if let (Some(all), Some(before)) = (&mut out.before, before) {
                all.push(before);
            }
        }
        let projected = out.into_batch(batch, schema)?;
        let rejects = rejects(&config.name, &projected, &config.key, &refused)?;
        let projected = without(projected, &refused)?;
        Ok(Staged {
            account: StageAccount {
                rows_in,
                rows_out: projected.len() as u64,
                rejected: refused.len() as u64,
                ..StageAccount::default()
            },
            batches: vec![projected],
            rejects,
        })
    }
}
