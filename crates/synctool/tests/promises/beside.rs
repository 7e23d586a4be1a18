//! Aggregates beside writers: rows that were counted and are gone before a window could show them.

use super::matrix::{End, folder};
use super::*;
use std::sync::atomic::{AtomicBool, Ordering};

const COLUMNS: &[&str] = &["grp", "n", "total"];
const WANTED: &str = "(SELECT grp, count(*) AS n, sum(v) AS total FROM orders GROUP BY grp) g";

/// So many minutes ago, by the engine's clock.
pub(super) fn ago(end: &End, minutes: u32) -> String {
    match end {
        End::Postgres(_) => format!("now() - interval '{minutes} minutes'"),
        End::Maria(_) => format!("current_timestamp(6) - interval {minutes} minute"),
        _ => format!("strftime('%Y-%m-%d %H:%M:%f', 'now', '-{minutes} minutes')"),
    }
}

fn orders(end: &End) {
    let stamp = match end {
        End::Maria(_) => "timestamp(6)",
        End::Postgres(_) => "timestamptz",
        _ => "timestamp",
    };
    let rows: Vec<String> = (0..40)
        .map(|i| format!("({i}, {}, {i}, {})", 101 + i % 4, ago(end, 180)))
        .collect();
    end.change(&format!(
        "CREATE TABLE orders(id int PRIMARY KEY, grp int NOT NULL, v int NOT NULL, updated_at {stamp} NOT NULL);
         INSERT INTO orders VALUES {}",
        rows.join(", ")
    ));
}

fn pipeline(place: &Place, margin: &str) {
    place.write(
        "p.yaml",
        &format!(
            "name: p\nsource: {{datastore: from, table: orders}}\ndestination: {{datastore: to, table: totals}}\nsync_type: aggregate\n\
             group_by: [grp]\ncolumns:\n  - grp\n  - {{dest: n, expr: count(*)}}\n  - {{dest: total, expr: sum(v)}}\nstrategies:\n  \
             - {{name: delta, type: delta, column: updated_at, margin: {margin}, deletes: anti_join}}\n  \
             - {{name: hash, type: hash}}\n  - {{name: full, type: full}}\n"
        ),
    );
}

/// Every engine as the source. A margin of hours is what an open transaction does: rows behind the window are there, and
/// are counted with the groups of rows inside, or by another strategy.
#[test]
fn rows_that_were_counted_too_early_are_not_counted_for_ever() {
    for (way, second) in ["delta", "hash", "full"].into_iter().enumerate() {
        let sources = [
            End::Postgres(database("early_from")),
            End::Maria(MariaDb::shared().database("early_from")),
            End::Sqlite(folder()),
        ];
        for (engine, from) in sources.into_iter().enumerate() {
            // The delta from each, and the others from the first and one more. A soak has all.
            if engine > 0 && way > 0 && engine != way && !synctool_testkit::is_soak() {
                continue;
            }
            let to = End::Postgres(database("early_to"));
            let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
            orders(&from);
            pipeline(&place, "120m");
            place.json(&["run", "p.yaml", "--strategy", "delta"], 0);
            from.change(&format!(
                "UPDATE orders SET v = v + 1, updated_at = {} WHERE id = 0; INSERT INTO orders VALUES (500, 101, 7, {now}), (501, 101, 9, {now})",
                ago(&from, 90),
                now = ago(&from, 10)
            ));
            pipeline(&place, "60m");
            place.json(&["run", "p.yaml", "--strategy", second], 0);
            assert_eq!(to.lines("totals", COLUMNS), from.lines(WANTED, COLUMNS), "{second}");
            from.change(&format!(
                "DELETE FROM orders WHERE id = 500; UPDATE orders SET grp = 102, updated_at = {} WHERE id = 501",
                ago(&from, 5)
            ));
            pipeline(&place, "1ms");
            let wanted = from.lines(WANTED, COLUMNS);
            let run = ["run", "p.yaml", "--strategy", "delta"];
            place.until(&run, || to.lines("totals", COLUMNS), &wanted);
            place.json(&run, 0);
            let idle = place.json(&run, 0);
            assert_eq!(idle["read"], 0, "{second}: nothing is left to do: {idle}");
        }
    }
}

/// Rounds of changes of one call of a writer's client, one of them with a transaction that stays open.
const AT_ONCE: u32 = 9;

/// Rows come, move and go all the while, some in transactions that stay open.
fn beside_writers(from: &End, hold: &str) {
    let to = End::Postgres(database("beside_to"));
    let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
    orders(from);
    pipeline(&place, "200ms");
    let run = ["run", "p.yaml", "--strategy", "delta"];
    let changes = |writer: u32, n: u32| {
        let id = 10_000 * (writer + 1) + n;
        // The others for a moment, so that writers leave some of the processor to who reads.
        let length = match (writer + n).is_multiple_of(9) {
            true => 0.1 + f64::from(n % 5) * 0.1,
            false => 0.02,
        };
        let held = format!("SELECT {hold}({length});");
        format!(
            "BEGIN; INSERT INTO orders VALUES ({id}, {}, {n}, NOW); {held} COMMIT;
             BEGIN; UPDATE orders SET grp = grp + 1, updated_at = NOW WHERE id = {}; COMMIT;
             DELETE FROM orders WHERE id = {} AND id % 7 <> 0;\n",
            100 + n % 6,
            id - 1,
            id - 2,
        )
    };
    // Some by one client: one that is started for each would take the processor as well.
    let change = |writer: u32, first: u32| {
        let sql: String = (first..first + AT_ONCE).map(|n| changes(writer, n)).collect();
        match from {
            End::Maria(db) => drop(db.sql(&sql.replace("NOW", "current_timestamp(6)"))),
            other => other.change(&sql),
        }
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..5 {
            let (change, stop) = (&change, &stop);
            scope.spawn(move || {
                (0..)
                    .step_by(AT_ONCE as usize)
                    .take_while(|_| !stop.load(Ordering::Relaxed))
                    .for_each(|n| change(writer, n))
            });
        }
        let runs = match synctool_testkit::is_soak() {
            true => 100,
            false => 20,
        };
        for _ in 0..runs {
            place.json(&run, 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let wanted = from.lines(WANTED, COLUMNS);
    place.until(&run, || to.lines("totals", COLUMNS), &wanted);
}

#[test]
fn an_aggregate_beside_writers_of_postgresql_equals_a_recomputation() {
    beside_writers(&End::Postgres(database("beside_from")), "pg_sleep");
}

#[test]
fn an_aggregate_beside_writers_of_mariadb_equals_a_recomputation() {
    beside_writers(&End::Maria(MariaDb::shared().database("beside_from")), "sleep");
}
