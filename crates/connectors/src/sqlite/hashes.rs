//! Block hashes: one statement walks the rows of a slice, and each row is hashed where it stands, in SQLite's own buffers.
//! SQLite is a library in our process, so this is inside the datastore; no row becomes a batch.

use super::client::failed;
use super::query::{self, Query};
use super::source::SqliteSource;
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};
use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use synctool_core::blocks::{self, Block, BlockHashes, Blocks, Field, HashRequest, RowHash};
use synctool_core::error::{Error, Result};
use synctool_core::ledger::Tally;
use synctool_core::plan::ReadSpec;
use synctool_core::schema::{Column, ColumnType};
use synctool_core::text;

#[async_trait]
impl BlockHashes for SqliteSource {
    fn fast_form(&self, _: &ReadSpec, _: &[usize]) -> Option<String> {
        None
    }

    fn canonical(&self, _: &ColumnType, _: &ColumnType) -> bool {
        true
    }

    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>> {
        let request = request.clone();
        self.read(move |conn| {
            let mut blocks: BTreeMap<i64, Tally> = BTreeMap::new();
            each(conn, &request, |block, hash, _| {
                blocks.entry(block).or_default().add_row(hash);
                Ok(())
            })?;
            let block = |t: Tally| Block {
                rows: t.rows,
                high: t.hash_high,
                low: t.hash_low,
            };
            Ok(blocks.into_iter().map(|(id, t)| (id, block(t))).collect())
        })
        .await
        .map_err(|e| e.at("file", self.config.path.display().to_string()))
    }

    async fn rows(&self, request: &HashRequest, blocks: &[i64]) -> Result<Vec<RowHash>> {
        let (request, wanted) = (request.clone(), blocks.iter().copied().collect::<HashSet<i64>>());
        self.read(move |conn| {
            let mut rows = Vec::new();
            each(conn, &request, |block, hash, row| {
                if wanted.contains(&block) {
                    let key = request
                        .key
                        .iter()
                        .map(|k| query::canonical(column(&request, k), value(row, k.place)?))
                        .collect::<Result<_>>()?;
                    rows.push(RowHash { key, hash });
                }
                Ok(())
            })?;
            Ok(rows)
        })
        .await
        .map_err(|e| e.at("file", self.config.path.display().to_string()))
    }
}

fn column<'r>(request: &'r HashRequest, field: &Field) -> &'r Column {
    &request.read.columns[field.place].column
}

fn value<'r>(row: &'r Row<'_>, place: usize) -> Result<ValueRef<'r>> {
    row.get_ref(place).map_err(failed(|| "reading".into()))
}

/// Calls `take` with the block and the hash of every row.
fn each(
    conn: &Connection,
    request: &HashRequest,
    mut take: impl FnMut(i64, u128, &Row<'_>) -> Result<()>,
) -> Result<()> {
    let doing = || "hashing rows".to_string();
    let query = Query::build(conn, &request.read, &request.slice, |_| Ok(None))?;
    let mut statement = conn.prepare(&query.sql).map_err(failed(doing))?;
    for (i, p) in query.parameters.iter().enumerate() {
        statement.raw_bind_parameter(i + 1, p).map_err(failed(doing))?;
    }
    if request.form.is_agreed() {
        return Err(Error::bug("SQLite has no hash of its own"));
    }
    let mut rows = statement.raw_query();
    let mut form = Vec::new();
    while let Some(row) = rows.next().map_err(failed(doing))? {
        let block = block(request, row, &mut form)?;
        form.clear();
        for f in &request.compared {
            field(&mut form, column(request, f), &f.ty, value(row, f.place)?)?;
        }
        take(block, blocks::digest(&form), row)?;
    }
    Ok(())
}

fn block(request: &HashRequest, row: &Row<'_>, form: &mut Vec<u8>) -> Result<i64> {
    let first = request
        .key
        .first()
        .map(|k| Ok::<_, Error>((column(request, k), value(row, k.place)?)))
        .transpose()?;
    if let (Blocks::Divide { width }, Some((_, ValueRef::Integer(key)))) = (request.blocks, first) {
        return Ok(key.div_euclid(width));
    }
    form.clear();
    for k in &request.key {
        field(form, column(request, k), &k.ty, value(row, k.place)?)?;
    }
    let text = match (request.blocks, first) {
        (Blocks::Divide { .. }, Some((column, value))) => query::canonical(column, value)?,
        _ => None,
    };
    blocks::block_of(request.blocks, text.as_deref(), form)
}

/// A value's field: straight from its storage where that is its form already, else by way of its text.
fn field(out: &mut Vec<u8>, column: &Column, agreed: &ColumnType, value: ValueRef<'_>) -> Result<()> {
    use ColumnType as T;
    let mut number = |n: i64| {
        let mut digits = String::with_capacity(20);
        let _ = write!(digits, "{n},");
        out.extend_from_slice(digits.as_bytes());
    };
    match (value, &column.ty, agreed) {
        (ValueRef::Integer(i), T::Int64, T::Int8 | T::Int16 | T::Int32 | T::Int64) => {
            number(i);
            return Ok(());
        }
        (ValueRef::Text(t), T::Timestamp | T::TimestampTz, agreed) if column.ty == *agreed => {
            let micros = std::str::from_utf8(t)
                .ok()
                .and_then(|t| text::parse_timestamp(t, column.ty == T::TimestampTz))
                .filter(|m| !matches!(*m, i64::MAX | i64::MIN));
            if let Some(micros) = micros {
                number(micros);
                return Ok(());
            }
        }
        (ValueRef::Text(t), T::Text { max: None }, T::Text { .. }) if std::str::from_utf8(t).is_ok() => {
            let _ = std::io::Write::write_fmt(out, format_args!("{}:", t.len()));
            out.extend_from_slice(t);
            return Ok(());
        }
        _ => {}
    }
    blocks::push_field(out, agreed, query::canonical(column, value)?.as_deref())
}
