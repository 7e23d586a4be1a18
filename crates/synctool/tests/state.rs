//! The program's state: the same tests against every database it can live in, and processes that are killed.

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

fn plan(pipeline: &str, run_id: &str, publish: Publish, partitions: &[&str]) -> Plan {
    let partition = |id: &&str| Partition {
        id: (*id).into(),
        table: 0,
        work: Work::Read(Slice::All),
        estimated_rows: 10,
        estimated_bytes: 100,
    };
    let table = TableId {
        schema: Some("public".into()),
        name: "items".into(),
    };
    Plan {
        pipeline: pipeline.into(),
        run_id: run_id.into(),
        generation: synctool_core::progress::Generation(1),
        strategy: Strategy::Full,
        reasons: vec!["the destination is empty".into()],
        semantics: Value::Null,
        tables: vec![PlannedTable {
            read: ReadSpec::all(table.clone(), &[]),
            destination: table,
            schema: TableSchema {
                columns: Vec::new(),
                key: Vec::new(),
            },
            publish,
        }],
        phases: vec![Phase {
            name: "copy".into(),
            partitions: partitions.iter().map(partition).collect(),
        }],
        verify: synctool_core::plan::Verify::Count,
        guard: DeleteGuard::default(),
        created_at: "2024-01-15T14:00:00Z".into(),
    }
}

async fn recorder(store: &Arc<dyn Store>, outputs: &Outputs, pipeline: &str) -> Arc<RunRecorder> {
    let lock = store.lock(pipeline).await.unwrap();
    let info = RunInfo {
        run_id: new_run_id(),
        strategy: "nightly".into(),
        strategy_type: Strategy::Delta,
        progress: Arc::default(),
    };
    RunRecorder::start(store.clone(), outputs.clone(), lock, info)
        .await
        .unwrap()
}

fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display()))
}

fn partition_done(recorder: &RunRecorder, id: &str, rows: u64, skipped: bool) {
    let partition = &id.into();
    if !skipped {
        recorder.event(&RunEvent::PartitionStarted { partition });
        let applied = Applied::inserts(rows);
        recorder.event(&RunEvent::Committed { partition, applied });
    }
    recorder.event(&RunEvent::PartitionDone {
        partition,
        rows,
        took: Duration::from_millis(rows * 100),
        skipped,
    });
}

fn ledger(rows: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.accounts.read.rows = rows;
    ledger.accounts.written.rows = rows;
    ledger.applied = Applied::inserts(rows);
    ledger
}

