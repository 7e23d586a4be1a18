//! Writes partitions: rows of a load into the load table, changes of a log into the table itself by [`super::apply`], and
//! the checkpoint in the same transaction.

use super::apply::Target;
use super::catalog::must_find;
use super::client::Session;

use super::ddl;
use super::destination::MysqlDestination;
use super::load::LoadTarget;
use super::locks::{end_sessions, name_session};
use super::merge::Mapping;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::change::{Event, Op, Ops, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Publish};
use synctool_core::progress::{Advance, Checkpoint, Epoch, PartitionId};
use synctool_core::schema::TableId;
use synctool_core::sink::Sink;

/// A writer of partitions: one session, one transaction at a time.
pub(super) struct MysqlSink {
    destination: MysqlDestination,
    session: Session,
    plan: Arc<Plan>,
    writer: String,
    epochs: HashMap<PartitionId, Epoch>,
    /// Where the partitions stand after the last commit.
    standing: Checkpoint,
    loads: Vec<LoadTarget>,
    targets: Vec<Target>,
    in_transaction: bool,
    /// What was done since the last commit.
    pending: Applied,
}

impl MysqlSink {
    pub(super) async fn open(destination: MysqlDestination, plan: &Plan) -> Result<Self> {
        let mut session = destination.session().await?;
        let writer = name_session(&mut session).await?;
        Ok(MysqlSink {
            destination,
            session,
            plan: Arc::new(plan.clone()),
            writer,
            epochs: HashMap::new(),
            standing: Checkpoint::new(),
            loads: Vec::new(),
            targets: Vec::new(),
            in_transaction: false,
            pending: Applied::default(),
        })
    }

    async fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            self.session.run("START TRANSACTION", "beginning a transaction").await?;
            self.in_transaction = true;
        }
        Ok(())
    }

    /// The planned table that rows are for.
    fn planned(&self, table: &TableId) -> Result<usize> {
        let qualified = self.destination.qualified(table);
        let tables = &self.plan.tables;
        tables
            .iter()
            .position(|t| self.destination.qualified(&t.destination) == qualified)
            .or_else(|| tables.iter().position(|t| t.read.table == *table))
            .ok_or_else(|| Error::bug(format!("rows came for {table}, which is not in the plan")))
    }

    async fn load_target(&mut self, index: usize) -> Result<usize> {
        let table = self.plan.tables[index].destination.clone();
        if let Some(at) = self.loads.iter().position(|t| t.table == table) {
            return Ok(at);
        }
        let load = self.destination.load_table(&self.plan, index);
        let existing = must_find(&mut self.session, &load).await?;
        let mapping = Mapping::new(&existing, &self.plan.tables[index].schema)?;
        self.loads.push(LoadTarget::new(
            table,
            load,
            mapping.names(),
            mapping.writers,
            self.destination.database.config().load,
            &self.destination.flavor,
        ));
        Ok(self.loads.len() - 1)
    }

    async fn target(&mut self, table: &TableId) -> Result<usize> {
        let index = self.planned(table)?;
        if self.plan.tables[index].publish != Publish::Direct {
            return Err(Error::bug(
                "a change came for a table that is loaded and then published",
            ));
        }
        if let Some(at) = self.targets.iter().position(|t| t.index == index) {
            return Ok(at);
        }
        let planned = self.plan.tables[index].clone();
        let target = Target::open(&mut self.session, index, &planned.destination, planned.schema).await?;
        self.targets.push(target);
        Ok(self.targets.len() - 1)
    }

    async fn take(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) => Ok(()),
            Event::Boundary { .. } => Err(Error::bug("a boundary was written to a sink")),
            Event::Raw { .. } => Err(Error::bug("MySQL takes no rows in wire form")),
            Event::Rows(batch) if batch.is_empty() => Ok(()),
            Event::Rows(batch) => {
                let index = self.planned(&batch.table)?;
                let at = |e: Error| e.at("table", batch.table.to_string());
                if self.plan.tables[index].publish == Publish::Direct {
                    let target = self.target(&batch.table).await?;
                    self.begin().await?;
                    let applied = self.targets[target]
                        .apply(&mut self.session, &batch)
                        .await
                        .map_err(at)?;
                    self.pending += match self.plan.tables[index].own {
                        true => applied.as_own(),
                        false => applied,
                    };
                    return Ok(());
                }
                if !matches!(batch.ops, Ops::All(Op::Insert | Op::Upsert)) || batch.present.is_some() {
                    return Err(Error::bug("a load takes whole rows only"));
                }
                let load = self.load_target(index).await?;
                self.begin().await?;
                self.loads[load]
                    .take(&mut self.session, &batch.rows)
                    .await
                    .map_err(at)?;
                self.pending += Applied::inserts(batch.len() as u64);
                Ok(())
            }
            Event::Net { table, remove, insert } => {
                let target = self.target(&table).await?;
                self.begin().await?;
                let done = self.targets[target].net(&mut self.session, &remove, &insert).await;
                self.pending += done.map_err(|e| e.at("table", table.to_string()))?;
                Ok(())
            }
            Event::ReplaceRange { table, range, rows } => {
                let target = self.target(&table).await?;
                self.begin().await?;
                let planned = &self.plan.tables[self.targets[target].index];
                let by_bytes = self.plan.columns_cut_by_bytes(&planned.read.table);
                let done = self.targets[target]
                    .replace_range(&mut self.session, &range, &by_bytes, &rows)
                    .await;
                self.pending += done.map_err(|e| e.at("table", table.to_string()))?;
                Ok(())
            }
            Event::Truncate { tables, .. } => {
                for table in tables {
                    // Tables that this plan does not write are none of its business.
                    if self.planned(&table).is_ok() {
                        let target = self.target(&table).await?;
                        self.begin().await?;
                        self.targets[target].truncate(&mut self.session).await?;
                    }
                }
                Ok(())
            }
            Event::Schema(change) => self.reshape(&change).await,
        }
    }

    /// Adds the columns that a change of shape adds; anything else is refused. ALTER TABLE commits what was written, so
    /// it is run only where nothing was: else the writer starts over after it, and finds the columns there.
    async fn reshape(&mut self, change: &SchemaChange) -> Result<()> {
        change.must_only_add()?;
        let added = &change.difference.missing;
        let at = self.target(&change.table).await?;
        let table = self.targets[at].table.clone();
        let existing = must_find(&mut self.session, &table).await?;
        let missing: Vec<_> = added.iter().filter(|c| existing.column(&c.name).is_none()).collect();
        if !missing.is_empty() {
            let written = std::mem::take(&mut self.in_transaction);
            if written {
                self.session.run("ROLLBACK", "rolling back").await?;
            }
            for column in missing {
                let sql = ddl::add_column(&self.destination.flavor, &table, column)?;
                match self.session.run(&sql, "adding a column").await {
                    // Another writer was quicker.
                    Err(e) if e.context().contains(&("errno", "1060".into())) => {}
                    other => {
                        other.map_err(|e| e.at("column", column.name.clone()))?;
                    }
                }
            }
            if written {
                return Err(Error::new(
                    code::CONFLICT,
                    format!("columns were added to {table}; what was written since the last commit is written again"),
                ));
            }
        }
        let mut schema = self.targets[at].schema.clone();
        for column in added {
            if schema.column(&column.name).is_none() {
                schema.columns.push(synctool_core::schema::Column {
                    nullable: true,
                    ..column.clone()
                });
            }
        }
        let index = self.targets[at].index;
        self.targets[at] = Target::open(&mut self.session, index, &table, schema).await?;
        Ok(())
    }
}

