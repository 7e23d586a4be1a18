//! Tables as they stand, in chunks by key beside their log.
//!
//! Nothing is written at the source. A chunk is read under a snapshot whose place in the log the server knows exactly:
//! both watermarks stand there, and the reader of the log puts the chunk's rows where it comes to that place. A snapshot
//! that does not have yet what the log has shown is taken again.

use super::super::catalog;
use super::super::client::{Mysql, Session, number, text};
use super::super::source::texts;
use super::super::sql::{self, hex_literal, ident};
use super::super::types;
use super::position::Place;
use super::shape::{Followed, Shape, Shapes};
use super::statements::is_same;
use crate::logs::Widths;
use arrow_array::RecordBatch;
use async_trait::async_trait;
use mysql_async::{Row, Value};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synctool_core::backfill::{Chunk, ChunkSource, Pending};
use synctool_core::change::{KeyRange, SchemaChange};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::text::{self as canonical, ColumnBuilder};

/// How long to wait for a commit that the log has shown and that a snapshot did not have.
const AGAIN: Duration = Duration::from_millis(5);

/// Where chunks stand in the log.
pub(super) type Marks = crate::logs::Marks<Place>;

/// Where the server's log stands: for a session in a consistent snapshot, where the snapshot does.
pub(super) async fn place(session: &mut Session) -> Result<Place> {
    let rows = session
        .rows(
            "SHOW STATUS LIKE 'binlog\\_snapshot\\_%'",
            "asking for the place in the log",
        )
        .await?;
    let value = |name: &str| {
        rows.iter()
            .find(|r| text(r, 0).is_some_and(|n| n.eq_ignore_ascii_case(name)))
    };
    let file = value("binlog_snapshot_file")
        .and_then(|r| text(r, 1))
        .unwrap_or_default();
    if file.is_empty() {
        return Err(Error::new(code::LOG_SETUP, "the server keeps no binary log")
            .hint("set log_bin in the server's configuration file and restart it"));
    }
    Ok(Place {
        file,
        offset: value("binlog_snapshot_position").map_or(0, |r| number(r, 1)),
    })
}

/// Reads chunks of the followed tables.
#[derive(Debug)]
pub(super) struct Chunks {
    pub(super) database: Mysql,
    pub(super) shapes: Arc<Shapes>,
    pub(super) marks: Arc<Marks>,
    /// How large rows were, by table.
    pub(super) widths: Widths,
    /// Tables that hold other rows than their log says.
    pub(super) remade: Arc<Mutex<Vec<TableId>>>,
}

/// How a key column is compared and ordered: texts by their bytes, as destinations order them, whatever the collation.
struct KeyPart {
    sql: String,
    column: Column,
    exact: bool,
}

/// Whether a key's column of this type, as it was declared, is in its own order; others are in that of their bytes.
pub(super) fn is_ordered(ty: &ColumnType, declared: &str) -> bool {
    use ColumnType::*;
    ty.is_integer()
        || matches!(
            ty,
            Bool | Decimal { .. } | Float32 | Float64 | Date | Time | Timestamp | TimestampTz | Bytes
        )
        || declared.starts_with("binary")
}

/// Whether the text of a value has another order than the value.
fn is_number(ty: &ColumnType) -> bool {
    ty.is_integer() || matches!(ty, ColumnType::Decimal { .. })
}

impl KeyPart {
    fn of(shape: &Shape) -> Vec<KeyPart> {
        shape
            .key
            .iter()
            .map(|k| {
                let column = &shape.columns[*k];
                let name = format!("{}.{}", ident(&shape.full.name), ident(&column.source));
                let kept_as_text = shape.by_bytes.contains(&column.column.name) && is_number(&column.column.ty);
                let ordered = is_ordered(&column.column.ty, &column.declared) && !kept_as_text;
                KeyPart {
                    sql: match (ordered, column.column.ty.is_integer()) {
                        (true, _) => name,
                        // Without the zeros that may fill it up.
                        (false, true) => sql::exact(&format!("({name} + 0)"), true),
                        (false, false) => sql::exact(&name, true),
                    },
                    column: Column {
                        source_type: Some(column.declared.clone()),
                        ..column.column.clone()
                    },
                    exact: !ordered,
                }
            })
            .collect()
    }

    fn literal(&self, value: &str) -> Result<String> {
        match self.exact {
            true => Ok(hex_literal(value.as_bytes())),
            false => types::literal(&self.column, value),
        }
    }
}

