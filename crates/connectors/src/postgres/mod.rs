//! PostgreSQL 12 to 18, read by query and written by COPY.
//!
//! [`Postgres`] is one server and database with its limit of connections; [`source`] reads tables by key ranges under
//! one snapshot; [`destination`] keeps plans and checkpoints beside the tables it writes. Rows travel in COPY's binary
//! form, decoded into Arrow or untouched.

mod apply;
mod bulk;
pub mod catalog;
pub mod client;
mod control;
mod copy;
mod ddl;
mod decode;
pub mod destination;
mod digits;
mod encode;
mod examine;
mod examine_sink;
mod fold;
mod hashes;
mod integrity;
pub mod log;
mod merge;
mod numeric;
mod publish;
mod query;
mod rows;
mod settled;
mod sink;
pub(crate) mod slices;
pub mod source;
pub mod sql;
mod stage;
mod swap;
mod terms;
mod tls;
pub mod types;

pub use client::{Connection, Postgres, map_error};
pub use destination::{DestinationOptions, PostgresDestination};
pub use rows::CopyForm;

use percent_encoding::percent_decode_str;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};

/// The engine's name: type names in `Column::source_type` are PostgreSQL's if the source says this.
pub const ENGINE: &str = "postgresql";

/// How a connection is encrypted and how far the server is trusted; the same words and meaning as in libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server can, plain if not.
    #[default]
    Prefer,
    /// Encrypted; the certificate is checked only if a root certificate is given.
    Require,
    /// Encrypted, and the certificate must be signed by a trusted authority.
    VerifyCa,
    /// As `VerifyCa`, and the certificate must be for the host that was asked for.
    VerifyFull,
}

impl FromStr for SslMode {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "disable" => SslMode::Disable,
            // `allow` (plain first) protects nothing that `prefer` does not.
            "prefer" | "allow" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" | "verify_ca" => SslMode::VerifyCa,
            "verify-full" | "verify_full" => SslMode::VerifyFull,
            _ => {
                return Err(Error::new(code::CONFIG_URI, format!("sslmode {s:?} is not known"))
                    .hint("one of: disable, prefer, require, verify-ca, verify-full"));
            }
        })
    }
}

/// How long a server's machine may give no sign of life, or take nothing of what is sent. A healthy server takes nothing for
/// a while, too: it reads a thousand rows of a COPY and then puts all of them into the table's indexes, each a third of a
/// second at most (waits for locks end after a minute). If that were too long, it would be so each time anew.
const PATIENCE: Duration = Duration::from_secs(300);

/// How to reach a PostgreSQL database.
#[derive(Clone)]
pub struct PostgresConfig {
    /// A host name, an address, or the directory of a unix socket (it begins with a slash).
    pub host: String,
    /// The port, also for a unix socket.
    pub port: u16,
    /// The role.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<String>,
    /// The database.
    pub database: String,
    /// Where tables without a schema in their name are looked for.
    pub schema: String,
    /// Encryption and trust.
    pub sslmode: SslMode,
    /// The certificates of trusted authorities; without it the system's.
    pub sslrootcert: Option<PathBuf>,
    /// Our own certificate.
    pub sslcert: Option<PathBuf>,
    /// The key of our own certificate.
    pub sslkey: Option<PathBuf>,
    /// How long making a connection, or waiting for a free one, may take.
    pub connect_timeout: Duration,
    /// How long what we sent may stay unacknowledged by the server's machine, or unsent because it takes nothing, before
    /// the connection is given up; `None` is as long as the system has it (a quarter of an hour). Not over a unix socket.
    pub tcp_user_timeout: Option<Duration>,
    /// How long the server may work on one statement; `None` is without limit.
    pub statement_timeout: Option<Duration>,
    /// The name in pg_stat_activity.
    pub application_name: String,
    /// Connections open at the same time.
    pub max_connections: usize,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresConfig")
            .field("server", &self.server())
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "(hidden)"))
            .field("schema", &self.schema)
            .field("sslmode", &self.sslmode)
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

