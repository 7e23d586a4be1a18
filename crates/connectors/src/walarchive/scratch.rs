//! The scratch server: a standby that replays exactly the segments it is given, so that its rows stand still at a known
//! place of production's log.
//!
//! It reads its log only from the *gate*, a directory into which [`Scratch::admit`] puts segments. It has no connection
//! to production and listens only on a socket in its own directory.

use super::archive::file_error;
use super::base::{self, Backup, Label};
use super::control::Control;
use super::room;
use crate::postgres::{Connection, Postgres, PostgresConfig};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use synctool_core::retry::oftener_at_first;
use synctool_pgwal::{Lsn, Parameters, SegmentName, WalLevel};

/// How a scratch server is run.
#[derive(Debug, Clone)]
pub struct ScratchConfig {
    /// A directory of its own, as large as production's data.
    pub directory: PathBuf,
    /// Where PostgreSQL's programs are, of production's major version.
    pub bin_dir: PathBuf,
    /// The system user to run it as, if we are root: PostgreSQL refuses to be.
    pub user: Option<String>,
    /// A superuser of production's cluster.
    pub role: String,
    /// How long it may take to start, and to stop.
    pub patience: Duration,
}

impl ScratchConfig {
    /// Where one of its databases is found.
    pub fn address(&self, database: &str) -> PostgresConfig {
        let socket = self.directory.join("socket");
        let mut config = PostgresConfig::new(socket.display().to_string(), PORT, &self.role, database);
        config.application_name = "synctool scratch".into();
        config
    }
}

/// A scratch server that was made from a base backup.
#[derive(Debug)]
pub struct Scratch {
    config: ScratchConfig,
    server: Server,
    control: Control,
    label: Label,
}

/// The right to use a scratch directory, which one process has at a time.
#[derive(Debug)]
pub(super) struct Hold {
    _file: fs::File,
}

impl Hold {
    /// Takes it.
    pub(super) fn take(config: &ScratchConfig) -> Result<Hold> {
        let directory = &config.directory;
        let path = directory.join("lock");
        let failed = |e: std::io::Error| file_error(&path, &e);
        fs::create_dir_all(directory).map_err(failed)?;
        let file = fs::File::create(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Hold { _file: file }),
            Err(fs::TryLockError::WouldBlock) => {
                let what = "the scratch directory is in use by another process";
                Err(Error::new(code::LOCKED, what)
                    .at("directory", directory.display().to_string())
                    .hint("each pipeline and each Data Sync needs a scratch directory of its own; what looks at a running pipeline must wait for its end"))
            }
            Err(fs::TryLockError::Error(e)) => Err(failed(e)),
        }
    }
}

/// Its process, whatever its data is worth.
#[derive(Debug)]
struct Server {
    config: ScratchConfig,
    account: Option<(u32, u32)>,
}

/// Written last: before, the directory is not finished.
const FINISHED: &str = "finished";
const LABEL: &str = "backup_label";
/// How many faults there were in a row.
const FAULTS: &str = "faults";
/// So many, and it is made again.
const MOST_FAULTS: u32 = 3;
/// What to do where the only base backup is too young.
pub(super) const OLDER_BACKUP: &str =
    "use an older base backup and remove the scratch directory, or start over: synctool datasync clear --rebuild";
/// It listens only on its own socket, so that any number will do.
pub const PORT: u16 = 5432;
/// How long it may take to answer: it is on this machine, and what keeps it longer is a lock of production's catalog.
const CONNECT: Duration = Duration::from_secs(5);
/// Between looks how far it is; oftener at first, since most of what it is to replay takes it less.
const LOOK: Duration = Duration::from_millis(50);
/// Between looks at least.
const BREATH: Duration = Duration::from_millis(5);
/// How often a server that waits is told that there may be something.
const TELL: Duration = Duration::from_millis(100);
/// The same while it still does not get on.
const LONGEST_TELL: Duration = Duration::from_secs(5);
/// How long a predecessor that was killed may be in the way.
const RETRY: Duration = Duration::from_secs(20);
/// The longest path of a socket.
const SOCKET_LIMIT: usize = 107;

