//! The live view of a run: bars on a terminal, one line now and then elsewhere.

use super::out;
use crate::pipeline::LogView;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::VecDeque;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use synctool_connectors::postgres::log::status::LogStatus;
use synctool_core::backfill::Pause;
use synctool_core::engine::{PartitionStatus, Progress, Step};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

static BARS: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// Whether bars are on the screen.
static SHOWN: AtomicBool = AtomicBool::new(false);

/// Writes whole lines to stderr, above the bars if there are any.
pub(super) fn above(lines: &str) {
    let shown = SHOWN.load(Ordering::SeqCst);
    if !shown || BARS.println(lines.trim_end_matches('\n')).is_err() {
        let _ = std::io::stderr().lock().write_all(lines.as_bytes());
    }
}

/// How the picture is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Bars.
    Bars,
    /// A line every 30 seconds.
    Heartbeat,
    /// Not at all.
    Off,
}

impl Mode {
    /// What fits this process.
    pub(super) fn fitting(quiet: bool, log_json: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        match quiet {
            true => Mode::Off,
            false if std::io::stderr().is_terminal() && !dumb && !log_json => Mode::Bars,
            false => Mode::Heartbeat,
        }
    }
}

const REDRAW: Duration = Duration::from_millis(100);
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Another length, in seconds: for those who watch a log, and for tests.
const HEARTBEAT_VARIABLE: &str = "SYNCTOOL_HEARTBEAT";
/// Rates are of the last few seconds, so that a stall shows.
const WINDOW: Duration = Duration::from_secs(5);

/// Shows a run until it is told that the run is over.
pub(super) struct View {
    over: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
}

impl View {
    /// Begins to show.
    pub(super) fn begin(pipeline: &str, progress: Arc<Progress>, log: LogView, mode: Mode) -> Self {
        let over = CancellationToken::new();
        let (pipeline, until) = (pipeline.to_owned(), over.clone());
        let task = match mode {
            Mode::Off => None,
            Mode::Bars => Some(tokio::spawn(bars(pipeline, progress, log, until))),
            Mode::Heartbeat => Some(tokio::spawn(heartbeat(pipeline, progress, log, until))),
        };
        View {
            over,
            task: task.map(AbortOnDropHandle::new),
        }
    }

    /// Takes the picture away.
    pub(super) async fn end(self) {
        self.over.cancel();
        if let Some(task) = self.task {
            // A picture that died is no reason to fail.
            let _ = task.await;
        }
    }
}

/// One group of partitions, summed up.
#[derive(Debug, Default, Clone, PartialEq)]
struct Group {
    name: String,
    total: usize,
    done: usize,
    running: usize,
    retrying: usize,
    failed: usize,
    rows: u64,
    bytes: u64,
    expected_rows: u64,
}

fn groups(progress: &Progress) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for view in progress.partitions() {
        let at = groups.iter().position(|g| g.name == view.phase).unwrap_or_else(|| {
            groups.push(Group {
                name: view.phase.clone(),
                ..Group::default()
            });
            groups.len() - 1
        });
        let group = &mut groups[at];
        group.total += 1;
        match view.status {
            PartitionStatus::Done | PartitionStatus::Skipped => group.done += 1,
            PartitionStatus::Running => group.running += 1,
            PartitionStatus::Retrying => group.retrying += 1,
            PartitionStatus::Failed => group.failed += 1,
            PartitionStatus::Waiting => {}
        }
        group.rows += view.rows;
        group.bytes += view.bytes;
        // What is done was as large as it turned out to be.
        group.expected_rows += match view.status {
            PartitionStatus::Done => view.rows,
            PartitionStatus::Skipped => view.rows.max(view.expected_rows),
            _ => view.expected_rows.max(view.rows),
        };
        if view.status == PartitionStatus::Skipped && view.rows == 0 {
            group.rows += view.expected_rows;
        }
    }
    groups
}

impl Group {
    fn share(&self) -> f64 {
        match (self.expected_rows, self.total) {
            (_, total) if total > 0 && self.done == total => 1.0,
            (0, 0) => 0.0,
            (0, total) => self.done as f64 / total as f64,
            (expected, _) => (self.rows as f64 / expected as f64).min(0.999),
        }
    }

