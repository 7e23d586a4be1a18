//! Changes by key into files, against a model.

use super::*;
use arrow_array::UInt8Array;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;
use std::fs;
use synctool_core::change::{Op, Ops, Presence};
use synctool_core::error::code;
use synctool_core::query::{Condition, Cut, KeyList, Term, Test};

type Row = Vec<Option<String>>;

fn text(s: &str) -> Option<String> {
    Some(s.to_string())
}

/// An id and a name.
fn row(id: i64, name: &str) -> Row {
    vec![Some(id.to_string()), text(name)]
}

fn event(plan: &Plan, table: usize, changes: &[(Op, Row)]) -> Event {
    let planned = &plan.tables[table];
    let rows: Vec<Vec<Option<&str>>> = changes
        .iter()
        .map(|(_, row)| row.iter().map(Option::as_deref).collect())
        .collect();
    Event::Rows(
        ChangeBatch::new(
            Arc::new(planned.destination.clone()),
            batch(&planned.schema, &rows),
            Ops::Each(UInt8Array::from_iter_values(changes.iter().map(|(op, _)| *op as u8))),
            None,
            None,
            Hold::none(),
        )
        .unwrap(),
    )
}

/// Commits one batch of changes after so many others.
async fn commit(sink: &mut dyn Sink, plan: &Plan, at: usize, changes: &[(Op, Row)]) -> Result<Applied> {
    sink.write(event(plan, 0, changes)).await?;
    sink.commit(&[step(at)]).await
}

fn step(at: usize) -> Advance {
    let from = (at > 0).then(|| at.to_string());
    advance(&part(0), from.as_deref(), &(at + 1).to_string(), false)
}

/// Every way a table can lie: a folder and a file, of both formats.
fn ways(dir: &Path) -> Vec<(Objects, &'static str)> {
    vec![
        (open(&dir.join("a"), parquet()), "t"),
        (open(&dir.join("b"), csv_format()), "t"),
        (open(&dir.join("c").join("t.parquet"), parquet()), "t"),
        (open(&dir.join("d").join("t.csv"), csv_format()), "t"),
    ]
}

async fn stored(files: &Objects) -> Vec<Row> {
    texts(&read_table(&*files.source(), "t").await.unwrap())
}

fn counts(a: Applied) -> (u64, u64, u64, u64) {
    assert_eq!(a.written, a.inserted + a.updated + a.deleted + a.unchanged, "{a:?}");
    (a.inserted, a.updated, a.deleted, a.unchanged)
}

#[tokio::test]
async fn changes_are_applied_by_key_and_counted() {
    use Op::{Delete, Insert, Update, Upsert};
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        // The table does not exist: it is made, empty, when the plan is prepared.
        let draft = plan("p", name, &small_schema(), 1, Publish::Direct);
        let told = to.preview(&draft).await.unwrap().join("\n");
        assert!(told.contains("write the files anew that hold changed rows"), "{told}");
        let plan = to.prepare(draft).await.unwrap();
        assert_eq!(stored(&files).await, Vec::<Row>::new());
        assert!(to.is_empty(&TableId::bare(name)).await.unwrap());
        assert!(to.made_here(&TableId::bare(name)).await.unwrap());
        let mut sink = sink_for(&*to, &plan, 0).await;
        let first: Vec<(Op, Row)> = (0..10).map(|i| (Insert, row(i, "old"))).collect();
        let applied = commit(&mut *sink, &plan, 0, &first).await.unwrap();
        assert_eq!(counts(applied), (10, 0, 0, 0));
        let changes = [
            (Upsert, row(1, "new")),
            (Upsert, row(2, "old")),
            (Upsert, row(20, "new")),
            (Insert, row(3, "again")),
            (Update, row(4, "updated")),
            (Update, row(40, "nobody")),
            (Delete, vec![text("5"), None]),
            (Delete, row(50, "nobody")),
            (Delete, row(6, "")),
            (Upsert, row(6, "back")),
            (Upsert, row(60, "short")),
            (Upsert, row(60, "short")),
            (Delete, row(60, "")),
            (Upsert, vec![text("7"), None]),
        ];
        let applied = commit(&mut *sink, &plan, 1, &changes).await.unwrap();
        assert_eq!(counts(applied), (3, 4, 3, 4));
        let names = |rows: Vec<Row>| -> BTreeMap<i64, Option<String>> {
            rows.into_iter()
                .map(|r| (r[0].as_ref().unwrap().parse().unwrap(), r[1].clone()))
                .collect()
        };
        let mut wanted: BTreeMap<i64, Option<String>> = (0..10).map(|i| (i, text("old"))).collect();
        for (id, name) in [(1, "new"), (20, "new"), (3, "again"), (4, "updated"), (6, "back")] {
            wanted.insert(id, text(name));
        }
        wanted.remove(&5);
        wanted.insert(7, None);
        assert_eq!(names(stored(&files).await), wanted);
        // Nothing differs: no file is written.
        let before = listing(dir.path());
        let again: Vec<(Op, Row)> = vec![(Upsert, row(1, "new")), (Delete, row(5, ""))];
        let applied = commit(&mut *sink, &plan, 2, &again).await.unwrap();
        assert_eq!(counts(applied), (0, 0, 0, 2));
        assert_eq!(listing(dir.path()), before);
        // All rows go and others come, in one commit.
        let table = Arc::new(plan.tables[0].destination.clone());
        sink.write(event(&plan, 0, &[(Upsert, row(1, "gone")), (Upsert, row(90, "gone"))]))
            .await
            .unwrap();
        sink.write(Event::Truncate {
            tables: vec![table],
            cascade: false,
            restart_identity: false,
        })
        .await
        .unwrap();
        sink.write(event(&plan, 0, &[(Upsert, row(2, "alone"))])).await.unwrap();
        let applied = sink.commit(&[step(3)]).await.unwrap();
        assert_eq!(counts(applied), (2, 1, 0, 0));
        assert_eq!(stored(&files).await, [row(2, "alone")]);
        let applied = commit(&mut *sink, &plan, 4, &[(Delete, row(2, ""))]).await.unwrap();
        assert_eq!(counts(applied), (0, 0, 1, 0));
        assert_eq!(
            stored(&files).await,
            Vec::<Row>::new(),
            "a table without rows is a table"
        );
        sink.commit(&[advance(&part(0), Some("5"), "end", true)]).await.unwrap();
        drop(sink);
        to.publish(&plan).await.unwrap();
        assert!(to.stored_plan("p").await.unwrap().unwrap().finished);
        assert_eq!(to.describe(&TableId::bare(name)).await.unwrap().unwrap().key, ["id"]);
    }
}

