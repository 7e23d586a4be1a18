//! Full: everything is loaded beside the destination table and put in place in one step.
//!
//! Reading is cut into key ranges that are balanced by the data; every range is a partition. What happens at the end
//! depends on the destination ([`Publish`]): a missing table is created, one of our own is swapped, one of somebody
//! else's gets the difference.

use super::cut::{self, Dimension, Piece};
use super::table::{self, Resolved, TableRequest, no_key};
use crate::change::KeyRange;
use crate::error::{Error, Result, code};
use crate::plan::{Partition, Phase, Plan, Publish, Slice, Strategy, Verify, Work};
use crate::progress::{Generation, PartitionId};
use crate::query::{Condition, Cut, Term, Test, keeps_rows};
use crate::schema::TableId;
use crate::sink::Destination;
use crate::source::{PlannedSlice, SliceRequest, Source};
use crate::stage::Stages;
use std::collections::BTreeMap;

/// How a full run replaces what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FullMode {
    /// Swap a table that an earlier run made, merge into any other.
    #[default]
    Auto,
    /// Replace the table.
    Swap,
    /// Apply the difference in place.
    Upsert,
    /// Add the rows.
    Append,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct FullRequest {
    /// Of the table.
    pub table: TableRequest,
    /// How to replace what is there.
    pub mode: FullMode,
    /// Whether rows that the source does not have go. Where they stay, a table is never replaced.
    pub deletes: bool,
    /// How to prove the load; `None` means by hash where a live table is replaced and by count elsewhere.
    pub verify: Option<Verify>,
    /// What the destination remembers once the load is published.
    pub remember: BTreeMap<String, String>,
}

/// Why a load or a comparison has one partition.
pub(super) const TOGETHER: &str = "read as one partition: a dedup by other columns than the source's key has to see all rows; a killed run starts it over";

/// At least so many partitions for a table worth cutting, so that a kill loses little.
pub(super) const MIN_SLICES: usize = 20;

/// Makes the plan. Reads catalogs and statistics; changes nothing.
pub async fn plan(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: FullRequest,
) -> Result<Plan> {
    let table = &request.table;
    let mut resolved = table::resolve(source, destination, stages, table).await?;
    let mut reasons = std::mem::take(&mut resolved.reasons);
    let limits = cut::limits(&table.dimensions);
    let publish = publish(&request, &limits, destination, &resolved, &mut reasons).await?;
    reasons.push(match &resolved.read.raw {
        Some(f) => format!("rows pass undecoded ({}): both ends agree on every type", f.kind),
        None => "rows are decoded on the way".into(),
    });
    let verify = request.verify.unwrap_or(match publish {
        Publish::Swap | Publish::Merge { .. } => Verify::Hash,
        _ => Verify::Count,
    });
    let single = destination.traits().single_partition || table.one_partition;
    if table.one_partition {
        reasons.push(TOGETHER.into());
    }
    let cuts = match table.bounds.is_empty() && !single {
        true => pieces(source, &mut resolved, &table.dimensions, &mut reasons).await?,
        false => None,
    };
    let partitions = match cuts {
        Some(cuts) => {
            reasons.push(format!(
                "cut into {} partitions by {}",
                cuts.len(),
                cut::names(&table.dimensions)
            ));
            cuts.into_iter().map(|c| c.partition(Work::Read)).collect()
        }
        None => {
            let slices = slices(source, &resolved, table, single).await?;
            let key = resolved.source_key();
            if key.is_empty() {
                reasons
                    .push("the table has no key: it is read as one partition, and a killed run starts it over".into());
            }
            let bounds = [table.bounds.clone(), limits].concat();
            let slices = match bounds.is_empty() {
                true => slices,
                false if table.bounds.is_empty() && !single => narrowed(&bounds, slices),
                false => within(&bounds, &key, slices)?,
            };
            slices.into_iter().map(read).collect::<Vec<Partition>>()
        }
    };
    Ok(Plan {
        pipeline: table.pipeline.clone(),
        run_id: table.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Full,
        reasons,
        semantics: table.semantics.clone(),
        tables: vec![resolved.planned(table, publish)],
        phases: vec![Phase {
            name: "load".into(),
            partitions,
        }]
        .into(),
        verify,
        guard: table.guard,
        remember: request.remember,
        created_at: table.now.clone(),
    })
}

/// Slices of a table by its key, balanced by the data.
pub(super) async fn slices(
    source: &dyn Source,
    resolved: &Resolved,
    request: &TableRequest,
    single: bool,
) -> Result<Vec<PlannedSlice>> {
    // A row that only a joined table has is in no range of this table's key.
    let outer = !keeps_rows(&resolved.read.joins);
    let slicing = SliceRequest {
        key: resolved.source_key(),
        step: request.step,
        min_slices: MIN_SLICES,
        max_slice_bytes: request.partition_bytes,
        single: single || outer,
    };
    source.slices(&resolved.read, &slicing).await
}

