//! Statements of the log that change tables without saying a row of it, and what their tables need to be followed on.

use super::*;

#[track_caller]
fn same(stage: &Stage, table: &str, columns: &str) {
    assert_eq!(stage.wanted(table, columns), stage.found(table, columns), "{table}");
}

/// Keys that change rows behind the log are seen with no more rights than a capture needs.
#[test]
fn foreign_keys_that_change_rows_are_refused_with_the_least_rights() {
    let stage = Stage::of(
        "CREATE TABLE parent (id int PRIMARY KEY);
         CREATE TABLE child (id int PRIMARY KEY, of int, CONSTRAINT loud FOREIGN KEY (of) REFERENCES parent (id) ON DELETE SET NULL)",
        "tables: [child]",
    );
    let (user, to) = (
        stage.from.name(),
        format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url()),
    );
    let server = MariaDb::shared();
    server.sql(&format!(
        "CREATE USER {user}@'%' IDENTIFIED BY 'x'; GRANT SELECT ON {user}.* TO {user}@'%'; GRANT REPLICATION SLAVE ON *.* TO {user}@'%'"
    ));
    let url = format!("mysql://{user}:x@127.0.0.1:{}/{user}", server.port());
    stage.pipeline_from(&url, &to, "tables: [child]", "");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    assert!(found.to_string().contains("loud"), "{found:#}");
    let (_, why) = stage.refused();
    assert!(why.contains("loud") && why.contains("CASCADE"), "{why}");
    stage
        .from
        .sql("ALTER TABLE child DROP FOREIGN KEY loud, ADD CONSTRAINT quiet FOREIGN KEY (of) REFERENCES parent (id)");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    assert!(!found.to_string().contains("CASCADE"), "{found:#}");
    stage.catch_up();
    server.sql(&format!("DROP USER {user}@'%'"));
}

/// One that comes while the table is followed ends the log, also for those who start it again, and after it is gone.
#[test]
fn a_foreign_key_that_comes_later_is_refused() {
    let stage = Stage::of(
        "CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, of int);
         INSERT INTO parent SELECT seq FROM seq_1_to_9; INSERT INTO child SELECT seq, seq FROM seq_1_to_9",
        "tables: [parent, child]",
    );
    stage.catch_up();
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.from.sql(
        "INSERT INTO parent VALUES (10);
         ALTER TABLE child ADD CONSTRAINT later FOREIGN KEY (of) REFERENCES parent (id) ON DELETE CASCADE;
         DELETE FROM parent WHERE id < 5",
    );
    let outcome = running.wait();
    assert!(
        outcome.code != Some(0) && outcome.stderr.contains("later"),
        "{}",
        outcome.stderr
    );
    for _ in 0..2 {
        let (_, why) = stage.refused();
        assert!(why.contains("later") && why.contains("CASCADE"), "{why}");
    }
    stage.from.sql("ALTER TABLE child DROP FOREIGN KEY later");
    let (_, why) = stage.refused();
    assert!(why.contains("later") && why.contains("--repair"), "{why}");
    stage.repair();
    same(&stage, "parent", "id");
    same(&stage, "child", "id, of");
    stage.from.sql("DELETE FROM child WHERE id = 9");
    stage.catch_up();
    same(&stage, "child", "id, of");
}

/// A table that gets an engine without transactions while it is followed ends the log, until it has one with them again.
#[test]
fn an_engine_without_transactions_that_comes_later_is_refused() {
    let stage = Stage::of(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT seq, seq FROM seq_1_to_9",
        "tables: [t]",
    );
    stage.catch_up();
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage
        .from
        .sql("ALTER TABLE t ENGINE = InnoDB; INSERT INTO t VALUES (10, 10)");
    wait_for("a table that was written anew to be followed on", PATIENCE, || {
        stage.wanted("t", "id, v") == stage.found("t", "id, v")
    });
    stage
        .from
        .sql("ALTER TABLE t ENGINE = MyISAM; INSERT INTO t VALUES (11, 11); UPDATE t SET v = -v WHERE id > 8");
    let outcome = running.wait();
    let said = |text: &str| text.contains("the engine MyISAM") && text.contains("ENGINE = InnoDB");
    assert!(
        outcome.code != Some(0) && said(&outcome.stderr),
        "{:?}: {}",
        outcome.code,
        outcome.stderr
    );
    let (_, why) = stage.refused();
    assert!(said(&why), "{why}");
    assert_eq!(stage.to.psql("SELECT count(*) FROM t"), "10");
    stage
        .from
        .sql("ALTER TABLE t ENGINE = InnoDB; DELETE FROM t WHERE id = 3");
    stage.catch_up();
    same(&stage, "t", "id, v");
}

