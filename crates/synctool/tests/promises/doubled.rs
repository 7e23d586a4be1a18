//! Keys that are not what they should be: several rows of one key, keys that a collation calls equal, dates that are no day.

use super::matrix::{End, folder};
use super::*;

const PIPELINE: &str = "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\n\
    columns: [id, name]\nkey: [id]\nstrategies: [{name: hash, type: hash}, {name: full, type: full, full_mode: upsert}]\n";

fn ends(name: &str) -> Vec<End> {
    vec![
        End::Postgres(database(&format!("{name}_to"))),
        End::Maria(MariaDb::shared().database(&format!("{name}_to"))),
        End::Sqlite(folder()),
    ]
}

const ROWS: &str = "(1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')";

/// A comparison that calls such ends equal, or mends them over and over, would be worse than none.
#[test]
fn several_rows_of_one_key_are_told() {
    for to in ends("doubled") {
        let from = End::Postgres(database("doubled_from"));
        from.change(&format!(
            "CREATE TABLE items(id int, name varchar(9)); INSERT INTO items VALUES {ROWS}"
        ));
        to.change(&format!(
            "CREATE TABLE copies(id int, name varchar(9)); INSERT INTO copies VALUES {ROWS}, (3, 'c'), (3, 'c')"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", PIPELINE);
        let told = |arguments: &[&str], table: &str| {
            let error = place.json(arguments, 1);
            assert_eq!(error["error"]["code"], "ST-DAT-005", "{error}");
            assert!(
                error
                    .to_string()
                    .contains(&format!("{table} has several rows of one key (id)")),
                "{error}"
            );
        };
        told(&["verify", "p.yaml"], "copies");
        told(&["run", "p.yaml", "--strategy", "hash"], "copies");
        place.json(&["state", "reset", "p", "--yes"], 0);
        // The same at the source.
        to.change("DELETE FROM copies WHERE id = 3; INSERT INTO copies VALUES (3, 'c')");
        from.change("INSERT INTO items VALUES (3, 'other')");
        told(&["verify", "p.yaml"], "items");
        told(&["run", "p.yaml", "--strategy", "hash"], "items");
    }
}

#[test]
fn a_comparison_that_finds_nothing_to_delete_ends_well() {
    for to in ends("nothing") {
        let from = End::Postgres(database("nothing_from"));
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, name varchar(9)); INSERT INTO items VALUES {ROWS}"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", PIPELINE);
        place.json(&["run", "p.yaml", "--strategy", "full"], 0);
        from.change("UPDATE items SET name = 'x' WHERE id = 2");
        for updated in [1, 0] {
            let run = place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
            assert_eq!(
                (&run["updated"], &run["deleted"]),
                (&updated.into(), &0.into()),
                "{run}"
            );
        }
        assert_eq!(
            to.lines("copies", &["id", "name"]),
            from.lines("items", &["id", "name"])
        );
    }
}

/// The row of the new key has taken the place of the old one's before the old one is deleted.
#[test]
fn a_key_whose_letters_change_case_keeps_its_row() {
    let maria = || End::Maria(MariaDb::shared().database("cases"));
    // The servers of other versions are built without ICU.
    let postgres = || {
        let db = Postgres::shared(PgVersion::V15).database("cases");
        db.psql("CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
        End::Postgres(db)
    };
    for (from, to, key) in [
        (maria(), maria(), "varchar(40) COLLATE utf8mb4_general_ci"),
        (postgres(), postgres(), "varchar(40) COLLATE blind"),
        (
            End::Sqlite(folder()),
            End::Sqlite(folder()),
            "varchar(40) COLLATE NOCASE",
        ),
    ] {
        let stamp = match from {
            End::Postgres(_) => "timestamptz",
            _ => "timestamp(6)",
        };
        let table = |name: &str| {
            format!(
                "CREATE TABLE {name}(id {key} NOT NULL PRIMARY KEY, name varchar(9), \
                 updated_at {stamp} NOT NULL DEFAULT '2024-01-01 00:00:00.000')"
            )
        };
        from.change(&format!(
            "{}; INSERT INTO items(id, name) VALUES ('Al@x', 'a'), ('bo@x', 'b'), ('cy@x', 'c'), ('di@x', 'd')",
            table("items")
        ));
        to.change(&table("copies"));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            &PIPELINE
                .replace("columns: [id, name]", "columns: [id, name, updated_at]")
                .replace(
                    "strategies: [",
                    "strategies: [{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: anti_join}, ",
                ),
        );
        let columns = ["name", "id"];
        for (strategy, change) in [
            ("hash", "UPDATE items SET id = 'AL@x' WHERE name = 'a'"),
            (
                "delta",
                "UPDATE items SET id = 'BO@x', updated_at = NOW WHERE name = 'b'",
            ),
            ("full", "UPDATE items SET id = 'Di@x' WHERE name = 'd'"),
            ("hash", "DELETE FROM items WHERE name = 'c'"),
        ] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            from.change(change);
            let wanted = from.lines("items", &columns);
            place.until(
                &["run", "p.yaml", "--strategy", strategy],
                || to.lines("copies", &columns),
                &wanted,
            );
        }
    }
}

