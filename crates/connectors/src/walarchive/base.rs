//! Base backups: where a scratch server begins.

use super::archive::{failed_saying, file_error};
use super::compression;
use super::control::Control;
use super::names;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::{Lsn, SegmentName};

/// A base backup of production.
#[derive(Debug, Clone)]
pub enum Backup {
    /// A copy of a data directory, a directory with `base.tar`, or a tar file.
    Files(PathBuf),
    /// A command that restores one into the directory `%p`.
    Command(String),
}

impl Backup {
    /// For messages.
    pub fn display(&self) -> String {
        match self {
            Backup::Files(path) => path.display().to_string(),
            Backup::Command(_) => "what base_restore_command restored".into(),
        }
    }

    /// Bytes that it will take at least, as far as that is known before it is unpacked.
    pub(super) fn size(&self) -> u64 {
        match self {
            Backup::Command(_) => 0,
            Backup::Files(path) => match tar_file(path) {
                Ok(Some(tar)) => fs::metadata(tar).map_or(0, |meta| meta.len()),
                _ => bytes_below(path),
            },
        }
    }

    /// What it says of its server, where it is a plain directory: there it need not be unpacked to be asked.
    pub(super) fn control(&self) -> Option<Control> {
        match self {
            Backup::Files(path) => Control::read(path).ok(),
            Backup::Command(_) => None,
        }
    }
}

impl From<PathBuf> for Backup {
    fn from(path: PathBuf) -> Self {
        Backup::Files(path)
    }
}

/// What `backup_label` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// From where replay begins.
    pub start: Lsn,
    /// The segment that holds that place.
    pub segment: SegmentName,
    /// The timeline of the backup.
    pub timeline: u32,
    /// Whether it was made from a standby, which writes no end of the backup into the log.
    pub from_standby: bool,
}

impl Label {
    /// Reads the file's text.
    pub fn parse(text: &str) -> Option<Self> {
        let line = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let (start, segment) = line("START WAL LOCATION")?.split_once(" (file ")?;
        let segment = SegmentName::parse(segment.strip_suffix(')')?)?;
        Some(Label {
            start: start.parse().ok()?,
            segment,
            from_standby: line("BACKUP FROM") == Some("standby"),
            timeline: line("START TIMELINE").map_or(Some(segment.timeline()), |n| n.parse().ok())?,
        })
    }
}

/// Unpacks a base backup into an empty directory; tar files may be compressed. Returns what it says about itself.
pub fn unpack(backup: &Backup, data: &Path) -> Result<(Label, Control)> {
    fs::create_dir_all(data).map_err(|e| file_error(data, &e))?;
    match backup {
        Backup::Command(command) => restore(command, data)?,
        Backup::Files(path) => match tar_file(path)? {
            Some(tar) => untar(&tar, data)?,
            None => copy(path, data)?,
        },
    }
    let file = data.join("backup_label");
    let label = fs::read_to_string(&file).map_err(|_| {
        Error::new(
            code::FILE_MALFORMED,
            format!("{} has no backup_label: it is no base backup", backup.display()),
        )
        .hint("make one with pg_basebackup -X none, or restore one with your backup tool")
    })?;
    let label = Label::parse(&label).ok_or_else(|| {
        Error::new(
            code::FILE_MALFORMED,
            format!("the backup_label of {} cannot be understood", backup.display()),
        )
    })?;
    let elsewhere = fs::read_dir(data.join("pg_tblspc"))
        .map(|entries| entries.flatten().count())
        .unwrap_or_default();
    let map = fs::read_to_string(data.join("tablespace_map")).unwrap_or_default();
    if elsewhere > 0 || !map.trim().is_empty() {
        return Err(Error::new(
            code::UNSUPPORTED,
            "the base backup has tablespaces, which cannot be used yet",
        )
        .at("backup", backup.display())
        .hint("move the tables to the default tablespace, or ask for it"));
    }
    Ok((label, Control::read(data)?))
}

