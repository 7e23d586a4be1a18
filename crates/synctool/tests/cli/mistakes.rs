//! What a newcomer does wrong, and what is said about it.

use crate::{Home, SECRET};

fn home() -> Home {
    let home = Home::new();
    home.items("from.db", 30).pipeline(100);
    home
}

#[test]
fn a_wrong_path_and_a_wrong_name() {
    let home = home();
    home.run(&["run", "item.yaml"])
        .fails(2, &["error: there is no file item.yaml", "did you mean items.yaml?"]);
    home.run(&["run", "itms"])
        .fails(2, &["no pipeline and no file named itms", "did you mean items?"]);
    home.run(&["run"]).fails(2, &["no pipeline was named", "items"]);
    home.run(&["state", "show", "itms"])
        .fails(2, &["nothing is remembered of a pipeline itms"]);
    home.run(&["runs", "show", "20200101_000000_abcdef"])
        .fails(2, &["there is no run"]);
    home.run(&["run", "items.yaml", "--strategy", "nigtly"])
        .fails(2, &["has no strategy", "did you mean \"nightly\""]);
}

/// Nobody knows which of two was meant: neither is taken.
#[test]
fn two_pipelines_of_one_name_are_told_with_both_places() {
    let home = home();
    let twin = home
        .read("items.yaml")
        .replace("name: items\n", "# a copy\nname: items\n");
    home.write("twin.yaml", &twin);
    let told = [
        "two pipelines are named \"items\"",
        "items.yaml:1:7",
        "twin.yaml:2:7",
        "ST-CFG-001",
    ];
    home.run(&["run", "items"]).fails(2, &told);
    home.run(&["plan", "items"]).fails(2, &told);
    // So is one of another folder; a file is always what it is.
    std::fs::remove_file(home.path("twin.yaml")).expect("removed");
    home.write("pipelines/twin.yaml", &twin);
    home.run(&["run", "items"])
        .fails(2, &["items.yaml:1:7", "pipelines/twin.yaml:2:7"]);
    home.run(&["run", "items.yaml"]).ok();
    // A name comes before the name of a file.
    home.write("pipelines/items.yaml", &twin.replace("name: items\n", "name: others\n"));
    home.write("pipelines/twin.yaml", "name: broken\n");
    home.run(&["run", "items"]).ok();
}

#[test]
fn an_unknown_command_or_option() {
    let home = home();
    home.run(&["rnu", "items.yaml"])
        .fails(2, &["unrecognized subcommand 'rnu'", "run"]);
    home.run(&["run", "--stratgy", "x"]).fails(2, &["--strategy"]);
    home.run(&["run", "items.yaml", "--memory", "1MiB"])
        .fails(2, &["must be at least 16MiB"]);
    home.run(&["runs", "list", "--limit", "0"])
        .fails(2, &["'0' for '--limit <N>'", "0 is not in 1.."]);
    let (code, error) = home.json(&["rnu"]);
    assert_eq!((code, error["error"]["exit_code"].as_u64()), (2, Some(2)));
    let says = |error: &serde_json::Value| error["error"]["message"].as_str().expect("a message").to_owned();
    assert!(says(&error).contains("unrecognized subcommand 'rnu'"), "{error}");
    let (_, error) = home.json(&["copy", "from.db"]);
    assert!(says(&error).contains("not provided: <SRC_TABLE> <DST_URI>"), "{error}");
}

#[test]
fn a_mistake_in_the_file_is_told_at_its_place() {
    let home = home();
    let text = home.read("items.yaml").replace("partitioning", "partitoning");
    home.write("items.yaml", &text);
    home.run(&["run", "items.yaml"]).fails(
        2,
        &[
            "error: items.yaml:7:1:",
            "partitoning",
            "did you mean \"partitioning\"",
            "code: ST-CFG-001",
        ],
    );
    let (code, error) = home.json(&["config", "validate", "items.yaml"]);
    assert_eq!(
        (code, error["error"]["mistakes"][0]["line"].as_u64()),
        (2, Some(7)),
        "{error}"
    );
    home.write("items.yaml", "name: [");
    home.run(&["config", "validate", "items.yaml"])
        .fails(2, &["items.yaml:1:"]);
    home.write(
        "items.yaml",
        &text.replace("partitoning: {step: 100}", "description: ${NOT_SET}"),
    );
    home.run(&["run", "items.yaml"]).fails(2, &["NOT_SET"]);
}

