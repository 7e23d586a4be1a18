//! The same log into the other engines that take changes.

use super::*;
use std::path::PathBuf;
use synctool_testkit::SmallDisk;
use synctool_testkit::kill::Action;

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

/// The pipeline of some tables into a database of MariaDB.
fn into_mariadb(stage: &Stage, to: &synctool_testkit::MariaDbDatabase, tables: &str) {
    let to = format!("{{type: mysql, connection: {{url: \"{}\"}}}}", to.url());
    stage.pipeline_to(&to, &format!("tables: [{tables}]"), "");
}

/// The pipeline of some tables into a file of SQLite or DuckDB, which it names.
fn into_file(stage: &Stage, engine: &str, tables: &str) -> PathBuf {
    let file = stage.home.path().join(format!("copy.{engine}"));
    let to = format!("{{type: {engine}, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline_to(&to, &format!("tables: [{tables}]"), "");
    file
}

/// Loads, makes some changes, catches up; meanwhile the program is killed at everything that it does in a run.
fn follows(stage: &Stage, changes: u64, same: impl Fn(&str)) {
    stage.catch_up();
    same("the first load");
    let mut n = 0;
    let mut change_some = |some: u64| {
        for _ in 0..some {
            n += 1;
            stage.from.psql(&change(n));
        }
    };
    change_some(changes);
    stage
        .from
        .psql("UPDATE users SET id = -id WHERE id > 880 AND id NOT IN (SELECT user_id FROM visit)");
    let run = || KillRun::new(&stage.command(&["run", "shop.yaml", "--until-caught-up"]));
    let reached = run().failpoints_reached();
    let points = synctool_testkit::kill::spread(&reached, (kills::kills() / 8).max(1));
    for name in kills::STEPS {
        assert!(
            points.iter().any(|p| p.name == name),
            "{name} is not reached: {points:?}"
        );
    }
    let mut killed = 0;
    for point in &points {
        change_some(3);
        let outcome = run().accident(point, Action::Kill).run();
        killed += usize::from(outcome.killed);
        assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
    }
    assert!(
        killed * 10 >= points.len() * 8,
        "only {killed} of {} kills struck",
        points.len()
    );
    stage.catch_up();
    same("what changed");
    stage
        .from
        .psql("TRUNCATE visit; INSERT INTO visit VALUES (1, 'r1', 2.50, NULL)");
    stage.catch_up();
    same("after TRUNCATE");
}

/// A column that comes and goes among rows, and one of the plan that goes: the rows behind it are whole without it.
fn rows_come_after_columns_went(stage: &Stage, uri: &str) {
    stage.catch_up();
    stage.from.psql(
        "ALTER TABLE restaurant ADD COLUMN token text; INSERT INTO restaurant VALUES ('with', 'w', 1, NULL, 't');
         ALTER TABLE restaurant DROP COLUMN token; INSERT INTO restaurant VALUES ('without', 'w', 2, NULL)",
    );
    stage.catch_up();
    let file = stage.home.path().join("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("written") + "schema_drift: evolve\n";
    std::fs::write(&file, text).expect("written");
    stage
        .from
        .psql("ALTER TABLE restaurant DROP COLUMN tags; INSERT INTO restaurant VALUES ('last', 'w', 3)");
    stage.catch_up();
    let (from, columns) = (stage.from.url(), "id,name,rating");
    let (code, out, err) = stage.run(&["diff", &from, "restaurant", uri, "restaurant", "--columns", columns]);
    assert_eq!(code, 0, "{out}\n{err}");
}

#[test]
fn sqlite_gets_rows_that_come_after_columns_went() {
    let stage = Stage::new(PgVersion::V18);
    let file = into_file(&stage, "sqlite", "restaurant");
    rows_come_after_columns_went(&stage, &format!("sqlite:{}", file.display()));
}

#[test]
fn mariadb_gets_rows_that_come_after_columns_went() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc_went");
    into_mariadb(&stage, &to, "restaurant");
    rows_come_after_columns_went(&stage, &to.url());
}

#[cfg(feature = "duckdb")]
#[test]
fn duckdb_gets_rows_that_come_after_columns_went() {
    let stage = Stage::new(PgVersion::V15);
    let file = into_file(&stage, "duckdb", "restaurant");
    rows_come_after_columns_went(&stage, &format!("duckdb:{}", file.display()));
}

/// A table whose key are numbers that the destination keeps as texts is read again in more than one range.
fn ranges_of_numbers_that_are_texts(stage: &Stage, uri: &str) {
    stage.catch_up();
    stage.ok(&["cdc", "refresh", "shop.yaml", "numbers"]);
    stage.catch_up();
    let (code, found) = stage.json(&["diff", &stage.from.url(), "numbers", uri, "numbers", "--columns", "n,v"]);
    assert_eq!(
        (code, &found["compared"]["source"]),
        (0, &serde_json::json!(300)),
        "{found:#}"
    );
}

const NUMBERS: &str = "CREATE TABLE numbers (n numeric PRIMARY KEY, v int);
    INSERT INTO numbers SELECT i, i FROM generate_series(1, 300) i";

#[test]
fn mariadb_replaces_ranges_of_numbers_that_are_texts() {
    let stage = Stage::new(PgVersion::V18);
    stage.from.psql(NUMBERS);
    let to = synctool_testkit::MariaDb::shared().database("cdc_numbers");
    into_mariadb(&stage, &to, "numbers");
    ranges_of_numbers_that_are_texts(&stage, &to.url());
    assert_eq!(to.sql("SELECT count(*) FROM numbers"), "300");
}

#[cfg(feature = "duckdb")]
#[test]
fn duckdb_replaces_ranges_of_numbers_that_are_texts() {
    let stage = Stage::new(PgVersion::V15);
    stage.from.psql(NUMBERS);
    let file = into_file(&stage, "duckdb", "numbers");
    ranges_of_numbers_that_are_texts(&stage, &format!("duckdb:{}", file.display()));
}

#[test]
fn sqlite_follows_a_log() {
    let stage = Stage::new(PgVersion::V18);
    let file = into_file(&stage, "sqlite", "users, restaurant, visit");
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
    follows(&stage, 60, |case| {
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
#[track_caller]
fn same_by_diff(stage: &Stage, uri: &str, case: &str) {
    let from = stage.from.url();
    for (table, columns) in LINES {
        let columns = columns.replace(", ", ",");
        let (code, out, err) = stage.run(&["diff", &from, table, uri, table, "--columns", &columns]);
        assert_eq!(code, 0, "{case}: {table}\n{out}\n{err}");
    }
}

fn follows_by_diff(stage: &Stage, uri: &str) {
    follows(stage, 40, |case| same_by_diff(stage, uri, case));
    let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
    assert_eq!((code, status["state"].as_str()), (0, Some("stopped")), "{status:#}");
}

#[test]
fn mariadb_follows_a_log() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc");
    into_mariadb(&stage, &to, "users, restaurant, visit");
    follows_by_diff(&stage, &to.url());
}

#[cfg(feature = "duckdb")]
#[test]
fn duckdb_follows_a_log() {
    let stage = Stage::new(PgVersion::V15);
    let file = into_file(&stage, "duckdb", "users, restaurant, visit");
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
    let file = into_file(&stage, "sqlite", "users, restaurant, visit");
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
    into_mariadb(&stage, &to, "users, restaurant, visit");
    repairs(&stage, &to.url(), || {
        to.sql("CREATE UNIQUE INDEX one_email ON users (email)");
    });
}

/// F75. The destination, its position with it, is set back to a copy of itself from before, while the source has let go of
/// the log since: nothing is written until somebody allows a comparison, and that makes it equal.
fn set_back(
    stage: &Stage,
    keep: impl FnOnce(),
    put_back: impl FnOnce(),
    rows: impl Fn() -> String,
    same: impl Fn(&str),
) {
    stage.catch_up();
    keep();
    // The second run tells the source that what the first one wrote is durable.
    for n in 1..3 {
        stage.from.psql(&change(n));
        stage.from.psql(&format!("DELETE FROM visit WHERE user_id = 500 + {n}"));
        stage.catch_up();
    }
    same("before it is set back");
    put_back();
    let before = rows();
    stage.from.psql(&change(3));
    let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    assert_eq!(code, 4, "{err}");
    assert!(
        err.contains("ST-LOG-003") && err.contains("set back") && err.contains("--repair"),
        "{err}"
    );
    assert_eq!(rows(), before, "nothing is written");
    stage.ok(&["run", "shop.yaml", "--until-caught-up", "--repair"]);
    same("repaired");
    stage.from.psql(&change(4));
    stage.catch_up();
    same("afterwards");
}

#[test]
fn a_postgres_that_was_set_back_is_refused_and_repaired() {
    let stage = Stage::new(PgVersion::V18);
    let name = stage.to.name().to_owned();
    // Both databases are of one server.
    let server = |sql: String| drop(stage.from.psql(&sql));
    set_back(
        &stage,
        || server(format!("CREATE DATABASE {name}_old TEMPLATE {name}")),
        || {
            server(format!(
                "DROP DATABASE {name} WITH (FORCE); ALTER DATABASE {name}_old RENAME TO {name}"
            ))
        },
        || Stage::rows(&stage.to, "users"),
        |case| stage.assert_equal(case),
    );
}

#[test]
fn a_file_of_sqlite_that_was_set_back_is_refused_and_repaired() {
    let stage = Stage::new(PgVersion::V15);
    let file = into_file(&stage, "sqlite", "users, restaurant, visit");
    let (uri, old) = (format!("sqlite:{}", file.display()), file.with_extension("old"));
    let open = || rusqlite::Connection::open(&file).expect("the copy");
    set_back(
        &stage,
        || {
            let done = open().execute("VACUUM INTO ?1", [old.to_str().expect("a path")]);
            done.expect("a backup");
        },
        || {
            for end in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{end}", file.display()));
            }
            std::fs::rename(&old, &file).expect("the backup");
        },
        || {
            let sql = "SELECT group_concat(first_name) FROM (SELECT first_name FROM users ORDER BY id)";
            open().query_row(sql, [], |row| row.get(0)).expect("rows")
        },
        |case| same_by_diff(&stage, &uri, case),
    );
}

/// F5. The destination's disk is full in the middle of a transaction: it is told, nothing of it nor of what is behind it is
/// there, and with room the log goes on.
fn outgrows(stage: &Stage, disk: &SmallDisk, ratings: impl Fn() -> String, same: impl Fn(&str)) {
    stage.catch_up();
    same("with room");
    let before = ratings();
    stage.from.psql(
        "INSERT INTO users (first_name, email, address) SELECT 'large', i || '@large',
             (SELECT string_agg(md5(i || ' ' || j), '') FROM generate_series(1, 60) j) FROM generate_series(1, 20000) i",
    );
    stage.from.psql("UPDATE restaurant SET rating = 9");
    let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("ST-IO-001"), "{err}");
    disk.resize(200);
    assert_eq!(ratings(), before, "nothing behind it is there");
    stage.catch_up();
    same("with room again");
}

#[test]
fn a_postgres_without_room_is_told_and_goes_on() {
    let disk = SmallDisk::new(12);
    let server = Postgres::start(PgVersion::V15);
    let space = disk.folder("space");
    server.psql(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()));
    let shared = Postgres::shared(PgVersion::V15);
    let from = shared.database_from("cdc", &shared.template("cdc_shop", SHOP));
    let stage = Stage::between(from, &server);
    server.psql(&format!(
        "ALTER DATABASE {} SET default_tablespace = 'small'",
        stage.to.name()
    ));
    stage.pipeline("tables: [users, restaurant, visit]", "");
    let ratings = || Stage::rows(&stage.to, "restaurant");
    outgrows(&stage, &disk, ratings, |case| stage.assert_equal(case));
}

