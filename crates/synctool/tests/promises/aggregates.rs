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

/// Where a stage writes groups otherwise than they are read, and in the same type.
#[test]
fn groups_that_a_stage_names_are_removed_when_they_vanish() {
    let db = database("vanished_named");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, grp text NOT NULL, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO orders SELECT i, 'g' || i % 40, i, now() - interval '1 hour' FROM generate_series(1, 2000) i",
    );
    let place = here(&db);
    let named = "transform: [{compute: {name: grp, expression: upper(grp)}}]\n";
    place.write("p.yaml", &(pipeline(", deletes: anti_join") + named));
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    let found = || db.psql(FOUND);
    let wanted = || db.psql(&WANTED.replace("grp, count", "upper(grp) AS grp, count"));
    assert_eq!(found(), wanted());
    db.psql(
        "DELETE FROM orders WHERE grp = 'g7'; DELETE FROM orders WHERE grp = 'g8' AND id > 1000;
         UPDATE orders SET grp = 'g10', updated_at = now() WHERE grp = 'g9'",
    );
    place.until(&run, found, wanted().trim());
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

/// `0` and `0.00` are one group of a numeric, which its rows call by either: a group that is there under the other name is not
/// gone, and no second one, also where the destination keeps a numeric as text.
#[test]
fn groups_of_a_numeric_are_told_apart_by_their_values() {
    let db = database("numeric_groups");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, grp numeric NOT NULL, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now());
         INSERT INTO orders SELECT i, CASE WHEN i % 3 = 0 THEN (i % 10)::numeric ELSE (i % 10)::numeric(9, 2) END, i,
           now() - interval '1 hour' FROM generate_series(1, 2000) i",
    );
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("totals.db");
    let entry = format!("{{type: sqlite, path: \"{}\"}}", file.display());
    let place = Place::new(&[("from", postgres(&db)), ("to", postgres(&db)), ("file", entry)]);
    let own = pipeline(", deletes: anti_join");
    place.write("p.yaml", &own);
    let other = own.replace("datastore: to, table: public.totals", "datastore: file, table: totals");
    place.write("q.yaml", &other.replace("name: p\n", "name: q\n"));
    const LINES: &str = "SELECT concat_ws(' ', grp, n, total) FROM";
    let wanted = || {
        let groups = "(SELECT trim_scale(grp) grp, count(*) n, sum(v) total FROM orders GROUP BY 1) g ORDER BY g.grp";
        db.psql(&format!("{LINES} {groups}"))
    };
    let here = || db.psql(&format!("{LINES} totals ORDER BY totals.grp"));
    let there = || {
        let connection = rusqlite::Connection::open(&file).unwrap();
        let sql = "SELECT grp || ' ' || n || ' ' || total FROM totals ORDER BY CAST(grp AS REAL)";
        let mut rows = connection.prepare(sql).unwrap();
        let rows = rows.query_map([], |row| row.get::<_, String>(0)).unwrap();
        rows.collect::<Result<Vec<_>, _>>().unwrap().join("\n")
    };
    let runs = ["p.yaml", "q.yaml"].map(|file| ["run", file, "--strategy", "delta"]);
    for change in [
        "SELECT 1",
        // Rows of both forms in every group; one group goes all the same.
        "UPDATE orders SET v = v + 1, updated_at = now() WHERE id <= 200; DELETE FROM orders WHERE grp = 7",
        "UPDATE orders SET v = v + 1, updated_at = now() WHERE id % 3 = 0",
        "UPDATE orders SET v = v + 1, updated_at = now() WHERE id % 3 > 0",
    ] {
        db.psql(change);
        place.until(&runs[0], here, wanted().trim());
        place.until(&runs[1], there, wanted().trim());
    }
    runs.iter().for_each(|run| drop(place.json(run, 0)));
    assert_eq!((here().trim(), there().trim()), (wanted().trim(), wanted().trim()));
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

