//! Strategies whose partitions have a start, an end or values are about these rows alone: nothing outside is touched, and
//! no watermark passes what was not read.

use super::matrix::{End, folder};
use super::*;
use synctool_testkit::is_soak;

const ITEMS: &str = "CREATE TABLE items(id int PRIMARY KEY, day date NOT NULL, kind text NOT NULL, v int NOT NULL, updated_at timestamptz NOT NULL);
    INSERT INTO items SELECT i, date '2024-01-01' + i, 'k' || i % 4, i, timestamptz '2024-01-01 00:00+00' + interval '1 day' * i
        FROM generate_series(0, 299) i";

const ENDS: &str =
    "source: {datastore: from, table: public.items}\ndestination: {datastore: to, table: public.copies}\n";
const ROWS: &str = "SELECT coalesce(string_agg(concat_ws(' ', id, day, kind, v), ',' ORDER BY id), '') FROM";

/// The strategies' own YAML for a full run over a range, and the same range in SQL.
const RANGES: [(&str, &str); 7] = [
    (
        "[{column: day, step: 1, step_unit: month, end: \"2024-03-01\"}]",
        "day < '2024-03-01'",
    ),
    (
        "[{column: day, step: 1, step_unit: month, start: \"2024-02-01\", end: \"2024-03-01\"}], \
         secondary_partitions: [{column: day, step: 5, step_unit: day}]",
        "day >= '2024-02-01' AND day < '2024-03-01'",
    ),
    ("[{column: kind, type: list, values: [k1, k3]}]", "kind IN ('k1', 'k3')"),
    (
        "[{column: kind, type: list, values: [k1]}, {column: id, step: 50, start: 100}]",
        "kind = 'k1' AND id >= 100",
    ),
    // Without a step they are read in one piece.
    (
        "[{column: day, start: \"2024-02-01\", end: \"2024-03-01\"}]",
        "day >= '2024-02-01' AND day < '2024-03-01'",
    ),
    ("[{column: kind, start: k1, end: k3}]", "kind >= 'k1' AND kind < 'k3'"),
    (
        "[{column: day, step: 1, step_unit: month}, {column: id, end: 200}], secondary_partitions: [{column: day, start: \"2024-02-01\"}]",
        "day >= '2024-02-01' AND id < 200",
    ),
];

#[test]
fn a_full_run_over_a_range_leaves_the_rest_alone() {
    let db = database("full_range");
    db.psql(ITEMS);
    let place = here(&db);
    for (round, (partitions, inside)) in RANGES.iter().enumerate() {
        for mode in ["", ", full_mode: upsert"] {
            place.write(
                "p.yaml",
                &format!(
                    "name: p\n{ENDS}strategies:\n  - {{name: all, type: full, full_mode: swap}}\n  \
                     - {{name: some, type: full{mode}, primary_partitions: {partitions}}}\n"
                ),
            );
            place.json(&["run", "p.yaml", "--strategy", "all", "--allow-mass-delete"], 0);
            // Everything changes; a fifth goes, inside and outside.
            db.psql(&format!(
                "DELETE FROM items WHERE (id + {round}) % 5 = 0; UPDATE items SET v = v + 1"
            ));
            let before = db.psql(&format!("{ROWS} copies WHERE ({inside}) IS NOT TRUE"));
            let run = place.json(&["run", "p.yaml", "--strategy", "some"], 0);
            assert_eq!(run["deleted"], 0, "{partitions}: {run}");
            assert_eq!(
                db.psql(&format!("{ROWS} copies WHERE ({inside}) IS NOT TRUE")),
                before,
                "{partitions}: the rest stays as it is"
            );
            let fresh = format!(
                "{ROWS} (SELECT * FROM copies c WHERE {inside} AND EXISTS (SELECT FROM items i WHERE i.id = c.id)) c"
            );
            assert_eq!(
                db.psql(&fresh),
                db.psql(&format!("{ROWS} items WHERE {inside}")),
                "{partitions}"
            );
            db.psql("DROP TABLE items");
            db.psql(ITEMS);
        }
    }
}

#[test]
fn a_comparison_over_a_range_leaves_the_rest_alone() {
    let db = database("hash_range");
    let place = here(&db);
    for (partitions, inside) in RANGES {
        db.psql(&format!("DROP TABLE IF EXISTS items, copies; {ITEMS}; CREATE TABLE copies AS TABLE items; ALTER TABLE copies ADD PRIMARY KEY (id)"));
        db.psql("DELETE FROM items WHERE id % 5 = 0; UPDATE items SET v = v + 1 WHERE id % 7 = 0; DELETE FROM copies WHERE id % 11 = 0");
        place.write(
            "p.yaml",
            &format!("name: p\n{ENDS}strategies: [{{name: some, type: hash, primary_partitions: {partitions}}}]\n"),
        );
        let outside = format!("{ROWS} copies WHERE ({inside}) IS NOT TRUE");
        let before = db.psql(&outside);
        place.json(&["run", "p.yaml"], 0);
        assert_eq!(db.psql(&outside), before, "{partitions}: the rest stays as it is");
        assert_eq!(
            db.psql(&format!("{ROWS} copies WHERE {inside}")),
            db.psql(&format!("{ROWS} items WHERE {inside}")),
            "{partitions}"
        );
    }
}

