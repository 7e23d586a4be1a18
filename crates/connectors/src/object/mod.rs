//! Tables that are files: Parquet and CSV in a local folder, or one file.
//!
//! A datastore's path is a folder whose entries are tables (`items.parquet`, or a folder `items` of part files), or one
//! file, which is one table. A table that SyncTool wrote into a folder has a manifest: its newest one says which
//! files belong to the table, so a half published load is never read.
//!
//! Guarantee of the sink: effectively once. Part files are written beside the data under names that only their
//! writer uses; a commit is one record in a log that exactly one writer can append (`control.rs`), and only files
//! that a record names are ever published.
//!
//! Changes by key are worked into a table by writing the files anew that hold touched rows (`merge.rs`); they and the
//! position take place with one record (`settle.rs`). A reader that began before keeps the files it began with.

mod control;
mod convert;
mod csv;
mod destination;
mod direct;
mod merge;
mod parquet;
mod pending;
mod prune;
mod publish;
mod record;
mod rewrite;
mod settle;
mod sink;
mod source;
mod store;
mod table;
mod types;

use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::sink::Destination;
use synctool_core::source::Source;
use table::Place;

/// Where the files are and what they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectConfig {
    /// A folder of tables, or one file.
    pub path: PathBuf,
    /// What the files are.
    pub format: Format,
}

/// The format of a datastore's files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Comma separated values, RFC 4180.
    Csv(CsvOptions),
    /// Apache Parquet.
    Parquet(ParquetOptions),
}

/// How CSV is written and read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CsvOptions {
    /// Between fields.
    pub delimiter: char,
    /// Around fields that need it.
    pub quote: char,
    /// Whether the first line names the columns.
    pub header: bool,
    /// The unquoted text that means NULL. Left out, an empty field is NULL and a quoted empty field (`""`) is the
    /// empty text.
    pub null: Option<String>,
    /// Guess types of files that no schema is known for, from their first rows. Only types that print every value back
    /// as it stands are taken; a later value that does not fit stops the run. Left out, everything is text.
    pub infer: bool,
}

impl Default for CsvOptions {
    fn default() -> Self {
        CsvOptions {
            delimiter: ',',
            quote: '"',
            header: true,
            null: None,
            infer: false,
        }
    }
}

/// How Parquet is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ParquetOptions {
    /// The level of zstd, 1 to 22.
    pub compression_level: i32,
    /// A row group is written when this many encoded bytes are waiting; the memory of one writer.
    pub row_group_bytes: usize,
}

impl Default for ParquetOptions {
    fn default() -> Self {
        ParquetOptions {
            compression_level: 1,
            row_group_bytes: 64 << 20,
        }
    }
}

impl Format {
    fn name(&self) -> &'static str {
        match self {
            Format::Csv(_) => "csv",
            Format::Parquet(_) => "parquet",
        }
    }
}

/// A datastore of files.
#[derive(Debug, Clone)]
pub struct Objects {
    place: Arc<Place>,
}

impl Objects {
    /// Checks the options and looks whether the path is a folder or a file; nothing is created.
    pub fn open(config: ObjectConfig) -> Result<Self> {
        let bad =
            |text: String| Err(Error::new(code::CONFIG_INVALID, text).at("path", config.path.display().to_string()));
        match &config.format {
            Format::Csv(o) => {
                let usable = |c: char| c.is_ascii() && !matches!(c, '\r' | '\n' | '\0');
                if !usable(o.delimiter) || !usable(o.quote) || o.delimiter == o.quote {
                    return bad("CSV: delimiter and quote must be two different ASCII characters".into());
                }
                if o.null
                    .as_ref()
                    .is_some_and(|n| n.contains([o.delimiter, o.quote, '\r', '\n']))
                {
                    return bad("CSV: the text for NULL must not hold delimiter, quote or line end".into());
                }
            }
            Format::Parquet(o) => {
                if !(1..=22).contains(&o.compression_level) {
                    return bad(format!(
                        "Parquet: compression_level {} is not in 1..=22",
                        o.compression_level
                    ));
                }
                if o.row_group_bytes < 64 << 10 {
                    return bad("Parquet: row_group_bytes must be at least 65536".into());
                }
            }
        }
        Ok(Objects {
            place: Arc::new(Place::new(config)),
        })
    }

    /// The files as a source.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::new(source::Files::of(self.place.clone()))
    }

    /// The files as a destination.
    pub fn destination(&self) -> Arc<dyn Destination> {
        Arc::new(destination::Folder::new(self.place.clone()))
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|e| Err(Error::bug(format!("file work died: {e}"))))
}
