//! Which slices of an aggregate hold whole groups.
//!
//! The conditions of a slice are conditions on rows, before groups are made of them: a slice that holds some rows of a
//! group makes a group of these alone. So an aggregate is cut by what makes its groups, or by steps of time that are
//! whole multiples of the time that does (days by months).

use crate::config::Strategy;
use synctool_core::error::{Error, Result, code};
use synctool_core::query::{Condition, Term, Test};
use synctool_core::schema::ColumnType;
use synctool_core::strategy::cut::{By, Dimension, Unit, Zone};
use synctool_core::strategy::table::{ColumnChoice, TableRequest};

/// The request, if its partitions and bounds hold whole groups. A delta's partitions cut its window of changed rows, and
/// no groups.
pub(super) fn whole(engine: &str, strategy: &Strategy, mut table: TableRequest) -> Result<TableRequest> {
    if table.group_by.is_empty() {
        return Ok(table);
    }
    if strategy.kind.has_cursor() {
        table.dimensions.clear();
    }
    let groups: Vec<Group> = table.group_by.iter().map(|g| Group::of(engine, &table, g)).collect();
    let by = table.group_by.join(", ");
    if let Some(cut) = table
        .dimensions
        .iter()
        .flatten()
        .find(|d| !groups.iter().any(|g| g.is_whole_in(d)))
    {
        return Err(strategy
            .name
            .error(format!(
                "partitions by {} would cut through groups: a group is all rows with the same {by}",
                cut.name
            ))
            .with_help(format!(
                "partition by {by}, or by steps (and a start and end) of time that hold whole groups; without partitions all groups are computed at once"
            ))
            .into());
    }
    if let Some(bound) = table.bounds.iter().find(|b| !groups.iter().any(|g| g.is_bounded_by(b))) {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!(
                "--bounds of {} would cut through groups: a group is all rows with the same {by}",
                bound.term
            ),
        )
        .hint(format!(
            "bound {by}, or a delta: it computes every group whole that has a row inside the bounds"
        )));
    }
    Ok(table)
}

/// What makes a group: a column or an expression, and of the expressions those that name the time a column lies in.
struct Group {
    term: Term,
    /// The column, and the unit of time whose begin is taken of it.
    of_time: Option<(Term, Unit)>,
}

impl Group {
    fn of(engine: &str, table: &TableRequest, name: &str) -> Group {
        let choice = table.columns.iter().flatten().find(|c| c.destination == name);
        let choice = choice.cloned().unwrap_or_else(|| ColumnChoice::same(name));
        let term = choice.term.unwrap_or_else(|| Term::column(&choice.source));
        let of_time = match &term {
            Term::Sql(sql) => begin(engine, sql).and_then(|(path, unit)| Some((column(table, &path), unit?))),
            Term::Column { .. } => None,
        };
        Group { term, of_time }
    }

    fn is_whole_in(&self, cut: &Dimension) -> bool {
        if same(&self.term, &cut.term) {
            return true;
        }
        let Some(unit) = self.unit_of(&cut.term) else {
            return false;
        };
        let whole = match &cut.by {
            // Expressions are computed in UTC.
            By::Time { step, unit: by, zone } => {
                (cut.ty != ColumnType::TimestampTz || *zone == Zone::UTC) && is_multiple(*step, *by, unit)
            }
            By::Whole => true,
            _ => false,
        };
        let ends = [&cut.start, &cut.end];
        whole && ends.into_iter().flatten().all(|end| unit.begins_at(&cut.ty, end))
    }

    fn is_bounded_by(&self, bound: &Condition) -> bool {
        if same(&self.term, &bound.term) {
            return true;
        }
        let Some(unit) = self.unit_of(&bound.term) else {
            return false;
        };
        let (lower, upper) = match &bound.test {
            Test::Range { lower, upper } | Test::NullOrRange { lower, upper } => (lower, upper),
            // What begins no unit is a group of its own.
            test => return *test == Test::Null,
        };
        const TIMES: [ColumnType; 3] = [ColumnType::Date, ColumnType::Timestamp, ColumnType::TimestampTz];
        let mut ends = [lower, upper].into_iter().flatten();
        ends.all(|end| TIMES.iter().any(|ty| unit.begins_at(ty, end)))
    }

    fn unit_of(&self, term: &Term) -> Option<Unit> {
        let (column, unit) = self.of_time.as_ref()?;
        same(column, term).then_some(*unit)
    }
}

fn same(a: &Term, b: &Term) -> bool {
    let plain = |sql: &str| sql.split_whitespace().collect::<String>().to_ascii_lowercase();
    match (a, b) {
        (Term::Sql(a), Term::Sql(b)) => plain(a) == plain(b),
        (Term::Column { relation: x, name: a }, Term::Column { relation: y, name: b }) => {
            x == y && a.eq_ignore_ascii_case(b)
        }
        _ => false,
    }
}

/// Whether steps of time hold whole units.
fn is_multiple(step: u64, by: Unit, unit: Unit) -> bool {
    let seconds = |unit| match unit {
        Unit::Second => Some(1),
        Unit::Minute => Some(60),
        Unit::Hour => Some(3600),
        Unit::Day => Some(86_400),
        _ => None,
    };
    let months = |unit| match unit {
        Unit::Month => Some(1),
        Unit::Quarter => Some(3),
        Unit::Year => Some(12),
        _ => None,
    };
    match (seconds(by), seconds(unit), months(by), months(unit)) {
        (Some(by), Some(unit), ..) | (_, _, Some(by), Some(unit)) => step.saturating_mul(by).is_multiple_of(unit),
        // Weeks, months and what is made of them begin with a day.
        (None, Some(_), ..) => true,
        _ => by == Unit::Week && unit == Unit::Week,
    }
}

