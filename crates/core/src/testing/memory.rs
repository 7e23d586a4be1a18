//! A destination in memory that keeps the whole contract of [`Destination`] and [`Sink`]: what a connector must do,
//! in its simplest form. It is the reference of the conformance suite and the far end of the engine's crash matrix.

use super::rows::{Row, Rows, key_of, texts};
use crate::change::{ChangeBatch, Event, KeyRange, Op};
use crate::error::{Error, Result, code};
use crate::ledger::Applied;
use crate::plan::{Plan, Publish};
use crate::progress::{Advance, Checkpoint, Epoch, Generation, PartitionId, PartitionState};
use crate::schema::{Carrier, Column, ColumnType, TableId, TableSchema};
use crate::sink::{Destination, Fidelity, Guarantee, Published, Sink, SinkTraits, StoredAs, StoredPlan, shares};
use crate::source::Source;
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};

/// A table in memory.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Table {
    /// Its shape.
    pub schema: TableSchema,
    /// Its rows; a table without a key numbers them.
    pub rows: Rows,
    made_here: bool,
}

#[derive(Debug, Clone, Default)]
struct World {
    tables: BTreeMap<TableId, Table>,
    generations: HashMap<String, Generation>,
    plans: HashMap<String, (StoredPlan, Published)>,
    clock: String,
    remembered: HashMap<String, BTreeMap<String, String>>,
    checkpoints: HashMap<(String, Generation), HashMap<PartitionId, (Epoch, PartitionState)>>,
}

/// The destination; clones share it, as processes share a server.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<World>>);

impl Memory {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().expect("not poisoned")
    }

    /// A table as it is now.
    pub fn table(&self, table: &TableId) -> Option<Table> {
        self.world().tables.get(table).cloned()
    }

    /// Makes or replaces a table, as somebody else would.
    pub fn put(&self, table: &TableId, schema: TableSchema, rows: Rows) {
        self.world().tables.insert(
            table.clone(),
            Table {
                schema,
                rows,
                made_here: false,
            },
        );
    }

    /// What a column stamped by this database has settled up to.
    pub fn clock(&self) -> String {
        self.world().clock.clone()
    }

    /// Sets the clock.
    pub fn set_clock(&self, now: &str) {
        self.world().clock = now.into();
    }

    /// The names of all tables.
    pub fn names(&self) -> Vec<TableId> {
        self.world().tables.keys().cloned().collect()
    }
}

/// The table that rows of a planned table are written to.
fn target(plan: &Plan, index: usize) -> TableId {
    match plan.tables[index].publish {
        Publish::Direct => plan.tables[index].destination.clone(),
        _ => TableId {
            schema: plan.tables[index].destination.schema.clone(),
            name: plan.load_name(index),
        },
    }
}

