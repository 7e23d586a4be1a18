//! What `verify` and `diff` say.

use super::*;

/// What was compared, how, where rows differ, and when all was still equal.
#[test]
fn a_verification_says_what_it_proved() {
    let db = database("proofs");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO items SELECT i, i FROM generate_series(1, 100) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.items}\ndestination: {datastore: to, table: public.copies}\n\
         strategies:\n  - {name: delta, type: delta, column: updated_at, margin: 1ms}\n  - {name: hash, type: hash}\n",
    );
    place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
    let words = |exit: i32| {
        let done = place.synctool(&["verify", "p.yaml"]);
        let told = String::from_utf8_lossy(&done.stdout).into_owned();
        assert_eq!(done.status.code(), Some(exit), "{told}");
        told
    };
    let told = words(0);
    assert!(
        told.contains("equal, up to 2") && told.contains("the engine's own record hash"),
        "{told}"
    );
    assert!(!told.contains("last proved"), "{told}");
    let through = place.json(&["verify", "p.yaml"], 0)["verified_through"].clone();
    assert!(through.is_string());

    db.psql("UPDATE copies SET v = 0 WHERE id IN (7, 8); DELETE FROM copies WHERE id = 9");
    let told = words(3);
    for part in [
        "id = 7",
        "id = 8",
        "id = 9",
        "in ",
        "last proved equal at 2",
        "synctool repair p",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(
        (&found["verified_through"], &found["proved_before"]["through"]),
        (&serde_json::Value::Null, &through),
        "what differs is proved up to nowhere: {found}"
    );
}

/// A group one of whose rows waits for the next delta is not different, in whatever order its rows are read.
#[test]
fn a_group_waits_with_any_of_its_rows() {
    let db = database("waiting_groups");
    db.psql(
        "CREATE TABLE orders(id int PRIMARY KEY, who int, amount int, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO orders(id, who, amount) SELECT i, i % 5, i FROM generate_series(1, 50) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.orders}\ndestination: {datastore: to, table: public.totals}\n\
         sync_type: aggregate\ngroup_by: [who]\ncolumns: [who, {dest: total, expr: sum(amount)}]\n\
         strategies:\n  - {name: delta, type: delta, column: updated_at, margin: 1ms}\n",
    );
    place.json(&["run", "p.yaml"], 0);
    place.json(&["verify", "p.yaml"], 0);
    // The first row of a group, and the last one of another: rows are read in the order of the key or of the heap.
    db.psql("UPDATE orders SET amount = 1000, updated_at = now() WHERE id IN (1, 47)");
    db.psql("CLUSTER orders USING orders_pkey");
    let waiting = place.json(&["verify", "p.yaml"], 0);
    assert_eq!(
        (&waiting["pending"], &waiting["compared"]["differing"]),
        (&2.into(), &0.into()),
        "{waiting}"
    );
    // What differs without a reason still does.
    db.psql("UPDATE totals SET total = 0 WHERE who = 3");
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(found["compared"]["differing"], 1, "{found}");
}

/// Two tables in different engines, without a pipeline.
#[test]
fn a_diff_between_engines_names_the_rows() {
    let db = database("diffs");
    db.psql("CREATE TABLE items(id int PRIMARY KEY, v text); INSERT INTO items SELECT i, 'v' || i FROM generate_series(1, 100) i");
    let maria = MariaDb::shared().database("diffs");
    maria.sql("CREATE TABLE items(id int PRIMARY KEY, v varchar(20))");
    let rows: Vec<String> = (1..=100)
        .filter(|i| *i != 5)
        .map(|i| format!("({i}, 'v{i}')"))
        .collect();
    maria.sql(&format!("INSERT INTO items VALUES {}", rows.join(",")));
    maria.sql("UPDATE items SET v = 'V6' WHERE id = 6; INSERT INTO items VALUES (200, NULL)");
    let place = here(&db);
    let (from, to) = (db.url(), maria.url());
    let done = place.synctool(&["diff", &from, "public.items", &to, "items"]);
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(
        done.status.code(),
        Some(3),
        "{told}{}",
        String::from_utf8_lossy(&done.stderr)
    );
    for part in [
        "missing at the destination: id = 5",
        "differs: id = 6",
        "only at the destination: id = 200",
        "MD5 of their canonical form, computed in both databases",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
}
