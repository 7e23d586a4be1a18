//! Rows that are gone, tables that are read along, columns that change, partitions in time zones.

use super::matrix::{End, folder};
use super::*;

/// Every way of a tombstone: which SQL type, what the pipeline says, what a gone row has.
#[test]
fn a_tombstone_counts_in_every_strategy() {
    for (ty, said, gone, alive) in [
        ("boolean", "gone", "true", "false"),
        ("timestamptz", "gone", "now()", "NULL"),
        ("int", "gone", "2", "0"),
        ("text", "{column: gone, value: deleted}", "'deleted'", "'active'"),
        ("int", "{column: gone, value: 9}", "9", "1"),
        ("boolean", "{column: gone, value: \"false\"}", "false", "true"),
    ] {
        let db = database("tombstone");
        db.psql(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, v int, gone {ty}, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
             INSERT INTO items(id, v, gone) SELECT i, i, CASE WHEN i % 10 = 0 THEN {gone} WHEN i % 10 = 1 THEN NULL ELSE {alive} END
                 FROM generate_series(1, 100) i"
        ));
        let place = here(&db);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies}}\n\
                 strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: {{tombstone: {said}}}}}\n  \
                 - {{name: hash, type: hash}}\n  - {{name: full, type: full, full_mode: upsert}}\n"
            ),
        );
        let ids = || db.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM copies");
        let condition = match ty {
            "timestamptz" => "gone IS NULL".to_owned(),
            _ => format!("gone IS DISTINCT FROM {gone}"),
        };
        let living = format!("SELECT string_agg(id::text, ',' ORDER BY id) FROM items WHERE {condition}");
        place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        assert_eq!(
            ids(),
            db.psql(&living),
            "{ty}, {said}: the first run takes no row that is gone"
        );
        db.psql(&format!("UPDATE items SET gone = {gone}, updated_at = now() WHERE id IN (2, 3); UPDATE items SET v = 0, updated_at = now() WHERE id = 4"));
        place.until(&["run", "p.yaml", "--strategy", "delta"], ids, db.psql(&living).trim());
        for strategy in ["hash", "full"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(ids(), db.psql(&living), "{ty}, {said}: {strategy} brings none back");
        }
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// A tombstone is judged by its column's type, in whatever form that travels between two engines.
#[test]
fn a_tombstone_means_the_same_between_all_engines() {
    let maria = || End::Maria(MariaDb::shared().database("tombstone"));
    let pg = || End::Postgres(database("tombstone"));
    let (truth, one) = ("{column: gone, value: \"true\"}", "{column: gone, value: 1}");
    let word = "{column: gone, value: deleted}";
    for (from, to, ty, said, gone, alive) in [
        (maria(), maria(), "tinyint(1) NOT NULL", "gone", "1", "0"),
        (maria(), maria(), "tinyint(1)", truth, "1", "0"),
        (maria(), pg(), "tinyint unsigned", "gone", "1", "0"),
        (maria(), pg(), "int unsigned", "gone", "7", "0"),
        (maria(), pg(), "decimal(3,1)", "gone", "1", "0"),
        (pg(), pg(), "numeric(1)", "gone", "1", "0"),
        (pg(), pg(), "numeric(3,2)", one, "1", "0"),
        (pg(), maria(), "double precision", "gone", "0.5", "0"),
        (pg(), pg(), "char(10)", word, "'deleted'", "'active'"),
        (pg(), maria(), "char(10)", word, "'deleted'", "'active'"),
    ] {
        let stamp = match from {
            End::Maria(_) => "timestamp(6)",
            _ => "timestamptz",
        };
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, v int, gone {ty}, updated_at {stamp} NOT NULL);
             INSERT INTO items VALUES (1, 1, {alive}, NOW), (2, 2, {alive}, NOW), (3, 3, {alive}, NOW), (4, 4, {gone}, NOW)"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n\
                 strategies: [{{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: {{tombstone: {said}}}}}]\n"
            ),
        );
        let rows = || to.lines("copies", &["id", "v"]);
        place.until(&["run", "p.yaml"], rows, "1 1\n2 2\n3 3");
        from.change(&format!(
            "UPDATE items SET v = 20, updated_at = NOW WHERE id = 2;
             UPDATE items SET gone = {gone}, updated_at = NOW WHERE id = 3"
        ));
        place.until(&["run", "p.yaml"], rows, "1 1\n2 20");
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// A change of a joined table alone reaches the rows that show it, each cursor with a watermark of its own.
#[test]
fn joined_tables_are_followed_by_their_own_cursors() {
    let (from, to) = (database("cursors_from"), database("cursors_to"));
    from.psql(
        "CREATE TABLE customers(id int PRIMARY KEY, name text, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         CREATE TABLE orders(id int PRIMARY KEY, customer_id int, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO customers(id, name) SELECT i, 'name ' || i FROM generate_series(1, 20) i;
         INSERT INTO orders(id, customer_id) SELECT i, i % 25 FROM generate_series(1, 500) i",
    );
    let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
    place.write(
        "p.yaml",
        "name: p\nsource:\n  datastore: from\n  table: public.orders\n  alias: o\n  joins: [{table: customers, alias: c, on: o.customer_id = c.id, type: left}]\n\
         destination: {datastore: to, table: public.copies}\nkey: [id]\ncolumns:\n  - {source: o.id, dest: id}\n  - {source: c.name, dest: name}\n\
         strategies: [{name: delta, type: delta, column: o.updated_at, margin: 1ms, cursor_tables: [{table: c, column: updated_at}]}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let rows = "SELECT md5(string_agg(id || coalesce(name, '-'), ',' ORDER BY id)) FROM";
    let wanted = || {
        from.psql(&format!(
            "{rows} (SELECT o.id, c.name FROM orders o LEFT JOIN customers c ON o.customer_id = c.id) j"
        ))
    };
    let found = || to.psql(&format!("{rows} copies"));
    assert_eq!(found(), wanted());
    let marks = to.psql("SELECT string_agg(fact, ' ' ORDER BY fact) FROM synctool.memory WHERE fact LIKE 'delta:%'");
    assert_eq!(marks.trim(), "delta:c.updated_at delta:updated_at");
    from.psql(
        "UPDATE customers SET name = 'other', updated_at = now() WHERE id = 7;
         INSERT INTO customers VALUES (22, 'late', now()); UPDATE orders SET customer_id = 1, updated_at = now() WHERE id = 9",
    );
    place.until(&["run", "p.yaml"], found, wanted().trim());
    // Once they have settled, nothing is read again.
    let idle = place.json(&["run", "p.yaml"], 0);
    assert_eq!(idle["read"], 0, "{idle}");
}

fn drifting(policy: &str) -> (TestDb, TestDb, Place) {
    let (from, to) = (database("drift_from"), database("drift_to"));
    from.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int); INSERT INTO items SELECT i, i FROM generate_series(1, 10) i",
    );
    let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
    place.write(
        "p.yaml",
        &format!(
            "name: p\nschema_drift: {policy}\nsource: {{datastore: from, table: public.items}}\n\
             destination: {{datastore: to, table: public.copies}}\nstrategies: [{{name: hash, type: hash}}]\n"
        ),
    );
    place.json(&["run", "p.yaml"], 0);
    from.psql("ALTER TABLE items ADD note text DEFAULT 'new'; UPDATE items SET v = -1 WHERE id = 1");
    (from, to, place)
}

