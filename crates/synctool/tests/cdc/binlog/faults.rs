//! What a binary log may hold that is not plain rows of one stream: several domains, prepared transactions, parts of rows,
//! compressed events, statements of every kind, columns that went while nobody followed; and two readers with one name.

use super::*;

/// The pipeline's tables as they are named everywhere here.
const TABLES: &str = "tables: [users, restaurant, visit]";

/// F65: transactions of several domains, one among the other; each is read once.
#[test]
fn several_domains_are_followed() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    for round in 0..4 {
        for (domain, sql) in [
            (
                1,
                format!("UPDATE users SET first_name = 'd1-{round}' WHERE id % 5 = {round}"),
            ),
            (
                0,
                format!("UPDATE restaurant SET rating = {round} WHERE id = 'r{}'", round + 1),
            ),
            (7, format!("DELETE FROM visit WHERE user_id = {}", 100 + round)),
            (
                1,
                format!("INSERT INTO users (id, first_name) VALUES ({}, 'new')", 2000 + round),
            ),
        ] {
            stage.from.sql(&format!("SET SESSION gtid_domain_id = {domain}; {sql}"));
        }
        // Read in the middle of them, too.
        if round % 2 == 1 {
            stage.catch_up();
            stage.assert_equal(&format!("round {round}"));
        }
    }
    let summary = stage.catch_up();
    assert_eq!(summary["read_now"].as_u64(), Some(0), "nothing twice: {summary:#}");
    // A domain that begins later than the position, and one that is never heard of again.
    stage
        .from
        .sql("FLUSH BINARY LOGS; SET SESSION gtid_domain_id = 9; UPDATE users SET first_name = 'nine' WHERE id < 9");
    stage.catch_up();
    stage.assert_equal("a new domain");
    server.restart();
    stage.from.sql("UPDATE users SET first_name = 'restarted' WHERE id < 9");
    stage.catch_up();
    stage.assert_equal("after a restart");
}

/// F65: numbers with gaps, and transactions of other servers in one domain, as a server has them that follows another one.
#[test]
fn numbers_with_gaps_and_of_other_servers_are_followed() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    for (n, (of, number)) in (1..).zip([(1, 500_000), (77, 500_100), (5, 9_000_000_000_u64)]) {
        stage.from.sql(&format!(
            "SET SESSION server_id = {of}, SESSION gtid_seq_no = {number}; UPDATE users SET first_name = 'gap {n}' WHERE id < 50"
        ));
        stage.catch_up();
        stage.assert_equal(&format!("behind {of}-{number}"));
        let again = stage.catch_up();
        assert_eq!(again["read_now"].as_u64(), Some(0), "nothing twice: {again:#}");
        stage.from.sql(&change(n));
    }
    stage.catch_up();
    stage.assert_equal("at the end");
}

/// F66: compressed events are refused by name, before anything of them is written.
#[test]
fn compressed_events_are_refused_by_name() {
    let server = MariaDb::start_with(&["--log-bin-compress-min-len=10"]);
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    let before = stage.found("users", COLUMNS[0].1);
    server.sql("SET GLOBAL log_bin_compress = ON");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    assert!(found.to_string().contains("log_bin_compress"), "{found:#}");
    stage
        .from
        .sql("UPDATE users SET first_name = repeat('compressed', 20) WHERE id < 300");
    let (code, why) = stage.refused();
    assert!(code == "ST-LOG-005" && why.contains("compress"), "{why}");
    assert_eq!(stage.found("users", COLUMNS[0].1), before, "nothing may be written");
}

