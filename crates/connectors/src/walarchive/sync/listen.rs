//! Whoever asks for an end is heard in every wait between batches: for the archive, and for the scratch server while it
//! comes along. What is stored says how to go on, as after a kill.

use super::super::replay::ended;
use super::super::sql;
use crate::postgres::Connection;
use std::pin::pin;
use std::time::Duration;
use synctool_core::error::Result;
use tokio_postgres::SimpleQueryMessage;
use tokio_util::sync::CancellationToken;

/// Between looks at what users ask for.
const LOOK: Duration = Duration::from_secs(1);

/// Hears a signal, and a request in the local database.
#[derive(Debug)]
pub(super) struct Ears {
    /// The process is told to end.
    stop: CancellationToken,
    /// Ends what waits.
    end: CancellationToken,
}

impl Ears {
    pub(super) fn new(stop: CancellationToken, end: CancellationToken) -> Self {
        Ears { stop, end }
    }

    /// Does work that may have to wait, and ends it where it waits if somebody asks for that. The local session is in no
    /// transaction meanwhile.
    pub(super) async fn over<T>(&self, local: &Connection, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut work = pin!(work);
        tokio::select! {
            done = &mut work => return done,
            () = self.asked(local) => self.end.cancel(),
        }
        work.await.and_then(|_| Err(ended()))
    }

    async fn asked(&self, local: &Connection) {
        loop {
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            // A session that is gone is told by the work itself.
            let said = local.simple_query(sql::STOP_WANTED).await.unwrap_or_default();
            let is_yes = |m: &SimpleQueryMessage| matches!(m, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"));
            if said.iter().any(is_yes) {
                return;
            }
        }
    }
}
