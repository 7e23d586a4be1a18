//! `synctool plan`, and `--dry-run`.

use super::args::{Globals, PlanArgs};
use super::find;
use super::out::{self, Reply};
use super::run::{options, publish_words, verify_word};
use crate::pipeline::log::{LogPreview, LogTable};
use crate::pipeline::{Pipeline, Preview, RunOptions};
use serde_json::{Value, json};
use synctool_connectors::postgres::log::Outlook;
use synctool_connectors::postgres::log::capture::Initial;
use synctool_core::error::Result;
use synctool_core::sink::Fidelity;

/// `synctool plan`.
pub(super) async fn plan(args: PlanArgs, globals: &Globals) -> Result<Reply> {
    let pipeline = find::pipeline(&args.pipeline, globals)?;
    let mut options = options(args.strategy, args.full_mode, args.verify, globals);
    options.restart = args.restart;
    options.repair = args.repair;
    reply(&pipeline, &options, globals).await
}

/// What a run with these options would do.
pub(super) async fn reply(pipeline: &Pipeline, options: &RunOptions, globals: &Globals) -> Result<Reply> {
    let preview = pipeline.plan(options).await?;
    for notice in &preview.notices {
        globals.note(notice);
    }
    let text = match &preview.log {
        Some(log) => log_text(&preview, log, options.repair),
        None => text(&preview),
    };
    Ok(Reply::new(json(&preview), text))
}

