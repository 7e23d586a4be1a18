//! How a PostgreSQL server is reached, trusted, and what is said when it is not.

use std::sync::LazyLock;
use std::time::Duration;
use synctool_connectors::postgres::{Postgres, PostgresConfig, SslMode};
use synctool_core::error::{Result, code};
use synctool_core::plan::{Partition, ReadSpec, Slice, Work};
use synctool_core::schema::TableId;
use synctool_core::source::{ReadContext, Source};
use synctool_testkit::{Authority, ClientCertificate, PgVersion, Postgres as Server, eventually};

static CONTEXT: LazyLock<ReadContext> = LazyLock::new(ReadContext::default);

fn whole() -> Partition {
    Partition::new("p", Work::Read(Slice::All))
}

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_is_a_password() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let server = Server::builder(PgVersion::V15)
        .tls(&ours.localhost())
        .hba("hostssl all all 127.0.0.1/32 cert")
        .start();
    server.psql("CREATE ROLE alice LOGIN; CREATE ROLE bob LOGIN");
    let (alice, forged) = (ours.client("alice"), theirs.client("alice"));
    let with = |user: &str, own: Option<&ClientCertificate>| PostgresConfig {
        user: user.into(),
        sslmode: SslMode::VerifyFull,
        sslrootcert: Some(ours.path()),
        sslcert: own.map(ClientCertificate::path),
        sslkey: own.map(ClientCertificate::key_path),
        ..PostgresConfig::from_url(&server.url("postgres")).unwrap()
    };
    assert!(connects(&with("alice", Some(&alice))).await.unwrap());
    for stranger in [with("bob", Some(&alice)), with("alice", None)] {
        let e = connects(&stranger).await.unwrap_err();
        assert_eq!(e.code(), code::AUTH_FAILED, "{e}");
    }
    let e = connects(&with("alice", Some(&forged))).await.unwrap_err();
    assert_eq!(e.code(), code::TLS_FAILED, "{e}");

    let half = PostgresConfig {
        sslkey: None,
        ..with("alice", Some(&alice))
    };
    assert_eq!(connects(&half).await.unwrap_err().code(), code::CONFIG_INVALID);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unix_socket_is_reached_by_its_directory() {
    let server = Server::start(PgVersion::V18);
    server.psql("CREATE TABLE t AS SELECT i AS id, repeat('x', 100) AS note FROM generate_series(1, 20000) i");
    let socket = server.socket_directory();
    let url = format!("postgresql://postgres@/postgres?host={socket}&port={}", server.port());
    let config = PostgresConfig::from_url(&url).unwrap();
    assert!(config.is_socket());
    assert!(!connects(&config).await.unwrap(), "a socket needs no encryption");
    // Rows too, and a reader that is given up leaves nothing running.
    let postgres = Postgres::open(config.clone()).unwrap();
    let source = postgres.source();
    let table = TableId::parse("public.t").unwrap();
    let read = ReadSpec::all(table.clone(), &source.describe(&table).await.unwrap().columns);
    let all = whole();
    let open = || source.open(&read, &all, None, &CONTEXT);
    let mut rows = 0;
    let mut reader = open().await.unwrap();
    while let Some(event) = reader.next().await.unwrap() {
        rows += event.rows();
    }
    assert_eq!(rows, 20_000);
    drop(open().await.unwrap());
    eventually("no COPY runs", Duration::from_secs(20), async || {
        server.psql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'COPY%' AND state = 'active'") == "0"
    })
    .await;

    let nowhere = PostgresConfig::from_url(&url.replace(socket, "/nowhere")).unwrap();
    assert_eq!(connects(&nowhere).await.unwrap_err().code(), code::SERVER_UNREACHABLE);
}