#[async_trait]
impl Destination for Memory {
    fn engine(&self) -> &'static str {
        "memory"
    }

    fn traits(&self) -> SinkTraits {
        SinkTraits {
            writers: 4,
            guarantee: Guarantee::ExactlyOnce,
            applies_changes: true,
            single_partition: false,
        }
    }

    fn store_as(&self, _: &str, column: &Column) -> StoredAs {
        let carrier = if column.ty == ColumnType::Numeric {
            Carrier::Text
        } else {
            Carrier::Arrow
        };
        StoredAs {
            type_name: column.ty.to_string(),
            carrier,
            fidelity: Fidelity::Exact,
        }
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        Ok(self.world().tables.get(table).map(|t| t.schema.clone()))
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        Ok(self.world().tables.get(table).is_none_or(|t| t.rows.is_empty()))
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        Ok(self.world().tables.get(table).is_some_and(|t| t.made_here))
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        let world = self.world();
        let extra = world
            .tables
            .get(table)
            .map(|t| t.schema.difference(wanted).extra)
            .unwrap_or_default();
        Ok(extra
            .iter()
            .map(|c| format!("column {} is not in the pipeline", c.name))
            .collect())
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        Ok(plan
            .tables
            .iter()
            .map(|t| format!("{:?} {}", t.publish, t.destination))
            .collect())
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        Ok(self.world().plans.get(pipeline).map(|(p, _)| p.clone()))
    }

    async fn prepare(&self, mut plan: Plan) -> Result<Plan> {
        let mut world = self.world();
        let generation = world.generations.entry(plan.pipeline.clone()).or_default();
        generation.0 += 1;
        plan.generation = *generation;
        if let Some((old, _)) = world.plans.remove(&plan.pipeline) {
            for i in 0..old.plan.tables.len() {
                if old.plan.tables[i].publish != Publish::Direct {
                    world.tables.remove(&target(&old.plan, i));
                }
            }
        }
        for (i, t) in plan.tables.iter().enumerate() {
            let fresh = Table {
                schema: t.schema.clone(),
                rows: Rows::new(),
                made_here: true,
            };
            match t.publish {
                Publish::Direct => drop(world.tables.entry(t.destination.clone()).or_insert(fresh)),
                _ => drop(world.tables.insert(target(&plan, i), fresh)),
            }
        }
        let stored = StoredPlan {
            plan: plan.clone(),
            finished: false,
        };
        world
            .plans
            .insert(plan.pipeline.clone(), (stored, Published::default()));
        world
            .checkpoints
            .insert((plan.pipeline.clone(), plan.generation), HashMap::new());
        Ok(plan)
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        let world = self.world();
        let states = world.checkpoints.get(&(plan.pipeline.clone(), plan.generation));
        Ok(states
            .into_iter()
            .flatten()
            .map(|(id, (_, state))| (id.clone(), state.clone()))
            .collect())
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        Ok(Box::new(MemorySink {
            memory: self.clone(),
            plan: plan.clone(),
            epochs: HashMap::new(),
            pending: Vec::new(),
            checkpoint: Checkpoint::new(),
        }))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        check_generation(&self.world(), plan)
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        Some((
            Arc::new(super::memory_log::MemoryTables(self.clone())),
            target(plan, index),
        ))
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        Some(Arc::new(super::memory_log::MemoryTables(self.clone())))
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        Ok(self.world().remembered.get(pipeline).cloned().unwrap_or_default())
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        let mut world = self.world();
        let all = world.remembered.entry(pipeline.into()).or_default();
        all.extend(facts.clone());
        Ok(())
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        let mut world = self.world();
        check_generation(&world, plan)?;
        let (stored, published) = world
            .plans
            .get(&plan.pipeline)
            .cloned()
            .ok_or_else(|| fenced("the plan is gone"))?;
        if stored.finished {
            return Ok(published);
        }
        let mut published = Published::default();
        for (i, t) in plan.tables.iter().enumerate() {
            if t.publish == Publish::Direct {
                continue;
            }
            let load = world
                .tables
                .remove(&target(plan, i))
                .ok_or_else(|| Error::bug("the load table is gone"))?;
            let old = world.tables.get(&t.destination).cloned().unwrap_or_default();
            let a = &mut published.applied;
            let written = load.rows.len() as u64;
            let mut applied = Applied {
                written,
                ..Applied::default()
            };
            match &t.publish {
                Publish::Direct => unreachable!("skipped above"),
                Publish::Create | Publish::Swap => {
                    if !plan.guard.allows(old.rows.len() as u64, 0, written) {
                        world.tables.insert(target(plan, i), load);
                        return Err(Error::new(code::MASS_DELETE, "the source is empty"));
                    }
                    let gone = old.rows.keys().filter(|k| !load.rows.contains_key(*k)).count() as u64;
                    applied.deleted = gone;
                    compare(&old.rows, &load.rows, &mut applied);
                    world.tables.insert(t.destination.clone(), load);
                }
                Publish::Append => {
                    applied.inserted = written;
                    let mut rows = old.rows.clone();
                    let start = rows.len();
                    rows.extend(
                        load.rows
                            .into_values()
                            .enumerate()
                            .map(|(n, row)| (number(start + n), row)),
                    );
                    world.tables.insert(t.destination.clone(), Table { rows, ..old });
                }
                Publish::Merge { delete_missing } => {
                    compare(&old.rows, &load.rows, &mut applied);
                    let mut rows = old.rows.clone();
                    if *delete_missing {
                        rows.retain(|k, _| load.rows.contains_key(k));
                        applied.deleted = (old.rows.len() - rows.len()) as u64;
                        if !plan.guard.allows(old.rows.len() as u64, applied.deleted, written) {
                            world.tables.insert(target(plan, i), load);
                            return Err(Error::new(code::MASS_DELETE, "too many rows would be deleted"));
                        }
                    }
                    rows.extend(load.rows);
                    world.tables.insert(t.destination.clone(), Table { rows, ..old });
                }
            }
            *a += applied;
        }
        let all = world.remembered.entry(plan.pipeline.clone()).or_default();
        all.extend(plan.remember.clone());
        world.plans.insert(
            plan.pipeline.clone(),
            (
                StoredPlan {
                    plan: plan.clone(),
                    finished: true,
                },
                published,
            ),
        );
        Ok(published)
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        let mut world = self.world();
        if let Some((old, _)) = world.plans.remove(pipeline) {
            for i in 0..old.plan.tables.len() {
                if old.plan.tables[i].publish != Publish::Direct {
                    world.tables.remove(&target(&old.plan, i));
                }
            }
        }
        world.generations.entry(pipeline.to_string()).or_default().0 += 1;
        world.checkpoints.retain(|(p, _), _| p != pipeline);
        world.remembered.remove(pipeline);
        Ok(())
    }
}

