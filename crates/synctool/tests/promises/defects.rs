//! The defects that the original has by its own nature. `docs/defects.md` names the test of each; those that stand here
//! had none before.

use super::*;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use synctool_testkit::kill::{Action, KillRun, spread};

fn rows(of: &str) -> String {
    format!("SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM {of} t")
}

fn pipeline(strategy: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies}}\n\
         strategies: [{strategy}]\n"
    )
}

/// Every test that the page of defects names exists.
#[test]
fn every_defect_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/defects.md")).expect("docs/defects.md");
    let mut defects = std::collections::BTreeSet::new();
    for line in page.lines().filter(|l| l.starts_with("| ")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let Ok(number) = cells[1].parse::<u32>() else { continue };
        let mut named = 0;
        for test in cells[3].split('`').skip(1).step_by(2) {
            let (file, name) = test
                .split_once("::")
                .unwrap_or_else(|| panic!("defect {number}: {test} names no test"));
            let text = std::fs::read_to_string(root.join("crates").join(file))
                .unwrap_or_else(|e| panic!("defect {number}: {file}: {e}"));
            let name = name.rsplit("::").next().unwrap_or(name);
            assert!(
                text.contains(&format!("fn {name}(")),
                "defect {number}: {file} has no test {name}"
            );
            named += 1;
        }
        assert!(named > 0, "defect {number} has no test");
        defects.insert(number);
    }
    assert_eq!(defects, (1..=16).collect(), "all sixteen are there");
}

/// So do those that the pages of promises name.
#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for page in ["docs/strategies.md", "docs/guarantees.md"] {
        let text = std::fs::read_to_string(root.join(page)).expect(page);
        let mut named = 0;
        for test in text.split('`').skip(1).step_by(2) {
            let Some((file, name)) = test.split_once(".rs::") else {
                continue;
            };
            let file = format!("{file}.rs");
            let text =
                std::fs::read_to_string(root.join("crates").join(&file)).unwrap_or_else(|e| panic!("{file}: {e}"));
            assert!(
                text.contains(&format!("fn {name}(")),
                "{page}: {file} has no test {name}"
            );
            named += 1;
        }
        assert!(named > 30, "{page}: {named} tests");
    }
}

/// 3. Reading excludes no other reader: two pipelines read one table at the same time.
#[test]
fn pipelines_read_one_table_at_the_same_time() {
    let db = database("readers");
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v text); INSERT INTO items SELECT i, repeat('x', 200) FROM generate_series(1, 20000) i");
    let place = here(&db);
    for name in ["one", "two"] {
        place.write(
            &format!("{name}.yaml"),
            &format!(
                "name: {name}\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.{name}}}\n\
                 strategies: [{{name: full, type: full}}]\n"
            ),
        );
    }
    // The first is stopped in its middle, which is as long as a reader can take.
    let command = place.command(&["run", "one.yaml", "--output", "json"]);
    let points = KillRun::new(&command).failpoints_reached();
    let middle = points
        .iter()
        .find(|p| p.name == "engine.commit.before")
        .expect("a commit");
    db.psql("DROP TABLE one; DROP SCHEMA synctool CASCADE");
    std::fs::remove_dir_all(place.path().join("data")).expect("a fresh state");
    let mut slow = KillRun::new(&command).accident(middle, Action::Stop).start();
    slow.wait_stopped();
    place.json(&["run", "two.yaml"], 0);
    assert_eq!(db.psql(&rows("two")), db.psql(&rows("items")));
    slow.resume();
    slow.wait();
    assert_eq!(db.psql(&rows("one")), db.psql(&rows("items")));
}

