//! Tables as they stand, in chunks by key beside their log, and the marks that say when.

use super::super::catalog;
use super::super::client::{Connection, Postgres};
use super::super::copy::{self, Found, Frame};
use super::super::slices;
use super::super::source::check_type;
use super::super::sql::{ident, literal, table as quoted};
use super::super::types::{Decoder, select_expression};
use super::pgoutput::Lsn;
use super::shape::{Shape, Shapes, look};
use super::{LogOptions, Watermarks};
use crate::logs::{Drift, Widths};
use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use bytes::{Buf, BytesMut};
use futures::StreamExt;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use synctool_core::backfill::{Chunk, ChunkSource, Pending, WATERMARK_PREFIX};
use synctool_core::change::{KeyRange, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::ReadSpec;
use synctool_core::schema::{TableId, TableSchema};
use synctool_core::text;
use tokio::sync::Notify;
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::types::PgLsn;

/// Marks that nobody writes: the reader of the log puts them where their place is reached.
#[derive(Debug, Default)]
pub(super) struct Marks {
    waiting: Mutex<VecDeque<(Lsn, String)>>,
    pub(super) added: Notify,
}

impl Marks {
    /// The oldest mark, if the log has reached its place.
    pub(super) fn reached(&self, at: Lsn) -> Option<String> {
        let mut waiting = self.waiting.lock().expect("nothing panics while holding it");
        if waiting.front().is_some_and(|(lsn, _)| *lsn <= at) {
            return waiting.pop_front().map(|(_, content)| content);
        }
        None
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.lock().expect("nothing panics while holding it").is_empty()
    }

    fn add(&self, at: Lsn, content: &str) {
        let mut waiting = self.waiting.lock().expect("nothing panics while holding it");
        waiting.push_back((at, content.to_string()));
        self.added.notify_one();
    }
}

/// Reads chunks of the followed tables.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) database: Postgres,
    pub(super) options: LogOptions,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
    /// How large rows were, by table.
    pub(super) widths: Widths,
    /// Tables that were dropped and made again.
    pub(super) remade: Arc<Mutex<Vec<TableId>>>,
}

impl Chunks {
    fn shape(&self, table: &TableId) -> Result<Arc<Shape>> {
        self.shapes
            .find(|s| *s.table == *table)
            .ok_or_else(|| Error::bug(format!("a chunk of {table}, which is not followed")))
    }

    async fn read(
        &self,
        shape: &Shape,
        condition: &str,
        order: &str,
        limit: Option<usize>,
    ) -> Result<(RecordBatch, Snapshot)> {
        let connection = self.database.connect().await?;
        connection.working(true);
        let done = self.read_on(&connection, shape, condition, order, limit).await;
        let done = match done {
            Err(e) if e.code() == code::COLUMN_MISSING => Err(self.altered(shape).await?.caused_by(e)),
            // Opened anew, the log takes the type that the column has by now.
            Err(e) if e.code() == code::SCHEMA_MISMATCH && shape.drift == Drift::Evolve => Err(Error::new(
                code::SERVER_BUSY,
                format!("a column of {} has another type: its log is opened again", shape.table),
            )
            .caused_by(e)),
            done => done,
        };
        let (rows, mut snapshot) = done.map_err(|e| e.at("table", shape.table.to_string()))?;
        snapshot.forget_idle(&connection).await?;
        connection.working(false);
        connection.recycle();
        Ok((rows, snapshot))
    }

