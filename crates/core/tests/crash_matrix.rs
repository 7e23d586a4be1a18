//! The crash matrix in one process: every call of a run fails in turn, before and after it was carried out, once as a
//! server that went away for a moment and once as the end of the process. Afterwards the tables must be equal, and
//! every row must have been counted once.

use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng};
use std::sync::Arc;
use synctool_core::backfill::{BackfillPosition, Cancelled, Pending, Request, Wish};
use synctool_core::engine::Engine;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Ledger;
use synctool_core::plan::{DeleteGuard, Phase, Plan, PlannedTable, Publish, ReadSpec, Verify};
use synctool_core::progress::{Advance, Generation, PartitionId};
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::source::Assignment;
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::testing::faults::{FaultPlan, FaultyDestination, FaultySource, Looks, When};
use synctool_core::testing::memory::Memory;
use synctool_core::testing::memory_log::{MemoryLog, MemoryTables};
use synctool_core::testing::rows::Rows;
use synctool_core::testing::scenario::{self, options, row, schema, some_rows};

fn key(text: &str) -> Vec<String> {
    vec![text.into()]
}

fn items() -> TableId {
    TableId::bare("items")
}

async fn full_run(source: &Memory, destination: &Memory, faults: &FaultPlan, mode: FullMode) -> Result<Ledger> {
    let source = Arc::new(FaultySource(Arc::new(MemoryTables(source.clone())), faults.clone()));
    let destination = Arc::new(FaultyDestination(Arc::new(destination.clone()), faults.clone()));
    let mut engine = Engine::new(source.clone(), destination.clone());
    engine.options = options();
    let engine = Arc::new(engine);
    let request = FullRequest {
        mode,
        verify: Some(Verify::Hash),
        ..scenario::full_request("p", &items())
    };
    let semantics = request.table.semantics.clone();
    let draft = full::plan(source.as_ref(), destination.as_ref(), engine.stages.as_ref(), request);
    let (plan, resumed) = engine.plan("p", &semantics, draft).await?;
    Ok(engine.run(plan, resumed).await?.ledger)
}