/// Settings that hold for one statement stand before it in the log.
#[test]
fn statements_behind_their_settings_are_followed() {
    const SET: &str = "SET STATEMENT max_statement_time=10, sql_mode='STRICT_ALL_TABLES,NO_ZERO_DATE' FOR";
    let stage = Stage::of(
        "CREATE TABLE t (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)
             (PARTITION a VALUES LESS THAN (50), PARTITION b VALUES LESS THAN MAXVALUE);
         INSERT INTO t SELECT seq, seq FROM seq_1_to_100; CREATE TABLE s2 (id int PRIMARY KEY, v int);
         INSERT INTO s2 SELECT seq, -seq FROM seq_40_to_60",
        "tables: [t]",
    );
    stage.catch_up();
    for statement in [
        "ALTER TABLE t DROP PARTITION a",
        "TRUNCATE t",
        "CREATE OR REPLACE TABLE t AS SELECT * FROM s2",
        "CREATE OR REPLACE TABLE t (id int PRIMARY KEY, v int)",
        "RENAME TABLE t TO tq, s2 TO t",
        "ALTER TABLE t MODIFY v int COMMENT 'x'",
    ] {
        // A copy of another table comes without its key.
        let key = match statement.contains("AS SELECT") {
            true => "; ALTER TABLE t ADD PRIMARY KEY (id)",
            false => "",
        };
        stage.from.sql(&format!("{SET} {statement}{key}"));
        stage.catch_up();
        same(&stage, "t", "id, v");
    }
    // Names as other databases quote them.
    stage.from.sql(
        "INSERT INTO t VALUES (1000, 1); SET sql_mode = 'ANSI_QUOTES'; TRUNCATE \"t\"; INSERT INTO t VALUES (1, 1)",
    );
    stage.catch_up();
    same(&stage, "t", "id, v");
}

/// An ALTER that is logged when it begins counts when it is done, and not at all where it fails.
#[test]
fn an_alter_in_two_phases_counts_once() {
    const BOTH: &str = "SET SESSION binlog_alter_two_phase = ON";
    let stage = Stage::of(
        "CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT seq, seq % 5 FROM seq_1_to_20",
        "tables: [t]",
    );
    stage.catch_up();
    stage.from.sql(&format!(
        "{BOTH}; INSERT INTO t VALUES (100, 1); ALTER TABLE t ADD COLUMN w int DEFAULT 7; INSERT INTO t VALUES (101, 1, 1)"
    ));
    stage.catch_up();
    same(&stage, "t", "id, v, w");
    let failing = format!("{BOTH}; ALTER TABLE t DROP COLUMN w, ADD UNIQUE (v)");
    let failed = MariaDb::shared().try_sql(stage.from.name(), &failing);
    assert!(failed.is_err(), "values of v are there twice");
    stage.from.sql("INSERT INTO t VALUES (102, 2, 2)");
    stage.catch_up();
    same(&stage, "t", "id, v, w");
}

/// A table that trades its rows with a partition of another one has others, without a row in the log.
#[test]
fn rows_that_are_exchanged_with_a_partition_are_read_anew() {
    for tables in ["t", "whole, t"] {
        let stage = Stage::of(
            "CREATE TABLE whole (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)
                 (PARTITION a VALUES LESS THAN (50), PARTITION b VALUES LESS THAN MAXVALUE);
             INSERT INTO whole SELECT seq, seq FROM seq_1_to_100; CREATE TABLE t LIKE whole;
             ALTER TABLE t REMOVE PARTITIONING; INSERT INTO t SELECT seq, -seq FROM seq_40_to_49",
            &format!("tables: [{tables}]"),
        );
        stage.catch_up();
        stage
            .from
            .sql("ALTER TABLE whole EXCHANGE PARTITION a WITH TABLE t; UPDATE t SET v = 0 WHERE id = 7");
        stage.catch_up();
        for table in tables.split(", ") {
            same(&stage, table, "id, v");
        }
    }
}