/// Two rows of the source would be one there, and `verify` alone would tell.
#[test]
fn keys_that_the_destination_may_call_equal_are_refused() {
    let maria = || End::Maria(MariaDb::shared().database("equal_keys"));
    // The servers of other versions are built without ICU.
    let blind = Postgres::shared(PgVersion::V15).database("equal_keys");
    blind.psql("CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
    for (to, key, by) in [
        (maria(), "varchar(40) COLLATE utf8mb4_general_ci", "utf8mb4_general_ci"),
        // Blanks at the end do not count.
        (maria(), "varchar(40) COLLATE utf8mb4_bin", "utf8mb4_bin"),
        (End::Postgres(blind), "varchar(40) COLLATE blind", "blind"),
        (End::Sqlite(folder()), "varchar(40) COLLATE NOCASE", "NOCASE"),
        (End::Sqlite(folder()), "varchar(40) COLLATE RTRIM", "RTRIM"),
    ] {
        let from = End::Postgres(database("equal_keys_from"));
        from.change(
            "CREATE TABLE items(id varchar(40) PRIMARY KEY, name varchar(9)); INSERT INTO items VALUES ('a', 'x'), ('b', 'y')",
        );
        to.change(&format!(
            "CREATE TABLE copies(id {key} NOT NULL PRIMARY KEY, name varchar(9)); INSERT INTO copies VALUES ('b', 'old')"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", PIPELINE);
        let refused = place.json(&["run", "p.yaml", "--strategy", "hash"], 2);
        assert_eq!(refused["error"]["code"], "ST-CFG-014", "{refused}");
        let told = refused.to_string();
        for words in ["key column id", by, "byte by byte", "distinct_keys: true"] {
            assert!(told.contains(words), "{words}: {told}");
        }
        assert_eq!(to.lines("copies", &["id", "name"]), "b old", "{by}");
        // Who knows that none are equal says so.
        place.write(
            "p.yaml",
            &PIPELINE.replace("table: copies}", "table: copies, distinct_keys: true}"),
        );
        for strategy in ["full", "hash"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(to.lines("copies", &["id", "name"]), "a x\nb y", "{by}");
        }
    }
}

/// A load of all rows needs no promise: the second row of a key ends it, and nothing is changed.
#[test]
fn a_load_ends_at_keys_that_the_destination_calls_equal() {
    // The servers of other versions are built without ICU.
    let blind = Postgres::shared(PgVersion::V15).database("equal_loads");
    blind.psql("CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false)");
    for (to, key) in [
        (End::Postgres(blind), "varchar(40) COLLATE blind"),
        (
            End::Maria(MariaDb::shared().database("equal_loads")),
            "varchar(40) COLLATE utf8mb4_general_ci",
        ),
        (End::Sqlite(folder()), "varchar(40) COLLATE NOCASE"),
    ] {
        let from = End::Postgres(database("equal_loads_from"));
        from.change(
            "CREATE TABLE items(id varchar(40) PRIMARY KEY, name varchar(9)); INSERT INTO items VALUES ('a', 'x'), ('b', 'y')",
        );
        to.change(&format!(
            "CREATE TABLE copies(id {key} NOT NULL PRIMARY KEY, name varchar(9)); INSERT INTO copies VALUES ('b', 'old')"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", PIPELINE);
        place.json(&["run", "p.yaml", "--strategy", "full"], 0);
        assert_eq!(to.lines("copies", &["id", "name"]), "a x\nb y", "{key}");
        from.change("INSERT INTO items VALUES ('A', 'z'), ('c', 'z')");
        let ended = place.json(&["run", "p.yaml", "--strategy", "full"], 1);
        assert_eq!(ended["error"]["code"], "ST-DAT-005", "{key}: {ended}");
        assert_eq!(to.lines("copies", &["id", "name"]), "a x\nb y", "{key}");
    }
}

/// Groups are made by the bytes of texts, so that a source with the same collation has more of them.
#[test]
fn groups_that_the_destination_may_call_equal_are_refused() {
    let maria = |name: &str| End::Maria(MariaDb::shared().database(name));
    let (from, to) = (maria("equal_groups_from"), maria("equal_groups_to"));
    let grp = "grp varchar(20) COLLATE utf8mb4_general_ci";
    from.change(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, {grp} NOT NULL); INSERT INTO items VALUES (1, 'a'), (2, 'A')"
    ));
    to.change(&format!(
        "CREATE TABLE totals({grp} PRIMARY KEY, n bigint); INSERT INTO totals VALUES ('b', 1)"
    ));
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: totals}\nsync_type: aggregate\n\
         group_by: [grp]\ncolumns:\n  - grp\n  - {dest: n, expr: count(*)}\nstrategies: [{type: hash}]\n",
    );
    let refused = place.json(&["run", "p.yaml"], 2);
    assert_eq!(refused["error"]["code"], "ST-CFG-014", "{refused}");
}

/// Blanks at the end are no part of a char, in a group as in a row: a table of ours is written again.
#[test]
fn groups_of_padded_texts_are_written_again() {
    let maria = |name: &str| End::Maria(MariaDb::shared().database(name));
    let postgres = |name: &str| End::Postgres(database(name));
    for (from, to) in [
        (postgres("padded_groups_from"), postgres("padded_groups_to")),
        (maria("padded_groups_from"), maria("padded_groups_to")),
    ] {
        from.change(
            "CREATE TABLE items(id int PRIMARY KEY, grp char(3) NOT NULL); INSERT INTO items VALUES (1, 'eur'), (2, 'usd')",
        );
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: totals}\nsync_type: aggregate\n\
             group_by: [grp]\ncolumns:\n  - grp\n  - {dest: n, expr: count(*)}\n\
         strategies: [{name: full, type: full, full_mode: upsert}, {name: hash, type: hash}]\n",
        );
        place.json(&["run", "p.yaml", "--strategy", "full"], 0);
        for (strategy, row, totals) in [
            ("hash", "(3, 'eur')", "eur 2\nusd 1"),
            ("full", "(4, 'usd')", "eur 2\nusd 2"),
        ] {
            from.change(&format!("INSERT INTO items VALUES {row}"));
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(to.lines("totals", &["grp", "n"]), totals);
        }
    }
}