    /// A column is not there under its name: one that was renamed is asked for by its new name from here on, one that came
    /// later and is gone is not asked for, and one of the plan that is gone ends the log, which would show it only with
    /// the table's next row. A filter has the names of when the log was opened.
    async fn altered(&self, shape: &Shape) -> Result<Error> {
        let connection = self.database.connect().await?;
        let now = look(&connection, shape.oid, &[]).await?;
        connection.recycle();
        Ok(match shape.as_named(&now.columns) {
            Ok(_) if shape.filter.is_some() => Error::new(
                code::SERVER_BUSY,
                format!("a column of {} has another name: its log is opened again", shape.table),
            ),
            Ok(renamed) => {
                self.shapes.replace(renamed, |s| s.table == shape.table);
                Error::new(
                    code::CONFLICT,
                    format!(
                        "reading a chunk of {} failed: the table was altered just now",
                        shape.table
                    ),
                )
            }
            // Opened anew, the log knows that it is gone.
            Err(gone) if shape.drift.lets_go() => Error::new(
                code::SERVER_BUSY,
                format!(
                    "column {} of {} is gone: its log is opened again",
                    gone.column.name, shape.table
                ),
            ),
            Err(gone) => Error::new(
                code::UNSUPPORTED,
                format!(
                    "{} changed its shape: column {} is gone; only new columns are followed",
                    shape.table, gone.column.name
                ),
            )
            .hint("change the destination table by hand and load it again"),
        })
    }

    async fn read_on(
        &self,
        connection: &Connection,
        shape: &Shape,
        condition: &str,
        order: &str,
        limit: Option<usize>,
    ) -> Result<(RecordBatch, Snapshot)> {
        let what = format!("reading a chunk of {}", shape.table);
        let fail = |e: tokio_postgres::Error| connection.error(e, &what);
        let begun = connection
            .simple_query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT pg_catalog.txid_current_snapshot()")
            .await
            .map_err(fail)?;
        let snapshot = begun.iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => row.get(0).and_then(Snapshot::parse),
            _ => None,
        });
        let snapshot = snapshot.ok_or_else(|| Error::bug("the server showed no snapshot"))?;
        let read = shape.read();
        let table = quoted(&read.table, &self.database.config().schema);
        let mut from = table.clone();
        if !condition.is_empty() {
            from.push_str(" WHERE ");
            from.push_str(condition);
        }
        from.push_str(order);
        if let Some(limit) = limit {
            from.push_str(&format!(" LIMIT {limit}"));
        }
        let there = TableSchema {
            columns: read.columns.iter().map(|c| c.column.clone()).collect(),
            key: Vec::new(),
        };
        let (rows, bytes) = select(connection, &read, &there.arrow_schema(), &from, &what, &fail).await?;
        let rows = complete(shape, rows)?;
        // The table may have been waited for since the snapshot.
        if catalog::is_written_anew(connection, &[table]).await? {
            return Err(Error::new(
                code::CONFLICT,
                format!("{what} failed: a statement wrote its rows anew just now"),
            ));
        }
        connection.batch_execute("COMMIT").await.map_err(fail)?;
        self.widths.saw(&shape.table, rows.num_rows(), bytes);
        Ok((rows, snapshot))
    }
}

/// A chunk with all columns of a shape: those that are gone have nothing.
fn complete(shape: &Shape, rows: RecordBatch) -> Result<RecordBatch> {
    let mut there = rows.columns().iter().cloned();
    let nothing = |field: &arrow_schema::Field| arrow_array::new_null_array(field.data_type(), rows.num_rows());
    let columns = shape.columns.iter().zip(shape.arrow.fields());
    let columns = columns.map(|(c, field)| match c.gone {
        true => Some(nothing(field)),
        false => there.next(),
    });
    let columns: Option<Vec<_>> = columns.collect();
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    columns
        .ok_or_else(|| Error::bug("a chunk with fewer columns than were asked for"))
        .and_then(|columns| {
            RecordBatch::try_new_with_options(shape.arrow.clone(), columns, &options)
                .map_err(|e| Error::bug(format!("a chunk does not fit its schema: {e}")))
        })
}

