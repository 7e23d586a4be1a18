//! From nothing to a running capture; what is refused, and what mends it.

use super::*;
use synctool_testkit::FaultProxy;
use synctool_testkit::proxy::Mode;

/// F6. The program's own clock jumps by twenty years, forth and back, four times a second: it decides nothing.
#[test]
fn a_clock_of_our_own_that_jumps_does_no_harm() {
    let clock = synctool_testkit::JumpingClock::new();
    let stage = Stage::new(PgVersion::V18);
    let jumping = |arguments: &[&str]| {
        let mut command = stage.command(arguments);
        command.env("LD_PRELOAD", clock.library());
        KillRun::new(&command)
    };
    let running = jumping(&["run", "shop.yaml"]).start();
    for n in 1..=30 {
        stage.from.psql(&change(n));
    }
    stage.until_equal(&running);
    stop(running);
    for n in 31..=33 {
        stage.from.psql(&change(n));
        let again = jumping(&["run", "shop.yaml", "--until-caught-up", "--output", "json"]).run();
        assert_eq!(again.code, Some(0), "{}", again.stderr);
        stage.assert_equal("with a clock that jumps");
    }
    stage.from.psql(&change(34));
    stage.catch_up();
    stage.assert_equal("with a clock that goes on");
}

on_servers! {
    fn a_capture_from_nothing(version: PgVersion) {
        let stage = Stage::new(version);
        let plan = stage.ok(&["plan", "shop.yaml"]);
        for part in [
            "3 tables",
            "the log begins with a new slot",
            "public.visit",
            "user_id, restaurant_id",
            "loaded in chunks, about 900 rows",
            "statements at the source",
            "CREATE PUBLICATION \"synctool_shop\" FOR TABLE \"public\".\"users\"",
            &format!("pg_create_logical_replication_slot('{}', 'pgoutput'", stage.slot),
            "exactly once",
        ] {
            assert!(plan.contains(part), "no {part:?} in\n{plan}");
        }
        let made = stage.from.psql("SELECT (SELECT count(*) FROM pg_publication) + (SELECT count(*) FROM pg_replication_slots WHERE database = current_database())");
        assert_eq!(made, "0", "a plan makes nothing");
        let (_, before) = stage.json(&["cdc", "status", "shop.yaml"]);
        assert_eq!(before["state"], "not begun", "{before:#}");
        let doctor = stage.ok(&["doctor", "shop.yaml"]);
        assert!(doctor.contains("replica identity of public.visit") && doctor.contains("wal_level logical"), "{doctor}");

        let summary = stage.catch_up();
        assert_eq!(summary["read"].as_u64(), Some(1860), "{summary:#}");
        stage.assert_equal("the first load");
        stage.from.psql("UPDATE users SET address = 'moved' WHERE id % 10 = 0; DELETE FROM visit WHERE user_id % 7 = 0;
            UPDATE visit SET restaurant_id = 'r1' WHERE user_id = 1; TRUNCATE visit; INSERT INTO visit VALUES (2, 'r2', 1.5, NULL)");
        let plan = stage.ok(&["plan", "shop.yaml"]);
        assert!(plan.contains("the log goes on where the destination stands"), "{plan}");
        let status = stage.status();
        assert_eq!(status["state"], "stopped");
        assert!(status["lag_bytes"].as_u64() > Some(0), "{status:#}");
        stage.catch_up();
        stage.assert_equal("what changed");
        let again = stage.catch_up();
        assert_eq!(again["read_now"].as_u64().map(|n| n < 2000), Some(true), "{again:#}");
        let history = stage.ok(&["runs", "list", "shop"]);
        assert!(history.contains("completed"), "{history}");
    }

    fn a_capture_runs_until_it_is_stopped(version: PgVersion) {
        let stage = Stage::new(version);
        let running = stage.start();
        let writer = Writer::start(&stage);
        wait_for("the capture to be seen", PATIENCE, || {
            let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
            let seen = status["state"] == "running" && status["tables"].as_array().is_some_and(|t| t.len() == 3);
            if seen { Ok(()) } else { Err(format!("{status:#}\n{}", running.stderr())) }
        });
        let (code, _, err) = stage.run(&["run", "shop.yaml"]);
        assert_eq!(code, 6, "a second run: {err}");
        writer.end();
        stage.until_equal(&running);
        wait_for("the lag to be nothing", PATIENCE, || {
            let status = stage.status();
            let caught_up = status["lag_seconds"].as_f64() == Some(0.0)
                && status["tables"].as_array().is_some_and(|t| t.iter().all(|t| t["backfill"].is_null()));
            if caught_up { Ok(()) } else { Err(format!("{status:#}")) }
        });
        let status = stage.status();
        assert!(status["applied_up_to"].as_str().is_some_and(|t| t.ends_with('Z')), "{status:#}");
        assert_eq!(status["lag_rows"].as_u64(), Some(0), "{status:#}");
        assert!(stage.ok(&["cdc", "status", "shop.yaml"]).contains("caught up"));
        let slots = stage.ok(&["cdc", "slots", "shop.yaml"]);
        assert!(slots.contains(&stage.slot) && slots.contains("ours"), "{slots}");
        let said = stop(running);
        assert!(said.contains("stopping at the next boundary"), "{said}");
        assert_eq!(stage.status()["state"], "stopped");
        stage.from.psql(&change(7777));
        stage.catch_up();
        stage.assert_equal("after the stop");
    }

    /// F3: stopped as services are, in the middle of a first load and of others' writing, again and again: it ends by
    /// itself, lets the slot go, and the next one goes on.
    fn a_capture_is_stopped_in_the_middle(version: PgVersion) {
        let stage = Stage::new(version);
        let writer = Writer::start(&stage);
        let copy = "SELECT concat((SELECT md5(string_agg(u::text, '' ORDER BY id)) FROM users u), (SELECT md5(string_agg(v::text, '' ORDER BY v::text)) FROM visit v))";
        let copied = || stage.to.try_psql(copy).unwrap_or_default();
        for _ in 0..4 {
            let before = copied();
            let running = stage.start();
            wait_for("something to be committed", PATIENCE, || match copied() != before {
                true => Ok(()),
                false => Err(running.stderr()),
            });
            running.terminate();
            let outcome = running.wait();
            assert_eq!(outcome.code, Some(130), "{}", outcome.stderr);
            let held = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{}' AND active", stage.slot);
            wait_for("the slot to be let go", PATIENCE, || stage.from.psql(&held) == "0");
        }
        assert!(writer.end() > 0);
        stage.catch_up();
        stage.assert_equal("stopped in the middle");
    }

    /// The slot is dropped behind our back: refused with a plan, nothing written; mended by difference while the log
    /// goes on.
    fn a_lost_log_is_refused_and_mended(version: PgVersion) {
        let stage = Stage::new(version);
        stage.catch_up();
        stage.from.psql(&format!("SELECT pg_drop_replication_slot('{}')", stage.slot));
        stage.from.psql("DELETE FROM visit WHERE user_id < 50; UPDATE users SET first_name = 'gap' WHERE id % 9 = 0; INSERT INTO restaurant VALUES ('new', 'new', 1, NULL)");
        let before = Stage::rows(&stage.to, "users");
        let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
        assert_eq!(code, 4, "{err}");
        assert!(err.contains("ST-LOG-004") && err.contains("--repair"), "{err}");
        assert_eq!(Stage::rows(&stage.to, "users"), before, "nothing is written");
        let (code, status) = stage.json(&["cdc", "status", "shop.yaml"]);
        assert_eq!((code, status["state"].as_str()), (4, Some("refused")), "{status:#}");
        let plan = stage.ok(&["plan", "shop.yaml"]);
        assert!(plan.contains("the log cannot go on: the replication slot is gone") && plan.contains("--repair"), "{plan}");
        let plan = stage.ok(&["plan", "shop.yaml", "--repair"]);
        assert!(plan.contains("every table is compared and made equal"), "{plan}");
        let (code, _, err) = stage.run(&["doctor", "shop.yaml"]);
        assert_eq!(code, 1, "{err}");
        let repairing = KillRun::new(&stage.command(&["run", "shop.yaml", "--repair"])).start();
        let writer = Writer::start(&stage);
        wait_for("tables to be made equal", PATIENCE, || {
            let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
            let done = status["state"] == "running"
                && status["tables"].as_array().is_some_and(|t| t.len() == 3 && t.iter().all(|t| t["backfill"].is_null()));
            if done { Ok(()) } else { Err(format!("{status:#}\n{}", repairing.stderr())) }
        });
        assert!(writer.end() > 0);
        stage.until_equal(&repairing);
        stop(repairing);
        stage.catch_up();
        stage.assert_equal("after the repair");
    }

    /// Tables that are added go on beside the others, which are not read again; so do those that the publication gets.
    fn tables_come_and_go(version: PgVersion) {
        let stage = Stage::new(version);
        stage.pipeline("tables: [users]", "");
        stage.catch_up();
        stage.from.psql("UPDATE users SET first_name = 'between' WHERE id = 3");
        stage.pipeline("tables: [users, restaurant]", "");
        let plan = stage.ok(&["plan", "shop.yaml"]);
        assert!(plan.contains("the tables changed") && plan.contains("ALTER PUBLICATION"), "{plan}");
        let summary = stage.catch_up();
        assert!(summary["read"].as_u64() < Some(200), "only what is new is read: {summary:#}");
        assert_eq!(stage.different(&["users", "restaurant"]), [""; 0]);
        // All of the publication: another meaning, which starts over where it is asked for.
        stage.pipeline("schema: public", "");
        let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
        assert_eq!(code, 0, "the publication has the same tables: {err}");
        let running = stage.start();
        stage.until_seen(&running);
        stage.from.psql("ALTER PUBLICATION synctool_shop ADD TABLE visit; INSERT INTO visit VALUES (900, 'r1', 1, 1) ON CONFLICT DO NOTHING");
        stage.until_equal(&running);
        let writer = Writer::start(&stage);
        writer.end();
        stage.until_equal(&running);
        stop(running);
    }

    /// A table that is taken out of the publication and put back while it is followed is compared.
    fn a_table_that_is_put_back_is_compared(version: PgVersion) {
        let stage = Stage::new(version);
        let running = stage.start();
        stage.until_equal(&running);
        stage.from.psql("ALTER PUBLICATION synctool_shop DROP TABLE visit");
        stage.from.psql("DELETE FROM visit WHERE user_id % 5 = 0; UPDATE visit SET amount_spent = 1 WHERE user_id % 5 = 1");
        stage.from.psql("ALTER PUBLICATION synctool_shop ADD TABLE visit");
        stage.from.psql("UPDATE users SET first_name = 'beside' WHERE id = 3");
        stage.until_equal(&running);
        let said = stop(running);
        assert!(said.contains("public.visit"), "it is told which table: {said}");
    }

    /// A table that leaves the publication while it is followed is told, and shown; a named one is put back by the next
    /// start and compared, one of all is left out.
    fn a_table_that_leaves_is_told(version: PgVersion) {
        for (tables, all) in [("tables: [users, restaurant, visit]", false), ("schema: public", true)] {
            let stage = Stage::new(version);
            stage.from.psql("CREATE PUBLICATION synctool_shop FOR TABLE users, restaurant, visit");
            stage.pipeline(tables, "");
            let running = stage.start();
            stage.until_equal(&running);
            stage.from.psql("ALTER PUBLICATION synctool_shop DROP TABLE visit; DELETE FROM visit WHERE user_id % 5 = 0");
            let of_visit = |what: &str| {
                let status = stage.status();
                let tables = status["tables"].as_array().expect("tables");
                let visit = tables.iter().find(|t| t["table"] == "public.visit").expect("it is shown");
                visit[what].as_str().map(str::to_owned)
            };
            wait_for("the table to be told", PATIENCE, || match (of_visit("absent"), running.stderr()) {
                (Some(why), said) if why.contains("ALTER PUBLICATION") && said.contains("public.visit") => Ok(()),
                other => Err(format!("{other:?}")),
            });
            stage.from.psql("UPDATE users SET first_name = 'on' WHERE id = 3");
            wait_for("the others to go on", PATIENCE, || stage.different(&["users", "restaurant"]).is_empty());
            stop(running);
            let text = stage.ok(&["cdc", "status", "shop.yaml"]);
            assert!(text.contains("absent, see below") && text.contains("copy grows old"), "{text}");
            let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
            assert_eq!(code, 0, "{err}");
            let published = stage.from.psql("SELECT count(*) FROM pg_publication_tables WHERE tablename = 'visit'");
            match all {
                false => {
                    assert_eq!(published, "1");
                    assert!(err.contains("it is compared"), "{err}");
                }
                true => {
                    assert_eq!(published, "0");
                    assert!(err.contains("public.visit") && err.contains("copy grows old"), "{err}");
                    assert_eq!(stage.different(TABLES), ["visit"]);
                    let verified = stage.ok(&["verify", "shop.yaml"]);
                    assert!(verified.contains("public.visit: not compared"), "{verified}");
                    let running = stage.start();
                    stage.until_seen(&running);
                    stage.from.psql("ALTER PUBLICATION synctool_shop ADD TABLE visit");
                    stage.until_equal(&running);
                    stop(running);
                    stage.from.psql("DROP TABLE visit; UPDATE users SET first_name = 'still on' WHERE id = 3");
                    stage.catch_up();
                    assert_eq!(stage.different(&["users", "restaurant"]), [""; 0]);
                    assert_ne!(stage.to.psql("SELECT count(*) FROM visit"), "0", "its copy stays");
                }
            }
            if !all {
                stage.assert_equal("put back");
            }
        }
    }

    /// A new table without a key does not end the others' capture, neither while it goes on nor at its next start; with
    /// a key it is followed.
    fn a_new_table_without_a_key_waits_for_one(version: PgVersion) {
        let stage = Stage::new(version);
        stage.from.psql("CREATE PUBLICATION synctool_shop FOR ALL TABLES");
        stage.pipeline("schema: public", "");
        let running = stage.start();
        stage.until_equal(&running);
        stage.from.psql("CREATE TABLE bare (a int, b text); INSERT INTO bare VALUES (1, 'x')");
        wait_for("the table to be seen", PATIENCE, || {
            let said = running.stderr();
            if said.contains("bare") { Ok(()) } else { Err(said) }
        });
        stage.from.psql(&change(1));
        stage.until_equal(&running);
        stop(running);
        stage.from.psql(&change(2));
        stage.catch_up();
        stage.assert_equal("another start");
        let running = stage.start();
        stage.from.psql("INSERT INTO bare VALUES (2, 'y'); ALTER TABLE bare ADD PRIMARY KEY (a); UPDATE bare SET b = 'z' WHERE a = 1");
        wait_for("the table to be followed", PATIENCE, || {
            match stage.different(&["bare"]).is_empty() {
                true => Ok(()),
                false => Err(running.stderr()),
            }
        });
        stop(running);
    }

    /// A server that is not set up says what to do.
    fn doctor_says_what_a_log_needs(version: PgVersion) {
        let server = Postgres::builder(version).setting("wal_level", "replica").setting("max_replication_slots", "1").start();
        let from = server.database("doctor");
        from.psql("CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE bare (a int); CREATE ROLE reader LOGIN; GRANT SELECT ON users, bare TO reader;
            SELECT pg_create_physical_replication_slot('theirs')");
        let url = from.url_as("reader");
        let stage = Stage::between(from, Postgres::shared(version));
        let text = format!(
            "name: shop\ndatastores:\n  from: {{type: postgres, connection: {{url: \"{url}\"}}}}\n  to: {{type: postgres, connection: {{url: \"{}\"}}}}\n\
             source: {{datastore: from, tables: [users, bare]}}\ndestination: {{datastore: to}}\n",
            stage.to.url()
        );
        std::fs::write(stage.home.path().join("shop.yaml"), text).expect("written");
        let (code, out, err) = stage.run(&["doctor", "shop.yaml"]);
        assert_eq!(code, 1, "{out}\n{err}");
        for part in [
            "wal_level is replica",
            "ALTER SYSTEM SET wal_level = 'logical'",
            "1 of 1 are taken by others",
            "max_replication_slots",
            "replica identity of public.bare",
            "ADD PRIMARY KEY",
            "GRANT CREATE ON DATABASE",
        ] {
            assert!(out.contains(part), "no {part:?} in\n{out}");
        }
    }

    /// More log than the budget allows: chunks wait, the log goes on; and they go on when there is less.
    fn chunks_wait_while_a_slot_is_over_its_budget(version: PgVersion) {
        let server = Postgres::start(version);
        let stage = Stage::between(server.database("budget"), Postgres::shared(version));
        stage.from.psql(SHOP);
        stage.pipeline("tables: [users, restaurant, visit]", ", wal_budget: 400KiB, over_budget: pause");
        stage.catch_up();
        // A transaction that wrote and is open keeps the server from forgetting its log.
        stage.from.psql("CREATE TABLE held (a int)");
        let url = stage.from.url();
        let holder = Writer::of(move |over| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.expect("a session");
                tokio::spawn(connection);
                client.batch_execute("BEGIN; INSERT INTO held VALUES (1)").await.expect("a transaction");
                while !over.load(Ordering::Relaxed) {
                    client.batch_execute("SELECT pg_sleep(0.05)").await.expect("it is held");
                }
                client.batch_execute("COMMIT").await.expect("it ends");
            });
            0
        });
        wait_for("the transaction to be open", PATIENCE, || {
            stage.from.psql("SELECT count(*) FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND datname = current_database() AND pid <> pg_backend_pid()") == "1"
        });
        stage.from.psql("CREATE TABLE waste (t text); INSERT INTO waste SELECT repeat(md5(i::text), 100) FROM generate_series(1, 4000) i");
        stage.to.psql("UPDATE users SET address = 'wrong'");
        stage.ok(&["cdc", "refresh", "shop.yaml", "users"]);
        let running = stage.start();
        wait_for("chunks to wait", PATIENCE, || {
            let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
            if status["paused"] == "chunks" { Ok(()) } else { Err(format!("{status:#}")) }
        });
        stage.from.psql("INSERT INTO restaurant VALUES ('now', 'now', 1, NULL)");
        wait_for("the log to go on", PATIENCE, || stage.to.psql("SELECT count(*) FROM restaurant WHERE id = 'now'") == "1");
        assert_eq!(stage.to.psql("SELECT count(*) FROM users WHERE address = 'wrong'"), "900");
        holder.end();
        wait_for("chunks to go on", PATIENCE, || {
            stage.from.psql("CHECKPOINT");
            match stage.different(TABLES).is_empty() {
                true => Ok(()),
                false => Err(running.stderr()),
            }
        });
        stop(running);
    }

    /// Columns that may not change: refused before the first row, until somebody says yes, once.
    fn a_frozen_capture_waits_for_a_word(version: PgVersion) {
        let stage = Stage::new(version);
        let path = stage.home.path().join("shop.yaml");
        let text = std::fs::read_to_string(&path).expect("read");
        std::fs::write(&path, text + "schema_drift: freeze\n").expect("written");
        stage.catch_up();
        stage.from.psql("ALTER TABLE users ADD COLUMN age int DEFAULT 3; UPDATE users SET age = 4 WHERE id = 1");
        let (code, _, err) = stage.run(&["run", "shop.yaml"]);
        assert_eq!(code, 2, "{err}");
        assert!(err.contains("age (integer) is new") && err.contains("--accept-schema"), "{err}");
        stage.ok(&["run", "shop.yaml", "--accept-schema", "--until-caught-up"]);
        stage.assert_equal("accepted");
        stage.from.psql("UPDATE users SET age = 5 WHERE id = 2");
        stage.catch_up();
        stage.assert_equal("frozen again");
    }

    /// More log than the budget allows: the slot goes, so that the source's disk stays free, and a repair mends.
    fn a_slot_over_its_budget_is_dropped(version: PgVersion) {
        let stage = Stage::new(version);
        stage.catch_up();
        stage.pipeline("tables: [users, restaurant, visit]", ", wal_budget: 1MiB, over_budget: drop");
        stage.ok(&["cdc", "pause", "shop.yaml"]);
        stage.from.psql("CREATE TABLE waste (t text); INSERT INTO waste SELECT repeat(md5(i::text), 100) FROM generate_series(1, 4000) i; UPDATE users SET first_name = 'x'");
        let outcome = KillRun::new(&stage.command(&["run", "shop.yaml"])).run();
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("wal_budget") && outcome.stderr.contains("--repair"), "{}", outcome.stderr);
        let left = stage.from.psql("SELECT count(*) FROM pg_replication_slots WHERE database = current_database()");
        assert_eq!(left, "0");
        stage.ok(&["cdc", "resume", "shop.yaml"]);
        // Other tests write to this server too: a repair within 1 MiB of everybody's log is luck.
        stage.pipeline("tables: [users, restaurant, visit]", ", wal_budget: 1GiB, over_budget: drop");
        stage.ok(&["run", "shop.yaml", "--repair", "--until-caught-up"]);
        stage.assert_equal("after the repair");
    }
}

