//! Filters and slices on files, columns that come later, and what is remembered.

use super::*;
use std::collections::BTreeMap;
use synctool_core::error::code;
use synctool_core::query::{Comparison, Condition, Cut, Filter, KeyList, Term, Test};

fn formats() -> [Format; 2] {
    [parquet(), csv_format()]
}

fn test(name: &str, test: Test) -> Condition {
    Condition {
        term: Term::column(name),
        test,
    }
}

async fn found(source: &dyn Source, read: &ReadSpec, slice: &Slice) -> Vec<Vec<Option<String>>> {
    let batches = read_slice(source, read, slice, None, &ReadContext::default())
        .await
        .unwrap();
    let schema = read.schema().arrow_schema();
    texts(&concat_batches(&schema, batches.iter().map(|(b, _)| b)).unwrap())
}

fn row(cells: &[&str]) -> Vec<Option<String>> {
    cells.iter().map(|c| (*c != "NULL").then(|| c.to_string())).collect()
}

#[tokio::test]
async fn rows_are_chosen_by_data_and_nothing_is_computed() {
    for format in formats() {
        let dir = scratch();
        let files = open(dir.path(), format);
        let (to, from) = (files.destination(), files.source());
        let create = plan("p", "items", &small_schema(), 2, Publish::Create);
        load(&*to, create, &[vec![small_rows(0, 30)], vec![small_rows(30, 10)]])
            .await
            .unwrap();
        let mut read = ReadSpec::all(TableId::bare("items"), &small_schema().columns[1..]);
        read.filters.push(Filter::Test(test(
            "id",
            Test::Compare(Comparison::NotEqual, "9".into()),
        )));
        // The column of the condition is not read, the filter holds beside the slice.
        let range = Test::Range {
            lower: Some("8".into()),
            upper: Some("11".into()),
        };
        let cut = Slice::Cut(Cut {
            conditions: vec![test("id", range)],
            key: None,
        });
        assert_eq!(found(&*from, &read, &cut).await, [row(&["name 10"]), row(&["name 8"])]);
        let keys = Slice::Keys(KeyList {
            terms: vec![Term::column("id"), Term::column("name")],
            keys: vec![row(&["33", "name 33"]), row(&["9", "name 9"]), row(&["2", "other"])],
        });
        assert_eq!(found(&*from, &read, &keys).await, [row(&["name 33"])]);
        let key = Slice::Key(synctool_core::change::KeyRange {
            columns: vec!["id".into()],
            lower: Some(vec!["38".into()]),
            upper: None,
        });
        assert_eq!(found(&*from, &read, &key).await, [row(&["name 38"]), row(&["name 39"])]);
        let extent = from.extent(&read, &Term::column("id"), &cut).await.unwrap().unwrap();
        assert_eq!((extent.min.as_str(), extent.max.as_str()), ("8", "10"));
        let distinct = from.distinct(&read, &[Term::column("name")], &cut, 10).await.unwrap();
        assert_eq!(distinct, [row(&["name 10"]), row(&["name 8"])]);
        assert_eq!(
            from.describe_query(&read).await.unwrap()[0].ty,
            ColumnType::Text { max: None }
        );
        read.filters.push(Filter::Sql("id > 3".into()));
        let e = from.describe_query(&read).await.unwrap_err();
        assert!(e.code() == code::UNSUPPORTED && e.to_string().contains("id > 3"), "{e}");
    }
}

