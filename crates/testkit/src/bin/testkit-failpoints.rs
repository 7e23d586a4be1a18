//! A program with failpoints, for the test kit's own tests: it keeps the contract of `synctool_testkit::kill` in the
//! fewest lines. `testkit-failpoints STEPS` makes that many steps, with a failpoint before and after each.

#![allow(clippy::print_stdout, reason = "a program for the terminal")]

use std::collections::HashMap;
use std::env;
use std::fs::OpenOptions;
use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rustix::process::{Signal, getpid, kill_process};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::from(5)
        }
    }
}

fn run() -> Result<()> {
    let steps: u32 = env::args().nth(1).context("how many steps?")?.parse()?;
    let mut passes = HashMap::new();
    for step in 1..=steps {
        failpoint(&mut passes, "step.before")?;
        println!("step {step}");
        failpoint(&mut passes, "step.after")?;
    }
    failpoint(&mut passes, "end")?;
    println!("done");
    Ok(())
}

fn failpoint(passes: &mut HashMap<&'static str, u32>, name: &'static str) -> Result<()> {
    let nth = passes.entry(name).or_default();
    *nth += 1;
    if let Some(trace) = env::var_os("SYNCTOOL_FAILPOINT_TRACE") {
        writeln!(OpenOptions::new().create(true).append(true).open(trace)?, "{name}")?;
    }
    let order = env::var("SYNCTOOL_FAILPOINT").unwrap_or_default();
    match order.strip_prefix(&format!("{name}:{nth}=")) {
        None => {}
        Some("kill") => kill_process(getpid(), Signal::KILL)?,
        Some("stop") => kill_process(getpid(), Signal::STOP)?,
        Some("error") => bail!("the failpoint {name} asks for an error"),
        Some(other) => bail!("unknown action {other}"),
    }
    Ok(())
}
