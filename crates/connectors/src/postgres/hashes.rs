//! Hashes of blocks of rows, computed by the server.
//!
//! The *fast* form is the server's own hash of a whole record, 64 bits. It is the same on every server from 14 on with
//! the same byte order. Two weaknesses of it are mended here. A record's hash is a sum over its columns
//! (`hash_record_extended` in rowtypes.c), so that values which trade places between rows would leave the sum of their
//! block as it was: each row is hashed with its key as the seed. And the hash of 64-bit integers and times begins with
//! the exclusive or of their halves (`hashint8extended` in hashfunc.c): such values are hashed by their bytes.
//!
//! The fast form is blind to what equality is blind to: the scale of a numeric (`1.0`, `1.00`, in jsonb and ranges
//! too) and the sign of a float's zero. Types whose equality is blind to more (intervals) or that have no hash (json,
//! xml, point and their like), and what catalogs number differently (enums, user-made types), have no fast form; texts
//! are hashed by their bytes whatever their collation, arrays together with their dimensions.
//!
//! The *canonical* form is that of [`synctool_core::blocks`]. Its bytes are made of casts that are exact in every
//! version, and its MD5 is cut into halves as bits, whose 64-bit sums the server keeps exactly. Between two servers it is
//! hashed by the server's own hash of texts (`hashtextextended` in hashfunc.c), with one seed for each half: an MD5
//! costs the server as much as all the rest.

use super::client::Server;
use super::query::{Query, Text, as_text, canonical, is_padded};
use super::source::PostgresSource;
use super::types::unmodified;
use async_trait::async_trait;
use std::collections::BTreeMap;
use synctool_core::blocks::{Block, BlockHashes, Blocks, Field, HashRequest, RowForm, RowHash, is_long};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::ReadSpec;
use synctool_core::schema::{Column, ColumnType};
use tokio_postgres::Row;

/// Key ranges of one statement: enough that statements are few, few enough that they are planned in no time.
const RANGES: usize = 200;

#[async_trait]
impl BlockHashes for PostgresSource {
    fn fast_form(&self, read: &ReadSpec, compared: &[usize]) -> Option<String> {
        // Known as soon as anything was asked of the server.
        let probe = self.database.server()?.record_hash.as_ref()?;
        let types: Vec<String> = compared
            .iter()
            .map(|&place| fast_type(&read.columns.get(place)?.column))
            .collect::<Option<_>>()?;
        Some(format!("postgresql hash_record_extended {probe} {}", types.join(",")))
    }

    fn text_form(&self) -> Option<String> {
        let probe = self.database.server()?.text_hash.as_ref()?;
        Some(format!("postgresql hashtextextended {probe}"))
    }

    fn canonical(&self, stored: &ColumnType, agreed: &ColumnType) -> bool {
        value("", &Column::new("", stored.clone()), agreed, 0).is_some()
    }

    async fn blocks(&self, request: &HashRequest) -> Result<BTreeMap<i64, Block>> {
        let session = self.hashing().await?;
        let version = session.version();
        let scan = Scan::new(self, request, version)?;
        let sql = scan.blocks()?;
        let rows = scan.run(&session, &sql).await?;
        self.check_snapshot(&session, &request.read).await?;
        PostgresSource::end_reading(session).await?;
        let mut blocks = BTreeMap::new();
        for row in &rows {
            let id: i64 = row.get::<_, Option<i64>>(0).ok_or_else(|| no_key(request))?;
            let block = Block {
                rows: row.get::<_, i64>(1) as u64,
                high: modular(row.get(2))?,
                low: modular(row.get(3))?,
            };
            blocks.insert(id, block);
        }
        Ok(blocks)
    }

