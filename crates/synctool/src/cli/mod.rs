//! The command line: a thin layer over [`crate::Pipeline`]. One file per command.

mod args;
mod bug;
mod cdc;
mod config;
mod conns;
mod copy;
mod datasync;
mod doctor;
mod find;
mod init;
mod live;
mod logging;
mod out;
mod plan;
mod run;
mod runs;
mod signals;
mod state;
mod verify;
mod wal;

use crate::config::Loader;
use crate::state::redacted;
use args::{Cli, Command, Format, Globals};
use clap::{CommandFactory, Parser};
use out::Reply;
use std::ffi::OsString;
use synctool_core::error::{Error, Result, code};

/// Does what the arguments say; the process should exit with the number returned.
pub async fn main(arguments: Vec<OsString>) -> u8 {
    bug::install();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, &arguments),
    };
    let format = cli.globals.output;
    if let Err(error) = logging::install(&cli.globals) {
        return out::fail(error, format);
    }
    let interrupt = signals::listen();
    let globals = cli.globals;
    // A task of its own, so that a panic is told as what it is.
    let work = tokio::spawn(async move { Box::pin(dispatch(cli.command, &globals, interrupt)).await });
    match work.await {
        Ok(Ok(reply)) => out::print(reply, format),
        Ok(Err(error)) => out::fail(error, format),
        Err(_) => 1,
    }
}

async fn dispatch(command: Command, globals: &Globals, interrupt: signals::Interrupt) -> Result<Reply> {
    match command {
        Command::Run(args) => Box::pin(run::run(args, globals, interrupt)).await,
        Command::Copy(args) => Box::pin(copy::copy(args, globals, interrupt)).await,
        Command::Plan(args) => Box::pin(plan::plan(args, globals)).await,
        Command::Verify(args) => Box::pin(verify::verify(args, globals)).await,
        Command::Repair(args) => Box::pin(verify::repair(args, globals, interrupt)).await,
        Command::Diff(args) => Box::pin(verify::diff(args, globals)).await,
        Command::Init(args) => init::init(args, globals).await,
        Command::Doctor(args) => Box::pin(doctor::doctor(args, globals)).await,
        Command::Config(command) => config::config(command, globals),
        Command::State(command) => state::state(command, globals).await,
        Command::Runs(command) => runs::runs(command, globals).await,
        Command::Conns(command) => Box::pin(conns::conns(command, globals)).await,
        Command::Datasync(args) => Box::pin(datasync::datasync(args, globals, interrupt)).await,
        Command::Cdc(command) => Box::pin(cdc::cdc(command, globals)).await,
        Command::Wal(command) => wal::wal(command, globals).await,
        Command::Completions { shell } => Ok(completions(shell)),
    }
}

fn completions(shell: clap_complete::Shell) -> Reply {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "synctool", &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    Reply::new(
        serde_json::json!({ "shell": shell.to_string(), "script": script }),
        script,
    )
}

/// Help and version go to stdout; a mistake is told by clap, and as JSON where that was asked for.
fn usage(error: &clap::Error, arguments: &[OsString]) -> u8 {
    let exit = error.exit_code();
    if exit == 0 || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return exit as u8;
    }
    // A word that is not understood is repeated, and may be a URI with its password.
    let told = error.render().to_string();
    let clean = redacted(&told);
    match clean == told {
        true => drop(error.print()),
        false => out::to_stderr(clean.trim_end()),
    }
    let said: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let wants_json = said.iter().enumerate().any(|(i, a)| {
        a.starts_with("--output=") && a.contains("json")
            || a == "--output" && said.get(i + 1).is_some_and(|f| f.contains("json"))
    });
    if wants_json {
        let message = format!("the command line is wrong: {}", first_paragraph(&clean));
        let error = Error::new(code::CONFIG_INVALID, message).hint("synctool --help");
        out::to_stdout(&format!(
            "{}\n",
            serde_json::json!({ "status": "failed", "error": out::error_json(&error) })
        ));
    }
    2
}

