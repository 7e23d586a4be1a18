//! Connection URIs: `copy` names its ends by them, and a PostgreSQL datastore may be one URL.
//! No message of this file repeats the URI: it may hold a password, also where it is misspelt.

use std::path::{Path, PathBuf};
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::at::At;
use super::datastores::{Connection, CsvOptions, Datastore, Mysql, Postgres, SslMode, not_yet};
use super::error::ConfigError;
use super::secret::Secret;
use super::units::Span;

const FORMS: &str = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, mysql://USER:PASSWORD@HOST:PORT/DATABASE, sqlite:FILE, duckdb:FILE, csv:FILE_OR_FOLDER, \
                     parquet:FILE_OR_FOLDER, or a path that ends in .csv, .parquet, .db, .sqlite or .duckdb";

impl Datastore {
    /// A datastore from a URI or a path on the command line. It is named after its database or file.
    pub fn from_uri(uri: &str) -> Result<Self, ConfigError> {
        let unknown = || ConfigError::new("not a connection that SyncTool knows").with_help(FORMS);
        let (scheme, rest) = match uri.split_once(':') {
            // One letter before the colon is a drive, and a slash comes before it in no scheme.
            Some((scheme, rest))
                if scheme.len() > 1 && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+') =>
            {
                (scheme.to_ascii_lowercase(), rest)
            }
            _ => (scheme_of_path(uri).ok_or_else(unknown)?.to_owned(), uri),
        };
        let connection = match scheme.as_str() {
            "postgresql" | "postgres" => {
                let parsed = postgres(uri).map_err(|message| ConfigError::new(message).with_help(FORMS))?;
                Connection::Postgres(Box::new(parsed))
            }
            "mysql" | "mariadb" => {
                let parsed = mysql(uri).map_err(|message| ConfigError::new(message).with_help(FORMS))?;
                Connection::Mysql(Box::new(parsed))
            }
            "sqlite" => Connection::Sqlite { path: file(rest)? },
            "duckdb" => Connection::DuckDb {
                path: file(rest)?,
                library: None,
            },
            "csv" => Connection::Csv {
                path: file(rest)?,
                options: CsvOptions::default(),
            },
            "parquet" => Connection::Parquet { path: file(rest)? },
            "clickhouse" | "starrocks" | "s3" | "redis" | "rediss" | "kafka" => {
                return Err(not_yet(ConfigError::new(format!("{scheme} is a type of datastore"))));
            }
            _ => return Err(unknown()),
        };
        let name = match &connection {
            Connection::Postgres(postgres) => postgres.database.to_string(),
            Connection::Mysql(mysql) => mysql.database.to_string(),
            Connection::Sqlite { path }
            | Connection::DuckDb { path, .. }
            | Connection::Csv { path, .. }
            | Connection::Parquet { path } => path
                .file_stem()
                .map_or_else(|| scheme.clone(), |stem| stem.to_string_lossy().into_owned()),
            Connection::WalArchive(archived) => archived.database.to_string(),
            Connection::NotYet { type_name } => (*type_name).to_owned(),
        };
        Ok(Datastore {
            name,
            description: None,
            tags: Vec::new(),
            connection,
        })
    }

    /// The datastore in one line, without secrets: `postgresql://shop@db:5432/shop`, `sqlite:data/x.db`.
    pub fn display_uri(&self) -> String {
        match &self.connection {
            Connection::Postgres(p) => format!("postgresql://{}@{}:{}/{}", *p.user, *p.host, *p.port, *p.database),
            Connection::Mysql(m) => format!("mysql://{}@{}:{}/{}", *m.user, *m.host, *m.port, *m.database),
            Connection::Sqlite { path }
            | Connection::DuckDb { path, .. }
            | Connection::Csv { path, .. }
            | Connection::Parquet { path } => format!("{}:{}", self.connection.type_name(), path.display()),
            Connection::WalArchive(a) => match &a.wal.archive {
                super::ArchivePlace::Directory(path) => format!("wal_archive:{}", path.display()),
                super::ArchivePlace::Command(_) => "wal_archive: by wal_fetch_command".into(),
                super::ArchivePlace::Bucket(bucket) => format!("wal_archive:{}", bucket.url),
            },
            Connection::NotYet { type_name } => format!("{type_name}: (not in this version yet)"),
        }
    }
}

