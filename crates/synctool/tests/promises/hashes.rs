//! Hashes that the destination keeps, and what they decide.

use super::matrix::{End, folder};
use super::*;

const PEOPLE: &str = "CREATE TABLE people(b int, a int, name text, price numeric(10,2), born date, seen timestamptz, ok boolean,
        token uuid, raw bytea, views int, PRIMARY KEY (b, a));
    INSERT INTO people VALUES (1, 2, 'alice', 10.50, '2000-01-02', '2024-01-15 12:00:00.5+00', true,
            '0b5a1f9e-0000-4000-8000-00000000000a', '\\x00ff', 1),
        (1, 1, 'näme, ~ 5:x', NULL, NULL, NULL, false, NULL, '\\x', 2), (-7, 0, '', -0.00, '1969-12-31', '1969-12-31 23:59:59.9+00', NULL, NULL, NULL, 3)";

/// The documented form of a row, written by hand in SQL: the key in its order, then the others by name.
const FORM: &str = "b || ',' || a || ','
    || coalesce(born - date '1970-01-01' || ',', '~')
    || coalesce(octet_length(name) || ':' || name, '~')
    || coalesce(CASE ok WHEN true THEN '1,' WHEN false THEN '0,' END, '~')
    || coalesce(price || ',', '~')
    || coalesce(encode(raw, 'hex') || ',', '~')
    || coalesce((extract(epoch FROM seen) * 1000000)::bigint || ',', '~')
    || coalesce(replace(token::text, '-', '') || ',', '~')";

fn pipeline(algorithm: &str, data_type: &str) -> String {
    format!(
        "name: people_{algorithm}\nhash_algo: {algorithm}\nsource: {{datastore: from, table: public.people}}\n\
         destination: {{datastore: to, table: public.copy_{algorithm}}}\nkey: [b, a]\ncolumns:\n  \
         - {{source: b}}\n  - {{source: a}}\n  - {{source: name}}\n  - {{source: price}}\n  - {{source: born}}\n  - {{source: seen}}\n  \
         - {{source: ok}}\n  - {{source: token}}\n  - {{source: raw}}\n  - {{source: views, hash_column: false}}\n  \
         - {{source: null, dest: checksum, hash_key: true{data_type}}}\n\
         strategies: [{{name: full, type: full}}, {{name: hash, type: hash, prevent_update_unless_changed: true}}]\n"
    )
}

#[test]
fn a_kept_hash_is_that_of_the_documented_form() {
    for (algorithm, data_type, hash) in [
        ("canonical", "", "md5(FORM)"),
        ("hash_md5_hash", "", "md5(FORM)"),
        (
            "md5_sum_hash",
            ", data_type: bigint",
            "('x' || left(md5(FORM), 8))::bit(32)::bigint & 4294967295",
        ),
    ] {
        let db = database("kept_hash");
        db.psql(PEOPLE);
        let place = here(&db);
        let file = format!("{algorithm}.yaml");
        place.write(&file, &pipeline(algorithm, data_type));
        place.json(&["run", &file, "--strategy", "full"], 0);
        let copy = format!("copy_{algorithm}");
        let expression = hash.replace("FORM", FORM);
        let wrong = format!(
            "SELECT string_agg(b || ' ' || a, ', ') FROM {copy} WHERE checksum IS DISTINCT FROM ({expression})"
        );
        assert_eq!(db.psql(&wrong).trim(), "", "{algorithm}: rows whose hash is another");
        assert_eq!(db.psql(&format!("SELECT count(*) FROM {copy}")).trim(), "3");
        // A change that counts: the row and its hash are written.
        db.psql("UPDATE people SET price = 11 WHERE a = 2; DELETE FROM people WHERE a = 0; INSERT INTO people VALUES (5, 5, 'x')");
        let mended = place.json(&["run", &file, "--strategy", "hash"], 0);
        assert_eq!(
            (&mended["inserted"], &mended["updated"], &mended["deleted"]),
            (&1.into(), &1.into(), &1.into()),
            "{algorithm}: {mended}"
        );
        assert_eq!(db.psql(&wrong).trim(), "", "{algorithm}: hashes after a repair");
    }
}

