//! Putting loaded tables in place.
//!
//! A rename commits by itself. So a publication holds the pipeline's named lock, notes what it will do in the plan's row,
//! renames (which is done where the load table is gone), and then merges, finishes the plan and forgets its partitions
//! in one transaction. Whatever of this was done when the process died is found done by the next one. Old tables go last.

use super::catalog::{self, must_find};
use super::client::{Session, number};
use super::control::{Outcome, PlanStatus};
use super::ddl;
use super::destination::MysqlDestination;
use super::merge::Mapping;
use super::sql::table as quoted;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{Plan, PlannedTable, Publish, Verify};
use synctool_core::schema::TableId;
use synctool_core::sink::Published;

/// The name of a publication in journal and history.
fn word(publish: &Publish) -> &'static str {
    match publish {
        Publish::Direct => "direct",
        Publish::Create => "create",
        Publish::Swap => "swap",
        Publish::Merge { .. } => "merge",
        Publish::Append => "append",
    }
}

/// Where the replaced table goes until it is dropped.
pub(super) fn old_name(plan: &Plan, index: usize) -> String {
    plan.load_name(index).replacen("_load_", "_old_", 1)
}

/// Publishes a plan; a finished one says what it did then.
pub(super) async fn publish(destination: &MysqlDestination, plan: &Plan) -> Result<Published> {
    let mut session = destination.session().await?;
    destination.control.lock(&mut session, &plan.pipeline, false).await?;
    session.run("START TRANSACTION", "beginning a transaction").await?;
    destination.control.hold_generation(&mut session, plan).await?;
    let mut publishing = Publishing {
        destination,
        plan,
        session,
    };
    let noted = match destination.control.lock_plan(&mut publishing.session, plan).await? {
        PlanStatus::Finished(applied) => {
            publishing.session.run("COMMIT", "ending a transaction").await?;
            publishing.clean_up().await;
            return Ok(Published { applied });
        }
        PlanStatus::Active(noted) => noted,
    };
    let loaded = publishing.loaded().await?;
    let noted = match noted {
        Some(noted) => noted,
        None => {
            let mut outcomes = Vec::new();
            for (index, planned) in plan.tables.iter().enumerate() {
                let at = |e: Error| e.at("table", planned.destination.to_string());
                if planned.publish != Publish::Direct {
                    publishing.check_count(index, loaded[index].written).await.map_err(at)?;
                }
                let outcome = publishing.note(index, planned, loaded[index]).await.map_err(at)?;
                outcomes.extend(outcome);
            }
            if !outcomes.is_empty() {
                destination
                    .control
                    .journal(&mut publishing.session, plan, &outcomes)
                    .await?;
            }
            outcomes
        }
    };
    publishing
        .session
        .run("COMMIT", "noting what is to be published")
        .await?;
    failpoint("publish.noted")?;
    for outcome in &noted {
        publishing
            .rename(outcome)
            .await
            .map_err(|e| e.at("table", outcome.table.to_string()))?;
    }
    failpoint("publish.renamed")?;
    let applied = publishing.finish(noted, &loaded).await?;
    publishing.clean_up().await;
    Ok(Published { applied })
}

struct Publishing<'a> {
    destination: &'a MysqlDestination,
    plan: &'a Plan,
    session: Session,
}

