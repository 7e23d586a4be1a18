//! Where the files are, and what they hold.

use super::bucket::Bucket;
use super::compression::{self, Compression};
use super::names::{self, Kind};
use super::room;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use synctool_core::error::{Error, Result, code, io_reason};
use synctool_pgwal as pgwal;
use synctool_pgwal::{History, Identity, Lsn, PageHeader, SegmentName, SegmentSize};
use tokio::io::AsyncReadExt;

/// So much of a segment is in memory at once: all of one that has the usual size.
pub const PIECE: usize = 16 << 20;
/// What is only looked at comes in smaller pieces, which stay in the processor's cache.
const PART: usize = 1 << 20;
/// A timeline's history is a few lines.
const LARGEST_HISTORY: u64 = 1 << 20;

/// An archive of production's log.
#[derive(Debug, Clone)]
pub enum Archive {
    /// A directory: the files stand in it, or in folders one below it.
    Directory(PathBuf),
    /// A command that fetches one file by its name: `%f` is the name, `%p` where the file is to be put. It fails if
    /// there is no such file.
    Command {
        /// The command, for the shell.
        command: String,
        /// A directory for what was fetched.
        scratch: PathBuf,
        /// How long fetching one file may take.
        timeout: Duration,
    },
    /// A bucket, from which one file after another is fetched by its name.
    Bucket {
        /// The bucket.
        bucket: Bucket,
        /// A directory for what was fetched.
        scratch: PathBuf,
    },
}

/// The files of a directory.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Segments, each with every file that claims to be it.
    pub segments: BTreeMap<SegmentName, Vec<PathBuf>>,
    /// Segments that are there only in part.
    pub partial: BTreeMap<SegmentName, Vec<PathBuf>>,
    /// Timelines with a history.
    pub histories: BTreeMap<u32, PathBuf>,
    /// Segments in which a base backup began.
    pub backups: BTreeSet<SegmentName>,
    /// The age of the newest segment tells whether production still archives.
    pub newest: Option<SystemTime>,
    /// Where all these are: the directory and the folders in it.
    folders: Vec<PathBuf>,
}

/// A listing that is made anew only where something came or went: an archive holds many files, and they are asked for one
/// by one.
#[derive(Debug, Default)]
pub struct Listed(Option<Seen>);

#[derive(Debug)]
struct Seen {
    /// When each folder had changed last.
    changed: Vec<(PathBuf, SystemTime)>,
    /// A moment before it was read: what changed since is no part of the listing.
    at: SystemTime,
    listing: Arc<Listing>,
}

/// A change so soon before a look may be followed by another that its time does not tell.
const UNSURE: Duration = Duration::from_secs(2);

impl Listed {
    /// Everything that is there, for somebody who wants this segment.
    pub fn list(&mut self, archive: &Archive, wanted: SegmentName) -> Result<Arc<Listing>> {
        // What is not there is looked for, whatever the clock of another machine says.
        let has = |seen: &&Seen| seen.listing.segments.contains_key(&wanted) && seen.holds();
        if let Some(seen) = self.0.as_ref().filter(has) {
            return Ok(seen.listing.clone());
        }
        let at = SystemTime::now();
        let listing = Arc::new(archive.list()?);
        let changed = listing.folders.iter().filter_map(|f| Some((f.clone(), changed(f)?)));
        self.0 = Some(Seen {
            changed: changed.collect(),
            at,
            listing: listing.clone(),
        });
        Ok(listing)
    }
}

impl Seen {
    fn holds(&self) -> bool {
        let sure = |then: &SystemTime| self.at.duration_since(*then).is_ok_and(|age| age > UNSURE);
        self.changed.len() == self.listing.folders.len()
            && self
                .changed
                .iter()
                .all(|(folder, then)| sure(then) && changed(folder) == Some(*then))
    }
}

/// When something came into a folder or went last.
fn changed(folder: &Path) -> Option<SystemTime> {
    fs::metadata(folder).ok()?.modified().ok()
}