/// What clap says in its first paragraph, as one line.
fn first_paragraph(told: &str) -> String {
    let lines = told.lines().map(str::trim).take_while(|line| !line.is_empty());
    let said = lines.collect::<Vec<_>>().join(" ");
    said.strip_prefix("error: ").unwrap_or(&said).to_owned()
}

impl Globals {
    /// A loader that knows what the command line says.
    fn loader(&self) -> Loader {
        Loader::new()
            .data_dir(self.data_dir.clone())
            .global_config(self.global_config.clone())
            .datastores(self.datastores.clone())
    }

    /// A note for people on stderr.
    fn note(&self, text: &str) {
        if !self.quiet {
            match self.log_format {
                args::LogFormat::Json => tracing::info!(target: "synctool::note", "{text}"),
                args::LogFormat::Text => out::to_stderr(&format!("note: {text}")),
            }
        }
    }

    /// Asks before something is lost. Without a terminal only `--yes` is an answer.
    fn confirm(&self, question: &str) -> Result<()> {
        use std::io::IsTerminal;
        if self.yes {
            return Ok(());
        }
        if self.output != Format::Text || !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(
                Error::new(code::REFUSED, format!("{question} Nobody is there to answer"))
                    .hint("say --yes if it is meant"),
            );
        }
        out::to_stderr(&format!("{question} [y/N]"));
        let mut answer = String::new();
        let _ = std::io::stdin().read_line(&mut answer);
        match answer.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => Ok(()),
            _ => Err(Error::new(code::REFUSED, "not confirmed; nothing was changed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_help() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path} says nothing about itself");
            for argument in command.get_arguments() {
                let hidden = argument.is_hide_set() || ["help", "version"].contains(&argument.get_id().as_str());
                assert!(
                    hidden || argument.get_help().is_some(),
                    "{path} --{} has no help",
                    argument.get_id()
                );
            }
            command
                .get_subcommands()
                .filter(|c| c.get_name() != "help")
                .for_each(|c| walk(c, &path));
        }
        walk(&Cli::command(), "");
    }

    /// clap wraps at 100 columns: a longer line would be broken in two, the second one short and ragged.
    #[test]
    fn no_line_of_a_help_is_wrapped() {
        fn walk(command: &clap::Command) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            for line in help.lines() {
                assert!(line.chars().count() <= 100, "{}: {line}", command.get_name());
            }
            command.get_subcommands().for_each(walk);
        }
        walk(&Cli::command());
    }

    #[test]
    fn every_command_has_examples_that_parse() {
        fn walk(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples = examples(&help);
            let own = examples.iter().any(|words| words.join(" ").starts_with(path.trim()));
            assert!(own || command.has_subcommands(), "{path} has no example");
            for words in examples {
                if let Err(error) = Cli::try_parse_from(&words) {
                    panic!("{path}: {words:?}: {error}");
                }
            }
            command.get_subcommands().for_each(|c| walk(c, &path));
        }
        walk(&Cli::command(), "");
    }

    /// The commands among the examples of a help.
    fn examples(help: &str) -> Vec<Vec<String>> {
        let lines = help.lines().filter(|line| line.starts_with("  "));
        let commands = lines.flat_map(|line| line.trim().split(" && "));
        commands.filter(|c| c.starts_with("synctool ")).map(words).collect()
    }

    /// A command as its words. What stands behind two spaces explains, and what stands behind `>` is a file.
    fn words(command: &str) -> Vec<String> {
        let mut words = vec![String::new()];
        let mut quote = None;
        for c in command.chars() {
            let word = words.last_mut().expect("one at least");
            match (quote, c) {
                (None, '\'' | '"') => quote = Some(c),
                (Some(open), c) if c == open => quote = None,
                (None, '>') => break,
                (None, ' ') if word.is_empty() => break,
                (None, ' ') => words.push(String::new()),
                _ => word.push(c),
            }
        }
        words.retain(|word| !word.is_empty());
        words
    }
}
