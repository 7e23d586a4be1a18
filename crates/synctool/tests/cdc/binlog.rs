//! MariaDB's binary log, followed by the whole program: into every engine that takes changes, steered and killed as
//! PostgreSQL's is, and refused where it does not go on.

mod ddl;
mod drift;
mod faults;
mod storm;
mod values;

use super::kills::{killed_while_it_streams, kills, wakes_up_and_does_no_harm};
use super::steering::pauses_and_goes_on;
use super::{PATIENCE, Shop, Writer, command_in, finished, stop};
use serde_json::Value;
use std::process::Command;
use std::sync::atomic::Ordering;
use synctool_testkit::kill::{Action, KillRun, Running};
use synctool_testkit::{MariaDb, MariaDbDatabase, PgVersion, Postgres, TestDb, wait_for};
use tempfile::TempDir;

/// Tables as people have them: an automatic key, a key of text whose collation ignores case, a key of two columns.
const SHOP: &str = "
    CREATE TABLE users (id int AUTO_INCREMENT PRIMARY KEY, first_name varchar(255) NOT NULL, email varchar(190) UNIQUE,
        born date, address text);
    CREATE TABLE restaurant (id varchar(190) PRIMARY KEY, name varchar(255) NOT NULL, rating int);
    CREATE TABLE visit (user_id int, restaurant_id varchar(190), amount decimal(10, 2) NOT NULL, rating int,
        PRIMARY KEY (user_id, restaurant_id));
    INSERT INTO users (first_name, email, born, address) SELECT concat('n', seq), concat(seq, '@example.com'),
        date '1990-01-01' + INTERVAL seq DAY, repeat('street ', 20) FROM seq_1_to_900;
    INSERT INTO restaurant SELECT concat('r', seq), concat('place ', seq), seq % 6 FROM seq_1_to_60;
    INSERT INTO visit SELECT seq, concat('r', 1 + seq % 60), seq / 7.0, nullif(seq % 6, 0) FROM seq_1_to_900;";

const COLUMNS: [(&str, &str); 3] = [
    ("users", "id, first_name, email, born, address"),
    ("restaurant", "id, name, rating"),
    ("visit", "user_id, restaurant_id, amount, rating"),
];

/// A source, a destination and a folder with a pipeline `shop` between them.
struct Stage {
    from: MariaDbDatabase,
    to: TestDb,
    home: TempDir,
}

fn quoted(columns: &str, cast: &str) -> String {
    let cells: Vec<String> = columns
        .split(", ")
        .map(|c| format!("coalesce({}, '-')", cast.replace("{}", c)))
        .collect();
    format!("concat_ws('|', {})", cells.join(", "))
}

fn sorted(text: &str) -> Vec<String> {
    let mut rows: Vec<String> = text.lines().map(str::to_owned).collect();
    rows.sort_unstable();
    rows
}

impl Stage {
    fn new() -> Stage {
        Stage::of(SHOP, "tables: [users, restaurant, visit]")
    }

    fn of(schema: &str, tables: &str) -> Stage {
        Stage::on(MariaDb::shared(), schema, tables)
    }

