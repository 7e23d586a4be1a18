//! What `verify` and `repair` are about: the whole table, or the range of a strategy that is named; by the same strategy.

use super::*;
use synctool_testkit::is_soak;

const ITEMS: &str = "CREATE TABLE items(id int PRIMARY KEY, day date NOT NULL, v text NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
    INSERT INTO items SELECT i, date '2024-01-01' + i, 'v' || i FROM generate_series(0, 299) i";
const ENDS: &str =
    "name: p\nsource: {datastore: from, table: public.items}\ndestination: {datastore: to, table: public.copies}\n";

/// What the program prints for people.
fn words(place: &Place, arguments: &[&str], exit: i32) -> String {
    let done = place.synctool(arguments);
    let told = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.status.code(), Some(exit), "{arguments:?}: {told}{done:?}");
    told
}

/// The range of a strategy is its way of reading. Only where the strategy is named it is what is compared and mended, and
/// then nothing is proved of the table.
#[test]
fn a_plain_verification_compares_the_whole_table() {
    let db = database("verify_whole");
    db.psql(ITEMS);
    let place = here(&db);
    for partitions in [
        "[{column: day, step: 1, step_unit: month, end: \"2024-03-01\"}]",
        "[{column: day, end: \"2024-03-01\"}]",
        "[{column: id, type: list, values: [1, 2, 3]}]",
    ] {
        db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
        place.write(
            "p.yaml",
            &format!(
                "{ENDS}strategies:\n  - {{name: some, type: hash, primary_partitions: {partitions}}}\n  - {{name: all, type: full}}\n"
            ),
        );
        place.json(&["run", "p.yaml", "--strategy", "all"], 0);
        db.psql("UPDATE copies SET v = 'elsewhere' WHERE id = 200");
        let proved = || db.psql("SELECT count(*) FROM synctool.memory WHERE fact = 'verified_at'");
        let some = place.json(&["verify", "p.yaml", "--strategy", "some"], 0);
        let scope = some["scope"].as_str().expect("a scope");
        assert!(
            scope.contains("strategy some") && scope.contains("day < 2024-03-01") != scope.contains("id in (1, 2, 3)"),
            "{scope}"
        );
        assert!(words(&place, &["verify", "p.yaml", "--strategy", "some"], 0).contains(scope));
        assert_eq!(proved().trim(), "0", "a part proves nothing of the table");
        for command in [&["verify", "p.yaml"][..], &["repair", "p.yaml", "--dry-run"]] {
            let whole = place.json(command, 3);
            assert_eq!(
                (&whole["compared"]["differing"], &whole["scope"]),
                (&1.into(), &serde_json::Value::Null),
                "{whole}"
            );
        }
        let mended = place.json(&["repair", "p.yaml", "--strategy", "some"], 0);
        assert_eq!(mended["updated"], 0, "{mended}");
        let mended = place.json(&["repair", "p.yaml"], 0);
        assert_eq!(
            (&mended["updated"], &mended["deleted"]),
            (&1.into(), &0.into()),
            "{mended}"
        );
        place.json(&["verify", "p.yaml"], 0);
        assert_eq!(proved().trim(), "1");
    }
}

/// Rows pass the stages of one strategy, whichever of the three commands looks at them.
#[test]
fn verify_preview_and_repair_take_the_same_strategy() {
    let db = database("verify_same");
    db.psql(ITEMS);
    let place = here(&db);
    let pipeline = |first: &str| {
        format!(
            "{ENDS}columns: [id, v, updated_at]\ntransform: [{{compute: {{name: v, expression: upper(v)}}, applicable_on: loud}}]\n\
             strategies:\n  - {{name: loud, type: hash{first}}}\n  - {{name: changes, type: delta, column: updated_at, margin: 1ms}}\n"
        )
    };
    let values = || db.psql("SELECT DISTINCT left(v, 1) FROM copies").trim().to_owned();
    // One that is disabled is nobody's choice.
    place.write("p.yaml", &pipeline(", enabled: false"));
    place.json(&["run", "p.yaml"], 0);
    assert_eq!(values(), "v");
    place.json(&["verify", "p.yaml"], 0);
    place.json(&["repair", "p.yaml", "--dry-run"], 0);
    assert_eq!(place.json(&["repair", "p.yaml"], 0)["updated"], 0);
    // Where it is named, all of them take it, and the advice names it too.
    let named = ["--strategy", "loud"];
    for command in [&["verify", "p.yaml"][..], &["repair", "p.yaml", "--dry-run"]] {
        let told = words(&place, &[command, &named].concat(), 3);
        assert!(told.contains("synctool repair p.yaml --strategy loud"), "{told}");
    }
    let mended = place.json(&[&["repair", "p.yaml"][..], &named].concat(), 0);
    assert_eq!(
        (&mended["updated"], values()),
        (&300.into(), "V".to_owned()),
        "{mended}"
    );
    place.json(&[&["verify", "p.yaml"][..], &named].concat(), 0);
    place.json(&["verify", "p.yaml"], 3);
    // Enabled, it is the first; a run would take the delta.
    place.write("p.yaml", &pipeline(""));
    place.json(&["verify", "p.yaml"], 0);
    place.json(&["repair", "p.yaml", "--dry-run"], 0);
    assert_eq!(place.json(&["repair", "p.yaml"], 0)["updated"], 0);
}

