//! F46 in MariaDB: what becomes of a log when its tables get other columns, by policy, live and while nobody follows.

use super::*;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), b int NOT NULL, c int NOT NULL);
    INSERT INTO t SELECT seq, concat('a', seq), seq, seq FROM seq_1_to_50";

fn following(policy: &str) -> Stage {
    let stage = Stage::of(T, "tables: [t]");
    hold_to(&stage, policy);
    stage
}

/// Says what becomes of changed columns from the next run on; nothing at all with an empty policy.
fn hold_to(stage: &Stage, policy: &str) {
    let file = stage.home.path().join("shop.yaml");
    let text = std::fs::read_to_string(&file).expect("the pipeline");
    let kept = text.lines().filter(|l| !l.starts_with("schema_drift"));
    let said = (!policy.is_empty()).then(|| format!("schema_drift: {policy}"));
    let lines: Vec<String> = kept.map(str::to_owned).chain(said).collect();
    std::fs::write(file, lines.join("\n") + "\n").expect("written");
}

/// Waits until these columns of `t` are equal, by their names at each end, whichever way the log is followed.
#[track_caller]
fn until_same(stage: &Stage, running: Option<&Running>, there: &str, here: &str) {
    if running.is_none() {
        stage.catch_up();
        assert_eq!(stage.wanted("t", there), stage.found("t", here));
    }
    wait_for("both ends to be equal", PATIENCE, || {
        match (stage.wanted("t", there), stage.found("t", here)) {
            (wanted, found) if wanted == found => Ok(()),
            (wanted, found) => {
                let said = running.map(Running::stderr).unwrap_or_default();
                Err(format!("{wanted:?}\nis not\n{found:?}\nthe program said: {said}"))
            }
        }
    });
}

/// The same for a log that runs while this is done to its tables, and for one that comes to it later.
fn live_and_later(policy: &str, check: impl Fn(&Stage, Option<&Running>)) {
    for live in [false, true] {
        let stage = following(policy);
        stage.catch_up();
        let running = live.then(|| KillRun::new(&stage.command(&["run", "shop.yaml"])).start());
        check(&stage, running.as_ref());
        running.map(stop);
    }
}

/// Columns that widen, one that goes and one that comes, among rows of each shape.
#[test]
fn an_evolving_log_follows() {
    live_and_later("evolve", |stage, running| {
        stage.from.sql(
            "UPDATE t SET b = -1, c = 1000 WHERE id = 1; INSERT INTO t VALUES (99, 'narrow', 5, 7);
             ALTER TABLE t MODIFY b bigint NOT NULL; INSERT INTO t VALUES (100, 'wide', 5000000000, 7);
             ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (101, 'without', 6000000000);
             ALTER TABLE t ADD COLUMN d decimal(8, 2) DEFAULT 1.5; INSERT INTO t VALUES (102, 'with', 7, 2.5);
             ALTER TABLE t MODIFY a varchar(60); INSERT INTO t VALUES (103, repeat('long ', 10), 8, 3);
             UPDATE t SET a = 'later', d = 3 WHERE id = 2; DELETE FROM t WHERE id = 3",
        );
        until_same(stage, running, "id, a, b, d", "id, a, b, d");
        let kept = stage.to.psql("SELECT c FROM t WHERE id = 5");
        assert!(kept == "5" || kept.is_empty(), "what it had, or nothing: {kept}");
    });
    // What was followed once needs no policy any more, nor another comparison.
    let stage = following("evolve");
    stage.catch_up();
    stage.from.sql("ALTER TABLE t MODIFY b bigint NOT NULL; ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (60, 'n', 6000000000)");
    until_same(&stage, None, "id, a, b", "id, a, b");
    hold_to(&stage, "");
    stage
        .from
        .sql("UPDATE t SET b = b + 8000000000 WHERE id IN (6, 60); INSERT INTO t VALUES (61, 'n', 1)");
    let summary = stage.catch_up();
    assert_eq!(stage.wanted("t", "id, a, b"), stage.found("t", "id, a, b"));
    assert_eq!(summary["read_now"].as_u64(), Some(3), "{summary:#}");
}

