//! Which files make up a table, and what we know about them.

use super::store::{self, io_error};
use super::{CsvOptions, Format, ObjectConfig};
use serde::{Deserialize, Serialize};
use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Applied;
use synctool_core::schema::{TableId, TableSchema};

/// The folder beside the data that holds everything of ours but the data.
pub(super) const CONTROL: &str = "_synctool";

const FORMAT_VERSION: u32 = 1;

/// How the names of our own tables (key maps, touched groups) begin.
const OWN: &str = "_synctool_";

/// How often a manifest is looked for that somebody else replaces at the same moment.
const LOOKS: usize = 1000;

/// A datastore's path, looked at.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) config: ObjectConfig,
    /// The one table, where the path is a file.
    pub(super) single: Option<String>,
}

/// How a table lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Shape {
    /// One file.
    File,
    /// A folder of part files.
    Folder,
}

/// One data file of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct DataFile {
    /// Its name inside the table's folder.
    pub(super) name: String,
    /// Its rows, if somebody counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rows: Option<u64>,
    /// Its size.
    pub(super) bytes: u64,
    /// Columns that the table got after this file was written: NULL in all of its rows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) lacks: Vec<String>,
}

/// A load that a table holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Load {
    pub(super) pipeline: String,
    pub(super) generation: i64,
    pub(super) applied: Applied,
    /// Whether it came into a table that was there.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) into: bool,
}

/// What we know about a table that we wrote.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Manifest {
    pub(super) format_version: u32,
    pub(super) format: String,
    /// How the CSV files were written; later settings do not change how these are read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) csv: Option<CsvOptions>,
    pub(super) schema: TableSchema,
    pub(super) rows: u64,
    pub(super) files: Vec<DataFile>,
    pub(super) loads: Vec<Load>,
    /// Files that this manifest replaced; they may still lie there if removing them was cut short.
    #[serde(default)]
    pub(super) obsolete: Vec<String>,
    /// The table is about to be created: what lies in the folder is not one yet.
    #[serde(default)]
    pub(super) unpublished: bool,
}

impl Manifest {
    pub(super) fn new(format: &Format, schema: TableSchema, files: Vec<DataFile>, loads: Vec<Load>) -> Self {
        Manifest {
            format_version: FORMAT_VERSION,
            format: format.name().into(),
            csv: csv_of(format),
            schema,
            rows: files.iter().filter_map(|f| f.rows).sum(),
            files,
            loads,
            obsolete: Vec::new(),
            unpublished: false,
        }
    }

    /// What a load of ours did, if the table holds it.
    pub(super) fn load(&self, pipeline: &str, generation: i64) -> Option<Applied> {
        self.loads
            .iter()
            .find(|l| l.pipeline == pipeline && l.generation == generation)
            .map(|l| l.applied)
    }
}

fn csv_of(format: &Format) -> Option<CsvOptions> {
    match format {
        Format::Csv(o) => Some(o.clone()),
        Format::Parquet(_) => None,
    }
}

/// A table's files, found.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) shape: Shape,
    /// The folder that file names are relative to.
    pub(super) root: PathBuf,
    pub(super) files: Vec<DataFile>,
    /// What we know, if we wrote it: the manifest of a folder, or what stands beside a single file.
    pub(super) known: Option<Manifest>,
    /// How to read the files.
    pub(super) format: Format,
    /// As long as it is held, files that the manifest names can be read ([`kept`]), also when a newer one is there.
    pub(super) _lease: Option<Arc<File>>,
}

impl Located {
    pub(super) fn path(&self, file: &str) -> PathBuf {
        self.root.join(file)
    }

    /// The same for whoever replaces the table: its own reading keeps no file.
    pub(super) fn let_go(self) -> Self {
        Located { _lease: None, ..self }
    }

    /// Where a file lies that a newer manifest does not name any more.
    pub(super) fn kept_path(&self, file: &str) -> PathBuf {
        self.root.join(kept(file))
    }

    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }
}

impl Place {
    pub(super) fn new(config: ObjectConfig) -> Self {
        let name = config.path.file_name().and_then(|n| n.to_str());
        let single = name.and_then(|name| {
            let table = stem(&config.format, name);
            match &table {
                _ if config.path.is_dir() => None,
                // An existing file is a table whatever its name ends with.
                None if config.path.is_file() => Some(name.to_string()),
                table => table.map(str::to_string),
            }
        });
        Place { config, single }
    }

