//! Delta: what a cursor column says has changed since the last run.
//!
//! # Why nothing is lost and each row is read once
//!
//! A transaction stamps its rows before it commits, so "everything above the largest stamp seen" loses rows of
//! transactions that commit late. Here the window ends at a bound behind which nothing can appear any more
//! ([`Source::settled`]): it is asked for *before* the reading snapshot is taken, so every row below it is in the
//! snapshot. The window is half open, so equal stamps are never split, and the next window begins exactly where this one
//! ended. The watermark moves once, when every partition of the window is committed, in the transaction that finishes
//! the plan; until then a rerun takes up the same plan with the same window.
//!
//! That holds for stamps of the database's own clock. A column that the application stamps has no such bound: its window
//! begins a lag before the largest value of the last run and has no end; rows are read again and found unchanged, and a
//! hash strategy repairs what comes later than the lag.
//!
//! Rows whose cursor is NULL have no place in any window: they are read by every run.

use super::cut::{self, By, Dimension, MAX_PARTITIONS, Piece};
use super::hash;
use super::table::{self, Resolved, TableRequest, no_key};
use crate::error::{Among, Error, Result, code};
use crate::plan::{Changes, Phase, Plan, Publish, ReadColumn, Slice, Strategy, Verify, Work};
use crate::progress::Generation;
use crate::query::{Condition, Cut, Filter, Join, JoinKind, Term, Test};
use crate::schema::{Column, ColumnType, TableId};
use crate::select::compared;
use crate::sink::Destination;
use crate::source::{Settled, Source};
use crate::stage::Stages;
use std::collections::BTreeMap;
use std::time::Duration;

/// Who stamps the cursor column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StampedBy {
    /// The database, with its own clock, in the transaction that changes the row (`now()`).
    Database {
        /// How far behind the settled bound a window ends: what clocks and views may be late by.
        margin: Duration,
    },
    /// The application: how late a stamp may become visible.
    App {
        /// Windows overlap by this.
        lag: Duration,
    },
}

/// How rows that are gone from the source are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Deletes {
    /// They are not: a delta sees only rows that are there.
    Unseen,
    /// Nothing is deleted, not even rows that do not meet the filters any more.
    Never,
    /// By comparing the keys of both ends after each delta.
    AntiJoin,
    /// By a column that says that the row is gone; named as at the source.
    Tombstone(Tombstone),
}

/// A column that says that a row is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tombstone {
    /// Its name at the source.
    pub column: String,
    /// The value that says so, in any form that a column of its type may be written; `None`: true, a number that is not
    /// zero, or anything else but NULL.
    pub value: Option<String>,
}

/// The condition that rows meet which a tombstone column of this type does not call gone. The source is asked for it, and
/// the cells of a delta are judged by it.
pub fn living(ty: &ColumnType, value: Option<&str>) -> Result<Test> {
    use ColumnType::*;
    Ok(match (value, ty) {
        (Some(value), ty) => Test::NullOrNotIn(vec![tombstone_value(value, ty)?]),
        (None, Bool) => Test::NullOrIn(vec!["false".into()]),
        (None, Decimal { .. } | Numeric | Float32 | Float64) => Test::NullOrIn(vec!["0".into()]),
        (None, ty) if ty.is_integer() => Test::NullOrIn(vec!["0".into()]),
        (None, _) => Test::Null,
    })
}

fn tombstone_value(value: &str, ty: &ColumnType) -> Result<String> {
    crate::written::canonical(value, ty).ok_or_else(|| {
        Error::new(
            code::CONFIG_INVALID,
            format!("the value of the tombstone column is no {ty}"),
        )
        .hint("write a value of the column's type")
    })
}

