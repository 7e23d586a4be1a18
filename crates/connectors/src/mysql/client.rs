//! Connections: a limit on their number, TLS and session settings.

use super::errors::{map_error, server_error};
use super::{MysqlConfig, SslMode};
use mysql_async::prelude::{Query, Queryable};
use mysql_async::{
    BinlogStream, BinlogStreamRequest, ClientIdentity, Conn, DriverError, Error as Wire, Opts, OptsBuilder, Params,
    Row, ServerError, SslOpts, Value,
};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use synctool_core::error::{Error, Result, code};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Idle connections are kept for the next query so long.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// How long one that was idle may take to answer before it is used again.
const ANSWER: Duration = Duration::from_secs(5);

/// The oldest servers that are read and written.
const OLDEST_MARIADB: (u16, u16, u16) = (10, 4, 0);
const OLDEST_MYSQL: (u16, u16, u16) = (8, 0, 17);

/// The largest packet that the protocol has.
const LARGEST_PACKET: usize = 1 << 30;

/// How large packets may be that come.
#[derive(Clone, Copy)]
enum Packets {
    /// As the server's setting for its clients says.
    OfTheServer,
    /// As large as there are: a server sends its log without that setting, because a row as it was and as it is makes one
    /// packet.
    OfALog,
}

/// What kind of server it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Flavor {
    /// MariaDB; else MySQL.
    pub(super) mariadb: bool,
    /// As the server says it.
    pub(super) version: String,
    /// The largest packet it takes.
    pub(super) max_packet: usize,
    /// Whether LOAD DATA LOCAL INFILE is allowed.
    pub(super) local_infile: bool,
}

impl Flavor {
    /// The collation of texts that we make: by code point, and blanks at the end count.
    pub(super) fn collation(&self) -> &'static str {
        if self.mariadb {
            "utf8mb4_nopad_bin"
        } else {
            "utf8mb4_0900_bin"
        }
    }

    /// The product's name and version, for people.
    pub(super) fn name(&self) -> String {
        format!("{} {}", if self.mariadb { "MariaDB" } else { "MySQL" }, self.version)
    }
}

/// A MariaDB or MySQL database with a limit of connections. Cloning shares the limit.
#[derive(Clone)]
pub struct Mysql(Arc<Shared>);

struct Shared {
    config: MysqlConfig,
    slots: Arc<Semaphore>,
    idle: Mutex<Vec<(Link, Instant)>>,
}

struct Link {
    conn: Conn,
    flavor: Arc<Flavor>,
}

/// A session with every setting that values depend on. Dropping it ends it, which rolls back.
pub(super) struct Session {
    link: Option<Link>,
    database: Mysql,
    slot: Option<OwnedSemaphorePermit>,
}

impl std::fmt::Debug for Mysql {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Mysql").field(&self.0.config).finish()
    }
}

impl Mysql {
    /// A database to connect to; connects to nothing yet.
    pub fn open(config: MysqlConfig) -> Result<Mysql> {
        if config.sslcert.is_some() != config.sslkey.is_some() {
            return Err(
                Error::new(code::CONFIG_INVALID, "sslcert and sslkey must be given together")
                    .at("server", config.server()),
            );
        }
        let slots = Arc::new(Semaphore::new(config.max_connections.max(1)));
        Ok(Mysql(Arc::new(Shared {
            config,
            slots,
            idle: Mutex::default(),
        })))
    }

    /// How it is reached.
    pub fn config(&self) -> &MysqlConfig {
        &self.0.config
    }

    /// Connects, and says what server answers (`MariaDB 10.11.6`) and whether the connection is encrypted.
    pub async fn greet(&self) -> Result<(String, bool)> {
        let mut session = self.connect().await?;
        let cipher = session
            .rows("SHOW SESSION STATUS LIKE 'Ssl_cipher'", "asking for the cipher")
            .await?;
        let encrypted = cipher.first().and_then(|r| text(r, 1)).is_some_and(|c| !c.is_empty());
        let name = session.flavor().name();
        session.recycle();
        Ok((name, encrypted))
    }

