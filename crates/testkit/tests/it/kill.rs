use std::process::Command;
use std::time::Duration;

use synctool_testkit::KillRun;
use synctool_testkit::kill::{Action, Failpoint, spread};

fn program(steps: &str) -> KillRun {
    let mut command = Command::new(env!("CARGO_BIN_EXE_testkit-failpoints"));
    command.arg(steps);
    KillRun::new(&command).limit(Duration::from_secs(30))
}

fn point(name: &str, nth: u32) -> Failpoint {
    Failpoint { name: name.into(), nth }
}

#[test]
fn lists_what_an_undisturbed_run_reaches() {
    let expected: Vec<Failpoint> = [
        ("step.before", 1),
        ("step.after", 1),
        ("step.before", 2),
        ("step.after", 2),
        ("end", 1),
    ]
    .map(|(name, nth)| point(name, nth))
    .into();
    assert_eq!(program("2").failpoints_reached(), expected);
}

#[test]
fn kills_at_each_failpoint_exactly_there() {
    let program = program("3");
    let whole = program.run();
    whole.assert_success();
    for (index, point) in program.failpoints_reached().into_iter().enumerate() {
        let outcome = program.clone().accident(&point, Action::Kill).run();
        outcome.assert_killed();
        assert_eq!(outcome.code, None);
        // A step's line stands between its two failpoints.
        assert_eq!(outcome.stdout.lines().count(), index.div_ceil(2), "{point}");
        assert!(whole.stdout.starts_with(&outcome.stdout));
    }
}

#[test]
fn a_failpoint_never_reached_disturbs_nothing() {
    let outcome = program("3").at("step.before", 4).run();
    outcome.assert_success();
    assert!(outcome.stdout.ends_with("done\n"));
}

#[test]
fn an_error_comes_out_as_the_programs_own() {
    let outcome = program("3").accident(&point("step.after", 2), Action::Error).run();
    assert_eq!((outcome.killed, outcome.code), (false, Some(5)));
    assert!(outcome.stderr.contains("step.after"), "{}", outcome.stderr);
}

#[test]
fn a_stopped_program_goes_on_when_told() {
    let mut running = program("3").accident(&point("step.after", 2), Action::Stop).start();
    running.wait_stopped();
    assert_eq!(running.stdout(), "step 1\nstep 2\n");
    running.resume();
    let outcome = running.wait();
    outcome.assert_success();
    assert!(outcome.stdout.ends_with("done\n"));
}

#[test]
fn a_stopped_program_can_be_killed() {
    let mut running = program("3").accident(&point("end", 1), Action::Stop).start();
    running.wait_stopped();
    running.kill().assert_killed();
}

#[test]
#[should_panic(expected = "has not ended within")]
fn a_program_that_hangs_is_given_up() {
    let run = program("3")
        .accident(&point("end", 1), Action::Stop)
        .limit(Duration::from_millis(200));
    run.run();
}

#[test]
fn spread_keeps_the_first_the_last_and_some_between() {
    let mut points: Vec<Failpoint> = (1..=100).map(|nth| point("loop", nth)).collect();
    points.push(point("end", 1));
    let passes: Vec<u32> = spread(&points, 4).iter().map(|point| point.nth).collect();
    assert_eq!(passes, [1, 34, 67, 100, 1]);
    assert_eq!(spread(&points, 1).len(), 2);
    assert_eq!(spread(&points, 1000), points);
}
