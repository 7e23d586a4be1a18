//! Connections: each on a named thread with a queue of work, and what SQLite's errors mean.

use super::{SqliteConfig, Synchronous};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, InterruptHandle, OpenFlags, ffi};
use synctool_core::error::{Error, Result, code};
use tokio::sync::{mpsc, oneshot};

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Reading; a missing file is an error.
    Read,
    /// Looking at a destination; a missing file is an error. A journal that a killed writer left is rolled back.
    Look,
    /// Writing; a missing file is created.
    Write,
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A thread that owns a connection (inside `S`) and works off a queue. Dropping this interrupts what is running; the
/// connection is closed, which rolls back what was not committed.
pub(super) struct Worker<S> {
    /// Gone once the worker is being closed.
    queue: Option<mpsc::UnboundedSender<Job<S>>>,
    interrupt: InterruptHandle,
    /// Ends when the connection is closed.
    closed: oneshot::Receiver<()>,
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        if self.queue.is_some() {
            self.interrupt.interrupt();
        }
    }
}

impl<S: 'static> Worker<S> {
    /// Opens a connection on a new thread and builds the thread's state around it.
    pub(super) async fn open(
        config: std::sync::Arc<SqliteConfig>,
        access: Access,
        name: &str,
        state: impl FnOnce(Connection) -> S + Send + 'static,
    ) -> Result<Self> {
        let (queue, mut jobs) = mpsc::unbounded_channel::<Job<S>>();
        let (ready, opened) = oneshot::channel();
        let (closing, closed) = oneshot::channel::<()>();
        std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                let conn = match open(&config, access) {
                    Ok(conn) => conn,
                    Err(e) => {
                        let _ = ready.send(Err(e));
                        return;
                    }
                };
                let interrupt = conn.get_interrupt_handle();
                let mut state = state(conn);
                if ready.send(Ok(interrupt)).is_err() {
                    return;
                }
                while let Some(job) = jobs.blocking_recv() {
                    job(&mut state);
                }
                drop(state);
                drop(closing);
            })
            .map_err(|e| Error::new(code::SERVER_BUSY, "no thread could be started for SQLite").caused_by(e))?;
        let interrupt = opened.await.map_err(|_| gone())??;
        Ok(Worker {
            queue: Some(queue),
            interrupt,
            closed,
        })
    }

    /// Closes the connection and waits until it is. The last one of a file folds its write-ahead log back into it, which
    /// an interruption or the end of the process would leave lying beside it.
    pub(super) async fn close(mut self) {
        self.queue = None;
        let _ = (&mut self.closed).await;
    }

    /// Stops the statement that is running, if one is.
    pub(super) fn interrupt(&self) {
        self.interrupt.interrupt();
    }

    /// Runs work on the thread and waits for it without blocking the runtime.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.start(work)?.await.map_err(|_| gone())?
    }

    /// Queues work; the answer comes by the returned channel, which outlives a dropped call.
    pub(super) fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T>>> {
        let (reply, answer) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _ = reply.send(work(state));
        });
        let queue = self.queue.as_ref().ok_or_else(gone)?;
        queue.send(job).map_err(|_| gone())?;
        Ok(answer)
    }
}

pub(super) fn gone() -> Error {
    Error::bug("a SQLite thread ended before its work was done")
}

/// Opens a connection for one piece of work.
pub(super) async fn with_connection<T: Send + 'static>(
    config: &std::sync::Arc<SqliteConfig>,
    access: Access,
    work: impl FnOnce(&mut Connection) -> Result<T> + Send + 'static,
) -> Result<T> {
    let path = config.path.display().to_string();
    async {
        let worker = Worker::open(config.clone(), access, "sqlite-catalog", |conn| conn).await?;
        let done = worker.call(work).await;
        worker.close().await;
        done
    }
    .await
    .map_err(|e: Error| e.at("file", path))
}

