//! A process that is killed while it writes a run down.

use super::*;
use crate::recorded::{files_below, json, ledger, partition_done, plan, recorder};

/// A process of its own that runs the pipeline `p` and writes down partitions until it is killed.
struct Victim {
    process: Child,
    run_id: String,
}

impl Victim {
    fn start(place: &Place) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["killed::a_process_records_a_run", "--exact", "--nocapture"])
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

pub(crate) async fn a_killed_process_leaves_whole_files_and_a_free_lock(place: Place) {
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