/// A column is the same one under any name, also where columns trade theirs; the destination keeps the name that it has.
#[test]
fn renamed_columns_are_followed() {
    live_and_later("", |stage, running| {
        stage.from.sql(
            "ALTER TABLE t RENAME COLUMN a TO aa; UPDATE t SET aa = 'renamed' WHERE id = 1;
             ALTER TABLE t CHANGE aa aaa varchar(20); INSERT INTO t VALUES (60, 'again', 1, 2);
             ALTER TABLE t RENAME COLUMN b TO c, RENAME COLUMN c TO b; UPDATE t SET b = 100, c = 200 WHERE id = 2;
             ALTER TABLE t CHANGE id uid int; UPDATE t SET aaa = 'key' WHERE uid = 3; DELETE FROM t WHERE uid = 4",
        );
        until_same(stage, running, "uid, aaa, c, b", "id, a, b, c");
        stage
            .from
            .sql("UPDATE t SET aaa = 'more' WHERE uid > 40; UPDATE t SET uid = -uid WHERE uid < 9");
        until_same(stage, running, "uid, aaa, c, b", "id, a, b, c");
        if running.is_none() {
            let (code, found) = stage.json(&["verify", "shop.yaml"]);
            assert_eq!((code, found["status"].as_str()), (0, Some("equal")), "{found:#}");
            stage
                .to
                .psql("UPDATE t SET a = 'wrong' WHERE id = 7; DELETE FROM t WHERE id = 9");
            let (code, found) = stage.json(&["verify", "shop.yaml"]);
            assert_eq!((code, found["status"].as_str()), (3, Some("different")), "{found:#}");
            let (code, _, err) = finished(&stage.command(&["repair", "shop.yaml"]));
            assert_eq!(code, 0, "{err}");
            assert_eq!(stage.wanted("t", "uid, aaa, c, b"), stage.found("t", "id, a, b, c"));
        }
    });
}

/// The rows behind a column that went are whole without it, wherever they go.
#[test]
fn rows_that_come_after_columns_went_are_written() {
    let stage = Stage::of(
        "CREATE TABLE t (id int PRIMARY KEY, a varchar(20), b int); INSERT INTO t VALUES (1, 'a', 1)",
        "tables: [t]",
    );
    let file = stage.home.path().join("copy.sqlite");
    let to = format!("{{type: sqlite, connection: {{path: \"{}\"}}}}", file.display());
    stage.pipeline(&to, "tables: [t]", "");
    hold_to(&stage, "evolve");
    stage.catch_up();
    stage
        .from
        .sql("ALTER TABLE t DROP COLUMN b; INSERT INTO t VALUES (2, 'without')");
    stage.catch_up();
    let (from, uri) = (stage.from.url(), format!("sqlite:{}", file.display()));
    let (code, out, err) = finished(&stage.command(&["diff", &from, "t", &uri, "t", "--columns", "id,a"]));
    assert_eq!(code, 0, "{out}\n{err}");
}

/// Where a table was made anew, the catalog may have a column that its first rows lack in the log: they are read by their
/// keys.
#[test]
fn new_rows_that_lack_a_later_column_are_fetched() {
    let stage = following("evolve");
    stage.catch_up();
    stage
        .from
        .sql("ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = 1 WHERE id = 1");
    until_same(&stage, None, "id, a, b, c, x", "id, a, b, c, x");
    stage.from.sql(
        "CREATE OR REPLACE TABLE t (id int PRIMARY KEY, a varchar(20), b int NOT NULL, c int NOT NULL);
         INSERT INTO t VALUES (1, 'again', 1, 1), (60, 'new', 1, 1); ALTER TABLE t ADD COLUMN x int DEFAULT 7;
         INSERT INTO t VALUES (61, 'whole', 2, 2, 8)",
    );
    until_same(&stage, None, "id, a, b, c, x", "id, a, b, c, x");
}

