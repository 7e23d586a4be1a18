//! Hashes of blocks of rows, computed by the server in the canonical form of [`synctool_core::blocks`].

use super::client::{Mysql, Session, number, text};
use super::source::{conditions, snapshot};
use super::sql::{self, column_sql};
use super::types;
use async_trait::async_trait;
use std::collections::BTreeMap;
use synctool_core::blocks::{self, Block, BlockHashes, Blocks, Field, HashRequest, RowForm, RowHash};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::ReadSpec;
use synctool_core::schema::{Column, ColumnType};

/// Rows of so many blocks are asked for at once.
const BLOCKS_AT_ONCE: usize = 500;

/// Computes hashes in a MariaDB or MySQL server.
#[derive(Debug)]
pub(super) struct MysqlHashes {
    database: Mysql,
}

impl MysqlHashes {
    pub(super) fn new(database: Mysql) -> Self {
        MysqlHashes { database }
    }

    async fn begin(&self, request: &HashRequest) -> Result<(Session, String)> {
        let mut session = self.database.connect().await?;
        let conditions = conditions(&mut session, &request.read, &request.slice).await?;
        let rest = format!(
            "{}{}",
            sql::from(&request.read)?,
            sql::rest(&request.read, &conditions)?
        );
        snapshot(&mut session).await?;
        Ok((session, rest))
    }
}

/// Whether a column of this type can be put into the canonical form of that one here.
fn canonical(stored: &ColumnType, agreed: &ColumnType) -> bool {
    use ColumnType::*;
    match (stored, agreed) {
        (Bool, Bool) | (Date, Date) | (Time, Time) | (Bytes, Bytes) | (Uuid, Uuid) => true,
        (Timestamp, Timestamp) | (TimestampTz, TimestampTz) => true,
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, Numeric) if from.is_integer() => true,
        (Decimal { scale, .. }, Numeric) => *scale >= 0,
        (from, Decimal { scale, precision }) if from.is_integer() => (0..=30).contains(scale) && *precision <= 65,
        (Decimal { scale: s, .. }, Decimal { scale, precision }) => {
            (0..=30).contains(scale) && *precision <= 65 && s <= scale
        }
        (from, to) if types::is_text(from) && types::is_text(to) => true,
        (from, Uuid) => types::is_text(from),
        _ => false,
    }
}

/// The canonical text of a column that is not NULL, as SQL.
fn text_of(expression: &str, column: &Column, agreed: &ColumnType) -> Result<String> {
    use ColumnType::*;
    if !canonical(&column.ty, agreed) {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!(
                "column {} ({}) cannot be hashed as {agreed} by the server",
                column.name, column.ty
            ),
        ));
    }
    let e = expression;
    let binary_uuid = column.source_type.as_deref() == Some("binary(16)");
    Ok(match agreed {
        Bool => format!("({e} + 0)"),
        ty if ty.is_integer() => format!("({e} + 0)"),
        Decimal { scale, .. } => format!("CAST({e} AS DECIMAL(65,{scale}))"),
        Numeric => match &column.ty {
            Decimal { scale, .. } if *scale > 0 => {
                format!("TRIM(TRAILING '.' FROM TRIM(TRAILING '0' FROM CAST({e} AS CHAR)))")
            }
            _ => format!("({e} + 0)"),
        },
        // A date whose day or month is 0 is no day, and not NULL either: no other engine has a row like that.
        Date => format!("COALESCE(DATEDIFF({e}, '1970-01-01'), CONCAT('no day ', {e}))"),
        // As whole numbers: seconds with a fraction would be a decimal with zeros at its end. The parts of a time have no
        // sign.
        Time => format!(
            "CONCAT(IF({e} < TIME '00:00:00', '-', ''), \
             ((HOUR({e}) * 60 + MINUTE({e})) * 60 + SECOND({e})) * 1000000 + MICROSECOND({e}))"
        ),
        Timestamp | TimestampTz => {
            format!("COALESCE(TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', {e}), CONCAT('no day ', {e}))")
        }
        Uuid if binary_uuid => format!("LOWER(HEX({e}))"),
        Uuid => format!("LOWER(REPLACE(CONVERT({e} USING utf8mb4), '-', ''))"),
        Bytes => format!("LOWER(HEX({e}))"),
        Char { .. } => format!("TRIM(TRAILING ' ' FROM CONVERT({e} USING utf8mb4))"),
        _ => format!("CONVERT({e} USING utf8mb4)"),
    })
}