#[test]
fn a_file_of_sqlite_without_room_is_told_and_goes_on() {
    let disk = SmallDisk::new(12);
    let stage = Stage::new(PgVersion::V18);
    let file = disk.path().join("copy.db");
    let to = format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline_to(&to, "tables: [users, restaurant, visit]", "");
    let ratings = || {
        let db = rusqlite::Connection::open(&file).expect("the copy");
        let sql = "SELECT group_concat(rating) FROM (SELECT rating FROM restaurant ORDER BY id)";
        db.query_row(sql, [], |row| row.get(0)).expect("rows")
    };
    let uri = format!("sqlite:{}", file.display());
    outgrows(&stage, &disk, ratings, |case| same_by_diff(&stage, &uri, case));
}

#[test]
fn a_mariadb_without_room_is_told_and_goes_on() {
    let disk = SmallDisk::new(12);
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc_room");
    into_mariadb(&stage, &to, "users, restaurant, visit");
    stage.catch_up();
    // The same table with the same rows, whose file stands on the small disk.
    let made = to.sql("SHOW CREATE TABLE users");
    let made = made.split_once('\t').expect("a statement").1.replace("\\n", "\n");
    to.sql(&format!(
        "RENAME TABLE users TO elsewhere; {made} DATA DIRECTORY='{}'; INSERT INTO users SELECT * FROM elsewhere; DROP TABLE elsewhere",
        disk.path().display()
    ));
    assert!(
        disk.path().join(to.name()).join("users.ibd").exists(),
        "it stands there"
    );
    let ratings = || to.sql("SELECT GROUP_CONCAT(rating ORDER BY id) FROM restaurant");
    outgrows(&stage, &disk, ratings, |case| same_by_diff(&stage, &to.url(), case));
}

