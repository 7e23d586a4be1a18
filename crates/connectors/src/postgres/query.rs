//! SELECTs made of a [`ReadSpec`] and a [`Slice`].
//!
//! Names are quoted; values are literals without a type, so that the server takes them as the column's own and uses
//! the column's own order and indexes. Only what the user wrote in SQL stands there as it is; an error inside it is
//! told by its place in the user's own text. The session's search path is empty, so such SQL names functions, types
//! and tables outside pg_catalog with their schema.

use super::Connection;
use super::slices;
use super::sql::{ident, literal, table as quoted};
use super::types;
use std::collections::BTreeMap;
use std::ops::Range;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{ReadColumn, ReadSpec, Slice};
use synctool_core::query::{Condition, Filter, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType};
use synctool_core::text;
use tokio_postgres::error::ErrorPosition;

/// SQL that remembers which parts of it somebody else wrote.
#[derive(Debug, Default)]
pub(super) struct Text {
    sql: String,
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    /// Its bytes in the statement.
    at: Range<usize>,
    /// What it is, for people.
    what: String,
    /// Where the user's own text begins; `None` for a name that we quoted.
    user: Option<usize>,
}

impl Text {
    pub(super) fn new(sql: impl Into<String>) -> Self {
        Text {
            sql: sql.into(),
            parts: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, sql: &str) {
        self.sql.push_str(sql);
    }

    /// Adds a part that is called `what` in errors; `user` is the user's text inside it.
    pub(super) fn part(&mut self, what: String, sql: &str, user: Option<&str>) {
        let start = self.sql.len();
        self.sql.push_str(sql);
        self.parts.push(Part {
            at: start..self.sql.len(),
            what,
            user: user.and_then(|u| sql.find(u)).map(|at| start + at),
        });
    }

    pub(super) fn sql(&self) -> &str {
        &self.sql
    }

    /// The error of a statement with this text: what is wrong with the user's SQL is an error of the configuration
    /// that says where.
    pub(super) fn error(&self, connection: &Connection, e: tokio_postgres::Error, what: &str) -> Error {
        let Some(db) = e.as_db_error() else {
            return connection.error(e, what);
        };
        // Syntax and names, malformed literals, features that are not there: all of them the text's own fault.
        let state = db.code().code().to_string();
        if !matches!(state.get(..2), Some("42" | "22" | "0A")) || state == "42501" {
            return connection.error(e, what);
        }
        let position = match db.position() {
            Some(ErrorPosition::Original(n)) => self.sql.char_indices().nth((*n as usize).saturating_sub(1)),
            _ => None,
        };
        let part = position.and_then(|(at, _)| self.parts.iter().find(|p| p.at.contains(&at)).map(|p| (p, at)));
        let hint = db.hint().filter(|_| state.starts_with("42")).map(str::to_string);
        match part {
            Some((
                Part {
                    what: name,
                    user: Some(user),
                    ..
                },
                at,
            )) => {
                let place = self.sql.get(*user..at).map(|before| before.chars().count() + 1);
                let mapped = connection.error(e, what);
                let says = mapped
                    .message()
                    .split_once(" failed: ")
                    .map_or(mapped.message(), |(_, s)| s);
                let place = place.map_or(String::new(), |n| format!(", at its character {n}"));
                let error = Error::new(
                    code::CONFIG_INVALID,
                    format!("{what}: {name} is refused by PostgreSQL{place}: {says}"),
                );
                error.at("sqlstate", state).hint(hint.unwrap_or_else(|| {
                    "it is SQL of the source; name functions, types and tables outside pg_catalog with their schema"
                        .into()
                }))
            }
            Some((Part { what: name, .. }, _)) => {
                let mapped = connection.error(e, what);
                match mapped.code() == code::SERVER_ERROR {
                    true => Error::new(code::CONFIG_INVALID, mapped.message().to_string()).at("sqlstate", state),
                    false => mapped,
                }
                .at("where", name.clone())
            }
            // Without a place, only the user's SQL can be meant, if there is any.
            None if self.parts.iter().any(|p| p.user.is_some()) => {
                let mapped = connection.error(e, what);
                let names: Vec<&str> = self
                    .parts
                    .iter()
                    .filter(|p| p.user.is_some())
                    .map(|p| p.what.as_str())
                    .collect();
                Error::new(code::CONFIG_INVALID, mapped.message().to_string())
                    .at("sqlstate", state)
                    .hint(format!("look at {}", names.join(", ")))
            }
            None => connection.error(e, what),
        }
    }
}

/// What is read, on the way to a statement.
#[derive(Debug, Clone, Copy)]
pub(super) struct Query<'a> {
    read: &'a ReadSpec,
    default_schema: &'a str,
}