/// The canonical form of some fields, as SQL.
fn form(read: &ReadSpec, fields: &[Field]) -> Result<String> {
    if fields.is_empty() {
        return Ok("''".into());
    }
    let fields: Vec<String> = fields
        .iter()
        .map(|f| {
            let column = read
                .columns
                .get(f.place)
                .ok_or_else(|| Error::bug("a field that is not read"))?;
            let expression = column_sql(read, column);
            let text = text_of(&expression, &column.column, &f.ty)?;
            Ok(if blocks::is_long(&f.ty) {
                format!("COALESCE(CONCAT(OCTET_LENGTH({text}), ':', {text}), '~')")
            } else {
                format!("COALESCE(CONCAT({text}, ','), '~')")
            })
        })
        .collect::<Result<_>>()?;
    Ok(format!("CONCAT({})", fields.join(", ")))
}

/// The block of a row, as SQL.
fn block(request: &HashRequest) -> Result<String> {
    match request.blocks {
        Blocks::Divide { width } => {
            let first = request
                .key
                .first()
                .ok_or_else(|| Error::bug("blocks by division need a key"))?;
            let column = request
                .read
                .columns
                .get(first.place)
                .ok_or_else(|| Error::bug("a key that is not read"))?;
            // As a decimal, where nothing overflows; division cuts off towards zero, and a block begins at its floor.
            let key = format!("CAST({} AS DECIMAL(30,0))", column_sql(&request.read, column));
            Ok(format!(
                "(({key} - MOD(MOD({key}, {width}) + {width}, {width})) DIV {width})"
            ))
        }
        Blocks::Spread { count } => Ok(format!(
            "(CAST(CONV(LEFT(MD5({}), 8), 16, 10) AS UNSIGNED) MOD {count})",
            form(&request.read, &request.key)?
        )),
    }
}

/// The hash of a row, as SQL.
fn hash(request: &HashRequest) -> Result<String> {
    match request.form {
        RowForm::Fast(_) | RowForm::Text(_) => Err(Error::bug("MySQL has no hash of its own")),
        RowForm::Canonical => Ok(format!("MD5({})", form(&request.read, &request.compared)?)),
    }
}

#[async_trait]
impl BlockHashes for MysqlHashes {
    fn fast_form(&self, _: &ReadSpec, _: &[usize]) -> Option<String> {
        None
    }

    fn canonical(&self, stored: &ColumnType, agreed: &ColumnType) -> bool {
        canonical(stored, agreed)
    }

    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>> {
        let block = block(request)?;
        let what = format!("hashing {}", request.read.table);
        let hash = hash(request)?;
        let half = |side: &str| format!("CAST(SUM(CAST(CONV({side}(h, 16), 16, 10) AS DECIMAL(20,0))) AS CHAR)");
        let (session, rest) = self.begin(request).await?;
        let mut rows = session
            .stream(
                format!(
                    "SELECT b, count(*), {}, {}, SUM(h IS NULL) FROM (SELECT {block} AS b, {hash} AS h {rest}) AS x GROUP BY b",
                    half("LEFT"),
                    half("RIGHT")
                ),
                &what,
            )
            .await?;
        let mut found = BTreeMap::new();
        while let Some(row) = rows.next().await? {
            if number(&row, 4) > 0 {
                return Err(too_long());
            }
            let sum = |i: usize| -> Result<u64> {
                let sum: u128 = text(&row, i)
                    .and_then(|t| t.parse().ok())
                    .ok_or_else(|| Error::bug("a sum of hashes that is no number"))?;
                // Modulo 2^64.
                Ok(sum as u64)
            };
            let block = Block {
                rows: number(&row, 1),
                high: sum(2)?,
                low: sum(3)?,
            };
            found.insert(number_of(&row, 0)?, block);
        }
        Ok(found)
    }

