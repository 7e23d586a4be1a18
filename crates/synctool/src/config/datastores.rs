//! Datastores: the file that describes them, what they resolve to, and how one is found by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::at::At;
use super::decode::{Anything, Later};
use super::error::{ConfigError, suggestion};
use super::secret::{Secret, SecretUrl};
use super::units::Span;
use super::walarchive::{BucketKeys, Keys, Speech, WalArchive, span};

/// A configured connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Datastore {
    /// The name by which pipelines refer to it.
    pub name: String,
    /// What the user says about it.
    pub description: Option<At<String>>,
    /// Words to find it by.
    pub tags: Vec<String>,
    /// What it is and how it is reached.
    pub connection: Connection,
}

/// What a datastore is and how it is reached.
#[derive(Debug, Clone, PartialEq)]
pub enum Connection {
    /// A PostgreSQL server.
    Postgres(Box<Postgres>),
    /// A MySQL or MariaDB server.
    Mysql(Box<Mysql>),
    /// An SQLite file.
    Sqlite {
        /// The file.
        path: At<PathBuf>,
    },
    /// A DuckDB file.
    DuckDb {
        /// The file.
        path: At<PathBuf>,
        /// The shared library to load; the driver looks for one where none is given.
        library: Option<At<PathBuf>>,
    },
    /// CSV files.
    Csv {
        /// A folder whose files are tables, or one file.
        path: At<PathBuf>,
        /// How the files are written.
        options: CsvOptions,
    },
    /// Parquet files.
    Parquet {
        /// A folder whose files are tables, or one file.
        path: At<PathBuf>,
    },
    /// The archived log of a PostgreSQL server.
    WalArchive(Box<Archived>),
    /// A type that is known and that this version cannot open.
    NotYet {
        /// Its name.
        type_name: &'static str,
    },
}

/// The types that this version opens.
pub const DATASTORE_TYPES: &[&str] = &["postgres", "mysql", "sqlite", "duckdb", "csv", "parquet", "wal_archive"];

impl Connection {
    /// The word of the `type` key.
    pub fn type_name(&self) -> &'static str {
        match self {
            Connection::Postgres(_) => "postgres",
            Connection::Mysql(_) => "mysql",
            Connection::Sqlite { .. } => "sqlite",
            Connection::DuckDb { .. } => "duckdb",
            Connection::Csv { .. } => "csv",
            Connection::Parquet { .. } => "parquet",
            Connection::WalArchive(_) => "wal_archive",
            Connection::NotYet { type_name } => type_name,
        }
    }

    /// Whether its tables stand in schemas, so that a dot in a table's name parts the two.
    pub fn has_schemas(&self) -> bool {
        matches!(
            self,
            Connection::Postgres(_) | Connection::Mysql(_) | Connection::DuckDb { .. } | Connection::WalArchive(_)
        )
    }

    /// Whether its tables are those of a PostgreSQL database.
    pub fn is_postgres(&self) -> bool {
        matches!(self, Connection::Postgres(_) | Connection::WalArchive(_))
    }
}

/// How to reach a PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Postgres {
    /// Host name, address, or the folder of a Unix socket.
    pub host: At<String>,
    /// Port.
    pub port: At<u16>,
    /// Role.
    pub user: At<String>,
    /// Password, where the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<At<Secret>>,
    /// Database.
    #[serde(rename = "dbname")]
    pub database: At<String>,
    /// Schema of tables that are named without one.
    pub schema: At<String>,
    /// Whether and how strictly TLS is used.
    pub sslmode: At<SslMode>,
    /// File of trusted root certificates; the system's where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<At<PathBuf>>,
    /// File of the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<At<PathBuf>>,
    /// File of the client's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<At<PathBuf>>,
    /// How long to wait for a connection.
    pub connect_timeout: At<Span>,
    /// How long what was sent may stay unacknowledged before the connection is given up; 0 = as long as the system has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_user_timeout: Option<At<Span>>,
    /// After how long the server ends a statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub statement_timeout: Option<At<Span>>,
    /// Connections kept open.
    pub min_connections: At<u32>,
    /// Connections at most.
    pub max_connections: At<u32>,
    /// The name under which sessions appear at the server.
    pub application_name: At<String>,
}