    async fn rows(&self, request: &HashRequest, blocks: &[i64]) -> Result<Vec<RowHash>> {
        let session = self.hashing().await?;
        let scan = Scan::new(self, request, session.version())?;
        let mut found = Vec::new();
        let keys = request.key.len();
        for sql in scan.rows(blocks)? {
            for row in scan.run(&session, &sql).await? {
                let key = request.key.iter().enumerate();
                let key = key.map(|(i, f)| {
                    row.get::<_, Option<String>>(i)
                        .map(|v| canonical(&request.read.columns[f.place].column.ty, v))
                });
                found.push(RowHash {
                    key: key.collect(),
                    hash: hash_of(&row, keys, &request.form)?,
                });
            }
        }
        self.check_snapshot(&session, &request.read).await?;
        PostgresSource::end_reading(session).await?;
        Ok(found)
    }
}

impl PostgresSource {
    /// A reading session for statements that compute more than they read.
    async fn hashing(&self) -> Result<super::Connection> {
        let session = self.reading(false).await?;
        // The time goes into functions that are compiled already.
        session
            .batch_execute("SET LOCAL jit = off")
            .await
            .map_err(|e| session.error(e, "setting up the session"))?;
        Ok(session)
    }
}

fn no_key(request: &HashRequest) -> Error {
    Error::bug(format!(
        "a row of {} has no key to find its block by",
        request.read.table
    ))
}

/// A sum of signed halves as the sum of unsigned ones, modulo 2^64. No table has the rows that an i128 would not hold.
fn modular(sum: Option<&str>) -> Result<u64> {
    let sum: i128 = sum
        .unwrap_or("0")
        .parse()
        .map_err(|_| Error::bug("a sum of hashes is no number"))?;
    Ok(sum as u64)
}

fn hash_of(row: &Row, at: usize, form: &RowForm) -> Result<u128> {
    match form {
        RowForm::Canonical => u128::from_str_radix(row.get(at), 16).map_err(|_| Error::bug("an MD5 is no number")),
        RowForm::Fast(_) => Ok(half(row, at)),
        RowForm::Text(_) => Ok(half(row, at) << 64 | half(row, at + 1)),
    }
}

fn half(row: &Row, at: usize) -> u128 {
    u128::from(row.get::<_, i64>(at) as u64)
}

/// The two halves of a text's hash, by seeds of their own.
fn halves(text: &str) -> [String; 2] {
    [1, 2].map(|seed| format!("hashtextextended({text}, {seed})"))
}

/// A scan of the rows of a request.
struct Scan<'a> {
    request: &'a HashRequest,
    query: Query<'a>,
    /// Whether the rows are those of one table, so that its columns can be named as they are.
    direct: bool,
    version: u32,
    utf8: bool,
}

impl<'a> Scan<'a> {
    fn new(source: &'a PostgresSource, request: &'a HashRequest, version: u32) -> Result<Self> {
        let read = &request.read;
        for field in request.compared.iter().chain(&request.key) {
            if field.place >= read.columns.len() {
                return Err(Error::bug("a hashed column is not among those read"));
            }
        }
        Ok(Scan {
            request,
            query: Query::new(read, source.schema()),
            direct: read.joins.is_empty() && read.group_by.is_empty() && read.columns.iter().all(|c| c.term.is_none()),
            version,
            utf8: source.database.server().is_none_or(|Server { utf8, .. }| *utf8),
        })
    }

    async fn run(&self, session: &super::Connection, sql: &Text) -> Result<Vec<Row>> {
        let what = format!("hashing {}", self.request.read.table);
        session
            .query(sql.sql(), &[])
            .await
            .map_err(|e| sql.error(session, e, &what))
    }

    /// A column's value.
    fn column(&self, place: usize) -> String {
        match self.direct {
            true => self.query.term(&self.request.read.columns[place].term()),
            false => format!("x.c{place}"),
        }
    }