    fn on(server: &MariaDb, schema: &str, tables: &str) -> Stage {
        let from = server.database("binlog");
        from.sql(schema);
        let stage = Stage {
            from,
            to: Postgres::shared(PgVersion::V18).database("binlog_to"),
            home: tempfile::tempdir().expect("a folder"),
        };
        stage.pipeline(
            &format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url()),
            tables,
            "",
        );
        stage
    }

    fn pipeline(&self, to: &str, tables: &str, log: &str) {
        self.pipeline_from(&self.from.url(), to, tables, log);
    }

    fn pipeline_from(&self, from: &str, to: &str, tables: &str, log: &str) {
        let text = format!(
            "name: shop\ndatastores:\n  from: {{type: mariadb, connection: {{url: \"{from}\"}}}}\n  to: {to}\n\
             source: {{datastore: from, {tables}}}\ndestination: {{datastore: to}}\n\
             strategies:\n  - {{type: log, slot: {}, chunk_rows: 100{log}}}\n",
            self.from.name()
        );
        std::fs::write(self.home.path().join("shop.yaml"), text).expect("written");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command_in(self.home.path(), arguments)
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let (code, out, err) = finished(&self.command(&[arguments, &["--output", "json"]].concat()));
        let json = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{out}\n{err}"));
        (code, json)
    }

    #[track_caller]
    fn catch_up(&self) -> Value {
        let (code, summary) = self.json(&["run", "shop.yaml", "--until-caught-up"]);
        assert_eq!(code, 0, "{summary:#}");
        summary
    }

    /// A run that is refused: its error's code, its sentence and the next step.
    #[track_caller]
    fn refused(&self) -> (String, String) {
        let (code, summary) = self.json(&["run", "shop.yaml", "--until-caught-up"]);
        assert_ne!(code, 0, "{summary:#}");
        let id = summary["error"]["code"].as_str().or(summary["code"].as_str());
        (id.unwrap_or_default().into(), summary.to_string())
    }

    #[track_caller]
    fn repair(&self) {
        let (code, summary) = self.json(&["run", "shop.yaml", "--until-caught-up", "--repair"]);
        assert_eq!(code, 0, "{summary:#}");
    }

    fn wanted(&self, table: &str, columns: &str) -> Vec<String> {
        sorted(&self.from.sql(&format!("SELECT {} FROM {table}", quoted(columns, "{}"))))
    }

    fn found(&self, table: &str, columns: &str) -> Vec<String> {
        let sql = format!("SELECT {} FROM {table}", quoted(columns, "{}::text"));
        sorted(&self.to.try_psql(&sql).unwrap_or_default())
    }

    fn different(&self) -> Vec<&'static str> {
        let differs =
            |(table, columns): &&(&'static str, &str)| self.wanted(table, columns) != self.found(table, columns);
        COLUMNS.iter().filter(differs).map(|(table, _)| *table).collect()
    }

    #[track_caller]
    fn assert_equal(&self, case: &str) {
        assert_eq!(self.different(), [""; 0], "{case}: tables differ");
    }

    #[track_caller]
    fn until_equal(&self, running: &Running) {
        wait_for("both ends to be equal", PATIENCE, || match self.different() {
            different if different.is_empty() => Ok(()),
            different => Err(format!("{different:?} differ; the program said: {}", running.stderr())),
        });
    }
}

/// The nth change: partial updates, keys that wander, deletes, and rows behind every cursor.
fn change(n: u64) -> String {
    let (a, b) = (1 + n * 7 % 900, 1 + n * 31 % 900);
    format!(
        "BEGIN; UPDATE users SET first_name = 'w{n}' WHERE id = {a};
         UPDATE visit SET amount = amount + 1, rating = NULL WHERE user_id = {b}; COMMIT;
         BEGIN; DELETE FROM visit WHERE user_id = {a};
         INSERT IGNORE INTO visit VALUES ({a}, concat('r', 1 + {n} % 60), {n} % 1000 / 10.0, 1); COMMIT;
         UPDATE IGNORE visit SET restaurant_id = concat('r', 1 + ({n} + 13) % 60) WHERE user_id = {b};
         INSERT IGNORE INTO users VALUES (-{n}, 'behind', 'b{n}@example.com', NULL, repeat('x', 3000));
         DELETE FROM users WHERE id = 40 - {n} AND id < 0;
         BEGIN; UPDATE users SET first_name = 'never' WHERE id = {b}; ROLLBACK;
         UPDATE restaurant SET rating = {n} % 7 WHERE id = concat('r', 1 + {n} % 60);
         UPDATE restaurant SET id = upper(id) WHERE id = concat('r', 1 + ({n} * 11) % 60);
         DO sleep(0.03)"
    )
}