/// Where the source calls as much equal as the destination, or the keys are no texts, nothing can become one.
#[test]
fn keys_that_are_as_many_at_the_destination_are_written() {
    let maria = || End::Maria(MariaDb::shared().database("as_many_keys"));
    let uuid = "0b6cd1f4-92e5-4b1e-8f5a-0123456789ab";
    for (from, ours, to, theirs, value) in [
        (
            maria(),
            "varchar(40) COLLATE utf8mb4_general_ci",
            End::Sqlite(folder()),
            "varchar(40) COLLATE NOCASE",
            "Al@x",
        ),
        (
            End::Postgres(database("as_many_keys")),
            "uuid",
            maria(),
            "char(36) COLLATE utf8mb4_general_ci",
            uuid,
        ),
        (
            maria(),
            "varchar(40) COLLATE utf8mb4_unicode_ci",
            End::Postgres(database("as_many_keys")),
            "varchar(40)",
            "Al@x",
        ),
        (
            End::Sqlite(folder()),
            "NUMERIC",
            End::Postgres(database("as_many_keys")),
            "numeric",
            "1.5",
        ),
    ] {
        from.change(&format!(
            "CREATE TABLE items(id {ours} NOT NULL PRIMARY KEY, name varchar(9)); INSERT INTO items VALUES ('{value}', 'x')"
        ));
        to.change(&format!(
            "CREATE TABLE copies(id {theirs} NOT NULL PRIMARY KEY, name varchar(9))"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", PIPELINE);
        // A comparison is what would be refused.
        for strategy in ["full", "hash"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(to.lines("copies", &["id", "name"]), format!("{value} x"));
        }
    }
}

/// `0000-00-00` is neither NULL nor another such date.
#[test]
fn dates_that_are_no_day_are_told_apart() {
    let (from, to) = (
        MariaDb::shared().database("no_day_from"),
        MariaDb::shared().database("no_day_to"),
    );
    from.sql(
        "SET sql_mode = ''; CREATE TABLE items(id int PRIMARY KEY, d date, t datetime);
         INSERT INTO items VALUES (1, '0000-00-00', '2024-01-01'), (2, '2024-02-00', '0000-00-00'), (3, '2024-01-01', '2024-00-15')",
    );
    to.sql(
        "SET sql_mode = ''; CREATE TABLE items(id int PRIMARY KEY, d date, t datetime);
         INSERT INTO items VALUES (1, NULL, '2024-01-01'), (2, '0000-00-00', '0000-00-00'), (3, '2024-01-01', NULL)",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", from.url())),
        ("to", format!("{{type: mysql, url: \"{}\"}}", to.url())),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\nstrategies: [{type: hash}]\n",
    );
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(found["compared"]["differing"], 3, "{found}");
}

