//! MariaDB's binary log, followed by the whole program: into every engine that takes changes, steered and killed as
//! PostgreSQL's is, and refused where it does not go on.

use super::{PATIENCE, stop};
use serde_json::Value;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use synctool_testkit::kill::{Action, Failpoint, KillRun, Running};
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
        let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
        command.current_dir(self.home.path()).args(arguments);
        for name in ["RUST_LOG", "SYNCTOOL_LOG_LEVEL", "SYNCTOOL_FAILPOINT"] {
            command.env_remove(name);
        }
        command
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let outcome = KillRun::new(&self.command(&[arguments, &["--output", "json"]].concat())).run();
        assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
        let json = serde_json::from_str(&outcome.stdout)
            .unwrap_or_else(|e| panic!("{arguments:?}: {e}\n{}\n{}", outcome.stdout, outcome.stderr));
        (outcome.code.unwrap_or(-1), json)
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
struct Writer {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Writer {
    fn start(stage: &Stage) -> Writer {
        let over = Arc::new(AtomicBool::new(false));
        let (database, until) = (stage.from.name().to_string(), over.clone());
        let thread = std::thread::spawn(move || {
            let mut n: u64 = 0;
            while !until.load(Ordering::Relaxed) {
                // Some at a time: every client is a session of its own.
                let some: Vec<String> = (n + 1..n + 8).map(change).collect();
                MariaDb::shared().try_sql(&database, &some.join(";")).expect("changes");
                n += 7;
            }
            n
        });
        Writer {
            over,
            thread: Some(thread),
        }
    }