impl<'a> Query<'a> {
    pub(super) fn new(read: &'a ReadSpec, default_schema: &'a str) -> Self {
        Query { read, default_schema }
    }

    /// A term as SQL that can stand as an operand.
    pub(super) fn term(&self, term: &Term) -> String {
        match term {
            Term::Column {
                relation: Some(relation),
                name,
            } => format!("{}.{}", ident(relation), ident(name)),
            Term::Column { relation: None, name } => {
                let read = self.read;
                // With one table no name is ambiguous.
                match &read.alias {
                    None if read.joins.is_empty() => ident(name),
                    alias => format!("{}.{}", ident(alias.as_ref().unwrap_or(&read.table.name)), ident(name)),
                }
            }
            // The line breaks end a comment in the user's text.
            Term::Sql(sql) => format!("(\n{sql}\n)"),
        }
    }

    /// What a key column's name stands for: what is read under it, else the table's own column.
    fn named(&self, name: &str) -> String {
        match self.read.columns.iter().find(|c| c.source == name) {
            Some(c) => self.term(&c.term()),
            None => self.term(&Term::column(name)),
        }
    }

    fn is_group(&self, term: &Term) -> bool {
        let by = &self.read.group_by;
        self.read
            .columns
            .iter()
            .any(|c| by.contains(&c.column.name) && c.term() == *term)
    }

    /// The statement that reads a slice, each column in the form its decoder takes.
    pub(super) fn select(&self, slice: &Slice) -> Result<Text> {
        let mut out = Text::default();
        for (i, branch) in self.branches(slice)?.iter().enumerate() {
            if i > 0 {
                out.push(" UNION ALL ");
            }
            self.list(&mut out, |c| match self.read.raw {
                Some(_) => self.term(&c.term()),
                None => types::select_expression(&self.value_of(c), &c.column),
            });
            self.tail(&mut out, branch)?;
            self.group(&mut out)?;
        }
        Ok(out)
    }

    /// What is read of a column. Rows with `0` and with `0.00` are one group, which the server calls by either: it is always
    /// called by the shortest.
    fn value_of(&self, column: &ReadColumn) -> String {
        let x = self.term(&column.term());
        let grouped = self.read.group_by.contains(&column.column.name);
        match grouped && column.column.ty == ColumnType::Numeric {
            true => {
                format!("(CASE WHEN {x}::text LIKE '%.%' THEN rtrim(rtrim({x}::text, '0'), '.')::numeric ELSE {x} END)")
            }
            false => x,
        }
    }

    /// Writes a SELECT of the columns as they are, under short names (`c0`, `c1` …).
    pub(super) fn write(&self, out: &mut Text, conditions: &[String]) -> Result<()> {
        self.list(out, |c| self.term(&c.term()));
        self.tail(out, conditions)?;
        self.group(out)
    }

    fn list(&self, out: &mut Text, expression: impl Fn(&ReadColumn) -> String) {
        for (i, c) in self.read.columns.iter().enumerate() {
            out.push(if i == 0 { "SELECT " } else { ", " });
            let sql = expression(c);
            match &c.term {
                Some(Term::Sql(user)) => {
                    out.part(format!("the expression of column {}", c.column.name), &sql, Some(user))
                }
                _ => out.part(format!("column {}", c.source), &sql, None),
            }
            out.push(&format!(" AS c{i}"));
        }
        if self.read.columns.is_empty() {
            out.push("SELECT");
        }
    }

    /// FROM and WHERE.
    pub(super) fn tail(&self, out: &mut Text, conditions: &[String]) -> Result<()> {
        let read = self.read;
        let named = |id, alias: &Option<String>| {
            let alias = alias.as_ref().map_or(String::new(), |a| format!(" AS {}", ident(a)));
            format!("{}{alias}", quoted(id, self.default_schema))
        };
        out.push(" FROM ");
        out.part(format!("table {}", read.table), &named(&read.table, &read.alias), None);
        for join in &read.joins {
            out.push(match join.kind {
                JoinKind::Inner => " JOIN ",
                JoinKind::Left => " LEFT JOIN ",
                JoinKind::Right => " RIGHT JOIN ",
                JoinKind::Full => " FULL JOIN ",
            });
            out.part(format!("table {}", join.table), &named(&join.table, &join.alias), None);
            out.push(" ON ");
            let what = format!("the condition of the join with {}", join.table);
            out.part(what, &format!("(\n{}\n)", join.on), Some(&join.on));
        }
        let mut word = " WHERE ";
        for (i, filter) in read.filters.iter().enumerate() {
            out.push(word);
            word = " AND ";
            match filter {
                Filter::Sql(sql) => out.part(format!("filter {}", i + 1), &format!("(\n{sql}\n)"), Some(sql)),
                Filter::Test(test) => out.part(format!("filter {}", i + 1), &self.condition(test)?, None),
            }
        }
        for condition in conditions {
            out.push(word);
            word = " AND ";
            out.push(condition);
        }
        Ok(())
    }

