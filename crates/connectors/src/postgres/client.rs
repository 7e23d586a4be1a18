//! Connections: a limit on their number, TLS, session settings, and errors that say what happened.

use super::bulk::{Lost, Way};
use super::{PostgresConfig, SslMode, tls};
use std::error::Error as _;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};
use synctool_core::error::{Code, Error, Result, code};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_postgres::config::SslNegotiation;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{CancelToken, Client, NoTls, SimpleQueryMessage, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The oldest server that is read and written.
pub const MIN_VERSION: u32 = 120_000;

/// How long a dropped connection may take to end at the server before its socket is closed.
const FAREWELL: Duration = Duration::from_secs(5);

/// Idle connections are kept for the next query so long.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// One that was idle for longer has to answer before it is used again.
const TRUST_IDLE: Duration = Duration::from_millis(100);

/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// A PostgreSQL database with a limit of connections. Cloning shares the limit.
#[derive(Clone)]
pub struct Postgres(Arc<Shared>);

struct Shared {
    config: PostgresConfig,
    tls: Option<MakeRustlsConnect>,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<(Link, Instant)>>,
    server: OnceLock<Server>,
}

/// What the first session learnt of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Server {
    /// Whether the database is in UTF-8.
    pub(super) utf8: bool,
    /// What its hash of a record gives for a record that everybody knows; `None` before version 14, which has none.
    pub(super) record_hash: Option<String>,
    /// What its hash of a text gives for a text that everybody knows; `None` where texts are not in UTF-8.
    pub(super) text_hash: Option<String>,
}

/// A session without its place in the limit.
struct Link {
    client: Client,
    task: JoinHandle<()>,
    /// Why the connection ended, once it has.
    ended: Arc<OnceLock<Error>>,
    /// `None` over a unix socket.
    way: Option<Way>,
    version: u32,
    pid: i32,
    encrypted: bool,
    /// Whether its statements may take as long as they need ([`Postgres::connect_long`]).
    long: bool,
}

/// A session with every setting that values depend on. It is a [`tokio_postgres::Client`].
///
/// Dropping it ends the session; while it is [`Connection::working`], what the server is doing is cancelled first, so
/// that locks and snapshots do not outlive us.
pub struct Connection {
    link: Option<Link>,
    working: AtomicBool,
    /// Whether the session goes back when this is dropped.
    reusable: AtomicBool,
    database: Postgres,
    slot: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Postgres").field(&self.0.config).finish()
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Connection(pid {})", self.backend_pid())
    }
}

impl Postgres {
    /// A database to connect to; reads certificates, connects to nothing yet.
    pub fn open(config: PostgresConfig) -> Result<Postgres> {
        let tls = tls::connector(&config)?;
        let slots = Arc::new(Semaphore::new(config.max_connections.max(1)));
        Ok(Postgres(Arc::new(Shared {
            config,
            tls,
            slots,
            idle: Mutex::default(),
            server: OnceLock::new(),
        })))
    }

    /// How it is reached.
    pub fn config(&self) -> &PostgresConfig {
        &self.0.config
    }

    /// What is known of the server since the first session.
    pub(super) fn server(&self) -> Option<&Server> {
        self.0.server.get()
    }

    /// What encrypts connections; `None` where nothing is encrypted.
    pub(super) fn tls(&self) -> Option<MakeRustlsConnect> {
        self.0.tls.clone()
    }

    /// A session of our own. Waits for a place within the limit, then fails with `SERVER_BUSY`.
    pub async fn connect(&self) -> Result<Connection> {
        self.session(false).await
    }

    /// A session whose statements may take as long as they need.
    pub(super) async fn connect_long(&self) -> Result<Connection> {
        let mut connection = self.session(true).await?;
        if !connection.link().long {
            let mut settings = String::from("SET statement_timeout = 0");
            if connection.version() >= 140_000 {
                // A process that was killed is noticed even while its statement waits for a lock.
                settings.push_str("; SET client_connection_check_interval = '10s'");
            }
            connection
                .batch_execute(&settings)
                .await
                .map_err(|e| connection.error(e, "setting up the session"))?;
            connection.link_mut().long = true;
        }
        Ok(connection)
    }

