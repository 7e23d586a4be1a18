//! A storm around the whole program: writers keep books whose every snapshot can be checked, while the program, the
//! source and the destination are killed with -9, connections are cut, tables change their shape and come and go. At
//! every moment the destination shows whole transactions, all of them up to some place, none twice; after each round
//! both ends are equal.

#![allow(clippy::print_stdout, reason = "a storm says its seed and how much it did")]

pub(super) mod books;

use super::*;
use books::{ALTERED, BOOKS, World, watch, write};
use std::collections::BTreeSet;
use std::time::Instant;
use synctool_testkit::proxy::Mode;
use synctool_testkit::{Dice, FaultProxy, is_soak};

/// Rounds of a test, with a disturbance or some in each. All of them are done, whatever time was asked for.
fn rounds() -> u64 {
    if is_soak() { 200 } else { 7 }
}

/// How long a test may take altogether, less than its runner allows.
fn most() -> Duration {
    Duration::from_secs(if is_soak() { 55 * 60 } else { 200 })
}

/// One round of a soak, with a seed of its own: the first has that of the run, so that a run that is given another one's
/// seed begins with its accidents. It is told if the round fails.
struct Round {
    nth: u64,
    seed: u64,
}

impl Round {
    fn new(nth: u64, seed: u64) -> Round {
        let seed = match nth {
            0 => seed,
            _ => Dice::new(seed ^ (nth << 40)).roll(u64::MAX),
        };
        Round { nth, seed }
    }
}

impl Drop for Round {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "round {} failed, SYNCTOOL_TEST_SEED={} begins with it",
                self.nth, self.seed
            );
        }
    }
}

/// A column that came during the storm.
struct Extra {
    table: &'static str,
    source: String,
    destination: String,
    kind: &'static str,
}

/// What disturbs, and what it knows.
struct Storm {
    from: Postgres,
    to: Postgres,
    stage: Stage,
    near: FaultProxy,
    far: FaultProxy,
    dice: Dice,
    world: Arc<World>,
    running: Option<Running>,
    /// Columns that came, and tables.
    extras: Vec<Extra>,
    late: Vec<String>,
    names: u64,
    /// Tables came, or came back: who follows them begins anew, so that nobody waits for a round of it.
    members_changed: bool,
    repairing: bool,
    /// Columns that were made again with another type: refused, until somebody does what is said.
    retyped: Vec<(&'static str, String)>,
    told: Vec<String>,
    kills: [u64; 3],
}

impl Storm {
    fn new(version: PgVersion, seed: u64) -> Storm {
        let from = Postgres::builder(version).setting("deadlock_timeout", "50ms").start();
        let to = Postgres::start(PgVersion::V18);
        let (near, far) = (FaultProxy::to(from.port()), FaultProxy::to(to.port()));
        let stage = Stage::between(from.database("storm"), &to);
        stage.from.psql(BOOKS);
        // As it comes, commits of a log do not wait for the destination's disk; where they do, nothing is ever seen to go back.
        let forgets = version == PgVersion::V15;
        if !forgets {
            let name = stage.to.name();
            stage
                .to
                .psql(&format!("ALTER DATABASE {name} SET synchronous_commit = on"));
        }
        let ends = format!(
            "name: shop\ndatastores:\n  from: {{type: postgres, connection: {{url: \"{}\"}}}}\n  to: {{type: postgres, connection: {{url: \"{}\"}}}}\n\
             source: {{datastore: from, schema: public}}\ndestination: {{datastore: to}}\n\
             strategies:\n  - {{type: log, slot: {}, chunk_rows: 50, heartbeat: 1s}}\n",
            near.through(&stage.from.url()),
            far.through(&stage.to.url()),
            stage.slot
        );
        std::fs::write(stage.home.path().join("shop.yaml"), ends).expect("written");
        Storm {
            from,
            to,
            stage,
            near,
            far,
            dice: Dice::new(seed),
            world: Arc::new(World::new(forgets)),
            running: None,
            extras: Vec::new(),
            late: Vec::new(),
            names: 0,
            members_changed: false,
            repairing: false,
            retyped: Vec::new(),
            told: Vec::new(),
            kills: [0; 3],
        }
    }

    fn tell(&mut self, what: String) {
        self.told.push(what);
    }

