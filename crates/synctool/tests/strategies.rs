//! Delta, hash and aggregate by the whole program between real servers: what the brief prints, writers that commit late,
//! comparisons across engines, and kill -9 at every kind of failpoint.

mod place;

use place::{Place, csv_lines, postgres};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use synctool_testkit::kill::{Action, KillRun, spread};
use synctool_testkit::{MariaDb, PgVersion, Postgres, TestDb, is_soak};

const ORDERS: &str = "CREATE TABLE orders(order_id int PRIMARY KEY, user_id int NOT NULL, amount numeric(10,2),
        discount numeric(10,2), order_date timestamp NOT NULL, updated_at timestamp NOT NULL);
    INSERT INTO orders VALUES (1, 101, 50.00, 0, '2024-01-15', '2024-01-15 10:00'),
        (2, 101, 30.00, 0, '2024-01-15', '2024-01-15 11:00'), (3, 102, 75.00, 0, '2024-01-15', '2024-01-15 12:00');";

const TOTALS: &str =
    "SELECT string_agg(concat_ws(' ', user_id, date, num_orders, amount, last_updated_at), ', ' ORDER BY user_id, date)
    FROM analytics.user_daily_orders_aggregate";

#[test]
fn the_brief_s_aggregate_gives_the_printed_table() {
    for version in [PgVersion::V15, PgVersion::V18] {
        let db = Postgres::shared(version).database("brief_aggregate");
        db.psql(ORDERS);
        let place = Place::new(&[("local_postgres", postgres(&db))]);
        place.write(
            "aggregate.yaml",
            include_str!("config/brief/user_daily_orders_aggregate.yaml"),
        );
        place.json(&["run", "aggregate.yaml"], 0);
        assert_eq!(
            db.psql(TOTALS).trim(),
            "101 2024-01-15 2 80.00 2024-01-15 11:00:00, 102 2024-01-15 1 75.00 2024-01-15 12:00:00"
        );
        db.psql("UPDATE orders SET amount = 40.00, updated_at = '2024-01-15 14:00' WHERE order_id = 2");
        // The stamp of the example lies in the past, so the window must reach back to it.
        db.psql("UPDATE synctool.memory SET value = '2024-01-15 13:00:00' WHERE fact LIKE 'delta:%'");
        place.json(&["run", "aggregate.yaml"], 0);
        assert_eq!(
            db.psql(TOTALS).trim(),
            "101 2024-01-15 2 90.00 2024-01-15 14:00:00, 102 2024-01-15 1 75.00 2024-01-15 12:00:00"
        );
        // An order that moves to another user corrects both, and a user without orders is gone.
        db.psql("UPDATE orders SET user_id = 101, updated_at = '2024-01-15 15:00' WHERE order_id = 3");
        db.psql("UPDATE synctool.memory SET value = '2024-01-15 14:30:00' WHERE fact LIKE 'delta:%'");
        place.json(&["run", "aggregate.yaml"], 0);
        assert_eq!(
            db.psql(TOTALS).trim(),
            "101 2024-01-15 3 165.00 2024-01-15 15:00:00",
            "the group that the row left is corrected too"
        );
    }
}

/// A schema means nothing to an SQLite file: the table there has the bare name, and `diff` finds it by that.
#[test]
fn a_pipeline_from_a_live_catalog_runs_as_written() {
    let db = Postgres::shared(PgVersion::V18).database("live_catalog");
    db.psql(ORDERS);
    let place = Place::new(&[("local_postgres", postgres(&db))]);
    place.json(
        &["init", &db.url(), "public.orders", "sqlite:copy.db", "--dir", "shop"],
        0,
    );
    place.json(&["run", "shop/orders.yaml"], 0);
    let equal = place.json(&["diff", &db.url(), "public.orders", "sqlite:copy.db", "orders"], 0);
    assert_eq!(equal["status"], "equal", "{equal}");
    let wrong = place.json(
        &["diff", &db.url(), "public.orders", "sqlite:copy.db", "public.orders"],
        2,
    );
    assert_eq!(wrong["error"]["code"], "ST-CFG-010", "{wrong}");
}

