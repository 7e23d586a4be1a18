//! CSV of all kinds, and resuming in any format.

use super::*;
use std::io::Write;
use synctool_core::error::code;

fn with(options: CsvOptions) -> Format {
    Format::Csv(options)
}

/// Reads a CSV file with these bytes.
async fn read(bytes: &[u8], options: CsvOptions) -> Result<Vec<Vec<Option<String>>>> {
    let dir = scratch();
    std::fs::write(dir.path().join("t.csv"), bytes).unwrap();
    let rows = read_table(&*open(dir.path(), with(options)).source(), "t").await?;
    Ok((0..rows.num_rows())
        .map(|row| rows.columns().iter().map(|c| text::cell(c, row).unwrap()).collect())
        .collect())
}

fn some(fields: &[&str]) -> Vec<Option<String>> {
    fields.iter().map(|f| Some(f.to_string())).collect()
}

#[tokio::test]
async fn null_and_the_empty_text_differ_by_their_quotes() {
    let rows = read(
        b"\xef\xbb\xbfa,\"b\n2\"\r\n,\"\"\r\n\"x\r\ny, \"\"z\"\"\",NULL",
        CsvOptions::default(),
    )
    .await;
    assert_eq!(
        rows.unwrap(),
        [vec![None, Some(String::new())], some(&["x\r\ny, \"z\"", "NULL"])]
    );
    let marked = CsvOptions {
        null: Some("NULL".into()),
        ..CsvOptions::default()
    };
    let rows = read(b"a,b\nNULL,\"NULL\"\n,x\n", marked).await.unwrap();
    assert_eq!(rows, [vec![None, Some("NULL".into())], some(&["", "x"])]);
    let no_header = CsvOptions {
        header: false,
        ..CsvOptions::default()
    };
    assert_eq!(
        read(b"1,2\n3,4", no_header).await.unwrap(),
        [some(&["1", "2"]), some(&["3", "4"])]
    );
}

