//! Writing part files. Encoding and file work run on blocking threads; while one batch is encoded, the next is
//! already on its way here.

use super::control::{Control, Log, Part, Step, fenced, gone};
use super::csv::CsvPart;
use super::merge::View;
use super::parquet::ParquetPart;
use super::pending::Pending;
use super::settle::{self, Change, Replacing};
use super::table::{DataFile, Place};
use super::{Format, blocking, publish, store};
use arrow_array::{Array, RecordBatch};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Event, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Publish};
use synctool_core::progress::{Advance, Checkpoint, Epoch, PartitionId};
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::sink::{Sink, shares};
use tokio::task::JoinHandle;

/// Writes one file of rows.
pub(super) trait PartWriter: Send {
    /// Takes rows.
    fn write(&mut self, batch: &RecordBatch) -> Result<()>;
    /// Completes the file durably; gives its rows and bytes.
    fn finish(self: Box<Self>) -> Result<(u64, u64)>;
}

/// Begins a part file. `sample` are its first rows, if it will have any: they tell how its columns are best written.
pub(super) fn create_part(
    path: &Path,
    table: &TableSchema,
    format: &Format,
    sample: Option<&RecordBatch>,
) -> Result<Box<dyn PartWriter>> {
    Ok(match format {
        Format::Csv(options) => Box::new(CsvPart::create(path, table, options)?),
        Format::Parquet(options) => Box::new(ParquetPart::create(path, table, options, sample)?),
    })
}

/// The file name that part files of a format end with.
pub(super) fn extension(format: &Format) -> &'static str {
    format.name()
}

/// What the blocking threads work on.
struct Work {
    place: Arc<Place>,
    control: Control,
    plan: Plan,
    log: Log,
    epochs: HashMap<PartitionId, Epoch>,
    /// Begins the names of this sink's files: nobody else has this partition in this epoch.
    name: String,
    files: u64,
    /// Per table: the file being written.
    open: HashMap<usize, (String, Box<dyn PartWriter>)>,
    /// Rows written since the last commit, per table.
    rows: BTreeMap<usize, u64>,
    /// Per table that is changed directly: its changes since the last commit.
    pending: BTreeMap<usize, Pending>,
}

