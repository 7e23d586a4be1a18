//! One partition's way from reader to sink: read, transform and write run beside each other, joined by bounded
//! channels, and everything is pulled by the writer.

use crate::change::{ChangeBatch, Event};
use crate::conform::{as_changes, conform, is_needed};
use crate::error::{Error, Result, code};
use crate::ledger::{Accounts, StageAccount, Tally};
use crate::plan::{PlannedTable, Verify};
use crate::progress::{PartitionId, Position};
use crate::rowhash::RowHasher;
use crate::schema::Column;
use crate::sink::{Destination, Fidelity};
use crate::source::{Reader, Source};
use crate::stage::{Reject, Stage, Staged};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Events in flight between two steps. Their memory is bounded by the byte budget, not by this.
const IN_FLIGHT: usize = 4;

/// How long the reader may take with what it was told last.
const LAST_WORD: Duration = Duration::from_secs(5);

/// An event on its way to the sink, with the accounts of everything up to it since the item before.
pub(super) struct Item {
    pub(super) event: Option<Event>,
    pub(super) accounts: Accounts,
    pub(super) rejects: Vec<Reject>,
}

/// Counts the rows that stages reject in a run, against its limit. A partition that begins again counts from its last
/// commit.
pub(super) struct Rejections {
    limit: u64,
    counts: Mutex<HashMap<PartitionId, u64>>,
}

impl Rejections {
    pub(super) fn new(limit: u64) -> Self {
        Rejections {
            limit,
            counts: Mutex::default(),
        }
    }

    /// A partition begins where these accounts end.
    pub(super) fn begin(&self, partition: &PartitionId, accounts: &Accounts) {
        let rejected = accounts.stages.iter().map(|(_, s)| s.rejected).sum();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.insert(partition.clone(), rejected);
    }

    /// Counts rows; an error names the first of them if they are too many.
    fn add(&self, partition: &PartitionId, rejects: &[Reject]) -> Result<()> {
        let Some(first) = rejects.first() else {
            return Ok(());
        };
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry(partition.clone()).or_default() += rejects.len() as u64;
        let total: u64 = counts.values().sum();
        if total <= self.limit {
            return Ok(());
        }
        let column = first
            .column
            .as_ref()
            .map_or_else(String::new, |c| format!(", column {c}"));
        let key: Vec<&str> = first.key.iter().map(|(name, _)| name.as_str()).collect();
        Err(Error::new(
            code::ROW_REJECTED,
            format!(
                "stage {} rejected a row of {} ({}{column}); {total} rejected, {} allowed",
                first.stage, first.table, first.reason, self.limit
            ),
        )
        .at("partition", partition.as_str())
        .at("key", key.join(", "))
        .hint("correct the row or the stage, or allow rejected rows by a higher `reject_limit`"))
    }
}

/// What the rows of a reader are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rows {
    /// As a source has them.
    Read,
    /// As a log has them: tables change their shape on the way, and reader and sink follow that themselves.
    OfALog,
    /// As they are written.
    Staged,
}

