//! The texts that Data Sync sends: to the scratch server to read, to the local server to write.

use crate::postgres::sql::{ident, idents, literal};
use synctool_core::error::Result;

/// How the session works. Questions to the catalog look dear to the planner, and would be compiled for longer than they take.
/// A plan is on the disk before the gate is opened, whatever the server is set to: one that is lost with a place before it
/// leaves a scratch server that stands beyond.
pub const SESSION: &str = "
SET jit = off;
SELECT pg_catalog.set_config('synchronous_commit', 'local', false)
WHERE pg_catalog.current_setting('synchronous_commit') = 'off'";

/// One process at a time; held by a session.
pub const LOCK: &str = "SELECT pg_catalog.pg_try_advisory_lock(7526475342)";

/// Whether a process holds the lock.
pub const LOCKED: &str = "
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database
    WHERE l.locktype = 'advisory' AND l.classid = 1 AND l.objid = 3231508046 AND l.objsubid = 1 AND l.granted
        AND d.datname = current_database())";

/// What is stored about the whole.
pub const STATE: &str =
    "SELECT system_id, timeline, applied_lsn::text, restart_lsn::text, database_name FROM synctool.datasync_state";

/// Moves the place, in the transaction that changes the rows.
pub const MOVE: &str = "
INSERT INTO synctool.datasync_state
    (system_id, timeline, applied_lsn, restart_lsn, last_commit, last_segment, restart_segment, database_name)
VALUES ($1, $2, $3::text::pg_lsn, $4::text::pg_lsn, to_timestamp($5::float8), $6, $7, $8)
ON CONFLICT (one) DO UPDATE SET timeline = excluded.timeline, database_name = excluded.database_name, applied_lsn = excluded.applied_lsn,
    restart_lsn = excluded.restart_lsn, last_commit = coalesce(excluded.last_commit, datasync_state.last_commit),
    last_segment = excluded.last_segment, restart_segment = excluded.restart_segment, updated_at = clock_timestamp()";

/// Counts what belongs to an hour in its window, week and month.
pub const COUNT: &str = "
INSERT INTO public.data_sync_metrics AS m (table_name, period, starts_at, ends_at, added, updated, deleted,
    net_added, net_updated, net_deleted, batches, transactions, segments, wal_bytes, errors, max_lag_seconds, incomplete, rows_as_of)
SELECT $1::text, p.period, p.starts AT TIME ZONE 'UTC', (p.starts + p.length) AT TIME ZONE 'UTC',
    c.n[1], c.n[2], c.n[3], c.n[4], c.n[5], c.n[6], c.n[7], c.n[8], c.n[9], c.n[10], c.n[11], $5::float8, $6::boolean, to_timestamp($7::float8)
FROM (SELECT to_timestamp($2::float8) AT TIME ZONE 'UTC' AS hour) h, (SELECT $4::bigint[] AS n) c, LATERAL (VALUES
    ('window', to_timestamp(floor($2::float8 / ($3::float8 * 3600)) * $3::float8 * 3600) AT TIME ZONE 'UTC', $3::float8 * interval '1 hour'),
    ('week', date_trunc('week', h.hour), interval '1 week'),
    ('month', date_trunc('month', h.hour), interval '1 month')) AS p (period, starts, length)
ON CONFLICT (table_name, period, starts_at, ends_at) DO UPDATE SET
    added = m.added + excluded.added, updated = m.updated + excluded.updated, deleted = m.deleted + excluded.deleted,
    net_added = m.net_added + excluded.net_added, net_updated = m.net_updated + excluded.net_updated,
    net_deleted = m.net_deleted + excluded.net_deleted, batches = m.batches + excluded.batches,
    transactions = m.transactions + excluded.transactions, segments = m.segments + excluded.segments,
    wal_bytes = m.wal_bytes + excluded.wal_bytes, errors = m.errors + excluded.errors,
    max_lag_seconds = greatest(m.max_lag_seconds, excluded.max_lag_seconds), incomplete = m.incomplete OR excluded.incomplete,
    rows_as_of = greatest(m.rows_as_of, excluded.rows_as_of), updated_at = now()";

/// Writes a line of the log.
pub const LOG: &str = "
INSERT INTO public.data_sync_logs (level, event, table_name, from_lsn, to_lsn, first_segment, last_segment,
    added, updated, deleted, net_added, net_updated, net_deleted, duration_ms, error_code, message, details)
VALUES ($1, $2, $3, $4::text::pg_lsn, $5::text::pg_lsn, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17::text::jsonb)";

/// What is stored about tables. A table that was copied anew by itself within a day is not, a second time.
pub const KNOWN: &str = "
SELECT schema_name, table_name, state, coalesce(healed_at > now() - interval '24 hours', false), selected_as, why, rows_copied
FROM synctool.datasync_tables";

