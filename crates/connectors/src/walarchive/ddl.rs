//! What Data Sync makes in the local database. The tables and views that users look into stand in `public` under the
//! names of the brief; what only the program reads stands in the schema `synctool`.

/// Whether everything is there: the column that came last, and the view that is made last.
pub const EXISTS: &str = "
SELECT to_regclass('public.data_sync_errors') IS NOT NULL AND EXISTS (SELECT FROM pg_catalog.pg_attribute
    WHERE attrelid = to_regclass('public.data_sync_metrics') AND attname = 'rows_as_of')";

/// Makes it, as one transaction: of two programs that begin at once, the second waits.
pub const CREATE: &str = "
BEGIN;
SELECT pg_catalog.pg_advisory_xact_lock(7526475343);
CREATE SCHEMA IF NOT EXISTS synctool;
CREATE TABLE IF NOT EXISTS public.tables_to_sync (
    table_name text PRIMARY KEY,
    added_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE public.tables_to_sync IS
    'Tables that SyncTool keeps equal to production: schema.table, or a table of public. A partitioned table means all its partitions.';
CREATE TABLE IF NOT EXISTS public.data_sync_logs (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    level text NOT NULL,
    event text NOT NULL,
    table_name text,
    from_lsn pg_lsn,
    to_lsn pg_lsn,
    first_segment text,
    last_segment text,
    added bigint,
    updated bigint,
    deleted bigint,
    net_added bigint,
    net_updated bigint,
    net_deleted bigint,
    duration_ms bigint,
    error_code text,
    message text NOT NULL,
    details jsonb
);
COMMENT ON TABLE public.data_sync_logs IS
    'Everything Data Sync did: starts, batches, tables, errors. added, updated and deleted are production''s operations; net_ are the rows that changed here.';
CREATE INDEX IF NOT EXISTS data_sync_logs_at ON public.data_sync_logs (at);
CREATE INDEX IF NOT EXISTS data_sync_logs_trouble ON public.data_sync_logs (id) WHERE level IN ('warn', 'error');
CREATE TABLE IF NOT EXISTS public.data_sync_metrics (
    table_name text NOT NULL,
    period text NOT NULL CHECK (period IN ('window', 'week', 'month')),
    starts_at timestamptz NOT NULL,
    ends_at timestamptz NOT NULL,
    added bigint NOT NULL DEFAULT 0,
    updated bigint NOT NULL DEFAULT 0,
    deleted bigint NOT NULL DEFAULT 0,
    net_added bigint NOT NULL DEFAULT 0,
    net_updated bigint NOT NULL DEFAULT 0,
    net_deleted bigint NOT NULL DEFAULT 0,
    batches bigint NOT NULL DEFAULT 0,
    transactions bigint NOT NULL DEFAULT 0,
    segments bigint NOT NULL DEFAULT 0,
    wal_bytes bigint NOT NULL DEFAULT 0,
    errors bigint NOT NULL DEFAULT 0,
    max_lag_seconds double precision,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (table_name, period, starts_at, ends_at)
);
ALTER TABLE public.data_sync_metrics ADD COLUMN IF NOT EXISTS incomplete boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN public.data_sync_metrics.incomplete IS
    'Not everything of this time could be counted row by row: production rewrote the table, or it was read whole.';
ALTER TABLE public.data_sync_metrics ADD COLUMN IF NOT EXISTS rows_as_of timestamptz;
COMMENT ON COLUMN public.data_sync_metrics.rows_as_of IS
    'How fresh this is: the newest commit of production that the last batch brought which was counted here. At or after ends_at nothing more will come.';
COMMENT ON TABLE public.data_sync_metrics IS
    'Records added, updated and deleted in production per table, by the time of their commit: per window of METRIC_FREQ hours, ISO week and month, in UTC. The table_name * counts the whole.';
CREATE TABLE IF NOT EXISTS synctool.datasync_state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    system_id text NOT NULL,
    timeline bigint NOT NULL,
    applied_lsn pg_lsn NOT NULL,
    restart_lsn pg_lsn NOT NULL,
    last_commit timestamptz,
    last_segment text NOT NULL,
    restart_segment text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now()
);
ALTER TABLE synctool.datasync_state ADD COLUMN IF NOT EXISTS database_name text;
CREATE TABLE IF NOT EXISTS synctool.datasync_tables (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    selected_as text NOT NULL,
    state text NOT NULL CHECK (state IN ('synced', 'waiting', 'paused')),
    applied_lsn pg_lsn,
    rows_copied bigint,
    error_code text,
    why text,
    next_step text,
    healed_at timestamptz,
    since timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (schema_name, table_name)
);
CREATE TABLE IF NOT EXISTS synctool.datasync_copies (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    staging text NOT NULL,
    at_lsn pg_lsn NOT NULL,
    first_block bigint NOT NULL,
    end_block bigint,
    done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (schema_name, table_name, first_block)
);
CREATE TABLE IF NOT EXISTS synctool.datasync_selected (
    table_name text PRIMARY KEY,
    found boolean NOT NULL
);
CREATE TABLE IF NOT EXISTS synctool.datasync_plan (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    plan_lsn pg_lsn NOT NULL,
    tables text NOT NULL
);
CREATE TABLE IF NOT EXISTS synctool.datasync_waited (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    waited text NOT NULL
);
CREATE TABLE IF NOT EXISTS synctool.datasync_archive (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    awaited text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp(),
    looked_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    said text,
    told boolean NOT NULL DEFAULT false
);
CREATE TABLE IF NOT EXISTS synctool.datasync_pre (
    schema_name text NOT NULL,
    table_name text NOT NULL,
    row_text text[] NOT NULL
);
CREATE INDEX IF NOT EXISTS datasync_pre_table ON synctool.datasync_pre USING brin (schema_name, table_name);
CREATE TABLE IF NOT EXISTS synctool.datasync_requests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind text NOT NULL CHECK (kind IN ('stop', 'resync', 'clear', 'add', 'remove', 'verify')),
    table_name text,
    done_at timestamptz,
    ok boolean,
    answer text
);
ALTER TABLE synctool.datasync_requests ADD COLUMN IF NOT EXISTS taken boolean NOT NULL DEFAULT false;
CREATE INDEX IF NOT EXISTS datasync_requests_open ON synctool.datasync_requests (id) WHERE done_at IS NULL;
CREATE TABLE IF NOT EXISTS synctool.datasync_service (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    host text NOT NULL,
    pid bigint NOT NULL,
    version text NOT NULL,
    state text NOT NULL,
    waiting_for text,
    started_at timestamptz NOT NULL,
    beat_at timestamptz NOT NULL,
    error_code text,
    error text,
    error_next text,
    error_at timestamptz
);
CREATE OR REPLACE VIEW public.data_sync_status AS
SELECT CASE WHEN v.beat_at < clock_timestamp() - interval '30 seconds' AND NOT EXISTS (SELECT FROM pg_catalog.pg_locks l
            JOIN pg_catalog.pg_database d ON d.oid = l.database WHERE l.locktype = 'advisory' AND l.classid = 1
                AND l.objid = 3231508046 AND l.objsubid = 1 AND l.granted AND d.datname = current_database())
        THEN 'stopped' ELSE v.state END AS state, v.waiting_for, s.applied_lsn, s.last_commit AS rows_as_of, s.updated_at AS last_batch_at,
    (SELECT count(*) FROM synctool.datasync_tables WHERE state = 'synced') AS tables_synced,
    (SELECT count(*) FROM synctool.datasync_tables WHERE state = 'waiting') AS tables_waiting,
    (SELECT count(*) FROM synctool.datasync_tables WHERE state = 'paused')
        + (SELECT count(*) FROM synctool.datasync_selected WHERE NOT found) AS tables_in_trouble,
    v.error_code, v.error, v.error_next, v.error_at, v.started_at, v.beat_at
