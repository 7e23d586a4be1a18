//! Reading PostgreSQL: types, ranges, snapshots, interruptions.

use arrow_array::RecordBatch;
use bytes::{BufMut, BytesMut};
use futures::SinkExt;
use std::collections::BTreeMap;
use std::time::Duration;
use synctool_connectors::postgres::types::{COPY_HEADER, COPY_TRAILER, Encoder};
use synctool_connectors::postgres::{Postgres, PostgresConfig, source::PostgresSource};
use synctool_core::budget::Budget;
use synctool_core::change::Event;
use synctool_core::error::{ErrorKind, Result, code};
use synctool_core::keys::Order;
use synctool_core::ledger::Tally;
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::schema::{Carrier, Column, ColumnType, TableId, TableSchema};
use synctool_core::source::{PlannedSlice, ReadContext, SliceRequest, Source};
use synctool_core::text;
use synctool_testkit::proxy::Mode;
use synctool_testkit::{FaultProxy, PgVersion, Postgres as Server, TestDb, eventually};

const BOTH: [PgVersion; 2] = [PgVersion::V15, PgVersion::V18];

/// How many COPYs the server is running for us.
const COPYING: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND query LIKE 'COPY%' AND state = 'active'";

fn database(version: PgVersion) -> (TestDb, Postgres) {
    let db = Server::shared(version).database("pgread");
    let postgres = open(&db.url());
    (db, postgres)
}

fn open(url: &str) -> Postgres {
    Postgres::open(PostgresConfig::from_url(url).unwrap()).unwrap()
}

fn partition(slice: Slice) -> Partition {
    Partition::new("p", Work::Read(slice))
}

async fn spec(source: &PostgresSource, table: &str) -> ReadSpec {
    let id = TableId::parse(table).unwrap();
    let schema = source.describe(&id).await.unwrap();
    ReadSpec::all(id, &schema.columns)
}

async fn read(
    source: &PostgresSource,
    read: &ReadSpec,
    slice: Slice,
    context: &ReadContext,
) -> Result<Vec<RecordBatch>> {
    let mut reader = source.open(read, &partition(slice), None, context).await?;
    let mut batches = Vec::new();
    while let Some(event) = reader.next().await? {
        match event {
            Event::Rows(batch) => batches.push(batch.rows),
            other => panic!("a decoded read gave {other:?}"),
        }
    }
    assert!(reader.next().await?.is_none(), "the end is not the end");
    Ok(batches)
}

/// All rows as canonical text, row by row.
async fn texts(source: &PostgresSource, spec: &ReadSpec, slice: Slice) -> Vec<Vec<Option<String>>> {
    let batches = read(source, spec, slice, &ReadContext::default()).await.unwrap();
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            rows.push(batch.columns().iter().map(|c| text::cell(c, row).unwrap()).collect());
        }
    }
    rows
}