/// A column by its path in an expression.
fn column(table: &TableRequest, path: &str) -> Term {
    let path: Vec<String> = path.split('.').map(|p| p.trim_matches('"').to_owned()).collect();
    let own = |r: &String| table.alias.as_ref() == Some(r) || *r == table.source.name;
    let relation = path.len().checked_sub(2).and_then(|at| path.get(at)).cloned();
    Term::Column {
        relation: relation.filter(|r| !own(r)),
        name: path.last().cloned().unwrap_or_default(),
    }
}

/// What an expression takes of a column: the column's path, and the unit of time whose begin it is; `None` where it is
/// none of the usual ways to say that.
fn begin(engine: &str, sql: &str) -> Option<(String, Option<Unit>)> {
    let sql = sql.trim();
    let sql = sql.strip_prefix("pg_catalog.").unwrap_or(sql);
    if let Some(inner) = call(sql, "") {
        return begin(engine, inner);
    }
    let ends = |end: &str| {
        let head = sql.len().checked_sub(end.len())?;
        sql.get(head..)?.eq_ignore_ascii_case(end).then(|| &sql[..head])
    };
    // A cast to a date is a number in SQLite.
    let casts = engine != "sqlite";
    if let Some(inner) = ends("::date").filter(|_| casts) {
        return coarser(begin(engine, inner)?, Unit::Day);
    }
    if let Some(inner) = call(sql, "date") {
        return coarser(begin(engine, inner)?, Unit::Day);
    }
    if let Some(inner) = call(sql, "cast").filter(|_| casts) {
        let head = inner.trim().len().checked_sub("date".len())?;
        let (before, ty) = (inner.trim().get(..head)?.trim_end(), inner.trim().get(head..)?);
        let as_at = before.len().checked_sub("as".len())?;
        let cast = ty.eq_ignore_ascii_case("date")
            && before.get(as_at..)?.eq_ignore_ascii_case("as")
            && before.get(..as_at)?.ends_with(char::is_whitespace);
        return match cast {
            true => coarser(begin(engine, before.get(..as_at)?)?, Unit::Day),
            false => None,
        };
    }
    if let Some(inner) = call(sql, "date_trunc") {
        let (unit, inner) = inner.split_once(',')?;
        let unit = match unit.trim().trim_matches('\'').to_ascii_lowercase().as_str() {
            "second" => Unit::Second,
            "minute" => Unit::Minute,
            "hour" => Unit::Hour,
            "day" => Unit::Day,
            "week" => Unit::Week,
            "month" => Unit::Month,
            "quarter" => Unit::Quarter,
            "year" => Unit::Year,
            _ => return None,
        };
        return coarser(begin(engine, inner)?, unit);
    }
    let is_path = |c: char| c.is_alphanumeric() || "_.\"".contains(c);
    (!sql.is_empty() && sql.chars().all(is_path)).then(|| (sql.to_owned(), None))
}

/// The begin of a unit of what is a begin already: that of the larger one, if the smaller lies inside it.
fn coarser((path, inner): (String, Option<Unit>), unit: Unit) -> Option<(String, Option<Unit>)> {
    let larger = match inner {
        None => unit,
        Some(inner) if is_multiple(1, unit, inner) => unit,
        Some(inner) if is_multiple(1, inner, unit) => inner,
        Some(_) => return None,
    };
    Some((path, Some(larger)))
}

/// What stands between the parentheses of a call of a function, if that is all there is.
fn call<'a>(sql: &'a str, function: &str) -> Option<&'a str> {
    let name = sql.get(..function.len())?;
    let rest = sql[function.len()..].trim_start();
    let inner = rest.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0i32;
    let closes_early = inner.chars().any(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    (name.eq_ignore_ascii_case(function) && !closes_early).then_some(inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_group_is_read_from_its_expression() {
        let of = |sql: &str| begin("postgres", sql).map(|(path, unit)| format!("{path} {unit:?}"));
        for (sql, wanted) in [
            ("CAST(order_date AS DATE)", "order_date Some(Day)"),
            (" ( o.at :: date ) ", "-"),
            ("(o.at::date)", "o.at Some(Day)"),
            ("date(at)", "at Some(Day)"),
            ("date_trunc('month', at)::date", "at Some(Month)"),
            ("date_trunc('hour', CAST(at AS date))", "at Some(Day)"),
            ("date_trunc('week', date_trunc('month', at))", "-"),
            ("cast(at as timestamp)", "-"),
            ("date(a) + date(b)", "-"),
            ("at + interval '1 hour'", "-"),
            ("date_trunc('day', at, 'Europe/Berlin')", "-"),
            ("at", "at None"),
        ] {
            assert_eq!(of(sql).as_deref().unwrap_or("-"), wanted, "{sql}");
        }
        assert_eq!(begin("sqlite", "CAST(at AS DATE)"), None, "a number there");
    }

    #[test]
    fn steps_hold_whole_units_or_not() {
        for (step, by, unit, wanted) in [
            (1, Unit::Hour, Unit::Day, false),
            (24, Unit::Hour, Unit::Day, true),
            (36, Unit::Hour, Unit::Day, false),
            (5, Unit::Day, Unit::Day, true),
            (1, Unit::Week, Unit::Day, true),
            (7, Unit::Day, Unit::Week, false),
            (1, Unit::Month, Unit::Week, false),
            (1, Unit::Month, Unit::Quarter, false),
            (6, Unit::Month, Unit::Quarter, true),
            (1, Unit::Year, Unit::Month, true),
            (30, Unit::Day, Unit::Month, false),
        ] {
            assert_eq!(is_multiple(step, by, unit), wanted, "{step} {by:?} for {unit:?}");
        }
    }
}
