//! Rows, transactions and tables of every shape arrive as they are.

use super::{Session, World, files, followed, followed_on, rows};
use std::process::Command;
use synctool_testkit::PgVersion;

fn a_long_transaction_arrives_when_it_commits(version: PgVersion) {
    let world = World::new(version, "CREATE TABLE t (id int PRIMARY KEY, n int)");
    world
        .production
        .psql("INSERT INTO t SELECT g, 0 FROM generate_series(1, 100) g");
    world.ready();
    world.add(&["t"]);
    world.run(&["run-once"]).ok();
    world.production.psql("BEGIN; UPDATE t SET n = 1 WHERE id < 50; SAVEPOINT a; DELETE FROM t WHERE id > 90; ROLLBACK TO a; DELETE FROM t WHERE id = 60; PREPARE TRANSACTION 'long'");
    let mut needed = Vec::new();
    for round in 0..4 {
        world.production.psql(&format!("INSERT INTO other SELECT generate_series(1, 25000); UPDATE t SET n = {round} + 10 WHERE id > 95; CHECKPOINT"));
        // Each run is a process of its own: what is open is found again.
        world.sync();
        world.same(&["t"]);
        needed.push(
            world
                .local
                .psql("SELECT restart_lsn, applied_lsn - restart_lsn > 1000000 FROM synctool.datasync_state"),
        );
    }
    assert_eq!(needed[0].split('|').next(), needed[3].split('|').next(), "{needed:?}");
    assert!(needed[3].ends_with('t'), "{needed:?}");
    world.production.psql("COMMIT PREPARED 'long'");
    world.sync();
    world.same(&["t"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM t WHERE n = 1"), "49");
}

#[test]
fn a_long_transaction_over_many_segments_arrives_when_it_commits() {
    a_long_transaction_arrives_when_it_commits(PgVersion::V18);
}

#[test]
fn a_long_transaction_over_many_segments_arrives_when_it_commits_15() {
    a_long_transaction_arrives_when_it_commits(PgVersion::V15);
}

fn open_at_the_backup(version: PgVersion) {
    let world = World::new(version, "CREATE TABLE t (id int PRIMARY KEY, n int)");
    world.production.psql("INSERT INTO t SELECT g, 0 FROM generate_series(1, 50) g; BEGIN; UPDATE t SET n = 1 WHERE id < 9; PREPARE TRANSACTION 'early'");
    let mut open = Session::open(&world.production);
    open.run(
        "BEGIN; UPDATE t SET n = 3 WHERE id BETWEEN 20 AND 25; SAVEPOINT s; DELETE FROM t WHERE id = 26; ROLLBACK TO s; INSERT INTO t VALUES (100, 3)",
    );
    world.backup();
    world.add(&["t"]);
    world
        .production
        .psql("INSERT INTO other SELECT generate_series(1, 20000); CHECKPOINT");
    world.archived();
    // While they are open there is no place to begin at, and that is waited for.
    world.run(&["run-once"]).fails(0, &["no place yet"]);
    open.run("UPDATE t SET n = 4 WHERE id = 20; COMMIT");
    world
        .production
        .psql("COMMIT PREPARED 'early'; UPDATE t SET n = 2 WHERE id = 30; CHECKPOINT; INSERT INTO other VALUES (1)");
    world.sync();
    world.same(&["t"]);
}

#[test]
fn transactions_that_are_open_at_the_backup_are_not_lost() {
    open_at_the_backup(PgVersion::V18);
}

#[test]
fn transactions_that_are_open_at_the_backup_are_not_lost_15() {
    open_at_the_backup(PgVersion::V15);
}

fn constraints_do_not_stand_in_the_way(version: PgVersion) {
    let schema = "
        CREATE TABLE swap (id int PRIMARY KEY, u int UNIQUE);
        CREATE TABLE deferred (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE spans (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&));
        CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE);
        CREATE TABLE fired (id int PRIMARY KEY, n int);
        CREATE FUNCTION bang() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.n := NEW.n + 1000; RETURN NEW; END $$;
        CREATE TRIGGER bang BEFORE INSERT OR UPDATE ON fired FOR EACH ROW EXECUTE FUNCTION bang();";
    let tables = ["swap", "deferred", "spans", "parent", "child", "fired"];
    let world = followed_on(
        version,
        schema,
        "INSERT INTO swap SELECT g, g FROM generate_series(1, 20) g; INSERT INTO deferred SELECT g, g FROM generate_series(1, 20) g;
         INSERT INTO spans SELECT g, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 20) g;
         INSERT INTO parent SELECT generate_series(1, 20); INSERT INTO child SELECT g, 1 + g % 20 FROM generate_series(1, 40) g;
         INSERT INTO fired SELECT g, g FROM generate_series(1, 20) g",
        &tables,
    );
    world.production.psql(
        "UPDATE swap SET u = u + 100; UPDATE swap SET u = 121 - u; UPDATE deferred SET u = 21 - u;
         BEGIN; DELETE FROM spans WHERE id IN (3, 4); INSERT INTO spans VALUES (3, int4range(40, 50)), (4, int4range(30, 40)); COMMIT;
         DELETE FROM parent WHERE id < 5; INSERT INTO parent VALUES (100); UPDATE child SET parent = 100 WHERE id % 3 = 0;
         UPDATE fired SET n = n + 1; UPDATE swap SET id = id + 1000 WHERE id > 15",
    );
    world.sync();
    world.same(&tables);
    world.run(&["resync", "--wait", "0", "parent", "fired"]).ok();
    world.run(&["run-once"]).ok();
    world.same(&tables);
}

