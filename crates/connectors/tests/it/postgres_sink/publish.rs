//! Merging, appending and swapping into existing tables.

use super::*;
use synctool_core::error::code;

fn merged(delete_missing: bool) -> Publish {
    Publish::Merge { delete_missing }
}

/// Items with a type name of ours, as the planner leaves them.
fn typed(f: &Fixture, mut schema: TableSchema) -> TableSchema {
    for c in &mut schema.columns {
        c.source_type = Some(f.destination.store_as("mysql", c).type_name);
    }
    schema
}

on_servers! {
    async fn a_merge_writes_only_what_differs(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql(
            "CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer, extra text DEFAULT 'x', \
             twice integer GENERATED ALWAYS AS (price * 2) STORED);
             INSERT INTO items (id, name, price) VALUES (1, 'same', 1), (2, 'old', 2), (3, 'gone', 3), (4, NULL, 4)",
        );
        let table = TableId::bare("items");
        let before = f.db.psql("SELECT ctid FROM items WHERE id = 1");
        let rows = || [item_rows([(1, "same", 1), (2, "new", 2), (4, "set", 4), (5, "added", 5)])];
        let p = plan(&table, &items(), merged(true), &["all"]);
        let preview = f.destination.preview(&p).await.unwrap().join("\n");
        assert!(preview.contains("SHARE ROW EXCLUSIVE") && preview.contains("record_image_ne"), "{preview}");
        assert_eq!(f.db.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'synctool'"), "0", "a preview changes nothing");
        let applied = run(&f.destination, p, rows()).await.unwrap();
        assert_eq!(applied, Applied { written: 4, inserted: 1, updated: 2, deleted: 1, unchanged: 1, removed: 0, own: 0 });
        assert_eq!(dump(&f.db, "items"), "(1,same,1,x,2)\n(2,new,2,x,4)\n(4,set,4,x,8)\n(5,added,5,x,10)");
        assert_eq!(f.db.psql("SELECT ctid FROM items WHERE id = 1"), before);
        let again = run(&f.destination, plan(&table, &items(), merged(true), &["all"]), rows()).await.unwrap();
        assert_eq!(again, Applied { written: 4, unchanged: 4, ..Applied::default() });
        let upserted = run(&f.destination, plan(&table, &items(), merged(false), &["all"]), [item_rows([(9, "n", 9)])]).await.unwrap();
        assert_eq!(upserted, Applied { written: 1, inserted: 1, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT count(*) FROM items"), "5");
        assert!(!f.destination.made_here(&table).await.unwrap());
        assert_eq!(f.db.psql("SELECT count(*) FROM pg_class WHERE relname LIKE '\\_synctool\\_load%'"), "0");
    }

    async fn a_merge_sees_what_equality_does_not(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql(
            "CREATE TABLE t (a int, b text, j json, n numeric, p point, f float8, PRIMARY KEY (b, a));
             INSERT INTO t VALUES (1, 'k', '{\"a\":1}', 1.0, '(1,2)', 0.0), (2, 'k', '{\"a\":1}', 1.0, '(1,2)', 0.0)",
        );
        let table = TableId::bare("t");
        let schema = f.destination.describe(&table).await.unwrap().unwrap();
        let mut schema = schema;
        schema.columns.iter_mut().for_each(|c| c.carrier = f.destination.store_as("postgresql", c).carrier);
        assert_eq!(schema.key, ["b", "a"]);
        let rows = batch(&schema, &[
            &[Some("1"), Some("k"), Some("{\"a\":1}"), Some("1.0"), Some("(1,2)"), Some("0")],
            &[Some("2"), Some("k"), Some("{\"a\": 1}"), Some("1.00"), Some("(1,2)"), Some("-0")],
        ]);
        let applied = run(&f.destination, plan(&table, &schema, merged(true), &["all"]), [rows]).await.unwrap();
        assert_eq!(applied, Applied { written: 2, updated: 1, unchanged: 1, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT j, n, f FROM t WHERE a = 2"), "{\"a\": 1}|1.00|-0");
    }

    async fn a_merge_casts_where_the_destination_is_wider(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id numeric PRIMARY KEY, name varchar(50), price bigint); INSERT INTO items VALUES (1, 'a', 1), (2, 'b', 2)");
        let applied = run(
            &f.destination,
            plan(&TableId::bare("items"), &items(), merged(true), &["all"]),
            [item_rows([(1, "a", 1), (2, "B", 2), (3, "c", 3)])],
        )
        .await
        .unwrap();
        assert_eq!(applied, Applied { written: 3, inserted: 1, updated: 1, unchanged: 1, ..Applied::default() });
    }

    async fn exchanged_unique_values_are_merged(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text UNIQUE, price integer);
            INSERT INTO items VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 3)");
        let applied = run(
            &f.destination,
            plan(&TableId::bare("items"), &items(), merged(true), &["all"]),
            [item_rows([(1, "b", 1), (2, "a", 2), (3, "c", 3), (4, "d", 4)])],
        )
        .await
        .unwrap();
        assert_eq!(applied, Applied { written: 4, inserted: 1, updated: 2, unchanged: 1, ..Applied::default() });
        assert_eq!(dump(&f.db, "items"), "(1,b,1)\n(2,a,2)\n(3,c,3)\n(4,d,4)");
    }

    async fn the_guard_stops_mass_deletes(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer); INSERT INTO items SELECT i, 'n', 1 FROM generate_series(1, 5000) i");
        let table = TableId::bare("items");
        let keep = |n: i64| [item_rows((1..=n).map(|i| (i, "n", 1)))];
        for (publish, n) in [(merged(true), 3000), (merged(true), 0), (Publish::Swap, 3000)] {
            let p = plan(&table, &typed(&f, items()), publish.clone(), &["all"]);
            let e = run(&f.destination, p, keep(n)).await.unwrap_err();
            assert_eq!(e.code(), code::MASS_DELETE, "{publish:?} {n}: {e}");
            assert_eq!(f.db.psql("SELECT count(*) FROM items"), "5000", "nothing was changed");
        }
        let mut p = plan(&table, &items(), merged(true), &["all"]);
        p.guard.allow = true;
        let applied = run(&f.destination, p, keep(3000)).await.unwrap();
        assert_eq!(applied, Applied { written: 3000, deleted: 2000, unchanged: 3000, ..Applied::default() });
    }

    async fn appending_needs_no_key(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (n int GENERATED ALWAYS AS IDENTITY, id bigint, name text, price integer)");
        let mut schema = items();
        schema.key.clear();
        let p = plan(&TableId::bare("items"), &schema, Publish::Append, &["all"]);
        for _ in 0..2 {
            let applied = run(&f.destination, p.clone(), [item_rows([(1, "a", 1), (1, "a", 1)])]).await.unwrap();
            assert_eq!(applied, Applied::inserts(2));
        }
        assert_eq!(f.db.psql("SELECT count(*), max(n) FROM items"), "4|4");
        let e = run(&f.destination, plan(&TableId::bare("items"), &schema, merged(true), &["all"]), [item_rows([(1, "a", 1)])]).await.unwrap_err();
        assert_eq!(e.code(), code::KEY_MISSING, "{e}");
    }

    async fn triggers_and_foreign_keys_do_not_act_on_copied_rows(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("
            CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer);
            CREATE TABLE lines (id int PRIMARY KEY, item bigint REFERENCES items ON DELETE CASCADE);
            INSERT INTO items VALUES (1, 'a', 1), (2, 'b', 2); INSERT INTO lines VALUES (1, 2);
            CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.name = upper(NEW.name); RETURN NEW; END $$;
            CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION shout()");
        let table = TableId::bare("items");
        let p = plan(&table, &items(), merged(true), &["all"]);
        let preview = f.destination.preview(&p).await.unwrap().join("\n");
        assert!(preview.contains("session_replication_role"), "{preview}");
        run(&f.destination, p.clone(), [item_rows([(1, "new", 1), (3, "c", 3)])]).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,new,1)\n(3,c,3)");
        assert_eq!(f.db.psql("SELECT count(*) FROM lines"), "1");
        // Without the right it is refused before anything is loaded.
        let role = format!("poor_{}", f.db.name());
        f.db.psql(&format!(
            "CREATE ROLE {role} LOGIN; GRANT CREATE ON DATABASE {} TO {role}; GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; \
             GRANT CREATE ON SCHEMA public TO {role}; ALTER SCHEMA synctool OWNER TO {role}; \
             GRANT ALL ON ALL TABLES IN SCHEMA synctool TO {role}", f.db.name()));
        let poor = open(&f.db.url_as(&role), DestinationOptions::default()).await;
        let e = poor.prepare(p.clone()).await.unwrap_err();
        assert_eq!(e.code(), code::REFUSED, "{e}");
        assert!(e.message().contains("shout") && e.message().contains("lines_item_fkey"), "{e}");
        f.db.psql("DROP TRIGGER shout ON items; ALTER TABLE lines ALTER CONSTRAINT lines_item_fkey DEFERRABLE; DELETE FROM lines");
        // What a key does to rows it does at once, whenever it is checked.
        let e = poor.prepare(p.clone()).await.unwrap_err();
        assert_eq!(e.code(), code::REFUSED, "{e}");
        f.db.psql("ALTER TABLE lines DROP CONSTRAINT lines_item_fkey, ADD CONSTRAINT lines_item_fkey FOREIGN KEY (item) REFERENCES items DEFERRABLE");
        run(&poor, p, [item_rows([(1, "deferred", 1), (3, "c", 3)])]).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,deferred,1)\n(3,c,3)");
        f.db.psql(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
    }

    async fn a_swap_keeps_everything(version: PgVersion) {
        let f = fixture(version).await;
        let reader = format!("reader_{}", f.db.name());
        let owner = format!("owner_{}", f.db.name());
        f.db.psql(&format!("
            CREATE ROLE {reader}; CREATE ROLE {owner}; CREATE SCHEMA app;
            CREATE TABLE shops (id int PRIMARY KEY); INSERT INTO shops VALUES (1);
            CREATE SEQUENCE numbers;
            CREATE TABLE items (
              id bigint GENERATED ALWAYS AS IDENTITY (INCREMENT BY 5 CACHE 1) CONSTRAINT \"Items Key\" PRIMARY KEY,
              name text COLLATE \"C\" NOT NULL DEFAULT 'none' CONSTRAINT short CHECK (length(name) < 100),
              price integer CONSTRAINT one_price UNIQUE DEFERRABLE INITIALLY DEFERRED,
              shop int CONSTRAINT of_shop REFERENCES shops,
              serial_no int DEFAULT nextval('numbers'),
              span int4range,
              CONSTRAINT apart EXCLUDE USING gist (span WITH &&)
            ) WITH (fillfactor = 70, autovacuum_enabled = true);
            ALTER SEQUENCE numbers OWNED BY items.serial_no;
            CREATE INDEX by_name ON items (lower(name) DESC) WHERE price > 0;
            CREATE INDEX \"By Price\" ON items USING brin (price) WITH (pages_per_range = 16);
            CREATE INDEX clustered ON items (name);
            CREATE STATISTICS app.together ON name, price FROM items;
            ALTER TABLE items CLUSTER ON clustered"));
        f.db.psql(&format!("
            ALTER TABLE items ALTER name SET STATISTICS 77, ALTER name SET STORAGE EXTERNAL, ALTER name SET (n_distinct = 5);
            COMMENT ON TABLE items IS 'the items'; COMMENT ON COLUMN items.name IS 'its name';
            COMMENT ON INDEX by_name IS 'an index'; COMMENT ON CONSTRAINT short ON items IS 'a check';
            COMMENT ON STATISTICS app.together IS 'both';
            GRANT SELECT ON items TO PUBLIC; GRANT UPDATE (name), SELECT ON items TO {reader} WITH GRANT OPTION;
            CREATE VIEW cheap WITH (security_barrier = true) AS SELECT id, name AS label FROM items WHERE price < 100;
            CREATE VIEW app.cheaper (a, b) AS SELECT c.id, i.price FROM cheap c JOIN items i USING (id);
            COMMENT ON VIEW cheap IS 'a view'; COMMENT ON COLUMN cheap.label IS 'a label';
            ALTER VIEW cheap ALTER label SET DEFAULT 'd';
            GRANT SELECT ON cheap TO {reader}; REVOKE ALL ON app.cheaper FROM postgres; GRANT SELECT (a) ON app.cheaper TO {reader};
            ALTER VIEW app.cheaper OWNER TO {owner}; GRANT {owner} TO postgres; GRANT USAGE ON SCHEMA app TO {owner}; GRANT SELECT ON items, cheap TO {owner};
            INSERT INTO items (name, price, shop) VALUES ('old', 1, 1);
            ALTER TABLE items OWNER TO {owner}; GRANT REFERENCES, SELECT ON shops TO {owner}; GRANT USAGE ON SCHEMA public TO {owner}"));
        let state = || f.db.psql("
            SELECT 'table', relname, relowner::regrole, (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(relacl) a), reloptions, obj_description(oid) FROM pg_class WHERE relname IN ('items', 'cheap', 'cheaper', 'numbers', 'items_id_seq') ORDER BY 2;
            SELECT 'column', attrelid::regclass, attname, attnotnull, attidentity, attcollation::regcollation, attstattarget, attstorage, attoptions, (SELECT string_agg(a::text, ' ' ORDER BY a::text) FROM unnest(attacl) a), col_description(attrelid, attnum),
              (SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = attrelid AND adnum = attnum)
              FROM pg_attribute WHERE attrelid IN ('items'::regclass, 'cheap'::regclass, 'app.cheaper'::regclass) AND attnum > 0 ORDER BY 2, 3;
            SELECT 'constraint', conname, contype, pg_get_constraintdef(oid), obj_description(oid) FROM pg_constraint WHERE conrelid = 'items'::regclass ORDER BY 2;
            SELECT 'index', pg_get_indexdef(indexrelid), indisclustered, obj_description(indexrelid) FROM pg_index WHERE indrelid = 'items'::regclass ORDER BY 2;
            SELECT 'view', viewname, definition FROM pg_views WHERE viewname LIKE 'cheap%' ORDER BY 2;
            SELECT 'sequence', s.*, pg_get_serial_sequence('items', 'serial_no') FROM pg_sequences s ORDER BY 2, 3;
            SELECT 'statistics', pg_get_statisticsobjdef(oid), obj_description(oid) FROM pg_statistic_ext");
        let before = state();
        assert!(before.contains("Items Key") && before.contains("a label") && before.contains("both"), "{before}");
        let table = TableId::bare("items");
        let mut schema = f.destination.describe(&table).await.unwrap().unwrap();
        schema.columns.iter_mut().for_each(|c| c.carrier = f.destination.store_as("postgresql", c).carrier);
        assert_eq!(f.destination.swap_obstacles(&table, &schema).await.unwrap(), Vec::<String>::new());
        let row = |id: &'static str, price: &'static str| [Some(id), Some("new"), Some(price), Some("1"), Some("3"), None];
        let rows = batch(&schema, &[&row("1", "1"), &row("6", "2"), &row("11", "3")]);
        let p = plan(&table, &schema, Publish::Swap, &["all"]);
        let preview = f.destination.preview(&p).await.unwrap().join("\n");
        assert!(preview.contains("ACCESS EXCLUSIVE"), "{preview}");
        let oid = f.db.psql("SELECT 'items'::regclass::oid");
        let applied = run(&f.destination, p.clone(), [rows]).await.unwrap();
        assert_eq!(applied, Applied { written: 3, inserted: 2, updated: 1, ..Applied::default() });
        assert_ne!(f.db.psql("SELECT 'items'::regclass::oid"), oid);
        // The sequences have moved behind the largest values, nothing else is different.
        let after = state();
        assert_ne!(before, after);
        let still = |s: &str| s.lines().filter(|l| !l.starts_with("sequence")).map(String::from).collect::<Vec<_>>();
        assert_eq!(still(&before), still(&after));
        assert_eq!(f.db.psql("SELECT sequencename, increment_by, last_value FROM pg_sequences ORDER BY 1"), "items_id_seq|5|11\nnumbers|1|3");
        assert_eq!(f.db.psql("SELECT * FROM app.cheaper ORDER BY 1"), "1|1\n6|2\n11|3");
        assert_eq!(f.db.psql("SELECT count(*) FROM pg_class WHERE relname LIKE '\\_synctool%'"), "0");
        assert_eq!(f.db.psql("SELECT count(*) FROM pg_constraint WHERE conname LIKE '\\_synctool%'"), "0");
        assert!(f.destination.made_here(&table).await.unwrap());
        // And once more, from what the swap made.
        let rows = batch(&schema, &[&row("1", "5"), &row("6", "6"), &row("11", "7")]);
        run(&f.destination, p, [rows]).await.unwrap();
        assert_eq!(still(&before), still(&state()));
        f.db.psql(&format!("REASSIGN OWNED BY {owner}, {reader} TO postgres; DROP OWNED BY {owner}, {reader}; DROP ROLE {owner}, {reader}"));
    }

    async fn what_a_swap_would_lose_is_named(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("
            CREATE TABLE parent (id bigint PRIMARY KEY, name text, price integer, more int, twice int GENERATED ALWAYS AS (price * 2) STORED);
            CREATE TABLE child (id int REFERENCES parent);
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
            CREATE TRIGGER watch AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION f();
            ALTER TABLE parent ENABLE ROW LEVEL SECURITY; CREATE POLICY mine ON parent USING (true);
            CREATE RULE quiet AS ON DELETE TO parent DO INSTEAD NOTHING;
            CREATE PUBLICATION told FOR TABLE parent; ALTER TABLE parent REPLICA IDENTITY FULL;
            CREATE VIEW over AS SELECT id FROM parent; CREATE MATERIALIZED VIEW kept AS SELECT * FROM over;
            CREATE FUNCTION takes(parent) RETURNS int LANGUAGE sql AS 'SELECT 1';
            CREATE TABLE heir () INHERITS (parent)");
        let table = TableId::bare("parent");
        let mut schema = typed(&f, items());
        schema.columns[1].source_type = Some("character varying(5)".into());
        let found = f.destination.swap_obstacles(&table, &schema).await.unwrap().join("\n");
        for what in [
            "foreign key child_id_fkey", "trigger watch", "row level security", "policy mine", "rule quiet", "publication told",
            "replica identity", "materialized view public.kept", "function public.takes", "public.heir inherits from it",
            "column more is not among", "column twice", "column name is text here and would become character varying(5)",
        ] {
            assert!(found.contains(what), "{what} is missing in:\n{found}");
        }
        f.db.psql("CREATE TABLE parted (id bigint, name text, price integer) PARTITION BY LIST (id)");
        let found = f.destination.swap_obstacles(&TableId::bare("parted"), &typed(&f, items())).await.unwrap();
        assert_eq!(found, ["it is a partitioned table"]);
    }

    async fn a_swap_waits_for_readers_without_queueing_them(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        run(&f.destination, plan(&table, &items(), Publish::Create, &["all"]), [item_rows([(1, "a", 1)])]).await.unwrap();
        let destination = open(&f.db.url(), DestinationOptions {
            lock_timeout: std::time::Duration::from_millis(50),
            ..Default::default()
        }).await;
        let reader = f.db.connect().await;
        reader.batch_execute("BEGIN; SELECT * FROM items").await.unwrap();
        let p = plan(&table, &typed(&f, items()), Publish::Swap, &["all"]);
        let swapping = tokio::spawn(async move { run(&destination, p, [item_rows([(1, "b", 1), (2, "c", 2)])]).await });
        // The swap gave up waiting at least once; another reader got through meanwhile.
        synctool_testkit::eventually("the swap's lock request", std::time::Duration::from_secs(20), async || {
            f.db.psql("SELECT count(*) > 0 FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'") == "t"
        }).await;
        assert_eq!(f.db.psql("SELECT name FROM items"), "a");
        reader.batch_execute("COMMIT").await.unwrap();
        swapping.await.unwrap().unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,b,1)\n(2,c,2)");
    }

    async fn a_table_that_stays_busy_is_left_alone(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer); INSERT INTO items VALUES (1, 'a', 1)");
        let table = TableId::bare("items");
        let destination = open(&f.db.url(), DestinationOptions {
            lock_timeout: std::time::Duration::from_millis(20),
            lock_attempts: 2,
            ..Default::default()
        }).await;
        let user = f.db.connect().await;
        user.batch_execute("BEGIN; UPDATE items SET name = 'b'").await.unwrap();
        for publish in [merged(true), Publish::Swap] {
            let p = plan(&table, &typed(&f, items()), publish, &["all"]);
            let e = run(&destination, p, [item_rows([(1, "c", 1)])]).await.unwrap_err();
            assert_eq!(e.code(), code::CONFLICT, "{e}");
            assert!(e.message().contains("others keep using it"), "{e}");
        }
        user.batch_execute("COMMIT").await.unwrap();
        // The plan is still there: publishing goes on where it stood.
        let p = destination.stored_plan("shop").await.unwrap().unwrap();
        assert!(!p.finished);
        destination.publish(&p.plan).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,c,1)");
    }

    async fn new_columns_come_with_a_swap(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        run(&f.destination, plan(&table, &items(), Publish::Create, &["all"]), [item_rows([(1, "a", 1)])]).await.unwrap();
        let mut schema = typed(&f, items());
        schema.columns.push(Column::new("added", ColumnType::Date).with_source_type("date"));
        let rows = batch(&schema, &[&[Some("1"), Some("a"), Some("1"), Some("2024-02-29")]]);
        run(&f.destination, plan(&table, &schema, Publish::Swap, &["all"]), [rows]).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,a,1,2024-02-29)");
    }
}