struct Row {
    source: String,
    destination: String,
    from: String,
    to: String,
    fidelity: (&'static str, String),
    not_null: bool,
    key: bool,
}

fn columns(preview: &Preview) -> Vec<Row> {
    let Some(table) = preview.plan.tables.first() else {
        return Vec::new();
    };
    let written = &table.schema;
    (written.columns.iter())
        .zip(&preview.columns)
        .map(|(column, stored)| {
            let read = table.read.columns.iter().find(|r| r.column.name == column.name);
            (column, stored, read)
        })
        .map(|(column, stored, read)| Row {
            // What no column of the source is read for is made on the way.
            source: read.map_or_else(|| "(made)".into(), |r| r.term().to_string()),
            destination: column.name.clone(),
            from: read.map_or_else(
                || column.ty.to_string(),
                |r| r.column.source_type.clone().unwrap_or_else(|| r.column.ty.to_string()),
            ),
            to: stored.type_name.clone(),
            fidelity: match &stored.fidelity {
                Fidelity::Exact => ("exact", String::new()),
                Fidelity::Widened(how) => ("widened", how.clone()),
                Fidelity::Normalised(how) => ("normalised", how.clone()),
                Fidelity::Refused(why) => ("refused", why.clone()),
            },
            not_null: !column.nullable,
            key: written.key.contains(&column.name),
        })
        .collect()
}

fn json(preview: &Preview) -> Value {
    let plan = &preview.plan;
    let columns: Vec<Value> = columns(preview)
        .into_iter()
        .map(|c| {
            json!({
                "source": c.source, "destination": c.destination, "source_type": c.from, "stored_type": c.to,
                "fidelity": c.fidelity.0, "note": c.fidelity.1, "nullable": !c.not_null, "key": c.key,
            })
        })
        .collect();
    let partitions: Vec<Value> = plan
        .partitions()
        .map(|p| json!({ "id": p.id, "estimated_rows": p.estimated_rows, "estimated_bytes": p.estimated_bytes }))
        .collect();
    let table = plan.tables.first();
    json!({
        "pipeline": plan.pipeline,
        "strategy": plan.strategy,
        "reasons": plan.reasons,
        "notices": preview.notices,
        "source": table.map(|t| t.read.table.to_string()),
        "destination": table.map(|t| t.destination.to_string()),
        "publish": table.map(|t| &t.publish),
        "raw": table.and_then(|t| t.read.raw.as_ref()).map(|f| f.kind.clone()),
        "verify": plan.verify,
        "guarantee": preview.guarantee,
        "guard": { "max_percent": plan.guard.max_percent, "max_rows": plan.guard.max_rows, "allow": plan.guard.allow },
        "resumes": preview.resumes.as_ref().map(|done| json!({
            "run_id": plan.run_id,
            "created_at": plan.created_at,
            "partitions_done": done.values().filter(|s| s.done).count(),
            "rows_read": done.values().map(|s| s.accounts.read.rows).sum::<u64>(),
        })),
        "partitions": partitions,
        "columns": columns,
        "statements": preview.statements,
        "log": preview.log.as_ref().map(log_json),
    })
}

fn log_json(log: &LogPreview) -> Value {
    let (state, behind, error) = match &log.outlook {
        Outlook::Begins { .. } | Outlook::BeginsNow => ("begins", None, None),
        Outlook::GoesOn { behind } => ("goes_on", Some(*behind), None),
        Outlook::Refused(e) => ("refused", None, Some(out::error_json(e))),
    };
    json!({
        "tables": log.tables, "source_statements": log.source_statements, "tables_changed": log.changed,
        "outlook": state, "behind_bytes": behind, "error": error,
    })
}

/// What is done with the rows that were there before the log.
fn initial_words(table: &LogTable) -> String {
    let rows = table
        .rows
        .map_or_else(String::new, |n| format!(", about {} rows", out::number(n)));
    match table.initial {
        Initial::Load => format!("loaded in chunks{rows}"),
        Initial::Resync => format!("compared and made equal in chunks{rows}"),
        Initial::Skip => "left out".into(),
    }
}

fn log_text(preview: &Preview, log: &LogPreview, repair: bool) -> String {
    let plan = &preview.plan;
    let mut text = format!("{}: {}\n\n", plan.pipeline, out::count(log.tables.len(), "table"));
    let refused = match &log.outlook {
        Outlook::Begins { slot_is_there: true } => {
            text.push_str("the log begins where its slot stands\n");
            None
        }
        Outlook::Begins { slot_is_there: false } => {
            text.push_str("the log begins with a new slot\n");
            None
        }
        Outlook::BeginsNow => {
            text.push_str("the log begins now\n");
            None
        }
        Outlook::GoesOn { behind } => {
            text.push_str(&format!(
                "the log goes on where the destination stands: {} are to be read\n",
                out::bytes(*behind as f64)
            ));
            None
        }
        Outlook::Refused(e) => Some(e),
    };
    if let Some(e) = refused {
        text.push_str(&format!("the log cannot go on: {} [{}]\n", e.message(), e.code().id));
        match repair {
            true => text.push_str(&format!(
                "  --repair: {}, and every table is compared and made equal in chunks, deletes included, while its log \
                 goes on\n",
                match log.has_slot {
                    true => "a new slot is made in place of the old one",
                    false => "the log is followed from now on",
                }
            )),
            false => text.extend(e.next_step().map(|next| format!("  next: {next}\n"))),
        }
    }
    if log.changed {
        text.push_str("the tables changed: those that are new are read beside the log of the others\n");
    }
    text.push_str(&format!("\nstrategy {}\n", plan.strategy));
    for reason in &plan.reasons {
        text.push_str(&format!("  {reason}\n"));
    }
    text.push_str(&format!(
        "  changes applied as they come; {}\n\ntables\n",
        guarantee_words(preview)
    ));
    let rows = log.tables.iter().map(|t| {
        let key = match t.key.is_empty() {
            true => "none".to_owned(),
            false => t.key.join(", "),
        };
        let before = match &log.outlook {
            Outlook::Refused(_) if repair => "compared and made equal in chunks".to_owned(),
            _ if t.goes_on => "as far as they are".to_owned(),
            _ => initial_words(t),
        };
        vec![t.source.clone(), t.destination.clone(), key, before]
    });
    let head = &["source", "destination", "key", "rows that are there"];
    text.push_str(&indented(&out::table(head, rows.collect())));
    if !log.source_statements.is_empty() {
        text.push_str("\nstatements at the source\n");
        for statement in &log.source_statements {
            text.push_str(&indented(&format!("{statement};\n")));
        }
    }
    text.push_str("\nstatements\n");
    for statement in &preview.statements {
        text.push_str(&indented(&format!("{}\n", statement.trim_end())));
    }
    text
}

fn guarantee_words(preview: &Preview) -> &'static str {
    match preview.guarantee {
        synctool_core::sink::Guarantee::ExactlyOnce => "exactly once",
        synctool_core::sink::Guarantee::EffectivelyOnce => "effectively once",
    }
}

