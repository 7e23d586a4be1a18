//! Every strategy between every pair of engines: after each run the destination is what the source is.

use super::place::csv_lines;
use super::*;

/// One end: how it stands in the file of datastores, and how to change and read it without us.
pub(super) enum End {
    Postgres(TestDb),
    Maria(synctool_testkit::MariaDbDatabase),
    Sqlite(tempfile::TempDir),
    Csv(tempfile::TempDir),
    Parquet(tempfile::TempDir),
    #[cfg(feature = "duckdb")]
    DuckDb(tempfile::TempDir),
}

impl End {
    pub(super) fn entry(&self) -> String {
        match self {
            End::Postgres(db) => postgres(db),
            End::Maria(db) => format!("{{type: mysql, url: \"{}\"}}", db.url()),
            End::Sqlite(folder) => format!("{{type: sqlite, path: \"{}\"}}", folder.path().join("x.db").display()),
            End::Csv(folder) => format!("{{type: csv, path: \"{}\"}}", folder.path().display()),
            End::Parquet(folder) => format!("{{type: parquet, path: \"{}\"}}", folder.path().display()),
            #[cfg(feature = "duckdb")]
            End::DuckDb(folder) => format!(
                "{{type: duckdb, path: \"{}\"}}",
                folder.path().join("x.duckdb").display()
            ),
        }
    }

    /// Statements in words that all engines know; `NOW` is the engine's clock.
    pub(super) fn change(&self, statements: &str) {
        match self {
            End::Postgres(db) => drop(db.psql(&statements.replace("NOW", "now()"))),
            End::Maria(db) => statements
                .split(';')
                .for_each(|one| drop(db.sql(&one.replace("NOW", "current_timestamp(6)")))),
            End::Sqlite(folder) => rusqlite::Connection::open(folder.path().join("x.db"))
                .expect("opens")
                .execute_batch(&statements.replace("NOW", "strftime('%Y-%m-%d %H:%M:%f', 'now')"))
                .expect("changes"),
            _ => unreachable!("not a source here"),
        }
    }

    /// Whether rows can be read here without us.
    pub(super) fn is_read(&self) -> bool {
        match self {
            End::Parquet(_) => false,
            #[cfg(feature = "duckdb")]
            End::DuckDb(_) => false,
            _ => true,
        }
    }

    /// Rows as lines.
    pub(super) fn lines(&self, table: &str, columns: &[&str]) -> String {
        let order = format!("FROM {table} ORDER BY {}", columns[0]);
        match self {
            End::Postgres(db) => db
                .psql(&format!("SELECT concat_ws(' ', {}) {order}", columns.join(", ")))
                .trim()
                .into(),
            End::Maria(db) => db
                .sql(&format!("SELECT concat_ws(' ', {}) {order}", columns.join(", ")))
                .trim()
                .into(),
            End::Sqlite(folder) => {
                let connection = rusqlite::Connection::open(folder.path().join("x.db")).expect("opens");
                let mut select = connection
                    .prepare(&format!("SELECT '' || {} {order}", columns.join(" || ' ' || ")))
                    .expect("a table");
                let rows = select.query_map([], |row| row.get::<_, String>(0)).expect("rows");
                rows.collect::<Result<Vec<_>, _>>().expect("rows").join("\n")
            }
            // Whoever reads all files of the folder sees each row once.
            End::Csv(folder) => csv_lines(&folder.path().join(table), columns),
            _ => unreachable!("not read here"),
        }
    }
}

pub(super) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

const ROWS: &[&str] = &["id", "name", "qty", "grp"];
const TOTALS: &[&str] = &["grp", "n", "total"];

const STRATEGIES: &str = "strategies:\n  \
     - {name: delta, type: delta, column: updated_at, margin: 10ms, deletes: anti_join}\n  \
     - {name: hash, type: hash}\n  - {name: full, type: full}\n  - {name: upsert, type: full, full_mode: upsert}\n";

/// A change of the source, and the strategy that is to bring it.
const CHANGES: [(&str, &str); 6] = [
    ("delta", ""),
    (
        "delta",
        "UPDATE items SET qty = qty + 1, updated_at = NOW WHERE id IN (5, 6, 77);
         UPDATE items SET grp = 3, updated_at = NOW WHERE grp = 4; DELETE FROM items WHERE id IN (9, 100);
         INSERT INTO items VALUES (500, 'new', 1, 20, NOW)",
    ),
    (
        "hash",
        "DELETE FROM items WHERE grp = 5; UPDATE items SET name = 'renamed', qty = 0 WHERE id = 8;
         INSERT INTO items VALUES (501, 'unseen', 2, 21, NOW)",
    ),
    (
        "full",
        "DELETE FROM items WHERE id = 12; UPDATE items SET qty = 9 WHERE id = 13",
    ),
    (
        "upsert",
        "DELETE FROM items WHERE id = 21; UPDATE items SET qty = 9 WHERE id = 22",
    ),
    ("delta", "UPDATE items SET qty = 7, updated_at = NOW WHERE id = 30"),
];

/// What the groups of the source are.
const GROUPS: &str = "(SELECT grp, count(*) AS n, sum(qty) AS total FROM items GROUP BY grp) g";

/// The rows of `items`, from a datastore into `to`.
fn rows_file(from: &str) -> String {
    format!(
        "name: rows\nsource: {{datastore: {from}, table: items}}\ndestination: {{datastore: to, table: copies}}\n{STRATEGIES}"
    )
}