/// A whole segment, unpacked. Who wrote it and where it belongs agree with its name; its records were not looked at.
#[derive(Debug)]
pub struct Segment {
    /// Its name.
    pub name: SegmentName,
    /// Who wrote it.
    pub identity: Identity,
    /// Its first address.
    pub start: Lsn,
    /// How it was compressed.
    pub compression: Compression,
    /// Where it was found.
    pub path: PathBuf,
    content: Content,
}

/// What a segment holds. It is ours: whatever becomes of the archive's file, what was checked is what is used.
#[derive(Debug)]
enum Content {
    /// In memory.
    Memory(Vec<u8>),
    /// Where that would be too much, in a file of our own.
    File(Fetched),
}

impl Segment {
    /// Hands over the content piece by piece: whole pages, [`PIECE`] bytes of them at most, and their address. The outer
    /// error is that of reading them.
    pub fn read<E>(&self, mut take: impl FnMut(Lsn, &[u8]) -> Result<(), E>) -> io::Result<Result<(), E>> {
        match &self.content {
            Content::Memory(bytes) => Ok(take(self.start, bytes)),
            Content::File(file) => in_pieces(File::open(file.path())?, self.start, take),
        }
    }

    /// Whether its content stands in a file, beside which it is stored without more room.
    pub(super) fn is_in_a_file(&self) -> bool {
        matches!(self.content, Content::File(_))
    }

    /// Puts the content into a file: in the directory that it was unpacked beside, if it is large.
    pub fn store(self, path: &Path) -> Result<()> {
        let stored = match self.content {
            Content::Memory(bytes) => write_with_hole(path, &bytes),
            Content::File(file) => fs::rename(file.path(), path),
        };
        stored.map_err(|e| file_error(path, &e))
    }

    /// Whether another one holds the same.
    pub(super) fn is_same(&self, other: &Segment) -> io::Result<bool> {
        let (ours, theirs) = match (&self.content, &other.content) {
            (Content::Memory(ours), Content::Memory(theirs)) => return Ok(ours == theirs),
            (Content::File(ours), Content::File(theirs)) => (ours, theirs),
            _ => return Ok(false),
        };
        let (mut ours, mut theirs) = (File::open(ours.path())?, File::open(theirs.path())?);
        let (mut a, mut b) = (Vec::new(), Vec::new());
        loop {
            fill(&mut ours, &mut a, PIECE)?;
            fill(&mut theirs, &mut b, PIECE)?;
            if a != b || a.is_empty() {
                return Ok(a == b);
            }
        }
    }
}

impl Content {
    /// For a segment of this size; a large one is kept in a directory.
    fn new(name: SegmentName, size: SegmentSize, beside: &Path) -> Result<Self> {
        // Several files may claim to be one segment.
        static COPIES: AtomicU64 = AtomicU64::new(0);
        if size.bytes() <= PIECE as u64 {
            return Ok(Content::Memory(Vec::new()));
        }
        let copy = COPIES.fetch_add(1, Ordering::Relaxed);
        Ok(Content::File(Fetched::to(beside, &format!("{name}.{copy}"))?))
    }

    /// Keeps one more piece, and leaves memory for the next.
    fn keep(&mut self, piece: &mut Vec<u8>) -> Result<()> {
        match self {
            Content::Memory(bytes) if bytes.is_empty() => {
                std::mem::swap(bytes, piece);
                Ok(())
            }
            // There is more than a segment can hold: it will not be used.
            Content::Memory(_) => Ok(()),
            Content::File(file) => {
                let open = File::options().create(true).append(true).open(file.path());
                let kept = open.and_then(|mut open| open.write_all(piece));
                kept.map_err(|e| file_error(file.path(), &e))
            }
        }
    }
}

/// Writes a file in which the empty pages at the end take no room: most of a segment that production ended early. Whoever
/// brings it to the disk, here and where it is replayed, has so much less to do.
fn write_with_hole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    static EMPTY: [u8; pgwal::PAGE_SIZE] = [0; pgwal::PAGE_SIZE];
    let pages = bytes.rchunks(pgwal::PAGE_SIZE);
    let empty = pages.take_while(|page| **page == EMPTY[..page.len()]);
    let used = bytes.len() - empty.map(<[u8]>::len).sum::<usize>();
    let mut file = File::create(path)?;
    file.write_all(&bytes[..used])?;
    file.set_len(bytes.len() as u64)
}