/// A filtered read goes on behind each of its boundaries.
#[tokio::test]
async fn chosen_rows_are_resumed() {
    for format in formats() {
        let dir = scratch();
        let files = open(dir.path(), format);
        let (to, from) = (files.destination(), files.source());
        let create = plan("p", "items", &small_schema(), 3, Publish::Create);
        let parts: Vec<Vec<RecordBatch>> = (0..3).map(|i| vec![small_rows(i * 1000, 1000)]).collect();
        load(&*to, create, &parts).await.unwrap();
        let mut read = ReadSpec::all(TableId::bare("items"), &small_schema().columns);
        read.filters.push(Filter::Test(test(
            "id",
            Test::Range {
                lower: Some("900".into()),
                upper: Some("2500".into()),
            },
        )));
        let context = ReadContext {
            batch_bytes: 4000,
            ..ReadContext::default()
        };
        let all = read_slice(&*from, &read, &Slice::All, None, &context).await.unwrap();
        let rows: usize = all.iter().map(|(b, _)| b.num_rows()).sum();
        assert_eq!(rows, 1600);
        assert!(all.len() > 3);
        for at in [0, 1, all.len() / 2, all.len() - 1] {
            let rest = read_slice(&*from, &read, &Slice::All, Some(&all[at].1), &context)
                .await
                .unwrap();
            let expected: usize = all[at + 1..].iter().map(|(b, _)| b.num_rows()).sum();
            assert_eq!(rest.iter().map(|(b, _)| b.num_rows()).sum::<usize>(), expected);
        }
    }
}

#[tokio::test]
async fn columns_that_come_later_are_null_before() {
    for format in formats() {
        let dir = scratch();
        let files = open(dir.path(), format);
        let (to, from) = (files.destination(), files.source());
        load(
            &*to,
            plan("p", "items", &small_schema(), 1, Publish::Create),
            &[vec![small_rows(0, 2)]],
        )
        .await
        .unwrap();
        let mut more = small_schema();
        more.columns.insert(1, Column::new("price", ColumnType::Int32));
        let rows = batch(&more, &[vec![Some("7"), Some("70"), Some("seven")]]);
        let refused = plan("p", "items", &more, 1, Publish::Append);
        assert_eq!(
            to.prepare(refused.clone()).await.unwrap_err().code(),
            code::SCHEMA_MISMATCH
        );
        let mut evolving = refused;
        evolving.tables[0].evolve = true;
        let preview = to.preview(&evolving).await.unwrap();
        assert!(
            preview.iter().any(|s| s.contains("add columns") && s.contains("price")),
            "{preview:?}"
        );
        load(&*to, evolving, &[vec![rows]]).await.unwrap();
        // And once more, with only the old columns known: refused, as a column would be missing.
        let e = to
            .prepare(plan("p", "items", &small_schema(), 1, Publish::Append))
            .await
            .unwrap_err();
        assert_eq!(e.code(), code::SCHEMA_MISMATCH, "{e}");
        assert_eq!(
            texts(&read_table(&*from, "items").await.unwrap()),
            [
                row(&["0", "name 0", "NULL"]),
                row(&["1", "name 1", "NULL"]),
                row(&["7", "seven", "70"])
            ]
        );
        let mut read = ReadSpec::all(TableId::bare("items"), &small_schema().columns[..1]);
        read.filters.push(Filter::Test(test("price", Test::Null)));
        assert_eq!(found(&*from, &read, &Slice::All).await, [row(&["0"]), row(&["1"])]);
    }
}

/// Facts outlive the records of the runs that brought them.
#[tokio::test]
async fn facts_are_kept_over_many_runs() {
    let dir = scratch();
    let files = open(dir.path(), parquet());
    let to = files.destination();
    let facts = |k: &str, v: &str| BTreeMap::from([(k.to_string(), v.to_string())]);
    to.remember("p", &facts("first", "1")).await.unwrap();
    for run in 0..60 {
        let publish = if run == 0 { Publish::Create } else { Publish::Append };
        let mut plan = plan("p", "items", &small_schema(), 1, publish);
        plan.remember = facts("until", &run.to_string());
        if run == 3 {
            plan.remember.insert("third".into(), "3".into());
        }
        load(&*to, plan, &[vec![small_rows(run, 1)]]).await.unwrap();
    }
    let known = to.remembered("p").await.unwrap();
    let want = [("first", "1"), ("third", "3"), ("until", "59")].map(|(k, v)| (k.to_string(), v.to_string()));
    assert_eq!(known, BTreeMap::from(want));
    assert_eq!(ids(&*files.source(), "items").await, (0..60).collect::<Vec<_>>());
}