#[test]
fn unique_swaps_exclusions_foreign_keys_and_triggers_do_not_stand_in_the_way() {
    constraints_do_not_stand_in_the_way(PgVersion::V18);
}

#[test]
fn unique_swaps_exclusions_foreign_keys_and_triggers_do_not_stand_in_the_way_15() {
    constraints_do_not_stand_in_the_way(PgVersion::V15);
}

fn values_arrive_letter_by_letter(version: PgVersion) {
    let schema = "
        CREATE TYPE pair AS (a int, b text); CREATE DOMAIN word AS text CHECK (length(VALUE) < 100);
        CREATE TABLE kinds (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, f float8, r real, d numeric, t timestamptz, i interval,
            b bytea, j json, jb jsonb, u uuid, a text[], m int[][], ra int4range, mr int4multirange, p point, ip inet, bits varbit,
            c char(10), w word, pr pair, ts tsvector, money money, oid oid, lsn pg_lsn, twice float8 GENERATED ALWAYS AS (f * 2) STORED);
        CREATE TABLE toasted (id int PRIMARY KEY, big text, other int);
        CREATE TABLE loose (f float8, d numeric, j json, t text, p point);
        CREATE TABLE \"Odd \"\"name\" (\"the key\" text PRIMARY KEY, \"select\" text);";
    let fill = "
        INSERT INTO kinds (f, r, d, t, i, b, j, jb, u, a, m, ra, mr, p, ip, bits, c, w, pr, ts, money, oid, lsn)
        SELECT v.f, 0.1 + g, v.d, '2024-02-29 12:00:00.000001+00', '1 year 2 mons -3 days 04:05:06.7', decode(md5(g::text), 'hex'),
            '{\"a\":  1, \"a\": 2}', '{\"k\": [1, null]}', md5(g::text)::uuid, ARRAY['a,b', NULL, '\"q\"', E'back\\\\slash'],
            '{{1,2},{3,4}}', '[1,5)', '{[1,2),[5,7)}', '(1.5,-2)', '10.0.0.1/8', B'1011', 'pad', 'wörd', ROW(g, 'x,y')::pair, 'fat cat'::tsvector, 12.34, 4294967295, 'F/A0'
        FROM generate_series(1, 5) g, (VALUES ('NaN'::float8, 'NaN'::numeric), ('-Infinity', 1e-30), (1e300, 123456789012345678901234567890.5), (0.1::float8 + 0.2::float8, NULL)) v (f, d);
        INSERT INTO toasted SELECT g, (SELECT string_agg(md5((g * s)::text), '') FROM generate_series(1, 300) s), 0 FROM generate_series(1, 20) g;
        INSERT INTO loose SELECT f, d, j, E'tab\\tnew\\nline \\\\N', p FROM kinds; INSERT INTO loose SELECT * FROM loose LIMIT 5; INSERT INTO loose VALUES (NULL), (NULL);
        INSERT INTO \"Odd \"\"name\" VALUES ('', NULL), ('a', ''), ('ä\"', '\\N')";
    let tables = ["kinds", "toasted", "loose", "\"Odd \"\"name\""];
    let world = World::new(version, schema);
    world.production.psql(fill);
    world.ready();
    world.add(&["kinds", "toasted", "loose", "Odd \"name"]);
    // Whatever the local database takes a NULL in an array for, and however it writes names.
    world.local.psql(&format!(
        "ALTER DATABASE {0} SET array_nulls = off; ALTER DATABASE {0} SET quote_all_identifiers = on",
        world.local.name()
    ));
    world.run(&["run-once"]).ok();
    world.same(&tables);
    // Unchanged and changed values that stand outside their row; equal rows without a key.
    world.production.psql(
        "UPDATE toasted SET other = 1 WHERE id < 10; UPDATE toasted SET big = big || 'x' WHERE id = 15; UPDATE toasted SET big = NULL WHERE id = 16;
         DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose LIMIT 8); INSERT INTO loose SELECT * FROM loose LIMIT 3;
         DELETE FROM loose WHERE ctid = (SELECT max(ctid) FROM loose WHERE f IS NULL AND t IS NULL);
         UPDATE kinds SET f = f + 1, a = a || 'more'::text WHERE id % 2 = 0; DELETE FROM kinds WHERE id = 3;
         UPDATE \"Odd \"\"name\" SET \"the key\" = 'new' WHERE \"the key\" = ''",
    );
    world.sync();
    world.same(&tables);
    world.run(&["verify"]).ok();
    assert_eq!(
        world
            .local
            .psql("SELECT count(*) FROM data_sync_logs WHERE level <> 'info'"),
        "0"
    );
}