    #[track_caller]
    fn fail(&self, why: &str) -> ! {
        let said = self.running.as_ref().map(Running::stderr).unwrap_or_default();
        let lately = &self.told[self.told.len().saturating_sub(25)..];
        panic!(
            "{why}\nwhat happened lately:\n  {}\nthe program said:\n{said}",
            lately.join("\n  ")
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
            let said = self.running.as_ref().map(Running::stderr).unwrap_or_default();
            if self.retyped.is_empty() || !said.contains("changed its shape: column") || !said.contains("next:") {
                self.fail("the program ended by itself");
            }
            // As the hint says.
            for (table, column) in std::mem::take(&mut self.retyped) {
                let sql = format!("ALTER TABLE {table} DROP COLUMN IF EXISTS {column}");
                self.tell(format!("at the destination, as it was told: {sql}"));
                wait_for("the destination's table to be altered", PATIENCE, || {
                    self.stage.to.try_psql(&sql)
                });
            }
            self.running = None;
            self.start();
        }
    }

    fn run(&self) -> KillRun {
        let arguments: &[&str] = match self.repairing {
            true => &["run", "shop.yaml", "--repair"],
            false => &["run", "shop.yaml"],
        };
        KillRun::new(&self.stage.command(arguments)).limit(Duration::from_secs(7200))
    }

    fn start(&mut self) {
        if self.running.is_none() {
            self.running = Some(self.run().start());
        }
    }

    /// Lets writers write for a moment.
    #[track_caller]
    fn pass(&mut self) {
        let (before, begun) = (self.world.made.load(Ordering::Relaxed), Instant::now());
        let (some, moment) = (1 + self.dice.roll(60), Duration::from_millis(50 + self.dice.roll(500)));
        wait_for("a moment to pass", PATIENCE, || {
            self.world.made.load(Ordering::Relaxed) >= before + some || begun.elapsed() > moment
        });
        self.check();
    }

    fn kill(&mut self) {
        if let Some(running) = self.running.take() {
            let outcome = running.kill();
            if outcome.stderr.contains("panicked") {
                self.fail(&outcome.stderr);
            }
            self.kills[0] += 1;
        }
    }

    /// A command of a user beside the run; whether it got through is up to the storm.
    fn command(&mut self, arguments: &[&str]) -> bool {
        let (code, _, err) = self.stage.run(arguments);
        self.tell(format!(
            "{arguments:?}: {code} {}",
            err.lines().next().unwrap_or_default()
        ));
        code == 0
    }

    /// One thing goes wrong, or another.
    #[track_caller]
    fn disturb(&mut self) {
        self.start();
        match self.dice.roll(22) {
            0..4 => {
                self.tell("the program is killed".into());
                self.kill();
                if self.dice.roll(2) == 0 {
                    self.pass();
                }
                self.start();
            }
            4 | 5 => self.kill_at_a_failpoint(),
            6 | 7 => {
                self.tell("the source is killed".into());
                self.from.kill9();
                self.kills[1] += 1;
                self.pass();
                self.from.restart();
            }
            8 => {
                self.tell("the destination is killed".into());
                self.to.kill9();
                self.kills[2] += 1;
                self.pass();
                self.to.restart();
            }
            9..13 => {
                let mode = match self.dice.roll(4) {
                    0 => Mode::CutToClient(self.dice.roll(30_000)),
                    1 => Mode::CutToServer(self.dice.roll(20_000)),
                    2 => Mode::CutToClient(self.dice.roll(300)),
                    _ => Mode::Reset,
                };
                let (proxy, end) = match self.dice.roll(2) {
                    0 => (&self.near, "source"),
                    _ => (&self.far, "destination"),
                };
                proxy.set_once(mode);
                self.tell(format!("the {end}: {mode:?}"));
                self.pass();
            }
            13 => {
                let near = self.dice.roll(2) == 0;
                self.tell(format!("connections are refused, of the source: {near}"));
                let proxy = if near { &self.near } else { &self.far };
                proxy.set(Mode::Reset);
                proxy.set(Mode::Refuse);
                self.pass();
                let proxy = if near { &self.near } else { &self.far };
                proxy.set(Mode::Forward);
            }
            14..17 => self.alter(),
            17 => {
                let table = ALTERED[self.dice.roll(4) as usize].0;
                self.command(&["cdc", "refresh", "shop.yaml", table]);
            }
            18 => {
                self.command(&["cdc", "pause", "shop.yaml"]);
                self.pass();
                self.resume();
            }
            19 => self.tables_come_and_go(),
            20 => {
                self.tell("all children go".into());
                let _ = self
                    .stage
                    .from
                    .try_psql("BEGIN; LOCK parent; TRUNCATE child; UPDATE parent SET children = 0; COMMIT");
            }
            _ if self.dice.roll(3) == 0 => self.lose_the_slot(),
            _ => {
                self.tell("the program is stopped".into());
                self.stop();
            }
        }
        self.check();
    }

