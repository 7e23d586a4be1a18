//! What may be read beyond whole tables.

use super::{Db, read, row};
use synctool_core::error::code;
use synctool_core::plan::{ReadColumn, ReadSpec, Slice};
use synctool_core::query::{Comparison, Condition, Cut, Filter, Join, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::ReadContext;
use synctool_core::testing::rows::Row;

fn shop() -> Db {
    Db::with(
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, city);
         INSERT INTO customers VALUES (1, 'Ada', 'Rome'), (2, 'ben', NULL), (3, 'Cem', 5);
         CREATE TABLE orders (id INTEGER PRIMARY KEY, customer INT, price DECIMAL_TEXT(10,2), at DATETIME, tag TEXT);
         INSERT INTO orders VALUES
           (1, 1, '9.50', '2024-01-31 23:59:59', 'a'), (2, 1, '10.00', '2024-02-01T00:00', 'A'),
           (3, 2, '-1.00', '2024-02-01 00:00:00.5', NULL), (4, 9, '100.00', NULL, 'b'), (5, NULL, NULL, '2024-03-01', 'b');
         UPDATE orders SET at = '2024-03-01 00:00:00' WHERE id = 5;",
    )
}

fn orders(columns: &[(&str, Term)]) -> ReadSpec {
    let columns = columns
        .iter()
        .map(|(name, term)| ReadColumn {
            source: name.to_string(),
            term: Some(term.clone()),
            column: Column::new(*name, ColumnType::Native),
        })
        .collect();
    ReadSpec {
        alias: Some("o".into()),
        ..ReadSpec::of(TableId::bare("orders"), columns)
    }
}

fn own(name: &str) -> Term {
    Term::column(name)
}

fn sql(text: &str) -> Term {
    Term::Sql(text.into())
}

/// The read with the types that describing it found.
async fn typed(db: &Db, mut read: ReadSpec) -> ReadSpec {
    let found = db.source().describe_query(&read).await.unwrap();
    for (column, found) in read.columns.iter_mut().zip(found) {
        column.column = found;
    }
    read
}

async fn rows(db: &Db, spec: &ReadSpec, slice: Slice) -> Vec<Row> {
    let mut rows = read(db.source().as_ref(), spec, slice, None, &ReadContext::default())
        .await
        .unwrap()
        .0;
    rows.sort();
    rows
}

/// The ids of the orders that meet a condition.
async fn ids(db: &Db, term: Term, test: Test) -> Vec<String> {
    let read = typed(db, orders(&[("id", own("id"))])).await;
    let slice = Slice::Cut(Cut {
        conditions: vec![Condition { term, test }],
        key: None,
    });
    rows(db, &read, slice)
        .await
        .into_iter()
        .map(|r| r[0].clone().unwrap())
        .collect()
}

fn range(lower: Option<&str>, upper: Option<&str>) -> Test {
    Test::Range {
        lower: lower.map(Into::into),
        upper: upper.map(Into::into),
    }
}

#[tokio::test]
async fn values_compare_by_what_they_mean() {
    let db = shop();
    let at = own("at");
    // The forms of one moment are mixed: what counts is when it was.
    assert_eq!(
        ids(
            &db,
            at.clone(),
            range(Some("2024-02-01 00:00:00"), Some("2024-02-01 00:00:00.5"))
        )
        .await,
        ["2"]
    );
    assert_eq!(
        ids(&db, at.clone(), range(None, Some("2024-02-01 00:00:00"))).await,
        ["1"]
    );
    assert_eq!(
        ids(&db, at.clone(), range(Some("2024-02-01 00:00:00.5"), None)).await,
        ["3", "5"]
    );
    assert_eq!(ids(&db, at, Test::Null).await, ["4"]);
    let price = own("price");
    assert_eq!(ids(&db, price.clone(), range(Some("-1"), Some("10"))).await, ["1", "3"]);
    assert_eq!(
        ids(&db, price.clone(), Test::In(vec!["10".into(), "100.0".into()])).await,
        ["2", "4"]
    );
    assert_eq!(
        ids(&db, price.clone(), Test::Compare(Comparison::Greater, "9.5".into())).await,
        ["2", "4"]
    );
    assert_eq!(ids(&db, price, range(None, None)).await, ["1", "2", "3", "4"]);
    let doubled = sql("price * 2 -- a comment");
    assert_eq!(
        ids(&db, doubled, Test::Compare(Comparison::GreaterOrEqual, "20".into())).await,
        ["2", "4"]
    );
    let tag = own("tag");
    assert_eq!(
        ids(&db, tag.clone(), Test::Compare(Comparison::Equal, "b".into())).await,
        ["4", "5"]
    );
    assert_eq!(ids(&db, tag, Test::NotNull).await, ["1", "2", "4", "5"]);
}