    /// `SELECT list` over the rows of the slice, those that meet more conditions on rows (`inside`) and on what is
    /// selected of them (`outside`).
    fn statement(&self, out: &mut Text, list: &str, inside: &[String], outside: Option<String>) -> Result<()> {
        let mut conditions = self.query.condition_of(&self.request.slice)?;
        conditions.extend_from_slice(inside);
        out.push(&format!("SELECT {list}"));
        if self.direct {
            conditions.extend(outside);
            return self.query.tail(out, &conditions);
        }
        out.push(" FROM (");
        self.query.write(out, &conditions)?;
        // Expressions are computed once, not wherever they are used.
        out.push(" OFFSET 0) AS x");
        if let Some(outside) = outside {
            out.push(&format!(" WHERE {outside}"));
        }
        Ok(())
    }

    fn blocks(&self) -> Result<Text> {
        let block = self.block()?;
        let mut out = Text::default();
        let (sums, hash) = match &self.request.form {
            RowForm::Fast(signature) => ("NULL::text, sum(h.h)::text".into(), self.fast(signature)?),
            RowForm::Text(_) => {
                let [high, low] = halves("h.h");
                (
                    format!("sum({high})::text, sum({low})::text"),
                    self.form(&self.request.compared)?,
                )
            }
            RowForm::Canonical => (
                "sum(h.h::bit(64)::int8)::text, sum((h.h << 64)::bit(64)::int8)::text".to_string(),
                format!("('x' || {})::bit(128)", self.md5()?),
            ),
        };
        // Computed below the grouping: a third cheaper than within it.
        out.push(&format!("SELECT h.k, count(*), {sums} FROM ("));
        self.statement(&mut out, &format!("{block} AS k, {hash} AS h"), &[], None)?;
        out.push(" OFFSET 0) AS h GROUP BY 1");
        Ok(out)
    }

    /// The statements that give every row of some blocks.
    fn rows(&self, blocks: &[i64]) -> Result<Vec<Text>> {
        if blocks.is_empty() {
            return Ok(Vec::new());
        }
        let mut list: Vec<String> = self
            .request
            .key
            .iter()
            .map(|f| as_text(&self.column(f.place), &self.request.read.columns[f.place].column))
            .collect();
        list.push(match &self.request.form {
            RowForm::Fast(signature) => self.fast(signature)?,
            RowForm::Text(_) => halves(&self.form(&self.request.compared)?).join(", "),
            RowForm::Canonical => self.md5()?,
        });
        let list = list.join(", ");
        match self.request.blocks {
            Blocks::Divide { width } => {
                let key = self
                    .query
                    .term(&self.request.read.columns[self.first_key()?.place].term());
                let ranges = ranges(blocks, width, &key);
                ranges
                    .chunks(RANGES)
                    .map(|some| {
                        let mut out = Text::default();
                        self.statement(&mut out, &list, &[format!("({})", some.join(" OR "))], None)?;
                        Ok(out)
                    })
                    .collect()
            }
            Blocks::Spread { .. } => {
                let numbers: Vec<String> = blocks.iter().map(i64::to_string).collect();
                let among = format!("{} = ANY ('{{{}}}'::int8[])", self.block()?, numbers.join(","));
                let mut out = Text::default();
                self.statement(&mut out, &list, &[], Some(among))?;
                Ok(vec![out])
            }
        }
    }

