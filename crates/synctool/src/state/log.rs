//! A run's log: JSON Lines, one object per event.

use super::model::{RunError, Time, now, time_text};
use super::outputs::failed;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// How much a line matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Level {
    /// What happens.
    Info,
    /// What went wrong but was dealt with.
    Warning,
    /// What ended the run.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
        })
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogLine {
    /// When.
    #[serde(with = "time_text")]
    pub timestamp: Time,
    /// How much it matters.
    pub level: Level,
    /// What happened.
    pub message: String,
    /// The run.
    pub run_id: String,
    /// Where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    /// How many rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u64>,
    /// How many bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// How long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// The error's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// What to try next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl LogLine {
    /// A line of now.
    pub fn new(run_id: &str, level: Level, message: impl Into<String>) -> Self {
        LogLine {
            timestamp: now(),
            level,
            message: message.into(),
            run_id: run_id.into(),
            partition: None,
            rows: None,
            bytes: None,
            seconds: None,
            code: None,
            hint: None,
        }
    }

    pub(super) fn partition(mut self, id: &str) -> Self {
        self.partition = Some(id.into());
        self
    }

    pub(super) fn rows(mut self, rows: u64) -> Self {
        self.rows = Some(rows);
        self
    }

    pub(super) fn seconds(mut self, seconds: f64) -> Self {
        self.seconds = Some((seconds * 1000.0).round() / 1000.0);
        self
    }

    pub(super) fn error(mut self, error: &RunError) -> Self {
        self.code = Some(error.code.clone());
        self.hint = error.hint.clone();
        self
    }
}

impl fmt::Display for LogLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {:<7} {}",
            super::rfc3339(&self.timestamp),
            self.level,
            self.message
        )?;
        if let Some(p) = self.partition.as_ref().filter(|p| !self.message.contains(p.as_str())) {
            write!(f, " partition={p}")?;
        }
        if let Some(code) = &self.code {
            write!(f, " [{code}]")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  next: {hint}")?;
        }
        Ok(())
    }
}

/// Appends lines.
pub(super) struct LogWriter {
    path: PathBuf,
    file: BufWriter<File>,
}

impl LogWriter {
    pub(super) fn create(path: &Path) -> Result<Self> {
        let open = || {
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            File::options().create(true).append(true).open(path)
        };
        let file = open().map_err(|e| failed(path, &e))?;
        Ok(LogWriter {
            path: path.into(),
            file: BufWriter::new(file),
        })
    }

    pub(super) fn write(&mut self, line: &LogLine) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Error::bug(format!("a log line: {e}")))?;
        text.push(b'\n');
        self.file.write_all(&text).map_err(|e| failed(&self.path, &e))
    }

    pub(super) fn flush(&mut self) -> Result<()> {
        self.file.flush().map_err(|e| failed(&self.path, &e))
    }

    pub(super) fn sync(&mut self) -> Result<()> {
        self.flush()?;
        self.file.get_ref().sync_all().map_err(|e| failed(&self.path, &e))
    }
}

/// Reads a log, as far as it is written; again later for what came since.
pub struct LogReader {
    path: PathBuf,
    read: u64,
}

impl LogReader {
    /// From the beginning of a run's log. It need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        LogReader { path, read: 0 }
    }

    /// The lines since the last call. A line that is still being written comes the next time; one that a killed process
    /// left half written never does.
    pub fn lines(&mut self) -> Result<Vec<LogLine>> {
        let failed = |e: std::io::Error| {
            Error::new(
                code::FILE,
                format!("the log {} cannot be read: {e}", self.path.display()),
            )
        };
        let mut file = match File::open(&self.path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        file.seek(SeekFrom::Start(self.read)).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
        self.read += whole as u64;
        Ok(bytes[..whole]
            .split(|b| *b == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect())
    }
}
