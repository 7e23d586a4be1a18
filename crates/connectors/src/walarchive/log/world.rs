//! The scratch server of a pipeline: where it stands, and how it is brought to the next place.

use super::super::batch::Batch;
use super::super::control::Control;
use super::super::follow::Waiting;
use super::super::readable::UNREADABLE;
use super::super::replay::{Replay, ReplayConfig, Stored};
use super::super::scratch::{Hold, Scratch, ScratchConfig};
use super::super::tables::Name;
use super::kept::Kept;
use super::position::LogPosition;
use super::source::check_system;
use crate::postgres::{Connection, Postgres};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::Lsn;
use tokio::sync::watch;

/// Where a scratch server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// On its way, or not looked at yet.
    Moving,
    /// Here, until the log is read on.
    Standing(Lsn),
    /// It did not come where it should.
    Lost,
}

/// What was found where a position goes on.
pub(super) struct Found {
    /// Where the scratch server stands, or from where it goes on with the batch.
    pub(super) position: LogPosition,
    /// The batch that was begun and is not at the destination.
    pub(super) begun: Option<Kept>,
}

/// The scratch server of one pipeline.
#[derive(Debug)]
pub(super) struct World {
    config: ReplayConfig,
    /// Whose it is; none for somebody who only looks.
    owner: Option<String>,
    database: Postgres,
    pub(super) replay: tokio::sync::Mutex<Option<Replay>>,
    place: watch::Sender<Place>,
    claim: Mutex<Option<Claim>>,
}

/// The right to use a scratch directory. The server ends with it.
#[derive(Debug)]
struct Claim {
    _hold: Hold,
    scratch: ScratchConfig,
}

impl Drop for Claim {
    fn drop(&mut self) {
        Scratch::halt(&self.scratch);
    }
}

impl World {
    pub(super) fn new(config: ReplayConfig, owner: Option<String>, schema: &str) -> Result<World> {
        let mut address = config.scratch.address(&config.database);
        address.schema = schema.into();
        Ok(World {
            database: Postgres::open(address)?,
            owner,
            config,
            replay: tokio::sync::Mutex::new(None),
            place: watch::Sender::new(Place::Moving),
            claim: Mutex::new(None),
        })
    }

    pub(super) fn config(&self) -> &ReplayConfig {
        &self.config
    }

    /// The scratch server's sessions.
    pub(super) fn database(&self) -> &Postgres {
        &self.database
    }

    /// Where the scratch server is, and when that changes.
    pub(super) fn place(&self) -> watch::Receiver<Place> {
        self.place.subscribe()
    }

    pub(super) fn is(&self, place: Place) {
        self.place.send_replace(place);
    }

    /// Where what is kept of batches is.
    pub(super) fn directory(&self) -> PathBuf {
        self.config.scratch.directory.join("kept")
    }

