//! The conformance suite: the same cases for every destination, and for the source that reads it back.
//!
//! A connector's test opens its datastore, fills in a [`Subject`] and calls [`loads`], [`fences`], [`memory`], [`changes`],
//! [`crashes`] and [`types`]. Each case uses tables of its own and panics with its name where a promise is broken.

use super::faults::{FaultPlan, FaultyDestination, FaultySource, Looks, When};
use super::memory::Memory;
use super::memory_log::{MemoryLog, MemoryTables};
use super::rows::{Row, Rows, batch, key_of, texts};
use super::scenario::{eventful_log, full_request, options, others_meanwhile, row, schema, some_rows};
use crate::backfill::Pending;
use crate::budget::Hold;
use crate::change::{ChangeBatch, Event};
use crate::engine::{Engine, Report};
use crate::error::{Result, code};
use crate::ledger::{Accounts, Ledger, Tally};
use crate::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy, Verify, Work,
};
use crate::progress::{Advance, Generation, Position};
use crate::schema::{Column, ColumnType, TableId, TableSchema};
use crate::sink::{Destination, Fidelity, Sink};
use crate::source::{ReadContext, Source};
use crate::strategy::full::{self, FullMode, FullRequest};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A datastore under test.
#[derive(Clone)]
pub struct Subject {
    /// Its destination.
    pub destination: Arc<dyn Destination>,
    /// A source on the same datastore.
    pub source: Arc<dyn Source>,
    /// The schema to make tables in.
    pub schema: Option<String>,
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

impl Subject {
    fn table(&self, name: &str) -> TableId {
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        TableId {
            schema: self.schema.clone(),
            name: format!("{name}_{}_{n}", std::process::id()),
        }
    }

    /// The rows of a table as they are now.
    pub async fn rows(&self, table: &TableId) -> Result<Rows> {
        let schema = self.source.describe(table).await?;
        read(self.source.as_ref(), table, &schema).await
    }
}

/// Reads a whole table by slices.
pub async fn read(source: &dyn Source, table: &TableId, schema: &TableSchema) -> Result<Rows> {
    let spec = ReadSpec::all(table.clone(), &schema.columns);
    let partition = Partition::new("all", Work::Read(Slice::All));
    let request = crate::source::SliceRequest {
        key: schema.key.clone(),
        step: None,
        min_slices: 1,
        max_slice_bytes: u64::MAX,
        single: false,
    };
    let mut rows = Rows::new();
    for slice in source.slices(&spec, &request).await? {
        let partition = Partition {
            work: Work::Read(slice.slice),
            ..partition.clone()
        };
        let mut reader = source.open(&spec, &partition, None, &ReadContext::default()).await?;
        while let Some(event) = reader.next().await? {
            if let Event::Rows(b) = event {
                for row in texts(&b.rows)? {
                    let key = if schema.key.is_empty() {
                        vec![rows.len().to_string()]
                    } else {
                        key_of(schema, &row)?
                    };
                    assert!(rows.insert(key, row).is_none(), "{table}: a row was read twice");
                }
            }
        }
    }
    Ok(rows)
}

fn load_plan(pipeline: &str, table: &TableId, publish: Publish, partitions: &[&str]) -> Plan {
    Plan {
        pipeline: pipeline.into(),
        run_id: "20260101_000000_abcdef".into(),
        generation: Generation(0),
        strategy: Strategy::Full,
        reasons: Vec::new(),
        semantics: serde_json::json!({"table": table.to_string()}),
        tables: vec![PlannedTable::new(
            ReadSpec::all(table.clone(), &schema().columns),
            table.clone(),
            schema(),
            publish,
        )],
        phases: vec![Phase {
            name: "load".into(),
            partitions: partitions
                .iter()
                .map(|id| Partition::new(*id, Work::Read(Slice::All)))
                .collect(),
        }]
        .into(),
        verify: Verify::Count,
        guard: DeleteGuard::default(),
        remember: Default::default(),
        created_at: "2026-01-01T00:00:00Z".into(),
    }
}

async fn write_rows<'a>(sink: &mut dyn Sink, table: &TableId, rows: impl IntoIterator<Item = &'a Row>) -> Result<()> {
    let rows = batch(&schema(), rows)?;
    sink.write(Event::Rows(ChangeBatch::inserts(
        Arc::new(table.clone()),
        rows,
        Hold::none(),
    )))
    .await
}

