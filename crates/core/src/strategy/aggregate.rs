//! Aggregate: groups whose rows changed are found and computed anew from all their rows.
//!
//! A delta tells which rows changed, and so which groups they are in now. It does not tell which groups they were in
//! before: a row that moved leaves a wrong total behind. So the destination keeps a **key map**, one row per row of the
//! source with the group it was last seen in. A changed row touches its group of now and the one in the map; both are
//! computed anew, and a group that no longer has rows is deleted. The map, the list of touched groups and the watermark
//! are written in the same transactions as the data.
//!
//! A row that was deleted at the source is in no delta. `deletes: anti_join` compares the map's keys with the source's
//! (by hashes of blocks, so that it costs one scan of the keys) and touches the groups of rows that are gone; otherwise
//! the `hash` strategy, which compares the source's groups with the destination's rows, puts such groups right.
//!
//! The run's plan has three tables: the aggregate, the key map (`_synctool_keys_…`) and the touched groups
//! (`_synctool_groups_…`). A group travels through the latter two as one text, a JSON array of the canonical texts of its
//! columns, so that NULL has a place.

use super::delta::{self, Deletes, DeltaRequest, Window};
use super::full;
use super::hash::{self, CompareSpec, Comparison, Form, HashRequestOptions, Key, Pair};
use super::steps::{Steps, Stepwise};
use super::table::{self, ColumnChoice, Resolved, TableRequest};
use crate::blocks::Blocks;
use crate::change::{ChangeBatch, Event, Op, Ops};
use crate::error::{Error, Result, code};
use crate::plan::{
    Compare, Partition, Phase, Plan, PlannedTable, Publish, ReadColumn, ReadSpec, Repair, Slice, Strategy, Verify,
    Work, short_hash,
};
use crate::progress::{Generation, PartitionId, Position};
use crate::query::{KeyList, Term};
use crate::schema::{Column, ColumnType, TableId, TableSchema};
use crate::sink::Destination;
use crate::source::{ReadContext, Reader, Source};
use crate::stage::{NoStages, Stages};
use crate::text::{self, ColumnBuilder};
use arrow_array::RecordBatch;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Groups computed in one query.
const GROUPS: usize = 500;
/// Partitions that compute groups at once.
const SHARDS: u32 = 4;
/// The name under which the destination remembers that the key map is whole.
pub const KEY_MAP: &str = "aggregate:key_map";

/// Blocks that the keys of the key map are grouped into.
const KEY_BLOCKS: u32 = 4096;

/// The places of tables in an aggregate's plan.
const AGGREGATE: usize = 0;
const KEYS: usize = 1;
const TOUCHED: usize = 2;

/// What the user asked for: the delta that finds changed rows, over a table request whose columns are the groups and
/// their aggregates.
#[derive(Debug, Clone)]
pub struct AggregateRequest {
    /// The delta; its table has `group_by`.
    pub delta: DeltaRequest,
    /// What identifies a row of the source, so that the group it was in is known; empty: rows never move between groups.
    pub row_key: Vec<String>,
}

