//! Cutting a table into key ranges of about equal size.

use super::Connection;
use super::catalog::{self, Described, Estimate, Kind};
use super::sql::{ident, idents, literal, table as quoted};
use super::types::{text_expression, unmodified};
use postgres_types::{ToSql, Type};
use std::collections::BTreeMap;
use synctool_core::change::KeyRange;
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::keys::{Collation, Folding, Letters, Order as KeyOrder};
use synctool_core::plan::Slice;
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{PlannedSlice, SliceRequest};

/// A smaller table is read in one go.
const WORTH_CUTTING: u64 = 32 << 20;

/// Pages sampled: enough that a slice is rarely more than a few percent off.
const SAMPLE_PAGES: f64 = 1000.0;

/// More slices than this are a mistake in `step`.
const MAX_SLICES: u64 = 100_000;

/// Cuts a described table as requested.
pub async fn cut(connection: &Connection, table: &Described, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
    let size = catalog::estimate(connection, table).await?;
    let whole = vec![PlannedSlice::all(size.rows, size.bytes)];
    let key = key_columns(table, request)?;
    let samples = matches!(table.kind, Kind::Table | Kind::Partitioned | Kind::MaterializedView);
    if key.is_empty() || request.single {
        return Ok(whole);
    }
    if let Some(step) = request.step {
        if let [column] = key[..]
            && is_integer(column)
            && !column.nullable
        {
            return Ok(ranges(&key, fixed(connection, table, column, step).await?, size));
        }
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!(
                "a fixed step needs a key of one integer column that is NOT NULL; {} has {}",
                table.table,
                idents(&request.key)
            ),
        )
        .hint("leave step out: ranges are then balanced by the table's statistics"));
    }
    if size.bytes < WORTH_CUTTING || !samples || !key.iter().all(|c| can_cut(c)) {
        return Ok(whole);
    }
    let wanted = (size.bytes.div_ceil(request.max_slice_bytes.max(1)))
        .max(request.min_slices as u64)
        .min(MAX_SLICES) as usize;
    if wanted < 2 {
        return Ok(whole);
    }
    let bounds = match histogram(connection, table, &key, wanted).await? {
        Some(bounds) => bounds,
        None => sampled(connection, table, &key, wanted, size).await?,
    };
    if bounds.is_empty() {
        return Ok(whole);
    }
    Ok(ranges(&key, bounds, size))
}

/// How the rows of a key's ranges are ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// As the column's type and collation say.
    Own,
    /// As the database's collation says.
    Database,
    /// By the bytes of the column's text.
    Bytes,
}

impl Order {
    /// What stands for a column, whose type prints so, where its order counts.
    pub(crate) fn term(self, name: &str, type_name: &str) -> String {
        let ty = unmodified(type_name).unwrap_or_default();
        match (self, ty.as_str()) {
            (Order::Own, _) => name.to_string(),
            (Order::Database, _) => format!("{name} COLLATE pg_catalog.\"default\""),
            (Order::Bytes, "text" | "character varying") => format!("{name} COLLATE \"C\""),
            // A cast would strip the blanks.
            (Order::Bytes, "character" | "bpchar") => {
                format!("pg_catalog.textin(pg_catalog.bpcharout({name})) COLLATE \"C\"")
            }
            (Order::Bytes, _) => {
                let column = Column::new("", ColumnType::Native).with_source_type(type_name);
                format!("{} COLLATE \"C\"", text_expression(name, &column))
            }
        }
    }
}

/// Whether the database's own collation goes by bytes. Before 15 a database has no provider: it is the C library, whose
/// C.UTF-8 goes by code points, as UTF-8 does.
const DATABASE: &str = "(SELECT CASE coalesce(pg_catalog.to_jsonb(d) ->> 'datlocprovider', 'c') WHEN 'b' THEN true \
    WHEN 'c' THEN d.datcollate IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8') ELSE false END AS bytes \
    FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()) d";

