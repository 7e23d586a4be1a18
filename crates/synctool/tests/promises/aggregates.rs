//! Groups: those that rows left, those that vanished, and what a run says it did.

use super::*;

const ORDERS: &str =
    "CREATE TABLE orders(id int PRIMARY KEY, grp int, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO orders SELECT i, i % 40, i, now() - interval '1 hour' FROM generate_series(1, 2000) i";

fn pipeline(deletes: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.orders}}\ndestination: {{datastore: to, table: public.totals}}\n\
         sync_type: aggregate\ngroup_by: [grp]\ncolumns:\n  - grp\n  - {{dest: n, expr: count(*)}}\n  \
         - {{dest: total, expr: sum(v)}}\nstrategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms{deletes}}}\n  \
         - {{name: hash, type: hash}}\n"
    )
}

const WANTED: &str = "SELECT string_agg(concat_ws(' ', coalesce(grp::text, '-'), n, total), ', ' ORDER BY grp) FROM
    (SELECT grp, count(*) n, sum(v) total FROM orders GROUP BY grp) g";
const FOUND: &str =
    "SELECT string_agg(concat_ws(' ', coalesce(grp::text, '-'), n, total), ', ' ORDER BY grp) FROM totals";

#[test]
fn groups_that_vanished_are_removed_by_a_delta() {
    let db = database("vanished");
    db.psql(ORDERS);
    let place = here(&db);
    place.write("p.yaml", &pipeline(", deletes: anti_join"));
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!(db.psql(FOUND), db.psql(WANTED));
    // One group loses all its rows, one loses some, one row moves out of a group that then is empty.
    db.psql(
        "DELETE FROM orders WHERE grp = 7; DELETE FROM orders WHERE grp = 8 AND id > 1000;
         DELETE FROM orders WHERE grp = 9 AND id > 9; UPDATE orders SET grp = 10, updated_at = now() WHERE grp = 9",
    );
    place.until(
        &["run", "p.yaml", "--strategy", "delta"],
        || db.psql(FOUND),
        db.psql(WANTED).trim(),
    );
    let keys = db.psql("SELECT count(*) FROM orders").trim().to_owned();
    let map = db.psql("SELECT format('SELECT count(*) FROM %I', relname) FROM pg_class WHERE relname LIKE '\\_synctool\\_keys\\_%' AND relkind = 'r'");
    assert_eq!(
        db.psql(map.trim()).trim(),
        keys,
        "the key map forgets rows that are gone"
    );
}

#[test]
fn groups_that_vanished_are_removed_by_a_comparison() {
    let db = database("vanished_hash");
    db.psql(ORDERS);
    let place = here(&db);
    place.write("p.yaml", &pipeline(""));
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    db.psql("DELETE FROM orders WHERE grp IN (7, 11)");
    let told = place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    assert!(
        told.contains("deletes: anti_join"),
        "the plan says what it does not see: {told}"
    );
    let mended = place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(mended["deleted"], 2, "{mended}");
    assert_eq!(db.psql(FOUND), db.psql(WANTED));
}

#[test]
fn a_run_counts_groups_and_not_its_own_notes() {
    let db = database("own_rows");
    db.psql(ORDERS);
    let place = here(&db);
    place.write("p.yaml", &pipeline(", deletes: anti_join"));
    let first = place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!(
        (&first["inserted"], &first["updated"], &first["deleted"]),
        (&40.into(), &0.into(), &0.into()),
        "{first}"
    );
    db.psql("UPDATE orders SET v = v + 1, updated_at = now() WHERE grp IN (3, 4) AND id < 100; DELETE FROM orders WHERE grp = 5");
    let (mut updated, mut deleted) = (0, 0);
    synctool_testkit::wait_for("the groups to be right", std::time::Duration::from_secs(30), || {
        let run = place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
        updated += run["updated"].as_u64().unwrap_or_default();
        deleted += run["deleted"].as_u64().unwrap_or_default();
        assert_eq!(run["inserted"], 0, "{run}");
        db.psql(FOUND) == db.psql(WANTED)
    });
    assert_eq!((updated, deleted), (2, 1), "two groups changed, one went");
    let idle = place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    assert_eq!((&idle["read"], &idle["updated"]), (&0.into(), &0.into()), "{idle}");
}