/// F67: parts of rows are followed where they say enough, and refused by name where they do not.
#[test]
fn parts_of_rows_are_followed_or_refused() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    for image in ["MINIMAL", "NOBLOB"] {
        stage.from.sql(&format!(
            "SET SESSION binlog_row_image = '{image}'; UPDATE users SET first_name = '{image}' WHERE id < 20;
             UPDATE users SET address = NULL WHERE id = 21; UPDATE users SET address = repeat('b', 300) WHERE id = 22;
             UPDATE users SET id = -id WHERE id IN (30, 31); UPDATE visit SET restaurant_id = 'moved' WHERE user_id = 9;
             BEGIN; DELETE FROM visit WHERE user_id = 3; UPDATE visit SET rating = NULL WHERE user_id = 4; COMMIT"
        ));
        stage.catch_up();
        stage.assert_equal(image);
        stage.from.sql("UPDATE users SET id = -id WHERE id < 0");
        stage.catch_up();
        stage.assert_equal(&format!("after {image}"));
    }
    // A new row whose other columns have what is their default at the time.
    stage
        .from
        .sql("SET SESSION binlog_row_image = 'MINIMAL'; INSERT INTO users (first_name) VALUES ('a part')");
    let (code, why) = stage.refused();
    assert!(
        code == "ST-LOG-005" && why.contains("binlog_row_image") && why.contains("--repair"),
        "{code}: {why}"
    );
    stage.repair();
    stage.assert_equal("repaired");
    stage.from.sql("UPDATE users SET first_name = 'after' WHERE id = 1");
    stage.catch_up();
    stage.assert_equal("and goes on");
    server.sql("SET GLOBAL binlog_row_image = 'MINIMAL'");
    let (code, why) = stage.refused();
    assert!(
        code == "ST-LOG-005" && why.contains("SET GLOBAL binlog_row_image"),
        "{why}"
    );
}

/// Prepared transactions on followed tables are refused by name and made good; those of other tables are nobody's business.
#[test]
fn prepared_transactions_are_refused_and_made_good() {
    let server = MariaDb::start();
    let stage = Stage::on(
        &server,
        &format!("{SHOP} CREATE TABLE other (id int PRIMARY KEY)"),
        TABLES,
    );
    stage.catch_up();
    stage
        .from
        .sql("XA START 'o'; INSERT INTO other VALUES (1); XA END 'o'; XA PREPARE 'o'; XA COMMIT 'o'; UPDATE users SET first_name = 'beside' WHERE id = 1");
    stage.catch_up();
    stage.assert_equal("a prepared transaction of another table");
    for end in ["COMMIT", "ROLLBACK"] {
        stage.from.sql(&format!(
            "XA START 'x'; UPDATE users SET first_name = '{end}' WHERE id BETWEEN 10 AND 20; XA END 'x'; XA PREPARE 'x'; XA {end} 'x'"
        ));
        let (code, why) = stage.refused();
        assert!(why.contains("XA") && why.contains("--repair"), "{end} {code}: {why}");
        stage.repair();
        stage.assert_equal(end);
        stage.catch_up();
    }
    // Committed at once, it is a transaction like any other.
    stage.from.sql(
        "XA START 'y'; UPDATE users SET first_name = 'one phase' WHERE id = 30; XA END 'y'; XA COMMIT 'y' ONE PHASE",
    );
    stage.catch_up();
    stage.assert_equal("one phase");
}

/// F46: a column that is dropped and made again under its name is another one, and so are its values.
#[test]
fn columns_that_are_made_again_are_read_again() {
    for ddl in [
        "ALTER TABLE restaurant DROP COLUMN rating, ADD COLUMN rating int DEFAULT 3",
        "ALTER TABLE restaurant DROP rating; ALTER TABLE restaurant ADD (rating int, note text)",
        "ALTER TABLE restaurant CHANGE COLUMN rating old int; ALTER TABLE restaurant ADD rating int",
    ] {
        let stage = Stage::new();
        stage.catch_up();
        stage.from.sql(ddl);
        stage.from.sql("UPDATE restaurant SET rating = 7 WHERE id = 'r2'");
        stage.catch_up();
        stage.assert_equal(ddl);
        // The one is read before the other is there.
        stage.from.sql("ALTER TABLE visit DROP COLUMN rating");
        stage.from.sql("UPDATE users SET first_name = 'between' WHERE id = 1");
        stage.catch_up();
        stage.from.sql("ALTER TABLE visit ADD COLUMN rating int");
        stage.catch_up();
        stage.assert_equal("dropped and added in two runs");
    }
}

