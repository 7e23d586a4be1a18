//! Finding and reading the files that belong together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::at::At;
use super::datastores::{self, Datastore, Datastores, DatastoresFile, FoundIn};
use super::decode::{Notice, decode};
use super::error::{ConfigError, ConfigErrors};
use super::form;
use super::generations;
use super::global::{self, Global, GlobalFile, State};
use super::pipeline::Pipeline;
use super::stage::StageWork;
use super::strategy::Strategy;
use super::text::{self, Node, Text};
use super::toml_text;
use super::vars::Vars;
use synctool_core::error::io_reason;

type Env = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Reads configuration files. It holds what the command line says about them.
#[derive(Clone)]
pub struct Loader {
    env: Env,
    folder: PathBuf,
    datastores: Option<PathBuf>,
    global: Option<PathBuf>,
    data_dir: Option<PathBuf>,
}

/// A pipeline with all it needs to run.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The pipeline.
    pub pipeline: Pipeline,
    /// The datastores at hand.
    pub datastores: Datastores,
    /// What holds for every pipeline.
    pub global: Global,
    /// The pipeline's file.
    pub file: PathBuf,
}

/// A pipeline file of a folder.
#[derive(Debug)]
pub struct Found {
    /// The file.
    pub file: PathBuf,
    /// The pipeline's name, where nothing else is wrong with the file.
    pub name: Option<At<String>>,
    /// What is in it.
    pub loaded: Result<Loaded, ConfigErrors>,
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl Loader {
    /// A loader that reads variables from the process's environment and files relative to its working directory.
    pub fn new() -> Self {
        Self {
            env: Arc::new(|name| std::env::var(name).ok()),
            folder: PathBuf::new(),
            datastores: None,
            global: None,
            data_dir: None,
        }
    }

    /// Takes variables from somewhere else than the process's environment.
    #[must_use]
    pub fn env(mut self, env: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.env = Arc::new(env);
        self
    }

    /// The folder in which `synctool.yaml` is looked for, in place of the working directory.
    #[must_use]
    pub fn folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folder = folder.into();
        self
    }

    /// `--datastores FILE`.
    #[must_use]
    pub fn datastores(mut self, file: Option<PathBuf>) -> Self {
        self.datastores = file;
        self
    }

    /// `--global-config FILE`.
    #[must_use]
    pub fn global_config(mut self, file: Option<PathBuf>) -> Self {
        self.global = file;
        self
    }

    /// `--data-dir DIR`.
    #[must_use]
    pub fn data_dir(mut self, folder: Option<PathBuf>) -> Self {
        self.data_dir = folder;
        self
    }

    /// The global configuration: that of the command line, else `synctool.yaml`, else the defaults.
    pub fn global(&self) -> Result<Global, ConfigErrors> {
        let mut errors = Vec::new();
        let global = self.read_global(&mut errors);
        finish(global, errors)
    }

    /// A pipeline with its datastores and the global configuration; every mistake of all three files is told.
    pub fn pipeline(&self, file: &Path) -> Result<Loaded, ConfigErrors> {
        let mut errors = Vec::new();
        let loaded = self.read_pipeline(file, &mut errors);
        finish(loaded, errors)
    }

    /// Datastores without a pipeline: those of the command line, of the global configuration, or of `datastores.yaml`
    /// in `folder` or its parent.
    pub fn datastores_in(&self, folder: &Path) -> Result<Datastores, ConfigErrors> {
        let mut errors = Vec::new();
        let global = self.read_global(&mut errors);
        let datastores = self.read_datastores(folder, global.as_ref(), None, &mut errors);
        finish(Some(datastores), errors)
    }

