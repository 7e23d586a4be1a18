//! `synctool run`, and what a copy shares with it.

use super::args::{Doing, Format, FullModeArg, Globals, LogFormat, RunArgs, VerifyArg};
use super::out::{self, Reply};
use super::signals::Interrupt;
use super::{find, live, plan};
use crate::pipeline::{Pipeline, RunOptions, RunReport};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;
use synctool_core::engine::{Observer, PartitionStatus, PartitionView, RunEvent};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Publish, Verify};
use synctool_core::query::Condition;
use synctool_core::strategy::full::FullMode;

/// `synctool run`.
pub(super) async fn run(args: RunArgs, globals: &Globals, interrupt: Interrupt) -> Result<Reply> {
    let pipeline = find::pipeline(&args.pipeline, globals)?;
    let bounds = args.bounds.as_deref().map(bounds).transpose()?.unwrap_or_default();
    let mut options = options(args.strategy, args.doing.full_mode, args.doing.verify, globals);
    options.bounds = bounds;
    options.until_caught_up = args.until_caught_up;
    options.repair = args.repair;
    if args.until_caught_up && pipeline.config().pipeline.log().is_none() {
        return Err(Error::new(
            code::CONFIG_INVALID,
            format!(
                "--until-caught-up is for pipelines that follow a log, and {} does not",
                pipeline.name()
            ),
        )
        .hint("leave it out: such a run ends by itself"));
    }
    Box::pin(go(&pipeline, options, &args.doing, globals, interrupt)).await
}

/// Reads `--bounds` as the original's users know it.
fn bounds(text: &str) -> Result<Vec<Condition>> {
    crate::config::parse_bounds(text).map_err(|why| {
        Error::new(code::CONFIG_INVALID, format!("--bounds {why}"))
            .hint(r#"write for example --bounds '[{"column": "id", "start": 100, "end": 200}]'"#)
    })
}

/// What the command line says about a run.
pub(super) fn options(
    strategy: Option<String>,
    full_mode: Option<FullModeArg>,
    verify: Option<VerifyArg>,
    globals: &Globals,
) -> RunOptions {
    RunOptions {
        strategy,
        full_mode: full_mode.map(|mode| match mode {
            FullModeArg::Auto => FullMode::Auto,
            FullModeArg::Swap => FullMode::Swap,
            FullModeArg::Upsert => FullMode::Upsert,
            FullModeArg::Append => FullMode::Append,
        }),
        verify: verify.map(|verify| match verify {
            VerifyArg::Count => Verify::Count,
            VerifyArg::Hash => Verify::Hash,
            VerifyArg::None => Verify::None,
        }),
        workers: globals.workers.map(|n| n as usize),
        memory: globals.memory,
        ..RunOptions::default()
    }
}

/// Runs a pipeline, or shows what would be done.
pub(super) async fn go(
    pipeline: &Pipeline,
    mut options: RunOptions,
    doing: &Doing,
    globals: &Globals,
    interrupt: Interrupt,
) -> Result<Reply> {
    options.allow_mass_delete = doing.allow_mass_delete;
    options.accept_schema = doing.accept_schema;
    options.restart = doing.restart;
    if doing.dry_run {
        return plan::reply(pipeline, &options, globals).await;
    }
    options.cancel = interrupt.token();
    if globals.output == Format::Ndjson {
        options.observer = Some(Arc::new(Lines));
    } else if pipeline.config().pipeline.log().is_some() {
        options.observer = Some(Arc::new(Troubles(globals.clone())));
    }
    let run = pipeline.start(options).await?;
    for notice in run.notices() {
        globals.note(notice);
    }
    let (run_id, name) = (run.id().to_owned(), run.pipeline().to_owned());
    let mode = live::Mode::fitting(globals.quiet, globals.log_format == LogFormat::Json);
    let view = live::View::begin(&name, run.progress(), run.log(), mode);
    let progress = run.progress();
    let done = run.finish().await.map_err(with_restart);
    view.end().await;
    Ok(match done {
        Ok(report) => Reply::new(summary(&report), text(&report)),
        Err(error) => {
            let partitions = progress.partitions();
            let finished = |p: &&PartitionView| matches!(p.status, PartitionStatus::Done | PartitionStatus::Skipped);
            let done = partitions.iter().filter(finished).count();
            Reply {
                text: match partitions.len() {
                    0 => String::new(),
                    all => format!(
                        "{name}: {done} of {} done (run {run_id})\n",
                        out::count(all, "partition")
                    ),
                },
                json: json!({
                    "type": "summary",
                    "status": out::status_of(&error),
                    "run_id": run_id,
                    "pipeline": name,
                    "partitions": partitions.len(),
                    "partitions_done": done,
                    "error": out::error_json(&error),
                }),
                exit: error.kind().exit_code(),
                error: Some(error),
            }
        }
    })
}

/// A pipeline that changed in mid-run may also start over by a flag, which a copy without a file needs.
fn with_restart(error: Error) -> Error {
    if error.code() != code::CONFIG_CHANGED {
        return error;
    }
    let mut told = Error::new(error.code(), error.message());
    for (key, value) in error.context() {
        told = told.at(key, value);
    }
    told.hint(match error.next_step() {
        Some(next) => format!("{next}, or add --restart"),
        None => "add --restart to start over".into(),
    })
}

/// The summary for programs: flat where a script looks first.
fn summary(report: &RunReport) -> Value {
    let outcome = report.ledger.outcome();
    let seconds = report.duration.as_secs_f64();
    json!({
        "type": "summary",
        "status": "completed",
        "run_id": report.run_id,
        "pipeline": report.pipeline,
        "strategy": report.strategy,
        "source": report.source,
        "destination": report.destination,
        "publish": report.publish,
        "read": report.ledger.accounts.read.rows,
        "read_now": report.rows_now,
        "read_bytes": report.ledger.accounts.read.bytes,
        "inserted": outcome.inserted,
        "updated": outcome.updated,
        "deleted": outcome.deleted,
        "unchanged": outcome.unchanged,
        "compared": report.ledger.accounts.compared,
        "rejected": rejected(report),
        "partitions": report.partitions,
        "skipped": report.skipped,
        "resumed": report.resumed,
        "verified": report.verified,
        "retries": report.retries,
        "duration_seconds": seconds,
        "rows_per_second": rate(report),
        "reasons": report.reasons,
        "notices": report.notices,
        "ledger": report.ledger,
    })
}

fn rejected(report: &RunReport) -> u64 {
    report.ledger.accounts.stages.iter().map(|(_, s)| s.rejected).sum()
}

fn rate(report: &RunReport) -> u64 {
    let seconds = report.duration.as_secs_f64();
    match seconds > 0.0 {
        true => (report.rows_now as f64 / seconds) as u64,
        false => 0,
    }
}

/// What was done, in words.
pub(super) fn publish_words(publish: &Publish) -> &'static str {
    match publish {
        Publish::Direct => "changes applied",
        Publish::Create => "table created",
        Publish::Swap => "table replaced",
        Publish::Merge { delete_missing: true } => "difference applied",
        Publish::Merge { delete_missing: false } => "rows merged",
        Publish::Append => "rows appended",
    }
}

