//! Parquet files, read by row groups and written by row groups.

use super::convert::{refuse, to_wanted};
use super::source::{FileRows, Reading};
use super::store::io_error;
use super::table::DataFile;
use super::types::{self, FileColumn, META_KEY};
use super::{ParquetOptions, sink::PartWriter};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, TimestampMicrosecondType, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnCloseResult;
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::types::ColumnPath;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::schema::TableSchema;

/// No batch has more rows than this, however small they are.
const MAX_BATCH_ROWS: usize = 64 << 10;

/// How many values of a column tell what it is like.
const SAMPLE: usize = 8 << 10;

/// A column that needs a larger dictionary has mostly values of their own, and hashing them all is a fifth of the work.
const DICTIONARY_BYTES: usize = 128 << 10;

pub(super) fn parquet_error(path: &Path, e: ParquetError) -> Error {
    match e {
        ParquetError::External(cause) => match cause.downcast::<std::io::Error>() {
            Ok(e) => io_error("read or write", path, *e),
            Err(cause) => Error::new(code::FILE, format!("{}: {cause}", path.display())),
        },
        e => Error::new(
            code::FILE_MALFORMED,
            format!("{} is not a sound Parquet file: {e}", path.display()),
        )
        .hint("write the file again, or leave it out"),
    }
}

/// A file's footer.
pub(super) fn footer(path: &Path) -> Result<Arc<ParquetMetaData>> {
    let file = File::open(path).map_err(|e| io_error("read", path, e))?;
    ParquetMetaDataReader::new()
        .parse_and_finish(&file)
        .map(Arc::new)
        .map_err(|e| parquet_error(path, e))
}

/// The bytes of a row group once decoded, for these columns.
pub(super) fn group_bytes(group: &RowGroupMetaData, roots: Option<&[usize]>) -> u64 {
    let descr = group.schema_descr();
    (0..group.num_columns())
        .filter(|leaf| roots.is_none_or(|r| r.contains(&descr.get_column_root_idx(*leaf))))
        .map(|leaf| {
            let column = group.column(leaf);
            let values = column.num_values().max(0) as u64;
            // Dictionaries make a file small and rows large again.
            let texts = column
                .unencoded_byte_array_data_bytes()
                .map_or(0, |b| b.max(0) as u64 + 4 * values);
            (column.uncompressed_size().max(0) as u64).max(texts).max(values)
        })
        .sum()
}

/// The rows of some row groups of a file.
pub(super) struct ParquetRows {
    reading: Reading,
    file: File,
    meta: ArrowReaderMetadata,
    /// Per wanted column: its place in the file.
    columns: Vec<(usize, FileColumn)>,
    groups: Range<usize>,
    /// The group at hand and the rows of it that were read.
    group: usize,
    row: u64,
    open: Option<OpenGroup>,
}

struct OpenGroup {
    rows: ParquetRecordBatchReader,
    /// The same rows with 96-bit timestamps in wrapping nanoseconds, to see what microseconds would drop.
    nanos: Option<ParquetRecordBatchReader>,
}

