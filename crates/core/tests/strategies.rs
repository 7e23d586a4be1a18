//! Delta, hash and aggregate between tables in memory: every call of a run fails in turn, before and after it was
//! carried out, as a server that went away and as the end of the process; afterwards the destination is what it must be.

use async_trait::async_trait;
use proptest::prelude::*;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use synctool_core::engine::{Engine, Options, Report};
use synctool_core::error::{Result, code};
use synctool_core::plan::{Partition, ReadSpec, Slice};
use synctool_core::progress::Position;
use synctool_core::query::{Comparison, Condition, Filter, Join, JoinKind, Term, Test};
use synctool_core::retry::RetryPolicy;
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::Destination;
use synctool_core::source::{Extent, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo};
use synctool_core::stage::NoStages;
use synctool_core::strategy::aggregate::{self, AggregateRequest};
use synctool_core::strategy::cut::{self, By, Dimension};
use synctool_core::strategy::delta::{self, Deletes, DeltaRequest, StampedBy, Tombstone};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::hash::{self, Form, HashRequestOptions};
use synctool_core::strategy::table::{ColumnChoice, TableRequest, resolve};
use synctool_core::testing::faults::{FaultPlan, FaultyDestination, FaultySource, Looks, When};
use synctool_core::testing::memory::Memory;
use synctool_core::testing::memory_log::MemoryTables;
use synctool_core::testing::rows::{Row, Rows, text_schema};

fn items() -> TableId {
    TableId::bare("items")
}

fn copies() -> TableId {
    TableId::bare("copies")
}

/// id, user, amount, stamp, gone
fn schema() -> TableSchema {
    text_schema(&["id", "user", "amount", "stamp", "gone"], 1)
}

fn row(id: usize, user: &str, amount: usize, stamp: Option<&str>) -> (Vec<String>, Row) {
    let id = format!("{id:04}");
    let cells = vec![
        Some(id.clone()),
        Some(user.into()),
        Some(amount.to_string()),
        stamp.map(str::to_string),
        None,
    ];
    (vec![id], cells)
}

fn some_rows(n: usize) -> Rows {
    (0..n)
        .map(|i| row(i, &format!("u{}", i % 7), i, Some("2026-01-01")))
        .collect()
}

#[derive(Clone)]
struct World {
    source: Memory,
    destination: Memory,
}

impl World {
    fn new(source: Rows) -> Self {
        let world = World {
            source: Memory::default(),
            destination: Memory::default(),
        };
        world.source.put(&items(), schema(), source);
        world.source.set_clock("2026-01-02");
        world
    }

    fn change(&self, change: impl FnOnce(&mut Rows)) {
        let mut table = self.source.table(&items()).unwrap();
        change(&mut table.rows);
        self.source.put(&items(), table.schema, table.rows);
    }

    fn copy(&self) -> Rows {
        self.destination.table(&copies()).map(|t| t.rows).unwrap_or_default()
    }

    fn engine(&self, faults: &FaultPlan) -> Arc<Engine> {
        let source = Arc::new(FaultySource(
            Arc::new(MemoryTables(self.source.clone())),
            faults.clone(),
        ));
        let destination = Arc::new(FaultyDestination(Arc::new(self.destination.clone()), faults.clone()));
        let mut engine = Engine::new(source, destination);
        engine.options = Options {
            workers: 3,
            retry: RetryPolicy {
                attempts: 4,
                initial: Duration::from_millis(1),
                ..RetryPolicy::default()
            },
            load_commit_interval: Duration::ZERO,
            ..Options::default()
        };
        Arc::new(engine)
    }
}

fn table() -> TableRequest {
    TableRequest::new("p", items(), copies())
}

fn by_stamp(deletes: Deletes) -> DeltaRequest {
    DeltaRequest {
        table: table(),
        cursor: Term::column("stamp"),
        // Texts are no clock: here the application stamps.
        stamped_by: StampedBy::App { lag: Duration::ZERO },
        joined: Vec::new(),
        zone: None,
        deletes,
        window: None,
        first: None,
        last: None,
        whole: false,
        bounded: false,
        bounds: None,
    }
}

async fn delta_run(world: &World, faults: &FaultPlan, request: &DeltaRequest) -> Result<Report> {
    run_delta(&world.engine(faults), request).await
}

async fn run_delta(engine: &Arc<Engine>, request: &DeltaRequest) -> Result<Report> {
    let (source, destination) = (engine.source.clone(), engine.destination.clone());
    let draft = async {
        let remembered = destination.remembered("p").await?;
        let after = remembered.get(&delta::watermark_name(&request.cursor));
        let column = delta::cursor_column(&*source, request).await?;
        let window = delta::window(&*source, request, &column, after.map(String::as_str)).await?;
        delta::plan(
            &*source,
            &*destination,
            &*engine.stages,
            request,
            &column,
            window,
            Vec::new(),
        )
        .await
    };
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await?;
    engine.run(plan, resumed).await
}

