//! What the server says of terms: their types, their range, their distinct values.

use super::catalog;
use super::query::{Query, Text, as_text, canonical};
use super::source::PostgresSource;
use postgres_types::{ToSql, Type};
use synctool_core::error::Result;
use synctool_core::plan::{ReadColumn, ReadSpec, Slice};
use synctool_core::query::{Term, keeps_rows};
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::source::Extent;
use tokio_postgres::Row;

impl PostgresSource {
    /// The columns that reading `read` would yield.
    pub(super) async fn describe_terms(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        let connection = self.database.connect().await?;
        connection.working(true);
        let schema = catalog::describe(&connection, &read.table, self.schema()).await?.schema;
        if read.is_plain() {
            connection.working(false);
            connection.recycle();
            return read.columns.iter().map(|c| own(read, &schema, c)).collect();
        }
        for join in &read.joins {
            // The error of a table that is not there names similar ones.
            catalog::describe(&connection, &join.table, self.schema()).await?;
        }
        let what = format!("looking at what is read of {}", read.table);
        let mut select = Text::default();
        Query::new(read, self.schema()).write(&mut select, &[])?;
        let statement = connection
            .prepare(select.sql())
            .await
            .map_err(|e| select.error(&connection, e, &what))?;
        const NAMES: &str = "SELECT pg_catalog.format_type(t, m) \
             FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::int4[])) \
             WITH ORDINALITY AS c(t, m, place) ORDER BY place";
        let oids: Vec<u32> = statement.columns().iter().map(|c| c.type_().oid()).collect();
        let modifiers: Vec<i32> = statement.columns().iter().map(|c| c.type_modifier()).collect();
        let params: &[(&(dyn ToSql + Sync), Type)] = &[(&oids, Type::OID_ARRAY), (&modifiers, Type::INT4_ARRAY)];
        let names = catalog::rows(&connection, NAMES, params, &what).await?;
        connection.working(false);
        connection.recycle();

        let outer = !keeps_rows(&read.joins);
        let mut columns = Vec::with_capacity(read.columns.len());
        for (i, c) in read.columns.iter().enumerate() {
            let base = match c.term() {
                Term::Column { relation: None, name } => schema.column(&name).cloned(),
                Term::Column {
                    relation: Some(relation),
                    name,
                } if relation == *self_name(read) => schema.column(&name).cloned(),
                _ => None,
            };
            columns.push(match base {
                Some(base) => Column {
                    name: c.column.name.clone(),
                    nullable: base.nullable || outer,
                    // Several rows may have one value, so nothing is numbered or computed any more.
                    generated: base.generated && read.group_by.is_empty() && read.joins.is_empty(),
                    identity: base.identity && read.group_by.is_empty() && read.joins.is_empty(),
                    ..base
                },
                None => Column::new(&c.column.name, catalog::column_type(oids[i], modifiers[i]))
                    .with_source_type(names[i].get::<_, String>(0)),
            });
        }
        Ok(columns)
    }

    /// The types of terms.
    async fn typed(&self, read: &ReadSpec, terms: &[Term]) -> Result<Vec<Column>> {
        let mut of_terms = read.clone();
        of_terms.raw = None;
        of_terms.group_by.clear();
        of_terms.columns = terms
            .iter()
            .map(|term| {
                let name = term.to_string();
                ReadColumn {
                    source: name.clone(),
                    term: Some(term.clone()),
                    column: Column::new(name, ColumnType::Native),
                }
            })
            .collect();
        self.describe_terms(&of_terms).await
    }

    async fn ask(&self, read: &ReadSpec, sql: &Text) -> Result<Vec<Row>> {
        // Of its own snapshot: asking must not decide what readers will see.
        let connection = self.reading(true).await?;
        let what = format!("looking at what is read of {}", read.table);
        let rows = connection
            .query(sql.sql(), &[])
            .await
            .map_err(|e| sql.error(&connection, e, &what))?;
        self.check_snapshot(&connection, read).await?;
        PostgresSource::end_reading(connection).await?;
        Ok(rows)
    }

    /// The smallest and largest value of a term; an index of it answers both at once.
    pub(super) async fn extent_of(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let column = self.typed(read, std::slice::from_ref(term)).await?.remove(0);
        let query = Query::new(read, self.schema());
        let sql = query.term(term);
        let mut conditions = query.condition_of(slice)?;
        conditions.push(format!("{sql} IS NOT NULL"));
        let user = match term {
            Term::Sql(user) => Some(user.as_str()),
            Term::Column { .. } => None,
        };
        let shown = as_text("e.x", &column);
        let mut ask = Text::new("SELECT ");
        for (before, direction) in [("", "ASC"), (", ", "DESC")] {
            // Ordered by the value itself: beside its text, the name of a column would mean the text.
            ask.push(&format!("{before}(SELECT {shown} FROM (SELECT "));
            ask.part(format!("the expression {term}"), &sql, user);
            ask.push(" AS x");
            query.tail(&mut ask, &conditions)?;
            ask.push(&format!(" ORDER BY {sql} {direction} LIMIT 1) AS e)"));
        }
        let rows = self.ask(read, &ask).await?;
        let value = |i: usize| rows.first().and_then(|r| r.get::<_, Option<String>>(i));
        Ok(value(0).zip(value(1)).map(|(min, max)| Extent {
            min: canonical(&column.ty, min),
            max: canonical(&column.ty, max),
        }))
    }

    /// The distinct values of terms.
    pub(super) async fn distinct_of(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let columns = self.typed(read, terms).await?;
        let query = Query::new(read, self.schema());
        let shown: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(i, c)| as_text(&format!("d.c{i}"), c))
            .collect();
        let mut ask = Text::new(format!("SELECT {} FROM (SELECT DISTINCT ", shown.join(", ")));
        for (i, term) in terms.iter().enumerate() {
            let user = match term {
                Term::Sql(user) => Some(user.as_str()),
                Term::Column { .. } => None,
            };
            ask.push(if i == 0 { "" } else { ", " });
            ask.part(format!("the expression {term}"), &query.term(term), user);
            ask.push(&format!(" AS c{i}"));
        }
        query.tail(&mut ask, &query.condition_of(slice)?)?;
        ask.push(&format!(" LIMIT {limit}) AS d"));
        let rows = self.ask(read, &ask).await?;
        let value = |row: &Row, (i, c): (usize, &Column)| row.get::<_, Option<String>>(i).map(|v| canonical(&c.ty, v));
        Ok(rows
            .iter()
            .map(|row| columns.iter().enumerate().map(|c| value(row, c)).collect())
            .collect())
    }
}

/// What the table read is called in terms.
fn self_name(read: &ReadSpec) -> &String {
    read.alias.as_ref().unwrap_or(&read.table.name)
}

/// A whole column of the table itself.
fn own(read: &ReadSpec, schema: &TableSchema, c: &ReadColumn) -> Result<Column> {
    Ok(Column {
        name: c.column.name.clone(),
        ..schema.must_column(&c.source, &read.table)?.clone()
    })
}
