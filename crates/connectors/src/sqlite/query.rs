//! The statements that read: what a read and a slice say, in SQLite's SQL. Values are bound; user SQL stands in brackets
//! of its own and ends with its line, so that a comment in it swallows nothing.
//!
//! SQLite has no types of expressions. One without a type of the user's gets it from its values ([`describe`]): only
//! integers, only blobs, integers and reals, or else text. A later value that does not fit stops the run, as reading
//! checks every value.

use super::catalog::{self, CatalogColumn, CatalogTable};
use super::client::failed;
use super::compare::Comparable;
use super::slices;
use super::sql::{literal, placeholders, quote};
use super::types::{self, Cell};
use rusqlite::Connection;
use rusqlite::types::ValueRef;
use std::collections::HashSet;
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::query::{Condition, Filter, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::Extent;
use synctool_core::text::{self, ColumnBuilder};

const KEYS: &str = "temp.\"_synctool_keys\"";

/// By what the rows of a slice are ordered and resumed.
pub(super) enum Order {
    Key(Vec<String>),
    /// The rowid, good for as long as the schema version stays.
    Rowid(&'static str, i64),
    None,
}

/// A statement that reads rows.
pub(super) struct Query {
    pub(super) sql: String,
    pub(super) parameters: Vec<Cell<'static>>,
    pub(super) columns: Vec<Column>,
    pub(super) order: Order,
}

/// The tables of a read.
pub(super) struct Relations<'a> {
    read: &'a ReadSpec,
    /// The table read, then the joined ones, each with its name in terms.
    tables: Vec<(String, CatalogTable)>,
}

/// Conditions and their values.
#[derive(Default)]
struct Where {
    terms: Vec<String>,
    parameters: Vec<Cell<'static>>,
    /// Whether values stand in the text, because it becomes a part of a statement that is not known here.
    inline: bool,
}

impl Where {
    fn bind(&mut self, value: Cell<'static>) -> String {
        if self.inline {
            return literal(&value);
        }
        self.parameters.push(value);
        format!("?{}", self.parameters.len())
    }

    fn sql(&self) -> String {
        match self.terms.as_slice() {
            [] => String::new(),
            terms => format!(" WHERE {}", terms.join(" AND ")),
        }
    }
}

fn bracketed(sql: &str) -> String {
    format!("({sql}\n)")
}

impl<'a> Relations<'a> {
    pub(super) fn find(conn: &Connection, read: &'a ReadSpec) -> Result<Self> {
        let name = |alias: &Option<String>, table: &TableId| alias.clone().unwrap_or_else(|| table.name.clone());
        let mut tables = vec![(name(&read.alias, &read.table), catalog::must_find(conn, &read.table)?)];
        for join in &read.joins {
            tables.push((name(&join.alias, &join.table), catalog::must_find(conn, &join.table)?));
        }
        let mut seen = HashSet::new();
        if let Some((twice, _)) = tables.iter().find(|(n, _)| !seen.insert(n.to_ascii_lowercase())) {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("two tables of one read are called {twice}"),
            )
            .hint("give each of them an alias"));
        }
        Ok(Relations { read, tables })
    }

    fn base(&self) -> &CatalogTable {
        &self.tables[0].1
    }

    /// Whether every row that comes out is one row of the table read.
    fn one_to_one(&self) -> bool {
        self.read.joins.is_empty() && self.read.group_by.is_empty()
    }

    fn column(&self, relation: Option<&str>, name: &str) -> Result<(&str, &CatalogColumn)> {
        let (alias, table) = match relation {
            None => &self.tables[0],
            Some(r) => self
                .tables
                .iter()
                .find(|(n, _)| n == r)
                .or_else(|| self.tables.iter().find(|(n, _)| n.eq_ignore_ascii_case(r)))
                .ok_or_else(|| {
                    let known: Vec<&str> = self.tables.iter().map(|(n, _)| n.as_str()).collect();
                    Error::new(
                        code::CONFIG_INVALID,
                        format!("column {r}.{name}: no table is called {r} here"),
                    )
                    .hint(format!("there are: {}", known.join(", ")))
                })?,
        };
        // A name that is not there would be taken for a text in double quotes.
        let column = table.column(name).ok_or_else(|| {
            let known: Vec<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
            Error::new(code::COLUMN_MISSING, format!("column {name} does not exist"))
                .hint(format!("it has: {}", known.join(", ")))
        })?;
        Ok((alias, column))
    }

    /// A column of the table read.
    fn own(&self, name: &str) -> Result<String> {
        self.term(&Term::column(name))
    }

    fn term(&self, term: &Term) -> Result<String> {
        match term {
            Term::Column { relation, name } => {
                let (alias, column) = self.column(relation.as_deref(), name)?;
                Ok(format!("{}.{}", quote(alias), quote(&column.name)))
            }
            Term::Sql(sql) => Ok(bracketed(sql)),
        }
    }

    /// ` FROM … JOIN …`, with the first `joins` joins.
    fn from(&self, joins: usize) -> String {
        let named = |alias: &str, table: &CatalogTable| format!("{} AS {}", quote(&table.name), quote(alias));
        let mut sql = format!(" FROM {}", named(&self.tables[0].0, &self.tables[0].1));
        for (join, (alias, table)) in self.read.joins.iter().zip(&self.tables[1..]).take(joins) {
            let kind = match join.kind {
                JoinKind::Inner => "JOIN",
                JoinKind::Left => "LEFT JOIN",
                JoinKind::Right => "RIGHT JOIN",
                JoinKind::Full => "FULL JOIN",
            };
            sql.push_str(&format!(" {kind} {} ON {}", named(alias, table), bracketed(&join.on)));
        }
        sql
    }

    fn all_tables(&self) -> String {
        self.from(self.read.joins.len())
    }

    /// A term that values are compared with.
    fn comparable(&self, conn: &Connection, term: &Term) -> Result<Comparable> {
        match term {
            Term::Column { relation, name } => {
                let (_, column) = self.column(relation.as_deref(), name)?;
                Ok(Comparable::column(self.term(term)?, &column.name, &column.declared))
            }
            Term::Sql(sql) => {
                let known = self.read.columns.iter().find(|c| c.term.as_ref() == Some(term));
                let column = match known.map(|c| &c.column).filter(|c| c.ty != ColumnType::Native) {
                    Some(column) => Column::new(sql, column.ty.clone()),
                    None => Column::new(sql, self.found_types(conn, &[self.term(term)?], "")?.remove(0)),
                };
                Ok(Comparable::expression(self.term(term)?, column))
            }
        }
    }

    fn condition(&self, conn: &Connection, condition: &Condition, out: &mut Where) -> Result<()> {
        let left = self.comparable(conn, &condition.term)?;
        let value = |text: &String| left.value(text).map_err(|e| e.at("column", condition.term.to_string()));
        match &condition.test {
            Test::Range { lower, upper } => {
                left.ordered()?;
                for (sql, day) in left.coarse(lower.as_deref(), upper.as_deref()) {
                    let at = out.bind(day);
                    out.terms.push(format!("{sql}{at}"));
                }
                for (op, bound) in [(">=", lower), ("<", upper)] {
                    if let Some(bound) = bound {
                        let at = out.bind(value(bound)?);
                        out.terms.push(format!("{} {op} {at}", left.sql));
                    }
                }
                if lower.is_none() && upper.is_none() {
                    out.terms.push(format!("{} IS NOT NULL", left.sql));
                }
            }
            Test::In(values) => {
                let places = values
                    .iter()
                    .map(|v| Ok(out.bind(value(v)?)))
                    .collect::<Result<Vec<_>>>()?;
                out.terms.push(format!("{} IN ({})", left.sql, places.join(", ")));
            }
            Test::NotIn(values) => {
                let places = values
                    .iter()
                    .map(|v| Ok(out.bind(value(v)?)))
                    .collect::<Result<Vec<_>>>()?;
                out.terms.push(format!("{0} IS NOT NULL", left.sql));
                if !places.is_empty() {
                    out.terms.push(format!("{} NOT IN ({})", left.sql, places.join(", ")));
                }
            }
            Test::Compare(how, v) => {
                if !matches!(how.sql(), "=" | "<>") {
                    left.ordered()?;
                }
                let at = out.bind(value(v)?);
                out.terms.push(format!("{} {} {at}", left.sql, how.sql()));
            }
            Test::Null => out.terms.push(format!("{} IS NULL", left.sql)),
            Test::NotNull => out.terms.push(format!("{} IS NOT NULL", left.sql)),
            Test::NullOrIn(_) | Test::NullOrNotIn(_) | Test::NullOrRange { .. } => {
                let before = out.terms.len();
                self.condition(conn, &condition.without_null(), out)?;
                let others = out.terms.split_off(before).join(" AND ");
                out.terms.push(format!("({} IS NULL OR {others})", left.sql));
            }
        }
        Ok(())
    }

    /// A range of keys, in the order of the key's index.
    fn range(&self, range: &KeyRange, out: &mut Where) -> Result<()> {
        let names = range.columns.iter().map(|c| self.own(c)).collect::<Result<Vec<_>>>()?;
        for (op, bound) in [(">=", &range.lower), ("<", &range.upper)] {
            let Some(values) = bound else { continue };
            if values.len() != names.len() {
                return Err(Error::bug("a range's bound has another number of columns"));
            }
            out.terms.push(compare_rows(&names, op, out.parameters.len() + 1));
            for (name, value) in range.columns.iter().zip(values) {
                let (_, column) = self.column(None, name)?;
                let plain = Column::new(name, types::column_type(&column.declared));
                out.parameters
                    .push(types::bound(&plain, types::store(&column.declared), value)?);
            }
        }
        Ok(())
    }

    /// Rows named one by one: their keys stand in a temporary table, so that there may be any number of them.
    fn keys(&self, conn: &Connection, list: &KeyList, out: &mut Where) -> Result<()> {
        let doing = || "listing the keys to read".to_string();
        let terms = list
            .terms
            .iter()
            .map(|t| self.comparable(conn, t))
            .collect::<Result<Vec<_>>>()?;
        if terms.is_empty() {
            return Err(Error::bug("rows are named by no column"));
        }
        let names: Vec<String> = (0..terms.len()).map(|i| format!("c{i}")).collect();
        let names = names.join(", ");
        conn.execute_batch(&format!(
            "PRAGMA temp_store = memory; DROP TABLE IF EXISTS {KEYS}; CREATE TEMP TABLE \"_synctool_keys\" ({names})"
        ))
        .map_err(failed(doing))?;
        let mut nulls = false;
        {
            let sql = format!("INSERT INTO {KEYS} VALUES ({})", placeholders(1, terms.len()));
            let mut put = conn.prepare(&sql).map_err(failed(doing))?;
            for key in &list.keys {
                if key.len() != terms.len() {
                    return Err(Error::bug("a key has another number of parts than its list has terms"));
                }
                for (i, (term, part)) in terms.iter().zip(key).enumerate() {
                    nulls |= part.is_none();
                    let cell = part.as_ref().map_or(Ok(Cell::Null), |p| term.value(p))?;
                    put.raw_bind_parameter(i + 1, cell).map_err(failed(doing))?;
                }
                put.raw_execute().map_err(failed(doing))?;
            }
        }
        let left: Vec<&str> = terms.iter().map(|t| t.sql.as_str()).collect();
        let mut sql = format!("({}) IN (SELECT {names} FROM {KEYS})", left.join(", "));
        if nulls {
            let same: Vec<String> = left.iter().enumerate().map(|(i, l)| format!("{l} IS k.c{i}")).collect();
            let null: Vec<String> = (0..left.len()).map(|i| format!("k.c{i} IS NULL")).collect();
            sql = format!(
                "({sql} OR EXISTS (SELECT 1 FROM {KEYS} AS k WHERE ({}) AND {}))",
                null.join(" OR "),
                same.join(" AND ")
            );
        }
        out.terms.push(sql);
        Ok(())
    }

    /// Which rows: the filters of the read and the slice.
    fn rows(&self, conn: &Connection, slice: &Slice) -> Result<Where> {
        let mut out = Where::default();
        for filter in &self.read.filters {
            match filter {
                Filter::Sql(sql) => out.terms.push(bracketed(sql)),
                Filter::Test(condition) => match &condition.term {
                    Term::Column { .. } => {
                        let compared = self.comparable(conn, &condition.term)?;
                        let condition = condition.as_written(&compared.described().ty);
                        self.condition(conn, &condition, &mut out)?;
                    }
                    // Its type is found by a scan, and no file writes one.
                    Term::Sql(_) => self.condition(conn, condition, &mut out)?,
                },
            }
        }
        match slice {
            Slice::All => {}
            Slice::Key(range) => self.range(range, &mut out)?,
            Slice::Cut(cut) => {
                for condition in &cut.conditions {
                    self.condition(conn, condition, &mut out)?;
                }
                if let Some(range) = &cut.key {
                    self.range(range, &mut out)?;
                }
            }
            Slice::Keys(list) => self.keys(conn, list, &mut out)?,
            Slice::File { .. } => return Err(Error::bug("a file slice for a SQLite table")),
        }
        Ok(out)
    }

    fn order(&self, conn: &Connection, slice: &Slice) -> Result<Order> {
        let table = self.base();
        let whole = |key: &[String]| key.iter().all(|k| table.column(k).is_some_and(|c| table.never_null(c)));
        let range = match slice {
            Slice::Key(range) => Some(range),
            Slice::Cut(cut) => cut.key.as_ref(),
            _ => None,
        };
        if let Some(range) = range
            && !whole(&range.columns)
            && slices::holds_null(conn, table, &range.columns)?
        {
            return Err(Error::new(
                code::VALUE_MALFORMED,
                format!("a key column ({}) holds NULL", range.columns.join(", ")),
            )
            .hint("give these rows a key, or read the table without one"));
        }
        if !self.one_to_one() || matches!(slice, Slice::Keys(_)) {
            return Ok(Order::None);
        }
        if let Slice::Key(range) = slice {
            return Ok(Order::Key(range.columns.clone()));
        }
        let key = table.key();
        if !key.is_empty() && whole(&key) {
            return Ok(Order::Key(key));
        }
        match table.rowid() {
            Some(rowid) => {
                let version = conn
                    .query_row("PRAGMA schema_version", [], |r| r.get(0))
                    .map_err(failed(|| "reading the schema version".into()))?;
                Ok(Order::Rowid(rowid, version))
            }
            None => Ok(Order::None),
        }
    }

    /// What is selected, and ` GROUP BY …`.
    fn selected(&self) -> Result<(Vec<String>, String)> {
        let selected = self
            .read
            .columns
            .iter()
            .map(|c| self.term(&c.term()))
            .collect::<Result<Vec<_>>>()?;
        let places = self
            .read
            .groups()?
            .into_iter()
            .map(|(at, column)| self.grouped(&column.term(), at + 1))
            .collect::<Result<Vec<_>>>()?;
        let group = match places.as_slice() {
            [] => String::new(),
            places => format!(" GROUP BY {}", places.join(", ")),
        };
        Ok((selected, group))
    }

    /// What makes a group of a term that is selected at a place. Texts make one by their bytes, and times by the time, as
    /// everywhere else: by its collation or in another form of it, a group would be called now this and now that.
    fn grouped(&self, term: &Term, place: usize) -> Result<String> {
        let by = match term {
            Term::Column { relation, name } => {
                let (_, column) = self.column(relation.as_deref(), name)?;
                Comparable::column(self.term(term)?, &column.name, &column.declared).sql
            }
            Term::Sql(_) => place.to_string(),
        };
        Ok(format!("{by} COLLATE BINARY"))
    }

    /// The types that the values of expressions have, in one scan of everything that is read.
    fn found_types(&self, conn: &Connection, expressions: &[String], group: &str) -> Result<Vec<ColumnType>> {
        let filters: Vec<String> = self
            .read
            .filters
            .iter()
            .filter_map(|f| match f {
                Filter::Sql(sql) => Some(bracketed(sql)),
                Filter::Test(_) => None,
            })
            .collect();
        let named: Vec<String> = expressions
            .iter()
            .enumerate()
            .map(|(i, e)| format!("{e} AS x{i}"))
            .collect();
        let types: Vec<String> = (0..expressions.len()).map(|i| format!("typeof(x{i})")).collect();
        let sql = format!(
            "SELECT DISTINCT {} FROM (SELECT {}{}{}{group})",
            types.join(", "),
            named.join(", "),
            self.all_tables(),
            match filters.as_slice() {
                [] => String::new(),
                f => format!(" WHERE {}", f.join(" AND ")),
            },
        );
        let mut found: Vec<HashSet<String>> = vec![HashSet::new(); expressions.len()];
        let mut statement = self.prepare(conn, &sql)?;
        let mut rows = statement.raw_query();
        let doing = || "looking at the values of expressions".to_string();
        while let Some(row) = rows.next().map_err(failed(doing))? {
            for (i, seen) in found.iter_mut().enumerate() {
                seen.insert(row.get(i).map_err(failed(doing))?);
            }
        }
        Ok(found
            .into_iter()
            .map(|mut seen| {
                seen.remove("null");
                let only = |kinds: &[&str]| !seen.is_empty() && seen.iter().all(|s| kinds.contains(&s.as_str()));
                match () {
                    () if only(&["integer"]) => ColumnType::Int64,
                    () if only(&["integer", "real"]) => ColumnType::Float64,
                    () if only(&["blob"]) => ColumnType::Bytes,
                    () => ColumnType::Text { max: None },
                }
            })
            .collect())
    }

    /// Prepares a statement that holds the user's SQL; an error names which part of it is wrong.
    pub(super) fn prepare<'c>(&self, conn: &'c Connection, sql: &str) -> Result<rusqlite::Statement<'c>> {
        let e = match conn.prepare(sql) {
            Ok(statement) => return Ok(statement),
            Err(e) => e,
        };
        let wrong = |what: String, e: rusqlite::Error| {
            let said = match &e {
                rusqlite::Error::SqliteFailure(_, Some(text)) => text.clone(),
                rusqlite::Error::SqlInputError { msg, .. } => msg.clone(),
                other => other.to_string(),
            };
            Error::new(
                code::CONFIG_INVALID,
                format!("{what} is not valid SQL for SQLite: {said}"),
            )
        };
        for (i, join) in self.read.joins.iter().enumerate() {
            if let Err(e) = conn.prepare(&format!("SELECT 1{}", self.from(i + 1))) {
                return Err(wrong(
                    format!("the condition of the join with {}, {}", join.table, join.on),
                    e,
                ));
            }
        }
        for filter in &self.read.filters {
            if let Filter::Sql(sql) = filter
                && let Err(e) = conn.prepare(&format!("SELECT 1{} WHERE {}", self.all_tables(), bracketed(sql)))
            {
                return Err(wrong(format!("the filter {sql}"), e));
            }
        }
        for column in &self.read.columns {
            if let Some(Term::Sql(sql)) = &column.term
                && let Err(e) = conn.prepare(&format!("SELECT {}{}", bracketed(sql), self.all_tables()))
            {
                return Err(wrong(
                    format!("the expression {sql} of column {}", column.column.name),
                    e,
                ));
            }
        }
        let users = self.read.columns.iter().any(|c| matches!(c.term, Some(Term::Sql(_))));
        if users || !self.read.filters.is_empty() || !self.read.joins.is_empty() {
            return Err(wrong("the query as a whole".into(), e));
        }
        Err(failed(|| "reading".into())(e))
    }
}

