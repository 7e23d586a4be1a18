//! The few file operations that everything here is built on. Each leaves either the old or the new state behind a
//! crash; the one that decides races is [`put_if_absent`]. An object store has the same operations under other names
//! (a PUT with `If-None-Match`), so it gets its place here.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// An error of the operating system, with the path and what was tried.
pub(super) fn io_error(what: &str, path: &Path, e: io::Error) -> Error {
    use io::ErrorKind as K;
    let text = format!("cannot {what} {}: {e}", path.display());
    match e.kind() {
        K::StorageFull | K::QuotaExceeded => {
            Error::new(code::DISK_FULL, text).hint("free space on that disk and run again; what was committed is kept")
        }
        K::PermissionDenied | K::ReadOnlyFilesystem => {
            Error::new(code::PERMISSION, text).hint(format!("give the user that runs synctool the right to {what} it"))
        }
        _ => Error::new(code::FILE, text),
    }
    .caused_by(e)
}

/// The content of a file, or `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error("read", path, e)),
    }
}

/// A JSON file, or `None` if there is none.
pub(super) fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|e| {
        Error::new(
            code::FILE_MALFORMED,
            format!("{} is not what SyncTool wrote there", path.display()),
        )
        .caused_by(e)
    })
}

/// JSON as it is stored.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("plain data always serialises");
    bytes.push(b'\n');
    bytes
}

/// The names in a folder, sorted; none if there is no such folder. Names that are not UTF-8 cannot be tables.
pub(super) fn list(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(io_error("list", dir, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| io_error("list", dir, e))?;
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether something is at the path.
pub(super) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Makes a folder and those above it, each of them durably.
pub(super) fn create_dir(dir: &Path) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    create_dir(parent(dir))?;
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists || !dir.is_dir() => Err(io_error("create", dir, e)),
        _ => sync_dir(parent(dir)),
    }
}

/// Makes the names in a folder durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|e| io_error("sync", dir, e))
}

/// What [`put_if_absent`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The file is there now, with our content, durably.
    Done,
    /// Somebody was first.
    Taken,
    /// The folder is gone.
    NoFolder,
}

/// Creates a file with this content unless there is one: of several writers exactly one wins, and nobody ever sees a
/// part of the content.
pub(super) fn put_if_absent(path: &Path, bytes: &[u8]) -> Result<Put> {
    let temp = match write_temp(path, bytes) {
        Ok(temp) => temp,
        Err((_, e)) if e.kind() == io::ErrorKind::NotFound => return Ok(Put::NoFolder),
        Err((temp, e)) => return Err(io_error("write", &temp, e)),
    };
    let linked = fs::hard_link(&temp, path);
    remove(&temp)?;
    match linked {
        Ok(()) => {
            sync_dir(parent(path))?;
            Ok(Put::Done)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(Put::Taken),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Put::NoFolder),
        Err(e) => Err(io_error("create", path, e)),
    }
}

/// Gives a file this content, whatever it had.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let temp = write_temp(path, bytes).map_err(|(temp, e)| io_error("write", &temp, e))?;
    rename(&temp, path)
}

fn write_temp(path: &Path, bytes: &[u8]) -> Result<PathBuf, (PathBuf, io::Error)> {
    let temp = temp_beside(path);
    let written = File::create(&temp).and_then(|mut f| {
        f.write_all(bytes)?;
        f.sync_all()
    });
    match written {
        Ok(()) => Ok(temp),
        Err(e) => {
            let _ = fs::remove_file(&temp);
            Err((temp, e))
        }
    }
}

/// A name that nobody else uses, in the same folder and hidden from everyone who lists it.
pub(super) fn temp_beside(path: &Path) -> PathBuf {
    parent(path).join(format!(".synctool-{}.tmp", uuid::Uuid::new_v4().simple()))
}

/// Renames durably; a file that has the new name is replaced.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| io_error("rename to", to, e))?;
    sync_dir(parent(to))
}

/// Removes a file that may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_error("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a folder with everything in it. It loses its name in one step first, so whoever still works in it finds
/// nothing from then on, instead of writing into what is half removed.
pub(super) fn discard_dir(dir: &Path) -> Result<()> {
    let grave = temp_beside(dir);
    match fs::rename(dir, &grave) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("remove", dir, e)),
    }
    sync_dir(parent(dir))?;
    // A zombie that holds an open folder may add to it; the rest goes with the next sweep.
    let _ = fs::remove_dir_all(&grave);
    Ok(())
}

/// Removes what crashes have left in a folder of ours.
pub(super) fn sweep(dir: &Path) -> Result<()> {
    for name in list(dir)? {
        if name.starts_with(".synctool-") && name.ends_with(".tmp") {
            let path = dir.join(name);
            if path.is_dir() {
                let _ = fs::remove_dir_all(&path);
            } else {
                remove(&path)?;
            }
        }
    }
    Ok(())
}

/// Whether both names are the same file.
pub(super) fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_writer_wins_and_nobody_sees_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0001.json");
        let wins: Vec<Put> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..8)
                .map(|i| {
                    let path = &path;
                    s.spawn(move || put_if_absent(path, format!("{i}").repeat(1000).as_bytes()).unwrap())
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(wins.iter().filter(|w| **w == Put::Done).count(), 1);
        let content = read(&path).unwrap().unwrap();
        assert_eq!(content.len(), 1000);
        assert!(content.iter().all(|b| *b == content[0]));
        assert_eq!(list(dir.path()).unwrap(), ["0001.json"], "a temporary file is left");
    }

    #[test]
    fn a_discarded_folder_takes_no_more_writes() {
        let dir = tempfile::tempdir().unwrap();
        let load = dir.path().join("load");
        create_dir(&load).unwrap();
        discard_dir(&load).unwrap();
        assert_eq!(put_if_absent(&load.join("x"), b"1").unwrap(), Put::NoFolder);
        discard_dir(&load).unwrap();
    }

    #[test]
    fn a_full_disk_is_named() {
        let full = Path::new("/dev/full");
        let e = File::create(full).unwrap().write_all(b"x").unwrap_err();
        assert_eq!(io_error("write", full, e).code(), code::DISK_FULL);
    }
}
