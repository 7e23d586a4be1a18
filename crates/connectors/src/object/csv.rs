//! CSV files: rows in and out. Everything is its canonical text ([`synctool_core::text`]); types come from the schema
//! that stands beside what we wrote, from a sample if asked for, or are all text.

use super::CsvOptions;
use super::record::{FieldWriter, Record, Records, malformed};
use super::sink::PartWriter;
use super::source::{FileRows, Reading};
use super::store::io_error;
use super::table::DataFile;
use arrow_array::{RecordBatch, RecordBatchOptions};
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::schema::{Column, ColumnType, NO_VALUE, TableSchema};
use synctool_core::text::{self, ColumnBuilder};

const BUFFER: usize = 256 << 10;
const MAX_BATCH_ROWS: usize = 64 << 10;

/// How much of a file is looked at to guess its types.
const SAMPLE_ROWS: usize = 10_000;
const SAMPLE_BYTES: u64 = 8 << 20;

type Input = Box<dyn BufRead + Send>;

/// A file's bytes from an offset on, decompressed if it begins as gzip or Zstandard do.
fn input(path: &Path, offset: u64) -> Result<Input> {
    let open = || -> std::io::Result<Input> {
        let mut file = File::open(path)?;
        let mut magic = [0; 4];
        let mut head = Vec::new();
        (&file).take(4).read_to_end(&mut head)?;
        magic[..head.len()].copy_from_slice(&head);
        file.rewind()?;
        let mut input: Input = match magic {
            [0x1f, 0x8b, ..] => Box::new(BufReader::with_capacity(
                BUFFER,
                flate2::read::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, file)),
            )),
            [0x28, 0xb5, 0x2f, 0xfd] => Box::new(BufReader::with_capacity(
                BUFFER,
                zstd::stream::read::Decoder::new(file)?,
            )),
            _ => {
                file.seek(SeekFrom::Start(offset))?;
                return Ok(Box::new(BufReader::with_capacity(BUFFER, file)));
            }
        };
        std::io::copy(&mut (&mut input).take(offset), &mut std::io::sink())?;
        Ok(input)
    };
    open().map_err(|e| io_error("read", path, e))
}

fn in_file(path: &Path) -> impl Fn(Error) -> Error {
    let file = path.display().to_string();
    move |e| e.at("file", file.clone())
}

/// Records of a file from its first on, with the header read.
fn open_first(path: &Path, options: &CsvOptions, max: usize) -> Result<(Records<Input>, Option<Vec<String>>)> {
    let mut records = Records::new(input(path, 0)?, options.delimiter, options.quote, max, (0, 1));
    records.skip_mark()?;
    if !options.header {
        return Ok((records, None));
    }
    let mut record = Record::default();
    if !records.next(&mut record, None)? {
        return Err(malformed("it has no header line")
            .hint("write the column names into the first line, or set `header: false`"));
    }
    let mut names: Vec<String> = Vec::with_capacity(record.len());
    for i in 0..record.len() {
        let name = std::str::from_utf8(record.field(i).0).map_err(|_| malformed("line 1 is not UTF-8"))?;
        if name.is_empty() || names.iter().any(|n| n == name) {
            return Err(malformed(format!(
                "the name of column {} is empty or there twice",
                i + 1
            )));
        }
        names.push(name.to_string());
    }
    Ok((records, Some(names)))
}

