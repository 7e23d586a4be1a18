//! PostgreSQL to PostgreSQL through the planner and the engine: every type, undecoded and decoded, created, merged
//! and swapped.

use super::*;
use synctool_core::engine::{Engine, Report};
use synctool_core::error::Result;
use synctool_core::sink::Fidelity;
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;

const TYPES: &str = "
    CREATE SCHEMA shop; CREATE TYPE shop.mood AS ENUM ('sad', 'glad'); CREATE DOMAIN shop.positive AS int CHECK (VALUE > 0);
    CREATE TYPE shop.pair AS (a int, b text)";

const SOURCE: &str = r#"
    CREATE TABLE shop."All Types" (
      id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, b boolean, i2 smallint, i4 integer NOT NULL DEFAULT 7, f4 real, f8 double precision,
      n numeric, nd numeric(12,2), t text, vc varchar(20), c char(4), "by" bytea, u uuid, d date, ti time(3), tz timetz, ts timestamp,
      tt timestamptz, iv interval, j json, jb jsonb, ia int[], ta text[][], inet inet, cidr cidr, mac macaddr, bit bit(3), vb varbit,
      rng int4range, tsr tstzrange, p point, box box, ts_v tsvector, x oid, m money, ch "char", na name,
      mood shop.mood, moods shop.mood[], pos shop.positive, pair shop.pair, g int GENERATED ALWAYS AS (i4 % 10) STORED);
    INSERT INTO shop."All Types" SELECT FROM generate_series(1, 3000);
    INSERT INTO shop."All Types" (b, i2, i4, f4, f8, n, nd, t, vc, c, "by", u, d, ti, tz, ts, tt, iv, j, jb, ia, ta, inet, cidr, mac, bit, vb,
      rng, tsr, p, box, ts_v, x, m, ch, na, mood, moods, pos, pair) VALUES
    (true, -32768, 2147483647, 0.1, 'NaN', 'NaN', -0.01, E'tab\t\\N\n', 'äöü', 'ab', '\x00ff', 'ffffffff-ffff-ffff-ffff-ffffffffffff',
     'infinity', '24:00:00', '12:00:00+05:30', '0044-03-15 01:02:03.000001 BC', '-infinity', '1 year -2 days 03:04:05.678', '{"b":1, "a":1.0}', '{"a":1}',
     '{1,NULL,3}', '[0:1][1:1]={{a},{"b c"}}', '::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '101', '1', '[1,5)', '[2020-01-01,)', '(1.5,-0)', '(1,1),(0,0)',
     'a:1 b', 4294967295, 12.34, 'z', 'nn', 'glad', '{sad,NULL}', 5, '(1,"x,y")'),
    (false, 0, 0, '-0', 1e-300, 1e-20, 1234567890.12, '', '', '', '', '00000000-0000-0000-0000-000000000000', '4713-01-01 BC', '00:00', '00:00:00-12',
     'infinity', '294246-12-31 23:59:59.999999+00', '00:00:00', 'null', 'null', '{}', '{}', '0.0.0.0', '::/0', '00:00:00:00:00:00', '000', '', 'empty', '(,)', '(0,0)',
     '(0,0),(0,0)', '', 0, -1, '', '', 'sad', '{}', 1, '(,)')"#;

async fn copy(from: &str, to: &PostgresDestination, raw: bool, mode: FullMode) -> Result<Report> {
    let source = Arc::new(
        Database::open(PostgresConfig::from_url(from).unwrap())
            .unwrap()
            .source(),
    );
    let engine = Arc::new(Engine::new(source.clone(), Arc::new(to.clone())));
    let table = TableId::new("shop", "All Types");
    let request = FullRequest {
        table: TableRequest {
            run_id: "20260101_000000_abcdef".into(),
            step: Some(500),
            raw,
            partition_bytes: 64 << 20,
            semantics: serde_json::json!({}),
            now: "2026-01-01T00:00:00Z".into(),
            ..TableRequest::new("types", table.clone(), table)
        },
        mode,
        deletes: true,
        verify: Some(Verify::Hash),
        remember: Default::default(),
    };
    let draft = full::plan(source.as_ref(), to, engine.stages.as_ref(), request);
    let (plan, resumed) = engine.plan("types", &serde_json::json!({}), draft).await?;
    engine.run(plan, resumed).await
}

