//! Redis.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Deref;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::{Port, install, shared};

/// A Redis server on 127.0.0.1; it keeps an append-only file, so its data survive a restart.
#[derive(Debug)]
pub struct Redis {
    daemon: Daemon,
}

impl Deref for Redis {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl Redis {
    /// A private one; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::try_start().unwrap_or_else(|e| panic!("cannot start Redis: {e:#}"))
    }

    /// The one the whole test run shares; use keys of your own.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static RUNNING: Shared<Redis> = Shared::new();
        let attach = |url: &str| Self {
            daemon: Daemon::attach("redis", url),
        };
        shared::instance(&RUNNING, "redis", attach, Self::start)
    }

    fn try_start() -> Result<Self> {
        let port = Port::free();
        let supervisor = Supervisor::new("redis", None, "KILL")?;
        let number = port.number();
        let options = format!("--bind 127.0.0.1 --port {number} --dir . --appendonly yes --appendfsync no --save");
        let recipe = Recipe {
            program: install::system("redis-server")?,
            arguments: options.split(' ').map(String::from).chain([String::new()]).collect(),
            stop: "TERM",
            limit: Duration::from_secs(30),
            ready: Box::new(move |_| command(number, &["PING"]).is_ok_and(|answer| answer == "PONG")),
        };
        Ok(Self {
            daemon: Daemon::start("redis", supervisor, vec![port], recipe)?,
        })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port())
    }

    /// Sends one command; returns a simple, integer or bulk answer as text (empty for nil).
    ///
    /// # Panics
    /// If the server answers with an error, or with an array.
    #[track_caller]
    pub fn command(&self, words: &[&str]) -> String {
        command(self.port(), words).unwrap_or_else(|e| panic!("{}: {e}", words.join(" ")))
    }
}

fn command(port: u16, words: &[&str]) -> io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request += &format!("${}\r\n{word}\r\n", word.len());
    }
    stream.write_all(request.as_bytes())?;
    let mut answers = BufReader::new(stream);
    let mut line = String::new();
    answers.read_line(&mut line)?;
    let line = line.trim_end();
    match line.split_at_checked(1) {
        Some(("+" | ":", text)) => Ok(text.into()),
        Some(("$", "-1")) => Ok(String::new()),
        Some(("$", length)) => {
            let mut text = vec![0; length.parse().map_err(io::Error::other)?];
            answers.read_exact(&mut text)?;
            String::from_utf8(text).map_err(io::Error::other)
        }
        _ => Err(io::Error::other(line.to_owned())),
    }
}