    fn state(&self) -> &'static str {
        match self {
            g if g.failed > 0 => "failed",
            g if g.done == g.total => "done",
            g if g.retrying > 0 && g.running == 0 => "retrying",
            g if g.running > 0 || g.done > 0 => "running",
            _ => "waiting",
        }
    }
}

/// Rows and bytes per second over the last few seconds.
#[derive(Default)]
struct Rate {
    samples: VecDeque<(Instant, u64, u64)>,
}

impl Rate {
    fn add(&mut self, rows: u64, bytes: u64) -> (f64, f64) {
        let now = Instant::now();
        // A retried partition is counted again from its last commit.
        if self.samples.back().is_some_and(|(_, r, b)| *r > rows || *b > bytes) {
            self.samples.clear();
        }
        self.samples.push_back((now, rows, bytes));
        while self.samples.len() > 2 && now - self.samples[1].0 > WINDOW {
            self.samples.pop_front();
        }
        let (then, r, b) = self.samples[0];
        let seconds = (now - then).as_secs_f64();
        match seconds > 0.05 {
            true => ((rows - r) as f64 / seconds, (bytes - b) as f64 / seconds),
            false => (0.0, 0.0),
        }
    }
}

/// A log has no end to be on the way to: how far it is behind counts, and what is still loaded.
fn describe_log(status: &LogStatus, group: &Group, rate: (f64, f64), retries: u64) -> String {
    let mut text = format!("{}  {} rows", super::cdc::lag(status), out::number(group.rows));
    if rate.0 >= 1.0 {
        text.push_str(&format!("  {} rows/s", out::number(rate.0 as u64)));
    }
    let waiting = status.tables.iter().filter(|t| t.backfill.is_some()).count();
    let active = status
        .tables
        .iter()
        .find(|t| t.backfill.as_ref().is_some_and(|b| b.active));
    if let Some((table, backfill)) = active.and_then(|t| Some((&t.table, t.backfill.as_ref()?))) {
        text.push_str(&format!(
            "  {} {table}: {} rows",
            backfill.kind,
            out::number(backfill.rows)
        ));
        if let Some(eta) = backfill.eta_seconds {
            text.push_str(&format!(", ETA {}", out::duration(eta)));
        }
        if waiting > 1 {
            text.push_str(&format!(", {} more", out::count(waiting - 1, "table")));
        }
    }
    if status.paused != Pause::None {
        text.push_str("  paused");
    }
    if retries > 0 {
        text.push_str(&format!("  {retries} retries"));
    }
    text
}

fn describe(group: &Group, rate: (f64, f64), retries: u64) -> String {
    let mut text = format!(
        "{}/{} partitions  {} rows",
        group.done,
        group.total,
        out::number(group.rows)
    );
    if group.state() == "running" && rate.0 > 0.0 {
        text.push_str(&format!(
            "  {} rows/s  {}/s",
            out::number(rate.0 as u64),
            out::bytes(rate.1)
        ));
        let left = group.expected_rows.saturating_sub(group.rows) as f64 / rate.0;
        if group.expected_rows > 0 && left >= 1.0 {
            text.push_str(&format!("  ETA {}", out::duration(left)));
        }
    }
    if retries > 0 {
        text.push_str(&format!("  {retries} retries"));
    }
    text
}

fn step_text(step: Step) -> &'static str {
    match step {
        Step::Planning => "planning",
        Step::Partitions => "loading",
        Step::Sealing => "building keys",
        Step::Verifying => "verifying",
        Step::Publishing => "putting in place",
        Step::Finished => "finished",
    }
}