impl Stage {
    /// Waits until a capture is followed.
    #[track_caller]
    pub(crate) fn until_seen(&self, running: &Running) {
        wait_for("the capture to be seen", PATIENCE, || {
            let (_, status) = self.json(&["cdc", "status", "shop.yaml"]);
            let seen = status["state"] == "running" && status["position"].is_string();
            if seen {
                Ok(())
            } else {
                Err(format!("{status:#}\n{}", running.stderr()))
            }
        });
    }
}

/// F5. The disk of the state store is full: it is told, and with room the same command goes on.
#[test]
fn a_state_without_room_is_told() {
    let stage = Stage::new(PgVersion::V15);
    let disk = synctool_testkit::SmallDisk::new(8);
    let state = disk.path().join("state").display().to_string();
    let run = || stage.run(&["run", "shop.yaml", "--until-caught-up", "--data-dir", &state]);
    assert_eq!(run().0, 0);
    let filler = disk.fill(4);
    stage.from.psql(&change(1));
    let (code, _, err) = run();
    assert!(
        code != 0 && (err.contains("ST-IO-001") || err.contains("ST-STA-001")),
        "exit code {code}: {err}"
    );
    std::fs::remove_file(filler).expect("room is made");
    stage.from.psql(&change(2));
    let (code, _, err) = run();
    assert_eq!(code, 0, "{err}");
    stage.assert_equal("with room");
}

