//! Keys, types and tables that are unlike others.

use super::{World, followed, followed_on, rows};
use synctool_testkit::PgVersion;

/// The operators of an extension's type stand in the schema of the extension.
#[test]
fn keys_of_extensions_in_a_schema_of_their_own_are_found() {
    let schema = "CREATE SCHEMA ext; CREATE EXTENSION citext SCHEMA ext; CREATE EXTENSION ltree SCHEMA ext;
        CREATE EXTENSION hstore SCHEMA ext; CREATE EXTENSION cube SCHEMA ext; CREATE DOMAIN ext.word AS ext.citext CHECK (length(VALUE) > 0);
        CREATE TABLE ci (k ext.citext PRIMARY KEY, n int); CREATE TABLE tree (k ext.ltree, side int, n int, PRIMARY KEY (side, k));
        CREATE TABLE bag (k ext.hstore PRIMARY KEY, n int); CREATE TABLE box (k ext.cube PRIMARY KEY, n int);
        CREATE TABLE worded (k ext.word PRIMARY KEY, n int); CREATE TABLE wide (k int, n int, PRIMARY KEY (k) INCLUDE (n));
        CREATE TABLE list (k ext.ltree[] PRIMARY KEY, n int);";
    let tables = ["ci", "tree", "bag", "box", "worded", "wide", "list"];
    let world = World::new(PgVersion::V15, schema);
    world.production.psql(
        "INSERT INTO ci SELECT 'Key' || g, g FROM generate_series(1, 30) g; INSERT INTO tree SELECT ('a.n' || g)::ext.ltree, g % 3, g FROM generate_series(1, 30) g;
         INSERT INTO bag SELECT ('k=>' || g)::ext.hstore, g FROM generate_series(1, 30) g; INSERT INTO box SELECT ('(' || g || ',1)')::ext.cube, g FROM generate_series(1, 30) g;
         INSERT INTO worded SELECT 'W' || g, g FROM generate_series(1, 30) g; INSERT INTO wide SELECT g, g FROM generate_series(1, 30) g;
         INSERT INTO list SELECT ARRAY[('l' || g)::ext.ltree], g FROM generate_series(1, 30) g",
    );
    world.ready();
    world.add(&tables);
    world.run(&["run-once"]).ok();
    world.same(&tables);
    for table in tables {
        world.production.psql(&format!(
            "UPDATE {table} SET n = n + 100 WHERE n < 10; DELETE FROM {table} WHERE n BETWEEN 20 AND 24"
        ));
    }
    world.production.psql(
        "UPDATE ci SET k = upper(k::text) WHERE n = 15; UPDATE worded SET k = upper(k::text) || 'x' WHERE n = 15",
    );
    world.sync();
    world.same(&tables);
    for table in tables {
        assert_eq!(world.state(&format!("public.{table}")), "synced");
    }
    // Another spelling of a key is the same row to citext.
    let counted = |table: &str| {
        world.local.psql(&format!(
            "SELECT net_added, net_updated, net_deleted, incomplete FROM data_sync_metrics WHERE table_name = 'public.{table}' AND period = 'month'"
        ))
    };
    assert_eq!(counted("ci"), "0|10|5|f");
    assert_eq!(counted("worded"), "1|9|6|f");
    assert_eq!(counted("tree"), "0|9|5|f");
    world.run(&["verify"]).ok();
}