/// The hash that is kept is the same from every engine and in every one.
#[test]
fn a_kept_hash_is_the_same_between_all_engines() {
    let ends = |which: &str| {
        [
            End::Postgres(database(&format!("kept_{which}"))),
            End::Maria(MariaDb::shared().database(&format!("kept_{which}"))),
            End::Sqlite(folder()),
        ]
    };
    let (sources, destinations) = (ends("from"), ends("to"));
    let sql = database("kept_expected");
    let expected = |algorithm: &str, price: &str| {
        let hash = |form: &str| match algorithm {
            "hash_md5_hash" => sql.psql(&format!("SELECT md5('{form}')")),
            _ => sql.psql(&format!(
                "SELECT ('x' || left(md5('{form}'), 8))::bit(32)::bigint & 4294967295"
            )),
        };
        let whole = hash(&format!("1,19782,5:näme1,{price},"));
        format!("1 {}\n2 {}", whole.trim(), hash("2,~~~~").trim())
    };
    for (i, from) in sources.iter().enumerate() {
        from.change(
            "CREATE TABLE items(id int PRIMARY KEY, name varchar(40), price decimal(10,2), day date, ok boolean);
             INSERT INTO items VALUES (1, 'näme', 10.50, '2024-02-29', true), (2, NULL, NULL, NULL, NULL)",
        );
        for (j, to) in destinations.iter().enumerate() {
            let (algorithm, data_type) = match (i + j) % 2 {
                0 => ("hash_md5_hash", ""),
                _ => ("md5_sum_hash", ", data_type: bigint"),
            };
            let table = format!("copies_{i}_{j}");
            let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
            place.write(
                "p.yaml",
                &format!(
                    "name: {table}\nhash_algo: {algorithm}\nsource: {{datastore: from, table: items}}\n\
                     destination: {{datastore: to, table: {table}}}\nkey: [id]\n\
                     columns: [id, name, price, day, ok, {{source: null, dest: checksum, hash_key: true{data_type}}}]\n\
                     strategies: [{{name: full, type: full}}, {{name: hash, type: hash}}]\n"
                ),
            );
            for (strategy, price) in [("full", "10.50"), ("hash", "11.00")] {
                from.change(&format!("UPDATE items SET price = {price} WHERE id = 1"));
                place.json(&["run", "p.yaml", "--strategy", strategy], 0);
                let kept = to.lines(&table, &["id", "checksum"]);
                assert_eq!(kept, expected(algorithm, price), "{algorithm}, {strategy}: {i} to {j}");
            }
        }
    }
}

