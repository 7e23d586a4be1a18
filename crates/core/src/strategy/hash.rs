//! Hash: both ends are compared by blocks of row hashes; only rows that differ are read and written.
//!
//! A partition is a slice of the table at both ends. Each end groups its rows into blocks by key and yields a count and
//! two sums per block ([`crate::blocks`]) in one scan; blocks that differ are looked at row by row, and the rows that
//! differ are fetched by key. Inserts and updates are written in the first phase; deletes wait for the second one, so
//! that the guard knows how many they are before the first one is made.

use super::steps::{Steps, Stepwise};
use super::table::{Resolved, TableRequest, no_key};
use super::{cut, full};
use crate::blocks::{Block, BlockHashes, Blocks, Field, HashRequest, ReadingHashes, RowForm, RowHash, form_of};
use crate::change::{ChangeBatch, Event, KeyRange, Op, Ops};
use crate::conform::conform;
use crate::error::{Among, Error, Result, code};
use crate::keys::KeyColumn;
use crate::ledger::Compared;
use crate::plan::{
    Compare, Partition, Phase, Plan, PlannedTable, Publish, ReadColumn, ReadSpec, Repair, Slice, Strategy, Verify, Work,
};
use crate::progress::{Generation, PartitionId, Position};
use crate::query::{Filter, KeyList, Term};
use crate::schema::{Column, ColumnType, TableId, TableSchema};
use crate::sink::Destination;
use crate::source::{PlannedSlice, ReadContext, Reader, SliceRequest, Source, TableInfo};
use crate::stage::{Stage, Stages, Written};
use crate::text::ColumnBuilder;
use arrow_array::{RecordBatch, UInt32Array};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

/// Rows per block: small enough that a differing block costs little, large enough that blocks are few.
const BLOCK_ROWS: u64 = 512;
/// Differing blocks are looked at row by row together while they hold so many rows.
const GROUP_ROWS: u64 = 20_000;
/// Where blocks are no ranges, each group costs a scan of the slice: no more groups than these, while they hold at most so
/// many rows.
const GROUPS: u64 = 64;
const GROUP_ROWS_AT_MOST: u64 = 300_000;
/// Rows fetched by key in one query.
const FETCH_ROWS: usize = 1000;

/// How a user wants rows hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Form {
    /// The fast form where both ends agree on one, else the canonical one.
    #[default]
    Auto,
    /// The canonical form, whatever the ends are, by the cheapest hash that both have.
    Canonical,
    /// MD5 of the canonical form, whatever the ends are.
    Md5,
    /// What a column stores, at both ends under this destination name.
    Stored(String),
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct HashRequestOptions {
    /// Of the table.
    pub table: TableRequest,
    /// The columns whose changes count, in destination names; `None`: all that are written.
    pub tracked: Option<Vec<String>>,
    /// How rows are hashed.
    pub form: Form,
    /// Whether rows that only the destination has are deleted.
    pub deletes: bool,
    /// What the destination remembers once the run is done.
    pub remember: BTreeMap<String, String>,
}

/// How a planned table is compared: decided once, stored with the plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompareSpec {
    /// The destination's columns that are compared, with their own types.
    pub columns: Vec<ComparedColumn>,
    /// The key's columns.
    pub key: Vec<ComparedColumn>,
    /// How a row becomes 128 bits.
    pub form: RowForm,
    /// Whether the source computes hashes itself; otherwise its rows are read.
    pub at_source: bool,
    /// The same of the destination.
    pub at_destination: bool,
    /// Whether rows pass stages before they are compared.
    pub staged: bool,
    /// Whether the stages make the key: then nobody can ask the source for the row of a key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_key: bool,
    /// The conditions that rows of the source must meet to count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

/// A column that both ends have.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ComparedColumn {
    /// As it is stored at the destination.
    pub stored: Column,
    /// The type it is compared as.
    pub ty: ColumnType,
}

/// Decides how two ends are compared. Says in `reasons` what is worth knowing.
pub fn compare_spec(
    source: &dyn Source,
    destination: &dyn Source,
    resolved: &Resolved,
    staged: bool,
    tracked: Option<&[String]>,
    form: &Form,
    reasons: &mut Vec<String>,
) -> Result<CompareSpec> {
    let existing = resolved
        .existing
        .as_ref()
        .ok_or_else(|| Error::bug("a comparison with a table that does not exist"))?;
    let compared = |name: &str| -> Result<Option<ComparedColumn>> {
        let Some(stored) = existing.column(name) else {
            return Ok(None);
        };
        let written = resolved.schema.column(name).ok_or_else(|| {
            Error::no_column(
                Among::Table,
                name,
                format!("column {name} is not among the columns written"),
            )
            .hint("write the column too")
        })?;
        let own = resolved.read.columns.iter().find(|c| c.column.name == name);
        let own = own.filter(|_| !staged).map_or(&written.ty, |c| &c.column.ty);
        let ty = match own.fits(&stored.ty) {
            true => stored.ty.clone(),
            false => own.clone(),
        };
        Ok(Some(ComparedColumn {
            stored: stored.clone(),
            ty,
        }))
    };
    let names: Vec<String> = match (form, tracked) {
        // Compared beside the key, as a column like others: hashes that know nothing of the key add up to the same where
        // rows trade places.
        (Form::Stored(column), _) => vec![column.clone()],
        (_, Some(tracked)) => tracked.to_vec(),
        (_, None) => resolved.schema.columns.iter().map(|c| c.name.clone()).collect(),
    };
    let mut columns = Vec::new();
    let mut absent = Vec::new();
    let is_hash = |n: &String| resolved.row_hash.as_ref().is_some_and(|h| h.column == *n);
    for name in names.iter().filter(|n| !resolved.schema.key.contains(n) && !is_hash(n)) {
        match compared(name)? {
            Some(column) => columns.push(column),
            None => absent.push(name.clone()),
        }
    }
    let mut key = Vec::new();
    for name in &resolved.schema.key {
        key.push(compared(name)?.ok_or_else(|| {
            Error::new(
                code::SCHEMA_MISMATCH,
                format!("the destination has no key column {name}, so its rows cannot be told apart"),
            )
            .hint("add the column at the destination, or name as `key` columns that it has")
        })?);
    }
    if let (Form::Stored(column), false) = (form, absent.is_empty()) {
        return Err(Error::new(
            code::SCHEMA_MISMATCH,
            format!("the destination has no column {column}, by whose hashes rows are compared"),
        )
        .hint("add the column at the destination, or take `hash_key` from it"));
    }
    if !absent.is_empty() {
        reasons.push(format!(
            "the destination has no column {}: rows are compared without it",
            absent.join(", ")
        ));
    }
    if tracked.is_some() {
        let shown: Vec<&str> = columns.iter().map(|c| c.stored.name.as_str()).collect();
        reasons.push(format!(
            "only changes of {} count; such a row is written whole",
            shown.join(", ")
        ));
    }
    let mut spec = CompareSpec {
        columns,
        key,
        form: RowForm::Canonical,
        at_source: false,
        at_destination: false,
        staged,
        made_key: staged && resolved.is_key_changed(),
        filters: resolved.read.filters.clone(),
    };
    let sides = Sides::new(resolved, &spec);
    if let Form::Stored(column) = form {
        reasons.push(format!("rows are compared by the hash stored in {column}"));
    }
    if !staged && !matches!(form, Form::Canonical | Form::Md5) {
        let fast = |engine: Option<&dyn BlockHashes>, side: &Side| {
            let places: Vec<usize> = side.key.iter().chain(&side.compared).map(|f| f.place).collect();
            engine.and_then(|e| e.fast_form(&side.read, &places))
        };
        let at_source = fast(source.block_hashes(), &sides.source);
        if let Some(signature) = at_source
            && fast(destination.block_hashes(), &sides.destination).as_ref() == Some(&signature)
        {
            reasons.push("rows are compared by the engine's own record hash: both ends compute the same".into());
            spec.form = RowForm::Fast(signature);
            (spec.at_source, spec.at_destination) = (true, true);
            return Ok(spec);
        }
    }
    let canonical = |engine: Option<&dyn BlockHashes>, side: &Side| {
        engine.is_some_and(|e| {
            side.key
                .iter()
                .chain(&side.compared)
                .all(|f| e.canonical(&side.read.columns[f.place].column.ty, &f.ty))
        })
    };
    spec.at_source = !staged && canonical(source.block_hashes(), &sides.source);
    spec.at_destination = canonical(destination.block_hashes(), &sides.destination);
    let text = |end: &dyn Source| end.block_hashes().and_then(BlockHashes::text_form);
    if spec.at_source
        && spec.at_destination
        && *form != Form::Md5
        && let Some(signature) = text(source)
        && text(destination).as_ref() == Some(&signature)
    {
        reasons.push(
            "rows are compared by the engine's own hash of their canonical form: both ends compute the same".into(),
        );
        spec.form = RowForm::Text(signature);
        return Ok(spec);
    }
    reasons.push(match (spec.at_source, spec.at_destination) {
        (true, true) => "rows are compared by MD5 of their canonical form, computed in both databases".into(),
        (at_source, at_destination) => {
            let read: Vec<&str> = [("source", at_source), ("destination", at_destination)]
                .into_iter()
                .filter_map(|(end, in_engine)| (!in_engine).then_some(end))
                .collect();
            format!(
                "rows of the {} are read and hashed here: the database cannot compute the canonical form of every column compared",
                read.join(" and the ")
            )
        }
    });
    Ok(spec)
}

