//! The promise that Data Sync rests on: whatever row became visible or invisible was touched, by a transaction that
//! committed, at exactly the address where it stands.

use crate::load;
use crate::wal::Wal;
use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::thread;
use synctool_pgwal::{Counts, Decoder, Event, Lsn, RelFile, Row, Scanner};
use synctool_testkit::{PgVersion, Postgres};

/// What the log says that committed between two places.
#[derive(Default)]
struct Committed {
    addresses: BTreeMap<RelFile, BTreeSet<(u32, u16)>>,
    counts: BTreeMap<RelFile, Counts>,
    commits: u64,
    overflowed: usize,
}

fn scan(wal: &Wal, scanner: &mut Scanner, from: Lsn, until: Lsn) -> Committed {
    let mut found = Committed::default();
    let mut elsewhere: BTreeMap<u32, Vec<Row>> = BTreeMap::new();
    let mut decoder = Decoder::at(wal.identity, from);
    let offset = (decoder.needs().0 - wal.start.0) as usize;
    let mut feed = decoder.feed(decoder.needs(), &wal.bytes[offset..]).unwrap();
    while let Some(record) = feed.next().unwrap() {
        if record.end() > until {
            break;
        }
        if let Some(Event::Committed(commit)) = scanner.take(&record).unwrap() {
            found.commits += 1;
            let earlier: Vec<Row> = commit
                .overflowed
                .iter()
                .flat_map(|xid| elsewhere.remove(xid).expect("what overflowed"))
                .collect();
            found.overflowed += earlier.len();
            for row in earlier.iter().chain(&commit.rows) {
                let file = scanner.file(row.file);
                found
                    .addresses
                    .entry(file)
                    .or_default()
                    .insert((row.touch.block, row.touch.offset));
                found.counts.entry(file).or_default().touch(row.touch.what);
            }
        }
        if scanner.is_full() {
            for given in scanner.overflow() {
                elsewhere.entry(given.xid).or_default().extend(given.rows);
            }
        }
        for xid in scanner.withdrawn() {
            elsewhere.remove(&xid).expect("what overflowed");
        }
    }
    // What is left belongs to transactions that have not ended.
    assert!(elsewhere.len() <= scanner.unresolved());
    found
}

fn file(server: &Postgres, table: &str) -> RelFile {
    let text = server.psql(&format!(
        "SELECT CASE reltablespace WHEN 0 THEN d.dattablespace ELSE reltablespace END, d.oid, pg_relation_filenode('{table}')
         FROM pg_class c, pg_database d WHERE c.oid = '{table}'::regclass AND d.datname = current_database()"
    ));
    let n: Vec<u32> = text.split('|').map(|n| n.parse().unwrap()).collect();
    RelFile {
        tablespace: n[0],
        database: n[1],
        file: n[2],
    }
}

/// Every visible version, by its address.
fn versions(server: &Postgres, table: &str) -> BTreeMap<(u32, u16), String> {
    let text = server.psql(&format!("SELECT ctid, xmin, md5(x::text) FROM ONLY {table} x"));
    text.lines()
        .map(|line| {
            let (ctid, rest) = line.split_once('|').unwrap();
            let (block, offset) = ctid.trim_matches(['(', ')']).split_once(',').unwrap();
            ((block.parse().unwrap(), offset.parse().unwrap()), rest.to_owned())
        })
        .collect()
}

const TABLES: &[&str] = &["acc", "nokey", "leaf_1", "leaf_2"];

