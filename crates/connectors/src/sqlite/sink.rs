//! The writer: one connection, one transaction per commit, positions inside it.

use super::apply::Target;
use super::catalog;
use super::client::{Access, Worker, failed};
use super::{SqliteConfig, Synchronous, control};
use async_trait::async_trait;
use rusqlite::Connection;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};
use synctool_core::change::{ChangeBatch, Event, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Publish};
use synctool_core::progress::{Advance, Checkpoint, PartitionId, PartitionState};
use synctool_core::schema::TableId;
use synctool_core::sink::{Sink, shares};

/// How often a commit is pressed onto the disk under `synchronous: normal`.
const FLUSH_EVERY: Duration = Duration::from_secs(5);

/// A sink on a thread of its own.
pub(super) struct SqliteSink {
    worker: Arc<Worker<Writer>>,
    live: Arc<Live>,
    path: String,
}

/// A sink of this process, as others see it. A writer that was forgotten holds the file's only write lock, so whoever
/// takes over its work ends it. A writer in another process can only be waited for.
struct Live {
    file: PathBuf,
    pipeline: String,
    partitions: Mutex<HashSet<PartitionId>>,
    worker: Weak<Worker<Writer>>,
}

static LIVE: Mutex<Vec<Weak<Live>>> = Mutex::new(Vec::new());

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends writers of a pipeline in this process: those of certain partitions, or all of them. They are told that they are
/// fenced when they are used next.
pub(super) fn end_writers(file: &Path, pipeline: &str, partitions: Option<&[PartitionId]>) {
    let file = canonical(file);
    let mut live = locked(&LIVE);
    live.retain(|l| l.strong_count() > 0);
    for other in live.iter().filter_map(Weak::upgrade) {
        let concerned = match partitions {
            None => true,
            Some(partitions) => {
                let theirs = locked(&other.partitions);
                partitions.iter().any(|p| theirs.contains(p))
            }
        };
        if other.file == file
            && other.pipeline == pipeline
            && concerned
            && let Some(worker) = other.worker.upgrade()
        {
            worker.interrupt();
            // Nobody waits for the answer; the lock is waited for.
            let _ = worker.start(|w| {
                w.fenced = true;
                w.roll_back();
                Ok(())
            });
        }
    }
}

fn canonical(file: &Path) -> PathBuf {
    std::fs::canonicalize(file).unwrap_or_else(|_| file.to_path_buf())
}

impl SqliteSink {
    pub(super) async fn open(config: Arc<SqliteConfig>, plan: &Plan) -> Result<Self> {
        let path = config.path.display().to_string();
        let file = config.path.clone();
        let pipeline = plan.pipeline.clone();
        let (plan, synchronous) = (Arc::new(plan.clone()), config.synchronous);
        let worker = Worker::open(config, Access::Write, "sqlite-sink", move |conn| Writer {
            conn,
            targets: Targets {
                plan: plan.clone(),
                known: HashMap::new(),
            },
            plan,
            synchronous,
            held: HashMap::new(),
            durable: Checkpoint::new(),
            flushed_at: Instant::now(),
            pending: BTreeMap::new(),
            fenced: false,
            useless: false,
        })
        .await
        .map_err(|e| e.at("file", &path))?;
        let worker = Arc::new(worker);
        let live = Arc::new(Live {
            file: canonical(&file),
            pipeline,
            partitions: Mutex::default(),
            worker: Arc::downgrade(&worker),
        });
        locked(&LIVE).push(Arc::downgrade(&live));
        Ok(SqliteSink { worker, live, path })
    }

    async fn call<T: Send + 'static>(&self, work: impl FnOnce(&mut Writer) -> Result<T> + Send + 'static) -> Result<T> {
        self.worker
            .call(move |w| {
                if w.fenced {
                    return Err(Error::new(code::FENCED, "a newer writer has taken over this work"));
                }
                if w.useless {
                    return Err(Error::bug("a SQLite sink was used after it had failed"));
                }
                let result = work(w);
                if result.is_err() {
                    w.useless = true;
                    w.roll_back();
                }
                result
            })
            .await
            .map_err(|e| e.at("file", &self.path))
    }
}

#[async_trait]
impl Sink for SqliteSink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        end_writers(&self.live.file, &self.live.pipeline, Some(partitions));
        locked(&self.live.partitions).extend(partitions.iter().cloned());
        let partitions = partitions.to_vec();
        let found = self.call(move |w| w.recover(&partitions)).await?;
        failpoint("sink.recover.after")?;
        Ok(found)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        failpoint("sink.write")?;
        self.call(move |w| w.write(event)).await
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        let advances = advances.to_vec();
        let applied = self.call(move |w| w.commit(&advances)).await?;
        failpoint("sink.commit.after")?;
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        self.call(Writer::durable).await
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        locked(&self.live.partitions).retain(|p| !partitions.contains(p));
        let partitions = partitions.to_vec();
        self.call(move |w| w.release(&partitions)).await
    }
}