/// Its groups.
fn totals_file(from: &str) -> String {
    format!(
        "name: totals\nsource: {{datastore: {from}, table: items}}\ndestination: {{datastore: to, table: totals}}\nsync_type: aggregate\n\
         group_by: [grp]\ncolumns:\n  - grp\n  - {{dest: n, expr: count(*)}}\n  - {{dest: total, expr: sum(qty)}}\n{STRATEGIES}"
    )
}

/// A table of 200 rows in 9 groups.
fn fill(source: &End, stamp: &str) {
    let rows: Vec<String> = (1..=200)
        .map(|i| format!("({i}, 'item {i}', {}, {}, NOW)", i * 3, i % 9))
        .collect();
    source.change(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, name varchar(40) NOT NULL, qty int NOT NULL, grp int NOT NULL, updated_at {stamp} NOT NULL);
         INSERT INTO items VALUES {}",
        rows.join(", ")
    ));
}

fn pair(source: &End, destination: &End) {
    let stamp = match source {
        End::Maria(_) => "timestamp(6)",
        End::Postgres(_) => "timestamptz",
        _ => "timestamp",
    };
    fill(source, stamp);
    let place = Place::new(&[("from", source.entry()), ("to", destination.entry())]);
    place.write("rows.yaml", &rows_file("from"));
    place.write("totals.yaml", &totals_file("from"));
    for (strategy, change) in CHANGES {
        if !change.is_empty() {
            source.change(change);
        }
        for (file, from, table, columns) in [
            ("rows.yaml", "items", "copies", ROWS),
            ("totals.yaml", GROUPS, "totals", TOTALS),
        ] {
            let wanted = source.lines(from, columns);
            match destination.is_read() {
                // What cannot be read from outside is compared by ourselves, from the source's side.
                false => synctool_testkit::wait_for("equal ends", std::time::Duration::from_secs(30), || {
                    place.json(&["run", file, "--strategy", strategy], 0);
                    place.synctool(&["verify", file, "--strategy", "hash"]).status.success()
                }),
                true => place.until(
                    &["run", file, "--strategy", strategy],
                    || destination.lines(table, columns),
                    &wanted,
                ),
            }
        }
    }
    for file in ["rows.yaml", "totals.yaml"] {
        place.json(&["verify", file, "--strategy", "hash"], 0);
    }
}

pub(super) fn ends(name: &str) -> Vec<End> {
    vec![
        End::Postgres(database(name)),
        End::Maria(MariaDb::shared().database(name)),
        End::Sqlite(folder()),
        End::Csv(folder()),
        End::Parquet(folder()),
        #[cfg(feature = "duckdb")]
        End::DuckDb(folder()),
    ]
}

#[test]
fn from_postgresql_to_every_engine() {
    for to in ends("matrix_pg") {
        pair(&End::Postgres(database("matrix_from")), &to);
    }
}

#[test]
fn from_mariadb_to_every_engine() {
    for to in ends("matrix_maria") {
        pair(&End::Maria(MariaDb::shared().database("matrix_from")), &to);
    }
}

#[test]
fn from_sqlite_to_every_engine() {
    for to in ends("matrix_lite") {
        pair(&End::Sqlite(folder()), &to);
    }
}

/// DuckDB as a source. Its rows come from PostgreSQL, where they can be changed without us.
#[cfg(feature = "duckdb")]
#[test]
fn from_duckdb_by_every_strategy() {
    let (first, last) = (
        End::Postgres(database("through_duck_from")),
        End::Postgres(database("through_duck_to")),
    );
    let middle = End::DuckDb(folder());
    fill(&first, "timestamptz");
    let place = Place::new(&[
        ("first", first.entry()),
        ("middle", middle.entry()),
        ("to", last.entry()),
    ]);
    place.write(
        "in.yaml",
        "name: in\nsource: {datastore: first, table: items}\ndestination: {datastore: middle, table: items}\n\
         strategies: [{name: hash, type: hash}]\n",
    );
    place.write("rows.yaml", &rows_file("middle"));
    place.write("totals.yaml", &totals_file("middle"));
    for (strategy, change) in CHANGES {
        if !change.is_empty() {
            first.change(change);
        }
        place.json(&["run", "in.yaml"], 0);
        for (file, from, table, columns) in [
            ("rows.yaml", "items", "copies", ROWS),
            ("totals.yaml", GROUPS, "totals", TOTALS),
        ] {
            let wanted = first.lines(from, columns);
            let found = || last.lines(table, columns);
            place.until(&["run", file, "--strategy", strategy], found, &wanted);
        }
    }
    for file in ["rows.yaml", "totals.yaml"] {
        place.json(&["verify", file, "--strategy", "hash"], 0);
    }
}

/// Whoever reads an account of a swap wants to know what is new and what is gone.
#[test]
fn a_swap_counts_what_has_a_successor() {
    let mut all = vec![
        End::Postgres(database("swaps_to")),
        End::Maria(MariaDb::shared().database("swaps_to")),
        End::Sqlite(folder()),
    ];
    #[cfg(feature = "duckdb")]
    all.push(End::DuckDb(folder()));
    for to in all {
        let from = End::Postgres(database("swaps_from"));
        from.change("CREATE TABLE items(id int PRIMARY KEY, name varchar(9)); INSERT INTO items SELECT i, 'a' FROM generate_series(1, 10) i");
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\n\
             strategies: [{type: full, full_mode: swap}]\n",
        );
        place.json(&["run", "p.yaml"], 0);
        from.change("DELETE FROM items WHERE id < 3; INSERT INTO items VALUES (11, 'b'), (12, 'c'), (13, 'd')");
        let run = place.json(&["run", "p.yaml"], 0);
        let counts = ["read", "inserted", "updated", "deleted"].map(|c| run[c].as_u64());
        assert_eq!(counts, [11, 3, 8, 2].map(Some), "{run}");
    }
}