    fn first_key(&self) -> Result<&'a Field> {
        self.request
            .key
            .first()
            .ok_or_else(|| Error::bug("blocks of rows without a key"))
    }

    /// The number of a row's block.
    fn block(&self) -> Result<String> {
        match self.request.blocks {
            Blocks::Divide { width } if width > 0 => {
                let key = format!("({})::int8", self.column(self.first_key()?.place));
                // The server divides towards zero.
                Ok(format!(
                    "CASE WHEN {key} >= 0 THEN {key} / {width} ELSE ({key} + 1) / {width} - 1 END"
                ))
            }
            Blocks::Spread { count } if count > 0 => {
                let key = &self.request.key;
                let number = match &self.request.form {
                    RowForm::Fast(_) => format!("({} & 4294967295)", self.record_hash(key, "0")),
                    RowForm::Text(_) => format!("(hashtextextended({}, 0) & 4294967295)", self.form(key)?),
                    RowForm::Canonical => format!("('x' || left({}, 8))::bit(32)::int8", self.md5_of(key)?),
                };
                Ok(format!("({number} % {count})"))
            }
            _ => Err(Error::bug("blocks of no width")),
        }
    }

    /// The server's own hash of a row, bound to its key.
    fn fast(&self, signature: &str) -> Result<String> {
        if self.version < 140_000 {
            return Err(Error::bug(format!("this server has no hash of records ({signature})")));
        }
        let columns = &self.request.read.columns;
        let seed = match &self.request.key[..] {
            [only] if columns[only.place].column.ty.is_integer() => format!("({})::int8", self.column(only.place)),
            key => self.record_hash(key, "0"),
        };
        Ok(self.record_hash(&self.request.compared, &seed))
    }

    fn record_hash(&self, fields: &[Field], seed: &str) -> String {
        let columns = &self.request.read.columns;
        let fields: Vec<String> = fields
            .iter()
            .map(|f| fast_value(&self.column(f.place), &columns[f.place].column))
            .collect();
        format!("hash_record_extended(ROW({}), {seed})", fields.join(", "))
    }

    fn md5(&self) -> Result<String> {
        self.md5_of(&self.request.compared)
    }

    /// The MD5 of the canonical form of some columns, as text.
    fn md5_of(&self, fields: &[Field]) -> Result<String> {
        let form = self.form(fields)?;
        Ok(match self.utf8 {
            true => format!("md5({form})"),
            false => format!("md5(convert_to({form}, 'UTF8'))"),
        })
    }

    /// The canonical form of some columns, a text that is compared by its bytes.
    fn form(&self, fields: &[Field]) -> Result<String> {
        let fields: Vec<String> = fields.iter().map(|f| self.field(f)).collect::<Result<_>>()?;
        // One buffer for a row, instead of a longer copy per field. No function takes more than 100 arguments.
        let parts = fields.chunks(33).map(|some| format!("concat({})", some.join(", ")));
        let form = match fields.is_empty() {
            true => "''".to_string(),
            false => parts.collect::<Vec<_>>().join(" || "),
        };
        Ok(format!("({form}) COLLATE \"C\""))
    }

    /// A column's field in the canonical form, as arguments of `concat` (three at most), which leaves NULL out.
    fn field(&self, field: &Field) -> Result<String> {
        let column = &self.request.read.columns[field.place].column;
        let value = value(&self.column(field.place), column, &field.ty, self.version).ok_or_else(|| {
            Error::new(
                code::UNSUPPORTED,
                format!(
                    "column {} of type {} has no canonical form as {} here",
                    column.name, column.ty, field.ty
                ),
            )
        })?;
        // Whatever the plan says of NULL, the table may have changed since. A composite of NULLs is called NULL, and its
        // text is not.
        let mut is_null = format!("{} IS NULL", self.column(field.place));
        if column.ty == ColumnType::Native {
            is_null.push_str(&format!(" AND {value} IS NULL"));
        }
        let end = |end: &str| format!("CASE WHEN {is_null} THEN '~' ELSE '{end}' END");
        Ok(match (is_long(&field.ty), self.utf8) {
            (false, _) => format!("{value}, {}", end(",")),
            (true, true) => format!("octet_length({value}), {}, {value}", end(":")),
            (true, false) => format!("octet_length(convert_to({value}, 'UTF8')), {}, {value}", end(":")),
        })
    }
}

