//! `synctool datasync …`.

mod service;
mod show;
mod tables;

use super::args::{DatasyncArgs, DatasyncCommand, Globals, Patience};
use super::out::Reply;
use super::signals::Interrupt;
use crate::config::DataSync as Config;
use crate::datasync;
use std::time::{Duration, Instant};
use synctool_connectors::walarchive::Board;
use synctool_connectors::walarchive::board::Answer;
use synctool_core::error::{Error, Result, code};

/// A service that did not say anything for so long is not there.
const SILENT: f64 = 30.0;

/// `synctool datasync …`.
pub(super) async fn datasync(args: DatasyncArgs, globals: &Globals, interrupt: Interrupt) -> Result<Reply> {
    let config = globals.loader().datasync(args.config.as_deref())?;
    match args.command {
        DatasyncCommand::Start { foreground: true } => service::foreground(config, interrupt).await,
        DatasyncCommand::Start { foreground: false } => service::start(&config, globals).await,
        DatasyncCommand::RunOnce => service::run_once(config, interrupt).await,
        DatasyncCommand::Stop { patience } => service::stop(&config, patience).await,
        DatasyncCommand::Status { all } => show::status(&config, all).await,
        DatasyncCommand::Clear {
            rebuild, dry_run: true, ..
        } => tables::would_clear(&config, rebuild).await,
        DatasyncCommand::Clear { rebuild, patience, .. } => tables::clear(&config, rebuild, patience, globals).await,
        DatasyncCommand::Resync {
            tables, dry_run: true, ..
        } => tables::would_resync(&config, &tables).await,
        DatasyncCommand::Resync { tables, patience, .. } => tables::resync(&config, tables, patience).await,
        DatasyncCommand::AddTables { tables, patience } => tables::add(&config, tables, patience).await,
        DatasyncCommand::RemoveTables { tables, patience } => tables::remove(&config, tables, patience).await,
        DatasyncCommand::Verify { patience } => tables::verify(&config, patience).await,
        DatasyncCommand::Logs { limit, table, level } => show::logs(&config, limit, table, level).await,
        DatasyncCommand::Metrics { limit, table, period } => show::metrics(&config, limit, table, period).await,
        DatasyncCommand::Doctor => show::doctor(&config).await,
    }
}

/// The local tables.
async fn board(config: &Config) -> Result<Board> {
    Board::open(&datasync::local(config)).await
}

/// Whether the service is there: it holds the lock, or it was heard a moment ago.
async fn is_running(board: &Board) -> Result<bool> {
    if board.is_locked().await? {
        return Ok(true);
    }
    let status = board.status().await?;
    let service = &status["service"];
    let heard = service["beat_age_seconds"].as_f64().is_some_and(|age| age < SILENT);
    let lives = match service["host"].as_str() == Some(&datasync::host()) {
        true => std::fs::read(format!("/proc/{}/cmdline", service["pid"])).is_ok_and(|line| !line.is_empty()),
        // Of a process elsewhere nothing more is known.
        false => true,
    };
    Ok(heard && lives && service["state"] != "stopped")
}

/// Waits for answers; None for one that did not come in time or because nobody is there.
async fn answers(board: &Board, requests: &[i64], patience: Patience) -> Result<Vec<Option<Answer>>> {
    let end = Instant::now() + Duration::from_secs(patience.wait);
    loop {
        let mut found = Vec::new();
        for request in requests {
            found.push(board.answer(*request).await?);
        }
        if found.iter().all(Option::is_some) || Instant::now() >= end || !is_running(board).await? {
            return Ok(found);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

fn already_running() -> Error {
    Error::new(code::LOCKED, "Data Sync is already running on this local database")
        .hint("synctool datasync status; synctool datasync stop")
}

fn not_running() -> Error {
    Error::new(code::REFUSED, "Data Sync is not running").hint("synctool datasync start")
}
