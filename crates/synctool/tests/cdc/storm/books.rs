//! The books that writers keep during a storm, and what is true of them at any moment.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use synctool_testkit::Dice;
use tokio_postgres::NoTls;

/// Money that only moves between wallets and accounts, children that are counted, and a history that says every transfer.
pub(crate) const BOOKS: &str = "
    CREATE TABLE wallet (name text PRIMARY KEY, v bigint NOT NULL, version bigint NOT NULL, note text); ALTER TABLE wallet ALTER note SET STORAGE EXTERNAL;
    CREATE TABLE account (region text, id int, v bigint NOT NULL, version bigint NOT NULL, PRIMARY KEY (region, id));
    CREATE TABLE parent (id int PRIMARY KEY, children int NOT NULL);
    CREATE TABLE child (id bigint PRIMARY KEY, parent int NOT NULL, filler text);
    CREATE TABLE history (writer int, n bigint, wallet text, account int, amount bigint NOT NULL, PRIMARY KEY (writer, n));
    CREATE TABLE era (id int PRIMARY KEY, n int NOT NULL); INSERT INTO era VALUES (1, 0);
    INSERT INTO wallet SELECT 'w' || i, 0, 0, repeat('n', 2500) FROM generate_series(1, 40) i;
    INSERT INTO account SELECT 'r' || i % 5, i, 0, 0 FROM generate_series(1, 40) i;
    INSERT INTO parent SELECT i, 0 FROM generate_series(1, 20) i;
    CREATE PUBLICATION synctool_shop FOR TABLE wallet, account, parent, child, history, era";

/// Tables whose columns come and go, and those that every one of them has.
pub(crate) const ALTERED: [(&str, &str); 4] = [
    ("wallet", "name, v, version, note"),
    ("account", "region, id, v, version"),
    ("parent", "id, children"),
    ("child", "id, parent, filler"),
];

/// What is to be nothing in every snapshot: the sum of all money, writers whose history has a hole, wallets and accounts
/// that are not what the history makes of them, parents that count other children than there are. Then the age, how long
/// the history is, and the version of every wallet.
const BALANCE: &str = "
    SELECT (SELECT coalesce(sum(v), 0)::bigint FROM wallet) + (SELECT coalesce(sum(v), 0)::bigint FROM account),
           (SELECT count(*) FROM (SELECT writer FROM history GROUP BY writer HAVING count(*) <> max(n) - min(n) + 1) x),
           (SELECT count(*) FROM wallet w FULL JOIN (SELECT wallet, sum(amount) v, count(*) n FROM history GROUP BY wallet) h ON h.wallet = w.name
            WHERE w.name IS NULL OR w.v <> coalesce(h.v, 0) OR w.version <> coalesce(h.n, 0)),
           (SELECT count(*) FROM account a FULL JOIN (SELECT account, sum(amount) v, count(*) n FROM history GROUP BY account) h ON h.account = a.id
            WHERE a.id IS NULL OR a.v <> -coalesce(h.v, 0) OR a.version <> coalesce(h.n, 0)),
           (SELECT count(*) FROM parent p FULL JOIN (SELECT parent, count(*) n FROM child GROUP BY parent) c ON c.parent = p.id
            WHERE p.id IS NULL OR p.children <> coalesce(c.n, 0)),
           (SELECT n::bigint FROM era), (SELECT count(*) FROM history),
           (SELECT string_agg(name || ' ' || version, ',') FROM wallet)";

/// What a violation is about.
const BOOKS_THAT_DIFFER: &str = "
    SELECT w.name, w.v, w.version, w.xmin, md5(w.note), h.*, now() FROM wallet w FULL JOIN
           (SELECT wallet, sum(amount) v, count(*) n, string_agg(format('%s %s: %s', writer, n, amount), ', ' ORDER BY n) FROM history GROUP BY wallet) h ON h.wallet = w.name
    WHERE w.name IS NULL OR w.v <> coalesce(h.v, 0) OR w.version <> coalesce(h.n, 0);
    SELECT a.*, a.xmin, h.* FROM account a FULL JOIN
           (SELECT account, sum(amount) v, count(*) n, string_agg(format('%s %s: %s', writer, n, amount), ', ' ORDER BY n) FROM history GROUP BY account) h ON h.account = a.id
    WHERE a.id IS NULL OR a.v <> -coalesce(h.v, 0) OR a.version <> coalesce(h.n, 0);
    SELECT p.*, p.xmin, c.* FROM parent p FULL JOIN (SELECT parent, count(*) n FROM child GROUP BY parent) c ON c.parent = p.id
    WHERE p.id IS NULL OR p.children <> coalesce(c.n, 0);
    SELECT writer, n, xmin FROM (SELECT *, xmin, row_number() OVER (PARTITION BY writer ORDER BY n DESC) r FROM history) x WHERE r < 4 ORDER BY writer, n;
    SELECT position, xmin FROM synctool.checkpoint WHERE NOT done";

