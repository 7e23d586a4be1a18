//! The statements that read: what a read and a slice say, in DuckDB's SQL. Values are bound and cast to the type of what
//! they are compared with; user SQL stands in brackets of its own and ends with its line.

use super::DuckDb;
use super::session::{Session, Stream, ingest};
use super::source::describe;
use super::sql::{quote, table as table_name};
use super::types::{column_type, from_duckdb, reads_as_arrow};
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use std::sync::Arc;
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::query::{Condition, Filter, JoinKind, KeyList, Term, Test, keeps_rows};
use synctool_core::schema::{Column, TableId};
use synctool_core::text;

const KEYS: &str = "_synctool_keys";

fn bracketed(sql: &str) -> String {
    format!("({sql}\n)")
}

/// A canonical text as a value of a DuckDB type.
pub(super) fn from_text(text: &str, type_name: &str) -> String {
    match type_name {
        "BLOB" => format!("unhex(substr({text}, 3))"),
        // DuckDB writes the era behind the day.
        "DATE" | "TIMESTAMP" | "TIMESTAMP WITH TIME ZONE" => {
            format!("CAST(regexp_replace({text}, '^(\\d+-\\d+-\\d+)(.*) BC$', '\\1 (BC)\\2') AS {type_name})")
        }
        _ => format!("CAST({text} AS {type_name})"),
    }
}

/// What an expression is selected as, so that its values come in a form we read.
pub(super) fn readable(sql: String, column: &Column) -> String {
    match reads_as_arrow(column) {
        true => sql,
        false => format!("CAST({sql} AS VARCHAR)"),
    }
}

/// Which rows, and the values of the conditions.
#[derive(Default)]
pub(super) struct Where {
    terms: Vec<String>,
    pub(super) parameters: Vec<String>,
    /// Whether values stand in the text, because it becomes a part of a statement that is not known here.
    inline: bool,
}

impl Where {
    pub(super) fn sql(&self) -> String {
        match self.terms.as_slice() {
            [] => String::new(),
            terms => format!(" WHERE {}", terms.join(" AND ")),
        }
    }

    fn bind(&mut self, value: &str, type_name: &str) -> String {
        if self.inline {
            return from_text(&format!("'{}'", value.replace('\'', "''")), type_name);
        }
        self.parameters.push(value.to_string());
        from_text("?", type_name)
    }
}

/// A read that is being made into SQL.
pub(super) struct Query<'a> {
    session: &'a Session,
    read: &'a ReadSpec,
}

