//! The private area of a pipeline beside its scratch server: for which batch the gate was opened last, and what the rows
//! it touches were before. It is on the disk before the gate opens, so that a batch that was interrupted is handed out
//! again as it was.

use super::super::archive::file_error;
use super::super::replay::Stored;
use super::super::tables::Name;
use super::position::text;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;
use synctool_pgwal::{Lsn, RelFile};

/// The values of a row, or of its key, as canonical texts.
pub(super) type Texts = Vec<Option<String>>;

/// What the gate was opened for last.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    /// Whose scratch server it is: the log's name.
    pub(super) owner: String,
    /// The scratch server stood here, and
    #[serde(with = "text")]
    pub(super) from: Lsn,
    /// stands here, or is on its way.
    #[serde(with = "text")]
    pub(super) to: Lsn,
    /// The timeline at `to`, and from where the log must be read to go on from there.
    pub(super) timeline: u32,
    #[serde(with = "text")]
    pub(super) restart: Lsn,
    /// What the log of the batch holds ([`Batch::log`](super::super::Batch::log)); None of one that an older version
    /// kept, or where nothing was read.
    #[serde(default)]
    pub(super) log: Option<u64>,
    /// Every followed table.
    pub(super) tables: Vec<KeptTable>,
}

/// A followed table before the batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct KeptTable {
    /// As the plan calls it.
    pub(super) table: TableId,
    /// How it was made.
    pub(super) shape: String,
    /// The tables that held its rows (itself, or its partitions), and their files.
    pub(super) parts: Vec<(Name, [u32; 3])>,
    /// It will be read whole, whatever was touched.
    pub(super) whole: bool,
    /// Whether rows may change hands of unique values.
    pub(super) fragile: bool,
    /// Where its rows begin, and how many there are.
    pub(super) at: u64,
    pub(super) rows: u64,
}

impl KeptTable {
    /// The file of a part, if it was there.
    pub(super) fn file(&self, part: &Name) -> Option<RelFile> {
        let found = self.parts.iter().find(|(name, _)| name == part)?;
        let [tablespace, database, file] = found.1;
        Some(RelFile {
            tablespace,
            database,
            file,
        })
    }
}

/// A file's number for [`KeptTable::parts`].
pub(super) fn numbers(file: RelFile) -> [u32; 3] {
    [file.tablespace, file.database, file.file]
}

fn plan(directory: &Path) -> PathBuf {
    directory.join("batch.json")
}

fn rows(directory: &Path) -> PathBuf {
    directory.join("rows")
}

impl Kept {
    /// One without rows: the scratch server was brought here by no batch.
    pub(super) fn standing(owner: &str, stored: Stored) -> Kept {
        Kept {
            owner: owner.into(),
            from: stored.at,
            to: stored.at,
            timeline: stored.timeline,
            restart: stored.restart,
            log: None,
            tables: Vec::new(),
        }
    }

    /// Where the scratch server stands once the batch is replayed.
    pub(super) fn stored(&self) -> Stored {
        Stored {
            timeline: self.timeline,
            at: self.to,
            restart: self.restart,
            furthest: self.to,
        }
    }

    pub(super) fn read(directory: &Path) -> Result<Option<Kept>> {
        let path = plan(directory);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(file_error(&path, &e)),
        };
        let kept = serde_json::from_slice(&text);
        kept.map(Some).map_err(|e| {
            Error::new(code::FILE_MALFORMED, format!("{} cannot be read", path.display()))
                .caused_by(e)
                .hint("remove the scratch directory: it is made again from the base backup")
        })
    }

    /// Brings it to the disk; from now on it holds.
    pub(super) fn store(&self, directory: &Path) -> Result<()> {
        let (path, draft) = (plan(directory), directory.join("batch.draft"));
        let failed = |e: io::Error| file_error(&path, &e);
        let text = serde_json::to_vec(self).map_err(|e| Error::bug("a batch that is no JSON").caused_by(e))?;
        fs::create_dir_all(directory).map_err(failed)?;
        let mut file = File::create(&draft).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        fs::rename(&draft, &path).map_err(failed)?;
        File::open(directory).and_then(|d| d.sync_all()).map_err(failed)
    }

    /// Forgets everything.
    pub(super) fn forget(directory: &Path) -> Result<()> {
        match fs::remove_dir_all(directory) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(file_error(directory, &e)),
            _ => Ok(()),
        }
    }
}

