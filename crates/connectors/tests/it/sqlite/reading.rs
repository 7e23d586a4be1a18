//! Reading: resuming, cutting, foreign tables, limits.

use super::{Db, Row, read, read_all, row};
use std::collections::BTreeSet;
use synctool_core::budget::Budget;
use synctool_core::error::code;
use synctool_core::plan::{ReadSpec, Slice};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{PlannedSlice, ReadContext, SliceRequest};

/// Five or so rows a page.
fn small_pages() -> ReadContext {
    ReadContext {
        batch_bytes: 300,
        ..ReadContext::default()
    }
}

async fn spec(db: &Db, table: &str) -> ReadSpec {
    let table = TableId::bare(table);
    let schema = db.source().describe(&table).await.unwrap();
    ReadSpec::all(table, &schema.columns)
}

/// Every kind of key with awkward values: what comes after a boundary is what came after it the first time.
#[tokio::test]
async fn a_reader_resumes_right_after_every_boundary() {
    let db = Db::with(
        "CREATE TABLE by_id (id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT -50 UNION ALL SELECT i + 7 FROM n WHERE i < 300)
           INSERT INTO by_id SELECT i, 'value ' || i FROM n;
         CREATE TABLE by_name (name VARCHAR(20) COLLATE NOCASE PRIMARY KEY, v BLOB) WITHOUT ROWID;
         INSERT INTO by_name SELECT CASE WHEN id % 2 THEN 'k' ELSE 'K' END || id || ' ''\"ä', x'00ff' FROM by_id;
         CREATE TABLE by_three (a INT, b TEXT, c REAL, v, PRIMARY KEY (a, b DESC, c));
         INSERT INTO by_three SELECT abs(id) % 3, 'b' || (id % 5), id / 3.0, id FROM by_id;
         CREATE TABLE by_blob (k BLOB PRIMARY KEY NOT NULL, v TEXT);
         INSERT INTO by_blob SELECT CAST(name AS BLOB), 'x' FROM by_name;
         CREATE TABLE keyless (rowid TEXT, v TEXT);
         INSERT INTO keyless SELECT 'same', v FROM by_id;
         CREATE TABLE backwards (id INTEGER PRIMARY KEY DESC, v TEXT);
         INSERT INTO backwards SELECT * FROM by_id;",
    );
    for table in ["by_id", "by_name", "by_three", "by_blob", "keyless", "backwards"] {
        let source = db.source();
        let spec = spec(&db, table).await;
        let context = small_pages();
        let (all, stops) = read(source.as_ref(), &spec, Slice::All, None, &context).await.unwrap();
        let count: i64 = db.one(&format!("SELECT count(*) FROM {table}"));
        assert_eq!(all.len() as i64, count, "{table}");
        assert_eq!(
            all.iter().collect::<BTreeSet<_>>().len(),
            all.len(),
            "{table}: a row came twice"
        );
        assert!(stops.len() >= 5, "{table}: only {} pages", stops.len());
        assert_eq!(
            stops.last().unwrap().0,
            all.len(),
            "{table}: the last boundary is the end"
        );
        for (before, position) in &stops {
            let (rest, _) = read(source.as_ref(), &spec, Slice::All, Some(position), &context)
                .await
                .unwrap();
            assert_eq!(rest, all[*before..], "{table} after {position}");
        }
    }
}

#[tokio::test]
async fn one_reader_sees_one_snapshot() {
    let db = Db::with(
        "PRAGMA journal_mode = WAL; CREATE TABLE t (id INTEGER PRIMARY KEY);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) INSERT INTO t SELECT i FROM n;",
    );
    let (source, spec) = (db.source(), spec(&db, "t").await);
    let mut reader = source
        .open(&spec, &super::partition(Slice::All), None, &small_pages())
        .await
        .unwrap();
    reader.next().await.unwrap().expect("a first page");
    db.run("DELETE FROM t WHERE id > 20; INSERT INTO t VALUES (1000)");
    let mut last = String::new();
    while let Some(event) = reader.next().await.unwrap() {
        if let synctool_core::change::Event::Rows(b) = event {
            last = synctool_core::testing::rows::texts(&b.rows).unwrap().pop().unwrap()[0]
                .clone()
                .unwrap();
        }
    }
    assert_eq!(last, "500");
}