    /// The folder that holds the tables.
    pub(super) fn dir(&self) -> &Path {
        match self.single {
            Some(_) => store::parent(&self.config.path),
            None => &self.config.path,
        }
    }

    fn extension(&self) -> &'static str {
        self.config.format.name()
    }

    /// The name of a table that may be written here.
    pub(super) fn writable_name<'a>(&self, table: &'a TableId) -> Result<&'a str> {
        let name = self.name(table)?;
        if is_own(name) {
            return Ok(name);
        }
        let refuse = |why: &str| {
            Err(Error::new(
                code::IDENTIFIER,
                format!("table {name:?} cannot be the name of a file: {why}"),
            )
            .hint("give the destination table another name"))
        };
        if let Some(single) = &self.single {
            if single != name {
                return Err(Error::new(
                    code::TABLE_MISSING,
                    format!(
                        "{} is one file, which is table {single}, not {name}",
                        self.config.path.display()
                    ),
                )
                .hint(format!("name the destination table {single}, or give a folder as path")));
            }
            let file = self.config.path.to_string_lossy();
            if file.ends_with(".gz") || file.ends_with(".zst") {
                return Err(Error::new(code::UNSUPPORTED, "compressed CSV is read, but not written")
                    .hint("leave .gz or .zst out of the path"));
            }
            return Ok(name);
        }
        if name.is_empty() || name.len() > 200 {
            return refuse("it must have 1 to 200 bytes");
        }
        if name.contains(['/', '\0']) || name.starts_with(['.', '_']) {
            return refuse("it must not begin with . or _, nor hold / or NUL");
        }
        Ok(name)
    }

    fn name<'a>(&self, table: &'a TableId) -> Result<&'a str> {
        match &table.schema {
            None => Ok(&table.name),
            Some(schema) => Err(Error::new(
                code::TABLE_MISSING,
                format!("a folder of files has no schemas, so there is no {schema} for table {table}"),
            )
            .hint(format!("name the table {} alone", table.name))),
        }
    }

    /// Where a table's files lie, or would lie: its folder, or its file.
    pub(super) fn folder_of(&self, name: &str) -> PathBuf {
        match is_own(name) {
            true => self.dir().join(CONTROL).join("own").join(name),
            false => self.dir().join(name),
        }
    }

    /// The table's one file, if that is how it lies or how the datastore is configured.
    pub(super) fn file_of(&self, name: &str) -> Result<Option<PathBuf>> {
        if is_own(name) {
            return Ok(None);
        }
        if self.single.is_some() {
            return Ok(Some(self.config.path.clone()));
        }
        let found: Vec<String> = store::list(self.dir())?
            .into_iter()
            .filter(|f| stem(&self.config.format, f) == Some(name) && self.dir().join(f).is_file())
            .collect();
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(self.dir().join(one))),
            several => Err(Error::new(
                code::CONFIG_INVALID,
                format!("table {name} is several files: {}", several.join(", ")),
            )
            .at("path", self.dir().display().to_string())
            .hint("remove all but one, or put them into a folder of the table's name")),
        }
    }

    /// Finds a table's files; `None` if there is no such table.
    pub(super) fn locate(&self, table: &TableId) -> Result<Option<Located>> {
        let name = self.name(table)?;
        let other = self.single.as_deref().is_some_and(|s| s != name);
        if other && !is_own(name) || name.contains(['/', '\0']) || name.starts_with('.') {
            return Ok(None);
        }
        let file = self.file_of(name)?.filter(|f| f.is_file());
        let folder = match self.single {
            Some(_) if !is_own(name) => None,
            _ => self.locate_folder(&self.folder_of(name))?,
        };
        match (file, folder) {
            (Some(file), None) => self.locate_file(&file).map(Some),
            (None, folder) => Ok(folder),
            (Some(file), Some(_)) => Err(Error::new(
                code::CONFIG_INVALID,
                format!("table {name} is a folder and also the file {}", file.display()),
            )
            .hint("remove one of them")),
        }
    }

    fn locate_file(&self, file: &Path) -> Result<Located> {
        let bytes = file.metadata().map_err(|e| io_error("read", file, e))?.len();
        let name = file.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let known: Option<Manifest> = match store::exists(&self.sidecars()) {
            true => store::read_json(&self.sidecar(name, file)?)?,
            false => None,
        };
        Ok(Located {
            shape: Shape::File,
            root: store::parent(file).to_path_buf(),
            files: vec![DataFile {
                name: name.to_string(),
                rows: known.as_ref().map(|k| k.rows),
                bytes,
                lacks: known
                    .as_ref()
                    .and_then(|k| k.files.first())
                    .map_or(Vec::new(), |f| f.lacks.clone()),
            }],
            format: self.format_of(known.as_ref()),
            known,
            _lease: None,
        })
    }

    fn locate_folder(&self, folder: &Path) -> Result<Option<Located>> {
        let (names, known, lease) = leased_manifest(folder)?;
        if let Some(k) = &known {
            if k.format_version > FORMAT_VERSION {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!("{} was written by a newer SyncTool", folder.display()),
                )
                .hint("use that version or a later one"));
            }
            if k.format != self.config.format.name() {
                return Err(Error::new(
                    code::CONFIG_INVALID,
                    format!(
                        "{} holds {} files, not {}",
                        folder.display(),
                        k.format,
                        self.config.format.name()
                    ),
                )
                .hint(format!("set the datastore's format to {}", k.format)));
            }
        }
        let files = match &known {
            Some(k) => k.files.clone(),
            None => self.foreign_files(folder, &names)?,
        };
        if known.as_ref().map_or(files.is_empty(), |k| k.unpublished) {
            return Ok(None);
        }
        Ok(Some(Located {
            shape: Shape::Folder,
            root: folder.to_path_buf(),
            files,
            format: self.format_of(known.as_ref()),
            known,
            _lease: lease,
        }))
    }

    /// The data files of a folder without a manifest of ours: everything of the format that is not hidden.
    fn foreign_files(&self, folder: &Path, names: &[String]) -> Result<Vec<DataFile>> {
        let mut files = Vec::new();
        for name in names.iter().filter(|n| stem(&self.config.format, n).is_some()) {
            let path = folder.join(name);
            let meta = path.metadata().map_err(|e| io_error("read", &path, e))?;
            if meta.is_file() {
                files.push(DataFile {
                    name: name.clone(),
                    rows: None,
                    bytes: meta.len(),
                    lacks: Vec::new(),
                });
            }
        }
        Ok(files)
    }

    fn format_of(&self, known: Option<&Manifest>) -> Format {
        match known.and_then(|k| k.csv.clone()) {
            Some(csv) => Format::Csv(csv),
            None => self.config.format.clone(),
        }
    }

    /// The names of all tables, with what they are.
    pub(super) fn tables(&self) -> Result<Vec<TableId>> {
        if let Some(single) = &self.single {
            return Ok(match self.config.path.is_file() {
                true => vec![TableId::bare(single)],
                false => Vec::new(),
            });
        }
        if !self.dir().is_dir() {
            return Err(
                Error::new(code::FILE, format!("{} is not a folder", self.dir().display()))
                    .hint("create it, or correct the datastore's path"),
            );
        }
        let mut tables = Vec::new();
        for name in store::list(self.dir())? {
            let path = self.dir().join(&name);
            match stem(&self.config.format, &name) {
                Some(table) if path.is_file() => tables.push(TableId::bare(table)),
                _ if path.is_dir() && !hidden(&name) && self.locate_folder(&path)?.is_some() => {
                    tables.push(TableId::bare(name));
                }
                _ => {}
            }
        }
        tables.sort();
        tables.dedup();
        Ok(tables)
    }

    /// The error for a table that is not there.
    pub(super) fn missing(&self, table: &TableId) -> Error {
        let e = Error::new(code::TABLE_MISSING, format!("table {table} does not exist"))
            .at("path", self.config.path.display().to_string());
        match self.tables() {
            Err(why) => e.caused_by(why).hint("correct the datastore's path"),
            Ok(tables) if tables.is_empty() => e.hint(format!("there is no {} file there at all", self.extension())),
            Ok(mut tables) => {
                let like = table.name.to_lowercase();
                tables
                    .sort_by_key(|t| !(t.name.to_lowercase().contains(&like) || like.contains(&t.name.to_lowercase())));
                let names: Vec<String> = tables.iter().take(10).map(ToString::to_string).collect();
                e.hint(format!("there are: {}", names.join(", ")))
            }
        }
    }

    /// Where we keep what we know about a single file of this name and content. Somebody else's file in its place is
    /// never read by our schema.
    pub(super) fn sidecar(&self, name: &str, content: &Path) -> Result<PathBuf> {
        Ok(self.sidecars().join(format!("{name}.{}.json", fingerprint(content)?)))
    }

    pub(super) fn sidecars(&self) -> PathBuf {
        self.dir().join(CONTROL).join("schema")
    }
}