/// What other people do to the shop meanwhile, until this is dropped.
fn writer(stage: &Stage) -> Writer {
    let database = stage.from.name().to_string();
    Writer::of(move |over| {
        let mut n: u64 = 0;
        while !over.load(Ordering::Relaxed) {
            // Some at a time: every client is a session of its own.
            let some: Vec<String> = (n + 1..n + 8).map(change).collect();
            MariaDb::shared().try_sql(&database, &some.join(";")).expect("changes");
            n += 7;
        }
        n
    })
}

impl Shop for Stage {
    fn command(&self, arguments: &[&str]) -> Command {
        Stage::command(self, arguments)
    }

    fn catch_up(&self) -> Value {
        Stage::catch_up(self)
    }

    fn assert_equal(&self, case: &str) {
        Stage::assert_equal(self, case);
    }

    fn until_equal(&self, running: &Running) {
        Stage::until_equal(self, running);
    }

    fn writer(&self) -> Writer {
        writer(self)
    }

    fn change(&self, sql: &str) {
        self.from.sql(sql);
    }

    fn copy(&self, sql: &str) -> String {
        self.to.psql(sql)
    }
}

#[test]
fn a_log_reaches_postgresql() {
    let stage = Stage::new();
    stage.catch_up();
    stage.assert_equal("the first load");
    for n in 1..20 {
        stage.from.sql(&change(n));
    }
    stage.from.sql("UPDATE users SET id = -id WHERE id > 880");
    stage.catch_up();
    stage.assert_equal("changes and keys that changed");
    stage.from.sql(
        "TRUNCATE visit; INSERT INTO visit VALUES (1, 'r1', 2.50, NULL);
         ALTER TABLE restaurant ADD COLUMN town varchar(40) DEFAULT 'Rome', ADD COLUMN note text;
         INSERT INTO restaurant (id, name, town) VALUES ('new', 'after', 'Bonn'); UPDATE users SET address = NULL WHERE id < 20",
    );
    stage.catch_up();
    stage.assert_equal("TRUNCATE and a new column");
    let town = "id, name, rating, town, note";
    assert_eq!(stage.wanted("restaurant", town), stage.found("restaurant", town));
    let summary = stage.catch_up();
    assert_eq!(summary["read_now"].as_u64(), Some(0), "nothing twice: {summary:#}");
}

#[test]
fn a_backfill_beside_writes_ends_equal_and_streaming_goes_on() {
    let stage = Stage::new();
    let writer = writer(&stage);
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    wait_for("the tables to be loaded", PATIENCE, || {
        let n = stage.to.try_psql("SELECT count(*) FROM visit").unwrap_or_default();
        n.parse::<u64>().is_ok_and(|n| n > 800)
    });
    assert!(writer.end() > 0);
    stage.until_equal(&running);
    let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
    assert_eq!((code, status["state"].as_str()), (0, Some("running")), "{status:#}");
    stage
        .from
        .sql("UPDATE users SET first_name = 'streamed' WHERE id BETWEEN 100 AND 110");
    stage.until_equal(&running);
    stop(running);
    stage.assert_equal("at the end");
}

#[test]
fn killed_anywhere_a_capture_ends_equal() {
    let stage = Stage::new();
    let run = || KillRun::new(&stage.command(&["run", "shop.yaml", "--until-caught-up"]));
    let reset = || {
        stage
            .to
            .psql("DROP TABLE IF EXISTS users, restaurant, visit CASCADE; DROP SCHEMA IF EXISTS synctool CASCADE");
        let _ = std::fs::remove_dir_all(stage.home.path().join("data"));
    };
    let reached = run().failpoints_reached();
    stage.assert_equal("undisturbed");
    let points = synctool_testkit::kill::spread(&reached, kills().div_ceil(4));
    let mut killed = 0;
    for mut point in points.iter().cloned() {
        let writer = loop {
            reset();
            let writer = writer(&stage);
            let outcome = run().accident(&point, Action::Kill).run();
            assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
            if outcome.killed || point.nth == 1 {
                killed += usize::from(outcome.killed);
                break writer;
            }
            // How often it commits depends on how fast it is: this run passed there less often than the first one.
            writer.end();
            point.nth /= 2;
        };
        let again = run().run();
        assert_eq!(
            again.code,
            Some(0),
            "killed at {point}, the next run failed: {}",
            again.stderr
        );
        writer.end();
        let last = run().run();
        assert_eq!(last.code, Some(0), "{point}: {}", last.stderr);
        stage.assert_equal(&format!("killed at {point}"));
    }
    assert!(
        killed * 10 >= points.len() * 8,
        "only {killed} of {} kills struck",
        points.len()
    );
}