fn advance(id: &str, from: Option<&str>, to: &str, done: bool, rows: u64) -> Advance {
    let tally = Tally {
        rows,
        ..Tally::default()
    };
    Advance {
        rejects: Vec::new(),
        partition: id.into(),
        from: from.map(Position::from),
        to: to.into(),
        done,
        accounts: Accounts {
            compared: Default::default(),
            own: 0,
            read: tally,
            stages: Vec::new(),
            written: tally,
        },
    }
}

async fn full_run(
    source: Arc<dyn Source>,
    destination: Arc<dyn Destination>,
    pipeline: &str,
    table: &TableId,
    mode: FullMode,
    verify: Option<Verify>,
) -> Result<Report> {
    let mut engine = Engine::new(source.clone(), destination.clone());
    engine.options = options();
    let engine = Arc::new(engine);
    let request = FullRequest {
        mode,
        verify,
        ..full_request(pipeline, table)
    };
    let semantics = request.table.semantics.clone();
    let draft = full::plan(source.as_ref(), destination.as_ref(), engine.stages.as_ref(), request);
    let (plan, resumed) = engine.plan(pipeline, &semantics, draft).await?;
    engine.run(plan, resumed).await
}

/// Loads: created, replaced, appended, merged; pages, an empty table, publishing twice, forgetting.
pub async fn loads(s: &Subject) {
    created_by_pages(s).await.expect("a load by pages is created");
    empty_and_twice(s)
        .await
        .expect("an empty table is created, and publishing twice is publishing once");
    swapped(s)
        .await
        .expect("a second full run takes the place of the first");
    merged(s).await.expect("the difference is merged");
    appended(s).await.expect("rows are appended");
    forgotten(s).await.expect("a forgotten pipeline starts over");
    shared_commit(s)
        .await
        .expect("rows of partitions committed together are booked once");
}

/// Memory: facts are kept beside a pipeline's plans, and move with publishing.
pub async fn memory(s: &Subject) {
    remembers(s).await.expect("facts are kept beside a pipeline's plans");
}

async fn shared_commit(s: &Subject) -> Result<()> {
    let table = s.table("together");
    let d = &s.destination;
    let plan = d
        .prepare(load_plan(&table.to_string(), &table, Publish::Create, &["a", "b"]))
        .await?;
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["a".into(), "b".into()]).await?;
    let rows = some_rows(7);
    write_rows(sink.as_mut(), &table, rows.values().take(3)).await?;
    write_rows(sink.as_mut(), &table, rows.values().skip(3)).await?;
    let steps = [advance("a", None, "end", true, 3), advance("b", None, "end", true, 4)];
    assert_eq!(sink.commit(&steps).await?, crate::ledger::Applied::inserts(7));
    let durable = sink.durable().await?;
    drop(sink);
    for (place, checkpoint) in [("durable", durable), ("checkpoint", d.checkpoint(&plan).await?)] {
        let mut sum = crate::ledger::Applied::default();
        checkpoint.values().for_each(|p| sum += p.applied);
        assert_eq!(sum, crate::ledger::Applied::inserts(7), "{place}: {checkpoint:?}");
    }
    d.seal(&plan).await?;
    assert_eq!(d.publish(&plan).await?.applied.inserted, 7);
    assert_eq!(s.rows(&table).await?, rows);
    Ok(())
}

