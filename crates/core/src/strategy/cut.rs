//! Cutting work by the user's own dimensions: ranges of a number, of time, of uuids, and single values, one inside the
//! other.
//!
//! The pieces of a dimension have no gap: the first range is open below and the last above unless the user gave `start`
//! or `end`, and rows whose value is NULL are a piece of their own. So every row is in exactly one piece, also one that
//! is written after the plan was made.

use super::table::Resolved;
use crate::error::{Error, Result, code};
use crate::plan::{Partition, Slice, Work};
use crate::query::{Condition, Cut, Term, Test};
use crate::schema::ColumnType;
use crate::source::{Extent, Source};
use crate::text;
use async_trait::async_trait;
use chrono::{DateTime, Offset, TimeZone};
use std::collections::HashSet;

/// More partitions than this are a mistake in a step.
pub const MAX_PARTITIONS: usize = 100_000;

/// Inner levels do not cut a comparison into more pieces than this: hashes of blocks find what differs inside a piece,
/// and each piece costs both ends a query.
pub(super) const MAX_COMPARED: usize = 1_000;

/// One dimension.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dimension {
    /// What is cut, at the source.
    pub term: Term,
    /// The same at the destination, in its column names; `None` where it is no column there.
    pub destination: Option<Term>,
    /// Its name in partition ids.
    pub name: String,
    /// Its type.
    pub ty: ColumnType,
    /// Whether it may be NULL.
    pub nullable: bool,
    /// How it is cut.
    pub by: By,
    /// Nothing below this is read, if given.
    pub start: Option<String>,
    /// Nothing from this on is read, if given.
    pub end: Option<String>,
    /// Whether the user says that no row ever changes the term's value.
    pub immutable: bool,
}

impl Dimension {
    fn is_text(&self) -> bool {
        matches!(self.ty, ColumnType::Text { .. })
    }
}

/// How a dimension is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// Ranges of so many units of an integer.
    Step(u64),
    /// Ranges of time.
    Time {
        /// How many units.
        step: u64,
        /// The unit.
        unit: Unit,
        /// Where units begin in a column with a time zone.
        zone: Zone,
    },
    /// Ranges of the first 32 bits of a uuid, which may be kept as a text.
    UuidPrefix(u64),
    /// One piece per distinct value.
    Values,
    /// One piece per value of a list; other values are not read.
    List(Vec<String>),
    /// One piece, between `start` and `end`.
    Whole,
}

/// A zone in which days begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zone {
    /// So many minutes east of UTC.
    Offset(i32),
    /// One with a name, and with summer time where it has that.
    Named(chrono_tz::Tz),
}

impl Zone {
    /// UTC.
    pub const UTC: Zone = Zone::Offset(0);

    /// By its name (`UTC`, `Europe/Berlin`) or its offset (`+05:30`); `None` for what is neither.
    pub fn parse(text: &str) -> Option<Zone> {
        let text = text.trim();
        if matches!(text, "UTC" | "utc" | "Z" | "Etc/UTC" | "GMT") {
            return Some(Zone::UTC);
        }
        let (sign, rest) = match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(rest), _) => (1, rest),
            (_, Some(rest)) => (-1, rest),
            _ => return text.parse().ok().map(Zone::Named),
        };
        let (hours, minutes) = rest.split_once(':').unwrap_or((rest, "0"));
        match (hours.parse::<i32>(), minutes.parse::<i32>()) {
            (Ok(h @ 0..=14), Ok(m @ 0..=59)) => Some(Zone::Offset(sign * (h * 60 + m))),
            _ => None,
        }
    }

    /// What clocks of the zone show at an instant, both in microseconds since 1970.
    pub fn local(self, instant: i64) -> i64 {
        let offset = match self {
            Zone::Offset(minutes) => i64::from(minutes) * 60,
            Zone::Named(zone) => match DateTime::from_timestamp_micros(instant) {
                Some(at) => i64::from(zone.offset_from_utc_datetime(&at.naive_utc()).fix().local_minus_utc()),
                None => 0,
            },
        };
        instant.saturating_add(offset * MICROS)
    }

    /// The first instant at which clocks of the zone show this, or would if they did not jump over it.
    pub fn instant(self, local: i64) -> Option<i64> {
        let zone = match self {
            Zone::Offset(minutes) => return local.checked_sub(i64::from(minutes) * 60 * MICROS),
            Zone::Named(zone) => zone,
        };
        let shown = DateTime::from_timestamp_micros(local)?.naive_utc();
        if let Some(at) = zone.from_local_datetime(&shown).earliest() {
            return Some(at.timestamp_micros());
        }
        // Clocks jump over it: all that they jump over is the instant of the jump, which is no further than a day.
        let (mut before, mut after) = (local.checked_sub(DAY)?, local.checked_add(DAY)?);
        while after - before > 1 {
            let middle = before + (after - before) / 2;
            match self.local(middle) < local {
                true => before = middle,
                false => after = middle,
            }
        }
        Some(after)
    }
}

/// A unit of time. Weeks begin on Mondays, all others where the calendar has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Unit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
    Month,
    Quarter,
    Year,
}

const MICROS: i64 = 1_000_000;
const DAY: i64 = 86_400 * MICROS;

impl Unit {
    /// The number of the unit that holds a time (microseconds since 1970, in the zone's own time).
    fn index(self, micros: i64) -> i64 {
        let days = micros.div_euclid(DAY);
        let months = || {
            let (year, month, _) = text::civil_from_days(days);
            (year - 1970) * 12 + i64::from(month) - 1
        };
        match self {
            Unit::Second => micros.div_euclid(MICROS),
            Unit::Minute => micros.div_euclid(60 * MICROS),
            Unit::Hour => micros.div_euclid(3600 * MICROS),
            Unit::Day => days,
            // 1970-01-05 was a Monday.
            Unit::Week => (days - 4).div_euclid(7),
            Unit::Month => months(),
            Unit::Quarter => months().div_euclid(3),
            Unit::Year => months().div_euclid(12),
        }
    }

