//! How a commit changes tables in place: all of them together with the positions, or none.
//!
//! Whoever changes a table's files holds the table's lock (`_synctool/tables/<name>.lock`, an advisory lock that goes with
//! its process). A commit that changes tables writes the new files apart, then a note per table that says what is to be
//! put in place (`<name>.pending.json`), and then its record in the load's log. That record is the commit: it is refused
//! to a fenced writer, as any other, and whether it stands decides all notes. After it the new files move in and the next
//! manifest is written, or the single file is renamed.
//!
//! Whoever takes the lock first looks for a note that a crash has left: with its record it is carried out, without it
//! is thrown away. That is a redo log of one entry per table.

use super::control::{Control, fenced};
use super::store::{self, Put, io_error};
use super::table::{
    CONTROL, DataFile, Manifest, Place, Shape, kept, manifest_name, manifest_version, newest_manifest, unkept,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::plan::{Plan, Publish, short_hash};

/// A merge of a large table takes its time; somebody who stands still longer than this is named.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// The locks of some tables.
pub(super) struct Locked {
    _files: Vec<File>,
}

/// What is to be put in a table's place.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Replacing {
    /// The table.
    pub(super) name: String,
    pub(super) shape: Shape,
    /// What the table is then; for a single file, what stands beside it.
    pub(super) manifest: Manifest,
    /// The number of the manifest, for a folder.
    pub(super) version: u64,
    /// The new files, in the part folder of the load.
    pub(super) fresh: Vec<String>,
}

/// What stands in `<name>.pending.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    pipeline: String,
    generation: i64,
    /// The commit, and the first record of the log that may be it.
    id: String,
    from: u64,
    replacing: Replacing,
}

fn file_of(place: &Place, name: &str, end: &str) -> PathBuf {
    place.dir().join(CONTROL).join("tables").join(format!("{name}.{end}"))
}

fn note_of(place: &Place, name: &str) -> PathBuf {
    file_of(place, name, "pending.json")
}

/// The names of the tables that a plan changes directly.
pub(super) fn direct(plan: &Plan) -> impl Iterator<Item = &str> {
    plan.tables
        .iter()
        .filter(|t| t.publish == Publish::Direct)
        .map(|t| t.destination.name.as_str())
}

/// Locks tables and settles what a crash has left of them.
pub(super) fn lock<'a>(place: &Place, names: impl IntoIterator<Item = &'a str>) -> Result<Locked> {
    // Always in one order, so that nobody waits in a circle.
    let names: BTreeSet<&str> = names.into_iter().collect();
    let mut files = Vec::new();
    for name in &names {
        let path = file_of(place, name, "lock");
        store::create_dir(store::parent(&path))?;
        files.push(lock_file(&path).map_err(|e| e.at("table", *name))?);
    }
    for name in names {
        settle(place, name).map_err(|e| e.at("table", name))?;
    }
    Ok(Locked { _files: files })
}

/// Settles what a crash has left of tables, where it left anything.
pub(super) fn left<'a>(place: &Place, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let left: Vec<&str> = names
        .into_iter()
        .filter(|name| store::exists(&note_of(place, name)))
        .collect();
    lock(place, left).map(drop)
}

#[allow(clippy::disallowed_methods, reason = "runs on a thread for blocking work")]
fn lock_file(path: &Path) -> Result<File> {
    let failed = |e| io_error("lock", path, e);
    let mut file = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let began = Instant::now();
    let mut wait = Duration::from_millis(1);
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(e)) => return Err(failed(e)),
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => {
                std::thread::sleep(wait);
                wait = (wait * 2).min(Duration::from_millis(100));
            }
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                return Err(Error::new(
                    code::SERVER_BUSY,
                    format!("process {} is changing the table and does not end", holder.trim()),
                )
                .hint("wait for it, or end it: what it committed is kept"));
            }
        }
    }
    // For people who look who holds it.
    let told = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    told.map_err(failed)?;
    Ok(file)
}

/// Carries out a change that was committed and cut short, or throws away one that was not committed.
fn settle(place: &Place, name: &str) -> Result<()> {
    let path = note_of(place, name);
    let Some(note) = store::read_json::<Note>(&path)? else {
        return Ok(());
    };
    let control = Control::new(place.dir(), &note.pipeline);
    if control.log_of(note.generation).holds(&note.id, note.from)? {
        put_in_place(place, &control, note.generation, &note.replacing)?;
    } else {
        let dir = control.load_dir(note.generation).join("part");
        for file in &note.replacing.fresh {
            store::remove(&dir.join(file))?;
        }
    }
    store::remove(&path)
}

/// A commit that changes tables; their locks are held.
pub(super) struct Change<'a> {
    pub(super) place: &'a Place,
    pub(super) control: &'a Control,
    pub(super) generation: i64,
    pub(super) id: String,
}

impl Change<'_> {
    /// Says what is to be put in place once the record of this commit stands.
    pub(super) fn announce(&self, from: u64, replacing: Replacing) -> Result<()> {
        let path = note_of(self.place, &replacing.name);
        let note = Note {
            pipeline: self.control.pipeline.clone(),
            generation: self.generation,
            id: self.id.clone(),
            from,
            replacing,
        };
        store::replace(&path, &store::json(&note))
    }

    /// Carries out what was announced of a table: the record stands.
    pub(super) fn carry_out(&self, name: &str) -> Result<()> {
        settle(self.place, name)
    }
}