#[test]
fn the_brief_s_row_pipelines_run_as_printed() {
    let source = Postgres::shared(PgVersion::V18).database("brief_from");
    let dest = Postgres::shared(PgVersion::V18).database("brief_to");
    source.psql(
        "CREATE TABLE users(id int PRIMARY KEY, name text, email text, updated_at timestamp DEFAULT now());
         -- Older than what may still be open: a window that has not settled is rightly read once more.
         INSERT INTO users SELECT i, 'n' || i, 'e' || i, now() - interval '1 hour' FROM generate_series(1, 500) i",
    );
    let place = Place::new(&[("source_db", postgres(&source)), ("dest_db", postgres(&dest))]);
    for (name, text) in [
        ("first.yaml", include_str!("config/brief/my_first_pipeline.yaml")),
        ("rows.yaml", include_str!("config/brief/users_row_sync.yaml")),
    ] {
        dest.psql("DROP TABLE IF EXISTS users_copy");
        place.write(name, text);
        let first = place.json(&["run", name], 0);
        assert_eq!(first["inserted"], 500, "{name}: {first}");
        let again = place.json(&["run", name], 0);
        assert_eq!(
            again["read"].as_u64().unwrap() + again["inserted"].as_u64().unwrap(),
            0,
            "{name}: {again}"
        );
        place.json(&["verify", name], 0);
    }
}

/// Syncs beside the writers.
fn syncs() -> usize {
    if is_soak() { 100 } else { 50 }
}

/// Transactions of one call of a writer's client: a client started for each would take the processor from who reads.
const AT_ONCE: u32 = 10;

/// Writers of which some hold their transaction open, and many syncs all the while; every row must arrive, and be read
/// once. Returns the rows that were read, and how many there are.
fn late_commits(write: impl Fn(u32, u32) + Sync, sync: impl Fn() -> u64, rows: impl Fn() -> u64) -> (u64, u64) {
    let stop = AtomicBool::new(false);
    let mut reads = 0;
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let (write, stop) = (&write, &stop);
            scope.spawn(move || {
                for first in (0..).step_by(AT_ONCE as usize) {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    write(writer, first);
                }
            });
        }
        for _ in 0..syncs() {
            reads += sync();
        }
        while rows() < 2000 {
            reads += sync();
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The margin is a second: what was stamped last settles when it has passed.
    let settled = Instant::now() + Duration::from_secs(4);
    while Instant::now() < settled {
        reads += sync();
    }
    (reads, rows())
}

/// How long a writer holds its transaction open: one in ten does for 0.2 to 2 seconds. The others do for a moment, so that
/// writers leave some of the processor to who reads.
fn held(writer: u32, n: u32) -> f64 {
    match (writer + n).is_multiple_of(10) {
        true => 0.2 + f64::from(n % 7) * 0.3,
        false => 0.03,
    }
}

/// The transactions of one call of a writer's client, each by how long it is held open.
fn one_by_one(writer: u32, first: u32, transaction: impl Fn(f64) -> String) -> String {
    let numbers = first..first + AT_ONCE;
    numbers.map(|n| transaction(held(writer, n))).collect()
}

const EVENTS: &str = "name: late\nsource: {datastore: from, table: EVENTS}\ndestination: {datastore: to, table: EVENTS}\n\
    strategies: [{name: delta, type: delta, column: updated_at}]\n";

/// Between databases of PostgreSQL.
fn late_from_postgres(version: PgVersion) {
    let source = Postgres::shared(version).database("late_from");
    let dest = Postgres::shared(version).database("late_to");
    source.psql(
        "CREATE TABLE events(id bigserial PRIMARY KEY, writer int, updated_at timestamptz NOT NULL DEFAULT now())",
    );
    let place = Place::new(&[("from", postgres(&source)), ("to", postgres(&dest))]);
    place.write("late.yaml", &EVENTS.replace("EVENTS", "public.events"));
    let write = |writer: u32, first: u32| {
        source.psql(&one_by_one(writer, first, |held| {
            format!(
                "BEGIN; INSERT INTO events(writer) SELECT {writer} FROM generate_series(1, 5); SELECT pg_sleep({held}); COMMIT;\n"
            )
        }));
    };
    let sync = || place.json(&["run", "late.yaml"], 0)["read"].as_u64().expect("a count");
    let count = || {
        source
            .psql("SELECT count(*) FROM events")
            .trim()
            .parse()
            .expect("a count")
    };
    sync();
    let (reads, rows) = late_commits(write, sync, count);
    let ids = "SELECT md5(string_agg(id::text, ',' ORDER BY id)) FROM events";
    assert_eq!(
        dest.psql(ids),
        source.psql(ids),
        "{rows} rows were written, some are lost"
    );
    assert!(
        reads as f64 <= rows as f64 * 1.05,
        "{reads} reads of {rows} rows: each should be read once"
    );
}