/// `(a, b) op (?n, …)`, plain for one column.
fn compare_rows(left: &[String], op: &str, first_parameter: usize) -> String {
    let right = placeholders(first_parameter, left.len());
    match left {
        [one] => format!("{one} {op} {right}"),
        _ => format!("({}) {op} ({right})", left.join(", ")),
    }
}

impl Query {
    /// The statement for a slice, from right behind a key or rowid that `resume` makes of the order.
    pub(super) fn build(
        conn: &Connection,
        read: &ReadSpec,
        slice: &Slice,
        resume: impl FnOnce(&Order) -> Result<Option<Vec<Cell<'static>>>>,
    ) -> Result<Self> {
        let relations = Relations::find(conn, read)?;
        let (mut selected, group) = relations.selected()?;
        let order = relations.order(conn, slice)?;
        let mut rows = relations.rows(conn, slice)?;
        let by = match &order {
            Order::Key(names) => names.iter().map(|n| relations.own(n)).collect::<Result<Vec<_>>>()?,
            Order::Rowid(name, _) => vec![format!("{}.{name}", quote(&relations.tables[0].0))],
            Order::None => Vec::new(),
        };
        if let Some(values) = resume(&order)? {
            rows.terms.push(compare_rows(&by, ">", rows.parameters.len() + 1));
            rows.parameters.extend(values);
        }
        selected.extend(by.iter().cloned());
        if selected.is_empty() {
            selected.push("1".into());
        }
        let ordered = match by.as_slice() {
            [] => String::new(),
            by => format!(" ORDER BY {}", by.join(", ")),
        };
        let sql = format!(
            "SELECT {}{}{}{group}{ordered}",
            selected.join(", "),
            relations.all_tables(),
            rows.sql(),
        );
        // Errors in the user's SQL are told here, with what is wrong.
        relations.prepare(conn, &sql)?;
        Ok(Query {
            sql,
            parameters: rows.parameters,
            columns: read.columns.iter().map(|c| c.column.clone()).collect(),
            order,
        })
    }
}

