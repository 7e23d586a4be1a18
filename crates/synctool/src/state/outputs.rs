//! The files for people and dashboards: where they are, and how they are replaced without ever being half written.

use super::names::file_name;
use super::{PipelineMemory, Run, documents};
use serde::Serialize;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// The folders of a data directory that users look into, and how much is kept there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outputs {
    /// `<pipeline>_state.json`, `_history.json`, `_metrics.json`.
    pub state_dir: PathBuf,
    /// `<pipeline>/<run_id>.json` and `latest_run.json`.
    pub metrics_dir: PathBuf,
    /// `<pipeline>/<run_id>.log`.
    pub logs_dir: PathBuf,
    /// Runs kept of each strategy of a pipeline, in the store too.
    pub keep_runs: usize,
}

impl Outputs {
    /// The usual folders of a data directory.
    pub fn under(data_dir: &Path) -> Self {
        Outputs {
            state_dir: data_dir.join("pipeline_states"),
            metrics_dir: data_dir.join("metrics"),
            logs_dir: data_dir.join("logs"),
            keep_runs: 50,
        }
    }

    fn of_pipeline(&self, pipeline: &str, what: &str) -> PathBuf {
        self.state_dir.join(format!("{}_{what}.json", file_name(pipeline)))
    }

    /// The pipeline's current state.
    pub fn state_file(&self, pipeline: &str) -> PathBuf {
        self.of_pipeline(pipeline, "state")
    }

    /// The pipeline's last runs.
    pub fn history_file(&self, pipeline: &str) -> PathBuf {
        self.of_pipeline(pipeline, "history")
    }

    /// The pipeline's figures over its last runs.
    pub fn metrics_file(&self, pipeline: &str) -> PathBuf {
        self.of_pipeline(pipeline, "metrics")
    }

    /// A run's figures.
    pub fn run_metrics_file(&self, pipeline: &str, run_id: &str) -> PathBuf {
        let folder = self.metrics_dir.join(file_name(pipeline));
        folder.join(format!("{}.json", file_name(run_id)))
    }

    /// The newest run's figures.
    pub fn latest_run_file(&self, pipeline: &str) -> PathBuf {
        self.run_metrics_file(pipeline, "latest_run")
    }

    /// A run's log.
    pub fn log_file(&self, pipeline: &str, run_id: &str) -> PathBuf {
        let folder = self.logs_dir.join(file_name(pipeline));
        folder.join(format!("{}.log", file_name(run_id)))
    }

    /// Brings the state file in line with what the store knows; nothing known, no file.
    pub(super) fn write_state(&self, pipeline: &str, memory: Option<&PipelineMemory>, lasting: Lasting) -> Result<()> {
        let path = self.state_file(pipeline);
        match memory {
            Some(memory) => write_json(&path, &documents::StateDocument::new(memory), lasting),
            None => remove(&path),
        }
    }

    /// Removes the log and the figures of runs that were forgotten.
    pub(super) fn forget(&self, runs: &[Run]) -> Result<()> {
        for run in runs {
            remove(&self.log_file(&run.pipeline, &run.run_id))?;
            remove(&self.run_metrics_file(&run.pipeline, &run.run_id))?;
        }
        Ok(())
    }
}

pub(super) fn failed(path: &Path, e: &std::io::Error) -> Error {
    let code = match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => code::DISK_FULL,
        _ => code::FILE,
    };
    Error::new(code, format!("{} cannot be written: {e}", path.display()))
        .hint("make room, or name a writable directory with --data-dir")
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(failed(path, &e)),
        _ => Ok(()),
    }
}

/// What a file that was replaced outlives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lasting {
    /// The process, however it ends: the picture of a run that goes on. Its truth is in the store, and the next picture,
    /// or the next run after a power cut, writes it anew.
    Process,
    /// A power cut too.
    PowerCut,
}

/// Replaces a JSON file: readers see the old text or the new one, also after a crash.
pub(super) fn write_json(path: &Path, document: &impl Serialize, lasting: Lasting) -> Result<()> {
    let mut text =
        serde_json::to_vec_pretty(document).map_err(|e| Error::bug(format!("{} as JSON: {e}", path.display())))?;
    text.push(b'\n');
    replace(path, &text, lasting).map_err(|e| failed(path, &e))
}

fn replace(path: &Path, text: &[u8], lasting: Lasting) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // One name per file: what a killed process left behind is overwritten, and the run lock lets only one write.
    let mut temporary = path.file_name().unwrap_or_default().to_os_string();
    temporary.push(".tmp");
    let temporary = folder.join(temporary);
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    if lasting == Lasting::PowerCut {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    if lasting == Lasting::PowerCut {
        // The rename itself is durable once the folder is; not every file system lets a folder be synced.
        let _ = File::open(folder).and_then(|f| f.sync_all());
    }
    Ok(())
}
