//! One server for a whole test run.
//!
//! Each test is a process of its own under nextest, so a server shared by all of them is started by the program
//! `testkit-servers` around the run and found by its variable; without one, each process starts its own at first use.

use std::env;
use std::process;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::daemon::Shared;

/// The variable that names a running server, for example `SYNCTOOL_TEST_PG18_URL`.
pub(crate) fn variable(server: &str) -> String {
    format!("SYNCTOOL_TEST_{}_URL", server.to_uppercase())
}

/// The process's instance of `T` called `server`: the one whose address the variable gives, or a new one, which its
/// supervisor ends with the process.
pub(crate) fn instance<T: Send + Sync>(
    cell: &'static Shared<T>,
    server: &str,
    attach: impl FnOnce(&str) -> T,
    start: impl FnOnce() -> T,
) -> &'static T {
    // A panic of an earlier start leaves the map as it was.
    let mut running = cell
        .get_or_init(Mutex::default)
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(found) = running.get(server) {
        return found;
    }
    let new = match env::var(variable(server)) {
        Ok(address) if !address.is_empty() => attach(&address),
        _ => start(),
    };
    let new: &'static T = Box::leak(Box::new(new));
    running.insert(server.into(), new);
    new
}

/// A name nobody else in the run uses, of letters, digits and underscores, so that it needs no quotes.
pub(crate) fn unique_name(prefix: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // Process ids come back within a long run, hence the random part.
    format!(
        "{}_{}_{count}_{:06x}",
        plain(prefix, 30),
        process::id(),
        rand::random::<u32>() >> 8
    )
}

/// The part of a text that may stand in a name.
pub(crate) fn plain(text: &str, limit: usize) -> String {
    let plain = text.chars().map(|c| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_lowercase()
        } else {
            '_'
        }
    });
    let plain: String = plain.take(limit).collect();
    if plain.starts_with(|c: char| c.is_ascii_alphabetic()) {
        plain
    } else {
        format!("t{plain}")
    }
}
