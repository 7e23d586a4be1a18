//! Tables that are files, as sources: what is read of them, and what is refused.

use super::matrix::{End, folder};
use super::*;

/// Number, name and stamp; a stamp may be missing.
type Rows = [(i32, &'static str, &'static str)];

const BEFORE: &Rows = &[
    (1, "a", "2024-01-01 00:00:00"),
    (2, "b", "2024-01-01 00:00:01"),
    (3, "c", "2024-01-02 00:00:00"),
    (4, "d", ""),
];

/// A row changed with its stamp, one without, one came, and the one with the latest stamp went.
const AFTER: &Rows = &[
    (1, "one", "2024-01-03 00:00:00"),
    (2, "unseen", "2024-01-01 00:00:01"),
    (4, "d", ""),
    (5, "five", "2024-01-03 00:00:00"),
];

fn pipeline(stamped: &str) -> String {
    format!(
        "name: rows\nsource: {{datastore: files, table: items}}\ndestination: {{datastore: to, table: copies}}\nkey: [id]\n\
         strategies:\n  - {{name: delta, type: delta, column: updated_at, {stamped}deletes: anti_join}}\n  - {{name: hash, type: hash}}\n"
    )
}

/// A delta from files whose rows `put` replaces, into `to`.
fn follows(place: &Place, to: &End, put: impl Fn(&Rows)) {
    place.write("rows.yaml", &pipeline("stamped_by: app, lag: 1m, "));
    let run = |strategy: &str| {
        let run = place.json(&["run", "rows.yaml", "--strategy", strategy], 0);
        ["inserted", "updated", "deleted"].map(|c| run[c].as_u64().expect("a number"))
    };
    let copies = || to.lines("copies", &["id", "name"]);
    put(BEFORE);
    assert_eq!(run("delta"), [4, 0, 0]);
    assert_eq!(copies(), "1 a\n2 b\n3 c\n4 d");
    put(AFTER);
    assert_eq!(run("delta"), [1, 1, 1]);
    assert_eq!(
        copies(),
        "1 one\n2 b\n4 d\n5 five",
        "what has its old stamp is not seen"
    );
    assert_eq!(run("hash"), [0, 1, 0]);
    assert_eq!(copies(), "1 one\n2 unseen\n4 d\n5 five");
    assert_eq!(run("delta"), [0, 0, 0]);
    place.json(&["verify", "rows.yaml", "--strategy", "hash"], 0);
}

#[test]
fn a_delta_reads_files_of_our_own() {
    for files in [End::Csv(folder()), End::Parquet(folder())] {
        let (origin, to) = (End::Sqlite(folder()), End::Sqlite(folder()));
        origin.change("CREATE TABLE items(id int PRIMARY KEY, name varchar(40) NOT NULL, updated_at timestamp)");
        let place = Place::new(&[("origin", origin.entry()), ("files", files.entry()), ("to", to.entry())]);
        place.write(
            "fill.yaml",
            "name: fill\nsource: {datastore: origin, table: items}\ndestination: {datastore: files, table: items}\n\
             strategies: [{type: full}]\n",
        );
        follows(&place, &to, |rows| {
            origin.change("DELETE FROM items");
            for (id, name, stamp) in rows {
                origin.change(&format!(
                    "INSERT INTO items VALUES ({id}, '{name}', nullif('{stamp}', ''))"
                ));
            }
            place.json(&["run", "fill.yaml"], 0);
        });
    }
}

#[test]
fn a_delta_reads_files_of_others() {
    let (files, to) = (End::Csv(folder()), End::Sqlite(folder()));
    let place = Place::new(&[("files", files.entry()), ("to", to.entry())]);
    let End::Csv(beside) = &files else { unreachable!() };
    follows(&place, &to, |rows| {
        let lines = rows.iter().map(|(id, name, stamp)| format!("{id},{name},{stamp}\n"));
        let text = format!("id,name,updated_at\n{}", lines.collect::<String>());
        std::fs::write(beside.path().join("items.csv"), text).expect("written");
    });
}

/// No transactions, no database's clock; and nothing that computes. Each is said with what to do, before anything is made.
#[test]
fn what_files_cannot_do_is_refused() {
    let (files, to) = (End::Csv(folder()), End::Sqlite(folder()));
    let place = Place::new(&[("files", files.entry()), ("to", to.entry())]);
    let End::Csv(beside) = &files else { unreachable!() };
    let text = "id,grp,qty,updated_at\n1,1,5,2024-01-01 00:00:00\n2,1,6,2024-01-02 00:00:00\n";
    std::fs::write(beside.path().join("items.csv"), text).expect("written");
    let refused = |file: &str, strategy: &str, parts: &[&str]| {
        for command in ["plan", "run"] {
            let output = place.synctool(&[command, file, "--strategy", strategy]);
            let told = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{command} {strategy}: {told}");
            for part in parts {
                assert!(told.contains(part), "{command} {strategy}: no {part:?} in {told}");
            }
        }
    };
    place.write("rows.yaml", &pipeline(""));
    refused(
        "rows.yaml",
        "delta",
        &["csv shows no open transactions", "set `stamped_by: app` with a lag"],
    );
    place.write(
        "totals.yaml",
        "name: totals\nsource: {datastore: files, table: items}\ndestination: {datastore: to, table: totals}\nsync_type: aggregate\n\
         group_by: [grp]\ncolumns:\n  - grp\n  - {dest: total, expr: sum(qty)}\nstrategies:\n  \
         - {name: delta, type: delta, column: updated_at, stamped_by: app, lag: 1m}\n  - {name: hash, type: hash}\n  - {name: full, type: full}\n",
    );
    for strategy in ["delta", "hash", "full"] {
        refused(
            "totals.yaml",
            strategy,
            &[
                "csv computes nothing: it cannot read grouping by grp",
                "or load the files into a database first",
            ],
        );
    }
    let End::Sqlite(database) = &to else { unreachable!() };
    let made = rusqlite::Connection::open(database.path().join("x.db"))
        .and_then(|db| {
            let query = "SELECT count(*) FROM sqlite_master WHERE name IN ('copies', 'totals')";
            db.query_row(query, [], |row| row.get::<_, i64>(0))
        })
        .expect("a database");
    assert_eq!(made, 0);
}