fn compare(old: &Rows, new: &Rows, applied: &mut Applied) {
    for (key, row) in new {
        match old.get(key) {
            None => applied.inserted += 1,
            Some(o) if o == row => applied.unchanged += 1,
            Some(_) => applied.updated += 1,
        }
    }
}

fn number(n: usize) -> Vec<String> {
    vec![format!("{n:012}")]
}

fn fenced(why: &str) -> Error {
    Error::new(code::FENCED, why)
}

fn check_generation(world: &World, plan: &Plan) -> Result<()> {
    if world.generations.get(&plan.pipeline) == Some(&plan.generation) {
        Ok(())
    } else {
        Err(fenced("a newer plan has taken over"))
    }
}

struct MemorySink {
    memory: Memory,
    plan: Plan,
    epochs: HashMap<PartitionId, Epoch>,
    pending: Vec<Event>,
    checkpoint: Checkpoint,
}

#[async_trait]
impl Sink for MemorySink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        let mut world = self.memory.world();
        check_generation(&world, &self.plan)?;
        let states = world
            .checkpoints
            .entry((self.plan.pipeline.clone(), self.plan.generation))
            .or_default();
        let mut found = Checkpoint::new();
        for id in partitions {
            let (epoch, state) = states.entry(id.clone()).or_default();
            epoch.0 += 1;
            self.epochs.insert(id.clone(), *epoch);
            found.insert(id.clone(), state.clone());
        }
        self.checkpoint.extend(found.clone());
        Ok(found)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        self.pending.push(event);
        Ok(())
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        let pending = std::mem::take(&mut self.pending);
        let mut shared = self.memory.world();
        // A transaction: everything happens to a copy, which takes the place of the world at the very end.
        let mut world = shared.clone();
        let mut done: BTreeMap<usize, Applied> = BTreeMap::new();
        for event in &pending {
            let table = event_table(event).and_then(|t| self.plan.tables.iter().position(|p| p.destination == *t));
            apply(
                &mut world,
                &self.plan,
                event,
                done.entry(table.unwrap_or(0)).or_default(),
            )?;
        }
        let shares = shares(&self.plan, advances, &done)?;
        let mut applied = Applied::default();
        shares.iter().for_each(|a| applied += *a);
        check_generation(&world, &self.plan)?;
        let states = world
            .checkpoints
            .entry((self.plan.pipeline.clone(), self.plan.generation))
            .or_default();
        for (a, share) in advances.iter().zip(shares) {
            let (epoch, state) = states
                .get_mut(&a.partition)
                .ok_or_else(|| fenced("the partition is gone"))?;
            if self.epochs.get(&a.partition) != Some(epoch) || state.position != a.from || state.done {
                return Err(fenced("a newer writer has taken over the partition"));
            }
            let mut sum = state.applied;
            sum += share;
            *state = PartitionState {
                position: Some(a.to.clone()),
                done: a.done,
                accounts: a.accounts.clone(),
                applied: sum,
            };
            self.checkpoint.insert(a.partition.clone(), state.clone());
        }
        *shared = world;
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        Ok(self.checkpoint.clone())
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        for id in partitions {
            self.epochs.remove(id);
            self.checkpoint.remove(id);
        }
        Ok(())
    }
}

/// The table whose rows an event carries.
fn event_table(event: &Event) -> Option<&TableId> {
    match event {
        Event::Rows(batch) => Some(&batch.table),
        Event::ReplaceRange { table, .. } | Event::Net { table, .. } => Some(table),
        _ => None,
    }
}

