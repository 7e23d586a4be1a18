//! SQL expressions: types, exactness, mistakes, rows that fail.

use crate::{Datastores, TEXT, absent, build, changes, compute, decimal, inserts, run, table};
use synctool_core::change::Op;
use synctool_core::error::code;
use synctool_core::schema::{Carrier, ColumnType, TableSchema};
use synctool_core::stage::Stages;
use synctool_transform::{Computed, StageSpec, check, check_syntax};

fn orders() -> TableSchema {
    let mut schema = table(
        &[
            ("id", ColumnType::Int64),
            ("total", decimal(12, 2)),
            ("open_amount", ColumnType::Numeric),
            ("name", TEXT),
            ("ref", ColumnType::Uuid),
            ("at", ColumnType::TimestampTz),
            ("small", ColumnType::Int16),
            ("Odd Name", ColumnType::Float64),
        ],
        &["id"],
    );
    // As a PostgreSQL sink asks for it.
    schema.columns[1].carrier = Carrier::Text;
    schema
}

const ROW: &str = "1|10.05|7.50|ann|12345678-9abc-def0-1234-56789abcdef0|2024-01-31 23:59:59+00|3|0.5";

#[tokio::test]
async fn results_keep_their_type_and_every_digit() {
    let schema = orders();
    let type_of = |text: &str| {
        check(text, &schema.columns)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .to_string()
    };
    for (text, ty) in [
        ("total * 1.1", "decimal(15,3)"),
        ("round(total * 1.1, 2)", "decimal(15,2)"),
        ("total + 1", "decimal(23,2)"),
        ("open_amount", "numeric"),
        ("open_amount * 2", "decimal(38,10)"),
        ("ref", "uuid"),
        ("upper(ref)", "text"),
        ("id + 1", "bigint"),
        ("small", "smallint"),
        ("\"Odd Name\" * 2", "double"),
        ("at > TIMESTAMP '2024-01-01'", "boolean"),
        ("CAST(at AS DATE)", "date"),
        ("date_trunc('hour', at)", "timestamptz"),
        ("name || '-' || id", "text"),
        ("CASE WHEN total > 10 THEN 'big' ELSE 'small' END", "text"),
        ("coalesce(name, 'nobody')", "text"),
        ("CAST(name AS DECIMAL(20,4))", "decimal(20,4)"),
        ("extract(year from at)", "integer"),
        ("substring(name from 1 for 2)", "text"),
    ] {
        assert_eq!(type_of(text), ty, "{text}");
    }
    let stage = compute(&[
        ("taxed", "total * 1.1"),
        ("third", "round(open_amount / 3, 4)"),
        ("label", "upper(name) || '/' || substr(ref, 1, 8)"),
        ("day", "CAST(at AS DATE)"),
        ("copy", "ref"),
        ("again", "taxed + 1"),
    ]);
    let chain = build(vec![stage], &["id"], &Datastores::new()).await.unwrap();
    let output = chain.output(&schema).unwrap();
    assert_eq!(output.column("copy").unwrap().ty, ColumnType::Uuid);
    let made = run(&chain, vec![inserts(&schema, &[ROW])]).await.unwrap();
    assert_eq!(made.batches[0].rows.schema(), output.arrow_schema());
    assert_eq!(
        made.rows(),
        [format!(
            "{ROW}|11.055|2.5000|ANN/12345678|2024-01-31|12345678-9abc-def0-1234-56789abcdef0|12.055"
        )]
    );
}

#[test]
fn mistakes_are_named_at_their_place() {
    let schema = orders();
    let wrong = |text: &str| {
        let e = check(text, &schema.columns).expect_err(text);
        (e.line, e.column, e.message.clone(), e.hint.clone().unwrap_or_default())
    };
    let (line, column, message, hint) = wrong("total +\n  totl");
    assert_eq!(
        (line, column, message.as_str(), hint.as_str()),
        (2, 3, "column totl is not in the pipeline", "did you mean total?")
    );
    let (_, column, message, hint) = wrong("1 + uper(name)");
    assert_eq!(
        (column, message.as_str(), hint.as_str()),
        (5, "there is no function uper", "did you mean upper?")
    );
    let (_, column, ..) = wrong("id + (name - 1)");
    assert_eq!(column, 7);
    assert_eq!(wrong("total * ").1, 9);
    assert_eq!(wrong("name )").1, 6);
    assert_eq!(wrong("NAME").3, "did you mean name?");
    let message = wrong("random()").2;
    assert!(message.contains("repeatable"), "{message}");
    assert!(wrong("sum(total)").2.contains("sum"));
    assert!(wrong("NULL").2.contains("always NULL"));
    let e: synctool_core::error::Error = check("totl", &schema.columns).unwrap_err().into();
    assert_eq!(e.code(), code::COLUMN_MISSING);
    assert!(check_syntax("total * 1.1").is_ok() && check_syntax("nothing_known + 1").is_ok());
    assert_eq!(check_syntax("a b c").unwrap_err().column, 3);
}

