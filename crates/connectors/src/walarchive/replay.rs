//! Production's log, brought to a scratch server piece by piece: what the archive gives is checked and scanned, and waits
//! until the gate is opened for it; then the scratch server stands at the next known place.

use super::archive::{self, Archive, HistoryFile};
use super::base::Backup;
use super::batch::{Batch, Scan};
use super::control::Control;
use super::follow::{Follower, Next, Waiting};
use super::readable::Readable;
use super::room;
use super::scratch::{OLDER_BACKUP, Scratch, ScratchConfig, blamed};
use super::tables::{self, Name};
use super::touched::Room;
use crate::postgres::Connection;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_pgwal::{History, Identity, Lsn, Major, Parameters, SegmentName};
use tokio_util::sync::CancellationToken;

/// Between looks whether a wait is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Where production's log and a base backup are, and how a scratch server follows them.
#[derive(Debug, Clone)]
pub struct ReplayConfig {
    /// Where production archives its log.
    pub archive: Archive,
    /// A base backup of production.
    pub backup: Backup,
    /// The scratch server.
    pub scratch: ScratchConfig,
    /// Production's database.
    pub database: String,
    /// Segments of one batch, at most.
    pub batch_segments: usize,
    /// Looks at the archive before something that is missing or broken is an error.
    pub patience: u32,
    /// A look at the archive counts if the one before was so long ago.
    pub pace: Duration,
    /// How long the scratch server may replay without getting on.
    pub replay_patience: Duration,
    /// Touched rows that are kept in memory; more go into a file.
    pub touched_rows: usize,
}

impl ReplayConfig {
    /// Counts a fault of the scratch server, and gives it back as it is to be told.
    pub fn had_fault(&self, fault: Error) -> Error {
        Scratch::had_fault(&self.scratch);
        let lacks = Scratch::is_hopeless(&self.scratch).then(|| self.lacks()).flatten();
        let Some(lacks) = lacks else { return fault };
        let what = format!("{}; it cannot be made anew: {lacks}", fault.message());
        let told = Error::new(code::SCRATCH, what).hint(
            "put back what is missing, or start over from a new base backup: synctool datasync clear --rebuild (a pipeline: run --repair)",
        );
        let context = fault.context().iter();
        let told = context.fold(told, |told, &(key, ref value)| told.at(key, value.as_str()));
        told.caused_by(fault)
    }

    /// Whether the scratch server is to be thrown away: it had too many faults in a row, and can be made anew.
    pub fn is_hopeless(&self) -> bool {
        Scratch::is_hopeless(&self.scratch) && self.lacks().is_none()
    }

    /// What is gone without which the scratch server cannot be made anew, as far as that can be seen.
    fn lacks(&self) -> Option<String> {
        if let Backup::Files(path) = &self.backup
            && !path.exists()
        {
            return Some(format!("the base backup {} is not there", path.display()));
        }
        let first = Scratch::begins(&self.scratch, &self.backup)?.segment.to_string();
        if !self.archive.lists() {
            return None;
        }
        let Ok(listing) = self.archive.list() else {
            return Some("the archive cannot be read".into());
        };
        // Another timeline has a copy of the segment in which it began.
        let is_first = |name: &SegmentName| name.to_string()[8..] == first[8..];
        let is_there = listing.segments.keys().any(is_first);
        (!is_there).then(|| format!("the archive holds no segment {first}, with which the base backup begins"))
    }
}

/// A place of the log at which everything committed before is known elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) timeline: u32,
    pub(super) at: Lsn,
    /// From here a scan must begin to know what is open at `at`.
    pub(super) restart: Lsn,
    /// The end of a batch that was begun at `at`: the log is known up to here, on this timeline.
    pub(super) furthest: Lsn,
}

