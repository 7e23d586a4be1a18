//! The reader of the log: messages in, events out, one transaction after the other.

mod look;

use super::super::client::Postgres;
use super::LogOptions;
use super::chunks::Marks;
use super::decode::{Places, Rows};
use super::pgoutput::{Cell, Lsn, Message, Old, Tuple};
use super::position::LogPosition;
use super::shape::{Look, Shapes};
use super::status::Steering;
use super::timeline::Timeline;
use super::transport::{EPOCH, Feed, Piece, Wal};
use super::{HEARTBEAT_PREFIX, Watermarks};
use async_trait::async_trait;
use bytes::Bytes;
use look::{Found, Looked, comparable};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synctool_core::backfill::WATERMARK_PREFIX;
use synctool_core::budget::Hold;
use synctool_core::change::{Event, Op, SchemaChange, Tx};
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;
use synctool_core::schema::{SchemaDifference, TableId};
use synctool_core::source::{ReadContext, Reader};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

/// How often the server is asked how far it is, while somebody waits for a place in the log.
const ASK: Duration = Duration::from_millis(10);

/// Transactions join across so many pieces of a stream at most: where none of them has rows for us, there is still a place to
/// tell.
const PIECES: u32 = 64;

/// Transactions join as long as they have less than this part of a batch.
const JOINED: usize = 4;

/// What the reader shares with the rest of its source.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) database: Postgres,
    pub(super) options: LogOptions,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
    /// Tables that were dropped and made again.
    pub(super) remade: Arc<Mutex<Vec<TableId>>>,
    /// Set when a column came whose values have no binary form here: the stream must come as text.
    pub(super) as_text: Arc<AtomicBool>,
    pub(super) steering: Arc<Steering>,
}

/// What a table of the log is to us.
#[derive(Debug, Clone)]
enum Entry {
    /// Nobody follows it.
    Other,
    /// The table of watermarks.
    Marks,
    /// A followed table, or a partition of one.
    Table {
        index: usize,
        places: Arc<Places>,
        /// All partitions of the table, if this is one of them.
        partitions: Option<Arc<HashSet<u32>>>,
    },
}

/// What must happen before the next message can be taken.
enum Need {
    /// Memory for rows.
    Room(usize),
    /// A look at the catalog for this message.
    Relation(Bytes),
}

enum Taken {
    /// Something came out, or the piece is at its end.
    Paused,
    Needs(Need),
    Ended,
}

struct OpenTx {
    xid: u64,
    committed_at: i64,
    begun: bool,
    /// Known already: it came again after a change of transport.
    old: bool,
    /// It says where a chunk begins or ends: what others did after it must not come before its end.
    marks: bool,
}

/// Reads the log of one slot.
pub(super) struct LogReader {
    world: World,
    context: ReadContext,
    feed: Feed,
    piece: Option<Piece>,
    need: Option<Need>,
    looked: Option<Looked>,
    binary: bool,
    relations: HashMap<u32, Entry>,
    /// What the catalog says of the followed tables, looked at after the piece came that is read now.
    looks: HashMap<u32, Arc<Look>>,
    /// The followed table whose partition the next one described is: the last one was its root.
    root: Option<usize>,
    /// When the partitions of tables are looked at next, if any table has some: no row may tell of those that go.
    parts_at: Option<Instant>,
    builders: Vec<Option<Rows>>,
    /// The tables that have rows at hand, in the order of their first ones, and how many bytes these have.
    at_hand: Vec<usize>,
    gathered: usize,
    /// Memory for them.
    hold: Option<Hold>,
    tx: Option<OpenTx>,
    /// The last transaction that is whole and whose end was not said yet, so that others may join it.
    joined: Option<OpenTx>,
    /// Pieces of the stream since transactions began to join.
    pieces: u32,
    /// Transactions whose end was read, for a backfill.
    ended: Vec<u64>,
    position: LogPosition,
    /// What says the timeline of a standby.
    timeline: Option<Timeline>,
    /// A transaction number of about now, with the epoch that the log leaves out.
    xid_near: u64,
    until: Option<Lsn>,
    quiet_since: Instant,
    out: VecDeque<Event>,
    _heartbeat: DropGuard,
}

