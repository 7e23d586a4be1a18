//! Dimensions from SQLite and PostgreSQL, with caches in memory and in Redis.

use crate::{Datastores, TEXT, absent, build, changes, decimal, inserts, run, table};
use std::sync::Arc;
use std::time::Duration;
use synctool_connectors::postgres::{Postgres, PostgresConfig};
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::code;
use synctool_core::schema::{ColumnType, TableId};
use synctool_core::source::Source;
use synctool_core::stage::Stages;
use synctool_testkit::{FaultProxy, PgVersion, Postgres as PostgresServer, Redis, proxy::Mode};
use synctool_transform::{
    AsOf, CacheSpec, CachedDimension, EnrichJoin, EnrichSpec, Field, JoinOn, Lookup, LookupStats, RedisSpec, Several,
    SourceLookup, StageSpec,
};
use tempfile::TempDir;

struct Db {
    dir: TempDir,
    source: Arc<dyn Source>,
}

impl Db {
    fn with(sql: &str) -> Db {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.db");
        let source = Sqlite::open(SqliteConfig::new(&path)).unwrap().source();
        let db = Db { dir, source };
        db.run(sql);
        db
    }

    fn run(&self, sql: &str) {
        let conn = rusqlite::Connection::open(self.dir.path().join("d.db")).unwrap();
        conn.execute_batch(sql).unwrap();
    }

    fn stores(&self) -> Datastores {
        Datastores::from([("dims".to_string(), self.source.clone())])
    }
}

const SEGMENTS: &str = "CREATE TABLE segments (id INTEGER PRIMARY KEY, segment TEXT, score NUMERIC(6,2));
    INSERT INTO segments VALUES (1, 'gold', 12.5), (2, 'silver', NULL), (4, NULL, 3);";

fn segments() -> EnrichSpec {
    EnrichSpec {
        dimension: "customer_segment".into(),
        datastore: "dims".into(),
        table: TableId::bare("segments"),
        on: vec![JoinOn {
            column: "customer_id".into(),
            key: "id".into(),
        }],
        fields: vec![field("segment", "customer_segment"), field("score", "customer_score")],
        hash: None,
        filters: Vec::new(),
        join: EnrichJoin::Left,
        several: Several::Refuse,
        as_of: None,
        cache: CacheSpec::default(),
    }
}

fn field(source: &str, dest: &str) -> Field {
    Field {
        source: source.into(),
        dest: dest.into(),
    }
}

fn orders() -> synctool_core::schema::TableSchema {
    table(
        &[("id", ColumnType::Int64), ("customer_id", ColumnType::Int32)],
        &["id"],
    )
}

#[tokio::test]
async fn fields_are_joined_renamed_and_typed() {
    let db = Db::with(SEGMENTS);
    let schema = orders();
    let chain = build(vec![StageSpec::Enrich(segments())], &["id"], &db.stores())
        .await
        .unwrap();
    assert_eq!(chain.needs(), ["customer_id"]);
    let output = chain.output(&schema).unwrap();
    assert_eq!(output.column("customer_segment").unwrap().ty, TEXT);
    let made = run(
        &chain,
        vec![inserts(&schema, &["1|1", "2|2", "3|3", "4|-", "5|1", "6|4"])],
    )
    .await
    .unwrap();
    let rows: Vec<String> = made
        .rows()
        .iter()
        .map(|r| r.replace("12.50", "12.5").replace("3.00", "3"))
        .collect();
    assert_eq!(
        rows,
        [
            "1|1|gold|12.5",
            "2|2|silver|-",
            "3|3|-|-",
            "4|-|-|-",
            "5|1|gold|12.5",
            "6|4|-|3"
        ]
    );
    assert_eq!(made.batches[0].rows.schema(), output.arrow_schema());

    let mut inner = segments();
    inner.join = EnrichJoin::Inner;
    let chain = build(vec![StageSpec::Enrich(inner)], &["id"], &db.stores())
        .await
        .unwrap();
    let made = run(&chain, vec![inserts(&schema, &["1|1", "3|3", "4|-"])])
        .await
        .unwrap();
    assert_eq!((made.rows().len(), made.accounts["enrich"].filtered), (1, 2));

    // Deletes pass, an update without the join column leaves the fields as they are, and a row that lost its partner
    // is gone.
    let ops = [Op::Delete, Op::Update, Op::Update];
    let batch = changes(&schema, &ops, &["1|-", "2|-", "3|2"], None);
    let chain = build(vec![StageSpec::Enrich(segments())], &["id"], &db.stores())
        .await
        .unwrap();
    let made = run(&chain, vec![absent(batch, 1, 1)]).await.unwrap();
    assert_eq!((made.rows()[2].as_str(), made.ops()), ("3|2|silver|-", ops.to_vec()));
    let present = made.batches[0].present.as_ref().unwrap();
    assert!(!present.has(2, 1) && !present.has(3, 1) && present.has(2, 2));
}

