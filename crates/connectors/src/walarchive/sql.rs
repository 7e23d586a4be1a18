//! The texts that Data Sync sends: to the scratch server to read, to the local server to write.

use crate::postgres::sql::{ident, idents, literal};
use synctool_core::error::Result;

/// Makes the local tables; the ones that users look into stand in `public`.
pub const CREATE: &str = "
CREATE SCHEMA IF NOT EXISTS synctool;
CREATE TABLE IF NOT EXISTS public.tables_to_sync (
    table_name text PRIMARY KEY,
    added_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS public.data_sync_logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT now(),
    level text NOT NULL,
    event text NOT NULL,
    table_name text,
    lsn pg_lsn,
    segment text,
    message text NOT NULL,
    details jsonb
);
CREATE TABLE IF NOT EXISTS public.data_sync_metrics (
    table_name text NOT NULL,
    period text NOT NULL,
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    added bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, period, starts_at)
);
CREATE TABLE IF NOT EXISTS synctool.datasync_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    system_id text NOT NULL,
    timeline bigint NOT NULL,
    applied_lsn pg_lsn NOT NULL,
    restart_lsn pg_lsn NOT NULL,
    last_commit timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE IF NOT EXISTS synctool.datasync_tables (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    applied_lsn pg_lsn,
    paused text,
    PRIMARY KEY (schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS synctool.datasync_plan (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    plan_lsn pg_lsn NOT NULL,
    tables text NOT NULL
);
CREATE TABLE IF NOT EXISTS synctool.datasync_pre (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    row_text text[] NOT NULL
);
CREATE INDEX IF NOT EXISTS datasync_pre_table ON synctool.datasync_pre (schema_name, table_name);
";

/// One process at a time; held by a session.
pub const LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock(7526475342)";

/// What is stored about the whole.
pub const STATE: &str = "SELECT system_id, timeline, applied_lsn::text, restart_lsn::text FROM synctool.datasync_state";

/// Moves the place, in the transaction that changes the rows.
pub const MOVE: &str = "
INSERT INTO synctool.datasync_state (system_id, timeline, applied_lsn, restart_lsn, last_commit)
VALUES ($1, $2, $3::text::pg_lsn, $4::text::pg_lsn, to_timestamp($5::float8))
ON CONFLICT (one) DO UPDATE SET timeline = excluded.timeline, applied_lsn = excluded.applied_lsn,
    restart_lsn = excluded.restart_lsn, last_commit = coalesce(excluded.last_commit, datasync_state.last_commit),
    updated_at = now()";

/// Counts operations of an hour in its window, week and month.
pub const COUNT: &str = "
INSERT INTO public.data_sync_metrics AS m (table_name, period, starts_at, ends_at, added, updated, deleted)
SELECT $1::text, p.period, p.starts AT TIME ZONE 'UTC', (p.starts + p.length) AT TIME ZONE 'UTC', $3::bigint, $4::bigint, $5::bigint
FROM (SELECT to_timestamp($2::float8) AT TIME ZONE 'UTC' AS hour) h, LATERAL (VALUES
    ('window', to_timestamp(floor($2::float8 / ($6::float8 * 3600)) * $6::float8 * 3600) AT TIME ZONE 'UTC', $6::float8 * interval '1 hour'),
    ('week', date_trunc('week', h.hour), interval '1 week'),
    ('month', date_trunc('month', h.hour), interval '1 month')) AS p (period, starts, length)
ON CONFLICT (table_name, period, starts_at) DO UPDATE SET
    added = m.added + excluded.added, updated = m.updated + excluded.updated, deleted = m.deleted + excluded.deleted,
    updated_at = now()";

/// The tables behind a selected name: the table itself, or the leaves of a partitioned one.
pub const LEAVES: &str = "
SELECT n.nspname, c.relname, c.oid, c.relpersistence::text
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind = 'r' AND c.oid IN (
    SELECT t.oid FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace s ON s.oid = t.relnamespace
    WHERE s.nspname = $1 AND t.relname = $2 AND t.relkind = 'r'
    UNION ALL
    SELECT p.relid FROM pg_catalog.pg_class t JOIN pg_catalog.pg_namespace s ON s.oid = t.relnamespace,
        LATERAL pg_catalog.pg_partition_tree(t.oid) p
    WHERE s.nspname = $1 AND t.relname = $2 AND t.relkind = 'p' AND p.isleaf)
ORDER BY 1, 2";

/// The columns of a table, and their place in its primary key.
pub const COLUMNS: &str = "
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '',
    coalesce(array_position(i.indkey::int2[], a.attnum), -1)
FROM pg_catalog.pg_attribute a
LEFT JOIN pg_catalog.pg_index i ON i.indrelid = a.attrelid AND i.indisprimary
WHERE a.attrelid = $1 AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

/// Every table's file, for counts and for noticing new ones.
pub const FILES: &str = "
SELECT n.nspname, c.relname, CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END, d.oid,
    pg_catalog.pg_relation_filenode(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
    pg_catalog.pg_database d
WHERE d.datname = current_database() AND c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'";

/// A quoted table.
pub fn table(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Row addresses as a literal.
fn addresses(addresses: &[(u32, u16)]) -> String {
    let each: Vec<String> = addresses
        .iter()
        .map(|(block, offset)| format!("\"({block},{offset})\""))
        .collect();
    format!("'{{{}}}'::tid[]", each.join(","))
}

/// The columns as one array of texts, in which a NULL stays one.
fn texts(prefix: &str, columns: &[&str]) -> String {
    let each: Vec<String> = columns.iter().map(|c| format!("{prefix}{}::text", ident(c))).collect();
    format!("ARRAY[{}]::text[]", each.join(", "))
}

/// Fails if production holds a lock on the table that is not over at the scratch server's place.
pub fn probe(schema: &str, name: &str) -> String {
    format!("SELECT FROM ONLY {} LIMIT 0", table(schema, name))
}

/// Reads what identifies the rows at these addresses, for the table of pre-images.
pub fn read_pre(schema: &str, name: &str, columns: &[&str], at: &[(u32, u16)]) -> Result<String> {
    Ok(format!(
        "COPY (SELECT {}, {}, {} FROM ONLY {} WHERE ctid = ANY ({})) TO STDOUT",
        literal(schema)?,
        literal(name)?,
        texts("", columns),
        table(schema, name),
        addresses(at)
    ))
}

/// Stores them.
pub const WRITE_PRE: &str = "COPY synctool.datasync_pre (schema_name, table_name, row_text) FROM STDIN";

/// Reads the rows at these addresses, or all.
pub fn read_rows(schema: &str, name: &str, columns: &[&str], at: Option<&[(u32, u16)]>) -> String {
    let only = at.map_or_else(String::new, |at| format!(" WHERE ctid = ANY ({})", addresses(at)));
    format!(
        "COPY (SELECT {} FROM ONLY {}{only}) TO STDOUT",
        idents(columns),
        table(schema, name)
    )
}

/// Writes rows into a table.
pub fn write_rows(target: &str, columns: &[&str]) -> String {
    format!("COPY {target} ({}) FROM STDIN", idents(columns))
}

/// A table for the rows as they are now, without any constraint.
pub fn create_post(schema: &str, name: &str, columns: &[&str]) -> String {
    format!(
        "DROP TABLE IF EXISTS pg_temp.datasync_post;
         CREATE TEMP TABLE datasync_post ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA",
        idents(columns),
        table(schema, name)
    )
}

/// Deletes the rows whose key stands among the pre-images or among the rows as they are now.
pub fn delete_by_key(schema: &str, name: &str, key: &[(&str, &str)]) -> Result<String> {
    let pre: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(i, (column, kind))| format!("t.{} = p.row_text[{}]::{kind}", ident(column), i + 1))
        .collect();
    let post: Vec<String> = key
        .iter()
        .map(|(column, _)| format!("t.{0} = q.{0}", ident(column)))
        .collect();
    let (target, schema, name) = (table(schema, name), literal(schema)?, literal(name)?);
    Ok(format!(
        "DELETE FROM ONLY {target} t WHERE t.ctid IN (
            SELECT t.ctid FROM ONLY {target} t JOIN synctool.datasync_pre p ON {} WHERE p.schema_name = {schema} AND p.table_name = {name}
            UNION SELECT t.ctid FROM ONLY {target} t JOIN pg_temp.datasync_post q ON {})",
        pre.join(" AND "),
        post.join(" AND ")
    ))
}

/// Deletes one equal row for every pre-image.
pub fn delete_by_row(schema: &str, name: &str, columns: &[&str]) -> Result<String> {
    let (target, rows) = (table(schema, name), texts("t.", columns));
    let (schema, name) = (literal(schema)?, literal(name)?);
    Ok(format!(
        "WITH p AS (SELECT row_text, row_number() OVER (PARTITION BY row_text) AS nth FROM synctool.datasync_pre
            WHERE schema_name = {schema} AND table_name = {name}),
        l AS (SELECT t.ctid AS place, {rows} AS row_text, row_number() OVER (PARTITION BY {rows}) AS nth FROM ONLY {target} t
            WHERE {rows} IN (SELECT row_text FROM p))
        DELETE FROM ONLY {target} t USING l JOIN p ON l.row_text = p.row_text AND l.nth = p.nth WHERE t.ctid = l.place"
    ))
}

/// Puts the rows in as they are now, identities and all.
pub fn insert_post(schema: &str, name: &str, columns: &[&str]) -> String {
    let columns = idents(columns);
    format!(
        "INSERT INTO {} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM pg_temp.datasync_post",
        table(schema, name)
    )
}