impl<'a> Query<'a> {
    /// Proves the user's SQL, part by part; an error names the part.
    pub(super) async fn new(session: &'a Session, read: &'a ReadSpec) -> Result<Query<'a>> {
        let query = Query { session, read };
        for (i, join) in read.joins.iter().enumerate() {
            let what = format!("the condition of the join with {}, {}", join.table, join.on);
            query.prove(what, format!("SELECT 1{}", query.from(i + 1))).await?;
        }
        for filter in &read.filters {
            if let Filter::Sql(sql) = filter {
                let probe = format!("SELECT 1{} WHERE {}", query.all_tables(), bracketed(sql));
                query.prove(format!("the filter {sql}"), probe).await?;
            }
        }
        for column in &read.columns {
            if let Some(Term::Sql(sql)) = &column.term {
                let what = format!("the expression {sql} of column {}", column.column.name);
                let probe = format!("SELECT {}{}", bracketed(sql), query.all_tables());
                query.prove(what, probe).await?;
            }
        }
        Ok(query)
    }

    async fn prove(&self, what: String, sql: String) -> Result<()> {
        match self.session.rows(format!("DESCRIBE {sql}"), &[]).await {
            Ok(_) => Ok(()),
            Err(e) if matches!(e.code().id, c if c == code::SERVER_ERROR.id || c == code::COLUMN_MISSING.id) => {
                Err(Error::new(
                    code::CONFIG_INVALID,
                    format!("{what} is not valid SQL for DuckDB: {}", e.message()),
                ))
            }
            Err(e) => Err(e),
        }
    }

    fn alias<'r>(alias: &'r Option<String>, table: &'r TableId) -> &'r str {
        alias.as_deref().unwrap_or(&table.name)
    }

    pub(super) fn term(&self, term: &Term) -> String {
        match term {
            Term::Column { relation, name } => {
                let own = Self::alias(&self.read.alias, &self.read.table);
                format!("{}.{}", quote(relation.as_deref().unwrap_or(own)), quote(name))
            }
            Term::Sql(sql) => bracketed(sql),
        }
    }

    fn from(&self, joins: usize) -> String {
        let named = |alias: &str, table: &TableId| format!("{} AS {}", table_name(table), quote(alias));
        let read = self.read;
        let mut sql = format!(" FROM {}", named(Self::alias(&read.alias, &read.table), &read.table));
        for join in read.joins.iter().take(joins) {
            let kind = match join.kind {
                JoinKind::Inner => "JOIN",
                JoinKind::Left => "LEFT JOIN",
                JoinKind::Right => "RIGHT JOIN",
                JoinKind::Full => "FULL JOIN",
            };
            let table = named(Self::alias(&join.alias, &join.table), &join.table);
            sql.push_str(&format!(" {kind} {table} ON {}", bracketed(&join.on)));
        }
        sql
    }

    pub(super) fn all_tables(&self) -> String {
        self.from(self.read.joins.len())
    }

    /// ` GROUP BY …` by the places of the columns.
    pub(super) fn group(&self) -> Result<String> {
        let places: Vec<String> = self.read.groups()?.iter().map(|(at, _)| (at + 1).to_string()).collect();
        Ok(match places.as_slice() {
            [] => String::new(),
            places => format!(" GROUP BY {}", places.join(", ")),
        })
    }

    /// DuckDB's names of the types of what a query selects.
    async fn types_of(&self, selected: &[String], group: &str) -> Result<Vec<String>> {
        let sql = format!("DESCRIBE SELECT {}{}{group}", selected.join(", "), self.all_tables());
        let found = self
            .session
            .rows(sql, &[])
            .await
            .map_err(|e| e.at("table", self.read.table.to_string()))?;
        Ok(found
            .into_iter()
            .map(|row| row.into_iter().nth(1).flatten().unwrap_or_default())
            .collect())
    }

    async fn type_of(&self, term: &Term) -> Result<String> {
        Ok(self.types_of(&[self.term(term)], "").await?.remove(0))
    }

    /// DuckDB's name of the type whose values a condition compares; empty where it compares none.
    async fn compared(&self, condition: &Condition) -> Result<String> {
        match &condition.test {
            Test::Null | Test::NotNull => Ok(String::new()),
            _ => self.type_of(&condition.term).await,
        }
    }

    async fn condition(&self, condition: &Condition, out: &mut Where) -> Result<()> {
        let ty = self.compared(condition).await?;
        test(&self.term(&condition.term), &ty, condition, out);
        Ok(())
    }

    /// A condition of the read's filters: DuckDB itself knows `yes`, and not `on` or blanks around it.
    async fn filter(&self, written: &Condition, out: &mut Where) -> Result<()> {
        let ty = self.compared(written).await?;
        let condition = written.as_written(&column_type(&ty));
        test(&self.term(&written.term), &ty, &condition, out);
        Ok(())
    }

    /// Counts rows that meet one of some conditions.
    pub(super) async fn counting(&self, conditions: &[Condition]) -> Result<Term> {
        let mut met = Vec::with_capacity(conditions.len());
        for condition in conditions {
            let mut inline = Where {
                inline: true,
                ..Where::default()
            };
            self.condition(condition, &mut inline).await?;
            met.push(format!("({})", inline.terms.join(" AND ")));
        }
        Ok(Term::Sql(format!("count(CASE WHEN {} THEN 1 END)", met.join(" OR "))))
    }

    async fn range(&self, range: &KeyRange, out: &mut Where) -> Result<()> {
        let terms: Vec<String> = range.columns.iter().map(|c| self.term(&Term::column(c))).collect();
        let types = self.types_of(&terms, "").await?;
        let row = |parts: &[String]| match parts {
            [one] => one.clone(),
            many => format!("({})", many.join(", ")),
        };
        for (op, bound) in [(">=", &range.lower), ("<", &range.upper)] {
            let Some(values) = bound else { continue };
            if values.len() != terms.len() {
                return Err(Error::bug("a range's bound has another number of columns"));
            }
            let right: Vec<String> = values.iter().zip(&types).map(|(v, ty)| out.bind(v, ty)).collect();
            out.terms.push(format!("{} {op} {}", row(&terms), row(&right)));
        }
        Ok(())
    }

    /// Rows named one by one: their keys stand in a temporary table of the session.
    async fn keys(&self, list: &KeyList, out: &mut Where) -> Result<()> {
        let terms: Vec<String> = list.terms.iter().map(|t| self.term(t)).collect();
        if terms.is_empty() || list.keys.iter().any(|k| k.len() != terms.len()) {
            return Err(Error::bug("a key has another number of parts than its list has terms"));
        }
        if list.keys.is_empty() {
            out.terms.push("false".into());
            return Ok(());
        }
        let types = self.types_of(&terms, "").await?;
        let keys = key_batch(terms.len(), list.keys.iter().map(Vec::as_slice))?;
        self.session
            .run(move |c| {
                super::session::execute(c, &format!("DROP TABLE IF EXISTS temp.{KEYS}"), &[])?;
                ingest(c, KEYS, true, keys)
            })
            .await?;
        let same: Vec<String> = terms
            .iter()
            .zip(&types)
            .enumerate()
            .map(|(i, (term, ty))| format!("{term} IS NOT DISTINCT FROM {}", from_text(&format!("k.c{i}"), ty)))
            .collect();
        out.terms.push(format!(
            "EXISTS (SELECT 1 FROM temp.{KEYS} AS k WHERE {})",
            same.join(" AND ")
        ));
        Ok(())
    }

    /// The filters of the read and the slice.
    pub(super) async fn rows(&self, slice: &Slice) -> Result<Where> {
        let mut out = Where::default();
        for filter in &self.read.filters {
            match filter {
                Filter::Sql(sql) => out.terms.push(bracketed(sql)),
                Filter::Test(condition) => self.filter(condition, &mut out).await?,
            }
        }
        match slice {
            Slice::All => {}
            Slice::Key(range) => self.range(range, &mut out).await?,
            Slice::Cut(cut) => {
                for condition in &cut.conditions {
                    self.condition(condition, &mut out).await?;
                }
                if let Some(range) = &cut.key {
                    self.range(range, &mut out).await?;
                }
            }
            Slice::Keys(list) => self.keys(list, &mut out).await?,
            Slice::File { .. } => return Err(Error::bug("a file slice for a DuckDB table")),
        }
        Ok(out)
    }

    /// The statement that reads a slice, and its values.
    pub(super) async fn select(&self, slice: &Slice) -> Result<(String, Vec<String>)> {
        let columns: Vec<String> = self
            .read
            .columns
            .iter()
            .map(|c| readable(self.term(&c.term()), &c.column))
            .collect();
        let rows = self.rows(slice).await?;
        let sql = format!(
            "SELECT {}{}{}{}",
            columns.join(", "),
            self.all_tables(),
            rows.sql(),
            self.group()?
        );
        Ok((sql, rows.parameters))
    }

    /// The columns that some terms are.
    pub(super) async fn columns(&self, terms: &[Term]) -> Result<Vec<Column>> {
        let selected: Vec<String> = terms.iter().map(|t| self.term(t)).collect();
        let types = self.types_of(&selected, "").await?;
        let column = |(t, ty): (&Term, String)| Column::new(t.to_string(), column_type(&ty)).with_source_type(ty);
        Ok(terms.iter().zip(types).map(column).collect())
    }
}

