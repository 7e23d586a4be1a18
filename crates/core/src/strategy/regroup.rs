//! How an aggregate's plan is carried out: which groups changed rows are in and were in, which rows are gone, and what
//! touched groups are now ([`super::aggregate`] says why).

use super::aggregate::{AGGREGATE, GONE, KEYS, TOUCHED, keys_alone, partition};
use super::delta;
use super::hash::{Comparison, Deferred, Key, Pair};
use super::present::Present;
use super::steps::{Steps, Stepwise};
use crate::blocks::push_field;
use crate::change::{ChangeBatch, Event, Op, Ops};
use crate::error::{Error, Result, code};
use crate::ledger::Compared;
use crate::plan::{Compare, DeleteGuard, PlannedTable, ReadColumn, ReadSpec, Repair, Slice, Work};
use crate::progress::Position;
use crate::query::{KeyList, Term};
use crate::schema::{Column, ColumnType, TableId};
use crate::source::{ReadContext, Reader, Source};
use crate::stage::NoStages;
use crate::text::{self, ColumnBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::sync::Arc;

/// Groups computed in one query.
const GROUPS: usize = 500;
/// Under this name a computed group says how many of its rows are not settled.
const UNSETTLED: &str = "_synctool_unsettled";
/// What stands before a group that is left to the next run, so that this one does not compute it once more.
const LATER: char = '+';

/// Both ends of an aggregate's plan.
#[derive(Clone)]
pub(crate) struct Groups {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) destination: Arc<dyn Source>,
    pub(crate) tables: Arc<[PlannedTable]>,
    pub(crate) deferred: Arc<Deferred>,
    pub(crate) guard: DeleteGuard,
    pub(crate) context: ReadContext,
}

impl Groups {
    fn table(&self, place: usize) -> Result<&PlannedTable> {
        self.tables
            .get(place)
            .ok_or_else(|| Error::bug("an aggregate's plan without its tables"))
    }

    /// Whether a row of the key map has several groups, because the source's rows are those of a join.
    fn lists(&self) -> Result<bool> {
        let read = &self.table(KEYS)?.read;
        Ok(!read.joins.is_empty() && read.columns.iter().any(|c| c.column.name.starts_with("k_")))
    }

    /// The groups in a row of the key map.
    fn listed(&self, text: String) -> Result<Vec<String>> {
        if !self.lists()? {
            return Ok(vec![self.group_text(&group_values(&text)?)?]);
        }
        let groups: Vec<Key> = serde_json::from_str(&text)
            .map_err(|_| Error::new(code::VALUE_MALFORMED, "a row of the key map has no list of groups"))?;
        groups.iter().map(|g| self.group_text(g)).collect()
    }

    /// The text of a group: one for all that its values may be written as, as far as sources read them like that, too.
    fn group_text(&self, values: &[Option<String>]) -> Result<String> {
        let read = &self.table(AGGREGATE)?.read;
        let numeric = |name: &String| {
            let column = read.columns.iter().find(|c| c.column.name == *name);
            column.is_some_and(|c| c.column.ty == ColumnType::Numeric)
        };
        let values: Vec<Option<&str>> = values
            .iter()
            .enumerate()
            .map(|(i, value)| match read.group_by.get(i).is_some_and(numeric) {
                true => value.as_deref().map(without_zeros),
                false => value.as_deref(),
            })
            .collect();
        serde_json::to_string(&values).map_err(|e| Error::bug(format!("a group as text: {e}")))
    }

    /// Rows of the source as the key map has them: what identifies each, and its group.
    fn rows_of_batch(&self, batch: &ChangeBatch, keys: usize) -> Result<Vec<(Vec<String>, String)>> {
        (0..batch.len())
            .map(|row| {
                let cells = batch
                    .rows
                    .columns()
                    .iter()
                    .map(|c| text::cell(c.as_ref(), row))
                    .collect::<Result<Vec<_>>>()?;
                let (key, group) = cells.split_at(keys);
                let key = key
                    .iter()
                    .cloned()
                    .collect::<Option<Vec<String>>>()
                    .ok_or_else(Error::without_key)?;
                Ok((key, self.group_text(group)?))
            })
            .collect()
    }

