//! A short storm around a capture of MariaDB, with the books of the storm around PostgreSQL's: the program, the source and
//! the destination are killed with -9, connections are cut, tables get other columns. At every moment the destination
//! shows whole transactions, none twice; after each round both ends are equal.

#![allow(clippy::print_stdout, reason = "a storm says its seed and how much it did")]

use super::*;
use crate::storm::Over;
use crate::storm::books::{ALTERED, World, watch};
use std::sync::Arc;
use std::time::{Duration, Instant};
use synctool_testkit::proxy::Mode;
use synctool_testkit::{Dice, FaultProxy, is_soak};

/// The books as MariaDB keeps them.
const BOOKS: &str = "
    CREATE TABLE wallet (name varchar(40) PRIMARY KEY, v bigint NOT NULL, version bigint NOT NULL, note text);
    CREATE TABLE account (region varchar(8), id int, v bigint NOT NULL, version bigint NOT NULL, PRIMARY KEY (region, id));
    CREATE TABLE parent (id int PRIMARY KEY, children int NOT NULL);
    CREATE TABLE child (id bigint PRIMARY KEY, parent int NOT NULL, filler text);
    CREATE TABLE history (writer int, n bigint, wallet varchar(40), account int, amount bigint NOT NULL, PRIMARY KEY (writer, n));
    CREATE TABLE era (id int PRIMARY KEY, n int NOT NULL); INSERT INTO era VALUES (1, 0);
    INSERT INTO wallet SELECT concat('w', seq), 0, 0, repeat('n', 2500) FROM seq_1_to_40;
    INSERT INTO account SELECT concat('r', seq % 5), seq, 0, 0 FROM seq_1_to_40;
    INSERT INTO parent SELECT seq, 0 FROM seq_1_to_20";

/// Rounds of a test.
fn rounds() -> u64 {
    match is_soak() {
        true => 100,
        false => 4,
    }
}

/// One transaction of a writer; where two want one row, one of them fails.
fn transaction(dice: &mut Dice, writer: u64, n: u64) -> String {
    let (wallet, account, amount) = (1 + dice.roll(40), 1 + dice.roll(40), dice.roll(1000));
    let note = match dice.roll(4) {
        0 => format!(", note = repeat('{n}', {})", dice.roll(900)),
        _ => String::new(),
    };
    let mut sql = format!(
        "START TRANSACTION; UPDATE wallet SET v = v + {amount}, version = version + 1{note} WHERE name = 'w{wallet}';
         UPDATE account SET v = v - {amount}, version = version + 1 WHERE id = {account};
         INSERT INTO history VALUES ({writer}, {n}, 'w{wallet}', {account}, {amount});"
    );
    for _ in 0..dice.roll(4) {
        let (p, q) = (1 + dice.roll(20), 1 + dice.roll(20));
        let first = (n * 4 + writer) * 10_000 + dice.roll(8) * 1000;
        sql += &match dice.roll(7) {
            0 | 1 => format!(
                "INSERT IGNORE INTO child (id, parent, filler) SELECT {first} + seq, {p}, repeat('c', {q}) FROM seq_1_to_{};
                 SET @n = ROW_COUNT(); UPDATE parent SET children = children + @n WHERE id = {p};",
                1 + dice.roll(9)
            ),
            2 => format!(
                "DELETE FROM child WHERE parent = {p} LIMIT 9; SET @n = ROW_COUNT();
                 UPDATE parent SET children = children - @n WHERE id = {p};"
            ),
            3 if p != q => format!(
                "UPDATE child SET parent = {q} WHERE parent = {p} LIMIT 3; SET @n = ROW_COUNT();
                 UPDATE parent SET children = children + IF(id = {q}, @n, -@n) WHERE id IN ({p}, {q});"
            ),
            4 => format!("UPDATE account SET region = 'r{}' WHERE id = {p};", dice.roll(5)),
            5 => format!(
                "SAVEPOINT s; UPDATE wallet SET v = v + 5 WHERE name > 'w{p}'; DELETE FROM child WHERE parent = {q}; ROLLBACK TO s;"
            ),
            _ => format!("UPDATE IGNORE child SET id = -id WHERE parent = {p} LIMIT 1;"),
        };
    }
    sql + "COMMIT"
}

/// Writes until it is over, whatever happens to the server; each transaction once.
fn write(world: &World, server: &MariaDb, database: &str, writer: u64, seed: u64) {
    let mut dice = Dice::new(seed ^ (writer << 40));
    while !world.over.load(Ordering::Relaxed) {
        let _gate = world.gate.blocking_read();
        // A commit whose answer was lost is one or none.
        let known = format!("SELECT coalesce(max(n), 0) FROM history WHERE writer = {writer}");
        let Some(n) = server
            .try_sql(database, &known)
            .ok()
            .and_then(|n| n.parse::<u64>().ok())
        else {
            // The client has waited for the server already.
            continue;
        };
        // Some at a time: every client is a session of its own, which ends with its first error.
        let some: Vec<String> = (n + 1..n + 9)
            .map(|n| transaction(&mut dice, writer, n) + "; DO sleep(0.006)")
            .collect();
        if server.try_sql(database, &some.join(";")).is_ok() {
            world.made.fetch_add(8, Ordering::Relaxed);
        }
    }
}

