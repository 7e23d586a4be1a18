//! DuckDB as a source.

use super::DuckDb;
use super::query::{self, Query, readable, texts};
use super::session::Stream;
use super::settled;
use super::sql::{MADE, collation_of, has_collations, quote, table as table_name};
use super::types::{column_type, from_duckdb};
use arrow_array::RecordBatch;
use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::blocks::BlockHashes;
use synctool_core::change::{ChangeBatch, Event, KeyRange};
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::{Collation, Folding, Letters, Order};
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::{Condition, Term};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::source::{
    Extent, Finding, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo,
};

pub(super) struct DuckDbSource(pub(super) DuckDb);

/// Smaller tables are read as one slice.
const ROWS_WORTH_CUTTING: u64 = 1_000_000;

/// Columns and key of a table, or `None` if there is none.
pub(super) async fn describe(duckdb: &DuckDb, table: &TableId) -> Result<Option<TableSchema>> {
    let session = duckdb.database.session().await?;
    let schema = table.schema.as_deref().unwrap_or("main");
    let columns = session
        .rows(
            "SELECT column_name, data_type, CAST(is_nullable AS VARCHAR) FROM duckdb_columns() \
             WHERE database_name = current_database() AND schema_name = ? AND table_name = ? ORDER BY column_index",
            &[schema, &table.name],
        )
        .await?;
    if columns.is_empty() {
        return Ok(None);
    }
    let key = session
        .rows(
            "SELECT unnest(constraint_column_names) FROM duckdb_constraints() WHERE database_name = current_database() \
             AND schema_name = ? AND table_name = ? AND constraint_type = 'PRIMARY KEY'",
            &[schema, &table.name],
        )
        .await?;
    let column = |row: Vec<Option<String>>| {
        let mut row = row.into_iter().map(Option::unwrap_or_default);
        let (name, ty, nullable) = (
            row.next().unwrap_or_default(),
            row.next().unwrap_or_default(),
            row.next(),
        );
        let mut column = Column::new(name, column_type(&ty)).with_source_type(ty);
        column.nullable = nullable.as_deref() != Some("false");
        column
    };
    Ok(Some(TableSchema {
        columns: columns.into_iter().map(column).collect(),
        key: key.into_iter().flatten().flatten().collect(),
    }))
}

/// How keys compare a column of texts in a table that is `made` so.
fn of_texts(made: Option<&str>, column: &str) -> Collation {
    let named = made.and_then(|made| collation_of(made, column));
    match (made, named.as_deref()) {
        (_, Some(named)) if !["BINARY", "C", "POSIX"].contains(&named) => Collation {
            order: Order::Own(format!("duckdb {named}")),
            folding: Folding {
                name: named.into(),
                blanks: false,
                letters: Some(Letters {
                    rule: format!("duckdb {named}"),
                    ascii: named.contains("NOCASE"),
                }),
            },
        },
        (Some(made), None) if !has_collations(made) => Collation::bytes(),
        (_, Some(_)) => Collation::bytes(),
        _ => Collation::default(),
    }
}

