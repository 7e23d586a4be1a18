//! `synctool copy`: one table, no files.

use super::args::{CopyArgs, Globals};
use super::out::Reply;
use super::run;
use super::signals::Interrupt;
use crate::config::{ColumnMapping, Columns, Connection, Datastore, Datastores, Pipeline as Model, TableRef};
use crate::pipeline::{Pipeline, tables};
use std::path::Path;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::short_hash;
use synctool_core::schema::TableId;

/// `synctool copy`.
pub(super) async fn copy(args: CopyArgs, globals: &Globals, interrupt: Interrupt) -> Result<Reply> {
    let (from, to) = ends(&args.source, &args.destination)?;
    let written = &destination_table(args.destination_table, &from, &args.source_table, &to);
    let mut model = model(&from, &args.source_table, &to, written);
    if !args.columns.is_empty() {
        let columns = args.columns.iter().map(|c| ColumnMapping::same(c.trim()));
        model.columns = Columns::Listed(columns.collect());
    }
    model.key = args.key.iter().map(|k| k.trim().into()).collect();
    let global = globals.loader().global()?;
    let same_place = from.connection == to.connection;
    let datastores = Datastores::of([from.clone(), to.clone()]);
    let pipeline = Pipeline::from_parts(model.clone(), datastores, global);
    let (read, put) = tables(pipeline.config())?;
    if same_place && read == put {
        return Err(same_table(&read));
    }
    if let Some(file) = &args.save {
        let saved = model.save(&[&from, &to]);
        write_new(file, &saved.yaml, globals)?;
        globals.note(&format!(
            "{} was written; from now on: synctool run {0}",
            file.display()
        ));
        for variable in &saved.variables {
            globals.note(&format!(
                "it reads the password from the environment: export {variable}=…"
            ));
        }
    }
    let options = run::options(None, args.doing.full_mode, args.doing.verify, globals);
    Box::pin(run::go(&pipeline, options, &args.doing, globals, interrupt)).await
}

/// Both ends of a copy, under different names.
pub(super) fn ends(source: &str, destination: &str) -> Result<(Datastore, Datastore)> {
    let end = |uri: &str, which: &'static str| {
        let mut datastore = Datastore::from_uri(uri).map_err(|e| Error::from(e).at("argument", which))?;
        // The same file by any spelling and from any folder is the same end.
        if let Connection::Sqlite { path }
        | Connection::Csv { path, .. }
        | Connection::Parquet { path }
        | Connection::DuckDb { path, .. } = &mut datastore.connection
            && let Ok(absolute) = std::path::absolute(&**path)
        {
            *path = absolute.into();
        }
        Ok::<_, Error>(datastore)
    };
    let (mut from, mut to) = (end(source, "SRC_URI")?, end(destination, "DST_URI")?);
    if from.name == to.name && from.connection != to.connection {
        from.name.push_str("_source");
        to.name.push_str("_destination");
    }
    Ok((from, to))
}

/// The table to write: the one named, else that of a file which is one table, else the name of the source's. A schema
/// goes along only between engines that mean the same by it.
pub(super) fn destination_table(named: Option<String>, from: &Datastore, read: &str, to: &Datastore) -> String {
    let of_file = match &to.connection {
        Connection::Csv { path, .. } | Connection::Parquet { path } if path.extension().is_some() => {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned())
        }
        _ => None,
    };
    let is_mysql = |end: &Datastore| matches!(end.connection, Connection::Mysql(_));
    let same_schemas = from.connection.has_schemas() == to.connection.has_schemas() && is_mysql(from) == is_mysql(to);
    let bare = || match TableRef::parse(read) {
        Ok(table) if from.connection.has_schemas() && !same_schemas => table.name,
        _ => read.to_owned(),
    };
    named.or(of_file).unwrap_or_else(bare)
}

/// The mistake of naming one table as both ends.
pub(super) fn same_table(table: &TableId) -> Error {
    Error::new(code::CONFIG_INVALID, "source and destination are the same table")
        .at("table", table.to_string())
        .hint("name another table or datastore")
}

/// A pipeline for a copy. Its name is the same for the same ends and tables, so that a second call resumes the first.
pub(super) fn model(from: &Datastore, read: &str, to: &Datastore, written: &str) -> Model {
    let identity = format!("{} {read} {} {written}", from.display_uri(), to.display_uri());
    let word = |text: &str| -> String {
        text.chars()
            .map(|c| if c.is_alphanumeric() { c } else { '_' })
            .collect()
    };
    let name = format!("copy_{}_to_{}_{}", word(read), word(&to.name), short_hash(&identity));
    Model::copy(&name, (&from.name, read), (&to.name, written))
}

/// Writes a file that must not be there yet, unless it is meant.
pub(super) fn write_new(file: &Path, text: &str, globals: &Globals) -> Result<()> {
    let failed = |e: std::io::Error| {
        Error::new(code::FILE, format!("{} cannot be written: {e}", file.display()))
            .hint("name a file in a folder that you may write to")
    };
    if std::fs::read_to_string(file).is_ok_and(|there| there == text) {
        return Ok(());
    }
    if file.exists() {
        globals.confirm(&format!("{} exists and would be replaced.", file.display()))?;
    }
    if let Some(folder) = file.parent().filter(|f| !f.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    std::fs::write(file, text).map_err(failed)
}
