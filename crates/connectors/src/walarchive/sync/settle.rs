//! The end of a batch: what happened is counted, and the place moves, by the transaction that changes the rows.

use super::super::archive;
use super::super::batch::Batch;
use super::super::journal::{self, Entry, Net, Tallies};
use super::super::sql;
use super::super::tables::{self, Name};
use super::DataSync;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};
use synctool_core::error::Result;
use synctool_core::failpoint::failpoint;
use synctool_pgwal::{Lsn, RelFile};

/// What is known of the rows that a batch changed.
#[derive(Default)]
pub(super) struct Counted {
    /// How many there were, by table.
    pub(super) nets: BTreeMap<Name, Net>,
    /// Tables of which that is not known, or not how often.
    pub(super) uncounted: BTreeSet<Name>,
}

/// When a batch began, and what its parts took.
pub(super) struct Phases {
    pub(super) began: Instant,
    /// Until the plan was stored.
    pub(super) planned: Duration,
    /// Until the scratch server stood at the new place.
    pub(super) replayed: Duration,
    /// Until the local rows were changed.
    pub(super) applied: Duration,
}

impl DataSync {
    /// Counts, moves the place and commits: the batch has happened.
    pub(super) async fn move_to(
        &mut self,
        batch: &Batch,
        names: &BTreeMap<RelFile, Name>,
        counted: &Counted,
        phases: Phases,
    ) -> Result<()> {
        let run = |e| self.local.error(e, "storing the new place");
        let commit = batch.last_commit.map(|at| at.unix_micros() as f64 / 1e6);
        let mut all = Tallies::default();
        let mut metrics = journal::Counted::new();
        let mut count = |table: &str, hour: i64, tallies: &Tallies| {
            metrics.entry((table.to_owned(), hour)).or_default().add(tallies);
        };
        for (file, changes) in &batch.files {
            let Some(name) = names.get(file) else { continue };
            let table = tables::display(name);
            for (hour, counts) in &changes.hours {
                let tallies = Tallies {
                    operations: *counts,
                    rows_as_of: commit,
                    ..Tallies::default()
                };
                count(&table, *hour, &tallies);
                count(journal::ALL, *hour, &tallies);
            }
            all.operations.add(changes.counts());
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default().as_secs_f64();
        // A batch in which nothing committed is counted when it came.
        let hour = (commit.unwrap_or(now) / 3600.0).floor() as i64;
        for (name, net) in &counted.nets {
            let tallies = Tallies {
                net: *net,
                rows_as_of: commit,
                ..Tallies::default()
            };
            count(&tables::display(name), hour, &tallies);
            all.net.add(*net);
        }
        let whole = Tallies {
            operations: Default::default(),
            net: all.net,
            batches: 1,
            transactions: batch.commits,
            segments: self.replay.taken.len() as u64,
            bytes: batch.to.0.saturating_sub(batch.from.0),
            errors: 0,
            lag: commit.map(|commit| (now - commit).max(0.0)),
            rows_as_of: commit,
            incomplete: false,
        };
        count(journal::ALL, hour, &whole);
        let incomplete = Tallies {
            incomplete: true,
            rows_as_of: commit,
            ..Tallies::default()
        };
        let doubtful = counted.uncounted.iter().map(tables::display);
        for table in doubtful.chain((!counted.uncounted.is_empty()).then(|| journal::ALL.to_owned())) {
            for hour in &batch.hours {
                count(&table, *hour, &incomplete);
            }
        }
        journal::count_all(&self.local, &metrics, self.config.metric_hours).await?;
        let system = self.replay.scratch.control().system.to_string();
        let timeline = i64::from(self.replay.follower.timeline());
        let (to, restart) = (batch.to.to_string(), batch.restart.to_string());
        let size = self.replay.scratch.control().segment_size;
        let name = |at: Lsn| archive::segment_name(self.replay.follower.history(), size.number(at), size).to_string();
        let last = self
            .replay
            .taken
            .last()
            .map_or_else(|| name(batch.to), ToString::to_string);
        self.local
            .execute(
                sql::MOVE,
                &[
                    &system,
                    &timeline,
                    &to,
                    &restart,
                    &commit,
                    &last,
                    &name(batch.restart),
                    &self.config.replay.database,
                ],
            )
            .await
            .map_err(run)?;
        let clear = "DELETE FROM synctool.datasync_plan; TRUNCATE synctool.datasync_pre";
        self.local.batch_execute(clear).await.map_err(run)?;
        let segments = self.segments();
        let entry = Entry {
            from: Some(batch.from),
            to: Some(batch.to),
            segments,
            operations: Some(all.operations),
            net: Some(all.net),
            took: Some(phases.began.elapsed()),
            details: Some(serde_json::json!({
                "planned_ms": phases.planned.as_millis() as u64,
                "replayed_ms": phases.replayed.as_millis() as u64,
                "applied_ms": phases.applied.as_millis() as u64,
                "touched_rows_in_a_file": batch.is_spilled(),
            })),
            ..Entry::new(
                "info",
                "batch",
                format!("{} transactions up to {}", batch.commits, batch.to),
            )
        };
        journal::log(&self.local, &entry).await?;
        failpoint("datasync.before_commit")?;
        self.commit("storing the new place").await?;
        self.applied = Some(batch.to);
        self.planned = None;
        self.replay.taken.clear();
        Ok(())
    }
}
