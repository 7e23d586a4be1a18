//! One table at a time: what a batch does to it, and what becomes of one that cannot be followed. A table that has
//! trouble of its own is put aside; the others go on.

use super::super::journal::{self, Entry, Net};
use super::super::replay::by_address;
use super::super::sql;
use super::super::tables::{self, Found, Misparted, Name, Table};
use super::super::touched::Addresses;
use super::{CHUNK, DataSync, FEW};
use crate::postgres::Connection;
use std::collections::BTreeMap;
use synctool_core::error::{Error, ErrorKind, Result, code};
use synctool_pgwal::Lsn;

/// What is stored about a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It holds production's rows of the stored place.
    Synced,
    /// It will be copied.
    Waiting,
    /// It stands where it was, until somebody says `resync`.
    Paused,
}

/// The same with what else matters.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) state: State,
    /// Whether it was copied anew by itself not long ago.
    pub(super) healed: bool,
    /// The name by which it was selected.
    pub(super) selected_as: String,
    /// Why it is not synced.
    pub(super) why: Option<String>,
    /// Rows of its last copy.
    pub(super) rows: Option<i64>,
}

/// What a batch does to a table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Work<'a> {
    /// No row of it was touched.
    Nothing,
    /// Rows at these addresses were.
    Rows(&'a Addresses),
    /// It is read whole.
    Whole,
    /// All its rows are in a table beside it.
    Staged(&'a str),
}

/// What is to be stored about a table.
#[derive(Default)]
struct Row<'a> {
    state: &'a str,
    at: Option<Lsn>,
    rows: Option<u64>,
    code: Option<&'a str>,
    why: Option<&'a str>,
    next: Option<&'a str>,
    healed: bool,
}

impl<'a> Row<'a> {
    fn new(state: &'a str) -> Self {
        Row {
            state,
            ..Row::default()
        }
    }
}

/// Why a table waits whose copy was begun, or will be at once.
pub(super) const COPYING: &str = "it is being copied";
/// Why a table waits that cannot be read.
pub(super) const LOCKED: &str = "locked in production at this place; it is copied when the lock is over";

const SAVE: &str = "SAVEPOINT datasync_table";
const BACK: &str = "ROLLBACK TO SAVEPOINT datasync_table";
const DONE: &str = "RELEASE SAVEPOINT datasync_table";

/// A few rows of a large table are found by its index: the planner, which thinks of slow disks, would rather read all of it.
const ONE_BY_ONE: &str = "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";
/// Whatever comes next is planned as ever. Where something failed, the savepoint says so.
const AS_EVER: &str = "SET LOCAL enable_hashjoin TO DEFAULT; SET LOCAL enable_mergejoin TO DEFAULT";

impl DataSync {
    /// Every table that something is stored about.
    pub(super) async fn known(&self) -> Result<BTreeMap<Name, Known>> {
        let rows = self.local.query(sql::KNOWN, &[]).await;
        let rows = rows.map_err(|e| self.local.error(e, "reading the state"))?;
        let known = |row: &tokio_postgres::Row| {
            let state: String = row.get(2);
            let known = Known {
                state: match state.as_str() {
                    "synced" => State::Synced,
                    "paused" => State::Paused,
                    _ => State::Waiting,
                },
                healed: row.get(3),
                selected_as: row.get(4),
                why: row.get(5),
                rows: row.get(6),
            };
            ((row.get(0), row.get(1)), known)
        };
        Ok(rows.iter().map(known).collect())
    }

    /// Nothing is known of a table any more: if it is selected, it is copied anew.
    pub(super) async fn forget(&self, name: &Name) -> Result<()> {
        self.end_copy(name).await?;
        let sql = "DELETE FROM synctool.datasync_tables WHERE schema_name = $1 AND table_name = $2";
        let done = self.local.execute(sql, &[&name.0, &name.1]).await;
        done.map(drop).map_err(|e| self.local.error(e, "writing the state"))
    }

