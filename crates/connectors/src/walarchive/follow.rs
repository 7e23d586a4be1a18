//! Segment after segment: each handed on only when it is whole, checked and in sequence.

use super::archive::{self, Archive, Brought, Listed, Listing, Segment, Trouble};
use super::room;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use synctool_core::error::{Error, Result, code};
use synctool_pgwal as pgwal;
use synctool_pgwal::{Decoder, History, Identity, Lsn, SegmentName};

/// Follows an archive from a place in the log.
#[derive(Debug)]
pub struct Follower {
    archive: Archive,
    listed: Listed,
    /// Large segments are unpacked here.
    beside: PathBuf,
    identity: Identity,
    history: History,
    decoder: Decoder,
    /// Up to here it stays on its timeline: this much of it was read before.
    floor: Lsn,
    /// How often the archive is looked at before something that is missing or broken becomes an error.
    patience: u32,
    /// A look counts if the one before was so long ago.
    pace: Duration,
    waited: Option<Waited>,
    /// What the command said that did not bring the next segment.
    said: Option<String>,
}

/// What the archive gave.
#[derive(Debug)]
pub enum Next {
    /// The next segment.
    Segment(Box<Segment>),
    /// Nothing yet, and why.
    Waiting(Waiting),
}

/// Why there is no next segment yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waiting {
    /// It was not archived yet; an idle production archives nothing.
    NotYet(SegmentName),
    /// Only its beginning is there.
    Partial(SegmentName),
    /// It is there and cannot be taken yet.
    Unready(SegmentName, String),
    /// A later one is there.
    Gap {
        /// The missing one.
        missing: SegmentName,
        /// The one that is there.
        later: SegmentName,
    },
    /// It was not archived yet, and there is a timeline that left this one before our place.
    Forked {
        /// The one that is awaited.
        awaited: SegmentName,
        /// The other timeline.
        timeline: u32,
        /// Where it forked.
        at: Lsn,
    },
}

impl Waiting {
    /// Whether somebody will have to act if it does not pass by itself soon.
    pub fn is_trouble(&self) -> bool {
        !matches!(self, Waiting::NotYet(_) | Waiting::Partial(_))
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waiting::NotYet(name) => write!(f, "segment {name} is not archived yet"),
            Waiting::Partial(name) => write!(f, "of segment {name} only the beginning is archived"),
            Waiting::Unready(name, why) => write!(f, "segment {name} cannot be taken yet: {why}"),
            Waiting::Gap { missing, later } => write!(f, "segment {missing} is missing, though {later} is there"),
            Waiting::Forked { awaited, timeline, at } => write!(
                f,
                "segment {awaited} is not archived yet, and timeline {timeline} forked before it, at {at}"
            ),
        }
    }
}

/// The same trouble, seen again and again. Another process may go on counting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    /// The segment that is awaited.
    segment: String,
    /// The trouble, and the files that are there.
    seen: String,
    times: u32,
    /// When it was counted last, in milliseconds since 1970.
    counted_at: u64,
}

impl Follower {
    /// Follows from the record that starts at `from`, on the timeline of `history`.
    pub fn new(archive: Archive, identity: Identity, history: History, from: Lsn, patience: u32) -> Self {
        Follower {
            archive,
            listed: Listed::default(),
            beside: std::env::temp_dir(),
            identity,
            decoder: Decoder::at(identity, from),
            history,
            floor: Lsn(0),
            patience,
            pace: Duration::ZERO,
            waited: None,
            said: None,
        }
    }

    /// Of looks that follow each other faster than this only one counts.
    #[must_use]
    pub fn at_pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Segments that are too large for memory are unpacked in this directory.
    #[must_use]
    pub fn unpacking_in(mut self, directory: PathBuf) -> Self {
        self.beside = directory;
        self
    }

    /// The trouble that it sees, and how often it did.
    pub fn waited(&self) -> Option<&Waited> {
        self.waited.as_ref()
    }

    /// What the command said that did not bring the next segment, where the archive is one.
    pub fn said(&self) -> Option<&str> {
        self.said.as_deref()
    }

    /// Goes on counting what somebody saw before.
    pub fn has_waited(&mut self, waited: Option<Waited>) {
        self.waited = waited;
    }

    /// Up to this place the timeline it begins with was read before: it goes over to another one only from there on, and
    /// only to one that left it there or later.
    #[must_use]
    pub fn staying_until(mut self, floor: Lsn) -> Self {
        self.floor = floor;
        self
    }

    /// How far the log is checked: the end of the last whole record.
    pub fn position(&self) -> Lsn {
        self.decoder.position()
    }

    /// The timeline it follows.
    pub fn timeline(&self) -> u32 {
        self.history.timeline()
    }

    /// The history of that timeline.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The segment that comes next.
    pub fn awaited(&self) -> SegmentName {
        let size = self.identity.segment_size;
        archive::segment_name(&self.history, size.number(self.decoder.needs()), size)
    }