/// Every data file below a folder, with its size and time of change.
fn listing(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true if !path.ends_with("_synctool") => found.extend(listing(&path)),
            true => {}
            false => {
                let meta = path.metadata().unwrap();
                found.push(format!(
                    "{} {} {:?}",
                    path.display(),
                    meta.len(),
                    meta.modified().unwrap()
                ));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn what_only_logs_bring_is_refused() {
    let dir = scratch();
    let to = open(dir.path(), parquet()).destination();
    let plan = to
        .prepare(plan("p", "t", &small_schema(), 1, Publish::Direct))
        .await
        .unwrap();
    let refused = async |change: &dyn Fn(&mut ChangeBatch)| {
        let mut sink = sink_for(&*to, &plan, 0).await;
        let Event::Rows(mut batch) = event(&plan, 0, &[(Op::Upsert, row(1, "x"))]) else {
            unreachable!("rows")
        };
        change(&mut batch);
        let e = sink.write(Event::Rows(batch)).await.unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
    };
    refused(&|b| b.present = Some(Presence(vec![None, None]))).await;
    refused(&|b| b.before = Some(b.rows.clone())).await;
    // A row without its key stops the run before anything is seen.
    let mut sink = sink_for(&*to, &plan, 0).await;
    let e = commit(&mut *sink, &plan, 0, &[(Op::Delete, vec![None, None])])
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::VALUE_MALFORMED, "{e}");
    let mut sink = sink_for(&*to, &plan, 0).await;
    let e = commit(&mut *sink, &plan, 0, &[(Op::Upsert, vec![None, text("x")])])
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::CONSTRAINT, "{e}");
}

#[tokio::test]
async fn a_table_without_a_key_is_only_added_to() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let mut schema = small_schema();
        schema.key.clear();
        let plan = to.prepare(plan("p", name, &schema, 1, Publish::Direct)).await.unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        for at in 0..3 {
            let rows = [(Op::Insert, row(1, "same")), (Op::Insert, row(at as i64, "own"))];
            assert_eq!(
                counts(commit(&mut *sink, &plan, at, &rows).await.unwrap()),
                (2, 0, 0, 0)
            );
        }
        let same = stored(&files)
            .await
            .into_iter()
            .filter(|r| *r == row(1, "same"))
            .count();
        assert_eq!((same, stored(&files).await.len()), (3, 6));
        let e = commit(&mut *sink, &plan, 3, &[(Op::Upsert, row(1, "x"))])
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
    }
}

