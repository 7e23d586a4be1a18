//! The server's hashes are those that are made by reading.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use synctool_core::blocks::{BlockHashes, Blocks, Field, HashRequest, ReadingHashes, RowForm, RowHash};
use synctool_core::change::KeyRange;
use synctool_core::schema::{Column, ColumnType};

async fn request(db: &Db, table: &str, agreed: &[(&str, ColumnType)], blocks: Blocks) -> HashRequest {
    let source = db.source();
    let schema = source.describe(&TableId::bare(table)).await.unwrap();
    let read = ReadSpec::all(TableId::bare(table), &schema.columns);
    let place = |name: &str| schema.index_of(name).unwrap();
    let field = |(name, ty): &(&str, ColumnType)| Field {
        place: place(name),
        ty: ty.clone(),
    };
    let hashes = source.block_hashes().unwrap();
    for (name, ty) in agreed {
        let stored = &schema.column(name).unwrap().ty;
        assert!(hashes.canonical(stored, ty), "{name}: {stored} as {ty} is not promised");
    }
    HashRequest {
        read,
        compared: agreed.iter().map(field).collect(),
        key: vec![field(&agreed[0])],
        slice: Slice::All,
        form: RowForm::Canonical,
        blocks,
    }
}

/// Both ways of computing give the same, block by block and row by row.
async fn same(db: &Db, request: &HashRequest) {
    let source = db.source();
    let inside = source.block_hashes().unwrap();
    let reading = ReadingHashes::new(db.source(), ReadContext::default());
    let (ours, theirs) = (
        inside.blocks(request).await.unwrap(),
        reading.blocks(request).await.unwrap(),
    );
    let sorted = |mut rows: Vec<RowHash>| {
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        rows
    };
    let all: Vec<i64> = theirs.keys().copied().collect();
    if ours != theirs {
        let a = sorted(inside.rows(request, &all).await.unwrap());
        let b = sorted(reading.rows(request, &all).await.unwrap());
        let apart: Vec<_> = a.iter().zip(&b).filter(|(a, b)| a != b).take(3).collect();
        panic!("blocks differ: {:?}; rows: {apart:?}", request.compared);
    }
    let some: Vec<i64> = all.iter().copied().step_by(2).collect();
    assert_eq!(
        sorted(inside.rows(request, &some).await.unwrap()),
        sorted(reading.rows(request, &some).await.unwrap())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_type_has_its_form() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, b tinyint(1), bit1 bit(1), i8 tinyint, u64 bigint unsigned, y year, bits bit(12), \
         d decimal(12,2), wide decimal(65,30), whole decimal(20,0), da date, ti time(6), ts datetime(6), tz timestamp(3) NULL, \
         marked datetime(6) COMMENT 'synctool:timestamptz', c char(10), v varchar(100), latin varchar(100) CHARACTER SET latin1, \
         long_ longtext, e enum('a','B'), by_ varbinary(50), fixed binary(4), bl longblob, u36 char(36) COMMENT 'synctool:uuid', \
         u16 binary(16) COMMENT 'synctool:uuid', plain36 char(36))",
    );
    db.sql(
        "SET sql_mode = 'STRICT_ALL_TABLES'; SET time_zone = '+00:00'; INSERT INTO t VALUES \
         (1, 1, b'1', -128, 18446744073709551615, 1999, 4095, -9999999999.99, \
          -12345678901234567890123456789012345.123456789012345678901234567890, -5, '0001-01-01', '23:59:59.999999', \
          '0001-01-01 00:00:00', '2038-01-19 03:14:07.999', '9999-12-31 23:59:59.999999', 'ab', 'tab\\tquote\"\\'comma,nl\\r\\nback\\\\', \
          'äöü', 'ä€😀', 'B', X'00ff5c275c6e0a', X'01', X'', '0F3C0000-0000-0000-0000-00000000000A', \
          UNHEX('0F3C000000000000000000000000000A'), '0F3C0000-0000-0000-0000-00000000000B'), \
         (-7, 0, b'0', 127, 0, 0, 0, 0.00, 0, 0, '1969-12-31', '00:00:00', '1969-12-31 23:59:59.999999', '1970-01-01 00:00:01', \
          '1970-01-01', '', '', '', '', 'a', '', '', X'00', '00000000-0000-0000-0000-000000000000', REPEAT(CHAR(0), 16), \
          'ffffffff-ffff-ffff-ffff-ffffffffffff'), \
         (3000000000, NULL, NULL, NULL, NULL, NULL, NULL, -0.01, 1.5, NULL, '9999-12-31', '24:00:00', '2262-04-12 00:00:00.000001', NULL, \
          NULL, ' x', 'trailing  ', NULL, '~', NULL, NULL, NULL, NULL, NULL, NULL, NULL), \
         (4, NULL, NULL, 0, 9223372036854775808, 2155, 1, 100.10, 100, 12345678901234567890, '2024-02-29', '12:30:00.5', \
          '2024-01-31 12:00:00', '2024-01-31 12:00:00.5', NULL, '~', NULL, 'x', CONCAT('e', CHAR(0xcc81 USING utf8mb4)), 'a', X'e4', \
          X'ffffffff', X'e4', NULL, NULL, NULL)",
    );
    let decimal = |precision, scale| ColumnType::Decimal { precision, scale };
    let text = ColumnType::Text { max: None };
    let agreed = [
        ("id", ColumnType::Int64),
        ("b", ColumnType::Bool),
        ("bit1", ColumnType::Bool),
        ("i8", ColumnType::Int16),
        ("u64", ColumnType::Numeric),
        ("y", ColumnType::Int16),
        ("bits", ColumnType::UInt64),
        ("d", decimal(14, 4)),
        ("d", ColumnType::Numeric),
        ("i8", decimal(10, 3)),
        ("wide", decimal(65, 30)),
        ("wide", ColumnType::Numeric),
        ("whole", ColumnType::Numeric),
        ("da", ColumnType::Date),
        ("ti", ColumnType::Time),
        ("ts", ColumnType::Timestamp),
        ("tz", ColumnType::TimestampTz),
        ("marked", ColumnType::TimestampTz),
        ("c", ColumnType::Char { length: 10 }),
        ("c", text.clone()),
        ("v", text.clone()),
        ("v", ColumnType::Char { length: 100 }),
        ("latin", text.clone()),
        ("long_", text.clone()),
        ("e", text.clone()),
        ("by_", ColumnType::Bytes),
        ("fixed", ColumnType::Bytes),
        ("bl", ColumnType::Bytes),
        ("u36", ColumnType::Uuid),
        ("u16", ColumnType::Uuid),
        ("plain36", ColumnType::Uuid),
    ];
    // One type at a time, so that a difference names it; then all together.
    for one in &agreed[1..] {
        let fields = [agreed[0].clone(), one.clone()];
        same(&db, &request(&db, "t", &fields, Blocks::Divide { width: 5 }).await).await;
    }
    for blocks in [Blocks::Divide { width: 3 }, Blocks::Spread { count: 3 }] {
        let mut all = request(&db, "t", &agreed, blocks).await;
        same(&db, &all).await;
        all.slice = Slice::Key(KeyRange {
            columns: vec!["id".into()],
            lower: Some(vec!["0".into()]),
            upper: None,
        });
        same(&db, &all).await;
    }
    // Keys of every kind may be spread.
    for key in ["u16", "v", "d", "ts"] {
        let at = agreed.iter().position(|(n, _)| *n == key).unwrap();
        let fields = [agreed[at].clone(), agreed[0].clone()];
        same(&db, &request(&db, "t", &fields, Blocks::Spread { count: 4 }).await).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_rows_sum_exactly() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE t (id bigint PRIMARY KEY, v varchar(50), d decimal(10,3)); \
         INSERT INTO t SELECT CAST(seq AS SIGNED) - 5000, MD5(seq), seq / 1000 FROM seq_1_to_10000",
    );
    let agreed = [
        ("id", ColumnType::Int64),
        ("v", ColumnType::Text { max: None }),
        (
            "d",
            ColumnType::Decimal {
                precision: 10,
                scale: 3,
            },
        ),
    ];
    for blocks in [Blocks::Divide { width: 1000 }, Blocks::Spread { count: 16 }] {
        same(&db, &request(&db, "t", &agreed, blocks).await).await;
    }
    let r = request(&db, "t", &agreed, Blocks::Divide { width: 1000 }).await;
    let found: BTreeMap<i64, _> = db.source().block_hashes().unwrap().blocks(&r).await.unwrap();
    assert_eq!((found.len(), found[&-5].rows, found[&5].rows), (11, 999, 1));
}

