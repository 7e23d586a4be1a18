//! Plans and progress, as files beside the data: `_synctool/<pipeline>/`.
//!
//! - `generation-<n>.json` holds the plan of generation n. Creating it is what raises the generation; the highest
//!   number counts.
//! - `load-<n>/log/<i>.json` is the log of that generation: who took over a partition, what was committed. Record i is
//!   created by exactly one writer, after it has seen all records before; so a commit is refused or it is the only one,
//!   and no clock or lock is needed. Older loads lose their folder when a newer generation begins, so a zombie cannot
//!   append.
//! - `load-<n>/part/` holds what was written; only files that the log names count. `load-<n>/sealed.json` says what
//!   will be published. In a plan that changes tables directly, a record of the log is also what decides whether a
//!   change of a table's files takes place (`settle.rs`).
//! - `done-<n>.json` says what publishing did, and what is remembered from then on.
//! - `memory-<i>.json` holds everything remembered; number i is created by exactly one writer, from number i-1 and the
//!   plans finished since.

use super::store::{self, Put};
use super::table::{CONTROL, DataFile, Shape};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::Plan;
use synctool_core::progress::{Checkpoint, Epoch, Generation, PartitionId, PartitionState, Position};

/// How many finished runs are remembered.
const HISTORY: usize = 50;

/// The control files of one pipeline.
#[derive(Debug, Clone)]
pub(super) struct Control {
    pub(super) pipeline: String,
    dir: PathBuf,
}

/// What stands in `generation-<n>.json`. No plan: the pipeline was told to forget, but its number stays.
#[derive(Debug, Serialize, Deserialize)]
struct Raised {
    pipeline: String,
    plan: Option<Plan>,
}

/// What stands in `done-<n>.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Done {
    pub(super) pipeline: String,
    pub(super) run_id: String,
    pub(super) applied: Applied,
    pub(super) finished_at: String,
    /// What the plan wanted remembered.
    #[serde(default)]
    remember: BTreeMap<String, String>,
}

/// What stands in `memory-<i>.json`: everything that is remembered, with the facts of finished plans up to a generation.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Memory {
    facts: BTreeMap<String, String>,
    through: i64,
}

/// What stands in `sealed.json`: per table of the plan, the files to publish.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Sealed {
    pub(super) tables: Vec<SealedTable>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SealedTable {
    pub(super) shape: Shape,
    pub(super) files: Vec<DataFile>,
}

impl SealedTable {
    pub(super) fn rows(&self) -> u64 {
        self.files.iter().filter_map(|f| f.rows).sum()
    }
}

impl Control {
    pub(super) fn new(datastore: &Path, pipeline: &str) -> Self {
        let hash = format!("{:016x}", xxhash_rust::xxh3::xxh3_64(pipeline.as_bytes()));
        Control {
            pipeline: pipeline.to_string(),
            dir: datastore.join(CONTROL).join(hash),
        }
    }

    fn numbers(&self, prefix: &str) -> Result<Vec<i64>> {
        let number = |name: String| name.strip_prefix(prefix)?.strip_suffix(".json")?.parse().ok();
        Ok(store::list(&self.dir)?.into_iter().filter_map(number).collect())
    }

    fn file(&self, prefix: &str, number: i64) -> PathBuf {
        self.dir.join(format!("{prefix}{number:08}.json"))
    }

    /// The newest generation; 0 before the first.
    pub(super) fn generation(&self) -> Result<i64> {
        Ok(self.numbers("generation-")?.into_iter().max().unwrap_or(0))
    }

    /// The newest plan.
    pub(super) fn plan(&self) -> Result<Option<Plan>> {
        let newest = self.generation()?;
        let raised: Option<Raised> = store::read_json(&self.file("generation-", newest)).map_err(|e| self.unread(e))?;
        match raised {
            Some(r) if r.pipeline != self.pipeline => Err(Error::bug(format!(
                "pipelines {} and {} have the same control folder; rename one",
                r.pipeline, self.pipeline
            ))),
            Some(r) => Ok(r.plan),
            None => Ok(None),
        }
    }