/// The columns of a file that no schema is known for.
pub(super) fn columns(path: &Path, options: &CsvOptions) -> Result<Vec<Column>> {
    let at = in_file(path);
    let (mut records, header) = open_first(path, options, usize::MAX).map_err(&at)?;
    let mut record = Record::default();
    let mut guesses: Option<Vec<Guess>> = None;
    let began = records.place().0;
    for _ in 0..SAMPLE_ROWS {
        let fields = guesses.as_ref().map(Vec::len).or(header.as_ref().map(Vec::len));
        if !records.next(&mut record, fields).map_err(&at)? {
            break;
        }
        let guesses = guesses.get_or_insert_with(|| (0..record.len()).map(|_| Guess::default()).collect());
        for (i, guess) in guesses.iter_mut().enumerate().take(record.len()) {
            let (bytes, quoted) = record.field(i);
            if !is_null(options, bytes, quoted) {
                guess.see(bytes);
            }
        }
        if !options.infer || records.place().0 - began > SAMPLE_BYTES {
            break;
        }
    }
    let count = header.as_ref().map_or(guesses.as_ref().map_or(0, Vec::len), Vec::len);
    if count == 0 {
        return Err(at(malformed("it is empty, so its columns are not known")));
    }
    let names = header.unwrap_or_else(|| (1..=count).map(|i| format!("column_{i}")).collect());
    let guesses = guesses.unwrap_or_default();
    Ok(names
        .into_iter()
        .enumerate()
        .map(|(i, name)| match guesses.get(i) {
            Some(g) if options.infer && g.seen => Column::new(name, g.ty()),
            // Nobody knows what will be there: a header alone says no types.
            _ if options.infer => Column::new(name, ColumnType::Text { max: None }).with_source_type(NO_VALUE),
            _ => Column::new(name, ColumnType::Text { max: None }),
        })
        .collect())
}

fn is_null(options: &CsvOptions, bytes: &[u8], quoted: bool) -> bool {
    !quoted && bytes == options.null.as_deref().unwrap_or_default().as_bytes()
}

/// The types that all values of a column seen so far have exactly.
#[derive(Default)]
struct Guess {
    seen: bool,
    ruled_out: [bool; CANDIDATES.len()],
    scratch: String,
}

/// The types worth guessing, narrowest first.
const CANDIDATES: [ColumnType; 7] = [
    ColumnType::Bool,
    ColumnType::Int64,
    ColumnType::Numeric,
    ColumnType::Date,
    ColumnType::Timestamp,
    ColumnType::TimestampTz,
    ColumnType::Uuid,
];

impl Guess {
    fn see(&mut self, bytes: &[u8]) {
        self.seen = true;
        let value = std::str::from_utf8(bytes).ok();
        for (out, ty) in self.ruled_out.iter_mut().zip(&CANDIDATES) {
            *out = *out || !value.is_some_and(|v| is_canonical(ty, v, &mut self.scratch));
        }
    }

    fn ty(&self) -> ColumnType {
        let fits = self.ruled_out.iter().position(|out| !out).filter(|_| self.seen);
        fits.map_or(ColumnType::Text { max: None }, |i| CANDIDATES[i].clone())
    }
}

/// Whether a text is exactly what a value of the type prints: `007` is not what the integer 7 prints.
fn is_canonical(ty: &ColumnType, value: &str, scratch: &mut String) -> bool {
    scratch.clear();
    match ty {
        ColumnType::Bool => matches!(value, "true" | "false"),
        ColumnType::Int64 => value.parse::<i64>().is_ok() && is_number(value) && value != "-0",
        ColumnType::Numeric => is_number(value) && value != "-0",
        ColumnType::Date => text::parse_date(value).is_some_and(|v| {
            text::write_date(scratch, v);
            scratch == value
        }),
        ColumnType::Timestamp | ColumnType::TimestampTz => {
            let instant = *ty == ColumnType::TimestampTz;
            text::parse_timestamp(value, instant).is_some_and(|v| {
                text::write_timestamp(scratch, v, instant);
                scratch == value
            })
        }
        ColumnType::Uuid => {
            value.len() == 36
                && value.bytes().enumerate().all(|(i, b)| match i {
                    8 | 13 | 18 | 23 => b == b'-',
                    _ => b.is_ascii_digit() || (b'a'..=b'f').contains(&b),
                })
        }
        _ => true,
    }
}

fn is_number(value: &str) -> bool {
    let (whole, fraction) = value.split_once('.').map_or((value, None), |(w, f)| (w, Some(f)));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    digits(whole) && (whole == "0" || !whole.starts_with('0')) && fraction.is_none_or(digits)
}