#[test]
fn any_values_hash_alike() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let db = runtime.block_on(async {
        let db = Db::new().await;
        db.sql("CREATE TABLE t (id bigint PRIMARY KEY, v longtext COLLATE utf8mb4_bin, d decimal(20,6), ts datetime(6), b longblob)");
        db
    });
    let schema = runtime.block_on(db.source().describe(&TableId::bare("t"))).unwrap();
    let row = (
        any::<i64>(),
        proptest::option::of("\\PC{0,20}| *|[~,:0-9]{0,6}"),
        proptest::option::of((any::<i32>(), 0..1_000_000_u32)),
        proptest::option::of(-62_135_596_800_000_000_i64..253_402_300_800_000_000),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
    );
    let config = ProptestConfig {
        cases: 12,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(rows in proptest::collection::vec(row, 1..60))| {
        let mut keyed: BTreeMap<i64, Row> = BTreeMap::new();
        for (id, v, d, ts, b) in rows {
            let decimal = d.map(|(whole, micro)| format!("{whole}.{micro:06}"));
            let ts = ts.map(|t| {
                let mut s = String::new();
                synctool_core::text::write_timestamp(&mut s, t, false);
                s
            });
            let bytes = b.map(|b| {
                let mut s = String::new();
                synctool_core::text::write_bytes(&mut s, &b);
                s
            });
            keyed.insert(id, vec![Some(id.to_string()), v, decimal, ts, bytes]);
        }
        let rows: Vec<Row> = keyed.into_values().collect();
        db.sql("DELETE FROM t");
        runtime.block_on(async {
            let mut p = plan("t", &schema, Publish::Append);
            p.pipeline = "any values".into();
            let p = loaded(&db, p, &rows).await.unwrap();
            db.destination.publish(&p).await.unwrap();
            let agreed: Vec<(&str, ColumnType)> = schema.columns.iter().map(|c: &Column| (c.name.as_str(), c.ty.clone())).collect();
            for blocks in [Blocks::Divide { width: 1 << 40 }, Blocks::Spread { count: 5 }] {
                same(&db, &request(&db, "t", &agreed, blocks).await).await;
            }
        });
    });
}