#[test]
fn a_table_or_column_that_is_not_there() {
    let home = home();
    home.run(&["copy", "sqlite:from.db", "itms", "sqlite:to.db"])
        .fails(2, &["itms", "items", "ST-CFG-010"]);
    home.run(&["copy", "sqlite:from.db", "items", "sqlite:to.db", "--columns", "id,nme"])
        .fails(2, &["column nme is not in items", "did you mean \"name\""]);
    home.run(&["copy", "sqlite:from.db", "items", "sqlite:to.db", "--key", "uid"])
        .fails(2, &["uid", "columns that are written: id, name, price, note"]);
    home.run(&["conns", "discover", "sqlite:from.db", "itms"])
        .fails(2, &["itms"]);
    home.write("t.csv", "id,name\n1,a\n").write(
        "lost.yaml",
        "name: lost\ndatastores: {from: {type: csv, path: t.csv}, to: {type: sqlite, path: to.db}}\n\
         source: {datastore: from, table: t}\ndestination: {datastore: to, table: t}\nkey: [id]\n\
         strategies: [{name: late, type: delta, column: updated_at}]\n",
    );
    home.run(&["run", "lost.yaml"]).fails(
        2,
        &["column updated_at is not in t", "it has: id, name", "lost.yaml:6:"],
    );
}

/// Stages name columns that only a look at the tables shows to be none: the place is told all the same.
#[test]
fn a_column_that_a_stage_misspells_is_told_at_its_place() {
    let home = home();
    home.sql("from.db", "CREATE TABLE kinds(id INTEGER PRIMARY KEY, label TEXT)");
    let file = home.read("items.yaml");
    let line = file.lines().count() + 2;
    for (stage, said) in [
        (
            "compute: {name: more, expression: pirce * 2}",
            &["column pirce is not in the pipeline"][..],
        ),
        ("filter: pirce > 1", &["column pirce is not in the pipeline"]),
        (
            "filter: [{column: pirce, value: 1}]",
            &["column pirce is not in the pipeline"],
        ),
        ("cast: {nmae: text}", &["column nmae is not in the pipeline"]),
        ("dedup: [nmae]", &["column nmae is not in the pipeline"]),
        ("dedup: {keys: [id], by: nmae}", &["column nmae is not in the pipeline"]),
        (
            "value_map: {column: nmae, mapping: {a: b}}",
            &["column nmae is not in the pipeline"],
        ),
        (
            "enrich: {datastore: from, table: kinds, on: [{column: iid, key: id}], fields: [label]}",
            &["column iid is not in the pipeline"],
        ),
        (
            "enrich: {datastore: from, table: kinds, on: [{column: id, key: iid}], fields: [label]}",
            &["column iid is not in kinds"],
        ),
        (
            "enrich: {datastore: from, table: kinds, on: [id], fields: [lable]}",
            &["column lable is not in kinds"],
        ),
    ] {
        home.write("items.yaml", &format!("{file}transform:\n  - {stage}\n"));
        let place = format!("items.yaml:{line}:");
        for command in ["plan", "run"] {
            home.run(&[command, "items.yaml"])
                .fails(2, &[&[place.as_str(), "ST-CFG-011"], said].concat());
        }
    }
}

#[test]
fn a_key_that_is_none() {
    let home = Home::new();
    home.write("twice.csv", "id,name\n1,a\n1,b\n");
    home.run(&["copy", "twice.csv", "twice", "sqlite:to.db", "--key", "id"])
        .fails(
            1,
            &[
                "two rows have the same key",
                "code: ST-DAT-005",
                "next: name as `key` all columns that identify a row",
            ],
        );
    home.run(&["copy", "twice.csv", "twice", "sqlite:other.db"]).ok();
    let ran = home.run(&["diff", "twice.csv", "twice", "sqlite:other.db"]);
    assert!(!ran.stderr.contains("full_mode"), "{}", ran.stderr);
    ran.fails(2, &["a comparison needs a key", "`--key id`"]);
}