#[cfg(feature = "duckdb")]
#[test]
fn a_file_of_duckdb_without_room_is_told_and_goes_on() {
    let disk = SmallDisk::new(16);
    let stage = Stage::new(PgVersion::V15);
    let file = disk.path().join("copy.duckdb");
    let to = format!("{{type: duckdb, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline_to(&to, "tables: [users, restaurant, visit]", "");
    let uri = format!("duckdb:{}", file.display());
    let looks = std::cell::Cell::new(0);
    let ratings = || {
        looks.set(looks.get() + 1);
        let copy = format!("ratings{}.csv", looks.get());
        stage.ok(&["copy", &uri, "restaurant", &copy]);
        let text = std::fs::read_to_string(stage.home.path().join(copy)).expect("the copy");
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        lines.join("\n")
    };
    outgrows(&stage, &disk, ratings, |case| same_by_diff(&stage, &uri, case));
}

/// F79. A log goes no further where a newer program made the control tables its own.
#[test]
fn a_log_ends_before_newer_control_tables_of_sqlite() {
    let stage = Stage::new(PgVersion::V15);
    let file = into_file(&stage, "sqlite", "restaurant");
    stage.catch_up();
    let db = rusqlite::Connection::open(&file).expect("the copy");
    let best = || -> i64 {
        let sql = "SELECT count(*) FROM restaurant WHERE rating = 5";
        db.query_row(sql, [], |row| row.get(0)).expect("a count")
    };
    let before = best();
    db.execute_batch("UPDATE _synctool_format_version SET version = 99")
        .expect("a newer version");
    stage.from.psql("UPDATE restaurant SET rating = 5");
    let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    assert_eq!(code, 1, "{err}");
    assert!(err.contains("ST-STA-001") && err.contains("99"), "{err}");
    assert_eq!(best(), before, "nothing is written");
}

/// F77. Somebody alters the copy by hand. What rows do not need is left alone; what they need, or do not fit into, is told
/// and nothing is written; and when that is mended as told, both ends are equal.
#[test]
fn a_copy_that_somebody_alters_is_told_and_mended() {
    let stage = Stage::new(PgVersion::V18);
    stage.catch_up();
    let told = |n: u64, says: &str| {
        stage.from.psql(&change(n));
        let before = Stage::rows(&stage.to, "restaurant");
        let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
        assert!(code != 0 && err.contains(says), "no {says:?}, exit code {code}: {err}");
        assert_eq!(Stage::rows(&stage.to, "restaurant"), before, "nothing is written");
    };
    stage
        .to
        .psql("ALTER TABLE users ADD COLUMN theirs text DEFAULT 'theirs'");
    stage.from.psql(&change(1));
    stage.catch_up();
    assert_eq!(
        stage.to.psql("SELECT count(*) FROM users WHERE theirs = 'theirs'"),
        stage.from.psql("SELECT count(*) FROM users")
    );
    stage
        .to
        .psql("ALTER TABLE users DROP COLUMN theirs, DROP COLUMN interests");
    told(2, "users has no column interests");
    stage.to.psql("ALTER TABLE users ADD COLUMN interests text[]");
    stage.ok(&["cdc", "refresh", "shop.yaml", "users"]);
    stage.catch_up();
    stage.assert_equal("with its column again");
    // A text that is too long is not cut.
    stage
        .to
        .psql("ALTER TABLE restaurant ALTER COLUMN name TYPE varchar(9)");
    stage
        .from
        .psql("UPDATE restaurant SET name = 'a longer name' WHERE id = 'r7'");
    told(3, "too long");
    stage
        .to
        .psql("ALTER TABLE restaurant ALTER COLUMN name TYPE varchar(255)");
    stage.catch_up();
    stage.assert_equal("wide enough again");
    stage.to.psql("DROP TABLE visit");
    told(4, "visit does not exist at the destination any more");
    stage.to.psql(
        "CREATE TABLE visit (user_id int, restaurant_id varchar(255), amount_spent numeric(10, 2) NOT NULL, visit_rating int, \
         PRIMARY KEY (user_id, restaurant_id))",
    );
    stage.catch_up();
    stage.ok(&["repair", "shop.yaml"]);
    stage.assert_equal("made again and filled");
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

/// The same pipeline by another name into another destination, from the beginning.
fn load_afresh(stage: &Stage, to: (&str, &str)) {
    let text = std::fs::read_to_string(stage.home.path().join("shop.yaml")).expect("the pipeline");
    let text = text
        .replace("name: shop", "name: fresh")
        .replace(&format!("slot: {}", stage.slot), &format!("slot: {}_f", stage.slot))
        .replace(to.0, to.1);
    std::fs::write(stage.home.path().join("fresh.yaml"), text).expect("written");
    stage.ok(&["run", "fresh.yaml", "--until-caught-up"]);
}

/// What MariaDB declares of a table's columns, and what they hold.
fn declared(to: &synctool_testkit::MariaDbDatabase, table: &str) -> (String, String) {
    let columns = to.sql(&format!(
        "SELECT COLUMN_NAME, COLUMN_TYPE, COLLATION_NAME, COLUMN_COMMENT, IS_NULLABLE FROM information_schema.COLUMNS \
         WHERE TABLE_SCHEMA = '{}' AND TABLE_NAME = '{table}' ORDER BY COLUMN_NAME",
        to.name()
    ));
    let names: Vec<&str> = columns.lines().filter_map(|l| l.split('\t').next()).collect();
    let cells: Vec<String> = names.iter().map(|n| format!("hex({n})")).collect();
    let rows = to.sql(&format!("SELECT {} FROM {table} ORDER BY id", cells.join(", ")));
    (columns, rows)
}

/// Types that the two engines name differently, and some that one of them has not.
const NEW_COLUMNS: &str = "ADD a timestamp, ADD b timestamptz, ADD c jsonb, ADD d bytea, ADD e interval, ADD f inet, \
    ADD g numeric, ADD h text, ADD i uuid, ADD j real, ADD k varchar(20), ADD l numeric(10, 2), ADD m timetz, ADD n bool";

#[test]
fn columns_that_a_log_adds_in_mariadb_are_those_of_a_fresh_load() {
    let stage = Stage::new(PgVersion::V15);
    let server = synctool_testkit::MariaDb::shared();
    let (to, fresh) = (server.database("cdc_added"), server.database("cdc_fresh"));
    into_mariadb(&stage, &to, "restaurant");
    stage.catch_up();
    stage.from.psql(&format!(
        "ALTER TABLE restaurant {NEW_COLUMNS};
         UPDATE restaurant SET a = '2024-01-02 03:04:05.678', b = '2024-01-02 03:04:05.678+01', c = '{{\"x\": 1}}',
         d = '\\x00ff', e = '1 year 2 days', f = '::1/128', g = 1.50, h = repeat('h', 70000), i = gen_random_uuid(), j = 0.1,
         k = 'Kk ', l = 1.50, m = '12:00:00.5+02', n = true WHERE id < 'r3'"
    ));
    stage.catch_up();
    load_afresh(&stage, (&to.url(), &fresh.url()));
    let (added, loaded) = (declared(&to, "restaurant"), declared(&fresh, "restaurant"));
    assert_eq!(added.0, loaded.0);
    assert!(added.1 == loaded.1, "values differ");
}

/// F74. A value that the destination's type does not hold ends the log before its transaction; the step that is told is one
/// that helps.
#[test]
fn a_value_without_a_place_ends_a_log_with_a_step_that_helps() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc_nan");
    stage.from.psql(
        "CREATE TABLE odd (id int PRIMARY KEY, n numeric(10, 2), d date); INSERT INTO odd VALUES (1, 1, '2024-01-01')",
    );
    into_mariadb(&stage, &to, "odd");
    stage.catch_up();
    stage
        .from
        .psql("INSERT INTO odd VALUES (2, 'NaN', '2024-01-01'), (3, 1.5, '0044-03-15 BC')");
    stage.from.psql("UPDATE odd SET n = 2 WHERE id = 1");
    let (code, summary) = stage.json(&["run", "shop.yaml", "--until-caught-up"]);
    let told = summary.to_string();
    assert!(code != 0 && told.contains("synctool state reset"), "{told}");
    assert!(!told.contains("as_text"), "{told}");
    assert_eq!(
        to.sql("SELECT id, n FROM odd"),
        "1\t1.00",
        "nothing of it, nor behind it"
    );
    to.sql("ALTER TABLE odd MODIFY n longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin, MODIFY d longtext CHARACTER SET utf8mb4 COLLATE utf8mb4_bin");
    stage.ok(&["state", "reset", "shop.yaml", "--yes"]);
    stage
        .from
        .psql(&format!("SELECT pg_drop_replication_slot('{}')", stage.slot));
    stage.catch_up();
    assert_eq!(
        to.sql("SELECT id, n, d FROM odd ORDER BY id"),
        "1\t2.00\t2024-01-01\n2\tNaN\t2024-01-01\n3\t1.50\t0044-03-15 BC"
    );
}

/// F46. A wider type is followed by PostgreSQL alone. Elsewhere the log ends before it, and the step that is told is one that
/// helps.
#[test]
fn a_wider_type_ends_a_log_with_a_step_that_helps() {
    let stage = Stage::new(PgVersion::V15);
    let to = synctool_testkit::MariaDb::shared().database("cdc_wider");
    into_mariadb(&stage, &to, "restaurant");
    let file = stage.home.path().join("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("written") + "schema_drift: evolve\n";
    std::fs::write(&file, text).expect("written");
    stage.catch_up();
    stage.from.psql(
        "ALTER TABLE restaurant ALTER rating TYPE bigint; UPDATE restaurant SET rating = 5000000000 WHERE id = 'r1'",
    );
    for _ in 0..2 {
        let (code, summary) = stage.json(&["run", "shop.yaml", "--until-caught-up"]);
        let told = summary.to_string();
        assert!(code != 0 && told.contains("the change of rating"), "{told}");
        assert!(told.contains("synctool state reset"), "{told}");
    }
    assert_eq!(to.sql("SELECT max(rating) < 1000 FROM restaurant"), "1");
    to.sql("ALTER TABLE restaurant MODIFY rating bigint");
    stage.ok(&["state", "reset", "shop.yaml", "--yes"]);
    stage
        .from
        .psql(&format!("SELECT pg_drop_replication_slot('{}')", stage.slot));
    stage.catch_up();
    let (from, columns) = (stage.from.url(), "id,name,rating");
    let (code, out, err) = stage.run(&[
        "diff",
        &from,
        "restaurant",
        &to.url(),
        "restaurant",
        "--columns",
        columns,
    ]);
    assert_eq!(code, 0, "{out}\n{err}");
}

#[cfg(feature = "duckdb")]
mod duckdb {
    use super::*;

    fn stage(tables: &str) -> (Stage, String) {
        let stage = Stage::new(PgVersion::V15);
        let file = into_file(&stage, "duckdb", tables);
        (stage, format!("duckdb:{}", file.display()))
    }

    #[track_caller]
    fn same(stage: &Stage, uri: &str, table: &str, columns: &str) {
        let (code, out, err) = stage.run(&["diff", &stage.from.url(), table, uri, table, "--columns", columns]);
        assert_eq!(code, 0, "{table}\n{out}\n{err}");
    }

    /// Columns that come between changes of their table, in one transaction and between some that are committed together.
    #[test]
    fn columns_come_between_changes() {
        let (stage, uri) = stage("users, restaurant");
        stage.catch_up();
        stage.from.psql(
            "BEGIN; UPDATE users SET first_name = 'before' WHERE id < 9; DELETE FROM visit; DELETE FROM users WHERE id = 800;
             ALTER TABLE users ADD COLUMN token uuid, ADD COLUMN wide numeric(50, 2);
             UPDATE users SET token = gen_random_uuid(), wide = 1.5 WHERE id < 20; UPDATE restaurant SET rating = 3;
             ALTER TABLE users ADD COLUMN seen timestamptz; UPDATE users SET seen = '2024-01-02 03:04:05+00'; COMMIT",
        );
        for sql in [
            "UPDATE restaurant SET rating = 5 WHERE id < 'r2'",
            "ALTER TABLE restaurant ADD COLUMN token uuid",
            "UPDATE restaurant SET token = gen_random_uuid() WHERE id < 'r3'",
        ] {
            stage.from.psql(sql);
        }
        stage.catch_up();
        same(&stage, &uri, "users", "id,first_name,token,wide,seen");
        same(&stage, &uri, "restaurant", "id,rating,token");
        stage.from.psql("UPDATE users SET token = NULL, wide = -2 WHERE id < 5");
        stage.catch_up();
        same(&stage, &uri, "users", "id,first_name,token,wide,seen");
    }

    /// Rows that take one another's keys, more of them than DuckDB looks at together.
    #[test]
    fn many_rows_take_the_keys_of_others() {
        let (stage, uri) = stage("many");
        stage
            .from
            .psql("CREATE TABLE many (id int PRIMARY KEY, v text); INSERT INTO many SELECT i, 'v' || i FROM generate_series(1, 7000) i");
        stage.catch_up();
        for sql in [
            "BEGIN; UPDATE many SET id = id + 100000; UPDATE many SET id = id - 99999; COMMIT",
            "UPDATE many SET id = id + 100000; UPDATE many SET id = id - 100001",
            "BEGIN; UPDATE many SET id = -id; DELETE FROM many WHERE id > -5; UPDATE many SET id = 7001 + id; \
             INSERT INTO many VALUES (7000, 'new'); UPDATE many SET v = v || 'x' WHERE id % 3 = 0; COMMIT",
        ] {
            stage.from.psql(sql);
            stage.catch_up();
            same(&stage, &uri, "many", "id,v");
        }
    }
}