#[test]
fn killed_while_it_streams_a_capture_ends_equal() {
    killed_while_it_streams(&Stage::new());
}

/// F2: fenced by its epoch, whoever it is that the server hands its log to.
#[test]
fn a_zombie_does_no_harm() {
    wakes_up_and_does_no_harm(&Stage::new());
}

#[test]
fn a_capture_pauses_and_goes_on() {
    pauses_and_goes_on(&Stage::new());
}

#[test]
fn tables_that_are_made_anew_are_read_anew() {
    let stage = Stage::new();
    stage.catch_up();
    stage.from.sql(
        "CREATE TABLE other LIKE restaurant; INSERT INTO other SELECT concat('x', seq), 'swapped', seq FROM seq_1_to_30;
         RENAME TABLE restaurant TO old_restaurant, other TO restaurant; UPDATE restaurant SET rating = 5 WHERE id = 'x3';
         DROP TABLE visit; CREATE TABLE visit (user_id int, restaurant_id varchar(190), amount decimal(10, 2) NOT NULL,
         rating int, PRIMARY KEY (user_id, restaurant_id)); INSERT INTO visit VALUES (1, 'x1', 1, 1);
         INSERT INTO old_restaurant VALUES ('gone', 'not followed', 0)",
    );
    stage.catch_up();
    stage.assert_equal("renamed and made again");
}

