//! Connections: each lives on a named thread with a queue of commands, because every call of the library blocks.

use super::DuckDbConfig;
use adbc_core::options::{AdbcVersion, IngestMode, OptionDatabase, OptionStatement, OptionValue};
use adbc_core::{Connection as _, Database as _, Driver as _, Optionable as _, Statement as _};
use adbc_driver_manager::{ManagedConnection, ManagedDatabase, ManagedDriver};
use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, RecordBatchReader, StringArray};
use arrow_schema::{DataType, Field, Schema};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use synctool_core::error::{Error, Result, code};
use tokio::sync::oneshot;

const LIBRARY_HELP: &str = "point `library:` of the datastore (or SYNCTOOL_DUCKDB_LIBRARY) to libduckdb.so of DuckDB 1.5: \
    it is in DuckDB's release archive libduckdb-linux-amd64.zip and in the npm package @duckdb/node-bindings-linux-x64";

/// A file that this process has open. Its locks are the process's: a second instance of the same file would take the
/// first one's pages for its own, so there is one for as long as anybody has it, one of its connections or a result. The
/// last holder closes it before anybody may open it anew.
struct Instance {
    path: PathBuf,
}

/// An open file, and how many hold it.
struct Open {
    managed: ManagedDatabase,
    holders: usize,
}

/// The files that are open, by their real paths.
static OPEN: Mutex<BTreeMap<PathBuf, Open>> = Mutex::new(BTreeMap::new());

impl Instance {
    /// The instance of a file; made by `open` if there is none.
    fn of(path: &Path, open: impl FnOnce() -> Result<ManagedDatabase>) -> Result<Instance> {
        // What does not exist yet is known by its folder.
        let real = path.canonicalize().or_else(|_| {
            let folder = path
                .parent()
                .filter(|p| !p.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            folder
                .canonicalize()
                .map(|folder| folder.join(path.file_name().unwrap_or_default()))
        });
        let path = real.unwrap_or_else(|_| path.to_owned());
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let held = match all.entry(path.clone()) {
            Entry::Occupied(held) => held.into_mut(),
            Entry::Vacant(free) => free.insert(Open {
                managed: open()?,
                holders: 0,
            }),
        };
        held.holders += 1;
        Ok(Instance { path })
    }

    fn connect(&self) -> Result<ManagedConnection> {
        let all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let held = all.get(&self.path).ok_or_else(|| Error::bug("a closed DuckDB file"))?;
        held.managed
            .new_connection()
            .map_err(|e| map_error(e, "connecting to DuckDB"))
    }
}

impl Clone for Instance {
    fn clone(&self) -> Self {
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(&self.path) {
            held.holders += 1;
        }
        Instance {
            path: self.path.clone(),
        }
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let mut all = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = all.get_mut(&self.path) {
            held.holders -= 1;
            if held.holders == 0 {
                // Closing writes into the file, so it happens while nobody can open it.
                all.remove(&self.path);
            }
        }
    }
}

/// An open database file.
pub(super) struct Database {
    instance: Instance,
    pub(super) config: DuckDbConfig,
    /// Every sink holds a copy, so that it can be told whether one is at work.
    pub(super) sinks: Arc<()>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Instance").field("path", &self.path).finish()
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("path", &self.config.path).finish()
    }
}

fn library(config: &DuckDbConfig) -> std::path::PathBuf {
    config
        .library
        .clone()
        .or_else(|| std::env::var_os("SYNCTOOL_DUCKDB_LIBRARY").map(Into::into))
        .unwrap_or_else(|| Path::new("libduckdb.so").to_path_buf())
}

impl Database {
    pub(super) async fn open(config: DuckDbConfig) -> Result<Database> {
        if !config.create && !config.path.exists() {
            return Err(Error::new(
                code::DATABASE_MISSING,
                format!("{} does not exist", config.path.display()),
            )
            .hint("check `path` of the datastore"));
        }
        let opened = tokio::task::spawn_blocking(move || -> Result<Database> {
            let library = library(&config);
            let mut driver =
                ManagedDriver::load_dynamic_from_filename(&library, Some(b"duckdb_adbc_init"), AdbcVersion::V110)
                    .map_err(|e| {
                        Error::new(
                            code::UNSUPPORTED,
                            format!("DuckDB's library {} cannot be loaded", library.display()),
                        )
                        .caused_by(e)
                        .hint(LIBRARY_HELP)
                    })?;
            let path = OptionValue::String(config.path.to_string_lossy().into_owned());
            let instance = Instance::of(&config.path, || {
                driver
                    .new_database_with_opts([(OptionDatabase::Other("path".into()), path)])
                    .map_err(|e| map_error(e, &format!("opening {}", config.path.display())))
            })?;
            Ok(Database {
                instance,
                config,
                sinks: Arc::new(()),
            })
        });
        opened.await.map_err(|e| Error::bug(format!("opening DuckDB: {e}")))?
    }