    /// Remembers which selected names mean something, and says it when one does not.
    pub(super) async fn note_selected(&self, there: &Found) -> Result<()> {
        let run = |e| self.local.error(e, "writing the state");
        let found = there.asked.iter().map(|name| there.names.contains_key(name));
        let found: Vec<bool> = found.collect();
        let news = self.local.query(sql::NOTE_SELECTED, &[&there.asked, &found]).await;
        for row in news.map_err(run)? {
            let (name, found): (String, bool) = (row.get(0), row.get(1));
            if !found {
                let text = format!("tables_to_sync names {name}, and there is no such table in production");
                let table = tables::display(&tables::parse_name(&name));
                let entry = Entry::new("warn", "unknown_table", text).table(table);
                journal::log(&self.local, &entry).await?;
            }
        }
        self.local.batch_execute(sql::FORGET_SELECTED).await.map_err(run)
    }

    /// Puts tables aside whose partitions here are not production's. What holds their rows goes on.
    pub(super) async fn note_partitions(&self, misparted: &Misparted, from: Lsn, to: Lsn) -> Result<()> {
        let known = self.known().await?;
        for (name, (table, trouble)) in misparted {
            let told = known.get(name).and_then(|k| k.why.as_deref());
            if told != Some(trouble.message()) {
                self.pause(table, trouble, from, to).await?;
            }
        }
        Ok(())
    }

    /// The table is to be copied.
    pub(super) async fn set_waiting(&self, table: &Table, why: &str) -> Result<()> {
        let row = Row {
            why: Some(why),
            ..Row::new("waiting")
        };
        self.set(table, &row).await
    }

    /// Production holds a lock on the table that is not over here: it is copied when it is.
    pub(super) async fn wait_for_lock(&self, table: &Table, at: Lsn) -> Result<()> {
        let why = LOCKED;
        self.set_waiting(table, why).await?;
        let entry = Entry::new("warn", "blocked", format!("{} is {why}", table.display()));
        journal::log(&self.local, &entry.table(table.display()).to(at)).await
    }

    async fn set(&self, table: &Table, row: &Row<'_>) -> Result<()> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let at = row.at.map(|at| at.to_string());
        let rows = row.rows.map(|rows| i64::try_from(rows).unwrap_or(i64::MAX));
        let values: [&(dyn postgres_types::ToSql + Sync); 10] = [
            schema,
            name,
            &table.selected,
            &row.state,
            &at,
            &rows,
            &row.code,
            &row.why,
            &row.next,
            &row.healed,
        ];
        let done = self.local.execute(sql::SET_TABLE, &values).await;
        done.map(drop).map_err(|e| self.local.error(e, "writing the state"))
    }

    /// Brings a table from one place to another inside the open transaction. Trouble that is the table's own puts it
    /// aside and is no error. Of a table that was read whole nobody knows which rows changed.
    #[allow(clippy::too_many_arguments, reason = "both sides, both places")]
    pub(super) async fn bring(
        &self,
        session: &Connection,
        table: &Table,
        local: Option<&Table>,
        work: Work<'_>,
        from: Lsn,
        to: Lsn,
        healed: bool,
    ) -> Result<Option<Net>> {
        // Most tables of most batches: nothing is done that would have to be taken back.
        if matches!(work, Work::Nothing) && table.fits(local).is_ok() {
            return Ok(Some(Net::default()));
        }
        self.say(SAVE).await?;
        let mut trouble = match self.change(session, table, local, work, to, false).await {
            Ok(net) => {
                self.say(DONE).await?;
                return Ok(net);
            }
            Err(e) if is_its_own(&e) => e,
            Err(e) => return Err(e),
        };
        self.say(BACK).await?;
        let changed_here = [code::DIFFERENT, code::CONSTRAINT, code::DUPLICATE_KEY].contains(&trouble.code());
        if let (Work::Rows(_), true, false) = (work, changed_here, healed) {
            match self.change(session, table, local, Work::Whole, to, true).await {
                Ok(net) => {
                    self.say(DONE).await?;
                    let mut entry = Entry::of_error("warn", "healed", &trouble).table(table.display());
                    entry.message = format!("{}; it was copied anew", trouble.message());
                    (entry.from, entry.to) = (Some(from), Some(to));
                    entry.segments = self.segments();
                    journal::log(&self.local, &entry).await?;
                    return Ok(net);
                }
                Err(e) if is_its_own(&e) => {
                    self.say(BACK).await?;
                    trouble = e;
                }
                Err(e) => return Err(e),
            }
        }
        self.pause(table, &trouble, from, to).await?;
        Ok(None)
    }

