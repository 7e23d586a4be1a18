//! Whatever the steps, units, levels, bounds and NULLs: every row is in exactly one partition.

use super::matrix::{End, folder};
use super::*;
use synctool_testkit::is_soak;
use synctool_testkit::kill::{Action, Failpoint, KillRun};

/// Numbers that follow from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len() as u64) as usize]
    }
}

fn dimension(numbers: &mut Numbers, bounded: bool) -> String {
    let kind = match bounded {
        true => numbers.below(3),
        false => numbers.below(9),
    };
    match kind {
        0 => format!(
            "{{column: small, step: {}{}}}",
            numbers.below(60) + 12,
            bounds(bounded, "-20", "50")
        ),
        1 => {
            let unit = numbers.of(&["day", "week", "month", "quarter", "year"]);
            let zone = numbers.of(&["UTC", "Europe/Berlin", "America/New_York", "+05:45"]);
            let ends = bounds(bounded, "\"2023-11-30\"", "\"2024-06-01\"");
            format!(
                "{{column: at, step: {}, step_unit: {unit}, time_zone: {zone}{ends}}}",
                numbers.below(3) + 1
            )
        }
        2 => format!(
            "{{column: day, step: {}, step_unit: {}{}}}",
            numbers.below(3) + 1,
            numbers.of(&["day", "week", "month"]),
            bounds(bounded, "\"2024-01-15\"", "\"2024-03-01\"")
        ),
        3 => format!("{{column: id, step: {}}}", numbers.below(900) + 400),
        4 => format!("{{column: price, step: {}}}", numbers.below(90) + 70),
        5 => format!(
            "{{column: token, step: {}}}",
            numbers.below(4_000_000_000) + 500_000_000
        ),
        6 => "{column: kind, type: value, step: -1}".into(),
        7 => "{column: flag, type: value, step: -1}".into(),
        _ => format!("{{column: naive, step: {}, step_unit: hour}}", numbers.below(300) + 200),
    }
}

/// At least so many dimensions and perhaps one more, each of another column.
fn level(numbers: &mut Numbers, least: u64) -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    for _ in 0..least + numbers.below(2) {
        let one = dimension(numbers, false);
        let column = |d: &str| d.split(',').next().unwrap_or_default().to_owned();
        if all.iter().all(|d| column(d) != column(&one)) {
            all.push(one);
        }
    }
    all
}

fn bounds(bounded: bool, start: &str, end: &str) -> String {
    match bounded {
        true => format!(", start: {start}, end: {end}"),
        false => String::new(),
    }
}

/// What a bounded dimension leaves. A zone moves where days begin; bounds written as dates are midnights of UTC all the same.
fn between(dimension: &str) -> &'static str {
    match dimension {
        d if d.contains("column: small") => "small >= -20 AND small < 50",
        d if d.contains("column: at") => "at >= '2023-11-30 00:00+00' AND at < '2024-06-01 00:00+00'",
        _ => "day >= '2024-01-15' AND day < '2024-03-01'",
    }
}

const ITEMS: &str = "CREATE TABLE items(id bigint PRIMARY KEY, small int, price numeric(8,2), at timestamptz, naive timestamp, day date,
        token uuid, kind text, flag boolean);
    INSERT INTO items SELECT i * 3 - 1000, nullif((random() * 150 - 70)::int, 5), (random() * 600 - 200)::numeric(8,2),
        timestamptz '2023-10-20 00:00+00' + interval '1 day' * (random() * 300), timestamp '2023-12-20' + interval '1 hour' * (random() * 1500),
        date '2023-12-20' + (random() * 100)::int, md5(random()::text)::uuid, nullif('k' || (random() * 6)::int, 'k2'), random() < 0.5
        FROM generate_series(1, 1500) i;
    UPDATE items SET at = NULL WHERE id % 13 = 0; UPDATE items SET day = NULL, token = NULL WHERE id % 17 = 0;
    UPDATE items SET naive = NULL, flag = NULL, price = NULL WHERE id % 19 = 0;
    UPDATE items SET at = 'infinity', naive = '-infinity', day = 'infinity' WHERE id % 23 = 0;
    UPDATE items SET at = '-infinity', price = 'NaN', day = '-infinity' WHERE id % 29 = 0";

