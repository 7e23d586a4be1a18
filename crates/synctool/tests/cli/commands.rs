//! Every command, for people and for programs.

use crate::Home;
use serde_json::Value;

fn names(list: &Value, key: &str) -> Vec<String> {
    let items = list.as_array().expect("a list");
    items
        .iter()
        .map(|i| i[key].as_str().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn copy_a_csv_file_into_sqlite_and_back() {
    let home = Home::new();
    home.write("in.csv", "id,name,price\n1,\"say \"\"hi\"\"\",1.50\n2,,2.25\n3,🎈,\n");
    let copy = ["copy", "in.csv", "in", "sqlite:out.db", "things", "--key", "id"];
    let ran = home.run(&copy).ok();
    assert!(
        ran.stdout.contains("table created") && ran.stdout.contains("INSERTED"),
        "{}",
        ran.stdout
    );

    let (code, summary) = home.json(&copy);
    assert_eq!((code, summary["status"].as_str()), (0, Some("completed")));
    assert_eq!(
        ["read", "inserted", "updated"].map(|count| summary[count].as_u64()),
        [3, 0, 3].map(Some),
        "a swap of rows that all have a successor"
    );
    assert_eq!(summary["verified"]["by"], "hash");

    home.run(&["copy", "sqlite:out.db", "things", "csv:folder", "things"])
        .ok();
    home.run(&["copy", "sqlite:out.db", "things", "back.csv"]).ok();
    let back = home.read("back.csv");
    assert!(back.starts_with("id,name,price\n1,\"say \"\"hi\"\"\",1.5"), "{back}");
    let (_, columns) = home.json(&["conns", "discover", "sqlite:out.db", "things"]);
    assert_eq!(names(&columns, "name"), ["id", "name", "price"]);
    assert_eq!(columns[0]["key"], true);
}

#[test]
fn a_second_run_writes_only_what_differs() {
    let home = Home::new();
    home.items("from.db", 300).pipeline(100);
    home.run(&["run", "items.yaml"]).ok();
    home.sql("from.db", "UPDATE items SET note = 'new' WHERE id = 30; DELETE FROM items WHERE id = 60; INSERT INTO items VALUES (-1, 'a', NULL, NULL)");
    let (code, summary) = home.json(&[
        "run",
        "--config",
        "items.yaml",
        "--full-mode",
        "upsert",
        "--strategy",
        "nightly",
    ]);
    assert_eq!(code, 0, "{summary}");
    let counts = ["read", "inserted", "updated", "deleted", "unchanged", "rejected"].map(|k| summary[k].as_u64());
    assert_eq!(counts, [300, 1, 1, 1, 298, 0].map(Some), "{summary}");
    // The file alone is the whole database: it may be moved or sent.
    assert!(!home.path("to.db-wal").exists(), "a write-ahead log is left");
    assert_eq!(home.rows("from.db"), home.rows("to.db"));
}

#[test]
fn columns_and_key_of_a_copy() {
    let home = Home::new();
    home.items("from.db", 10);
    let copy = [
        "copy",
        "sqlite:from.db",
        "items",
        "sqlite:to.db",
        "few",
        "--columns",
        "id,name",
    ];
    home.run(&copy).ok();
    let (_, columns) = home.json(&["conns", "discover", "sqlite:to.db", "few"]);
    assert_eq!(names(&columns, "name"), ["id", "name"]);
}

#[test]
fn a_saved_copy_is_a_pipeline() {
    let home = Home::new();
    home.items("from.db", 10);
    home.run(&[
        "copy",
        "sqlite:from.db",
        "items",
        "sqlite:to.db",
        "--save",
        "saved.yaml",
    ])
    .ok();
    home.run(&["config", "validate", "saved.yaml"]).ok();
    let (code, summary) = home.json(&["run", "saved.yaml"]);
    assert_eq!((code, summary["read"].as_u64()), (0, Some(10)));
    // It is the same pipeline: both runs stand in one history.
    let (_, runs) = home.json(&["runs", "list"]);
    assert_eq!(names(&runs, "pipeline")[0], names(&runs, "pipeline")[1]);
}

#[test]
fn a_plan_tells_all_and_changes_nothing() {
    let home = Home::new();
    home.items("from.db", 1000).pipeline(250);
    for arguments in [&["plan", "items.yaml"][..], &["run", "items.yaml", "--dry-run"]] {
        let ran = home.run(arguments).ok();
        for part in [
            "strategy full",
            "table created",
            "4 partitions",
            "INTEGER",
            "CREATE TABLE",
            "exact",
        ] {
            assert!(ran.stdout.contains(part), "no {part:?} in\n{}", ran.stdout);
        }
    }
    let (code, plan) = home.json(&["plan", "items.yaml"]);
    assert_eq!((code, plan["partitions"].as_array().map(Vec::len)), (0, Some(4)));
    assert_eq!(plan["columns"][0]["fidelity"], "exact");
    assert!(!home.path("to.db").exists(), "a plan made the destination");
    assert!(!home.path("data").exists(), "a plan made the data directory");
}

#[test]
fn init_writes_a_pipeline_that_runs() {
    let home = Home::new();
    home.items("from.db", 20);
    let ran = home
        .run(&["init", "sqlite:from.db", "items", "sqlite:to.db", "--dir", "shop"])
        .ok();
    assert!(ran.stdout.contains("synctool run shop/items.yaml"), "{}", ran.stdout);
    assert!(home.read("shop/items.yaml").contains("key: [id]"));
    home.run(&["run", "shop/items.yaml", "--strategy", "hash"])
        .fails(2, &["no strategy \"hash\"", "- {name: hash, type: hash}"]);
    home.run(&["doctor", "shop/items.yaml"]).ok();
    home.run(&["run", "shop/items.yaml"]).ok();
    assert_eq!(home.rows("from.db"), home.rows("to.db"));
    // The same again changes nothing; another table's pipeline does not take the place of the first unasked.
    home.run(&["init", "sqlite:from.db", "items", "sqlite:to.db", "--dir", "shop"])
        .ok();
    let other = [
        "init",
        "sqlite:from.db",
        "items",
        "sqlite:to.db",
        "other",
        "--dir",
        "shop",
    ];
    home.run(&other).fails(4, &["exists and would be replaced", "--yes"]);
    let (code, made) = home.json(&[&other[..], &["--yes"]].concat());
    assert_eq!((code, made["pipeline"].as_str()), (0, Some("items")));
}

#[test]
fn doctor_finds_what_is_wrong_and_says_what_to_do() {
    let home = Home::new();
    home.items("from.db", 5).pipeline(100);
    let (code, found) = home.json(&["doctor", "items.yaml"]);
    assert_eq!((code, &found["ok"]), (0, &Value::Bool(true)), "{found}");
    home.run(&["doctor"]).ok();
    home.run(&["doctor", "sqlite:from.db"]).ok();
    std::fs::remove_file(home.path("from.db")).expect("removed");
    let ran = home.run(&["doctor", "items.yaml"]);
    assert_eq!(ran.code, 1);
    assert!(
        ran.stdout.contains("FAIL") && ran.stdout.contains("to do"),
        "{}",
        ran.stdout
    );
    let (code, found) = home.json(&["doctor", "items.yaml"]);
    assert_eq!((code, &found["ok"]), (1, &Value::Bool(false)));
    assert!(
        found["findings"]
            .as_array()
            .expect("a list")
            .iter()
            .any(|f| f["ok"] == false && f["fix"] != "")
    );
    // Nobody answers, so nothing is connected.
    let (code, found) = home.json(&["doctor", "postgresql://u@127.0.0.1:1/d"]);
    let findings = found["findings"].as_array().expect("a list");
    let connections = findings.iter().filter(|f| f["what"] == "connection");
    let failed: Vec<bool> = connections.map(|f| f["ok"] == false).collect();
    assert!(code == 1 && !failed.is_empty() && !failed.contains(&false), "{found}");
}

#[test]
fn an_old_pipeline_is_migrated() {
    let home = Home::new();
    home.write(
        "datastores.yaml",
        "datastores: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}\n",
    );
    let old = "name: old\npartition_column: id\nsource_provider: {data_backend: {datastore_name: a, table: t}}\n\
               destination_provider: {data_backend: {datastore_name: b, table: t}}\n\
               column_map: [{source: id, dest: id, roles: [unique_column]}]\n";
    home.write("old.yaml", old);
    let printed = home.run(&["config", "migrate", "old.yaml"]).ok().stdout;
    assert!(
        printed.contains("#   column_map -> columns, key") && printed.contains("\nsource:\n"),
        "{printed}"
    );
    assert_eq!(home.read("old.yaml"), old);
    home.run(&["config", "migrate", "old.yaml", "--to", "new.yaml"]).ok();
    assert_eq!(home.read("new.yaml"), printed);
    home.run(&["config", "validate", "new.yaml"]).ok();
    // In another folder relative paths mean other files.
    home.write("other/kept.yaml", "");
    for (to, told) in [("again.yaml", false), ("other/new.yaml", true)] {
        let said = home.run(&["config", "migrate", "old.yaml", "--to", to]).ok().stderr;
        assert_eq!(said.contains("are looked for beside"), told, "{said}");
    }
    // What is there stays.
    home.run(&["config", "migrate", "old.yaml", "--to", "new.yaml"])
        .fails(2, &["new.yaml cannot be written"]);
    let (code, json) = home.json(&["config", "migrate", "old.yaml", "--in-place"]);
    assert_eq!(
        (code, &json["changed"], &json["file"]),
        (0, &true.into(), &"old.yaml".into())
    );
    assert_eq!(home.read("old.yaml"), printed);
    let (_, again) = home.json(&["config", "migrate", "old.yaml"]);
    assert_eq!(again["changed"], false);
    home.write("wrong.yaml", "sync_job: {}\n");
    home.run(&["config", "migrate", "wrong.yaml"])
        .fails(2, &["wrong.yaml:1:11: missing key \"source_provider\" in sync_job"]);
}

#[test]
fn config_commands() {
    let home = Home::new();
    home.items("from.db", 5).pipeline(100);
    let ran = home.run(&["config", "validate", "items.yaml"]).ok();
    assert!(ran.stdout.contains("is valid"), "{}", ran.stdout);
    let (code, valid) = home.json(&["config", "validate", "items"]);
    assert_eq!((code, &valid["valid"]), (0, &Value::Bool(true)));
    let ran = home.run(&["config", "show", "items.yaml"]).ok();
    assert!(
        ran.stdout.contains("items.yaml:1:7") && ran.stdout.contains("default"),
        "{}",
        ran.stdout
    );
    let (_, shown) = home.json(&["config", "show", "items.yaml"]);
    assert_eq!(shown["resolved"]["name"], "items");
    let (_, global) = home.json(&["config", "show", "--data-dir", "elsewhere"]);
    assert_eq!(global["resolved"]["data_dir"], "elsewhere");
    // No scheduler runs: none is shown, but for what the file says of it.
    for unused in ["scheduler", "worker", "http", "log_batching"] {
        assert!(global["resolved"].get(unused).is_none(), "{global}");
    }
    home.write(
        "synctool.yaml",
        "scheduler: {http_port: 8002, slot_definitions: {large: 2}}\n",
    );
    let (_, said) = home.json(&["config", "show"]);
    let wanted = serde_json::json!({"http_port": 8002, "slot_definitions": {"large": 2}});
    assert_eq!(said["resolved"]["scheduler"], wanted, "{said}");
    assert_eq!(
        said["resolved"]["build_system"],
        serde_json::json!({"user_config_dir": "./pipelines"})
    );
    let ran = home.run(&["config", "show"]).ok();
    assert!(!ran.stdout.contains("enabled"), "{}", ran.stdout);
    assert!(ran.stderr.contains("scheduler has no effect"), "{}", ran.stderr);
    std::fs::remove_file(home.path("synctool.yaml")).expect("removed");
    let (_, list) = home.json(&["config", "list"]);
    assert_eq!(names(&list, "name"), ["items"]);
    assert!(home.run(&["config", "list"]).ok().stdout.contains("nightly"));
    for of in ["pipeline", "datastores", "global"] {
        let (code, schema) = home.json(&["config", "schema", of]);
        assert_eq!(code, 0);
        assert!(
            schema["$schema"].as_str().is_some_and(|s| s.contains("2020-12")),
            "{of}"
        );
    }
}

#[test]
fn runs_and_state() {
    let home = Home::new();
    home.items("from.db", 50).pipeline(20);
    for (arguments, says) in [
        (&["runs", "list"][..], "no pipeline has run"),
        (&["state", "show"], "nothing is remembered"),
    ] {
        assert!(home.run(arguments).ok().stdout.contains(says));
    }
    assert!(!home.path("data").exists(), "a look made the data directory");
    home.run(&["run", "items.yaml"]).ok();
    home.run(&["run", "items"]).ok();

    let (_, runs) = home.json(&["runs", "list", "items", "--limit", "5"]);
    let ids = names(&runs, "run_id");
    assert_eq!(ids.len(), 2);
    assert_eq!(names(&runs, "status"), ["completed", "completed"]);
    assert!(home.run(&["runs", "list"]).ok().stdout.contains(&ids[0]));
    let (_, shown) = home.json(&["runs", "show", &ids[1]]);
    assert_eq!(shown["rows_processed"], 50);
    assert_eq!(shown["partitions"].as_array().map(Vec::len), Some(3));
    assert!(home.run(&["runs", "show", "latest"]).ok().stdout.contains(&ids[0]));
    assert!(
        home.run(&["runs", "logs", &ids[0]])
            .ok()
            .stdout
            .contains("Completed: 50 rows")
    );
    let log = home.run(&["runs", "logs", &ids[0], "--output", "ndjson"]).ok().stdout;
    assert!(
        log.lines()
            .all(|line| serde_json::from_str::<Value>(line).is_ok_and(|l| l["run_id"] == *ids[0]))
    );
    std::fs::remove_file(home.path(&format!("data/logs/items/{}.log", ids[0]))).expect("the log");
    let next = format!("next: what is still known of it: synctool runs show {}", ids[0]);
    home.run(&["runs", "logs", &ids[0]]).fails(2, &["is gone", &next]);

    let (_, state) = home.json(&["state", "show", "items"]);
    assert_eq!(
        (state["run_id"].as_str(), state["status"].as_str()),
        (Some(&*ids[0]), Some("completed"))
    );
    assert!(
        home.run(&["state", "show", "--strategy", "nightly"])
            .ok()
            .stdout
            .contains("nightly")
    );
    let (_, gone) = home.json(&["state", "cleanup", "--days", "0"]);
    assert_eq!(
        gone["runs"].as_array().map(Vec::len),
        Some(1),
        "the newest run stays: {gone}"
    );

    home.run(&["state", "reset", "items"])
        .fails(4, &["Nobody is there to answer", "--yes"]);
    let (code, reset) = home.json(&["state", "reset", "items", "--yes"]);
    assert_eq!((code, &reset["reset"]), (0, &Value::Bool(true)));
    home.run(&["state", "show", "items"])
        .fails(2, &["nothing is remembered of a pipeline items"]);
    assert_eq!(
        home.rows("from.db"),
        home.rows("to.db"),
        "a reset forgets progress, not rows"
    );
}

#[test]
fn datastores_of_a_file() {
    let home = Home::new();
    home.items("from.db", 5).write(
        "datastores.yaml",
        "datastores:\n  shop: {type: sqlite, path: from.db, description: The shop}\n  files: {type: csv, path: .}\n",
    );
    let (_, list) = home.json(&["conns", "list"]);
    assert_eq!(names(&list, "name"), ["files", "shop"]);
    assert!(home.run(&["conns", "list"]).ok().stdout.contains("The shop"));
    let (code, tested) = home.json(&["conns", "test", "shop"]);
    assert_eq!(
        (code, &tested[0]["ok"], tested[0]["tables"].as_u64()),
        (0, &Value::Bool(true), Some(2))
    );
    home.run(&["conns", "test", "sqlite:from.db"]).ok();
    let (_, tables) = home.json(&["conns", "discover", "shop"]);
    assert_eq!(names(&tables, "name"), ["item_tags", "items"]);
    assert!(
        home.run(&["conns", "discover", "shop", "items"])
            .ok()
            .stdout
            .contains("price")
    );
}

#[test]
fn ndjson_tells_events_and_ends_with_the_summary() {
    let home = Home::new();
    home.items("from.db", 100).pipeline(40);
    let ran = home.run(&["run", "items.yaml", "--output", "ndjson"]).ok();
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let kinds: Vec<&str> = lines.iter().filter_map(|l| l["type"].as_str()).collect();
    assert_eq!(kinds.iter().filter(|k| **k == "partition_done").count(), 3, "{kinds:?}");
    assert_eq!((kinds.first(), kinds.last()), (Some(&"planned"), Some(&"summary")));
    let summary = lines.last().expect("a line");
    assert_eq!(
        (summary["status"].as_str(), summary["read"].as_u64()),
        (Some("completed"), Some(100))
    );
}

#[test]
fn completions_for_every_shell() {
    let home = Home::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = home.run(&["completions", shell]).ok().stdout;
        assert!(script.contains("synctool") && script.contains("discover"), "{shell}");
    }
}

#[test]
fn every_command_explains_itself() {
    let home = Home::new();
    let top = home.run(&["--help"]).ok().stdout;
    for command in [
        "run",
        "copy",
        "plan",
        "verify",
        "repair",
        "diff",
        "init",
        "doctor",
        "config",
        "state",
        "runs",
        "conns",
        "datasync",
        "cdc",
        "wal",
        "completions",
    ] {
        assert!(top.contains(command));
        let help = home.run(&[command, "--help"]).ok().stdout;
        assert!(
            help.contains("Usage: synctool") && help.contains("--data-dir"),
            "{command}: {help}"
        );
    }
    for commands in [
        "run",
        "copy",
        "plan",
        "verify",
        "repair",
        "diff",
        "init",
        "doctor",
        "completions",
        "config validate show list migrate schema",
        "state show reset cleanup",
        "runs list show logs",
        "conns list test discover",
        "datasync start run-once stop status clear resync add-tables remove-tables verify logs metrics doctor",
        "cdc status pause resume refresh slots",
        "wal dump stats",
    ] {
        let (first, below) = commands.split_once(' ').unwrap_or((commands, ""));
        let mut all: Vec<Vec<&str>> = below.split_whitespace().map(|c| vec![first, c]).collect();
        if all.is_empty() {
            all.push(vec![first]);
        }
        for mut command in all {
            let example = format!("  synctool {}", command.join(" "));
            command.push("--help");
            let help = home.run(&command).ok().stdout;
            assert!(help.contains("Example") && help.contains(&example), "{help}");
        }
    }
    assert!(home.run(&["--version"]).ok().stdout.starts_with("synctool "));
}

#[test]
fn the_quick_start_of_the_readme() {
    let home = Home::new();
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart/");
    for file in ["pipeline.yaml", "orders.csv"] {
        let text = std::fs::read_to_string(format!("{root}{file}")).expect("the quick start");
        home.write(&format!("quickstart/{file}"), &text);
    }
    home.write("quickstart/out/.gitignore", "*");
    // Nobody knows yet how many rows the file has.
    let plan = home.run(&["plan", "quickstart/pipeline.yaml"]).ok();
    assert!(
        plan.stdout.contains("1 partition, 60") && !plan.stdout.contains("0 rows"),
        "{}",
        plan.stdout
    );
    let run = ["run", "--config", "quickstart/pipeline.yaml"];
    let (code, first) = home.json(&run);
    assert_eq!((code, first["inserted"].as_u64()), (0, Some(5000)), "{first}");
    let (_, second) = home.json(&run);
    assert_eq!(
        (second["inserted"].as_u64(), second["unchanged"].as_u64()),
        (Some(0), Some(5000))
    );
    let text = home.read("quickstart/orders.csv").replacen(",paid,", ",shipped,", 1);
    home.write("quickstart/orders.csv", &text);
    let (_, third) = home.json(&run);
    assert_eq!(
        (third["updated"].as_u64(), third["unchanged"].as_u64()),
        (Some(1), Some(4999))
    );
}

#[test]
fn the_pipeline_of_the_readme_is_valid() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md");
    let readme = std::fs::read_to_string(readme).expect("the readme");
    let (_, pipeline) = readme.split_once("```yaml\n").expect("a pipeline");
    let (pipeline, _) = pipeline.split_once("```").expect("its end");
    let home = Home::new();
    home.write("orders.yaml", pipeline).write(
        "datastores.yaml",
        "datastores:\n  shop: {type: sqlite, path: shop.db}\n  copy: {type: sqlite, path: copy.db}\n",
    );
    home.run(&["config", "validate", "orders.yaml"]).ok();
}

#[test]
fn a_run_within_bounds_leaves_the_rest_as_it_is() {
    let home = Home::new();
    home.items("from.db", 50).pipeline(10);
    home.run(&["run", "items.yaml"]).ok();
    home.sql(
        "from.db",
        "UPDATE items SET name = 'new'; DELETE FROM items WHERE id IN (15, 45)",
    );
    let bounds = r#"[{"column": "id", "start": 10, "end": 20}]"#;
    home.run(&["run", "items.yaml", "--bounds", bounds]).ok();
    let rows = home.rows("to.db");
    assert_eq!(rows.len(), 50, "nothing is deleted");
    for (id, name, ..) in rows {
        let inside = (10..20).contains(&id) && id != 15;
        assert_eq!(name == "new", inside, "row {id}");
    }
    // Without bounds everything is made equal again.
    home.run(&["run", "items.yaml", "--allow-mass-delete"]).ok();
    assert_eq!(home.rows("to.db"), home.rows("from.db"));
}
