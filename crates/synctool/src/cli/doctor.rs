//! `synctool doctor`: every prerequisite, privilege and setting, each with its fix.

use super::args::{DoctorArgs, Globals};
use super::find;
use super::out::{self, Reply};
use crate::config::{Datastore, Loaded};
use crate::open;
use crate::pipeline::log::LogPipeline;
use crate::pipeline::{Pipeline, tables};
use serde_json::{Value, json};
use std::path::Path;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

/// A finding and where it was made.
pub(super) struct Found {
    pub(super) place: String,
    pub(super) finding: Finding,
}

/// `synctool doctor`.
pub(super) async fn doctor(args: DoctorArgs, globals: &Globals) -> Result<Reply> {
    let mut found = Vec::new();
    match args.what.or(args.config) {
        Some(what) if is_uri(&what) => datastore(&Datastore::from_uri(&what)?, &mut found).await,
        Some(what) => pipeline(&find::by_text(Path::new(&what), globals)?, &mut found).await,
        None => {
            for entry in globals.loader().pipelines_in(Path::new("."))? {
                match entry.loaded {
                    Ok(loaded) => pipeline(&Pipeline::from_loaded(loaded), &mut found).await,
                    Err(errors) => found.push(failed(
                        "configuration",
                        &entry.file.display().to_string(),
                        &errors.into(),
                    )),
                }
            }
            if found.is_empty() {
                return Err(Error::new(code::CONFIG_INVALID, "there is no pipeline in this folder")
                    .hint("name a pipeline's file or a connection URI"));
            }
        }
    }
    Ok(report(&found))
}

fn is_uri(text: &str) -> bool {
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    scheme.is_some_and(|s| s.len() > 1 && s.chars().all(|c| c.is_ascii_alphanumeric()))
}

pub(super) fn failed(what: &str, place: &str, error: &Error) -> Found {
    let mut says = error.message().to_owned();
    let context: Vec<String> = error.context().iter().map(|(k, v)| format!("{k} {v}")).collect();
    if !context.is_empty() {
        says.push_str(&format!(" ({})", context.join(", ")));
    }
    Found {
        place: place.into(),
        finding: Finding::new(
            what,
            false,
            format!("{says} [{}]", error.code().id),
            error.next_step().unwrap_or_default(),
        ),
    }
}

pub(super) fn good(what: &str, place: &str, says: String) -> Found {
    Found {
        place: place.into(),
        finding: Finding::good(what, says),
    }
}

async fn pipeline(pipeline: &Pipeline, found: &mut Vec<Found>) {
    let loaded = pipeline.config();
    let name = pipeline.name();
    found.push(good(
        "configuration",
        name,
        format!("{} is well-formed", loaded.file.display()),
    ));
    match open::memory(&loaded.global, &loaded.datastores).await {
        Ok(memory) => match memory.store.holder(name).await {
            Ok(None) => found.push(good(
                "state store",
                name,
                format!("{} is writable", memory.store.place()),
            )),
            Ok(Some(holder)) => found.push(good("state store", name, format!("the pipeline is running: {holder}"))),
            Err(error) => found.push(failed("state store", name, &error)),
        },
        Err(error) => found.push(failed("state store", name, &error)),
    }
    if loaded.pipeline.log().is_some() {
        return log_pipeline(pipeline, found).await;
    }
    let ends = tables(loaded).and_then(|tables| Ok((loaded.source()?, loaded.destination()?, tables)));
    let (from, to, (read, written)) = match ends {
        Ok(ends) => ends,
        Err(error) => return found.push(failed("datastores", name, &error)),
    };
    let place = format!("source {}", from.name);
    match open::source(from, 1).await {
        Err(error) => found.push(failed("connection", &place, &error)),
        Ok(source) => {
            let described = source.describe(&read).await;
            let examined = source.examine(std::slice::from_ref(&read)).await;
            connected(found, &place, from, &examined);
            match described {
                Ok(schema) => found.push(good(
                    "table",
                    &place,
                    format!(
                        "{read} has {} columns, {}",
                        schema.columns.len(),
                        key_words(&schema.key)
                    ),
                )),
                Err(error) => found.push(failed("table", &place, &error)),
            }
            add(found, &place, examined);
        }
    }
    destination(loaded, to, &[written], found).await;
    planned(pipeline, found).await;
}

/// The destination, and the tables that are written there.
async fn destination(loaded: &Loaded, to: &Datastore, tables: &[TableId], found: &mut Vec<Found>) {
    let place = format!("destination {}", to.name);
    let control = loaded.pipeline.destination.control_schema.as_deref();
    match open::destination(to, control.map(String::as_str), 1).await {
        Err(error) => found.push(failed("connection", &place, &error)),
        Ok(destination) => {
            let examined = destination.examine(tables).await;
            connected(found, &place, to, &examined);
            add(found, &place, examined);
        }
    }
}