/// PostgreSQL gives a char with the blanks that pad it, and a dimension may have the same value as a text.
#[tokio::test]
async fn blanks_that_pad_a_char_do_not_count() {
    let db = Db::with("CREATE TABLE codes (code TEXT PRIMARY KEY, label TEXT); INSERT INTO codes VALUES ('ab', 'x');");
    for (ty, wanted) in [(ColumnType::Char { length: 4 }, "1|ab  |x"), (TEXT, "1|ab  |-")] {
        let schema = table(&[("id", ColumnType::Int64), ("code", ty)], &["id"]);
        let spec = EnrichSpec {
            table: TableId::bare("codes"),
            on: vec![JoinOn {
                column: "code".into(),
                key: "code".into(),
            }],
            fields: vec![field("label", "label")],
            ..segments()
        };
        let chain = build(vec![StageSpec::Enrich(spec)], &["id"], &db.stores())
            .await
            .unwrap();
        let row = vec![Some("1".to_string()), Some("ab  ".to_string())];
        let rows = synctool_core::testing::rows::batch(&schema, &[row]).unwrap();
        let batch = ChangeBatch::inserts(Arc::new(TableId::bare("t")), rows, Hold::none());
        let made = run(&chain, vec![batch]).await.unwrap();
        assert_eq!(made.rows(), [wanted]);
    }
}

#[tokio::test]
async fn what_does_not_fit_is_refused_when_the_chain_is_built() {
    let db = Db::with(SEGMENTS);
    let refused = async |change: fn(&mut EnrichSpec)| {
        let mut spec = segments();
        change(&mut spec);
        let built = build(vec![StageSpec::Enrich(spec)], &["id"], &db.stores()).await;
        built.map(|_| ()).unwrap_err()
    };
    let e = refused(|s| s.fields[0].source = "segmnt".into()).await;
    assert_eq!(
        (e.code(), e.next_step()),
        (code::COLUMN_MISSING, Some("did you mean segment?"))
    );
    assert!(e.to_string().contains("dimension customer_segment"), "{e}");
    assert_eq!(
        refused(|s| s.table = TableId::bare("nothing")).await.code(),
        code::TABLE_MISSING
    );
    assert_eq!(
        refused(|s| s.datastore = "elsewhere".into()).await.code(),
        code::CONFIG_INVALID
    );
    assert_eq!(
        refused(|s| s.fields[0].dest = "customer_score".into()).await.code(),
        code::CONFIG_INVALID
    );
}

#[tokio::test]
async fn several_rows_are_refused_or_expanded() {
    let db =
        Db::with("CREATE TABLE tags (owner INTEGER, tag TEXT); INSERT INTO tags VALUES (1,'a'), (1,'b'), (2,'c');");
    let mut spec = segments();
    spec.table = TableId::bare("tags");
    spec.on[0].key = "owner".into();
    spec.fields = vec![field("tag", "tag")];
    let schema = orders();
    let chain = build(vec![StageSpec::Enrich(spec.clone())], &["id"], &db.stores())
        .await
        .unwrap();
    let made = run(&chain, vec![inserts(&schema, &["7|1", "8|2"])]).await.unwrap();
    assert_eq!(
        (made.rows(), made.reasons()),
        (
            vec!["8|2|c".to_string()],
            vec!["enrich:-:several_dimension_rows".into()]
        )
    );
    spec.several = Several::Expand;
    let chain = build(vec![StageSpec::Enrich(spec)], &["id", "tag"], &db.stores())
        .await
        .unwrap();
    let made = run(&chain, vec![inserts(&schema, &["7|1", "8|2", "9|3"])])
        .await
        .unwrap();
    assert_eq!(made.rows(), ["7|1|a", "7|1|b", "8|2|c", "9|3|-"]);
    assert_eq!(made.accounts["enrich"].expanded, 1);
    let e = run(&chain, vec![changes(&schema, &[Op::Delete], &["7|-"], None)])
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED);
}