    /// The pipelines of a folder, by file name. A name used twice is a mistake of the second file.
    pub fn pipelines_in(&self, folder: &Path) -> Result<Vec<Found>, ConfigErrors> {
        let unreadable = |error: std::io::Error| ConfigError::in_file(folder.display().to_string(), io_reason(&error));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let yaml = name.ends_with(".yaml") || name.ends_with(".yml");
            let other = name.starts_with('.') || name.starts_with("datastores.") || name.starts_with("synctool.");
            if yaml && !other && path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        let mut names: BTreeMap<String, PathBuf> = BTreeMap::new();
        let mut found = Vec::with_capacity(files.len());
        for file in files {
            let mut loaded = self.pipeline(&file);
            let name = loaded.as_ref().ok().map(|loaded| loaded.pipeline.name.clone());
            if let Ok(Loaded { pipeline, .. }) = &loaded {
                let name = &pipeline.name;
                match names.get(&**name) {
                    Some(first) => {
                        let error = name.error(format!("two pipelines are named \"{}\"", name.shown()));
                        loaded = Err(error.with_help(format!("the other is {}", first.display())).into());
                    }
                    None => {
                        names.insert(name.to_string(), file.clone());
                    }
                }
            }
            found.push(Found { file, name, loaded });
        }
        Ok(found)
    }

    fn read_global(&self, errors: &mut Vec<ConfigError>) -> Option<Global> {
        let path = match &self.global {
            Some(path) => Some(path.clone()),
            None => Some(self.folder.join("synctool.yaml")).filter(|path| path.is_file()),
        };
        let mut notices = Vec::new();
        let file = match &path {
            Some(path) => {
                let (text, root) = self.read(path, errors)?;
                decode::<GlobalFile>(&root, &text, errors, &mut notices)?
            }
            None => GlobalFile::default(),
        };
        Some(global::resolve(file, path, self.data_dir.as_deref(), notices, errors))
    }

    fn read_pipeline(&self, path: &Path, errors: &mut Vec<ConfigError>) -> Option<Loaded> {
        // The pipeline comes first: its mistakes are what the user looks for.
        let folder = path.parent().unwrap_or(Path::new(""));
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let read = self.read(path, errors).and_then(|(text, root)| {
            let mut notices = Vec::new();
            let file = generations::read(&text, &root, &mut notices, errors)?;
            Some((file, notices))
        });
        let (mut inline, mut of_datastores) = (BTreeMap::new(), Vec::new());
        let pipeline = read.map(|(mut file, notices)| {
            let entries = file.datastores.take().unwrap_or_default();
            inline = datastores::resolve(entries, folder, &mut of_datastores);
            form::resolve(file, &stem, notices, errors)
        });
        let global = self.read_global(errors);
        let needs_file = pipeline
            .as_ref()
            .is_none_or(|p| !p.datastores().all(|name| inline.contains_key(name.as_str())));
        let mut datastores = match needs_file {
            true => self.read_datastores(folder, global.as_ref(), Some(path), &mut of_datastores),
            false => Datastores::default(),
        };
        datastores.entries.extend(inline);
        // A datastore that could not be read is missing by its own mistake.
        let complete = of_datastores.is_empty();
        errors.append(&mut of_datastores);
        let (mut pipeline, global) = (pipeline?, global?);
        if complete {
            check_ends(&pipeline, &global, &datastores, errors);
            notice_what_cannot_be_opened(&mut pipeline, &datastores);
        }
        Some(Loaded {
            pipeline,
            datastores,
            global,
            file: path.to_owned(),
        })
    }

    fn read_datastores(
        &self,
        folder: &Path,
        global: Option<&Global>,
        pipeline: Option<&Path>,
        errors: &mut Vec<ConfigError>,
    ) -> Datastores {
        let named = match (&self.datastores, global.and_then(|g| g.datastores_path.as_ref())) {
            (Some(path), _) => Some((path.clone(), "--datastores".to_owned())),
            (None, Some(path)) => {
                let by = path.origin().map_or("the global configuration", |origin| &origin.file);
                Some((self.folder.join(&**path), format!("datastores_path of {by}")))
            }
            (None, None) => None,
        };
        let mut looked_in = Vec::new();
        let (beside, above) = match pipeline {
            Some(_) => ("beside the pipeline", "in the folder above the pipeline"),
            None => ("in the folder", "in the folder above"),
        };
        let found = named.or_else(|| {
            let parent = match folder.parent() {
                Some(parent) if !folder.as_os_str().is_empty() => parent.to_owned(),
                _ => folder.join(".."),
            };
            for (folder, rule) in [(folder, beside), (&parent, above)] {
                let path = folder.join("datastores.yaml");
                if path.is_file() {
                    return Some((path, rule.to_owned()));
                }
                looked_in.push(path);
            }
            None
        });
        let Some((path, rule)) = found else {
            return Datastores {
                looked_in,
                ..Datastores::default()
            };
        };
        let mut not_yet = Vec::new();
        let read = self
            .read(&path, errors)
            .and_then(|(text, root)| decode::<DatastoresFile>(&root, &text, errors, &mut not_yet));
        let folder = path.parent().unwrap_or(Path::new("")).to_owned();
        let entries = read
            .map(|file| datastores::resolve(file.datastores, &folder, errors))
            .unwrap_or_default();
        Datastores {
            entries,
            found_in: Some(FoundIn { path, rule }),
            looked_in,
            not_yet,
        }
    }

