//! Changes for a program of one's own, row by row: as values ([`Change`]), to a [`Handler`], or in batches of upserts
//! and deletes to a [`Batcher`]. Whatever fails is not acknowledged, so it comes again.

use super::changes::Changes;
use async_trait::async_trait;
use futures::Stream;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use synctool_core::change::{ChangeBatch, Event, KeyRange, Op, Tx};
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;
use synctool_core::schema::TableId;
use synctool_core::text;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// A cell of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// The log does not say: a large value that did not change. What is held of the row stays true.
    Absent,
    /// NULL.
    Null,
    /// A value, as canonical text.
    Text(String),
}

/// A row with its columns by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// Its table, at the source.
    pub table: Arc<TableId>,
    /// Its columns, in order.
    pub columns: Arc<[String]>,
    /// Their cells.
    pub cells: Vec<Cell>,
    /// The places of the columns that find it.
    pub key: Arc<[usize]>,
}

impl Row {
    /// A cell by its column's name.
    pub fn cell(&self, column: &str) -> Option<&Cell> {
        let at = self.columns.iter().position(|c| c == column)?;
        self.cells.get(at)
    }

    /// A value by its column's name; `None` for NULL, for what is absent, and where there is no such column.
    pub fn get(&self, column: &str) -> Option<&str> {
        match self.cell(column) {
            Some(Cell::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The values that find it.
    pub fn key_values(&self) -> Vec<&str> {
        let one = |at: &usize| match self.cells.get(*at) {
            Some(Cell::Text(text)) => text.as_str(),
            _ => "",
        };
        self.key.iter().map(one).collect()
    }

    /// Whether every cell is said.
    pub fn is_complete(&self) -> bool {
        !self.cells.contains(&Cell::Absent)
    }
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// A transaction begins; it ends with the next [`Change::Commit`].
    Begin(Tx),
    /// A row came.
    Insert(Row),
    /// A row has these values now; `before` holds its old key where that changed, or all of the old row where the table's
    /// replica identity says so.
    Update {
        /// The row as it is.
        row: Row,
        /// As it was.
        before: Option<Row>,
    },
    /// A row is like this, whether it was there or not: of a chunk, or changed while its table is loaded.
    Refresh(Row),
    /// A row went; its key is what counts.
    Delete(Row),
    /// What is held of a range of keys goes: rows that are there follow as [`Change::Refresh`], before the next
    /// [`Change::Commit`]. So a table is compared whose rows may have gone without a word in the log: with a partition, in
    /// a gap, with the table that had the name before.
    Replace {
        /// The table.
        table: Arc<TableId>,
        /// Its keys, in the source's order, which for texts is that of its collation. Ranges come in that order, from one
        /// without a lower end to one without an upper end.
        range: KeyRange,
    },
    /// A table was emptied.
    Truncate(Arc<TableId>),
    /// A table has other columns from here on.
    Schema(Arc<TableId>),
    /// A message that somebody wrote into the log.
    Message {
        /// Whose.
        prefix: String,
        /// What.
        content: Vec<u8>,
    },
    /// Here a transaction, or a chunk, is at its end: what is safe may be acknowledged by this position.
    Commit {
        /// Where to go on.
        position: Position,
        /// When the source committed, microseconds UTC.
        committed_at: Option<i64>,
    },
}

/// What a handler says at the end of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Safe {
    /// Everything so far is safe: the database may forget it.
    Yes,
    /// Not yet: a later transaction will tell.
    NotYet,
    /// Everything so far is safe, and it is enough.
    Stop,
}

/// Takes changes one by one. An error ends it, and nothing behind the last acknowledged transaction is forgotten.
#[async_trait]
pub trait Handler: Send {
    /// A transaction begins.
    async fn begin(&mut self, tx: &Tx) -> Result<()> {
        let _ = tx;
        Ok(())
    }
    /// A row came.
    async fn insert(&mut self, row: Row) -> Result<()>;
    /// A row changed.
    async fn update(&mut self, row: Row, before: Option<Row>) -> Result<()>;
    /// A row went.
    async fn delete(&mut self, row: Row) -> Result<()>;
    /// A row is like this, whether it was known or not.
    async fn refresh(&mut self, row: Row) -> Result<()>;
    /// What is held of a range of keys goes: rows that are there follow by `refresh`, before `commit` ([`Change::Replace`]).
    async fn replace(&mut self, table: &TableId, range: &KeyRange) -> Result<()>;
    /// A table was emptied.
    async fn truncate(&mut self, table: &TableId) -> Result<()>;
    /// A table has other columns from here on.
    async fn schema(&mut self, table: &TableId) -> Result<()> {
        let _ = table;
        Ok(())
    }
    /// A message came.
    async fn message(&mut self, prefix: &str, content: &[u8]) -> Result<()> {
        let _ = (prefix, content);
        Ok(())
    }
    /// A transaction is at its end: whether everything so far is safe.
    async fn commit(&mut self, position: &Position) -> Result<Safe>;
}

/// Takes net changes of some transactions at a time, per table. An error ends it, and the batch comes again.
///
/// Of each table come `truncate`, `moved`, `delete` and `upsert`, in this order, so that neither a row is lost nor held twice
/// whose key changed to an equal one with another text (1 and 1.0), whether its keys are compared as values or as texts.
///
/// A batch that outgrows [`BatchLimits`] within one transaction, or has a `replace` in it, comes in parts, and so may one
/// table: these are called again, each part is the net of what happened since the one before it, and `commit` follows the
/// last one. Only there a transaction is whole: what is to be seen by others is shown then.
#[async_trait]
pub trait Batcher: Send {
    /// Rows have other keys, and the log leaves out what else they have: what is held under the key of the first of two is
    /// held under that of the second from now on, with the cells that it says. One after the other: rows may trade keys. A row
    /// that is not held comes whole later. The old keys are not among the deletes.
    async fn moved(&mut self, table: &TableId, rows: Vec<(Row, Row)>) -> Result<()>;
    /// Rows went.
    async fn delete(&mut self, table: &TableId, rows: Vec<Row>) -> Result<()>;
    /// Rows are like this now. Absent cells keep what is held.
    async fn upsert(&mut self, table: &TableId, rows: Vec<Row>) -> Result<()>;
    /// What is held of a range of keys goes: rows that are there follow by `upsert`, before `commit` ([`Change::Replace`]).
    async fn replace(&mut self, table: &TableId, range: &KeyRange) -> Result<()>;
    /// A table was emptied.
    async fn truncate(&mut self, table: &TableId) -> Result<()>;
    /// The batch is complete: whether it is safe.
    async fn commit(&mut self, position: &Position) -> Result<Safe>;
}

/// How large batches are.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// A batch ends with the first transaction after so many rows …
    ///
    /// One transaction that brings more than ten times as many is handed over in parts of about that, so that no more is
    /// held in memory.
    pub rows: usize,
    /// … or so much time, so that nothing waits on an idle database.
    pub wait: Duration,
}

impl Default for BatchLimits {
    fn default() -> Self {
        BatchLimits {
            rows: 1000,
            wait: Duration::from_millis(500),
        }
    }
}

impl BatchLimits {
    /// How many rows are held at most within a transaction.
    fn part(&self) -> usize {
        self.rows.max(1).saturating_mul(10)
    }
}

/// Tells a stream what is safe.
#[derive(Debug, Clone)]
pub struct Acknowledger(mpsc::UnboundedSender<Position>);

impl Acknowledger {
    /// Everything up to this position is safe.
    pub fn acknowledge(&self, position: &Position) {
        // A stream that ended acknowledges nothing any more: what it did not, comes again.
        let _ = self.0.send(position.clone());
    }
}

impl Changes {
    /// The next change; `None` only where the builder was told to end. Cancel safe.
    pub async fn next_change(&mut self) -> Result<Option<Change>> {
        loop {
            if let Some(change) = self.changes.pop_front() {
                return Ok(Some(change));
            }
            let Some(event) = self.next().await? else {
                return Ok(None);
            };
            let mut out = std::mem::take(&mut self.changes);
            self.take(event, &mut out)?;
            self.changes = out;
        }
    }