/// Opens a connection and sets it up. Blocks.
pub(super) fn open(config: &SqliteConfig, access: Access) -> Result<Connection> {
    let path = &config.path;
    let at_file = |e: Error| e.at("file", path.display().to_string());
    let found = std::fs::metadata(path);
    let new = match (&found, access) {
        (Ok(m), _) if m.is_dir() => {
            return Err(at_file(
                Error::new(code::FILE, "the SQLite path is a folder").hint("give the path of a database file"),
            ));
        }
        (Ok(m), _) => m.len() == 0,
        (Err(e), Access::Read | Access::Look) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(at_file(
                Error::new(code::DATABASE_MISSING, "the SQLite file does not exist")
                    .hint("check the path; a source is never created"),
            ));
        }
        (Err(e), Access::Read | Access::Look) => {
            return Err(at_file(
                Error::new(code::FILE, format!("the SQLite file cannot be read: {}", e.kind()))
                    .hint("check the rights of the file and its folder"),
            ));
        }
        (Err(_), Access::Write) => {
            let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
            if folder.is_some_and(|p| !p.is_dir()) {
                return Err(at_file(
                    Error::new(code::FILE, "the folder of the SQLite file does not exist").hint("create the folder"),
                ));
            }
            true
        }
    };
    let flags = OpenFlags::SQLITE_OPEN_NO_MUTEX
        | match access {
            Access::Read => OpenFlags::SQLITE_OPEN_READ_ONLY,
            Access::Look => OpenFlags::SQLITE_OPEN_READ_WRITE,
            Access::Write => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE,
        };
    let opening = || "opening the database".to_string();
    let set_up = || -> rusqlite::Result<Connection> {
        let conn = Connection::open_with_flags(path, flags)?;
        conn.busy_timeout(config.busy_timeout)?;
        conn.set_prepared_statement_cache_capacity(64);
        conn.pragma_update(None, "foreign_keys", false)?;
        super::compare::register(&conn)?;
        if access == Access::Write {
            conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
            // A rename must not rewrite the views, triggers and foreign keys that mean the table by name.
            conn.pragma_update(None, "legacy_alter_table", true)?;
            conn.pragma_update(None, "cache_size", -((config.cache_bytes / 1024).max(2000) as i64))?;
            if new {
                conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
            }
            conn.pragma_update(
                None,
                "synchronous",
                match config.synchronous {
                    Synchronous::Full => "FULL",
                    Synchronous::Normal => "NORMAL",
                },
            )?;
        }
        // The first look at the file: it shows one that is no database, or may not be read.
        conn.query_row("PRAGMA schema_version", [], |_| Ok(()))?;
        Ok(conn)
    };
    set_up().map_err(failed(opening)).map_err(at_file)
}