#[test]
fn values_of_every_kind_arrive_letter_by_letter() {
    values_arrive_letter_by_letter(PgVersion::V18);
}

#[test]
fn values_of_every_kind_arrive_letter_by_letter_15() {
    values_arrive_letter_by_letter(PgVersion::V15);
}

/// Values that are packed within their row and outside it, and a log whose page images are packed.
fn packed_values_arrive(version: PgVersion) {
    let schema =
        "CREATE TABLE packed (id int PRIMARY KEY, small text COMPRESSION pglz, big text COMPRESSION pglz, other int);
        CREATE TABLE loose (big text COMPRESSION pglz, other int)";
    let world = World::with(version, schema, |p| p.setting("wal_compression", "pglz"));
    world.production.psql(
        "INSERT INTO packed SELECT g, repeat('small ' || g, 2000), (SELECT string_agg(md5((g * s)::text) || repeat(' ', 40), '') FROM generate_series(1, 300) s), 0
             FROM generate_series(1, 40) g;
         INSERT INTO loose SELECT big, 0 FROM packed",
    );
    let packed = "SELECT bool_and(pg_column_compression(small) = 'pglz' AND pg_column_size(small) < 1000),
        bool_and(pg_column_compression(big) = 'pglz' AND pg_column_size(big) > 3000) FROM packed";
    assert_eq!(world.production.psql(packed), "t|t");
    world.ready();
    let tables = ["packed", "loose"];
    world.add(&tables);
    world.run(&["run-once"]).ok();
    world.same(&tables);
    world.production.psql(
        "CHECKPOINT; UPDATE packed SET other = 1 WHERE id < 10; UPDATE packed SET small = small || 'x' WHERE id BETWEEN 10 AND 15;
         UPDATE packed SET big = big || 'x', small = NULL WHERE id = 20; UPDATE packed SET big = reverse(big) WHERE id = 21; DELETE FROM packed WHERE id = 22;
         UPDATE loose SET other = 1 WHERE ctid IN (SELECT ctid FROM loose LIMIT 5); DELETE FROM loose WHERE ctid IN (SELECT ctid FROM loose LIMIT 3)",
    );
    world.sync();
    world.same(&tables);
    world.run(&["verify"]).ok();
}

#[test]
fn packed_values_arrive_as_they_are() {
    packed_values_arrive(PgVersion::V18);
}

#[test]
fn packed_values_arrive_as_they_are_15() {
    packed_values_arrive(PgVersion::V15);
}

