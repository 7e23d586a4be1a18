//! The store in one SQLite file, for all processes of one host. The connection lives on a thread of its own, because
//! SQLite blocks.

use super::sql::{Database, MIGRATIONS, Rows, SqlStore, Statement, Value};
use super::{Holder, RunLock, file_lock, names};
use async_trait::async_trait;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, ErrorCode, TransactionBehavior, params_from_iter};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use tokio::sync::oneshot;

/// How long to wait for another process that is writing.
const BUSY: Duration = Duration::from_secs(10);

/// [`Store`](super::Store) in `state.db` of a data directory.
pub type SqliteStore = SqlStore<Sqlite>;

type Answer = oneshot::Sender<Result<Vec<Rows>>>;

/// The file and the thread that works on it.
pub struct Sqlite {
    place: String,
    locks: PathBuf,
    work: mpsc::Sender<(Vec<Statement>, Answer)>,
}

impl SqlStore<Sqlite> {
    /// Opens, and creates if missing, the store of a data directory: `state.db`, with the locks in `locks` beside it.
    pub async fn open(data_dir: &Path) -> Result<Self> {
        Self::open_file(&data_dir.join("state.db")).await
    }

    /// Opens, and creates if missing, a store by its file.
    pub async fn open_file(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("")).to_path_buf();
        std::fs::create_dir_all(&folder).map_err(|e| {
            Error::new(
                code::STATE_STORE,
                format!("the data directory {} cannot be made: {e}", folder.display()),
            )
            .hint("name a writable one with --data-dir")
        })?;
        let path = path.to_path_buf();
        let place = path.display().to_string();
        let (work, tasks) = mpsc::channel();
        let (opened, ready) = oneshot::channel();
        std::thread::Builder::new()
            .name("state-sqlite".into())
            .spawn(move || serve(&path, opened, &tasks))
            .map_err(|e| Error::new(code::STATE_STORE, format!("no thread for the state store: {e}")))?;
        ready.await.map_err(|_| died())??;
        Ok(SqlStore {
            database: Sqlite {
                place,
                locks: folder.join("locks"),
                work,
            },
        })
    }
}

fn died() -> Error {
    Error::bug("the state store's thread died")
}

fn serve(path: &Path, opened: oneshot::Sender<Result<()>>, tasks: &mpsc::Receiver<(Vec<Statement>, Answer)>) {
    let mut connection = match open(path) {
        Ok(connection) => {
            let _ = opened.send(Ok(()));
            connection
        }
        Err(e) => {
            let _ = opened.send(Err(e));
            return;
        }
    };
    while let Ok((statements, answer)) = tasks.recv() {
        let _ = answer.send(run(&mut connection, &statements).map_err(|e| failed(path, &e)));
    }
}

fn failed(path: &Path, e: &rusqlite::Error) -> Error {
    let place = path.display();
    let (code, hint) = match e.sqlite_error_code() {
        Some(ErrorCode::DiskFull) => (code::DISK_FULL, "make room and run again"),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (
            code::STATE_STORE,
            "move the file away: a new one is made, and progress is taken from the destination",
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            code::STATE_STORE,
            "another process keeps it locked; see who has it open and run again",
        ),
        _ => (
            code::STATE_STORE,
            "check that the data directory is writable and on a local disk",
        ),
    };
    Error::new(code, format!("the state store {place} cannot be used: {e}")).hint(hint)
}

fn open(path: &Path) -> Result<Connection> {
    let sql = |e: rusqlite::Error| failed(path, &e);
    let mut connection = Connection::open(path).map_err(sql)?;
    connection.busy_timeout(BUSY).map_err(sql)?;
    // FULL: private areas promise to be durable when a put returns.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")
        .map_err(sql)?;
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(sql)?;
    let version: i64 = transaction
        .pragma_query_value(None, "user_version", |row| row.get(0))
        .map_err(sql)?;
    let version = usize::try_from(version).unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(super::sql::newer(&path.display().to_string()));
    }
    if version < MIGRATIONS.len() {
        for text in MIGRATIONS[version..].iter().copied().flatten() {
            let text = text
                .replace("{blob}", "BLOB")
                .replace("{key}", "TEXT")
                .replace("{real}", "REAL");
            transaction.execute_batch(&text).map_err(sql)?;
        }
        transaction
            .pragma_update(None, "user_version", MIGRATIONS.len() as i64)
            .map_err(sql)?;
    }
    transaction.commit().map_err(sql)?;
    Ok(connection)
}

fn run(connection: &mut Connection, statements: &[Statement]) -> rusqlite::Result<Vec<Rows>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let mut answers = Vec::with_capacity(statements.len());
    for statement in statements {
        // Here `$n` would be a name, numbered by where it stands first; `?n` is the number itself.
        let mut prepared = transaction.prepare_cached(&statement.sql.replace('$', "?"))?;
        let columns = prepared.column_count();
        let mut rows = prepared.query(params_from_iter(&statement.values))?;
        let mut answer = Vec::new();
        while let Some(row) = rows.next()? {
            let values = (0..columns).map(|i| row.get_ref(i).map(value));
            answer.push(values.collect::<rusqlite::Result<Vec<Value>>>()?);
        }
        answers.push(answer);
    }
    transaction.commit()?;
    Ok(answers)
}

fn value(v: ValueRef<'_>) -> Value {
    match v {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(n) => Value::Int(n),
        ValueRef::Real(x) => Value::Real(x),
        ValueRef::Text(t) => Value::Text(String::from_utf8_lossy(t).into_owned()),
        ValueRef::Blob(b) => Value::Bytes(b.to_vec()),
    }
}

impl rusqlite::ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
        Ok(rusqlite::types::ToSqlOutput::Borrowed(match self {
            Value::Null => ValueRef::Null,
            Value::Int(n) => ValueRef::Integer(*n),
            Value::Real(x) => ValueRef::Real(*x),
            Value::Text(t) => ValueRef::Text(t.as_bytes()),
            Value::Bytes(b) => ValueRef::Blob(b),
        }))
    }
}

impl Sqlite {
    fn lock_file(&self, pipeline: &str) -> PathBuf {
        self.locks.join(format!("{}.lock", names::file_name(pipeline)))
    }
}

#[async_trait]
impl Database for Sqlite {
    fn place(&self) -> &str {
        &self.place
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<Rows>> {
        let (answer, done) = oneshot::channel();
        self.work.send((statements, answer)).map_err(|_| died())?;
        done.await.map_err(|_| died())?
    }

    async fn lock(&self, pipeline: &str) -> Result<RunLock> {
        file_lock::take(&self.lock_file(pipeline), pipeline).await
    }

    async fn try_lock(&self, pipeline: &str) -> Result<Option<RunLock>> {
        file_lock::try_take(&self.lock_file(pipeline), pipeline)
    }

    async fn holder(&self, pipeline: &str) -> Result<Option<Holder>> {
        file_lock::holder(&self.lock_file(pipeline))
    }
}