const COLUMNS: &str = "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'copies'::regclass AND attnum > 0";

#[test]
fn a_new_column_is_added_where_the_pipeline_evolves() {
    let (from, to, place) = drifting("evolve");
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(to.psql(COLUMNS).trim(), "id v note");
    let rows = "SELECT id, v, note FROM";
    assert_eq!(
        to.psql(&format!("{rows} copies ORDER BY id")),
        from.psql(&format!("{rows} items ORDER BY id"))
    );
}

#[test]
fn a_new_column_is_added_in_every_engine() {
    for strategy in [
        "{name: hash, type: hash}",
        "{name: upsert, type: full, full_mode: upsert}",
    ] {
        for to in [
            End::Maria(MariaDb::shared().database("drift_to")),
            End::Sqlite(folder()),
        ] {
            let from = End::Postgres(database("drift_from"));
            from.change(
                "CREATE TABLE items(id int PRIMARY KEY, v varchar(9)); INSERT INTO items VALUES (1, 'a'), (2, 'b')",
            );
            let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
            place.write(
                "p.yaml",
                &format!(
                    "name: p\nschema_drift: evolve\nsource: {{datastore: from, table: items}}\n\
                     destination: {{datastore: to, table: copies}}\nstrategies: [{strategy}]\n"
                ),
            );
            place.json(&["run", "p.yaml"], 0);
            from.change(
                "ALTER TABLE items ADD note varchar(9) DEFAULT 'new'; ALTER TABLE items ADD n int DEFAULT 5;
                 UPDATE items SET v = 'c' WHERE id = 1",
            );
            place.json(&["plan", "p.yaml"], 0);
            place.json(&["run", "p.yaml"], 0);
            let columns = ["id", "v", "note", "n"];
            assert_eq!(to.lines("copies", &columns), from.lines("items", &columns));
        }
    }
}

