//! The price of a delta against statements written by hand. By hand: `cargo nextest run --release --run-ignored only speed`.

use super::*;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use std::time::{Duration, Instant};
use synctool_core::change::{Op, Ops};
use synctool_core::query::{Condition, Cut, Term, Test};
use synctool_core::source::{ReadContext, Source};

const ROWS: &str = "CREATE TABLE items (id bigint PRIMARY KEY, qty int, price numeric(12,2), note text, code varchar(20),
     active bool, day date, updated_at timestamptz NOT NULL, uid uuid, doc jsonb, blob bytea);
 INSERT INTO items SELECT i, i % 1000, i / 7.0, 'item ' || md5(i::text), 'C' || i, i % 3 = 0, '2015-01-01'::date + i % 4000,
     '2024-01-01 00:00+00'::timestamptz + i * interval '1 s', md5('u' || i)::uuid, jsonb_build_object('k', i % 1000), decode(md5(i::text), 'hex')
 FROM generate_series(1, 1000000) i;
 CREATE INDEX ON items (updated_at);
 CREATE TABLE hand AS TABLE items; ALTER TABLE hand ADD PRIMARY KEY (id);
 CREATE TABLE ours AS TABLE items; ALTER TABLE ours ADD PRIMARY KEY (id); VACUUM ANALYZE";

/// Changes 50 000 rows and returns the mark they carry.
async fn touch(db: &TestDb, round: u32) -> String {
    let at = format!("2030-01-0{} 00:00:00+00", round + 1);
    db.psql(&format!(
        "UPDATE items SET note = note || 'x', updated_at = '{at}' WHERE id % 20 = {round}; VACUUM items, hand, ours; CHECKPOINT"
    ));
    at
}

async fn by_hand(db: &TestDb, at: &str) -> Duration {
    let (from, to) = (db.connect().await, db.connect().await);
    let began = Instant::now();
    to.batch_execute("BEGIN; CREATE TEMP TABLE delta (LIKE hand) ON COMMIT DROP")
        .await
        .unwrap();
    let rows = from
        .copy_out(&format!(
            "COPY (SELECT * FROM items WHERE updated_at >= '{at}') TO STDOUT (FORMAT binary)"
        ))
        .await
        .unwrap();
    let mut rows = std::pin::pin!(rows);
    let sink = to
        .copy_in::<_, Bytes>("COPY delta FROM STDIN (FORMAT binary)")
        .await
        .unwrap();
    let mut sink = std::pin::pin!(sink);
    let mut buffer = bytes::BytesMut::new();
    while let Some(piece) = rows.next().await {
        buffer.extend_from_slice(&piece.unwrap());
        if buffer.len() > 256 << 10 {
            sink.send(buffer.split().freeze()).await.unwrap();
        }
    }
    sink.send(buffer.freeze()).await.unwrap();
    sink.finish().await.unwrap();
    const COLUMNS: [&str; 10] = [
        "qty",
        "price",
        "note",
        "code",
        "active",
        "day",
        "updated_at",
        "uid",
        "doc",
        "blob",
    ];
    let list = |prefix: &str| COLUMNS.map(|c| format!("{prefix}.{c}")).join(", ");
    let set = COLUMNS.map(|c| format!("{c} = excluded.{c}")).join(", ");
    let (old, new) = (list("hand"), list("excluded"));
    to.batch_execute(&format!(
        "INSERT INTO hand SELECT * FROM delta ON CONFLICT (id) DO UPDATE SET {set} WHERE ({old}) IS DISTINCT FROM ({new}); COMMIT"
    ))
    .await
    .unwrap();
    began.elapsed()
}

async fn by_us(f: &Fixture, at: &str) -> Duration {
    let database = Database::open(PostgresConfig::from_url(&f.db.url()).unwrap()).unwrap();
    let source = database.source();
    let (from, to) = (TableId::new("public", "items"), TableId::new("public", "ours"));
    let mut schema = source.describe(&from).await.unwrap();
    for c in &mut schema.columns {
        c.carrier = f.destination.store_as("postgresql", c).carrier;
    }
    let p = f
        .destination
        .prepare(plan(&to, &schema, Publish::Direct, &["p"]))
        .await
        .unwrap();
    let began = Instant::now();
    let mut sink = sink(&f.destination, &p, "p").await;
    let slice = Slice::Cut(Cut {
        conditions: vec![Condition {
            term: Term::column("updated_at"),
            test: Test::Range {
                lower: Some(at.into()),
                upper: None,
            },
        }],
        key: None,
    });
    let partition = Partition::new("p", Work::Read(slice));
    let read = ReadSpec::all(from, &schema.columns);
    let mut reader = source
        .open(&read, &partition, None, &ReadContext::default())
        .await
        .unwrap();
    while let Some(event) = reader.next().await.unwrap() {
        let Event::Rows(mut batch) = event else { continue };
        batch.ops = Ops::All(Op::Upsert);
        batch.table = Arc::new(to.clone());
        sink.write(Event::Rows(batch)).await.unwrap();
    }
    let applied = sink.commit(&[advance("p", None, "end", true)]).await.unwrap();
    let took = began.elapsed();
    assert_eq!((applied.written, applied.updated), (50_000, 50_000));
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes, and means something only in a release build on a quiet machine"]
async fn a_delta_costs_little_more_than_statements_by_hand() {
    let f = fixture(PgVersion::V18).await;
    f.db.psql(ROWS);
    let (mut hand, mut ours) = (Vec::new(), Vec::new());
    for round in 0..4 {
        let at = touch(&f.db, round).await;
        if round % 2 == 0 {
            hand.push(by_hand(&f.db, &at).await);
            ours.push(by_us(&f, &at).await);
        } else {
            ours.push(by_us(&f, &at).await);
            hand.push(by_hand(&f.db, &at).await);
        }
    }
    assert_eq!(f.db.psql("SELECT count(*) FROM (TABLE ours EXCEPT TABLE hand) d"), "0");
    hand.sort();
    ours.sort();
    let ratio = ours[1].as_secs_f64() / hand[1].as_secs_f64();
    assert!(
        ratio <= 1.2,
        "{ratio:.2} × of statements by hand: ours {ours:?}, by hand {hand:?}"
    );
}
