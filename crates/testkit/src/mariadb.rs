//! MariaDB, which stands for the MySQL family here.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Deref;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::daemon::{Daemon, Recipe, Shared};
use crate::supervisor::Supervisor;
use crate::tls::ServerCertificate;
use crate::{Port, install, prepared, process, shared};

/// A MariaDB server on 127.0.0.1 with a row-based binary log and global transaction ids.
#[derive(Debug)]
pub struct MariaDb {
    daemon: Daemon,
}

impl Deref for MariaDb {
    type Target = Daemon;

    fn deref(&self) -> &Daemon {
        &self.daemon
    }
}

impl MariaDb {
    /// A private one; dropping it ends it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// A private one with further options, which win over the usual ones.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start_with(options: &[&str]) -> Self {
        Self::try_start(None, options).unwrap_or_else(|e| panic!("cannot start MariaDB: {e:#}"))
    }

    /// A private one that offers encrypted connections with this certificate.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn start_with_tls(certificate: &ServerCertificate) -> Self {
        Self::try_start(Some(certificate), &[]).unwrap_or_else(|e| panic!("cannot start MariaDB: {e:#}"))
    }

    /// The one the whole test run shares; use a [`MariaDbDatabase`] of it.
    ///
    /// # Panics
    /// If it is not installed or does not start.
    #[track_caller]
    pub fn shared() -> &'static Self {
        static RUNNING: Shared<MariaDb> = Shared::new();
        let attach = |url: &str| Self {
            daemon: Daemon::attach("mariadb", url),
        };
        shared::instance(&RUNNING, "mariadb", attach, Self::start)
    }

    fn try_start(tls: Option<&ServerCertificate>, more: &[&str]) -> Result<Self> {
        let port = Port::free();
        let supervisor = Supervisor::new("mariadb", Some("mysql"), "KILL")?;
        let installer = install::system("mariadb-install-db")?;
        let temporary = supervisor.directory().display().to_string();
        prepared::data(&supervisor, "mariadb", |data| {
            let options = [
                "--no-defaults",
                // The installer looks for the data directory from its own place.
                &format!("--datadir={data}"),
                // A server that starts removes the temporary tables of all others in its folder for them.
                &format!("--tmpdir={temporary}"),
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ];
            supervisor.prepare(&installer, &options)
        })?;
        let data = supervisor.directory().join("data").display().to_string();
        let number = port.number();
        let socket = supervisor.directory().join("s.sock").display().to_string();
        let arguments = format!(
            "--no-defaults --datadir={data} --tmpdir={data}/.. --port={number} --bind-address=127.0.0.1 --socket={socket} --log-bin=binlog \
             --binlog-format=ROW --binlog-row-image=FULL --binlog-row-metadata=FULL --server-id=1 --gtid-strict-mode=1 \
             --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=2 --sync-binlog=0 --skip-name-resolve \
             --default-time-zone=+00:00 --character-set-server=utf8mb4"
        );
        let mut arguments: Vec<String> = arguments.split_whitespace().map(String::from).collect();
        arguments.extend(more.iter().map(|option| (*option).to_owned()));
        if let Some(certificate) = tls {
            for (option, name, pem) in [
                ("ssl-cert", "server.crt", certificate.certificate()),
                ("ssl-key", "server.key", certificate.key()),
                ("ssl-ca", "ca.crt", certificate.authority()),
            ] {
                arguments.push(format!("--{option}={}", supervisor.write(name, pem)?.display()));
            }
        }
        let recipe = Recipe {
            program: install::system("mariadbd")?,
            arguments,
            stop: "TERM",
            limit: Duration::from_secs(60),
            ready: Box::new(move |_| greets(number)),
        };
        Ok(Self {
            daemon: Daemon::start("mariadb", supervisor, vec![port], recipe)?,
        })
    }

    /// The URL of a database for its superuser, who has no password.
    pub fn url(&self, database: &str) -> String {
        format!("mysql://root@127.0.0.1:{}/{database}", self.port())
    }

    /// Runs SQL with the client `mariadb`; returns tab-separated rows without a header.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql("", sql).unwrap_or_else(|e| panic!("{e:#}"))
    }

    /// The same in a database (none if empty), for SQL that may fail.
    pub fn try_sql(&self, database: &str, sql: &str) -> Result<String> {
        sql_in(self.port(), database, sql)
    }

    /// A fresh database, dropped with the returned value.
    ///
    /// # Panics
    /// If it cannot be created.
    #[track_caller]
    pub fn database(&self, prefix: &str) -> MariaDbDatabase {
        let name = shared::unique_name(prefix);
        self.sql(&format!("CREATE DATABASE {name}"));
        MariaDbDatabase {
            port: self.port(),
            name,
        }
    }
}

/// A database of its own for one test, dropped with this value.
#[derive(Debug)]
pub struct MariaDbDatabase {
    port: u16,
    name: String,
}

impl MariaDbDatabase {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The superuser's URL.
    pub fn url(&self) -> String {
        format!("mysql://root@127.0.0.1:{}/{}", self.port, self.name)
    }

    /// Runs SQL with the client `mariadb`; returns tab-separated rows without a header.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        sql_in(self.port, &self.name, sql).unwrap_or_else(|e| panic!("{e:#}"))
    }
}

impl Drop for MariaDbDatabase {
    fn drop(&mut self) {
        let _ = sql_in(self.port, "", &format!("DROP DATABASE {}", self.name));
    }
}

fn sql_in(port: u16, database: &str, sql: &str) -> Result<String> {
    let mut client = Command::new(install::system("mariadb")?);
    client.env_clear().args([
        "--no-defaults",
        "--default-character-set=utf8mb4",
        "-h127.0.0.1",
        "-uroot",
        "-N",
        "-B",
    ]);
    client.arg(format!("-P{port}")).args(["-e", sql, database]);
    Ok(process::output(&mut client)?.trim_end_matches('\n').to_owned())
}

/// A server that accepts connections greets with a packet of protocol version 10; a refusal starts with 255.
fn greets(port: u16) -> bool {
    let mut greeting = [0; 5];
    TcpStream::connect((Ipv4Addr::LOCALHOST, port))
        .and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.read_exact(&mut greeting)
        })
        .is_ok_and(|()| greeting[4] == 10)
}