/// Stores what became of a table.
pub const SET_TABLE: &str = "
INSERT INTO synctool.datasync_tables AS t (schema_name, table_name, selected_as, state, applied_lsn, rows_copied,
    error_code, why, next_step, healed_at)
VALUES ($1, $2, $3, $4, $5::text::pg_lsn, $6, $7, $8, $9, CASE WHEN $10 THEN now() END)
ON CONFLICT (schema_name, table_name) DO UPDATE SET selected_as = excluded.selected_as, state = excluded.state,
    applied_lsn = coalesce(excluded.applied_lsn, t.applied_lsn), rows_copied = coalesce(excluded.rows_copied, t.rows_copied),
    error_code = excluded.error_code, why = excluded.why, next_step = excluded.next_step,
    healed_at = coalesce(excluded.healed_at, t.healed_at), since = now()";

/// Remembers whether selected names mean something; gives those of which that is news.
pub const NOTE_SELECTED: &str = "
INSERT INTO synctool.datasync_selected AS s (table_name, found) SELECT * FROM unnest($1::text[], $2::boolean[])
ON CONFLICT (table_name) DO UPDATE SET found = excluded.found WHERE s.found <> excluded.found RETURNING table_name, found";

/// Forgets names that are selected no more.
pub const FORGET_SELECTED: &str = "
DELETE FROM synctool.datasync_selected s
WHERE NOT EXISTS (SELECT FROM public.tables_to_sync t WHERE t.table_name = s.table_name)";

/// Whether somebody asks for an end; whether something else is to be done between batches; whether a table waits for a
/// lock to end.
pub const WANTED: &str = "
SELECT EXISTS (SELECT FROM synctool.datasync_requests WHERE done_at IS NULL AND kind = 'stop'),
    EXISTS (SELECT FROM synctool.datasync_requests WHERE done_at IS NULL AND kind <> 'stop')
    OR EXISTS (SELECT FROM public.tables_to_sync s
        WHERE NOT EXISTS (SELECT FROM synctool.datasync_selected t WHERE t.table_name = s.table_name))
    OR EXISTS (SELECT FROM synctool.datasync_selected t
        WHERE NOT EXISTS (SELECT FROM public.tables_to_sync s WHERE s.table_name = t.table_name)),
    EXISTS (SELECT FROM synctool.datasync_tables WHERE state = 'waiting')";

/// Whether somebody asks for an end.
pub const STOP_WANTED: &str =
    "SELECT EXISTS (SELECT FROM synctool.datasync_requests WHERE done_at IS NULL AND kind = 'stop')";

/// What is asked for, in order, and whether somebody began to do it.
pub const REQUESTS: &str = "
SELECT id, kind, table_name, taken FROM synctool.datasync_requests WHERE done_at IS NULL AND kind <> 'stop' ORDER BY id";

/// Says that it is being done: whoever goes on with it begins nothing anew.
pub const TAKE: &str = "UPDATE synctool.datasync_requests SET taken = true WHERE id = $1";

/// Answers it.
pub const ANSWER: &str = "
UPDATE synctool.datasync_requests SET done_at = clock_timestamp(), ok = $2, answer = $3 WHERE id = $1";

/// The tables behind selected names, with everything that must be alike on both sides: the table itself, or the leaves
/// of a partitioned one. How a type is made includes the types that it is made of, however deep. At the end: by which access
/// method the table keeps its rows, and a table that inherits from it. One line per column; a table without columns has one,
/// and so has a name without a table. No lock is taken: one that production holds here never ends here. The expression of a
/// computed column needs one, and is not told while there is another.
pub const TABLES: &str = "
WITH RECURSIVE wanted AS (SELECT w.* FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS w (schema_name, table_name, nth)),
top AS (SELECT w.nth, t.oid, t.relkind FROM wanted w JOIN pg_catalog.pg_namespace s ON s.nspname = w.schema_name
    JOIN pg_catalog.pg_class t ON t.relnamespace = s.oid AND t.relname = w.table_name AND t.relkind IN ('r', 'p', 'v', 'm', 'f')
    WHERE s.nspname NOT LIKE 'pg\\_%' AND s.nspname NOT IN ('information_schema', 'synctool')),
tree AS (SELECT nth, oid, relkind FROM top
    UNION SELECT t.nth, c.oid, c.relkind FROM tree t JOIN pg_catalog.pg_inherits i ON i.inhparent = t.oid
        JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid WHERE t.relkind = 'p'),