/// F49: a table that is dropped while it is followed is told, and shown at rest too; the others go on, and one that gets its
/// name is read anew.
#[test]
fn a_table_that_goes_is_told() {
    let stage = Stage::new();
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.until_equal(&running);
    stage.from.sql("DROP TABLE visit");
    let visit = |what: &str| {
        let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
        status["tables"][2][what].as_str().map(str::to_owned)
    };
    wait_for("the table to be told", PATIENCE, || {
        match (visit("absent"), running.stderr()) {
            (Some(why), said) if why.contains("dropped") && said.contains("dropped") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    stage.from.sql("UPDATE users SET first_name = 'on' WHERE id < 9");
    wait_for("the others to go on", PATIENCE, || {
        stage.wanted("users", COLUMNS[0].1) == stage.found("users", COLUMNS[0].1)
    });
    stop(running);
    let (_, text, _) = finished(&stage.command(&["cdc", "status", "shop.yaml"]));
    assert!(
        text.contains("absent, see below") && text.contains("stays as it is"),
        "{text}"
    );
    stage.catch_up();
    assert_ne!(stage.to.psql("SELECT count(*) FROM visit"), "0", "its copy stays");
    stage.from.sql(
        "CREATE TABLE visit (user_id int, restaurant_id varchar(190), amount decimal(10, 2) NOT NULL, rating int,
         PRIMARY KEY (user_id, restaurant_id)); INSERT INTO visit VALUES (1, 'r1', 1, 1)",
    );
    stage.catch_up();
    stage.assert_equal("made again");
    assert_eq!(visit("absent"), None);
}

#[test]
fn tables_without_a_key_and_computed_columns_are_followed() {
    let stage = Stage::of(
        "CREATE TABLE notes (a int, b text); CREATE TABLE computed (id int NOT NULL, a int, v int AS (a * 2) VIRTUAL,
         s int AS (a + 1) STORED, z text, UNIQUE (id)); INSERT INTO computed (id, a, z) SELECT seq, seq, 'z' FROM seq_1_to_250",
        "tables: [notes, computed]",
    );
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    let (_, why) = stage.refused();
    assert!(why.contains("notes has no key"), "{why}");
    stage.pipeline(&to, "tables: [notes, computed]", ", keyless: true");
    stage.catch_up();
    stage.from.sql(
        "INSERT INTO notes VALUES (1, 'x'), (1, 'x'), (2, NULL); UPDATE notes SET b = 'y' WHERE a = 2;
         DELETE FROM notes WHERE a = 1 LIMIT 1; UPDATE computed SET a = -a, z = NULL WHERE id < 20; DELETE FROM computed WHERE id > 240;
         UPDATE computed SET id = 1000 WHERE id = 30",
    );
    stage.catch_up();
    for (table, columns) in [("notes", "a, b"), ("computed", "id, a, z")] {
        assert_eq!(stage.wanted(table, columns), stage.found(table, columns), "{table}");
    }
    for (table, word) in [("plain", "MyISAM"), ("child", "CASCADE")] {
        let other = Stage::of(
            "CREATE TABLE plain (id int PRIMARY KEY) ENGINE = MyISAM; CREATE TABLE parent (id int PRIMARY KEY);
             CREATE TABLE child (id int PRIMARY KEY, of int REFERENCES parent (id) ON DELETE CASCADE)",
            &format!("tables: [{table}]"),
        );
        let (_, why) = other.refused();
        assert!(why.contains(word), "{why}");
    }
}

#[test]
fn a_purged_log_is_told_and_repaired() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, "tables: [users, restaurant, visit]");
    stage.catch_up();
    stage
        .from
        .sql("DELETE FROM users WHERE id > 800; UPDATE restaurant SET rating = 9; FLUSH BINARY LOGS");
    stage
        .from
        .sql("DELETE FROM visit WHERE user_id < 50; FLUSH BINARY LOGS; INSERT INTO restaurant VALUES ('z', 'z', 1)");
    let last = stage
        .from
        .sql("SHOW BINARY LOGS")
        .lines()
        .last()
        .expect("a file")
        .split('\t')
        .next()
        .unwrap_or_default()
        .to_owned();
    // The server ends the session of a process that is gone in its own time, and keeps what it reads until then.
    wait_for("the log to be purged", PATIENCE, || {
        stage.from.sql(&format!("PURGE BINARY LOGS TO '{last}'"));
        stage.from.sql("SHOW BINARY LOGS").lines().count() == 1
    });
    let (code, why) = stage.refused();
    assert_eq!(code, "ST-LOG-004", "{why}");
    assert!(why.contains("--repair"), "{why}");
    stage.repair();
    stage.assert_equal("repaired");
    stage.from.sql("UPDATE users SET first_name = 'on' WHERE id < 10");
    stage.catch_up();
    stage.assert_equal("and goes on");
}

/// A column came while the log was lost: its values come with the repair.
#[test]
fn columns_that_came_in_a_gap_are_repaired() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, "tables: [users, restaurant, visit]");
    stage.catch_up();
    stage.from.sql(
        "ALTER TABLE restaurant ADD COLUMN stars int, ADD COLUMN twice int AS (rating * 2) VIRTUAL;
         UPDATE restaurant SET stars = rating + 1; DELETE FROM users WHERE id > 800; RESET MASTER",
    );
    let (code, why) = stage.refused();
    assert!(code.starts_with("ST-LOG") && why.contains("--repair"), "{why}");
    stage.repair();
    stage.assert_equal("repaired");
    let stars = "id, name, rating, stars";
    assert_eq!(stage.wanted("restaurant", stars), stage.found("restaurant", stars));
    stage.from.sql("UPDATE restaurant SET stars = 7 WHERE id = 'r3'");
    stage.catch_up();
    assert_eq!(stage.wanted("restaurant", stars), stage.found("restaurant", stars));
}

