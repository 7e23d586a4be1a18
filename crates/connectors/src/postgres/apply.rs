//! Applies changes to tables by op, set-wise where that says the same as row by row.
//!
//! Changes are gathered per table ([`super::fold`]) and applied when they are many, or when something other than a row
//! comes, or at the commit. What cannot be folded or reordered (keys without one exact form, tables without a key,
//! unique values that wander between rows) is applied in order, row by row, by the same statements.

use super::client::Connection;
use super::control::{Move, Moves};
use super::destination::{PostgresDestination, Target};
use super::digits::differ_in_digits;
use super::fold::{Cells, Change, Key, Net, New, Pending, Place, is_exact, one_form, pattern_of};
use super::integrity::{Integrity, may_replicate};
use super::merge::{Mapping, columns_of, oid_of};
use super::rows::{CopyForm, Parameter, RowEncoder};
use super::slices::{self, Order};
use super::sql::ident;
use super::stage::{Batch, Count, Failed, Kind, Stage, counts, upserted};
use super::types::{COPY_HEADER, COPY_TRAILER};
use arrow_array::{Array, ArrayRef, Int32Array, RecordBatch, new_null_array};
use arrow_row::{RowConverter, SortField};
use arrow_select::interleave::interleave;
use bytes::{Bytes, BytesMut};
use futures::SinkExt;
use futures::future::{join, try_join};
use std::collections::HashSet;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use synctool_core::change::{ChangeBatch, Event, KeyRange, Op, Ops, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{CopyInSink, Statement};

/// Gathered changes are applied when they hold so many bytes.
const FLUSH_BYTES: usize = 4 << 20;
/// The first ones of a transaction so early: until then the server has nothing to do.
const FIRST_BYTES: usize = 1 << 20;
/// Row by row, so many statements travel together.
const TOGETHER: usize = 256;
/// New rows that were there already: so many times they take the slower way.
const DETOUR: u32 = 32;
/// Fewer new rows than these take the way of the others, if there are others.
const WORTH: usize = 256;
/// Encoded rows go to the server in pieces of this size.
const PIECE: usize = 128 << 10;
/// So few changes, of so many bytes, travel as arrays: that needs one answer of the server where COPY needs two, and the
/// staging table more.
const FEW: usize = 128;
const LITTLE: usize = 256 << 10;
/// A table is loaded as long as there was a fresh batch among so many.
const LOADING: u32 = 1_000;
/// It may be that the first fresh one comes after so many.
const EARLY: u32 = 100;
/// So many keys are remembered at most while it is loaded, and before.
const KNOWN: usize = 250_000;
const FEW_KNOWN: usize = 25_000;

/// Applies the changes of a direct plan.
pub(super) struct Applier {
    destination: PostgresDestination,
    tables: Vec<Table>,
    may_replicate: bool,
    /// How a transaction begins, and what it begins with.
    open: &'static str,
    begin: Option<&'static str>,
    begun: bool,
    applied: Applied,
    /// All that a transaction does, if that is so little that it goes with its commit.
    last: Option<Last>,
    /// How a transaction is made of one statement, and under which settings.
    whole: Option<(Moves, Vec<&'static str>)>,
}

/// How a transaction begins, and what it does.
struct Last {
    opening: Option<String>,
    asks: Vec<Ask>,
    /// What does all of it together with the move of the partition, where that is possible.
    whole: Option<Statement>,
    /// What that is, by table, in case it has to be done in another way.
    taken: Vec<(usize, Taken)>,
}

/// What a statement does with its rows.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// None of them is there.
    New,
    Put,
    Update,
    Delete,
}

/// A statement with its rows.
struct Ask {
    table: usize,
    name: TableId,
    way: Way,
    statement: Statement,
    arrays: Vec<Parameter>,
}

/// What was gathered for a table, and the rows of it that are new as far as is known.
struct Taken {
    pending: Pending,
    new: Vec<Net>,
}

/// The statements of a table that the server has prepared.
#[derive(Default)]
struct Prepared {
    staged: Option<Statement>,
    values: Option<Statement>,
    straight: Option<Statement>,
    insert: Option<Statement>,
    whole: Option<Statement>,
    upsert: Option<Statement>,
    update: Option<Statement>,
    delete: Option<Statement>,
}

struct Table {
    target: Target,
    /// The table as the source calls it.
    source: TableId,
    stage: Stage,
    prepared: Prepared,
    staged: bool,
    made: bool,
    /// Whether the transaction has applied some.
    flushed: bool,
    number: usize,
    keys: Option<RowConverter>,
    /// Whether equal keys have equal bytes.
    exact: bool,
    /// Whether an order of our own could break a unique index in between.
    fragile: bool,
    /// Whether the key has a unique index that an upsert can go by.
    unique: bool,
    /// The columns of its other unique indexes, quoted.
    others: Vec<Vec<String>>,
    /// How many times new rows do not go straight into the table.
    detour: u32,
    /// While the table is loaded beside its log (for so many batches more): the keys that the log brought before its chunk.
    loading: u32,
    known: HashSet<Key>,
    /// The columns of the key in which ranges are cut by the bytes of texts.
    by_bytes: Vec<String>,
    /// Columns of the key that are ordered otherwise than ranges are, and what stands for them there.
    reordered: Vec<(String, String)>,
    pending: Pending,
}

impl Applier {
    pub(super) async fn open(
        destination: &PostgresDestination,
        session: &Connection,
        targets: Vec<Target>,
        sources: Vec<(TableId, Vec<String>)>,
    ) -> Result<Self> {
        let may_replicate = may_replicate(&**session, destination.version).await?;
        let mut applier = Applier {
            destination: destination.clone(),
            tables: Vec::with_capacity(targets.len()),
            may_replicate,
            open: "BEGIN",
            begin: None,
            begun: false,
            applied: Applied::default(),
            last: None,
            whole: None,
        };
        for (target, source) in targets.into_iter().zip(sources) {
            let number = applier.tables.len();
            let table = applier.table(session, target, source, number).await?;
            applier.tables.push(table);
        }
        Ok(applier)
    }

    /// `source` is its name there, and in which columns ranges of its key are cut by the bytes of texts.
    async fn table(
        &mut self,
        session: &Connection,
        mut target: Target,
        (source, by_bytes): (TableId, Vec<String>),
        number: usize,
    ) -> Result<Table> {
        let (oid, _) = oid_of(&**session, &target.table)
            .await?
            .ok_or_else(|| Error::gone_at_destination(&target.table))?;
        let existing = columns_of(&**session, oid).await?;
        // By the digits that its columns keep now, whoever made or altered them: what they would round is refused.
        for (column, ty) in target.schema.columns.iter().zip(&mut target.types) {
            let there = existing.iter().find(|e| e.name == column.name);
            if let Some(there) = there.filter(|e| differ_in_digits(&e.type_name, ty)) {
                ty.clone_from(&there.type_name);
            }
        }
        let mapping = Mapping::new(&target.table, &target.schema, &target.types, &existing)?;
        mapping.check_updatable(&target.table)?;
        let integrity = Integrity::of(&**session, oid).await?;
        // Switching triggers off covers deferring.
        match (integrity.statement(self.may_replicate, &target.table)?, self.begin) {
            (Some(how), None) => self.begin = Some(how),
            (Some(how), Some(_)) if self.may_replicate => self.begin = Some(how),
            _ => {}
        }
        let facts = session
            .query_one(
                "SELECT (SELECT count(*) FROM pg_catalog.pg_index WHERE indrelid = $1 AND (indisunique OR indisexclusion)), \
                 (SELECT r.relkind = 'r' AND NOT r.relhasrules FROM pg_catalog.pg_class r WHERE r.oid = $1) \
                 AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid \
                   AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indnkeyatts = cardinality($2::text[]) \
                   AND NOT EXISTS (SELECT FROM pg_catalog.generate_series(0, i.indnkeyatts - 1) AS k(place) \
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = i.indkey[k.place] \
                     WHERE a.attname::text <> ALL ($2)))",
                &[&oid, &target.schema.key],
            )
            .await
            .map_err(|e| session.error(e, "reading the table's indexes"))?;
        let reordered = reordered(session, oid, &target, &by_bytes).await?;
        let keys = target.schema.key_indices()?;
        let keys: Vec<&Column> = keys.iter().map(|&i| &target.schema.columns[i]).collect();
        let fields = keys.iter().map(|c| SortField::new(c.arrow_type())).collect();
        Ok(Table {
            stage: Stage::new(&target, &mapping, number)?,
            prepared: Prepared::default(),
            exact: keys.iter().all(|c| is_exact(c)) && !mapping.key.iter().any(|p| p.folds),
            fragile: facts.get::<_, i64>(0) > 1,
            unique: facts.get(1),
            others: match facts.get::<_, i64>(0) > 1 {
                true => other_uniques(session, oid, &target.schema.key).await?,
                false => Vec::new(),
            },
            keys: if keys.is_empty() {
                None
            } else {
                Some(RowConverter::new(fields).map_err(arrow)?)
            },
            target,
            source,
            staged: false,
            made: false,
            flushed: false,
            number,
            detour: 0,
            loading: EARLY,
            known: HashSet::new(),
            by_bytes,
            reordered,
            pending: Pending::default(),
        })
    }

    /// Takes a table in its new shape. What is known of its keys stays as long as they look alike.
    async fn reopen(&mut self, session: &Connection, i: usize, target: Target) -> Result<()> {
        let table = &self.tables[i];
        let (source, number) = ((table.source.clone(), table.by_bytes.clone()), table.number);
        let mut new = self.table(session, target, source, number).await?;
        let old = &mut self.tables[i];
        if key_types(&new.target.schema)? == key_types(&old.target.schema)? {
            (new.loading, new.known) = (old.loading, std::mem::take(&mut old.known));
        }
        self.tables[i] = new;
        Ok(())
    }

    fn index(&self, table: &TableId) -> Result<usize> {
        self.tables
            .iter()
            .position(|t| {
                t.source == *table
                    || t.target.table == *table
                    || (table.schema.is_none() && t.target.table == self.destination.qualified(table))
            })
            .ok_or_else(|| Error::bug(format!("changes of {table}, which is not in the plan")))
    }

    /// How transactions begin; one of a single table may be one statement with its move, under these settings.
    pub(super) fn commits_by(&mut self, moves: &Moves, open: &'static str, settings: Vec<&'static str>) {
        self.open = open;
        self.whole = Some((moves.clone(), settings));
    }

    /// The statements that begin the transaction, for whoever sends the first one of it; `None` once it has begun.
    fn opening(&mut self) -> Option<String> {
        let first = !std::mem::replace(&mut self.begun, true);
        first.then(|| match self.begin {
            Some(statement) => format!("{}; {statement}", self.open),
            None => self.open.to_owned(),
        })
    }

    async fn begin(&mut self, session: &Connection) -> Result<()> {
        match self.opening() {
            Some(opening) => run(session, &opening).await,
            None => Ok(()),
        }
    }

    /// Takes one event. The transaction begins with the first that has something to do.
    pub(super) async fn write(&mut self, session: &Connection, event: Event) -> Result<()> {
        match event {
            Event::Rows(batch) => {
                let i = self.index(&batch.table)?;
                self.adopt(session, i, &batch.rows).await?;
                self.gather(session, i, &batch).await
            }
            Event::Net { table, remove, insert } => {
                let i = self.index(&table)?;
                for (rows, op) in [(remove, Op::Delete), (insert, Op::Upsert)] {
                    self.adopt(session, i, &rows).await?;
                    let batch = ChangeBatch::new(table.clone(), rows, Ops::All(op), None, None, Default::default())?;
                    self.gather(session, i, &batch).await?;
                }
                Ok(())
            }
            Event::ReplaceRange { table, range, rows } => {
                self.begin(session).await?;
                let i = self.index(&table)?;
                self.adopt(session, i, &rows).await?;
                self.replace(session, i, &range, rows).await
            }
            Event::Truncate {
                tables,
                restart_identity,
                ..
            } => {
                self.begin(session).await?;
                self.truncate(session, &tables, restart_identity).await
            }
            Event::Schema(change) => {
                self.begin(session).await?;
                self.reshape(session, change).await
            }
            Event::Raw { .. } => Err(Error::bug("changes do not come undecoded")),
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) | Event::Boundary { .. } => Ok(()),
        }
    }

    /// Applies what is left before a commit; says what was done since the last one. If the transaction does nothing but put
    /// a few new rows, and nothing but one move comes with its commit (`alone`), they are for [`Applier::send_last`].
    pub(super) async fn finish(&mut self, session: &Connection, alone: bool) -> Result<Applied> {
        self.last = None;
        let mut little = Vec::new();
        for i in 0..self.tables.len() {
            match self.take(i) {
                Some(taken) if self.tables[i].is_little(&taken.pending, &taken.new) => little.push((i, taken)),
                Some(taken) => {
                    self.send(session, std::mem::take(&mut little)).await?;
                    self.apply(session, i, taken).await?;
                }
                None => {}
            }
        }
        let all_new = little.iter().all(|(_, taken)| taken.pending.nets.is_empty());
        if alone && !self.begun && !little.is_empty() && all_new {
            let mut asks = Vec::with_capacity(little.len());
            for (i, taken) in &little {
                let (table, rows) = (&mut self.tables[*i], taken.new.len() as u64);
                asks.extend(table.ask(session, taken, Way::New).await?);
                self.applied += table.booked(Applied::inserts(rows));
            }
            let whole = match (little.as_slice(), &self.whole, self.begin) {
                ([(i, _)], Some((moves, settings)), None) => self.tables[*i].whole(session, moves, settings).await?,
                _ => None,
            };
            self.last = Some(Last {
                opening: self.opening(),
                asks,
                whole,
                taken: little,
            });
        } else {
            self.send(session, little).await?;
            self.begin(session).await?;
        }
        // Only now: what was staged earlier in the transaction is still there until its end.
        for table in &mut self.tables {
            (table.staged, table.flushed) = (false, false);
        }
        self.begun = false;
        Ok(std::mem::take(&mut self.applied))
    }

    /// Sends the whole transaction but its end, if [`Applier::finish`] left it: what is polled next goes behind it. What is
    /// refused as a conflict is to be done again ([`Applier::again`]).
    pub(super) async fn send_last(&self, session: &Connection) -> Result<(), Failed> {
        match &self.last {
            Some(last) => ask_all(session, last.opening.as_deref(), &last.asks).await.map(drop),
            None => Ok(()),
        }
    }

    /// The statement that is the whole transaction, its parameters behind those of the move, and its table; if
    /// [`Applier::finish`] left one.
    pub(super) fn whole(&self) -> Option<(&Statement, &[Parameter], &TableId)> {
        let last = self.last.as_ref()?;
        let ask = last.asks.first()?;
        Some((last.whole.as_ref()?, &ask.arrays, &ask.name))
    }

    /// Takes back a transaction that was refused, as where a row was there already, to do it the longer way. `false` if there
    /// is none.
    pub(super) fn again(&mut self) -> bool {
        let Some(last) = self.last.take() else { return false };
        for (i, Taken { mut pending, new }) in last.taken {
            pending.nets.extend(new);
            (self.tables[i].pending, self.tables[i].detour) = (pending, DETOUR);
        }
        true
    }

    /// Forgets what was gathered; the transaction is gone, and with it staging tables that it made.
    pub(super) fn rolled_back(&mut self) {
        self.begun = false;
        self.applied = Applied::default();
        self.last = None;
        for t in &mut self.tables {
            t.pending = Pending::default();
            (t.staged, t.made, t.flushed) = (false, false, false);
        }
    }

    /// Drops the staging tables, for whoever has the session next.
    pub(super) async fn clear_away(&mut self, session: &Connection) -> Result<()> {
        if self.tables.iter().any(|t| t.made) {
            run(session, "DISCARD TEMP").await?;
            self.rolled_back();
        }
        Ok(())
    }

    async fn gather(&mut self, session: &Connection, i: usize, batch: &ChangeBatch) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        if batch.fresh {
            self.tables[i].loading = LOADING;
        }
        let whole = batch.check_whole();
        whole.map_err(|e| e.at("table", self.tables[i].target.table.to_string()))?;
        let mut split = None;
        let mut row = 0;
        while row < batch.len() {
            let table = &mut self.tables[i];
            let (new, old) = match split {
                Some(places) => places,
                None => *split.insert(table.pending.add(batch)),
            };
            let keys = table.keys_of(&batch.rows)?;
            let old_keys = match &batch.before {
                Some(before) => table.keys_of(before)?,
                None => None,
            };
            let mut full = false;
            while row < batch.len() && !full {
                let change = table.change(batch, row, new, old, keys.as_deref(), old_keys.as_deref())?;
                if !table.fold(change, keys.as_ref().map(|k| &k[row]))? {
                    break;
                }
                row += 1;
                let enough = if table.flushed { FLUSH_BYTES } else { FIRST_BYTES };
                full = table.pending.bytes >= enough && row == batch.len();
            }
            if row < batch.len() || full {
                // The next change must see what the gathered ones did.
                self.flush(session, i).await?;
                split = None;
            }
        }
        Ok(())
    }

    /// Applies what was gathered for a table.
    async fn flush(&mut self, session: &Connection, i: usize) -> Result<()> {
        match self.take(i) {
            Some(taken) if self.tables[i].is_little(&taken.pending, &taken.new) => {
                self.send(session, vec![(i, taken)]).await
            }
            Some(taken) => self.apply(session, i, taken).await,
            None => Ok(()),
        }
    }

    /// What was gathered for a table, if anything was.
    fn take(&mut self, i: usize) -> Option<Taken> {
        let table = &mut self.tables[i];
        let mut pending = std::mem::take(&mut table.pending);
        if pending.changes.is_empty() {
            return None;
        }
        table.flushed = true;
        let new = match table.in_order(&pending) {
            true => Vec::new(),
            false => table.take_new(&mut pending),
        };
        Some(Taken { pending, new })
    }

    /// Sends few changes of some tables, all in one round trip.
    async fn send(&mut self, session: &Connection, little: Vec<(usize, Taken)>) -> Result<()> {
        let (mut asks, mut written, mut fragile) = (Vec::new(), Vec::new(), Vec::new());
        for (i, taken) in little {
            let table = &mut self.tables[i];
            if table.fragile {
                fragile.push((i, taken));
                continue;
            }
            for way in [Way::Delete, Way::Update, Way::Put] {
                asks.extend(table.ask(session, &taken, way).await?);
            }
            written.push((i, (taken.pending.changes.len() - taken.pending.done) as u64));
        }
        if !written.is_empty() {
            let opening = self.opening();
            let done = ask_all(session, opening.as_deref(), &asks).await?;
            for (i, written) in written {
                let mut applied = Applied {
                    written,
                    ..Applied::default()
                };
                let ours = asks.iter().zip(&done).filter(|(ask, _)| ask.table == i);
                ours.for_each(|(_, done)| applied += *done);
                applied.balance()?;
                self.applied += self.tables[i].booked(applied);
            }
        }
        for (i, taken) in fragile {
            self.apply(session, i, taken).await?;
        }
        Ok(())
    }

    /// Applies changes of a table, however many they are.
    async fn apply(&mut self, session: &Connection, i: usize, taken: Taken) -> Result<()> {
        let Taken { mut pending, new } = taken;
        let mut opening = self.opening();
        let table = &mut self.tables[i];
        if !table.in_order(&pending) {
            match table.straight(session, &pending, &new, &mut opening).await? {
                Some(applied) => {
                    pending.done = new.len();
                    self.applied += table.booked(applied);
                    if pending.nets.is_empty() && pending.done == pending.changes.len() {
                        return Ok(());
                    }
                }
                None => pending.nets.extend(new),
            }
            if opening.is_none() && !table.fragile && table.is_little(&pending, &[]) {
                let new = Vec::new();
                return Box::pin(self.send(session, vec![(i, Taken { pending, new })])).await;
            }
            if table.fragile {
                run(session, &after(&mut opening, "SAVEPOINT synctool_apply")).await?;
            }
            match table.set_wise(session, &pending, &mut opening).await {
                Ok(applied) => {
                    if table.fragile {
                        run(session, "RELEASE SAVEPOINT synctool_apply").await?;
                    }
                    self.applied += self.tables[i].booked(applied);
                    return Ok(());
                }
                Err(Failed::Conflict(_)) if table.fragile => {
                    run(
                        session,
                        "ROLLBACK TO SAVEPOINT synctool_apply; RELEASE SAVEPOINT synctool_apply",
                    )
                    .await?;
                    // What the staging table held or whether it was made is undone too.
                    (table.staged, table.made) = (false, false);
                }
                // Partitions that run beside each other may write the same key: its index is the only one, and what was
                // staged for a key is one row.
                Err(Failed::Conflict(e)) if table.target.own || (table.unique && !table.fragile) => {
                    let what = format!("another partition wrote into {} just now", table.target.table);
                    return Err(Error::new(code::CONFLICT, what).caused_by(e));
                }
                Err(e) => return Err(e.error(&table.target.table)),
            }
        }
        let applied = table.row_by_row(session, &pending, &mut opening).await?;
        self.applied += self.tables[i].booked(applied);
        Ok(())
    }

    async fn replace(&mut self, session: &Connection, i: usize, range: &KeyRange, rows: RecordBatch) -> Result<()> {
        if self.tables[i].keys.is_none() {
            return Err(Error::new(
                code::KEY_MISSING,
                format!(
                    "{} has no key, so no range of it can be replaced",
                    self.tables[i].target.table
                ),
            ));
        }
        self.flush(session, i).await?;
        let table = Arc::new(self.tables[i].target.table.clone());
        let batch = ChangeBatch::new(table, rows, Ops::All(Op::Upsert), None, None, Default::default())?;
        let t = &mut self.tables[i];
        let mut pending = Pending::default();
        if !batch.is_empty() {
            let (new, old) = t.pending.add(&batch);
            let keys = t.keys_of(&batch.rows)?;
            for row in 0..batch.len() {
                let change = t.change(&batch, row, new, old, keys.as_deref(), None)?;
                t.pending.changes.push(change);
            }
            pending = std::mem::take(&mut t.pending);
        }
        t.put_staged(session, &pending, &pending.changes, &[], &mut None)
            .await
            .map_err(|e| e.error(&t.target.table))?;
        let named = |c: &str| match t.reordered.iter().find(|(name, _)| name == c) {
            Some((_, term)) => term.clone(),
            None => ident(c),
        };
        let condition = slices::condition(range, named)?;
        let ahead = KeyRange {
            upper: None,
            ..range.clone()
        };
        let ahead = slices::condition(&ahead, named)?;
        let removed = counts(session, &t.stage.delete_others(&condition))
            .await
            .map_err(|e| e.error(&t.target.table))?;
        self.applied.removed += removed.affected[0];
        // What a row of the range is to have may stand in a row of a range that is replaced later; in one that was, it is a
        // conflict.
        for unique in &t.others {
            if let Some(statement) = t.stage.give_way(unique, &ahead) {
                let removed = counts(session, &statement)
                    .await
                    .map_err(|e| e.error(&t.target.table))?;
                self.applied.removed += removed.affected[0];
            }
        }
        // Rows of the range are gone that could have stood in the way; the rest is an ordinary upsert.
        let t = &mut self.tables[i];
        t.pending = pending;
        let refolded: Vec<Change> = std::mem::take(&mut t.pending.changes);
        let keys = t.keys_of(&batch.rows)?;
        for (row, change) in refolded.into_iter().enumerate() {
            t.fold(change, keys.as_ref().map(|k| &k[row]))?;
        }
        self.flush(session, i).await
    }

    /// Empties tables. A log lists every table that was emptied, those by CASCADE too, so nothing that is not listed is:
    /// where a table of the destination's own refers to one, rows are deleted instead.
    async fn truncate(&mut self, session: &Connection, tables: &[Arc<TableId>], restart: bool) -> Result<()> {
        let mut names = Vec::new();
        for id in tables {
            // Tables that this plan does not write are none of its business.
            if let Ok(i) = self.index(id) {
                self.flush(session, i).await?;
                names.push(super::ddl::quoted(&self.tables[i].target.table));
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        let list = names.join(", ");
        let fail = |e| session.error(e, "emptying tables").at("table", list.clone());
        run(session, "SAVEPOINT synctool_truncate").await?;
        let identity = if restart { " RESTART IDENTITY" } else { "" };
        match session.batch_execute(&format!("TRUNCATE TABLE {list}{identity}")).await {
            Ok(()) => return run(session, "RELEASE SAVEPOINT synctool_truncate").await,
            Err(e) if e.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {}
            Err(e) => return Err(fail(e)),
        }
        run(
            session,
            "ROLLBACK TO SAVEPOINT synctool_truncate; RELEASE SAVEPOINT synctool_truncate",
        )
        .await?;
        for name in &names {
            session
                .batch_execute(&format!("DELETE FROM {name}"))
                .await
                .map_err(fail)?;
            if restart {
                let rows = session
                    .query(
                        "SELECT 'ALTER SEQUENCE ' || pg_catalog.pg_get_serial_sequence($1, attname) || ' RESTART' \
                         FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped \
                         AND pg_catalog.pg_get_serial_sequence($1, attname) IS NOT NULL",
                        &[name],
                    )
                    .await
                    .map_err(fail)?;
                for row in rows {
                    session.batch_execute(row.get(0)).await.map_err(fail)?;
                }
            }
        }
        Ok(())
    }

    /// A changed shape, as far as the log's policy lets it go: new columns are added, wider types taken, and columns that
    /// rows do not bring any more may be NULL.
    async fn reshape(&mut self, session: &Connection, change: SchemaChange) -> Result<()> {
        let i = self.index(&change.table)?;
        self.flush(session, i).await?;
        let mut target = self.tables[i].target.clone();
        let name = super::ddl::quoted(&target.table);
        let there = super::catalog::find(session, &target.table, "public").await?;
        let there = |column: &str| there.as_ref().and_then(|t| t.schema.column(column)).cloned();
        for gone in &change.difference.extra {
            if there(&gone.name).is_some_and(|c| !c.nullable) {
                let sql = format!("ALTER TABLE {name} ALTER COLUMN {} DROP NOT NULL", ident(&gone.name));
                let done = session.batch_execute(&sql).await;
                done.map_err(|e| session.error(e, "altering a column").at("column", gone.name.clone()))?;
            }
            let planned = target.schema.column_mut(&gone.name);
            planned.into_iter().for_each(|c| c.nullable = true);
        }
        for (_, want) in &change.difference.retyped {
            let Some(at) = target.schema.columns.iter().position(|c| c.name == want.name) else {
                continue;
            };
            let type_name = self.destination.type_of(want);
            let stored = want.clone().with_source_type(type_name.clone());
            if there(&want.name).is_some_and(|have| !want.ty.fits(&have.ty) || super::ddl::rounds(&have, &stored)) {
                let sql = format!("ALTER TABLE {name} ALTER COLUMN {} TYPE {type_name}", ident(&want.name));
                let done = session.batch_execute(&sql).await;
                done.map_err(|e| session.error(e, "altering a column").at("column", want.name.clone()))?;
            }
            target.schema.columns[at] = want.clone();
            target.types[at] = type_name;
        }
        self.reopen(session, i, target).await?;
        self.add_columns(session, i, change.difference.missing).await
    }

    /// Follows columns that batches bring and the plan did not know.
    async fn adopt(&mut self, session: &Connection, i: usize, rows: &RecordBatch) -> Result<()> {
        let known = &self.tables[i].target.schema.columns;
        let schema = rows.schema();
        let names = schema.fields().iter().map(|f| f.name());
        if known.iter().map(|c| &c.name).eq(names) {
            return Ok(());
        }
        let columns = TableSchema::from_arrow_metadata(&schema)
            .filter(|columns| columns.len() >= known.len() && columns.iter().zip(known).all(|(c, k)| c.name == k.name))
            .ok_or_else(|| {
                Error::bug(format!(
                    "rows of {} do not have its columns",
                    self.tables[i].target.table
                ))
            })?;
        let new = columns[known.len()..].to_vec();
        self.add_columns(session, i, new).await
    }

    /// Refuses a column that is there already and does not take every value of this type.
    async fn check_type_there(&self, session: &Connection, i: usize, column: &Column, wanted: &str) -> Result<()> {
        let (table, name) = (&self.tables[i].target.table, &column.name);
        let there = super::catalog::find(session, table, "public").await?;
        let Some(have) = there.as_ref().and_then(|t| t.schema.column(name)) else {
            return Ok(());
        };
        let have_name = have.source_type.as_deref().unwrap_or_default();
        let row = session
            .query_one(
                "SELECT pg_catalog.to_regtype($1) = pg_catalog.to_regtype($2)",
                &[&have_name, &wanted],
            )
            .await
            .map_err(|e| session.error(e, "looking at a column"))?;
        let is_native = |c: &Column| c.ty == ColumnType::Native;
        if row.get::<_, Option<bool>>(0) != Some(false)
            && (is_native(have) || is_native(column) || column.ty.fits(&have.ty))
        {
            return Ok(());
        }
        Err(Error::new(
            code::UNSUPPORTED,
            format!(
                "{table} changed its shape: column {name} is {have_name} at the destination, and {wanted} in the log"
            ),
        )
        .hint(format!(
            "ALTER TABLE {table} DROP COLUMN {name} at the destination, then run again: its values are read anew"
        )))
    }

    async fn add_columns(&mut self, session: &Connection, i: usize, new: Vec<Column>) -> Result<()> {
        self.begin(session).await?;
        self.flush(session, i).await?;
        let mut target = self.tables[i].target.clone();
        let name = super::ddl::quoted(&target.table);
        for mut c in new {
            if target.schema.column(&c.name).is_some() {
                continue;
            }
            super::sql::check_ident(&c.name)?;
            let type_name = self.destination.type_of(&c);
            self.check_type_there(session, i, &c, &type_name).await?;
            session
                .batch_execute(&format!(
                    "ALTER TABLE {name} ADD COLUMN IF NOT EXISTS {} {type_name}",
                    super::sql::ident(&c.name)
                ))
                .await
                .map_err(|e| session.error(e, "adding a column").at("column", c.name.clone()))?;
            // Rows from before have no value for it.
            c.nullable = true;
            target.schema.columns.push(c);
            target.types.push(type_name);
        }
        self.reopen(session, i, target).await
    }
}

/// The columns of a table's unique indexes besides that of its key, quoted.
async fn other_uniques(session: &Connection, oid: u32, key: &[String]) -> Result<Vec<Vec<String>>> {
    const SQL: &str = "
        SELECT ARRAY(SELECT a.attname::text
                     FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                     WHERE k.place <= i.indnkeyatts ORDER BY k.place)
        FROM pg_catalog.pg_index i
        WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL";
    let rows = session
        .query(SQL, &[&oid])
        .await
        .map_err(|e| session.error(e, "reading the table's indexes"))?;
    let columns = rows.iter().map(|r| r.get::<_, Vec<String>>(0));
    let others = columns.filter(|columns| !key.iter().all(|k| columns.contains(k)));
    Ok(others
        .map(|columns| columns.iter().map(|c| ident(c)).collect())
        .collect())
}

/// The columns of a table's key that are ordered otherwise than its ranges are, and what stands for them there.
async fn reordered(
    session: &Connection,
    oid: u32,
    target: &Target,
    by_bytes: &[String],
) -> Result<Vec<(String, String)>> {
    let key = target.schema.key_indices()?;
    let is_text = |i: usize| {
        matches!(
            target.schema.columns[i].ty,
            ColumnType::Text { .. } | ColumnType::Char { .. }
        )
    };
    if by_bytes.is_empty() && !key.iter().any(|&i| is_text(i)) {
        return Ok(Vec::new());
    }
    let orders = slices::Orders::of(session, oid, &target.schema.key).await?;
    let mut reordered = Vec::new();
    for i in key {
        let name = &target.schema.columns[i].name;
        let order = match by_bytes.contains(name) {
            true if orders.by_bytes.contains(name) => Order::Own,
            true => Order::Bytes,
            false if !is_text(i) || orders.by_default.contains(name) => Order::Own,
            false => Order::Database,
        };
        if order != Order::Own {
            reordered.push((name.clone(), order.term(&ident(name), &target.types[i])));
        }
    }
    Ok(reordered)
}

fn key_types(schema: &TableSchema) -> Result<Vec<&ColumnType>> {
    let key = schema.key_indices()?;
    Ok(key.into_iter().map(|i| &schema.columns[i].ty).collect())
}

fn arrow(e: arrow_schema::ArrowError) -> Error {
    Error::bug(format!("gathering changes: {e}"))
}

impl Table {
    /// The keys of rows, in a form in which equal keys have equal bytes.
    fn keys_of(&self, rows: &RecordBatch) -> Result<Option<Vec<Key>>> {
        let Some(converter) = &self.keys else { return Ok(None) };
        let columns: Vec<ArrayRef> = self
            .stage
            .found_by
            .iter()
            .map(|&i| one_form(&self.target.schema.columns[i], rows.column(i)))
            .collect();
        let keys = converter.convert_columns(&columns).map_err(arrow)?;
        Ok(Some(keys.iter().map(|k| k.as_ref().into()).collect()))
    }

    fn change(
        &self,
        batch: &ChangeBatch,
        row: usize,
        new: u32,
        old: u32,
        keys: Option<&[Key]>,
        old_keys: Option<&[Key]>,
    ) -> Result<Change> {
        let here = (new, row as u32);
        let there = (old, row as u32);
        let cells = match &batch.present {
            Some(p) if (0..batch.rows.num_columns()).any(|c| !p.has(c, row)) => Cells::Mixed(
                (0..batch.rows.num_columns())
                    .map(|c| p.has(c, row).then_some(here))
                    .collect(),
            ),
            _ => Cells::Whole(here),
        };
        let op = batch.ops.get(row);
        let kind = match op {
            Op::Insert | Op::Upsert => Kind::Put,
            Op::Update => Kind::Update,
            Op::Delete => Kind::Delete,
        };
        let (Some(keys), false) = (keys, kind == Kind::Put) else {
            if self.keys.is_none() && kind != Kind::Put && batch.before.is_none() {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!(
                        "{} has no key, and an update or delete of it does not bring the whole old row",
                        self.target.table
                    ),
                )
                .hint("give it a primary key, or REPLICA IDENTITY FULL at the source"));
            }
            let old = if kind == Kind::Put { here } else { there };
            let new = match op {
                Op::Insert | Op::Upsert if batch.fresh => New::Loaded,
                Op::Insert => New::Inserted,
                _ => New::No,
            };
            return Ok(Change { kind, old, cells, new });
        };
        let has_key = |rows: &RecordBatch| self.stage.found_by.iter().all(|&i| rows.column(i).is_valid(row));
        // The old row is given where the key may have changed; one without a key says that it did not.
        let moved = old_keys.is_some_and(|o| o[row] != keys[row]) && batch.before.as_ref().is_some_and(has_key);
        let (kind, old) = match kind {
            Kind::Update if moved => (Kind::Move, there),
            Kind::Delete if !has_key(&batch.rows) && moved => (kind, there),
            _ => (kind, here),
        };
        Ok(Change {
            kind,
            old,
            cells,
            new: New::No,
        })
    }

    /// What was done to the table, apart from the user's rows if it is our own.
    fn booked(&self, applied: Applied) -> Applied {
        match self.target.own {
            true => applied.as_own(),
            false => applied,
        }
    }

    /// Gathers a change. `false` if the gathered ones must be applied first.
    fn fold(&mut self, change: Change, key: Option<&Key>) -> Result<bool> {
        let Some(key) = key.filter(|_| self.exact) else {
            self.pending.changes.push(change);
            return Ok(true);
        };
        if change.kind != Kind::Move {
            self.pending.fold(change, key, self.stage.columns());
            return Ok(true);
        }
        let (batch, row) = change.old;
        let old = self
            .keys_of(&self.pending.batches[batch as usize].slice(row as usize, 1))?
            .and_then(|mut k| k.pop())
            .ok_or_else(|| Error::bug("a key changed in a table without a key"))?;
        Ok(self.pending.fold_move(change, old, key))
    }

    /// Writes changes into the staging table; `first` of `many` flags begin with the first change.
    async fn put_staged(
        &mut self,
        session: &Connection,
        pending: &Pending,
        changes: &[Change],
        many: &[bool],
        opening: &mut Option<String>,
    ) -> Result<Vec<Vec<bool>>, Failed> {
        let setup = self.made_ready(session, opening).await?;
        let (batch, patterns) = self.staged_rows(pending, changes, many)?;
        let rows = (0..batch.num_rows()).map(|row| (0, row));
        let copy = prepared(session, &mut self.prepared.staged, &self.stage.copy, &[]).await?;
        let batches = std::slice::from_ref(&batch);
        fill(session, &setup, copy, &self.stage.encoder, batches, rows).await?;
        Ok(patterns)
    }

    /// Writes whole rows into the staging table, and nothing beside their values.
    async fn put_values(
        &mut self,
        session: &Connection,
        pending: &Pending,
        changes: &[Change],
        opening: &mut Option<String>,
    ) -> Result<(), Failed> {
        let setup = self.made_ready(session, opening).await?;
        let rows = whole_rows(changes).into_iter();
        let copy = prepared(session, &mut self.prepared.values, &self.stage.copy_values, &[]).await?;
        fill(session, &setup, copy, &self.stage.values, &pending.batches, rows).await
    }

    /// Makes the staging table; says what the server is still to be told before rows come.
    async fn made_ready(&mut self, session: &Connection, opening: &mut Option<String>) -> Result<String, Failed> {
        let mut setup = match (self.made, self.staged) {
            (false, _) => after(opening, &self.stage.create()),
            (true, true) => after(opening, &self.stage.clear()),
            (true, false) => opening.take().unwrap_or_default(),
        };
        if !self.made {
            // What is prepared later needs the table.
            counts(session, &setup).await?;
            setup.clear();
        }
        (self.made, self.staged) = (true, true);
        Ok(setup)
    }

    /// Whether changes have to be applied one after the other.
    fn in_order(&self, pending: &Pending) -> bool {
        match self.keys {
            None => pending.changes.iter().any(|c| c.kind != Kind::Put),
            Some(_) => !self.exact,
        }
    }

    /// Whether changes are few, each the only one of its key, and none needs the staging table; where another unique index
    /// could be broken on the way, only new rows.
    fn is_little(&self, pending: &Pending, new: &[Net]) -> bool {
        let count = pending.nets.len() + new.len();
        let all = pending.changes.len() - pending.done;
        let bytes = pending.bytes / pending.changes.len().max(1) * count;
        let plain = |net: &Net| match net.change.kind {
            Kind::Put | Kind::Update => !net.many && net.change.cells.is_whole(),
            Kind::Delete => !net.many,
            Kind::Replace | Kind::Move => false,
        };
        self.stage.few.is_some()
            && self.unique
            && count == all
            && count <= FEW
            && bytes <= LITTLE
            && (!self.fragile || pending.nets.is_empty())
            && pending.nets.iter().all(plain)
    }

    /// The statement for those of few changes that go this way; `None` if there is nothing to do.
    async fn ask(&mut self, session: &Connection, taken: &Taken, way: Way) -> Result<Option<Ask>> {
        let kind = match way {
            Way::New | Way::Put => Kind::Put,
            Way::Update => Kind::Update,
            Way::Delete => Kind::Delete,
        };
        let changes = taken.pending.nets.iter().chain(&taken.new).map(|net| &net.change);
        let changes: Vec<&Change> = changes.filter(|c| c.kind == kind).collect();
        let few = self.stage.few.as_ref();
        let few = few.ok_or_else(|| Error::bug("changes have no way into their table"))?;
        let all: Vec<usize> = (0..self.stage.columns()).collect();
        let known = &mut self.prepared;
        let (statement, known, columns) = match way {
            Way::New => (Some(&few.insert), &mut known.insert, &all),
            Way::Put => (Some(&few.upsert), &mut known.upsert, &all),
            Way::Update => (few.update.as_ref(), &mut known.update, &all),
            Way::Delete => (Some(&few.delete), &mut known.delete, &self.stage.found_by),
        };
        let Some(statement) = statement.filter(|_| !changes.is_empty()) else {
            return Ok(None);
        };
        let types: Vec<Type> = columns.iter().map(|&c| few.types[c].clone()).collect();
        let statement = prepared(session, known, statement, &types).await;
        let statement = statement.map_err(|e| e.error(&self.target.table))?.clone();
        let rows: Vec<(usize, usize)> = match way {
            Way::Delete => changes.iter().map(|c| (c.old.0 as usize, c.old.1 as usize)).collect(),
            _ => whole_rows(changes),
        };
        let values = &self.stage.values;
        let arrays = values.arrays(&taken.pending.batches, &rows, columns, &few.types);
        let arrays = arrays.map_err(|e| e.at("table", self.target.table.to_string()))?;
        Ok(Some(Ask {
            table: self.number,
            name: self.target.table.clone(),
            way,
            statement,
            arrays,
        }))
    }

    /// The statement that is a whole transaction: new rows, and the move of the partition.
    async fn whole(&mut self, session: &Connection, moves: &Moves, settings: &[&str]) -> Result<Option<Statement>> {
        let Some(few) = &self.stage.few else { return Ok(None) };
        if self.prepared.whole.is_none() {
            let types: Vec<Type> = Move::TYPES.into_iter().chain(few.types.iter().cloned()).collect();
            let statement = moves.whole(&few.insert_whole, settings);
            let statement = session.prepare_typed(&statement, &types).await;
            self.prepared.whole = Some(statement.map_err(|e| session.error(e, "preparing a commit"))?);
        }
        Ok(self.prepared.whole.clone())
    }

    /// Takes out the rows that can go straight into the table.
    fn take_new(&mut self, pending: &mut Pending) -> Vec<Net> {
        if !self.unique || self.stage.straight.is_none() {
            return Vec::new();
        }
        let count = pending.changes.len();
        let most = match self.loading {
            0 => 0,
            1..=EARLY => FEW_KNOWN,
            _ => KNOWN,
        };
        let new = pending.take_new(&mut self.known, most);
        self.loading = self.loading.saturating_sub(1);
        if self.loading == 0 {
            self.known = HashSet::new();
        }
        // What the others do first may be what makes room for the new ones.
        let apart = !self.fragile && new.len() >= WORTH && pending.changes.iter().all(|c| c.kind != Kind::Move);
        if self.detour == 0 && (new.len() == count || apart) {
            return new;
        }
        self.detour = self.detour.saturating_sub(u32::from(!new.is_empty()));
        pending.nets.extend(new);
        Vec::new()
    }

    /// Copies rows that are new into the table itself. `None` if they have to go the other way, because one of them is
    /// there already.
    async fn straight(
        &mut self,
        session: &Connection,
        pending: &Pending,
        new: &[Net],
        opening: &mut Option<String>,
    ) -> Result<Option<Applied>> {
        let Some(copy) = self.stage.straight.as_ref().filter(|_| !new.is_empty()) else {
            return Ok(None);
        };
        let rows = whole_rows(new.iter().map(|net| &net.change));
        let (values, known) = (&self.stage.values, &mut self.prepared.straight);
        let done = copy_straight(session, known, (values, copy), pending, &rows, opening).await;
        match done {
            Ok(()) => Ok(Some(Applied::inserts(rows.len() as u64))),
            Err(Failed::Conflict(_)) => {
                run(
                    session,
                    "ROLLBACK TO SAVEPOINT synctool_straight; RELEASE SAVEPOINT synctool_straight",
                )
                .await?;
                self.detour = DETOUR;
                Ok(None)
            }
            Err(e) => Err(e.error(&self.target.table)),
        }
    }

    /// Changes as rows of the staging table, and the patterns of columns they carry; the first is the whole one.
    fn staged_rows(
        &self,
        pending: &Pending,
        changes: &[Change],
        many: &[bool],
    ) -> Result<(RecordBatch, Vec<Vec<bool>>)> {
        let columns = self.stage.columns();
        let mut patterns = vec![vec![true; columns]];
        let mut pattern_of = Vec::with_capacity(changes.len());
        for change in changes {
            let pattern = match (&change.cells, change.kind) {
                (Cells::Mixed(places), Kind::Update | Kind::Put | Kind::Replace | Kind::Move) => {
                    let pattern: Vec<bool> = places.iter().map(Option::is_some).collect();
                    patterns.iter().position(|p| *p == pattern).unwrap_or_else(|| {
                        patterns.push(pattern);
                        patterns.len() - 1
                    })
                }
                _ => 0,
            };
            pattern_of.push(pattern as i32);
        }
        let numbers = |values: Vec<i32>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let mut arrays = vec![
            numbers((0..changes.len() as i32).collect()),
            numbers(changes.iter().map(|c| c.kind as i32).collect()),
            numbers(pattern_of),
            numbers(
                (0..changes.len())
                    .map(|i| i32::from(many.get(i) == Some(&true)))
                    .collect(),
            ),
        ];
        for &i in &self.stage.found_by {
            arrays.push(self.picked(pending, i, changes.iter().map(|c| Some(c.old)))?);
        }
        for i in 0..columns {
            let cells = changes.iter().map(|c| match c.kind {
                Kind::Delete => None,
                _ => c.cells.at(i),
            });
            arrays.push(self.picked(pending, i, cells)?);
        }
        let fields = arrays
            .iter()
            .enumerate()
            .map(|(i, a)| (format!("f{i}"), a.clone(), true))
            .collect::<Vec<_>>();
        Ok((
            RecordBatch::try_from_iter_with_nullable(fields).map_err(arrow)?,
            patterns,
        ))
    }

    fn picked(&self, pending: &Pending, column: usize, cells: impl Iterator<Item = Option<Place>>) -> Result<ArrayRef> {
        let null = new_null_array(&self.target.schema.columns[column].arrow_type(), 1);
        let mut from: Vec<&dyn Array> = vec![null.as_ref()];
        from.extend(pending.batches.iter().map(|b| b.column(column).as_ref()));
        let picks: Vec<(usize, usize)> = cells
            .map(|c| c.map_or((0, 0), |(batch, row)| (batch as usize + 1, row as usize)))
            .collect();
        if picks.is_empty() {
            return Ok(null.slice(0, 0));
        }
        interleave(&from, &picks).map_err(arrow)
    }

    /// Applies the net effects in a few statements: key changes, then deletes, updates and inserts.
    async fn set_wise(
        &mut self,
        session: &Connection,
        pending: &Pending,
        opening: &mut Option<String>,
    ) -> Result<Applied, Failed> {
        let mut changes: Vec<Change> = pending
            .changes
            .iter()
            .filter(|c| c.kind == Kind::Move)
            .cloned()
            .collect();
        let moves = changes.len();
        let mut many = vec![false; moves];
        if self.keys.is_none() {
            changes.extend(pending.changes.iter().cloned());
        }
        for net in &pending.nets {
            changes.push(net.change.clone());
            many.push(net.many);
        }
        // What most batches are: whole rows to be put, each of another key.
        let puts = self.unique && self.keys.is_some() && changes.iter().all(|c| c.kind == Kind::Put);
        let rows = puts && !many.contains(&true) && changes.iter().all(|c| c.cells.is_whole());
        let patterns = match rows {
            true => {
                self.put_values(session, pending, &changes, opening).await?;
                vec![vec![true; self.stage.columns()]]
            }
            false => self.put_staged(session, pending, &changes, &many, opening).await?,
        };
        let stage = &self.stage;
        let has = |kinds: &[Kind]| changes.iter().any(|c| kinds.contains(&c.kind));
        let pat = |p: usize| format!("s.pat = {p}");

        let mut applied = Applied {
            written: (pending.changes.len() - pending.done) as u64,
            ..Applied::default()
        };
        let mut batch = Batch::default();
        if moves > 0 {
            batch.add(stage.clear_way("true"), Count::Removed);
            for (p, pattern) in patterns.iter().enumerate() {
                batch.add(stage.move_keys(pattern, &pat(p)), Count::Updated);
            }
        }
        if many.contains(&true) {
            batch.add(stage.existing(), Count::Nothing);
        }
        if has(&[Kind::Delete]) {
            batch.add(stage.delete("true"), Count::Deleted);
        }
        let upsert = (puts && patterns.len() == 1).then(|| stage.upsert());
        let patterns: &[Vec<bool>] = if upsert.is_some() { &[] } else { &patterns };
        for (p, pattern) in patterns.iter().enumerate() {
            if has(&[Kind::Update, Kind::Put]) && self.keys.is_some() {
                let update = stage.update(&[Kind::Update, Kind::Put], pattern, &pat(p));
                update.into_iter().for_each(|s| batch.add(s, Count::Updated));
            }
            if has(&[Kind::Replace]) {
                let update = stage.update(&[Kind::Replace], pattern, &pat(p));
                update.into_iter().for_each(|s| batch.add(s, Count::Nothing));
            }
        }
        if has(&[Kind::Put, Kind::Replace]) {
            for (p, pattern) in patterns.iter().enumerate() {
                batch.add(stage.insert(pattern, &pat(p)), Count::Inserted);
            }
        }
        let found = batch.run(session, &mut applied).await?;
        if let Some(upsert) = upsert {
            let (inserted, updated) = upserted(session, &upsert).await?;
            applied.inserted += inserted;
            applied.updated += updated;
        }
        // The statements count every net effect as one; where it stands for several changes, they count instead.
        for (i, net) in pending.nets.iter().enumerate().filter(|(_, n)| n.many) {
            let there = found.contains(&((moves + i) as i32));
            let counts = net.counts[usize::from(there)];
            match net.change.kind {
                Kind::Delete if there => applied.deleted -= 1,
                Kind::Put | Kind::Replace if !there => applied.inserted -= 1,
                _ => {}
            }
            applied.inserted += counts.inserted;
            applied.deleted += counts.deleted;
            applied.updated += counts.updated;
            // The last change is what the statement counted, if it changed anything.
            if there && net.last_updates && matches!(net.change.kind, Kind::Update | Kind::Put) {
                applied.updated -= 1;
            }
        }
        applied.balance()?;
        Ok(applied)
    }

    /// Applies changes one after the other.
    async fn row_by_row(
        &mut self,
        session: &Connection,
        pending: &Pending,
        opening: &mut Option<String>,
    ) -> Result<Applied> {
        let patterns = match self.put_staged(session, pending, &pending.changes, &[], opening).await {
            Ok(patterns) => patterns,
            Err(e) => return Err(e.error(&self.target.table)),
        };
        let pattern_of: Vec<usize> = pending.changes.iter().map(|c| pattern_of(c, &patterns)).collect();
        let mut applied = Applied {
            written: pending.changes.len() as u64,
            ..Applied::default()
        };
        let stage = &self.stage;
        counts(session, &stage.number())
            .await
            .map_err(|e| e.error(&self.target.table))?;
        for (from, changes) in pending.changes.chunks(TOGETHER).enumerate() {
            let mut batch = Batch::default();
            for (i, change) in changes.iter().enumerate() {
                let n = from * TOGETHER + i;
                let one = format!("s.n = {n}");
                let pattern = &patterns[pattern_of[n]];
                match change.kind {
                    Kind::Delete => batch.add(stage.delete(&one), Count::Deleted),
                    Kind::Move => {
                        batch.add(stage.clear_way(&one), Count::Removed);
                        batch.add(stage.move_keys(pattern, &one), Count::Updated);
                    }
                    Kind::Update | Kind::Put | Kind::Replace => {
                        if change.kind == Kind::Update || self.keys.is_some() {
                            let update = stage.update(&[change.kind], pattern, &one);
                            update.into_iter().for_each(|s| batch.add(s, Count::Updated));
                        }
                        if change.kind != Kind::Update {
                            batch.add(stage.insert(pattern, &one), Count::Inserted);
                        }
                    }
                }
            }
            batch
                .run(session, &mut applied)
                .await
                .map_err(|e| e.error(&self.target.table))?;
        }
        applied.balance()?;
        Ok(applied)
    }
}

