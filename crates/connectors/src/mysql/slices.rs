//! Cutting a table into key ranges of about equal size.
//!
//! A sole integer key is cut by probes into the key's index at many places, without counting, where the rows are spread
//! evenly enough for that. Any other key, and any integer key with clusters and gaps, is walked once in key order.

use super::catalog::{CatalogColumn, CatalogTable, must_find};
use super::client::{Flavor, Session, number, signed};
use super::sql::{self, ident, list};
use super::types;
use crate::strata::{Stratum, quantiles};
use synctool_core::change::KeyRange;
use synctool_core::error::{Error, Result, code};
use synctool_core::keys::{Collation, Folding, Letters, Order};
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::schema::{Column, ColumnType};
use synctool_core::source::{PlannedSlice, SliceRequest};

/// A smaller table is read in one go.
const WORTH_BYTES: u64 = 8 << 20;
/// No slice is made smaller than this.
const LEAST_ROWS: u64 = 1000;
/// The key's span is looked at in so many strata, at two places each, so many rows at a time.
const STRATA: i128 = 64;
const PROBE: u64 = 32;
/// More slices than this are a mistake in `step`.
const MAX_SLICES: i128 = 100_000;

/// Cuts a table as requested.
pub(super) async fn cut(session: &mut Session, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
    let table = must_find(session, &read.table).await?;
    let whole = |rows: u64, bytes: u64| vec![PlannedSlice::all(rows, bytes)];
    let key: Vec<Column> = request
        .key
        .iter()
        .map(|k| table.must_column(k).map(|c| c.column.clone()))
        .collect::<Result<_>>()?;
    if request.single || key.is_empty() || table.kind != "table" || !table.is_key(&request.key) {
        return Ok(whole(table.rows, table.bytes));
    }
    let integer = match &key[..] {
        [one] if one.ty.is_integer() => Some(one.name.clone()),
        _ => None,
    };
    let name = sql::table(&table.table);
    if let Some(step) = request.step {
        let Some(column) = &integer else {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!(
                    "a fixed step needs a key of one integer column that is NOT NULL; {} has ({})",
                    table.table,
                    request.key.join(", ")
                ),
            )
            .hint("leave step out: ranges are then balanced by the table's rows"));
        };
        let bounds = fixed(session, &table, column, step).await?;
        return Ok(ranges(&key, None, bounds, table.rows, table.bytes));
    }
    // Statistics of a table that was just filled are old: a look at its first rows says whether it is small.
    let few = session
        .row(
            &format!(
                "SELECT count(*) FROM (SELECT 1 FROM {name} LIMIT {}) AS x",
                LEAST_ROWS * 20
            ),
            &format!("reading {}", table.table),
        )
        .await?;
    let few = number(&few, 0);
    let row_bytes = (table.bytes / table.rows.max(1)).clamp(1, 1 << 20);
    if few < LEAST_ROWS * 20 && table.bytes.max(few * row_bytes) < WORTH_BYTES {
        return Ok(whole(few, few * row_bytes));
    }
    let count_for = |rows: u64| {
        let bytes = rows * row_bytes;
        let by_size = bytes.div_ceil(request.max_slice_bytes.max(1)) as usize;
        by_size
            .max(request.min_slices)
            .min((rows / LEAST_ROWS) as usize)
            .clamp(1, MAX_SLICES as usize)
    };
    if let Some(column) = &integer
        && let Some(strata) = probe(session, &name, column).await?
    {
        let rows = strata.iter().map(|s| s.rows).sum::<f64>().round() as u64;
        let bounds = quantiles(&strata, count_for(rows));
        let bounds = bounds.iter().map(|b| vec![b.to_string()]).collect();
        return Ok(ranges(
            &key,
            strata.first().map(|s| s.start),
            bounds,
            rows,
            rows * row_bytes,
        ));
    }
    let counted = session
        .row(
            &format!("SELECT count(*) FROM {name}"),
            &format!("counting the rows of {}", table.table),
        )
        .await?;
    let rows = number(&counted, 0);
    let step = rows.div_ceil(count_for(rows) as u64).max(1);
    let bounds = walk(session, &table, &key, step).await?;
    Ok(ranges(&key, None, bounds, rows, rows * row_bytes))
}