async fn hash_run(world: &World, faults: &FaultPlan, tracked: Option<Vec<String>>) -> Result<Report> {
    let engine = world.engine(faults);
    let request = HashRequestOptions {
        table: table(),
        tracked,
        form: Form::Auto,
        deletes: true,
        remember: BTreeMap::new(),
    };
    let draft = hash::plan(&*engine.source, &*engine.destination, &*engine.stages, &request);
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await?;
    engine.run(plan, resumed).await
}

fn totals(deletes: Deletes) -> AggregateRequest {
    let sql = |name: &str, sql: &str| ColumnChoice {
        term: Some(Term::Sql(sql.into())),
        ..ColumnChoice::same(name)
    };
    let columns = vec![
        ColumnChoice::same("user"),
        sql("orders", "count(*)"),
        sql("total", "sum(amount)"),
    ];
    AggregateRequest {
        delta: DeltaRequest {
            table: TableRequest {
                group_by: vec!["user".into()],
                columns: Some(columns),
                ..table()
            },
            ..by_stamp(deletes)
        },
        row_key: vec!["id".into()],
    }
}

async fn aggregate_run(world: &World, faults: &FaultPlan) -> Result<Report> {
    aggregate_with(world, faults, &totals(Deletes::Unseen)).await
}

async fn aggregate_with(world: &World, faults: &FaultPlan, request: &AggregateRequest) -> Result<Report> {
    run_aggregate(&world.engine(faults), request).await
}

async fn run_aggregate(engine: &Arc<Engine>, request: &AggregateRequest) -> Result<Report> {
    let (source, destination) = (engine.source.clone(), engine.destination.clone());
    let draft = async {
        let remembered = destination.remembered("p").await?;
        aggregate::plan(&*source, &*destination, &*engine.stages, request, &remembered).await
    };
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await?;
    engine.run(plan, resumed).await
}

/// user → (orders, total), computed from all rows.
fn recomputed(world: &World) -> Rows {
    let mut groups: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for row in world.source.table(&items()).unwrap().rows.values() {
        let group = groups.entry(row[1].clone().unwrap()).or_default();
        group.0 += 1;
        group.1 += row[2].as_ref().unwrap().parse::<usize>().unwrap();
    }
    groups
        .into_iter()
        .map(|(user, (n, sum))| {
            (
                vec![user.clone()],
                vec![Some(user), Some(n.to_string()), Some(sum.to_string())],
            )
        })
        .collect()
}

async fn every_fault<F, Fut>(world: impl AsyncFn() -> World, run: F, check: impl Fn(&World, &str))
where
    F: Fn(World, FaultPlan) -> Fut,
    Fut: Future<Output = Result<Report>>,
{
    let undisturbed = FaultPlan::none();
    let w = Box::pin(world()).await;
    let report = Box::pin(run(w.clone(), undisturbed.clone()))
        .await
        .expect("an undisturbed run succeeds");
    report.ledger.check().unwrap();
    check(&w, "undisturbed");
    let calls = undisturbed.calls();
    assert!(calls > 15, "the matrix covers only {calls} calls");
    for at in 1..=calls + 1 {
        for when in [When::Before, When::After] {
            for looks in [Looks::Transient, Looks::Fatal] {
                let case = format!("call {at} of {calls} fails {when:?}, {looks:?}");
                let w = Box::pin(world()).await;
                let faults = FaultPlan::fail(at, when, looks);
                if let Err(e) = Box::pin(run(w.clone(), faults.clone())).await {
                    assert!(faults.calls() >= at, "{case}: failed without a fault: {e}");
                    Box::pin(run(w.clone(), FaultPlan::none()))
                        .await
                        .unwrap_or_else(|e| panic!("{case}: the next run failed: {e}"));
                }
                check(&w, &case);
            }
        }
    }
}