#[async_trait]
impl Source for DuckDbSource {
    fn engine(&self) -> &'static str {
        "duckdb"
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        let session = self.0.database.session().await?;
        let rows = session
            .rows(
                "SELECT schema_name, table_name, 'table', CAST(estimated_size AS VARCHAR) FROM duckdb_tables() \
                 WHERE database_name = current_database() AND NOT internal AND NOT starts_with(table_name, '_synctool_') \
                 UNION ALL SELECT schema_name, view_name, 'view', NULL FROM duckdb_views() \
                 WHERE database_name = current_database() AND NOT internal ORDER BY 1, 2",
                &[],
            )
            .await?;
        let info = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            let mut next = || row.next().flatten();
            let (s, t, kind, n) = (next()?, next()?, next()?, next());
            let wanted = schema.is_none_or(|w| w == s);
            wanted.then(|| TableInfo {
                table: TableId::new(s, t),
                kind,
                rows: n.and_then(|n| n.parse().ok()),
                bytes: None,
            })
        };
        Ok(rows.into_iter().filter_map(info).collect())
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        match describe(&self.0, table).await? {
            Some(schema) => Ok(schema),
            None => {
                let known: Vec<String> = self
                    .tables(None)
                    .await?
                    .iter()
                    .take(20)
                    .map(|t| t.table.to_string())
                    .collect();
                Err(Error::new(code::TABLE_MISSING, format!("table {table} does not exist"))
                    .at("server", "duckdb")
                    .hint(format!("tables there: {}", known.join(", "))))
            }
        }
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        query::describe_query(&self.0, read).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        let session = self.0.database.session().await?;
        let query = Query::new(&session, read).await?;
        let mut columns = query.columns(std::slice::from_ref(term)).await?;
        columns.push(columns[0].clone());
        let rows = query.rows(slice).await?;
        let t = query.term(term);
        let end = |f: &str| readable(format!("{f}({t})"), &columns[0]);
        let sql = format!(
            "SELECT {}, {}{}{}",
            end("min"),
            end("max"),
            query.all_tables(),
            rows.sql()
        );
        let found = texts(session.stream(sql, rows.parameters).await?, &columns).await?;
        let mut ends = found.into_iter().flatten().flatten();
        Ok(ends.next().zip(ends.next()).map(|(min, max)| Extent { min, max }))
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        let session = self.0.database.session().await?;
        let query = Query::new(&session, read).await?;
        let columns = query.columns(terms).await?;
        let rows = query.rows(slice).await?;
        let selected: Vec<String> = terms
            .iter()
            .zip(&columns)
            .map(|(t, c)| readable(query.term(t), c))
            .collect();
        let sql = format!(
            "SELECT DISTINCT {}{}{} LIMIT {limit}",
            selected.join(", "),
            query.all_tables(),
            rows.sql()
        );
        texts(session.stream(sql, rows.parameters).await?, &columns).await
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        let session = self.0.database.session().await?;
        Query::new(&session, read).await?.counting(conditions).await
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        // The clock first: whoever begins later stamps later.
        let settled = settled::settled(table, column, zone, margin)?;
        if Arc::strong_count(&self.0.database.sinks) > 1 {
            return Err(Error::new(
                code::SERVER_BUSY,
                "this process is writing to the DuckDB file, so what will be stamped is not known yet",
            ));
        }
        Ok(settled)
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        Some(self)
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let session = self.0.database.session().await?;
        let name = table_name(&read.table);
        let count = session
            .rows(format!("SELECT CAST(count(*) AS VARCHAR) FROM {name}"), &[])
            .await?;
        let rows: u64 = count.first().and_then(|r| r[0].as_deref()?.parse().ok()).unwrap_or(0);
        let all = vec![PlannedSlice::all(rows, 0)];
        let [key] = request.key.as_slice() else { return Ok(all) };
        let integer = read
            .columns
            .iter()
            .any(|c| c.source == *key && matches!(c.column.ty, ColumnType::Int32 | ColumnType::Int64));
        // A group may have rows in several ranges.
        let whole = request.single || !read.group_by.is_empty();
        if whole || !integer || rows < ROWS_WORTH_CUTTING {
            return Ok(all);
        }
        // Rows without a key are in none, and nothing forbids them here: whoever takes the rows says what becomes of them.
        let without = format!(
            "SELECT CAST(count(*) AS VARCHAR) FROM {name} WHERE {} IS NULL",
            quote(key)
        );
        let without = session.rows(without, &[]).await?;
        if without.first().is_none_or(|r| r[0].as_deref() != Some("0")) {
            return Ok(all);
        }
        let n = request.min_slices.max(1);
        let shares: Vec<String> = (1..n).map(|i| format!("{:.6}", i as f64 / n as f64)).collect();
        let bounds = session
            .rows(
                format!(
                    "SELECT DISTINCT CAST(b AS VARCHAR), b FROM (SELECT unnest(quantile_disc({}, [{}])) AS b FROM {name}) ORDER BY b",
                    quote(key),
                    shares.join(", ")
                ),
                &[],
            )
            .await?;
        let bounds: Vec<String> = bounds
            .into_iter()
            .filter_map(|r| r.into_iter().next().flatten())
            .collect();
        let edges: Vec<Option<String>> = std::iter::once(None)
            .chain(bounds.into_iter().map(Some))
            .chain(std::iter::once(None))
            .collect();
        let slice = |w: &[Option<String>]| PlannedSlice {
            label: format!(
                "{key}_{}_{}",
                w[0].as_deref().unwrap_or("min"),
                w[1].as_deref().unwrap_or("max")
            ),
            slice: Slice::Key(KeyRange {
                columns: vec![key.clone()],
                lower: w[0].clone().map(|v| vec![v]),
                upper: w[1].clone().map(|v| vec![v]),
            }),
            rows: rows / n as u64,
            bytes: 0,
        };
        Ok(edges.windows(2).map(slice).collect())
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        let there = describe(&self.0, table).await?;
        let session = self.0.database.session().await?;
        let names = [table.schema.as_deref().unwrap_or("main"), table.name.as_str()];
        let made = session.rows(MADE, &names).await?.into_iter().flatten().flatten().next();
        let collation = |c: &Column| {
            let stored = there.as_ref().and_then(|t| t.column(&c.name)).unwrap_or(c);
            match (stored.source_type.as_deref(), &there) {
                // Uuids have one order as texts, too.
                (Some("VARCHAR"), None) if c.ty != ColumnType::Uuid => Collation::bytes(),
                (Some("VARCHAR"), Some(_)) if c.ty != ColumnType::Uuid => of_texts(made.as_deref(), &stored.name),
                _ => Collation::of(&c.ty),
            }
        };
        Ok(columns.iter().map(collation).collect())
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        _: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let Work::Read(slice) = &partition.work else {
            return Err(Error::new(code::UNSUPPORTED, "DuckDB has no log to follow"));
        };
        let session = self.0.database.session().await?;
        let (sql, parameters) = Query::new(&session, read).await?.select(slice).await?;
        let stream = session.stream(sql, parameters).await?;
        Ok(Box::new(DuckDbReader {
            read: read.clone(),
            stream,
            context: context.clone(),
            pending: None,
        }))
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for table in tables {
            findings.push(Finding::of_table(format!("table {table}"), self.describe(table).await));
        }
        findings
    }
}