fn apply(world: &mut World, plan: &Plan, event: &Event, applied: &mut Applied) -> Result<()> {
    let find = |table: &TableId| {
        let index = plan.tables.iter().position(|t| t.destination == *table);
        index
            .map(|i| target(plan, i))
            .ok_or_else(|| Error::bug(format!("{table} is not in the plan")))
    };
    let table_of = |world: &mut World, table: &TableId| -> Result<Table> {
        let id = find(table)?;
        world
            .tables
            .get(&id)
            .cloned()
            .ok_or_else(|| Error::new(code::TABLE_MISSING, format!("{id} is gone")))
    };
    match event {
        Event::Rows(batch) => {
            let mut table = table_of(world, &batch.table)?;
            rows(&mut table, batch, applied)?;
            world.tables.insert(find(&batch.table)?, table);
        }
        Event::Truncate { tables, .. } => {
            for t in tables {
                let mut table = table_of(world, t)?;
                table.rows.clear();
                world.tables.insert(find(t)?, table);
            }
        }
        Event::ReplaceRange {
            table: name,
            range,
            rows,
        } => {
            let mut table = table_of(world, name)?;
            let rows = texts(rows)?;
            let mut keep = BTreeMap::new();
            for row in rows {
                keep.insert(key_of(&table.schema, &row)?, row);
            }
            let before = table.rows.len();
            table.rows.retain(|k, _| !inside(range, k) || keep.contains_key(k));
            let gone = (before - table.rows.len()) as u64;
            // Rows that only the destination had were not handed over: they stand on both sides of the account.
            *applied += Applied {
                written: keep.len() as u64,
                ..Applied::default()
            };
            let _ = gone;
            for (key, row) in keep {
                put(&mut table, key, row, applied);
            }
            world.tables.insert(find(name)?, table);
        }
        Event::Net {
            table: name,
            remove,
            insert,
        } => {
            let mut table = table_of(world, name)?;
            for row in texts(remove)? {
                applied.written += 1;
                match table.rows.remove(&key_of(&table.schema, &row)?) {
                    Some(_) => applied.deleted += 1,
                    None => applied.unchanged += 1,
                }
            }
            for row in texts(insert)? {
                applied.written += 1;
                let key = key_of(&table.schema, &row)?;
                put(&mut table, key, row, applied);
            }
            world.tables.insert(find(name)?, table);
        }
        Event::Schema(_) | Event::Raw { .. } => {
            return Err(Error::new(
                code::UNSUPPORTED,
                "the destination in memory knows neither raw rows nor DDL",
            ));
        }
        Event::Begin(_) | Event::Message { .. } | Event::Compared(_) | Event::Boundary { .. } => {}
    }
    Ok(())
}

fn inside(range: &KeyRange, key: &[String]) -> bool {
    range.lower.as_deref().is_none_or(|l| key >= l) && range.upper.as_deref().is_none_or(|u| key < u)
}

fn put(table: &mut Table, key: Vec<String>, row: Row, applied: &mut Applied) {
    match table.rows.insert(key, row.clone()) {
        None => applied.inserted += 1,
        Some(old) if old == row => applied.unchanged += 1,
        Some(_) => applied.updated += 1,
    }
}

fn rows(table: &mut Table, batch: &ChangeBatch, applied: &mut Applied) -> Result<()> {
    let new = texts(&batch.rows)?;
    let old = batch.before.as_ref().map(texts).transpose()?;
    batch.check_whole()?;
    for (i, row) in new.into_iter().enumerate() {
        applied.written += 1;
        if table.schema.key.is_empty() {
            if batch.ops.get(i) != Op::Insert {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    "a table without a key takes inserts only",
                ));
            }
            let at = number(table.rows.len());
            table.rows.insert(at, row);
            applied.inserted += 1;
            continue;
        }
        let key = key_of(&table.schema, &row)?;
        let key_indices = table.schema.key_indices()?;
        let from = match &old {
            Some(rows) if key_indices.iter().any(|k| rows[i][*k].is_some()) => key_of(&table.schema, &rows[i])?,
            _ => key.clone(),
        };
        let has = |c: usize| batch.present.as_ref().is_none_or(|p| p.has(c, i));
        match batch.ops.get(i) {
            Op::Delete => match table.rows.remove(&key) {
                Some(_) => applied.deleted += 1,
                None => applied.unchanged += 1,
            },
            Op::Insert | Op::Upsert => put(table, key, row, applied),
            Op::Update => match table.rows.remove(&from) {
                // Never an insert with NULLs, and never an insert at all: the row is somebody else's to bring.
                None => applied.unchanged += 1,
                Some(stored) => {
                    let merged: Row = row
                        .into_iter()
                        .zip(&stored)
                        .enumerate()
                        .map(|(c, (n, s))| if has(c) { n } else { s.clone() })
                        .collect();
                    if merged == stored {
                        applied.unchanged += 1
                    } else {
                        applied.updated += 1
                    }
                    table.rows.insert(key, merged);
                }
            },
        }
    }
    Ok(())
}
