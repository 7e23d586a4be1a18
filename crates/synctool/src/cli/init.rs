//! `synctool init`: a pipeline and its datastores, from the live catalog.

use super::args::{Globals, InitArgs};
use super::copy::{destination_table, ends, model, same_table, write_new};
use super::out::Reply;
use crate::config::{Datastore, TableRef};
use crate::open;
use crate::pipeline::table_id;
use serde_json::json;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{ColumnType, TableSchema};

/// `synctool init`.
pub(super) async fn init(args: InitArgs, globals: &Globals) -> Result<Reply> {
    let (from, to) = ends(&args.source, &args.destination)?;
    let written = &destination_table(args.destination_table, &from, &args.source_table, &to);
    let parse = |text: &str, datastore: &Datastore| match datastore.connection.has_schemas() {
        true => TableRef::parse(text)
            .map_err(|why| Error::new(code::CONFIG_INVALID, why).hint("name it as TABLE or SCHEMA.TABLE")),
        false => Ok(TableRef {
            schema: None,
            name: text.into(),
        }),
    };
    let table = table_id(parse(&args.source_table, &from)?, &from);
    if from.connection == to.connection && table_id(parse(written, &to)?, &to) == table {
        return Err(same_table(&table));
    }
    let schema = open::source(&from, 1).await?.describe(&table).await?;
    // Whether the destination can be reached is worth knowing before anything is written.
    open::destination(&to, None, 1).await?;

    let name = file_word(&table.name);
    let saved = model(&from, &args.source_table, &to, written).save(&[&from, &to]);
    let datastores = datastores_file(&saved.yaml, &saved.variables);
    let pipeline = pipeline_file(&name, (&from, &args.source_table), (&to, written), &schema);
    let datastores_path = args.dir.join("datastores.yaml");
    let pipeline_path = args.dir.join(format!("{name}.yaml"));
    write_new(&datastores_path, &datastores, globals)?;
    write_new(&pipeline_path, &pipeline, globals)?;
    // What was written must be readable; a mistake here is ours.
    if saved.variables.is_empty() {
        globals.loader().pipeline(&pipeline_path)?;
    }

    let mut text = format!(
        "wrote {}\nwrote {}\n\nnext:\n",
        datastores_path.display(),
        pipeline_path.display()
    );
    for variable in &saved.variables {
        text.push_str(&format!("  export {variable}=…\n"));
    }
    text.push_str(&format!(
        "  synctool doctor {0}\n  synctool plan {0}\n  synctool run {0}\n",
        pipeline_path.display()
    ));
    let json = json!({
        "pipeline": name, "files": [datastores_path, pipeline_path], "variables": saved.variables,
        "columns": schema.columns.iter().map(|c| &c.name).collect::<Vec<_>>(), "key": schema.key,
    });
    Ok(Reply::new(json, text))
}

/// A name that is fit for a file and a pipeline.
fn file_word(name: &str) -> String {
    let word: String = name
        .chars()
        .map(|c| {
            if c.is_alphanumeric() || "_-".contains(c) {
                c
            } else {
                '_'
            }
        })
        .collect();
    match word.trim_matches('_').is_empty() {
        true => "pipeline".into(),
        false => word,
    }
}

/// The datastores of a saved pipeline as a file of their own.
fn datastores_file(saved: &str, variables: &[String]) -> String {
    let at = saved.find("datastores:\n").unwrap_or(0);
    let mut text = String::from("# Connections by name. synctool conns test tries them.\n");
    for variable in variables {
        text.push_str(&format!(
            "# The password is read from the environment: export {variable}=…\n"
        ));
    }
    text + &saved[at..]
}

/// Text as a YAML value.
fn quoted(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"].contains(&text.to_ascii_lowercase().as_str());
    match plain {
        true => text.to_owned(),
        // JSON strings are YAML; a variable in a name is not meant.
        false => serde_json::Value::from(text.replace("${", "$${")).to_string(),
    }
}

fn pipeline_file(name: &str, from: (&Datastore, &str), to: (&Datastore, &str), schema: &TableSchema) -> String {
    let mut text = format!(
        "# What a run would do: synctool plan {name}.yaml\nname: {}\nsource:\n  datastore: {}\n  table: {}\ndestination:\n  datastore: {}\n  table: {}\n",
        quoted(name),
        quoted(&from.0.name),
        quoted(from.1),
        quoted(&to.0.name),
        quoted(to.1)
    );
    text.push_str("# `columns: all` would take every column, also those added later.\ncolumns:\n");
    for column in &schema.columns {
        let native = column.source_type.clone().unwrap_or_else(|| column.ty.to_string());
        let null = if column.nullable { "" } else { ", not null" };
        text.push_str(&format!(
            "  - {}  # {}{null}\n",
            quoted(&column.name),
            native.replace(['\n', '\r'], " ")
        ));
    }
    match schema.key.is_empty() {
        true => text.push_str(
            "# The source has no primary key. Name the columns that identify a row, if there are any:\n# key: [id]\n",
        ),
        false => {
            let key: Vec<String> = schema.key.iter().map(|k| quoted(k)).collect();
            text.push_str(&format!("key: [{}]\n", key.join(", ")));
        }
    }
    text.push_str("strategies:\n  - {name: full, type: full}\n");
    if !schema.key.is_empty() {
        text.push_str("  # Only what differs, deletes too, found by hashes computed inside both databases:\n  # - {name: hash, type: hash}\n");
        let stamps = schema
            .columns
            .iter()
            .filter(|c| matches!(c.ty, ColumnType::Timestamp | ColumnType::TimestampTz));
        for stamp in stamps {
            text.push_str(&format!(
                "  # What changed since the last run, if the database stamps the column with every change:\n  # - {{name: delta, type: delta, column: {}}}\n",
                quoted(&stamp.name)
            ));
        }
    }
    text
}