    /// The groups that rows of the table read are in now, by their keys; a row that is in none is not among them.
    async fn now(&self, keys: &BTreeSet<Vec<String>>) -> Result<BTreeMap<Vec<String>, BTreeSet<String>>> {
        let mut found: BTreeMap<Vec<String>, BTreeSet<String>> = BTreeMap::new();
        for (key, group) in self.look_up(&self.table(KEYS)?.read, keys.iter()).await? {
            found.entry(key).or_default().insert(group);
        }
        Ok(found)
    }

    /// What the source has now of rows of the table read, by their keys: each with what is read beside the key.
    async fn look_up(
        &self,
        read: &ReadSpec,
        keys: impl Iterator<Item = &Vec<String>>,
    ) -> Result<Vec<(Vec<String>, String)>> {
        let terms: Vec<Term> = keys_alone(read).columns.iter().map(ReadColumn::term).collect();
        let all: Vec<Key> = keys.map(|k| k.iter().cloned().map(Some).collect()).collect();
        let mut found = Vec::new();
        for keys in all.chunks(GROUPS) {
            let slice = Slice::Keys(KeyList {
                terms: terms.clone(),
                keys: keys.to_vec(),
            });
            let mut reader = self.read(&self.source, read, slice).await?;
            while let Some(event) = reader.next().await? {
                let Event::Rows(batch) = event else { continue };
                found.extend(self.rows_of_batch(&batch, terms.len())?);
            }
        }
        Ok(found)
    }

    /// Forgets rows of the map that were found to be gone, if the source still does not have them. Groups of those that are
    /// back may have been computed without them: they are left to the next run.
    async fn forgotten(&self, mut gone: Vec<Vec<String>>) -> Result<Vec<Event>> {
        let there = self.look_up(&keys_alone(&self.table(KEYS)?.read), gone.iter()).await?;
        let back: BTreeSet<Vec<String>> = there.into_iter().map(|(key, _)| key).collect();
        let mut events = Vec::new();
        if !back.is_empty() {
            events.push(self.left(self.groups_before(back.iter()).await?)?);
            gone.retain(|key| !back.contains(key));
        }
        if !gone.is_empty() {
            // Rows of the map, by their keys alone.
            let map = gone.into_iter().map(|key| (key, String::new())).collect();
            events.push(self.batch(KEYS, &key_rows(map), Op::Delete)?);
        }
        Ok(events)
    }

    /// How groups are computed.
    fn computing(&self, unsettled: Option<&Term>) -> Result<ReadSpec> {
        let mut read = self.table(AGGREGATE)?.read.clone();
        read.columns.extend(unsettled.map(|term| ReadColumn {
            term: Some(term.clone()),
            ..ReadColumn::plain(UNSETTLED, Column::new(UNSETTLED, ColumnType::Int64))
        }));
        Ok(read)
    }

    /// Computed groups as they are written, each with its text and whether it is left to the next run.
    fn computed(&self, batch: ChangeBatch) -> Result<(Event, Vec<(String, bool)>)> {
        let read = &self.table(AGGREGATE)?.read;
        let lost = || Error::bug("a column of computed groups was lost on the way");
        let by = read
            .group_by
            .iter()
            .map(|name| batch.rows.column_by_name(name).ok_or_else(lost))
            .collect::<Result<Vec<_>>>()?;
        let unsettled = batch.rows.column_by_name(UNSETTLED);
        let groups = (0..batch.len())
            .map(|row| {
                let cell = |column: &ArrayRef| text::cell(column.as_ref(), row);
                let values = by.iter().map(|c| cell(c)).collect::<Result<Vec<_>>>()?;
                let count = unsettled.map(cell).transpose()?.flatten();
                Ok((self.group_text(&values)?, count.is_some_and(|n| n != "0")))
            })
            .collect::<Result<Vec<_>>>()?;
        let written: Vec<usize> = (0..read.columns.len()).collect();
        let rows = batch.rows.project(&written).map_err(|_| lost())?;
        let rows = Event::Rows(ChangeBatch {
            rows,
            ops: Ops::All(Op::Upsert),
            ..batch
        });
        Ok((rows, groups))
    }

