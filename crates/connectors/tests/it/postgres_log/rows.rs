//! Rows: what a log says of them arrives, and in the types that a snapshot gives.

use super::*;
use synctool_core::testing::memory::Memory;

const ITEMS: &str = "CREATE TABLE items (id bigint PRIMARY KEY, name text, big text, n numeric);
    ALTER TABLE items ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE visits (user_id int, place varchar(20), at timestamptz, paid numeric(10,2) NOT NULL, PRIMARY KEY (place, user_id));";

on_servers! {
    /// A few new rows of a log are one INSERT, many are a COPY: both write what the source has, also where somebody wrote
    /// such a row before.
    async fn few_rows_and_many_arrive_alike(version: PgVersion) {
        let columns = "id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, c char(5), v varchar(3), n numeric(6, 2), t timestamp(0),
            z timestamptz, j jsonb, u uuid, b bytea, f float8, d date, o bool, x text";
        let make = format!("CREATE TABLE few ({columns}); CREATE TABLE many ({columns})");
        let c = Capture::new(version, &["few", "many"], &make);
        c.to.psql(&format!(
            "{make}; CREATE TABLE ways (t text, way text); CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO public.ways VALUES (TG_TABLE_NAME, CASE left(current_query(), 4) WHEN 'COPY' THEN 'COPY' ELSE 'arrays' END); RETURN NULL; END $$;
             CREATE TRIGGER note AFTER INSERT ON few FOR EACH STATEMENT EXECUTE FUNCTION note();
             CREATE TRIGGER note AFTER INSERT ON many FOR EACH STATEMENT EXECUTE FUNCTION note();
             ALTER TABLE few ENABLE ALWAYS TRIGGER note; ALTER TABLE many ENABLE ALWAYS TRIGGER note"
        ));
        c.catch_up().await.unwrap();
        c.to.psql("TRUNCATE ways");
        let write = |table: &str, rows: u32| {
            let some = |n: u32, value: &str| format!("CASE WHEN g % {n} <> 0 THEN {value} END");
            let values = [
                some(2, "'c' || g % 100"), some(3, "left('é' || g, 3)"), some(5, "(g - 50) / 7.0"),
                some(7, "timestamp '2026-01-01' + g * interval '1.7 s'"), some(11, "'infinity'::timestamptz"),
                some(13, "jsonb_build_object('g', g, 'n', null)"), some(3, "md5(g::text)::uuid"), some(5, "decode(md5(g::text), 'hex')"),
                some(2, "'NaN'::float8"), some(7, "date '0044-03-15 BC' + g"),
                some(3, "g % 2 = 0"), some(5, "repeat('x\\', g % 9)"),
            ];
            c.from.psql(&format!(
                "INSERT INTO {table} (c, v, n, t, z, j, u, b, f, d, o, x) SELECT {} FROM generate_series(1, {rows}) g",
                values.join(", ")
            ));
        };
        write("few", 100);
        write("many", 1000);
        c.catch_up().await.unwrap();
        c.assert_equal(&["few", "many"]);
        let ways = "SELECT string_agg(DISTINCT t || ' ' || way, ', ') FROM ways";
        assert_eq!(c.to.psql(ways), "few arrays, many COPY");
        // Somebody wrote rows of which the log tells later.
        c.to.psql("INSERT INTO few OVERRIDING SYSTEM VALUE SELECT 105, 'own'; INSERT INTO many OVERRIDING SYSTEM VALUE SELECT 1005, 'own'");
        write("few", 10);
        write("many", 200);
        c.catch_up().await.unwrap();
        c.assert_equal(&["few", "many"]);
    }

    /// F37 (DEFAULT), F38, F39, F40, F34, F35.
    async fn everything_that_happens_arrives(version: PgVersion) {
        let c = Capture::new(version, &["items", "visits"], ITEMS);
        c.from.psql("INSERT INTO items SELECT i, 'name ' || i, repeat(md5(i::text), 200), i / 7.0 FROM generate_series(1, 500) i;
                     INSERT INTO visits SELECT i, 'p' || i % 7, '2026-01-01Z'::timestamptz + i * interval '1 min', i FROM generate_series(1, 300) i");
        c.catch_up().await.unwrap();
        c.assert_equal(&["items", "visits"]);
        // Unchanged TOAST, a changed key, a swap of two keys, delete and insert of one key, an empty transaction.
        c.from.psql("UPDATE items SET name = 'changed' WHERE id % 5 = 0;
            UPDATE items SET id = id + 10000 WHERE id % 7 = 0;
            BEGIN; UPDATE items SET id = -1 WHERE id = 1; UPDATE items SET id = 1 WHERE id = 2; UPDATE items SET id = 2 WHERE id = -1; COMMIT;
            BEGIN; DELETE FROM items WHERE id = 3; INSERT INTO items VALUES (3, 'again', NULL, 'NaN'); COMMIT;
            BEGIN; INSERT INTO items VALUES (7000, 'x', repeat('y', 9000), 1); UPDATE items SET name = 'partial' WHERE id = 7000; COMMIT;
            BEGIN; COMMIT;
            UPDATE visits SET user_id = user_id + 1000, paid = paid + 0.01 WHERE user_id % 3 = 0;
            BEGIN; INSERT INTO items VALUES (8000, 'gone', NULL, NULL); SAVEPOINT a; INSERT INTO items VALUES (8001, 'never', NULL, NULL);
              ROLLBACK TO a; DELETE FROM visits WHERE user_id < 50; COMMIT;
            BEGIN; INSERT INTO items VALUES (9000, 'rolled back', NULL, NULL); ROLLBACK;");
        let ledger = c.catch_up().await.unwrap();
        c.assert_equal(&["items", "visits"]);
        assert!(ledger.outcome().updated > 100, "{:?}", ledger.outcome());
        c.from.psql("BEGIN; INSERT INTO visits VALUES (1, 'z', now(), 1); TRUNCATE items, visits; INSERT INTO items VALUES (1, 'after', 'b', 2); COMMIT");
        c.catch_up().await.unwrap();
        c.assert_equal(&["items", "visits"]);
        assert_eq!(c.to.psql("SELECT count(*) FROM items"), "1");
        // Nothing new: nothing written.
        c.catch_up().await.unwrap();
    }

    /// A snapshot of the destination that is older than a TRUNCATE and looks at the table later sees it empty, as with
    /// PostgreSQL's own TRUNCATE; everybody else sees the rows of before or those of after.
    async fn a_snapshot_older_than_a_truncate_sees_nothing(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        c.catch_up().await.unwrap();
        let (client, connection) = tokio_postgres::connect(&c.to.url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1").await.unwrap();
        c.from.psql("BEGIN; TRUNCATE t; INSERT INTO t VALUES (2), (3); COMMIT");
        c.catch_up().await.unwrap();
        let count = async || client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(count().await, 0);
        client.batch_execute("COMMIT").await.unwrap();
        assert_eq!(count().await, 2);
    }

    /// F37 (FULL, INDEX, NOTHING), F41.
    async fn every_replica_identity_works(version: PgVersion) {
        let mut c = Capture::new(version, &["full_key", "by_index", "bag", "insert_only"], "
            CREATE TABLE full_key (id int PRIMARY KEY, a text, big text); ALTER TABLE full_key REPLICA IDENTITY FULL;
            ALTER TABLE full_key ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE by_index (id int PRIMARY KEY, code text NOT NULL UNIQUE, v int, big text);
            ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_code_key; ALTER TABLE by_index ALTER big SET STORAGE EXTERNAL;
            CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL;
            CREATE TABLE insert_only (id int PRIMARY KEY, a text); ALTER TABLE insert_only REPLICA IDENTITY NOTHING;
            CREATE PUBLICATION synctool FOR TABLE insert_only WITH (publish_via_partition_root = true);
            INSERT INTO full_key SELECT i, 'a' || i, repeat('x', 5000) FROM generate_series(1, 20) i;
            INSERT INTO by_index SELECT i, 'c' || i, i, repeat('y', 5000) FROM generate_series(1, 20) i;
            INSERT INTO insert_only VALUES (1, 'one')");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::KEY_MISSING, "a table without a key must be asked for: {e}");
        c.request.keyless = true;
        c.catch_up().await.unwrap();
        c.from.psql("UPDATE full_key SET a = 'new' WHERE id < 5; UPDATE full_key SET id = id + 100 WHERE id > 15; DELETE FROM full_key WHERE id = 7;
            UPDATE by_index SET v = 0 WHERE id < 5; UPDATE by_index SET code = 'd' || id WHERE id > 15; DELETE FROM by_index WHERE id = 9;
            UPDATE by_index SET id = 1000 WHERE id = 1;
            INSERT INTO bag VALUES (1, 'x'), (1, 'x'), (2, 'y'), (NULL, 'z'); UPDATE bag SET b = 'w' WHERE a = 2; DELETE FROM bag WHERE a IS NULL;
            INSERT INTO insert_only VALUES (2, 'two')");
        c.catch_up().await.unwrap();
        c.assert_equal(&["full_key", "by_index", "bag", "insert_only"]);
        assert!(c.from.try_psql("UPDATE insert_only SET a = 'x'").is_err(), "the server itself refuses it");
        let reasons = c.destination().await.stored_plan("capture").await.unwrap().unwrap().plan.reasons.join("\n");
        assert!(reasons.contains("insert_only has REPLICA IDENTITY NOTHING") && reasons.contains("bag has no key"), "{reasons}");
    }

    /// A value of the key that is stored out of line comes with the old row alone: beside a chunk it is no other row.
    async fn a_key_that_is_stored_out_of_line_is_not_lost(version: PgVersion) {
        const LONG: &str = "repeat('k', 2100) || i";
        for (columns, change) in [
            ("k text PRIMARY KEY, n int", "n = n + 1"),
            ("k text, n int, PRIMARY KEY (k, n)", "n = n + 1000"),
            ("k text NOT NULL UNIQUE, n int PRIMARY KEY", "n = n + 1000"),
        ] {
            let mut c = Capture::new(version, &["t"], &format!("CREATE TABLE t ({columns}); ALTER TABLE t ALTER k SET STORAGE EXTERNAL;
                INSERT INTO t SELECT {LONG}, i FROM generate_series(1, 30) i"));
            if columns.contains("UNIQUE") {
                c.from.psql("ALTER TABLE t REPLICA IDENTITY USING INDEX t_k_key");
            }
            c.options.chunk_rows = 100;
            let following = c.while_a_chunk_waits(&format!("UPDATE t SET {change}")).await;
            shapes::until_equal(&c, "SELECT md5(k), n FROM t", "SELECT md5(k), n FROM t").await;
            following.stop().await.unwrap();
        }
    }

    /// Rows that the log brought before their chunk are no reason to write the chunk twice.
    async fn a_chunk_is_written_once(version: PgVersion) {
        let mut c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, a text);
            INSERT INTO t SELECT i, 'a' || i FROM generate_series(1, 3000) i");
        c.options.chunk_rows = 1000;
        let source = c.source(c.options.clone());
        source.steering().requests().pause(Pause::Chunks);
        let following = Following::of(&c, source.clone()).await;
        c.until_read().await;
        c.from.psql("UPDATE t SET a = 'b' WHERE id IN (500, 2500)");
        shapes::until_equal(&c, "SELECT id FROM t WHERE a = 'b'", "SELECT id FROM t").await;
        c.from.psql("ALTER TABLE t ADD c int; UPDATE t SET c = 1, a = 'b' WHERE id = 1500");
        shapes::until_equal(&c, "SELECT id FROM t WHERE a = 'b'", "SELECT id FROM t").await;
        source.steering().requests().pause(Pause::None);
        shapes::until_equal(&c, "SELECT id, a, c FROM t", "SELECT id, a, c FROM t").await;
        following.stop().await.unwrap();
        // Rows of what was undone are counted as well.
        let written = "SELECT n_tup_ins FROM pg_stat_user_tables WHERE relname = 't'";
        synctool_testkit::eventually("every row to be written once", Duration::from_secs(20), async || match c.to.psql(written) {
            n if n == "3000" => Ok(()),
            n => Err(n),
        })
        .await;
    }

    /// F35: TRUNCATE … CASCADE takes every table that refers to the one named, followed or not.
    async fn a_truncate_that_cascades(version: PgVersion) {
        let c = Capture::new(version, &["parent", "child"], "
            CREATE TABLE parent (id int PRIMARY KEY, a text); CREATE TABLE child (id serial PRIMARY KEY, of int REFERENCES parent);
            CREATE TABLE other (id int REFERENCES child);
            INSERT INTO parent SELECT i, 'a' || i FROM generate_series(1, 50) i; INSERT INTO child (of) SELECT i FROM generate_series(1, 50) i; INSERT INTO other VALUES (1)");
        c.catch_up().await.unwrap();
        // Somebody's own table at the destination refers to a copy; it is none of ours.
        c.to.psql("CREATE TABLE theirs (id int REFERENCES parent); INSERT INTO theirs VALUES (1)");
        c.from.psql("BEGIN; UPDATE parent SET a = 'x'; TRUNCATE parent RESTART IDENTITY CASCADE; INSERT INTO parent VALUES (1, 'after'); INSERT INTO child (of) VALUES (1); COMMIT");
        let refused = c.catch_up().await;
        let kept = c.to.psql("SELECT count(*) FROM theirs");
        match refused {
            // Either it is emptied as a whole and what refers to it stays, or it is refused by name; never silently emptied.
            Ok(_) => assert_eq!(kept, "1"),
            Err(e) => {
                assert!(!e.kind().is_transient(), "{e}");
                c.to.psql("DROP TABLE theirs");
                c.catch_up().await.unwrap();
            }
        }
        c.assert_equal(&["parent", "child"]);
        assert_eq!(c.to.psql("SELECT count(*) || ' ' || min(id) FROM child"), "1 1");
    }

    /// F41: of rows that equal each other in everything, as many go and change as at the source.
    async fn one_of_several_equal_rows(version: PgVersion) {
        for together in [false, true] {
            let mut c = Capture::new(version, &["bag"], "CREATE TABLE bag (a int, b text); ALTER TABLE bag REPLICA IDENTITY FULL");
            c.options.together = together;
            c.request.keyless = true;
            c.catch_up().await.unwrap();
            c.from.psql("INSERT INTO bag SELECT 1, 'x' FROM generate_series(1, 5); INSERT INTO bag VALUES (2, NULL), (2, NULL), (NULL, NULL), (NULL, NULL)");
            c.catch_up().await.unwrap();
            c.assert_equal(&["bag"]);
            c.from.psql("DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 1); DELETE FROM bag WHERE ctid = (SELECT min(ctid) FROM bag WHERE a IS NULL)");
            c.catch_up().await.unwrap();
            c.assert_equal(&["bag"]);
            c.from.psql("UPDATE bag SET b = 'y' WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 1); UPDATE bag SET b = 'z' WHERE ctid = (SELECT min(ctid) FROM bag WHERE a = 2)");
            c.catch_up().await.unwrap();
            c.assert_equal(&["bag"]);
            // All of it in one transaction, and rows that come and go within it.
            c.from.psql("BEGIN; INSERT INTO bag VALUES (1, 'x'), (1, 'x'); DELETE FROM bag WHERE ctid = (SELECT max(ctid) FROM bag WHERE b = 'x');
                UPDATE bag SET a = a + 1 WHERE ctid = (SELECT min(ctid) FROM bag WHERE b = 'x'); DELETE FROM bag WHERE ctid IN (SELECT ctid FROM bag WHERE b = 'x' ORDER BY ctid LIMIT 2); COMMIT");
            c.catch_up().await.unwrap();
            c.assert_equal(&["bag"]);
        }
    }

    /// F42: rows that move between partitions, under the root's name and under the partitions' own.
    async fn partitions_arrive_as_their_table(version: PgVersion) {
        for by_root in [true, false] {
            let c = Capture::new(version, &["events"], "
                CREATE TABLE events (id int, day date, note text, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
                CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
                CREATE TABLE events_2 (note text, day date NOT NULL, id int NOT NULL, PRIMARY KEY (id, day));
                ALTER TABLE events ATTACH PARTITION events_2 FOR VALUES FROM ('2026-02-01') TO ('2026-03-01');
                INSERT INTO events SELECT i, '2026-01-01'::date + i % 50, 'n' || i FROM generate_series(1, 200) i");
            if !by_root {
                c.from.psql("CREATE PUBLICATION synctool FOR TABLE events WITH (publish_via_partition_root = false)");
            }
            c.catch_up().await.unwrap();
            c.from.psql("UPDATE events SET day = day + 31 WHERE day < '2026-01-10'; DELETE FROM events WHERE id % 9 = 0; UPDATE events SET note = 'x' WHERE id % 4 = 0;
                CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM ('2026-03-01') TO ('2026-04-01'); INSERT INTO events VALUES (999, '2026-03-05', 'third')");
            c.catch_up().await.unwrap_or_else(|e| panic!("by root {by_root}: {e}"));
            c.assert_equal(&["events"]);
            c.from.psql("TRUNCATE events; INSERT INTO events VALUES (1, '2026-01-05', 'new')");
            c.catch_up().await.unwrap_or_else(|e| panic!("by root {by_root}: {e}"));
            c.assert_equal(&["events"]);
            c.from.psql("INSERT INTO events VALUES (2, '2026-02-05', 'stays'); TRUNCATE events_1");
            // The server does not tell a root's subscriber of it.
            c.catch_up().await.unwrap_or_else(|e| panic!("by root {by_root}: {e}"));
            c.assert_equal(&["events"]);
        }
    }

    /// F43, F44: a filter's rows come and go with it, and columns that are not published are left out.
    async fn filters_and_column_lists_hold_for_log_and_chunks(version: PgVersion) {
        let c = Capture::new(version, &["items"], ITEMS);
        c.from.psql("INSERT INTO items SELECT i, 'name ' || i, 'secret', i FROM generate_series(1, 100) i;
            ALTER TABLE items REPLICA IDENTITY FULL;
            CREATE PUBLICATION synctool FOR TABLE items (id, name, n) WHERE (n > 50)");
        // An update needs every column of its replica identity published, so the filter must stand on the key.
        c.from.psql("ALTER TABLE items REPLICA IDENTITY DEFAULT; ALTER PUBLICATION synctool SET TABLE items (id, name, n) WHERE (id > 50)");
        c.catch_up().await.unwrap();
        let view = "CREATE VIEW shown AS SELECT id, name, n FROM items WHERE id > 50";
        c.from.psql(view);
        c.to.psql("CREATE VIEW shown AS SELECT id, name, n FROM items");
        c.assert_equal(&["shown"]);
        c.from.psql("UPDATE items SET id = id + 100 WHERE id IN (10, 11, 12); UPDATE items SET id = -id WHERE id IN (60, 61); UPDATE items SET name = 'x' WHERE id IN (20, 70); DELETE FROM items WHERE id IN (30, 80)");
        c.catch_up().await.unwrap();
        c.assert_equal(&["shown"]);
        assert_eq!(c.to.psql("SELECT count(*) FROM pg_attribute WHERE attrelid = 'items'::regclass AND attname = 'big'"), "0");
    }

    /// F43: with the whole row before it, a filter may stand on any column, one that is NULL at times, too; what comes
    /// into it brings large values that did not change.
    async fn a_filter_on_another_column_than_the_key(version: PgVersion) {
        let mut c = Capture::new(version, &["items"], ITEMS);
        c.options.chunk_rows = 7;
        c.from.psql("INSERT INTO items SELECT i, 'name ' || i, repeat('b', 3000) || i, nullif(i % 4, 0) FROM generate_series(1, 100) i;
            ALTER TABLE items REPLICA IDENTITY FULL; CREATE PUBLICATION synctool FOR TABLE items WHERE (n > 1);
            CREATE VIEW shown AS SELECT * FROM items WHERE n > 1");
        c.catch_up().await.unwrap();
        c.to.psql("CREATE VIEW shown AS SELECT * FROM items");
        c.assert_equal(&["shown"]);
        c.from.psql("UPDATE items SET n = 9 WHERE id % 10 = 1; UPDATE items SET n = NULL WHERE id % 10 = 2; UPDATE items SET n = 0, id = -id WHERE id % 10 = 3;
            UPDATE items SET name = 'x' WHERE id % 3 = 0; UPDATE items SET id = id + 1000 WHERE id % 10 = 7; UPDATE items SET n = 5, id = id + 2000 WHERE id % 10 = 8;
            DELETE FROM items WHERE id % 10 = 9");
        c.catch_up().await.unwrap();
        c.assert_equal(&["shown"]);
    }

    /// F37 with F43: what comes into a filter by its key has large values that the log does not say.
    async fn large_values_of_rows_that_come_into_a_filter_are_read(version: PgVersion) {
        let c = Capture::new(version, &["items"], ITEMS);
        c.from.psql("INSERT INTO items SELECT i, 'name ' || i, repeat('b', 3000) || i, i FROM generate_series(1, 100) i;
            CREATE PUBLICATION synctool FOR TABLE items WHERE (id > 50);
            CREATE VIEW shown AS SELECT * FROM items WHERE id > 50");
        c.catch_up().await.unwrap();
        c.to.psql("CREATE VIEW shown AS SELECT * FROM items");
        c.assert_equal(&["shown"]);
        c.from.psql("UPDATE items SET id = id + 100 WHERE id IN (10, 11, 12); UPDATE items SET name = 'x' WHERE id = 110; DELETE FROM items WHERE id = 111");
        c.catch_up().await.unwrap();
        c.assert_equal(&["shown"]);
    }

    /// Rows that came to the source from another server, as its replication has them, arrive like its own.
    async fn rows_of_another_origin_arrive(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'own')");
        c.catch_up().await.unwrap();
        let origin = c.from.name();
        c.from.psql(&format!("SELECT pg_replication_origin_create('{origin}'), pg_replication_origin_session_setup('{origin}');
            BEGIN; SELECT pg_replication_origin_xact_setup('0/10', now()); INSERT INTO t VALUES (2, 'theirs'); UPDATE t SET a = 'changed' WHERE id = 1; COMMIT;
            SELECT pg_replication_origin_session_reset(); SELECT pg_replication_origin_drop('{origin}')"));
        c.catch_up().await.unwrap();
        c.assert_equal(&["t"]);
        assert_eq!(c.to.psql("SELECT count(*) FROM t"), "2");
    }

    /// Where the role may not switch foreign keys off, they are checked when a commit is made, whatever order its rows went
    /// in; one that changes rows by itself is refused.
    async fn foreign_keys_are_checked_at_the_end(version: PgVersion) {
        const KIN: &str = "CONSTRAINT kin FOREIGN KEY (of) REFERENCES parent";
        let tables = format!("CREATE TABLE parent (id int PRIMARY KEY, a text); CREATE TABLE child (id int PRIMARY KEY, of int);
            ALTER TABLE child ADD {KIN} DEFERRABLE");
        let c = Capture::new(version, &["parent", "child"], &tables);
        let (name, role) = (c.to.name(), format!("poor_{}", c.to.name()));
        c.to.psql(&format!("CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {name} TO {role}; ALTER SCHEMA public OWNER TO {role};
            SET ROLE {role}; {tables}"));
        let poor = async || {
            let opened = PostgresDestination::open(database(&c.to.url_as(&role)), DestinationOptions::default());
            Arc::new(opened.await.unwrap())
        };
        c.from.psql("INSERT INTO parent SELECT i, 'a' FROM generate_series(1, 20) i; INSERT INTO child SELECT i, 1 + i % 20 FROM generate_series(1, 50) i");
        c.catch_up_into(poor().await).await.unwrap();
        c.from.psql("BEGIN; UPDATE child SET of = 2 WHERE of = 1; DELETE FROM parent WHERE id = 1; COMMIT;
            BEGIN; SET CONSTRAINTS ALL DEFERRED; INSERT INTO child VALUES (100, 100); INSERT INTO parent VALUES (100, 'late');
              DELETE FROM parent WHERE id = 3; INSERT INTO parent VALUES (3, 'again'); COMMIT;
            BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE parent SET id = 200 WHERE id = 4; UPDATE child SET of = 200 WHERE of = 4; COMMIT");
        c.catch_up_into(poor().await).await.unwrap();
        c.assert_equal(&["parent", "child"]);
        c.to.psql(&format!("ALTER TABLE child DROP CONSTRAINT kin, ADD {KIN} ON DELETE CASCADE DEFERRABLE"));
        let e = c.catch_up_into(poor().await).await.unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::REFUSED, "{e}");
        assert!(e.message().contains("kin"), "{e}");
        c.to.psql(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
    }

    /// F62: each value of the conformance list is the same from a chunk and from the log.
    async fn a_log_gives_the_values_that_a_snapshot_gives(version: PgVersion) {
        let own = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (n int, t text); CREATE DOMAIN small AS int CHECK (VALUE < 100);";
        let (plain, all) = types();
        let mut ddl = own.to_string();
        for (table, types) in [("plain", &plain), ("everything", &all)] {
            let columns: Vec<String> = types.iter().enumerate().map(|(i, (ty, _))| format!("c{i} {ty}")).collect();
            ddl += &format!("CREATE TABLE {table} (id int PRIMARY KEY, {});", columns.join(", "));
        }
        // One stream in binary form, one as text: a type without a binary form here makes everything text.
        for tables in [&["plain"][..], &["plain", "everything"]] {
            let c = Capture::new(version, tables, &ddl);
            let fill = |from: i32| {
                for table in tables {
                    let types = if *table == "plain" { &plain } else { &all };
                    let height = types.iter().map(|(_, v)| v.len()).max().unwrap() as i32 + 1;
                    for row in 0..height {
                        let cells: Vec<String> = types.iter().map(|(_, v)| v.get(row as usize).map_or("NULL".into(), |v| format!("E'{}'", v.replace('\\', "\\\\").replace('\'', "\\'")))).collect();
                        c.from.psql(&format!("INSERT INTO {table} VALUES ({}, {})", from + row, cells.join(", ")));
                    }
                }
            };
            fill(0);
            let memory = Memory::default();
            c.catch_up_into(Arc::new(memory.clone())).await.unwrap();
            fill(1000);
            c.catch_up_into(Arc::new(memory.clone())).await.unwrap();
            for table in tables {
                let rows = memory.table(&TableId::new("public", *table)).unwrap().rows;
                let (chunk, log): (Vec<_>, Vec<_>) = rows.into_values().partition(|r| r[0].as_ref().unwrap().parse::<i32>().unwrap() < 1000);
                assert!(chunk.len() == log.len() && chunk.len() > 2, "{} and {}", chunk.len(), log.len());
                for (a, b) in chunk.iter().zip(&log) {
                    let different: Vec<_> = a.iter().zip(b).enumerate().skip(1).filter(|(_, (a, b))| a != b).collect();
                    assert!(different.is_empty(), "{tables:?} {table}: {different:?}");
                }
            }
            // And the database itself gets what the source has.
            c.to.psql(own);
            let mut again = c;
            again.request.pipeline = "second".into();
            again.options.slot += "_2";
            again.catch_up().await.unwrap();
            fill_more(&again, tables);
            again.catch_up().await.unwrap();
            again.assert_equal(tables);
        }
    }

    /// F62: types of extensions (15, whose servers have some) and of one name in two schemas, where the destination has them
    /// and where it keeps their text.
    async fn types_of_extensions_and_of_one_name_arrive(version: PgVersion) {
        let (extensions, columns, cells) = match version {
            PgVersion::V15 => (
                "CREATE SCHEMA ext; CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION citext SCHEMA ext;",
                ", h ext.hstore, w ext.citext",
                ", 'a=>1, b=>NULL', 'Word'",
            ),
            _ => ("", "", ""),
        };
        let own = format!("{extensions} CREATE SCHEMA one; CREATE SCHEMA two; CREATE TYPE one.mood AS ENUM ('sad', 'ok');
            CREATE TYPE two.mood AS ENUM ('ok', 'fine'); CREATE TYPE two.pair AS (a one.mood, b two.mood);");
        for known in [true, false] {
            let c = Capture::new(version, &["t"], &format!("{own} CREATE TABLE t (id int PRIMARY KEY, a one.mood, b two.mood, many two.mood[], p two.pair{columns})"));
            if known {
                c.to.psql(&own);
            }
            let fill = |from: i32| {
                c.from.psql(&format!("INSERT INTO t VALUES ({from}, 'sad', 'fine', '{{ok,NULL}}', '(sad,fine)'{cells});
                    INSERT INTO t (id, a, b, p) VALUES ({from} + 1, 'ok', 'ok', '(ok,ok)'); INSERT INTO t (id) VALUES ({from} + 2)"));
            };
            fill(0);
            c.catch_up().await.unwrap();
            fill(10);
            c.from.psql("UPDATE t SET a = 'ok', b = 'ok' WHERE id = 0; UPDATE t SET p = '(,ok)', many = '{fine}' WHERE id = 1");
            c.catch_up().await.unwrap();
            c.assert_equal(&["t"]);
            let stored = c.to.psql("SELECT string_agg(format_type(atttypid, atttypmod), ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 't'::regclass AND attname IN ('a', 'b')");
            assert_eq!(stored, if known { "one.mood two.mood" } else { "text text" });
        }
    }

    /// F48: a generated column is left out, unless the server publishes it (18).
    async fn generated_columns_come_where_they_are_published(version: PgVersion) {
        let c = Capture::new(version, &["g"], "CREATE TABLE g (id int PRIMARY KEY, a int, twice int GENERATED ALWAYS AS (a * 2) STORED); INSERT INTO g VALUES (1, 1)");
        let published = version == PgVersion::V18;
        if published {
            c.from.psql("CREATE PUBLICATION synctool FOR TABLE g WITH (publish_generated_columns = stored)");
        }
        c.catch_up().await.unwrap();
        c.from.psql("INSERT INTO g VALUES (2, 5); UPDATE g SET a = 7 WHERE id = 1");
        c.catch_up().await.unwrap();
        c.assert_equal(&["g"]);
        let there = c.to.psql("SELECT count(*) FROM pg_attribute WHERE attrelid = 'g'::regclass AND attname = 'twice'");
        assert_eq!(there, if published { "1" } else { "0" });
        if published {
            assert_eq!(c.to.psql("SELECT id, twice FROM g ORDER BY id"), "1|14\n2|10");
        }
    }
}

/// Every row again, through the log.
fn fill_more(c: &Capture, tables: &[&str]) {
    for table in tables {
        c.from.psql(&format!(
            "CREATE TEMP TABLE copied AS SELECT * FROM {table} WHERE id >= 1000; UPDATE copied SET id = id + 1000; INSERT INTO {table} SELECT * FROM copied; \
             UPDATE {table} SET id = id + 5000 WHERE id < 1000"
        ));
    }
}

type Types = Vec<(&'static str, &'static [&'static str])>;

/// Types whose values come in binary form, and all others besides.
fn types() -> (Types, Types) {
    let plain: Types = vec![
        ("boolean", &["true", "false"]),
        ("smallint", &["-32768", "32767"]),
        ("integer", &["-2147483648", "2147483647"]),
        ("bigint", &["-9223372036854775808", "9223372036854775807"]),
        ("numeric(12,2)", &["0.00", "-9999999999.99", "1.10"]),
        ("numeric(38,10)", &["1234567890123456789012345678.0123456789"]),
        (
            "numeric",
            &[
                "0",
                "0.00",
                "1e-20",
                "123456789012345678901234567890.5",
                "NaN",
                "Infinity",
                "-Infinity",
            ],
        ),
        ("real", &["0.1", "NaN", "-0", "Infinity"]),
        (
            "double precision",
            &["0.1", "Infinity", "-Infinity", "NaN", "5e-324", "-0", "1e308"],
        ),
        (
            "date",
            &[
                "0001-01-01",
                "0044-03-15 BC",
                "2024-02-29",
                "9999-12-31",
                "infinity",
                "-infinity",
                "4713-01-01 BC",
            ],
        ),
        ("time", &["00:00:00", "24:00:00", "23:59:59.999999"]),
        (
            "timestamp",
            &[
                "1969-12-31 23:59:59.999999",
                "2262-04-12 00:00:00",
                "0044-03-15 12:00:00 BC",
                "infinity",
                "-infinity",
            ],
        ),
        (
            "timestamptz",
            &[
                "2038-01-19 03:14:08.000001+00",
                "1582-10-10 00:00:00+00",
                "infinity",
                "-infinity",
            ],
        ),
        (
            "text",
            &[
                "",
                " ",
                "NULL",
                "\\N",
                "tab\tnewline\n\"quote\" 'single', back\\slash",
                "ä€😀",
            ],
        ),
        ("varchar(20)", &["ä€😀", ""]),
        ("char(5)", &["ab", "abcde"]),
        ("name", &["a name"]),
        ("bytea", &["\\x", "\\x00ff5c27"]),
        (
            "uuid",
            &[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
        ),
        ("json", &["{\"b\": 1,  \"a\": 1.0, \"a\": 2}", "null", "\"\\u0000\""]),
        (
            "jsonb",
            &[
                "{\"a\": 12345678901234567890.123456789}",
                "null",
                "[1, [2]]",
                "\"\\u00e4 \\\\u0000\"",
            ],
        ),
        ("small", &["1", "99"]),
    ];
    let mut all = plain.clone();
    all.extend::<Types>(vec![
        ("timetz", &["12:30:00+05:30", "23:59:59.999999-12"]),
        (
            "interval",
            &["1 year 2 mons -3 days +04:05:06.789", "00:00:00.000001", "-1 mons"],
        ),
        ("int[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"]),
        ("text[]", &["{NULL,\"null\",\"\",\"a,b\"}"]),
        ("inet", &["10.0.0.1", "10.0.0.0/8", "::1"]),
        ("cidr", &["10.0.0.0/8"]),
        ("macaddr", &["08:00:2b:01:02:03"]),
        ("money", &["$1.10", "-$5.00"]),
        ("bit(3)", &["101"]),
        ("varbit", &["1", ""]),
        ("int4range", &["[1,5)", "empty", "(,3)"]),
        ("tstzrange", &["[2020-01-01 00:00:00+00,)"]),
        ("point", &["(1.5,-2)"]),
        ("tsvector", &["'a':1 'b'"]),
        ("mood", &["sad", "ok"]),
        ("mood[]", &["{sad,NULL}"]),
        ("pair", &["(1,\"a b\")", "(,)"]),
        ("\"char\"", &["z", ""]),
        ("oid", &["4294967295"]),
        ("pg_lsn", &["16/B374D848"]),
    ]);
    (plain, all)
}