/// 5. Fields are separated, NULL is no empty text, and one number has one form whatever database holds it.
#[test]
fn values_do_not_run_into_each_other() {
    let db = database("separators");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, a text, b text, n numeric(10,2), t boolean);
         INSERT INTO items VALUES (1, 'ab', 'c', 1.10, true), (2, NULL, 'x', 2, false), (3, 'x', NULL, 3, NULL), (4, '', '', 4, true),
             (5, 'same', 'same', 5.50, true)",
    );
    let maria = MariaDb::shared().database("separators");
    let place = Place::new(&[
        ("from", postgres(&db)),
        ("to", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
    ]);
    place.write(
        "p.yaml",
        &pipeline("{name: hash, type: hash}").replace("public.copies", "copies"),
    );
    place.json(&["run", "p.yaml"], 0);
    // Each of these has the same texts in a row, one after the other, as before; row 5 is equal in another form.
    maria.sql(
        "UPDATE copies SET a = 'a', b = 'bc' WHERE id = 1; UPDATE copies SET a = 'x', b = NULL WHERE id = 2;
         UPDATE copies SET a = '', b = 'x' WHERE id = 3; UPDATE copies SET a = NULL, b = '' WHERE id = 4;
         UPDATE copies SET n = 5.5 WHERE id = 5",
    );
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(found["compared"]["differing"], 4, "{found}");
    let mended = place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        (&mended["updated"], &mended["read"]),
        (&4.into(), &4.into()),
        "{mended}"
    );
    place.json(&["verify", "p.yaml"], 0);
}

/// 6. Two rows whose MD5 begin with the same 32 bits differ all the same.
#[test]
fn rows_that_look_alike_in_32_bits_differ() {
    let db = database("collision");
    // Texts of one row whose hashes collide in their first 32 bits: among so many there are some.
    let pair = db.psql(
        "SELECT min(i) || ' ' || max(i) FROM (SELECT i, left(md5('1,' || octet_length(i::text) || ':' || i), 8) h
           FROM generate_series(100000, 499999) i) t GROUP BY h HAVING count(*) > 1 LIMIT 1",
    );
    let (one, other) = pair.trim().split_once(' ').expect("a collision");
    db.psql(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, v text); INSERT INTO items VALUES (1, '{one}')"
    ));
    let place = Place::new(&[("from", postgres(&db)), ("to", "{type: sqlite, path: copy.db}".into())]);
    place.write(
        "p.yaml",
        &pipeline("{name: hash, type: hash}").replace("public.copies", "copies"),
    );
    place.json(&["run", "p.yaml"], 0);
    let copy = rusqlite::Connection::open(place.path().join("copy.db")).expect("opens");
    copy.execute("UPDATE copies SET v = ?1", [other]).expect("changed");
    let mended = place.json(&["run", "p.yaml"], 0);
    assert_eq!(mended["updated"], 1, "{mended}");
    let v: String = copy.query_row("SELECT v FROM copies", [], |r| r.get(0)).expect("a row");
    assert_eq!(v, one);
}

/// 7. Equal stamps are never split over pages, and rows without a stamp arrive.
#[test]
fn a_delta_keeps_ties_and_rows_without_a_stamp() {
    let db = database("ties");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int, updated_at timestamptz);
         INSERT INTO items SELECT i, i, now() - interval '2 hours' FROM generate_series(1, 5000) i;
         INSERT INTO items SELECT i, i, NULL FROM generate_series(5001, 5010) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        &pipeline("{name: delta, type: delta, column: updated_at, page_size: 10, margin: 1ms}"),
    );
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(db.psql(&rows("copies")), db.psql(&rows("items")));
    // One transaction, one stamp, many pages of it; and rows that lose their stamp.
    db.psql("UPDATE items SET v = -v, updated_at = now() WHERE id <= 3000; INSERT INTO items VALUES (6000, 1, NULL); UPDATE items SET v = 7 WHERE id = 5005");
    place.until(
        &["run", "p.yaml"],
        || db.psql(&rows("copies")),
        db.psql(&rows("items")).trim(),
    );
}