    fn take(&self, event: Event, out: &mut VecDeque<Change>) -> Result<()> {
        match event {
            Event::Begin(tx) => out.push_back(Change::Begin(tx)),
            Event::Rows(batch) => self.rows(&batch, out)?,
            Event::ReplaceRange { table, range, rows } => {
                out.push_back(Change::Replace {
                    table: table.clone(),
                    range,
                });
                for at in 0..rows.num_rows() {
                    out.push_back(Change::Refresh(self.row(&table, &rows, None, at)?));
                }
            }
            Event::Truncate { tables, .. } => out.extend(tables.into_iter().map(Change::Truncate)),
            Event::Schema(change) => out.push_back(Change::Schema(change.table)),
            Event::Message { prefix, content } => out.push_back(Change::Message {
                prefix,
                content: content.to_vec(),
            }),
            Event::Boundary {
                position, committed_at, ..
            } => out.push_back(Change::Commit { position, committed_at }),
            Event::Raw { .. } | Event::Net { .. } | Event::Compared(_) => {
                return Err(Error::bug("a log does not say this"));
            }
        }
        Ok(())
    }

    fn rows(&self, batch: &ChangeBatch, out: &mut VecDeque<Change>) -> Result<()> {
        for at in 0..batch.len() {
            let row = self.row(&batch.table, &batch.rows, batch.present.as_ref(), at)?;
            out.push_back(match batch.ops.get(at) {
                Op::Insert => Change::Insert(row),
                Op::Upsert => Change::Refresh(row),
                Op::Delete => Change::Delete(row),
                Op::Update => {
                    let before = match &batch.before {
                        Some(before) => Some(self.row(&batch.table, before, None, at)?),
                        None => None,
                    };
                    // Rows of a batch whose key stayed have nothing before them; without a key the log tells each old row.
                    let before = before.filter(|b| b.key.is_empty() || b.cells.iter().any(|c| *c != Cell::Null));
                    Change::Update { row, before }
                }
            });
        }
        Ok(())
    }