fn every_change_was_touched(version: PgVersion) {
    let server = load::builder(version)
        .setting("wal_level", "replica")
        .setting("autovacuum", "off")
        .start();
    server.psql(
        "CREATE TABLE acc (id int PRIMARY KEY, n int, body text);
         INSERT INTO acc SELECT g, 0, repeat('x', g % 700) FROM generate_series(1, 3000) g;
         CREATE TABLE nokey (a int, b text); INSERT INTO nokey SELECT g % 50, 'v' FROM generate_series(1, 500) g;
         CREATE TABLE parted (id int, side int) PARTITION BY LIST (side);
         CREATE TABLE leaf_1 PARTITION OF parted FOR VALUES IN (1);
         CREATE TABLE leaf_2 PARTITION OF parted FOR VALUES IN (2);
         INSERT INTO parted SELECT g, 1 + g % 2 FROM generate_series(1, 300) g;",
    );
    let begin = server.psql("SELECT pg_create_restore_point('begin'); SELECT pg_current_wal_insert_lsn()");
    let begin: Lsn = begin.lines().last().unwrap().parse().unwrap();
    let before: Vec<_> = TABLES.iter().map(|t| versions(&server, t)).collect();

    thread::scope(|scope| {
        for session in 0..3 {
            let server = &server;
            scope.spawn(move || {
                let script = "DO $$
                    BEGIN FOR i IN 1..150 LOOP
                      UPDATE acc SET n = n + 1, body = repeat('y', (random() * 900)::int) WHERE id = 1 + (random() * 2999)::int;
                      DELETE FROM acc WHERE id = 1 + (random() * 2999)::int;
                      INSERT INTO acc VALUES (1 + (random() * 3500)::int, -1, 'new') ON CONFLICT (id) DO UPDATE SET n = -2;
                      BEGIN
                        DELETE FROM nokey WHERE a = (random() * 50)::int;
                        UPDATE parted SET side = 3 - side WHERE id = (random() * 300)::int;
                        IF random() < 0.3 THEN RAISE EXCEPTION 'back'; END IF;
                      EXCEPTION WHEN raise_exception THEN NULL; END;
                      INSERT INTO nokey VALUES (i % 50, NULL);
                      IF random() < 0.4 THEN COMMIT; END IF;
                      IF random() < 0.1 THEN ROLLBACK; END IF;
                    END LOOP; END $$;
                    COPY nokey FROM stdin;\n1\tcopied\n2\tcopied\n\\.\n
                    BEGIN; UPDATE acc SET n = 77 WHERE id % 100 = $S; SAVEPOINT x; DELETE FROM nokey WHERE a = 7;
                    PREPARE TRANSACTION 'p$S';
                    VACUUM (FREEZE) acc; VACUUM nokey;
                    COMMIT PREPARED 'p$S';";
                // Three sessions can deadlock; then that one did less.
                let _ = server.try_psql(&script.replace("$S", &session.to_string()));
            });
        }
    });
    let middle = server.psql("SELECT pg_create_restore_point('middle'); SELECT pg_current_wal_insert_lsn()");
    let middle: Lsn = middle.lines().last().unwrap().parse().unwrap();
    let after: Vec<_> = TABLES.iter().map(|t| versions(&server, t)).collect();
    let files: Vec<_> = TABLES.iter().map(|t| file(&server, t)).collect();
    let wal = Wal::of(&server);

    let mut scanner = Scanner::new(Some(files[0].database));
    let found = scan(&wal, &mut scanner, begin, middle);
    assert_eq!(scanner.unresolved(), 0, "everything has ended");
    assert!(found.commits > 50);
    for ((table, file), (before, after)) in TABLES.iter().zip(&files).zip(before.iter().zip(&after)) {
        let touched = &found.addresses[file];
        let mut changed = 0;
        let all: BTreeSet<_> = before.keys().chain(after.keys()).collect();
        for address in all {
            if before.get(address) != after.get(address) {
                changed += 1;
                assert!(
                    touched.contains(address),
                    "{table} {address:?} changed and was not touched"
                );
            }
        }
        assert!(changed > 20, "{table} changed only {changed} times");
        let counts = found.counts[file];
        let net = after.len() as i64 - before.len() as i64;
        assert_eq!(
            counts.inserted as i64 - counts.deleted as i64,
            net,
            "{table} {counts:?}"
        );
    }

    // A scanner that may keep next to nothing gives the rows away, and none is lost.
    let mut small = Scanner::new(Some(files[0].database)).limit(1);
    let again = scan(&wal, &mut small, begin, middle);
    assert!(again.overflowed > 100);
    assert_eq!((again.counts, again.addresses), (found.counts, found.addresses));
}

#[test]
fn every_changed_row_was_touched_15() {
    every_change_was_touched(PgVersion::V15);
}

#[test]
fn every_changed_row_was_touched_18() {
    every_change_was_touched(PgVersion::V18);
}

