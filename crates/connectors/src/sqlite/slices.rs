//! Cutting a table into key ranges of about the same size.
//!
//! A sole integer key is cut by a few probes into the key's index, without counting: where the rows are spread evenly
//! enough for that. Any other key, and any integer key with clusters and gaps, is walked once in key order, which is a
//! scan of the key's index.

use super::catalog::{self, CatalogTable};
use super::client::failed;
use super::sql::{list, quote, row_compare};
use super::types::{self, Affinity, Cell, Store};
use crate::strata::{Stratum, quantiles};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension};
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result};
use synctool_core::keys::{Collation, Folding, Letters, Order};
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{PlannedSlice, SliceRequest};

/// Fewer rows or bytes than this are one slice.
const WORTH_ROWS: u64 = 20_000;
const WORTH_BYTES: u64 = 8 << 20;
/// No slice is made smaller than this.
const LEAST_ROWS: u64 = 1000;
/// The key's span is looked at in so many strata, at two places each, so many rows at a time.
const STRATA: i128 = 64;
const PROBE: i64 = 32;

/// Cuts a table; the connection holds one snapshot.
pub(super) fn cut(conn: &Connection, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
    let table = catalog::must_find(conn, &read.table)?;
    let row_bytes = average_row(conn, &table)?;
    let whole = |rows: u64| vec![PlannedSlice::all(rows, rows * row_bytes)];
    let guess = rows_at_most(conn, &table)?;
    // A group may have rows in several ranges.
    if !read.group_by.is_empty()
        || request.single
        || !catalog::is_key(conn, &table, &request.key)?
        || holds_null(conn, &table, &request.key)?
    {
        return Ok(whole(guess.unwrap_or(0)));
    }
    if guess.is_some_and(|g| g < LEAST_ROWS) && request.step.is_none() {
        return Ok(whole(guess.unwrap_or(0)));
    }
    let count_for = |rows: u64| {
        let bytes = rows * row_bytes;
        let worth = rows >= WORTH_ROWS || bytes >= WORTH_BYTES;
        let by_size = bytes.div_ceil(request.max_slice_bytes.max(1)) as usize;
        let wanted = by_size.max(if worth { request.min_slices } else { 1 });
        wanted.min((rows / LEAST_ROWS) as usize).max(1)
    };
    let integer = match request.key.as_slice() {
        [one] => table
            .column(one)
            .filter(|c| {
                types::store(&c.declared) == Store::Integer && types::affinity(&c.declared) == Affinity::Integer
            })
            .map(|c| c.name.clone()),
        _ => None,
    };
    if let (Some(column), None) = (&integer, request.step)
        && let Some(strata) = probe(conn, &table, column)?
    {
        let rows = strata.iter().map(|s| s.rows).sum::<f64>().round() as u64;
        let bounds = quantiles(&strata, count_for(rows));
        return Ok(ranges(
            &table,
            &request.key,
            Some(strata[0].start),
            bounds.iter().map(|b| vec![b.to_string()]).collect(),
            rows,
            row_bytes,
        ));
    }
    let rows = conn
        .query_row(&format!("SELECT count(*) FROM {}", quote(&table.name)), [], |r| {
            r.get(0).map(i64::unsigned_abs)
        })
        .map_err(failed(|| format!("counting the rows of {}", table.name)))?;
    let step = request
        .step
        .unwrap_or_else(|| rows.div_ceil(count_for(rows) as u64))
        .max(1);
    let Some(bounds) = walk(conn, &table, &request.key, step)? else {
        return Ok(whole(rows));
    };
    Ok(ranges(&table, &request.key, None, bounds, rows, row_bytes))
}

/// How keys compare some columns of a table. They compare what is stored: times and decimals are texts.
pub(super) fn collations(conn: &Connection, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
    let Some(table) = catalog::find(conn, catalog::table_name(table)?)? else {
        return Ok(columns.iter().map(to_make).collect());
    };
    let encoding: String = conn
        .query_row("PRAGMA encoding", [], |r| r.get(0))
        .map_err(failed(|| "reading the encoding of texts".into()))?;
    let collation = |column: &Column| {
        let there = table.column(&column.name)?;
        let named = there.collation.as_deref();
        Some(Collation {
            order: match table.kind == "table" {
                true => order(&there.declared, named, &encoding),
                false => Order::Unknown,
            },
            folding: match (types::store(&there.declared), types::column_type(&there.declared)) {
                (Store::Number, ColumnType::Numeric) => by_number(),
                _ => named.map(folding).unwrap_or_default(),
            },
        })
    };
    Ok(columns.iter().map(|c| collation(c).unwrap_or_default()).collect())
}

/// The same of a column that we would make.
pub(super) fn to_make(column: &Column) -> Collation {
    Collation {
        order: order(column.source_type.as_deref().unwrap_or_default(), None, "UTF-8"),
        folding: Folding::default(),
    }
}

