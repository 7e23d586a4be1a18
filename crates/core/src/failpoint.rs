//! Places where a test may kill, stop or fail the whole program.
//!
//! `SYNCTOOL_FAILPOINT=name:nth=kill|stop|error` acts at the nth time the named place is reached (from 1), in this
//! process. `SYNCTOOL_FAILPOINT_TRACE=file` appends the name of every place reached, one a line, so that a test can
//! list them all. Without either variable a failpoint costs one load of a static.

use crate::error::{Error, Result, code};
use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

struct Armed {
    name: String,
    nth: u64,
    action: String,
    hits: AtomicU64,
}

struct Setup {
    armed: Option<Armed>,
    trace: Option<String>,
}

static SETUP: OnceLock<Option<Setup>> = OnceLock::new();

fn setup() -> Option<Setup> {
    let armed = std::env::var("SYNCTOOL_FAILPOINT").ok().and_then(|text| {
        let (place, action) = text.split_once('=')?;
        let (name, nth) = place.rsplit_once(':')?;
        Some(Armed {
            name: name.into(),
            nth: nth.parse().ok()?,
            action: action.into(),
            hits: AtomicU64::new(0),
        })
    });
    let trace = std::env::var("SYNCTOOL_FAILPOINT_TRACE").ok();
    (armed.is_some() || trace.is_some()).then_some(Setup { armed, trace })
}

/// Passes the named place; an armed one kills the process, stops it (SIGSTOP) or fails.
pub fn failpoint(name: &str) -> Result<()> {
    let Some(setup) = SETUP.get_or_init(setup) else {
        return Ok(());
    };
    if let Some(file) = &setup.trace
        && let Ok(mut f) = std::fs::OpenOptions::new().append(true).create(true).open(file)
    {
        let _ = f.write_all(format!("{name}\n").as_bytes());
    }
    let Some(armed) = &setup.armed else { return Ok(()) };
    if armed.name != name || armed.hits.fetch_add(1, Ordering::SeqCst) + 1 != armed.nth {
        return Ok(());
    }
    match armed.action.as_str() {
        "error" => Err(Error::new(code::INJECTED, format!("failpoint {name}"))),
        action => {
            let signal = if action == "stop" { "-STOP" } else { "-KILL" };
            let _ = std::process::Command::new("kill")
                .args([signal, &std::process::id().to_string()])
                .status();
            if action != "stop" {
                // The signal is on its way; nothing may happen after this place.
                loop {
                    std::thread::park();
                }
            }
            Ok(())
        }
    }
}