async fn remembers(s: &Subject) -> Result<()> {
    let table = s.table("remembers");
    let (pipeline, d) = (table.to_string(), &s.destination);
    let facts = |pairs: &[(&str, &str)]| -> std::collections::BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
    };
    assert_eq!(d.remembered(&pipeline).await?, facts(&[]), "nothing is known before");
    d.remember(&pipeline, &facts(&[("seen", "1"), ("kept", "it's")]))
        .await?;
    for (publish, until) in [(Publish::Create, "10"), (Publish::Swap, "20")] {
        let mut plan = load_plan(&pipeline, &table, publish, &["all"]);
        plan.remember = facts(&[("until", until), ("seen", until)]);
        let before = d.remembered(&pipeline).await?;
        let plan = d.prepare(plan).await?;
        let mut sink = d.open_sink(&plan).await?;
        sink.recover(&["all".into()]).await?;
        write_rows(sink.as_mut(), &table, some_rows(2).values()).await?;
        sink.commit(&[advance("all", None, "end", true, 2)]).await?;
        drop(sink);
        d.seal(&plan).await?;
        assert_eq!(
            d.remembered(&pipeline).await?,
            before,
            "nothing moves before publishing"
        );
        d.publish(&plan).await?;
        let now = facts(&[("until", until), ("seen", until), ("kept", "it's")]);
        assert_eq!(d.remembered(&pipeline).await?, now);
        d.remember(&pipeline, &facts(&[("seen", "later")])).await?;
        d.publish(&plan).await?;
        assert_eq!(
            d.remembered(&pipeline).await?["seen"],
            "later",
            "publishing again does not turn facts back"
        );
        assert_eq!(d.remembered("another pipeline").await?, facts(&[]));
    }
    d.forget(&pipeline).await?;
    assert_eq!(d.remembered(&pipeline).await?, facts(&[]), "forgotten");
    Ok(())
}

async fn created_by_pages(s: &Subject) -> Result<()> {
    let table = s.table("pages");
    let pipeline = table.to_string();
    let d = &s.destination;
    let rows = some_rows(20);
    let plan = d
        .prepare(load_plan(&pipeline, &table, Publish::Create, &["a", "b"]))
        .await?;
    assert!(plan.generation.0 > 0, "prepare gives a generation");
    let stored = d.stored_plan(&pipeline).await?.expect("the plan is stored");
    assert_eq!(
        (&stored.plan, stored.finished),
        (&plan, false),
        "the plan comes back as it was stored"
    );
    let half: Vec<&Row> = rows.values().take(10).collect();
    let other: Vec<&Row> = rows.values().skip(10).collect();
    // Partition a in pages, each by a writer of its own: it resumes at each boundary.
    let mut position: Option<String> = None;
    for (n, page) in half.chunks(4).enumerate() {
        let mut sink = d.open_sink(&plan).await?;
        let state = sink
            .recover(&["a".into()])
            .await?
            .remove(&"a".into())
            .unwrap_or_default();
        assert_eq!(
            state.position.map(|p| p.0),
            position,
            "the writer is told where the partition stands"
        );
        assert!(!state.done);
        // Written but not committed: must leave no trace.
        write_rows(sink.as_mut(), &table, page.iter().copied()).await?;
        drop(sink);
        let mut sink = d.open_sink(&plan).await?;
        sink.recover(&["a".into()]).await?;
        write_rows(sink.as_mut(), &table, page.iter().copied()).await?;
        let to = format!("page {n}");
        let rows_so_far = half.len().min(4 * (n + 1)) as u64;
        let a = advance(
            "a",
            position.as_deref(),
            &to,
            rows_so_far == half.len() as u64,
            rows_so_far,
        );
        let applied = sink.commit(&[a]).await?;
        assert_eq!(
            (applied.written, applied.inserted),
            (page.len() as u64, page.len() as u64)
        );
        sink.release(&["a".into()]).await?;
        position = Some(to);
    }
    assert!(d.describe(&table).await?.is_none(), "nothing is seen before publishing");
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["b".into()]).await?;
    for page in other.chunks(3) {
        write_rows(sink.as_mut(), &table, page.iter().copied()).await?;
    }
    sink.commit(&[advance("b", None, "end", true, other.len() as u64)])
        .await?;
    assert_eq!(sink.durable().await?[&"b".into()].position, Some("end".into()));
    drop(sink);
    let checkpoint = d.checkpoint(&plan).await?;
    assert!(
        checkpoint.values().all(|p| p.done) && checkpoint.len() == 2,
        "both partitions are done: {checkpoint:?}"
    );
    let mut ledger = Ledger::default();
    checkpoint.values().for_each(|p| ledger.add(&p.accounts, p.applied));
    assert_eq!((ledger.accounts.read.rows, ledger.applied.written), (20, 20));
    ledger.check()?;
    d.seal(&plan).await?;
    d.seal(&plan).await?;
    let published = d.publish(&plan).await?;
    assert_eq!((published.applied.written, published.applied.inserted), (20, 20));
    assert_eq!(s.rows(&table).await?, rows);
    let described = d.describe(&table).await?.expect("it is there");
    assert_eq!(described.key, ["id"], "it has its key");
    Ok(())
}