    /// A connection of its own, on a thread of its own.
    pub(super) async fn session(&self) -> Result<Session> {
        let mut connection = self.instance.connect()?;
        // Dates and times mean the same everywhere.
        execute(&mut connection, "SET TimeZone = 'UTC'", &[]).ok();
        let (queue, commands) = mpsc::channel::<Command>();
        let instance = self.instance.clone();
        std::thread::Builder::new()
            .name("duckdb".into())
            .spawn(move || {
                while let Ok(command) = commands.recv() {
                    command(&mut connection);
                }
                // The last transaction rolls back with its connection, and the file is closed behind the last of these.
                drop(connection);
                drop(instance);
            })
            .map_err(|e| Error::new(code::SERVER_BUSY, "no thread for DuckDB").caused_by(e))?;
        Ok(Session {
            queue,
            _instance: self.instance.clone(),
        })
    }
}

type Command = Box<dyn FnOnce(&mut ManagedConnection) + Send>;

/// A connection's queue.
#[derive(Debug, Clone)]
pub(super) struct Session {
    queue: mpsc::Sender<Command>,
    _instance: Instance,
}

impl Session {
    /// Runs `work` on the connection's thread.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut ManagedConnection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let gone = || Error::new(code::CONNECTION_LOST, "DuckDB's thread is gone");
        self.queue
            .send(Box::new(move |connection| {
                let _ = done.send(work(connection));
            }))
            .map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// Runs a query and gives its rows as texts.
    pub(super) async fn rows(&self, sql: impl Into<String>, parameters: &[&str]) -> Result<Vec<Vec<Option<String>>>> {
        let (sql, parameters) = (sql.into(), owned(parameters));
        self.run(move |c| rows(c, &sql, &borrowed(&parameters))).await
    }

    /// Starts a query whose batches are pulled one by one.
    pub(super) async fn stream(&self, sql: String, parameters: Vec<String>) -> Result<Stream> {
        let session = self.clone();
        let reader = self.run(move |c| query(c, &sql, &borrowed(&parameters))).await?;
        Ok(Stream {
            session,
            reader: Some(reader),
        })
    }
}

/// The batches of a query.
pub(super) struct Stream {
    // Goes before the session, which has the file open that this reads.
    reader: Option<Box<dyn RecordBatchReader + Send>>,
    session: Session,
}

impl Stream {
    /// The next batch. Cancel safe only in that a dropped call ends the stream.
    pub(super) async fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Some(mut reader) = self.reader.take() else {
            return Err(Error::new(code::CONNECTION_LOST, "the query was given up"));
        };
        let (reader, batch) = self
            .session
            .run(move |_| {
                let batch = reader.next().transpose().map_err(|e| {
                    Error::new(code::SERVER_ERROR, "DuckDB stopped in the middle of a query").caused_by(e)
                })?;
                Ok((reader, batch))
            })
            .await?;
        self.reader = Some(reader);
        Ok(batch)
    }
}

fn owned(parameters: &[&str]) -> Vec<String> {
    parameters.iter().map(ToString::to_string).collect()
}

fn borrowed(parameters: &[String]) -> Vec<&str> {
    parameters.iter().map(String::as_str).collect()
}

fn statement(
    connection: &mut ManagedConnection,
    sql: &str,
    parameters: &[&str],
) -> Result<adbc_driver_manager::ManagedStatement> {
    let fail = |e| map_error(e, "a statement");
    let mut statement = connection.new_statement().map_err(fail)?;
    statement.set_sql_query(sql).map_err(fail)?;
    if !parameters.is_empty() {
        let fields: Vec<Field> = (0..parameters.len())
            .map(|i| Field::new(format!("p{i}"), DataType::Utf8, true))
            .collect();
        let values = parameters
            .iter()
            .map(|p| Arc::new(StringArray::from(vec![*p])) as ArrayRef)
            .collect();
        let batch =
            RecordBatch::try_new(Arc::new(Schema::new(fields)), values).map_err(|e| Error::bug(e.to_string()))?;
        statement.prepare().map_err(fail)?;
        statement.bind(batch).map_err(fail)?;
    }
    Ok(statement)
}

/// Ends the open transaction: all that was done in it, or nothing. What it locked is free at once either way: an heir
/// need not wait until this session has ended.
pub(super) fn end<T>(connection: &mut ManagedConnection, done: Result<T>) -> Result<T> {
    let result = done.and_then(|v| execute(connection, "COMMIT", &[]).map(|_| v));
    if result.is_err() {
        // The first error is the one to tell.
        let _ = execute(connection, "ROLLBACK", &[]);
    }
    result
}