impl Chunks {
    fn shape(&self, table: &TableId) -> Result<Arc<Shape>> {
        self.shapes
            .find(|s| *s.table == *table)
            .ok_or_else(|| Error::bug(format!("a chunk of {table}, which is not followed")))
    }

    async fn read(&self, shape: &Shape, condition: &str, order: &str, limit: Option<usize>) -> Result<RecordBatch> {
        let what = format!("reading a chunk of {}", shape.table);
        let mut session = self.database.connect().await?;
        let place = loop {
            super::super::source::snapshot(&mut session).await?;
            let place = place(&mut session).await?;
            if self.marks.covers(&place) {
                break place;
            }
            session.run("ROLLBACK", &what).await?;
            tokio::time::sleep(AGAIN).await;
        };
        let columns = selected(&mut session, shape, &what).await?;
        let mut text = format!("SELECT {} FROM {}", columns.join(", "), sql::table(&shape.full));
        if !condition.is_empty() {
            text.push_str(&format!(" WHERE {condition}"));
        }
        text.push_str(order);
        if let Some(limit) = limit {
            text.push_str(&format!(" LIMIT {limit}"));
        }
        let rows = session.rows(&text, &what).await;
        let rows = rows.map_err(|e| e.at("table", shape.table.to_string()))?;
        session.run("COMMIT", &what).await?;
        session.recycle();
        let (batch, bytes) = batch(shape, &rows)?;
        self.widths.saw(&shape.table, rows.len(), bytes);
        self.marks.chunk_at(place);
        Ok(batch)
    }
}

/// What a chunk selects: the columns that are there, as the catalog has them by now. From here on nobody alters the table
/// until the transaction ends. Where the catalog is ahead of the log, the chunk waits until the log shows what was done.
async fn selected(session: &mut Session, shape: &Shape, what: &str) -> Result<Vec<String>> {
    shape.check_whole()?;
    let lock = format!("SELECT 1 FROM {} LIMIT 0", sql::table(&shape.full));
    session.rows(&lock, what).await?;
    let there = catalog::columns(session, &shape.full).await?;
    let ahead = |column: &str| {
        Error::new(
            code::CONFLICT,
            format!("{what} failed: its column {column} was altered, and the log does not say it yet"),
        )
    };
    let ours = shape.columns.iter().filter(|c| c.is_there());
    ours.map(|c| {
        let mut found = there.iter().filter(|t| is_same(&t.column.name, &c.source));
        let found = found
            .find(|t| c.takes(t, shape.drift))
            .ok_or_else(|| ahead(&c.source))?;
        let name = format!("{}.{}", ident(&shape.full.name), ident(&c.source));
        Ok(types::select(&name, &found.column))
    })
    .collect()
}

/// Rows of a query, in the shape's columns: those that are gone have nothing.
fn batch(shape: &Shape, rows: &[Row]) -> Result<(RecordBatch, usize)> {
    let mut builders: Vec<ColumnBuilder> = shape.columns.iter().map(|c| ColumnBuilder::new(&c.column)).collect();
    let mut size = 0;
    for row in rows {
        let mut cells = 0..;
        for (column, builder) in shape.columns.iter().zip(&mut builders) {
            if !column.is_there() {
                builder.append_null();
                continue;
            }
            match cells.next().and_then(|i| row.as_ref(i)) {
                Some(Value::Bytes(bytes)) => {
                    size += bytes.len();
                    types::read_cell(&column.column, builder, bytes)?;
                }
                Some(Value::NULL) | None => builder.append_null(),
                Some(_) => return Err(Error::bug("a value that did not come as text")),
            }
        }
    }
    let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
    let options = arrow_array::RecordBatchOptions::new().with_row_count(Some(rows.len()));
    let batch = RecordBatch::try_new_with_options(shape.arrow.clone(), arrays, &options)
        .map_err(|e| Error::bug(format!("a chunk does not fit its schema: {e}")))?;
    Ok((batch, size))
}