/// F7. The state store is slow, and then cut off: a capture goes on, and then ends rather than run without its lock; with the
/// store there again the next one goes on, and nothing is missing.
#[test]
fn a_state_store_that_is_cut_off_loses_nothing() {
    let stage = Stage::new(PgVersion::V15);
    let server = Postgres::shared(PgVersion::V15);
    let (state, proxy) = (server.database("cdc_state"), FaultProxy::to(server.port()));
    let global = format!("state: {{type: postgres, url: \"{}\"}}\n", proxy.through(&state.url()));
    std::fs::write(stage.home.path().join("synctool.yaml"), global).expect("written");
    let running = stage.start();
    stage.until_equal(&running);
    proxy.set(Mode::Delay(Duration::from_millis(200)));
    stage.from.psql(&change(1));
    stage.until_equal(&running);
    proxy.set(Mode::Reset);
    stage.from.psql(&change(2));
    let outcome = running.wait();
    assert!(
        outcome.code.is_some_and(|code| code != 0) && !outcome.stderr.contains("panicked"),
        "{:?}: {}",
        outcome.code,
        outcome.stderr
    );
    proxy.set(Mode::Forward);
    stage.from.psql(&change(3));
    stage.catch_up();
    stage.assert_equal("with its state store again");
}

/// F78. The state store is lost, and then set back to an older one: position and rows are the destination's.
#[test]
fn a_state_that_is_lost_or_set_back_changes_nothing() {
    let stage = Stage::new(PgVersion::V15);
    let (state, old) = (stage.home.path().join("data"), stage.home.path().join("old"));
    stage.catch_up();
    std::fs::rename(&state, &old).expect("it is lost");
    stage.from.psql(&change(1));
    stage.catch_up();
    stage.assert_equal("lost");
    std::fs::remove_dir_all(&state).expect("a new one was made");
    std::fs::rename(&old, &state).expect("it is set back");
    stage.from.psql(&change(2));
    stage.catch_up();
    stage.assert_equal("set back");
}