/// The last word has the planner: it knows every pairing of types.
async fn planned(pipeline: &Pipeline, found: &mut Vec<Found>) {
    let name = pipeline.name();
    if found.iter().all(|f| f.finding.ok) {
        match pipeline.plan(&Default::default()).await {
            Ok(preview) => found.push(good(
                "plan",
                name,
                out::count(preview.plan.partitions().count(), "partition"),
            )),
            Err(error) => found.push(failed("plan", name, &error)),
        }
    }
}

/// A pipeline that follows a log: the server's log and slot, the tables' identities, rights, and both ends.
async fn log_pipeline(pipeline: &Pipeline, found: &mut Vec<Found>) {
    let (loaded, name) = (pipeline.config(), pipeline.name());
    let ends = || Ok::<_, Error>((loaded.source()?, loaded.destination()?));
    let (from, to) = match ends() {
        Ok(ends) => ends,
        Err(error) => return found.push(failed("datastores", name, &error)),
    };
    let place = format!("source {}", from.name);
    let log = async {
        let following = LogPipeline::of(pipeline)?;
        Ok::<_, Error>((following.source()?, following.tables()?))
    };
    match log.await {
        Err(error) => found.push(failed("connection", &place, &error)),
        Ok((log, tables)) => {
            let examined = log.examine(&tables).await;
            let reached = examined.iter().all(|f| f.what != "connection");
            if reached {
                found.push(good("connection", &place, from.display_uri()));
            }
            add(found, &place, examined);
        }
    }
    destination(loaded, to, &[], found).await;
    if found.iter().all(|f| f.finding.ok) {
        match LogPipeline::of(pipeline) {
            Ok(following) => match following.report().await.map(|report| report.refused) {
                Ok(None) => {}
                Ok(Some(error)) | Err(error) => found.push(failed("position", name, &error)),
            },
            Err(error) => found.push(failed("position", name, &error)),
        }
    }
    planned(pipeline, found).await;
}

fn key_words(key: &[String]) -> String {
    match key {
        [] => "no key".into(),
        key => format!("key {}", key.join(", ")),
    }
}

async fn datastore(datastore: &Datastore, found: &mut Vec<Found>) {
    let place = datastore.name.clone();
    match open::source(datastore, 1).await {
        Err(error) => return found.push(failed("connection", &place, &error)),
        Ok(source) => {
            let tables = source.tables(None).await;
            let examined = source.examine(&[]).await;
            connected(found, &place, datastore, &examined);
            match tables {
                Ok(tables) => found.push(good(
                    "tables",
                    &place,
                    format!("{} may be read", out::count(tables.len(), "table")),
                )),
                Err(error) => found.push(failed("tables", &place, &error)),
            }
            add(found, &format!("{place} as source"), examined);
        }
    }
    match open::destination(datastore, None, 1).await {
        Ok(destination) => add(
            found,
            &format!("{place} as destination"),
            destination.examine(&[]).await,
        ),
        Err(error) => found.push(failed("destination", &place, &error)),
    }
}

/// Says that an end is there. Opening one connects to nothing yet: what was looked at tells whether anybody answers.
fn connected(found: &mut Vec<Found>, place: &str, end: &Datastore, examined: &[Finding]) {
    if examined.iter().all(|f| f.ok || f.what != "connection") {
        found.push(good("connection", place, end.display_uri()));
    }
}

fn add(found: &mut Vec<Found>, place: &str, findings: Vec<Finding>) {
    for finding in findings {
        found.push(Found {
            place: place.to_owned(),
            finding,
        });
    }
}

pub(super) fn report(found: &[Found]) -> Reply {
    let bad = found.iter().filter(|f| !f.finding.ok).count();
    let json: Vec<Value> = found
        .iter()
        .map(|f| {
            json!({
                "where": f.place, "what": f.finding.what, "ok": f.finding.ok,
                "found": f.finding.found, "fix": f.finding.fix,
            })
        })
        .collect();
    let rows = found
        .iter()
        .map(|f| {
            vec![
                if f.finding.ok { "ok" } else { "FAIL" }.into(),
                f.place.clone(),
                f.finding.what.clone(),
                f.finding.found.clone(),
            ]
        })
        .collect();
    let mut text = out::table(&["", "where", "what", "found"], rows);
    // What is well and has a fix all the same could be better.
    let sections = [("to do", false), ("could be better", true)];
    for (title, ok) in sections {
        let of_section = |f: &&Found| f.finding.ok == ok && !(ok && f.finding.fix.is_empty());
        let mut listed = found.iter().filter(of_section).peekable();
        if listed.peek().is_some() {
            text.push_str(&format!("\n{title}\n"));
        }
        for f in listed {
            text.push_str(&format!("  {} ({})\n", f.finding.what, f.place));
            let fix = match f.finding.fix.is_empty() {
                true => &f.finding.found,
                false => &f.finding.fix,
            };
            text.extend(fix.lines().map(|line| format!("    {line}\n")));
        }
    }
    text.push_str(&match bad {
        0 => format!("\nall {} passed\n", out::count(found.len(), "check")),
        n => format!("\n{n} of {} failed\n", out::count(found.len(), "check")),
    });
    let json = json!({ "ok": bad == 0, "checks": found.len(), "failed": bad, "findings": json });
    Reply::new(json, text).exit(u8::from(bad > 0))
}