/// A table that is read along and whose own changes count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedCursor {
    /// The table.
    pub table: TableId,
    /// The column of it that says when a row changed.
    pub cursor: Term,
}

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct DeltaRequest {
    /// Of the table.
    pub table: TableRequest,
    /// The column that says when a row changed.
    pub cursor: Term,
    /// Tables read along whose changes count too, each with a window and a watermark of its own.
    pub joined: Vec<JoinedCursor>,
    /// Who stamps it.
    pub stamped_by: StampedBy,
    /// The time zone of a cursor without one; the database's own where left out.
    pub zone: Option<String>,
    /// How deletes are seen.
    pub deletes: Deletes,
    /// How the window is cut along the cursor; the whole window at once where left out.
    pub window: Option<By>,
    /// Where the first window begins, if it need not reach back to the first row.
    pub first: Option<String>,
    /// Where every window ends at the latest, and the watermark with it.
    pub last: Option<String>,
    /// Whether the first window holds only the last step before its end. A stored watermark is never skipped.
    pub bounded: bool,
    /// Whether the window is read as one partition, because a stage looks at all of its rows.
    pub whole: bool,
    /// Only this part of the cursor's range, and the watermark stays: a backfill.
    pub bounds: Option<(Option<String>, Option<String>)>,
}

impl DeltaRequest {
    /// The delta that a table read along makes: its own cursor, in one piece.
    pub fn of_joined(&self, joined: &JoinedCursor) -> DeltaRequest {
        DeltaRequest {
            cursor: joined.cursor.clone(),
            joined: vec![joined.clone()],
            window: None,
            first: None,
            last: None,
            bounded: false,
            bounds: None,
            ..self.clone()
        }
    }

    /// Whether rows whose cursor is NULL are read: by every window, and by a backfill that gives the cursor no range.
    fn reads_null(&self, cursor: &Column) -> bool {
        let open = |(lower, upper): &(Option<String>, Option<String>)| lower.is_none() && upper.is_none();
        cursor.nullable && self.bounds.as_ref().is_none_or(open)
    }

    /// The table that has the cursor.
    fn stamped_table(&self) -> &TableId {
        let joined = self.joined.iter().find(|j| j.cursor == self.cursor);
        joined.map_or(&self.table.source, |j| &j.table)
    }
}

/// What the names of watermarks begin with at the destination.
pub const WATERMARK: &str = "delta:";

/// The name under which a cursor's watermark is remembered at the destination.
pub fn watermark_name(cursor: &Term) -> String {
    format!("{WATERMARK}{cursor}")
}

/// Whether a cursor's value lies before a watermark of its type.
pub fn is_before(ty: &ColumnType, value: &str, watermark: &str) -> bool {
    later(ty, watermark, value)
}

/// A window of the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Where it begins; `None` at the first row.
    pub lower: Option<String>,
    /// Where it ends; `None` has no end.
    pub upper: Option<String>,
    /// The watermark once it is done.
    pub watermark: Option<String>,
    /// What holds the bound back.
    pub settled: Option<Settled>,
}

/// The cursor column as the source has it.
pub async fn cursor_column(source: &dyn Source, request: &DeltaRequest) -> Result<Column> {
    let name = cursor_name(&request.cursor);
    let read = crate::plan::ReadSpec {
        alias: request.table.alias.clone(),
        joins: request.table.joins.clone(),
        ..crate::plan::ReadSpec::of(
            request.table.source.clone(),
            vec![ReadColumn {
                source: name.clone(),
                term: match (&request.cursor, request.table.joins.is_empty()) {
                    (Term::Column { relation: None, .. }, true) => None,
                    (term, _) => Some(term.clone()),
                },
                // A source that looks at how the column is stamped finds it by its own name.
                column: Column::new(name, ColumnType::Native),
            }],
        )
    };
    let mut columns = source.describe_query(&read).await?;
    columns.pop().ok_or_else(|| Error::bug("the cursor was not described"))
}

fn cursor_name(cursor: &Term) -> String {
    match cursor {
        Term::Column { name, .. } => name.clone(),
        other => other.to_string(),
    }
}