/// A definition that changes values changes them behind the log: the table is compared.
#[test]
fn values_that_a_definition_rewrites_are_read_anew() {
    let stage = Stage::of(
        "CREATE TABLE v (id int PRIMARY KEY, at datetime(6), y varchar(50), n int, e enum('a', 'b', 'c'), l varchar(20)
             CHARACTER SET utf8mb4);
         INSERT INTO v SELECT seq, timestamp '2024-01-02 03:04:05.678901' + INTERVAL seq SECOND, repeat('y', seq % 50),
             nullif(seq % 3, 0), elt(1 + seq % 3, 'a', 'b', 'c'), concat('ß€', seq) FROM seq_1_to_250",
        "tables: [v]",
    );
    stage.catch_up();
    let same = |case: &str| {
        // PostgreSQL prints no digits of a second that are zeros.
        let wanted = stage.from.sql(
            "SELECT concat_ws('|', id, y, coalesce(concat(n), '-'), coalesce(e, '-'), l, \
             replace(date_format(at, '%Y-%m-%d %H:%i:%s.%f'), '.000000', '')) FROM v",
        );
        assert_eq!(sorted(&wanted), stage.found("v", "id, y, n, e, l, at"), "{case}");
    };
    same("the first load");
    for statement in [
        "ALTER TABLE v MODIFY at datetime",
        "SET sql_mode = ''; ALTER TABLE v MODIFY y varchar(6)",
        "SET sql_mode = ''; ALTER TABLE v CHANGE n `n` int NOT NULL",
        "SET sql_mode = ''; ALTER TABLE v MODIFY COLUMN e enum('a', 'c')",
        "SET sql_mode = ''; ALTER TABLE v CONVERT TO CHARACTER SET latin1",
        "ALTER IGNORE TABLE v ADD UNIQUE (y)",
    ] {
        stage.from.sql(statement);
        stage.catch_up();
        same(statement);
    }
}

/// Where the server does not tell names of tables apart by their case, tables are known in any, in the pipeline and in
/// statements of the log.
#[test]
fn tables_are_known_in_any_case_where_the_server_folds_it() {
    let server = MariaDb::start_with(&["--lower-case-table-names=1"]);
    for name in ["users", "Users"] {
        let stage = Stage::on(
            &server,
            "CREATE TABLE Users (id int PRIMARY KEY, a varchar(20)); INSERT INTO users VALUES (1, 'a'), (2, 'b')",
            &format!("tables: [{name}]"),
        );
        stage.catch_up();
        stage.from.sql(
            "TRUNCATE TABLE USERS; INSERT INTO users VALUES (3, 'c'); ALTER TABLE USERS ADD COLUMN n int DEFAULT 5;
             INSERT INTO Users VALUES (4, 'd', 6)",
        );
        stage.catch_up();
        let there = stage
            .to
            .psql("SELECT tablename FROM pg_tables WHERE lower(tablename) = 'users'");
        same_as(&stage, "users", &format!("\"{there}\""));
    }
}

#[track_caller]
fn same_as(stage: &Stage, there: &str, here: &str) {
    assert_eq!(stage.wanted(there, "id, a, n"), stage.found(here, "id, a, n"), "{here}");
}

/// A row as it was and as it is makes one event, which may be larger than the server's clients are sent otherwise.
#[test]
fn changes_larger_than_a_packet_are_followed() {
    let server = MariaDb::start_with(&["--max-allowed-packet=4M"]);
    let stage = Stage::on(
        &server,
        "CREATE TABLE big (id int PRIMARY KEY, a longtext, n int); INSERT INTO big VALUES (1, repeat('a', 3000000), 1), (2, 'b', 1)",
        "tables: [big]",
    );
    stage.catch_up();
    stage
        .from
        .sql("UPDATE big SET a = repeat('c', 3500000) WHERE id = 1; UPDATE big SET n = 2");
    stage.catch_up();
    same(&stage, "big", "id, n, md5(a)");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    let findings = found["findings"].as_array().cloned().unwrap_or_default();
    let right = findings
        .iter()
        .find(|f| f["what"].as_str().is_some_and(|w| w.contains("REPLICATION SLAVE")));
    assert_eq!(right.and_then(|f| f["ok"].as_bool()), Some(true), "{found:#}");
}