/// Lets the user's command restore a backup, and removes what is only for the server that ran in it.
fn restore(command: &str, data: &Path) -> Result<()> {
    let line = names::command(command, "", &data.display().to_string())?;
    let failed = |what: String| {
        Error::new(code::FILE, what).hint("run base_restore_command by hand with %p filled in: an empty directory")
    };
    let output = Command::new("/bin/sh")
        .args(["-c", &line])
        .stdin(Stdio::null())
        .output()
        .map_err(|e| failed(format!("base_restore_command cannot be run: {}", e.kind())))?;
    if !output.status.success() {
        let failed = failed(format!("base_restore_command failed: {}", output.status));
        return Err(failed_saying(failed, output.stderr));
    }
    for name in LEFT_OUT {
        let path = data.join(name);
        if path.exists() {
            fs::remove_file(&path).map_err(|e| file_error(&path, &e))?;
        }
    }
    Ok(())
}

/// Bytes of all files below a directory.
pub(super) fn bytes_below(path: &Path) -> u64 {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

fn tar_file(backup: &Path) -> Result<Option<PathBuf>> {
    let meta = fs::metadata(backup).map_err(|e| file_error(backup, &e))?;
    if meta.is_file() {
        return Ok(Some(backup.to_owned()));
    }
    let entries = fs::read_dir(backup).map_err(|e| file_error(backup, &e))?;
    let is_base = |path: &PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        name == "base.tar" || name.starts_with("base.tar.") || name == "data.tar" || name.starts_with("data.tar.")
    };
    Ok(entries.flatten().map(|entry| entry.path()).find(is_base))
}

/// Unpacks with the system's tar, which gets the content already decompressed.
fn untar(tar: &Path, data: &Path) -> Result<()> {
    let file = File::open(tar).map_err(|e| file_error(tar, &e))?;
    let broken = |what: String| {
        Error::new(
            code::FILE_MALFORMED,
            format!("{} cannot be unpacked: {what}", tar.display()),
        )
        .hint("check that the backup is whole")
    };
    let (_, mut content) = compression::unpacked(file).map_err(|e| broken(e.to_string()))?;
    let mut child = Command::new("tar")
        .args(["-x", "-f", "-", "-C"])
        .arg(data)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| broken(format!("tar cannot be run: {}", e.kind())))?;
    let mut input = child.stdin.take().ok_or_else(|| Error::bug("tar has no input"))?;
    let mut buffer = vec![0; 1 << 20];
    let mut fed = Ok(());
    loop {
        match content.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                if input.write_all(&buffer[..n]).is_err() {
                    // tar says why.
                    break;
                }
            }
            Err(_) => {
                fed = Err(broken("its compression is damaged, or it is not whole".into()));
                break;
            }
        }
    }
    drop(input);
    let output = child.wait_with_output().map_err(|e| broken(e.kind().to_string()))?;
    fed?;
    match output.status.success() {
        true => Ok(()),
        false => Err(broken(
            String::from_utf8_lossy(&output.stderr)
                .lines()
                .last()
                .unwrap_or("tar failed")
                .to_owned(),
        )),
    }
}

/// Files of a data directory that mean something only to the server that ran in it.
const LEFT_OUT: &[&str] = &[
    "postmaster.pid",
    "postmaster.opts",
    "backup_manifest",
    "standby.signal",
    "recovery.signal",
];

fn copy(from: &Path, to: &Path) -> Result<()> {
    let entries = fs::read_dir(from).map_err(|e| file_error(from, &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| file_error(from, &e))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if entry.file_name().to_str().is_some_and(|name| LEFT_OUT.contains(&name)) {
            continue;
        }
        let kind = entry.file_type().map_err(|e| file_error(&source, &e))?;
        if kind.is_dir() {
            fs::create_dir_all(&target).map_err(|e| file_error(&target, &e))?;
            copy(&source, &target)?;
        } else if kind.is_symlink()
            && (from.ends_with("pg_tblspc") || fs::metadata(&source).is_ok_and(|meta| meta.is_dir()))
        {
            // pg_wal may be a link; a tablespace always is, often to a place of another machine, and is seen by what it
            // leaves here.
            fs::create_dir_all(&target).map_err(|e| file_error(&target, &e))?;
        } else {
            fs::copy(&source, &target).map_err(|e| file_error(&target, &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read() {
        let text = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n\
                    BACKUP METHOD: streamed\nBACKUP FROM: primary\nLABEL: x\nSTART TIMELINE: 1\n";
        let label = Label::parse(text).unwrap();
        assert_eq!((label.start, label.timeline), (Lsn(0x2000028), 1));
        assert_eq!(label.segment.to_string(), "000000010000000000000002");
        assert_eq!(Label::parse("START WAL LOCATION: 0/2000028\n"), None);
        assert_eq!(Label::parse(""), None);
    }
}