/// New tables that cannot be followed do not end the others' capture; one that got a key is followed.
#[test]
fn a_new_table_without_a_key_waits_for_one() {
    let stage = Stage::of(SHOP, "tables: []");
    stage.catch_up();
    stage.from.sql("CREATE TABLE bare (a int, b text); INSERT INTO bare VALUES (1, 'x'); CREATE TABLE odd (id int PRIMARY KEY) ENGINE = MyISAM");
    for n in 1..3 {
        stage.from.sql(&change(n));
        stage.catch_up();
        stage.assert_equal("beside a table without a key");
    }
    stage
        .from
        .sql("ALTER TABLE bare MODIFY a int NOT NULL, ADD PRIMARY KEY (a); INSERT INTO bare VALUES (2, 'y')");
    stage.catch_up();
    assert_eq!(stage.wanted("bare", "a, b"), stage.found("bare", "a, b"));
}

#[test]
fn another_server_and_a_reset_one_are_refused() {
    let (server, other) = (MariaDb::start(), MariaDb::start());
    let stage = Stage::on(&server, SHOP, "tables: [users, restaurant, visit]");
    stage.catch_up();
    stage.from.sql("UPDATE users SET first_name = 'here' WHERE id = 1");
    stage.catch_up();
    let name = stage.from.name();
    other.sql(&format!("CREATE DATABASE {name}"));
    other.try_sql(name, SHOP).expect("the same shop");
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    // With fewer transactions than the position, and with more.
    for round in 0..2 {
        stage.pipeline_from(&other.url(name), &to, "tables: [users, restaurant, visit]", "");
        let (code, why) = stage.refused();
        assert!(
            ["ST-LOG-001", "ST-LOG-002", "ST-LOG-004"].contains(&code.as_str()),
            "{round}: {why}"
        );
        assert!(why.contains("--repair"), "{why}");
        for n in 1..20 {
            other
                .try_sql(
                    name,
                    &format!("UPDATE users SET first_name = 'there{n}' WHERE id = {n}"),
                )
                .expect("a change");
        }
    }
    stage.pipeline(&to, "tables: [users, restaurant, visit]", "");
    stage.catch_up();
    stage.assert_equal("the own server goes on");
    stage
        .from
        .sql("RESET MASTER; UPDATE users SET first_name = 'after' WHERE id < 50");
    let (code, why) = stage.refused();
    assert!(
        ["ST-LOG-001", "ST-LOG-002", "ST-LOG-004"].contains(&code.as_str()),
        "{why}"
    );
    stage.repair();
    stage.assert_equal("after RESET MASTER");
}

#[test]
fn a_server_that_restarts_is_waited_for() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, "tables: [users, restaurant, visit]");
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.until_equal(&running);
    server.restart();
    stage
        .from
        .sql("UPDATE users SET first_name = 'after the restart' WHERE id < 100");
    stage.until_equal(&running);
    stop(running);
}

