//! One server for a whole test run.
//!
//! Each test is a process of its own under nextest, so a server shared by all of them is started by the program
//! `testkit-servers` around the run and found by its variable; without one, each process starts its own at first use.

use std::collections::HashMap;
use std::env;
use std::sync::{Mutex, OnceLock};

/// The variable that names a running server, for example `SYNCTOOL_TEST_PG18_URL`.
pub(crate) fn variable(server: &str) -> String {
    format!("SYNCTOOL_TEST_{}_URL", server.to_uppercase())
}

/// The process's instance of `T` called `server`: the one whose address the variable gives, or a new one, which its
/// supervisor ends with the process.
pub(crate) fn instance<T: Send + Sync>(
    cell: &'static OnceLock<Mutex<HashMap<String, &'static T>>>,
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
