//! Reading tables that are files.

use super::csv::{self, CsvRows};
use super::parquet::{self, ParquetRows};
use super::store::{self, io_error};
use super::table::{DataFile, Located, Place, Shape};
use super::{Format, blocking, types};
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;
use async_trait::async_trait;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Event};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::progress::Position;
use synctool_core::query::Term;
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::select::{Selection, columns_only, distinct_by_reading, extent_by_reading};
use synctool_core::source::{Extent, Finding, PlannedSlice, ReadContext, Reader, SliceRequest, Source, TableInfo};
use tokio::sync::Mutex;
use tokio::task::JoinHandle;

/// A slice of a Parquet file is not cut smaller than this.
const MIN_SLICE_BYTES: u64 = 16 << 20;

/// The files of a datastore, or of one load of ours.
pub(super) struct Files {
    place: Arc<Place>,
    /// Finds one table instead of those of the datastore.
    load: Option<(TableId, Find)>,
    /// Tables as readers of one snapshot first found them ([`ReadSpec::one_snapshot`]).
    held: Mutex<BTreeMap<TableId, (Located, Stamps)>>,
}

type Find = Arc<dyn Fn() -> Result<Located> + Send + Sync>;

/// What files must still be ([`stamp`]), by their names.
type Stamps = BTreeMap<String, String>;

impl Files {
    pub(super) fn of(place: Arc<Place>) -> Self {
        Files {
            place,
            load: None,
            held: Mutex::default(),
        }
    }

    /// A source with one table, which `find` finds.
    pub(super) fn load(
        place: Arc<Place>,
        table: TableId,
        find: impl Fn() -> Result<Located> + Send + Sync + 'static,
    ) -> Self {
        Files {
            place,
            load: Some((table, Arc::new(find))),
            held: Mutex::default(),
        }
    }

    async fn locate(&self, table: &TableId) -> Result<Located> {
        let (place, table, load) = (self.place.clone(), table.clone(), self.load.clone());
        blocking(move || match load {
            Some((name, find)) if name == table => find(),
            _ => place.locate(&table)?.ok_or_else(|| place.missing(&table)),
        })
        .await
    }

    /// A table as it was when a reader of one snapshot was first opened: files that a manifest names stay as long as it is
    /// held, others are known by their stamps.
    async fn held(&self, table: &TableId) -> Result<(Located, Stamps)> {
        let mut held = self.held.lock().await;
        if let Some(known) = held.get(table) {
            return Ok(known.clone());
        }
        let located = self.locate(table).await?;
        let found = blocking(move || {
            let files = located.files.iter();
            let stamps = files.map(|f| stamp_in(&located, &f.name).map(|stamp| (f.name.clone(), stamp)));
            let stamps = stamps.collect::<Result<Stamps>>()?;
            Ok((located, stamps))
        })
        .await?;
        held.insert(table.clone(), found.clone());
        Ok(found)
    }
}

/// A table's columns and key.
pub(super) fn describe(located: &Located) -> Result<TableSchema> {
    if let Some(known) = &located.known {
        return Ok(known.schema.clone());
    }
    let first = located
        .files
        .first()
        .ok_or_else(|| Error::bug("a table without files"))?;
    let path = located.path(&first.name);
    let schema = match &located.format {
        Format::Csv(options) => TableSchema {
            columns: csv::columns(&path, options)?,
            key: Vec::new(),
        },
        Format::Parquet(_) => {
            let footer = parquet::footer(&path)?;
            let mut columns = Vec::new();
            for c in types::file_columns(footer.file_metadata())? {
                let mut column = c.column;
                // Another file of the folder may hold NULLs.
                column.nullable |= located.shape == Shape::Folder && located.files.len() > 1;
                columns.push(column);
            }
            TableSchema {
                columns,
                key: types::file_key(footer.file_metadata()),
            }
        }
    };
    let mut names: Vec<&str> = schema.columns.iter().map(|c| c.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(
            Error::new(code::FILE_MALFORMED, format!("column {} is there twice", twice[0]))
                .at("file", path.display().to_string()),
        );
    }
    Ok(schema)
}