impl Scratch {
    /// Makes a scratch server from a base backup, or finds the one that was made earlier.
    pub fn create(config: ScratchConfig, backup: &Backup) -> Result<Self> {
        let account = account(config.user.as_deref())?;
        let version = program_version(&config.bin_dir)?;
        let directory = &config.directory;
        let socket = directory.join("socket").join(format!(".s.PGSQL.{PORT}.lock"));
        if socket.as_os_str().len() > SOCKET_LIMIT {
            return Err(Error::new(
                code::CONFIG_INVALID,
                "the scratch directory's path is too long for a socket",
            )
            .at("directory", directory.display().to_string())
            .hint("choose a directory with a path of less than 80 bytes"));
        }
        match Scratch::exists(&config) {
            true => mend(directory, account)?,
            false => make(&config, backup, account, version)?,
        }
        let label = directory.join(LABEL);
        let text = fs::read_to_string(&label).map_err(|e| lost(&label, &e))?;
        let label = Label::parse(&text).ok_or_else(|| damaged("its backup_label was changed"))?;
        let control = Scratch::control_of(&config)?;
        check_version(&control, version)?;
        check_wal_level(&control)?;
        Ok(Scratch {
            server: Server {
                config: config.clone(),
                account,
            },
            config,
            control,
            label,
        })
    }

    /// What the data directory says by now. That it cannot be read is the scratch server's trouble.
    pub(super) fn control_of(config: &ScratchConfig) -> Result<Control> {
        Control::read(&config.directory.join("data")).map_err(|e| damaged(e.message()).caused_by(e))
    }

    /// What its data directory said when it was opened.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Where its base backup begins.
    pub fn label(&self) -> &Label {
        &self.label
    }

    fn data(&self) -> PathBuf {
        self.config.directory.join("data")
    }

    /// From where it replays when it is started.
    pub(super) fn replays_from(&self) -> Lsn {
        match self.is_fresh() {
            true => self.label.start,
            false => self.control.redo,
        }
    }

    /// Whether it was never started: then it begins with its base backup.
    pub(super) fn is_fresh(&self) -> bool {
        self.data().join("backup_label").exists()
    }

    /// Where the log that it may see is.
    pub(super) fn gate(&self) -> PathBuf {
        self.config.directory.join("gate")
    }

    /// From where it will replay, if it does not hold the log from there up to this place: it was made anew since, or did
    /// not come so far.
    pub(super) fn lacks(&self, until: Lsn) -> Option<Lsn> {
        let from = self.replays_from();
        let size = self.control.segment_size;
        let gate = fs::read_dir(self.gate()).into_iter().flatten().flatten();
        let held: BTreeSet<u64> = gate
            .filter_map(|entry| entry.file_name().to_str().and_then(SegmentName::parse)?.number(size))
            .collect();
        let first = size.number(from);
        let holds = held.contains(&first) && (first..size.number(until)).all(|number| held.contains(&number));
        (!holds).then_some(from)
    }

    /// Fails if it was made from a base backup that begins behind the stored place: it can never stand there.
    pub fn within(&self, at: Lsn) -> Result<()> {
        match self.label.start <= at {
            true => Ok(()),
            false => Err(Error::new(
                code::CONFIG_INVALID,
                format!(
                    "the base backup begins at {}, behind the stored place {at}",
                    self.label.start
                ),
            )
            .hint(OLDER_BACKUP)),
        }
    }

    /// Removes it, so that it is made again from the base backup. Fails while somebody uses it.
    pub async fn discard(config: &ScratchConfig) -> Result<()> {
        if !Scratch::exists(config) {
            return Ok(());
        }
        let _held = Hold::take(config)?;
        Scratch::discard_held(config).await
    }

    /// The same for whoever holds the directory.
    pub(super) async fn discard_held(config: &ScratchConfig) -> Result<()> {
        let finished = config.directory.join(FINISHED);
        if !finished.is_file() {
            return Ok(());
        }
        let server = Server {
            account: account(config.user.as_deref())?,
            config: config.clone(),
        };
        server.stop().await?;
        fs::remove_file(&finished).map_err(|e| file_error(&finished, &e))?;
        Scratch::is_well(config);
        Ok(())
    }

    /// Counts a fault of it, for whoever is started next as well.
    pub(super) fn had_fault(config: &ScratchConfig) {
        let file = config.directory.join(FAULTS);
        let faults = Scratch::faults(config).saturating_add(1).to_string();
        let counted = fs::create_dir_all(&config.directory).and_then(|()| fs::write(&file, faults));
        if let Err(error) = counted {
            tracing::warn!("{}: {error}", file.display());
        }
    }

