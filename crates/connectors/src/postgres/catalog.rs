//! What the catalog says of tables: columns, types, keys, sizes.

use super::Connection;
use super::sql::{ident, table as quoted};
use postgres_types::{ToSql, Type};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::source::TableInfo;
use tokio_postgres::Row;

/// A table as the catalog describes it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its number.
    pub oid: u32,
    /// Its name, always with its schema.
    pub table: TableId,
    /// What it is.
    pub kind: Kind,
    /// Its columns and key.
    pub schema: TableSchema,
}

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Kind {
    Table,
    Partitioned,
    View,
    MaterializedView,
    Foreign,
}

impl Kind {
    fn of(relkind: &str) -> Kind {
        match relkind {
            "p" => Kind::Partitioned,
            "v" => Kind::View,
            "m" => Kind::MaterializedView,
            "f" => Kind::Foreign,
            _ => Kind::Table,
        }
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Table => "table",
            Kind::Partitioned => "partitioned table",
            Kind::View => "view",
            Kind::MaterializedView => "materialized view",
            Kind::Foreign => "foreign table",
        }
    }
}

/// Rows and bytes by the catalog's estimate, children and partitions included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Estimate {
    /// Rows.
    pub rows: u64,
    /// Bytes with TOAST.
    pub bytes: u64,
    /// Pages of the heaps alone.
    pub pages: u64,
}

pub(super) async fn rows(
    connection: &Connection,
    sql: &str,
    params: &[(&(dyn ToSql + Sync), Type)],
    what: &str,
) -> Result<Vec<Row>> {
    connection
        .query_typed(sql, params)
        .await
        .map_err(|e| connection.error(e, what))
}

/// Tables and views that may be read, in all schemas or one. Partitions are read through their parent.
pub async fn tables(connection: &Connection, schema: Option<&str>) -> Result<Vec<TableInfo>> {
    const SQL: &str = "
        SELECT n.nspname::text, c.relname::text, c.relkind::text,
               CASE WHEN c.relkind IN ('r', 'm') AND c.reltuples > 0 THEN c.reltuples::bigint END,
               CASE WHEN c.relkind IN ('r', 'm') THEN pg_catalog.pg_table_size(c.oid) END
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND NOT c.relispartition AND c.relpersistence <> 't'
          AND n.nspname <> 'information_schema' AND n.nspname !~ '^pg_'
          AND ($1::text IS NULL OR n.nspname = $1)
          AND pg_catalog.has_schema_privilege(n.oid, 'USAGE')
          AND pg_catalog.has_any_column_privilege(c.oid, 'SELECT')
        ORDER BY 1, 2";
    let found = rows(connection, SQL, &[(&schema, Type::TEXT)], "listing tables").await?;
    Ok(found
        .iter()
        .map(|r| TableInfo {
            table: TableId::new(r.get::<_, String>(0), r.get::<_, String>(1)),
            kind: Kind::of(r.get(2)).name().to_string(),
            rows: r.get::<_, Option<i64>>(3).map(|n| n as u64),
            bytes: r.get::<_, Option<i64>>(4).map(|n| n as u64),
        })
        .collect())
}

/// A table's columns and key; `None` if there is no such table.
pub async fn find(connection: &Connection, table: &TableId, default_schema: &str) -> Result<Option<Described>> {
    const RELATION: &str = "
        SELECT c.oid, c.relkind::text
        FROM pg_catalog.pg_class c
        JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p', 'v', 'm', 'f')";
    // A domain is followed down to its base type. A NOT NULL that was never validated (18+) holds for no old row.
    const COLUMNS: &str = "
        WITH RECURSIVE cols AS (
            SELECT a.* FROM pg_catalog.pg_attribute a WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped
        ), base(attnum, typid, typmod, not_null) AS (
            SELECT attnum, atttypid, atttypmod, attnotnull FROM cols
            UNION ALL
            SELECT b.attnum, t.typbasetype, t.typtypmod, b.not_null OR t.typnotnull
            FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid WHERE t.typtype = 'd'
        )
        SELECT c.attname::text, t.oid, b.typmod,
               pg_catalog.format_type(c.atttypid, c.atttypmod),
               b.not_null AND NOT EXISTS (
                   SELECT 1 FROM pg_catalog.pg_constraint k
                   WHERE k.conrelid = $1 AND k.contype = 'n' AND NOT k.convalidated AND k.conkey = ARRAY[c.attnum]),
               c.attgenerated <> '',
               c.attidentity <> '' OR coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~ '^nextval\\(', false)
        FROM cols c
        JOIN base b USING (attnum)
        JOIN pg_catalog.pg_type t ON t.oid = b.typid AND t.typtype <> 'd'
        LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = $1 AND d.adnum = c.attnum AND c.attgenerated = ''
        ORDER BY c.attnum";
    // The primary key; else the narrowest unique index that no row can escape (no expressions, no predicate).
    const KEYS: &str = "
        SELECT ARRAY(
            SELECT a.attname::text
            FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
            JOIN pg_catalog.pg_attribute a ON a.attrelid = $1 AND a.attnum = k.attnum
            WHERE k.place <= i.indnkeyatts ORDER BY k.place)
        FROM pg_catalog.pg_index i
        WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND (i.indimmediate OR i.indisprimary)
        ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid";

    let what = format!("describing {table}");
    let schema_name = table.schema.as_deref().unwrap_or(default_schema);
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&schema_name, Type::TEXT), (&table.name, Type::TEXT)];
    let found = rows(connection, RELATION, params, &what).await?;
    let Some(relation) = found.first() else {
        return Ok(None);
    };
    let oid: u32 = relation.get(0);
    let by_oid: &[(&(dyn ToSql + Sync), Type)] = &[(&oid, Type::OID)];
    let (columns, keys) = tokio::try_join!(
        rows(connection, COLUMNS, by_oid, &what),
        rows(connection, KEYS, by_oid, &what)
    )?;
    let columns: Vec<Column> = columns.iter().map(column).collect();
    let key = keys
        .iter()
        .map(|r| r.get::<_, Vec<String>>(0))
        .find(|key| key.iter().all(|k| columns.iter().any(|c| c.name == *k && !c.nullable)))
        .unwrap_or_default();
    Ok(Some(Described {
        oid,
        table: TableId::new(schema_name, table.name.clone()),
        kind: Kind::of(relation.get(1)),
        schema: TableSchema { columns, key },
    }))
}

