//! SQL expressions mean what PostgreSQL means by them, or are refused: judged by a server where it can, and where
//! this goes further (nothing is rounded, no float that is not a number), by hand.

use crate::{Datastores, TEXT, build, compute, decimal, inserts, run, table};
use synctool_core::schema::{ColumnType, TableSchema};
use synctool_core::stage::Stages;
use synctool_testkit::{PgVersion, Postgres as PostgresServer};
use synctool_transform::check;

fn schema() -> TableSchema {
    table(
        &[
            ("id", ColumnType::Int64),
            ("small", ColumnType::Int16),
            ("i", ColumnType::Int32),
            ("big", ColumnType::Int64),
            ("d", decimal(12, 2)),
            ("n", ColumnType::Numeric),
            ("f", ColumnType::Float64),
            ("r", ColumnType::Float32),
            ("s", TEXT),
            ("day", ColumnType::Date),
            ("at", ColumnType::Timestamp),
            ("tz", ColumnType::TimestampTz),
        ],
        &["id"],
    )
}

const TYPES: &str = "id bigint, small smallint, i integer, big bigint, d decimal(12,2), n numeric, f double precision, \
                     r real, s text, day date, at timestamp, tz timestamptz";

/// The values of expressions over one row, or why it is rejected.
async fn value(row: &str, expression: &str) -> String {
    let stage = compute(&[("made", expression)]);
    let schema = schema();
    let chain = build(vec![stage], &["id"], &Datastores::new()).await.unwrap();
    chain
        .output(&schema)
        .unwrap_or_else(|e| panic!("{expression}: {e} {:?}", e.next_step()));
    let made = run(&chain, vec![inserts(&schema, &[row])]).await.unwrap();
    match made.rejects.first() {
        Some(reject) => format!("rejected: {}", reject.reason),
        None => made.rows()[0].rsplit('|').next().unwrap().to_string(),
    }
}

/// A row with some values; the others are NULL.
fn row(values: &[(&str, &str)]) -> String {
    let cell = |name: &str| {
        let given = values.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
        given.unwrap_or_else(|| if name == "id" { "1" } else { "-" }.into())
    };
    let cells: Vec<String> = schema().columns.iter().map(|c| cell(&c.name)).collect();
    cells.join("|")
}

const MOMENTS: &[&str] = &[
    "2024-02-29 12:34:56.789012",
    "9999-12-31 23:59:59.999999",
    "1600-01-01 00:00:00",
    "0001-05-06 07:08:09",
    "2024-10-27 00:30:00",
    "2024-10-27 01:30:00",
    "2024-10-27 02:30:00",
    "2024-03-31 02:30:00",
    "1969-12-31 23:59:59.5",
    "2001-01-01 00:00:00",
];

/// What PostgreSQL and this agree about, over every moment.
#[tokio::test]
async fn moments_of_every_year_are_as_in_postgresql() {
    let db = PostgresServer::shared(PgVersion::V18).database("moments");
    db.psql(&format!("CREATE TABLE t({TYPES})"));
    for (id, moment) in MOMENTS.iter().enumerate() {
        let day = moment.split(' ').next().unwrap();
        db.psql(&format!(
            "INSERT INTO t(id, day, at, tz) VALUES ({id}, '{day}', '{moment}', '{moment}+00')"
        ));
    }
    let mut expressions = vec![
        "tz at time zone 'Europe/Berlin'".to_string(),
        "at at time zone 'Europe/Berlin'".into(),
        "tz at time zone 'America/St_Johns'".into(),
        "day at time zone 'Europe/Berlin'".into(),
        "date_trunc('day', tz, 'Europe/Berlin')".into(),
        "date_bin(interval '15 minutes', at, timestamp '2000-01-01')".into(),
        "date_bin(interval '2 days 1 hour', at, timestamp '2001-01-01 00:00:07')".into(),
        "date_bin(interval '1 week', tz, timestamptz '1999-01-01')".into(),
        "cast(at as date)".into(),
        "cast(day as timestamp)".into(),
        "cast(tz as timestamp)".into(),
        "cast(at as timestamptz)".into(),
        "cast(s as timestamp)".into(),
        "at > day".into(),
        "at + interval '1 month 2 days 3 hours'".into(),
        "extract(year from at)".into(),
        "case when at > day then at else day end".into(),
    ];
    for unit in [
        "microseconds",
        "milliseconds",
        "second",
        "minute",
        "hour",
        "day",
        "week",
        "month",
        "quarter",
        "year",
        "decade",
        "century",
        "millennium",
    ] {
        expressions.push(format!("date_trunc('{unit}', at)"));
        expressions.push(format!("date_trunc('{unit}', tz)"));
    }
    db.psql("UPDATE t SET s = at::text");
    for expression in expressions {
        let wanted = db.psql(&format!(
            "SET datestyle = 'ISO, YMD'; SET timezone = 'UTC'; SELECT coalesce(({expression})::text, 'NULL') FROM t ORDER BY id"
        ));
        let wanted: Vec<&str> = wanted.lines().filter(|l| !l.starts_with("SET")).collect();
        assert_eq!(wanted.len(), MOMENTS.len(), "{expression}: {wanted:?}");
        for (moment, wanted) in MOMENTS.iter().zip(wanted) {
            let zoned = format!("{moment}+00");
            let day = moment.split(' ').next().unwrap();
            let row = row(&[("day", day), ("at", moment), ("tz", &zoned), ("s", moment)]);
            let got = value(&row, &expression).await;
            assert_eq!(got, wanted, "{expression} of {moment}");
        }
    }
}

