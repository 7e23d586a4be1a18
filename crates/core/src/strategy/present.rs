//! Which keys a table of the destination has: for runs that only add rows, and for the guard of groups that go.

use super::hash::{Key, key_of, picked};
use crate::blocks::form_of;
use crate::change::{ChangeBatch, Event, Op, Ops};
use crate::error::{Error, Result, code};
use crate::ledger::StageAccount;
use crate::plan::{Partition, ReadSpec, Slice, Work};
use crate::query::{KeyList, Term};
use crate::schema::{Column, TableId};
use crate::source::{ReadContext, Reader, Source};
use crate::stage::{Stage, Staged};
use async_trait::async_trait;
use std::collections::HashSet;
use std::sync::Arc;

/// Keys asked for in one query.
const KEYS: usize = 1000;

/// A table of the destination, by columns that make a key.
pub(crate) struct Present {
    destination: Arc<dyn Source>,
    table: TableId,
    columns: Vec<Column>,
    context: ReadContext,
}

impl Present {
    /// Looks at the table; its columns are compared as the types it has.
    pub(crate) async fn of(
        destination: Arc<dyn Source>,
        table: &TableId,
        names: &[String],
        context: &ReadContext,
    ) -> Result<Present> {
        let stored = destination.describe(table).await?;
        let columns = names
            .iter()
            .map(|name| {
                stored.column(name).cloned().ok_or_else(|| {
                    Error::new(
                        code::COLUMN_MISSING,
                        format!("{table} has no column {name}, by which its rows are told apart"),
                    )
                    .hint("add the column at the destination, or name as `key` columns that it has")
                })
            })
            .collect::<Result<_>>()?;
        Ok(Present {
            destination,
            table: table.clone(),
            columns,
            context: context.clone(),
        })
    }

    /// The columns, as they are stored.
    pub(crate) fn columns(&self) -> &[Column] {
        &self.columns
    }

    /// One form for a key, whichever end it comes from.
    pub(crate) fn form(&self, key: &Key) -> Result<Vec<u8>> {
        let types = self.columns.iter().map(|c| &c.ty);
        form_of(types.zip(key.iter().map(Option::as_deref)))
    }

    /// The forms of those keys that are there.
    pub(crate) async fn find(&self, keys: &[Key]) -> Result<HashSet<Vec<u8>>> {
        let mut found = HashSet::new();
        for keys in keys.chunks(KEYS) {
            let slice = Slice::Keys(KeyList {
                terms: self.columns.iter().map(|c| Term::column(&c.name)).collect(),
                keys: keys.to_vec(),
            });
            let mut reader = self.open(slice).await?;
            while let Some(event) = reader.next().await? {
                let Event::Rows(batch) = event else { continue };
                for row in 0..batch.len() {
                    found.insert(self.form(&key_of(&batch.rows, names(&self.columns), row)?)?);
                }
            }
        }
        Ok(found)
    }

    /// How many rows there are; not counted beyond `enough`.
    pub(crate) async fn count(&self, enough: u64) -> Result<u64> {
        let mut reader = self.open(Slice::All).await?;
        let mut rows = 0;
        while let Some(event) = reader.next().await? {
            rows += event.rows();
            if rows >= enough {
                break;
            }
        }
        Ok(rows)
    }

    async fn open(&self, slice: Slice) -> Result<Box<dyn Reader>> {
        let partition = Partition::new("present", Work::Read(slice));
        let read = ReadSpec::all(self.table.clone(), &self.columns);
        self.destination.open(&read, &partition, None, &self.context).await
    }
}

fn names(columns: &[Column]) -> impl Iterator<Item = &String> {
    columns.iter().map(|c| &c.name)
}

/// The last stage of a run that only adds rows: those whose keys are there already go no further.
pub(crate) struct OnlyNew(pub(crate) Present);

#[async_trait]
impl Stage for OnlyNew {
    fn name(&self) -> &str {
        "only_new"
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let keys = (0..batch.len())
            .map(|row| key_of(&batch.rows, names(&self.0.columns), row))
            .collect::<Result<Vec<Key>>>()?;
        let mut seen = self.0.find(&keys).await?;
        let mut new = Vec::new();
        for (row, key) in keys.iter().enumerate() {
            // Of two rows with a new key the first is the new one.
            if batch.ops.get(row) != Op::Delete && seen.insert(self.0.form(key)?) {
                new.push(row as u32);
            }
        }
        put(batch, new)
    }
}

/// The last stage of a run that deletes nothing: rows that left, also by a stage, go no further.
pub(crate) struct Kept;

#[async_trait]
impl Stage for Kept {
    fn name(&self) -> &str {
        "kept"
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let stays = |row: &u32| batch.ops.get(*row as usize) != Op::Delete;
        let staying = (0..batch.len() as u32).filter(stays).collect();
        put(batch, staying)
    }
}

/// Some rows of a batch of a delta, none of them a delete: they are put, and the others are filtered.
fn put(batch: ChangeBatch, places: Vec<u32>) -> Result<Staged> {
    let account = StageAccount {
        rows_in: batch.len() as u64,
        rows_out: places.len() as u64,
        filtered: (batch.len() - places.len()) as u64,
        ..StageAccount::default()
    };
    let batches = match places.len() {
        0 => Vec::new(),
        n if n == batch.len() => vec![batch],
        _ => vec![ChangeBatch {
            rows: picked(&batch.rows, places)?,
            ops: Ops::All(Op::Upsert),
            ..batch
        }],
    };
    Ok(Staged {
        batches,
        account,
        rejects: Vec::new(),
    })
}