/// A table's columns and key; the error names similar tables.
pub async fn describe(connection: &Connection, table: &TableId, default_schema: &str) -> Result<Described> {
    match find(connection, table, default_schema).await? {
        Some(d) => Ok(d),
        None => Err(missing(connection, table, default_schema).await),
    }
}

fn column(row: &Row) -> Column {
    let (oid, typmod): (u32, i32) = (row.get(1), row.get(2));
    Column {
        nullable: !row.get::<_, bool>(4),
        generated: row.get(5),
        identity: row.get(6),
        ..Column::new(row.get::<_, String>(0), column_type(oid, typmod)).with_source_type(row.get::<_, String>(3))
    }
}

/// The logical type of a base type with its modifier.
pub(super) fn column_type(oid: u32, typmod: i32) -> ColumnType {
    let Some(ty) = Type::from_oid(oid) else {
        return ColumnType::Native;
    };
    match ty {
        Type::BOOL => ColumnType::Bool,
        Type::INT2 => ColumnType::Int16,
        Type::INT4 => ColumnType::Int32,
        Type::INT8 => ColumnType::Int64,
        Type::FLOAT4 => ColumnType::Float32,
        Type::FLOAT8 => ColumnType::Float64,
        Type::NUMERIC if typmod >= 4 => {
            // numeric_typmod_precision and _scale; the scale is 11 bits, signed (15+).
            let bits = typmod - 4;
            ColumnType::Decimal {
                precision: ((bits >> 16) & 0xFFFF) as u16,
                scale: (((bits & 0x7FF) ^ 1024) - 1024) as i16,
            }
        }
        Type::NUMERIC => ColumnType::Numeric,
        Type::VARCHAR if typmod >= 4 => ColumnType::Text {
            max: Some((typmod - 4) as u32),
        },
        Type::BPCHAR if typmod >= 4 => ColumnType::Char {
            length: (typmod - 4) as u32,
        },
        Type::TEXT | Type::VARCHAR | Type::BPCHAR | Type::NAME => ColumnType::Text { max: None },
        Type::BYTEA => ColumnType::Bytes,
        Type::UUID => ColumnType::Uuid,
        Type::JSON => ColumnType::Json,
        Type::JSONB => ColumnType::Jsonb,
        Type::DATE => ColumnType::Date,
        Type::TIME => ColumnType::Time,
        Type::TIMETZ => ColumnType::TimeTz,
        Type::TIMESTAMP => ColumnType::Timestamp,
        Type::TIMESTAMPTZ => ColumnType::TimestampTz,
        Type::INTERVAL => ColumnType::Interval,
        _ => ColumnType::Native,
    }
}

/// `TABLE_MISSING`, with the names the user may have meant.
async fn missing(connection: &Connection, table: &TableId, default_schema: &str) -> Error {
    let schema = table.schema.as_deref().unwrap_or(default_schema);
    let error = Error::new(
        code::TABLE_MISSING,
        format!("table {}.{} does not exist, or may not be seen", schema, table.name),
    );
    let Ok(all) = tables(connection, None).await else {
        return error.hint("check the name; list the tables with `synctool conns discover`");
    };
    let wanted = format!("{schema}.{}", table.name).to_lowercase();
    let mut close: Vec<(f64, String)> = all
        .iter()
        .map(|t| {
            let own = t.table.schema.as_deref().unwrap_or_default();
            let score = if t.table.name.eq_ignore_ascii_case(&table.name) {
                2.0
            } else {
                strsim::jaro_winkler(&format!("{own}.{}", t.table.name).to_lowercase(), &wanted)
            };
            (score, t.table.to_string())
        })
        .filter(|(score, _)| *score > 0.88)
        .collect();
    close.sort_by(|a, b| b.0.total_cmp(&a.0));
    close.truncate(3);
    if close.is_empty() {
        return error.hint("check schema and name; names are taken letter by letter, upper and lower case differ");
    }
    let names: Vec<String> = close.into_iter().map(|(_, name)| name).collect();
    error.hint(format!("similar: {}", names.join(", ")))
}