impl LogReader {
    #[allow(clippy::too_many_arguments, reason = "each is one thing, made in one place")]
    pub(super) fn new(
        world: World,
        context: ReadContext,
        feed: Feed,
        binary: bool,
        position: LogPosition,
        timeline: Option<Timeline>,
        xid_near: u64,
        until: Option<Lsn>,
        heartbeat: DropGuard,
    ) -> Self {
        let shapes = world.shapes.all();
        let mut out = VecDeque::new();
        // A sink that was opened anew knows the plan's columns only.
        for shape in shapes.iter() {
            let difference = shape.beyond_plan();
            if difference == SchemaDifference::default() {
                continue;
            }
            let table = shape.table.clone();
            out.push_back(Event::Schema(SchemaChange { table, difference }));
        }
        if !out.is_empty() {
            out.push_back(Event::Boundary {
                position: position.encode(),
                committed_at: None,
                tx: None,
            });
        }
        let parts_at = shapes.iter().any(|s| s.partitioned);
        let parts_at = parts_at.then(|| Instant::now() + world.options.status_interval);
        LogReader {
            world,
            context,
            feed,
            piece: None,
            need: None,
            looked: None,
            binary,
            relations: HashMap::new(),
            looks: HashMap::new(),
            root: None,
            parts_at,
            builders: shapes.iter().map(|_| None).collect(),
            at_hand: Vec::new(),
            gathered: 0,
            hold: None,
            tx: None,
            joined: None,
            pieces: 0,
            ended: Vec::new(),
            position,
            timeline,
            xid_near,
            until,
            quiet_since: Instant::now(),
            out,
            _heartbeat: heartbeat,
        }
    }

    /// Takes messages until something comes out or something is needed first.
    fn consume(&mut self, piece: &mut Piece) -> Result<Taken> {
        while self.out.is_empty() {
            let Some((wal, size)) = piece.front()? else {
                // Nobody waits for what may come.
                self.pieces += 1;
                if self.tx.is_none() && !self.joins_more() {
                    self.close()?;
                }
                return Ok(Taken::Ended);
            };
            match wal {
                Wal::Reached(lsn) => self.reached(lsn)?,
                Wal::Change(bytes) => {
                    let message = Message::parse(bytes).map_err(|e| {
                        Error::new(code::SERVER_ERROR, e.to_string()).at("slot", &self.world.options.slot)
                    })?;
                    if let Some(need) = self.take(message, bytes)? {
                        return Ok(Taken::Needs(need));
                    }
                }
            }
            piece.advance(size);
        }
        Ok(Taken::Paused)
    }

    fn take(&mut self, message: Message<'_>, bytes: &[u8]) -> Result<Option<Need>> {
        if !matches!(message, Message::Relation(_) | Message::Type { .. }) {
            self.root = None;
        }
        match message {
            Message::Begin {
                commit,
                committed_at,
                xid,
            } => {
                self.pass_marks(commit)?;
                let xid = widen(xid, self.xid_near);
                self.xid_near = self.xid_near.max(xid);
                self.tx = Some(OpenTx {
                    xid,
                    committed_at: committed_at.saturating_add(EPOCH),
                    begun: false,
                    old: commit < self.position.lsn,
                    marks: false,
                });
            }
            Message::Commit { end, .. } => {
                let Some(mut tx) = self.tx.take() else {
                    return Err(out_of_order("a commit without a transaction"));
                };
                if !tx.old {
                    self.ended.push(tx.xid);
                    self.position.lsn = self.position.lsn.max(end);
                    self.position.committed_at = Some(tx.committed_at);
                    if tx.begun {
                        self.world.steering.read_up_to(self.position.lsn);
                    }
                    tx.begun |= self.joined.as_ref().is_some_and(|j| j.begun);
                    let marks = tx.marks;
                    self.joined = Some(tx);
                    let more = self.world.options.together && self.out.is_empty() && !marks;
                    if !more || self.gathered >= self.context.batch_bytes / JOINED {
                        self.close()?;
                    }
                }
            }
            Message::Relation(relation) => {
                let Some(looked) = self.looked.take_if(|l| l.oid == relation.oid) else {
                    return Ok(Some(Need::Relation(Bytes::copy_from_slice(bytes))));
                };
                self.flush()?;
                self.adopt(looked);
            }
            Message::Insert { relation, new } => return self.row(relation, Op::Insert, Some(new), None),
            Message::Update { relation, old, new } => return self.row(relation, Op::Update, Some(new), old),
            Message::Delete { relation, old } => return self.row(relation, Op::Delete, None, Some(old)),
            Message::Truncate {
                relations,
                cascade,
                restart_identity,
            } => {
                self.flush()?;
                self.truncate(&relations, cascade, restart_identity)?;
            }
            Message::Message {
                transactional,
                prefix,
                content,
                ..
            } => {
                if prefix != HEARTBEAT_PREFIX && !self.tx.as_ref().is_some_and(|t| t.old) {
                    match self.tx.is_none() {
                        true => self.close()?,
                        false => self.flush()?,
                    }
                    if transactional {
                        self.begin();
                    }
                    self.message(prefix, content);
                    match &mut self.tx {
                        Some(tx) => tx.marks |= prefix == WATERMARK_PREFIX,
                        None => self.boundary(None),
                    }
                }
            }
            Message::Origin { .. } | Message::Type { .. } => {}
        }
        Ok(None)
    }

