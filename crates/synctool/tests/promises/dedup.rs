//! Dedup looks at a delta's whole window, however the strategy cuts it.

use super::matrix::{End, ends, folder};
use super::*;
use synctool_testkit::MariaDb;

fn pipeline(table: &str, dedup: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: {table}}}\ndestination: {{datastore: to, table: public.copies}}\nkey: [k]\n\
         columns: [k, v, at]\ntransform: [{{dedup: {dedup}}}]\nstrategies:\n  - name: delta\n    type: delta\n    column: at\n    \
         stamped_by: app\n    primary_partitions: [{{column: at, step: 1, step_unit: hour}}]\nmax_concurrent_partitions: 4\n"
    )
}

/// Rows of each key lie in several hours, some without a stamp; the winner is the one with the largest or smallest `v`,
/// which follows no order of time.
fn rows(first: u32, count: u32) -> String {
    let rows: Vec<String> = (first..first + count)
        .map(|i| {
            let at = match i % 11 {
                0 => "NULL".to_owned(),
                _ => format!("'2024-01-{:02} {:02}:{:02}:00'", i / 400 + 1, i * 7 % 24, i * 13 % 60),
            };
            format!("({i}, {}, {}, {at})", i % 37, i * 7919 % 10_007)
        })
        .collect();
    format!("INSERT INTO events VALUES {}", rows.join(", "))
}

#[test]
fn the_winner_is_that_of_the_whole_window() {
    for end in [
        End::Postgres(database("dedup_from")),
        End::Maria(MariaDb::shared().database("dedup_from")),
        End::Sqlite(folder()),
    ] {
        let to = database("dedup_to");
        for (name, dedup, best) in [
            ("largest", "{keys: [k], by: v}", "max"),
            ("smallest", "{keys: [k], by: v, keep: first}", "min"),
        ] {
            end.change(&format!(
                "DROP TABLE IF EXISTS events; CREATE TABLE events(id int PRIMARY KEY, k int NOT NULL, v int NOT NULL, at timestamp NULL); {}",
                rows(0, 900)
            ));
            let place = Place::new(&[("from", end.entry()), ("to", postgres(&to))]);
            let file = pipeline("events", dedup).replace("name: p", &format!("name: {name}"));
            place.write("p.yaml", &file.replace("copies", name));
            place.json(&["run", "p.yaml"], 0);
            let found = || {
                to.psql(&format!(
                    "SELECT string_agg(concat_ws(' ', k, v), ',' ORDER BY k) FROM {name}"
                ))
            };
            let wanted = |n: u32| {
                let mut all: Vec<(u32, u32)> = (0..n).map(|i| (i % 37, i * 7919 % 10_007)).collect();
                all.sort_unstable();
                let of = |k: u32| all.iter().filter(move |r| r.0 == k).map(|r| r.1);
                let winner = |k| if best == "max" { of(k).max() } else { of(k).min() };
                let rows: Vec<String> = (0..37).map(|k| format!("{k} {}", winner(k).expect("a row"))).collect();
                rows.join(",")
            };
            assert_eq!(found().trim(), wanted(900), "{name}");
            // A window behind the watermark holds rows that are later, and of those the best one wins.
            end.change("DELETE FROM events WHERE id >= 0");
            end.change(&format!(
                "{}; UPDATE events SET at = '2024-03-01 01:00:00' WHERE id < 450; UPDATE events SET at = '2024-03-02 02:00:00' WHERE id >= 450",
                rows(0, 900)
            ));
            to.psql(&format!("UPDATE {name} SET v = -1"));
            let again = place.json(&["run", "p.yaml"], 0);
            assert_eq!(found().trim(), wanted(900), "{name}: {again}");
        }
        to.psql("DROP TABLE largest, smallest; DROP SCHEMA synctool CASCADE");
    }
}

#[test]
fn a_plan_says_that_the_window_is_whole_and_a_dedup_by_the_row_s_own_key_does_not_make_it_so() {
    let db = database("dedup_plan");
    db.psql("CREATE TABLE events(id int PRIMARY KEY, k int NOT NULL, v int NOT NULL, at timestamp)");
    db.psql(&rows(0, 200));
    let place = here(&db);
    place.write("p.yaml", &pipeline("public.events", "[k]"));
    place.json(&["run", "p.yaml"], 0);
    let told = place.json(&["plan", "p.yaml"], 0).to_string();
    assert!(told.contains("rows with equal keys meet there"), "{told}");
    let own = pipeline("public.events", "[id]")
        .replace("name: p\n", "name: q\n")
        .replace("key: [k]", "key: [id]")
        .replace("columns: [k,", "columns: [id, k,")
        .replace("copies", "others");
    place.write("q.yaml", &own);
    place.json(&["run", "q.yaml"], 0);
    let told = place.json(&["plan", "q.yaml"], 0).to_string();
    assert!(!told.contains("rows with equal keys meet there"), "{told}");
}