impl Work {
    fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        self.control.check_generation(&self.plan)?;
        self.open.clear();
        self.rows.clear();
        self.pending.clear();
        let epochs = self.log.recover(partitions)?;
        if let Some(first) = partitions.first() {
            let hash = xxhash_rust::xxh3::xxh3_64(first.as_str().as_bytes());
            self.name = format!("{hash:016x}-e{}", epochs[first].0);
        }
        self.epochs.extend(epochs);
        Ok(partitions.iter().map(|p| (p.clone(), self.log.state(p))).collect())
    }

    fn write(&mut self, batch: &ChangeBatch) -> Result<()> {
        let at = |e: Error| e.at("table", batch.table.to_string());
        let index = self.index_of(&batch.table)?;
        let direct = self.plan.tables[index].publish == Publish::Direct;
        let schema = &self.plan.tables[index].schema;
        let fields = batch.rows.schema();
        if !fields
            .fields()
            .iter()
            .map(|f| f.name())
            .eq(schema.columns.iter().map(|c| &c.name))
        {
            return Err(at(Error::bug("rows have other columns than their table")));
        }
        for (column, array) in schema.columns.iter().zip(batch.rows.columns()) {
            // Of a row that goes only the key counts.
            let null = |row: usize| array.is_null(row) && batch.ops.get(row) != Op::Delete;
            if !column.nullable && array.null_count() > 0 && (0..batch.len()).any(null) {
                return Err(at(Error::new(
                    code::CONSTRAINT,
                    format!("column {} is NOT NULL and a row has NULL there", column.name),
                )
                .hint("allow NULL in the pipeline's column, or filter such rows")));
            }
        }
        if direct {
            let dir = self.control.part_dir(&self.plan);
            let pending = self.pending.entry(index).or_insert_with(|| Pending::new(schema));
            return pending.add(batch, &dir).map_err(|e| self.maybe_gone(e));
        }
        if !all_load(batch) {
            return Err(at(only_loads()));
        }
        if !self.open.contains_key(&index) {
            self.files += 1;
            let name = format!(
                "{}-{}-{index}.{}",
                self.name,
                self.files,
                extension(&self.place.config.format)
            );
            let path = self.control.part_dir(&self.plan).join(&name);
            let part = create_part(&path, schema, &self.place.config.format, Some(&batch.rows))
                .map_err(|e| self.maybe_gone(e))?;
            self.open.insert(index, (name, part));
        }
        let (_, part) = self.open.get_mut(&index).expect("set above");
        part.write(&batch.rows).map_err(at)?;
        *self.rows.entry(index).or_default() += batch.len() as u64;
        Ok(())
    }

    fn index_of(&self, table: &TableId) -> Result<usize> {
        let found = self.plan.tables.iter().position(|t| t.destination == *table);
        found.ok_or_else(|| Error::bug("rows for a table that is not in the plan").at("table", table.to_string()))
    }

    /// All rows of tables go.
    fn empty(&mut self, tables: &[Arc<TableId>]) -> Result<()> {
        for table in tables {
            let index = self.index_of(table)?;
            let planned = &self.plan.tables[index];
            if planned.publish != Publish::Direct {
                return Err(only_loads().at("table", table.to_string()));
            }
            let pending = self.pending.entry(index);
            pending.or_insert_with(|| Pending::new(&planned.schema)).empty();
        }
        Ok(())
    }

    /// A folder that vanished is a newer run's doing, not a broken disk.
    fn maybe_gone(&self, e: Error) -> Error {
        match e.code() == code::FILE && self.control.is_gone(&self.plan) {
            true => gone(&self.plan),
            false => e,
        }
    }

    fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        let dir = self.control.part_dir(&self.plan);
        let mut parts = Vec::new();
        for (table, (name, part)) in std::mem::take(&mut self.open) {
            let (rows, bytes) = part.finish().map_err(|e| self.maybe_gone(e))?;
            parts.push(Part {
                table,
                partition: advances.first().map(|a| a.partition.clone()),
                file: DataFile {
                    name,
                    rows: Some(rows),
                    bytes,
                    lacks: Vec::new(),
                },
            });
        }
        parts.sort_by_key(|p| p.table);
        if !parts.is_empty() {
            store::sync_dir(&dir).map_err(|e| self.maybe_gone(e))?;
        }
        let counted: u64 = parts.iter().filter_map(|p| p.file.rows).sum();
        let written: u64 = self.rows.values().sum();
        if counted != written {
            return Err(Error::bug(format!(
                "{written} rows were written, the files hold {counted}"
            )));
        }
        let mut done: BTreeMap<usize, Applied> = std::mem::take(&mut self.rows)
            .into_iter()
            .map(|(t, rows)| (t, Applied::inserts(rows)))
            .collect();
        if self.pending.is_empty() {
            self.control.check_generation(&self.plan)?;
            return self.record(advances, parts, &done, None);
        }
        let place = self.place.clone();
        let pending = std::mem::take(&mut self.pending);
        let plan = self.plan.clone();
        let names = pending.keys().map(|i| plan.tables[*i].destination.name.as_str());
        let _locked = settle::lock(&place, names)?;
        // Whoever is fenced need not work in vain; what decides is the record.
        self.log.catch_up()?;
        self.control.check_generation(&self.plan)?;
        for a in advances {
            self.log
                .allows(&a.partition, self.epoch(&a.partition)?, a.from.as_ref())?;
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let mut replacing = Vec::new();
        for (index, pending) in pending {
            let table = self.plan.tables[index].destination.to_string();
            let (applied, new) = self
                .merge(index, pending, &id)
                .map_err(|e| self.maybe_gone(e).at("table", table))?;
            done.insert(index, applied);
            replacing.extend(new);
        }
        store::sync_dir(&dir).map_err(|e| self.maybe_gone(e))?;
        failpoint("settle.written")?;
        let control = self.control.clone();
        let change = Change {
            place: &place,
            control: &control,
            generation: self.plan.generation.0,
            id,
        };
        let changed: Vec<String> = replacing.iter().map(|r| r.name.clone()).collect();
        for replacing in replacing {
            change.announce(self.log.next(), replacing)?;
        }
        failpoint("settle.announced")?;
        self.control.check_generation(&self.plan)?;
        let applied = self.record(advances, parts, &done, Some(change.id.clone()))?;
        failpoint("settle.committed")?;
        for name in changed {
            change.carry_out(&name)?;
        }
        Ok(applied)
    }

    fn epoch(&self, partition: &PartitionId) -> Result<Epoch> {
        self.epochs
            .get(partition)
            .copied()
            .ok_or_else(|| Error::bug(format!("partition {partition} was not recovered by this sink")))
    }

    /// The record that is the commit.
    fn record(
        &mut self,
        advances: &[Advance],
        parts: Vec<Part>,
        done: &BTreeMap<usize, Applied>,
        id: Option<String>,
    ) -> Result<Applied> {
        let mut steps = Vec::new();
        let mut sum = Applied::default();
        for (a, applied) in advances.iter().zip(shares(&self.plan, advances, done)?) {
            sum += applied;
            steps.push(Step {
                partition: a.partition.clone(),
                epoch: self.epoch(&a.partition)?,
                from: a.from.clone(),
                to: a.to.clone(),
                done: a.done,
                accounts: a.accounts.clone(),
                applied,
            });
        }
        self.log.commit(steps, parts, id)?;
        Ok(sum)
    }

    /// Works changes into a table's files, unseen by anybody; what is to take their place, if anything differs.
    fn merge(&self, index: usize, pending: Pending, id: &str) -> Result<(Applied, Option<Replacing>)> {
        let planned = &self.plan.tables[index];
        let located = self.place.locate(&planned.destination)?;
        let located = located
            .ok_or_else(|| self.place.missing(&planned.destination))?
            .let_go();
        let dir = self.control.part_dir(&self.plan);
        let prefix = format!(
            "{}{}-{id}-{index}-",
            settle::prefix(&self.control.pipeline),
            self.plan.generation
        );
        let mut view = View::new(&located, &planned.schema, (&dir, prefix), false)?;
        let mut applied = Applied::default();
        for step in pending.steps() {
            applied += view.step(step?)?;
        }
        let replacing = view
            .finish()?
            .map(|changed| publish::replacing(&self.place, &planned.destination, &located, changed, None));
        Ok((applied, replacing.transpose()?))
    }
}

