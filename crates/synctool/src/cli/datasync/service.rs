//! Starting and stopping.

use super::super::args::{Globals, Patience};
use super::super::out::{self, Reply};
use super::super::signals::Interrupt;
use super::{already_running, answers, board, is_running, not_running};
use crate::config::DataSync as Config;
use crate::datasync::{self, Service};
use serde_json::json;
use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use synctool_connectors::walarchive::Scratch;
use synctool_core::error::{Error, Result, code};

/// How long is waited for the service to begin its work.
const BEGIN: Duration = Duration::from_secs(30);
/// How long a service that failed may take to end.
const ENDING: Duration = Duration::from_secs(3);

/// `synctool datasync start --foreground`.
pub(super) async fn foreground(config: Config, interrupt: Interrupt) -> Result<Reply> {
    let service = Box::pin(Service::begin(config, interrupt.token())).await?;
    Box::pin(service.serve()).await?;
    Ok(Reply::new(json!({ "status": "stopped" }), "Data Sync has stopped\n"))
}

/// `synctool datasync run-once`.
pub(super) async fn run_once(config: Config, interrupt: Interrupt) -> Result<Reply> {
    let service = Box::pin(Service::begin(config.clone(), interrupt.token())).await?;
    let served = Box::pin(service.once()).await?;
    let lsn = board(&config).await?.applied().await?.map(|lsn| lsn.to_string());
    let why = served.waiting.as_ref().map(ToString::to_string);
    let text = format!(
        "{} applied; the local tables are production's as of {}; {}\n",
        match served.batches {
            1 => "1 batch".into(),
            n => format!("{} batches", out::number(n)),
        },
        lsn.as_deref().unwrap_or("no place yet"),
        why.as_deref().unwrap_or("stopped on request")
    );
    Ok(Reply::new(
        json!({ "batches": served.batches, "applied_lsn": lsn, "waiting_for": why }),
        text,
    ))
}

/// `synctool datasync start`.
pub(super) async fn start(config: &Config, globals: &Globals) -> Result<Reply> {
    let board = board(config).await?;
    if is_running(&board).await? {
        return Err(already_running());
    }
    // What is wrong with the configuration is told here, not in a file.
    datasync::settings(config)?;
    let file = |error: std::io::Error| {
        Error::new(code::FILE, format!("{}: {}", config.log_file.display(), error.kind())).hint("set LOG_FILE")
    };
    if let Some(folder) = config.log_file.parent() {
        std::fs::create_dir_all(folder).map_err(file)?;
    }
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&config.log_file)
        .map_err(file)?;
    let program = std::env::current_exe().map_err(file)?;
    let mut command = Command::new(program);
    command
        .args(["datasync", "start", "--foreground", "--config"])
        .arg(&config.file);
    if let Some(folder) = &globals.data_dir {
        command.arg("--data-dir").arg(folder);
    }
    if let Some(level) = &globals.log_level {
        command.arg("--log-level").arg(level);
    }
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(file)?)
        .stderr(log)
        // Signals of this terminal are not meant for it.
        .process_group(0);
    let mut child = command.spawn().map_err(file)?;
    let pid = child.id();
    let end = Instant::now() + BEGIN;
    let mut failed = None;
    let begun = loop {
        let ended = child.try_wait().map_err(file)?;
        if let Some(status) = ended {
            let mut error = Error::new(code::REFUSED, format!("the service ended at once ({status})"))
                .at("log", config.log_file.display().to_string());
            let told = board.status().await?;
            let fault = &told["service"]["error"];
            if let (Some(message), true) = (fault["message"].as_str(), told["service"]["pid"] == pid) {
                error = Error::new(code_of(fault["code"].as_str()), message)
                    .at("log", config.log_file.display().to_string());
                if let Some(next) = fault["next"].as_str() {
                    error = error.hint(next);
                }
            }
            return Err(error.hint("the log file says why"));
        }
        let told = board.status().await?;
        let mine = told["service"]["pid"] == pid;
        let begun = match told["service"]["state"].as_str().unwrap_or_default() {
            _ if !mine => false,
            "starting" | "stopped" => false,
            // Who cannot begin says so before it ends; who goes on tries again.
            "failed" => failed.get_or_insert_with(Instant::now).elapsed() > ENDING,
            _ => true,
        };
        if begun || Instant::now() >= end {
            break begun;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let (status, does) = match begun {
        true => ("running", "runs"),
        false => ("starting", "makes the scratch server from the base backup"),
    };
    let text = format!(
        "Data Sync {does}, pid {pid}; it writes to {} and looks at the archive every {} s\n",
        config.log_file.display(),
        config.frequency.as_secs()
    );
    Ok(Reply::new(
        json!({ "status": status, "pid": pid, "log_file": config.log_file }),
        text,
    ))
}

/// The code that was stored by its name.
fn code_of(id: Option<&str>) -> &'static synctool_core::error::Code {
    let known = code::ALL.iter().find(|code| Some(code.id) == id);
    known.copied().unwrap_or(code::REFUSED)
}

/// Stops a scratch server that a service left which was killed. Where its settings are of no use, none was made by them.
async fn stop_left(config: &Config) -> Result<bool> {
    match datasync::settings(config) {
        Ok(settings) => Scratch::stop_left(&settings.replay.scratch).await,
        Err(_) => Ok(false),
    }
}

/// `synctool datasync stop`.
pub(super) async fn stop(config: &Config, patience: Patience) -> Result<Reply> {
    let board = board(config).await?;
    if !is_running(&board).await? {
        if !stop_left(config).await? {
            return Err(not_running());
        }
        let lsn = board.applied().await?.map(|lsn| lsn.to_string());
        return Ok(Reply::new(
            json!({ "status": "stopped", "applied_lsn": lsn }),
            "Data Sync was not running; the scratch server that it had left was stopped\n",
        ));
    }
    let request = board.request("stop", None).await?;
    let answered = answers(&board, &[request], patience).await?;
    let done = answered.into_iter().flatten().next();
    let end = Instant::now() + Duration::from_secs(5);
    // The answer comes a moment before its end.
    while done.is_some() && board.is_locked().await? && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let lsn = board.applied().await?.map(|lsn| lsn.to_string());
    match (done, is_running(&board).await?) {
        (Some(_), _) | (None, false) => {
            stop_left(config).await?;
            let place = lsn.as_deref().unwrap_or("no place yet");
            Ok(Reply::new(
                json!({ "status": "stopped", "applied_lsn": lsn }),
                format!("Data Sync has stopped; the local tables are production's as of {place}\n"),
            ))
        }
        (None, true) => Ok(Reply::new(
            json!({ "status": "stopping", "applied_lsn": lsn }),
            "Data Sync will stop at the end of its batch\n",
        )),
    }
}
