//! What a watermark is about: the table it was written beside, and what the pipeline meant then.

use super::matrix::{End, folder};
use super::*;

const COLUMNS: &[&str] = &["id", "st", "v"];

fn items(end: &End) {
    let (stamp, old) = match end {
        End::Maria(_) => ("timestamp(6)", "current_timestamp(6) - interval 1 hour"),
        End::Postgres(_) => ("timestamptz", "now() - interval '1 hour'"),
        _ => ("timestamp", "strftime('%Y-%m-%d %H:%M:%f', 'now', '-1 hour')"),
    };
    let rows: Vec<String> = (1..=60)
        .map(|i| format!("({i}, '{}', {i}, {old})", ["a", "b", "c"][i % 3]))
        .collect();
    end.change(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, st varchar(9) NOT NULL, v int NOT NULL, updated_at {stamp} NOT NULL);
         INSERT INTO items VALUES {}",
        rows.join(", ")
    ));
}

fn pipeline(more: &str, source: &str, table: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: {source}}}\ndestination: {{datastore: to, table: {table}}}\n{more}\
         strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms}}\n  - {{name: hash, type: hash}}\n"
    )
}

#[test]
fn an_emptied_destination_is_filled_again() {
    for to in [
        End::Postgres(database("emptied_to")),
        End::Maria(MariaDb::shared().database("emptied_to")),
        End::Sqlite(folder()),
    ] {
        let from = End::Postgres(database("emptied_from"));
        items(&from);
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", &pipeline("", "items", "copies"));
        let delta = ["run", "p.yaml", "--strategy", "delta"];
        let wanted = from.lines("items", COLUMNS);
        place.json(&delta, 0);
        assert_eq!(place.json(&delta, 0)["read"], 0, "nothing changed");
        for (emptied, run) in [
            ("DELETE FROM copies", &delta[..]),
            ("DROP TABLE copies", &delta[..]),
            ("DELETE FROM copies", &["run", "p.yaml"][..]),
        ] {
            to.change(emptied);
            let filled = place.json(run, 0);
            assert_eq!(to.lines("copies", COLUMNS), wanted, "{emptied}: {filled}");
            assert!(
                filled["reasons"].to_string().contains("the destination is empty"),
                "{filled}"
            );
        }
        // What was loaded of an emptied table in part is not the table.
        to.change("DELETE FROM copies");
        place.json(
            &[
                "run",
                "p.yaml",
                "--strategy",
                "hash",
                "--bounds",
                r#"[{"column": "id", "start": "1", "end": "10"}]"#,
            ],
            0,
        );
        place.json(&delta, 0);
        assert_eq!(to.lines("copies", COLUMNS), wanted);
    }
}

#[test]
fn another_table_begins_anew() {
    let db = database("another_table");
    let from = End::Postgres(database("another_from"));
    items(&from);
    let to = End::Postgres(db);
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let delta = ["run", "p.yaml", "--strategy", "delta"];
    place.write("p.yaml", &pipeline("", "items", "one"));
    place.json(&delta, 0);
    place.write("p.yaml", &pipeline("", "items", "two"));
    place.json(&delta, 0);
    assert_eq!(to.lines("two", COLUMNS), from.lines("items", COLUMNS));
    from.change("CREATE TABLE others AS SELECT id + 30 AS id, st, v * 2 AS v, updated_at FROM items; ALTER TABLE others ADD PRIMARY KEY (id)");
    place.write("p.yaml", &pipeline("", "others", "two"));
    let run = place.json(&delta, 0);
    assert!(run["reasons"].to_string().contains("means something else"), "{run}");
    assert_eq!(to.lines("two", COLUMNS), from.lines("others", COLUMNS));
    assert_eq!(place.json(&delta, 0)["read"], 0, "and the watermark counts again");
}