#[tokio::test]
async fn rows_are_found_by_name() {
    let db = shop();
    let read = typed(&db, orders(&[("id", own("id"))])).await;
    let some = |t: &str| Some(t.to_string());
    let named = |terms: &[Term], keys: Vec<Vec<Option<String>>>| {
        Slice::Keys(KeyList {
            terms: terms.to_vec(),
            keys,
        })
    };
    let found = |slice| rows(&db, &read, slice);
    let one = |ids: &[&str]| ids.iter().map(|i| row(&[i])).collect::<Vec<_>>();
    // Twice named is once found; what is not there is no error.
    let keys = vec![vec![some("1")], vec![some("4")], vec![some("1")], vec![some("77")]];
    assert_eq!(found(named(&[own("id")], keys)).await, one(&["1", "4"]));
    let keys = vec![vec![None], vec![some("9")]];
    assert_eq!(found(named(&[own("customer")], keys)).await, one(&["4", "5"]));
    let keys = vec![vec![some("1"), some("10")], vec![None, None], vec![some("9"), None]];
    assert_eq!(
        found(named(&[own("customer"), own("price")], keys)).await,
        one(&["2", "5"])
    );
    let keys = vec![vec![some("2024-02-01 00:00:00")]];
    assert_eq!(found(named(&[own("at")], keys)).await, one(&["2"]));
    assert_eq!(found(named(&[own("id")], Vec::new())).await, one(&[]));
    let many = (0..50_000).map(|i| vec![Some(i.to_string())]).collect();
    assert_eq!(found(named(&[own("id")], many)).await.len(), 5);
}

#[tokio::test]
async fn joins_filters_and_expressions_are_read() {
    let db = shop();
    let mut read = orders(&[
        ("id", own("id")),
        (
            "who",
            Term::Column {
                relation: Some("c".into()),
                name: "name".into(),
            },
        ),
        ("gross", sql("round(o.price * 1.2, 2)")),
    ]);
    read.joins.push(Join {
        table: TableId::bare("customers"),
        alias: Some("c".into()),
        kind: JoinKind::Left,
        on: "c.id = o.customer".into(),
    });
    read.filters
        .push(Filter::Sql("o.id < 5 OR false -- not the last".into()));
    read.filters.push(Filter::Test(Condition {
        term: own("tag"),
        test: Test::NotNull,
    }));
    let typed = typed(&db, read).await;
    let types: Vec<(String, bool)> = typed
        .columns
        .iter()
        .map(|c| (c.column.ty.to_string(), c.column.nullable))
        .collect();
    assert_eq!(
        types,
        [("bigint".into(), false), ("text".into(), true), ("double".into(), true)]
    );
    assert_eq!(
        rows(&db, &typed, Slice::All).await,
        [
            row(&["1", "Ada", "11.4"]),
            row(&["2", "Ada", "12"]),
            row(&["4", "NULL", "120"])
        ]
    );
    // A full join has rows that no order is of.
    let mut full = typed.clone();
    full.joins[0].kind = JoinKind::Full;
    full.filters.clear();
    let found = rows(&db, &full, Slice::All).await;
    assert_eq!(found.len(), 6);
    assert_eq!(found[0], row(&["NULL", "Cem", "NULL"]));
    assert!(db.source().describe_query(&full).await.unwrap()[0].nullable);
}

#[tokio::test]
async fn groups_are_read() {
    let db = shop();
    let mut read = orders(&[("tag", own("tag")), ("n", sql("count(*)")), ("most", sql("max(id)"))]);
    read.group_by = vec!["tag".into()];
    let read = typed(&db, read).await;
    assert_eq!(
        read.columns.iter().map(|c| c.column.ty.clone()).collect::<Vec<_>>(),
        [ColumnType::Text { max: None }, ColumnType::Int64, ColumnType::Int64]
    );
    assert_eq!(
        rows(&db, &read, Slice::All).await,
        [
            row(&["NULL", "1", "3"]),
            row(&["A", "1", "2"]),
            row(&["a", "1", "1"]),
            row(&["b", "2", "5"])
        ]
    );
    let groups = Slice::Keys(KeyList {
        terms: vec![own("tag")],
        keys: vec![vec![None], vec![Some("b".into())], vec![Some("z".into())]],
    });
    assert_eq!(
        rows(&db, &read, groups).await,
        [row(&["NULL", "1", "3"]), row(&["b", "2", "5"])]
    );
}