fn all(db: &TestDb) -> String {
    db.psql(r#"SELECT * FROM shop."All Types" ORDER BY id"#)
}

on_servers! {
    async fn every_type_arrives(version: PgVersion) {
        let other = if version == PgVersion::V15 { PgVersion::V18 } else { PgVersion::V15 };
        let from = fixture(other).await;
        from.db.psql(TYPES);
        from.db.psql(SOURCE);
        let f = fixture(version).await;
        f.db.psql(TYPES);
        // Types are learnt when the destination is opened.
        let to = open(&f.db.url(), DestinationOptions::default()).await;
        let report = copy(&from.db.url(), &to, true, FullMode::Auto).await.unwrap();
        assert_eq!(report.ledger.outcome(), Applied::inserts(3002));
        assert!(report.plan.tables[0].read.raw.is_none(), "types of this database are decoded");
        assert_eq!(all(&f.db), all(&from.db));
        let types = |db: &TestDb| db.psql(
            r#"SELECT attname, format_type(atttypid, atttypmod), attnotnull, attidentity <> '' FROM pg_attribute
               WHERE attrelid = 'shop."All Types"'::regclass AND attnum > 0 ORDER BY attnum"#);
        assert_eq!(types(&f.db), types(&from.db));
        // Nothing is different, and nothing is written.
        let again = copy(&from.db.url(), &to, true, FullMode::Upsert).await.unwrap();
        assert_eq!(again.ledger.outcome(), Applied { written: 3002, unchanged: 3002, ..Applied::default() });
        // The next full run swaps the table that the first one made.
        from.db.psql(r#"DELETE FROM shop."All Types" WHERE id = 7; UPDATE shop."All Types" SET t = 'new' WHERE id = 8"#);
        let swapped = copy(&from.db.url(), &to, true, FullMode::Auto).await.unwrap();
        assert_eq!(swapped.ledger.outcome(), Applied { written: 3001, updated: 3001, deleted: 1, ..Applied::default() });
        assert_eq!(all(&f.db), all(&from.db));
        assert_eq!(types(&f.db), types(&from.db));
    }

    async fn built_in_types_pass_undecoded(version: PgVersion) {
        let other = if version == PgVersion::V15 { PgVersion::V18 } else { PgVersion::V15 };
        let from = fixture(other).await;
        from.db.psql(TYPES);
        from.db.psql(SOURCE);
        from.db.psql(r#"ALTER TABLE shop."All Types" DROP mood, DROP moods, DROP pos, DROP pair, DROP m, DROP i2; VACUUM ANALYZE"#);
        let f = fixture(version).await;
        let created = copy(&from.db.url(), &f.destination, true, FullMode::Auto).await.unwrap();
        assert!(created.plan.tables[0].read.raw.is_some(), "{:?}", created.plan.reasons);
        assert!(created.partitions > 1);
        assert_eq!(all(&f.db), all(&from.db));
        from.db.psql(r#"INSERT INTO shop."All Types" (t) VALUES ('added'); UPDATE shop."All Types" SET n = 1.00 WHERE id = 1; UPDATE shop."All Types" SET n = 1.0 WHERE id = 2"#);
        f.db.psql(r#"UPDATE shop."All Types" SET n = 1.0 WHERE id IN (1, 2); INSERT INTO shop."All Types" (i4) VALUES (1), (1)"#);
        let merged = copy(&from.db.url(), &f.destination, true, FullMode::Upsert).await.unwrap();
        // One added id is there already, with other values; the other one is too many.
        assert_eq!(merged.ledger.outcome(), Applied { written: 3003, updated: 2, unchanged: 3001, deleted: 1, ..Applied::default() });
        assert_eq!(all(&f.db), all(&from.db));
        let decoded = copy(&from.db.url(), &f.destination, false, FullMode::Swap).await.unwrap();
        assert!(decoded.plan.tables[0].read.raw.is_none());
        assert_eq!(all(&f.db), all(&from.db));
    }

    async fn types_that_are_missing_become_text_and_say_so(version: PgVersion) {
        let from = fixture(version).await;
        from.db.psql(TYPES);
        from.db.psql(SOURCE);
        let f = fixture(version).await;
        let source = Database::open(PostgresConfig::from_url(&from.db.url()).unwrap()).unwrap().source();
        let described = synctool_core::source::Source::describe(&source, &TableId::new("shop", "All Types")).await.unwrap();
        let stored = |c: &str| f.destination.store_as("postgresql", described.column(c).unwrap());
        assert!(matches!(stored("mood").fidelity, Fidelity::Normalised(_)));
        assert!(matches!(stored("pos").fidelity, Fidelity::Widened(_)));
        assert_eq!(stored("inet").fidelity, Fidelity::Exact);
        copy(&from.db.url(), &f.destination, true, FullMode::Auto).await.unwrap();
        assert_eq!(all(&f.db), all(&from.db));
        assert_eq!(f.db.psql(r#"SELECT pg_typeof(mood), pg_typeof(moods), pg_typeof(pos), pg_typeof(pair) FROM shop."All Types" LIMIT 1"#), "text|text|integer|text");
    }
}

/// The oldest and all other supported servers: created, merged, swapped, changed by op, read back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_supported_version_works() {
    for version in PgVersion::ALL {
        if [PgVersion::V15, PgVersion::V18].contains(&version) {
            continue;
        }
        let server = Postgres::start(version);
        let (from, to) = (server.database("from"), server.database("to"));
        from.psql(TYPES);
        from.psql(SOURCE);
        to.psql(TYPES);
        let destination = open(&to.url(), DestinationOptions::default()).await;
        for mode in [FullMode::Auto, FullMode::Upsert, FullMode::Swap] {
            copy(&from.url(), &destination, true, mode)
                .await
                .unwrap_or_else(|e| panic!("{version} {mode:?}: {e}"));
            assert_eq!(all(&to), all(&from), "{version} {mode:?}");
        }
        assert!(
            destination
                .examine(&[TableId::new("shop", "All Types")])
                .await
                .iter()
                .all(|f| f.ok),
            "{version}"
        );
        let table = TableId::new("public", "items");
        let p = destination
            .prepare(plan(&table, &items(), Publish::Direct, &["log"]))
            .await
            .unwrap();
        let mut s = sink(&destination, &p, "log").await;
        s.write(inserts(&table, item_rows([(1, "a", 1), (2, "b", 2)])))
            .await
            .unwrap();
        s.write(inserts(&table, item_rows([(2, "c", 3)]))).await.unwrap();
        let applied = s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(
            applied,
            Applied {
                written: 3,
                inserted: 2,
                updated: 1,
                ..Applied::default()
            },
            "{version}"
        );
    }
}