    /// GROUP BY, by the same expressions that are read.
    fn group(&self, out: &mut Text) -> Result<()> {
        for (i, (_, column)) in self.read.groups()?.into_iter().enumerate() {
            out.push(if i == 0 { " GROUP BY " } else { ", " });
            out.push(&self.term(&column.term()));
        }
        Ok(())
    }

    /// The conditions of a slice: all of one list must hold, no row meets two lists. They are conditions on rows; those
    /// on group columns choose whole groups.
    pub(super) fn branches(&self, slice: &Slice) -> Result<Vec<Vec<String>>> {
        let of_range = |range| -> Result<Vec<String>> {
            let sql = slices::condition(range, |name| self.named(name))?;
            Ok(if sql.is_empty() { Vec::new() } else { vec![sql] })
        };
        Ok(match slice {
            Slice::All => vec![Vec::new()],
            Slice::Key(range) => vec![of_range(range)?],
            Slice::Cut(cut) => {
                let mut all = cut
                    .conditions
                    .iter()
                    .map(|c| self.condition(c))
                    .collect::<Result<Vec<_>>>()?;
                if let Some(range) = &cut.key {
                    all.extend(of_range(range)?);
                }
                vec![all]
            }
            Slice::Keys(list) => self.keys(list)?,
            Slice::File { .. } => {
                return Err(Error::new(code::UNSUPPORTED, "PostgreSQL tables are not read by files"));
            }
        })
    }

    /// The conditions of a slice as one condition, for statements that cannot be repeated per branch.
    pub(super) fn condition_of(&self, slice: &Slice) -> Result<Vec<String>> {
        let branches = self.branches(slice)?;
        Ok(match &branches[..] {
            [one] => one.clone(),
            several => vec![either(several)],
        })
    }

    fn condition(&self, condition: &Condition) -> Result<String> {
        let term = self.term(&condition.term);
        Ok(match &condition.test {
            Test::Range { lower, upper } => {
                let sides: Vec<String> = [(lower, ">="), (upper, "<")]
                    .into_iter()
                    .filter_map(|(value, operator)| value.as_ref().map(|v| (v, operator)))
                    .map(|(value, operator)| Ok(format!("{term} {operator} {}", literal(value)?)))
                    .collect::<Result<_>>()?;
                match sides.is_empty() {
                    true => format!("{term} IS NOT NULL"),
                    false => sides.join(" AND "),
                }
            }
            Test::In(values) if values.is_empty() => "false".into(),
            Test::In(values) => format!("{term} IN ({})", literals(values)?),
            Test::NotIn(values) if values.is_empty() => format!("{term} IS NOT NULL"),
            Test::NotIn(values) => format!("{term} NOT IN ({})", literals(values)?),
            Test::Compare(comparison, value) => format!("{term} {} {}", comparison.sql(), literal(value)?),
            Test::Null => format!("{term} IS NULL"),
            Test::NotNull => format!("{term} IS NOT NULL"),
            Test::NullOrIn(_) | Test::NullOrNotIn(_) | Test::NullOrRange { .. } => {
                format!("({term} IS NULL OR {})", self.condition(&condition.without_null())?)
            }
        })
    }

