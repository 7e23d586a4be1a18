//! The stages of a pipeline in their order.

use crate::batch::Batch;
use crate::cast::Cast;
use crate::dedup::Dedup;
use crate::enrich::Enrich;
use crate::project::Project;
use crate::spec::{NamedStage, StageSpec};
use crate::value_map::ValueMap;
use async_trait::async_trait;
use std::sync::Arc;
use synctool_core::change::ChangeBatch;
use synctool_core::error::{Error, Result};
use synctool_core::schema::TableSchema;
use synctool_core::source::Source;
use synctool_core::stage::{Stage, Staged, Stages, Written};

#[cfg(feature = "datafusion")]
use crate::{compute::Compute, filter::Filter};

/// A stage as it is configured: checked once against the columns, then opened for every partition.
pub trait Step: Send + Sync {
    /// What comes out, given what comes in; an error names a column that is not there.
    fn output(&self, input: &TableSchema) -> Result<TableSchema>;

    /// A fresh stage.
    fn open(&self) -> Result<Box<dyn Stage>>;

    /// The same for rows that end in the columns of a plan, as [`Stages::open_for`] says.
    fn open_for(&self, planned: &TableSchema, written: Written) -> Result<Box<dyn Stage>> {
        let _ = (planned, written);
        self.open()
    }

    /// Whether what becomes of a row depends on rows before it.
    fn remembers(&self) -> bool {
        false
    }

    /// The columns it reads.
    fn reads(&self) -> Vec<String> {
        Vec::new()
    }

    /// The columns it makes, or makes other values of.
    fn makes(&self) -> Vec<String> {
        Vec::new()
    }

    /// Where the values that a column gets are written, if they stand in a file.
    fn written_at(&self, column: &str) -> Option<String> {
        let _ = column;
        None
    }
}

/// Where dimensions come from: the datastores of a configuration.
#[async_trait]
pub trait Sources: Send + Sync {
    /// The source of a datastore.
    async fn source(&self, datastore: &str) -> Result<Arc<dyn Source>>;
}

#[async_trait]
impl Sources for std::collections::HashMap<String, Arc<dyn Source>> {
    async fn source(&self, datastore: &str) -> Result<Arc<dyn Source>> {
        self.get(datastore).cloned().ok_or_else(|| {
            Error::new(
                synctool_core::error::code::CONFIG_INVALID,
                format!("there is no datastore {datastore}"),
            )
        })
    }
}

#[derive(Clone)]
struct Link {
    name: Arc<str>,
    step: Arc<dyn Step>,
}

/// The stages of a pipeline in their order.
#[derive(Clone, Default)]
pub struct Chain(Vec<Link>);

impl Chain {
    /// Builds the stages of one pipeline for one strategy. `key` is the destination's key, in the names at the end of
    /// the chain. Dimensions are looked up in their catalogs; nothing else is read.
    pub async fn build(stages: Vec<NamedStage>, key: &[String], sources: &dyn Sources) -> Result<Chain> {
        let key: Arc<[String]> = key.into();
        let mut chain = Chain::default();
        for NamedStage { name, spec } in stages {
            let name = chain.unique(name.as_deref().unwrap_or(spec.kind()));
            let step = step(&name, spec, &key, sources)
                .await
                .map_err(|e| e.at("stage", name.as_ref()))?;
            chain.0.push(Link { name, step });
        }
        Ok(chain)
    }

    /// Adds a stage at the end.
    pub fn push(&mut self, stage: impl Step + 'static) {
        let name = self.unique("stage");
        self.0.push(Link {
            name,
            step: Arc::new(stage),
        });
    }

    /// The columns that must come in, though perhaps nobody writes them: what stages read and no earlier stage makes.
    pub fn needs(&self) -> Vec<String> {
        let (mut needed, mut made): (Vec<String>, Vec<String>) = Default::default();
        for link in &self.0 {
            for column in link.step.reads() {
                if !made.contains(&column) && !needed.contains(&column) {
                    needed.push(column);
                }
            }
            made.extend(link.step.makes());
        }
        needed
    }