    /// A session of our own. Waits for a place within the limit, then fails with `SERVER_BUSY`.
    pub(super) async fn connect(&self) -> Result<Session> {
        let config = &self.0.config;
        let wait = config.connect_timeout;
        let slot = tokio::time::timeout(wait, self.0.slots.clone().acquire_owned())
            .await
            .map_err(|_| {
                Error::new(
                    code::SERVER_BUSY,
                    format!(
                        "all {} connections to {} are in use and none came free within {} s",
                        config.max_connections,
                        config.host,
                        wait.as_secs()
                    ),
                )
                .at("server", config.server())
                .hint("raise max_connections of this datastore, or run fewer workers")
            })?
            .map_err(|_| Error::bug("the semaphore is never closed"))?;
        let link = match self.take_idle().await {
            Some(link) => link,
            None => self
                .dial(Packets::OfTheServer)
                .await
                .map_err(|e| e.at("server", config.server()))?,
        };
        Ok(Session {
            link: Some(link),
            database: self.clone(),
            slot: Some(slot),
        })
    }

    /// An idle session that answers. A line that fell silent meanwhile would keep its next statement waiting for ever.
    async fn take_idle(&self) -> Option<Link> {
        let limit = ANSWER.min(self.0.config.connect_timeout);
        loop {
            let (mut link, since) = {
                let mut idle = self.0.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                idle.pop()?
            };
            if since.elapsed() >= KEEP_IDLE {
                continue;
            }
            match tokio::time::timeout(limit, link.conn.ping()).await {
                Ok(Ok(())) => return Some(link),
                Ok(Err(_)) => {}
                // The others are on the same line.
                Err(_) => self
                    .0
                    .idle
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .clear(),
            }
        }
    }

    async fn dial(&self, packets: Packets) -> Result<Link> {
        let config = &self.0.config;
        let attempt = async {
            match config.sslmode {
                SslMode::Disable => self.attempt(None, packets).await,
                SslMode::Prefer => match self.attempt(Some(self.tls(None)), packets).await {
                    Err(Failed::NoTls) => self.attempt(None, packets).await,
                    other => other,
                },
                _ => match self.attempt(Some(self.tls(None)), packets).await {
                    // The chain is trusted and the name is another: verify-ca does not mind. The driver does, so it is
                    // told one of the names that the certificate has.
                    Err(Failed::Name(names)) if config.sslmode != SslMode::VerifyFull => {
                        self.attempt(Some(self.tls(names.into_iter().next())), packets).await
                    }
                    other => other,
                },
            }
        };
        let link = tokio::time::timeout(config.connect_timeout, attempt)
            .await
            .map_err(|_| {
                Error::new(
                    code::SERVER_UNREACHABLE,
                    format!(
                        "the server did not answer within {} s",
                        config.connect_timeout.as_secs()
                    ),
                )
                .hint("check host, port and firewall, or raise connect_timeout")
            })?;
        link.map_err(|failed| match failed {
            Failed::Other(e) => e,
            Failed::NoTls => Error::new(code::TLS_FAILED, "the server offers no encrypted connections")
                .hint("set up TLS at the server, or set sslmode: prefer or disable"),
            Failed::Name(_) => Error::new(code::TLS_FAILED, "the server's certificate is for another host name")
                .hint("use the name that the certificate has, or sslmode: verify-ca"),
        })
    }

    /// As in libpq, `require` checks the certificate if it is told against what.
    fn tls(&self, name: Option<String>) -> SslOpts {
        let config = &self.0.config;
        let trust = match config.sslmode {
            SslMode::VerifyCa | SslMode::VerifyFull => true,
            SslMode::Require => config.sslrootcert.is_some(),
            SslMode::Prefer | SslMode::Disable => false,
        };
        let mut tls = SslOpts::default()
            .with_danger_accept_invalid_certs(!trust)
            .with_danger_skip_domain_validation(config.sslmode != SslMode::VerifyFull)
            .with_danger_tls_hostname_override(name);
        if let Some(root) = config.sslrootcert.as_ref().filter(|_| trust) {
            tls = tls
                .with_root_certs(vec![root.clone().into()])
                .with_disable_built_in_roots(true);
        }
        if let (Some(cert), Some(key)) = (&config.sslcert, &config.sslkey) {
            tls = tls.with_client_identity(Some(ClientIdentity::new(cert.clone().into(), key.clone().into())));
        }
        tls
    }