/// A scratch server with the log that it is given.
#[derive(Debug)]
pub(super) struct Replay {
    pub(super) config: ReplayConfig,
    pub(super) scratch: Scratch,
    pub(super) follower: Follower,
    pub(super) scan: Scan,
    readable: Readable,
    /// Where the scan began.
    start: Lsn,
    /// Everything that committed before is known elsewhere.
    applied: Lsn,
    /// What the scan holds beyond the last batch.
    pub(super) taken: Vec<SegmentName>,
    /// The scratch server cannot be looked at here: the batch goes on to where it can.
    pub(super) passing: Option<Lsn>,
    /// Ends whatever waits here, for a segment or for the scratch server. It is of no use any more then.
    pub(super) end: CancellationToken,
}

impl Replay {
    /// Makes or finds the scratch server. The first time this unpacks the base backup, which takes its time.
    pub(super) fn create(config: &ReplayConfig) -> Result<Scratch> {
        let scratch = Scratch::create(config.scratch.clone(), &config.backup)?;
        // What an earlier attempt got ready may not be what this one will want.
        let ready = ready(config);
        if ready.exists() {
            std::fs::remove_dir_all(&ready).map_err(|e| archive::file_error(&ready, &e))?;
        }
        config.archive.tidy()?;
        Ok(scratch)
    }

    /// Goes on from a stored place, or begins where the base backup does.
    pub(super) async fn begin(config: ReplayConfig, scratch: Scratch, stored: Option<Stored>) -> Result<Replay> {
        let identity = identity(scratch.control())?;
        let label = scratch.label();
        let timeline = stored.map_or(label.timeline, |s| s.timeline);
        let mut start = stored.map_or(label.start, |s| s.restart);
        if stored.is_some()
            // One that was made anew has to be given what it replays from its base backup on.
            && let Some(from) = scratch.lacks(start)
        {
            start = start.min(from);
        }
        let history = history(&config.archive, timeline).await?;
        let room = Room {
            rows: config.touched_rows,
            directory: config.scratch.directory.clone(),
        };
        let applied = stored.map_or(start, |s| s.at);
        let follower =
            Follower::new(config.archive.clone(), identity, history, start, config.patience).at_pace(config.pace);
        let follower = follower.unpacking_in(ready(&config));
        Ok(Replay {
            follower: follower.staying_until(stored.map_or(start, |s| s.furthest)),
            scan: Scan::new(identity, None, start, applied, room),
            readable: Readable::new(identity, scratch.replays_from()),
            start,
            applied,
            config,
            scratch,
            taken: Vec::new(),
            passing: None,
            end: CancellationToken::new(),
        })
    }

    /// Takes the next segment into the scan and gets it ready for the gate; or says why there is none.
    pub(super) async fn take(&mut self) -> Result<Option<Waiting>> {
        let timeline = self.follower.timeline();
        // Files may come without a wait: whoever listens beside this has a turn.
        tokio::task::yield_now().await;
        let next = tokio::select! {
            biased;
            () = self.end.cancelled() => return Err(ended()),
            next = self.follower.next() => next?,
        };
        match next {
            Next::Waiting(why) => Ok(Some(why)),
            Next::Segment(segment) => {
                if self.follower.timeline() != timeline {
                    self.scan.change_timeline();
                    self.readable.change_timeline();
                }
                let ready = self.ready();
                // Room for one that stands here already was looked for before.
                if !segment.is_in_a_file() {
                    room::for_segment(&ready, segment.name, segment.identity.segment_size)?;
                }
                self.scan.take(&segment)?;
                self.taken.push(segment.name);
                std::fs::create_dir_all(&ready).map_err(|e| archive::file_error(&ready, &e))?;
                let file = ready.join(segment.name.to_string());
                segment.store(&file)?;
                // It is on its way to the disk while others are read and the batch is planned. Whether it is there is looked at
                // before the gate is opened.
                let sync = move || std::fs::File::open(file).and_then(|file| file.sync_data());
                drop(tokio::task::spawn_blocking(sync));
                Ok(None)
            }
        }
    }

