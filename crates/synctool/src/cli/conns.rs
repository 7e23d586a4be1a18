//! `synctool conns …`.

use super::args::{ConnsCommand, Globals};
use super::out::{self, Reply};
use crate::config::{At, Datastore, Datastores, TableRef};
use crate::open;
use crate::pipeline::table_id;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;
use synctool_core::error::{Error, Result, code};

/// `synctool conns …`.
pub(super) async fn conns(command: ConnsCommand, globals: &Globals) -> Result<Reply> {
    match command {
        ConnsCommand::List => list(globals),
        ConnsCommand::Test { which } => test(&which, globals).await,
        ConnsCommand::Discover {
            datastore,
            table,
            schema,
        } => {
            let datastore = one(&datastore, globals)?;
            match table {
                Some(table) => columns(&datastore, &table).await,
                None => tables(&datastore, schema.as_deref()).await,
            }
        }
    }
}

fn configured(globals: &Globals) -> Result<Datastores> {
    Ok(globals.loader().datastores_in(Path::new(""))?)
}

/// A datastore by name or URI.
fn one(text: &str, globals: &Globals) -> Result<Datastore> {
    if text.contains(':') || Datastore::from_uri(text).is_ok() {
        return Ok(Datastore::from_uri(text)?);
    }
    Ok(configured(globals)?.get(&At::from(text))?.clone())
}

fn list(globals: &Globals) -> Result<Reply> {
    let datastores = configured(globals)?;
    let Some(found) = datastores.found_in() else {
        return Err(Error::new(code::CONFIG_INVALID, "no datastores file was found")
            .hint("name one with --datastores, or write one with synctool init"));
    };
    let mut rows = Vec::new();
    let mut items = Vec::new();
    for datastore in datastores.iter() {
        let kind = datastore.connection.type_name();
        let description = datastore
            .description
            .as_ref()
            .map_or_else(String::new, |d| d.to_string());
        rows.push(vec![
            datastore.name.clone(),
            kind.into(),
            datastore.display_uri(),
            description.clone(),
        ]);
        items.push(json!({
            "name": datastore.name, "type": kind, "uri": datastore.display_uri(),
            "description": description, "tags": datastore.tags, "file": found.path,
        }));
    }
    let text = out::table(&["name", "type", "connection", "description"], rows);
    Ok(Reply::new(
        items.into(),
        format!("{text}\nfrom {} ({})\n", found.path.display(), found.rule),
    ))
}

async fn test(names: &[String], globals: &Globals) -> Result<Reply> {
    let datastores: Vec<Datastore> = match names {
        [] => configured(globals)?.iter().cloned().collect(),
        names => names.iter().map(|n| one(n, globals)).collect::<Result<_>>()?,
    };
    if datastores.is_empty() {
        return Err(Error::new(code::CONFIG_INVALID, "no datastore is configured")
            .hint("name a connection URI, or a file with --datastores"));
    }
    let mut rows = Vec::new();
    let mut items = Vec::new();
    let mut worst = 0;
    for datastore in &datastores {
        let began = Instant::now();
        let opened = async { open::source(datastore, 1).await?.tables(None).await }.await;
        let took = began.elapsed().as_secs_f64();
        let mut item =
            json!({ "name": datastore.name, "uri": datastore.display_uri(), "ok": opened.is_ok(), "seconds": took });
        let says = match opened {
            Ok(tables) => {
                item["tables"] = tables.len().into();
                out::count(tables.len(), "table")
            }
            Err(error) => {
                out::print_error(
                    &Error::new(error.code(), error.message().to_owned())
                        .at("datastore", &datastore.name)
                        .hint(error.next_step().unwrap_or("synctool doctor").to_owned()),
                );
                item["error"] = out::error_json(&error);
                worst = error.kind().exit_code();
                error.code().id.to_owned()
            }
        };
        let ok = if item["ok"] == Value::Bool(true) { "ok" } else { "FAIL" };
        rows.push(vec![
            ok.into(),
            datastore.name.clone(),
            datastore.display_uri(),
            out::duration(took),
            says,
        ]);
        items.push(item);
    }
    let text = out::table(&["", "name", "connection", "took", "found"], rows);
    Ok(Reply::new(items.into(), text).exit(worst))
}

async fn tables(datastore: &Datastore, schema: Option<&str>) -> Result<Reply> {
    let tables = open::source(datastore, 1).await?.tables(schema).await?;
    let unknown = |n: Option<u64>| n.map_or_else(|| "-".into(), out::number);
    let rows = tables
        .iter()
        .map(|t| vec![t.table.to_string(), t.kind.clone(), unknown(t.rows), unknown(t.bytes)])
        .collect();
    let items: Vec<Value> = tables
        .iter()
        .map(|t| json!({ "table": t.table.to_string(), "schema": t.table.schema, "name": t.table.name, "kind": t.kind, "rows": t.rows, "bytes": t.bytes }))
        .collect();
    let text = match tables.is_empty() {
        true => "no table may be read here\n".into(),
        false => out::table(&["table", "kind", "rows", "bytes"], rows),
    };
    Ok(Reply::new(items.into(), text))
}

async fn columns(datastore: &Datastore, table: &str) -> Result<Reply> {
    let table = match datastore.connection.has_schemas() {
        true => TableRef::parse(table)
            .map_err(|why| Error::new(code::CONFIG_INVALID, why).hint("name it as TABLE or SCHEMA.TABLE"))?,
        false => TableRef {
            schema: None,
            name: table.into(),
        },
    };
    let schema = open::source(datastore, 1)
        .await?
        .describe(&table_id(table, datastore))
        .await?;
    let mut rows = Vec::new();
    let mut items = Vec::new();
    for column in &schema.columns {
        let native = column.source_type.clone().unwrap_or_else(|| column.ty.to_string());
        let key = schema.key.contains(&column.name);
        let mut flags = Vec::new();
        for (flag, on) in [
            ("key", key),
            ("not null", !column.nullable),
            ("generated", column.generated),
            ("identity", column.identity),
        ] {
            if on {
                flags.push(flag);
            }
        }
        rows.push(vec![
            column.name.clone(),
            native.clone(),
            column.ty.to_string(),
            flags.join(", "),
        ]);
        items.push(json!({
            "name": column.name, "type": native, "logical_type": column.ty.to_string(), "nullable": column.nullable,
            "key": key, "generated": column.generated, "identity": column.identity,
        }));
    }
    Ok(Reply::new(
        items.into(),
        out::table(&["column", "type", "read as", ""], rows),
    ))
}