impl Postgres {
    /// A connection with every default.
    pub fn new(host: impl Into<At<String>>, user: impl Into<At<String>>, database: impl Into<At<String>>) -> Self {
        Self {
            host: host.into(),
            port: 5432.into(),
            user: user.into(),
            password: None,
            database: database.into(),
            schema: "public".into(),
            sslmode: SslMode::Prefer.into(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Span::seconds(10).into(),
            tcp_user_timeout: None,
            statement_timeout: None,
            min_connections: 1.into(),
            max_connections: 10.into(),
            application_name: "synctool".into(),
        }
    }
}

/// The archived log of a PostgreSQL server, followed without touching the server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Archived {
    /// The archive, a base backup, and the scratch server.
    #[serde(flatten)]
    pub wal: WalArchive,
    /// Production's database.
    #[serde(rename = "dbname")]
    pub database: At<String>,
    /// Schema of tables that are named without one.
    pub schema: At<String>,
    /// How often the archive is looked at.
    pub frequency: Span,
    /// How often it should bring something.
    pub archive_interval: Span,
}

/// How to reach a MySQL or MariaDB server.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mysql {
    /// Host name or address.
    pub host: At<String>,
    /// Port.
    pub port: At<u16>,
    /// User.
    pub user: At<String>,
    /// Password, where the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password: Option<At<Secret>>,
    /// Database; that of tables that are named without one.
    pub database: At<String>,
    /// Whether and how strictly TLS is used.
    pub sslmode: At<SslMode>,
    /// File of trusted root certificates; the usual public ones where none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslrootcert: Option<At<PathBuf>>,
    /// File of the client's certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslcert: Option<At<PathBuf>>,
    /// File of the client's key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sslkey: Option<At<PathBuf>>,
    /// How long to wait for a connection.
    pub connect_timeout: At<Span>,
    /// Connections at most.
    pub max_connections: At<u32>,
}

impl Mysql {
    /// A connection with every default.
    pub fn new(host: impl Into<At<String>>, user: impl Into<At<String>>, database: impl Into<At<String>>) -> Self {
        Self {
            host: host.into(),
            port: 3306.into(),
            user: user.into(),
            password: None,
            database: database.into(),
            sslmode: SslMode::Prefer.into(),
            sslrootcert: None,
            sslcert: None,
            sslkey: None,
            connect_timeout: Span::seconds(10).into(),
            max_connections: 10.into(),
        }
    }
}

/// Whether and how strictly TLS is used; the words and their meaning are libpq's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SslMode {
    /// Never.
    Disable,
    /// If the server offers it; the default.
    Prefer,
    /// Always, without a look at the certificate.
    Require,
    /// Always, with a certificate signed by a trusted root.
    VerifyCa,
    /// Always, with a trusted certificate made out to the host.
    VerifyFull,
}

/// How CSV files are written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CsvOptions {
    /// Between fields.
    pub delimiter: char,
    /// Whether the first line names the columns.
    pub header: bool,
    /// The unquoted text that stands for NULL.
    pub null: String,
    /// Around fields that need it.
    pub quote: char,
}

impl Default for CsvOptions {
    fn default() -> Self {
        Self {
            delimiter: ',',
            header: true,
            null: String::new(),
            quote: '"',
        }
    }
}

/// The datastores at hand for a pipeline, and where they were found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Datastores {
    pub(super) entries: BTreeMap<String, At<Datastore>>,
    pub(super) found_in: Option<FoundIn>,
    /// Where a file was looked for, in order.
    pub(super) looked_in: Vec<PathBuf>,
    pub(super) not_yet: Vec<super::decode::Notice>,
}

/// Which file the datastores came from, and by which rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundIn {
    /// The file.
    pub path: PathBuf,
    /// The rule, in words: `--datastores`, `datastores_path of synctool.yaml`, `beside the pipeline`.
    pub rule: String,
}

impl Datastores {
    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = &Datastore> {
        self.entries.values().map(|entry| &**entry)
    }

    /// The file they came from; none where every one stands in the pipeline itself.
    pub fn found_in(&self) -> Option<&FoundIn> {
        self.found_in.as_ref()
    }

    /// The place where one is described, as `file:line:column`.
    pub fn place(&self, name: &str) -> Option<String> {
        self.entries.get(name)?.origin().map(ToString::to_string)
    }