/// Makes the plan. `after` is the delta's watermark; without one, or without a key map, everything is computed.
pub async fn plan(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &AggregateRequest,
    remembered: &BTreeMap<String, String>,
) -> Result<Plan> {
    let table = &request.delta.table;
    if !destination.traits().applies_changes {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!("{} cannot apply changes to a table", destination.engine()),
        )
        .hint("use strategy full: every group is computed and the table replaced"));
    }
    let name = delta::watermark_name(&request.delta.cursor);
    let column = delta::cursor_column(source, &request.delta).await?;
    let whole = request.row_key.is_empty() || remembered.contains_key(KEY_MAP);
    let after = remembered.get(&name).filter(|_| whole).map(String::as_str);
    let window = delta::window(source, &request.delta, &column, after).await?;
    let mut resolved = table::resolve(source, destination, stages, table).await?;
    resolved.read.raw = None;
    let mut reasons = std::mem::take(&mut resolved.reasons);
    let rows = rows_of(source, request).await?;
    let nullable = |g: &&String| {
        rows.columns
            .iter()
            .any(|c| c.column.name == format!("g_{g}") && c.column.nullable)
    };
    for group in table.group_by.iter().filter(nullable) {
        reasons.push(format!(
            "rows without {group} are a group that no key can hold, and would stop the run: \
             `{{dest: {group}, expr: coalesce({group}, …)}}` gives them one"
        ));
    }
    let mut keys = keys_table(request, &rows);
    let touched = touched_table(request);
    let mut aggregate = resolved.planned(table, Publish::Direct);
    let mut phases = Vec::new();
    let first = after.is_none() && request.delta.bounds.is_none();
    if first {
        phases.push(Phase {
            name: "clear".into(),
            partitions: vec![partition("clear", Work::Clear)],
        });
        phases.extend(
            everything(
                source,
                destination,
                stages,
                request,
                &resolved,
                &mut aggregate,
                &mut reasons,
            )
            .await?,
        );
        if !request.row_key.is_empty() {
            reasons.push("the key map is filled: it says which group each row was last seen in".into());
            phases.push(Phase {
                name: "key map".into(),
                partitions: fill(source, table, &rows, &request.row_key).await?,
            });
        }
    } else {
        reasons.push(format!(
            "groups of rows with {} are computed anew",
            between(&window, &request.delta)
        ));
        let mut partitions = Vec::new();
        for piece in delta::pieces(source, &request.delta, &column, &unfiltered(&resolved), &window).await? {
            partitions.push(piece.partition(|slice| Work::Touch { slice, fill: false }));
        }
        phases.push(Phase {
            name: "changed rows".into(),
            partitions,
        });
        if request.delta.deletes == Deletes::AntiJoin && !request.row_key.is_empty() {
            keys.compare = Some(compare_keys(source, destination, &keys)?);
            reasons.push("groups of rows that the source does not have any more are computed anew too".into());
            let compare = Compare {
                source: Slice::All,
                destination: Slice::All,
                blocks: Blocks::Spread { count: KEY_BLOCKS },
                repair: Repair::Find,
                estimated_rows: 0,
            };
            phases.push(Phase {
                name: "gone rows".into(),
                partitions: vec![partition("gone", Work::Vanished(compare))],
            });
        } else {
            reasons.push(
                "groups of rows that were deleted are not seen: `deletes: anti_join` or the hash strategy puts them right"
                    .into(),
            );
        }
        phases.push(recompute());
    }
    if request.row_key.is_empty() {
        reasons.push(
            "the source has no key, so the groups that rows left are not known: the hash strategy puts them right"
                .into(),
        );
    }
    let mut remember = BTreeMap::new();
    if let Some(watermark) = &window.watermark {
        remember.insert(name, watermark.clone());
    }
    if first && !request.row_key.is_empty() {
        remember.insert(KEY_MAP.into(), "1".into());
    }
    Ok(Plan {
        pipeline: table.pipeline.clone(),
        run_id: table.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Aggregate,
        reasons,
        semantics: table.semantics.clone(),
        tables: vec![aggregate, keys, touched],
        phases,
        verify: Verify::None,
        guard: table.guard,
        remember,
        created_at: table.now.clone(),
    })
}

fn between(window: &Window, request: &DeltaRequest) -> String {
    let show = |v: &Option<String>, open: &str| v.clone().unwrap_or_else(|| open.into());
    let mut text = format!(
        "{} from {} up to {}",
        request.cursor,
        show(&window.lower, "the first"),
        show(&window.upper, "the last")
    );
    if let Some(who) = window.settled.as_ref().and_then(|s| s.held_by.as_ref()) {
        text.push_str(&format!(" (held back by {who})"));
    }
    text
}

fn partition(id: &str, work: Work) -> Partition {
    Partition {
        id: PartitionId::from(id),
        table: AGGREGATE,
        work,
        estimated_rows: 0,
        estimated_bytes: 0,
    }
}

fn recompute() -> Phase {
    Phase {
        name: "groups".into(),
        partitions: (0..SHARDS)
            .map(|shard| partition(&format!("groups_{shard}"), Work::Recompute { shard, shards: SHARDS }))
            .collect(),
    }
}