    pub(super) fn faults(config: &ScratchConfig) -> u32 {
        let text = fs::read_to_string(config.directory.join(FAULTS));
        text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default()
    }

    /// Whether it is to be made again: it had too many faults in a row, whoever met them.
    pub(super) fn is_hopeless(config: &ScratchConfig) -> bool {
        Scratch::faults(config) >= MOST_FAULTS
    }

    /// Where the backup begins from which it would be made again, as far as that can be seen without unpacking it.
    pub(super) fn begins(config: &ScratchConfig, backup: &Backup) -> Option<Label> {
        let of = |directory: &Path| Label::parse(&fs::read_to_string(directory.join(LABEL)).ok()?);
        let backup = match backup {
            Backup::Files(path) => of(path),
            Backup::Command(_) => None,
        };
        backup.or_else(|| of(&config.directory))
    }

    /// It works: earlier faults count no more.
    pub fn is_well(config: &ScratchConfig) {
        let file = config.directory.join(FAULTS);
        if let Err(error) = fs::remove_file(&file)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!("{}: {error}", file.display());
        }
    }

    /// Stops one that runs and is used by nobody any more: whoever started it had a fault, or was killed. Says whether
    /// there was one.
    pub async fn stop_left(config: &ScratchConfig) -> Result<bool> {
        if !Scratch::exists(config) {
            return Ok(false);
        }
        let _held = match Hold::take(config) {
            Err(e) if e.code() == code::LOCKED => return Ok(false),
            held => held?,
        };
        let server = Server {
            account: account(config.user.as_deref())?,
            config: config.clone(),
        };
        let runs = server.is_running()?;
        server.stop().await?;
        Ok(runs)
    }

    /// Stops one that may run, where nobody can wait for it.
    pub(super) fn halt(config: &ScratchConfig) {
        let Ok(account) = account(config.user.as_deref()) else {
            return;
        };
        let config = config.clone();
        let server = Server { account, config };
        if server.is_running().unwrap_or_default() {
            let _ = server.command(&["stop", "-w", "-m", "fast", "-s"]).status();
        }
    }

    /// Whether one was made here already.
    pub fn exists(config: &ScratchConfig) -> bool {
        config.directory.join(FINISHED).is_file()
    }

    /// Production's settings rose: ours must not be lower, or replay stops.
    pub async fn raise(&self, parameters: &Parameters) -> Result<()> {
        let file = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&file).map_err(|e| lost(&file, &e))?;
        let current = |name: &str| -> i32 {
            let value = |line: &str| -> Option<i32> {
                line.strip_prefix(name)?
                    .strip_prefix(" = '")?
                    .strip_suffix('\'')?
                    .parse()
                    .ok()
            };
            text.lines().rev().find_map(value).unwrap_or_default()
        };
        let higher: Vec<String> = limits(parameters)
            .into_iter()
            .filter(|(name, wanted)| *wanted > current(name))
            .map(|(name, wanted)| format!("{name} = '{wanted}'\n"))
            .collect();
        if higher.is_empty() {
            return Ok(());
        }
        self.stop().await?;
        put(
            &file,
            format!("{text}{}", higher.concat()).as_bytes(),
            self.server.account,
        )
    }

    /// Lets it see a file of the log: a segment or a history. The file appears there whole.
    pub fn admit(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.gate().join(name);
        write(&path, content, self.server.account).map_err(|e| lost(&path, &e))
    }

    /// The same with a file beside the gate, which moves there.
    pub fn admit_file(&self, name: &str, file: &Path) -> Result<()> {
        let failed = |e: std::io::Error| lost(file, &e);
        let open = fs::File::open(file).map_err(failed)?;
        settle_file(&open, file, self.server.account).map_err(failed)?;
        fs::rename(file, self.gate().join(name)).map_err(failed)
    }

    /// Whether a file was let through.
    pub fn admitted(&self, name: &str) -> bool {
        self.gate().join(name).is_file()
    }

    /// Takes back segments that it needs no more.
    pub fn forget(&self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        let gate = self.gate();
        for entry in fs::read_dir(&gate).map_err(|e| lost(&gate, &e))?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| !wanted(name)) {
                fs::remove_file(entry.path()).map_err(|e| lost(&entry.path(), &e))?;
            }
        }
        Ok(())
    }

    /// Starts it, unless it runs. One that was killed a moment ago may still be in its own way: that is waited for.
    pub async fn start(&self) -> Result<()> {
        self.server.start().await
    }

    /// Stops it; one that does not run is no error.
    pub async fn stop(&self) -> Result<()> {
        self.server.stop().await
    }

    /// Whether its main process lives.
    pub fn is_running(&self) -> Result<bool> {
        self.server.is_running()
    }

    /// A session in one of its databases, where it must be read from. Fails with a transient error while it is not
    /// consistent yet.
    pub async fn connect(&self, database: &str) -> Result<Connection> {
        let mut address = self.address(database);
        address.connect_timeout = CONNECT;
        Postgres::open(address)?.connect().await
    }

    /// Where one of its databases is found.
    pub fn address(&self, database: &str) -> PostgresConfig {
        self.config.address(database)
    }

    /// How far it has replayed; None while it cannot be asked.
    pub async fn replayed(&self) -> Result<Option<Lsn>> {
        self.ask(&mut None).await
    }

    /// The same over a session that is kept.
    async fn ask(&self, session: &mut Option<Connection>) -> Result<Option<Lsn>> {
        let open = match session.take() {
            Some(open) => open,
            None => match self.connect("template1").await {
                Ok(open) => open,
                Err(e) if e.kind().is_transient() || e.code() == code::SERVER_ERROR => return Ok(None),
                Err(e) if e.code() == code::AUTH_FAILED => {
                    let what = format!(
                        "scratch_role: production has no role {} that may log in",
                        self.config.role
                    );
                    return Err(Error::new(code::CONFIG_INVALID, what)
                        .caused_by(e)
                        .hint("name a superuser of production's cluster"));
                }
                // Every server has this database: this one's data is damaged.
                Err(e) => {
                    let what = format!("the scratch server cannot be asked: {}", e.message());
                    return Err(Error::new(code::SCRATCH, what).caused_by(e));
                }
            },
        };
        let answer = open
            .query_one("SELECT pg_catalog.pg_last_wal_replay_lsn()::text", &[])
            .await
            .map_err(|e| open.error(e, "asking the scratch server how far it is"));
        let row = match answer {
            Ok(row) => row,
            Err(e) if e.kind().is_transient() => return Ok(None),
            Err(e) => return Err(e),
        };
        *session = Some(open);
        let text: Option<String> = row.get(0);
        let lsn = text.map(|text| text.parse().map_err(|e| Error::bug("an LSN that is none").caused_by(e)));
        lsn.transpose()
    }

    /// When it came to a segment last: the only sign of one that replays and cannot be asked yet. The segment itself may be
    /// older: it was given its name there then.
    fn turned(&self) -> Option<(i64, i64)> {
        let files = fs::read_dir(self.data().join("pg_wal")).into_iter().flatten().flatten();
        let segments = files.filter(|file| file.file_name().to_str().and_then(SegmentName::parse).is_some());
        let named = segments.filter_map(|file| file.metadata().ok());
        named.map(|meta| (meta.ctime(), meta.ctime_nsec())).max()
    }

    /// Waits until it stands exactly at `lsn`. Further is fatal: then its rows are not those of any known place.
    pub async fn wait_for(&self, lsn: Lsn, patience: Duration) -> Result<()> {
        let begun = Instant::now();
        let (mut last, mut since) = (None, begun);
        let mut session = None;
        let (mut told, mut pause) = (None, TELL);
        loop {
            let at = self.ask(&mut session).await?;
            let turned = match at {
                Some(_) => None,
                None => self.turned(),
            };
            let sign = (at, turned);
            // The first look says nothing of that: mostly it waits for what was let through just now.
            let moves = last.replace(sign).is_some_and(|before| before != sign);
            let rests = told.is_some_and(|told: Instant| told.elapsed() < pause);
            if at.is_none_or(|at| at < lsn) && !moves && !rests {
                self.tell(session.as_ref()).await?;
                (told, pause) = (Some(Instant::now()), (pause * 2).min(LONGEST_TELL));
            }
            match at {
                Some(at) if at == lsn => return Ok(()),
                Some(at) if at > lsn => {
                    return Err(Error::new(
                        code::SCRATCH,
                        format!("the scratch server stands at {at}, beyond {lsn}"),
                    )
                    .hint("remove the scratch directory: it is made again from the base backup"));
                }
                _ => {}
            }
            if moves {
                since = Instant::now();
            }
            if since.elapsed() > patience {
                let at = at.map_or_else(|| "an unknown place".into(), |at| at.to_string());
                return Err(self
                    .server
                    .failed(&format!("the scratch server should replay to {lsn} and stays at {at}")));
            }
            if !self.is_running()? {
                return Err(self.server.failed("the scratch server has ended"));
            }
            tokio::time::sleep(oftener_at_first(LOOK, begun.elapsed()).max(BREATH)).await;
        }
    }

    /// Has its settings read again: a server that waits for its log looks for it then. Where it can be asked no program has
    /// to be started for that.
    async fn tell(&self, session: Option<&Connection>) -> Result<()> {
        if let Some(session) = session
            && session.simple_query("SELECT pg_catalog.pg_reload_conf()").await.is_ok()
        {
            return Ok(());
        }
        self.server.pg_ctl(&["reload", "-s"]).await.map(drop)
    }
}

