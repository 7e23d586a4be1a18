//! Reading tables by query: each reader has a connection and a consistent snapshot of its own.

use super::catalog::{self, CatalogTable};
use super::client::{Mysql, Rows, Session};
use super::hashes::MysqlHashes;
use super::{ENGINE, ddl, examine, settled, slices, sql, types};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use mysql_async::consts::{ColumnFlags, ColumnType as WireType};
use mysql_async::{Row, Value};
use std::sync::Arc;
use std::time::Duration;
use synctool_core::blocks::BlockHashes;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::Collation;
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::{Condition, Term};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::source::{
    Extent, Finding, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo,
};
use synctool_core::text::{self, ColumnBuilder};

/// Tables of a MariaDB or MySQL database, read by query.
#[derive(Debug)]
pub(super) struct MysqlSource {
    database: Mysql,
    hashes: MysqlHashes,
}

impl MysqlSource {
    pub(super) fn new(database: Mysql) -> Self {
        MysqlSource {
            hashes: MysqlHashes::new(database.clone()),
            database,
        }
    }
}

#[async_trait]
impl Source for MysqlSource {
    fn engine(&self) -> &'static str {
        ENGINE
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        let mut session = self.database.connect().await?;
        let tables = catalog::tables(&mut session, schema).await?;
        session.recycle();
        Ok(tables)
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        let mut session = self.database.connect().await?;
        let found = catalog::must_find(&mut session, table).await?;
        session.recycle();
        Ok(found.schema())
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        let mut session = self.database.connect().await?;
        let terms: Vec<Term> = read.columns.iter().map(synctool_core::plan::ReadColumn::term).collect();
        let found = describe_terms(&mut session, read, &terms).await?;
        session.recycle();
        Ok(found
            .into_iter()
            .zip(&read.columns)
            .map(|(column, asked)| Column {
                name: asked.column.name.clone(),
                ..column
            })
            .collect())
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let mut session = self.database.connect().await?;
        let column = one(describe_terms(&mut session, read, std::slice::from_ref(term)).await?)?;
        let conditions = conditions(&mut session, read, slice).await?;
        let t = sql::term(read, term);
        let (min, max) = (format!("MIN({t})"), format!("MAX({t})"));
        let row = session
            .row(
                &format!(
                    "SELECT {}, {} {}{}",
                    types::select(&min, &column),
                    types::select(&max, &column),
                    sql::from(read)?,
                    sql::rest(&ungrouped(read), &conditions)?
                ),
                &format!("finding the range of {term}"),
            )
            .await?;
        session.recycle();
        let found = texts(&row, &[column.clone(), column])?;
        Ok(match &found[..] {
            [Some(min), Some(max)] => Some(Extent {
                min: min.clone(),
                max: max.clone(),
            }),
            _ => None,
        })
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let mut session = self.database.connect().await?;
        let columns = describe_terms(&mut session, read, terms).await?;
        let conditions = conditions(&mut session, read, slice).await?;
        let shown: Vec<String> = terms
            .iter()
            .zip(&columns)
            .map(|(t, c)| types::select(&sql::term(read, t), c))
            .collect();
        let rows = session
            .rows(
                &format!(
                    "SELECT DISTINCT {} {}{} LIMIT {limit}",
                    shown.join(", "),
                    sql::from(read)?,
                    sql::rest(&ungrouped(read), &conditions)?
                ),
                "listing distinct values",
            )
            .await?;
        session.recycle();
        rows.iter().map(|r| texts(r, &columns)).collect()
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        let mut session = self.database.connect().await?;
        let terms: Vec<Term> = conditions.iter().map(|c| c.term.clone()).collect();
        let types = describe_terms(&mut session, read, &terms).await?;
        session.recycle();
        let met = conditions
            .iter()
            .zip(&types)
            .map(|(c, column)| Ok(format!("({})", sql::condition(read, c, column)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(Term::Sql(format!("COUNT(CASE WHEN {} THEN 1 END)", met.join(" OR "))))
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        let mut session = self.database.connect().await?;
        let found = settled::settled(&mut session, table, column, zone, margin).await?;
        session.recycle();
        Ok(found)
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        Some(&self.hashes)
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let mut session = self.database.connect().await?;
        let found = slices::cut(&mut session, read, request).await?;
        session.recycle();
        Ok(found)
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        let mut session = self.database.connect().await?;
        let there = catalog::columns(&mut session, table).await?;
        let flavor = session.flavor();
        session.recycle();
        let collation = |column: &Column| {
            let found = there.iter().find(|c| c.column.name.eq_ignore_ascii_case(&column.name));
            match found {
                Some(found) => slices::collation(&flavor, found),
                None => slices::collation(&flavor, &ddl::to_make(&flavor, column)),
            }
        };
        Ok(columns.iter().map(collation).collect())
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let place = |e: Error| {
            e.at("table", read.table.to_string())
                .at("partition", partition.id.as_str())
        };
        if after.is_some() {
            return Err(place(Error::bug("a slice of a MySQL table has no positions inside")));
        }
        let Work::Read(slice) = &partition.work else {
            return Err(place(Error::new(
                code::UNSUPPORTED,
                "MySQL tables are read by query here, not by log",
            )));
        };
        let start = async {
            let mut session = self.database.connect().await?;
            let conditions = conditions(&mut session, read, slice).await?;
            let select = sql::select(read, &conditions)?;
            snapshot(&mut session).await?;
            session.stream(select, &format!("reading {}", read.table)).await
        };
        // The server may work long before it has the first row.
        let rows = tokio::select! {
            rows = start => rows.map_err(place)?,
            () = context.cancel.cancelled() => return Err(place(stopped())),
        };
        Ok(Box::new(MysqlReader {
            rows,
            schema: read.schema().arrow_schema(),
            builders: read.columns.iter().map(|c| ColumnBuilder::new(&c.column)).collect(),
            columns: read.columns.iter().map(|c| c.column.clone()).collect(),
            table: Arc::new(read.table.clone()),
            partition: partition.id.to_string(),
            context: context.clone(),
            waiting: None,
            hold: None,
            held: 0,
            count: 0,
            ended: false,
        }))
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        examine::reading(&self.database, tables, true).await
    }
}

/// Begins a read under one consistent snapshot.
pub(super) async fn snapshot(session: &mut Session) -> Result<()> {
    let what = "beginning a read";
    session
        .run("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", what)
        .await?;
    session
        .run("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY", what)
        .await
        .map(|_| ())
}

fn stopped() -> Error {
    Error::new(code::INTERRUPTED, "reading was stopped on request")
}

fn one(columns: Vec<Column>) -> Result<Column> {
    columns
        .into_iter()
        .next()
        .ok_or_else(|| Error::bug("a term without a type"))
}

/// The read without its groups: for questions about the rows that it groups.
fn ungrouped(read: &ReadSpec) -> ReadSpec {
    ReadSpec {
        group_by: Vec::new(),
        ..read.clone()
    }
}

/// What the engine says of terms: of a column what the catalog says, of an expression what its result set does.
pub(super) async fn describe_terms(session: &mut Session, read: &ReadSpec, terms: &[Term]) -> Result<Vec<Column>> {
    if terms.is_empty() {
        return Ok(Vec::new());
    }
    let mut relations: Vec<(String, CatalogTable)> = Vec::new();
    let base = catalog::must_find(session, &read.table).await?;
    relations.push((read.alias.clone().unwrap_or_else(|| read.table.name.clone()), base));
    for join in &read.joins {
        let found = catalog::must_find(session, &join.table).await?;
        relations.push((join.alias.clone().unwrap_or_else(|| join.table.name.clone()), found));
    }
    // Rows of a joined table may be missing.
    let outer = !read.joins.is_empty();
    let mut columns: Vec<Option<Column>> = Vec::new();
    for term in terms {
        columns.push(match term {
            Term::Sql(_) => None,
            Term::Column { relation, name } => {
                let table = match relation {
                    None => &relations[0].1,
                    Some(r) => {
                        let found = relations.iter().find(|(alias, _)| alias == r);
                        &found
                            .ok_or_else(|| {
                                let known: Vec<&str> = relations.iter().map(|(a, _)| a.as_str()).collect();
                                Error::new(code::CONFIG_INVALID, format!("{r} is no table of this query"))
                                    .hint(format!("it has: {}", known.join(", ")))
                            })?
                            .1
                    }
                };
                let mut column = table.must_column(name)?.column.clone();
                column.nullable |= outer;
                Some(column)
            }
        });
    }
    let asked: Vec<String> = terms
        .iter()
        .filter(|t| matches!(t, Term::Sql(_)))
        .map(|t| sql::term(read, t))
        .collect();
    let mut answers = if asked.is_empty() {
        Vec::new()
    } else {
        let query = format!("SELECT {} {} WHERE FALSE", asked.join(", "), sql::from(read)?);
        let found = session
            .columns(&query, &format!("describing the expressions of {}", read.table))
            .await?;
        found.iter().map(of_result).collect()
    }
    .into_iter();
    columns
        .into_iter()
        .zip(terms)
        .map(|(column, term)| match column.or_else(|| answers.next()) {
            Some(column) => Ok(Column {
                name: term.to_string(),
                ..column
            }),
            None => Err(Error::bug("an expression without a type")),
        })
        .collect()
}

/// The type of a result set's column.
fn of_result(c: &mysql_async::Column) -> Column {
    use ColumnType::*;
    const BINARY: u16 = 63;
    let unsigned = c.flags().contains(ColumnFlags::UNSIGNED_FLAG);
    let ty = match c.column_type() {
        WireType::MYSQL_TYPE_TINY => {
            if unsigned {
                UInt8
            } else {
                Int8
            }
        }
        WireType::MYSQL_TYPE_SHORT => {
            if unsigned {
                UInt16
            } else {
                Int16
            }
        }
        WireType::MYSQL_TYPE_YEAR => Int16,
        WireType::MYSQL_TYPE_LONG | WireType::MYSQL_TYPE_INT24 => {
            if unsigned {
                UInt32
            } else {
                Int32
            }
        }
        WireType::MYSQL_TYPE_LONGLONG => {
            if unsigned {
                UInt64
            } else {
                Int64
            }
        }
        WireType::MYSQL_TYPE_BIT => UInt64,
        WireType::MYSQL_TYPE_DECIMAL | WireType::MYSQL_TYPE_NEWDECIMAL => {
            // The length counts the point and the sign.
            let scale = u32::from(c.decimals());
            let precision = c
                .column_length()
                .saturating_sub(u32::from(scale > 0) + u32::from(!unsigned))
                .clamp(scale.max(1), 65);
            Decimal {
                precision: precision as u16,
                scale: scale as i16,
            }
        }
        WireType::MYSQL_TYPE_FLOAT => Float32,
        WireType::MYSQL_TYPE_DOUBLE => Float64,
        WireType::MYSQL_TYPE_DATE | WireType::MYSQL_TYPE_NEWDATE => Date,
        WireType::MYSQL_TYPE_TIME | WireType::MYSQL_TYPE_TIME2 => Time,
        WireType::MYSQL_TYPE_DATETIME | WireType::MYSQL_TYPE_DATETIME2 => Timestamp,
        WireType::MYSQL_TYPE_TIMESTAMP | WireType::MYSQL_TYPE_TIMESTAMP2 => TimestampTz,
        WireType::MYSQL_TYPE_JSON => Json,
        WireType::MYSQL_TYPE_GEOMETRY => Bytes,
        _ if c.character_set() == BINARY && c.column_type() != WireType::MYSQL_TYPE_NULL => Bytes,
        _ => Text { max: None },
    };
    Column::new(c.name_str().into_owned(), ty)
}

/// The conditions of a read and a slice of it, each in parentheses.
pub(super) async fn conditions(session: &mut Session, read: &ReadSpec, slice: &Slice) -> Result<Vec<String>> {
    let tested: Vec<Term> = sql::tested(&read.filters).cloned().collect();
    let types = describe_terms(session, read, &tested).await?;
    let mut all = sql::filters(read, &types)?;
    match slice {
        Slice::All => {}
        Slice::Key(range) => {
            let text = sql::range(range, &key_columns(session, read, &range.columns).await?)?;
            if !text.is_empty() {
                all.push(format!("({text})"));
            }
        }
        Slice::Cut(cut) => {
            let terms: Vec<Term> = cut.conditions.iter().map(|c| c.term.clone()).collect();
            let types = describe_terms(session, read, &terms).await?;
            let key = match &cut.key {
                Some(range) => key_columns(session, read, &range.columns).await?,
                None => Vec::new(),
            };
            all.extend(sql::cut(read, cut, &types, &key)?);
        }
        Slice::Keys(list) => {
            let types = describe_terms(session, read, &list.terms).await?;
            all.push(sql::keys(read, list, &types)?);
        }
        Slice::File { .. } => return Err(Error::bug("a file slice for a MySQL table")),
    }
    Ok(all)
}

/// The SQL and types of key columns, which are those of the table read.
async fn key_columns(session: &mut Session, read: &ReadSpec, names: &[String]) -> Result<Vec<(String, Column)>> {
    let terms: Vec<Term> = names.iter().map(Term::column).collect();
    let columns = describe_terms(session, read, &terms).await?;
    Ok(terms.iter().map(|t| sql::term(read, t)).zip(columns).collect())
}

/// The cells of a row as canonical texts.
pub(super) fn texts(row: &Row, columns: &[Column]) -> Result<Vec<Option<String>>> {
    columns
        .iter()
        .enumerate()
        .map(|(i, column)| match row.as_ref(i) {
            Some(Value::Bytes(bytes)) => {
                let mut one = ColumnBuilder::new(column);
                types::read_cell(column, &mut one, bytes)?;
                text::cell(&one.finish(), 0)
            }
            Some(Value::NULL) | None => Ok(None),
            Some(_) => Err(Error::bug("a value that did not come as text")),
        })
        .collect()
}

/// Reads one slice.
struct MysqlReader {
    rows: Rows,
    schema: SchemaRef,
    builders: Vec<ColumnBuilder>,
    columns: Vec<Column>,
    table: Arc<TableId>,
    partition: String,
    context: ReadContext,
    /// A row that did not fit into the last batch.
    waiting: Option<(Row, usize)>,
    /// The memory of the batch that is being filled.
    hold: Option<Hold>,
    held: usize,
    count: usize,
    ended: bool,
}

impl MysqlReader {
    fn take(&mut self, row: &Row) -> Result<()> {
        for (i, (column, builder)) in self.columns.iter().zip(&mut self.builders).enumerate() {
            match row.as_ref(i) {
                Some(Value::Bytes(bytes)) => types::read_cell(column, builder, bytes)?,
                Some(Value::NULL) | None => builder.append_null(),
                Some(_) => return Err(Error::bug("a value that did not come as text")),
            }
        }
        self.count += 1;
        Ok(())
    }

    fn emit(&mut self) -> Result<Event> {
        let arrays = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.count));
        let batch = RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|e| Error::bug("a batch does not fit its schema").caused_by(e))?;
        (self.count, self.held) = (0, 0);
        let hold = self.hold.take().unwrap_or_default();
        Ok(Event::Rows(ChangeBatch::inserts(self.table.clone(), batch, hold)))
    }

    async fn step(&mut self) -> Result<Option<Event>> {
        loop {
            if self.ended {
                return if self.count > 0 {
                    self.emit().map(Some)
                } else {
                    Ok(None)
                };
            }
            if self.waiting.is_none() {
                let next = tokio::select! {
                    biased;
                    () = self.context.cancel.cancelled() => return Err(stopped()),
                    next = self.rows.next() => next?,
                };
                match next {
                    Some(row) => {
                        let bytes = row_bytes(&row, self.columns.len());
                        if bytes > self.context.max_row_bytes {
                            return Err(Error::new(
                                code::ROW_TOO_LARGE,
                                format!(
                                    "a row has {bytes} bytes; max_row_bytes is {}",
                                    self.context.max_row_bytes
                                ),
                            )
                            .hint("raise max_row_bytes, or leave the large column out"));
                        }
                        self.waiting = Some((row, bytes));
                    }
                    None => {
                        self.ended = true;
                        continue;
                    }
                }
            }
            let Some((_, bytes)) = &self.waiting else { continue };
            let bytes = *bytes;
            if self.count > 0 && self.held + bytes > self.context.batch_bytes {
                return self.emit().map(Some);
            }
            if self.hold.is_none() {
                let size = self.context.batch_bytes.max(bytes);
                self.hold = Some(tokio::select! {
                    hold = self.context.budget.reserve(size) => hold,
                    () = self.context.cancel.cancelled() => return Err(stopped()),
                });
            }
            if let Some((row, _)) = self.waiting.take() {
                self.take(&row)?;
                self.held += bytes;
            }
        }
    }
}

fn row_bytes(row: &Row, columns: usize) -> usize {
    (0..columns)
        .map(|i| match row.as_ref(i) {
            Some(Value::Bytes(b)) => b.len() + 8,
            _ => 8,
        })
        .sum()
}

#[async_trait]
impl Reader for MysqlReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        match self.step().await {
            Ok(event) => Ok(event),
            Err(e) => Err(e.at("table", self.table.to_string()).at("partition", &self.partition)),
        }
    }
}