    async fn session(&self, long: bool) -> Result<Connection> {
        let config = &self.0.config;
        let wait = config.connect_timeout;
        let slot = tokio::time::timeout(wait, self.0.slots.clone().acquire_owned())
            .await
            .map_err(|_| {
                Error::new(
                    code::SERVER_BUSY,
                    format!(
                        "all {} connections to PostgreSQL are in use and none came free within {} s",
                        config.max_connections,
                        wait.as_secs()
                    ),
                )
                .at("server", config.server())
                .hint("raise max_connections of this datastore, or run fewer workers")
            })?
            .expect("the semaphore is never closed");
        let link = match self.take_living(long).await {
            Some(link) => link,
            None => self.dial().await.map_err(|e| e.at("server", config.server()))?,
        };
        Ok(Connection {
            link: Some(link),
            working: AtomicBool::new(false),
            reusable: AtomicBool::new(false),
            database: self.clone(),
            slot: Some(slot),
        })
    }

    /// An idle session that answers. A line that fell silent meanwhile would keep its next statement waiting for ever.
    async fn take_living(&self, long: bool) -> Option<Link> {
        let (link, since) = self.take_idle(long)?;
        if since.elapsed() < TRUST_IDLE {
            return Some(link);
        }
        let limit = ANSWER.min(self.0.config.connect_timeout);
        if let Ok(Ok(())) = tokio::time::timeout(limit, link.client.check_connection()).await {
            return Some(link);
        }
        // The others are not younger by much.
        let others = std::mem::take(&mut *self.0.idle.lock().expect("nothing panics while holding it"));
        for dead in others.into_iter().map(|(other, _)| other).chain([link]) {
            dead.task.abort();
        }
        None
    }

    fn take_idle(&self, long: bool) -> Option<(Link, Instant)> {
        let mut idle = self.0.idle.lock().expect("nothing panics while holding it");
        idle.retain(|(link, since)| !link.client.is_closed() && since.elapsed() < KEEP_IDLE);
        // One without a limit does not suit whoever asked for one.
        let any = long || self.0.config.statement_timeout.is_none();
        let found = idle.iter().rposition(|(link, _)| link.long == long);
        let at = found.or_else(|| idle.iter().rposition(|_| any))?;
        Some(idle.remove(at))
    }

    async fn dial(&self) -> Result<Link> {
        let config = &self.0.config;
        let dial = async {
            let Some(tls) = self.0.tls.clone() else {
                return self.attempt((!config.is_socket()).then_some(Way::Plain)).await;
            };
            // libpq's `prefer`: whatever goes wrong with encryption is tried once more without.
            let or_plain = config.sslmode == SslMode::Prefer;
            match self.attempt(Some(Way::Encrypted { tls, or_plain })).await {
                Err(e) if or_plain && (e.code() == code::TLS_FAILED || refused_by_rule(&e)) => {
                    self.attempt(Some(Way::Plain)).await.map_err(|_| e)
                }
                other => other,
            }
        };
        tokio::time::timeout(config.connect_timeout, dial).await.map_err(|_| {
            Error::new(
                code::SERVER_UNREACHABLE,
                format!(
                    "PostgreSQL did not answer within {} s",
                    config.connect_timeout.as_secs()
                ),
            )
            .hint("check host, port and firewall, or raise connect_timeout")
        })?
    }

    async fn attempt(&self, way: Option<Way>) -> Result<Link> {
        let settings = self.settings(way.is_none());
        match way {
            None => self.start(None, settings, NoTls).await,
            Some(way) => self.start(Some(way.clone()), settings, way).await,
        }
    }

    fn settings(&self, local: bool) -> tokio_postgres::Config {
        let config = &self.0.config;
        let mut settings = tokio_postgres::Config::new();
        settings
            .host(&config.host)
            .port(config.port)
            .user(&config.user)
            .dbname(&config.database)
            .application_name(&config.application_name)
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(6);
        // How long a dead network is waited for, whether anything is under way or not: what is set above only says when an
        // idle session asks for a sign of life. A server that takes no more of a COPY for so long is given up, too, although
        // it lives.
        if let Some(timeout) = config.tcp_user_timeout {
            settings.tcp_user_timeout(timeout);
        }
        match local {
            true => settings.ssl_mode(tokio_postgres::config::SslMode::Disable),
            // See `Way`.
            false => settings
                .ssl_mode(tokio_postgres::config::SslMode::Require)
                .ssl_negotiation(SslNegotiation::Direct),
        };
        if let Some(password) = &config.password {
            settings.password(password);
        }
        settings
    }