#[tokio::test]
async fn ends_and_distinct_values_are_told() {
    let db = shop();
    let source = db.source();
    let read = orders(&[("id", own("id"))]);
    let extent = |term: Term, slice: Slice| {
        let (source, read) = (source.clone(), read.clone());
        async move {
            source
                .extent(&read, &term, &slice)
                .await
                .unwrap()
                .map(|e| (e.min, e.max))
        }
    };
    let ends = |a: &str, b: &str| Some((a.to_string(), b.to_string()));
    assert_eq!(extent(own("price"), Slice::All).await, ends("-1.00", "100.00"));
    assert_eq!(
        extent(own("at"), Slice::All).await,
        ends("2024-01-31 23:59:59", "2024-03-01 00:00:00")
    );
    assert_eq!(extent(sql("id % 3"), Slice::All).await, ends("0", "2"));
    let none = Slice::Cut(Cut {
        conditions: vec![Condition {
            term: own("id"),
            test: range(Some("100"), None),
        }],
        key: None,
    });
    assert_eq!(extent(own("id"), none).await, None);
    let mut tags = source
        .distinct(&read, &[own("tag"), sql("customer IS NULL")], &Slice::All, 10)
        .await
        .unwrap();
    tags.sort();
    assert_eq!(
        tags,
        [
            row(&["NULL", "0"]),
            row(&["A", "0"]),
            row(&["a", "0"]),
            row(&["b", "0"]),
            row(&["b", "1"])
        ]
    );
    assert_eq!(
        source
            .distinct(&read, &[own("tag")], &Slice::All, 2)
            .await
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn filtered_rows_are_resumed_and_cut() {
    let db = Db::with(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) INSERT INTO t SELECT i, 'v' || i FROM n;",
    );
    let source = db.source();
    let schema = source.describe(&TableId::bare("t")).await.unwrap();
    let mut spec = ReadSpec::all(TableId::bare("t"), &schema.columns);
    spec.filters.push(Filter::Sql("id % 2 = 0".into()));
    let context = ReadContext {
        batch_bytes: 2000,
        ..ReadContext::default()
    };
    let (all, stops) = read(source.as_ref(), &spec, Slice::All, None, &context).await.unwrap();
    assert_eq!(all.len(), 1500);
    assert!(stops.len() > 5);
    for (before, position) in stops.iter().step_by(7) {
        let (rest, _) = read(source.as_ref(), &spec, Slice::All, Some(position), &context)
            .await
            .unwrap();
        assert_eq!(rest, all[*before..]);
    }
}

#[tokio::test]
async fn mistakes_in_sql_are_named() {
    let db = shop();
    let source = db.source();
    let fails = |read: ReadSpec| {
        let source = source.clone();
        async move {
            let e = source.describe_query(&read).await.unwrap_err();
            assert_eq!(e.kind(), synctool_core::error::ErrorKind::Config, "{e}");
            e.to_string()
        }
    };
    let e = fails(orders(&[("id", own("id")), ("x", sql("pricy + 1"))])).await;
    assert!(
        e.contains("pricy + 1") && e.contains("column x") && e.contains("no such column"),
        "{e}"
    );
    let mut read = orders(&[("id", own("id"))]);
    read.filters.push(Filter::Sql("id >".into()));
    assert!(fails(read.clone()).await.contains("the filter id >"));
    read.filters.clear();
    read.joins.push(Join {
        table: TableId::bare("customers"),
        alias: None,
        kind: JoinKind::Inner,
        on: "nobody.id = 1".into(),
    });
    assert!(fails(read).await.contains("nobody.id = 1"));
    let missing = orders(&[("id", own("ids"))]);
    assert_eq!(
        source.describe_query(&missing).await.unwrap_err().code(),
        code::COLUMN_MISSING
    );
}