/// Columns that a plan does not write keep their values; new ones are NULL in the rows that are there.
#[tokio::test]
async fn columns_stay_and_come() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let mut wide = small_schema();
        wide.columns.push(Column::new("note", ColumnType::Text { max: None }));
        let create = plan("first", name, &wide, 1, Publish::Create);
        let rows = batch(
            &wide,
            &[
                vec![Some("1"), Some("a"), Some("kept")],
                vec![Some("2"), Some("b"), Some("kept too")],
            ],
        );
        load(&*to, create, &[vec![rows]]).await.unwrap();
        let mut late = small_schema();
        late.columns.push(Column::new("late", ColumnType::Int32));
        let refused = to.prepare(plan("p", name, &late, 1, Publish::Direct)).await;
        assert_eq!(refused.unwrap_err().code(), code::SCHEMA_MISMATCH);
        let mut direct = plan("p", name, &late, 1, Publish::Direct);
        direct.tables[0].evolve = true;
        let plan = to.prepare(direct).await.unwrap();
        let there = |id: &str, name: &str, note: Option<&str>, late: Option<&str>| -> Row {
            vec![text(id), text(name), note.map(str::to_string), late.map(str::to_string)]
        };
        assert_eq!(
            stored(&files).await,
            [
                there("1", "a", Some("kept"), None),
                there("2", "b", Some("kept too"), None)
            ]
        );
        let mut sink = sink_for(&*to, &plan, 0).await;
        let rows = |id: &str, name: &str, late: &str| vec![text(id), text(name), text(late)];
        let changes = [
            (Op::Upsert, rows("1", "A", "7")),
            (Op::Upsert, rows("3", "c", "8")),
            (Op::Delete, rows("2", "", "0")),
            (Op::Upsert, rows("2", "B", "9")),
        ];
        assert_eq!(
            counts(commit(&mut *sink, &plan, 0, &changes).await.unwrap()),
            (2, 1, 1, 0)
        );
        assert_eq!(
            stored(&files).await,
            [
                there("1", "A", Some("kept"), Some("7")),
                // It was away: what it is now is a new row.
                there("2", "B", None, Some("9")),
                there("3", "c", None, Some("8")),
            ]
        );
    }
}

/// A load that is merged brings its new columns along, for all rows that it has; until it is published nobody sees them.
#[tokio::test]
async fn a_merged_load_brings_its_columns() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let create = plan("first", name, &small_schema(), 1, Publish::Create);
        load(&*to, create, &[vec![small_rows(0, 3)]]).await.unwrap();
        let mut late = small_schema();
        late.columns.push(Column::new("late", ColumnType::Int32));
        let mut merge = plan("p", name, &late, 1, Publish::Merge { delete_missing: false });
        let refused = to.prepare(merge.clone()).await;
        assert_eq!(refused.unwrap_err().code(), code::SCHEMA_MISMATCH);
        merge.tables[0].evolve = true;
        let prepared = to.prepare(merge.clone()).await.unwrap();
        let rows = batch(
            &late,
            &[
                vec![Some("1"), Some("name 1"), Some("7")],
                vec![Some("3"), Some("c"), Some("8")],
            ],
        );
        write_partition(&*to, &prepared, 0, &[rows]).await;
        to.seal(&prepared).await.unwrap();
        assert_eq!(stored(&files).await, texts(&small_rows(0, 3)));
        let applied = to.publish(&prepared).await.unwrap().applied;
        assert_eq!((applied.inserted, applied.updated, applied.deleted), (1, 1, 0));
        let there = |id: i64, name: &str, late: Option<&str>| [row(id, name), vec![late.map(str::to_string)]].concat();
        let wanted = [
            there(0, "name 0", None),
            there(1, "name 1", Some("7")),
            there(2, "name 2", None),
            there(3, "c", Some("8")),
        ];
        assert_eq!(stored(&files).await, wanted);
        // Once more, with nothing left to add.
        let again = batch(&late, &[vec![Some("2"), Some("name 2"), Some("9")]]);
        let applied = load(&*to, merge, &[vec![again]]).await.unwrap();
        assert_eq!((applied.inserted, applied.updated, applied.deleted), (0, 1, 0));
        assert_eq!(stored(&files).await[2], there(2, "name 2", Some("9")));
    }
}

/// Writers of one run commit beside each other; none takes another's rows away.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_beside_each_other_lose_nothing() {
    let dir = scratch();
    for format in [parquet(), csv_format()] {
        let files = open(&dir.path().join(if format == parquet() { "p" } else { "c" }), format);
        let to = files.destination();
        let plan = to
            .prepare(plan("p", "t", &small_schema(), 4, Publish::Direct))
            .await
            .unwrap();
        let writers = (0..4).map(|w| {
            let (to, plan) = (to.clone(), plan.clone());
            tokio::spawn(async move {
                let mut sink = to.open_sink(&plan).await.unwrap();
                sink.recover(&[part(w)]).await.unwrap();
                for at in 0..12usize {
                    let id = |n: usize| (n * 4 + w) as i64;
                    let mut changes = vec![(Op::Upsert, row(id(at), "new")), (Op::Upsert, row(1000, "shared"))];
                    if at > 2 {
                        changes.push((Op::Delete, row(id(at - 3), "")));
                    }
                    sink.write(event(&plan, 0, &changes)).await.unwrap();
                    let from = (at > 0).then(|| at.to_string());
                    let step = advance(&part(w), from.as_deref(), &(at + 1).to_string(), at == 11);
                    sink.commit(&[step]).await.unwrap();
                }
            })
        });
        for writer in writers.collect::<Vec<_>>() {
            writer.await.unwrap();
        }
        let wanted: Vec<i64> = (36..48).chain([1000]).collect();
        assert_eq!(ids(&*files.source(), "t").await, wanted);
        let all: u64 = to
            .checkpoint(&plan)
            .await
            .unwrap()
            .values()
            .map(|s| s.applied.written)
            .sum();
        assert_eq!(all, 4 * (12 * 2 + 9));
        to.publish(&plan).await.unwrap();
        let left = listing(
            dir.path()
                .join(if files.destination().engine() == "csv" {
                    "c"
                } else {
                    "p"
                })
                .as_path(),
        );
        assert_eq!(left.len(), 2, "more than a small file and its manifest: {left:?}");
    }
}