async fn empty_and_twice(s: &Subject) -> Result<()> {
    let table = s.table("empty");
    let d = &s.destination;
    let plan = d
        .prepare(load_plan(&table.to_string(), &table, Publish::Create, &["all"]))
        .await?;
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["all".into()]).await?;
    sink.commit(&[advance("all", None, "end", true, 0)]).await?;
    drop(sink);
    d.seal(&plan).await?;
    let first = d.publish(&plan).await?;
    let second = d.publish(&plan).await?;
    assert_eq!(first, second, "publishing a finished plan says what it did then");
    assert!(d.stored_plan(&table.to_string()).await?.expect("kept").finished);
    assert!(d.is_empty(&table).await?);
    assert_eq!(s.rows(&table).await?, Rows::new());
    Ok(())
}

async fn swapped(s: &Subject) -> Result<()> {
    let table = s.table("swapped");
    let pipeline = table.to_string();
    for n in [12, 7, 0] {
        let source = Memory::default();
        source.put(&table, schema(), some_rows(n));
        let source = Arc::new(MemoryTables(source));
        let d = s.destination.clone();
        let run = full_run(source, d, &pipeline, &table, FullMode::Auto, Some(Verify::Hash));
        if n > 0 {
            let report = run.await?;
            assert_eq!(report.ledger.accounts.read.rows, n as u64);
            assert_eq!(s.rows(&table).await?, some_rows(n));
        } else {
            // An empty source does not empty a table in passing.
            let e = run.await.expect_err("the guard stops it");
            assert_eq!(e.code(), code::MASS_DELETE, "{e}");
            assert_eq!(s.rows(&table).await?, some_rows(7));
        }
    }
    Ok(())
}

async fn merged(s: &Subject) -> Result<()> {
    let table = s.table("merged");
    let d = &s.destination;
    let source = Memory::default();
    source.put(&table, schema(), some_rows(30));
    full_run(
        Arc::new(MemoryTables(source.clone())),
        d.clone(),
        "merge one",
        &table,
        FullMode::Auto,
        None,
    )
    .await?;
    let mut now = some_rows(33);
    now.remove(&vec!["0003".to_string()]);
    now.insert(vec!["0004".into()], vec![Some("0004".into()), None, Some("x".into())]);
    source.put(&table, schema(), now.clone());
    let tables: Arc<dyn Source> = Arc::new(MemoryTables(source));
    for verify in [Verify::Hash, Verify::Count] {
        let report = full_run(
            tables.clone(),
            d.clone(),
            "merge two",
            &table,
            FullMode::Upsert,
            Some(verify),
        )
        .await?;
        let a = report.ledger.outcome();
        let found = (a.inserted, a.updated, a.deleted, a.unchanged);
        // The second time nothing is left to do.
        assert_eq!(
            found,
            if verify == Verify::Hash {
                (3, 1, 1, 28)
            } else {
                (0, 0, 0, 32)
            }
        );
        assert_eq!(s.rows(&table).await?, now);
    }
    Ok(())
}

async fn appended(s: &Subject) -> Result<()> {
    let table = s.table("appended");
    let d = &s.destination;
    for (n, publish) in [(0, Publish::Create), (1, Publish::Append)] {
        let mut plan = load_plan(&format!("append {n}"), &table, publish, &["all"]);
        plan.tables[0].schema.key.clear();
        let plan = d.prepare(plan).await?;
        let mut sink = d.open_sink(&plan).await?;
        sink.recover(&["all".into()]).await?;
        write_rows(sink.as_mut(), &table, some_rows(4).values()).await?;
        sink.commit(&[advance("all", None, "end", true, 4)]).await?;
        drop(sink);
        d.seal(&plan).await?;
        assert_eq!(d.publish(&plan).await?.applied.inserted, 4);
        d.publish(&plan).await?;
    }
    let rows = s.rows(&table).await?;
    assert_eq!(rows.len(), 8, "appended once: {rows:?}");
    Ok(())
}

