//! Aggregate: groups whose rows changed are found and computed anew from all their rows.
//!
//! A delta tells which rows changed, and so which groups they are in now. It does not tell which groups they were in
//! before: a row that moved leaves a wrong total behind. So the destination keeps a **key map**, one row per row of the
//! source with the group it was last seen in. A changed row touches its group of now and the one in the map; both are
//! computed anew, and a group that no longer has rows is deleted. The map, the list of touched groups and the watermark
//! are written in the same transactions as the data.
//!
//! A row of a join may be in several groups, and one without a partner is in none: there the map has one row per row of
//! the table read, with all its groups, and which they are now is asked anew for every row that changed, or whose partner
//! did.
//!
//! A row that was deleted at the source is in no delta. `deletes: anti_join` compares the map's keys with the source's
//! (by hashes of blocks, so that it costs one scan of the keys) and touches the groups of rows that are gone; otherwise
//! the `hash` strategy, which compares the source's groups with the destination's rows, puts such groups right.
//!
//! Between finding changed rows and computing their groups, other rows come. A group that holds rows behind the window is
//! right, but nobody knows which of them were counted: one that leaves it before the next window was never in the map. So
//! each group says, in the query that computes it, whether it has such rows (and rows without a stamp, which no window
//! has), and one that does is left to the next run. Groups that another strategy wrote say nothing: all of them are
//! computed once by the next delta. In a first run the map is filled before the groups are computed, so that what moves in
//! between is seen by one of them.
//!
//! Groups without rows are deleted last, when their number is known and the guard has judged it; so are the rows of the
//! map that the source does not have any more, so that a run which the guard stopped still knows them. Rows that are gone
//! also make groups smaller, which no group that goes tells: too many of them are refused as they are found, before the
//! first group is computed without them.
//!
//! The run's plan has three tables: the aggregate, the key map (`_synctool_keys_…`) and the touched groups
//! (`_synctool_groups_…`). A group travels through the latter two as one text, a JSON array of the canonical texts of its
//! columns, so that NULL has a place.

use super::cut::Piece;
use super::delta::{self, Deletes, DeltaRequest, StampedBy, Window};
use super::full;
use super::hash::{self, CompareSpec, Form, HashRequestOptions};
use super::table::{self, ColumnChoice, Resolved, TableRequest};
use crate::blocks::Blocks;
use crate::error::Result;
use crate::plan::{
    Compare, Partition, Phase, Plan, PlannedTable, Publish, ReadColumn, ReadSpec, Repair, Slice, Strategy, Verify,
    Work, short_hash,
};
use crate::progress::{Generation, PartitionId};
use crate::query::{Condition, Term, Test, keeps_rows};
use crate::schema::{Column, ColumnType, TableId, TableSchema};
use crate::sink::Destination;
use crate::source::Source;
use crate::stage::Stages;
use std::collections::BTreeMap;

/// Partitions that compute groups at once.
const SHARDS: u32 = 4;
/// The name under which the destination remembers that the key map is whole.
pub const KEY_MAP: &str = "aggregate:key_map";

/// The name under which the destination remembers that groups were written by another strategy, which tells nobody what
/// it counted.
const GROUPS: &str = "aggregate:groups";
const UNKNOWN: &str = "unknown";

/// Blocks that the keys of the key map are grouped into.
const KEY_BLOCKS: u32 = 4096;

/// The places of tables in an aggregate's plan.
pub(super) const AGGREGATE: usize = 0;
pub(super) const KEYS: usize = 1;
pub(super) const TOUCHED: usize = 2;