/// Whether a table of this name is our own; it lies apart from the user's.
pub(super) fn is_own(name: &str) -> bool {
    name.starts_with(OWN)
}

/// The name of a file that the newest manifest does not name any more, while somebody still reads it: one that nobody
/// takes for a part of the table.
pub(super) fn kept(file: &str) -> String {
    format!("{KEPT}{file}")
}

/// The name that a kept file had.
pub(super) fn unkept(file: &str) -> Option<&str> {
    file.strip_prefix(KEPT)
}

const KEPT: &str = ".synctool-kept-";

fn hidden(name: &str) -> bool {
    name.starts_with(['.', '_'])
}

/// The table's name in a data file's name; `None` for other files.
fn stem<'a>(format: &Format, file: &'a str) -> Option<&'a str> {
    if hidden(file) {
        return None;
    }
    let stem = match format {
        Format::Parquet(_) => file.strip_suffix(".parquet"),
        Format::Csv(_) => {
            let plain = file
                .strip_suffix(".gz")
                .or_else(|| file.strip_suffix(".zst"))
                .unwrap_or(file);
            plain.strip_suffix(".csv").or_else(|| plain.strip_suffix(".tsv"))
        }
    };
    stem.filter(|s| !s.is_empty())
}

/// The names in a folder, its newest manifest, and the lock on that.
type Leased = (Vec<String>, Option<Manifest>, Option<Arc<File>>);

