//! Parquet files that others wrote.

use super::*;
use ::parquet::basic::Compression;
use ::parquet::column::writer::ColumnWriter;
use ::parquet::data_type::{ByteArray, FixedLenByteArray, Int96};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;
use synctool_core::error::code;
use synctool_core::schema::Carrier;

/// The values of one column.
enum Values {
    Bool(Vec<bool>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    I96(Vec<Int96>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bytes(Vec<&'static [u8]>),
    Fixed(Vec<Vec<u8>>),
}

/// Writes a file from a Parquet schema; every second row is NULL if the column is optional.
fn write(path: &Path, columns: &[(&str, Values)]) {
    write_levels(path, columns, &[]);
}

/// As [`write`], with the definition and repetition levels of nested columns given by index.
fn write_levels(path: &Path, columns: &[(&str, Values)], levels: &[(usize, Vec<i16>, Vec<i16>)]) {
    let message: Vec<&str> = columns.iter().map(|c| c.0).filter(|c| !c.is_empty()).collect();
    let schema = parse_message_type(&format!("message foreign {{ {} }}", message.join(" "))).unwrap();
    let props = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, Arc::new(schema), Arc::new(props)).unwrap();
    let mut group = writer.next_row_group().unwrap();
    let mut at = 0;
    while let Some(mut column) = group.next_column().unwrap() {
        let (text, values) = &columns[at];
        let given = levels.iter().find(|l| l.0 == at);
        let optional: Option<Vec<i16>> = match given {
            Some((_, def, _)) => Some(def.clone()),
            None if text.starts_with("optional") => Some([1, 0].repeat(len(values))),
            None => None,
        };
        let (def, rep) = (optional.as_deref(), given.map(|(_, _, rep)| rep.as_slice()));
        let bytes = |b: &[u8]| ByteArray::from(b.to_vec());
        let fixed = |b: &Vec<u8>| FixedLenByteArray::from(ByteArray::from(b.clone()));
        match (column.untyped(), values) {
            (ColumnWriter::BoolColumnWriter(w), Values::Bool(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::Int32ColumnWriter(w), Values::I32(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::Int64ColumnWriter(w), Values::I64(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::Int96ColumnWriter(w), Values::I96(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::FloatColumnWriter(w), Values::F32(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::DoubleColumnWriter(w), Values::F64(v)) => w.write_batch(v, def, rep).unwrap(),
            (ColumnWriter::ByteArrayColumnWriter(w), Values::Bytes(v)) => {
                let v: Vec<ByteArray> = v.iter().map(|b| bytes(b)).collect();
                w.write_batch(&v, def, rep).unwrap()
            }
            (ColumnWriter::FixedLenByteArrayColumnWriter(w), Values::Fixed(v)) => {
                let v: Vec<FixedLenByteArray> = v.iter().map(fixed).collect();
                w.write_batch(&v, def, rep).unwrap()
            }
            _ => panic!("{text}: values of another type"),
        };
        column.close().unwrap();
        at += 1;
    }
    group.close().unwrap();
    writer.close().unwrap();
}

fn len(values: &Values) -> usize {
    match values {
        Values::Bool(v) => v.len(),
        Values::I32(v) => v.len(),
        Values::I64(v) => v.len(),
        Values::I96(v) => v.len(),
        Values::F32(v) => v.len(),
        Values::F64(v) => v.len(),
        Values::Bytes(v) => v.len(),
        Values::Fixed(v) => v.len(),
    }
}

/// A 96-bit timestamp: nanoseconds of the day and Julian day.
fn int96(days_since_1970: i32, nanos: u64) -> Int96 {
    let mut v = Int96::new();
    v.set_data(nanos as u32, (nanos >> 32) as u32, (days_since_1970 + 2_440_588) as u32);
    v
}

#[tokio::test]
async fn every_flat_type_is_read_exactly() {
    use Values::*;
    let day = 86_400_000_000_000u64;
    // Column, values, the type it becomes, the texts that come out.
    type Case = (&'static str, Values, &'static str, Vec<&'static str>);
    let cases: Vec<Case> = vec![
        (
            "required boolean b;",
            Bool(vec![true, false]),
            "boolean",
            vec!["true", "false"],
        ),
        (
            "required int32 i8 (INTEGER(8,true));",
            I32(vec![-128, 127]),
            "int8bit",
            vec!["-128", "127"],
        ),
        (
            "required int32 u16 (UINT_16);",
            I32(vec![0, 65535]),
            "uint16bit",
            vec!["0", "65535"],
        ),
        (
            "required int32 i32;",
            I32(vec![i32::MIN, i32::MAX]),
            "integer",
            vec!["-2147483648", "2147483647"],
        ),
        (
            "required int32 u32 (INTEGER(32,false));",
            I32(vec![-1, 0]),
            "uint32bit",
            vec!["4294967295", "0"],
        ),
        (
            "required int64 u64 (INTEGER(64,false));",
            I64(vec![-1, 1]),
            "uint64bit",
            vec!["18446744073709551615", "1"],
        ),
        (
            "required float f;",
            F32(vec![0.1, f32::NAN]),
            "float",
            vec!["0.1", "NaN"],
        ),
        (
            "required double d;",
            F64(vec![-0.0, 5e-324]),
            "double",
            vec!["-0", "5e-324"],
        ),
        (
            "required fixed_len_byte_array(2) h (FLOAT16);",
            Fixed(vec![vec![0, 0x3c], vec![0, 0xc0]]),
            "float",
            vec!["1", "-2"],
        ),
        (
            "required int32 dec32 (DECIMAL(9,2));",
            I32(vec![-1, 123]),
            "decimal(9,2)",
            vec!["-0.01", "1.23"],
        ),
        (
            "required int64 dec64 (DECIMAL(18,0));",
            I64(vec![7, -7]),
            "decimal(18,0)",
            vec!["7", "-7"],
        ),
        (
            "required binary decb (DECIMAL(5,1));",
            Bytes(vec![&[0xff], &[0x01, 0x00]]),
            "decimal(5,1)",
            vec!["-0.1", "25.6"],
        ),
        (
            "required fixed_len_byte_array(20) dec20 (DECIMAL(40,2));",
            Fixed(vec![vec![0; 20], vec![0xff; 20]]),
            "decimal(40,2)",
            vec!["0.00", "-0.01"],
        ),
        (
            // Wider than it needs to be, as some writers make it.
            "required fixed_len_byte_array(20) dec10 (DECIMAL(10,2));",
            Fixed(vec![vec![0; 20], vec![0xff; 20]]),
            "decimal(10,2)",
            vec!["0.00", "-0.01"],
        ),
        (
            "required int32 day (DATE);",
            I32(vec![0, -719_162]),
            "date",
            vec!["1970-01-01", "0001-01-01"],
        ),
        (
            "required int32 tms (TIME_MILLIS);",
            I32(vec![1, 86_399_999]),
            "time",
            vec!["00:00:00.001", "23:59:59.999"],
        ),
        (
            "required int64 tus (TIME(MICROS,false));",
            I64(vec![1, 86_400_000_000]),
            "time",
            vec!["00:00:00.000001", "24:00:00"],
        ),
        (
            "required int64 tns (TIME(NANOS,true));",
            I64(vec![1000, 0]),
            "time",
            vec!["00:00:00.000001", "00:00:00"],
        ),
        (
            "required int64 ms (TIMESTAMP_MILLIS);",
            I64(vec![-1, 253_402_300_799_999]),
            "timestamptz",
            vec!["1969-12-31 23:59:59.999+00", "9999-12-31 23:59:59.999+00"],
        ),
        (
            "required int64 us (TIMESTAMP(MICROS,false));",
            I64(vec![1, i64::MAX]),
            "timestamp",
            vec!["1970-01-01 00:00:00.000001", "infinity"],
        ),
        (
            "required int64 ns (TIMESTAMP(NANOS,true));",
            I64(vec![-1000, 1_000_000_000]),
            "timestamptz",
            vec!["1969-12-31 23:59:59.999999+00", "1970-01-01 00:00:01+00"],
        ),
        (
            "required int96 old;",
            I96(vec![int96(2_932_896, day - 1000), int96(-719_162, 0)]),
            "timestamp",
            vec!["9999-12-31 23:59:59.999999", "0001-01-01 00:00:00"],
        ),
        (
            "required binary s (UTF8);",
            Bytes(vec!["ä€😀".as_bytes(), b""]),
            "text",
            vec!["ä€😀", ""],
        ),
        (
            "required binary e (ENUM);",
            Bytes(vec![b"red", b"green"]),
            "text",
            vec!["red", "green"],
        ),
        (
            "required binary j (JSON);",
            Bytes(vec![b"{\"a\": 1.0}", b"null"]),
            "json",
            vec!["{\"a\": 1.0}", "null"],
        ),
        (
            "required binary raw;",
            Bytes(vec![&[0, 0xff], b""]),
            "bytes",
            vec!["\\x00ff", "\\x"],
        ),
        (
            "required binary bson (BSON);",
            Bytes(vec![b"\x05", b""]),
            "bytes",
            vec!["\\x05", "\\x"],
        ),
        (
            "required fixed_len_byte_array(3) fix;",
            Fixed(vec![vec![1, 2, 3], vec![0; 3]]),
            "bytes",
            vec!["\\x010203", "\\x000000"],
        ),
        (
            "required fixed_len_byte_array(16) fix16;",
            Fixed(vec![vec![1; 16], vec![0; 16]]),
            "bytes",
            vec![
                "\\x01010101010101010101010101010101",
                "\\x00000000000000000000000000000000",
            ],
        ),
        (
            "required fixed_len_byte_array(16) id (UUID);",
            Fixed(vec![vec![1; 16], vec![0xff; 16]]),
            "uuid",
            vec![
                "01010101-0101-0101-0101-010101010101",
                "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ],
        ),
    ];
    let dir = scratch();
    for (text, values, ty, want) in cases {
        for form in [text.to_string(), text.replace("required", "optional")] {
            let path = dir.path().join("t.parquet");
            write(
                &path,
                &[(
                    &form,
                    match &values {
                        Bool(v) => Bool(v.clone()),
                        I32(v) => I32(v.clone()),
                        I64(v) => I64(v.clone()),
                        I96(v) => I96(v.clone()),
                        F32(v) => F32(v.clone()),
                        F64(v) => F64(v.clone()),
                        Bytes(v) => Bytes(v.clone()),
                        Fixed(v) => Fixed(v.clone()),
                    },
                )],
            );
            let from = open(&path, parquet()).source();
            let schema = from.describe(&TableId::bare("t")).await.unwrap();
            assert_eq!(schema.columns[0].ty.to_string(), ty, "{form}");
            let optional = form.starts_with("optional");
            assert_eq!(schema.columns[0].nullable, optional, "{form}");
            let want: Vec<Option<&str>> = want
                .iter()
                .flat_map(|w| if optional { vec![Some(*w), None] } else { vec![Some(*w)] })
                .collect();
            for carrier in [Carrier::Arrow, Carrier::Text] {
                let mut read = ReadSpec::all(TableId::bare("t"), &schema.columns);
                read.columns[0].column.carrier = carrier;
                let rows = read_columns(&*from, &read, &ReadContext::default()).await.unwrap();
                assert_eq!(*rows.column(0).data_type(), read.columns[0].column.arrow_type());
                let got: Vec<Option<String>> = (0..rows.num_rows())
                    .map(|r| text::cell(rows.column(0), r).unwrap())
                    .collect();
                assert_eq!(
                    got.iter().map(Option::as_deref).collect::<Vec<_>>(),
                    want,
                    "{form} {carrier:?}"
                );
            }
        }
    }
}

#[tokio::test]
async fn finer_than_microseconds_is_refused_or_carried_as_text() {
    let dir = scratch();
    let path = dir.path().join("t.parquet");
    write(
        &path,
        &[
            ("required int64 ns (TIMESTAMP(NANOS,false));", Values::I64(vec![-1])),
            (
                "required int64 nsz (TIMESTAMP(NANOS,true));",
                Values::I64(vec![1_000_000_001]),
            ),
            (
                "required int64 t (TIME(NANOS,false));",
                Values::I64(vec![10_000_000_001]),
            ),
            ("required int96 far;", Values::I96(vec![int96(2_932_896, 1)])),
        ],
    );
    let from = open(&path, parquet()).source();
    let columns = from.describe(&TableId::bare("t")).await.unwrap().columns;
    for column in &columns {
        let read = ReadSpec::all(TableId::bare("t"), std::slice::from_ref(column));
        let e = read_columns(&*from, &read, &ReadContext::default()).await.unwrap_err();
        assert_eq!(e.code(), code::VALUE_UNSUPPORTED, "{e}");
        assert!(
            e.to_string().contains("as_text: true") && e.to_string().contains(&column.name),
            "{e}"
        );
    }
    let mut read = ReadSpec::all(TableId::bare("t"), &columns[..3]);
    read.columns.iter_mut().for_each(|c| c.column.carrier = Carrier::Text);
    let rows = read_columns(&*from, &read, &ReadContext::default()).await.unwrap();
    let want = [
        "1969-12-31 23:59:59.999999999",
        "1970-01-01 00:00:01.000000001+00",
        "00:00:10.000000001",
    ];
    assert_eq!(texts(&rows)[0], want.map(|s| Some(s.to_string())));
}

#[tokio::test]
async fn nested_columns_become_json_and_intervals_are_refused_by_name() {
    let dir = scratch();
    let path = dir.path().join("t.parquet");
    // Rows: [1, null, 3]; [] ; null.
    let list = "optional group l (LIST) { repeated group list { optional int32 element; } }";
    let point =
        "required group s { required double x; optional binary \"the name\" (UTF8); }".replace("\"the name\"", "name");
    let map = "optional group m (MAP) { repeated group key_value { required binary key (UTF8); optional int64 value (TIMESTAMP(NANOS,false)); } }";
    write_levels(
        &path,
        &[
            (list, Values::I32(vec![1, 3])),
            (&point, Values::F64(vec![1.5, f64::NAN, 0.0])),
            ("", Values::Bytes(vec![b"a\"b"])),
            (map, Values::Bytes(vec![b"k"])),
            ("", Values::I64(vec![1])),
            (
                "required fixed_len_byte_array(12) i (INTERVAL);",
                Values::Fixed(vec![vec![1; 12]; 3]),
            ),
        ],
        &[
            (0, vec![3, 2, 3, 1, 0], vec![0, 1, 1, 0, 0]),
            (2, vec![1, 0, 0], vec![0, 0, 0]),
            (3, vec![2, 1, 0], vec![0, 0, 0]),
            (4, vec![3, 1, 0], vec![0, 0, 0]),
        ],
    );
    let from = open(&path, parquet()).source();
    let columns = from.describe(&TableId::bare("t")).await.unwrap().columns;
    let types: Vec<&ColumnType> = columns.iter().map(|c| &c.ty).collect();
    use ColumnType::{Interval, Native};
    assert_eq!(types, [&Native, &Native, &Native, &Interval]);
    let read = ReadSpec::all(TableId::bare("t"), &columns[..3]);
    let rows = read_columns(&*from, &read, &ReadContext::default()).await.unwrap();
    let column = |i: usize| {
        (0..3)
            .map(|r| text::cell(rows.column(i), r).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(column(0), [Some("[1,null,3]".into()), Some("[]".into()), None]);
    let points = [
        "{\"x\":1.5,\"name\":\"a\\\"b\"}",
        "{\"x\":\"NaN\",\"name\":null}",
        "{\"x\":0,\"name\":null}",
    ];
    assert_eq!(column(1), points.map(|s| Some(s.to_string())));
    assert_eq!(
        column(2),
        [
            Some("[[\"k\",\"1970-01-01 00:00:00.000000001\"]]".into()),
            Some("[]".into()),
            None
        ]
    );
    let read = ReadSpec::all(TableId::bare("t"), &columns);
    let e = read_columns(&*from, &read, &ReadContext::default()).await.unwrap_err();
    assert!(
        e.code() == code::TYPE_UNSUPPORTED && e.to_string().contains("column i"),
        "{e}"
    );
}

#[tokio::test]
async fn a_folder_of_somebody_elses_files_is_a_table() {
    let dir = scratch();
    let items = dir.path().join("items");
    std::fs::create_dir(&items).unwrap();
    write(
        &items.join("b.parquet"),
        &[
            ("required binary name (UTF8);", Values::Bytes(vec![b"z"])),
            ("required int64 id;", Values::I64(vec![3])),
        ],
    );
    write(
        &items.join("a.parquet"),
        &[
            ("required int64 id;", Values::I64(vec![1, 2])),
            ("optional binary name (UTF8);", Values::Bytes(vec![b"x"])),
        ],
    );
    for ignored in ["_SUCCESS", ".crc", "notes.txt"] {
        std::fs::write(items.join(ignored), "x").unwrap();
    }
    let files = open(dir.path(), parquet());
    let (from, to) = (files.source(), files.destination());
    let rows = read_table(&*from, "items").await.unwrap();
    let want = [["1", "x"], ["2", ""], ["3", "z"]];
    let want: Vec<Vec<Option<String>>> = want
        .iter()
        .map(|r| r.iter().map(|s| (!s.is_empty()).then(|| s.to_string())).collect())
        .collect();
    assert_eq!(texts(&rows), want, "columns are found by name, not by place");
    // What others wrote is theirs: it may be added to, or replaced on demand.
    let table = TableId::bare("items");
    assert!(!to.made_here(&table).await.unwrap());
    let obstacles = to.swap_obstacles(&table, &small_schema()).await.unwrap();
    assert!(obstacles.iter().any(|o| o.contains("notes.txt")), "{obstacles:?}");
    load(
        &*to,
        plan("p", "items", &small_schema(), 1, Publish::Append),
        &[vec![small_rows(10, 1)]],
    )
    .await
    .unwrap();
    assert_eq!(ids(&*from, "items").await, [1, 2, 3, 10]);
    load(
        &*to,
        plan("q", "items", &small_schema(), 1, Publish::Swap),
        &[vec![small_rows(20, 4)]],
    )
    .await
    .unwrap();
    assert_eq!(ids(&*from, "items").await, [20, 21, 22, 23]);
    assert!(!items.join("a.parquet").exists() && items.join("notes.txt").exists());
    // A file whose column does not fit the table's type, or is not there, is named.
    write(
        &items.join("c.parquet"),
        &[("required int64 other;", Values::I64(vec![3]))],
    );
    for name in std::fs::read_dir(&items).unwrap() {
        let name = name.unwrap().path();
        if name.to_string_lossy().contains("_manifest") {
            std::fs::remove_file(name).unwrap();
        }
    }
    let e = read_columns(
        &*from,
        &ReadSpec::all(table, &small_schema().columns),
        &ReadContext::default(),
    )
    .await
    .unwrap_err();
    assert!(
        e.code() == code::COLUMN_MISSING && e.to_string().contains("c.parquet"),
        "{e}"
    );
}

#[tokio::test]
async fn broken_files_are_named() {
    let dir = scratch();
    let from = open(dir.path(), parquet()).source();
    std::fs::write(dir.path().join("text.parquet"), "no Parquet at all").unwrap();
    write(
        &dir.path().join("cut.parquet"),
        &[("required int64 id;", Values::I64((0..1000).collect()))],
    );
    let mut bytes = std::fs::read(dir.path().join("cut.parquet")).unwrap();
    bytes[20..200].fill(0xff);
    std::fs::write(dir.path().join("cut.parquet"), bytes).unwrap();
    for table in ["text", "cut"] {
        let e = read_table(&*from, table).await.unwrap_err();
        assert_eq!(e.code(), code::FILE_MALFORMED, "{e}");
        assert!(e.to_string().contains(&format!("{table}.parquet")), "{e}");
    }
}

/// Rows of other programs' files are changed where writing them again keeps every column as it is, and refused elsewhere.
#[tokio::test]
async fn files_that_would_change_by_being_written_again_are_refused() {
    let odd = [
        ("required int64 name (TIMESTAMP(NANOS,false));", Values::I64(vec![1, 2])),
        ("required int64 name (TIMESTAMP(MILLIS,true));", Values::I64(vec![1, 2])),
        ("required int96 name;", Values::I96(vec![int96(1, 2000); 2])),
        (
            "required fixed_len_byte_array(3) name;",
            Values::Fixed(vec![vec![1; 3]; 2]),
        ),
        ("required binary name (ENUM);", Values::Bytes(vec![b"a", b"b"])),
    ];
    for (i, (kind, values)) in odd.into_iter().enumerate() {
        let dir = scratch();
        let items = dir.path().join("items");
        std::fs::create_dir_all(&items).unwrap();
        write(
            &items.join("a.parquet"),
            &[("required int64 id;", Values::I64(vec![1, 2])), (kind, values)],
        );
        let files = open(dir.path(), parquet());
        let (from, to) = (files.source(), files.destination());
        let mut schema = from.describe(&TableId::bare("items")).await.unwrap();
        schema.key = vec!["id".into()];
        for publish in [Publish::Direct, Publish::Merge { delete_missing: true }] {
            let refused = to.prepare(plan("p", "items", &schema, 1, publish)).await;
            let e = refused.expect_err("it was not refused");
            assert!(
                e.code() == code::UNSUPPORTED && e.to_string().contains("column name"),
                "{i}: {e}"
            );
        }
        let left: Vec<_> = std::fs::read_dir(&items).unwrap().collect();
        assert_eq!(left.len(), 1, "{i}: something was written");
    }
    let dir = scratch();
    let items = dir.path().join("items");
    std::fs::create_dir_all(&items).unwrap();
    for (name, first) in [("a", 1), ("b", 10)] {
        write(
            &items.join(format!("{name}.parquet")),
            &[
                ("required int64 id;", Values::I64((first..first + 3).collect())),
                ("required binary name (UTF8);", Values::Bytes(vec![b"x", b"y", b"z"])),
            ],
        );
    }
    let files = open(dir.path(), parquet());
    let (from, to) = (files.source(), files.destination());
    let merge = plan(
        "p",
        "items",
        &small_schema(),
        1,
        Publish::Merge { delete_missing: false },
    );
    load(&*to, merge, &[vec![small_rows(11, 1)]]).await.unwrap();
    let rows = texts(&read_table(&*from, "items").await.unwrap());
    let names: Vec<&str> = rows.iter().map(|r| r[1].as_deref().unwrap()).collect();
    assert_eq!(
        names,
        ["x", "x", "name 11", "z", "y", "z"],
        "sorted by their ids as texts"
    );
    assert!(
        !to.made_here(&TableId::bare("items")).await.unwrap(),
        "it is still theirs"
    );
}
