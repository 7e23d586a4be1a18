//! `synctool wal`, against pg_waldump on the log of a real server.

use crate::Home;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use synctool_testkit::{PgVersion, Postgres};

/// A directory with the log of a server, the table's file, and what pg_waldump counts.
fn log(home: &Home, version: PgVersion) -> (Postgres, String, BTreeMap<String, u64>) {
    let server = Postgres::builder(version).setting("wal_keep_size", "1GB").start();
    server.psql(
        "CREATE TABLE t (id int PRIMARY KEY, body text);
         INSERT INTO t SELECT g, md5(g::text) FROM generate_series(1, 5000) g; CHECKPOINT;
         BEGIN; UPDATE t SET body = 'x' WHERE id < 100; SAVEPOINT s; DELETE FROM t WHERE id > 4990; COMMIT;
         BEGIN; INSERT INTO t VALUES (6000, 'p'); PREPARE TRANSACTION 'two phases'; COMMIT PREPARED 'two phases';",
    );
    let file = server.psql("SELECT pg_relation_filenode('t')");
    let last = server.psql("SELECT pg_walfile_name(pg_switch_wal())");
    let source = server.data_directory().join("pg_wal");
    let mut names = Vec::new();
    fs::create_dir_all(home.path("archive")).unwrap();
    for entry in fs::read_dir(&source).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.len() == 24 && name <= last {
            fs::copy(source.join(&name), home.path("archive").join(&name)).unwrap();
            names.push(name);
        }
    }
    names.sort();
    let mut command = Command::new(server.tool("pg_waldump"));
    command
        .arg("--stats")
        .current_dir(home.path("archive"))
        .args([&names[0], names.last().unwrap()]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let counts = String::from_utf8(output.stdout).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, count) = (words.next()?.to_owned(), words.next()?.parse().ok()?);
        (count > 0 && name != "Total").then_some((name, count))
    };
    let counts = counts.lines().filter_map(line).collect();
    (server, file, counts)
}

fn the_counts_are_those_of_pg_waldump(version: PgVersion) {
    let home = Home::new();
    let (_server, file, expected) = log(&home, version);
    let ran = home.run(&["wal", "stats", "archive", "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rmgrs = json["rmgrs"].as_array().unwrap();
    let found: BTreeMap<String, u64> = rmgrs
        .iter()
        .map(|r| (r["rmgr"].as_str().unwrap().into(), r["records"].as_u64().unwrap()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(json["server"]["major"], version.major());

    let text = home.run(&["wal", "stats", "archive", "--by-kind"]).stdout;
    assert!(
        text.contains("Transaction/COMMIT_PREPARED") && text.contains("Total"),
        "{text}"
    );

    // Compressed, and told by content: the same.
    let name = fs::read_dir(home.path("archive"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .file_name();
    let packed = home.path("one.bin");
    let status = Command::new("gzip")
        .arg("-c")
        .arg(home.path("archive").join(&name))
        .output()
        .unwrap();
    fs::write(&packed, status.stdout).unwrap();
    let plain = home.run(&[
        "wal",
        "stats",
        &format!("archive/{}", name.display()),
        "--output",
        "json",
    ]);
    assert_eq!(
        home.run(&["wal", "stats", "one.bin", "--output", "json"]).stdout,
        plain.stdout
    );

    // The records of one table, of one transaction, of one stretch.
    let lines = |arguments: &[&str]| -> Vec<Value> {
        let mut all = vec!["wal", "dump", "archive", "--output", "ndjson"];
        all.extend(arguments);
        let ran = home.run(&all);
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        ran.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    };
    let of_table = lines(&["--relation", &file, "--rmgr", "heap"]);
    let touched = |what: &str| {
        let rows = of_table.iter().flat_map(|r| r["rows"].as_array().unwrap());
        rows.filter(|row| row["what"] == what).count()
    };
    assert_eq!(
        [
            touched("inserted"),
            touched("updated"),
            touched("replaced"),
            touched("deleted")
        ],
        [5001, 99, 99, 10]
    );
    let deleted = of_table.iter().find(|r| r["kind"] == "DELETE").unwrap();
    let xid = deleted["xid"].to_string();
    let of_xid = lines(&["--xid", &xid]);
    let last = of_xid.last().unwrap();
    assert_eq!(last["kind"], "COMMIT");
    assert_eq!(last["transaction"]["subtransactions"][0].to_string(), xid);
    let (from, to) = (deleted["lsn"].as_str().unwrap(), last["lsn"].as_str().unwrap());
    let stretch = lines(&["--from", from, "--to", to]);
    assert_eq!(stretch[0], *deleted);
    // A page header may lie between the last record inside and the first behind, so only its absence is sure.
    assert!(stretch.len() >= 10 && stretch.iter().all(|r| r["lsn"] != *to));
    assert_eq!(lines(&["--limit", "3"]).len(), 3);
    let array: Value = serde_json::from_str(
        &home
            .run(&["wal", "dump", "archive", "--limit", "2", "--output", "json"])
            .stdout,
    )
    .unwrap();
    assert_eq!(array.as_array().unwrap().len(), 2);
    let text = home.run(&["wal", "dump", "archive", "--xid", &xid]).stdout;
    assert!(
        text.contains("deleted (") && text.contains(&format!("with {xid}")),
        "{text}"
    );
}

#[test]
fn the_log_of_postgresql_15_is_read() {
    the_counts_are_those_of_pg_waldump(PgVersion::V15);
}

#[test]
fn the_log_of_postgresql_18_is_read() {
    the_counts_are_those_of_pg_waldump(PgVersion::V18);
}

#[test]
fn mistakes_are_told() {
    let home = Home::new();
    home.write("empty/readme", "x")
        .write("noise", &"x".repeat(10_000))
        .write("short", "x");
    for (arguments, code, word) in [
        (&["wal", "stats", "empty"][..], 1, "there are no WAL segments"),
        (&["wal", "stats", "nowhere"], 1, "nowhere"),
        (&["wal", "dump", "noise"], 1, "is no page of a log"),
        (&["wal", "dump", "short"], 1, "too short"),
        (&["wal", "dump", "noise", "--relation", "t"], 2, "pg_relation_filenode"),
        (&["wal", "dump", "noise", "--rmgr", "t"], 2, "resource manager"),
        (&["wal", "dump", "noise", "--from", "12"], 2, "16/B374D848"),
    ] {
        let ran = home.run(arguments);
        assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(word), "{arguments:?}: {}", ran.stderr);
    }
}