async fn forgotten(s: &Subject) -> Result<()> {
    let table = s.table("forgotten");
    let d = &s.destination;
    let pipeline = table.to_string();
    let plan = d
        .prepare(load_plan(&pipeline, &table, Publish::Create, &["all"]))
        .await?;
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["all".into()]).await?;
    d.forget(&pipeline).await?;
    assert_eq!(d.stored_plan(&pipeline).await?, None);
    let late = async {
        write_rows(sink.as_mut(), &table, some_rows(1).values()).await?;
        sink.commit(&[advance("all", None, "end", true, 1)]).await
    };
    late.await.expect_err("a writer of a forgotten plan cannot commit");
    d.forget(&pipeline).await?;
    Ok(())
}

/// Fences: by epoch, by generation, by position.
pub async fn fences(s: &Subject) {
    by_epoch(s).await.expect("an older writer is fenced");
    by_generation(s).await.expect("an older plan is fenced");
    by_position(s).await.expect("a commit from elsewhere is fenced");
}

async fn by_epoch(s: &Subject) -> Result<()> {
    let table = s.table("epoch");
    let d = &s.destination;
    let plan = d
        .prepare(load_plan(&table.to_string(), &table, Publish::Create, &["all"]))
        .await?;
    let mut zombie = d.open_sink(&plan).await?;
    zombie.recover(&["all".into()]).await?;
    write_rows(zombie.as_mut(), &table, some_rows(5).values()).await?;
    let mut heir = d.open_sink(&plan).await?;
    heir.recover(&["all".into()]).await?;
    write_rows(heir.as_mut(), &table, some_rows(3).values()).await?;
    heir.commit(&[advance("all", None, "end", true, 3)]).await?;
    // It may be refused with the fence, or have lost its session when its heir took over.
    zombie
        .commit(&[advance("all", None, "end", true, 5)])
        .await
        .expect_err("the zombie cannot commit");
    drop((zombie, heir));
    d.seal(&plan).await?;
    d.publish(&plan).await?;
    assert_eq!(s.rows(&table).await?, some_rows(3));
    Ok(())
}

async fn by_generation(s: &Subject) -> Result<()> {
    let table = s.table("generation");
    let d = &s.destination;
    let draft = || load_plan(&table.to_string(), &table, Publish::Create, &["all"]);
    let old = d.prepare(draft()).await?;
    let mut zombie = d.open_sink(&old).await?;
    zombie.recover(&["all".into()]).await?;
    let new = d.prepare(draft()).await?;
    assert!(new.generation > old.generation);
    let late = async {
        write_rows(zombie.as_mut(), &table, some_rows(5).values()).await?;
        zombie.commit(&[advance("all", None, "end", true, 5)]).await
    };
    late.await.expect_err("a writer of an older plan cannot commit");
    d.publish(&old).await.expect_err("an older plan cannot be published");
    let mut sink = d.open_sink(&new).await?;
    let state = sink
        .recover(&["all".into()])
        .await?
        .remove(&"all".into())
        .unwrap_or_default();
    assert_eq!(state.position, None, "a new plan starts at the beginning");
    write_rows(sink.as_mut(), &table, some_rows(2).values()).await?;
    sink.commit(&[advance("all", None, "end", true, 2)]).await?;
    drop(sink);
    d.seal(&new).await?;
    d.publish(&new).await?;
    assert_eq!(s.rows(&table).await?, some_rows(2));
    Ok(())
}

async fn by_position(s: &Subject) -> Result<()> {
    let table = s.table("position");
    let d = &s.destination;
    let plan = d
        .prepare(load_plan(&table.to_string(), &table, Publish::Create, &["all"]))
        .await?;
    let mut sink = d.open_sink(&plan).await?;
    sink.recover(&["all".into()]).await?;
    write_rows(sink.as_mut(), &table, some_rows(1).values()).await?;
    let e = sink
        .commit(&[advance("all", Some("elsewhere"), "end", true, 1)])
        .await
        .expect_err("refused");
    assert_eq!(e.code(), code::FENCED, "{e}");
    drop(sink);
    let mut sink = d.open_sink(&plan).await?;
    let state = sink
        .recover(&["all".into()])
        .await?
        .remove(&"all".into())
        .unwrap_or_default();
    assert_eq!(
        (state.position, state.done),
        (None, false),
        "a refused commit leaves nothing"
    );
    Ok(())
}