/// Writes the rows of the next batch.
pub(super) struct Writer {
    file: BufWriter<File>,
    path: PathBuf,
    at: u64,
}

impl Writer {
    /// The batch before is over: it is forgotten first.
    pub(super) fn create(directory: &Path) -> Result<Writer> {
        Kept::forget(directory)?;
        let path = rows(directory);
        let failed = |e: io::Error| file_error(&path, &e);
        fs::create_dir_all(directory).map_err(failed)?;
        let file = BufWriter::new(File::create(&path).map_err(failed)?);
        Ok(Writer { file, path, at: 0 })
    }

    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn put(&mut self, row: &Texts) -> Result<()> {
        let mut bytes = Vec::new();
        for value in row {
            let length = value.as_ref().map_or(u32::MAX, |v| v.len() as u32);
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes.extend_from_slice(value.as_deref().unwrap_or_default().as_bytes());
        }
        self.at += bytes.len() as u64;
        let done = self.file.write_all(&bytes);
        done.map_err(|e| file_error(&self.path, &e))
    }

    pub(super) fn finish(self) -> Result<()> {
        let failed = |e: io::Error| file_error(&self.path, &e);
        let file = self.file.into_inner().map_err(|e| failed(e.into_error()))?;
        file.sync_all().map_err(failed)
    }
}

/// Reads rows from a place on: so many, each of so many values, but no more bytes than about this. Says where the next begin.
pub(super) fn read_rows(directory: &Path, at: u64, most: u64, width: usize, bytes: usize) -> Result<(Vec<Texts>, u64)> {
    let path = rows(directory);
    let failed = |e: io::Error| file_error(&path, &e);
    let mut file = File::open(&path).map_err(failed)?;
    file.seek(SeekFrom::Start(at)).map_err(failed)?;
    let mut file = BufReader::new(file);
    let (mut all, mut read) = (Vec::new(), 0);
    while (all.len() as u64) < most && read < bytes {
        let mut row = Vec::with_capacity(width);
        for _ in 0..width {
            let mut length = [0; 4];
            file.read_exact(&mut length).map_err(failed)?;
            read += 4;
            let length = u32::from_le_bytes(length);
            if length == u32::MAX {
                row.push(None);
                continue;
            }
            let mut value = vec![0; length as usize];
            file.read_exact(&mut value).map_err(failed)?;
            read += value.len();
            let value = String::from_utf8(value);
            row.push(Some(
                value.map_err(|e| Error::bug("a kept row that is no text").caused_by(e))?,
            ));
        }
        all.push(row);
    }
    Ok((all, at + read as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_as_they_went() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("kept");
        let rows: Vec<Texts> = (0..9)
            .map(|i| vec![Some("x".repeat(i)), (i % 2 == 0).then(|| i.to_string())])
            .collect();
        let mut writer = Writer::create(&directory).unwrap();
        rows[..4].iter().for_each(|row| writer.put(row).unwrap());
        let middle = writer.at();
        rows[4..].iter().for_each(|row| writer.put(row).unwrap());
        writer.finish().unwrap();
        let (first, next) = read_rows(&directory, 0, 4, 2, 1 << 20).unwrap();
        assert_eq!((&first[..], next), (&rows[..4], middle));
        let (mut found, mut at) = (Vec::new(), middle);
        while found.len() < 5 {
            let (some, next) = read_rows(&directory, at, 5 - found.len() as u64, 2, 8).unwrap();
            assert!(!some.is_empty());
            found.extend(some);
            at = next;
        }
        assert_eq!(found, rows[4..]);
    }

    #[test]
    fn a_batch_comes_back_and_can_be_forgotten() {
        let place = tempfile::tempdir().unwrap();
        let directory = place.path().join("kept");
        assert!(Kept::read(&directory).unwrap().is_none());
        let stored = Stored {
            timeline: 2,
            at: Lsn(90),
            restart: Lsn(70),
            furthest: Lsn(90),
        };
        Kept::standing("me", stored).store(&directory).unwrap();
        let kept = Kept::read(&directory).unwrap().unwrap();
        assert_eq!((kept.owner.as_str(), kept.from, kept.stored()), ("me", Lsn(90), stored));
        Kept::forget(&directory).unwrap();
        assert!(Kept::read(&directory).unwrap().is_none());
    }
}