    /// Counts rows that meet one of some conditions.
    pub(super) fn counting(&self, conditions: &[Condition]) -> Result<Term> {
        let met = conditions
            .iter()
            .map(|c| Ok(format!("({})", self.condition(c)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Term::Sql(format!("count(CASE WHEN {} THEN 1 END)", met.join(" OR "))))
    }

    /// One list of conditions for each set of terms that are NULL, so that each is looked up by an index.
    fn keys(&self, list: &KeyList) -> Result<Vec<Vec<String>>> {
        let mut patterns: BTreeMap<Vec<bool>, Vec<Vec<&str>>> = BTreeMap::new();
        for key in &list.keys {
            if key.len() != list.terms.len() {
                return Err(Error::bug("a key has another number of values than terms"));
            }
            let pattern = key.iter().map(Option::is_some).collect();
            let values = key.iter().flatten().map(String::as_str).collect();
            patterns.entry(pattern).or_default().push(values);
        }
        if patterns.is_empty() || list.terms.is_empty() {
            return Ok(vec![vec!["false".into()]]);
        }
        let mut branches = Vec::with_capacity(patterns.len());
        for (pattern, keys) in &patterns {
            let (given, missing): (Vec<_>, Vec<_>) = list.terms.iter().zip(pattern).partition(|(_, given)| **given);
            let mut all = Vec::new();
            match &given[..] {
                [] => {}
                [(term, _)] => {
                    let values: Vec<&str> = keys.iter().map(|k| k[0]).collect();
                    all.push(format!("{} IN ({})", self.term(term), literals(&values)?));
                }
                several => all.push(self.tuples(&several.iter().map(|(t, _)| *t).collect::<Vec<_>>(), keys)?),
            }
            all.extend(missing.iter().map(|(term, _)| format!("{} IS NULL", self.term(term))));
            branches.push(all);
        }
        // Read one by one, two lists could each make a part of one group.
        let whole = self.read.group_by.is_empty() || list.terms.iter().all(|t| self.is_group(t));
        Ok(match whole {
            true => branches,
            false => vec![vec![either(&branches)]],
        })
    }

    fn tuples(&self, terms: &[&Term], keys: &[Vec<&str>]) -> Result<String> {
        let names: Vec<String> = terms.iter().map(|t| self.term(t)).collect();
        let types: Option<Vec<String>> = terms.iter().map(|t| self.type_of(t)).collect();
        let Some(types) = types else {
            let ors: Vec<String> = keys
                .iter()
                .map(|key| {
                    let parts = names.iter().zip(key).map(|(n, v)| Ok(format!("{n} = {}", literal(v)?)));
                    Ok(format!("({})", parts.collect::<Result<Vec<_>>>()?.join(" AND ")))
                })
                .collect::<Result<_>>()?;
            return Ok(format!("({})", ors.join(" OR ")));
        };
        // The types of the first row are those of the others.
        let mut rows = Vec::with_capacity(keys.len());
        for (i, key) in keys.iter().enumerate() {
            let values = key.iter().zip(&types).map(|(v, ty)| {
                let value = literal(v)?;
                Ok(if i == 0 { format!("{value}::{ty}") } else { value })
            });
            rows.push(format!("({})", values.collect::<Result<Vec<_>>>()?.join(", ")));
        }
        Ok(format!("({}) IN (VALUES {})", names.join(", "), rows.join(", ")))
    }

    /// The type that values of a term are compared as, without modifiers, which would cut or round them.
    fn type_of(&self, term: &Term) -> Option<String> {
        let column = self.read.columns.iter().find(|c| c.term() == *term)?;
        types::unmodified(column.column.source_type.as_deref()?)
    }
}

fn either(branches: &[Vec<String>]) -> String {
    let all: Vec<String> = branches.iter().map(|b| format!("({})", b.join(" AND "))).collect();
    format!("({})", all.join(" OR "))
}

fn literals<S: AsRef<str>>(values: &[S]) -> Result<String> {
    let all: Vec<String> = values.iter().map(|v| literal(v.as_ref())).collect::<Result<_>>()?;
    Ok(all.join(", "))
}

/// A value as text, in the canonical form but for floats ([`canonical`] mends them).
pub(super) fn as_text(expression: &str, column: &Column) -> String {
    if is_padded(column) {
        // A cast would strip the blanks.
        return format!("pg_catalog.textin(pg_catalog.bpcharout({expression}))");
    }
    types::text_expression(expression, column)
}

/// Whether a column is of type bpchar.
pub(super) fn is_padded(column: &Column) -> bool {
    matches!(column.ty, ColumnType::Char { .. }) || column.source_type.as_deref() == Some("bpchar")
}

/// The canonical text of what [`as_text`] gave.
pub(super) fn canonical(ty: &ColumnType, value: String) -> String {
    let mut out = String::new();
    match ty {
        ColumnType::Float64 => match value.parse::<f64>() {
            Ok(v) => text::write_float(&mut out, v, v),
            Err(_) => return value,
        },
        ColumnType::Float32 => match value.parse::<f32>() {
            Ok(v) => text::write_float(&mut out, f64::from(v), v),
            Err(_) => return value,
        },
        _ => return value,
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::change::KeyRange;
    use synctool_core::query::{Cut, Join};
    use synctool_core::schema::TableId;

    fn spec() -> ReadSpec {
        let columns = [
            Column::new("id", ColumnType::Int64).with_source_type("bigint"),
            Column::new("N\"m", ColumnType::Text { max: Some(3) }).with_source_type("character varying(3)"),
        ];
        ReadSpec::all(TableId::new("s", "items"), &columns)
    }

    fn sql(read: &ReadSpec, slice: &Slice) -> String {
        Query::new(read, "public").select(slice).unwrap().sql().to_string()
    }

    fn keys(terms: &[&str], keys: &[&[Option<&str>]]) -> Slice {
        Slice::Keys(KeyList {
            terms: terms.iter().map(|t| Term::column(*t)).collect(),
            keys: keys
                .iter()
                .map(|k| k.iter().map(|v| v.map(String::from)).collect())
                .collect(),
        })
    }

    #[test]
    fn plain_reads_stay_plain() {
        let all = sql(&spec(), &Slice::All);
        assert_eq!(all, r#"SELECT "id" AS c0, "N""m" AS c1 FROM "s"."items""#);
        let key = Slice::Key(KeyRange {
            columns: vec!["id".into()],
            lower: Some(vec!["it's".into()]),
            upper: None,
        });
        assert_eq!(sql(&spec(), &key), format!(r#"{all} WHERE "id" >= 'it''s'"#));
    }

    #[test]
    fn keys_are_looked_up_by_what_they_have() {
        let one = sql(&spec(), &keys(&["id"], &[&[Some("1")], &[None], &[Some("2")]]));
        assert!(
            one.contains(r#"WHERE "id" IN ('1', '2')"#) && one.contains(r#" UNION ALL SELECT "#),
            "{one}"
        );
        assert!(one.contains(r#"WHERE "id" IS NULL"#), "{one}");
        let two = sql(
            &spec(),
            &keys(&["id", "N\"m"], &[&[Some("1"), Some("abcd")], &[Some("2"), Some("b")]]),
        );
        assert!(
            two.contains(r#"("id", "N""m") IN (VALUES ('1'::bigint, 'abcd'::character varying), ('2', 'b'))"#),
            "{two}"
        );
        assert!(sql(&spec(), &keys(&["id"], &[])).ends_with("WHERE false"));
        // Without a known type each key is a condition of its own.
        let unknown = sql(&spec(), &keys(&["x", "id"], &[&[Some("1"), Some("2")]]));
        assert!(unknown.contains(r#"(("x" = '1' AND "id" = '2'))"#), "{unknown}");
    }

    #[test]
    fn a_group_of_a_numeric_is_called_by_its_shortest_text() {
        let n = Column::new("n", ColumnType::Numeric).with_source_type("numeric");
        let mut read = ReadSpec::of(TableId::bare("t"), vec![ReadColumn::plain("n", n)]);
        assert!(!sql(&read, &Slice::All).contains("rtrim"), "only groups are named");
        read.group_by.push("n".into());
        let found = sql(&read, &Slice::All);
        assert!(
            found.contains(r#"rtrim(rtrim("n"::text, '0'), '.')::numeric"#),
            "{found}"
        );
        assert!(found.ends_with(r#"GROUP BY "n""#), "{found}");
    }

    #[test]
    fn groups_are_chosen_before_they_are_made() {
        let mut read = spec();
        read.alias = Some("i".into());
        read.joins.push(Join {
            table: TableId::bare("shops"),
            alias: Some("S".into()),
            kind: JoinKind::Left,
            on: "i.shop = \"S\".id -- here".into(),
        });
        read.filters.push(Filter::Sql("i.live".into()));
        read.columns[0].term = Some(Term::Sql("count(*)".into()));
        read.group_by.push("N\"m".into());
        let cut = Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("N\"m"),
                test: Test::In(vec!["a".into()]),
            }],
            key: None,
        });
        assert_eq!(
            sql(&read, &cut),
            "SELECT (\ncount(*)\n) AS c0, \"i\".\"N\"\"m\" AS c1 FROM \"s\".\"items\" AS \"i\" LEFT JOIN \"public\".\"shops\" AS \"S\" \
             ON (\ni.shop = \"S\".id -- here\n) WHERE (\ni.live\n) AND \"i\".\"N\"\"m\" IN ('a') GROUP BY \"i\".\"N\"\"m\""
        );
    }
}