#[tokio::test]
async fn a_table_without_a_key_is_not_resumed_after_a_vacuum() {
    let db = Db::with("CREATE TABLE t (v TEXT); INSERT INTO t VALUES ('a'), ('b'); DELETE FROM t WHERE v = 'a'");
    let (source, spec) = (db.source(), spec(&db, "t").await);
    let (_, stops) = read(source.as_ref(), &spec, Slice::All, None, &ReadContext::default())
        .await
        .unwrap();
    db.run("VACUUM");
    let e = read(
        source.as_ref(),
        &spec,
        Slice::All,
        Some(&stops[0].1),
        &ReadContext::default(),
    )
    .await
    .unwrap_err();
    assert_eq!(e.code(), code::STATE_STORE, "{e}");
    assert!(e.to_string().contains("vacuumed"), "{e}");
}

fn request(key: &[&str], step: Option<u64>) -> SliceRequest {
    SliceRequest {
        key: key.iter().map(ToString::to_string).collect(),
        step,
        min_slices: 20,
        max_slice_bytes: 64 << 20,
        single: false,
    }
}

/// Reads every slice; their rows together are the table's, each once. Returns how many each has.
async fn slice_sizes(db: &Db, table: &str, request: &SliceRequest) -> (Vec<PlannedSlice>, Vec<usize>) {
    let (source, spec) = (db.source(), spec(db, table).await);
    let slices = source.slices(&spec, request).await.unwrap();
    let labels: BTreeSet<&str> = slices.iter().map(|s| s.label.as_str()).collect();
    assert_eq!(labels.len(), slices.len(), "{table}: labels repeat");
    let (mut sizes, mut together) = (Vec::new(), Vec::new());
    for s in &slices {
        let (rows, _) = read(source.as_ref(), &spec, s.slice.clone(), None, &ReadContext::default())
            .await
            .unwrap();
        sizes.push(rows.len());
        together.extend(rows);
    }
    let mut all = read_all(db, table).await.unwrap();
    together.sort();
    all.sort();
    assert_eq!(together.len(), all.len(), "{table}");
    assert!(together == all, "{table}: the slices do not make up the table");
    (slices, sizes)
}

#[tokio::test]
async fn slices_are_balanced_whatever_the_keys() {
    let db = Db::with(
        "CREATE TABLE dense (id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
           INSERT INTO dense SELECT i, 'v' FROM n;
         CREATE TABLE gaps (id INTEGER PRIMARY KEY, v TEXT);
         INSERT INTO gaps SELECT id, v FROM dense WHERE id <= 25000;
         INSERT INTO gaps SELECT id * 300000000000000, v FROM dense WHERE id > 29900;
         INSERT INTO gaps VALUES (-9223372036854775808, 'first'), (9223372036854775807, 'last');
         CREATE TABLE pairs (a TEXT, b INT, v TEXT, PRIMARY KEY (a, b));
         INSERT INTO pairs SELECT CASE WHEN id < 20000 THEN 'much' ELSE 'k' || id END, id, v FROM dense;",
    );
    for (table, key) in [("dense", vec!["id"]), ("gaps", vec!["id"]), ("pairs", vec!["a", "b"])] {
        let (slices, sizes) = slice_sizes(&db, table, &request(&key, None)).await;
        assert!(sizes.len() >= 15, "{table}: {} slices", sizes.len());
        let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
        assert!(*most <= 2 * least.max(&500), "{table}: {sizes:?}");
        let estimated: u64 = slices.iter().map(|s| s.rows).sum();
        assert!(
            (24_000..36_000).contains(&estimated),
            "{table}: {estimated} rows expected"
        );
    }
    let (slices, sizes) = slice_sizes(&db, "dense", &request(&["id"], Some(7000))).await;
    assert_eq!(sizes, [7000, 7000, 7000, 7000, 2000]);
    assert_eq!(slices[1].label, "id_7001_14001");
    // No key, a small table, one slice wished: all of it at once.
    for (table, r) in [
        ("pairs", request(&[], None)),
        ("pairs", request(&["v"], None)),
        (
            "dense",
            SliceRequest {
                single: true,
                ..request(&["id"], None)
            },
        ),
    ] {
        assert_eq!(slice_sizes(&db, table, &r).await.0.len(), 1);
    }
}

