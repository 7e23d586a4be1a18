//! Rows that the source does not have any more: who deletes them, who leaves them, and who asks first.

use super::matrix::{End, folder};
use super::*;

const ENDS: &str =
    "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: copies}\nkey: [id]\n";

fn place(from: &End, to: &End) -> Place {
    Place::new(&[("from", from.entry()), ("to", to.entry())])
}

fn items(from: &End, rows: u32) {
    from.change(&format!(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO items SELECT i, i FROM generate_series(1, {rows}) i"
    ));
}

/// `deletes: none` holds in every strategy and every way of writing: rows are inserted and updated, and none goes.
#[test]
fn no_strategy_deletes_where_none_may_go() {
    for to in [
        End::Postgres(database("none_goes_to")),
        End::Maria(MariaDb::shared().database("none_goes_to")),
        End::Sqlite(folder()),
    ] {
        let from = End::Postgres(database("none_goes_from"));
        let place = place(&from, &to);
        items(&from, 20);
        for strategy in [
            "{name: all, type: full, deletes: none}",
            "{name: all, type: full, full_mode: upsert, deletes: none}",
            "{name: compare, type: hash, deletes: none}",
            "{name: changes, type: delta, column: updated_at, margin: 1ms, deletes: none}",
        ] {
            from.change("DELETE FROM items; INSERT INTO items SELECT i, i FROM generate_series(1, 20) i");
            place.write(
                "p.yaml",
                &format!("{ENDS}strategies: [{{name: mirror, type: full, full_mode: swap}}]\n"),
            );
            place.json(&["run", "p.yaml", "--restart", "--allow-mass-delete"], 0);
            place.write("p.yaml", &format!("{ENDS}strategies: [{strategy}]\n"));
            place.json(&["run", "p.yaml"], 0);
            from.change(
                "DELETE FROM items WHERE id <= 5; UPDATE items SET v = -v, updated_at = now() WHERE id = 6;
                 INSERT INTO items VALUES (21, 21, now())",
            );
            let wanted: Vec<String> = (1..=21)
                .map(|i| format!("{i} {}", if i == 6 { -6 } else { i }))
                .collect();
            let rows = || to.lines("copies", &["id", "v"]);
            place.until(&["run", "p.yaml"], rows, &wanted.join("\n"));
            assert_eq!(place.json(&["run", "p.yaml"], 0)["deleted"], 0, "{strategy}");
            assert_eq!(rows(), wanted.join("\n"), "{strategy}");
        }
    }
}

/// Nor does a delta delete rows that leave by a filter, of the source or of a stage: they stay as they were.
#[test]
fn rows_that_leave_a_filter_stay_where_none_may_go() {
    let filtered = ENDS.replace("table: items}", "table: items, filters: [\"v < 1000\"]}");
    let staged = format!("{ENDS}transform: [{{filter: \"v < 1000\"}}]\n");
    for file in [filtered, staged] {
        let (from, to) = (
            End::Postgres(database("leaving_from")),
            End::Postgres(database("leaving_to")),
        );
        let place = place(&from, &to);
        items(&from, 20);
        place.write(
            "p.yaml",
            &format!("{file}strategies: [{{type: delta, column: updated_at, margin: 1ms, deletes: none}}]\n"),
        );
        place.json(&["run", "p.yaml"], 0);
        from.change(
            "UPDATE items SET v = v + 1000, updated_at = now() WHERE id = 6; UPDATE items SET v = -7, updated_at = now() WHERE id = 7;
             INSERT INTO items VALUES (21, 21, now())",
        );
        let wanted: Vec<String> = (1..=21)
            .map(|i| format!("{i} {}", if i == 7 { -7 } else { i }))
            .collect();
        let rows = || to.lines("copies", &["id", "v"]);
        place.until(&["run", "p.yaml"], rows, &wanted.join("\n"));
        assert_eq!(place.json(&["run", "p.yaml"], 0)["deleted"], 0, "{file}");
        assert_eq!(rows(), wanted.join("\n"), "{file}");
    }
}

/// What a delta is to delete is still its work after a load that deletes nothing.
#[test]
fn a_load_that_deletes_nothing_moves_no_watermark() {
    let (from, to) = (
        End::Postgres(database("still_to_go_from")),
        End::Postgres(database("still_to_go_to")),
    );
    let place = place(&from, &to);
    items(&from, 20);
    let file = ENDS.replace("table: items}", "table: items, filters: [\"v < 1000\"]}");
    place.write(
        "p.yaml",
        &format!(
            "{file}strategies:\n  - {{name: changes, type: delta, column: updated_at, margin: 1ms}}\n  \
             - {{name: all, type: full, full_mode: upsert, deletes: none}}\n"
        ),
    );
    place.json(&["run", "p.yaml", "--strategy", "changes"], 0);
    from.change("UPDATE items SET v = 1000, updated_at = now() WHERE id = 6");
    place.json(&["run", "p.yaml", "--strategy", "all"], 0);
    let ids = || to.lines("copies", &["id"]);
    assert_eq!(ids().lines().count(), 20, "nothing is deleted");
    let wanted: Vec<String> = (1..=20).filter(|i| *i != 6).map(|i| i.to_string()).collect();
    place.until(&["run", "p.yaml", "--strategy", "changes"], ids, &wanted.join("\n"));
}

/// A swap would take rows away with the table.
#[test]
fn a_swap_where_none_may_go_is_refused() {
    let (from, to) = (
        End::Postgres(database("none_swap_from")),
        End::Postgres(database("none_swap_to")),
    );
    let place = place(&from, &to);
    items(&from, 5);
    place.write(
        "p.yaml",
        &format!("{ENDS}strategies: [{{type: full, deletes: none}}]\n"),
    );
    place.json(&["run", "p.yaml"], 0);
    let swap = place.json(&["run", "p.yaml", "--full-mode", "swap"], 2).to_string();
    assert!(swap.contains("`deletes: none`") && swap.contains("full_mode"), "{swap}");
    place.write(
        "p.yaml",
        &format!("{ENDS}strategies: [{{type: full, full_mode: swap, deletes: none}}]\n"),
    );
    place.json(&["run", "p.yaml"], 2);
}

/// Deletes that a comparison of keys finds, and those of a repair, are judged before the first one is made.
#[test]
fn mass_deletes_of_keys_and_repairs_need_a_word() {
    for (run, strategy) in [
        (
            "run",
            "{name: s, type: delta, column: updated_at, stamped_by: app, deletes: anti_join}",
        ),
        ("repair", "{name: s, type: delta, column: updated_at, stamped_by: app}"),
        ("repair", "{name: s, type: full}"),
    ] {
        let (from, to) = (
            End::Postgres(database("many_go_from")),
            End::Postgres(database("many_go_to")),
        );
        let place = place(&from, &to);
        items(&from, 3000);
        place.write("p.yaml", &format!("{ENDS}strategies: [{strategy}]\n"));
        place.json(&["run", "p.yaml"], 0);
        from.change("DELETE FROM items WHERE id <= 1500");
        let refused = place.json(&[run, "p.yaml"], 4).to_string();
        assert!(
            refused.contains("ST-POL-002") && refused.contains("--allow-mass-delete"),
            "{run}, {strategy}: {refused}"
        );
        let left = || to.lines("copies", &["id"]).lines().count();
        assert_eq!(left(), 3000, "{run}, {strategy}: none is gone");
        let done = place.json(&[run, "p.yaml", "--allow-mass-delete"], 0);
        assert_eq!(
            (left(), &done["deleted"]),
            (1500, &1500.into()),
            "{run}, {strategy}: {done}"
        );
    }
}