/// A running flow. Dropping it stops both tasks.
pub(super) struct Flow {
    items: mpsc::Receiver<Result<Item>>,
    durable: watch::Sender<Option<Position>>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Flow {
    pub(super) fn start(
        (source, destination): (Arc<dyn Source>, Arc<dyn Destination>),
        reader: Box<dyn Reader>,
        stages: Vec<Box<dyn Stage>>,
        tables: Vec<PlannedTable>,
        verify: Verify,
        rows: Rows,
        rejections: (Arc<Rejections>, PartitionId),
    ) -> Flow {
        let (to_stages, from_reader) = mpsc::channel(IN_FLIGHT);
        let (to_sink, items) = mpsc::channel(IN_FLIGHT);
        let (durable, acknowledged) = watch::channel(None);
        let read = tokio::spawn(read(reader, to_stages, acknowledged));
        let conforming = tables
            .iter()
            .map(|t| rows == Rows::Read && is_needed(t, !stages.is_empty()))
            .collect();
        let transform = Transform {
            source,
            destination,
            stages,
            hasher: RowHasher::new(),
            rows,
            conforming,
            tables,
            verify,
            rejections,
        };
        let stages = tokio::spawn(transform.run(from_reader, to_sink));
        Flow {
            items,
            durable,
            tasks: [read, stages],
        }
    }

    /// The next item; `event: None` at the end. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Item> {
        self.items
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::bug("a step of the flow ended without a word")))
    }

    /// Tells the reader what the sink holds durably.
    pub(super) fn acknowledge(&self, position: Position) {
        let _ = self.durable.send(Some(position));
    }

    /// Ends it once the reader has done what it was told.
    pub(super) async fn end(mut self) {
        self.items.close();
        // Nothing more is told.
        self.durable = watch::channel(None).0;
        let _ = tokio::time::timeout(LAST_WORD, &mut self.tasks[0]).await;
    }
}

async fn read(
    mut reader: Box<dyn Reader>,
    out: mpsc::Sender<Result<Option<Event>>>,
    mut acknowledged: watch::Receiver<Option<Position>>,
) {
    loop {
        let next = tokio::select! {
            biased;
            changed = acknowledged.changed() => {
                if changed.is_err() {
                    return;
                }
                let position = acknowledged.borrow_and_update().clone();
                match position {
                    Some(p) => match reader.acknowledge(&p).await {
                        Ok(()) => continue,
                        Err(e) => Err(e),
                    },
                    None => continue,
                }
            }
            next = reader.next() => next,
        };
        let (last, failed) = (!matches!(next, Ok(Some(_))), next.is_err());
        if out.send(next).await.is_err() || last {
            if failed {
                return;
            }
            break;
        }
    }
    // The last commit is still to be acknowledged.
    while acknowledged.changed().await.is_ok() {
        let position = acknowledged.borrow_and_update().clone();
        if let Some(p) = position
            && reader.acknowledge(&p).await.is_err()
        {
            return;
        }
    }
}

struct Transform {
    source: Arc<dyn Source>,
    destination: Arc<dyn Destination>,
    stages: Vec<Box<dyn Stage>>,
    hasher: RowHasher,
    tables: Vec<PlannedTable>,
    rows: Rows,
    /// Which tables' rows are not yet as they are written when they come out of the stages.
    conforming: Vec<bool>,
    verify: Verify,
    rejections: (Arc<Rejections>, PartitionId),
}

impl Transform {
    async fn run(mut self, mut from: mpsc::Receiver<Result<Option<Event>>>, to: mpsc::Sender<Result<Item>>) {
        while let Some(next) = from.recv().await {
            let items = match next {
                Ok(None) => self.flush(true).await.map(|mut items| {
                    items.push(Item {
                        event: None,
                        accounts: Accounts::default(),
                        rejects: Vec::new(),
                    });
                    items
                }),
                Ok(Some(event @ Event::Rows(_))) => self.event(event).await,
                Ok(Some(event)) => match self.flush(false).await {
                    Ok(mut items) => self.event(event).await.map(|event| {
                        items.extend(event);
                        items
                    }),
                    Err(e) => Err(e),
                },
                Err(e) => Err(e),
            };
            match items {
                Ok(items) => {
                    for item in items {
                        // Whoever keeps rejected rows hears of them even if they are too many.
                        let allowed = self.rejections.0.add(&self.rejections.1, &item.rejects);
                        if to.send(Ok(item)).await.is_err() {
                            return;
                        }
                        if let Err(e) = allowed {
                            let _ = to.send(Err(e)).await;
                            return;
                        }
                    }
                }
                Err(e) => {
                    let _ = to.send(Err(e)).await;
                    return;
                }
            }
        }
    }