/// A delta brings the column to the rows that it reads, and says who brings it to the others.
#[test]
fn a_delta_says_where_a_new_column_is_not_filled() {
    let (from, to) = (database("drift_delta_from"), database("drift_delta_to"));
    from.psql(
        "CREATE TABLE items(id int PRIMARY KEY, at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO items SELECT generate_series(1, 10)",
    );
    let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
    place.write(
        "p.yaml",
        "name: p\nschema_drift: evolve\nsource: {datastore: from, table: public.items}\n\
         destination: {datastore: to, table: public.items}\nstrategies:\n  - {name: delta, type: delta, column: at, margin: 1ms}\n  \
         - {name: hash, type: hash}\n",
    );
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    from.psql("ALTER TABLE items ADD note text DEFAULT 'new'; UPDATE items SET at = now() WHERE id = 1");
    let second = place.json(&run, 0);
    let told = second["reasons"].to_string();
    assert!(
        told.contains("column note is added: rows outside the window have NULL there until a hash or full run"),
        "{told}"
    );
    place.json(&["verify", "p.yaml"], 3);
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(to.psql("SELECT count(*) FROM items WHERE note = 'new'").trim(), "10");
}

#[test]
fn a_new_column_stays_behind_where_it_is_discarded() {
    let (_from, to, place) = drifting("discard_column");
    let run = place.json(&["run", "p.yaml"], 0);
    assert_eq!(to.psql(COLUMNS).trim(), "id v");
    assert_eq!(to.psql("SELECT v FROM copies WHERE id = 1").trim(), "-1", "{run}");
}

#[test]
fn a_new_column_stops_a_frozen_pipeline_and_makes_a_paused_one_wait() {
    for (policy, exit) in [("freeze", 2), ("pause", 4)] {
        let (from, to, place) = drifting(policy);
        for _ in 0..2 {
            let refused = place.synctool(&["run", "p.yaml"]);
            let told = String::from_utf8_lossy(&refused.stderr).into_owned();
            assert!(
                told.contains("note (text) is new") && told.contains("--accept-schema"),
                "{policy}: {told}"
            );
            assert_eq!(refused.status.code(), Some(exit), "{policy}: {told}");
        }
        assert_eq!(
            to.psql("SELECT v FROM copies WHERE id = 1").trim(),
            "1",
            "{policy}: nothing was written"
        );
        // Someone decides, and from then on the new columns are the known ones.
        place.json(&["run", "p.yaml", "--accept-schema"], 0);
        assert_eq!(to.psql(COLUMNS).trim(), "id v note", "{policy}");
        place.json(&["run", "p.yaml"], 0);
        from.psql("ALTER TABLE items DROP v");
        let refused = place.synctool(&["run", "p.yaml"]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(told.contains("v is gone"), "{policy}: {told}");
    }
}

/// Days of Berlin around both changes of its clocks: each row in exactly one partition.
#[test]
fn partitions_begin_at_midnight_of_a_named_zone() {
    let db = database("zones");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, at timestamptz);
         INSERT INTO items SELECT i, timestamptz '2024-03-29 00:00+00' + interval '20 minutes' * i FROM generate_series(0, 400) i;
         INSERT INTO items SELECT 1000 + i, timestamptz '2024-10-25 00:00+00' + interval '20 minutes' * i FROM generate_series(0, 400) i;
         INSERT INTO items VALUES (9999, NULL)",
    );
    let place = here(&db);
    let file = |unit: &str| {
        format!(
            "name: p_{unit}\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.{unit}_copies}}\n\
             strategies: [{{name: hash, type: hash, time_zone: Europe/Berlin, primary_partitions: [{{column: at, step: 1, step_unit: {unit}}}]}}]\n"
        )
    };
    for unit in ["day", "month"] {
        let name = format!("{unit}.yaml");
        place.write(&name, &file(unit));
        place.json(&["run", &name], 0);
        db.psql(&format!("DELETE FROM {unit}_copies WHERE id % 50 = 0; UPDATE {unit}_copies SET at = at + interval '1 year' WHERE id % 50 = 1"));
        place.json(&["run", &name], 0);
        let same = format!(
            "SELECT count(*) FROM ((TABLE items EXCEPT TABLE {unit}_copies) UNION ALL (TABLE {unit}_copies EXCEPT TABLE items)) d"
        );
        assert_eq!(db.psql(&same).trim(), "0", "{unit}");
        let counted = place.json(&["verify", &name], 0);
        assert_eq!(counted["compared"]["source"], 803, "{unit}: each row once: {counted}");
    }
    let told = place.json(&["plan", "day.yaml"], 0).to_string();
    assert!(
        told.contains("2024-03-31T22:00:00") && told.contains("2024-10-27T23:00:00"),
        "midnights of Berlin: {told}"
    );
}

