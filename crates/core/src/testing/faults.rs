//! Faults at every call: the crash matrix in one process.
//!
//! A [`FaultPlan`] counts every call that goes through the wrappers and lets one of them fail, before or after it was
//! carried out. A call that fails after it was carried out is what a lost answer looks like.

use crate::blocks::BlockHashes;
use crate::change::{Event, RawFormat};
use crate::error::{Error, Result, code};
use crate::keys::Collation;
use crate::ledger::{Applied, Tally};
use crate::plan::{Partition, Plan, ReadSpec, Slice};
use crate::progress::{Advance, Checkpoint, PartitionId, Position};
use crate::query::{Condition, Term};
use crate::schema::{Column, TableId, TableSchema};
use crate::sink::{Destination, Published, Sink, SinkTraits, StoredAs, StoredPlan};
use crate::source::{Assignment, Extent, PlannedSlice, ReadContext, Reader, Settled, SliceRequest, Source, TableInfo};
use async_trait::async_trait;
use futures::stream::BoxStream;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// When the chosen call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// It is not carried out.
    Before,
    /// It is carried out, but the answer is lost.
    After,
}

/// What the failure looks like to the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Looks {
    /// A server that went away for a moment: the engine tries again.
    Transient,
    /// The end of the process: the run stops, and another one must go on.
    Fatal,
}

#[derive(Debug)]
struct Armed {
    at: u64,
    when: When,
    looks: Looks,
    calls: AtomicU64,
}

/// Which call fails. Clones share the count.
#[derive(Debug, Clone)]
pub struct FaultPlan(Arc<Armed>);

impl FaultPlan {
    /// Call `at` (from 1) fails.
    pub fn fail(at: u64, when: When, looks: Looks) -> Self {
        FaultPlan(Arc::new(Armed {
            at,
            when,
            looks,
            calls: AtomicU64::new(0),
        }))
    }

    /// Nothing fails; calls are counted.
    pub fn none() -> Self {
        FaultPlan::fail(0, When::Before, Looks::Transient)
    }

    /// Calls so far.
    pub fn calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    async fn call<T>(&self, what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let armed = &self.0;
        let hit = armed.calls.fetch_add(1, Ordering::SeqCst) + 1 == armed.at;
        let fault = || {
            let c = if armed.looks == Looks::Fatal {
                code::SERVER_ERROR
            } else {
                code::INJECTED
            };
            Err(Error::new(c, format!("injected fault in {what}")))
        };
        if hit && armed.when == When::Before {
            return fault();
        }
        let result = work.await;
        if hit && result.is_ok() { fault() } else { result }
    }
}

/// A source whose calls may fail.
pub struct FaultySource<S: ?Sized>(pub Arc<S>, pub FaultPlan);

#[async_trait]
impl<S: Source + ?Sized> Source for FaultySource<S> {
    fn engine(&self) -> &'static str {
        self.0.engine()
    }

    async fn tables(&self, schema: Option<&str>) -> Result<Vec<TableInfo>> {
        self.1.call("tables", self.0.tables(schema)).await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        self.0.describe(table).await
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        self.0.describe_query(read).await
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        self.0.extent(read, term, slice).await
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        self.0.distinct(read, terms, slice, limit).await
    }

    async fn counting(&self, read: &ReadSpec, conditions: &[Condition]) -> Result<Term> {
        self.0.counting(read, conditions).await
    }

    async fn settled(&self, table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
        self.1
            .call("settled", self.0.settled(table, column, zone, margin))
            .await
    }

    fn block_hashes(&self) -> Option<&dyn BlockHashes> {
        self.0.block_hashes()
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        self.0.slices(read, request).await
    }

    async fn collations(&self, table: &TableId, columns: &[Column]) -> Result<Vec<Collation>> {
        self.0.collations(table, columns).await
    }

    fn raw_format(&self, columns: &[(String, Column)]) -> Option<RawFormat> {
        self.0.raw_format(columns)
    }

    fn tally_raw(&self, tuples: &[u8], tally: &mut Tally) -> Result<()> {
        self.0.tally_raw(tuples, tally)
    }

    async fn assignments(&self) -> Result<BoxStream<'static, Assignment>> {
        self.0.assignments().await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let reader = self
            .1
            .call("open", self.0.open(read, partition, after, context))
            .await?;
        Ok(Box::new(FaultyReader(reader, self.1.clone())))
    }
}

