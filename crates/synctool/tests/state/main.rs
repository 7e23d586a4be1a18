//! The program's state: the same tests against every database it can live in, and processes that are killed.

mod killed;
mod recorded;

use killed::*;
use recorded::*;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use synctool::state::{
    Area, Level, LogReader, Outputs, PartitionRecord, PostgresStore, Retention, Run, RunInfo, RunLock, RunRecorder,
    RunStatus, SqliteStore, StateDocument, Store, cleanup, new_run_id, now, reset,
};
use synctool_connectors::postgres::{Postgres as Server, PostgresConfig};
use synctool_core::engine::{Observer, PartitionStatus, RunEvent, Step};
use synctool_core::error::{Error, code};
use synctool_core::ledger::{Applied, Ledger};
use synctool_core::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy, Work,
};
use synctool_core::schema::{TableId, TableSchema};
use synctool_testkit::{PgVersion, Postgres, TestDb, eventually};

const SOON: Duration = Duration::from_secs(20);

/// A store somewhere; opening it again is another process's view of it.
struct Place {
    dir: tempfile::TempDir,
    database: Option<TestDb>,
}

impl Place {
    fn sqlite() -> Self {
        Place {
            dir: tempfile::tempdir().unwrap(),
            database: None,
        }
    }

    fn postgres() -> Self {
        Place {
            database: Some(Postgres::shared(PgVersion::V18).database("state")),
            ..Place::sqlite()
        }
    }

    fn url(&self) -> String {
        self.database.as_ref().map(TestDb::url).unwrap_or_default()
    }

    async fn open(&self) -> Arc<dyn Store> {
        open(self.dir.path(), &self.url()).await
    }

    fn outputs(&self) -> Outputs {
        Outputs::under(self.dir.path())
    }
}

async fn open(dir: &Path, url: &str) -> Arc<dyn Store> {
    if url.is_empty() {
        Arc::new(SqliteStore::open(dir).await.unwrap())
    } else {
        let server = Server::open(PostgresConfig::from_url(url).unwrap()).unwrap();
        Arc::new(PostgresStore::open(server, None).await.unwrap())
    }
}

/// Each test, once for every kind of store.
macro_rules! on_every_store {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Place::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(super::Place::postgres()).await;
            })*
        }
    };
}

on_every_store!(
    a_run_is_remembered,
    private_areas_keep_bytes,
    a_pipeline_runs_once_at_a_time,
    a_run_without_a_lock_is_dead,
    a_reset_forgets_the_state_and_keeps_the_history,
    old_runs_are_forgotten_but_never_the_newest,
    a_recorded_run_is_in_the_store_and_in_the_files,
    a_failed_run_says_why,
    a_resumed_run_names_the_one_before,
    a_run_given_up_is_interrupted,
    a_plan_may_have_many_partitions,
    a_killed_process_leaves_whole_files_and_a_free_lock,
);

async fn begin(store: &dyn Store, pipeline: &str, strategy: &str) -> (RunLock, Run) {
    let lock = store.lock(pipeline).await.unwrap();
    let run = Run::begin(pipeline, &new_run_id(), strategy, Strategy::Full, lock.holder());
    store.begin_run(&lock, &run).await.unwrap();
    (lock, run)
}

/// A run that has ended, begun so many days ago.
async fn ended(store: &dyn Store, pipeline: &str, strategy: &str, status: RunStatus, days: i64) -> Run {
    let lock = store.lock(pipeline).await.unwrap();
    let mut run = Run::begin(pipeline, &new_run_id(), strategy, Strategy::Full, lock.holder());
    run.started_at -= chrono::TimeDelta::days(days);
    store.begin_run(&lock, &run).await.unwrap();
    run.status = status;
    run.updated_at = run.started_at;
    run.completed_at = Some(run.started_at);
    store.save_run(&run, &[done("all", 1)]).await.unwrap();
    lock.release().await;
    run
}

fn done(id: &str, rows: u64) -> PartitionRecord {
    PartitionRecord {
        status: PartitionStatus::Done,
        rows,
        bytes: rows * 10,
        seconds: 0.25,
        completed_at: Some(now()),
        ..PartitionRecord::begin(id)
    }
}