/// The number of rows, counted where nobody knows it.
pub(super) fn count(located: &Located) -> Result<u64> {
    let mut rows = 0;
    for file in &located.files {
        rows += match (file.rows, &located.format) {
            (Some(rows), _) => rows,
            (None, Format::Csv(options)) => csv::count(&located.path(&file.name), options)?,
            (None, Format::Parquet(_)) => parquet::footer(&located.path(&file.name))?
                .file_metadata()
                .num_rows()
                .max(0) as u64,
        };
    }
    Ok(rows)
}

#[async_trait]
impl Source for Files {
    fn engine(&self) -> &'static str {
        self.place.config.format.name()
    }

    /// The files that the first reader found: those of a manifest stay while they are read, and others that were replaced
    /// are refused.
    async fn shares_snapshot(&self) -> Result<bool> {
        Ok(true)
    }

    async fn tables(&self, _schema: Option<&str>) -> Result<Vec<TableInfo>> {
        let place = self.place.clone();
        blocking(move || {
            let mut infos = Vec::new();
            for table in place.tables()? {
                let Some(located) = place.locate(&table)? else { continue };
                let rows = match (&located.known, &located.format) {
                    (None, Format::Csv(_)) => None,
                    _ => count(&located).ok(),
                };
                infos.push(TableInfo {
                    table,
                    kind: match located.shape {
                        Shape::File => "file".into(),
                        Shape::Folder => "folder of files".into(),
                    },
                    rows,
                    bytes: Some(located.bytes()),
                });
            }
            Ok(infos)
        })
        .await
    }

    async fn describe(&self, table: &TableId) -> Result<TableSchema> {
        let located = self.locate(table).await?;
        blocking(move || describe(&located)).await
    }

    async fn describe_query(&self, read: &ReadSpec) -> Result<Vec<Column>> {
        columns_only(read, self.engine())?;
        let schema = self.describe(&read.table).await?;
        read.columns
            .iter()
            .map(|c| {
                let name = match c.term() {
                    Term::Column { name, .. } => name,
                    Term::Sql(_) => return Err(Error::bug("an expression was not refused")),
                };
                Ok(Column {
                    name: c.column.name.clone(),
                    ..schema.must_column(&name, &read.table)?.clone()
                })
            })
            .collect()
    }

    async fn extent(&self, read: &ReadSpec, term: &Term, slice: &Slice) -> Result<Option<Extent>> {
        extent_by_reading(self, read, term, slice).await
    }

    async fn distinct(
        &self,
        read: &ReadSpec,
        terms: &[Term],
        slice: &Slice,
        limit: usize,
    ) -> Result<Vec<Vec<Option<String>>>> {
        distinct_by_reading(self, read, terms, slice, limit).await
    }

    async fn slices(&self, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
        let located = self.locate(&read.table).await?;
        let (read, request) = (read.clone(), request.clone());
        blocking(move || slices(&located, &read, &request)).await
    }

    async fn open(
        &self,
        read: &ReadSpec,
        partition: &Partition,
        after: Option<&Position>,
        context: &ReadContext,
    ) -> Result<Box<dyn Reader>> {
        let Work::Read(slice) = &partition.work else {
            return Err(Error::new(code::UNSUPPORTED, "files have no log to follow"));
        };
        let (located, mut stamps) = match read.one_snapshot {
            true => self.held(&read.table).await?,
            false => (self.locate(&read.table).await?, Stamps::new()),
        };
        let files: VecDeque<(DataFile, Option<(usize, usize)>)> = match slice {
            // No index says where rows of a key or of a condition are: all files are read and looked through.
            Slice::All | Slice::Key(_) | Slice::Cut(_) | Slice::Keys(_) => {
                located.files.iter().map(|f| (f.clone(), None)).collect()
            }
            Slice::File { path, groups, stamp } => {
                stamps.extend(stamp.clone().map(|stamp| (path.clone(), stamp)));
                // The plan may be older than the newest manifest, so the file stands for itself.
                let known = located.files.iter().find(|f| f.name == *path).cloned();
                let file = known.unwrap_or_else(|| DataFile {
                    name: path.clone(),
                    rows: None,
                    bytes: 0,
                    lacks: Vec::new(),
                });
                VecDeque::from([(file, *groups)])
            }
        };
        let whole = read.filters.is_empty() && matches!(slice, Slice::All | Slice::File { .. });
        let schema = match whole {
            true => TableSchema::default(),
            false => {
                let located = located.clone();
                blocking(move || describe(&located)).await?
            }
        };
        let selection = Selection::new(read, slice, &schema, self.engine())?;
        let mut scan = Scan {
            schema: schema_of(&selection.columns),
            selection,
            batch_bytes: context.batch_bytes.max(1),
            max_row_bytes: context.max_row_bytes,
            place: partition.id.to_string(),
            located,
            stamps,
            one_snapshot: read.one_snapshot,
            files,
            open: None,
        };
        let after = after.cloned();
        let scan = blocking(move || {
            scan.seek(after.as_ref())?;
            Ok(scan)
        })
        .await?;
        Ok(Box::new(FileReader {
            table: Arc::new(read.table.clone()),
            context: context.clone(),
            scan: Some(scan),
            working: None,
            ready: None,
            boundary: None,
        }))
    }

    async fn examine(&self, tables: &[TableId]) -> Vec<Finding> {
        let mut findings = Vec::new();
        for table in tables {
            let what = format!("files of table {table} can be read");
            findings.push(Finding::of_table(what, self.describe(table).await));
        }
        findings
    }
}

