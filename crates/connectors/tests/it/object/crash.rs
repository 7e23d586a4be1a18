//! The crash matrix: a run in a process of its own is killed with -9 at every failpoint, every time it is reached, and
//! begun again. The table is the old or the new one at any time, and the new one at the end.

use super::*;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};

const DIR: &str = "SYNCTOOL_TEST_DIR";
const CASE: &str = "SYNCTOOL_TEST_CASE";

/// The cases: what is written, and how.
const CASES: [&str; 5] = [
    "parquet folder swap",
    "csv folder append",
    "parquet file swap",
    "csv file create",
    "parquet folder create",
];

fn files(dir: &Path, case: &str) -> Objects {
    let format = if case.starts_with("csv") {
        csv_format()
    } else {
        parquet()
    };
    match case.contains("file") {
        true => open(&dir.join(format!("t.{}", &case[..case.find(' ').unwrap()])), format),
        false => open(dir, format),
    }
}

fn publish_of(case: &str) -> Publish {
    match case.rsplit(' ').next() {
        Some("swap") => Publish::Swap,
        Some("append") => Publish::Append,
        _ => Publish::Create,
    }
}

/// The table before the run, and after it.
fn before_and_after(case: &str) -> (Vec<i64>, Vec<i64>) {
    let old: Vec<i64> = (0..20).collect();
    let new = 100..130;
    match publish_of(case) {
        Publish::Create => (Vec::new(), new.collect()),
        Publish::Append => (old.clone(), old.into_iter().chain(new).collect()),
        _ => (old, new.collect()),
    }
}

async fn seed(dir: &Path, case: &str) {
    if publish_of(case) == Publish::Create {
        return;
    }
    let to = files(dir, case).destination();
    let seed = plan("seed", "t", &small_schema(), 1, Publish::Create);
    load(&*to, seed, &[vec![small_rows(0, 20)]]).await.unwrap();
}

/// What the engine does: resumes an unfinished plan or prepares one, writes what is not done, seals, publishes.
async fn run(dir: &Path, case: &str) -> Result<()> {
    let to = files(dir, case).destination();
    let plan = match to.stored_plan("p").await? {
        Some(stored) if stored.finished => return Ok(()),
        Some(stored) => stored.plan,
        None => {
            let mut plan = plan("p", "t", &small_schema(), 2, publish_of(case));
            plan.remember.insert("until".into(), "130".into());
            to.prepare(plan).await?
        }
    };
    write_partition(&*to, &plan, 0, &[small_rows(100, 10), small_rows(110, 10)]).await;
    write_partition(&*to, &plan, 1, &[small_rows(120, 10)]).await;
    to.seal(&plan).await?;
    assert_eq!(to.publish(&plan).await?.applied.inserted, 30);
    assert_eq!(to.remembered("p").await?["until"], "130");
    Ok(())
}

async fn table(dir: &Path, case: &str) -> Vec<i64> {
    let from = files(dir, case).source();
    match from.describe(&TableId::bare("t")).await {
        Ok(_) => ids(&*from, "t").await,
        Err(_) => Vec::new(),
    }
}

/// A whole run. The matrix calls it in processes of their own, in a folder that it gives.
#[tokio::test]
async fn a_run_completes() {
    let case = std::env::var(CASE).unwrap_or_else(|_| CASES[0].into());
    if let Ok(dir) = std::env::var(DIR) {
        run(Path::new(&dir), &case).await.unwrap();
        return;
    }
    let dir = scratch();
    seed(dir.path(), &case).await;
    run(dir.path(), &case).await.unwrap();
    assert_eq!(table(dir.path(), &case).await, before_and_after(&case).1);
}

fn child(dir: &Path, case: &str, more: &[(&str, &str)]) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "object::crash::a_run_completes"])
        .env(DIR, dir)
        .env(CASE, case)
        .envs(more.iter().copied())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap()
}

async fn matrix(case: &str) {
    let (old, new) = before_and_after(case);
    let traced = scratch();
    seed(traced.path(), case).await;
    let trace = traced.path().join("_synctool").join("trace");
    std::fs::create_dir_all(trace.parent().unwrap()).unwrap();
    assert!(
        child(
            traced.path(),
            case,
            &[("SYNCTOOL_FAILPOINT_TRACE", trace.to_str().unwrap())]
        )
        .success()
    );
    assert_eq!(table(traced.path(), case).await, new);
    let mut hits: HashMap<String, u64> = HashMap::new();
    let reached = std::fs::read_to_string(&trace).unwrap();
    for place in reached.lines() {
        *hits.entry(place.to_string()).or_default() += 1;
    }
    for must in [
        "prepare.after",
        "sink.commit.before",
        "sink.commit.after",
        "seal.after",
        "publish.moved",
        "publish.after",
    ] {
        assert!(hits.contains_key(must), "{case}: {must} is never reached");
    }
    let mut seen_old = 0;
    let mut seen_new = 0;
    for (place, times) in hits {
        for nth in 1..=times {
            let dir = scratch();
            seed(dir.path(), case).await;
            let at = format!("{place}:{nth}=kill");
            let died = child(dir.path(), case, &[("SYNCTOOL_FAILPOINT", &at)]);
            assert_eq!(died.signal(), Some(9), "{case}: {at}");
            let now = table(dir.path(), case).await;
            // A fact is never ahead of the rows: who reads it may rely on them.
            let fact = files(dir.path(), case).destination().remembered("p").await.unwrap();
            assert!(
                fact.is_empty() || now == new,
                "{case}: {at}: remembered, but not published"
            );
            match () {
                () if now == old => seen_old += 1,
                () if now == new => seen_new += 1,
                () => panic!("{case}: killed at {at}, the table is neither old nor new: {now:?}"),
            }
            assert!(
                child(dir.path(), case, &[]).success(),
                "{case}: not completed after {at}"
            );
            assert_eq!(table(dir.path(), case).await, new, "{case}: after {at}");
            run(dir.path(), case).await.unwrap();
            assert_eq!(table(dir.path(), case).await, new, "{case}: repeated after {at}");
        }
    }
    assert!(
        seen_old > 10 && seen_new >= 1,
        "{case}: {seen_old} times old, {seen_new} times new"
    );
}

#[tokio::test]
async fn killed_anywhere_a_swapped_folder_is_whole() {
    matrix(CASES[0]).await;
}

#[tokio::test]
async fn killed_anywhere_an_appended_folder_is_whole() {
    matrix(CASES[1]).await;
}

#[tokio::test]
async fn killed_anywhere_a_swapped_file_is_whole() {
    matrix(CASES[2]).await;
}

#[tokio::test]
async fn killed_anywhere_a_created_file_is_whole() {
    matrix(CASES[3]).await;
}

#[tokio::test]
async fn killed_anywhere_a_created_folder_is_whole() {
    matrix(CASES[4]).await;
}