leaf AS (SELECT nth, oid FROM tree WHERE relkind <> 'p'),
types AS (SELECT a.atttypid AS root, a.atttypid AS type FROM leaf l
        JOIN pg_catalog.pg_attribute a ON a.attrelid = l.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION SELECT p.root, n.type FROM types p JOIN pg_catalog.pg_type t ON t.oid = p.type, LATERAL (
        SELECT t.typelem AS type WHERE t.typcategory = 'A' AND t.typelem <> 0
        UNION ALL SELECT t.typbasetype WHERE t.typtype = 'd'
        UNION ALL SELECT f.atttypid FROM pg_catalog.pg_attribute f
            WHERE t.typtype = 'c' AND f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped
        UNION ALL SELECT r.rngsubtype FROM pg_catalog.pg_range r
            WHERE t.typtype IN ('r', 'm') AND t.oid IN (r.rngtypid, r.rngmultitypid)) n),
made AS (SELECT p.root, string_agg(CASE WHEN p.type = p.root THEN '' ELSE pg_catalog.format_type(t.oid, NULL) || ' ' END || CASE t.typtype
        WHEN 'd' THEN pg_catalog.format_type(t.typbasetype, t.typtypmod) || ' '
            || coalesce((SELECT string_agg(pg_catalog.pg_get_constraintdef(o.oid), ', ' ORDER BY pg_catalog.pg_get_constraintdef(o.oid))
                FROM pg_catalog.pg_constraint o WHERE o.contypid = t.oid), '')
        WHEN 'e' THEN coalesce((SELECT string_agg(quote_literal(l.enumlabel), ', ' ORDER BY l.enumsortorder)
            FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid), '')
        WHEN 'c' THEN coalesce((SELECT string_agg(quote_ident(f.attname) || ' ' || pg_catalog.format_type(f.atttypid, f.atttypmod), ', ' ORDER BY f.attnum)
            FROM pg_catalog.pg_attribute f WHERE f.attrelid = t.typrelid AND f.attnum > 0 AND NOT f.attisdropped), '')
        ELSE (SELECT pg_catalog.format_type(r.rngsubtype, NULL) FROM pg_catalog.pg_range r WHERE t.oid IN (r.rngtypid, r.rngmultitypid))
        END, '; ' ORDER BY p.type <> p.root, pg_catalog.format_type(t.oid, NULL)) AS how
    FROM types p JOIN pg_catalog.pg_type t ON t.oid = p.type
    WHERE t.typtype IN ('d', 'e', 'c', 'r', 'm') AND t.typnamespace <> 'pg_catalog'::pg_catalog.regnamespace GROUP BY p.root),
locked AS (SELECT relation FROM pg_catalog.pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock' AND granted)
SELECT top.nth, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, a.attname,
    pg_catalog.format_type(a.atttypid, a.atttypmod), a.attgenerated <> '', k.place,
    concat_ws(' ',
        CASE WHEN a.attgenerated = '' THEN NULL WHEN a.attrelid IN (SELECT relation FROM locked) THEN 'locked'
            ELSE (SELECT pg_catalog.pg_get_expr(d.adbin, d.adrelid)
            FROM pg_catalog.pg_attrdef d WHERE d.adrelid = a.attrelid AND d.adnum = a.attnum) END,
        m.how), a.attnum,
    (SELECT am.amname FROM pg_catalog.pg_am am WHERE am.oid = c.relam),
    (SELECT min(format('%s.%s', hn.nspname, h.relname)) FROM pg_catalog.pg_inherits i
        JOIN pg_catalog.pg_class h ON h.oid = i.inhrelid JOIN pg_catalog.pg_namespace hn ON hn.oid = h.relnamespace
        WHERE i.inhparent = c.oid AND NOT h.relispartition)
FROM top LEFT JOIN leaf l ON l.nth = top.nth
LEFT JOIN pg_catalog.pg_class c ON c.oid = l.oid
LEFT JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN made m ON m.root = a.atttypid
LEFT JOIN LATERAL (SELECT pg_catalog.array_position(i.indkey::int2[], a.attnum)::int4 AS place, i.indnkeyatts AS width
    FROM pg_catalog.pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary) k ON k.place < k.width
ORDER BY top.nth, n.nspname, c.relname, a.attnum";

/// Whether a table, its indexes, the table of its long values or the index of that is locked so that nobody can read it:
/// on a standby only production does that.
pub const IS_LOCKED: &str = "
WITH own AS (SELECT c.oid, c.reltoastrelid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = $1 AND c.relname = $2),
both_tables AS (SELECT oid FROM own UNION ALL SELECT reltoastrelid FROM own),
read AS (SELECT oid FROM both_tables UNION ALL
    SELECT i.indexrelid FROM pg_catalog.pg_index i WHERE i.indrelid IN (SELECT oid FROM both_tables))
SELECT EXISTS (SELECT FROM pg_catalog.pg_locks l JOIN read r ON r.oid = l.relation
    WHERE l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock' AND l.granted
        AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database()))";