    /// A variable of the environment.
    pub(super) fn variable(&self, name: &str) -> Option<String> {
        (self.env)(name)
    }

    /// Where everything is kept that is not placed elsewhere, without a global configuration.
    pub(super) fn data_dir_or_default(&self) -> PathBuf {
        self.data_dir.clone().unwrap_or_else(|| self.folder.join("data"))
    }

    /// Reads a file up to the tree with variables put in.
    pub(super) fn read(&self, path: &Path, errors: &mut Vec<ConfigError>) -> Option<(Text, Node)> {
        self.read_as(path, text::parse, errors)
    }

    /// The same with a TOML file.
    pub(super) fn read_toml(&self, path: &Path, errors: &mut Vec<ConfigError>) -> Option<(Text, Node)> {
        self.read_as(path, toml_text::parse, errors)
    }

    fn read_as(
        &self,
        path: &Path,
        parse: impl Fn(&Text, &mut Vec<ConfigError>) -> Option<Node>,
        errors: &mut Vec<ConfigError>,
    ) -> Option<(Text, Node)> {
        let file = path.display().to_string();
        let content = match std::fs::read(path).map(String::from_utf8) {
            Ok(Ok(content)) => content,
            Ok(Err(_)) => {
                errors.push(ConfigError::in_file(file, "the file is not UTF-8 text"));
                return None;
            }
            Err(error) => {
                errors.push(ConfigError::in_file(
                    file,
                    format!("cannot be read: {}", io_reason(&error)),
                ));
                return None;
            }
        };
        let text = Text::new(file, &content);
        let mut root = parse(&text, errors)?;
        let vars = Vars {
            env: &*self.env,
            folder: path.parent().unwrap_or(Path::new("")),
        };
        vars.expand(&mut root, &text, errors);
        Some((text, root))
    }
}

fn check_ends(pipeline: &Pipeline, global: &Global, datastores: &Datastores, errors: &mut Vec<ConfigError>) {
    let (source, destination) = (&pipeline.source, &pipeline.destination);
    let mut ends = Vec::new();
    for (name, type_name) in [
        (&source.datastore, &source.type_name),
        (&destination.datastore, &destination.type_name),
    ] {
        match datastores.known(name) {
            Ok(datastore) => {
                errors.extend(another_type(type_name.as_ref(), name, datastore));
                ends.push(datastore);
            }
            Err(error) => errors.push(error),
        }
    }
    for stage in &pipeline.transform {
        let StageWork::Enrich(enrich) = &stage.work else {
            continue;
        };
        errors.extend(match datastores.known(&enrich.datastore) {
            Ok(datastore) => another_type(enrich.type_name.as_ref(), &enrich.datastore, datastore),
            Err(error) => Some(error),
        });
    }
    if let State::Postgres {
        datastore: Some(name), ..
    } = &global.state
        && let Err(error) = datastores.get(name)
    {
        errors.push(error);
    }
    let [from, to] = ends[..] else { return };
    if pipeline.log().is_some() {
        return check_log_ends(pipeline, from, to, errors);
    }
    if matches!(from.connection, datastores::Connection::WalArchive(_)) {
        errors.push(
            source
                .datastore
                .error(format!(
                    "datastore \"{}\" is an archived log, which strategies of type log follow",
                    from.name
                ))
                .with_help("strategies: [{type: log}]"),
        );
    }
    match (source.table_ref(from), destination.table_ref(to)) {
        (Ok(read), Ok(written)) => {
            if from.name == to.name && read == written {
                let message = "source and destination are the same table";
                errors.push(
                    destination
                        .table
                        .error(message)
                        .with_help("name another table, schema or datastore"),
                );
            }
        }
        (read, written) => errors.extend(read.err().into_iter().chain(written.err())),
    }
}