#[test]
fn a_destination_without_the_column_is_left_as_it_is() {
    let db = database("no_hash_column");
    db.psql(PEOPLE);
    db.psql("CREATE TABLE copy_md5_sum_hash AS SELECT * FROM people WITH NO DATA; ALTER TABLE copy_md5_sum_hash ADD PRIMARY KEY (b, a)");
    let place = here(&db);
    place.write("p.yaml", &pipeline("md5_sum_hash", ""));
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(db.psql("SELECT count(*) FROM copy_md5_sum_hash").trim(), "3");
    // One that cannot hold a hash is refused before anything is written.
    db.psql("TRUNCATE copy_md5_sum_hash; ALTER TABLE copy_md5_sum_hash ADD checksum smallint");
    let refused = place.synctool(&["run", "p.yaml", "--strategy", "hash"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("bigint"), "{told}");
    assert_eq!(db.psql("SELECT count(*) FROM copy_md5_sum_hash").trim(), "0");
}

/// `prevent_update_unless_changed`: what did not change in a column that counts is not written, which the server itself
/// tells by the version of each row.
#[test]
fn what_did_not_change_is_not_written() {
    let db = database("unless_changed");
    db.psql(PEOPLE);
    let place = here(&db);
    place.write("p.yaml", &pipeline("hash_md5_hash", ""));
    place.json(&["run", "p.yaml", "--strategy", "full"], 0);
    let versions = || db.psql("SELECT string_agg(xmin || ' ' || ctid, ', ' ORDER BY b, a) FROM copy_hash_md5_hash");
    let before = versions();
    db.psql("UPDATE people SET views = views + 1; UPDATE people SET name = name");
    let nothing = place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(
        (&nothing["read"], &nothing["updated"]),
        (&0.into(), &0.into()),
        "{nothing}"
    );
    assert_eq!(versions(), before, "no row has a new version");
    db.psql("UPDATE people SET name = 'other' WHERE a = 1");
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    let after = versions();
    let changed = before
        .trim()
        .split(", ")
        .zip(after.trim().split(", "))
        .filter(|(a, b)| a != b)
        .count();
    assert_eq!(changed, 1, "{before} -> {after}");
}

/// A delta that reads a row again and finds it unchanged writes nothing either.
#[test]
fn a_delta_writes_only_what_differs() {
    let db = database("delta_unchanged");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int, updated_at timestamptz NOT NULL);
         INSERT INTO items SELECT i, i, now() - interval '1 hour' FROM generate_series(1, 100) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.items}\ndestination: {datastore: to, table: public.copies}\n\
         strategies: [{name: delta, type: delta, column: updated_at, stamped_by: app, lag: 1d}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let before = db.psql("SELECT md5(string_agg(xmin::text, ',' ORDER BY id)) FROM copies");
    let again = place.json(&["run", "p.yaml"], 0);
    assert_eq!((&again["read"], &again["updated"]), (&100.into(), &0.into()), "{again}");
    assert_eq!(
        db.psql("SELECT md5(string_agg(xmin::text, ',' ORDER BY id)) FROM copies"),
        before
    );
}

/// `match_row_count`: a block counts its rows too, so rows whose sums happen to be equal do not hide a missing one. Two
/// equal rows of a table are told from one, and from none.
#[test]
fn counts_are_compared_too() {
    for count in ["true", "false"] {
        let db = database("row_count");
        db.psql("CREATE TABLE items(id int PRIMARY KEY, v int); INSERT INTO items SELECT i, 1 FROM generate_series(1, 5000) i");
        let place = here(&db);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies}}\n\
                 strategies: [{{name: hash, type: hash, match_row_count: {count}}}]\n"
            ),
        );
        place.json(&["run", "p.yaml"], 0);
        db.psql("DELETE FROM copies WHERE id % 700 = 0; INSERT INTO copies VALUES (-1, 1), (9999, 1)");
        let mended = place.json(&["run", "p.yaml"], 0);
        assert_eq!(
            (&mended["inserted"], &mended["deleted"]),
            (&7.into(), &2.into()),
            "{mended}"
        );
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// Compared by a hash that the source stores itself.
const HASHED: &str = "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\n\
     columns:\n  - {source: id}\n  - {source: v}\n  - {source: h, hash_key: true}\n\
     strategies: [{name: hash, type: hash}]\n";

/// A hash that the source stores itself is compared in place of the columns.
#[test]
fn a_hash_of_the_source_is_compared_as_it_is() {
    let db = database("stored_hash");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int, h bigint);
         INSERT INTO items SELECT i, i, i * 7 FROM generate_series(1, 1000) i",
    );
    let place = here(&db);
    place.write("p.yaml", HASHED);
    place.json(&["run", "p.yaml"], 0);
    db.psql("UPDATE items SET v = -1 WHERE id = 5; UPDATE items SET v = -1, h = -1 WHERE id = 6");
    let mended = place.json(&["run", "p.yaml"], 0);
    assert_eq!(mended["updated"], 1, "{mended}");
    assert_eq!(
        db.psql("SELECT string_agg(id::text, ',') FROM copies WHERE v = -1")
            .trim(),
        "6"
    );
}