/// The sink. It is useless after any failed call: its work is gone then.
pub(super) struct FileSink {
    work: Option<Work>,
    working: Option<JoinHandle<Result<Work>>>,
}

impl FileSink {
    pub(super) async fn open(place: Arc<Place>, control: Control, plan: Plan) -> Result<Self> {
        blocking(move || {
            control.check_generation(&plan)?;
            if control.done(plan.generation.0)?.is_some() || control.is_gone(&plan) {
                return Err(gone(&plan));
            }
            // What a crash has left of a commit is done before anybody reads on from it.
            settle::left(&place, settle::direct(&plan))?;
            let mut log = control.log(&plan);
            log.catch_up()?;
            let work = Work {
                place,
                log,
                control,
                plan,
                epochs: HashMap::new(),
                name: String::new(),
                files: 0,
                open: HashMap::new(),
                rows: BTreeMap::new(),
                pending: BTreeMap::new(),
            };
            Ok(FileSink {
                work: Some(work),
                working: None,
            })
        })
        .await
    }

    /// Waits until the batch before is written.
    async fn idle(&mut self) -> Result<Work> {
        if let Some(working) = self.working.take() {
            return working
                .await
                .map_err(|e| Error::bug(format!("writing a file died: {e}")))?;
        }
        self.work
            .take()
            .ok_or_else(|| Error::bug("a sink was used after it failed"))
    }

    async fn run<T: Send + 'static>(&mut self, job: impl FnOnce(&mut Work) -> Result<T> + Send + 'static) -> Result<T> {
        let mut work = self.idle().await?;
        let (work, result) = blocking(move || {
            let result = job(&mut work)?;
            Ok((work, result))
        })
        .await?;
        self.work = Some(work);
        Ok(result)
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        let partitions = partitions.to_vec();
        let checkpoint = self.run(move |work| work.recover(&partitions)).await?;
        failpoint("sink.recover.after")?;
        Ok(checkpoint)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        failpoint("sink.write")?;
        let batch = match event {
            Event::Rows(batch) => batch,
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) => return Ok(()),
            Event::Raw { .. } => return Err(Error::bug("files take no undecoded rows")),
            Event::Boundary { .. } => return Err(Error::bug("a boundary came to a sink")),
            Event::Truncate { tables, .. } => return self.run(move |work| work.empty(&tables)).await,
            Event::Schema(_) | Event::Net { .. } | Event::ReplaceRange { .. } => return Err(no_log()),
        };
        if batch.is_empty() {
            return Ok(());
        }
        // Parts of rows and changes of keys are what logs bring.
        if batch.present.is_some() || batch.before.is_some() {
            return Err(no_log());
        }
        let mut work = self.idle().await?;
        self.working = Some(tokio::task::spawn_blocking(move || {
            work.write(&batch)?;
            Ok(work)
        }));
        Ok(())
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        failpoint("sink.commit.before")?;
        let advances = advances.to_vec();
        let applied = self.run(move |work| work.commit(&advances)).await?;
        failpoint("sink.commit.after")?;
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        self.run(|work| {
            let mine = work.epochs.keys();
            Ok(mine.map(|p| (p.clone(), work.log.state(p))).collect())
        })
        .await
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        let partitions = partitions.to_vec();
        self.run(move |work| {
            work.epochs.retain(|p, _| !partitions.contains(p));
            Ok(())
        })
        .await
    }
}

fn all_load(batch: &ChangeBatch) -> bool {
    let loads = |op: Op| matches!(op, Op::Insert | Op::Upsert);
    match &batch.ops {
        Ops::All(op) => loads(*op),
        Ops::Each(ops) => (0..ops.len()).all(|row| loads(batch.ops.get(row))),
    }
}

fn only_loads() -> Error {
    Error::bug("a change came for a table that is loaded and then published")
}

/// A commit writes files anew, which is worth it for a run's changes and not every second.
fn no_log() -> Error {
    Error::new(code::UNSUPPORTED, "files do not follow a log")
        .hint("use strategy delta or hash, or follow the log into PostgreSQL, MySQL, SQLite or DuckDB")
}

/// The paths of files in the order they are joined.
pub(super) fn paths(dir: &Path, files: &[DataFile]) -> Vec<(PathBuf, DataFile)> {
    files.iter().map(|f| (dir.join(&f.name), f.clone())).collect()
}

/// The error for a load that is not complete.
pub(super) fn unfinished(partition: &PartitionId) -> Error {
    fenced(format!(
        "partition {partition} is not finished, so the load cannot be sealed"
    ))
}