/// Rows that a strategy is to leave at the destination are told, and are no difference.
#[test]
fn rows_that_stay_are_no_difference() {
    let db = database("verify_kept");
    db.psql(ITEMS);
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!(
            "{ENDS}strategies:\n  - {{name: keep, type: hash, deletes: none}}\n  - {{name: mirror, type: hash}}\n"
        ),
    );
    place.json(&["run", "p.yaml"], 0);
    db.psql("DELETE FROM items WHERE id < 10");
    for command in [&["verify", "p.yaml"][..], &["repair", "p.yaml", "--dry-run"]] {
        let found = place.json(command, 0);
        assert_eq!(
            (
                &found["kept"],
                &found["compared"]["only_destination"],
                &found["different_slices"]
            ),
            (&10.into(), &0.into(), &serde_json::json!([])),
            "{found}"
        );
    }
    let told = words(&place, &["verify", "p.yaml"], 0);
    assert!(told.contains("left there by `deletes: none`: 10"), "{told}");
    assert_eq!(place.json(&["repair", "p.yaml"], 0)["deleted"], 0);
    let mirror = ["--strategy", "mirror"];
    let found = place.json(&[&["verify", "p.yaml"][..], &mirror].concat(), 3);
    assert_eq!(
        (&found["kept"], &found["compared"]["only_destination"]),
        (&0.into(), &10.into()),
        "{found}"
    );
    assert_eq!(
        place.json(&[&["repair", "p.yaml"][..], &mirror].concat(), 0)["deleted"],
        10
    );
}

/// However many rows wait for the next delta, all of them are looked up: those of many slices, and those of the one slice
/// that an aggregate is.
#[test]
fn any_number_of_rows_may_wait() {
    // More than are looked up at once; of groups only a soak has so many.
    let many = 110_000_u64;
    for (name, what, rows) in [
        ("rows", "", many),
        (
            "groups",
            "sync_type: aggregate\ngroup_by: [id]\ncolumns: [id, {dest: v, expr: sum(v)}]\n",
            if is_soak() { many } else { 30_000 },
        ),
    ] {
        let db = database(&format!("verify_waiting_{name}"));
        db.psql(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL);
             INSERT INTO items SELECT i, i, now() - interval '1 hour' FROM generate_series(1, {rows}) i"
        ));
        let place = here(&db);
        place.write(
            "p.yaml",
            &format!("{ENDS}{what}strategies:\n  - {{name: delta, type: delta, column: updated_at, margin: 1ms}}\n"),
        );
        place.json(&["run", "p.yaml"], 0);
        db.psql("UPDATE items SET v = -v, updated_at = now()");
        let waiting = place.json(&["verify", "p.yaml"], 0);
        assert_eq!(
            (
                &waiting["pending"],
                &waiting["compared"]["differing"],
                &waiting["different_slices"]
            ),
            (&rows.into(), &0.into(), &serde_json::json!([])),
            "{name}: {waiting}"
        );
        db.psql("UPDATE copies SET v = 0 WHERE id = 7; DELETE FROM items WHERE id = 8");
        let found = place.json(&["verify", "p.yaml"], 3);
        assert_eq!(
            (&found["pending"], &found["compared"]["only_destination"]),
            (&(rows - 1).into(), &1.into()),
            "{name}: {found}"
        );
    }
}

/// `verify: after_run` ends with exit code 3 where the run left a difference, and writes nothing more.
#[test]
fn a_run_that_leaves_a_difference_says_so() {
    let db = database("verify_after");
    db.psql(ITEMS);
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!(
            "{ENDS}strategies:\n  - {{name: changes, type: delta, column: updated_at, margin: 1ms, verify: after_run}}\n  \
             - {{name: mend, type: hash, verify: after_run}}\n"
        ),
    );
    let changes = ["run", "p.yaml", "--strategy", "changes"];
    place.json(&changes, 0);
    place.json(&changes, 0);
    // A delta does not see it.
    db.psql("DELETE FROM items WHERE id = 5");
    let found = place.json(&changes, 3).to_string();
    assert!(
        found.contains("1 are too many") && found.contains("synctool repair p --strategy changes"),
        "{found}"
    );
    assert_eq!(db.psql("SELECT count(*) FROM copies").trim(), "300");
    place.json(&["run", "p.yaml", "--strategy", "mend"], 0);
    place.json(&changes, 0);
}