/// The rows of a file.
pub(super) struct CsvRows {
    reading: Reading,
    options: CsvOptions,
    records: Records<Input>,
    record: Record,
    /// Fields per record; `None` until a file without header has shown its first.
    fields: Option<usize>,
    /// Per wanted column: its field.
    places: Vec<usize>,
    builders: Vec<ColumnBuilder>,
    scratch: String,
}

impl CsvRows {
    /// Opens a file at `place` (`offset:line`), or at its start. `known` is the schema that we wrote it by.
    pub(super) fn open(
        reading: Reading,
        options: &CsvOptions,
        known: Option<&TableSchema>,
        place: Option<&str>,
    ) -> Result<Self> {
        let path = reading.path.clone();
        let at = in_file(&path);
        let (first, header) = open_first(&path, options, reading.max_row_bytes).map_err(&at)?;
        let records = match place {
            None => first,
            Some(p) => {
                let from = p
                    .split_once(':')
                    .and_then(|(o, l)| Some((o.parse().ok()?, l.parse().ok()?)))
                    .ok_or_else(|| Error::bug(format!("position {p} is not one of a CSV file")))?;
                let input = input(&path, from.0)?;
                Records::new(input, options.delimiter, options.quote, reading.max_row_bytes, from)
            }
        };
        let names = match (header, known) {
            (Some(header), _) => Some(header),
            (None, Some(known)) => Some(known.columns.iter().map(|c| c.name.clone()).collect()),
            (None, None) => None,
        };
        let find = |source: &str| match &names {
            Some(names) => names.iter().position(|n| n == source),
            None => source.strip_prefix("column_")?.parse::<usize>().ok()?.checked_sub(1),
        };
        let mut places = Vec::new();
        for wanted in &reading.columns {
            places.push(find(&wanted.source).ok_or_else(|| {
                at(Error::no_column(
                    Among::Table,
                    &wanted.source,
                    format!("column {} is not in this file", wanted.source),
                )
                .hint("all files of a table must have its columns"))
            })?);
        }
        let mut options = options.clone();
        // What we wrote is typed by its schema; only guesses are to be held against every value.
        options.infer &= known.is_none();
        Ok(CsvRows {
            builders: reading.columns.iter().map(|c| ColumnBuilder::new(&c.column)).collect(),
            fields: names.map(|n| n.len()),
            record: Record::default(),
            scratch: String::new(),
            reading,
            options,
            records,
            places,
        })
    }

    fn append(&mut self, line: u64) -> Result<usize> {
        let fields = *self.fields.get_or_insert(self.record.len());
        if self.record.len() != fields {
            return Err(
                malformed(format!("line {line} has {} fields, not {fields}", self.record.len()))
                    .hint("look for a delimiter or quote in a value that is not quoted"),
            );
        }
        for ((place, wanted), builder) in self.places.iter().zip(&self.reading.columns).zip(&mut self.builders) {
            if *place >= fields {
                return Err(malformed(format!(
                    "line {line} has no field for column {}",
                    wanted.source
                )));
            }
            let (bytes, quoted) = self.record.field(*place);
            if is_null(&self.options, bytes, quoted) {
                builder.append_null();
                continue;
            }
            let value = std::str::from_utf8(bytes)
                .map_err(|_| malformed(format!("line {line}, column {}: not UTF-8", wanted.source)))?;
            if self.options.infer && !is_canonical(&wanted.column.ty, value, &mut self.scratch) {
                return Err(Error::new(
                    code::VALUE_MALFORMED,
                    format!(
                        "line {line}, column {}: the sample looked like {}, this value does not",
                        wanted.source, wanted.column.ty
                    ),
                )
                .hint(format!("set `as_text: true` for column {}", wanted.source)));
            }
            builder.append_text(value).map_err(|e| e.at("line", line.to_string()))?;
        }
        Ok(self.record.bytes() + 8 * fields)
    }