/// A column that gets another type: told, and followed, refused or waited for as the pipeline says.
#[test]
fn a_column_of_another_type_is_drift_too() {
    for (policy, exit) in [("evolve", 0), ("discard_column", 0), ("freeze", 2), ("pause", 4)] {
        let (from, to) = (database("drift_type_from"), database("drift_type_to"));
        from.psql("CREATE TABLE items(id int PRIMARY KEY, v int); INSERT INTO items SELECT i, i FROM generate_series(1, 10) i");
        let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nschema_drift: {policy}\nsource: {{datastore: from, table: public.items}}\n\
                 destination: {{datastore: to, table: public.copies}}\nstrategies: [{{name: hash, type: hash}}]\n"
            ),
        );
        place.json(&["run", "p.yaml"], 0);
        // A smaller type fits what is there.
        from.psql("ALTER TABLE items ALTER v TYPE smallint; UPDATE items SET v = -1 WHERE id = 1");
        let run = place.json(&["run", "p.yaml"], exit).to_string();
        assert!(run.contains("v was integer and is smallint"), "{policy}: {run}");
        let value = if exit == 0 { "-1" } else { "1" };
        assert_eq!(to.psql("SELECT v FROM copies WHERE id = 1").trim(), value, "{policy}");
        place.json(&["run", "p.yaml", "--accept-schema"], 0);
        assert_eq!(to.psql("SELECT v FROM copies WHERE id = 1").trim(), "-1", "{policy}");
        let again = place.json(&["run", "p.yaml"], 0).to_string();
        assert!(!again.contains("was integer"), "{policy}: known from now on: {again}");
        // One that does not fit is refused, whatever the policy, and nothing is cut.
        from.psql("ALTER TABLE items ALTER v TYPE text; UPDATE items SET v = 'a text' WHERE id = 2");
        let refused = place.synctool(&["run", "p.yaml", "--accept-schema"]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && told.contains("column v"),
            "{policy}: {told}"
        );
        assert_eq!(to.psql("SELECT v FROM copies WHERE id = 2").trim(), "2", "{policy}");
    }
}

