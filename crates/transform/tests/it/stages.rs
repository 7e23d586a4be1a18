//! Stages without expressions: casts, value maps, one row per key, batches, projections, and how a chain is put together.

use crate::{Datastores, TEXT, absent, build, changes, decimal, inserts, run, run_through, table};
use proptest::prelude::*;
use std::collections::BTreeMap;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::code;
use synctool_core::schema::{Carrier, ColumnType, TableSchema};
use synctool_core::stage::{Stages, Written};
use synctool_transform::{CastTo, Chain, DedupSpec, Keep, NamedStage, Projected, StageSpec};

fn cast(casts: &[(&str, ColumnType)]) -> StageSpec {
    let casts = casts.iter().map(|(column, to)| CastTo {
        column: column.to_string(),
        to: to.clone(),
    });
    StageSpec::Cast { casts: casts.collect() }
}

#[tokio::test]
async fn casts_are_checked_and_reject_what_does_not_fit() {
    let schema = table(
        &[
            ("id", ColumnType::Int64),
            ("price", TEXT),
            ("day", ColumnType::Timestamp),
        ],
        &["id"],
    );
    let stage = cast(&[("price", decimal(6, 2)), ("day", ColumnType::Date)]);
    let chain = build(vec![stage], &["id"], &Datastores::new()).await.unwrap();
    let output = chain.output(&schema).unwrap();
    assert_eq!(output.columns[1].ty, decimal(6, 2));
    let input = inserts(
        &schema,
        &[
            "1|12.5|2024-01-31 10:00:00",
            "2|cheap|2024-01-31 10:00:00",
            "3|1.234|-",
            "4|-|-",
        ],
    );
    let made = run(&chain, vec![input]).await.unwrap();
    assert_eq!(made.rows(), ["1|12.50|2024-01-31", "4|-|-"]);
    assert_eq!(made.reasons(), ["cast:price:bad_cast", "cast:price:bad_cast"]);
    assert_eq!(made.batches[0].rows.schema(), output.arrow_schema());
    // A delete carries its key only, and an absent value is no value.
    let batch = changes(&schema, &[Op::Delete, Op::Update], &["5|junk|-", "6|junk|-"], None);
    let made = run(&chain, vec![absent(batch, 1, 1)]).await.unwrap();
    assert_eq!(
        (made.rows(), made.ops()),
        (vec!["5|-|-".to_string(), "6|-|-".into()], vec![Op::Delete, Op::Update])
    );

    let never = build(vec![cast(&[("day", ColumnType::Int32)])], &["id"], &Datastores::new())
        .await
        .unwrap();
    assert_eq!(never.output(&schema).unwrap_err().code(), code::CONFIG_TYPE);
    let missing = build(vec![cast(&[("dya", ColumnType::Int32)])], &["id"], &Datastores::new())
        .await
        .unwrap();
    let e = missing.output(&schema).unwrap_err();
    assert_eq!(
        (e.code(), e.next_step()),
        (code::COLUMN_MISSING, Some("did you mean day?"))
    );
    assert!(e.to_string().contains("stage cast"), "{e}");
}

#[tokio::test]
async fn a_projection_chooses_renames_and_carries() {
    let schema = table(
        &[("id", ColumnType::Int32), ("a", decimal(8, 2)), ("b", TEXT)],
        &["key"],
    );
    let to = |from: &str, name: &str, to: Option<ColumnType>| Projected {
        from: from.into(),
        name: name.into(),
        to,
    };
    let columns = vec![
        to("a", "price", Some(decimal(10, 2))),
        to("id", "key", Some(ColumnType::Int64)),
    ];
    let chain = build(vec![StageSpec::Project { columns }], &["key"], &Datastores::new())
        .await
        .unwrap();
    assert_eq!(chain.needs(), ["a", "id"]);
    let output = chain.output(&schema).unwrap();
    assert_eq!(output.key, ["key"]);
    let batch = changes(&schema, &[Op::Update], &["7|1.50|x"], Some(&["6|-|-"]));
    let made = run(&chain, vec![absent(batch, 1, 0)]).await.unwrap();
    assert_eq!(made.rows(), ["1.50|7"]);
    let out = &made.batches[0];
    assert_eq!(out.rows.schema(), output.arrow_schema());
    assert!(!out.present.as_ref().unwrap().has(0, 0) && out.present.as_ref().unwrap().has(1, 0));
    let before = synctool_core::testing::rows::texts(out.before.as_ref().unwrap()).unwrap();
    assert_eq!(crate::shown(&before), ["-|6"]);
    // The plan has the last word on how the columns travel.
    let mut planned = output.clone();
    planned.columns[0].carrier = Carrier::Text;
    let mut stages = chain.open_for(&planned, Written::InOrder).unwrap();
    let mut batch = inserts(&schema, &["7|1.50|x"]);
    for stage in &mut stages {
        batch = stage.apply(batch).await.unwrap().batches.remove(0);
    }
    assert_eq!(batch.rows.schema(), planned.arrow_schema());
    assert_eq!(stages.last().unwrap().name(), "output");
}