/// The columns that reading would yield.
pub(super) fn describe(conn: &Connection, read: &ReadSpec) -> Result<Vec<Column>> {
    let relations = Relations::find(conn, read)?;
    let outer = |i: usize| {
        let joins = &read.joins;
        let later = |from: usize, kinds: [JoinKind; 2]| joins.iter().skip(from).any(|j| kinds.contains(&j.kind));
        let own = i > 0 && matches!(joins[i - 1].kind, JoinKind::Left | JoinKind::Full);
        own || later(i, [JoinKind::Right, JoinKind::Full])
    };
    let mut columns = Vec::new();
    let mut expressions = Vec::new();
    for wanted in &read.columns {
        let name = &wanted.column.name;
        match wanted.term() {
            Term::Column { relation, name: source } => {
                let (alias, found) = relations.column(relation.as_deref(), &source)?;
                let at = relations.tables.iter().position(|(n, _)| n == alias).unwrap_or(0);
                let column = relations.tables[at].1.schema().column(&found.name).cloned();
                let column = column.ok_or_else(|| Error::bug("a column that was found is gone"))?;
                columns.push(Column {
                    name: name.clone(),
                    nullable: column.nullable || outer(at),
                    ..column
                });
            }
            term @ Term::Sql(_) => {
                expressions.push((columns.len(), relations.term(&term)?));
                columns.push(Column::new(name, ColumnType::Text { max: None }));
            }
        }
    }
    let (selected, group) = relations.selected()?;
    if !expressions.is_empty() {
        // Groups are by place, so all columns are selected again.
        let types = relations.found_types(conn, &selected, &group)?;
        for (at, _) in expressions {
            columns[at].ty = types[at].clone();
        }
    }
    // Filters and joins are proved with it.
    let rows = relations.rows(conn, &Slice::All)?;
    let sql = format!(
        "SELECT {}{}{}{group}",
        selected.join(", "),
        relations.all_tables(),
        rows.sql()
    );
    relations.prepare(conn, &sql)?;
    Ok(columns)
}

