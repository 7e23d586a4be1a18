//! Between batches: what users asked for, tables that wait for their copy, and the proof that both sides are equal. The
//! scratch server stands at the stored place meanwhile, so that the next batch follows.

use super::super::journal::{self, Entry};
use super::super::sql;
use super::super::tables::{self, Found, Name};
use super::DataSync;
use super::apply::{Known, State, Work};
use crate::postgres::Connection;
use serde::Serialize;
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_pgwal::Lsn;

/// A table of both sides, compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compared {
    /// The table.
    pub table: String,
    /// Whether they hold the same rows.
    pub equal: bool,
    /// Rows in production at the stored place.
    pub production_rows: Option<i64>,
    /// Rows here.
    pub local_rows: Option<i64>,
    /// Why it was not compared.
    pub skipped: Option<String>,
}

/// What a user asked for.
struct Request {
    id: i64,
    kind: String,
    table: Option<String>,
}

impl Request {
    /// Whether it is about this table, by its own name or by the one it was selected as.
    fn means(&self, name: &Name, known: &Known) -> bool {
        let Some(asked) = self.table.as_deref().map(tables::parse_name) else {
            return true;
        };
        asked == *name || asked == tables::parse_name(&known.selected_as)
    }
}

impl DataSync {
    /// Does what was asked for since, and copies tables that are new. Says whether there was anything to do. While a
    /// plan is open nothing is done: the scratch server may stand further already.
    pub async fn tend(&mut self) -> Result<bool> {
        let Some(at) = self.applied.filter(|_| self.planned.is_none() && self.standing) else {
            return Ok(false);
        };
        let wanted = self.local.query_one(sql::WANTED, &[]).await;
        let wanted = wanted.map_err(|e| self.local.error(e, "looking for requests"))?;
        if !wanted.get::<_, bool>(1) && !wanted.get::<_, bool>(2) {
            return Ok(false);
        }
        let requests = self.requests().await?;
        self.begin().await?;
        for request in requests
            .iter()
            .filter(|r| ["resync", "clear"].contains(&r.kind.as_str()))
        {
            for (name, known) in self.known().await? {
                if request.means(&name, &known) {
                    self.forget(&name).await?;
                }
            }
        }
        self.commit("taking a request up").await?;
        self.stand(at).await?;
        let session = self.session().await?;
        let (there, here) = self.find(&session).await?;
        self.copy_waiting(&session, &there, &here, at).await?;
        let mut proof = None;
        if requests.iter().any(|r| r.kind == "verify") {
            proof = Some(self.compare(&session, &there, &here, at).await?);
        }
        self.begin().await?;
        for (name, known) in self
            .known()
            .await?
            .iter()
            .filter(|(name, _)| !there.tables.contains_key(*name))
        {
            self.forget(name).await?;
            if !there.asked.contains(&known.selected_as) {
                let text = format!("{} is followed no more; its rows stay", tables::display(name));
                let entry = Entry::new("info", "removed", text).table(tables::display(name)).to(at);
                journal::log(&self.local, &entry).await?;
            }
        }
        self.note_selected(&there).await?;
        let known = self.known().await?;
        for request in &requests {
            let (ok, answer) = match (&*request.kind, &proof) {
                ("verify", Some(proof)) => (
                    proof.iter().all(|c| c.equal || c.skipped.is_some()),
                    serde_json::json!({ "lsn": at.to_string(), "tables": proof }).to_string(),
                ),
                _ => answer(request, &there, &known),
            };
            let done = self.local.execute(sql::ANSWER, &[&request.id, &ok, &answer]).await;
            done.map_err(|e| self.local.error(e, "answering a request"))?;
            let level = if ok { "info" } else { "warn" };
            let mut entry = Entry::new(level, "request", answer_line(request, &answer)).to(at);
            entry.table.clone_from(&request.table);
            journal::log(&self.local, &entry).await?;
        }
        failpoint("datasync.answered")?;
        self.commit("answering requests").await?;
        Ok(true)
    }

    /// Compares every selected table with the scratch server at the stored place.
    pub async fn verify(&mut self) -> Result<(Lsn, Vec<Compared>)> {
        if self.planned.is_some() || !self.standing {
            self.step().await?;
        }
        let Some(at) = self.applied.filter(|_| self.planned.is_none() && self.standing) else {
            return Err(Error::new(
                code::REFUSED,
                "there is no place yet at which both sides could be compared",
            )
            .hint("run synctool datasync run-once; synctool datasync status says what is missing"));
        };
        self.stand(at).await?;
        let session = self.session().await?;
        let (there, here) = self.find(&session).await?;
        Ok((at, self.compare(&session, &there, &here, at).await?))
    }

    async fn requests(&self) -> Result<Vec<Request>> {
        let rows = self.local.query(sql::REQUESTS, &[]).await;
        let rows = rows.map_err(|e| self.local.error(e, "reading requests"))?;
        let request = |row: &tokio_postgres::Row| Request {
            id: row.get(0),
            kind: row.get(1),
            table: row.get(2),
        };
        Ok(rows.iter().map(request).collect())
    }