    /// Groups that the next run computes again.
    fn left(&self, groups: impl IntoIterator<Item = String>) -> Result<Event> {
        let rows: Vec<Vec<String>> = groups.into_iter().map(|g| vec![format!("{LATER}{g}")]).collect();
        self.batch(TOUCHED, &rows, Op::Upsert)
    }

    /// The groups that these rows were last seen in.
    async fn groups_before(&self, keys: impl Iterator<Item = &Vec<String>>) -> Result<BTreeSet<String>> {
        let mut groups = BTreeSet::new();
        for text in before(self, keys).await?.into_values() {
            groups.extend(self.listed(text)?);
        }
        Ok(groups)
    }

    async fn read(&self, source: &Arc<dyn Source>, read: &ReadSpec, slice: Slice) -> Result<Box<dyn Reader>> {
        let partition = partition("groups", Work::Read(slice));
        source.open(read, &partition, None, &self.context).await
    }

    /// Rows of one of our own tables, as texts.
    fn batch(&self, place: usize, rows: &[Vec<String>], op: Op) -> Result<Event> {
        let table = self.table(place)?;
        let mut builders: Vec<ColumnBuilder> = table.schema.columns.iter().map(ColumnBuilder::new).collect();
        for row in rows {
            for (builder, value) in builders.iter_mut().zip(row) {
                builder.append_text(value)?;
            }
        }
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = RecordBatch::try_new(table.schema.arrow_schema(), arrays)
            .map_err(|e| Error::bug(format!("keys do not fit their table: {e}")))?;
        Ok(Event::Rows(ChangeBatch {
            ops: Ops::All(op),
            ..ChangeBatch::inserts(Arc::new(table.destination.clone()), rows, Default::default())
        }))
    }
}

/// Opens a partition of an aggregate's own kind.
pub(crate) async fn open(groups: &Groups, work: &Work, after: Option<&Position>) -> Result<Box<dyn Reader>> {
    Ok(match work {
        Work::Clear => Box::new(Stepwise::new(Clear {
            tables: vec![
                Arc::new(groups.table(KEYS)?.destination.clone()),
                Arc::new(groups.table(TOUCHED)?.destination.clone()),
            ],
        })),
        Work::Touch { slice, fill } => {
            let rows = &groups.table(KEYS)?.read;
            let keys = keys_alone(rows);
            let read = match (groups.lists()?, *fill) {
                (false, _) => rows.clone(),
                (true, true) => keys.clone(),
                // A row that lost its partner has left its groups.
                (true, false) => ReadSpec {
                    joins: delta::kept(&rows.joins),
                    ..keys.clone()
                },
            };
            Box::new(Stepwise::new(Touch {
                groups: groups.clone(),
                keys: keys.columns.len(),
                reader: groups.read(&groups.source, &read, slice.clone()).await?,
                fill: *fill,
            }))
        }
        Work::Vanished(compare) => {
            let map = groups.table(KEYS)?;
            let pair = Pair::new(
                groups.source.clone(),
                groups.destination.clone(),
                Arc::new(NoStages),
                &PlannedTable {
                    read: keys_alone(&map.read),
                    ..map.clone()
                },
                &groups.context,
            )?;
            Box::new(Stepwise::new(Vanished {
                groups: groups.clone(),
                pair: Arc::new(pair),
                compare: compare.clone(),
                given: false,
                comparison: None,
                found: 0,
                before: None,
            }))
        }
        Work::Regroup { unsettled } => {
            let read = groups.computing(unsettled.as_ref())?;
            let all = partition("groups", Work::Read(Slice::All));
            Box::new(Stepwise::new(Regroup {
                groups: groups.clone(),
                reader: groups.source.open(&read, &all, after, &groups.context).await?,
            }))
        }
        Work::Recompute {
            shard,
            shards,
            deletes,
            renamed,
            unsettled,
        } => Box::new(Stepwise::new(Recompute {
            groups: groups.clone(),
            shard: (*shard, *shards),
            deletes: *deletes,
            renamed: *renamed,
            read: groups.computing(unsettled.as_ref())?,
            after: after.map(|p| p.as_str().to_string()),
            waiting: None,
            stored: None,
        })),
        _ => return Err(Error::bug("not an aggregate's partition")),
    })
}