/// The window after a watermark. To be asked before anything is read.
pub async fn window(
    source: &dyn Source,
    request: &DeltaRequest,
    column: &Column,
    after: Option<&str>,
) -> Result<Window> {
    if let Some((lower, upper)) = &request.bounds {
        return Ok(Window {
            lower: lower.clone(),
            upper: upper.clone(),
            watermark: None,
            settled: None,
        });
    }
    let first = |end: Option<&String>| match (&request.window, end) {
        (Some(by), Some(end)) if request.bounded => cut::one_step_before(by, &column.ty, end).or(request.first.clone()),
        _ => request.first.clone(),
    };
    match request.stamped_by {
        StampedBy::Database { margin } => {
            if !is_time(&column.ty) {
                return Err(Error::new(
                    code::CONFIG_INVALID,
                    format!(
                        "column {} is {}: no clock of the database stamps it, so nobody knows which of its values have settled",
                        request.cursor, column.ty
                    ),
                )
                .hint("name a timestamp column, or set `stamped_by: app` with a lag and add a hash strategy"));
            }
            let settled = source
                .settled(request.stamped_table(), column, request.zone.as_deref(), margin)
                .await?;
            let end = sooner(&column.ty, settled.bound.clone(), request.last.as_ref());
            // A clock that was set back must not move the watermark back.
            let upper = match after {
                Some(after) if later(&column.ty, after, &end) => after.to_string(),
                _ => end,
            };
            Ok(Window {
                lower: after.map(str::to_string).or_else(|| first(Some(&upper))),
                upper: Some(upper.clone()),
                watermark: Some(upper),
                settled: Some(settled),
            })
        }
        StampedBy::App { lag } => {
            // Nothing would ever come behind an infinite watermark.
            let after = after.filter(|after| !is_endless(&column.ty, after));
            let newest = newest(source, request, column).await?;
            // Where no row has a stamp there is none to read again, and a file's column no type to count in.
            let lag = newest.as_ref().map_or(Duration::ZERO, |_| lag);
            let newest = newest.map(|newest| sooner(&column.ty, newest, request.last.as_ref()));
            let watermark = match (after, newest) {
                (Some(after), Some(newest)) if later(&column.ty, after, &newest) => Some(after.to_string()),
                (after, newest) => newest.or(after.map(str::to_string)),
            };
            Ok(Window {
                lower: match after {
                    Some(after) => Some(before(&column.ty, after, lag)?),
                    None => first(watermark.as_ref()),
                },
                upper: request.last.clone(),
                watermark,
                settled: None,
            })
        }
    }
}

/// The largest value of the cursor that has an end: rows beyond it are read by every window.
async fn newest(source: &dyn Source, request: &DeltaRequest, column: &Column) -> Result<Option<String>> {
    let read = relation(&request.table);
    let (mut slice, mut endless) = (Slice::All, Vec::new());
    loop {
        let Some(found) = source.extent(&read, &request.cursor, &slice).await? else {
            return Ok(None);
        };
        if !is_endless(&column.ty, &found.max) {
            return Ok(Some(found.max));
        }
        if endless.contains(&found.max) {
            return Ok(None);
        }
        endless.push(found.max);
        let condition = Condition {
            term: request.cursor.clone(),
            test: Test::NotIn(endless.clone()),
        };
        slice = cut::slice_within(&Slice::All, condition);
    }
}

/// Whether a value of the cursor has no end; a text may be called so.
fn is_endless(ty: &ColumnType, value: &str) -> bool {
    !matches!(ty, ColumnType::Text { .. } | ColumnType::Char { .. }) && cut::is_endless(value)
}

fn relation(table: &TableRequest) -> crate::plan::ReadSpec {
    crate::plan::ReadSpec {
        alias: table.alias.clone(),
        joins: table.joins.clone(),
        ..crate::plan::ReadSpec::of(table.source.clone(), Vec::new())
    }
}

fn is_time(ty: &ColumnType) -> bool {
    matches!(ty, ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz)
}

/// Whether `a` lies behind `b`, by the order of their type; what is no value of it is compared as text.
fn later(ty: &ColumnType, a: &str, b: &str) -> bool {
    if is_time(ty)
        && let (Some(a), Some(b)) = (cut::time(ty, a), cut::time(ty, b))
    {
        return a > b;
    }
    match (a.parse::<i128>(), b.parse::<i128>()) {
        (Ok(a), Ok(b)) => a > b,
        _ => compared(ty, a, b).unwrap_or_else(|| a.cmp(b)).is_gt(),
    }
}

fn sooner(ty: &ColumnType, end: String, last: Option<&String>) -> String {
    match last {
        Some(last) if later(ty, &end, last) => last.clone(),
        _ => end,
    }
}

