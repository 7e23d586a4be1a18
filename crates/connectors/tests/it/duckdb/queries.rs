//! What may be read beyond whole tables.

use std::sync::Arc;
use synctool_connectors::duckdb::{DuckDb, DuckDbConfig};
use synctool_core::change::Event;
use synctool_core::error::ErrorKind;
use synctool_core::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::query::{Comparison, Condition, Cut, Filter, Join, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{ReadContext, SliceRequest, Source};
use synctool_core::testing::rows::{Row, texts};

/// Somebody else's database: written before we open it.
pub(super) fn foreign(path: &std::path::Path, statements: &[&str]) {
    use adbc_core::options::{AdbcVersion, OptionDatabase, OptionValue};
    use adbc_core::{Connection as _, Database as _, Driver as _, Statement as _};
    let library = synctool_testkit::libduckdb();
    let mut driver = adbc_driver_manager::ManagedDriver::load_dynamic_from_filename(
        library,
        Some(b"duckdb_adbc_init"),
        AdbcVersion::V110,
    )
    .unwrap();
    let path = OptionValue::String(path.to_string_lossy().into_owned());
    let database = driver
        .new_database_with_opts([(OptionDatabase::Other("path".into()), path)])
        .unwrap();
    let mut connection = database.new_connection().unwrap();
    for sql in ["SET TimeZone = 'UTC'"].iter().chain(statements) {
        let mut statement = connection.new_statement().unwrap();
        statement.set_sql_query(sql).unwrap();
        statement.execute_update().unwrap();
    }
}

async fn shop() -> (tempfile::TempDir, Arc<dyn Source>) {
    let folder = tempfile::tempdir().unwrap();
    let config = DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library: Some(synctool_testkit::libduckdb()),
        create: true,
    };
    let statements = [
        "CREATE TABLE customers (id INTEGER PRIMARY KEY, name VARCHAR)",
        "INSERT INTO customers VALUES (1, 'Ada'), (2, 'Ben'), (3, 'Cem')",
        "CREATE TABLE orders (id BIGINT PRIMARY KEY, customer INTEGER, price DECIMAL(10,2), \"at\" TIMESTAMPTZ, b BLOB)",
        "INSERT INTO orders VALUES (1, 1, 9.5, '2024-01-31 23:59:59+00', '\\x00\\xFF'), (2, 1, 10, 'infinity', '\\x01'), \
         (3, 2, -1, '0044-03-15 (BC)', NULL), (4, 9, 100, NULL, ''), (5, NULL, NULL, '2024-03-01', 'a')",
    ];
    foreign(&config.path, &statements);
    let source = DuckDb::open(config).await.unwrap().source();
    (folder, source)
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

async fn typed(source: &dyn Source, mut read: ReadSpec) -> ReadSpec {
    let found = source.describe_query(&read).await.unwrap();
    for (column, found) in read.columns.iter_mut().zip(found) {
        column.column = found;
    }
    read
}

async fn rows(source: &dyn Source, read: &ReadSpec, slice: Slice) -> Vec<Row> {
    let partition = Partition::new("all", Work::Read(slice));
    let mut reader = source
        .open(read, &partition, None, &ReadContext::default())
        .await
        .unwrap();
    let mut rows = Vec::new();
    while let Some(event) = reader.next().await.unwrap() {
        if let Event::Rows(b) = event {
            rows.extend(texts(&b.rows).unwrap());
        }
    }
    rows.sort();
    rows
}

fn own(name: &str) -> Term {
    Term::column(name)
}

fn row(cells: &[&str]) -> Row {
    cells.iter().map(|c| (*c != "NULL").then(|| c.to_string())).collect()
}

/// A row without a key is in no range of keys.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_key_are_not_left_out_of_slices() {
    for (more, whole) in [("SELECT -1", false), ("SELECT NULL", true)] {
        let folder = tempfile::tempdir().unwrap();
        let config = DuckDbConfig {
            path: folder.path().join("t.duckdb"),
            library: Some(synctool_testkit::libduckdb()),
            create: true,
        };
        let fill = format!("INSERT INTO t SELECT range FROM range(1000000) UNION ALL {more}");
        foreign(&config.path, &["CREATE TABLE t (id BIGINT)", &fill]);
        let source = DuckDb::open(config).await.unwrap().source();
        let read = ReadSpec::all(TableId::bare("t"), &[Column::new("id", ColumnType::Int64)]);
        let request = SliceRequest {
            key: vec!["id".into()],
            step: None,
            min_slices: 4,
            max_slice_bytes: 1 << 30,
            single: false,
        };
        let slices = source.slices(&read, &request).await.unwrap();
        assert_eq!(slices.len() == 1, whole, "{more}: {slices:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_and_keys() {
    let (_folder, source) = shop().await;
    let source = source.as_ref();
    let read = typed(source, orders(&[("id", own("id"))])).await;
    let ids = |term: Term, test: Test| {
        let slice = Slice::Cut(Cut {
            conditions: vec![Condition { term, test }],
            key: None,
        });
        let read = &read;
        async move {
            rows(source, read, slice)
                .await
                .into_iter()
                .map(|r| r[0].clone().unwrap())
                .collect::<Vec<_>>()
        }
    };
    let range = |l: Option<&str>, u: Option<&str>| Test::Range {
        lower: l.map(Into::into),
        upper: u.map(Into::into),
    };
    assert_eq!(ids(own("price"), range(Some("-1.00"), Some("10.00"))).await, ["1", "3"]);
    assert_eq!(
        ids(
            own("at"),
            range(Some("0044-03-15 00:00:00+00 BC"), Some("2024-03-01 00:00:00+00"))
        )
        .await,
        ["1", "3"]
    );
    assert_eq!(
        ids(own("at"), Test::Compare(Comparison::Equal, "infinity".into())).await,
        ["2"]
    );
    assert_eq!(ids(own("at"), Test::Null).await, ["4"]);
    let or_null = |lower: Option<&str>, upper: Option<&str>| Test::NullOrRange {
        lower: lower.map(Into::into),
        upper: upper.map(Into::into),
    };
    assert_eq!(
        ids(own("at"), or_null(None, Some("2024-03-01 00:00:00+00"))).await,
        ["1", "3", "4"]
    );
    assert_eq!(ids(own("at"), or_null(None, None)).await.len(), 5);
    assert_eq!(
        ids(own("b"), Test::In(vec!["\\x00ff".into(), "\\x".into()])).await,
        ["1", "4"]
    );
    assert_eq!(
        ids(
            Term::Sql("id % 2 -- odd".into()),
            Test::Compare(Comparison::Equal, "1".into())
        )
        .await,
        ["1", "3", "5"]
    );
    let some = |t: &str| Some(t.to_string());
    for (terms, keys, found) in [
        (
            vec![own("id")],
            vec![vec![some("4")], vec![some("4")], vec![some("77")]],
            vec!["4"],
        ),
        (
            vec![own("customer"), own("price")],
            vec![vec![some("1"), some("10.00")], vec![None, None]],
            vec!["2", "5"],
        ),
        (vec![own("id")], vec![], vec![]),
    ] {
        let got = rows(source, &read, Slice::Keys(KeyList { terms, keys })).await;
        assert_eq!(got, found.iter().map(|i| row(&[i])).collect::<Vec<_>>());
    }
    let e = source.extent(&read, &own("at"), &Slice::All).await.unwrap().unwrap();
    assert_eq!(
        (e.min.as_str(), e.max.as_str()),
        ("0044-03-15 00:00:00+00 BC", "infinity")
    );
    let mut distinct = source
        .distinct(&read, &[own("customer")], &Slice::All, 10)
        .await
        .unwrap();
    distinct.sort();
    assert_eq!(distinct, [row(&["NULL"]), row(&["1"]), row(&["2"]), row(&["9"])]);
}

/// A filter's value is what its author wrote, as in every engine: DuckDB itself knows `yes`, and not `on`.
#[tokio::test(flavor = "multi_thread")]
async fn filters_take_values_as_people_write_them() {
    let (_folder, source) = shop().await;
    let dear = || Term::Sql("o.price > 9".into());
    for (term, value, ids) in [
        (dear(), "on", &["1", "2", "4"][..]),
        (dear(), " yes", &["1", "2", "4"]),
        (dear(), "off", &["3"]),
        (dear(), "no", &["3"]),
        (own("at"), "2024-03-01", &["5"]),
        (own("at"), "2024-03-01T01:00:00+01:00", &["5"]),
    ] {
        for test in [
            Test::Compare(Comparison::Equal, value.into()),
            Test::In(vec![value.into()]),
        ] {
            let mut read = typed(source.as_ref(), orders(&[("id", own("id"))])).await;
            read.filters.push(Filter::Test(Condition {
                term: term.clone(),
                test,
            }));
            let found = rows(source.as_ref(), &read, Slice::All).await;
            assert_eq!(
                found,
                ids.iter().map(|i| row(&[i])).collect::<Vec<_>>(),
                "{term} {value}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn joins_groups_and_mistakes() {
    let (_folder, source) = shop().await;
    let source = source.as_ref();
    let name = Term::Column {
        relation: Some("c".into()),
        name: "name".into(),
    };
    let mut read = orders(&[
        ("name", name),
        ("n", Term::Sql("count(*)".into())),
        ("total", Term::Sql("sum(o.price)".into())),
    ]);
    read.joins.push(Join {
        table: TableId::bare("customers"),
        alias: Some("c".into()),
        kind: JoinKind::Left,
        on: "c.id = o.customer".into(),
    });
    read.filters.push(Filter::Sql("o.id < 5".into()));
    read.group_by = vec!["name".into()];
    let read = typed(source, read).await;
    assert_eq!(
        read.columns[2].column.ty,
        ColumnType::Decimal {
            precision: 38,
            scale: 2
        }
    );
    assert_eq!(
        rows(source, &read, Slice::All).await,
        [
            row(&["NULL", "1", "100.00"]),
            row(&["Ada", "2", "19.50"]),
            row(&["Ben", "1", "-1.00"])
        ]
    );
    let mut wrong = orders(&[("x", Term::Sql("pricy + 1".into()))]);
    let e = source.describe_query(&wrong).await.unwrap_err();
    assert!(
        e.kind() == ErrorKind::Config && e.to_string().contains("pricy + 1"),
        "{e}"
    );
    wrong.columns[0].term = Some(own("id"));
    wrong.filters.push(Filter::Sql("id >".into()));
    let e = source.describe_query(&wrong).await.unwrap_err();
    assert!(
        e.kind() == ErrorKind::Config && e.to_string().contains("the filter id >"),
        "{e}"
    );
}
