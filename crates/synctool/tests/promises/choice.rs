//! Which strategy runs where none is named, and what an unfinished run has to say about it.

use super::*;
use serde_json::Value;
use synctool_testkit::kill::KillRun;

const PIPELINE: &str = "name: p\nsource: {datastore: from, table: public.items}\ndestination: {datastore: to, table: public.copies}\n\
     strategies:\n  - {name: changes, type: delta, column: updated_at, margin: 1ms}\n  - {name: compare, type: hash}\n  \
     - {name: all, type: full, full_mode: upsert}\n";

fn items(db: &TestDb) {
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, v int NOT NULL, updated_at timestamptz NOT NULL DEFAULT now() - interval '1 hour');
         INSERT INTO items SELECT i, i FROM generate_series(1, 3000) i",
    );
}

/// What a plan says: the strategy that it follows, and why it was chosen.
fn planned(place: &Place) -> (String, String) {
    let plan = place.json(&["plan", "p.yaml"], 0);
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    (text(&plan["strategy"]), text(&plan["reasons"][0]))
}

#[test]
fn a_plan_tells_the_choice_and_its_reason() {
    let db = database("choice");
    items(&db);
    let place = here(&db);
    place.write("p.yaml", PIPELINE);
    let says = |kind: &str, name: &str, why: &str| {
        let (strategy, reason) = planned(&place);
        assert_eq!(strategy, kind, "{reason}");
        let told = reason.starts_with(&format!("strategy {name}: ")) && reason.contains(why);
        assert!(told, "wanted {name}, {why}: {reason}");
    };
    says("full", "changes", "the destination is empty");
    place.json(&["run", "p.yaml"], 0);
    // That load is no measure of a delta, whatever another one took.
    place.json(&["run", "p.yaml", "--strategy", "compare"], 0);
    says("delta", "changes", "the usual way");
    // Rows of unknown age.
    let mark = db.psql("SELECT value FROM synctool.memory WHERE fact = 'delta:updated_at'");
    db.psql("DELETE FROM synctool.memory");
    says("hash", "compare", "has no watermark yet");
    db.psql(&format!(
        "INSERT INTO synctool.memory(pipeline, fact, value) VALUES ('p', 'delta:updated_at', '{}')",
        mark.trim()
    ));
    // Both are measured; of a small gap it is told how small it is.
    for _ in 0..2 {
        place.json(&["run", "p.yaml", "--strategy", "changes"], 0);
    }
    let (_, reason) = planned(&place);
    for part in [
        "cheapest by earlier runs",
        "changes about",
        "2 earlier runs",
        "compare about",
        "since the watermark",
    ] {
        assert!(reason.contains(part), "no {part} in {reason}");
    }
    // What takes so long that a comparison is cheaper.
    db.psql("UPDATE synctool.memory SET value = (value::timestamptz - interval '20 years')::text WHERE fact = 'delta:updated_at'");
    says("hash", "compare", "cheapest by earlier runs");
}

/// A run that was killed with something committed, of a strategy that would not be chosen now.
fn killed(db: &TestDb, strategy: &str) -> Place {
    items(db);
    db.psql("CREATE TABLE copies AS SELECT * FROM items WHERE id % 3 > 0; ALTER TABLE copies ADD PRIMARY KEY (id)");
    let place = here(db);
    place.write("p.yaml", PIPELINE);
    let command = place.command(&["run", "p.yaml", "--strategy", strategy, "--workers", "1"]);
    KillRun::new(&command).at("sink.commit.after", 1).run().assert_killed();
    place
}

#[test]
fn an_unfinished_run_goes_on_where_none_is_named() {
    for strategy in ["changes", "all"] {
        let db = database("choice_killed");
        let place = killed(&db, strategy);
        let plan = place.json(&["plan", "p.yaml"], 0);
        let reason = plan["reasons"][0].as_str().unwrap_or_default();
        assert!(
            plan["resumes"].is_object() && reason.starts_with(&format!("strategy {strategy}: its run")),
            "{plan}"
        );
        for command in ["plan", "run"] {
            let refused = place.json(&[command, "p.yaml", "--strategy", "compare"], 2).to_string();
            let told = refused.contains(&format!("of strategy {strategy} is unfinished"))
                && refused.contains(&format!("synctool run p --strategy {strategy}"));
            assert!(told, "{refused}");
        }
        let refused = place.json(&["repair", "p.yaml"], 2).to_string();
        assert!(refused.contains("is unfinished"), "{refused}");
        let run = place.json(&["run", "p.yaml"], 0);
        assert_eq!(
            (&run["strategy"], &run["resumed"]),
            (&strategy.into(), &true.into()),
            "{run}"
        );
        let differ =
            "SELECT count(*) FROM ((TABLE items EXCEPT TABLE copies) UNION ALL (TABLE copies EXCEPT TABLE items)) d";
        assert_eq!(db.psql(differ).trim(), "0");
    }
}