async fn a_run_is_remembered(place: Place) {
    let store = place.open().await;
    let p = "remembered";
    let (lock, mut run) = begin(&*store, p, "full").await;
    let running = store.run(&run.run_id).await.unwrap();
    assert_eq!(running, run, "a held lock means that it runs");
    run.partitions.total = 2;
    run.reasons = vec!["the destination is empty".into()];
    let both = [PartitionRecord::begin("1-10"), PartitionRecord::begin("11-")];
    store.save_run(&run, &both).await.unwrap();
    run.partitions.completed = 1;
    store.save_run(&run, &[done("11-", 5)]).await.unwrap();
    let partitions = store.partitions(&run.run_id).await.unwrap();
    assert_eq!(partitions.len(), 2);
    assert!(!partitions[0].is_complete() && partitions[1].is_complete());
    // Another process sees the same.
    let other = place.open().await;
    let memory = other.state(p).await.unwrap().unwrap();
    assert_eq!(memory.last_partition.unwrap().id, "11-");
    assert_eq!(memory.run, run);
    run.status = RunStatus::Completed;
    run.completed_at = Some(now());
    run.strategy_type = Strategy::Hash;
    run.bytes = u64::MAX >> 1;
    let ledger = run.ledger.insert(Ledger::default());
    ledger.accounts.read.hash_high = u64::MAX;
    store.save_run(&run, &[done("1-10", 10)]).await.unwrap();
    lock.release().await;
    assert_eq!(other.run(&run.run_id).await.unwrap(), run);
    assert_eq!(other.pipelines().await.unwrap(), [p]);

    let late = store.save_run(&run, &[done("late", 1)]).await.unwrap_err();
    assert_eq!(late.code(), code::FENCED);
    assert_eq!(store.partitions(&run.run_id).await.unwrap().len(), 2);
    assert_eq!(store.run("nobody").await.unwrap_err().code(), code::RUN_UNKNOWN);
    assert!(store.state("nobody").await.unwrap().is_none());
}

async fn private_areas_keep_bytes(place: Place) {
    let store = place.open().await;
    let area = |name: &str| Area {
        pipeline: "areas".into(),
        name: name.into(),
    };
    let (a, b) = (area("a"), area("b"));
    let put = |k: &str, v: &[u8]| (k.to_string(), Some(v.to_vec()));
    let first = [put("b", b"2"), put("B", &[0, 255]), put("é", b"3"), put("gone", b"")];
    store.area_put(&a, &first).await.unwrap();
    store.area_put(&b, &[put("b", b"other")]).await.unwrap();
    let then = [("gone".into(), None), put("b", b"two")];
    store.area_put(&a, &then).await.unwrap();
    let store = place.open().await;
    assert_eq!(store.area_get(&a, "b").await.unwrap().unwrap(), b"two");
    assert_eq!(store.area_get(&a, "gone").await.unwrap(), None);
    let all = store.area_scan(&a, None, 10).await.unwrap();
    let keys: Vec<&str> = all.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, ["B", "b", "é"], "by bytes, whatever the server's collation");
    let next = store.area_scan(&a, Some("B"), 1).await.unwrap();
    assert_eq!(next, [("b".to_string(), b"two".to_vec())]);
}

async fn a_pipeline_runs_once_at_a_time(place: Place) {
    let (store, other) = (place.open().await, place.open().await);
    let p = "odd/../näme";
    let lock = store.lock(p).await.unwrap();
    let refused = other.lock(p).await.unwrap_err();
    assert_eq!(refused.kind().exit_code(), 6);
    let text = refused.to_string();
    let pid = std::process::id().to_string();
    assert!(text.contains(&pid) && text.contains(&lock.holder().host), "{text}");
    assert_eq!(other.holder(p).await.unwrap().unwrap().pid, std::process::id());
    other.lock("another").await.unwrap().release().await;
    lock.release().await;
    assert_eq!(other.holder(p).await.unwrap(), None);
    other.lock(p).await.unwrap().release().await;
    // A lock that is only dropped is free soon.
    drop(store.lock(p).await.unwrap());
    eventually("the dropped lock is free", SOON, async || {
        other.lock(p).await.map(drop).map_err(|e| e.to_string())
    })
    .await;
    // Looking whether it is free never looks like running it.
    let looking = {
        let other = other.clone();
        tokio::spawn(async move {
            for _ in 0..50 {
                other.holder(p).await.unwrap();
            }
        })
    };
    for _ in 0..10 {
        eventually("nobody is in the way", SOON, async || match store.lock(p).await {
            Ok(lock) => {
                lock.release().await;
                true
            }
            Err(e) => panic!("{e}"),
        })
        .await;
    }
    looking.await.unwrap();
}

