//! Runs whose rows pass a dedup, over many batches with a boundary after each: every call fails in turn, before and after it
//! was carried out, as a server that went away and as the end of the process, and the winner is that of all rows.

use crate::{Datastores, build};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::engine::{Engine, Report};
use synctool_core::error::Result;
use synctool_core::plan::Verify;
use synctool_core::query::Term;
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::source::Source;
use synctool_core::strategy::delta::{self, Deletes, DeltaRequest, StampedBy};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::hash::{self, Form, HashRequestOptions};
use synctool_core::strategy::table::{ColumnChoice, TableRequest};
use synctool_core::testing::faults::{FaultPlan, FaultyDestination, FaultySource, Looks, When};
use synctool_core::testing::memory::Memory;
use synctool_core::testing::memory_log::MemoryTables;
use synctool_core::testing::rows::{Rows, text_schema};
use synctool_core::testing::scenario::{options, row};
use synctool_transform::{DedupSpec, Keep, StageSpec};

#[derive(Debug, Clone, Copy)]
enum By {
    Delta,
    Full,
    Hash,
}

fn items() -> TableId {
    TableId::bare("items")
}

fn copies() -> TableId {
    TableId::bare("copies")
}

const ROWS: usize = 20;

/// The groups' best rows lie in different batches, the first and the last among them.
fn value(row: usize) -> usize {
    row * 7 % ROWS
}

/// id, k, v, at
fn rows() -> Rows {
    (0..ROWS)
        .map(|i| {
            let id = format!("{i:04}");
            let (k, v) = (format!("k{}", i % 4), format!("{:02}", value(i)));
            (vec![id.clone()], row(&[&id, &k, &v, "2026-01-01"]))
        })
        .collect()
}

fn winners(keep: Keep) -> Rows {
    let mut best: BTreeMap<usize, usize> = BTreeMap::new();
    for row in 0..ROWS {
        let best = best.entry(row % 4).or_insert(value(row));
        *best = match keep {
            Keep::Last => value(row).max(*best),
            Keep::First => value(row).min(*best),
        };
    }
    best.into_iter()
        .map(|(k, v)| (format!("k{k}"), format!("{v:02}")))
        .map(|(k, v)| (vec![k.clone()], row(&[&k, &v])))
        .collect()
}

fn table() -> TableRequest {
    TableRequest {
        columns: Some(vec![ColumnChoice::same("k"), ColumnChoice::same("v")]),
        key: Some(vec!["k".into()]),
        one_partition: true,
        ..TableRequest::new("p", items(), copies())
    }
}

fn delta_request() -> DeltaRequest {
    DeltaRequest {
        table: table(),
        cursor: Term::column("at"),
        stamped_by: StampedBy::App { lag: Duration::ZERO },
        joined: Vec::new(),
        zone: None,
        deletes: Deletes::Unseen,
        window: None,
        first: None,
        last: None,
        whole: true,
        bounded: false,
        bounds: None,
    }
}

/// One run; a commit is made at every boundary where it may be.
async fn run(from: &Memory, to: &Memory, by: By, keep: Keep, faults: &FaultPlan) -> Result<Report> {
    let source: Arc<dyn Source> = Arc::new(FaultySource(Arc::new(MemoryTables(from.clone())), faults.clone()));
    let destination: Arc<dyn Destination> = Arc::new(FaultyDestination(Arc::new(to.clone()), faults.clone()));
    let dedup = DedupSpec {
        order_by: Some("v".into()),
        keep,
        ..DedupSpec::last(["k"])
    };
    let chain = build(vec![StageSpec::Dedup(dedup)], &["k"], &Datastores::new()).await?;
    let mut engine = Engine::new(source.clone(), destination.clone());
    engine.stages = Arc::new(chain);
    engine.options = options();
    let engine = Arc::new(engine);
    let (source, destination, stages) = (&*source, &*destination, &*engine.stages);
    let draft = async {
        match by {
            By::Delta => {
                let request = delta_request();
                let column = delta::cursor_column(source, &request).await?;
                let window = delta::window(source, &request, &column, None).await?;
                delta::plan(source, destination, stages, &request, &column, window, Vec::new()).await
            }
            By::Full => {
                let request = FullRequest {
                    table: table(),
                    mode: FullMode::Auto,
                    deletes: true,
                    verify: Some(Verify::Hash),
                    remember: BTreeMap::new(),
                };
                full::plan(source, destination, stages, request).await
            }
            By::Hash => {
                let request = HashRequestOptions {
                    table: table(),
                    tracked: None,
                    form: Form::Auto,
                    deletes: true,
                    remember: BTreeMap::new(),
                };
                hash::plan(source, destination, stages, &request).await
            }
        }
    };
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await?;
    let report = engine.run(plan, resumed).await?;
    report.ledger.check()?;
    Ok(report)
}

/// What the destination has to begin with.
fn world(by: By) -> (Memory, Memory) {
    let (from, to) = (Memory::default(), Memory::default());
    let mut schema = text_schema(&["id", "k", "v", "at"], 1);
    schema.columns[1].nullable = false;
    from.put(&items(), schema, rows());
    from.set_clock("2026-01-02");
    if !matches!(by, By::Full) {
        let stale = |k: &str| (vec![k.to_string()], row(&[k, "-"]));
        to.put(
            &copies(),
            text_schema(&["k", "v"], 1),
            [stale("k0"), stale("k2")].into(),
        );
    }
    (from, to)
}

async fn every_fault(by: By) {
    for keep in [Keep::Last, Keep::First] {
        let found = |to: &Memory| to.table(&copies()).map(|t| t.rows).unwrap_or_default();
        let (from, to) = world(by);
        let none = FaultPlan::none();
        Box::pin(run(&from, &to, by, keep, &none))
            .await
            .expect("an undisturbed run succeeds");
        assert_eq!(found(&to), winners(keep), "undisturbed, {keep:?}");
        let calls = none.calls();
        assert!(calls > 15, "the matrix covers only {calls} calls");
        for at in 1..=calls + 1 {
            for when in [When::Before, When::After] {
                for looks in [Looks::Transient, Looks::Fatal] {
                    let case = format!("{keep:?}: call {at} of {calls} fails {when:?}, {looks:?}");
                    let (from, to) = world(by);
                    let faults = FaultPlan::fail(at, when, looks);
                    if Box::pin(run(&from, &to, by, keep, &faults)).await.is_err() {
                        Box::pin(run(&from, &to, by, keep, &FaultPlan::none()))
                            .await
                            .unwrap_or_else(|e| panic!("{case}: the next run failed: {e}"));
                    }
                    assert_eq!(found(&to), winners(keep), "{case}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_that_is_broken_off_forgets_no_winner() {
    every_fault(By::Delta).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_has_one_row_per_key_wherever_the_better_one_comes() {
    every_fault(By::Full).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_sees_one_row_per_key() {
    every_fault(By::Hash).await;
    let (from, to) = world(By::Hash);
    for changed in [4, 0] {
        let run = Box::pin(run(&from, &to, By::Hash, Keep::Last, &FaultPlan::none()))
            .await
            .unwrap();
        let compared = run.ledger.accounts.compared;
        assert_eq!(compared.source, 4, "{compared:?}");
        assert_eq!(compared.differing + compared.only_source, changed, "{compared:?}");
    }
}