#[test]
fn another_strategy_begins_where_the_unfinished_run_is_forgotten() {
    let db = database("choice_restart");
    let place = killed(&db, "changes");
    let run = place.json(&["run", "p.yaml", "--strategy", "compare", "--restart"], 0);
    assert_eq!(
        (&run["strategy"], &run["resumed"]),
        (&"compare".into(), &false.into()),
        "{run}"
    );
}

/// A second run of a pipeline fails and names who runs it; where its strategy says so, it waits for the end of the first.
#[test]
fn a_run_waits_for_another_one_where_its_strategy_says_so() {
    let db = database("waiting_run");
    db.psql("CREATE TABLE items(id int PRIMARY KEY); INSERT INTO items SELECT generate_series(1, 10)");
    let gate = gate::Gate::closed(&db);
    let place = here(&db);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: public.gated}\ndestination: {datastore: to, table: public.copies}\nkey: [id]\ncolumns: [id, g]\n\
         strategies:\n  - {name: now, type: full}\n  - {name: briefly, type: full, wait_for_pipeline_lock: true, pipeline_lock_wait_timeout: 1s}\n  \
         - {name: patient, type: full, wait_for_pipeline_lock: true}\n",
    );
    let mut first = place
        .command(&["run", "p.yaml", "--strategy", "now"])
        .spawn()
        .expect("the program starts");
    synctool_testkit::wait_for("a reader", std::time::Duration::from_secs(60), || gate.waiting() > 0);
    for strategy in ["now", "briefly"] {
        let refused = place.synctool(&["run", "p.yaml", "--strategy", strategy]);
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            told.contains("ST-TXN-003") && told.contains(&first.id().to_string()),
            "{strategy}: {told}"
        );
        assert_eq!(
            told.contains("its end is waited for"),
            strategy == "briefly",
            "{strategy}: {told}"
        );
    }
    let log = place.path().join("waiting.txt");
    let out = std::fs::File::create(&log).expect("a file");
    let mut second = place.command(&["run", "p.yaml", "--strategy", "patient"]);
    let mut second = second.stderr(out).spawn().expect("the program starts");
    synctool_testkit::wait_for("the second run to wait", std::time::Duration::from_secs(60), || {
        let told = std::fs::read_to_string(&log).unwrap_or_default();
        match told.contains("its end is waited for") && told.contains(&first.id().to_string()) {
            true => Ok(()),
            false => Err(told),
        }
    });
    gate.open();
    assert!(first.wait().expect("its end").success());
    assert!(second.wait().expect("its end").success());
    assert_eq!(
        db.psql("SELECT count(*) FROM synctool.memory WHERE fact = 'definition'")
            .trim(),
        "1"
    );
}

/// Who holds the bound of a delta back is told, before and after the run.
#[test]
fn a_plan_and_a_run_say_who_holds_the_bound_back() {
    let db = database("held_back");
    items(&db);
    let place = here(&db);
    place.write("p.yaml", PIPELINE);
    let named = ["p.yaml", "--strategy", "changes"];
    place.json(&[&["run"][..], &named].concat(), 0);
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let writer = runtime.block_on(db.connect());
    let pid = runtime
        .block_on(writer.query_one("SELECT pg_backend_pid()", &[]))
        .expect("a pid");
    let pid = format!("held back by pid {}, idle in transaction", pid.get::<_, i32>(0));
    let begin = "BEGIN; UPDATE items SET v = 0, updated_at = now() WHERE id = 1";
    runtime.block_on(writer.batch_execute(begin)).expect("begun");
    let words = place.synctool(&[&["plan"][..], &named].concat());
    let words = String::from_utf8_lossy(&words.stdout).into_owned();
    assert!(words.contains(&pid), "{words}");
    for command in ["plan", "run"] {
        let said = place.json(&[&[command][..], &named].concat(), 0)["reasons"].to_string();
        assert!(said.contains(&pid), "{command}: {said}");
    }
}