/// What is wrong where a pipeline says a type that the datastore is not of.
fn another_type(said: Option<&At<String>>, name: &At<String>, datastore: &Datastore) -> Option<ConfigError> {
    let is = datastore.connection.type_name();
    let said = said.filter(|said| said.as_str() != is)?;
    Some(said.error(format!(
        "type is \"{}\" here, and datastore \"{}\" is of type {is}",
        said.shown(),
        name.shown()
    )))
}

fn check_log_ends(pipeline: &Pipeline, from: &Datastore, to: &Datastore, errors: &mut Vec<ConfigError>) {
    let (source, destination) = (&pipeline.source, &pipeline.destination);
    let mut tables = Vec::new();
    for table in source.tables.iter().chain([&source.table]).filter(|t| !t.is_empty()) {
        match super::table::table_ref(table, source.schema.as_ref(), from) {
            Ok(read) => tables.push((table, read)),
            Err(error) => errors.push(error),
        }
    }
    if !destination.table.is_empty() {
        errors.extend(destination.table_ref(to).err());
    }
    if from.name != to.name {
        return;
    }
    for (table, read) in tables {
        let mut written = read.clone();
        if !destination.table.is_empty()
            && let Ok(named) = destination.table_ref(to)
        {
            written = named;
        } else if let Some(schema) = &destination.schema {
            written.schema = Some(schema.to_string());
        }
        if written == read {
            errors.push(
                table
                    .error("source and destination are the same table")
                    .with_help("write another destination.schema or datastore"),
            );
        }
    }
}

/// A pipeline with a datastore of a later version is valid, and says so before it is run.
fn notice_what_cannot_be_opened(pipeline: &mut Pipeline, datastores: &Datastores) {
    let mut told: Vec<&str> = Vec::new();
    let mut notices = Vec::new();
    for name in pipeline.datastores() {
        if let Ok(datastore) = datastores.known(name)
            && let Err(error) = datastores.get(name)
            && !told.contains(&datastore.name.as_str())
        {
            told.push(&datastore.name);
            notices.extend(Notice::at(
                name,
                "datastore",
                format!("{}; the pipeline cannot run", error.message),
            ));
        }
    }
    pipeline.not_yet.extend(notices);
}

pub(super) fn finish<T>(value: Option<T>, mut errors: Vec<ConfigError>) -> Result<T, ConfigErrors> {
    if value.is_none() && errors.is_empty() {
        errors.push(ConfigError::new("the configuration could not be read"));
    }
    ConfigErrors::check(errors)?;
    value.ok_or_else(|| ConfigError::new("the configuration could not be read").into())
}

impl Loaded {
    /// The datastore that the pipeline reads.
    pub fn source(&self) -> Result<&Datastore, ConfigError> {
        self.datastores.get(&self.pipeline.source.datastore)
    }

    /// The datastore that the pipeline writes.
    pub fn destination(&self) -> Result<&Datastore, ConfigError> {
        self.datastores.get(&self.pipeline.destination.datastore)
    }

    /// Keys of all files that were read and that this version does nothing with: warnings to be printed.
    pub fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.pipeline
            .not_yet
            .iter()
            .chain(&self.datastores.not_yet)
            .chain(&self.global.not_yet)
    }

    /// What the pipeline works at once: its own number, else the global one.
    pub fn workers(&self) -> At<u32> {
        self.pipeline
            .max_concurrent_partitions
            .clone()
            .unwrap_or_else(|| self.global.workers.clone())
    }

    /// What one of its strategies works at once: the strategy's own number, else the pipeline's.
    pub fn workers_of(&self, strategy: &Strategy) -> At<u32> {
        strategy
            .max_concurrent_partitions
            .clone()
            .unwrap_or_else(|| self.workers())
    }
}

impl Datastores {
    /// Datastores made by the program, such as the ends of `copy`.
    pub fn of(datastores: impl IntoIterator<Item = Datastore>) -> Self {
        let entries = datastores.into_iter().map(|d| (d.name.clone(), At::from(d))).collect();
        Self {
            entries,
            ..Self::default()
        }
    }
}