    /// One by name, if this version can open it. The error points at the name that was asked for.
    pub fn get(&self, name: &At<String>) -> Result<&Datastore, ConfigError> {
        let datastore = self.known(name)?;
        match (&datastore.connection, self.entries.get(&**name)) {
            (Connection::NotYet { type_name }, Some(entry)) => Err(not_yet(
                entry.error(format!("datastore \"{}\" is of type {type_name}", entry.name)),
            )),
            _ => Ok(datastore),
        }
    }

    /// One by name, whether this version can open it or not.
    pub fn known(&self, name: &At<String>) -> Result<&Datastore, ConfigError> {
        let Some(entry) = self.entries.get(&**name) else {
            let names: Vec<&str> = self.entries.keys().map(String::as_str).collect();
            let error = name.error(format!("there is no datastore \"{}\"", name.shown()));
            return Err(match (suggestion(name, "datastores", &names), &self.found_in) {
                (Some(help), _) => error.with_help(help),
                (None, Some(found)) => error.with_help(format!("{} describes none", found.path.display())),
                (None, None) => {
                    let looked: Vec<String> = self.looked_in.iter().map(|p| p.display().to_string()).collect();
                    error.with_help(format!(
                        "no datastores file was found (looked for {}); name one by --datastores",
                        looked.join(", ")
                    ))
                }
            });
        };
        Ok(entry)
    }
}

/// The error for a type of datastore that only a later version opens.
pub(super) fn not_yet(mut error: ConfigError) -> ConfigError {
    error.message.push_str(", which is not in this version yet");
    error.with_help(format!("this version opens {}", DATASTORE_TYPES.join(", ")))
}

// ---------------------------------------------------------------------------------------------------------------------
// The file

/// A datastores file: connections by name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(title = "SyncTool datastores", deny_unknown_fields)]
pub(super) struct DatastoresFile {
    /// Connections by name.
    pub(super) datastores: BTreeMap<String, At<DatastoreEntry>>,
}

/// One connection; `type` says what it is.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(tag = "type")]
pub(super) enum DatastoreEntry {
    /// A PostgreSQL server.
    Postgres(Box<PostgresEntry>),
    /// A MySQL or MariaDB server.
    MySql(Box<MysqlEntry>),
    /// The same.
    MariaDb(Box<MysqlEntry>),
    /// An SQLite file.
    Sqlite(FileEntry),
    /// A DuckDB file.
    DuckDb(DuckDbEntry),
    /// A folder of CSV files, or one.
    Csv(CsvEntry),
    /// A folder of Parquet files, or one.
    Parquet(FileEntry),
    /// The archived log of a PostgreSQL server with a base backup: a source of strategies of type log.
    #[serde(rename = "wal_archive")]
    WalArchive(Box<WalArchiveEntry>),
    #[schemars(skip)]
    ClickHouse(Anything),
    #[schemars(skip)]
    StarRocks(Anything),
    #[schemars(skip)]
    S3(Anything),
    #[schemars(skip)]
    MinIo(Anything),
    #[schemars(skip)]
    Redis(Anything),
    #[schemars(skip)]
    Kafka(Anything),
}

impl DatastoreEntry {
    /// A PostgreSQL server by the keys of its connection.
    pub(super) fn postgres(connection: At<PostgresConnection>) -> Self {
        DatastoreEntry::Postgres(Box::new(PostgresEntry {
            connection: Some(connection),
            url: None,
            description: None,
            tags: None,
            additional_capabilities: None,
            disabled_capabilities: None,
        }))
    }

    /// A MySQL or MariaDB server, by the keys that older files know.
    pub(super) fn mysql(connection: At<PostgresConnection>) -> Self {
        let place = connection.with(());
        let c = connection.into_inner();
        DatastoreEntry::MySql(Box::new(MysqlEntry {
            connection: Some(place.with(MysqlConnection {
                host: c.host,
                port: c.port,
                user: c.user,
                password: c.password,
                database: c.database,
                dbname: c.dbname,
                schema: c.schema,
                max_connections: c.max_connections,
                ..MysqlConnection::default()
            })),
            url: None,
            description: None,
            tags: None,
            additional_capabilities: None,
            disabled_capabilities: None,
        }))
    }

