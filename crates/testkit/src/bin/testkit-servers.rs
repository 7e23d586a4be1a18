//! Starts the servers that a whole test run shares, runs a command with their addresses in its environment, stops them.
//!
//! `testkit-servers pg15 pg18 -- cargo nextest run`

#![allow(clippy::print_stderr, reason = "a program for the terminal")]

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use synctool_testkit::{PgVersion, Postgres};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(split) = arguments.iter().position(|argument| argument == "--") else {
        bail!("usage: testkit-servers SERVER... -- COMMAND [ARGUMENT...], where SERVER is pg15, pg18, ...");
    };
    let (names, command) = (&arguments[..split], &arguments[split + 1..]);
    let [program, arguments @ ..] = command else {
        bail!("no command after --")
    };

    let mut running = Vec::new();
    let mut command = Command::new(program);
    for name in names {
        let version = name.strip_prefix("pg").and_then(|major| major.parse().ok());
        let version = version.with_context(|| format!("no server is called {name}"))?;
        let server = Postgres::start(PgVersion::new(version));
        let variable = format!("SYNCTOOL_TEST_{}_URL", name.to_uppercase());
        eprintln!("{variable}={}", server.admin_url());
        command.env(variable, server.admin_url());
        running.push(server);
    }
    let status = command
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(ExitCode::from(
        status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}