struct Clear {
    tables: Vec<Arc<TableId>>,
}

#[async_trait]
impl Steps for Clear {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let tables = std::mem::take(&mut self.tables);
        if tables.is_empty() {
            return Ok(None);
        }
        Ok(Some(VecDeque::from([Event::Truncate {
            tables,
            cascade: false,
            restart_identity: false,
        }])))
    }
}

/// Reads changed rows; says which groups they are in and were in, and brings the key map up to date.
struct Touch {
    groups: Groups,
    /// How many of the columns read identify the row.
    keys: usize,
    reader: Box<dyn Reader>,
    fill: bool,
}

#[async_trait]
impl Steps for Touch {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let batch = match self.reader.next().await? {
            None => return Ok(None),
            Some(Event::Rows(batch)) => batch,
            Some(_) => return Ok(Some(VecDeque::new())),
        };
        let mut map = BTreeMap::new();
        let mut touched = BTreeSet::new();
        let rows = self.groups.rows_of_batch(&batch, self.keys)?;
        if self.groups.lists()? {
            let keys: BTreeSet<Vec<String>> = rows.into_iter().map(|(key, _)| key).collect();
            let mut now = self.groups.now(&keys).await?;
            for key in keys {
                let groups = now.remove(&key).unwrap_or_default();
                let list: Vec<&str> = groups.iter().map(String::as_str).collect();
                map.insert(key, format!("[{}]", list.join(",")));
                touched.extend(groups);
            }
        } else {
            touched.extend(rows.iter().map(|(_, group)| group.clone()));
            map.extend(rows);
        }
        let mut events = VecDeque::new();
        if !self.fill {
            if self.keys > 0 {
                touched.extend(self.groups.groups_before(map.keys()).await?);
            }
            let rows: Vec<Vec<String>> = touched.into_iter().map(|g| vec![g]).collect();
            events.push_back(self.groups.batch(TOUCHED, &rows, Op::Upsert)?);
        }
        if self.keys > 0 {
            events.push_back(self.groups.batch(KEYS, &key_rows(map), Op::Upsert)?);
        }
        Ok(Some(events))
    }
}

/// Finds rows that were deleted at the source and touches their groups; in a later phase, forgets them. Where these have to
/// be found again, others are gone too: no group is corrected for them in this run, so all of their groups are left to the
/// next one. What is gone is judged as a whole, so it is always looked for from the beginning.
struct Vanished {
    groups: Groups,
    pair: Arc<Pair>,
    compare: Compare,
    /// Whether what an earlier phase found was given out.
    given: bool,
    comparison: Option<Comparison>,
    /// How many rows are gone, as far as was looked.
    found: u64,
    /// How many rows the map had when it was last counted, and whether those were all.
    before: Option<(u64, bool)>,
}

impl Vanished {
    /// Groups are computed without the rows that are gone, though none of the groups may go: more rows than the guard lets
    /// go are refused before that, and before they are forgotten. That all rows are gone is judged with the groups.
    async fn judge(&mut self, more: u64) -> Result<()> {
        self.found += more;
        let (guard, gone) = (self.groups.guard, self.found);
        if more == 0 || guard.allow || gone <= guard.max_rows {
            return Ok(());
        }
        let known = |(rows, all): &(u64, bool)| *all || guard.allows(*rows, gone, 1);
        if !self.before.as_ref().is_some_and(known) {
            let (destination, map) = (self.groups.destination.clone(), self.groups.table(KEYS)?);
            let stored = Present::of(destination, &map.destination, &map.schema.key, &self.groups.context).await?;
            // Counted no further than the answer matters now and for some rows more.
            let enough = gone.saturating_mul(10);
            let rows = stored.count(enough).await?;
            self.before = Some((rows, rows < enough));
        }
        let Some((before, _)) = self.before.filter(|(before, _)| !guard.allows(*before, gone, 1)) else {
            return Ok(());
        };
        let table = &self.groups.table(KEYS)?.read.table;
        Err(Error::new(
            code::MASS_DELETE,
            format!("at least {gone} of {before} rows of {table} are gone, and groups would be computed without them"),
        )
        .hint("look at the source; if the rows are meant to be gone, run again with --allow-mass-delete"))
    }
}