/// A condition on what is called `left` and has this type.
fn test(left: &str, ty: &str, condition: &Condition, out: &mut Where) {
    match &condition.test {
        Test::Range { lower, upper } => {
            for (op, bound) in [(">=", lower), ("<", upper)] {
                if let Some(bound) = bound {
                    let at = out.bind(bound, ty);
                    out.terms.push(format!("{left} {op} {at}"));
                }
            }
            if lower.is_none() && upper.is_none() {
                out.terms.push(format!("{left} IS NOT NULL"));
            }
        }
        Test::In(values) if values.is_empty() => out.terms.push("false".into()),
        Test::In(values) => {
            let places: Vec<String> = values.iter().map(|v| out.bind(v, ty)).collect();
            out.terms.push(format!("{left} IN ({})", places.join(", ")));
        }
        Test::NotIn(values) => {
            out.terms.push(format!("{left} IS NOT NULL"));
            let places: Vec<String> = values.iter().map(|v| out.bind(v, ty)).collect();
            if !places.is_empty() {
                out.terms.push(format!("{left} NOT IN ({})", places.join(", ")));
            }
        }
        Test::Compare(how, value) => {
            let at = out.bind(value, ty);
            out.terms.push(format!("{left} {} {at}", how.sql()));
        }
        Test::Null => out.terms.push(format!("{left} IS NULL")),
        Test::NotNull => out.terms.push(format!("{left} IS NOT NULL")),
        Test::NullOrIn(_) | Test::NullOrNotIn(_) | Test::NullOrRange { .. } => {
            let before = out.terms.len();
            test(left, ty, &condition.without_null(), out);
            let others = out.terms.split_off(before).join(" AND ");
            out.terms.push(format!("({left} IS NULL OR {others})"));
        }
    }
}

