//! A PostgreSQL table of every type with its edge values goes to PostgreSQL (undecoded and decoded), through SQLite and
//! through Parquet, and comes back: every cell has the text it had.

use std::process::Command;
use synctool_testkit::kill::KillRun;
use synctool_testkit::{PgVersion, Postgres, TestDb};

/// Types and values; the first table's survive everywhere, the second's (infinities, NaN decimals) everywhere but in
/// Parquet, which refuses them.
const FINITE: &[(&str, &[&str])] = &[
    ("boolean", &["true", "false"]),
    ("smallint", &["-32768", "32767"]),
    ("integer", &["-2147483648", "2147483647"]),
    ("bigint", &["-9223372036854775808", "9223372036854775807"]),
    ("numeric(12,2)", &["0.00", "-9999999999.99", "1.10"]),
    ("numeric(38,10)", &["1234567890123456789012345678.0123456789"]),
    (
        "numeric",
        &["0", "0.00", "1e-20", "123456789012345678901234567890.5", "NaN"],
    ),
    ("real", &["0.1", "NaN", "-0"]),
    (
        "double precision",
        &["0.1", "Infinity", "-Infinity", "NaN", "5e-324", "-0"],
    ),
    ("date", &["0001-01-01", "0044-03-15 BC", "2024-02-29", "9999-12-31"]),
    ("time", &["00:00:00", "24:00:00", "23:59:59.999999"]),
    ("timetz", &["12:30:00+05:30", "23:59:59.999999-12"]),
    (
        "timestamp",
        &[
            "1969-12-31 23:59:59.999999",
            "2262-04-12 00:00:00",
            "0044-03-15 12:00:00 BC",
        ],
    ),
    (
        "timestamptz",
        &["2038-01-19 03:14:08.000001+00", "1582-10-10 00:00:00+00"],
    ),
    ("interval", &["1 year 2 mons -3 days +04:05:06.789", "00:00:00.000001"]),
    (
        "text",
        &[
            "",
            " ",
            "NULL",
            "\\N",
            "tab\tnewline\n\"quote\" ''single'', back\\slash",
            "ä€😀",
        ],
    ),
    ("varchar(20)", &["ä€😀", ""]),
    ("char(5)", &["ab", "abcde"]),
    ("bytea", &["\\x", "\\x00ff5c27"]),
    (
        "uuid",
        &[
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
        ],
    ),
    ("json", &["{\"b\": 1,  \"a\": 1.0, \"a\": 2}", "null"]),
    (
        "jsonb",
        &["{\"a\": 12345678901234567890.123456789}", "null", "[1, [2]]"],
    ),
    ("int[]", &["{}", "{1,NULL,3}", "{{1,2},{3,4}}", "[0:1]={5,6}"]),
    ("text[]", &["{NULL,\"null\",\"\",\"a,b\"}"]),
    ("inet", &["10.0.0.1", "10.0.0.0/8", "::1"]),
    ("macaddr", &["08:00:2b:01:02:03"]),
    ("money", &["$1.10"]),
    ("bit(3)", &["101"]),
    ("varbit", &["1", ""]),
    ("int4range", &["[1,5)", "empty", "(,3)"]),
    ("point", &["(1.5,-2)"]),
    ("tsvector", &["'a':1 'b'"]),
    ("mood", &["sad", "ok"]),
    ("pair", &["(1,\"a b\")", "(,)"]),
    ("small", &["1", "99"]),
];

const INFINITE: &[(&str, &[&str])] = &[
    ("numeric(12,2)", &["NaN", "1.00"]),
    ("date", &["infinity", "-infinity", "4713-01-01 BC", "5874897-12-31"]),
    ("timestamp", &["infinity", "-infinity", "4713-01-01 00:00:00 BC"]),
    ("timestamptz", &["infinity", "-infinity"]),
];

const OWN: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (n int, t text); \
                   CREATE DOMAIN small AS int CHECK (VALUE < 100);";