/// F46: a column that was dropped while nobody followed is refused by name, and nothing is lost.
#[test]
fn columns_that_went_meanwhile_are_refused_by_name() {
    let stage = Stage::new();
    stage.catch_up();
    stage.from.sql("UPDATE restaurant SET name = 'before' WHERE id = 'r1'");
    stage.from.sql("ALTER TABLE restaurant DROP COLUMN rating");
    stage.from.sql(
        "UPDATE restaurant SET name = 'after' WHERE id = 'r2'; UPDATE users SET first_name = 'beside' WHERE id = 1",
    );
    for _ in 0..2 {
        let (code, why) = stage.refused();
        assert!(why.contains("rating") && why.contains("restaurant"), "{code}: {why}");
    }
    // The column that is there again is another one: the log has rows without it, also for a repair.
    stage.from.sql("ALTER TABLE restaurant ADD COLUMN rating int");
    let (code, summary) = stage.json(&["run", "shop.yaml", "--until-caught-up", "--repair"]);
    assert!(code != 0 && summary.to_string().contains("rating"), "{summary:#}");
    // Allowed to, it goes on from where it stopped.
    let file = stage.home.path().join("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("the pipeline") + "schema_drift: evolve\n";
    std::fs::write(file, text).expect("written");
    stage.catch_up();
    stage.assert_equal("evolved");
}

/// F69: statements of every kind, words in them that mean nothing, and none that is taken for what it is not.
#[test]
fn statements_of_every_kind_do_no_harm() {
    let stage = Stage::new();
    stage.catch_up();
    let name = stage.from.name().to_owned();
    for sql in [
        "ALTER TABLE users COMMENT = 'drop table visit; truncate restaurant'",
        "/* rename table users to gone */ ALTER TABLE restaurant ENGINE = InnoDB",
        "/*!100000 ALTER TABLE visit COMMENT = 'in a comment that is run' */",
        "CREATE TABLE `drop table users` (id int PRIMARY KEY); DROP TABLE `drop table users`",
        "CREATE TABLE other LIKE users; INSERT INTO other SELECT * FROM users; TRUNCATE TABLE other; DROP TABLE other",
        "CREATE OR REPLACE TABLE other (id int PRIMARY KEY) AS SELECT id FROM users; CREATE OR REPLACE TABLE other (b int)",
        "CREATE PROCEDURE p () UPDATE users SET first_name = 'by a procedure' WHERE id = 3; CALL p (); DROP PROCEDURE p",
        "CREATE TRIGGER touched BEFORE UPDATE ON users FOR EACH ROW SET NEW.address = concat('t ', OLD.id); UPDATE users SET first_name = 'triggers' WHERE id = 4; DROP TRIGGER touched",
        "CREATE VIEW seen AS SELECT * FROM users; UPDATE seen SET first_name = 'through a view' WHERE id = 5; DROP VIEW seen",
        "CREATE INDEX named ON users (first_name); DROP INDEX named ON users; ANALYZE TABLE users; OPTIMIZE TABLE visit",
        "CREATE SEQUENCE numbers; INSERT INTO users (id, first_name) VALUES (3000 + NEXT VALUE FOR numbers, 'numbered'); DROP SEQUENCE numbers",
        "SET STATEMENT max_statement_time = 100 FOR UPDATE users SET first_name = 'set statement' WHERE id = 6",
        "START TRANSACTION; SAVEPOINT `a``b`; UPDATE users SET first_name = 'kept' WHERE id = 7; SAVEPOINT c; UPDATE users SET first_name = 'undone' WHERE id = 8; ROLLBACK TO c; COMMIT",
        "LOCK TABLES users WRITE; UPDATE users SET first_name = 'locked' WHERE id = 9; UNLOCK TABLES",
        "CREATE TEMPORARY TABLE users2 AS SELECT * FROM users; DROP TEMPORARY TABLE users2",
        "REPLACE INTO restaurant VALUES ('r3', 'replaced', 1); INSERT INTO restaurant VALUES ('r4', 'x', 1) ON DUPLICATE KEY UPDATE name = 'on duplicate'",
        "UPDATE users, visit SET users.first_name = 'joined', visit.rating = 5 WHERE users.id = visit.user_id AND users.id < 15",
    ] {
        stage.from.sql(sql);
    }
    MariaDb::shared().sql(&format!(
        "CREATE DATABASE {name}_x; CREATE TABLE {name}_x.users (id int PRIMARY KEY); INSERT INTO {name}_x.users VALUES (1); DROP TABLE {name}_x.users; DROP DATABASE {name}_x"
    ));
    let summary = stage.catch_up();
    stage.assert_equal("statements of every kind");
    let read = summary["read_now"].as_u64();
    assert!(read.is_some_and(|n| n < 200), "a table was read again: {summary:#}");
}

/// F6: the server's clock jumps years ahead and back. Its times are shown and decide nothing: a log is not taken for another
/// one by them, and what is behind a time to come is not called caught up.
#[test]
fn times_that_jump_do_no_harm() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    let times = [
        (2_147_400_000, "2038-01-18"),
        (86_400, "1970-01-02"),
        (2_147_300_000, "2038-01-17"),
        (1_000_000_000, "2001-09-09"),
    ];
    for (n, (at, day)) in (1..).zip(times) {
        let jumped = |sql: &str| stage.from.sql(&format!("SET timestamp = {at}; {sql}"));
        jumped(&change(n));
        stage.catch_up();
        stage.assert_equal(day);
        jumped(&format!("UPDATE users SET first_name = 'behind {n}' WHERE id = 1"));
        let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
        assert_eq!(code, 0, "{status:#}");
        let applied = status["applied_up_to"].as_str().unwrap_or_default();
        assert!(applied.starts_with(day), "{day}: {status:#}");
        assert!(status["lag_bytes"].as_u64() > Some(0), "{status:#}");
        assert_eq!(status["lag_seconds"].is_null(), day.starts_with("2038"), "{status:#}");
        let (_, text, _) = finished(&stage.command(&["cdc", "status", "shop.yaml"]));
        assert!(!text.contains("caught up"), "{text}");
    }
    stage.catch_up();
    stage.assert_equal("at the end");
}