fn order(declared: &str, collation: Option<&str>, encoding: &str) -> Order {
    let ty = types::column_type(declared);
    match (types::store(declared), &ty) {
        (Store::Integer | Store::Unsigned, _) => Collation::of(&ty).order,
        (Store::Text, ColumnType::Text { .. }) if types::affinity(declared) == Affinity::Text => {
            match (collation, encoding) {
                (None, "UTF-8") => Order::Bytes,
                (named, _) => Order::Own(format!("sqlite {encoding} {}", named.unwrap_or("BINARY"))),
            }
        }
        // Ours, in its canonical form.
        (Store::Text, ColumnType::Uuid) if declared == "UUID_TEXT" && collation.is_none() => Collation::of(&ty).order,
        _ => Order::Unknown,
    }
}

/// That of a column which turns the texts of numbers into numbers.
fn by_number() -> Folding {
    Folding {
        name: "NUMERIC".into(),
        blanks: false,
        letters: Some(Letters {
            rule: Letters::NUMBERS.into(),
            ascii: false,
        }),
    }
}

/// Which texts a collation calls equal.
fn folding(collation: &str) -> Folding {
    let letters = |rule: &str| Letters {
        rule: rule.into(),
        ascii: rule == Letters::ASCII,
    };
    Folding {
        name: collation.into(),
        blanks: collation == "RTRIM",
        letters: match collation {
            "RTRIM" => None,
            "NOCASE" => Some(letters(Letters::ASCII)),
            // Somebody's own.
            other => Some(letters(&format!("sqlite {other}"))),
        },
    }
}

/// An upper limit of the number of rows that costs nothing: the largest rowid. Only rowids from 1 on say so.
fn rows_at_most(conn: &Connection, table: &CatalogTable) -> Result<Option<u64>> {
    let Some(rowid) = table.rowid() else { return Ok(None) };
    let doing = || format!("reading the last row of {}", table.name);
    let edge = |f: &str| -> Result<Option<i64>> {
        conn.query_row(&format!("SELECT {f}({rowid}) FROM {}", quote(&table.name)), [], |r| {
            r.get(0)
        })
        .map_err(failed(doing))
    };
    Ok(match (edge("min")?, edge("max")?) {
        (None, _) | (_, None) => Some(0),
        (Some(first), Some(last)) => Some(last.abs_diff(first).saturating_add(1)),
    })
}

/// Whether a key column holds NULL, which SQLite allows in most primary keys: such rows have no place in key order.
pub(super) fn holds_null(conn: &Connection, table: &CatalogTable, key: &[String]) -> Result<bool> {
    for name in key {
        if table.column(name).is_some_and(|c| table.never_null(c)) {
            continue;
        }
        let sql = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE {} IS NULL)",
            quote(&table.name),
            quote(name)
        );
        if conn
            .query_row(&sql, [], |r| r.get(0))
            .map_err(failed(|| format!("looking for NULL in the key of {}", table.name)))?
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The bytes of a row, from the first few.
fn average_row(conn: &Connection, table: &CatalogTable) -> Result<u64> {
    let run = || -> rusqlite::Result<(u64, u64)> {
        let mut statement = conn.prepare(&format!("SELECT * FROM {} LIMIT 256", quote(&table.name)))?;
        let columns = statement.column_count();
        let mut found = statement.raw_query();
        let (mut rows, mut bytes) = (0, 0);
        while let Some(row) = found.next()? {
            rows += 1;
            for i in 0..columns {
                bytes += value_bytes(row.get_ref(i)?);
            }
        }
        Ok((rows, bytes))
    };
    let (rows, bytes) = run().map_err(failed(|| format!("reading {}", table.name)))?;
    Ok(bytes.checked_div(rows).unwrap_or(1).max(1))
}

/// The bytes that a value will hold in memory.
pub(super) fn value_bytes(value: ValueRef<'_>) -> u64 {
    match value {
        ValueRef::Text(t) | ValueRef::Blob(t) => t.len() as u64 + 4,
        _ => 8,
    }
}