#[test]
fn every_row_is_in_exactly_one_partition() {
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut numbers = Numbers(seed);
    let db = database("any_partitions");
    db.psql(&format!("SELECT setseed(0.{}); {ITEMS}", seed % 1000));
    let total = db.psql("SELECT count(*) FROM items").trim().to_owned();
    let place = here(&db);
    let rounds = if is_soak() { 20 } else { 10 };
    for round in 0..rounds {
        let primary = level(&mut numbers, 1);
        let secondary = level(&mut numbers, 0);
        let strategy = numbers.of(&["hash", "full"]);
        let levels = format!(
            "primary_partitions: [{}], secondary_partitions: [{}]",
            primary.join(", "),
            secondary.join(", ")
        );
        let file = format!("p{round}.yaml");
        place.write(
            &file,
            &format!(
                "name: p{round}\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies{round}}}\n\
                 strategies: [{{name: hash, type: hash, {levels}}}, {{name: full, type: full, {levels}}}]\n"
            ),
        );
        let run = place.json(&["run", &file, "--strategy", strategy], 0);
        assert_eq!(run["inserted"].to_string(), total, "{levels}: {run}");
        let equal = place.json(&["verify", &file, "--strategy", "hash"], 0);
        assert_eq!(equal["compared"]["source"].to_string(), total, "{levels}: {equal}");
        assert_eq!(equal["compared"]["destination"].to_string(), total, "{levels}: {equal}");
        db.psql(&format!("DROP TABLE copies{round}"));
    }
}

/// With `start` and `end` exactly the rows between them, once each, and none of the others is touched.
#[test]
fn bounds_hold_exactly_what_is_between_them() {
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut numbers = Numbers(seed ^ 0x5eed);
    let db = database("any_bounds");
    db.psql(&format!("SELECT setseed(0.{}); {ITEMS}", seed % 1000));
    let place = here(&db);
    for round in 0..9 {
        let one = dimension(&mut numbers, true);
        let condition = between(&one);
        let file = format!("p{round}.yaml");
        place.write(
            &file,
            &format!(
                "name: p{round}\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies{round}}}\n\
                 strategies: [{{name: hash, type: hash, primary_partitions: [{one}]}}]\n"
            ),
        );
        let wanted = db.psql(&format!("SELECT count(*) FROM items WHERE {condition}"));
        let run = place.json(&["run", &file], 0);
        assert_eq!(run["inserted"].to_string(), wanted.trim(), "{one}: {run}");
        let other = format!("SELECT count(*) FROM copies{round} WHERE ({condition}) IS NOT TRUE");
        assert_eq!(db.psql(&other).trim(), "0", "{one}");
    }
}

/// The same from another engine than PostgreSQL: random rows in it, cut by random dimensions, and between random bounds.
fn every_row_of(from: &End, name: &str) {
    let seed = std::env::var("PROPTEST_RNG_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or(1);
    let mut numbers = Numbers(seed ^ name.len() as u64);
    let db = database(name);
    // Infinity and NaN are no values of every engine.
    db.psql(&format!(
        "SELECT setseed(0.{}); {ITEMS}; DELETE FROM items WHERE NOT isfinite(at) OR NOT isfinite(naive) OR NOT isfinite(day) OR price = 'NaN' OR id % 3 = 0",
        seed % 1000
    ));
    let count = |condition: &str| {
        let found = db.psql(&format!("SELECT count(*) FROM items WHERE {condition}"));
        found.trim().to_owned()
    };
    let place = Place::new(&[("base", postgres(&db)), ("from", from.entry()), ("to", postgres(&db))]);
    place.write(
        "load.yaml",
        "name: load\nsource: {datastore: base, table: public.items}\ndestination: {datastore: from, table: items}\nstrategies: [{type: full}]\n",
    );
    place.json(&["run", "load.yaml"], 0);
    // Rows stay as they are here, so every engine may cut by any column.
    let still = |dimension: &String| format!("{}, immutable: true}}", dimension.trim_end_matches('}'));
    let run = |levels: &str, strategy: &str| {
        db.psql("DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE");
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: public.copies}}\n\
                 strategies: [{{name: hash, type: hash, {levels}}}, {{name: full, type: full, {levels}}}]\n"
            ),
        );
        place.json(&["run", "p.yaml", "--strategy", strategy], 0)["inserted"].to_string()
    };
    let rounds = if is_soak() { 3 } else { 2 };
    for _ in 0..rounds {
        let primary = still(&dimension(&mut numbers, false));
        // Files are read once per partition: not by too many.
        let secondary = match primary.contains("column: flag") {
            true => "",
            false => "{column: flag, type: value, step: -1, immutable: true}",
        };
        let strategy = numbers.of(&["hash", "full"]);
        let levels = format!("primary_partitions: [{primary}], secondary_partitions: [{secondary}]");
        assert_eq!(run(&levels, strategy), count("true"), "{strategy}: {levels}");
        let equal = place.json(&["verify", "p.yaml", "--strategy", "hash"], 0);
        assert_eq!(
            equal["compared"]["source"].to_string(),
            count("true"),
            "{levels}: {equal}"
        );
        assert_eq!(
            equal["compared"]["destination"].to_string(),
            count("true"),
            "{levels}: {equal}"
        );
    }
    for _ in 0..2 {
        let one = still(&dimension(&mut numbers, true));
        let condition = between(&one);
        let strategy = numbers.of(&["hash", "full"]);
        assert_eq!(
            run(&format!("primary_partitions: [{one}]"), strategy),
            count(condition),
            "{strategy}: {one}"
        );
    }
}