/// Reads the next piece, in place of what is there. An empty one is the end.
fn fill(content: &mut impl Read, piece: &mut Vec<u8>, most: usize) -> io::Result<()> {
    piece.clear();
    content.take(most as u64).read_to_end(piece).map(drop)
}

/// Hands over a segment's unpacked content from its beginning, piece by piece.
pub(super) fn in_pieces<E>(
    mut content: impl Read,
    start: Lsn,
    mut take: impl FnMut(Lsn, &[u8]) -> Result<(), E>,
) -> io::Result<Result<(), E>> {
    let (mut piece, mut at) = (Vec::new(), start);
    loop {
        fill(&mut content, &mut piece, PIECE)?;
        if piece.is_empty() {
            return Ok(Ok(()));
        }
        if let Err(e) = take(at, &piece) {
            return Ok(Err(e));
        }
        at = Lsn(at.0 + piece.len() as u64);
    }
}

/// A file that is ours for a while; it is removed when it is let go.
#[derive(Debug)]
pub struct Fetched(PathBuf);

impl Fetched {
    /// The place for a file that is not there yet.
    fn to(scratch: &Path, file: &str) -> Result<Self> {
        fs::create_dir_all(scratch).map_err(|e| file_error(scratch, &e))?;
        // Whoever only looks may fetch the same at the same time.
        let fetched = Fetched(scratch.join(format!("{file}.{}", std::process::id())));
        let _ = fs::remove_file(fetched.path());
        Ok(fetched)
    }

    /// Where it is meanwhile.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Fetched {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// What asking for a file by its name brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// The file, if there is one.
    pub file: Option<Fetched>,
    /// Segments behind the one that was asked for, where the archive can tell: of those that come next, a bounded number.
    pub later: BTreeSet<SegmentName>,
    /// What the command said that brought none.
    pub said: Option<String>,
}

/// Why a file cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// It may be on its way: look again later.
    #[error("{0}")]
    Unready(String),
    /// It will never be right.
    #[error("{0}")]
    Foreign(String),
    /// It may be right; there is no room for it here, say.
    #[error("{0}")]
    Ours(Error),
}

impl Archive {
    /// Everything that is there. What is fetched by name is not listed: its listing is empty.
    pub fn list(&self) -> Result<Listing> {
        match self {
            Archive::Directory(directory) => Listing::of(directory),
            Archive::Command { .. } | Archive::Bucket { .. } => Ok(Listing::default()),
        }
    }

    /// Removes what a process that was killed had fetched.
    pub(super) fn tidy(&self) -> Result<()> {
        match self {
            Archive::Command { scratch, .. } | Archive::Bucket { scratch, .. } if scratch.exists() => {
                fs::remove_dir_all(scratch).map_err(|e| file_error(scratch, &e))
            }
            _ => Ok(()),
        }
    }

    /// Whether it can say what it has.
    pub fn lists(&self) -> bool {
        matches!(self, Archive::Directory(_))
    }

    /// Fails if a segment that is to be fetched would not find room.
    pub(super) fn room_to_fetch(&self, name: SegmentName, size: SegmentSize) -> Result<()> {
        match self {
            Archive::Directory(_) => Ok(()),
            Archive::Command { scratch, .. } | Archive::Bucket { scratch, .. } => {
                room::for_segment(scratch, name, size)
            }
        }
    }

    /// Fetches a file by its name. A directory brings none: what is there is listed.
    pub async fn fetch(&self, file: &str) -> Result<Brought> {
        match self {
            Archive::Directory(_) => Ok(Brought::default()),
            Archive::Bucket { bucket, scratch } => {
                let fetched = Fetched::to(scratch, file)?;
                let later = bucket.fetch(file, fetched.path()).await?;
                Ok(match later {
                    None => Brought::of(fetched),
                    Some(later) => Brought {
                        later,
                        ..Brought::default()
                    },
                })
            }
            Archive::Command {
                command,
                scratch,
                timeout,
            } => {
                let fetched = Fetched::to(scratch, file)?;
                let said = run(command, *timeout, file, fetched.path()).await?;
                Ok(match said {
                    None => Brought::of(fetched),
                    said => Brought {
                        said,
                        ..Brought::default()
                    },
                })
            }
        }
    }
}