/// Changes applied directly: a log with partial updates, key changes, deletes, truncates, a backfill and a re-sync
/// leaves the same rows here as in the source.
pub async fn changes(s: &Subject) {
    for resync in [false, true] {
        let (items, orders) = (s.table("items"), s.table("orders"));
        let log = eventful_log(&items, &orders);
        if resync {
            others_meanwhile(&log, &items);
        }
        let read = if resync {
            let pending = vec![Pending::resync(items.clone()), Pending::load(orders.clone())];
            log.clone().with_backfill(pending, 3)
        } else {
            log.clone()
        };
        let ledger = follow(s, &read, &[items.clone(), orders.clone()], &FaultPlan::none()).await;
        ledger
            .and_then(|l| l.check())
            .expect("the log is applied and its ledger balances");
        for t in [&items, &orders] {
            assert_eq!(s.rows(t).await.expect("readable"), log.rows(t), "resync {resync}: {t}");
        }
    }
}

async fn follow(s: &Subject, log: &MemoryLog, tables: &[TableId], faults: &FaultPlan) -> Result<Ledger> {
    let pipeline = tables[0].to_string();
    let mut plan = load_plan(&pipeline, &tables[0], Publish::Direct, &[]);
    plan.strategy = Strategy::Log;
    plan.verify = Verify::None;
    let template = plan.tables.remove(0);
    plan.tables = tables
        .iter()
        .map(|t| PlannedTable {
            read: ReadSpec::all(t.clone(), &schema().columns),
            destination: t.clone(),
            ..template.clone()
        })
        .collect();
    let source = Arc::new(FaultySource(Arc::new(log.clone()), faults.clone()));
    let destination = Arc::new(FaultyDestination(s.destination.clone(), faults.clone()));
    let mut engine = Engine::new(source, destination);
    engine.options = options();
    let engine = Arc::new(engine);
    let semantics = plan.semantics.clone();
    let (plan, _) = engine.plan(&pipeline, &semantics, async move { Ok(plan) }).await?;
    engine.follow(plan).await
}

/// The crash matrix: every `step`th call of a load (and, where changes are applied, of a log) fails in turn, before and
/// after it was carried out, as a passing trouble and as the end of the process.
pub async fn crashes(s: &Subject, step: u64) {
    let undisturbed = FaultPlan::none();
    crash_load(s, undisturbed.clone()).await;
    let calls = undisturbed.calls();
    for at in (1..=calls).step_by(step.max(1) as usize) {
        for when in [When::Before, When::After] {
            for looks in [Looks::Transient, Looks::Fatal] {
                crash_load(s, FaultPlan::fail(at, when, looks)).await;
            }
        }
    }
    if !s.destination.traits().applies_changes {
        return;
    }
    let undisturbed = FaultPlan::none();
    crash_log(s, undisturbed.clone()).await;
    let calls = undisturbed.calls();
    for at in (1..=calls).step_by(step.max(1) as usize) {
        for when in [When::Before, When::After] {
            for looks in [Looks::Transient, Looks::Fatal] {
                crash_log(s, FaultPlan::fail(at, when, looks)).await;
            }
        }
    }
}

async fn crash_load(s: &Subject, faults: FaultPlan) {
    let table = s.table("crash");
    let source = Memory::default();
    source.put(&table, schema(), some_rows(40));
    let run = |faults: FaultPlan| {
        let source = Arc::new(FaultySource(Arc::new(MemoryTables(source.clone())), faults.clone()));
        let destination = Arc::new(FaultyDestination(s.destination.clone(), faults));
        let (table, pipeline) = (table.clone(), table.to_string());
        async move {
            full_run(
                source,
                destination,
                &pipeline,
                &table,
                FullMode::Swap,
                Some(Verify::Hash),
            )
            .await
        }
    };
    let case = format!("{faults:?}");
    let report = match run(faults).await {
        Err(_) => run(FaultPlan::none())
            .await
            .unwrap_or_else(|e| panic!("{case}: the next run failed: {e}")),
        Ok(report) => report,
    };
    report.ledger.check().unwrap_or_else(|e| panic!("{case}: {e}"));
    assert_eq!(s.rows(&table).await.expect("readable"), some_rows(40), "{case}");
}