async fn bars(pipeline: String, progress: Arc<Progress>, log: LogView, over: CancellationToken) {
    let template = |text: &str| ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
    SHOWN.store(true, Ordering::SeqCst);
    let head = BARS.add(ProgressBar::new_spinner().with_style(template("{spinner} {prefix}  {msg}  {elapsed}")));
    head.set_prefix(pipeline);
    // The last columns stay free: an echoed ^C must not begin a new line.
    let width = comfy_table::Table::new().use_stderr().width().map_or(80, usize::from);
    let room = width.saturating_sub(55).max(20);
    let paint = if out::color() { ".cyan/blue" } else { "" };
    let bar_style = format!("  {{prefix:12}} {{bar:24{paint}}} {{percent:>3}}%  {{msg:{room}!}}");
    let mut shown: Vec<(ProgressBar, Rate)> = Vec::new();
    let mut tick = tokio::time::interval(REDRAW);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = over.cancelled() => break,
        }
        let status = log.status();
        head.set_message(match status {
            Some(_) => "following the log",
            None => step_text(progress.step()),
        });
        head.tick();
        for (i, group) in groups(&progress).iter().enumerate() {
            if shown.len() == i {
                let bar = BARS.add(ProgressBar::new(1000).with_style(template(&bar_style)));
                shown.push((bar, Rate::default()));
            }
            let (bar, rate) = &mut shown[i];
            let rate = rate.add(group.rows, group.bytes);
            bar.set_prefix(format!("{} {}", group.name, group.state()));
            match &status {
                Some(status) => {
                    bar.set_position((loaded(status) * 1000.0) as u64);
                    bar.set_message(describe_log(status, group, rate, progress.retries()));
                }
                None => {
                    bar.set_position((group.share() * 1000.0) as u64);
                    bar.set_message(describe(group, rate, progress.retries()));
                }
            }
        }
    }
    SHOWN.store(false, Ordering::SeqCst);
    shown.iter().for_each(|(bar, _)| bar.finish_and_clear());
    head.finish_and_clear();
    let _ = BARS.clear();
}

/// The share of the tables' rows that are loaded, as far as the catalog knew them.
fn loaded(status: &LogStatus) -> f64 {
    let pending: Vec<f64> = status
        .tables
        .iter()
        .filter_map(|t| t.backfill.as_ref())
        .map(|b| match b.expected {
            Some(n) if n > 0 => (b.rows as f64 / n as f64).min(0.99),
            _ => 0.0,
        })
        .collect();
    let done = status.tables.len() - pending.len();
    (done as f64 + pending.iter().sum::<f64>()) / status.tables.len().max(1) as f64
}

async fn heartbeat(pipeline: String, progress: Arc<Progress>, log: LogView, over: CancellationToken) {
    let mut rates: Vec<Rate> = Vec::new();
    let began = Instant::now();
    let seconds = std::env::var(HEARTBEAT_VARIABLE).ok().and_then(|s| s.parse().ok());
    let every = seconds
        .and_then(|s| Duration::try_from_secs_f64(s).ok())
        .unwrap_or(HEARTBEAT);
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = over.cancelled() => return,
        }
        let step = progress.step();
        let status = log.status();
        let mut parts = Vec::new();
        for (i, group) in groups(&progress).iter().enumerate() {
            if rates.len() == i {
                rates.push(Rate {
                    samples: VecDeque::from([(began, 0, 0)]),
                });
            }
            let rate = rates[i].add(group.rows, group.bytes);
            if let Some(status) = &status {
                parts.push(describe_log(status, group, rate, progress.retries()));
                continue;
            }
            parts.push(format!(
                "{} {:.0}%  {}",
                group.name,
                group.share() * 100.0,
                describe(group, rate, progress.retries())
            ));
        }
        let step = match status {
            Some(_) => "following the log",
            None => step_text(step),
        };
        tracing::info!(target: "synctool::progress", pipeline, step, "{}", parts.join("; "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_by_rows_and_full_only_at_the_end() {
        let group = Group {
            total: 4,
            done: 3,
            running: 1,
            rows: 1000,
            expected_rows: 1000,
            ..Group::default()
        };
        assert!(group.share() < 1.0);
        assert_eq!(group.state(), "running");
        let done = Group {
            done: 4,
            running: 0,
            ..group.clone()
        };
        assert_eq!((done.share(), done.state()), (1.0, "done"));
        let unknown = Group {
            expected_rows: 0,
            ..group
        };
        assert_eq!(unknown.share(), 0.75);
    }
}