impl Ask {
    /// Runs it; says what was done.
    async fn answered(&self, session: &Connection) -> Result<Applied, Failed> {
        let done = self.run(session).await;
        done.map_err(|e| Failed::from(e).at(&self.name))
    }

    async fn run(&self, session: &Connection) -> Result<Applied, tokio_postgres::Error> {
        let arrays: Vec<&(dyn ToSql + Sync)> = self.arrays.iter().map(|array| array as _).collect();
        let mut done = Applied::default();
        match self.way {
            Way::New => done.inserted = session.execute(&self.statement, &arrays).await?,
            Way::Update => done.updated = session.execute(&self.statement, &arrays).await?,
            Way::Delete => done.deleted = session.execute(&self.statement, &arrays).await?,
            Way::Put => {
                let row = session.query_one(&self.statement, &arrays).await?;
                let number = |i: usize| row.get::<_, i64>(i) as u64;
                (done.inserted, done.updated) = (number(0), number(1));
            }
        }
        Ok(done)
    }
}

/// Begins a transaction, where it has not begun, and runs statements in it, in one round trip; says what each did.
async fn ask_all(session: &Connection, opening: Option<&str>, asks: &[Ask]) -> Result<Vec<Applied>, Failed> {
    let begun = async {
        match opening {
            Some(opening) => Ok(run(session, opening).await?),
            None => Ok(()),
        }
    };
    let answers = in_order(asks.iter().map(|ask| ask.answered(session)).collect());
    Ok(try_join(begun, answers).await?.1)
}