    fn message(&mut self, prefix: &str, content: &[u8]) {
        self.out.push_back(Event::Message {
            prefix: prefix.to_string(),
            content: Bytes::copy_from_slice(content),
        });
    }

    fn boundary(&mut self, tx: Option<OpenTx>) {
        self.quiet_since = Instant::now();
        self.out.push_back(Event::Boundary {
            position: self.position.encode(),
            committed_at: tx.as_ref().map(|t| t.committed_at),
            tx: tx.map(|t| t.xid),
        });
    }

    /// Has the boundaries at hand say the timeline that they are on, where that may be another one by now.
    async fn settle_timeline(&mut self) -> Result<()> {
        let Some(timeline) = &mut self.timeline else {
            return Ok(());
        };
        let before = self.position.origin.timeline;
        let now = timeline.at(self.position.lsn, before).await?;
        if now == before {
            return Ok(());
        }
        tracing::info!(before, now, "the log goes on, on another timeline");
        self.position.origin.timeline = now;
        for event in &mut self.out {
            if let Event::Boundary { position, .. } = event {
                let mut stands = LogPosition::parse(position)?;
                stands.origin.timeline = now;
                *position = stands.encode();
            }
        }
        Ok(())
    }

    /// Emits the rows at hand, and says that the transactions they are of are at their end.
    fn close(&mut self) -> Result<()> {
        self.pieces = 0;
        self.flush()?;
        if let Some(tx) = self.joined.take() {
            self.boundary(Some(tx));
        }
        Ok(())
    }

    /// Says that the transaction begins, before the first thing that anybody cares for.
    fn begin(&mut self) {
        let joins = self.joined.as_ref().is_some_and(|j| j.begun);
        if let Some(tx) = &mut self.tx
            && !tx.begun
        {
            tx.begun = true;
            if joins {
                return;
            }
            self.out.push_back(Event::Begin(Tx {
                id: tx.xid,
                committed_at: Some(tx.committed_at),
            }));
        }
    }

    /// Whether the transactions that are joined go on in what is at hand.
    fn joins_more(&self) -> bool {
        self.joined.is_some() && self.world.options.together && self.pieces < PIECES && self.feed.has_more()
    }

    /// Every transaction before `lsn` has been taken.
    fn reached(&mut self, lsn: Lsn) -> Result<()> {
        if self.joins_more() && self.world.marks.is_empty() {
            return Ok(());
        }
        if self.tx.is_none() {
            self.close()?;
            self.world.steering.reached(lsn);
        }
        if self.tx.is_some() || lsn <= self.position.lsn && self.world.marks.is_empty() {
            return Ok(());
        }
        let before = self.position.lsn;
        self.position.lsn = before.max(lsn);
        let asked = self.until.is_some_and(|until| before < until && until <= lsn);
        let quiet = lsn > before && self.quiet_since.elapsed() >= self.world.options.status_interval;
        if !self.pass_marks(lsn)? {
            if asked || quiet {
                self.boundary(None);
            } else {
                self.position.lsn = before;
            }
        }
        Ok(())
    }