/// Types that the two engines name alike and mean differently.
#[test]
fn columns_that_a_log_adds_are_those_of_a_fresh_load() {
    let stage = Stage::of(
        "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT seq FROM seq_1_to_9",
        "tables: [t]",
    );
    stage.catch_up();
    stage.from.sql(
        "ALTER TABLE t ADD a bit(8), ADD b point, ADD c tinyint(1), ADD d int unsigned, ADD e double, ADD f datetime(3),
         ADD g char(5), ADD h bigint unsigned, ADD i tinytext, ADD j year, ADD k decimal(10, 2), ADD l varchar(20), ADD m uuid;
         UPDATE t SET a = 5, b = point(1, 2), c = 1, d = 4294967295, e = 0.1, f = '2024-01-02 03:04:05.678', g = 'g ',
         h = 18446744073709551615, i = 'i', j = 2024, k = 1.5, l = 'l', m = uuid()",
    );
    stage.catch_up();
    let fresh = Postgres::shared(PgVersion::V18).database("binlog_fresh");
    let text = std::fs::read_to_string(stage.home.path().join("shop.yaml")).expect("the pipeline");
    let text = text
        .replace("name: shop", "name: fresh")
        .replace("slot: ", "slot: fresh_")
        .replace(&stage.to.url(), &fresh.url());
    std::fs::write(stage.home.path().join("fresh.yaml"), text).expect("written");
    let (code, _, err) = finished(&stage.command(&["run", "fresh.yaml", "--until-caught-up"]));
    assert_eq!(code, 0, "{err}");
    let told = |db: &TestDb| {
        let types = db.psql(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute WHERE attrelid = 't'::regclass \
             AND attnum > 0 ORDER BY attname",
        );
        (types, db.psql("SELECT t::text FROM t ORDER BY id"))
    };
    assert_eq!(told(&stage.to), told(&fresh));
}

/// A table without a key is followed from the first start on, and cannot be compared.
#[test]
fn a_table_without_a_key_is_followed_from_its_first_start_and_never_compared() {
    let stage = Stage::of("CREATE TABLE w (a int, b varchar(20))", "tables: [w]");
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    stage.pipeline(&to, "tables: [w]", ", keyless: true");
    stage.catch_up();
    stage.from.sql("INSERT INTO w VALUES (1, 'x')");
    stage.catch_up();
    same(&stage, "w", "a, b");
    stage.from.sql("ALTER TABLE w MODIFY b varchar(5)");
    let (_, why) = stage.refused();
    assert!(why.contains("without a key") && why.contains("column b"), "{why}");
}

/// What the log does not tell whole, or in a form that is not read, is refused by name, and nothing of it is written.
#[test]
fn what_is_not_read_is_refused_by_name() {
    let old = MariaDb::start_with(&["--mysql56-temporal-format=OFF"]);
    for (server, table, says) in [
        (
            MariaDb::shared(),
            "(id int PRIMARY KEY, v text) WITH SYSTEM VERSIONING",
            "version",
        ),
        (
            MariaDb::shared(),
            "(id int PRIMARY KEY, v varchar(20) CHARACTER SET sjis)",
            "character set sjis",
        ),
        (
            MariaDb::shared(),
            "(id int PRIMARY KEY, v text COMPRESSED)",
            "COMPRESSED",
        ),
        (&old, "(id int PRIMARY KEY, v datetime)", "old form of times"),
    ] {
        let stage = Stage::on(
            server,
            &format!("CREATE TABLE odd {table}; INSERT INTO odd (id) VALUES (1)"),
            "tables: [odd]",
        );
        let (code, first) = stage.json(&["run", "shop.yaml", "--until-caught-up"]);
        // At the start, or with the first row of the log.
        let why = match code {
            0 => {
                stage.from.sql("UPDATE odd SET id = 2");
                stage.refused().1
            }
            _ => first.to_string(),
        };
        assert!(why.contains(says), "{table}: no {says:?} in {why}");
        assert_ne!(stage.found("odd", "id"), ["2"], "{table}");
    }
}
