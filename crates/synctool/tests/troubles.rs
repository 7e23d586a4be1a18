//! What goes wrong outside: a server that goes down in the middle, a disk that is full. One clear message, the right
//! exit code, and the same command again completes.

use std::path::Path;
use std::process::Command;
use synctool_testkit::kill::{Action, Failpoint, KillRun};
use synctool_testkit::{PgVersion, Postgres, SmallDisk};

const ITEMS: &str = "CREATE TABLE items(id bigint PRIMARY KEY, note text);
    INSERT INTO items SELECT i, repeat(md5(i::text), 16) FROM generate_series(1, 40000) i;";

const SUM: &str = "SELECT count(*) || ' ' || sum(hash_record_extended(t, 0)) FROM";

fn pipeline(folder: &Path, from: &str, to: &str) -> Command {
    let text = format!(
        "name: trouble\ndatastores:\n  from: {{type: postgres, connection: {{url: \"{from}\"}}}}\n  \
         to: {{type: postgres, connection: {{url: \"{to}\"}}}}\n\
         source: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.items}}\n\
         partitioning: {{column: id, step: 2000}}\n"
    );
    std::fs::write(folder.join("trouble.yaml"), text).expect("written");
    let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
    command
        .current_dir(folder)
        .args(["run", "trouble.yaml", "--output", "json"]);
    command
}

#[test]
fn a_server_that_is_restarted_in_the_middle_is_waited_for() {
    let source = Postgres::shared(PgVersion::V15)
        .database_from("trouble", &Postgres::shared(PgVersion::V15).template("troubles", ITEMS));
    let server = Postgres::start(PgVersion::V15);
    let folder = tempfile::tempdir().expect("a folder");
    let command = pipeline(folder.path(), &source.url(), &server.url("postgres"));
    for (name, nth) in [("sink.write", 4), ("engine.commit.before", 6), ("publish.before", 1)] {
        server.psql("DROP TABLE IF EXISTS public.items; DROP SCHEMA IF EXISTS synctool CASCADE;");
        let point = Failpoint { name: name.into(), nth };
        let mut run = KillRun::new(&command).accident(&point, Action::Stop).start();
        run.wait_stopped();
        server.restart();
        run.resume();
        let outcome = run.wait();
        assert_eq!(outcome.code, Some(0), "restarted at {point}: {}", outcome.stderr);
        let wanted = source.psql(&format!("{SUM} public.items t"));
        assert_eq!(
            server.psql(&format!("{SUM} public.items t")),
            wanted,
            "restarted at {point}"
        );
    }
}

#[test]
fn a_full_disk_is_told_and_the_next_run_completes() {
    let shared = Postgres::shared(PgVersion::V15);
    let source = shared.database_from("trouble", &shared.template("troubles", ITEMS));
    let disk = SmallDisk::new(12);
    let space = disk.folder("space");
    let server = Postgres::start(PgVersion::V15);
    server.psql(&format!("CREATE TABLESPACE small LOCATION '{}'", space.display()));
    server.psql("CREATE DATABASE copy");
    server.psql("ALTER DATABASE copy SET default_tablespace = 'small'");
    let folder = tempfile::tempdir().expect("a folder");
    let command = pipeline(folder.path(), &source.url(), &server.url("copy"));
    let outcome = KillRun::new(&command).run();
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("ST-IO-001"),
        "the code of a full disk is told: {}",
        outcome.stderr
    );
    // Somebody makes room; the next run goes on where this one stopped.
    disk.resize(200);
    let again = KillRun::new(&command).run();
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    let report: serde_json::Value = serde_json::from_str(&again.stdout).expect("a JSON report");
    assert!(
        report["skipped"].as_u64().is_some_and(|n| n > 0),
        "finished partitions were done again: {report}"
    );
    let found = synctool_testkit::psql_url(&server.url("copy"), &format!("{SUM} public.items t")).expect("readable");
    assert_eq!(found.trim(), source.psql(&format!("{SUM} public.items t")).trim());
}

#[test]
fn a_type_that_the_destination_does_not_know_is_said_in_the_plan() {
    let shared = Postgres::shared(PgVersion::V15);
    let source = shared.database("trouble");
    source.psql("CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE items(id int PRIMARY KEY, m mood); INSERT INTO items VALUES (1, 'ok')");
    let to = shared.database("trouble_to");
    let folder = tempfile::tempdir().expect("a folder");
    let command = pipeline(folder.path(), &source.url(), &to.url());
    let mut plan = Command::new(command.get_program());
    plan.current_dir(folder.path())
        .args(["plan", "trouble.yaml", "--output", "json"]);
    let said = KillRun::new(&plan).run();
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(
        said.stdout.contains("normalised"),
        "the plan says that it is stored as text: {}",
        said.stdout
    );
    let outcome = KillRun::new(&command).run();
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(to.psql("SELECT m FROM public.items").trim(), "ok");
}