async fn a_run_without_a_lock_is_dead(place: Place) {
    let store = place.open().await;
    let (lock, dead) = begin(&*store, "p", "full").await;
    lock.release().await;
    let seen = store.runs(Some("p"), 10).await.unwrap().remove(0);
    assert_eq!(seen.status, RunStatus::Interrupted);
    assert_eq!(seen.completed_at, Some(dead.updated_at));
    assert_eq!(seen.error.as_ref().unwrap().code, code::INTERRUPTED.id);
    let late = store.save_run(&dead, &[]).await.unwrap_err();
    assert_eq!(late.code(), code::FENCED, "a zombie cannot come back");

    let (lock, second) = begin(&*store, "p", "full").await;
    assert_eq!(store.run(&second.run_id).await.unwrap().status, RunStatus::Running);
    lock.release().await;
    // The next run settles it as well, without anybody having looked.
    let (_lock, third) = begin(&*store, "p", "full").await;
    let all = store.runs(None, 10).await.unwrap();
    let status = |id: &str| all.iter().find(|r| r.run_id == id).unwrap().status;
    assert_eq!(status(&second.run_id), RunStatus::Interrupted);
    assert_eq!(status(&third.run_id), RunStatus::Running);
}

async fn a_reset_forgets_the_state_and_keeps_the_history(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let p = "p";
    let full = ended(&*store, p, "full", RunStatus::Completed, 3).await;
    ended(&*store, p, "delta", RunStatus::Failed, 2).await;
    ended(&*store, p, "delta", RunStatus::Failed, 1).await;
    let area = Area {
        pipeline: p.into(),
        name: "wal".into(),
    };
    store.area_put(&area, &[("k".into(), Some(vec![1]))]).await.unwrap();
    let memory = store.state(p).await.unwrap().unwrap();
    assert_eq!(memory.run.strategy, "delta");
    let document = StateDocument::new(&memory);
    assert_eq!(document.strategies["delta"].retry_count, 2);
    assert_eq!(document.strategies["full"].retry_count, 0);
    assert!(document.to_string().contains("2 failed since the last success"));

    let lock = store.lock(p).await.unwrap();
    reset(&*store, &outputs, &lock, Some("delta")).await.unwrap();
    let memory = store.state(p).await.unwrap().unwrap();
    assert_eq!(memory.run, full);
    assert_eq!(memory.strategies.len(), 1);
    assert_eq!(json(&outputs.state_file(p))["run_id"], full.run_id);
    assert!(store.area_get(&area, "k").await.unwrap().is_some());

    reset(&*store, &outputs, &lock, None).await.unwrap();
    assert!(store.state(p).await.unwrap().is_none());
    assert!(!outputs.state_file(p).exists());
    assert_eq!(store.area_get(&area, "k").await.unwrap(), None);
    assert_eq!(store.runs(Some(p), 10).await.unwrap().len(), 3);
    lock.release().await;
    let fresh = ended(&*store, p, "delta", RunStatus::Completed, 0).await;
    let memory = store.state(p).await.unwrap().unwrap();
    assert_eq!(memory.strategies, [(fresh, 0)]);
}