/// Neither a writer that was replaced nor one of an older plan changes anything.
#[tokio::test]
async fn zombies_change_nothing() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let draft = || plan("p", name, &small_schema(), 1, Publish::Direct);
        let old = to.prepare(draft()).await.unwrap();
        let mut first = sink_for(&*to, &old, 0).await;
        commit(&mut *first, &old, 0, &[(Op::Upsert, row(1, "first"))])
            .await
            .unwrap();
        first
            .write(event(
                &old,
                0,
                &[(Op::Upsert, row(1, "zombie")), (Op::Upsert, row(2, "zombie"))],
            ))
            .await
            .unwrap();
        let mut heir = sink_for(&*to, &old, 0).await;
        let before = listing(dir.path());
        assert_eq!(first.commit(&[step(1)]).await.unwrap_err().code(), code::FENCED);
        assert_eq!(listing(dir.path()), before);
        commit(&mut *heir, &old, 1, &[(Op::Upsert, row(3, "heir"))])
            .await
            .unwrap();
        heir.write(event(&old, 0, &[(Op::Delete, row(1, ""))])).await.unwrap();
        let new = to.prepare(draft()).await.unwrap();
        assert_eq!(heir.commit(&[step(2)]).await.unwrap_err().code(), code::FENCED);
        assert_eq!(stored(&files).await, [row(1, "first"), row(3, "heir")]);
        let mut sink = sink_for(&*to, &new, 0).await;
        sink.write(event(&new, 0, &[(Op::Delete, row(1, ""))])).await.unwrap();
        sink.commit(&[advance(&part(0), None, "end", true)]).await.unwrap();
        assert_eq!(to.publish(&old).await.unwrap_err().code(), code::FENCED);
        to.publish(&new).await.unwrap();
        assert_eq!(stored(&files).await, [row(3, "heir")]);
    }
}

/// More changes than are held in memory, with keys that come again in a later piece.
#[tokio::test]
async fn many_changes_go_by_way_of_the_disk() {
    let dir = scratch();
    for format in [parquet(), csv_format()] {
        let files = open(&dir.path().join(if format == parquet() { "p" } else { "c" }), format);
        let to = files.destination();
        let plan = to
            .prepare(plan("p", "t", &small_schema(), 1, Publish::Direct))
            .await
            .unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        let wide = "x".repeat(100_000);
        for round in 0..3i64 {
            for first in (0..300).step_by(50) {
                let rows: Vec<(Op, Row)> = (first..first + 50)
                    .map(|i| match (i + round) % 10 {
                        0 => (Op::Delete, row(i, "")),
                        _ => (Op::Upsert, row(i, &format!("{round} {wide}"))),
                    })
                    .collect();
                sink.write(event(&plan, 0, &rows)).await.unwrap();
            }
        }
        let spilled = |dir: &Path| {
            let mut found = 0;
            let mut stack = vec![dir.to_path_buf()];
            while let Some(dir) = stack.pop() {
                for e in fs::read_dir(dir).unwrap().flatten() {
                    match e.path() {
                        p if p.is_dir() => stack.push(p),
                        p => found += usize::from(p.extension().is_some_and(|x| x == "changes")),
                    }
                }
            }
            found
        };
        assert!(spilled(dir.path()) > 1, "nothing was spilled");
        let applied = sink.commit(&[step(0)]).await.unwrap();
        // In each round 30 of 300 are deletes; of the first round's they find nothing.
        assert_eq!(counts(applied), (270 + 30 + 30, 480, 60, 30));
        assert_eq!(spilled(dir.path()), 0);
        let rows = stored(&files).await;
        assert_eq!(rows.len(), 270);
        assert!(rows.iter().all(|r| r[1].as_ref().unwrap().starts_with("2 x")));
    }
}