/// One transaction of a writer; where two want one row, one of them fails.
fn transaction(dice: &mut Dice, writer: u64, n: u64) -> String {
    let (wallet, account, amount) = (1 + dice.roll(40), 1 + dice.roll(40), dice.roll(1000));
    let note = match dice.roll(4) {
        0 => format!(", note = repeat('{n}', {})", dice.roll(900)),
        _ => String::new(),
    };
    let mut sql = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ; UPDATE wallet SET v = v + {amount}, version = version + 1{note} WHERE name = 'w{wallet}';
         UPDATE account SET v = v - {amount}, version = version + 1 WHERE id = {account};
         INSERT INTO history VALUES ({writer}, {n}, 'w{wallet}', {account}, {amount});"
    );
    for _ in 0..dice.roll(4) {
        let (p, q) = (1 + dice.roll(20), 1 + dice.roll(20));
        let first = (n * 4 + writer) * 10_000 + dice.roll(8) * 1000;
        let insert = |count| {
            format!(
                "WITH i AS (INSERT INTO child SELECT {first} + i, {p}, repeat('c', {q}) FROM generate_series(1, {count}) i ON CONFLICT DO NOTHING RETURNING 1)
                 UPDATE parent SET children = children + (SELECT count(*) FROM i) WHERE id = {p};"
            )
        };
        sql += &match dice.roll(8) {
            0 => insert(1 + dice.roll(5)),
            1 if dice.roll(10) == 0 => insert(400),
            1 | 2 => format!(
                "WITH d AS (DELETE FROM child WHERE id IN (SELECT id FROM child WHERE parent = {p} LIMIT 9 FOR UPDATE) RETURNING 1)
                 UPDATE parent SET children = children - (SELECT count(*) FROM d) WHERE id = {p};"
            ),
            3 if p != q => format!(
                "WITH m AS (UPDATE child SET parent = {q} WHERE id IN (SELECT id FROM child WHERE parent = {p} LIMIT 3 FOR UPDATE) RETURNING 1)
                 UPDATE parent SET children = children + CASE id WHEN {q} THEN c ELSE -c END FROM (SELECT count(*) c FROM m) x WHERE id IN ({p}, {q});"
            ),
            4 => format!("UPDATE account SET region = 'r{}' WHERE id = {p};", dice.roll(5)),
            5 => format!("WITH g AS (DELETE FROM wallet WHERE name = 'w{p}' RETURNING *) INSERT INTO wallet SELECT * FROM g;"),
            6 => format!("SAVEPOINT s; UPDATE wallet SET v = v + 5 WHERE name > 'w{p}'; DELETE FROM child WHERE parent = {q}; ROLLBACK TO s;"),
            _ => format!("UPDATE child SET id = -id WHERE id = (SELECT max(id) FROM child WHERE parent = {p});"),
        };
    }
    sql + "COMMIT"
}

/// What everybody in the storm shares.
pub(crate) struct World {
    /// Held by writers for each transaction: who has it alone has silence.
    pub(crate) gate: tokio::sync::RwLock<()>,
    pub(crate) over: AtomicBool,
    /// Transactions that writers made.
    pub(crate) made: AtomicU64,
    /// While tables are compared after a gap, what is seen is of several places of the log.
    pub(crate) unwatched: AtomicBool,
    /// Whether the destination may forget in a crash what it has not flushed; it comes again.
    pub(crate) forgets: bool,
    pub(crate) looks: AtomicU64,
    pub(crate) violation: Mutex<Option<String>>,
}

impl World {
    /// A storm before it begins; whether the destination may forget in it.
    pub(crate) fn new(forgets: bool) -> World {
        World {
            gate: tokio::sync::RwLock::default(),
            over: AtomicBool::new(false),
            made: AtomicU64::new(0),
            unwatched: AtomicBool::new(false),
            forgets,
            looks: AtomicU64::new(0),
            violation: Mutex::default(),
        }
    }
}