/// Types of the server's own, besides those of which other engines have the same order, that it orders the same
/// everywhere.
const OF_EVERY_SERVER: [&str; 9] = [
    "boolean",
    "real",
    "double precision",
    "inet",
    "cidr",
    "macaddr",
    "interval",
    "oid",
    "time with time zone",
];

/// How some columns of a table order their values.
pub(super) struct Orders {
    /// Those whose own order is that of the bytes of their texts.
    pub(super) by_bytes: Vec<String>,
    /// Those that follow the database's collation.
    pub(super) by_default: Vec<String>,
}

impl Orders {
    /// Of columns that are still to be made.
    async fn to_be_made(connection: &Connection, columns: &[String]) -> Result<Orders> {
        let row = connection
            .query_one(&format!("SELECT d.bytes FROM {DATABASE}"), &[])
            .await;
        let row = row.map_err(|e| connection.error(e, "reading the database's collation"))?;
        Ok(Orders {
            by_bytes: match row.get(0) {
                true => columns.to_vec(),
                false => Vec::new(),
            },
            by_default: columns.to_vec(),
        })
    }

    pub(super) async fn of(connection: &Connection, oid: u32, columns: &[String]) -> Result<Orders> {
        // 100 is the database's own collation, 950 "C", 951 "POSIX", 962 ucs_basic, 811 pg_c_utf8 (pg_collation.dat).
        let row = connection
            .query_one(
                &format!(
                    "SELECT ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 \
                       AND a.attname::text = ANY ($2) AND (a.attcollation IN (950, 951, 962, 811) OR a.attcollation = 100 AND d.bytes)), \
                     ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 \
                       AND a.attname::text = ANY ($2) AND a.attcollation = 100) FROM {DATABASE}"
                ),
                &[&oid, &columns],
            )
            .await
            .map_err(|e| connection.error(e, "reading the table's collations"))?;
        Ok(Orders {
            by_bytes: row.get(0),
            by_default: row.get(1),
        })
    }
}

/// The order of texts that follow the database's collation: which one, whose, and in which version. `None` before 15,
/// where the version of the C library's is not told.
async fn text_order(connection: &Connection) -> Result<Option<String>> {
    if connection.version() < 150_000 {
        return Ok(None);
    }
    connection
        .query_one(
            "SELECT pg_catalog.concat_ws(' ', d.datlocprovider, d.datcollate, \
               pg_catalog.to_jsonb(d) ->> 'daticulocale', pg_catalog.to_jsonb(d) ->> 'datlocale', \
               pg_catalog.to_jsonb(d) ->> 'daticurules', pg_catalog.pg_encoding_to_char(d.encoding), v.version) \
             FROM pg_catalog.pg_database d, pg_catalog.pg_database_collation_actual_version(d.oid) AS v(version) \
             WHERE d.datname = pg_catalog.current_database() AND v.version IS NOT NULL \
             UNION ALL SELECT NULL ORDER BY 1 LIMIT 1",
            &[],
        )
        .await
        .map(|row| row.get(0))
        .map_err(|e| connection.error(e, "reading the database's collation"))
}

