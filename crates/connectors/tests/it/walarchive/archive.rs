//! Only whole, right, consecutive segments are handed on; everything else is told apart.

use super::{Production, drain, follower, identity};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
use synctool_connectors::walarchive::archive::PIECE;
use synctool_connectors::walarchive::{Archive, Bucket, BucketConfig, Next, Waiting};
use synctool_core::error::code;
use synctool_pgwal::{Lsn, PAGE_SIZE};
use synctool_testkit::{PgVersion, Postgres, S3};

/// Puts a file into the archive the way the nth tool would.
fn archive(nth: usize, name: &str, content: &[u8], archive: &Path) {
    let put = |name: String, bytes: Vec<u8>| {
        let path = archive.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let gzip = |content: &[u8]| {
        let mut file = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        file.write_all(content).unwrap();
        file.finish().unwrap()
    };
    match nth % 8 {
        0 => put(name.into(), content.to_vec()),
        1 => put(format!("{name}.gz"), gzip(content)),
        // Barman: a folder, compressed without an ending.
        2 => put(format!("{}/{name}", &name[..16]), gzip(content)),
        // pgBackRest: a folder, a checksum in the name.
        3 => {
            let sum = "0123456789abcdef0123456789abcdef01234567";
            put(
                format!("{}/{name}-{sum}.zst", &name[..16]),
                zstd::encode_all(content, 1).unwrap(),
            );
        }
        4 => {
            let mut file = lz4_flex::frame::FrameEncoder::new(Vec::new());
            file.write_all(content).unwrap();
            put(format!("{name}.lz4"), file.finish().unwrap());
        }
        5 => {
            let mut file = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            file.write_all(content).unwrap();
            put(format!("{name}.bz2"), file.finish().unwrap());
        }
        6 => {
            let mut file = liblzma::write::XzEncoder::new(Vec::new(), 1);
            file.write_all(content).unwrap();
            put(format!("{name}.xz"), file.finish().unwrap());
        }
        // An ending that lies.
        _ => put(format!("{name}.gz"), content.to_vec()),
    }
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files_below(&path)),
            false => all.push(path),
        }
    }
    all
}