    /// Whether a value of a type is where the unit begins, in UTC.
    pub fn begins_at(self, ty: &ColumnType, value: &str) -> bool {
        time(ty, value).is_some_and(|at| self.begins(self.index(at)) == Some(at))
    }

    /// Where the unit of a number begins, if that is a time at all.
    fn begins(self, index: i64) -> Option<i64> {
        let months = |n: i64| {
            let year = 1970 + n.div_euclid(12);
            let days = text::days_from_civil(year, n.rem_euclid(12) as u32 + 1, 1);
            days.checked_mul(DAY)
        };
        match self {
            Unit::Second => index.checked_mul(MICROS),
            Unit::Minute => index.checked_mul(60 * MICROS),
            Unit::Hour => index.checked_mul(3600 * MICROS),
            Unit::Day => index.checked_mul(DAY),
            Unit::Week => index.checked_mul(7)?.checked_add(4)?.checked_mul(DAY),
            Unit::Month => months(index),
            Unit::Quarter => months(index.checked_mul(3)?),
            Unit::Year => months(index.checked_mul(12)?),
        }
    }
}

/// One piece: what it is called, and the conditions at both ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The readable partition id.
    pub label: String,
    /// At the source.
    pub source: Cut,
    /// At the destination; `None` if a dimension is no column there.
    pub destination: Option<Cut>,
}

impl Piece {
    /// A partition of it.
    pub fn partition(self, work: impl Fn(Slice) -> Work) -> Partition {
        Partition::new(self.label, work(Slice::Cut(self.source)))
    }
}

/// What dimensions with a start, an end or a list of values leave out: a run by them is about these rows alone.
pub fn limits(dimensions: &[Vec<Dimension>]) -> Vec<Condition> {
    let of_one = |d: &Dimension| {
        let test = match &d.by {
            By::List(values) => Test::In(values.clone()),
            _ if d.start.is_none() && d.end.is_none() => return None,
            _ => Test::Range {
                lower: d.start.clone(),
                upper: d.end.clone(),
            },
        };
        Some(Condition {
            term: d.term.clone(),
            test,
        })
    };
    dimensions.iter().flatten().filter_map(of_one).collect()
}

/// The names of dimensions, for people.
pub fn names(dimensions: &[Vec<Dimension>]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for dimension in dimensions.iter().flatten() {
        if !names.contains(&dimension.name.as_str()) {
            names.push(&dimension.name);
        }
    }
    names.join(", ")
}

/// Cuts by all dimensions, level by level; `None` where there are none. A dimension of a later level on the same column
/// cuts the earlier one's pieces finer. Where a dimension inside others would make more than `most` pieces, it cuts none,
/// and `reasons` hears of it.
pub async fn by_dimensions(
    source: &dyn Source,
    resolved: &Resolved,
    levels: &[Vec<Dimension>],
    most: usize,
    reasons: &mut Vec<String>,
) -> Result<Option<Vec<Piece>>> {
    by_dimensions_asking(source, resolved, levels, (most, QUESTIONS), reasons).await
}

/// The same, with so many questions at most for where each dimension's values lie.
pub(super) async fn by_dimensions_asking(
    source: &dyn Source,
    resolved: &Resolved,
    levels: &[Vec<Dimension>],
    (most, questions): (usize, usize),
    reasons: &mut Vec<String>,
) -> Result<Option<Vec<Piece>>> {
    let mut finest: Vec<Dimension> = Vec::new();
    for dimension in levels.iter().flatten() {
        let same = |d: &&mut Dimension| d.term == dimension.term && !matches!(d.by, By::List(_));
        match finest.iter_mut().find(same) {
            // Its ends alone narrow the pieces.
            Some(coarser) if dimension.by == By::Whole => {
                coarser.start = dimension.start.clone().or_else(|| coarser.start.take());
                coarser.end = dimension.end.clone().or_else(|| coarser.end.take());
            }
            // The aligned bounds of the coarser step are bounds of the finer one or lie inside its pieces; the finer
            // pieces alone cover the same rows, between the same ends.
            Some(coarser) => {
                *coarser = Dimension {
                    start: dimension.start.clone().or_else(|| coarser.start.take()),
                    end: dimension.end.clone().or_else(|| coarser.end.take()),
                    ..dimension.clone()
                }
            }
            None => finest.push(dimension.clone()),
        }
    }
    if finest.is_empty() {
        return Ok(None);
    }
    let mut pieces = vec![Piece {
        label: String::new(),
        source: Cut::default(),
        destination: Some(Cut::default()),
    }];
    for dimension in &finest {
        let mut tests = tests(source, resolved, dimension, questions).await?;
        let mut others = others_between(dimension, &tests);
        let count = pieces.len().saturating_mul(tests.len());
        if count > MAX_PARTITIONS && pieces.len() == 1 {
            return Err(too_many(dimension, count));
        }
        if count > most && pieces.len() > 1 {
            reasons.push(uncut(&dimension.name, count, most));
            tests = limits(&[vec![dimension.clone()]]).into_iter().map(|c| c.test).collect();
            others = None;
            if tests.is_empty() {
                continue;
            }
        }
        let both = |p: &Piece, [a, b]: &[Test; 2]| narrowed(&narrowed(p, dimension, a), dimension, b);
        pieces = pieces
            .iter()
            .flat_map(|p| {
                let cut = tests.iter().map(|t| narrowed(p, dimension, t));
                cut.chain(others.iter().map(|o| both(p, o))).collect::<Vec<_>>()
            })
            .collect();
    }
    told_apart(pieces).map(Some)
}

