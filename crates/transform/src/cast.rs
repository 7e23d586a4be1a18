//! Turns columns into other types (`column_cast`), checked value by value.

use crate::chain::Step;
use crate::project::{check, convert_column};
use crate::rows::{Parts, PerSchema, Refused, arrow_schema, place, rejects, without};
use crate::spec::CastTo;
use async_trait::async_trait;
use std::sync::Arc;
use synctool_core::change::ChangeBatch;
use synctool_core::error::Result;
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, TableSchema};
use synctool_core::stage::{Stage, Staged};

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Cast {
    name: Arc<str>,
    casts: Arc<[CastTo]>,
    key: Arc<[String]>,
}

impl Cast {
    pub(crate) fn new(name: &str, casts: Vec<CastTo>, key: Arc<[String]>) -> Self {
        Cast {
            name: name.into(),
            casts: casts.into(),
            key,
        }
    }

    fn target(from: &Column, cast: &CastTo) -> Column {
        let nullable = from.nullable;
        Column {
            nullable,
            ..Column::new(from.name.clone(), cast.to.clone())
        }
    }
}

impl Step for Cast {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let mut output = input.clone();
        for cast in self.casts.iter() {
            let at = place(&output.columns, &cast.column)?;
            let to = Self::target(&output.columns[at], cast);
            check(&output.columns[at], &to)?;
            output.columns[at] = to;
        }
        Ok(output)
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Casting {
            config: self.clone(),
            places: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        self.casts.iter().map(|c| c.column.clone()).collect()
    }

    fn makes(&self) -> Vec<String> {
        self.reads()
    }
}

struct Casting {
    config: Cast,
    places: PerSchema<Vec<(usize, Column)>>,
}

#[async_trait]
impl Stage for Casting {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let rows_in = batch.len() as u64;
        let config = &self.config;
        let places = self.places.get(&batch.rows.schema(), |columns| {
            let casts = config.casts.iter().map(|cast| {
                let at = place(&columns, &cast.column)?;
                let to = Cast::target(&columns[at], cast);
                check(&columns[at], &to)?;
                Ok((at, to))
            });
            casts.collect()
        })?;
        let mut parts = Parts::of(&batch)?;
        let mut refused = Refused::new();
        for (at, to) in places.iter() {
            let (array, before) = convert_column(&batch, &parts, *at, to, &mut refused)?;
            let present = parts.present[*at].clone();
            parts.set(to.clone(), array, present, before);
        }
        let schema = arrow_schema(&parts.columns);
        let cast = parts.into_batch(batch, &schema)?;
        let rejects = rejects(&config.name, &cast, &config.key, &refused)?;
        let cast = without(cast, &refused)?;
        Ok(Staged {
            account: StageAccount {
                rows_in,
                rows_out: cast.len() as u64,
                rejected: refused.len() as u64,
                ..StageAccount::default()
            },
            batches: vec![cast],
            rejects,
        })
    }
}