async fn files_of_every_kind(version: PgVersion) {
    let production = Production::start(version);
    (0..3).for_each(|_| production.work());
    let finished = production.finished();
    assert!(finished.len() > 10, "{}", finished.len());
    let directory = tempfile::tempdir().unwrap();
    for (nth, (name, path)) in finished.iter().enumerate() {
        archive(nth, name, &fs::read(path).unwrap(), directory.path());
    }
    // What else stands in archives.
    for other in [
        "archive.info",
        "xlog.db",
        "00000001.tmp",
        "000000010000000000000001.00000028.backup",
    ] {
        fs::write(directory.path().join(other), "x").unwrap();
    }
    let mut follower = follower(Archive::Directory(directory.path().into()), &finished[0].1, 3);
    let (names, why) = drain(&mut follower).await.unwrap();
    let expected: Vec<&String> = finished.iter().map(|(name, _)| name).collect();
    assert_eq!(names.iter().collect::<Vec<_>>(), expected);
    let next = production
        .server
        .psql("SELECT pg_walfile_name(pg_current_wal_lsn() + 1)");
    assert_eq!(why, Waiting::NotYet(follower.awaited()));
    assert_eq!(follower.awaited().to_string(), next);

    // The same log through a command; quiet production is never an error.
    let fetched = tempfile::tempdir().unwrap();
    let source = production.server.data_directory().join("pg_wal");
    let allowed = |name: &str| format!("test ! %f '>' {name} -a -f {0}/%f && cp {0}/%f %p", source.display());
    let command = |command: String| Archive::Command {
        command,
        scratch: fetched.path().into(),
        timeout: Duration::from_secs(30),
    };
    let last = &finished.last().unwrap().0;
    let mut follower = super::follower(command(allowed(last)), &finished[0].1, 0);
    assert_eq!(drain(&mut follower).await.unwrap().0, names);
    for _ in 0..3 {
        assert!(matches!(drain(&mut follower).await, Ok((none, Waiting::NotYet(_))) if none.is_empty()));
    }
    // And from a bucket, in the layouts of every tool.
    let server = S3::shared();
    let bucket = server.bucket("archive");
    for path in files_below(directory.path()) {
        let key = path.strip_prefix(directory.path()).unwrap().display().to_string();
        let put = server.request("PUT", &format!("/{bucket}/wal/main/{key}"), &fs::read(&path).unwrap());
        assert_eq!(put.unwrap().0, 200, "{key}");
    }
    let of = |bucket: &str, secret: &str| Archive::Bucket {
        bucket: Bucket::new(&BucketConfig {
            url: format!("s3://{bucket}/wal/main"),
            endpoint: Some(server.endpoint()),
            region: Some(S3::REGION.into()),
            keys: Some((S3::ACCESS_KEY.into(), secret.into())),
        })
        .unwrap(),
        scratch: fetched.path().into(),
    };
    let mut follower = super::follower(of(&bucket, S3::SECRET_KEY), &finished[0].1, 0);
    assert_eq!(drain(&mut follower).await.unwrap().0, names);
    assert!(matches!(drain(&mut follower).await, Ok((none, Waiting::NotYet(_))) if none.is_empty()));
    assert_eq!(
        fs::read_dir(fetched.path()).unwrap().count(),
        0,
        "what was fetched is removed"
    );
    for (archive, wanted) in [
        (of(&bucket, "wrong"), code::AUTH_FAILED),
        (of("no-such-bucket", S3::SECRET_KEY), code::FILE),
    ] {
        let error = drain(&mut super::follower(archive, &finished[0].1, 0))
            .await
            .unwrap_err();
        assert_eq!(error.code(), wanted, "{error:?}");
    }

    let mut broken = super::follower(command("/no/such/program %f %p".into()), &finished[0].1, 0);
    let error = drain(&mut broken).await.unwrap_err();
    assert_eq!(error.code(), code::FILE);
    assert!(error.message().contains("wal_fetch_command"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_kind_are_admitted_in_sequence() {
    files_of_every_kind(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_kind_are_admitted_in_sequence_15() {
    files_of_every_kind(PgVersion::V15).await;
}

async fn trouble_of_every_kind(version: PgVersion) {
    let production = Production::start(version);
    (0..3).for_each(|_| production.work());
    let finished = production.finished();
    assert!(finished.len() > 6, "{}", finished.len());
    let directory = tempfile::tempdir().unwrap();
    let at = |nth: usize| directory.path().join(&finished[nth].0);
    let whole = |nth: usize| fs::read(&finished[nth].1).unwrap();
    let open = || follower(Archive::Directory(directory.path().into()), &finished[0].1, 2);
    fs::write(at(0), whole(0)).unwrap();

    // Half copied in every way: waited for, and taken when it is whole.
    let mut follower = open();
    drain(&mut follower).await.unwrap();
    let mut zeros = whole(1);
    zeros[500_000..].fill(0);
    let mut older = whole(1);
    older[499_712..].copy_from_slice(&whole(0)[499_712..]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole(1)).unwrap();
    let gzip = gzip.finish().unwrap();
    for half in [
        vec![],
        whole(1)[..100].to_vec(),
        whole(1)[..700_001].to_vec(),
        zeros,
        older,
        gzip[..gzip.len() / 2].to_vec(),
    ] {
        fs::write(at(1), half).unwrap();
        let (none, why) = drain(&mut follower).await.unwrap();
        assert!(none.is_empty());
        assert!(matches!(why, Waiting::Unready(..)), "{why:?}");
    }
    fs::write(at(1), whole(1)).unwrap();
    assert_eq!(drain(&mut follower).await.unwrap().0, [finished[1].0.clone()]);

    // One that stays half is an error in the end.
    fs::write(at(2), &whole(2)[..700_000]).unwrap();
    for _ in 0..2 {
        assert!(matches!(drain(&mut follower).await.unwrap().1, Waiting::Unready(..)));
    }
    let error = drain(&mut follower).await.unwrap_err();
    assert_eq!(error.code(), code::WAL_DAMAGED);
    assert!(
        error.message().contains(&finished[2].0) && error.message().contains("700000 bytes"),
        "{error}"
    );

    // Only its beginning: never taken for whole.
    fs::remove_file(at(2)).unwrap();
    let partial = directory.path().join(format!("{}.partial", finished[2].0));
    fs::write(&partial, whole(2)).unwrap();
    for _ in 0..5 {
        assert!(matches!(drain(&mut follower).await.unwrap().1, Waiting::Partial(_)));
    }

    // A gap: waited for, then an error; a late segment ends it.
    fs::write(at(4), whole(4)).unwrap();
    for _ in 0..2 {
        let why = drain(&mut follower).await.unwrap().1;
        assert!(
            matches!(why, Waiting::Gap { missing, later } if missing.to_string() == finished[2].0 && later.to_string() == finished[4].0)
        );
    }
    let error = drain(&mut follower).await.unwrap_err();
    assert_eq!(error.code(), code::WAL_MISSING);
    let (missing, later) = (&finished[2].0, &finished[4].0);
    assert_eq!(
        error.message(),
        format!("WAL segment {missing} is missing from the archive but {later} exists")
    );
    fs::write(at(2), whole(2)).unwrap();
    assert_eq!(drain(&mut follower).await.unwrap().0, [finished[2].0.clone()]);

    // A wrong byte in a record.
    let mut wrong = whole(3);
    wrong[300_000] ^= 0x40;
    fs::write(at(3), &wrong).unwrap();
    for _ in 0..2 {
        assert!(matches!(drain(&mut follower).await.unwrap().1, Waiting::Unready(..)));
    }
    let error = drain(&mut follower).await.unwrap_err();
    assert_eq!(error.code(), code::WAL_DAMAGED);
    assert!(
        error.message().contains("damaged") && error.to_string().contains("lsn"),
        "{error}"
    );

    // A right copy beside it is taken; so is one of two equal ones.
    let folder = directory.path().join("again");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(&finished[3].0), whole(3)).unwrap();
    fs::write(folder.join(format!("{}.gz", finished[4].0)), whole(4)).unwrap();
    assert_eq!(
        drain(&mut follower).await.unwrap().0,
        [finished[3].0.clone(), finished[4].0.clone()]
    );

    // Two different files that both look right: whatever stands behind the switch differs.
    let last = finished.len() - 1;
    (5..last).for_each(|nth| fs::write(at(nth), whole(nth)).unwrap());
    drain(&mut follower).await.unwrap();
    let mut other = whole(last);
    other[(1 << 20) - 1] ^= 1;
    fs::write(at(last), whole(last)).unwrap();
    fs::write(folder.join(&finished[last].0), other).unwrap();
    let error = drain(&mut follower).await.unwrap_err();
    assert_eq!(error.code(), code::WAL_DAMAGED);
    assert!(error.message().contains("two different files"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_told_apart() {
    trouble_of_every_kind(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_is_told_apart_15() {
    trouble_of_every_kind(PgVersion::V15).await;
}

/// Of a segment that is larger than usual only a piece is in memory, however it is packed; it is checked as every other.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_segment_is_never_in_memory_as_a_whole() {
    let server = Postgres::builder(PgVersion::V18)
        .initdb("--wal-segsize=64")
        .setting("min_wal_size", "256MB")
        .setting("wal_keep_size", "1GB")
        .setting("autovacuum", "off")
        .start();
    server.psql("CREATE TABLE t (id serial PRIMARY KEY, body text)");
    // Records lie across the borders of pieces.
    for _ in 0..2 {
        server.psql(
            "INSERT INTO t (body) SELECT repeat(md5(g::text), 50) FROM generate_series(1, 25000) g; SELECT pg_switch_wal()",
        );
    }
    let finished = super::finished(&server);
    let [(first, path), (second, next)] = &finished[..2] else {
        panic!("{finished:?}")
    };
    let (whole, other) = (fs::read(path).unwrap(), fs::read(next).unwrap());
    let place = tempfile::tempdir().unwrap();
    let (archived, ready) = (place.path().join("archive"), place.path().join("ready"));
    let open = |patience| {
        let follower = follower(Archive::Directory(archived.clone()), path, patience);
        follower.unpacking_in(ready.clone())
    };
    let again = |nth: usize| {
        let _ = fs::remove_dir_all(&archived);
        archive(nth, first, &whole, &archived);
    };
    // Plain, and packed.
    for nth in [0, 3] {
        again(nth);
        let Next::Segment(segment) = open(0).next().await.unwrap() else {
            panic!("it is whole")
        };
        let (mut pieces, mut at) = (0, segment.start);
        let read = segment.read(|from, piece| -> Result<(), ()> {
            assert_eq!(from, at);
            assert!(piece.len() <= PIECE && piece.len() % PAGE_SIZE == 0);
            let offset = usize::try_from(from.0 - segment.start.0).unwrap();
            assert!(piece == &whole[offset..][..piece.len()], "at {from}");
            (pieces, at) = (pieces + 1, Lsn(from.0 + piece.len() as u64));
            Ok(())
        });
        assert_eq!(read.unwrap(), Ok(()));
        assert_eq!((pieces, at.0 - segment.start.0), (4, 64 << 20));
        let stored = ready.join(first);
        segment.store(&stored).unwrap();
        assert!(fs::read(&stored).unwrap() == whole);
        fs::remove_file(stored).unwrap();
    }
    // Half a one is waited for, and a damaged one is found wherever the damage is.
    let put = |content: &[u8]| {
        again(0);
        fs::write(archived.join(first), content).unwrap();
    };
    let mut wrong = whole.clone();
    wrong[21_000_000] ^= 0x40;
    let packed = zstd::encode_all(&whole[..], 1).unwrap();
    for half in [&whole[..40 << 20], &wrong[..], &packed[..packed.len() / 2]] {
        put(half);
        let waits = open(1).next().await.unwrap();
        assert!(matches!(waits, Next::Waiting(Waiting::Unready(..))), "{waits:?}");
    }
    let mut long = whole.clone();
    long.extend(&whole[..100]);
    put(&long);
    let error = open(0).next().await.unwrap_err();
    assert!(error.message().contains("more than the 67108864 bytes"), "{error}");
    // Two equal ones are one; two that differ where nothing is checked are told.
    put(&whole);
    archive(3, first, &whole, &archived);
    archive(0, second, &other, &archived);
    let mut follower = open(0);
    let names = drain(&mut follower).await.unwrap().0;
    assert_eq!(names, [first.clone(), second.clone()]);
    let mut changed = whole.clone();
    *changed.last_mut().unwrap() ^= 1;
    archive(3, first, &changed, &archived);
    let error = open(0).next().await.unwrap_err();
    assert!(error.message().contains("two different files"), "{error}");
    assert_eq!(fs::read_dir(&ready).unwrap().count(), 0, "nothing is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_files_are_refused_at_once() {
    let production = Production::start(PgVersion::V18);
    production.work();
    let finished = production.finished();
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join(&finished[0].0), fs::read(&finished[0].1).unwrap()).unwrap();
    let mut follower = follower(Archive::Directory(directory.path().into()), &finished[0].1, 100);
    drain(&mut follower).await.unwrap();
    let refuse = async |content: Vec<u8>| {
        fs::write(directory.path().join(&finished[1].0), content).unwrap();
        let mut follower = super::follower(Archive::Directory(directory.path().into()), &finished[0].1, 100);
        let error = drain(&mut follower).await.unwrap_err();
        assert_eq!(error.code(), code::WAL_FOREIGN, "{error}");
        error.to_string()
    };
    // Another segment under this name.
    let text = refuse(fs::read(&finished[2].1).unwrap()).await;
    assert!(text.contains(&format!("holds segment {}", finished[2].0)), "{text}");
    // Another cluster, another major version.
    let other = Production::start(PgVersion::V18);
    other.work();
    let (name, path) = other.finished().swap_remove(1);
    assert_eq!(name, finished[1].0);
    let text = refuse(fs::read(&path).unwrap()).await;
    let (ours, theirs) = (identity(&finished[0].1).0.system, identity(&path).0.system);
    assert!(
        text.contains(&format!("the system id is {theirs}, the base backup has {ours}")),
        "{text}"
    );
    let old = Production::start(PgVersion::V15);
    old.work();
    let (_, path) = old
        .finished()
        .into_iter()
        .find(|(name, _)| *name == finished[1].0)
        .unwrap();
    let text = refuse(fs::read(&path).unwrap()).await;
    assert!(text.contains("is foreign"), "{text}");
    // Something else altogether.
    refuse(vec![b'x'; 1 << 20]).await;
    // The right file is taken after all.
    fs::write(directory.path().join(&finished[1].0), fs::read(&finished[1].1).unwrap()).unwrap();
    assert_eq!(drain(&mut follower).await.unwrap().0, [finished[1].0.clone()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_timeline_is_followed_if_it_forks_behind_us() {
    let production = Production::start(PgVersion::V18);
    let server = &production.server;
    production.work();
    let directory = tempfile::tempdir().unwrap();
    let copy = |production: &Production| {
        for (name, path) in production.finished() {
            let to = directory.path().join(&name);
            if !to.exists() {
                fs::copy(path, to).unwrap();
            }
        }
    };
    copy(&production);
    let first = production.finished()[0].1.clone();
    let archive = || Archive::Directory(directory.path().into());
    let mut early = follower(archive(), &first, 3);
    let mut late = follower(archive(), &first, 3);
    drain(&mut early).await.unwrap();
    drain(&mut late).await.unwrap();
    assert_eq!(early.timeline(), 1);

    // Work that will be lost: the standby that takes over never got it.
    server.psql("INSERT INTO t (body) VALUES ('kept')");
    let fork = server.psql("SELECT pg_current_wal_lsn()");
    let heir = Production {
        server: super::lagging(server),
    };
    production.work();
    let lost: Vec<_> = production.finished();
    super::promote(&heir.server);
    heir.server.psql("INSERT INTO t (body) VALUES ('on the new timeline')");
    heir.work();
    // What was lost may be archived too.
    copy(&production);
    copy(&heir);

    let (names, _) = drain(&mut early).await.unwrap();
    assert_eq!(early.timeline(), 2);
    // Every segment once: up to the fork from the old timeline, whatever it has beyond.
    assert!(
        names.is_sorted_by(|a, b| a[..8] <= b[..8] && a[8..] < b[8..]),
        "{names:?}"
    );
    assert!(names.last().unwrap().starts_with("00000002"), "{names:?}");
    let end = heir.server.psql("SELECT pg_current_wal_lsn()");
    assert!(early.position() <= end.parse().unwrap());
    assert!(early.position() > fork.parse().unwrap());

    // One that has read the lost work cannot follow, and says so once its own timeline has ended.
    let abandoned = tempfile::tempdir().unwrap();
    for (name, path) in &lost {
        fs::copy(path, abandoned.path().join(name)).unwrap();
    }
    let mut late = follower(Archive::Directory(abandoned.path().into()), &first, 3);
    drain(&mut late).await.unwrap();
    assert!(late.position() > fork.parse().unwrap());
    let history = heir
        .finished()
        .into_iter()
        .find(|(name, _)| name.ends_with(".history"))
        .unwrap();
    fs::copy(&history.1, abandoned.path().join(&history.0)).unwrap();
    for _ in 0..3 {
        let why = drain(&mut late).await.unwrap().1;
        assert!(matches!(why, Waiting::Forked { timeline: 2, .. }), "{why:?}");
    }
    let error = drain(&mut late).await.unwrap_err();
    assert_eq!(error.code(), code::WAL_TIMELINE);
    assert!(error.message().contains("timeline 2, which forked at"), "{error}");
}

/// Somebody tried a backup out and archived where the server went then: ours lives on.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_that_leads_elsewhere_does_not_stop_a_timeline_that_lives() {
    let production = Production::start(PgVersion::V18);
    production.work();
    let directory = tempfile::tempdir().unwrap();
    let fetched = tempfile::tempdir().unwrap();
    let copy = || {
        for (name, path) in production.finished() {
            fs::copy(path, directory.path().join(&name)).unwrap();
        }
    };
    copy();
    let first = production.finished()[0].1.clone();
    let mut listed = follower(Archive::Directory(directory.path().into()), &first, 3);
    let command = Archive::Command {
        command: format!("cp {}/%f %p", directory.path().display()),
        scratch: fetched.path().into(),
        timeout: Duration::from_secs(30),
    };
    let mut commanded = follower(command, &first, 3);
    for follower in [&mut listed, &mut commanded] {
        drain(follower).await.unwrap();
    }
    let early = format!("1\t{}\ttried out\n", identity(&first).1);
    fs::write(directory.path().join("00000002.history"), early).unwrap();
    for _ in 0..2 {
        for follower in [&mut listed, &mut commanded] {
            let why = drain(follower).await.unwrap().1;
            assert!(matches!(why, Waiting::Forked { timeline: 2, .. }), "{why:?}");
        }
    }
    production.work();
    copy();
    for follower in [&mut listed, &mut commanded] {
        assert!(!drain(follower).await.unwrap().0.is_empty());
        assert_eq!(follower.timeline(), 1);
    }
    // What was fetched is gone again.
    assert_eq!(fs::read_dir(fetched.path()).unwrap().count(), 0);
}

/// Nobody lists a bucket for it: what comes behind a name that is not there is in the same answer.
#[tokio::test(flavor = "multi_thread")]
async fn a_gap_in_a_bucket_is_told() {
    let production = Production::start(PgVersion::V18);
    (0..3).for_each(|_| production.work());
    let finished = production.finished();
    assert!(finished.len() > 6, "{}", finished.len());
    let fetched = tempfile::tempdir().unwrap();
    let server = S3::shared();
    // Flat, and one folder deeper, where base backups stand beside.
    for (layout, folder) in [("flat", None), ("deep", Some(&finished[0].0[..16]))] {
        let bucket = server.bucket(&format!("gap-{layout}"));
        let put = |key: &str, content: &[u8]| {
            let put = server.request("PUT", &format!("/{bucket}/wal/{key}"), content);
            assert_eq!(put.unwrap().0, 200, "{key}");
        };
        let add = |nth: usize| {
            let (name, path) = &finished[nth];
            let folder = folder.map_or_else(String::new, |folder| format!("{folder}/"));
            put(&format!("{folder}{name}"), &fs::read(path).unwrap());
        };
        let archive = Archive::Bucket {
            bucket: Bucket::new(&BucketConfig {
                url: format!("s3://{bucket}/wal"),
                endpoint: Some(server.endpoint()),
                region: Some(S3::REGION.into()),
                keys: Some((S3::ACCESS_KEY.into(), S3::SECRET_KEY.into())),
            })
            .unwrap(),
            scratch: fetched.path().into(),
        };
        // Neither of these comes behind the segment that is awaited.
        put("base/00000001000000000000FFFF", b"of a backup");
        put("00000009000000000000FFFF", b"of another timeline");
        (0..2).for_each(add);
        let mut follower = follower(archive, &finished[0].1, 2);
        let (names, why) = drain(&mut follower).await.unwrap();
        assert_eq!((names.len(), why), (2, Waiting::NotYet(follower.awaited())), "{layout}");
        add(4);
        for _ in 0..2 {
            let why = drain(&mut follower).await.unwrap().1;
            assert!(
                matches!(why, Waiting::Gap { missing, later } if missing.to_string() == finished[2].0 && later.to_string() == finished[4].0),
                "{layout}: {why:?}"
            );
        }
        let error = drain(&mut follower).await.unwrap_err();
        assert_eq!(error.code(), code::WAL_MISSING, "{layout}: {error}");
        (2..4).for_each(add);
        assert_eq!(drain(&mut follower).await.unwrap().0.len(), 3, "{layout}");
    }
}

/// Whether there is no such file or nobody could ask, only the command knows: what it says is kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_says_that_brings_nothing_is_kept() {
    let production = Production::start(PgVersion::V18);
    production.work();
    let (finished, fetched) = (production.finished(), tempfile::tempdir().unwrap());
    let archive = Archive::Command {
        command: "! echo %f has expired >&2".into(),
        scratch: fetched.path().into(),
        timeout: Duration::from_secs(30),
    };
    let mut follower = follower(archive, &finished[0].1, 1);
    for _ in 0..3 {
        assert!(matches!(drain(&mut follower).await, Ok((none, Waiting::NotYet(_))) if none.is_empty()));
        let said = format!("exit status 1: {} has expired", follower.awaited());
        assert_eq!(follower.said(), Some(said.as_str()));
    }
}