/// What is hashed at one end.
#[derive(Debug, Clone)]
struct Side {
    read: ReadSpec,
    key: Vec<Field>,
    compared: Vec<Field>,
}

/// Both ends of a comparison.
#[derive(Debug, Clone)]
struct Sides {
    source: Side,
    destination: Side,
}

impl Sides {
    fn new(resolved: &Resolved, spec: &CompareSpec) -> Sides {
        Sides::of(&resolved.read, &resolved.schema, None, spec)
    }

    fn planned(table: &PlannedTable, spec: &CompareSpec) -> Sides {
        Sides::of(&table.read, &table.schema, Some(&table.destination), spec)
    }

    fn of(read: &ReadSpec, schema: &TableSchema, destination: Option<&TableId>, spec: &CompareSpec) -> Sides {
        let at_source = match spec.staged {
            // Rows that passed the stages have the columns that are written.
            true => ReadSpec {
                filters: spec.filters.clone(),
                ..ReadSpec::all(read.table.clone(), &schema.columns)
            },
            false => ReadSpec {
                raw: None,
                filters: spec.filters.clone(),
                ..read.clone()
            },
        };
        let stored: Vec<Column> = spec.key.iter().chain(&spec.columns).map(|c| c.stored.clone()).collect();
        let table = destination.unwrap_or(&read.table).clone();
        let at_destination = ReadSpec::all(table, &stored);
        let fields = |read: &ReadSpec, columns: &[ComparedColumn]| -> Vec<Field> {
            columns
                .iter()
                .filter_map(|c| {
                    let place = read.columns.iter().position(|r| r.column.name == c.stored.name)?;
                    Some(Field {
                        place,
                        ty: c.ty.clone(),
                    })
                })
                .collect()
        };
        let side = |read: ReadSpec| Side {
            key: fields(&read, &spec.key),
            compared: fields(&read, &spec.columns),
            read,
        };
        Sides {
            source: side(at_source),
            destination: side(at_destination),
        }
    }
}

/// Makes the plan of a comparison with repair.
pub async fn plan(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &HashRequestOptions,
) -> Result<Plan> {
    let table = &request.table;
    let (mut planned, compares, mut reasons) = prepare(source, destination, stages, request).await?;
    planned.publish = Publish::Direct;
    let deletes = request.deletes && !table.append_only;
    reasons.push(match (table.append_only, deletes) {
        (true, _) => "rows that are missing are inserted; nothing is updated or deleted".into(),
        (false, true) => "rows that differ are inserted, updated and deleted".into(),
        (false, false) => "rows that differ are inserted and updated; nothing is deleted".into(),
    });
    let repair = match table.append_only {
        true => Repair::Inserts,
        false => Repair::Upserts,
    };
    let mut phases = vec![Phase {
        name: "compare".into(),
        partitions: partitions("compare", &compares, repair),
    }];
    // A row that left the bounds at the source is still there, only elsewhere.
    if deletes && table.bounds.is_empty() {
        phases.push(Phase {
            name: "delete".into(),
            partitions: partitions("delete", &compares, Repair::Deletes),
        });
    }
    Ok(Plan {
        pipeline: table.pipeline.clone(),
        run_id: table.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Hash,
        reasons,
        semantics: table.semantics.clone(),
        tables: vec![planned],
        phases: phases.into(),
        verify: Verify::None,
        guard: table.guard,
        remember: request.remember.clone(),
        created_at: table.now.clone(),
    })
}