/// A stored value as canonical text of a column's type.
pub(super) fn canonical(column: &Column, value: ValueRef<'_>) -> Result<Option<String>> {
    let mut one = ColumnBuilder::new(column);
    types::read_cell(column, &mut one, value)?;
    text::cell(&one.finish(), 0)
}

/// Counts rows that meet one of some conditions.
pub(super) fn counting(conn: &Connection, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
    let relations = Relations::find(conn, read)?;
    let mut met = Vec::with_capacity(conditions.len());
    for condition in conditions {
        let mut inline = Where {
            inline: true,
            ..Where::default()
        };
        relations.condition(conn, condition, &mut inline)?;
        met.push(format!("({})", inline.terms.join(" AND ")));
    }
    Ok(Term::Sql(format!("count(CASE WHEN {} THEN 1 END)", met.join(" OR "))))
}

/// A statement of a look at some terms, with its values bound.
fn look<'c>(
    conn: &'c Connection,
    relations: &Relations<'_>,
    rows: &Where,
    sql: &str,
) -> Result<rusqlite::Statement<'c>> {
    let mut statement = relations.prepare(conn, sql)?;
    for (i, p) in rows.parameters.iter().enumerate() {
        statement.raw_bind_parameter(i + 1, p).map_err(failed(looking))?;
    }
    Ok(statement)
}