fn scheme_of_path(path: &str) -> Option<&'static str> {
    match Path::new(path).extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "csv" | "tsv" => Some("csv"),
        "parquet" => Some("parquet"),
        "db" | "sqlite" | "sqlite3" => Some("sqlite"),
        "duckdb" => Some("duckdb"),
        _ => None,
    }
}

/// `///abs/path`, `//rel`, `rel` → a path.
fn file(rest: &str) -> Result<At<PathBuf>, ConfigError> {
    let path = rest.strip_prefix("//").unwrap_or(rest);
    if path.is_empty() {
        return Err(ConfigError::new("the URI names no file").with_help(FORMS));
    }
    Ok(PathBuf::from(path).into())
}

impl Postgres {
    /// Every part that the URL gave stands where the URL stands.
    pub(super) fn placed_at(mut self, place: &At<()>) -> Self {
        self.host = place.with(self.host.into_inner());
        self.port = place.with(self.port.into_inner());
        self.user = place.with(self.user.into_inner());
        self.database = place.with(self.database.into_inner());
        self.password = self.password.map(|p| place.with(p.into_inner()));
        self
    }
}

impl Mysql {
    /// Every part that the URL gave stands where the URL stands.
    pub(super) fn placed_at(mut self, place: &At<()>) -> Self {
        self.host = place.with(self.host.into_inner());
        self.port = place.with(self.port.into_inner());
        self.user = place.with(self.user.into_inner());
        self.database = place.with(self.database.into_inner());
        self.password = self.password.map(|p| place.with(p.into_inner()));
        self
    }
}

/// Reads `mysql://user:password@host:port/database?key=value`.
pub(super) fn mysql(uri: &str) -> Result<Mysql, String> {
    let rest = uri
        .strip_prefix("mysql://")
        .or_else(|| uri.strip_prefix("mariadb://"))
        .ok_or("the URL must begin with mysql://")?;
    let defaults = Postgres {
        port: 3306.into(),
        ..Postgres::new("localhost", "", "")
    };
    let known = "host, port, user, password, database, sslmode, sslrootcert, sslcert, sslkey, connect_timeout";
    let parsed = server(rest, defaults, |parsed, key, value| match key {
        "database" => {
            parsed.database = value.into();
            Ok(())
        }
        _ if known.split(", ").any(|k| k == key) => parameter(parsed, key, value),
        _ => Err(format!("the URL has a parameter that is not known; known are {known}")),
    })?;
    if parsed.database.is_empty() {
        return Err("the URL names no database".into());
    }
    Ok(Mysql {
        port: parsed.port,
        password: parsed.password,
        sslmode: parsed.sslmode,
        sslrootcert: parsed.sslrootcert,
        sslcert: parsed.sslcert,
        sslkey: parsed.sslkey,
        connect_timeout: parsed.connect_timeout,
        ..Mysql::new(parsed.host, parsed.user, parsed.database)
    })
}

/// Reads `postgresql://user:password@host:port/database?key=value`.
pub(super) fn postgres(uri: &str) -> Result<Postgres, String> {
    let rest = uri
        .strip_prefix("postgresql://")
        .or_else(|| uri.strip_prefix("postgres://"))
        .ok_or("the URL must begin with postgresql://")?;
    let mut parsed = server(rest, Postgres::new("localhost", "", ""), parameter)?;
    if parsed.database.is_empty() {
        parsed.database = parsed.user.to_string().into();
    }
    Ok(parsed)
}