/// The planned table, and the slices that are compared under their labels.
pub async fn prepare(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &HashRequestOptions,
) -> Result<(PlannedTable, Vec<(String, Compare)>, Vec<String>)> {
    let table = &request.table;
    let mut resolved = super::table::resolve(source, destination, stages, table).await?;
    if resolved.schema.key.is_empty() {
        return Err(no_key(&table.destination, "a comparison"));
    }
    resolved.check_apart(source, destination, table).await?;
    let mut reasons = std::mem::take(&mut resolved.reasons);
    if resolved.existing.is_none() {
        // prepare makes it, empty; it is compared as it will be made.
        reasons.push(format!("{} does not exist yet and is created", table.destination));
        resolved.existing = Some(resolved.schema.clone());
    }
    if table.evolve && !table.compare_only {
        // The destination gets these before it is compared: rows that have a value there differ.
        let added = resolved.missing();
        let existing = resolved.existing.iter_mut();
        existing.for_each(|e| {
            e.columns.extend(added.iter().map(|c| Column {
                nullable: true,
                ..c.clone()
            }))
        });
    }
    let at_destination = destination_source(destination)?;
    let staged = !stages.is_empty();
    let spec = compare_spec(
        source,
        &*at_destination,
        &resolved,
        staged,
        request.tracked.as_deref(),
        &request.form,
        &mut reasons,
    )?;
    let ends = (source, &*at_destination);
    let mut compares = slices(ends, table, &resolved, &spec, &mut reasons).await?;
    for (_, compare) in &mut compares {
        for condition in &table.bounds {
            compare.source = cut::slice_within(&compare.source, condition.clone());
            compare.destination = cut::slice_within(&compare.destination, resolved.at_destination(condition)?);
        }
    }
    let mut planned = resolved.planned(table, Publish::Direct);
    planned.read.raw = None;
    planned.compare = Some(spec);
    Ok((planned, compares, reasons))
}

fn destination_source(destination: &dyn Destination) -> Result<Arc<dyn Source>> {
    destination.as_source().ok_or_else(|| {
        Error::new(
            code::UNSUPPORTED,
            format!(
                "tables of {} cannot be read back, so they cannot be compared",
                destination.engine()
            ),
        )
        .hint("use strategy full")
    })
}

/// How keys alone are compared: as they are read, because stages do not change which rows there are; as they come out of
/// the stages where these change the key.
pub(super) fn compare_keys(
    source: &dyn Source,
    destination: &dyn Destination,
    resolved: &Resolved,
    reasons: &mut Vec<String>,
) -> Result<CompareSpec> {
    let at_destination = destination_source(destination)?;
    let staged = resolved.is_key_changed();
    if staged {
        reasons.push("stages make the key, so all rows of the source pass them to find which keys are gone".into());
    }
    compare_spec(
        source,
        &*at_destination,
        resolved,
        staged,
        Some(&[]),
        &Form::Canonical,
        &mut Vec::new(),
    )
}

/// Phases that delete what only the destination has: keys are compared, counted, and then deleted.
pub(super) async fn anti_join(
    source: &dyn Source,
    destination: &dyn Destination,
    table: &TableRequest,
    resolved: &Resolved,
    reasons: &mut Vec<String>,
) -> Result<(CompareSpec, Vec<Phase>)> {
    let mut resolved = resolved.clone();
    if resolved.existing.is_none() {
        resolved.existing = Some(resolved.schema.clone());
    }
    let spec = compare_keys(source, destination, &resolved, reasons)?;
    let mut table = table.clone();
    if spec.made_key {
        // A delta's partitions have no say in which keys there are.
        table.dimensions.clear();
    }
    let at_destination = destination_source(destination)?;
    let compares = slices((source, &*at_destination), &table, &resolved, &spec, reasons).await?;
    let phases = vec![
        Phase {
            name: "find deletes".into(),
            partitions: partitions("find", &compares, Repair::Find),
        },
        Phase {
            name: "delete".into(),
            partitions: partitions("delete", &compares, Repair::Deletes),
        },
    ];
    Ok((spec, phases))
}

pub(super) fn partitions(prefix: &str, compares: &[(String, Compare)], repair: Repair) -> Vec<Partition> {
    compares
        .iter()
        .map(|(label, compare)| Partition {
            id: PartitionId::from(format!("{prefix}__{label}")),
            table: 0,
            work: Work::Compare(Compare {
                repair,
                ..compare.clone()
            }),
            estimated_rows: compare.estimated_rows,
            estimated_bytes: 0,
        })
        .collect()
}

/// The same slices at both ends: by the user's dimensions, else by ranges of the key.
async fn slices(
    (source, at_destination): (&dyn Source, &dyn Source),
    table: &TableRequest,
    resolved: &Resolved,
    spec: &CompareSpec,
    reasons: &mut Vec<String>,
) -> Result<Vec<(String, Compare)>> {
    let changed = |d: &&cut::Dimension| match &d.destination {
        Some(Term::Column { name, .. }) => resolved.changed.contains(name),
        _ => false,
    };
    if let Some(cut) = table.dimensions.iter().flatten().find(changed) {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!(
                "{} cannot cut a comparison: a stage changes it, so both ends have other values",
                cut.name
            ),
        )
        .hint("leave the partitions out, or cut by a column that no stage changes"));
    }
    if let Some(pieces) = cut::by_dimensions(source, resolved, &table.dimensions, cut::MAX_COMPARED, reasons).await? {
        let mut compares = Vec::new();
        for piece in pieces {
            let Some(destination) = piece.destination else {
                return Err(Error::new(
                    code::CONFIG_INVALID,
                    format!(
                        "{} cannot cut a comparison: it is no column of the destination",
                        cut::names(&table.dimensions)
                    ),
                )
                .hint("write the column too, or leave the partitions out: the key cuts the work then"));
            };
            compares.push((
                piece.label,
                Compare {
                    source: Slice::Cut(piece.source),
                    destination: Slice::Cut(destination),
                    blocks: Blocks::Spread { count: 1024 },
                    repair: Repair::Upserts,
                    estimated_rows: 0,
                },
            ));
        }
        return Ok(compares);
    }
    if table.one_partition {
        reasons.push(full::TOGETHER.into());
    }
    let key = match spec.made_key || table.one_partition {
        true => Vec::new(),
        false => resolved.source_key(),
    };
    let planned: Vec<PlannedSlice> = match key.is_empty() || !resolved.read.group_by.is_empty() {
        true => vec![PlannedSlice::all(0, 0)],
        false => {
            let cut = full::slices(source, resolved, table, false).await?;
            ordered_alike(cut, (source, at_destination), table, resolved, spec, reasons).await?
        }
    };
    let divides = match &spec.key[..] {
        // Blocks of numbers are counted with a sign.
        [only]
            if !key.is_empty()
                && only.ty.is_integer()
                && only.ty != ColumnType::UInt64
                && resolved.read.group_by.is_empty() =>
        {
            let term = Term::column(key.first().cloned().unwrap_or_default());
            match key.len() {
                1 => source.extent(&resolved.read, &term, &Slice::All).await?,
                _ => None,
            }
        }
        _ => None,
    };
    let number = |v: &str| v.parse::<i64>().ok();
    planned
        .into_iter()
        .map(|s| {
            let (source, destination, range) = match &s.slice {
                Slice::All => (Slice::All, Slice::All, KeyRange::default()),
                Slice::Key(range) => {
                    let named = resolved.schema.key.iter().take(range.columns.len());
                    let at_destination = KeyRange {
                        columns: named.cloned().collect(),
                        ..range.clone()
                    };
                    (s.slice.clone(), Slice::Key(at_destination), range.clone())
                }
                // Files are cut by what they are made of; a comparison takes them whole.
                _ => (Slice::All, Slice::All, KeyRange::default()),
            };
            let first = |bound: &Option<Vec<String>>| bound.as_ref().and_then(|b| number(b.first()?));
            let blocks = match &divides {
                Some(extent) => {
                    let low = first(&range.lower).or_else(|| number(&extent.min)).unwrap_or(0);
                    let high = first(&range.upper).or_else(|| number(&extent.max)).unwrap_or(0);
                    let span = high.saturating_sub(low).max(0) as u64;
                    let count = (s.rows / BLOCK_ROWS).max(1);
                    Blocks::Divide {
                        width: (span / count).clamp(BLOCK_ROWS, i64::MAX as u64) as i64,
                    }
                }
                None => Blocks::Spread {
                    count: (s.rows / BLOCK_ROWS).clamp(16, 65_536) as u32,
                },
            };
            Ok((
                s.label,
                Compare {
                    source,
                    destination,
                    blocks,
                    repair: Repair::Upserts,
                    estimated_rows: s.rows,
                },
            ))
        })
        .collect::<Result<Vec<_>>>()
        .map(whole_files_once)
}

