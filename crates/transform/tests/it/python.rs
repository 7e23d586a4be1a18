//! Lambdas against the Python on this machine: every expression over every row, judged by Python itself.

use crate::{Datastores, TEXT, build, compute, decimal, rows, table};
use serde_json::json;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::ChangeBatch;
use synctool_core::schema::{ColumnType, TableId, TableSchema};
use synctool_core::stage::Stages;
use synctool_core::testing::rows::{Row, batch, texts};

/// Expressions that mean the same for every value, NULL included or raising in Python.
const EXPRESSIONS: &[&str] = &[
    "x['i'] + x['j']",
    "x['i'] - x['j'] * 2",
    "x['i'] // x['j']",
    "x['i'] % x['j']",
    "x['i'] / x['j']",
    "-x['i'] // 3",
    "x['i'] ** 2",
    "x['i'] ** -1",
    "2 ** 10 + x['i']",
    "-x['i'] ** 2",
    "+x['i']",
    "abs(x['i'])",
    "x['f'] // x['g']",
    "x['f'] % x['g']",
    "x['f'] / x['g']",
    "x['f'] + x['i']",
    "x['f'] * 1.1",
    "x['f'] ** 2",
    "x['f'] ** 0.5",
    "x['g'] ** x['i']",
    "x['d'] + x['e']",
    "x['d'] - x['i']",
    "x['d'] * x['e']",
    "x['d'] / x['e']",
    "x['d'] // x['e']",
    "x['d'] % x['e']",
    "x['d'] ** 2",
    "x['i'] / x['d']",
    "x['d'] * 3",
    "abs(x['d'])",
    "-x['d']",
    "round(x['f'])",
    "round(x['f'], 2)",
    "round(x['f'], 0)",
    "round(x['f'], -1)",
    "round(x['f'] * 1.1, 2)",
    "round(x['g'], 1)",
    "round(x['d'])",
    "round(x['d'], 1)",
    "round(x['d'], 3)",
    "round(x['e'], 2)",
    "round(x['i'], -1)",
    "round(x['i'], 2)",
    "int(x['f'])",
    "int(x['d'])",
    "int(x['s'])",
    "int(x['b'])",
    "float(x['i'])",
    "float(x['d'])",
    "float(x['s'])",
    "len(x['s'])",
    "x['s'] + ' ' + x['t']",
    "x['s'].upper()",
    "x['s'].lower()",
    "x['s'].title()",
    "x['s'].capitalize()",
    "x['s'].strip()",
    "x['s'].lstrip()",
    "x['s'].rstrip()",
    "x['s'].strip('ax ')",
    "x['s'].replace('a', 'bb')",
    "x['s'].replace('a', 'bb', 1)",
    "x['s'].replace('', '-')",
    "x['s'].split(',')[0]",
    "x['s'].split(',')[-1]",
    "x['s'].split(',')[1]",
    "x['s'].split()[0]",
    "x['s'].startswith('a')",
    "x['s'].endswith(('e', 'n'))",
    "x['s'].zfill(6)",
    "x['s'][0]",
    "x['s'][-1]",
    "x['s'][1:3]",
    "x['s'][:2]",
    "x['s'][-2:]",
    "x['s'][x['i']:]",
    "x['s'][5:2]",
    "x['s'][:]",
    "x['i'] == x['j']",
    "x['i'] != x['j']",
    "x['i'] < x['j']",
    "0 < x['i'] <= 7",
    "x['f'] == x['i']",
    "x['f'] >= x['g']",
    "x['d'] > x['e']",
    "x['d'] == x['i']",
    "x['s'] == x['t']",
    "x['s'] < x['t']",
    "x['s'] is None",
    "x['i'] is not None",
    "x['i'] == None",
    "x['i'] in (1, 7, -7)",
    "x['s'] in ['alice', 'a,b,c']",
    "x['s'] not in ('alice', 'x')",
    "'a' in x['s']",
    "not x['i']",
    "not x['s']",
    "x['i'] and x['j']",
    "x['i'] or x['j']",
    "x['s'] or x['t']",
    "x['s'] or 'nobody'",
    "x['f'] or 1.5",
    "x['b'] and not x['s']",
    "'y' if x['i'] and x['i'] > 0 else 'n'",
    "'y' if x['s'] or x['d'] else 'n'",
    "1 if x['i'] and 10 // x['i'] > 1 else 0",
    "not (x['i'] and x['s'])",
    "bool(x['f'] or x['s'] == 'alice')",
    "x['d'] or x['e']",
    "'big' if x['i'] > 5 else 'small'",
    "'yes' if x['b'] else 'no'",
    "x['i'] if x['i'] is not None else 0",
    "1 if x['s'] else 2 if x['t'] else 3",
    "bool(x['i'])",
    "bool(x['d'])",
    "bool(x['s'])",
    "min(x['i'], x['j'])",
    "max(x['i'], x['j'], 3)",
    "min(x['d'], x['e'])",
    "max(x['s'], x['t'])",
    "min([x['f'], x['g']])",
    "x['b'] + 1",
    "x['b'] == 1",
    "x.get('i', 5)",
    "(x['i'] + 1) * (x['j'] - 1)",
    "'Ä' + x['t'] + '\\u20ac'",
    "r'\\d' + x['t']",
];