async fn old_runs_are_forgotten_but_never_the_newest(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    for (pipeline, strategy, days) in [
        ("a", "full", 50),
        ("a", "full", 40),
        ("a", "full", 5),
        ("a", "delta", 60),
        ("b", "full", 90),
    ] {
        let run = ended(&*store, pipeline, strategy, RunStatus::Completed, days).await;
        let log = outputs.log_file(pipeline, &run.run_id);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::write(log, "{}\n").unwrap();
    }
    let retention = Retention {
        ended_before: Some(now() - chrono::TimeDelta::days(30)),
        ..Retention::default()
    };
    let gone = cleanup(&*store, &outputs, &retention).await.unwrap();
    let ages: Vec<i64> = gone.iter().map(|r| (now() - r.started_at).num_days()).collect();
    assert!(ages.len() == 2 && ages.contains(&50) && ages.contains(&40), "{ages:?}");
    for run in &gone {
        assert!(!outputs.log_file(&run.pipeline, &run.run_id).exists());
        assert!(store.partitions(&run.run_id).await.unwrap().is_empty());
    }
    for run in store.runs(None, 10).await.unwrap() {
        assert!(outputs.log_file(&run.pipeline, &run.run_id).exists());
        assert_eq!(store.partitions(&run.run_id).await.unwrap().len(), 1);
    }
    ended(&*store, "a", "full", RunStatus::Failed, 0).await;
    let few = Retention {
        pipeline: Some("a".into()),
        per_strategy: Some(1),
        ..Retention::default()
    };
    let gone = cleanup(&*store, &outputs, &few).await.unwrap();
    assert_eq!(gone.len(), 1);
    assert_eq!(store.runs(None, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_file_that_is_no_store_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    std::fs::write(
        &path,
        "this is not a database, and long enough to be looked at as one".repeat(20),
    )
    .unwrap();
    let error = SqliteStore::open(dir.path()).await.err().unwrap();
    assert_eq!(error.code(), code::STATE_STORE);
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(error.next_step().unwrap().contains("move the file away"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_a_newer_version_is_left_alone() {
    let place = Place::sqlite();
    drop(place.open().await);
    let db = rusqlite::Connection::open(place.dir.path().join("state.db")).unwrap();
    db.pragma_update(None, "user_version", 99).unwrap();
    let error = SqliteStore::open(place.dir.path()).await.err().unwrap();
    assert!(error.to_string().contains("newer version"), "{error}");

    let place = Place::postgres();
    drop(place.open().await);
    let database = place.database.as_ref().unwrap();
    database.psql("UPDATE synctool_state.version SET version = 99");
    let server = Server::open(PostgresConfig::from_url(&database.url()).unwrap()).unwrap();
    let error = PostgresStore::open(server, None).await.err().unwrap();
    assert!(error.to_string().contains("newer version"), "{error}");
}

#[tokio::test]
async fn many_processes_open_a_new_store_at_once() {
    let place = Place::sqlite();
    let opened = futures::future::join_all((0..8).map(|_| place.open())).await;
    assert_eq!(opened.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_hosts_open_a_new_schema_at_once() {
    let place = Place::postgres();
    let opened = futures::future::join_all((0..8).map(|_| place.open())).await;
    assert_eq!(opened.len(), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_needs_its_schema_and_nothing_else() {
    let place = Place::postgres();
    let database = place.database.as_ref().unwrap();
    let role = format!("{}_role", database.name());
    database.psql(&format!("CREATE ROLE {role} LOGIN"));
    let server = || Server::open(PostgresConfig::from_url(&database.url_as(&role)).unwrap()).unwrap();
    let refused = PostgresStore::open(server(), Some("my state")).await.err().unwrap();
    assert_eq!(refused.code(), code::PERMISSION, "{refused}");
    database.psql(&format!("CREATE SCHEMA \"my state\" AUTHORIZATION {role}"));
    let store = PostgresStore::open(server(), Some("my state")).await.unwrap();
    begin(&store, "p", "full").await;
    assert_eq!(database.psql("SELECT count(*) FROM \"my state\".runs").trim(), "1");
    drop(store);
    database.psql(&format!("DROP OWNED BY {role} CASCADE; DROP ROLE {role}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_connections_lose_the_lock_and_nothing_else() {
    let place = Place::postgres();
    let (store, database) = (place.open().await, place.database.as_ref().unwrap());
    let (lock, run) = begin(&*store, "p", "full").await;
    database.psql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND pid <> pg_backend_pid()",
    );
    let lost = lock.lost();
    tokio::time::timeout(SOON, lost.cancelled())
        .await
        .expect("the holder is told");
    let next = place.open().await;
    let taken = next.lock("p").await.unwrap();
    // A release that comes too late does not touch the new holder's lock.
    lock.release().await;
    assert_eq!(next.holder("p").await.unwrap().unwrap(), *taken.holder());
    next.begin_run(
        &taken,
        &Run {
            run_id: new_run_id(),
            ..run.clone()
        },
    )
    .await
    .unwrap();
    let late = store.save_run(&run, &[]).await.unwrap_err();
    assert_eq!(
        late.code(),
        code::FENCED,
        "the store itself has connected again: {late}"
    );
}