/// Writes until it is over, whatever happens to the server; each transaction once.
pub(crate) async fn write(world: &World, url: &str, writer: u64, seed: u64) {
    let mut dice = Dice::new(seed ^ (writer << 40));
    let mut n = 1;
    while !world.over.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(url, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let driver = tokio::spawn(connection);
        // A commit whose answer was lost is one or none.
        let known = client
            .query_one(
                "SELECT coalesce(max(n), 0) FROM history WHERE writer = $1::int4",
                &[&(writer as i32)],
            )
            .await;
        if let Ok(row) = known {
            n = n.max(row.get::<_, i64>(0) as u64 + 1);
            while !world.over.load(Ordering::Relaxed) && !driver.is_finished() {
                let done = {
                    let _gate = world.gate.read().await;
                    client.batch_execute(&transaction(&mut dice, writer, n)).await
                };
                match done {
                    Ok(()) => {
                        n += 1;
                        world.made.fetch_add(1, Ordering::Relaxed);
                    }
                    // Writers meet: whoever loses does another one.
                    Err(_) if client.batch_execute("ROLLBACK").await.is_ok() => {}
                    Err(_) => break,
                }
                let _ = client.batch_execute("SELECT pg_sleep(0.006)").await;
            }
        }
        driver.abort();
    }
}

/// The books that are wrong, a line each, in the snapshot in which they were seen.
async fn differing(client: &tokio_postgres::Client) -> String {
    let found = client.simple_query(BOOKS_THAT_DIFFER).await.unwrap_or_default();
    let lines = found.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let cells = (0..row.len()).map(|i| row.get(i).unwrap_or_default());
            Some(Vec::from_iter(cells).join(" | "))
        }
        _ => None,
    });
    Vec::from_iter(lines).join("\n")
}

/// Looks at the destination until it is over, and says what is wrong with what it sees.
pub(crate) async fn watch(world: &World, url: &str) {
    let mut seen: BTreeMap<String, u64> = BTreeMap::new();
    let (mut age, mut length) = (-1, 0);
    while !world.over.load(Ordering::Relaxed) {
        let Ok((client, connection)) = tokio_postgres::connect(url, NoTls).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let driver = tokio::spawn(connection);
        // Nothing but a crash of the server ends this connection.
        if world.forgets {
            (age, length) = (-1, 0);
        }
        while !world.over.load(Ordering::Relaxed) {
            let before = world.unwatched.load(Ordering::SeqCst);
            // Locked before the snapshot is taken: TRUNCATE empties a table for older snapshots too.
            let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; LOCK wallet, account, parent, child, history, era IN ACCESS SHARE MODE";
            if client.batch_execute(begin).await.is_err() {
                break;
            }
            let Ok(row) = client.query_one(BALANCE, &[]).await else {
                break;
            };
            if before || world.unwatched.load(Ordering::SeqCst) {
                (age, length) = (-1, 0);
            } else {
                let wrong: Vec<i64> = (0..5).map(|i| row.get(i)).collect();
                let versions = row.get::<_, Option<String>>(7).unwrap_or_default();
                let versions = versions.split(',').filter_map(|pair| {
                    let (name, version) = pair.split_once(' ')?;
                    Some((name.to_owned(), version.parse().ok()?))
                });
                let versions: BTreeMap<String, u64> = versions.collect();
                if row.get::<_, i64>(5) != age {
                    (age, length) = (row.get(5), 0);
                    seen.clear();
                }
                let back: Vec<&String> = seen
                    .iter()
                    .filter(|(k, v)| versions.get(*k) < Some(*v))
                    .map(|(k, _)| k)
                    .collect();
                let violation = if wrong.iter().any(|n| *n != 0) {
                    Some(format!(
                        "a part of a transaction is seen (sum, holes, wallets, accounts, parents): {wrong:?}"
                    ))
                } else if !back.is_empty() || row.get::<_, i64>(6) < length {
                    Some(format!("what was seen is gone: {length} transactions, {back:?}"))
                } else {
                    None
                };
                if let Some(violation) = violation {
                    let violation = Some(format!("{violation}\n{}", differing(&client).await));
                    *world.violation.lock().expect("nobody panics with it") = violation;
                    return;
                }
                (seen, length) = (versions, row.get(6));
                world.looks.fetch_add(1, Ordering::Relaxed);
            }
            if client.batch_execute("COMMIT; SELECT pg_sleep(0.02)").await.is_err() {
                break;
            }
        }
        driver.abort();
    }
}
