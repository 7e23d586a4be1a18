//! `synctool config …`.

use super::args::{ConfigCommand, Globals, SchemaArg};
use super::find;
use super::out::{self, Reply};
use crate::config::{SchemaOf, schema};
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};

/// `synctool config …`.
pub(super) fn config(command: ConfigCommand, globals: &Globals) -> Result<Reply> {
    match command {
        ConfigCommand::Validate { pipeline } => {
            let pipeline = find::pipeline(&pipeline, globals)?;
            let loaded = pipeline.config();
            let notices: Vec<String> = loaded.notices().map(ToString::to_string).collect();
            notices.iter().for_each(|n| globals.note(n));
            let json = json!({ "valid": true, "pipeline": pipeline.name(), "file": loaded.file, "notices": notices });
            Ok(Reply::new(
                json,
                format!("{} is valid: pipeline {}\n", loaded.file.display(), pipeline.name()),
            ))
        }
        ConfigCommand::Show { pipeline } if pipeline.said().is_none() => {
            let global = globals.loader().global()?;
            global.not_yet.iter().for_each(|n| globals.note(&n.to_string()));
            let from = global
                .file
                .as_ref()
                .map_or("defaults alone".into(), |f| f.display().to_string());
            let text = format!("# the global configuration: {from}\n{}", global.to_yaml());
            Ok(Reply::new(global.to_json(), text))
        }
        ConfigCommand::Show { pipeline } => {
            let pipeline = find::pipeline(&pipeline, globals)?;
            Ok(Reply::new(pipeline.config().to_json(), pipeline.config().to_yaml()))
        }
        ConfigCommand::List { config_dir } => list(config_dir, globals),
        ConfigCommand::Migrate { file, to, in_place } => migrate(&file, to, in_place, globals),
        ConfigCommand::Schema { of } => {
            let schema = schema(match of {
                SchemaArg::Pipeline => SchemaOf::Pipeline,
                SchemaArg::Datastores => SchemaOf::Datastores,
                SchemaArg::Global => SchemaOf::Global,
            });
            let text = format!("{schema:#}\n");
            Ok(Reply::new(schema, text))
        }
    }
}

fn migrate(file: &Path, to: Option<PathBuf>, in_place: bool, globals: &Globals) -> Result<Reply> {
    let migrated = globals.loader().migrate(file, in_place)?;
    let unwritten = |path: &Path, error: &std::io::Error| {
        Error::new(code::CONFIG_INVALID, format!("{} cannot be written", path.display()))
            .at("reason", error.kind().to_string())
            .hint("name another file: --to FILE")
    };
    let target = match (&to, in_place) {
        (Some(target), _) => {
            let mut options = std::fs::OpenOptions::new();
            let mut created = options
                .write(true)
                .create_new(true)
                .open(target)
                .map_err(|e| unwritten(target, &e))?;
            created
                .write_all(migrated.yaml.as_bytes())
                .map_err(|e| unwritten(target, &e))?;
            Some(target.clone())
        }
        (None, true) => {
            // The old file is there until the new one is whole.
            let mut beside = file.as_os_str().to_owned();
            beside.push(".new");
            let beside = PathBuf::from(beside);
            std::fs::write(&beside, &migrated.yaml).map_err(|e| unwritten(&beside, &e))?;
            std::fs::rename(&beside, file).map_err(|e| unwritten(file, &e))?;
            Some(file.to_owned())
        }
        (None, false) => None,
    };
    for variable in &migrated.variables {
        globals.note(&format!(
            "set {variable}: it stands for a secret that is written out in {}",
            file.display()
        ));
    }
    if let Some(new) = to.as_deref().filter(|new| folder(new) != folder(file)) {
        globals.note(&format!(
            "relative paths and datastores.yaml are looked for beside {0} now; synctool config show {0} tells what is found",
            new.display()
        ));
    }
    let mut json = json!({
        "from": migrated.from, "changed": !migrated.is_current, "file": target, "variables": migrated.variables,
    });
    if target.is_none() {
        json["yaml"] = migrated.yaml.as_str().into();
    }
    let text = match target {
        None => migrated.yaml,
        Some(target) => format!(
            "{} is written in the current form; it was in {}\n",
            target.display(),
            migrated.from
        ),
    };
    Ok(Reply::new(json, text))
}

/// The folder that a file stands in, however it is named.
fn folder(file: &Path) -> PathBuf {
    let named = file.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = named.unwrap_or_else(|| Path::new("."));
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

fn list(folder: Option<PathBuf>, globals: &Globals) -> Result<Reply> {
    let folder = match folder {
        Some(folder) => folder,
        None => {
            let configured = globals.loader().global()?.build_system.user_config_dir.to_path_buf();
            if configured.is_dir() { configured } else { ".".into() }
        }
    };
    let found = globals.loader().pipelines_in(&folder)?;
    if found.is_empty() {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!("there is no pipeline in {}", folder.display()),
        )
        .hint("name the folder with --config-dir, or write a pipeline with synctool init"));
    }
    let mut rows = Vec::new();
    let mut items = Vec::new();
    for entry in &found {
        let file = entry.file.display().to_string();
        match &entry.loaded {
            Ok(loaded) => {
                let p = &loaded.pipeline;
                let strategies: Vec<String> = p.strategies.iter().map(|s| s.name.to_string()).collect();
                let (from, to) = (
                    format!("{}:{}", *p.source.datastore, *p.source.table),
                    format!("{}:{}", *p.destination.datastore, *p.destination.table),
                );
                let state = if *p.enabled { "ok" } else { "disabled" };
                rows.push(vec![
                    p.name.to_string(),
                    state.into(),
                    from.clone(),
                    to.clone(),
                    strategies.join(", "),
                    file.clone(),
                ]);
                items.push(json!({
                    "name": *p.name, "valid": true, "enabled": *p.enabled, "source": from, "destination": to,
                    "strategies": strategies, "file": file,
                }));
            }
            Err(errors) => {
                let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
                let stem = entry
                    .file
                    .file_stem()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                rows.push(vec![
                    stem,
                    out::count(texts.len(), "mistake"),
                    "-".into(),
                    "-".into(),
                    "-".into(),
                    file.clone(),
                ]);
                items.push(json!({ "name": Value::Null, "valid": false, "errors": texts, "file": file }));
            }
        }
    }
    let mut text = out::table(
        &["pipeline", "state", "source", "destination", "strategies", "file"],
        rows,
    );
    if found.iter().any(|f| f.loaded.is_err()) {
        text.push_str("\nsynctool config validate FILE tells the mistakes of one\n");
    }
    Ok(Reply::new(items.into(), text))
}