fn read(slice: PlannedSlice) -> Partition {
    Partition {
        id: PartitionId::from(slice.label),
        table: 0,
        work: Work::Read(slice.slice),
        estimated_rows: slice.rows,
        estimated_bytes: slice.bytes,
    }
}

/// The pieces that the user's dimensions cut, if a load may be cut by them. Rows whose values change while a load goes on
/// move from piece to piece: read at different times, such pieces have them twice or never. Ranges of the key do not have
/// that trouble, because the key is what a row is.
async fn pieces(
    source: &dyn Source,
    resolved: &mut Resolved,
    dimensions: &[Vec<Dimension>],
    reasons: &mut Vec<String>,
) -> Result<Option<Vec<Piece>>> {
    let key = resolved.source_key();
    let moves = |d: &Dimension| match &d.term {
        // No partition cuts through a group, so each is computed whole.
        _ if d.immutable || !resolved.read.group_by.is_empty() => false,
        Term::Column { relation, name } => !(resolved.is_own(relation.as_deref()) && key.contains(name)),
        _ => true,
    };
    let moving: Vec<Vec<Dimension>> = dimensions
        .iter()
        .map(|level| level.iter().filter(|d| moves(d)).cloned().collect())
        .filter(|level: &Vec<Dimension>| !level.is_empty())
        .collect();
    if !moving.is_empty() && !source.shares_snapshot().await? {
        reasons.push(format!(
            "not cut by {}: {} is read at different times, and a row that changes there meanwhile would be lost or doubled; \
             say immutable: true where no row ever changes it",
            cut::names(&moving),
            source.engine()
        ));
        return Ok(None);
    }
    let cuts = cut::by_dimensions(source, resolved, dimensions, cut::MAX_PARTITIONS, reasons).await?;
    if !moving.is_empty() && cuts.as_ref().is_some_and(|c| c.len() > 1) {
        resolved.read.one_snapshot = true;
        reasons.push(format!(
            "all partitions are read in one snapshot, because rows may change {}: a run that is interrupted starts over; \
             with immutable: true, or cut by the key, it would go on",
            cut::names(&moving)
        ));
    }
    Ok(cuts)
}

/// Slices of the key, and only the rows of them that meet all conditions.
fn narrowed(conditions: &[Condition], slices: Vec<PlannedSlice>) -> Vec<PlannedSlice> {
    let within = |slice: &Slice| {
        conditions
            .iter()
            .fold(slice.clone(), |slice, c| cut::slice_within(&slice, c.clone()))
    };
    slices
        .into_iter()
        .map(|s| PlannedSlice {
            slice: within(&s.slice),
            ..s
        })
        .collect()
}

/// One slice for the bounds.
fn within(bounds: &[Condition], key: &[String], slices: Vec<PlannedSlice>) -> Result<Vec<PlannedSlice>> {
    if slices.iter().any(|s| matches!(s.slice, Slice::File { .. })) {
        return Err(Error::new(
            code::UNSUPPORTED,
            "files are not read by key, so bounds cannot choose their rows",
        )
        .hint("leave the bounds out, or say in `filters` which rows the table is to hold"));
    }
    let label = |c: &Condition| cut::label(&c.term.to_string(), &c.test);
    let slice = match (bounds, key) {
        // A range of the key is what every engine reads.
        (
            [
                Condition {
                    term: Term::Column { name, .. },
                    test: Test::Range { lower, upper },
                },
            ],
            [only],
        ) if name == only => Slice::Key(KeyRange {
            columns: key.to_vec(),
            lower: lower.clone().map(|v| vec![v]),
            upper: upper.clone().map(|v| vec![v]),
        }),
        _ => Slice::Cut(Cut {
            conditions: bounds.to_vec(),
            key: None,
        }),
    };
    Ok(vec![PlannedSlice {
        label: bounds.iter().map(label).collect::<Vec<_>>().join("__"),
        slice,
        rows: slices.iter().map(|s| s.rows).sum(),
        bytes: slices.iter().map(|s| s.bytes).sum(),
    }])
}