/// Pieces whose values look alike in a label get labels of their own: a partition under the name of one that is done is
/// done, too.
fn told_apart(mut pieces: Vec<Piece>) -> Result<Vec<Piece>> {
    let mut seen = HashSet::with_capacity(pieces.len());
    for piece in &mut pieces {
        if !seen.insert(piece.label.clone()) {
            let cut = serde_json::to_string(&piece.source).map_err(|e| Error::bug(format!("a cut as text: {e}")))?;
            piece.label = format!("{}~{}", piece.label, crate::plan::short_hash(&cut));
            seen.insert(piece.label.clone());
        }
    }
    Ok(pieces)
}

/// What the single values that the source has leave of a start and an end: values that only the destination has, or that
/// come after the plan was made.
fn others_between(dimension: &Dimension, tests: &[Test]) -> Option<[Test; 2]> {
    let limited = dimension.start.is_some() || dimension.end.is_some();
    if dimension.by != By::Values || !limited {
        return None;
    }
    let values = tests.iter().filter_map(|test| match test {
        Test::In(values) => Some(values.clone()),
        _ => None,
    });
    let between = Test::Range {
        lower: dimension.start.clone(),
        upper: dimension.end.clone(),
    };
    Some([Test::NotIn(values.flatten().collect()), between])
}

/// Says that pieces are not cut any finer.
pub(super) fn uncut(name: &str, count: usize, most: usize) -> String {
    let why = match most {
        MAX_COMPARED => "what differs in a partition is found by hashes of its blocks",
        _ => "a larger step makes fewer",
    };
    format!("partitions are not cut by {name} again: that would make {count}, and {most} is the most; {why}")
}

fn too_many(dimension: &Dimension, count: usize) -> Error {
    Error::new(
        code::CONFIG_INVALID,
        format!("cutting by {} would make {count} partitions", dimension.name),
    )
    .hint(format!("give a larger step: at most {MAX_PARTITIONS} partitions"))
}

/// A piece with one more condition.
pub fn narrowed(piece: &Piece, dimension: &Dimension, test: &Test) -> Piece {
    let add = |cut: &Cut, term: &Term| {
        let mut cut = cut.clone();
        cut.conditions.push(Condition {
            term: term.clone(),
            test: test.clone(),
        });
        cut
    };
    let label = label(&dimension.name, test);
    Piece {
        label: match piece.label.is_empty() {
            true => label,
            false => format!("{}__{label}", piece.label),
        },
        source: add(&piece.source, &dimension.term),
        destination: match (&piece.destination, &dimension.destination) {
            (Some(cut), Some(term)) => Some(add(cut, term)),
            _ => None,
        },
    }
}

/// The readable name of a test: `updated_at_2024-01-15T12:00:00_2024-01-15T14:00:00`.
pub fn label(name: &str, test: &Test) -> String {
    let show = |v: &Option<String>, open: &str| v.as_ref().map_or(open.to_string(), |v| readable(v));
    match test {
        Test::Range { lower, upper } => format!("{name}_{}_{}", show(lower, "min"), show(upper, "max")),
        Test::In(values) => {
            let values: Vec<String> = values.iter().map(|v| readable(v)).collect();
            format!("{name}_{}", values.join("-"))
        }
        Test::NotIn(_) => format!("{name}_others"),
        Test::Compare(comparison, value) => format!("{name}_{}_{}", comparison.sql(), readable(value)),
        Test::Null => format!("{name}_null"),
        Test::NotNull => format!("{name}_not-null"),
        Test::NullOrIn(values) => format!("{}_or-null", label(name, &Test::In(values.clone()))),
        Test::NullOrNotIn(_) => format!("{name}_others-or-null"),
        Test::NullOrRange { lower, upper } => format!("{name}_{}_{}_or-null", show(lower, "min"), show(upper, "max")),
    }
}

/// A condition, for people.
pub fn told(condition: &Condition) -> String {
    let name = &condition.term;
    match &condition.test {
        Test::Range {
            lower: Some(lower),
            upper: Some(upper),
        } => format!("{lower} <= {name} < {upper}"),
        Test::Range {
            lower: Some(lower),
            upper: None,
        } => format!("{name} >= {lower}"),
        Test::Range {
            lower: None,
            upper: Some(upper),
        } => format!("{name} < {upper}"),
        Test::In(values) => format!("{name} in ({})", values.join(", ")),
        other => label(&name.to_string(), other),
    }
}

fn readable(value: &str) -> String {
    // A date's blank reads better as the T of ISO 8601.
    let value = value.strip_suffix("+00").unwrap_or(value);
    let mut text: String = value
        .chars()
        .map(|c| match c {
            ' ' if value.as_bytes().first().is_some_and(u8::is_ascii_digit) => 'T',
            c if c.is_alphanumeric() || "-.:+".contains(c) => c,
            _ => '-',
        })
        .take(48)
        .collect();
    // Long or altered values may look alike.
    if value.chars().count() > 48 || text.chars().zip(value.chars()).any(|(a, b)| a != b && a == '-') {
        text.push('~');
        text.push_str(&crate::plan::short_hash(value));
    }
    text
}

async fn tests(source: &dyn Source, resolved: &Resolved, dimension: &Dimension, questions: usize) -> Result<Vec<Test>> {
    let mut tests = match &dimension.by {
        By::List(values) => values.iter().map(|v| Test::In(vec![v.clone()])).collect(),
        By::Values => values(source, resolved, dimension).await?,
        By::Whole => between(dimension.start.clone(), Vec::new(), dimension.end.clone()),
        _ => ranges(source, resolved, dimension, questions).await?,
    };
    let limited = dimension.start.is_some() || dimension.end.is_some();
    if dimension.nullable && !limited && !matches!(dimension.by, By::List(_)) {
        tests.push(Test::Null);
    }
    Ok(tests)
}