/// Columns that are read of a joined table are watched like the table's own, by every strategy.
#[test]
fn a_joined_column_of_another_type_is_drift_too() {
    for (policy, exit) in [("freeze", 2), ("pause", 4)] {
        for strategy in [
            "type: full",
            "type: hash",
            "type: delta, column: o.updated_at, margin: 1ms",
        ] {
            let db = database("drift_joined");
            db.psql(
                "CREATE TABLE customers(id int PRIMARY KEY, level int NOT NULL);
                 CREATE TABLE orders(id int PRIMARY KEY, customer int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
                 INSERT INTO customers VALUES (1, 1); INSERT INTO orders(id, customer) VALUES (1, 1)",
            );
            let place = here(&db);
            place.write(
                "p.yaml",
                &format!(
                    "name: p\nschema_drift: {policy}\nsource:\n  datastore: from\n  table: public.orders\n  alias: o\n  \
                     joins: [{{table: customers, alias: c, on: o.customer = c.id}}]\ndestination: {{datastore: to, table: public.copies}}\n\
                     key: [id]\ncolumns:\n  - {{source: o.id, dest: id}}\n  - {{source: c.level, dest: level}}\n\
                     strategies: [{{name: one, {strategy}}}]\n"
                ),
            );
            place.json(&["run", "p.yaml"], 0);
            db.psql("ALTER TABLE customers ALTER level TYPE smallint");
            let refused = place.json(&["run", "p.yaml"], exit).to_string();
            assert!(
                refused.contains("c.level was integer and is smallint"),
                "{policy}, {strategy}: {refused}"
            );
            place.json(&["run", "p.yaml", "--accept-schema"], 0);
            place.json(&["run", "p.yaml"], 0);
        }
    }
}

const WIDTHS: &str = "SELECT string_agg(format_type(atttypid, atttypmod), ', ' ORDER BY attnum) FROM pg_attribute
    WHERE attrelid = 'copies'::regclass AND attnum > 0 AND NOT attisdropped";

/// The source's columns became wider: those of the destination do too, whatever the strategy, and every row arrives.
#[test]
fn a_column_that_became_wider_is_widened_in_every_engine() {
    let strategies = [
        "{name: s, type: hash}",
        "{name: s, type: full, full_mode: upsert}",
        "{name: s, type: full}",
        "{name: s, type: delta, column: at, margin: 1ms}",
    ];
    for (number, strategy) in strategies.into_iter().enumerate() {
        let mut all = vec![
            End::Postgres(database("wider_to")),
            End::Maria(MariaDb::shared().database("wider_to")),
            End::Sqlite(folder()),
        ];
        #[cfg(feature = "duckdb")]
        all.push(End::DuckDb(folder()));
        // A comparison in every engine, each other way in half of them.
        for (_, to) in all
            .into_iter()
            .enumerate()
            .filter(|(i, _)| number == 0 || (i + number) % 2 == 0)
        {
            let from = End::Postgres(database("wider_from"));
            from.change(
                "CREATE TABLE items(id int PRIMARY KEY, n int, name varchar(10), price numeric(6,2), at timestamptz NOT NULL);
                 INSERT INTO items SELECT i, i, 'n' || i, i, now() - interval '1 hour' FROM generate_series(1, 20) i",
            );
            let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
            place.write(
                "p.yaml",
                &format!(
                    "name: p\nschema_drift: evolve\nsource: {{datastore: from, table: items}}\n\
                     destination: {{datastore: to, table: copies}}\nstrategies: [{strategy}, {{name: check, type: hash}}]\n"
                ),
            );
            let run = ["run", "p.yaml", "--strategy", "s"];
            place.json(&run, 0);
            from.change(
                "ALTER TABLE items ALTER n TYPE bigint, ALTER name TYPE varchar(50), ALTER price TYPE numeric(12,2);
                 UPDATE items SET n = 5000000000, name = 'a name that is longer than ten', price = 12345678.25, at = now() WHERE id = 7",
            );
            let ends_equal = || {
                place.json(&run, 0);
                let verified = place.synctool(&["verify", "p.yaml", "--strategy", "check"]);
                verified.status.success()
            };
            synctool_testkit::wait_for("equal ends", std::time::Duration::from_secs(30), ends_equal);
            if let End::Postgres(db) = &to {
                assert_eq!(
                    db.psql(WIDTHS).trim(),
                    "integer, bigint, character varying(50), numeric(12,2), timestamp with time zone",
                    "{strategy}"
                );
            }
            // What became narrower again is left as it is.
            from.change("UPDATE items SET n = 7, at = now() WHERE id = 7");
            synctool_testkit::wait_for("equal ends", std::time::Duration::from_secs(30), ends_equal);
            from.change("ALTER TABLE items ALTER n TYPE int");
            let plan = place.json(&["plan", "p.yaml", "--strategy", "s"], 0).to_string();
            assert!(!plan.contains("becomes"), "{plan}");
        }
    }
}

/// Digits of a second and keys; what else is said of a column stays.
#[test]
fn a_widened_column_keeps_the_rest_of_its_definition() {
    let (from, to) = (database("wider_rest_from"), database("wider_rest_to"));
    let maria = MariaDb::shared().database("wider_rest");
    from.psql("CREATE TABLE items(id bigint PRIMARY KEY, at timestamp, n bigint, d numeric(9,0)); INSERT INTO items VALUES (5000000000, '2024-01-01 00:00:00.123456', 6000000000, 123456789)");
    to.psql(
        "CREATE TABLE copies(id int PRIMARY KEY, at timestamp(0) NOT NULL DEFAULT now(), n int DEFAULT 3, d smallint)",
    );
    maria.sql("CREATE TABLE copies(id int PRIMARY KEY, at datetime NOT NULL DEFAULT '2024-01-01', n int DEFAULT 3 COMMENT 'kept, and more', d smallint)");
    let place = Place::new(&[
        ("from", postgres(&from)),
        ("to", postgres(&to)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
    ]);
    for end in ["to", "maria"] {
        place.write(
            "p.yaml",
            &format!(
                "name: p\nschema_drift: evolve\nsource: {{datastore: from, table: items}}\n\
                 destination: {{datastore: {end}, table: copies}}\nstrategies: [{{type: hash}}]\n"
            ),
        );
        let plan = place.json(&["plan", "p.yaml"], 0);
        assert!(
            plan["reasons"].to_string().contains("column n becomes bigint"),
            "{plan}"
        );
        place.json(&["run", "p.yaml"], 0);
    }
    let row = "5000000000 2024-01-01 00:00:00.123456 6000000000 123456789";
    assert_eq!(to.psql("SELECT concat_ws(' ', id, at, n, d) FROM copies").trim(), row);
    assert_eq!(maria.sql("SELECT concat_ws(' ', id, at, n, d) FROM copies").trim(), row);
    let of_to = "SELECT string_agg(concat_ws(' ', column_default, is_nullable), ', ' ORDER BY ordinal_position)
        FROM information_schema.columns WHERE table_name = 'copies'";
    assert_eq!(to.psql(of_to).trim(), "NO, now() NO, 3 YES, YES");
    let defined = maria.sql("SHOW CREATE TABLE copies");
    for kept in [
        "`id` bigint",
        "`at` datetime(6) NOT NULL DEFAULT",
        "DEFAULT 3 COMMENT 'kept, and more'",
        "PRIMARY KEY (`id`)",
    ] {
        assert!(defined.contains(kept), "{kept}: {defined}");
    }
}

/// A column of the destination that keeps fewer digits of a second takes what it keeps, whatever the strategy; what it would
/// round ends the run, and nothing of that is seen.
#[test]
fn a_column_that_keeps_fewer_digits_rounds_nothing() {
    for (number, strategy) in [
        "{type: hash}",
        "{type: full, full_mode: upsert}",
        // From PostgreSQL: MariaDB's bound is of whole seconds.
        "{type: delta, column: at, margin: 1ms}",
        "{type: full}",
    ]
    .into_iter()
    .enumerate()
    {
        let from = match number % 2 {
            0 => End::Postgres(database("digits_from")),
            _ => End::Maria(MariaDb::shared().database("digits_from")),
        };
        let ty = match &from {
            End::Postgres(_) => "timestamptz",
            _ => "timestamp(6)",
        };
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, at {ty} NOT NULL, o time(6));
             INSERT INTO items VALUES (1, '2024-01-01 10:00:00', '10:00:00')"
        ));
        let to = database("digits_to");
        to.psql("CREATE TABLE copies(id int PRIMARY KEY, at timestamptz(0) NOT NULL, o time(0))");
        let place = Place::new(&[("from", from.entry()), ("to", postgres(&to))]);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n\
                 strategies: [{strategy}]\n"
            ),
        );
        place.json(&["run", "p.yaml"], 0);
        from.change("INSERT INTO items VALUES (2, NOW, '11:00:00')");
        let refused = place.json(&["run", "p.yaml"], 1).to_string();
        assert!(
            refused.contains("ST-DAT-001") && refused.contains("column at"),
            "{strategy}: {refused}"
        );
        assert_eq!(
            to.psql("SELECT string_agg(id::text, ',') FROM copies").trim(),
            "1",
            "{strategy}"
        );
        to.psql("ALTER TABLE copies ALTER at TYPE timestamptz");
        place.json(&["state", "reset", "p", "--yes"], 0);
        place.json(&["run", "p.yaml"], 0);
        let whole = "SELECT count(*) FROM copies WHERE to_char(at, 'US') <> '000000' AND o = '11:00'";
        assert_eq!(to.psql(whole).trim(), "1", "{strategy}");
    }
}