/// The source's slices, by as many of the key's columns, from the first on, as both ends order alike: in another order
/// other rows lie between two keys.
async fn ordered_alike(
    cut: Vec<PlannedSlice>,
    (source, at_destination): (&dyn Source, &dyn Source),
    table: &TableRequest,
    resolved: &Resolved,
    spec: &CompareSpec,
    reasons: &mut Vec<String>,
) -> Result<Vec<PlannedSlice>> {
    if !cut.iter().any(|s| matches!(s.slice, Slice::Key(_))) {
        return Ok(cut);
    }
    let columns = spec
        .key
        .iter()
        .map(|k| (resolved.key_column(&k.stored.name), k.stored.clone()));
    let ends = ((source, &table.source), (at_destination, &table.destination));
    let key = KeyColumn::ask(ends.0, ends.1, columns.collect()).await?;
    let alike = key.iter().take_while(|k| k.is_ordered_alike()).count();
    if let Some(other) = key.get(alike) {
        let ranges = match alike {
            0 => "the table is compared in one piece".to_string(),
            n => format!("ranges of {} alone are compared", resolved.schema.key[..n].join(", ")),
        };
        let other = &other.stored.name;
        reasons.push(format!(
            "both ends may order values of {other} differently, so {ranges}"
        ));
    }
    Ok(by_first_columns(cut, alike))
}

/// Ranges of a key as ranges of its first columns: a slice that begins and ends with one value of them is part of the next.
fn by_first_columns(cut: Vec<PlannedSlice>, columns: usize) -> Vec<PlannedSlice> {
    if columns == 0 {
        let (rows, bytes) = (cut.iter().map(|s| s.rows).sum(), cut.iter().map(|s| s.bytes).sum());
        return vec![PlannedSlice::all(rows, bytes)];
    }
    let mut kept = Vec::with_capacity(cut.len());
    let (mut rows, mut bytes) = (0, 0);
    for mut slice in cut {
        rows += slice.rows;
        bytes += slice.bytes;
        if let Slice::Key(range) = &mut slice.slice {
            range.columns.truncate(columns);
            for bound in [&mut range.lower, &mut range.upper].into_iter().flatten() {
                bound.truncate(columns);
            }
            if range.upper.is_some() && range.lower == range.upper {
                continue;
            }
        }
        (slice.rows, slice.bytes) = (std::mem::take(&mut rows), std::mem::take(&mut bytes));
        kept.push(slice);
    }
    kept
}

/// Several slices that all mean the whole table are one.
fn whole_files_once(mut compares: Vec<(String, Compare)>) -> Vec<(String, Compare)> {
    if compares.len() > 1 && compares.iter().all(|(_, c)| c.source == Slice::All) {
        let rows = compares.iter().map(|(_, c)| c.estimated_rows).sum();
        compares.truncate(1);
        compares[0].0 = "all".into();
        compares[0].1.estimated_rows = rows;
    }
    compares
}

/// A key as canonical texts.
pub type Key = Vec<Option<String>>;

/// The key of a row, by the names of its columns.
pub(crate) fn key_of<'a>(rows: &RecordBatch, names: impl IntoIterator<Item = &'a String>, row: usize) -> Result<Key> {
    let cell = |name: &String| {
        let column = rows
            .column_by_name(name)
            .ok_or_else(|| Error::bug(format!("key column {name} is not among the rows")))?;
        crate::text::cell(column.as_ref(), row)
    };
    names.into_iter().map(cell).collect()
}

/// Some of the rows.
pub(super) fn picked(rows: &RecordBatch, places: Vec<u32>) -> Result<RecordBatch> {
    arrow_select::take::take_record_batch(rows, &UInt32Array::from(places))
        .map_err(|e| Error::bug(format!("picking rows: {e}")))
}

/// Both ends of a planned table, ready to be compared.
pub struct Pair {
    /// The source, its rows as they come out of the stages.
    source: Arc<dyn Source>,
    source_hashes: Hashes,
    destination_hashes: Hashes,
    sides: Sides,
    spec: CompareSpec,
    table: PlannedTable,
    context: ReadContext,
}

/// Who computes hashes of an end.
enum Hashes {
    Engine(Arc<dyn Source>),
    Reading(ReadingHashes),
}

impl Hashes {
    fn get(&self) -> Result<&dyn BlockHashes> {
        match self {
            Hashes::Engine(source) => source
                .block_hashes()
                .ok_or_else(|| Error::bug(format!("{} computes no hashes any more", source.engine()))),
            Hashes::Reading(reading) => Ok(reading),
        }
    }
}

impl Pair {
    /// Opens both ends of a planned table.
    pub fn new(
        source: Arc<dyn Source>,
        destination: Arc<dyn Source>,
        stages: Arc<dyn Stages>,
        table: &PlannedTable,
        context: &ReadContext,
    ) -> Result<Self> {
        let spec = table
            .compare
            .clone()
            .ok_or_else(|| Error::bug("a comparison of a table that was not planned for it"))?;
        // What is written passes the stages, whether or not it is compared as it comes out of them.
        let plain = source.clone();
        let source: Arc<dyn Source> = match stages.is_empty() {
            false => Arc::new(StagedSource {
                source,
                stages,
                table: table.clone(),
            }),
            true => source,
        };
        let compared = if spec.staged { &source } else { &plain };
        let hashes = |end: &Arc<dyn Source>, in_engine: bool| match in_engine {
            true => Hashes::Engine(end.clone()),
            false => Hashes::Reading(ReadingHashes::new(end.clone(), context.clone())),
        };
        Ok(Pair {
            source_hashes: hashes(compared, spec.at_source),
            destination_hashes: hashes(&destination, spec.at_destination),
            sides: Sides::planned(table, &spec),
            source,
            spec,
            table: table.clone(),
            context: context.clone(),
        })
    }

