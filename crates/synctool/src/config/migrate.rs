//! `config migrate`: a pipeline of any generation, written anew in the current form.

use std::path::Path;

use serde_json::{Map, Value};

use super::at::{ORIGIN, VALUE, WRITTEN};
use super::error::ConfigErrors;
use super::form;
use super::generations::{self, Generation};
use super::load::Loader;
use super::secret::{MASK, is_secret_key};
use super::show::{Style, emit_with};
use super::text::{Kind, Node, is_bool};
use super::vars::name_after;

/// A pipeline in the current form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The text of the file.
    pub yaml: String,
    /// How the file was written before, in words.
    pub from: &'static str,
    /// Whether it was in the current form already.
    pub is_current: bool,
    /// Variables that stand in the text for secrets that were written out, to be set before it is used.
    pub variables: Vec<String>,
}

impl Loader {
    /// Writes a pipeline in the current form. What is default, comments and the layout are left behind; variables stay
    /// variables. Secrets that are written out in the file stay only where the text is to replace the file
    /// (`keep_secrets`), else variables stand for them.
    pub fn migrate(&self, file: &Path, keep_secrets: bool) -> Result<Migrated, ConfigErrors> {
        let mut errors = Vec::new();
        let read = self.read(file, &mut errors);
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let mut notices = Vec::new();
        let migrated = read.and_then(|(text, root)| {
            let generation = generations::recognise(&root);
            let form = generations::read(&text, &root, &mut notices, &mut errors)?;
            let pipeline = form::resolve(form, &stem, std::mem::take(&mut notices), &mut errors);
            let mut secrets = Secrets {
                keep: keep_secrets,
                variables: Vec::new(),
            };
            let mut tree = pipeline.short_tree();
            hide_cache_urls(&mut tree, &mut secrets);
            if let (Some(datastores), Value::Object(tree)) = (datastores(generation, &root, &mut secrets), &mut tree) {
                tree.insert("datastores".into(), datastores);
            }
            let mut yaml = heading(file, generation, &root, &secrets.variables);
            for notice in &pipeline.not_yet {
                yaml.push_str(&format!("# line {}: {}\n", notice.line, notice.message));
            }
            emit_with(&tree, 0, &mut yaml, Style::Written);
            Some(Migrated {
                yaml,
                from: generation.describe(),
                is_current: generation == Generation::Current,
                variables: secrets.variables,
            })
        });
        super::load::finish(migrated, errors)
    }
}

/// What the reader of the new file should know of the old one.
fn heading(file: &Path, generation: Generation, root: &Node, variables: &[String]) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let mut text = format!(
        "# Written by `synctool config migrate` from {name}, which was in {}.\n",
        generation.describe()
    );
    for (old, new) in generation.renamed() {
        if old.split('.').try_fold(root, |node, key| node.get(key)).is_some() {
            text.push_str(&format!("#   {old} -> {new}\n"));
        }
    }
    if !variables.is_empty() {
        let names: Vec<String> = variables.iter().map(|v| format!("${{{v}}}")).collect();
        text.push_str(&format!(
            "# Set before use, in place of secrets that were written out: {}\n",
            names.join(", ")
        ));
    }
    text
}

/// The tree holds addresses of caches with their passwords masked, which is no address.
fn hide_cache_urls(tree: &mut Value, secrets: &mut Secrets) {
    let stages = tree.get_mut("transform").and_then(Value::as_array_mut);
    for stage in stages.into_iter().flatten() {
        let Some(url) = stage.pointer_mut("/enrich/cache/url") else {
            continue;
        };
        let masked = url
            .get(VALUE)
            .and_then(Value::as_str)
            .is_some_and(|url| url.contains(MASK));
        if masked && url.get(WRITTEN).is_none_or(Value::is_null) {
            *url = as_written("", "${CACHE_URL}");
            secrets.variables.push("CACHE_URL".into());
        }
    }
}

/// Secrets that are written out in a file.
struct Secrets {
    keep: bool,
    variables: Vec<String>,
}

/// The datastores that the file itself describes, as they stand there.
fn datastores(generation: Generation, root: &Node, secrets: &mut Secrets) -> Option<Value> {
    if generation != Generation::G0 {
        return root.get("datastores").map(|node| tree(node, "", false, secrets));
    }
    let job = root.get("sync_job")?;
    let mut all = Map::new();
    for (name, key) in [("source", "source_provider"), ("destination", "destination_provider")] {
        let provider = job.get(key)?;
        let connection = provider.get("connection")?;
        let mut entry = Map::new();
        let kind = match &provider.get("type")?.kind {
            Kind::Scalar { text, .. } => text.as_str(),
            _ => return None,
        };
        match (kind, connection.get("path")) {
            ("object_storage", Some(path)) => {
                entry.insert("type".into(), "parquet".into());
                entry.insert("path".into(), tree(path, name, false, secrets));
            }
            _ => {
                entry.insert("type".into(), if kind == "object_storage" { "s3" } else { kind }.into());
                entry.insert("connection".into(), tree(connection, name, false, secrets));
            }
        }
        all.insert(name.into(), entry.into());
    }
    Some(all.into())
}

/// A node as it stands in the file. `path` is what a variable for a secret below it is called by.
fn tree(node: &Node, path: &str, secret: bool, secrets: &mut Secrets) -> Value {
    match &node.kind {
        Kind::Null => Value::Null,
        Kind::List(items) => items.iter().map(|item| tree(item, path, secret, secrets)).collect(),
        Kind::Map(entries) => entries
            .iter()
            .map(|entry| {
                let below = match entry.key.as_str() {
                    "connection" => path.to_owned(),
                    key if path.is_empty() => key.to_owned(),
                    key => format!("{path}_{key}"),
                };
                let value = tree(&entry.value, &below, secret || is_secret_key(&entry.key), secrets);
                (entry.key.clone(), value)
            })
            .collect::<Map<_, _>>()
            .into(),
        Kind::Scalar { text, plain } => {
            if let Some(written) = &node.written {
                return as_written(text, written);
            }
            if secret && !secrets.keep {
                let name = name_after(path);
                let variable = format!("${{{name}}}");
                if !secrets.variables.contains(&name) {
                    secrets.variables.push(name);
                }
                return as_written("", &variable);
            }
            match (*plain, is_bool(text), text.parse::<i64>()) {
                (true, Some(truth), _) => truth.into(),
                (true, _, Ok(n)) if n.to_string() == *text => n.into(),
                _ => text.as_str().into(),
            }
        }
    }
}

/// A value that stands in the new file as it stood in the old one.
fn as_written(value: &str, written: &str) -> Value {
    let mut pair = Map::new();
    pair.insert(VALUE.into(), value.into());
    pair.insert(ORIGIN.into(), Value::Null);
    pair.insert(WRITTEN.into(), written.into());
    pair.into()
}
