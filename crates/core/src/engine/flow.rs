//! One partition's way from reader to sink: read, transform and write run beside each other, joined by bounded
//! channels, and everything is pulled by the writer.

use crate::change::Event;
use crate::error::{Error, Result, code};
use crate::ledger::{Accounts, Tally};
use crate::plan::{PlannedTable, Verify};
use crate::progress::Position;
use crate::rowhash::RowHasher;
use crate::source::{Reader, Source};
use crate::stage::Stage;
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// Events in flight between two steps. Their memory is bounded by the byte budget, not by this.
const IN_FLIGHT: usize = 4;

/// An event on its way to the sink, with the accounts of everything up to it since the item before.
pub(super) struct Item {
    pub(super) event: Option<Event>,
    pub(super) accounts: Accounts,
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
        source: Arc<dyn Source>,
        reader: Box<dyn Reader>,
        stages: Vec<Box<dyn Stage>>,
        tables: Vec<PlannedTable>,
        verify: Verify,
    ) -> Flow {
        let (to_stages, from_reader) = mpsc::channel(IN_FLIGHT);
        let (to_sink, items) = mpsc::channel(IN_FLIGHT);
        let (durable, acknowledged) = watch::channel(None);
        let read = tokio::spawn(read(reader, to_stages, acknowledged));
        let transform = Transform {
            source,
            stages,
            hasher: RowHasher::new(),
            tables,
            verify,
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
        let last = !matches!(next, Ok(Some(_)));
        let ended_well = matches!(next, Ok(None));
        if out.send(next).await.is_err() {
            return;
        }
        if last {
            // The last commit is still to be acknowledged.
            while ended_well && acknowledged.changed().await.is_ok() {
                let position = acknowledged.borrow_and_update().clone();
                if let Some(p) = position
                    && reader.acknowledge(&p).await.is_err()
                {
                    return;
                }
            }
            return;
        }
    }
}

struct Transform {
    source: Arc<dyn Source>,
    stages: Vec<Box<dyn Stage>>,
    hasher: RowHasher,
    tables: Vec<PlannedTable>,
    verify: Verify,
}

impl Transform {
    async fn run(mut self, mut from: mpsc::Receiver<Result<Option<Event>>>, to: mpsc::Sender<Result<Item>>) {
        while let Some(next) = from.recv().await {
            let items = match next {
                Ok(None) => Ok(vec![Item {
                    event: None,
                    accounts: Accounts::default(),
                }]),
                Ok(Some(event)) => self.event(event).await,
                Err(e) => Err(e),
            };
            match items {
                Ok(items) => {
                    for item in items {
                        if to.send(Ok(item)).await.is_err() {
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
            Event::Rows(batch) => batch,
            _ => {
                if !self.stages.is_empty() && matches!(event, Event::Raw { .. }) {
                    return Err(Error::bug("rows in wire form cannot pass stages"));
                }
                match &mut event {
                    Event::Raw { table, .. } | Event::Net { table, .. } | Event::ReplaceRange { table, .. } => {
                        *table = self.destination_of(table);
                    }
                    Event::Schema(change) => change.table = self.destination_of(&change.table),
                    Event::Truncate { tables, .. } => tables.iter_mut().for_each(|t| *t = self.destination_of(t)),
                    Event::Rows(_) | Event::Begin(_) | Event::Message { .. } | Event::Boundary { .. } => {}
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
                }]);
            }
        };
        let mut batches = vec![batch];
        for stage in &mut self.stages {
            let mut next = Vec::with_capacity(batches.len());
            for batch in batches {
                let (out, account) = stage.apply(batch).await?;
                *accounts.stage(stage.name()) += account;
                next.extend(out);
            }
            batches = next;
        }
        let mut items = Vec::with_capacity(batches.len().max(1));
        for mut batch in batches {
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
            });
        }
        if items.is_empty() {
            // Every row was dropped: the accounts travel on, on an event that no sink minds.
            items.push(Item {
                event: Some(Event::Rows(empty(&self.tables)?)),
                accounts,
            });
        }
        Ok(items)
    }

    /// Readers name the table they read; sinks want the one they write.
    fn destination_of(&self, table: &Arc<crate::schema::TableId>) -> Arc<crate::schema::TableId> {
        match self.tables.iter().find(|t| t.read.table == **table) {
            Some(t) => Arc::new(t.destination.clone()),
            None => table.clone(),
        }
    }
}

fn empty(tables: &[PlannedTable]) -> Result<crate::change::ChangeBatch> {
    let t = tables
        .first()
        .ok_or_else(|| Error::new(code::BUG, "a plan without tables"))?;
    let rows = arrow_array::RecordBatch::new_empty(t.schema.arrow_schema());
    Ok(crate::change::ChangeBatch::inserts(
        Arc::new(t.destination.clone()),
        rows,
        crate::budget::Hold::none(),
    ))
}