struct DuckDbReader {
    read: ReadSpec,
    stream: Stream,
    context: ReadContext,
    /// The rest of a batch that was larger than one of ours may be.
    pending: Option<RecordBatch>,
}

#[async_trait]
impl Reader for DuckDbReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        if self.context.cancel.is_cancelled() {
            return Err(Error::new(code::INTERRUPTED, "stopped on request"));
        }
        let batch = match self.pending.take() {
            Some(batch) => batch,
            None => match self.stream.next().await? {
                Some(batch) => batch,
                None => return Ok(None),
            },
        };
        let bytes = batch.get_array_memory_size().max(1);
        let row = bytes / batch.num_rows().max(1);
        if row > self.context.max_row_bytes {
            return Err(
                Error::new(code::ROW_TOO_LARGE, format!("rows of {row} bytes are over the limit"))
                    .at("table", self.read.table.to_string()),
            );
        }
        let rows = (self.context.batch_bytes / row.max(1)).clamp(1, batch.num_rows().max(1));
        let (now, rest) = (
            batch.slice(0, rows.min(batch.num_rows())),
            batch.num_rows().saturating_sub(rows),
        );
        if rest > 0 {
            self.pending = Some(batch.slice(rows, rest));
        }
        let hold = self.context.budget.reserve(row * now.num_rows()).await;
        let columns = now
            .columns()
            .iter()
            .zip(&self.read.columns)
            .map(|(array, c)| from_duckdb(array, &c.column))
            .collect::<Result<Vec<_>>>()?;
        let rows =
            RecordBatch::try_new(self.read.schema().arrow_schema(), columns).map_err(|e| Error::bug(e.to_string()))?;
        Ok(Some(Event::Rows(ChangeBatch::inserts(
            Arc::new(self.read.table.clone()),
            rows,
            hold,
        ))))
    }
}