/// A slice with one more condition.
pub(super) fn slice_within(slice: &Slice, condition: Condition) -> Slice {
    let mut cut = match slice {
        Slice::Cut(cut) => cut.clone(),
        Slice::Key(range) => Cut {
            conditions: Vec::new(),
            key: Some(range.clone()),
        },
        _ => Cut::default(),
    };
    cut.conditions.push(condition);
    Slice::Cut(cut)
}

/// Nothing outside `start` and `end` is looked at, nor any of these values.
fn within(dimension: &Dimension, beyond: &[String]) -> Slice {
    let mut tests = Vec::new();
    if dimension.start.is_some() || dimension.end.is_some() {
        tests.push(Test::Range {
            lower: dimension.start.clone(),
            upper: dimension.end.clone(),
        });
    }
    if !beyond.is_empty() {
        tests.push(Test::NotIn(beyond.to_vec()));
    }
    if tests.is_empty() {
        return Slice::All;
    }
    let conditions = tests.into_iter().map(|test| Condition {
        term: dimension.term.clone(),
        test,
    });
    Slice::Cut(Cut {
        conditions: conditions.collect(),
        key: None,
    })
}

/// One piece per distinct value, and one for values that appear only after the plan was made.
async fn values(source: &dyn Source, resolved: &Resolved, dimension: &Dimension) -> Result<Vec<Test>> {
    let terms = std::slice::from_ref(&dimension.term);
    let found = source
        .distinct(&resolved.read, terms, &within(dimension, &[]), MAX_PARTITIONS + 1)
        .await?;
    if found.len() > MAX_PARTITIONS {
        return Err(too_many(dimension, found.len()));
    }
    let mut values: Vec<String> = found
        .into_iter()
        .filter_map(|v| v.into_iter().next().flatten())
        .collect();
    values.sort_unstable();
    let others = Test::NotIn(values.clone());
    let limited = dimension.start.is_some() || dimension.end.is_some();
    let mut tests: Vec<Test> = values.into_iter().map(|v| Test::In(vec![v])).collect();
    if !limited {
        tests.push(others);
    }
    Ok(tests)
}

/// Ranges of a dimension's steps, where it has values; what lies between them belongs to the one before. `questions` is how
/// often the source may be asked where they lie.
pub(super) async fn ranges(
    source: &dyn Source,
    resolved: &Resolved,
    dimension: &Dimension,
    questions: usize,
) -> Result<Vec<Test>> {
    // No step leads to infinity: such rows are in the first and the last range, which are open.
    let mut beyond = Vec::new();
    let extent = loop {
        let slice = within(dimension, &beyond);
        let Some(found) = source.extent(&resolved.read, &dimension.term, &slice).await? else {
            break None;
        };
        let before = beyond.len();
        beyond.extend([&found.min, &found.max].into_iter().filter(|v| is_endless(v)).cloned());
        if beyond.len() == before {
            break Some(found);
        }
    };
    let inner = match extent {
        Some(extent) => {
            let values = ValuesOf {
                source,
                resolved,
                term: &dimension.term,
                slice: within(dimension, &beyond),
            };
            stepped(dimension, extent, &values, questions).await?
        }
        None => Vec::new(),
    };
    Ok(between(dimension.start.clone(), inner, dimension.end.clone()))
}

/// Where values lie.
#[async_trait]
trait Values: Sync {
    /// The least and the greatest value inside a range.
    async fn extent(&self, range: Test) -> Result<Option<Extent>>;
}

/// The values of a source's term in a slice.
struct ValuesOf<'a> {
    source: &'a dyn Source,
    resolved: &'a Resolved,
    term: &'a Term,
    slice: Slice,
}

#[async_trait]
impl Values for ValuesOf<'_> {
    async fn extent(&self, range: Test) -> Result<Option<Extent>> {
        let condition = Condition {
            term: self.term.clone(),
            test: range,
        };
        let slice = slice_within(&self.slice, condition);
        self.source.extent(&self.resolved.read, self.term, &slice).await
    }
}

/// So many steps are taken without asking whether there are values in all of them.
const FEW: usize = 100;

/// So many questions are asked at most: fewer than there are partitions that may turn out empty.
pub(super) const QUESTIONS: usize = 64;

/// A stretch of steps, and where the values inside it begin and end.
struct Stretch {
    lower: Option<String>,
    upper: Option<String>,
    extent: Extent,
}

