//! Keys that the ends order otherwise: between two keys lie other rows at one end than at the other.

use super::matrix::{End, folder};
use super::*;

/// A table that is cut into ranges of its key: a few rows more than make it worth that.
#[derive(Default)]
struct Case {
    table: &'static str,
    /// Its key's columns, of a number `i`.
    rows: &'static str,
    /// What the pipeline says of it.
    said: &'static str,
    /// What is told of its ranges; nothing where they are those of the whole key.
    told: Option<&'static str>,
}

/// Texts that sort otherwise by their bytes: all capitals before all others.
const MIXED: &str = "CASE WHEN i % 2 = 0 THEN 'k' ELSE 'K' END || substr('0000' || i, -5)";
const WHOLE: Option<&str> = Some("order values of code differently, so the table is compared in one piece");

fn sqlite(case: &Case) -> End {
    let end = End::Sqlite(folder());
    end.change(&format!(
        "CREATE TABLE items({}); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 21000) \
         INSERT INTO items SELECT {}, i, strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || (i + 60) || ' seconds') FROM n",
        case.table, case.rows
    ));
    end
}

/// Whatever order the key has, a comparison finds what differs and nothing else.
fn compared(source: &End, destination: &End, case: &Case) {
    let place = Place::new(&[("from", source.entry()), ("to", destination.entry())]);
    place.write(
        "p.yaml",
        &format!(
            "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: copies}}\n{}strategies:\n  \
             - {{name: all, type: full}}\n  - {{name: compare, type: hash}}\n  \
             - {{name: changes, type: delta, column: updated_at, stamped_by: app, lag: 1s, deletes: anti_join}}\n",
            case.said
        ),
    );
    place.json(&["run", "p.yaml", "--strategy", "all"], 0);
    let equal = place.json(&["verify", "p.yaml"], 0);
    let told = equal["reasons"].to_string();
    match case.told {
        Some(words) => assert!(told.contains(words), "{equal}"),
        None => assert!(!told.contains("order values"), "{equal}"),
    }
    let pieces = equal["slices"].as_u64().unwrap_or_default();
    assert_eq!(pieces > 1, case.told.is_none_or(|t| t.contains("alone")), "{equal}");
    source.change("DELETE FROM items WHERE v = 7; UPDATE items SET v = -9 WHERE v = 9");
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(
        (
            &found["compared"]["differing"],
            &found["compared"]["only_source"],
            &found["compared"]["only_destination"]
        ),
        (&1.into(), &0.into(), &1.into()),
        "{found}"
    );
    let run = place.json(&["run", "p.yaml", "--strategy", "compare"], 0);
    assert_eq!(
        (&run["inserted"], &run["updated"], &run["deleted"]),
        (&0.into(), &1.into(), &1.into()),
        "{run}"
    );
    place.json(&["run", "p.yaml", "--strategy", "changes"], 0);
    source.change("DELETE FROM items WHERE v = 11");
    let run = place.json(&["run", "p.yaml", "--strategy", "changes"], 0);
    assert_eq!(run["deleted"], 1, "{run}");
    place.json(&["verify", "p.yaml"], 0);
}

#[test]
fn a_key_that_folds_case_is_compared_where_another_does_not() {
    let case = Case {
        table: "code TEXT COLLATE NOCASE PRIMARY KEY NOT NULL, v INTEGER NOT NULL, updated_at DATETIME NOT NULL",
        rows: MIXED,
        told: WHOLE,
        ..Case::default()
    };
    compared(&sqlite(&case), &End::Postgres(database("orders_nocase")), &case);
    #[cfg(feature = "duckdb")]
    compared(&sqlite(&case), &End::DuckDb(folder()), &case);
}

#[test]
fn the_first_columns_of_a_key_are_cut_where_only_they_are_ordered_alike() {
    let case = Case {
        table: "grp INTEGER NOT NULL, code TEXT COLLATE NOCASE NOT NULL, v INTEGER NOT NULL, updated_at DATETIME NOT NULL, \
                PRIMARY KEY (grp, code)",
        rows: "i % 30, CASE WHEN i % 2 = 0 THEN 'k' ELSE 'K' END || substr('0000' || i, -5)",
        told: Some("order values of code differently, so ranges of grp alone are compared"),
        ..Case::default()
    };
    compared(&sqlite(&case), &End::Postgres(database("orders_first")), &case);
}

#[test]
fn numbers_that_are_written_as_texts_are_compared() {
    let case = Case {
        table: "id INTEGER PRIMARY KEY NOT NULL, v INTEGER NOT NULL, updated_at DATETIME NOT NULL",
        rows: "i",
        said: "columns: [{name: id, data_type: text}, v]\n",
        told: Some("order values of id differently, so the table is compared in one piece"),
    };
    compared(&sqlite(&case), &End::Postgres(database("orders_numbers")), &case);
}

#[test]
fn texts_that_both_ends_order_by_bytes_are_cut() {
    let case = Case {
        table: "code TEXT PRIMARY KEY NOT NULL, v INTEGER NOT NULL, updated_at DATETIME NOT NULL",
        rows: MIXED,
        told: None,
        ..Case::default()
    };
    compared(&sqlite(&case), &End::Postgres(database("orders_bytes")), &case);
    #[cfg(feature = "duckdb")]
    compared(&sqlite(&case), &End::DuckDb(folder()), &case);
}

#[test]
fn a_key_of_mariadb_is_compared_with_ends_that_order_it_otherwise() {
    for (collation, told) in [("utf8mb4_general_ci", WHOLE), ("utf8mb4_nopad_bin", None)] {
        let case = Case {
            told,
            ..Case::default()
        };
        for (name, destination) in [
            ("pg", End::Postgres(database(&format!("orders_{collation}")))),
            ("lite", End::Sqlite(folder())),
        ] {
            let db = MariaDb::shared().database(&format!("orders_{name}_{}", &collation[8..]));
            let source = End::Maria(db);
            source.change(&format!(
                "CREATE TABLE items(code varchar(40) CHARACTER SET utf8mb4 COLLATE {collation} PRIMARY KEY, v int NOT NULL, updated_at datetime(6) NOT NULL);
                 INSERT INTO items SELECT concat(if(seq % 2 = 0, 'k', 'K'), lpad(seq, 5, '0')), seq, current_timestamp(6) - interval seq + 60 second FROM seq_1_to_21000"
            ));
            compared(&source, &destination, &case);
        }
    }
}

#[test]
fn a_key_that_follows_a_language_is_compared() {
    let db = Postgres::shared(PgVersion::V15).database("orders_language");
    db.psql(
        "CREATE TABLE items(code text COLLATE \"und-x-icu\" PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL, pad text NOT NULL);
         INSERT INTO items SELECT (CASE WHEN i % 2 = 0 THEN 'k' ELSE 'K' END) || lpad(i::text, 5, '0'), i, now() - (i + 60) * interval '1 second', repeat('x', 1600) FROM generate_series(1, 21000) i;
         ANALYZE items",
    );
    let case = Case {
        told: WHOLE,
        ..Case::default()
    };
    compared(&End::Postgres(db), &End::Sqlite(folder()), &case);
}
