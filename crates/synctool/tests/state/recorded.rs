//! A run, written down.

use super::*;

pub(crate) fn plan(pipeline: &str, run_id: &str, publish: Publish, partitions: &[&str]) -> Plan {
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
        remember: Default::default(),
        pipeline: pipeline.into(),
        run_id: run_id.into(),
        generation: synctool_core::progress::Generation(1),
        strategy: Strategy::Full,
        reasons: vec!["the destination is empty".into()],
        semantics: Value::Null,
        tables: vec![PlannedTable::new(
            ReadSpec::all(table.clone(), &[]),
            table,
            TableSchema {
                columns: Vec::new(),
                key: Vec::new(),
            },
            publish,
        )],
        phases: vec![Phase {
            name: "copy".into(),
            partitions: partitions.iter().map(partition).collect(),
        }]
        .into(),
        verify: synctool_core::plan::Verify::Count,
        guard: DeleteGuard::default(),
        created_at: "2024-01-15T14:00:00Z".into(),
    }
}

pub(crate) async fn recorder(store: &Arc<dyn Store>, outputs: &Outputs, pipeline: &str) -> Arc<RunRecorder> {
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

pub(crate) fn json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}\n{text}", path.display()))
}

pub(crate) fn partition_done(recorder: &RunRecorder, id: &str, rows: u64, skipped: bool) {
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

pub(crate) fn ledger(rows: u64) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.accounts.read.rows = rows;
    ledger.accounts.written.rows = rows;
    ledger.applied = Applied::inserts(rows);
    ledger
}

pub(crate) async fn a_recorded_run_is_in_the_store_and_in_the_files(place: Place) {
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

pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
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

pub(crate) fn no_file_says(word: &str, dir: &Path) {
    for path in files_below(dir) {
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        assert!(!text.contains(word), "{} holds {word}", path.display());
    }
}

pub(crate) async fn a_failed_run_says_why(place: Place) {
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

pub(crate) async fn a_resumed_run_names_the_one_before(place: Place) {
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
        own: 0,
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

pub(crate) async fn a_plan_may_have_many_partitions(place: Place) {
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

pub(crate) async fn a_run_given_up_is_interrupted(place: Place) {
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
