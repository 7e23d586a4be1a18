//! How a PostgreSQL server is reached, trusted, and what is said when it is not.

use synctool_connectors::postgres::{Postgres, PostgresConfig, SslMode};
use synctool_core::error::{Result, code};
use synctool_testkit::{Authority, PgVersion, Postgres as Server};

async fn connects(config: &PostgresConfig) -> Result<bool> {
    let connection = Postgres::open(config.clone())?.connect().await?;
    let encrypted = connection.is_encrypted();
    connection.close().await;
    Ok(encrypted)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sslmode_means_what_libpq_means() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::builder(PgVersion::V15).tls(&ours.localhost()).start();
    let mut config = PostgresConfig::from_url(&server.url("postgres")).unwrap();
    let with = |mode, root: Option<&Authority>| PostgresConfig {
        sslmode: mode,
        sslrootcert: root.map(Authority::path),
        ..config.clone()
    };
    // The server lets nobody in without.
    let plain = connects(&with(SslMode::Disable, None)).await.unwrap_err();
    assert_eq!(plain.code(), code::AUTH_FAILED, "{plain}");
    for trusted in [
        with(SslMode::Prefer, None),
        with(SslMode::Require, None),
        with(SslMode::Require, Some(&ours)),
        with(SslMode::VerifyCa, Some(&ours)),
        with(SslMode::VerifyFull, Some(&ours)),
    ] {
        assert!(connects(&trusted).await.unwrap(), "{trusted:?} is not encrypted");
    }
    for distrusted in [
        with(SslMode::Require, Some(&theirs)),
        with(SslMode::VerifyCa, Some(&theirs)),
        with(SslMode::VerifyFull, Some(&theirs)),
    ] {
        let e = connects(&distrusted).await.unwrap_err();
        assert_eq!(e.code(), code::TLS_FAILED, "{e}");
        assert!(e.next_step().is_some());
    }
    config.sslrootcert = Some("/nowhere/root.pem".into());
    config.sslmode = SslMode::VerifyCa;
    assert_eq!(connects(&config).await.unwrap_err().code(), code::TLS_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_verify_full_minds_the_name() {
    let authority = Authority::new();
    let server = Server::builder(PgVersion::V15)
        .tls(&authority.issue("DNS:db.example"))
        .start();
    let mut config = PostgresConfig::from_url(&server.url("postgres")).unwrap();
    config.sslrootcert = Some(authority.path());
    config.sslmode = SslMode::VerifyCa;
    assert!(connects(&config).await.unwrap());
    config.sslmode = SslMode::VerifyFull;
    assert_eq!(connects(&config).await.unwrap_err().code(), code::TLS_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_reached_by_prefer_only() {
    let server = Server::shared(PgVersion::V15);
    let mut config = PostgresConfig::from_url(&server.url("postgres")).unwrap();
    assert_eq!(config.sslmode, SslMode::Prefer);
    assert!(!connects(&config).await.unwrap());
    config.sslmode = SslMode::Require;
    assert_eq!(connects(&config).await.unwrap_err().code(), code::TLS_FAILED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_are_checked_and_never_shown() {
    let server = Server::builder(PgVersion::V15)
        .password("sesame-open")
        .hba("host all old 127.0.0.1/32 md5\nhost all all 127.0.0.1/32 scram-sha-256")
        .start();
    server.psql("SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD 'sesame-md5'");
    let good = PostgresConfig::from_url(&server.url("postgres")).unwrap();
    assert_eq!(
        good.password.as_deref(),
        Some("sesame-open"),
        "SCRAM is tested with a password"
    );
    connects(&good).await.unwrap();
    let md5 = PostgresConfig {
        user: "old".into(),
        password: Some("sesame-md5".into()),
        ..good.clone()
    };
    connects(&md5).await.unwrap();
    for password in [Some("sesame-wrong".to_string()), None] {
        let config = PostgresConfig {
            password,
            ..good.clone()
        };
        let e = connects(&config).await.unwrap_err();
        assert_eq!(e.code(), code::AUTH_FAILED, "{e}");
        assert!(!format!("{e} {e:?}").contains("sesame"), "{e:?}");
    }
    let nowhere = PostgresConfig {
        database: "nowhere".into(),
        ..good.clone()
    };
    assert_eq!(connects(&nowhere).await.unwrap_err().code(), code::DATABASE_MISSING);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_not_there_is_unreachable() {
    let port = synctool_testkit::Port::free();
    let mut config = PostgresConfig::new("127.0.0.1", port.number(), "postgres", "postgres");
    config.connect_timeout = std::time::Duration::from_secs(5);
    let e = connects(&config).await.unwrap_err();
    assert_eq!(e.code(), code::SERVER_UNREACHABLE, "{e}");
    assert!(e.to_string().contains("127.0.0.1"), "{e}");
}