/// What a type is made of may change without a row being touched, however deep it lies.
fn a_label_is_renamed_deep_inside(version: PgVersion) {
    let schema = "CREATE TYPE mood AS ENUM ('low', 'high', 'top'); CREATE TYPE span AS RANGE (subtype = mood);
        CREATE TYPE felt AS (who text, m mood); CREATE TYPE day AS (n int, felt felt[]); CREATE DOMAIN best AS mood CHECK (VALUE > 'low');
        CREATE DOMAIN moods AS mood[];
        CREATE TABLE plain (id int PRIMARY KEY, n int); CREATE TABLE m1 (id int PRIMARY KEY, m mood); CREATE TABLE m2 (id int PRIMARY KEY, m mood[]);
        CREATE TABLE m3 (id int PRIMARY KEY, m span); CREATE TABLE m4 (id int PRIMARY KEY, m felt); CREATE TABLE m5 (id int PRIMARY KEY, m day);
        CREATE TABLE m6 (id int PRIMARY KEY, m best); CREATE TABLE m7 (id int PRIMARY KEY, m spanmulti); CREATE TABLE m8 (id int PRIMARY KEY, m moods);
        CREATE TABLE m9 (m felt, n int);";
    let schema = schema.replace("spanmulti", "multispan").replace(
        "CREATE TYPE span AS RANGE (subtype = mood)",
        "CREATE TYPE span AS RANGE (subtype = mood, multirange_type_name = multispan)",
    );
    let moody = ["m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "m9"];
    let mut all = moody.to_vec();
    all.push("plain");
    let world = followed_on(
        version,
        &schema,
        "INSERT INTO plain VALUES (1, 1); INSERT INTO m1 VALUES (1, 'high'), (2, 'low'); INSERT INTO m2 VALUES (1, '{low,high}'), (2, '{high}');
         INSERT INTO m3 VALUES (1, '[low,high]'), (2, '[high,top]'); INSERT INTO m4 VALUES (1, '(a,high)'), (2, '(b,low)');
         INSERT INTO m5 VALUES (1, ROW(1, ARRAY['(a,high)'::felt])), (2, NULL); INSERT INTO m6 VALUES (1, 'high'), (2, 'top');
         INSERT INTO m7 VALUES (1, '{[low,high]}'), (2, '{}'); INSERT INTO m8 VALUES (1, '{high}'), (2, NULL); INSERT INTO m9 VALUES ('(a,high)', 1)",
        &all,
    );
    world
        .production
        .psql("ALTER TYPE mood RENAME VALUE 'high' TO 'higher'; UPDATE plain SET n = 2");
    world.sync();
    world.same(&["plain"]);
    for table in moody {
        let state = world.state(&format!("public.{table}"));
        assert!(
            state.starts_with(&format!("paused: columns of public.{table} differ")) && state.contains("'higher'"),
            "{state}"
        );
    }
    world.local.psql("ALTER TYPE mood RENAME VALUE 'high' TO 'higher'");
    let mut resync = vec!["resync"];
    resync.extend(moody);
    world.run(&resync).ok();
    world.run(&["run-once"]).ok();
    world.same(&all);
    // Renamed here before it arrives: the old rows are read anew.
    world.local.psql("ALTER TYPE mood RENAME VALUE 'low' TO 'lowest'");
    world
        .production
        .psql("ALTER TYPE mood RENAME VALUE 'low' TO 'lowest'; UPDATE m2 SET m = '{lowest}' WHERE id = 2");
    world.sync();
    world.same(&all);
    world.run(&["verify"]).ok();
}

#[test]
fn a_label_that_is_renamed_deep_inside_a_type_pauses_the_table() {
    a_label_is_renamed_deep_inside(PgVersion::V18);
}

#[test]
fn a_label_that_is_renamed_deep_inside_a_type_pauses_the_table_15() {
    a_label_is_renamed_deep_inside(PgVersion::V15);
}

#[test]
fn a_table_without_columns_is_followed_by_the_number_of_its_rows() {
    let world = followed(
        "CREATE TABLE bare (); CREATE TABLE good (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL);
         CREATE TABLE made (id int GENERATED ALWAYS AS (7) STORED)",
        "INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES; INSERT INTO good VALUES (1);
         INSERT INTO made DEFAULT VALUES",
        &["bare", "good", "made"],
    );
    world.production.psql(
        "INSERT INTO bare SELECT FROM generate_series(1, 7); DELETE FROM bare WHERE ctid IN (SELECT ctid FROM bare LIMIT 2); INSERT INTO good VALUES (2);
         INSERT INTO made DEFAULT VALUES; INSERT INTO made DEFAULT VALUES",
    );
    world.sync();
    world.same(&["bare", "good", "made"]);
    assert_eq!(world.local.psql("SELECT count(*) FROM bare"), "8");
    world.production.psql("VACUUM FULL bare; INSERT INTO bare DEFAULT VALUES; DELETE FROM made WHERE ctid IN (SELECT ctid FROM made LIMIT 1)");
    world.sync();
    world.same(&["bare", "good", "made"]);
    world.run(&["verify"]).ok();
    world.run(&["resync", "--wait", "0", "bare"]).ok();
    world.run(&["run-once"]).ok();
    world.same(&["bare"]);
}

/// The server does not look at deferrable constraints while triggers are off; rows that share a value are found all the
/// same.
fn no_row_comes_in_twice(version: PgVersion) {
    let schema = "CREATE TABLE late (id int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED, u int UNIQUE DEFERRABLE, n int);
        CREATE TABLE nulls (id int, v int, UNIQUE NULLS NOT DISTINCT (v) DEFERRABLE INITIALLY DEFERRED); CREATE TABLE good (id int PRIMARY KEY)";
    let tables = ["late", "nulls", "good"];
    let world = followed_on(
        version,
        schema,
        "INSERT INTO late SELECT g, g, g FROM generate_series(1, 50) g; INSERT INTO nulls SELECT g, NULLIF(g, 5) FROM generate_series(1, 10) g",
        &tables,
    );
    // Keys and values that change hands, also within one transaction.
    world.production.psql(
        "UPDATE late SET id = 51 - id; BEGIN; UPDATE late SET u = 51 - u; INSERT INTO late VALUES (1, 77, 0); DELETE FROM late WHERE id = 1 AND u <> 77; COMMIT;
         UPDATE nulls SET v = CASE WHEN v IS NULL THEN 6 WHEN v = 6 THEN NULL ELSE v END",
    );
    world.sync();
    world.same(&tables);
    // Somebody was faster here: the table is copied anew, and the others go on.
    world
        .local
        .psql("INSERT INTO late VALUES (100, 100, 100); INSERT INTO nulls VALUES (100, 100)");
    world.production.psql(
        "INSERT INTO late VALUES (100, 200, 1); INSERT INTO nulls VALUES (101, 100); INSERT INTO good VALUES (1)",
    );
    world.sync();
    world.same(&tables);
    let healed = "SELECT count(*) FROM data_sync_logs WHERE event = 'healed'";
    assert_eq!(world.local.psql(healed), "2");
    // One that only the local table has.
    let world = followed_on(
        version,
        "CREATE TABLE loose (id int PRIMARY KEY, v int)",
        "INSERT INTO loose VALUES (1, 1)",
        &["loose"],
    );
    world
        .local
        .psql("ALTER TABLE loose ADD UNIQUE (v) DEFERRABLE INITIALLY DEFERRED");
    world.production.psql("INSERT INTO loose VALUES (2, 1)");
    world.sync();
    let state = world.state("public.loose");
    assert!(
        state.starts_with("paused: ") && state.contains("loose_v_key"),
        "{state}"
    );
    assert_eq!(world.local.psql("SELECT count(*) FROM loose"), "1");
}

#[test]
fn deferrable_keys_let_no_row_in_twice() {
    no_row_comes_in_twice(PgVersion::V18);
}

#[test]
fn deferrable_keys_let_no_row_in_twice_15() {
    no_row_comes_in_twice(PgVersion::V15);
}

/// Exclusions that are checked late: what changes hands within a transaction arrives, and rows that break one are found.
fn no_row_comes_in_that_breaks_an_exclusion(version: PgVersion) {
    // Keys of periods came with 18.
    let (made, filled, moved) = match version {
        PgVersion::V15 => ("", "", ""),
        _ => (
            "CREATE TABLE rooms (room int4range, during int4range, n int, PRIMARY KEY (room, during WITHOUT OVERLAPS));",
            // The last one overlaps all others in both of its columns, and is another key.
            "INSERT INTO rooms SELECT '[1,2)', int4range(g, g + 1), g FROM generate_series(1, 50) g; INSERT INTO rooms VALUES ('[1,3)', '[1,60)', 100)",
            "BEGIN; DELETE FROM rooms WHERE n = 7; UPDATE rooms SET during = '[7,9)' WHERE n = 8; COMMIT",
        ),
    };
    let schema = format!("CREATE TABLE late (id int PRIMARY KEY, during int4range, EXCLUDE USING gist (during WITH &&) DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE odd (id int PRIMARY KEY, a int, b int, kind int NOT NULL, \"Room\" int4range DEFAULT '[1,2)',
            EXCLUDE USING gist (int4range(a, b, '[]') WITH &&, \"Room\" WITH =) WHERE (kind > 0) DEFERRABLE INITIALLY DEFERRED);
        CREATE TABLE plain (v int, n int, EXCLUDE USING btree (v WITH =) DEFERRABLE);
        CREATE TABLE good (id int PRIMARY KEY); {made}");
    let mut tables = vec!["late", "odd", "plain", "good"];
    tables.extend((!made.is_empty()).then_some("rooms"));
    let world = followed_on(
        version,
        &schema,
        &format!(
            "INSERT INTO late SELECT g, int4range(g * 10, g * 10 + 10) FROM generate_series(1, 50) g;
         INSERT INTO odd SELECT g, g * 10, g * 10 + 9, g % 2 FROM generate_series(1, 50) g; INSERT INTO plain SELECT g, g FROM generate_series(1, 50) g; {filled}"
        ),
        &tables,
    );
    // Each row takes the place of another one: in between they are in each other's way.
    world.production.psql(&format!(
        "BEGIN; UPDATE late SET during = int4range(510 - id * 10, 520 - id * 10); UPDATE odd SET a = 510 - id * 10, b = 519 - id * 10 WHERE kind > 0;
         SET CONSTRAINTS ALL DEFERRED; UPDATE plain SET v = 51 - v; COMMIT;
         UPDATE odd SET kind = 0 WHERE id = 1; INSERT INTO odd VALUES (100, 495, 505, 1), (101, 0, 1000, 0); {moved}",
    ));
    world.sync();
    world.same(&tables);
    // Somebody was faster here: the table is copied anew, and the others go on.
    world.local.psql(
        "INSERT INTO late VALUES (200, '[1000,1010)'); INSERT INTO odd VALUES (200, 2000, 2010, 1); INSERT INTO plain VALUES (200, 0)",
    );
    world.production.psql(
        "INSERT INTO late VALUES (201, '[1005,1006)'); INSERT INTO odd VALUES (201, 2010, 2020, 1); INSERT INTO plain VALUES (200, 1); INSERT INTO good VALUES (1)",
    );
    world.sync();
    world.same(&tables);
    let healed = "SELECT string_agg(table_name, ' ' ORDER BY table_name) FROM data_sync_logs WHERE event = 'healed' AND message LIKE '%break the constraint%'";
    assert_eq!(world.local.psql(healed), "public.late public.odd public.plain");
    world.run(&["verify"]).ok();
    // One that only the local table has.
    let world = followed_on(
        version,
        "CREATE TABLE loose (id int PRIMARY KEY, during int4range)",
        "INSERT INTO loose VALUES (1, '[1,10)')",
        &["loose"],
    );
    world
        .local
        .psql("ALTER TABLE loose ADD EXCLUDE USING gist (during WITH &&) DEFERRABLE INITIALLY DEFERRED");
    world.production.psql("INSERT INTO loose VALUES (2, '[5,6)')");
    world.sync();
    let state = world.state("public.loose");
    assert!(
        state.starts_with("paused: ") && state.contains("loose_during_excl") && state.contains("resync public.loose"),
        "{state}"
    );
    assert_eq!(world.local.psql("SELECT count(*) FROM loose"), "1");
    world.local.psql("ALTER TABLE loose DROP CONSTRAINT loose_during_excl");
    world.run(&["resync", "--wait", "0", "loose"]).ok();
    world.run(&["run-once"]).ok();
    world.same(&["loose"]);
}

#[test]
fn deferrable_exclusions_let_no_row_in_that_breaks_them() {
    no_row_comes_in_that_breaks_an_exclusion(PgVersion::V18);
}

#[test]
fn deferrable_exclusions_let_no_row_in_that_breaks_them_15() {
    no_row_comes_in_that_breaks_an_exclusion(PgVersion::V15);
}

/// What cannot be counted row by row is said to be incomplete, and nothing else is.
#[test]
fn counts_that_are_not_whole_are_marked() {
    let schema = "CREATE TABLE twice (id int PRIMARY KEY, n int); CREATE TABLE retyped (id int PRIMARY KEY, n int);
        CREATE TABLE exact (id int PRIMARY KEY, n int); CREATE TABLE still (id int PRIMARY KEY); CREATE TABLE healed (id int PRIMARY KEY)";
    let tables = ["twice", "exact", "still", "healed"];
    let world = followed(
        schema,
        "INSERT INTO twice SELECT g, g FROM generate_series(1, 100) g; INSERT INTO retyped SELECT g, g FROM generate_series(1, 100) g;
         INSERT INTO exact SELECT g, g FROM generate_series(1, 100) g; INSERT INTO still VALUES (1); INSERT INTO healed VALUES (1)",
        &["twice", "retyped", "exact", "still", "healed"],
    );
    world.local.psql("DELETE FROM healed");
    world.production.psql(
        "TRUNCATE twice; INSERT INTO twice SELECT g, g FROM generate_series(1, 30) g; TRUNCATE twice; INSERT INTO twice SELECT g, g FROM generate_series(1, 20) g;
         ALTER TABLE retyped ALTER n TYPE bigint; UPDATE exact SET n = 0 WHERE id <= 40; DELETE FROM exact WHERE id > 95; INSERT INTO exact VALUES (1000, 1);
         DELETE FROM healed",
    );
    world.sync();
    world.same(&tables);
    let counted = |columns: &str| {
        world.local.psql(&format!(
            "SELECT table_name, {columns} FROM data_sync_metrics WHERE period = 'month' AND table_name LIKE 'public.%' AND table_name <> 'public.other' ORDER BY 1"
        ))
    };
    assert_eq!(
        counted("incomplete"),
        "public.exact|f\npublic.healed|t\npublic.retyped|t\npublic.twice|t"
    );
    let exact = "SELECT added, updated, deleted, net_added, net_updated, net_deleted FROM data_sync_metrics WHERE period = 'month' AND table_name = 'public.exact'";
    assert_eq!(world.local.psql(exact), "1|40|5|1|40|5");
    let whole = "SELECT incomplete FROM data_sync_metrics WHERE period = 'month' AND table_name = '*'";
    assert_eq!(world.local.psql(whole), "t");
    let (_, shown) = world.json(&["metrics", "--table", "twice", "--period", "month"]);
    assert_eq!(shown[0]["incomplete"], true);
    assert_eq!(world.local.psql(&rows("twice")), world.production.psql(&rows("twice")));
    world.run(&["metrics"]).fails(0, &["incomplete"]);
}