impl Brought {
    fn of(fetched: Fetched) -> Self {
        Brought {
            file: Some(fetched),
            ..Brought::default()
        }
    }
}

/// Runs a command that fetches a file to a path. Where it brings none, this is how it ended and what it said: nobody but
/// its owner knows whether there is no such file or it could not ask.
async fn run(command: &str, timeout: Duration, file: &str, path: &Path) -> Result<Option<String>> {
    let line = names::command(command, file, &path.display().to_string())?;
    let mut shell = tokio::process::Command::new("/bin/sh");
    shell
        .args(["-c", &line])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let failed = |what: String| {
        Error::new(code::FILE, what)
            .at("file", file)
            .hint("run wal_fetch_command by hand with %f and %p filled in")
    };
    let mut words = LastWords::default();
    let ended = match tokio::time::timeout(timeout, words.listen(&mut shell)).await {
        Err(_) => Err(failed(format!(
            "wal_fetch_command did not end within {} s",
            timeout.as_secs()
        ))),
        Ok(Err(e)) => Err(failed("wal_fetch_command cannot be run".into()).caused_by(e)),
        Ok(Ok(status)) => match status.code() {
            Some(0) if path.is_file() => return Ok(None),
            Some(0) => Ok("it ended well and brought no file".to_owned()),
            // 126 and 127 are the shell's own: the command is not there, or may not be run.
            Some(126 | 127) => Err(failed("wal_fetch_command is not a program that can be run".into())),
            None => Err(failed("wal_fetch_command was ended by a signal".into())),
            Some(code) => Ok(format!("exit status {code}")),
        },
    };
    match (ended, words.text()) {
        (Ok(how), None) => Ok(Some(how)),
        (Ok(how), Some(words)) => Ok(Some(format!("{how}: {words}"))),
        (Err(e), words) => Err(with_last_words(e, words)),
    }
}

/// A command failed, and said this on its standard error.
pub(super) fn failed_saying(error: Error, said: Vec<u8>) -> Error {
    with_last_words(error, LastWords(said).text())
}

fn with_last_words(error: Error, words: Option<String>) -> Error {
    match words {
        Some(words) => error.at("last words", words),
        None => error,
    }
}

/// The end of what a command says on its standard error.
#[derive(Default)]
struct LastWords(Vec<u8>);

impl LastWords {
    /// Bytes that are kept.
    const KEPT: usize = 2048;
    /// Lines that are shown, and letters of them together.
    const SHOWN: (usize, usize) = (3, 400);
    /// How long is listened behind its end: somebody that it left behind may hold the pipe open.
    const ECHO: Duration = Duration::from_millis(200);

    /// Runs a command to its end.
    async fn listen(&mut self, command: &mut tokio::process::Command) -> io::Result<std::process::ExitStatus> {
        let mut child = command.spawn()?;
        let Some(mut says) = child.stderr.take() else {
            return child.wait().await;
        };
        let status = tokio::select! {
            status = child.wait() => status,
            // It may say nothing more long before it ends.
            heard = self.hear(&mut says) => { heard?; child.wait().await }
        }?;
        let _ = tokio::time::timeout(Self::ECHO, self.hear(&mut says)).await;
        Ok(status)
    }

    /// Reads to the end and keeps what came last.
    async fn hear(&mut self, says: &mut tokio::process::ChildStderr) -> io::Result<()> {
        loop {
            self.0.reserve(Self::KEPT);
            if says.read_buf(&mut self.0).await? == 0 {
                return Ok(());
            }
            let beyond = self.0.len().saturating_sub(Self::KEPT);
            self.0.drain(..beyond);
        }
    }

    /// Its last lines in one.
    fn text(&self) -> Option<String> {
        let (lines, letters) = Self::SHOWN;
        let text = String::from_utf8_lossy(&self.0);
        let said = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let said: Vec<&str> = said.collect();
        let last = said[said.len().saturating_sub(lines)..].join("; ");
        let shown = last
            .chars()
            .filter(|c| !c.is_control() && *c != char::REPLACEMENT_CHARACTER);
        let shown: Vec<char> = shown.collect();
        let shown: String = shown[shown.len().saturating_sub(letters)..].iter().collect();
        (!shown.is_empty()).then_some(shown)
    }
}

