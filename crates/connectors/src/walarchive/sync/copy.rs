//! Whole tables at a standing place. A small one is copied by one transaction. The rows of a large one go beside it
//! first, range by range and several ranges at once, each in a transaction that also says so: whoever goes on after a
//! kill begins at the first range that is not there. Then one transaction puts them in the place of the old rows.

use super::super::scratch::blamed;
use super::super::sql;
use super::super::tables::{self, Found, Name, Table};
use super::apply::{COPYING, LOCKED, State, Work, is_its_own};
use super::settle::{Counted, Phases};
use super::{DataSync, Step};
use crate::postgres::{Connection, Postgres};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_pgwal::Lsn;

/// The first block of a range, and the one behind it if it is not the last.
type Range = (i64, Option<i64>);

impl DataSync {
    /// Replays until nothing open began before the scan, stores that place, and copies the selected tables there.
    pub(super) async fn first_copy(&mut self) -> Result<Step> {
        let began = Instant::now();
        let mut next = match self.replay.passing {
            None => self.ears.over(&self.local, self.replay.take_first()).await?,
            Some(_) => self.ears.over(&self.local, self.replay.take_beyond()).await?,
        };
        let (batch, session) = loop {
            let batch = match next {
                Ok(batch) => batch,
                Err(why) => return Ok(Step::Idle(why)),
            };
            if let Some(session) = self.arrive(&batch).await? {
                break (batch, session);
            }
            self.replay.scan.resume(batch);
            next = self.ears.over(&self.local, self.replay.take_beyond()).await?;
        };
        let replayed = began.elapsed();
        failpoint("datasync.first_copy")?;
        let (there, here) = self.find(&session).await?;
        self.begin().await?;
        for table in there.tables.values() {
            self.set_waiting(table, COPYING).await?;
        }
        let misparted = tables::misparted(&self.local, &there, &here).await?;
        self.note_partitions(&misparted, batch.to, batch.to).await?;
        self.note_selected(&there).await?;
        let phases = Phases {
            began,
            planned: Duration::ZERO,
            replayed,
            applied: Duration::ZERO,
        };
        self.move_to(&batch, &BTreeMap::new(), &Counted::default(), phases)
            .await?;
        self.standing = true;
        self.copy_waiting(&session, &there, &here, batch.to).await?;
        self.resumed = true;
        Ok(Step::Applied(batch.to))
    }

    /// Goes on with copies that an earlier process began: the scratch server still stands where they were begun.
    pub(super) async fn resume_copies(&mut self, at: Lsn) -> Result<()> {
        if self.resumed {
            return Ok(());
        }
        let waiting = self.local.query_one(sql::WAITING, &[]).await;
        let waiting = waiting.map_err(|e| self.local.error(e, "reading the state"))?;
        if waiting.get(0) {
            self.ears.over(&self.local, self.replay.stand(at)).await?;
            let session = self.replay.session().await?;
            let (there, here) = self.find(&session).await?;
            self.copy_waiting(&session, &there, &here, at).await?;
        }
        self.resumed = true;
        Ok(())
    }

    /// What was copied of a table is no longer wanted: it is copied anew.
    pub(super) async fn copy_anew(&self, name: &Name) -> Result<()> {
        self.end_copy(name).await?;
        let sql = "UPDATE synctool.datasync_tables SET state = 'waiting', why = $3, error_code = NULL, next_step = NULL, since = now()
                   WHERE schema_name = $1 AND table_name = $2";
        let done = self.local.execute(sql, &[&name.0, &name.1, &COPYING]).await;
        done.map(drop).map_err(|e| self.local.error(e, "writing the state"))
    }

    /// Copies every table that holds no copy, each in a transaction of its own.
    pub(super) async fn copy_waiting(&self, session: &Connection, there: &Found, here: &Found, at: Lsn) -> Result<()> {
        let known = self.known().await?;
        for (name, table) in &there.tables {
            let known = known.get(name);
            if known.is_some_and(|k| k.state != State::Waiting) {
                continue;
            }
            if tables::is_blocked(session, table).await? {
                if known.is_none_or(|k| k.why.as_deref() != Some(LOCKED)) {
                    self.begin().await?;
                    self.wait_for_lock(table, at).await?;
                    self.commit("storing that a table waits").await?;
                }
                continue;
            }
            let local = here.tables.get(name);
            let staged = match table.fits(local) {
                Ok(()) => self.copy_beside(session, table, at).await,
                Err(_) => Ok(None),
            };
            self.begin().await?;
            match staged {
                Ok(staging) => {
                    let work = staging.as_deref().map_or(Work::Whole, Work::Staged);
                    let brought = self.bring(session, table, local, work, at, at, false).await;
                    brought.map_err(|e| e.at("table", table.display()))?;
                }
                Err(e) if is_its_own(&e) => self.pause(table, &e, at, at).await?,
                Err(e) => return Err(e.at("table", table.display())),
            }
            failpoint("datasync.table_copied")?;
            self.commit("storing a copied table").await?;
            self.check_wanted(&self.local).await?;
        }
        Ok(())
    }

