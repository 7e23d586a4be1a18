//! What every server of the kit can do.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::supervisor::Supervisor;
use crate::{Port, shared};

/// A server process: private to this test, or shared by the whole test run.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    port: u16,
    own: Option<Own>,
}

/// What only the process that started the server has.
#[derive(Debug)]
struct Own {
    supervisor: Mutex<Supervisor>,
    recipe: Recipe,
    _ports: Vec<Port>,
}

/// How to start a server whose directory is ready.
pub(crate) struct Recipe {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// The signal of an ordinary stop.
    pub(crate) stop: &'static str,
    pub(crate) limit: Duration,
    /// Whether the server answers; asked again and again.
    pub(crate) ready: Box<dyn Fn(&Supervisor) -> bool + Send + Sync>,
}

impl fmt::Debug for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipe")
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .finish_non_exhaustive()
    }
}

/// Where a server type keeps this process's shared instances.
pub(crate) type Shared<T> = OnceLock<Mutex<HashMap<String, &'static T>>>;

impl Daemon {
    /// Starts a server; clients use the first of `ports`.
    pub(crate) fn start(name: &str, supervisor: Supervisor, ports: Vec<Port>, recipe: Recipe) -> Result<Self> {
        let port = ports.first().context("a server without a port")?.number();
        let own = Own {
            supervisor: Mutex::new(supervisor),
            recipe,
            _ports: ports,
        };
        let daemon = Self {
            name: name.into(),
            port,
            own: Some(own),
        };
        daemon.launch()?;
        Ok(daemon)
    }

    /// A server that somebody else started, by its URL.
    pub(crate) fn attach(name: &str, url: &str) -> Self {
        let port = url
            .split_once("127.0.0.1:")
            .map(|(_, rest)| rest.split('/').next().unwrap_or_default());
        let port = port.and_then(|port| port.parse().ok());
        let port = port.unwrap_or_else(|| panic!("{}={url} does not name a port of 127.0.0.1", shared::variable(name)));
        Self {
            name: name.into(),
            port,
            own: None,
        }
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What the server has written to its log so far.
    ///
    /// # Panics
    /// For a shared server.
    #[track_caller]
    pub fn log(&self) -> String {
        self.own().0.log()
    }

    /// Stops it and waits for its end. PostgreSQL shuts down at once, without a checkpoint, and recovers at its next
    /// start; S3 is killed; the others end in an orderly way.
    ///
    /// # Panics
    /// For a shared server.
    #[track_caller]
    pub fn stop(&self) {
        let (mut supervisor, recipe) = self.own();
        supervisor
            .stop(recipe.stop)
            .unwrap_or_else(|e| panic!("cannot stop {}: {e:#}", self.name));
    }

    /// Kills all its processes with signal 9.
    ///
    /// # Panics
    /// For a shared server.
    #[track_caller]
    pub fn kill9(&self) {
        self.own()
            .0
            .crash()
            .unwrap_or_else(|e| panic!("cannot kill {}: {e:#}", self.name));
    }

    /// Stops it if it runs, and starts it again on the same port with what is in its directory.
    ///
    /// # Panics
    /// For a shared server, or if it does not start.
    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.launch()
            .unwrap_or_else(|e| panic!("cannot restart {}: {e:#}", self.name));
    }

    #[track_caller]
    fn own(&self) -> (MutexGuard<'_, Supervisor>, &Recipe) {
        let Some(own) = &self.own else {
            panic!(
                "this {} is shared by the whole test run; start one of your own",
                self.name
            );
        };
        (
            own.supervisor.lock().unwrap_or_else(|poisoned| poisoned.into_inner()),
            &own.recipe,
        )
    }

    fn launch(&self) -> Result<()> {
        let (mut supervisor, recipe) = self.own();
        supervisor.start(&recipe.program, &recipe.arguments)?;
        supervisor.until_ready(recipe.limit, || (recipe.ready)(&supervisor))
    }
}