/// Under MariaDB's usual collation these texts are equal, and a group would be called by either of them.
#[test]
fn groups_of_mariadb_are_told_apart_by_their_bytes() {
    let maria = MariaDb::shared().database("groups_bytes");
    let db = database("groups_bytes");
    maria.sql(
        "CREATE TABLE orders(id int PRIMARY KEY, grp varchar(20) COLLATE utf8mb4_general_ci, v int NOT NULL,
             updated_at timestamp(6) NOT NULL DEFAULT current_timestamp(6));
         INSERT INTO orders SELECT seq, elt(seq % 4 + 1, 'a', 'A', 'a ', 'b'), seq, current_timestamp(6) - interval 1 hour FROM seq_10_to_100",
    );
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("to", postgres(&db)),
    ]);
    place.write(
        "p.yaml",
        &pipeline(", deletes: anti_join").replace("table: public.orders", "table: orders"),
    );
    let wanted = || {
        let rows = maria.sql(
            "SELECT group_concat(concat_ws(' ', grp, n, total) ORDER BY total SEPARATOR ', ')
             FROM (SELECT min(grp) AS grp, count(*) n, sum(v) total FROM orders GROUP BY CAST(grp AS BINARY)) g",
        );
        rows.trim().to_owned()
    };
    let found = || db.psql("SELECT string_agg(concat_ws(' ', grp, n, total), ', ' ORDER BY total) FROM totals");
    for (strategy, change) in [
        (
            "delta",
            "INSERT INTO orders(id, grp, v) VALUES (1, 'A', 1000), (2, 'a', 3000)",
        ),
        (
            "delta",
            "UPDATE orders SET grp = 'A', updated_at = current_timestamp(6) WHERE id = 20",
        ),
        ("delta", "DELETE FROM orders WHERE grp = 'b'"),
        ("hash", "UPDATE orders SET v = v + 1 WHERE id = 1"),
        ("hash", "DELETE FROM orders WHERE id = 2"),
    ] {
        place.until(&["run", "p.yaml", "--strategy", strategy], found, &wanted());
        maria.sql(change);
        place.until(&["run", "p.yaml", "--strategy", strategy], found, &wanted());
    }
    place.json(&["verify", "p.yaml", "--strategy", "hash"], 0);
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

/// The guard knows how many groups would go before the first one does; a run that it stopped goes on when it may.
#[test]
fn an_emptied_source_does_not_empty_an_aggregate() {
    let db = database("emptied_groups");
    db.psql(ORDERS);
    let place = here(&db);
    place.write("p.yaml", &pipeline(", deletes: anti_join"));
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    let groups = db.psql(FOUND);
    db.psql("CREATE TABLE kept AS TABLE orders; DELETE FROM orders");
    for _ in 0..2 {
        let refused = place.json(&run, 4).to_string();
        assert!(
            refused.contains("of 2000 rows of public.orders are gone") && refused.contains("--allow-mass-delete"),
            "{refused}"
        );
        assert_eq!(db.psql(FOUND), groups, "no group went");
    }
    // Rows come back as they were, but for one group: what the guard stopped is done for that one alone.
    db.psql("INSERT INTO orders SELECT * FROM kept WHERE grp <> 5");
    let allowed = place.json(&["run", "p.yaml", "--strategy", "delta", "--allow-mass-delete"], 0);
    assert_eq!(allowed["deleted"], 1, "{allowed}");
    assert_eq!(db.psql(FOUND), db.psql(WANTED));
    db.psql("UPDATE orders SET grp = 5, updated_at = now() WHERE grp = 6");
    place.until(&run, || db.psql(FOUND), db.psql(WANTED).trim());
    db.psql("DELETE FROM orders");
    place.json(&["run", "p.yaml", "--strategy", "delta", "--allow-mass-delete"], 0);
    assert_eq!(db.psql("SELECT count(*) FROM totals").trim(), "0");
}