#[test]
fn every_row_of_mariadb_is_in_exactly_one_partition() {
    every_row_of(
        &End::Maria(MariaDb::shared().database("any_partitions")),
        "any_of_maria",
    );
}

#[test]
fn every_row_of_sqlite_is_in_exactly_one_partition() {
    every_row_of(&End::Sqlite(folder()), "any_of_sqlite");
}

#[test]
fn every_row_of_files_is_in_exactly_one_partition() {
    every_row_of(&End::Parquet(folder()), "any_of_files");
}

#[cfg(feature = "duckdb")]
#[test]
fn every_row_of_duckdb_is_in_exactly_one_partition() {
    every_row_of(&End::DuckDb(folder()), "any_of_duckdb");
}

/// The key that most tables of MySQL have is unsigned.
#[test]
fn unsigned_keys_are_cut_by_steps() {
    let maria = MariaDb::shared().database("unsigned");
    maria.sql(
        "CREATE TABLE items(id bigint unsigned PRIMARY KEY, v int);
         INSERT INTO items SELECT seq * 37, seq FROM seq_1_to_500",
    );
    let db = database("unsigned");
    let place = Place::new(&[
        ("from", format!("{{type: mysql, url: \"{}\"}}", maria.url())),
        ("to", postgres(&db)),
    ]);
    place.write(
        "p.yaml",
        "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: public.copies}\n\
         strategies: [{name: hash, type: hash, primary_partitions: [{column: id, step: 4000}]}]\n",
    );
    let first = place.json(&["run", "p.yaml"], 0);
    assert_eq!(first["inserted"], 500, "{first}");
    maria.sql("UPDATE items SET v = 0 WHERE id = 37 * 400; DELETE FROM items WHERE id = 37");
    let second = place.json(&["run", "p.yaml"], 0);
    assert_eq!(
        (&second["updated"], &second["deleted"]),
        (&1.into(), &1.into()),
        "{second}"
    );
    assert_eq!(db.psql("SELECT count(*), sum(v) FROM copies").trim(), "499|124849");
}