/// The names in a folder and its newest manifest, with a lock that says that it is in use: whoever replaces it leaves the
/// files that it names until the lock is gone. The lock goes with the process that holds it.
fn leased_manifest(folder: &Path) -> Result<Leased> {
    for _ in 0..LOOKS {
        let names = store::list(folder)?;
        let Some(version) = names.iter().filter_map(|n| manifest_version(n)).max() else {
            return Ok((names, None, None));
        };
        let path = folder.join(manifest_name(version));
        let lease = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            Err(e) => return Err(io_error("read", &path, e)),
        };
        let held = match lease.try_lock_shared() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => continue,
            // A file system without locks: then readers are on their own, as they are with other programs.
            Err(TryLockError::Error(_)) => false,
        };
        // It may have been removed before it was locked.
        if let Some(known) = store::read_json(&path)? {
            return Ok((names, Some(known), held.then(|| Arc::new(lease))));
        }
    }
    Err(Error::new(
        code::CONFLICT,
        format!("the manifest of {} is replaced again and again", folder.display()),
    )
    .hint("run again"))
}

/// A folder's newest manifest and its number, 0 where there is none.
pub(super) fn newest_manifest(folder: &Path, names: &[String]) -> Result<(u64, Option<Manifest>)> {
    let version = names.iter().filter_map(|n| manifest_version(n)).max().unwrap_or(0);
    match version {
        0 => Ok((0, None)),
        v => Ok((v, store::read_json(&folder.join(manifest_name(v)))?)),
    }
}

pub(super) fn manifest_name(version: u64) -> String {
    format!("_manifest-{version:08}.json")
}

pub(super) fn manifest_version(name: &str) -> Option<u64> {
    name.strip_prefix("_manifest-")?.strip_suffix(".json")?.parse().ok()
}

/// Size and a hash of a file's ends: enough to notice another file under the same name.
fn fingerprint(path: &Path) -> Result<String> {
    const END: u64 = 64 << 10;
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut bytes = Vec::new();
        file.by_ref().take(END).read_to_end(&mut bytes)?;
        file.seek(SeekFrom::Start(size.saturating_sub(END)))?;
        file.take(END).read_to_end(&mut bytes)?;
        Ok(format!("{size}-{:016x}", xxhash_rust::xxh3::xxh3_64(&bytes)))
    };
    read().map_err(|e| io_error("read", path, e))
}