/// Waits for all, asking them in their order, so that what they send goes out in it. The first failure ends it.
async fn in_order<T, E>(all: Vec<impl Future<Output = Result<T, E>>>) -> Result<Vec<T>, E> {
    let mut all: Vec<_> = all.into_iter().map(|one| (Box::pin(one), None)).collect();
    poll_fn(|cx| {
        for (one, done) in all.iter_mut().filter(|(_, done)| done.is_none()) {
            if let Poll::Ready(answer) = one.as_mut().poll(cx) {
                match answer {
                    Ok(answer) => *done = Some(answer),
                    Err(e) => return Poll::Ready(Err(e)),
                }
            }
        }
        match all.iter().all(|(_, done)| done.is_some()) {
            true => Poll::Ready(Ok(all.iter_mut().filter_map(|(_, done)| done.take()).collect())),
            false => Poll::Pending,
        }
    })
    .await
}

/// A statement that the server has by now.
async fn prepared<'a>(
    session: &Connection,
    known: &'a mut Option<Statement>,
    statement: &str,
    types: &[Type],
) -> Result<&'a Statement, Failed> {
    if known.is_none() {
        *known = Some(session.prepare_typed(statement, types).await?);
    }
    known
        .as_ref()
        .ok_or_else(|| Failed::Other(Error::bug("a statement was not prepared")))
}