/// Turns SQLite's error into ours, with what was being done. SQLite's messages name tables and columns, never values.
pub(super) fn failed(doing: impl FnOnce() -> String) -> impl FnOnce(rusqlite::Error) -> Error {
    move |e| {
        let doing = doing();
        let Some(found) = e.sqlite_error() else {
            return Error::new(code::SERVER_ERROR, format!("{doing} failed")).caused_by(e);
        };
        let (code, what, hint) = meaning(found.code, found.extended_code);
        let detail = match &e {
            rusqlite::Error::SqliteFailure(_, Some(text)) => format!(": {text}"),
            rusqlite::Error::SqlInputError { msg, .. } => format!(": {msg}"),
            _ => String::new(),
        };
        let error = Error::new(code, format!("{doing} failed: {what}{detail}")).caused_by(e);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

fn meaning(
    error: ErrorCode,
    extended: i32,
) -> (&'static synctool_core::error::Code, &'static str, Option<&'static str>) {
    match error {
        ErrorCode::DatabaseBusy if extended == ffi::SQLITE_BUSY_SNAPSHOT => (
            code::CONFLICT,
            "another connection wrote after this transaction began",
            None,
        ),
        ErrorCode::DatabaseBusy => (
            code::SERVER_BUSY,
            "another process holds the database's lock",
            Some(
                "wait for it or end it (`lsof` on the file shows who), or raise busy_timeout; a database that is read and \
                 written at the same time wants `PRAGMA journal_mode = WAL`",
            ),
        ),
        ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed => {
            (code::CONFLICT, "another connection holds the table's lock", None)
        }
        ErrorCode::SchemaChanged => (code::CONFLICT, "the database's schema changed meanwhile", None),
        ErrorCode::DiskFull => (
            code::DISK_FULL,
            "the disk is full",
            Some("free space beside the database file, then run again: it goes on from the last commit"),
        ),
        ErrorCode::ReadOnly if matches!(extended, ffi::SQLITE_READONLY_ROLLBACK | ffi::SQLITE_READONLY_RECOVERY) => (
            code::FILE,
            "a writer died and left its journal, which a reader may not roll back",
            Some("open the database once for writing: `sqlite3 FILE 'PRAGMA schema_version'`"),
        ),
        ErrorCode::ReadOnly => (
            code::PERMISSION,
            "the file may not be written",
            Some("give this user write rights on the file and on its folder (SQLite keeps a journal beside it)"),
        ),
        ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied => (
            code::PERMISSION,
            "a right is missing",
            Some("check the rights of the file and its folder"),
        ),
        ErrorCode::CannotOpen => (
            code::FILE,
            "the file or its journal cannot be opened",
            Some(
                "check the rights of the file and its folder; a database in WAL mode needs a writable folder even to be read",
            ),
        ),
        ErrorCode::SystemIoFailure => (code::FILE, "the disk reported an error", None),
        ErrorCode::NotADatabase => (
            code::FILE_MALFORMED,
            "the file is not a SQLite database, or it is encrypted",
            None,
        ),
        ErrorCode::DatabaseCorrupt => (
            code::FILE_MALFORMED,
            "the database is damaged",
            Some("`PRAGMA integrity_check` shows where; restore it from a backup or with `.recover`"),
        ),
        ErrorCode::ConstraintViolation
            if matches!(
                extended,
                ffi::SQLITE_CONSTRAINT_PRIMARYKEY | ffi::SQLITE_CONSTRAINT_UNIQUE | ffi::SQLITE_CONSTRAINT_ROWID
            ) =>
        {
            (code::DUPLICATE_KEY, "two rows have the same key", None)
        }
        ErrorCode::ConstraintViolation => (code::CONSTRAINT, "a constraint is broken", None),
        ErrorCode::TypeMismatch => (code::VALUE_UNSUPPORTED, "a rowid must be an integer", None),
        ErrorCode::TooBig => (
            code::ROW_TOO_LARGE,
            "a value is larger than SQLite's limit of 1 GB",
            None,
        ),
        ErrorCode::OperationInterrupted => (code::INTERRUPTED, "it was interrupted", None),
        ErrorCode::OutOfMemory => (code::SERVER_BUSY, "there is not enough memory", None),
        _ => (code::SERVER_ERROR, "SQLite reported an error", None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_database() -> (tempfile::TempDir, SqliteConfig) {
        let dir = tempfile::tempdir().unwrap();
        let config = SqliteConfig::new(dir.path().join("a.db"));
        open(&config, Access::Write)
            .unwrap()
            .execute_batch("CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT UNIQUE NOT NULL)")
            .unwrap();
        (dir, config)
    }

    #[test]
    fn a_full_disk_and_broken_constraints_are_told_apart() {
        let (_dir, config) = small_database();
        let conn = open(&config, Access::Write).unwrap();
        let run = |sql: &str| {
            conn.execute_batch(sql)
                .map_err(failed(|| "writing".into()))
                .unwrap_err()
        };
        conn.execute_batch("INSERT INTO t VALUES (1, 'secret')").unwrap();
        let duplicate = run("INSERT INTO t VALUES (2, 'secret')");
        assert_eq!(duplicate.code(), code::DUPLICATE_KEY);
        assert!(!duplicate.to_string().contains("secret"), "{duplicate}");
        assert_eq!(run("INSERT INTO t VALUES (3, NULL)").code(), code::CONSTRAINT);
        let pages: i64 = conn.query_row("PRAGMA page_count", [], |r| r.get(0)).unwrap();
        conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))
            .unwrap();
        assert_eq!(
            run("INSERT INTO t VALUES (4, hex(zeroblob(100000)))").code(),
            code::DISK_FULL
        );
    }

    #[test]
    fn files_that_cannot_be_used_say_why() {
        let (dir, config) = small_database();
        let at = |name: &str| SqliteConfig::new(dir.path().join(name));
        let code_of = |c: &SqliteConfig, a| open(c, a).map(|_| ()).unwrap_err().code();
        assert_eq!(code_of(&at("missing.db"), Access::Read), code::DATABASE_MISSING);
        assert!(!dir.path().join("missing.db").exists(), "a source was created");
        assert_eq!(code_of(&at("no/such.db"), Access::Write), code::FILE);
        assert_eq!(code_of(&at("."), Access::Read), code::FILE);
        std::fs::write(
            dir.path().join("text.db"),
            "this is not a database, not at all, never was, never will be; it is only text, and text, and text",
        )
        .unwrap();
        assert_eq!(code_of(&at("text.db"), Access::Read), code::FILE_MALFORMED);
        let mode: String = open(&config, Access::Read)
            .unwrap()
            .query_row("PRAGMA journal_mode", [], |r| r.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn a_held_lock_is_busy_and_worth_another_try() {
        let (_dir, mut config) = small_database();
        config.busy_timeout = std::time::Duration::from_millis(1);
        let (a, b) = (
            open(&config, Access::Write).unwrap(),
            open(&config, Access::Write).unwrap(),
        );
        a.execute_batch("BEGIN IMMEDIATE").unwrap();
        let e = b
            .execute_batch("BEGIN IMMEDIATE")
            .map_err(failed(|| "x".into()))
            .unwrap_err();
        assert_eq!(e.code(), code::SERVER_BUSY);
        assert!(e.kind().is_transient());
    }
}