#[tokio::test]
async fn validity_is_found_by_time() {
    let db = Db::with(
        "CREATE TABLE prices (item INTEGER, price NUMERIC(8,2), since DATE, until DATE);
         INSERT INTO prices VALUES
           (1, 10, '2024-01-01', '2024-02-01'), (1, 11, '2024-02-01', NULL),
           (2, 20, '2024-01-01', '2024-12-31'), (2, 21, '2024-06-01', '2024-12-31');",
    );
    let as_of = AsOf {
        column: "day".into(),
        valid_from: "since".into(),
        valid_to: Some("until".into()),
        after: false,
        to_inclusive: false,
        include_open_ended: true,
    };
    let mut spec = segments();
    spec.table = TableId::bare("prices");
    spec.on = vec![JoinOn {
        column: "item".into(),
        key: "item".into(),
    }];
    spec.fields = vec![field("price", "price")];
    spec.as_of = Some(as_of.clone());
    let schema = table(
        &[
            ("id", ColumnType::Int64),
            ("item", ColumnType::Int64),
            ("day", ColumnType::Timestamp),
        ],
        &["id"],
    );
    let lines = [
        "1|1|2023-12-31 23:59:59",
        "2|1|2024-01-01 00:00:00",
        "3|1|2024-01-31 23:59:59.999999",
        "4|1|2024-02-01 00:00:00",
        "5|1|2099-01-01 00:00:00",
        "6|2|2024-07-01 00:00:00",
        "7|2|2024-12-31 00:00:00",
        "8|1|-",
        "9|3|2024-07-01 00:00:00",
    ];
    let prices = async |spec: &EnrichSpec| {
        let chain = build(vec![StageSpec::Enrich(spec.clone())], &["id"], &db.stores())
            .await
            .unwrap();
        let made = run(&chain, vec![inserts(&schema, &lines)]).await.unwrap();
        let price = |r: &String| r.rsplit('|').next().unwrap().trim_end_matches(".00").to_string();
        made.rows().iter().map(price).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(prices(&spec).await, "- 10 10 11 11 21 - - -");
    spec.as_of.as_mut().unwrap().include_open_ended = false;
    assert_eq!(prices(&spec).await, "- 10 10 - - 21 - - -");
    spec.as_of = Some(AsOf {
        after: true,
        ..as_of.clone()
    });
    assert_eq!(prices(&spec).await, "- - 10 - 11 21 - - -");
    spec.as_of = Some(AsOf {
        to_inclusive: true,
        ..as_of.clone()
    });
    assert_eq!(prices(&spec).await, "- 10 10 11 11 21 21 - -");
    spec.as_of = Some(AsOf {
        valid_to: None,
        ..as_of.clone()
    });
    assert_eq!(prices(&spec).await, "- 10 10 11 11 21 21 - -");
    // An instant is not comparable with a wall clock.
    spec.as_of = Some(as_of);
    let chain = build(vec![StageSpec::Enrich(spec)], &["id"], &db.stores())
        .await
        .unwrap();
    let zoned = table(
        &[
            ("id", ColumnType::Int64),
            ("item", ColumnType::Int64),
            ("day", ColumnType::TimestampTz),
        ],
        &["id"],
    );
    assert_eq!(chain.output(&zoned).unwrap_err().code(), code::CONFIG_TYPE);
}

/// Of rows that became valid at once the same one is taken, in whatever order they are read.
#[tokio::test]
async fn rows_that_become_valid_at_once_have_an_order() {
    let mut found = Vec::new();
    for rows in [
        "(1, 10, '2024-01-01'), (1, 11, '2024-01-01')",
        "(1, 11, '2024-01-01'), (1, 10, '2024-01-01')",
    ] {
        let db = Db::with(&format!(
            "CREATE TABLE prices (item INTEGER, price INTEGER, since DATE); INSERT INTO prices VALUES {rows}"
        ));
        let mut spec = segments();
        spec.table = TableId::bare("prices");
        spec.on = vec![JoinOn {
            column: "item".into(),
            key: "item".into(),
        }];
        spec.fields = vec![field("price", "price")];
        spec.as_of = Some(AsOf {
            column: "day".into(),
            valid_from: "since".into(),
            valid_to: None,
            after: false,
            to_inclusive: false,
            include_open_ended: true,
        });
        let schema = table(
            &[
                ("id", ColumnType::Int64),
                ("item", ColumnType::Int64),
                ("day", ColumnType::Date),
            ],
            &["id"],
        );
        let chain = build(vec![StageSpec::Enrich(spec)], &["id"], &db.stores())
            .await
            .unwrap();
        let made = run(&chain, vec![inserts(&schema, &["1|1|2024-05-01"])]).await.unwrap();
        found.push(made.rows());
    }
    assert_eq!(found[0], found[1]);
}

#[tokio::test]
async fn a_dimension_in_postgresql_has_its_types() {
    let db = PostgresServer::shared(PgVersion::V18).database("dimension");
    db.psql(
        "CREATE TABLE segments (code char(4), region int, segment varchar(20), score numeric(6,2), since timestamptz,
                                ref uuid, PRIMARY KEY (code, region));
         INSERT INTO segments VALUES ('ab', 1, 'gold', 12.50, '2024-01-31 10:00+00', '12345678-9abc-def0-1234-56789abcdef0'),
                                     ('ab', 2, 'silver', NULL, 'infinity', NULL);",
    );
    let postgres = Postgres::open(PostgresConfig::from_url(&db.url()).unwrap()).unwrap();
    let source: Arc<dyn Source> = Arc::new(postgres.source());
    let stores = Datastores::from([("dims".to_string(), source)]);
    let mut spec = segments();
    spec.on = vec![
        JoinOn {
            column: "code".into(),
            key: "code".into(),
        },
        JoinOn {
            column: "region".into(),
            key: "region".into(),
        },
    ];
    spec.fields = ["segment", "score", "since", "ref"].map(|f| field(f, f)).to_vec();
    let schema = table(
        &[("id", ColumnType::Int64), ("code", TEXT), ("region", decimal(5, 2))],
        &["id"],
    );
    let chain = build(vec![StageSpec::Enrich(spec)], &["id"], &stores).await.unwrap();
    let types: Vec<String> = chain
        .output(&schema)
        .unwrap()
        .columns
        .iter()
        .map(|c| c.ty.to_string())
        .collect();
    assert_eq!(types[3..], ["varchar(20)", "decimal(6,2)", "timestamptz", "uuid"]);
    let made = run(
        &chain,
        vec![inserts(&schema, &["1|ab|1.00", "2|ab|2.00", "3|ab|1.50", "4|zz|1.00"])],
    )
    .await
    .unwrap();
    assert_eq!(
        made.rows(),
        [
            "1|ab|1.00|gold|12.50|2024-01-31 10:00:00+00|12345678-9abc-def0-1234-56789abcdef0",
            "2|ab|2.00|silver|-|infinity|-",
            "3|ab|1.50|-|-|-|-",
            "4|zz|1.00|-|-|-|-"
        ]
    );
}