/// Where the rows of changes that carry whole ones stand: each in which batch.
fn whole_rows<'a>(changes: impl IntoIterator<Item = &'a Change>) -> Vec<(usize, usize)> {
    let place = |change: &Change| change.cells.at(0).map(|(batch, row)| (batch as usize, row as usize));
    changes.into_iter().filter_map(place).collect()
}

/// Copies rows into the staging table, which is ready after `setup`.
async fn fill(
    session: &Connection,
    setup: &str,
    copy: &Statement,
    encoder: &RowEncoder,
    batches: &[RecordBatch],
    rows: impl Iterator<Item = (usize, usize)>,
) -> Result<(), Failed> {
    let ready = async {
        match setup.is_empty() {
            true => Ok(()),
            false => counts(session, setup).await.map(drop),
        }
    };
    let (ready, copy) = join(ready, session.copy_in(copy)).await;
    ready?;
    let mut copy = Box::pin(copy?);
    feed(copy.as_mut(), encoder, batches, rows).await?;
    copy.as_mut().finish().await?;
    Ok(())
}

/// Copies rows into the table itself, behind a savepoint.
async fn copy_straight(
    session: &Connection,
    known: &mut Option<Statement>,
    (values, copy): (&RowEncoder, &str),
    pending: &Pending,
    rows: &[(usize, usize)],
    opening: &mut Option<String>,
) -> Result<(), Failed> {
    let copy = prepared(session, known, copy, &[]).await?;
    // The savepoint and what follows travel together, and so do the end of the rows and its release: after a failure the
    // one that is behind it fails as well, and undoes nothing.
    let savepoint = after(opening, "SAVEPOINT synctool_straight");
    let (savepoint, copy) = join(run(session, &savepoint), session.copy_in(copy)).await;
    savepoint?;
    let mut copy = Box::pin(copy?);
    feed(copy.as_mut(), values, &pending.batches, rows.iter().copied()).await?;
    let release = run(session, "RELEASE SAVEPOINT synctool_straight");
    let (stored, released) = join(copy.as_mut().finish(), release).await;
    stored?;
    Ok(released?)
}