    /// What is wrong with a plan that is no plan to us.
    fn unread(&self, e: Error) -> Error {
        match e.code() == code::FILE_MALFORMED {
            true => Error::unreadable_plan(&self.pipeline).caused_by(e),
            false => e,
        }
    }

    /// Raises the generation, with a plan or without; the older ones end here.
    pub(super) fn raise(&self, plan: Option<Plan>) -> Result<Option<Plan>> {
        store::create_dir(&self.dir)?;
        store::sweep(&self.dir)?;
        loop {
            let number = self.generation()? + 1;
            if plan.is_some() {
                let load = self.load_dir(number);
                store::create_dir(&load.join("part"))?;
                store::create_dir(&load.join("log"))?;
            }
            let plan = plan.clone().map(|p| Plan {
                generation: Generation(number),
                ..p
            });
            let raised = Raised {
                pipeline: self.pipeline.clone(),
                plan,
            };
            if store::put_if_absent(&self.file("generation-", number), &store::json(&raised))? != Put::Done {
                continue;
            }
            for name in store::list(&self.dir)? {
                let older = name.strip_prefix("load-").and_then(|n| n.parse::<i64>().ok());
                if older.is_some_and(|n| n < number) {
                    store::discard_dir(&self.dir.join(name))?;
                }
            }
            for older in self.numbers("generation-")?.into_iter().filter(|n| *n < number) {
                store::remove(&self.file("generation-", older))?;
            }
            return Ok(raised.plan);
        }
    }

    /// Fails unless the plan's generation is the newest.
    pub(super) fn check_generation(&self, plan: &Plan) -> Result<()> {
        let newest = self.generation()?;
        if newest == plan.generation.0 {
            return Ok(());
        }
        Err(fenced(format!(
            "generation {} of pipeline {} was replaced by {newest}",
            plan.generation, self.pipeline
        )))
    }

    pub(super) fn load_dir(&self, generation: i64) -> PathBuf {
        self.dir.join(format!("load-{generation:08}"))
    }

    pub(super) fn part_dir(&self, plan: &Plan) -> PathBuf {
        self.load_dir(plan.generation.0).join("part")
    }

    pub(super) fn log(&self, plan: &Plan) -> Log {
        self.log_of(plan.generation.0)
    }

    pub(super) fn log_of(&self, generation: i64) -> Log {
        Log {
            dir: self.load_dir(generation).join("log"),
            next: 1,
            states: HashMap::new(),
            parts: Vec::new(),
        }
    }

    pub(super) fn sealed(&self, plan: &Plan) -> Result<Option<Sealed>> {
        store::read_json(&self.load_dir(plan.generation.0).join("sealed.json"))
    }

    pub(super) fn seal(&self, plan: &Plan, sealed: &Sealed) -> Result<()> {
        let path = self.load_dir(plan.generation.0).join("sealed.json");
        match store::put_if_absent(&path, &store::json(sealed))? {
            Put::Done | Put::Taken => Ok(()),
            Put::NoFolder => Err(gone(plan)),
        }
    }

    pub(super) fn done(&self, generation: i64) -> Result<Option<Done>> {
        store::read_json(&self.file("done-", generation))
    }

    /// Marks a plan as finished; its load is folded away.
    pub(super) fn finish(&self, plan: &Plan, applied: Applied) -> Result<()> {
        let done = Done {
            pipeline: self.pipeline.clone(),
            run_id: plan.run_id.clone(),
            applied,
            finished_at: chrono::Utc::now().to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
            remember: plan.remember.clone(),
        };
        if store::put_if_absent(&self.file("done-", plan.generation.0), &store::json(&done))? == Put::NoFolder {
            return Err(gone(plan));
        }
        self.fold(plan.generation.0)
    }