#[test]
fn a_full_run_over_a_range_does_not_replace_a_table() {
    let db = database("full_range_swap");
    db.psql(ITEMS);
    let place = here(&db);
    let (partitions, inside) = RANGES[0];
    place.write(
        "p.yaml",
        &format!("name: p\n{ENDS}strategies: [{{name: some, type: full, full_mode: swap, primary_partitions: {partitions}}}]\n"),
    );
    // There is nothing to replace yet.
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        db.psql(&format!("{ROWS} copies")),
        db.psql(&format!("{ROWS} items WHERE {inside}"))
    );
    let refused = place.json(&["run", "p.yaml"], 2).to_string();
    assert!(refused.contains("`filters`"), "{refused}");
}

/// The delta goes on behind what a full run has read, which is a part.
#[test]
fn a_full_run_over_a_range_moves_no_watermark() {
    let db = database("full_range_mark");
    db.psql(ITEMS);
    let place = here(&db);
    for (partitions, _) in RANGES {
        place.write(
            "p.yaml",
            &format!(
                "name: p\n{ENDS}strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms}}\n  \
                 - {{name: some, type: full, primary_partitions: {partitions}}}\n"
            ),
        );
        place.json(&["run", "p.yaml", "--strategy", "some"], 0);
        place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        assert_eq!(
            db.psql(&format!("{ROWS} copies")),
            db.psql(&format!("{ROWS} items")),
            "{partitions}"
        );
        db.psql("DROP TABLE copies; DROP SCHEMA synctool CASCADE");
    }
}

#[test]
fn a_delta_ends_where_its_partitions_end() {
    let ends = |step: &str| {
        let db = database("delta_range");
        db.psql(ITEMS);
        let place = here(&db);
        let until = |end: &str| {
            place.write(
                "p.yaml",
                &format!(
                    "name: p\n{ENDS}strategies: [{{name: delta, type: delta, column: updated_at, margin: 1ms, \
                     primary_partitions: [{{column: updated_at{step}, end: \"{end}\"}}]}}]\n"
                ),
            );
        };
        let found = || db.psql(&format!("{ROWS} copies"));
        let wanted = |end: &str| db.psql(&format!("{ROWS} items WHERE updated_at < '{end}'"));
        // The first run, a run that finds nothing new below the end, and runs that go on to later ends.
        for end in [
            "2024-03-01 00:00+00",
            "2024-03-01 00:00+00",
            "2024-03-17 12:00+00",
            "2024-09-01 00:00+00",
        ] {
            until(end);
            place.json(&["run", "p.yaml"], 0);
            assert_eq!(found(), wanted(end), "{step}: {end}");
            let mark = db.psql("SELECT value::timestamptz FROM synctool.memory WHERE fact LIKE 'delta:%'");
            assert_eq!(mark, db.psql(&format!("SELECT timestamptz '{end}'")), "{step}");
        }
    };
    ends(", step: 1, step_unit: month");
    ends("");
}

#[test]
fn a_delta_refuses_a_range_of_another_column() {
    let db = database("delta_other_range");
    db.psql(ITEMS);
    let place = here(&db);
    for (partitions, _) in RANGES {
        place.write(
            "p.yaml",
            &format!(
                "name: p\n{ENDS}strategies: [{{name: delta, type: delta, column: updated_at, primary_partitions: {partitions}}}]\n"
            ),
        );
        let refused = place.json(&["run", "p.yaml"], 2).to_string();
        assert!(refused.contains("`filters`"), "{refused}");
    }
}

/// `bounded` is about the first window alone: a watermark that is stored is where the next one begins, however long ago.
#[test]
fn a_bounded_delta_never_skips_past_its_watermark() {
    let db = database("delta_bounded");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, updated_at timestamptz NOT NULL);
         INSERT INTO items SELECT i, now() - interval '1 day' * (20 - i) - interval '1 hour' FROM generate_series(1, 20) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!(
            "name: p\n{ENDS}strategies: [{{name: delta, type: delta, column: updated_at, margin: 1ms, \
             primary_partitions: [{{column: updated_at, step: 2, step_unit: day, bounded: true}}]}}]\n"
        ),
    );
    let found = || {
        db.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM copies")
            .trim()
            .to_owned()
    };
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(found(), "19,20", "the first window is the last step");
    // Nobody ran for two weeks; rows came meanwhile.
    db.psql(
        "UPDATE synctool.memory SET value = (now() - interval '14 days')::text WHERE fact = 'delta:updated_at';
         INSERT INTO items VALUES (101, now() - interval '13 days'), (102, now() - interval '15 days'), (103, now() - interval '5 days')",
    );
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(found(), "7,8,9,10,11,12,13,14,15,16,17,18,19,20,101,103");
}