impl Listing {
    /// The files of a directory and of the folders in it.
    pub fn of(directory: &Path) -> Result<Self> {
        let mut listing = Listing::default();
        listing.add(directory, true)?;
        Ok(listing)
    }

    fn add(&mut self, directory: &Path, folders: bool) -> Result<()> {
        self.folders.push(directory.to_owned());
        let entries = fs::read_dir(directory)
            .map_err(|e| file_error(directory, &e).hint("the archive's directory must be there and readable"))?;
        for entry in entries {
            let path = entry.map_err(|e| file_error(directory, &e))?.path();
            // Files come and go while we look.
            let Ok(meta) = fs::metadata(&path) else { continue };
            if meta.is_dir() {
                if folders {
                    self.add(&path, false)?;
                }
                continue;
            }
            let Some(kind) = path.file_name().and_then(|n| n.to_str()).and_then(Kind::of) else {
                continue;
            };
            match kind {
                Kind::Segment(name) => {
                    self.newest = self.newest.max(meta.modified().ok());
                    self.segments.entry(name).or_default().push(path);
                }
                Kind::Partial(name) => self.partial.entry(name).or_default().push(path),
                Kind::History(timeline) => drop(self.histories.insert(timeline, path)),
                Kind::Backup(name) => drop(self.backups.insert(name)),
            }
        }
        self.segments.values_mut().for_each(|paths| paths.sort());
        Ok(())
    }
}

/// Reads a segment and checks that it is whole and that it is what its name says. A large one is unpacked into a file in
/// the directory `beside`.
pub fn read_segment(name: SegmentName, path: &Path, beside: &Path) -> Result<Segment, Trouble> {
    let unready = |what: String| Trouble::Unready(format!("{} {what}", path.display()));
    let foreign = |what: String| Trouble::Foreign(format!("{} {what}", path.display()));
    let unreadable = |e: io::Error| match e.kind() {
        io::ErrorKind::PermissionDenied => unready("may not be read".into()),
        _ => unready("is not whole, or its compression is damaged".into()),
    };
    let file = File::open(path).map_err(|e| unready(format!("cannot be read: {}", e.kind())))?;
    let (compression, mut unpacked) = compression::unpacked(file).map_err(unreadable)?;
    let mut piece = Vec::new();
    fill(&mut unpacked, &mut piece, PIECE).map_err(unreadable)?;
    let page = piece
        .get(..pgwal::PAGE_SIZE)
        .ok_or_else(|| unready(format!("has only {} bytes", piece.len())))?;
    let (identity, start, header) = match first_page(page) {
        Ok(read) => read,
        Err(e @ pgwal::Error::EndOfLog { .. }) => return Err(unready(format!("is empty: {e}"))),
        Err(e) => return Err(Trouble::Foreign(format!("{}: {e}", path.display()))),
    };
    let size = identity.segment_size;
    if name.start(size) != Some(start) {
        let other = SegmentName::new(header.timeline, size.number(start), size);
        return Err(foreign(format!("holds segment {other}, not what its name says")));
    }
    if header.timeline > name.timeline() {
        let what = format!("is of timeline {}, not {}", header.timeline, name.timeline());
        return Err(foreign(what));
    }
    let mut content = Content::new(name, size, beside).map_err(Trouble::Ours)?;
    let mut length = 0;
    while !piece.is_empty() && length <= size.bytes() {
        length += piece.len() as u64;
        content.keep(&mut piece).map_err(Trouble::Ours)?;
        fill(&mut unpacked, &mut piece, PIECE).map_err(unreadable)?;
    }
    match length.cmp(&size.bytes()) {
        std::cmp::Ordering::Less => Err(unready(format!("has {length} bytes, a segment has {}", size.bytes()))),
        std::cmp::Ordering::Greater => Err(foreign(format!(
            "has more than the {} bytes of a segment",
            size.bytes()
        ))),
        std::cmp::Ordering::Equal => Ok(Segment {
            name,
            identity,
            start,
            compression,
            path: path.to_owned(),
            content,
        }),
    }
}