async fn a_recorded_run_is_in_the_store_and_in_the_files(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let p = "users sync";
    let recorder = recorder(&store, &outputs, p).await;
    let id = recorder.run_id().to_string();
    assert_eq!(
        json(&outputs.state_file(p))["status"],
        "running",
        "from the first moment"
    );
    assert_eq!(outputs.state_file(p).file_name().unwrap(), "users%20sync_state.json");

    // Who has the file open keeps reading what it was: it is replaced, never written over. What a crash left is no
    // hindrance.
    let mut opened = std::fs::File::open(outputs.state_file(p)).unwrap();
    std::fs::write(outputs.state_file(p).with_extension("json.tmp"), "half a").unwrap();

    let plan = plan(p, &id, Publish::Direct, &["1-10", "11-20", "21-"]);
    recorder.event(&RunEvent::Planned {
        plan: &plan,
        resumed: false,
    });
    recorder.event(&RunEvent::Step(Step::Partitions));
    partition_done(&recorder, "1-10", 10, false);
    let error = Error::new(
        code::CONNECTION_LOST,
        "the connection to postgres://u:hunter2@h/db broke",
    );
    recorder.event(&RunEvent::Retrying {
        partition: &"11-20".into(),
        error: &error,
        delay: Duration::from_millis(1500),
    });
    // Written while it goes on, without anybody waiting for it.
    eventually("the first partition is in the state file", SOON, async || {
        json(&outputs.state_file(p))["progress"]["completed_partitions"] == 1
    })
    .await;
    let state = json(&outputs.state_file(p));
    assert_eq!(state["last_completed_partition"]["partition_id"], "1-10");
    assert_eq!(state["progress"]["total_partitions"], 3);
    assert_eq!(state["progress"]["rows_processed"], 10);
    assert_eq!(store.state(p).await.unwrap().unwrap().run.rows.inserted, 10);

    partition_done(&recorder, "11-20", 7, false);
    partition_done(&recorder, "21-", 3, false);
    recorder.log(Level::Info, "see mysql://a:hunter2@h/x");
    let recorded = recorder.finish(Ok(&ledger(20))).await.unwrap();
    assert!(recorded.warnings.is_empty(), "{:?}", recorded.warnings);
    assert_eq!(recorded.run.strategy_type, Strategy::Full, "the plan decided so");
    assert_eq!(store.holder(p).await.unwrap(), None, "the lock is given back");
    assert_eq!(store.run(&id).await.unwrap(), recorded.run);
    assert_eq!(recorded.run.partitions.completed, 3);

    let mut before = String::new();
    opened.read_to_string(&mut before).unwrap();
    let before: Value = serde_json::from_str(&before).unwrap();
    assert_eq!(
        (&before["run_id"], &before["status"]),
        (&id.as_str().into(), &"running".into())
    );

    let state = json(&outputs.state_file(p));
    for (key, value) in [
        ("pipeline_id", p),
        ("strategy", "nightly"),
        ("run_id", &id),
        ("status", "completed"),
    ] {
        assert_eq!(state[key], value);
    }
    assert_eq!(state["progress"]["failed_partitions"], 0);
    let started = state["started_at"].as_str().unwrap();
    assert!(started.len() == 20 && started.ends_with('Z'), "{started}");
    assert_eq!(state["strategies"]["nightly"]["run_id"], id);
    assert_eq!(state["worker"], store.run(&id).await.unwrap().worker);

    let metrics = json(&outputs.run_metrics_file(p, &id));
    assert_eq!(metrics, json(&outputs.latest_run_file(p)));
    for (key, value) in [
        ("rows_processed", 20),
        ("rows_inserted", 20),
        ("rows_updated", 0),
        ("rows_deleted", 0),
        ("rows_unchanged", 0),
        ("rows_rejected", 0),
        ("partitions_processed", 3),
        ("errors", 0),
        ("retries", 1),
    ] {
        assert_eq!(metrics[key], value, "{key}");
    }
    assert!(metrics["duration_seconds"].is_number());
    assert_eq!(metrics["pipeline"], p);
    assert_eq!(metrics["batch_sizes"]["max"], 10);
    let times = metrics["partition_times"].as_array().unwrap();
    assert_eq!(times.len(), 3);
    assert_eq!(
        (&times[0]["partition_id"], &times[0]["seconds"]),
        (&"1-10".into(), &1.into())
    );

    let history = json(&outputs.history_file(p));
    assert_eq!(history.as_array().unwrap().len(), 1);
    assert_eq!(history[0]["run_id"], id);
    let figures = json(&outputs.metrics_file(p));
    assert_eq!((&figures["runs"], &figures["success_rate"]), (&1.into(), &1.0.into()));

    let lines = LogReader::new(outputs.log_file(p, &id)).lines().unwrap();
    let raw = std::fs::read_to_string(outputs.log_file(p, &id)).unwrap();
    assert_eq!(lines.len(), raw.lines().count());
    assert!(lines.iter().all(|l| l.run_id == id));
    let first: Value = serde_json::from_str(raw.lines().next().unwrap()).unwrap();
    assert_eq!(first["level"], "INFO");
    assert_eq!(first["message"], "Starting sync with strategy nightly");
    assert!(
        lines
            .iter()
            .any(|l| l.partition.as_deref() == Some("21-") && l.rows == Some(3))
    );
    let retry = lines.iter().find(|l| l.level == Level::Warning).unwrap();
    assert_eq!(retry.code.as_deref(), Some("ST-NET-002"));
    assert!(
        lines
            .last()
            .unwrap()
            .message
            .starts_with("Completed: 20 rows read, 20 inserted")
    );
    no_file_says("hunter2", place.dir.path());
}

fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

fn no_file_says(word: &str, dir: &Path) {
    for path in files_below(dir) {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains(word), "{} holds {word}", path.display());
    }
}

async fn a_failed_run_says_why(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let recorder = recorder(&store, &outputs, "p").await;
    let id = recorder.run_id().to_string();
    let plan = plan("p", &id, Publish::Swap, &["a", "b"]);
    recorder.event(&RunEvent::Planned {
        plan: &plan,
        resumed: false,
    });
    partition_done(&recorder, "a", 4, false);
    let b = &"b".into();
    recorder.event(&RunEvent::PartitionStarted { partition: b });
    let error = Error::new(code::DISK_FULL, "the destination's disk is full")
        .at("partition", "b")
        .hint("make room and run again");
    let recorded = recorder.finish(Err::<&Ledger, _>(&error)).await.unwrap();
    assert_eq!(recorded.run.status, RunStatus::Failed);
    let partitions = store.partitions(&id).await.unwrap();
    assert_eq!(partitions[1].status, PartitionStatus::Failed);
    assert!(partitions[1].error.as_ref().unwrap().contains("disk is full"));
    let state = json(&outputs.state_file("p"));
    assert_eq!(state["status"], "failed");
    assert_eq!(state["progress"]["failed_partitions"], 1);
    assert_eq!(state["error"]["code"], "ST-IO-001");
    assert_eq!(state["strategies"]["nightly"]["retry_count"], 1);
    let metrics = json(&outputs.latest_run_file("p"));
    assert_eq!(metrics["errors"], 1);
    assert_eq!(metrics["error"]["hint"], "make room and run again");
    assert_eq!(metrics["rows_processed"], 4);
    assert_eq!(metrics["rows_inserted"], 0, "loaded beside the table, never published");
    let lines = LogReader::new(outputs.log_file("p", &id)).lines().unwrap();
    assert_eq!(lines.last().unwrap().level, Level::Error);
}