/// A column that came during the storm.
struct Extra {
    table: &'static str,
    source: String,
    destination: String,
}

struct Storm {
    server: Arc<MariaDb>,
    to: Postgres,
    stage: Stage,
    near: FaultProxy,
    far: FaultProxy,
    dice: Dice,
    world: Arc<World>,
    running: Option<Running>,
    extras: Vec<Extra>,
    names: u64,
    told: Vec<String>,
    kills: [u64; 3],
}

impl Storm {
    fn new(seed: u64) -> Storm {
        let server = Arc::new(MariaDb::start());
        let to = Postgres::start(PgVersion::V18);
        let (near, far) = (FaultProxy::to(server.port()), FaultProxy::to(to.port()));
        let from = server.database("storm");
        from.sql(BOOKS);
        let stage = Stage {
            from,
            to: to.database("storm_to"),
            home: tempfile::tempdir().expect("a folder"),
        };
        let copy = format!(
            "{{type: postgres, connection: {{url: \"{}\"}}}}",
            far.through(&stage.to.url())
        );
        stage.pipeline_from(&near.through(&stage.from.url()), &copy, "tables: []", "");
        let file = stage.home.path().join("shop.yaml");
        let text = std::fs::read_to_string(&file).expect("the pipeline") + "schema_drift: evolve\n";
        std::fs::write(file, text).expect("written");
        Storm {
            server,
            to,
            stage,
            near,
            far,
            dice: Dice::new(seed),
            world: Arc::new(World::new(true)),
            running: None,
            extras: Vec::new(),
            names: 0,
            told: Vec::new(),
            kills: [0; 3],
        }
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let said = self.running.as_ref().map(Running::stderr).unwrap_or_default();
        panic!(
            "{why}\nwhat happened:\n  {}\nthe program said:\n{said}",
            self.told.join("\n  ")
        );
    }

    /// Nothing wrong was seen, and the program has not ended by itself.
    #[track_caller]
    fn check(&mut self) {
        let violation = self.world.violation.lock().expect("nobody panics with it").clone();
        if let Some(violation) = violation {
            self.fail(&violation);
        }
        if self.running.as_mut().is_some_and(Running::has_ended) {
            self.fail("the program ended by itself");
        }
    }

    fn run(&self) -> KillRun {
        KillRun::new(&self.stage.command(&["run", "shop.yaml"])).limit(Duration::from_secs(7200))
    }

    fn start(&mut self) {
        if self.running.is_none() {
            self.running = Some(self.run().start());
        }
    }

    /// Lets writers write for a moment.
    #[track_caller]
    fn pass(&mut self) {
        let (begun, moment) = (Instant::now(), Duration::from_millis(50 + self.dice.roll(400)));
        wait_for("a moment to pass", PATIENCE, || begun.elapsed() > moment);
        self.check();
    }

    fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            let outcome = running.kill();
            assert!(!outcome.stderr.contains("panicked"), "{}", outcome.stderr);
            self.kills[0] += 1;
        }
    }

    /// One thing goes wrong, or another.
    #[track_caller]
    fn disturb(&mut self) {
        self.start();
        match self.dice.roll(12) {
            0..3 => {
                self.told.push("the program is killed".into());
                self.kill();
                self.pass();
                self.start();
            }
            3 => {
                self.told.push("the source is killed".into());
                self.server.kill9();
                self.kills[1] += 1;
                self.pass();
                self.server.restart();
            }
            4 => {
                self.told.push("the destination is killed".into());
                self.to.kill9();
                self.kills[2] += 1;
                self.pass();
                self.to.restart();
            }
            5..8 => {
                let mode = match self.dice.roll(3) {
                    0 => Mode::CutToClient(self.dice.roll(30_000)),
                    1 => Mode::CutToServer(self.dice.roll(20_000)),
                    _ => Mode::Reset,
                };
                let near = self.dice.roll(2) == 0;
                self.told
                    .push(format!("cut at the source ({near}) or the destination: {mode:?}"));
                let proxy = if near { &self.near } else { &self.far };
                proxy.set_once(mode);
                self.pass();
            }
            _ => self.alter(),
        }
        self.check();
    }

    /// A table gets a column, loses it, gets it back, widens it, or calls it otherwise.
    #[track_caller]
    fn alter(&mut self) {
        self.names += 1;
        let name = format!("c{}", self.names);
        let table = ALTERED[self.dice.roll(4) as usize].0;
        let mine: Vec<usize> = (0..self.extras.len())
            .filter(|at| self.extras[*at].table == table)
            .collect();
        let one = mine.get(self.dice.roll(mine.len().max(1) as u64) as usize).copied();
        let touch = |column: &str| format!("UPDATE {table} SET {column} = 7 LIMIT 3");
        let sql = match (self.dice.roll(6), one) {
            (0, Some(at)) => format!("ALTER TABLE {table} DROP COLUMN {}", self.extras.remove(at).source),
            (1, Some(at)) => {
                let old = std::mem::replace(&mut self.extras[at].source, name.clone());
                format!(
                    "{}; ALTER TABLE {table} RENAME COLUMN {old} TO {name}; {}",
                    touch(&old),
                    touch(&name)
                )
            }
            (2, Some(at)) if self.extras[at].source == self.extras[at].destination => {
                let again = &self.extras[at].source;
                format!(
                    "ALTER TABLE {table} DROP COLUMN {again}; ALTER TABLE {table} ADD COLUMN {again} bigint; {}",
                    touch(again)
                )
            }
            (3, Some(at)) => {
                let wider = &self.extras[at].source;
                format!("ALTER TABLE {table} MODIFY {wider} bigint; {}", touch(wider))
            }
            _ => {
                self.extras.push(Extra {
                    table,
                    source: name.clone(),
                    destination: name.clone(),
                });
                let default = ["", " DEFAULT 5"][self.dice.roll(2) as usize];
                format!("ALTER TABLE {table} ADD COLUMN {name} int{default}; {}", touch(&name))
            }
        };
        self.told.push(sql.clone());
        for statement in sql.split("; ") {
            // Writers stand in the way of one another.
            wait_for("the table to be altered", PATIENCE, || {
                self.server.try_sql(self.stage.from.name(), statement)
            });
        }
    }

    /// Which tables differ, by the columns that the source has now.
    fn different(&self) -> Vec<String> {
        let mut tables: Vec<(&str, String, String)> = Vec::new();
        for (table, columns) in ALTERED {
            let (mut from, mut to) = (columns.to_owned(), columns.to_owned());
            for extra in self.extras.iter().filter(|e| e.table == table) {
                from += &format!(", {}", extra.source);
                to += &format!(", {}", extra.destination);
            }
            tables.push((table, from, to));
        }
        for (table, columns) in [("history", "writer, n, wallet, account, amount"), ("era", "id, n")] {
            tables.push((table, columns.into(), columns.into()));
        }
        let differs = |(table, from, to): &(&str, String, String)| {
            let (there, here) = (self.stage.wanted(table, from), self.stage.found(table, to));
            let only: Vec<&String> = there.iter().filter(|r| !here.contains(r)).take(3).collect();
            (there != here).then(|| format!("{table} ({from} / {to}): {} / {}, {only:?}", there.len(), here.len()))
        };
        tables.iter().filter_map(differs).collect()
    }

    /// Silence: the program catches up, and both ends are equal.
    #[track_caller]
    fn settle(&mut self) {
        self.near.set(Mode::Forward);
        self.far.set(Mode::Forward);
        let world = self.world.clone();
        let _gate = world.gate.blocking_write();
        self.start();
        let begun = Instant::now();
        loop {
            let different = self.different();
            self.check();
            if different.is_empty() {
                break;
            }
            if begun.elapsed() > PATIENCE {
                self.fail(&format!("both ends are not equal: {different:#?}"));
            }
        }
    }
}

#[test]
fn a_storm_leaves_both_ends_equal() {
    let seed = Dice::seed();
    println!("SYNCTOOL_TEST_SEED={seed} repeats it");
    let mut storm = Storm::new(seed);
    // Chunks of a first load are seen as they come.
    storm.settle();
    let over = Over(storm.world.clone());
    let writers: Vec<Writer> = (1..=2)
        .map(|writer| {
            let (world, server) = (storm.world.clone(), storm.server.clone());
            let database = storm.stage.from.name().to_owned();
            Writer::of(move |_| {
                write(&world, &server, &database, writer, seed);
                0
            })
        })
        .collect();
    let (world, to) = (storm.world.clone(), storm.stage.to.url());
    let watcher = Writer::of(move |_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(watch(&world, &to));
        0
    });
    for round in 0..rounds() {
        storm.told.push(format!("round {round}"));
        for _ in 0..1 + storm.dice.roll(3) {
            storm.pass();
            storm.disturb();
        }
        storm.settle();
    }
    drop(over);
    writers.into_iter().for_each(|writer| {
        writer.end();
    });
    watcher.end();
    storm.check();
    if let Some(running) = storm.running.take() {
        stop(running);
    }
    let (made, looks) = (
        storm.world.made.load(Ordering::Relaxed),
        storm.world.looks.load(Ordering::Relaxed),
    );
    println!(
        "seed {seed}: {made} transactions, {looks} looks, killed were program, source and destination {:?} times",
        storm.kills
    );
    assert!(
        made > 5 * rounds() && looks > 3 * rounds(),
        "{made} transactions, {looks} looks"
    );
}