    /// The names of the stages in the ledger.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|l| l.name.as_ref())
    }

    /// All stages under their names.
    fn opened(&self, open: impl Fn(&dyn Step) -> Result<Box<dyn Stage>>) -> Result<Vec<Box<dyn Stage>>> {
        self.0
            .iter()
            .map(|link| {
                let named = Named {
                    name: link.name.clone(),
                    stage: open(&*link.step)?,
                };
                Ok(Box::new(named) as Box<dyn Stage>)
            })
            .collect()
    }

    /// The ledger books by name, so no two stages share one.
    fn unique(&self, name: &str) -> Arc<str> {
        let taken = |n: &str| self.0.iter().any(|l| l.name.as_ref() == n);
        if !taken(name) {
            return name.into();
        }
        let mut number = 2;
        loop {
            let numbered = format!("{name}_{number}");
            if !taken(&numbered) {
                return numbered.into();
            }
            number += 1;
        }
    }
}

async fn step(name: &str, spec: StageSpec, key: &Arc<[String]>, sources: &dyn Sources) -> Result<Arc<dyn Step>> {
    let key = key.clone();
    Ok(match spec {
        #[cfg(feature = "datafusion")]
        StageSpec::Compute { columns } => Arc::new(Compute::new(name, columns, key)?),
        #[cfg(feature = "datafusion")]
        StageSpec::Filter { condition } => Arc::new(Filter::new(name, condition, key)?),
        #[cfg(not(feature = "datafusion"))]
        StageSpec::Compute { .. } | StageSpec::Filter { .. } => {
            use crate::no_expressions::{HINT, MISSING};
            return Err(Error::new(synctool_core::error::code::UNSUPPORTED, MISSING).hint(HINT));
        }
        StageSpec::Cast { casts } => Arc::new(Cast::new(name, casts, key)),
        StageSpec::ValueMap {
            column,
            mapping,
            places,
            fixed,
        } => Arc::new(ValueMap::new(column, mapping.into_iter().collect()).written(places, fixed)),
        StageSpec::Dedup(spec) => Arc::new(Dedup::new(name, spec)?),
        StageSpec::Enrich(spec) => {
            let source = sources.source(&spec.datastore).await?;
            Arc::new(Enrich::new(name, spec, key, source).await?)
        }
        StageSpec::Batch { target_rows } => Arc::new(Batch::new(target_rows)),
        StageSpec::Project { columns } => Arc::new(Project::new(name, columns, key)),
    })
}

impl Stages for Chain {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        self.0.iter().try_fold(input.clone(), |schema, link| {
            link.step.output(&schema).map_err(|e| e.at("stage", link.name.as_ref()))
        })
    }

    fn open(&self) -> Result<Vec<Box<dyn Stage>>> {
        self.opened(|step| step.open())
    }

    fn open_for(&self, planned: &TableSchema, written: Written) -> Result<Vec<Box<dyn Stage>>> {
        let mut stages = self.opened(|step| step.open_for(planned, written))?;
        if !stages.is_empty() {
            let name = self.unique("output");
            let stage = Project::planned(&name, planned).open()?;
            stages.push(Box::new(Named { name, stage }));
        }
        Ok(stages)
    }

    fn remembers(&self) -> bool {
        self.0.iter().any(|link| link.step.remembers())
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn changes(&self, column: &str) -> bool {
        self.0
            .iter()
            .any(|link| link.step.makes().iter().any(|made| made == column))
    }

    fn written_at(&self, column: &str) -> Option<String> {
        self.0.iter().rev().find_map(|link| link.step.written_at(column))
    }
}

/// A stage under its name in the chain.
struct Named {
    name: Arc<str>,
    stage: Box<dyn Stage>,
}

impl Named {
    fn signed(&self, mut staged: Staged) -> Staged {
        for reject in &mut staged.rejects {
            reject.stage = self.name.to_string();
        }
        staged
    }
}

#[async_trait]
impl Stage for Named {
    fn name(&self) -> &str {
        &self.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let table = batch.table.clone();
        let staged = self.stage.apply(batch).await;
        let staged = staged.map_err(|e| e.at("stage", self.name.as_ref()).at("table", table.to_string()))?;
        Ok(self.signed(staged))
    }

    async fn flush(&mut self) -> Result<Staged> {
        let staged = self
            .stage
            .flush()
            .await
            .map_err(|e| e.at("stage", self.name.as_ref()))?;
        Ok(self.signed(staged))
    }

    async fn finish(&mut self) -> Result<Staged> {
        let staged = self
            .stage
            .finish()
            .await
            .map_err(|e| e.at("stage", self.name.as_ref()))?;
        Ok(self.signed(staged))
    }
}
