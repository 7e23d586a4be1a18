//! Reading: catalogs, slices, and everything a query may ask for.

use super::*;
use synctool_core::change::KeyRange;
use synctool_core::error::code;
use synctool_core::plan::ReadColumn;
use synctool_core::query::{Comparison, Condition, Cut, Filter, Join, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType};
use synctool_core::source::SliceRequest;

fn request(key: &[&str]) -> SliceRequest {
    SliceRequest {
        key: key.iter().map(ToString::to_string).collect(),
        step: None,
        min_slices: 5,
        max_slice_bytes: 1 << 20,
        single: false,
    }
}

/// Slices of one request hold every row once.
async fn cover(db: &Db, table: &str, key: &[&str], at_least: usize) {
    let source = db.source();
    let schema = source.describe(&TableId::bare(table)).await.unwrap();
    let spec = ReadSpec::all(TableId::bare(table), &schema.columns);
    let slices = source.slices(&spec, &request(key)).await.unwrap();
    assert!(slices.len() >= at_least, "{table}: {} slices", slices.len());
    let mut rows = Vec::new();
    let mut largest = 0;
    for s in &slices {
        let some = read_spec(source.as_ref(), &spec, s.slice.clone()).await.unwrap();
        largest = largest.max(some.len());
        rows.extend(some);
    }
    rows.sort();
    let before = rows.len();
    rows.dedup();
    assert_eq!(rows.len(), before, "{table}: a row was read twice");
    assert_eq!(
        before.to_string(),
        db.sql(&format!("SELECT count(*) FROM {table}")),
        "{table}"
    );
    assert!(
        largest * at_least < before * 4,
        "{table}: {largest} of {before} rows in one slice"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slices_are_balanced_and_have_no_gap() {
    let db = Db::new().await;
    db.sql(
        "CREATE TABLE even (id bigint PRIMARY KEY, v varchar(20)); INSERT INTO even SELECT CAST(seq AS SIGNED) * 7 - 90000, 'x' FROM seq_1_to_40000; \
         CREATE TABLE clustered (id bigint unsigned PRIMARY KEY, v varchar(20)); \
         INSERT INTO clustered SELECT seq, 'x' FROM seq_1_to_20000; \
         INSERT INTO clustered SELECT seq + 18446744073709000000, 'x' FROM seq_1_to_20000; \
         CREATE TABLE texts (a varchar(20) COLLATE utf8mb4_general_ci, b int, PRIMARY KEY (a, b)); \
         INSERT INTO texts SELECT concat(IF(seq % 2, 'K', 'k'), seq DIV 100), seq FROM seq_1_to_40000",
    );
    cover(&db, "even", &["id"], 5).await;
    cover(&db, "clustered", &["id"], 5).await;
    cover(&db, "texts", &["a", "b"], 5).await;
    let source = db.source();
    let spec = ReadSpec::all(TableId::bare("even"), &[]);
    let fixed = SliceRequest {
        step: Some(70_000),
        ..request(&["id"])
    };
    assert_eq!(source.slices(&spec, &fixed).await.unwrap().len(), 4);
    let single = SliceRequest {
        single: true,
        ..request(&["id"])
    };
    assert_eq!(source.slices(&spec, &single).await.unwrap().len(), 1);
}

fn shop(db: &Db) {
    db.sql(
        "CREATE TABLE customers (id int PRIMARY KEY, name varchar(20), region char(2)); \
         CREATE TABLE orders (id bigint unsigned PRIMARY KEY, customer int, amount decimal(10,2), at timestamp(3) NULL, f float, big bigint); \
         INSERT INTO customers VALUES (1, 'Ann', 'de'), (2, 'Bob', 'us'), (3, 'Cy', NULL); \
         INSERT INTO orders VALUES (1, 1, 10.50, '2024-01-01 00:00:00.5', 0.1, 9007199254740993), \
         (2, 1, 4.50, '2024-01-02 00:00:00', 2, 9007199254740992), (3, 2, 1, NULL, NULL, NULL), (4, 9, 2, '2024-01-03', 3, 1)",
    );
}

fn sql_column(name: &str, sql: &str) -> ReadColumn {
    ReadColumn {
        source: name.into(),
        term: Some(Term::Sql(sql.into())),
        column: Column::new(name, ColumnType::Text { max: None }),
    }
}

async fn described(source: &dyn Source, mut read: ReadSpec) -> ReadSpec {
    let columns = source.describe_query(&read).await.unwrap();
    for (c, found) in read.columns.iter_mut().zip(columns) {
        c.column = found;
    }
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_filters_terms_and_groups() {
    let db = Db::new().await;
    shop(&db);
    let source = db.source();
    let region = ReadColumn {
        source: "region".into(),
        term: Some(Term::Column {
            relation: Some("c".into()),
            name: "region".into(),
        }),
        column: Column::new("region", ColumnType::Text { max: None }),
    };
    let mut read = ReadSpec::of(
        TableId::bare("orders"),
        vec![
            region,
            sql_column("total", "sum(o.amount)"),
            sql_column("n", "count(*)"),
            sql_column("first", "min(o.at)"),
        ],
    );
    read.alias = Some("o".into());
    read.joins.push(Join {
        table: TableId::bare("customers"),
        alias: Some("c".into()),
        kind: JoinKind::Left,
        on: "c.id = o.customer".into(),
    });
    read.group_by = vec!["region".into()];
    read.filters = vec![
        Filter::Sql("o.amount > 1.5 OR o.id = 3".into()),
        Filter::Test(Condition {
            term: Term::column("id"),
            test: Test::Compare(Comparison::Less, "18446744073709551615".into()),
        }),
    ];
    let read = described(source.as_ref(), read).await;
    assert_eq!(read.columns[0].column.ty, ColumnType::Char { length: 2 });
    assert!(
        matches!(read.columns[1].column.ty, ColumnType::Decimal { scale: 2, .. }),
        "{:?}",
        read.columns[1].column
    );
    assert_eq!(read.columns[2].column.ty, ColumnType::Int64);
    let mut rows = read_spec(source.as_ref(), &read, Slice::All).await.unwrap();
    rows.sort();
    let first = |r: &Row| r[..3].to_vec();
    assert_eq!(
        rows.iter().map(first).collect::<Vec<_>>(),
        [
            row(&["NULL", "2.00", "1"]),
            row(&["de", "15.00", "2"]),
            row(&["us", "1.00", "1"])
        ]
    );
    // A cut and named groups choose among the rows before they are grouped.
    let groups = Slice::Keys(KeyList {
        terms: vec![Term::Column {
            relation: Some("c".into()),
            name: "region".into(),
        }],
        keys: vec![vec![Some("us".into())], vec![None]],
    });
    let rows = read_spec(source.as_ref(), &read, groups).await.unwrap();
    assert_eq!(rows.len(), 2);
    let mut full = read.clone();
    full.joins[0].kind = JoinKind::Full;
    assert_eq!(
        read_spec(source.as_ref(), &full, Slice::All).await.unwrap_err().code(),
        code::UNSUPPORTED
    );
    let terms = [Term::Column {
        relation: Some("c".into()),
        name: "region".into(),
    }];
    let mut found = source.distinct(&read, &terms, &Slice::All, 10).await.unwrap();
    found.sort();
    assert_eq!(
        found,
        [vec![None], vec![Some("de".to_string())], vec![Some("us".to_string())]]
    );
    assert_eq!(source.distinct(&read, &terms, &Slice::All, 1).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cuts_compare_in_the_columns_own_order() {
    let db = Db::new().await;
    shop(&db);
    let source = db.source();
    let schema = source.describe(&TableId::bare("orders")).await.unwrap();
    let read = ReadSpec::all(TableId::bare("orders"), &schema.columns);
    let ids = async |conditions: Vec<Condition>, key: Option<KeyRange>| {
        let slice = Slice::Cut(Cut { conditions, key });
        let mut ids: Vec<String> = read_spec(source.as_ref(), &read, slice)
            .await
            .unwrap()
            .into_iter()
            .filter_map(|r| r[0].clone())
            .collect();
        ids.sort();
        ids.join(",")
    };
    let test = |column: &str, test| {
        vec![Condition {
            term: Term::column(column),
            test,
        }]
    };
    let range = |lower: Option<&str>, upper: Option<&str>| Test::Range {
        lower: lower.map(String::from),
        upper: upper.map(String::from),
    };
    assert_eq!(
        ids(
            test(
                "at",
                range(Some("2024-01-01 00:00:00.5+00"), Some("2024-01-03 00:00:00+00"))
            ),
            None
        )
        .await,
        "1,2"
    );
    assert_eq!(ids(test("at", range(None, None)), None).await, "1,2,4");
    assert_eq!(ids(test("amount", range(Some("4.5"), Some("10.5"))), None).await, "2");
    // Beyond 2^53 two integers are one double.
    assert_eq!(
        ids(test("big", Test::In(vec!["9007199254740993".into()])), None).await,
        "1"
    );
    assert_eq!(ids(test("at", Test::Null), None).await, "3");
    let key = KeyRange {
        columns: vec!["id".into()],
        lower: Some(vec!["2".into()]),
        upper: None,
    };
    assert_eq!(ids(test("amount", Test::NotNull), Some(key)).await, "2,3,4");
    let on_sql = vec![Condition {
        term: Term::Sql("date(at)".into()),
        test: range(Some("2024-01-02"), Some("2024-01-03")),
    }];
    assert_eq!(ids(on_sql, None).await, "2");
    let e = source
        .extent(&read, &Term::column("at"), &Slice::All)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (e.min.as_str(), e.max.as_str()),
        ("2024-01-01 00:00:00.5+00", "2024-01-03 00:00:00+00")
    );
    let none = Slice::Cut(Cut {
        conditions: test("id", Test::In(vec![])),
        key: None,
    });
    assert_eq!(source.extent(&read, &Term::column("at"), &none).await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_has_one_snapshot_and_little_memory() {
    let db = Db::new().await;
    db.sql("CREATE TABLE t (id int PRIMARY KEY, v varchar(1000)); INSERT INTO t SELECT seq, repeat('x', 1000) FROM seq_1_to_20000");
    let source = db.source();
    let schema = source.describe(&TableId::bare("t")).await.unwrap();
    let spec = ReadSpec::all(TableId::bare("t"), &schema.columns);
    let context = ReadContext {
        budget: synctool_core::budget::Budget::new(1 << 20),
        batch_bytes: 64 << 10,
        ..ReadContext::default()
    };
    let mut reader = source
        .open(&spec, &partition(Slice::All), None, &context)
        .await
        .unwrap();
    let Some(Event::Rows(first)) = reader.next().await.unwrap() else {
        panic!()
    };
    assert!(first.bytes() < 200 << 10, "{} bytes", first.bytes());
    db.sql("DELETE FROM t WHERE id > 10");
    let mut rows = first.len();
    drop(first);
    while let Some(Event::Rows(b)) = reader.next().await.unwrap() {
        rows += b.len();
    }
    assert_eq!(rows, 20_000);
    let small = ReadContext {
        max_row_bytes: 500,
        ..ReadContext::default()
    };
    let mut reader = source.open(&spec, &partition(Slice::All), None, &small).await.unwrap();
    assert_eq!(reader.next().await.unwrap_err().code(), code::ROW_TOO_LARGE);
    // A reader that is given up does not read the rest: its session ends.
    db.sql("INSERT INTO t SELECT seq, repeat('x', 1000) FROM seq_11_to_20000");
    let mut reader = source
        .open(&spec, &partition(Slice::All), None, &context)
        .await
        .unwrap();
    reader.next().await.unwrap();
    drop(reader);
    synctool_testkit::eventually("the session ends", std::time::Duration::from_secs(10), async || {
        db.sql("SELECT count(*) FROM information_schema.processlist WHERE db = database() AND info LIKE 'SELECT `t`%'")
            == "0"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_other_databases_and_odd_names_are_read() {
    let db = Db::new().await;
    let other = MariaDb::shared().database("other");
    other.sql(
        "CREATE TABLE `select ``x``` (`a b` int PRIMARY KEY, `größe` int); INSERT INTO `select ``x``` VALUES (1, 2)",
    );
    other.sql("CREATE VIEW v AS SELECT 1 AS one");
    let source = db.source();
    let table = TableId::new(other.name(), "select `x`");
    let schema = source.describe(&table).await.unwrap();
    let rows = read_spec(source.as_ref(), &ReadSpec::all(table, &schema.columns), Slice::All)
        .await
        .unwrap();
    assert_eq!(rows, [row(&["1", "2"])]);
    let tables = source.tables(Some(other.name())).await.unwrap();
    let names: Vec<(&str, &str)> = tables
        .iter()
        .map(|t| (t.table.name.as_str(), t.kind.as_str()))
        .collect();
    assert_eq!(names, [("select `x`", "table"), ("v", "view")]);
}