/// Moments are those of the run, in each of their spellings.
#[test]
fn ranges_begin_and_end_at_moments() {
    let db = database("moments");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, at timestamptz NOT NULL);
         INSERT INTO items VALUES (1, now() - interval '40 days'), (2, now() - interval '20 days'),
             (3, date_trunc('day', now(), 'UTC')), (4, now() + interval '1 hour'), (5, now() + interval '3 days')",
    );
    let place = here(&db);
    for (range, inside) in [
        ("start: now - 30d", "2,3,4,5"),
        ("start: \"lambda: datetime.now() - timedelta(days=30)\"", "2,3,4,5"),
        ("start: now - 30d, end: now", "2,3"),
        ("start: today", "3,4,5"),
        ("start: \"lambda: date.today()\"", "3,4,5"),
        ("end: today", "1,2"),
        ("start: today, end: now + 2d", "3,4"),
    ] {
        for kind in ["full", "hash"] {
            db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE; CREATE TABLE copies(id int PRIMARY KEY, at timestamptz NOT NULL)");
            place.write(
                "p.yaml",
                &format!(
                    "name: p\n{ENDS}strategies: [{{type: {kind}, primary_partitions: [{{column: at, {range}}}]}}]\n"
                ),
            );
            place.json(&["run", "p.yaml"], 0);
            let found = db.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM copies");
            assert_eq!(found.trim(), inside, "{kind}: {range}");
        }
    }
}

/// Rows are read again by any of their columns, whatever the watermark has passed; it stays where it is.
#[test]
fn bounds_of_a_delta_read_rows_again() {
    let db = database("delta_bounds");
    db.psql(ITEMS);
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!("name: p\n{ENDS}strategies: [{{name: delta, type: delta, column: updated_at, margin: 1ms}}]\n"),
    );
    place.json(&["run", "p.yaml"], 0);
    let mark = || db.psql("SELECT value FROM synctool.memory WHERE fact = 'delta:updated_at'");
    let before = mark();
    for (bounds, inside) in [
        (r#"[{"column": "id", "start": 10, "end": 20}]"#, "id >= 10 AND id < 20"),
        (
            r#"[{"column": "kind", "value": ["k1"]}, {"column": "id", "start": 200}]"#,
            "kind = 'k1' AND id >= 200",
        ),
        (
            r#"[{"column": "updated_at", "start": "2024-02-01 00:00:00+00", "end": "2024-03-01 00:00:00+00"}]"#,
            "updated_at >= '2024-02-01 00:00+00' AND updated_at < '2024-03-01 00:00+00'",
        ),
    ] {
        // No stamp tells of it.
        db.psql("UPDATE items SET v = v + 1000");
        let outside = format!("{ROWS} copies WHERE NOT ({inside})");
        let rest = db.psql(&outside);
        let run = place.json(&["run", "p.yaml", "--bounds", bounds], 0);
        let count = db.psql(&format!("SELECT count(*) FROM items WHERE {inside}"));
        assert_eq!(run["updated"].to_string(), count.trim(), "{bounds}: {run}");
        assert_eq!(db.psql(&outside), rest, "{bounds}: the rest stays");
        assert_eq!(
            db.psql(&format!("{ROWS} copies WHERE {inside}")),
            db.psql(&format!("{ROWS} items WHERE {inside}")),
            "{bounds}"
        );
        assert_eq!(mark(), before, "{bounds}");
    }
}