#[test]
fn operations_are_counted_exactly() {
    let server = load::builder(PgVersion::V18).setting("autovacuum", "off").start();
    server.psql("CREATE TABLE t (id int PRIMARY KEY, n int)");
    let wal_start = server.psql("SELECT pg_create_restore_point('begin'); SELECT pg_current_wal_insert_lsn()");
    let begin: Lsn = wal_start.lines().last().unwrap().parse().unwrap();
    server.psql(
        "INSERT INTO t SELECT g, 0 FROM generate_series(1, 1000) g;
         UPDATE t SET n = 1 WHERE id <= 300;
         DELETE FROM t WHERE id > 900;
         INSERT INTO t VALUES (1, 5) ON CONFLICT (id) DO UPDATE SET n = 9;
         INSERT INTO t VALUES (2, 5) ON CONFLICT DO NOTHING;
         SELECT * FROM t WHERE id < 50 FOR UPDATE;
         BEGIN; DELETE FROM t; ROLLBACK;
         BEGIN; SAVEPOINT a; INSERT INTO t VALUES (5000, 1); ROLLBACK TO a; INSERT INTO t VALUES (5001, 1); COMMIT;
         BEGIN; INSERT INTO t VALUES (6000, 1); PREPARE TRANSACTION 'open';",
    );
    let file = file(&server, "t");
    let wal = Wal::of(&server);
    let mut scanner = Scanner::new(None);
    let found = scan(&wal, &mut scanner, begin, wal.end());
    let expected = Counts {
        inserted: 1001,
        updated: 301,
        deleted: 100,
    };
    assert_eq!(found.counts[&file], expected);
    assert_eq!(scanner.unresolved(), 1, "the prepared transaction");
    let restart = scanner.restart();
    assert!(restart > begin && restart < wal.end());
    let _ = wal;

    // The server crashes. What was open is gone without a word; what was prepared is not.
    let open = server.url("postgres");
    let held = thread::spawn(move || {
        synctool_testkit::psql_url(
            &open,
            "BEGIN; INSERT INTO t VALUES (7000, 1); SELECT pg_sleep(60); COMMIT",
        )
    });
    synctool_testkit::wait_for("the open transaction", std::time::Duration::from_secs(20), || {
        server.psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%(7000, 1)%' AND wait_event = 'PgSleep'")
            == "1"
    });
    server.psql("SELECT pg_switch_wal()");
    server.kill9();
    let _ = held.join();
    server.restart();
    let wal = Wal::of(&server);
    let mut again = Scanner::new(None);
    let found = scan(&wal, &mut again, restart, wal.end());
    assert!(!found.counts.contains_key(&file), "{:?}", found.counts.get(&file));
    assert_eq!(again.unresolved(), 1, "only the prepared transaction");
    assert_eq!(again.restart(), restart);

    server.psql("COMMIT PREPARED 'open'");
    let wal = Wal::of(&server);
    let found = scan(&wal, &mut Scanner::new(None), restart, wal.end());
    assert_eq!(found.counts[&file].inserted, 1);
}

#[test]
fn a_scan_knows_when_it_has_missed_nothing() {
    let server = load::builder(PgVersion::V18).start();
    server.psql("CREATE TABLE t (id int); BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'early'");
    server.psql("SELECT pg_switch_wal(); CHECKPOINT");
    let begin: Lsn = server
        .psql("SELECT redo_lsn FROM pg_control_checkpoint()")
        .parse()
        .unwrap();
    let wal = Wal::of(&server);
    let mut scanner = Scanner::new(None);
    scan(&wal, &mut scanner, begin, wal.end());
    assert!(!scanner.is_complete(), "the prepared transaction is still open");
    server.psql("COMMIT PREPARED 'early'");
    let wal = Wal::of(&server);
    let mut scanner = Scanner::new(None);
    scan(&wal, &mut scanner, begin, wal.end());
    assert!(scanner.is_complete());
}

#[test]
fn a_record_that_a_crash_cut_off_is_passed_over() {
    // The log ends inside a record at a segment's border: the rest is lost with the server, which says so in the place
    // where it would have stood.
    let server = load::builder(PgVersion::V18)
        .initdb("--wal-segsize=1")
        .setting("autovacuum", "off")
        .start();
    server.psql("CREATE TABLE t (id int, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL");
    let data = server.data_directory();
    // A message long enough to reach over a whole segment, then the tail of it is removed while the server is dead.
    let start =
        server.psql("SELECT pg_switch_wal(); INSERT INTO t VALUES (1, 'x'); SELECT pg_current_wal_insert_lsn()");
    let start: Lsn = start.lines().last().unwrap().parse().unwrap();
    server.psql("SELECT pg_logical_emit_message(false, 'long', repeat('x', 1500000))");
    server.kill9();
    let names: Vec<_> = std::fs::read_dir(data.join("pg_wal"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file())
        .collect();
    let size = synctool_pgwal::SegmentSize::new(1 << 20).unwrap();
    let last = synctool_pgwal::SegmentName::new(1, size.number(start) + 1, size).to_string();
    for path in names {
        if path.file_name().unwrap().to_str().unwrap() >= last.as_str() {
            std::fs::remove_file(path).unwrap();
        }
    }
    server.restart();
    server.psql("INSERT INTO t VALUES (2, 'y')");
    let wal = Wal::of(&server);
    let mut overwritten = None;
    let mut messages = 0;
    let mut scanner = Scanner::new(None);
    wal.each(8192, |record| {
        messages += u32::from(record.rmgr().to_string() == "LogicalMessage");
        if let Some(Event::Note(synctool_pgwal::Meaning::Overwritten(at))) = scanner.take(record).unwrap() {
            overwritten = Some(at);
        }
    });
    assert_eq!(messages, 0, "the cut record must not appear");
    let overwritten = overwritten.expect("the server says which record was given up");
    assert_eq!(size.number(overwritten), size.number(start));
    let mut command = Command::new(server.tool("pg_waldump"));
    command
        .arg("-p")
        .arg(&wal.directory)
        .args(["-s", &wal.start.to_string(), "-e", &wal.end().to_string(), "--stats"])
        .args([&wal.names.0, &wal.names.1]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