/// The columns of `read`, selected from what `from` says: a table with its conditions. Says how many bytes those were.
pub(crate) async fn select(
    connection: &Connection,
    read: &ReadSpec,
    arrow: &SchemaRef,
    from: &str,
    what: &str,
    fail: &(impl Fn(tokio_postgres::Error) -> Error + Sync),
) -> Result<(RecordBatch, usize)> {
    let columns: Vec<String> = read
        .columns
        .iter()
        .map(|c| select_expression(&ident(&c.source), &c.column))
        .collect();
    let sql = format!("SELECT {} FROM {from}", columns.join(", "));
    let statement = connection.prepare(&sql).await.map_err(fail)?;
    for (actual, planned) in statement.columns().iter().zip(&read.columns) {
        check_type(actual.type_(), planned, read)?;
    }
    let mut decoders: Vec<Decoder> = read.columns.iter().map(|c| Decoder::new(&c.column)).collect();
    let (count, bytes) = decode(connection, &sql, &mut decoders, what, fail).await?;
    let columns = decoders.iter_mut().map(Decoder::finish).collect();
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(count));
    let rows = RecordBatch::try_new_with_options(arrow.clone(), columns, &options)
        .map_err(|e| Error::bug(format!("a chunk does not fit its schema: {e}")))?;
    Ok((rows, bytes))
}

/// The condition and the order of rows from a key on; the terms stand for its columns.
pub(crate) fn in_order(terms: &[String], from: Option<&[String]>) -> Result<(String, String)> {
    let from_here = KeyRange {
        columns: terms.to_vec(),
        lower: from.map(<[String]>::to_vec),
        upper: None,
    };
    let condition = slices::condition(&from_here, str::to_string)?;
    Ok((condition, format!(" ORDER BY {}", terms.join(", "))))
}

/// The condition of rows that have one of these keys.
pub(crate) fn any_of(key: &[&str], keys: &[Vec<String>]) -> Result<String> {
    let one = |values: &Vec<String>| -> Result<String> {
        let parts = key.iter().zip(values);
        let parts = parts.map(|(c, v)| Ok(format!("{} = {}", ident(c), literal(v)?)));
        Ok(format!("({})", parts.collect::<Result<Vec<_>>>()?.join(" AND ")))
    };
    let any = keys.iter().map(one).collect::<Result<Vec<_>>>()?.join(" OR ");
    Ok(match any.is_empty() {
        true => "false".into(),
        false => format!("({any})"),
    })
}

/// So many of the rows, and the key of the one behind them.
pub(crate) fn cut(rows: RecordBatch, limit: usize, key: &[usize]) -> Result<(RecordBatch, Option<Vec<String>>)> {
    if rows.num_rows() <= limit {
        return Ok((rows, None));
    }
    let next = key
        .iter()
        .map(|k| Ok(text::cell(rows.column(*k), limit)?.unwrap_or_default()))
        .collect::<Result<Vec<String>>>()?;
    Ok((rows.slice(0, limit), Some(next)))
}

/// Decodes what a query gives; says how many rows and bytes those were.
async fn decode(
    connection: &Connection,
    sql: &str,
    decoders: &mut [Decoder],
    what: &str,
    fail: &(impl Fn(tokio_postgres::Error) -> Error + Sync),
) -> Result<(usize, usize)> {
    let stream = connection
        .copy_out(&format!("COPY ({sql}) TO STDOUT (FORMAT binary)"))
        .await
        .map_err(fail)?;
    let mut stream = std::pin::pin!(stream);
    let (mut frame, mut input, mut bytes, mut count) = (Frame::new(decoders.len()), BytesMut::new(), 0, 0);
    while let Some(piece) = stream.next().await {
        input.extend_from_slice(&piece.map_err(fail)?);
        loop {
            match frame.next(&input)? {
                Found::More => break,
                Found::Skip(n) => input.advance(n),
                Found::Tuple(n) => {
                    for (decoder, field) in decoders.iter_mut().zip(copy::fields(&input[..n])) {
                        decoder.extend(std::iter::once(field))?;
                    }
                    input.advance(n);
                    count += 1;
                    bytes += n;
                }
            }
        }
    }
    if !frame.ended() {
        return Err(Error::new(
            code::CONNECTION_LOST,
            format!("{what} failed: it ended in the middle"),
        ));
    }
    Ok((count, bytes))
}