/// The same of arrays and intervals; where no value is looked at, the plan refuses the types.
#[test]
fn arrays_and_intervals_are_not_rounded() {
    for (is, there, value, exit, says) in [
        ("numeric(10,2)[]", "numeric(12,4)[]", "{1.50,NULL}", 0, ""),
        ("numeric(12,4)[]", "numeric(10,2)[]", "{1.0050}", 2, "would round"),
        ("timestamp[]", "timestamp(0)[]", "{2024-01-01 10:00:00}", 0, ""),
        (
            "timestamp[]",
            "timestamp(0)[]",
            "{2024-01-01 10:00:00.5}",
            1,
            "ST-DAT-001",
        ),
        ("interval", "interval(0)", "1 day 00:00:01.5", 1, "ST-DAT-001"),
        ("interval", "interval year to month", "1 day", 2, "would round"),
        ("double precision[]", "real[]", "{0.1}", 2, "would round"),
    ] {
        let (from, to) = (database("rounded_from"), database("rounded_to"));
        from.psql(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, v {is}); INSERT INTO items VALUES (1, '{value}')"
        ));
        to.psql(&format!("CREATE TABLE copies(id int PRIMARY KEY, v {there})"));
        let place = Place::new(&[("from", postgres(&from)), ("to", postgres(&to))]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\n\
             strategies: [{type: full, full_mode: upsert}]\n",
        );
        let told = place.json(&["run", "p.yaml"], exit).to_string();
        assert!(told.contains(says), "{is} into {there}: {told}");
        let rows = to.psql("SELECT count(*) FROM copies");
        assert_eq!(rows.trim() == "1", exit == 0, "{is} into {there}: {told}");
    }
}