/// A value of the cursor, less the lag (in seconds where the cursor is a number).
pub(super) fn before(ty: &ColumnType, value: &str, lag: Duration) -> Result<String> {
    if lag.is_zero() {
        return Ok(value.into());
    }
    let moved = if is_time(ty) {
        let micros = i64::try_from(lag.as_micros()).unwrap_or(i64::MAX);
        cut::time(ty, value).and_then(|t| cut::write_time(ty, t.checked_sub(micros)?))
    } else {
        let seconds = i64::try_from(lag.as_secs()).unwrap_or(i64::MAX);
        value
            .parse::<i64>()
            .ok()
            .and_then(|v| v.checked_sub(seconds))
            .map(|v| v.to_string())
    };
    moved.ok_or_else(|| {
        Error::new(
            code::CONFIG_INVALID,
            format!("a cursor of type {ty} cannot be moved back by a lag"),
        )
        .hint("use a timestamp or an integer column, or leave the lag out")
    })
}

/// The windows of the tables that are read along, after what is remembered; none where one of them has no watermark.
pub async fn joined_windows(
    source: &dyn Source,
    request: &DeltaRequest,
    remembered: &BTreeMap<String, String>,
) -> Result<Vec<(DeltaRequest, Column, Window)>> {
    let mut windows = Vec::with_capacity(request.joined.len());
    for joined in &request.joined {
        let own = request.of_joined(joined);
        // Rows without a partner have no cursor here, and are no change of the joined table.
        let column = Column {
            nullable: false,
            ..cursor_column(source, &own).await?
        };
        let after = remembered.get(&watermark_name(&own.cursor)).map(String::as_str);
        let window = window(source, &own, &column, after).await?;
        windows.push((own, column, window));
    }
    Ok(windows)
}

/// Refuses what a delta cannot do once it has a watermark: for a first run, which loads and needs none of it.
pub async fn check(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &DeltaRequest,
) -> Result<()> {
    let mut resolved = table::resolve(source, destination, stages, &request.table).await?;
    if resolved.schema.key.is_empty() {
        return Err(no_key(&request.table.destination, "a delta"));
    }
    resolved.check_apart(source, destination, &request.table).await?;
    changes(source, request, &mut resolved).await.map(|_| ())
}

/// Makes the plan of a window, and of those of the tables read along.
pub async fn plan(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &DeltaRequest,
    column: &Column,
    window: Window,
    joined: Vec<(DeltaRequest, Column, Window)>,
) -> Result<Plan> {
    let table = &request.table;
    let mut resolved = table::resolve(source, destination, stages, table).await?;
    if resolved.schema.key.is_empty() {
        return Err(no_key(&table.destination, "a delta"));
    }
    resolved.check_apart(source, destination, table).await?;
    let changes = changes(source, request, &mut resolved).await?;
    resolved.read.raw = None;
    let mut reasons = std::mem::take(&mut resolved.reasons);
    reasons.push(told(request, &window));
    if request.whole {
        reasons.push("the window is read as one partition: rows with equal keys meet there".into());
    }
    if table.append_only {
        reasons.push("only rows with new keys are written; nothing is updated or deleted".into());
    }
    let new: Vec<String> = resolved.missing().into_iter().map(|c| c.name).collect();
    if !new.is_empty() {
        reasons.push(format!(
            "column {} is added: rows outside the window have NULL there until a hash or full run",
            new.join(", ")
        ));
    }
    let mut planned = resolved.planned(table, Publish::Direct);
    planned.changes = Some(changes);

    let mut partitions = Vec::new();
    let mut unfiltered = resolved.clone();
    unfiltered.read.filters.clear();
    for mut piece in pieces(source, request, column, &unfiltered, &window, &mut reasons).await? {
        piece.source.conditions.extend(table.bounds.iter().cloned());
        partitions.push(piece.partition(Work::Read));
    }
    let mut remember = BTreeMap::new();
    for (own, column, window) in joined.iter().filter(|_| request.bounds.is_none()) {
        reasons.push(told(own, window));
        for mut piece in pieces(source, own, column, &unfiltered, window, &mut reasons).await? {
            piece.source.conditions.extend(table.bounds.iter().cloned());
            // Tables read along may call their cursors alike.
            piece.label = format!("{}__{}", label_of(&own.cursor), piece.label);
            partitions.push(piece.partition(Work::Read));
        }
        if let Some(watermark) = window.watermark.as_ref().filter(|_| table.bounds.is_empty()) {
            remember.insert(watermark_name(&own.cursor), watermark.clone());
        }
    }
    let mut phases = vec![Phase {
        name: "changes".into(),
        partitions,
    }];
    if request.deletes == Deletes::AntiJoin && request.bounds.is_none() && table.bounds.is_empty() {
        let (compare, deletes) = hash::anti_join(source, destination, table, &resolved, &mut reasons).await?;
        planned.compare = Some(compare);
        phases.extend(deletes);
    }
    // A backfill is no step of the window.
    if let Some(watermark) = window.watermark.as_ref().filter(|_| table.bounds.is_empty()) {
        remember.insert(watermark_name(&request.cursor), watermark.clone());
    }
    Ok(Plan {
        pipeline: table.pipeline.clone(),
        run_id: table.run_id.clone(),
        generation: Generation(0),
        strategy: Strategy::Delta,
        reasons,
        semantics: table.semantics.clone(),
        tables: vec![planned],
        phases: phases.into(),
        verify: Verify::None,
        guard: table.guard,
        remember,
        created_at: table.now.clone(),
    })
}