/// An error of one of its sessions. What damaged data says is the server's trouble and not that of the table that was
/// read: it is made again.
pub(super) fn blamed(error: Error) -> Error {
    let state = error.context().iter().find(|(key, _)| *key == "sqlstate");
    let is_damaged = match state.map(|(_, state)| state.as_str()) {
        Some("XX001" | "XX002" | "58030") => true,
        // A library that is not installed is no file of the data.
        Some("58P01") => !error.message().contains("could not access file"),
        _ => false,
    };
    if !is_damaged {
        return error;
    }
    damaged(error.message()).caused_by(error)
}

/// Something of it is not as it was made. Nothing in it is worth more than the base backup.
fn damaged(what: &str) -> Error {
    let what = format!("the scratch server's data is damaged: {what}");
    Error::new(code::SCRATCH, what).hint(
        "after the third time it is made anew from the base backup; if the backup is damaged too, take another one",
    )
}

/// A file of it that cannot be read or written. A full disk is no fault of its own.
fn lost(path: &Path, error: &std::io::Error) -> Error {
    match file_error(path, error) {
        full if full.code() == code::DISK_FULL => full,
        other => damaged(other.message()).caused_by(other),
    }
}

/// Makes one from a base backup.
fn make(config: &ScratchConfig, backup: &Backup, account: Option<(u32, u32)>, version: u32) -> Result<()> {
    let directory = &config.directory;
    // What an interrupted attempt left is worth nothing.
    for part in ["data", "gate", "socket"] {
        let path = directory.join(part);
        if path.exists() {
            fs::remove_dir_all(&path).map_err(|e| file_error(&path, &e))?;
        }
    }
    if let Some(control) = backup.control() {
        check_version(&control, version)?;
        check_wal_level(&control)?;
    }
    room::check(directory, backup.size(), "the scratch server")?;
    let data = directory.join("data");
    let (_, control) = base::unpack(backup, &data)?;
    check_version(&control, version)?;
    check_wal_level(&control)?;
    for part in ["gate", "socket"] {
        let path = directory.join(part);
        fs::create_dir_all(&path).map_err(|e| file_error(&path, &e))?;
    }
    settle(config, &data, &control)?;
    // The server renames the label when it is done with it; where the scan begins must be known longer.
    let (from, to) = (data.join("backup_label"), directory.join(LABEL));
    fs::copy(&from, &to).map_err(|e| file_error(&to, &e))?;
    own(directory, account)?;
    persist(directory)?;
    put(&directory.join(FINISHED), b"", account)
}

