//! The same log into the other engines that take changes.

use super::*;

/// What a copy holds, as the source would say it: one line per row of three tables.
const LINES: [(&str, &str); 3] = [
    ("users", "id, first_name, email, date_of_birth, address"),
    ("restaurant", "id, name, rating"),
    ("visit", "user_id, restaurant_id, amount_spent, visit_rating"),
];

fn wanted(db: &TestDb, table: &str, columns: &str) -> Vec<String> {
    let cells: Vec<String> = columns
        .split(", ")
        .map(|c| format!("coalesce({c}::text, '-')"))
        .collect();
    let sql = format!("SELECT concat_ws('|', {}) FROM {table}", cells.join(", "));
    let mut rows: Vec<String> = db.psql(&sql).lines().map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

/// Loads, makes some changes, catches up; between the two the program is killed at a point of a commit.
fn follows(stage: &Stage, changes: u64, point: &str, same: impl Fn(&str)) {
    stage.catch_up();
    same("the first load");
    for n in 1..changes {
        stage.from.psql(&change(n));
    }
    stage
        .from
        .psql("UPDATE users SET id = -id WHERE id > 880 AND id NOT IN (SELECT user_id FROM visit)");
    let killed = KillRun::new(&stage.command(&["run", "shop.yaml", "--until-caught-up"]))
        .at(point, 1)
        .run();
    killed.assert_killed();
    stage.catch_up();
    same("what changed");
    stage
        .from
        .psql("TRUNCATE visit; INSERT INTO visit VALUES (1, 'r1', 2.50, NULL)");
    stage.catch_up();
    same("after TRUNCATE");
}

#[test]
fn sqlite_follows_a_log() {
    let stage = Stage::new(PgVersion::V18);
    let file = stage.home.path().join("copy.db");
    stage.pipeline_to(
        &format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", file.display()),
        "tables: [users, restaurant, visit]",
        "",
    );
    let found = |table: &str, columns: &str| {
        let db = rusqlite::Connection::open(&file).expect("the copy");
        let mut query = db
            .prepare(&format!("SELECT {columns} FROM {table}"))
            .expect("the table");
        let n = query.column_count();
        let cell = |row: &rusqlite::Row<'_>, i: usize| match row.get_ref(i).expect("a cell") {
            rusqlite::types::ValueRef::Null => "-".to_owned(),
            rusqlite::types::ValueRef::Integer(v) => v.to_string(),
            rusqlite::types::ValueRef::Real(v) => v.to_string(),
            rusqlite::types::ValueRef::Text(t) | rusqlite::types::ValueRef::Blob(t) => {
                String::from_utf8_lossy(t).into()
            }
        };
        let rows = query
            .query_map([], |row| Ok((0..n).map(|i| cell(row, i)).collect::<Vec<_>>().join("|")))
            .expect("rows");
        let mut rows: Vec<String> = rows.map(|r| r.expect("a row")).collect();
        rows.sort_unstable();
        rows
    };
    follows(&stage, 60, "sink.commit.before", |case| {
        for (table, columns) in LINES {
            let (wanted, found) = (wanted(&stage.from, table, columns), found(table, columns));
            assert_eq!(found.len(), wanted.len(), "{case}: {table}");
            let first = wanted.iter().zip(&found).find(|(w, f)| w != f);
            assert!(first.is_none(), "{case}: {table} differs, first in {first:?}");
        }
    });
    let status = stage.status();
    assert_eq!(status["tables"][2]["destination"], "visit", "{status:#}");
}

/// Both ends are compared by hashes of every row.
fn follows_by_diff(stage: &Stage, uri: &str) {
    let from = stage.from.url();
    follows(stage, 40, "sink.commit.after", |case| {
        for (table, columns) in LINES {
            let columns = columns.replace(", ", ",");
            let (code, out, err) = stage.run(&["diff", &from, table, uri, table, "--columns", &columns]);
            assert_eq!(code, 0, "{case}: {table}\n{out}\n{err}");
        }
    });
    let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
    assert_eq!((code, status["state"].as_str()), (0, Some("stopped")), "{status:#}");
}

#[test]
fn mariadb_follows_a_log() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc");
    stage.pipeline_to(
        &format!("{{type: mysql, connection: {{url: \"{}\"}}}}", to.url()),
        "tables: [users, restaurant, visit]",
        "",
    );
    follows_by_diff(&stage, &to.url());
}

#[cfg(feature = "duckdb")]
#[test]
fn duckdb_follows_a_log() {
    let stage = Stage::new(PgVersion::V15);
    let file = stage.home.path().join("copy.duckdb");
    stage.pipeline_to(
        &format!("{{type: duckdb, connection: {{path: \"{}\"}}}}", file.display()),
        "tables: [users, restaurant, visit]",
        "",
    );
    follows_by_diff(&stage, &format!("duckdb:{}", file.display()));
}

/// Loads, has a unique value wander from one row to another far away while the slot is gone, and repairs.
fn repairs(stage: &Stage, uri: &str, unique: impl FnOnce()) {
    stage
        .from
        .psql("ALTER TABLE users DROP CONSTRAINT users_email_key; TRUNCATE visit");
    stage.catch_up();
    unique();
    stage.from.psql(&format!(
        "SELECT pg_drop_replication_slot('{}'); DELETE FROM users WHERE id = 899;
         UPDATE users SET email = '899@example.com' WHERE id = 5;
         UPDATE users SET email = CASE id WHEN 20 THEN '820' ELSE '20' END || '@example.com' WHERE id IN (20, 820);
         UPDATE users SET email = CASE id WHEN 31 THEN '32' ELSE '31' END || '@example.com' WHERE id IN (31, 32)",
        stage.slot
    ));
    stage.ok(&["run", "shop.yaml", "--until-caught-up", "--repair"]);
    let columns = LINES[0].1.replace(", ", ",");
    let (code, found) = stage.json(&["diff", &stage.from.url(), "users", uri, "users", "--columns", &columns]);
    assert_eq!(
        (code, &found["compared"]["source"]),
        (0, &serde_json::json!(899)),
        "{found:#}"
    );
}

#[test]
fn a_repair_of_sqlite_lets_unique_values_wander() {
    let stage = Stage::new(PgVersion::V18);
    let file = stage.home.path().join("copy.db");
    stage.pipeline_to(
        &format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", file.display()),
        "tables: [users, restaurant, visit]",
        "",
    );
    repairs(&stage, &format!("sqlite:{}", file.display()), || {
        let db = rusqlite::Connection::open(&file).expect("the copy");
        let done = db.execute_batch("CREATE UNIQUE INDEX one_email ON users (email)");
        done.expect("the index");
    });
}

#[test]
fn a_repair_of_mariadb_lets_unique_values_wander() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc");
    stage.pipeline_to(
        &format!("{{type: mysql, connection: {{url: \"{}\"}}}}", to.url()),
        "tables: [users, restaurant, visit]",
        "",
    );
    repairs(&stage, &to.url(), || {
        to.sql("CREATE UNIQUE INDEX one_email ON users (email)");
    });
}

/// A destination that cannot take changes says so.
#[test]
fn files_do_not_take_changes() {
    let stage = Stage::new(PgVersion::V15);
    stage.pipeline_to("{type: csv, path: copies}", "tables: [users]", "");
    let (code, _, err) = stage.run(&["run", "shop.yaml"]);
    assert_eq!(code, 2, "{err}");
    assert!(err.contains("cannot take the changes of a log"), "{err}");
}