/// Reads a server's URL behind its scheme. Written by hand because the general URL parser
/// refuses passwords that people do paste (`#`, `%`), and this one has no host-name rules to apply.
fn server(
    rest: &str,
    mut parsed: Postgres,
    parameter: impl Fn(&mut Postgres, &str, String) -> Result<(), String>,
) -> Result<Postgres, String> {
    // The last @ before the query ends the user part, so that an unescaped @ or / in a password does no harm.
    let before_query = rest
        .find('?')
        .filter(|q| rest[..*q].contains('@'))
        .unwrap_or(rest.len());
    let (user_part, rest) = match rest[..before_query].rfind('@') {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, query),
        None => (rest, ""),
    };
    let (address, database) = match rest.split_once('/') {
        Some((address, database)) => (address, database),
        None => (rest, ""),
    };
    let (host, port) = match address.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or("the URL has a [ without its ]")?;
            (host, after.strip_prefix(':').unwrap_or(after))
        }
        None => address.rsplit_once(':').unwrap_or((address, "")),
    };
    if !host.is_empty() {
        parsed.host = decoded(host)?.into();
    }
    if !port.is_empty() {
        parsed.port = port
            .parse::<u16>()
            .map_err(|_| "the URL's port is not a number from 0 to 65535")?
            .into();
    }
    if let Some(user_part) = user_part {
        let (user, password) = match user_part.split_once(':') {
            Some((user, password)) => (user, Some(password)),
            None => (user_part, None),
        };
        parsed.user = decoded(user)?.into();
        if let Some(password) = password {
            parsed.password = Some(Secret::new(decoded(password)?).into());
        }
    }
    parsed.database = decoded(database)?.into();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').ok_or("the URL's query is not key=value")?;
        parameter(&mut parsed, key, decoded(value)?)?;
    }
    if parsed.user.is_empty() {
        return Err("the URL names no user".into());
    }
    Ok(parsed)
}

/// The parameters of libpq that have a meaning here.
const PARAMETERS: &str = "host, port, user, password, dbname, schema, sslmode, sslrootcert, sslcert, sslkey, \
                          connect_timeout, tcp_user_timeout, statement_timeout, application_name";

fn parameter(postgres: &mut Postgres, key: &str, value: String) -> Result<(), String> {
    let seconds = |value: &str| {
        value
            .parse()
            .map(Span::seconds)
            .map_err(|_| format!("the URL's {key} is not a number of seconds"))
    };
    match key {
        "host" => postgres.host = value.into(),
        "port" => {
            postgres.port = value
                .parse::<u16>()
                .map_err(|_| "the URL's port is not a number from 0 to 65535")?
                .into();
        }
        "user" => postgres.user = value.into(),
        "password" => postgres.password = Some(Secret::new(value).into()),
        "dbname" => postgres.database = value.into(),
        "schema" => postgres.schema = value.into(),
        "sslmode" => {
            let mode = match value.as_str() {
                "disable" => SslMode::Disable,
                "prefer" | "allow" => SslMode::Prefer,
                "require" => SslMode::Require,
                "verify-ca" => SslMode::VerifyCa,
                "verify-full" => SslMode::VerifyFull,
                _ => {
                    return Err("the URL's sslmode must be disable, prefer, require, verify-ca or verify-full".into());
                }
            };
            postgres.sslmode = mode.into();
        }
        "sslrootcert" => postgres.sslrootcert = Some(PathBuf::from(value).into()),
        "sslcert" => postgres.sslcert = Some(PathBuf::from(value).into()),
        "sslkey" => postgres.sslkey = Some(PathBuf::from(value).into()),
        "connect_timeout" => postgres.connect_timeout = seconds(&value)?.into(),
        "tcp_user_timeout" => {
            // In milliseconds, as libpq has it.
            let span = value.parse().map(Duration::from_millis).map(Span);
            let span = span.map_err(|_| "the URL's tcp_user_timeout is not a number of milliseconds")?;
            postgres.tcp_user_timeout = Some(span.into());
        }
        "statement_timeout" => postgres.statement_timeout = Some(seconds(&value)?.into()),
        "application_name" => postgres.application_name = value.into(),
        _ => {
            return Err(format!(
                "the URL has a parameter that is not known; known are {PARAMETERS}"
            ));
        }
    }
    Ok(())
}

