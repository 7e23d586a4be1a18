//! Starts the servers that a whole test run shares, runs a command with their addresses in its environment, stops them.
//!
//! `testkit-servers pg15 pg18 -- cargo nextest run`

#![allow(clippy::print_stderr, reason = "a program for the terminal")]

use std::any::Any;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail};
use synctool_testkit::{ClickHouse, Kafka, MariaDb, PgVersion, Postgres, Prepared, Redis, S3};

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some(split) = arguments.iter().position(|argument| argument == "--") else {
        bail!(
            "usage: testkit-servers SERVER... -- COMMAND [ARGUMENT...]\n\
             where SERVER is pg12 ... pg18, mariadb, redis, kafka, s3 or clickhouse"
        );
    };
    let (names, command) = (&arguments[..split], &arguments[split + 1..]);
    let [program, arguments @ ..] = command else {
        bail!("no command after --")
    };

    let mut command = Command::new(program);
    let mut running = Vec::new();
    for name in names {
        let (url, server) = start(name)?;
        let variable = format!("SYNCTOOL_TEST_{}_URL", name.to_uppercase());
        eprintln!("{variable}={url}");
        command.env(variable, url);
        running.push(server);
    }
    // Every other server that a test starts begins with a copy of what is in there.
    let prepared = Prepared::new()?;
    let (variable, directory) = prepared.variable();
    command.env(variable, directory);
    let status = command
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {program}"))?;
    Ok(ExitCode::from(
        status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
    ))
}

/// A server's URL, and the value that keeps it alive.
fn start(name: &str) -> Result<(String, Box<dyn Any>)> {
    Ok(match name {
        "mariadb" => {
            let server = MariaDb::start();
            (server.url(""), Box::new(server))
        }
        "redis" => {
            let server = Redis::start();
            (server.url(), Box::new(server))
        }
        "kafka" => {
            let server = Kafka::start();
            (server.bootstrap(), Box::new(server))
        }
        "s3" => {
            let server = S3::start();
            (server.endpoint(), Box::new(server))
        }
        "clickhouse" => {
            let server = ClickHouse::start();
            (server.url(), Box::new(server))
        }
        _ => {
            let major = name.strip_prefix("pg").and_then(|major| major.parse().ok());
            let major = major.with_context(|| format!("no server is called {name}"))?;
            let server = Postgres::start_shared(PgVersion::new(major));
            (server.admin_url(), Box::new(server))
        }
    })
}