/// Gate and socket hold nothing that is not given again.
fn mend(directory: &Path, account: Option<(u32, u32)>) -> Result<()> {
    for part in ["gate", "socket"] {
        let path = directory.join(part);
        if !path.is_dir() {
            fs::create_dir_all(&path).map_err(|e| lost(&path, &e))?;
            own(&path, account)?;
        }
    }
    Ok(())
}

impl Server {
    fn data(&self) -> PathBuf {
        self.config.directory.join("data")
    }

    async fn start(&self) -> Result<()> {
        if self.is_running()? {
            return Ok(());
        }
        // Recovery takes its time; an end at once is repeated only as long as a predecessor may be in the way.
        let end = Instant::now() + RETRY.min(self.config.patience);
        loop {
            let log = self.config.directory.join("log");
            let seconds = self.config.patience.as_secs().max(1).to_string();
            let log = log.display().to_string();
            let output = self.pg_ctl(&["start", "-w", "-t", &seconds, "-l", &log, "-s"]).await?;
            if output.status.success() || self.is_running()? {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(self.failed("the scratch server does not start"));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn stop(&self) -> Result<()> {
        let patience = self.config.patience.max(Duration::from_secs(1));
        for mode in ["fast", "immediate"] {
            if !self.is_running()? {
                return Ok(());
            }
            // pg_ctl would look for its end every tenth of a second only.
            self.pg_ctl(&["stop", "-W", "-m", mode, "-s"]).await?;
            let begun = Instant::now();
            while self.is_running()? && begun.elapsed() < patience {
                tokio::time::sleep(oftener_at_first(LOOK, begun.elapsed()).max(BREATH)).await;
            }
        }
        match self.is_running()? {
            true => Err(self.failed("the scratch server does not stop")),
            false => Ok(()),
        }
    }

    fn is_running(&self) -> Result<bool> {
        let pid = fs::read_to_string(self.data().join("postmaster.pid")).unwrap_or_default();
        let Some(pid) = pid.lines().next().and_then(|pid| pid.trim().parse::<u32>().ok()) else {
            return Ok(false);
        };
        // A number may have been given to another process since.
        let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let data = self.data();
        let ours = command
            .split(|b| *b == 0)
            .any(|word| word == data.as_os_str().as_encoded_bytes());
        Ok(ours)
    }

    fn failed(&self, what: &str) -> Error {
        let log = self.config.directory.join("log");
        let text = fs::read_to_string(&log).unwrap_or_default();
        let says = |line: &&str| ["FATAL:", "PANIC:", "ERROR:"].iter().any(|level| line.contains(level));
        let mut error = Error::new(code::SCRATCH, what).at("log", log.display().to_string());
        if let Some(line) = text.lines().rev().take(50).find(says) {
            error = error.at("last words", line.to_owned());
        }
        error.hint("the log says more; if its data is lost, remove the scratch directory")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let data = self.data();
        let mut command = Command::new(self.config.bin_dir.join("pg_ctl"));
        command
            .args(arguments)
            .arg("-D")
            .arg(&data)
            .stdin(Stdio::null())
            .current_dir(&self.config.directory);
        // Output to files: the server would keep a pipe open for as long as it runs.
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .env("LC_ALL", "C.UTF-8");
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        if let Some((uid, gid)) = self.account {
            command.uid(uid).gid(gid);
        }
        command.process_group(0);
        command
    }

    async fn pg_ctl(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(arguments);
        let failed = |e: std::io::Error| Error::new(code::SCRATCH, format!("pg_ctl cannot be run: {}", e.kind()));
        let work = tokio::task::spawn_blocking(move || command.output().map_err(failed));
        work.await
            .map_err(|e| Error::bug("pg_ctl was not waited for").caused_by(e))?
    }
}

/// The user and group to be, if we are root.
pub fn account(user: Option<&str>) -> Result<Option<(u32, u32)>> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output = Command::new("id").args(arguments).stderr(Stdio::null()).output().ok()?;
        String::from_utf8(output.stdout).ok()?.trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return Ok(None);
    }
    let Some(user) = user.filter(|user| !["", "root"].contains(user)) else {
        return Err(
            Error::new(code::CONFIG_INVALID, "scratch cannot run as root; set scratch_user")
                .hint("any user that is not root, such as postgres"),
        );
    };
    match (id(&["-u", "--", user]), id(&["-g", "--", user])) {
        (Some(0), _) => Err(Error::new(code::CONFIG_INVALID, "scratch_user must not be root")),
        (Some(uid), Some(gid)) => Ok(Some((uid, gid))),
        _ => Err(Error::new(code::CONFIG_INVALID, format!("there is no user {user}")).hint("set scratch_user")),
    }
}

/// The major version of the programs.
pub fn program_version(bin_dir: &Path) -> Result<u32> {
    let program = bin_dir.join("postgres");
    let missing = || {
        Error::new(
            code::CONFIG_INVALID,
            format!("pg_bin_dir: {} cannot be run", program.display()),
        )
        .hint("name the directory with postgres and pg_ctl of production's major version")
    };
    let output = Command::new(&program)
        .arg("--version")
        .output()
        .map_err(|e| missing().caused_by(e))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split(' ').nth(2).unwrap_or_default();
    let digits: String = number.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().map_err(|_| missing())
}

fn check_version(control: &Control, version: u32) -> Result<()> {
    match control.major == version {
        true => Ok(()),
        false => Err(Error::new(
            code::SERVER_VERSION,
            format!("pg_bin_dir: PostgreSQL major {} needed, found {version}", control.major),
        )
        .hint("install the major version that the base backup is from")),
    }
}

/// Without what a standby needs in it, the log cannot be replayed.
fn check_wal_level(control: &Control) -> Result<()> {
    match control.parameters.wal_level {
        Some(WalLevel::Minimal) => Err(Error::new(code::LOG_SETUP, MINIMAL).hint(NOT_MINIMAL)),
        _ => Ok(()),
    }
}

/// What is told of a production that writes too little.
pub(super) const MINIMAL: &str = "production wal_level is minimal: not enough for replay (replica or logical needed)";
/// What to do about it.
pub(super) const NOT_MINIMAL: &str =
    "ALTER SYSTEM SET wal_level = 'replica' in production, restart it, take a new base backup";

/// What a standby must not have less of than production; and a few sessions for us.
fn limits(parameters: &Parameters) -> [(&'static str, i32); 5] {
    [
        ("max_connections", parameters.max_connections.max(20)),
        ("max_worker_processes", parameters.max_worker_processes),
        ("max_wal_senders", parameters.max_wal_senders),
        ("max_prepared_transactions", parameters.max_prepared_transactions),
        ("max_locks_per_transaction", parameters.max_locks_per_transaction),
    ]
}

/// The command that brings a file of the log from the gate: the gate's own file, which is on the disk already. A standby that
/// nobody sends its log (`primary_conninfo`) only removes or renames what it restored.
fn restores_from(gate: &str) -> String {
    // %% so that a percent sign of the path is not taken for a placeholder; quotes for the shell.
    let gate = format!("'{}'", gate.replace('%', "%%").replace('\'', r"'\''"));
    // A file that is not there is asked for again and again, without a word in the log; one that cannot be read is told.
    // What is in the way of a copy goes first: it may be another file of the gate, which would be written over.
    format!("test -e {gate}/%f && {{ ln {gate}/%f %p 2>/dev/null || {{ rm -f %p && cp {gate}/%f %p; }}; }}")
}

/// Gives the data directory settings of our own: production's may name files and memory that are not here.
fn settle(config: &ScratchConfig, data: &Path, control: &Control) -> Result<()> {
    let gate = config.directory.join("gate").display().to_string();
    let socket = config.directory.join("socket").display().to_string();
    let limits = limits(&control.parameters);
    // PostgreSQL's own defaults, but at least two segments: with less a server of large ones does not start.
    let megabytes = control.segment_size.bytes() >> 20;
    let least_wal = format!("{}MB", (2 * megabytes).max(80));
    let most_wal = format!("{}MB", (4 * megabytes).max(1024));
    let restore = restores_from(&gate);
    let settings: &[(&str, &str)] = &[
        ("listen_addresses", ""),
        ("unix_socket_directories", &socket),
        ("port", &PORT.to_string()),
        ("hot_standby", "on"),
        ("primary_conninfo", ""),
        ("primary_slot_name", ""),
        ("restore_command", &restore),
        ("recovery_target_timeline", "latest"),
        // It is told when there is something: looking again and again costs, and fills its log.
        ("wal_retrieve_retry_interval", "1min"),
        ("archive_mode", "off"),
        ("min_wal_size", &least_wal),
        ("max_wal_size", &most_wal),
        ("max_standby_archive_delay", "-1"),
        ("max_standby_streaming_delay", "-1"),
        ("autovacuum", "off"),
        ("logging_collector", "off"),
        ("lc_messages", "C"),
        ("timezone", "UTC"),
        ("log_timezone", "UTC"),
        ("jit", "off"),
        ("cluster_name", "synctool scratch"),
    ];
    let mut text =
        String::from("# Made by SyncTool. The scratch server is made again when its directory is removed.\n");
    let limits = limits.map(|(name, value)| (name, value.to_string()));
    let numbers = limits.iter().map(|(name, value)| (name, value.as_str()));
    for (name, value) in settings.iter().map(|(name, value)| (name, *value)).chain(numbers) {
        text.push_str(&format!(
            "{name} = '{}'\n",
            value.replace('\\', r"\\").replace('\'', "''")
        ));
    }
    put(&data.join("postgresql.conf"), text.as_bytes(), None)?;
    // ALTER SYSTEM of production would have the last word.
    put(&data.join("postgresql.auto.conf"), b"", None)?;
    put(&data.join("pg_hba.conf"), b"local all all trust\n", None)?;
    put(&data.join("pg_ident.conf"), b"", None)?;
    put(&data.join("standby.signal"), b"", None)?;
    // The log comes through the gate alone.
    let wal = data.join("pg_wal");
    fs::create_dir_all(wal.join("archive_status")).map_err(|e| file_error(&wal, &e))?;
    for entry in fs::read_dir(&wal).map_err(|e| file_error(&wal, &e))?.flatten() {
        if entry.path().is_file() {
            fs::remove_file(entry.path()).map_err(|e| file_error(&entry.path(), &e))?;
        }
    }
    Ok(())
}

/// Writes a file so that it is there whole or not at all, for its owner alone.
fn put(path: &Path, content: &[u8], account: Option<(u32, u32)>) -> Result<()> {
    write(path, content, account).map_err(|e| file_error(path, &e))
}

fn write(path: &Path, content: &[u8], account: Option<(u32, u32)>) -> std::io::Result<()> {
    let draft = path.with_extension("draft");
    let mut file = fs::File::create(&draft)?;
    file.write_all(content)?;
    settle_file(&file, &draft, account)?;
    fs::rename(&draft, path)
}

/// A file is on the disk, and its owner's alone.
fn settle_file(file: &fs::File, path: &Path, account: Option<(u32, u32)>) -> std::io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    if let Some((uid, gid)) = account {
        chown(path, Some(uid), Some(gid))?;
    }
    file.sync_all()
}

/// Has everything below a directory on the disk, before something says that it is there: files that a power failure cut
/// short would look like tables with fewer rows. The server does the same when it starts, which may be long after.
fn persist(directory: &Path) -> Result<()> {
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let failed = |e: std::io::Error| file_error(&path, &e);
        let kind = fs::symlink_metadata(&path).map_err(failed)?.file_type();
        if kind.is_file() {
            fs::File::open(&path).and_then(|file| file.sync_all()).map_err(failed)?;
        } else if kind.is_dir() {
            for entry in fs::read_dir(&path).map_err(failed)? {
                open.push(entry.map_err(failed)?.path());
            }
            // Not every file system knows this of a directory.
            let _ = fs::File::open(&path).and_then(|folder| folder.sync_all());
        }
    }
    Ok(())
}