fn decoded(text: &str) -> Result<String, String> {
    percent_decode_str(text)
        .decode_utf8()
        .map(Into::into)
        .map_err(|_| "the URL is not UTF-8".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(uri: &str) -> Postgres {
        match Datastore::from_uri(uri).unwrap().connection {
            Connection::Postgres(postgres) => *postgres,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn postgres_urls() {
        let p = parsed("postgresql://sh%40p:p%2Fw#x@db.internal:6432/shop?sslmode=verify-full&connect_timeout=3");
        assert_eq!(
            (p.user.as_str(), p.host.as_str(), *p.port, p.database.as_str()),
            ("sh@p", "db.internal", 6432, "shop")
        );
        assert_eq!(p.password.as_ref().unwrap().reveal(), "p/w#x");
        assert_eq!(
            (*p.sslmode, *p.connect_timeout),
            (SslMode::VerifyFull, Span::seconds(3))
        );
        assert_eq!(p.tcp_user_timeout, None);
        let p = parsed("postgresql://u@h/d?tcp_user_timeout=90000");
        assert_eq!(p.tcp_user_timeout.as_deref(), Some(&Span::seconds(90)));
        let p = parsed("postgres://u:a@b@h/d");
        assert_eq!(
            (p.password.as_ref().unwrap().reveal(), p.host.as_str(), *p.port),
            ("a@b", "h", 5432)
        );
        let p = parsed("postgresql://u@[::1]:5/d");
        assert_eq!((p.host.as_str(), *p.port), ("::1", 5));
        let p = parsed("postgresql:///d?host=/var/run/postgresql&user=u&password=x&application_name=a%20b");
        assert_eq!(
            (p.host.as_str(), p.application_name.as_str()),
            ("/var/run/postgresql", "a b")
        );
        assert_eq!(parsed("postgresql://u@h").database.as_str(), "u");
    }

    #[test]
    fn mysql_urls() {
        let of = |uri: &str| match Datastore::from_uri(uri).unwrap().connection {
            Connection::Mysql(mysql) => *mysql,
            other => panic!("{other:?}"),
        };
        let m = of("mysql://sh%40p:p%2Fw#x@db.internal:3307/shop?sslmode=verify-full&connect_timeout=3");
        assert_eq!(
            (m.user.as_str(), m.host.as_str(), *m.port, m.database.as_str()),
            ("sh@p", "db.internal", 3307, "shop")
        );
        assert_eq!(
            (*m.sslmode, *m.connect_timeout),
            (SslMode::VerifyFull, Span::seconds(3))
        );
        let m = of("mariadb://u@h/d");
        assert_eq!((*m.port, m.password), (3306, None));
        let shown = Datastore::from_uri("mysql://u:sesame@h/d").unwrap().display_uri();
        assert_eq!(shown, "mysql://u@h:3306/d");
    }

    #[test]
    fn files() {
        for (uri, type_name, path, name) in [
            ("sqlite:///abs/path.db", "sqlite", "/abs/path.db", "path"),
            ("sqlite:rel.db", "sqlite", "rel.db", "rel"),
            ("duckdb:x/y.duckdb", "duckdb", "x/y.duckdb", "y"),
            ("csv:some/folder", "csv", "some/folder", "folder"),
            ("parquet:///data", "parquet", "/data", "data"),
            ("a/b.CSV", "csv", "a/b.CSV", "b"),
            ("./x.parquet", "parquet", "./x.parquet", "x"),
            ("x.sqlite3", "sqlite", "x.sqlite3", "x"),
        ] {
            let datastore = Datastore::from_uri(uri).unwrap();
            assert_eq!(datastore.connection.type_name(), type_name, "{uri}");
            assert_eq!(datastore.display_uri(), format!("{type_name}:{path}"), "{uri}");
            assert_eq!(datastore.name, name);
        }
    }

    #[test]
    fn mistakes_are_told_without_the_uri() {
        for (uri, part) in [
            ("postgresql://u:hunter2@h:port/d", "port is not a number"),
            ("postgresql://u:hunter2@h/d?sslmode=hunter2", "sslmode must be"),
            ("postgresql://u:hunter2@h/d?hunter2=1", "parameter that is not known"),
            ("postgresql://u:hunter2@h/d?hunter2", "not key=value"),
            ("postgresql://h/hunter2", "names no user"),
            ("postgresql:/u:hunter2@h/d", "must begin with"),
            (
                "clickhouse://u:hunter2@h/d",
                "clickhouse is a type of datastore, which is not in this version yet",
            ),
            ("mysql://u:hunter2@h", "names no database"),
            ("mysql://u:hunter2@h/d?schema=hunter2", "parameter that is not known"),
            ("oracle://u:hunter2@h/d", "not a connection that SyncTool knows"),
            ("hunter2", "not a connection that SyncTool knows"),
            ("sqlite:", "names no file"),
        ] {
            let message = Datastore::from_uri(uri).unwrap_err().to_string();
            assert!(message.contains(part), "{uri}: {message}");
            assert!(!message.contains("hunter2"), "{message}");
        }
        assert!(!format!("{:?}", Datastore::from_uri("postgresql://u:hunter2@h/d").unwrap()).contains("hunter2"));
    }
}