/// How keys compare a column.
pub(super) fn collation(flavor: &Flavor, column: &CatalogColumn) -> Collation {
    Collation {
        order: order(flavor, column),
        folding: folding(column),
    }
}

fn order(flavor: &Flavor, column: &CatalogColumn) -> Order {
    let engine = if flavor.mariadb { "mariadb" } else { "mysql" };
    let declared = column.declared.data_type.as_str();
    match (&column.collation, &column.column.ty) {
        // MariaDB's own uuids go by their last bytes first, all or some of them.
        (None, ColumnType::Uuid) if declared == "uuid" => Order::Own(format!("{engine} {} uuid", flavor.version)),
        (None, ty) | (_, ty @ ColumnType::Uuid) => Collation::of(ty).order,
        // They go by the place of their value in a list.
        _ if ["enum", "set"].contains(&declared) => Order::Unknown,
        (Some((charset, collation)), ty) => {
            let pads = matches!(ty, ColumnType::Char { .. });
            match is_by_bytes(collation) && charset.starts_with("utf8") && !pads {
                true => Order::Bytes,
                false => Order::Own(format!("{engine} {collation}")),
            }
        }
    }
}

/// Which texts a column calls equal, as its collation is called: those of all character sets of Unicode have one rule.
fn folding(column: &CatalogColumn) -> Folding {
    let declared = column.declared.data_type.as_str();
    let Some((charset, name)) = &column.collation else {
        return Folding::default();
    };
    if ["enum", "set"].contains(&declared) {
        return Folding::default();
    }
    let rule = match name.split_once('_') {
        Some((_, rule)) if charset.starts_with("utf8") => rule,
        _ => name.as_str(),
    };
    // In Turkish, I is not the capital of i.
    let turkish = rule.contains("turkish") || rule.starts_with("tr_");
    let pads = matches!(column.column.ty, ColumnType::Char { .. });
    let found = Folding {
        blanks: pads || !(rule.contains("nopad") || rule.contains("0900")),
        letters: (!rule.ends_with("_bin") && rule != "bin").then(|| Letters {
            rule: rule.replace("nopad_", ""),
            ascii: rule.ends_with("_ci") && !turkish,
        }),
        name: name.clone(),
    };
    match found.is_none() {
        true => Folding::default(),
        false => found,
    }
}

/// Whether texts of a collation are ordered by their code points, blanks at the end too.
fn is_by_bytes(collation: &str) -> bool {
    ["_nopad_bin", "_0900_bin"].iter().any(|end| collation.ends_with(*end))
}

/// Whether a column's own order is that of the bytes of its texts.
pub(super) fn goes_by_bytes(column: &CatalogColumn) -> bool {
    let declared = column.declared.data_type.as_str();
    match &column.collation {
        None => !["uuid", "inet4", "inet6"].contains(&declared),
        Some(_) if ["enum", "set"].contains(&declared) => false,
        // All of them are of one length and form.
        Some((_, collation)) if column.column.ty == ColumnType::Uuid => collation.ends_with("_bin"),
        Some((charset, collation)) => is_by_bytes(collation) && charset.starts_with("utf8"),
    }
}

async fn edges(session: &mut Session, name: &str, column: &str) -> Result<Option<(i128, i128)>> {
    let c = ident(column);
    let row = session
        .row(
            &format!("SELECT min({c}), max({c}) FROM {name}"),
            "finding the key range",
        )
        .await?;
    Ok(signed(&row, 0).zip(signed(&row, 1)))
}

async fn fixed(session: &mut Session, table: &CatalogTable, column: &str, step: u64) -> Result<Vec<Vec<String>>> {
    let Some((low, high)) = edges(session, &sql::table(&table.table), column).await? else {
        return Ok(Vec::new());
    };
    let step = i128::from(step.max(1));
    let inner = (high - low) / step;
    if inner >= MAX_SLICES {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!("a step of {step} would cut {} into {} ranges", table.table, inner + 1),
        )
        .hint(format!("give a larger step: at most {MAX_SLICES} ranges")));
    }
    Ok((1..=inner).map(|i| vec![(low + i * step).to_string()]).collect())
}

