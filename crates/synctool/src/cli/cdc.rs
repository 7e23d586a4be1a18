//! `synctool cdc …`: logs that pipelines follow, looked at and steered.

use super::args::{CdcCommand, Globals, PipelineArg};
use super::find;
use super::out::{self, Reply};
use crate::config::Datastore;
use crate::open;
use crate::pipeline::Pipeline;
use crate::pipeline::log::{LogPipeline, LogReport};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use synctool_connectors::postgres::log::LogOptions;
#[cfg(test)]
use synctool_connectors::postgres::log::status::BackfillStatus;
use synctool_connectors::postgres::log::status::{CancelledStatus, LogStatus, SlotStatus, TableStatus};
use synctool_core::backfill::Pause;
use synctool_core::error::{Error, Result, code};

/// How often a request that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(300);

/// `synctool cdc …`.
pub(super) async fn cdc(command: CdcCommand, globals: &Globals) -> Result<Reply> {
    match command {
        CdcCommand::Status { pipeline } => status(&pipeline, globals).await,
        CdcCommand::Pause { pipeline, backfill } => {
            let pause = if backfill { Pause::Chunks } else { Pause::All };
            hold(&pipeline, pause, globals).await
        }
        CdcCommand::Resume { pipeline } => hold(&pipeline, Pause::None, globals).await,
        CdcCommand::Refresh {
            pipeline,
            table,
            keys,
            cancel,
            wait,
            dry_run,
        } => {
            let keys = keys.as_deref().map(self::keys).transpose()?.unwrap_or_default();
            let pipeline = PipelineArg::of(pipeline);
            match dry_run {
                true => would_refresh(&pipeline, &table, &keys, cancel, globals).await,
                false => refresh(&pipeline, &table, keys, cancel, wait, globals).await,
            }
        }
        CdcCommand::Slots { what } => slots(what.as_deref(), globals).await,
    }
}