#[tokio::test]
async fn empty_tables_and_null_keys_are_read_whole() {
    let db = Db::with(
        "CREATE TABLE void (id INTEGER PRIMARY KEY);
         CREATE TABLE nulls (k TEXT PRIMARY KEY, v INT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)
           INSERT INTO nulls SELECT nullif('k' || i, 'k7'), i FROM n;",
    );
    assert_eq!(slice_sizes(&db, "void", &request(&["id"], None)).await.1, [0]);
    assert_eq!(slice_sizes(&db, "nulls", &request(&["k"], None)).await.1, [30_000]);
}

#[tokio::test]
async fn foreign_tables_read_as_people_mean_them() {
    let db = Db::with(
        "CREATE TABLE wild (id INTEGER PRIMARY KEY, n NUMERIC(10,2), d DATETIME, day DATE, b BOOLEAN, x, u UUID,
           j JSON, s STRING, r DOUBLE PRECISION, twice INT GENERATED ALWAYS AS (id * 2) STORED);
         INSERT INTO wild (id, n, d, day, b, x, u, j, s, r) VALUES
           (1, 1.1, '2024-01-31T23:59:59.5', '2024-02-29', 1, 42, x'000102030405060708090a0b0c0d0e0f', '{\"a\":1.0}', 'x', 0.1),
           (2, 3, '2024-01-31 00:00', NULL, 'true', 'text', '00010203-0405-0607-0809-0a0b0c0d0e0f', '[1]', 'y', 1),
           (3, '12345678.90', NULL, '0044-03-15 BC', 0, 1.5, NULL, NULL, NULL, 9e999);
         CREATE VIEW seen AS SELECT id, n * 2 AS doubled FROM wild;",
    );
    let schema = db.source().describe(&TableId::bare("WILD")).await.unwrap();
    assert_eq!(schema.key, ["id"]);
    let twice = schema.column("twice").unwrap();
    assert!(twice.generated && !schema.column("id").unwrap().nullable);
    assert_eq!(
        read_all(&db, "wild").await.unwrap(),
        [
            row(&[
                "1",
                "1.10",
                "2024-01-31 23:59:59.5",
                "2024-02-29",
                "true",
                "42",
                "00010203-0405-0607-0809-0a0b0c0d0e0f",
                "{\"a\":1.0}",
                "x",
                "0.1",
                "2"
            ]),
            row(&[
                "2",
                "3.00",
                "2024-01-31 00:00:00",
                "NULL",
                "true",
                "text",
                "00010203-0405-0607-0809-0a0b0c0d0e0f",
                "[1]",
                "y",
                "1",
                "4"
            ]),
            row(&[
                "3",
                "12345678.90",
                "NULL",
                "0044-03-15 BC",
                "false",
                "1.5",
                "NULL",
                "NULL",
                "NULL",
                "Infinity",
                "6"
            ]),
        ]
    );
    let tables = db.source().tables(None).await.unwrap();
    let kinds: Vec<(&str, &str)> = tables
        .iter()
        .map(|t| (t.table.name.as_str(), t.kind.as_str()))
        .collect();
    assert_eq!(kinds, [("seen", "view"), ("wild", "table")]);
    assert_eq!(read_all(&db, "seen").await.unwrap()[0], row(&["1", "2.2"]));
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_refused_and_not_shown() {
    for (ty, value) in [
        ("INTEGER", "'secret'"),
        ("INTEGER", "x'736563726574'"),
        ("VARCHAR(3)", "'secret'"),
        ("TEXT", "x'736563726574'"),
        ("NUMERIC(4,2)", "1.239"),
        ("NUMERIC(4,2)", "123.5"),
        ("DATETIME", "1706700000"),
        ("DATE", "'2023-02-30'"),
        ("BOOLEAN", "2"),
        ("REAL", "'secret'"),
        ("BLOB", "'\\x00'"),
        ("UUID", "x'00'"),
        ("UINT8BIT", "-1"),
        ("INT16BIT", "70000"),
        ("FLOAT32", "0.1"),
        ("TEXT", "CAST(x'ff' AS TEXT)"),
    ] {
        let db = Db::with(&format!(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, v {ty}); INSERT INTO t VALUES (1, {value})"
        ));
        let e = read_all(&db, "t")
            .await
            .expect_err(&format!("{value} was read as {ty}"));
        assert_eq!(e.code(), code::VALUE_MALFORMED, "{ty} {value}: {e}");
        let text = e.to_string();
        assert!(text.contains("column v") && text.contains("as_text"), "{text}");
        assert!(!text.contains("secret") && !text.contains("170670"), "{text}");
        // Carried as text it passes, unless it is no text at all.
        let as_text = ReadSpec::all(TableId::bare("t"), &[Column::new("v", ColumnType::Text { max: None })]);
        let passed = read(
            db.source().as_ref(),
            &as_text,
            Slice::All,
            None,
            &ReadContext::default(),
        )
        .await;
        assert_eq!(
            passed.is_ok(),
            !value.starts_with("x'") && !value.contains("x'ff'"),
            "{ty} {value}"
        );
    }
}