    async fn start<T>(&self, way: Option<Way>, settings: tokio_postgres::Config, tls: T) -> Result<Link>
    where
        T: MakeTlsConnect<Socket> + Send,
        T::Stream: Send + 'static,
        T::TlsConnect: Send,
        <T::TlsConnect as tokio_postgres::tls::TlsConnect<Socket>>::Future: Send,
    {
        let (client, mut connection) = settings
            .connect(tls)
            .await
            .map_err(|e| map_error(e, "connecting to PostgreSQL"))?;
        let version = version(connection.parameter("server_version").unwrap_or_default());
        let ended = Arc::new(OnceLock::new());
        let task = tokio::spawn({
            let ended = ended.clone();
            async move {
                // By reference: the cause must be there before the client can notice the end.
                if let Err(e) = (&mut connection).await {
                    let _ = ended.set(map_error(e, "the connection to PostgreSQL"));
                }
            }
        });
        let mut link = Link {
            client,
            task,
            ended,
            way,
            version,
            pid: 0,
            encrypted: false,
            long: false,
        };
        if version < MIN_VERSION {
            return Err(Error::new(
                code::SERVER_VERSION,
                format!("PostgreSQL {} is not supported", version / 10_000),
            )
            .hint("PostgreSQL 12 or newer is needed"));
        }
        let rows = link
            .client
            .simple_query(&session_settings(&self.0.config, version))
            .await
            .map_err(|e| map_error(e, "setting up the session"))?;
        for row in rows {
            if let SimpleQueryMessage::Row(row) = row
                && row.len() == 5
            {
                link.pid = row.get(0).and_then(|s| s.parse().ok()).unwrap_or_default();
                link.encrypted = row.get(1) == Some("t");
                self.0.server.get_or_init(|| {
                    let utf8 = row.get(2) == Some("UTF8");
                    Server {
                        utf8,
                        record_hash: row.get(3).map(str::to_string),
                        text_hash: row.get(4).filter(|_| utf8).map(str::to_string),
                    }
                });
            }
        }
        Ok(link)
    }
}

/// Whether the server's client rules have no entry for us; a wrong password is not tried twice.
fn refused_by_rule(e: &Error) -> bool {
    e.context().iter().any(|(k, v)| *k == "sqlstate" && v == "28000")
}

/// The text of a value must not depend on the server's, database's or role's settings, and no row may be left out
/// silently: where a policy would hide rows, the server says so instead.
fn session_settings(config: &PostgresConfig, version: u32) -> String {
    let timeout = config.statement_timeout.map_or(0, |t| t.as_millis());
    let mut sql = format!(
        "SET datestyle = 'ISO, YMD'; SET intervalstyle = 'postgres'; SET timezone = 'UTC'; SET extra_float_digits = 1; \
         SET bytea_output = 'hex'; SET xmlbinary = 'base64'; SET xmloption = 'content'; SET lc_monetary = 'C'; \
         SET array_nulls = on; SET quote_all_identifiers = off; SET standard_conforming_strings = on; SET row_security = off; \
         SET search_path = ''; \
         SET default_transaction_isolation = 'read committed'; SET default_transaction_deferrable = off; \
         SET statement_timeout = {timeout}; SET lock_timeout = '60s'; SET idle_in_transaction_session_timeout = 0; "
    );
    if version >= 140_000 {
        sql.push_str("SET idle_session_timeout = 0; ");
    }
    if version >= 170_000 {
        sql.push_str("SET transaction_timeout = 0; ");
    }
    // The hashes differ between byte orders and would differ if a version changed them.
    let record_hash = match version >= 140_000 {
        true => {
            "pg_catalog.hash_record_extended(ROW(7::bigint, 1.5::numeric, 'synctool'::text, true, '1999-12-31'::date), 1)"
        }
        false => "NULL",
    };
    sql.push_str(&format!(
        "SELECT pg_catalog.pg_backend_pid(), \
         coalesce((SELECT ssl FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid()), false), \
         pg_catalog.current_setting('server_encoding'), {record_hash}, \
         pg_catalog.hashtextextended('synctool' COLLATE \"C\", 1)",
    ));
    sql
}

