//! Running a whole program that is killed at a named failpoint.
//!
//! The program's part of the contract (`synctool_core` keeps it): on the nth time it reaches the failpoint `name` under
//! `SYNCTOOL_FAILPOINT=name:nth=action` it kills itself with signal 9 (`kill`), stops itself (`stop`), or lets that step
//! fail (`error`); and under `SYNCTOOL_FAILPOINT_TRACE=file` it appends the name of every failpoint it reaches, a line
//! each, to that file.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::process;
use crate::wait::{pause, wait_for};

const POINT: &str = "SYNCTOOL_FAILPOINT";
const TRACE: &str = "SYNCTOOL_FAILPOINT_TRACE";

/// One moment of a program's life: the nth time it reaches a failpoint. Counts from 1.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Failpoint {
    /// The failpoint's name.
    pub name: String,
    /// Which of its passes.
    pub nth: u32,
}

impl fmt::Display for Failpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.nth)
    }
}

/// What is to happen at a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Signal 9.
    Kill,
    /// A pause until [`Running::resume`], as a machine that was suspended makes.
    Stop,
    /// The step fails with an error.
    Error,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
            Self::Error => "error",
        })
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// By signal 9.
    pub killed: bool,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
    /// How long it took.
    pub elapsed: Duration,
}

impl Outcome {
    /// # Panics
    /// Unless the run ended with exit code 0; shows what it said.
    #[track_caller]
    pub fn assert_success(&self) {
        assert_eq!(
            self.code,
            Some(0),
            "killed: {}\n{}\n{}",
            self.killed,
            self.stdout,
            self.stderr
        );
    }

    /// # Panics
    /// Unless the run was killed by signal 9; shows what it said.
    #[track_caller]
    pub fn assert_killed(&self) {
        assert!(
            self.killed,
            "exit code {:?}\n{}\n{}",
            self.code, self.stdout, self.stderr
        );
    }
}

/// A program to be run, perhaps with an accident.
#[derive(Debug, Clone)]
pub struct KillRun {
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, Option<OsString>)>,
    directory: Option<PathBuf>,
    accident: Option<(Failpoint, Action)>,
    limit: Duration,
}

impl KillRun {
    /// Takes over the command's program, arguments, variables and directory; it may be run many times.
    pub fn new(command: &Command) -> Self {
        Self {
            program: command.get_program().into(),
            arguments: command.get_args().map(Into::into).collect(),
            variables: command
                .get_envs()
                .map(|(name, value)| (name.into(), value.map(Into::into)))
                .collect(),
            directory: command.get_current_dir().map(Into::into),
            accident: None,
            limit: Duration::from_secs(120),
        }
    }

    /// Kills it the nth time it reaches this failpoint; counts from 1.
    #[must_use]
    pub fn at(self, name: &str, nth: u32) -> Self {
        self.accident(&Failpoint { name: name.into(), nth }, Action::Kill)
    }

    /// Lets something happen at a failpoint.
    #[must_use]
    pub fn accident(mut self, point: &Failpoint, action: Action) -> Self {
        assert!(point.nth > 0, "passes of {} are counted from 1", point.name);
        self.accident = Some((point.clone(), action));
        self
    }

    /// How long a run may take; 120 s unless set.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it cannot be started or takes too long (it is killed then).
    #[track_caller]
    pub fn run(&self) -> Outcome {
        self.start().wait()
    }

