//! The reader of the log: events in, events of the engine out, one transaction after the other.

use super::super::catalog::CatalogTable;
use super::super::client::Mysql;
use super::capture;
use super::charset::Charsets;
use super::chunks::Marks;
use super::dump::{Change, Content, Dump, Group, Said};
use super::logged::{self, LoggedColumn};
use super::position::{Last, LogPosition, Place};
use super::rows::{Rows, image};
use super::shape::{Altered, Layout, Looked, Shape, Shapes};
use super::statements::{Effect, Named};
use crate::postgres::log::LogOptions;
use crate::postgres::log::status::Steering;
use async_trait::async_trait;
use bytes::Bytes;
use mysql_async::binlog::events::{Event as Logged, EventData, TableMapEvent};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use synctool_core::backfill::WATERMARK_PREFIX;
use synctool_core::budget::Hold;
use synctool_core::change::{Event, SchemaChange, Tx};
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;
use synctool_core::schema::{SchemaDifference, TableId};
use synctool_core::source::{ReadContext, Reader};
use tokio::time::Instant;

/// What the reader shares with the rest of its source.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) database: Mysql,
    pub(super) options: LogOptions,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
    /// Tables that hold other rows than their log says.
    pub(super) remade: Arc<Mutex<Vec<TableId>>>,
    pub(super) steering: Arc<Steering>,
}

/// A table of the log.
#[derive(Clone)]
enum Entry {
    /// Nobody follows it.
    Other,
    Table {
        index: usize,
        layout: Arc<Layout>,
    },
}

/// A followed table as the log described it last.
struct Known {
    description: Vec<u8>,
    layout: Arc<Layout>,
}

/// What must happen before the event at hand can be taken.
enum Need {
    /// Memory for rows.
    Room(usize),
    /// A look at the catalog for this table.
    Table { index: usize, columns: Vec<LoggedColumn> },
    /// A look at whether these tables can be followed on.
    Check(Vec<usize>),
}

struct OpenTx {
    group: Group,
    begun: bool,
    /// It changed a table of ours by rows.
    rows: bool,
    content: Box<Content>,
    /// Where it begins. This is its number for the backfill, too: a snapshot that stands at or before it does not have it.
    at: Place,
}

/// Reads the log of one server.
pub(super) struct LogReader {
    world: World,
    context: ReadContext,
    dump: Dump,
    charsets: Charsets,
    /// An event that is not taken yet, and what it waits for.
    event: Option<Logged>,
    need: Option<Need>,
    looked: Option<Looked>,
    /// The tables of a statement as the catalog has them.
    checked: Option<Vec<(usize, Option<CatalogTable>)>>,
    /// By the numbers of the log.
    tables: HashMap<u64, Entry>,
    /// By the index of the shape.
    known: Vec<Option<Known>>,
    builders: Vec<Option<Rows>>,
    current: Option<usize>,
    hold: Option<Hold>,
    tx: Option<OpenTx>,
    position: LogPosition,
    /// How far the log was read, between transactions.
    at: Place,
    until: Option<Place>,
    quiet_since: Instant,
    out: VecDeque<Event>,
}

impl LogReader {
    pub(super) fn new(
        world: World,
        context: ReadContext,
        dump: Dump,
        charsets: Charsets,
        position: LogPosition,
        until: Option<Place>,
    ) -> Self {
        let shapes = world.shapes.all();
        let mut out = VecDeque::new();
        // A sink that was opened anew knows the plan's columns only.
        for shape in &shapes {
            let (table, difference) = (shape.table.clone(), shape.beyond_plan());
            if difference != SchemaDifference::default() {
                out.push_back(Event::Schema(SchemaChange { table, difference }));
            }
        }
        if !out.is_empty() {
            out.push_back(Event::Boundary {
                position: position.encode(),
                committed_at: None,
                tx: None,
            });
        }
        world.marks.read_up_to(&position.place);
        LogReader {
            known: shapes.iter().map(|_| None).collect(),
            builders: shapes.iter().map(|_| None).collect(),
            at: position.place.clone(),
            world,
            context,
            dump,
            charsets,
            event: None,
            need: None,
            looked: None,
            checked: None,
            tables: HashMap::new(),
            current: None,
            hold: None,
            tx: None,
            position,
            until,
            quiet_since: Instant::now(),
            out,
        }
    }

