//! Files as source and destination.

mod changes;
mod conformance;
mod crash;
mod csv;
mod flow;
mod foreign;
mod queries;
mod types;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_select::concat::concat_batches;
use std::path::Path;
use std::sync::Arc;
use synctool_connectors::object::{CsvOptions, Format, ObjectConfig, Objects, ParquetOptions};
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::Result;
use synctool_core::ledger::{Accounts, Applied};
use synctool_core::plan::{
    DeleteGuard, Partition, Phase, Plan, PlannedTable, Publish, ReadSpec, Slice, Strategy as PlanStrategy, Verify, Work,
};
use synctool_core::progress::{Advance, Generation, PartitionId, Position};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::{Destination, Sink};
use synctool_core::source::{ReadContext, SliceRequest, Source};
use synctool_core::text::{self, ColumnBuilder};

/// A folder for one test, in memory where the machine has such a place: the tests are about order, not about disks.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

fn parquet() -> Format {
    Format::Parquet(ParquetOptions::default())
}

fn csv_format() -> Format {
    Format::Csv(CsvOptions::default())
}

fn open(path: &Path, format: Format) -> Objects {
    Objects::open(ObjectConfig {
        path: path.to_path_buf(),
        format,
    })
    .unwrap()
}

/// Two columns: a key and a text.
fn small_schema() -> TableSchema {
    TableSchema {
        columns: vec![
            Column::new("id", ColumnType::Int64).not_null(),
            Column::new("name", ColumnType::Text { max: None }),
        ],
        key: vec!["id".into()],
    }
}

/// Rows from canonical texts.
fn batch(schema: &TableSchema, rows: &[Vec<Option<&str>>]) -> RecordBatch {
    let arrays: Vec<ArrayRef> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let mut b = ColumnBuilder::new(column);
            for row in rows {
                b.append_cell(row[i]).unwrap();
            }
            b.finish()
        })
        .collect();
    RecordBatch::try_new(schema.arrow_schema(), arrays).unwrap()
}

/// `count` rows of [`small_schema`] from a first id on.
fn small_rows(first: i64, count: i64) -> RecordBatch {
    let texts: Vec<(String, String)> = (first..first + count)
        .map(|i| (i.to_string(), format!("name {i}")))
        .collect();
    pairs(&texts)
}

/// Rows of [`small_schema`] from texts.
fn pairs(texts: &[(String, String)]) -> RecordBatch {
    let rows: Vec<Vec<Option<&str>>> = texts
        .iter()
        .map(|(a, b)| vec![Some(a.as_str()), Some(b.as_str())])
        .collect();
    batch(&small_schema(), &rows)
}

fn plan(pipeline: &str, table: &str, schema: &TableSchema, partitions: usize, publish: Publish) -> Plan {
    Plan {
        remember: Default::default(),
        pipeline: pipeline.into(),
        run_id: "20240101_000000_abcdef".into(),
        generation: Generation(0),
        strategy: PlanStrategy::Full,
        reasons: Vec::new(),
        semantics: serde_json::Value::Null,
        tables: vec![PlannedTable::new(
            ReadSpec::all(TableId::bare("elsewhere"), &schema.columns),
            TableId::bare(table),
            schema.clone(),
            publish,
        )],
        phases: vec![Phase {
            name: "load".into(),
            partitions: (0..partitions)
                .map(|i| Partition::new(part(i), Work::Read(Slice::All)))
                .collect(),
        }]
        .into(),
        verify: Verify::Count,
        guard: DeleteGuard::default(),
        created_at: "2024-01-01T00:00:00Z".into(),
    }
}

fn part(i: usize) -> PartitionId {
    PartitionId::from(format!("p{i}"))
}

fn rows_event(plan: &Plan, rows: &RecordBatch) -> Event {
    let table = Arc::new(plan.tables[0].destination.clone());
    Event::Rows(ChangeBatch::inserts(table, rows.clone(), Hold::none()))
}

fn advance(partition: &PartitionId, from: Option<&str>, to: &str, done: bool) -> Advance {
    Advance {
        rejects: Vec::new(),
        partition: partition.clone(),
        from: from.map(Position::from),
        to: Position::from(to),
        done,
        accounts: Accounts::default(),
    }
}

