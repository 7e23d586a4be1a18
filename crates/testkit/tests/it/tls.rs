use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use synctool_testkit::{Authority, PgVersion, Postgres, psql_url};
use tokio_postgres_rustls::MakeRustlsConnect;

/// What openssl, an independent judge, says of a server's certificate.
fn judge(server: &Postgres, authority: &Path, name: &str) -> Result<(), String> {
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-starttls", "postgres", "-verify_return_error", "-connect"]);
    openssl
        .arg(format!("127.0.0.1:{}", server.port()))
        .arg("-CAfile")
        .arg(authority)
        .args(["-verify_hostname", name]);
    let output = openssl.stdin(Stdio::null()).output().expect("openssl");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(())
    } else {
        Err(said.into())
    }
}

async fn rows_over_tls(url: &str, authority: &Path) -> Result<String, tokio_postgres::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = config.with_root_certificates(roots).with_no_client_auth();
    let (client, connection) = tokio_postgres::connect(url, MakeRustlsConnect::new(config)).await?;
    tokio::spawn(connection);
    let row = client
        .query_one("SELECT version FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[])
        .await?;
    Ok(row.get(0))
}

#[tokio::test]
async fn a_server_with_tls_asks_for_a_password_and_shows_its_certificate() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    for version in [PgVersion::V15, PgVersion::new(17)] {
        let server = Postgres::builder(version)
            .tls(&authority.localhost())
            .password("correct horse'")
            .start();
        let url = format!("{}?sslmode=require", server.url("postgres"));
        assert_eq!(rows_over_tls(&url, &authority.path()).await.unwrap(), "TLSv1.3");
        assert!(rows_over_tls(&url, &stranger.path()).await.is_err());
        let wrong = url.replace("correct", "battery");
        let refused = rows_over_tls(&wrong, &authority.path()).await.unwrap_err();
        assert_eq!(refused.code().map(|code| code.code()), Some("28P01"), "{refused}");
        let plain = psql_url(&format!("{}?sslmode=disable", server.url("postgres")), "SELECT 1").unwrap_err();
        assert!(plain.to_string().contains("no encryption"), "{plain}");
        assert_eq!(
            server.psql("SELECT 1"),
            "1",
            "the kit itself comes in through the socket"
        );
    }
}

#[test]
fn a_certificate_holds_for_its_names_alone() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let certificate = authority.issue("DNS:elsewhere.example");
    let server = Postgres::builder(PgVersion::V15).tls(&certificate).start();
    assert_eq!(judge(&server, &authority.path(), "elsewhere.example"), Ok(()));
    let said = judge(&server, &authority.path(), "localhost").unwrap_err();
    assert!(said.contains("hostname mismatch"), "{said}");
    let said = judge(&server, &stranger.path(), "elsewhere.example").unwrap_err();
    assert!(said.contains("verify error"), "{said}");
}

#[test]
fn a_password_alone_works_without_tls() {
    let server = Postgres::builder(PgVersion::V18).password("p:/@").start();
    assert_eq!(psql_url(&server.url("postgres"), "SELECT 1").unwrap(), "1");
    let refused = psql_url(&server.url("postgres").replace("p%3A", "q%3A"), "SELECT 1").unwrap_err();
    assert!(
        refused.to_string().contains("password authentication failed"),
        "{refused}"
    );
}