    fn request(&self, side: &Side, slice: &Slice, blocks: Blocks, keys_only: bool) -> HashRequest {
        let mut compared = side.key.clone();
        if !keys_only {
            compared.extend(side.compared.iter().cloned());
        }
        HashRequest {
            read: side.read.clone(),
            compared,
            key: side.key.clone(),
            slice: slice.clone(),
            form: self.spec.form.clone(),
            blocks,
        }
    }

    /// Which rows belong together cannot be told where one end has several of one key.
    fn doubled(&self, request: &HashRequest) -> Error {
        let key: Vec<&str> = self.spec.key.iter().map(|k| k.stored.name.as_str()).collect();
        Error::new(
            code::DUPLICATE_KEY,
            format!(
                "{} has several rows of one key ({})",
                request.read.table,
                key.join(", ")
            ),
        )
        .at("table", request.read.table.to_string())
        .hint("remove all but one of them and make the key unique there, or name another `key`")
    }

    /// One form for a key, whichever end it comes from.
    fn form(&self, key: &Key) -> Result<Vec<u8>> {
        let types = self.spec.key.iter().map(|c| &c.ty);
        form_of(types.zip(key.iter().map(Option::as_deref)))
    }

    /// How many keys are fetched at once: all of them where each time the whole slice is read.
    fn fetched_at_once(&self) -> usize {
        match self.spec.made_key {
            true => usize::MAX,
            false => FETCH_ROWS,
        }
    }

    /// The rows of these keys as the source has them now, ready to be written. They are looked for in the slice, where
    /// they cannot be asked for.
    async fn fetch(&self, keys: &[Key], slice: &Slice) -> Result<Vec<RecordBatch>> {
        if self.spec.made_key {
            return self.look_for(keys, slice).await;
        }
        let terms = self
            .spec
            .key
            .iter()
            .map(|k| {
                let read = self.table.read.columns.iter().find(|c| c.column.name == k.stored.name);
                read.map(ReadColumn::term)
                    .ok_or_else(|| Error::bug("a key column that is not read"))
            })
            .collect::<Result<Vec<Term>>>()?;
        let partition = Partition {
            id: "fetch".into(),
            table: 0,
            work: Work::Read(Slice::Keys(KeyList {
                terms,
                keys: keys.to_vec(),
            })),
            estimated_rows: keys.len() as u64,
            estimated_bytes: 0,
        };
        let mut reader = self.open_fetched(&partition).await?;
        let mut batches = Vec::new();
        while let Some(event) = reader.next().await? {
            if let Event::Rows(batch) = event {
                batches.push(conform(batch, &self.table)?.rows);
            }
        }
        Ok(batches)
    }

    async fn look_for(&self, keys: &[Key], slice: &Slice) -> Result<Vec<RecordBatch>> {
        let wanted = keys.iter().map(|k| self.form(k)).collect::<Result<HashSet<_>>>()?;
        let partition = Partition {
            id: "fetch".into(),
            table: 0,
            work: Work::Read(slice.clone()),
            estimated_rows: keys.len() as u64,
            estimated_bytes: 0,
        };
        let mut reader = self.open_fetched(&partition).await?;
        let mut batches = Vec::new();
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            let rows = conform(batch, &self.table)?.rows;
            let mut found = Vec::new();
            for row in 0..rows.num_rows() {
                if wanted.contains(&self.form(&self.key_of(&rows, row)?)?) {
                    found.push(row as u32);
                }
            }
            if !found.is_empty() {
                batches.push(picked(&rows, found)?);
            }
        }
        Ok(batches)
    }

    /// Those of some keys that rows of a slice of the source are written under.
    pub async fn written(&self, keys: &[Key], slice: &Slice) -> Result<HashSet<Key>> {
        let mut by_form = HashMap::new();
        for key in keys {
            by_form.insert(self.form(key)?, key);
        }
        let mut found = HashSet::new();
        for rows in self.look_for(keys, slice).await? {
            for row in 0..rows.num_rows() {
                let form = self.form(&self.key_of(&rows, row)?)?;
                found.extend(by_form.get(&form).map(|key| (*key).clone()));
            }
        }
        Ok(found)
    }

    async fn open_fetched(&self, partition: &Partition) -> Result<Box<dyn Reader>> {
        let read = ReadSpec {
            raw: None,
            filters: self.spec.filters.clone(),
            ..self.table.read.clone()
        };
        self.source.open(&read, partition, None, &self.context).await
    }

    /// The key of a row that is ready to be written.
    fn key_of(&self, rows: &RecordBatch, row: usize) -> Result<Key> {
        key_of(rows, self.spec.key.iter().map(|k| &k.stored.name), row)
    }

    /// A batch of deletes.
    fn deletes(&self, keys: &[Key]) -> Result<ChangeBatch> {
        let schema = &self.table.schema;
        let mut builders: Vec<ColumnBuilder> = schema.columns.iter().map(ColumnBuilder::new).collect();
        let places: Vec<Option<usize>> = schema
            .columns
            .iter()
            .map(|c| self.spec.key.iter().position(|k| k.stored.name == c.name))
            .collect();
        for key in keys {
            for (builder, place) in builders.iter_mut().zip(&places) {
                builder.append_cell(place.and_then(|p| key[p].as_deref()))?;
            }
        }
        let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = RecordBatch::try_new(schema.arrow_schema(), arrays)
            .map_err(|e| Error::bug(format!("keys do not fit the planned table: {e}")))?;
        Ok(self.batch(rows, Op::Delete))
    }

    fn batch(&self, rows: RecordBatch, op: Op) -> ChangeBatch {
        ChangeBatch {
            ops: Ops::All(op),
            ..ChangeBatch::inserts(Arc::new(self.table.destination.clone()), rows, Default::default())
        }
    }
}

/// Rows of some blocks, compared one by one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    /// The last block of the group.
    pub through: i64,
    /// Rows looked at.
    pub counts: Compared,
    /// Keys that only the source has.
    pub only_source: Vec<Key>,
    /// Keys whose rows differ.
    pub differing: Vec<Key>,
    /// Keys that only the destination has.
    pub only_destination: Vec<Key>,
}

/// A slice of both ends, compared.
pub struct Comparison {
    pair: Arc<Pair>,
    at_source: HashRequest,
    at_destination: HashRequest,
    /// Blocks that differ, with their rows at both ends.
    differing: VecDeque<(i64, u64)>,
    /// Rows of differing blocks that are looked at together.
    together: u64,
    /// Rows in blocks that are equal.
    pub equal: Compared,
}