/// A time may lie before midnight.
#[test]
fn times_of_another_sign_are_told_apart() {
    let (from, to) = (
        MariaDb::shared().database("sign_from"),
        MariaDb::shared().database("sign_to"),
    );
    for (db, first, last) in [(&from, "-10:00:00", "-00:00:00.5"), (&to, "10:00:00", "00:00:00.5")] {
        db.sql(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, t time(6));
             INSERT INTO items VALUES (1, '{first}'), (2, '-01:02:03.04'), (3, '838:59:59'), (4, NULL), (5, '{last}')"
        ));
    }
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", from.url())),
        ("to", format!("{{type: mysql, url: \"{}\"}}", to.url())),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\nstrategies: [{type: hash}]\n",
    );
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(found["compared"]["differing"], 2, "{found}");
    let rows = "SELECT id, t FROM items ORDER BY id";
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(to.sql(rows), from.sql(rows));
}

/// `TINYINT(1)` is a number that most use as a boolean.
#[test]
fn other_numbers_in_a_boolean_pass_between_servers_of_one_kind() {
    let (from, to) = (
        MariaDb::shared().database("tiny_from"),
        MariaDb::shared().database("tiny_to"),
    );
    from.sql(
        "CREATE TABLE items(id int PRIMARY KEY, b tinyint(1), one bit(1));
         INSERT INTO items VALUES (1, 0, b'0'), (2, 1, b'1'), (3, 7, b'1'), (4, -3, b'0'), (5, NULL, NULL)",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", from.url())),
        ("to", format!("{{type: mysql, url: \"{}\"}}", to.url())),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\n\
         strategies: [{name: full, type: full}, {name: hash, type: hash}]\n",
    );
    let rows = "SELECT id, b, one + 0 FROM items ORDER BY id";
    place.json(&["run", "p.yaml", "--strategy", "full"], 0);
    assert_eq!(to.sql(rows), from.sql(rows));
    from.sql("UPDATE items SET b = b + 1, one = b'1' WHERE b <> 0");
    let run = place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(run["updated"], 3, "{run}");
    assert_eq!(to.sql(rows), from.sql(rows));
    place.json(&["verify", "p.yaml"], 0);
}

