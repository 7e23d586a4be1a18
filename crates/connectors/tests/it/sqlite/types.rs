//! How values are stored: what SQLite itself sees in the file, and that all of it comes back.

use super::{Db, load, read_all, row};
use synctool_core::error::code;
use synctool_core::plan::Publish;
use synctool_core::schema::{Carrier, Column, ColumnType, TableId, TableSchema};
use synctool_core::testing::rows::Row;

fn schema(columns: Vec<Column>) -> TableSchema {
    let mut all = vec![Column::new("id", ColumnType::Int64).not_null()];
    all.extend(columns);
    TableSchema {
        columns: all,
        key: vec!["id".into()],
    }
}

#[tokio::test]
async fn storage_is_what_the_docs_say() {
    let db = Db::new();
    let schema = schema(vec![
        Column::new("f", ColumnType::Float64),
        Column::new("u", ColumnType::UInt64),
        Column::new(
            "d",
            ColumnType::Decimal {
                precision: 12,
                scale: 2,
            },
        ),
        Column::new("t", ColumnType::TimestampTz),
        Column::new("b", ColumnType::Bool),
        Column::new("i", ColumnType::Interval),
        Column::new("y", ColumnType::Bytes),
        Column::new("g", ColumnType::Uuid),
    ]);
    let uuid = "12345678-9abc-def0-1234-56789abcdef0";
    let rows = [
        row(&[
            "1",
            "NaN",
            "18446744073709551615",
            "1.10",
            "2024-01-31 23:59:59.5+00",
            "true",
            "1 day",
            "\\x00ff",
            uuid,
        ]),
        row(&[
            "2",
            "-0",
            "9223372036854775807",
            "-0.01",
            "0044-03-15 00:00:00+00 BC",
            "false",
            "00:00:01",
            "\\x",
            "NULL",
        ]),
        row(&[
            "3",
            "Infinity",
            "9223372036854775808",
            "0.00",
            "infinity",
            "NULL",
            "NULL",
            "NULL",
            "NULL",
        ]),
        row(&["4", "2", "0", "NULL", "NULL", "NULL", "NULL", "NULL", "NULL"]),
    ];
    load(&db, "t", &schema, Publish::Create, &rows).await.unwrap();
    assert_eq!(read_all(&db, "t").await.unwrap(), rows);
    let described = db.source().describe(&TableId::bare("t")).await.unwrap();
    for (have, want) in described.columns.iter().zip(&schema.columns) {
        assert_eq!(
            (&have.name, &have.ty, have.nullable),
            (&want.name, &want.ty, want.nullable)
        );
    }
    assert_eq!(described.key, schema.key);
    let stored = |sql: &str| db.one::<String>(sql);
    assert_eq!(
        stored("SELECT group_concat(typeof(f) || ' ' || typeof(u), ', ') FROM (SELECT * FROM t ORDER BY id)"),
        "text text, text integer, real text, real integer"
    );
    assert_eq!(
        stored("SELECT group_concat(id, '') FROM (SELECT id FROM t ORDER BY u)"),
        "4231",
        "u64 sorts by value"
    );
    assert_eq!(
        db.one::<f64>("SELECT f + 1 FROM t WHERE id = 2"),
        1.0,
        "arithmetic on minus zero works"
    );
    assert_eq!(
        stored("SELECT strftime('%s', t) FROM t WHERE id = 1"),
        "1706745599",
        "SQLite reads our instants"
    );
    assert_eq!(stored("SELECT d || b || typeof(y) FROM t WHERE id = 1"), "1.101blob");
}