/// Every group, into an empty table by reading, into one with rows by comparing.
async fn everything(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &AggregateRequest,
    resolved: &Resolved,
    aggregate: &mut PlannedTable,
    reasons: &mut Vec<String>,
) -> Result<Vec<Phase>> {
    let table = &request.delta.table;
    let empty = resolved.existing.is_none() || destination.is_empty(&table.destination).await?;
    if empty {
        reasons.push("the destination has no groups yet: all are computed".into());
        aggregate.changes = Some(Default::default());
        return Ok(vec![Phase {
            name: "groups".into(),
            partitions: vec![partition("groups_all", Work::Read(Slice::All))],
        }]);
    }
    reasons.push("the destination has groups of unknown age: all are compared, those that differ are written".into());
    let options = HashRequestOptions {
        table: table.clone(),
        tracked: None,
        form: Form::Auto,
        deletes: true,
        remember: BTreeMap::new(),
    };
    let (planned, compares, told) = hash::prepare(source, destination, stages, &options).await?;
    reasons.extend(told);
    aggregate.compare = planned.compare;
    Ok(vec![
        Phase {
            name: "compare".into(),
            partitions: hash::partitions("compare", &compares, Repair::Upserts),
        },
        Phase {
            name: "delete".into(),
            partitions: hash::partitions("delete", &compares, Repair::Deletes),
        },
    ])
}

/// Rows as the key map wants them: what identifies each, and its group.
async fn rows_of(source: &dyn Source, request: &AggregateRequest) -> Result<ReadSpec> {
    let table = &request.delta.table;
    let mut columns: Vec<ReadColumn> = request
        .row_key
        .iter()
        .map(|k| ReadColumn {
            source: k.clone(),
            term: Some(Term::column(k)),
            column: Column::new(format!("k_{k}"), ColumnType::Native),
        })
        .collect();
    for group in &table.group_by {
        let choice = table.columns.iter().flatten().find(|c| c.destination == *group);
        let choice = choice.cloned().unwrap_or_else(|| ColumnChoice::same(group));
        columns.push(ReadColumn {
            term: Some(choice.term.unwrap_or_else(|| Term::column(&choice.source))),
            source: choice.source,
            column: Column::new(format!("g_{group}"), ColumnType::Native),
        });
    }
    let mut read = ReadSpec {
        alias: table.alias.clone(),
        joins: table.joins.clone(),
        // A row that no longer meets a filter has still left its group.
        ..ReadSpec::of(table.source.clone(), columns)
    };
    let described = source.describe_query(&read).await?;
    for (column, mut found) in read.columns.iter_mut().zip(described) {
        found.name.clone_from(&column.column.name);
        column.column = found;
    }
    Ok(read)
}

fn table_name(request: &AggregateRequest, kind: &str) -> TableId {
    let table = &request.delta.table;
    TableId {
        schema: table.destination.schema.clone(),
        name: format!("_synctool_{kind}_{}", short_hash(&table.pipeline)),
    }
}

const GROUP: &str = "group_key";

fn direct(read: ReadSpec, destination: TableId, schema: TableSchema) -> PlannedTable {
    PlannedTable {
        read,
        destination,
        schema,
        publish: Publish::Direct,
        changes: None,
        evolve: false,
        compare: None,
        own: true,
        row_hash: None,
    }
}

fn keys_table(request: &AggregateRequest, rows: &ReadSpec) -> PlannedTable {
    let text = || ColumnType::Text { max: None };
    let mut columns: Vec<Column> = request
        .row_key
        .iter()
        .map(|k| Column::new(format!("k_{k}"), text()).not_null())
        .collect();
    let mut key: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
    columns.push(Column::new(GROUP, text()).not_null());
    if key.is_empty() {
        key.push(GROUP.into());
    }
    direct(rows.clone(), table_name(request, "keys"), TableSchema { columns, key })
}

fn touched_table(request: &AggregateRequest) -> PlannedTable {
    let schema = TableSchema {
        columns: vec![Column::new(GROUP, ColumnType::Text { max: None }).not_null()],
        key: vec![GROUP.into()],
    };
    // Nothing is read under its own name, so that its rows are never taken for the source's.
    let read = ReadSpec::of(request.delta.table.source.clone(), Vec::new());
    direct(read, table_name(request, "groups"), schema)
}

/// How the key map's keys are compared with the source's.
fn compare_keys(source: &dyn Source, destination: &dyn Destination, keys: &PlannedTable) -> Result<CompareSpec> {
    let schema = TableSchema {
        columns: keys
            .schema
            .columns
            .iter()
            .filter(|c| c.name != GROUP)
            .cloned()
            .collect(),
        key: keys.schema.key.clone(),
    };
    let resolved = Resolved {
        read: keys.read.clone(),
        existing: Some(schema.clone()),
        schema,
        row_hash: None,
        reasons: Vec::new(),
    };
    hash::compare_keys(source, destination, &resolved)
}

