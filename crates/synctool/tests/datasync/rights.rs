//! A local role that is no superuser, with the rights of the guide and with less.

use super::{World, rows};
use synctool_testkit::{PgVersion, Postgres, wait_for};

const SCHEMA: &str = "
CREATE TYPE mood AS ENUM ('low', 'high');
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n int, m mood DEFAULT 'low', twice int GENERATED ALWAYS AS (n * 2) STORED);
CREATE TABLE items (id int PRIMARY KEY, \"order\" bigint REFERENCES orders, body text);
CREATE TABLE nokey (a int, b text);
CREATE TABLE late (id int PRIMARY KEY, u int UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE parted (id int, side int, PRIMARY KEY (id, side)) PARTITION BY LIST (side);
CREATE TABLE leaf_1 PARTITION OF parted FOR VALUES IN (1);
CREATE TABLE leaf_2 PARTITION OF parted FOR VALUES IN (2);
CREATE FUNCTION never() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'fired'; END $$;
CREATE TRIGGER never BEFORE INSERT OR UPDATE OR DELETE ON items FOR EACH ROW EXECUTE FUNCTION never();";
const TABLES: &[&str] = &["orders", "items", "nokey", "late", "leaf_1", "leaf_2"];
const SELECTED: &[&str] = &["orders", "items", "nokey", "late", "parted"];

/// What the guide says is enough (docs/data-sync.md, step 3).
fn grants(database: &str) -> [String; 4] {
    [
        "GRANT SET ON PARAMETER session_replication_role TO admin".into(),
        format!("GRANT CREATE ON DATABASE {database} TO admin"),
        "GRANT CREATE ON SCHEMA public TO admin".into(),
        "GRANT SELECT, INSERT, DELETE ON orders, items, nokey, late, leaf_1, leaf_2 TO admin".into(),
    ]
}

/// A world whose local role is `admin`, who may log in and nothing else. The server is its own: roles are a server's.
fn world(server: &Postgres, version: PgVersion) -> World {
    server.psql("CREATE ROLE admin LOGIN NOSUPERUSER PASSWORD 'hunter2-s3ntinel'");
    let world = World::between(version, SCHEMA, |production| production, server.database("datasync"));
    world.configure("COPY_RANGE_MB = 1\n");
    world.reconfigure("PG_USER_NAME = \"postgres\"", "PG_USER_NAME = \"admin\"");
    world.production.psql(
        "ALTER TABLE items DISABLE TRIGGER never; INSERT INTO orders (n) SELECT g FROM generate_series(1, 300) g;
         INSERT INTO items SELECT g, 1 + g % 300, repeat(md5(g::text), 10) FROM generate_series(1, 6000) g; INSERT INTO nokey SELECT g % 5, NULLIF(g % 3, 1)::text FROM generate_series(1, 100) g;
         INSERT INTO late SELECT g, -g FROM generate_series(1, 50) g; INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 100) g",
    );
    world.ready();
    world
}

fn the_rights_of_the_guide_are_enough(version: PgVersion) {
    let server = Postgres::start(version);
    let world = world(&server, version);
    for grant in grants(world.local.name()) {
        world.local.psql(&grant);
    }
    world.add(SELECTED);
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    let change = |n: i32| {
        world.production.psql(&format!(
            "UPDATE orders SET n = {n}, m = 'high' WHERE id % 7 = 0; INSERT INTO orders (n) VALUES ({n}); DELETE FROM items WHERE id % 97 = {n};
             UPDATE items SET body = 'changed' WHERE id % 50 = {n}; DELETE FROM nokey WHERE ctid IN (SELECT ctid FROM nokey LIMIT 3); INSERT INTO nokey VALUES (1, NULL);
             UPDATE late SET u = u - 1; UPDATE parted SET side = 3 - side WHERE id % 9 = 0"
        ));
    };
    change(1);
    world.sync();
    world.same(TABLES);
    // The service: everything it is asked for.
    world.run(&["start"]).ok();
    wait_for("the scratch server", super::PATIENCE, || world.scratch_pid().is_some());
    let mut resync = vec!["resync"];
    resync.extend(SELECTED);
    world.run(&resync).ok();
    world.run(&["verify"]).ok();
    let (code, report) = world.json(&["doctor"]);
    assert_eq!((code, report["failed"].as_u64()), (0, Some(0)), "{report:#}");
    // A user's write is healed, and a table that production rewrote is read whole.
    world
        .local
        .psql("SET session_replication_role = replica; DELETE FROM orders WHERE id = 7");
    change(2);
    world
        .production
        .psql("VACUUM FULL nokey; BEGIN; TRUNCATE late; INSERT INTO late VALUES (1, 1); COMMIT");
    world.archived();
    world.eventually_same(TABLES);
    let healed = "SELECT count(*) FROM data_sync_logs WHERE event = 'healed' AND table_name = 'public.orders'";
    assert_eq!(world.local.psql(healed), "1");
    world.run(&["clear", "--yes"]).ok();
    world.run(&["remove-tables", "late"]).ok();
    world.run(&["add-tables", "late"]).ok();
    world.same(TABLES);
    assert_eq!(world.run(&["status"]).code, 0);
    world.run(&["stop"]).ok();
    world.run(&["clear", "--rebuild", "--yes"]).ok();
    world.run(&["run-once"]).ok();
    world.same(TABLES);
    world.run(&["verify"]).ok();
    let wrong = "SELECT level, event, message FROM data_sync_logs WHERE level = 'error'";
    assert_eq!(world.local.psql(wrong), "");
}

#[test]
fn the_rights_of_the_guide_are_enough_18() {
    the_rights_of_the_guide_are_enough(PgVersion::V18);
}

#[test]
fn the_rights_of_the_guide_are_enough_15() {
    the_rights_of_the_guide_are_enough(PgVersion::V15);
}

/// Each right that is missing is told with its GRANT, and once it is there all goes on.
#[test]
fn rights_that_are_missing_are_told_with_what_to_do() {
    let server = Postgres::start(PgVersion::V18);
    let world = world(&server, PgVersion::V18);
    let [parameter, database, schema, tables] = grants(world.local.name());
    // Nothing may be made.
    let create = ["the role needs CREATE on the database and on its schema public"];
    world.run(&["add-tables", "orders"]).fails(1, &create);
    world.local.psql(&database);
    world.run(&["add-tables", "orders"]).fails(1, &create);
    world.local.psql(&schema);
    world.add(SELECTED);
    // Triggers and foreign keys may not be switched off.
    let replica = "session_replication_role needs superuser or SET privilege on the local server";
    world.run(&["doctor"]).fails(
        1,
        &[
            replica,
            "GRANT SET ON PARAMETER session_replication_role TO \"admin\"",
            "the role may not read, insert into and delete from public.leaf_1",
            "GRANT SELECT, INSERT, DELETE ON public.orders TO",
        ],
    );
    world.run(&["run-once"]).fails(1, &[replica]);
    assert_eq!(world.local.psql("SELECT count(*) FROM orders"), "0");
    world.run(&["start"]).ok();
    wait_for("what status says", super::PATIENCE, || {
        let said = world.run(&["status"]).stdout;
        match said.contains(replica) {
            true => Ok(()),
            false => Err(said),
        }
    });
    world.local.psql(&parameter);
    // Tables that may not be written are paused, each by itself.
    let paused = "SELECT count(*) FROM data_sync_tables WHERE state = 'paused'";
    wait_for("the first copy", super::PATIENCE, || {
        match world.local.psql(paused).as_str() {
            "6" => Ok(()),
            _ => Err(world.run(&["status"]).stdout),
        }
    });
    let state = world.state("public.orders");
    assert!(
        state.contains("permission denied for table orders")
            && state.contains("synctool datasync resync public.orders"),
        "{state}"
    );
    world.local.psql(&tables);
    let mut resync = vec!["resync"];
    resync.extend(SELECTED);
    world.run(&resync).ok();
    world.same(TABLES);
    // A right that is taken away later pauses its table, and the others go on.
    world.local.psql("REVOKE DELETE ON items FROM admin");
    let before = world.local.psql(&rows("items"));
    world
        .production
        .psql("DELETE FROM items WHERE id = 5; UPDATE orders SET n = 0");
    world.archived();
    world.eventually_same(&["orders", "nokey"]);
    assert_eq!(world.local.psql(&rows("items")), before);
    let state = world.state("public.items");
    assert!(
        state.starts_with("paused: ") && state.contains("permission denied"),
        "{state}"
    );
    world.local.psql(&tables);
    world.run(&["resync", "items"]).ok();
    world.same(TABLES);
    world.run(&["stop"]).ok();
}