async fn dimension(db: &Db, cache: &CacheSpec, fingerprint: &str) -> CachedDimension<SourceLookup> {
    let table = TableId::bare("segments");
    let columns = db.source.describe(&table).await.unwrap().columns;
    let lookup = SourceLookup::new(db.source.clone(), table, &columns[..1], &columns[1..], Duration::ZERO);
    CachedDimension::new(lookup, cache, "segments", fingerprint).unwrap()
}

fn keys(all: &[&str]) -> Vec<Vec<String>> {
    all.iter().map(|k| vec![k.to_string()]).collect()
}

async fn segment(dimension: &CachedDimension<SourceLookup>, key: &str) -> Option<String> {
    let found = dimension.fetch(&keys(&[key])).await.unwrap();
    found[&vec![key.to_string()]].first().and_then(|row| row[0].clone())
}

/// A key is asked for with so many others that two queries find its row: the second one as equal but for its case.
#[tokio::test]
async fn a_row_that_several_queries_find_is_there_once() {
    let db = Db::with(
        "CREATE TABLE codes (code TEXT COLLATE NOCASE PRIMARY KEY, name TEXT); INSERT INTO codes VALUES ('K7', 'seven')",
    );
    let there = db.source.describe(&TableId::bare("codes")).await.unwrap().columns;
    let lookup = SourceLookup::new(
        db.source.clone(),
        TableId::bare("codes"),
        &there[..1],
        &there[1..],
        Duration::from_secs(60),
    );
    let asked: Vec<Vec<String>> = (0..1500)
        .map(|i| vec![format!("k{i}")])
        .chain([vec!["K7".into()]])
        .collect();
    let found = lookup.fetch(&asked).await.unwrap();
    assert_eq!(found.len(), 1, "keys go by their bytes");
    let rows = &found[&vec!["K7".to_string()]];
    assert_eq!(rows.as_slice(), [vec![Some("seven".to_string())]]);
}

