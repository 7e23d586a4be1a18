//! Between batches: what users asked for. The scratch server stands at the stored place meanwhile, so that the next batch
//! follows.

use super::super::journal::{self, Entry};
use super::super::sql;
use super::super::tables::{self, Found, Name};
use super::DataSync;
use super::apply::{Known, State};
use std::collections::BTreeMap;
use synctool_core::error::Result;
use synctool_core::failpoint::failpoint;

/// What a user asked for.
struct Request {
    id: i64,
    kind: String,
    table: Option<String>,
    /// Whether an earlier process began to do it.
    taken: bool,
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
        for request in requests.iter().filter(|r| !r.taken) {
            if ["resync", "clear"].contains(&request.kind.as_str()) {
                for (name, known) in self.known().await? {
                    if request.means(&name, &known) {
                        self.copy_anew(&name).await?;
                    }
                }
            }
            let done = self.local.execute(sql::TAKE, &[&request.id]).await;
            done.map_err(|e| self.local.error(e, "taking a request up"))?;
        }
        self.commit("taking a request up").await?;
        self.ears.over(&self.local, self.replay.stand(at)).await?;
        let session = self.replay.session().await?;
        let (there, here) = self.find(&session).await?;
        self.copy_waiting(&session, &there, &here, at).await?;
        let mut proof = None;
        if requests.iter().any(|r| r.kind == "verify") {
            proof = Some(self.compare(&session, &there, &here, at).await?);
        }
        self.begin().await?;
        let misparted = tables::misparted(&self.local, &there, &here).await?;
        for (name, known) in self
            .known()
            .await?
            .iter()
            .filter(|(name, _)| !there.tables.contains_key(*name) && !misparted.contains_key(*name))
        {
            self.forget(name).await?;
            if !there.asked.contains(&known.selected_as) {
                let text = format!("{} is followed no more; its rows stay", tables::display(name));
                let entry = Entry::new("info", "removed", text).table(tables::display(name)).to(at);
                journal::log(&self.local, &entry).await?;
            }
        }
        self.note_partitions(&misparted, at, at).await?;
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

    async fn requests(&self) -> Result<Vec<Request>> {
        let rows = self.local.query(sql::REQUESTS, &[]).await;
        let rows = rows.map_err(|e| self.local.error(e, "reading requests"))?;
        let request = |row: &tokio_postgres::Row| Request {
            id: row.get(0),
            kind: row.get(1),
            table: row.get(2),
            taken: row.get(3),
        };
        Ok(rows.iter().map(request).collect())
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
        let names = there.names.keys().any(|text| tables::parse_name(text) == asked);
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