/// Expressions that Python gives a value of NULL, and that are NULL here.
const WITHOUT_NULL: &[&str] = &[
    "x['s'].split(x['t'])[0]",
    "str(x['i'])",
    "str(x['f'])",
    "str(x['g'])",
    "str(x['d'])",
    "str(x['e'])",
    "str(x['b'])",
    "str(x['day'])",
    "str(x['at'])",
    "f\"{x['i']}-{x['s']}\"",
    "f\"{x['f']:.2f}|{x['d']:.1f}|{{}}\"",
    "f\"{x['i']:05d}\"",
    "f'{x[\"s\"].upper()}: {x[\"i\"] + 1}'",
    "str(x['f'] * 1e20)",
    "str(x['f'] / 1e7)",
];

const JUDGE: &str = r#"
import json, sys, datetime
from decimal import Decimal, getcontext, ROUND_HALF_EVEN
getcontext().prec = 70
def value(ty, text):
    if text is None: return None
    if ty == 'bigint': return int(text)
    if ty == 'double': return float(text)
    if ty == 'boolean': return text == 'true'
    if ty == 'date': return datetime.date.fromisoformat(text)
    if ty == 'timestamp': return datetime.datetime.fromisoformat(text)
    if ty.startswith('decimal'): return Decimal(text)
    return text
bad, judged, raised = [], 0, 0
data = json.load(sys.stdin)
for case in data['cases']:
    f = eval('lambda x: ' + case['expr'])
    for row, got in zip(data['rows'], case['got']):
        x = {n: value(t, c) for (n, t), c in zip(data['columns'], row)}
        nulls = any(v is None for v in x.values())
        judged += 1
        try:
            want = f(x)
        except Exception as e:
            raised += 1
            of_null = nulls and isinstance(e, (TypeError, AttributeError))
            decided = ' if ' in case['expr']
            if not ('reject' in got or (of_null and (got['value'] is None or decided))):
                bad.append((case['expr'], row, got, repr(e)))
            continue
        if 'reject' in got:
            huge = isinstance(want, (int, Decimal)) and abs(want) >= 2**63
            # Whole numbers have 64 bits on the way too.
            huge |= got['reject'] == 'overflow' and any(isinstance(v, int) and abs(v) >= 2**62 for v in x.values())
            unreal = isinstance(want, complex)
            if not (huge or unreal): bad.append((case['expr'], row, got, repr(want)))
            continue
        have = value(case['type'], got['value'])
        if nulls and have is None and case['loose']: continue
        if isinstance(want, Decimal) and isinstance(have, Decimal):
            same = want.quantize(have, rounding=ROUND_HALF_EVEN) == have
        elif isinstance(want, float) and isinstance(have, float):
            same = repr(want) == repr(have)
        elif isinstance(want, float) != isinstance(have, float):
            # A column of mixed results has the wider type.
            same = have is not None and want is not None and float(want) == float(have)
        else:
            same = have == want and (have is None) == (want is None)
        if not same: bad.append((case['expr'], row, got, repr(want)))
for b in bad[:40]: print(b)
print('judged', judged, 'raised', raised, 'bad', len(bad))
"#;

