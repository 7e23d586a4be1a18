//! Reading joins, filters, expressions, groups, and rows named one by one.

use std::time::Duration;
use synctool_connectors::postgres::{Postgres, PostgresConfig, source::PostgresSource};
use synctool_core::change::{Event, KeyRange};
use synctool_core::error::{Result, code};
use synctool_core::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::query::{Comparison, Condition, Cut, Filter, Join, JoinKind, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::{Extent, ReadContext, Source};
use synctool_core::text;
use synctool_testkit::{PgVersion, Postgres as Server, TestDb, eventually};

fn database(version: PgVersion) -> (TestDb, PostgresSource) {
    let db = Server::shared(version).database("query");
    db.psql(
        "CREATE TYPE mood AS ENUM ('sad', 'ok');
         CREATE TABLE shops (id int PRIMARY KEY, name text NOT NULL, town varchar(20));
         CREATE TABLE orders (id int PRIMARY KEY, shop int, amount numeric(8,2) NOT NULL, at timestamptz, feeling mood);
         INSERT INTO shops VALUES (1, 'one', 'Ulm'), (2, 'two', NULL), (3, 'three', 'Köln');
         INSERT INTO orders VALUES
           (1, 1, 10.50, '2024-01-01 10:00+00', 'ok'), (2, 1, 5, '2024-01-02 10:00+00', NULL),
           (3, 2, 7.25, '2024-01-02 11:00+00', 'sad'), (4, NULL, 1, NULL, 'ok'), (5, 9, 2, 'infinity', 'ok')",
    );
    let source = Postgres::open(PostgresConfig::from_url(&db.url()).unwrap())
        .unwrap()
        .source();
    (db, source)
}

fn column(name: &str, term: Option<Term>) -> ReadColumn {
    ReadColumn {
        source: name.into(),
        term,
        column: Column::new(name, ColumnType::Native),
    }
}

fn sql(name: &str, text: &str) -> ReadColumn {
    column(name, Some(Term::Sql(text.into())))
}

fn orders(columns: Vec<ReadColumn>) -> ReadSpec {
    let mut read = ReadSpec::of(TableId::bare("orders"), columns);
    read.alias = Some("o".into());
    read
}

fn with_shops(mut read: ReadSpec, kind: JoinKind) -> ReadSpec {
    read.joins.push(Join {
        table: TableId::bare("shops"),
        alias: Some("s".into()),
        kind,
        on: "s.id = o.shop".into(),
    });
    read
}

async fn typed(source: &PostgresSource, mut read: ReadSpec) -> Result<ReadSpec> {
    let columns = source.describe_query(&read).await?;
    for (c, column) in read.columns.iter_mut().zip(columns) {
        c.column = column;
    }
    Ok(read)
}

async fn rows(source: &PostgresSource, read: &ReadSpec, slice: Slice) -> Result<Vec<Vec<Option<String>>>> {
    let partition = Partition::new("p", Work::Read(slice));
    let mut reader = source.open(read, &partition, None, &ReadContext::default()).await?;
    let mut rows = Vec::new();
    while let Some(event) = reader.next().await? {
        if let Event::Rows(batch) = event {
            for row in 0..batch.len() {
                rows.push(
                    batch
                        .rows
                        .columns()
                        .iter()
                        .map(|c| text::cell(c, row).unwrap())
                        .collect(),
                );
            }
        }
    }
    rows.sort();
    Ok(rows)
}

fn shown(rows: &[Vec<Option<String>>]) -> Vec<String> {
    rows.iter()
        .map(|r| {
            r.iter()
                .map(|c| c.as_deref().unwrap_or("-"))
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect()
}

async fn joins_filters_terms_and_groups(version: PgVersion) {
    let (_db, source) = database(version);
    let joined = with_shops(
        orders(vec![
            column("id", None),
            column(
                "town",
                Some(Term::Column {
                    relation: Some("s".into()),
                    name: "town".into(),
                }),
            ),
            sql("gross", "round(o.amount * 1.19, 2) -- with tax"),
            sql("mood", "o.feeling"),
            sql("big", "o.amount > 6"),
        ]),
        JoinKind::Left,
    );
    let mut joined = typed(&source, joined).await.unwrap();
    let types: Vec<(&ColumnType, bool, &str)> = joined
        .columns
        .iter()
        .map(|c| {
            (
                &c.column.ty,
                c.column.nullable,
                c.column.source_type.as_deref().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        types,
        [
            (&ColumnType::Int32, false, "integer"),
            (&ColumnType::Text { max: Some(20) }, true, "character varying(20)"),
            (&ColumnType::Numeric, true, "numeric"),
            (&ColumnType::Native, true, "public.mood"),
            (&ColumnType::Bool, true, "boolean"),
        ]
    );
    let all = rows(&source, &joined, Slice::All).await.unwrap();
    assert_eq!(
        shown(&all),
        [
            "1|Ulm|12.50|ok|true",
            "2|Ulm|5.95|-|false",
            "3|-|8.63|sad|true",
            "4|-|1.19|ok|false",
            "5|-|2.38|ok|false"
        ]
    );
    joined.filters = vec![
        Filter::Sql("o.id < 4 OR s.id IS NULL".into()),
        Filter::Test(Condition {
            term: Term::column("amount"),
            test: Test::Compare(Comparison::Greater, "1.5".into()),
        }),
    ];
    let range = Slice::Key(KeyRange {
        columns: vec!["id".into()],
        lower: Some(vec!["2".into()]),
        upper: None,
    });
    let some = rows(&source, &joined, range).await.unwrap();
    assert_eq!(
        some.iter().map(|r| r[0].as_deref().unwrap()).collect::<Vec<_>>(),
        ["2", "3", "5"]
    );
    let full = typed(&source, with_shops(orders(vec![column("id", None)]), JoinKind::Full))
        .await
        .unwrap();
    assert!(
        full.columns[0].column.nullable,
        "a full join makes every column nullable"
    );
    assert_eq!(rows(&source, &full, Slice::All).await.unwrap().len(), 6);

    let mut groups = orders(vec![
        column("shop", None),
        sql("day", "date_trunc('day', o.at)"),
        sql("n", "count(*)"),
        sql("total", "sum(o.amount)"),
    ]);
    groups.group_by = vec!["shop".into(), "day".into()];
    groups.filters = vec![Filter::Sql("o.id < 5".into())];
    let groups = typed(&source, groups).await.unwrap();
    let all = rows(&source, &groups, Slice::All).await.unwrap();
    assert_eq!(
        shown(&all),
        [
            "-|-|1|1.00",
            "1|2024-01-01 00:00:00+00|1|10.50",
            "1|2024-01-02 00:00:00+00|1|5.00",
            "2|2024-01-02 00:00:00+00|1|7.25"
        ]
    );
    // Conditions on groups choose rows before they are counted; NULL names the group of NULL.
    let keys = Slice::Keys(KeyList {
        terms: vec![groups.columns[0].term(), groups.columns[1].term()],
        keys: vec![
            vec![Some("2".into()), Some("2024-01-02 00:00:00+00".into())],
            vec![Some("1".into()), Some("2024-01-02 00:00:00+00".into())],
            vec![None, None],
            vec![Some("7".into()), None],
        ],
    });
    let named = rows(&source, &groups, keys).await.unwrap();
    assert_eq!(shown(&named), [0, 2, 3].map(|i| shown(&all)[i].clone()));
    let cut = Slice::Cut(Cut {
        conditions: vec![Condition {
            term: groups.columns[1].term(),
            test: Test::Range {
                lower: Some("2024-01-02".into()),
                upper: None,
            },
        }],
        key: Some(KeyRange {
            columns: vec!["shop".into()],
            lower: None,
            upper: Some(vec!["2".into()]),
        }),
    });
    assert_eq!(
        shown(&rows(&source, &groups, cut).await.unwrap()),
        [shown(&all)[2].clone()]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_filters_terms_and_groups_pg15() {
    joins_filters_terms_and_groups(PgVersion::V15).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joins_filters_terms_and_groups_pg18() {
    joins_filters_terms_and_groups(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_sql_is_blamed_in_the_users_words() {
    let (db, source) = database(PgVersion::V15);
    db.psql("INSERT INTO shops VALUES (77, 'sesame', 'sesame')");
    let plain = || {
        with_shops(
            orders(vec![column("id", None), sql("ä", "o.amount * 2")]),
            JoinKind::Inner,
        )
    };
    type Spoil = fn(&mut ReadSpec);
    let cases: [(Spoil, &[&str]); 6] = [
        (
            |r| r.columns[1].term = Some(Term::Sql("o.amuont * 2".into())),
            &["expression of column ä", "character 1", "o.amuont"],
        ),
        (|r| r.filters.push(Filter::Sql("o.id >> 'x' AND".into())), &["filter 1"]),
        (
            |r| r.filters.push(Filter::Sql("o.id = 1 AND nonsense(o.id)".into())),
            &["filter 1", "character 14", "nonsense"],
        ),
        (
            |r| r.joins[0].on = "s.idd = o.shop".into(),
            &["the join with shops", "character 1", "idd"],
        ),
        (
            |r| {
                r.columns[0].term = Some(Term::column("shop"));
                r.group_by = vec!["id".into()];
            },
            &["expression of column ä", "GROUP BY"],
        ),
        (
            |r| r.columns[1].term = Some(Term::Sql("'sesame'::int".into())),
            &["expression of column ä"],
        ),
    ];
    for (spoil, says) in cases {
        let mut read = plain();
        spoil(&mut read);
        let e = source.describe_query(&read).await.unwrap_err();
        assert_eq!(e.code(), code::CONFIG_INVALID, "{e}");
        for word in says {
            assert!(e.to_string().contains(word), "{word}: {e}");
        }
        assert!(!e.to_string().contains("sesame"), "{e}");
    }
    let mut missing = plain();
    missing.joins[0].table = TableId::bare("shop");
    let e = source.describe_query(&missing).await.unwrap_err();
    assert!(
        e.code() == code::TABLE_MISSING && e.to_string().contains("public.shops"),
        "{e}"
    );
    // What fails on a row says nothing of the row.
    let mut failing = typed(&source, plain()).await.unwrap();
    failing.filters.push(Filter::Sql("(s.name || '')::int > 0".into()));
    let e = rows(&source, &failing, Slice::All).await.unwrap_err();
    assert!(
        !e.to_string().contains("one") && !e.to_string().contains("sesame"),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_and_distinct_values_are_canonical() {
    let (db, source) = database(PgVersion::V18);
    let read = with_shops(orders(vec![column("id", None)]), JoinKind::Left);
    let at = source.extent(&read, &Term::column("at"), &Slice::All).await.unwrap();
    let extent = |min: &str, max: &str| {
        Some(Extent {
            min: min.into(),
            max: max.into(),
        })
    };
    assert_eq!(at, extent("2024-01-01 10:00:00+00", "infinity"));
    // Numbers are ordered as numbers, and not as the texts that are shown of them.
    db.psql("CREATE TABLE counted AS SELECT i FROM generate_series(-5, 120) i");
    let counted = TableId::new("public", "counted");
    let schema = source.describe(&counted).await.unwrap();
    let numbers = ReadSpec::all(counted, &schema.columns);
    assert_eq!(
        source.extent(&numbers, &Term::column("i"), &Slice::All).await.unwrap(),
        extent("-5", "120")
    );
    let key = |lower: i32| {
        Slice::Key(KeyRange {
            columns: vec!["id".into()],
            lower: Some(vec![lower.to_string()]),
            upper: Some(vec!["5".into()]),
        })
    };
    let float = Term::Sql("o.amount::float8 * 1e20".into());
    assert_eq!(
        source.extent(&read, &float, &key(3)).await.unwrap(),
        extent("1e20", "7.25e20")
    );
    assert_eq!(source.extent(&read, &Term::column("at"), &key(4)).await.unwrap(), None);
    assert_eq!(
        source
            .extent(&read, &Term::Sql("o.amount > 3".into()), &Slice::All)
            .await
            .unwrap(),
        extent("false", "true")
    );

    let town = Term::Column {
        relation: Some("s".into()),
        name: "town".into(),
    };
    let terms = [Term::column("shop"), town];
    let mut found = source.distinct(&read, &terms, &Slice::All, 10).await.unwrap();
    found.sort();
    assert_eq!(shown(&found), ["-|-", "1|Ulm", "2|-", "9|-"]);
    assert_eq!(source.distinct(&read, &terms, &Slice::All, 2).await.unwrap().len(), 2);
    let e = source
        .extent(&read, &Term::Sql("o.nothing".into()), &Slice::All)
        .await
        .unwrap_err();
    assert!(
        e.code() == code::CONFIG_INVALID && e.to_string().contains("o.nothing"),
        "{e}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_named_one_by_one_are_looked_up() {
    let (db, source) = database(PgVersion::V18);
    db.psql(
        "CREATE TABLE large (a int, b varchar(3), c char(4), n int, pad text, PRIMARY KEY (a, b, c));
         INSERT INTO large SELECT i, 'b' || i % 90, 'c', nullif(i % 50000, 0), repeat('x', 100) FROM generate_series(1, 150000) i;
         CREATE INDEX ON large (n); ANALYZE large",
    );
    let id = TableId::bare("large");
    let schema = source.describe(&id).await.unwrap();
    let mut read = ReadSpec::all(id, &schema.columns[..4]);
    read.columns.truncate(4);
    let composite: Vec<Vec<Option<String>>> = (0..3000)
        .map(|i| {
            vec![
                Some((i * 40 + 1).to_string()),
                Some(format!("b{}", (i * 40 + 1) % 90)),
                Some("c".into()),
            ]
        })
        // Cut to three characters it would be there.
        .chain([vec![Some("11".into()), Some("b11x".into()), Some("c".into())]])
        .collect();
    let terms = |names: &[&str]| names.iter().map(|n| Term::column(*n)).collect::<Vec<_>>();
    let list = |names: &[&str], keys| {
        Slice::Keys(KeyList {
            terms: terms(names),
            keys,
        })
    };
    let found = rows(&source, &read, list(&["a", "b", "c"], composite)).await.unwrap();
    assert_eq!(found.len(), 3000);
    let nulls = rows(
        &source,
        &read,
        list(
            &["n"],
            vec![vec![None], vec![Some("7".into())], vec![Some("-1".into())]],
        ),
    )
    .await
    .unwrap();
    assert_eq!(nulls.len(), 6);
    let mixed = vec![
        vec![Some("50000".into()), None],
        vec![Some("7".into()), Some("7".into())],
        vec![Some("8".into()), None],
    ];
    assert_eq!(rows(&source, &read, list(&["a", "n"], mixed)).await.unwrap().len(), 2);
    drop(source);
    eventually("the server counted the lookups", Duration::from_secs(30), async || {
        db.psql("SELECT idx_scan > 0 FROM pg_stat_user_tables WHERE relname = 'large'") == "t"
    })
    .await;
    // CREATE INDEX and ANALYZE read it in their own ways.
    let before = "SELECT seq_tup_read <= 300000 FROM pg_stat_user_tables WHERE relname = 'large'";
    assert_eq!(db.psql(before), "t", "a lookup read the whole table");
}