#[test]
fn a_dedup_that_cannot_be_right_is_refused() {
    let db = database("dedup_refused");
    db.psql(
        "CREATE TABLE events(id int PRIMARY KEY, k int NOT NULL, v int NOT NULL, at timestamp);
         CREATE TABLE kinds(k int PRIMARY KEY, at timestamp)",
    );
    let place = here(&db);
    let joined = pipeline("public.events", "[k]")
        .replace(
            "source: {datastore: from, table: public.events}",
            "source: {datastore: from, table: public.events, alias: e, joins: [{table: kinds, alias: s, on: e.k = s.k, type: left}]}",
        )
        .replace("[k, v, at]", "[{source: e.k, dest: k}, {source: e.v, dest: v}, {source: e.at, dest: at}]")
        .replace("    column: at\n", "    column: e.at\n    cursor_tables: [{table: s, column: at}]\n");
    place.write("p.yaml", &joined);
    let refused = place.json(&["run", "p.yaml"], 2).to_string();
    assert!(refused.contains("cursor_tables make several windows"), "{refused}");
    let groups = pipeline("public.events", "[k]")
        .replace("key: [k]\n", "sync_type: aggregate\ngroup_by: [k, v]\n")
        .replace("[k, v, at]", "[k, v, {dest: n, expr: count(*)}]");
    place.write("p.yaml", &groups);
    let refused = place.json(&["run", "p.yaml"], 2).to_string();
    assert!(refused.contains("leaves out v"), "{refused}");
}

/// Full and hash read in one partition what a dedup has to see together, however the strategy or the size of the table
/// would cut it: one winner per key, and not one per partition.
#[test]
fn full_and_hash_have_one_winner_per_key() {
    for end in [
        End::Postgres(database("dedup_all_from")),
        End::Maria(MariaDb::shared().database("dedup_all_from")),
    ] {
        let to = database("dedup_all_to");
        end.change(&format!(
            "CREATE TABLE events(id int PRIMARY KEY, k int NOT NULL, v int NOT NULL, at timestamp NULL); {}",
            rows(0, 900)
        ));
        let place = Place::new(&[("from", end.entry()), ("to", postgres(&to))]);
        let wanted: Vec<String> = (0..37u32)
            .map(|k| {
                let best = (0..900u32).filter(|i| i % 37 == k).map(|i| i * 7919 % 10_007).max();
                format!("{k} {}", best.expect("a row"))
            })
            .collect();
        let wanted = wanted.join(",");
        let found = || to.psql("SELECT string_agg(concat_ws(' ', k, v), ',' ORDER BY k) FROM copies");
        for cut in [
            "{column: id, step: 100}",
            "{column: at, step: 1, step_unit: day, immutable: true}",
        ] {
            to.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
            let of = |kind: &str| {
                pipeline("events", "{keys: [k], by: v}")
                    .replace("columns: [k, v, at]", "columns: [k, v]")
                    .split("strategies:")
                    .next()
                    .map(|head| {
                        format!("{head}strategies: [{{type: {kind}, primary_partitions: [{cut}]}}]\nmax_concurrent_partitions: 4\n")
                    })
                    .expect("a pipeline")
            };
            place.write("p.yaml", &of("full"));
            let run = place.json(&["run", "p.yaml"], 0);
            assert_eq!(found().trim(), wanted, "{cut}: {run}");
            assert!(
                run["reasons"].to_string().contains("has to see all rows"),
                "{cut}: {run}"
            );
            to.psql("UPDATE copies SET v = -1 WHERE k < 5; DELETE FROM copies WHERE k = 7; INSERT INTO copies VALUES (99, 1)");
            place.write("p.yaml", &of("hash"));
            place.json(&["verify", "p.yaml"], 3);
            let run = place.json(&["run", "p.yaml"], 0);
            assert_eq!(found().trim(), wanted, "{cut}: {run}");
            place.json(&["verify", "p.yaml"], 0);
        }
        // Part of the rows has no winner of all.
        let part = pipeline("events", "{keys: [k], by: v}")
            .replace(
                "    type: delta\n    column: at\n    stamped_by: app\n",
                "    type: hash\n",
            )
            .replace("{column: at, step: 1, step_unit: hour}", "{column: id, end: 100}");
        place.write("p.yaml", &part);
        let refused = place.json(&["run", "p.yaml"], 2).to_string();
        assert!(refused.contains("a dedup has to see all rows"), "{refused}");
    }
}

/// A batch has 2 MiB at most, and sources that can go on within a table give one at a time: whichever batch the best row
/// comes in, each engine gets it, and it alone.
#[test]
fn the_winner_may_come_in_a_later_batch() {
    for to in ends("dedup_batches") {
        let from = End::Sqlite(folder());
        from.change(
            "CREATE TABLE events(id integer PRIMARY KEY, k int NOT NULL, v int NOT NULL, at timestamp NOT NULL, pad text NOT NULL);
             WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 39)
             INSERT INTO events SELECT i, i % 5, i * 7 % 40, '2024-01-01 00:00:00', hex(zeroblob(75000)) FROM n",
        );
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: events}\ndestination: {datastore: to, table: copies}\nkey: [k]\n\
             columns: [k, v, at, pad]\ntransform: [{dedup: {keys: [k], by: v}}]\nstrategies:\n  - {name: full, type: full}\n  \
             - {name: hash, type: hash}\n  - {name: delta, type: delta, column: at, stamped_by: app}\n",
        );
        for (strategy, change, wanted) in [
            ("full", "", ["0 35", "1 37", "2 39", "3 36", "4 38"]),
            (
                "hash",
                "UPDATE events SET v = 100 WHERE id = 39",
                ["0 35", "1 37", "2 39", "3 36", "4 100"],
            ),
            (
                "delta",
                "UPDATE events SET v = 101, at = '2024-02-01 00:00:00' WHERE id = 38",
                ["0 35", "1 37", "2 39", "3 101", "4 100"],
            ),
        ] {
            if !change.is_empty() {
                from.change(change);
            }
            let run = place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            if to.is_read() {
                assert_eq!(to.lines("copies", &["k", "v"]), wanted.join("\n"), "{strategy}: {run}");
            }
            place.json(&["verify", "p.yaml", "--strategy", "hash"], 0);
        }
    }
}
