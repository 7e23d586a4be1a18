//! Rows of a delta's window that do not meet the filters, or have no partner in a join: they are deletes.

use super::delta::kept;
use super::hash::{Key, key_of, picked};
use super::steps::{Steps, Stepwise};
use crate::blocks::push_field;
use crate::budget::Hold;
use crate::change::{ChangeBatch, Event, Op, Ops};
use crate::error::{Error, Result};
use crate::plan::{Partition, PlannedTable, ReadColumn, ReadSpec, Slice, Work};
use crate::query::{KeyList, Term};
use crate::schema::ColumnType;
use crate::source::{ReadContext, Reader, Source};
use async_trait::async_trait;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// Opens a slice whose rows that do not meet the filters, or have no partner, are deleted.
pub(crate) async fn open(
    source: Arc<dyn Source>,
    table: &PlannedTable,
    partition: &Partition,
    context: &ReadContext,
) -> Result<Box<dyn Reader>> {
    let looks = Looks {
        source,
        table: table.clone(),
        partition: partition.clone(),
        context: context.clone(),
    };
    let reader = looks.matching(&partition.work).await?;
    Ok(Box::new(Stepwise::new(Unmatched {
        pass: Pass::Matching(reader),
        looks: Arc::new(looks),
        matched: HashSet::new(),
        gone: Vec::new(),
    })))
}

/// Reads the rows that meet the filters and joins, then the keys of all: those that were not among them are deletes. Not
/// every source reads twice from one snapshot, and a window without an end takes in what changes in between: a row is
/// deleted only if it does not meet them either when it is looked up once more. The next run sees what came since.
struct Unmatched {
    looks: Arc<Looks>,
    pass: Pass,
    /// Digests of the keys that matched.
    matched: HashSet<u128>,
    /// The keys that did not.
    gone: Vec<Key>,
}

enum Pass {
    Matching(Box<dyn Reader>),
    Keys(Box<dyn Reader>),
    // No reader is open here: sources have no more connections than partitions at once.
    Deleting,
}

/// Keys that are looked up in one query.
const LOOKED_UP: usize = 1000;

#[async_trait]
impl Steps for Unmatched {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let key = &self.looks.table.schema.key;
        match &mut self.pass {
            Pass::Matching(reader) => match reader.next().await? {
                Some(Event::Rows(batch)) => {
                    for row in 0..batch.len() {
                        self.matched.extend(digest(&key_of(&batch.rows, key, row)?)?);
                    }
                    return Ok(Some(VecDeque::from([Event::Rows(batch)])));
                }
                // A boundary in between would resume after rows whose keys are then not known.
                Some(_) => {}
                None => {
                    // Its connection is the next one's.
                    self.pass = Pass::Deleting;
                    self.pass = Pass::Keys(self.looks.keys().await?);
                }
            },
            Pass::Keys(reader) => match reader.next().await? {
                Some(Event::Rows(batch)) => {
                    for row in 0..batch.len() {
                        let key = key_of(&batch.rows, key, row)?;
                        // What has no whole key was never written.
                        if let Some(digest) = digest(&key)?
                            && self.matched.insert(digest)
                        {
                            self.gone.push(key);
                        }
                    }
                }
                Some(_) => {}
                None => {
                    self.matched = HashSet::new();
                    self.pass = Pass::Deleting;
                }
            },
            Pass::Deleting if self.gone.is_empty() => return Ok(None),
            Pass::Deleting => {
                let rest = self.gone.len().saturating_sub(LOOKED_UP);
                let keys = self.gone.split_off(rest);
                return Ok(Some(self.looks.deletes(keys).await?));
            }
        }
        Ok(Some(VecDeque::new()))
    }
}

/// A slice of a table, looked at in several ways.
struct Looks {
    source: Arc<dyn Source>,
    table: PlannedTable,
    partition: Partition,
    context: ReadContext,
}

impl Looks {
    async fn open(&self, read: &ReadSpec, work: &Work) -> Result<Box<dyn Reader>> {
        let partition = Partition {
            work: work.clone(),
            ..self.partition.clone()
        };
        self.source.open(read, &partition, None, &self.context).await
    }

    /// The rows that meet the filters and joins.
    async fn matching(&self, work: &Work) -> Result<Box<dyn Reader>> {
        self.open(&self.table.read, work).await
    }

    /// All rows, whether they meet them or not.
    fn all(&self) -> ReadSpec {
        ReadSpec {
            filters: Vec::new(),
            joins: kept(&self.table.read.joins),
            ..self.table.read.clone()
        }
    }

    /// The keys of all rows of the slice.
    async fn keys(&self) -> Result<Box<dyn Reader>> {
        let mut read = self.all();
        read.columns.retain(|c| self.table.schema.key.contains(&c.column.name));
        self.open(&read, &self.partition.work).await
    }

    /// Deletes of the rows with these keys, but for those that meet the filters and joins by now.
    async fn deletes(&self, keys: Vec<Key>) -> Result<VecDeque<Event>> {
        let key = &self.table.schema.key;
        let terms = key.iter().map(|name| {
            let column = self.table.read.columns.iter().find(|c| c.column.name == *name);
            column
                .map(ReadColumn::term)
                .ok_or_else(|| Error::bug(format!("key column {name} is not read")))
        });
        let terms = terms.collect::<Result<Vec<Term>>>()?;
        // A database may find keys that it takes for equal, as those of another case.
        let mut gone = HashSet::with_capacity(keys.len());
        for key in &keys {
            gone.extend(digest(key)?);
        }
        let work = Work::Read(Slice::Keys(KeyList { terms, keys }));
        {
            let mut reader = self.matching(&work).await?;
            while let Some(event) = reader.next().await? {
                let Event::Rows(batch) = event else { continue };
                for row in 0..batch.len() {
                    if let Some(back) = digest(&key_of(&batch.rows, key, row)?)? {
                        gone.remove(&back);
                    }
                }
            }
        }
        let mut events = VecDeque::new();
        let mut reader = self.open(&self.all(), &work).await?;
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            let mut places = Vec::new();
            for row in 0..batch.len() {
                if let Some(digest) = digest(&key_of(&batch.rows, key, row)?)?
                    && gone.remove(&digest)
                {
                    places.push(row as u32);
                }
            }
            if places.is_empty() {
                continue;
            }
            events.push_back(Event::Rows(ChangeBatch {
                rows: picked(&batch.rows, places)?,
                ops: Ops::All(Op::Delete),
                // As few as are looked up at once, and all of them are held until the reader is done.
                hold: Hold::default(),
                ..batch
            }));
        }
        Ok(events)
    }
}

/// The digest of a whole key.
fn digest(key: &Key) -> Result<Option<u128>> {
    let mut form = Vec::new();
    for value in key {
        let Some(value) = value else {
            return Ok(None);
        };
        push_field(&mut form, &ColumnType::Text { max: None }, Some(value))?;
    }
    Ok(Some(xxhash_rust::xxh3::xxh3_128(&form)))
}