/// Who wrote a segment, and where it begins: its first page says both. Whether that is where it belongs is seen later.
fn first_page(page: &[u8]) -> pgwal::Result<(Identity, Lsn, PageHeader)> {
    let address = page.get(8..16).and_then(|bytes| bytes.try_into().ok());
    let start = Lsn(u64::from_le_bytes(address.unwrap_or_default()));
    let (identity, header) = Identity::read(start, page)?;
    Ok((identity, start, header))
}

/// What there is of a segment that need not be whole, for looking at it.
pub struct Part {
    /// Who wrote it.
    pub identity: Identity,
    /// Its first address.
    pub start: Lsn,
    path: PathBuf,
    unpacked: Box<dyn Read + Send>,
    /// The address of the next piece.
    at: Lsn,
}

impl Part {
    /// Opens it and looks at its first page.
    pub fn open(path: &Path) -> Result<Part> {
        let file = File::open(path).map_err(|e| file_error(path, &e))?;
        let damaged = |e: io::Error| damaged_part(path, e);
        let (_, mut unpacked) = compression::unpacked(file).map_err(damaged)?;
        let mut page = Vec::new();
        let read = (&mut unpacked).take(pgwal::PAGE_SIZE as u64).read_to_end(&mut page);
        if read.map_err(damaged)? < pgwal::PAGE_SIZE {
            return Err(malformed(path, "is too short for a segment"));
        }
        let (identity, start, _) =
            first_page(&page).map_err(|e| malformed(path, &format!("is no segment: {e}")).caused_by(e))?;
        Ok(Part {
            identity,
            start,
            path: path.to_owned(),
            unpacked: Box::new(Read::chain(io::Cursor::new(page), unpacked)),
            at: start,
        })
    }

    /// Reads the next piece, in place of what is there; gives its address, or None at the end.
    pub fn next(&mut self, piece: &mut Vec<u8>) -> Result<Option<Lsn>> {
        fill(&mut self.unpacked, piece, PART).map_err(|e| damaged_part(&self.path, e))?;
        let at = self.at;
        self.at = Lsn(at.0.saturating_add(piece.len() as u64));
        Ok((!piece.is_empty()).then_some(at))
    }
}

fn malformed(path: &Path, what: &str) -> Error {
    Error::new(code::FILE_MALFORMED, format!("{} {what}", path.display())).at("file", path.display().to_string())
}

fn damaged_part(path: &Path, error: io::Error) -> Error {
    malformed(path, "is damaged, or only a part of it is there").caused_by(error)
}

/// The text of a timeline's history, unpacked.
pub fn unpack_history(path: &Path) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|e| file_error(path, &e))?;
    let (_, bytes) = compression::unpack(file, LARGEST_HISTORY).map_err(|e| {
        Error::new(
            code::FILE_MALFORMED,
            format!("{} is no history of a timeline", path.display()),
        )
        .hint("copy it again from production's archive")
        .caused_by(e)
    })?;
    Ok(bytes)
}

/// Where the history of a timeline is, in a directory or fetched for a while.
pub(super) enum HistoryFile {
    Stands(PathBuf),
    Fetched(Fetched),
}

impl HistoryFile {
    pub(super) async fn find(archive: &Archive, timeline: u32) -> Result<Option<HistoryFile>> {
        Ok(match archive {
            Archive::Directory(directory) => {
                let found = Listing::of(directory)?.histories.remove(&timeline);
                found.map(HistoryFile::Stands)
            }
            command => {
                let found = command.fetch(&format!("{timeline:08X}.history")).await?;
                found.file.map(HistoryFile::Fetched)
            }
        })
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            HistoryFile::Stands(path) => path,
            HistoryFile::Fetched(file) => file.path(),
        }
    }
}

/// Reads a timeline's history.
pub fn read_history(timeline: u32, path: &Path) -> Result<History> {
    let malformed = || {
        Error::new(
            code::FILE_MALFORMED,
            format!("{} is no history of a timeline", path.display()),
        )
        .hint("copy it again from production's archive")
    };
    let bytes = unpack_history(path)?;
    let text = String::from_utf8(bytes).map_err(|e| malformed().caused_by(e))?;
    History::parse(timeline, &text).map_err(|e| malformed().caused_by(e))
}