fn slices(located: &Located, read: &ReadSpec, request: &SliceRequest) -> Result<Vec<PlannedSlice>> {
    let mut slices = Vec::new();
    match &located.format {
        Format::Csv(_) => {
            for file in &located.files {
                slices.push(PlannedSlice {
                    label: file.name.clone(),
                    slice: Slice::File {
                        path: file.name.clone(),
                        groups: None,
                        stamp: None,
                    },
                    rows: file.rows.unwrap_or(0),
                    bytes: file.bytes,
                });
            }
        }
        Format::Parquet(_) => {
            let mut footers = Vec::new();
            for file in &located.files {
                let stamp = stamp_in(located, &file.name)?;
                let footer = parquet::footer(&located.path(&file.name))?;
                check_supported(&footer, read).map_err(|e| e.at("file", file.name.clone()))?;
                footers.push((file, stamp, footer));
            }
            let total: u64 = footers
                .iter()
                .flat_map(|(_, _, f)| f.row_groups())
                .map(|g| parquet::group_bytes(g, None))
                .sum();
            let most = (total / request.min_slices.max(1) as u64)
                .clamp(MIN_SLICE_BYTES.min(request.max_slice_bytes), request.max_slice_bytes);
            for (file, stamp, footer) in footers {
                slices.extend(cut((&file.name, &stamp), &footer, most, request.step));
            }
        }
    }
    if request.single || slices.is_empty() {
        let all = PlannedSlice::all(
            slices.iter().map(|s| s.rows).sum(),
            slices.iter().map(|s| s.bytes).sum(),
        );
        return Ok(vec![all]);
    }
    Ok(slices)
}

/// Row groups of a file, several together as long as they are small.
fn cut(
    (name, stamp): (&str, &str),
    footer: &::parquet::file::metadata::ParquetMetaData,
    most: u64,
    step: Option<u64>,
) -> Vec<PlannedSlice> {
    let mut runs: Vec<(usize, usize, u64, u64)> = Vec::new();
    for (i, group) in footer.row_groups().iter().enumerate() {
        let (rows, bytes) = (group.num_rows().max(0) as u64, parquet::group_bytes(group, None));
        match runs.last_mut() {
            Some(run) if run.3 + bytes <= most && step.is_none_or(|s| run.2 + rows <= s) => {
                *run = (run.0, i + 1, run.2 + rows, run.3 + bytes);
            }
            _ => runs.push((i, i + 1, rows, bytes)),
        }
    }
    let whole = runs.len() == 1;
    runs.into_iter()
        .map(|(from, to, rows, bytes)| PlannedSlice {
            label: if whole {
                name.to_string()
            } else {
                format!("{name}_{from}_{to}")
            },
            slice: Slice::File {
                path: name.to_string(),
                groups: (!whole).then_some((from, to)),
                // A whole file belongs to no other slice.
                stamp: (!whole).then(|| stamp.to_string()),
            },
            rows,
            bytes,
        })
        .collect()
}