/// Days by steps of users are more pieces than there are rows: the days alone cut the work, and the plan says so.
#[test]
fn what_cannot_be_cut_twice_is_cut_once() {
    let db = database("cut_once");
    db.psql(
        "CREATE TABLE items(id int PRIMARY KEY, user_id int NOT NULL, at timestamptz NOT NULL);
         INSERT INTO items SELECT i, i * 7919 % 5000, timestamptz '2024-01-01 00:00+00' + interval '5 hours' * i FROM generate_series(0, 299) i",
    );
    let place = here(&db);
    let same = "SELECT count(*) FROM ((TABLE items EXCEPT TABLE copies) UNION ALL (TABLE copies EXCEPT TABLE items)) d";
    for (kind, outer, inner) in [
        ("type: full", "at, step: 1, step_unit: day", "user_id, step: 1"),
        ("type: hash", "at, step: 1, step_unit: day", "user_id, step: 1"),
        // A window with a beginning is read as one, whatever the destination has.
        (
            "type: delta, column: at, stamped_by: app",
            "at, step: 1, step_unit: day, start: 2024-01-01",
            "user_id, step: 1",
        ),
        // What it leaves out stays left out.
        (
            "type: full",
            "at, step: 1, step_unit: day",
            "user_id, step: 1, start: 0",
        ),
    ] {
        db.psql(
            "DROP TABLE IF EXISTS copies; DROP SCHEMA IF EXISTS synctool CASCADE; CREATE TABLE copies AS TABLE items;
             ALTER TABLE copies ADD PRIMARY KEY (id); UPDATE copies SET user_id = -1 WHERE id = 9",
        );
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: public.items}}\ndestination: {{datastore: to, table: public.copies}}\n\
                 strategies: [{{name: s, {kind}, primary_partitions: [{{column: {outer}}}], secondary_partitions: [{{column: {inner}}}]}}]\n"
            ),
        );
        let plan = place.json(&["plan", "p.yaml"], 0);
        let told = plan["reasons"].to_string();
        assert!(told.contains("not cut by user_id again"), "{kind}: {told}");
        let pieces = plan["partitions"].as_array().map_or(0, Vec::len);
        assert!((60..=150).contains(&pieces), "{kind}: {pieces} partitions");
        place.json(&["run", "p.yaml"], 0);
        assert_eq!(db.psql(same).trim(), "0", "{kind}");
    }
}

/// Rows that move from one partition of a load to another while it goes on: every row arrives, and once. Sources whose
/// readers share no snapshot are cut by the key instead.
#[test]
fn a_load_cut_by_what_changes_loses_and_doubles_nothing() {
    const COLUMNS: &[&str] = &["id"];
    let moved = "UPDATE items SET status = CASE status WHEN 'a' THEN 'b' WHEN 'b' THEN 'c' ELSE 'a' END";
    for from in [
        End::Postgres(database("moving_from")),
        End::Maria(MariaDb::shared().database("moving_from")),
        End::Sqlite(folder()),
    ] {
        let rows: Vec<String> = (0..90)
            .map(|i| format!("({i}, '{}')", ["a", "b", "c"][i % 3]))
            .collect();
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, status varchar(9) NOT NULL); INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        let wanted = from.lines("items", COLUMNS);
        let shared = matches!(from, End::Postgres(_));
        for accident in ["killed", "stopped", "snapshot lost"] {
            // What is open in SQLite while the program stands still keeps everybody from writing.
            if accident != "killed" && matches!(from, End::Sqlite(_)) || accident == "snapshot lost" && !shared {
                continue;
            }
            let to = End::Postgres(database("moving_to"));
            let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
            place.write(
                "p.yaml",
                "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\n\
                 strategies: [{name: full, type: full, primary_partitions: [{column: status, type: value}]}]\n",
            );
            let plan = place.json(&["plan", "p.yaml"], 0);
            let told = plan["reasons"].to_string();
            let pieces = plan["partitions"].as_array().map_or(0, Vec::len);
            match shared {
                true => assert!(pieces == 4 && told.contains("in one snapshot"), "{plan}"),
                false => assert!(pieces == 1 && told.contains("immutable: true"), "{plan}"),
            }
            let run = place.command(&["run", "p.yaml", "--workers", "1", "--output", "json"]);
            let first = Failpoint {
                name: "sink.commit.after".into(),
                nth: 1,
            };
            if accident == "killed" {
                KillRun::new(&run).accident(&first, Action::Kill).run().assert_killed();
                from.change(moved);
                let plan = place.json(&["plan", "p.yaml"], 0);
                assert_eq!(plan["reasons"].to_string().contains("starts over"), shared, "{plan}");
                let second = place.json(&["run", "p.yaml", "--workers", "1"], 0);
                assert_eq!(second["resumed"], !shared, "{second}");
            } else {
                let mut running = KillRun::new(&run).accident(&first, Action::Stop).start();
                running.wait_stopped();
                from.change(moved);
                if accident == "snapshot lost" {
                    from.change(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                         WHERE datname = current_database() AND application_name LIKE 'synctool reading%'",
                    );
                }
                running.resume();
                running.wait().assert_success();
            }
            assert_eq!(to.lines("items", COLUMNS), wanted, "{accident}");
        }
    }
}

