//! `synctool wal`, against pg_waldump on the log of a real server.

use crate::Home;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use synctool_testkit::{PgVersion, Postgres, PostgresBuilder};

/// A directory with the log of a server, the table's file, and what pg_waldump counts.
fn log(home: &Home, version: PgVersion) -> (Postgres, String, BTreeMap<String, u64>) {
    log_of(home, Postgres::builder(version), "")
}

/// The same of a server that is unlike others, and has done more.
fn log_of(home: &Home, builder: PostgresBuilder, more: &str) -> (Postgres, String, BTreeMap<String, u64>) {
    let server = builder.setting("wal_keep_size", "1GB").start();
    server.psql(more);
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

/// What we count in a directory, and what else we say of it.
fn counted(home: &Home, directory: &str) -> (BTreeMap<String, u64>, Value) {
    let ran = home.run(&["wal", "stats", directory, "--output", "json"]);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let json: Value = serde_json::from_str(&ran.stdout).unwrap();
    let rmgrs = json["rmgrs"].as_array().unwrap();
    let found = rmgrs
        .iter()
        .map(|r| (r["rmgr"].as_str().unwrap().into(), r["records"].as_u64().unwrap()))
        .collect();
    (found, json)
}

fn the_counts_are_those_of_pg_waldump(version: PgVersion) {
    let home = Home::new();
    let (_server, file, expected) = log(&home, version);
    let (found, json) = counted(&home, "archive");
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

/// Segments that are not read whole into memory: records lie across the borders of their pieces.
#[test]
fn large_segments_are_counted_as_pg_waldump_counts_them() {
    let home = Home::new();
    let large = Postgres::builder(PgVersion::V18).initdb("--wal-segsize=64");
    let fill = "CREATE TABLE wide (id int PRIMARY KEY, body text);
        INSERT INTO wide SELECT g, repeat(md5(g::text), 50) FROM generate_series(1, 25000) g; SELECT pg_switch_wal();
        INSERT INTO wide SELECT g, repeat(md5(g::text), 50) FROM generate_series(25001, 50000) g";
    let (_server, _, expected) = log_of(&home, large.setting("min_wal_size", "256MB"), fill);
    let (found, json) = counted(&home, "archive");
    assert_eq!(found, expected);
    assert_eq!(json["server"]["segment_size"], 64 << 20);
    // Packed the same, and the same in order: each record follows the one before.
    fs::create_dir(home.path("packed")).unwrap();
    for path in files_in(&home, "archive") {
        let packed = Command::new("gzip").arg("-1c").arg(&path).output().unwrap();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        fs::write(home.path("packed").join(name + ".gz"), packed.stdout).unwrap();
    }
    let (packed, same) = counted(&home, "packed");
    assert_eq!((packed, &same), (expected, &json));
    // One that ends within a piece: what stands before is counted, and the rest is not looked at.
    let mut names: Vec<_> = files_in(&home, "archive");
    names.sort();
    let mut cut = fs::read(&names[0]).unwrap();
    cut[20 << 20..].fill(0);
    fs::create_dir(home.path("cut")).unwrap();
    fs::write(home.path("cut").join(names[0].file_name().unwrap()), cut).unwrap();
    let (some, json) = counted(&home, "cut");
    assert!(some["Heap"] > 5000 && some["Heap"] < 25000, "{some:?}");
    assert_eq!(json["notes"].as_array().unwrap().len(), 1, "{json:#}");
}

fn files_in(home: &Home, directory: &str) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(home.path(directory)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
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
