//! Every type and its edge values, through Parquet and CSV, in folders and single files.

use super::*;
use proptest::prelude::{BoxedStrategy, Just, ProptestConfig, Strategy, any, prop_assert_eq, prop_oneof, proptest};
use synctool_core::error::code;
use synctool_core::schema::Carrier;
use synctool_core::sink::Fidelity;

/// Types with values at their edges, in canonical text.
fn edges() -> Vec<(ColumnType, Vec<&'static str>)> {
    use ColumnType::*;
    vec![
        (Bool, vec!["true", "false"]),
        (Int8, vec!["-128", "127", "0"]),
        (Int16, vec!["-32768", "32767"]),
        (Int32, vec!["-2147483648", "2147483647"]),
        (
            Int64,
            vec!["-9223372036854775808", "9223372036854775807", "9007199254740993"],
        ),
        (UInt8, vec!["0", "255"]),
        (UInt16, vec!["65535"]),
        (UInt32, vec!["4294967295"]),
        (UInt64, vec!["18446744073709551615"]),
        (Decimal { precision: 9, scale: 2 }, vec!["0.00", "-9999999.99", "0.01"]),
        (
            Decimal {
                precision: 38,
                scale: 10,
            },
            vec!["9999999999999999999999999999.9999999999", "-0.0000000001"],
        ),
        (
            Decimal {
                precision: 76,
                scale: 3,
            },
            vec!["-9999999999999999999999999999999999999999999999999999999999999999999999999.999"],
        ),
        (
            Decimal {
                precision: 90,
                scale: 1,
            },
            vec!["1.0", "123456789012345678901234567890.5"],
        ),
        (
            Decimal {
                precision: 3,
                scale: -2,
            },
            vec!["12300", "-100"],
        ),
        (
            Numeric,
            vec![
                "NaN",
                "Infinity",
                "-Infinity",
                "0",
                "0.00",
                "1e-20",
                "1234567890.0987654321",
            ],
        ),
        (Float32, vec!["NaN", "Infinity", "-Infinity", "-0", "0.1", "1e-45"]),
        (
            Float64,
            vec!["NaN", "Infinity", "-Infinity", "-0", "5e-324", "1e308", "0.1"],
        ),
        (
            Date,
            vec![
                "0001-01-01",
                "4713-01-01 BC",
                "1582-10-10",
                "1969-12-31",
                "9999-12-31",
                "5874897-12-31",
            ],
        ),
        (Time, vec!["00:00:00", "23:59:59.999999", "24:00:00"]),
        (TimeTz, vec!["23:59:59.999999+05:30", "00:00:00-15:59"]),
        (
            Timestamp,
            vec![
                "0044-03-15 12:00:00 BC",
                "1969-12-31 23:59:59.999999",
                "2262-04-12 00:00:00",
                "9999-12-31 23:59:59.999999",
            ],
        ),
        (
            TimestampTz,
            vec![
                "2038-01-19 03:14:08+00",
                "1900-01-01 00:00:00.000001+00",
                "2300-01-01 00:00:00+00",
            ],
        ),
        (Interval, vec!["1 year 2 mons 3 days 04:05:06.789", "-00:00:00.000001"]),
        (
            Text { max: None },
            vec![
                "",
                " ",
                "NULL",
                "\\N",
                "null",
                "a,b",
                "a\"b",
                "\"",
                "\"\"",
                "line\nbreak",
                "cr\rlf\r\n",
                "tab\t",
                "ä€😀",
                "e\u{301}",
                "\u{feff}mark",
                "nul\0byte",
                "'",
                "trailing ",
                "שלום",
                "\u{1}",
            ],
        ),
        (Text { max: Some(3) }, vec!["", "abc"]),
        (Char { length: 4 }, vec!["ab  ", "    "]),
        (Bytes, vec!["\\x", "\\x00", "\\x00ff10"]),
        (
            Uuid,
            vec![
                "00000000-0000-0000-0000-000000000000",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
        ),
        (
            Json,
            vec!["{\"b\":1, \"a\":1.0,\"a\":2}", "null", "1e400", "\"\\u0000\""],
        ),
        (Jsonb, vec!["{}", "[1, 2, {\"x\": null}]"]),
        (Native, vec!["{1,NULL,\"a b\"}", "10.0.0.0/8", ""]),
    ]
}

/// A table with a column per type, twice: in its own Arrow type and as text.
fn wide() -> (TableSchema, RecordBatch) {
    let edges = edges();
    let mut columns = vec![Column::new("id", ColumnType::Int32).not_null()];
    for carrier in [Carrier::Arrow, Carrier::Text] {
        for (i, (ty, _)) in edges.iter().enumerate() {
            let mut column =
                Column::new(format!("{carrier:?} \"{i}\", {ty}"), ty.clone()).with_source_type(format!("own {ty}"));
            column.carrier = carrier;
            columns.push(column);
        }
    }
    let schema = TableSchema {
        columns,
        key: vec!["id".into()],
    };
    let height = edges.iter().map(|(_, v)| v.len()).max().unwrap() + 1;
    let ids: Vec<String> = (0..height).map(|i| i.to_string()).collect();
    let rows: Vec<Vec<Option<&str>>> = (0..height)
        .map(|r| {
            let cells = edges.iter().map(|(_, values)| values.get(r).copied());
            let twice = cells.clone().chain(cells);
            std::iter::once(Some(ids[r].as_str())).chain(twice).collect()
        })
        .collect();
    let rows = batch(&schema, &rows);
    (schema, rows)
}

fn places(dir: &Path) -> Vec<Objects> {
    let bar = CsvOptions {
        delimiter: '|',
        quote: '\'',
        header: false,
        null: Some("\\N".into()),
        infer: true,
    };
    vec![
        open(&dir.join("p"), parquet()),
        open(&dir.join("one/t.parquet"), parquet()),
        open(&dir.join("c"), csv_format()),
        open(&dir.join("one/t.csv"), csv_format()),
        open(&dir.join("bar"), Format::Csv(bar)),
    ]
}

#[tokio::test]
async fn every_type_and_edge_value_comes_back() {
    let (schema, rows) = wide();
    let dir = scratch();
    for files in places(dir.path()) {
        let to = files.destination();
        for column in &schema.columns {
            let stored = to.store_as("postgresql", column);
            assert!(
                matches!(stored.fidelity, Fidelity::Exact | Fidelity::Widened(_)),
                "{column:?}"
            );
        }
        load(&*to, plan("p", "t", &schema, 1, Publish::Create), &[vec![rows.clone()]])
            .await
            .unwrap();
        let from = files.source();
        assert_eq!(from.describe(&TableId::bare("t")).await.unwrap(), schema);
        let read = read_table(&*from, "t").await.unwrap();
        for (i, column) in schema.columns.iter().enumerate() {
            let (want, got) = (rows.column(i), read.column(i));
            assert_eq!(want.data_type(), got.data_type(), "{} {}", from.engine(), column.name);
            for row in 0..rows.num_rows() {
                let (want, got) = (text::cell(want, row).unwrap(), text::cell(got, row).unwrap());
                assert_eq!(want, got, "{} {}", from.engine(), column.name);
            }
        }
        // Any column may be asked for as text, and typed again.
        let mut swapped = ReadSpec::all(TableId::bare("t"), &schema.columns);
        for read in &mut swapped.columns {
            read.column.carrier = match read.column.carrier {
                Carrier::Arrow => Carrier::Text,
                Carrier::Text => Carrier::Arrow,
            };
        }
        let other = read_columns(&*from, &swapped, &ReadContext::default()).await.unwrap();
        assert_eq!(texts(&other), texts(&rows), "{}", from.engine());
    }
}

/// The file itself, without our metadata: what other readers see.
#[tokio::test]
async fn parquet_has_the_logical_types_that_others_read() {
    use ::parquet::basic::{LogicalType, Repetition};
    let (schema, rows) = wide();
    let dir = scratch();
    let path = dir.path().join("t.parquet");
    let to = open(&path, parquet()).destination();
    load(&*to, plan("p", "t", &schema, 1, Publish::Create), &[vec![rows]])
        .await
        .unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let reader = ::parquet::file::metadata::ParquetMetaDataReader::new()
        .parse_and_finish(&file)
        .unwrap();
    let fields = reader
        .file_metadata()
        .schema_descr()
        .root_schema()
        .get_fields()
        .to_vec();
    assert_eq!(fields[0].get_basic_info().repetition(), Repetition::REQUIRED);
    let logical = |ty: ColumnType| {
        let i = schema
            .columns
            .iter()
            .position(|c| c.ty == ty && c.name.starts_with("Arrow"))
            .unwrap();
        fields[i].get_basic_info().logical_type_ref().cloned()
    };
    assert_eq!(logical(ColumnType::Uuid), Some(LogicalType::Uuid));
    assert_eq!(logical(ColumnType::Json), Some(LogicalType::Json));
    assert_eq!(logical(ColumnType::Date), Some(LogicalType::Date));
    assert_eq!(logical(ColumnType::Numeric), Some(LogicalType::String));
    assert!(matches!(
        logical(ColumnType::Decimal {
            precision: 76,
            scale: 3
        }),
        Some(LogicalType::Decimal(_))
    ));
    assert!(matches!(logical(ColumnType::Timestamp), Some(LogicalType::Timestamp(t)) if !t.is_adjusted_to_u_t_c));
    assert!(matches!(logical(ColumnType::TimestampTz), Some(LogicalType::Timestamp(t)) if t.is_adjusted_to_u_t_c));
}

#[tokio::test]
async fn infinity_is_refused_by_parquet_unless_it_is_text() {
    let dir = scratch();
    for (i, (ty, value)) in [
        (ColumnType::Date, "infinity"),
        (ColumnType::Timestamp, "-infinity"),
        (ColumnType::TimestampTz, "infinity"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut schema = TableSchema {
            columns: vec![Column::new("when", ty)],
            key: Vec::new(),
        };
        let rows = batch(&schema, &[vec![Some(value)], vec![None]]);
        let to = open(dir.path(), parquet()).destination();
        let p = to.prepare(plan("p", "t", &schema, 1, Publish::Create)).await.unwrap();
        let mut sink = sink_for(&*to, &p, 0).await;
        sink.write(rows_event(&p, &rows)).await.unwrap();
        let e = sink.commit(&[advance(&part(0), None, "1", true)]).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED);
        assert!(
            e.to_string().contains("as_text: true") && e.to_string().contains("when"),
            "{e}"
        );
        let csv = open(dir.path(), csv_format());
        let name = format!("c{i}");
        load(
            &*csv.destination(),
            plan("p", &name, &schema, 1, Publish::Create),
            &[vec![rows]],
        )
        .await
        .unwrap();
        assert_eq!(
            texts(&read_table(&*csv.source(), &name).await.unwrap())[1][0].as_deref(),
            Some(value)
        );
        schema.columns[0].carrier = Carrier::Text;
        let rows = batch(&schema, &[vec![Some(value)]]);
        let name = format!("t{i}");
        load(&*to, plan("p", &name, &schema, 1, Publish::Create), &[vec![rows]])
            .await
            .unwrap();
        let back = read_table(&*open(dir.path(), parquet()).source(), &name).await.unwrap();
        assert_eq!(texts(&back)[0][0].as_deref(), Some(value));
    }
}

fn arbitrary_column() -> impl Strategy<Value = (ColumnType, BoxedStrategy<String>)> {
    use ColumnType::*;
    let of = |ty: ColumnType, s: BoxedStrategy<String>| Just((ty, s));
    prop_oneof![
        of(Int64, any::<i64>().prop_map(|v| v.to_string()).boxed()),
        of(Bool, any::<bool>().prop_map(|v| v.to_string()).boxed()),
        of(
            Text { max: None },
            "[\"',;|\\\\\\r\\n a-cä€\\x00N\u{feff}]{0,6}".boxed()
        ),
        of(Text { max: None }, any::<String>().boxed()),
        of(
            Bytes,
            proptest::collection::vec(any::<u8>(), 0..9)
                .prop_map(|b| hex(&b))
                .boxed()
        ),
        of(
            Decimal {
                precision: 20,
                scale: 4
            },
            any::<i64>()
                .prop_map(|v| format!("{}.{:04}", v / 10_000, (v % 10_000).abs()))
                .boxed()
        ),
        of(
            Timestamp,
            (0i64..4_000_000_000_000_000)
                .prop_map(|v| {
                    let mut s = String::new();
                    text::write_timestamp(&mut s, v - 2_000_000_000_000_000, false);
                    s
                })
                .boxed()
        ),
        of(
            Float64,
            any::<f64>()
                .prop_map(|v| {
                    let mut s = String::new();
                    text::write_float(&mut s, v, v);
                    s
                })
                .boxed()
        ),
    ]
}

fn hex(bytes: &[u8]) -> String {
    let mut s = String::new();
    text::write_bytes(&mut s, bytes);
    s
}

type Cells = Vec<Vec<Option<String>>>;

fn arbitrary_table() -> impl Strategy<Value = (Vec<ColumnType>, Cells)> {
    proptest::collection::vec(arbitrary_column(), 1..5).prop_flat_map(|columns| {
        let types: Vec<ColumnType> = columns.iter().map(|c| c.0.clone()).collect();
        let row: Vec<_> = columns
            .into_iter()
            .map(|c| proptest::option::weighted(0.8, c.1))
            .collect();
        (Just(types), proptest::collection::vec(row, 0..30))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_tables_come_back_equal((types, cells) in arbitrary_table(), tiny in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let schema = TableSchema {
            columns: types.iter().enumerate().map(|(i, t)| Column::new(format!("c{i}"), t.clone())).collect(),
            key: Vec::new(),
        };
        let rows: Vec<Vec<Option<&str>>> = cells.iter().map(|r| r.iter().map(Option::as_deref).collect()).collect();
        let rows = batch(&schema, &rows);
        let dir = scratch();
        for files in places(dir.path()) {
            let read = runtime.block_on(async {
                let half = rows.num_rows() / 2;
                let batches = vec![rows.slice(0, half), rows.slice(half, rows.num_rows() - half)];
                load(&*files.destination(), plan("p", "t", &schema, 1, Publish::Create), &[batches]).await.unwrap();
                let context = ReadContext { batch_bytes: if tiny { 1 } else { 1 << 20 }, ..ReadContext::default() };
                let read = ReadSpec::all(TableId::bare("t"), &schema.columns);
                read_columns(&*files.source(), &read, &context).await.unwrap()
            });
            prop_assert_eq!(texts(&read), texts(&rows));
        }
    }
}