fn whole_keys(keys: Vec<Key>) -> Vec<Vec<String>> {
    keys.into_iter().filter_map(|key| key.into_iter().collect()).collect()
}

#[async_trait]
impl Steps for Vanished {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let forgets = self.compare.repair == Repair::Deletes;
        let mut events = VecDeque::new();
        let Some(comparison) = &mut self.comparison else {
            if forgets && let Some(found) = self.groups.deferred.get(GONE) {
                if std::mem::replace(&mut self.given, true) {
                    return Ok(None);
                }
                for keys in found.chunks(GROUPS) {
                    events.extend(self.groups.forgotten(whole_keys(keys.to_vec())).await?);
                }
                return Ok(Some(events));
            }
            let started = Comparison::start(self.pair.clone(), &self.compare, true, None).await?;
            self.comparison = Some(started);
            if !forgets {
                self.groups.deferred.start(GONE, true);
            }
            return Ok(Some(events));
        };
        let Some(group) = comparison.next().await? else {
            return Ok(None);
        };
        if !forgets {
            self.groups.deferred.add(GONE, group.only_destination.clone());
        }
        self.judge(group.only_destination.len() as u64).await?;
        let gone = whole_keys(group.only_destination);
        let groups = self.groups.groups_before(gone.iter()).await?;
        if forgets && !gone.is_empty() {
            events.push_back(self.groups.left(groups)?);
            events.extend(self.groups.forgotten(gone).await?);
        } else if !gone.is_empty() {
            let touched: Vec<Vec<String>> = groups.into_iter().map(|g| vec![g]).collect();
            events.push_back(self.groups.batch(TOUCHED, &touched, Op::Upsert)?);
        }
        events.push_back(Event::Boundary {
            position: Position(format!("block {}", group.through)),
            committed_at: None,
            tx: None,
        });
        Ok(Some(events))
    }
}

/// Rows of the key map.
fn key_rows(map: BTreeMap<Vec<String>, String>) -> Vec<Vec<String>> {
    map.into_iter()
        .map(|(mut key, group)| {
            key.push(group);
            key
        })
        .collect()
}

/// The groups that these rows were last seen in.
async fn before(groups: &Groups, keys: impl Iterator<Item = &Vec<String>>) -> Result<BTreeMap<Vec<String>, String>> {
    let table = groups.table(KEYS)?;
    let terms: Vec<Term> = table.schema.key.iter().map(Term::column).collect();
    let keys: Vec<Key> = keys.map(|k| k.iter().cloned().map(Some).collect()).collect();
    let read = ReadSpec::all(table.destination.clone(), &table.schema.columns);
    let mut found = BTreeMap::new();
    for keys in keys.chunks(GROUPS) {
        let slice = Slice::Keys(KeyList {
            terms: terms.clone(),
            keys: keys.to_vec(),
        });
        let mut reader = groups.read(&groups.destination, &read, slice).await?;
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            for row in 0..batch.len() {
                let cells: Option<Vec<String>> = batch
                    .rows
                    .columns()
                    .iter()
                    .map(|c| text::cell(c.as_ref(), row))
                    .collect::<Result<_>>()?;
                // Every column of the key map is NOT NULL.
                let Some(mut key) = cells else { continue };
                if let Some(group) = key.pop() {
                    found.insert(key, group);
                }
            }
        }
    }
    Ok(found)
}

