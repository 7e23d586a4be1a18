//! ClickHouse.

use std::ops::Deref;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::{Port, http, install, shared};

/// ClickHouse's engine behind its HTTP interface on 127.0.0.1. The interface is ours (see
/// `assets/clickhouse_http.py` for its limits): one query runs at a time, and there is only the user `default`.
#[derive(Debug)]
pub struct ClickHouse {
    daemon: Daemon,
}

impl Deref for ClickHouse {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl ClickHouse {
    /// A private one; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|e| panic!("cannot start ClickHouse: {e:#}"))
    }

    /// The one the whole test run shares; use databases of your own.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static RUNNING: Shared<ClickHouse> = Shared::new();
        let attach = |url: &str| Self {
            daemon: Daemon::attach("clickhouse", url),
        };
        shared::instance(&RUNNING, "clickhouse", attach, Self::start)
    }

    fn try_start() -> Result<Self> {
        let port = Port::free();
        let number = port.number();
        let supervisor = Supervisor::new("clickhouse", None, "KILL")?;
        let shim = supervisor.write("clickhouse_http.py", include_str!("../assets/clickhouse_http.py"))?;
        let data = supervisor.directory().join("data").display().to_string();
        let recipe = Recipe {
            program: install::cached("python/bin/python")?,
            arguments: vec![shim.display().to_string(), number.to_string(), data],
            stop: "TERM",
            limit: Duration::from_secs(60),
            ready: Box::new(move |_| {
                http::request(number, "GET", "/ping", &[], b"").is_ok_and(|(code, _)| code == 200)
            }),
        };
        Ok(Self {
            daemon: Daemon::start("clickhouse", supervisor, vec![port], recipe)?,
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port())
    }

    /// Runs a statement; returns tab-separated rows.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The same, for a statement that may fail.
    pub fn try_sql(&self, sql: &str) -> Result<String> {
        let (status, body) = self.request("/", sql.as_bytes())?;
        if status != 200 {
            bail!("status {status}: {body}");
        }
        Ok(body.trim_end_matches('\n').to_owned())
    }

    /// Posts a body to a path with its query string; returns status and body.
    pub fn request(&self, target: &str, body: &[u8]) -> Result<(u16, String)> {
        let (status, body) = http::request(self.port(), "POST", target, &[], body)?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}
