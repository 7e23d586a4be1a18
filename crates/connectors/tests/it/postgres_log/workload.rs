//! A seeded random workload with a ledger, beside tables that are read again, cut connections at both ends and restarts: at every moment the
//! destination shows whole transactions, each writer's in order, none twice and none missing; at the end both are equal.

#![allow(clippy::print_stdout, reason = "the seed is shown with a failure")]

use super::*;
use std::sync::atomic::{AtomicBool, Ordering};
use synctool_core::backfill::{Pending, Request, Wish};
use synctool_testkit::proxy::Mode;
use synctool_testkit::{Dice, FaultProxy, is_soak};

/// Rounds: in each, the log is followed anew, a connection is cut, and the process ends without a word.
fn rounds() -> u64 {
    match is_soak() {
        true => 200,
        false => 20,
    }
}

/// Accounts whose sum is always nothing, spread over two tables; and what each writer has done, one line per transaction.
const DDL: &str = "
    CREATE TABLE acc (id int PRIMARY KEY, v bigint NOT NULL, writer int, n int, note text); ALTER TABLE acc ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE other (k text, id int, v bigint NOT NULL, writer int, n int, PRIMARY KEY (k, id));
    CREATE TABLE ledger (writer int, n int, changes int, PRIMARY KEY (writer, n));
    INSERT INTO acc SELECT i, 0, 0, 0, repeat('n', 2500) FROM generate_series(1, 60) i; INSERT INTO other SELECT 'k' || i % 5, i, 0, 0, 0 FROM generate_series(1, 60) i";