/// Too many of many: more than 30 % and a thousand. Groups that the destination never had count for nothing.
#[test]
fn too_many_groups_that_go_are_refused() {
    let db = database("many_groups");
    db.psql(&ORDERS.replace("i % 40", "i"));
    let place = here(&db);
    let live =
        pipeline(", deletes: anti_join").replace("table: public.orders}", "table: public.orders, filters: [v > 0]}");
    place.write("p.yaml", &live);
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    let wanted = WANTED.replace("FROM orders", "FROM orders WHERE v > 0");
    let groups = db.psql(FOUND);
    assert_eq!(groups, db.psql(&wanted));
    db.psql("INSERT INTO orders SELECT i, i, -1 FROM generate_series(3001, 6000) i");
    place.until(
        &run,
        || {
            db.psql(&format!(
                "SELECT (SELECT count(*) FROM {} WHERE k_id::int > 3000)",
                map_of(&db)
            ))
        },
        "3000",
    );
    assert_eq!(db.psql(FOUND), groups);
    db.psql("UPDATE orders SET v = -1, updated_at = now() WHERE id <= 1100");
    synctool_testkit::wait_for("the guard", std::time::Duration::from_secs(30), || {
        let ran = place.synctool(&run);
        match ran.status.code() {
            Some(4) => Ok(()),
            code => Err(format!("{code:?}: {}", String::from_utf8_lossy(&ran.stderr))),
        }
    });
    assert_eq!(db.psql(FOUND), groups, "no group went");
    let allowed = place.json(&["run", "p.yaml", "--strategy", "delta", "--allow-mass-delete"], 0);
    assert_eq!(allowed["deleted"], 1100, "{allowed}");
    assert_eq!(db.psql(FOUND), db.psql(&wanted));
}

/// The name of the only key map.
fn map_of(db: &TestDb) -> String {
    let name = "SELECT relname FROM pg_class WHERE relname LIKE '\\_synctool\\_keys\\_%' AND relkind = 'r'";
    db.psql(name).trim().to_owned()
}

fn by_day(partitions: &str) -> String {
    format!(
        "name: p\nsource: {{datastore: from, table: public.sales}}\ndestination: {{datastore: to, table: public.days}}\n\
         sync_type: aggregate\ngroup_by: [shop, day]\ncolumns:\n  - shop\n  - {{dest: day, expr: CAST(at AS DATE)}}\n  \
         - {{dest: n, expr: count(*)}}\nstrategies:\n  \
         - {{name: full, type: full, primary_partitions: [{partitions}]}}\n  \
         - {{name: hash, type: hash, primary_partitions: [{partitions}]}}\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms}}\n"
    )
}

const SALES: &str = "CREATE TABLE sales(id int PRIMARY KEY, shop int NOT NULL, at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
    INSERT INTO sales SELECT i, i % 7, timestamptz '2024-01-01 00:00+00' + interval '37 minutes' * i, now() - interval '1 hour' FROM generate_series(0, 3000) i";

/// A partition that holds some rows of a group would make a group of these alone.
#[test]
fn partitions_that_cut_through_groups_are_refused() {
    let db = database("cut_groups");
    db.psql(SALES);
    let place = here(&db);
    let wanted = "SELECT md5(string_agg(concat_ws(' ', shop, day, n), ',' ORDER BY shop, day)) FROM
        (SELECT shop, at::date AS day, count(*) n FROM sales GROUP BY 1, 2) g";
    let found = "SELECT md5(string_agg(concat_ws(' ', shop, day, n), ',' ORDER BY shop, day)) FROM days";
    for whole in [
        "{column: shop, step: 3}",
        "{column: shop, type: value, step: -1}",
        "{column: at, step: 5, step_unit: day}",
        "{column: at, step: 1, step_unit: month}, {column: shop, step: 2}",
        "{column: at, step: 48, step_unit: hour}",
    ] {
        place.write("p.yaml", &by_day(whole));
        let run = place.json(&["run", "p.yaml", "--strategy", "full"], 0);
        assert_eq!(db.psql(found), db.psql(wanted), "{whole}: {run}");
        db.psql("DROP TABLE days");
    }
    for cut in [
        "{column: at, step: 1, step_unit: hour}",
        "{column: at, step: 36, step_unit: hour}",
        "{column: at, step: 1, step_unit: day, time_zone: Europe/Berlin}",
        "{column: at, step: 1, step_unit: day, end: \"2024-02-01 12:00:00+00\"}",
        "{column: at, step: 1, step_unit: day}, {column: id, step: 100}",
        "{column: updated_at, step: 1, step_unit: day}",
    ] {
        place.write("p.yaml", &by_day(cut));
        for strategy in ["full", "hash"] {
            let refused = place.json(&["run", "p.yaml", "--strategy", strategy], 2).to_string();
            assert!(refused.contains("shop, day"), "{cut}: the next step is said: {refused}");
        }
    }
}

