//! `value_map`: what stands for a value has a place in its column, or the mistake is told before a row is read.

use super::matrix::{End, folder};
use super::*;

/// Its mapping stands in line 8 from character 32 on.
fn mapped(column: &str, value: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n\
         strategies: [{{type: full}}, {{type: hash}}]\ntransform:\n  - value_map:\n      column: {column}\n      \
         mapping: {{\"1\": \"2\", \"3\": {value}}}\n"
    )
}

/// Whatever form the column travels in: told at the value's place by a plan and by a run, and nothing is made.
#[test]
fn what_is_no_value_of_the_column_is_a_mistake_of_the_file() {
    let db = database("value_map_types");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, n int, d numeric, e numeric(4,1), f boolean, u uuid, j json);
         INSERT INTO items VALUES (1, 1, 1, 1, true, NULL, '1')",
    );
    let place = here(&db);
    // What the file maps 1 to has to fit too.
    for column in ["n", "d", "e"] {
        for (value, fits) in [("many", false), ("7", true), ("null", true)] {
            place.write("p.yaml", &mapped(column, value));
            if fits {
                place.json(&["plan", "p.yaml"], 0);
                continue;
            }
            for command in ["plan", "run"] {
                let refused = place.json(&[command, "p.yaml"], 2).to_string();
                assert!(refused.contains("p.yaml:8:32: value_map"), "{column}: {refused}");
                assert!(refused.contains(&format!("column {column}")), "{refused}");
            }
        }
    }
    for column in ["f", "u", "j"] {
        place.write("p.yaml", &mapped(column, "\"{many\""));
        let refused = place.json(&["plan", "p.yaml"], 2).to_string();
        assert!(
            refused.contains("p.yaml:8:") && refused.contains("value_map"),
            "{column}: {refused}"
        );
    }
    let made = "SELECT count(*) FROM pg_class WHERE relname = 'copies'";
    assert_eq!(db.psql(made).trim(), "0");
}

/// A short code may stand for a long word: a new column has room for it. One that is there and has none, or whose length
/// the file says, is told.
#[test]
fn a_text_has_room_for_what_stands_for_it() {
    let mut all = vec![
        End::Postgres(database("value_map_to")),
        End::Maria(MariaDb::shared().database("value_map_to")),
        End::Sqlite(folder()),
    ];
    #[cfg(feature = "duckdb")]
    all.push(End::DuckDb(folder()));
    for to in all {
        let from = End::Postgres(database("value_map_from"));
        from.change("CREATE TABLE items(id int PRIMARY KEY, state varchar(1)); INSERT INTO items VALUES (1, '1'), (2, '3'), (3, '4')");
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write("p.yaml", &mapped("state", "delivered"));
        for strategy in ["full", "hash"] {
            place.json(&["run", "p.yaml", "--strategy", strategy], 0);
            place.json(&["verify", "p.yaml"], 0);
        }
        if matches!(to, End::Postgres(_) | End::Maria(_)) {
            assert_eq!(to.lines("copies", &["id", "state"]), "1 2\n2 delivered\n3 4");
            // What was made for the longest word has no room for a longer one.
            place.write("p.yaml", &mapped("state", "delivered at last"));
            let refused = place.json(&["plan", "p.yaml"], 2).to_string();
            assert!(
                refused.contains("column state") && refused.contains("p.yaml:8:"),
                "{refused}"
            );
        }
        let said = "columns: [id, {source: state, data_type: varchar, length: 3}]\n";
        place.write("p.yaml", &format!("{}{said}", mapped("state", "delivered")));
        let refused = place.json(&["plan", "p.yaml"], 2).to_string();
        assert!(refused.contains("p.yaml:8:32: value_map"), "{refused}");
    }
}
