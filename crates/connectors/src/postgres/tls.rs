//! TLS as libpq's sslmode means it, by rustls with the ring provider (never the process's default one).

use super::{PostgresConfig, SslMode};
use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use std::io;
use std::path::Path;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The TLS connector of a configuration; `None` where nothing is encrypted.
pub(super) fn connector(config: &PostgresConfig) -> Result<Option<MakeRustlsConnect>> {
    if config.sslmode == SslMode::Disable || config.is_socket() {
        return Ok(None);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // As in libpq, `require` checks the certificate if it is told against what.
    let trust = match config.sslmode {
        SslMode::VerifyCa | SslMode::VerifyFull => true,
        SslMode::Require => config.sslrootcert.is_some(),
        SslMode::Prefer | SslMode::Disable => false,
    };
    let verifier = Verifier {
        trusted: if trust { Some(trusted(config)?) } else { None },
        check_name: config.sslmode == SslMode::VerifyFull,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::bug(format!("TLS versions: {e}")))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let client = match (&config.sslcert, &config.sslkey) {
        (None, None) => builder.with_no_client_auth(),
        (Some(cert), Some(key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| unreadable("sslkey", key, &e))?;
            builder
                .with_client_auth_cert(certificates("sslcert", cert)?, key_der)
                .map_err(|e| unreadable("sslcert", cert, &e))?
        }
        _ => {
            return Err(
                Error::new(code::CONFIG_INVALID, "sslcert and sslkey must be given together")
                    .at("server", config.server()),
            );
        }
    };
    Ok(Some(MakeRustlsConnect::new(client)))
}

/// Asks the server whether it encrypts, on a connection that just began (PostgreSQL's documentation, 55.2.11 "SSL Session
/// Encryption": one byte is the answer).
pub(super) async fn is_offered(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    Ok(stream.read_u8().await? == b'S')
}

fn unreadable(what: &str, file: &Path, why: &dyn std::fmt::Display) -> Error {
    Error::new(
        code::TLS_FAILED,
        format!("{what} {} cannot be used: {why}", file.display()),
    )
    .hint("give a PEM file that this user may read")
}

fn certificates(what: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|e| unreadable(what, file, &e))?;
    if all.is_empty() {
        return Err(unreadable(what, file, &"it holds no certificate"));
    }
    Ok(all)
}

#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// Certificates trusted as they are: a server's self-signed one may stand in `sslrootcert`, as with libpq.
    exact: Vec<CertificateDer<'static>>,
}

fn trusted(config: &PostgresConfig) -> Result<Trusted> {
    let mut roots = RootCertStore::empty();
    let Some(file) = &config.sslrootcert else {
        let native = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            return Err(Error::new(
                code::TLS_FAILED,
                "the system has no trusted certificates to check the server's against",
            )
            .hint("set sslrootcert to the certificate of the server's authority"));
        }
        return Ok(Trusted {
            roots,
            exact: Vec::new(),
        });
    };
    let exact = certificates("sslrootcert", file)?;
    for certificate in &exact {
        roots
            .add(certificate.clone())
            .map_err(|e| unreadable("sslrootcert", file, &e))?;
    }
    Ok(Trusted { roots, exact })
}

#[derive(Debug)]
struct Verifier {
    /// `None` trusts everybody.
    trusted: Option<Trusted>,
    check_name: bool,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &trusted.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        );
        match chain {
            // A certificate that is an authority too is refused as a server's own, unless it is trusted by itself.
            Err(rustls::Error::InvalidCertificate(why))
                if !matches!(
                    why,
                    CertificateError::Expired
                        | CertificateError::ExpiredContext { .. }
                        | CertificateError::NotValidYet
                        | CertificateError::NotValidYetContext { .. }
                ) && trusted.exact.iter().any(|c| c == end_entity) => {}
            other => other?,
        }
        if self.check_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