#[tokio::test]
async fn a_chain_says_what_it_needs_and_books_every_stage_apart() {
    let map = |column: &str| StageSpec::ValueMap {
        column: column.into(),
        mapping: BTreeMap::from([("1".into(), Some("one".into()))]),
        places: BTreeMap::new(),
        fixed: false,
    };
    let schema = table(&[("id", ColumnType::Int64), ("a", TEXT), ("b", TEXT)], &["id"]);
    let stages = vec![
        map("a").into(),
        NamedStage {
            name: Some("second".into()),
            spec: map("b"),
        },
        map("a").into(),
    ];
    let chain = Chain::build(stages, &["id".into()], &Datastores::new()).await.unwrap();
    assert_eq!(
        chain.names().collect::<Vec<_>>(),
        ["value_map", "second", "value_map_2"]
    );
    assert_eq!(chain.needs(), ["a", "b"]);
    let made = run(&chain, vec![inserts(&schema, &["1|1|1", "2|2|2"])]).await.unwrap();
    assert_eq!(made.rows(), ["1|one|one", "2|2|2"]);
    assert_eq!(made.accounts.len(), 3);
}

#[cfg(not(feature = "datafusion"))]
#[tokio::test]
async fn a_build_without_expressions_says_so() {
    for stage in [
        crate::compute(&[("a", "b + 1")]),
        StageSpec::Filter { condition: "a".into() },
    ] {
        let e = build(vec![stage], &["id"], &Datastores::new())
            .await
            .map(|_| ())
            .unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED);
        assert_eq!(e.next_step(), Some("build with --features datafusion"));
    }
}

fn orders() -> TableSchema {
    table(
        &[("id", ColumnType::Int64), ("v", ColumnType::Int64), ("n", TEXT)],
        &["id"],
    )
}

async fn dedup(spec: DedupSpec) -> Chain {
    build(vec![StageSpec::Dedup(spec)], &["id"], &Datastores::new())
        .await
        .unwrap()
}

#[tokio::test]
async fn one_row_per_key_over_all_batches() {
    let schema = orders();
    let batches = || {
        vec![
            inserts(&schema, &["1|5|a", "2|1|b", "1|7|c"]),
            inserts(&schema, &["2|9|d", "1|6|e", "3|1|f"]),
        ]
    };
    let last = dedup(DedupSpec::last(["id"])).await;
    let made = run(&last, batches()).await.unwrap();
    assert_eq!(made.rows(), ["2|1|b", "1|7|c", "2|9|d", "1|6|e", "3|1|f"]);
    assert_eq!(made.ops(), [Op::Insert, Op::Insert, Op::Upsert, Op::Upsert, Op::Insert]);
    assert_eq!(made.accounts["dedup"].superseded, 1);

    let mut newest = DedupSpec::last(["id"]);
    newest.order_by = Some("v".into());
    let made = run(&dedup(newest).await, batches()).await.unwrap();
    assert_eq!(made.rows(), ["2|1|b", "1|7|c", "2|9|d", "3|1|f"]);
    assert_eq!(made.accounts["dedup"].deduplicated, 1);

    let mut first = DedupSpec::last(["id"]);
    first.keep = Keep::First;
    let made = run(&dedup(first).await, batches()).await.unwrap();
    assert_eq!(made.rows(), ["1|5|a", "2|1|b", "3|1|f"]);
    assert_eq!(made.ops(), [Op::Insert; 3]);

    let mut few = DedupSpec::last(["id"]);
    few.max_keys = 2;
    let e = run(&dedup(few).await, batches()).await.unwrap_err();
    assert!(e.to_string().contains("2 keys at most"), "{e}");

    let mut by_text = DedupSpec::last(["id"]);
    by_text.order_by = Some("amount".into());
    let by_text = dedup(by_text).await;
    // Thousands without their zeros have no form but a text, either: 9000 would be later than 10000.
    for ty in [ColumnType::Numeric, decimal(10, -3), ColumnType::Interval] {
        let schema = table(&[("id", ColumnType::Int64), ("amount", ty)], &["id"]);
        assert_eq!(by_text.output(&schema).unwrap_err().code(), code::CONFIG_TYPE);
    }
}