/// The columns that reading would yield.
pub(super) async fn describe_query(duckdb: &DuckDb, read: &ReadSpec) -> Result<Vec<Column>> {
    let session = duckdb.database.session().await?;
    let query = Query::new(&session, read).await?;
    // Conditions as data are proved with it.
    query.rows(&Slice::All).await?;
    let selected: Vec<String> = read.columns.iter().map(|c| query.term(&c.term())).collect();
    let types = query.types_of(&selected, &query.group()?).await?;
    let table = describe(duckdb, &read.table).await?.unwrap_or_default();
    let outer = !keeps_rows(&read.joins);
    Ok(read
        .columns
        .iter()
        .zip(types)
        .map(|(wanted, ty)| {
            let own = match wanted.term() {
                Term::Column { relation: None, name } if !outer => table.column(&name).cloned(),
                _ => None,
            };
            let mut column = Column::new(&wanted.column.name, column_type(&ty)).with_source_type(ty);
            column.nullable = own.is_none_or(|c| c.nullable);
            column
        })
        .collect())
}

/// Keys as a batch of texts, in columns `c0`, `c1` …
pub(super) fn key_batch<'k, S: AsRef<str> + 'k>(
    width: usize,
    keys: impl Iterator<Item = &'k [Option<S>]> + Clone,
) -> Result<RecordBatch> {
    let fields: Vec<Field> = (0..width)
        .map(|i| Field::new(format!("c{i}"), DataType::Utf8, true))
        .collect();
    let arrays = (0..width)
        .map(|i| {
            let texts: StringArray = keys.clone().map(|k| k[i].as_ref().map(AsRef::as_ref)).collect();
            Arc::new(texts) as ArrayRef
        })
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| Error::bug(e.to_string()))
}

/// The rows of a stream as canonical texts.
pub(super) async fn texts(mut stream: Stream, columns: &[Column]) -> Result<Vec<Vec<Option<String>>>> {
    let mut out = Vec::new();
    while let Some(batch) = stream.next().await? {
        batch_texts(&batch, columns, &mut out)?;
    }
    Ok(out)
}

/// The rows of a batch as canonical texts.
pub(super) fn batch_texts(batch: &RecordBatch, columns: &[Column], out: &mut Vec<Vec<Option<String>>>) -> Result<()> {
    let arrays = batch
        .columns()
        .iter()
        .zip(columns)
        .map(|(a, c)| from_duckdb(a, c))
        .collect::<Result<Vec<_>>>()?;
    for row in 0..batch.num_rows() {
        out.push(arrays.iter().map(|a| text::cell(a, row)).collect::<Result<_>>()?);
    }
    Ok(())
}