/// A reader that began before a commit reads what was there when it began, to its end; then the files go.
#[tokio::test]
async fn a_reader_keeps_the_files_it_began_with() {
    let dir = scratch();
    for format in [parquet(), csv_format()] {
        let files = open(&dir.path().join(if format == parquet() { "p" } else { "c" }), format);
        let (to, from) = (files.destination(), files.source());
        let wide = "w".repeat(3000);
        let wide_rows = |first: i64| -> RecordBatch {
            let ids: Vec<String> = (first..first + 2000).map(|i| i.to_string()).collect();
            let rows: Vec<Vec<Option<&str>>> = ids
                .iter()
                .map(|i| vec![Some(i.as_str()), Some(wide.as_str())])
                .collect();
            batch(&small_schema(), &rows)
        };
        let create = plan("first", "t", &small_schema(), 2, Publish::Create);
        load(&*to, create, &[vec![wide_rows(0)], vec![wide_rows(2000)]])
            .await
            .unwrap();
        let schema = from.describe(&TableId::bare("t")).await.unwrap();
        let read = ReadSpec::all(TableId::bare("t"), &schema.columns);
        let partition = partition_of(Slice::All);
        let context = ReadContext {
            batch_bytes: 100_000,
            ..ReadContext::default()
        };
        let mut reader = from.open(&read, &partition, None, &context).await.unwrap();
        let mut seen = 0;
        while seen == 0 {
            seen += reader.next().await.unwrap().unwrap().rows();
        }
        let plan = to
            .prepare(plan("p", "t", &small_schema(), 1, Publish::Direct))
            .await
            .unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        let changes = [
            (Op::Upsert, row(1, "new")),
            (Op::Delete, row(3999, "")),
            (Op::Upsert, row(9000, "new")),
        ];
        commit(&mut *sink, &plan, 0, &changes).await.unwrap();
        assert_eq!(ids(&*from, "t").await.len(), 4000);
        while let Some(event) = reader.next().await.unwrap() {
            if let Event::Rows(b) = event {
                seen += b.len() as u64;
                assert!(
                    texts(&b.rows).iter().all(|r| r[0] != text("9000")),
                    "it reads of the new files"
                );
            }
        }
        assert_eq!(seen, 4000, "the reader did not read to its end what it began with");
        let folder = dir.path().join(if to.engine() == "csv" { "c" } else { "p" }).join("t");
        let hidden = |folder: &Path| {
            let names = fs::read_dir(folder)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap());
            names.filter(|n| n.starts_with('.')).count()
        };
        assert!(hidden(&folder) > 0, "what is read was not kept");
        drop(reader);
        sink.commit(&[advance(&part(0), Some("1"), "end", true)]).await.unwrap();
        to.publish(&plan).await.unwrap();
        assert_eq!(hidden(&folder), 0, "what nobody reads is still there");
    }
}

/// A load that must be read in one snapshot reads the files that it began with, or starts over: a row that moves from one
/// partition to another meanwhile is read once.
#[tokio::test]
async fn a_load_of_one_snapshot_reads_one_state_of_the_files() {
    let dir = scratch();
    let cut = |name: &str| {
        Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("name"),
                test: Test::In(vec![name.into()]),
            }],
            key: None,
        })
    };
    let context = ReadContext::default();
    let spec = |columns: &[Column]| ReadSpec {
        one_snapshot: true,
        ..ReadSpec::all(TableId::bare("t"), columns)
    };
    for (at, (files, name)) in ways(dir.path()).into_iter().enumerate() {
        let (to, from) = (files.destination(), files.source());
        let create = plan("first", name, &small_schema(), 1, Publish::Create);
        let rows = pairs(&[("1".into(), "EU".into()), ("5".into(), "US".into())]);
        load(&*to, create, &[vec![rows]]).await.unwrap();
        assert!(from.shares_snapshot().await.unwrap());
        let read = spec(&from.describe(&TableId::bare("t")).await.unwrap().columns);
        let rows = |found: Vec<(RecordBatch, Position)>| -> Vec<Row> {
            found.iter().flat_map(|(batch, _)| texts(batch)).collect()
        };
        let first = read_slice(&*from, &read, &cut("EU"), None, &context).await.unwrap();
        assert_eq!(rows(first), [row(1, "EU")]);
        let direct = to
            .prepare(plan("p", name, &small_schema(), 1, Publish::Direct))
            .await
            .unwrap();
        let mut sink = sink_for(&*to, &direct, 0).await;
        let moved = [(Op::Upsert, row(5, "EU")), (Op::Upsert, row(6, "elsewhere"))];
        commit(&mut *sink, &direct, 0, &moved).await.unwrap();
        let second = read_slice(&*from, &read, &cut("US"), None, &context).await;
        match at < 2 {
            true => assert_eq!(rows(second.unwrap()), [row(5, "US")], "a folder keeps what is read"),
            false => assert_eq!(second.unwrap_err().code(), code::SNAPSHOT_LOST),
        }
        let anew = files.source();
        let now = read_slice(&*anew, &read, &cut("US"), None, &context).await.unwrap();
        assert_eq!(rows(now), Vec::<Row>::new());
    }
    // A folder of somebody else, whose files are replaced or go.
    fs::create_dir_all(dir.path().join("e/t")).unwrap();
    let (a, b) = (dir.path().join("e/t/a.csv"), dir.path().join("e/t/b.csv"));
    fs::write(&a, "id,name\n1,EU\n").unwrap();
    fs::write(&b, "id,name\n5,US\n").unwrap();
    let files = open(&dir.path().join("e"), csv_format());
    let from = files.source();
    let read = spec(&from.describe(&TableId::bare("t")).await.unwrap().columns);
    read_slice(&*from, &read, &cut("EU"), None, &context).await.unwrap();
    fs::write(&b, "id,name\n5,EU\n6,elsewhere\n").unwrap();
    let e = read_slice(&*from, &read, &cut("US"), None, &context).await.unwrap_err();
    assert_eq!(e.code(), code::SNAPSHOT_LOST, "{e}");
    let from = files.source();
    read_slice(&*from, &read, &cut("EU"), None, &context).await.unwrap();
    fs::remove_file(&b).unwrap();
    let e = read_slice(&*from, &read, &cut("US"), None, &context).await.unwrap_err();
    assert_eq!(e.code(), code::SNAPSHOT_LOST, "{e}");
}