    /// Says where it begins, so that the next one goes on from there, also if nothing happens meanwhile.
    pub(super) fn keep_place(&mut self) {
        self.boundary(None);
    }

    /// Takes an event, unless something is needed first.
    fn take(&mut self, event: &Logged) -> Result<Option<Need>> {
        let said = self.dump.said(event)?;
        let ends = self.tx.as_ref().is_some_and(|tx| said.ends(&tx.group));
        let rotated = said.rotated();
        match said {
            Said::Begin(group) => {
                self.flush()?;
                if self.tx.is_some() {
                    return Err(out_of_order("a transaction that does not end"));
                }
                self.reached();
                self.tx = Some(OpenTx {
                    group,
                    begun: false,
                    rows: false,
                    content: Box::default(),
                    at: self.at.clone(),
                });
            }
            Said::Table => return self.table(event),
            Said::Rows(change) => return self.rows(event, change),
            Said::Statement { effects, sql, schema } => {
                let effects = match self.tx.as_ref().is_some_and(|tx| tx.group.undone) {
                    true => Vec::new(),
                    false => effects,
                };
                let others = self.changed(&effects, &schema);
                let there = match (self.checked.take(), others.is_empty()) {
                    (Some(there), _) => there,
                    (None, true) => Vec::new(),
                    (None, false) => return Ok(Some(Need::Check(others))),
                };
                self.alter(&effects, &schema, &there)?;
                self.statement(&effects, &sql, &schema)?;
            }
            // The numbers of tables are those of a run of the server.
            Said::Rotate(..) => self.tables.clear(),
            Said::Prepared if self.tx.as_ref().is_some_and(|tx| tx.rows) => {
                let why = "a prepared transaction (XA) changed a followed table: the log does not say in time whether it counts";
                self.make_good(&self.all(), Error::new(code::UNSUPPORTED, why))?;
            }
            Said::Incident => {
                let why = "the server notes in its log that changes are missing from it (an incident)";
                self.make_good(&self.all(), Error::new(code::LOG_LOST, why))?;
            }
            Said::Commit | Said::Prepared | Said::Waiting | Said::Other => {}
        }
        let offset = event.header().log_pos();
        match rotated {
            Some(place) if place > self.at => self.at = place,
            None if offset > 0 => self.at.go_to(offset),
            _ => {}
        }
        match (ends, &self.tx) {
            (true, _) => self.commit()?,
            (false, None) => self.reached(),
            (false, Some(_)) => {}
        }
        Ok(None)
    }

    /// A transaction is over.
    fn commit(&mut self) -> Result<()> {
        self.flush()?;
        let Some(tx) = self.tx.take() else {
            return Err(out_of_order("a commit without a transaction"));
        };
        let before = self.position.gtids.clone();
        self.position.gtids.take(tx.group.gtid);
        self.position.last = Some(Last {
            gtid: tx.group.gtid,
            second: tx.group.second,
            content: tx.content.digest(),
            before,
        });
        self.position.place.clone_from(&self.at);
        self.position.committed_at = Some(i64::from(tx.group.second) * 1_000_000);
        self.world.marks.read_up_to(&self.at);
        if tx.begun {
            self.world.steering.read_up_to(self.at.ordinal());
        } else {
            self.world.steering.reached(self.at.ordinal());
        }
        // A chunk that was read while rows of this transaction were handed out already, without having them: its marks
        // come behind the commit, so that it is seen to be late and read again.
        let late = tx.begun && self.world.marks.is_at_most(&tx.at);
        let marked = !late && self.pass_marks();
        if tx.begun || marked || self.is_due() {
            self.boundary(Some(&tx));
        }
        if late && self.pass_marks() {
            self.boundary(None);
        }
        Ok(())
    }

