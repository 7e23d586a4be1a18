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
    targets: Arc<[Target]>,
    key: Arc<[String]>,
}

#[derive(Debug, Clone)]
enum Target {
    /// What a user chose.
    Chosen(Projected),
    /// What the plan says of the column of that name.
    Planned(Column),
}

impl Target {
    fn from(&self) -> &str {
        match self {
            Target::Chosen(p) => &p.from,
            Target::Planned(column) => &column.name,
        }
    }

    fn name(&self) -> &str {
        match self {
            Target::Chosen(p) => &p.name,
            Target::Planned(column) => &column.name,
        }
    }

    fn column(&self, from: &Column) -> Column {
        match self {
            Target::Planned(column) => column.clone(),
            Target::Chosen(Projected { name, to: None, .. }) => Column {
                name: name.clone(),
                ..from.clone()
            },
            Target::Chosen(Projected { name, to: Some(to), .. }) => Column {
                nullable: from.nullable,
                ..Column::new(name.clone(), to.clone())
            },
        }
    }
}

impl Project {
    pub(crate) fn new(name: &str, columns: Vec<Projected>, key: Arc<[String]>) -> Self {
        Project {
            name: name.into(),
            targets: columns.into_iter().map(Target::Chosen).collect(),
            key,
        }
    }

    /// The columns as the plan has them, in the types and forms that the destination agreed on.
    pub(crate) fn planned(name: &str, schema: &TableSchema) -> Self {
        Project {
            name: name.into(),
            targets: schema.columns.iter().cloned().map(Target::Planned).collect(),
            key: schema.key.clone().into(),
        }
    }

    /// Where the columns come from, and what they become.
    fn plan(&self, columns: &[Column]) -> Result<Plan> {
        let mut plan = Plan {
            places: Vec::with_capacity(self.targets.len()),
            columns: Vec::with_capacity(self.targets.len()),
            schema: arrow_schema(&[]),
        };
        for target in self.targets.iter() {
            let at = place(columns, target.from())?;
            let column = target.column(&columns[at]);
            check(&columns[at], &column)?;
            plan.places.push(at);
            plan.columns.push(column);
        }
        plan.schema = arrow_schema(&plan.columns);
        Ok(plan)
    }
}

struct Plan {
    places: Vec<usize>,
    columns: Vec<Column>,
    schema: SchemaRef,
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
        let output = TableSchema {
            columns: self.plan(&input.columns)?.columns,
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
        self.targets.iter().map(|t| t.from().to_string()).collect()
    }

    fn makes(&self) -> Vec<String> {
        self.targets.iter().map(|t| t.name().to_string()).collect()
    }
}

struct Projecting {
    config: Project,
    plan: PerSchema<Plan>,
}

#[async_trait]
impl Stage for Projecting {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let config = &self.config;
        let plan = self.plan.get(&batch.rows.schema(), |columns| config.plan(&columns))?;
        if batch.rows.schema() == plan.schema {
            return Ok(Staged::all(batch));
        }
        let parts = Parts::of(&batch)?;
        let mut out = Parts {
            columns: Vec::new(),
            arrays: Vec::new(),
            present: Vec::new(),
            before: parts.before.as_ref().map(|_| Vec::new()),
        };
        let mut refused = Refused::new();
        for (at, to) in plan.places.iter().zip(&plan.columns) {
            let (array, before) = convert_column(&batch, &parts, *at, to, &mut refused)?;
            out.columns.push(to.clone());
            out.arrays.push(array);
            out.present.push(parts.present[*at].clone());
            if let (Some(all), Some(before)) = (&mut out.before, before) {
                all.push(before);
            }
        }
        let projected = out.into_batch(batch, &plan.schema)?;
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