    fn end(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().expect("it runs").join().expect("it wrote")
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Kills per test.
fn kills() -> usize {
    if std::env::var_os("SYNCTOOL_SOAK").is_some() {
        200
    } else {
        8
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
    assert_eq!(
        summary["read"]["rows"].as_u64().unwrap_or_default(),
        0,
        "nothing twice: {summary:#}"
    );
}

#[test]
fn a_backfill_beside_writes_ends_equal_and_streaming_goes_on() {
    let stage = Stage::new();
    let writer = Writer::start(&stage);
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
    let points = synctool_testkit::kill::spread(&reached, kills().div_ceil(2));
    let mut killed = 0;
    for point in &points {
        reset();
        let writer = Writer::start(&stage);
        let outcome = run().accident(point, Action::Kill).run();
        killed += usize::from(outcome.killed);
        assert!(outcome.killed || outcome.code == Some(0), "{point}: {}", outcome.stderr);
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
    let stage = Stage::new();
    stage.catch_up();
    let writer = Writer::start(&stage);
    for round in 0..kills() as u32 {
        let name = [
            "engine.commit.before",
            "engine.commit.after",
            "sink.commit.after",
            "sink.write",
        ][round as usize % 4];
        let point = Failpoint {
            name: name.into(),
            nth: 2 + round * 3,
        };
        let outcome = KillRun::new(&stage.command(&["run", "shop.yaml"]))
            .accident(&point, Action::Kill)
            .start()
            .wait();
        assert!(outcome.killed, "{point}: {}", outcome.stderr);
    }
    assert!(writer.end() > 10);
    stage.catch_up();
    stage.assert_equal("killed while it streams");
}

/// Every type that is read, ordinary values and the ends of their ranges.
const TYPES: &str = "
    CREATE TABLE types (id int PRIMARY KEY, b1 tinyint(1), i8 tinyint, u8 tinyint unsigned, i16 smallint,
        u16 smallint unsigned, i24 mediumint, u24 mediumint unsigned, i32 int, u32 int unsigned, i64 bigint,
        u64 bigint unsigned, zf int(8) zerofill, n decimal(30,10), nz decimal(10,2) zerofill, n65 decimal(65,30),
        f float, d double, bit1 bit(1), bit9 bit(9), bit64 bit(64), y year, dt date, t time, t3 time(3), t6 time(6),
        dtm datetime, dtm1 datetime(1), dtm6 datetime(6), ts timestamp NULL, ts4 timestamp(4) NULL,
        c char(10), cl char(10) CHARACTER SET latin1, vc varchar(300), vl varchar(20) CHARACTER SET latin1,
        cy varchar(20) CHARACTER SET cp1251, u2 varchar(20) CHARACTER SET ucs2, ule varchar(20) CHARACTER SET utf16le,
        uw varchar(20) CHARACTER SET utf32, tt tinytext, tx text, mt mediumtext, lt longtext,
        tl text CHARACTER SET latin1, bn binary(8), vb varbinary(300), tb tinyblob, bl blob, mb mediumblob, lb longblob,
        e enum('a', 'é', 'it''s'), el enum('é', 'x') CHARACTER SET latin1, s set('x', 'y', 'ß'), j json, g geometry,
        p point, uu uuid, i6 inet6, i4 inet4) CHARACTER SET utf8mb4";

const VALUES: &str = "
    INSERT INTO types VALUES
    (1, 1, 127, 255, 32767, 65535, 8388607, 16777215, 2147483647, 4294967295, 9223372036854775807, 18446744073709551615,
     42, 12345678901234567890.0123456789, 7.5, 12345678901234567890123456789012345.123456789012345678901234567891,
     1.1, 1.7976931348623157e308, b'1', b'101010101', 18446744073709551615, 2155, '9999-12-31', '23:59:59',
     '12:00:00.123', '00:00:00.000001', '9999-12-31 23:59:59', '2024-02-29 12:34:56.7', '1000-01-01 00:00:00.000001',
     '2038-01-19 03:14:07', '1970-01-01 00:00:01.0001', 'ab  ', 'é', repeat('🦀é', 60), 'naïve €', 'Привет', 'ключ',
     'é€', '🦀', 'tiny', 'text', 'medium', repeat('long', 5000), 'Grüße', x'0102030000000000', x'00ff00', x'00',
     x'0a5c27', repeat(x'ff', 300), repeat(x'00ff', 40000), 'it''s', 'é', 'x,ß', '{\"a\": [1, 2.50, null]}',
     ST_GeomFromText('LINESTRING(0 0, 1 1)'), POINT(1.5, -2), '123e4567-e89b-12d3-a456-426655440000', '2001:db8::ff00:42:8329',
     '192.0.2.1'),
    (2, 0, -128, 0, -32768, 0, -8388608, 0, -2147483648, 0, -9223372036854775808, 0, 0, -0.0000000001, 0,
     -0.000000000000000000000000000001, -3.4e38, -0.5, b'0', 0, 1, 1901, '1000-01-01', '00:00:00', '00:00:01.5',
     '23:59:59.999999', '1000-01-01 00:00:00', '1999-12-31 23:59:59.9', '9999-12-31 23:59:59.999999', '2001-02-03 04:05:06',
     '2038-01-19 03:14:07.9999', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', '', 'a', 'x', '', '[]',
     POINT(0, 0), POINT(0, 0), 'f81d4fae-7dec-61d0-a765-00a0c91e6bf6', '::ffff:192.0.2.1', '0.0.0.0'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
    INSERT INTO types (id, uu, i6, f, d, n, y, t6) VALUES (4, '00000000-0000-0000-0000-000000000000', '::', 16777216, 0.1, 1, 0, '01:00:00.5'),
    (5, '018f8f7e-5c1a-7c3e-9f2b-3d1c5a7b9e01', '::1', 1e-38, 123456789.125, 0, 1970, '01:02:03.4'),
    (6, '6ba7b810-9dad-41d1-80b4-00c04fd430c8', 'fe80::1', 0.1, 1e-300, 99999999999999999999.9999999999, 2000, '09:00:00'),
    (7, 'ffffffff-ffff-ffff-ffff-ffffffffffff', NULL, NULL, NULL, NULL, NULL, NULL),
    (8, '6ba7b810-9dad-51d1-00b4-00c04fd430c8', NULL, NULL, NULL, NULL, NULL, NULL),
    (9, '6ba7b810-9dad-81d1-c0b4-00c04fd430c8', NULL, NULL, NULL, NULL, NULL, NULL);";

const ODD: &str = "SET sql_mode = '';
    INSERT INTO types (id, dt, dtm, dtm6, ts, ts4, y, t, t3, t6) VALUES
    (20, '0000-00-00', '0000-00-00', '0000-00-00', '0000-00-00', '0000-00-00', '0000', '-838:59:59',
     '-00:00:00.001', '-00:00:00.000001'),
    (21, '2024-00-00', '2024-02-00', '2024-00-31 10:11:12.5', NULL, NULL, 1, '99:59:59', '-01:02:03.4', '-838:59:59'),
    (22, NULL, NULL, NULL, NULL, NULL, NULL, '838:59:59', '-12:00:00.999', '100:00:00.5')";

/// The rows of the log are those of the snapshot under other keys: letter by letter the same.
const AGAIN: &str = "
    CREATE TEMPORARY TABLE again AS SELECT * FROM types WHERE id < 1000;
    UPDATE again SET id = id + 1000;
    SET sql_mode = ''; INSERT INTO types SELECT * FROM again;
    UPDATE again SET id = id + 1000; INSERT INTO types SELECT * FROM again; UPDATE types SET id = id + 1000 WHERE id > 2000";

#[test]
fn values_of_the_log_are_those_of_a_snapshot() {
    let stage = Stage::of(&format!("{TYPES}; {VALUES}"), "tables: [types]");
    stage.catch_up();
    stage.from.sql(AGAIN);
    stage.catch_up();
    let row = |id: i32| {
        let sql = format!(
            "SELECT key, value FROM jsonb_each_text((SELECT to_jsonb(whole) - 'id' FROM types whole WHERE id = {id})) ORDER BY key"
        );
        stage.to.psql(&sql).lines().map(str::to_owned).collect::<Vec<_>>()
    };
    for id in 1..10 {
        let wanted = row(id);
        assert!(wanted.len() > 50, "row {id} is not there");
        for (other, way) in [(1000, "inserted"), (3000, "moved")] {
            let found = row(id + other);
            let different: Vec<_> = wanted.iter().zip(&found).filter(|(a, b)| a != b).collect();
            assert!(
                different.is_empty() && found.len() == wanted.len(),
                "row {id} {way}: {different:?}"
            );
        }
    }
}

#[test]
fn mariadb_and_sqlite_follow_a_log() {
    let stage = Stage::of(&format!("{TYPES}; {VALUES}; {ODD}; {SHOP}"), "tables: [types]");
    let copy = MariaDb::shared().database("binlog_copy");
    let tables = "tables: [types, users, restaurant, visit]";
    stage.pipeline(
        &format!("{{type: mariadb, connection: {{url: \"{}\"}}}}", copy.url()),
        tables,
        "",
    );
    stage.catch_up();
    stage.from.sql(AGAIN);
    for n in 1..12 {
        stage.from.sql(&change(n));
    }
    let killed = KillRun::new(&stage.command(&["run", "shop.yaml", "--until-caught-up"]))
        .at("sink.commit.after", 1)
        .run();
    killed.assert_killed();
    stage.catch_up();
    // Each value in one form, whatever the character set of its column.
    let exact = stage.from.sql(
        "SELECT group_concat(CASE WHEN data_type LIKE '%blob' OR data_type LIKE '%binary' OR data_type IN ('point', 'geometry')
         THEN concat('hex(', column_name, ')') WHEN data_type = 'bit' THEN concat(column_name, ' + 0')
         ELSE concat('hex(convert(', column_name, ' using utf8mb4))') END ORDER BY ordinal_position SEPARATOR ', ')
         FROM information_schema.columns WHERE table_schema = database() AND table_name = 'types'",
    );
    let rows = |db: &MariaDbDatabase| db.sql(&format!("SELECT {exact} FROM types ORDER BY id"));
    assert_eq!(rows(&stage.from), rows(&copy));
    for (table, columns) in COLUMNS {
        let sql = format!("SELECT {} FROM {table}", quoted(columns, "{}"));
        assert_eq!(sorted(&stage.from.sql(&sql)), sorted(&copy.sql(&sql)), "{table}");
    }
    let file = stage.home.path().join("copy.db");
    let _ = std::fs::remove_dir_all(stage.home.path().join("data"));
    let to = format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline(&to, "tables: [users, restaurant, visit]", "");
    stage.catch_up();
    for n in 12..20 {
        stage.from.sql(&change(n));
    }
    stage
        .from
        .sql("TRUNCATE restaurant; INSERT INTO restaurant VALUES ('one', 'x', 1)");
    stage.catch_up();
    let db = rusqlite::Connection::open(&file).expect("the copy");
    for (table, columns) in [
        ("users", "id, first_name, email, born"),
        ("restaurant", "id, name, rating"),
    ] {
        let sql = format!(
            "SELECT {} FROM {table}",
            columns
                .split(", ")
                .map(|c| format!("coalesce({c}, '-')"))
                .collect::<Vec<_>>()
                .join(" || '|' || ")
        );
        let mut query = db.prepare(&sql).expect("the table");
        let found = query.query_map([], |r| r.get::<_, String>(0)).expect("rows");
        let mut found: Vec<String> = found.map(|r| r.expect("a row")).collect();
        found.sort_unstable();
        assert_eq!(stage.wanted(table, columns), found, "{table}");
    }
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
    assert!(
        summary["rows"]["read_now"].as_u64().is_none_or(|n| n < 50),
        "{summary:#}"
    );
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

#[test]
fn without_metadata_the_catalog_says_the_names() {
    let server = MariaDb::start_with(&["--binlog-row-metadata=NO_LOG"]);
    let stage = Stage::on(
        &server,
        &format!("{TYPES}; {VALUES}; {SHOP}"),
        "tables: [types, users, restaurant, visit]",
    );
    stage.catch_up();
    stage.from.sql(AGAIN);
    stage.from.sql("UPDATE visit SET amount = -amount; ALTER TABLE users ADD COLUMN town varchar(20) DEFAULT 'Rome'; UPDATE users SET id = -id WHERE id < 20");
    stage.catch_up();
    stage.assert_equal("changes");
    assert_eq!(stage.wanted("users", "id, town"), stage.found("users", "id, town"));
    let all = "SELECT string_agg((to_jsonb(whole) - 'id')::text, ',' ORDER BY id) FROM types whole WHERE id";
    let snapshot = stage.to.psql(&format!("{all} < 1000"));
    assert_eq!(snapshot, stage.to.psql(&format!("{all} BETWEEN 1000 AND 2000")));
    // Altered behind rows that were not read yet: nobody can tell what those columns were.
    stage
        .from
        .sql("UPDATE restaurant SET rating = 3; ALTER TABLE restaurant ADD COLUMN first int FIRST");
    let (code, why) = stage.refused();
    assert!(code == "ST-LOG-005" && why.contains("binlog_row_metadata"), "{why}");
}

#[test]
fn keys_of_every_kind_are_read_in_chunks() {
    let server = MariaDb::start();
    let kinds = [
        (
            "k_text",
            "varchar(40) COLLATE utf8mb4_general_ci",
            "concat(char(65 + seq * 7 % 26), if(seq % 2, 'é', 'e'), seq)",
        ),
        (
            "k_latin",
            "varchar(40) CHARACTER SET latin1",
            "concat(if(seq % 2, 'ß', 'S'), seq)",
        ),
        ("k_uuid", "uuid", "uuid()"),
        (
            "k_time",
            "datetime(6)",
            "'2024-01-01' + INTERVAL seq * 1001 MICROSECOND",
        ),
        ("k_decimal", "decimal(20, 5)", "seq / 7 - 20"),
        ("k_bytes", "binary(16)", "unhex(md5(seq))"),
        ("k_double", "double", "seq / 3 - 50"),
        ("k_unsigned", "bigint unsigned", "18446744073709551615 - seq"),
        ("k_inet", "inet6", "concat('2001:db8::', hex(seq))"),
    ];
    let mut schema = String::from(
        "CREATE TABLE k_enum (id enum('c', 'b', 'a'), n int, v int, PRIMARY KEY (id, n));
         INSERT INTO k_enum SELECT 1 + seq % 3, seq, seq FROM seq_1_to_350;",
    );
    for (table, ty, value) in kinds {
        schema.push_str(&format!(
            "CREATE TABLE {table} (id {ty} PRIMARY KEY, v int); INSERT INTO {table} SELECT {value}, seq FROM seq_1_to_350;"
        ));
    }
    let names: Vec<&str> = kinds.iter().map(|k| k.0).chain(["k_enum"]).collect();
    let stage = Stage::on(&server, &schema, &format!("tables: [{}]", names.join(", ")));
    let differ = || -> Vec<&str> {
        let differs = |t: &&&str| stage.wanted(t, "v") != stage.found(t, "v");
        names.iter().filter(differs).copied().collect()
    };
    stage.catch_up();
    assert_eq!(differ(), [""; 0], "loaded");
    // The copies are disturbed, and found equal again by ranges.
    for table in &names {
        stage.to.psql(&format!(
            "DELETE FROM {table} WHERE v % 7 = 0; UPDATE {table} SET v = -v WHERE v % 5 = 0"
        ));
    }
    stage.to.psql(
        "INSERT INTO k_text VALUES ('AA', -1), ('zz', -2), ('Éa', -3); INSERT INTO k_time VALUES ('1999-01-01', -1)",
    );
    stage.from.sql("RESET MASTER");
    stage.repair();
    assert_eq!(differ(), [""; 0], "repaired");
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    for table in ["k_uuid", "k_text", "k_time"] {
        let key = stage.from.sql(&format!("SELECT id FROM {table} WHERE v = 30"));
        stage.to.psql(&format!("UPDATE {table} SET v = -1 WHERE v = 30"));
        wait_for("the log to be followed", PATIENCE, || {
            let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
            status["state"] == "running"
        });
        let keys = serde_json::to_string(&[key]).expect("json");
        let (code, done) = stage.json(&["cdc", "refresh", "shop.yaml", table, "--keys", &keys, "--wait"]);
        assert_eq!(code, 0, "{done:#}");
    }
    assert_eq!(differ(), [""; 0], "refreshed by keys");
    stop(running);
}
