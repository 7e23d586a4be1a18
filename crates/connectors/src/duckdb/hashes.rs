//! Block hashes inside DuckDB: `md5` of the canonical form, summed as HUGEINT.

use super::query::{Query, readable, texts};
use super::source::DuckDbSource;
use async_trait::async_trait;
use std::collections::BTreeMap;
use synctool_core::blocks::{Block, BlockHashes, Blocks, Field, HashRequest, RowHash};
use synctool_core::error::{Error, Result};
use synctool_core::plan::ReadSpec;
use synctool_core::schema::{Column, ColumnType};

/// 2^64.
const WHOLE: &str = "18446744073709551616::HUGEINT";

/// The text of a value's field, without what ends or begins it; `None` where DuckDB has no way to it.
fn field_text(v: &str, stored: &ColumnType, agreed: &ColumnType) -> Option<String> {
    use ColumnType as T;
    let digits = format!("CAST({v} AS VARCHAR)");
    let ends = |finite: &str, zero: &str| {
        format!(
            "CASE WHEN isinf({v}) THEN CASE WHEN {v} > {zero} THEN 'infinity' ELSE '-infinity' END ELSE CAST({finite} AS VARCHAR) END"
        )
    };
    Some(match (stored, agreed) {
        (T::Bool, T::Bool) => format!("CASE WHEN {v} THEN '1' ELSE '0' END"),
        (a, b) if a.is_integer() && (b.is_integer() || *b == T::Numeric) => digits,
        (T::Decimal { precision, scale: from }, T::Decimal { scale: to, .. })
            if *from >= 0 && from <= to && i32::from(*precision) - i32::from(*from) + i32::from(*to) <= 38 =>
        {
            format!("CAST(CAST({v} AS DECIMAL(38,{to})) AS VARCHAR)")
        }
        (T::Decimal { precision, scale }, T::Numeric) if *precision <= 38 && *scale > 0 => {
            format!("rtrim(rtrim({digits}, '0'), '.')")
        }
        (T::Decimal { scale: 0, .. }, T::Numeric) => digits,
        (T::Date, T::Date) => ends(&format!("{v} - DATE '1970-01-01'"), "DATE '1970-01-01'"),
        (T::Time, T::Time) => format!("CAST(epoch_us({v}) AS VARCHAR)"),
        (T::Timestamp, T::Timestamp) => ends(&format!("epoch_us({v})"), "TIMESTAMP '1970-01-01'"),
        (T::TimestampTz, T::TimestampTz) => ends(&format!("epoch_us({v})"), "TIMESTAMPTZ '1970-01-01 00:00:00+00'"),
        (T::Uuid, T::Uuid) => format!("replace({digits}, '-', '')"),
        (T::Bytes, T::Bytes) => format!("lower(hex({v}))"),
        (T::Text { .. }, T::Text { .. }) => v.to_string(),
        (T::Text { .. }, T::Char { .. }) => format!("rtrim({v}, ' ')"),
        _ => return None,
    })
}

/// A value's field in the canonical form of its row.
fn field(v: &str, stored: &ColumnType, agreed: &ColumnType) -> Result<String> {
    let text = field_text(v, stored, agreed)
        .ok_or_else(|| Error::bug(format!("DuckDB has no canonical form of {stored} as {agreed}")))?;
    Ok(match agreed {
        ColumnType::Text { .. } | ColumnType::Char { .. } => {
            format!("CASE WHEN {v} IS NULL THEN '~' ELSE strlen({text}) || ':' || {text} END")
        }
        _ => format!("CASE WHEN {v} IS NULL THEN '~' ELSE {text} || ',' END"),
    })
}

/// Sixteen hexadecimal digits as a number.
fn half(hex: &str, from: usize) -> String {
    format!("CAST('0x' || substr({hex}, {from}, 16) AS UBIGINT)")
}