/// `verify: after_run` is about the strategy's own range, the whole of it; after a backfill nothing is compared.
#[test]
fn what_is_compared_after_a_run_is_what_its_strategy_covers() {
    let db = database("verify_range");
    db.psql(ITEMS);
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!(
            "{ENDS}strategies:\n  - {{name: all, type: full, full_mode: upsert}}\n  \
             - {{name: part, type: full, verify: after_run, primary_partitions: [{{column: id, step: 20, start: 1, end: 100}}]}}\n"
        ),
    );
    let part = ["run", "p.yaml", "--strategy", "part"];
    place.json(&["run", "p.yaml", "--strategy", "all"], 0);
    db.psql("DELETE FROM copies WHERE id = 200; DELETE FROM items WHERE id = 250");
    place.json(&part, 0);
    // A run over a range deletes nothing.
    db.psql("DELETE FROM items WHERE id = 50");
    let bounds = r#"{"column": "id", "start": 40, "end": 60}"#;
    let backfill = place.json(&[&part[..], &["--bounds", bounds]].concat(), 0);
    assert!(
        backfill["reasons"].to_string().contains("nothing is compared"),
        "{backfill}"
    );
    let found = place.json(&part, 3).to_string();
    assert!(found.contains("1 are too many"), "{found}");
    place.json(&["repair", "p.yaml", "--strategy", "part"], 0);
    place.json(&part, 0);
    place.json(&["verify", "p.yaml"], 3);
}

/// Rows wait for the deltas that the pipeline has, and for all of them; not for one that it had once.
#[test]
fn rows_wait_for_no_delta_that_is_gone() {
    let db = database("verify_gone");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz NOT NULL);
         INSERT INTO items SELECT i, i, now() - interval '1 hour', now() - interval '1 hour' FROM generate_series(1, 100) i",
    );
    let place = here(&db);
    let file = |strategies: &[&str]| {
        place.write(
            "p.yaml",
            &format!("{ENDS}columns: [id, v]\nstrategies: [{}]\n", strategies.join(", ")),
        );
    };
    let created = "{name: created, type: delta, column: created_at, margin: 1ms}";
    let disabled = "{name: created, type: delta, column: created_at, margin: 1ms, enabled: false}";
    let updated = "{name: updated, type: delta, column: updated_at, margin: 1ms}";
    let compare = "{name: compare, type: hash}";
    file(&[created]);
    place.json(&["run", "p.yaml"], 0);
    // Behind the watermark of the first delta, before that of the second.
    db.psql(
        "INSERT INTO items SELECT i, i, now() + interval '1 hour', now() - interval '1 hour' FROM generate_series(101, 110) i",
    );
    file(&[updated]);
    place.json(&["run", "p.yaml"], 0);
    db.psql(
        "UPDATE copies SET v = 0 WHERE id = 105;
         UPDATE items SET v = -v, updated_at = now() + interval '1 hour' WHERE id = 106",
    );
    let proved = || db.psql("SELECT count(*) FROM synctool.memory WHERE fact LIKE 'verified%'");
    for (strategies, differing, pending) in [
        (&[updated][..], 1, 1),
        (&[compare][..], 2, 0),
        (&[disabled, compare][..], 2, 0),
        (&[created, updated][..], 1, 1),
        (&[compare, updated, created][..], 1, 1),
    ] {
        file(strategies);
        let found = place.json(&["verify", "p.yaml"], 3);
        assert_eq!(
            (&found["compared"]["differing"], &found["pending"]),
            (&differing.into(), &pending.into()),
            "{strategies:?}: {found}"
        );
        assert_eq!(proved().trim(), "0", "{strategies:?}");
    }
    file(&[created]);
    let found = place.json(&["verify", "p.yaml"], 0);
    assert_eq!(found["pending"], 2, "{found}");
    // What the first delta knew is gone at the source, too.
    file(&[updated]);
    db.psql("ALTER TABLE items DROP COLUMN created_at");
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(found["pending"], 1, "{found}");
}

/// A delta whose cursor is an expression is one like any other: rows wait for it, and it is chosen.
#[test]
fn a_cursor_may_be_an_expression() {
    let db = database("verify_expression");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, created_at timestamptz NOT NULL, updated_at timestamptz);
         INSERT INTO items SELECT i, i, now() - interval '1 hour' FROM generate_series(1, 100) i",
    );
    let place = here(&db);
    place.write(
        "p.yaml",
        &format!(
            "{ENDS}columns: [id, v, {{dest: changed, expr: \"coalesce(updated_at, created_at)\"}}]\nstrategies:\n  \
             - {{name: changes, type: delta, column: changed, margin: 1ms, verify: after_run}}\n  - {{name: compare, type: hash}}\n"
        ),
    );
    for _ in 0..2 {
        let run = place.json(&["run", "p.yaml"], 0);
        assert_eq!(run["strategy"], "changes", "{run}");
    }
    assert_eq!(place.json(&["plan", "p.yaml"], 0)["strategy"], "delta");
    db.psql("UPDATE items SET v = -v, updated_at = now() + interval '1 hour' WHERE id = 7");
    let found = place.json(&["verify", "p.yaml"], 0);
    assert_eq!(
        (&found["pending"], &found["verified_through"].is_string()),
        (&1.into(), &true),
        "{found}"
    );
    db.psql("UPDATE copies SET v = 0 WHERE id = 8");
    let found = place.json(&["verify", "p.yaml"], 3);
    assert_eq!(
        (&found["pending"], &found["compared"]["differing"]),
        (&1.into(), &1.into()),
        "{found}"
    );
}