/// Hashes that know nothing of the key: rows that trade all of their values are seen, whoever adds the hashes up.
#[test]
fn rows_that_trade_their_stored_hashes_are_seen() {
    let from = database("traded_from");
    from.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, h bigint);
         INSERT INTO items SELECT i, i, i * 7 FROM generate_series(1, 1000) i",
    );
    for to in [
        End::Postgres(database("traded_to")),
        End::Maria(MariaDb::shared().database("traded_to")),
        End::Sqlite(folder()),
    ] {
        let place = Place::new(&[("from", postgres(&from)), ("to", to.entry())]);
        place.write("p.yaml", HASHED);
        place.json(&["run", "p.yaml"], 0);
        to.change("UPDATE copies SET v = 11 - v, h = 77 - h WHERE id IN (5, 6)");
        let found = place.json(&["verify", "p.yaml"], 3);
        assert_eq!(found["compared"]["differing"], 2, "{found}");
        let mended = place.json(&["run", "p.yaml"], 0);
        assert_eq!(mended["updated"], 2, "{mended}");
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// Without the hash at the destination there is nothing to compare by.
#[test]
fn a_destination_without_the_hash_of_the_source_is_refused() {
    let db = database("without_hash");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int, h bigint); INSERT INTO items VALUES (1, 1, 7);
         CREATE TABLE copies(id int PRIMARY KEY, v int); INSERT INTO copies VALUES (2, 2)",
    );
    let place = here(&db);
    place.write("p.yaml", HASHED);
    let refused = place.synctool(&["run", "p.yaml"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && told.contains("no column h"), "{told}");
    assert_eq!(db.psql("SELECT string_agg(id::text, ' ') FROM copies").trim(), "2");
}

/// Plans of older versions compare by a form that is not known any more: that is told, and forgotten unread.
#[test]
fn a_plan_that_cannot_be_read_is_told_and_forgotten() {
    let from = database("unread_from");
    from.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, h bigint);
         INSERT INTO items SELECT i, i, i * 7 FROM generate_series(1, 100) i",
    );
    let in_postgres = "UPDATE synctool.plan SET plan = jsonb_set(plan::jsonb, '{tables,0,compare,form}', '{\"stored\": \"h\"}')::json";
    let elsewhere =
        "UPDATE _synctool_plan SET plan = json_set(plan, '$.tables[0].compare.form', json_object('stored', 'h'))";
    for (to, older) in [
        (End::Postgres(database("unread_to")), in_postgres),
        (End::Maria(MariaDb::shared().database("unread_to")), elsewhere),
        (End::Sqlite(folder()), elsewhere),
    ] {
        let place = Place::new(&[("from", postgres(&from)), ("to", to.entry())]);
        place.write("p.yaml", HASHED);
        // The first run loads, and the next one compares.
        place.json(&["run", "p.yaml"], 0);
        place.json(&["run", "p.yaml"], 0);
        to.change(older);
        let told = place.json(&["run", "p.yaml"], 1).to_string();
        assert!(told.contains("ST-STA-001") && told.contains("state reset"), "{told}");
        let reset = place.json(&["state", "reset", "p", "--yes"], 0);
        assert!(reset["forgotten"].to_string().contains("cannot be read"), "{reset}");
        to.change("UPDATE copies SET h = 0 WHERE id = 5");
        assert_eq!(place.json(&["run", "p.yaml"], 0)["updated"], 1);
    }
}