fn rewrites_and_truncations(version: PgVersion) {
    let tables = ["t", "u", "nokey"];
    let schema = "CREATE TABLE t (id int PRIMARY KEY, n int); CREATE TABLE u (id int PRIMARY KEY, n int); CREATE TABLE nokey (a int)";
    let world = World::new(version, schema);
    world.production.psql(
        "INSERT INTO t SELECT g, g FROM generate_series(1, 500) g; INSERT INTO u SELECT g, g FROM generate_series(1, 500) g; INSERT INTO nokey SELECT 1 FROM generate_series(1, 100)",
    );
    world.ready();
    world.add(&tables);
    world.run(&["run-once"]).ok();
    for change in [
        "TRUNCATE t; INSERT INTO t VALUES (1, 1)",
        "BEGIN; TRUNCATE u; INSERT INTO u VALUES (1, 1); ROLLBACK; UPDATE u SET n = 2",
        "DELETE FROM u WHERE id % 2 = 0; VACUUM FULL u; UPDATE u SET n = 3 WHERE id < 100",
        "CLUSTER u USING u_pkey; INSERT INTO u SELECT g, 1 FROM generate_series(1000, 1100) g; VACUUM (FREEZE) u",
        "BEGIN; SAVEPOINT a; TRUNCATE nokey; ROLLBACK TO a; INSERT INTO nokey VALUES (2); COMMIT; REINDEX TABLE u",
        "BEGIN; DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t SELECT g, -g FROM generate_series(1, 50) g; COMMIT",
        "ALTER TABLE t RENAME TO old; ALTER TABLE u RENAME TO t; ALTER TABLE old RENAME TO u; UPDATE t SET n = 8 WHERE id < 9",
    ] {
        world.production.psql(change);
        world.sync();
        world.same(&tables);
    }
    // The same without a look between.
    world
        .production
        .psql("TRUNCATE t, u, nokey; VACUUM FULL t; INSERT INTO t VALUES (5, 5); BEGIN; TRUNCATE t; ROLLBACK");
    world.sync();
    world.same(&tables);
}

#[test]
fn rewrites_and_truncations_committed_and_rolled_back() {
    rewrites_and_truncations(PgVersion::V18);
}

#[test]
fn rewrites_and_truncations_committed_and_rolled_back_15() {
    rewrites_and_truncations(PgVersion::V15);
}