/// No key takes rows without a group; an expression makes them one, which rows move into and out of.
#[test]
fn rows_without_a_group_get_one_by_an_expression() {
    let db = database("null_group");
    db.psql(ORDERS);
    db.psql("UPDATE orders SET grp = NULL WHERE id % 50 = 3");
    let place = here(&db);
    place.write("p.yaml", &pipeline(", deletes: anti_join"));
    let plan = place.json(&["plan", "p.yaml", "--strategy", "delta"], 0).to_string();
    assert!(plan.contains("coalesce(grp, …)"), "{plan}");
    let refused = place.json(&["run", "p.yaml", "--strategy", "delta"], 1).to_string();
    assert!(refused.contains("coalesce"), "the next step is said: {refused}");
    let with = pipeline(", deletes: anti_join").replace("  - grp\n", "  - {dest: grp, expr: \"coalesce(grp, -1)\"}\n");
    place.write("q.yaml", &with.replace("name: p\n", "name: q\n"));
    let run = ["run", "q.yaml", "--strategy", "delta"];
    let wanted = WANTED
        .replace("SELECT grp, count", "SELECT coalesce(grp, -1) AS grp, count")
        .replace("BY grp) g", "BY 1) g");
    place.json(&run, 0);
    assert_eq!(db.psql(FOUND), db.psql(&wanted));
    db.psql(
        "UPDATE orders SET grp = NULL, updated_at = now() WHERE id = 7; UPDATE orders SET grp = 9, updated_at = now() WHERE id = 103;
         UPDATE orders SET v = v + 1, updated_at = now() WHERE id = 153; DELETE FROM orders WHERE id = 203",
    );
    place.until(&run, || db.psql(FOUND), db.psql(&wanted).trim());
    let again = place.json(&["run", "q.yaml", "--strategy", "hash"], 0);
    let written = ["inserted", "updated", "deleted"].map(|k| again[k].as_u64());
    assert_eq!(written, [Some(0); 3], "{again}");
    db.psql("DELETE FROM orders WHERE grp IS NULL");
    place.until(&run, || db.psql(FOUND), db.psql(&wanted).trim());
}

/// Groups of PostgreSQL at other engines: computed, corrected and removed as at PostgreSQL.
fn groups_at(db: &TestDb, to: String, table: &str, found: impl Fn() -> String) {
    db.psql(ORDERS);
    let place = Place::new(&[("from", postgres(db)), ("to", to)]);
    place.write(
        "p.yaml",
        &pipeline(", deletes: anti_join").replace("public.totals", table),
    );
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    const WANTED: &str = "SELECT concat_ws(' ', grp, n, total) FROM (SELECT grp, count(*) n, sum(v) total FROM orders GROUP BY grp) g ORDER BY grp";
    assert_eq!(found().trim(), db.psql(WANTED).trim());
    db.psql(
        "DELETE FROM orders WHERE grp = 7; UPDATE orders SET grp = 10, updated_at = now() WHERE grp = 9;
         UPDATE orders SET v = v + 5, updated_at = now() WHERE id % 400 = 3; INSERT INTO orders VALUES (5000, 77, 1)",
    );
    place.until(&run, &found, db.psql(WANTED).trim());
    db.psql("DELETE FROM orders WHERE grp = 11");
    let mended = place.json(&["run", "p.yaml", "--strategy", "hash"], 0);
    assert_eq!(mended["deleted"], 1, "{mended}");
    assert_eq!(found().trim(), db.psql(WANTED).trim());
}

