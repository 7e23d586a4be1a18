//! Hashes that the server computes are those that we compute of the rows it gives.

use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use std::sync::Arc;
use synctool_connectors::postgres::{Postgres, PostgresConfig};
use synctool_core::blocks::{BlockHashes, Blocks, Field, HashRequest, ReadingHashes, RowForm, RowHash};
use synctool_core::change::KeyRange;
use synctool_core::plan::{ReadColumn, ReadSpec, Slice};
use synctool_core::query::{Filter, Join, JoinKind, Term};
use synctool_core::schema::{Carrier, Column, ColumnType, TableId};
use synctool_core::source::{ReadContext, Source};
use synctool_testkit::{PgVersion, Postgres as Server, TestDb};

fn open(db: &TestDb) -> Postgres {
    Postgres::open(PostgresConfig::from_url(&db.url()).unwrap()).unwrap()
}

/// Columns with their edge values, and other types they may be compared as.
fn edges() -> Vec<(&'static str, Vec<&'static str>, Vec<ColumnType>)> {
    use ColumnType::*;
    let decimal = |precision, scale| Decimal { precision, scale };
    let text = || Text { max: None };
    vec![
        ("boolean", vec!["true", "false"], vec![]),
        (
            "smallint",
            vec!["-32768", "0", "1"],
            vec![Int64, decimal(10, 2), Numeric],
        ),
        ("integer", vec!["-2147483648", "2147483647"], vec![Int64]),
        (
            "bigint",
            vec!["-9223372036854775808", "9223372036854775807"],
            vec![decimal(30, 0)],
        ),
        (
            "numeric(12,2)",
            vec!["0.00", "-0.01", "'NaN'", "9999999999.99"],
            vec![decimal(20, 4), Numeric],
        ),
        (
            "numeric(20,0)",
            vec!["18446744073709551615", "-5"],
            vec![UInt64, Numeric, decimal(22, 3)],
        ),
        ("numeric(3,-2)", vec!["1200", "-99900"], vec![Numeric]),
        (
            "numeric",
            vec![
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "100.500",
                "100",
                "0.00",
                "1e-20",
                "-1e60",
            ],
            vec![],
        ),
        ("real", vec!["'NaN'", "'-0'", "0.1", "'-Infinity'"], vec![]),
        (
            "double precision",
            vec!["'NaN'", "'-0'", "5e-324", "1e308", "0.1"],
            vec![],
        ),
        (
            "text",
            vec![
                "''",
                "' '",
                "'~'",
                "'a,b'",
                "'3:abc'",
                "'ä€😀'",
                r"E'tab\there\\'",
                "repeat('x', 70000)",
            ],
            vec![Char { length: 9 }],
        ),
        ("character varying(20)", vec!["'abc  '", "''"], vec![text()]),
        (
            "character(6)",
            vec!["'ab'", "''", "'é 😀'"],
            vec![text(), Char { length: 6 }],
        ),
        ("bpchar", vec!["'ab  '"], vec![]),
        ("name", vec!["'pg_class'"], vec![]),
        ("bytea", vec![r"'\x'", r"'\x00ff10'"], vec![]),
        (
            "uuid",
            vec![
                "'00000000-0000-0000-0000-000000000000'",
                "'ABCDEF01-2345-6789-abcd-ef0123456789'",
            ],
            vec![],
        ),
        (
            "date",
            vec![
                "'infinity'",
                "'-infinity'",
                "'0044-03-15 BC'",
                "'1969-12-31'",
                "'5874897-12-31'",
                "'1582-10-10'",
            ],
            vec![],
        ),
        (
            "time",
            vec!["'24:00:00'", "'23:59:59.999999'", "'00:00:00.000001'"],
            vec![],
        ),
        (
            "timestamp",
            vec![
                "'infinity'",
                "'-infinity'",
                "'0044-03-15 12:00:00.5 BC'",
                "'1969-12-31 23:59:59.999999'",
                "'2038-01-19 03:14:08.000001'",
                "'1901-12-31 23:59:59.999999'",
                "'2099-12-31 23:59:59.999999'",
                "'2100-01-01 00:00:00.000001'",
                "'9999-12-31 23:59:59.999999'",
                "'200000-01-01 00:00:00.000003'",
            ],
            vec![],
        ),
        (
            "timestamptz",
            vec![
                "'infinity'",
                "'4713-01-01 00:00:00.1+00 BC'",
                "'2024-03-31 02:30:00.123456+02'",
                "'2262-04-12 00:00:00.000001+00'",
            ],
            vec![],
        ),
        ("timetz", vec!["'12:30:00.5+05:30'"], vec![]),
        ("interval", vec!["'1 mon'", "'30 days'"], vec![]),
        ("json", vec![r#"'{"b" : 1,  "a":[1.0, null]}'"#], vec![]),
        ("jsonb", vec![r#"'{"b": 1, "aa": 1e400}'"#, "'null'"], vec![]),
        ("text[]", vec![r#"'{"a,b",NULL,""}'"#, "'{}'"], vec![]),
        ("inet", vec!["'192.168.1.5'", "'::1/64'"], vec![]),
        ("int4range", vec!["'[1,5)'", "'empty'"], vec![]),
        // IS NULL is true of the first one.
        ("pair", vec!["'(,)'", r#"'(1,"x,~")'"#], vec![]),
    ]
}

/// Rows 1 … n take turns with the edge values, every third cell of a column is NULL; keys reach below zero.
fn table(db: &TestDb, n: usize) {
    let edges = edges();
    let columns: Vec<String> = edges
        .iter()
        .enumerate()
        .map(|(i, (ty, ..))| format!("e{i} {ty}"))
        .collect();
    let mut sql = format!(
        "CREATE TYPE pair AS (a int, b text);\nCREATE TABLE t (id bigint NOT NULL, k text NOT NULL, {}, PRIMARY KEY (id));\n",
        columns.join(", ")
    );
    for row in 0..n {
        let cells: Vec<String> = edges
            .iter()
            .enumerate()
            .map(|(i, (_, values, _))| match (row * 7 + i * 3) % 5 {
                0 => "NULL".to_string(),
                _ => values[(row + i) % values.len()].to_string(),
            })
            .collect();
        let id = row as i64 * 37 - 900;
        sql.push_str(&format!(
            "INSERT INTO t VALUES ({id}, 'k {}', {});\n",
            row % 11,
            cells.join(", ")
        ));
    }
    sql.push_str("INSERT INTO t (id, k) VALUES (-9223372036854775808, ''), (9223372036854775807, 'ä');\n");
    db.psql(&sql);
}

fn texts(mut read: ReadSpec) -> ReadSpec {
    read.columns.iter_mut().for_each(|c| c.column.carrier = Carrier::Text);
    read
}

async fn both(source: &Arc<dyn Source>, request: &HashRequest) {
    let server = source.block_hashes().unwrap();
    let ours = ReadingHashes::new(source.clone(), ReadContext::default());
    let theirs = server.blocks(request).await.unwrap();
    assert_eq!(theirs, ours.blocks(request).await.unwrap(), "{request:?}");
    // Every third block, and one that is not there.
    let some: Vec<i64> = theirs.keys().copied().step_by(3).chain([12_345_678]).collect();
    let sorted = |mut rows: Vec<RowHash>| {
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    };
    let theirs = sorted(server.rows(request, &some).await.unwrap());
    assert!(request.slice != Slice::All || !theirs.is_empty());
    assert_eq!(theirs, sorted(ours.rows(request, &some).await.unwrap()), "{request:?}");
}

fn field(read: &ReadSpec, place: usize) -> Field {
    Field {
        place,
        ty: read.columns[place].column.ty.clone(),
    }
}

async fn canonical_is_canonical(version: PgVersion) {
    let db = Server::shared(version).database("hashes");
    table(&db, 60);
    let source: Arc<dyn Source> = Arc::new(open(&db).source());
    let id = TableId::new("public", "t");
    let schema = source.describe(&id).await.unwrap();
    let read = texts(ReadSpec::all(id, &schema.columns));
    let hashes = source.block_hashes().unwrap();
    // Each column alone first, in every type that it may be compared as: an error names it.
    for (i, (_, _, others)) in edges().into_iter().enumerate() {
        let own = read.columns[i + 2].column.ty.clone();
        for ty in others.into_iter().chain([own.clone()]) {
            assert!(hashes.canonical(&own, &ty), "{own} as {ty}");
            let request = HashRequest {
                read: read.clone(),
                compared: vec![Field { place: i + 2, ty }],
                key: vec![field(&read, 0)],
                slice: Slice::All,
                form: RowForm::Canonical,
                blocks: Blocks::Divide { width: 100 },
            };
            both(&source, &request).await;
        }
    }
    let columns = read.columns.len();
    let blocks = prop_oneof![
        (1i64..2000).prop_map(|width| Blocks::Divide { width }),
        Just(Blocks::Divide { width: i64::MAX }),
        (1u32..40).prop_map(|count| Blocks::Spread { count }),
    ];
    let bounds = (
        proptest::option::of(-1000i64..1000),
        proptest::option::of(-1000i64..2000),
    );
    let case = (
        proptest::collection::vec(0..columns, 0..12),
        blocks,
        bounds,
        any::<bool>(),
    );
    let runner = TestRunner::new(Config {
        cases: 24,
        ..Config::default()
    });
    let mut runner = runner;
    let mut cases = Vec::new();
    for _ in 0..24 {
        use proptest::strategy::ValueTree;
        cases.push(case.new_tree(&mut runner).unwrap().current());
    }
    // More columns than one call of `concat` takes.
    let all = (0..columns).chain(0..columns).collect();
    cases.push((all, Blocks::Spread { count: 7 }, (None, None), true));
    for (compared, blocks, (lower, upper), composite) in cases {
        let mut key = vec![field(&read, 0)];
        if composite {
            key.push(field(&read, 1));
        }
        let text = |n: i64| vec![n.to_string()];
        let request = HashRequest {
            compared: compared.iter().map(|&p| field(&read, p)).collect(),
            read: read.clone(),
            key,
            slice: Slice::Key(KeyRange {
                columns: vec!["id".into()],
                lower: lower.map(text),
                upper: upper.map(text),
            }),
            form: RowForm::Canonical,
            blocks,
        };
        both(&source, &request).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canonical_is_canonical_pg15() {
    canonical_is_canonical(PgVersion::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canonical_is_canonical_pg18() {
    canonical_is_canonical(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_servers_have_the_canonical_form_only() {
    let server = Server::start(PgVersion::new(12));
    let db = server.database("hashes");
    db.psql(
        "CREATE TABLE t (id int PRIMARY KEY, n numeric, at timestamptz);
         INSERT INTO t SELECT i, i / 8.0, '2024-01-01 00:00:00.000001+00'::timestamptz + i * interval '1 hour'
         FROM generate_series(-50, 50) i;
         INSERT INTO t VALUES (100, 'NaN', 'infinity'), (101, 100, NULL), (102, 0.00, '-infinity')",
    );
    let source: Arc<dyn Source> = Arc::new(open(&db).source());
    let id = TableId::new("public", "t");
    let schema = source.describe(&id).await.unwrap();
    let read = texts(ReadSpec::all(id, &schema.columns));
    assert_eq!(source.block_hashes().unwrap().fast_form(&read, &[0, 1]), None);
    for blocks in [Blocks::Divide { width: 7 }, Blocks::Spread { count: 5 }] {
        let request = HashRequest {
            compared: (0..3).map(|p| field(&read, p)).collect(),
            key: vec![field(&read, 0)],
            slice: Slice::All,
            form: RowForm::Canonical,
            blocks,
            read: read.clone(),
        };
        both(&source, &request).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_and_groups_are_hashed_as_they_are_read() {
    let db = Server::shared(PgVersion::V15).database("hashes");
    db.psql(
        "CREATE TABLE orders (id int PRIMARY KEY, shop int, amount numeric(8,2), at date);
         CREATE TABLE shops (id int PRIMARY KEY, name text);
         INSERT INTO shops SELECT i, 'shop ' || i FROM generate_series(1, 9) i;
         INSERT INTO orders SELECT i, i % 11, i / 3.0, '2024-01-01'::date + i % 40 FROM generate_series(1, 500) i",
    );
    let source: Arc<dyn Source> = Arc::new(open(&db).source());
    let mut read = ReadSpec::of(TableId::bare("orders"), Vec::new());
    read.alias = Some("o".into());
    read.joins.push(Join {
        table: TableId::bare("shops"),
        alias: Some("s".into()),
        kind: JoinKind::Left,
        on: "s.id = o.shop".into(),
    });
    read.filters.push(Filter::Sql("o.amount > 1".into()));
    let term = |name: &str, sql: &str| ReadColumn {
        source: name.into(),
        term: Some(Term::Sql(sql.into())),
        column: Column::new(name, ColumnType::Native),
    };
    read.columns = vec![
        term("day", "o.at - '2024-01-01'::date"),
        term("shop", "coalesce(s.name, '-')"),
        term("total", "sum(o.amount)"),
        term("n", "count(*)"),
    ];
    read.group_by = vec!["day".into(), "shop".into()];
    let columns = source.describe_query(&read).await.unwrap();
    for (c, column) in read.columns.iter_mut().zip(columns) {
        c.column = column;
    }
    let read = texts(read);
    for (blocks, key) in [
        (Blocks::Divide { width: 3 }, vec![0, 1]),
        (Blocks::Spread { count: 6 }, vec![1, 0]),
    ] {
        for slice in [
            Slice::All,
            Slice::Key(KeyRange {
                columns: vec!["day".into()],
                lower: Some(vec!["5".into()]),
                upper: Some(vec!["30".into()]),
            }),
        ] {
            let request = HashRequest {
                compared: (0..4).map(|p| field(&read, p)).collect(),
                key: key.iter().map(|&p| field(&read, p)).collect(),
                slice,
                form: RowForm::Canonical,
                blocks,
                read: read.clone(),
            };
            both(&source, &request).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_fast_form_is_the_same_on_two_servers_and_sees_every_change() {
    const ROWS: &str =
        "CREATE TABLE t (id bigint PRIMARY KEY, a int, n numeric(12,2), t text, c char(5), ok boolean, d date,
            ts timestamp, tz timestamptz, u uuid, j jsonb, b bytea, f float8, tags text[], r int4range, ip inet,
            big bigint, bigs bigint[], span int8range, at time, lsn pg_lsn);
        INSERT INTO t SELECT i, i % 7, i / 7.0, 'item ' || i, 'c' || i % 9, i % 2 = 0, '2024-01-01'::date + i % 100,
            '2024-01-01'::timestamp + i * interval '1 s', '2024-01-01 00:00+00'::timestamptz + i * interval '1 s',
            md5(i::text)::uuid, jsonb_build_object('k', i), decode(md5(i::text), 'hex'), i / 3.0, ARRAY['x', i::text],
            int4range(i, i + 2), '10.0.0.1'::inet + i, i, ARRAY[i, 1], int8range(i, 9000000000), '00:10'::time + i * interval '1 s',
            '0/10000'::pg_lsn + i
        FROM generate_series(-300, 700) i;
        INSERT INTO t (id) VALUES (5000);";
    let (one, other) = (
        Server::shared(PgVersion::V15).database("hashes"),
        Server::shared(PgVersion::V18).database("hashes"),
    );
    one.psql(ROWS);
    other.psql(ROWS);
    let id = TableId::new("public", "t");
    let (left, right) = (open(&one).source(), open(&other).live_source());
    let schema = left.describe(&id).await.unwrap();
    right.describe(&id).await.unwrap();
    let read = ReadSpec::all(id, &schema.columns);
    let all: Vec<usize> = (0..read.columns.len()).collect();
    let signature = left.fast_form(&read, &all).expect("a fast form");
    assert_eq!(right.fast_form(&read, &all), Some(signature.clone()));
    for blocks in [Blocks::Divide { width: 64 }, Blocks::Spread { count: 16 }] {
        let request = HashRequest {
            compared: all.iter().map(|&p| field(&read, p)).collect(),
            key: vec![field(&read, 0)],
            slice: Slice::All,
            form: RowForm::Fast(signature.clone()),
            blocks,
            read: read.clone(),
        };
        let before = left.blocks(&request).await.unwrap();
        assert_eq!(before.values().map(|b| b.rows).sum::<u64>(), 1002);
        assert_eq!(right.blocks(&request).await.unwrap(), before);
        for change in [
            "a = a + 1",
            "n = n + 0.01",
            "t = upper(t)",
            "t = t || ' '",
            "ok = NOT ok",
            "d = d + 1",
            "ts = ts + interval '1 us'",
            "tz = NULL",
            "u = md5(t)::uuid",
            "j = '{}'",
            "b = b || '\\x00'",
            "f = f + 1",
            "tags = ARRAY[tags]",
            "ip = ip + 1",
            // The server's hash of 64 bits begins with the exclusive or of their halves.
            "big = big # 4294967297",
            "bigs = ARRAY[big # 4294967297, 1]",
            "span = int8range(big # 4294967297, 9000000000)",
            "ts = '2000-01-01'::timestamp + ((extract(epoch FROM ts - '2000-01-01'::timestamp) * 1000000)::bigint # 4294967297) \
             * interval '1 us'",
            "at = '00:00'::time + ((extract(epoch FROM at) * 1000000)::bigint # 4294967297) * interval '1 us'",
            "lsn = '0/0'::pg_lsn + ((lsn - '0/0'::pg_lsn)::bigint # 4294967297)",
        ] {
            other.psql(&format!(
                "CREATE TABLE kept AS TABLE t; UPDATE t SET {change} WHERE id = 77"
            ));
            let after = right.blocks(&request).await.unwrap();
            let differing: Vec<i64> = before.keys().copied().filter(|k| before[k] != after[k]).collect();
            assert_eq!(differing.len(), 1, "{change}");
            let rows = |rows: Vec<RowHash>| {
                rows.into_iter()
                    .map(|r| (r.key, r.hash))
                    .collect::<std::collections::BTreeMap<_, _>>()
            };
            let here = rows(left.rows(&request, &differing).await.unwrap());
            let there = rows(right.rows(&request, &differing).await.unwrap());
            assert_eq!(here.len(), there.len());
            let changed: Vec<_> = here
                .iter()
                .filter(|(k, h)| there[*k] != **h)
                .map(|(k, _)| k.clone())
                .collect();
            assert_eq!(changed, [[Some("77".to_string())]], "{change}");
            other.psql("TRUNCATE t; INSERT INTO t TABLE kept; DROP TABLE kept");
        }
        // The server's hash of a record is a sum over its columns: values that trade places between rows leave the sum
        // of a block as it was, unless the hash is bound to the row.
        other.psql("UPDATE t SET ok = NOT ok, a = 7 - a WHERE id IN (73, 74)");
        assert_ne!(right.blocks(&request).await.unwrap(), before);
        other.psql("UPDATE t SET ok = NOT ok, a = 7 - a WHERE id IN (73, 74)");
        assert_eq!(right.blocks(&request).await.unwrap(), before);
    }
    let with = |ty: &str| {
        let column = Column::new("x", ColumnType::Native).with_source_type(ty);
        left.fast_form(&ReadSpec::all(TableId::bare("t"), &[column]), &[0])
    };
    assert!(with("macaddr").is_some() && with("point").is_none() && with("public.mood").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_unlike_columns_hash_alike_on_two_servers_and_every_change_is_seen() {
    let one = Server::shared(PgVersion::V15).database("texts");
    let other = Server::shared(PgVersion::V18).database("texts");
    let row = "i, i % 7, i / 7.0, 'item ä ' || i, '2024-01-01'::timestamp + i * interval '1 s', md5(i::text)::uuid";
    for (db, columns) in [
        (
            &one,
            "id bigint PRIMARY KEY, a int, n numeric, t varchar(40), at timestamp, u uuid",
        ),
        (
            &other,
            "id int PRIMARY KEY, a bigint, n numeric, t text, at timestamp, u uuid",
        ),
    ] {
        db.psql(&format!(
            "CREATE TABLE t ({columns}); INSERT INTO t SELECT {row} FROM generate_series(-300, 700) i; INSERT INTO t (id) VALUES (5000)"
        ));
    }
    let id = TableId::new("public", "t");
    let (left, right) = (open(&one).live_source(), open(&other).live_source());
    let agreed = left.describe(&id).await.unwrap();
    let signature = left.text_form().expect("a hash of texts");
    right.describe(&id).await.unwrap();
    assert_eq!(right.text_form(), Some(signature.clone()));
    let of = |columns: &[Column], blocks: Blocks, key: usize| {
        let read = ReadSpec::all(id.clone(), columns);
        let field = |place: usize| Field {
            place,
            ty: agreed.columns[place].ty.clone(),
        };
        HashRequest {
            compared: (0..columns.len()).map(field).collect(),
            key: vec![field(key)],
            slice: Slice::All,
            form: RowForm::Text(signature.clone()),
            blocks,
            read,
        }
    };
    let columns = right.describe(&id).await.unwrap().columns;
    assert_ne!(columns[0].ty, agreed.columns[0].ty);
    for (blocks, key) in [
        (Blocks::Divide { width: 64 }, 0),
        (Blocks::Spread { count: 16 }, 0),
        (Blocks::Spread { count: 16 }, 3),
    ] {
        if key == 3 {
            for db in [&one, &other] {
                db.psql("DELETE FROM t WHERE id = 5000");
            }
        }
        let (here, there) = (of(&agreed.columns, blocks, key), of(&columns, blocks, key));
        let before = left.blocks(&here).await.unwrap();
        assert!(before.len() > 10 && before.values().map(|b| b.rows).sum::<u64>() > 1000);
        assert_eq!(right.blocks(&there).await.unwrap(), before);
        for change in [
            "a = a + 1",
            "n = n + 0.001",
            "t = upper(t)",
            "at = at + interval '1 us'",
            "u = NULL",
        ] {
            other.psql(&format!(
                "CREATE TABLE kept AS TABLE t; UPDATE t SET {change} WHERE id = 77"
            ));
            let after = right.blocks(&there).await.unwrap();
            let differing: Vec<i64> = before
                .keys()
                .chain(after.keys())
                .copied()
                .filter(|k| before.get(k) != after.get(k))
                .collect();
            assert!(!differing.is_empty(), "{change}");
            let rows = |rows: Vec<RowHash>| {
                rows.into_iter()
                    .map(|r| (r.key, r.hash))
                    .collect::<std::collections::BTreeSet<_>>()
            };
            let left = rows(left.rows(&here, &differing).await.unwrap());
            let right = rows(right.rows(&there, &differing).await.unwrap());
            assert_eq!(left.difference(&right).count(), 1, "{change}");
            assert_eq!(right.difference(&left).count(), 1, "{change}");
            other.psql("TRUNCATE t; INSERT INTO t TABLE kept; DROP TABLE kept");
        }
        // Rows that trade values.
        other.psql("UPDATE t SET a = 7 - a WHERE id IN (73, 74)");
        assert_ne!(right.blocks(&there).await.unwrap(), before);
        other.psql("UPDATE t SET a = 7 - a WHERE id IN (73, 74)");
    }
    // Texts that are not in UTF-8 have other bytes.
    one.psql("CREATE DATABASE texts_in_latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'");
    let url = one.url();
    let latin = format!("{}/texts_in_latin", url.rsplit_once('/').unwrap().0);
    let latin = Postgres::open(PostgresConfig::from_url(&latin).unwrap())
        .unwrap()
        .live_source();
    latin.tables(None).await.unwrap();
    assert_eq!(latin.text_form(), None);
}
