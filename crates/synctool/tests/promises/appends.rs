//! `supports_update: false`: rows are added, none is changed or deleted, whatever the strategy.

use super::matrix::{End, folder};
use super::*;
use synctool_testkit::MariaDb;

const ITEMS: &str =
    "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, gone boolean, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    INSERT INTO items(id, v, gone) SELECT i, i, i = 50 FROM generate_series(1, 100) i";

fn pipeline(more: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: copies, supports_update: false}}\n\
         columns: [id, v, {{source: gone, dest: gone, insert: false}}]\nkey: [id]\n{more}strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: {{tombstone: gone}}}}\n  \
         - {{name: hash, type: hash}}\n"
    )
}

#[test]
fn rows_are_only_added() {
    for end in [
        End::Postgres(database("appends_to")),
        End::Maria(MariaDb::shared().database("appends_to")),
        End::Sqlite(folder()),
    ] {
        // Rows that pass stages are known by what comes out.
        for (table, stages) in [
            ("copies", ""),
            ("others", "transform: [{compute: {name: v, expression: \"v + 0\"}}]\n"),
        ] {
            let from = database("appends_from");
            from.psql(ITEMS);
            let place = Place::new(&[("from", postgres(&from)), ("to", end.entry())]);
            let file = pipeline(stages).replace("copies", table);
            place.write("p.yaml", &file.replace("name: p\n", &format!("name: {table}\n")));
            let found = || end.lines(table, &["id", "v"]);
            let rows = |condition: &str| {
                let sql = format!("SELECT concat_ws(' ', id, v) FROM items WHERE {condition} ORDER BY id");
                from.psql(&sql).trim().to_owned()
            };
            place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
            let mut wanted = rows("id <> 50");
            assert_eq!(found(), wanted);
            for strategy in ["delta", "hash"] {
                // What was written stays as it was; what is new comes, unless it is gone already.
                let first = if strategy == "delta" { 201 } else { 301 };
                from.psql(&format!(
                    "UPDATE items SET v = v + 1, updated_at = now() WHERE id % 3 = 0; UPDATE items SET gone = true, updated_at = now() WHERE id = 20;
                     DELETE FROM items WHERE id % 10 = 4; INSERT INTO items SELECT i, i, i % 10 = 9, now() FROM generate_series({first}, {first} + 20) i"
                ));
                let new = rows(&format!("id >= {first} AND gone IS NOT TRUE"));
                wanted = format!("{wanted}\n{new}");
                place.until(&["run", "p.yaml", "--strategy", strategy], found, &wanted);
                let again = place.json(&["run", "p.yaml", "--strategy", strategy], 0);
                let written = ["inserted", "updated", "deleted"].map(|k| again[k].as_u64());
                assert_eq!(written, [Some(0); 3], "{strategy}: {again}");
            }
        }
    }
}

/// Rows that a stage drops and rows that are there already lie between new ones: these come, and no others.
#[test]
fn rows_that_a_stage_drops_are_not_taken_for_others() {
    for end in [
        End::Postgres(database("appends_dropped_to")),
        End::Maria(MariaDb::shared().database("appends_dropped_to")),
        End::Sqlite(folder()),
    ] {
        let from = database("appends_dropped_from");
        from.psql(ITEMS);
        let place = Place::new(&[("from", postgres(&from)), ("to", end.entry())]);
        let file = pipeline("transform: [{filter: \"v % 2 = 0\"}]\n");
        place.write("p.yaml", &file.replace(", deletes: {tombstone: gone}", ""));
        let delta = ["run", "p.yaml", "--strategy", "delta"];
        place.json(&delta, 0);
        from.psql(
            "UPDATE items SET updated_at = now() WHERE id % 3 = 0;
             INSERT INTO items SELECT i, i, false, now() FROM generate_series(101, 120) i",
        );
        let even: Vec<String> = (1..=60).map(|i| format!("{0} {0}", i * 2)).collect();
        place.until(&delta, || end.lines("copies", &["id", "v"]), &even.join("\n"));
    }
}

#[test]
fn what_cannot_be_only_added_is_refused() {
    let db = database("appends_refused");
    db.psql(ITEMS);
    let place = here(&db);
    place.write("p.yaml", &pipeline("").replace("{tombstone: gone}", "anti_join"));
    let refused = place.json(&["run", "p.yaml", "--strategy", "delta"], 2).to_string();
    assert!(refused.contains("leave one of them out"), "{refused}");
    let groups = pipeline("sync_type: aggregate\ngroup_by: [gone]\n")
        .replace(
            "[id, v, {source: gone, dest: gone, insert: false}]",
            "[gone, {dest: n, expr: count(*)}]",
        )
        .replace("key: [id]\n", "");
    place.write("p.yaml", &groups);
    for strategy in ["delta", "hash"] {
        let refused = place.json(&["run", "p.yaml", "--strategy", strategy], 2).to_string();
        assert!(refused.contains("type full"), "{strategy}: {refused}");
    }
}