fn schema() -> TableSchema {
    table(
        &[
            ("k", ColumnType::Int64),
            ("i", ColumnType::Int64),
            ("j", ColumnType::Int64),
            ("f", ColumnType::Float64),
            ("g", ColumnType::Float64),
            ("d", decimal(12, 2)),
            ("e", decimal(10, 3)),
            ("s", TEXT),
            ("t", TEXT),
            ("b", ColumnType::Bool),
            ("day", ColumnType::Date),
            ("at", ColumnType::Timestamp),
        ],
        &["k"],
    )
}

fn values() -> Vec<Row> {
    let many = [
        "7|2|2.5|0.1|10.05|3.125|alice|smith|true|2024-02-29|2024-01-31 23:59:59.5",
        "-7|2|-2.5|0.1|-10.05|3.125|a,b,c|,|false|1999-12-31|2024-01-31 00:00:00",
        "7|-2|0.5|-0.3|0.00|0.001|  padded text |x|true|0001-01-01|1969-12-31 23:59:59.999999",
        "-7|-2|1.5|3|2.50|-1.500|Alice SMITH o'neil ß|a|false|2024-01-01|2024-01-01 12:30:00",
        "0|5|0|1|1.00|1.000||empty|true|2024-01-01|2024-01-01 12:30:00",
        "5|0|-0|0|1.50|0.000|12|3|false|2024-01-01|2024-01-01 12:30:00",
        "9223372036854775807|1|1e16|1e-5|9999999999.99|9999999.999| -42 |7|true|2024-01-01|2024-01-01 12:30:00",
        "-9223372036854775808|-1|123456.785|2.675|0.05|0.005|1_000|1|false|2024-01-01|2024-01-01 12:30:00",
        "15|4|25|7.5|2.67|2.675|3.14|,|true|2024-01-01|2024-01-01 12:30:00",
        "25|3|1e300|1e300|-0.01|-0.001|nan|n|true|2024-01-01|2024-01-01 12:30:00",
        "1|1|35|-7.25|12.34|1.234|äöü€,ÄÖ,x|ü|false|2024-01-01|2024-01-01 12:30:00",
        "2|-3|-0.05|0.05|-2.50|-0.500|a|a|true|2024-01-01|2024-01-01 12:30:00",
        "-|2|2.5|-|10.05|-|-|smith|-|-|-",
        "3|-|-|0.5|-|1.500|bob|-|true|2024-01-01|2024-01-01 12:30:00",
    ];
    let lines: Vec<String> = many.iter().enumerate().map(|(n, l)| format!("{n}|{l}")).collect();
    // Blanks in values count, so cells are not trimmed here.
    let cell = |c: &str| (c != "-").then(|| c.to_string());
    lines.iter().map(|l| l.split('|').map(cell).collect()).collect()
}

