//! Which strategy a run follows, and why.
//!
//! What was asked for by name is done. Otherwise an unfinished run goes on; else the state of the destination, the gap
//! since the last run and what earlier runs took decide. The reason is told.

use super::RunOptions;
use crate::config::{Loaded, Pipeline, Strategy, StrategyKind};
use crate::state::{Run, RunStatus, Time};
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::Strategy as Kind;
use synctool_core::progress::PartitionState;
use synctool_core::sink::{Destination, StoredPlan};

/// Runs of the past that are looked at.
pub(super) const HISTORY: usize = 200;

/// What is known before choosing.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Whether the destination has no rows, or no table.
    pub(super) empty: bool,
    /// The watermarks that it remembers, by the names of the strategies that go on from them.
    pub(super) watermarks: BTreeMap<String, String>,
    /// Why a watermark that it remembers does not count.
    pub(super) doubt: Option<&'static str>,
    /// Its latest runs, newest first.
    pub(super) history: Vec<Run>,
    /// Now.
    pub(super) now: Option<Time>,
}

/// A run that was interrupted, and what it was about.
pub(super) struct Unfinished {
    run_id: String,
    strategy: String,
    repair: bool,
    bounds: serde_json::Value,
}

impl Unfinished {
    /// None where the plan is done or nothing of it, or where it follows a log, which is never done.
    pub(super) async fn at(destination: &dyn Destination, pipeline: &str) -> Result<Option<Self>> {
        let Some(StoredPlan { plan, finished: false }) = destination.stored_plan(pipeline).await? else {
            return Ok(None);
        };
        let strategies = plan.semantics["strategies"].as_object();
        let Some(strategy) = strategies
            .and_then(|s| s.keys().next())
            .filter(|_| plan.strategy != Kind::Log)
        else {
            return Ok(None);
        };
        if !destination
            .checkpoint(&plan)
            .await?
            .values()
            .any(PartitionState::has_begun)
        {
            return Ok(None);
        }
        Ok(Some(Unfinished {
            strategy: strategy.clone(),
            repair: plan.semantics["repair"] == true,
            bounds: plan.semantics["bounds"].clone(),
            run_id: plan.run_id,
        }))
    }

    /// The strategy of an unfinished run goes on, whatever would be chosen now; `None` where the pipeline has none of
    /// that name any more.
    pub(super) fn goes_on<'a>(&self, pipeline: &'a Pipeline) -> Option<(&'a Strategy, String)> {
        let strategy = pipeline.strategies.iter().find(|s| *s.name == self.strategy)?;
        Some((
            strategy,
            format!("strategy {}: its run {} is unfinished", self.strategy, self.run_id),
        ))
    }

    /// Refuses to do something else while it is unfinished.
    pub(super) fn check(&self, pipeline: &Pipeline, named: Option<&Strategy>, options: &RunOptions) -> Result<()> {
        let Some((strategy, _)) = self.goes_on(pipeline) else {
            return Ok(());
        };
        let other = named.is_some_and(|n| *n.name != *strategy.name);
        let bounds = match options.bounds.is_empty() {
            true => serde_json::Value::Null,
            false => serde_json::json!(options.bounds),
        };
        if !other && self.repair == options.repair && self.bounds == bounds {
            return Ok(());
        }
        let command = if self.repair { "repair" } else { "run" };
        let bounded = if self.bounds.is_null() { "" } else { " and its --bounds" };
        let name = pipeline.name.as_str();
        Err(Error::new(
            code::CONFIG_CHANGED,
            format!("{command} {} of strategy {} is unfinished", self.run_id, self.strategy),
        )
        .at("pipeline", name)
        .hint(format!(
            "finish it: synctool {command} {name} --strategy {}{bounded}; or forget it: synctool state reset {name}",
            self.strategy
        )))
    }
}

/// The strategy by which both ends are compared: `verify`, the preview of a repair and a repair take the same one.
pub(super) async fn of_comparison<'a>(
    destination: &dyn Destination,
    pipeline: &'a Pipeline,
    named: Option<&str>,
) -> Result<&'a Strategy> {
    if let Some(name) = named {
        return Ok(pipeline.strategy(name)?);
    }
    let unfinished = Unfinished::at(destination, pipeline.name.as_str()).await?;
    match unfinished.filter(|u| u.repair).and_then(|u| u.goes_on(pipeline)) {
        Some((strategy, _)) => Ok(strategy),
        None => comparing(pipeline),
    }
}

/// The strategy of a comparison where none is named and none is unfinished: the first that would be chosen for a run,
/// else the first that is enabled, else the first.
pub(super) fn comparing(pipeline: &Pipeline) -> Result<&Strategy> {
    let first = |may: fn(&&Strategy) -> bool| pipeline.strategies.iter().find(may);
    first(|s| *s.enabled && *s.default)
        .or_else(|| first(|s| *s.enabled))
        .or_else(|| first(|_| true))
        .ok_or_else(|| {
            Error::new(code::CONFIG_INVALID, "the pipeline has no strategy").at("pipeline", pipeline.name.as_str())
        })
}

