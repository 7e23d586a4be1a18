//! Values and keys of every type: what the log says is what a snapshot says, in every engine.

use super::*;

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

/// A column of the destination that keeps fewer digits of a second takes what it keeps; what it would round ends the log.
#[test]
fn a_column_that_keeps_fewer_digits_rounds_nothing() {
    let made = "CREATE TABLE t (id int PRIMARY KEY, at datetime(6)); INSERT INTO t VALUES (1, '2026-01-01 00:00:00')";
    let stage = Stage::of(made, "tables: [t]");
    stage.to.psql("CREATE TABLE t (id int PRIMARY KEY, at timestamp(0))");
    stage.catch_up();
    assert_eq!(stage.to.psql("SELECT at FROM t"), "2026-01-01 00:00:00");
    stage.from.sql("INSERT INTO t VALUES (2, '2026-01-01 00:00:00.5')");
    let (code, why) = stage.refused();
    assert!(code == "ST-DAT-001" && why.contains("column at"), "{why}");
    assert_eq!(stage.to.psql("SELECT max(id) FROM t"), "1");
    stage.to.psql("ALTER TABLE t ALTER at TYPE timestamp");
    stage.catch_up();
    assert_eq!(stage.to.psql("SELECT at FROM t WHERE id = 2"), "2026-01-01 00:00:00.5");
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

/// DuckDB keeps decimals beyond 38 digits as texts: ranges go by these at both ends.
#[cfg(feature = "duckdb")]
#[test]
fn duckdb_replaces_ranges_of_numbers_that_are_texts() {
    let stage = Stage::of(
        "CREATE TABLE numbers (n decimal(65, 30) PRIMARY KEY, v int);
         INSERT INTO numbers SELECT CAST(seq AS SIGNED) * 7 - 900, seq FROM seq_1_to_300",
        "tables: [numbers]",
    );
    let file = stage.home.path().join("copy.duckdb");
    let to = format!("{{type: duckdb, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline(&to, "tables: [numbers]", "");
    stage.catch_up();
    let (code, done) = stage.json(&["cdc", "refresh", "shop.yaml", "numbers"]);
    assert_eq!(code, 0, "{done:#}");
    stage.catch_up();
    let (from, uri) = (stage.from.url(), format!("duckdb:{}", file.display()));
    let (code, found) = stage.json(&["diff", &from, "numbers", &uri, "numbers", "--columns", "n,v"]);
    let rows = &found["compared"]["source"];
    assert_eq!((code, rows), (0, &serde_json::json!(300)), "{found:#}");
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
