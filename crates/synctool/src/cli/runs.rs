//! `synctool runs …`.

use super::args::{Globals, RunsCommand};
use super::out::{self, Reply};
use crate::config::Datastores;
use crate::config::error::nearest;
use crate::open::{self, Memory};
use crate::state::documents::{self, MetricsDocument};
use crate::state::{LogReader, Run, rfc3339};
use serde_json::{Value, json};
use std::path::Path;
use synctool_core::error::{Error, Result, code};

/// `synctool runs …`.
pub(super) async fn runs(command: RunsCommand, globals: &Globals) -> Result<Reply> {
    match command {
        RunsCommand::List { pipeline, limit } => list(pipeline, limit, globals).await,
        RunsCommand::Show { run_id } => {
            let memory = memory(globals).await?;
            let run = find(memory.as_ref(), &run_id).await?;
            show(&memory, &run).await
        }
        RunsCommand::Logs { run_id } => {
            let memory = memory(globals).await?;
            let run = find(memory.as_ref(), &run_id).await?;
            logs(&memory, &run)
        }
    }
}

/// The program's memory, if it has any.
pub(super) async fn memory(globals: &Globals) -> Result<Option<Memory>> {
    let loader = globals.loader();
    let global = loader.global()?;
    let datastores = loader
        .datastores_in(Path::new(""))
        .unwrap_or_else(|_| Datastores::of([]));
    open::memory_if_any(&global, &datastores).await
}

/// An error for a pipeline that nothing is remembered of, with what is.
pub(super) async fn unknown_pipeline(memory: Option<&Memory>, name: &str) -> Error {
    let known = match memory {
        Some(memory) => memory.store.pipelines().await.unwrap_or_default(),
        None => Vec::new(),
    };
    let error = Error::new(code::RUN_UNKNOWN, format!("nothing is remembered of a pipeline {name}"));
    match (nearest(name, known.iter().map(String::as_str)), known.is_empty()) {
        (Some(meant), _) => error.hint(format!("did you mean {meant}?")),
        (None, false) => error.hint(format!("remembered are: {}", known.join(", "))),
        (None, true) => error.hint("no pipeline has run with this data directory; --data-dir names another"),
    }
}

/// The pipeline's name behind an argument that may be its file.
pub(super) fn name_of(said: &str, globals: &Globals) -> Result<String> {
    match Path::new(said).is_file() {
        true => Ok(super::find::by_text(Path::new(said), globals)?.name().to_owned()),
        false => Ok(said.to_owned()),
    }
}

async fn list(pipeline: Option<String>, limit: u32, globals: &Globals) -> Result<Reply> {
    let pipeline = pipeline.map(|said| name_of(&said, globals)).transpose()?;
    let memory = memory(globals).await?;
    let runs = match &memory {
        Some(memory) => memory.store.runs(pipeline.as_deref(), limit as usize).await?,
        None => Vec::new(),
    };
    if runs.is_empty() {
        if let Some(name) = pipeline {
            return Err(unknown_pipeline(memory.as_ref(), &name).await);
        }
        return Ok(Reply::new(json!([]), "no pipeline has run yet\n"));
    }
    let rows = runs
        .iter()
        .map(|r| {
            vec![
                r.run_id.clone(),
                r.pipeline.clone(),
                r.strategy.clone(),
                r.status.to_string(),
                rfc3339(&r.started_at),
                out::duration(r.seconds()),
                out::number(r.rows.processed),
                out::number(r.rows.inserted),
                out::number(r.rows.updated),
                out::number(r.rows.deleted),
            ]
        })
        .collect();
    let head = [
        "run", "pipeline", "strategy", "status", "started", "took", "read", "inserted", "updated", "deleted",
    ];
    let items = documents::history(&runs);
    let json = serde_json::to_value(items).map_err(|e| Error::bug(format!("runs as JSON: {e}")))?;
    Ok(Reply::new(json, out::table(&head, rows)))
}