/// Where rows are loaded or compared, and where rows that are the same have keys of their own, each goes on once, when
/// no better one can come.
#[tokio::test]
async fn rows_wait_until_no_better_one_can_come() {
    let schema = orders();
    let by_n = TableSchema {
        key: vec!["n".into()],
        ..orders()
    };
    let batches = || {
        vec![
            inserts(&schema, &["1|5|a", "2|1|b"]),
            inserts(&schema, &["2|9|c", "3|1|d"]),
            inserts(&schema, &["3|1|e", "1|4|f"]),
        ]
    };
    let mut newest = DedupSpec::last(["id"]);
    newest.order_by = Some("v".into());
    for (planned, written) in [(&schema, Written::Once), (&by_n, Written::InOrder)] {
        let chain = dedup(newest.clone()).await;
        let stages = chain.open_for(planned, written).unwrap();
        let made = run_through(stages, batches()).await.unwrap();
        assert_eq!(made.rows(), ["1|5|a", "2|9|c", "3|1|e"]);
        assert_eq!(made.ops(), [Op::Insert; 3]);
        let account = made.accounts["dedup"];
        assert_eq!((account.superseded, account.deduplicated), (2, 1));
    }

    // The first to come goes on at once: whatever follows, it stays.
    let mut first = DedupSpec::last(["id"]);
    (first.keep, first.max_bytes) = (Keep::First, 0);
    let stages = dedup(first).await.open_for(&schema, Written::Once).unwrap();
    let made = run_through(stages, batches()).await.unwrap();
    assert_eq!(made.rows(), ["1|5|a", "2|1|b", "3|1|d"]);

    // What has no room to wait goes on, too, and must not be replaced any more.
    newest.max_bytes = 0;
    let chain = dedup(newest).await;
    let stages = || chain.open_for(&schema, Written::Once).unwrap();
    let worse = vec![inserts(&schema, &["1|5|a"]), inserts(&schema, &["1|4|b", "2|1|c"])];
    let made = run_through(stages(), worse).await.unwrap();
    assert_eq!(made.rows(), ["1|5|a", "2|1|c"]);
    let e = run_through(stages(), batches()).await.unwrap_err();
    assert_eq!(e.code(), code::UNSUPPORTED);
    assert!(e.to_string().contains("a better row came"), "{e}");
    assert!(e.next_step().is_some_and(|hint| hint.contains("one row per key")));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Applying what dedup lets through, in order, gives the row that should stand for each key.
    #[test]
    fn what_is_applied_in_order_ends_with_the_right_row(
        rows in prop::collection::vec((0u8..6, prop::option::of(-3i64..4)), 0..40),
        sizes in prop::collection::vec(1usize..9, 1..12),
        last in any::<bool>(), ordered in any::<bool>(), descending in any::<bool>(), once in any::<bool>(),
    ) {
        let schema = orders();
        let lines: Vec<String> = rows.iter().enumerate()
            .map(|(n, (k, v))| format!("{k}|{}|{n}", v.map_or("-".into(), |v| v.to_string())))
            .collect();
        let mut batches: Vec<ChangeBatch> = Vec::new();
        let mut rest: Vec<&str> = lines.iter().map(String::as_str).collect();
        let mut sizes = sizes.into_iter().cycle();
        while !rest.is_empty() {
            let n = sizes.next().unwrap().min(rest.len());
            batches.push(inserts(&schema, &rest[..n]));
            rest.drain(..n);
        }
        let spec = DedupSpec {
            keep: if last { Keep::Last } else { Keep::First },
            order_by: ordered.then(|| "v".into()),
            descending,
            ..DedupSpec::last(["id"])
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let written = if once { Written::Once } else { Written::InOrder };
        let made = runtime.block_on(async {
            let stages = dedup(spec).await.open_for(&schema, written).unwrap();
            run_through(stages, batches).await.unwrap()
        });
        prop_assert!(!once || made.ops().iter().all(|op| *op == Op::Insert));
        let mut applied: BTreeMap<String, String> = BTreeMap::new();
        for (line, op) in made.rows().iter().zip(made.ops()) {
            let (key, _) = line.split_once('|').unwrap();
            let before = applied.insert(key.into(), line.clone());
            prop_assert_eq!(before.is_some(), op == Op::Upsert, "an insert of a row that is there");
        }
        let mut want: BTreeMap<String, String> = BTreeMap::new();
        for key in 0u8..6 {
            let mut of_key: Vec<(usize, Option<i64>)> = rows.iter().enumerate()
                .filter(|(_, (k, _))| *k == key).map(|(n, (_, v))| (n, *v)).collect();
            if ordered {
                // NULL is the least in either direction: first when rising, last when falling.
                of_key.sort_by(|(n, a), (m, b)| if descending { b.cmp(a).then(n.cmp(m)) } else { a.cmp(b).then(n.cmp(m)) });
            }
            let chosen = if last { of_key.last() } else { of_key.first() };
            if let Some((n, v)) = chosen {
                want.insert(key.to_string(), format!("{key}|{}|{n}", v.map_or("-".into(), |v| v.to_string())));
            }
        }
        prop_assert_eq!(applied, want);
    }

    /// Batches keep rows, order, ops and presence, and have the size asked for up to the boundary.
    #[test]
    fn batches_are_cut_and_joined(sizes in prop::collection::vec(0usize..9, 0..12), target in 1usize..10) {
        let schema = orders();
        let mut n = 0;
        let batches: Vec<ChangeBatch> = sizes.iter().enumerate().map(|(b, size)| {
            let lines: Vec<String> = (n..n + size).map(|i| format!("{i}|{b}|x")).collect();
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            n += size;
            if b % 3 == 0 || *size == 0 {
                inserts(&schema, &lines)
            } else {
                let ops: Vec<Op> = (0..*size).map(|i| if i % 2 == 0 { Op::Delete } else { Op::Update }).collect();
                absent(changes(&schema, &ops, &lines, (b % 3 == 1).then_some(&lines[..])), 1, 0)
            }
        }).collect();
        let want: Vec<String> = batches.iter().flat_map(describe).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let made = runtime.block_on(async {
            let chain = build(vec![StageSpec::Batch { target_rows: target }], &["id"], &Datastores::new()).await.unwrap();
            run(&chain, batches).await.unwrap()
        });
        let got: Vec<String> = made.batches.iter().flat_map(describe).collect();
        prop_assert_eq!(got, want);
        let lengths: Vec<usize> = made.batches.iter().map(ChangeBatch::len).collect();
        if let Some((_, full)) = lengths.split_last() {
            prop_assert!(full.iter().all(|l| *l == target), "{:?}", lengths);
        }
    }
}

/// A row a line: values, op, whether `v` is there, and the key before.
fn describe(batch: &ChangeBatch) -> Vec<String> {
    let rows = crate::shown(&synctool_core::testing::rows::texts(&batch.rows).unwrap());
    let before = batch
        .before
        .as_ref()
        .map(|b| crate::shown(&synctool_core::testing::rows::texts(b).unwrap()));
    rows.into_iter()
        .enumerate()
        .map(|(r, row)| {
            let there = batch.present.as_ref().is_none_or(|p| p.has(1, r));
            let before = before.as_ref().map_or("-|-|-", |b| &b[r]);
            format!("{row} {:?} {there} {before}", batch.ops.get(r))
        })
        .collect()
}