FROM (SELECT) one LEFT JOIN synctool.datasync_service v ON true LEFT JOIN synctool.datasync_state s ON true;
CREATE OR REPLACE VIEW public.data_sync_tables AS
SELECT schema_name || '.' || table_name AS table_name, selected_as, state,
    CASE state WHEN 'synced' THEN (SELECT applied_lsn FROM synctool.datasync_state) ELSE applied_lsn END AS applied_lsn,
    error_code, why, next_step, since, healed_at
FROM synctool.datasync_tables
UNION ALL
SELECT table_name, table_name, 'unknown', NULL, NULL, 'there is no such table in production', NULL, NULL, NULL
FROM synctool.datasync_selected WHERE NOT found;
CREATE OR REPLACE VIEW public.data_sync_metrics_now AS
SELECT table_name, period, starts_at, ends_at, added, updated, deleted, net_added, net_updated, net_deleted, incomplete, rows_as_of
FROM public.data_sync_metrics WHERE starts_at <= now() AND ends_at > now();
CREATE OR REPLACE VIEW public.data_sync_metrics_closed AS
SELECT table_name, period, starts_at, ends_at, added, updated, deleted, net_added, net_updated, net_deleted, incomplete, rows_as_of
FROM public.data_sync_metrics WHERE ends_at <= now();
CREATE OR REPLACE VIEW public.data_sync_errors AS
SELECT id, at, level, event, table_name, error_code, message, details FROM public.data_sync_logs
WHERE level IN ('warn', 'error');
COMMIT;
";