impl Publishing<'_> {
    fn load(&self, index: usize) -> TableId {
        self.destination.load_table(self.plan, index)
    }

    /// What the partitions of each table did; refuses to publish while one is not done.
    async fn loaded(&mut self) -> Result<Vec<Applied>> {
        let checkpoint = self
            .destination
            .control
            .checkpoint(&mut self.session, self.plan)
            .await?;
        let mut loaded = vec![Applied::default(); self.plan.tables.len()];
        for p in self.plan.partitions() {
            let direct = self
                .plan
                .tables
                .get(p.table)
                .is_none_or(|t| t.publish == Publish::Direct);
            match checkpoint.get(&p.id) {
                Some(state) if state.done || direct => {
                    if let Some(sum) = loaded.get_mut(p.table) {
                        *sum += state.applied;
                    }
                }
                None if direct => {}
                _ => {
                    return Err(
                        Error::bug("a plan was to be published before all of its partitions were done")
                            .at("partition", p.id.as_str()),
                    );
                }
            }
        }
        Ok(loaded)
    }

    async fn count(&mut self, table: &TableId) -> Result<u64> {
        let row = self
            .session
            .row(
                &format!("SELECT count(*) FROM {}", quoted(table)),
                &format!("counting the rows of {table}"),
            )
            .await?;
        Ok(number(&row, 0))
    }

    async fn check_count(&mut self, index: usize, written: u64) -> Result<()> {
        if self.plan.verify == Verify::None {
            return Ok(());
        }
        let load = self.load(index);
        let stored = self.count(&load).await?;
        if stored == written {
            return Ok(());
        }
        Err(Error::new(
            code::VERIFY_FAILED,
            format!("{stored} rows are stored in the load table, {written} were written to it"),
        )
        .hint("something else wrote into the load table; `synctool state reset` starts over"))
    }

    /// What a rename will do, counted before it is done; `None` for what is no rename.
    async fn note(&mut self, index: usize, planned: &PlannedTable, loaded: Applied) -> Result<Option<Outcome>> {
        let table = self.destination.qualified(&planned.destination);
        let rows = loaded.written;
        let applied = match planned.publish {
            Publish::Create => {
                if catalog::find(&mut self.session, &table).await?.is_some() {
                    return Err(Error::new(
                        code::SCHEMA_MISMATCH,
                        "a table of this name was made by somebody else while it was loaded",
                    )
                    .hint(format!(
                        "drop it, or start over: synctool state reset {}",
                        self.plan.pipeline
                    )));
                }
                Applied::inserts(rows)
            }
            Publish::Swap => {
                let existing = must_find(&mut self.session, &table).await?;
                let obstacles = self
                    .destination
                    .obstacles(&mut self.session, &existing, &planned.schema)
                    .await?;
                if let Some(first) = obstacles.first() {
                    return Err(Error::new(
                        code::SWAP_REFUSED,
                        format!("the table changed since the plan was made: {first}"),
                    )
                    .hint("use full_mode: upsert"));
                }
                let before = self.count(&table).await?;
                let deleted = if planned.schema.key.is_empty() {
                    before.saturating_sub(rows)
                } else {
                    let mapping = Mapping::new(&existing, &planned.schema)?;
                    let sql = mapping.count_missing(&quoted(&table), &quoted(&self.load(index)));
                    number(&self.session.row(&sql, "counting rows that would go").await?, 0)
                };
                self.plan.guard.check(&table, before, deleted, rows)?;
                Applied::swapped(before, deleted, rows)
            }
            _ => return Ok(None),
        };
        Ok(Some(Outcome {
            index,
            table,
            publish: word(&planned.publish).into(),
            applied,
        }))
    }

    /// Puts a loaded table in its place, unless that was done.
    async fn rename(&mut self, outcome: &Outcome) -> Result<()> {
        let load = self.load(outcome.index);
        if catalog::find(&mut self.session, &load).await?.is_none() {
            must_find(&mut self.session, &outcome.table).await?;
            return Ok(());
        }
        let (table, load) = (quoted(&outcome.table), quoted(&load));
        let sql = if outcome.publish == "swap" {
            let old = TableId {
                schema: outcome.table.schema.clone(),
                name: old_name(self.plan, outcome.index),
            };
            format!("RENAME TABLE {table} TO {}, {load} TO {table}", quoted(&old))
        } else {
            format!("RENAME TABLE {load} TO {table}")
        };
        self.session
            .run(&sql, "putting the loaded table in its place")
            .await
            .map(|_| ())
    }

    /// Merges and appends, and finishes the plan, in one transaction.
    async fn finish(&mut self, noted: Vec<Outcome>, loaded: &[Applied]) -> Result<Applied> {
        self.session.run("START TRANSACTION", "beginning a transaction").await?;
        let control = &self.destination.control;
        control.hold_generation(&mut self.session, self.plan).await?;
        if let PlanStatus::Finished(applied) = control.lock_plan(&mut self.session, self.plan).await? {
            self.session.run("ROLLBACK", "ending a transaction").await?;
            return Ok(applied);
        }
        let mut outcomes = noted;
        for (index, planned) in self.plan.tables.iter().enumerate() {
            let table = self.destination.qualified(&planned.destination);
            let applied = match &planned.publish {
                Publish::Create | Publish::Swap => continue,
                Publish::Direct => Ok(loaded[index]),
                Publish::Append => self.append(index, planned, loaded[index].written).await,
                Publish::Merge { delete_missing } => {
                    self.merge(index, planned, loaded[index].written, *delete_missing).await
                }
            };
            outcomes.push(Outcome {
                index,
                publish: word(&planned.publish).into(),
                applied: applied.map_err(|e| e.at("table", table.to_string()))?,
                table,
            });
        }
        let mut total = Applied::default();
        outcomes.iter().for_each(|o| total += o.applied);
        control.finish(&mut self.session, self.plan, total, &outcomes).await?;
        failpoint("publish.before")?;
        self.session.run("COMMIT", "publishing").await?;
        Ok(total)
    }

    async fn mapping(&mut self, planned: &PlannedTable) -> Result<Mapping> {
        let existing = must_find(&mut self.session, &planned.destination).await?;
        Mapping::new(&existing, &planned.schema)
    }

    async fn append(&mut self, index: usize, planned: &PlannedTable, rows: u64) -> Result<Applied> {
        let mapping = self.mapping(planned).await?;
        let (table, load) = (quoted(&planned.destination), quoted(&self.load(index)));
        let inserted = self
            .session
            .run(&mapping.insert_all(&table, &load), "appending the loaded rows")
            .await?;
        if inserted != rows && self.plan.verify != Verify::None {
            return Err(Error::new(
                code::VERIFY_FAILED,
                format!("{inserted} of {rows} rows were appended; nothing was changed"),
            ));
        }
        Ok(Applied::inserts(rows))
    }

    async fn merge(
        &mut self,
        index: usize,
        planned: &PlannedTable,
        rows: u64,
        delete_missing: bool,
    ) -> Result<Applied> {
        if planned.schema.key.is_empty() {
            return Err(Error::new(
                code::KEY_MISSING,
                "merging needs a key, and the table has none",
            ));
        }
        let mapping = self.mapping(planned).await?;
        let (table, load) = (quoted(&planned.destination), quoted(&self.load(index)));
        let mut deleted = 0;
        if delete_missing {
            let sql = mapping.delete_missing(&table, &load, None);
            deleted = self
                .session
                .run(&sql, "deleting rows that the source does not have")
                .await?;
            let guard = self.plan.guard;
            // The count of the rows before is needed only where the number alone does not settle it.
            if !(guard.allow || deleted == 0 || (deleted <= guard.max_rows && rows > 0)) {
                let left = self.count(&planned.destination).await?;
                guard.check(&planned.destination, left + deleted, deleted, rows)?;
            }
        }
        let mut put_back = 0;
        let mut updated = 0;
        if mapping.fragile && mapping.whole {
            // Rows may exchange their unique values, which no order of updates allows: those that differ go, and come
            // back with the missing ones.
            if let Some(sql) = mapping.delete_differing(&table, &load) {
                put_back = self.session.run(&sql, "replacing rows that differ").await?;
                updated = put_back;
            }
        } else if let Some(sql) = mapping.update_differing(&table, &load) {
            updated = self.session.run(&sql, "updating rows that differ").await?;
        }
        let put = self
            .session
            .run(
                &mapping.insert_missing(&table, &load),
                "inserting rows that are missing",
            )
            .await?;
        let inserted = put
            .checked_sub(put_back)
            .ok_or_else(|| Error::bug("a merge lost rows that it was to put back"))?;
        let unchanged = rows
            .checked_sub(inserted + updated)
            .ok_or_else(Error::doubled_at_destination)?;
        Ok(Applied {
            written: rows,
            inserted,
            updated,
            deleted,
            unchanged,
            ..Applied::default()
        })
    }

    /// Drops what is left of the load. The plan is finished: a failure here is none of the run, and the next one drops it.
    async fn clean_up(&mut self) {
        let schemas = self.destination.schemas(self.plan);
        if let Err(e) = self
            .destination
            .drop_loads(&mut self.session, &self.plan.pipeline, &schemas)
            .await
        {
            tracing::info!(error = %e, "load tables stay for now");
        }
    }
}

