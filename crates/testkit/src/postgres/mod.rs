//! PostgreSQL servers of every supported version.

mod database;
mod identity;

use std::fmt;
use std::fs;
use std::io::Write;
use std::ops::Deref;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

pub use database::{Template, TestDb};

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::tls::ServerCertificate;
use crate::{Port, install, prepared, shared};

const START_LIMIT: Duration = Duration::from_secs(60);

/// What every test server has: logical decoding, and nothing spent on surviving a power cut or on compiling queries.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("wal_level", "logical"),
    ("max_connections", "200"),
    ("max_wal_senders", "20"),
    ("max_replication_slots", "40"),
    ("max_prepared_transactions", "20"),
    ("fsync", "off"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("password_encryption", "scram-sha-256"),
    ("shared_buffers", "64MB"),
];

const HBA: &str = "host all all 127.0.0.1/32 trust\nhost replication all 127.0.0.1/32 trust\n";

/// A major version of PostgreSQL, or a minor one of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgVersion {
    major: u8,
    /// One that is installed beside the usual one of its major version.
    minor: Option<u8>,
}

impl PgVersion {
    /// PostgreSQL 15, tested in full.
    pub const V15: Self = Self::new(15);
    /// PostgreSQL 18, tested in full.
    pub const V18: Self = Self::new(18);
    /// An older minor version of 18, only a server.
    pub const V18_1: Self = Self {
        major: 18,
        minor: Some(1),
    };
    /// Every version that is supported, the oldest first.
    pub const ALL: [Self; 7] = [
        Self::new(12),
        Self::new(13),
        Self::new(14),
        Self::V15,
        Self::new(16),
        Self::new(17),
        Self::V18,
    ];

    /// Any other version by its number.
    pub const fn new(major: u8) -> Self {
        Self { major, minor: None }
    }

    /// The number.
    pub const fn major(self) -> u8 {
        self.major
    }

    /// Where its programs are.
    ///
    /// # Panics
    /// If it is not installed.
    #[track_caller]
    pub fn programs(self) -> PathBuf {
        install::cached(&format!("postgres-{self}/bin")).unwrap_or_else(|e| panic!("{e:#}"))
    }
}

impl fmt::Display for PgVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.minor {
            Some(minor) => write!(f, "{}.{minor}", self.major),
            None => write!(f, "{}", self.major),
        }
    }
}

/// A PostgreSQL server on 127.0.0.1.
#[derive(Debug)]
pub struct Postgres {
    version: PgVersion,
    address: Address,
    daemon: Daemon,
}

impl Deref for Postgres {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

/// How to reach it.
#[derive(Debug, Clone)]
struct Address {
    host: &'static str,
    port: u16,
    password: Option<String>,
    /// The socket's directory: open to the administrator whatever the client rules say.
    socket: Option<String>,
}

impl Address {
    fn url(&self, user: &str, database: &str) -> String {
        let password = self.password.as_deref().unwrap_or_default();
        let colon = if password.is_empty() { "" } else { ":" };
        let password = utf8_percent_encode(password, NON_ALPHANUMERIC);
        format!(
            "postgres://{user}{colon}{password}@{}:{}/{database}",
            self.host, self.port
        )
    }

    fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = psql_command()?;
        let host = self.socket.as_deref().unwrap_or("127.0.0.1");
        command.args([
            "-h",
            host,
            "-p",
            &self.port.to_string(),
            "-U",
            "postgres",
            "-d",
            database,
            "-f",
            "-",
        ]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut psql = command.spawn().context("cannot run psql")?;
        let mut input = psql.stdin.take().context("psql's input")?;
        let script = sql.to_owned();
        let writer = std::thread::spawn(move || input.write_all(script.as_bytes()));
        let output = psql.wait_with_output()?;
        if !output.status.success() {
            bail!(
                "psql on database {database}: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        writer.join().ok().context("psql's input")??;
        Ok(String::from_utf8(output.stdout)?.trim_end_matches('\n').to_owned())
    }
}

/// psql of the newest version, deaf to the PG* variables of whoever runs the tests.
fn psql_command() -> Result<Command> {
    let mut command = Command::new(install::cached("postgres-18/bin/psql").or_else(|_| install::system("psql"))?);
    command
        .env_clear()
        .env("PGCONNECT_TIMEOUT", "20")
        .env("PGCLIENTENCODING", "UTF8");
    command.args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose"]);
    Ok(command)
}

/// Runs SQL over a URL with psql, an independent judge of what a server lets in.
pub fn psql_url(url: &str, sql: &str) -> Result<String> {
    let text = crate::process::output(psql_command()?.arg(url).args(["-c", sql]).stdin(Stdio::null()))?;
    Ok(text.trim_end_matches('\n').to_owned())
}

/// A server to be, with settings of its own.
#[derive(Debug, Clone)]
pub struct PostgresBuilder {
    version: PgVersion,
    settings: Vec<(String, String)>,
    hba: Option<String>,
    password: Option<String>,
    certificate: Option<ServerCertificate>,
    /// The port of the server whose standby this will be.
    primary: Option<u16>,
    initdb: Vec<String>,
}

impl PostgresBuilder {
    /// Makes the cluster with one more option of initdb, such as `--wal-segsize=1`.
    #[must_use]
    pub fn initdb(mut self, option: &str) -> Self {
        self.initdb.push(option.into());
        self
    }

    /// Sets a line of postgresql.conf.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// Lets it archive its log, in segments of 1 MiB, into a directory that this makes.
    ///
    /// # Panics
    /// If the directory cannot be made.
    #[must_use]
    #[track_caller]
    pub fn archiving_to(self, directory: &Path) -> Self {
        fs::create_dir(directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        // The server archives as its own user.
        let id = |flag: &str| -> Option<u32> {
            let output = Command::new("id").args([flag, "postgres"]).output().ok()?;
            String::from_utf8(output.stdout).ok()?.trim().parse().ok()
        };
        let _ = chown(directory, id("-u"), id("-g"));
        let command = format!("cp %p {0}/%f.tmp && mv {0}/%f.tmp {0}/%f", directory.display());
        self.initdb("--wal-segsize=1")
            .setting("archive_mode", "on")
            .setting("archive_command", &command)
    }

    /// Replaces the client rules (pg_hba.conf), one per line. The kit itself comes in through the socket, which stays
    /// open.
    #[must_use]
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = Some(format!("{lines}\n"));
        self
    }

    /// Gives the user `postgres` a password, which [`Postgres::url`] then holds, and asks TCP clients for it by SCRAM.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Switches TLS on and refuses TCP clients without it. Not for 18, whose build here has no TLS; 17 has it.
    #[must_use]
    pub fn tls(mut self, certificate: &ServerCertificate) -> Self {
        self.certificate = Some(certificate.clone());
        self
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start(self) -> Postgres {
        let version = self.version;
        self.try_start()
            .unwrap_or_else(|e| panic!("cannot start PostgreSQL {version}: {e:#}"))
    }

    fn try_start(self) -> Result<Postgres> {
        let initdb = install::cached(&format!("postgres-{}/bin/initdb", self.version))?;
        if self.certificate.is_some() && self.version == PgVersion::V18 {
            bail!("the build of PostgreSQL 18 that can be installed has no TLS; test TLS with 17 or 15");
        }
        let name = format!("pg{}", self.version);
        let port = Port::free();
        // QUIT is the immediate shutdown: it leaves no shared memory behind, as KILL would.
        let supervisor = Supervisor::new(&name, Some("postgres"), "QUIT")?;
        match self.primary {
            None => {
                let options = "-U postgres -A trust -E UTF8 --locale=C.UTF-8 -N";
                let mut options: Vec<&str> = options.split(' ').collect();
                options.extend(self.initdb.iter().map(String::as_str));
                let kind = shared::plain(&format!("{name}{}", self.initdb.concat()), 60);
                let make = |data: &str| supervisor.prepare(&initdb, &[&["-D", data][..], &options[..]].concat());
                if prepared::data(&supervisor, &kind, make)? {
                    identity::renew(&supervisor.directory().join("data"))?;
                }
            }
            Some(primary) => {
                let options = format!("-D data -U postgres -h 127.0.0.1 -p {primary} -X stream -c fast -N");
                // The newest copies every version; some builds of the older ones come without it.
                let program = install::cached("postgres-18/bin/pg_basebackup")?;
                supervisor.prepare(&program, &options.split(' ').collect::<Vec<_>>())?;
            }
        }

        let socket = supervisor.directory().display().to_string();
        let mut conf = String::new();
        let mut set = |name: &str, value: &str| conf += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        set("port", &port.number().to_string());
        set("unix_socket_directories", &socket);
        SETTINGS.iter().for_each(|(name, value)| set(name, value));
        if let Some(primary) = self.primary {
            // The newest program's -R would name options that older servers do not know.
            supervisor.write("data/standby.signal", "")?;
            set(
                "primary_conninfo",
                &format!("host=127.0.0.1 port={primary} user=postgres"),
            );
        }
        if let Some(certificate) = &self.certificate {
            let place =
                |name: &str, pem: &str| Ok::<_, anyhow::Error>(supervisor.write(name, pem)?.display().to_string());
            set("ssl", "on");
            set("ssl_cert_file", &place("server.crt", certificate.certificate())?);
            set("ssl_key_file", &place("server.key", certificate.key())?);
            set("ssl_ca_file", &place("ca.crt", certificate.authority())?);
        }
        self.settings.iter().for_each(|(name, value)| set(name, value));
        // A file of its own, so that the last word is ours: postgresql.auto.conf is for ALTER SYSTEM, which outlives it.
        supervisor.write("data/postgresql.conf", conf)?;

        let method = if self.password.is_some() {
            "scram-sha-256"
        } else {
            "trust"
        };
        let kind = if self.certificate.is_some() { "hostssl" } else { "host" };
        let hba = self
            .hba
            .unwrap_or_else(|| HBA.replace("trust", method).replace("host ", &format!("{kind} ")));
        supervisor.write(
            "data/pg_hba.conf",
            format!("local all all trust\nlocal replication all trust\n{hba}"),
        )?;

        let host = if self.certificate.is_some() {
            "localhost"
        } else {
            "127.0.0.1"
        };
        let address = Address {
            host,
            port: port.number(),
            password: self.password,
            socket: Some(socket),
        };
        let recipe = Recipe {
            program: initdb.with_file_name("postgres"),
            arguments: vec!["-D".into(), "data".into()],
            stop: "QUIT",
            limit: START_LIMIT,
            ready: Box::new(accepts_connections),
        };
        let daemon = Daemon::start(&name, supervisor, vec![port], recipe)?;
        let server = Postgres {
            version: self.version,
            address,
            daemon,
        };
        if let Some(password) = &server.address.password {
            server.try_psql(&format!(
                "ALTER ROLE postgres PASSWORD '{}'",
                password.replace('\'', "''")
            ))?;
        }
        Ok(server)
    }
}

impl Postgres {
    /// A server to be configured before it starts.
    pub fn builder(version: PgVersion) -> PostgresBuilder {
        PostgresBuilder {
            version,
            settings: Vec::new(),
            hba: None,
            password: None,
            certificate: None,
            primary: None,
            initdb: Vec::new(),
        }
    }

    /// A hot standby of this server, which follows it by streaming and can be read.
    ///
    /// # Panics
    /// If it cannot be made, or this server lets no replication in.
    #[track_caller]
    pub fn standby(&self) -> Self {
        self.standby_with(&[])
    }

    /// The same with further settings, which win over the usual ones.
    ///
    /// # Panics
    /// If it cannot be made, or this server lets no replication in.
    #[track_caller]
    pub fn standby_with(&self, settings: &[(&str, &str)]) -> Self {
        let mut builder = Self::builder(self.version);
        builder.primary = Some(self.port());
        for (name, value) in settings {
            builder = builder.setting(name, value);
        }
        builder.start()
    }

    /// A private server with the usual settings; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start(version: PgVersion) -> Self {
        Self::builder(version).start()
    }

    /// A server for many tests. Nobody crashes it, so its log is written at once, and who follows it waits for nothing; and
    /// it holds no images of pages: each database that is dropped makes a checkpoint, behind which all of them would be
    /// written again, and read by whoever follows the log.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start_shared(version: PgVersion) -> Self {
        Self::builder(version)
            .setting("wal_writer_delay", "10ms")
            .setting("full_page_writes", "off")
            .start()
    }

    /// The server of this version that the whole test run shares. Use a [`TestDb`] of it, and change nothing that
    /// other databases see.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared(version: PgVersion) -> &'static Self {
        static RUNNING: Shared<Postgres> = Shared::new();
        let name = format!("pg{version}");
        let attach = |url: &str| {
            let daemon = Daemon::attach(&name, url);
            let address = Address {
                host: "127.0.0.1",
                port: daemon.port(),
                password: None,
                socket: None,
            };
            Self {
                version,
                address,
                daemon,
            }
        };
        shared::instance(&RUNNING, &name, attach, || Self::start_shared(version))
    }

