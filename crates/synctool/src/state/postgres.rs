//! The store in a schema of a PostgreSQL database, for many hosts.
//!
//! A run lock is a session's advisory lock: it ends with the session, so with the process or, if the whole host
//! vanishes, with the TCP connection about a minute later. The row beside it only names the holder.

use super::sql::{Database, MIGRATIONS, Rows, SqlStore, Statement, Value, newer};
use super::{Held, Holder, RunLock, locked};
use async_trait::async_trait;
use chrono::DateTime;
use futures::{StreamExt, TryStreamExt};
use std::collections::HashMap;
use std::time::Duration;
use synctool_connectors::postgres::{Connection, Postgres as Server, sql::ident};
use synctool_core::error::Result;
use tokio::sync::{Mutex, oneshot};
use tokio::time::{Instant, timeout};
use tokio_postgres::types::{FromSql, IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

/// The schema that is used if none is named.
const SCHEMA: &str = "synctool_state";

/// Others look whether a lock is free by taking it for a moment.
const PATIENCE: Duration = Duration::from_millis(500);
const STEP: Duration = Duration::from_millis(50);
/// A lock's session is asked so often whether it still lives …
const PULSE: Duration = Duration::from_secs(2);
/// … and is given up if it does not answer for so long, before the server gives it up.
const SILENCE: Duration = Duration::from_secs(30);

/// Statements sent before the first one is answered.
const IN_FLIGHT: usize = 128;

/// The server drops the session of a host that vanished, and its lock with it, after about a minute.
const KEEPALIVE: &str = "SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3; \
     SET tcp_user_timeout = 60000";

/// [`Store`](super::Store) in a schema of a PostgreSQL database.
pub type PostgresStore = SqlStore<Postgres>;

/// The database and the one session that works on the tables.
pub struct Postgres {
    server: Server,
    schema: String,
    place: String,
    session: Mutex<Option<Session>>,
}

struct Session {
    connection: Connection,
    prepared: HashMap<&'static str, tokio_postgres::Statement>,
}

impl SqlStore<Postgres> {
    /// Opens, and creates if missing, the store in a schema (`None`: `synctool_state`). It needs a connection for itself
    /// and one for each run lock.
    pub async fn open(server: Server, schema: Option<&str>) -> Result<Self> {
        let schema = schema.unwrap_or(SCHEMA).to_string();
        let place = format!("{} schema {schema}", server.config().server());
        let database = Postgres {
            server,
            schema,
            place,
            session: Mutex::new(None),
        };
        database.migrate().await?;
        Ok(SqlStore { database })
    }
}

impl Postgres {
    /// A session that sees the tables by their bare names.
    async fn connect(&self) -> Result<Connection> {
        let connection = self.server.connect().await?;
        let path = format!("SET search_path = {}", ident(&self.schema));
        connection
            .batch_execute(&path)
            .await
            .map_err(|e| connection.error(e, "opening the state store"))?;
        Ok(connection)
    }

    /// The advisory lock's number for a pipeline of this schema, or for `""`, the schema itself.
    fn number(&self, pipeline: &str) -> i64 {
        xxh3_64(format!("synctool\0{}\0{pipeline}", self.schema).as_bytes()) as i64
    }

    async fn migrate(&self) -> Result<()> {
        let connection = self.connect().await?;
        connection.working(true);
        let what = "preparing the state store";
        let sql = async |text: &str| {
            connection
                .batch_execute(text)
                .await
                .map_err(|e| connection.error(e, what))
        };
        let number = async |text: &str, parameters: &[&(dyn ToSql + Sync)]| {
            connection
                .query_one(text, parameters)
                .await
                .map(|row| row.get::<_, i64>(0))
                .map_err(|e| connection.error(e, what))
        };
        sql("BEGIN").await?;
        sql(&format!("SELECT pg_advisory_xact_lock({})", self.number(""))).await?;
        // IF NOT EXISTS would ask for the right to create schemas even where this one is there.
        let found = "SELECT count(*) FROM pg_namespace WHERE nspname = $1";
        if number(found, &[&self.schema]).await? == 0 {
            sql(&format!("CREATE SCHEMA {}", ident(&self.schema))).await?;
        }
        let found = "SELECT count(*) FROM pg_tables WHERE schemaname = $1 AND tablename = 'version'";
        if number(found, &[&self.schema]).await? == 0 {
            sql(
                "CREATE TABLE version (version BIGINT NOT NULL); INSERT INTO version VALUES (0); \
                 CREATE TABLE locks (pipeline TEXT NOT NULL PRIMARY KEY, host TEXT NOT NULL, pid BIGINT NOT NULL, \
                 since BIGINT NOT NULL, session BIGINT NOT NULL)",
            )
            .await?;
        }
        let version = usize::try_from(number("SELECT version FROM version", &[]).await?).unwrap_or(usize::MAX);
        if version > MIGRATIONS.len() {
            return Err(newer(&self.place));
        }
        if version < MIGRATIONS.len() {
            for text in MIGRATIONS[version..].concat() {
                let text = text
                    .replace("{blob}", "BYTEA")
                    .replace("{key}", "TEXT COLLATE \"C\"")
                    .replace("{real}", "DOUBLE PRECISION");
                sql(&text).await?;
            }
            sql(&format!("UPDATE version SET version = {}", MIGRATIONS.len())).await?;
        }
        sql("COMMIT").await?;
        connection.working(false);
        *self.session.lock().await = Some(Session {
            connection,
            prepared: HashMap::new(),
        });
        Ok(())
    }
}

impl Session {
    async fn run(&mut self, statements: &[Statement]) -> Result<Vec<Rows>> {
        let Session { connection, prepared } = self;
        for statement in statements {
            if !prepared.contains_key(statement.sql) {
                let made = connection.prepare(statement.sql).await;
                let made = made.map_err(|e| connection.error(e, "using the state store"))?;
                prepared.insert(statement.sql, made);
            }
        }
        connection.working(true);
        let result = transaction(connection, prepared, statements).await;
        connection.working(false);
        result.map_err(|e| connection.error(e, "using the state store"))
    }
}

async fn transaction(
    connection: &mut Connection,
    prepared: &HashMap<&'static str, tokio_postgres::Statement>,
    statements: &[Statement],
) -> std::result::Result<Vec<Rows>, tokio_postgres::Error> {
    let transaction = connection.transaction().await?;
    let answer = async |statement: &Statement| {
        let values: Vec<&(dyn ToSql + Sync)> = statement.values.iter().map(|v| v as _).collect();
        let rows = transaction.query(&prepared[statement.sql], &values).await?;
        rows.iter()
            .map(|row| (0..row.len()).map(|i| row.try_get(i)).collect())
            .collect::<std::result::Result<Rows, _>>()
    };
    // Sent one after the other without waiting for the answers: a plan has many partitions.
    let answers: Vec<Rows> = futures::stream::iter(statements.iter().map(&answer))
        .buffered(IN_FLIGHT)
        .try_collect()
        .await?;
    transaction.commit().await?;
    Ok(answers)
}

#[async_trait]
impl Database for Postgres {
    fn place(&self) -> &str {
        &self.place
    }

    async fn transaction(&self, statements: Vec<Statement>) -> Result<Vec<Rows>> {
        let mut kept = self.session.lock().await;
        let mut session = match kept.take() {
            Some(session) if !session.connection.is_closed() => session,
            _ => Session {
                connection: self.connect().await?,
                prepared: HashMap::new(),
            },
        };
        let result = session.run(&statements).await;
        // A session that failed may be in any state; the next call makes a new one.
        if result.is_ok() {
            *kept = Some(session);
        }
        result
    }

    async fn lock(&self, pipeline: &str) -> Result<RunLock> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = self.try_lock(pipeline).await? {
                return Ok(lock);
            }
            if Instant::now() >= deadline {
                return Err(locked(pipeline, self.holder(pipeline).await?.as_ref()));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    async fn try_lock(&self, pipeline: &str) -> Result<Option<RunLock>> {
        let connection = self.connect().await?;
        let failed = |e| connection.error(e, "taking the run lock");
        connection.batch_execute(KEEPALIVE).await.map_err(failed)?;
        let number = self.number(pipeline);
        let taken = connection
            .query_one("SELECT pg_try_advisory_lock($1)", &[&number])
            .await
            .map_err(failed)?;
        if !taken.get::<_, bool>(0) {
            connection.close().await;
            return Ok(None);
        }
        let holder = Holder::here();
        connection
            .execute(
                "INSERT INTO locks (pipeline, host, pid, since, session) VALUES ($1, $2, $3, $4, pg_backend_pid()) \
                 ON CONFLICT (pipeline) DO UPDATE SET host = excluded.host, pid = excluded.pid, \
                 since = excluded.since, session = excluded.session",
                &[
                    &pipeline,
                    &holder.host,
                    &i64::from(holder.pid),
                    &holder.since.timestamp_millis(),
                ],
            )
            .await
            .map_err(failed)?;
        let lost = CancellationToken::new();
        let (release, released) = oneshot::channel();
        tokio::spawn(watch(connection, pipeline.to_string(), number, lost.clone(), released));
        Ok(Some(RunLock {
            pipeline: pipeline.into(),
            holder,
            lost,
            held: Box::new(HeldSession(release)),
        }))
    }

    async fn holder(&self, pipeline: &str) -> Result<Option<Holder>> {
        const SQL: &str = "SELECT l.host, l.pid, l.since FROM locks AS l WHERE l.pipeline = $1 AND EXISTS (SELECT 1 \
            FROM pg_locks AS p WHERE p.locktype = 'advisory' AND p.granted AND p.objsubid = 1 AND p.pid = l.session \
            AND ((p.classid::bigint << 32) | p.objid::bigint) = $2 \
            AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
        let values = vec![pipeline.into(), Value::Int(self.number(pipeline))];
        let statement = super::sql::statement(SQL, values);
        let mut rows = self.transaction(vec![statement]).await?.pop().unwrap_or_default();
        Ok(match rows.pop().as_deref() {
            Some([Value::Text(host), Value::Int(pid), Value::Int(since)]) => Some(Holder {
                host: host.clone(),
                pid: u32::try_from(*pid).unwrap_or_default(),
                since: DateTime::from_timestamp_millis(*since).unwrap_or_default(),
            }),
            _ => None,
        })
    }
}

/// A released lock is answered once the server knows.
struct HeldSession(oneshot::Sender<oneshot::Sender<()>>);

#[async_trait]
impl Held for HeldSession {
    async fn release(self: Box<Self>) {
        let (done, known) = oneshot::channel();
        if self.0.send(done).is_ok() {
            let _ = timeout(SILENCE, known).await;
        }
    }
}

/// Keeps a lock's session until it is released, and says so if it dies first.
async fn watch(
    connection: Connection,
    pipeline: String,
    number: i64,
    lost: CancellationToken,
    mut released: oneshot::Receiver<oneshot::Sender<()>>,
) {
    loop {
        tokio::select! {
            done = &mut released => {
                // The row first: whoever takes the lock next writes its own. And unlocked in so many words: the server
                // ends a session some time after we have closed it.
                let free = async {
                    connection.execute("DELETE FROM locks WHERE pipeline = $1", &[&pipeline]).await?;
                    connection.execute("SELECT pg_advisory_unlock($1)", &[&number]).await
                };
                let _ = timeout(SILENCE, free).await;
                connection.close().await;
                if let Ok(done) = done {
                    let _ = done.send(());
                }
                return;
            }
            () = tokio::time::sleep(PULSE) => {
                if !matches!(timeout(SILENCE, connection.simple_query("")).await, Ok(Ok(_))) {
                    lost.cancel();
                    return;
                }
            }
        }
    }
}

impl ToSql for Value {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> std::result::Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self {
            Value::Null => Ok(IsNull::Yes),
            Value::Int(n) => n.to_sql(ty, out),
            Value::Real(x) => x.to_sql(ty, out),
            Value::Text(t) => t.to_sql(ty, out),
            Value::Bytes(b) => b.to_sql(ty, out),
        }
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

impl<'a> FromSql<'a> for Value {
    fn from_sql(ty: &Type, raw: &'a [u8]) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match *ty {
            Type::INT8 => i64::from_sql(ty, raw).map(Value::Int),
            Type::FLOAT8 => f64::from_sql(ty, raw).map(Value::Real),
            Type::BYTEA => Vec::from_sql(ty, raw).map(Value::Bytes),
            _ => String::from_sql(ty, raw).map(Value::Text),
        }
    }

    fn from_sql_null(_: &Type) -> std::result::Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Value::Null)
    }

    fn accepts(ty: &Type) -> bool {
        matches!(*ty, Type::INT8 | Type::FLOAT8 | Type::BYTEA | Type::TEXT)
    }
}