/// Whether a table waits for its copy.
pub const WAITING: &str = "SELECT EXISTS (SELECT FROM synctool.datasync_tables WHERE state = 'waiting')";

/// The blocks of a table, and how large a block is.
pub const BLOCKS: &str = "
SELECT pg_catalog.pg_relation_size(c.oid) / current_setting('block_size')::bigint, current_setting('block_size')::bigint
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2";

/// A copy that was begun: where its rows are, the place, and whether they are there.
pub const COPY_BEGUN: &str = "
SELECT staging, at_lsn::text, to_regclass('synctool.' || staging) IS NOT NULL FROM synctool.datasync_copies
WHERE schema_name = $1 AND table_name = $2 LIMIT 1";

/// The name of a table beside another.
pub const STAGING: &str = "SELECT 'datasync_copy_' || md5(quote_ident($1) || '.' || quote_ident($2))";

/// Stores the ranges of a copy; the last has no end.
pub const BEGIN_COPY: &str = "
INSERT INTO synctool.datasync_copies (schema_name, table_name, staging, at_lsn, first_block, end_block)
SELECT $1, $2, $3, $4::text::pg_lsn, b, CASE WHEN b + $6::bigint < $5::bigint THEN b + $6::bigint END
FROM generate_series(0, $5::bigint - 1, $6::bigint) b";

/// The ranges that are not done.
pub const OPEN_RANGES: &str = "
SELECT first_block, end_block FROM synctool.datasync_copies WHERE schema_name = $1 AND table_name = $2 AND NOT done
ORDER BY first_block";

/// Marks a range as done, in the transaction that brings its rows. A predecessor that was killed may be about to commit
/// the same: it is waited for, and then there is nothing to do.
pub const RANGE_DONE: &str = "
UPDATE synctool.datasync_copies SET done = true
WHERE schema_name = $1 AND table_name = $2 AND first_block = $3 AND NOT done";

/// Forgets a copy; gives where its rows are.
pub const END_COPY: &str = "
WITH gone AS (DELETE FROM synctool.datasync_copies WHERE schema_name = $1 AND table_name = $2 RETURNING staging)
SELECT DISTINCT staging FROM gone";

/// Makes the table beside another, into which its rows come first.
pub fn create_staging(staging: &str, schema: &str, name: &str, columns: &[&str]) -> String {
    format!(
        "CREATE TABLE {} AS SELECT {} FROM {} WITH NO DATA",
        table("synctool", staging),
        idents(columns),
        table(schema, name)
    )
}

/// Removes it.
pub fn drop_staging(staging: &str) -> String {
    format!("DROP TABLE IF EXISTS {}", table("synctool", staging))
}

/// Only the rows that stand in the table itself, not those of tables that inherit from it.
pub fn only(schema: &str, name: &str) -> Result<String> {
    Ok(format!("tableoid = {}::regclass", literal(&table(schema, name))?))
}

/// By which operators the unique indexes of a table find the values of its columns; that of a type of an extension may
/// stand in any schema. A key WITHOUT OVERLAPS has a GiST index, whose third operator may be another than equality.
pub const EQUALS: &str = "
SELECT DISTINCT ON (a.attname) a.attname::text, 'OPERATOR(' || quote_ident(s.nspname) || '.' || o.oprname || ')'
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND i.indisunique
JOIN LATERAL unnest(i.indkey::int2[], i.indclass::oid[]) AS k (attnum, class) ON k.class IS NOT NULL
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
JOIN pg_catalog.pg_opclass p ON p.oid = k.class JOIN pg_catalog.pg_am m ON m.oid = p.opcmethod
JOIN pg_catalog.pg_amop e ON e.amopfamily = p.opcfamily AND e.amoplefttype = p.opcintype AND e.amoprighttype = p.opcintype
    AND (e.amopstrategy = 3 OR e.amopstrategy = 18 AND m.amname = 'gist')
JOIN pg_catalog.pg_operator o ON o.oid = e.amopopr AND (m.amname = 'btree' OR o.oprname = '=')
JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace
WHERE n.nspname = $1 AND c.relname = $2 ORDER BY a.attname, NOT i.indisprimary, i.indexrelid";

/// A column of a key, its type, and the operator that finds it.
pub type KeyColumn<'a> = (&'a str, &'a str, &'a str);

