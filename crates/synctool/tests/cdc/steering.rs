//! A capture that is paused, resumed and asked to read tables again, while it runs and while it does not.

use super::*;
use synctool::state::{Area, SqliteStore, Store};

on_servers! {
    fn a_capture_pauses_and_goes_on(version: PgVersion) {
        pauses_and_goes_on(&Stage::new(version));
    }

    fn a_backfill_pauses_while_the_log_goes_on(version: PgVersion) {
        let stage = Stage::new(version);
        stage.ok(&["cdc", "pause", "shop.yaml", "--backfill"]);
        let running = stage.start();
        stage.until_seen(&running);
        stage.from.psql("INSERT INTO restaurant VALUES ('now', 'now', 1, NULL)");
        wait_for("the log to arrive", PATIENCE, || stage.to.try_psql("SELECT count(*) FROM restaurant").is_ok_and(|n| n == "1"));
        let status = stage.status();
        assert_eq!(status["paused"], "chunks");
        assert_eq!(status["tables"][0]["backfill"]["kind"], "load", "{status:#}");
        stage.ok(&["cdc", "resume", "shop.yaml"]);
        stage.until_equal(&running);
        stop(running);
    }

    /// What went wrong at the destination is mended: a whole table, and rows by key, while others write.
    fn tables_are_read_again(version: PgVersion) {
        let stage = Stage::new(version);
        stage.catch_up();
        let running = stage.start();
        stage.until_seen(&running);
        let writer = Writer::start(&stage);
        stage.to.psql("SET session_replication_role = replica; DELETE FROM visit WHERE user_id > 500; UPDATE users SET address = 'wrong' WHERE id > 100;
            INSERT INTO users VALUES (100000, 'much', 'too@much', NULL, NULL, NULL)");
        let (code, said) = stage.json(&["cdc", "refresh", "shop.yaml", "users", "--wait"]);
        assert_eq!((code, said["state"].as_str()), (0, Some("done")), "{said}");
        stage.ok(&["cdc", "refresh", "shop.yaml", "public.visit", "--wait"]);
        writer.end();
        stage.until_equal(&running);
        // Rows by key: one that differs, one that is missing, one that the source does not have.
        stage.to.psql("SET session_replication_role = replica; UPDATE users SET first_name = 'wrong' WHERE id IN (7, 8); DELETE FROM users WHERE id = 9;
            INSERT INTO users VALUES (200000, 'much', 'x', NULL, NULL, NULL); UPDATE visit SET amount_spent = 0 WHERE user_id = 11");
        stage.ok(&["cdc", "refresh", "shop.yaml", "users", "--keys", "7,9,200000", "--wait"]);
        assert_eq!(stage.to.psql("SELECT count(*) FROM users WHERE first_name = 'wrong'"), "1", "only the keys that were named");
        stage.ok(&["cdc", "refresh", "shop.yaml", "users", "--keys", "[8]", "--wait"]);
        assert_eq!(stage.different(&["users"]), [""; 0]);
        let key = stage.from.psql("SELECT '[[11, \"' || restaurant_id || '\"], [12, \"nowhere\"]]' FROM visit WHERE user_id = 11");
        if !key.is_empty() {
            stage.ok(&["cdc", "refresh", "shop.yaml", "visit", "--keys", &key, "--wait"]);
        } else {
            stage.ok(&["cdc", "refresh", "shop.yaml", "visit", "--wait"]);
        }
        stage.until_equal(&running);
        for (arguments, says) in [
            (&["cdc", "refresh", "shop.yaml", "nothing"][..], "not followed"),
            (&["cdc", "refresh", "shop.yaml", "visit", "--keys", "1,2"], "2 values"),
            (&["cdc", "refresh", "shop.yaml", "users", "--keys", "one"], "no key"),
        ] {
            let (code, _, err) = stage.run(arguments);
            assert_eq!(code, 2, "{err}");
            assert!(err.contains(says), "no {says:?} in {err}");
        }
        stop(running);
        // What would be asked is told, and nothing is asked.
        let told = stage.ok(&["cdc", "refresh", "shop.yaml", "restaurant", "--dry-run"]);
        for says in ["every row of public.restaurant would be read again", "does not have deleted", "wait for the next run", "nothing was asked"] {
            assert!(told.contains(says), "no {says:?} in {told}");
        }
        let (code, told) = stage.json(&["cdc", "refresh", "shop.yaml", "users", "--keys", "7,9", "--dry-run"]);
        assert_eq!((code, told["keys"].as_u64(), told["state"].as_str()), (0, Some(2), Some("not asked")), "{told}");
        let (code, _, err) = stage.run(&["cdc", "refresh", "shop.yaml", "nothing", "--dry-run"]);
        assert!(code == 2 && err.contains("not followed"), "{code}: {err}");
        assert_eq!(stage.status()["waiting"].as_array().map(Vec::len), Some(0));
        // Asked while nobody follows, it waits for the next run.
        stage.to.psql("SET session_replication_role = replica; UPDATE restaurant SET name = 'wrong'");
        let (_, said) = stage.json(&["cdc", "refresh", "shop.yaml", "restaurant"]);
        assert_eq!(said["state"], "waits for the next run", "{said}");
        let (code, found) = stage.json(&["verify", "shop.yaml"]);
        assert_eq!((code, found["status"].as_str()), (3, Some("different")), "{found:#}");
        stage.catch_up();
        stage.assert_equal("asked while it did not run");
        stage.ok(&["verify", "shop.yaml"]);
        stage.to.psql("SET session_replication_role = replica; DELETE FROM restaurant WHERE rating = 1; UPDATE users SET address = NULL");
        stage.ok(&["repair", "shop.yaml"]);
        stage.assert_equal("after a repair");
        assert_eq!(stage.status()["waiting"].as_array().map(Vec::len), Some(0));
    }

    /// A first load that is given up is told as long as rows are missing, whoever looks and whatever restarts.
    fn a_load_that_is_given_up_is_told(version: PgVersion) {
        let stage = Stage::new(version);
        stage.ok(&["cdc", "pause", "shop.yaml", "--backfill"]);
        let running = stage.start();
        stage.until_seen(&running);
        stage.ok(&["cdc", "refresh", "shop.yaml", "users", "--cancel"]);
        let cancelled = |state: &str| {
            wait_for("the load to be given up", PATIENCE, || {
                let (_, status) = stage.json(&["cdc", "status", "shop.yaml"]);
                let users = &status["tables"][0];
                let told = status["state"] == state && users["backfill"].is_null() && users["cancelled"]["kind"] == "load"
                    && status["waiting"].as_array().is_some_and(Vec::is_empty);
                if told { Ok(()) } else { Err(format!("{status:#}")) }
            });
            let (_, text, _) = stage.run(&["cdc", "status", "shop.yaml"]);
            assert!(text.contains("load cancelled after 0 rows") && text.contains("cdc refresh shop public.users"), "{text}");
        };
        cancelled("running");
        stage.ok(&["cdc", "resume", "shop.yaml"]);
        wait_for("the others to be loaded", PATIENCE, || stage.different(&["restaurant", "visit"]).is_empty());
        stop(running);
        cancelled("stopped");
        stage.catch_up();
        cancelled("stopped");
        assert_eq!(stage.to.psql("SELECT count(*) FROM users"), "0");
        stage.ok(&["cdc", "refresh", "shop.yaml", "users"]);
        stage.catch_up();
        stage.assert_equal("read again");
        assert!(stage.status()["tables"][0]["cancelled"].is_null());
    }

    /// What is compared are the columns as they are now: those that came, under the names that they have, and without
    /// those that the policy let go. One that only the source has is a difference.
    fn a_verification_knows_the_columns_of_now(version: PgVersion) {
        let stage = Stage::new(version);
        let file = stage.home.path().join("shop.yaml");
        let text = std::fs::read_to_string(&file).expect("written") + "schema_drift: evolve\n";
        std::fs::write(&file, text).expect("written");
        stage.catch_up();
        stage.from.psql("ALTER TABLE users ADD COLUMN extra int; UPDATE users SET extra = id; ALTER TABLE users RENAME COLUMN address TO home;
            UPDATE users SET home = 'moved' WHERE id < 10; ALTER TABLE users RENAME COLUMN id TO uid; UPDATE users SET extra = -1 WHERE uid = 1;
            ALTER TABLE restaurant DROP COLUMN tags; UPDATE restaurant SET rating = 9 WHERE id = 'r1'");
        stage.catch_up();
        let (code, found) = stage.json(&["verify", "shop.yaml"]);
        assert_eq!((code, found["status"].as_str()), (0, Some("equal")), "{found:#}");
        for (at_destination, back) in [
            ("UPDATE users SET extra = 0 WHERE id = 3", "UPDATE users SET extra = id WHERE id = 3"),
            ("UPDATE users SET address = 'x' WHERE id = 3", "UPDATE users SET address = 'moved' WHERE id = 3"),
        ] {
            stage.to.psql(at_destination);
            let (code, found) = stage.json(&["verify", "shop.yaml"]);
            assert_eq!((code, &found["tables"][0]["keys"][0]["key"]), (3, &serde_json::json!(["3"])), "{at_destination}: {found:#}");
            stage.to.psql(back);
        }
        // No row has shown it to the log yet.
        stage.from.psql("ALTER TABLE visit ADD COLUMN only_here int DEFAULT 7");
        let (code, found) = stage.json(&["verify", "shop.yaml"]);
        assert_eq!((code, &found["tables"][2]["missing_columns"]), (3, &serde_json::json!(["only_here"])), "{found:#}");
        let (_, out, _) = stage.run(&["verify", "shop.yaml"]);
        assert!(out.contains("only_here") && out.contains("synctool cdc refresh shop.yaml TABLE"), "{out}");
        stage.from.psql("UPDATE visit SET visit_rating = 1 WHERE user_id = 1");
        stage.catch_up();
        stage.ok(&["verify", "shop.yaml"]);
    }

    /// A table that went away at the destination is named with its end and with what to do.
    fn a_table_that_went_away_is_told(version: PgVersion) {
        let stage = Stage::new(version);
        stage.catch_up();
        stage.to.psql("DROP TABLE visit");
        stage.from.psql("UPDATE visit SET visit_rating = 1 WHERE user_id = 1");
        let (code, _, err) = stage.run(&["run", "shop.yaml", "--until-caught-up"]);
        assert_ne!(code, 0);
        assert!(err.contains("visit does not exist at the destination") && err.contains("synctool repair"), "{err}");
        stage.to.psql("CREATE TABLE visit (user_id int, restaurant_id varchar(255), amount_spent decimal(10, 2), visit_rating int, PRIMARY KEY (user_id, restaurant_id))");
        stage.catch_up();
        stage.ok(&["repair", "shop.yaml"]);
        stage.assert_equal("made again and repaired");
    }
}

/// What was refused is kept for whoever waits for it, not for ever: the newest are, and they hold up no other request.
#[test]
fn refusals_are_forgotten_and_hold_up_nothing() {
    let stage = Stage::new(PgVersion::V15);
    // Before the first run nobody knows which tables are followed.
    stage.ok(&["cdc", "refresh", "shop.yaml", "nothing"]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let store = runtime
        .block_on(SqliteStore::open(&stage.home.path().join("data")))
        .expect("the state");
    let area = Area {
        pipeline: "shop".into(),
        name: "cdc".into(),
    };
    let old: Vec<(String, Option<Vec<u8>>)> = (0..1200)
        .map(|n| (format!("refused/20200101_000000_{n:06x}"), Some(b"old".to_vec())))
        .collect();
    runtime.block_on(store.area_put(&area, &old)).expect("written");
    let running = stage.start();
    wait_for("the request to be refused and old ones to go", PATIENCE, || {
        let kept = runtime.block_on(store.area_scan(&area, None, 5000)).expect("read");
        let refused: Vec<&str> = kept
            .iter()
            .filter_map(|(key, _)| key.strip_prefix("refused/"))
            .collect();
        match refused.len() <= 100 && refused.last().is_some_and(|id| !id.starts_with("2020")) {
            true => Ok(()),
            false => Err(format!("{} refusals, the last {:?}", refused.len(), refused.last())),
        }
    });
    stage.until_equal(&running);
    stage.ok(&["cdc", "refresh", "shop.yaml", "users", "--wait"]);
    stop(running);
}

/// A capture that is paused while it runs, and one that was paused before it runs.
pub(super) fn pauses_and_goes_on(shop: &impl Shop) {
    let ok = |arguments: &[&str]| {
        let (code, out, err) = finished(&shop.command(arguments));
        assert_eq!(code, 0, "{arguments:?}\n{out}\n{err}");
    };
    let running = KillRun::new(&shop.command(&["run", "shop.yaml"])).start();
    shop.until_equal(&running);
    let (_, said) = shop.answer(&["cdc", "pause", "shop.yaml"]);
    assert!(said["holder"].is_string(), "{said}");
    wait_for("the capture to hold still", PATIENCE, || {
        shop.standing()["paused"] == "all"
    });
    shop.change("UPDATE users SET first_name = 'paused' WHERE id = 5");
    let kept = shop.standing()["lag_bytes"].as_u64();
    wait_for("the source to keep its log", PATIENCE, || {
        shop.standing()["lag_bytes"].as_u64() > kept.map(|n| n.min(1))
    });
    let paused = "SELECT count(*) FROM users WHERE first_name = 'paused'";
    assert_eq!(shop.copy(paused), "0");
    let (code, _, err) = finished(&shop.command(&["run", "shop.yaml"]));
    assert_eq!(code, 6, "{err}");
    ok(&["cdc", "resume", "shop.yaml"]);
    shop.until_equal(&running);
    assert_eq!(shop.copy(paused), "1");
    stop(running);
    // It holds for later runs, too.
    ok(&["cdc", "pause", "shop.yaml"]);
    let (code, _, err) = finished(&shop.command(&["run", "shop.yaml", "--until-caught-up"]));
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("cdc resume"), "{err}");
    assert_eq!(shop.standing()["state"], "paused");
    ok(&["cdc", "resume", "shop.yaml"]);
    shop.catch_up();
}
