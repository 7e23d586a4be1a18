//! What there is to see.

use super::super::args::{LevelArg, PeriodArg};
use super::super::doctor::{self, Found};
use super::super::out::{self, Reply};
use super::{board, is_running};
use crate::config::{ArchivePlace, DataSync as Config};
use crate::datasync;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::SystemTime;
use synctool_connectors::walarchive::board::{LogFilter, MetricsFilter};
use synctool_connectors::walarchive::{Listing, examine};
use synctool_core::error::Result;

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `synctool datasync status`.
pub(super) async fn status(config: &Config, all: bool) -> Result<Reply> {
    let board = board(config).await?;
    let told = board.status().await?;
    let locked = board.is_locked().await?;
    let running = is_running(&board).await?;
    let mut tables = board.tables().await?;
    let (service, place) = (&told["service"], &told["place"]);
    let state = match (running, locked, service["state"].as_str()) {
        (false, ..) => "stopped",
        (true, true, None | Some("stopped")) => "starting",
        (true, _, Some(state)) => state,
        (true, _, None) => "starting",
    };
    let last = place["last_segment"].as_str();
    let archive = match &config.wal.archive {
        ArchivePlace::Directory(directory) => archive(directory, last, &told["archive"], config),
        ArchivePlace::Command(_) => asked_by_name("wal_fetch_command", &told["archive"], config),
        ArchivePlace::Bucket(bucket) => asked_by_name(&bucket.url, &told["archive"], config),
    };
    if all {
        let counted = board
            .metrics(&MetricsFilter {
                limit: 10_000,
                table: None,
                period: Some("month".into()),
            })
            .await?;
        add_unselected(&mut tables, &counted);
    }
    let trouble: Vec<&Value> = list(&tables)
        .filter(|t| ["paused", "unknown"].contains(&t["state"].as_str().unwrap_or_default()))
        .collect();
    let well = running && service["error"].is_null() && trouble.is_empty() && archive["silent"] != true;
    let behind = archive["segments_behind"].as_u64();
    let mut out = String::new();
    let mut line = |name: &str, says: String| out.push_str(&format!("{name:14}{says}\n"));
    line(
        "state",
        match service["waiting_for"].as_str().filter(|_| running) {
            Some(why) => format!("{state}: {why}"),
            None => state.into(),
        },
    );
    if running {
        line(
            "process",
            format!("{} on {}", text(&service["pid"]), text(&service["host"])),
        );
    }
    match place["applied_lsn"].as_str() {
        Some(lsn) => {
            line(
                "place",
                format!(
                    "{lsn}, segment {}, timeline {}",
                    text(&place["last_segment"]),
                    text(&place["timeline"])
                ),
            );
            line("rows as of", text(&place["rows_as_of"]));
            line(
                "needs",
                format!("archive from segment {} on", text(&place["restart_segment"])),
            );
        }
        None => line("place", "none yet: nothing was copied".into()),
    }
    if let Some(behind) = behind {
        let lag = archive["lag_seconds"].as_f64().unwrap_or_default();
        line(
            "behind",
            format!("{}, {}", out::count(behind as usize, "segment"), out::duration(lag)),
        );
    }
    let silent = match archive["silent"] == true {
        true => " (SILENT: idle, or archives no more)",
        false => "",
    };
    if let Some(age) = archive["newest_file_age_seconds"].as_f64() {
        line("newest file", format!("{} old{silent}", out::duration(age)));
    }
    if let Some(age) = archive["quiet_seconds"].as_f64() {
        let awaited = text(&archive["awaited"]);
        line(
            "archive",
            format!("{awaited} is awaited for {}{silent}", out::duration(age)),
        );
    }
    if let Some(said) = archive["said"].as_str() {
        line("fetch says", said.into());
    }
    if let Some(error) = service["error"]["message"].as_str() {
        line("error", format!("{error} [{}]", text(&service["error"]["code"])));
        if let Some(next) = service["error"]["next"].as_str() {
            line("next", next.into());
        }
    }
    let rows: Vec<Vec<String>> = list(&tables)
        .map(|t| {
            vec![
                text(&t["table_name"]),
                text(&t["state"]),
                text(&t["applied_lsn"]),
                text(&t["why"]),
            ]
        })
        .collect();
    if !rows.is_empty() {
        out.push('\n');
        out.push_str(&out::table(&["table", "state", "lsn", "why"], rows));
    }
    for table in &trouble {
        let next = table["next_step"]
            .as_str()
            .unwrap_or("synctool datasync remove-tables, or create it in production");
        out.push_str(&format!("\n{}: {next}\n", text(&table["table_name"])));
    }
    let json = json!({
        "state": state, "running": running, "well": well,
        "applied_lsn": place["applied_lsn"], "rows_as_of": place["rows_as_of"],
        "lag_seconds": archive["lag_seconds"], "segments_behind": archive["segments_behind"],
        "service": service, "place": place, "archive": archive, "tables": tables,
        "last_error": service["error"], "requests_waiting": told["requests_waiting"],
        "errors_last_day": told["errors_last_day"],
    });
    Ok(Reply::new(json, out).exit(u8::from(!well)))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// What the archive holds beyond the last segment that was applied.
fn archive(directory: &Path, last: Option<&str>, told: &Value, config: &Config) -> Value {
    let listing = match Listing::of(directory) {
        Ok(listing) => listing,
        Err(error) => return json!({ "place": directory, "error": error.message() }),
    };
    let age = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs_f64();
    // Segments of another timeline are the same place of the log.
    let place = |name: &str| name.get(8..).unwrap_or_default().to_owned();
    let mut newer: BTreeMap<String, Option<SystemTime>> = BTreeMap::new();
    for (name, paths) in &listing.segments {
        let name = place(&name.to_string());
        if last.is_none_or(|last| name > place(last)) {
            let written = paths
                .first()
                .and_then(|path| std::fs::metadata(path).ok()?.modified().ok());
            newer.insert(name, written);
        }
    }
    let oldest = newer.values().flatten().min().copied();
    let newest = listing.newest.map(age);
    // Without a segment, as where nothing is mounted, it is silent for as long as one is awaited.
    let quiet = told["quiet_seconds"].as_f64().filter(|_| newest.is_none());
    let longest = config.archive_interval.as_secs_f64() * 3.0;
    let silent = newest.or(quiet).is_some_and(|age| age > longest);
    json!({
        "place": directory, "segments": listing.segments.len(), "segments_behind": newer.len(),
        "lag_seconds": oldest.map_or(0.0, age), "newest_file_age_seconds": newest, "awaited": told["awaited"],
        "quiet_seconds": quiet, "silent": silent,
    })
}

/// What is known of an archive that is asked for one file after the other.
fn asked_by_name(place: &str, told: &Value, config: &Config) -> Value {
    let longest = config.archive_interval.as_secs_f64() * 3.0;
    let silent = told["quiet_seconds"].as_f64().is_some_and(|age| age > longest);
    json!({
        "place": place, "awaited": told["awaited"], "quiet_seconds": told["quiet_seconds"], "silent": silent,
        "said": told["said"],
    })
}

fn add_unselected(tables: &mut Value, counted: &Value) {
    let known: Vec<String> = list(tables).map(|t| text(&t["table_name"])).collect();
    let mut more: Vec<Value> = Vec::new();
    for row in list(counted) {
        let name = text(&row["table_name"]);
        let told = more.iter().any(|m| m["table_name"] == name.as_str());
        if name != "*" && !known.contains(&name) && !told {
            more.push(json!({
                "table_name": name, "state": "not selected",
                "why": format!("this month: {} added, {} updated, {} deleted", row["added"], row["updated"], row["deleted"]),
            }));
        }
    }
    more.sort_by_key(|m| text(&m["table_name"]));
    if let Value::Array(tables) = tables {
        tables.extend(more);
    }
}

/// `synctool datasync logs`.
pub(super) async fn logs(config: &Config, limit: u32, table: Option<String>, level: Option<LevelArg>) -> Result<Reply> {
    let level = level.map(|level| match level {
        LevelArg::Info => "info",
        LevelArg::Warn => "warn",
        LevelArg::Error => "error",
    });
    let filter = LogFilter {
        limit: i64::from(limit),
        table,
        level: level.map(str::to_owned),
    };
    let lines = board(config).await?.logs(&filter).await?;
    let rows = list(&lines)
        .map(|l| {
            let at = text(&l["at"]);
            vec![
                at.get(..19).unwrap_or(&at).to_owned(),
                text(&l["level"]),
                text(&l["event"]),
                text(&l["table_name"]),
                text(&l["to_lsn"]),
                text(&l["message"]),
            ]
        })
        .collect();
    Ok(Reply::new(
        lines,
        out::table(&["at (UTC)", "level", "event", "table", "lsn", "says"], rows),
    ))
}

/// `synctool datasync metrics`.
pub(super) async fn metrics(
    config: &Config,
    limit: u32,
    table: Option<String>,
    period: Option<PeriodArg>,
) -> Result<Reply> {
    let period = period.map(|period| match period {
        PeriodArg::Window => "window",
        PeriodArg::Week => "week",
        PeriodArg::Month => "month",
    });
    let filter = MetricsFilter {
        limit: i64::from(limit),
        table,
        period: period.map(str::to_owned),
    };
    let lines = board(config).await?.metrics(&filter).await?;
    let rows = list(&lines)
        .map(|m| {
            let starts = text(&m["starts_at"]);
            let mut row = vec![
                text(&m["table_name"]),
                text(&m["period"]),
                starts.get(..16).unwrap_or(&starts).to_owned(),
                format!(
                    "{}{}",
                    if m["closed"] == true { "closed" } else { "open" },
                    if m["incomplete"] == true { ", incomplete" } else { "" }
                ),
            ];
            for key in ["added", "updated", "deleted", "net_added", "net_updated", "net_deleted"] {
                row.push(m[key].as_u64().map_or_else(|| "-".into(), out::number));
            }
            row
        })
        .collect();
    let head = [
        "table",
        "period",
        "from (UTC)",
        "",
        "added",
        "updated",
        "deleted",
        "rows added",
        "rows updated",
        "rows deleted",
    ];
    Ok(Reply::new(lines, out::table(&head, rows)))
}

/// `synctool datasync doctor`.
pub(super) async fn doctor(config: &Config) -> Result<Reply> {
    let place = "data sync";
    let mut found = vec![doctor::good(
        "configuration",
        place,
        format!("{} is well-formed", config.file.display()),
    )];
    match datasync::settings(config) {
        Ok(settings) => {
            let findings = Box::pin(examine::examine(&settings)).await;
            found.extend(findings.into_iter().map(|finding| Found {
                place: place.into(),
                finding,
            }));
            if let ArchivePlace::Directory(directory) = &config.wal.archive {
                found.push(freshness(directory, config));
            }
        }
        Err(error) => found.push(doctor::failed("programs", place, &error)),
    }
    Ok(doctor::report(&found))
}

fn freshness(directory: &Path, config: &Config) -> Found {
    let told = archive(directory, None, &Value::Null, config);
    let age = told["newest_file_age_seconds"].as_f64().map(out::duration);
    let mut found = doctor::good(
        "archive's freshness",
        "data sync",
        age.map_or_else(|| "no file yet".into(), |age| format!("the newest file is {age} old")),
    );
    if told["silent"] == true {
        found.finding.fix = format!(
            "expected is a file every {} s: production is idle, or archives no more (SELECT * FROM pg_stat_archiver there)",
            config.archive_interval.as_secs()
        );
    }
    found
}