/// Rows without a value are in no range and no list: they have a name of their own.
#[test]
fn bounds_name_rows_without_a_value() {
    const COLUMNS: &[&str] = &["id", "v"];
    let sources = [
        End::Postgres(database("null_bounds_from")),
        End::Maria(MariaDb::shared().database("null_bounds_from")),
        End::Sqlite(folder()),
    ];
    for (engine, from) in sources.into_iter().enumerate() {
        let rows: Vec<String> = (0..120)
            .map(|i| {
                let or_null = |text: String, n: i32| if i % n == 0 { "NULL".into() } else { text };
                let at = or_null(format!("'2024-01-01 00:{:02}:00'", i % 60), 5);
                format!("({i}, {}, 0, {at})", or_null(format!("'k{}'", i % 4), 3))
            })
            .collect();
        let stamp = if matches!(from, End::Maria(_)) {
            "datetime"
        } else {
            "timestamp"
        };
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, kind varchar(9), v int NOT NULL, at {stamp}); INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        let to = End::Postgres(database("null_bounds_to"));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\nstrategies:\n  \
             - {name: all, type: full, full_mode: upsert}\n  - {name: delta, type: delta, column: at, margin: 1ms}\n  - {name: hash, type: hash}\n",
        );
        place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        for (nth, (bounds, inside)) in [
            (r#"{"column": "kind", "null": true}"#, "kind IS NULL"),
            (r#"{"column": "at", "null": true}"#, "at IS NULL"),
            (
                r#"{"column": "kind", "null": true, "value": ["k1"]}"#,
                "(kind IS NULL OR kind = 'k1')",
            ),
            (
                r#"[{"column": "at", "null": true, "start": "2024-01-01 00:40:00"}, {"column": "id", "end": 90}]"#,
                "(at IS NULL OR at >= '2024-01-01 00:40:00') AND id < 90",
            ),
            (r#"{"column": "kind", "value": "k2"}"#, "kind = 'k2'"),
        ]
        .into_iter()
        .enumerate()
        {
            for (way, strategy) in ["all", "delta", "hash"].into_iter().enumerate() {
                // All of them from each engine, and by each strategy from one or another. A soak has all.
                if engine > 0 && !(engine + nth + way).is_multiple_of(3) && !is_soak() {
                    continue;
                }
                from.change("UPDATE items SET v = v + 1");
                let rest = to.lines(&format!("items WHERE ({inside}) IS NOT TRUE"), COLUMNS);
                place.json(&["run", "p.yaml", "--strategy", strategy, "--bounds", bounds], 0);
                let told = format!("{strategy}: {bounds}");
                let within = format!("items WHERE {inside}");
                assert_eq!(to.lines(&within, COLUMNS), from.lines(&within, COLUMNS), "{told}");
                assert_eq!(
                    to.lines(&format!("items WHERE ({inside}) IS NOT TRUE"), COLUMNS),
                    rest,
                    "{told}: the rest stays"
                );
            }
        }
    }
}

/// A filter's value is what its author wrote, in every engine: a day is its midnight, an offset counts, `yes` is true. So
/// are the values of a list.
#[test]
fn filters_mean_the_same_however_their_values_are_written() {
    let to = database("written_to");
    let (pg, lite) = (End::Postgres(database("written")), End::Sqlite(folder()));
    let maria = End::Maria(MariaDb::shared().database("written"));
    let offset = "2024-01-15T02:00:00+02:00";
    // Half an hour before that midnight, one hour and three hours after it.
    let seconds = [1_705_275_000, 1_705_280_400, 1_705_287_600];
    for (from, ty, moments, value) in [
        (pg, "timestamptz", seconds.map(|s| format!("to_timestamp({s})")), offset),
        (
            maria,
            "timestamp(6)",
            seconds.map(|s| format!("from_unixtime({s})")),
            offset,
        ),
        (
            lite,
            "timestamp",
            ["14 23:30", "15 01:00", "15 03:00"].map(|at| format!("'2024-01-{at}:00'")),
            "2024-01-15",
        ),
    ] {
        let [before, after, later] = moments;
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, at {ty} NOT NULL, ok boolean NOT NULL);
             INSERT INTO items VALUES (1, {before}, true), (2, {after}, true), (3, {later}, false), (4, {later}, true)"
        ));
        let place = Place::new(&[("from", from.entry()), ("to", postgres(&to))]);
        let file = |listed: &str| {
            format!(
                "name: p\nsource:\n  datastore: from\n  table: items\n  filters: [{{column: at, operator: \">=\", value: \"{value}\"}}, \
                 {{column: ok, value: \"yes\"}}]\ndestination: {{datastore: to, table: public.copies}}\n\
                 strategies: [{{name: full, type: full}}, {{name: listed, type: full, \
                 primary_partitions: [{{column: ok, type: list, values: [\"{listed}\"]}}]}}]\n"
            )
        };
        place.write("p.yaml", &file("yes"));
        for strategy in ["full", "listed"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            let ids = to.psql("SELECT string_agg(id::text, ',' ORDER BY id) FROM copies");
            assert_eq!(ids.trim(), "2,4", "{ty}, {strategy}");
        }
        place.json(&["verify", "p.yaml"], 0);
        place.write("p.yaml", &file("perhaps"));
        let refused = place.json(&["run", "p.yaml", "--strategy", "listed"], 2).to_string();
        assert!(refused.contains("is no value of column ok"), "{ty}: {refused}");
        to.psql("DROP TABLE copies; DROP SCHEMA synctool CASCADE");
    }
}