/// Looks at a sole integer key in many places; `None` where it is too uneven to be cut from that.
async fn probe(session: &mut Session, name: &str, column: &str) -> Result<Option<Vec<Stratum>>> {
    let Some((first, last)) = edges(session, name, column).await? else {
        return Ok(None);
    };
    let (c, span) = (ident(column), last + 1 - first);
    let n = STRATA.min(span);
    let place = |half: i128| first + span * half / (2 * n);
    let mut looks = Vec::new();
    for half in 0..2 * n {
        let (from, to) = (place(half), place(half + 1));
        looks.push(format!(
            "(SELECT count(*), max({c}) FROM (SELECT {c} FROM {name} WHERE {c} >= {from} AND {c} < {to} ORDER BY {c} \
             LIMIT {PROBE}) AS x)"
        ));
    }
    let found = session.rows(&looks.join(" UNION ALL "), "probing the key").await?;
    if found.len() as i128 != 2 * n {
        return Err(Error::bug("probing the key gave another number of rows than asked for"));
    }
    // Exact where there are few, else from how dense they are at the start.
    let rows_in = |half: i128| {
        let row = &found[half as usize];
        let (from, to, rows) = (place(half), place(half + 1), number(row, 0));
        match signed(row, 1) {
            Some(h) if rows == PROBE => rows as f64 * (to - from) as f64 / (h - from + 1) as f64,
            _ => rows as f64,
        }
    };
    let (mut strata, mut uneven) = (Vec::new(), 0.0);
    for i in 0..n {
        let (left, right) = (rows_in(2 * i), rows_in(2 * i + 1));
        let rows = left + right;
        if left.max(right) > 4.0 * left.min(right) + PROBE as f64 {
            uneven += rows;
        }
        strata.push(Stratum {
            start: place(2 * i),
            end: place(2 * i + 2),
            rows,
        });
    }
    let total: f64 = strata.iter().map(|s| s.rows).sum();
    Ok((uneven <= total * 0.1).then_some(strata))
}

/// The first keys of the second and every further slice of `step` rows.
async fn walk(session: &mut Session, table: &CatalogTable, key: &[Column], step: u64) -> Result<Vec<Vec<String>>> {
    let what = format!("walking the key of {}", table.table);
    let names: Vec<String> = key.iter().map(|c| c.name.clone()).collect();
    let quoted: Vec<String> = names.iter().map(|n| ident(n)).collect();
    let shown: Vec<String> = key.iter().map(|c| types::select(&ident(&c.name), c)).collect();
    let mut bounds: Vec<Vec<String>> = Vec::new();
    loop {
        let condition = match bounds.last() {
            None => String::new(),
            Some(last) => {
                let values: Vec<String> = key
                    .iter()
                    .zip(last)
                    .map(|(c, v)| types::literal(c, v))
                    .collect::<Result<_>>()?;
                format!(" WHERE {}", sql::compare(&quoted, ">=", &values))
            }
        };
        let rows = session
            .rows(
                &format!(
                    "SELECT {} FROM {}{condition} ORDER BY {} LIMIT 1 OFFSET {step}",
                    shown.join(", "),
                    sql::table(&table.table),
                    list("", &names)
                ),
                &what,
            )
            .await?;
        let Some(row) = rows.into_iter().next() else {
            return Ok(bounds);
        };
        bounds.push(
            super::source::texts(&row, key)?
                .into_iter()
                .map(Option::unwrap_or_default)
                .collect(),
        );
    }
}