struct Writer {
    conn: Connection,
    plan: Arc<Plan>,
    synchronous: Synchronous,
    targets: Targets,
    /// The partitions that are mine: epoch and state of the last commit.
    held: HashMap<PartitionId, (i64, PartitionState)>,
    durable: Checkpoint,
    flushed_at: Instant,
    /// What was done to each table since the last commit.
    pending: BTreeMap<usize, Applied>,
    /// Somebody else does this work now.
    fenced: bool,
    useless: bool,
}

impl Writer {
    fn roll_back(&mut self) {
        if !self.conn.is_autocommit() {
            // If even this fails, closing the connection rolls back.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }

    fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        if !self.conn.is_autocommit() {
            return Err(Error::bug("recover was called in the middle of a transaction"));
        }
        let plan = self.plan.clone();
        let writer = format!("process {}, run {}", std::process::id(), plan.run_id);
        // What is found counts as durable: the source may forget it from here on, so this commit presses it onto the disk.
        self.press("FULL")?;
        let mine = control::transaction(&mut self.conn, |conn| {
            control::check_generation(conn, &plan)?;
            // A finished plan has folded its partitions: all of them are done.
            let finished = control::finished(conn, &plan)?.is_some();
            partitions
                .iter()
                .map(|p| {
                    if finished {
                        let done = PartitionState {
                            done: true,
                            ..PartitionState::default()
                        };
                        return Ok((p.clone(), (0, done)));
                    }
                    Ok((p.clone(), control::take_over(conn, &plan, p, &writer)?))
                })
                .collect::<Result<Vec<_>>>()
        })
        .map_err(|e| {
            // Nobody can end a writer of another process, but it can be named.
            let busy = e.code() == code::SERVER_BUSY;
            match partitions
                .iter()
                .find_map(|p| control::last_writer(&self.conn, &plan, p))
            {
                Some(writer) if busy => e.at("last writer", writer),
                _ => e,
            }
        })?;
        self.press("NORMAL")?;
        self.held.extend(mine.iter().cloned());
        let found: Checkpoint = mine.into_iter().map(|(p, (_, state))| (p, state)).collect();
        self.durable.extend(found.clone());
        Ok(found)
    }

    /// How hard the next commits are pressed onto the disk, where that is not always the same.
    fn press(&self, synchronous: &str) -> Result<()> {
        match self.synchronous {
            Synchronous::Full => Ok(()),
            Synchronous::Normal => (self.conn.pragma_update(None, "synchronous", synchronous))
                .map_err(failed(|| "setting how commits reach the disk".into())),
        }
    }

    fn begin(&mut self) -> Result<()> {
        if self.conn.is_autocommit() {
            control::begin(&self.conn)?;
            // The write lock is ours until the commit: nobody can raise the generation meanwhile.
            control::check_generation(&self.conn, &self.plan)?;
        }
        Ok(())
    }

    fn write(&mut self, event: Event) -> Result<()> {
        match &event {
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) => return Ok(()),
            Event::Boundary { .. } => return Err(Error::bug("a boundary was written to a sink")),
            Event::Raw { .. } => return Err(Error::bug("SQLite takes no rows in wire form")),
            Event::Rows(batch) if batch.is_empty() => return Ok(()),
            _ => self.begin()?,
        }
        let (conn, targets) = (&self.conn, &mut self.targets);
        let table = match &event {
            Event::Rows(batch) => Some(&*batch.table),
            Event::Net { table, .. } | Event::ReplaceRange { table, .. } => Some(&**table),
            _ => None,
        };
        let index = table.and_then(|t| self.plan.tables.iter().position(|p| p.destination == *t));
        let applied = match &event {
            Event::Rows(batch) => {
                let (publish, target) = targets.get(conn, &batch.table)?;
                let applied = match publish {
                    Publish::Direct => target.apply(conn, batch),
                    _ => load(conn, target, batch),
                };
                applied.map_err(|e| e.at("table", batch.table.to_string()))?
            }
            Event::Net { table, remove, insert } => targets
                .direct(conn, table)?
                .net(conn, remove, insert)
                .map_err(|e| e.at("table", table.to_string()))?,
            Event::ReplaceRange { table, range, rows } => targets
                .direct(conn, table)?
                .replace_range(conn, range, rows)
                .map_err(|e| e.at("table", table.to_string()))?,
            Event::Schema(change) => {
                targets.direct(conn, &change.table)?.alter(conn, change)?;
                Applied::default()
            }
            Event::Truncate {
                tables,
                restart_identity,
                ..
            } => {
                for table in tables {
                    targets.direct(conn, table)?.truncate(conn, *restart_identity)?;
                }
                Applied::default()
            }
            Event::Begin(_)
            | Event::Message { .. }
            | Event::Compared(_)
            | Event::Boundary { .. }
            | Event::Raw { .. } => Applied::default(),
        };
        *self.pending.entry(index.unwrap_or(0)).or_default() += applied;
        Ok(())
    }

    fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        self.begin()?;
        let done = std::mem::take(&mut self.pending);
        let shares = shares(&self.plan, advances, &done)?;
        for (step, share) in advances.iter().zip(&shares) {
            let (epoch, _) = self
                .held
                .get(&step.partition)
                .ok_or_else(|| Error::bug(format!("partition {} was not recovered", step.partition)))?;
            control::advance(&self.conn, &self.plan, *epoch, step, *share)?;
        }
        failpoint("sink.commit.before")?;
        self.conn
            .execute_batch("COMMIT")
            .map_err(failed(|| "committing".into()))?;
        for (step, share) in advances.iter().zip(&shares) {
            if let Some((_, state)) = self.held.get_mut(&step.partition) {
                state.position = Some(step.to.clone());
                state.done = step.done;
                state.accounts = step.accounts.clone();
                state.applied += *share;
            }
        }
        let mut applied = Applied::default();
        shares.iter().for_each(|a| applied += *a);
        Ok(applied)
    }

    fn durable(&mut self) -> Result<Checkpoint> {
        let flushed = match self.synchronous {
            Synchronous::Full => true,
            Synchronous::Normal if self.flushed_at.elapsed() < FLUSH_EVERY || !self.conn.is_autocommit() => false,
            Synchronous::Normal => {
                self.flushed_at = Instant::now();
                let (pages, moved): (i64, i64) = self
                    .conn
                    .query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |r| Ok((r.get(1)?, r.get(2)?)))
                    .map_err(failed(|| "flushing the write-ahead log".into()))?;
                // Both are -1 where there is no write-ahead log; then a commit is on the disk already.
                pages == moved
            }
        };
        if flushed {
            self.durable = self.held.iter().map(|(p, (_, s))| (p.clone(), s.clone())).collect();
        }
        Ok(self.durable.clone())
    }

    fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        if !self.conn.is_autocommit() {
            // Rows since the last commit belong to nobody now.
            self.pending.clear();
            self.conn
                .execute_batch("ROLLBACK")
                .map_err(failed(|| "rolling back".into()))?;
        }
        let mine: Vec<(PartitionId, i64)> = partitions
            .iter()
            .filter_map(|p| self.held.remove(p).map(|(epoch, _)| (p.clone(), epoch)))
            .collect();
        let plan = self.plan.clone();
        control::transaction(&mut self.conn, |conn| {
            mine.iter()
                .try_for_each(|(p, epoch)| control::release(conn, &plan, p, *epoch))
        })
    }
}

/// Where rows for each destination table go.
struct Targets {
    plan: Arc<Plan>,
    known: HashMap<TableId, Target>,
}

impl Targets {
    /// The load table, or in a direct plan the table itself.
    fn get(&mut self, conn: &Connection, table: &TableId) -> Result<(&Publish, &mut Target)> {
        let index = self
            .plan
            .tables
            .iter()
            .position(|t| t.destination == *table)
            .ok_or_else(|| Error::bug(format!("rows came for {table}, which is not in the plan")))?;
        let planned = &self.plan.tables[index];
        let target = match self.known.entry(table.clone()) {
            Entry::Occupied(e) => e.into_mut(),
            Entry::Vacant(e) => {
                let stored = match planned.publish {
                    Publish::Direct => planned.destination.clone(),
                    _ => TableId::bare(self.plan.load_name(index)),
                };
                let found = catalog::find(conn, catalog::table_name(&stored)?)?;
                let found = found.ok_or_else(|| Error::gone_at_destination(&stored))?;
                e.insert(Target::new(&found, &planned.schema)?)
            }
        };
        Ok((&planned.publish, target))
    }

    /// A table that changes are applied to.
    fn direct(&mut self, conn: &Connection, table: &TableId) -> Result<&mut Target> {
        match self.get(conn, table)? {
            (Publish::Direct, target) => Ok(target),
            _ => Err(loads_only()),
        }
    }
}

fn loads_only() -> Error {
    Error::bug("a change came for a table that is loaded and then published")
}

/// Puts a batch of new rows into a load table.
fn load(conn: &Connection, target: &Target, batch: &ChangeBatch) -> Result<Applied> {
    if !matches!(batch.ops, Ops::All(Op::Insert | Op::Upsert)) || batch.present.is_some() {
        return Err(loads_only());
    }
    let inputs = target.inputs(&batch.rows)?;
    let inputs: Vec<_> = inputs
        .into_iter()
        .collect::<Option<_>>()
        .ok_or_else(|| Error::new(code::COLUMN_MISSING, "a batch lacks a column that the plan writes"))?;
    let writing = || "writing into the load table".to_string();
    let mut insert = conn.prepare_cached(target.insert_sql()).map_err(failed(writing))?;
    for row in 0..batch.len() {
        for (i, input) in inputs.iter().enumerate() {
            insert
                .raw_bind_parameter(i + 1, input.cell(row)?)
                .map_err(failed(writing))?;
        }
        insert.raw_execute().map_err(|e| failed(writing)(e).hint_of_doubles())?;
    }
    Ok(Applied::inserts(batch.len() as u64))
}