    /// Whoever wants to be sure that it goes on says so until it is heard.
    #[track_caller]
    fn resume(&mut self) {
        self.near.set(Mode::Forward);
        self.far.set(Mode::Forward);
        wait_for("the capture to be resumed", PATIENCE, || {
            self.command(&["cdc", "resume", "shop.yaml"])
        });
    }

    #[track_caller]
    fn stop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        running.interrupt();
        let mut asked = Instant::now();
        wait_for("the program to stop", PATIENCE, || {
            // In its first moments it does not listen yet.
            if asked.elapsed() > Duration::from_secs(5) {
                running.interrupt();
                asked = Instant::now();
            }
            running.has_ended()
        });
        let outcome = running.wait();
        let early = outcome.code.is_none() && outcome.stderr.is_empty();
        if outcome.code != Some(130) && !early {
            self.fail(&format!(
                "stopped, it ended with {:?}: {}",
                outcome.code, outcome.stderr
            ));
        }
    }

    fn kill_at_a_failpoint(&mut self) {
        const POINTS: [&str; 6] = [
            "engine.commit.before",
            "engine.commit.after",
            "sink.commit.after",
            "sink.write",
            "log.acknowledge.before",
            "log.acknowledge.after",
        ];
        let point = synctool_testkit::kill::Failpoint {
            name: POINTS[self.dice.roll(6) as usize].into(),
            nth: 1 + self.dice.roll(6) as u32,
        };
        self.tell(format!("the program is killed at {point}"));
        self.kill();
        let mut running = self
            .run()
            .accident(&point, synctool_testkit::kill::Action::Kill)
            .start();
        let begun = Instant::now();
        wait_for("the failpoint, or enough of waiting", PATIENCE, || {
            running.has_ended() || begun.elapsed() > Duration::from_secs(2)
        });
        let outcome = running.kill();
        if !outcome.killed || outcome.stderr.contains("panicked") {
            self.fail(&format!(
                "it ended with {:?} before {point}: {}",
                outcome.code, outcome.stderr
            ));
        }
        self.kills[0] += 1;
        self.start();
    }

    /// A table gets a column, loses it, gets it back, or calls it otherwise; in a transaction with rows.
    #[track_caller]
    fn alter(&mut self) {
        self.names += 1;
        let name = format!("c{}", self.names);
        let table = ALTERED[self.dice.roll(4) as usize].0;
        let mine: Vec<usize> = (0..self.extras.len())
            .filter(|i| self.extras[*i].table == table)
            .collect();
        let one = |dice: &mut Dice| mine.get(dice.roll(mine.len().max(1) as u64) as usize).copied();
        let kind = [
            "int",
            "int DEFAULT 7",
            "text DEFAULT 'filled'",
            "numeric(9,2) NOT NULL DEFAULT 1.5",
            "timestamptz",
        ][self.dice.roll(5) as usize];
        let touch = |column: &str| {
            format!("UPDATE {table} SET {column} = DEFAULT WHERE ctid IN (SELECT ctid FROM {table} LIMIT 3)")
        };
        let sql = match (self.dice.roll(6), one(&mut self.dice)) {
            (0, Some(at)) => {
                let gone = self.extras.remove(at);
                format!("ALTER TABLE {table} DROP COLUMN {}", gone.source)
            }
            (1, Some(at)) => {
                let old = std::mem::replace(&mut self.extras[at].source, name.clone());
                format!(
                    "{}; ALTER TABLE {table} RENAME {old} TO {name}; {}",
                    touch(&old),
                    touch(&name)
                )
            }
            (2, Some(at)) if self.extras[at].source == self.extras[at].destination => {
                let again = self.extras[at].source.clone();
                if std::mem::replace(&mut self.extras[at].kind, kind) != kind {
                    self.retyped.push((table, again.clone()));
                }
                format!(
                    "ALTER TABLE {table} DROP COLUMN {again}; ALTER TABLE {table} ADD COLUMN {again} {kind}; {}",
                    touch(&again)
                )
            }
            _ => {
                self.extras.push(Extra {
                    table,
                    source: name.clone(),
                    destination: name.clone(),
                    kind,
                });
                format!("ALTER TABLE {table} ADD COLUMN {name} {kind}; {}", touch(&name))
            }
        };
        self.tell(sql.clone());
        self.stage.from.psql(&format!("BEGIN; LOCK {table}; {sql}; COMMIT"));
    }