/// Copies stand in the schema that is named, a single one under its own name. Another place is another meaning: it is
/// refused while the log is followed, until somebody starts over.
#[test]
fn copies_go_where_they_are_meant() {
    let stage = Stage::new(PgVersion::V15);
    let path = stage.home.path().join("shop.yaml");
    let into = |place: &str| {
        let text = std::fs::read_to_string(&path).expect("read");
        let at = text.find("destination: {").expect("a destination");
        let (before, rest) = text.split_at(at);
        let (_, behind) = rest.split_once('\n').expect("a line");
        let text = format!("{before}destination: {{datastore: to, {place}}}\n{behind}");
        std::fs::write(&path, text).expect("written");
    };
    let same = |schema: &str| {
        for table in TABLES {
            let copy = Stage::rows(&stage.to, &format!("{schema}.{table}"));
            assert_eq!(copy, Stage::rows(&stage.from, table), "{schema}.{table}");
        }
    };
    stage.to.psql("CREATE SCHEMA copies; CREATE SCHEMA others");
    into("schema: copies");
    stage.catch_up();
    same("copies");
    let before = Stage::rows(&stage.to, "copies.users");
    stage.from.psql(&change(1));
    into("schema: others");
    let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    assert!(code != 0 && err.contains("synctool state reset"), "{code}: {err}");
    assert_eq!(
        Stage::rows(&stage.to, "copies.users"),
        before,
        "nothing is written there"
    );
    into("schema: copies");
    stage.catch_up();
    same("copies");
    stage.ok(&["state", "reset", "shop.yaml", "--yes"]);
    let drop_slot = format!("SELECT pg_drop_replication_slot('{}')", stage.slot);
    stage.from.psql(&drop_slot);
    into("schema: others");
    stage.catch_up();
    same("others");
    stage.ok(&["state", "reset", "shop.yaml", "--yes"]);
    stage.from.psql(&drop_slot);
    stage.pipeline("table: restaurant", "");
    into("table: places");
    stage.catch_up();
    stage.from.psql("UPDATE restaurant SET rating = 7 WHERE id < 'r3'");
    stage.catch_up();
    assert_eq!(Stage::rows(&stage.to, "places"), Stage::rows(&stage.from, "restaurant"));
}