/// What cannot be read is refused when the plan is made.
fn check_supported(footer: &::parquet::file::metadata::ParquetMetaData, read: &ReadSpec) -> Result<()> {
    let columns = types::file_columns(footer.file_metadata())?;
    for wanted in &read.columns {
        let found = columns.iter().find(|c| c.column.name == wanted.source);
        if let Some(why) = found.and_then(|c| c.unsupported) {
            return Err(
                Error::new(code::TYPE_UNSUPPORTED, format!("column {}: {why}", wanted.source))
                    .hint(format!("leave column {} out", wanted.source)),
            );
        }
    }
    Ok(())
}

/// What a file is read for.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) path: PathBuf,
    pub(super) columns: Vec<ReadColumn>,
    pub(super) schema: SchemaRef,
    pub(super) batch_bytes: usize,
    pub(super) max_row_bytes: usize,
}

/// The rows of one file, in batches.
pub(super) trait FileRows: Send {
    /// The bytes that the next batch will need.
    fn estimate(&self) -> usize;
    /// Where the next batch begins, for opening the file there again.
    fn place(&self) -> String;
    /// The next batch.
    fn next(&mut self) -> Result<Option<RecordBatch>>;
}

/// The rows of a partition, file by file. Blocks.
struct Scan {
    located: Located,
    /// Which rows, and the columns to read for them.
    selection: Selection,
    schema: SchemaRef,
    batch_bytes: usize,
    max_row_bytes: usize,
    /// The partition, for messages.
    place: String,
    /// What the files were when the slice was planned, or the snapshot taken.
    stamps: Stamps,
    one_snapshot: bool,
    files: VecDeque<(DataFile, Option<(usize, usize)>)>,
    open: Option<OpenFile>,
}

struct OpenFile {
    name: String,
    /// Size and time of change: a file that changes while it is read is not two halves of one table.
    stamp: String,
    rows: Box<dyn FileRows>,
    /// Columns that the table got after this file was written.
    lacks: Vec<String>,
}

pub(super) fn schema_of(columns: &[ReadColumn]) -> SchemaRef {
    let columns = columns.iter().map(|c| c.column.clone()).collect();
    TableSchema {
        columns,
        key: Vec::new(),
    }
    .arrow_schema()
}

impl Scan {
    /// Goes right behind a position of an earlier scan.
    fn seek(&mut self, after: Option<&Position>) -> Result<()> {
        let Some(position) = after else { return Ok(()) };
        let (name, place, stamp) = position
            .as_str()
            .rsplit_once('@')
            .and_then(|(rest, stamp)| rest.rsplit_once('#').map(|(name, place)| (name, place, stamp)))
            .ok_or_else(|| Error::bug(format!("position {position} is not one of files")))?;
        let Some(at) = self.files.iter().position(|(f, _)| f.name == name) else {
            return Err(self.gone(name));
        };
        self.files.drain(..at);
        let (file, groups) = self.files.pop_front().expect("found above");
        let open = self.open_file(&file, groups, Some(place))?;
        if open.stamp != stamp {
            return Err(self.since(format!("file {name} has changed since reading it began")));
        }
        self.open = Some(open);
        Ok(())
    }

    fn open_file(&self, file: &DataFile, groups: Option<(usize, usize)>, place: Option<&str>) -> Result<OpenFile> {
        let path = self.located.path(&file.name);
        match self.open_at(path, file, groups, place) {
            // A file that a newer manifest does not name lies under another name while it is read.
            Err(_) if store::exists(&self.located.kept_path(&file.name)) => {
                self.open_at(self.located.kept_path(&file.name), file, groups, place)
            }
            Err(_) if !store::exists(&self.located.path(&file.name)) => Err(self.gone(&file.name)),
            opened => opened,
        }
    }

