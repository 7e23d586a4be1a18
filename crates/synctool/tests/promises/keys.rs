//! Keys that stages make: rows are compared, fetched and deleted by the key as it is written.

use super::*;

/// How a key is written at the source, what the pipeline says, and what is wanted of each row.
const MADE: [(&str, &str, &str); 3] = [
    // The destination's column has the type that the stage gives, not the source's.
    (
        "i::text",
        "transform: [{name: numbers, cast: {code: int}}]\n",
        "code::int",
    ),
    (
        "'ab' || i",
        "transform: [{compute: {name: code, expression: upper(code)}}]\n",
        "upper(code)",
    ),
    (
        "'ab' || i",
        "key: [made]\ncolumns: [{name: code, insert: false}, v, updated_at, {name: made, src: null, data_type: text}]\n\
         transform: [{compute: {name: made, expression: \"upper(code)\"}}]\n",
        "upper(code)",
    ),
];

fn items(db: &TestDb, code: &str) {
    db.psql(&format!(
        "DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE; DROP TABLE IF EXISTS items;
         CREATE TABLE items(code text PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO items SELECT {code}, i FROM generate_series(1, 100) i"
    ));
}

fn file(said: &str, strategies: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies}}\n{said}\
         strategies: [{strategies}]\n"
    )
}

const ROWS: &str = "string_agg(concat_ws(' ', k, v), ',' ORDER BY v)";

#[test]
fn a_delta_deletes_the_keys_that_are_gone_and_no_others() {
    let db = database("made_keys");
    let place = here(&db);
    for (code, said, key) in MADE {
        items(&db, code);
        let delta = "{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: anti_join}";
        place.write("p.yaml", &file(said, delta));
        place.json(&["run", "p.yaml"], 0);
        let column = if said.contains("made") { "made" } else { "code" };
        let found = || db.psql(&format!("SELECT {ROWS} FROM (SELECT {column} AS k, v FROM copies) c"));
        let wanted = || db.psql(&format!("SELECT {ROWS} FROM (SELECT {key} AS k, v FROM items) i"));
        assert_eq!(found(), wanted(), "{said}");
        db.psql(&format!(
            "DELETE FROM items WHERE v IN (7, 8); UPDATE items SET v = 1000, updated_at = now() WHERE v = 9;
             INSERT INTO items SELECT {code}, i, now() FROM generate_series(101, 103) i"
        ));
        place.until(&["run", "p.yaml"], found, wanted().trim());
        let idle = place.json(&["run", "p.yaml"], 0);
        assert_eq!((&idle["deleted"], &idle["inserted"]), (&0.into(), &0.into()), "{idle}");
    }
}

#[test]
fn a_comparison_mends_rows_by_the_key_that_is_written() {
    let db = database("made_keys_hash");
    let place = here(&db);
    for (code, said, key) in MADE {
        items(&db, code);
        place.write("p.yaml", &file(said, "{name: hash, type: hash}"));
        place.json(&["run", "p.yaml"], 0);
        let column = if said.contains("made") { "made" } else { "code" };
        db.psql(&format!(
            "DELETE FROM items WHERE v IN (7, 8); DELETE FROM copies WHERE v IN (20, 21); UPDATE copies SET v = -v WHERE v = 30;
             INSERT INTO items SELECT {code}, i FROM generate_series(101, 103) i"
        ));
        let run = place.json(&["run", "p.yaml"], 0);
        assert_eq!(
            (&run["inserted"], &run["updated"], &run["deleted"]),
            (&5.into(), &1.into(), &2.into()),
            "{said}: {run}"
        );
        assert_eq!(
            db.psql(&format!("SELECT {ROWS} FROM (SELECT {column} AS k, v FROM copies) c")),
            db.psql(&format!("SELECT {ROWS} FROM (SELECT {key} AS k, v FROM items) i")),
            "{said}"
        );
        place.json(&["verify", "p.yaml"], 0);
    }
}

/// A row that stops meeting a filter is deleted under the key that it was written with.
#[test]
fn rows_that_stop_meeting_a_filter_leave_by_the_key_that_is_written() {
    let db = database("made_keys_filter");
    let place = here(&db);
    let delta = "{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: anti_join}";
    for (code, said, key) in MADE {
        items(&db, code);
        let file = file(said, delta).replace("table: public.items}", "table: public.items, filters: [\"v > 0\"]}");
        place.write("p.yaml", &file);
        if said.contains("made") {
            // The first run would load, and every later one would not know which rows to delete.
            let refused = place.json(&["run", "p.yaml"], 2).to_string();
            assert!(refused.contains("made by a stage"), "{refused}");
            continue;
        }
        place.json(&["run", "p.yaml"], 0);
        db.psql("UPDATE items SET v = -v, updated_at = now() WHERE v IN (3, 4)");
        let found = || db.psql(&format!("SELECT {ROWS} FROM (SELECT code AS k, v FROM copies) c"));
        let wanted = db.psql(&format!(
            "SELECT {ROWS} FROM (SELECT {key} AS k, v FROM items WHERE v > 0) i"
        ));
        place.until(&["run", "p.yaml"], found, wanted.trim());
    }
}

#[test]
fn what_a_stage_changes_cuts_no_comparison() {
    let db = database("made_keys_cut");
    let place = here(&db);
    let (code, said, _) = MADE[0];
    items(&db, code);
    place.write("p.yaml", &file(said, "{name: full, type: full}"));
    place.json(&["run", "p.yaml"], 0);
    let hash = "{name: hash, type: hash, primary_partitions: [{column: code, type: value}]}";
    place.write("p.yaml", &file(said, hash));
    let refused = place.json(&["run", "p.yaml"], 2).to_string();
    assert!(refused.contains("a stage changes it"), "{refused}");
}

/// Rows that the next delta will bring are told apart from rows that differ.
#[test]
fn rows_that_wait_for_the_next_delta_are_known_by_the_key_that_is_written() {
    let db = database("made_keys_waiting");
    let place = here(&db);
    let delta = "{name: delta, type: delta, column: updated_at, margin: 1ms}";
    for (code, said, _) in MADE {
        items(&db, code);
        place.write("p.yaml", &file(said, delta));
        place.json(&["run", "p.yaml"], 0);
        db.psql(&format!(
            "UPDATE items SET v = v + 1000, updated_at = now() WHERE v IN (7, 8);
             INSERT INTO items SELECT {code}, i, now() FROM generate_series(101, 103) i"
        ));
        let equal = place.json(&["verify", "p.yaml"], 0);
        assert_eq!(equal["pending"], 5, "{said}: {equal}");
        db.psql("UPDATE copies SET v = -v WHERE v = 30");
        let found = place.json(&["verify", "p.yaml"], 3);
        assert_eq!(
            (&found["pending"], &found["compared"]["differing"]),
            (&5.into(), &1.into()),
            "{said}: {found}"
        );
    }
}