/// The bounds of steps between two values. Where they are many, most may hold nothing, because one value is far from all
/// others (a date of the year 9999): the widest stretch is halved, and what lies between the values of both halves is not
/// cut.
async fn stepped(dimension: &Dimension, extent: Extent, values: &dyn Values, questions: usize) -> Result<Vec<String>> {
    let steps = |s: &Stretch| Steps::of(dimension, &s.extent.min, &s.extent.max);
    let mut stretches = vec![Stretch {
        lower: None,
        upper: None,
        extent,
    }];
    let can_be_sparse = matches!(dimension.by, By::Step(_) | By::Time { .. });
    let mut asked = 0;
    while can_be_sparse && asked < questions {
        let counts = stretches.iter().map(|s| steps(s).map(|s| s.count()));
        let counts = counts.collect::<Result<Vec<_>>>()?;
        let widest = (0..counts.len())
            .max_by_key(|i| counts[*i])
            .filter(|i| counts[*i] > FEW);
        let Some(at) = widest else { break };
        let Some(middle) = steps(&stretches[at])?.middle() else {
            break;
        };
        let whole = stretches.remove(at);
        let halves = [(whole.lower, Some(middle.clone())), (Some(middle), whole.upper)];
        for (lower, upper) in halves.into_iter().rev() {
            asked += 1;
            let range = Test::Range {
                lower: lower.clone(),
                upper: upper.clone(),
            };
            if let Some(extent) = values.extent(range).await? {
                stretches.insert(at, Stretch { lower, upper, extent });
            }
        }
    }
    let all = stretches.iter().map(steps).collect::<Result<Vec<_>>>()?;
    let count = all.iter().fold(0, |n: usize, s| n.saturating_add(s.count()));
    if count > MAX_PARTITIONS {
        return Err(too_many(dimension, count));
    }
    let bounds = all.iter().enumerate().flat_map(|(i, s)| {
        let begin = if i > 0 { s.begin(s.first - 1) } else { None };
        begin.into_iter().chain(s.inner())
    });
    Ok(bounds.collect())
}

/// Values of numbers and times that no step leads to.
pub(super) fn is_endless(value: &str) -> bool {
    matches!(value, "infinity" | "-infinity" | "Infinity" | "-Infinity" | "NaN")
}

/// Half-open ranges between bounds.
pub fn between(first: Option<String>, inner: Vec<String>, last: Option<String>) -> Vec<Test> {
    let mut lower = first.clone();
    let mut tests = Vec::new();
    for bound in inner {
        if Some(&bound) == first.as_ref() || Some(&bound) == last.as_ref() {
            continue;
        }
        tests.push(Test::Range {
            lower: lower.replace(bound.clone()),
            upper: Some(bound),
        });
    }
    tests.push(Test::Range { lower, upper: last });
    tests
}

/// The steps of a dimension between two values, by their numbers.
struct Steps<'a> {
    dimension: &'a Dimension,
    size: i64,
    zone: Zone,
    /// Both values as positions: whole numbers, microseconds, or the first 32 bits of a uuid.
    low: i64,
    high: i64,
    /// The steps that begin behind the first value and not behind the last.
    first: i64,
    last: i64,
}

impl<'a> Steps<'a> {
    fn of(dimension: &'a Dimension, min: &str, max: &str) -> Result<Self> {
        let unreadable = || {
            Error::new(
                code::CONFIG_TYPE,
                format!(
                    "{} ({}) cannot be cut by steps of its kind",
                    dimension.name, dimension.ty
                ),
            )
            .hint("give data_type and step as the column's own type needs them")
        };
        let (By::Step(step) | By::Time { step, .. } | By::UuidPrefix(step)) = &dimension.by else {
            return Err(Error::bug("what is not cut by steps has none"));
        };
        let size = i64::try_from((*step).max(1)).map_err(|_| unreadable())?;
        let zone = match &dimension.by {
            By::Time { zone, .. } if dimension.ty == ColumnType::TimestampTz => *zone,
            _ => Zone::UTC,
        };
        let at = |value: &str, otherwise: u32| {
            let at = match &dimension.by {
                By::Time { .. } => time(&dimension.ty, value),
                // A text may be no uuid; digits come before letters in every order of texts.
                By::UuidPrefix(_) => prefix(value).or(dimension.is_text().then_some(otherwise.into())),
                _ => whole(value),
            };
            at.ok_or_else(unreadable)
        };
        let (low, high) = (at(min, 0)?, at(max, u32::MAX)?);
        let number = |at: i64| match &dimension.by {
            By::Time { unit, .. } => unit.index(zone.local(at)).div_euclid(size),
            _ => at.div_euclid(size),
        };
        Ok(Steps {
            dimension,
            size,
            zone,
            low,
            high,
            first: number(low).saturating_add(1),
            last: number(high),
        })
    }

    /// How many pieces they make.
    fn count(&self) -> usize {
        let count = self.last.saturating_sub(self.first).saturating_add(2);
        usize::try_from(count.max(1)).unwrap_or(usize::MAX)
    }

    fn at(&self, number: i64) -> Option<i64> {
        let number = number.checked_mul(self.size)?;
        match &self.dimension.by {
            By::Time { unit, .. } => self.zone.instant(unit.begins(number)?),
            _ => Some(number),
        }
    }

    fn write(&self, at: i64) -> Option<String> {
        match &self.dimension.by {
            By::Time { .. } => write_time(&self.dimension.ty, at),
            By::UuidPrefix(_) if self.dimension.is_text() => Some(format!("{at:08x}")),
            By::UuidPrefix(_) => Some(format!("{at:08x}-0000-0000-0000-000000000000")),
            _ => Some(at.to_string()),
        }
    }

    /// Where a step begins.
    fn begin(&self, number: i64) -> Option<String> {
        self.write(self.at(number)?)
    }

    /// Where about half of the steps are over.
    fn middle(&self) -> Option<String> {
        self.begin(self.first / 2 + self.last / 2)
    }

    /// Where the steps begin that lie behind the first value and not behind the last.
    fn inner(&self) -> Vec<String> {
        let begins = (self.first..=self.last).filter_map(|n| self.at(n));
        let mut begins: Vec<i64> = begins.filter(|t| self.low < *t && *t <= self.high).collect();
        // Where clocks are set forward, several steps begin at once.
        begins.dedup();
        begins.into_iter().filter_map(|t| self.write(t)).collect()
    }
}

/// The first 32 bits of a uuid.
fn prefix(value: &str) -> Option<i64> {
    let digits: String = value.chars().filter(|c| *c != '-').take(8).collect();
    i64::from_str_radix(&digits, 16).ok()
}