impl Comparison {
    /// Compares the blocks of a slice; those up to `after` are done already.
    pub async fn start(pair: Arc<Pair>, compare: &Compare, keys_only: bool, after: Option<i64>) -> Result<Self> {
        let at_source = pair.request(&pair.sides.source, &compare.source, compare.blocks, keys_only);
        let at_destination = pair.request(&pair.sides.destination, &compare.destination, compare.blocks, keys_only);
        let (source, destination) = futures::try_join!(
            pair.source_hashes.get()?.blocks(&at_source),
            pair.destination_hashes.get()?.blocks(&at_destination)
        )?;
        let mut differing = BTreeMap::new();
        let mut equal = Compared::default();
        for (id, block) in &source {
            match destination.get(id) {
                Some(other) if other == block => {
                    equal.source += block.rows;
                    equal.destination += block.rows;
                }
                other => {
                    differing.insert(*id, block.rows + other.map_or(0, |o| o.rows));
                }
            }
        }
        for (id, Block { rows, .. }) in destination {
            if !source.contains_key(&id) {
                differing.insert(id, rows);
            }
        }
        differing.retain(|id, _| after.is_none_or(|a| *id > a));
        let together = match (&compare.source, compare.blocks) {
            (Slice::All, Blocks::Spread { .. }) if !pair.spec.made_key => {
                let rows: u64 = differing.values().sum();
                (rows / GROUPS).clamp(GROUP_ROWS, GROUP_ROWS_AT_MOST)
            }
            _ => GROUP_ROWS,
        };
        Ok(Comparison {
            together,
            pair,
            at_source,
            at_destination,
            differing: differing.into_iter().collect(),
            equal,
        })
    }

    /// The next differing blocks, row by row; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Group>> {
        let mut ids = Vec::new();
        let mut rows = 0;
        while let Some((id, size)) = self.differing.front().copied() {
            if !ids.is_empty() && rows + size > self.together {
                break;
            }
            ids.push(id);
            rows += size;
            self.differing.pop_front();
        }
        let Some(through) = ids.last().copied() else {
            return Ok(None);
        };
        let pair = &self.pair;
        let (source, destination) = futures::try_join!(
            pair.source_hashes.get()?.rows(&self.at_source, &ids),
            pair.destination_hashes.get()?.rows(&self.at_destination, &ids)
        )?;
        let mut group = Group {
            through,
            counts: Compared {
                source: source.len() as u64,
                destination: destination.len() as u64,
                ..Compared::default()
            },
            ..Group::default()
        };
        let mut there: HashMap<Vec<u8>, RowHash> = HashMap::with_capacity(destination.len());
        for row in destination {
            if there.insert(pair.form(&row.key)?, row).is_some() {
                return Err(pair.doubled(&self.at_destination));
            }
        }
        let mut seen = HashSet::with_capacity(source.len());
        for row in source {
            let form = pair.form(&row.key)?;
            let other = there.remove(&form);
            if !seen.insert(form) {
                return Err(pair.doubled(&self.at_source));
            }
            match other {
                None => group.only_source.push(row.key),
                Some(other) if other.hash != row.hash => group.differing.push(row.key),
                Some(_) => {}
            }
        }
        group.only_destination = there.into_values().map(|row| row.key).collect();
        group.only_destination.sort_unstable();
        group.counts.differing = group.differing.len() as u64;
        group.counts.only_source = group.only_source.len() as u64;
        group.counts.only_destination = group.only_destination.len() as u64;
        Ok(Some(group))
    }
}

/// Deletes that one phase found and a later one makes, as long as the process lives; another process finds them again.
#[derive(Debug, Default)]
pub struct Deferred(Mutex<HashMap<String, Vec<Key>>>);

impl Deferred {
    pub(super) fn add(&self, label: &str, keys: Vec<Key>) {
        let mut all = self.0.lock().expect("no thread dies while it holds this");
        all.entry(label.to_string()).or_default().extend(keys);
    }

    /// A slice is looked at from its beginning, or (`whole: false`) from where an earlier attempt got to: then nobody
    /// knows all of its keys, and they are found again.
    pub(super) fn start(&self, label: &str, whole: bool) {
        let mut all = self.0.lock().expect("no thread dies while it holds this");
        match whole {
            true => all.insert(label.to_string(), Vec::new()),
            false => all.remove(label),
        };
    }

    /// Whether a slice was looked at from its beginning.
    pub(crate) fn knows(&self, label: &str) -> bool {
        let all = self.0.lock().expect("no thread dies while it holds this");
        all.contains_key(label)
    }

    /// Whether a slice was looked at from its beginning, and nothing was found.
    pub(crate) fn is_empty(&self, label: &str) -> bool {
        let all = self.0.lock().expect("no thread dies while it holds this");
        all.get(label).is_some_and(Vec::is_empty)
    }

    pub(super) fn get(&self, label: &str) -> Option<Vec<Key>> {
        let all = self.0.lock().expect("no thread dies while it holds this");
        all.get(label).cloned()
    }
}

/// What the partitions of a comparison share.
pub(crate) struct Comparing {
    pub(crate) pair: Arc<Pair>,
    pub(crate) deferred: Arc<Deferred>,
    /// Whether what was found to be gone is deleted even if it came back since, because a later run brings it.
    pub(crate) as_found: bool,
}

/// Finds again what only the destination has of a slice, for the phase that deletes it, and counts it: what is judged then
/// is what is deleted.
pub(crate) async fn find_again(comparing: &Comparing, label: &str, compare: &Compare) -> Result<Compared> {
    let mut comparison = Comparison::start(comparing.pair.clone(), compare, true, None).await?;
    let (mut counts, mut keys) = (comparison.equal, Vec::new());
    while let Some(group) = comparison.next().await? {
        counts += group.counts;
        keys.extend(group.only_destination);
    }
    comparing.deferred.start(label, true);
    comparing.deferred.add(label, keys);
    Ok(counts)
}

/// The part of a partition's id that its twins in other phases have too.
pub(crate) fn label_of(id: &PartitionId) -> &str {
    id.as_str().split_once("__").map_or(id.as_str(), |(_, label)| label)
}

/// Opens a partition of a comparison as a reader of the changes that repair it.
pub(crate) fn open(
    comparing: &Comparing,
    id: &PartitionId,
    compare: &Compare,
    after: Option<&Position>,
) -> Box<dyn Reader> {
    Box::new(Stepwise::new(CompareSteps {
        pair: comparing.pair.clone(),
        deferred: comparing.deferred.clone(),
        as_found: comparing.as_found,
        label: label_of(id).to_string(),
        compare: compare.clone(),
        after: after.and_then(|p| p.as_str().strip_prefix("block ")?.parse().ok()),
        resumed: after.is_some(),
        comparison: None,
        deleted: false,
        fetching: VecDeque::new(),
        behind: Vec::new(),
        ready: VecDeque::new(),
    }))
}