impl PostgresConfig {
    /// A database of a server, with everything else as usual.
    pub fn new(host: impl Into<String>, port: u16, user: impl Into<String>, database: impl Into<String>) -> Self {
        PostgresConfig {
            host: host.into(),
            port,
            user: user.into(),
            password: None,
            database: database.into(),
            schema: "public".into(),
            sslmode: SslMode::default(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Duration::from_secs(10),
            tcp_user_timeout: Some(PATIENCE),
            statement_timeout: None,
            application_name: "synctool".into(),
            max_connections: 10,
        }
    }

    /// Reads `postgresql://user:password@host:port/database?sslmode=…&schema=…`, with the parameters of libpq that have
    /// a meaning here. No error shows the URL: it holds the password.
    pub fn from_url(text: &str) -> Result<Self> {
        let bad = |why: String| {
            Error::new(
                code::CONFIG_URI,
                format!("the PostgreSQL connection URI cannot be read: {why}"),
            )
            .hint("write postgresql://USER:PASSWORD@HOST:PORT/DATABASE; percent-encode odd characters of the password")
        };
        // An empty host beside a user (`me@/db?host=/run/postgresql`) is common here and no URL by the standard.
        let text = match text.split_once("://") {
            Some((scheme, rest)) if rest.split('/').next().is_some_and(|a| a.ends_with('@')) => {
                format!("{scheme}://{}", rest.replacen("@/", "@localhost/", 1))
            }
            _ => text.to_string(),
        };
        let url = url::Url::parse(&text).map_err(|e| bad(e.to_string()))?;
        if !matches!(url.scheme(), "postgres" | "postgresql") {
            return Err(bad("it does not begin with postgresql://".into()));
        }
        let decode = |s: &str| {
            percent_decode_str(s)
                .decode_utf8()
                .map(|s| s.into_owned())
                .map_err(|_| bad("a part is not UTF-8".into()))
        };
        let host = match url.host_str() {
            None | Some("") => "localhost".to_string(),
            Some(h) => decode(h.trim_start_matches('[').trim_end_matches(']'))?,
        };
        let mut config = PostgresConfig::new(host, url.port().unwrap_or(5432), decode(url.username())?, "");
        config.password = url.password().map(decode).transpose()?;
        config.database = decode(url.path().trim_start_matches('/'))?;
        for (name, value) in url.query_pairs() {
            let number = || {
                value
                    .parse::<u64>()
                    .map_err(|_| bad(format!("{name} is not a whole number")))
            };
            let file = || Some(PathBuf::from(value.as_ref()));
            match name.as_ref() {
                "host" => config.host = value.into_owned(),
                "port" => config.port = number()?.try_into().map_err(|_| bad("port is too large".into()))?,
                "user" => config.user = value.into_owned(),
                "password" => config.password = Some(value.into_owned()),
                "dbname" | "database" => config.database = value.into_owned(),
                "schema" => config.schema = value.into_owned(),
                "sslmode" => config.sslmode = value.parse()?,
                "sslrootcert" if value == "system" => config.sslrootcert = None,
                "sslrootcert" => config.sslrootcert = file(),
                "sslcert" => config.sslcert = file(),
                "sslkey" => config.sslkey = file(),
                "connect_timeout" => config.connect_timeout = Duration::from_secs(number()?.max(1)),
                "tcp_user_timeout" => {
                    config.tcp_user_timeout = Some(number()?).filter(|ms| *ms > 0).map(Duration::from_millis);
                }
                "statement_timeout" => {
                    config.statement_timeout = Some(number()?).filter(|ms| *ms > 0).map(Duration::from_millis);
                }
                "application_name" => config.application_name = value.into_owned(),
                "max_connections" => config.max_connections = number()?.clamp(1, 10_000) as usize,
                other => return Err(bad(format!("parameter {other} is not known"))),
            }
        }
        if config.user.is_empty() {
            return Err(bad("it names no user".into()));
        }
        if config.database.is_empty() {
            config.database.clone_from(&config.user);
        }
        Ok(config)
    }

    /// Host, port and database, for messages.
    pub fn server(&self) -> String {
        format!("{}:{}/{}", self.host, self.port, self.database)
    }

    /// Whether the host is the directory of a unix socket.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_and_secrets_hidden() {
        let c = PostgresConfig::from_url(
            "postgresql://me:p%40ss%2Fword@db.example:6543/shop?sslmode=verify-full&schema=s&max_connections=3",
        )
        .unwrap();
        assert_eq!(
            (
                c.host.as_str(),
                c.port,
                c.user.as_str(),
                c.password.as_deref(),
                c.database.as_str()
            ),
            ("db.example", 6543, "me", Some("p@ss/word"), "shop")
        );
        assert_eq!(
            (c.sslmode, c.schema.as_str(), c.max_connections),
            (SslMode::VerifyFull, "s", 3)
        );
        assert!(!format!("{c:?}").contains("p@ss"));

        let socket = PostgresConfig::from_url("postgresql://me@/db?host=/run/postgresql&port=5433").unwrap();
        assert!(socket.is_socket() && socket.port == 5433);
        let encoded = PostgresConfig::from_url("postgres://me@%2Frun%2Fpostgresql:5434/db").unwrap();
        assert_eq!((encoded.host.as_str(), encoded.port), ("/run/postgresql", 5434));
        let v6 = PostgresConfig::from_url("postgres://me@[::1]:5434").unwrap();
        assert_eq!((v6.host.as_str(), v6.database.as_str()), ("::1", "me"));
    }

    #[test]
    fn errors_do_not_show_the_url() {
        for bad in [
            "postgresql://me:sesame@host:99999/db",
            "mysql://me:sesame@host/db",
            "postgresql://me:sesame@host/db?sslmode=maybe",
            "postgresql://me:sesame@host/db?colour=red",
            "postgresql://:sesame@host/db",
            "sesame",
        ] {
            let e = PostgresConfig::from_url(bad).expect_err(bad).to_string();
            assert!(!e.contains("sesame"), "{e}");
        }
    }
}