#[tokio::test]
async fn memory_remembers_what_is_there_and_what_is_missing() {
    let db = Db::with(SEGMENTS);
    let cached = dimension(&db, &CacheSpec::default(), "f").await;
    let found = cached.fetch(&keys(&["1", "1", "2", "9"])).await.unwrap();
    assert_eq!((found.len(), found[&vec!["9".to_string()]].len()), (3, 0));
    db.run("UPDATE segments SET segment = 'lead'; INSERT INTO segments VALUES (9, 'new', 1)");
    assert_eq!(segment(&cached, "1").await.as_deref(), Some("gold"));
    assert_eq!(segment(&cached, "9").await, None);
    let want = LookupStats {
        memory: 2,
        source: 3,
        missing: 1,
        ..LookupStats::default()
    };
    assert_eq!(cached.stats(), want);
    // Without a size or without time, everything is asked again.
    for cache in [
        CacheSpec {
            max_size: 0,
            ..CacheSpec::default()
        },
        CacheSpec {
            ttl: Duration::ZERO,
            ..CacheSpec::default()
        },
    ] {
        let cached = dimension(&db, &cache, "f").await;
        assert_eq!(segment(&cached, "1").await.as_deref(), Some("lead"));
        db.run("UPDATE segments SET segment = segment || '!' WHERE id = 1");
        assert_eq!(segment(&cached, "1").await.as_deref(), Some("lead!"));
        db.run("UPDATE segments SET segment = 'lead' WHERE id = 1");
    }
}

#[tokio::test]
async fn redis_is_shared_ends_and_may_go_away() {
    let db = Db::with(SEGMENTS);
    let redis = Redis::start();
    let cache = |url: String, ttl: Duration| CacheSpec {
        ttl,
        redis: Some(RedisSpec::new(url)),
        ..CacheSpec::default()
    };
    let hour = Duration::from_secs(3600);
    let first = dimension(&db, &cache(redis.url(), hour), "f").await;
    first.fetch(&keys(&["1", "2", "9"])).await.unwrap();
    db.run("UPDATE segments SET segment = 'lead'");
    // Another process finds the rows, and what is missing, and no row of another shape.
    let second = dimension(&db, &cache(redis.url(), hour), "f").await;
    assert_eq!(segment(&second, "1").await.as_deref(), Some("gold"));
    assert_eq!(segment(&second, "9").await, None);
    assert_eq!((second.stats().redis, second.stats().source), (2, 0));
    let other = dimension(&db, &cache(redis.url(), hour), "g").await;
    assert_eq!(segment(&other, "1").await.as_deref(), Some("lead"));
    // Entries end in Redis, and in memory no later than there.
    let key = "synctool:dimension:segments:f:[\"1\"]";
    let left: i64 = redis.command(&["PTTL", key]).parse().unwrap();
    assert!((1..=3_600_000).contains(&left), "{left}");
    // What somebody else wrote is not a row.
    redis.command(&["SET", key, "{\"v\":7}"]);
    let third = dimension(&db, &cache(redis.url(), hour), "f").await;
    assert_eq!(segment(&third, "1").await.as_deref(), Some("lead"));
    assert_eq!(third.stats().redis_errors, 0);
    // A Redis that is not there costs nothing but time.
    let proxy = FaultProxy::to(redis.port());
    let through = format!("redis://127.0.0.1:{}/", proxy.port());
    let fourth = dimension(&db, &cache(through, hour), "h").await;
    proxy.set(Mode::Refuse);
    assert_eq!(segment(&fourth, "2").await.as_deref(), Some("lead"));
    assert_eq!(segment(&fourth, "1").await.as_deref(), Some("lead"));
    let stats = fourth.stats();
    assert_eq!(
        (stats.source, stats.redis, stats.redis_errors),
        (2, 0, 1),
        "one failure, then it is left alone"
    );
}

#[tokio::test]
async fn rows_of_one_run_are_found_by_no_other_and_end_in_a_day() {
    let db = Db::with(SEGMENTS);
    let redis = Redis::start();
    let cache = |run: &str| CacheSpec {
        ttl: Duration::from_secs(10 * 365 * 86_400),
        redis: Some(RedisSpec {
            run: Some(run.into()),
            ..RedisSpec::new(redis.url())
        }),
        ..CacheSpec::default()
    };
    let first = dimension(&db, &cache("one"), "f").await;
    assert_eq!(segment(&first, "1").await.as_deref(), Some("gold"));
    let left: i64 = redis
        .command(&["TTL", "synctool:dimension:segments:f:one:[\"1\"]"])
        .parse()
        .unwrap();
    assert!((1..=86_400).contains(&left), "{left}");
    db.run("UPDATE segments SET segment = 'lead'");
    let same = dimension(&db, &cache("one"), "f").await;
    assert_eq!(segment(&same, "1").await.as_deref(), Some("gold"));
    let later = dimension(&db, &cache("two"), "f").await;
    assert_eq!(segment(&later, "1").await.as_deref(), Some("lead"));
}
