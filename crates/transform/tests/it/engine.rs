//! Chains in the engine: the brief's own example from one database into another, and rejected rows against their limit.

use crate::{Datastores, compute};
use std::sync::{Arc, Mutex};
use synctool_connectors::postgres::{Postgres, PostgresConfig};
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::engine::{Engine, Observer, RunEvent};
use synctool_core::error::{Result, code};
use synctool_core::ledger::Ledger;
use synctool_core::plan::Verify;
use synctool_core::schema::{ColumnType, TableId};
use synctool_core::source::Source;
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;
use synctool_testkit::{PgVersion, Postgres as PostgresServer};
use synctool_transform::{
    CacheSpec, CastTo, Chain, EnrichJoin, EnrichSpec, Field, JoinOn, NamedStage, Projected, Several, StageSpec,
};

struct World {
    dir: tempfile::TempDir,
    from: Arc<dyn Source>,
    rejected: Arc<Rejected>,
}

#[derive(Default)]
struct Rejected(Mutex<Vec<String>>);

impl Observer for Rejected {
    fn event(&self, event: &RunEvent<'_>) {
        if let RunEvent::Rejected { rejects, .. } = event {
            let lines = rejects.iter().map(|r| format!("{} {:?} {}", r.stage, r.key, r.reason));
            self.0.lock().unwrap().extend(lines);
        }
    }
}

const ORDERS: &str = "CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER, total_amount DECIMAL(10,2),
                                           first TEXT, last TEXT, state TEXT);
    INSERT INTO orders VALUES (1, 7, 10.05, 'ada', 'lovelace', '1'), (2, 8, 99.99, 'alan', 'turing', '2'),
                              (3, NULL, NULL, NULL, 'hopper', '1'), (4, 9, 0.05, 'grace', NULL, '9');";

impl World {
    fn new(sql: &str) -> World {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("from.db");
        rusqlite::Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        World {
            from: Sqlite::open(SqliteConfig::new(path)).unwrap().source(),
            dir,
            rejected: Arc::default(),
        }
    }

    async fn run(&self, chain: Chain, limit: u64) -> Result<Ledger> {
        let to = Sqlite::open(SqliteConfig::new(self.dir.path().join("to.db")))
            .unwrap()
            .destination();
        let mut engine = Engine::new(self.from.clone(), to.clone());
        engine.stages = Arc::new(chain);
        engine.options.reject_limit = limit;
        engine.observer = self.rejected.clone();
        let engine = Arc::new(engine);
        let semantics = serde_json::json!({});
        let request = FullRequest {
            table: TableRequest {
                run_id: "r".into(),
                partition_bytes: 1 << 20,
                semantics: semantics.clone(),
                now: "2026-01-01T00:00:00Z".into(),
                ..TableRequest::new("p", TableId::bare("orders"), TableId::bare("orders_enriched"))
            },
            mode: FullMode::Auto,
            deletes: true,
            verify: Some(Verify::Hash),
            remember: Default::default(),
        };
        let draft = full::plan(self.from.as_ref(), to.as_ref(), engine.stages.as_ref(), request);
        let (plan, resumed) = engine.plan("p", &semantics, draft).await?;
        let ledger = engine.run(plan, resumed).await?.ledger;
        ledger.check()?;
        Ok(ledger)
    }

    /// The destination's rows, and its types.
    fn written(&self) -> (Vec<String>, String) {
        let conn = rusqlite::Connection::open(self.dir.path().join("to.db")).unwrap();
        let ddl: String = conn
            .query_row(
                "SELECT sql FROM sqlite_master WHERE name = 'orders_enriched'",
                [],
                |r| r.get(0),
            )
            .unwrap();
        let mut statement = conn.prepare("SELECT * FROM orders_enriched ORDER BY id").unwrap();
        let columns = statement.column_count();
        let line = |row: &rusqlite::Row<'_>| {
            let cells = (0..columns).map(|c| {
                Ok(match row.get_ref(c)? {
                    rusqlite::types::ValueRef::Null => "-".to_string(),
                    rusqlite::types::ValueRef::Integer(i) => i.to_string(),
                    rusqlite::types::ValueRef::Real(f) => f.to_string(),
                    rusqlite::types::ValueRef::Text(t) => String::from_utf8_lossy(t).into_owned(),
                    rusqlite::types::ValueRef::Blob(_) => "blob".into(),
                })
            });
            Ok(cells.collect::<rusqlite::Result<Vec<_>>>()?.join("|"))
        };
        let rows = statement
            .query_map([], line)
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        (rows, ddl)
    }
}