impl ParquetRows {
    /// Opens a file at `place` (`group:row`), or at its start.
    pub(super) fn open(reading: Reading, groups: Option<(usize, usize)>, place: Option<&str>) -> Result<Self> {
        let path = reading.path.clone();
        let file = File::open(&path).map_err(|e| io_error("read", &path, e))?;
        let malformed = |e| parquet_error(&path, e);
        let footer = ParquetMetaDataReader::new()
            .parse_and_finish(&file)
            .map_err(malformed)?;
        let footer = Arc::new(footer);
        let all = types::file_columns(footer.file_metadata())?;
        let mut columns = Vec::new();
        for wanted in &reading.columns {
            let at = all.iter().position(|c| c.column.name == wanted.source).ok_or_else(|| {
                Error::no_column(
                    Among::Table,
                    &wanted.source,
                    format!("column {} is not in this file", wanted.source),
                )
                .hint("all files of a table must have its columns")
            })?;
            if let Some(why) = all[at].unsupported {
                return Err(
                    Error::new(code::TYPE_UNSUPPORTED, format!("column {}: {why}", wanted.source))
                        .hint(format!("leave column {} out", wanted.source)),
                );
            }
            columns.push((at, all[at].clone()));
        }
        let options = if all.iter().any(|c| c.int96) {
            ArrowReaderOptions::new().with_schema(micros_for_int96(&footer, &path)?)
        } else {
            ArrowReaderOptions::new().with_skip_arrow_metadata(true)
        };
        let meta = ArrowReaderMetadata::try_new(footer, options).map_err(malformed)?;
        let count = meta.metadata().num_row_groups();
        let groups = groups.map_or(0..count, |(from, to)| from..to);
        let (group, row) = match place {
            None => (groups.start, 0),
            Some(p) => p
                .split_once(':')
                .and_then(|(g, r)| Some((g.parse().ok()?, r.parse().ok()?)))
                .ok_or_else(|| Error::bug(format!("position {p} is not one of a Parquet file")))?,
        };
        if groups.end > count || group > groups.end {
            return Err(Error::new(
                code::FILE,
                format!("{} has fewer row groups than when the run was planned", path.display()),
            )
            .hint("it was replaced meanwhile; start over with `synctool state reset`"));
        }
        Ok(ParquetRows {
            reading,
            file,
            meta,
            columns,
            groups,
            group,
            row,
            open: None,
        })
    }

    fn group_rows(&self) -> u64 {
        self.meta.metadata().row_group(self.group).num_rows().max(0) as u64
    }

    /// Decoded bytes per row of the group at hand.
    fn row_bytes(&self) -> usize {
        let roots: Vec<usize> = self.columns.iter().map(|(at, _)| *at).collect();
        let group = self.meta.metadata().row_group(self.group);
        (group_bytes(group, Some(&roots)) / self.group_rows().max(1)) as usize + 1
    }

    fn batch_rows(&self) -> usize {
        (self.reading.batch_bytes / self.row_bytes()).clamp(1, MAX_BATCH_ROWS)
    }

    fn open_group(&self) -> Result<OpenGroup> {
        let roots = self.columns.iter().map(|(at, _)| *at);
        let int96 = self.columns.iter().filter(|(_, c)| c.int96).map(|(at, _)| *at);
        let build = |meta: ArrowReaderMetadata, roots: Vec<usize>| {
            let file = self
                .file
                .try_clone()
                .map_err(|e| io_error("read", &self.reading.path, e))?;
            let mask = ProjectionMask::roots(meta.parquet_schema(), roots);
            ParquetRecordBatchReaderBuilder::new_with_metadata(file, meta)
                .with_projection(mask)
                .with_row_groups(vec![self.group])
                .with_batch_size(self.batch_rows())
                .with_offset(self.row as usize)
                .build()
                .map_err(|e| parquet_error(&self.reading.path, e))
        };
        let int96: Vec<usize> = int96.collect();
        let nanos = if int96.is_empty() {
            None
        } else {
            let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
            let meta = ArrowReaderMetadata::try_new(self.meta.metadata().clone(), options)
                .map_err(|e| parquet_error(&self.reading.path, e))?;
            Some(build(meta, int96)?)
        };
        Ok(OpenGroup {
            rows: build(self.meta.clone(), roots.collect())?,
            nanos,
        })
    }