/// A source that is away ends a run that is to end, with the code that says try again; whoever stays waits for it.
#[test]
fn a_source_that_is_away_is_a_matter_of_time() {
    let server = Postgres::start(PgVersion::V15);
    let stage = Stage::between(server.database("away"), Postgres::shared(PgVersion::V15));
    stage.from.psql(SHOP);
    stage.pipeline("tables: [users, restaurant, visit]", "");
    stage.catch_up();
    stage.from.psql(&change(1));
    server.stop();
    let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
    assert_eq!(code, 5, "{err}");
    let running = stage.start();
    server.restart();
    stage.until_equal(&running);
    stop(running);
}

/// What does not belong in a pipeline that follows a log is said with its place.
#[test]
fn mistakes_are_told_with_their_place() {
    let stage = Stage::new(PgVersion::V15);
    let text = std::fs::read_to_string(stage.home.path().join("shop.yaml")).expect("read");
    let with = |from: &str, to: &str| {
        assert!(text.contains(from));
        std::fs::write(stage.home.path().join("shop.yaml"), text.replace(from, to)).expect("written");
        let (code, _, err) = stage.run(&["config", "validate", "shop.yaml"]);
        assert_eq!(code, 2, "{err}");
        err
    };
    for (from, to, says) in [
        ("chunk_rows: 100", "chunk_row: 100", "chunk_rows"),
        ("heartbeat: 1s", "heartbeat: 1s, watermarks: none", "read_only"),
        ("type: log", "type: full", "slot belongs to strategies of type log"),
        ("users, restaurant", "users, users", "named twice"),
        (
            "destination: {datastore: to}",
            "destination: {datastore: to, table: one}",
            "destination.schema",
        ),
        (
            "destination: {datastore: to}",
            "destination: {datastore: from}",
            "the same table",
        ),
    ] {
        let err = with(from, to);
        assert!(
            err.contains(says) && err.contains("shop.yaml:"),
            "no {says:?} in\n{err}"
        );
    }
    std::fs::write(stage.home.path().join("shop.yaml"), &text).expect("written");
    let shown = stage.ok(&["config", "show", "shop.yaml"]);
    assert!(shown.contains("chunk_rows: 100") && shown.contains("tables"), "{shown}");
}