/// The size of a table with its partitions and children.
pub async fn estimate(connection: &Connection, table: &Described) -> Result<Estimate> {
    // A table that was never analysed counts about a hundred bytes a row; one that grew since counts its old density.
    const SQL: &str = "
        WITH RECURSIVE tree(oid) AS (
            SELECT $1::oid UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.oid
        ), sized AS (
            SELECT c.reltuples, c.relpages,
                   coalesce(pg_catalog.pg_relation_size(c.oid), 0) AS heap,
                   coalesce(pg_catalog.pg_table_size(c.oid), 0) AS total,
                   pg_catalog.current_setting('block_size')::int AS block
            FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.oid WHERE c.relkind IN ('r', 'm')
        )
        SELECT coalesce(sum(CASE WHEN relpages > 0 AND reltuples >= 0 THEN reltuples / relpages * heap / block
                                 ELSE heap / 100.0 END), 0)::bigint,
               coalesce(sum(total), 0)::bigint,
               coalesce(sum(heap / block), 0)::bigint
        FROM sized";
    let what = format!("measuring {}", table.table);
    let found = rows(connection, SQL, &[(&table.oid, Type::OID)], &what).await?;
    let number = |i: usize| found.first().map_or(0, |r| r.get::<_, i64>(i).max(0) as u64);
    Ok(Estimate {
        rows: number(0),
        bytes: number(1),
        pages: number(2),
    })
}

/// The recursive part of a query for `seen(oid)`: what is read through the tables that it begins with (their partitions and
/// heirs, and the tables of views).
pub(super) const READ_THROUGH: &str = "
    SELECT below.oid FROM seen, LATERAL (
        SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = seen.oid
        UNION ALL
        SELECT d.refobjid FROM pg_catalog.pg_rewrite w JOIN pg_catalog.pg_depend d ON d.objid = w.oid
        WHERE w.ev_class = seen.oid AND w.ev_type = '1'
          AND d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
    ) AS below(oid)";

/// Whether rows of these tables (quoted names; views stand for what they read) were written anew by statements that
/// committed since the transaction's snapshot was taken, so that to it they are not there: only a table's file tells, and
/// the catalog's functions know the newest one. To be asked where the tables are locked already. Some such statements
/// (VACUUM FULL) keep the rows; they look the same.
pub(super) async fn is_written_anew(connection: &Connection, tables: &[String]) -> Result<bool> {
    let sql = format!(
        "WITH RECURSIVE seen(oid) AS (
            SELECT pg_catalog.to_regclass(n.name)::oid FROM pg_catalog.unnest($1::text[]) AS n(name)
            UNION {READ_THROUGH}
        )
        SELECT EXISTS (
            SELECT FROM seen WHERE pg_catalog.pg_relation_filenode(seen.oid) IS NOT NULL AND NOT EXISTS (
                SELECT FROM pg_catalog.pg_class c
                WHERE c.oid = seen.oid
                  AND (c.relkind <> 'r' OR c.relfilenode IN (0, pg_catalog.pg_relation_filenode(c.oid)))))"
    );
    let found = rows(connection, &sql, &[(&tables, Type::TEXT_ARRAY)], "looking at tables").await?;
    Ok(found.first().is_some_and(|r| r.get(0)))
}

/// The statements that give a role the right to read a table.
pub fn grant_select(table: &TableId, default_schema: &str, role: &str) -> String {
    let schema = table.schema.as_deref().unwrap_or(default_schema);
    format!(
        "GRANT USAGE ON SCHEMA {} TO {role}; GRANT SELECT ON {} TO {role};",
        ident(schema),
        quoted(table, default_schema),
        role = ident(role)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_read() {
        let numeric = |p: i32, s: i32| ((p << 16) | (s & 0x7FF)) + 4;
        let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
        assert_eq!(column_type(1700, numeric(12, 2)), decimal(12, 2));
        assert_eq!(column_type(1700, numeric(3, -2)), decimal(3, -2));
        assert_eq!(column_type(1700, numeric(1000, 1000)), decimal(1000, 1000));
        assert_eq!(column_type(1700, -1), ColumnType::Numeric);
        assert_eq!(column_type(1043, 24), ColumnType::Text { max: Some(20) });
        assert_eq!(column_type(1042, 9), ColumnType::Char { length: 5 });
        assert_eq!(column_type(1042, -1), ColumnType::Text { max: None });
        assert_eq!(column_type(99_999, -1), ColumnType::Native);
    }
}