/// F71: the server ends the elder of two readers with one number, which comes again; both end equal.
#[test]
fn two_readers_with_one_name_end_equal() {
    let stage = Stage::new();
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.until_equal(&running);
    // The same log by the same name into another database, from a folder of its own.
    let other = Postgres::shared(PgVersion::V18).database("binlog_other");
    let home = tempfile::tempdir().expect("a folder");
    let text = std::fs::read_to_string(stage.home.path().join("shop.yaml")).expect("the pipeline");
    std::fs::write(
        home.path().join("shop.yaml"),
        text.replace(&stage.to.url(), &other.url()),
    )
    .expect("written");
    for round in 0..3 {
        stage
            .from
            .sql(&format!("UPDATE users SET first_name = 'round {round}' WHERE id < 100"));
        let mut command = stage.command(&["run", "shop.yaml", "--until-caught-up"]);
        command.current_dir(home.path());
        let outcome = KillRun::new(&command).run();
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let sql = format!("SELECT {} FROM users", quoted(COLUMNS[0].1, "{}::text"));
        assert_eq!(
            sorted(&other.psql(&sql)),
            stage.wanted("users", COLUMNS[0].1),
            "round {round}"
        );
    }
    stage.from.sql("UPDATE users SET first_name = 'last' WHERE id < 50");
    stage.until_equal(&running);
    stop(running);
}

/// How far behind is said in bytes of the log's files, not in numbers of places; and nobody speaks of slots.
#[test]
fn lag_is_counted_across_files() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, TABLES);
    stage.catch_up();
    let behind = || {
        let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
        assert_eq!(code, 0, "{status:#}");
        // Not known before the end was looked at.
        status["lag_bytes"].as_u64().unwrap_or(u64::MAX)
    };
    let before = behind();
    assert!(before < 10_000, "{before}");
    stage.from.sql(
        "UPDATE users SET address = repeat('y', 200) WHERE id <= 500; FLUSH BINARY LOGS; FLUSH BINARY LOGS;
         UPDATE users SET address = repeat('z', 200) WHERE id <= 500",
    );
    let after = behind();
    assert!(
        (200_000..3_000_000).contains(&after),
        "{after} bytes are some hundred thousand of rows"
    );
    let (_, plan) = stage.json(&["plan", "shop.yaml"]);
    let told = plan["log"]["behind_bytes"].as_u64().unwrap_or_default();
    assert!((200_000..3_000_000).contains(&told), "{plan:#}");
    let text = |arguments: &[&str]| {
        let outcome = KillRun::new(&stage.command(arguments)).run();
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        outcome.stdout
    };
    let status = text(&["cdc", "status", "shop.yaml"]);
    assert!(
        !status.contains("slot") && status.contains("what its settings say"),
        "{status}"
    );
    // While it is followed, too.
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.until_equal(&running);
    wait_for("the picture to be of now", PATIENCE, || {
        let n = behind();
        match n < 10_000 {
            true => Ok(()),
            false => Err(format!("{n} bytes behind")),
        }
    });
    stop(running);
    stage
        .from
        .sql("RESET MASTER; UPDATE users SET first_name = 'after' WHERE id < 50");
    let plan = text(&["plan", "shop.yaml", "--repair"]);
    assert!(
        !plan.contains("slot") && plan.contains("followed from now on"),
        "{plan}"
    );
}