async fn writer(db: &TestDb, number: u64, seed: u64, over: &AtomicBool) -> u64 {
    let client = db.connect().await;
    let mut dice = Dice::new(seed ^ (number << 40));
    let mut n = 0;
    while !over.load(Ordering::Relaxed) {
        n += 1;
        let amount = dice.roll(1000) as i64 + 1;
        let mut sql = String::from("BEGIN ISOLATION LEVEL REPEATABLE READ;");
        for _ in 0..=dice.roll(4) {
            let (a, b) = (dice.roll(60) + 1, dice.roll(60) + 1);
            sql += &match dice.roll(7) {
                0 => format!("UPDATE acc SET v = v - {amount}, writer = {number}, n = {n} WHERE id = (SELECT min(id) FROM acc WHERE id > 0);
                              UPDATE other SET v = v + {amount}, writer = {number}, n = {n} WHERE (k, id) = (SELECT k, id FROM other ORDER BY k DESC, id LIMIT 1);"),
                1 => format!("WITH g AS (DELETE FROM acc WHERE id = {a} RETURNING v) UPDATE acc SET v = acc.v + g.v FROM g WHERE acc.id = (SELECT max(id) FROM acc WHERE id <> {a});"),
                2 => format!("INSERT INTO acc VALUES ({a}, 0, {number}, {n}, repeat('m', 2500)) ON CONFLICT (id) DO UPDATE SET writer = {number}, n = {n};"),
                3 => format!("UPDATE acc SET id = {b} + 1000 * {number} WHERE id = {a} AND NOT EXISTS (SELECT FROM acc WHERE id = {b} + 1000 * {number});"),
                4 => format!("UPDATE other SET k = 'k' || {a} % 9 || 'w{number}' WHERE id = {b};"),
                5 => format!("UPDATE acc SET note = repeat('p', {a} * 50), writer = {number}, n = {n} WHERE id = {b};"),
                _ => format!("SAVEPOINT s; UPDATE acc SET v = v + 1000000 WHERE id = {a}; ROLLBACK TO s;"),
            };
        }
        let changes = dice.roll(100);
        sql += &format!("INSERT INTO ledger VALUES ({number}, {n}, {changes}); COMMIT");
        // Two writers may meet: whoever loses does it again.
        if client.batch_execute(&sql).await.is_err() {
            client.batch_execute("ROLLBACK").await.unwrap();
            n -= 1;
        }
    }
    n
}

/// What holds at the destination at any moment.
async fn watch(c: &Capture, over: &AtomicBool) -> u64 {
    const SEEN: &str = "
        SELECT ((SELECT coalesce(sum(v), 0) FROM acc) + (SELECT coalesce(sum(v), 0) FROM other))::bigint,
               (SELECT count(*) FROM (SELECT writer FROM ledger GROUP BY writer HAVING count(*) <> max(n)) gaps),
               (SELECT count(*) FROM acc a WHERE writer > 0 AND n > (SELECT coalesce(max(n), 0) FROM ledger l WHERE l.writer = a.writer)),
               (SELECT count(*) FROM ledger)";
    let client = c.to.connect().await;
    let mut looks = 0;
    let mut most = 0;
    while !over.load(Ordering::Relaxed) {
        let row = client.query_one(SEEN, &[]).await.unwrap();
        let (sum, gaps, ahead): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
        assert_eq!(
            (sum, gaps, ahead),
            (0, 0, 0),
            "a part of a transaction is seen (sum, gaps, rows ahead of their ledger)"
        );
        let lines: i64 = row.get(3);
        assert!(lines >= most, "what was seen is gone");
        most = lines;
        looks += 1;
        tokio::task::yield_now().await;
    }
    looks
}

on_servers! {
    /// F1, F7, F8, F32 with the oracle of the fault list: no loss, no duplicate, order per key, atomic visibility.
    async fn a_random_workload_survives_cuts_and_restarts(version: PgVersion) {
        let seed = Dice::seed();
        println!("seed {seed}: set SYNCTOOL_TEST_SEED to repeat it");
        let mut c = Capture::new(version, &["acc", "other", "ledger"], DDL);
        let server = Postgres::shared(version);
        let (source, sink) = (FaultProxy::to(server.port()), FaultProxy::to(server.port()));
        c.options.chunk_rows = 17;
        c.options.status_interval = Duration::from_millis(200);
        // The backfill shows each chunk as it comes: what is seen is whole only behind it.
        c.catch_up().await.unwrap();
        c.url = source.through(&c.from.url());
        let (over, quiet) = (AtomicBool::new(false), AtomicBool::new(false));
        let disturb = async {
            let mut dice = Dice::new(seed);
            let begun = tokio::time::Instant::now();
            let broken = || source.counts().broken + sink.counts().broken;
            let (mut runs, limit) = (0, Duration::from_secs(6 * rounds()));
            while runs < rounds() && begun.elapsed() < limit {
                let log = Arc::new(database(&c.url).log(c.options.clone()).unwrap());
                // Tables are read again beside all that; where they are equal already, nobody may see it.
                if dice.roll(2) == 0 {
                    let table = TableId::new("public", ["acc", "other"][dice.roll(2) as usize]);
                    log.steering().requests().ask(Request { id: format!("again {runs}"), wish: Wish::Read(Pending::resync(table)) });
                }
                let to =
                    PostgresDestination::open(database(&sink.through(&c.to.url())), DestinationOptions::default()).await;
                let Ok(to) = to else { continue };
                let Ok((engine, plan)) = prepare(log.clone(), log, Arc::new(to), &c.request).await else {
                    continue;
                };
                let task = tokio::spawn({
                    let engine = engine.clone();
                    async move { engine.follow(plan).await }
                });
                let proxy = if dice.roll(2) == 0 { &source } else { &sink };
                let mode = match dice.roll(4) {
                    0 => Mode::CutToClient(dice.roll(30_000)),
                    1 => Mode::CutToServer(dice.roll(20_000)),
                    2 => Mode::Reset,
                    _ => Mode::CutToClient(dice.roll(300)),
                };
                let before = broken();
                proxy.set_once(mode);
                let asked = tokio::time::Instant::now();
                synctool_testkit::eventually("a cut, or enough of waiting", Duration::from_secs(20), async || {
                    broken() > before || asked.elapsed() > Duration::from_secs(2)
                })
                .await;
                // The process ends here, without a word.
                task.abort();
                let _ = task.await;
                runs += 1;
            }
            source.set(Mode::Forward);
            sink.set(Mode::Forward);
            over.store(true, Ordering::Relaxed);
            runs
        };
        let (one, two, runs, looks) = tokio::join!(
            writer(&c.from, 1, seed, &over),
            writer(&c.from, 2, seed, &over),
            async {
                let runs = disturb.await;
                quiet.store(true, Ordering::Relaxed);
                runs
            },
            watch(&c, &quiet),
        );
        c.url = c.from.url();
        c.catch_up().await.unwrap();
        c.assert_equal(&["acc", "other", "ledger"]);
        let broken = source.counts().broken + sink.counts().broken;
        println!("{one} and {two} transactions, {runs} runs, {broken} cuts, {looks} looks");
        assert!(runs == rounds() && broken >= runs / 2, "{runs} runs, {broken} cuts");
        assert!(one + two > 20 && looks > 5, "{one} {two} {looks}");
        assert_eq!(c.to.psql("SELECT count(*) FROM ledger"), (one + two).to_string());
    }
}
