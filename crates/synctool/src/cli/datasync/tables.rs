//! What users ask for: tables copied anew, added, removed, proved.

use super::super::args::{Globals, Patience};
use super::super::out::{self, Reply};
use super::{already_running, answers, board, is_running};
use crate::config::DataSync as Config;
use crate::config::error::nearest;
use crate::datasync;
use serde_json::{Value, json};
use synctool_connectors::walarchive::board::{check_name, full_name};
use synctool_connectors::walarchive::{Board, DataSync, Scratch};
use synctool_core::error::{Error, Result, code};

/// `synctool datasync resync`.
pub(super) async fn resync(config: &Config, tables: Vec<String>, patience: Patience) -> Result<Reply> {
    let board = board(config).await?;
    check_known(&board, &tables).await?;
    asked(&board, "resync", &tables, patience).await
}

/// `synctool datasync resync --dry-run`.
pub(super) async fn would_resync(config: &Config, tables: &[String]) -> Result<Reply> {
    let board = board(config).await?;
    check_known(&board, tables).await?;
    let names: Vec<String> = tables.iter().map(|name| full_name(name)).collect();
    would_copy(&board, "resync", &names).await
}

/// Refuses names that are neither selected nor hold rows of what is.
async fn check_known(board: &Board, tables: &[String]) -> Result<()> {
    let mut known = board.selected().await?;
    known.extend(board.followed().await?);
    check_selected(tables, &known)
}

/// Refuses names that are not selected, before anything is done.
fn check_selected(tables: &[String], selected: &[String]) -> Result<()> {
    let names = tables.iter().map(|name| full_name(name));
    let unknown: Vec<String> = names.filter(|name| !selected.contains(name)).collect();
    let text = match &unknown[..] {
        [] => return Ok(()),
        [one] => format!("table {one} is not in tables_to_sync"),
        several => format!("tables {} are not in tables_to_sync", several.join(", ")),
    };
    let hint = meant(&unknown, selected)
        .unwrap_or_else(|| "synctool datasync status lists the selected tables; nothing was done".into());
    Err(Error::new(code::TABLE_MISSING, text).hint(hint))
}

/// What somebody may have meant by a name that means nothing.
fn meant(unknown: &[String], known: &[String]) -> Option<String> {
    // What all names have in common makes none alike.
    let short = |name: &'_ String| name.strip_prefix("public.").unwrap_or(name).to_owned();
    let known: Vec<String> = known.iter().map(short).collect();
    let found = unknown
        .iter()
        .find_map(|name| nearest(&short(name), known.iter().map(String::as_str)))?;
    Some(format!("did you mean {found}? Nothing was done"))
}

/// `synctool datasync add-tables`.
pub(super) async fn add(config: &Config, tables: Vec<String>, patience: Patience) -> Result<Reply> {
    for table in &tables {
        check_name(table)?;
    }
    let board = board(config).await?;
    let missing = board.missing(&tables).await?;
    if let Some(first) = missing.first() {
        let names: Vec<String> = missing.iter().map(|name| full_name(name)).collect();
        let text = match names.len() {
            1 => format!("table {} does not exist locally", full_name(first)),
            _ => format!("tables {} do not exist locally", names.join(", ")),
        };
        let here = board.tables_here().await?;
        return Err(
            Error::new(code::TABLE_MISSING, text).hint(meant(&names, &here).unwrap_or_else(|| {
                "create them as they are in production: pg_dump --schema-only; nothing was added".into()
            })),
        );
    }
    board.select(&tables).await?;
    asked(&board, "add", &tables, patience).await
}

/// `synctool datasync remove-tables`.
pub(super) async fn remove(config: &Config, tables: Vec<String>, patience: Patience) -> Result<Reply> {
    let board = board(config).await?;
    check_selected(&tables, &board.selected().await?)?;
    let gone = board.deselect(&tables).await?;
    let gone: Vec<String> = gone.iter().map(|name| full_name(name)).collect();
    asked(&board, "remove", &gone, patience).await
}

/// `synctool datasync clear`.
pub(super) async fn clear(config: &Config, rebuild: bool, patience: Patience, globals: &Globals) -> Result<Reply> {
    let board = board(config).await?;
    if !rebuild {
        globals.confirm("All selected tables are copied anew from the scratch server.")?;
        let request = board.request("clear", None).await?;
        return replied(&board, "clear", &["all tables".to_owned()], &[request], patience).await;
    }
    board.lock().await?;
    globals.confirm(
        "The place and the scratch server are forgotten; the next start begins anew from the base backup and copies every selected table.",
    )?;
    let settings = datasync::settings(config)?;
    Scratch::discard(&settings.replay.scratch).await?;
    board.forget_place().await?;
    Ok(Reply::new(
        json!({ "status": "cleared" }),
        "forgotten; rows stay until the next start copies them anew: synctool datasync start\n",
    ))
}

/// `synctool datasync clear --dry-run`.
pub(super) async fn would_clear(config: &Config, rebuild: bool) -> Result<Reply> {
    let board = board(config).await?;
    let tables = board.selected().await?;
    if !rebuild {
        return would_copy(&board, "clear", &tables).await;
    }
    if board.is_locked().await? {
        return Err(already_running());
    }
    let settings = datasync::settings(config)?;
    let scratch = &settings.replay.scratch.directory;
    let lsn = board.applied().await?.map(|lsn| lsn.to_string());
    let text = format!(
        "the place ({}) and the scratch server in {} would be forgotten\n\
         the next start would begin anew from the base backup and copy every selected table: {}\n\
         rows stay until then; those that production does not have are deleted then\nnothing was done\n",
        lsn.as_deref().unwrap_or("no place yet"),
        scratch.display(),
        match &tables[..] {
            [] => "none is selected".to_owned(),
            tables => tables.join(", "),
        }
    );
    let json = json!({
        "dry_run": true, "request": "clear --rebuild", "tables": tables, "applied_lsn": lsn, "scratch_dir": scratch,
        "deletes": true,
    });
    Ok(Reply::new(json, text))
}