fn looking() -> String {
    "looking at values".into()
}

/// The smallest and largest value of a term.
pub(super) fn extent(conn: &Connection, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
    let relations = Relations::find(conn, read)?;
    let compared = relations.comparable(conn, term)?;
    compared.ordered()?;
    let mut rows = relations.rows(conn, slice)?;
    rows.terms.push(format!("{} IS NOT NULL", compared.sql));
    let mut ends = Vec::new();
    for direction in ["ASC", "DESC"] {
        let sql = format!(
            "SELECT {}{}{} ORDER BY {} {direction} LIMIT 1",
            relations.term(term)?,
            relations.all_tables(),
            rows.sql(),
            compared.sql
        );
        let mut statement = look(conn, &relations, &rows, &sql)?;
        let mut found = statement.raw_query();
        let Some(row) = found.next().map_err(failed(looking))? else {
            return Ok(None);
        };
        ends.extend(canonical(
            compared.described(),
            row.get_ref(0).map_err(failed(looking))?,
        )?);
    }
    let mut ends = ends.into_iter();
    Ok(ends.next().zip(ends.next()).map(|(min, max)| Extent { min, max }))
}

/// The distinct values of some terms.
pub(super) fn distinct(
    conn: &Connection,
    read: &ReadSpec,
    terms: &[Term],
    slice: &Slice,
    limit: usize,
) -> Result<Vec<Vec<Option<String>>>> {
    let relations = Relations::find(conn, read)?;
    let columns = terms
        .iter()
        .map(|t| relations.comparable(conn, t).map(|c| c.described().clone()))
        .collect::<Result<Vec<_>>>()?;
    let selected = terms.iter().map(|t| relations.term(t)).collect::<Result<Vec<_>>>()?;
    let rows = relations.rows(conn, slice)?;
    let sql = format!(
        "SELECT DISTINCT {}{}{} LIMIT {limit}",
        selected.join(", "),
        relations.all_tables(),
        rows.sql()
    );
    let mut statement = look(conn, &relations, &rows, &sql)?;
    let mut found = statement.raw_query();
    let mut values = Vec::new();
    while let Some(row) = found.next().map_err(failed(looking))? {
        let value = |(i, c): (usize, &Column)| canonical(c, row.get_ref(i).map_err(failed(looking))?);
        values.push(columns.iter().enumerate().map(value).collect::<Result<_>>()?);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::plan::ReadColumn;
    use synctool_core::query::Cut;

    /// How SQLite runs the statement of a slice.
    fn plan(conn: &Connection, slice: &Slice) -> String {
        let column = Column::new("v", ColumnType::Text { max: None });
        let read = ReadSpec::all(TableId::bare("t"), &[column]);
        let query = Query::build(conn, &read, slice, |_| Ok(None)).unwrap();
        let mut statement = conn.prepare(&format!("EXPLAIN QUERY PLAN {}", query.sql)).unwrap();
        for (i, p) in query.parameters.iter().enumerate() {
            statement.raw_bind_parameter(i + 1, p).unwrap();
        }
        let mut rows = statement.raw_query();
        let mut all = String::new();
        while let Some(row) = rows.next().unwrap() {
            all.push_str(&row.get::<_, String>(3).unwrap());
            all.push('\n');
        }
        all
    }

    #[test]
    fn groups_go_by_values_and_not_by_how_they_are_written() {
        let conn = Connection::open_in_memory().unwrap();
        super::super::compare::register(&conn).unwrap();
        conn.execute_batch(
            "CREATE TABLE t (k TEXT COLLATE NOCASE, at DATETIME);
             INSERT INTO t VALUES ('a', '2024-01-01 00:00:00'), ('A', '2024-01-01T00:00:00'), ('a', '2024-01-02 00:00:00');",
        )
        .unwrap();
        let column = |name: &str, ty| ReadColumn::plain(name, Column::new(name, ty));
        let count = || ReadColumn {
            term: Some(Term::Sql("count(*)".into())),
            ..column("n", ColumnType::Int64)
        };
        let text = || ColumnType::Text { max: None };
        let folded = ReadColumn {
            term: Some(Term::Sql("k".into())),
            ..column("k", text())
        };
        for (by, wanted) in [
            (column("k", text()), [1, 2]),
            (folded, [1, 2]),
            (column("at", ColumnType::Timestamp), [2, 1]),
        ] {
            let mut read = ReadSpec::of(TableId::bare("t"), vec![by, count()]);
            read.group_by = vec![read.columns[0].column.name.clone()];
            let query = Query::build(&conn, &read, &Slice::All, |_| Ok(None)).unwrap();
            let mut statement = conn.prepare(&query.sql).unwrap();
            let found = statement.query_map([], |row| row.get::<_, i64>(1)).unwrap();
            let found = found.collect::<rusqlite::Result<Vec<_>>>().unwrap();
            assert_eq!(found, wanted, "{}", query.sql);
        }
    }

    #[test]
    fn ranges_of_times_and_named_rows_use_indexes() {
        let conn = Connection::open_in_memory().unwrap();
        super::super::compare::register(&conn).unwrap();
        conn.execute_batch(
            "CREATE TABLE t (a INT, b TEXT, at DATETIME, v TEXT, PRIMARY KEY (a, b)); CREATE INDEX t_at ON t (at);",
        )
        .unwrap();
        let at = |lower: Option<&str>, upper: Option<&str>| {
            let test = Test::Range {
                lower: lower.map(Into::into),
                upper: upper.map(Into::into),
            };
            let condition = Condition {
                term: Term::column("at"),
                test,
            };
            Slice::Cut(Cut {
                conditions: vec![condition],
                key: None,
            })
        };
        let found = plan(&conn, &at(Some("2024-01-01 00:00:00"), Some("2024-01-02 00:00:00")));
        assert!(found.contains("t_at (at>? AND at<?)"), "{found}");
        let keys = Slice::Keys(KeyList {
            terms: vec![Term::column("a"), Term::column("b")],
            keys: vec![vec![Some("1".into()), Some("x".into())]],
        });
        let found = plan(&conn, &keys);
        assert!(
            found.contains("SEARCH t USING INDEX") && found.contains("a=? AND b=?"),
            "{found}"
        );
    }
}
