//! Writes partitions: rows of a load go into a temporary table, and from there into the load table together with the
//! checkpoint; changes go through the [`Applier`] into the table itself.

use super::DuckDb;
use super::apply::Applier;
use super::destination::{check_generation, load_table};
use super::session::{Session, end, execute, ingest, rows, transaction};
use super::sql::{quote, table as table_name};
use super::types::{store_as, to_duckdb};
use adbc_driver_manager::ManagedConnection;
use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use synctool_core::change::{Event, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, Publish};
use synctool_core::progress::{Advance, Checkpoint, PartitionId, PartitionState};
use synctool_core::sink::{Sink, shares};

/// The temporary table that rows for a load table wait in.
fn stage(index: usize) -> String {
    format!("_synctool_stage_{index}")
}

pub(super) struct DuckDbSink {
    plan: Arc<Plan>,
    session: Session,
    _at_work: Arc<()>,
    epochs: HashMap<PartitionId, i64>,
    checkpoint: Checkpoint,
    /// Whether a transaction is open.
    open: bool,
    /// Rows that wait for the commit, per table.
    staged: BTreeMap<usize, u64>,
    /// In a plan that changes tables directly. It is on the connection's thread while that works; after an error it is
    /// gone, as the sink is useless then.
    direct: Option<Applier>,
}

impl DuckDbSink {
    pub(super) async fn open(duckdb: &DuckDb, plan: &Plan) -> Result<DuckDbSink> {
        let plan = Arc::new(plan.clone());
        let direct = plan.tables.iter().any(|t| t.publish == Publish::Direct);
        Ok(DuckDbSink {
            direct: direct.then(|| Applier::new(plan.clone())),
            plan,
            session: duckdb.database.session().await?,
            _at_work: duckdb.database.sinks.clone(),
            epochs: HashMap::new(),
            checkpoint: Checkpoint::new(),
            open: false,
            staged: BTreeMap::new(),
        })
    }
}

fn decode(state: &str) -> Result<PartitionState> {
    serde_json::from_str(state)
        .map_err(|e| Error::new(code::STATE_STORE, "a stored partition cannot be read").caused_by(e))
}

#[async_trait]
impl Sink for DuckDbSink {
    async fn recover(&mut self, partitions: &[PartitionId]) -> Result<Checkpoint> {
        let (plan, ids) = (self.plan.clone(), partitions.to_vec());
        let found = self
            .session
            .run(move |c| {
                transaction(c, |c| {
                    check_generation(c, &plan)?;
                    let generation = plan.generation.to_string();
                    let mut found = Vec::new();
                    for id in ids {
                        let key = [plan.pipeline.as_str(), &generation, id.as_str()];
                        let stored = rows(
                            c,
                            "SELECT CAST(epoch AS VARCHAR), state FROM main._synctool_checkpoint \
                         WHERE pipeline = ? AND generation = CAST(? AS BIGINT) AND \"partition\" = ?",
                            &key,
                        )?;
                        let (epoch, state) = match stored.into_iter().next().as_deref() {
                            Some([Some(epoch), Some(state)]) => (epoch.parse().unwrap_or(0), decode(state)?),
                            _ => {
                                execute(
                                    c,
                                    "INSERT INTO main._synctool_checkpoint VALUES (?, CAST(? AS BIGINT), ?, 0, '{}')",
                                    &key,
                                )?;
                                (0, PartitionState::default())
                            }
                        };
                        execute(
                            c,
                            "UPDATE main._synctool_checkpoint SET epoch = epoch + 1 \
                         WHERE pipeline = ? AND generation = CAST(? AS BIGINT) AND \"partition\" = ?",
                            &key,
                        )?;
                        found.push((id, epoch + 1, state));
                    }
                    Ok(found)
                })
            })
            .await?;
        failpoint("sink.recover.after")?;
        let mut checkpoint = Checkpoint::new();
        for (id, epoch, state) in found {
            self.epochs.insert(id.clone(), epoch);
            checkpoint.insert(id, state);
        }
        self.checkpoint.extend(checkpoint.clone());
        Ok(checkpoint)
    }