#[tokio::test]
async fn lambdas_mean_what_python_means() {
    let (schema, values) = (schema(), values());
    let none = Datastores::new();
    let mut cases = Vec::new();
    for (list, loose) in [(EXPRESSIONS, false), (WITHOUT_NULL, true)] {
        for expr in list {
            let chain = build(vec![compute(&[("made", &format!("lambda x: {expr}"))])], &["k"], &none)
                .await
                .unwrap_or_else(|e| panic!("{expr}: {e}"));
            let output = chain.output(&schema).unwrap_or_else(|e| panic!("{expr}: {e}"));
            let rows = batch(&schema, &values).unwrap();
            let input = ChangeBatch::inserts(Arc::new(TableId::bare("t")), rows, Hold::none());
            let made = crate::run(&chain, vec![input])
                .await
                .unwrap_or_else(|e| panic!("{expr}: {e}"));
            let mut got = vec![json!(null); values.len()];
            for reject in &made.rejects {
                let at: usize = reject.key[0].1.as_deref().unwrap().parse().unwrap();
                got[at] = json!({ "reject": reject.reason });
            }
            for row in texts(&made.batches[0].rows).unwrap() {
                let at: usize = row[0].as_deref().unwrap().parse().unwrap();
                got[at] = json!({ "value": row.last().unwrap() });
            }
            let ty = output.column("made").unwrap().ty.to_string();
            cases.push(json!({ "expr": expr, "type": ty, "got": got, "loose": loose }));
        }
    }
    let columns: Vec<_> = schema
        .columns
        .iter()
        .map(|c| json!([c.name, c.ty.to_string()]))
        .collect();
    let data = json!({ "columns": columns, "rows": values, "cases": cases });
    let mut python = Command::new("python3")
        .args(["-c", JUDGE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3 judges this test");
    python
        .stdin
        .take()
        .unwrap()
        .write_all(data.to_string().as_bytes())
        .unwrap();
    let said = python.wait_with_output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let verdict = said.lines().last().unwrap_or_default();
    let cases = (EXPRESSIONS.len() + WITHOUT_NULL.len()) * values.len();
    assert!(
        verdict.starts_with(&format!("judged {cases} ")),
        "Python did not judge: {said}"
    );
    assert!(verdict.ends_with("bad 0"), "{said}");
}

#[tokio::test]
async fn what_python_would_not_do_is_refused_with_its_place() {
    let schema = schema();
    let none = Datastores::new();
    let refused = async |expr: &str| {
        let built = build(vec![compute(&[("made", expr)])], &["k"], &none).await;
        let e = match built {
            Ok(chain) => chain.output(&schema).expect_err(expr),
            Err(e) => e,
        };
        let place = e
            .context()
            .iter()
            .find(|(k, _)| *k == "position")
            .map(|(_, v)| v.clone());
        (
            place.unwrap_or_default(),
            e.message().to_string(),
            e.next_step().unwrap_or_default().to_string(),
        )
    };
    let (place, message, hint) = refused("lambda x: x['total'] * 2").await;
    assert_eq!(
        (place.as_str(), message.as_str()),
        ("1:11", "column total is not in the pipeline")
    );
    assert!(hint.contains("it has: k, i, j"), "{hint}");
    let (place, message, hint) = refused("lambda x: x['s'] + x['i']").await;
    assert_eq!((place.as_str(), hint.as_str()), ("1:20", "write str(…) around it"));
    assert!(message.contains("text + a whole number"), "{message}");
    assert_eq!(refused("lambda x: x['i'] == x['s']").await.0, "1:21");
    assert_eq!(refused("lambda x: 'a' if x['b'] else 1").await.0, "1:11");
    assert_eq!(refused("lambda x: x['s'].split(',')").await.0, "1:18");
    assert_eq!(
        refused("lambda x: None").await.1,
        "the value is always None, so it has no type"
    );
    assert_eq!(refused("lambda x: (1, 2)").await.0, "1:11");
    assert_eq!(
        refused("lambda x: open('/etc/passwd')").await.1,
        "the function open is not supported"
    );
    assert_eq!(refused("lambda x: x['s']['k']").await.0, "1:18");
    assert_eq!(refused("lambda x: x['day'] + 1").await.0, "1:11");
    assert_eq!(refused("lambda x: round(x['d'], x['i'])").await.0, "1:25");
}

#[tokio::test]
async fn a_number_beside_a_decimal_is_the_one_that_is_written() {
    let schema = table(&[("k", ColumnType::Int64), ("d", decimal(12, 2))], &["k"]);
    let none = Datastores::new();
    let stage = compute(&[
        ("taxed", "lambda x: round(x['d'] * 1.1, 2)"),
        ("is", "lambda x: x['d'] == 10.05"),
        ("half", "lambda x: x['d'] / 3"),
    ]);
    let chain = build(vec![stage], &["k"], &none).await.unwrap();
    let output = chain.output(&schema).unwrap();
    assert!(matches!(
        output.column("taxed").unwrap().ty,
        ColumnType::Decimal { scale: 2, .. }
    ));
    let made = crate::run(&chain, vec![crate::inserts(&schema, &["1|10.05", "2|0.05", "3|-"])])
        .await
        .unwrap();
    // 11.055 and 0.055 are exactly half way: the even neighbour.
    assert_eq!(
        made.rows(),
        [
            "1|10.05|11.06|true|3.3500000000000000",
            "2|0.05|0.06|false|0.0166666666666667",
            "3|-|-|false|-"
        ]
    );
    assert_eq!(rows(&["1|-"])[0][1], None);
}