pub(super) fn label_of(cursor: &Term) -> String {
    match cursor {
        Term::Column {
            relation: Some(relation),
            ..
        } => relation.clone(),
        _ => "joined".into(),
    }
}

fn told(request: &DeltaRequest, window: &Window) -> String {
    let show = |v: &Option<String>, open: &str| v.clone().unwrap_or_else(|| open.into());
    let mut text = format!(
        "rows with {} from {} up to {} are read",
        request.cursor,
        show(&window.lower, "the first"),
        show(&window.upper, "the last")
    );
    if let Some(Settled { held_by: Some(who), .. }) = &window.settled {
        text.push_str(&format!("; held back by {who}"));
    }
    text
}

/// Adds the columns that say which rows are deletes.
async fn changes(source: &dyn Source, request: &DeltaRequest, resolved: &mut Resolved) -> Result<Changes> {
    let mut changes = Changes {
        only_new: request.table.append_only,
        keeps: request.deletes == Deletes::Never,
        ..Changes::default()
    };
    if changes.only_new {
        return Ok(changes);
    }
    if let Deletes::Tombstone(tombstone) = &request.deletes {
        let name = &tombstone.column;
        let read = resolved.read.columns.iter().find(|c| c.source == *name);
        let name = match read {
            Some(read) => read.column.name.clone(),
            None => {
                let at_source = source.describe(&request.table.source).await?;
                let column = at_source.column(name).ok_or_else(|| {
                    let known: Vec<&str> = at_source.columns.iter().map(|c| c.name.as_str()).collect();
                    Error::no_column(
                        Among::Table,
                        name,
                        format!("the tombstone column {name} is not in {}", request.table.source),
                    )
                    .hint(format!("it has: {}", known.join(", ")))
                })?;
                resolved.read.columns.push(ReadColumn::plain(name, column.clone()));
                name.clone()
            }
        };
        let ty = resolved
            .read
            .columns
            .iter()
            .find(|c| c.column.name == name)
            .map(|c| &c.column.ty);
        changes.tombstone_value = match (&tombstone.value, ty) {
            (Some(value), Some(ty)) => Some(tombstone_value(value, ty)?),
            _ => None,
        };
        changes.tombstone = Some(name);
    }
    // Filters and joins are evaluated after the cursor: a row that stopped matching is a delete, not a row unseen.
    let drops = |j: &Join| matches!(j.kind, JoinKind::Inner | JoinKind::Right);
    let may_leave = !resolved.read.filters.is_empty() || resolved.read.joins.iter().any(drops);
    changes.unmatched = may_leave && !changes.keeps;
    let read = |key: &&String| resolved.read.columns.iter().any(|c| c.column.name == **key);
    if let Some(made) = resolved
        .schema
        .key
        .iter()
        .find(|k| !read(k))
        .filter(|_| changes.unmatched)
    {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!(
                "key column {made} is made by a stage, so rows that stop meeting the filters or joins cannot be told"
            ),
        )
        .hint("use a key that is read from the source, filter in a stage, or use a strategy of type hash"));
    }
    Ok(changes)
}

