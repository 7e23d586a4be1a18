//! Writing part files. Encoding and file work run on blocking threads; while one batch is encoded, the next is
//! already on its way here.

use super::control::{Control, Log, Part, Step, fenced, gone};
use super::csv::CsvPart;
use super::parquet::ParquetPart;
use super::table::DataFile;
use super::{Format, blocking, store};
use arrow_array::{Array, RecordBatch};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use synctool_core::change::{ChangeBatch, Event, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::Plan;
use synctool_core::progress::{Advance, Checkpoint, Epoch, PartitionId};
use synctool_core::schema::TableSchema;
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
    control: Control,
    plan: Plan,
    format: Format,
    log: Log,
    epochs: HashMap<PartitionId, Epoch>,
    /// Begins the names of this sink's files: nobody else has this partition in this epoch.
    name: String,
    files: u64,
    /// Per table: the file being written.
    open: HashMap<usize, (String, Box<dyn PartWriter>)>,
    /// Rows written since the last commit, per table.
    rows: BTreeMap<usize, u64>,
}

impl Work {
    fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        self.control.check_generation(&self.plan)?;
        self.open.clear();
        self.rows.clear();
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
        let index = self
            .plan
            .tables
            .iter()
            .position(|t| t.destination == *batch.table)
            .ok_or_else(|| at(Error::bug("rows for a table that is not in the plan")))?;
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
            if !column.nullable && array.null_count() > 0 {
                return Err(at(Error::new(
                    code::CONSTRAINT,
                    format!("column {} is NOT NULL and a row has NULL there", column.name),
                )
                .hint("allow NULL in the pipeline's column, or filter such rows")));
            }
        }
        if !self.open.contains_key(&index) {
            self.files += 1;
            let name = format!("{}-{}-{index}.{}", self.name, self.files, extension(&self.format));
            let path = self.control.part_dir(&self.plan).join(&name);
            let part = create_part(&path, schema, &self.format, Some(&batch.rows)).map_err(|e| self.maybe_gone(e))?;
            self.open.insert(index, (name, part));
        }
        let (_, part) = self.open.get_mut(&index).expect("set above");
        part.write(&batch.rows).map_err(at)?;
        *self.rows.entry(index).or_default() += batch.len() as u64;
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
        let mut steps = Vec::new();
        let done = self
            .rows
            .iter()
            .map(|(t, rows)| (*t, Applied::inserts(*rows)))
            .collect();
        for (a, applied) in advances.iter().zip(shares(&self.plan, advances, &done)?) {
            let epoch = *self
                .epochs
                .get(&a.partition)
                .ok_or_else(|| Error::bug(format!("partition {} was not recovered by this sink", a.partition)))?;
            steps.push(Step {
                partition: a.partition.clone(),
                epoch,
                from: a.from.clone(),
                to: a.to.clone(),
                done: a.done,
                accounts: a.accounts.clone(),
                applied,
            });
        }
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
        self.control.check_generation(&self.plan)?;
        self.log.commit(steps, parts)?;
        self.rows.clear();
        Ok(Applied::inserts(written))
    }
}

/// The sink. It is useless after any failed call: its work is gone then.
pub(super) struct FileSink {
    work: Option<Work>,
    working: Option<JoinHandle<Result<Work>>>,
}

impl FileSink {
    pub(super) async fn open(control: Control, plan: Plan, format: Format) -> Result<Self> {
        blocking(move || {
            control.check_generation(&plan)?;
            if control.done(plan.generation.0)?.is_some() || control.is_gone(&plan) {
                return Err(gone(&plan));
            }
            let mut log = control.log(&plan);
            log.catch_up()?;
            let work = Work {
                log,
                control,
                plan,
                format,
                epochs: HashMap::new(),
                name: String::new(),
                files: 0,
                open: HashMap::new(),
                rows: BTreeMap::new(),
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
            Event::Schema(_) | Event::Truncate { .. } | Event::Net { .. } | Event::ReplaceRange { .. } => {
                return Err(only_loads());
            }
        };
        if batch.is_empty() {
            return Ok(());
        }
        let loads = |op: Op| matches!(op, Op::Insert | Op::Upsert);
        let all_load = match &batch.ops {
            Ops::All(op) => loads(*op),
            Ops::Each(ops) => (0..ops.len()).all(|row| loads(batch.ops.get(row))),
        };
        if !all_load || batch.present.is_some() {
            return Err(only_loads());
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

pub(super) fn only_loads() -> Error {
    Error::new(code::UNSUPPORTED, "files cannot be changed row by row, only loaded")
        .hint("use strategy full with full_mode: swap or append")
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