async fn publish(
    request: &FullRequest,
    limits: &[Condition],
    destination: &dyn Destination,
    resolved: &Resolved,
    reasons: &mut Vec<String>,
) -> Result<Publish> {
    let (table, wanted) = (&request.table.destination, &resolved.schema);
    if resolved.existing.is_none() {
        reasons.push(format!("{table} does not exist yet and is created"));
        return Ok(Publish::Create);
    }
    if !request.table.bounds.is_empty() && matches!(request.mode, FullMode::Swap | FullMode::Append) {
        return Err(Error::new(
            code::CONFIG_INVALID,
            "rows inside bounds are merged: they can neither replace a table nor be appended to it",
        )
        .hint("leave --full-mode out, or --bounds"));
    }
    if !limits.is_empty() && request.mode == FullMode::Swap {
        return Err(Error::new(
            code::CONFIG_INVALID,
            "a strategy whose partitions have a start, an end or values reads only these rows: they cannot replace a table",
        )
        .hint("leave full_mode out, so that they are merged; or say in `filters` which rows the table is to hold"));
    }
    let limited = !(request.table.bounds.is_empty() && limits.is_empty());
    if !request.deletes && request.mode == FullMode::Swap {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!("a swap replaces {table} with all its rows, and `deletes: none` says that none goes"),
        )
        .hint("leave full_mode out, so that rows are merged; or leave `deletes: none` out"));
    }
    let missing = match request.table.evolve {
        true => Vec::new(),
        false => resolved.missing(),
    };
    let needs_columns = |why: &str| -> Result<()> {
        if missing.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = missing.iter().map(|c| c.name.as_str()).collect();
        Err(Error::new(
            code::SCHEMA_MISMATCH,
            format!("{table} has no column {}, which {why} needs", names.join(", ")),
        )
        .hint("add the columns at the destination, leave them out of the pipeline, or replace the table with full_mode: swap"))
    };
    let adds = request.mode == FullMode::Append || wanted.key.is_empty() && destination.is_empty(table).await?;
    if limited && !(request.table.bounds.is_empty() && adds) {
        if wanted.key.is_empty() {
            return Err(no_key(table, "bringing only some rows up to date"));
        }
        needs_columns("merging")?;
        reasons.push(format!(
            "only rows inside the bounds are brought up to date in {table}; nothing is deleted"
        ));
        return Ok(Publish::Merge { delete_missing: false });
    }
    let stay = match request.deletes {
        true => "",
        false => "; nothing is deleted",
    };
    let merge = Publish::Merge {
        delete_missing: request.deletes,
    };
    match request.mode {
        FullMode::Append => {
            needs_columns("appending")?;
            reasons.push(format!("full_mode: append: rows are added to {table}"));
            Ok(Publish::Append)
        }
        FullMode::Swap => {
            let obstacles = destination.swap_obstacles(table, wanted).await?;
            if !obstacles.is_empty() {
                return Err(Error::new(
                    code::SWAP_REFUSED,
                    format!(
                        "{table} cannot be swapped without losing something: {}",
                        obstacles.join("; ")
                    ),
                )
                .hint("use full_mode: upsert, or remove what is named"));
            }
            reasons.push(format!("full_mode: swap: the loaded table takes the place of {table}"));
            Ok(Publish::Swap)
        }
        FullMode::Upsert if wanted.key.is_empty() => Err(no_key_to_merge(table, "full_mode: upsert")),
        FullMode::Upsert => {
            needs_columns("merging")?;
            reasons.push(format!(
                "full_mode: upsert: the difference is applied to {table} in place{stay}"
            ));
            Ok(merge)
        }
        FullMode::Auto => {
            let obstacles = destination.swap_obstacles(table, wanted).await?;
            let ours = destination.made_here(table).await?;
            if ours && obstacles.is_empty() && request.deletes {
                reasons.push(format!(
                    "{table} was made by an earlier run: the loaded table takes its place"
                ));
                Ok(Publish::Swap)
            } else if wanted.key.is_empty() {
                if destination.is_empty(table).await? {
                    needs_columns("appending")?;
                    reasons.push(format!("{table} is empty: rows are added"));
                    return Ok(Publish::Append);
                }
                Err(no_key_to_merge(table, "applying the difference"))
            } else {
                needs_columns("merging")?;
                let why = match (request.deletes, ours) {
                    (false, _) => "nothing is deleted".into(),
                    (true, true) => obstacles.join("; "),
                    (true, false) => "it was not made by SyncTool".into(),
                };
                reasons.push(format!("the difference is applied to {table} in place ({why})"));
                Ok(merge)
            }
        }
    }
}

/// Says that a load needs a key where it could do without one in another way.
fn no_key_to_merge(table: &TableId, what: &str) -> Error {
    no_key(table, what).hint_instead(
        "name the key columns: `key: [id]` in a pipeline, `--key id` of a command; or replace all by full_mode: swap, or add rows by --full-mode append",
    )
}