/// Files that cannot hold a touched key are neither read nor written.
#[tokio::test(flavor = "multi_thread")]
async fn files_without_a_touched_key_stay_as_they_are() {
    let dir = scratch();
    let files = open(dir.path(), parquet());
    let (to, from) = (files.destination(), files.source());
    let wide = |first: i64| -> RecordBatch {
        // Texts that do not shrink much, so that the files are not small.
        let mut state = first as u64 + 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:08x}", state >> 32)
        };
        let texts: Vec<(String, String)> = (first..first + 1000)
            .map(|i| (i.to_string(), (0..1500).map(|_| next()).collect()))
            .collect();
        pairs(&texts)
    };
    let create = plan("first", "t", &small_schema(), 4, Publish::Create);
    let parts: Vec<Vec<RecordBatch>> = (0..4).map(|i| vec![wide(i * 1000)]).collect();
    load(&*to, create, &parts).await.unwrap();
    let plan = to
        .prepare(plan("p", "t", &small_schema(), 1, Publish::Direct))
        .await
        .unwrap();
    let data = |name: &str| name.contains(".parquet");
    let before: Vec<String> = listing(dir.path()).into_iter().filter(|n| data(n)).collect();
    assert!(before.len() > 1, "one file tells nothing: {before:?}");
    let mut sink = sink_for(&*to, &plan, 0).await;
    commit(
        &mut *sink,
        &plan,
        0,
        &[(Op::Upsert, row(1, "new")), (Op::Delete, row(2, ""))],
    )
    .await
    .unwrap();
    let after: Vec<String> = listing(dir.path()).into_iter().filter(|n| data(n)).collect();
    let stayed = before.iter().filter(|n| after.contains(n)).count();
    assert_eq!((stayed, after.len()), (before.len() - 1, before.len()));
    // Damage in a file whose keys are far away is not even seen.
    let far = fs::read_dir(dir.path().join("t"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|x| x == "parquet"))
        .find(|p| {
            let slice = Slice::File {
                path: p.file_name().unwrap().to_str().unwrap().into(),
                groups: None,
                stamp: None,
            };
            let read = ReadSpec::all(TableId::bare("t"), &small_schema().columns);
            let rows = futures_now(read_slice(&*from, &read, &slice, None, &ReadContext::default()));
            texts(&rows.unwrap()[0].0)[0][0] == text("3000")
        })
        .expect("a file with the last keys");
    let mut bytes = fs::read(&far).unwrap();
    bytes[4..40].fill(0xff);
    fs::write(&far, bytes).unwrap();
    commit(&mut *sink, &plan, 1, &[(Op::Upsert, row(5, "new"))])
        .await
        .unwrap();
    let e = commit(&mut *sink, &plan, 2, &[(Op::Upsert, row(3001, "new"))])
        .await
        .unwrap_err();
    assert_eq!(e.code(), code::FILE_MALFORMED, "{e}");
}

/// Waits for a future inside a test that is one.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

#[tokio::test]
async fn two_stored_rows_of_one_key_are_told() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let mut schema = small_schema();
        schema.key.clear();
        let twice = batch(
            &schema,
            &[
                vec![Some("1"), Some("a")],
                vec![Some("1"), Some("b")],
                vec![Some("2"), Some("c")],
            ],
        );
        load(&*to, plan("first", name, &schema, 1, Publish::Create), &[vec![twice]])
            .await
            .unwrap();
        let plan = to
            .prepare(plan("p", name, &small_schema(), 1, Publish::Direct))
            .await
            .unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        commit(&mut *sink, &plan, 0, &[(Op::Upsert, row(2, "C"))])
            .await
            .unwrap();
        let e = commit(&mut *sink, &plan, 1, &[(Op::Upsert, row(1, "x"))])
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::DUPLICATE_KEY, "{e}");
        assert_eq!(stored(&files).await, [row(1, "a"), row(1, "b"), row(2, "C")]);
    }
}