#[test]
fn groups_are_kept_at_sqlite() {
    let db = database("groups_at_sqlite");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("totals.db");
    let entry = format!("{{type: sqlite, path: \"{}\"}}", file.display());
    groups_at(&db, entry, "totals", || {
        let connection = rusqlite::Connection::open(&file).unwrap();
        let mut rows = connection
            .prepare("SELECT grp || ' ' || n || ' ' || total FROM totals ORDER BY grp")
            .unwrap();
        let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join("\n")
    });
}

#[test]
fn groups_are_kept_at_mariadb() {
    let db = database("groups_at_maria");
    let maria = MariaDb::shared().database("groups_at_maria");
    groups_at(
        &db,
        format!("{{type: mysql, url: \"{}\"}}", maria.url()),
        "totals",
        || maria.sql("SELECT concat(grp, ' ', n, ' ', total) FROM totals ORDER BY grp"),
    );
}

/// After random inserts, updates, moves and deletes, delta after delta equals a full recomputation.
#[test]
fn any_history_of_changes_equals_a_recomputation() {
    let db = database("any_history");
    db.psql(ORDERS);
    let place = here(&db);
    place.write("p.yaml", &pipeline(", deletes: anti_join"));
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    let seed: f64 = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1.0);
    for round in 0..6 {
        let seed = ((seed / 7919.0 + f64::from(round) * 0.1371) % 1.0).abs();
        db.psql(&format!(
            "SELECT setseed({seed});
             CREATE TEMP TABLE picked AS SELECT id, random() AS r, (random() * 45)::int AS g FROM orders;
             DELETE FROM orders o USING picked p WHERE p.id = o.id AND r < 0.05;
             DELETE FROM orders WHERE grp = {round};
             UPDATE orders o SET grp = g, updated_at = now() FROM picked p WHERE p.id = o.id AND r BETWEEN 0.05 AND 0.15;
             UPDATE orders o SET v = v + 3, updated_at = now() FROM picked p WHERE p.id = o.id AND r BETWEEN 0.15 AND 0.2;
             INSERT INTO orders SELECT {round} * 1000 + 10000 + i, (random() * 60)::int, i FROM generate_series(1, 50) i"
        ));
        place.until(
            &["run", "p.yaml", "--strategy", "delta"],
            || db.psql(FOUND),
            db.psql(WANTED).trim(),
        );
    }
}

/// The same between MariaDB and PostgreSQL.
#[test]
fn groups_of_mariadb_are_kept_at_postgresql() {
    let maria = MariaDb::shared().database("groups");
    let db = database("groups_of_maria");
    maria.sql(
        "CREATE TABLE orders(id int PRIMARY KEY, grp varchar(20), v int NOT NULL, updated_at timestamp(6) NOT NULL DEFAULT current_timestamp(6));
         INSERT INTO orders SELECT seq, concat('group ', seq % 30), seq, current_timestamp(6) - interval 1 hour FROM seq_1_to_1000",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("to", postgres(&db)),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: orders}\ndestination: {datastore: to, table: public.totals}\nsync_type: aggregate\n\
         group_by: [grp]\ncolumns:\n  - grp\n  - {dest: n, expr: count(*)}\n  - {dest: total, expr: sum(v)}\n\
         strategies: [{name: delta, type: delta, column: updated_at, margin: 1ms, deletes: anti_join}]\n",
    );
    place.json(&["run", "p.yaml"], 0);
    let wanted = || {
        let rows = maria.sql("SELECT concat(grp, ' ', n, ' ', total) FROM (SELECT grp, count(*) n, sum(v) total FROM orders GROUP BY grp) g ORDER BY grp");
        rows.trim().to_owned()
    };
    let found = || db.psql("SELECT concat_ws(' ', grp, n, total) FROM totals ORDER BY grp COLLATE \"C\"");
    assert_eq!(found().trim(), wanted());
    maria.sql(
        "DELETE FROM orders WHERE grp = 'group 7'; UPDATE orders SET grp = 'group 9', updated_at = current_timestamp(6) WHERE id IN (1, 2);
         INSERT INTO orders(id, grp, v) VALUES (5000, 'group 99', 1)",
    );
    place.until(&["run", "p.yaml"], found, &wanted());
}
