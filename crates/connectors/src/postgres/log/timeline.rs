//! A standby may be on another timeline by now: it was promoted while it was followed, or it follows a primary that was. Its
//! log goes on without a word, and a position behind the place where the timelines part is one of the new timeline.

use super::super::client::{Connection, Postgres};
use super::client::Replication;
use super::pgoutput::Lsn;
use synctool_core::error::{Error, Result, code};
use tokio_postgres::types::PgLsn;

const WHAT: &str = "asking for the standby's timeline";

/// Says on which timeline a place in the log is of a server that was a standby when it was opened.
pub(super) struct Timeline {
    database: Postgres,
    /// Kept open: each place beyond what is known asks again.
    link: Option<Replication>,
    /// Up to here the log is on the timeline that was told last.
    known: Lsn,
}

impl Timeline {
    /// Of a standby; another server keeps its timeline. To be asked before whose log it is.
    pub(super) async fn of(connection: &Connection, database: &Postgres) -> Result<Option<Timeline>> {
        let row = connection
            .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
            .await
            .map_err(|e| connection.error(e, WHAT))?;
        Ok(row.get::<_, bool>(0).then(|| Timeline {
            database: database.clone(),
            link: None,
            known: 0,
        }))
    }

    /// The timeline of a place that was read, given that of what was read before.
    pub(super) async fn at(&mut self, lsn: Lsn, before: u32) -> Result<u32> {
        if lsn <= self.known {
            return Ok(before);
        }
        // Whoever drops this call drops the link, too: an answer may be on its way.
        let mut kept = None;
        if let Some(mut link) = self.link.take() {
            kept = told(&mut link).await.ok().map(|told| (link, told));
        }
        let (mut link, (now, known)) = match kept {
            Some(kept) => kept,
            None => {
                let mut link = Replication::connect(&self.database).await?;
                let told = told(&mut link).await?;
                (link, told)
            }
        };
        self.known = known;
        let mut timeline = now;
        if now != before {
            let history = link.history(now).await?;
            let left = history.into_iter().find(|(t, left)| *t == before && lsn <= *left);
            if let Some((_, left)) = left {
                (self.known, timeline) = (left, before);
            }
        }
        self.link = Some(link);
        Ok(timeline)
    }
}

/// The timeline of a server, and up to where its log is surely on it. That is asked first: what was replayed before the
/// timeline was told is of no later one, and what is no standby any more has no other one.
async fn told(link: &mut Replication) -> Result<(u32, Lsn)> {
    let sql = "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() END";
    let rows = link.query(sql, WHAT).await?;
    let replayed = rows.first().and_then(|row| row.first()).cloned().flatten();
    let known = match replayed.map(|text| text.parse::<PgLsn>()) {
        None => Lsn::MAX,
        Some(Ok(lsn)) => lsn.into(),
        Some(Err(_)) => {
            return Err(Error::new(
                code::SERVER_ERROR,
                format!("{WHAT}: this is no place in a log"),
            ));
        }
    };
    Ok((link.identify().await?.timeline, known))
}