    /// A table that comes into the publication, or is taken out, changed and put back.
    #[track_caller]
    fn tables_come_and_go(&mut self) {
        self.members_changed = true;
        self.names += 1;
        let n = self.names;
        let name = format!("late{n}");
        let sql = match self.dice.roll(2) {
            0 if !self.late.is_empty() => {
                let again = &self.late[self.dice.roll(self.late.len() as u64) as usize];
                format!(
                    "ALTER PUBLICATION synctool_shop DROP TABLE {again}; DELETE FROM {again} WHERE id % 3 = 0; UPDATE {again} SET t = 'unseen {n}' WHERE id % 3 = 1;
                     ALTER PUBLICATION synctool_shop ADD TABLE {again}; UPDATE {again} SET t = 'seen {n}' WHERE id % 5 = 1"
                )
            }
            _ => {
                let made = format!(
                    "CREATE TABLE {name} (id int PRIMARY KEY, t text); INSERT INTO {name} SELECT i, 't' || i FROM generate_series(1, 120) i;
                     ALTER PUBLICATION synctool_shop ADD TABLE {name}; INSERT INTO {name} VALUES (0, 'later'); DELETE FROM {name} WHERE id = 7"
                );
                self.late.push(name);
                made
            }
        };
        self.tell(sql.clone());
        for statement in sql.split(';') {
            if let Err(e) = self.stage.from.try_psql(statement) {
                self.fail(&format!("{e:#}"));
            }
        }
    }

    /// The slot goes behind everybody's back: refused with a plan, mended by comparing.
    #[track_caller]
    fn lose_the_slot(&mut self) {
        self.tell("the slot is lost".into());
        self.near.set(Mode::Forward);
        self.far.set(Mode::Forward);
        let standing = self.stage.to.try_psql("SELECT count(*) FROM history").is_ok();
        self.kill();
        wait_for("the slot to be dropped", PATIENCE, || {
            self.stage.from.try_psql(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active; SELECT pg_drop_replication_slot('{0}') FROM pg_replication_slots WHERE slot_name = '{0}'",
                self.stage.slot
            ))
        });
        self.pass();
        if standing && !self.repairing {
            let (code, _, err) = self.stage.run(&["run", "shop.yaml"]);
            if code != 4 || !err.contains("--repair") {
                self.fail(&format!("without its slot it ended with {code}: {err}"));
            }
        }
        self.repairing = true;
        self.world.unwatched.store(true, Ordering::SeqCst);
        self.start();
    }

    /// Which tables differ, by the columns that the source has now.
    fn different(&self) -> Vec<String> {
        let mut tables: Vec<(String, String, String)> = Vec::new();
        for (table, columns) in ALTERED {
            let (mut from, mut to) = (columns.to_owned(), columns.to_owned());
            for extra in self.extras.iter().filter(|e| e.table == table) {
                from += &format!(", {}", extra.source);
                to += &format!(", {}", extra.destination);
            }
            tables.push((table.into(), from, to));
        }
        for (table, columns) in [("history", "writer, n, wallet, account, amount"), ("era", "id, n")] {
            tables.push((table.into(), columns.into(), columns.into()));
        }
        let late = self
            .late
            .iter()
            .map(|t| (t.clone(), "id, t".to_owned(), "id, t".to_owned()));
        tables.extend(late);
        let digest = |db: &TestDb, table: &str, columns: &str| {
            db.try_psql(&format!(
                "SELECT count(*) || ' ' || md5(string_agg(r, '|' ORDER BY r COLLATE \"C\")) FROM (SELECT ROW({columns})::text r FROM {table}) x"
            ))
        };
        let differs = |(table, from, to): &(String, String, String)| {
            let (there, here) = (digest(&self.stage.from, table, from), digest(&self.stage.to, table, to));
            let equal = matches!((&there, &here), (Ok(a), Ok(b)) if a == b);
            (!equal).then(|| {
                format!(
                    "{table} ({from} / {to}): {there:?} / {here:?}{}",
                    self.rows(table, from, to)
                )
            })
        };
        tables.iter().filter_map(differs).collect()
    }

    /// Some of the rows that only one end has.
    fn rows(&self, table: &str, from: &str, to: &str) -> String {
        let all = |db: &TestDb, columns: &str| -> BTreeSet<String> {
            let rows = db.try_psql(&format!("SELECT ROW({columns})::text FROM {table}"));
            rows.unwrap_or_default().lines().map(str::to_owned).collect()
        };
        let (there, here) = (all(&self.stage.from, from), all(&self.stage.to, to));
        let some = |rows: Vec<&String>| rows.into_iter().take(5).cloned().collect::<Vec<_>>().join(" ");
        let (gone, extra) = (there.difference(&here).collect(), here.difference(&there).collect());
        format!("; only there: {}; only here: {}", some(gone), some(extra))
    }

    /// Silence: the program catches up, and both ends are equal.
    #[track_caller]
    fn settle(&mut self, renew: bool) {
        self.near.set(Mode::Forward);
        self.far.set(Mode::Forward);
        let world = self.world.clone();
        let gate = world.gate.blocking_write();
        if std::mem::take(&mut self.members_changed) {
            self.stop();
        }
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
        if std::mem::take(&mut self.repairing) {
            self.world.unwatched.store(false, Ordering::SeqCst);
        }
        if renew {
            // A long history costs more with every look at it.
            self.stage.from.psql(
                "BEGIN; UPDATE wallet SET v = 0, version = 0; UPDATE account SET v = 0, version = 0; DELETE FROM history; UPDATE era SET n = n + 1; COMMIT",
            );
        }
        drop(gate);
    }
}