/// A backfill computes the groups that have rows inside its bounds, all of each, and no others.
#[test]
fn bounds_choose_groups_and_never_parts_of_them() {
    let db = database("bounded_groups");
    db.psql(SALES);
    let place = here(&db);
    place.write("p.yaml", &by_day("{column: shop, step: 3}"));
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    db.psql("UPDATE days SET n = -1");
    // They lie in a few groups.
    const IDS: &str = r#"[{"column": "id", "start": 100, "end": 110}]"#;
    let run = place.json(&["run", "p.yaml", "--strategy", "delta", "--bounds", IDS], 0);
    let touched = "(SELECT DISTINCT shop, at::date AS day FROM sales WHERE id >= 100 AND id < 110) t";
    let groups = db.psql(&format!("SELECT count(*) FROM {touched}"));
    assert_eq!(run["updated"].to_string(), groups.trim(), "{run}");
    let right = "SELECT count(*) FROM days d JOIN
        (SELECT shop, at::date AS day, count(*) n FROM sales GROUP BY 1, 2) g USING (shop, day) WHERE d.n = g.n";
    assert_eq!(db.psql(right), groups, "each is whole");
    assert_eq!(
        db.psql("SELECT count(*) FROM days WHERE n <> -1"),
        groups,
        "and no other was looked at"
    );
    // Whole days are bounds of full runs and comparisons; halves and other columns are none.
    for bounds in [IDS, r#"[{"column": "at", "start": "2024-01-03 12:00:00+00"}]"#] {
        let refused = place
            .json(&["run", "p.yaml", "--strategy", "full", "--bounds", bounds], 2)
            .to_string();
        assert!(refused.contains("cut through groups"), "{refused}");
    }
    let days = r#"[{"column": "at", "start": "2024-01-03 00:00:00+00", "end": "2024-01-05 00:00:00+00"}]"#;
    place.json(&["run", "p.yaml", "--strategy", "full", "--bounds", days], 0);
    let inside = "day >= '2024-01-03' AND day < '2024-01-05'";
    let wrong = format!("SELECT count(*) FROM days WHERE n = -1 AND {inside}");
    assert_eq!(db.psql(&wrong).trim(), "0");
    assert_ne!(db.psql("SELECT count(*) FROM days WHERE n = -1").trim(), "0");
}

/// A delta's partitions cut the window of changed rows: all of its levels.
#[test]
fn a_window_of_changed_rows_is_cut_by_every_level() {
    let db = database("aggregate_levels");
    db.psql(ORDERS);
    let place = here(&db);
    place.write(
        "p.yaml",
        &pipeline(
            ", primary_partitions: [{column: updated_at, step: 1, step_unit: day}], secondary_partitions: [{column: id, step: 500}]",
        ),
    );
    let run = ["run", "p.yaml", "--strategy", "delta"];
    place.json(&run, 0);
    db.psql("UPDATE orders SET v = -v, grp = (grp + 1) % 50, updated_at = now() WHERE id % 100 = 3");
    place.until(
        &["plan", "p.yaml", "--strategy", "delta"],
        || {
            let plan = place.json(&["plan", "p.yaml", "--strategy", "delta"], 0);
            let ids = plan["partitions"].as_array().into_iter().flatten();
            let cut = ids.filter(|p| {
                p["id"]
                    .as_str()
                    .is_some_and(|id| id.starts_with("updated_at") && id.contains("__id_"))
            });
            // Rows with ids from 3 to 1903: four steps of 500.
            (cut.count() >= 4).to_string()
        },
        "true",
    );
    place.until(&run, || db.psql(FOUND), db.psql(WANTED).trim());
}