    fn read_batch(&mut self) -> Result<Option<RecordBatch>> {
        let (mut rows, mut bytes) = (0, 0);
        while rows < MAX_BATCH_ROWS && bytes < self.reading.batch_bytes {
            let line = self.records.place().1;
            if !self.records.next(&mut self.record, self.fields)? {
                break;
            }
            bytes += self.append(line)?;
            rows += 1;
        }
        if rows == 0 {
            return Ok(None);
        }
        let arrays = self.builders.iter_mut().map(ColumnBuilder::finish).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(self.reading.schema.clone(), arrays, &options)
            .map(Some)
            .map_err(|e| Error::bug(format!("a batch of a CSV file: {e}")))
    }
}

impl FileRows for CsvRows {
    fn estimate(&self) -> usize {
        self.reading.batch_bytes
    }

    fn place(&self) -> String {
        let (offset, line) = self.records.place();
        format!("{offset}:{line}")
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        self.read_batch().map_err(in_file(&self.reading.path))
    }
}

/// The number of records in a file, its header left out.
pub(super) fn count(path: &Path, options: &CsvOptions) -> Result<u64> {
    let at = in_file(path);
    let (mut records, header) = open_first(path, options, usize::MAX).map_err(&at)?;
    let mut record = Record::default();
    let mut rows = 0;
    let mut fields = header.map(|h| h.len());
    while records.next(&mut record, fields).map_err(&at)? {
        fields.get_or_insert(record.len());
        rows += 1;
    }
    Ok(rows)
}

/// Writes one part file.
pub(super) struct CsvPart {
    file: File,
    path: PathBuf,
    fields: FieldWriter,
    buffer: Vec<u8>,
    scratch: String,
    rows: u64,
    bytes: u64,
}

impl CsvPart {
    pub(super) fn create(path: &Path, table: &TableSchema, options: &CsvOptions) -> Result<Self> {
        let mut part = CsvPart {
            file: File::create(path).map_err(|e| io_error("write", path, e))?,
            path: path.to_path_buf(),
            fields: FieldWriter::new(options.delimiter, options.quote, options.null.as_deref()),
            buffer: Vec::with_capacity(BUFFER + (BUFFER >> 2)),
            scratch: String::new(),
            rows: 0,
            bytes: 0,
        };
        if options.header {
            for (i, column) in table.columns.iter().enumerate() {
                if i > 0 {
                    part.fields.delimit(&mut part.buffer);
                }
                part.fields.text(&mut part.buffer, &column.name);
            }
            part.buffer.push(b'\n');
        }
        Ok(part)
    }

    fn flush(&mut self) -> Result<()> {
        self.file
            .write_all(&self.buffer)
            .map_err(|e| io_error("write", &self.path, e))?;
        self.bytes += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }
}

impl PartWriter for CsvPart {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        for row in 0..batch.num_rows() {
            for (i, array) in batch.columns().iter().enumerate() {
                if i > 0 {
                    self.fields.delimit(&mut self.buffer);
                }
                if array.is_null(row) {
                    self.fields.null(&mut self.buffer);
                } else {
                    self.scratch.clear();
                    text::write_cell(&mut self.scratch, array, row)?;
                    self.fields.text(&mut self.buffer, &self.scratch);
                }
            }
            self.buffer.push(b'\n');
            if self.buffer.len() >= BUFFER {
                self.flush()?;
            }
        }
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(u64, u64)> {
        self.flush()?;
        self.file.sync_all().map_err(|e| io_error("write", &self.path, e))?;
        Ok((self.rows, self.bytes))
    }
}

/// Puts several files of ours into one, with one header.
pub(super) fn join(parts: &[(PathBuf, DataFile)], to: &Path, options: &CsvOptions) -> Result<()> {
    let mut out = File::create(to).map_err(|e| io_error("write", to, e))?;
    for (i, (path, _)) in parts.iter().enumerate() {
        let header = match i {
            0 => 0,
            _ => open_first(path, options, usize::MAX)?.0.place().0,
        };
        let mut part = File::open(path).map_err(|e| io_error("read", path, e))?;
        part.seek(SeekFrom::Start(header))
            .and_then(|_| std::io::copy(&mut part, &mut out))
            .map_err(|e| io_error("write", to, e))?;
    }
    out.sync_all().map_err(|e| io_error("write", to, e))
}