/// The table's rows by slices of their own key.
async fn fill(
    source: &dyn Source,
    table: &TableRequest,
    rows: &ReadSpec,
    row_key: &[String],
) -> Result<Vec<Partition>> {
    let slicing = crate::source::SliceRequest {
        key: row_key.to_vec(),
        step: None,
        min_slices: full::MIN_SLICES,
        max_slice_bytes: table.partition_bytes,
        single: false,
    };
    let slices = source.slices(rows, &slicing).await?;
    Ok(slices
        .into_iter()
        .map(|s| Partition {
            id: PartitionId::from(format!("keys__{}", s.label)),
            table: AGGREGATE,
            work: Work::Touch {
                slice: s.slice,
                fill: true,
            },
            estimated_rows: s.rows,
            estimated_bytes: s.bytes,
        })
        .collect())
}

/// Changed rows are looked for whether or not they still meet the filters.
fn unfiltered(resolved: &Resolved) -> Resolved {
    let mut resolved = resolved.clone();
    resolved.read.filters.clear();
    resolved.read.group_by.clear();
    resolved.read.columns.clear();
    resolved
}

/// Both ends of an aggregate's plan.
#[derive(Clone)]
pub(crate) struct Groups {
    pub(crate) source: Arc<dyn Source>,
    pub(crate) destination: Arc<dyn Source>,
    pub(crate) tables: Arc<[PlannedTable]>,
    pub(crate) context: ReadContext,
}

