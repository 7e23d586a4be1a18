//! The crash matrix: a run in a process of its own is killed with -9 at every failpoint, every time it is reached, and
//! begun again. The table is the old or the new one at any time, and the new one at the end.

use super::*;
use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use synctool_core::change::{Op, Ops};

const DIR: &str = "SYNCTOOL_TEST_DIR";
const CASE: &str = "SYNCTOOL_TEST_CASE";

/// The cases: what is written, and how.
const CASES: [&str; 7] = [
    "parquet folder swap",
    "csv folder append",
    "parquet file swap",
    "csv file create",
    "parquet folder create",
    "parquet folder merge",
    "csv file merge",
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
        Some("merge") => Publish::Merge { delete_missing: true },
        Some("direct") => Publish::Direct,
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
        if publish_of(&case) == Publish::Direct {
            return changes(Path::new(&dir), &case).await.unwrap();
        }
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

#[tokio::test]
async fn killed_anywhere_a_merged_folder_is_whole() {
    matrix(CASES[5]).await;
}

#[tokio::test]
async fn killed_anywhere_a_merged_file_is_whole() {
    matrix(CASES[6]).await;
}

/// A table of our own that has no key: a commit that is carried out twice, or not at all, is seen in it.
const NOTES: &str = "_synctool_notes";

/// The rows of each commit of a run that changes tables directly: ids that are written, and ids that go.
const COMMITS: [(std::ops::Range<i64>, std::ops::Range<i64>); 3] = [(15..25, 0..3), (3..6, 20..22), (30..31, 0..40)];

fn direct_plan() -> Plan {
    let mut direct = plan("p", "t", &small_schema(), 1, Publish::Direct);
    let mut notes = direct.tables[0].clone();
    notes.destination = TableId::bare(NOTES);
    notes.own = true;
    notes.schema.key.clear();
    direct.tables.push(notes);
    direct
}

/// What the engine does with changes: each commit is one for both tables and the position.
async fn changes(dir: &Path, case: &str) -> Result<()> {
    let to = files(dir, case).destination();
    let plan = match to.stored_plan("p").await? {
        Some(stored) if stored.finished => return Ok(()),
        Some(stored) => stored.plan,
        None => to.prepare(direct_plan()).await?,
    };
    let mut sink = to.open_sink(&plan).await?;
    let state = sink.recover(&[part(0)]).await?.remove(&part(0)).unwrap_or_default();
    let mut at = state.position.map_or(0, |p| p.as_str().parse::<usize>().unwrap());
    let batch_of = |table: usize, rows: RecordBatch, op: Op| {
        let table = Arc::new(plan.tables[table].destination.clone());
        let batch = ChangeBatch::inserts(table, rows, Hold::none());
        Event::Rows(ChangeBatch {
            ops: Ops::All(op),
            ..batch
        })
    };
    while at < COMMITS.len() {
        let (written, gone) = &COMMITS[at];
        let count = |r: &std::ops::Range<i64>| r.end - r.start;
        sink.write(batch_of(0, small_rows(written.start, count(written)), Op::Upsert))
            .await?;
        sink.write(batch_of(1, small_rows(at as i64, 1), Op::Insert)).await?;
        sink.write(batch_of(0, small_rows(gone.start, count(gone)), Op::Delete))
            .await?;
        let from = (at > 0).then(|| at.to_string());
        at += 1;
        sink.commit(&[advance(&part(0), from.as_deref(), &at.to_string(), at == COMMITS.len())])
            .await?;
    }
    drop(sink);
    to.publish(&plan).await?;
    Ok(())
}

/// The table after so many commits.
fn after(commits: usize) -> Vec<i64> {
    let mut ids: std::collections::BTreeSet<i64> = (0..20).collect();
    for (written, gone) in &COMMITS[..commits] {
        ids.extend(written.clone());
        ids.retain(|id| !gone.contains(id));
    }
    ids.into_iter().collect()
}

async fn direct_matrix(case: &str, must: &[&str]) {
    let traced = scratch();
    seed(traced.path(), case).await;
    let trace = traced.path().join("_synctool").join("trace");
    let set = [("SYNCTOOL_FAILPOINT_TRACE", trace.to_str().unwrap())];
    assert!(child(traced.path(), case, &set).success());
    let mut hits: HashMap<String, u64> = HashMap::new();
    for place in std::fs::read_to_string(&trace).unwrap().lines() {
        *hits.entry(place.to_string()).or_default() += 1;
    }
    for must in must {
        assert!(hits.contains_key(*must), "{case}: {must} is never reached: {hits:?}");
    }
    let states: Vec<Vec<i64>> = (0..=COMMITS.len()).map(after).collect();
    for (place, times) in hits {
        for (nth, how) in (1..=times).flat_map(|nth| [(nth, "kill"), (nth, "error")]) {
            let dir = scratch();
            seed(dir.path(), case).await;
            let at = format!("{place}:{nth}={how}");
            let died = child(dir.path(), case, &[("SYNCTOOL_FAILPOINT", &at)]);
            assert_eq!(died.signal(), (how == "kill").then_some(9), "{case}: {at}");
            assert!(!died.success(), "{case}: {at}");
            let now = table(dir.path(), case).await;
            assert!(states.contains(&now), "{case}: {at}: half a commit: {now:?}");
            // Whoever goes on finds rows and position of the same commit.
            let to = files(dir.path(), case).destination();
            if let Some(stored) = to.stored_plan("p").await.unwrap().filter(|s| !s.finished) {
                drop(to.open_sink(&stored.plan).await.unwrap());
                let checkpoint = to.checkpoint(&stored.plan).await.unwrap();
                let position = checkpoint.get(&part(0)).and_then(|s| s.position.clone());
                let commits = position.map_or(0, |p| p.as_str().parse::<usize>().unwrap());
                assert_eq!(table(dir.path(), case).await, states[commits], "{case}: {at}");
                let notes = ids(&*files(dir.path(), case).source(), NOTES).await;
                assert_eq!(notes, (0..commits as i64).collect::<Vec<_>>(), "{case}: {at}");
            }
            assert!(
                child(dir.path(), case, &[]).success(),
                "{case}: not completed after {at}"
            );
            changes(dir.path(), case).await.unwrap();
            assert_eq!(
                table(dir.path(), case).await,
                states[COMMITS.len()],
                "{case}: after {at}"
            );
            let notes = ids(&*files(dir.path(), case).source(), NOTES).await;
            assert_eq!(notes, [0, 1, 2], "{case}: after {at}");
            if case.contains("folder") {
                let left: Vec<String> = std::fs::read_dir(dir.path().join("t"))
                    .unwrap()
                    .map(|e| e.unwrap().file_name().into_string().unwrap())
                    .collect();
                assert!(
                    left.len() == 2,
                    "{case}: after {at}: more than a file and its manifest: {left:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn killed_anywhere_a_changed_folder_has_whole_commits() {
    let must = [
        "settle.written",
        "settle.announced",
        "settle.committed",
        "settle.moved",
        "settle.manifest",
    ];
    direct_matrix("parquet folder direct", &must).await;
}

#[tokio::test]
async fn killed_anywhere_a_changed_file_has_whole_commits() {
    let must = [
        "settle.written",
        "settle.announced",
        "settle.committed",
        "settle.beside",
        "settle.renamed",
    ];
    direct_matrix("csv file direct", &must).await;
}