    /// The log was read up to here, and no transaction is open.
    fn reached(&mut self) {
        self.world.steering.reached(self.at.ordinal());
        let marked = self.pass_marks();
        let moved = self.at > self.position.place;
        if marked || moved && self.is_due() {
            self.position.place.clone_from(&self.at);
            self.boundary(None);
        }
    }

    /// Whether a position is worth a commit of its own.
    fn is_due(&self) -> bool {
        let asked = self
            .until
            .as_ref()
            .is_some_and(|until| self.position.place < *until && *until <= self.at);
        asked || self.quiet_since.elapsed() >= self.world.options.status_interval
    }

    /// Puts the marks of chunks whose place is reached.
    fn pass_marks(&mut self) -> bool {
        let mut any = false;
        while let Some(content) = self.world.marks.reached(&self.at) {
            self.out.push_back(Event::Message {
                prefix: WATERMARK_PREFIX.into(),
                content: Bytes::from(content),
            });
            any = true;
        }
        any
    }

    fn boundary(&mut self, tx: Option<&OpenTx>) {
        self.quiet_since = Instant::now();
        self.out.push_back(Event::Boundary {
            position: self.position.encode(),
            committed_at: tx.map(|tx| i64::from(tx.group.second) * 1_000_000),
            tx: tx.map(|tx| tx.at.ordinal()),
        });
    }

    /// Says that the transaction begins, before the first thing that anybody cares for.
    fn begin(&mut self) {
        if let Some(tx) = &mut self.tx
            && !tx.begun
        {
            tx.begun = true;
            self.out.push_back(Event::Begin(Tx {
                id: tx.at.ordinal(),
                committed_at: Some(i64::from(tx.group.second) * 1_000_000),
            }));
        }
    }

    /// Emits the rows at hand.
    fn flush(&mut self) -> Result<()> {
        if let Some(index) = self.current.take()
            && let Some(rows) = &mut self.builders[index]
            && !rows.is_empty()
        {
            let batch = rows.finish(self.hold.take().unwrap_or_default())?;
            self.out.push_back(Event::Rows(batch));
        }
        Ok(())
    }

    fn table(&mut self, event: &Logged) -> Result<Option<Need>> {
        let table: TableMapEvent<'_> = event.read_event().map_err(malformed)?;
        let (schema, name) = (table.database_name(), table.table_name());
        let Some(index) = self.world.shapes.named(&schema, &name) else {
            self.tables.insert(table.table_id(), Entry::Other);
            return Ok(None);
        };
        // Without the table's number and flags.
        let description = event.data().get(8..).unwrap_or_default();
        if let Some(known) = self.known[index].as_ref().filter(|k| k.description == description) {
            let layout = known.layout.clone();
            self.tables.insert(table.table_id(), Entry::Table { index, layout });
            return Ok(None);
        }
        let Some(looked) = self.looked.take() else {
            let columns = logged::columns(&table).map_err(|e| e.at("table", format!("{schema}.{name}")))?;
            return Ok(Some(Need::Table { index, columns }));
        };
        self.flush()?;
        self.known[index] = Some(Known {
            description: description.to_vec(),
            layout: looked.layout.clone(),
        });
        let layout = looked.layout;
        self.tables.insert(table.table_id(), Entry::Table { index, layout });
        if let Some(shape) = looked.reshaped {
            self.reshape(index, shape);
        }
        if let Some(difference) = looked.difference {
            let table = self.world.shapes.all()[index].table.clone();
            self.begin();
            self.out.push_back(Event::Schema(SchemaChange { table, difference }));
        }
        Ok(None)
    }

    /// A table has this shape from here on.
    fn reshape(&mut self, index: usize, shape: Arc<Shape>) {
        shape.note(&mut self.position);
        self.builders[index] = None;
        self.world.shapes.set(index, shape);
    }