/// Runs work in one transaction.
pub(super) fn transaction<T>(
    connection: &mut ManagedConnection,
    work: impl FnOnce(&mut ManagedConnection) -> Result<T>,
) -> Result<T> {
    execute(connection, "BEGIN TRANSACTION", &[])?;
    let done = work(connection);
    end(connection, done)
}

/// Runs a statement and says how many rows it changed, where DuckDB says so.
pub(super) fn execute(connection: &mut ManagedConnection, sql: &str, parameters: &[&str]) -> Result<u64> {
    let changed = statement(connection, sql, parameters)?
        .execute_update()
        .map_err(|e| map_error(e, "a statement"))?;
    Ok(changed.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
}

/// Starts a query.
pub(super) fn query(
    connection: &mut ManagedConnection,
    sql: &str,
    parameters: &[&str],
) -> Result<Box<dyn RecordBatchReader + Send>> {
    statement(connection, sql, parameters)?
        .execute()
        .map_err(|e| map_error(e, "a query"))
}

/// Runs a query whose columns are all VARCHAR.
pub(super) fn rows(
    connection: &mut ManagedConnection,
    sql: &str,
    parameters: &[&str],
) -> Result<Vec<Vec<Option<String>>>> {
    let mut out = Vec::new();
    for batch in query(connection, sql, parameters)? {
        let batch = batch.map_err(|e| Error::new(code::SERVER_ERROR, "DuckDB stopped in a query").caused_by(e))?;
        for row in 0..batch.num_rows() {
            let cell = |c: &ArrayRef| {
                let text = arrow_cast::cast(c, &DataType::Utf8).map_err(|e| Error::bug(e.to_string()))?;
                let text = text.as_string::<i32>();
                Ok((!arrow_array::Array::is_null(text, row)).then(|| text.value(row).to_string()))
            };
            out.push(batch.columns().iter().map(cell).collect::<Result<Vec<_>>>()?);
        }
    }
    Ok(out)
}

/// Appends a batch to a temporary table; the first batch makes it.
pub(super) fn ingest(connection: &mut ManagedConnection, table: &str, first: bool, batch: RecordBatch) -> Result<()> {
    let fail = |e| map_error(e, "loading rows");
    let mut statement = connection.new_statement().map_err(fail)?;
    let mode = if first { IngestMode::Create } else { IngestMode::Append };
    statement
        .set_option(OptionStatement::TargetTable, OptionValue::String(table.into()))
        .map_err(fail)?;
    statement
        .set_option(OptionStatement::IngestMode, mode.into())
        .map_err(fail)?;
    statement
        .set_option(OptionStatement::Temporary, OptionValue::String("true".into()))
        .map_err(fail)?;
    statement.bind(batch).map_err(fail)?;
    statement.execute_update().map_err(fail)?;
    Ok(())
}

/// The library gives kinds only in words: the first of them names the kind. Messages about values hold values, so
/// only the kind is kept of those.
fn map_error(error: adbc_core::error::Error, what: &str) -> Error {
    let text = error.message.clone();
    let kind = text
        .split(" Error:")
        .next()
        .unwrap_or_default()
        .rsplit(": ")
        .next()
        .unwrap_or_default()
        .trim();
    let lower = text.to_lowercase();
    let (code, message) = if lower.contains("no space left") || lower.contains("disk full") {
        (code::DISK_FULL, format!("{what}: the disk is full"))
    } else if lower.contains("lock on file") {
        (
            code::SERVER_BUSY,
            format!("{what}: another process has the database open"),
        )
    } else if lower.contains("not a valid duckdb") {
        (
            code::FILE_MALFORMED,
            format!("{what}: the file is not a DuckDB database, or of a newer version"),
        )
    } else {
        match kind {
            "Constraint" if lower.contains("duplicate key") || lower.contains("primary key") => {
                (code::DUPLICATE_KEY, format!("{what}: two rows have the same key"))
            }
            "Constraint" => (code::CONSTRAINT, format!("{what}: a row breaks a constraint")),
            "Conversion" | "Out of Range" | "Invalid Input" => (
                code::VALUE_UNSUPPORTED,
                format!("{what}: a value does not fit its column"),
            ),
            "Transaction" | "TransactionContext" => {
                (code::CONFLICT, format!("{what}: lost against another transaction"))
            }
            "Permission" => (code::PERMISSION, format!("{what}: the file may not be written")),
            "Out of Memory" => (code::SERVER_BUSY, format!("{what}: DuckDB is out of memory")),
            "IO" => (code::FILE, format!("{what}: {}", first_line(&text))),
            "Binder" if lower.contains("not found in from clause") => {
                (code::COLUMN_MISSING, format!("{what}: {}", first_line(&text)))
            }
            _ => (code::SERVER_ERROR, format!("{what}: {}", first_line(&text))),
        }
    };
    Error::new(code, message).at("server", "duckdb")
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}