    /// Takes segments until the scan stands at a place that was known before. The same log comes to the same place. From
    /// the base backup on it may be more than the disk holds: the scratch server comes along.
    pub(super) async fn take_up_to(&mut self, at: Lsn) -> Result<Option<Waiting>> {
        let mut ready = 0;
        while self.scan.position() < at {
            if let Some(why) = self.take().await? {
                return Ok(Some(why));
            }
            ready += 1;
            if ready >= self.config.batch_segments && self.may_come_along().await? {
                let parameters = self.scan.parameters().cloned();
                self.open_gate(self.scan.position(), parameters.as_ref()).await?;
                self.tidy()?;
                failpoint("archive.came_along")?;
                ready = 0;
            }
        }
        let found = self.scan.position();
        match found == at {
            true => Ok(None),
            false => Err(another_log(&format!("it comes to {found} and not to {at}"), at)),
        }
    }

    /// Whether the scratch server can stand where the scan does, on its way to the stored place.
    async fn may_come_along(&mut self) -> Result<bool> {
        let at = self.scan.position();
        let is_whole = self.start > self.scratch.label().start || self.backup_ended();
        // An earlier attempt may have let more through.
        let next = self.follower.awaited().to_string();
        Ok(at < self.applied
            && is_whole
            && at >= self.scratch.control().min_recovery
            && !self.scratch.admitted(&next)
            // It may be that nobody gets in here, for a lock of production: the next attempt goes by without a stop.
            && Scratch::faults(&self.config.scratch) == 0
            && self.is_readable().await?)
    }

    /// Fails if a batch that was planned is read again and its log is another one by now: what was read of the rows
    /// before it belongs to the other. A plan of an older version does not say.
    pub(super) fn check_log(&self, planned: Option<u64>) -> Result<()> {
        match planned.is_none_or(|log| log == self.scan.log()) {
            true => Ok(()),
            false => Err(another_log(
                "it comes to the same place with other changes",
                self.scan.position(),
            )),
        }
    }

    /// What was taken up to a place that is stored was counted before.
    pub(super) fn passed(&mut self, at: Lsn) {
        let size = self.scratch.control().segment_size;
        let is_beyond = |name: &SegmentName| name.start(size).is_none_or(|start| start.0 + size.bytes() > at.0);
        self.taken.retain(is_beyond);
    }

    /// Takes segments until the scratch server can be read, behind the place that is passed over.
    pub(super) async fn take_beyond(&mut self) -> Result<Result<Batch, Waiting>> {
        let at = *self.passing.get_or_insert(self.scan.position());
        while self.scan.position() <= at || !self.is_readable().await? {
            if let Some(why) = self.take().await? {
                return Ok(Err(why));
            }
        }
        Ok(Ok(self.scan.finish()))
    }

    /// Takes segments until the scratch server can be read at the place and nothing open there began before the scan.
    pub(super) async fn take_first(&mut self) -> Result<Result<Batch, Waiting>> {
        loop {
            // An earlier attempt may have let more through: the scratch server stands behind that.
            let next = self.follower.awaited().to_string();
            if self.is_consistent() && !self.scratch.admitted(&next) && self.is_readable().await? {
                return Ok(Ok(self.scan.finish()));
            }
            if let Some(why) = self.take().await? {
                return Ok(Err(why));
            }
        }
    }

    /// Takes the segments of the next batch, as many as there are.
    pub(super) async fn take_next(&mut self, applied: Lsn) -> Result<Result<Batch, Waiting>> {
        // A segment in which nothing ends is no batch.
        while self.taken.len() < self.config.batch_segments || self.scan.position() <= applied {
            if let Some(why) = self.take().await? {
                match self.scan.position() > applied {
                    true => break,
                    false => return Ok(Err(why)),
                }
            }
        }
        Ok(Ok(self.scan.finish()))
    }