/// Where the user says that a column never changes, every source is cut by it, and a run that was killed goes on.
#[test]
fn a_load_cut_by_what_never_changes_goes_on() {
    for from in [
        End::Postgres(database("still_from")),
        End::Maria(MariaDb::shared().database("still_from")),
        End::Sqlite(folder()),
    ] {
        let rows: Vec<String> = (0..90).map(|i| format!("({i}, {})", i % 3)).collect();
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, shop int NOT NULL); INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        let to = End::Postgres(database("still_to"));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        place.write(
            "p.yaml",
            "name: p\nsource: {datastore: from, table: items}\ndestination: {datastore: to, table: items}\n\
             strategies: [{name: full, type: full, primary_partitions: [{column: shop, step: 1, immutable: true}]}]\n",
        );
        let run = place.command(&["run", "p.yaml", "--workers", "1"]);
        KillRun::new(&run).at("sink.commit.after", 1).run().assert_killed();
        let second = place.json(&["run", "p.yaml", "--workers", "1"], 0);
        assert_eq!(
            (&second["resumed"], &second["partitions"], &second["skipped"]),
            (&true.into(), &3.into(), &1.into()),
            "{second}"
        );
        assert_eq!(to.lines("items", &["id", "shop"]), from.lines("items", &["id", "shop"]));
    }
}