    async fn attempt(&self, tls: Option<SslOpts>, packets: Packets) -> Result<Link, Failed> {
        let config = &self.0.config;
        let opts: Opts = OptsBuilder::default()
            .ip_or_hostname(config.host.as_str())
            .tcp_port(config.port)
            .user(Some(config.user.as_str()))
            .pass(config.password.as_deref())
            .db_name(Some(config.database.as_str()).filter(|d| !d.is_empty()))
            .prefer_socket(false)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .client_found_rows(true)
            .stmt_cache_size(32)
            .max_allowed_packet(match packets {
                Packets::OfTheServer => None,
                Packets::OfALog => Some(LARGEST_PACKET),
            })
            .connect_attribute("program_name", "synctool")
            .ssl_opts(tls)
            .into();
        let mut conn = Conn::new(opts)
            .await
            .map_err(|e| Failed::of(e, "connecting to the server"))?;
        let set_up = |e| Failed::Other(map_error(e, "setting up the session"));
        let row: Option<Row> = conn
            .query_first("SELECT VERSION(), @@max_allowed_packet, @@local_infile")
            .await
            .map_err(set_up)?;
        let row = row.ok_or_else(|| Failed::Other(Error::bug("SELECT gave no row")))?;
        let version = text(&row, 0).unwrap_or_default();
        let flavor = Flavor {
            mariadb: version.to_ascii_lowercase().contains("mariadb"),
            version: version
                .split('-')
                .find(|p| p.starts_with(|c: char| c.is_ascii_digit()) && !p.starts_with("5.5.5"))
                .unwrap_or("")
                .to_string(),
            max_packet: number(&row, 1) as usize,
            local_infile: number(&row, 2) == 1,
        };
        let oldest = if flavor.mariadb { OLDEST_MARIADB } else { OLDEST_MYSQL };
        let numbers: Vec<u16> = flavor.version.split('.').map(|p| p.parse().unwrap_or(0)).collect();
        let found = |i: usize| numbers.get(i).copied().unwrap_or(0);
        if (found(0), found(1), found(2)) < oldest {
            return Err(Failed::Other(
                Error::new(code::SERVER_VERSION, format!("{} is not supported", flavor.name()))
                    .hint("MariaDB 10.4 or MySQL 8.0.17 is needed, or newer"),
            ));
        }
        for statement in settings(&flavor) {
            statement.ignore(&mut conn).await.map_err(set_up)?;
        }
        Ok(Link {
            conn,
            flavor: Arc::new(flavor),
        })
    }

    /// A connection that becomes the server's log, beside the limit. It is asked for as a replica of this number would.
    pub(super) async fn binlog(&self, settings: &[String], replica: u32) -> Result<BinlogStream> {
        let at = |e: Error| e.at("server", self.0.config.server());
        let mut link = self.dial(Packets::OfALog).await.map_err(at)?;
        for statement in settings {
            let set = statement.as_str().ignore(&mut link.conn).await;
            set.map_err(|e| at(map_error(e, "asking for the log")))?;
        }
        let stream = link.conn.get_binlog_stream(BinlogStreamRequest::new(replica)).await;
        stream.map_err(|e| match &e {
            Wire::Server(server) if matches!(server.code, 1045 | 1227) => at(Error::new(
                code::PERMISSION,
                "the server does not hand out its log to this user",
            )
            .hint("GRANT REPLICATION SLAVE ON *.* TO the user")),
            _ => at(map_error(e, "asking for the log")),
        })
    }

    /// Ends a connection of ours in the background: one whose rest nobody wants to read.
    pub(super) fn end_in_background(&self, id: u32) {
        let database = self.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Beside the limit: the connection to be ended still counts in it.
                if let Ok(mut link) = database.dial(Packets::OfTheServer).await {
                    let _ = format!("KILL {id}").ignore(&mut link.conn).await;
                    let _ = link.conn.disconnect().await;
                }
            });
        }
    }
}

/// The text of a value must not depend on the server's settings, nothing may be cut or rounded silently, and a slow
/// reader or writer is no reason to hang up.
fn settings(flavor: &Flavor) -> Vec<String> {
    let limit = if flavor.mariadb {
        "max_statement_time"
    } else {
        "max_execution_time"
    };
    vec![
        "SET NAMES utf8mb4".into(),
        format!(
            "SET SESSION time_zone = '+00:00', \
             sql_mode = 'STRICT_ALL_TABLES,NO_AUTO_VALUE_ON_ZERO,NO_ENGINE_SUBSTITUTION,ERROR_FOR_DIVISION_BY_ZERO', \
             sql_auto_is_null = 0, sql_select_limit = DEFAULT, sql_notes = 1, autocommit = 1, lock_wait_timeout = 60, \
             innodb_lock_wait_timeout = 50, net_read_timeout = 600, net_write_timeout = 600, {limit} = 0"
        ),
        "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED".into(),
    ]
}

