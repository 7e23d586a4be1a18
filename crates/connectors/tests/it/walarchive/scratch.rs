//! The scratch server stands exactly where the gate ends, whatever happens to it.

use super::{Place, Production, bin_dir, scratch_config};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use synctool_connectors::walarchive::{Archive, Backup, Follower, Next, Scratch, ScratchConfig};
use synctool_core::error::code;
use synctool_pgwal::{History, Identity, Lsn, Major};
use synctool_testkit::{PgVersion, Postgres};

const PATIENCE: Duration = Duration::from_secs(90);

fn archive(production: &Production, to: &Path) {
    for (name, path) in production.finished() {
        if !to.join(&name).exists() {
            fs::copy(path, to.join(name)).unwrap();
        }
    }
}

/// Everything a reader can see of the table.
const ROWS: &str =
    "SELECT count(*)::text || ' ' || coalesce(md5(string_agg(t::text, ',' ORDER BY id)), '') FROM public.t t";

async fn rows(scratch: &Scratch) -> String {
    let session = scratch.connect("postgres").await.unwrap();
    session.query_one(ROWS, &[]).await.unwrap().get(0)
}

fn follow(scratch: &Scratch, archive: &Path) -> Follower {
    let control = scratch.control();
    let identity = Identity {
        major: Major::ALL
            .into_iter()
            .find(|m| u32::from(m.number()) == control.major)
            .unwrap(),
        system: control.system,
        segment_size: control.segment_size,
    };
    Follower::new(
        Archive::Directory(archive.into()),
        identity,
        History::first(),
        scratch.label().start,
        3,
    )
}

/// Lets the scratch server have everything that is archived, and waits until it stands there.
async fn catch_up(scratch: &Scratch, follower: &mut Follower) -> Lsn {
    let ready = tempfile::tempdir().unwrap();
    while let Next::Segment(segment) = follower.next().await.unwrap() {
        let name = segment.name.to_string();
        let file = ready.path().join(&name);
        segment.store(&file).unwrap();
        scratch.admit_file(&name, &file).unwrap();
    }
    scratch.start().await.unwrap();
    scratch.wait_for(follower.position(), PATIENCE).await.unwrap();
    follower.position()
}

