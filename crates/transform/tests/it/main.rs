//! Chains of stages over rows, against Python, databases, Redis and the engine.

mod dedup;
#[cfg(feature = "datafusion")]
mod engine;
mod enrich;
#[cfg(feature = "datafusion")]
mod expressions;
#[cfg(feature = "datafusion")]
mod meaning;
#[cfg(feature = "datafusion")]
mod python;
mod stages;

use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Op, Ops, Presence};
use synctool_core::error::Result;
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::source::Source;
use synctool_core::stage::{Reject, Stage, Stages};
use synctool_core::testing::rows::{Row, batch, texts};
use synctool_transform::{Chain, NamedStage, StageSpec};

const TEXT: ColumnType = ColumnType::Text { max: None };

fn decimal(precision: u16, scale: i16) -> ColumnType {
    ColumnType::Decimal { precision, scale }
}

fn table(columns: &[(&str, ColumnType)], key: &[&str]) -> TableSchema {
    TableSchema {
        columns: columns.iter().map(|(n, t)| Column::new(*n, t.clone())).collect(),
        key: key.iter().map(ToString::to_string).collect(),
    }
}

/// Rows as texts; `-` is NULL.
fn rows(lines: &[&str]) -> Vec<Row> {
    let cell = |c: &str| (c != "-").then(|| c.to_string());
    lines
        .iter()
        .map(|l| l.split('|').map(|c| cell(c.trim())).collect())
        .collect()
}

fn shown(rows: &[Row]) -> Vec<String> {
    let cells = |r: &Row| {
        r.iter()
            .map(|c| c.clone().unwrap_or("-".into()))
            .collect::<Vec<_>>()
            .join("|")
    };
    rows.iter().map(cells).collect()
}

fn inserts(schema: &TableSchema, lines: &[&str]) -> ChangeBatch {
    let rows = batch(schema, &rows(lines)).unwrap();
    ChangeBatch::inserts(Arc::new(TableId::bare("t")), rows, Hold::none())
}

fn changes(schema: &TableSchema, ops: &[Op], lines: &[&str], before: Option<&[&str]>) -> ChangeBatch {
    let before = before.map(|b| batch(schema, &rows(b)).unwrap());
    let ops: Vec<u8> = ops.iter().map(|o| *o as u8).collect();
    let rows = batch(schema, &rows(lines)).unwrap();
    ChangeBatch::new(
        Arc::new(TableId::bare("t")),
        rows,
        Ops::Each(ops.into()),
        None,
        before,
        Hold::none(),
    )
    .unwrap()
}

/// The batch with one cell that carries no value.
fn absent(mut batch: ChangeBatch, column: usize, row: usize) -> ChangeBatch {
    let n = batch.len();
    let mut present = vec![None; batch.rows.num_columns()];
    present[column] = Some((0..n).map(|r| r != row).collect());
    batch.present = Some(Presence(present));
    batch
}

/// What a chain made of batches.
#[derive(Debug, Default)]
struct Made {
    batches: Vec<ChangeBatch>,
    rejects: Vec<Reject>,
    accounts: HashMap<String, StageAccount>,
}

impl Made {
    fn rows(&self) -> Vec<String> {
        self.batches
            .iter()
            .flat_map(|b| shown(&texts(&b.rows).unwrap()))
            .collect()
    }

    fn ops(&self) -> Vec<Op> {
        let ops = |b: &ChangeBatch| (0..b.len()).map(|r| b.ops.get(r)).collect::<Vec<_>>();
        self.batches.iter().flat_map(ops).collect()
    }

    fn reasons(&self) -> Vec<String> {
        let one = |r: &Reject| format!("{}:{}:{}", r.stage, r.column.as_deref().unwrap_or("-"), r.reason);
        self.rejects.iter().map(one).collect()
    }
}

type Datastores = HashMap<String, Arc<dyn Source>>;

async fn build(stages: Vec<StageSpec>, key: &[&str], sources: &Datastores) -> Result<Chain> {
    let key: Vec<String> = key.iter().map(ToString::to_string).collect();
    Chain::build(stages.into_iter().map(NamedStage::from).collect(), &key, sources).await
}

/// Runs batches through a chain as the engine does and checks every account.
async fn run(chain: &Chain, batches: Vec<ChangeBatch>) -> Result<Made> {
    run_through(chain.open()?, batches).await
}

async fn run_through(mut stages: Vec<Box<dyn Stage>>, batches: Vec<ChangeBatch>) -> Result<Made> {
    let mut made = Made::default();
    let mut at = batches;
    for stage in &mut stages {
        let mut next = Vec::new();
        let mut results = Vec::new();
        for batch in at {
            results.push(stage.apply(batch).await?);
        }
        results.push(stage.finish().await?);
        let account = made.accounts.entry(stage.name().to_string()).or_default();
        for staged in results {
            *account += staged.account;
            made.rejects.extend(staged.rejects);
            next.extend(staged.batches);
        }
        let a = *account;
        assert_eq!(
            a.rows_in + a.expanded,
            a.rows_out + a.filtered + a.deduplicated + a.merged + a.superseded + a.rejected,
            "{} does not balance: {a:?}",
            stage.name()
        );
        assert_eq!(
            a.rows_out,
            next.iter().map(|b| b.len() as u64).sum::<u64>(),
            "{}",
            stage.name()
        );
        at = next;
    }
    made.batches = at;
    Ok(made)
}

fn compute(columns: &[(&str, &str)]) -> StageSpec {
    StageSpec::Compute {
        columns: columns
            .iter()
            .map(|(name, expression)| synctool_transform::Computed {
                name: name.to_string(),
                expression: expression.to_string(),
                to: None,
            })
            .collect(),
    }
}