/// Looks at a sole integer key in many places; `None` where it is too uneven to be cut from that.
fn probe(conn: &Connection, table: &CatalogTable, column: &str) -> Result<Option<Vec<Stratum>>> {
    let (t, k) = (quote(&table.name), quote(column));
    let doing = || format!("probing the key of {}", table.name);
    let edge = |f: &str| -> Result<Option<i64>> {
        conn.query_row(&format!("SELECT {f}({k}) FROM {t}"), [], |r| match r.get_ref(0)? {
            ValueRef::Integer(i) => Ok(Some(i)),
            _ => Ok(None),
        })
        .map_err(failed(doing))
    };
    let (Some(first), Some(last)) = (edge("min")?, edge("max")?) else {
        return Ok(None);
    };
    let (first, end) = (i128::from(first), i128::from(last) + 1);
    let mut look = conn
        .prepare(&format!(
            "SELECT count(*), max({k}) FROM (SELECT {k} FROM {t} WHERE {k} >= ?1 AND {k} < ?2 ORDER BY {k} LIMIT {PROBE})"
        ))
        .map_err(failed(doing))?;
    // Rows in [from, to): exact where there are few, else from how dense they are at the start.
    let mut rows_in = |from: i128, to: i128| -> Result<f64> {
        if from >= to {
            return Ok(0.0);
        }
        let to_bound = i64::try_from(to).unwrap_or(i64::MAX);
        let (n, highest): (i64, Option<i64>) = look
            .query_row([from as i64, to_bound], |r| Ok((r.get(0)?, r.get(1)?)))
            .map_err(failed(doing))?;
        Ok(match highest {
            Some(h) if n == PROBE => n as f64 * (to - from) as f64 / (i128::from(h) - from + 1) as f64,
            _ => n as f64,
        })
    };
    let span = end - first;
    let mut strata = Vec::new();
    let mut uneven = Vec::new();
    for i in 0..STRATA.min(span) {
        let n = STRATA.min(span);
        let (start, end) = (first + span * i / n, first + span * (i + 1) / n);
        let middle = start + (end - start) / 2;
        let (left, right) = (rows_in(start, middle)?, rows_in(middle, end)?);
        let rows = left + right;
        if left.max(right) > 4.0 * left.min(right) + PROBE as f64 {
            uneven.push(rows);
        }
        strata.push(Stratum { start, end, rows });
    }
    let total: f64 = strata.iter().map(|s| s.rows).sum();
    Ok((uneven.iter().sum::<f64>() <= total * 0.1).then_some(strata))
}

/// The first keys of the second and every further slice of `step` rows; `None` if a key is not in its storage class.
fn walk(conn: &Connection, table: &CatalogTable, key: &[String], step: u64) -> Result<Option<Vec<Vec<String>>>> {
    let doing = || format!("walking the key of {}", table.name);
    let stores: Vec<Store> = key
        .iter()
        .map(|k| {
            table
                .store(k)
                .ok_or_else(|| Error::bug("a key column that is not there"))
        })
        .collect::<Result<_>>()?;
    let names = list("", key);
    let sql = |condition: &str| {
        format!(
            "SELECT {names} FROM {} {condition} ORDER BY {names} LIMIT 1 OFFSET {step}",
            quote(&table.name)
        )
    };
    let first = sql("");
    let next = sql(&format!("WHERE {}", row_compare(key, ">=", 1)));
    let mut bounds = Vec::new();
    let mut last: Vec<Cell<'static>> = Vec::new();
    loop {
        let mut statement = conn
            .prepare_cached(if last.is_empty() { &first } else { &next })
            .map_err(failed(doing))?;
        type Found = Option<Vec<(String, Cell<'static>)>>;
        let found: Option<Found> = statement
            .query_row(rusqlite::params_from_iter(&last), |r| {
                (0..stores.len())
                    .map(|i| {
                        let value = r.get_ref(i)?;
                        Ok(types::bound_text(stores[i], value).map(|text| (text, types::owned(value))))
                    })
                    .collect()
            })
            .optional()
            .map_err(failed(doing))?;
        match found {
            None => return Ok(Some(bounds)),
            Some(None) => return Ok(None),
            Some(Some(values)) => {
                let (texts, cells) = values.into_iter().unzip();
                bounds.push(texts);
                last = cells;
            }
        }
    }
}

fn ranges(
    table: &CatalogTable,
    key: &[String],
    first: Option<i128>,
    bounds: Vec<Vec<String>>,
    rows: u64,
    row_bytes: u64,
) -> Vec<PlannedSlice> {
    if bounds.is_empty() {
        return vec![PlannedSlice::all(rows, rows * row_bytes)];
    }
    let n = bounds.len() + 1;
    let integers = key.len() == 1 && table.store(&key[0]) == Some(Store::Integer);
    let edge = |i: usize| bounds.get(i).cloned();
    (0..n)
        .map(|i| {
            let (lower, upper) = (i.checked_sub(1).and_then(edge), edge(i));
            let shown = |b: &Option<Vec<String>>, open: String| b.as_ref().map_or(open, |b| b[0].clone());
            // Texts are people's data and stay out of names.
            let label = if integers {
                let from = shown(&lower, first.map_or("first".into(), |f| f.to_string()));
                format!("{}_{from}_{}", key[0], shown(&upper, "last".into()))
            } else {
                format!("part_{:04}_of_{n:04}", i + 1)
            };
            PlannedSlice {
                label,
                slice: Slice::Key(KeyRange {
                    columns: key.to_vec(),
                    lower,
                    upper,
                }),
                rows: rows / n as u64,
                bytes: rows / n as u64 * row_bytes,
            }
        })
        .collect()
}
