//! Certificates for TLS tests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::{install, process};

/// A certificate authority of its own; a second one is how a test gets a certificate nobody should trust.
#[derive(Debug)]
pub struct Authority {
    directory: TempDir,
}

/// What a server needs to speak TLS, as PEM text.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    certificate: String,
    key: String,
    authority: String,
}

/// What a client needs to be known by its certificate: files, as `sslcert` and `sslkey` want them.
#[derive(Debug)]
pub struct ClientCertificate {
    directory: TempDir,
}

impl Authority {
    /// Makes a new one.
    ///
    /// # Panics
    /// If openssl is missing or fails.
    #[track_caller]
    #[allow(clippy::new_without_default, reason = "it runs a program and writes files")]
    pub fn new() -> Self {
        Self::create().unwrap_or_else(|e| panic!("cannot make a certificate authority: {e:#}"))
    }

    fn create() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("synctool-ca-").tempdir()?;
        let authority = Self { directory };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=SyncTool test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ])?;
        Ok(authority)
    }

    /// The authority's own certificate, for `sslrootcert`.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("ca.crt")
    }

    /// A certificate for a server reached as `localhost` or 127.0.0.1.
    ///
    /// # Panics
    /// If openssl fails.
    #[track_caller]
    pub fn localhost(&self) -> ServerCertificate {
        self.issue("DNS:localhost,IP:127.0.0.1")
    }

    /// A certificate for other names, in openssl's notation: `DNS:db.example,IP:10.0.0.1`.
    ///
    /// # Panics
    /// If openssl fails.
    #[track_caller]
    pub fn issue(&self, names: &str) -> ServerCertificate {
        self.try_issue(names)
            .unwrap_or_else(|e| panic!("cannot issue a certificate for {names}: {e:#}"))
    }

    fn try_issue(&self, names: &str) -> Result<ServerCertificate> {
        let place = tempfile::tempdir()?;
        self.sign(
            place.path(),
            "/CN=SyncTool test server",
            &format!("subjectAltName={names}\nextendedKeyUsage=serverAuth\n"),
        )?;
        let read = |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
        Ok(ServerCertificate {
            certificate: read(&place.path().join("own.crt"))?,
            key: read(&place.path().join("own.key"))?,
            authority: read(&self.path())?,
        })
    }

    /// A certificate by which a server knows this user.
    ///
    /// # Panics
    /// If openssl fails.
    #[track_caller]
    pub fn client(&self, user: &str) -> ClientCertificate {
        let directory = tempfile::tempdir().expect("a directory for the certificate");
        self.sign(
            directory.path(),
            &format!("/CN={user}"),
            "extendedKeyUsage=clientAuth\n",
        )
        .unwrap_or_else(|e| panic!("cannot issue a certificate for {user}: {e:#}"));
        ClientCertificate { directory }
    }

    /// Makes `own.key` and `own.crt` in a directory.
    fn sign(&self, place: &Path, subject: &str, extensions: &str) -> Result<()> {
        let path = |name: &str| place.join(name).display().to_string();
        fs::write(path("own.ext"), format!("basicConstraints=CA:FALSE\n{extensions}"))?;
        self.openssl(&[
            "req",
            "-new",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &path("own.key"),
            "-out",
            &path("own.csr"),
        ])?;
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &path("own.csr"),
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &path("own.ext"),
            "-out",
            &path("own.crt"),
        ])
    }

    fn openssl(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(install::system("openssl")?);
        process::output(command.args(arguments).current_dir(self.directory.path())).map(drop)
    }
}

impl ClientCertificate {
    /// The certificate, for `sslcert`.
    pub fn path(&self) -> PathBuf {
        self.directory.path().join("own.crt")
    }

    /// Its key, for `sslkey`.
    pub fn key_path(&self) -> PathBuf {
        self.directory.path().join("own.key")
    }
}

impl ServerCertificate {
    /// The server's certificate.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The certificate of the authority that signed it.
    pub fn authority(&self) -> &str {
        &self.authority
    }
}