/// Where something depends on the column, the statement to run is named, and nothing is changed. Without a word nothing is
/// widened either.
#[test]
fn what_stands_in_the_way_of_a_wider_column_is_named() {
    let (from, to) = (database("wider_held_from"), database("wider_held_to"));
    let maria = MariaDb::shared().database("wider_held");
    from.psql("CREATE TABLE items(id int PRIMARY KEY, n bigint); INSERT INTO items VALUES (1, 6000000000)");
    to.psql("CREATE TABLE copies(id int PRIMARY KEY, n int); CREATE VIEW of_copies AS SELECT n FROM copies");
    maria.sql(
        "CREATE TABLE others(n int PRIMARY KEY);
         CREATE TABLE copies(id int PRIMARY KEY, n int, CONSTRAINT of_others FOREIGN KEY (n) REFERENCES others(n))",
    );
    let place = Place::new(&[
        ("from", postgres(&from)),
        ("to", postgres(&to)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
    ]);
    for (policy, end, holder, statement) in [
        (
            "schema_drift: evolve\n",
            "to",
            "view public.of_copies",
            "ALTER COLUMN \\\"n\\\" TYPE bigint",
        ),
        (
            "schema_drift: evolve\n",
            "maria",
            "of_others",
            "MODIFY COLUMN `n` bigint",
        ),
        ("", "to", "bigint", "schema_drift: evolve"),
        ("schema_drift: freeze\n", "to", "bigint", "schema_drift: evolve"),
    ] {
        place.write(
            "p.yaml",
            &format!(
                "name: p\n{policy}source: {{datastore: from, table: items}}\ndestination: {{datastore: {end}, table: copies}}\n\
                 strategies: [{{type: hash}}]\n"
            ),
        );
        for command in ["plan", "run"] {
            let refused = place.json(&[command, "p.yaml"], 2).to_string();
            assert!(
                refused.contains(holder) && refused.contains(statement),
                "{policy}{end}: {refused}"
            );
        }
    }
    assert_eq!(to.psql(WIDTHS).trim(), "integer, integer");
}