    /// A folder of Parquet files.
    pub(super) fn parquet(path: At<PathBuf>) -> Self {
        DatastoreEntry::Parquet(FileEntry {
            path: Some(path),
            ..FileEntry::default()
        })
    }
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(super) struct PostgresEntry {
    /// How to reach the server.
    connection: Option<At<PostgresConnection>>,
    /// The same as one URL: `postgresql://user:password@host:5432/database?sslmode=require`.
    url: Option<At<SecretUrl>>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
    additional_capabilities: Option<Later<Anything>>,
    disabled_capabilities: Option<Later<Anything>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct PostgresConnection {
    /// The whole connection as one URL; keys beside it win over its parts.
    pub(super) url: Option<At<SecretUrl>>,
    /// Host name, address, or the folder of a Unix socket. Default: localhost.
    pub(super) host: Option<At<String>>,
    /// Default: 5432.
    pub(super) port: Option<At<u16>>,
    pub(super) user: Option<At<String>>,
    pub(super) password: Option<At<Secret>>,
    pub(super) dbname: Option<At<String>>,
    /// Another name of `dbname`.
    pub(super) database: Option<At<String>>,
    /// Schema of tables that are named without one. Default: public.
    pub(super) schema: Option<At<String>>,
    /// Default: prefer.
    pub(super) sslmode: Option<At<SslMode>>,
    /// File of trusted root certificates.
    pub(super) sslrootcert: Option<At<PathBuf>>,
    /// File of the client's certificate.
    pub(super) sslcert: Option<At<PathBuf>>,
    /// File of the client's key.
    pub(super) sslkey: Option<At<PathBuf>>,
    /// Default: 10s.
    pub(super) connect_timeout: Option<At<Span>>,
    /// How long what was sent may stay unacknowledged before the connection is given up. Default: 5m; 0 = as long as the
    /// system has it.
    pub(super) tcp_user_timeout: Option<At<Span>>,
    /// Default: the server's.
    pub(super) statement_timeout: Option<At<Span>>,
    /// Has no effect in this version yet.
    pub(super) min_connections: Option<Later<At<u32>>>,
    /// Default: 10.
    pub(super) max_connections: Option<At<u32>>,
    /// Default: synctool.
    pub(super) application_name: Option<At<String>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
pub(super) struct MysqlEntry {
    /// How to reach the server.
    connection: Option<At<MysqlConnection>>,
    /// The same as one URL: `mysql://user:password@host:3306/database?sslmode=require`.
    url: Option<At<SecretUrl>>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
    additional_capabilities: Option<Later<Anything>>,
    disabled_capabilities: Option<Later<Anything>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "keys without effect are read for their notices alone")]
struct MysqlConnection {
    /// The whole connection as one URL; keys beside it win over its parts.
    url: Option<At<SecretUrl>>,
    /// Host name or address. Default: localhost.
    host: Option<At<String>>,
    /// Default: 3306.
    port: Option<At<u16>>,
    user: Option<At<String>>,
    password: Option<At<Secret>>,
    database: Option<At<String>>,
    /// Another name of `database`.
    dbname: Option<At<String>>,
    /// Another name of `database`: there a schema is a database.
    schema: Option<At<String>>,
    /// Default: prefer.
    sslmode: Option<At<SslMode>>,
    /// File of trusted root certificates.
    sslrootcert: Option<At<PathBuf>>,
    /// File of the client's certificate.
    sslcert: Option<At<PathBuf>>,
    /// File of the client's key.
    sslkey: Option<At<PathBuf>>,
    /// Default: 10s.
    connect_timeout: Option<At<Span>>,
    min_connections: Option<Later<u32>>,
    /// Default: 10.
    max_connections: Option<At<u32>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct FileEntry {
    /// The file or folder; relative to this file.
    path: Option<At<PathBuf>>,
    connection: Option<PathConnection>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct DuckDbEntry {
    /// The file; relative to this file.
    path: Option<At<PathBuf>>,
    connection: Option<DuckDbConnection>,
    /// The path of libduckdb.so.
    library: Option<At<PathBuf>>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct CsvEntry {
    /// A folder whose files are tables, or one file; relative to this file.
    path: Option<At<PathBuf>>,
    connection: Option<PathConnection>,
    /// Between fields; one character or the word tab. Default: a comma.
    delimiter: Option<At<String>>,
    /// Whether the first line names the columns. Default: true.
    header: Option<bool>,
    /// The unquoted text that stands for NULL. Default: nothing.
    null: Option<String>,
    /// Around fields that need it. Default: a double quote.
    quote: Option<At<char>>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(super) struct WalArchiveEntry {
    /// Production's database.
    dbname: Option<At<String>>,
    /// Schema of tables that are named without one. Default: public.
    schema: Option<At<String>>,
    /// How often the archive is looked at. Default: 10s.
    frequency: Option<At<Span>>,
    /// T: an archive that brought nothing for three times as long is told. Default: 10m.
    archive_interval: Option<At<Span>>,
    /// The directory into which production archives its log; paths are relative to this file.
    archive_dir: Option<At<PathBuf>>,
    /// In place of archive_dir: a command that fetches the file %f to %p, and fails if there is none.
    wal_fetch_command: Option<At<String>>,
    /// In place of archive_dir: s3://bucket/prefix of an S3-compatible store.
    archive_s3: Option<At<String>>,
    /// The store's address. Default: Amazon's.
    s3_endpoint: Option<At<String>>,
    /// The region to sign for. Default: AWS_REGION, or us-east-1.
    s3_region: Option<At<String>>,
    /// An access key that may list the bucket and get its objects. Default: AWS_ACCESS_KEY_ID, or the machine's own.
    s3_access_key_id: Option<At<String>>,
    /// Its secret.
    s3_secret_access_key: Option<At<Secret>>,
    /// A base backup of production: a directory, a directory with base.tar, or a tar file; compressed or not.
    base_backup: Option<At<PathBuf>>,
    /// In place of base_backup: a command that restores one into the empty directory %p.
    base_restore_command: Option<At<String>>,
    /// Where postgres and pg_ctl of production's major version are. Default: where packages put them, then on the PATH.
    pg_bin_dir: Option<At<PathBuf>>,
    /// A directory as large as production's data, for the scratch server of one pipeline.
    scratch_dir: Option<At<PathBuf>>,
    /// The system user that runs it, if synctool runs as root. Default: postgres.
    scratch_user: Option<At<String>>,
    /// A superuser of production's cluster. Default: postgres.
    scratch_role: Option<At<String>>,
    /// Segments of one batch, at most. Default: 64.
    batch_segments: Option<At<u32>>,
    /// Looks at the archive before something missing or damaged is an error. Default: 3.
    archive_patience: Option<At<u32>>,
    /// How long the scratch server may replay without getting on. Default: 10m.
    replay_timeout: Option<At<Span>>,
    /// What it is, for people.
    description: Option<At<String>>,
    /// Words to find it by.
    tags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct PathConnection {
    /// The file or folder; relative to this file.
    path: At<PathBuf>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct DuckDbConnection {
    /// The file; relative to this file.
    path: At<PathBuf>,
    /// The path of libduckdb.so.
    library: Option<At<PathBuf>>,
}

/// Entries of a file → datastores. `folder` is where the file stands.
pub(super) fn resolve(
    entries: BTreeMap<String, At<DatastoreEntry>>,
    folder: &Path,
    errors: &mut Vec<ConfigError>,
) -> BTreeMap<String, At<Datastore>> {
    let mut resolved = BTreeMap::new();
    for (name, entry) in entries {
        let place = entry.with(());
        match datastore(&name, entry, folder, errors) {
            Ok(datastore) => {
                resolved.insert(name, place.with(datastore));
            }
            Err(error) => errors.push(error),
        }
    }
    resolved
}

fn datastore(
    name: &str,
    entry: At<DatastoreEntry>,
    folder: &Path,
    errors: &mut Vec<ConfigError>,
) -> Result<Datastore, ConfigError> {
    let place = entry.with(());
    let beside = |path: At<PathBuf>| path.with(folder.join(&*path));
    let one_path = |path: Option<At<PathBuf>>, below: Option<At<PathBuf>>| match (path, below) {
        (Some(path), None) | (None, Some(path)) if path.as_os_str().is_empty() => {
            Err(path.error(format!("datastores.{name}: the path is empty")))
        }
        (Some(path), None) | (None, Some(path)) => Ok(beside(path)),
        (Some(path), Some(_)) => Err(path.error(format!("datastores.{name} has two paths"))),
        (None, None) => Err(place.error(format!("missing key \"path\" in datastores.{name}"))),
    };
    let mut about = (None, None);
    let connection = match entry.into_inner() {
        DatastoreEntry::Postgres(entry) => {
            about = (entry.description, entry.tags);
            Connection::Postgres(Box::new(postgres(
                name,
                entry.connection,
                entry.url,
                folder,
                &place,
                errors,
            )?))
        }
        DatastoreEntry::MySql(entry) | DatastoreEntry::MariaDb(entry) => {
            about = (entry.description, entry.tags);
            let parsed = mysql(name, entry.connection, entry.url, folder, &place, errors)?;
            Connection::Mysql(Box::new(parsed))
        }
        DatastoreEntry::Sqlite(entry) => {
            about = (entry.description, entry.tags);
            let path = one_path(entry.path, entry.connection.map(|c| c.path))?;
            if path.file_name().is_some_and(|name| name == ":memory:") {
                return Err(path
                    .error(format!(
                        "datastores.{name}: a database in memory ends with each connection"
                    ))
                    .with_help("name a file"));
            }
            Connection::Sqlite { path }
        }
        DatastoreEntry::DuckDb(entry) => {
            about = (entry.description, entry.tags);
            let (below, library) = match entry.connection {
                Some(connection) => (Some(connection.path), connection.library),
                None => (None, None),
            };
            Connection::DuckDb {
                path: one_path(entry.path, below)?,
                library: entry.library.or(library).map(beside),
            }
        }
        DatastoreEntry::Csv(entry) => {
            about = (entry.description, entry.tags);
            let defaults = CsvOptions::default();
            let delimiter = match &entry.delimiter {
                None => defaults.delimiter,
                Some(text) => one_character(text)
                    .ok_or_else(|| text.error(format!("datastores.{name}.delimiter must be one ASCII character")))?,
            };
            let quote = match &entry.quote {
                None => defaults.quote,
                Some(quote) if quote.is_ascii() => **quote,
                Some(quote) => {
                    return Err(quote.error(format!("datastores.{name}.quote must be one ASCII character")));
                }
            };
            if quote == delimiter {
                return Err(place.error(format!("datastores.{name}: quote and delimiter are the same character")));
            }
            Connection::Csv {
                path: one_path(entry.path, entry.connection.map(|c| c.path))?,
                options: CsvOptions {
                    delimiter,
                    header: entry.header.unwrap_or(defaults.header),
                    null: entry.null.unwrap_or(defaults.null),
                    quote,
                },
            }
        }
        DatastoreEntry::Parquet(entry) => {
            about = (entry.description, entry.tags);
            Connection::Parquet {
                path: one_path(entry.path, entry.connection.map(|c| c.path))?,
            }
        }
        DatastoreEntry::WalArchive(entry) => {
            let missing = |key: &str, help: &str| {
                let error = place.error(format!("missing key \"{key}\" in datastores.{name}"));
                error.with_help(help)
            };
            let speech = Speech {
                spell: str::to_owned,
                missing: &missing,
                folder,
                scratch_dir: None,
            };
            let keys = Keys {
                archive_dir: entry.archive_dir,
                wal_fetch_command: entry.wal_fetch_command,
                bucket: BucketKeys {
                    url: entry.archive_s3,
                    endpoint: entry.s3_endpoint,
                    region: entry.s3_region,
                    key: entry.s3_access_key_id,
                    secret: entry.s3_secret_access_key,
                },
                base_backup: entry.base_backup,
                base_restore_command: entry.base_restore_command,
                pg_bin_dir: entry.pg_bin_dir,
                scratch_dir: entry.scratch_dir,
                scratch_user: entry.scratch_user,
                scratch_role: entry.scratch_role,
                batch_segments: entry.batch_segments,
                archive_patience: entry.archive_patience,
                replay_timeout: entry.replay_timeout,
            };
            about = (entry.description, entry.tags);
            let frequency = span(entry.frequency, 10, "frequency", errors);
            let archive_interval = span(entry.archive_interval, 600, "archive_interval", errors);
            if entry.dbname.is_none() {
                errors.push(missing("dbname", "name production's database"));
            }
            let (wal, database) = match (keys.resolve(speech, errors), entry.dbname) {
                (Some(wal), Some(database)) => (wal, database),
                _ => {
                    let last = errors.pop();
                    return Err(last.unwrap_or_else(|| place.error(format!("datastores.{name} is not complete"))));
                }
            };
            Connection::WalArchive(Box::new(Archived {
                wal,
                database,
                schema: entry.schema.unwrap_or_else(|| "public".into()),
                frequency,
                archive_interval,
            }))
        }
        DatastoreEntry::ClickHouse(_) => Connection::NotYet {
            type_name: "clickhouse",
        },
        DatastoreEntry::StarRocks(_) => Connection::NotYet { type_name: "starrocks" },
        DatastoreEntry::S3(_) => Connection::NotYet { type_name: "s3" },
        DatastoreEntry::MinIo(_) => Connection::NotYet { type_name: "minio" },
        DatastoreEntry::Redis(_) => Connection::NotYet { type_name: "redis" },
        DatastoreEntry::Kafka(_) => Connection::NotYet { type_name: "kafka" },
    };
    let (description, tags) = about;
    Ok(Datastore {
        name: name.to_owned(),
        description,
        tags: tags.unwrap_or_default(),
        connection,
    })
}

fn one_character(text: &str) -> Option<char> {
    if text.eq_ignore_ascii_case("tab") || text == "\\t" {
        return Some('\t');
    }
    let mut chars = text.chars();
    chars.next().filter(|c| c.is_ascii() && chars.next().is_none())
}

fn postgres(
    name: &str,
    connection: Option<At<PostgresConnection>>,
    url: Option<At<SecretUrl>>,
    folder: &Path,
    entry: &At<()>,
    errors: &mut Vec<ConfigError>,
) -> Result<Postgres, ConfigError> {
    let place = connection.as_ref().map_or_else(|| entry.clone(), |c| c.with(()));
    let keys = connection.map(At::into_inner).unwrap_or_default();
    if let (Some(url), Some(_)) = (&url, &keys.url) {
        return Err(url.error(format!("datastores.{name} has two URLs")));
    }
    if let (Some(_), Some(database)) = (&keys.dbname, &keys.database) {
        errors.push(database.error(format!(
            "datastores.{name}.connection: dbname and database are the same key"
        )));
    }
    let from_url = match url.or(keys.url) {
        Some(url) => {
            let parsed = super::uri::postgres(url.reveal())
                .map_err(|message| url.error(format!("datastores.{name}: {message}")))?;
            Some(parsed.placed_at(&url.with(())))
        }
        None => None,
    };
    // Every key that is missing is told, not the first alone.
    let given_by_url = from_url.is_some();
    let mut missing: Vec<&str> = Vec::new();
    if !given_by_url {
        if keys.user.is_none() {
            missing.push("user");
        }
        if keys.dbname.is_none() && keys.database.is_none() {
            missing.push("dbname");
        }
    }
    if !missing.is_empty() {
        for key in &missing[1..] {
            errors.push(place.error(format!("missing key \"{key}\" in datastores.{name}.connection")));
        }
        return Err(place.error(format!(
            "missing key \"{}\" in datastores.{name}.connection",
            missing[0]
        )));
    }
    let mut base = from_url.unwrap_or_else(|| Postgres::new("localhost", "", ""));
    let beside = |path: At<PathBuf>| path.with(folder.join(&*path));
    if let Some(host) = keys.host {
        base.host = host;
    }
    if let Some(port) = keys.port {
        base.port = port;
    }
    if let Some(user) = keys.user {
        base.user = user;
    }
    if let Some(database) = keys.dbname.or(keys.database) {
        base.database = database;
    }
    if let Some(schema) = keys.schema {
        base.schema = schema;
    }
    if let Some(mode) = keys.sslmode {
        base.sslmode = mode;
    }
    if let Some(timeout) = keys.connect_timeout {
        base.connect_timeout = timeout;
    }
    if let Some(Later(n)) = keys.min_connections {
        base.min_connections = n;
    }
    if let Some(n) = keys.max_connections {
        base.max_connections = n;
    }
    if let Some(name) = keys.application_name {
        base.application_name = name;
    }
    base.password = keys.password.or(base.password);
    base.tcp_user_timeout = keys.tcp_user_timeout.or(base.tcp_user_timeout);
    base.statement_timeout = keys.statement_timeout.or(base.statement_timeout);
    base.sslrootcert = keys.sslrootcert.or(base.sslrootcert).map(beside);
    base.sslcert = keys.sslcert.or(base.sslcert).map(beside);
    base.sslkey = keys.sslkey.or(base.sslkey).map(beside);
    for (key, value) in [("host", &base.host), ("user", &base.user), ("dbname", &base.database)] {
        if value.is_empty() {
            errors.push(value.error(format!("datastores.{name}.connection.{key} is empty")));
        }
    }
    if *base.max_connections == 0 || *base.min_connections > *base.max_connections {
        let message = format!("datastores.{name}.connection.max_connections must be at least 1 and min_connections");
        errors.push(base.max_connections.error(message));
    }
    if base.sslcert.is_some() != base.sslkey.is_some() {
        let one = base
            .sslcert
            .as_ref()
            .or(base.sslkey.as_ref())
            .unwrap_or_else(|| unreachable!("one is set"));
        errors.push(one.error(format!("datastores.{name}.connection: sslcert and sslkey go together")));
    }
    Ok(base)
}

/// The database of a MySQL server, which has several names.
fn one_database(name: &str, names: [Option<At<String>>; 3], errors: &mut Vec<ConfigError>) -> Option<At<String>> {
    let mut said = names.into_iter().flatten();
    let database = said.next()?;
    for other in said.filter(|other| **other != *database) {
        let message = format!("datastores.{name}.connection: database, dbname and schema are the same key");
        errors.push(other.error(message));
    }
    Some(database)
}

fn mysql(
    name: &str,
    connection: Option<At<MysqlConnection>>,
    url: Option<At<SecretUrl>>,
    folder: &Path,
    entry: &At<()>,
    errors: &mut Vec<ConfigError>,
) -> Result<Mysql, ConfigError> {
    let place = connection.as_ref().map_or_else(|| entry.clone(), |c| c.with(()));
    let mut keys = connection.map(At::into_inner).unwrap_or_default();
    if let (Some(url), Some(_)) = (&url, &keys.url) {
        return Err(url.error(format!("datastores.{name} has two URLs")));
    }
    keys.database = one_database(
        name,
        [keys.database.take(), keys.dbname.take(), keys.schema.take()],
        errors,
    );
    let mut base = match url.or(keys.url) {
        Some(url) => super::uri::mysql(url.reveal())
            .map_err(|message| url.error(format!("datastores.{name}: {message}")))?
            .placed_at(&url.with(())),
        None => {
            let missing: Vec<&str> = [("user", &keys.user), ("database", &keys.database)]
                .into_iter()
                .filter_map(|(key, given)| given.is_none().then_some(key))
                .collect();
            let told = |key: &str| place.error(format!("missing key \"{key}\" in datastores.{name}.connection"));
            if let Some((first, more)) = missing.split_first() {
                errors.extend(more.iter().map(|key| told(key)));
                return Err(told(first));
            }
            Mysql::new("localhost", "", "")
        }
    };
    let beside = |path: At<PathBuf>| path.with(folder.join(&*path));
    base.host = keys.host.unwrap_or(base.host);
    base.port = keys.port.unwrap_or(base.port);
    base.user = keys.user.unwrap_or(base.user);
    base.database = keys.database.unwrap_or(base.database);
    base.password = keys.password.or(base.password);
    base.sslmode = keys.sslmode.unwrap_or(base.sslmode);
    base.connect_timeout = keys.connect_timeout.unwrap_or(base.connect_timeout);
    base.max_connections = keys.max_connections.unwrap_or(base.max_connections);
    base.sslrootcert = keys.sslrootcert.or(base.sslrootcert).map(beside);
    base.sslcert = keys.sslcert.or(base.sslcert).map(beside);
    base.sslkey = keys.sslkey.or(base.sslkey).map(beside);
    for (key, value) in [("host", &base.host), ("user", &base.user), ("database", &base.database)] {
        if value.is_empty() {
            errors.push(value.error(format!("datastores.{name}.connection.{key} is empty")));
        }
    }
    if *base.max_connections == 0 {
        let message = format!("datastores.{name}.connection.max_connections must be at least 1");
        errors.push(base.max_connections.error(message));
    }
    if let (Some(one), None) | (None, Some(one)) = (&base.sslcert, &base.sslkey) {
        errors.push(one.error(format!("datastores.{name}.connection: sslcert and sslkey go together")));
    }
    Ok(base)
}
