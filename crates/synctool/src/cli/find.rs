//! Which pipeline is meant: a file, or a name that a file of the usual folders has.

use super::args::{Globals, PipelineArg};
use crate::config::error::nearest;
use crate::pipeline::Pipeline;
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// The pipeline an argument means, loaded.
pub(super) fn pipeline(argument: &PipelineArg, globals: &Globals) -> Result<Pipeline> {
    let Some(said) = argument.said() else {
        let mut error = Error::new(code::CONFIG_INVALID, "no pipeline was named");
        let names = names(globals);
        if !names.is_empty() {
            error = error.hint(format!("name its file, or one of: {}", names.join(", ")));
        }
        return Err(error.hint("name its file: synctool run orders.yaml, or write one with synctool init"));
    };
    by_text(said, globals)
}

/// The pipeline a file name or a pipeline's name means, loaded.
pub(super) fn by_text(said: &Path, globals: &Globals) -> Result<Pipeline> {
    let file = match said.is_file() {
        true => said.to_owned(),
        false => by_name(said, globals)?,
    };
    Ok(Pipeline::from_loaded(globals.loader().pipeline(&file)?))
}

/// The folders in which a pipeline is looked for by name.
fn folders(globals: &Globals) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("."), PathBuf::from("pipelines")];
    if let Ok(global) = globals.loader().global() {
        folders.push(global.build_system.user_config_dir.to_path_buf());
    }
    folders.retain(|f| f.is_dir());
    folders.dedup_by(|a, b| a.canonicalize().ok() == b.canonicalize().ok());
    folders
}

/// Every pipeline of the usual folders: name and file. The file's stem is an alias.
fn known(globals: &Globals) -> Vec<(String, PathBuf)> {
    let mut known = Vec::new();
    for folder in folders(globals) {
        for found in globals.loader().pipelines_in(&folder).unwrap_or_default() {
            let stem = found
                .file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if let Ok(loaded) = &found.loaded {
                known.push((loaded.pipeline.name.to_string(), found.file.clone()));
            }
            if !known.iter().any(|(name, _)| *name == stem) {
                known.push((stem, found.file));
            }
        }
    }
    known
}

fn names(globals: &Globals) -> Vec<String> {
    let mut names: Vec<String> = known(globals).into_iter().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    names
}

fn by_name(said: &Path, globals: &Globals) -> Result<PathBuf> {
    let text = said.to_string_lossy();
    let known = known(globals);
    if let Some((_, file)) = known.iter().find(|(name, _)| *name == *text) {
        return Ok(file.clone());
    }
    let looks_like_a_file = text.contains(['/', '\\']) || text.ends_with(".yaml") || text.ends_with(".yml");
    let what = match looks_like_a_file {
        true => format!("there is no file {text}"),
        false => format!("there is no pipeline and no file named {text}"),
    };
    let mut candidates: Vec<String> = known.iter().map(|(name, _)| name.clone()).collect();
    if looks_like_a_file {
        candidates = siblings(said);
    }
    candidates.sort();
    candidates.dedup();
    let meant = nearest(&text, candidates.iter().map(String::as_str));
    let error = Error::new(code::CONFIG_INVALID, what);
    Err(match (meant, candidates.is_empty()) {
        (Some(meant), _) => error.hint(format!("did you mean {meant}?")),
        (None, false) => error.hint(format!("there are: {}", candidates.join(", "))),
        (None, true) => error.hint("write one with synctool init, or copy a table with synctool copy"),
    })
}

/// The YAML files beside a path that does not exist, as the user would write them.
fn siblings(said: &Path) -> Vec<String> {
    let folder = said.parent().unwrap_or(Path::new(""));
    let look_in = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let Ok(entries) = std::fs::read_dir(look_in) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|e| folder.join(e.file_name()).to_string_lossy().into_owned())
        .filter(|name| (name.ends_with(".yaml") || name.ends_with(".yml")) && !name.ends_with("datastores.yaml"))
        .collect()
}