/// The keys of some blocks as conditions, neighbours together.
fn ranges(blocks: &[i64], width: i64, key: &str) -> Vec<String> {
    let mut sorted = blocks.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut spans: Vec<(i64, i64)> = Vec::new();
    for block in sorted {
        match spans.last_mut() {
            Some((_, last)) if *last == block - 1 => *last = block,
            _ => spans.push((block, block)),
        }
    }
    spans
        .into_iter()
        .map(|(first, last)| {
            let lower = i128::from(first) * i128::from(width);
            let upper = (i128::from(last) + 1) * i128::from(width);
            (lower, upper)
        })
        // Where the integers end, so do the keys.
        .filter(|(lower, upper)| *lower <= i128::from(i64::MAX) && *upper > i128::from(i64::MIN))
        .map(|(lower, upper)| {
            let lower = i64::try_from(lower).ok().map(|n| format!("{key} >= '{n}'"));
            let upper = i64::try_from(upper).ok().map(|n| format!("{key} < '{n}'"));
            let sides: Vec<String> = lower.into_iter().chain(upper).collect();
            match sides.is_empty() {
                true => format!("({key} IS NOT NULL)"),
                false => format!("({})", sides.join(" AND ")),
            }
        })
        .collect()
}

/// Whether texts of this type are compared by a collation.
fn is_text(name: &str) -> bool {
    matches!(name, "text" | "bpchar" | "name")
}

/// A column's type in the signature of the fast form.
fn fast_type(column: &Column) -> Option<String> {
    use ColumnType as T;
    let name = match &column.ty {
        T::Bool => "boolean",
        T::Int16 => "smallint",
        T::Int32 => "integer",
        T::Int64 => "bigint",
        T::Decimal { .. } | T::Numeric => "numeric",
        T::Float32 => "real",
        T::Float64 => "double precision",
        T::Date => "date",
        T::Time => "time",
        T::TimeTz => "timetz",
        T::Timestamp => "timestamp",
        T::TimestampTz => "timestamptz",
        T::Text { .. } | T::Char { .. } if is_padded(column) => "bpchar",
        T::Text { .. } => "text",
        T::Bytes => "bytea",
        T::Uuid => "uuid",
        T::Jsonb => "jsonb",
        T::Native => return native_fast_type(column.source_type.as_deref()?),
        _ => return None,
    };
    Some(name.into())
}

/// The same for types that have no name of their own with us: built-in ones with a hash, and arrays of such.
fn native_fast_type(printed: &str) -> Option<String> {
    const HASHED: &[&str] = &[
        "inet",
        "cidr",
        "macaddr",
        "macaddr8",
        "oid",
        "pg_lsn",
        "xid8",
        "\"char\"",
        "int4range",
        "int8range",
        "numrange",
        "daterange",
        "tsrange",
        "tstzrange",
        "int4multirange",
        "int8multirange",
        "nummultirange",
        "datemultirange",
        "tsmultirange",
        "tstzmultirange",
    ];
    const IN_ARRAYS: &[&str] = &[
        "boolean",
        "smallint",
        "integer",
        "bigint",
        "numeric",
        "real",
        "double precision",
        "date",
        "time without time zone",
        "timestamp without time zone",
        "timestamp with time zone",
        "text",
        "character varying",
        "bpchar",
        "name",
        "bytea",
        "uuid",
        "jsonb",
    ];
    let element = printed.strip_suffix("[]");
    let name = unmodified(element.unwrap_or(printed))?;
    let known = HASHED.contains(&name.as_str()) || element.is_some() && IN_ARRAYS.contains(&name.as_str());
    known.then(|| match element {
        Some(_) => format!("{name}[]"),
        None => name,
    })
}

/// A column in the record that is hashed.
fn fast_value(expression: &str, column: &Column) -> String {
    let Some(name) = fast_type(column) else {
        return expression.to_string();
    };
    // By their bytes, which the server's hash takes whole.
    if let Some(send) = bytes_of_long(&name) {
        return format!("pg_catalog.{send}({expression})");
    }
    match name.strip_suffix("[]") {
        // The hash of an array is that of its elements.
        Some("text" | "character varying" | "bpchar" | "name") => {
            format!("{expression} COLLATE \"C\", array_dims({expression})")
        }
        Some(_) => format!("{expression}, array_dims({expression})"),
        // By its bytes: other collations may hold different texts for equal.
        None if is_text(&name) => format!("{expression} COLLATE \"C\""),
        None => expression.to_string(),
    }
}