/// A load that is merged: what differs is changed, and what it does not have goes, if the guard allows it.
#[tokio::test]
async fn a_load_is_merged_into_a_table_of_somebody_else() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        load(
            &*to,
            plan("other", name, &small_schema(), 1, Publish::Create),
            &[vec![small_rows(0, 3000)]],
        )
        .await
        .unwrap();
        let merge = |delete_missing| plan("p", name, &small_schema(), 1, Publish::Merge { delete_missing });
        let mut rows: Vec<(String, String)> = (10..3010).map(|i| (i.to_string(), format!("name {i}"))).collect();
        rows[5].1 = "other".into();
        let refs: Vec<Vec<Option<&str>>> = rows
            .iter()
            .map(|(a, b)| vec![Some(a.as_str()), Some(b.as_str())])
            .collect();
        let some = batch(&small_schema(), &refs);
        let applied = load(&*to, merge(false), &[vec![some.clone()]]).await.unwrap();
        assert_eq!(
            (applied.inserted, applied.updated, applied.unchanged, applied.deleted),
            (10, 1, 2989, 0)
        );
        assert_eq!(ids(&*files.source(), "t").await.len(), 3010);
        let applied = load(&*to, merge(true), &[vec![some]]).await.unwrap();
        assert_eq!(
            (applied.inserted, applied.updated, applied.unchanged, applied.deleted),
            (0, 0, 3000, 10)
        );
        assert_eq!(ids(&*files.source(), "t").await, (10..3010).collect::<Vec<_>>());
        let few = load(&*to, merge(true), &[vec![small_rows(10, 100)]]).await.unwrap_err();
        assert_eq!(few.code(), code::MASS_DELETE, "{few}");
        assert_eq!(ids(&*files.source(), "t").await.len(), 3000);
    }
}

/// Rows of keys of every type, and NULLs beside them.
#[derive(Debug, Clone)]
struct Case {
    types: Vec<ColumnType>,
    /// Per commit: what happens, by the place of the key and of the value.
    commits: Vec<Vec<(u8, usize, usize)>>,
    single: bool,
    csv: bool,
}

fn values(ty: &ColumnType) -> Vec<&'static str> {
    use ColumnType as T;
    match ty {
        T::Bool => vec!["true", "false"],
        T::Int8 => vec!["-128", "0", "127"],
        T::Int64 => vec!["-9223372036854775808", "-1", "0", "7", "9223372036854775807"],
        T::UInt32 => vec!["0", "2147483648", "4294967295"],
        T::UInt64 => vec!["0", "9223372036854775808", "18446744073709551615"],
        T::Decimal { .. } => vec!["-1.00", "0.00", "0.10", "99999.99"],
        T::Numeric => vec!["-1.5", "0", "123456789012345678901234567890.5"],
        T::Date => vec!["0001-01-01", "1969-12-31", "2024-02-29"],
        T::Time => vec!["00:00:00", "23:59:59.999999"],
        T::Timestamp => vec![
            "0001-01-01 00:00:00",
            "1969-12-31 23:59:59.999999",
            "2024-02-29 12:00:00",
        ],
        T::TimestampTz => vec!["1970-01-01 00:00:01+00", "2038-01-19 03:14:08+00"],
        T::Bytes => vec!["\\x", "\\x00", "\\xff00"],
        T::Uuid => vec![
            "00000000-0000-0000-0000-000000000000",
            "7fffffff-ffff-ffff-ffff-ffffffffffff",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
        _ => vec![
            "",
            " ",
            "NULL",
            "a",
            "ä",
            "b,\"c\"\n",
            "zzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz",
        ],
    }
}