/// Under which name rows that are gone are kept until they are forgotten.
pub(super) const GONE: &str = "gone";

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
    let name = delta::watermark_name(&request.delta.cursor);
    let column = delta::cursor_column(source, &request.delta).await?;
    // What a row of the map says of its groups.
    let map = match table.joins.is_empty() {
        true => "1",
        false => "lists",
    };
    let whole = request.row_key.is_empty() || remembered.get(KEY_MAP).is_some_and(|m| m == map);
    let joined = delta::joined_windows(source, &request.delta, remembered).await?;
    let known =
        |(own, ..): &(DeltaRequest, Column, Window)| remembered.contains_key(&delta::watermark_name(&own.cursor));
    let whole = whole && joined.iter().all(known);
    let after = remembered.get(&name).filter(|_| whole).map(String::as_str);
    let window = delta::window(source, &request.delta, &column, after).await?;
    let mut resolved = table::resolve(source, destination, stages, table).await?;
    resolved.check_apart(source, destination, table).await?;
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
    let mut behind = vec![later(&request.delta, &column, &window, request, remembered)?];
    for (own, column, window) in &joined {
        behind.push(later(own, column, window, request, remembered)?);
    }
    let behind: Vec<Condition> = behind.into_iter().flatten().collect();
    let unsettled = match behind.is_empty() {
        true => None,
        false => Some(source.counting(&aggregate.read, &behind).await?),
    };
    let mut phases = Vec::new();
    let first = after.is_none() && request.delta.bounds.is_none();
    let unknown = remembered.get(GROUPS).is_some_and(|g| g == UNKNOWN) && request.delta.bounds.is_none();
    let mut all = Vec::new();
    if first || unknown {
        if !first {
            reasons.push("groups were written by another strategy since: all are computed once".into());
        }
        let regroup = Work::Regroup {
            unsettled: unsettled.clone(),
        };
        all = everything(
            (source, destination, stages),
            request,
            (&resolved, &mut aggregate),
            regroup,
            &mut reasons,
        )
        .await?;
    }
    if first {
        phases.push(Phase {
            name: "clear".into(),
            partitions: vec![partition("clear", Work::Clear)],
        });
        if !request.row_key.is_empty() {
            reasons.push("the key map is filled: it says which group each row was last seen in".into());
            phases.push(Phase {
                name: "key map".into(),
                partitions: fill(source, table, &rows, &request.row_key).await?,
            });
        }
        phases.extend(all);
    } else {
        reasons.push(format!(
            "groups of rows with {} are computed anew",
            between(&window, &request.delta)
        ));
        let mut partitions = Vec::new();
        let rows = unfiltered(&resolved);
        let touch = |slice| Work::Touch { slice, fill: false };
        let within = |mut piece: Piece| {
            piece.source.conditions.extend(table.bounds.iter().cloned());
            piece
        };
        for piece in delta::pieces(source, &request.delta, &column, &rows, &window, &mut reasons).await? {
            partitions.push(within(piece).partition(touch));
        }
        for (own, column, window) in joined.iter().filter(|_| request.delta.bounds.is_none()) {
            reasons.push(format!("so are groups of rows with {}", between(window, own)));
            for mut piece in delta::pieces(source, own, column, &rows, window, &mut reasons).await? {
                // Tables read along may call their cursors alike.
                piece.label = format!("{}__{}", delta::label_of(&own.cursor), piece.label);
                partitions.push(piece.partition(touch));
            }
        }
        phases.push(Phase {
            name: "changed rows".into(),
            partitions,
        });
        let mut forget = None;
        if request.delta.bounds.is_some() {
            reasons.push("only groups of rows inside the bounds; rows that are gone are not looked for".into());
        } else if request.delta.deletes == Deletes::AntiJoin && !request.row_key.is_empty() {
            keys.compare = Some(compare_keys(source, destination, &keys)?);
            reasons.push("groups of rows that the source does not have any more are computed anew too".into());
            let compare = |repair| Compare {
                source: Slice::All,
                destination: Slice::All,
                blocks: Blocks::Spread { count: KEY_BLOCKS },
                repair,
                estimated_rows: 0,
            };
            phases.push(Phase {
                name: "gone rows".into(),
                partitions: vec![partition(GONE, Work::Vanished(compare(Repair::Find)))],
            });
            forget = Some(partition("forget", Work::Vanished(compare(Repair::Deletes))));
        } else {
            reasons.push(match request.row_key.is_empty() {
                true => "groups of rows that were deleted are not seen: the hash strategy puts them right".into(),
                false => "groups of rows that were deleted are not seen: `deletes: anti_join` or the hash strategy puts them right".into(),
            });
        }
        if unknown {
            phases.extend(all);
            phases.extend(forget.map(|forget| Phase {
                name: "forget".into(),
                partitions: vec![forget],
            }));
        } else {
            let renamed = resolved.is_key_changed();
            let mut last = recompute(true, renamed, &unsettled);
            last.partitions.extend(forget);
            phases.extend([recompute(false, renamed, &unsettled), last]);
        }
    }
    reasons.extend(unseen(request));
    let mut remember = BTreeMap::new();
    if let Some(watermark) = &window.watermark {
        remember.insert(name, watermark.clone());
    }
    for (own, _, window) in joined.iter().filter(|_| request.delta.bounds.is_none()) {
        let watermark = window.watermark.clone();
        remember.extend(watermark.map(|w| (delta::watermark_name(&own.cursor), w)));
    }
    if first && !request.row_key.is_empty() {
        remember.insert(KEY_MAP.into(), map.into());
    }
    if unknown {
        remember.insert(GROUPS.into(), "computed".into());
    }
    Ok(Plan {
        pipeline: table.pipeline.clone(),
        run_id: table.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Aggregate,
        reasons,
        semantics: table.semantics.clone(),
        tables: vec![aggregate, keys, touched],
        phases: phases.into(),
        verify: Verify::None,
        guard: table.guard,
        remember,
        created_at: table.now.clone(),
    })
}

/// Rows of a cursor that are behind the window, as far as the next one reads them. Without a key map, or with no window to
/// come that goes on from this one, there are none.
fn later(
    own: &DeltaRequest,
    column: &Column,
    window: &Window,
    request: &AggregateRequest,
    remembered: &BTreeMap<String, String>,
) -> Result<Option<Condition>> {
    let begins = match request.delta.bounds {
        Some(_) => remembered.get(&delta::watermark_name(&own.cursor)),
        None => window.watermark.as_ref(),
    };
    let Some(begins) = begins.filter(|_| !request.row_key.is_empty()) else {
        return Ok(None);
    };
    let lower = Some(match own.stamped_by {
        StampedBy::Database { .. } => begins.clone(),
        StampedBy::App { lag } => delta::before(&column.ty, begins, lag)?,
    });
    Ok(Some(Condition {
        term: own.cursor.clone(),
        test: match column.nullable {
            true => Test::NullOrRange { lower, upper: None },
            false => Test::Range { lower, upper: None },
        },
    }))
}

