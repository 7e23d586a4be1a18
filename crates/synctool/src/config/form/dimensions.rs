//! Dimensions along which strategies cut: how they stand in files, and how they resolve.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::super::at::At;
use super::super::error::ConfigError;
use super::super::moment;
use super::super::pipeline::{ColumnMapping, Partitioning, Source, SyncType, find_column};
use super::super::strategy::{Bound, Dimension, DimensionKind, StepUnit};
use super::super::types::{DataType, SizedType};

/// One dimension along which a strategy cuts.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct DimensionFile {
    /// The column.
    pub(in super::super) column: At<String>,
    /// How wide a range is; -1 = one partition per distinct value. Default: one piece from `start` to `end`; without
    /// these, as the data suggests.
    step: Option<At<i64>>,
    /// What a step counts in. Default: seconds for times, days for dates.
    step_unit: Option<At<StepUnit>>,
    /// The column's type. Default: what the source says.
    data_type: Option<At<SizedType>>,
    /// By ranges, by distinct values, or by a list. Default: range.
    #[serde(rename = "type")]
    kind: Option<At<DimensionKind>>,
    /// The zone in which days, weeks and months begin. Default: the strategy's.
    time_zone: Option<At<String>>,
    /// Whether a first run looks at the last step only. Default: false.
    bounded: Option<At<bool>>,
    /// The first value inside: a value, or a moment such as now - 30d or today.
    start: Option<At<Value>>,
    /// The first value behind.
    end: Option<At<Value>>,
    /// The values of a list.
    values: Option<Vec<At<Value>>>,
    /// Another name of `values`.
    value: Option<Vec<At<Value>>>,
    /// Whether no row ever changes this column, so that a full load may be read in parts at different times. Default:
    /// false.
    immutable: Option<At<bool>>,
}

impl DimensionFile {
    /// Ranges of a column.
    pub(in super::super) fn range(column: At<String>, step: Option<At<u64>>, data_type: Option<At<SizedType>>) -> Self {
        Self {
            column,
            step: step.map(|s| s.with(i64::try_from(*s).unwrap_or(i64::MAX))),
            step_unit: None,
            data_type,
            kind: None,
            time_zone: None,
            bounded: None,
            start: None,
            end: None,
            values: None,
            value: None,
            immutable: None,
        }
    }
}

/// What strategies are resolved against.
pub(super) struct Around<'a> {
    pub(super) listed: &'a [ColumnMapping],
    pub(super) group_by: &'a [At<String>],
    pub(super) sync_type: SyncType,
    pub(super) source: &'a Source,
    pub(super) partitioning: &'a Partitioning,
}

/// A column by its name at the source, and the mapping that named it. A name that means an aggregate means the column
/// below it.
pub(super) fn at_source<'a>(named: &At<String>, around: &Around<'a>) -> (At<String>, Option<&'a ColumnMapping>) {
    let grouped = |c: &ColumnMapping| around.group_by.iter().any(|name| c.is_called(name));
    let mapped = find_column(around.listed, named)
        .filter(|c| around.sync_type == SyncType::RowLevel || c.expr.is_none() || c.is_virtual || grouped(c));
    let source = mapped.and_then(|c| c.source.as_ref());
    let column = source.map_or_else(|| named.clone(), |source| named.with(source.to_string()));
    (column, mapped)
}

pub(super) fn dimensions(
    files: Option<Vec<At<DimensionFile>>>,
    around: &Around<'_>,
    errors: &mut Vec<ConfigError>,
) -> Vec<Dimension> {
    let mut all: Vec<Dimension> = Vec::new();
    for file in files.into_iter().flatten() {
        let dimension = dimension(file.into_inner(), around, errors);
        if all.iter().any(|d| *d.column == *dimension.column) {
            errors.push(
                dimension
                    .column
                    .error(format!("column \"{}\" cuts twice", dimension.column.shown())),
            );
        }
        all.push(dimension);
    }
    all
}