/// Nothing touches the old rows, and the column looks as it did.
#[test]
fn a_column_that_is_dropped_and_made_again_brings_its_default() {
    let world = followed(
        "CREATE TABLE t (id int PRIMARY KEY, c int); CREATE TABLE u (id int PRIMARY KEY)",
        "INSERT INTO t SELECT g, g FROM generate_series(1, 100) g; INSERT INTO u VALUES (1)",
        &["t", "u"],
    );
    world
        .production
        .psql("ALTER TABLE t DROP COLUMN c; ALTER TABLE t ADD COLUMN c int DEFAULT 5; INSERT INTO u VALUES (2)");
    world.sync();
    world.same(&["t", "u"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM t WHERE c = 5"), "100");
    let copied = "SELECT count(*) FROM data_sync_logs WHERE event = 'copied' AND table_name = 'public.u'";
    assert_eq!(world.local.psql(copied), "1");
}

fn logical_level_is_followed(version: PgVersion) {
    let world = World::with(version, "CREATE TABLE t (id int PRIMARY KEY, n int)", |p| {
        p.setting("wal_level", "logical")
    });
    world
        .production
        .psql("INSERT INTO t SELECT g, g FROM generate_series(1, 100) g");
    world.ready();
    world.add(&["t"]);
    world.run(&["run-once"]).ok();
    world
        .production
        .psql("UPDATE t SET n = 0 WHERE id < 50; TRUNCATE other; DELETE FROM t WHERE id = 100");
    world.sync();
    world.same(&["t"]);
}

#[test]
fn a_production_with_logical_level_is_followed_too() {
    logical_level_is_followed(PgVersion::V18);
}

#[test]
fn a_production_with_logical_level_is_followed_too_15() {
    logical_level_is_followed(PgVersion::V15);
}

fn metrics_are_productions_operations(version: PgVersion) {
    let world = followed_on(
        version,
        "CREATE TABLE a (id int PRIMARY KEY, n int); CREATE TABLE b (id int PRIMARY KEY, n int); CREATE TABLE unseen (id int)",
        "INSERT INTO a SELECT g, g FROM generate_series(1, 100) g",
        &["a", "b"],
    );
    world.configure("METRIC_FREQ = \"6\"\n");
    world.production.psql(
        "INSERT INTO a SELECT g, g FROM generate_series(101, 150) g; UPDATE a SET n = 1 WHERE id <= 10; UPDATE a SET n = 2 WHERE id <= 5;
         DELETE FROM a WHERE id > 140; INSERT INTO b VALUES (1, 1); DELETE FROM b; BEGIN; INSERT INTO b SELECT generate_series(1, 99); ROLLBACK;
         BEGIN; INSERT INTO b VALUES (5, 5); SAVEPOINT s; INSERT INTO b VALUES (6, 6); ROLLBACK TO s; COMMIT; INSERT INTO unseen SELECT generate_series(1, 7)",
    );
    world.sync();
    let counted = |table: &str, period: &str| {
        world.local.psql(&format!(
            "SELECT sum(added), sum(updated), sum(deleted), sum(net_added), sum(net_updated), sum(net_deleted) FROM data_sync_metrics WHERE table_name = '{table}' AND period = '{period}'"
        ))
    };
    for period in ["window", "week", "month"] {
        assert_eq!(counted("public.a", period), "50|15|10|40|10|0", "{period}");
        assert_eq!(counted("public.b", period), "2|0|1|1|0|0", "{period}");
        assert_eq!(counted("public.unseen", period), "7|0|0|0|0|0", "{period}");
    }
    let windows = "SELECT bool_and(ends_at - starts_at = interval '6 hours' AND extract(hour FROM starts_at AT TIME ZONE 'UTC')::int % 6 = 0
        AND now() BETWEEN starts_at AND ends_at) FROM data_sync_metrics WHERE period = 'window' AND table_name IN ('public.a', 'public.b')";
    let all = "SELECT table_name, period, starts_at, ends_at FROM data_sync_metrics ORDER BY 1, 2, 3";
    assert_eq!(world.local.psql(windows), "t", "{}", world.local.psql(all));
    let weeks = "SELECT bool_and(extract(isodow FROM starts_at AT TIME ZONE 'UTC') = 1) FROM data_sync_metrics WHERE period = 'week'";
    assert_eq!(world.local.psql(weeks), "t");
    let whole = "SELECT batches > 0, segments > 0, wal_bytes > 0, max_lag_seconds >= 0 FROM data_sync_metrics WHERE table_name = '*' AND period = 'month'";
    assert_eq!(world.local.psql(whole), "t|t|t|t");
    // So is a batch in which nothing committed.
    let batches = || -> u64 {
        let sql = "SELECT sum(batches) FROM data_sync_metrics WHERE table_name = '*' AND period = 'month'";
        world.local.psql(sql).parse().unwrap()
    };
    let before = batches();
    world
        .production
        .psql("SELECT pg_logical_emit_message(false, 'nothing', 'committed')");
    world.sync();
    assert!(batches() > before);
    // Applied once and counted once, though it was killed on the way.
    world
        .production
        .psql("INSERT INTO b SELECT g, g FROM generate_series(100, 119) g");
    world.archived();
    world.once().at("datasync.before_commit", 1).run().assert_killed();
    world.once().at("datasync.committed", 1).run().assert_killed();
    world.run(&["run-once"]).ok();
    assert_eq!(counted("public.b", "month"), "22|0|1|21|0|0");
    assert_eq!(world.local.psql(&rows("b")), world.production.psql(&rows("b")));
    let (_, all) = world.json(&["status", "--all"]);
    let unseen = all["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|t| t["table_name"] == "public.unseen")
        .unwrap();
    assert_eq!(unseen["state"], "not selected");

    // The current periods, and those that are over; what is over stays as it was.
    let now = "SELECT table_name, period, added, updated, deleted, net_added, net_updated, net_deleted, incomplete FROM data_sync_metrics_now
        WHERE table_name = 'public.b' AND period = 'month'";
    assert_eq!(world.local.psql(now), "public.b|month|22|0|1|21|0|0|f");
    assert_eq!(world.local.psql("SELECT count(*) FROM data_sync_metrics_closed"), "0");
    world.local.psql(
        "UPDATE data_sync_metrics SET starts_at = starts_at - interval '1 year', ends_at = ends_at - interval '1 year' WHERE table_name = 'public.b'",
    );
    assert_eq!(world.local.psql(now), "");
    assert_eq!(
        world
            .local
            .psql("SELECT DISTINCT table_name, added, deleted, net_added FROM data_sync_metrics_closed"),
        "public.b|22|1|21"
    );
    let (_, shown) = world.json(&["metrics", "--table", "b", "--period", "month"]);
    assert_eq!(
        (shown[0]["closed"].as_bool(), shown[0]["added"].as_u64()),
        (Some(true), Some(22))
    );
    world.run(&["metrics", "--table", "b"]).fails(0, &["closed"]);
    world.production.psql("DELETE FROM b WHERE id = 100");
    world.sync();
    assert_eq!(world.local.psql(now), "public.b|month|0|0|1|0|0|1|f");
    // The service as one row.
    let status = "SELECT s.state, s.applied_lsn = t.applied_lsn, s.rows_as_of = t.last_commit, s.last_batch_at = t.updated_at,
        tables_synced, tables_waiting, tables_in_trouble, error IS NULL, beat_at >= started_at FROM data_sync_status s, synctool.datasync_state t";
    assert_eq!(world.local.psql(status), "stopped|t|t|t|2|0|0|t|t");
    world
        .local
        .psql("INSERT INTO tables_to_sync VALUES ('nowhere'), ('unseen')");
    world.local.psql("DROP TABLE unseen");
    world.run(&["run-once"]).ok();
    assert_eq!(world.local.psql(status), "stopped|t|t|t|2|0|2|t|t");
}

#[test]
fn metrics_are_productions_operations_by_the_time_of_their_commit() {
    metrics_are_productions_operations(PgVersion::V18);
}

#[test]
fn metrics_are_productions_operations_by_the_time_of_their_commit_15() {
    metrics_are_productions_operations(PgVersion::V15);
}

/// Lines of the log that are old enough go, and so do requests that were answered then.
#[test]
fn old_lines_of_the_log_are_removed() {
    let world = followed(
        "CREATE TABLE t (id int PRIMARY KEY)",
        "INSERT INTO t VALUES (1)",
        &["t"],
    );
    let old = "INSERT INTO data_sync_logs (at, level, event, message) SELECT now() - d * interval '1 day', 'info', 'old', d FROM unnest('{1,29,31,100}'::int[]) d;
        INSERT INTO synctool.datasync_requests (at, kind, done_at, ok) SELECT now() - d * interval '1 day', 'verify', now() - d * interval '1 day', true FROM unnest('{29,31}'::int[]) d";
    world.local.psql(old);
    let left = |world: &World| {
        let lines = "SELECT string_agg(message, ',' ORDER BY at DESC) FROM data_sync_logs WHERE event = 'old'";
        let requests = "SELECT count(*) FROM synctool.datasync_requests WHERE kind = 'verify'";
        format!("{} {}", world.local.psql(lines), world.local.psql(requests))
    };
    world.configure("LOG_RETENTION_DAYS = 0\n");
    world.run(&["run-once"]).ok();
    assert_eq!(left(&world), "1,29,31,100 2");
    // Without a word it is 90 days.
    world.configure("");
    world.run(&["run-once"]).ok();
    assert_eq!(left(&world), "1,29,31 2");
    world.configure("LOG_RETENTION_DAYS = \"30\"\n");
    world.run(&["run-once"]).ok();
    assert_eq!(left(&world), "1,29 1");
}

/// Segments that are too large for memory: copied, followed, packed, and found again after a kill.
#[test]
fn segments_of_another_size_are_followed() {
    let world = World::with(
        PgVersion::V18,
        "CREATE TABLE t (id int PRIMARY KEY, body text)",
        |production| production.initdb("--wal-segsize=64").setting("min_wal_size", "256MB"),
    );
    world
        .production
        .psql("INSERT INTO t SELECT g, repeat(md5(g::text), 50) FROM generate_series(1, 20000) g");
    world.ready();
    world.add(&["t"]);
    world.run(&["run-once"]).ok();
    world.same(&["t"]);
    for round in 0..2 {
        world.production.psql(&format!(
            "INSERT INTO t SELECT g, repeat(md5(g::text), 50) FROM generate_series(100000 + {round} * 20000, 119999 + {round} * 20000) g;
             DELETE FROM t WHERE id % 10 = {round}; UPDATE t SET body = 'changed' WHERE id % 10 = 5"
        ));
        world.archived();
        let mut plain = files(&world.path("archive"));
        plain.retain(|file| file.extension().is_none());
        assert!(Command::new("gzip").arg("-1").args(&plain).status().unwrap().success());
        world.once().at("datasync.planned", 1).run().assert_killed();
        world.run(&["run-once"]).ok();
        world.same(&["t"]);
        assert!(files(&world.path("scratch/ready")).is_empty());
    }
    let (_, status) = world.json(&["status"]);
    assert_eq!(status["archive"]["silent"], false, "{status:#}");
    world.run(&["verify"]).ok();
}