#[tokio::test]
async fn broken_files_are_named_by_file_and_line_and_never_shown() {
    for (bytes, says) in [
        (&b"a,b\n1,2\nsecret,2,3\n"[..], "line 3 has 3 fields, not 2"),
        (b"a,b\n\"x\ny\",2\nsecret\n", "line 4 has 1 fields, not 2"),
        (b"a,b\nok,secret\xff\n", "line 2, column b: not UTF-8"),
        (b"a,b\n1,\"secret", "line 2 has a quote that is never closed"),
        (b"a,a\nsecret,2", "empty or there twice"),
        (b"", "no header line"),
    ] {
        let e = read(bytes, CsvOptions::default()).await.unwrap_err();
        assert_eq!(e.code(), code::FILE_MALFORMED);
        let text = e.to_string();
        assert!(
            text.contains(says) && text.contains("t.csv") && !text.contains("secret"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn guessed_types_lose_nothing() {
    let infer = CsvOptions {
        infer: true,
        ..CsvOptions::default()
    };
    let dir = scratch();
    let head = "id,zip,price,day,at,flag,mixed,none,neg\n";
    let rows =
        "1,007,1.50,2024-01-31,2024-01-31 10:00:00,true,1,,-0\n2,123,2,2024-02-01,2024-02-01 00:00:00.5,false,x,,1\n";
    std::fs::write(dir.path().join("t.csv"), format!("{head}{rows}")).unwrap();
    let from = open(dir.path(), with(infer)).source();
    let columns = from.describe(&TableId::bare("t")).await.unwrap().columns;
    let types: Vec<String> = columns.iter().map(|c| c.ty.to_string()).collect();
    let want = [
        "bigint",
        "text",
        "numeric",
        "date",
        "timestamp",
        "boolean",
        "text",
        "text",
        "text",
    ];
    assert_eq!(types, want);
    let read = read_table(&*from, "t").await.unwrap();
    let first: Vec<Option<String>> = read.columns().iter().map(|c| text::cell(c, 0).unwrap()).collect();
    let want = [
        "1",
        "007",
        "1.50",
        "2024-01-31",
        "2024-01-31 10:00:00",
        "true",
        "1",
        "",
        "-0",
    ];
    let want: Vec<Option<String>> = want.iter().map(|s| (!s.is_empty()).then(|| s.to_string())).collect();
    assert_eq!(first, want);
    // A value behind the sample that is not exactly of the guessed type stops the run.
    let long = format!(
        "id\n{}0010001\n",
        (1..=10_000).map(|i| format!("{i}\n")).collect::<String>()
    );
    std::fs::write(dir.path().join("long.csv"), long).unwrap();
    let e = read_table(&*from, "long").await.unwrap_err();
    assert!(
        e.code() == code::VALUE_MALFORMED && e.to_string().contains("line 10002"),
        "{e}"
    );
}

/// A column without a value is of no type yet: a text that has room in any other.
#[tokio::test]
async fn a_header_alone_says_no_types() {
    let infer = CsvOptions {
        infer: true,
        ..CsvOptions::default()
    };
    let dir = scratch();
    std::fs::write(dir.path().join("bare.csv"), "id,name\n").unwrap();
    std::fs::write(dir.path().join("partly.csv"), "id,name\n1,\n2,\n").unwrap();
    let from = open(dir.path(), with(infer)).source();
    for (table, untold) in [("bare", [true, true]), ("partly", [false, true])] {
        let columns = from.describe(&TableId::bare(table)).await.unwrap().columns;
        let found: Vec<bool> = columns.iter().map(Column::has_no_value).collect();
        assert_eq!(found, untold, "{table}");
        assert_eq!(columns[1].ty, ColumnType::Text { max: None }, "{table}");
    }
    assert_eq!(read_table(&*from, "bare").await.unwrap().num_rows(), 0);
    // Where nothing is guessed everything is a text, and is said to be.
    let texts = open(dir.path(), with(CsvOptions::default())).source();
    let columns = texts.describe(&TableId::bare("bare")).await.unwrap().columns;
    assert!(columns.iter().all(|c| !c.has_no_value()), "{columns:?}");
}

/// Tables in all forms that can be read, 1,000 rows each.
async fn tables(dir: &Path) -> Vec<(&'static str, Objects)> {
    let mut csv = "id,name\n".to_string();
    for i in 0..1000 {
        csv.push_str(&format!("{i},\"name\r\n {i}, \"\"{}\"\"\"\n", "ä".repeat(i % 7)));
    }
    for folder in ["plain", "gz", "zst"] {
        std::fs::create_dir(dir.join(folder)).unwrap();
    }
    std::fs::write(dir.join("plain/t.csv"), &csv).unwrap();
    // Two members, as `cat a.gz b.gz` makes them.
    let mut gz = std::fs::File::create(dir.join("gz/t.csv.gz")).unwrap();
    let (a, b) = csv.as_bytes().split_at(csv.len() / 2);
    for half in [a, b] {
        let mut member = flate2::write::GzEncoder::new(&mut gz, flate2::Compression::fast());
        member.write_all(half).unwrap();
        member.finish().unwrap();
    }
    std::fs::write(dir.join("zst/t.csv.zst"), zstd::encode_all(csv.as_bytes(), 1).unwrap()).unwrap();
    let parts = open(&dir.join("parts"), parquet());
    let batches: Vec<RecordBatch> = (0..10).map(|i| small_rows(i * 100, 100)).collect();
    let parts_plan = plan("p", "t", &small_schema(), 2, Publish::Create);
    load(
        &*parts.destination(),
        parts_plan,
        &[batches[..5].to_vec(), batches[5..].to_vec()],
    )
    .await
    .unwrap();
    let one = open(&dir.join("one/t.parquet"), parquet());
    load(
        &*one.destination(),
        plan("p", "t", &small_schema(), 1, Publish::Create),
        &[batches],
    )
    .await
    .unwrap();
    vec![
        ("plain", open(&dir.join("plain"), csv_format())),
        ("gz", open(&dir.join("gz"), csv_format())),
        ("zst", open(&dir.join("zst"), csv_format())),
        ("parts", parts),
        ("one", one),
    ]
}

#[tokio::test]
async fn a_reader_resumes_right_after_every_boundary() {
    let dir = scratch();
    for (name, files) in tables(dir.path()).await {
        let from = files.source();
        let table = TableId::bare("t");
        let schema = from.describe(&table).await.unwrap();
        let read = ReadSpec::all(table, &schema.columns);
        let context = ReadContext {
            batch_bytes: 700,
            ..ReadContext::default()
        };
        let all = read_slice(&*from, &read, &Slice::All, None, &context).await.unwrap();
        assert!(all.len() > 10, "{name}: only {} batches", all.len());
        assert_eq!(all.iter().map(|(b, _)| b.num_rows()).sum::<usize>(), 1000, "{name}");
        for i in (0..all.len()).step_by(all.len() / 9) {
            let rest = read_slice(&*from, &read, &Slice::All, Some(&all[i].1), &context)
                .await
                .unwrap();
            assert_eq!(rest.len(), all.len() - i - 1, "{name}: after {}", all[i].1);
            for (a, b) in rest.iter().zip(&all[i + 1..]) {
                assert_eq!(a, b, "{name}: after {}", all[i].1);
            }
        }
        let end = read_slice(&*from, &read, &Slice::All, Some(&all.last().unwrap().1), &context)
            .await
            .unwrap();
        assert!(end.is_empty(), "{name}");
    }
}

fn noise_schema() -> TableSchema {
    TableSchema {
        columns: vec![Column::new("noise", ColumnType::Bytes)],
        key: Vec::new(),
    }
}

/// Rows of 2 KB that do not shrink.
fn noise(count: u64) -> RecordBatch {
    let noise: Vec<String> = (0..count)
        .map(|i| {
            let bytes: Vec<u8> = (0..250)
                .flat_map(|j| xxhash_rust::xxh3::xxh3_64(&(i * 250 + j).to_le_bytes()).to_le_bytes())
                .collect();
            let mut s = String::new();
            text::write_bytes(&mut s, &bytes);
            s
        })
        .collect();
    let rows: Vec<Vec<Option<&str>>> = noise.iter().map(|s| vec![Some(s.as_str())]).collect();
    batch(&noise_schema(), &rows)
}

/// Files that are cut into several slices by [`small_slices`].
fn small_groups() -> Format {
    Format::Parquet(ParquetOptions {
        row_group_bytes: 64 << 10,
        ..ParquetOptions::default()
    })
}

fn small_slices() -> SliceRequest {
    SliceRequest {
        key: Vec::new(),
        step: None,
        min_slices: 4,
        max_slice_bytes: 100 << 10,
        single: false,
    }
}

#[tokio::test]
async fn slices_cover_everything_once() {
    let dir = scratch();
    let files = open(dir.path(), small_groups());
    let rows = noise(400);
    let schema = noise_schema();
    let batches: Vec<RecordBatch> = (0..40).map(|i| rows.slice(i * 10, 10)).collect();
    load(
        &*files.destination(),
        plan("p", "t", &schema, 1, Publish::Create),
        &[batches],
    )
    .await
    .unwrap();
    let read = ReadSpec::all(TableId::bare("t"), &schema.columns);
    let request = small_slices();
    let from = files.source();
    let slices = from.slices(&read, &request).await.unwrap();
    assert!(slices.len() > 5, "{slices:?}");
    let mut seen = Vec::new();
    for slice in &slices {
        let part = read_slice(&*from, &read, &slice.slice, None, &ReadContext::default())
            .await
            .unwrap();
        assert_eq!(part.iter().map(|(b, _)| b.num_rows() as u64).sum::<u64>(), slice.rows);
        seen.extend(part.iter().flat_map(|(b, _)| texts(b)));
    }
    seen.sort();
    assert_eq!(seen, texts(&rows));
    let one = from
        .slices(
            &read,
            &SliceRequest {
                single: true,
                ..request
            },
        )
        .await
        .unwrap();
    assert!(one.len() == 1 && one[0].slice == Slice::All);
}

#[tokio::test]
async fn a_file_that_changed_is_not_resumed() {
    let dir = scratch();
    let path = dir.path().join("t.csv");
    std::fs::write(&path, "a\n1\n2\n3\n").unwrap();
    let from = open(dir.path(), csv_format()).source();
    let read = ReadSpec::all(
        TableId::bare("t"),
        &from.describe(&TableId::bare("t")).await.unwrap().columns,
    );
    let context = ReadContext {
        batch_bytes: 1,
        ..ReadContext::default()
    };
    let all = read_slice(&*from, &read, &Slice::All, None, &context).await.unwrap();
    assert_eq!(all.len(), 3);
    std::fs::write(&path, "a\n1\n9\n3\n4\n").unwrap();
    let e = read_slice(&*from, &read, &Slice::All, Some(&all[0].1), &context)
        .await
        .unwrap_err();
    assert!(e.code() == code::FILE && e.to_string().contains("has changed"), "{e}");
    std::fs::remove_file(&path).unwrap();
    std::fs::write(dir.path().join("t.csv.gz"), "").unwrap();
    let e = read_slice(&*from, &read, &Slice::All, Some(&all[0].1), &context)
        .await
        .unwrap_err();
    assert!(e.to_string().contains("no longer there"), "{e}");
}

/// Partitions are of one state of a file, whoever replaces it between them.
#[tokio::test]
async fn a_file_that_was_replaced_is_not_read_by_halves() {
    let dir = scratch();
    let request = small_slices();
    let context = ReadContext::default();
    let (one, other) = (dir.path().join("one/t.parquet"), dir.path().join("other/t.parquet"));
    for (path, rows) in [(&one, 400), (&other, 300)] {
        let to = open(path, small_groups()).destination();
        let create = plan("p", "t", &noise_schema(), 1, Publish::Create);
        let rows = noise(rows);
        let batches: Vec<RecordBatch> = (0..rows.num_rows() / 10).map(|i| rows.slice(i * 10, 10)).collect();
        load(&*to, create, &[batches]).await.unwrap();
    }
    let from = open(&one, small_groups()).source();
    let table = TableId::bare("t");
    let read = ReadSpec::all(table.clone(), &from.describe(&table).await.unwrap().columns);
    let slices = from.slices(&read, &request).await.unwrap();
    let (first, last) = (&slices[0].slice, &slices[slices.len() - 1].slice);
    assert!(slices.len() > 1, "{slices:?}");
    read_slice(&*from, &read, last, None, &context).await.unwrap();
    read_slice(&*from, &read, first, None, &context).await.unwrap();
    std::fs::write(&one, std::fs::read(&other).unwrap()).unwrap();
    let e = read_slice(&*from, &read, last, None, &context).await.unwrap_err();
    assert!(
        e.code() == code::FILE && e.to_string().contains("is not the one"),
        "{e}"
    );
    assert!(e.next_step().is_some_and(|next| next.contains("start over")), "{e}");
    // A file that is read whole belongs to no other, and a plan of an earlier version does not say what it was.
    std::fs::create_dir_all(dir.path().join("csv/t")).unwrap();
    std::fs::write(dir.path().join("csv/t/a.csv"), "noise\n1\n").unwrap();
    let second = dir.path().join("csv/t/b.csv");
    std::fs::write(&second, "noise\n2\n").unwrap();
    let from = open(&dir.path().join("csv"), csv_format()).source();
    let read = ReadSpec::all(table.clone(), &from.describe(&table).await.unwrap().columns);
    let slices = from.slices(&read, &request).await.unwrap();
    assert_eq!(slices.len(), 2, "{slices:?}");
    std::fs::write(&second, "noise\n2\n1\n").unwrap();
    let rows = read_slice(&*from, &read, &slices[1].slice, None, &context)
        .await
        .unwrap();
    assert_eq!(rows.iter().map(|(batch, _)| batch.num_rows()).sum::<usize>(), 2);
    let old: Slice = serde_json::from_str(r#"{"file": {"path": "b.csv"}}"#).unwrap();
    assert!(
        !read_slice(&*from, &read, &old, None, &context)
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn a_giant_row_passes_a_small_budget_alone_and_is_refused_above_the_limit() {
    let dir = scratch();
    let giant = "x".repeat(5 << 20);
    let rows = batch(
        &small_schema(),
        &[
            vec![Some("1"), Some("small")],
            vec![Some("2"), Some(&giant)],
            vec![Some("3"), None],
        ],
    );
    for files in [
        open(&dir.path().join("c"), csv_format()),
        open(&dir.path().join("p"), parquet()),
    ] {
        load(
            &*files.destination(),
            plan("p", "t", &small_schema(), 1, Publish::Create),
            &[vec![rows.clone()]],
        )
        .await
        .unwrap();
        let from = files.source();
        let read = ReadSpec::all(TableId::bare("t"), &small_schema().columns);
        let context = ReadContext {
            budget: synctool_core::budget::Budget::new(1 << 20),
            batch_bytes: 64 << 10,
            ..ReadContext::default()
        };
        let back = read_columns(&*from, &read, &context).await.unwrap();
        assert_eq!(texts(&back), texts(&rows));
        assert_eq!(
            context.budget.free(),
            context.budget.total(),
            "all memory is given back"
        );
        let strict = ReadContext {
            max_row_bytes: 4 << 20,
            ..context
        };
        let e = read_columns(&*from, &read, &strict).await.unwrap_err();
        assert_eq!(e.code(), code::ROW_TOO_LARGE, "{}", from.engine());
    }
}

#[tokio::test]
async fn a_dropped_next_loses_nothing_and_a_cancelled_reader_stops() {
    let dir = scratch();
    for (name, files) in tables(dir.path()).await {
        let from = files.source();
        let columns = from.describe(&TableId::bare("t")).await.unwrap().columns;
        let read = ReadSpec::all(TableId::bare("t"), &columns);
        let context = ReadContext {
            batch_bytes: 2000,
            ..ReadContext::default()
        };
        let partition = partition_of(Slice::All);
        let mut reader = from.open(&read, &partition, None, &context).await.unwrap();
        let (mut rows, mut dropped) = (0, 0);
        loop {
            // Polled once and dropped, again and again.
            let once = futures::FutureExt::now_or_never(reader.next());
            let event = match once {
                Some(event) => event.unwrap(),
                None => {
                    dropped += 1;
                    reader.next().await.unwrap()
                }
            };
            let Some(event) = event else { break };
            rows += event.rows();
        }
        assert_eq!(rows, 1000, "{name}");
        assert!(dropped > 5, "{name}: no call was ever dropped");
        let mut stopped = from.open(&read, &partition, None, &context).await.unwrap();
        context.cancel.cancel();
        assert_eq!(stopped.next().await.unwrap_err().code(), code::INTERRUPTED);
    }
}