fn ranges(key: &[Column], first: Option<i128>, bounds: Vec<Vec<String>>, rows: u64, bytes: u64) -> Vec<PlannedSlice> {
    if bounds.is_empty() {
        return vec![PlannedSlice::all(rows, bytes)];
    }
    let n = bounds.len() + 1;
    let integers = key.len() == 1 && key[0].ty.is_integer();
    let edge = |i: usize| bounds.get(i).cloned();
    (0..n)
        .map(|i| {
            let (lower, upper) = (i.checked_sub(1).and_then(edge), edge(i));
            let shown = |b: &Option<Vec<String>>, open: String| b.as_ref().map_or(open, |b| b[0].clone());
            // Texts are people's data and stay out of names.
            let label = if integers {
                let from = shown(&lower, first.map_or("min".into(), |f| f.to_string()));
                format!("{}_{from}_{}", key[0].name, shown(&upper, "max".into()))
            } else {
                format!("part_{:04}_of_{n:04}", i + 1)
            };
            PlannedSlice {
                label,
                slice: Slice::Key(KeyRange {
                    columns: key.iter().map(|c| c.name.clone()).collect(),
                    lower,
                    upper,
                }),
                rows: rows / n as u64,
                bytes: bytes / n as u64,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_no_gap() {
        let key = [Column::new("id", ColumnType::Int64)];
        let all = ranges(&key, Some(1), vec![vec!["10".into()], vec!["20".into()]], 900, 3000);
        let labels: Vec<&str> = all.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels, ["id_1_10", "id_10_20", "id_20_max"]);
        let Slice::Key(first) = &all[0].slice else { panic!() };
        let Slice::Key(second) = &all[1].slice else { panic!() };
        assert_eq!((first.lower.as_ref(), &first.upper), (None, &second.lower));
    }

    #[test]
    fn an_order_is_named_where_another_end_may_have_it() {
        let flavor = Flavor {
            mariadb: true,
            version: "11.4".into(),
            max_packet: 1 << 20,
            local_infile: true,
        };
        let named = |data_type: &str, ty: ColumnType, collation: Option<&str>| {
            let column = CatalogColumn {
                column: Column::new("k", ty),
                declared: types::Declared {
                    data_type: data_type.into(),
                    column_type: data_type.into(),
                    precision: 0,
                    scale: 0,
                    characters: 36,
                    comment: String::new(),
                    json: false,
                },
                collation: collation.map(|c| (c.split('_').next().unwrap_or_default().into(), c.into())),
            };
            super::collation(&flavor, &column)
        };
        let text = || ColumnType::Text { max: Some(36) };
        let own = |name: &str| Order::Own(name.into());
        assert_eq!(
            named("bigint", ColumnType::UInt64, None).order,
            Order::Values("numbers")
        );
        assert_eq!(named("varchar", text(), Some("utf8mb4_nopad_bin")), Collation::bytes());
        let folded = named("varchar", text(), Some("utf8mb4_general_ci"));
        assert_eq!(folded.order, own("mariadb utf8mb4_general_ci"));
        // Blanks at the end: `a` is as large as `a `, and larger than `a` with a tab behind it.
        assert_eq!(
            named("varchar", text(), Some("utf8mb4_bin")).order,
            own("mariadb utf8mb4_bin")
        );
        assert_eq!(named("enum", text(), Some("utf8mb4_nopad_bin")), Collation::default());
        assert_eq!(named("uuid", ColumnType::Uuid, None).order, own("mariadb 11.4 uuid"));
        let written = named("char", ColumnType::Uuid, Some("ascii_bin"));
        assert_eq!(written.order, Order::Values("uuids"));
        // A number that is kept as a text.
        let kept = named("longtext", ColumnType::Numeric, Some("utf8mb4_nopad_bin"));
        assert_eq!(kept, Collation::bytes());
        let foldings = [
            ("utf8mb4_nopad_bin", false, None),
            ("utf8mb4_0900_bin", false, None),
            ("utf8mb4_bin", true, None),
            ("utf8mb4_general_ci", true, Some(("general_ci", true))),
            ("utf8mb3_general_ci", true, Some(("general_ci", true))),
            ("utf8mb4_general_nopad_ci", false, Some(("general_ci", true))),
            ("utf8mb4_0900_ai_ci", false, Some(("0900_ai_ci", true))),
            ("utf8mb4_turkish_ci", true, Some(("turkish_ci", false))),
            ("latin1_swedish_ci", true, Some(("latin1_swedish_ci", true))),
            ("latin1_general_cs", true, Some(("latin1_general_cs", false))),
        ];
        for (name, blanks, letters) in foldings {
            let found = named("varchar", text(), Some(name)).folding;
            let told = found.letters.as_ref().map(|l| (l.rule.as_str(), l.ascii));
            assert_eq!((found.blanks, told), (blanks, letters), "{name}");
        }
        let padded = named("char", ColumnType::Char { length: 36 }, Some("utf8mb4_nopad_bin"));
        assert!(padded.folding.blanks);
    }
}
