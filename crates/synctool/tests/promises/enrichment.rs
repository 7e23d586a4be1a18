//! Dimensions in other databases, caches, and repairs whose rows pass stages.

use super::*;

const PEOPLE: &str = "CREATE TABLE people(id int PRIMARY KEY, city int, v int, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    INSERT INTO people(id, city, v) SELECT i, i % 12, i FROM generate_series(1, 1000) i";

fn pipeline(datastore: &str, table: &str, cache: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.people}}\ndestination: {{datastore: to, table: public.copies}}\n\
         columns:\n  - {{source: id}}\n  - {{source: v}}\n  - {{source: null, dest: city_name}}\n  - {{source: null, dest: doubled}}\n\
         key: [id]\ntransform:\n  - name: cities\n    enrich:\n      datastore: {datastore}\n      table: {table}\n      on: [{{column: city, key: id}}]\n      \
         fields: [{{source: name, dest: city_name}}]\n      cache: {cache}\n  - compute: [{{name: doubled, expression: v * 2}}]\n\
         strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms}}\n  - {{name: hash, type: hash}}\n"
    )
}

/// A dimension in each kind of database that can hold one, left where it is.
#[test]
fn dimensions_stand_in_any_database() {
    let db = database("dimension");
    let other = database("dimension_pg");
    let maria = MariaDb::shared().database("dimension");
    let make = "CREATE TABLE cities(id int PRIMARY KEY, name varchar(50))";
    let values: Vec<String> = (0..10).map(|i| format!("({i}, 'city {i}')")).collect();
    let fill = format!("INSERT INTO cities VALUES {}", values.join(", "));
    db.psql(PEOPLE);
    other.psql(&format!("{make}; {fill}"));
    maria.sql(make);
    maria.sql(&fill);
    let place = Place::new(&[
        ("from", postgres(&db)),
        ("to", postgres(&db)),
        ("pg", postgres(&other)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("lite", "{type: sqlite, path: dims.db}".into()),
    ]);
    let lite = rusqlite::Connection::open(place.path().join("dims.db")).expect("opens");
    lite.execute_batch(&format!("{make}; {fill}")).expect("filled");
    for (datastore, table) in [("pg", "public.cities"), ("maria", "cities"), ("lite", "cities")] {
        db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
        place.write("p.yaml", &pipeline(datastore, table, "{store: memory, max_size: 100}"));
        place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        let wrong =
            "SELECT count(*) FROM people p FULL JOIN copies c USING (id) WHERE c.doubled IS DISTINCT FROM p.v * 2
            OR c.city_name IS DISTINCT FROM CASE WHEN city < 10 THEN 'city ' || city END";
        assert_eq!(db.psql(wrong).trim(), "0", "{datastore}");
        // A repair compares rows as they are after the stages.
        db.psql(
            "UPDATE copies SET city_name = 'elsewhere' WHERE id = 5; UPDATE copies SET doubled = -1 WHERE id = 6;
             DELETE FROM copies WHERE id = 7; INSERT INTO copies VALUES (5000, 1, 'x', 2)",
        );
        let found = place.json(&["verify", "p.yaml"], 3);
        assert_eq!(found["compared"]["differing"], 2, "{datastore}: {found}");
        let mended = place.json(&["repair", "p.yaml"], 0);
        assert_eq!(
            (&mended["inserted"], &mended["updated"], &mended["deleted"]),
            (&1.into(), &2.into(), &1.into()),
            "{datastore}: {mended}"
        );
        assert_eq!(db.psql(wrong).trim(), "0", "{datastore}: after the repair");
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// What Redis keeps is used until its time is over, and then asked for anew.
#[test]
fn redis_keeps_a_dimension_for_its_ttl() {
    let db = database("dimension_redis");
    let redis = Redis::start();
    db.psql(PEOPLE);
    db.psql("CREATE TABLE cities(id int PRIMARY KEY, name text); INSERT INTO cities SELECT i, 'old ' || i FROM generate_series(0, 11) i");
    let place = here(&db);
    let cache = format!(
        "{{store: redis, url: \"{}\", key_prefix: \"t:\", ttl: 1h}}",
        redis.url()
    );
    place.write("p.yaml", &pipeline("from", "public.cities", &cache));
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    let names = "SELECT string_agg(DISTINCT split_part(city_name, ' ', 1), ',') FROM copies";
    assert_eq!(db.psql(names).trim(), "old");
    let keys = "return redis.call('keys', ARGV[1])[1]";
    let key = redis.command(&["EVAL", keys, "0", "t:*"]);
    assert!(key.starts_with("t:"), "{key}");
    let ttl: i64 = redis.command(&["TTL", &key]).parse().expect("seconds");
    assert!((1..=3600).contains(&ttl), "{ttl}");
    // Another process finds what the first one left there.
    db.psql("UPDATE cities SET name = 'new ' || id; UPDATE people SET v = v + 1, updated_at = now() WHERE id <= 12");
    let changed = "SELECT count(*) FROM copies c JOIN people p USING (id) WHERE c.v = p.v";
    place.until(&["run", "p.yaml", "--strategy", "delta"], || db.psql(changed), "1000");
    assert_eq!(
        db.psql(names).trim(),
        "old",
        "the cache counts as true until its time is over"
    );
    // Not so another database under the same names.
    let other = database("dimension_redis_other");
    other.psql(PEOPLE);
    other.psql("CREATE TABLE cities(id int PRIMARY KEY, name text); INSERT INTO cities SELECT i, 'other ' || i FROM generate_series(0, 11) i");
    let elsewhere = here(&other);
    elsewhere.write("p.yaml", &pipeline("from", "public.cities", &cache));
    elsewhere.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!(other.psql(names).trim(), "other");
    redis.command(&["FLUSHALL"]);
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(db.psql(names).trim(), "new");
    // Without Redis the datastore is asked.
    drop(redis);
    db.psql("UPDATE cities SET name = 'last ' || id");
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(db.psql(names).trim(), "last");
}

/// Without a ttl what Redis keeps is a run's own, and a comparison asks the dimension whatever Redis keeps.
#[test]
fn without_a_ttl_redis_keeps_a_dimension_for_a_run() {
    let db = database("dimension_of_a_run");
    let redis = Redis::start();
    db.psql(PEOPLE);
    db.psql("CREATE TABLE cities(id int PRIMARY KEY, name text); INSERT INTO cities SELECT i, 'old ' || i FROM generate_series(0, 11) i");
    let place = here(&db);
    let cache = |ttl: &str| format!("{{store: redis, url: \"{}\", key_prefix: \"t:\"{ttl}}}", redis.url());
    place.write("p.yaml", &pipeline("from", "public.cities", &cache("")));
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    let key = redis.command(&["EVAL", "return redis.call('keys', ARGV[1])[1]", "0", "t:*"]);
    let ttl: i64 = redis.command(&["TTL", &key]).parse().expect("seconds");
    assert!((1..=86_400).contains(&ttl), "{ttl}");
    let names = "SELECT string_agg(DISTINCT split_part(city_name, ' ', 1), ',') FROM copies";
    assert_eq!(db.psql(names).trim(), "old");
    db.psql("UPDATE cities SET name = 'new ' || id");
    place.json(&["verify", "p.yaml"], 3);
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(db.psql(names).trim(), "new");
    place.json(&["verify", "p.yaml"], 0);
    // Rows that are shared for an hour are good enough for a run, not for a comparison.
    place.write("p.yaml", &pipeline("from", "public.cities", &cache(", ttl: 1h")));
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    db.psql("UPDATE cities SET name = 'last ' || id");
    place.json(&["verify", "p.yaml"], 3);
}

/// A row with several partners comes once for each, and which of them are gone is seen by comparing keys.
#[test]
fn a_row_may_have_several_partners() {
    let db = database("partners");
    db.psql(
        "CREATE TABLE people(id int PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO people(id, v) SELECT i, i FROM generate_series(1, 50) i;
         CREATE TABLE tags(owner int NOT NULL, tag text NOT NULL);
         INSERT INTO tags SELECT i, t FROM generate_series(1, 50) i, unnest(ARRAY['a', 'b', 'c']) t WHERE t <> 'c' OR i % 5 = 0",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.people}\ndestination: {datastore: to, table: public.copies}\n\
         key: [id, tag]\ncolumns: [id, v, {source: null, dest: tag}]\ntransform:\n  - enrich: {table: public.tags, \
         on: [{column: id, key: owner}], fields: [tag], join: inner, cardinality: one_to_many}\nstrategies:\n  \
         - {name: hash, type: hash}\n  - {name: delta, type: delta, column: updated_at, margin: 1ms, deletes: anti_join}\n",
    );
    let rows = "SELECT string_agg(concat_ws(' ', id, v, tag), ',' ORDER BY id, tag) FROM";
    let wanted = || db.psql(&format!("{rows} people p JOIN tags t ON t.owner = p.id"));
    let found = || db.psql(&format!("{rows} copies"));
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(found(), wanted(), "loaded");
    db.psql("DELETE FROM tags WHERE owner = 10 AND tag = 'c'");
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(found(), wanted(), "one partner fewer");
    db.psql("DELETE FROM tags WHERE owner = 20 AND tag = 'c'");
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!(found(), wanted(), "a delta that compares keys");
}

/// Only some rows of the dimension, and the hash of what was taken.
#[test]
fn dimensions_are_filtered_and_hashed() {
    let db = database("dimension_filter");
    db.psql(PEOPLE);
    db.psql(
        "CREATE TABLE cities(id int, name text, valid boolean);
         INSERT INTO cities SELECT i, 'city ' || i, true FROM generate_series(0, 9) i;
         INSERT INTO cities SELECT i, 'gone ' || i, false FROM generate_series(0, 11) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.people}\ndestination: {datastore: to, table: public.copies}\nkey: [id]\n\
         columns:\n  - {source: id}\n  - {source: null, dest: city_name}\n  - {source: null, dest: city_hash}\ntransform:\n  - name: cities\n    enrich:\n      \
         datastore: from\n      table: public.cities\n      on: [{column: city, key: id}]\n      filters: [{column: valid, operator: \"=\", value: true}]\n      \
         fields: [{source: name, dest: city_name}, {dest: city_hash, hash: true}]\nstrategies: [{name: full, type: full}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let wrong = "SELECT count(*) FROM copies JOIN people USING (id) WHERE city_name IS DISTINCT FROM CASE WHEN city < 10 THEN 'city ' || city END
        OR city_hash IS DISTINCT FROM md5(octet_length(city_name) || ':' || city_name)";
    assert_eq!(
        (db.psql(wrong).trim(), db.psql("SELECT count(*) FROM copies").trim()),
        ("0", "1000")
    );
}

/// Rows that a stage refuses are kept at the destination with the reason, in the transaction of the rows beside them; one
/// more than allowed, and the run fails.
#[test]
fn rejected_rows_are_kept_with_their_reason() {
    let db = database("rejects");
    db.psql(
        "CREATE TABLE people(id int PRIMARY KEY, age text);
         INSERT INTO people SELECT i, CASE WHEN i % 100 = 7 THEN 'old' ELSE i::text END FROM generate_series(1, 500) i",
    );
    let other = database("rejects_to");
    let maria = MariaDb::shared().database("rejects");
    let place = Place::new(&[
        ("from", postgres(&db)),
        ("postgres", postgres(&other)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("lite", "{type: sqlite, path: copy.db}".into()),
        ("duck", "{type: duckdb, path: copy.duckdb}".into()),
    ]);
    let columns = "partition, stage, reason, column_name, row_key";
    let mut ends = vec!["postgres", "maria", "lite"];
    #[cfg(feature = "duckdb")]
    ends.push("duck");
    for to in ends {
        let pipeline = |limit: u32| {
            format!(
                "name: to_{to}\nsource: {{datastore: from, table: public.people}}\ndestination: {{datastore: {to}, table: copies}}\n\
                 columns:\n  - {{source: id}}\n  - {{source: age, data_type: text}}\nkey: [id]\ntransform:\n  - {{name: ages, cast: {{age: int}}}}\n\
                 write: {{reject_limit: {limit}}}\nstrategies: [{{name: full, type: full}}]\n"
            )
        };
        place.write("p.yaml", &pipeline(4));
        let failed = place.synctool(&["run", "p.yaml"]);
        let told = String::from_utf8_lossy(&failed.stderr).into_owned();
        assert!(!failed.status.success() && told.contains("reject"), "{to}: {told}");
        assert!(!told.contains("old"), "{to}: no value in the message: {told}");
        place.write("p.yaml", &pipeline(5));
        let run = place.json(&["run", "p.yaml", "--restart"], 0);
        assert_eq!(run["inserted"], 495, "{to}: {run}");
        let kept = match to {
            "postgres" => other.psql(&format!(
                "SELECT {columns} FROM synctool.rejects ORDER BY row_key::text"
            )),
            "maria" => maria
                .sql("SELECT `partition`, stage, reason, column_name, row_key FROM _synctool_rejects ORDER BY row_key"),
            "duck" => {
                let into = "{datastore: postgres, table: public.of_duckdb}";
                place.write(
                    "rejects.yaml",
                    &format!(
                        "name: rejects\nsource: {{datastore: duck, table: _synctool_rejects}}\ndestination: {into}\n\
                         columns: [stage, reason, column_name, row_key]\nstrategies: [{{type: full}}]\n"
                    ),
                );
                place.json(&["run", "rejects.yaml"], 0);
                other.psql("SELECT * FROM of_duckdb ORDER BY row_key")
            }
            _ => {
                let lite = rusqlite::Connection::open(place.path().join("copy.db")).expect("opens");
                let mut found = lite
                    .prepare("SELECT stage || ' ' || reason || ' ' || column_name || ' ' || row_key FROM _synctool_rejects ORDER BY row_key")
                    .expect("the table");
                let rows = found.query_map([], |r| r.get::<_, String>(0)).expect("rows");
                rows.map(|r| r.expect("a row")).collect::<Vec<_>>().join("\n")
            }
        };
        assert_eq!(kept.trim().lines().count(), 5, "{to}: {kept}");
        for id in [7, 107, 207, 307, 407] {
            assert!(kept.contains(&format!("{{\"id\":\"{id}\"}}")), "{to}: {kept}");
        }
        assert!(
            kept.contains("ages") && kept.contains("age"),
            "{to}: stage and column: {kept}"
        );
    }
}

/// A delta puts rows aside too, in the transaction of its window, and only those of the window.
#[test]
fn a_delta_keeps_the_rows_that_it_rejects() {
    let db = database("delta_rejects");
    db.psql(
        "CREATE TABLE people(id int PRIMARY KEY, age text, at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO people(id, age) SELECT i, i::text FROM generate_series(1, 50) i",
    );
    let place = here(&db);
    let pipeline = |limit: u32| {
        format!(
            "name: p\nsource: {{datastore: from, table: public.people}}\ndestination: {{datastore: to, table: copies}}\n\
             columns: [id, age, at]\nkey: [id]\ntransform: [{{name: ages, cast: {{age: int}}}}]\nwrite: {{reject_limit: {limit}}}\n\
             strategies: [{{name: delta, type: delta, column: at, margin: 1ms}}]\n"
        )
    };
    place.write("p.yaml", &pipeline(0));
    place.json(&["run", "p.yaml"], 0);
    db.psql("UPDATE people SET age = 'old', at = now() WHERE id IN (7, 8); UPDATE people SET age = '99', at = now() WHERE id = 9");
    // What was stamped just now settles when its margin has passed.
    let failed = loop {
        let run = place.synctool(&["run", "p.yaml"]);
        if !run.status.success() {
            break run;
        }
    };
    let told = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(
        !failed.status.success() && told.contains("reject") && !told.contains("old"),
        "{told}"
    );
    assert_eq!(db.psql("SELECT count(*) FROM copies WHERE age = 99").trim(), "0");
    place.write("p.yaml", &pipeline(2));
    let new = || db.psql("SELECT count(*) FROM copies WHERE age = 99");
    place.until(&["run", "p.yaml"], new, "1");
    let kept = "SELECT string_agg(concat_ws(' ', stage, reason, column_name, row_key), ',' ORDER BY row_key::text) FROM synctool.rejects";
    assert_eq!(
        db.psql(kept).trim(),
        "ages bad_cast age {\"id\":\"7\"},ages bad_cast age {\"id\":\"8\"}"
    );
    let rows = "SELECT string_agg(concat_ws(' ', id, age), ',' ORDER BY id) FROM copies WHERE id IN (7, 8, 9)";
    assert_eq!(db.psql(rows).trim(), "7 7,8 8,9 99", "what was there stays");
    let idle = place.json(&["run", "p.yaml"], 0);
    assert_eq!(idle["read"], 0, "{idle}");
}

/// A group that a stage rejects is put aside like any row: the others are brought up to date, it stays as it was, and comes
/// once its rows are right.
#[test]
fn an_aggregate_keeps_the_groups_that_it_rejects() {
    let db = database("group_rejects");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, who int NOT NULL, amount text NOT NULL, at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO orders(id, who, amount) SELECT i, i % 5, '1' FROM generate_series(1, 50) i",
    );
    let place = here(&db);
    let pipeline = |limit: u32| {
        format!(
            "name: p\nsource: {{datastore: from, table: public.orders}}\ndestination: {{datastore: to, table: totals}}\n\
             sync_type: aggregate\ngroup_by: [who]\ncolumns:\n  - who\n  - {{dest: n, expr: count(*)}}\n  - {{dest: most, expr: max(amount)}}\n\
             transform: [{{name: numbers, cast: {{most: int}}}}]\nwrite: {{reject_limit: {limit}}}\n\
             strategies: [{{name: delta, type: delta, column: at, margin: 1ms}}, {{name: hash, type: hash}}]\n"
        )
    };
    let run = ["run", "p.yaml", "--strategy", "delta"];
    let found = || {
        let rows = db.psql("SELECT string_agg(concat_ws(' ', who, n, most), ',' ORDER BY who) FROM totals");
        rows.trim().to_owned()
    };
    place.write("p.yaml", &pipeline(0));
    place.json(&run, 0);
    assert_eq!(found(), "0 10 1,1 10 1,2 10 1,3 10 1,4 10 1");
    db.psql("UPDATE orders SET amount = 'many', at = now() WHERE id = 3; UPDATE orders SET amount = '7', at = now() WHERE id = 4");
    let failed = loop {
        let run = place.synctool(&run);
        if !run.status.success() {
            break run;
        }
    };
    let told = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert!(told.contains("reject") && !told.contains("many"), "{told}");
    place.write("p.yaml", &pipeline(5));
    place.until(&run, found, "0 10 1,1 10 1,2 10 1,3 10 1,4 10 7");
    let kept = db.psql("SELECT DISTINCT concat_ws(' ', stage, reason, column_name, row_key) FROM synctool.rejects");
    assert_eq!(kept.trim(), "numbers bad_cast most {\"who\":\"3\"}");
    // A comparison cannot leave a group out: it would be missing at one end for ever.
    let refused = place.synctool(&["run", "p.yaml", "--strategy", "hash"]);
    assert!(!refused.status.success(), "{refused:?}");
    db.psql("UPDATE orders SET amount = '9', at = now() WHERE id = 3");
    let last = ["run", "p.yaml", "--strategy", "delta", "--restart"];
    place.until(&last, found, "0 10 1,1 10 1,2 10 1,3 10 9,4 10 7");
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
}

/// A stage is for strategies of some types, for some of their names, or for both.
#[test]
fn stages_apply_to_types_and_names() {
    let db = database("applicable");
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v int); INSERT INTO items VALUES (1, 10)");
    let place = here(&db);
    for (on, marked) in [
        ("full", "all,other"),
        ("all", "all"),
        ("[all, hash]", "all,compare"),
        ("{types: [full]}", "all,other"),
        ("{names: [other]}", "other"),
        ("{types: [hash], names: [all]}", "all,compare"),
    ] {
        let mut found = Vec::new();
        for strategy in ["all", "compare", "other"] {
            db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
            place.write(
                "p.yaml",
                &format!(
                    "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n\
                     transform: [{{compute: {{name: v, expression: v + 1}}, applicable_on: {on}}}]\nstrategies:\n  \
                     - {{name: all, type: full}}\n  - {{name: compare, type: hash}}\n  - {{name: other, type: full}}\n"
                ),
            );
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            if db.psql("SELECT v FROM copies").trim() == "11" {
                found.push(strategy);
            }
        }
        assert_eq!(found.join(","), marked, "{on}");
    }
}

/// A row that has fewer partners than before leaves no copy behind: a delta takes it away, or is refused.
#[test]
fn no_copy_stays_of_a_row_that_has_fewer_partners() {
    let db = database("copies");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, customer int, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO orders VALUES (1, 1), (2, 2), (3, 1); CREATE TABLE tags(customer int, tag text);
         INSERT INTO tags VALUES (1, 'a'), (1, 'b'), (1, 'c'), (2, 'a')",
    );
    let place = here(&db);
    let file = |key: &str, deletes: &str| {
        format!(
            "name: p\nsource: {{datastore: from, table: orders}}\ndestination: {{datastore: to, table: copies}}\nkey: {key}\n\
             columns: [id, {{source: null, dest: tag}}]\ntransform:\n  - enrich: {{datastore: from, table: public.tags, on: [customer], \
             fields: [tag], join: inner, cardinality: one_to_many}}\n\
             strategies: [{{name: delta, type: delta, column: updated_at, margin: 1ms{deletes}}}]\n"
        )
    };
    for (key, deletes) in [
        ("[id, tag]", ""),
        ("[id, tag]", ", deletes: none"),
        ("[id]", ", deletes: anti_join"),
    ] {
        place.write("p.yaml", &file(key, deletes));
        let refused = place.json(&["run", "p.yaml"], 2).to_string();
        assert!(
            refused.contains("several partners in public.tags") && refused.contains("anti_join"),
            "{key}{deletes}: {refused}"
        );
    }
    // Where one of the copies is left, it takes the place of the one before.
    let picked = file("[id]", "")
        .replacen("name: p", "name: picked", 1)
        .replace("table: copies", "table: picked")
        .replace("one_to_many}\n", "one_to_many}\n  - dedup: {keys: [id], by: tag}\n");
    place.write("picked.yaml", &picked);
    place.json(&["run", "picked.yaml"], 0);
    let kept = || db.psql("SELECT string_agg(id || tag, ',' ORDER BY id) FROM picked");
    assert_eq!(kept().trim(), "1c,2a,3c");
    place.write("p.yaml", &file("[id, tag]", ", deletes: anti_join"));
    place.json(&["run", "p.yaml"], 0);
    let found = || db.psql("SELECT string_agg(id || tag, ',' ORDER BY id, tag) FROM copies");
    assert_eq!(found().trim(), "1a,1b,1c,2a,3a,3b,3c");
    db.psql("DELETE FROM tags WHERE customer = 1 AND tag = 'b'; UPDATE orders SET updated_at = now() WHERE id = 1");
    place.until(&["run", "p.yaml"], found, "1a,1c,2a,3a,3c");
    db.psql("DELETE FROM tags WHERE customer = 1 AND tag = 'c'; UPDATE orders SET updated_at = now() WHERE id = 3");
    place.until(&["run", "picked.yaml"], kept, "1a,2a,3a");
}

/// Where several rows of a dimension are valid at a time, the one that became valid last is taken, and that is told once.
#[test]
fn rows_that_are_valid_at_once_are_told() {
    let db = database("as_of");
    db.psql(
        "CREATE TABLE sales(id int PRIMARY KEY, product int, at timestamp);
         INSERT INTO sales SELECT i, 1, timestamp '2024-01-01' + interval '1 day' * i FROM generate_series(0, 5) i;
         CREATE TABLE prices(product int, price int, since timestamp, until timestamp);
         INSERT INTO prices VALUES (1, 10, '2024-01-01', '2024-01-03'), (1, 20, '2024-01-03', NULL)",
    );
    let place = here(&db);
    let pipeline = "name: p\nsource: {datastore: from, table: sales}\ndestination: {datastore: to, table: copies}\nkey: [id]\n\
        columns: [id, {source: null, dest: price}]\ntransform:\n  - enrich:\n      datastore: from\n      table: public.prices\n      \
        on: [product]\n      fields: [price]\n      join: as_of\n      as_of: {column: at, valid_from: since, valid_to: until}\n\
        strategies: [{type: full}]\n";
    place.write("p.yaml", pipeline);
    let told = || {
        let run = place.synctool(&["run", "p.yaml"]);
        assert!(run.status.success(), "{run:?}");
        String::from_utf8_lossy(&run.stderr)
            .matches("valid at the same time")
            .count()
    };
    let prices = || {
        db.psql("SELECT string_agg(price::text, ',' ORDER BY id) FROM copies")
            .trim()
            .to_owned()
    };
    assert_eq!((told(), prices()), (0, "10,10,20,20,20,20".to_owned()));
    db.psql("INSERT INTO prices VALUES (1, 15, '2024-01-02', '2024-01-05')");
    assert_eq!((told(), prices()), (1, "10,15,20,20,20,20".to_owned()));
    // A row that has one partner at a time leaves no copy behind, whatever may be said of several.
    let delta = pipeline
        .replacen("name: p", "name: d", 1)
        .replace("table: copies", "table: others")
        .replace("join: as_of", "join: as_of\n      cardinality: one_to_many")
        .replace("{type: full}", "{type: delta, column: at, margin: 1ms}");
    place.write("d.yaml", &delta);
    place.json(&["run", "d.yaml"], 0);
    let others = db.psql("SELECT string_agg(price::text, ',' ORDER BY id) FROM others");
    assert_eq!(others.trim(), "10,15,20,20,20,20");
}