/// Tells everybody that it is over, whatever ended it.
pub(super) struct Over(pub(super) Arc<World>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.over.store(true, Ordering::Relaxed);
    }
}

/// The whole storm.
fn storm(version: PgVersion) {
    let seed = Dice::seed();
    println!("SYNCTOOL_TEST_SEED={seed} repeats it");
    let mut storm = Storm::new(version, seed);
    let begun = Instant::now();
    storm.start();
    // Chunks of a first load are seen as they come.
    storm.settle(false);
    let (world, from, to) = (storm.world.clone(), storm.stage.from.url(), storm.stage.to.url());
    let people = Writer::of(move |_| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::join!(
                write(&world, &from, 1, seed),
                write(&world, &from, 2, seed),
                write(&world, &from, 3, seed),
                watch(&world, &to)
            );
        });
        0
    });
    let over = Over(storm.world.clone());
    let mut done = 0;
    while done < rounds() && begun.elapsed() < most() {
        // A test goes on with the run's own.
        let round = is_soak().then(|| Round::new(done, seed));
        if let Some(round) = &round {
            storm.dice = Dice::new(round.seed);
        }
        let things = 1 + storm.dice.roll(4);
        storm.tell(format!("round {done}"));
        for _ in 0..things {
            storm.pass();
            storm.disturb();
        }
        done += 1;
        storm.settle(done.is_multiple_of(rounds().min(10)));
    }
    drop(over);
    people.end();
    storm.check();
    storm.stop();
    let world = &storm.world;
    let (made, looks) = (world.made.load(Ordering::Relaxed), world.looks.load(Ordering::Relaxed));
    let broken = storm.near.counts().broken + storm.far.counts().broken;
    println!(
        "seed {seed}: {done} of {} rounds, {made} transactions, {looks} looks, {broken} cuts, killed were program, source and destination {:?} times, {:.0?}",
        rounds(),
        storm.kills,
        begun.elapsed()
    );
    assert!(
        done >= rounds(),
        "{done} of {} rounds in {:?} of {:?}",
        rounds(),
        begun.elapsed(),
        most()
    );
    assert!(
        made > 20 * done && looks > 5 * done,
        "{made} transactions, {looks} looks"
    );
}

on_servers! {
    fn a_storm_leaves_both_ends_equal(version: PgVersion) {
        storm(version);
    }
}
