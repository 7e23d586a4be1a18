use std::path::Path;
use std::process::Command;
use std::time::Duration;

use synctool_testkit::{PgVersion, Postgres, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test]
async fn shared_servers_give_databases_of_their_own() {
    for version in [PgVersion::V15, PgVersion::V18] {
        let server = Postgres::shared(version);
        assert!(std::ptr::eq(server, Postgres::shared(version)));
        let (one, two) = (server.database("kit"), server.database("kit"));
        one.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
        assert_eq!(
            one.psql("SELECT current_setting('server_version_num')::int / 10000"),
            version.to_string()
        );
        assert_eq!(one.psql("SHOW wal_level; SHOW timezone"), "logical\nUTC");
        assert_eq!(two.psql("SELECT to_regclass('t') IS NULL"), "t");
        let count: i64 = one
            .connect()
            .await
            .query_one("SELECT count(*) FROM t", &[])
            .await
            .unwrap()
            .get(0);
        assert_eq!(count, 1);
    }
}

#[tokio::test]
async fn a_database_goes_with_its_test_even_when_in_use() {
    let server = Postgres::shared(PgVersion::V18);
    let db = server.database("Odd Näme/with signs");
    let name = db.name().to_owned();
    let _open = db.connect().await;
    db.psql("SELECT pg_create_logical_replication_slot('kit_' || md5(current_database()), 'pgoutput')");
    db.psql("BEGIN; CREATE TABLE p (); PREPARE TRANSACTION 'kit_prepared'");
    let exists = format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'");
    assert_eq!(server.psql(&exists), "1");
    drop(db);
    assert_eq!(server.psql(&exists), "0");
}

#[test]
fn a_template_is_prepared_once_and_copied() {
    let server = Postgres::start(PgVersion::V18);
    let script = "CREATE TABLE seen AS SELECT clock_timestamp() AS at; SELECT pg_sleep(0.01)";
    let template = server.template("items", script);
    let one = server.database_from("copy", &template);
    let two = server.database_from("copy", &server.template("items", script));
    assert_eq!(one.psql("SELECT at FROM seen"), two.psql("SELECT at FROM seen"));
    let other = server.database_from("copy", &server.template("items", "CREATE TABLE other ()"));
    assert_eq!(other.psql("SELECT to_regclass('seen') IS NULL"), "t");
}

/// They begin with copies of one directory, and are told apart as those of people are.
#[test]
fn servers_have_identities_of_their_own() {
    for version in [PgVersion::V15, PgVersion::V18] {
        let (one, two) = (Postgres::start(version), Postgres::start(version));
        let identity = |server: &Postgres| server.psql("SELECT system_identifier FROM pg_control_system()");
        let first = identity(&one);
        assert_ne!(first, identity(&two));
        // Its log is of the same cluster: a start behind a crash reads it.
        one.psql("CREATE TABLE t (); SELECT pg_switch_wal(); INSERT INTO t DEFAULT VALUES");
        one.kill9();
        one.restart();
        assert_eq!(one.psql("SELECT count(*) FROM t"), "1");
        assert_eq!(identity(&one), first);
    }
}

#[test]
fn a_failing_statement_is_an_error_with_the_servers_words() {
    let error = Postgres::shared(PgVersion::V18)
        .try_psql("SELECT 1; SELECT nothing")
        .unwrap_err();
    assert!(error.to_string().contains("42703"), "{error}");
}

#[test]
fn data_survives_a_restart_and_a_crash() {
    let server = Postgres::builder(PgVersion::V18).setting("work_mem", "7MB").start();
    assert_eq!(server.psql("SHOW work_mem"), "7MB");
    server.psql("CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    server.restart();
    server.psql("INSERT INTO t VALUES (2)");
    server.kill9();
    assert!(server.try_psql("SELECT 1").is_err());
    server.restart();
    assert_eq!(server.psql("SELECT sum(id) FROM t"), "3");
    assert!(server.log().contains("was not properly shut down"));
    server.stop();
    assert!(server.try_psql("SELECT 1").is_err());
}

#[test]
fn a_dropped_server_leaves_neither_process_nor_directory() {
    let server = Postgres::start(PgVersion::V15);
    let directory = server.psql("SELECT current_setting('unix_socket_directories')");
    let pid_file = std::fs::read_to_string(format!("{directory}/data/postmaster.pid")).unwrap();
    let postmaster = format!("/proc/{}", pid_file.lines().next().unwrap());
    assert!(Path::new(&postmaster).exists());
    drop(server);
    assert!(!Path::new(&postmaster).exists());
    assert!(!Path::new(&directory).exists());
}

/// The supervisor sees the end of its test process however it comes. This test runs itself as the process to be killed.
#[test]
fn a_killed_test_takes_its_server_along() {
    const ROLE: &str = "TESTKIT_VICTIM";
    if let Ok(report) = std::env::var(ROLE) {
        let server = Postgres::start(PgVersion::V18);
        let draft = format!("{report}.draft");
        std::fs::write(&draft, server.psql("SELECT current_setting('unix_socket_directories')")).unwrap();
        std::fs::rename(draft, report).unwrap();
        std::thread::park();
    }
    let place = tempfile::tempdir().unwrap();
    let report = place.path().join("directory");
    let mut victim = Command::new(std::env::current_exe().unwrap());
    victim
        .args(["--exact", "postgres::a_killed_test_takes_its_server_along"])
        .env(ROLE, &report);
    let mut victim = victim.spawn().unwrap();
    wait_for("the victim's server", LIMIT, || report.exists());
    let directory = std::fs::read_to_string(&report).unwrap();
    let pid_file = std::fs::read_to_string(format!("{directory}/data/postmaster.pid")).unwrap();
    let pid = pid_file.lines().next().unwrap();
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    victim.kill().unwrap();
    victim.wait().unwrap();
    wait_for("the end of the server", LIMIT, || !Path::new(&directory).exists());
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
}