    /// Puts marks that nobody wrote where their place is reached.
    fn pass_marks(&mut self, at: Lsn) -> Result<bool> {
        let mut any = false;
        while let Some(content) = self.world.marks.reached(at) {
            self.close()?;
            self.message(WATERMARK_PREFIX, content.as_bytes());
            any = true;
        }
        if any {
            self.boundary(None);
        }
        Ok(any)
    }

    /// Emits the rows at hand.
    fn flush(&mut self) -> Result<()> {
        let hold = self.hold.take_if(|_| !self.at_hand.is_empty()).unwrap_or_default();
        self.gathered = 0;
        for index in std::mem::take(&mut self.at_hand) {
            if let Some(rows) = &mut self.builders[index] {
                let batch = rows.finish(hold.clone())?;
                self.out.push_back(Event::Rows(batch));
            }
        }
        Ok(())
    }

    fn row(&mut self, relation: u32, op: Op, new: Option<Tuple<'_>>, old: Option<Old<'_>>) -> Result<Option<Need>> {
        let Some(tx) = &self.tx else {
            return Err(out_of_order("a row without a transaction"));
        };
        if tx.old {
            return Ok(None);
        }
        let (index, places) = match self.relations.get(&relation) {
            None => return Err(out_of_order("a row of a table that was not described")),
            Some(Entry::Other) => return Ok(None),
            Some(Entry::Marks) => {
                if let Some(content) = new.and_then(mark_of) {
                    // What came before it belongs before it.
                    self.flush()?;
                    self.begin();
                    self.message(WATERMARK_PREFIX, content.as_bytes());
                    if let Some(tx) = &mut self.tx {
                        tx.marks = true;
                    }
                }
                return Ok(None);
            }
            Some(Entry::Table { index, places, .. }) => (*index, places.clone()),
        };
        // Where transactions stay apart, so do the tables' turns within one.
        if !self.world.options.together && self.at_hand.first().is_some_and(|first| *first != index) {
            self.flush()?;
        }
        let size = new.map_or(0, |t| t.size()) + old.map_or(0, |o| o.tuple().size());
        if size > self.context.max_row_bytes {
            return Err(Error::new(
                code::ROW_TOO_LARGE,
                format!(
                    "a change in the log has {size} bytes, the limit is {}",
                    self.context.max_row_bytes
                ),
            )
            .hint("raise max_row_bytes; nothing was lost: the log is read from the same place again"));
        }
        if self.hold.is_some() && !self.at_hand.is_empty() && size > self.context.batch_bytes {
            // A giant needs a reservation of its own.
            self.flush()?;
        }
        if self.hold.is_none() {
            return Ok(Some(Need::Room(size.max(self.context.batch_bytes))));
        }
        self.begin();
        let binary = self.binary;
        let rows = match &mut self.builders[index] {
            Some(rows) => rows,
            none => none.insert(Rows::new(self.world.shapes.all()[index].clone(), binary)),
        };
        let table = rows.shape().table.clone();
        let before = rows.bytes();
        match (new, old) {
            (Some(new), old) => rows.put(op, new, old, &places),
            (None, Some(old)) => rows.remove(old, &places),
            (None, None) => Ok(()),
        }
        .map_err(|e| e.at("table", table.to_string()))?;
        self.gathered += rows.bytes() - before;
        if !self.at_hand.contains(&index) {
            self.at_hand.push(index);
        }
        if self.gathered >= self.context.batch_bytes {
            self.flush()?;
        }
        Ok(None)
    }