    async fn rows(&self, request: &HashRequest, wanted: &[i64]) -> Result<Vec<RowHash>> {
        let block = block(request)?;
        let what = format!("hashing rows of {}", request.read.table);
        let hash = hash(request)?;
        let mut keys = Vec::new();
        let mut shown = vec![hash];
        for field in &request.key {
            let column = request
                .read
                .columns
                .get(field.place)
                .ok_or_else(|| Error::bug("a key that is not read"))?;
            shown.push(types::select(&column_sql(&request.read, column), &column.column));
            keys.push(column.column.clone());
        }
        let mut found = Vec::new();
        for some in wanted.chunks(BLOCKS_AT_ONCE) {
            let (session, rest) = self.begin(request).await?;
            let numbers: Vec<String> = some.iter().map(i64::to_string).collect();
            // The block is computed from the columns, so it is a condition of its own after those of the slice.
            let sql = format!(
                "SELECT {} FROM (SELECT {block} AS b, {} {rest}) AS x WHERE b IN ({})",
                (0..shown.len()).map(|i| format!("c{i}")).collect::<Vec<_>>().join(", "),
                shown
                    .iter()
                    .enumerate()
                    .map(|(i, s)| format!("{s} AS c{i}"))
                    .collect::<Vec<_>>()
                    .join(", "),
                numbers.join(", ")
            );
            let mut rows = session.stream(sql, &what).await?;
            while let Some(mut row) = rows.next().await? {
                let hash = text(&row, 0).and_then(|t| u128::from_str_radix(&t, 16).ok());
                let hash = hash.ok_or_else(too_long)?;
                let values: Vec<mysql_async::Value> = (1..shown.len())
                    .map(|i| row.take(i).unwrap_or(mysql_async::Value::NULL))
                    .collect();
                found.push(RowHash {
                    key: values
                        .into_iter()
                        .zip(&keys)
                        .map(|(value, column)| cell(value, column))
                        .collect::<Result<_>>()?,
                    hash,
                });
            }
        }
        Ok(found)
    }
}

/// A cell as the canonical text of its column's Arrow form.
fn cell(value: mysql_async::Value, column: &Column) -> Result<Option<String>> {
    match value {
        mysql_async::Value::Bytes(bytes) => {
            let mut one = synctool_core::text::ColumnBuilder::new(column);
            types::read_cell(column, &mut one, &bytes)?;
            synctool_core::text::cell(&one.finish(), 0)
        }
        _ => Ok(None),
    }
}

fn number_of(row: &mysql_async::Row, i: usize) -> Result<i64> {
    text(row, i)
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::bug("blocks by division need an integer key that is not NULL"))
}

/// A text longer than a packet is NULL to the server.
fn too_long() -> Error {
    Error::new(
        code::ROW_TOO_LARGE,
        "a row's canonical form is larger than the server's max_allowed_packet, so the server cannot hash it",
    )
    .hint("raise max_allowed_packet, or leave the large column out of the comparison")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_forms_that_the_server_makes_alike_are_promised() {
        use ColumnType::*;
        let decimal = |precision, scale| Decimal { precision, scale };
        for (stored, agreed) in [
            (Int32, Int64),
            (UInt64, Numeric),
            (decimal(10, 2), decimal(12, 4)),
            (Char { length: 36 }, Uuid),
            (Text { max: None }, Char { length: 5 }),
        ] {
            assert!(canonical(&stored, &agreed), "{stored} as {agreed}");
        }
        for (stored, agreed) in [
            (Float64, Float64),
            (decimal(10, 4), decimal(12, 2)),
            (Numeric, Numeric),
            (Json, Json),
            (Bytes, Uuid),
            (Timestamp, TimestampTz),
            (Int32, Text { max: None }),
        ] {
            assert!(!canonical(&stored, &agreed), "{stored} as {agreed}");
        }
    }
}