/// Keys as people write them: `1,2,3`, or a JSON list of keys, each a value or a list of values.
fn keys(text: &str) -> Result<Vec<Vec<String>>> {
    let wrong = || {
        Error::new(
            code::CONFIG_INVALID,
            "--keys is neither a list of values nor a JSON list of keys",
        )
        .hint(r#"write for example --keys 1,2,3 or --keys '[["a", 1], ["b", 2]]'"#)
    };
    if !text.trim_start().starts_with('[') {
        let values: Vec<Vec<String>> = text.split(',').map(|v| vec![v.trim().to_owned()]).collect();
        return match values.iter().any(|v| v[0].is_empty()) {
            true => Err(wrong()),
            false => Ok(values),
        };
    }
    let json: Vec<Value> = serde_json::from_str(text).map_err(|_| wrong())?;
    let value = |v: &Value| match v {
        Value::String(s) => Ok(s.clone()),
        Value::Number(n) => Ok(n.to_string()),
        Value::Bool(b) => Ok(b.to_string()),
        _ => Err(wrong()),
    };
    json.iter()
        .map(|key| match key {
            Value::Array(parts) => parts.iter().map(value).collect(),
            one => Ok(vec![value(one)?]),
        })
        .collect()
}

/// The pipelines that follow a log: the one that is meant, or all of this folder.
fn pipelines(said: &PipelineArg, globals: &Globals) -> Result<Vec<LogPipeline>> {
    if said.said().is_some() {
        return Ok(vec![LogPipeline::of(&find::pipeline(said, globals)?)?]);
    }
    let mut found = Vec::new();
    for entry in globals.loader().pipelines_in(Path::new("."))? {
        if let Ok(loaded) = entry.loaded {
            found.extend(LogPipeline::of(&Pipeline::from_loaded(loaded)).ok());
        }
    }
    match found.is_empty() {
        false => Ok(found),
        true => Err(
            Error::new(code::CONFIG_INVALID, "no pipeline of this folder follows a log").hint("name a pipeline's file"),
        ),
    }
}

async fn status(said: &PipelineArg, globals: &Globals) -> Result<Reply> {
    let mut reports = Vec::new();
    for pipeline in pipelines(said, globals)? {
        reports.push(pipeline.report().await?);
    }
    let mut text = String::new();
    let mut json = Vec::new();
    let mut exit = 0;
    for report in &reports {
        text.push_str(&report_text(report));
        let mut one = json!(report);
        one["applied_up_to"] = applied_up_to(report.status.as_ref()).into();
        if let Some(e) = &report.refused {
            one["error"] = out::error_json(e);
            exit = e.kind().exit_code();
        }
        json.push(one);
    }
    let json = match (json.len(), said.said().is_some()) {
        (1, true) => json.remove(0),
        _ => Value::Array(json),
    };
    Ok(Reply::new(json, text).exit(exit))
}

fn applied_up_to(status: Option<&LogStatus>) -> Option<String> {
    let micros = status?.applied_up_to?;
    chrono::DateTime::from_timestamp_micros(micros).map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

/// How far a log is, in a few words.
pub(super) fn lag(status: &LogStatus) -> String {
    let bytes = status.lag_bytes.map_or("?".into(), |n| out::bytes(n as f64));
    match status.lag_seconds {
        Some(s) if s > 0.0 => format!("{bytes} and {} behind{}", out::duration(s), estimate(status)),
        Some(_) => "caught up".into(),
        None => format!("{bytes} behind"),
    }
}

/// What is only reckoned of a lag, and says so.
fn estimate(status: &LogStatus) -> String {
    let rows = status.lag_rows.map(|n| format!("about {n} rows"));
    let eta = status.eta_seconds.map(|s| format!("about {} to go", out::duration(s)));
    match Vec::from_iter(rows.into_iter().chain(eta)) {
        none if none.is_empty() => String::new(),
        some => format!(" ({})", some.join(", ")),
    }
}

fn report_text(report: &LogReport) -> String {
    let mut text = format!("{}: {}", report.pipeline, report.state);
    if let Some(holder) = &report.holder {
        text.push_str(&format!(" ({holder})"));
    }
    if let Some(status) = &report.status {
        text.push_str(&format!(", {}", lag(status)));
        if status.paused == Pause::Chunks {
            text.push_str(", chunks paused");
        }
    }
    text.push('\n');
    if let Some(status) = &report.status {
        let dash = || "-".to_owned();
        text.push_str(&out::card(
            &[
                if report.has_slot { "slot" } else { "known as" },
                "position",
                "log ends at",
                "applied up to",
                "source keeps",
            ],
            vec![
                status.slot.clone(),
                status.position.clone().unwrap_or_else(dash),
                status.end.clone().unwrap_or_else(dash),
                applied_up_to(Some(status)).unwrap_or_else(dash),
                kept(report),
            ],
        ));
        text.push_str(&out::table(
            &[
                "table",
                "destination",
                "inserted",
                "updated",
                "put",
                "deleted",
                "behind",
                "ETA",
                "backfill",
            ],
            status.tables.iter().map(|t| table_row(t, status)).collect(),
        ));
    }
    for table in report.status.iter().flat_map(|s| &s.tables) {
        if let (Some(given_up), None) = (&table.cancelled, &table.backfill) {
            let lacks = if given_up.kind == "load" {
                "lacks rows"
            } else {
                "may differ"
            };
            text.push_str(&format!(
                "{0}: its copy {lacks} until it is read again\n  next: synctool cdc refresh {1} {0}\n",
                table.table, report.pipeline
            ));
        }
    }
    for table in report.status.iter().flat_map(|s| &s.tables) {
        if let Some(why) = &table.absent {
            text.push_str(&format!("{}: {why}\n", table.table));
        }
    }
    if let Some(status) = &report.status {
        text.extend(status.silent.iter().map(|silent| format!("SILENT: {silent}\n")));
        text.extend(status.said.iter().map(|said| format!("fetch says: {said}\n")));
    }
    for id in &report.waiting {
        text.push_str(&format!("waiting: refresh {id}\n"));
    }
    if let Some(e) = &report.refused {
        text.push_str(&format!("the log cannot go on: {} [{}]\n", e.message(), e.code().id));
        text.extend(e.next_step().map(|next| format!("  next: {next}\n")));
    }
    text
}

fn kept(report: &LogReport) -> String {
    match &report.slot_at_source {
        None if !report.has_slot => "what its settings say".into(),
        None => "no slot".into(),
        Some(slot) => match (&slot.invalidated, slot.retained_bytes) {
            (Some(why), _) => format!("given up ({why})"),
            (None, Some(n)) => out::bytes(n as f64),
            (None, None) => "nothing".into(),
        },
    }
}

fn table_row(table: &TableStatus, log: &LogStatus) -> Vec<String> {
    let n = out::number;
    let (behind, eta) = behind(table, log);
    vec![
        table.table.clone(),
        table.destination.clone(),
        n(table.inserted),
        n(table.updated),
        n(table.put),
        n(table.deleted),
        behind,
        eta,
        backfill_words(table),
    ]
}

/// How far a table is behind, and for how long. Rows where they can be reckoned, or else what is known of the log, which
/// has all tables together.
fn behind(table: &TableStatus, log: &LogStatus) -> (String, String) {
    let dash = || "-".to_owned();
    if table.absent.is_some() {
        return (dash(), dash());
    }
    let behind = match (table.lag_rows, log.lag_bytes, log.lag_seconds) {
        (Some(0), ..) | (None, Some(0), _) => "nothing".to_owned(),
        (Some(rows), ..) => format!("about {rows} rows"),
        (None, Some(bytes), Some(s)) => format!("up to {}, {}", out::bytes(bytes as f64), out::duration(s)),
        (None, Some(bytes), None) => format!("up to {}", out::bytes(bytes as f64)),
        (None, None, _) => dash(),
    };
    let load = table.backfill.as_ref().map(|b| b.eta_seconds);
    let eta = match load {
        Some(load) => load,
        None => log.eta_seconds.filter(|s| *s > 0.0 && behind != "nothing"),
    };
    (behind, eta.map_or_else(dash, out::duration))
}

fn backfill_words(table: &TableStatus) -> String {
    if table.absent.is_some() {
        return "absent, see below".into();
    }
    let Some(b) = &table.backfill else {
        return table.cancelled.as_ref().map_or("done".into(), cancelled_words);
    };
    let mut text = match b.kind.as_str() {
        "keys" => format!("{} to read", out::count(b.keys, "key")),
        kind => format!("{kind}: {} rows", out::number(b.rows)),
    };
    if let Some(expected) = b.expected.filter(|n| *n > 0) {
        text.push_str(&format!(" of about {}", out::number(expected)));
    }
    if !b.active {
        text.push_str(", waits its turn");
    }
    text
}

/// How far reading a table was before it was given up.
fn cancelled_words(given_up: &CancelledStatus) -> String {
    match given_up.kind.as_str() {
        "keys" => format!("{} cancelled", out::count(given_up.keys as usize, "key")),
        kind => format!("{kind} cancelled after {} rows", out::number(given_up.rows)),
    }
}

async fn hold(said: &PipelineArg, pause: Pause, globals: &Globals) -> Result<Reply> {
    let pipeline = find::pipeline(said, globals)?;
    let name = pipeline.name().to_owned();
    let holder = LogPipeline::of(&pipeline)?.pause(pause).await?;
    let what = match pause {
        Pause::None => "goes on",
        Pause::Chunks => "reads no chunks; its log goes on",
        Pause::All => "holds still; the source keeps its log meanwhile",
    };
    let when = match &holder {
        Some(holder) => format!("heard within a second by {holder}"),
        None => "nobody follows it now: it holds for the next run".into(),
    };
    let json = json!({
        "pipeline": name, "paused": pause, "holder": holder.map(|h| h.to_string()),
    });
    Ok(Reply::new(json, format!("{name} {what} ({when})\n")))
}

/// What a refresh would ask for; nothing is asked.
async fn would_refresh(
    said: &PipelineArg,
    table: &str,
    keys: &[Vec<String>],
    cancel: bool,
    globals: &Globals,
) -> Result<Reply> {
    let pipeline = find::pipeline(said, globals)?;
    let name = pipeline.name();
    let would = LogPipeline::of(&pipeline)?.would_refresh(table, keys).await?;
    let mut text = match (cancel, would.keys) {
        (true, _) => format!(
            "{name}: what is still to be read of {} would be given up; what was read stays\n",
            would.table
        ),
        (false, keys) => {
            let rows = keys.map_or_else(
                || "every row".into(),
                |n| format!("the rows of {}", out::count(n, "key")),
            );
            format!(
                "{name}: {rows} of {} would be read again: those that differ written, missing ones inserted, and those that the \
                 source does not have deleted\n",
                would.table
            )
        }
    };
    if !would.followed {
        text.push_str("its log was not followed yet: the first run reads every table\n");
    }
    text.push_str(&match &would.holder {
        Some(holder) => format!("it would be heard within a second by {holder}\n"),
        None => "it would wait for the next run\n".into(),
    });
    text.push_str("nothing was asked\n");
    let json = json!({
        "pipeline": name, "table": would.table.to_string(), "dry_run": true, "keys": would.keys, "cancel": cancel,
        "deletes": !cancel, "followed": would.followed, "holder": would.holder.map(|h| h.to_string()),
        "state": "not asked",
    });
    Ok(Reply::new(json, text))
}

async fn refresh(
    said: &PipelineArg,
    table: &str,
    keys: Vec<Vec<String>>,
    cancel: bool,
    wait: bool,
    globals: &Globals,
) -> Result<Reply> {
    let pipeline = find::pipeline(said, globals)?;
    let name = pipeline.name().to_owned();
    let log = LogPipeline::of(&pipeline)?;
    let count = keys.len();
    let (id, holder) = log.refresh(table, keys, cancel).await?;
    let what = match (cancel, count) {
        (true, _) => "gives up its chunks",
        (false, 0) => "is read again and made equal",
        (false, _) => "is read again for these keys",
    };
    let mut state = match &holder {
        Some(_) => "asked",
        None => "waits for the next run",
    };
    if wait {
        if holder.is_none() {
            return Err(Error::new(
                code::REFUSED,
                format!("nobody follows {name} now, so there is nothing to wait for; the request is kept"),
            )
            .hint(format!("synctool run {name}")));
        }
        while !log.is_done(&id, table).await? {
            tokio::time::sleep(LOOK).await;
        }
        state = "done";
    }
    let json =
        json!({ "pipeline": name, "table": table, "request": id, "keys": count, "cancel": cancel, "state": state });
    Ok(Reply::new(
        json,
        format!("{name}: {table} {what}; {state} (request {id})\n"),
    ))
}

async fn slots(what: Option<&str>, globals: &Globals) -> Result<Reply> {
    let (found, ours): (Vec<SlotStatus>, Option<String>) = match what {
        Some(text) if text.contains("://") => {
            let datastore = Datastore::from_uri(text)?;
            (open::log(&datastore, LogOptions::default(), 1)?.slots().await?, None)
        }
        what => {
            let file = what.map(|w| Path::new(w).to_owned());
            let pipeline = match file {
                Some(file) => LogPipeline::of(&find::by_text(&file, globals)?)?,
                None => pipelines(&PipelineArg::default(), globals)?.remove(0),
            };
            let log = pipeline.source()?;
            (log.slots().await?, Some(log.options().slot.clone()))
        }
    };
    let dash = || "-".to_owned();
    let rows = found.iter().map(|s| {
        vec![
            s.slot.clone(),
            s.database.clone().unwrap_or_else(dash),
            s.plugin.clone().unwrap_or_else(|| "physical".into()),
            s.active_pid.map_or_else(dash, |pid| pid.to_string()),
            s.confirmed.clone().unwrap_or_else(dash),
            s.retained_bytes.map_or_else(dash, |n| out::bytes(n as f64)),
            s.safe_bytes.map_or_else(dash, |n| out::bytes(n.max(0) as f64)),
            s.invalidated
                .clone()
                .or_else(|| s.wal_status.clone())
                .unwrap_or_else(dash),
            if ours.as_deref() == Some(&s.slot) { "ours" } else { "" }.into(),
        ]
    });
    let head = &[
        "slot",
        "database",
        "plugin",
        "pid",
        "confirmed",
        "keeps",
        "may grow by",
        "log",
        "",
    ];
    let text = match found.is_empty() {
        true => "the server has no replication slots\n".to_owned(),
        false => out::table(head, rows.collect()),
    };
    let json = found
        .iter()
        .map(|s| {
            let mut one = json!(s);
            one["ours"] = (ours.as_deref() == Some(&s.slot)).into();
            one
        })
        .collect();
    Ok(Reply::new(Value::Array(json), text))
}

#[cfg(test)]
mod tests {
    use super::{BackfillStatus, LogStatus, TableStatus, behind, keys};

    #[test]
    fn a_table_says_how_far_it_is_behind() {
        let log = LogStatus {
            lag_bytes: Some(2048),
            lag_seconds: Some(7.0),
            eta_seconds: Some(30.0),
            ..LogStatus::default()
        };
        let table = TableStatus::default();
        let text = |table: &TableStatus, log: &LogStatus| {
            let (behind, eta) = behind(table, log);
            format!("{behind}; {eta}")
        };
        assert_eq!(text(&table, &log), "up to 2 kB, 7.0 s; 30.0 s");
        let rows = |n| TableStatus {
            lag_rows: Some(n),
            ..TableStatus::default()
        };
        assert_eq!(text(&rows(12), &log), "about 12 rows; 30.0 s");
        assert_eq!(text(&rows(0), &log), "nothing; -");
        let loading = TableStatus {
            backfill: Some(BackfillStatus {
                eta_seconds: Some(90.0),
                ..BackfillStatus::default()
            }),
            ..rows(12)
        };
        assert_eq!(text(&loading, &log), "about 12 rows; 1m 30s");
        let out = TableStatus {
            absent: Some("dropped".into()),
            ..rows(12)
        };
        assert_eq!(text(&out, &log), "-; -");
    }

    #[test]
    fn keys_are_read_as_people_write_them() {
        let of = |text: &str| keys(text).unwrap();
        assert_eq!(of("1,2, x"), [["1"], ["2"], ["x"]]);
        assert_eq!(of("[1, \"a,b\"]"), [["1"], ["a,b"]]);
        assert_eq!(of("[[1, \"corner\"], [true, \"x\"]]"), [["1", "corner"], ["true", "x"]]);
        for bad in ["", "1,,2", "[1", "[null]", "[[{}]]"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