    /// Whether the scratch server lets anybody read once it has replayed everything that was taken. That depends on where
    /// it begins: one that runs already begins nowhere again.
    pub(super) async fn is_readable(&mut self) -> Result<bool> {
        if self.scratch.replayed().await?.is_some() {
            return Ok(true);
        }
        let (history, ready, scratch) = (self.follower.history(), self.ready(), &self.scratch);
        self.readable.look(history, self.scan.position(), |name| {
            [ready.join(name), scratch.gate().join(name)]
                .into_iter()
                .find(|path| path.is_file())
        })
    }

    /// Whether the scratch server's data is whole here, and every touch from here on is known.
    fn is_consistent(&self) -> bool {
        self.backup_ended() && self.scan.is_complete()
    }

    /// Whether the base backup ended in what was taken.
    fn backup_ended(&self) -> bool {
        let label = self.scratch.label();
        match label.from_standby {
            true => self.scan.position() >= self.scratch.control().min_recovery,
            false => self.scan.backup_ended(label.start),
        }
    }

    /// Fails if a base backup that was not replayed yet ends behind the place that was read up to: nothing stands there.
    pub(super) fn check_backup(&self) -> Result<()> {
        let label = self.scratch.label();
        if !self.scratch.is_fresh() || self.start > label.start || self.backup_ended() {
            return Ok(());
        }
        let what = format!(
            "the base backup, begun at {}, ends behind the stored place {}",
            label.start,
            self.scan.position()
        );
        Err(Error::new(code::CONFIG_INVALID, what).hint(OLDER_BACKUP))
    }

    /// Where segments wait until the gate is opened for them.
    fn ready(&self) -> PathBuf {
        ready(&self.config)
    }

    /// The scratch server runs and stands here.
    pub(super) async fn stand(&self, at: Lsn) -> Result<()> {
        let mut standing = pin!(async {
            self.scratch.start().await?;
            self.scratch.wait_for(at, self.config.replay_patience).await
        });
        loop {
            tokio::select! {
                stands = &mut standing => return stands,
                () = tokio::time::sleep(LOOK) => {}
            }
            // One that is only about to run could not be stopped.
            if self.end.is_cancelled() && self.scratch.is_running()? {
                return Err(ended());
            }
        }
    }

    /// Lets the scratch server have everything that is ready, and waits until it stands at `to`.
    pub(super) async fn open_gate(&mut self, to: Lsn, parameters: Option<&Parameters>) -> Result<()> {
        if let Some(parameters) = parameters {
            self.scratch.raise(parameters).await?;
        }
        self.admit_histories().await?;
        let ready = self.ready();
        let is_segment = |path: &PathBuf| {
            let name = path.file_name().and_then(|n| n.to_str());
            name.and_then(SegmentName::parse).is_some()
        };
        let mut files: Vec<PathBuf> = match std::fs::read_dir(&ready) {
            Ok(entries) => entries.flatten().map(|e| e.path()).filter(is_segment).collect(),
            Err(_) => Vec::new(),
        };
        files.sort();
        if !files.is_empty() {
            let size = self.scratch.control().segment_size.bytes();
            room::check(&ready, size, "what the scratch server is to replay")?;
        }
        for (nth, file) in files.iter().enumerate() {
            let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            self.scratch.admit_file(name, file)?;
            if nth == 0 {
                failpoint("archive.half_open")?;
            }
        }
        self.stand(to).await
    }

    /// The same, and then looks at the tables behind these names; gives the session that did. The inner error says why that
    /// cannot be done there: production holds a lock on its catalogs, or has dropped the database. Nothing can be read there
    /// then, and the batch goes on.
    pub(super) async fn arrive(
        &mut self,
        to: Lsn,
        parameters: Option<&Parameters>,
        names: &[Name],
    ) -> Result<Result<Connection, Error>> {
        self.open_gate(to, parameters).await?;
        let looked = async {
            let session = self.session().await?;
            tables::files(&session).await?;
            let called = names.iter().map(tables::display).collect();
            let found = tables::find_named(&session, called, names.to_vec()).await;
            found.map(|_| session).map_err(blamed)
        };
        let looked = looked.await;
        if let Err(e) = &looked {
            let deaf = e.kind().is_transient() || e.code() == code::DATABASE_MISSING;
            // The server itself is well.
            if !deaf || self.scratch.replayed().await?.is_none() {
                return looked.map(Ok);
            }
        }
        self.passing = looked.is_err().then_some(to);
        Ok(looked)
    }