/// Column, declared type, logical type, and values as SQL literals.
fn types() -> Vec<(&'static str, &'static str, ColumnType, Vec<&'static str>)> {
    use ColumnType::*;
    let decimal = |precision, scale| Decimal { precision, scale };
    vec![
        ("b", "boolean", Bool, vec!["true", "false"]),
        ("i2", "smallint", Int16, vec!["-32768", "32767"]),
        ("i4", "integer", Int32, vec!["-2147483648", "2147483647"]),
        (
            "i8",
            "bigint",
            Int64,
            vec!["-9223372036854775808", "9223372036854775807"],
        ),
        ("f4", "real", Float32, vec!["'NaN'", "0.1", "'-Infinity'", "'-0'"]),
        (
            "f8",
            "double precision",
            Float64,
            vec!["'Infinity'", "0.30000000000000004", "1e308", "5e-324"],
        ),
        (
            "d12",
            "numeric(12,2)",
            decimal(12, 2),
            vec!["0.00", "-9999999999.99", "12.30"],
        ),
        (
            "d38",
            "numeric(38,10)",
            decimal(38, 10),
            vec!["1234567890123456789012345678.0123456789"],
        ),
        (
            "d76",
            "numeric(76,3)",
            decimal(76, 3),
            vec!["-1234567890123456789012345678901234567890123456789012345678901234567890123.999"],
        ),
        ("d80", "numeric(80,2)", decimal(80, 2), vec!["-1.50"]),
        (
            "n",
            "numeric",
            Numeric,
            vec!["'NaN'", "0", "0.00", "1e-20", "1e200", "-123456.7890"],
        ),
        (
            "t",
            "text",
            Text { max: None },
            vec!["''", "' '", "'NULL'", r"'\N'", r#"E'tab\tcr\rback\\"'"#, "'ä€😀'"],
        ),
        ("v", "character varying(20)", Text { max: Some(20) }, vec!["'abc'"]),
        ("c", "character(5)", Char { length: 5 }, vec!["'ab'", "''"]),
        ("nm", "name", Text { max: None }, vec!["'pg_class'"]),
        ("by", "bytea", Bytes, vec![r"'\x'", r"'\x00ff10'"]),
        (
            "u",
            "uuid",
            Uuid,
            vec![
                "'00000000-0000-0000-0000-000000000000'",
                "'ABCDEF01-2345-6789-abcd-ef0123456789'",
            ],
        ),
        ("j", "json", Json, vec![r#"'{"b" : 1,  "a":[1.0, null]}'"#, "'null'"]),
        ("jb", "jsonb", Jsonb, vec![r#"'{"b": 1, "aa": 1e400}'"#]),
        (
            "da",
            "date",
            Date,
            vec![
                "'infinity'",
                "'-infinity'",
                "'4713-01-01 BC'",
                "'5874897-12-31'",
                "'1582-10-10'",
                "'2024-02-29'",
            ],
        ),
        (
            "ti",
            "time without time zone",
            Time,
            vec!["'24:00:00'", "'23:59:59.999999'", "'00:00'"],
        ),
        (
            "tz",
            "time with time zone",
            TimeTz,
            vec!["'24:00:00-15:59:59'", "'12:30:00.5+05:30'"],
        ),
        (
            "ts",
            "timestamp without time zone",
            Timestamp,
            vec![
                "'infinity'",
                "'-infinity'",
                "'0044-03-15 12:00 BC'",
                "'1999-12-31 23:59:59.999999'",
                "'9999-12-31'",
            ],
        ),
        (
            "tt",
            "timestamp(3) with time zone",
            TimestampTz,
            vec![
                "'2024-03-31 02:30:00.1239+02'",
                "'infinity'",
                "'1969-12-31 23:59:59.9+00'",
            ],
        ),
        (
            "iv",
            "interval",
            Interval,
            vec!["'1 year -2 mons 3 days -04:05:06.7'", "'0'"],
        ),
        (
            "a1",
            "integer[]",
            Native,
            vec!["'{}'", "'{1,NULL,-3}'", "'[0:1]={7,8}'", "'{{1,2},{3,4}}'"],
        ),
        ("a2", "text[]", Native, vec![r#"'{"a,b","NULL",NULL,"\"q\"",""}'"#]),
        ("e", "public.mood", Native, vec!["'sad'", "'so so'"]),
        ("co", "public.pair", Native, vec![r#"'(1,"a,b")'"#, "'(,)'"]),
        ("r", "int4range", Native, vec!["'[1,5)'", "'empty'", "'(,)'"]),
        (
            "tr",
            "tstzrange",
            Native,
            vec!["'[2024-01-01 00:00+00,2024-06-01 00:00+02)'"],
        ),
        ("ip", "inet", Native, vec!["'192.168.1.5'", "'192.168.1.5/24'", "'::1'"]),
        ("ci", "cidr", Native, vec!["'10.0.0.0/8'"]),
        ("ma", "macaddr", Native, vec!["'08:00:2b:01:02:03'"]),
        ("bi", "bit(3)", Native, vec!["B'101'"]),
        ("vb", "bit varying", Native, vec!["B''", "B'1011'"]),
        ("mo", "money", Native, vec!["'-1234.56'"]),
        ("tv", "tsvector", Native, vec!["'fat:2,4 cat:3'"]),
        ("po", "point", Native, vec!["'(1.5,-2)'"]),
        ("o", "oid", Native, vec!["4294967295"]),
        ("rc", "regclass", Native, vec!["'pg_catalog.pg_class'"]),
        ("ls", "pg_lsn", Native, vec!["'16/B374D848'"]),
        ("dom", "public.positive", Int32, vec!["7"]),
        ("dd", "public.label", Text { max: Some(10) }, vec!["'x'"]),
        ("ch", "\"char\"", Native, vec!["'x'"]),
    ]
}

/// A table `t` with all of them; row i has the i-th value of every column that has so many, else NULL.
fn create_types(db: &TestDb) -> usize {
    let all = types();
    let columns: Vec<String> = all.iter().map(|(n, t, ..)| format!("{n} {t}")).collect();
    let height = all.iter().map(|(.., v)| v.len()).max().unwrap() + 1;
    let rows: Vec<String> = (0..height)
        .map(|i| {
            let cells: Vec<String> = all
                .iter()
                .map(|(_, t, _, v)| v.get(i).map_or("NULL".into(), |v| format!("CAST({v} AS {t})")))
                .collect();
            format!("({i}, {})", cells.join(", "))
        })
        .collect();
    db.psql(&format!(
        "CREATE TYPE mood AS ENUM ('sad', 'so so'); CREATE TYPE pair AS (a int, b text);
         CREATE DOMAIN positive AS int CHECK (VALUE > 0); CREATE DOMAIN label AS varchar(10);
         CREATE TABLE t (gone int, id int PRIMARY KEY, {}); ALTER TABLE t DROP COLUMN gone;
         SET timezone = 'UTC'; INSERT INTO t VALUES {};",
        columns.join(", "),
        rows.join(", ")
    ));
    height
}

/// What the server itself prints, one value a time.
fn judge(db: &TestDb, column: &str, ty: &ColumnType) -> Vec<Option<String>> {
    let shown = match ty {
        ColumnType::Bool => format!("{column}::text"),
        _ => format!("format('%s', {column})"),
    };
    let out = db.psql(&format!(
        "SET timezone = 'UTC'; SET lc_monetary = 'C'; SET search_path = '';
         SELECT CASE WHEN {column} IS NOT DISTINCT FROM NULL THEN 'N' ELSE 'V' || encode(convert_to({shown}, 'UTF8'), 'hex') END
         FROM public.t ORDER BY id"
    ));
    out.lines()
        .map(|l| {
            let hex = l.strip_prefix('V')?;
            let bytes: Vec<u8> = (0..hex.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap())
                .collect();
            Some(String::from_utf8(bytes).unwrap())
        })
        .collect()
}

fn same_value(ty: &ColumnType, ours: &Option<String>, theirs: &Option<String>) -> bool {
    match (ty, ours, theirs) {
        (ColumnType::Float32 | ColumnType::Float64, Some(a), Some(b)) => {
            let (a, b): (f64, f64) = (a.parse().unwrap(), b.parse().unwrap());
            a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
        }
        _ => ours == theirs,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_arrives_as_the_server_prints_it() {
    for version in BOTH {
        let (db, postgres) = database(version);
        let height = create_types(&db);
        let source = postgres.source();
        let spec = spec(&source, "public.t").await;
        let mut as_text = spec.clone();
        as_text
            .columns
            .iter_mut()
            .for_each(|c| c.column.carrier = Carrier::Text);
        let arrow = texts(&source, &spec, Slice::All).await;
        let text = texts(&source, &as_text, Slice::All).await;
        assert_eq!((arrow.len(), text.len()), (height, height));
        for (at, (name, declared, ty, _)) in types().into_iter().enumerate() {
            let column = &spec.columns[at + 1].column;
            assert_eq!(column.ty, ty, "{name}");
            assert_eq!(column.source_type.as_deref(), Some(declared), "{name}");
            let theirs = judge(&db, name, &ty);
            for row in 0..height {
                for (how, ours) in [("Arrow", &arrow), ("text", &text)] {
                    let ours = &ours[row][at + 1];
                    assert!(
                        same_value(&ty, ours, &theirs[row]),
                        "{version} {name} by {how}: {ours:?}, not {:?}",
                        theirs[row]
                    );
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_without_an_arrow_form_are_refused_by_name() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(
        "CREATE TABLE far (at timestamptz); INSERT INTO far VALUES ('294276-12-31 23:59:59+00');
         CREATE TABLE nan (price numeric(6,2)); INSERT INTO nan VALUES ('NaN');",
    );
    let source = postgres.source();
    for (table, column, shown) in [("far", "at", "294276-12-31 23:59:59+00"), ("nan", "price", "NaN")] {
        let mut spec = spec(&source, table).await;
        let e = read(&source, &spec, Slice::All, &ReadContext::default())
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
        assert!(
            e.to_string().contains(&format!("column {column}")) && e.to_string().contains("as_text"),
            "{e}"
        );
        spec.columns[0].column.carrier = Carrier::Text;
        assert_eq!(texts(&source, &spec, Slice::All).await, [[Some(shown.to_string())]]);
    }
}

async fn raw(source: &PostgresSource, spec: &ReadSpec, slice: Slice) -> (u64, Vec<bytes::Bytes>) {
    let mut reader = source
        .open(spec, &partition(slice), None, &ReadContext::default())
        .await
        .unwrap();
    let (mut count, mut chunks) = (0, Vec::new());
    while let Some(event) = reader.next().await.unwrap() {
        match event {
            Event::Raw { bytes, rows, .. } => {
                let mut tally = Tally::default();
                source.tally_raw(&bytes, &mut tally).unwrap();
                assert_eq!((tally.rows, tally.bytes), (rows, bytes.len() as u64));
                count += rows;
                chunks.push(bytes);
            }
            other => panic!("a raw read gave {other:?}"),
        }
    }
    (count, chunks)
}

async fn copy_in(postgres: &Postgres, into: &str, chunks: impl IntoIterator<Item = bytes::Bytes>) -> u64 {
    let connection = postgres.connect().await.unwrap();
    let sink = connection
        .copy_in(&format!("COPY {into} FROM STDIN (FORMAT binary)"))
        .await
        .unwrap();
    let mut sink = std::pin::pin!(sink);
    sink.send(bytes::Bytes::from_static(COPY_HEADER)).await.unwrap();
    for chunk in chunks {
        sink.send(chunk).await.unwrap();
    }
    sink.send(bytes::Bytes::from_static(COPY_TRAILER)).await.unwrap();
    sink.finish().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_rows_are_whole_and_equal() {
    for version in BOTH {
        let (db, postgres) = database(version);
        db.psql(
            "CREATE TABLE a (id bigint PRIMARY KEY, n numeric(12,2), t text, tags text[], r int4range, j jsonb, f float8);
             INSERT INTO a SELECT i, i / 7.0, repeat('ä', i % 500), ARRAY['x', NULL], int4range(i, i + 2), '{\"a\": 1}', 'NaN'
             FROM generate_series(1, 20000) i;
             INSERT INTO a (id) VALUES (0); CREATE TABLE b (LIKE a)",
        );
        let source = postgres.source();
        let mut spec = spec(&source, "a").await;
        let named: Vec<(String, Column)> = spec
            .columns
            .iter()
            .map(|c| (c.source.clone(), c.column.clone()))
            .collect();
        spec.raw = source.raw_format(&named);
        assert!(spec.raw.is_some());
        let (rows, chunks) = raw(&source, &spec, Slice::All).await;
        assert_eq!(rows, 20_001);
        assert!(
            chunks.len() > 3 && chunks.iter().all(|c| c.len() <= 1 << 20),
            "{}",
            chunks.len()
        );
        assert_eq!(copy_in(&postgres, "public.b", chunks).await, rows);
        assert_eq!(db.psql("SELECT count(*) FROM (TABLE a EXCEPT TABLE b) d"), "0");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn numerics_are_the_servers() {
    let (db, postgres) = database(PgVersion::V18);
    // Made by the server, so that its arithmetic and not ours decides what a numeric is.
    db.psql(
        "CREATE TABLE n (id int PRIMARY KEY, v numeric);
         SELECT setseed(0.42);
         INSERT INTO n SELECT i, (random() * 2 - 1)::numeric * power(10::numeric, (random() * 60 - 30)::int)
         FROM generate_series(1, 5000) i;
         INSERT INTO n VALUES (0, 'NaN'), (-1, 'Infinity'), (-2, '-Infinity'), (-3, '0.000'), (-4, 1e131071), (-5, 1e-16383),
           (-6, 10000), (-7, 9999.9999), (-8, 0.00000001);
         CREATE TABLE m (LIKE n)",
    );
    let source = postgres.source();
    let spec = spec(&source, "n").await;
    let batches = read(&source, &spec, Slice::All, &ReadContext::default()).await.unwrap();
    let mut out = BytesMut::new();
    for batch in &batches {
        let encoders: Vec<Encoder> = spec
            .columns
            .iter()
            .map(|c| Encoder::new(&c.column, c.column.source_type.as_deref().unwrap()).unwrap())
            .collect();
        let cells: Vec<_> = encoders
            .iter()
            .zip(batch.columns())
            .map(|(e, a)| e.bind(a).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            out.put_i16(cells.len() as i16);
            cells.iter().for_each(|c| c.write(row, &mut out).unwrap());
        }
    }
    assert_eq!(copy_in(&postgres, "public.m", [out.freeze()]).await, 5009);
    assert_eq!(
        db.psql("SELECT count(*) FROM n JOIN m USING (id) WHERE n.v::text <> m.v::text OR n.v IS DISTINCT FROM m.v"),
        "0"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalog_is_told_as_it_is() {
    for version in BOTH {
        let (db, postgres) = database(version);
        db.psql(
            r#"CREATE SCHEMA "Odd-1";
             CREATE TABLE "Odd-1"."select ""x"".y" ("Id" int GENERATED ALWAYS AS IDENTITY, "ä €" text NOT NULL,
               twice int GENERATED ALWAYS AS (3 * 2) STORED, s serial, PRIMARY KEY ("ä €", "Id"));
             INSERT INTO "Odd-1"."select ""x"".y" ("ä €") VALUES ('one'), ('two');
             CREATE TABLE unkeyed (a int, b int NOT NULL);
             CREATE UNIQUE INDEX ON unkeyed (a); CREATE UNIQUE INDEX ON unkeyed (b) WHERE a > 0;
             CREATE TABLE indexed (a int, b int NOT NULL, c int NOT NULL);
             CREATE UNIQUE INDEX ON indexed (c, b); CREATE UNIQUE INDEX ON indexed (b) INCLUDE (a);
             CREATE VIEW seen AS SELECT a, b FROM unkeyed;
             CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
             CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
             INSERT INTO parts SELECT generate_series(0, 19);"#,
        );
        let source = postgres.source();
        let odd = r#""Odd-1"."select ""x"".y""#;
        let schema = source.describe(&TableId::parse(odd).unwrap()).await.unwrap();
        assert_eq!(schema.key, ["ä €", "Id"]);
        let flags = |name: &str| {
            let c = schema.column(name).unwrap();
            (c.nullable, c.generated, c.identity)
        };
        assert_eq!(flags("Id"), (false, false, true));
        assert_eq!(flags("ä €"), (false, false, false));
        assert_eq!(flags("twice"), (true, true, false));
        assert_eq!(flags("s"), (false, false, true));
        let odd = spec(&source, odd).await;
        assert_eq!(texts(&source, &odd, Slice::All).await.len(), 2);
        let keys = async |table: &str| -> Vec<String> {
            let schema: TableSchema = source.describe(&TableId::parse(table).unwrap()).await.unwrap();
            schema.key
        };
        assert!(keys("unkeyed").await.is_empty(), "NULLs and predicates make no key");
        assert_eq!(keys("indexed").await, ["b"]);
        assert!(keys("seen").await.is_empty());
        let parts = spec(&source, "parts").await;
        assert_eq!(texts(&source, &parts, Slice::All).await.len(), 20);
        let listed = source.tables(None).await.unwrap();
        let names: BTreeMap<String, String> = listed.into_iter().map(|t| (t.table.to_string(), t.kind)).collect();
        assert_eq!(names.get("public.parts").map(String::as_str), Some("partitioned table"));
        assert_eq!(names.get("public.seen").map(String::as_str), Some("view"));
        assert!(
            !names.contains_key("public.parts_1"),
            "a partition is read through its parent"
        );
        assert_eq!(source.tables(Some("Odd-1")).await.unwrap().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_table_names_similar_ones() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(r#"CREATE SCHEMA shop; CREATE TABLE shop.orders (id int); CREATE TABLE "Customers" (id int);"#);
    let source = postgres.source();
    for (wanted, similar) in [
        ("orders", "shop.orders"),
        ("shop.order", "shop.orders"),
        ("customers", "public.Customers"),
    ] {
        let e = source.describe(&TableId::parse(wanted).unwrap()).await.unwrap_err();
        assert_eq!(e.code(), code::TABLE_MISSING);
        assert!(e.next_step().unwrap().contains(similar), "{e}");
    }
    let e = source.describe(&TableId::bare("nothing_like_it")).await.unwrap_err();
    assert!(!e.next_step().unwrap().contains("similar"), "{e}");
}

fn request(key: &[&str]) -> SliceRequest {
    SliceRequest {
        key: key.iter().map(|k| k.to_string()).collect(),
        step: None,
        min_slices: 8,
        max_slice_bytes: 8 << 20,
        single: false,
    }
}

/// Rows of each slice, after proving that together they are the table, each row once.
async fn cut(db: &TestDb, source: &PostgresSource, table: &str, key: &[&str], request: &SliceRequest) -> Vec<usize> {
    let whole = spec(source, table).await;
    let slices = source.slices(&whole, request).await.unwrap();
    let labels: std::collections::HashSet<_> = slices.iter().map(|s| s.label.clone()).collect();
    assert_eq!(labels.len(), slices.len(), "labels are unique");
    let mut narrow = whole;
    narrow.columns.retain(|c| key.contains(&c.source.as_str()));
    let mut seen = std::collections::HashSet::new();
    let mut counts = Vec::new();
    for PlannedSlice { slice, label, .. } in slices {
        let rows = texts(source, &narrow, slice).await;
        counts.push(rows.len());
        for row in rows {
            assert!(seen.insert(row), "{label} overlaps another slice");
        }
    }
    assert_eq!(
        seen.len().to_string(),
        db.psql(&format!("SELECT count(*) FROM {table}")),
        "a gap"
    );
    counts
}

fn balanced(counts: &[usize], at_least: usize) {
    let fair = counts.iter().sum::<usize>() / counts.len();
    assert!(counts.len() >= at_least, "{counts:?}");
    assert!(counts.iter().all(|c| *c < fair * 2 && *c > fair / 3), "{counts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_balanced_without_gap_or_overlap() {
    for version in BOTH {
        let (db, postgres) = database(version);
        let source = postgres.source();
        // Sparse and skewed: most ids are small, a few reach far.
        db.psql(
            "CREATE TABLE skewed (id bigint PRIMARY KEY, pad text);
             INSERT INTO skewed SELECT i::bigint * i * i * (CASE WHEN i % 2 = 0 THEN -1 ELSE 1 END), repeat('x', 700)
             FROM generate_series(1, 60000) i; ANALYZE skewed;",
        );
        let by_statistics = cut(&db, &source, "skewed", &["id"], &request(&["id"])).await;
        balanced(&by_statistics, 8);
        // Statistics that are out of date are not believed.
        db.psql("INSERT INTO skewed SELECT 300000000000000 + i, repeat('x', 700) FROM generate_series(1, 40000) i");
        let source = postgres.source();
        balanced(&cut(&db, &source, "skewed", &["id"], &request(&["id"])).await, 8);
        let source = postgres.source();

        db.psql(
            r#"CREATE TABLE pairs (a text COLLATE "C", "B" int, pad text, PRIMARY KEY (a, "B"));
             INSERT INTO pairs SELECT 'k' || (i % 3) || E'\\''', i, repeat('x', 700) FROM generate_series(1, 60000) i;"#,
        );
        balanced(&cut(&db, &source, "pairs", &["a", "B"], &request(&["a", "B"])).await, 5);
        let source = postgres.source();

        db.psql(
            "CREATE TABLE spread (id uuid PRIMARY KEY, pad text) PARTITION BY HASH (id);
             CREATE TABLE spread_0 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 0);
             CREATE TABLE spread_1 PARTITION OF spread FOR VALUES WITH (MODULUS 2, REMAINDER 1);
             INSERT INTO spread SELECT md5(i::text)::uuid, repeat('x', 700) FROM generate_series(1, 60000) i;",
        );
        balanced(&cut(&db, &source, "spread", &["id"], &request(&["id"])).await, 5);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_keys_are_cut_in_the_databases_own_order() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(
        r#"CREATE TABLE words (w text COLLATE "und-x-icu" PRIMARY KEY, pad text);
         INSERT INTO words SELECT (ARRAY['a','A','ä','Ä','b','B','é','-','_',' '])[1 + i % 10] || i || (ARRAY['x','X'])[1 + i % 2], repeat('x', 700)
         FROM generate_series(1, 60000) i;"#,
    );
    let source = postgres.source();
    balanced(&cut(&db, &source, "words", &["w"], &request(&["w"])).await, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_is_named_where_another_end_may_have_it() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(
        r#"CREATE TYPE mood AS ENUM ('so', 'la');
         CREATE TABLE ranks (n numeric, i int, c varchar(9) COLLATE "C", d text, w text COLLATE "und-x-icu", b char(5), u uuid, m mood);"#,
    );
    let source = postgres.source();
    let read = spec(&source, "ranks").await;
    let columns: Vec<Column> = read.columns.iter().map(|c| c.column.clone()).collect();
    let found = source.collations(&read.table, &columns).await.unwrap();
    let numbers = Order::Values("numbers");
    // The database's own order is C.UTF-8.
    let wanted = [
        numbers.clone(),
        numbers,
        Order::Bytes,
        Order::Bytes,
        Order::Unknown,
        Order::Own("postgresql by bytes padded".into()),
        Order::Values("uuids"),
        Order::Unknown,
    ];
    assert_eq!(found.iter().map(|c| c.order.clone()).collect::<Vec<_>>(), wanted);
    let padded = found.iter().map(|c| c.folding.blanks).collect::<Vec<_>>();
    assert_eq!(padded, [false, false, false, false, false, true, false, false]);
    assert!(found.iter().all(|c| c.folding.letters.is_none()), "{found:?}");
}

/// A collation that is not deterministic calls several texts equal, and two of one definition the same ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collation_that_folds_is_named_by_its_rule() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(
        "CREATE COLLATION blind (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
         CREATE COLLATION deaf (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
         CREATE TABLE words (a text COLLATE blind, b varchar(9) COLLATE blind, c text COLLATE deaf, d text);",
    );
    let source = postgres.source();
    let read = spec(&source, "words").await;
    let columns: Vec<Column> = read.columns.iter().map(|c| c.column.clone()).collect();
    let found = source.collations(&read.table, &columns).await.unwrap();
    let [a, b, c, d] = &found[..] else { panic!("{found:?}") };
    assert!(a.folding.name == "blind" && !a.folding.blanks, "{a:?}");
    assert!(
        a.folding.covers(&b.folding) && b.folding.covers(&a.folding),
        "{found:?}"
    );
    assert!(
        !a.folding.covers(&c.folding) && !d.folding.covers(&a.folding),
        "{found:?}"
    );
    assert!(d.folding.is_none() && a.folding.covers(&d.folding), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_worth_cutting_is_read_in_one_go() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql(
        "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE small (id int PRIMARY KEY);
         INSERT INTO small SELECT 10 * i FROM generate_series(1, 100) i;",
    );
    let source = postgres.source();
    for table in ["empty", "small"] {
        let read = spec(&source, table).await;
        let slices = source.slices(&read, &request(&["id"])).await.unwrap();
        assert_eq!((slices.len(), slices[0].label.as_str()), (1, "all"));
    }
    let small = spec(&source, "small").await;
    let step = |step| SliceRequest {
        step: Some(step),
        ..request(&["id"])
    };
    let fixed = source.slices(&small, &step(250)).await.unwrap();
    let labels: Vec<&str> = fixed.iter().map(|s| s.label.as_str()).collect();
    assert_eq!(labels, ["id_min_260", "id_260_510", "id_510_760", "id_760_max"]);
    assert_eq!(cut(&db, &source, "small", &["id"], &step(250)).await, [25, 25, 25, 25]);
    assert_eq!(cut(&db, &source, "empty", &["id"], &step(250)).await, [0]);
    assert_eq!(cut(&db, &source, "small", &["id"], &step(0)).await.len(), 991);
    let e = source
        .slices(
            &small,
            &SliceRequest {
                step: Some(1),
                ..request(&["nope"])
            },
        )
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::COLUMN_MISSING);

    // A row whose key is NULL would be in no range.
    db.psql("CREATE TABLE holes (id int); INSERT INTO holes VALUES (1), (NULL)");
    let holes = spec(&source, "holes").await;
    let e = source.slices(&holes, &step(10)).await.unwrap_err();
    assert_eq!(e.code(), code::CONFIG_INVALID);
    assert!(e.to_string().contains("NOT NULL"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_source_share_one_snapshot() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)");
    let source = postgres.source();
    let read = spec(&source, "t").await;
    assert_eq!(texts(&source, &read, Slice::All).await.len(), 100);
    db.psql("DELETE FROM t WHERE id > 50");
    assert_eq!(
        texts(&source, &read, Slice::All).await.len(),
        100,
        "a later reader sees the same"
    );
    assert_eq!(
        texts(&postgres.source(), &read, Slice::All).await.len(),
        50,
        "a new source sees what is there now"
    );
    // The session that keeps the snapshot is ended: the next reader goes on with a newer one.
    let ended = db.psql(
        "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
         WHERE datname = current_database() AND state = 'idle in transaction' AND application_name = 'synctool reading'",
    );
    assert_ne!(ended, "0");
    assert_eq!(texts(&source, &read, Slice::All).await.len(), 50);
}

/// To a snapshot that is older than a statement which writes all rows anew they are not there: a newer one is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_written_anew_is_not_taken_for_empty() {
    for version in BOTH {
        let (db, postgres) = database(version);
        db.psql(
            "CREATE TABLE other (id int); CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100);
             CREATE VIEW v AS SELECT * FROM t; CREATE TABLE p (id int) PARTITION BY RANGE (id);
             CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (1000); INSERT INTO p SELECT generate_series(1, 100)",
        );
        for (table, of) in [("t", "t"), ("v", "t"), ("p", "p")] {
            let source = postgres.source();
            let mut planned = spec(&source, table).await;
            let other = spec(&source, "other").await;
            texts(&source, &other, Slice::All).await;
            let anew = |n: i32| {
                db.psql(&format!(
                    "ALTER TABLE {of} ADD {table}{n} uuid DEFAULT gen_random_uuid()"
                ))
            };
            anew(1);
            let context = ReadContext::default();
            let e = read(&source, &planned, Slice::All, &context).await.unwrap_err();
            assert_eq!(e.code(), code::CONFLICT, "{table}: {e}");
            assert_eq!(texts(&source, &planned, Slice::All).await.len(), 100, "{table}");
            // Where one snapshot is all there may be, the load starts over.
            planned.one_snapshot = true;
            assert_eq!(texts(&source, &planned, Slice::All).await.len(), 100, "{table}");
            anew(2);
            let e = read(&source, &planned, Slice::All, &context).await.unwrap_err();
            assert_eq!(e.code(), code::SNAPSHOT_LOST, "{table}: {e}");
        }
        // A partition alone, which whoever reads its table meets only when the reading is planned.
        let source = postgres.source();
        let planned = spec(&source, "p").await;
        let other = spec(&source, "other").await;
        texts(&source, &other, Slice::All).await;
        let held = postgres.connect().await.unwrap();
        let anew = "BEGIN; TRUNCATE public.p1; INSERT INTO public.p SELECT generate_series(1, 100)";
        held.batch_execute(anew).await.unwrap();
        let reading = tokio::spawn(async move { read(&source, &planned, Slice::All, &ReadContext::default()).await });
        let waits =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("the reader to wait", Duration::from_secs(20), async || {
            db.psql(waits) == "1"
        })
        .await;
        held.batch_execute("COMMIT").await.unwrap();
        let e = reading.await.unwrap().unwrap_err();
        assert_eq!(e.code(), code::CONFLICT, "{e}");
    }
}

/// A server that was started again may give a snapshot the name of one before: a load does not go on in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_load_of_one_snapshot_does_not_go_on_behind_a_restart() {
    let server = Server::builder(PgVersion::V18).start();
    let db = server.database("only");
    let source = open(&db.url()).source();
    db.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 100)");
    let mut planned = spec(&source, "t").await;
    planned.one_snapshot = true;
    assert_eq!(texts(&source, &planned, Slice::All).await.len(), 100);
    server.restart();
    // Sessions from before the restart may be met first.
    eventually(
        "the snapshot to be told lost",
        Duration::from_secs(60),
        async || match read(&source, &planned, Slice::All, &ReadContext::default()).await {
            Ok(batches) => panic!("{} batches of another snapshot", batches.len()),
            Err(e) if e.code() == code::SNAPSHOT_LOST => Ok(()),
            Err(e) => Err(e),
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_reader_leaves_nothing_running() {
    let (db, postgres) = database(PgVersion::V18);
    db.psql("CREATE VIEW endless AS SELECT generate_series(1, 1000000000) AS i, repeat('x', 1000) AS pad");
    let source = postgres.source();
    let read = spec(&source, "endless").await;
    let mut reader = source
        .open(&read, &partition(Slice::All), None, &ReadContext::default())
        .await
        .unwrap();
    assert!(reader.next().await.unwrap().is_some());
    assert_eq!(db.psql(COPYING), "1");
    drop(reader);
    eventually("the server to stop", Duration::from_secs(10), async || {
        db.psql(COPYING) == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_read_says_so() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE VIEW slow AS SELECT pg_sleep(60)::text AS wait");
    let source = postgres.source();
    let slow = spec(&source, "slow").await;
    let context = ReadContext::default();
    let cancel = context.cancel.clone();
    let reading = tokio::spawn(async move { read(&source, &slow, Slice::All, &context).await });
    eventually("the read to run", Duration::from_secs(20), async || {
        db.psql(COPYING) == "1"
    })
    .await;
    cancel.cancel();
    assert_eq!(reading.await.unwrap().unwrap_err().code(), code::INTERRUPTED);
    eventually("the server to stop", Duration::from_secs(10), async || {
        db.psql(COPYING) == "0"
    })
    .await;

    // Between rows, too.
    db.psql("CREATE VIEW endless AS SELECT generate_series(1, 1000000000) AS i");
    let source = postgres.source();
    let endless = spec(&source, "endless").await;
    let context = ReadContext::default();
    let mut reader = source
        .open(&endless, &partition(Slice::All), None, &context)
        .await
        .unwrap();
    assert!(reader.next().await.unwrap().is_some());
    context.cancel.cancel();
    assert_eq!(reader.next().await.unwrap_err().code(), code::INTERRUPTED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_named_and_can_be_retried() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE TABLE t (id int PRIMARY KEY, pad text); INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, 20000) i");
    let proxy = FaultProxy::to(Server::shared(PgVersion::V15).port());
    let far = open(&proxy.through(&db.url())).source();
    let read_spec = spec(&far, "t").await;
    proxy.set(Mode::CutToClient(3_000_000));
    let e = read(&far, &read_spec, Slice::All, &ReadContext::default())
        .await
        .unwrap_err();
    assert_eq!(
        (e.code(), e.kind()),
        (code::CONNECTION_LOST, ErrorKind::Unavailable),
        "{e}"
    );
    assert!(e.to_string().contains("table t"), "{e}");
    proxy.set(Mode::Forward);
    let again = read(&far, &read_spec, Slice::All, &ReadContext::default())
        .await
        .unwrap();
    assert_eq!(again.iter().map(RecordBatch::num_rows).sum::<usize>(), 20_000);

    // An administrator's words reach the user.
    db.psql("CREATE VIEW slow AS SELECT pg_sleep(60)::text AS wait");
    let source = postgres.source();
    let slow = spec(&source, "slow").await;
    let reading = tokio::spawn(async move { read(&source, &slow, Slice::All, &ReadContext::default()).await });
    eventually("the read to run", Duration::from_secs(20), async || {
        db.psql(COPYING) == "1"
    })
    .await;
    db.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND datname = current_database()");
    let e = reading.await.unwrap().unwrap_err();
    assert_eq!(e.code(), code::CONNECTION_LOST, "{e}");
    assert!(e.to_string().contains("administrator"), "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wide_rows_stay_within_the_budget() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE TABLE wide (id int PRIMARY KEY, doc text); INSERT INTO wide SELECT i, repeat('x', 100000 * i) FROM generate_series(1, 30) i");
    let source = postgres.source();
    let read_spec = spec(&source, "wide").await;
    let context = ReadContext {
        budget: Budget::new(4 << 20),
        batch_bytes: 1 << 20,
        max_row_bytes: 8 << 20,
        ..ReadContext::default()
    };
    let mut reader = source
        .open(&read_spec, &partition(Slice::All), None, &context)
        .await
        .unwrap();
    let mut rows = 0;
    while let Some(event) = reader.next().await.unwrap() {
        let Event::Rows(batch) = event else { panic!() };
        assert!(context.budget.free() <= 3 << 20, "a batch is held");
        rows += batch.len();
    }
    assert_eq!((rows, context.budget.free()), (30, context.budget.total()));
    let strict = ReadContext {
        max_row_bytes: 1 << 20,
        ..context
    };
    let e = read(&source, &read_spec, Slice::All, &strict).await.unwrap_err();
    assert_eq!(e.code(), code::ROW_TOO_LARGE);
    assert!(
        e.to_string().contains("table wide") && e.to_string().contains("partition p"),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_columns_and_no_rows_are_fine() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE TABLE none (); INSERT INTO none DEFAULT VALUES; CREATE TABLE empty (id int)");
    let source = postgres.source();
    let none = spec(&source, "none").await;
    assert_eq!(texts(&source, &none, Slice::All).await, [Vec::<Option<String>>::new()]);
    let empty = spec(&source, "empty").await;
    assert!(texts(&source, &empty, Slice::All).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_altered_under_a_plan_is_not_misread() {
    let (db, postgres) = database(PgVersion::V15);
    db.psql("CREATE TABLE t (id int PRIMARY KEY, n int); INSERT INTO t VALUES (1, 1)");
    let source = postgres.source();
    let mut planned = spec(&source, "t").await;
    let undecoded = Some(synctool_core::change::RawFormat {
        kind: "pgcopy-binary".into(),
        signature: String::new(),
    });
    for (change, raw) in [("float4", None), ("float4", undecoded.clone())] {
        db.psql(&format!("ALTER TABLE t ALTER n TYPE {change}"));
        planned.raw = raw;
        let e = read(&source, &planned, Slice::All, &ReadContext::default())
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::SCHEMA_MISMATCH);
        assert!(e.to_string().contains("column n"), "{e}");
    }
    // Undecoded, a changed modifier counts too: the destination would round to its own.
    db.psql("ALTER TABLE t ALTER n TYPE numeric(6,2)");
    let mut precise = spec(&source, "t").await;
    precise.raw = undecoded;
    db.psql("ALTER TABLE t ALTER n TYPE numeric(8,4)");
    let e = read(&source, &precise, Slice::All, &ReadContext::default())
        .await
        .unwrap_err();
    assert!(e.to_string().contains("numeric(8,4)"), "{e}");
    planned.raw = None;
    db.psql("ALTER TABLE t DROP n");
    let e = read(&source, &planned, Slice::All, &ReadContext::default())
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::COLUMN_MISSING, "{e}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_connections_holds() {
    let (db, _) = database(PgVersion::V15);
    db.psql("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut config = PostgresConfig::from_url(&db.url()).unwrap();
    config.max_connections = 1;
    config.connect_timeout = Duration::from_millis(800);
    let postgres = Postgres::open(config).unwrap();
    let source = postgres.source();
    let read = spec(&source, "t").await;
    assert_eq!(
        texts(&source, &read, Slice::All).await.len(),
        1,
        "one connection is enough to read"
    );
    let held = postgres.connect().await.unwrap();
    let e = postgres.connect().await.unwrap_err();
    assert_eq!(e.code(), code::SERVER_BUSY);
    assert!(e.to_string().contains("all 1 connections"), "{e}");
    held.close().await;
    postgres.connect().await.unwrap().close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_fell_silent_is_not_used_again() {
    let (db, _) = database(PgVersion::V15);
    let proxy = FaultProxy::to(Server::shared(PgVersion::V15).port());
    let mut config = PostgresConfig::from_url(&proxy.through(&db.url())).unwrap();
    config.connect_timeout = Duration::from_millis(700);
    let postgres = Postgres::open(config).unwrap();
    for _ in 0..2 {
        let (one, other) = (postgres.connect().await.unwrap(), postgres.connect().await.unwrap());
        let pid = other.backend_pid();
        one.recycle();
        other.recycle();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let again = postgres.connect().await.unwrap();
        assert_eq!(again.backend_pid(), pid, "what answers is used again");
        again.recycle();
        proxy.set(Mode::Hang);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let e = tokio::time::timeout(Duration::from_secs(20), postgres.connect()).await;
        let e = e.expect("nobody waits for a silent session").unwrap_err();
        assert_eq!(e.code(), code::SERVER_UNREACHABLE, "{e}");
        proxy.set(Mode::Forward);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_rights_are_named_and_found_beforehand() {
    let (db, owner) = database(PgVersion::V15);
    db.psql(
        "CREATE TABLE open_to_all (id int PRIMARY KEY); GRANT SELECT ON open_to_all TO public;
         CREATE TABLE secret (id int);
         DO $$ BEGIN CREATE ROLE pgread_guest LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;",
    );
    let guest = open(&db.url_as("pgread_guest")).source();
    let read_spec = spec(&guest, "secret").await;
    let e = read(&guest, &read_spec, Slice::All, &ReadContext::default())
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::PERMISSION);
    assert!(e.next_step().unwrap().contains("GRANT"), "{e}");

    let tables = [
        TableId::bare("open_to_all"),
        TableId::bare("secret"),
        TableId::bare("absent"),
    ];
    let findings = guest.examine(&tables).await;
    let fix = |what: &str| {
        let f = findings
            .iter()
            .find(|f| f.what.contains(what))
            .unwrap_or_else(|| panic!("{what}: {findings:?}"));
        (f.ok, f.fix.clone())
    };
    assert_eq!(fix("right to read public.open_to_all"), (true, String::new()));
    assert_eq!(
        fix("right to read public.secret"),
        (
            false,
            r#"GRANT USAGE ON SCHEMA "public" TO "pgread_guest"; GRANT SELECT ON "public"."secret" TO "pgread_guest";"#
                .into()
        )
    );
    assert!(!fix("key of public.secret").0);
    assert!(!fix("table absent").0);
    assert_eq!(
        fix("pg_read_all_stats"),
        (false, r#"GRANT pg_read_all_stats TO "pgread_guest";"#.into())
    );
    // What the fix says is what helps.
    db.psql(&fix("right to read public.secret").1);
    assert!(
        read(&guest, &read_spec, Slice::All, &ReadContext::default())
            .await
            .is_ok()
    );
    let owner = owner.source().examine(&tables[..1]).await;
    assert!(owner.iter().all(|f| f.ok && f.fix.is_empty()), "{owner:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_hidden_by_a_policy_stop_the_read() {
    let (db, _) = database(PgVersion::V15);
    db.psql(
        "DO $$ BEGIN CREATE ROLE pgread_tenant LOGIN; EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$;
         CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1), (2); GRANT SELECT ON t TO pgread_tenant;
         ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY half ON t USING (id = 1);",
    );
    let source = open(&db.url_as("pgread_tenant")).source();
    let read_spec = spec(&source, "t").await;
    let e = read(&source, &read_spec, Slice::All, &ReadContext::default())
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::PERMISSION);
    assert!(e.next_step().unwrap().contains("BYPASSRLS"), "{e}");
    let found = source.examine(&[TableId::bare("t")]).await;
    assert!(
        found.iter().any(|f| !f.ok && f.what.starts_with("row security")),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_supported_version_is_read() {
    for version in PgVersion::ALL {
        let server = Server::shared(version);
        let db = server.database("pgread");
        db.psql("CREATE TABLE t (id int PRIMARY KEY, t text, n numeric, a int[]); INSERT INTO t SELECT i, i, i / 3.0, ARRAY[i] FROM generate_series(1, 1000) i");
        let postgres = open(&db.url());
        let source = postgres.source();
        let read = spec(&source, "t").await;
        let slices = source
            .slices(
                &read,
                &SliceRequest {
                    step: Some(300),
                    ..request(&["id"])
                },
            )
            .await
            .unwrap();
        let mut rows = 0;
        for slice in slices {
            rows += texts(&source, &read, slice.slice).await.len();
        }
        assert_eq!(rows, 1000, "{version}");
        assert!(
            source.examine(&[TableId::bare("t")]).await.iter().all(|f| f.ok),
            "{version}"
        );
        let connection = postgres.connect().await.unwrap();
        assert_eq!(connection.version() / 10_000, u32::from(version.major()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_standby_is_read_like_its_primary() {
    for version in BOTH {
        let primary = Server::start(version);
        let standby = primary.standby();
        primary.psql(
            "CREATE TABLE t (id int PRIMARY KEY, note text);
             INSERT INTO t SELECT i, 'note ' || i FROM generate_series(1, 20000) i;
             ANALYZE t",
        );
        eventually("the standby has all rows", Duration::from_secs(30), async || {
            standby
                .try_psql("SELECT count(*) FROM t JOIN pg_stats s ON s.tablename = 't' AND s.attname = 'id'")
                .is_ok_and(|rows| rows == "20000")
        })
        .await;
        assert_eq!(standby.psql("SELECT pg_is_in_recovery()"), "t");
        let source = open(&standby.url("postgres")).source();
        let request = SliceRequest {
            step: Some(5000),
            ..request(&["id"])
        };
        let read_spec = spec(&source, "public.t").await;
        let slices = source.slices(&read_spec, &request).await.unwrap();
        assert!(slices.len() >= 4, "{slices:?}");
        // The first reader fixes what all of them see.
        let mut rows = Vec::new();
        for (i, slice) in slices.into_iter().enumerate() {
            rows.extend(texts(&source, &read_spec, slice.slice).await);
            if i == 0 {
                primary.psql("DELETE FROM t WHERE id > 19000");
                eventually("the standby has lost rows", Duration::from_secs(30), async || {
                    standby.psql("SELECT count(*) FROM t") == "19000"
                })
                .await;
            }
        }
        assert_eq!(rows.len(), 20_000, "on {version}");
    }
}