/// A numeric as it is written shortest.
fn without_zeros(value: &str) -> &str {
    match value.contains('.') {
        true => value.trim_end_matches('0').trim_end_matches('.'),
        false => value,
    }
}

fn group_values(group: &str) -> Result<Key> {
    serde_json::from_str(group)
        .map_err(|_| Error::new(code::VALUE_MALFORMED, "a touched group is not a list of values"))
}

/// The form that two texts of one group have in common: rows with `0` and with `0.00` are one group of a numeric, which is
/// called by either.
fn group_form(table: &PlannedTable, group: &Key) -> Result<Vec<u8>> {
    let mut form = Vec::new();
    for ((_, column), value) in table.read.groups()?.into_iter().zip(group) {
        let ty = &column.column.ty;
        let before = form.len();
        if push_field(&mut form, ty, value.as_deref()).is_err() {
            // What is no value of its type is only equal to itself.
            form.truncate(before);
            push_field(&mut form, &ColumnType::Native, value.as_deref())?;
        }
    }
    Ok(form)
}

/// Computes every group.
struct Regroup {
    groups: Groups,
    reader: Box<dyn Reader>,
}

#[async_trait]
impl Steps for Regroup {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let batch = match self.reader.next().await? {
            None => return Ok(None),
            Some(Event::Rows(batch)) => batch,
            Some(other) => return Ok(Some(VecDeque::from([other]))),
        };
        let (rows, groups) = self.groups.computed(batch)?;
        let mut events = VecDeque::from([rows]);
        let later: Vec<String> = groups.into_iter().filter(|g| g.1).map(|g| g.0).collect();
        if !later.is_empty() {
            events.push_back(self.groups.left(later)?);
        }
        Ok(Some(events))
    }
}

/// Computes touched groups from all their rows; groups without rows are counted, and in a later phase deleted.
struct Recompute {
    groups: Groups,
    read: ReadSpec,
    shard: (u32, u32),
    deletes: bool,
    renamed: bool,
    /// Groups up to this one are done.
    after: Option<String>,
    /// The groups that the destination has.
    stored: Option<Present>,
    /// Groups still to do, each with the forms in which it is listed; `None` before they were asked for.
    waiting: Option<VecDeque<(String, BTreeSet<String>)>>,
}

#[async_trait]
impl Steps for Recompute {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let Some(waiting) = &mut self.waiting else {
            self.waiting = Some(self.touched().await?);
            return Ok(Some(VecDeque::new()));
        };
        let page: Vec<(String, BTreeSet<String>)> = waiting.drain(..waiting.len().min(GROUPS)).collect();
        let Some((last, _)) = page.last().cloned() else {
            return Ok(None);
        };
        let table = self.groups.table(AGGREGATE)?;
        let terms: Vec<Term> = table.read.groups()?.into_iter().map(|(_, c)| c.term()).collect();
        let mut keys = BTreeMap::new();
        for (group, _) in &page {
            keys.insert(group.clone(), group_values(group)?);
        }
        let slice = Slice::Keys(KeyList {
            terms,
            keys: keys.values().cloned().collect(),
        });
        let mut events = VecDeque::new();
        // How the groups of this page are listed from now on.
        let mut listed = BTreeSet::new();
        let mut computed = HashSet::new();
        let mut reader = self.groups.read(&self.groups.source, &self.read, slice).await?;
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            let (rows, groups) = self.groups.computed(batch)?;
            for (group, later) in groups {
                computed.insert(group_form(table, &group_values(&group)?)?);
                listed.extend(later.then(|| format!("{LATER}{group}")));
            }
            events.push_back(rows);
        }
        let mut missing = BTreeMap::new();
        for (group, values) in keys {
            if !computed.contains(&group_form(table, &values)?) {
                missing.insert(group, values);
            }
        }
        if !missing.is_empty() && self.deletes {
            events.push_back(gone(table, missing.values())?);
        } else if !missing.is_empty() {
            let left = self.there(missing).await?;
            events.push_back(Event::Compared(Compared {
                only_destination: left.len() as u64,
                ..Compared::default()
            }));
            listed.extend(left);
        }
        let before: BTreeSet<String> = page.into_iter().flat_map(|(_, forms)| forms).collect();
        for (op, forms) in [
            (Op::Delete, before.difference(&listed)),
            (Op::Upsert, listed.difference(&before)),
        ] {
            let rows: Vec<Vec<String>> = forms.map(|form| vec![form.clone()]).collect();
            if !rows.is_empty() {
                events.push_back(self.groups.batch(TOUCHED, &rows, op)?);
            }
        }
        events.push_back(Event::Boundary {
            position: Position(last),
            committed_at: None,
            tx: None,
        });
        Ok(Some(events))
    }
}