/// 8. Rows that go and come while a table is read move no other row past the reader.
#[test]
fn a_table_is_read_while_rows_come_and_go() {
    let db = database("keyset");
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v text); INSERT INTO items SELECT i * 10, repeat('x', 100) FROM generate_series(1, 30000) i");
    let place = Place::new(&[("from", postgres(&db)), ("to", "{type: sqlite, path: copy.db}".into())]);
    let text = pipeline("{name: full, type: full, page_size: 100}").replace("public.copies", "copies");
    place.write(
        "p.yaml",
        &text.replace("strategies", "partitioning: {column: id, step: 2000}\nstrategies"),
    );
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Always before where the reader is, never a row that stays.
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                db.psql(&format!(
                    "INSERT INTO items SELECT {n} * 1000 + i * 10 + 1, 'comes' FROM generate_series(1, 50) i ON CONFLICT DO NOTHING;
                     DELETE FROM items WHERE v = 'comes' AND id % 3 = 0"
                ));
            }
        });
        let run = place.synctool(&["run", "p.yaml", "--output", "json"]);
        stop.store(true, Ordering::Relaxed);
        assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    });
    let copy = rusqlite::Connection::open(place.path().join("copy.db")).expect("opens");
    let stayed: i64 = copy
        .query_row("SELECT count(*) FROM copies WHERE id % 10 = 0", [], |r| r.get(0))
        .expect("a count");
    assert_eq!(stayed, 30000, "every row that was there all the time, once");
}