    fn open_at(
        &self,
        path: PathBuf,
        file: &DataFile,
        groups: Option<(usize, usize)>,
        place: Option<&str>,
    ) -> Result<OpenFile> {
        let columns: Vec<ReadColumn> = self
            .selection
            .columns
            .iter()
            .filter(|c| !file.lacks.contains(&c.source))
            .cloned()
            .collect();
        let reading = Reading {
            path: path.clone(),
            schema: schema_of(&columns),
            columns,
            batch_bytes: self.batch_bytes,
            max_row_bytes: self.max_row_bytes,
        };
        let stamp = stamp(&path)?;
        if self.stamps.get(&file.name).is_some_and(|then| *then != stamp) {
            let name = &file.name;
            return Err(self.since(format!(
                "file {name} is not the one that the other partitions are read from"
            )));
        }
        let rows: Box<dyn FileRows> = match &self.located.format {
            Format::Csv(options) => {
                let known = self.located.known.as_ref().map(|k| {
                    let mut schema = k.schema.clone();
                    schema.columns.retain(|c| !file.lacks.contains(&c.name));
                    schema
                });
                Box::new(CsvRows::open(reading, options, known.as_ref(), place)?)
            }
            Format::Parquet(_) => Box::new(ParquetRows::open(reading, groups, place)?),
        };
        Ok(OpenFile {
            name: file.name.clone(),
            stamp,
            rows,
            lacks: file.lacks.clone(),
        })
    }

    /// The rows of a file that may lack columns, with all columns.
    fn whole(&self, rows: RecordBatch, lacks: &[String]) -> Result<RecordBatch> {
        if lacks.is_empty() {
            return Ok(rows);
        }
        let mut there = rows.columns().iter();
        let arrays = self
            .selection
            .columns
            .iter()
            .map(|c| match lacks.contains(&c.source) {
                true => Some(arrow_array::new_null_array(&c.column.arrow_type(), rows.num_rows())),
                false => there.next().cloned(),
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::bug("a file gave fewer columns than were asked for"))?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), arrays, &options)
            .map_err(|e| Error::bug(format!("rows of an older file: {e}")))
    }

    fn estimate(&self) -> usize {
        self.open
            .as_ref()
            .map_or(self.batch_bytes, |o| o.rows.estimate().max(1))
    }

    fn next(&mut self) -> Result<Option<Placed>> {
        loop {
            if self.open.is_none() {
                let Some((file, groups)) = self.files.pop_front() else {
                    return Ok(None);
                };
                self.open = Some(
                    self.open_file(&file, groups, None)
                        .map_err(|e| e.at("file", file.name.clone()))?,
                );
            }
            let open = self.open.as_mut().expect("set above");
            match open.rows.next().map_err(|e| e.at("file", open.name.clone()))? {
                Some(rows) => {
                    let position = Position(format!("{}#{}@{}", open.name, open.rows.place(), open.stamp));
                    let lacks = std::mem::take(&mut open.lacks);
                    let rows = self.whole(rows, &lacks);
                    if let Some(open) = &mut self.open {
                        open.lacks = lacks;
                    }
                    let rows = self.selection.apply(&rows?)?;
                    if rows.num_rows() == 0 && !self.selection.takes_all() {
                        continue;
                    }
                    self.check_rows(&rows)?;
                    return Ok(Some((rows, position)));
                }
                None => self.open = None,
            }
        }
    }

    fn gone(&self, file: &str) -> Error {
        self.since(format!(
            "file {file} is no longer there: its table was changed since reading it began"
        ))
    }

    /// The error for files that are not what they were. A load of one snapshot starts over by itself.
    fn since(&self, what: String) -> Error {
        let (code, next) = match self.one_snapshot {
            true => (code::SNAPSHOT_LOST, "run it again: it starts over"),
            false => (code::FILE, "start over: synctool state reset"),
        };
        Error::new(code, what)
            .at("path", self.located.root.display().to_string())
            .hint(next)
    }

    fn check_rows(&self, rows: &RecordBatch) -> Result<()> {
        if rows.get_array_memory_size() <= self.max_row_bytes {
            return Ok(());
        }
        for row in 0..rows.num_rows() {
            let one = rows.slice(row, 1);
            let size: usize = one
                .columns()
                .iter()
                .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0))
                .sum();
            if size > self.max_row_bytes {
                return Err(Error::new(
                    code::ROW_TOO_LARGE,
                    format!("a row has {size} bytes, more than the {} allowed", self.max_row_bytes),
                )
                .at("partition", self.place.clone())
                .hint("raise max_row_bytes"));
            }
        }
        Ok(())
    }
}