/// Where the step begins that ends at a value, not aligned; `None` where steps have no width.
pub(super) fn one_step_before(by: &By, ty: &ColumnType, end: &str) -> Option<String> {
    match by {
        By::Step(step) => {
            let end = whole(end)?;
            Some(end.checked_sub(i64::try_from(*step).ok()?)?.to_string())
        }
        By::Time { step, unit, .. } => {
            let step = i64::try_from(*step).ok()?;
            let at = time(ty, end)?;
            // A month is as long as the one before.
            let index = unit.index(at);
            let width = unit
                .begins(index)?
                .checked_sub(unit.begins(index.checked_sub(step)?)?)?;
            write_time(ty, at.checked_sub(width)?)
        }
        _ => None,
    }
}

/// The whole part of a number's text, towards minus infinity.
fn whole(text: &str) -> Option<i64> {
    if let Ok(n) = text.parse::<i64>() {
        return Some(n);
    }
    let (whole, fraction) = text.split_once('.')?;
    let n: i64 = match whole {
        "" | "-" => 0,
        w => w.parse().ok()?,
    };
    let below = text.starts_with('-') && fraction.bytes().any(|b| b != b'0');
    Some(n - i64::from(below))
}

/// Microseconds since 1970 of a date or timestamp, in its own zone.
pub(super) fn time(ty: &ColumnType, value: &str) -> Option<i64> {
    let micros = match ty {
        ColumnType::Date => i64::from(text::parse_date(value)?).checked_mul(DAY)?,
        ColumnType::TimestampTz => text::parse_timestamp(value, true)?,
        _ => text::parse_timestamp(value, false)?,
    };
    // Infinities are beyond every step.
    const LAST: i64 = 9_000_000_000_000_000_000;
    Some(micros.clamp(-LAST, LAST))
}