#[tokio::test]
async fn moments_have_their_types_and_now_has_microseconds() {
    let schema = schema();
    let ty = |text: &str| {
        check(text, &schema.columns)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .to_string()
    };
    assert_eq!(ty("tz at time zone 'Europe/Berlin'"), "timestamp");
    assert_eq!(ty("at at time zone 'Europe/Berlin'"), "timestamptz");
    assert_eq!(ty("now()"), "timestamptz");
    assert_eq!(ty("date_trunc('day', tz)"), "timestamptz");
    assert_eq!(ty("date_bin(interval '1 hour', at)"), "timestamp");
    let row = row(&[
        ("at", "infinity"),
        ("day", "-infinity"),
        ("s", "2024-01-01 00:00:00.1234567"),
    ]);
    assert!(value(&row, "now()").await.starts_with("20"));
    assert_eq!(value(&row, "now() > timestamptz '2024-01-01'").await, "true");
    assert_eq!(value(&row, "date_trunc('year', at)").await, "infinity");
    assert_eq!(value(&row, "date_bin(interval '1 month', at)").await, "infinity");
    assert_eq!(value(&row, "cast(at as date)").await, "infinity");
    assert_eq!(value(&row, "cast(day as timestamp)").await, "-infinity");
    assert_eq!(
        value(&row, "cast(s as timestamp)").await,
        "rejected: finer_than_microseconds"
    );
    let row = self::row(&[("at", "2024-03-31 10:00:00")]);
    assert_eq!(
        value(
            &row,
            "date_bin(interval '1 month', at, timestamp '2024-01-31 12:00:00')"
        )
        .await,
        "2024-02-29 12:00:00"
    );
}

#[tokio::test]
async fn quotients_of_decimals_are_rounded_and_the_same_in_a_lambda() {
    let row = row(&[("d", "2.00"), ("n", "-0.05"), ("i", "3"), ("big", "7")]);
    for (sql, lambda, want) in [
        ("d / 3", "x['d'] / 3", "0.6666666666666667"),
        ("d / i", "x['d'] / x['i']", "0.6666666666666667"),
        ("n / i", "x['n'] / x['i']", "-0.0166666666666667"),
        ("big / d", "x['big'] / x['d']", "3.5000000000000000"),
        ("n / d", "x['n'] / x['d']", "-0.0250000000000000"),
    ] {
        assert_eq!(value(&row, sql).await, want, "{sql}");
        assert_eq!(value(&row, &format!("lambda x: {lambda}")).await, want, "{lambda}");
    }
    assert_eq!(value(&row, "round(d / 3, 2)").await, "0.67");
    assert_eq!(value(&row, "d / 3 * 3 > 1.99").await, "true");
    assert_eq!(value(&row, "big / 2").await, "3");
    assert_eq!(value(&row, "d / (d - 2)").await, "rejected: division_by_zero");
}

#[tokio::test]
async fn numbers_do_not_wrap_and_floats_stay_numbers() {
    let smallest = row(&[
        ("small", "-32768"),
        ("i", "-2147483648"),
        ("big", "-9223372036854775808"),
    ]);
    for column in ["small", "i", "big"] {
        assert_eq!(
            value(&smallest, &format!("-{column}")).await,
            "rejected: overflow",
            "{column}"
        );
    }
    let floats = row(&[("f", "-2.5"), ("r", "3e38"), ("i", "5"), ("big", "0")]);
    for (expression, want) in [
        ("f / 0", "rejected: division_by_zero"),
        ("f / big", "rejected: division_by_zero"),
        ("f % 0", "rejected: division_by_zero"),
        ("1 / (f / 0) > 5", "rejected: division_by_zero"),
        ("ln(f)", "rejected: not_a_real_number"),
        ("sqrt(f)", "rejected: evaluation"),
        ("exp(f * -1000)", "rejected: overflow"),
        ("r * r", "rejected: overflow"),
        ("f / 2", "-1.25"),
        ("-f", "2.5"),
        ("-i", "-5"),
        ("abs(f)", "2.5"),
    ] {
        assert_eq!(value(&floats, expression).await, want, "{expression}");
    }
    for (held, want) in [("Infinity", "Infinity"), ("NaN", "NaN")] {
        let row = row(&[("f", held)]);
        assert_eq!(value(&row, "f * 2").await, want);
        assert_eq!(value(&row, "abs(f)").await, want);
    }
}