async fn a_resumed_run_names_the_one_before(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let first = recorder(&store, &outputs, "p").await;
    let plan = plan(
        "p",
        first.run_id(),
        Publish::Merge { delete_missing: true },
        &["a", "b"],
    );
    first.event(&RunEvent::Planned {
        plan: &plan,
        resumed: false,
    });
    partition_done(&first, "a", 4, false);
    let b = &"b".into();
    first.event(&RunEvent::PartitionStarted { partition: b });
    let stop = Error::new(code::INTERRUPTED, "stopped on request").at("partition", "b");
    let recorded = first.finish(Err::<&Ledger, _>(&stop)).await.unwrap();
    assert_eq!(recorded.run.status, RunStatus::Interrupted);
    let partitions = store.partitions(first.run_id()).await.unwrap();
    assert_eq!(partitions[1].status, PartitionStatus::Waiting, "left for the next run");

    let second = recorder(&store, &outputs, "p").await;
    second.event(&RunEvent::Planned {
        plan: &plan,
        resumed: true,
    });
    partition_done(&second, "a", 4, true);
    partition_done(&second, "b", 6, false);
    let mut both = ledger(10);
    both.published = Some(Applied {
        written: 10,
        inserted: 1,
        updated: 2,
        deleted: 5,
        unchanged: 7,
        removed: 0,
    });
    let recorded = second.finish(Ok(&both)).await.unwrap();
    assert_eq!(recorded.run.resumed_from.as_deref(), Some(first.run_id()));
    let metrics = json(&outputs.latest_run_file("p"));
    for (key, value) in [
        ("rows_processed", 10),
        ("rows_inserted", 1),
        ("rows_updated", 2),
        ("rows_deleted", 5),
        ("rows_unchanged", 7),
        ("partitions_processed", 1),
        ("partitions_skipped", 1),
    ] {
        assert_eq!(metrics[key], value, "{key}");
    }
    assert_eq!(metrics["resumed_from"], first.run_id());
    assert_eq!(json(&outputs.history_file("p")).as_array().unwrap().len(), 2);
    assert_eq!(json(&outputs.state_file("p"))["progress"]["completed_partitions"], 2);
}

async fn a_plan_may_have_many_partitions(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let recorder = recorder(&store, &outputs, "p").await;
    let names: Vec<String> = (0..5000).map(|n| format!("{n:04}")).collect();
    let ids: Vec<&str> = names.iter().map(String::as_str).collect();
    let plan = plan("p", recorder.run_id(), Publish::Direct, &ids);
    recorder.event(&RunEvent::Planned {
        plan: &plan,
        resumed: true,
    });
    for id in &ids {
        partition_done(&recorder, id, 1, true);
    }
    let recorded = recorder.finish(Ok(&ledger(5000))).await.unwrap();
    assert!(recorded.warnings.is_empty(), "{:?}", recorded.warnings);
    let partitions = store.partitions(recorder.run_id()).await.unwrap();
    assert!(partitions.iter().map(|p| p.id.as_str()).eq(ids));
    assert_eq!(recorded.run.partitions.skipped, 5000);
}

async fn a_run_given_up_is_interrupted(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    let recorder = recorder(&store, &outputs, "p").await;
    let id = recorder.run_id().to_string();
    drop(recorder);
    eventually("the lock is given back", SOON, async || {
        store.holder("p").await.unwrap().is_none()
    })
    .await;
    let run = store.run(&id).await.unwrap();
    assert_eq!(run.status, RunStatus::Interrupted);
    assert_eq!(json(&outputs.state_file("p"))["status"], "interrupted");
}

/// A process of its own that runs the pipeline `p` and writes down partitions until it is killed.
struct Victim {
    process: Child,
    run_id: String,
}