/// The canonical text of a time as a value of the type.
pub(super) fn write_time(ty: &ColumnType, micros: i64) -> Option<String> {
    let mut out = String::new();
    match ty {
        ColumnType::Date => text::write_date(&mut out, i32::try_from(micros.div_euclid(DAY)).ok()?),
        ColumnType::TimestampTz => text::write_timestamp(&mut out, micros, true),
        _ => text::write_timestamp(&mut out, micros, false),
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dimension(ty: ColumnType, by: By) -> Dimension {
        Dimension {
            term: Term::column("c"),
            destination: None,
            name: "c".into(),
            ty,
            nullable: false,
            by,
            start: None,
            end: None,
            immutable: false,
        }
    }

    /// The bounds of steps that lie behind `min` and not behind `max`.
    fn inner_bounds(dimension: &Dimension, min: &str, max: &str) -> Result<Vec<String>> {
        Ok(Steps::of(dimension, min, max)?.inner())
    }

    fn by_time(unit: Unit, step: u64, offset_minutes: i32) -> By {
        By::Time {
            step,
            unit,
            zone: Zone::Offset(offset_minutes),
        }
    }

    #[test]
    fn units_begin_where_the_calendar_has_them() {
        let cut = |unit, step, min: &str, max: &str| {
            inner_bounds(&dimension(ColumnType::Timestamp, by_time(unit, step, 0)), min, max).unwrap()
        };
        assert_eq!(
            cut(Unit::Month, 1, "2023-12-31 23:59:59.9", "2024-03-01 00:00:00"),
            ["2024-01-01 00:00:00", "2024-02-01 00:00:00", "2024-03-01 00:00:00"]
        );
        assert_eq!(
            cut(Unit::Week, 1, "2024-01-07 12:00:00", "2024-01-08 00:00:00"),
            ["2024-01-08 00:00:00"]
        );
        assert_eq!(
            cut(Unit::Hour, 2, "2024-01-15 11:00:00", "2024-01-15 14:30:00"),
            ["2024-01-15 12:00:00", "2024-01-15 14:00:00"]
        );
        assert_eq!(
            cut(Unit::Minute, 15, "2024-01-15 11:59:59.999999", "2024-01-15 12:15:00"),
            ["2024-01-15 12:00:00", "2024-01-15 12:15:00"]
        );
        assert_eq!(
            cut(Unit::Second, 7200, "2024-01-15 11:00:00", "2024-01-15 14:30:00"),
            ["2024-01-15 12:00:00", "2024-01-15 14:00:00"]
        );
        assert_eq!(
            cut(Unit::Quarter, 1, "1969-12-31 12:00:00", "1970-04-01 00:00:00"),
            ["1970-01-01 00:00:00", "1970-04-01 00:00:00"]
        );
        assert_eq!(
            cut(Unit::Year, 10, "1965-01-01 00:00:00", "1985-01-01 00:00:00"),
            ["1970-01-01 00:00:00", "1980-01-01 00:00:00"]
        );
        // The original's defect: seconds divided with rounding put the last half second of a day into the next one.
        assert_eq!(Unit::Day.index(1_704_153_599_600_000), 19_723);
        assert_eq!(Unit::Day.index(-43_200_000_000), -1);
        let east = dimension(ColumnType::TimestampTz, by_time(Unit::Day, 1, 330));
        assert_eq!(
            inner_bounds(&east, "2024-01-01 00:00:00+00", "2024-01-01 20:00:00+00").unwrap(),
            ["2024-01-01 18:30:00+00"]
        );
    }

    #[test]
    fn days_begin_at_midnight_of_a_zone_with_summer_time() {
        let berlin = Zone::parse("Europe/Berlin").unwrap();
        let cut = |unit, min: &str, max: &str| {
            let by = By::Time {
                step: 1,
                unit,
                zone: berlin,
            };
            inner_bounds(&dimension(ColumnType::TimestampTz, by), min, max).unwrap()
        };
        // Clocks were set forward on 2024-03-31: that day has 23 hours.
        assert_eq!(
            cut(Unit::Day, "2024-03-30 12:00:00+00", "2024-04-01 12:00:00+00"),
            ["2024-03-30 23:00:00+00", "2024-03-31 22:00:00+00"]
        );
        assert_eq!(
            cut(Unit::Month, "2024-02-29 12:00:00+00", "2024-04-01 12:00:00+00"),
            ["2024-02-29 23:00:00+00", "2024-03-31 22:00:00+00"]
        );
        // The hour from two to three is jumped over in spring and shown twice in autumn: no bound stands twice.
        for (min, max) in [
            ("2024-03-30 22:30:00+00", "2024-03-31 04:30:00+00"),
            ("2024-10-26 22:30:00+00", "2024-10-27 04:30:00+00"),
        ] {
            for unit in [Unit::Hour, Unit::Minute] {
                let bounds = cut(unit, min, max);
                assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{bounds:?}");
            }
        }
        assert_eq!(Zone::parse("-03:30"), Some(Zone::Offset(-210)));
        assert_eq!(Zone::parse("Europe/Atlantis"), None);
    }

    #[test]
    fn what_clocks_jump_over_is_the_instant_of_the_jump() {
        let at = |text: &str| text::parse_timestamp(text, false).unwrap();
        for (zone, jumped, jump) in [
            (
                "Europe/Berlin",
                [
                    "2024-03-31 02:00:00",
                    "2024-03-31 02:20:00",
                    "2024-03-31 02:59:59.999999",
                ],
                "2024-03-31 01:00:00",
            ),
            (
                "Australia/Lord_Howe",
                ["2024-10-06 02:00:00", "2024-10-06 02:07:00", "2024-10-06 02:29:00"],
                "2024-10-05 15:30:00",
            ),
            // A whole day was left out, and once some seconds were.
            (
                "Pacific/Apia",
                ["2011-12-30 00:00:00", "2011-12-30 12:34:56", "2011-12-30 23:59:59"],
                "2011-12-30 10:00:00",
            ),
            (
                "Europe/Berlin",
                ["1893-04-01 00:00:00", "1893-04-01 00:00:01", "1893-04-01 00:06:31"],
                "1893-03-31 23:06:32",
            ),
        ] {
            let zone = Zone::parse(zone).unwrap();
            for local in jumped {
                assert_eq!(zone.instant(at(local)), Some(at(jump)), "{local}");
            }
        }
    }

    #[test]
    fn steps_of_minutes_never_go_back_where_clocks_are_set_forward() {
        for step in [1, 7, 10, 25, 90] {
            let by = By::Time {
                step,
                unit: Unit::Minute,
                zone: Zone::parse("Europe/Berlin").unwrap(),
            };
            let d = dimension(ColumnType::TimestampTz, by);
            let bounds = inner_bounds(&d, "2024-03-31 00:10:00+00", "2024-03-31 02:50:00+00").unwrap();
            assert!(bounds.windows(2).all(|w| w[0] < w[1]), "{step}: {bounds:?}");
        }
    }

    #[test]
    fn labels_are_readable_and_differ() {
        let range = |lower: &str, upper: &str| Test::Range {
            lower: Some(lower.into()),
            upper: Some(upper.into()),
        };
        assert_eq!(
            label("updated_at", &range("2024-01-15 12:00:00+00", "2024-01-15 14:00:00+00")),
            "updated_at_2024-01-15T12:00:00_2024-01-15T14:00:00"
        );
        assert_eq!(label("id", &range("1", "10001")), "id_1_10001");
        let value = |v: &str| label("name", &Test::In(vec![v.into()]));
        assert_ne!(value("a/b"), value("a.b"));
        assert_ne!(value("a/b"), value("a?b"));
        assert_eq!(label("id", &Test::Null), "id_null");
    }

    #[tokio::test]
    async fn too_small_a_step_is_refused() {
        let everywhere = Known((0..=150_000).collect(), ColumnType::Int64, Default::default());
        let extent = everywhere.extent_of(everywhere.0.clone()).unwrap();
        let e = stepped(
            &dimension(ColumnType::Int64, By::Step(1)),
            extent,
            &everywhere,
            QUESTIONS,
        )
        .await
        .unwrap_err();
        assert!(e.to_string().contains("partitions"), "{e}");
    }

    /// Values of a test's own, and how often they were asked for.
    struct Known(Vec<i64>, ColumnType, std::sync::atomic::AtomicUsize);

    impl Known {
        fn read(&self, text: &str) -> i64 {
            match &self.1 {
                ty @ ColumnType::TimestampTz => time(ty, text).unwrap(),
                _ => text.parse().unwrap(),
            }
        }

        fn write(&self, value: i64) -> String {
            match &self.1 {
                ty @ ColumnType::TimestampTz => write_time(ty, value).unwrap(),
                _ => value.to_string(),
            }
        }

        fn extent_of(&self, mut values: Vec<i64>) -> Option<Extent> {
            values.sort_unstable();
            Some(Extent {
                min: self.write(*values.first()?),
                max: self.write(*values.last()?),
            })
        }

        /// The bounds of steps between all of them.
        async fn bounds(&self, by: By) -> Vec<i64> {
            let extent = self.extent_of(self.0.clone()).unwrap();
            let dimension = dimension(self.1.clone(), by);
            let bounds = stepped(&dimension, extent, self, QUESTIONS).await.unwrap();
            bounds.iter().map(|b| self.read(b)).collect()
        }
    }

    #[async_trait]
    impl Values for Known {
        async fn extent(&self, range: Test) -> Result<Option<Extent>> {
            self.2.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Test::Range { lower, upper } = range else {
                return Err(Error::bug("another question"));
            };
            let [lower, upper] = [lower, upper].map(|end| end.map(|end| self.read(&end)));
            let inside = |v: &i64| lower.is_none_or(|l| *v >= l) && upper.is_none_or(|u| *v < u);
            Ok(self.extent_of(self.0.iter().copied().filter(inside).collect()))
        }
    }

    #[tokio::test]
    async fn a_value_far_from_all_others_makes_no_crowd_of_pieces() {
        let times = |texts: &[&str]| {
            texts
                .iter()
                .map(|t| time(&ColumnType::TimestampTz, t).unwrap())
                .collect()
        };
        let known = |values, ty| Known(values, ty, Default::default());
        let mut years: Vec<i64> = times(&["0001-01-01 00:00:00+00", "9999-12-31 23:59:59+00"]);
        years.extend((0..24).map(|n| 1_700_000_000_000_000 + n * 30 * DAY));
        let far = known(years, ColumnType::TimestampTz);
        for (unit, most) in [
            (Unit::Year, 110),
            (Unit::Month, 110),
            (Unit::Day, 900),
            (Unit::Hour, 2_000),
        ] {
            let bounds = far.bounds(by_time(unit, 1, 0)).await;
            assert!(bounds.len() < most, "{unit:?}: {}", bounds.len());
            // The months of the others are cut as ever.
            let usual = bounds
                .iter()
                .filter(|b| (1_700_000_000_000_000..1_760_000_000_000_000).contains(*b))
                .count();
            assert!(usual >= if unit == Unit::Year { 2 } else { 22 }, "{unit:?}: {usual}");
        }
        let numbers = known(
            [5, 17, 1_000_000_000_000, 1_000_000_000_007, -3_000_000_000].into(),
            ColumnType::Int64,
        );
        assert!(numbers.bounds(By::Step(1)).await.len() < 60);
        // Where there are values everywhere, all of it is cut, and few questions are asked.
        let dense = known((0..50_000).collect(), ColumnType::Int64);
        assert_eq!(dense.bounds(By::Step(1)).await.len(), 49_999);
        assert!(dense.2.into_inner() <= QUESTIONS);
        let few = known((0..90).collect(), ColumnType::Int64);
        assert_eq!(few.bounds(By::Step(1)).await.len(), 89);
        assert_eq!(few.2.into_inner(), 0);
    }

    fn holds(test: &Test, value: i64) -> bool {
        let Test::Range { lower, upper } = test else {
            return false;
        };
        let n = |v: &Option<String>| v.as_ref().map(|v| v.parse::<i64>().unwrap());
        n(lower).is_none_or(|l| value >= l) && n(upper).is_none_or(|u| value < u)
    }

    proptest! {
        #[test]
        fn every_number_is_in_exactly_one_range(
            values in prop::collection::vec(-10_000i64..10_000, 1..50),
            outside in any::<i64>(),
            step in 1u64..5_000,
        ) {
            let (min, max) = (values.iter().min().unwrap(), values.iter().max().unwrap());
            let d = dimension(ColumnType::Int64, By::Step(step));
            let tests = between(None, inner_bounds(&d, &min.to_string(), &max.to_string()).unwrap(), None);
            for v in values.iter().chain([&outside]) {
                prop_assert_eq!(tests.iter().filter(|t| holds(t, *v)).count(), 1);
            }
        }

        #[test]
        fn every_number_is_in_exactly_one_range_however_far_apart_they_are(
            values in prop::collection::vec(any::<i32>().prop_map(i64::from), 1..40),
            outside in any::<i64>(),
            step in 50_000u64..2_000_000_000,
        ) {
            let known = Known(values, ColumnType::Int64, Default::default());
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let bounds = runtime.block_on(known.bounds(By::Step(step)));
            prop_assert!(bounds.windows(2).all(|w| w[0] < w[1]), "bounds grow");
            let tests = between(None, bounds.iter().map(ToString::to_string).collect(), None);
            for v in known.0.iter().chain([&outside]) {
                prop_assert_eq!(tests.iter().filter(|t| holds(t, *v)).count(), 1);
            }
            // Values of two steps are never together.
            let step = step as i64;
            for pair in bounds.windows(2) {
                let steps = known.0.iter().filter(|v| (pair[0]..pair[1]).contains(*v)).map(|v| v.div_euclid(step));
                prop_assert!(steps.collect::<std::collections::BTreeSet<_>>().len() <= 1);
            }
        }

        #[test]
        fn every_time_is_in_exactly_one_range(
            values in prop::collection::vec(-4_000_000_000_000_000i64..4_000_000_000_000_000, 1..30),
            unit in prop::sample::select(vec![Unit::Week, Unit::Month, Unit::Quarter, Unit::Year]),
            step in 1u64..7,
            zone in prop::sample::select(vec!["UTC", "+05:30", "-12:00", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe"]),
        ) {
            let show = |t: i64| write_time(&ColumnType::TimestampTz, t).unwrap();
            let (min, max) = (*values.iter().min().unwrap(), *values.iter().max().unwrap());
            let zone = Zone::parse(zone).unwrap();
            let d = dimension(ColumnType::TimestampTz, By::Time { step, unit, zone });
            let inner = inner_bounds(&d, &show(min), &show(max)).unwrap();
            let bounds: Vec<i64> = inner.iter().map(|b| time(&ColumnType::TimestampTz, b).unwrap()).collect();
            prop_assert!(bounds.windows(2).all(|w| w[0] < w[1]), "bounds grow");
            prop_assert!(bounds.iter().all(|b| *b > min && *b <= max), "no empty piece at an end");
        }
    }
}