/// Every row of the table read, with a partner or without.
pub(super) fn kept(joins: &[Join]) -> Vec<Join> {
    let left = |join: &Join| Join {
        kind: JoinKind::Left,
        ..join.clone()
    };
    joins.iter().map(left).collect()
}

/// The window's pieces: along the cursor, and inside them by the other dimensions; NULL cursors last.
pub(super) async fn pieces(
    source: &dyn Source,
    request: &DeltaRequest,
    column: &Column,
    resolved: &Resolved,
    window: &Window,
    reasons: &mut Vec<String>,
) -> Result<Vec<Piece>> {
    let name = cursor_name(&request.cursor);
    let cursor = Dimension {
        term: request.cursor.clone(),
        destination: None,
        name,
        ty: column.ty.clone(),
        nullable: column.nullable,
        by: request.window.clone().unwrap_or(By::Values),
        start: window.lower.clone(),
        end: window.upper.clone(),
        immutable: false,
    };
    let whole = Piece {
        label: String::new(),
        source: Cut::default(),
        destination: None,
    };
    if request.whole {
        let (lower, upper) = (window.lower.clone(), window.upper.clone());
        let test = match request.reads_null(column) {
            true => Test::NullOrRange { lower, upper },
            false => Test::Range { lower, upper },
        };
        return Ok(vec![cut::narrowed(&whole, &cursor, &test)]);
    }
    let mut tests = match &request.window {
        // Where it has values: a window of years that holds one busy hour is not cut into thousands.
        Some(_) => cut::ranges(source, resolved, &cursor, cut::QUESTIONS).await?,
        None => vec![Test::Range {
            lower: window.lower.clone(),
            upper: window.upper.clone(),
        }],
    };
    if request.reads_null(column) {
        tests.push(Test::Null);
    }
    let others: Vec<Vec<Dimension>> = request
        .table
        .dimensions
        .iter()
        .map(|level| level.iter().filter(|d| d.term != request.cursor).cloned().collect())
        .filter(|level: &Vec<Dimension>| !level.is_empty())
        .collect();
    let (mut pieces, mut told) = (Vec::new(), Vec::new());
    for test in &tests {
        let piece = cut::narrowed(&whole, &cursor, test);
        let mut inside = resolved.clone();
        inside.read.filters.push(Filter::Test(Condition {
            term: request.cursor.clone(),
            test: test.clone(),
        }));
        // To ask in every window would take longer than partitions without rows.
        match cut::by_dimensions_asking(source, &inside, &others, (MAX_PARTITIONS, 0), &mut told).await? {
            None => pieces.push(piece),
            Some(cuts) => pieces.extend(cuts.into_iter().map(|c| Piece {
                label: format!("{}__{}", piece.label, c.label),
                source: Cut {
                    conditions: [piece.source.conditions.clone(), c.source.conditions].concat(),
                    key: None,
                },
                destination: None,
            })),
        }
        if pieces.len() > MAX_PARTITIONS {
            // The windows of the cursor alone are fewer; no other dimension of a delta leaves rows out.
            reasons.push(cut::uncut(&cut::names(&others), pieces.len(), MAX_PARTITIONS));
            return Ok(tests.iter().map(|t| cut::narrowed(&whole, &cursor, t)).collect());
        }
    }
    // Every window of the cursor would say it.
    reasons.extend(told.into_iter().next());
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_before_a_watermark_by_its_type() {
        let decimal = ColumnType::Decimal { precision: 9, scale: 2 };
        for (ty, value, watermark) in [
            (&decimal, "9.50", "10.50"),
            (&decimal, "-10.50", "-9.50"),
            (&ColumnType::Numeric, "9.5", "10"),
            (&ColumnType::Float64, "9.5", "1e1"),
            (&ColumnType::Int64, "9", "10"),
            (&ColumnType::Native, "9", "10"),
            (&ColumnType::Text { max: None }, "a", "b"),
        ] {
            assert!(is_before(ty, value, watermark), "{ty}: {value} {watermark}");
            assert!(!is_before(ty, watermark, value), "{ty}: {watermark} {value}");
            assert!(!is_before(ty, value, value), "{ty}: {value}");
        }
    }
}
