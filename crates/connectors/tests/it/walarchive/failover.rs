//! A standby that had not got everything takes over: what was applied beyond that is never mixed with what it did.

use super::sync::{World, rows, select};
use super::{finished, lagging, promote};
use std::fs;
use std::process::Command;
use synctool_connectors::walarchive::{DataSync, ReplayConfig, Step, SyncConfig};
use synctool_core::error::code;
use synctool_testkit::PgVersion;

/// Says it the first time.
fn impatient(world: &World) -> SyncConfig {
    let config = world.config();
    SyncConfig {
        replay: ReplayConfig {
            patience: 0,
            ..config.replay
        },
        ..config
    }
}

/// Opened anew, it is refused every time, and the local rows stay; says whether a batch was applied before.
async fn refused(world: &World) -> bool {
    let mut sync = DataSync::open(impatient(world)).await.unwrap();
    let mut applied = false;
    let error = loop {
        match sync.step().await {
            Ok(Step::Applied(_)) => applied = true,
            Ok(Step::Idle(why)) => panic!("{why}"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.code(), code::WAL_TIMELINE, "{error}");
    assert!(error.message().contains("timeline 2, which forked at"), "{error}");
    sync.close().await.unwrap();
    applied
}

async fn fork_below_us(version: PgVersion, planned: bool) {
    let world = World::on(version);
    world.backup();
    drop(DataSync::open(world.config()).await.unwrap());
    select(&world.local);
    world.production.psql("CHECKPOINT; INSERT INTO other VALUES (1)");
    world.archived();
    world.sync().await;
    // Open all the time: what is read again begins before the fork.
    world
        .production
        .psql("BEGIN; UPDATE acc SET n = 5 WHERE id = 1999; PREPARE TRANSACTION 'long'");
    world.archived();
    world.sync().await;
    let heir = lagging(&world.production);
    let fork = world.production.psql("SELECT pg_current_wal_lsn()");
    world.production.psql("UPDATE acc SET n = 1000 WHERE id < 300");
    world.archived();
    match planned {
        true => world.run().at("datasync.planned", 1).run().assert_killed(),
        false => drop(world.sync().await),
    }
    let place = format!(
        "SELECT restart_lsn < '{fork}' AND greatest(applied_lsn, (SELECT plan_lsn FROM synctool.datasync_plan)) > '{fork}' FROM synctool.datasync_state"
    );
    assert_eq!(world.local.psql(&place), "t");
    let lost = world.production.psql(&rows("acc"));
    world.production.stop();
    promote(&heir);
    heir.psql(
        "UPDATE acc SET n = 2000 WHERE id < 300; INSERT INTO other SELECT generate_series(1, 1000); SELECT pg_switch_wal()",
    );
    for (name, path) in finished(&heir) {
        let to = world.place.path().join("archive").join(&name);
        if !to.exists() {
            fs::copy(path, to).unwrap();
        }
    }
    assert!(refused(&world).await || !planned);
    assert!(!refused(&world).await);
    assert_eq!(world.local.psql(&rows("acc")), lost);
    // A scratch server that is made anew goes no other way.
    if let Some(pid) = world.place.scratch_pid() {
        let _ = Command::new("kill").args(["-QUIT", &pid]).status();
    }
    fs::remove_dir_all(world.place.path().join("scratch")).unwrap();
    assert!(!refused(&world).await);
    assert_eq!(world.local.psql(&rows("acc")), lost);
    assert_eq!(world.local.psql("SELECT timeline FROM synctool.datasync_state"), "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_before_what_was_applied_is_refused_however_often_it_is_asked() {
    fork_below_us(PgVersion::V18, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_before_what_was_applied_is_refused_however_often_it_is_asked_15() {
    fork_below_us(PgVersion::V15, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_before_what_was_planned_is_refused_however_often_it_is_asked() {
    fork_below_us(PgVersion::V18, true).await;
}