/// Keys as people write them, in the texts by which rows are known here; refuses what is no key of the table.
pub(super) async fn canonical_keys(
    database: &Mysql,
    followed: &Followed,
    keys: &[Vec<String>],
) -> Result<Vec<Vec<String>>> {
    let table = &followed.read.table;
    let columns: Vec<&Column> = followed
        .key
        .iter()
        .filter_map(|k| followed.read.columns.iter().map(|c| &c.column).find(|c| c.name == *k))
        .collect();
    crate::logs::check_keys(table, &followed.key, columns.len(), keys)?;
    let mut session = database.connect().await?;
    let mut all = Vec::with_capacity(keys.len());
    for key in keys {
        let shown = columns.iter().zip(key).map(|(c, v)| match c.ty {
            _ if c.ty.is_integer() => Ok(format!("CAST({} AS CHAR)", types::literal(c, v)?)),
            _ => Ok(sql::literal(v)),
        });
        let shown = shown.collect::<Result<Vec<_>>>().map_err(|e| {
            Error::new(code::CONFIG_INVALID, format!("a value is no key of {table}"))
                .caused_by(e)
                .hint(format!("its key columns are {}", followed.key.join(", ")))
        })?;
        let row = session
            .row(
                &format!("SELECT {}", shown.join(", ")),
                &format!("reading keys of {table}"),
            )
            .await?;
        let columns: Vec<Column> = columns.iter().copied().cloned().collect();
        all.push(
            texts(&row, &columns)?
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect(),
        );
    }
    session.recycle();
    Ok(all)
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
        let shape = self.shape(table)?;
        let limit = self.widths.rows(table, limit);
        let parts = KeyPart::of(&shape);
        let names: Vec<String> = parts.iter().map(|p| p.sql.clone()).collect();
        let condition = match from {
            None => String::new(),
            Some(from) => {
                let values: Vec<String> = parts
                    .iter()
                    .zip(from)
                    .map(|(p, v)| p.literal(v))
                    .collect::<Result<_>>()?;
                sql::compare(&names, ">=", &values)
            }
        };
        let order = format!(" ORDER BY {}", names.join(", "));
        let rows = self.read(&shape, &condition, &order, Some(limit + 1)).await?;
        let (rows, next) = if rows.num_rows() > limit {
            let key = shape
                .key
                .iter()
                .map(|k| Ok(canonical::cell(rows.column(*k), limit)?.unwrap_or_default()))
                .collect::<Result<Vec<String>>>()?;
            (rows.slice(0, limit), Some(key))
        } else {
            (rows, None)
        };
        Ok(Chunk {
            rows,
            range: KeyRange {
                columns: shape.schema().key,
                lower: from.map(<[String]>::to_vec),
                upper: next.clone(),
            },
            next,
            in_progress: Vec::new(),
            future: Some(self.marks.chunk().ordinal()),
        })
    }

    async fn read_keys(&self, table: &TableId, keys: &[Vec<String>]) -> Result<Chunk> {
        let shape = self.shape(table)?;
        let parts = KeyPart::of(&shape);
        let one = |key: &Vec<String>| -> Result<String> {
            let equal = parts
                .iter()
                .zip(key)
                .map(|(p, v)| Ok(format!("{} = {}", p.sql, p.literal(v)?)));
            Ok(format!("({})", equal.collect::<Result<Vec<_>>>()?.join(" AND ")))
        };
        let any = keys.iter().map(one).collect::<Result<Vec<_>>>()?.join(" OR ");
        let condition = if any.is_empty() { "FALSE" } else { &any };
        let rows = self.read(&shape, condition, "", None).await?;
        Ok(Chunk {
            rows,
            range: KeyRange::default(),
            next: None,
            in_progress: Vec::new(),
            future: Some(self.marks.chunk().ordinal()),
        })
    }

    /// The catalog may be ahead of the log where a table was made anew: rows of the log lack what it got since.
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
        let missing = &change.difference.missing;
        let filled = missing
            .iter()
            .any(|new| shape.columns.iter().any(|c| c.column.name == new.name && c.filled));
        filled.then(|| Pending::load(TableId::clone(&change.table)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(offset: u64) -> Place {
        Place {
            file: "binlog.000001".into(),
            offset,
        }
    }

    #[test]
    fn both_marks_of_a_chunk_stand_where_its_snapshot_does() {
        let marks = Marks::default();
        marks.write("low a:1");
        assert!(marks.is_empty());
        marks.chunk_at(at(20));
        marks.write("high a:1");
        assert_eq!(marks.reached(&at(19)), None);
        assert_eq!(marks.reached(&at(20)).as_deref(), Some("low a:1"));
        assert_eq!(marks.reached(&at(20)).as_deref(), Some("high a:1"));
        marks.read_up_to(&at(30));
        assert!(!marks.covers(&at(29)) && marks.covers(&at(30)));
    }
}