/// Keys as people write them, in the texts by which rows are known here; refuses what is no key of the table.
pub(crate) async fn canonical_keys(
    database: &Postgres,
    read: &ReadSpec,
    key: &[String],
    keys: &[Vec<String>],
) -> Result<Vec<Vec<String>>> {
    let table = &read.table;
    let columns: Vec<_> = key
        .iter()
        .filter_map(|k| read.columns.iter().find(|c| c.column.name == *k))
        .collect();
    crate::logs::check_keys(table, key, columns.len(), keys)?;
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows = Vec::with_capacity(keys.len());
    for values in keys {
        let cast = |(c, value): (&&synctool_core::plan::ReadColumn, &String)| {
            let ty = c.column.source_type.as_deref().unwrap_or("text");
            Ok(format!("CAST({} AS {ty})", literal(value)?))
        };
        let values = columns.iter().zip(values).map(cast).collect::<Result<Vec<_>>>()?;
        rows.push(format!("({})", values.join(", ")));
    }
    let names: Vec<String> = columns.iter().map(|c| ident(&c.source)).collect();
    let selected: Vec<String> = columns
        .iter()
        .map(|c| select_expression(&ident(&c.source), &c.column))
        .collect();
    let sql = format!(
        "SELECT {} FROM (VALUES {}) v({})",
        selected.join(", "),
        rows.join(", "),
        names.join(", ")
    );
    let connection = database.connect().await?;
    let what = format!("reading keys of {table}");
    let fail = |e: tokio_postgres::Error| connection.error(e, &what);
    let mut decoders: Vec<Decoder> = columns.iter().map(|c| Decoder::new(&c.column)).collect();
    let decoded = decode(&connection, &sql, &mut decoders, &what, &fail).await;
    if let Err(e) = decoded {
        return Err(match e.kind().is_transient() {
            true => e,
            false => Error::new(code::CONFIG_INVALID, format!("a value is no key of {table}"))
                .caused_by(e)
                .hint(format!("its key columns are {}", key.join(", "))),
        });
    }
    connection.recycle();
    let arrays: Vec<_> = decoders.iter_mut().map(Decoder::finish).collect();
    let one = |row| {
        let cells = arrays
            .iter()
            .map(|a| Ok(text::cell(a.as_ref(), row)?.unwrap_or_default()));
        cells.collect::<Result<Vec<String>>>()
    };
    (0..keys.len()).map(one).collect()
}

/// Where the last record ends, given where the next one begins: behind a page's header, where a page begins between them.
fn end_of_record(insert: Lsn) -> Lsn {
    const PAGE: u64 = 8192;
    const HEADERS: [u64; 2] = [24, 40];
    match HEADERS.contains(&(insert % PAGE)) {
        true => insert - insert % PAGE,
        false => insert,
    }
}

/// Which transactions a chunk could not see.
#[derive(Debug, PartialEq, Eq)]
struct Snapshot {
    future: u64,
    in_progress: Vec<u64>,
}

impl Snapshot {
    /// `xmin:xmax:xid,xid`.
    fn parse(text: &str) -> Option<Snapshot> {
        let mut parts = text.split(':').skip(1);
        let future = parts.next()?.parse().ok()?;
        let in_progress = parts.next()?.split(',').filter(|x| !x.is_empty());
        Some(Snapshot {
            future,
            in_progress: in_progress.map(|x| x.parse().ok()).collect::<Option<_>>()?,
        })
    }