    /// Follows what a statement does to the columns of tables, which the catalog has like this by now.
    fn alter(&mut self, effects: &[Effect], schema: &str, there: &[(usize, Option<CatalogTable>)]) -> Result<()> {
        for (index, shape) in self.world.shapes.all().iter().enumerate() {
            let of_it = |named: &Named| shape.is_named(named.schema.as_deref().unwrap_or(schema), &named.name);
            let of_it = |e: &&Effect| e.altered().is_some_and(of_it);
            let effects: Vec<&Effect> = effects.iter().filter(of_it).collect();
            let there = there.iter().find(|(i, _)| *i == index).and_then(|(_, t)| t.as_ref());
            if effects.is_empty() {
                continue;
            }
            let Some(Altered {
                shape,
                difference,
                anew,
            }) = shape.alter(&effects, there)?
            else {
                continue;
            };
            self.flush()?;
            self.reshape(index, Arc::new(shape));
            if let Some(why) = anew {
                self.read_anew_or_refuse(index, &why, difference)?;
            } else if difference != SchemaDifference::default() {
                let table = self.world.shapes.all()[index].table.clone();
                self.begin();
                self.out.push_back(Event::Schema(SchemaChange { table, difference }));
            }
        }
        Ok(())
    }

    fn rows(&mut self, event: &Logged, change: Change) -> Result<Option<Need>> {
        let Some(EventData::RowsEvent(rows)) = event.read_data().map_err(malformed)? else {
            return Err(Error::bug("an event of rows has none"));
        };
        let Some(tx) = &mut self.tx else {
            return Err(out_of_order("rows without a transaction"));
        };
        let (index, layout) = match self.tables.get(&rows.table_id()) {
            // The mark of a statement's end.
            None if rows.table_id() == 0x00ff_ffff => return Ok(None),
            None => return Err(out_of_order("rows of a table that was not described")),
            Some(Entry::Other) => return Ok(None),
            Some(Entry::Table { index, layout }) => (*index, layout.clone()),
        };
        tx.rows = true;
        if self.current.is_some_and(|c| c != index) {
            self.flush()?;
        }
        let size = rows.rows_data().len();
        if size > self.context.max_row_bytes {
            return Err(Error::new(
                code::ROW_TOO_LARGE,
                format!(
                    "changes in the log have {size} bytes at once, the limit is {}",
                    self.context.max_row_bytes
                ),
            )
            .hint("raise max_row_bytes; nothing was lost: the log is read from the same place again"));
        }
        if self.hold.is_some() && self.current.is_some() && size > self.context.batch_bytes {
            // A giant needs a reservation of its own.
            self.flush()?;
        }
        if self.hold.is_none() {
            return Ok(Some(Need::Room(size.max(self.context.batch_bytes))));
        }
        self.begin();
        let shape = self.world.shapes.all()[index].clone();
        let width = shape.columns.len();
        if rows.num_columns() as usize != layout.cells.len() {
            return Err(out_of_order("rows with another number of columns than their table"));
        }
        let table = shape.table.clone();
        let builder = match &mut self.builders[index] {
            Some(rows) => rows,
            none => none.insert(Rows::new(shape)),
        };
        let old: Vec<bool> = rows
            .columns_before_image()
            .into_iter()
            .flat_map(|b| b.iter().by_vals())
            .collect();
        let new: Vec<bool> = rows
            .columns_after_image()
            .into_iter()
            .flat_map(|b| b.iter().by_vals())
            .collect();
        let mut data = rows.rows_data();
        let mut all = || -> Result<()> {
            while !data.is_empty() {
                match change {
                    Change::Insert => builder.insert(&layout, &image(&layout, width, &new, &mut data)?)?,
                    Change::Update => {
                        let before = image(&layout, width, &old, &mut data)?;
                        let after = image(&layout, width, &new, &mut data)?;
                        builder.update(&layout, &before, after)?;
                    }
                    Change::Delete => builder.delete(&layout, &image(&layout, width, &old, &mut data)?)?,
                }
            }
            Ok(())
        };
        let taken = all().map_err(|e| e.at("table", table.to_string()));
        let full = builder.bytes() >= self.context.batch_bytes;
        self.current = Some(index);
        match taken {
            Err(e) if e.code() == code::LOG_SETUP => self.make_good(&[index], e)?,
            other => other?,
        }
        if full {
            self.flush()?;
        }
        Ok(None)
    }