    /// Looks for the next segment. An error is final: production's log cannot be followed from here without help.
    pub async fn next(&mut self) -> Result<Next> {
        let listing = self.listed.list(&self.archive, self.awaited())?;
        let left = self.find_timeline(&listing).await?;
        let name = self.awaited();
        let standing = listing.segments.get(&name).cloned().unwrap_or_default();
        let brought = match standing.is_empty() {
            true => {
                self.archive.room_to_fetch(name, self.identity.segment_size)?;
                self.archive.fetch(&name.to_string()).await?
            }
            false => Brought::default(),
        };
        self.said.clone_from(&brought.said);
        let candidates = match &brought.file {
            Some(file) => vec![file.path().to_owned()],
            None => standing.clone(),
        };
        let waiting = match candidates.is_empty() {
            true => match (self.absent(name, &listing, &brought.later), left) {
                (Waiting::NotYet(awaited) | Waiting::Partial(awaited), Some((timeline, at))) => {
                    Waiting::Forked { awaited, timeline, at }
                }
                (waiting, _) => waiting,
            },
            false => match self.admit(name, &candidates)? {
                Ok(segment) => {
                    // One that was read before says nothing about a later one.
                    self.waited.take_if(|waited| waited.segment == name.to_string());
                    return Ok(Next::Segment(Box::new(segment)));
                }
                Err(why) => Waiting::Unready(name, why),
            },
        };
        // What a command brings is another file each time, whatever is in it.
        self.wait(name, waiting, &standing)
    }

    fn absent(&self, name: SegmentName, listing: &Listing, behind: &BTreeSet<SegmentName>) -> Waiting {
        let size = self.identity.segment_size;
        let number = name.number(size);
        // Only what belongs to this history proves a gap; an abandoned timeline may have more.
        let later = listing.segments.keys().chain(behind).copied().find(|other| {
            let n = other.number(size);
            n > number && n.is_some_and(|n| archive::segment_name(&self.history, n, size) == *other)
        });
        match later {
            Some(later) => Waiting::Gap { missing: name, later },
            None if listing.partial.contains_key(&name) => Waiting::Partial(name),
            None => Waiting::NotYet(name),
        }
    }

    /// Checks the candidates for a segment. The inner error may pass.
    fn admit(&mut self, name: SegmentName, candidates: &[PathBuf]) -> Result<Result<Segment, String>> {
        let size = self.identity.segment_size;
        if size.bytes() > archive::PIECE as u64 {
            room::for_segment(&self.beside, name, size)?;
        }
        let mut why = String::new();
        let mut foreign = None;
        let mut good: Option<(Segment, Decoder)> = None;
        for path in candidates {
            let checked = archive::read_segment(name, path, &self.beside).and_then(|segment| {
                let decoder = self.check(&segment)?;
                Ok((segment, decoder))
            });
            match checked {
                Ok((segment, decoder)) => match &good {
                    Some((first, _)) => only_one(first, &segment)?,
                    None => good = Some((segment, decoder)),
                },
                Err(Trouble::Unready(what)) => why = what,
                Err(Trouble::Foreign(what)) => foreign = Some((what, path)),
                Err(Trouble::Ours(e)) => return Err(e),
            }
        }
        if let Some((segment, decoder)) = good {
            self.decoder = decoder;
            return Ok(Ok(segment));
        }
        match foreign {
            Some((what, path)) if why.is_empty() => Err(Error::new(code::WAL_FOREIGN, what)
                .at("segment", name.to_string())
                .at("file", path.display().to_string())
                .hint("the archive must hold the log of one server only, the one the base backup is from")),
            _ => Ok(Err(why)),
        }
    }

    /// Reads every record; returns the decoder that stands behind the segment.
    fn check(&self, segment: &Segment) -> Result<Decoder, Trouble> {
        let path = segment.path.display();
        let expected = &self.identity;
        let found = &segment.identity;
        let foreign = |what: &str, found: String, expected: String| {
            Err(Trouble::Foreign(format!(
                "{path} is foreign: {what} is {found}, the base backup has {expected}"
            )))
        };
        if found.system != expected.system {
            return foreign("the system id", found.system.to_string(), expected.system.to_string());
        }
        if found.major != expected.major {
            return foreign(
                "PostgreSQL's major version",
                found.major.to_string(),
                expected.major.to_string(),
            );
        }
        if found.segment_size != expected.segment_size {
            let text = |size: pgwal::SegmentSize| size.bytes().to_string();
            return foreign(
                "the segment size",
                text(found.segment_size),
                text(expected.segment_size),
            );
        }
        let mut decoder = self.decoder.clone();
        let read = segment.read(|at, piece| -> pgwal::Result<()> {
            let mut feed = decoder.feed(at, piece)?;
            while feed.next()?.is_some() {}
            Ok(())
        });
        match read.map_err(|e| Trouble::Ours(archive::file_error(&segment.path, &e)))? {
            Ok(()) => Ok(decoder),
            Err(e @ pgwal::Error::Foreign { .. }) => Err(Trouble::Foreign(format!("{path}: {e}"))),
            Err(e @ pgwal::Error::EndOfLog { .. }) => Err(Trouble::Unready(format!("{path} is not whole: {e}"))),
            Err(e) => Err(Trouble::Unready(format!("{path} is damaged: {e}"))),
        }
    }