/// The function that gives the bytes of a type made of 64-bit numbers; `None` for other types.
fn bytes_of_long(name: &str) -> Option<&'static str> {
    const IN_ARRAYS: &[&str] = &[
        "bigint",
        "time without time zone",
        "timestamp without time zone",
        "timestamp with time zone",
    ];
    Some(match name {
        "bigint" => "int8send",
        "time" => "time_send",
        "timetz" => "timetz_send",
        "timestamp" => "timestamp_send",
        "timestamptz" => "timestamptz_send",
        "pg_lsn" => "pg_lsn_send",
        "xid8" => "xid8send",
        "int8range" | "tsrange" | "tstzrange" => "range_send",
        "int8multirange" | "tsmultirange" | "tstzmultirange" => "multirange_send",
        _ if name.strip_suffix("[]").is_some_and(|e| IN_ARRAYS.contains(&e)) => "array_send",
        _ => return None,
    })
}

/// What prints as a value in the canonical form, and is text where that form is long; NULL for NULL. `None` where there
/// is none.
fn value(x: &str, stored: &Column, agreed: &ColumnType, version: u32) -> Option<String> {
    use ColumnType as T;
    Some(match (&stored.ty, agreed) {
        (T::Bool, T::Bool) => format!("{x}::int4"),
        (from, T::Bool) if from.is_integer() => x.to_string(),
        (from, to) if from.is_integer() && to.is_integer() => x.to_string(),
        (T::Decimal { scale, .. }, to) if *scale <= 0 && to.is_integer() => x.to_string(),
        (T::Decimal { scale: from, .. }, T::Decimal { scale: to, .. }) if (*from).max(0) == (*to).max(0) => {
            x.to_string()
        }
        (T::Decimal { scale: from, .. }, T::Decimal { scale: to, .. }) if from < to => format!("round({x}, {to})"),
        (from, T::Decimal { scale, .. }) if from.is_integer() => format!("round({x}::numeric, {})", (*scale).max(0)),
        (T::Decimal { .. } | T::Numeric, T::Decimal { scale, .. }) => {
            // A value with more digits equals none that has fewer; the other end cannot hold it.
            let scale = (*scale).max(0);
            format!("CASE WHEN {x} = round({x}, {scale}) THEN round({x}, {scale}) ELSE {x} END")
        }
        (from, T::Numeric) if from.is_integer() => x.to_string(),
        (T::Decimal { scale, .. }, T::Numeric) if *scale <= 0 => x.to_string(),
        (T::Decimal { .. } | T::Numeric, T::Numeric) if version >= 130_000 => format!("trim_scale({x})"),
        (T::Decimal { .. } | T::Numeric, T::Numeric) => {
            format!("CASE WHEN {x}::text LIKE '%.%' THEN rtrim(rtrim({x}::text, '0'), '.') ELSE {x}::text END")
        }
        (T::Date, T::Date) => {
            format!("CASE WHEN isfinite({x}) THEN ({x} - '1970-01-01'::date)::text ELSE {x}::text END")
        }
        (T::Time, T::Time) => format!("(date_part('epoch', {x}) * 1000000)::int8"),
        (T::Timestamp, T::Timestamp) => microseconds(x, "timestamp"),
        (T::TimestampTz, T::TimestampTz) => microseconds(x, "timestamptz"),
        (T::Uuid, T::Uuid) => format!("encode(uuid_send({x}), 'hex')"),
        (T::Text { .. } | T::Char { .. }, T::Uuid) => {
            format!("lower(replace({}, '-', '') COLLATE \"C\")", as_text(x, stored))
        }
        (T::Bytes, T::Bytes) => format!("encode({x}, 'hex')"),
        (T::Text { .. } | T::Char { .. }, T::Char { .. }) => format!("rtrim({}, ' ')", as_text(x, stored)),
        (T::Text { .. } | T::Char { .. } | T::Json | T::Jsonb | T::Native, T::Text { .. }) => as_text(x, stored),
        (T::TimeTz, T::TimeTz)
        | (T::Interval, T::Interval)
        | (T::Json, T::Json)
        | (T::Jsonb, T::Jsonb)
        | (T::Native, T::Native) => as_text(x, stored),
        // Adding zero takes the sign off a zero.
        (T::Float32, T::Float32) => {
            format!("CASE WHEN {x} = 'NaN' THEN 'NaN' ELSE encode(float4send({x} + '0'::float4), 'hex') END")
        }
        (T::Float64, T::Float64) => {
            format!("CASE WHEN {x} = 'NaN' THEN 'NaN' ELSE encode(float8send({x} + '0'::float8), 'hex') END")
        }
        _ => return None,
    })
}