/// How keys compare some columns of a table. `utf8` says whether texts are UTF-8 there: by other bytes they may have another
/// order.
pub(super) async fn collations(
    connection: &Connection,
    utf8: bool,
    table: &TableId,
    default_schema: &str,
    columns: &[Column],
) -> Result<Vec<Collation>> {
    let described = catalog::find(connection, table, default_schema).await?;
    // What is there may be stored as another type than it travels; uuids have one order as texts, too.
    let there = |c: &Column| {
        described
            .as_ref()
            .and_then(|d| d.schema.column(&c.name))
            .unwrap_or(c)
            .clone()
    };
    let columns: Vec<Column> = columns
        .iter()
        .map(|c| if c.ty == ColumnType::Uuid { c.clone() } else { there(c) })
        .collect();
    let is_text = |c: &Column| {
        matches!(
            c.ty,
            ColumnType::Text { .. } | ColumnType::Char { .. } | ColumnType::Native
        )
    };
    let own = |c: &Column| {
        let name = c.source_type.as_deref().and_then(unmodified)?;
        OF_EVERY_SERVER
            .into_iter()
            .find(|known| *known == name)
            .map(KeyOrder::Values)
    };
    let mut found: Vec<Collation> = columns.iter().map(|c| Collation::of(&c.ty)).collect();
    for (column, collation) in columns.iter().zip(&mut found) {
        if collation.order == KeyOrder::Unknown {
            collation.order = own(column).unwrap_or_default();
        }
    }
    if !columns.iter().any(is_text) {
        return Ok(found);
    }
    let names: Vec<String> = columns.iter().map(|c| c.name.clone()).collect();
    let (orders, mut foldings) = match &described {
        Some(described) => (
            Orders::of(connection, described.oid, &names).await?,
            foldings(connection, described.oid, &names).await?,
        ),
        None => (Orders::to_be_made(connection, &names).await?, BTreeMap::new()),
    };
    let default = text_order(connection).await?;
    for (column, collation) in columns.iter().zip(&mut found) {
        let printed = match (&described, &column.ty) {
            (Some(_), _) => column.source_type.as_deref().and_then(unmodified),
            // The name of its type is still the other end's.
            (None, ColumnType::Text { .. }) => Some("text".into()),
            (None, ColumnType::Char { .. }) => Some("bpchar".into()),
            (None, _) => None,
        };
        collation.folding = foldings.remove(&column.name).unwrap_or_default();
        let padded = match printed.as_deref() {
            Some("text" | "character varying") => "",
            // Blanks at the end do not count.
            Some("bpchar") => " padded",
            // Others may look like texts and have an order of their own.
            _ => continue,
        };
        let own = |name: &str| KeyOrder::Own(format!("postgresql {name}{padded}"));
        collation.order = match &column.name {
            name if orders.by_bytes.contains(name) && utf8 && padded.is_empty() => KeyOrder::Bytes,
            name if orders.by_bytes.contains(name) && utf8 => own("by bytes"),
            name if orders.by_default.contains(name) && !orders.by_bytes.contains(name) => {
                default.as_deref().map_or(KeyOrder::Unknown, own)
            }
            _ => KeyOrder::Unknown,
        };
    }
    Ok(found)
}

/// Which texts the columns of a table call equal, where these are others than their own: by a collation that is not
/// deterministic, as citext, or because blanks at the end do not count.
async fn foldings(connection: &Connection, oid: u32, columns: &[String]) -> Result<BTreeMap<String, Folding>> {
    const SQL: &str = "
        SELECT a.attname::text, pg_catalog.format_type(t.oid, NULL), t.typname = 'bpchar', t.typname = 'citext', c.collname::text,
               pg_catalog.concat_ws(' ', c.collprovider, c.collcollate, j ->> 'colliculocale', j ->> 'colllocale', j ->> 'collicurules')
        FROM pg_catalog.pg_attribute a
        JOIN pg_catalog.pg_type d ON d.oid = a.atttypid
        JOIN pg_catalog.pg_type t ON t.oid = COALESCE(NULLIF(d.typbasetype, 0), d.oid)
        LEFT JOIN pg_catalog.pg_collation c ON c.oid = a.attcollation AND NOT c.collisdeterministic
        LEFT JOIN LATERAL pg_catalog.to_jsonb(c) AS j ON true
        WHERE a.attrelid = $1 AND a.attname::text = ANY ($2)
          AND (t.typname IN ('bpchar', 'citext') OR c.oid IS NOT NULL)";
    let rows = connection
        .query(SQL, &[&oid, &columns])
        .await
        .map_err(|e| connection.error(e, "reading the table's collations"))?;
    let folding = |row: &tokio_postgres::Row| {
        let collation: Option<String> = row.get(4);
        let rule = match row.get(3) {
            true => Some("citext".to_string()),
            false => collation
                .as_ref()
                .map(|_| format!("postgresql {}", row.get::<_, String>(5))),
        };
        let folding = Folding {
            name: collation.unwrap_or_else(|| row.get(1)),
            blanks: row.get(2),
            letters: rule.map(|rule| Letters { rule, ascii: false }),
        };
        (row.get::<_, String>(0), folding)
    };
    Ok(rows.iter().map(folding).collect())
}

