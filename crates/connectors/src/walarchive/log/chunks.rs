//! Tables as they stand at the scratch server, in chunks by key beside the log. Nothing moves while a chunk is read: both its
//! watermarks stand at the scratch server's place.

use super::super::replay::wait_shortly;
use super::super::scratch::blamed;
use super::shape::{Shape, Shapes};
use super::world::{Place, World};
use crate::logs::Widths;
use crate::postgres::Connection;
use crate::postgres::log::chunks::{any_of, cut, in_order, select};
use arrow_array::RecordBatch;
use async_trait::async_trait;
use std::sync::Arc;
use synctool_core::backfill::{Chunk, ChunkSource};
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{TableId, TableSchema};
use synctool_pgwal::Lsn;

/// Where chunks stand in the log.
pub(super) type Marks = crate::logs::Marks<Lsn>;

/// Reads rows of the scratch server.
#[derive(Debug)]
pub(super) struct Rows {
    pub(super) world: Arc<World>,
    pub(super) widths: Widths,
}

impl Rows {
    /// Rows of a table; `from` is what stands behind FROM. `None` if production holds a lock on it.
    pub(super) async fn read(
        &self,
        session: &Connection,
        shape: &Shape,
        columns: Option<&[usize]>,
        from: &str,
    ) -> Result<Option<RecordBatch>> {
        let what = format!("reading {}", shape.table);
        let fail = |e: tokio_postgres::Error| blamed(session.error(e, &what));
        let (read, arrow) = match columns {
            None => (shape.read.clone(), shape.arrow.clone()),
            Some(columns) => shape.reading(columns),
        };
        match select(session, &read, &arrow, from, &what, &fail).await {
            Ok((rows, bytes)) => {
                if columns.is_none() {
                    self.widths.saw(&shape.table, rows.num_rows(), bytes);
                }
                Ok(Some(rows))
            }
            Err(e) if is_locked(&e) => Ok(None),
            Err(e) => Err(e.at("table", shape.table.to_string())),
        }
    }

    /// A session at the scratch server.
    pub(super) async fn session(&self) -> Result<Connection> {
        let session = self.world.database().connect().await?;
        wait_shortly(&session).await?;
        Ok(session)
    }

    /// Rows in the order of the key, from one on, and the key of the next; `None` if production holds a lock on the table.
    pub(super) async fn in_order(
        &self,
        shape: &Shape,
        from: Option<&[String]>,
        most: usize,
    ) -> Result<Option<(RecordBatch, Option<Vec<String>>)>> {
        let limit = self.widths.rows(&shape.table, most);
        let (condition, order) = in_order(&shape.key_terms(), from)?;
        let condition = match condition.is_empty() {
            true => condition,
            false => format!(" WHERE {condition}"),
        };
        let session = self.session().await?;
        let from = format!("{}{condition}{order} LIMIT {}", shape.from(), limit + 1);
        let rows = self.read(&session, shape, None, &from).await?;
        session.recycle();
        rows.map(|rows| cut(rows, limit, &shape.key)).transpose()
    }
}

/// Whether production holds a lock that is not over at the scratch server's place.
fn is_locked(e: &Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(e);
    while let Some(error) = cause {
        if let Some(e) = error.downcast_ref::<tokio_postgres::Error>() {
            return e.code() == Some(&tokio_postgres::error::SqlState::LOCK_NOT_AVAILABLE);
        }
        cause = error.source();
    }
    false
}

/// Reads chunks of the followed tables.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) rows: Arc<Rows>,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
}

impl Chunks {
    fn shape(&self, table: &TableId) -> Result<Arc<Shape>> {
        self.shapes
            .find(|s| *s.table == *table)
            .ok_or_else(|| Error::bug(format!("a chunk of {table}, which is not followed")))
    }

    /// The place at which a chunk is read: nothing moves from there until the log is read on.
    async fn place(&self) -> Result<Lsn> {
        let mut place = self.rows.world.place();
        let found = place.wait_for(|p| !matches!(p, Place::Moving)).await.map(|p| *p);
        match found {
            Ok(Place::Standing(at)) => Ok(at),
            _ => Err(Error::new(
                code::CONFLICT,
                "the scratch server did not come to its next place, so no chunk can be read",
            )),
        }
    }

    fn chunk(
        &self,
        shape: &Shape,
        at: Lsn,
        from: Option<&[String]>,
        found: Option<(RecordBatch, Option<Vec<String>>)>,
    ) -> Chunk {
        let is_there = found.is_some();
        let (rows, next) = found.unwrap_or_else(|| (RecordBatch::new_empty(shape.arrow.clone()), None));
        // A chunk that could not be read stands behind the next batch, by which it is seen to be of no use: it is read
        // again there.
        self.marks.chunk_at(if is_there { at } else { Lsn(at.0 + 1) });
        Chunk {
            rows,
            range: KeyRange {
                columns: shape.schema().key,
                lower: from.map(<[String]>::to_vec),
                upper: next.clone(),
            },
            next,
            in_progress: Vec::new(),
            future: Some(at.0 + 1),
        }
    }
}

#[async_trait]
impl ChunkSource for Chunks {
    async fn write_watermark(&self, content: &str) -> Result<()> {
        self.marks.write(content);
        Ok(())
    }

    async fn schema(&self, table: &TableId) -> Result<TableSchema> {
        Ok(self.shape(table)?.schema())
    }

    async fn read_chunk(&self, table: &TableId, from: Option<&[String]>, limit: usize) -> Result<Chunk> {
        let at = self.place().await?;
        let shape = self.shape(table)?;
        let found = self.rows.in_order(&shape, from, limit).await?;
        Ok(self.chunk(&shape, at, from, found))
    }

    async fn read_keys(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Chunk> {
        let at = self.place().await?;
        let shape = self.shape(table)?;
        let sources = shape.key_sources();
        let sources: Vec<&str> = sources.iter().map(String::as_str).collect();
        let session = self.rows.session().await?;
        let from = format!("{} WHERE {}", shape.from(), any_of(&sources, keys)?);
        let found = self.rows.read(&session, &shape, None, &from).await?;
        session.recycle();
        let mut chunk = self.chunk(&shape, at, None, found.map(|rows| (rows, None)));
        chunk.range = KeyRange::default();
        Ok(chunk)
    }
}