    /// Counts how often the same trouble was seen with the same files; what is no trouble never becomes an error.
    fn wait(&mut self, name: SegmentName, waiting: Waiting, candidates: &[PathBuf]) -> Result<Next> {
        if !waiting.is_trouble() {
            self.waited = None;
            return Ok(Next::Waiting(waiting));
        }
        let files: BTreeMap<_, _> = candidates.iter().map(|path| (path.clone(), stamp(path))).collect();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX);
        let seen = Waited {
            segment: name.to_string(),
            seen: format!("{waiting:?} {files:?}"),
            times: 1,
            counted_at: now,
        };
        let times = match &mut self.waited {
            Some(before) if before.seen == seen.seen => {
                if u128::from(now.saturating_sub(before.counted_at)) >= self.pace.as_millis() {
                    (before.times, before.counted_at) = (before.times.saturating_add(1), now);
                }
                before.times
            }
            other => other.insert(seen).times,
        };
        if times <= self.patience {
            return Ok(Next::Waiting(waiting));
        }
        match waiting {
            Waiting::NotYet(_) | Waiting::Partial(_) => Ok(Next::Waiting(waiting)),
            Waiting::Unready(name, why) => Err(Error::new(
                code::WAL_DAMAGED,
                format!("WAL segment {name} cannot be used: {why}"),
            )
            .at("segment", name.to_string())
            .at("lsn", self.position().to_string())
            .hint("copy the segment again from production, or take a new base backup")),
            Waiting::Gap { missing, later } => Err(Error::new(
                code::WAL_MISSING,
                format!("WAL segment {missing} is missing from the archive but {later} exists"),
            )
            .at("segment", missing.to_string())
            .at("lsn", self.position().to_string())
            .hint("put the segment back, or take a new base backup and start over")),
            Waiting::Forked { timeline, at, .. } => {
                let (ours, place) = (self.timeline(), self.position().max(self.floor));
                Err(Error::new(
                    code::WAL_TIMELINE,
                    format!("production went on on timeline {timeline}, which forked at {at}, before {place} of timeline {ours}"),
                )
                .at("timeline", timeline.to_string())
                .at("lsn", place.to_string())
                .hint("rows after the fork were applied that production no longer has: start over from a base backup of the new timeline"))
            }
        }
    }

    /// Goes over to a newer timeline if it left this one at or behind our place. Gives one that left it before, and where,
    /// if there is no other: it matters only if ours has ended.
    async fn find_timeline(&mut self, listing: &Listing) -> Result<Option<(u32, Lsn)>> {
        let mut newer: Vec<History> = Vec::new();
        for (timeline, path) in listing.histories.range(self.history.timeline() + 1..) {
            newer.push(archive::read_history(*timeline, path)?);
        }
        if !self.archive.lists() {
            for timeline in self.history.timeline() + 1.. {
                let history = self.archive.fetch(&format!("{timeline:08X}.history")).await?;
                let Some(file) = history.file else { break };
                newer.push(archive::read_history(timeline, file.path())?);
            }
        }
        let position = self.position();
        let ours = self.history.timeline();
        let place = position.max(self.floor);
        let fits = |history: &&History| history.left(ours).is_some_and(|at| at >= place);
        if let Some(history) = newer.iter().rev().find(fits) {
            if position >= self.floor {
                self.history = history.clone();
                // The fork may lie in a segment that was read already: the new timeline has its own copy of it.
                self.decoder = Decoder::at(self.identity, position);
                self.waited = None;
            }
            return Ok(None);
        }
        Ok(newer.last().map(|history| {
            let left = history.left(ours).or_else(|| history.forks().last().map(|f| f.at));
            (history.timeline(), left.unwrap_or_default())
        }))
    }
}

/// Fails if two files that claim to be the same segment are not.
fn only_one(first: &Segment, other: &Segment) -> Result<()> {
    match first.is_same(other) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::new(
            code::WAL_DAMAGED,
            format!("two different files claim to be WAL segment {}", first.name),
        )
        .at("file", first.path.display().to_string())
        .at("other", other.path.display().to_string())
        .hint("remove the one that production did not archive")),
        Err(e) => Err(archive::file_error(&first.path, &e)),
    }
}

/// Size and time of a file: unchanged, it is not on its way any more.
fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.len(), meta.modified().ok()?))
}