/// Yields the changes that make a slice of the destination equal to the source's.
struct CompareSteps {
    pair: Arc<Pair>,
    deferred: Arc<Deferred>,
    as_found: bool,
    label: String,
    compare: Compare,
    after: Option<i64>,
    resumed: bool,
    comparison: Option<Comparison>,
    /// Whether what was found is deleted.
    deleted: bool,
    /// Keys of a group whose rows are still to be fetched, a part of them in each step, and what is said behind them.
    fetching: VecDeque<Key>,
    behind: Vec<Event>,
    ready: VecDeque<Event>,
}

#[async_trait]
impl Steps for CompareSteps {
    async fn step(&mut self) -> Result<Option<VecDeque<Event>>> {
        let more = self.advance().await?;
        Ok(more.then(|| std::mem::take(&mut self.ready)))
    }
}

impl CompareSteps {
    /// One step; false at the end.
    async fn advance(&mut self) -> Result<bool> {
        if self.compare.repair == Repair::Deletes {
            return self.delete_found().await;
        }
        if !self.fetching.is_empty() {
            self.fetch_some().await?;
            return Ok(true);
        }
        let Some(comparison) = &mut self.comparison else {
            let keys_only = !matches!(self.compare.repair, Repair::Upserts);
            let comparison = Comparison::start(self.pair.clone(), &self.compare, keys_only, self.after).await?;
            if !self.resumed {
                self.ready.push_back(Event::Compared(comparison.equal));
            }
            self.deferred.start(&self.label, !self.resumed);
            self.comparison = Some(comparison);
            return Ok(true);
        };
        let Some(group) = comparison.next().await? else {
            return Ok(false);
        };
        match self.compare.repair {
            Repair::Upserts | Repair::Inserts => {
                self.fetching.extend(group.only_source);
                self.fetching.extend(group.differing);
            }
            Repair::Find => {}
            Repair::Deletes => return Err(Error::bug("deletes are made of what was found")),
        }
        self.defer(group.only_destination);
        self.behind.push(Event::Compared(group.counts));
        self.behind.push(Event::Boundary {
            position: Position(format!("block {}", group.through)),
            committed_at: None,
            tx: None,
        });
        self.fetch_some().await?;
        Ok(true)
    }

    /// The rows of the next keys; behind the last ones, what is said of their group.
    async fn fetch_some(&mut self) -> Result<()> {
        let count = self.pair.fetched_at_once().min(self.fetching.len());
        let keys: Vec<Key> = self.fetching.drain(..count).collect();
        if !keys.is_empty() {
            for rows in self.pair.fetch(&keys, &self.compare.source).await? {
                self.ready.push_back(Event::Rows(self.pair.batch(rows, Op::Upsert)));
            }
        }
        if self.fetching.is_empty() {
            self.ready.extend(self.behind.drain(..));
        }
        Ok(())
    }

    /// The deletes of the slice, all in one step: they were found, and judged, before this phase.
    async fn delete_found(&mut self) -> Result<bool> {
        if std::mem::replace(&mut self.deleted, true) {
            return Ok(false);
        }
        let found = self.deferred.get(&self.label);
        let keys = found.ok_or_else(|| Error::bug("deletes of a slice that nobody looked at"))?;
        for keys in keys.chunks(self.pair.fetched_at_once()) {
            self.delete(keys).await?;
        }
        Ok(true)
    }

    /// Kept for the next phase, if this process saw the whole slice.
    fn defer(&self, keys: Vec<Key>) {
        if !self.resumed {
            self.deferred.add(&self.label, keys);
        }
    }

    /// Deletes keys that the source still does not have; those that came back meanwhile are written.
    async fn delete(&mut self, keys: &[Key]) -> Result<()> {
        let mut back = HashSet::new();
        let looked_up = match self.as_found {
            true => Vec::new(),
            false => self.pair.fetch(keys, &Slice::All).await?,
        };
        for rows in looked_up {
            for row in 0..rows.num_rows() {
                let key = self.pair.key_of(&rows, row)?;
                back.insert(self.pair.form(&key)?);
            }
            if rows.num_rows() > 0 {
                self.ready.push_back(Event::Rows(self.pair.batch(rows, Op::Upsert)));
            }
        }
        let mut gone = Vec::with_capacity(keys.len());
        for key in keys {
            if !back.contains(&self.pair.form(key)?) {
                gone.push(key.clone());
            }
        }
        if !gone.is_empty() {
            self.ready.push_back(Event::Rows(self.pair.deletes(&gone)?));
        }
        Ok(())
    }
}

/// Rows as they are after the stages: what a comparison of computed columns needs.
struct StagedSource {
    source: Arc<dyn Source>,
    stages: Arc<dyn Stages>,
    table: PlannedTable,
}

#[async_trait]
impl Source for StagedSource {
    fn engine(&self) -> &'static str {
        self.source.engine()
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        self.source.tables(schema).await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.source.describe(table).await
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        self.source.slices(read, request).await
    }

    async fn open(
        &self,
        asked: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let read = ReadSpec {
            raw: None,
            filters: asked.filters.clone(),
            ..self.table.read.clone()
        };
        Ok(Box::new(StagedReader {
            reader: self.source.open(&read, partition, after, context).await?,
            stages: self.stages.open_for(&self.table.staged(), Written::Once)?,
            table: self.table.clone(),
            ready: VecDeque::new(),
        }))
    }
}

struct StagedReader {
    reader: Box<dyn Reader>,
    stages: Vec<Box<dyn Stage>>,
    table: PlannedTable,
    ready: VecDeque<Event>,
}

#[async_trait]
impl Reader for StagedReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            let event = self.reader.next().await?;
            let batches = match event {
                Some(Event::Rows(batch)) => self.through(0, vec![batch]).await?,
                // What stages held back comes before anything else, and at the end.
                other => {
                    let mut held = Vec::new();
                    for place in 0..self.stages.len() {
                        let given = match other {
                            Some(_) => self.stages[place].flush().await?,
                            None => self.stages[place].finish().await?,
                        };
                        refuse_rejects(&given)?;
                        held.extend(self.through(place + 1, given.batches).await?);
                    }
                    self.give(held)?;
                    match other {
                        Some(event) => self.ready.push_back(event),
                        None if self.ready.is_empty() => return Ok(None),
                        None => {}
                    }
                    continue;
                }
            };
            self.give(batches)?;
        }
    }
}

impl StagedReader {
    async fn through(&mut self, first: usize, mut batches: Vec<ChangeBatch>) -> Result<Vec<ChangeBatch>> {
        for stage in &mut self.stages[first..] {
            let mut next = Vec::with_capacity(batches.len());
            for batch in batches {
                let staged = stage.apply(batch).await?;
                refuse_rejects(&staged)?;
                next.extend(staged.batches);
            }
            batches = next;
        }
        Ok(batches)
    }

    fn give(&mut self, batches: Vec<ChangeBatch>) -> Result<()> {
        for batch in batches {
            self.ready.push_back(Event::Rows(conform(batch, &self.table)?));
        }
        Ok(())
    }
}