#[test]
fn a_datastore_that_is_not_there() {
    let home = home();
    let text = home.read("items.yaml").replace("datastore: from", "datastore: form");
    home.write("items.yaml", &text);
    home.run(&["run", "items.yaml"]).fails(
        2,
        &[
            "there is no datastore \"form\"",
            "did you mean \"from\"",
            "items.yaml:5:",
        ],
    );
    home.run(&["conns", "test", "nothing"]).fails(2, &["nothing"]);
    home.run(&["copy", "sqlite:no.db", "items", "sqlite:to.db"])
        .fails(2, &["does not exist"]);
    home.run(&["copy", "sqlite:from.db", "items", "sqlite:./from.db"])
        .fails(2, &["source and destination are the same table"]);
    home.run(&["init", "sqlite:from.db", "items", "sqlite:./from.db"])
        .fails(2, &["source and destination are the same table"]);
    assert!(
        !home.path("datastores.yaml").exists(),
        "files of a mistake were written"
    );
    home.run(&["copy", "oracle://u:p@h/x", "t", "sqlite:to.db"])
        .fails(2, &["not a connection that SyncTool knows"]);
    home.run(&["copy", "clickhouse://u:p@h/x", "t", "sqlite:to.db"])
        .fails(2, &["not in this version yet"]);
}