    /// Removes what a finished plan no longer needs.
    pub(super) fn fold(&self, generation: i64) -> Result<()> {
        // Before its record may go, what it remembers is taken over.
        self.note(|_| {})?;
        store::discard_dir(&self.load_dir(generation))?;
        let mut done = self.numbers("done-")?;
        done.sort_unstable();
        for old in done.iter().rev().skip(HISTORY) {
            store::remove(&self.file("done-", *old))?;
        }
        Ok(())
    }

    /// The newest memory with its number, and whether plans were finished since it was written.
    fn memory(&self) -> Result<(i64, Memory, bool)> {
        let number = self.numbers("memory-")?.into_iter().max().unwrap_or(0);
        let mut memory: Memory = store::read_json(&self.file("memory-", number))?.unwrap_or_default();
        let mut since = self.numbers("done-")?;
        since.retain(|n| *n > memory.through);
        since.sort_unstable();
        for generation in &since {
            if let Some(done) = self.done(*generation)? {
                memory.facts.extend(done.remember);
                memory.through = *generation;
            }
        }
        Ok((number, memory, !since.is_empty()))
    }

    /// What is remembered.
    pub(super) fn remembered(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.memory()?.1.facts)
    }

    /// Adds to what is remembered.
    pub(super) fn remember(&self, facts: &BTreeMap<String, String>) -> Result<()> {
        store::create_dir(&self.dir)?;
        self.note(|memory| memory.facts.extend(facts.clone()))
    }

    /// Forgets what is remembered.
    pub(super) fn forget_facts(&self) -> Result<()> {
        match store::exists(&self.dir) {
            true => self.note(|memory| memory.facts.clear()),
            false => Ok(()),
        }
    }

    /// Writes the next memory, unless nothing is new.
    fn note(&self, change: impl Fn(&mut Memory)) -> Result<()> {
        loop {
            let (number, old, since) = self.memory()?;
            let mut new = old.clone();
            change(&mut new);
            if new.facts == old.facts && !since {
                return Ok(());
            }
            match store::put_if_absent(&self.file("memory-", number + 1), &store::json(&new))? {
                Put::Done => {
                    for older in self.numbers("memory-")?.into_iter().filter(|n| *n <= number) {
                        store::remove(&self.file("memory-", older))?;
                    }
                    return Ok(());
                }
                Put::Taken => {}
                Put::NoFolder => return Err(Error::bug("the control folder is gone")),
            }
        }
    }

    /// Whether this load lost its folder, to a newer generation or because it was published.
    pub(super) fn is_gone(&self, plan: &Plan) -> bool {
        !store::exists(&self.load_dir(plan.generation.0))
    }
}

/// What one writer appends.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A writer took over partitions.
    Recovered {
        partitions: Vec<PartitionId>,
        writer: String,
    },
    /// Partitions moved on, and these files hold the rows. Tables that the commit changes in place wait for this record
    /// by its id ([`super::settle`]).
    Committed {
        steps: Vec<Step>,
        parts: Vec<Part>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
}

/// One partition's step in a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Step {
    pub(super) partition: PartitionId,
    pub(super) epoch: Epoch,
    pub(super) from: Option<Position>,
    pub(super) to: Position,
    pub(super) done: bool,
    pub(super) accounts: Accounts,
    /// The rows of this commit that are accounted to this partition.
    pub(super) applied: Applied,
}

/// A part file of a commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Part {
    /// Which of the plan's tables.
    pub(super) table: usize,
    /// The partition that its rows came from (the first, if several were committed together).
    #[serde(default)]
    pub(super) partition: Option<PartitionId>,
    pub(super) file: DataFile,
}

/// The log of a load, read as far as it is known.
#[derive(Debug)]
pub(super) struct Log {
    dir: PathBuf,
    next: u64,
    states: HashMap<PartitionId, (Epoch, PartitionState)>,
    /// Every committed part, in the order of the commits.
    pub(super) parts: Vec<Part>,
}

impl Log {
    fn record(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{number:08}.json"))
    }