struct FaultyReader(Box<dyn Reader>, FaultPlan);

#[async_trait]
impl Reader for FaultyReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        let plan = self.1.clone();
        plan.call("next", self.0.next()).await
    }

    fn ended(&mut self) -> Vec<u64> {
        self.0.ended()
    }

    async fn acknowledge(&mut self, durable: &Position) -> Result<()> {
        let plan = self.1.clone();
        plan.call("acknowledge", self.0.acknowledge(durable)).await
    }
}

/// A destination whose calls may fail.
pub struct FaultyDestination<D: ?Sized>(pub Arc<D>, pub FaultPlan);

#[async_trait]
impl<D: Destination + ?Sized> Destination for FaultyDestination<D> {
    fn engine(&self) -> &'static str {
        self.0.engine()
    }

    fn traits(&self) -> SinkTraits {
        self.0.traits()
    }

    fn store_as(&self, source_engine: &str, column: &Column) -> StoredAs {
        self.0.store_as(source_engine, column)
    }

    async fn describe(&self, table: &TableId) -> Result<Option<TableSchema>> {
        self.0.describe(table).await
    }

    async fn is_empty(&self, table: &TableId) -> Result<bool> {
        self.0.is_empty(table).await
    }

    async fn made_here(&self, table: &TableId) -> Result<bool> {
        self.0.made_here(table).await
    }

    fn narrowed(&self, there: &Column, type_name: &str) -> Result<Option<String>> {
        self.0.narrowed(there, type_name)
    }

    async fn swap_obstacles(&self, table: &TableId, wanted: &TableSchema) -> Result<Vec<String>> {
        self.0.swap_obstacles(table, wanted).await
    }

    fn accepts_raw(&self, format: &RawFormat, columns: &[(String, Column)]) -> bool {
        self.0.accepts_raw(format, columns)
    }

    async fn preview(&self, plan: &Plan) -> Result<Vec<String>> {
        self.0.preview(plan).await
    }

    async fn stored_plan(&self, pipeline: &str) -> Result<Option<StoredPlan>> {
        self.1.call("stored_plan", self.0.stored_plan(pipeline)).await
    }

    async fn prepare(&self, plan: Plan) -> Result<Plan> {
        self.1.call("prepare", self.0.prepare(plan)).await
    }

    async fn checkpoint(&self, plan: &Plan) -> Result<Checkpoint> {
        self.1.call("checkpoint", self.0.checkpoint(plan)).await
    }

    async fn open_sink(&self, plan: &Plan) -> Result<Box<dyn Sink>> {
        let sink = self.1.call("open_sink", self.0.open_sink(plan)).await?;
        Ok(Box::new(FaultySink(sink, self.1.clone())))
    }

    async fn seal(&self, plan: &Plan) -> Result<()> {
        self.1.call("seal", self.0.seal(plan)).await
    }

    fn read_back(&self, plan: &Plan, index: usize) -> Option<(Arc<dyn Source>, TableId)> {
        self.0.read_back(plan, index)
    }

    fn as_source(&self) -> Option<Arc<dyn Source>> {
        self.0.as_source()
    }

    async fn remembered(&self, pipeline: &str) -> Result<BTreeMap<String, String>> {
        self.1.call("remembered", self.0.remembered(pipeline)).await
    }

    async fn remember(&self, pipeline: &str, facts: &BTreeMap<String, String>) -> Result<()> {
        self.1.call("remember", self.0.remember(pipeline, facts)).await
    }

    async fn publish(&self, plan: &Plan) -> Result<Published> {
        self.1.call("publish", self.0.publish(plan)).await
    }

    async fn forget(&self, pipeline: &str) -> Result<()> {
        self.0.forget(pipeline).await
    }
}

struct FaultySink(Box<dyn Sink>, FaultPlan);

#[async_trait]
impl Sink for FaultySink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        let plan = self.1.clone();
        plan.call("recover", self.0.recover(partitions)).await
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        let plan = self.1.clone();
        plan.call("write", self.0.write(event)).await
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        let plan = self.1.clone();
        plan.call("commit", self.0.commit(advances)).await
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        let plan = self.1.clone();
        plan.call("durable", self.0.durable()).await
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        let plan = self.1.clone();
        plan.call("release", self.0.release(partitions)).await
    }
}