impl Groups {
    fn table(&self, place: usize) -> Result<&PlannedTable> {
        self.tables
            .get(place)
            .ok_or_else(|| Error::bug("an aggregate's plan without its tables"))
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
            let read = groups.table(KEYS)?.read.clone();
            let reader = groups.read(&groups.source, &read, slice.clone()).await?;
            Box::new(Stepwise::new(Touch {
                groups: groups.clone(),
                keys: read.columns.iter().filter(|c| c.column.name.starts_with("k_")).count(),
                reader,
                fill: *fill,
            }))
        }
        Work::Vanished(compare) => {
            let pair = Pair::new(
                groups.source.clone(),
                groups.destination.clone(),
                Arc::new(NoStages),
                groups.table(KEYS)?,
                &groups.context,
            )?;
            Box::new(Stepwise::new(Vanished {
                groups: groups.clone(),
                pair: Arc::new(pair),
                compare: compare.clone(),
                after: after.and_then(|p| p.as_str().strip_prefix("block ")?.parse().ok()),
                comparison: None,
            }))
        }
        Work::Recompute { shard, shards } => Box::new(Stepwise::new(Recompute {
            groups: groups.clone(),
            shard: (*shard, *shards),
            waiting: None,
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
        for row in 0..batch.len() {
            let cells = batch
                .rows
                .columns()
                .iter()
                .map(|c| text::cell(c.as_ref(), row))
                .collect::<Result<Vec<_>>>()?;
            let (key, group) = cells.split_at(self.keys);
            let group = group_text(group)?;
            touched.insert(group.clone());
            if self.keys > 0 {
                let key = key
                    .iter()
                    .cloned()
                    .collect::<Option<Vec<String>>>()
                    .ok_or_else(|| Error::new(code::VALUE_MALFORMED, "a key column of the source holds NULL"))?;
                map.insert(key, group);
            }
        }
        let mut events = VecDeque::new();
        if !self.fill {
            if self.keys > 0 {
                touched.extend(before(&self.groups, map.keys()).await?.into_values());
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

/// Finds rows that were deleted at the source; touches their groups and forgets them.
struct Vanished {
    groups: Groups,
    pair: Arc<Pair>,
    compare: Compare,
    /// Blocks up to this one are done.
    after: Option<i64>,
    comparison: Option<Comparison>,
}

#[async_trait]
impl Steps for Vanished {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let Some(comparison) = &mut self.comparison else {
            let started = Comparison::start(self.pair.clone(), &self.compare, true, self.after).await?;
            self.comparison = Some(started);
            return Ok(Some(VecDeque::new()));
        };
        let Some(group) = comparison.next().await? else {
            return Ok(None);
        };
        let gone: Vec<Vec<String>> = group
            .only_destination
            .into_iter()
            .filter_map(|key| key.into_iter().collect())
            .collect();
        let map = before(&self.groups, gone.iter()).await?;
        let touched: BTreeSet<&String> = map.values().collect();
        let touched: Vec<Vec<String>> = touched.into_iter().map(|g| vec![g.clone()]).collect();
        let rows = key_rows(map);
        let mut events = VecDeque::new();
        if !rows.is_empty() {
            events.push_back(self.groups.batch(TOUCHED, &touched, Op::Upsert)?);
            events.push_back(self.groups.batch(KEYS, &rows, Op::Delete)?);
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

fn group_text(values: &[Option<String>]) -> Result<String> {
    serde_json::to_string(values).map_err(|e| Error::bug(format!("a group as text: {e}")))
}

/// Computes touched groups from all their rows; groups without rows are deleted.
struct Recompute {
    groups: Groups,
    shard: (u32, u32),
    /// Groups still to do; `None` before they were asked for.
    waiting: Option<VecDeque<String>>,
}

#[async_trait]
impl Steps for Recompute {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let Some(waiting) = &mut self.waiting else {
            self.waiting = Some(self.touched().await?);
            return Ok(Some(VecDeque::new()));
        };
        let page: Vec<String> = waiting.drain(..waiting.len().min(GROUPS)).collect();
        let Some(last) = page.last().cloned() else {
            return Ok(None);
        };
        let table = self.groups.table(AGGREGATE)?;
        let by: Vec<&ReadColumn> = table
            .read
            .group_by
            .iter()
            .map(|g| {
                table
                    .read
                    .columns
                    .iter()
                    .find(|c| c.column.name == *g)
                    .ok_or_else(|| Error::bug("a group column that is not read"))
            })
            .collect::<Result<_>>()?;
        let mut keys = BTreeMap::new();
        for group in &page {
            let values: Key = serde_json::from_str(group)
                .map_err(|_| Error::new(code::VALUE_MALFORMED, "a touched group is not a list of values"))?;
            keys.insert(group.clone(), values);
        }
        let slice = Slice::Keys(KeyList {
            terms: by.iter().map(|c| c.term()).collect(),
            keys: keys.values().cloned().collect(),
        });
        let mut events = VecDeque::new();
        let mut reader = self.groups.read(&self.groups.source, &table.read, slice).await?;
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            for row in 0..batch.len() {
                let group = by
                    .iter()
                    .map(|c| {
                        let column = batch
                            .rows
                            .column_by_name(&c.column.name)
                            .ok_or_else(|| Error::bug("a group column was lost on the way"))?;
                        text::cell(column.as_ref(), row)
                    })
                    .collect::<Result<Vec<_>>>()?;
                keys.remove(&group_text(&group)?);
            }
            events.push_back(Event::Rows(ChangeBatch {
                ops: Ops::All(Op::Upsert),
                ..batch
            }));
        }
        if !keys.is_empty() {
            events.push_back(gone(table, keys.values())?);
        }
        let done: Vec<Vec<String>> = page.into_iter().map(|g| vec![g]).collect();
        events.push_back(self.groups.batch(TOUCHED, &done, Op::Delete)?);
        events.push_back(Event::Boundary {
            position: Position(last),
            committed_at: None,
            tx: None,
        });
        Ok(Some(events))
    }
}

impl Recompute {
    async fn touched(&self) -> Result<VecDeque<String>> {
        let table = self.groups.table(TOUCHED)?;
        let read = ReadSpec::all(table.destination.clone(), &table.schema.columns);
        let mut reader = self.groups.read(&self.groups.destination, &read, Slice::All).await?;
        let mut found = BTreeSet::new();
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            let column = batch.rows.column(0);
            for row in 0..batch.len() {
                let group = text::cell(column.as_ref(), row)?;
                let mine = |g: &String| {
                    xxhash_rust::xxh3::xxh3_64(g.as_bytes()) % u64::from(self.shard.1) == u64::from(self.shard.0)
                };
                found.extend(group.filter(mine));
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
            match place.and_then(|p| values.get(p)?.as_deref()) {
                Some(value) => builder.append_text(value)?,
                None => builder.append_null(),
            }
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