enum Failed {
    /// The server speaks no TLS.
    NoTls,
    /// The certificate is trusted but has other names.
    Name(Vec<String>),
    Other(Error),
}

impl Failed {
    fn of(e: Wire, what: &str) -> Failed {
        if matches!(&e, Wire::Driver(DriverError::NoClientSslFlagFromServer)) {
            return Failed::NoTls;
        }
        match presented_names(&e) {
            Some(names) => Failed::Name(names),
            None => Failed::Other(map_error(e, what)),
        }
    }
}

/// The names in a certificate that was refused for its names alone.
fn presented_names(e: &Wire) -> Option<Vec<String>> {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(e);
    while let Some(now) = cause {
        let tls = now.downcast_ref::<rustls::Error>().or_else(|| {
            now.downcast_ref::<std::io::Error>()
                .and_then(|io| io.get_ref())
                .and_then(|inner| inner.downcast_ref::<rustls::Error>())
        });
        if let Some(rustls::Error::InvalidCertificate(why)) = tls {
            return match why {
                rustls::CertificateError::NotValidForNameContext { presented, .. } => Some(
                    presented
                        .iter()
                        .filter_map(|n| n.split('"').nth(1).map(str::to_string))
                        .collect(),
                ),
                rustls::CertificateError::NotValidForName => Some(Vec::new()),
                _ => None,
            };
        }
        cause = now.source();
    }
    None
}

impl Session {
    fn conn(&mut self) -> Result<&mut Conn> {
        self.link
            .as_mut()
            .map(|l| &mut l.conn)
            .ok_or_else(|| Error::bug("a session was used after its end"))
    }

    /// The server's number of this session.
    pub(super) fn id(&self) -> u32 {
        self.link.as_ref().map_or(0, |l| l.conn.id())
    }

    /// What kind of server it is.
    pub(super) fn flavor(&self) -> Arc<Flavor> {
        match &self.link {
            Some(link) => link.flavor.clone(),
            None => unreachable!("only a session that was ended has no link"),
        }
    }

    /// The database it is connected to.
    pub(super) fn database(&self) -> &Mysql {
        &self.database
    }

    fn error(&self, e: Wire, what: &str) -> Error {
        map_error(e, what).at("server", self.database.config().server())
    }

    /// Runs statements; the number of rows that the last one found or changed.
    pub(super) async fn run(&mut self, sql: &str, what: &str) -> Result<u64> {
        match self.conn()?.query_drop(sql).await {
            Ok(()) => Ok(self.conn()?.affected_rows()),
            Err(e) => Err(self.error(e, what)),
        }
    }

    /// Runs a query; all its rows.
    pub(super) async fn rows(&mut self, sql: &str, what: &str) -> Result<Vec<Row>> {
        let done = self.conn()?.query(sql).await;
        done.map_err(|e| self.error(e, what))
    }

    /// Runs a query of one row.
    pub(super) async fn row(&mut self, sql: &str, what: &str) -> Result<Row> {
        let rows = self.rows(sql, what).await?;
        rows.into_iter()
            .next()
            .ok_or_else(|| Error::bug(format!("{what}: the query gave no row")))
    }

    /// Runs a statement with bound values; the number of rows it found or changed.
    pub(super) async fn exec(&mut self, sql: &str, values: impl Into<Params>, what: &str) -> Result<u64> {
        let values = values.into();
        match self.conn()?.exec_drop(sql, values).await {
            Ok(()) => Ok(self.conn()?.affected_rows()),
            Err(e) => Err(self.error(e, what)),
        }
    }

    /// Runs a query with bound values; all its rows.
    pub(super) async fn exec_rows(&mut self, sql: &str, values: impl Into<Params>, what: &str) -> Result<Vec<Row>> {
        let values = values.into();
        let done = self.conn()?.exec(sql, values).await;
        done.map_err(|e| self.error(e, what))
    }

    /// The columns that a query would give, without rows.
    pub(super) async fn columns(&mut self, sql: &str, what: &str) -> Result<Arc<[mysql_async::Column]>> {
        let found = match self.conn()?.query_iter(sql).await {
            Ok(result) => {
                let columns = result.columns();
                result.drop_result().await.map(|()| columns)
            }
            Err(e) => Err(e),
        };
        found
            .map_err(|e| self.error(e, what))?
            .ok_or_else(|| Error::bug(format!("{what}: the query has no columns")))
    }