    /// Forgets transactions that are idle or prepared even now: they had not committed when the snapshot was taken,
    /// so the log will show them. One that is at work may be past its commit record and not visible yet; so may a prepared
    /// one while a session ends it, for as long as that waits for a synchronous standby.
    async fn forget_idle(&mut self, connection: &Connection) -> Result<()> {
        // Who ends a prepared transaction has no number of its own. What a session does that is not shown to us is not
        // known, but without synchronous standbys nobody waits there.
        const IDLE: &str = "
            SELECT backend_xid::text FROM pg_catalog.pg_stat_activity
            WHERE backend_xid IS NOT NULL AND state IN ('idle in transaction', 'idle in transaction (aborted)')
               OR backend_xid IS NULL AND datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid()
                  AND (wait_event = 'SyncRep' OR state = 'active' AND query ~* 'commit\\s+prepared'
                       OR state IS NULL AND pg_catalog.current_setting('synchronous_standby_names') <> '')";
        const PREPARED: &str = "SELECT transaction::text FROM pg_catalog.pg_prepared_xacts";
        if self.in_progress.is_empty() {
            return Ok(());
        }
        let idle = self.forget(connection, IDLE).await?;
        // Looked at after the sessions: who ends one of these since was not at it when the snapshot was taken.
        if idle && !self.in_progress.is_empty() {
            self.forget(connection, PREPARED).await?;
        }
        Ok(())
    }

    /// Forgets the transactions that a query gives; says whether it gave nothing else.
    async fn forget(&mut self, connection: &Connection, sql: &str) -> Result<bool> {
        let rows = catalog::rows(connection, sql, &[], "looking at open transactions").await?;
        let found: Vec<Option<u32>> = rows
            .iter()
            .map(|r| r.get::<_, Option<&str>>(0).and_then(|xid| xid.parse().ok()))
            .collect();
        self.in_progress.retain(|xid| !found.contains(&Some(*xid as u32)));
        Ok(!found.contains(&None))
    }
}

#[async_trait]
impl ChunkSource for Chunks {
    async fn write_watermark(&self, content: &str) -> Result<()> {
        let connection = self.database.connect().await?;
        let fail = |e| connection.error(e, "writing a watermark");
        match self.options.watermarks {
            Watermarks::Message => {
                // Its own flush is enough: no standby need have it.
                connection
                    .query(
                        "SELECT pg_catalog.set_config('synchronous_commit', 'local', true), \
                         pg_catalog.pg_logical_emit_message(true, $1, $2::text)",
                        &[&WATERMARK_PREFIX, &content],
                    )
                    .await
                    .map_err(fail)?;
            }
            Watermarks::Table => {
                let (kind, token) = content.split_once(' ').unwrap_or(("low", content));
                let table = quoted(&self.options.watermark_table(), "public");
                let (token, kind) = (literal(token)?, literal(kind)?);
                let sql = format!(
                    "BEGIN; SET LOCAL synchronous_commit = 'local'; \
                     INSERT INTO {table} (selectionid, wm_type) VALUES ({token}, {kind}); \
                     DELETE FROM {table} WHERE selectionid = {token}; COMMIT"
                );
                if let Err(e) = connection.batch_execute(&sql).await {
                    return Err(fail(e)
                        .hint("the role must be able to write the table of watermarks, or use read-only watermarks"));
                }
            }
            Watermarks::ReadOnly => {
                let row = connection
                    .query_one(
                        "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
                         ELSE pg_catalog.pg_current_wal_insert_lsn() END",
                        &[],
                    )
                    .await
                    .map_err(fail)?;
                self.marks.add(end_of_record(row.get::<_, PgLsn>(0).into()), content);
            }
        }
        connection.recycle();
        Ok(())
    }

    async fn schema(&self, table: &TableId) -> Result<TableSchema> {
        Ok(self.shape(table)?.schema())
    }

