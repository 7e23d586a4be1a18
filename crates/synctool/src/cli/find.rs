//! Which pipeline is meant: a file, or a name that a file of the usual folders has.

use super::args::{Globals, PipelineArg};
use crate::config::Found;
use crate::config::error::{ConfigError, nearest};
use crate::pipeline::Pipeline;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// The pipeline an argument means, loaded.
pub(super) fn pipeline(argument: &PipelineArg, globals: &Globals) -> Result<Pipeline> {
    let Some(said) = argument.said() else {
        let mut error = Error::new(code::CONFIG_INVALID, "no pipeline was named");
        let names = words(&files(globals));
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

/// The pipeline files of the usual folders, each once.
fn files(globals: &Globals) -> Vec<Found> {
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    for folder in folders(globals) {
        for found in globals.loader().pipelines_in(&folder).unwrap_or_default() {
            if seen.insert(found.file.canonicalize().unwrap_or_else(|_| found.file.clone())) {
                files.push(found);
            }
        }
    }
    files
}

/// By what a pipeline may be called that is not named so: its file's stem.
fn alias(found: &Found) -> String {
    found
        .file
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

/// All words that mean one of these.
fn words(files: &[Found]) -> Vec<String> {
    let named = |found: &Found| found.name.as_ref().map(|name| name.to_string());
    let mut words: Vec<String> = files.iter().filter_map(named).chain(files.iter().map(alias)).collect();
    words.sort();
    words.dedup();
    words
}

/// The one of these; an error that names both places where there are several, because nobody knows which was meant.
fn only_one(text: &str, found: &[&Found]) -> Result<Option<PathBuf>> {
    let (one, other) = match found {
        [] => return Ok(None),
        [one] => return Ok(Some(one.file.clone())),
        [one, other, ..] => (one, other),
    };
    let message = format!("two pipelines are named \"{text}\"");
    let first = one.name.as_ref().and_then(|name| name.origin());
    let first = first.map_or_else(|| one.file.display().to_string(), ToString::to_string);
    let error = match other.name.as_ref().filter(|name| name.origin().is_some()) {
        Some(name) => name.error(message),
        None => ConfigError::in_file(other.file.display().to_string(), message),
    };
    Err(error
        .with_help(format!(
            "the other is {first}: give one another name, or name the file that is meant"
        ))
        .into())
}

fn by_name(said: &Path, globals: &Globals) -> Result<PathBuf> {
    let text = said.to_string_lossy();
    let files = files(globals);
    let named: Vec<&Found> = files
        .iter()
        .filter(|f| f.name.as_ref().is_some_and(|name| **name == *text))
        .collect();
    let called: Vec<&Found> = files.iter().filter(|f| alias(f) == text).collect();
    for found in [named, called] {
        if let Some(file) = only_one(&text, &found)? {
            return Ok(file);
        }
    }
    let looks_like_a_file = text.contains(['/', '\\']) || text.ends_with(".yaml") || text.ends_with(".yml");
    let what = match looks_like_a_file {
        true => format!("there is no file {text}"),
        false => format!("there is no pipeline and no file named {text}"),
    };
    let mut candidates = match looks_like_a_file {
        true => siblings(said),
        false => words(&files),
    };
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