/// What seal and publish would run for one table.
pub(super) async fn preview(
    destination: &MysqlDestination,
    session: &mut Session,
    plan: &Plan,
    index: usize,
) -> Result<Vec<String>> {
    let Some(planned) = plan.tables.get(index) else {
        return Ok(Vec::new());
    };
    let table = quoted(&destination.qualified(&planned.destination));
    let load = quoted(&destination.load_table(plan, index));
    if planned.publish == Publish::Create {
        return Ok(vec![format!("RENAME TABLE {load} TO {table}  -- publish")]);
    }
    let Some(mut existing) = catalog::find(session, &planned.destination).await? else {
        return Ok(Vec::new());
    };
    ddl::evolve(&destination.flavor, planned, &mut existing)?;
    let mapping = Mapping::new(&existing, &planned.schema)?;
    let mut out = Vec::new();
    match &planned.publish {
        Publish::Swap => {
            let old = quoted(&TableId {
                schema: existing.table.schema.clone(),
                name: old_name(plan, index),
            });
            out.push(format!(
                "RENAME TABLE {table} TO {old}, {load} TO {table}  -- publish; waits for others' transactions on the table"
            ));
            out.push(format!("DROP TABLE {old}  -- publish"));
        }
        Publish::Append => out.push(format!("{}  -- publish", mapping.insert_all(&table, &load))),
        Publish::Merge { delete_missing } => {
            let lock = "-- publish; locks the rows that it changes";
            if *delete_missing {
                out.push(format!("{}  {lock}", mapping.delete_missing(&table, &load, None)));
            }
            out.extend(mapping.update_differing(&table, &load).map(|s| format!("{s}  {lock}")));
            out.push(format!("{}  {lock}", mapping.insert_missing(&table, &load)));
        }
        _ => out.push(format!(
            "-- rows of {table} are written by op, in transactions of the source"
        )),
    }
    if matches!(planned.publish, Publish::Append | Publish::Merge { .. }) {
        out.push(format!("DROP TABLE {load}  -- publish"));
    }
    Ok(out)
}