/// 9. Deletes go by key: what a filter or a join leaves out of a range does not take the range's other rows along.
#[test]
fn deletes_take_no_range_along() {
    let db = database("range_deletes");
    db.psql(
        "CREATE TABLE owners(id int PRIMARY KEY); INSERT INTO owners SELECT generate_series(1, 50);
         CREATE TABLE items(id int PRIMARY KEY, owner int, kept boolean, day date);
         INSERT INTO items SELECT i, i % 60, i % 2 = 0, date '2024-01-01' + i % 90 FROM generate_series(1, 3000) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource:\n  datastore: from\n  table: public.items\n  alias: i\n  joins: [{table: owners, alias: o, on: i.owner = o.id, type: inner}]\n  \
         filters: [i.kept]\ndestination: {datastore: to, table: public.copies}\nkey: [id]\ncolumns:\n  - {source: i.id, dest: id}\n  \
         - {source: i.owner, dest: owner}\n  - {source: i.day, dest: day}\nstrategies:\n  - name: hash\n    type: hash\n    \
         primary_partitions: [{column: day, step: 1, step_unit: month}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let wanted = "SELECT md5(string_agg(concat_ws(' ', i.id, owner, day), ',' ORDER BY i.id)) FROM items i JOIN owners o ON owner = o.id WHERE kept";
    let found = "SELECT md5(string_agg(concat_ws(' ', id, owner, day), ',' ORDER BY id)) FROM copies";
    assert_eq!(db.psql(found), db.psql(wanted));
    // A whole month leaves the filter at the source but for one row, owners go, and strangers stand in the same months.
    db.psql(
        "UPDATE items SET kept = false WHERE day < '2024-02-01' AND id <> 60; DELETE FROM owners WHERE id = 7;
         INSERT INTO copies SELECT 100000 + i, 1, '2024-02-10' FROM generate_series(1, 5) i",
    );
    place.json(&["run", "p.yaml", "--allow-mass-delete"], 0);
    assert_eq!(db.psql(found), db.psql(wanted));
}

/// 10. Rows whose partition column is NULL are a partition of their own, in every strategy.
#[test]
fn rows_without_a_partition_value_arrive() {
    for strategy in [
        "{name: s, type: full, primary_partitions: [{column: part, step: 10}]}",
        "{name: s, type: full, primary_partitions: [{column: kind, type: value, step: -1}]}",
        "{name: s, type: hash, primary_partitions: [{column: part, step: 10}], secondary_partitions: [{column: day, step: 1, step_unit: week}]}",
        "{name: s, type: delta, column: updated_at, margin: 1ms, primary_partitions: [{column: part, step: 10}]}",
    ] {
        let db = database("null_partition");
        db.psql(
            "CREATE TABLE items(id int PRIMARY KEY, part int, kind text, day date, updated_at timestamptz DEFAULT now() - interval '1 hour');
             INSERT INTO items SELECT i, nullif(i % 40, 7), nullif('k' || i % 5, 'k3'), CASE WHEN i % 9 > 0 THEN date '2024-01-01' + i % 100 END
                 FROM generate_series(1, 900) i",
        );
        let place = here(&db);
        place.write("p.yaml", &pipeline(strategy));
        place.json(&["run", "p.yaml"], 0);
        assert_eq!(
            db.psql(&rows("copies")),
            db.psql(&rows("items")),
            "{strategy}: the first run"
        );
        db.psql(
            "UPDATE items SET part = NULL, kind = NULL, day = NULL, updated_at = now() WHERE id % 50 = 0;
             INSERT INTO items SELECT i, NULL, NULL, NULL, now() FROM generate_series(901, 905) i",
        );
        place.until(
            &["run", "p.yaml"],
            || db.psql(&rows("copies")),
            db.psql(&rows("items")).trim(),
        );
    }
}

/// 11. The slow ways write what the fast one writes: tabs, line ends, backslashes, an empty text that is not NULL.
#[test]
fn odd_texts_survive_every_way() {
    let db = database("odd_texts");
    db.psql(
        r#"CREATE TABLE items(id int PRIMARY KEY, v text);
          INSERT INTO items VALUES (1, E'a\tb'), (2, E'a\nb'), (3, E'a\r\nb'), (4, E'\\N'), (5, '\'), (6, ''), (7, NULL), (8, E'\\.'), (9, '""'),
              (10, ' '), (11, 'NULL'), (12, E'\x01\x7f'), (13, 'ü€😀'), (14, E'tail\\'), (15, ',;|')"#,
    );
    for (raw, mode) in [("", "swap"), ("1", "swap"), ("1", "upsert")] {
        db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
        let mut place = here(&db);
        if !raw.is_empty() {
            place.env("SYNCTOOL_NO_RAW", raw);
        }
        place.write(
            "p.yaml",
            &pipeline(&format!(
                "{{name: full, type: full, full_mode: {mode}}}, {{name: hash, type: hash}}"
            )),
        );
        for strategy in ["full", "full", "hash"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            assert_eq!(
                db.psql(&rows("copies")),
                db.psql(&rows("items")),
                "raw {raw:?}, {mode}, {strategy}"
            );
            db.psql("UPDATE copies SET v = 'other' WHERE id % 2 = 0; DELETE FROM copies WHERE id % 3 = 0");
        }
    }
}

/// 12. A table whose columns are all its key is written like any other.
#[test]
fn a_table_of_keys_alone_is_kept_equal() {
    let db = database("all_key");
    let maria = MariaDb::shared().database("all_key");
    db.psql("CREATE TABLE items(id int, tag varchar(20), PRIMARY KEY (id, tag)); INSERT INTO items SELECT i, 't' || i % 3 FROM generate_series(1, 100) i");
    let place = Place::new(&[
        ("from", postgres(&db)),
        ("postgres", postgres(&db)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("lite", "{type: sqlite, path: copy.db}".into()),
    ]);
    for to in ["postgres", "maria", "lite"] {
        let name = format!("{to}.yaml");
        place.write(
            &name,
            &format!(
                "name: to_{to}\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: {to}, table: copies_{to}}}\n\
                 strategies: [{{name: hash, type: hash}}, {{name: full, type: full, full_mode: upsert}}]\n"
            ),
        );
        let rows: u64 = db.psql("SELECT count(*) FROM items").trim().parse().expect("a count");
        place.json(&["run", &name, "--strategy", "full"], 0);
        db.psql("DELETE FROM items WHERE id = 5; INSERT INTO items VALUES (5, 'new'), (6, 'second')");
        let mended = place.json(&["run", &name, "--strategy", "hash"], 0);
        assert_eq!(
            (&mended["inserted"], &mended["deleted"]),
            (&2.into(), &1.into()),
            "{to}: {mended}"
        );
        place.json(&["run", &name, "--strategy", "full"], 0);
        let equal = place.json(&["verify", &name], 0);
        assert_eq!(equal["compared"]["destination"], rows + 1, "{to}: {equal}");
        db.psql("DELETE FROM items WHERE tag IN ('new', 'second'); INSERT INTO items VALUES (5, 't2')");
    }
}

/// 14. Whatever failpoint a process dies at, every file of its state can be read (`state/killed.rs`: at any moment).
#[test]
fn no_state_file_is_torn() {
    let db = database("torn");
    let place = here(&db);
    place.write(
        "p.yaml",
        &pipeline("{name: full, type: full}")
            .replace("strategies", "partitioning: {column: id, step: 200}\nstrategies"),
    );
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v text); INSERT INTO items SELECT i, 'v' FROM generate_series(1, 1000) i");
    let command = place.command(&["run", "p.yaml", "--output", "json"]);
    let points = KillRun::new(&command).failpoints_reached();
    let mut files = 0;
    for point in spread(&points, 10) {
        let outcome = KillRun::new(&command).accident(&point, Action::Kill).run();
        assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
        files += all_read(&place.path().join("data"), &point.to_string());
    }
    assert!(files > 10, "{files} files");
}

fn all_read(folder: &Path, when: &str) -> usize {
    let mut files = 0;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files += all_read(&path, when);
        } else if path.extension().is_some_and(|e| e == "json") {
            let text = std::fs::read_to_string(&path).expect("readable");
            let read = serde_json::from_str::<serde_json::Value>(&text);
            assert!(read.is_ok(), "killed at {when}: {} is torn", path.display());
            files += 1;
        }
    }
    files
}

/// 15. The last half second of a day belongs to it, and so does every second before 1970.
#[test]
fn days_are_not_rounded() {
    let around = |day: &str, next: &str| {
        format!(
            "CREATE TABLE items(id int PRIMARY KEY, at timestamp);
             INSERT INTO items VALUES (1, '{day} 23:59:59.6'), (2, '{next} 00:00:00'), (3, '{day} 23:59:59.999999'), (4, '{day} 12:00'),
                 (5, '{day} 00:00:00'), (6, '{next} 23:59:59.5'), (7, '{day} 11:59:59.5')"
        )
    };
    for (day, next) in [
        ("1969-12-31", "1970-01-01"),
        ("2024-02-29", "2024-03-01"),
        ("1582-10-14", "1582-10-15"),
    ] {
        for unit in ["day", "hour", "month"] {
            let db = database("rounding");
            db.psql(&around(day, next));
            let place = here(&db);
            place.write(
                "p.yaml",
                &pipeline(&format!(
                    "{{name: hash, type: hash, primary_partitions: [{{column: at, step: 1, step_unit: {unit}}}]}}"
                )),
            );
            place.json(&["run", "p.yaml"], 0);
            assert_eq!(db.psql(&rows("copies")), db.psql(&rows("items")), "{day}, {unit}");
            // Each row stays in the partition of its own day, where the run finds it.
            db.psql("UPDATE copies SET at = at + interval '0.1 seconds' WHERE id IN (1, 4, 6, 7)");
            let mended = place.json(&["run", "p.yaml"], 0);
            assert_eq!(
                (&mended["updated"], &mended["inserted"]),
                (&4.into(), &0.into()),
                "{day}, {unit}: {mended}"
            );
            assert_eq!(db.psql(&rows("copies")), db.psql(&rows("items")), "{day}, {unit}");
        }
    }
}
