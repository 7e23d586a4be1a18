//! A standby may be on another timeline by now: it was promoted while it was followed, or it follows a primary that was. Its
//! log goes on without a word, and a position behind the place where the timelines part is one of the new timeline.

use super::super::client::{Connection, Postgres};
use super::client::Replication;
use super::pgoutput::Lsn;
use synctool_core::error::{Error, Result, code};
use tokio_postgres::types::PgLsn;
use tokio_util::task::AbortOnDropHandle;

const WHAT: &str = "asking for the standby's timeline";

/// Says on which timeline a place in the log is of a server that was a standby when it was opened.
pub(super) struct Timeline {
    database: Postgres,
    /// Kept open: each place beyond what is known asks again.
    link: Option<Replication>,
    /// A question under way: it outlives the call that asked it, so that whoever is interrupted asks no second time.
    asking: Option<AbortOnDropHandle<Result<Answer>>>,
    /// Up to here the log is on the timeline that was told last.
    known: Lsn,
}

struct Answer {
    link: Replication,
    timeline: u32,
    /// Up to where the log is surely on it.
    known: Lsn,
    /// Where the timeline of before was left, if it is another.
    left: Option<Lsn>,
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
            asking: None,
            known: 0,
        }))
    }

    /// The timeline of a place that was read, given that of what was read before. Cancel safe.
    pub(super) async fn at(&mut self, lsn: Lsn, before: u32) -> Result<u32> {
        while lsn > self.known {
            // An answer to an earlier call may be about less.
            let asked_now = self.asking.is_none();
            let link = &mut self.link;
            let asking = self.asking.get_or_insert_with(|| {
                let question = ask(self.database.clone(), link.take(), before);
                AbortOnDropHandle::new(tokio::spawn(question))
            });
            let answer = asking.await;
            self.asking = None;
            let answer = answer.map_err(|e| Error::bug(format!("{WHAT}: {e}")))??;
            self.link = Some(answer.link);
            let left = answer.left.filter(|left| lsn <= *left);
            self.known = left.unwrap_or(answer.known);
            if left.is_none() && (asked_now || answer.timeline != before) {
                return Ok(answer.timeline);
            }
        }
        Ok(before)
    }
}

/// Asks over a link that is there already, or over a new one where that is broken.
async fn ask(database: Postgres, kept: Option<Replication>, before: u32) -> Result<Answer> {
    let mut told_by = None;
    if let Some(mut link) = kept {
        told_by = told(&mut link).await.ok().map(|told| (link, told));
    }
    let (mut link, (timeline, known)) = match told_by {
        Some(told_by) => told_by,
        None => {
            let mut link = Replication::connect(&database).await?;
            let told = told(&mut link).await?;
            (link, told)
        }
    };
    let mut left = None;
    if timeline != before {
        let history = link.history(timeline).await?;
        left = history.into_iter().find(|(t, _)| *t == before).map(|(_, left)| left);
    }
    Ok(Answer {
        link,
        timeline,
        known,
        left,
    })
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