#[tokio::test]
async fn wide_rows_pass_a_small_budget_and_giants_are_refused_by_name() {
    let db = Db::with(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 8)
           INSERT INTO t SELECT i, hex(zeroblob(200000 * i)) FROM n;",
    );
    let spec = spec(&db, "t").await;
    let context = ReadContext {
        budget: Budget::new(1 << 20),
        batch_bytes: 100_000,
        max_row_bytes: 4_000_000,
        ..ReadContext::default()
    };
    let (rows, stops) = read(db.source().as_ref(), &spec, Slice::All, None, &context)
        .await
        .unwrap();
    assert_eq!((rows.len(), stops.len()), (8, 8), "one row a page");
    assert_eq!(context.budget.free(), context.budget.total(), "all memory came back");
    let context = ReadContext {
        max_row_bytes: 3_000_000,
        ..context
    };
    let e = read(db.source().as_ref(), &spec, Slice::All, None, &context)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::ROW_TOO_LARGE);
    let text = e.to_string();
    assert!(
        text.contains("table t") && text.contains("partition all") && text.contains("3200"),
        "{text}"
    );
}

#[tokio::test]
async fn what_is_missing_is_named_with_what_is_near() {
    let db = Db::with("CREATE TABLE customers (id INTEGER PRIMARY KEY); CREATE TABLE orders (id INT)");
    let source = db.source();
    let e = source.describe(&TableId::bare("customer")).await.unwrap_err();
    assert_eq!(e.code(), code::TABLE_MISSING);
    assert!(e.to_string().contains("there is: customers"), "{e}");
    let e = source.describe(&TableId::new("public", "orders")).await.unwrap_err();
    assert!(e.to_string().contains("no schema public"), "{e}");
    // SQLite would read a name that is not there as a text.
    let spec = ReadSpec::all(TableId::bare("orders"), &[Column::new("ident", ColumnType::Int64)]);
    let e = read(source.as_ref(), &spec, Slice::All, None, &ReadContext::default())
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::COLUMN_MISSING, "{e}");
    let context = ReadContext::default();
    context.cancel.cancel();
    let spec = ReadSpec::all(TableId::bare("orders"), &[Column::new("id", ColumnType::Int64)]);
    let e = read(source.as_ref(), &spec, Slice::All, None, &context)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::INTERRUPTED);
    let findings = source
        .examine(&[TableId::bare("customers"), TableId::bare("nowhere")])
        .await;
    let bad: Vec<&str> = findings.iter().filter(|f| !f.ok).map(|f| f.what.as_str()).collect();
    assert_eq!(bad, ["table nowhere"]);
    let _: Vec<Row> = read_all(&db, "customers").await.unwrap();
}
