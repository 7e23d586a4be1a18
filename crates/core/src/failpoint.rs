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
                .args([signal, &this_thread()])
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

/// The number of this thread, by which Linux knows the whole process as well.
///
/// A signal sent to the number of the process may be taken by any thread of it, and until that one runs this one goes
/// on behind the failpoint. Sent to this number it is taken before the thread leaves the system call in which it waits
/// for the sender to end.
fn this_thread() -> String {
    std::fs::read_link("/proc/thread-self")
        .ok()
        .and_then(|link| Some(link.file_name()?.to_str()?.to_string()))
        .unwrap_or_else(|| std::process::id().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    const BEHIND: &str = "SYNCTOOL_TEST_BEHIND_FAILPOINT";

    /// Runs in a process of its own: passes an armed failpoint beside busy threads and tells that it went on.
    #[test]
    #[ignore = "is run by the test below"]
    fn passes_a_failpoint_beside_busy_threads() {
        let file = std::env::var(BEHIND).expect("the file to write");
        for _ in 0..3 {
            std::thread::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            });
        }
        failpoint("test.stop").expect("it stops and does not fail");
        std::fs::write(file, "on").expect("the file");
    }

    /// Whoever sees the program stopped may rely on nothing having been done behind the failpoint.
    #[test]
    fn a_stopped_thread_goes_not_a_step_further() {
        let directory = std::env::temp_dir();
        for round in 0..60 {
            let file = directory.join(format!("synctool-failpoint-{}-{round}", std::process::id()));
            let mut child = Command::new(std::env::current_exe().expect("this test"))
                .args(["--exact", "failpoint::tests::passes_a_failpoint_beside_busy_threads"])
                .args(["--ignored", "--test-threads", "1"])
                .env("SYNCTOOL_FAILPOINT", "test.stop:1=stop")
                .env(BEHIND, &file)
                .stdout(Stdio::null())
                .spawn()
                .expect("this test again");
            let status = format!("/proc/{}/status", child.id());
            while !std::fs::read_to_string(&status).is_ok_and(|s| s.contains("State:\tT")) {
                let ended = child.try_wait().expect("its state");
                assert!(ended.is_none(), "it ended ({ended:?}) and was not stopped");
                std::thread::park_timeout(Duration::from_millis(1));
            }
            std::thread::park_timeout(Duration::from_millis(3));
            let went_on = file.exists();
            child.kill().expect("to kill it");
            child.wait().expect("its end");
            let _ = std::fs::remove_file(&file);
            assert!(!went_on, "round {round}: it was stopped behind the failpoint");
        }
    }
}