/// `15.20 (Debian …)`, `18beta1` → 150000, 180000 (the minor number is of no interest).
fn version(text: &str) -> u32 {
    let digits: String = text.chars().take_while(char::is_ascii_digit).collect();
    digits.parse::<u32>().unwrap_or(0) * 10_000
}

impl Link {
    fn error(&self, e: tokio_postgres::Error, what: &str) -> Error {
        match self.ended.get() {
            Some(cause) if e.is_closed() => {
                let error = Error::new(cause.code(), format!("{what} failed: {}", cause.message())).caused_by(e);
                match cause.next_step() {
                    Some(next) => error.hint(next.to_owned()),
                    None => error,
                }
            }
            _ => map_error(e, what),
        }
    }
}

impl Connection {
    fn link(&self) -> &Link {
        self.link.as_ref().expect("taken only when dropped")
    }

    fn link_mut(&mut self) -> &mut Link {
        self.link.as_mut().expect("taken only when dropped")
    }

    /// The server's major version times 10 000 (`150000`).
    pub fn version(&self) -> u32 {
        self.link().version
    }

    /// The server's process for this session.
    pub fn backend_pid(&self) -> i32 {
        self.link.as_ref().map_or(0, |l| l.pid)
    }

    /// Whether it is encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.link().encrypted
    }

    /// The error of a call on this connection; `what` says what was tried (`reading public.items`). Where the
    /// connection is gone it names the real cause, not that it is closed.
    pub fn error(&self, e: tokio_postgres::Error, what: &str) -> Error {
        self.link().error(e, what).at("server", self.database.config().server())
    }

    /// Says that a transaction or a COPY is running (or that it is over): if the connection is dropped meanwhile, the
    /// server is told to cancel.
    pub fn working(&self, yes: bool) {
        self.working.store(yes, Ordering::Relaxed);
    }

    /// Says whether the session may serve the next [`Postgres::connect`] when this is dropped: only one that has no
    /// transaction open and whose settings suit whoever comes next.
    pub fn reusable(&self, yes: bool) {
        self.reusable.store(yes, Ordering::Relaxed);
    }

    /// Gives the session back for the next [`Postgres::connect`]. Only for one that has changed no setting and has no
    /// transaction open.
    pub fn recycle(self) {
        self.reusable(true);
    }

    /// Ends the session and waits (shortly) until the server knows.
    pub async fn close(mut self) {
        if let (Some(link), slot) = (self.link.take(), self.slot.take()) {
            let cancel = self.working.load(Ordering::Relaxed);
            farewell(link, cancel, slot).await;
        }
    }
}

impl Deref for Connection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.link().client
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.link_mut().client
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let (Some(link), slot) = (self.link.take(), self.slot.take()) else {
            return;
        };
        let cancel = self.working.load(Ordering::Relaxed);
        if self.reusable.load(Ordering::Relaxed) && !cancel && !link.client.is_closed() {
            let mut idle = self.database.0.idle.lock().expect("nothing panics while holding it");
            idle.push((link, Instant::now()));
            // The place in the limit comes free only now, so that idle and used sessions together stay within it.
            drop(slot);
            return;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => {
                runtime.spawn(farewell(link, cancel, slot));
            }
            Err(_) => link.task.abort(),
        }
    }
}

/// Cancels what runs, says goodbye, and closes the socket if the server does not answer in time. The place in the
/// limit is held until then, because the server counts the session until then.
async fn farewell(link: Link, cancel: bool, slot: Option<OwnedSemaphorePermit>) {
    let Link {
        client, mut task, way, ..
    } = link;
    let token = client.cancel_token();
    drop(client);
    let _ = tokio::time::timeout(FAREWELL, async {
        if cancel {
            cancel_query(&token, way).await;
        }
        let _ = (&mut task).await;
    })
    .await;
    task.abort();
    drop(slot);
}

async fn cancel_query(token: &CancelToken, way: Option<Way>) {
    let sent = match way {
        None => token.cancel_query(NoTls).await,
        Some(way) => token.cancel_query(way).await,
    };
    if let Err(e) = sent {
        tracing::debug!(error = %e, "the server could not be told to cancel");
    }
}