/// A column whose name another one takes over is a new one under its new name.
#[test]
fn a_name_that_is_taken_over_is_that_of_the_new_column() {
    live_and_later("", |stage, running| {
        stage.from.sql(
            "ALTER TABLE t CHANGE c old int NOT NULL; ALTER TABLE t ADD COLUMN c int DEFAULT 3;
             UPDATE t SET c = 9, old = 8 WHERE id = 2",
        );
        until_same(stage, running, "id, a, b, c, old", "id, a, b, c, old");
    });
}

/// New columns stay behind, under any name, and come with their values when they may.
#[test]
fn a_new_column_that_is_discarded_stays_behind() {
    live_and_later("discard_column", |stage, running| {
        stage.from.sql(
            "UPDATE t SET a = 'first' WHERE id = 1; ALTER TABLE t ADD COLUMN x int; UPDATE t SET x = id WHERE id < 9;
             ALTER TABLE t DROP COLUMN c; INSERT INTO t (id, a, b) VALUES (90, 'n', 1)",
        );
        until_same(stage, running, "id, a, b", "id, a, b");
        assert!(stage.to.try_psql("SELECT x FROM t").is_err(), "it stays behind");
        stage.from.sql("UPDATE t SET a = 'third' WHERE id = 3");
        until_same(stage, running, "id, a, b", "id, a, b");
        if running.is_none() {
            hold_to(stage, "evolve");
            stage
                .from
                .sql("ALTER TABLE t RENAME COLUMN x TO y; UPDATE t SET a = 'fourth' WHERE id = 4");
            until_same(stage, None, "id, a, b, y", "id, a, b, y");
        }
    });
}

/// It ends before the first transaction of another shape, and goes on when somebody accepts it.
#[test]
fn a_frozen_log_and_a_waiting_one_end_before_other_columns() {
    for (policy, ddl, says) in [
        ("freeze", "ADD COLUMN x int DEFAULT 5", "x (int(11)) is new"),
        ("pause", "DROP COLUMN c", "c is gone"),
        ("freeze", "MODIFY b bigint NOT NULL", "b was int(11) and is bigint(20)"),
        ("pause", "RENAME COLUMN c TO z", "c is called z"),
    ] {
        let stage = following(policy);
        stage.catch_up();
        stage.from.sql("UPDATE t SET a = 'before' WHERE id = 1");
        stage
            .from
            .sql(&format!("ALTER TABLE t {ddl}; UPDATE t SET a = 'mid' WHERE id = 2"));
        for _ in 0..2 {
            let (_, why) = stage.refused();
            assert!(why.contains(says) && why.contains("--accept-schema"), "{ddl}: {why}");
        }
        assert_eq!(stage.to.psql("SELECT count(*) FROM t WHERE a = 'mid'"), "0", "{ddl}");
        let (code, summary) = stage.json(&["run", "shop.yaml", "--until-caught-up", "--accept-schema"]);
        assert_eq!(code, 0, "{ddl}: {summary:#}");
        // Accepted once, it stays accepted.
        stage.from.sql("UPDATE t SET a = 'after' WHERE id = 7");
        let columns = if ddl.starts_with("ADD") {
            "id, a, b, x"
        } else {
            "id, a, b"
        };
        until_same(&stage, None, columns, columns);
    }
}