/// The condition of a range, where `name` stands for each key column; empty for a range without bounds. The literals are
/// left untyped, so that the server takes them as the columns' own types and compares in the columns' own order.
pub(super) fn condition(range: &KeyRange, name: impl Fn(&str) -> String) -> Result<String> {
    let side = |bound: &Option<Vec<String>>, operator: &str| -> Result<Option<String>> {
        let Some(values) = bound else { return Ok(None) };
        if values.len() != range.columns.len() {
            return Err(Error::bug("a key range has another number of values than columns"));
        }
        let literals: Vec<String> = values.iter().map(|v| literal(v)).collect::<Result<_>>()?;
        Ok(Some(match &range.columns[..] {
            [column] => format!("{} {operator} {}", name(column), literals[0]),
            columns => {
                let names: Vec<String> = columns.iter().map(|c| name(c)).collect();
                format!("({}) {operator} ({})", names.join(", "), literals.join(", "))
            }
        }))
    };
    let sides: Vec<String> = [side(&range.lower, ">=")?, side(&range.upper, "<")?]
        .into_iter()
        .flatten()
        .collect();
    Ok(sides.join(" AND "))
}

fn key_columns<'a>(table: &'a Described, request: &SliceRequest) -> Result<Vec<&'a Column>> {
    request
        .key
        .iter()
        .map(|k| {
            table
                .schema
                .column(k)
                .ok_or_else(|| Error::no_column(Among::Table, k, format!("key column {k} is not in {}", table.table)))
        })
        .collect()
}

/// Whether rows can be told apart by a column's order. A type of an extension has operators that an empty search path
/// does not find; another type's would be taken, with another order.
fn can_cut(column: &Column) -> bool {
    let foreign = column.ty == ColumnType::Native && column.source_type.as_ref().is_none_or(|t| t.contains('.'));
    !column.nullable && !foreign
}

fn is_integer(column: &Column) -> bool {
    matches!(column.ty, ColumnType::Int16 | ColumnType::Int32 | ColumnType::Int64)
}

/// The inner bounds of ranges, each a key.
type Bounds = Vec<Vec<String>>;

fn ranges(key: &[&Column], bounds: Bounds, size: Estimate) -> Vec<PlannedSlice> {
    let columns: Vec<String> = key.iter().map(|c| c.name.clone()).collect();
    let count = bounds.len() + 1;
    let number = match key {
        [one] if is_integer(one) => Some(shorten(&one.name)),
        _ => None,
    };
    let show = |bound: Option<&Vec<String>>, open: &str| bound.map_or(open.to_string(), |values| values.join("-"));
    let mut seen = std::collections::HashSet::new();
    (0..count)
        .map(|i| {
            let lower = (i > 0).then(|| &bounds[i - 1]);
            let upper = bounds.get(i);
            // Names go into logs and state; what people's keys hold stays out of them.
            let mut label = match &number {
                Some(name) => format!("{name}_{}_{}", show(lower, "min"), show(upper, "max")),
                None => format!("part_{:04}_of_{count:04}", i + 1),
            };
            // A column that is no key may give one bound several times.
            if !seen.insert(label.clone()) {
                label = format!("{label}_{i}");
                seen.insert(label.clone());
            }
            PlannedSlice {
                label,
                slice: Slice::Key(KeyRange {
                    columns: columns.clone(),
                    lower: lower.cloned(),
                    upper: upper.cloned(),
                }),
                rows: size.rows / count as u64,
                bytes: size.bytes / count as u64,
            }
        })
        .collect()
}