    /// Copies every table that holds no copy, each in a transaction of its own.
    async fn copy_waiting(&self, session: &Connection, there: &Found, here: &Found, at: Lsn) -> Result<()> {
        let known = self.known().await?;
        for (name, table) in &there.tables {
            if known.get(name).is_some_and(|k| k.state != State::Waiting) {
                continue;
            }
            let blocked = tables::is_blocked(session, table).await?;
            if blocked && known.contains_key(name) {
                continue;
            }
            self.begin().await?;
            match blocked {
                true => self.wait_for_lock(table, at).await?,
                false => {
                    let local = here.tables.get(name);
                    self.bring(session, table, local, Work::Whole, at, at, false).await?;
                }
            }
            failpoint("datasync.table_copied")?;
            self.commit("storing a copied table").await?;
        }
        Ok(())
    }

    async fn compare(&self, session: &Connection, there: &Found, here: &Found, at: Lsn) -> Result<Vec<Compared>> {
        let known = self.known().await?;
        let mut all = Vec::new();
        for (name, table) in &there.tables {
            let mut one = Compared {
                table: table.display(),
                equal: false,
                production_rows: None,
                local_rows: None,
                skipped: None,
            };
            match known.get(name) {
                Some(k) if k.state == State::Synced => {}
                Some(k) => one.skipped = Some(k.why.clone().unwrap_or_else(|| "not copied yet".into())),
                None => one.skipped = Some("not copied yet".into()),
            }
            if one.skipped.is_none()
                && let Err(e) = table.fits(here.tables.get(name))
            {
                one.skipped = Some(e.message().to_owned());
            }
            if one.skipped.is_none() && tables::is_blocked(session, table).await? {
                one.skipped = Some("locked in production at this place".into());
            }
            if one.skipped.is_none() {
                let sql = sql::summary(&name.0, &name.1, &table.stored());
                let (theirs, ours) = tokio::join!(session.query_one(&sql, &[]), self.local.query_one(&sql, &[]));
                let what = format!("comparing {}", table.display());
                let theirs = theirs.map_err(|e| session.error(e, &what))?;
                let ours = ours.map_err(|e| self.local.error(e, &what))?;
                let parts = |row: &tokio_postgres::Row| (row.get::<_, i64>(0), row.get::<_, String>(1));
                let (theirs, ours) = (parts(&theirs), parts(&ours));
                one.equal = theirs == ours;
                (one.production_rows, one.local_rows) = (Some(theirs.0), Some(ours.0));
            }
            all.push(one);
        }
        let different: Vec<&str> = all
            .iter()
            .filter(|c| !c.equal && c.skipped.is_none())
            .map(|c| c.table.as_str())
            .collect();
        let entry = match different.is_empty() {
            true => Entry::new(
                "info",
                "verified",
                format!("{} tables are equal", all.iter().filter(|c| c.equal).count()),
            ),
            false => Entry::new(
                "warn",
                "verified",
                format!("these tables differ: {}", different.join(", ")),
            ),
        };
        journal::log(&self.local, &entry.to(at)).await?;
        Ok(all)
    }
}

fn answer_line(request: &Request, answer: &str) -> String {
    match (&*request.kind, &request.table) {
        ("verify", _) => "verify was answered".into(),
        (kind, Some(table)) => format!("{kind} {table}: {answer}"),
        (kind, None) => format!("{kind}: {answer}"),
    }
}

/// What became of a request.
fn answer(request: &Request, there: &Found, known: &BTreeMap<Name, Known>) -> (bool, String) {
    if request.kind == "remove" {
        return (true, "followed no more; its rows stay".into());
    }
    if let Some(table) = &request.table {
        let asked = tables::parse_name(table);
        let selected = there.asked.iter().any(|text| tables::parse_name(text) == asked);
        let names = there.names.iter().any(|text| tables::parse_name(text) == asked);
        let is_leaf = there.tables.contains_key(&asked);
        if !selected && !is_leaf {
            return (false, "it is not in tables_to_sync".into());
        }
        if selected && !names {
            return (false, "there is no such table in production".into());
        }
    }
    let mine: Vec<_> = known.iter().filter(|(name, k)| request.means(name, k)).collect();
    let trouble = mine.iter().find(|(_, k)| k.state != State::Synced);
    match trouble {
        Some((name, k)) => (
            false,
            k.why
                .clone()
                .unwrap_or_else(|| format!("{} is not copied yet", tables::display(name))),
        ),
        None => {
            let rows: i64 = mine.iter().filter_map(|(_, k)| k.rows).sum();
            match mine.len() {
                1 => (true, format!("copied, {rows} rows")),
                n => (true, format!("{n} tables copied, {rows} rows")),
            }
        }
    }
}