#[async_trait]
impl Sink for MysqlSink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        if self.in_transaction {
            return Err(Error::bug("recover was called in the middle of a transaction"));
        }
        let control = self.destination.control.clone();
        let place = Some((self.plan.generation, partitions));
        let writers = control.writers(&mut self.session, &self.plan.pipeline, place).await?;
        end_sessions(&mut self.session, &writers).await?;
        self.session.run("START TRANSACTION", "beginning a transaction").await?;
        control.hold_generation(&mut self.session, &self.plan).await?;
        let (found, epochs) = control
            .take_over(&mut self.session, &self.plan, partitions, &self.writer)
            .await?;
        self.session.run("COMMIT", "taking over partitions").await?;
        self.epochs.extend(epochs);
        self.standing.extend(found.clone());
        failpoint("sink.recover.after")?;
        Ok(found)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        failpoint("sink.write")?;
        self.take(event).await
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        self.begin().await?;
        for load in &mut self.loads {
            load.flush(&mut self.session).await?;
        }
        let applied = std::mem::take(&mut self.pending);
        let control = self.destination.control.clone();
        control.hold_generation(&mut self.session, &self.plan).await?;
        let mut standing = self.standing.clone();
        for (i, step) in advances.iter().enumerate() {
            let epoch = self
                .epochs
                .get(&step.partition)
                .copied()
                .ok_or_else(|| Error::bug(format!("partition {} was not recovered", step.partition)))?;
            let state = standing.entry(step.partition.clone()).or_default();
            // Events do not say their partition: what was done together is accounted to the first.
            if i == 0 {
                state.applied += applied;
            }
            state.position = Some(step.to.clone());
            state.done = step.done;
            state.accounts = step.accounts.clone();
            control
                .advance(&mut self.session, &self.plan, epoch, step, state.applied)
                .await?;
        }
        failpoint("sink.commit.before")?;
        self.session.run("COMMIT", "committing").await?;
        self.in_transaction = false;
        self.standing = standing;
        failpoint("sink.commit.after")?;
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        // What innodb_flush_log_at_trx_commit leaves open is lost whole: rows and positions together.
        Ok(self.standing.clone())
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        if std::mem::take(&mut self.in_transaction) {
            // Rows since the last commit belong to nobody now.
            self.pending = Applied::default();
            self.loads.clear();
            self.session.run("ROLLBACK", "rolling back").await?;
        }
        for id in partitions {
            self.epochs.remove(id);
            self.standing.remove(id);
        }
        let control = self.destination.control.clone();
        control
            .release(&mut self.session, &self.plan, partitions, &self.writer)
            .await
    }
}