#[test]
fn other_filters_and_expressions_compare_once() {
    let (from, to) = (
        End::Postgres(database("meaning_from")),
        End::Postgres(database("meaning_to")),
    );
    items(&from);
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let filtered = |st: &str| {
        let source = format!("items, filters: [\"st = '{st}'\"]");
        pipeline("", &source, "copies")
    };
    for (st, chosen) in [("a", false), ("c", false), ("b", true)] {
        place.write("p.yaml", &filtered(st));
        let run = match chosen {
            true => place.json(&["run", "p.yaml"], 0),
            false => place.json(&["run", "p.yaml", "--strategy", "delta"], 0),
        };
        let wanted = from.lines(&format!("(SELECT * FROM items WHERE st = '{st}') i"), COLUMNS);
        assert_eq!(to.lines("copies", COLUMNS), wanted, "{run}");
        place.json(&["verify", "p.yaml"], 0);
    }
    let totals = |expr: &str| {
        pipeline(
            &format!("sync_type: aggregate\ngroup_by: [st]\ncolumns:\n  - st\n  - {{dest: v, expr: {expr}}}\n"),
            "items",
            "totals",
        )
        .replace("name: p\n", "name: t\n")
    };
    for expr in ["sum(v)", "sum(v * 2)"] {
        place.write("t.yaml", &totals(expr));
        place.json(&["run", "t.yaml", "--strategy", "delta"], 0);
        let wanted = from.lines(
            &format!("(SELECT st, {expr} AS v FROM items GROUP BY st) t"),
            &["st", "v"],
        );
        assert_eq!(to.lines("totals", &["st", "v"]), wanted);
    }
    to.change("DROP TABLE totals");
    place.json(&["run", "t.yaml", "--strategy", "delta"], 0);
    let wanted = from.lines("(SELECT st, sum(v * 2) AS v FROM items GROUP BY st) t", &["st", "v"]);
    assert_eq!(to.lines("totals", &["st", "v"]), wanted);
}

/// A delta does not go on where another one by the same column stopped that left rows out by its stages.
#[test]
fn a_watermark_counts_for_deltas_of_the_same_rows() {
    let (from, to) = (
        End::Postgres(database("same_rows_from")),
        End::Postgres(database("same_rows_to")),
    );
    items(&from);
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let stages = "transform: [{filter: \"st = 'a'\", applicable_on: [narrow, thin]}]\n";
    let one = "  - {name: delta, type: delta, column: updated_at, margin: 1ms}\n";
    let more: String = ["narrow", "wide", "nightly"]
        .map(|name| one.replace("name: delta", &format!("name: {name}")))
        .concat();
    let more = format!("{more}  - {{name: thin, type: full}}\n")
        .replace("{name: nightly,", "{name: nightly, deletes: anti_join,");
    place.write("p.yaml", &pipeline(stages, "items", "copies").replace(one, &more));
    let run = |strategy: &str| place.json(&["run", "p.yaml", "--strategy", strategy], 0);
    let all = from.lines("items", COLUMNS);
    run("narrow");
    let narrow = from.lines("(SELECT * FROM items WHERE st = 'a') i", COLUMNS);
    assert_eq!(to.lines("copies", COLUMNS), narrow);
    let compared = run("wide");
    assert!(
        compared["reasons"].to_string().contains("meant other rows"),
        "{compared}"
    );
    assert_eq!(to.lines("copies", COLUMNS), all, "{compared}");
    assert_eq!(run("wide")["read"], 0, "its own counts");
    // One that only compares keys besides means the same rows.
    let nightly = run("nightly");
    assert!(
        !nightly["reasons"].to_string().contains("meant other rows"),
        "{nightly}"
    );
    // Nor does a load leave a watermark to a delta of more rows.
    to.change("DELETE FROM copies");
    run("thin");
    assert_eq!(to.lines("copies", COLUMNS), narrow);
    run("wide");
    assert_eq!(to.lines("copies", COLUMNS), all);
}