    /// Leaves a table where it is until somebody has mended what is wrong with it.
    pub(super) async fn pause(&self, table: &Table, trouble: &Error, from: Lsn, to: Lsn) -> Result<()> {
        self.end_copy(&table.name).await?;
        let name = table.display();
        let next = match trouble.next_step() {
            Some(next) if next.contains("datasync") => next.to_owned(),
            Some(next) => format!("{next}; then: synctool datasync resync {name}"),
            None => format!("once its cause is gone: synctool datasync resync {name}"),
        };
        let row = Row {
            at: Some(from),
            code: Some(trouble.code().id),
            why: Some(trouble.message()),
            next: Some(&next),
            ..Row::new("paused")
        };
        self.set(table, &row).await?;
        for counted in [name.as_str(), journal::ALL] {
            journal::count_error(&self.local, counted, self.config.metric_hours).await?;
        }
        let mut entry = Entry::of_error("error", "paused", trouble).table(name);
        (entry.from, entry.to) = (Some(from), Some(to));
        entry.segments = self.segments();
        journal::log(&self.local, &entry).await
    }

    async fn say(&self, sql: &str) -> Result<()> {
        self.local
            .batch_execute(sql)
            .await
            .map_err(|e| self.local.error(e, "a savepoint or a setting of the local transaction"))
    }

    async fn change(
        &self,
        session: &Connection,
        table: &Table,
        local: Option<&Table>,
        work: Work<'_>,
        at: Lsn,
        healing: bool,
    ) -> Result<Option<Net>> {
        // Also where no row was touched: a column with a default and a renamed label of an enum touch none.
        table.fits(local)?;
        let net = match work {
            Work::Nothing => return Ok(Some(Net::default())),
            Work::Rows(addresses) => Some(self.apply(session, table, addresses).await?),
            Work::Whole => {
                self.replace(session, table, None, at, healing).await?;
                None
            }
            Work::Staged(staging) => {
                self.replace(session, table, Some(staging), at, healing).await?;
                None
            }
        };
        if let Some(constraint) = self.broken(table).await? {
            return Err(match work {
                Work::Rows(_) => diverged(table, &format!("rows break the constraint {constraint}")),
                _ => {
                    let what = format!(
                        "rows of {} do not fit the local constraint {constraint}",
                        table.display()
                    );
                    Error::new(code::CONSTRAINT, what).at("table", table.display())
                }
            });
        }
        Ok(net)
    }