/// Runs a scenario with every call failing in turn, and hands each world to `check`.
async fn every_fault<W, F, Fut>(world: impl Fn() -> W, run: F, check: impl Fn(&W, &str))
where
    F: Fn(W, FaultPlan) -> Fut,
    Fut: Future<Output = Result<Ledger>>,
    W: Clone,
{
    let undisturbed = FaultPlan::none();
    let w = world();
    run(w.clone(), undisturbed.clone())
        .await
        .expect("an undisturbed run succeeds");
    check(&w, "undisturbed");
    let calls = undisturbed.calls();
    assert!(calls > 20, "the matrix covers only {calls} calls");
    for at in 1..=calls + 2 {
        for when in [When::Before, When::After] {
            for looks in [Looks::Transient, Looks::Fatal] {
                let case = format!("call {at} of {calls} fails {when:?}, {looks:?}");
                let w = world();
                let faults = FaultPlan::fail(at, when, looks);
                match run(w.clone(), faults.clone()).await {
                    Ok(ledger) => ledger.check().unwrap_or_else(|e| panic!("{case}: {e}")),
                    Err(e) => {
                        assert!(faults.calls() >= at, "{case}: failed without a fault: {e}");
                        let again = run(w.clone(), FaultPlan::none()).await;
                        let ledger = again.unwrap_or_else(|e| panic!("{case}: the next run failed: {e}"));
                        ledger.check().unwrap_or_else(|e| panic!("{case}: {e}"));
                    }
                }
                check(&w, &case);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_load_into_nothing() {
    every_fault(
        || {
            let (source, destination) = (Memory::default(), Memory::default());
            source.put(&items(), schema(), some_rows(40));
            (source, destination)
        },
        |(s, d), faults| async move { full_run(&s, &d, &faults, FullMode::Auto).await },
        |(s, d), case| {
            assert_eq!(
                d.table(&items()).map(|t| t.rows),
                s.table(&items()).map(|t| t.rows),
                "{case}"
            );
            assert_eq!(d.names(), [items()], "{case}: load tables are left");
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_load_merged_into_a_table_of_somebody_else() {
    every_fault(
        || {
            let (source, destination) = (Memory::default(), Memory::default());
            source.put(&items(), schema(), some_rows(40));
            let mut there = some_rows(43);
            there.remove(&key("0007"));
            there.insert(key("0009"), row(&["0009", "old", "old"]));
            destination.put(&items(), schema(), there);
            (source, destination)
        },
        |(s, d), faults| async move {
            let ledger = full_run(&s, &d, &faults, FullMode::Upsert).await?;
            Ok(ledger)
        },
        |(s, d), case| {
            assert_eq!(
                d.table(&items()).map(|t| t.rows),
                s.table(&items()).map(|t| t.rows),
                "{case}"
            );
            assert_eq!(d.names(), [items()], "{case}: load tables are left");
        },
    )
    .await;
}

#[tokio::test]
async fn the_ledger_of_a_merge_says_what_happened() {
    let (source, destination) = (Memory::default(), Memory::default());
    source.put(&items(), schema(), some_rows(40));
    let mut there = some_rows(43);
    there.remove(&key("0007"));
    there.insert(key("0009"), row(&["0009", "old", "old"]));
    destination.put(&items(), schema(), there);
    let ledger = full_run(&source, &destination, &FaultPlan::none(), FullMode::Auto)
        .await
        .unwrap();
    let a = ledger.outcome();
    assert_eq!((a.inserted, a.updated, a.deleted, a.unchanged), (1, 1, 3, 38));
}

#[tokio::test]
async fn a_changed_pipeline_does_not_resume() {
    let (source, destination) = (Memory::default(), Memory::default());
    source.put(&items(), schema(), some_rows(40));
    let faults = FaultPlan::fail(30, When::Before, Looks::Fatal);
    full_run(&source, &destination, &faults, FullMode::Auto)
        .await
        .expect_err("a fault was injected");
    let engine = Engine::new(Arc::new(MemoryTables(source)), Arc::new(destination));
    let other = serde_json::json!({"table": "other"});
    let e = engine
        .plan("p", &other, async { Err(Error::bug("must not plan")) })
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONFIG_CHANGED);
    assert!(e.message().contains("(table)"), "the changed key is named: {e}");
}

#[tokio::test]
async fn a_pipeline_that_changed_before_anything_was_done_begins_anew() {
    let (source, destination) = (Memory::default(), Memory::default());
    source.put(&items(), schema(), some_rows(40));
    let destination: Arc<dyn Destination> = Arc::new(destination);
    let engine = Engine::new(Arc::new(MemoryTables(source)), destination.clone());
    let draft = |run: &str| {
        let mut plan = log_plan(&[items()]);
        (plan.pipeline, plan.run_id) = ("p".into(), run.into());
        async { Ok(plan) }
    };
    let (first, _) = engine
        .plan("p", &serde_json::Value::Null, draft("first"))
        .await
        .unwrap();
    let mut sink = destination.open_sink(&first).await.unwrap();
    let log = synctool_core::progress::PartitionId::from("log");
    sink.recover(std::slice::from_ref(&log)).await.unwrap();
    let other = serde_json::json!({"table": "other"});
    let (second, resumed) = engine.plan("p", &other, draft("second")).await.unwrap();
    assert!(!resumed && second.run_id == "second", "{}", second.run_id);
    // Whoever was about to begin is too late.
    let advance = Advance {
        partition: log,
        from: None,
        to: "1".into(),
        done: false,
        accounts: Default::default(),
        rejects: Vec::new(),
    };
    assert_eq!(sink.commit(&[advance]).await.unwrap_err().code(), code::FENCED);
}

#[tokio::test]
async fn an_empty_source_does_not_empty_the_destination() {
    let (source, destination) = (Memory::default(), Memory::default());
    source.put(&items(), schema(), Rows::new());
    destination.put(&items(), schema(), some_rows(5));
    let e = full_run(&source, &destination, &FaultPlan::none(), FullMode::Upsert)
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::MASS_DELETE);
    assert_eq!(destination.table(&items()).unwrap().rows.len(), 5);
}

fn log_plan(tables: &[TableId]) -> Plan {
    Plan {
        remember: Default::default(),
        pipeline: "log".into(),
        run_id: "r".into(),
        generation: Generation(0),
        strategy: synctool_core::plan::Strategy::Log,
        reasons: Vec::new(),
        semantics: serde_json::Value::Null,
        tables: tables
            .iter()
            .map(|t| {
                PlannedTable::new(
                    ReadSpec::all(t.clone(), &schema().columns),
                    t.clone(),
                    schema(),
                    Publish::Direct,
                )
            })
            .collect(),
        phases: vec![Phase {
            name: "log".into(),
            partitions: Vec::new(),
        }]
        .into(),
        verify: Verify::None,
        guard: DeleteGuard::default(),
        created_at: "2026-01-01T00:00:00Z".into(),
    }
}

async fn log_run(log: &MemoryLog, destination: &Memory, faults: &FaultPlan, tables: &[TableId]) -> Result<Ledger> {
    let source = Arc::new(FaultySource(Arc::new(log.clone()), faults.clone()));
    let destination = Arc::new(FaultyDestination(Arc::new(destination.clone()), faults.clone()));
    let mut engine = Engine::new(source, destination);
    engine.options = options();
    let engine = Arc::new(engine);
    let tables = tables.to_vec();
    let (plan, _) = engine
        .plan("log", &serde_json::Value::Null, async move { Ok(log_plan(&tables)) })
        .await?;
    engine.follow(plan).await
}

fn orders() -> TableId {
    TableId::bare("orders")
}

fn eventful_log() -> MemoryLog {
    scenario::eventful_log(&items(), &orders())
}

fn others_meanwhile(log: &MemoryLog) {
    scenario::others_meanwhile(log, &items());
    log.between(|log| {
        log.begin(0)
            .update(
                &items(),
                &key("0008"),
                &[(0, Some("0000c".into())), (1, None), (2, Some("all".into()))],
            )
            .commit();
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_from_its_start() {
    let tables = [items(), orders()];
    every_fault(
        || (eventful_log(), Memory::default()),
        |(log, d), faults| {
            let tables = tables.clone();
            async move { log_run(&log, &d, &faults, &tables).await }
        },
        |(log, d), case| {
            for t in [items(), orders()] {
                assert_eq!(d.table(&t).unwrap().rows, log.rows(&t), "{case}: {t}");
            }
        },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backfill_beside_the_log() {
    for resync in [false, true] {
        every_fault(
            || {
                let log = eventful_log();
                others_meanwhile(&log);
                let pending = |t| if resync { Pending::resync(t) } else { Pending::load(t) };
                let log = log.with_backfill(vec![pending(items()), pending(orders())], 3);
                let destination = Memory::default();
                if resync {
                    // The destination went wrong: a changed row, a missing one, one too many.
                    let mut wrong = log.rows(&items());
                    wrong.remove(&key("0000"));
                    wrong.insert(key("0003"), row(&["0003", "wrong", "wrong"]));
                    wrong.insert(key("0008x"), row(&["0008x", "too much", "x"]));
                    destination.put(&items(), schema(), wrong);
                }
                (log, destination)
            },
            |(log, d), faults| async move { log_run(&log, &d, &faults, &[items(), orders()]).await },
            |(log, d), case| {
                for t in [items(), orders()] {
                    assert_eq!(d.table(&t).unwrap().rows, log.rows(&t), "resync {resync}, {case}: {t}");
                }
            },
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_that_are_given_away_and_come_back() {
    every_fault(
        || {
            let log = MemoryLog::new(2);
            for t in [items(), orders()] {
                log.create(&t, schema());
            }
            for i in 0..8 {
                log.begin(0)
                    .put(&items(), row(&[&format!("{i:04}"), "a", "b"]))
                    .commit();
                log.begin(1)
                    .put(&orders(), row(&[&format!("{i:04}"), "c", "d"]))
                    .commit();
            }
            let (p0, p1) = (log.partition(0), log.partition(1));
            let script = vec![
                Assignment::Added(vec![p0.clone(), p1.clone()]),
                Assignment::Removed(vec![p1.id.clone()]),
                Assignment::Added(vec![p1.clone()]),
                Assignment::Removed(vec![p0.id.clone(), p1.id.clone()]),
                Assignment::Added(vec![p1, p0]),
            ];
            (log.with_script(script), Memory::default())
        },
        |(log, d), faults| async move { log_run(&log, &d, &faults, &[items(), orders()]).await },
        |(log, d), case| {
            for t in [items(), orders()] {
                assert_eq!(d.table(&t).unwrap().rows, log.rows(&t), "{case}: {t}");
            }
        },
    )
    .await;
}

#[tokio::test]
async fn a_commit_that_the_chunk_could_not_see_is_not_lost() {
    // Trap 3: the delete's commit is in the log before the low watermark, but the chunk still sees the row. Also where
    // the log gives that transaction and the watermark's as one.
    for joining in [false, true] {
        let log = MemoryLog::new(1).joining(joining);
        log.create(&items(), schema());
        log.begin(0)
            .put(&items(), row(&["1", "a", "b"]))
            .put(&items(), row(&["2", "a", "b"]))
            .commit();
        log.hide();
        log.begin(0).delete(&items(), &key("1")).commit();
        log.between(|log| log.reveal());
        let log = log.with_backfill(vec![Pending::load(items())], 10);
        let destination = Memory::default();
        log_run(&log, &destination, &FaultPlan::none(), &[items()])
            .await
            .unwrap();
        let rows = destination.table(&items()).unwrap().rows;
        assert_eq!(rows, log.rows(&items()), "joining: {joining}");
    }
}

/// Trap 3 in a later chunk, where the log gives several transactions as one and names only the last of them.
#[tokio::test]
async fn a_commit_among_others_that_a_later_chunk_could_not_see_is_not_lost() {
    for joining in [false, true] {
        let log = MemoryLog::new(1).joining(joining);
        log.create(&items(), schema());
        for n in ["1", "2", "3"] {
            log.begin(0).put(&items(), row(&[n, "a", "b"])).commit();
        }
        log.between(|log| {
            log.hide();
            log.begin(0).delete(&items(), &key("2")).commit();
            log.begin(0).put(&items(), row(&["1", "later", "b"])).commit();
        });
        log.between(|log| log.reveal());
        let log = log.with_backfill(vec![Pending::load(items())], 1);
        let destination = Memory::default();
        log_run(&log, &destination, &FaultPlan::none(), &[items()])
            .await
            .unwrap();
        let rows = destination.table(&items()).unwrap().rows;
        assert_eq!(rows, log.rows(&items()), "joining: {joining}");
    }
}

/// A new row of which the log does not say every value (a filter let it in) is read, beside a chunk of its table, too, and
/// beside the keys that were asked for.
#[tokio::test]
async fn a_new_row_without_all_of_its_values_is_read() {
    let asked = Pending::keys(items(), vec![key("2")]);
    for pending in [
        None,
        Some(Pending::load(items())),
        Some(Pending::resync(items())),
        Some(asked),
    ] {
        let log = MemoryLog::new(1);
        log.create(&items(), schema());
        log.begin(0).put(&items(), row(&["1", "a", "b"])).commit();
        let destination = Memory::default();
        destination.put(&items(), schema(), log.rows(&items()));
        let case = format!("{pending:?}");
        let enters = |log: &MemoryLog| log.begin(0).enter(&items(), row(&["2", "a", "large"]), 2).commit();
        let beside = pending.is_some();
        if beside {
            log.between(enters);
        }
        let log = log.with_backfill(pending.into_iter().collect(), 10);
        if !beside {
            enters(&log);
        }
        log_run(&log, &destination, &FaultPlan::none(), &[items()])
            .await
            .unwrap();
        assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()), "{case}");
    }
}

/// It is found under the key that it has by then, while another table is read.
#[tokio::test]
async fn a_new_row_that_gets_another_key_before_it_is_read_is_found() {
    for all in [false, true] {
        let log = MemoryLog::new(1);
        for table in [items(), orders()] {
            log.create(&table, schema());
        }
        for n in ["1", "2", "3"] {
            log.begin(0).put(&orders(), row(&[n, "a", "b"])).commit();
        }
        let log = log.with_backfill(vec![Pending::load(orders())], 1);
        let mut set = vec![(0, Some("3".into()))];
        if all {
            set.extend([(1, Some("c".into())), (2, Some("small".into()))]);
        }
        log.begin(0).enter(&items(), row(&["2", "a", "large"]), 2).commit();
        log.begin(0).update(&items(), &key("2"), &set).commit();
        let destination = Memory::default();
        log_run(&log, &destination, &FaultPlan::none(), &[items(), orders()])
            .await
            .unwrap();
        for table in [items(), orders()] {
            assert_eq!(
                destination.table(&table).unwrap().rows,
                log.rows(&table),
                "{all}: {table}"
            );
        }
    }
}

/// What the log says beside a chunk is not kept without end: a large transaction has the chunk read again behind it.
#[tokio::test]
async fn a_large_transaction_beside_a_chunk() {
    let log = MemoryLog::new(1);
    log.create(&items(), schema());
    log.begin(0).put(&items(), row(&["000", "a", "b"])).commit();
    log.between(|log| {
        let mut tx = log.begin(0);
        for n in 0..70 {
            tx = tx.put(&items(), row(&[&format!("{n:03}"), &"x".repeat(1 << 20), "b"]));
        }
        tx.commit();
    });
    let log = log.with_backfill(vec![Pending::load(items())], 10);
    let destination = Memory::default();
    let ledger = log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
    // The log's rows, and all of them again by chunks.
    assert_eq!(ledger.accounts.read.rows, 2 * 70);
}

fn name(n: usize) -> String {
    format!("{n:05}")
}

/// A log with so many rows, whose chunks meet other transactions: it is busy.
fn busy_log(rows: usize) -> MemoryLog {
    let log = MemoryLog::new(1);
    log.create(&items(), schema());
    let all = (0..rows).fold(log.begin(0), |tx, n| tx.put(&items(), row(&[&name(n), "a", "b"])));
    all.commit();
    log.between(|log| log.begin(0).put(&items(), row(&["x", "a", "b"])).commit());
    log
}

/// While the log is busy, a chunk comes in slices; rows of which the log said something before their slice do not come.
#[tokio::test]
async fn rows_that_wait_for_their_slice_give_way_to_the_log() {
    let log = busy_log(2_500);
    log.behind(|log| {
        let all = (0..2_500).fold(log.begin(0), |tx, n| tx.delete(&items(), &key(&name(n))));
        all.commit();
    });
    let log = log.with_backfill(vec![Pending::load(items())], 3_000);
    let destination = Memory::default();
    let ledger = log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
    // The row of the window, a first slice, and the deletes.
    assert_eq!(ledger.accounts.read.rows, 1 + 1_000 + 2_500);
}

/// Whatever the log does to rows that wait for their slice: values that it does not bring, keys that change, rows that go and
/// come again, an emptied table.
#[tokio::test]
async fn chunks_in_slices_end_equal() {
    for seed in 0..6 {
        let log = busy_log(3_000);
        for chunk in 0..3 {
            let work = move |log: &MemoryLog| {
                let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed * 3 + chunk; 32]);
                for n in 0..120 {
                    let mut some = |most: u32| random.next_u32() % most;
                    let at = key(&name(some(3_200) as usize));
                    let tx = log.begin(0);
                    let tx = match some(16) {
                        0..6 => tx.put(&items(), row(&[&at[0], &format!("{n}"), "b"])),
                        6..12 => tx.delete(&items(), &at),
                        12..15 => {
                            let other = name(some(3_200) as usize);
                            tx.delete(&items(), &at)
                                .put(&items(), row(&[&other, &format!("{n}"), "c"]))
                        }
                        // These end the waiting: most of the work is done while there is some.
                        _ if seed % 3 == 0 || n < 100 => tx,
                        _ if some(8) == 0 => tx.truncate(&items()),
                        _ if some(2) == 0 => tx.update(&items(), &at, &[(1, Some("set".into()))]),
                        _ => tx.update(&items(), &at, &[(0, Some(name(some(3_200) as usize)))]),
                    };
                    tx.commit();
                }
            };
            match seed % 2 {
                0 => log.behind(work),
                _ => log.between(work),
            }
        }
        let log = log.with_backfill(vec![Pending::load(items())], 1_600);
        let destination = Memory::default();
        log_run(&log, &destination, &FaultPlan::none(), &[items()])
            .await
            .unwrap();
        let rows = destination.table(&items()).unwrap().rows;
        assert!(rows == log.rows(&items()), "seed {seed}");
    }
}

/// A chunk that is broken off between its slices is read again, whatever its rows have become.
#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_broken_off_between_its_slices() {
    every_fault(
        || {
            let log = busy_log(1_100);
            log.behind(|log| {
                log.begin(0).delete(&items(), &key(&name(1_050))).commit();
                log.begin(0).delete(&items(), &key(&name(50))).commit();
                log.begin(0).put(&items(), row(&[&name(1_060), "later", "b"])).commit();
            });
            let log = log.with_backfill(vec![Pending::load(items())], 2_000);
            (log, Memory::default())
        },
        |(log, d), faults| async move { log_run(&log, &d, &faults, &[items()]).await },
        |(log, d), case| assert!(d.table(&items()).unwrap().rows == log.rows(&items()), "{case}"),
    )
    .await;
}

/// Keys that the log could not complete are fetched some at a time, each of them once.
#[tokio::test]
async fn many_keys_are_fetched_in_parts() {
    let log = MemoryLog::new(1);
    log.create(&items(), schema());
    for n in 0..2_500 {
        log.begin(0).put(&items(), row(&[&name(n), "a", "b"])).commit();
    }
    let keys = (0..2_500).map(|n| key(&name(n))).collect();
    let log = log.with_backfill(vec![Pending::keys(items(), keys)], 10);
    let destination = Memory::default();
    log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
    let highs = log.watermarks().iter().filter(|w| w.starts_with("high")).count();
    assert_eq!(highs, 3);
}

#[tokio::test]
async fn the_source_is_acknowledged_only_up_to_what_is_durable() {
    let log = eventful_log();
    let destination = Memory::default();
    log_run(&log, &destination, &FaultPlan::none(), &[items(), orders()])
        .await
        .unwrap();
    assert_eq!(log.acknowledged(0).map(|p| p.0), Some("4".into()));
    let failing = eventful_log();
    // Every commit fails before it is carried out: nothing may be acknowledged.
    for at in 1..60 {
        let d = Memory::default();
        let log = failing.clone();
        let faults = FaultPlan::fail(at, When::Before, Looks::Fatal);
        let run = log_run(&log, &d, &faults, &[items(), orders()]).await;
        if run.is_err() {
            let stored = d.table(&items()).is_some_and(|t| !t.rows.is_empty());
            assert!(
                stored || log.acknowledged(0).is_none(),
                "acknowledged without data at call {at}"
            );
        } else {
            break;
        }
    }
}

/// What is asked while the log goes on is taken at any moment: a table anew, rows by key, an end of it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_are_heard_while_the_log_goes_on() {
    let ask = |log: &MemoryLog, id: &str, wish| log.requests().ask(Request { id: id.into(), wish });
    let log = eventful_log();
    let destination = Memory::default();
    // What is in the log already is not read: the destination has only what chunks bring, and what was wrong before.
    let mut wrong = log.rows(&items());
    wrong.insert(key("zz"), row(&["zz", "much", "x"]));
    destination.put(&items(), schema(), wrong);
    log.between(move |log| ask(log, "b", Wish::Read(Pending::resync(items()))));
    others_meanwhile(&log);
    log.between(move |log| {
        ask(
            log,
            "c",
            Wish::Read(Pending::keys(orders(), vec![key("0001"), key("nothing")])),
        )
    });
    log.between(move |log| ask(log, "b", Wish::Cancel(items())));
    let log = log.with_backfill(vec![Pending::load(orders())], 2);
    log_run(&log, &destination, &FaultPlan::none(), &[items(), orders()])
        .await
        .unwrap();
    for t in [items(), orders()] {
        assert_eq!(destination.table(&t).unwrap().rows, log.rows(&t), "{t}");
    }
    // An id that was taken is not taken again, so the cancellation under the name "b" did nothing.
    assert_eq!(log.requests().accepted(), ["b", "c"]);
}

/// Where a log stands at its destination.
async fn standing(destination: &Memory) -> BackfillPosition {
    let plan = destination.stored_plan("log").await.unwrap().expect("a plan").plan;
    let mut checkpoint = destination.checkpoint(&plan).await.unwrap();
    let state = checkpoint
        .remove(&PartitionId("log_0".into()))
        .expect("it stands somewhere");
    BackfillPosition::parse(&state.position.expect("a position")).unwrap()
}

/// A load that is given up leaves a part of its rows, and the position says so until all of them were read, whatever
/// happens between. Rows by key mend nothing but themselves.
#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_is_given_up_is_remembered_until_it_is_read_anew() {
    let ask = |log: &MemoryLog, id: &str, wish| log.requests().ask(Request { id: id.into(), wish });
    let log = MemoryLog::new(1);
    log.create(&items(), schema());
    for n in 0..10 {
        log.begin(0)
            .put(&items(), row(&[&format!("{n:04}"), "a", "b"]))
            .commit();
    }
    let destination = Memory::default();
    // Between the watermarks of the third chunk.
    log.between(|_| {});
    log.between(|_| {});
    log.between(move |log| ask(log, "a", Wish::Cancel(items())));
    let log = log.with_backfill(vec![Pending::load(items())], 2);
    log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(destination.table(&items()).unwrap().rows.len(), 4);
    let given_up = |rows| Cancelled {
        table: items(),
        load: true,
        rows,
        keys: 0,
    };
    let stands = standing(&destination).await;
    assert_eq!((stands.pending, stands.cancelled), (vec![], vec![given_up(4)]));
    // A row by its key, and a comparison that is given up: rows are missing yet.
    ask(&log, "b", Wish::Read(Pending::keys(items(), vec![key("0009")])));
    log.begin(0).put(&items(), row(&["0001", "x", "y"])).commit();
    log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(standing(&destination).await.cancelled, [given_up(4)]);
    ask(&log, "c", Wish::Read(Pending::resync(items())));
    log.between(move |log| ask(log, "d", Wish::Cancel(items())));
    log.begin(0).put(&items(), row(&["0001", "x", "z"])).commit();
    log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(standing(&destination).await.cancelled, [given_up(4)]);
    // Read anew, nothing is missing.
    ask(&log, "e", Wish::Read(Pending::resync(items())));
    log.begin(0).put(&items(), row(&["0001", "x", "w"])).commit();
    log_run(&log, &destination, &FaultPlan::none(), &[items()])
        .await
        .unwrap();
    assert_eq!(standing(&destination).await.cancelled, []);
    assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
}

/// However many requests are taken at once, whoever keeps them hears that each is safe. What is remembered of them stays
/// short.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_requests_each_is_accepted() {
    let log = MemoryLog::new(1);
    log.create(&items(), schema());
    let log = log.with_backfill(vec![Pending::load(items())], 2);
    let destination = Memory::default();
    let asked: Vec<String> = (0..100).map(|n| format!("r{n}")).collect();
    let ask = |id: &String| {
        let (id, wish) = (id.clone(), Wish::Cancel(items()));
        log.requests().ask(Request { id, wish });
    };
    let run = async || {
        log.begin(0).put(&items(), row(&["0001", "a", "b"])).commit();
        log_run(&log, &destination, &FaultPlan::none(), &[items()])
            .await
            .unwrap();
    };
    asked.iter().for_each(ask);
    run().await;
    assert_eq!(log.requests().accepted(), asked);
    ask(&"last".into());
    run().await;
    assert!(log.requests().accepted().contains(&"last".into()));
    assert_eq!(standing(&destination).await.taken.len(), 64);
}

#[derive(Debug, Clone)]
enum Step {
    Put(u8, u8),
    Update(u8, u8),
    Rekey(u8, u8, bool),
    Enter(u8, u8),
    Delete(u8),
    Truncate,
    Hide,
    Reveal,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..24u8, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
        6 => (0..24u8, any::<u8>()).prop_map(|(k, v)| Step::Update(k, v)),
        4 => (0..24u8, 0..24u8, any::<bool>()).prop_map(|(a, b, all)| Step::Rekey(a, b, all)),
        2 => (0..24u8, any::<u8>()).prop_map(|(k, v)| Step::Enter(k, v)),
        3 => (0..24u8).prop_map(Step::Delete),
        1 => Just(Step::Truncate),
        1 => Just(Step::Hide),
        2 => Just(Step::Reveal),
    ]
}

fn take(log: &MemoryLog, steps: &[Step]) {
    let k = |n: &u8| format!("{n:03}");
    for step in steps {
        match step {
            Step::Hide => log.hide(),
            Step::Reveal => log.reveal(),
            Step::Truncate => {
                // DDL takes an exclusive lock: nobody's chunk is behind it.
                log.reveal();
                log.begin(0).truncate(&items()).commit();
            }
            Step::Put(key, v) => log
                .begin(0)
                .put(&items(), row(&[&k(key), &v.to_string(), "big"]))
                .commit(),
            Step::Update(at, v) => {
                log.begin(0)
                    .update(&items(), &key(&k(at)), &[(1, Some(v.to_string()))])
                    .commit();
            }
            Step::Rekey(a, b, all) => {
                let mut set = vec![(0, Some(k(b)))];
                if *all {
                    set.extend([(1, Some("moved".into())), (2, None)]);
                }
                log.begin(0).update(&items(), &key(&k(a)), &set).commit();
            }
            Step::Enter(key, v) => log
                .begin(0)
                .enter(&items(), row(&[&k(key), &v.to_string(), "large"]), 2)
                .commit(),
            Step::Delete(at) => log.begin(0).delete(&items(), &key(&k(at))).commit(),
        }
    }
}

/// Histories per property; a soak has more.
fn histories() -> u32 {
    match std::env::var_os("SYNCTOOL_SOAK").is_some() {
        true => 4000,
        false => 200,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: histories(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens before, between the watermarks of any chunk, and right behind them: a backfill ends with equal tables.
    #[test]
    fn any_history_backfills_right(
        before in proptest::collection::vec(step(), 0..40),
        between in proptest::collection::vec(proptest::collection::vec(step(), 0..8), 0..8),
        behind in proptest::collection::vec(proptest::collection::vec(step(), 0..4), 0..8),
        chunk in 1..6usize,
        resync in any::<bool>(),
        joining in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let log = MemoryLog::new(1).joining(joining);
            log.create(&items(), schema());
            take(&log, &before);
            let destination = Memory::default();
            if resync {
                destination.put(&items(), schema(), some_rows(9));
            }
            for steps in between {
                log.between(move |log| {
                    take(log, &steps);
                });
            }
            for steps in behind {
                log.behind(move |log| {
                    take(log, &steps);
                });
            }
            // A hidden commit becomes visible at some time.
            for _ in 0..20 {
                log.between(|log| log.reveal());
            }
            // The log before the backfill is not read: the rows come by chunks alone.
            let pending = if resync { Pending::resync(items()) } else { Pending::load(items()) };
            let log = log.with_backfill(vec![pending], chunk);
            let ledger = log_run(&log, &destination, &FaultPlan::none(), &[items()]).await.unwrap();
            ledger.check().unwrap();
            assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
        });
    }

    /// Rows asked for by key are made equal whatever happens meanwhile, those that the source does not have included.
    #[test]
    fn any_history_mends_keys_right(
        before in proptest::collection::vec(step(), 0..40),
        between in proptest::collection::vec(proptest::collection::vec(step(), 0..8), 0..6),
        wrong in proptest::collection::btree_map(0..24u8, any::<u8>(), 0..24),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let log = MemoryLog::new(1);
            log.create(&items(), schema());
            take(&log, &before);
            let destination = Memory::default();
            let rows = wrong.iter().map(|(k, v)| {
                let k = format!("{k:03}");
                (key(&k), row(&[&k, &v.to_string(), "wrong"]))
            });
            destination.put(&items(), schema(), rows.collect());
            for steps in between {
                log.between(move |log| {
                    take(log, &steps);
                });
            }
            for _ in 0..20 {
                log.between(|log| log.reveal());
            }
            let all = (0..24u8).map(|k| key(&format!("{k:03}"))).collect();
            let log = log.with_backfill(vec![Pending::keys(items(), all)], 3);
            let ledger = log_run(&log, &destination, &FaultPlan::none(), &[items()]).await.unwrap();
            ledger.check().unwrap();
            assert_eq!(destination.table(&items()).unwrap().rows, log.rows(&items()));
        });
    }
}