    /// Reads what others have appended.
    pub(super) fn catch_up(&mut self) -> Result<()> {
        while let Some(record) = store::read_json::<Record>(&self.record(self.next))? {
            match record {
                Record::Recovered { partitions, .. } => {
                    for partition in partitions {
                        self.states.entry(partition).or_default().0.0 += 1;
                    }
                }
                Record::Committed { steps, parts, .. } => {
                    for step in steps {
                        let (_, state) = self.states.entry(step.partition).or_default();
                        state.position = Some(step.to);
                        state.done = step.done;
                        state.accounts = step.accounts;
                        state.applied += step.applied;
                    }
                    self.parts.extend(parts);
                }
            }
            self.next += 1;
        }
        Ok(())
    }

    /// Appends a record that `check` allows after everything before it; tries again when somebody else was first.
    fn append(&mut self, record: &Record, mut check: impl FnMut(&Self) -> Result<()>) -> Result<()> {
        let bytes = store::json(record);
        loop {
            self.catch_up()?;
            check(self)?;
            match store::put_if_absent(&self.record(self.next), &bytes)? {
                Put::Done => return self.catch_up(),
                Put::Taken => {}
                Put::NoFolder => {
                    return Err(fenced(
                        "the load has ended: a newer run took over, or it was published".into(),
                    ));
                }
            }
        }
    }

    /// Takes the next epoch of partitions.
    pub(super) fn recover(&mut self, partitions: &[PartitionId]) -> Result<HashMap<PartitionId, Epoch>> {
        let writer = format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let record = Record::Recovered {
            partitions: partitions.to_vec(),
            writer,
        };
        let mut epochs = HashMap::new();
        self.append(&record, |log| {
            for p in partitions {
                epochs.insert(p.clone(), Epoch(log.epoch(p).0 + 1));
            }
            Ok(())
        })?;
        Ok(epochs)
    }

    /// Commits, unless a partition has another writer or stands elsewhere.
    pub(super) fn commit(&mut self, steps: Vec<Step>, parts: Vec<Part>, id: Option<String>) -> Result<()> {
        let record = Record::Committed {
            steps: steps.clone(),
            parts,
            id,
        };
        self.append(&record, |log| {
            steps
                .iter()
                .try_for_each(|s| log.allows(&s.partition, s.epoch, s.from.as_ref()))
        })
    }

    /// Fails if a partition has another writer or stands elsewhere, as far as the log is read.
    pub(super) fn allows(&self, partition: &PartitionId, mine: Epoch, from: Option<&Position>) -> Result<()> {
        let at = |e: Error| Err(e.at("partition", partition.as_str()));
        let (epoch, state) = self.states.get(partition).cloned().unwrap_or_default();
        if epoch != mine {
            return at(fenced("another writer has taken over this partition".into()));
        }
        if state.position.as_ref() != from {
            return at(fenced("the partition does not stand where this commit begins".into()));
        }
        Ok(())
    }

    /// The number of the next record, as far as the log is read.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether a commit of this id stands in the log from a record on.
    pub(super) fn holds(&self, id: &str, from: u64) -> Result<bool> {
        let mut number = from;
        while let Some(record) = store::read_json::<Record>(&self.record(number))? {
            if matches!(&record, Record::Committed { id: Some(found), .. } if found == id) {
                return Ok(true);
            }
            number += 1;
        }
        Ok(false)
    }

    pub(super) fn epoch(&self, partition: &PartitionId) -> Epoch {
        self.states.get(partition).map(|s| s.0).unwrap_or_default()
    }

    pub(super) fn state(&self, partition: &PartitionId) -> PartitionState {
        self.states.get(partition).map(|s| s.1.clone()).unwrap_or_default()
    }

    /// Where everything stands.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        self.states.iter().map(|(p, (_, s))| (p.clone(), s.clone())).collect()
    }
}

pub(super) fn fenced(why: String) -> Error {
    Error::new(code::FENCED, why).hint("nothing was written; look at the newer run with `synctool state show`")
}

pub(super) fn gone(plan: &Plan) -> Error {
    fenced(format!(
        "the load of generation {} is gone: a newer run took over, or it was published",
        plan.generation
    ))
}