async fn crash_log(s: &Subject, faults: FaultPlan) {
    let tables = [s.table("items"), s.table("orders")];
    let log = eventful_log(&tables[0], &tables[1]);
    let case = format!("{faults:?}");
    if follow(s, &log, &tables, &faults).await.is_err() {
        let next = follow(s, &log, &tables, &FaultPlan::none()).await;
        next.unwrap_or_else(|e| panic!("{case}: the next run failed: {e}"));
    }
    for t in &tables {
        assert_eq!(s.rows(t).await.expect("readable"), log.rows(t), "{case}: {t}");
    }
}

/// One column with its edge values.
#[derive(Debug, Clone)]
pub struct EdgeColumn {
    /// The type.
    pub ty: ColumnType,
    /// Canonical texts.
    pub values: Vec<&'static str>,
}

/// Every logical type with the values that others lose (the conformance list of the docs).
pub fn edges() -> Vec<EdgeColumn> {
    use ColumnType::*;
    let e = |ty, values: &[&'static str]| EdgeColumn {
        ty,
        values: values.to_vec(),
    };
    vec![
        e(Bool, &["true", "false"]),
        e(Int8, &["-128", "127"]),
        e(Int16, &["-32768", "32767"]),
        e(Int32, &["-2147483648", "2147483647"]),
        e(
            Int64,
            &["-9223372036854775808", "9223372036854775807", "9007199254740993"],
        ),
        e(UInt8, &["0", "255"]),
        e(UInt16, &["65535"]),
        e(UInt32, &["4294967295"]),
        e(UInt64, &["0", "18446744073709551615", "9223372036854775808"]),
        e(
            Decimal {
                precision: 12,
                scale: 2,
            },
            &["0.00", "-9999999999.99", "1.10", "0.01"],
        ),
        e(
            Decimal {
                precision: 38,
                scale: 10,
            },
            &["1234567890123456789012345678.0123456789"],
        ),
        e(
            Decimal {
                precision: 65,
                scale: 30,
            },
            &["-12345678901234567890123456789012345.123456789012345678901234567890"],
        ),
        e(
            Numeric,
            &[
                "0",
                "0.00",
                "-1.50",
                "123456789012345678901234567890123456789012345678901234567890.1",
            ],
        ),
        e(Float32, &["0.1", "-0", "3.4028235e38"]),
        e(
            Float64,
            &[
                "0.1",
                "-0",
                "5e-324",
                "1.7976931348623157e308",
                "NaN",
                "Infinity",
                "-Infinity",
            ],
        ),
        e(
            Date,
            &[
                "0001-01-01",
                "1582-10-10",
                "1899-12-31",
                "1970-01-01",
                "2024-02-29",
                "9999-12-31",
            ],
        ),
        e(Time, &["00:00:00", "23:59:59.999999", "24:00:00"]),
        e(TimeTz, &["12:30:00+05:30", "23:59:59.999999-12"]),
        e(
            Timestamp,
            &[
                "0001-01-01 00:00:00",
                "1969-12-31 23:59:59.999999",
                "2262-04-12 00:00:00",
                "9999-12-31 23:59:59.999999",
            ],
        ),
        e(
            TimestampTz,
            &[
                "1970-01-01 00:00:01+00",
                "2038-01-19 03:14:08+00",
                "2106-02-07 06:28:16.000001+00",
            ],
        ),
        e(Interval, &["1 year 2 mons -3 days +04:05:06.789", "00:00:00.000001"]),
        e(
            Text { max: None },
            &[
                "",
                " ",
                "NULL",
                "\\N",
                "trailing  ",
                "tab\tquote\"'comma,newline\r\nback\\",
                "ä€😀",
                "e\u{301}",
                "\u{1}",
            ],
        ),
        e(Text { max: Some(10) }, &["ä€😀", "0123456789"]),
        e(Bytes, &["\\x", "\\x00", "\\x00ff5c275c6e0a"]),
        e(
            Uuid,
            &[
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
        ),
        e(
            Json,
            &[
                "{\"b\": 1,  \"a\": 1.0, \"a\": 12345678901234567890.5}",
                "null",
                "\"text\"",
                "[1, [2]]",
            ],
        ),
        e(Jsonb, &["{\"a\": 12345678901234567890.123456789}", "null"]),
    ]
}

/// Types: a table of every type and its edge values is loaded and read back. A cell of a column that is declared exact
/// or widened must come back as it was; a refused column must be refused when the plan is made.
pub async fn types(s: &Subject) {
    types_except(s, |_, _| false).await;
}

/// The same for a destination whose types lack some values (NaN in a float): each of those must stop the run with
/// [`code::VALUE_UNSUPPORTED`] rather than become another value.
pub async fn types_except(s: &Subject, lacks: fn(&ColumnType, &str) -> bool) {
    for edge in edges() {
        for value in edge.values.iter().filter(|v| lacks(&edge.ty, v)) {
            lacking(s, &edge.ty, value).await;
        }
    }
    let table = s.table("types");
    let mut wanted = TableSchema {
        columns: vec![Column::new("id", ColumnType::Int64).not_null()],
        key: vec!["id".into()],
    };
    let mut edge_of = vec![];
    for (i, mut edge) in edges().into_iter().enumerate() {
        edge.values.retain(|v| !lacks(&edge.ty, v));
        let column = Column::new(format!("c{i}_{}", edge.ty), edge.ty.clone());
        match s.destination.store_as("memory", &column).fidelity {
            Fidelity::Refused(why) => assert!(!why.is_empty(), "{}: refused without a reason", edge.ty),
            _ => {
                wanted.columns.push(column);
                edge_of.push(edge);
            }
        }
    }
    let height = edge_of.iter().map(|e| e.values.len()).max().unwrap_or(0) + 1;
    let rows: Vec<Row> = (0..height)
        .map(|r| {
            let id = Some(r.to_string());
            std::iter::once(id)
                .chain(edge_of.iter().map(|e| e.values.get(r).map(ToString::to_string)))
                .collect()
        })
        .collect();
    let source = Memory::default();
    source.put(
        &table,
        wanted.clone(),
        rows.iter()
            .map(|r| (vec![r[0].clone().unwrap_or_default()], r.clone()))
            .collect(),
    );
    let report = full_run(
        Arc::new(MemoryTables(source)),
        s.destination.clone(),
        &table.to_string(),
        &table,
        FullMode::Auto,
        Some(Verify::Hash),
    )
    .await
    .unwrap_or_else(|e| panic!("the table of types was not loaded: {e}"));
    assert_eq!(report.ledger.accounts.written.rows, height as u64);
    // Read with the types that were written: what is stored must mean the same.
    let written = &report.plan.tables[0].schema;
    let back = read(s.source.as_ref(), &table, written).await.expect("readable");
    for r in &rows {
        let found = &back[&vec![r[0].clone().unwrap_or_default()]];
        for (c, column) in wanted.columns.iter().enumerate() {
            match s.destination.store_as("memory", column).fidelity {
                Fidelity::Exact | Fidelity::Widened(_) => {
                    assert_eq!(found[c], r[c], "column {}: declared exact, but changed", column.name);
                }
                Fidelity::Normalised(_) => {
                    assert_eq!(
                        found[c].is_none(),
                        r[c].is_none(),
                        "column {}: NULL changed",
                        column.name
                    );
                }
                Fidelity::Refused(_) => unreachable!("left out above"),
            }
        }
    }
    // And described from the catalog, every column is there.
    let described = s.source.describe(&table).await.expect("described");
    assert_eq!(described.columns.len(), wanted.columns.len());
}

/// A value that the destination's type lacks stops the run.
async fn lacking(s: &Subject, ty: &ColumnType, value: &str) {
    let table = s.table("lacking");
    let schema = TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("c", ty.clone()),
        ],
        key: vec!["id".into()],
    };
    let source = Memory::default();
    source.put(
        &table,
        schema,
        Rows::from([(vec!["1".to_string()], row(&["1", value]))]),
    );
    let e = full_run(
        Arc::new(MemoryTables(source)),
        s.destination.clone(),
        &table.to_string(),
        &table,
        FullMode::Auto,
        None,
    )
    .await
    .expect_err("a value that the destination lacks was stored");
    assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{ty}: {e}");
}