/// A table that somebody made as we would have made it, only without the comment that says what its times mean.
#[test]
fn instants_in_a_datetime_are_compared_as_such() {
    let from = database("instants");
    from.psql(
        "CREATE TABLE items(id int PRIMARY KEY, at timestamptz, amount numeric(12,2));
         INSERT INTO items VALUES (1, '2024-03-31 02:30:00.123456+02', 1.50), (2, NULL, NULL)",
    );
    let to = MariaDb::shared().database("instants");
    to.sql("CREATE TABLE items(id int PRIMARY KEY, at datetime(6), amount decimal(12,2))");
    let place = Place::new(&[
        ("from", postgres(&from)),
        ("to", format!("{{type: mysql, url: \"{}\"}}", to.url())),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.items}\ndestination: {datastore: to, table: items}\n\
         strategies: [{type: hash}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        to.sql("SELECT concat_ws(' ', id, at, amount) FROM items ORDER BY id"),
        "1 2024-03-31 00:30:00.123456 1.50\n2"
    );
    place.json(&["verify", "p.yaml"], 0);
    let again = place.json(&["run", "p.yaml"], 0);
    assert_eq!(again["updated"], 0, "{again}");
    to.sql("UPDATE items SET at = '2024-03-31 02:30:00.123456' WHERE id = 1");
    place.json(&["verify", "p.yaml"], 3);
}

/// What a comparison sees follows from the form that was asked for, and it is told by which hash.
#[test]
fn rows_are_compared_by_the_form_that_was_asked_for() {
    let db = database("forms");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, n jsonb, name text);
         CREATE TABLE copies(id bigint PRIMARY KEY, n jsonb, name text);
         CREATE TABLE twins(id int PRIMARY KEY, n numeric(9,2)); CREATE TABLE twin_copies(id int PRIMARY KEY, n numeric(9,2));
         INSERT INTO items SELECT i, NULL, 'näme ' || i FROM generate_series(1, 3000) i;
         INSERT INTO twins SELECT i, i FROM generate_series(1, 3000) i",
    );
    let place = here(&db);
    for (file, algorithm, table, copies, columns, told) in [
        (
            "unlike",
            "",
            "items",
            "copies",
            "[id, name]",
            "the engine's own hash of their canonical form",
        ),
        (
            "alike",
            "",
            "twins",
            "twin_copies",
            "[id, n]",
            "the engine's own record hash",
        ),
        (
            "canonical",
            "hash_algo: canonical\n",
            "twins",
            "twin_copies",
            "[id, n]",
            "the engine's own hash of their canonical form",
        ),
        (
            "md5",
            "hash_algo: hash_md5_hash\n",
            "twins",
            "twin_copies",
            "[id, n]",
            "MD5 of their canonical form, computed in both databases",
        ),
    ] {
        db.psql(&format!("TRUNCATE {copies}"));
        let file = format!("{file}.yaml");
        place.write(
            &file,
            &format!(
                "name: {copies}\n{algorithm}source: {{datastore: from, table: public.{table}}}\n\
                 destination: {{datastore: to, table: public.{copies}}}\nkey: [id]\ncolumns: {columns}\n\
                 strategies: [{{name: hash, type: hash}}]\n"
            ),
        );
        place.json(&["run", &file], 0);
        db.psql(&format!(
            "UPDATE {copies} SET id = -id WHERE id IN (5, 700); DELETE FROM {copies} WHERE id = 3000"
        ));
        let found = place.json(&["verify", &file], 3);
        assert_eq!(
            (
                &found["compared"]["only_source"],
                &found["compared"]["only_destination"]
            ),
            (&3.into(), &2.into()),
            "{file}: {found}"
        );
        let plan = place.json(&["plan", &file], 0).to_string();
        assert!(plan.contains(told), "{file}: {plan}");
        let mended = place.json(&["run", &file], 0);
        assert_eq!(
            (&mended["inserted"], &mended["deleted"]),
            (&3.into(), &2.into()),
            "{file}: {mended}"
        );
        place.json(&["verify", &file], 0);
    }
}