/// Moves new files in and makes them the table. Repeatable.
pub(super) fn put_in_place(place: &Place, control: &Control, generation: i64, replacing: &Replacing) -> Result<()> {
    let dir = control.load_dir(generation).join("part");
    match replacing.shape {
        Shape::File => {
            let target = place
                .file_of(&replacing.name)?
                .ok_or_else(|| fenced("the file that was to be changed is gone".into()))?;
            let file = match replacing.fresh.as_slice() {
                [] => return Ok(()),
                [file] => file,
                _ => return Err(Error::bug("a single file was changed into several")),
            };
            let from = dir.join(file);
            if store::exists(&from) {
                put_file(place, &from, &target, &replacing.manifest)?;
            }
            Ok(())
        }
        Shape::Folder => {
            let folder = place.folder_of(&replacing.name);
            for name in &replacing.fresh {
                let file = replacing.manifest.files.iter().find(|f| f.name == *name);
                let file = file.ok_or_else(|| Error::bug("a new file that is not in its manifest"))?;
                move_in(&dir.join(name), &folder, file)?;
            }
            store::sync_dir(&folder)?;
            failpoint("settle.moved")?;
            let path = folder.join(manifest_name(replacing.version));
            let bytes = store::json(&replacing.manifest);
            let ours = match store::put_if_absent(&path, &bytes)? {
                Put::Done => true,
                Put::Taken => store::read(&path)?.as_deref() == Some(bytes.as_slice()),
                Put::NoFolder => false,
            };
            if !ours {
                return Err(Error::new(
                    code::CONFLICT,
                    "somebody changed the table at the same time without taking its lock",
                )
                .hint(
                    "does the file system lock files? Start over with `synctool state reset`, then run a full load",
                ));
            }
            failpoint("settle.manifest")?;
            tidy(&folder, &control.pipeline, generation)
        }
    }
}

/// Moves a file of a load into the table's folder, or finds that it was moved.
pub(super) fn move_in(from: &Path, folder: &Path, file: &DataFile) -> Result<()> {
    let target = folder.join(&file.name);
    match std::fs::rename(from, &target) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            if target.metadata().map(|m| m.len()).ok() == Some(file.bytes) {
                return Ok(());
            }
            Err(fenced("the files of this load are gone: a newer run took over".into()))
        }
        Err(e) => Err(io_error("write", &target, e)),
    }
}

/// Puts a file in the place of a table that is one file. What we know about it stands beside it before.
pub(super) fn put_file(place: &Place, from: &Path, target: &Path, known: &Manifest) -> Result<()> {
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let sidecar = place.sidecar(&name, from)?;
    store::create_dir(&place.sidecars())?;
    store::replace(&sidecar, &store::json(known))?;
    failpoint("settle.beside")?;
    store::rename(from, target)?;
    failpoint("settle.renamed")?;
    forget_others(place, &name, &sidecar)
}

/// Removes what was known about earlier contents of a single file.
pub(super) fn forget_others(place: &Place, name: &str, sidecar: &Path) -> Result<()> {
    for other in store::list(&place.sidecars())? {
        let path = place.sidecars().join(&other);
        if path != *sidecar && other.starts_with(&format!("{name}.")) {
            store::remove(&path)?;
        }
    }
    Ok(())
}

/// How the names of a pipeline's files begin in a table's folder.
pub(super) fn prefix(pipeline: &str) -> String {
    format!("part-{}-", short_hash(pipeline))
}

/// What a manifest replaces: files that the one before named and it does not, and those that were left before and still
/// lie there.
pub(super) fn obsolete(folder: &Path, before: &Manifest, files: &[DataFile]) -> Result<Vec<String>> {
    let there: HashSet<String> = store::list(folder)?.into_iter().collect();
    let mut names: Vec<String> = before.obsolete.clone();
    names.retain(|name| there.contains(name));
    names.extend(before.files.iter().map(|f| f.name.clone()));
    names.retain(|name| !files.iter().any(|f| f.name == *name));
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Removes what the newest manifest does not name: the files it replaced, older manifests, and files of loads of this
/// pipeline up to this generation that never got theirs. What somebody still reads by an older manifest is only put out
/// of other programs' sight. The table's lock is held.
pub(super) fn tidy(folder: &Path, pipeline: &str, generation: i64) -> Result<()> {
    store::sweep(folder)?;
    let names = store::list(folder)?;
    let (version, Some(manifest)) = newest_manifest(folder, &names)? else {
        return Ok(());
    };
    let mut read: HashSet<String> = HashSet::new();
    for older in names
        .iter()
        .filter(|n| manifest_version(n).is_some_and(|v| v < version))
    {
        let path = folder.join(older);
        let Ok(file) = File::open(&path) else { continue };
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            let old: Option<Manifest> = store::read_json(&path)?;
            read.extend(old.into_iter().flat_map(|m| m.files).map(|f| f.name));
            continue;
        }
        store::remove(&path)?;
    }
    let own = prefix(pipeline);
    for name in &names {
        let base = unkept(name).unwrap_or(name);
        let stale_part = || {
            let number = base
                .strip_prefix(&own)
                .and_then(|r| r.split('-').next()?.parse::<i64>().ok());
            number.is_some_and(|g| g <= generation)
        };
        let named = manifest.files.iter().any(|f| f.name == base);
        let stale = !named && (base != name || manifest.obsolete.iter().any(|o| o == base) || stale_part());
        match (stale, read.contains(base)) {
            (false, _) => {}
            (true, false) => store::remove(&folder.join(name))?,
            (true, true) if base == name => store::rename(&folder.join(name), &folder.join(kept(name)))?,
            (true, true) => {}
        }
    }
    store::sync_dir(folder)
}