fn text(report: &RunReport) -> String {
    let outcome = report.ledger.outcome();
    let verified = match &report.verified {
        None => "no".to_owned(),
        Some(v) => format!("by {}", verify_word(v.by)),
    };
    let skipped = match report.skipped {
        0 => String::new(),
        n => format!(", {n} finished by an earlier run"),
    };
    let mut text = format!(
        "{}: {} -> {}, {} in {} (run {})\n",
        report.pipeline,
        report.source,
        report.destination,
        publish_words(&report.publish),
        out::duration(report.duration.as_secs_f64()),
        report.run_id,
    );
    let n = out::number;
    text.push_str(&out::card(
        &[
            "read",
            "inserted",
            "updated",
            "deleted",
            "unchanged",
            "rejected",
            "partitions",
            "verified",
            "rows/s",
        ],
        vec![
            n(report.ledger.accounts.read.rows),
            n(outcome.inserted),
            n(outcome.updated),
            n(outcome.deleted),
            n(outcome.unchanged),
            n(rejected(report)),
            format!("{}{skipped}", report.partitions),
            verified,
            n(rate(report)),
        ],
    ));
    let compared = report.ledger.accounts.compared;
    if compared.source + compared.destination > 0 {
        text.push_str(&format!(
            "compared: {} rows with {}; {} differed, {} were missing, {} were too many\n",
            n(compared.source),
            n(compared.destination),
            n(compared.differing),
            n(compared.only_source),
            n(compared.only_destination),
        ));
    }
    if report.retries > 0 {
        text.push_str(&format!(
            "tried again: {}\n",
            out::count(report.retries as usize, "time")
        ));
    }
    text
}

pub(super) fn verify_word(verify: Verify) -> &'static str {
    match verify {
        Verify::Count => "count",
        Verify::Hash => "hash",
        Verify::None => "nothing",
    }
}

/// Says why a log that runs without end does not get on.
struct Troubles(Globals);

impl Observer for Troubles {
    fn event(&self, event: &RunEvent<'_>) {
        if let RunEvent::Retrying { error, delay, .. } = event {
            self.0.note(&format!(
                "{} [{}]; trying again in {}",
                error.message(),
                error.code().id,
                out::duration(delay.as_secs_f64())
            ));
        }
    }
}

/// Events as lines on stdout.
struct Lines;

impl Observer for Lines {
    fn event(&self, event: &RunEvent<'_>) {
        let line = match event {
            RunEvent::Planned { plan, resumed } => json!({
                "type": "planned", "pipeline": plan.pipeline, "run_id": plan.run_id, "resumed": resumed,
                "partitions": plan.partitions().count(), "reasons": plan.reasons,
            }),
            RunEvent::PartitionStarted { partition } => json!({ "type": "partition_started", "partition": partition }),
            RunEvent::Committed { partition, applied } => {
                json!({ "type": "committed", "partition": partition, "rows": applied.written })
            }
            RunEvent::Rejected { partition, rejects } => json!({
                "type": "rejected", "partition": partition, "rows": rejects.len(),
                "reasons": rejects.iter().map(|r| format!("{}: {}", r.stage, r.reason)).collect::<BTreeSet<_>>(),
            }),
            RunEvent::PartitionDone {
                partition,
                rows,
                took,
                skipped,
            } => json!({
                "type": "partition_done", "partition": partition, "rows": rows,
                "seconds": took.as_secs_f64(), "skipped": skipped,
            }),
            RunEvent::Retrying {
                partition,
                error,
                delay,
            } => json!({
                "type": "retrying", "partition": partition, "error": out::error_json(error),
                "delay_seconds": delay.as_secs_f64(),
            }),
            RunEvent::Step(step) => json!({ "type": "step", "step": step }),
            // The summary follows, and says more.
            RunEvent::Finished { .. } => return,
        };
        out::to_stdout(&format!("{line}\n"));
    }
}