/// A sink that has taken over one partition.
async fn sink_for(destination: &dyn Destination, plan: &Plan, i: usize) -> Box<dyn Sink> {
    let mut sink = destination.open_sink(plan).await.unwrap();
    sink.recover(&[part(i)]).await.unwrap();
    sink
}

/// Writes one partition as one commit per batch.
async fn write_partition(destination: &dyn Destination, plan: &Plan, i: usize, batches: &[RecordBatch]) {
    let mut sink = destination.open_sink(plan).await.unwrap();
    let state = sink.recover(&[part(i)]).await.unwrap().remove(&part(i)).unwrap();
    if state.done {
        return;
    }
    let mut at = state.position.map_or(0, |p| p.as_str().parse::<usize>().unwrap());
    while at < batches.len() {
        sink.write(rows_event(plan, &batches[at])).await.unwrap();
        let from = (at > 0).then(|| at.to_string());
        at += 1;
        let step = advance(&part(i), from.as_deref(), &at.to_string(), at == batches.len());
        sink.commit(&[step]).await.unwrap();
    }
    if batches.is_empty() {
        sink.commit(&[advance(&part(i), None, "0", true)]).await.unwrap();
    }
    sink.release(&[part(i)]).await.unwrap();
}

/// A whole load by hand: every element of `parts` is a partition of batches.
async fn load(destination: &dyn Destination, plan: Plan, parts: &[Vec<RecordBatch>]) -> Result<Applied> {
    let plan = destination.prepare(plan).await?;
    for (i, batches) in parts.iter().enumerate() {
        write_partition(destination, &plan, i, batches).await;
    }
    destination.seal(&plan).await?;
    Ok(destination.publish(&plan).await?.applied)
}

/// A partition that reads a slice.
fn partition_of(slice: Slice) -> Partition {
    Partition::new("read", Work::Read(slice))
}

/// Reads a partition to its end; what stands between two boundaries is one element.
async fn read_slice(
    source: &dyn Source,
    read: &ReadSpec,
    slice: &Slice,
    after: Option<&Position>,
    context: &ReadContext,
) -> Result<Vec<(RecordBatch, Position)>> {
    let mut reader = source.open(read, &partition_of(slice.clone()), after, context).await?;
    let mut out: Vec<(RecordBatch, Position)> = Vec::new();
    let mut pending = None;
    while let Some(event) = reader.next().await? {
        match event {
            Event::Rows(batch) => pending = Some(batch.rows),
            Event::Boundary { position, .. } => out.push((pending.take().expect("rows before a boundary"), position)),
            other => panic!("a file yields no {other:?}"),
        }
    }
    assert!(pending.is_none(), "rows after the last boundary");
    Ok(out)
}

/// All rows of a table by its slices.
async fn read_columns(source: &dyn Source, read: &ReadSpec, context: &ReadContext) -> Result<RecordBatch> {
    let request = SliceRequest {
        key: Vec::new(),
        step: None,
        min_slices: 4,
        max_slice_bytes: 1 << 30,
        single: false,
    };
    let mut all = Vec::new();
    for slice in source.slices(read, &request).await? {
        all.extend(read_slice(source, read, &slice.slice, None, context).await?);
    }
    let schema = read.schema().arrow_schema();
    Ok(concat_batches(&schema, all.iter().map(|(b, _)| b)).unwrap())
}

/// All rows of a table in its own columns.
async fn read_table(source: &dyn Source, table: &str) -> Result<RecordBatch> {
    let table = TableId::bare(table);
    let schema = source.describe(&table).await?;
    read_columns(source, &ReadSpec::all(table, &schema.columns), &ReadContext::default()).await
}

/// Rows as sorted texts, `None` for NULL.
fn texts(rows: &RecordBatch) -> Vec<Vec<Option<String>>> {
    let mut out: Vec<Vec<Option<String>>> = (0..rows.num_rows())
        .map(|row| rows.columns().iter().map(|c| text::cell(c, row).unwrap()).collect())
        .collect();
    out.sort();
    out
}

/// The ids of [`small_schema`] in a table, sorted.
async fn ids(source: &dyn Source, table: &str) -> Vec<i64> {
    let rows = read_table(source, table).await.unwrap();
    let mut ids: Vec<i64> = texts(&rows)
        .into_iter()
        .map(|r| r[0].clone().unwrap().parse().unwrap())
        .collect();
    ids.sort_unstable();
    ids
}
