//! Keeping a server no longer than its test.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::process;
use crate::wait::pause;

/// The shell that owns the server: it obeys lines on its input, and ends the server and removes its directory when
/// that input closes. A closed pipe is the one sign every end of a test gives: return, panic, exit, kill -9.
const SHELL: &str = r#"
directory=$1 last_signal=$2 pid= litter=
stop() {
  if [ -n "$pid" ]; then
    kill -"$1" "$pid"
    kill -CONT "$pid"
    wait "$pid"
    pid=
  fi
}
while read -r word rest; do
  case $word in
  start)
    eval "exec $rest" </dev/null >>"$directory/server.log" 2>&1 &
    pid=$!
    echo "$pid"
    ;;
  stop)
    stop "$rest"
    echo stopped
    ;;
  litter)
    litter="$litter $rest"
    echo noted
    ;;
  esac
done
stop "$last_signal"
cd /
rm -rf "$directory" $litter
"#;

/// A server process with its private directory.
#[derive(Debug)]
pub(crate) struct Supervisor {
    name: String,
    directory: PathBuf,
    account: Option<Account>,
    shell: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    pid: Option<u32>,
}

/// Some servers refuse to run as root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// None unless we are root: then everything runs as ourselves.
    fn instead_of_root(user: &str) -> Result<Option<Self>> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let number = |flag: &str| -> Result<u32> {
            let text = process::output(Command::new("id").args([flag, user]))?;
            text.trim().parse().with_context(|| format!("id {flag} {user}"))
        };
        Ok(Some(Self {
            uid: number("-u")?,
            gid: number("-g")?,
        }))
    }
}

impl Supervisor {
    /// Makes the directory and the supervising shell; nothing runs yet. Root becomes `user` for all of it. `last` is
    /// the signal that ends the server with the test.
    pub(crate) fn new(name: &str, user: Option<&str>, last: &str) -> Result<Self> {
        let account = user.map(Account::instead_of_root).transpose()?.flatten();
        // The path stays short, since sockets below it may have only 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix(&format!("synctool-{name}-"))
            .tempdir()?
            .keep();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?;
        if let Some(account) = account {
            chown(&directory, Some(account.uid), Some(account.gid))?;
        }
        let mut shell = Command::new("/bin/sh");
        shell.args(["-c", SHELL, "supervisor"]).arg(&directory).arg(last);
        settle(&mut shell, account, &directory);
        // A group of its own: an interrupt typed at the terminal must not end the server before its test.
        shell
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut shell = shell.spawn().context("cannot start /bin/sh")?;
        let orders = shell.stdin.take();
        let answers = BufReader::new(shell.stdout.take().context("the shell's output")?);
        Ok(Self {
            name: name.into(),
            directory,
            account,
            shell,
            orders,
            answers,
            pid: None,
        })
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The server's process, if it was started.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// A file of the server's own in its directory, readable by it alone.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        if let Some(account) = self.account {
            chown(&path, Some(account.uid), Some(account.gid))?;
        }
        Ok(path)
    }

    /// A file the server leaves outside its directory, to be removed with it.
    pub(crate) fn also_remove(&mut self, path: &str) -> Result<()> {
        self.order(&format!("litter {path}")).map(drop)
    }

    /// Runs a preparing step (initdb) to its end, as the server's user.
    pub(crate) fn prepare(&self, program: &Path, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(program);
        settle(
            command.args(arguments).stdin(Stdio::null()),
            self.account,
            &self.directory,
        );
        process::output(&mut command).map(drop)
    }

    /// Starts the server process and returns its id.
    pub(crate) fn start(&mut self, program: &Path, arguments: &[String]) -> Result<u32> {
        let program = program
            .to_str()
            .with_context(|| format!("{} is not UTF-8", program.display()))?;
        let words = std::iter::once(program).chain(arguments.iter().map(String::as_str));
        let line: Vec<String> = words.map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
        let answer = self.order(&format!("start {}", line.join(" ")))?;
        let pid = answer
            .parse()
            .with_context(|| format!("the process id of {}: {answer}", self.name))?;
        self.pid = Some(pid);
        Ok(pid)
    }

    /// Signals the server and waits until it has ended; its directory stays for another start.
    pub(crate) fn stop(&mut self, signal: &str) -> Result<()> {
        if self.pid.take().is_some() {
            self.order(&format!("stop {signal}"))?;
        }
        Ok(())
    }

    /// Kills the server with all its processes, as a crash of its machine would.
    pub(crate) fn crash(&mut self) -> Result<()> {
        let Some(pid) = self.pid else { return Ok(()) };
        // Stopped first, so that it neither starts another child nor tidies up after a dead one.
        process::signal(pid, Signal::STOP);
        let family = process::children(pid);
        process::signal(pid, Signal::KILL);
        for child in &family {
            process::signal(*child, Signal::KILL);
        }
        self.stop("KILL")?;
        let end = Instant::now() + Duration::from_secs(10);
        while let Some(child) = family.iter().find(|child| process::alive(**child)) {
            if Instant::now() > end {
                bail!("process {child} of {} survives kill -9", self.name);
            }
            pause();
        }
        Ok(())
    }

    /// Waits until `ready` says so, or fails with the end of the server's log.
    pub(crate) fn until_ready(&self, timeout: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let end = Instant::now() + timeout;
        loop {
            if ready() {
                return Ok(());
            }
            if !self.pid.is_some_and(process::alive) {
                bail!(
                    "{} ended while starting; its log ends with:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if Instant::now() > end {
                bail!(
                    "{} was not ready within {timeout:?}; its log ends with:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            pause();
        }
    }

    /// The server's own messages.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.join("server.log")).unwrap_or_default()).into_owned()
    }

    fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn order(&mut self, line: &str) -> Result<String> {
        anyhow::ensure!(!line.contains('\n'), "a server's arguments may not contain line breaks");
        let orders = self.orders.as_mut().context("the supervisor is gone")?;
        writeln!(orders, "{line}").context("the supervisor is gone")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        anyhow::ensure!(!answer.is_empty(), "the supervisor of {} has died", self.name);
        Ok(answer.trim_end().into())
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.shell.wait();
    }
}

/// The user, the place and a clean environment, so that PG* variables of the developer change nothing.
fn settle(command: &mut Command, account: Option<Account>, directory: &Path) {
    command
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.env("HOME", directory).env("LC_ALL", "C.UTF-8");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
}