fn quoted(text: &str) -> String {
    // The table above writes a quote as SQL does.
    format!(
        "E'{}'",
        text.replace("''", "'").replace('\\', "\\\\").replace('\'', "\\'")
    )
}

fn fill(db: &TestDb, table: &str, types: &[(&str, &[&str])]) {
    let columns: Vec<String> = types
        .iter()
        .enumerate()
        .map(|(i, (ty, _))| format!("c{i} {ty}"))
        .collect();
    db.psql(&format!(
        "CREATE TABLE {table}(id int PRIMARY KEY, {})",
        columns.join(", ")
    ));
    let height = types.iter().map(|(_, v)| v.len()).max().unwrap_or(0) + 1;
    for row in 0..height {
        let cell = |v: &&[&str]| v.get(row).map_or("NULL".to_string(), |t| quoted(t));
        let cells: Vec<String> = types.iter().map(|(_, v)| cell(v)).collect();
        db.psql(&format!("INSERT INTO {table} VALUES ({row}, {})", cells.join(", ")));
    }
}

/// Every cell as its type prints it (a cast to text trims char(n) and widens inet), a line each.
fn cells(db: &TestDb, table: &str, types: &[(&str, &[&str])]) -> Vec<String> {
    let mut found = Vec::new();
    for (i, (ty, _)) in types.iter().enumerate() {
        let sql = format!(
            "SELECT id || ' ' || CASE WHEN num_nulls(c{i}) = 1 THEN 'NULL' \
             ELSE '<' || encode(convert_to(format('%s', c{i}), 'UTF8'), 'escape') || '>' END FROM {table} ORDER BY id"
        );
        found.extend(db.psql(&sql).lines().map(|line| format!("{ty} {line}")));
    }
    found
}

fn copy(folder: &std::path::Path, from: (&str, &str), to: (&str, &str), raw: bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_synctool"));
    command.current_dir(folder).args([
        "copy", from.0, from.1, to.0, to.1, "--verify", "hash", "--output", "json",
    ]);
    if !raw {
        command.env("SYNCTOOL_NO_RAW", "1");
    }
    let outcome = KillRun::new(&command).run();
    assert_eq!(outcome.code, Some(0), "{from:?} to {to:?}: {}", outcome.stderr);
}

fn chain(version: PgVersion) {
    let server = Postgres::shared(version);
    let (source, target) = (server.database("chain"), server.database("chain_to"));
    for db in [&source, &target] {
        db.psql(OWN);
    }
    let folder = tempfile::tempdir().expect("a folder");
    for (table, types) in [("finite", FINITE), ("infinite", INFINITE)] {
        fill(&source, table, types);
        let wanted = cells(&source, table, types);
        let (from, to) = (source.url(), target.url());
        let name = format!("public.{table}");
        let check = |copied: &str| {
            let found = cells(&target, copied, types);
            let different: Vec<_> = wanted.iter().zip(&found).filter(|(w, f)| w != f).collect();
            assert!(
                wanted.len() == found.len() && different.is_empty(),
                "{copied}: {different:?}"
            );
        };
        for (raw, copied) in [(true, format!("{table}_raw")), (false, format!("{table}_decoded"))] {
            copy(folder.path(), (&from, &name), (&to, &format!("public.{copied}")), raw);
            check(&copied);
        }
        let mut ways = vec![("sqlite:way.db", table.to_string(), format!("{table}_sqlite"))];
        if table == "finite" {
            ways.push(("parquet:way", table.to_string(), format!("{table}_parquet")));
        }
        for (way, stop, copied) in ways {
            if way.starts_with("parquet") {
                std::fs::create_dir_all(folder.path().join("way")).expect("a folder");
            }
            copy(folder.path(), (&from, &name), (way, &stop), true);
            copy(folder.path(), (way, &stop), (&to, &format!("public.{copied}")), true);
            check(&copied);
        }
    }
}

#[test]
fn every_type_survives_every_way_15() {
    chain(PgVersion::V15);
}

#[test]
fn every_type_survives_every_way_18() {
    chain(PgVersion::V18);
}