/// A request as SQL: the row source (`b` block, `h` high half, `l` low half, `k0` … keys) and its values.
async fn hashed(
    source: &DuckDbSource,
    request: &HashRequest,
    keys: bool,
) -> Result<(super::session::Session, String, Vec<String>)> {
    let session = source.0.database.session().await?;
    let (from, filter, group, parameters, values) = {
        let query = Query::new(&session, &request.read).await?;
        let rows = query.rows(&request.slice).await?;
        let values: Vec<String> = request.read.columns.iter().map(|c| query.term(&c.term())).collect();
        (query.all_tables(), rows.sql(), query.group()?, rows.parameters, values)
    };
    let column = |f: &Field| (format!("v{}", f.place), &request.read.columns[f.place].column.ty);
    let form = |fields: &[Field]| -> Result<String> {
        let parts = fields
            .iter()
            .map(|f| {
                let (v, stored) = column(f);
                field(&v, stored, &f.ty)
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(match parts.is_empty() {
            true => "''".into(),
            false => parts.join(" || "),
        })
    };
    let block = match request.blocks {
        Blocks::Divide { width } => {
            let key = request.key.first().map(|k| column(k).0);
            let key = key.ok_or_else(|| Error::bug("blocks by division need a key"))?;
            format!("({key}::HUGEINT - ({key}::HUGEINT % {width} + {width}) % {width}) // {width}")
        }
        Blocks::Spread { count } => format!(
            "CAST('0x' || left(md5({}), 8) AS UBIGINT) % {count}",
            form(&request.key)?
        ),
    };
    if request.form.is_agreed() {
        return Err(Error::bug("DuckDB has no hash of its own"));
    }
    let (row, high, low) = (form(&request.compared)?, half("m", 1), half("m", 17));
    let named: Vec<String> = values.iter().enumerate().map(|(i, v)| format!("{v} AS v{i}")).collect();
    let kept = match keys {
        true => request
            .key
            .iter()
            .enumerate()
            .map(|(i, k)| format!(", v{} AS k{i}", k.place))
            .collect(),
        false => String::new(),
    };
    let sql = format!(
        "(SELECT b, {high} AS h, {low} AS l{} FROM (SELECT {block} AS b, md5({row}) AS m{kept} FROM (SELECT {}{from}{filter}{})))",
        match keys {
            true => (0..request.key.len()).map(|i| format!(", k{i}")).collect(),
            false => String::new(),
        },
        named.join(", "),
        // Groups are by place, and the places are the same.
        group,
    );
    Ok((session, sql, parameters))
}

fn number<T: std::str::FromStr>(text: &Option<String>) -> Result<T> {
    text.as_deref()
        .and_then(|t| t.parse().ok())
        .ok_or_else(|| Error::bug("DuckDB gave a hash that is no number"))
}

#[async_trait]
impl BlockHashes for DuckDbSource {
    fn fast_form(&self, _: &ReadSpec, _: &[usize]) -> Option<String> {
        None
    }

    fn canonical(&self, stored: &ColumnType, agreed: &ColumnType) -> bool {
        field_text("v", stored, agreed).is_some()
    }

    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>> {
        let (session, rows, parameters) = hashed(self, request, false).await?;
        let sql = format!(
            "SELECT CAST(b AS VARCHAR), CAST(count(*) AS VARCHAR), CAST(sum(h) % {WHOLE} AS VARCHAR), \
             CAST(sum(l) % {WHOLE} AS VARCHAR) FROM {rows} GROUP BY b"
        );
        let parameters: Vec<&str> = parameters.iter().map(String::as_str).collect();
        let found = session.rows(sql, &parameters).await?;
        found
            .iter()
            .map(|row| match row.as_slice() {
                [b, rows, high, low] => Ok((
                    number(b)?,
                    Block {
                        rows: number(rows)?,
                        high: number(high)?,
                        low: number(low)?,
                    },
                )),
                _ => Err(Error::bug("DuckDB gave another number of columns")),
            })
            .collect()
    }

    async fn rows(&self, request: &HashRequest, blocks: &[i64]) -> Result<Vec<RowHash>> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let (session, rows, parameters) = hashed(self, request, true).await?;
        let text = |name: &str| Column::new(name, ColumnType::Text { max: None });
        let mut columns: Vec<Column> = vec![text("h"), text("l")];
        let mut selected = vec!["CAST(h AS VARCHAR)".to_string(), "CAST(l AS VARCHAR)".to_string()];
        for (i, k) in request.key.iter().enumerate() {
            let column = request.read.columns[k.place].column.clone();
            selected.push(readable(format!("k{i}"), &column));
            columns.push(column);
        }
        let wanted: Vec<String> = blocks.iter().map(ToString::to_string).collect();
        let sql = format!(
            "SELECT {} FROM {rows} WHERE b IN ({})",
            selected.join(", "),
            wanted.join(", ")
        );
        let found = texts(session.stream(sql, parameters).await?, &columns).await?;
        found
            .into_iter()
            .map(|mut row| {
                let key = row.split_off(2);
                let (high, low): (u64, u64) = (number(&row[0])?, number(&row[1])?);
                Ok(RowHash {
                    key,
                    hash: u128::from(high) << 64 | u128::from(low),
                })
            })
            .collect()
    }
}