    fn convert(&self, batch: &RecordBatch, nanos: Option<&RecordBatch>) -> Result<RecordBatch> {
        let names = |at: usize| self.meta.schema().field(at).name();
        let of = |batch: &RecordBatch, at: usize| -> Result<ArrayRef> {
            let found = batch.column_by_name(names(at)).cloned();
            found.ok_or_else(|| Error::bug("a projected column is missing"))
        };
        let mut arrays = Vec::with_capacity(self.columns.len());
        for ((at, from), wanted) in self.columns.iter().zip(&self.reading.columns) {
            let array = of(batch, *at)?;
            if from.int96
                && let Some(nanos) = nanos
            {
                check_int96(&array, &of(nanos, *at)?, from)?;
            }
            arrays.push(to_wanted(&array, from, &wanted.column)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(self.reading.schema.clone(), arrays, &options)
            .map_err(|e| Error::bug(format!("a batch of a Parquet file: {e}")))
    }
}

impl FileRows for ParquetRows {
    fn estimate(&self) -> usize {
        if self.group >= self.groups.end {
            return 0;
        }
        let rows = self.group_rows().saturating_sub(self.row) as usize;
        self.row_bytes().saturating_mul(rows.min(self.batch_rows()))
    }

    fn place(&self) -> String {
        format!("{}:{}", self.group, self.row)
    }

    fn next(&mut self) -> Result<Option<RecordBatch>> {
        while self.group < self.groups.end {
            if self.row >= self.group_rows() {
                self.group += 1;
                (self.row, self.open) = (0, None);
                continue;
            }
            if self.open.is_none() {
                self.open = Some(self.open_group()?);
            }
            let open = self.open.as_mut().expect("set above");
            let arrow = |e: arrow_schema::ArrowError| match e {
                arrow_schema::ArrowError::IoError(_, e) => io_error("read", &self.reading.path, e),
                e => Error::new(
                    code::FILE_MALFORMED,
                    format!(
                        "{}: row group {} cannot be decoded: {e}",
                        self.reading.path.display(),
                        self.group
                    ),
                ),
            };
            let Some(batch) = open.rows.next() else {
                return Err(Error::new(
                    code::FILE_MALFORMED,
                    format!(
                        "{}: row group {} has fewer rows than it says",
                        self.reading.path.display(),
                        self.group
                    ),
                ));
            };
            let batch = batch.map_err(arrow)?;
            let nanos = open
                .nanos
                .as_mut()
                .and_then(Iterator::next)
                .transpose()
                .map_err(arrow)?;
            let rows = self.convert(&batch, nanos.as_ref())?;
            self.row += batch.num_rows() as u64;
            if self.row >= self.group_rows() {
                self.group += 1;
                (self.row, self.open) = (0, None);
            }
            return Ok(Some(rows));
        }
        Ok(None)
    }
}

/// The file's own Arrow schema, but 96-bit timestamps in microseconds: nanoseconds reach only to 2262.
fn micros_for_int96(meta: &ParquetMetaData, path: &Path) -> Result<SchemaRef> {
    let plain = parquet::arrow::parquet_to_arrow_schema(meta.file_metadata().schema_descr(), None)
        .map_err(|e| parquet_error(path, e))?;
    let columns = types::file_columns(meta.file_metadata())?;
    let fields: Vec<Field> = plain
        .fields()
        .iter()
        .zip(&columns)
        .map(|(f, c)| match c.int96 {
            true => f
                .as_ref()
                .clone()
                .with_data_type(DataType::Timestamp(TimeUnit::Microsecond, None)),
            false => f.as_ref().clone(),
        })
        .collect();
    Ok(Arc::new(Schema::new(fields)))
}

/// Refuses a 96-bit timestamp that microseconds would cut. Both decoders wrap around, so what differs is the rest.
fn check_int96(micros: &ArrayRef, nanos: &ArrayRef, from: &FileColumn) -> Result<()> {
    let micros = micros.as_primitive::<TimestampMicrosecondType>();
    let nanos = nanos.as_primitive::<TimestampNanosecondType>();
    for row in 0..micros.len() {
        if micros.is_valid(row) && nanos.value(row).wrapping_sub(micros.value(row).wrapping_mul(1000)) != 0 {
            return Err(refuse(&from.column, "it is not a whole number of microseconds"));
        }
    }
    Ok(())
}

/// Writes one part file.
pub(super) struct ParquetPart {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    table: TableSchema,
    path: std::path::PathBuf,
    row_group_bytes: usize,
    rows: u64,
}

impl ParquetPart {
    pub(super) fn create(
        path: &Path,
        table: &TableSchema,
        options: &ParquetOptions,
        sample: Option<&RecordBatch>,
    ) -> Result<Self> {
        let schema = file_schema(table);
        let writer_options = ArrowWriterOptions::new()
            .with_properties(properties(table, options, sample)?)
            .with_parquet_schema(types::parquet_schema(table, &schema)?);
        let file = File::create(path).map_err(|e| io_error("write", path, e))?;
        Ok(ParquetPart {
            writer: ArrowWriter::try_new_with_options(file, schema.clone(), writer_options)
                .map_err(|e| parquet_error(path, e))?,
            schema,
            table: table.clone(),
            path: path.to_path_buf(),
            row_group_bytes: options.row_group_bytes,
            rows: 0,
        })
    }
}

/// The table's Arrow schema, with NOT NULL.
fn file_schema(table: &TableSchema) -> SchemaRef {
    let fields: Vec<Field> = table
        .columns
        .iter()
        .map(|c| c.field().with_nullable(c.nullable))
        .collect();
    Arc::new(Schema::new(fields))
}

fn properties(table: &TableSchema, options: &ParquetOptions, sample: Option<&RecordBatch>) -> Result<WriterProperties> {
    let level = ZstdLevel::try_new(options.compression_level)
        .map_err(|e| Error::new(code::CONFIG_INVALID, format!("Parquet: {e}")))?;
    let key = KeyValue::new(
        META_KEY.to_string(),
        serde_json::to_string(&table.key).expect("a list of names always serialises"),
    );
    let mut builder = WriterProperties::builder()
        .set_created_by(concat!("synctool version ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(Compression::ZSTD(level))
        .set_statistics_enabled(EnabledStatistics::Chunk)
        .set_max_row_group_bytes(Some(options.row_group_bytes))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES)
        .set_key_value_metadata(Some(vec![key]));
    for (at, c) in table.columns.iter().enumerate() {
        let path = || ColumnPath::from(vec![c.name.clone()]);
        let unique = table.key.as_slice() == std::slice::from_ref(&c.name);
        let kind = sample.map_or(Kind::default(), |rows| Kind::of(rows.column(at)));
        if unique || kind.varied {
            builder = builder.set_column_dictionary_enabled(path(), false);
        }
        if kind.dense {
            builder = builder.set_column_compression(path(), Compression::UNCOMPRESSED);
        }
    }
    Ok(builder.build())
}

/// What a column's values are like: what does not pay is not tried for every page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Kind {
    /// Most values occur once: a dictionary of them would be built only to be thrown away.
    varied: bool,
    /// Their bytes do not shrink, as random ones never do.
    dense: bool,
}

impl Kind {
    /// Judged by the first values.
    fn of(array: &ArrayRef) -> Kind {
        let some = array.slice(0, array.len().min(SAMPLE));
        let mut values: Vec<&[u8]> = Vec::with_capacity(some.len());
        let data = some.to_data();
        match some.data_type() {
            DataType::Utf8 => values.extend(some.as_string::<i32>().iter().flatten().map(str::as_bytes)),
            DataType::Binary => values.extend(some.as_binary::<i32>().iter().flatten()),
            DataType::FixedSizeBinary(_) => values.extend(some.as_fixed_size_binary().iter().flatten()),
            ty => {
                let (Some(width), [buffer]) = (ty.primitive_width(), data.buffers()) else {
                    return Kind::default();
                };
                let bytes = &buffer[data.offset() * width..][..data.len() * width];
                values.extend(bytes.chunks_exact(width));
            }
        }
        if values.len() < SAMPLE / 16 {
            // Too few to judge by, and so few that it does not matter.
            return Kind::default();
        }
        let plain = values.concat();
        let mut distinct: Vec<u64> = values.iter().map(|v| xxhash_rust::xxh3::xxh3_64(v)).collect();
        distinct.sort_unstable();
        distinct.dedup();
        Kind {
            varied: distinct.len() * 2 > values.len(),
            dense: zstd::bulk::compress(&plain, 1).is_ok_and(|c| c.len() * 20 > plain.len() * 19),
        }
    }
}

impl PartWriter for ParquetPart {
    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        for (column, array) in self.table.columns.iter().zip(batch.columns()) {
            check_sentinels(column, array)?;
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let rows = RecordBatch::try_new_with_options(self.schema.clone(), batch.columns().to_vec(), &options)
            .map_err(|e| Error::bug(format!("a batch does not fit its table: {e}")))?;
        self.writer.write(&rows).map_err(|e| parquet_error(&self.path, e))?;
        if self.writer.memory_size() > self.row_group_bytes {
            self.writer.flush().map_err(|e| parquet_error(&self.path, e))?;
        }
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(u64, u64)> {
        self.writer.finish().map_err(|e| parquet_error(&self.path, e))?;
        let file = self.writer.inner();
        file.sync_all().map_err(|e| io_error("write", &self.path, e))?;
        let bytes = file.metadata().map_err(|e| io_error("write", &self.path, e))?.len();
        Ok((self.rows, bytes))
    }
}

/// In Arrow the extremes stand for infinity; in Parquet they are a far day that other readers show or choke on.
fn check_sentinels(column: &synctool_core::schema::Column, array: &ArrayRef) -> Result<()> {
    let infinite = match array.data_type() {
        DataType::Date32 => any(array.as_primitive::<Date32Type>().iter(), &[i32::MIN, i32::MAX]),
        DataType::Timestamp(..) => any(
            array.as_primitive::<TimestampMicrosecondType>().iter(),
            &[i64::MIN, i64::MAX],
        ),
        _ => false,
    };
    match infinite {
        true => Err(refuse(column, "Parquet has no infinity for dates and timestamps")),
        false => Ok(()),
    }
}

fn any<T: PartialEq>(values: impl Iterator<Item = Option<T>>, of: &[T]) -> bool {
    values.flatten().any(|v| of.contains(&v))
}

/// Puts the row groups of several files into one, as they are.
pub(super) fn join(parts: &[(std::path::PathBuf, DataFile)], to: &Path) -> Result<()> {
    let open = |path: &Path| -> Result<(File, ParquetMetaData)> {
        let file = File::open(path).map_err(|e| io_error("read", path, e))?;
        let meta = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Optional)
            .parse_and_finish(&file)
            .map_err(|e| parquet_error(path, e))?;
        Ok((file, meta))
    };
    let writing = |e| parquet_error(to, e);
    let (first, _) = parts.first().ok_or_else(|| Error::bug("no parts to join"))?;
    let (_, meta) = open(first)?;
    let properties = WriterProperties::builder()
        .set_created_by(meta.file_metadata().created_by().unwrap_or_default().to_string())
        .set_key_value_metadata(meta.file_metadata().key_value_metadata().cloned())
        .build();
    let out = File::create(to).map_err(|e| io_error("write", to, e))?;
    let schema = meta.file_metadata().schema_descr().root_schema_ptr();
    let mut writer = SerializedFileWriter::new(out, schema, Arc::new(properties)).map_err(writing)?;
    for (path, _) in parts {
        let (file, meta) = open(path)?;
        for (i, group) in meta.row_groups().iter().enumerate() {
            let mut out = writer.next_row_group().map_err(writing)?;
            for (c, column) in group.columns().iter().enumerate() {
                let close = ColumnCloseResult {
                    bytes_written: column.compressed_size() as u64,
                    rows_written: group.num_rows() as u64,
                    metadata: column.clone(),
                    bloom_filter: None,
                    column_index: meta.column_index().and_then(|x| x.get(i)?.get(c).cloned()),
                    offset_index: meta.offset_index().and_then(|x| x.get(i)?.get(c).cloned()),
                };
                out.append_column(&file, close).map_err(writing)?;
            }
            out.close().map_err(writing)?;
        }
    }
    writer.finish().map_err(writing)?;
    writer.inner().sync_all().map_err(|e| io_error("write", to, e))
}