async fn find(memory: Option<&Memory>, run_id: &str) -> Result<Run> {
    let Some(memory) = memory else {
        return Err(Error::new(code::RUN_UNKNOWN, format!("there is no run {run_id}"))
            .hint("no pipeline has run with this data directory; --data-dir names another"));
    };
    if run_id == "latest" {
        let newest = memory.store.runs(None, 1).await?.into_iter().next();
        return newest.ok_or_else(|| {
            Error::new(code::RUN_UNKNOWN, "no pipeline has run yet").hint("run one: synctool run orders.yaml")
        });
    }
    memory.store.run(run_id).await.map_err(|e| e.hint("synctool runs list"))
}

async fn show(memory: &Option<Memory>, run: &Run) -> Result<Reply> {
    let partitions = match memory {
        Some(memory) => memory.store.partitions(&run.run_id).await?,
        None => Vec::new(),
    };
    let document = MetricsDocument::new(run, &partitions, None);
    let mut json = serde_json::to_value(&document).map_err(|e| Error::bug(format!("a run as JSON: {e}")))?;
    json["partitions"] = serde_json::to_value(&partitions).unwrap_or(Value::Null);
    json["reasons"] = json!(run.reasons);
    json["ledger"] = json!(run.ledger);
    json["verified"] = json!(run.verified);
    let n = out::number;
    let mut text = format!(
        "run {} of {}: {} (strategy {}, {} to {}, {})\n",
        run.run_id,
        run.pipeline,
        run.status,
        run.strategy,
        rfc3339(&run.started_at),
        run.completed_at.as_ref().map_or_else(|| "-".into(), rfc3339),
        out::duration(run.seconds()),
    );
    if let Some(from) = run.resumed_from.as_ref().filter(|from| **from != run.run_id) {
        text.push_str(&format!("took up run {from}\n"));
    }
    if let Some(error) = &run.error {
        text.push_str(&format!("{} [{}]\n", error.message, error.code));
        if let Some(hint) = &error.hint {
            text.push_str(&format!("  next: {hint}\n"));
        }
    }
    text.push_str(&format!(
        "read {}, inserted {}, updated {}, deleted {}, unchanged {}, rejected {}; {} tried again\n",
        n(run.rows.processed),
        n(run.rows.inserted),
        n(run.rows.updated),
        n(run.rows.deleted),
        n(run.rows.unchanged),
        n(run.rows.rejected),
        run.retries
    ));
    for reason in &run.reasons {
        text.push_str(&format!("  {reason}\n"));
    }
    text.push('\n');
    let rows = document
        .partition_times
        .iter()
        .zip(&partitions)
        .map(|(_, p)| {
            let status = serde_json::to_value(p)
                .ok()
                .and_then(|v| v["status"].as_str().map(str::to_owned));
            vec![
                p.id.clone(),
                status.unwrap_or_default(),
                n(p.rows),
                n(p.bytes),
                out::duration(p.seconds),
            ]
        })
        .collect();
    text.push_str(&out::table(&["partition", "status", "rows", "bytes", "took"], rows));
    text.push_str(&format!("\nits log: synctool runs logs {}\n", run.run_id));
    Ok(Reply::new(json, text))
}

fn logs(memory: &Option<Memory>, run: &Run) -> Result<Reply> {
    let lines = match memory {
        Some(memory) => LogReader::new(memory.outputs.log_file(&run.pipeline, &run.run_id)).lines()?,
        None => Vec::new(),
    };
    if lines.is_empty() {
        return Err(
            Error::new(code::RUN_UNKNOWN, format!("the log of run {} is gone", run.run_id))
                .hint(format!("what is still known of it: synctool runs show {}", run.run_id)),
        );
    }
    let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    Ok(Reply::new(serde_json::to_value(&lines).unwrap_or(Value::Null), text))
}