    /// Its version.
    pub fn version(&self) -> PgVersion {
        self.version
    }

    /// A program of the same version, such as pg_waldump. Only 15 and 18 have more than a server.
    ///
    /// # Panics
    /// If it is not installed.
    #[track_caller]
    pub fn tool(&self, name: &str) -> PathBuf {
        install::cached(&format!("postgres-{}/bin/{name}", self.version)).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// Makes a base backup of it, without its log.
    ///
    /// # Panics
    /// If it cannot be made.
    #[track_caller]
    pub fn base_backup(&self, to: &Path) {
        let mut command = Command::new(self.tool("pg_basebackup"));
        // Without waiting for the disk: nothing here is to survive a power cut.
        command.args(["-X", "none", "-c", "fast", "-N", "-h", "127.0.0.1", "-U", "postgres"]);
        command.args(["-p", &self.port().to_string(), "-D"]).arg(to);
        let output = command.output().unwrap_or_else(|e| panic!("pg_basebackup: {e}"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Ends the segment of the log and waits until it is archived in `directory`.
    ///
    /// # Panics
    /// If it is not archived within `patience`.
    #[track_caller]
    pub fn archive_now(&self, directory: &Path, patience: Duration) {
        let names = self.psql("SELECT pg_create_restore_point('x'); SELECT pg_walfile_name(pg_switch_wal())");
        let name = names.lines().last().unwrap_or_default().to_owned();
        crate::wait_for("the archive", patience, || directory.join(&name).is_file());
    }

    /// Its data directory.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn data_directory(&self) -> PathBuf {
        self.psql("SHOW data_directory").into()
    }

    /// The superuser's URL of a database.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The URL of a database for another user. The password in it, if the server has one, is the superuser's.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        self.address.url(user, database)
    }

    /// The superuser's URL of the database `postgres`.
    pub fn admin_url(&self) -> String {
        self.url("postgres")
    }

    /// The directory of its unix socket.
    ///
    /// # Panics
    /// For a shared server.
    #[track_caller]
    pub fn socket_directory(&self) -> &str {
        let socket = self.address.socket.as_deref();
        socket.unwrap_or_else(|| panic!("the socket of a shared server is its starter's; start one of your own"))
    }

    /// Runs SQL with psql in the database `postgres`; returns unaligned rows without a header. psql's own commands work.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The same, for SQL that may fail.
    pub fn try_psql(&self, sql: &str) -> Result<String> {
        self.address.psql("postgres", sql)
    }

    /// A fresh database, dropped with the returned value.
    ///
    /// # Panics
    /// If it cannot be created.
    #[track_caller]
    pub fn database(&self, prefix: &str) -> TestDb {
        TestDb::create(&self.address, prefix, "").unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// A fresh copy of a template.
    ///
    /// # Panics
    /// If it cannot be created.
    #[track_caller]
    pub fn database_from(&self, prefix: &str, template: &Template) -> TestDb {
        let template = format!("TEMPLATE {}", template.name());
        TestDb::create(&self.address, prefix, &template).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// An empty database whose texts are ordered by a language (`en-US`), as ICU does it.
    ///
    /// # Panics
    /// If the server does not make it.
    pub fn database_in_language(&self, prefix: &str, language: &str) -> TestDb {
        let options =
            format!("TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE '{language}' LOCALE 'C' ENCODING 'UTF8'");
        TestDb::create(&self.address, prefix, &options).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// A database prepared by `script` (SQL for psql), made once per server and script, to be copied by
    /// [`Postgres::database_from`].
    ///
    /// # Panics
    /// If the script fails.
    #[track_caller]
    pub fn template(&self, name: &str, script: &str) -> Template {
        Template::prepare(&self.address, name, script).unwrap_or_else(|e| panic!("template {name}: {e:#}"))
    }
}

/// The eighth line of the file says when connections are accepted; the first, that a killed server did not leave it.
fn accepts_connections(supervisor: &Supervisor) -> bool {
    let file = fs::read_to_string(supervisor.directory().join("data/postmaster.pid")).unwrap_or_default();
    let mut lines = file.lines();
    lines.next().and_then(|pid| pid.parse().ok()) == supervisor.pid()
        && lines.nth(6).is_some_and(|s| s.trim() == "ready")
}
