//! Log lines on stderr.

use super::args::{Globals, LogFormat};
use super::{live, out};
use std::io::{IsTerminal, Write};
use synctool_core::error::{Error, Result, code};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Writes a line at a time above the progress view.
#[derive(Clone, Copy)]
struct Above;

impl Write for Above {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        live::above(&String::from_utf8_lossy(line));
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Above {
    type Writer = Above;

    fn make_writer(&'a self) -> Above {
        Above
    }
}

/// Whether this is a word alone, and none for a level: a filter would take it for a module's name, and nothing be logged.
fn is_no_level(said: &str) -> bool {
    let said = said.trim();
    let word = !said.is_empty() && said.chars().all(|c| c.is_ascii_alphabetic());
    word && said.parse::<LevelFilter>().is_err()
}

/// What is logged: `--log-level` or `SYNCTOOL_LOG_LEVEL`, else `RUST_LOG`, else what fits.
pub(super) fn install(globals: &Globals) -> Result<()> {
    let said = globals
        .log_level
        .clone()
        .or_else(|| std::env::var("RUST_LOG").ok())
        .filter(|text| !text.trim().is_empty());
    let default = match globals.quiet {
        true => "error",
        // Who is not watching bars wants to read later how it went.
        false if !std::io::stderr().is_terminal() || globals.log_format == LogFormat::Json => {
            "warn,synctool::progress=info,synctool::note=info"
        }
        false => "warn",
    };
    let text = match said {
        // Drivers are chatty: a bare level is about SyncTool.
        Some(level) if level.parse::<tracing::Level>().is_ok() => {
            format!("warn,synctool={level},synctool_core={level},synctool_connectors={level}")
        }
        Some(filter) => filter,
        None => default.to_owned(),
    };
    let unreadable = || {
        Error::new(code::CONFIG_INVALID, "the log level cannot be read")
            .hint("write error, warn, info, debug, trace, or a filter such as synctool=debug")
    };
    if globals.log_level.as_deref().is_some_and(is_no_level) {
        return Err(unreadable());
    }
    let filter = EnvFilter::builder().parse(&text).map_err(|_| unreadable())?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Above)
        .with_ansi(out::color());
    let installed = match globals.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Text => builder.with_target(false).compact().try_init(),
    };
    // A second run in one process (tests) keeps the first one's subscriber.
    let _ = installed;
    Ok(())
}