    /// What stages held back, to the end of the chain; all of it where nothing more comes.
    async fn flush(&mut self, last: bool) -> Result<Vec<Item>> {
        let (mut accounts, mut rejects, mut batches) = (Accounts::default(), Vec::new(), Vec::new());
        for at in 0..self.stages.len() {
            let held = match last {
                true => self.stages[at].finish().await?,
                false => self.stages[at].flush().await?,
            };
            let held = take(self.stages[at].name(), held, &mut accounts, &mut rejects);
            batches.extend(self.through(at + 1, held, &mut accounts, &mut rejects).await?);
        }
        // A later stage may have dropped all of it: that is booked, too.
        let nothing = accounts.stages.iter().all(|(_, s)| *s == StageAccount::default());
        if batches.is_empty() && rejects.is_empty() && nothing {
            return Ok(Vec::new());
        }
        self.items(batches, accounts, rejects)
    }

    /// Batches through the stages from `first` on.
    async fn through(
        &mut self,
        first: usize,
        mut batches: Vec<ChangeBatch>,
        accounts: &mut Accounts,
        rejects: &mut Vec<Reject>,
    ) -> Result<Vec<ChangeBatch>> {
        for stage in &mut self.stages[first..] {
            let mut next = Vec::with_capacity(batches.len());
            for batch in batches {
                let staged = stage.apply(batch).await?;
                next.extend(take(stage.name(), staged, accounts, rejects));
            }
            batches = next;
        }
        Ok(batches)
    }

    async fn event(&mut self, mut event: Event) -> Result<Vec<Item>> {
        let read = Tally {
            rows: event.rows(),
            bytes: event.bytes(),
            ..Tally::default()
        };
        let mut accounts = Accounts {
            read,
            ..Accounts::default()
        };
        let batch = match event {
            Event::Rows(batch) if self.is_own(&batch.table) => {
                return Ok(vec![Item {
                    accounts: Accounts {
                        own: batch.len() as u64,
                        ..Accounts::default()
                    },
                    event: Some(Event::Rows(batch)),
                    rejects: Vec::new(),
                }]);
            }
            Event::Rows(batch) => batch,
            Event::Compared(compared) => {
                accounts.compared = compared;
                return Ok(vec![Item {
                    event: Some(Event::Compared(compared)),
                    accounts,
                    rejects: Vec::new(),
                }]);
            }
            _ => {
                if !self.stages.is_empty() && matches!(event, Event::Raw { .. }) {
                    return Err(Error::bug("rows in wire form cannot pass stages"));
                }
                match &mut event {
                    Event::Raw { table, .. } | Event::Net { table, .. } | Event::ReplaceRange { table, .. } => {
                        *table = self.destination_of(table);
                    }
                    Event::Schema(change) => {
                        change.table = self.destination_of(&change.table);
                        let retyped = change.difference.retyped.iter_mut().map(|(_, want)| want);
                        for column in change.difference.missing.iter_mut().chain(retyped) {
                            self.store(column)?;
                        }
                    }
                    Event::Truncate { tables, .. } => tables.iter_mut().for_each(|t| *t = self.destination_of(t)),
                    Event::Rows(_)
                    | Event::Begin(_)
                    | Event::Message { .. }
                    | Event::Compared(_)
                    | Event::Boundary { .. } => {}
                }
                let rows = accounts.read.rows;
                for stage in &self.stages {
                    let account = accounts.stage(stage.name());
                    (account.rows_in, account.rows_out) = (rows, rows);
                }
                accounts.written = accounts.read;
                if let (Event::Raw { bytes, .. }, Verify::Hash) = (&event, self.verify) {
                    let mut tally = Tally::default();
                    self.source.tally_raw(bytes, &mut tally)?;
                    if tally.rows != accounts.read.rows {
                        return Err(Error::bug("a chunk of raw rows does not hold the rows it says"));
                    }
                    accounts.written = tally;
                }
                return Ok(vec![Item {
                    event: Some(event),
                    accounts,
                    rejects: Vec::new(),
                }]);
            }
        };
        // What is not named as it is read is for a table of our own: neither stages nor changes mean it.
        let place = self.tables.iter().position(|t| t.read.table == *batch.table);
        let Some(place) = place.filter(|_| self.rows != Rows::Staged) else {
            let rows = batch.len() as u64;
            for stage in &self.stages {
                let account = accounts.stage(stage.name());
                (account.rows_in, account.rows_out) = (rows, rows);
            }
            return self.items(vec![batch], accounts, Vec::new());
        };
        let batch = as_changes(batch, &self.tables[place])?;
        let mut rejects = Vec::new();
        let batches = self.through(0, vec![batch], &mut accounts, &mut rejects).await?;
        self.items(batches, accounts, rejects)
    }