fn shorten(name: &str) -> String {
    name.chars()
        .map(|c| {
            if c.is_alphanumeric() || "-.:+".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(36)
        .collect()
}

async fn fixed(connection: &Connection, table: &Described, column: &Column, step: u64) -> Result<Bounds> {
    let name = ident(&column.name);
    let sql = format!(
        "SELECT min({name})::int8, max({name})::int8 FROM {}",
        quoted(&table.table, "")
    );
    let what = format!("finding the key range of {}", table.table);
    let found = catalog::rows(connection, &sql, &[], &what).await?;
    let Some((Some(low), Some(high))) = found
        .first()
        .map(|r| (r.get::<_, Option<i64>>(0), r.get::<_, Option<i64>>(1)))
    else {
        return Ok(Vec::new());
    };
    let step = i128::from(step.max(1));
    let (low, high) = (i128::from(low), i128::from(high));
    let inner = (high - low) / step;
    if inner >= i128::from(MAX_SLICES) {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!("a step of {step} would cut {} into {} ranges", table.table, inner + 1),
        )
        .hint(format!("give a larger step: at most {MAX_SLICES} ranges")));
    }
    Ok((1..=inner).map(|i| vec![(low + i * step).to_string()]).collect())
}

/// Bounds from the statistics, if they are fresh and fine enough; free of any reading.
async fn histogram(
    connection: &Connection,
    table: &Described,
    key: &[&Column],
    wanted: usize,
) -> Result<Option<Bounds>> {
    let [column] = key[..] else { return Ok(None) };
    if table.kind != Kind::Table {
        return Ok(None);
    }
    // Statistics of a parent without its children would cut the children badly. The count of changes reaches the view
    // late, so the table's size must be the one that ANALYZE saw, too.
    const SQL: &str = "
        SELECT s.histogram_bounds::text::text[]
        FROM pg_catalog.pg_stats s, pg_catalog.pg_stat_all_tables u, pg_catalog.pg_class c
        WHERE s.schemaname = $1 AND s.tablename = $2 AND s.attname = $3 AND NOT s.inherited
          AND u.relid = $4 AND c.oid = $4 AND NOT c.relhassubclass
          AND s.n_distinct < -0.99 AND u.n_mod_since_analyze <= c.reltuples / 20
          AND pg_catalog.pg_relation_size(c.oid)
              <= (c.relpages * 1.05 + 4) * pg_catalog.current_setting('block_size')::int";
    let schema = table.table.schema.as_deref().unwrap_or_default();
    let params: &[(&(dyn ToSql + Sync), Type)] = &[
        (&schema, Type::TEXT),
        (&table.table.name, Type::TEXT),
        (&column.name, Type::TEXT),
        (&table.oid, Type::OID),
    ];
    let what = format!("reading the statistics of {}", table.table);
    let found = catalog::rows(connection, SQL, params, &what).await?;
    let Some(all) = found.first().and_then(|r| r.get::<_, Option<Vec<String>>>(0)) else {
        return Ok(None);
    };
    let buckets = all.len().saturating_sub(1);
    if buckets < wanted * 2 {
        return Ok(None);
    }
    let bounds: Bounds = (1..wanted).map(|i| vec![all[i * buckets / wanted].clone()]).collect();
    Ok(Some(bounds))
}