/// Finds the local rows of pre-images by their key.
fn by_key(schema: &str, name: &str, key: &[KeyColumn<'_>]) -> Result<String> {
    let same: Vec<String> = key
        .iter()
        .enumerate()
        .map(|(i, (column, kind, equals))| format!("t.{} {equals} p.row_text[{}]::{kind}", ident(column), i + 1))
        .collect();
    Ok(format!(
        "{} AND p.schema_name = {} AND p.table_name = {}",
        same.join(" AND "),
        literal(schema)?,
        literal(name)?
    ))
}

/// Rows that were there before and are there now.
pub fn count_kept(schema: &str, name: &str, key: &[KeyColumn<'_>]) -> Result<String> {
    let (target, same) = (table(schema, name), by_key(schema, name, key)?);
    Ok(format!(
        "SELECT count(*) FROM ONLY {target} t, synctool.datasync_pre p WHERE {same}"
    ))
}

/// Every table's file, for counts and for noticing new ones.
pub const FILES: &str = "
SELECT n.nspname, c.relname, CASE c.reltablespace WHEN 0 THEN d.dattablespace ELSE c.reltablespace END, d.oid,
    pg_catalog.pg_relation_filenode(c.oid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
    pg_catalog.pg_database d
WHERE d.datname = current_database() AND c.relkind = 'r' AND c.relpersistence = 'p'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\\_toast%'";

/// Tables whose changes are in the log, apart from the partitions of others.
pub const LOGGED: &str = "
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND n.nspname <> 'information_schema'
    AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1, 2";

/// Whether something besides its key keeps rows of a table apart: rows may change hands of such values.
pub const FRAGILE: &str = "
SELECT count(*) > 1 FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indrelid
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2 AND (i.indisunique OR i.indisexclusion)";

/// Which of these keys no row has: their numbers.
pub fn absent(from: &str, key: &[KeyColumn<'_>], values: &[Vec<Option<String>>]) -> Result<String> {
    let row = |(nth, values): (usize, &Vec<Option<String>>)| -> Result<String> {
        let each = key.iter().zip(values).map(|((_, kind, _), value)| match value {
            Some(value) => Ok(format!("CAST({} AS {kind})", literal(value)?)),
            None => Ok(format!("CAST(NULL AS {kind})")),
        });
        Ok(format!(
            "({}, {nth}::bigint)",
            each.collect::<Result<Vec<_>>>()?.join(", ")
        ))
    };
    let rows = values.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?;
    let names: Vec<String> = (0..key.len()).map(|i| format!("k{i}")).collect();
    let same: Vec<String> = key
        .iter()
        .zip(&names)
        .map(|((column, _, equals), name)| format!("t.{} {equals} p.{name}", ident(column)))
        .collect();
    Ok(format!(
        "SELECT p.nth FROM (VALUES {}) p({}, nth) WHERE NOT EXISTS (SELECT FROM {from} t WHERE {}) ORDER BY 1",
        rows.join(", "),
        names.join(", "),
        same.join(" AND ")
    ))
}

/// A quoted table.
pub fn table(schema: &str, name: &str) -> String {
    format!("{}.{}", ident(schema), ident(name))
}

/// Row addresses as a literal.
pub fn addresses(addresses: &[(u32, u16)]) -> String {
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

/// Reads the rows of a range of blocks.
pub fn read_range(schema: &str, name: &str, columns: &[&str], first: i64, end: Option<i64>) -> String {
    let end = end.map_or_else(String::new, |end| format!(" AND ctid < '({end},0)'::tid"));
    format!(
        "COPY (SELECT {} FROM ONLY {} WHERE ctid >= '({first},0)'::tid{end}) TO STDOUT",
        idents(columns),
        table(schema, name)
    )
}

/// The columns that are written, in brackets; rows without any are written too.
fn into(columns: &[&str]) -> String {
    match columns.is_empty() {
        true => String::new(),
        false => format!(" ({})", idents(columns)),
    }
}

/// Writes rows into a table.
pub fn write_rows(target: &str, columns: &[&str]) -> String {
    format!("COPY {target}{} FROM STDIN", into(columns))
}

/// Deletes the rows whose key stands among the pre-images.
pub fn delete_by_key(schema: &str, name: &str, key: &[KeyColumn<'_>]) -> Result<String> {
    let (target, same) = (table(schema, name), by_key(schema, name, key)?);
    Ok(format!(
        "DELETE FROM ONLY {target} t USING synctool.datasync_pre p WHERE {same}"
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

/// Constraints of a table that the server does not look at while triggers are off: the deferrable ones. Each with what its
/// index holds, and the operators by which rows exclude each other, where it is more than being equal.
pub const DEFERRABLE: &str = "
SELECT x.relname::text,
    ARRAY(SELECT pg_catalog.pg_get_indexdef(x.oid, nth, false) FROM generate_series(1, i.indnkeyatts::int) nth ORDER BY nth),
    ARRAY(SELECT format('OPERATOR(%I.%s)', s.nspname, o.oprname) FROM unnest(k.conexclop) WITH ORDINALITY AS e (oid, nth)
        JOIN pg_catalog.pg_operator o ON o.oid = e.oid JOIN pg_catalog.pg_namespace s ON s.oid = o.oprnamespace ORDER BY e.nth),
    i.indnullsnotdistinct, pg_catalog.pg_get_expr(i.indpred, i.indrelid)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_index i ON i.indrelid = c.oid AND NOT i.indimmediate
JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
LEFT JOIN pg_catalog.pg_constraint k ON k.conindid = x.oid AND k.conrelid = c.oid AND k.conexclop IS NOT NULL
WHERE n.nspname = $1 AND c.relname = $2 ORDER BY 1";

/// A deferrable constraint.
#[derive(Debug, Clone, Default)]
pub struct Deferrable {
    /// What its index holds: columns, and expressions.
    pub values: Vec<String>,
    /// How two rows exclude each other, one operator for each value; none where equal values do.
    pub operators: Vec<String>,
    /// Whether NULLs are equal, too.
    pub nulls_too: bool,
    /// Only rows that meet this.
    pub only: Option<String>,
}

impl Deferrable {
    /// Whether rows break it. Of those that exclude each other one came in this transaction.
    pub fn is_broken(&self, schema: &str, name: &str) -> String {
        let from = table(schema, name);
        if self.operators.is_empty() {
            let values: Vec<String> = self.values.iter().map(|v| format!("{v} IS NOT NULL")).collect();
            let only = match self.nulls_too {
                true => String::new(),
                false => format!(" WHERE {}", values.join(" AND ")),
            };
            let values = self.values.join(", ");
            return format!("SELECT EXISTS (SELECT FROM ONLY {from}{only} GROUP BY {values} HAVING count(*) > 1)");
        }
        let numbered = |what: &dyn Fn(usize) -> String| (0..self.values.len()).map(what).collect::<Vec<_>>();
        let values = numbered(&|n| format!("({}) AS v{n}", self.values[n])).join(", ");
        let exclude = numbered(&|n| format!("a.v{n} {} b.v{n}", self.operators[n])).join(" AND ");
        let only = self.only.as_ref().map_or_else(String::new, |p| format!(" WHERE {p}"));
        let rows = format!("SELECT ctid AS place, xmin AS since, {values} FROM ONLY {from}{only}");
        format!(
            "SELECT EXISTS (SELECT FROM ({rows}) a JOIN ({rows}) b ON a.place <> b.place AND {exclude} \
             WHERE pg_catalog.age(a.since) <= pg_catalog.age(pg_catalog.pg_current_xact_id()::xid))"
        )
    }
}

/// Puts rows of another table in as they are, identities and all.
pub fn insert_from(source: &str, schema: &str, name: &str, columns: &[&str]) -> String {
    format!(
        "INSERT INTO {}{} OVERRIDING SYSTEM VALUE SELECT {} FROM {source}",
        table(schema, name),
        into(columns),
        idents(columns)
    )
}

/// The service and the place, as one document.
pub const STATUS: &str = "
SELECT json_build_object(
    'service', (SELECT json_build_object('host', host, 'pid', pid, 'version', version, 'state', state,
        'waiting_for', waiting_for, 'started_at', started_at, 'beat_age_seconds', extract(epoch FROM clock_timestamp() - beat_at),
        'error', CASE WHEN error IS NOT NULL THEN
            json_build_object('code', error_code, 'message', error, 'next', error_next, 'at', error_at) END)
        FROM synctool.datasync_service),
    'place', (SELECT json_build_object('system_id', system_id, 'timeline', timeline, 'applied_lsn', applied_lsn,
        'restart_lsn', restart_lsn, 'last_segment', last_segment, 'restart_segment', restart_segment,
        'rows_as_of', last_commit, 'last_batch_at', updated_at,
        'age_seconds', extract(epoch FROM clock_timestamp() - last_commit))
        FROM synctool.datasync_state),
    'archive', (SELECT json_build_object('awaited', awaited, 'said', said,
        'quiet_seconds', extract(epoch FROM looked_at - since)) FROM synctool.datasync_archive),
    'requests_waiting', (SELECT count(*) FROM synctool.datasync_requests WHERE done_at IS NULL),
    'errors_last_day', (SELECT count(*) FROM public.data_sync_logs WHERE level = 'error' AND at > now() - interval '1 day')
)::text";

/// Every selected table.
pub const TABLE_LIST: &str = "
SELECT json_agg(row_to_json(t) ORDER BY t.table_name)::text FROM (
    SELECT * FROM public.data_sync_tables
    UNION ALL
    SELECT table_name, table_name, 'waiting', NULL, NULL, 'not copied yet', NULL, NULL, NULL FROM public.tables_to_sync s
    WHERE NOT EXISTS (SELECT FROM synctool.datasync_selected x WHERE x.table_name = s.table_name)) t";

/// Lines of the log.
pub const LOGS: &str = "
SELECT json_agg(row_to_json(l) ORDER BY l.id)::text FROM (
    SELECT * FROM public.data_sync_logs
    WHERE ($2::text IS NULL OR table_name = $2)
        AND ($3::text IS NULL OR level = 'error' OR $3 = 'warn' AND level = 'warn' OR $3 = 'info')
    ORDER BY id DESC LIMIT $1) l";

/// Counts.
pub const METRICS: &str = "
SELECT json_agg(row_to_json(m) ORDER BY m.starts_at DESC, m.period, m.table_name)::text FROM (
    SELECT *, ends_at <= now() AS closed FROM public.data_sync_metrics
    WHERE ($2::text IS NULL OR table_name = $2) AND ($3::text IS NULL OR period = $3)
    ORDER BY starts_at DESC, period, table_name LIMIT $1) m";

/// Selects tables that are not selected by any spelling.
pub const SELECT: &str = "
INSERT INTO public.tables_to_sync (table_name) SELECT DISTINCT n FROM unnest($1::text[]) n
WHERE NOT EXISTS (SELECT FROM public.tables_to_sync t
    WHERE CASE WHEN t.table_name LIKE '%.%' THEN t.table_name ELSE 'public.' || t.table_name END
        = CASE WHEN n LIKE '%.%' THEN n ELSE 'public.' || n END)
ON CONFLICT DO NOTHING RETURNING table_name";

/// Takes them away, by whatever spelling.
pub const DESELECT: &str = "
DELETE FROM public.tables_to_sync t
WHERE CASE WHEN t.table_name LIKE '%.%' THEN t.table_name ELSE 'public.' || t.table_name END = ANY ($1::text[])
RETURNING table_name";

/// Leaves a request.
pub const REQUEST: &str = "INSERT INTO synctool.datasync_requests (kind, table_name) VALUES ($1, $2) RETURNING id";

/// The service begins.
pub const BEGIN_SERVICE: &str = "
INSERT INTO synctool.datasync_service (host, pid, version, state, started_at, beat_at)
VALUES ($1, $2, $3, 'starting', clock_timestamp(), clock_timestamp())
ON CONFLICT (one) DO UPDATE SET host = excluded.host, pid = excluded.pid, version = excluded.version, state = 'starting',
    waiting_for = NULL, started_at = excluded.started_at, beat_at = excluded.beat_at,
    error_code = NULL, error = NULL, error_next = NULL, error_at = NULL";

/// Stores an error; gives whether it is another than before.
pub const FAILED: &str = "
WITH before AS (SELECT error FROM synctool.datasync_service)
UPDATE synctool.datasync_service SET error_code = $1, error = $2, error_next = $3, error_at = clock_timestamp(),
    beat_at = clock_timestamp()
RETURNING (SELECT error FROM before) IS DISTINCT FROM $2";

/// Removes old lines of the log.
pub const FORGET_LOGS: &str = "DELETE FROM public.data_sync_logs WHERE at < now() - $1::float8 * interval '1 day'";

/// Removes old requests.
pub const FORGET_REQUESTS: &str = "
DELETE FROM synctool.datasync_requests WHERE done_at < now() - $1::float8 * interval '1 day'";

/// Forgets the place and everything that belongs to it.
pub const FORGET_PLACE: &str = "
BEGIN;
DO $$ DECLARE beside text; BEGIN
    FOR beside IN SELECT DISTINCT staging FROM synctool.datasync_copies LOOP
        EXECUTE format('DROP TABLE IF EXISTS synctool.%I', beside);
    END LOOP;
END $$;
DELETE FROM synctool.datasync_copies; DELETE FROM synctool.datasync_state; DELETE FROM synctool.datasync_plan; TRUNCATE synctool.datasync_pre;
DELETE FROM synctool.datasync_tables; DELETE FROM synctool.datasync_selected; DELETE FROM synctool.datasync_waited;
DELETE FROM synctool.datasync_archive; COMMIT";

/// How often the same trouble of the archive was seen.
pub const WAITED: &str = "SELECT waited FROM synctool.datasync_waited";

/// Stores it.
pub const SET_WAITED: &str = "
INSERT INTO synctool.datasync_waited (waited) VALUES ($1) ON CONFLICT (one) DO UPDATE SET waited = excluded.waited";

/// Forgets it.
pub const NOT_WAITED: &str = "DELETE FROM synctool.datasync_waited";

/// Stores which segment is awaited, since when, and what the command says that does not bring it; gives how long it has been
/// awaited, and whether that was told.
pub const LOOKED: &str = "
INSERT INTO synctool.datasync_archive AS a (awaited, said) VALUES ($1, $2)
ON CONFLICT (one) DO UPDATE SET awaited = excluded.awaited, said = excluded.said, looked_at = excluded.looked_at,
    since = CASE WHEN a.awaited = excluded.awaited THEN a.since ELSE excluded.since END,
    told = a.told AND a.awaited = excluded.awaited
RETURNING extract(epoch FROM looked_at - since)::float8, told";

/// That its silence was told.
pub const SILENCE_TOLD: &str = "UPDATE synctool.datasync_archive SET told = true";

/// The names that are selected.
pub const SELECTED: &str = "SELECT table_name FROM public.tables_to_sync ORDER BY 1";

/// The tables that hold their rows.
pub const FOLLOWED: &str = "SELECT schema_name || '.' || table_name FROM synctool.datasync_tables ORDER BY 1";

/// The tables that are here.
pub const TABLES_HERE: &str = "
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND n.nspname NOT IN ('information_schema', 'synctool') AND n.nspname NOT LIKE 'pg\\_%' ORDER BY 1";

/// Publications that would forbid deletes from these tables.
pub const PUBLISHED: &str = "
SELECT p.pubname, n.nspname || '.' || c.relname FROM pg_catalog.pg_publication p
JOIN pg_catalog.pg_publication_tables t ON t.pubname = p.pubname
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schemaname
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename
WHERE (p.pubupdate OR p.pubdelete) AND n.nspname || '.' || c.relname = ANY ($1::text[])
    AND (c.relreplident = 'n' OR c.relreplident = 'd'
        AND NOT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))";

/// Those of these tables that our role may not change.
pub const MISSING_RIGHTS: &str = "
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname || '.' || c.relname = ANY ($1::text[]) AND NOT (has_table_privilege(c.oid, 'SELECT')
    AND has_table_privilege(c.oid, 'INSERT') AND has_table_privilege(c.oid, 'DELETE'))";

/// The database's collation and its version.
pub const COLLATION: &str = "
SELECT concat_ws(' ', datlocprovider, datcollate, datcollversion) FROM pg_catalog.pg_database
WHERE datname = current_database()";

/// Extensions of the database whose files are not installed, each with the tables that use a type of it, or one that is
/// made of such a type, however deep.
pub const MISSING_EXTENSIONS: &str = "
WITH RECURSIVE missing AS (SELECT oid, extname FROM pg_catalog.pg_extension
    WHERE extname NOT IN (SELECT name FROM pg_catalog.pg_available_extensions)),
made AS (SELECT e.oid AS extension, d.objid AS type FROM missing e JOIN pg_catalog.pg_depend d ON d.refobjid = e.oid
        AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.classid = 'pg_catalog.pg_type'::pg_catalog.regclass
        AND d.deptype = 'e'
    UNION SELECT m.extension, n.type FROM made m, LATERAL (
        SELECT t.oid AS type FROM pg_catalog.pg_type t WHERE t.typelem = m.type AND t.typcategory = 'A' OR t.typbasetype = m.type
        UNION ALL SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_attribute f ON f.attrelid = t.typrelid
            WHERE t.typtype = 'c' AND f.atttypid = m.type AND NOT f.attisdropped
        UNION ALL SELECT u.oid FROM pg_catalog.pg_range r, LATERAL (VALUES (r.rngtypid), (r.rngmultitypid)) u (oid)
            WHERE r.rngsubtype = m.type) n),
used AS (SELECT DISTINCT m.extension, s.nspname::text AS schema_name, c.relname::text AS table_name
    FROM made m JOIN pg_catalog.pg_attribute a ON a.atttypid = m.type AND a.attnum > 0 AND NOT a.attisdropped
    JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' JOIN pg_catalog.pg_namespace s ON s.oid = c.relnamespace)
SELECT e.extname::text, coalesce(array_agg(u.schema_name ORDER BY u.schema_name, u.table_name) FILTER (WHERE u.table_name IS NOT NULL), '{}'),
    coalesce(array_agg(u.table_name ORDER BY u.schema_name, u.table_name) FILTER (WHERE u.table_name IS NOT NULL), '{}')
FROM missing e LEFT JOIN used u ON u.extension = e.oid GROUP BY e.extname ORDER BY 1";