impl Victim {
    fn start(place: &Place) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["a_process_records_a_run", "--exact", "--nocapture"])
            .env("STATE_VICTIM_DIR", place.dir.path())
            .env("STATE_VICTIM_URL", place.url())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(process.stdout.take().unwrap())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| Some(line.split_once("RUNNING ")?.1.to_string()));
        let run_id = said.expect("the child says which run it records");
        Victim { process, run_id }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program of the victim. Without a parent that kills it, it records one run and ends it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_records_a_run() {
    let parent = std::env::var("STATE_VICTIM_DIR").ok();
    let own = tempfile::tempdir().unwrap();
    let dir = parent.as_ref().map_or(own.path().to_path_buf(), PathBuf::from);
    let store = open(&dir, &std::env::var("STATE_VICTIM_URL").unwrap_or_default()).await;
    let mut outputs = Outputs::under(&dir);
    outputs.keep_runs = 10_000;
    let recorder = recorder(&store, &outputs, "p").await;
    writeln!(std::io::stdout(), "RUNNING {}", recorder.run_id()).unwrap();
    let plan = plan("p", recorder.run_id(), Publish::Direct, &["1"]);
    recorder.event(&RunEvent::Planned {
        plan: &plan,
        resumed: false,
    });
    let mut n = 0;
    loop {
        n += 1;
        partition_done(&recorder, &n.to_string(), n, false);
        tokio::time::sleep(Duration::from_millis(1)).await;
        if parent.is_none() && n == 20 {
            break;
        }
    }
    let recorded = recorder.finish(Ok(&ledger(210))).await.unwrap();
    assert_eq!(recorded.run.partitions.completed, 20);
    assert_eq!(store.partitions(&recorded.run.run_id).await.unwrap().len(), 20);
}

async fn a_killed_process_leaves_whole_files_and_a_free_lock(place: Place) {
    let (store, outputs) = (place.open().await, place.outputs());
    for round in 0..4 {
        let mut victim = Victim::start(&place);
        let refused = store.lock("p").await.unwrap_err();
        assert_eq!(refused.code(), code::LOCKED);
        let (pid, text) = (victim.process.id().to_string(), refused.to_string());
        assert!(text.contains(&format!("process {pid} on host")), "{text}");
        // Killed at another point of its work each time; whoever reads meanwhile reads whole files.
        let mut reads = 0;
        eventually("it has written some partitions", SOON, async || {
            reads += 1;
            json(&outputs.latest_run_file("p"));
            let state = json(&outputs.state_file("p"));
            assert_eq!(state["run_id"], victim.run_id);
            state["progress"]["completed_partitions"].as_u64().unwrap() > round * 37
        })
        .await;
        assert_eq!(store.run(&victim.run_id).await.unwrap().status, RunStatus::Running);
        victim.process.kill().unwrap();
        victim.process.wait().unwrap();

        for path in files_below(place.dir.path()) {
            if path.extension().is_some_and(|e| e == "json") {
                json(&path);
            }
        }
        let lines = LogReader::new(outputs.log_file("p", &victim.run_id)).lines().unwrap();
        assert!(!lines.is_empty());
        // Its lock is free, its run is called what it is, and the next may begin.
        eventually("the lock of the killed process is free", SOON, async || {
            match store.lock("p").await {
                Ok(lock) => {
                    lock.release().await;
                    Ok(())
                }
                Err(e) => Err(e.to_string()),
            }
        })
        .await;
        let run = store.run(&victim.run_id).await.unwrap();
        assert_eq!(run.status, RunStatus::Interrupted);
        let known = store.partitions(&victim.run_id).await.unwrap();
        let complete = known.iter().filter(|p| p.is_complete()).count() as u64;
        assert_eq!(
            run.partitions.completed, complete,
            "run and partitions are saved in one step"
        );
    }
    assert_eq!(store.runs(Some("p"), 10).await.unwrap().len(), 4);
    if place.url().is_empty() {
        let db = rusqlite::Connection::open(place.dir.path().join("state.db")).unwrap();
        let check: String = db.query_row("PRAGMA integrity_check", [], |r| r.get(0)).unwrap();
        assert_eq!(check, "ok");
    }
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

#[tokio::test]
async fn an_unwritable_folder_stops_a_run_before_it_begins() {
    let place = Place::sqlite();
    let store = place.open().await;
    let mut outputs = place.outputs();
    // A file where a folder should be: not even root can write below it.
    outputs.metrics_dir = place.dir.path().join("state.db");
    let lock = store.lock("p").await.unwrap();
    let info = RunInfo {
        run_id: new_run_id(),
        strategy: "full".into(),
        strategy_type: Strategy::Full,
        progress: Arc::default(),
    };
    let error = RunRecorder::start(store.clone(), outputs, lock, info)
        .await
        .err()
        .unwrap();
    assert_eq!(error.code(), code::FILE, "{error}");
    assert_eq!(store.holder("p").await.unwrap(), None);
}