/// What one delta left out before its start, another one that begins earlier reads, and so does the same one once it does.
#[test]
fn a_watermark_counts_for_deltas_that_begin_no_earlier() {
    let (from, to) = (
        End::Postgres(database("begins_from")),
        End::Postgres(database("begins_to")),
    );
    items(&from);
    from.change("UPDATE items SET updated_at = now() - interval '10 days' WHERE id <= 20");
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let one = "  - {name: delta, type: delta, column: updated_at, margin: 1ms}\n";
    let recent = |start: &str| {
        format!(
            "  - {{name: recent, type: delta, column: updated_at, margin: 1ms, \
             primary_partitions: [{{column: updated_at, step: 1, step_unit: day, start: {start}}}]}}\n"
        )
    };
    let file = |start: &str| pipeline("", "items", "copies").replace(one, &format!("{one}{}", recent(start)));
    let run = |strategy: &str| place.json(&["run", "p.yaml", "--strategy", strategy], 0);
    let all = from.lines("items", COLUMNS);
    let late = from.lines("(SELECT * FROM items WHERE id > 20) i", COLUMNS);
    place.write("p.yaml", &file("now - 2d"));
    run("recent");
    assert_eq!(to.lines("copies", COLUMNS), late);
    assert_eq!(run("recent")["read"], 0, "its own counts, though its start moves on");
    let compared = run("delta");
    assert_eq!(to.lines("copies", COLUMNS), all, "{compared}");
    assert!(compared["reasons"].to_string().contains("began later"), "{compared}");
    for strategy in ["recent", "delta", "recent"] {
        assert_eq!(run(strategy)["read"], 0, "{strategy} goes on from there");
    }
    // The same one, given an earlier start.
    to.change("DELETE FROM copies");
    run("recent");
    assert_eq!(to.lines("copies", COLUMNS), late);
    place.write("p.yaml", &file("now - 20d"));
    run("recent");
    assert_eq!(to.lines("copies", COLUMNS), all);
    assert_eq!(run("recent")["read"], 0);
}

/// What an application stamps may come late: a watermark that it moved says nothing of what has settled.
#[test]
fn a_watermark_of_another_clock_does_not_count() {
    let (from, to) = (
        End::Postgres(database("clocks_from")),
        End::Postgres(database("clocks_to")),
    );
    items(&from);
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    let delta = ["run", "p.yaml", "--strategy", "delta"];
    let by_database = pipeline("", "items", "copies");
    let by_app = by_database.replace("margin: 1ms", "stamped_by: app, lag: 1h");
    place.write("p.yaml", &by_app);
    place.json(&delta, 0);
    from.change("INSERT INTO items VALUES (61, 'a', 61, now() - interval '90 minutes')");
    place.write("p.yaml", &by_database);
    let run = place.json(&delta, 0);
    assert_eq!(to.lines("copies", COLUMNS), from.lines("items", COLUMNS), "{run}");
    assert_eq!(place.json(&delta, 0)["read"], 0, "and then it counts");
}