/// What the source could only carry as text is stored as its type all the same, and read back in either form.
#[tokio::test]
async fn text_carriers_are_stored_as_their_type() {
    let db = Db::new();
    let mut schema = schema(vec![
        Column::new("i", ColumnType::Int32),
        Column::new("u", ColumnType::UInt64),
        Column::new("f", ColumnType::Float32),
        Column::new("b", ColumnType::Bool),
        Column::new("y", ColumnType::Bytes),
        Column::new("t", ColumnType::TimestampTz),
        Column::new("d", ColumnType::Decimal { precision: 5, scale: 2 }),
    ]);
    let rows = [
        row(&[
            "1",
            "-7",
            "18446744073709551615",
            "0.1",
            "true",
            "\\x00ff",
            "2024-01-31 00:00:00+00",
            "NaN",
        ]),
        row(&["2", "7", "0", "NaN", "false", "\\x", "-infinity", "1.10"]),
    ];
    for c in &mut schema.columns[1..] {
        c.carrier = Carrier::Text;
    }
    load(&db, "t", &schema, Publish::Create, &rows).await.unwrap();
    assert_eq!(
        db.one::<String>("SELECT typeof(i) || typeof(u) || typeof(f) || typeof(b) || typeof(y) FROM t WHERE id = 1"),
        "integertextrealintegerblob"
    );
    let spec = synctool_core::plan::ReadSpec::all(TableId::bare("t"), &schema.columns);
    let slice = synctool_core::plan::Slice::All;
    let (back, _) = super::read(db.source().as_ref(), &spec, slice, None, &Default::default())
        .await
        .unwrap();
    assert_eq!(back, rows);
    let bad = [row(&["1", "seven", "NULL", "NULL", "NULL", "NULL", "NULL", "NULL"])];
    let e = load(&db, "t2", &schema, Publish::Create, &bad).await.unwrap_err();
    assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
    assert!(!e.to_string().contains("seven"), "{e}");
}

/// A table that somebody else declared keeps values exactly or refuses them.
#[tokio::test]
async fn a_foreign_affinity_never_changes_a_value() {
    let decimal = ColumnType::Decimal {
        precision: 20,
        scale: 2,
    };
    let cases: Vec<(&str, ColumnType, &[&str], &[&str])> = vec![
        (
            "NUMERIC(20,2)",
            decimal,
            &["1.10", "-3.00", "123456789012.34"],
            &["123456789012345678.91"],
        ),
        ("NUMERIC", ColumnType::Numeric, &["42", "1.5"], &["1.50", "NaN"]),
        (
            "STRING",
            ColumnType::Text { max: None },
            &["abc", "", "0x10"],
            &["1.10", "007", " 1 "],
        ),
        ("JSON", ColumnType::Json, &["{}", "null"], &["1.10"]),
        (
            "DATETIME",
            ColumnType::Timestamp,
            &["2024-01-31 00:00:00", "infinity"],
            &[],
        ),
        ("TEXT", ColumnType::Int64, &["9223372036854775807"], &[]),
        (
            "INTEGER",
            ColumnType::UInt64,
            &["9223372036854775807"],
            &["9223372036854775808"],
        ),
        ("", ColumnType::Text { max: None }, &["1.10", "007", "nul\0inside"], &[]),
        ("VARCHAR(3)", ColumnType::Text { max: Some(3) }, &["ä€😀"], &[]),
    ];
    for (declared, ty, kept, refused) in cases {
        let db = Db::with(&format!("CREATE TABLE t (id INTEGER PRIMARY KEY, v {declared})"));
        let schema = schema(vec![Column::new("v", ty.clone())]);
        let rows: Vec<Row> = kept
            .iter()
            .enumerate()
            .map(|(i, v)| row(&[&i.to_string(), v]))
            .collect();
        let merge = Publish::Merge { delete_missing: true };
        let applied = load(&db, "t", &schema, merge.clone(), &rows).await.unwrap();
        assert_eq!(applied.inserted, kept.len() as u64, "{declared}");
        assert_eq!(read_all(&db, "t").await.unwrap(), rows, "{declared}");
        // The same again finds nothing to do: what was stored compares equal to what is given.
        let applied = load(&db, "t", &schema, merge.clone(), &rows).await.unwrap();
        assert_eq!(applied.unchanged, kept.len() as u64, "{declared}");
        for v in refused {
            let e = load(&db, "t", &schema, merge.clone(), &[row(&["0", v])])
                .await
                .expect_err(&format!("{declared} took {v}"));
            assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{declared} {v}: {e}");
        }
        assert_eq!(
            read_all(&db, "t").await.unwrap(),
            rows,
            "{declared}: a refused load changed something"
        );
    }
}