fn key_types() -> Vec<ColumnType> {
    use ColumnType as T;
    vec![
        T::Bool,
        T::Int8,
        T::Int64,
        T::UInt32,
        T::UInt64,
        T::Decimal { precision: 7, scale: 2 },
        T::Numeric,
        T::Date,
        T::Time,
        T::Timestamp,
        T::TimestampTz,
        T::Bytes,
        T::Uuid,
        T::Text { max: None },
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let types = prop::collection::vec(prop::sample::select(key_types()), 1..3);
    let change = (0u8..6, 0usize..40, 0usize..5);
    let commits = prop::collection::vec(prop::collection::vec(change, 0..12), 1..8);
    (types, commits, any::<bool>(), any::<bool>()).prop_map(|(types, commits, single, csv)| Case {
        types,
        commits,
        single,
        csv,
    })
}

async fn holds(case: &Case) {
    let dir = scratch();
    let format = if case.csv { csv_format() } else { parquet() };
    let files = match case.single {
        true => open(&dir.path().join(if case.csv { "t.csv" } else { "t.parquet" }), format),
        false => open(dir.path(), format),
    };
    let mut schema = TableSchema::default();
    for (i, ty) in case.types.iter().enumerate() {
        schema.columns.push(Column::new(format!("k{i}"), ty.clone()).not_null());
        schema.key.push(format!("k{i}"));
    }
    schema.columns.push(Column::new("v", ColumnType::Text { max: None }));
    let key = |n: usize| -> Vec<Option<String>> {
        let mut rest = n;
        case.types
            .iter()
            .map(|ty| {
                let values = values(ty);
                let value = values[rest % values.len()];
                rest /= values.len();
                text(value)
            })
            .collect()
    };
    let vals = [None, text(""), text("x"), text("y"), text("~")];
    let to = files.destination();
    let plan = to.prepare(plan("p", "t", &schema, 1, Publish::Direct)).await.unwrap();
    let mut sink = sink_for(&*to, &plan, 0).await;
    let mut model: BTreeMap<Row, Option<String>> = BTreeMap::new();
    for (at, changes) in case.commits.iter().enumerate() {
        let (mut batch, mut wanted) = (Vec::new(), (0, 0, 0, 0));
        let mut push = |op: Op, key: Row, value: Option<String>| {
            let there = model.get(&key).cloned();
            match (op, there) {
                (Op::Delete, Some(_)) => {
                    model.remove(&key);
                    wanted.2 += 1;
                }
                (Op::Delete | Op::Update, None) => wanted.3 += 1,
                (_, Some(old)) if old == value => wanted.3 += 1,
                (_, old) => {
                    model.insert(key.clone(), value.clone());
                    match old {
                        Some(_) => wanted.1 += 1,
                        None => wanted.0 += 1,
                    }
                }
            }
            let mut row = key;
            row.push(if op == Op::Delete { None } else { value });
            batch.push((op, row));
        };
        for (what, k, v) in changes {
            let value = vals[*v].clone();
            match what {
                0 => push(Op::Insert, key(*k), value),
                1 => push(Op::Update, key(*k), value),
                2 | 3 => push(Op::Upsert, key(*k), value),
                4 => push(Op::Delete, key(*k), None),
                // A key that moves is a delete and an insert.
                _ => {
                    push(Op::Delete, key(*k), None);
                    push(Op::Upsert, key(*k + v + 1), value);
                }
            }
        }
        if !batch.is_empty() {
            sink.write(event(&plan, 0, &batch)).await.unwrap();
        }
        let applied = sink.commit(&[step(at)]).await.unwrap();
        assert_eq!(counts(applied), wanted, "commit {at}");
        let mut rows: Vec<Row> = model
            .iter()
            .map(|(k, v)| k.iter().cloned().chain([v.clone()]).collect())
            .collect();
        rows.sort();
        assert_eq!(stored(&files).await, rows, "commit {at}");
    }
}

#[test]
fn any_history_of_changes_gives_what_a_model_gives() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut runner = TestRunner::new(Config::with_cases(150));
    runner
        .run(&case(), |case| {
            runtime.block_on(holds(&case));
            Ok(())
        })
        .unwrap();
}

/// Tables of our own lie apart from the user's, and can be looked up by their keys.
#[tokio::test]
async fn tables_of_our_own_are_nobodys_tables() {
    let dir = scratch();
    for (files, name) in ways(dir.path()) {
        let to = files.destination();
        let mut direct = plan("p", name, &small_schema(), 1, Publish::Direct);
        let mut own = direct.tables[0].clone();
        (own.destination, own.own) = (TableId::bare("_synctool_keys_1"), true);
        direct.tables.push(own);
        let plan = to.prepare(direct).await.unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        sink.write(event(&plan, 1, &[(Op::Upsert, row(1, "a")), (Op::Upsert, row(2, "b"))]))
            .await
            .unwrap();
        sink.write(event(&plan, 0, &[(Op::Upsert, row(5, "c"))])).await.unwrap();
        let applied = sink.commit(&[step(0)]).await.unwrap();
        assert_eq!((applied.own, applied.inserted, applied.written), (2, 1, 1));
        let from = to.as_source().unwrap();
        let tables: Vec<String> = from
            .tables(None)
            .await
            .unwrap()
            .into_iter()
            .map(|t| t.table.name)
            .collect();
        assert_eq!(tables, ["t"]);
        let table = TableId::bare("_synctool_keys_1");
        let read = ReadSpec::all(table, &small_schema().columns);
        let slice = Slice::Keys(KeyList {
            terms: vec![Term::column("id")],
            keys: vec![vec![text("2")], vec![text("9")]],
        });
        let found = read_slice(&*from, &read, &slice, None, &ReadContext::default())
            .await
            .unwrap();
        let rows: Vec<Row> = found.iter().flat_map(|(b, _)| texts(b)).collect();
        assert_eq!(rows, [row(2, "b")]);
    }
}