    /// Ends here if somebody asked for an end: what was copied stays, and the next start goes on behind it.
    async fn check_wanted(&self, local: &Connection) -> Result<()> {
        let asked = local.query_one(sql::STOP_WANTED, &[]).await;
        let asked = asked.map_err(|e| local.error(e, "looking for requests"))?;
        match self.config.stop.is_cancelled() || asked.get(0) {
            true => Err(Error::new(
                code::INTERRUPTED,
                "the copy of tables was stopped between two ranges",
            )),
            false => Ok(()),
        }
    }

    /// Brings all rows of a large table beside it; None if it is small.
    async fn copy_beside(&self, session: &Connection, table: &Table, at: Lsn) -> Result<Option<String>> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let what = format!("copying {}", table.display());
        let size = session.query_one(sql::BLOCKS, &[schema, name]).await;
        let size = size.map_err(|e| blamed(session.error(e, &what)))?;
        let (blocks, bytes): (i64, i64) = (size.get(0), size.get(1));
        let width = i64::try_from(self.config.copy_range).unwrap_or(i64::MAX) / bytes.max(1);
        let width = width.max(1);
        if blocks <= width {
            return Ok(None);
        }
        let begun = self.begin_copy(table, at, blocks, width).await;
        if begun.is_err() {
            self.abandon().await;
        }
        let staging = begun?;
        let open = self.local.query(sql::OPEN_RANGES, &[schema, name]).await;
        let open = open.map_err(|e| self.local.error(e, &what))?;
        let open: VecDeque<Range> = open.iter().map(|row| (row.get(0), row.get(1))).collect();
        let jobs = self.config.copy_jobs.clamp(1, open.len().max(1));
        let open = Mutex::new(open);
        let work = (0..jobs).map(|_| self.copy_ranges(table, &staging, &open));
        futures::future::try_join_all(work).await?;
        Ok(Some(staging))
    }

    /// Finds the copy that was begun at this place, or begins one.
    async fn begin_copy(&self, table: &Table, at: Lsn, blocks: i64, width: i64) -> Result<String> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let what = format!("copying {}", table.display());
        let run = |e| self.local.error(e, &what);
        let begun = self
            .local
            .query_opt(sql::COPY_BEGUN, &[schema, name])
            .await
            .map_err(run)?;
        if let Some(row) = begun {
            let (staging, place, is_there): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
            if is_there && place.parse() == Ok(at) {
                return Ok(staging);
            }
        }
        self.begin().await?;
        self.end_copy(&table.name).await?;
        let row = self.local.query_one(sql::STAGING, &[schema, name]).await.map_err(run)?;
        let staging: String = row.get(0);
        let create = sql::create_staging(&staging, schema, name, &table.stored());
        self.local.batch_execute(&create).await.map_err(run)?;
        let place = at.to_string();
        let values: [&(dyn postgres_types::ToSql + Sync); 6] = [schema, name, &staging, &place, &blocks, &width];
        self.local.execute(sql::BEGIN_COPY, &values).await.map_err(run)?;
        self.set_waiting(table, COPYING).await?;
        self.commit("beginning to copy a table").await?;
        Ok(staging)
    }

    /// Forgets what was copied beside a table.
    pub(super) async fn end_copy(&self, name: &Name) -> Result<()> {
        let run = |e| self.local.error(e, "forgetting a copy that was begun");
        let beside = self
            .local
            .query(sql::END_COPY, &[&name.0, &name.1])
            .await
            .map_err(run)?;
        for row in beside {
            let drop = sql::drop_staging(row.get(0));
            self.local.batch_execute(&drop).await.map_err(run)?;
        }
        Ok(())
    }

    /// Copies one range after the other, while there are any.
    async fn copy_ranges(&self, table: &Table, staging: &str, open: &Mutex<VecDeque<Range>>) -> Result<()> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let what = format!("copying {}", table.display());
        let there = self.replay.session().await?;
        let here = Postgres::open(self.config.local.clone())?.connect().await?;
        let run = |e| here.error(e, &what);
        let columns = table.stored();
        let write = sql::write_rows(&sql::table("synctool", staging), &columns);
        loop {
            let next = open.lock().map_err(|_| Error::bug("a copy that panicked"))?.pop_front();
            let Some((first, end)) = next else { return Ok(()) };
            here.batch_execute("BEGIN").await.map_err(run)?;
            let done = here
                .execute(sql::RANGE_DONE, &[schema, name, &first])
                .await
                .map_err(run)?;
            if done == 1 {
                let read = sql::read_range(schema, name, &columns, first, end);
                tables::copy(&there, &read, &here, &write, &what).await?;
            }
            failpoint("datasync.before_range")?;
            here.batch_execute("COMMIT").await.map_err(run)?;
            failpoint("datasync.range_copied")?;
            self.check_wanted(&here).await?;
        }
    }
}