/// A row that a stage refuses has no place in a comparison: it would be missing at one end for ever.
fn refuse_rejects(staged: &crate::stage::Staged) -> Result<()> {
    match staged.rejects.first() {
        None => Ok(()),
        Some(reject) => Err(Error::new(
            code::VALUE_UNSUPPORTED,
            format!(
                "stage {} rejects a row ({}), so both ends cannot be compared",
                reject.stage, reject.reason
            ),
        )
        .hint("filter such rows out, or change the stage so that it takes them")),
    }
}

/// What a comparison without repair found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Rows compared, and how many differ. Rows that wait or are kept are not among those that differ.
    pub counts: Compared,
    /// Rows that differ because they only wait to be written ([`Waiting`]).
    pub waiting: u64,
    /// Rows that only the destination has, where these may stay.
    pub kept: u64,
    /// The first keys that differ, by column name and text, and how.
    pub keys: Vec<(Difference, Key)>,
    /// The labels of slices that are wholly equal.
    pub equal: Vec<String>,
    /// The labels of slices that differ.
    pub different: Vec<String>,
}

/// Who knows which rows differ only because they wait to be written.
#[async_trait]
pub trait Waiting: Send + Sync {
    /// Those of some keys whose rows wait.
    async fn among(&self, keys: &[(Difference, Key)]) -> Result<HashSet<Key>>;
}

/// What is made of rows that differ, where nothing is repaired.
#[derive(Clone, Copy, Default)]
pub struct Judging<'a> {
    /// So many keys are told.
    pub keys: usize,
    /// Who knows which rows only wait; it is asked in pieces of [`Judging::piece`] keys.
    pub waiting: Option<&'a dyn Waiting>,
    /// Keys of one piece: what is kept of a slice that differs widely.
    pub piece: usize,
    /// Whether rows that only the destination has may stay there.
    pub keeps: bool,
}

/// How a row differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Difference {
    /// Only the source has it.
    OnlySource,
    /// Only the destination has it.
    OnlyDestination,
    /// Both have it, with other values.
    Values,
}

impl Differences {
    /// Whether there are none.
    pub fn is_equal(&self) -> bool {
        self.counts.differ() == 0
    }

    /// Counts keys that a slice was found to differ in, and keeps some of those that do.
    async fn judge(&mut self, keys: Vec<(Difference, Key)>, judging: &Judging<'_>) -> Result<()> {
        let waiting = match judging.waiting {
            Some(who) if !keys.is_empty() => who.among(&keys).await?,
            _ => HashSet::new(),
        };
        for (how, key) in keys {
            if waiting.contains(&key) {
                self.waiting += 1;
                continue;
            }
            match how {
                Difference::OnlyDestination if judging.keeps => {
                    self.kept += 1;
                    continue;
                }
                Difference::OnlyDestination => self.counts.only_destination += 1,
                Difference::OnlySource => self.counts.only_source += 1,
                Difference::Values => self.counts.differing += 1,
            }
            if self.keys.len() < judging.keys {
                self.keys.push((how, key));
            }
        }
        Ok(())
    }

    fn add(&mut self, label: String, slice: Differences, judging: &Judging<'_>) {
        match slice.is_equal() {
            true => self.equal.push(label),
            false => self.different.push(label),
        }
        self.counts += slice.counts;
        self.waiting += slice.waiting;
        self.kept += slice.kept;
        let room = judging.keys.saturating_sub(self.keys.len());
        self.keys.extend(slice.keys.into_iter().take(room));
    }
}

/// Compares slices without repairing anything, `workers` at once.
pub async fn differences(
    pair: Arc<Pair>,
    compares: Vec<(String, Compare)>,
    judging: Judging<'_>,
    workers: usize,
) -> Result<Differences> {
    use futures::{StreamExt, stream};
    let one = |(label, compare): (String, Compare)| {
        let pair = pair.clone();
        async move {
            let mut comparison = Comparison::start(pair, &compare, false, None).await?;
            let mut slice = Differences {
                counts: comparison.equal,
                ..Differences::default()
            };
            let mut keys = Vec::new();
            while let Some(group) = comparison.next().await? {
                slice.counts += Compared {
                    source: group.counts.source,
                    destination: group.counts.destination,
                    ..Compared::default()
                };
                for (how, found) in [
                    (Difference::OnlySource, group.only_source),
                    (Difference::Values, group.differing),
                    (Difference::OnlyDestination, group.only_destination),
                ] {
                    keys.extend(found.into_iter().map(|key| (how, key)));
                }
                if keys.len() >= judging.piece {
                    slice.judge(std::mem::take(&mut keys), &judging).await?;
                }
            }
            slice.judge(keys, &judging).await?;
            Ok::<_, Error>((label, slice))
        }
    };
    let mut found = Differences::default();
    let mut running = stream::iter(compares.into_iter().map(one)).buffered(workers.max(1));
    while let Some(done) = running.next().await {
        let (label, slice) = done?;
        found.add(label, slice, &judging);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(lower: Option<[&str; 2]>, upper: Option<[&str; 2]>) -> PlannedSlice {
        let bound = |b: Option<[&str; 2]>| b.map(|b| b.map(str::to_string).to_vec());
        PlannedSlice {
            label: format!("{lower:?}"),
            slice: Slice::Key(KeyRange {
                columns: vec!["a".into(), "b".into()],
                lower: bound(lower),
                upper: bound(upper),
            }),
            rows: 10,
            bytes: 100,
        }
    }

    #[test]
    fn ranges_of_the_first_columns_have_no_gap() {
        let cut = || {
            let bounds = [["1", "x"], ["2", "k"], ["2", "K"], ["3", "a"]].map(Some);
            let lower = [&[None][..], &bounds].concat();
            let upper = [&bounds[..], &[None]].concat();
            lower
                .into_iter()
                .zip(upper)
                .map(|(l, u)| slice(l, u))
                .collect::<Vec<_>>()
        };
        let ranges = |columns| {
            let ranges = by_first_columns(cut(), columns).into_iter().map(|s| match s.slice {
                Slice::Key(range) => (range.lower.unwrap_or_default(), range.upper.unwrap_or_default(), s.rows),
                other => panic!("{other:?}"),
            });
            ranges.collect::<Vec<_>>()
        };
        let bound = |values: &[&str]| values.iter().map(|v| v.to_string()).collect::<Vec<_>>();
        assert_eq!(
            ranges(1),
            [
                (bound(&[]), bound(&["1"]), 10),
                (bound(&["1"]), bound(&["2"]), 10),
                (bound(&["2"]), bound(&["3"]), 20),
                (bound(&["3"]), bound(&[]), 10),
            ]
        );
        assert_eq!(ranges(2).len(), 5);
        let whole = by_first_columns(cut(), 0);
        assert_eq!(
            (whole.len(), &whole[0].slice, whole[0].rows, whole[0].bytes),
            (1, &Slice::All, 50, 500)
        );
    }
}