    fn claimed(&self) -> MutexGuard<'_, Option<Claim>> {
        self.claim.lock().expect("nothing panics while holding it")
    }

    /// Nobody else may use the directory from now on.
    fn take(&self) -> Result<()> {
        let mut claim = self.claimed();
        if claim.is_none() {
            *claim = Some(Claim {
                _hold: Hold::take(&self.config.scratch)?,
                scratch: self.config.scratch.clone(),
            });
        }
        Ok(())
    }

    /// The log's name.
    pub(super) fn owner(&self) -> Result<&str> {
        let owner = self.owner.as_deref();
        owner.ok_or_else(|| {
            Error::new(code::CONFIG_INVALID, "nothing of this archive was replayed yet")
                .hint("run the pipeline of type log that reads it")
        })
    }

    /// Makes or finds the scratch server, and what was kept of its last batch.
    fn open(&self) -> Result<(Scratch, Option<Kept>)> {
        self.take()?;
        if !Scratch::exists(&self.config.scratch) {
            self.owner()?;
            // It was about one that is gone.
            Kept::forget(&self.directory())?;
        }
        let scratch = Replay::create(&self.config)?;
        let kept = Kept::read(&self.directory())?;
        if let (Some(kept), Some(owner)) = (&kept, &self.owner)
            && kept.owner != *owner
        {
            return Err(Error::new(
                code::REFUSED,
                format!(
                    "the scratch directory belongs to the log {}, and this is {owner}",
                    kept.owner
                ),
            )
            .at("directory", self.config.scratch.directory.display().to_string())
            .hint("each pipeline needs a scratch_dir of its own"));
        }
        Ok((scratch, kept))
    }

    /// Counts it if the scratch server is at fault.
    pub(super) fn judged<T>(&self, done: Result<T>) -> Result<T> {
        done.map_err(|e| match e.code() == code::SCRATCH {
            true => self.config.had_fault(e),
            false => e,
        })
    }

    /// The scratch server did what it should: earlier faults count no more.
    pub(super) fn is_well(&self) {
        Scratch::is_well(&self.config.scratch);
    }

    /// Throws away a scratch server that has had too many faults in a row: it is made anew.
    async fn renew(&self) -> Result<()> {
        if self.owner.is_none() || !self.config.is_hopeless() {
            return Ok(());
        }
        tracing::warn!("the scratch server is made again from the base backup");
        self.take()?;
        Scratch::discard_held(&self.config.scratch).await
    }

    /// Brings the scratch server to where a position stands; or, if a batch was begun from there, makes ready to go on
    /// with it. These names are what will be looked at.
    pub(super) async fn go_on(&self, position: &LogPosition, names: &[Name]) -> Result<Found> {
        self.judged(self.try_to_go_on(position, names).await)
    }

    async fn try_to_go_on(&self, position: &LogPosition, names: &[Name]) -> Result<Found> {
        let mut replay = self.replay.lock().await;
        *replay = None;
        self.is(Place::Moving);
        self.renew().await?;
        let (scratch, kept) = self.open()?;
        check_system(position, scratch.control().system)?;
        // What the rows were is known then: it need not stand where the batch begins.
        let mut begun = kept.filter(|k| k.from == position.at && k.to > position.at);
        let stored = match &begun {
            Some(k) => Stored {
                timeline: k.timeline,
                furthest: k.to,
                ..position.stored()
            },
            None => position.stored(),
        };
        scratch.within(stored.furthest)?;
        let mut next = Replay::begin(self.config.clone(), scratch, Some(stored)).await?;
        reached(next.take_up_to(stored.furthest).await?)?;
        next.check_log(begun.as_ref().and_then(|k| k.log))?;
        next.check_backup()?;
        let owner = self.owner()?;
        begun = self.arrive(&mut next, names, owner, position.at).await?.or(begun);
        if begun.is_none() {
            Kept::standing(owner, stored).store(&self.directory())?;
            self.is(Place::Standing(stored.at));
        }
        next.taken.clear();
        *replay = Some(next);
        Ok(Found {
            position: position.clone(),
            begun,
        })
    }

    /// Lets the scratch server come to where its log was read up to. Where it cannot be looked at it goes on; gives what
    /// was kept of the batch that leads beyond.
    async fn arrive(&self, replay: &mut Replay, names: &[Name], owner: &str, from: Lsn) -> Result<Option<Kept>> {
        let mut kept = None;
        loop {
            let at = replay.scan.position();
            let why = match replay.is_readable().await? {
                true => {
                    let parameters = replay.scan.parameters().cloned();
                    let deaf = replay.arrive(at, parameters.as_ref(), names).await?;
                    deaf.err().map(|e| deaf_because(&e))
                }
                false => Some(UNREADABLE.to_owned()),
            };
            let Some(why) = why else { return Ok(kept) };
            tracing::warn!(%at, "{why}; every table is read whole behind it");
            match self.pass_over(replay, owner, from).await? {
                Ok((batch, beyond)) => {
                    replay.scan.resume(batch);
                    kept = Some(beyond);
                }
                Err(waiting) => {
                    return Err(
                        Error::new(code::SERVER_UNREACHABLE, format!("{why}, at {at}: {waiting}")).hint(
                            "the log goes on behind the end of the transaction that stands in the way, and a CHECKPOINT in production",
                        ),
                    );
                }
            }
        }
    }

    /// The scratch server cannot be looked at where it is: the batch goes on to the next place at which it can, and every
    /// table is read whole there.
    pub(super) async fn pass_over(
        &self,
        replay: &mut Replay,
        owner: &str,
        from: Lsn,
    ) -> Result<Result<(Batch, Kept), Waiting>> {
        let batch = match replay.take_beyond().await? {
            Ok(batch) => batch,
            Err(why) => return Ok(Err(why)),
        };
        let kept = Kept {
            owner: owner.into(),
            from,
            to: batch.to,
            timeline: replay.follower.timeline(),
            restart: batch.restart,
            log: Some(batch.log),
            tables: Vec::new(),
        };
        kept.store(&self.directory())?;
        Ok(Ok((batch, kept)))
    }

    /// Brings the scratch server to where it stood last, or to the first place at which it can be looked at.
    pub(super) async fn begin(&self) -> Result<LogPosition> {
        self.judged(self.try_to_begin().await)
    }

    async fn try_to_begin(&self) -> Result<LogPosition> {
        let mut replay = self.replay.lock().await;
        *replay = None;
        self.is(Place::Moving);
        self.renew().await?;
        let (scratch, kept) = self.open()?;
        let system = scratch.control().system;
        let owner = match &kept {
            Some(kept) => kept.owner.clone(),
            None => self.owner()?.to_owned(),
        };
        let stored = kept.as_ref().map(Kept::stored);
        let mut next = Replay::begin(self.config.clone(), scratch, stored).await?;
        let (stored, committed_at) = match (stored, kept) {
            (Some(stored), Some(kept)) => {
                reached(next.take_up_to(stored.at).await?)?;
                next.check_backup()?;
                let beyond = self.arrive(&mut next, &[], &owner, kept.from).await?;
                next.scan.finish();
                next.taken.clear();
                // A batch that was begun is still to be handed out.
                (beyond.unwrap_or(kept).stored(), None)
            }
            _ => {
                match next.take_first().await? {
                    Ok(batch) => next.scan.resume(batch),
                    Err(why) => {
                        let what =
                            format!("the archive does not hold yet what the base backup needs to be of use: {why}");
                        return Err(Error::new(code::SERVER_UNREACHABLE, what)
                            .hint("wait for it; on an idle production: CHECKPOINT; SELECT pg_switch_wal();"));
                    }
                }
                let from = next.scan.position();
                self.arrive(&mut next, &[], &owner, from).await?;
                let batch = next.scan.finish();
                let stored = Stored {
                    timeline: next.follower.timeline(),
                    at: batch.to,
                    restart: batch.restart,
                    furthest: batch.to,
                };
                Kept::standing(&owner, stored).store(&self.directory())?;
                (stored, batch.last_commit.map(|at| at.unix_micros()))
            }
        };
        self.is(Place::Standing(stored.at));
        *replay = Some(next);
        Ok(LogPosition {
            system,
            timeline: stored.timeline,
            at: stored.at,
            restart: stored.restart,
            added: BTreeMap::new(),
            owed: BTreeSet::new(),
            committed_at,
        })
    }

    /// A place where the scratch server stands, wherever that is: for looking at its tables.
    pub(super) async fn stand(&self) -> Result<()> {
        match *self.place.borrow() {
            Place::Standing(_) => return Ok(()),
            Place::Moving | Place::Lost => {}
        }
        self.begin().await.map(drop)
    }

    /// The scratch server runs, and can be read, wherever it is.
    pub(super) async fn run(&self) -> Result<()> {
        let replay = self.replay.lock().await;
        let scratch = &replay
            .as_ref()
            .ok_or_else(|| Error::bug("no scratch server was opened"))?
            .scratch;
        scratch.start().await
    }

    /// A session, where it stands.
    pub(super) async fn session(&self) -> Result<Connection> {
        self.database.connect().await
    }

    /// The scratch server is made anew when it is wanted next.
    pub(super) async fn discard(&self) -> Result<()> {
        *self.replay.lock().await = None;
        self.is(Place::Moving);
        self.take()?;
        Scratch::discard_held(&self.config.scratch).await?;
        Kept::forget(&self.directory())
    }

    /// Stops the scratch server.
    pub(super) async fn close(&self) -> Result<()> {
        let replay = self.replay.lock().await.take();
        self.is(Place::Moving);
        let stopped = match replay {
            Some(replay) => replay.scratch.stop().await,
            None => Ok(()),
        };
        *self.claimed() = None;
        stopped
    }

    /// What the scratch server's data says of production, or the base backup; none while neither can be looked at.
    pub(super) fn control(&self) -> Option<Control> {
        let scratch = Control::read(&self.config.scratch.directory.join("data"));
        scratch.ok().or_else(|| self.config.backup.control())
    }

    /// Where the archive ends, as its names say.
    pub(super) fn end(&self) -> Option<Lsn> {
        let size = self.control()?.segment_size;
        let listing = self.config.archive.list().ok()?;
        let starts = listing.segments.keys().filter_map(|name| name.start(size));
        starts.max().map(|start| Lsn(start.0 + size.bytes()))
    }
}

/// Why production's database cannot be looked at.
pub(super) fn deaf_because(error: &Error) -> String {
    format!(
        "production's database cannot be looked at at this place ({})",
        error.message()
    )
}

/// What was read once must be there again.
pub(super) fn reached(waiting: Option<Waiting>) -> Result<()> {
    match waiting {
        None => Ok(()),
        Some(why) => Err(Error::new(
            code::WAL_MISSING,
            format!("the archive has not kept the log from where it must be read again: {why}"),
        )
        .hint("put the segment back; if it is gone, take a new base backup, remove the scratch directory and run with --repair")),
    }
}