/// What is in such a column was not compared, so nobody may be told that all is equal.
#[test]
fn a_column_that_the_destination_lacks_is_a_difference() {
    let db = database("lacking");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, name text, extra int DEFAULT 7); INSERT INTO items VALUES (1, 'a'), (2, 'b');
         CREATE TABLE copies AS SELECT id, name FROM items; ALTER TABLE copies ADD PRIMARY KEY (id)",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\nstrategies: [{type: hash}, {type: full}]\n",
    );
    for arguments in [
        &["verify", "p.yaml"][..],
        &["diff", &db.url(), "public.items", &db.url(), "public.copies"],
    ] {
        let found = place.json(arguments, 3);
        assert_eq!(
            (&found["status"], &found["missing_columns"]),
            (&"different".into(), &serde_json::json!(["extra"])),
            "{found}"
        );
    }
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\ncolumns: [id, name]\n\
         key: [id]\nstrategies: [{type: hash}]\n",
    );
    place.json(&["verify", "p.yaml"], 0);
}

/// Its reader and its writer would wait for each other for ever, outside of WAL.
#[test]
fn one_sqlite_file_is_both_ends_in_wal_mode_alone() {
    let end = End::Sqlite(folder());
    end.change(
        "CREATE TABLE items(id int NOT NULL PRIMARY KEY, name varchar(9)); INSERT INTO items VALUES (1, 'a'), (2, 'b')",
    );
    let place = Place::new(&[("from", end.entry()), ("to", end.entry())]);
    place.write("p.yaml", PIPELINE);
    let refused = place.json(&["run", "p.yaml", "--strategy", "full"], 2);
    assert_eq!(refused["error"]["code"], "ST-CFG-001", "{refused}");
    assert!(
        refused["error"]["next"]
            .to_string()
            .contains("PRAGMA journal_mode = WAL"),
        "{refused}"
    );
    let End::Sqlite(folder) = &end else { unreachable!() };
    rusqlite::Connection::open(folder.path().join("x.db"))
        .and_then(|c| c.query_row("PRAGMA journal_mode = WAL", [], |r| r.get::<_, String>(0)))
        .expect("the mode");
    place.json(&["run", "p.yaml", "--strategy", "full"], 0);
    end.change("DELETE FROM items WHERE id = 1; UPDATE items SET name = 'c'");
    place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(end.lines("copies", &["id", "name"]), "2 c");
}

#[cfg(feature = "duckdb")]
mod duckdb {
    use super::*;

    /// One file, as source and destination and by several commands.
    #[test]
    fn one_file_may_be_both_ends() {
        let from = End::Postgres(database("one_file"));
        from.change("CREATE TABLE items(id int PRIMARY KEY, name varchar(9)); INSERT INTO items SELECT i, 'n' || i FROM generate_series(1, 5000) i");
        let both = End::DuckDb(folder());
        let place = Place::new(&[("from", from.entry()), ("file", both.entry())]);
        let pipeline = |name: &str, source: &str, from: &str, to: &str| {
            place.write(
                &format!("{name}.yaml"),
                &format!(
                    "name: {name}\nsource: {{datastore: {source}, table: {from}}}\ndestination: {{datastore: file, table: {to}}}\n\
                     strategies: [{{name: full, type: full}}, {{name: hash, type: hash}}]\n"
                ),
            );
        };
        pipeline("load", "from", "items", "one");
        pipeline("copy", "file", "one", "two");
        place.json(&["run", "load.yaml", "--strategy", "full"], 0);
        for _ in 0..3 {
            let copied = place.json(&["run", "copy.yaml", "--strategy", "full"], 0);
            assert_eq!(copied["read"], 5000, "{copied}");
            let equal = place.json(&["verify", "copy.yaml"], 0);
            assert_eq!(equal["compared"]["destination"], 5000, "{equal}");
        }
        // A run that is refused is forgotten, as often as one likes.
        from.change("DELETE FROM items WHERE id > 3000");
        let refused = place.json(&["run", "load.yaml", "--strategy", "hash"], 4);
        assert_eq!(refused["error"]["code"], "ST-POL-002", "{refused}");
        for _ in 0..3 {
            place.json(&["state", "reset", "load", "--yes"], 0);
        }
        let refused = place.json(&["run", "load.yaml", "--strategy", "full"], 4);
        assert_eq!(
            refused["error"]["code"], "ST-POL-002",
            "a swap takes rows away too: {refused}"
        );
        place.json(&["run", "load.yaml", "--strategy", "full", "--allow-mass-delete"], 0);
        let equal = place.json(&["verify", "load.yaml"], 0);
        assert_eq!(equal["compared"]["destination"], 3000, "{equal}");
    }
}