/// Has the next delta compute all groups, where there is one that knows them: another strategy's `plan` writes groups and
/// does not know of rows that the key map has not seen.
pub fn written_by_another(plan: &mut Plan, remembered: &BTreeMap<String, String>) {
    if remembered.contains_key(KEY_MAP) {
        plan.remember.insert(GROUPS.into(), UNKNOWN.into());
        plan.reasons.push(
            "the next delta computes all groups once, because this strategy does not tell it which rows it counted"
                .into(),
        );
    }
}

/// What no delta of this aggregate sees.
fn unseen(request: &AggregateRequest) -> Vec<String> {
    let table = &request.delta.table;
    let mut told = Vec::new();
    if request.row_key.is_empty() {
        let why = match keeps_rows(&table.joins) {
            true => "the source has no key",
            false => "a right or full join makes groups without a row of the table read",
        };
        told.push(format!(
            "{why}, so the groups that rows left are not known: the hash strategy puts them right"
        ));
    }
    for join in &table.joins {
        let name = join.alias.as_ref().unwrap_or(&join.table.name);
        let followed = |j: &delta::JoinedCursor| match &j.cursor {
            Term::Column { relation, .. } => relation.as_ref() == Some(name),
            Term::Sql(_) => false,
        };
        told.push(match request.delta.joined.iter().any(followed) {
            true => format!(
                "a row of {name} that was deleted, or joins another row of {} than before, leaves a group behind that is not seen: \
                 the hash strategy puts it right",
                table.source
            ),
            false => format!("changes of {name} alone are not seen: name the column that stamps them in `cursor_tables`"),
        });
    }
    told
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

pub(super) fn partition(id: &str, work: Work) -> Partition {
    Partition {
        table: AGGREGATE,
        ..Partition::new(id, work)
    }
}

fn recompute(deletes: bool, renamed: bool, unsettled: &Option<Term>) -> Phase {
    let name = match deletes {
        false => "groups",
        true => "gone groups",
    };
    let work = |shard| Work::Recompute {
        shard,
        shards: SHARDS,
        deletes,
        renamed,
        unsettled: unsettled.clone(),
    };
    Phase {
        name: name.into(),
        partitions: (0..SHARDS)
            .map(|shard| partition(&format!("{}_{shard}", name.replace(' ', "_")), work(shard)))
            .collect(),
    }
}

/// Every group is computed; those that only the destination has are found by comparing, and deleted.
async fn everything(
    (source, destination, stages): (&dyn Source, &dyn Destination, &dyn Stages),
    request: &AggregateRequest,
    (resolved, aggregate): (&Resolved, &mut PlannedTable),
    regroup: Work,
    reasons: &mut Vec<String>,
) -> Result<Vec<Phase>> {
    let table = &request.delta.table;
    let mut phases = vec![Phase {
        name: "groups".into(),
        partitions: vec![partition("groups_all", regroup)],
    }];
    if resolved.existing.is_none() || destination.is_empty(&table.destination).await? {
        reasons.push("the destination has no groups yet: all are computed".into());
        return Ok(phases);
    }
    reasons.push(
        "the destination has groups of unknown age: all are computed, those that differ are written, those without rows deleted"
            .into(),
    );
    let options = HashRequestOptions {
        table: TableRequest {
            // They cut the window of changed rows, and would cut through groups.
            dimensions: Vec::new(),
            ..table.clone()
        },
        tracked: None,
        form: Form::Auto,
        deletes: true,
        remember: BTreeMap::new(),
    };
    let (planned, compares, told) = hash::prepare(source, destination, stages, &options).await?;
    reasons.extend(told);
    aggregate.compare = planned.compare;
    phases.push(Phase {
        name: "compare".into(),
        partitions: hash::partitions("compare", &compares, Repair::Find),
    });
    phases.push(Phase {
        name: "delete".into(),
        partitions: hash::partitions("delete", &compares, Repair::Deletes),
    });
    Ok(phases)
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
        own: true,
        ..PlannedTable::new(read, destination, schema, Publish::Direct)
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
        read: keys_alone(&keys.read),
        changed: Vec::new(),
        existing: Some(schema.clone()),
        schema,
        row_hash: None,
        widen: Vec::new(),
        reasons: Vec::new(),
    };
    hash::compare_keys(source, destination, &resolved, &mut Vec::new())
}

/// What identifies the rows of the table read, and nothing of the tables that are read along.
pub(super) fn keys_alone(rows: &ReadSpec) -> ReadSpec {
    ReadSpec {
        columns: rows
            .columns
            .iter()
            .filter(|c| c.column.name.starts_with("k_"))
            .cloned()
            .collect(),
        joins: Vec::new(),
        ..rows.clone()
    }
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
    let slices = source.slices(&keys_alone(rows), &slicing).await?;
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
