//! A server that has done a bit of everything.

use std::thread;
use synctool_testkit::{PgVersion, Postgres, PostgresBuilder};

/// A server that keeps its whole log.
pub fn builder(version: PgVersion) -> PostgresBuilder {
    Postgres::builder(version)
        .setting("wal_keep_size", "2GB")
        .setting("max_wal_size", "2GB")
        .setting("min_wal_size", "128MB")
        .setting("track_commit_timestamp", "on")
        .setting("autovacuum_naptime", "1s")
        .setting("allow_in_place_tablespaces", "on")
}

/// Runs a load that leaves records of every resource manager.
pub fn everything(server: &Postgres) {
    server.psql(SETUP);
    // Page images after a checkpoint, with every compression this build knows.
    let compressions = server.psql("SELECT unnest(enumvals) FROM pg_settings WHERE name = 'wal_compression'");
    for compression in compressions.lines().filter(|c| *c != "on") {
        server.psql(&format!(
            "CHECKPOINT; SET wal_compression = {compression};
             UPDATE t SET note = note || '!' WHERE id % 7 = 0; DELETE FROM t WHERE id % 101 = 3;
             INSERT INTO t SELECT g, repeat(md5(g::text), 3) FROM generate_series(1000000, 1000300) g
               ON CONFLICT (id) DO UPDATE SET note = excluded.note;"
        ));
    }
    thread::scope(|scope| {
        for session in 0..3 {
            scope.spawn(move || server.psql(&SESSION.replace("$SESSION", &session.to_string())));
        }
    });
    server.psql(CHORES);
}

const SETUP: &str = "
CREATE TABLE t (id bigint PRIMARY KEY, note text);
INSERT INTO t SELECT g, repeat(md5(g::text), 4) FROM generate_series(1, 8000) g;
CREATE TABLE wide (id serial PRIMARY KEY, body text);
ALTER TABLE wide ALTER body SET STORAGE EXTERNAL;
CREATE TABLE keyless (a int, b text);
CREATE TABLE many (a int, h int, arr int[], p point, x text, b int);
CREATE INDEX ON many USING hash (h);
CREATE INDEX ON many USING gin (arr);
CREATE INDEX ON many USING gist (p);
CREATE INDEX ON many USING spgist (p);
CREATE INDEX ON many USING brin (b) WITH (pages_per_range = 2, autosummarize = on);
CREATE INDEX ON many (x);
CREATE TABLE part (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2024-01-01') TO ('2024-02-01');
CREATE TABLE part_2 PARTITION OF part FOR VALUES FROM ('2024-02-01') TO ('2024-03-01');
";

const SESSION: &str = "
INSERT INTO many SELECT g, g % 97, ARRAY[g % 5, g % 11, g], point(g % 100, g), md5(g::text), g
  FROM generate_series(1, 4000) g;
DO $$
BEGIN
  FOR i IN 1..200 LOOP
    INSERT INTO t VALUES ($SESSION * 100000 + 20000 + i, 'session') ON CONFLICT DO NOTHING;
    UPDATE t SET note = 'u' || i WHERE id = $SESSION * 100000 + 20000 + i / 2;
    INSERT INTO keyless VALUES (i % 3, NULL);
    BEGIN
      DELETE FROM t WHERE id = $SESSION * 1000 + i;
      IF i % 3 = 0 THEN RAISE EXCEPTION 'back'; END IF;
    EXCEPTION WHEN raise_exception THEN NULL;
    END;
    IF i % 10 = 0 THEN COMMIT; END IF;
    IF i % 17 = 0 THEN ROLLBACK; END IF;
  END LOOP;
END $$;
INSERT INTO wide (body) SELECT string_agg(md5((g * s)::text), '') FROM generate_series(1, 400) g, generate_series(1, 5) s GROUP BY s;
UPDATE wide SET body = body || 'x' WHERE id % 3 = $SESSION;
BEGIN; INSERT INTO t VALUES (-1 - $SESSION, 'prepared'); SAVEPOINT s; UPDATE t SET note = 'p' WHERE id = -1 - $SESSION;
PREPARE TRANSACTION 'kept $SESSION'; COMMIT PREPARED 'kept $SESSION';
BEGIN; INSERT INTO t VALUES (-11 - $SESSION, 'prepared'); PREPARE TRANSACTION 'gone $SESSION';
ROLLBACK PREPARED 'gone $SESSION';
BEGIN; SELECT 1 FROM t WHERE id = 5000 + $SESSION FOR KEY SHARE; SAVEPOINT a;
UPDATE t SET note = 'locked' WHERE id = 5000 + $SESSION; SAVEPOINT b; SELECT 1 FROM t WHERE id = 5100 FOR SHARE; COMMIT;
INSERT INTO part SELECT g, '2024-01-10' FROM generate_series($SESSION * 1000, $SESSION * 1000 + 99) g;
UPDATE part SET day = '2024-02-10' WHERE id / 1000 = $SESSION AND id % 5 = 0;
COPY keyless FROM stdin;
1	one
2	two
\\.
SELECT pg_logical_emit_message(true, 'note', 'hello'), pg_logical_emit_message(false, 'note', 'there');
CREATE TEMP TABLE scratch AS SELECT * FROM t LIMIT 100;
";

const CHORES: &str = "
DELETE FROM many WHERE a % 3 = 0; VACUUM many; VACUUM FREEZE t; VACUUM FULL wide; CLUSTER t USING t_pkey;
SELECT brin_summarize_new_values('many_b_idx'), brin_desummarize_range('many_b_idx', 0);
SELECT gin_clean_pending_list('many_arr_idx');
BEGIN; TRUNCATE keyless; SAVEPOINT s; TRUNCATE part; ROLLBACK TO s; COMMIT;
BEGIN; CREATE TABLE short (a int); INSERT INTO short SELECT generate_series(1, 10); TRUNCATE short;
INSERT INTO short VALUES (1); COMMIT; DROP TABLE short;
BEGIN; TRUNCATE t; INSERT INTO t VALUES (1, 'x'); ROLLBACK;
ALTER TABLE t ADD c int DEFAULT 5; ALTER TABLE keyless ALTER a TYPE bigint;
VACUUM FULL pg_class; ANALYZE;
DELETE FROM t WHERE id > 4000; VACUUM t;
CREATE DATABASE copied STRATEGY file_copy; CREATE DATABASE logged STRATEGY wal_log; DROP DATABASE copied;
CREATE TABLESPACE elsewhere LOCATION ''; ALTER TABLE part_1 SET TABLESPACE elsewhere; DROP TABLE part_1;
DROP TABLESPACE elsewhere;
SELECT pg_replication_origin_create('origin'), pg_replication_origin_session_setup('origin');
SELECT pg_replication_origin_xact_setup('0/1', now());
INSERT INTO keyless VALUES (9, 'replicated'); SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_drop('origin');
BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE; CHECKPOINT; COMMIT;
CHECKPOINT; SELECT pg_create_restore_point('here');
";