/// Fills in what a dimension is at both ends.
pub(super) fn placed(mut dimension: Dimension, around: &Around<'_>) -> Dimension {
    let (column, mapped) = at_source(&dimension.column, around);
    dimension.column = column;
    if let Some(mapped) = mapped {
        dimension.expr = mapped.expr.clone();
        dimension.destination = match &mapped.dest_expr {
            Some(sql) => Some(sql.clone()),
            None => mapped.is_written().then(|| mapped.dest.clone()),
        };
    }
    dimension
}

fn dimension(file: DimensionFile, around: &Around<'_>, errors: &mut Vec<ConfigError>) -> Dimension {
    let column = file.column.clone();
    let shown = column.shown();
    let listed_type = at_source(&column, around).1.and_then(|c| c.data_type.clone());
    let known = file
        .data_type
        .as_ref()
        .map(|t| t.data_type)
        .or(listed_type.as_deref().copied());
    if let (Some(_), Some(second)) = (&file.values, file.value.as_ref().and_then(|v| v.first())) {
        errors.push(second.error("value and values of a partition are the same key"));
    }
    let values: Vec<At<String>> = file
        .values
        .or(file.value)
        .into_iter()
        .flatten()
        .filter_map(|value| match moment::text(&value) {
            Some(text) => Some(value.with(text)),
            None => {
                errors.push(value.error("a value of a partition must be a number, a text, true or false"));
                None
            }
        })
        .collect();
    let (mut step, mut by_value) = (None, false);
    if let Some(said) = &file.step {
        match u64::try_from(**said) {
            Ok(0) => errors.push(said.error("the step of a partition must be at least 1")),
            Ok(width) => step = Some(said.with(width)),
            Err(_) if **said == -1 => by_value = true,
            Err(_) => errors.push(
                said.error("the step of a partition must be at least 1")
                    .with_help("-1 means one partition per distinct value"),
            ),
        }
    }
    let kind = match &file.kind {
        Some(kind) => kind.clone(),
        None if by_value => DimensionKind::Value.into(),
        None if !values.is_empty() => DimensionKind::List.into(),
        None => DimensionKind::Range.into(),
    };
    match *kind {
        DimensionKind::Range => {
            if by_value {
                let at = file.step.as_ref().map(|s| s.with(())).unwrap_or_default();
                errors.push(at.error("step -1 means one partition per distinct value, and type is range"));
            }
        }
        other => {
            let word = if other == DimensionKind::Value { "value" } else { "list" };
            for (key, at) in [
                ("step", step.as_ref().map(|v| v.with(()))),
                ("step_unit", file.step_unit.as_ref().map(|v| v.with(()))),
                ("bounded", file.bounded.as_ref().filter(|b| ***b).map(|v| v.with(()))),
                ("start", file.start.as_ref().map(|v| v.with(()))),
                ("end", file.end.as_ref().map(|v| v.with(()))),
            ] {
                if let Some(at) = at {
                    errors.push(at.error(format!(
                        "{key} belongs to ranges, and partition \"{shown}\" is of type {word}"
                    )));
                }
            }
        }
    }
    match (*kind, values.first()) {
        (DimensionKind::List, None) => {
            errors.push(kind.error(format!("partition \"{shown}\" of type list needs values")));
        }
        (DimensionKind::Range | DimensionKind::Value, Some(first)) => {
            errors.push(first.error(format!(
                "values belong to type list, and partition \"{shown}\" is not of it"
            )));
        }
        _ => {}
    }
    let bounded = file.bounded.unwrap_or_default();
    if *bounded && *kind == DimensionKind::Range && step.is_none() {
        errors.push(
            bounded
                .error(format!("partition \"{shown}\" is bounded and has no step"))
                .with_help("bounded means the last step: say how wide it is"),
        );
    }
    let start = file.start.and_then(|b| bound(b, known, errors));
    let end = file.end.and_then(|b| bound(b, known, errors));
    if let (Some(from), Some(to)) = (&start, &end)
        && let (Bound::Value(a), Bound::Value(b)) = (&**from, &**to)
        && let (Ok(a), Ok(b)) = (a.trim().parse::<i128>(), b.trim().parse::<i128>())
        && a >= b
    {
        errors.push(to.error(format!("the end of partition \"{shown}\" must be behind its start")));
    }
    check_type(&file.step_unit, file.time_zone.as_ref(), known, *kind, &column, errors);
    placed(
        Dimension {
            column,
            expr: None,
            destination: None,
            kind,
            step,
            step_unit: file.step_unit,
            data_type: file.data_type.map(|t| t.with(t.data_type)),
            time_zone: file.time_zone,
            bounded,
            start,
            end,
            values,
            immutable: file.immutable.unwrap_or_default(),
        },
        around,
    )
}