    /// The followed tables that a statement makes other ones: what they are now is looked at, and may be refused.
    fn changed(&self, effects: &[Effect], schema: &str) -> Vec<usize> {
        let find = |named: &Named| {
            let schema = named.schema.as_deref().unwrap_or(schema);
            self.world.shapes.named(schema, &named.name)
        };
        let mut all = Vec::from_iter(effects.iter().filter_map(|e| match e {
            Effect::Remade(named) | Effect::Redefined(named, _) | Effect::Added(named, _) | Effect::Engine(named) => {
                find(named)
            }
            _ => None,
        }));
        all.dedup();
        all
    }

    fn statement(&mut self, effects: &[Effect], sql: &str, schema: &str) -> Result<()> {
        if !effects.iter().all(|e| matches!(e, Effect::Commit)) {
            self.flush()?;
        }
        if self.tx.as_ref().is_some_and(|tx| tx.group.standalone) {
            // A table may be another one from here on, even if it is described alike.
            self.known.iter_mut().for_each(|known| *known = None);
        }
        let (all, shapes) = (self.world.shapes.clone(), self.world.shapes.all());
        let find = |named: &Named| all.named(named.schema.as_deref().unwrap_or(schema), &named.name);
        for effect in effects {
            match effect {
                Effect::Commit => {}
                Effect::Rollback | Effect::Undone => {
                    if self.tx.as_ref().is_some_and(|tx| tx.rows) {
                        let why = "a transaction with rows of a followed table was undone in part, and the log does not say which";
                        self.make_good(&self.all(), Error::new(code::UNSUPPORTED, why))?;
                    }
                }
                Effect::Emptied(named) => {
                    if let Some(index) = find(named) {
                        self.begin();
                        self.out.push_back(Event::Truncate {
                            tables: vec![shapes[index].table.clone()],
                            cascade: false,
                            restart_identity: false,
                        });
                    }
                }
                Effect::Cascades(named, key) => {
                    if let Some(index) = find(named) {
                        self.make_good(&[index], capture::cascades(&shapes[index].table, key.as_deref()))?;
                    }
                }
                Effect::Remade(_)
                | Effect::Redefined(..)
                | Effect::Dropped(..)
                | Effect::Renamed(..)
                | Effect::Added(..)
                | Effect::Engine(_) => {}
                Effect::Rows => {
                    let mentioned = |i: &usize| shapes[*i].is_mentioned(sql);
                    let mentioned: Vec<usize> = self.all().into_iter().filter(mentioned).collect();
                    if let Some(first) = mentioned.first() {
                        let why = format!(
                            "a change that seems to be of {} is in the log as a statement, without its rows (binlog_format)",
                            shapes[*first].table
                        );
                        self.make_good(&mentioned, Error::new(code::LOG_SETUP, why))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn all(&self) -> Vec<usize> {
        (0..self.known.len()).collect()
    }

    /// Takes a table for one that must be read again from its beginning and made equal.
    fn read_anew(&mut self, index: usize, difference: SchemaDifference) {
        let table = self.world.shapes.all()[index].table.clone();
        tracing::warn!(%table, "a table holds other rows than its log says: it is read anew");
        let remade = TableId::clone(&table);
        self.world
            .remade
            .lock()
            .expect("nothing panics while holding it")
            .push(remade);
        self.begin();
        self.out.push_back(Event::Schema(SchemaChange { table, difference }));
    }

    /// The same where the table has a key; without one it cannot be compared.
    fn read_anew_or_refuse(&mut self, index: usize, why: &str, difference: SchemaDifference) -> Result<()> {
        let shape = self.world.shapes.all()[index].clone();
        if shape.key.is_empty() {
            let why = format!("{} {why}, and without a key the table cannot be compared", shape.table);
            return Err(Error::new(code::KEY_MISSING, why).hint("start over: synctool state reset"));
        }
        self.read_anew(index, difference);
        Ok(())
    }

    /// What the log does not say of tables is refused, or, where that is wished, made good by reading them anew.
    fn make_good(&mut self, tables: &[usize], error: Error) -> Result<()> {
        let shapes = self.world.shapes.all();
        let keyed = tables.iter().all(|i| !shapes[*i].key.is_empty());
        if !self.world.options.repair.asked() || !keyed {
            return Err(error.hint(match keyed {
                true => "run once with --repair: the tables it may be about are compared and made equal, while the log goes on",
                false => "tables without a key cannot be compared; start over: synctool state reset",
            }));
        }
        tracing::warn!(%error, "what the log does not say is made good by comparing");
        self.flush()?;
        let as_it_was = SchemaDifference::default;
        tables.iter().for_each(|index| self.read_anew(*index, as_it_was()));
        Ok(())
    }

    async fn look_up(&mut self, index: usize, columns: &[LoggedColumn]) -> Result<Looked> {
        let shape = self.world.shapes.all()[index].clone();
        let mut session = self.world.database.connect().await?;
        let looked = shape.look(&mut session, &mut self.charsets, columns).await?;
        session.recycle();
        Ok(looked)
    }

    async fn check(&self, tables: &[usize]) -> Result<Vec<(usize, Option<CatalogTable>)>> {
        let shapes = self.world.shapes.all();
        let mut session = self.world.database.connect().await?;
        let mut there = Vec::with_capacity(tables.len());
        for index in tables {
            there.push((*index, shapes[*index].check(&mut session).await?));
        }
        session.recycle();
        Ok(there)
    }

    fn is_over(&self) -> bool {
        self.until.as_ref().is_some_and(|until| self.at >= *until)
            && self.tx.is_none()
            && self.world.marks.is_empty()
            && self.world.steering.requests().left() == 0
    }
}

#[async_trait]
impl Reader for LogReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.out.pop_front() {
                return Ok(Some(event));
            }
            if self.is_over() {
                return Ok(None);
            }
            // Each need is met before it is forgotten: a call that is dropped meanwhile loses nothing.
            match self.need.take() {
                Some(Need::Room(bytes)) => {
                    self.need = Some(Need::Room(bytes));
                    self.hold = Some(self.context.budget.reserve(bytes).await);
                    self.need = None;
                }
                Some(Need::Table { index, columns }) => {
                    self.need = Some(Need::Table {
                        index,
                        columns: columns.clone(),
                    });
                    self.looked = Some(self.look_up(index, &columns).await?);
                    self.need = None;
                }
                Some(Need::Check(tables)) => {
                    self.need = Some(Need::Check(tables.clone()));
                    self.checked = Some(self.check(&tables).await?);
                    self.need = None;
                }
                None => {}
            }
            let event = match self.event.take() {
                Some(event) => event,
                None => tokio::select! {
                    biased;
                    () = self.context.cancel.cancelled() => {
                        return Err(Error::new(code::INTERRUPTED, "reading the log was stopped"));
                    }
                    event = self.dump.next() => {
                        let event = event?;
                        if let Some(tx) = &mut self.tx {
                            tx.content.add(&event)?;
                        }
                        event
                    }
                    () = self.world.marks.added.notified() => {
                        if self.tx.is_none() {
                            self.reached();
                        }
                        continue;
                    }
                },
            };
            if let Some(need) = self.take(&event)? {
                (self.event, self.need) = (Some(event), Some(need));
            }
        }
    }

    async fn acknowledge(&mut self, _: &Position) -> Result<()> {
        // The server keeps its log as long as it likes, and asks nobody.
        self.world.options.repair.spend();
        Ok(())
    }
}

fn malformed(e: std::io::Error) -> Error {
    Error::new(code::SERVER_ERROR, "an event of the log cannot be read").caused_by(e)
}

fn out_of_order(what: &str) -> Error {
    Error::new(code::SERVER_ERROR, format!("the log is out of order: {what}"))
}