/// Gives everything to the server's user, and to nobody else.
fn own(directory: &Path, account: Option<(u32, u32)>) -> Result<()> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e: std::io::Error| file_error(&path, &e)
    };
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        let meta = fs::symlink_metadata(&path).map_err(failed(&path))?;
        if meta.is_symlink() {
            continue;
        }
        if let Some((uid, gid)) = account {
            chown(&path, Some(uid), Some(gid)).map_err(failed(&path))?;
        }
        if meta.is_dir() {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(failed(&path))?;
            for entry in fs::read_dir(&path).map_err(failed(&path))? {
                open.push(entry.map_err(failed(&path))?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_restored_writes_over_no_file_of_the_gate() {
        let place = tempfile::tempdir().unwrap();
        let (gate, to) = (place.path().join("it's 100 %"), place.path().join("restored"));
        fs::create_dir(&gate).unwrap();
        fs::write(gate.join("A"), "first").unwrap();
        fs::write(gate.join("B"), "second").unwrap();
        let restore = |name: &str| {
            let command = restores_from(&gate.display().to_string());
            // As the server fills it in.
            let parts = command.split("%%").map(|part| {
                let named = part.replace("%f", name);
                named.replace("%p", &to.display().to_string())
            });
            let shell = parts.collect::<Vec<_>>().join("%");
            Command::new("sh").args(["-c", &shell]).status().unwrap().success()
        };
        assert!(!restore("C") && !to.exists());
        // The second one finds the first one in its way.
        for (name, content) in [("A", "first"), ("B", "second")] {
            assert!(restore(name));
            assert_eq!(fs::read_to_string(&to).unwrap(), content);
            assert_eq!(fs::read_to_string(gate.join("A")).unwrap(), "first");
        }
        fs::remove_file(&to).unwrap();
        assert!(restore("B"));
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_eq!(inode(&to), inode(&gate.join("B")));
    }
}