#[test]
fn a_delta_loses_nothing_of_transactions_that_commit_late_pg15() {
    late_from_postgres(PgVersion::V15);
}

#[test]
fn a_delta_loses_nothing_of_transactions_that_commit_late_pg18() {
    late_from_postgres(PgVersion::V18);
}

#[test]
fn a_delta_from_mariadb_loses_nothing_either() {
    let server = MariaDb::shared().database("late_from");
    let dest = Postgres::shared(PgVersion::V18).database("late_maria");
    server.sql(
        "CREATE TABLE events(id bigint AUTO_INCREMENT PRIMARY KEY, writer int,
            updated_at timestamp(6) NOT NULL DEFAULT current_timestamp(6))",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", server.url())),
        ("to", postgres(&dest)),
    ]);
    place.write("late.yaml", &EVENTS.replace("EVENTS", "events"));
    let write = |writer: u32, first: u32| {
        let rows = vec![format!("({writer})"); 5].join(", ");
        server.sql(&one_by_one(writer, first, |held| {
            format!("START TRANSACTION; INSERT INTO events(writer) VALUES {rows}; SELECT sleep({held}); COMMIT;\n")
        }));
    };
    let sync = || place.json(&["run", "late.yaml"], 0)["read"].as_u64().expect("a count");
    let count = || {
        server
            .sql("SELECT count(*) FROM events")
            .trim()
            .parse()
            .expect("a count")
    };
    sync();
    let (reads, rows) = late_commits(write, sync, count);
    assert_eq!(dest.psql("SELECT count(*) FROM events").trim(), rows.to_string());
    assert!(reads as f64 <= rows as f64 * 1.05, "{reads} reads of {rows} rows");
}