fn key() -> Vec<String> {
    vec!["id".into()]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_briefs_example_is_computed_enriched_and_proved() {
    let pg = PostgresServer::shared(PgVersion::V18).database("segments");
    pg.psql(
        "CREATE TABLE customer_segments (customer_id bigint PRIMARY KEY, segment text, score numeric(5,2));
         INSERT INTO customer_segments VALUES (7, 'gold', 9.75), (8, 'silver', NULL);",
    );
    let postgres = Postgres::open(PostgresConfig::from_url(&pg.url()).unwrap()).unwrap();
    let dims: Arc<dyn Source> = Arc::new(postgres.source());
    let sources = Datastores::from([("analytics_db".to_string(), dims)]);
    let field = |source: &str, dest: &str| Field {
        source: source.into(),
        dest: dest.into(),
    };
    let keep = |from: &str, name: &str, to: Option<ColumnType>| Projected {
        from: from.into(),
        name: name.into(),
        to,
    };
    let stages: Vec<NamedStage> = vec![
        StageSpec::ValueMap {
            column: "state".into(),
            mapping: [("1".to_string(), Some("open".to_string())), ("9".into(), None)].into(),
            places: Default::default(),
            fixed: false,
        }
        .into(),
        compute(&[
            ("total_with_tax", "lambda x: round(x['total_amount'] * 1.1, 2)"),
            ("full_name", "lambda x: x['first'].title() + ' ' + x['last'].upper()"),
            ("size", "lambda x: 'big' if x['total_amount'] > 50 else 'small'"),
            ("doubled", "total_amount * 2"),
        ])
        .into(),
        StageSpec::Enrich(EnrichSpec {
            dimension: "customer_segment".into(),
            datastore: "analytics_db".into(),
            table: TableId::bare("customer_segments"),
            on: vec![JoinOn {
                column: "customer_id".into(),
                key: "customer_id".into(),
            }],
            fields: vec![field("segment", "customer_segment"), field("score", "customer_score")],
            hash: None,
            filters: Vec::new(),
            join: EnrichJoin::Left,
            several: Several::Refuse,
            as_of: None,
            cache: CacheSpec::default(),
        })
        .into(),
        StageSpec::Batch { target_rows: 3 }.into(),
        StageSpec::Project {
            columns: vec![
                keep("id", "id", None),
                keep("total_with_tax", "total_with_tax", Some(crate::decimal(10, 2))),
                keep("full_name", "full_name", None),
                keep("size", "size", None),
                keep("doubled", "doubled", None),
                keep("state", "state", None),
                keep("customer_segment", "segment", None),
                keep("customer_score", "score", None),
            ],
        }
        .into(),
    ];
    let chain = Chain::build(stages, &key(), &sources).await.unwrap();
    assert_eq!(
        chain.needs(),
        ["state", "total_amount", "first", "last", "customer_id", "id"].map(String::from)
    );
    let world = World::new(ORDERS);
    let ledger = world.run(chain, 0).await.unwrap();
    assert_eq!(
        ledger
            .accounts
            .stages
            .iter()
            .map(|(n, _)| n.as_str())
            .collect::<Vec<_>>(),
        ["value_map", "compute", "enrich", "batch", "project", "output"]
    );
    let (rows, ddl) = world.written();
    assert_eq!(
        rows,
        [
            "1|11.06|Ada LOVELACE|small|20.10|open|gold|9.75",
            "2|109.99|Alan TURING|big|199.98|2|silver|-",
            "3|-|-|small|-|open|-|-",
            "4|0.06|-|small|0.10|-|-|-"
        ]
    );
    assert!(ddl.contains("total_with_tax") && !ddl.contains("customer_id"), "{ddl}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rejected_rows_stop_a_run_unless_they_are_allowed() {
    let cast = || StageSpec::Cast {
        casts: vec![CastTo {
            column: "first".into(),
            to: ColumnType::Int32,
        }],
    };
    let world = World::new(ORDERS);
    let chain = Chain::build(vec![cast().into()], &key(), &Datastores::new())
        .await
        .unwrap();
    let e = world.run(chain.clone(), 2).await.unwrap_err();
    assert_eq!(e.code(), code::ROW_REJECTED);
    let text = e.to_string();
    assert!(
        text.contains("stage cast rejected a row of orders (bad_cast, column first)"),
        "{text}"
    );
    assert!(text.contains("key id") && !text.contains("ada"), "{text}");
    assert_eq!(
        world.rejected.0.lock().unwrap().len(),
        3,
        "those that stopped the run are told too"
    );

    let world = World::new(ORDERS);
    let ledger = world.run(chain, 3).await.unwrap();
    assert_eq!(ledger.accounts.stages[0].1.rejected, 3);
    assert_eq!(world.written().0.len(), 1);
    let told = world.rejected.0.lock().unwrap().clone();
    assert_eq!(told[0], "cast [(\"id\", Some(\"1\"))] bad_cast");
}