#[test]
fn a_file_that_is_no_database() {
    let home = home();
    home.write(
        "notes.db",
        &"this is no database, but long enough to be looked at\n".repeat(50),
    );
    let ran = home.run(&["copy", "sqlite:notes.db", "items", "sqlite:to.db"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(
        ran.stderr.contains("notes.db") && ran.stderr.contains("code: ST-IO-003"),
        "{}",
        ran.stderr
    );
    let ran = home.run(&["copy", "sqlite:from.db", "items", "sqlite:notes.db"]);
    assert_ne!(ran.code, 0);
    assert!(ran.stderr.contains("notes.db"), "{}", ran.stderr);
}

#[test]
fn a_data_directory_that_cannot_be_written() {
    let home = home();
    home.write("data", "a file stands here");
    home.run(&["run", "items.yaml"])
        .fails(1, &["data", "--data-dir", "ST-STA-001"]);
    assert!(!home.path("to.db").exists(), "the destination was touched");
    home.run(&["run", "items.yaml", "--data-dir", "elsewhere"]).ok();
}

#[test]
fn narrowing_types_are_told_at_their_place() {
    let home = home();
    let text = home.read("items.yaml")
        + "columns:\n  - id\n  - {source: name, dest: name, data_type: varchar, length: 10}\n  - {source: price, dest: price, data_type: smallint}\n";
    home.write("items.yaml", &text);
    home.run(&["run", "items.yaml"]).fails(
        2,
        &[
            "items.yaml:11:43:",
            "data_type varchar(10) cannot hold",
            "items.yaml:12:",
            "data_type smallint cannot hold",
            "data_type: double",
        ],
    );
    assert!(!home.path("to.db").exists(), "the destination was touched");
}

#[test]
fn what_this_version_cannot_do_is_refused_not_ignored() {
    let home = home();
    home.run(&["run", "items.yaml", "--bounds", "{\"id\": 1}"])
        .fails(2, &["--bounds is not understood"]);
    home.run(&["run", "items.yaml", "--bounds", "{"])
        .fails(2, &["--bounds is not JSON"]);
    home.run(&[
        "run",
        "items.yaml",
        "--bounds",
        "[{\"column\": \"nme\", \"start\": \"a\"}]",
    ])
    .fails(2, &["nme"]);
    let text = home.read("items.yaml");
    home.write("items.yaml", &text.replace("type: full", "type: delta, column: id"));
    home.run(&["run", "items.yaml"])
        .fails(2, &["no clock of the database stamps it", "stamped_by: app"]);
    home.write("items.yaml", &text.replace("type: full", "type: log"));
    home.run(&["run", "items.yaml"])
        .fails(2, &["the log of sqlite cannot be followed"]);
}

#[test]
fn a_filter_is_applied() {
    let home = home();
    let text = home.read("items.yaml");
    let filtered = text.replace(
        "source: {datastore: from,",
        "source: {filters: [\"id > 5\"], datastore: from,",
    );
    assert_ne!(text, filtered);
    home.write("items.yaml", &filtered);
    home.run(&["run", "items.yaml"]).ok();
    // Two of the thirty ids are not above five.
    assert_eq!(home.rows("to.db").len(), 28);
    home.write(
        "items.yaml",
        &text.replace(
            "source: {datastore: from,",
            "source: {filters: [\"idd > 5\"], datastore: from,",
        ),
    );
    home.run(&["run", "items.yaml", "--restart"]).fails(2, &["idd"]);
}

#[test]
fn an_emptied_source_does_not_empty_the_destination() {
    let home = home();
    home.run(&["run", "items.yaml"]).ok();
    home.sql("from.db", "DELETE FROM items");
    home.run(&["run", "items.yaml"])
        .fails(4, &["--allow-mass-delete", "ST-POL-002"]);
    assert_eq!(home.rows("to.db").len(), 30);
    home.run(&["run", "items.yaml", "--allow-mass-delete"]).ok();
    assert_eq!(home.rows("to.db").len(), 0);
}

/// A file of which only the header is left has no types, and is as empty as any other source.
#[test]
fn a_file_emptied_to_its_header_does_not_empty_the_destination() {
    const HEADER: &str = "id,name,price,at\n";
    const ROWS: &str = "1,a,1.50,2024-01-31 10:00:00\n2,b,2,2024-02-01 00:00:00.5\n3,,,\n";
    let listed = "[{source: id, data_type: bigint}, name, {source: price, data_type: decimal}, at]";
    for columns in ["all", listed] {
        let home = Home::new();
        home.write("t.csv", &format!("{HEADER}{ROWS}")).write(
            "t.yaml",
            &format!(
                "name: t\ndatastores: {{from: {{type: csv, path: t.csv}}, to: {{type: sqlite, path: to.db}}}}\n\
                 source: {{datastore: from, table: t}}\ndestination: {{datastore: to, table: t}}\nkey: [id]\ncolumns: {columns}\n\
                 schema_drift: freeze\nstrategies:\n  - {{name: swap, type: full, full_mode: swap}}\n  \
                 - {{name: upsert, type: full, full_mode: upsert}}\n  \
                 - {{name: hash, type: hash, primary_partitions: [{{column: id, step: 2}}]}}\n  \
                 - {{name: keys, type: delta, column: at, stamped_by: app, lag: 1h, deletes: anti_join}}\n"
            ),
        );
        let count = || {
            let db = rusqlite::Connection::open(home.path("to.db")).expect("a database");
            let query = "SELECT count(*) || ' ' || count(price) || ' ' || coalesce(sum(id), 0) FROM t";
            db.query_row(query, [], |row| row.get::<_, String>(0)).expect("a table")
        };
        home.run(&["run", "t.yaml", "--strategy", "keys"]).ok();
        for strategy in ["swap", "upsert", "hash", "keys"] {
            assert_eq!(count(), "3 2 6", "{columns} {strategy}");
            home.write("t.csv", HEADER);
            let run = ["run", "t.yaml", "--strategy", strategy];
            home.run(&run).fails(4, &["--allow-mass-delete", "ST-POL-002"]);
            assert_eq!(count(), "3 2 6", "{columns} {strategy}");
            home.run(&[&run[..], &["--allow-mass-delete"]].concat()).ok();
            assert_eq!(count(), "0 0 0", "{columns} {strategy}");
            home.write("t.csv", &format!("{HEADER}{ROWS}"));
            home.run(&["run", "t.yaml", "--strategy", "upsert"]).ok();
        }
    }
    // Into nothing it is a table of texts.
    let home = Home::new();
    home.write("t.csv", HEADER);
    home.run(&["copy", "t.csv", "t", "sqlite:to.db", "--key", "id"]).ok();
    let db = rusqlite::Connection::open(home.path("to.db")).expect("a database");
    let types: String = db
        .query_row("SELECT group_concat(type) FROM pragma_table_info('t')", [], |row| {
            row.get(0)
        })
        .expect("a table");
    assert_eq!(types, "TEXT,TEXT,TEXT,TEXT");
}

#[test]
fn errors_for_programs_are_json_on_stdout() {
    let home = home();
    let (code, error) = home.json(&["copy", "sqlite:from.db", "itms", "sqlite:to.db"]);
    assert_eq!((code, error["status"].as_str()), (2, Some("failed")));
    let error = &error["error"];
    assert_eq!(
        (
            error["code"].as_str(),
            error["kind"].as_str(),
            error["exit_code"].as_u64()
        ),
        (Some("ST-CFG-010"), Some("config"), Some(2))
    );
    assert!(
        error["message"].as_str().is_some_and(|m| m.contains("itms")) && error["context"].is_object(),
        "{error}"
    );
}

#[test]
fn a_log_for_programs_is_json_lines() {
    let home = home();
    let ran = home
        .run(&["run", "items.yaml", "--log-format", "json", "--log-level", "debug"])
        .ok();
    for line in ran.stderr.lines() {
        assert!(
            serde_json::from_str::<serde_json::Value>(line).is_ok_and(|l| l["level"].is_string()),
            "{line}"
        );
    }
    for level in ["synctool=[[", "warning", "verbose"] {
        home.run(&["run", "items.yaml", "--log-level", level])
            .fails(2, &["log level", "error, warn, info"]);
    }
}

#[test]
fn secrets_stay_secret() {
    let home = home();
    home.write(
        "datastores.yaml",
        "datastores:\n  shop:\n    type: postgres\n    connection: {host: 127.0.0.1, port: 1, user: u, password: \"${SHOP_PASSWORD}\", dbname: d}\n",
    );
    let uri = format!("postgresql://u:{SECRET}@127.0.0.1:1/d");
    let bad = format!("postgresql://u:{SECRET}@127.0.0.1:port/d");
    home.write(
        "pg.yaml",
        "name: pg\nsource: {datastore: shop, table: t}\ndestination: {datastore: shop, table: u}\n",
    );
    for arguments in [
        &[
            "copy",
            &uri,
            "t",
            "sqlite:to.db",
            "--save",
            "saved.yaml",
            "--log-level",
            "trace",
        ][..],
        &["copy", &bad, "t", "sqlite:to.db"],
        &["init", &uri, "t", "sqlite:to.db"],
        &["doctor", &uri],
        &["doctor", "pg.yaml"],
        &["conns", "test", &uri],
        &["conns", "list"],
        &["conns", "test"],
        &["config", "show", "pg.yaml"],
        &["plan", "pg.yaml"],
        &["plan", "pg.yaml", &uri],
        &["run", "pg.yaml", "--log-level", "trace"],
        &["runs", "logs", "latest"],
        &["runs", "show", "latest"],
        &["state", "show"],
    ] {
        for format in ["text", "json", "ndjson"] {
            home.run(&[arguments, &["--output", format]].concat());
        }
    }
    assert!(
        home.read("saved.yaml").contains("${D_PASSWORD}"),
        "{}",
        home.read("saved.yaml")
    );
    home.no_file_tells(&[]);
}

/// An expression that nobody could run is a mistake of the file, told before anything is opened, with what can be used.
#[test]
fn an_expression_that_is_not_understood_is_a_mistake_of_the_file() {
    let home = home();
    let file = home.read("items.yaml");
    for (expression, said) in [
        (
            "\"lambda x: open('/etc/passwd')\"",
            &["at its character 11", "open", "a lambda may use"][..],
        ),
        (
            "\"lambda x: __import__('os').system('id')\"",
            &["__import__", "a lambda may use"],
        ),
        ("\"lambda x: x['name'].encode()\"", &["encode", "a lambda may use"]),
        ("\"lambda x: (x['id']\"", &["not understood"]),
        ("id +", &["not understood"]),
        ("(SELECT 1)", &["not understood"]),
    ] {
        home.write(
            "items.yaml",
            &format!("{file}transform:\n  - compute: {{name: more, expression: {expression}}}\n"),
        );
        let place = format!("items.yaml:{}:", file.lines().count() + 2);
        for command in ["config validate", "plan", "run"] {
            let arguments: Vec<&str> = command.split(' ').chain(["items.yaml"]).collect();
            home.run(&arguments)
                .fails(2, &[&[place.as_str(), "ST-CFG-001"], said].concat());
        }
    }
    // A filter is one too; what a disabled stage says is nobody's business.
    home.write(
        "items.yaml",
        &format!("{file}transform:\n  - filter: \"lambda x: eval(x['name'])\"\n"),
    );
    home.run(&["config", "validate", "items.yaml"])
        .fails(2, &["eval", "a lambda may use"]);
    home.write(
        "items.yaml",
        &format!(
            "{file}transform:\n  - {{enabled: false, compute: {{name: more, expression: \"lambda x: open('x')\"}}}}\n"
        ),
    );
    assert_eq!(home.run(&["config", "validate", "items.yaml"]).code, 0);
    // Fields in the SQL of a dimension's datastore are refused as early.
    home.write(
        "items.yaml",
        &format!(
            "{file}transform:\n  - enrich: {{table: dims, on: [id], fields: [{{expr: \"upper(name)\", dest: big}}]}}\n"
        ),
    );
    home.run(&["config", "validate", "items.yaml"])
        .fails(2, &["not in an enrichment yet", "enrich from a view"]);
}