    fn row(
        &self,
        table: &Arc<TableId>,
        rows: &arrow_array::RecordBatch,
        present: Option<&synctool_core::change::Presence>,
        at: usize,
    ) -> Result<Row> {
        let columns: Arc<[String]> = rows.schema().fields().iter().map(|f| f.name().clone()).collect();
        let key = self.key_of(table);
        let key: Arc<[usize]> = key.iter().filter_map(|k| columns.iter().position(|c| c == k)).collect();
        let cell = |(i, array): (usize, &arrow_array::ArrayRef)| match present.is_none_or(|p| p.has(i, at)) {
            false => Ok(Cell::Absent),
            true => Ok(text::cell(array.as_ref(), at)?.map_or(Cell::Null, Cell::Text)),
        };
        Ok(Row {
            table: table.clone(),
            cells: rows.columns().iter().enumerate().map(cell).collect::<Result<_>>()?,
            columns,
            key,
        })
    }

    /// The changes as a stream, and what tells it which of them are safe.
    pub fn into_stream(self) -> (impl Stream<Item = Result<Change>> + Send, Acknowledger) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let stream = futures::stream::unfold(Some((self, receiver)), async |state| {
            let (mut changes, mut safe) = state?;
            loop {
                let next = tokio::select! {
                    biased;
                    Some(position) = safe.recv() => match changes.acknowledge(&position).await {
                        Ok(()) => continue,
                        Err(e) => Err(e),
                    },
                    next = changes.next_change() => next,
                };
                return match next {
                    Ok(Some(change)) => Some((Ok(change), Some((changes, safe)))),
                    Ok(None) => {
                        while let Ok(position) = safe.try_recv() {
                            let _ = changes.acknowledge(&position).await;
                        }
                        None
                    }
                    Err(e) => Some((Err(e), None)),
                };
            }
        });
        (stream, Acknowledger(sender))
    }

    /// Hands every change to a handler, until it says stop, it fails, or the log ends where the builder was told to.
    pub async fn handle(mut self, handler: &mut impl Handler) -> Result<()> {
        while let Some(change) = self.next_change().await? {
            match change {
                Change::Begin(tx) => handler.begin(&tx).await?,
                Change::Insert(row) => handler.insert(row).await?,
                Change::Update { row, before } => handler.update(row, before).await?,
                Change::Delete(row) => handler.delete(row).await?,
                Change::Refresh(row) => handler.refresh(row).await?,
                Change::Replace { table, range } => handler.replace(&table, &range).await?,
                Change::Truncate(table) => handler.truncate(&table).await?,
                Change::Schema(table) => handler.schema(&table).await?,
                Change::Message { prefix, content } => handler.message(&prefix, &content).await?,
                Change::Commit { position, .. } => match handler.commit(&position).await? {
                    Safe::NotYet => {}
                    Safe::Yes => self.acknowledge(&position).await?,
                    Safe::Stop => {
                        self.acknowledge(&position).await?;
                        return self.close().await;
                    }
                },
            }
        }
        Ok(())
    }