    /// A deferrable constraint of the local table that rows break: the server does not look while triggers are off.
    async fn broken(&self, table: &Table) -> Result<Option<String>> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let run = |e| {
            self.local
                .error(e, &format!("looking at the constraints of {}", table.display()))
        };
        let constraints = self.local.query(sql::DEFERRABLE, &[schema, name]).await.map_err(run)?;
        for row in constraints {
            let constraint = sql::Deferrable {
                values: row.get(1),
                operators: row.get(2),
                nulls_too: row.get(3),
                only: row.get(4),
            };
            let ask = constraint.is_broken(schema, name);
            if self.local.query_one(&ask, &[]).await.map_err(run)?.get(0) {
                return Ok(Some(row.get(0)));
            }
        }
        Ok(None)
    }

    /// Puts a table's rows of the scratch server's place in the place of those it has, from there or from beside it.
    async fn replace(
        &self,
        session: &Connection,
        table: &Table,
        staging: Option<&str>,
        at: Lsn,
        healing: bool,
    ) -> Result<()> {
        let began = std::time::Instant::now();
        let (schema, name) = (&table.name.0, &table.name.1);
        let target = sql::table(schema, name);
        let what = format!("copying {}", table.display());
        let run = |e| self.local.error(e, &what);
        let delete = format!("DELETE FROM ONLY {target}");
        let deleted = self.local.execute(&delete, &[]).await.map_err(run)?;
        let left = format!("SELECT EXISTS (SELECT FROM ONLY {target})");
        if self.local.query_one(&left, &[]).await.map_err(run)?.get(0) {
            let what = format!("rows of {} stay though all were deleted", table.display());
            return Err(Error::new(code::LEDGER, what).hint(tables::LEAVES_OUT));
        }
        let columns = table.stored();
        let rows = match staging {
            Some(staging) => {
                let source = sql::table("synctool", staging);
                let count = format!("SELECT count(*) FROM {source}");
                let given: i64 = self.local.query_one(&count, &[]).await.map_err(run)?.get(0);
                let insert = sql::insert_from(&source, schema, name, &columns);
                let taken = self.local.execute(&insert, &[]).await.map_err(run)?;
                tables::account(u64::try_from(given).unwrap_or_default(), taken)?;
                taken
            }
            None => {
                let read = sql::read_rows(schema, name, &columns, None);
                let write = sql::write_rows(&target, &columns);
                tables::copy(session, &read, &self.local, &write, &what).await?
            }
        };
        self.end_copy(&table.name).await?;
        let row = Row {
            at: Some(at),
            rows: Some(rows),
            healed: healing,
            ..Row::new("synced")
        };
        self.set(table, &row).await?;
        let net = Net {
            added: rows,
            updated: 0,
            deleted,
        };
        let entry = Entry {
            to: Some(at),
            net: Some(net),
            took: Some(began.elapsed()),
            ..Entry::new("info", "copied", format!("{rows} rows copied")).table(table.display())
        };
        journal::log(&self.local, &entry).await
    }

    /// Takes the pre-images away and puts the rows in as they are now. All go before the first comes: keys and unique
    /// values may have changed hands.
    async fn apply(&self, session: &Connection, table: &Table, addresses: &Addresses) -> Result<Net> {
        let (schema, name) = (&table.name.0, &table.name.1);
        let what = format!("changing {}", table.display());
        let run = |e| self.local.error(e, &what);
        let columns = table.stored();
        let sql = "SELECT count(*) FROM synctool.datasync_pre WHERE schema_name = $1 AND table_name = $2";
        let expected: i64 = self.local.query_one(sql, &[schema, name]).await.map_err(run)?.get(0);
        let before = u64::try_from(expected).unwrap_or_default();
        let equals = tables::equals(&self.local, &table.name).await?;
        let key = tables::found_by(&table.key(), &equals);
        let few = (1..=FEW).contains(&before) && !key.is_empty();
        if few {
            self.say(ONE_BY_ONE).await?;
        }
        if before > 0 {
            let delete = match key.is_empty() {
                true => sql::delete_by_row(schema, name, &columns)?,
                false => sql::delete_by_key(schema, name, &key)?,
            };
            let deleted = self.local.execute(&delete, &[]).await.map_err(run)?;
            if deleted != before {
                return Err(diverged(
                    table,
                    &format!("{deleted} rows were found where {expected} should be"),
                ));
            }
        }
        let mut walk = addresses.walk()?;
        let next = || {
            let at = walk.next(CHUNK)?;
            Ok((!at.is_empty()).then(|| sql::read_rows(schema, name, &columns, Some(&at))))
        };
        let write = sql::write_rows(&sql::table(schema, name), &columns);
        by_address(session, true).await?;
        let now = tables::copy_each(session, next, &self.local, &write, &what).await;
        by_address(session, false).await?;
        let now = now.map_err(|e| match e.code() == code::DUPLICATE_KEY {
            true => diverged(table, "a row that production has now meets another one here").caused_by(e),
            false => e,
        })?;
        let kept = match key.is_empty() || before == 0 || now == 0 {
            true => 0,
            false => {
                let count = sql::count_kept(schema, name, &key)?;
                let kept: i64 = self.local.query_one(&count, &[]).await.map_err(run)?.get(0);
                u64::try_from(kept).unwrap_or_default()
            }
        };
        if few {
            self.say(AS_EVER).await?;
        }
        Ok(Net {
            added: now.saturating_sub(kept),
            updated: kept,
            deleted: before.saturating_sub(kept),
        })
    }
}

/// The local rows are not those that production had at the place before.
fn diverged(table: &Table, how: &str) -> Error {
    let name = table.display();
    Error::new(code::DIFFERENT, format!("table {name} has diverged: {how}"))
        .at("table", name.clone())
        .hint(format!(
            "somebody changed the local table; copy it anew: synctool datasync resync {name}"
        ))
}

/// Whether an error is one table's trouble: the others can go on without it.
pub(super) fn is_its_own(error: &Error) -> bool {
    let kinds = [
        ErrorKind::Config,
        ErrorKind::Data,
        ErrorKind::Different,
        ErrorKind::Refused,
        ErrorKind::Unsupported,
    ];
    kinds.contains(&error.kind()) || [code::SERVER_ERROR, code::PERMISSION, code::LEDGER].contains(&error.code())
}
