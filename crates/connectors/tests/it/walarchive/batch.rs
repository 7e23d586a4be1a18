//! Batches: together they hold every commit exactly once, wherever a scan is broken off and begun again.

use super::{Production, follower};
use std::collections::BTreeMap;
use synctool_connectors::walarchive::{Archive, Batch, Follower, Next, Room, Scan, Segment};
use synctool_pgwal::{Counts, Lsn, RelFile};
use synctool_testkit::PgVersion;

fn sums(batches: &[Batch]) -> BTreeMap<RelFile, Counts> {
    let mut sums: BTreeMap<RelFile, Counts> = BTreeMap::new();
    for batch in batches {
        for (file, changes) in &batch.files {
            sums.entry(*file).or_default().add(changes.counts());
        }
    }
    sums
}

/// Everything a batch says.
fn told(batch: &Batch) -> String {
    let mut text = format!(
        "{} {} {} {} {:?}\n",
        batch.from, batch.to, batch.restart, batch.commits, batch.last_commit
    );
    for (file, changes) in &batch.files {
        let addresses = changes.addresses.walk().unwrap().next(usize::MAX).unwrap();
        text.push_str(&format!("{file:?} {addresses:?} {:?}\n", changes.hours));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_that_is_begun_again_finds_the_same_batches() {
    let production = Production::start(PgVersion::V18);
    let server = &production.server;
    server.psql("CREATE TABLE long (id int)");
    production.work();
    // A transaction that is open over many segments, with subtransactions of which one comes to nothing.
    server.psql(
        "BEGIN; INSERT INTO long SELECT generate_series(1, 100); SAVEPOINT a; INSERT INTO long VALUES (101);
         ROLLBACK TO a; SAVEPOINT b; INSERT INTO long VALUES (102); RELEASE b; PREPARE TRANSACTION 'open'",
    );
    (0..2).for_each(|_| production.work());
    server.psql("COMMIT PREPARED 'open'; BEGIN; INSERT INTO long VALUES (500); ROLLBACK");
    production.work();

    let finished = production.finished();
    let directory = finished[0].1.parent().unwrap().to_owned();
    let mut source: Follower = follower(Archive::Directory(directory), &finished[0].1, 0);
    let start = source.position();
    let mut segments: Vec<Segment> = Vec::new();
    while let Next::Segment(segment) = source.next().await.unwrap() {
        segments.push(*segment);
    }
    let identity = segments[0].identity;
    let place = tempfile::tempdir().unwrap();
    let room = |rows| Room {
        rows,
        directory: place.path().into(),
    };
    let scan = |from: Lsn, applied: Lsn| Scan::new(identity, None, from, applied, room(1 << 20));
    let feed = |scan: &mut Scan, until: usize| {
        let first = segments
            .iter()
            .position(|s| s.start >= scan.needs() || s.start.0 + (1 << 20) > scan.needs().0)
            .unwrap();
        segments[first..until]
            .iter()
            .for_each(|segment| scan.take(segment).unwrap());
        scan.finish()
    };

    // In one go, and segment by segment.
    let mut whole = scan(start, start);
    let all = feed(&mut whole, segments.len());
    assert!(all.commits > 5);
    let mut going = scan(start, start);
    let single: Vec<Batch> = (1..=segments.len()).map(|until| feed(&mut going, until)).collect();
    assert_eq!(sums(&single), sums(std::slice::from_ref(&all)));
    assert_eq!(single.iter().map(|b| b.commits).sum::<u64>(), all.commits);
    assert!(single.windows(2).all(|pair| pair[0].to == pair[1].from));
    assert!(
        single.iter().any(|b| b.restart < b.from),
        "some transaction was open over a border"
    );

    // Broken off behind every batch, and begun again from what was stored: the next batch is the same.
    for (nth, batch) in single.iter().enumerate().take(segments.len() - 1) {
        let mut again = scan(batch.restart, batch.to);
        let again = feed(&mut again, nth + 2);
        assert_eq!(told(&again), told(&single[nth + 1]), "behind segment {nth}");
    }

    // With next to no memory the rows go into a file, and the batch says the same. The file has no name.
    let mut small = Scan::new(identity, None, start, start, room(10));
    let small = feed(&mut small, segments.len());
    assert!(small.is_spilled() && !all.is_spilled());
    assert_eq!(told(&small), told(&all));
    assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);

    // Production's own numbers.
    let file: u32 = server.psql("SELECT pg_relation_filenode('long')").parse().unwrap();
    let counts = sums(&[all]).into_iter().find(|(f, _)| f.file == file).unwrap().1;
    assert_eq!(counts.inserted, 101);
}