#[tokio::test]
async fn a_row_that_fails_is_put_aside_and_the_others_are_not() {
    let schema = table(
        &[
            ("id", ColumnType::Int64),
            ("a", ColumnType::Int64),
            ("t", TEXT),
            ("n", ColumnType::Numeric),
        ],
        &["id"],
    );
    let stage = compute(&[
        ("sum", "a + 1"),
        ("ratio", "100 / a"),
        ("cast", "CAST(t AS BIGINT)"),
        ("n2", "n * 2"),
    ]);
    let chain = build(vec![stage], &["id"], &Datastores::new()).await.unwrap();
    let made = run(
        &chain,
        vec![inserts(
            &schema,
            &[
                "1|9223372036854775807|5|1",
                "2|0|5|1",
                "3|4|five|1",
                "4|5|6|NaN",
                "5|5|6|1.00000000001",
                "6|-|-|-",
                "7|5|6|2.5",
            ],
        )],
    )
    .await
    .unwrap();
    assert_eq!(made.rows(), ["6|-|-|-|-|-|-|-", "7|5|6|2.5|6|20|6|5.0000000000"]);
    assert_eq!(
        made.reasons(),
        [
            "compute:sum:overflow",
            "compute:ratio:division_by_zero",
            "compute:cast:bad_cast",
            "compute:n2:not_representable",
            "compute:n2:not_representable",
        ]
    );
    let keys: Vec<_> = made.rejects.iter().map(|r| r.key[0].1.clone().unwrap()).collect();
    assert_eq!(keys, ["1", "2", "3", "4", "5"]);
    assert!(!format!("{:?}", made.rejects).contains("five"), "a value leaked");
}

#[tokio::test]
async fn changes_stay_changes() {
    let schema = table(&[("id", ColumnType::Int64), ("a", ColumnType::Int64)], &["id"]);
    let chain = build(vec![compute(&[("b", "10 / a")])], &["id"], &Datastores::new())
        .await
        .unwrap();
    let batch = changes(
        &schema,
        &[Op::Insert, Op::Delete, Op::Update, Op::Update],
        &["1|5", "2|0", "3|0", "4|2"],
        Some(&["-|-", "-|-", "-|-", "9|5"]),
    );
    let made = run(&chain, vec![absent(batch, 1, 2)]).await.unwrap();
    assert_eq!(made.ops(), [Op::Insert, Op::Delete, Op::Update, Op::Update]);
    assert_eq!(made.rows(), ["1|5|2", "2|0|-", "3|0|-", "4|2|5"]);
    let out = &made.batches[0];
    let present = out.present.as_ref().unwrap();
    assert_eq!([0, 1, 2, 3].map(|r| present.has(2, r)), [true, true, false, true]);
    let before = synctool_core::testing::rows::texts(out.before.as_ref().unwrap()).unwrap();
    assert_eq!(crate::shown(&before)[3], "9|5|2");
}

#[tokio::test]
async fn a_filter_deletes_what_stopped_matching() {
    let schema = table(&[("id", ColumnType::Int64), ("state", TEXT)], &["id"]);
    for condition in ["state = 'active'", "lambda x: x['state'] == 'active'"] {
        let filter = StageSpec::Filter {
            condition: condition.into(),
        };
        let chain = build(vec![filter], &["id"], &Datastores::new()).await.unwrap();
        assert_eq!(chain.needs(), ["state"]);
        let made = run(&chain, vec![inserts(&schema, &["1|active", "2|gone", "3|-"])])
            .await
            .unwrap();
        assert_eq!(made.rows(), ["1|active"]);
        assert_eq!(made.accounts["filter"].filtered, 2);
        let batch = changes(
            &schema,
            &[Op::Update, Op::Upsert, Op::Update, Op::Delete, Op::Insert],
            &["1|active", "2|gone", "3|gone", "4|-", "5|gone"],
            None,
        );
        let made = run(&chain, vec![batch]).await.unwrap();
        assert_eq!(
            made.ops(),
            [Op::Upsert, Op::Delete, Op::Delete, Op::Delete],
            "{condition}"
        );
        // A row that got another key is gone under its old one.
        let batch = changes(&schema, &[Op::Update], &["7|gone"], Some(&["6|-"]));
        let made = run(&chain, vec![batch]).await.unwrap();
        assert_eq!(
            (made.rows(), made.ops()),
            (vec!["6|gone".to_string()], vec![Op::Delete])
        );
        // What is not known cannot be decided.
        let batch = changes(&schema, &[Op::Update], &["7|-"], None);
        let made = run(&chain, vec![absent(batch, 1, 0)]).await.unwrap();
        assert_eq!(made.reasons(), ["filter:-:column_absent"]);
    }
}

#[tokio::test]
async fn keys_are_computed_of_keys_only_where_changes_are_followed() {
    let schema = table(&[("id", ColumnType::Int64), ("a", ColumnType::Int64)], &["id"]);
    let chain = build(
        vec![compute(&[("tenant", "'x'"), ("k2", "a + 1")])],
        &["tenant", "k2"],
        &Datastores::new(),
    )
    .await
    .unwrap();
    run(&chain, vec![inserts(&schema, &["1|5"])]).await.unwrap();
    let e = run(&chain, vec![changes(&schema, &[Op::Delete], &["1|-"], None)])
        .await
        .unwrap_err();
    assert!(e.to_string().contains("k2"), "{e}");
    assert_eq!(e.code(), code::UNSUPPORTED);
}

#[tokio::test]
async fn a_wanted_type_is_checked_value_by_value() {
    let schema = table(&[("id", ColumnType::Int64), ("a", decimal(10, 4))], &["id"]);
    let stage = StageSpec::Compute {
        columns: vec![Computed {
            name: "a".into(),
            expression: "a * 2".into(),
            to: Some(decimal(6, 2)),
        }],
    };
    let chain = build(vec![stage], &["id"], &Datastores::new()).await.unwrap();
    assert_eq!(chain.output(&schema).unwrap().column("a").unwrap().ty, decimal(6, 2));
    let made = run(&chain, vec![inserts(&schema, &["1|1.1250", "2|1.1110", "3|99999"])])
        .await
        .unwrap();
    assert_eq!(made.rows(), ["1|2.25"]);
    assert_eq!(made.reasons(), ["compute:a:bad_cast", "compute:a:bad_cast"]);
}
