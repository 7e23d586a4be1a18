//! Types on their way: MariaDB → MariaDB letter by letter, and PostgreSQL → MariaDB → PostgreSQL by each column's class.

use super::*;
use std::time::Duration;
use synctool_connectors::postgres::{DestinationOptions, Postgres as Database, PostgresConfig, PostgresDestination};
use synctool_core::engine::{Engine, Options};
use synctool_core::error::code;
use synctool_core::retry::RetryPolicy;
use synctool_core::schema::{Column, ColumnType};
use synctool_core::sink::Fidelity;
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;
use synctool_testkit::{PgVersion, Postgres};

async fn full_run(
    source: Arc<dyn Source>,
    destination: Arc<dyn Destination>,
    from: TableId,
    to: TableId,
    mode: FullMode,
) -> Result<synctool_core::engine::Report> {
    let mut engine = Engine::new(source.clone(), destination.clone());
    engine.options = Options {
        retry: RetryPolicy {
            attempts: 2,
            initial: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        ..Options::default()
    };
    let engine = Arc::new(engine);
    let semantics = serde_json::json!({"table": from.to_string()});
    let pipeline = format!("{from} to {to}");
    let request = FullRequest {
        table: TableRequest {
            run_id: "20260101_000000_abcdef".into(),
            partition_bytes: 64 << 20,
            semantics: semantics.clone(),
            now: "2026-01-01T00:00:00Z".into(),
            ..TableRequest::new(pipeline.clone(), from, to)
        },
        mode,
        deletes: true,
        verify: Some(Verify::Hash),
        remember: Default::default(),
    };
    let draft = full::plan(source.as_ref(), destination.as_ref(), engine.stages.as_ref(), request);
    let (plan, resumed) = engine.plan(&pipeline, &semantics, draft).await?;
    engine.run(plan, resumed).await
}

const EVERYTHING: &str = "CREATE TABLE a (id int unsigned AUTO_INCREMENT PRIMARY KEY, b tinyint(1), bit1 bit(1), bits bit(64), \
    i8 tinyint, i16 smallint unsigned, i24 mediumint, i64 bigint, u64 bigint unsigned, y year, d decimal(65,30), f float, g double, \
    da date, ti time(6), ts datetime(3), tz timestamp(6) NULL, c char(5), v varchar(20), t text, latin varchar(20) CHARACTER SET latin1, \
    bi binary(3), vb varbinary(20), bl longblob, j json, e enum('x','y z'), s set('p','q'), g_ int GENERATED ALWAYS AS (i8 + 1) STORED, \
    po point, u uuid, ip inet6)";

const VALUES: &str = "SET sql_mode = 'STRICT_ALL_TABLES'; SET time_zone = '+00:00'; \
    INSERT INTO a (id, b, bit1, bits, i8, i16, i24, i64, u64, y, d, f, g, da, ti, ts, tz, c, v, t, latin, bi, vb, bl, j, e, s, po, u, ip) VALUES \
    (1, 1, b'1', 18446744073709551615, -128, 65535, -8388608, -9223372036854775808, 18446744073709551615, 2155, \
     -12345678901234567890123456789012345.123456789012345678901234567890, 3.4028234663852886e38, 5e-324, '2024-02-29', '23:59:59.999999', \
     '9999-12-31 23:59:59.999', '2038-01-19 03:14:07.999999', 'ab', 'ä€😀 ', 'tab\\tnl\\n\\\\ \\'q\\' \\\\N', 'äöü', X'0001', X'00ff5c', X'', \
     '{\"b\": 1,  \"a\": 1.0, \"a\": 2}', 'y z', 'p,q', ST_GeomFromText('POINT(1 2)'), '123e4567-e89b-12d3-a456-426655440000', '::1'), \
    (2, 0, b'0', 0, 127, 0, 8388607, 9007199254740993, 0, 0, 0, 0.1, -1.7976931348623157e308, '0000-00-00', '-838:59:59.000000', \
     '2024-00-15 00:00:00', NULL, '', '', '', '', X'', X'', X'00', 'null', 'x', '', NULL, NULL, NULL), \
    (3, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, '838:59:59', NULL, NULL, NULL, NULL, NULL, NULL, NULL, \
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mariadb_to_mariadb_keeps_every_letter() {
    for path in [LoadPath::Infile, LoadPath::Insert] {
        let from = Db::new().await;
        from.sql(EVERYTHING);
        from.sql(VALUES);
        let to = Db::with(|c| c.load = path).await;
        let table = TableId::bare("a");
        let report = full_run(
            from.source(),
            to.destination.clone(),
            table.clone(),
            table.clone(),
            FullMode::Auto,
        )
        .await
        .unwrap();
        assert_eq!(report.ledger.accounts.read.rows, 3);
        let all = "SELECT id, b, hex(bit1), hex(bits), i8, i16, i24, i64, u64, y, d, f * 1e0, g, da, ti, ts, tz, hex(c), hex(v), hex(t), \
                   hex(CONVERT(latin USING utf8mb4)), hex(bi), hex(vb), hex(bl), hex(j), e, s, g_, hex(po), u, ip FROM a ORDER BY id";
        assert_eq!(to.sql(all), from.sql(all));
        let types = "SELECT column_name, column_type FROM information_schema.columns WHERE table_schema = database() \
                     AND table_name = 'a' AND column_name <> 'j' ORDER BY 1";
        assert_eq!(to.sql(types), from.sql(types));
        // A second run finds everything as it is.
        let report = full_run(
            from.source(),
            to.destination.clone(),
            table.clone(),
            table.clone(),
            FullMode::Upsert,
        )
        .await
        .unwrap();
        assert_eq!(report.ledger.outcome().unchanged, 3, "{:?}", report.ledger.outcome());
        let report = full_run(
            from.source(),
            to.destination.clone(),
            table.clone(),
            table,
            FullMode::Swap,
        )
        .await
        .unwrap();
        assert_eq!(report.ledger.accounts.read.rows, 3);
        assert_eq!(to.sql(all), from.sql(all));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_without_a_meaning_elsewhere_are_told() {
    let db = Db::new().await;
    db.sql(
        "SET sql_mode = ''; CREATE TABLE z (id int PRIMARY KEY, d date); INSERT INTO z VALUES (1, '0000-00-00'); \
         CREATE TABLE l (id int PRIMARY KEY, t time); INSERT INTO l VALUES (1, '25:00:00'); \
         CREATE TABLE n (id int PRIMARY KEY, b tinyint(1)); INSERT INTO n VALUES (1, 2)",
    );
    for table in ["z", "l", "n"] {
        let e = read_all(&db, table).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_MALFORMED, "{table}: {e}");
        assert!(e.next_step().unwrap().contains("as_text"), "{e}");
        // As text they are what the server prints.
        let source = db.source();
        let schema = source.describe(&TableId::bare(table)).await.unwrap();
        let columns: Vec<Column> = schema.columns.into_iter().map(synctool_core::text::as_text).collect();
        let rows = read_spec(
            source.as_ref(),
            &ReadSpec::all(TableId::bare(table), &columns),
            Slice::All,
        )
        .await
        .unwrap();
        let shown = match table {
            "z" => "0000-00-00",
            "l" => "25:00:00",
            _ => "2",
        };
        assert_eq!(rows, [row(&["1", shown])]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn postgresql_there_and_back_again() {
    let pg = Postgres::shared(PgVersion::V15).database("mysql_types");
    pg.psql(
        "CREATE TABLE a (id bigint PRIMARY KEY, b boolean, i2 smallint, i4 integer, n numeric, d numeric(12,2), big numeric(80,5), \
         f real, g double precision, da date, ti time, tt timetz, ts timestamp, tz timestamptz, iv interval, t text, v varchar(10), \
         c char(5), by bytea, u uuid, j json, jb jsonb, arr integer[], net inet); \
         INSERT INTO a VALUES (1, true, -32768, 2147483647, 123456789012345678901234567890.5, -9999999999.99, 1.5, 3.4028235e38, \
         5e-324, '0001-01-01', '24:00:00', '12:30:00+05:30', '9999-12-31 23:59:59.999999', '2106-02-07 06:28:16.000001+00', \
         '1 year 2 mons -3 days +04:05:06.789', E'tab\\t \\\\N \\'q\\' ä€😀 ', 'trail  ', 'ab', '\\x00ff5c0a', \
         'ffffffff-ffff-ffff-ffff-ffffffffffff', '{\"b\": 1,  \"a\": 1.0}', '{\"a\": 1}', '{1,NULL}', '10.0.0.1'), \
         (2, false, 0, 0, 'NaN', 0, 0, 0, 0, '1969-12-31', '00:00:00', '00:00:00+00', '0001-01-01', \
         '1970-01-01 00:00:00+00', '0', '', '', '', '', '00000000-0000-0000-0000-000000000000', 'null', 'null', '{}', '::1'); \
         UPDATE a SET f = 0.1 WHERE id = 2; INSERT INTO a (id) VALUES (3)",
    );
    let database = Database::open(PostgresConfig::from_url(&pg.url()).unwrap()).unwrap();
    let back = PostgresDestination::open(database.clone(), DestinationOptions::default())
        .await
        .unwrap();
    let db = Db::new().await;
    let (a, public) = (TableId::bare("a"), TableId::new("public", "a"));
    full_run(
        Arc::new(database.source()),
        db.destination.clone(),
        public.clone(),
        a.clone(),
        FullMode::Auto,
    )
    .await
    .unwrap();
    // Again: what was made is what is wanted.
    full_run(
        Arc::new(database.source()),
        db.destination.clone(),
        public.clone(),
        a.clone(),
        FullMode::Upsert,
    )
    .await
    .unwrap();
    full_run(
        db.source(),
        Arc::new(back),
        a,
        TableId::new("public", "b"),
        FullMode::Auto,
    )
    .await
    .unwrap();
    let source = database.source();
    let before = source.describe(&public).await.unwrap();
    let after = source.describe(&TableId::new("public", "b")).await.unwrap();
    for column in &before.columns {
        let class = db.destination.store_as("postgresql", column).fidelity;
        let there = after.column(&column.name).unwrap();
        if !matches!(class, Fidelity::Normalised(_))
            && !matches!(
                column.ty,
                ColumnType::Char { .. } | ColumnType::Decimal { precision: 80, .. }
            )
        {
            // The comment brings back what MySQL has no type for.
            assert_eq!(there.ty, column.ty, "{}", column.name);
        }
        let name = &column.name;
        let sql = |table: &str| pg.psql(&format!("SELECT \"{name}\"::text FROM {table} ORDER BY id"));
        // Blanks of a char come and go, and a native type's text is the one it prints.
        if name != "c" && !matches!(class, Fidelity::Normalised(_)) {
            assert_eq!(sql("b"), sql("a"), "{name}: {class:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_column_would_round_is_refused() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id bigint PRIMARY KEY, at datetime(3), d decimal(10,2))");
    let schema = TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("at", ColumnType::Timestamp),
            Column::new("d", ColumnType::Numeric),
        ],
        key: vec!["id".into()],
    };
    for bad in [
        row(&["1", "2024-01-01 00:00:00.0001", "1"]),
        row(&["1", "2024-01-01 00:00:00", "1.005"]),
    ] {
        let e = load(&db, "t", &schema, Publish::Append, &[bad]).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{e}");
    }
    let fine = row(&["1", "2024-01-01 00:00:00.1", "1.50"]);
    load(&db, "t", &schema, Publish::Append, &[fine]).await.unwrap();
    assert_eq!(db.sql("SELECT * FROM t"), "1\t2024-01-01 00:00:00.100\t1.50");
}