    /// Runs LOAD DATA LOCAL INFILE with this data. Says how many rows were stored; fails if the server warned, because
    /// under LOCAL it warns where it would else refuse.
    pub(super) async fn load(&mut self, sql: &str, data: bytes::Bytes, what: &str) -> Result<u64> {
        const CHUNK: usize = 1 << 20;
        let pieces: Vec<std::io::Result<bytes::Bytes>> = (0..data.len().div_ceil(CHUNK))
            .map(|i| Ok(data.slice(i * CHUNK..data.len().min((i + 1) * CHUNK))))
            .collect();
        let stream = async move { Ok(Box::pin(futures::stream::iter(pieces)) as mysql_async::InfileData) };
        let conn = self.conn()?;
        conn.set_infile_handler(stream);
        if let Err(e) = conn.query_drop(sql).await {
            return Err(self.error(e, what));
        }
        let (stored, warned) = (conn.affected_rows(), conn.get_warnings());
        if warned == 0 {
            return Ok(stored);
        }
        let warnings = self.rows("SHOW WARNINGS LIMIT 1", what).await?;
        let Some(first) = warnings.first() else {
            return Ok(stored);
        };
        Err(server_error(
            &ServerError {
                code: number(first, 1) as u16,
                message: text(first, 2).unwrap_or_default(),
                state: String::new(),
            },
            what,
        ))
    }

    /// Turns the session into a stream of the rows of a query.
    pub(super) async fn stream(mut self, sql: String, what: &str) -> Result<Rows> {
        let id = self.id();
        let link = self
            .link
            .take()
            .ok_or_else(|| Error::bug("a session was used after its end"))?;
        let stream = match sql.stream::<Row, _>(link.conn).await {
            Ok(stream) => stream,
            Err(e) => return Err(self.error(e, what)),
        };
        Ok(Rows {
            stream: Box::pin(stream),
            id,
            ended: false,
            what: what.to_string(),
            database: self.database.clone(),
            _slot: self.slot.take(),
        })
    }

    /// Gives the session back for the next connect. Only for one that has changed no setting, holds no lock and has no
    /// transaction open.
    pub(super) fn recycle(mut self) {
        if let Some(link) = self.link.take() {
            let mut idle = self
                .database
                .0
                .idle
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            idle.push((link, Instant::now()));
        }
    }
}

/// The rows of a query as they come. Dropping it early ends the connection at the server, so that nobody reads the rest.
pub(super) struct Rows {
    stream: futures::stream::BoxStream<'static, mysql_async::Result<Row>>,
    id: u32,
    ended: bool,
    what: String,
    database: Mysql,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Rows {
    /// The next row. Cancel safe: the stream keeps what it has read.
    pub(super) async fn next(&mut self) -> Result<Option<Row>> {
        use futures::StreamExt;
        match self.stream.next().await {
            Some(Ok(row)) => Ok(Some(row)),
            None => {
                self.ended = true;
                Ok(None)
            }
            Some(Err(e)) => {
                self.ended = true;
                Err(map_error(e, &self.what).at("server", self.database.config().server()))
            }
        }
    }
}

impl Drop for Rows {
    fn drop(&mut self) {
        if !self.ended {
            self.database.end_in_background(self.id);
        }
    }
}

/// A cell as text; `None` for NULL.
pub(super) fn text(row: &Row, i: usize) -> Option<String> {
    match row.as_ref(i)? {
        Value::Bytes(b) => Some(String::from_utf8_lossy(b).into_owned()),
        Value::Int(n) => Some(n.to_string()),
        Value::UInt(n) => Some(n.to_string()),
        Value::Double(n) => Some(n.to_string()),
        Value::Float(n) => Some(n.to_string()),
        _ => None,
    }
}

/// A cell as a count; 0 for NULL.
pub(super) fn number(row: &Row, i: usize) -> u64 {
    match row.as_ref(i) {
        Some(Value::Int(n)) => n.unsigned_abs(),
        Some(Value::UInt(n)) => *n,
        Some(Value::Bytes(b)) => std::str::from_utf8(b)
            .ok()
            .and_then(|s| s.split('.').next())
            .and_then(|s| s.parse().ok())
            .unwrap_or(0),
        _ => 0,
    }
}

/// A cell as a signed number; `None` for NULL.
pub(super) fn signed(row: &Row, i: usize) -> Option<i128> {
    text(row, i).and_then(|t| t.parse().ok())
}