    /// Starts it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(&self) -> Running {
        let point = self
            .accident
            .as_ref()
            .map(|(point, action)| format!("{point}={action}"));
        self.spawn(POINT, point.map(OsString::from))
    }

    /// Runs it undisturbed and lists every failpoint it reaches, in order.
    ///
    /// # Panics
    /// If the run fails.
    #[track_caller]
    pub fn failpoints_reached(&self) -> Vec<Failpoint> {
        let place = tempfile::tempdir().expect("a directory for the trace");
        let trace = place.path().join("trace");
        self.spawn(TRACE, Some(trace.clone().into())).wait().assert_success();
        let mut passes: HashMap<String, u32> = HashMap::new();
        // A program without failpoints writes no file.
        let names = fs::read_to_string(trace).unwrap_or_default();
        let count = |name: &str| {
            let nth = passes.entry(name.into()).or_default();
            *nth += 1;
            Failpoint {
                name: name.into(),
                nth: *nth,
            }
        };
        names.lines().map(count).collect()
    }

    #[track_caller]
    fn spawn(&self, variable: &str, value: Option<OsString>) -> Running {
        let place = tempfile::tempdir().expect("a directory for the output");
        let file = |name| File::create(place.path().join(name)).expect("a file for the output");
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_remove(POINT).env_remove(TRACE);
        for (name, value) in &self.variables {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        if let Some(value) = value {
            command.env(variable, value);
        }
        // Files rather than pipes: a program that says much must not wait for a reader.
        command
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"));
        let child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", self.program.display()));
        Running {
            child,
            place,
            started: Instant::now(),
            limit: self.limit,
        }
    }
}

/// A program under way; it is killed when this value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    place: TempDir,
    started: Instant,
    limit: Duration,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        self.text("stdout")
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        self.text("stderr")
    }

    /// Waits until it has stopped itself at its failpoint.
    ///
    /// # Panics
    /// If it ends instead, or does not get there in time.
    #[track_caller]
    pub fn wait_stopped(&mut self) {
        let (pid, limit) = (self.pid(), self.limit);
        wait_for("the program to stop itself", limit, || {
            if let Some(status) = self.child.try_wait().expect("the program's status") {
                panic!("the program ended ({status}) before its failpoint\n{}", self.stderr());
            }
            process::state(pid) == Some('T')
        });
    }

    /// Whether it has ended by itself, or by what was done to it.
    ///
    /// # Panics
    /// If its status cannot be asked for.
    #[track_caller]
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the program's status").is_some()
    }

    /// Lets a stopped program go on.
    pub fn resume(&self) {
        process::signal(self.pid(), Signal::CONT);
    }

    /// Sends it the signal of Ctrl-C.
    pub fn interrupt(&self) {
        process::signal(self.pid(), Signal::INT);
    }

    /// Sends it the signal by which services are stopped.
    pub fn terminate(&self) {
        process::signal(self.pid(), Signal::TERM);
    }

    /// Kills it with signal 9.
    ///
    /// # Panics
    /// If it survives that.
    #[track_caller]
    pub fn kill(self) -> Outcome {
        process::signal(self.pid(), Signal::KILL);
        self.wait()
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it takes too long (it is killed then).
    #[track_caller]
    pub fn wait(mut self) -> Outcome {
        loop {
            if let Some(status) = self.child.try_wait().expect("the program's status") {
                return self.outcome(status);
            }
            if self.started.elapsed() > self.limit {
                let (limit, stderr) = (self.limit, self.stderr());
                panic!("the program has not ended within {limit:?}; it said:\n{stderr}");
            }
            pause();
        }
    }

    fn outcome(&self, status: ExitStatus) -> Outcome {
        Outcome {
            killed: status.signal() == Some(Signal::KILL.as_raw()),
            code: status.code(),
            stdout: self.stdout(),
            stderr: self.stderr(),
            elapsed: self.started.elapsed(),
        }
    }

    fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.place.path().join(name)).unwrap_or_default()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// At most `most` passes of each failpoint: the first, the last, and some evenly between. A loop reaches the same one
/// thousands of times; killing at each would tell nothing new.
pub fn spread(points: &[Failpoint], most: usize) -> Vec<Failpoint> {
    let mut totals: HashMap<&str, u32> = HashMap::new();
    for point in points {
        *totals.entry(&point.name).or_default() += 1;
    }
    let chosen = |point: &&Failpoint| {
        let total = u64::from(totals[point.name.as_str()]);
        let most = most as u64;
        let nth = u64::from(point.nth);
        total <= most || (0..most).any(|i| 1 + i * (total - 1) / (most - 1).max(1) == nth)
    };
    points.iter().filter(chosen).cloned().collect()
}