/// What an evolving destination cannot follow is refused by name.
#[test]
fn what_does_not_widen_is_refused() {
    for (ddl, says) in [
        ("UPDATE t SET a = '1'; ALTER TABLE t MODIFY a int", "column a was"),
        ("ALTER TABLE t MODIFY b smallint NOT NULL", "column b was"),
        ("ALTER TABLE t DROP COLUMN id", "column id is gone"),
    ] {
        let stage = following("evolve");
        stage.catch_up();
        stage.from.sql(&format!("{ddl}; UPDATE t SET c = 5 WHERE b = 1"));
        let (_, why) = stage.refused();
        assert!(why.contains(says), "{ddl}: {why}");
    }
    let stage = following("");
    stage.catch_up();
    stage
        .from
        .sql("ALTER TABLE t MODIFY b bigint NOT NULL; UPDATE t SET b = 5000000000 WHERE id = 1");
    let (_, why) = stage.refused();
    assert!(
        why.contains("column b was") && why.contains("evolve"),
        "without a policy: {why}"
    );
}

/// The catalog has the end of a way of which the log shows every step.
#[test]
fn many_steps_while_nobody_follows_are_followed_one_by_one() {
    let stage = following("evolve");
    stage.catch_up();
    stage.from.sql(
        "ALTER TABLE t MODIFY b bigint NOT NULL; INSERT INTO t VALUES (60, 'bigint', 5000000000, 1);
         ALTER TABLE t MODIFY b decimal(30, 0) NOT NULL; INSERT INTO t VALUES (61, 'decimal', 9999999999999999999999, 1);
         ALTER TABLE t ADD COLUMN x int; INSERT INTO t VALUES (62, 'x', 1, 1, 7); ALTER TABLE t RENAME COLUMN x TO y;
         INSERT INTO t VALUES (63, 'y', 1, 1, 8); ALTER TABLE t ADD COLUMN e text DEFAULT 'e'; UPDATE t SET e = 'gone' WHERE id = 1;
         ALTER TABLE t DROP COLUMN e; ALTER TABLE t DROP COLUMN c; INSERT INTO t VALUES (64, 'without', 1, 9);
         ALTER TABLE t ADD COLUMN c int DEFAULT 4; INSERT INTO t VALUES (65, 'with', 1, 9, 5)",
    );
    until_same(&stage, None, "id, a, b, y, c", "id, a, b, y, c");
    // Read in the middle of such a way, it goes on from there.
    stage
        .from
        .sql("ALTER TABLE t RENAME COLUMN y TO z; UPDATE t SET z = 10 WHERE id = 63");
    until_same(&stage, None, "id, a, b, z, c", "id, a, b, y, c");
    stage
        .from
        .sql("ALTER TABLE t CHANGE z y bigint; UPDATE t SET y = 7000000000 WHERE id = 64");
    until_same(&stage, None, "id, a, b, y, c", "id, a, b, y, c");
}

/// A table that is read again while its columns change has the values of its rows.
#[test]
fn chunks_beside_changes_of_columns_end_equal() {
    let stage = following("evolve");
    stage.catch_up();
    stage.to.psql("UPDATE t SET a = 'wrong'");
    let ok = |arguments: &[&str]| assert_eq!(finished(&stage.command(arguments)).0, 0, "{arguments:?}");
    ok(&["cdc", "refresh", "shop.yaml", "t"]);
    ok(&["cdc", "pause", "shop.yaml", "--backfill"]);
    let running = KillRun::new(&stage.command(&["run", "shop.yaml"])).start();
    stage.from.sql(
        "UPDATE t SET b = 0 WHERE id = 4; ALTER TABLE t MODIFY b bigint NOT NULL; ALTER TABLE t DROP COLUMN c;
         ALTER TABLE t RENAME COLUMN a TO name",
    );
    ok(&["cdc", "resume", "shop.yaml"]);
    stage.from.sql("UPDATE t SET b = 9000000000 WHERE id = 40; ALTER TABLE t ADD COLUMN d int DEFAULT 2; UPDATE t SET d = 5 WHERE id = 1");
    until_same(&stage, Some(&running), "id, name, b, d", "id, a, b, d");
    stop(running);
}