#[tokio::test]
async fn casts_lose_nothing() {
    let schema = schema();
    let ty = |text: &str| {
        check(text, &schema.columns)
            .unwrap_or_else(|e| panic!("{text}: {e}"))
            .to_string()
    };
    assert_eq!(ty("d::float"), "double");
    assert_eq!(ty("d::float(10)"), "float");
    assert_eq!(ty("d::real"), "float");
    assert_eq!(ty("cast(null as integer)"), "integer");
    let row = row(&[
        ("d", "1.50"),
        ("big", "9007199254740993"),
        ("f", "1e300"),
        ("s", "12.345"),
        ("i", "300"),
        ("r", "0.5"),
        ("n", "7"),
    ]);
    for (expression, want) in [
        ("cast(d as int)", "rejected: bad_cast"),
        ("cast(n as int)", "7"),
        ("cast(f as real)", "rejected: bad_cast"),
        ("cast(r as int)", "rejected: bad_cast"),
        ("cast(r * 2 as int)", "1"),
        ("cast(big as double precision)", "rejected: bad_cast"),
        ("cast(i as smallint)", "300"),
        ("cast(i * 200 as smallint)", "rejected: bad_cast"),
        ("cast(d as decimal(5,1))", "1.5"),
        ("cast(d / 8 as decimal(5,1))", "rejected: bad_cast"),
        ("cast(s as decimal(5,2))", "rejected: bad_cast"),
        ("cast(s as decimal(5,3))", "12.345"),
        ("cast(s as double precision)", "12.345"),
        ("cast(s as int)", "rejected: bad_cast"),
        ("try_cast(s as int)", "-"),
        ("try_cast(n as int)", "7"),
        ("d::float", "1.5"),
        ("cast(d as text)", "1.50"),
        ("cast(cast(i as varchar) as int)", "300"),
        ("i + 1.5", "301.5"),
        ("big * r > 1", "true"),
    ] {
        assert_eq!(value(&row, expression).await, want, "{expression}");
    }
}

#[tokio::test]
async fn similar_to_matches_whole_texts() {
    let row = row(&[("s", "abc")]);
    for (pattern, want) in [
        ("'a%'", "true"),
        ("'a'", "false"),
        ("'%(b|d)%'", "true"),
        ("'(b|c)%'", "false"),
        ("'a_c'", "true"),
        ("'a.c'", "false"),
        ("'[a-c]{3}'", "true"),
        ("'a#%' escape '#'", "false"),
    ] {
        assert_eq!(value(&row, &format!("s similar to {pattern}")).await, want, "{pattern}");
    }
    assert_eq!(value(&row, "s not similar to 'a%'").await, "false");
}

#[test]
fn what_does_not_mean_the_same_is_refused_at_its_place() {
    let schema = schema();
    let wrong = |text: &str| {
        let e = check(text, &schema.columns).expect_err(text);
        (e.column, e.message)
    };
    let mut found = Vec::new();
    for (text, column, words) in [
        ("1 + (select 1)", 6, "subqueries are not possible in an expression"),
        ("exists (select 1)", 9, "subqueries are not possible in an expression"),
        ("i in (select 1)", 7, "subqueries are not possible in an expression"),
        ("cast(s as varchar(2))", 6, "takes no length here"),
        ("s::char(3)", 1, "takes no length here"),
        ("cast(at as timestamp(0))", 6, "takes no digits of seconds"),
        ("s similar to s", 14, "must be written out"),
        ("s similar to '[a'", 14, "without its ]"),
        ("tz at time zone 'Europe/Atlantis'", 17, "no time zone Europe/Atlantis"),
        ("tz at time zone '+02:00'", 17, "write a name"),
        ("date_trunc('fortnight', at)", 1, "one of microsecond"),
        ("date_bin(interval '0 days', at)", 1, "longer than nothing"),
        ("cast(1.5 as int)", 6, "does not become integer"),
        ("at - at", 1, "the value is an interval, and no column holds one"),
        (
            "interval '1 day'",
            1,
            "the value is an interval, and no column holds one",
        ),
    ] {
        let (at, message) = wrong(text);
        if at != column || !message.contains(words) {
            found.push(format!("{text} at {at}: {message}"));
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}