/// Rows of batches as COPY takes them: while the server has some of them, the next ones are encoded.
async fn feed(
    mut copy: Pin<&mut CopyInSink<Bytes>>,
    encoder: &RowEncoder,
    batches: &[RecordBatch],
    rows: impl Iterator<Item = (usize, usize)>,
) -> Result<(), Failed> {
    let mut out = BytesMut::with_capacity(PIECE + PIECE / 4);
    let binary = encoder.form() == CopyForm::Binary;
    if binary {
        out.extend_from_slice(COPY_HEADER);
    }
    let bound = batches.iter().map(|b| encoder.bind(b)).collect::<Result<Vec<_>>>()?;
    for (batch, row) in rows {
        bound[batch].write(row, &mut out)?;
        if out.len() >= PIECE {
            copy.feed(out.split().freeze()).await?;
            out.reserve(PIECE + PIECE / 4);
        }
    }
    if binary {
        out.extend_from_slice(COPY_TRAILER);
    }
    copy.feed(out.freeze()).await?;
    Ok(())
}

/// A statement behind those that begin the transaction, if it is the first one.
fn after(opening: &mut Option<String>, statement: &str) -> String {
    match opening.take() {
        Some(opening) => format!("{opening}; {statement}"),
        None => statement.to_owned(),
    }
}

async fn run(session: &Connection, statement: &str) -> Result<()> {
    session
        .batch_execute(statement)
        .await
        .map_err(|e| session.error(e, "beginning a step of the transaction"))
}