/// Rows that leave by a filter or are marked as gone are deletes like others.
#[test]
fn a_delta_that_deletes_most_rows_needs_a_word() {
    for (source, more, leave) in [
        (
            "items, filters: [\"st = 'a'\"]",
            "",
            "UPDATE items SET st = 'z', updated_at = now() WHERE id <= 3000",
        ),
        (
            "items",
            ", deletes: {tombstone: {column: st, value: z}}",
            "UPDATE items SET st = 'z', updated_at = now() WHERE id <= 3000",
        ),
    ] {
        let db = database("departures");
        db.psql(
            "CREATE TABLE items(id int PRIMARY KEY, st text NOT NULL, updated_at timestamptz NOT NULL);
             INSERT INTO items SELECT i, CASE WHEN i <= 4000 THEN 'a' ELSE 'n' END, now() - interval '1 hour' FROM generate_series(1, 9000) i",
        );
        let place = here(&db);
        place.write(
            "p.yaml",
            &pipeline("", source, "copies").replace("margin: 1ms", &format!("margin: 1ms{more}")),
        );
        let delta = ["run", "p.yaml", "--strategy", "delta"];
        place.json(&delta, 0);
        let count = || {
            db.psql("SELECT count(*) FROM copies")
                .trim()
                .parse::<u64>()
                .expect("a number")
        };
        let before = count();
        // Rows that never were there are no deletes, however many.
        db.psql("UPDATE items SET st = 'm', updated_at = now() WHERE id > 4000");
        place.until(
            &delta,
            || db.psql("SELECT count(*) FROM items WHERE updated_at < now() - interval '2 ms' AND st = 'm'"),
            "5000",
        );
        place.json(&delta, 0);
        assert_eq!(count(), before);
        db.psql(leave);
        let refused = loop {
            let output = place.synctool(&[&delta[..], &["--output", "json"]].concat());
            if output.status.code() != Some(0) {
                break output;
            }
        };
        assert_eq!(refused.status.code(), Some(4), "{refused:?}");
        let error = String::from_utf8_lossy(&refused.stdout);
        assert!(
            error.contains("ST-POL-002") && error.contains("--allow-mass-delete"),
            "{error}"
        );
        assert!(count() >= before - 1000, "{} rows are left", count());
        place.json(&[&delta[..], &["--allow-mass-delete"]].concat(), 0);
        assert_eq!(count(), before - 3000);
    }
}

#[test]
fn an_anti_join_of_rows_that_share_a_key_is_refused() {
    let db = database("shared_key");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, cust int NOT NULL, v int, updated_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO items VALUES (1, 1, 1), (2, 1, 2)",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\ncolumns: [cust, v, updated_at]\n\
         key: [cust]\ntransform: [{dedup: {keys: [cust], by: updated_at}}]\n\
         strategies: [{name: delta, type: delta, column: updated_at, deletes: anti_join}]\n",
    );
    let refused = place.json(&["run", "p.yaml"], 2);
    assert!(
        refused.to_string().contains("several rows of the source one key"),
        "{refused}"
    );
}

/// Under MariaDB's usual collation these texts are equal, and a row would be in two partitions.
#[test]
fn listed_texts_are_told_apart_by_their_bytes() {
    let (from, to) = (
        MariaDb::shared().database("listed_from"),
        End::Postgres(database("listed_to")),
    );
    from.sql(
        "CREATE TABLE items(tx varchar(20) COLLATE utf8mb4_general_ci, v int);
         INSERT INTO items VALUES ('a', 1), ('A', 2), ('b', 3), ('c', 4), (NULL, 5)",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", from.url())),
        ("to", to.entry()),
    ]);
    let partitions = "primary_partitions: [{column: tx, type: list, values: [a, A, b], immutable: true}]";
    place.write(
        "p.yaml",
        &format!(
            "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n\
             strategies: [{{type: full, full_mode: swap, {partitions}}}]\n"
        ),
    );
    let run = place.json(&["run", "p.yaml"], 0);
    let End::Postgres(db) = &to else { unreachable!() };
    let rows = db.psql("SELECT string_agg(concat_ws(' ', tx, v), ',' ORDER BY v) FROM copies");
    let listed = "a 1,A 2,b 3";
    assert!(rows.trim().starts_with(listed), "{rows} {run}");
    assert!(
        rows.matches("A 2").count() == 1 && rows.matches("a 1").count() == 1,
        "{rows}"
    );
}

#[test]
fn a_column_that_is_discarded_is_no_difference() {
    let db = database("discarded");
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v int); INSERT INTO items VALUES (1, 1)");
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nschema_drift: discard_column\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\n\
         strategies: [{type: hash}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    db.psql("ALTER TABLE items ADD more int DEFAULT 3");
    place.json(&["run", "p.yaml"], 0);
    place.json(&["verify", "p.yaml"], 0);
}