    fn items(
        &mut self,
        batches: Vec<ChangeBatch>,
        mut accounts: Accounts,
        mut rejects: Vec<Reject>,
    ) -> Result<Vec<Item>> {
        let mut items = Vec::with_capacity(batches.len().max(1));
        for mut batch in batches {
            let place = self.tables.iter().position(|t| t.read.table == *batch.table);
            if let Some(place) = place.filter(|&p| self.conforming[p]) {
                batch = conform(batch, &self.tables[place])?;
            }
            batch.table = self.destination_of(&batch.table);
            let mut written = Tally {
                rows: batch.len() as u64,
                bytes: batch.bytes() as u64,
                ..Tally::default()
            };
            if self.verify == Verify::Hash {
                written = Tally::default();
                self.hasher.add(&batch.rows, &mut written)?;
            }
            accounts.written = written;
            items.push(Item {
                event: Some(Event::Rows(batch)),
                accounts: std::mem::take(&mut accounts),
                rejects: std::mem::take(&mut rejects),
            });
        }
        if items.is_empty() {
            // Every row was dropped: the accounts travel on, on an event that no sink minds.
            items.push(Item {
                event: Some(Event::Rows(empty(&self.tables)?)),
                accounts,
                rejects,
            });
        }
        Ok(items)
    }

    /// A column that came on the way is the destination's from here on, as planned ones are, and so is the name of its
    /// type.
    fn store(&self, column: &mut Column) -> Result<()> {
        let stored = self.destination.store_as(self.source.engine(), column);
        if let Fidelity::Refused(why) = stored.fidelity {
            let (engine, name) = (self.destination.engine(), &column.name);
            let told = format!("{engine} cannot store column {name}, which is new: {why}");
            return Err(Error::new(code::TYPE_UNSUPPORTED, told).hint("leave the table out of the pipeline"));
        }
        column.source_type = Some(stored.type_name);
        Ok(())
    }

    /// Whether rows are for a table of our own, which their reader names as it is written.
    fn is_own(&self, table: &crate::schema::TableId) -> bool {
        self.tables.iter().any(|t| t.own && t.destination == *table)
    }

    /// Readers name the table they read; sinks want the one they write.
    fn destination_of(&self, table: &Arc<crate::schema::TableId>) -> Arc<crate::schema::TableId> {
        match self.tables.iter().find(|t| t.read.table == **table) {
            Some(t) => Arc::new(t.destination.clone()),
            None => table.clone(),
        }
    }
}

/// Books what a stage did and gives on what goes on.
fn take(stage: &str, staged: Staged, accounts: &mut Accounts, rejects: &mut Vec<Reject>) -> Vec<ChangeBatch> {
    *accounts.stage(stage) += staged.account;
    rejects.extend(staged.rejects);
    staged.batches
}

fn empty(tables: &[PlannedTable]) -> Result<ChangeBatch> {
    let t = tables
        .first()
        .ok_or_else(|| Error::new(code::BUG, "a plan without tables"))?;
    let rows = arrow_array::RecordBatch::new_empty(t.schema.arrow_schema());
    Ok(ChangeBatch::inserts(
        Arc::new(t.destination.clone()),
        rows,
        crate::budget::Hold::none(),
    ))
}