    /// Hands net changes to a batcher, some transactions at a time.
    pub async fn batches(mut self, batcher: &mut impl Batcher, limits: BatchLimits) -> Result<()> {
        let mut batch = Batch::default();
        // When the first change of the batch came.
        let mut since: Option<Instant> = None;
        let mut boundary: Option<Position> = None;
        loop {
            let change = tokio::select! {
                change = self.next_change() => change?,
                () = tokio::time::sleep_until(since.unwrap_or_else(Instant::now) + limits.wait), if boundary.is_some() => {
                    let position = boundary.take().ok_or_else(|| Error::bug("checked"))?;
                    since = None;
                    match self.hand_over(&mut batch, batcher, &position).await? {
                        true => return self.close().await,
                        false => continue,
                    }
                }
            };
            let began = *since.get_or_insert_with(Instant::now);
            match change {
                Some(Change::Commit { position, .. }) => {
                    if batch.rows < limits.rows && began.elapsed() < limits.wait {
                        boundary = Some(position);
                    } else {
                        (boundary, since) = (None, None);
                        if self.hand_over(&mut batch, batcher, &position).await? {
                            return self.close().await;
                        }
                    }
                }
                Some(Change::Replace { table, range }) => {
                    boundary = None;
                    // What came before it is of the rows that go.
                    std::mem::take(&mut batch).tell(batcher).await?;
                    batcher.replace(&table, &range).await?;
                }
                Some(change) => {
                    boundary = None;
                    batch.add(change)?;
                    if batch.rows >= limits.part() {
                        std::mem::take(&mut batch).tell(batcher).await?;
                    }
                }
                None => {
                    if let Some(position) = boundary.take() {
                        self.hand_over(&mut batch, batcher, &position).await?;
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Hands a batch over; says whether it is enough.
    async fn hand_over(&mut self, batch: &mut Batch, batcher: &mut impl Batcher, position: &Position) -> Result<bool> {
        std::mem::take(batch).tell(batcher).await?;
        Ok(match batcher.commit(position).await? {
            Safe::NotYet => false,
            Safe::Yes => {
                self.acknowledge(position).await?;
                false
            }
            Safe::Stop => {
                self.acknowledge(position).await?;
                true
            }
        })
    }
}

/// The net of some transactions: of a table one after the other, where it is there twice.
#[derive(Default)]
struct Batch {
    tables: Vec<TableBatch>,
    rows: usize,
}

struct TableBatch {
    table: Arc<TableId>,
    emptied: bool,
    rows: HashMap<Vec<String>, State>,
    order: Vec<Vec<String>>,
    moved: Vec<(Row, Row)>,
    /// Whether any row went.
    gone: bool,
}

enum State {
    Is(Row),
    Gone(Row),
    /// It has another key, as `moved` says.
    Moved,
}

impl Batch {
    /// Tells a batcher all of it.
    async fn tell(self, batcher: &mut impl Batcher) -> Result<()> {
        for mut table in self.tables {
            if table.emptied {
                batcher.truncate(&table.table).await?;
            }
            let (mut rows, mut gone) = (Vec::new(), Vec::new());
            for state in table.order.iter().filter_map(|key| table.rows.remove(key)) {
                match state {
                    State::Is(row) => rows.push(row),
                    State::Gone(row) => gone.push(row),
                    State::Moved => {}
                }
            }
            if !table.moved.is_empty() {
                batcher.moved(&table.table, table.moved).await?;
            }
            if !gone.is_empty() {
                batcher.delete(&table.table, gone).await?;
            }
            if !rows.is_empty() {
                batcher.upsert(&table.table, rows).await?;
            }
        }
        Ok(())
    }

    fn table(&mut self, table: &Arc<TableId>) -> &mut TableBatch {
        match self.tables.iter().rposition(|t| t.table == *table) {
            Some(at) => &mut self.tables[at],
            None => self.begin(table),
        }
    }

    /// What comes of a table from here on is told behind what came before.
    fn begin(&mut self, table: &Arc<TableId>) -> &mut TableBatch {
        let at = self.tables.len();
        self.tables.push(TableBatch {
            table: table.clone(),
            emptied: false,
            rows: HashMap::new(),
            order: Vec::new(),
            moved: Vec::new(),
            gone: false,
        });
        &mut self.tables[at]
    }

    fn add(&mut self, change: Change) -> Result<()> {
        match change {
            Change::Insert(row) | Change::Refresh(row) => self.put(row, None)?,
            Change::Update { row, before } => self.put(row, before)?,
            Change::Delete(row) => {
                let key = key_of(&row)?;
                self.table(&row.table.clone()).set(key, State::Gone(row));
                self.rows += 1;
            }
            Change::Truncate(table) => {
                self.tables.retain(|t| t.table != table);
                self.begin(&table).emptied = true;
            }
            Change::Begin(_)
            | Change::Schema(_)
            | Change::Message { .. }
            | Change::Replace { .. }
            | Change::Commit { .. } => {}
        }
        Ok(())
    }

    fn put(&mut self, mut row: Row, before: Option<Row>) -> Result<()> {
        let key = key_of(&row)?;
        let old = match &before {
            Some(before) => Some(key_of(before)?).filter(|old| *old != key),
            None => None,
        };
        self.rows += 1;
        let mut table = self.table(&row.table);
        // What the log leaves out may be known from earlier in the batch.
        if let Some(State::Is(held)) = table.rows.get(old.as_ref().unwrap_or(&key)) {
            for (cell, held) in row.cells.iter_mut().zip(&held.cells) {
                if *cell == Cell::Absent {
                    cell.clone_from(held);
                }
            }
        }
        if let (Some(old), Some(before)) = (old, before) {
            let state = match row.is_complete() {
                true => State::Gone(before),
                false => {
                    if table.gone {
                        // A row that went may have had an equal key.
                        table = self.begin(&row.table);
                    }
                    table.moved.push((before, row.clone()));
                    State::Moved
                }
            };
            table.set(old, state);
        }
        table.set(key, State::Is(row));
        Ok(())
    }
}

impl TableBatch {
    fn set(&mut self, key: Vec<String>, state: State) {
        self.gone |= matches!(state, State::Gone(_));
        if self.rows.insert(key.clone(), state).is_none() {
            self.order.push(key);
        }
    }
}

fn key_of(row: &Row) -> Result<Vec<String>> {
    if row.key.is_empty() {
        return Err(Error::new(
            code::KEY_MISSING,
            format!("{} has no key: its changes cannot be summed up", row.table),
        )
        .hint("take its changes one by one, by a handler"));
    }
    Ok(row.key_values().into_iter().map(str::to_owned).collect())
}

/// The key columns of what is followed.
pub(super) type Keys = HashMap<TableId, Vec<String>>;

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Rows as somebody holds them whose keys are numbers, or texts.
    struct Held {
        numbers: bool,
        rows: BTreeMap<String, (String, Cell)>,
    }

    impl Held {
        fn at(&self, row: &Row) -> String {
            match self.numbers {
                true => row.key_values()[0].parse::<f64>().unwrap().to_string(),
                false => row.key_values()[0].to_owned(),
            }
        }

        fn put(&mut self, row: &Row) {
            let at = self.at(row);
            let value = match &row.cells[1] {
                Cell::Absent => self.rows[&at].1.clone(),
                said => said.clone(),
            };
            self.rows.insert(at, (row.key_values()[0].to_owned(), value));
        }
    }

    #[async_trait]
    impl Batcher for Held {
        async fn moved(&mut self, _: &TableId, rows: Vec<(Row, Row)>) -> Result<()> {
            for (before, row) in rows {
                let held = self.rows.remove(&self.at(&before)).expect("what moves is held");
                let there = self.rows.insert(self.at(&row), held);
                assert_eq!(there, None, "the new key is free");
                self.put(&row);
            }
            Ok(())
        }
        async fn delete(&mut self, _: &TableId, rows: Vec<Row>) -> Result<()> {
            for row in rows {
                self.rows.remove(&self.at(&row));
            }
            Ok(())
        }
        async fn upsert(&mut self, _: &TableId, rows: Vec<Row>) -> Result<()> {
            rows.iter().for_each(|row| self.put(row));
            Ok(())
        }
        async fn replace(&mut self, _: &TableId, _: &KeyRange) -> Result<()> {
            Ok(())
        }
        async fn truncate(&mut self, _: &TableId) -> Result<()> {
            self.rows.clear();
            Ok(())
        }
        async fn commit(&mut self, _: &Position) -> Result<Safe> {
            Ok(Safe::Yes)
        }
    }

    fn row(key: &str, value: Cell) -> Row {
        Row {
            table: Arc::new(TableId::bare("t")),
            columns: ["id", "v"].map(String::from).into(),
            cells: vec![Cell::Text(key.into()), value],
            key: [0].into(),
        }
    }

    fn text(v: &str) -> Cell {
        Cell::Text(v.into())
    }

    fn moves(from: &str, to: &str, value: Cell) -> Change {
        Change::Update {
            row: row(to, value),
            before: Some(row(from, Cell::Null)),
        }
    }

    /// 1 and 1.0 are one key to a database whose keys are numbers, and two to one whose keys are texts.
    #[tokio::test]
    async fn keys_that_are_equal_lose_and_double_no_row() {
        let gone = |key: &str| Change::Delete(row(key, Cell::Null));
        let come = |key: &str| Change::Insert(row(key, text("new")));
        let keeps = |from: &str, to: &str| moves(from, to, Cell::Absent);
        let cases = [
            (vec![moves("1", "1.0", text("new"))], "1.0=new 5=five"),
            (vec![keeps("1", "1.0")], "1.0=one 5=five"),
            (vec![keeps("1", "1.0"), keeps("1.0", "1")], "1=one 5=five"),
            (vec![keeps("1", "1.0"), gone("1.0")], "5=five"),
            (
                vec![keeps("1", "1.0"), come("2"), keeps("2", "3")],
                "1.0=one 3=new 5=five",
            ),
            (vec![gone("1"), come("1.0")], "1.0=new 5=five"),
            (vec![gone("1"), keeps("5", "1.0")], "1.0=five"),
            (vec![keeps("1", "2"), gone("5"), keeps("2", "5.0")], "5.0=one"),
            (vec![keeps("1", "3"), keeps("5", "1"), keeps("3", "5")], "1=five 5=one"),
        ];
        for (n, (changes, wanted)) in cases.into_iter().enumerate() {
            for numbers in [true, false] {
                let rows = BTreeMap::new();
                let mut held = Held { numbers, rows };
                held.put(&row("1", text("one")));
                held.put(&row("5", text("five")));
                let mut batch = Batch::default();
                for change in changes.clone() {
                    batch.add(change).unwrap();
                }
                batch.tell(&mut held).await.unwrap();
                let shown = |(key, value): (String, Cell)| match value {
                    Cell::Text(value) => format!("{key}={value}"),
                    other => format!("{key}={other:?}"),
                };
                let rows: Vec<String> = held.rows.into_values().map(shown).collect();
                assert_eq!(rows.join(" "), wanted, "case {n}, numbers: {numbers}");
            }
        }
    }

    #[test]
    fn a_batch_is_the_net_of_its_changes() {
        let mut batch = Batch::default();
        let update = |r, before| Change::Update { row: r, before };
        for change in [
            Change::Insert(row("1", text("a"))),
            update(row("1", Cell::Absent), None),
            Change::Insert(row("2", text("b"))),
            Change::Delete(row("2", Cell::Null)),
            update(row("4", Cell::Absent), Some(row("1", Cell::Null))),
            update(row("9", Cell::Absent), Some(row("8", Cell::Null))),
        ] {
            batch.add(change).unwrap();
        }
        let is = |key: &str| {
            let mut parts = batch.tables.iter().rev();
            match parts.find_map(|table| table.rows.get(&vec![key.to_owned()])) {
                Some(State::Is(r)) => Some(r.cells[1].clone()),
                _ => None,
            }
        };
        assert_eq!(
            is("4"),
            Some(text("a")),
            "a key change takes along what the batch knows"
        );
        assert_eq!(is("9"), Some(Cell::Absent));
        assert!(is("1").is_none() && is("2").is_none());
        let moved: usize = batch.tables.iter().map(|table| table.moved.len()).sum();
        assert_eq!(moved, 1, "only what is not known is to be looked up");
        batch.add(Change::Truncate(Arc::new(TableId::bare("t")))).unwrap();
        assert!(batch.tables[0].emptied && batch.tables[0].rows.is_empty());
    }
}