/// The segment that holds an address, on the timeline where its last byte lies.
pub fn segment_name(history: &History, number: u64, size: SegmentSize) -> SegmentName {
    let last = Lsn(size.start(number).0 + (size.bytes() - 1));
    SegmentName::new(history.timeline_of(last), number, size)
}

/// An error about a file.
pub(crate) fn file_error(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Error::new(code::DISK_FULL, format!("no space is left for {}", path.display()))
        }
        _ => Error::new(code::FILE, format!("{}: {}", path.display(), io_reason(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says what a command that brings nothing says at its end, however much that is.
    #[tokio::test]
    async fn a_command_that_brings_nothing_is_listened_to() {
        let place = tempfile::tempdir().unwrap();
        let ran = async |command: &str| {
            let path = place.path().join("x");
            run(command, Duration::from_secs(60), "x", &path).await
        };
        let said = async |command: &str| ran(command).await.unwrap().unwrap();
        assert_eq!(said("exit 3").await, "exit status 3");
        assert_eq!(
            said("echo looking >&2; echo; echo 'the token has expired' >&2; exit 1").await,
            "exit status 1: looking; the token has expired"
        );
        assert_eq!(said("true").await, "it ended well and brought no file");
        let much = "i=0; while [ $i -lt 20000 ]; do echo \"line $i of many\" >&2; i=$((i+1)); done; exit 2";
        assert_eq!(
            said(much).await,
            "exit status 2: line 19997 of many; line 19998 of many; line 19999 of many"
        );
        let long = said("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1").await;
        assert!(long.len() < 500 && long.ends_with("xxx"), "{long}");
        // Whoever it leaves behind is not waited for.
        assert_eq!(said("echo begun >&2; sleep 5 & exit 1").await, "exit status 1: begun");
        assert_eq!(ran("touch %p").await.unwrap(), None);
        let error = ran("echo gone >&2; exit 127").await.unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn the_empty_end_of_a_segment_takes_no_room() {
        use std::os::unix::fs::MetadataExt;
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("segment");
        let mut bytes = vec![0u8; 4 << 20];
        bytes[2 * pgwal::PAGE_SIZE + 5] = 1;
        for expected in [&bytes[..], &bytes[..pgwal::PAGE_SIZE], &b"no page"[..]] {
            write_with_hole(&path, expected).unwrap();
            assert_eq!(fs::read(&path).unwrap(), expected);
        }
        write_with_hole(&path, &bytes).unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert!(
            meta.blocks() * 512 < 1 << 20,
            "{} blocks of {}",
            meta.blocks(),
            meta.len()
        );
    }

    #[test]
    fn a_listing_is_made_anew_when_something_came() {
        let place = tempfile::tempdir().unwrap();
        let archive = Archive::Directory(place.path().into());
        let add = |name: &str| fs::write(place.path().join(name), b"x").unwrap();
        let long_ago = || {
            let then = SystemTime::now() - Duration::from_secs(60);
            File::open(place.path()).unwrap().set_modified(then).unwrap();
        };
        let (first, second) = ("000000010000000000000001", "000000010000000000000002");
        let [wanted, next] = [first, second].map(|name| SegmentName::parse(name).unwrap());
        add(first);
        let mut listed = Listed::default();
        let young = listed.list(&archive, wanted).unwrap();
        assert!(
            !Arc::ptr_eq(&young, &listed.list(&archive, wanted).unwrap()),
            "it may have changed twice at once"
        );
        long_ago();
        let old = listed.list(&archive, wanted).unwrap();
        assert!(Arc::ptr_eq(&old, &listed.list(&archive, wanted).unwrap()));
        add("00000002.history");
        let newer = listed.list(&archive, wanted).unwrap();
        assert_eq!((old.histories.len(), newer.histories.len()), (0, 1));
        add(second);
        long_ago();
        assert!(listed.list(&archive, next).unwrap().segments.contains_key(&next));
    }
}
