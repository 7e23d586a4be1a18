//! The whole program killed with -9 at failpoints of a backfill and of streaming, while others write: the next run ends
//! with equal tables.

use super::*;
use synctool_testkit::is_soak;
use synctool_testkit::kill::{Action, Failpoint};

/// The steps of streaming: rows, their position and the commit, and what the source is told of it.
pub(super) const STEPS: [&str; 7] = [
    "engine.commit.before",
    "engine.commit.after",
    "sink.commit.after",
    "sink.write",
    "sink.commit.before",
    "log.acknowledge.before",
    "log.acknowledge.after",
];

/// Kills per test.
pub(super) fn kills() -> usize {
    if is_soak() { 200 } else { 8 }
}

on_servers! {
    /// F1 by the program's door.
    fn killed_anywhere_a_capture_ends_equal(version: PgVersion) {
        let stage = Stage::new(version);
        stage.pipeline("tables: [users, restaurant, visit]", "");
        let run = || KillRun::new(&stage.command(&["run", "shop.yaml", "--until-caught-up"]));
        let reset = || {
            stage.to.psql("DROP TABLE IF EXISTS users, restaurant, visit CASCADE; DROP SCHEMA IF EXISTS synctool CASCADE");
            stage.from.psql(&format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = '{}' AND active_pid IS NULL",
                stage.slot
            ));
            let _ = std::fs::remove_dir_all(stage.home.path().join("data"));
        };
        let reached = run().failpoints_reached();
        stage.assert_equal("undisturbed");
        let names: std::collections::BTreeSet<&str> = reached.iter().map(|p| p.name.as_str()).collect();
        let steps = [
            "sink.write", "sink.commit.before", "sink.commit.after", "engine.commit.after", "log.acknowledge.before",
            "log.acknowledge.after", "backfill.low", "backfill.read", "backfill.high", "backfill.close",
        ];
        assert!(steps.iter().all(|step| names.contains(step)), "{names:?}");
        let mut points = synctool_testkit::kill::spread(&reached, kills().div_ceil(4));
        // The first pass of a failpoint on one server, its last on the other; a soak has all on both.
        let has = |point: &Failpoint| {
            let name = names.iter().position(|name| *name == point.name).unwrap_or_default();
            (name + usize::from(point.nth == 1)).is_multiple_of(2) == (version == PgVersion::V18)
        };
        points.retain(|point| is_soak() || has(point));
        let mut killed = 0;
        for point in &points {
            wait_for("the slot to be free", PATIENCE, || {
                stage.from.psql(&format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}' AND active", stage.slot)) == "0"
            });
            reset();
            let writer = Writer::start(&stage);
            let outcome = run().accident(point, Action::Kill).run();
            killed += usize::from(outcome.killed);
            assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
            let again = run().run();
            assert_eq!(again.code, Some(0), "killed at {point}, the next run failed: {}", again.stderr);
            writer.end();
            let last = run().run();
            assert_eq!(last.code, Some(0), "{point}: {}", last.stderr);
            stage.assert_equal(&format!("killed at {point}"));
        }
        assert!(killed * 10 >= points.len() * 8, "only {killed} of {} kills struck", points.len());
    }

    /// Streaming: killed in its life, not at its beginning.
    fn killed_while_it_streams_a_capture_ends_equal(version: PgVersion) {
        killed_while_it_streams(&Stage::new(version));
    }

    /// F2: a process that was suspended wakes up after another went on in its place, and does no harm.
    fn a_zombie_does_no_harm(version: PgVersion) {
        wakes_up_and_does_no_harm(&Stage::new(version));
    }
}

/// A capture that streams while others write is killed at every step of it.
pub(super) fn killed_while_it_streams(shop: &impl Shop) {
    shop.catch_up();
    let writer = shop.writer();
    for round in 0..kills() as u32 {
        let name = STEPS[round as usize % STEPS.len()];
        let point = Failpoint {
            name: name.into(),
            nth: 2 + round * 3,
        };
        let running = KillRun::new(&shop.command(&["run", "shop.yaml"])).accident(&point, Action::Kill);
        let outcome = running.start().wait();
        assert!(outcome.killed, "{point}: {}", outcome.stderr);
    }
    assert!(writer.end() > 10);
    shop.catch_up();
    shop.assert_equal("killed while it streams");
}

/// A process is suspended before a commit while another one goes on in its place; then it wakes up.
pub(super) fn wakes_up_and_does_no_harm(shop: &impl Shop) {
    shop.catch_up();
    let writer = shop.writer();
    let point = Failpoint {
        name: "engine.commit.before".into(),
        nth: 2,
    };
    let elsewhere = shop.command(&["run", "shop.yaml", "--data-dir", "other"]);
    let mut zombie = KillRun::new(&elsewhere).accident(&point, Action::Stop).start();
    zombie.wait_stopped();
    shop.catch_up();
    zombie.resume();
    writer.end();
    shop.until_equal(&zombie);
    stop(zombie);
    shop.catch_up();
    shop.assert_equal("after the zombie");
}
