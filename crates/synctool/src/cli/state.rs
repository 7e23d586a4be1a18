//! `synctool state …`.

use super::args::{Globals, StateCommand};
use super::out::{self, Reply};
use super::{find, runs};
use crate::pipeline::log::LogPipeline;
use crate::state::{self, Retention, StateDocument, rfc3339};
use serde_json::{Value, json};
use std::path::Path;
use synctool_core::error::{Error, Result, code};

/// `synctool state …`.
pub(super) async fn state(command: StateCommand, globals: &Globals) -> Result<Reply> {
    match command {
        StateCommand::Show { pipeline, strategy } => show(pipeline, strategy, globals).await,
        StateCommand::Reset { pipeline, strategy } => reset(&pipeline, strategy.as_deref(), globals).await,
        StateCommand::Cleanup { days } => cleanup(days, globals).await,
    }
}

async fn show(pipeline: Option<String>, strategy: Option<String>, globals: &Globals) -> Result<Reply> {
    let memory = runs::memory(globals).await?;
    let (names, all) = match pipeline {
        Some(said) => (vec![runs::name_of(&said, globals)?], false),
        None => match &memory {
            Some(memory) => (memory.store.pipelines().await?, true),
            None => (Vec::new(), true),
        },
    };
    let mut documents = Vec::new();
    for name in &names {
        let known = match &memory {
            Some(memory) => memory.store.state(name).await?,
            None => None,
        };
        match known {
            Some(known) => documents.push(StateDocument::new(&known)),
            None if all => {}
            None => return Err(runs::unknown_pipeline(memory.as_ref(), name).await),
        }
    }
    if documents.is_empty() {
        return Ok(Reply::new(
            json!([]),
            "nothing is remembered: no pipeline has run yet\n",
        ));
    }
    let mut rows = Vec::new();
    for document in &mut documents {
        if let Some(wanted) = &strategy {
            let known: Vec<String> = document.strategies.keys().cloned().collect();
            document.strategies.retain(|name, _| name == wanted);
            if document.strategies.is_empty() {
                return Err(Error::new(
                    synctool_core::error::code::RUN_UNKNOWN,
                    format!("strategy {wanted} of {} has not run", document.pipeline_id),
                )
                .hint(format!("these have: {}", known.join(", "))));
            }
        }
        for (name, s) in &document.strategies {
            rows.push(vec![
                document.pipeline_id.clone(),
                name.clone(),
                s.status.to_string(),
                rfc3339(&s.last_run),
                s.run_id.clone(),
                s.message.lines().next().unwrap_or_default().to_owned(),
            ]);
        }
    }
    let mut json = serde_json::to_value(&documents).map_err(|e| Error::bug(format!("state as JSON: {e}")))?;
    if let (false, Value::Array(items)) = (all, &mut json) {
        json = items.remove(0);
    }
    let head = ["pipeline", "strategy", "status", "last run", "run", "says"];
    Ok(Reply::new(json, out::table(&head, rows)))
}

async fn reset(said: &str, strategy: Option<&str>, globals: &Globals) -> Result<Reply> {
    let pipeline = find::by_text(Path::new(said), globals)?;
    if let Some(strategy) = strategy {
        pipeline.config().pipeline.strategy(strategy)?;
    }
    let name = pipeline.name();
    let mut lost = Vec::new();
    match pipeline.stored().await {
        Ok(Some((plan, false, checkpoint))) => lost.push(format!(
            "at the destination: run {} of {}, {} of {} partitions done, {} rows loaded beside the table",
            plan.run_id,
            plan.created_at,
            checkpoint.values().filter(|s| s.done).count(),
            plan.partitions().count(),
            out::number(checkpoint.values().map(|s| s.applied.written).sum()),
        )),
        Ok(Some((plan, true, _))) => lost.push(format!(
            "at the destination: that run {} of {} is finished (nothing is in progress)",
            plan.run_id, plan.created_at
        )),
        Ok(None) => {}
        // What cannot be read is what forgetting is for.
        Err(e) if e.code() == code::STATE_STORE => lost.push(format!("at the destination: {}", e.message())),
        Err(e) => return Err(e),
    }
    let memory = runs::memory(globals).await?;
    if let Some(memory) = &memory
        && let Some(known) = memory.store.state(name).await?
    {
        lost.push(format!(
            "in {}: the state after run {} ({}); the history of runs stays",
            memory.store.place(),
            known.run.run_id,
            known.run.status
        ));
    }
    if lost.is_empty() {
        return Ok(Reply::new(
            json!({ "pipeline": name, "reset": false, "forgotten": [] }),
            format!("{name}: nothing to forget\n"),
        ));
    }
    if !globals.yes {
        out::to_stderr(&format!("{name}: this will be forgotten"));
        lost.iter().for_each(|l| out::to_stderr(&format!("  {l}")));
    }
    globals
        .confirm("The next run starts over. Rows in the destination table stay.")
        .map_err(|e| e.at("pipeline", name))?;
    pipeline.reset(strategy).await?;
    let mut text = format!(
        "{name}: forgotten\n{}",
        lost.iter().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let mut json = json!({ "pipeline": name, "reset": true, "forgotten": lost });
    if let Ok(log) = LogPipeline::of(&pipeline) {
        let statements = log.source()?.removal();
        if !statements.is_empty() {
            text.push_str("what was made at the source stays, and its slot keeps the log; to take it away:\n");
        }
        text.extend(statements.iter().map(|s| format!("  {s};\n")));
        json["removal"] = statements.into();
    }
    Ok(Reply::new(json, text))
}

async fn cleanup(days: u32, globals: &Globals) -> Result<Reply> {
    let Some(memory) = runs::memory(globals).await? else {
        return Ok(Reply::new(
            json!({ "forgotten": 0, "runs": [] }),
            "nothing is remembered: no pipeline has run yet\n",
        ));
    };
    let retention = Retention {
        ended_before: Some(state::now() - chrono::Duration::days(i64::from(days))),
        ..Retention::default()
    };
    let gone = state::cleanup(&*memory.store, &memory.outputs, &retention).await?;
    let ids: Vec<&str> = gone.iter().map(|r| r.run_id.as_str()).collect();
    let text = format!(
        "{} runs that ended more than {days} days ago were forgotten\n",
        gone.len()
    );
    Ok(Reply::new(json!({ "forgotten": gone.len(), "runs": ids }), text))
}