/// Microseconds since 1970. Between these years a double holds the seconds so exactly that rounding gives the right
/// microsecond; outside days and times of day do, at a higher price.
fn microseconds(x: &str, ty: &str) -> String {
    let zone = if ty == "timestamptz" { "+00" } else { "" };
    format!(
        "CASE WHEN {x} >= '1902-01-01 00:00:00{zone}'::{ty} AND {x} < '2100-01-01 00:00:00{zone}'::{ty} \
         THEN (date_part('epoch', {x}) * 1000000)::int8::text \
         WHEN isfinite({x}) THEN (({x}::date - '1970-01-01'::date)::int8 * 86400000000 \
         + (date_part('epoch', {x}::time) * 1000000)::int8)::text ELSE {x}::text END"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_ranges_of_keys() {
        assert_eq!(
            ranges(&[4, -1, 3, 0], 10, "k"),
            ["(k >= '-10' AND k < '10')", "(k >= '30' AND k < '50')"]
        );
        assert_eq!(
            ranges(&[-1], i64::MAX, "k"),
            ["(k >= '-9223372036854775807' AND k < '0')"]
        );
        assert_eq!(ranges(&[-2], i64::MAX, "k"), ["(k < '-9223372036854775807')"]);
        assert!(ranges(&[2, -3, i64::MIN], i64::MAX, "k").is_empty(), "no key is there");
        assert_eq!(ranges(&[i64::MAX / 2], 2, "k"), ["(k >= '9223372036854775806')"]);
    }

    #[test]
    fn only_types_with_one_hash_everywhere_are_fast() {
        let native = |name: &str| fast_type(&Column::new("c", ColumnType::Native).with_source_type(name));
        assert_eq!(native("text[]").as_deref(), Some("text[]"));
        assert_eq!(native("numeric(12,2)[]").as_deref(), Some("numeric[]"));
        assert_eq!(native("int4range").as_deref(), Some("int4range"));
        for none in [
            "public.mood",
            "point",
            "xml",
            "json[]",
            "tsvector",
            "money",
            "public.mood[]",
            "interval[]",
            "bit(3)",
        ] {
            assert_eq!(native(none), None, "{none}");
        }
        for ty in [ColumnType::Json, ColumnType::Interval] {
            assert_eq!(fast_type(&Column::new("c", ty)), None);
        }
        let padded = Column::new("c", ColumnType::Char { length: 3 });
        assert_eq!(fast_value("c", &padded), "c COLLATE \"C\"");
    }

    #[test]
    fn sums_are_modular() {
        assert_eq!(modular(Some("-1")).unwrap(), u64::MAX);
        assert_eq!(modular(Some("18446744073709551617")).unwrap(), 1);
        assert_eq!(modular(None).unwrap(), 0);
    }
}