async fn stands_where_the_gate_ends(version: PgVersion) {
    let production = Production::start(version);
    let server = &production.server;
    let place = Place::new();
    production.work();
    server.base_backup(&place.path().join("backup"));
    production.work();
    let archived = place.path().join("archive");
    fs::create_dir(&archived).unwrap();
    archive(&production, &archived);
    let scratch = Scratch::create(
        scratch_config(&bin_dir(server), place.path()),
        &place.path().join("backup").into(),
    )
    .unwrap();
    assert_eq!(scratch.control().major, u32::from(version.major()));
    assert_eq!(
        scratch.control().system.to_string(),
        server.psql("SELECT system_identifier FROM pg_control_system()")
    );
    let settings = scratch.control().parameters;
    assert_eq!(
        settings.max_connections.to_string(),
        server.psql("SHOW max_connections")
    );
    assert_eq!(
        settings.max_prepared_transactions.to_string(),
        server.psql("SHOW max_prepared_transactions")
    );
    assert_eq!(settings.wal_level.unwrap().name(), server.psql("SHOW wal_level"));
    let mut follower = follow(&scratch, &archived);
    let before = server.psql(ROWS);
    let first = catch_up(&scratch, &mut follower).await;
    assert_eq!(rows(&scratch).await, before);
    // What it restored is the gate's own file, no copy that it had to bring to the disk.
    let inode = |part: &str, name: &str| {
        let file = place.path().join("scratch").join(part).join(name);
        fs::metadata(file).ok().map(|meta| meta.ino())
    };
    let gate = fs::read_dir(place.path().join("scratch/gate")).unwrap();
    let names: Vec<String> = gate.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    let is_shared = |name: &String| inode("gate", name) == inode("data/pg_wal", name);
    assert!(names.iter().any(is_shared), "{names:?}");

    // Production goes on; the gate stays shut.
    production.work();
    archive(&production, &archived);
    let after = server.psql(ROWS);
    assert_ne!(after, before);
    assert_eq!(scratch.replayed().await.unwrap(), Some(first));
    assert_eq!(rows(&scratch).await, before);

    // A second look finds the server that was made, and that it runs.
    let scratch = Scratch::create(
        scratch_config(&bin_dir(server), place.path()),
        &place.path().join("backup").into(),
    )
    .unwrap();
    assert!(scratch.is_running().unwrap());
    let second = catch_up(&scratch, &mut follower).await;
    assert!(second > first);
    assert_eq!(rows(&scratch).await, after);

    // Its main process dies: it comes back to the same place, although what it needs for that is in the gate only.
    let killed = Command::new("kill")
        .args(["-9", &place.scratch_pid().unwrap()])
        .status()
        .unwrap();
    assert!(killed.success());
    synctool_testkit::wait_for("the end of the scratch server", PATIENCE, || {
        !scratch.is_running().unwrap()
    });
    scratch.start().await.unwrap();
    scratch.wait_for(second, PATIENCE).await.unwrap();
    assert_eq!(rows(&scratch).await, after);

    // Asked to be where it was before, it refuses: it is beyond that.
    let error = scratch.wait_for(first, PATIENCE).await.unwrap_err();
    assert_eq!(error.code(), code::SCRATCH);
    assert!(error.message().contains("beyond"), "{error}");

    // Stopped and started in order.
    scratch.stop().await.unwrap();
    assert!(!scratch.is_running().unwrap());
    scratch.stop().await.unwrap();
    production.work();
    archive(&production, &archived);
    catch_up(&scratch, &mut follower).await;
    assert_eq!(rows(&scratch).await, server.psql(ROWS));
    scratch.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_server_of_18_stands_where_the_gate_ends() {
    stands_where_the_gate_ends(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_server_of_15_stands_where_the_gate_ends() {
    stands_where_the_gate_ends(PgVersion::V15).await;
}

/// The gate ends in the middle of a record that follows one that ends with its segment: the server says that it stands at
/// the border.
#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_server_stands_at_the_border_of_two_segments() {
    let production = Production::start(PgVersion::V18);
    let server = &production.server;
    let place = Place::new();
    server.base_backup(&place.path().join("backup"));
    let archived = place.path().join("archive");
    fs::create_dir(&archived).unwrap();
    let lsn = |sql: &str| server.psql(sql).parse::<Lsn>().unwrap().0;
    let emit = |length: u64| {
        lsn(&format!(
            "SELECT pg_logical_emit_message(false, 'x', repeat('y', {length}))"
        ))
    };
    let end = (0..100).find_map(|_| {
        let at = lsn("SELECT pg_current_wal_insert_lsn()");
        let end = (at / (1 << 20) + 1) << 20;
        // Headers of the pages between, and what a record has besides its message.
        let room = (end - at - 24 * ((end - 1) / 8192 - at / 8192)).saturating_sub(55);
        (emit(if room > 1000 { room } else { 2000 }) == end).then_some(Lsn(end))
    });
    emit(3 << 20);
    archive(&production, &archived);
    let scratch = Scratch::create(
        scratch_config(&bin_dir(server), place.path()),
        &place.path().join("backup").into(),
    )
    .unwrap();
    let mut follower = follow(&scratch, &archived);
    assert_eq!(Some(catch_up(&scratch, &mut follower).await), end);
    assert!(follower.awaited().start(scratch.control().segment_size) > end);
    scratch.stop().await.unwrap();
}

/// Nobody can ask it before the end of its base backup, and each segment takes a second: it gets on all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_scratch_server_that_cannot_be_asked_yet_gets_on() {
    let production = Production::start(PgVersion::V18);
    let server = &production.server;
    let place = Place::new();
    let (data, backup) = (server.data_directory(), place.path().join("backup"));
    let owner = fs::metadata(&data).unwrap();
    fs::create_dir(&backup).unwrap();
    std::os::unix::fs::chown(&backup, Some(owner.uid()), Some(owner.gid())).unwrap();
    let label = server.psql(&format!(
        "SELECT pg_backup_start('long', true) IS NULL; COPY (SELECT 1) TO PROGRAM 'cp -a {}/. {}/';
         INSERT INTO t (body) SELECT repeat(md5(g::text), 5) FROM generate_series(1, 45000) g;
         SELECT labelfile FROM pg_backup_stop(false)",
        data.display(),
        backup.display()
    ));
    let label: Vec<&str> = label.lines().filter(|line| line.contains(": ")).collect();
    fs::write(backup.join("backup_label"), label.join("\n") + "\n").unwrap();
    production.work();
    let archived = place.path().join("archive");
    fs::create_dir(&archived).unwrap();
    archive(&production, &archived);
    let config = scratch_config(&bin_dir(server), place.path());
    // It is not waited for while it starts.
    let hasty = ScratchConfig {
        patience: Duration::from_secs(1),
        ..config.clone()
    };
    let scratch = Scratch::create(hasty, &backup.clone().into()).unwrap();
    let gate = place.path().join("scratch/gate");
    let slow = format!("restore_command = 'sleep 1; cp {}/%f %p'\n", gate.display());
    let conf = place.path().join("scratch/data/postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, text + &slow).unwrap();
    let mut follower = follow(&scratch, &archived);
    let mut segments = 0;
    while let Next::Segment(segment) = follower.next().await.unwrap() {
        segments += 1;
        let file = place.path().join("segment");
        let name = segment.name.to_string();
        segment.store(&file).unwrap();
        scratch.admit_file(&name, &file).unwrap();
    }
    let patience = 7;
    assert!(segments > patience + 2, "{segments}");
    scratch.start().await.unwrap();
    let patience = Duration::from_secs(patience);
    scratch.wait_for(follower.position(), patience).await.unwrap();
    assert_eq!(rows(&scratch).await, server.psql(ROWS));
    Scratch::create(config, &backup.into()).unwrap().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn base_backups_come_in_several_forms() {
    let production = Production::start(PgVersion::V18);
    let server = &production.server;
    let place = Place::new();
    let backup = place.path().join("backup");
    server.base_backup(&backup);
    let made = |name: &str, backup: &Path| {
        let directory = place.path().join(name);
        fs::create_dir(&directory).unwrap();
        Scratch::create(
            scratch_config(&bin_dir(server), &directory),
            &backup.to_path_buf().into(),
        )
    };
    // A tar, plain in a directory and compressed as a file.
    fs::create_dir(place.path().join("tar")).unwrap();
    let tar = place.path().join("tar/base.tar");
    let status = Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&backup)
        .arg(".")
        .status()
        .unwrap();
    assert!(status.success());
    let packed = place.path().join("packed");
    fs::write(&packed, zstd::encode_all(fs::File::open(&tar).unwrap(), 1).unwrap()).unwrap();
    let label = made("a", &backup).unwrap().label().clone();
    assert_eq!(*made("b", &place.path().join("tar")).unwrap().label(), label);
    assert_eq!(*made("c", &packed).unwrap().label(), label);

    // Half a tar, no backup, another version, a missing program.
    fs::write(&packed, &fs::read(&packed).unwrap()[..100_000]).unwrap();
    assert_eq!(made("d", &packed).unwrap_err().code(), code::FILE_MALFORMED);
    let error = made("e", &server.data_directory()).unwrap_err();
    assert!(error.message().contains("no backup_label"), "{error}");
    // A command that restores one, and one that fails.
    let command = |text: String| {
        let directory = place.path().join("g");
        fs::create_dir_all(&directory).unwrap();
        Scratch::create(scratch_config(&bin_dir(server), &directory), &Backup::Command(text))
    };
    let error = command("echo 'there is no stanza' >&2; exit 3".into()).unwrap_err();
    assert!(error.message().contains("base_restore_command failed"), "{error}");
    assert!(error.to_string().contains("there is no stanza"), "{error}");
    let restored = command(format!("cp -a {}/. %p/", backup.display())).unwrap();
    assert_eq!(*restored.label(), label);

    // One with a tablespace, as a directory and as the map that comes with a tar.
    let spaced = |name: &str, spoil: &dyn Fn(&Path)| {
        let copy = place.path().join(format!("spaced {name}"));
        let status = Command::new("cp").arg("-a").args([&backup, &copy]).status();
        assert!(status.unwrap().success());
        spoil(&copy);
        let error = made(name, &copy).unwrap_err();
        assert_eq!(error.code(), code::UNSUPPORTED, "{error}");
        assert_eq!(
            error.message(),
            "the base backup has tablespaces, which cannot be used yet"
        );
        assert!(error.next_step().unwrap().contains("default tablespace"), "{error}");
        assert!(!place.path().join(name).join("scratch/finished").exists());
    };
    spaced("h", &|copy| {
        std::os::unix::fs::symlink("/somewhere", copy.join("pg_tblspc/16400")).unwrap();
    });
    spaced("i", &|copy| {
        fs::write(copy.join("tablespace_map"), "16400 /somewhere\n").unwrap()
    });

    let backup = Backup::from(backup);
    let other = Postgres::shared(PgVersion::V15);
    let directory = place.path().join("f");
    fs::create_dir(&directory).unwrap();
    let wrong = ScratchConfig {
        bin_dir: bin_dir(other),
        ..scratch_config(&bin_dir(server), &directory)
    };
    let error = Scratch::create(wrong.clone(), &backup).unwrap_err();
    assert_eq!(error.message(), "pg_bin_dir: PostgreSQL major 18 needed, found 15");
    let nowhere = ScratchConfig {
        bin_dir: "/nowhere".into(),
        ..wrong.clone()
    };
    assert_eq!(
        Scratch::create(nowhere, &backup).unwrap_err().code(),
        code::CONFIG_INVALID
    );
    let long = ScratchConfig {
        directory: directory.join("x".repeat(90)),
        ..scratch_config(&bin_dir(server), &directory)
    };
    assert!(
        Scratch::create(long, &backup)
            .unwrap_err()
            .message()
            .contains("too long")
    );
    // The interrupted attempts left nothing that would be taken for finished.
    assert!(Scratch::create(scratch_config(&bin_dir(server), &directory), &backup).is_ok());
}