/// Bounds from a sample of whole pages, cut into equal parts by the server, in the order its own index has.
async fn sampled(
    connection: &Connection,
    table: &Described,
    key: &[&Column],
    wanted: usize,
    size: Estimate,
) -> Result<Bounds> {
    let names: Vec<&str> = key.iter().map(|c| c.name.as_str()).collect();
    let order = idents(&names);
    let shown: Vec<String> = names.iter().map(|n| format!("{}::text", ident(n))).collect();
    let percent = (SAMPLE_PAGES * 100.0 / size.pages.max(1) as f64).min(100.0);
    let sql = format!(
        "SELECT ARRAY[{}] FROM (\
            SELECT {order}, lag(part) OVER (ORDER BY {order}) AS before, part FROM (\
                SELECT {order}, ntile($1) OVER (ORDER BY {order}) AS part \
                FROM {} TABLESAMPLE SYSTEM ($2) REPEATABLE (7)) cut) parts \
         WHERE part <> before ORDER BY {order}",
        shown.join(", "),
        quoted(&table.table, ""),
    );
    let parts = wanted as i32;
    let what = format!("sampling {}", table.table);
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&parts, Type::INT4), (&(percent as f32), Type::FLOAT4)];
    let found = catalog::rows(connection, &sql, params, &what).await?;
    Ok(found.iter().map(|r| r.get::<_, Vec<String>>(0)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_have_no_gap() {
        let id = Column::new("id", ColumnType::Int64);
        let size = Estimate {
            rows: 900,
            bytes: 3000,
            pages: 3,
        };
        let all = ranges(&[&id], vec![vec!["10".into()], vec!["20".into()]], size);
        let labels: Vec<&str> = all.iter().map(|s| s.label.as_str()).collect();
        assert_eq!(labels, ["id_min_10", "id_10_20", "id_20_max"]);
        let Slice::Key(first) = &all[0].slice else { panic!() };
        let Slice::Key(second) = &all[1].slice else { panic!() };
        assert_eq!((first.lower.as_ref(), &first.upper), (None, &second.lower));
        assert_eq!(condition(second, ident).unwrap(), r#""id" >= '10' AND "id" < '20'"#);
        assert_eq!(condition(&KeyRange::default(), ident).unwrap(), "");
    }

    #[test]
    fn composite_keys_compare_as_rows() {
        let range = KeyRange {
            columns: vec!["a".into(), "B".into()],
            lower: Some(vec!["it's".into(), "2".into()]),
            upper: None,
        };
        assert_eq!(condition(&range, ident).unwrap(), r#"("a", "B") >= ('it''s', '2')"#);
        let short = KeyRange {
            lower: Some(vec!["1".into()]),
            ..range
        };
        assert!(condition(&short, ident).is_err());
    }

    #[test]
    fn values_of_keys_stay_out_of_labels() {
        let column = |name: &str, ty: ColumnType| Column::new(name, ty);
        let text = column("mail", ColumnType::Text { max: None });
        let (day, number) = (column("born", ColumnType::Date), column("n", ColumnType::Int64));
        let labels = |key: &[&Column], bounds: [&[&str]; 2]| -> Vec<String> {
            let owned = |b: &&[&str]| b.iter().map(|v| v.to_string()).collect();
            let all = ranges(key, bounds.iter().map(owned).collect(), Estimate::default());
            all.into_iter().map(|s| s.label).collect()
        };
        let parts = ["part_0001_of_0003", "part_0002_of_0003", "part_0003_of_0003"];
        assert_eq!(labels(&[&text], [&["anna@x.org"], &["otto@x.org"]]), parts);
        assert_eq!(labels(&[&day], [&["1970-01-01"], &["1980-01-01"]]), parts);
        assert_eq!(labels(&[&number, &text], [&["1", "anna"], &["2", "otto"]]), parts);
        assert_eq!(labels(&[&number], [&["7"], &["7"]]), ["n_min_7", "n_7_7", "n_7_max"]);
    }

    #[test]
    fn labels_stay_apart() {
        let n = Column::new("n", ColumnType::Int64);
        let all = ranges(&[&n], vec![vec!["7".into()]; 4], Estimate::default());
        let labels: std::collections::HashSet<_> = all.iter().map(|s| &s.label).collect();
        assert_eq!(labels.len(), 5);
    }
}
