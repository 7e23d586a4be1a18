//! Files that are read and written anew.

use super::csv::CsvRows;
use super::parquet::{self, ParquetRows};
use super::pending::weight;
use super::prune;
use super::sink::{PartWriter, create_part};
use super::source::{self, FileRows, Reading, schema_of};
use super::table::{DataFile, Located};
use super::{Format, store, types};
use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_select::concat::concat_batches;
use std::path::{Path, PathBuf};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::ReadColumn;
use synctool_core::schema::{Column, ColumnType, TableSchema};

/// Bytes of rows that are read at once.
const BATCH_BYTES: usize = 4 << 20;

/// Columns of a file as they are asked for, batch by batch.
pub(super) struct Columns {
    rows: Box<dyn FileRows>,
    /// Per column asked for: itself, if the file lacks it.
    lacking: Vec<Option<Column>>,
    /// The rows of the last batch.
    pub(super) height: usize,
}

impl Columns {
    /// Opens a file: all of it, or some row groups. `known` is the schema by which a file of ours is read.
    pub(super) fn open(
        path: &Path,
        file: &DataFile,
        columns: Vec<Column>,
        (format, known): (&Format, Option<&TableSchema>),
        groups: Option<(usize, usize)>,
    ) -> Result<Self> {
        let (mut wanted, mut lacking) = (Vec::new(), Vec::new());
        for column in columns {
            let lacks = file.lacks.contains(&column.name);
            if !lacks {
                wanted.push(ReadColumn::plain(&column.name, column.clone()));
            }
            lacking.push(lacks.then_some(column));
        }
        let reading = Reading {
            path: path.to_path_buf(),
            schema: schema_of(&wanted),
            columns: wanted,
            batch_bytes: BATCH_BYTES,
            max_row_bytes: usize::MAX,
        };
        let rows: Box<dyn FileRows> = match format {
            Format::Csv(options) => {
                let known = known.cloned().map(|mut schema| {
                    schema.columns.retain(|c| !file.lacks.contains(&c.name));
                    schema
                });
                Box::new(CsvRows::open(reading, options, known.as_ref(), None)?)
            }
            Format::Parquet(_) => Box::new(ParquetRows::open(reading, groups, None)?),
        };
        Ok(Columns {
            rows,
            lacking,
            height: 0,
        })
    }

    /// The next rows.
    pub(super) fn next(&mut self) -> Result<Option<Vec<ArrayRef>>> {
        let Some(batch) = self.rows.next()? else {
            return Ok(None);
        };
        self.height = batch.num_rows();
        let mut there = batch.columns().iter();
        let columns = self.lacking.iter().map(|lacking| match lacking {
            Some(column) => Some(new_null_array(&column.arrow_type(), batch.num_rows())),
            None => there.next().cloned(),
        });
        let columns = columns.collect::<Option<Vec<_>>>();
        columns
            .map(Some)
            .ok_or_else(|| Error::bug("a file gave fewer columns than were asked for"))
    }
}

/// A file that is being written. It is not there before it is finished.
pub(super) struct Output {
    path: PathBuf,
    name: String,
    schema: TableSchema,
    format: Format,
    writer: Option<Box<dyn PartWriter>>,
}

impl Output {
    pub(super) fn new(dir: &Path, name: String, schema: &TableSchema, format: &Format) -> Self {
        Output {
            path: dir.join(&name),
            name,
            schema: schema.clone(),
            format: format.clone(),
            writer: None,
        }
    }

    /// Begins the file though there may be no rows.
    pub(super) fn begin(&mut self, sample: Option<&RecordBatch>) -> Result<()> {
        self.writer = Some(create_part(&self.path, &self.schema, &self.format, sample)?);
        Ok(())
    }

    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.writer.is_none() {
            self.begin(Some(batch))?;
        }
        match &mut self.writer {
            Some(writer) => writer.write(batch),
            None => Err(Error::bug("a file that was begun is not there")),
        }
    }

    pub(super) fn finish(mut self) -> Result<DataFile> {
        let (rows, bytes) = match self.writer.take() {
            Some(writer) => writer.finish()?,
            None => (0, 0),
        };
        Ok(DataFile {
            name: self.name.clone(),
            rows: Some(rows),
            bytes,
            lacks: Vec::new(),
        })
    }

    pub(super) fn discard(mut self) -> Result<()> {
        drop(self.writer.take());
        store::remove(&self.path)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.writer.take().is_some() {
            // It failed on the way.
            let _ = store::remove(&self.path);
        }
    }
}

/// The rows of a load in pieces of so many bytes.
pub(super) fn in_pieces<'a>(
    load: &'a Located,
    schema: &'a TableSchema,
    bytes: usize,
) -> impl Iterator<Item = Result<RecordBatch>> + 'a {
    let mut files = load.files.iter();
    let mut open: Option<Columns> = None;
    std::iter::from_fn(move || {
        let mut piece = || -> Result<Option<RecordBatch>> {
            let arrow = schema.arrow_schema();
            let (mut batches, mut held) = (Vec::new(), 0);
            while held < bytes {
                let Some(columns) = &mut open else {
                    let Some(file) = files.next() else { break };
                    let (path, how) = (load.path(&file.name), (&load.format, Some(schema)));
                    open = Some(Columns::open(&path, file, schema.columns.clone(), how, None)?);
                    continue;
                };
                let Some(arrays) = columns.next()? else {
                    open = None;
                    continue;
                };
                let options = RecordBatchOptions::new().with_row_count(Some(columns.height));
                let batch = RecordBatch::try_new_with_options(arrow.clone(), arrays, &options).map_err(bug)?;
                held += weight(&batch);
                batches.push(batch);
            }
            match batches.is_empty() {
                true => Ok(None),
                false => concat_batches(&arrow, &batches).map(Some).map_err(bug),
            }
        };
        piece().transpose()
    })
}

fn bug(e: arrow_schema::ArrowError) -> Error {
    Error::bug(format!("rows of a load: {e}"))
}

/// Refuses files whose rows would change by being written anew: those of other programs, with types that we read in
/// another form than we write.
pub(super) fn check_rewritable(located: &Located) -> Result<()> {
    let Format::Parquet(_) = located.format else {
        return Ok(());
    };
    let schema = source::describe(located)?;
    for file in &located.files {
        let path = located.path(&file.name);
        let footer = parquet::footer(&path)?;
        let types = prune::decoded(&path, footer.file_metadata())?;
        for column in schema.columns.iter().filter(|c| !file.lacks.contains(&c.name)) {
            let ours = column.ty != ColumnType::Native && types.get(&column.name) == Some(&column.arrow_type());
            // What somebody appended in a narrower type fits.
            let read = || {
                let all = types::file_columns(footer.file_metadata())?;
                let found = all.iter().find(|c| c.column.name == column.name);
                Ok::<_, Error>(found.is_some_and(|c| {
                    c.unsupported.is_none()
                        && !c.int96
                        && types.get(&column.name) == Some(&c.column.arrow_type())
                        && c.column.ty.fits(&column.ty)
                }))
            };
            if !ours && !read()? {
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!(
                        "column {} of {} has a type that SyncTool does not write, so its rows cannot be changed",
                        column.name, file.name
                    ),
                )
                .hint("replace the table with full_mode: swap"));
            }
        }
        let strange = types.keys().find(|name| schema.column(name).is_none());
        if let Some(name) = strange {
            return Err(Error::new(
                code::SCHEMA_MISMATCH,
                format!("{} has a column {name} that the first file has not", file.name),
            )
            .hint("make the files of the table agree, or replace it with full_mode: swap"));
        }
    }
    Ok(())
}