#[test]
fn missing_rights_and_settings_are_named() {
    let server = MariaDb::start();
    let stage = Stage::on(&server, SHOP, "tables: [users, restaurant, visit]");
    let name = stage.from.name();
    server.sql(&format!(
        "CREATE USER poor@'%' IDENTIFIED BY 'x'; GRANT SELECT ON {name}.* TO poor@'%'"
    ));
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    let url = format!("mysql://poor:x@127.0.0.1:{}/{name}", server.port());
    stage.pipeline_from(&url, &to, "tables: [users, restaurant, visit]", "");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    assert!(
        found
            .to_string()
            .contains("GRANT REPLICATION SLAVE ON *.* TO 'poor'@'%'"),
        "{found:#}"
    );
    let (code, why) = stage.refused();
    assert_eq!(code, "ST-AUT-002", "{why}");
    server.sql("GRANT REPLICATION SLAVE ON *.* TO poor@'%'");
    let (_, found) = stage.json(&["doctor", "shop.yaml"]);
    assert!(!found.to_string().contains("GRANT REPLICATION SLAVE"), "{found:#}");
    stage.catch_up();
    stage.assert_equal("with that one right");
    server.sql("SET GLOBAL binlog_format = 'MIXED'");
    let (code, why) = stage.refused();
    assert!(
        code == "ST-LOG-005" && why.contains("SET GLOBAL binlog_format"),
        "{why}"
    );
    server.sql("SET GLOBAL binlog_format = 'ROW'");
    stage
        .from
        .sql("SET SESSION binlog_format = 'STATEMENT'; UPDATE users SET first_name = 'unseen' WHERE id = 1");
    let (code, why) = stage.refused();
    assert!(code == "ST-LOG-005" && why.contains("users"), "{why}");
    stage.repair();
    stage.assert_equal("what was logged as a statement is compared");
    let file = server.sql("SELECT concat(@@datadir, 'loaded')");
    stage.from.sql(&format!(
        "SELECT 'loaded' INTO OUTFILE '{file}';
         SET SESSION binlog_format = 'STATEMENT'; LOAD DATA INFILE '{file}' INTO TABLE users (first_name)"
    ));
    let (code, why) = stage.refused();
    assert!(code == "ST-LOG-005" && why.contains("users"), "{why}");
    stage.repair();
    stage.assert_equal("what was loaded as a statement is compared");
}

#[test]
fn a_replica_that_takes_over_is_followed_on() {
    let primary = MariaDb::start();
    let replica = MariaDb::start_with(&["--log-slave-updates", "--server-id=2"]);
    let stage = Stage::on(&primary, SHOP, "tables: [users, restaurant, visit]");
    stage.catch_up();
    stage
        .from
        .sql("UPDATE users SET first_name = 'before' WHERE id < 300; DELETE FROM visit WHERE user_id < 20");
    stage.catch_up();
    stage
        .from
        .sql("UPDATE users SET first_name = 'unread' WHERE id BETWEEN 300 AND 310");
    replica.sql(&format!(
        "CHANGE MASTER TO master_host = '127.0.0.1', master_port = {}, master_user = 'root', master_use_gtid = slave_pos;
         START SLAVE",
        primary.port()
    ));
    let position = primary.sql("SELECT @@gtid_binlog_pos");
    let reached = replica.sql(&format!("SELECT MASTER_GTID_WAIT('{position}', 60)"));
    assert_eq!(reached, "0", "{}", replica.log());
    replica.sql("STOP SLAVE");
    let name = stage.from.name();
    replica
        .try_sql(
            name,
            "UPDATE users SET first_name = 'taken over' WHERE id = 1; INSERT INTO restaurant VALUES ('new', 'x', 2)",
        )
        .expect("a change");
    let to = format!("{{type: postgres, connection: {{url: \"{}\"}}}}", stage.to.url());
    stage.pipeline_from(&replica.url(name), &to, "tables: [users, restaurant, visit]", "");
    let summary = stage.catch_up();
    assert!(summary["read_now"].as_u64().is_some_and(|n| n < 50), "{summary:#}");
    for (table, columns) in COLUMNS {
        let sql = format!("SELECT {} FROM {table}", quoted(columns, "{}"));
        assert_eq!(
            sorted(&replica.try_sql(name, &sql).expect("rows")),
            stage.found(table, columns),
            "{table}"
        );
    }
    // The primary did not have what came after.
    stage.pipeline(&to, "tables: [users, restaurant, visit]", "");
    stage.from.sql(
        "UPDATE users SET first_name = 'another way' WHERE id < 5; UPDATE users SET first_name = 'too' WHERE id < 5",
    );
    let (code, why) = stage.refused();
    assert!(["ST-LOG-001", "ST-LOG-002"].contains(&code.as_str()), "{why}");
}