/// What to do where a machine gave no sign of life, or a server took nothing, for longer than we wait.
const TOOK_NOTHING: &str = "the work is tried again; if it repeats and the server is only slow to take what it is sent (many indexes, \
     a slow disk), set a longer tcp_user_timeout for this datastore";

/// Whether the system gave a connection up because nothing came of what was sent.
fn timed_out(cause: &(dyn std::error::Error + 'static)) -> bool {
    let io = cause.downcast_ref::<std::io::Error>();
    io.is_some_and(|io| io.kind() == std::io::ErrorKind::TimedOut)
}

/// The error of a call: SQLSTATE to code, with the server's own sentence only where it cannot hold a value.
/// `what` says what was tried (`reading public.items`).
pub fn map_error(e: tokio_postgres::Error, what: &str) -> Error {
    if let Some(db) = e.as_db_error() {
        let state = db.code().code();
        let (code, mut hint) = classify(state);
        if state == "42501" && db.message().contains("row-level security") {
            hint = Some("rows would be left out silently: use the table's owner or a role with BYPASSRLS");
        }
        let place = [
            ("table", db.table()),
            ("column", db.column()),
            ("constraint", db.constraint()),
            ("type", db.datatype()),
        ];
        let named: Vec<String> = place
            .iter()
            .filter_map(|(k, v)| v.map(|v| format!("{k} {v}")))
            .collect();
        let says = match own_words(state) {
            Some(words) if named.is_empty() => words.to_string(),
            Some(words) => format!("{words} ({})", named.join(", ")),
            None => db.message().to_string(),
        };
        let mut error = Error::new(code, format!("{what} failed: {says}")).at("sqlstate", state);
        if let Some(hint) = hint {
            error = error.hint(hint);
        }
        return error;
    }
    let cause = e.source().map(ToString::to_string);
    let text = e.to_string();
    let alert = cause.as_ref().is_some_and(|c| c.contains("received fatal alert"));
    let lost =
        !alert && (e.is_closed() || text.contains("communicating") || e.source().is_some_and(|s| s.is::<Lost>()));
    let (code, hint): (&'static Code, &str) = if text.contains("connecting to server") {
        (
            code::SERVER_UNREACHABLE,
            "check host and port, and that the server runs and listens there",
        )
    } else if lost {
        (
            code::CONNECTION_LOST,
            match e.source().is_some_and(timed_out) {
                true => TOOK_NOTHING,
                false => "the work is tried again; look into the server's log if it repeats",
            },
        )
    } else if alert || text.contains("TLS") {
        (
            code::TLS_FAILED,
            "check sslmode and sslrootcert against the server's certificate (openssl s_client -starttls postgres)",
        )
    } else if text.contains("authentication") || text.contains("invalid configuration") {
        (code::AUTH_FAILED, "check user and password of this datastore")
    } else {
        return Error::bug(format!("{what} failed: {text}")).caused_by(e);
    };
    let says = match cause {
        Some(cause) => format!("{text}: {cause}"),
        None => text,
    };
    Error::new(code, format!("{what} failed: {says}")).hint(hint)
}

/// The error of a server's answer on a connection that is not the driver's; as in [`map_error`].
pub(super) fn server_error(state: &str, message: &str, what: &str) -> Error {
    let (code, hint) = classify(state);
    let says = own_words(state).unwrap_or(message);
    let error = Error::new(code, format!("{what} failed: {says}")).at("sqlstate", state);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn classify(state: &str) -> (&'static Code, Option<&'static str>) {
    let class = state.get(..2).unwrap_or_default();
    match (class, state) {
        ("28", _) => (
            code::AUTH_FAILED,
            Some("check user and password, and the server's pg_hba.conf"),
        ),
        (_, "3D000") => (code::DATABASE_MISSING, Some("check the database's name")),
        (_, "3F000" | "42P01") => (code::TABLE_MISSING, None),
        (_, "42703") => (code::COLUMN_MISSING, None),
        (_, "42501") => (code::PERMISSION, Some("ask for a GRANT of the right that is named")),
        (_, "42622") => (code::IDENTIFIER, None),
        (_, "42P07" | "42701" | "42704" | "42804" | "42846") => (code::SCHEMA_MISMATCH, None),
        (_, "53100") => (code::DISK_FULL, Some("free space on the server's disk")),
        ("53", _) | (_, "57P03") => (code::SERVER_BUSY, None),
        (_, "40001" | "40P01" | "55P03" | "55006") => (code::CONFLICT, None),
        (_, "57014") => (
            code::SERVER_BUSY,
            Some("a timeout or an administrator cancelled it; see statement_timeout"),
        ),
        (_, "57P01" | "57P02" | "57P05" | "25P03" | "25P04") | ("08", _) => (code::CONNECTION_LOST, None),
        (_, "23505") => (code::DUPLICATE_KEY, None),
        (_, "23502") => (
            code::CONSTRAINT,
            Some("give such rows a value (`expr: coalesce(column, …)`) or leave them out (`filters`)"),
        ),
        ("23", _) => (code::CONSTRAINT, None),
        (_, "22P03" | "22P04" | "22021" | "22P05") => (code::VALUE_MALFORMED, None),
        ("22", _) => (code::VALUE_UNSUPPORTED, None),
        ("0A", _) => (code::UNSUPPORTED, None),
        _ => (code::SERVER_ERROR, None),
    }
}

/// Our own sentence for the classes whose messages can hold a cell's value. So can what functions raise (P0).
fn own_words(state: &str) -> Option<&'static str> {
    Some(match state {
        "23505" => "two rows have the same key",
        "23502" => "a column that must not be NULL got NULL",
        "23503" => "a foreign key is violated",
        "23514" => "a check constraint is violated",
        "23P01" => "an exclusion constraint is violated",
        "22001" => "a text is too long for its column",
        "22003" => "a number is out of range for its column",
        "22007" | "22008" => "a date or time is out of range or malformed",
        "22021" | "22P05" => "a text has bytes that the database's encoding does not know",
        "22P02" => "a value has the wrong form for its column",
        "22P03" | "22P04" => "COPY data does not have the form the server expects",
        "22012" => "a division by zero",
        s if s.starts_with("23") => "a constraint is violated",
        s if s.starts_with("22") => "a value does not fit its column",
        s if s.starts_with("P0") => "a function or trigger of the database raised an error",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::error::ErrorKind;

    /// The same for sources, sinks and the state store: all sessions are made here.
    #[test]
    fn a_session_gives_up_a_dead_network() {
        let of = |parameter: &str| {
            let url = format!("postgresql://me@host/db?sslmode=disable{parameter}");
            let database = Postgres::open(PostgresConfig::from_url(&url).unwrap()).unwrap();
            database.settings(false).get_tcp_user_timeout().copied()
        };
        assert_eq!(of(""), Some(Duration::from_secs(300)));
        assert_eq!(of("&tcp_user_timeout=60000"), Some(Duration::from_secs(60)));
        assert_eq!(of("&tcp_user_timeout=0"), None);
    }

    /// A server that is only slow would meet the same again and again.
    #[test]
    fn a_server_that_took_nothing_for_too_long_is_told_with_the_setting() {
        // ETIMEDOUT, as the system says it.
        let late = std::io::Error::from_raw_os_error(110);
        let gone = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
        assert!(timed_out(&late) && !timed_out(&gone));
        assert!(TOOK_NOTHING.contains("tcp_user_timeout"));
    }

    #[test]
    fn states_say_what_the_engine_should_do() {
        for (state, kind) in [
            ("28P01", ErrorKind::Failed),
            ("42P01", ErrorKind::Config),
            ("53300", ErrorKind::Unavailable),
            ("57P03", ErrorKind::Unavailable),
            ("40P01", ErrorKind::Conflict),
            ("57P01", ErrorKind::Unavailable),
            ("08006", ErrorKind::Unavailable),
            ("23505", ErrorKind::Data),
            ("22003", ErrorKind::Data),
            ("XX000", ErrorKind::Failed),
        ] {
            assert_eq!(classify(state).0.kind, kind, "{state}");
        }
    }

    #[test]
    fn versions_are_major_numbers() {
        assert_eq!(version("15.20 (Debian 15.20-0+deb12u1)"), 150_000);
        assert_eq!(version("18beta2"), 180_000);
        assert_eq!(version("9.6.24"), 90_000);
    }
}