    /// The scratch server follows to another timeline only if it sees its history.
    async fn admit_histories(&self) -> Result<()> {
        for timeline in 2..=self.follower.timeline() {
            let name = format!("{timeline:08X}.history");
            if self.scratch.admitted(&name) {
                continue;
            }
            if let Some(file) = HistoryFile::find(&self.config.archive, timeline).await? {
                self.scratch.admit(&name, &archive::unpack_history(file.path())?)?;
            }
        }
        Ok(())
    }

    /// A session that waits only shortly for what production has locked.
    pub(super) async fn session(&self) -> Result<Connection> {
        let session = self.scratch.connect(&self.config.database).await?;
        wait_shortly(&session).await?;
        Ok(session)
    }

    /// Segments before the place from which the scratch server would replay are not needed any more.
    pub(super) fn tidy(&self) -> Result<()> {
        let control = Scratch::control_of(&self.config.scratch)?;
        let size = control.segment_size;
        let first = size.number(control.redo);
        self.scratch.forget(|name| {
            let number = SegmentName::parse(name).and_then(|name| name.number(size));
            number.is_none_or(|number| number >= first)
        })
    }
}

/// Where segments wait until the gate is opened for them, and where large ones are unpacked.
pub(super) fn ready(config: &ReplayConfig) -> PathBuf {
    config.scratch.directory.join("ready")
}

/// Locks that production holds are not waited for long.
pub(super) async fn wait_shortly(session: &Connection) -> Result<()> {
    let set = session.batch_execute("SET lock_timeout = '2s'").await;
    set.map_err(|e| session.error(e, "preparing a session of the scratch server"))
}

/// Whether rows are looked up by their addresses, however many are asked for at once: the planner would rather go
/// through the whole table, again for each part of them.
pub(super) async fn by_address(session: &Connection, on: bool) -> Result<()> {
    let set = match on {
        true => "SET enable_seqscan = off",
        false => "RESET enable_seqscan",
    };
    let done = session.batch_execute(set).await;
    done.map_err(|e| session.error(e, "preparing a session of the scratch server"))
}

/// Somebody asked for an end. The next start goes on from what is stored.
pub(super) fn ended() -> Error {
    Error::new(code::INTERRUPTED, "waiting for production's log was stopped")
}

fn another_log(how: &str, at: Lsn) -> Error {
    let what = format!("the archive holds another log than the one that was followed: {how}");
    Error::new(code::WAL_DAMAGED, what)
        .at("lsn", at.to_string())
        .hint("put back the segments as production archived them, or start over from a base backup")
}

/// Whose log it must be.
pub(super) fn identity(control: &Control) -> Result<Identity> {
    let major = Major::ALL.into_iter().find(|m| u32::from(m.number()) == control.major);
    Ok(Identity {
        major: major.ok_or_else(|| {
            Error::new(
                code::SERVER_VERSION,
                format!("PostgreSQL {} is not supported", control.major),
            )
        })?,
        system: control.system,
        segment_size: control.segment_size,
    })
}

/// The history of a timeline, from the archive; the first has none.
pub(super) async fn history(archive: &Archive, timeline: u32) -> Result<History> {
    if timeline == 1 {
        return Ok(History::first());
    }
    match HistoryFile::find(archive, timeline).await? {
        Some(file) => archive::read_history(timeline, file.path()),
        None => Err(Error::new(
            code::WAL_TIMELINE,
            format!("the history of timeline {timeline} is not in the archive"),
        )
        .hint("copy it there from production's pg_wal")),
    }
}