impl Recompute {
    /// Those of some groups that the destination has: one whose rows never met the filters was never there.
    async fn there(&mut self, groups: BTreeMap<String, Key>) -> Result<BTreeSet<String>> {
        // A group that a stage names anew cannot be asked for: all count.
        if self.renamed {
            return Ok(groups.into_keys().collect());
        }
        let table = self.groups.table(AGGREGATE)?;
        let by = &table.read.group_by;
        let stored = match &mut self.stored {
            Some(stored) => stored,
            none => {
                let destination = self.groups.destination.clone();
                none.insert(Present::of(destination, &table.destination, by, &self.groups.context).await?)
            }
        };
        // Nor one that is stored in another type.
        let same = |(name, stored): (&String, &Column)| {
            let read = table.read.columns.iter().find(|c| c.column.name == *name);
            read.is_some_and(|c| c.column.ty.fits(&stored.ty))
        };
        if !by.iter().zip(stored.columns()).all(same) {
            return Ok(groups.into_keys().collect());
        }
        let keys: Vec<Key> = groups.values().cloned().collect();
        let found = stored.find(&keys).await?;
        let mut there = BTreeSet::new();
        for (text, key) in groups {
            if found.contains(&stored.form(&key)?) {
                there.insert(text);
            }
        }
        Ok(there)
    }

    /// The groups that this partition computes. Those without rows are deleted among those of this run alone.
    async fn touched(&self) -> Result<VecDeque<(String, BTreeSet<String>)>> {
        let table = self.groups.table(TOUCHED)?;
        let read = ReadSpec::all(table.destination.clone(), &table.schema.columns);
        let mut reader = self.groups.read(&self.groups.destination, &read, Slice::All).await?;
        let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            let column = batch.rows.column(0);
            for row in 0..batch.len() {
                let Some(form) = text::cell(column.as_ref(), row)? else {
                    continue;
                };
                let group = form.strip_prefix(LATER).unwrap_or(&form);
                let shard = xxhash_rust::xxh3::xxh3_64(group.as_bytes()) % u64::from(self.shard.1);
                let done = self.after.as_deref().is_some_and(|after| group <= after);
                let later = self.deletes && group != form;
                if shard == u64::from(self.shard.0) && !done && !later {
                    found.entry(group.to_string()).or_default().insert(form);
                }
            }
        }
        Ok(found.into_iter().collect())
    }
}

/// Deletes of groups that have no rows any more, in the form that is read, so that they pass the stages too.
fn gone<'a>(table: &PlannedTable, groups: impl Iterator<Item = &'a Key>) -> Result<Event> {
    let schema = table.read.schema();
    let mut builders: Vec<ColumnBuilder> = schema.columns.iter().map(ColumnBuilder::new).collect();
    for values in groups {
        for (builder, column) in builders.iter_mut().zip(&schema.columns) {
            let place = table.read.group_by.iter().position(|g| *g == column.name);
            builder.append_cell(place.and_then(|p| values.get(p)?.as_deref()))?;
        }
    }
    let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
    let rows = RecordBatch::try_new(schema.arrow_schema(), arrays)
        .map_err(|e| Error::bug(format!("groups do not fit the planned table: {e}")))?;
    Ok(Event::Rows(ChangeBatch {
        ops: Ops::All(Op::Delete),
        ..ChangeBatch::inserts(Arc::new(table.read.table.clone()), rows, Default::default())
    }))
}