/// So many partitions are listed before the rest is summed up.
const SHOWN: usize = 8;

fn text(preview: &Preview) -> String {
    let plan = &preview.plan;
    let Some(table) = plan.tables.first() else {
        return "nothing to do\n".into();
    };
    let mut text = format!("{}: {} -> {}\n", plan.pipeline, table.read.table, table.destination);
    if let Some(done) = &preview.resumes {
        text.push_str(&format!(
            "\ntakes up run {} of {}: {} of {} partitions are done\n",
            plan.run_id,
            plan.created_at,
            done.values().filter(|s| s.done).count(),
            plan.partitions().count()
        ));
    }
    text.push_str(&format!("\nstrategy {}\n", plan.strategy));
    for reason in &plan.reasons {
        text.push_str(&format!("  {reason}\n"));
    }
    text.push_str(&format!(
        "  at the end: {}; verified by {}; {}\n",
        publish_words(&table.publish),
        verify_word(plan.verify),
        guarantee_words(preview)
    ));
    let partitions: Vec<_> = plan.partitions().collect();
    let rows: u64 = partitions.iter().map(|p| p.estimated_rows).sum();
    let bytes: u64 = partitions.iter().map(|p| p.estimated_bytes).sum();
    // How many rows a file has is not known before it is read.
    let unknown = |rows: u64, bytes: u64| rows == 0 && bytes > 0;
    let rows = match unknown(rows, bytes) {
        true => String::new(),
        false => format!("about {} rows, ", out::number(rows)),
    };
    text.push_str(&format!(
        "\n{}, {rows}{}\n",
        out::count(partitions.len(), "partition"),
        out::bytes(bytes as f64)
    ));
    let listed = partitions.iter().take(if partitions.len() > SHOWN + 1 {
        SHOWN
    } else {
        partitions.len()
    });
    text.push_str(&indented(&out::table(
        &["partition", "rows", "bytes"],
        listed
            .map(|p| {
                vec![
                    p.id.to_string(),
                    match unknown(p.estimated_rows, p.estimated_bytes) {
                        true => "?".into(),
                        false => out::number(p.estimated_rows),
                    },
                    out::number(p.estimated_bytes),
                ]
            })
            .collect(),
    )));
    if partitions.len() > SHOWN + 1 {
        text.push_str(&format!("  … and {} more\n", partitions.len() - SHOWN));
    }
    text.push_str("\ncolumns\n");
    text.push_str(&indented(&out::table(
        &["source", "type", "destination", "stored as", "fidelity", ""],
        columns(preview)
            .into_iter()
            .map(|c| {
                let mut flags = Vec::new();
                if c.key {
                    flags.push("key");
                }
                if c.not_null {
                    flags.push("not null");
                }
                let fidelity = match c.fidelity.1.is_empty() {
                    true => c.fidelity.0.to_owned(),
                    false => format!("{}: {}", c.fidelity.0, c.fidelity.1),
                };
                vec![c.source, c.from, c.destination, c.to, fidelity, flags.join(", ")]
            })
            .collect(),
    )));
    text.push_str("\nstatements\n");
    for statement in &preview.statements {
        text.push_str(&indented(&format!("{}\n", statement.trim_end())));
    }
    text
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("  {line}\n")).collect()
}