/// Size and time of change of a table's file, also where it lies under another name while it is read.
fn stamp_in(located: &Located, file: &str) -> Result<String> {
    stamp(&located.path(file)).or_else(|e| stamp(&located.kept_path(file)).map_err(|_| e))
}

fn stamp(path: &std::path::Path) -> Result<String> {
    let meta = path.metadata().map_err(|e| io_error("read", path, e))?;
    let changed = meta
        .modified()
        .ok()
        .and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
    Ok(format!("{}-{}", meta.len(), changed.map_or(0, |d| d.as_nanos())))
}

/// Rows, and the position right behind them.
type Placed = (RecordBatch, Position);

/// A scan that comes back from its thread, with the memory that was reserved for what it found.
type Scanned = (Scan, Hold, Result<Option<Placed>>);

/// Reads a partition. The scan works on a blocking thread and comes back with its batch, so a dropped `next` loses
/// nothing: the work goes on and the following call picks it up.
struct FileReader {
    table: Arc<TableId>,
    context: ReadContext,
    scan: Option<Scan>,
    working: Option<JoinHandle<Scanned>>,
    /// A batch that waits for the memory it turned out to need.
    ready: Option<Placed>,
    boundary: Option<Position>,
}

impl FileReader {
    fn give(&mut self, rows: RecordBatch, position: Position, hold: Hold) -> Option<Event> {
        self.boundary = Some(position);
        Some(Event::Rows(ChangeBatch::inserts(self.table.clone(), rows, hold)))
    }
}

#[async_trait]
impl Reader for FileReader {
    async fn next(&mut self) -> Result<Option<Event>> {
        if let Some(position) = self.boundary.take() {
            return Ok(Some(Event::Boundary {
                position,
                committed_at: None,
                tx: None,
            }));
        }
        if self.context.cancel.is_cancelled() {
            return Err(Error::new(code::INTERRUPTED, "reading was stopped"));
        }
        if self.ready.is_none() {
            if self.working.is_none() {
                let Some(scan) = &self.scan else {
                    return Err(Error::bug("a file reader was used after it failed"));
                };
                let hold = self.context.budget.reserve(scan.estimate()).await;
                let mut scan = self.scan.take().expect("checked above");
                self.working = Some(tokio::task::spawn_blocking(move || {
                    let next = scan.next();
                    (scan, hold, next)
                }));
            }
            let ended = self.working.as_mut().expect("set above").await;
            self.working = None;
            let (scan, hold, next) = ended.map_err(|e| Error::bug(format!("reading a file died: {e}")))?;
            let estimated = scan.estimate();
            let next = next?;
            self.scan = Some(scan);
            let Some((rows, position)) = next else {
                return Ok(None);
            };
            if rows.get_array_memory_size() <= 2 * estimated.max(self.context.batch_bytes) {
                return Ok(self.give(rows, position, hold));
            }
            self.ready = Some((rows, position));
        }
        // More than was thought: all of it is reserved anew, without holding the first part while waiting.
        let bytes = self.ready.as_ref().map_or(0, |(rows, _)| rows.get_array_memory_size());
        let hold = self.context.budget.reserve(bytes).await;
        let (rows, position) = self.ready.take().expect("set above");
        Ok(self.give(rows, position, hold))
    }
}

/// Whether the files of a folder beside those of a table would be lost if it were replaced.
pub(super) fn strangers(located: &Located) -> Result<Vec<String>> {
    if located.shape == Shape::File {
        return Ok(Vec::new());
    }
    let names = store::list(&located.root)?;
    Ok(names
        .into_iter()
        .filter(|n| super::table::manifest_version(n).is_none() && !n.starts_with('.') && !n.starts_with("part-"))
        .filter(|n| !located.files.iter().any(|f| f.name == *n))
        .collect())
}