#[test]
fn a_delta_without_the_right_to_see_transactions_is_refused() {
    let source = Postgres::shared(PgVersion::V18).database("blind_from");
    let dest = Postgres::shared(PgVersion::V18).database("blind_to");
    source.psql(
        "CREATE TABLE events(id int PRIMARY KEY, updated_at timestamptz DEFAULT now()); INSERT INTO events VALUES (1);
         DROP ROLE IF EXISTS blind; CREATE ROLE blind LOGIN; GRANT SELECT ON events TO blind",
    );
    let from = format!(
        "{{type: postgres, connection: {{url: \"{}\"}}}}",
        source.url_as("blind")
    );
    let place = Place::new(&[("from", from), ("to", postgres(&dest))]);
    place.write("late.yaml", &EVENTS.replace("EVENTS", "public.events"));
    // Somebody else's session is what it cannot see.
    let other = source.url();
    let mut holder = Command::new("psql")
        .args(["-qX", &other, "-c", "BEGIN; SELECT 1; SELECT pg_sleep(30)"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("psql starts");
    synctool_testkit::wait_for("the other session", Duration::from_secs(20), || {
        source.psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND datname = current_database() AND pid <> pg_backend_pid()").trim() != "0"
    });
    let refused = place.synctool(&["run", "late.yaml"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    let _ = holder.kill();
    let _ = holder.wait();
    assert!(!refused.status.success(), "{told}");
    assert!(told.contains("pg_read_all_stats"), "the missing grant is named: {told}");
}

const ITEMS: &str = "CREATE TABLE items(id bigint PRIMARY KEY, qty int, price numeric(12,2), note varchar(200), day date);
    INSERT INTO items SELECT i, i % 100, i / 8.0, CASE WHEN i % 3 = 0 THEN NULL WHEN i % 7 = 0 THEN '' ELSE 'näme ' || i END,
        date '2024-01-01' + (i % 500)::int FROM generate_series(1, 3000) i;";

#[test]
fn differences_are_found_and_mended_across_engines() {
    let source = Postgres::shared(PgVersion::V18).database("diff_from");
    source.psql(ITEMS);
    let maria = MariaDb::shared().database("diff_to");
    let other = Postgres::shared(PgVersion::V15).database("diff_to");
    let place = Place::new(&[
        ("from", postgres(&source)),
        ("postgres", postgres(&other)),
        ("maria", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("lite", "{type: sqlite, path: copy.db}".into()),
    ]);
    let change = "DELETE FROM items WHERE id IN (5, 1500); UPDATE items SET note = 'changed here' WHERE id = 700;
        INSERT INTO items VALUES (9001, 1, 1, 'too many', NULL)";
    for to in ["postgres", "maria", "lite"] {
        let name = format!("{to}.yaml");
        place.write(
            &name,
            &format!(
                "name: to_{to}\nsource: {{datastore: from, table: public.items}}\n\
                 destination: {{datastore: {to}, table: items}}\n\
                 strategies: [{{name: full, type: full}}, {{name: hash, type: hash}}]\n"
            ),
        );
        place.json(&["run", &name, "--strategy", "full"], 0);
        let equal = place.json(&["verify", &name], 0);
        assert_eq!(equal["compared"]["source"], 3000, "{to}: {equal}");
        match to {
            "postgres" => drop(other.psql(change)),
            "maria" => change.split(';').for_each(|sql| drop(maria.sql(sql))),
            _ => rusqlite::Connection::open(place.path().join("copy.db"))
                .expect("opens")
                .execute_batch(change)
                .expect("changes"),
        }
        let found = place.json(&["verify", &name], 3);
        let compared = &found["compared"];
        assert_eq!(
            (
                &compared["differing"],
                &compared["only_source"],
                &compared["only_destination"]
            ),
            (&1.into(), &2.into(), &1.into()),
            "{to}: {found}"
        );
        let shown = place.json(&["repair", &name, "--dry-run"], 3);
        assert_eq!(shown["compared"], found["compared"], "{to}: looking changes nothing");
        let mended = place.json(&["repair", &name], 0);
        assert_eq!(
            (&mended["inserted"], &mended["updated"], &mended["deleted"]),
            (&2.into(), &1.into(), &1.into()),
            "{to}: {mended}"
        );
        place.json(&["verify", &name], 0);
        let nothing = place.json(&["run", &name, "--strategy", "hash"], 0);
        assert_eq!(nothing["read"], 0, "{to}: {nothing}");
    }
}

/// Kills per failpoint.
fn kills() -> usize {
    if is_soak() { 200 } else { 8 }
}

/// A part of them, and one at least.
fn kills_by(part: usize) -> usize {
    (kills() / part).max(1)
}

/// Where rows go.
enum To {
    Postgres(TestDb),
    Maria(synctool_testkit::MariaDbDatabase),
    Sqlite(tempfile::TempDir),
    Csv(tempfile::TempDir),
}

impl To {
    fn entry(&self) -> String {
        match self {
            To::Postgres(db) => postgres(db),
            To::Maria(db) => format!("{{type: mysql, url: \"{}\"}}", db.url()),
            To::Sqlite(folder) => format!("{{type: sqlite, path: \"{}\"}}", folder.path().join("to.db").display()),
            To::Csv(folder) => format!("{{type: csv, path: \"{}\"}}", folder.path().join("lake").display()),
        }
    }

    fn empty(&self) {
        match self {
            To::Postgres(db) => drop(
                db.psql("DROP SCHEMA IF EXISTS synctool CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public"),
            ),
            To::Maria(db) => {
                let tables = db.sql("SELECT table_name FROM information_schema.tables WHERE table_schema = database()");
                tables.lines().for_each(|t| drop(db.sql(&format!("DROP TABLE `{t}`"))));
            }
            To::Sqlite(folder) => ["to.db", "to.db-wal", "to.db-shm"]
                .iter()
                .for_each(|f| drop(std::fs::remove_file(folder.path().join(f)))),
            To::Csv(folder) => drop(std::fs::remove_dir_all(folder.path().join("lake"))),
        }
    }

    /// Some columns of all rows, as lines.
    fn rows(&self, columns: &[&str]) -> String {
        let tail = format!("FROM copies ORDER BY {}", columns[0]);
        match self {
            To::Postgres(db) => db
                .psql(&format!("SELECT concat_ws(' ', {}) {tail}", columns.join(", ")))
                .trim()
                .into(),
            To::Maria(db) => db
                .sql(&format!("SELECT concat_ws(' ', {}) {tail}", columns.join(", ")))
                .trim()
                .into(),
            To::Sqlite(folder) => {
                let connection = rusqlite::Connection::open(folder.path().join("to.db")).expect("opens");
                let mut select = connection
                    .prepare(&format!("SELECT {} {tail}", columns.join(" || ' ' || ")))
                    .expect("a table");
                let rows = select.query_map([], |row| row.get::<_, String>(0)).expect("rows");
                rows.collect::<Result<Vec<_>, _>>().expect("rows").join("\n")
            }
            To::Csv(folder) => csv_lines(&folder.path().join("lake/copies"), columns),
        }
    }
}

/// What a run is killed in.
struct Killed<'a> {
    pipeline: String,
    /// What is done at both ends before anything runs.
    prepare: &'a dyn Fn(&TestDb, &To),
    /// What happens at the source after a first, undisturbed run; without it, the first run is the one that is killed.
    changes: Option<&'a str>,
    /// The destination's columns, and the query of the source that has the same.
    columns: &'a [&'a str],
    wanted: &'a str,
}

/// Killed at so many moments of each failpoint, a run that is begun again ends as an undisturbed one.
fn killed_everywhere(to: &To, kills: usize, killed: &Killed) {
    let source = Postgres::shared(PgVersion::V18).database("killed_from");
    let place = Place::new(&[("from", postgres(&source)), ("to", to.entry())]);
    place.write("killed.yaml", &killed.pipeline);
    let command = place.command(&["run", "killed.yaml", "--output", "json"]);
    let wanted = || {
        let lines = format!(
            "SELECT concat_ws(' ', {}) FROM ({}) w",
            killed.columns.join(", "),
            killed.wanted
        );
        source
            .psql(&format!("{lines} ORDER BY {}", killed.columns[0]))
            .trim()
            .to_owned()
    };
    let fresh = || {
        source.psql("DROP TABLE IF EXISTS items CASCADE");
        to.empty();
        let _ = std::fs::remove_dir_all(place.path().join("data"));
        source.psql(
            "CREATE TABLE items(id bigint PRIMARY KEY, grp int, v int, updated_at timestamptz NOT NULL DEFAULT now());
             INSERT INTO items SELECT i, i % 20, i, now() - interval '1 hour' FROM generate_series(1, 400) i",
        );
        (killed.prepare)(&source, to);
        if let Some(changes) = killed.changes {
            KillRun::new(&command).run().assert_success();
            assert_eq!(to.rows(killed.columns), wanted(), "the first run");
            // Changes lie behind the watermark and have settled.
            source.psql(changes);
            synctool_testkit::wait_for("the changes to settle", Duration::from_secs(10), || {
                source
                    .psql("SELECT now() - max(updated_at) > interval '50 ms' FROM items")
                    .trim()
                    == "t"
            });
        }
    };
    fresh();
    let points = KillRun::new(&command).failpoints_reached();
    assert_eq!(to.rows(killed.columns), wanted(), "undisturbed");
    let points = spread(&points, kills);
    assert!(points.len() > 5, "only {} failpoints", points.len());
    for point in &points {
        fresh();
        let outcome = KillRun::new(&command).accident(point, Action::Kill).run();
        assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
        let again = KillRun::new(&command).run();
        assert_eq!(
            again.code,
            Some(0),
            "killed at {point}, the next run failed: {}",
            again.stderr
        );
        assert_eq!(to.rows(killed.columns), wanted(), "killed at {point}");
    }
}

fn to_postgres() -> To {
    To::Postgres(Postgres::shared(PgVersion::V18).database("killed_to"))
}

const ROWS: &[&str] = &["id", "grp", "v"];

/// Of rows, by one strategy.
fn rows_by(strategy: &str) -> String {
    format!(
        "name: k\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: copies}}\n\
         strategies: [{{name: it, {strategy}}}]\n"
    )
}

#[test]
fn a_hash_run_killed_anywhere_ends_equal() {
    killed_everywhere(
        &to_postgres(),
        kills(),
        &Killed {
            pipeline: rows_by("type: hash"),
            prepare: &|source, to| {
                let To::Postgres(dest) = to else { return };
                dest.psql(
                    "CREATE TABLE copies(id bigint PRIMARY KEY, grp int, v int, updated_at timestamptz NOT NULL)",
                );
                let rows = source
                    .psql("SELECT string_agg(format('(%s, %s, %s, %L)', id, grp, v, updated_at), ',') FROM items");
                dest.psql(&format!("INSERT INTO copies VALUES {rows}"));
                dest.psql("DELETE FROM copies WHERE id % 97 = 0; UPDATE copies SET v = -1 WHERE id % 89 = 0; INSERT INTO copies VALUES (900, 1, 1, now())");
            },
            changes: None,
            columns: ROWS,
            wanted: "SELECT * FROM items",
        },
    );
}

/// A comparison after a first run: rows that changed without a new stamp, came and went.
fn a_later_hash_run(to: &To) {
    killed_everywhere(
        to,
        kills_by(12),
        &Killed {
            pipeline: rows_by("type: hash"),
            prepare: &|_, _| (),
            changes: Some(
                "UPDATE items SET v = -1 WHERE id % 89 = 0; DELETE FROM items WHERE id % 97 = 0; INSERT INTO items SELECT i, 1, i FROM generate_series(501, 510) i",
            ),
            columns: ROWS,
            wanted: "SELECT * FROM items",
        },
    );
}

#[test]
fn a_hash_run_into_mariadb_killed_anywhere_ends_equal() {
    a_later_hash_run(&To::Maria(MariaDb::shared().database("killed_to")));
}

#[test]
fn a_hash_run_into_sqlite_killed_anywhere_ends_equal() {
    a_later_hash_run(&To::Sqlite(tempfile::tempdir().expect("a folder")));
}

/// A newer program's control tables are refused, and nothing beside them is touched.
#[test]
fn control_tables_of_a_newer_version_are_left_alone() {
    let source = Postgres::shared(PgVersion::V18).database("newer_from");
    source.psql(
        "CREATE TABLE items(id bigint PRIMARY KEY, v int); INSERT INTO items SELECT i, i FROM generate_series(1, 50) i",
    );
    for to in [
        to_postgres(),
        To::Maria(MariaDb::shared().database("newer_to")),
        To::Sqlite(tempfile::tempdir().expect("a folder")),
    ] {
        let place = Place::new(&[("from", postgres(&source)), ("to", to.entry())]);
        place.write("newer.yaml", &rows_by("type: hash"));
        place.json(&["run", "newer.yaml"], 0);
        let before = to.rows(&["id", "v"]);
        match &to {
            To::Postgres(db) => drop(db.psql("UPDATE synctool.format_version SET version = 99")),
            To::Maria(db) => drop(db.sql("UPDATE _synctool_format_version SET version = 99")),
            To::Sqlite(folder) => rusqlite::Connection::open(folder.path().join("to.db"))
                .expect("opens")
                .execute_batch("UPDATE _synctool_format_version SET version = 99")
                .expect("changed"),
            To::Csv(_) => unreachable!("files have no control tables"),
        }
        source.psql("UPDATE items SET v = v + 1");
        let refused = place.synctool(&["run", "newer.yaml"]);
        let told = String::from_utf8_lossy(&refused.stderr);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        assert!(told.contains("ST-STA-001") && told.contains("99"), "{told}");
        assert_eq!(to.rows(&["id", "v"]), before, "{told}");
    }
}

const DELTA: &str = "type: delta, column: updated_at, deletes: anti_join, margin: 1ms";

#[test]
fn a_first_delta_killed_anywhere_ends_equal() {
    killed_everywhere(
        &to_postgres(),
        kills(),
        &Killed {
            pipeline: rows_by(DELTA),
            prepare: &|_, _| (),
            changes: None,
            columns: ROWS,
            wanted: "SELECT * FROM items",
        },
    );
}

/// Rows that changed, came and went, in windows of an hour.
fn a_later_delta(to: &To, kills: usize) {
    killed_everywhere(
        to,
        kills,
        &Killed {
            pipeline: rows_by(&format!(
                "{DELTA}, primary_partitions: [{{column: updated_at, step: 1, step_unit: hour}}]"
            )),
            prepare: &|_, _| (),
            changes: Some(
                "UPDATE items SET v = -v, updated_at = now() WHERE id % 10 = 1; DELETE FROM items WHERE id % 10 = 2;
                 UPDATE items SET id = id + 1000, updated_at = now() WHERE id % 50 = 3; INSERT INTO items SELECT i, 1, i FROM generate_series(501, 520) i",
            ),
            columns: ROWS,
            wanted: "SELECT * FROM items",
        },
    );
}

#[test]
fn a_delta_killed_anywhere_ends_equal() {
    a_later_delta(&to_postgres(), kills_by(4));
}

#[test]
fn a_delta_into_mariadb_killed_anywhere_ends_equal() {
    a_later_delta(&To::Maria(MariaDb::shared().database("killed_to")), kills_by(6));
}

#[test]
fn a_delta_into_sqlite_killed_anywhere_ends_equal() {
    a_later_delta(&To::Sqlite(tempfile::tempdir().expect("a folder")), kills_by(6));
}

#[test]
fn a_delta_into_files_killed_anywhere_ends_equal() {
    a_later_delta(&To::Csv(tempfile::tempdir().expect("a folder")), kills_by(4));
}

fn an_aggregate(to: &To, kills: usize, changes: Option<&str>) {
    killed_everywhere(
        to,
        kills,
        &Killed {
            pipeline: rows_by(DELTA).replace(
                "strategies",
                "sync_type: aggregate\ngroup_by: [grp]\ncolumns: [grp, {dest: n, expr: count(*)}, {dest: total, expr: sum(v)}]\nstrategies",
            ),
            prepare: &|_, _| (),
            changes,
            columns: &["grp", "n", "total"],
            wanted: "SELECT grp, count(*) n, sum(v) total FROM items GROUP BY grp",
        },
    );
}

#[test]
fn a_first_aggregate_killed_anywhere_ends_equal() {
    an_aggregate(&to_postgres(), kills_by(4), None);
}

/// Groups that rows moved to and from, that came, and that lost all their rows by moves or deletes.
fn a_later_aggregate(to: &To, kills: usize) {
    let changes = "UPDATE items SET grp = grp + 1, updated_at = now() WHERE grp IN (3, 7) AND id % 3 = 0; UPDATE items SET grp = 30, updated_at = now() WHERE grp = 11;
         DELETE FROM items WHERE grp IN (5, 6); DELETE FROM items WHERE grp = 8 AND id > 100; UPDATE items SET v = v + 1, updated_at = now() WHERE id = 9;
         INSERT INTO items SELECT i, 40, i FROM generate_series(501, 520) i";
    an_aggregate(to, kills, Some(changes));
}

#[test]
fn an_aggregate_killed_anywhere_ends_equal() {
    a_later_aggregate(&to_postgres(), kills_by(4));
}

#[test]
fn an_aggregate_into_mariadb_killed_anywhere_ends_equal() {
    a_later_aggregate(&To::Maria(MariaDb::shared().database("killed_to")), kills_by(12));
}

#[test]
fn an_aggregate_into_sqlite_killed_anywhere_ends_equal() {
    a_later_aggregate(&To::Sqlite(tempfile::tempdir().expect("a folder")), kills_by(12));
}

/// Groups, key map and position are files, and one commit all the same.
#[test]
fn an_aggregate_into_files_killed_anywhere_ends_equal() {
    a_later_aggregate(&To::Csv(tempfile::tempdir().expect("a folder")), kills_by(4));
}