    fn truncate(&mut self, relations: &[u32], cascade: bool, restart_identity: bool) -> Result<()> {
        if self.tx.as_ref().is_none_or(|t| t.old) {
            return Ok(());
        }
        let shapes = self.world.shapes.all();
        let mut tables: Vec<Arc<TableId>> = Vec::new();
        let mut in_part = BTreeSet::new();
        for oid in relations {
            let Some(Entry::Table { index, partitions, .. }) = self.relations.get(oid) else {
                continue;
            };
            let table = &shapes[*index].table;
            if let Some(all) = partitions
                && !all.iter().all(|p| relations.contains(p))
            {
                in_part.insert(*index);
            } else if !tables.contains(table) {
                tables.push(table.clone());
            }
        }
        for index in in_part {
            // The log does not say which rows those were.
            let anew = Some("some partitions of it were emptied");
            comparable(&shapes[index], anew)?;
            self.settle(Found {
                index: Some(index),
                reshaped: None,
                anew,
            });
        }
        if !tables.is_empty() {
            self.begin();
            self.out.push_back(Event::Truncate {
                tables,
                cascade,
                restart_identity,
            });
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| self.position.lsn >= until)
            && self.tx.is_none()
            && self.joined.is_none()
            && self.world.marks.is_empty()
            && self.world.steering.requests().left() == 0
    }

    /// Waits for the next part of the log. Cancel safe.
    async fn wait(&mut self) -> Result<()> {
        let parts_at = self.parts_at.filter(|_| self.tx.is_none());
        let asking = self.until.is_some_and(|until| self.position.lsn < until) || !self.world.marks.is_empty();
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(Error::new(code::INTERRUPTED, "reading the log was stopped")),
            piece = self.feed.next() => {
                self.looks.clear();
                self.piece = Some(piece.map_err(|e| e.at("slot", &self.world.options.slot))?);
                Ok(())
            }
            () = self.world.marks.added.notified() => {
                self.feed.poke();
                Ok(())
            }
            () = tokio::time::sleep(ASK), if asking => {
                self.feed.poke();
                Ok(())
            }
            () = tokio::time::sleep_until(parts_at.unwrap_or_else(Instant::now)), if parts_at.is_some() => Ok(()),
        }
    }
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(Event::Boundary { .. }) = self.out.front() {
                self.settle_timeline().await?;
            }
            if let Some(event) = self.out.pop_front() {
                return Ok(Some(event));
            }
            if self.is_over() {
                return Ok(None);
            }
            // Each need is met before it is forgotten: a call that is dropped meanwhile loses nothing.
            match &self.need {
                Some(Need::Room(bytes)) => {
                    self.hold = Some(self.context.budget.reserve(*bytes).await);
                    self.need = None;
                }
                Some(Need::Relation(message)) => {
                    self.looked = Some(self.look_up(&message.clone()).await?);
                    self.need = None;
                }
                None => {}
            }
            let Some(mut piece) = self.piece.take() else {
                match self.looks_at_parts() {
                    true => self.look_at_parts().await?,
                    false => self.wait().await?,
                }
                continue;
            };
            match self.consume(&mut piece)? {
                Taken::Ended => {}
                Taken::Paused => self.piece = Some(piece),
                Taken::Needs(need) => (self.piece, self.need) = (Some(piece), Some(need)),
            }
        }
    }

    fn ended(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.ended)
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        self.world.options.repair.spend();
        self.feed.confirm(LogPosition::parse(durable)?.lsn);
        Ok(())
    }
}

fn out_of_order(what: &str) -> Error {
    Error::new(code::SERVER_ERROR, format!("the log is out of order: {what}"))
}

/// The mark that a row of the table of watermarks says.
fn mark_of(row: Tuple<'_>) -> Option<String> {
    let mut cells = row.cells().map(|c| match c {
        Cell::Text(b) | Cell::Binary(b) => std::str::from_utf8(b).ok(),
        Cell::Null | Cell::Unchanged => None,
    });
    let (token, kind) = (cells.next()??, cells.next()??);
    Some(format!("{kind} {token}"))
}

/// A transaction's number with its epoch, given one that is not 2³¹ away from it.
fn widen(xid: u32, near: u64) -> u64 {
    let distance = xid.wrapping_sub(near as u32) as i32;
    near.saturating_add_signed(i64::from(distance))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transaction_numbers_get_their_epoch() {
        let near = (3 << 32) + 5;
        assert_eq!(widen(7, near), (3 << 32) + 7);
        assert_eq!(widen(2, near), (3 << 32) + 2);
        assert_eq!(widen(u32::MAX, near), (2 << 32) + u64::from(u32::MAX));
        assert_eq!(widen(900, 850), 900);
    }
}