    async fn write(&mut self, event: Event) -> Result<()> {
        failpoint("sink.write")?;
        let direct = self.plan.tables.iter().any(|t| t.publish == Publish::Direct);
        if direct {
            let gone = || Error::bug("a DuckDB sink was used after it had failed");
            let mut applier = self.direct.take().ok_or_else(gone)?;
            let begin = !std::mem::replace(&mut self.open, true);
            let applier = self
                .session
                .run(move |c| {
                    if begin {
                        execute(c, "BEGIN TRANSACTION", &[])?;
                    }
                    applier.write(c, event)?;
                    Ok(applier)
                })
                .await?;
            self.direct = Some(applier);
            return Ok(());
        }
        let loads = |op: Op| matches!(op, Op::Insert | Op::Upsert);
        let batch = match event {
            Event::Rows(batch) if matches!(batch.ops, Ops::All(op) if loads(op)) && batch.present.is_none() => batch,
            Event::Begin(_) | Event::Message { .. } | Event::Compared(_) | Event::Boundary { .. } => return Ok(()),
            _ => {
                return Err(Error::bug(
                    "a change came for a table that is loaded and then published",
                ));
            }
        };
        if batch.is_empty() {
            return Ok(());
        }
        let index = self.plan.tables.iter().position(|t| t.destination == *batch.table);
        let index = index.ok_or_else(|| Error::bug("rows came for a table that is not in the plan"))?;
        // Names inside the stage are ours: whatever the user's columns are called, they cannot collide.
        let arrays = batch.rows.columns().iter().map(to_duckdb).collect::<Result<Vec<_>>>()?;
        let fields: Vec<Field> = arrays
            .iter()
            .enumerate()
            .map(|(i, a)| Field::new(format!("c{i}"), a.data_type().clone(), true))
            .collect();
        let rows =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|e| Error::bug(e.to_string()))?;
        let (begin, first) = (!self.open, !self.staged.contains_key(&index));
        *self.staged.entry(index).or_default() += batch.len() as u64;
        self.open = true;
        self.session
            .run(move |c| {
                if begin {
                    execute(c, "BEGIN TRANSACTION", &[])?;
                }
                ingest(c, &stage(index), first, rows)
            })
            .await
    }

    async fn commit(&mut self, advances: &[Advance]) -> Result<Applied> {
        failpoint("sink.commit.before")?;
        let (plan, staged, begin) = (self.plan.clone(), std::mem::take(&mut self.staged), !self.open);
        let mut direct = self.direct.take();
        let mut steps = Vec::new();
        for a in advances {
            let epoch = self
                .epochs
                .get(&a.partition)
                .copied()
                .ok_or_else(|| Error::bug("a partition not recovered"))?;
            steps.push((a.clone(), epoch));
        }
        let advances = advances.to_vec();
        let (applied, stored, direct) = self
            .session
            .run(move |c| {
                if begin {
                    execute(c, "BEGIN TRANSACTION", &[])?;
                }
                let work = |c: &mut ManagedConnection| {
                    let mut done: BTreeMap<usize, Applied> = BTreeMap::new();
                    if let Some(direct) = &mut direct {
                        done = direct.finish(c)?;
                    }
                    for (index, rows) in staged {
                        let columns = &plan.tables[index].schema.columns;
                        let values: Vec<String> = columns
                            .iter()
                            .enumerate()
                            .map(|(i, column)| format!("CAST(c{i} AS {})", store_as(column).type_name))
                            .collect();
                        let names: Vec<String> = columns.iter().map(|c| quote(&c.name)).collect();
                        let (load, stage) = (table_name(&load_table(&plan, index)), stage(index));
                        let sql = format!(
                            "INSERT INTO {load} ({}) SELECT {} FROM temp.{stage}",
                            names.join(", "),
                            values.join(", ")
                        );
                        execute(c, &sql, &[])?;
                        execute(c, &format!("DROP TABLE temp.{stage}"), &[])?;
                        done.insert(index, Applied::inserts(rows));
                    }
                    let shares = shares(&plan, &advances, &done)?;
                    let mut applied = Applied::default();
                    shares.iter().for_each(|a| applied += *a);
                    check_generation(c, &plan)?;
                    let mut stored = Vec::new();
                    for ((a, epoch), share) in steps.into_iter().zip(shares) {
                        let generation = plan.generation.to_string();
                        let key = [plan.pipeline.as_str(), &generation, a.partition.as_str()];
                        let found = rows(
                            c,
                            "SELECT CAST(epoch AS VARCHAR), state FROM main._synctool_checkpoint \
                         WHERE pipeline = ? AND generation = CAST(? AS BIGINT) AND \"partition\" = ?",
                            &key,
                        )?;
                        let fenced = || Error::new(code::FENCED, "a newer writer has taken over the partition");
                        let before = match found.into_iter().next().as_deref() {
                            Some([Some(e), Some(state)]) if *e == epoch.to_string() => decode(state)?,
                            _ => return Err(fenced()),
                        };
                        if before.position != a.from || before.done {
                            return Err(fenced());
                        }
                        for (number, reject) in &a.rejects {
                            let sql = "INSERT INTO main._synctool_rejects VALUES (?, CAST(? AS BIGINT), ?, \
                                   CAST(? AS BIGINT), ?, ?, ?, ?, nullif(?, ''), ?, CAST(now() AS TIMESTAMP))";
                            let column = reject.column.as_deref().unwrap_or_default();
                            let (number, table, key) =
                                (number.to_string(), reject.table.to_string(), reject.key_json());
                            let values = [
                                plan.pipeline.as_str(),
                                &generation,
                                a.partition.as_str(),
                                &number,
                                &plan.run_id,
                                &reject.stage,
                                &table,
                                reject.reason,
                                column,
                                &key,
                            ];
                            execute(c, sql, &values)?;
                        }
                        let mut sum = before.applied;
                        sum += share;
                        let state = PartitionState {
                            position: Some(a.to),
                            done: a.done,
                            accounts: a.accounts,
                            applied: sum,
                        };
                        let json = serde_json::to_string(&state).map_err(|e| Error::bug(e.to_string()))?;
                        execute(
                            c,
                            "UPDATE main._synctool_checkpoint SET state = ? \
                         WHERE pipeline = ? AND generation = CAST(? AS BIGINT) AND \"partition\" = ?",
                            &[&json, key[0], key[1], key[2]],
                        )?;
                        stored.push((a.partition, state));
                    }
                    Ok((applied, stored, direct))
                };
                let done = work(c);
                end(c, done)
            })
            .await?;
        self.direct = direct;
        self.open = false;
        failpoint("sink.commit.after")?;
        self.checkpoint.extend(stored);
        Ok(applied)
    }

    async fn durable(&mut self) -> Result<Checkpoint> {
        Ok(self.checkpoint.clone())
    }

    async fn release(&mut self, partitions: &[PartitionId]) -> Result<()> {
        for id in partitions {
            self.epochs.remove(id);
            self.checkpoint.remove(id);
        }
        Ok(())
    }
}
