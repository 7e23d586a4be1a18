//! Named locks: who a session is, and who prepares or publishes a pipeline. They end with their session.

use super::client::{Session, number};
use super::control::Control;
use super::sql::literal;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::short_hash;

/// How long a running session is given to let go of a named lock.
const PATIENCE: Duration = Duration::from_secs(10);

impl Control {
    /// Takes the lock under which a pipeline is prepared, published or forgotten; it ends with the session. A session
    /// that holds it and does nothing (a process that was stopped) is ended, and with `force` any other.
    pub(super) async fn lock(&self, session: &mut Session, pipeline: &str, force: bool) -> Result<()> {
        let name = literal(&format!(
            "synctool plan {}{}",
            short_hash(self.database()),
            short_hash(pipeline)
        ));
        let what = "locking the pipeline";
        for attempt in 0..3 {
            let wait = if attempt == 0 { 3 } else { PATIENCE.as_secs() };
            let got = session.row(&format!("SELECT GET_LOCK({name}, {wait})"), what).await?;
            if number(&got, 0) == 1 {
                return Ok(());
            }
            let idle = if force { "" } else { "AND p.COMMAND = 'Sleep'" };
            let holder = session
                .rows(
                    &format!(
                        "SELECT p.ID FROM information_schema.PROCESSLIST p WHERE p.ID = IS_USED_LOCK({name}) {idle}"
                    ),
                    what,
                )
                .await?;
            if let Some(row) = holder.first() {
                kill(session, number(row, 0)).await?;
            }
        }
        Err(Error::new(
            code::CONFLICT,
            "another process is preparing or publishing this pipeline",
        )
        .at("pipeline", pipeline)
        .hint("wait for it, or end it"))
    }
}

/// Gives the session a name that nobody had before, by a lock that ends with it.
pub(super) async fn name_session(session: &mut Session) -> Result<String> {
    let name = format!("synctool {}", uuid::Uuid::new_v4());
    let got = session
        .row(&format!("SELECT GET_LOCK({}, 0)", literal(&name)), "naming the session")
        .await?;
    if number(&got, 0) != 1 {
        return Err(Error::new(
            code::UNSUPPORTED,
            "the server gives no named locks (GET_LOCK), which tell who writes a partition",
        ));
    }
    Ok(name)
}

/// Ends other writers' sessions and waits until they are gone, so that their locks do not hang us. Not being allowed to
/// is no failure: the epoch fences them anyway.
pub(super) async fn end_sessions(session: &mut Session, writers: &[String]) -> Result<()> {
    let what = "ending an older writer's session";
    for writer in writers {
        let name = literal(writer);
        let holder = session.row(&format!("SELECT IS_USED_LOCK({name})"), what).await?;
        let id = number(&holder, 0);
        if id == 0 || id == u64::from(session.id()) {
            continue;
        }
        kill(session, id).await?;
        // The lock comes free when the session has rolled back and is gone.
        session
            .row(&format!("SELECT GET_LOCK({name}, {})", PATIENCE.as_secs()), what)
            .await?;
        session.row(&format!("SELECT RELEASE_LOCK({name})"), what).await?;
    }
    Ok(())
}

async fn kill(session: &mut Session, id: u64) -> Result<()> {
    match session.run(&format!("KILL {id}"), "ending another session").await {
        // It is gone already, or it is not ours to end.
        Err(e)
            if e.context()
                .iter()
                .any(|(k, v)| *k == "errno" && matches!(v.as_str(), "1094" | "1095")) =>
        {
            Ok(())
        }
        Err(e) if e.code() == code::PERMISSION => Ok(()),
        other => other.map(|_| ()),
    }
}