/// The strategies that may be chosen where none was named; an error where there is none.
pub(super) fn candidates(loaded: &Loaded) -> Result<Vec<&Strategy>> {
    let pipeline = &loaded.pipeline;
    let found: Vec<&Strategy> = pipeline
        .strategies
        .iter()
        .filter(|s| *s.enabled && *s.default)
        .collect();
    if found.is_empty() {
        return Err(
            Error::new(code::CONFIG_INVALID, "no strategy of the pipeline is enabled")
                .at("pipeline", pipeline.name.as_str())
                .hint("set `enabled: true` for one, or name one with --strategy"),
        );
    }
    Ok(found)
}

/// The strategy whose work is likely the least, and why.
pub(super) fn cheapest<'a>(candidates: &[&'a Strategy], facts: &Facts) -> (&'a Strategy, String) {
    let of = |kinds: &[StrategyKind]| candidates.iter().copied().find(|s| kinds.contains(&s.kind));
    let delta = of(&[StrategyKind::Delta, StrategyKind::Aggregate]);
    let (hash, full) = (of(&[StrategyKind::Hash]), of(&[StrategyKind::Full]));
    let only = |s: &'a Strategy, why: &str| (s, format!("strategy {}: {why}", *s.name));
    if let [one] = candidates {
        return only(one, "the only one enabled");
    }
    if facts.empty {
        // A delta into nothing loads everything too, and leaves a watermark behind.
        if let Some(first) = delta.or(full).or(hash) {
            return only(first, "the destination is empty, so everything is loaded");
        }
    }
    let watermark = delta.and_then(|d| facts.watermarks.get(d.name.as_str()));
    if let (Some(delta), None) = (delta, watermark)
        && let Some(hash) = hash
    {
        let unknown = format!(
            "the destination has rows of unknown age and {} has no watermark yet",
            *delta.name
        );
        return only(hash, facts.doubt.unwrap_or(&unknown));
    }
    let gap = watermark.zip(facts.now).and_then(|(w, now)| seconds_since(w, now));
    let mut estimates: Vec<(&'a Strategy, f64, String)> = Vec::new();
    for strategy in [delta, hash, full].into_iter().flatten() {
        if let Some((seconds, how)) = estimate(strategy, gap, &facts.history) {
            estimates.push((strategy, seconds, how));
        }
    }
    let told: Vec<String> = estimates
        .iter()
        .map(|(s, seconds, how)| format!("{} about {} ({how})", *s.name, span(*seconds)))
        .collect();
    let usual = delta.or(hash).or(full).unwrap_or(candidates[0]);
    let least = estimates.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    match least {
        // Only what was measured can be cheaper than the usual way.
        Some((best, ..)) if estimates.iter().any(|(s, ..)| std::ptr::eq(*s, usual)) => {
            only(best, &format!("the cheapest by earlier runs: {}", told.join(", ")))
        }
        _ => only(
            usual,
            match told.is_empty() {
                true => "the usual way; no earlier run says what others would take",
                false => "the usual way",
            },
        ),
    }
}

fn seconds_since(watermark: &str, now: Time) -> Option<f64> {
    let micros = synctool_core::text::parse_timestamp(watermark, true)
        .or_else(|| synctool_core::text::parse_timestamp(watermark, false))?;
    Some((now.timestamp_micros() - micros) as f64 / 1e6)
}

/// Runs by which a strategy is measured.
const MEASURED: usize = 5;

/// What a strategy's next run would take, by its completed runs: a delta grows with the gap, the others do not. Only
/// runs that did what the strategy is for count: the first one of a delta or a hash loads everything.
fn estimate(strategy: &Strategy, gap: Option<f64>, history: &[Run]) -> Option<(f64, String)> {
    let runs: Vec<&Run> = history
        .iter()
        .filter(|r| r.strategy == *strategy.name && r.status == RunStatus::Completed && r.resumed_from.is_none())
        .collect();
    let (mut seconds, mut gaps) = (Vec::new(), Vec::new());
    for (place, run) in runs.iter().enumerate() {
        let before = runs.get(place + 1);
        // The first run of an aggregate computes every group; it is one of its own kind all the same.
        let first = run.strategy_type == Kind::Aggregate && before.is_none();
        if first || !is_own(*strategy.kind, run.strategy_type) {
            continue;
        }
        let Some(completed) = run.completed_at else { continue };
        seconds.push((completed - run.started_at).num_milliseconds() as f64 / 1e3);
        gaps.extend(before.map(|b| (run.started_at - b.started_at).num_milliseconds() as f64 / 1e3));
        if seconds.len() == MEASURED {
            break;
        }
    }
    gaps.retain(|gap| *gap > 0.0);
    let count = seconds.len();
    let usual = median(seconds)?;
    let by = format!("{count} earlier run{}", if count == 1 { "" } else { "s" });
    match gap.zip(median(gaps)) {
        Some((gap, usual_gap)) if strategy.kind.has_cursor() => {
            let factor = (gap / usual_gap).max(1.0);
            Some((usual * factor, format!("{by}, {} since the watermark", span(gap))))
        }
        _ => Some((usual, by)),
    }
}

/// Whether a run did what strategies of this kind are for.
fn is_own(kind: StrategyKind, did: Kind) -> bool {
    match kind {
        StrategyKind::Full => did == Kind::Full,
        StrategyKind::Hash => did == Kind::Hash,
        // The delta of an aggregate is one.
        StrategyKind::Delta | StrategyKind::Aggregate => matches!(did, Kind::Delta | Kind::Aggregate),
        StrategyKind::Log => did == Kind::Log,
    }
}

/// The one in the middle, or what lies between the two there.
fn median(mut of: Vec<f64>) -> Option<f64> {
    of.sort_unstable_by(f64::total_cmp);
    let middle = of.len() / 2;
    match (of.len().is_multiple_of(2), of.get(middle)) {
        (true, Some(upper)) => Some((of[middle - 1] + upper) / 2.0),
        (_, middle) => middle.copied(),
    }
}

fn span(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", s * 1e3),
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::now;

    fn run(strategy: &str, age: i64, seconds: i64) -> Run {
        let kind = match strategy {
            "delta" => Kind::Delta,
            "hash" => Kind::Hash,
            _ => Kind::Full,
        };
        run_as(kind, strategy, age, seconds)
    }

    fn run_as(kind: Kind, strategy: &str, age: i64, seconds: i64) -> Run {
        let started = now() - chrono::Duration::seconds(age);
        Run {
            started_at: started,
            completed_at: Some(started + chrono::Duration::seconds(seconds)),
            status: RunStatus::Completed,
            ..Run::begin("p", "r", strategy, kind, &crate::state::Holder::here())
        }
    }

    fn strategies() -> [Strategy; 3] {
        let mut delta = Strategy::new(StrategyKind::Delta);
        delta.column = Some("o.updated_at".into());
        [
            delta,
            Strategy::new(StrategyKind::Hash),
            Strategy::new(StrategyKind::Full),
        ]
    }

    fn chosen(facts: &Facts) -> (String, String) {
        let all = strategies();
        let refs: Vec<&Strategy> = all.iter().collect();
        let (s, why) = cheapest(&refs, facts);
        (s.name.to_string(), why)
    }

    fn facts(watermark_age: i64, history: Vec<Run>) -> Facts {
        let mark = (now() - chrono::Duration::seconds(watermark_age)).format("%Y-%m-%d %H:%M:%S+00");
        Facts {
            empty: false,
            watermarks: [("delta".to_string(), mark.to_string())].into(),
            history,
            doubt: None,
            now: Some(now()),
        }
    }

    #[test]
    fn the_state_of_the_destination_decides_first() {
        let empty = Facts {
            empty: true,
            ..Facts::default()
        };
        assert_eq!(chosen(&empty).0, "delta");
        let unknown = Facts::default();
        let (name, why) = chosen(&unknown);
        assert_eq!(name, "hash");
        assert!(why.contains("no watermark"), "{why}");
    }

    #[test]
    fn a_short_gap_is_a_deltas_and_a_long_one_is_not() {
        let history = vec![run("delta", 900, 10), run("delta", 1800, 10), run("hash", 4000, 60)];
        let (name, why) = chosen(&facts(900, history.clone()));
        assert_eq!(name, "delta", "{why}");
        assert!(why.contains("about"), "{why}");
        let (name, why) = chosen(&facts(864_000, history));
        assert_eq!(name, "hash", "{why}");
        assert_eq!(
            chosen(&facts(864_000, Vec::new())).0,
            "delta",
            "nothing says that another is cheaper"
        );
    }

    #[test]
    fn first_loads_and_what_was_once_slow_are_no_measure() {
        // The first run of a delta loaded everything, and one was held up; a hash takes a minute.
        let mut history = vec![
            run("delta", 900, 10),
            run("delta", 1800, 500),
            run("delta", 2700, 12),
            run("hash", 4000, 60),
            run_as(Kind::Full, "hash", 5000, 1),
            run_as(Kind::Hash, "delta", 5500, 4000),
            run_as(Kind::Full, "delta", 6000, 4000),
        ];
        let (name, why) = chosen(&facts(900, history.clone()));
        assert_eq!(name, "delta", "{why}");
        assert!(why.contains("hash about 60 s"), "{why}");
        // While there were only loads, nothing is known of the delta.
        history.retain(|r| r.strategy_type != Kind::Delta);
        let (name, why) = chosen(&facts(900, history));
        assert_eq!((name.as_str(), why.contains("usual way")), ("delta", true), "{why}");
    }
}