fn bound(value: At<Value>, known: Option<DataType>, errors: &mut Vec<ConfigError>) -> Option<At<Bound>> {
    match moment::parse(&value) {
        Ok(bound) => {
            let timeless = known.filter(|t| !is_time(*t));
            if let (Bound::Moment { .. }, Some(other)) = (&bound, timeless) {
                errors.push(value.error(format!("a moment cuts times and dates, and the column is {other}")));
            }
            Some(value.with(bound))
        }
        Err((message, help)) => {
            errors.push(value.error(message).with_help(help));
            None
        }
    }
}

fn is_time(data_type: DataType) -> bool {
    matches!(data_type, DataType::Date | DataType::Timestamp | DataType::TimestampTz)
}

/// Whether a column of this type can be cut as is said.
fn check_type(
    unit: &Option<At<StepUnit>>,
    zone: Option<&At<String>>,
    known: Option<DataType>,
    kind: DimensionKind,
    column: &At<String>,
    errors: &mut Vec<ConfigError>,
) {
    if let Some(zone) = zone {
        check_zone(zone, errors);
    }
    let Some(data_type) = known else { return };
    if let (DimensionKind::Range, DataType::Boolean | DataType::Json | DataType::Binary) = (kind, data_type) {
        errors.push(
            column
                .error(format!(
                    "column \"{}\" is {data_type}, which has no ranges",
                    column.shown()
                ))
                .with_help("cut by type: value"),
        );
    }
    let timeless = |key: &str| {
        format!(
            "{key} belongs to times and dates, and column \"{}\" is {data_type}",
            column.shown()
        )
    };
    if let Some(unit) = unit {
        if !is_time(data_type) {
            errors.push(unit.error(timeless("step_unit")));
        } else if data_type == DataType::Date && !unit.is_whole_days() {
            errors.push(unit.error(format!(
                "column \"{}\" is a date, which has no {}s",
                column.shown(),
                unit.name()
            )));
        }
    }
    if let (Some(zone), false) = (zone, is_time(data_type)) {
        errors.push(zone.error(timeless("time_zone")));
    }
}

/// A zone's name, as far as it can be told from its letters: the engines know which there are.
pub(super) fn check_zone(zone: &At<String>, errors: &mut Vec<ConfigError>) {
    let fine = !zone.is_empty() && zone.chars().all(|c| c.is_ascii_alphanumeric() || "/_+-:".contains(c));
    if !fine {
        errors.push(
            zone.error("time_zone is not the name of a zone")
                .with_help("write for example Europe/Berlin, UTC or +02:00"),
        );
    }
}

/// Inside a primary partition a secondary one on the same column must be narrower.
pub(super) fn check_nesting(primary: &[Dimension], secondary: &[Dimension], errors: &mut Vec<ConfigError>) {
    for inner in secondary {
        let Some(outer) = primary.iter().find(|d| *d.column == *inner.column) else {
            continue;
        };
        if let (Some(wide), Some(narrow)) = (&outer.step, &inner.step)
            && outer.step_unit == inner.step_unit
            && **narrow >= **wide
        {
            errors.push(narrow.error(format!(
                "the step of secondary partition \"{}\" must be less than that of the primary one, {}",
                inner.column.shown(),
                **wide
            )));
        }
    }
}
