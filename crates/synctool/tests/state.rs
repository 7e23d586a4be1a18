//! The state store: the same tests against every database it can live in.

use std::sync::Arc;
use synctool::state::{Area, PartitionRecord, Run, RunStatus, SqliteStore, Store, new_run_id, now};
use synctool_core::engine::PartitionStatus;
use synctool_core::error::code;
use synctool_core::plan::Strategy;

async fn begin(store: &dyn Store, pipeline: &str, strategy: &str) -> (synctool::state::RunLock, Run) {
    let lock = store.lock(pipeline).await.unwrap();
    let run = Run::begin(pipeline, &new_run_id(), strategy, Strategy::Full, lock.holder());
    store.begin_run(&lock, &run).await.unwrap();
    (lock, run)
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

async fn a_run_is_remembered(store: Arc<dyn Store>) {
    let p = "remembered";
    let (lock, mut run) = begin(&*store, p, "full").await;
    let running = store.run(&run.run_id).await.unwrap();
    assert_eq!(running, run, "a held lock means that it runs");
    run.partitions.total = 2;
    run.reasons = vec!["the destination is empty".into()];
    store
        .save_run(&run, &[PartitionRecord::begin("1-10"), PartitionRecord::begin("11-")])
        .await
        .unwrap();
    run.partitions.completed = 1;
    store.save_run(&run, &[done("11-", 5)]).await.unwrap();
    let partitions = store.partitions(&run.run_id).await.unwrap();
    assert_eq!(partitions.len(), 2);
    assert!(!partitions[0].is_complete() && partitions[1].is_complete());
    let memory = store.state(p).await.unwrap().unwrap();
    assert_eq!(memory.last_partition.unwrap().id, "11-");
    assert_eq!(memory.run, run);
    run.status = RunStatus::Completed;
    run.completed_at = Some(now());
    store.save_run(&run, &[done("1-10", 10)]).await.unwrap();
    lock.release().await;
    assert_eq!(store.run(&run.run_id).await.unwrap(), run);
    let late = store.save_run(&run, &[done("late", 1)]).await.unwrap_err();
    assert_eq!(late.code(), code::FENCED);
    assert_eq!(store.partitions(&run.run_id).await.unwrap().len(), 2);
    assert_eq!(store.run("nobody").await.unwrap_err().code(), code::RUN_UNKNOWN);
}

async fn private_areas_keep_bytes(store: Arc<dyn Store>) {
    let area = |name: &str| Area {
        pipeline: "areas".into(),
        name: name.into(),
    };
    let (a, b) = (area("a"), area("b"));
    let put = |k: &str, v: &[u8]| (k.to_string(), Some(v.to_vec()));
    store
        .area_put(
            &a,
            &[put("b", b"2"), put("B", &[0, 255]), put("é", b"3"), put("gone", b"")],
        )
        .await
        .unwrap();
    store.area_put(&b, &[put("b", b"other")]).await.unwrap();
    store
        .area_put(&a, &[("gone".into(), None), put("b", b"two")])
        .await
        .unwrap();
    assert_eq!(store.area_get(&a, "b").await.unwrap().unwrap(), b"two");
    assert_eq!(store.area_get(&a, "gone").await.unwrap(), None);
    let all = store.area_scan(&a, None, 10).await.unwrap();
    let keys: Vec<&str> = all.iter().map(|(k, _)| k.as_str()).collect();
    assert_eq!(keys, ["B", "b", "é"]);
    let next = store.area_scan(&a, Some("B"), 1).await.unwrap();
    assert_eq!(next, [("b".to_string(), b"two".to_vec())]);
}

#[tokio::test]
async fn sqlite_store() {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(SqliteStore::open(dir.path()).await.unwrap());
    a_run_is_remembered(store.clone()).await;
    private_areas_keep_bytes(store).await;
}