/// What a request to copy tables anew would do; nothing is asked.
async fn would_copy(board: &Board, kind: &str, tables: &[String]) -> Result<Reply> {
    let lsn = board.applied().await?.map(|lsn| lsn.to_string());
    let running = is_running(board).await?;
    let mut text: String = tables
        .iter()
        .map(|name| format!("{name}: every row would be copied anew from the scratch server\n"))
        .collect();
    text.push_str(&match (&lsn, tables.is_empty()) {
        (_, true) => "no table is selected\n".to_owned(),
        (Some(lsn), _) => format!("rows that production did not have at {lsn} would be deleted\n"),
        (None, _) => "there is no place yet: the first start copies every selected table\n".to_owned(),
    });
    text.push_str(match running {
        true => "the service would do it between batches\n",
        false => "it would wait until the service starts\n",
    });
    text.push_str("nothing was asked\n");
    let json = json!({
        "dry_run": true, "request": kind, "tables": tables, "applied_lsn": lsn, "running": running, "deletes": true,
    });
    Ok(Reply::new(json, text))
}

/// Leaves a request for each table, and waits for the answers.
async fn asked(board: &Board, kind: &str, tables: &[String], patience: Patience) -> Result<Reply> {
    let names: Vec<String> = tables.iter().map(|name| full_name(name)).collect();
    let mut requests = Vec::new();
    for name in &names {
        requests.push(board.request(kind, Some(name)).await?);
    }
    replied(board, kind, &names, &requests, patience).await
}

async fn replied(board: &Board, kind: &str, names: &[String], requests: &[i64], patience: Patience) -> Result<Reply> {
    let answers = answers(board, requests, patience).await?;
    let running = is_running(board).await?;
    let mut text = String::new();
    let mut list = Vec::new();
    let mut exit = 0;
    for (name, answer) in names.iter().zip(&answers) {
        match answer {
            Some(answer) => {
                text.push_str(&format!("{name}: {}\n", answer.text));
                if !answer.ok {
                    exit = 1;
                }
            }
            None if running => text.push_str(&format!("{name}: the service will do it between batches\n")),
            None => text.push_str(&format!("{name}: waits until the service starts\n")),
        }
        list.push(json!({
            "table": name, "request": kind, "done": answer.is_some(),
            "ok": answer.as_ref().map(|a| a.ok), "answer": answer.as_ref().map(|a| &a.text),
        }));
    }
    Ok(Reply::new(Value::Array(list), text).exit(exit))
}

/// `synctool datasync verify`.
pub(super) async fn verify(config: &Config, patience: Patience) -> Result<Reply> {
    let board = board(config).await?;
    let proof = match is_running(&board).await? {
        true => {
            let request = board.request("verify", None).await?;
            let answer = answers(&board, &[request], patience)
                .await?
                .into_iter()
                .flatten()
                .next();
            let answer = answer.ok_or_else(|| {
                Error::new(code::SERVER_BUSY, "the service has not answered yet")
                    .hint("it answers between batches; synctool datasync status says what it does")
            })?;
            serde_json::from_str(&answer.text).map_err(|e| {
                Error::new(code::STATE_STORE, "the service's answer cannot be read")
                    .hint("it may be of another version: synctool datasync stop; synctool datasync start")
                    .caused_by(e)
            })?
        }
        false => {
            board.stops_are_past().await?;
            let mut sync = Box::pin(DataSync::open(datasync::settings(config)?)).await?;
            let proof = Box::pin(sync.verify()).await;
            let closed = sync.close().await;
            let (lsn, tables) = proof?;
            closed?;
            json!({ "lsn": lsn.to_string(), "tables": tables })
        }
    };
    let mut equal = true;
    let mut rows = Vec::new();
    for table in proof["tables"].as_array().into_iter().flatten() {
        let same = table["equal"] == true;
        equal &= same;
        let number = |key: &str| table[key].as_u64().map_or_else(|| "-".into(), out::number);
        let says = match (same, table["skipped"].as_str()) {
            (_, Some(why)) => format!("not compared: {why}"),
            (true, None) => "equal".into(),
            (false, None) => format!(
                "DIFFERENT{}; synctool datasync resync {}",
                match table["different_rows"].as_u64() {
                    Some(1) => " in 1 row".into(),
                    Some(n) => format!(" in {} rows", out::number(n)),
                    None => String::new(),
                },
                table["table"].as_str().unwrap_or_default()
            ),
        };
        rows.push(vec![
            table["table"].as_str().unwrap_or_default().to_owned(),
            number("production_rows"),
            number("local_rows"),
            says,
        ]);
    }
    let lsn = proof["lsn"].as_str().unwrap_or_default().to_owned();
    let mut text = out::table(&["table", "production", "local", ""], rows);
    text.push_str(&match equal {
        true => format!("\nall tables are production's as of {lsn}\n"),
        false => format!("\nnot every table is production's as of {lsn}\n"),
    });
    let json = json!({ "equal": equal, "lsn": lsn, "tables": proof["tables"] });
    Ok(Reply::new(json, text).exit(if equal { 0 } else { 3 }))
}
