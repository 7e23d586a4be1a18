//! Runs that are stopped, killed, or started twice.

use crate::Home;
use serde_json::Value;
use std::time::{Duration, Instant};
use synctool_testkit::kill::{Action, Failpoint, KillRun, Running};
use synctool_testkit::wait_for;

const RUN: &[&str] = &["run", "items.yaml", "--output", "json", "--workers", "1"];

fn home() -> Home {
    let home = Home::new();
    home.items("from.db", 1000).pipeline(100);
    home
}

/// A run that holds still right after its third commit.
fn held(home: &Home) -> Running {
    held_at(home, "sink.commit.after", 3)
}

fn held_at(home: &Home, name: &str, nth: u32) -> Running {
    let point = Failpoint { name: name.into(), nth };
    let mut running = KillRun::new(&home.command(RUN)).accident(&point, Action::Stop).start();
    running.wait_stopped();
    running
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// The next run goes on with what was left, and all rows are there.
#[track_caller]
fn goes_on(home: &Home, at_least: u64) {
    let (code, summary) = home.json(&["run", "items.yaml"]);
    assert_eq!(code, 0, "{summary}");
    assert_eq!(summary["resumed"], true, "{summary}");
    assert!(summary["skipped"].as_u64() >= Some(at_least), "{summary}");
    assert_eq!(summary["read"].as_u64(), Some(1000));
    assert!(summary["read_now"].as_u64() <= Some(1000 - at_least * 100), "{summary}");
    assert_eq!(home.rows("from.db"), home.rows("to.db"));
}

#[test]
fn ctrl_c_saves_and_the_next_run_goes_on() {
    let home = home();
    let running = held(&home);
    running.interrupt();
    running.resume();
    let out = running.wait();
    assert_eq!(out.code, Some(130), "{}\n{}", out.stdout, out.stderr);
    assert!(out.stderr.contains("stopping at the next boundary"), "{}", out.stderr);
    let summary = json(&out.stdout);
    assert_eq!(
        (summary["status"].as_str(), summary["error"]["exit_code"].as_u64()),
        (Some("interrupted"), Some(130))
    );
    let (_, state) = home.json(&["state", "show", "items"]);
    assert_eq!(state["status"], "interrupted");
    goes_on(&home, 3);
}

#[test]
fn a_second_ctrl_c_does_not_wait() {
    let home = home();
    // The fourth partition is taken and not begun.
    let running = held_at(&home, "sink.recover.after", 4);
    // Somebody keeps the destination locked, so the run cannot get to its next boundary.
    let db = rusqlite::Connection::open(home.path("to.db")).expect("a database");
    db.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    running.interrupt();
    running.resume();
    let told = || running.stderr().contains("again to stop at once");
    wait_for("the first one to be heard", Duration::from_secs(30), told);
    let second = Instant::now();
    running.interrupt();
    let out = running.wait();
    assert_eq!(out.code, Some(130), "{}\n{}", out.stdout, out.stderr);
    assert!(
        second.elapsed() < Duration::from_secs(5),
        "it waited {:?}",
        second.elapsed()
    );
    assert_eq!(out.stdout, "", "there is no summary of what was cut off");
    drop(db);
    goes_on(&home, 3);
}

#[test]
fn without_a_terminal_a_run_says_a_line_now_and_then() {
    let home = home();
    let mut often = home.command(&["run", "items.yaml"]);
    often.env("SYNCTOOL_HEARTBEAT", "0.005");
    let out = KillRun::new(&often).run();
    out.assert_success();
    let line = out.stderr.lines().find(|line| line.contains("loading"));
    let line = line.unwrap_or_else(|| panic!("no line about the load in\n{}", out.stderr));
    for part in ["pipeline=\"items\"", "/10 partitions", "rows", "%"] {
        assert!(line.contains(part), "no {part} in {line}");
    }
    let mut quiet = home.command(&["run", "items.yaml", "--quiet"]);
    quiet.env("SYNCTOOL_HEARTBEAT", "0.005");
    let out = KillRun::new(&quiet).run();
    out.assert_success();
    assert!(!out.stderr.contains("partitions"), "{}", out.stderr);
}

#[test]
fn after_kill_9_finished_partitions_are_not_done_again() {
    let home = home();
    KillRun::new(&home.command(RUN))
        .at("sink.commit.after", 5)
        .run()
        .assert_killed();
    let plan = home.run(&["plan", "items.yaml"]).ok().stdout;
    assert!(
        plan.contains("takes up run") && plan.contains("5 of 10 partitions are done"),
        "{plan}"
    );
    goes_on(&home, 5);
    let (_, runs) = home.json(&["runs", "list"]);
    assert_eq!(
        (runs[0]["status"].as_str(), runs[1]["status"].as_str()),
        (Some("completed"), Some("interrupted"))
    );
}

/// A cell of the destination's own tables.
#[track_caller]
fn own<T: rusqlite::types::FromSql>(home: &Home, query: &str) -> T {
    let db = rusqlite::Connection::open(home.path("to.db")).expect("a database");
    db.query_row(query, [], |row| row.get(0)).expect(query)
}

const KEPT: &str = "SELECT count(*) FROM _synctool_checkpoint";

/// What partitions did becomes one line of the history, whichever run finished them: nothing is kept of each.
#[test]
fn finished_partitions_fold_into_one_line() {
    let home = home();
    KillRun::new(&home.command(RUN))
        .at("sink.commit.after", 5)
        .run()
        .assert_killed();
    assert_eq!(own::<i64>(&home, &format!("{KEPT} WHERE done")), 5);
    assert_eq!(own::<i64>(&home, "SELECT count(*) FROM _synctool_history"), 0);
    goes_on(&home, 5);
    assert_eq!(own::<i64>(&home, KEPT), 0, "folded away");
    let line = "SELECT count(*) || ' ' || max(partitions) || ' ' || max(json_extract(applied, '$.inserted')) FROM _synctool_history";
    assert_eq!(own::<String>(&home, line), "1 10 1000");
}

/// The watermark is the high-water mark of a window's partitions: it moves once, with the last of them, and takes the place of
/// what was kept of each.
#[test]
fn finished_partitions_fold_into_the_watermark() {
    let home = home();
    let delta = "strategies:\n  - name: changes\n    type: delta\n    column: id\n    stamped_by: app\n    \
         primary_partitions: [{column: id, step: 300}]\n";
    let text = home.read("items.yaml");
    let (head, _) = text.split_once("partitioning:").expect("a pipeline");
    home.write("items.yaml", &format!("{head}{delta}"));
    let watermark = || own::<String>(&home, "SELECT value FROM _synctool_memory WHERE fact LIKE 'delta:%'");
    let (code, first) = home.json(&["run", "items.yaml"]);
    assert_eq!((code, first["read"].as_u64()), (0, Some(1000)), "{first}");
    assert_eq!((watermark().as_str(), own::<i64>(&home, KEPT)), ("2997", 0));

    home.sql(
        "from.db",
        "INSERT INTO items SELECT id + 3000, name, price, note FROM items",
    );
    KillRun::new(&home.command(RUN))
        .at("sink.commit.after", 2)
        .run()
        .assert_killed();
    let done = own::<i64>(&home, &format!("{KEPT} WHERE done"));
    assert!(done > 0, "a partition is finished");
    assert_eq!(watermark(), "2997", "it does not move before the last one is");
    let (code, rest) = home.json(&["run", "items.yaml"]);
    assert_eq!((code, &rest["resumed"]), (0, &Value::Bool(true)), "{rest}");
    assert_eq!(rest["skipped"].as_i64(), Some(done), "{rest}");
    assert_eq!((watermark().as_str(), own::<i64>(&home, KEPT)), ("5997", 0));
    assert_eq!(home.rows("from.db"), home.rows("to.db"));
    // The next window begins there: one row is read, the one that has this value.
    let (code, next) = home.json(&["run", "items.yaml"]);
    assert_eq!((code, next["read"].as_u64()), (0, Some(1)), "{next}");
}

#[test]
fn a_pipeline_runs_once_at_a_time() {
    let home = home();
    let running = held(&home);
    home.run(&["run", "items.yaml"])
        .fails(6, &["already running", "process"]);
    let (code, error) = home.json(&["run", "items.yaml"]);
    assert_eq!((code, error["error"]["code"].as_str()), (6, Some("ST-TXN-003")));
    home.run(&["state", "reset", "items.yaml", "--yes"])
        .fails(6, &["already running"]);
    running.kill();
    goes_on(&home, 3);
}

#[test]
fn a_changed_pipeline_is_not_taken_up_by_mistake() {
    let home = home();
    KillRun::new(&home.command(RUN))
        .at("sink.commit.after", 2)
        .run()
        .assert_killed();
    let text = home.read("items.yaml") + "columns: [id, name]\n";
    home.write("items.yaml", &text);
    home.run(&["run", "items.yaml"])
        .fails(2, &["the pipeline changed (columns)", "state reset items", "--restart"]);
    let (code, reset) = home.json(&["state", "reset", "items.yaml", "--yes"]);
    assert_eq!(code, 0, "{reset}");
    assert!(reset["forgotten"].to_string().contains("2 of 10 partitions"), "{reset}");
    let (code, summary) = home.json(&["run", "items.yaml"]);
    assert_eq!((code, &summary["resumed"]), (0, &Value::Bool(false)), "{summary}");
}

#[test]
fn restart_forgets_what_was_begun() {
    let home = home();
    KillRun::new(&home.command(RUN))
        .at("sink.commit.after", 2)
        .run()
        .assert_killed();
    let (code, summary) = home.json(&["run", "items.yaml", "--restart"]);
    assert_eq!(
        (code, &summary["resumed"], summary["skipped"].as_u64()),
        (0, &Value::Bool(false), Some(0))
    );
    assert_eq!(home.rows("from.db"), home.rows("to.db"));
}