    async fn read_chunk(&self, table: &TableId, from: Option<&[String]>, limit: usize) -> Result<Chunk> {
        let shape = self.shape(table)?;
        let schema = shape.schema();
        let limit = self.widths.rows(table, limit);
        let (condition, order) = in_order(&shape.key_terms(), from)?;
        let mut conditions = Vec::from_iter(shape.filter.as_ref().map(|f| format!("({f})")));
        conditions.extend(Some(condition).filter(|c| !c.is_empty()));
        let (rows, snapshot) = self
            .read(&shape, &conditions.join(" AND "), &order, Some(limit + 1))
            .await?;
        let (rows, next) = cut(rows, limit, &shape.key)?;
        Ok(Chunk {
            rows,
            range: KeyRange {
                columns: schema.key,
                lower: from.map(<[String]>::to_vec),
                upper: next.clone(),
            },
            next,
            in_progress: snapshot.in_progress,
            future: Some(snapshot.future),
        })
    }

    async fn read_keys(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Chunk> {
        let shape = self.shape(table)?;
        let sources: Vec<&str> = shape.key.iter().map(|k| shape.columns[*k].now.as_str()).collect();
        let mut conditions = Vec::from_iter(shape.filter.as_ref().map(|f| format!("({f})")));
        conditions.push(any_of(&sources, keys)?);
        let (rows, snapshot) = self.read(&shape, &conditions.join(" AND "), "", None).await?;
        Ok(Chunk {
            rows,
            range: KeyRange::default(),
            next: None,
            in_progress: snapshot.in_progress,
            future: Some(snapshot.future),
        })
    }

    /// Watermarks are written into the log, or put where it has not come to yet.
    fn beside_log(&self) -> bool {
        true
    }

    fn follows(&self, table: &TableId) -> bool {
        self.shapes.find(|s| *s.table == *table).is_some()
    }

    /// A filter of the publication may let a row in whose large values did not change: they are not in the log.
    fn key_places(&self, table: &TableId) -> Option<Vec<usize>> {
        let shape = self.shapes.find(|s| *s.table == *table)?;
        (!shape.key.is_empty()).then(|| shape.key.clone())
    }

    fn refill(&self, change: &SchemaChange) -> Option<Pending> {
        let shape = self.shapes.find(|s| s.table == change.table)?;
        if shape.key.is_empty() {
            return None;
        }
        let mut remade = self.remade.lock().expect("nothing panics while holding it");
        if let Some(at) = remade.iter().position(|t| *t == *change.table) {
            remade.remove(at);
            return Some(Pending::resync(TableId::clone(&change.table)));
        }
        let filled = change
            .difference
            .missing
            .iter()
            .any(|new| shape.columns.iter().any(|c| c.column.name == new.name && c.filled));
        filled.then(|| Pending::load(TableId::clone(&change.table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_read() {
        assert_eq!(
            Snapshot::parse("700:712:700,705"),
            Some(Snapshot {
                future: 712,
                in_progress: vec![700, 705]
            })
        );
        assert_eq!(Snapshot::parse("700:700:").map(|s| s.in_progress), Some(vec![]));
        assert_eq!(Snapshot::parse("700"), None);
    }

    #[test]
    fn a_place_behind_a_page_s_header_is_the_page_s_beginning() {
        assert_eq!(end_of_record(0x2_4018), 0x2_4000);
        assert_eq!(end_of_record(0x100_0028), 0x100_0000);
        assert_eq!(end_of_record(0x2_4020), 0x2_4020);
        assert_eq!(end_of_record(0x2_4000), 0x2_4000);
    }

    #[test]
    fn marks_come_in_order_and_not_before_their_place() {
        let marks = Marks::default();
        marks.add(10, "low");
        marks.add(20, "high");
        assert_eq!(marks.reached(9), None);
        assert_eq!(marks.reached(25).as_deref(), Some("low"));
        assert_eq!(marks.reached(25).as_deref(), Some("high"));
        assert!(marks.is_empty());
    }
}