/// Uuids kept as texts, in either case, and texts that are none: they are cut by their first digits, and nothing is lost.
#[test]
fn uuids_kept_as_texts_are_cut_by_their_first_digits() {
    for from in [
        End::Postgres(database("uuid_texts_from")),
        End::Maria(MariaDb::shared().database("uuid_texts_from")),
        End::Sqlite(folder()),
    ] {
        let mut numbers = Numbers(7);
        let mut keys: Vec<String> = (0..200)
            .map(|_| {
                format!(
                    "{:08x}-0000-4000-8000-{:012x}",
                    numbers.below(1 << 32),
                    numbers.below(1 << 31)
                )
            })
            .collect();
        keys.extend(["", "zz", "not a uuid", "ABCDEF12-0000-4000-8000-000000000000"].map(String::from));
        let rows: Vec<String> = keys.iter().enumerate().map(|(i, k)| format!("('{k}', {i})")).collect();
        from.change(&format!(
            "CREATE TABLE items(id varchar(36) PRIMARY KEY, v int NOT NULL); INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        let to = End::Postgres(database("uuid_texts_to"));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        for strategy in ["full", "hash"] {
            place.write(
                "p.yaml",
                &format!(
                    "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: items}}\nstrategies:\n  \
                     - {{name: s, type: {strategy}, primary_partitions: [{{column: id, step: 268435456, data_type: uuid_text_dash}}]}}\n"
                ),
            );
            let plan = place.json(&["plan", "p.yaml"], 0);
            let pieces = plan["partitions"].as_array().map_or(0, Vec::len);
            assert!(pieces >= 16, "{strategy}: {pieces} partitions");
            let run = place.json(&["run", "p.yaml"], 0);
            assert_eq!(
                to.lines("items", &["v", "id"]),
                from.lines("items", &["v", "id"]),
                "{strategy}"
            );
            let written = if strategy == "full" { 204 } else { 1 };
            assert_eq!(run["inserted"], written, "{strategy}: {run}");
            to.change("DELETE FROM items WHERE v = 17");
        }
    }
}

/// So many partitions are worked on at once, neither more nor fewer: as the command line says, else the strategy, else the
/// pipeline.
#[test]
fn as_many_partitions_at_once_as_is_said() {
    for (of_pipeline, of_strategy, arguments, wanted) in [
        ("", "", &[][..], 2),
        ("max_concurrent_partitions: 4\n", "", &[], 4),
        (
            "max_concurrent_partitions: 4\n",
            ", max_concurrent_partitions: 3",
            &[],
            3,
        ),
        (
            "max_concurrent_partitions: 4\n",
            ", max_concurrent_partitions: 3",
            &["--workers", "5"],
            5,
        ),
    ] {
        let db = database("at_once");
        db.psql("CREATE TABLE items(id int PRIMARY KEY, part int NOT NULL); INSERT INTO items SELECT i, i % 8 FROM generate_series(1, 80) i");
        let gate = gate::Gate::closed(&db);
        let place = here(&db);
        place.write(
            "p.yaml",
            &format!(
                "name: p\nsource: {{datastore: from, table: public.gated}}\ndestination: {{datastore: to, table: public.copies}}\nkey: [id]\n\
                 columns: [id, part, g]\n{of_pipeline}strategies:\n  \
                 - {{type: full{of_strategy}, primary_partitions: [{{column: part, type: list, values: [0, 1, 2, 3, 4, 5, 6, 7], immutable: true}}]}}\n"
            ),
        );
        let mut run = place
            .command(&[&["run", "p.yaml"][..], arguments].concat())
            .spawn()
            .expect("the program starts");
        synctool_testkit::wait_for("readers", std::time::Duration::from_secs(60), || match gate.waiting() {
            n if n == wanted => Ok(()),
            n => Err(format!("{n} wait, and {wanted} should")),
        });
        // Whoever would come too many has time to.
        let begun = std::time::Instant::now();
        synctool_testkit::wait_for("a moment to pass", std::time::Duration::from_secs(60), || {
            begun.elapsed() > std::time::Duration::from_millis(500)
        });
        assert_eq!(gate.waiting(), wanted, "{of_pipeline} {of_strategy} {arguments:?}");
        gate.open();
        assert!(run.wait().expect("its end").success());
        assert_eq!(db.psql("SELECT count(*) FROM copies").trim(), "80");
    }
}

/// A date of the year 9999 or 1, a number far from all others: as many partitions as there are steps with rows, about.
#[test]
fn a_value_far_from_all_others_makes_no_crowd_of_partitions() {
    const COLUMNS: &[&str] = &["id", "n"];
    let all = is_soak();
    let sources = [
        End::Postgres(database("far_from")),
        End::Maria(MariaDb::shared().database("far_from")),
        End::Sqlite(folder()),
    ];
    for (engine, from) in sources.into_iter().enumerate() {
        let rows: Vec<String> = (0..60)
            .map(|i| {
                format!(
                    "({i}, {}, '2023-{:02}-10', '2024-{:02}-10 12:00:00')",
                    i * 7,
                    i % 6 + 1,
                    i % 6 + 1
                )
            })
            .chain(["(100, 900000000000, '9999-12-31', '9999-12-31 23:59:59')".into()])
            .chain(["(101, -900000000000, '0001-01-01', '0001-01-01 00:00:00')".into()])
            .collect();
        let stamp = if matches!(from, End::Maria(_)) {
            "datetime"
        } else {
            "timestamp"
        };
        from.change(&format!(
            "CREATE TABLE items(id int PRIMARY KEY, n bigint NOT NULL, day date NOT NULL, at {stamp} NOT NULL); INSERT INTO items VALUES {}",
            rows.join(", ")
        ));
        let to = End::Postgres(database("far_to"));
        let place = Place::new(&[("from", from.entry()), ("to", to.entry())]);
        let dimensions = [
            ("column: at, step: 1, step_unit: month", 6),
            ("column: day, step: 1, step_unit: day", 6),
            ("column: n, step: 20", 20),
        ];
        for (kind, (dimension, least)) in dimensions.into_iter().enumerate() {
            for strategy in ["full", "hash"] {
                // Loads of all; comparisons by each dimension from one engine. A soak has all.
                if strategy == "hash" && kind != engine && !all {
                    continue;
                }
                place.write(
                    "p.yaml",
                    &format!(
                        "name: p\nsource: {{datastore: from, table: items}}\ndestination: {{datastore: to, table: items}}\nstrategies:\n  \
                         - {{type: {strategy}, primary_partitions: [{{{dimension}, immutable: true}}]}}\n"
                    ),
                );
                let plan = place.json(&["plan", "p.yaml"], 0);
                let pieces = plan["partitions"].as_array().map_or(0, Vec::len);
                assert!(
                    (least..=600).contains(&pieces),
                    "{strategy}: {dimension}: {pieces} partitions"
                );
                place.json(&["run", "p.yaml"], 0);
                assert_eq!(
                    to.lines("items", COLUMNS),
                    from.lines("items", COLUMNS),
                    "{strategy}: {dimension}"
                );
                to.change("DELETE FROM items WHERE id > 50");
            }
        }
    }
}