/// A world whose first delta is done, with changes since.
async fn changed_since(deletes: Deletes) -> World {
    let world = World::new(some_rows(8));
    delta_run(&world, &FaultPlan::none(), &by_stamp(deletes)).await.unwrap();
    world.change(|rows| {
        for i in [3, 5, 30] {
            rows.extend([row(i, "changed", 1, Some("2026-01-03"))]);
        }
        rows.extend([row(31, "without a stamp", 1, None)]);
        rows.remove(&vec!["0007".to_string()]);
    });
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delta_with_deletes_by_key() {
    every_fault(
        || changed_since(Deletes::AntiJoin),
        |w, faults| async move { delta_run(&w, &faults, &by_stamp(Deletes::AntiJoin)).await },
        |w, case| assert_eq!(w.copy(), w.source.table(&items()).unwrap().rows, "{case}"),
    )
    .await;
}

#[tokio::test]
async fn a_delta_reads_what_changed_and_nothing_else() {
    let world = changed_since(Deletes::Unseen).await;
    let report = delta_run(&world, &FaultPlan::none(), &by_stamp(Deletes::Unseen))
        .await
        .unwrap();
    let ledger = report.ledger;
    // Rows with the last run's largest stamp are read again, because the application stamps: 8 of them, unchanged.
    assert_eq!((ledger.applied.inserted, ledger.applied.updated), (2, 2));
    assert!(
        world.copy().contains_key(&vec!["0007".to_string()]),
        "a delta does not see deletes"
    );
    assert_eq!(
        world.destination.remembered("p").await.unwrap()["delta:stamp"],
        "2026-01-03"
    );
}

/// A value between the start and the end of an outer level that the source does not have, the destination may have.
#[tokio::test]
async fn single_values_leave_nothing_of_their_range_out() {
    let world = World::new(some_rows(8));
    let source = MemoryTables(world.source.clone());
    let resolved = resolve(&source, &world.destination, &NoStages, &table()).await.unwrap();
    let dimension = |by: By, ends: [Option<&str>; 2]| Dimension {
        term: Term::column("user"),
        destination: Some(Term::column("user")),
        name: "user".into(),
        ty: ColumnType::Text { max: None },
        nullable: false,
        by,
        start: ends[0].map(Into::into),
        end: ends[1].map(Into::into),
        immutable: false,
    };
    let levels = [
        vec![dimension(By::Whole, [Some("u2"), Some("u5")])],
        vec![dimension(By::Values, [None, None])],
    ];
    let pieces = cut::by_dimensions(&source, &resolved, &levels, cut::MAX_PARTITIONS, &mut Vec::new()).await;
    let pieces = pieces.unwrap().unwrap();
    let meets = |test: &Test, value: &str| match test {
        Test::In(values) => values.iter().any(|v| v == value),
        Test::NotIn(values) => values.iter().all(|v| v != value),
        Test::Range { lower, upper } => {
            lower.as_deref().is_none_or(|l| l <= value) && upper.as_deref().is_none_or(|u| value < u)
        }
        other => panic!("{other:?}"),
    };
    for (value, times) in [("u1", 0), ("u2", 1), ("u4", 1), ("u4 and more", 1), ("u5", 0)] {
        let holding = pieces
            .iter()
            .filter(|p| p.source.conditions.iter().all(|c| meets(&c.test, value)));
        assert_eq!(holding.count(), times, "{value}");
    }
}

/// A partition under the name of one that is done is done, too.
#[tokio::test]
async fn values_that_look_alike_are_partitions_of_their_own() {
    let users = ["1 a", "1Ta", "5", "5+00", "2024-01-01 10:00:00", "2024-01-01T10:00:00"];
    let rows = (0..).zip(users).map(|(i, user)| row(i, user, i, Some("2026-01-01")));
    let world = World::new(rows.collect());
    let source = MemoryTables(world.source.clone());
    let resolved = resolve(&source, &world.destination, &NoStages, &table()).await.unwrap();
    let dimension = Dimension {
        term: Term::column("user"),
        destination: None,
        name: "user".into(),
        ty: ColumnType::Text { max: None },
        nullable: false,
        by: By::Values,
        start: None,
        end: None,
        immutable: false,
    };
    let levels = [vec![dimension]];
    let pieces = cut::by_dimensions(&source, &resolved, &levels, cut::MAX_PARTITIONS, &mut Vec::new()).await;
    let mut labels: Vec<String> = pieces.unwrap().unwrap().into_iter().map(|p| p.label).collect();
    let all = labels.len();
    labels.sort_unstable();
    labels.dedup();
    assert_eq!((labels.len(), all), (users.len() + 1, users.len() + 1), "{labels:?}");
}

/// Rows that only the joined table has are in no range of the key.
#[tokio::test]
async fn a_join_with_rows_of_its_own_is_not_cut_by_the_key() {
    let world = World::new(some_rows(100));
    let source = MemoryTables(world.source.clone());
    for (kind, whole) in [
        (JoinKind::Inner, false),
        (JoinKind::Left, false),
        (JoinKind::Right, true),
        (JoinKind::Full, true),
    ] {
        let join = Join {
            table: items(),
            alias: Some("other".into()),
            kind,
            on: "true".into(),
        };
        let request = FullRequest {
            table: TableRequest {
                joins: vec![join],
                ..table()
            },
            mode: FullMode::Auto,
            deletes: true,
            verify: None,
            remember: BTreeMap::new(),
        };
        let plan = full::plan(&source, &world.destination, &NoStages, request)
            .await
            .unwrap();
        assert_eq!(plan.partitions().count() == 1, whole, "{kind:?}");
    }
}

/// Nothing would ever come behind it, and the row that has it is read by every window.
#[tokio::test]
async fn an_infinite_stamp_is_no_watermark() {
    let world = World::new(Rows::new());
    let mut dated = schema();
    dated.columns[3].ty = ColumnType::Date;
    let mut rows = some_rows(3);
    rows.extend([row(9, "u", 1, Some("infinity"))]);
    world.source.put(&items(), dated, rows);
    let source = MemoryTables(world.source.clone());
    let request = by_stamp(Deletes::Unseen);
    let column = delta::cursor_column(&source, &request).await.unwrap();
    for (after, lower) in [
        (None, None),
        (Some("2025-12-31"), Some("2025-12-31")),
        // As older versions remembered it.
        (Some("infinity"), None),
    ] {
        let window = delta::window(&source, &request, &column, after).await.unwrap();
        assert_eq!(window.watermark.as_deref(), Some("2026-01-01"), "{after:?}");
        assert_eq!(
            (window.lower.as_deref(), window.upper.as_deref()),
            (lower, None),
            "{after:?}"
        );
    }
}

#[tokio::test]
async fn a_tombstone_deletes() {
    let world = World::new(some_rows(5));
    let request = by_stamp(Deletes::Tombstone(Tombstone {
        column: "gone".into(),
        value: None,
    }));
    delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    world.change(|rows| {
        let (key, mut cells) = row(2, "u", 1, Some("2026-01-04"));
        cells[4] = Some("yes".into());
        rows.insert(key, cells);
    });
    let report = delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    assert_eq!(report.ledger.applied.deleted, 1);
    assert!(!world.copy().contains_key(&vec!["0002".to_string()]));
}

#[tokio::test]
async fn a_row_that_stops_matching_the_filter_is_deleted() {
    let world = World::new(some_rows(14));
    let mut request = by_stamp(Deletes::Unseen);
    request.table.filters = vec![Filter::Test(Condition {
        term: Term::column("user"),
        test: Test::Compare(Comparison::Equal, "u1".into()),
    })];
    delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    assert_eq!(world.copy().len(), 2, "rows 1 and 8");
    world.change(|rows| rows.extend([row(1, "u2", 1, Some("2026-01-05")), row(3, "u1", 1, Some("2026-01-05"))]));
    delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    let copy = world.copy();
    let ids: Vec<&str> = copy.keys().map(|k| k[0].as_str()).collect();
    assert_eq!(ids, ["0003", "0008"]);
    assert_eq!(
        world.destination.table(&copies()).unwrap().schema.columns.len(),
        5,
        "no helper column is written"
    );
}

/// A window that the application's stamps leave open takes in a row that changes while it is read.
#[tokio::test]
async fn a_row_that_changes_between_two_reads_is_not_taken_for_one_that_left() {
    let world = World::new(some_rows(14));
    world.change(|rows| rows.extend([row(20, "u1", 20, Some("2026-01-03"))]));
    let mut request = by_stamp(Deletes::Unseen);
    request.table.filters = vec![Filter::Test(Condition {
        term: Term::column("user"),
        test: Test::Compare(Comparison::Equal, "u1".into()),
    })];
    delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    world.change(|rows| rows.extend([row(1, "u2", 1, Some("2026-01-05"))]));
    // Its readers have a snapshot each, and somebody changes rows before the second one is opened.
    let (opened, changing) = (AtomicUsize::new(0), world.clone());
    let source = Busy {
        tables: MemoryTables(world.source.clone()),
        before_read: move || {
            if opened.fetch_add(1, Ordering::SeqCst) == 1 {
                changing.change(|rows| rows.extend([row(8, "u1", 99, Some("2026-01-06"))]));
            }
        },
    };
    let engine = Arc::new(Engine::new(Arc::new(source), Arc::new(world.destination.clone())));
    run_delta(&engine, &request).await.unwrap();
    let ids = |world: &World| world.copy().keys().map(|k| k[0].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&world), ["0008", "0020"], "row 1 left, row 8 did not");
    delta_run(&world, &FaultPlan::none(), &request).await.unwrap();
    assert_eq!(world.copy()[&vec!["0008".to_string()]][2].as_deref(), Some("99"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hash_run_makes_equal() {
    every_fault(
        async || {
            let world = World::new(some_rows(6));
            let mut there = some_rows(7);
            there.remove(&vec!["0002".to_string()]);
            there.extend([row(4, "other", 9, None)]);
            world.destination.put(&copies(), schema(), there);
            world
        },
        |w, faults| async move { hash_run(&w, &faults, None).await },
        |w, case| assert_eq!(w.copy(), w.source.table(&items()).unwrap().rows, "{case}"),
    )
    .await;
}

#[tokio::test]
async fn a_hash_run_says_what_it_found_and_reads_only_that() {
    let world = World::new(some_rows(40));
    let mut there = some_rows(42);
    there.remove(&vec!["0007".to_string()]);
    there.extend([row(9, "other", 9, None)]);
    world.destination.put(&copies(), schema(), there);
    let ledger = hash_run(&world, &FaultPlan::none(), None).await.unwrap().ledger;
    let c = ledger.accounts.compared;
    assert_eq!((c.differing, c.only_source, c.only_destination), (1, 1, 2));
    assert_eq!(
        (ledger.applied.inserted, ledger.applied.updated, ledger.applied.deleted),
        (1, 1, 2)
    );
    assert_eq!(ledger.accounts.read.rows, 4);
}

#[tokio::test]
async fn an_untracked_column_never_causes_a_write() {
    let world = World::new(some_rows(10));
    hash_run(&world, &FaultPlan::none(), None).await.unwrap();
    world.change(|rows| {
        for cells in rows.values_mut() {
            cells[2] = Some("77".into());
        }
    });
    let tracked = Some(vec!["user".into(), "stamp".into()]);
    let ledger = hash_run(&world, &FaultPlan::none(), tracked.clone())
        .await
        .unwrap()
        .ledger;
    assert_eq!(ledger.applied.written, 0);
    world.change(|rows| rows.get_mut(&vec!["0003".to_string()]).unwrap()[1] = Some("moved".into()));
    let ledger = hash_run(&world, &FaultPlan::none(), tracked).await.unwrap().ledger;
    assert_eq!(ledger.applied.updated, 1);
    assert_eq!(
        world.copy()[&vec!["0003".to_string()]][2].as_deref(),
        Some("77"),
        "such a row is written whole"
    );
}

#[tokio::test]
async fn mass_deletes_are_refused_before_the_first_one() {
    let world = World::new(some_rows(100));
    world.destination.put(&copies(), schema(), some_rows(2000));
    let e = hash_run(&world, &FaultPlan::none(), None).await.unwrap_err();
    assert_eq!(e.code(), code::MASS_DELETE);
    assert_eq!(world.copy().len(), 2000, "nothing was deleted");
    let empty = World::new(Rows::new());
    empty.destination.put(&copies(), schema(), some_rows(5));
    assert_eq!(
        hash_run(&empty, &FaultPlan::none(), None).await.unwrap_err().code(),
        code::MASS_DELETE
    );
    assert_eq!(empty.copy().len(), 5);
}

/// Ends a run at every call, and empties the source before the next one goes on.
async fn emptied_in_between<F, Fut>(world: impl AsyncFn() -> World, run: F)
where
    F: Fn(World, FaultPlan) -> Fut,
    Fut: Future<Output = Result<Report>>,
{
    let mut refused = 0;
    for at in 1.. {
        for when in [When::Before, When::After] {
            let case = format!("call {at} fails {when:?}");
            let w = Box::pin(world()).await;
            let rows = w.source.table(&items()).unwrap().rows;
            let faults = FaultPlan::fail(at, when, Looks::Fatal);
            let ended = Box::pin(run(w.clone(), faults.clone())).await;
            let before = w.copy();
            w.change(Rows::clear);
            match Box::pin(run(w.clone(), FaultPlan::none())).await {
                // All was deleted before; the run only had to end.
                Ok(_) => assert!(ended.is_err(), "{case}"),
                Err(e) => {
                    assert_eq!(e.code(), code::MASS_DELETE, "{case}: {e}");
                    refused += 1;
                }
            }
            assert_eq!(w.copy(), before, "{case}: nothing was deleted");
            w.change(|all| all.extend(rows));
            Box::pin(run(w.clone(), FaultPlan::none()))
                .await
                .unwrap_or_else(|e| panic!("{case}: the rows are back: {e}"));
            if faults.calls() < at {
                ended.expect("nothing failed");
                assert!(refused > at, "{refused} of {at} calls");
                return;
            }
        }
    }
}

/// What an earlier process found is not what this one would delete: it counts for itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_goes_on_judges_the_deletes_it_finds() {
    emptied_in_between(
        async || {
            let world = World::new(some_rows(20));
            world.destination.put(&copies(), schema(), some_rows(23));
            world
        },
        |w, faults| async move { hash_run(&w, &faults, None).await },
    )
    .await;
    emptied_in_between(
        || changed_since(Deletes::AntiJoin),
        |w, faults| async move { delta_run(&w, &faults, &by_stamp(Deletes::AntiJoin)).await },
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_follows_rows_that_move() {
    every_fault(
        async || {
            let world = World::new(some_rows(7));
            aggregate_run(&world, &FaultPlan::none()).await.unwrap();
            world.change(|rows| {
                // One moves to another group, the only row of a group leaves it, one is new.
                rows.extend([row(1, "u2", 100, Some("2026-01-03"))]);
                rows.extend([row(6, "new group", 7, Some("2026-01-03"))]);
                rows.extend([row(40, "u0", 5, Some("2026-01-03"))]);
            });
            world
        },
        |w, faults| async move { aggregate_run(&w, &faults).await },
        |w, case| assert_eq!(w.copy(), recomputed(w), "{case}"),
    )
    .await;
}

/// The rows that the key map knows.
fn mapped(world: &World) -> Vec<Vec<String>> {
    let names = world.destination.names();
    let map = names.iter().find(|t| t.name.starts_with("_synctool_keys_"));
    let map = map.and_then(|t| world.destination.table(t));
    map.map(|t| t.rows.into_keys().collect()).unwrap_or_default()
}

fn keys(world: &World) -> Vec<Vec<String>> {
    world.source.table(&items()).unwrap().rows.into_keys().collect()
}

/// Rows that are gone leave their groups, and the map; a group that loses all of them goes.
#[tokio::test(flavor = "multi_thread")]
async fn an_aggregate_loses_rows_that_are_gone() {
    every_fault(
        async || {
            let world = World::new(some_rows(20));
            aggregate_with(&world, &FaultPlan::none(), &totals(Deletes::AntiJoin))
                .await
                .unwrap();
            world.change(|rows| {
                rows.retain(|_, cells| cells[1].as_deref() != Some("u3"));
                rows.remove(&vec!["0005".to_string()]);
                rows.extend([row(1, "u2", 100, Some("2026-01-03"))]);
            });
            world
        },
        |w, faults| async move { aggregate_with(&w, &faults, &totals(Deletes::AntiJoin)).await },
        |w, case| {
            assert_eq!(w.copy(), recomputed(w), "{case}");
            assert_eq!(mapped(w), keys(w), "{case}");
        },
    )
    .await;
}

/// A run that is resumed finds rows that went after it had looked for such; their groups are corrected by the next one.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_go_while_a_run_is_interrupted_are_not_forgotten() {
    every_fault(
        async || {
            // The last one alone is in the window of the next run.
            let mut rows = some_rows(20);
            rows.extend([row(50, "last", 1, Some("2026-01-02"))]);
            let world = World::new(rows);
            aggregate_with(&world, &FaultPlan::none(), &totals(Deletes::AntiJoin))
                .await
                .unwrap();
            world.change(|rows| drop(rows.remove(&vec!["0005".to_string()])));
            world
        },
        |w, faults| async move {
            let done = aggregate_with(&w, &faults, &totals(Deletes::AntiJoin)).await;
            w.change(|rows| drop(rows.remove(&vec!["0009".to_string()])));
            let report = done?;
            aggregate_with(&w, &FaultPlan::none(), &totals(Deletes::AntiJoin)).await?;
            Ok(report)
        },
        |w, case| {
            assert_eq!(w.copy(), recomputed(w), "{case}");
            assert_eq!(mapped(w), keys(w), "{case}");
        },
    )
    .await;
}

/// Groups that go are judged together with those that the run had deleted before it was interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn groups_that_an_interrupted_run_deleted_are_not_missed_by_the_guard() {
    every_fault(
        async || {
            let world = World::new(some_rows(14));
            aggregate_run(&world, &FaultPlan::none()).await.unwrap();
            world.change(|rows| rows.extend((0..14).map(|i| row(i, "u0", i, Some("2026-01-03")))));
            world
        },
        |w, faults| async move { aggregate_run(&w, &faults).await },
        |w, case| {
            assert_eq!(w.copy(), recomputed(w), "{case}");
            assert_eq!(w.copy().len(), 1, "{case}");
        },
    )
    .await;
}

/// A run to which the source has no rows at two reads, the first of them the `from`th.
async fn aggregate_without_rows(world: &World, from: usize, request: &AggregateRequest) -> Result<Report> {
    let rows = world.source.table(&items()).unwrap().rows;
    let (reads, changing, back) = (AtomicUsize::new(1), world.clone(), rows.clone());
    let source = Busy {
        tables: MemoryTables(world.source.clone()),
        before_read: move || match reads.fetch_add(1, Ordering::SeqCst) {
            read if read == from => changing.change(Rows::clear),
            read if read == from + 2 => changing.change(|all| all.extend(back.clone())),
            _ => {}
        },
    };
    let mut engine = Arc::into_inner(world.engine(&FaultPlan::none())).unwrap();
    engine.source = Arc::new(source);
    let report = run_aggregate(&Arc::new(engine), request).await;
    world.change(|all| all.extend(rows));
    report
}

/// A table that is emptied and filled again, with the stamps that its rows had, while a run looks for rows that are gone:
/// they stay in the key map, whether the run looked for them itself or goes on where another one ended.
#[tokio::test]
async fn rows_that_are_away_for_a_moment_are_not_forgotten() {
    let request = totals(Deletes::AntiJoin);
    let all = std::env::var_os("SYNCTOOL_SOAK").is_some();
    for at in 0.. {
        let mut calls = 0;
        for from in 1..=6 {
            // Every other pair of a call and a read; a soak has all.
            if !all && at > 0 && (at % 2 == 0) != (from % 2 == 0) {
                continue;
            }
            let case = format!("call {at} fails, no rows from read {from} on");
            // The last one alone is in the window of the next run.
            let mut rows = some_rows(20);
            rows.extend([row(50, "last", 1, Some("2026-01-02"))]);
            let world = World::new(rows);
            aggregate_with(&world, &FaultPlan::none(), &request).await.unwrap();
            if at > 0 {
                let faults = FaultPlan::fail(at, When::After, Looks::Fatal);
                let _ = aggregate_with(&world, &faults, &request).await;
                calls = faults.calls();
            }
            aggregate_without_rows(&world, from, &request).await.expect(&case);
            aggregate_with(&world, &FaultPlan::none(), &request).await.expect(&case);
            assert_eq!(world.copy(), recomputed(&world), "{case}");
            assert_eq!(mapped(&world), keys(&world), "{case}");
        }
        if calls < at {
            return;
        }
    }
}

/// The guard stops a run before the first group goes and before a row is forgotten; it goes on when the rows are back.
#[tokio::test]
async fn an_aggregate_is_not_emptied_in_passing() {
    let world = World::new(some_rows(20));
    let request = totals(Deletes::AntiJoin);
    aggregate_with(&world, &FaultPlan::none(), &request).await.unwrap();
    let groups = world.copy();
    let rows = world.source.table(&items()).unwrap().rows;
    world.change(Rows::clear);
    for _ in 0..2 {
        let e = aggregate_with(&world, &FaultPlan::none(), &request).await.unwrap_err();
        assert_eq!(e.code(), code::MASS_DELETE);
        assert_eq!(world.copy(), groups, "nothing was deleted");
    }
    world.change(|all| all.extend(rows));
    let engine = world.engine(&FaultPlan::none());
    let stored = engine.plan("p", &serde_json::Value::Null, async {
        unreachable!("the plan is there")
    });
    let (mut plan, resumed) = stored.await.unwrap();
    plan.guard.allow = true;
    engine.run(plan, resumed).await.unwrap();
    assert_eq!((world.copy(), mapped(&world)), (groups, keys(&world)));
}

/// Where most rows are gone and every group keeps some, no group goes, but all become smaller: the guard stops the run before
/// the first one does, however often it goes on, and no row is forgotten.
#[tokio::test]
async fn an_aggregate_does_not_shrink_in_passing() {
    let world = World::new(some_rows(3000));
    let request = totals(Deletes::AntiJoin);
    aggregate_with(&world, &FaultPlan::none(), &request).await.unwrap();
    let (groups, known) = (world.copy(), mapped(&world));
    world.change(|rows| rows.retain(|_, cells| cells[0].as_deref() < Some("1500")));
    for _ in 0..2 {
        let e = aggregate_with(&world, &FaultPlan::none(), &request).await.unwrap_err();
        assert_eq!(e.code(), code::MASS_DELETE, "{e}");
        assert_eq!((world.copy(), mapped(&world)), (groups.clone(), known.clone()));
    }
    let engine = world.engine(&FaultPlan::none());
    let stored = engine.plan("p", &serde_json::Value::Null, async {
        unreachable!("the plan is there")
    });
    let (mut plan, resumed) = stored.await.unwrap();
    plan.guard.allow = true;
    engine.run(plan, resumed).await.unwrap();
    assert_eq!((world.copy(), mapped(&world)), (recomputed(&world), keys(&world)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_aggregate_over_groups_of_unknown_age() {
    every_fault(
        async || {
            let world = World::new(some_rows(5));
            let mut stale = recomputed(&world);
            stale.insert(
                vec!["nobody".into()],
                vec![Some("nobody".into()), Some("1".into()), Some("1".into())],
            );
            stale.insert(
                vec!["u1".into()],
                vec![Some("u1".into()), Some("9".into()), Some("9".into())],
            );
            world
                .destination
                .put(&copies(), text_schema(&["user", "orders", "total"], 1), stale);
            world
        },
        |w, faults| async move { aggregate_run(&w, &faults).await },
        |w, case| assert_eq!(w.copy(), recomputed(w), "{case}"),
    )
    .await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn an_aggregate_equals_a_full_recomputation(
        rounds in prop::collection::vec(prop::collection::vec((0usize..20, 0usize..5, 0usize..100), 0..8), 1..5),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let world = World::new(some_rows(7));
            aggregate_run(&world, &FaultPlan::none()).await.unwrap();
            for (n, round) in rounds.iter().enumerate() {
                let stamp = format!("2026-02-{:02}", n + 1);
                world.change(|rows| {
                    for (id, user, amount) in round {
                        rows.extend([row(*id, &format!("u{user}"), *amount, Some(&stamp))]);
                    }
                });
                aggregate_run(&world, &FaultPlan::none()).await.unwrap();
                assert_eq!(world.copy(), recomputed(&world));
            }
        });
    }
}

/// A row is put into a group, or taken away; without a stamp if `stamped` is false.
#[derive(Debug, Clone)]
struct Happening {
    id: usize,
    group: Option<usize>,
    stamped: bool,
}

fn happening() -> impl Strategy<Value = Happening> {
    let group = prop::option::weighted(0.6, 0usize..3);
    (0usize..6, group, prop::bool::weighted(0.9)).prop_map(|(id, group, stamped)| Happening { id, group, stamped })
}

/// A source of which something may be done to its tables before every read.
struct Busy<F> {
    tables: MemoryTables,
    before_read: F,
}

fn second(n: usize) -> String {
    format!("2026-01-02 00:{:02}:{:02}", n / 60, n % 60)
}

#[async_trait]
impl<F: Fn() + Send + Sync> Source for Busy<F> {
    fn engine(&self) -> &'static str {
        self.tables.engine()
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        self.tables.tables(schema).await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.tables.describe(table).await
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        self.tables.describe_query(read).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        self.tables.extent(read, term, slice).await
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        self.tables.counting(read, conditions).await
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        self.tables.settled(table, column, zone, margin).await
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        self.tables.slices(read, request).await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        (self.before_read)();
        self.tables.open(read, partition, after, context).await
    }
}

/// One run in a busy world: the delta of an aggregate, or a comparison of all groups. `now` counts seconds of the day.
async fn busy_run(
    world: &World,
    now: &Arc<AtomicUsize>,
    happenings: Vec<Happening>,
    request: &AggregateRequest,
    compare: bool,
) {
    let mut engine = Arc::into_inner(world.engine(&FaultPlan::none())).unwrap();
    let (changing, now, coming) = (world.clone(), now.clone(), Mutex::new(VecDeque::from(happenings)));
    engine.source = Arc::new(Busy {
        tables: MemoryTables(world.source.clone()),
        before_read: move || {
            let Some(Happening { id, group, stamped }) = coming.lock().unwrap().pop_front() else {
                return;
            };
            let now = now.fetch_add(1, Ordering::SeqCst) + 1;
            let stamp = second(now);
            changing.change(|rows| match group {
                Some(group) => rows.extend([row(id, &format!("u{group}"), now, stamped.then_some(&stamp))]),
                None => drop(rows.remove(&vec![format!("{id:04}")])),
            });
        },
    });
    let engine = Arc::new(engine);
    let draft = async {
        let remembered = engine.destination.remembered("p").await?;
        let (source, destination, stages) = (&*engine.source, &*engine.destination, &*engine.stages);
        if !compare {
            return aggregate::plan(source, destination, stages, request, &remembered).await;
        }
        let options = HashRequestOptions {
            table: request.delta.table.clone(),
            tracked: None,
            form: Form::Auto,
            deletes: true,
            remember: BTreeMap::new(),
        };
        let mut plan = hash::plan(source, destination, stages, &options).await?;
        aggregate::written_by_another(&mut plan, &remembered);
        Ok(plan)
    };
    let (plan, resumed) = engine.plan("p", &serde_json::Value::Null, draft).await.unwrap();
    engine.run(plan, resumed).await.unwrap();
}

/// Histories of a busy table; a soak has more.
fn histories() -> u32 {
    match std::env::var_os("SYNCTOOL_SOAK").is_some() {
        true => 3000,
        false => 150,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(histories()))]

    /// Rows come, change, move and go before every single read of runs, the first one included, all of them later than
    /// what has settled; once nothing happens any more, one run makes all groups right.
    #[test]
    fn whatever_happens_beside_runs_of_an_aggregate_is_seen(
        rounds in prop::collection::vec((prop::collection::vec(happening(), 0..10), prop::bool::weighted(0.4)), 1..6),
        margin in 0usize..4,
        by_app in any::<bool>(),
        known in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut schema = schema();
            schema.columns[3].ty = ColumnType::Timestamp;
            let world = World::new(Rows::new());
            let rows = (0..5).map(|i| row(i, &format!("u{}", i % 3), i, Some(&second(i)))).collect();
            world.source.put(&items(), schema, rows);
            let mut request = totals(Deletes::AntiJoin);
            request.delta.table.guard.allow = true;
            if !by_app {
                request.delta.stamped_by = StampedBy::Database { margin: Duration::ZERO };
            }
            if known {
                world.destination.put(&copies(), text_schema(&["user", "orders", "total"], 1), recomputed(&world));
            }
            let now = Arc::new(AtomicUsize::new(10));
            for (n, (happenings, compare)) in rounds.into_iter().enumerate() {
                world.source.set_clock(&second(now.load(Ordering::SeqCst).saturating_sub(margin)));
                busy_run(&world, &now, happenings, &request, compare && n > 0).await;
            }
            world.source.set_clock(&second(now.load(Ordering::SeqCst) + 1));
            busy_run(&world, &now, Vec::new(), &request, false).await;
            assert_eq!(world.copy(), recomputed(&world));
            assert_eq!(mapped(&world), keys(&world));
        });
    }
}
