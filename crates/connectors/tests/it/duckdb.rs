//! DuckDB keeps the contract of loads and of changes.

mod changes;
mod queries;

use synctool_connectors::duckdb::{DuckDb, DuckDbConfig};
use synctool_core::error::code;
use synctool_core::testing::conformance::{self, Subject};
use synctool_testkit::libduckdb;

async fn subject(folder: &tempfile::TempDir) -> Subject {
    let config = DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library: Some(libduckdb()),
        create: true,
    };
    let duckdb = DuckDb::open(config).await.expect("DuckDB opens");
    Subject {
        destination: duckdb.destination(),
        source: duckdb.source(),
        schema: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn loads() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::loads(&subject(&folder).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::memory(&subject(&folder).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fences() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::fences(&subject(&folder).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn log_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::changes(&subject(&folder).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn types() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::types(&subject(&folder).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes() {
    let folder = tempfile::tempdir().expect("a folder");
    conformance::crashes(&subject(&folder).await, 67).await;
}

#[tokio::test]
async fn mistakes_are_told_with_the_next_step() {
    let folder = tempfile::tempdir().expect("a folder");
    let missing = DuckDbConfig {
        path: folder.path().join("no.duckdb"),
        library: Some(libduckdb()),
        create: false,
    };
    assert_eq!(DuckDb::open(missing).await.unwrap_err().code(), code::DATABASE_MISSING);
    let library = Some(folder.path().join("libduckdb.so"));
    let e = DuckDb::open(DuckDbConfig {
        path: folder.path().join("t.duckdb"),
        library,
        create: true,
    })
    .await
    .unwrap_err();
    assert!(e.next_step().is_some_and(|h| h.contains("library:")), "{e}");
    let text = folder.path().join("text.duckdb");
    std::fs::write(
        &text,
        "this is not a database at all, but it is long enough to be looked at",
    )
    .expect("written");
    let config = DuckDbConfig {
        path: text,
        library: Some(libduckdb()),
        create: true,
    };
    assert_eq!(DuckDb::open(config).await.unwrap_err().code(), code::FILE_MALFORMED);
}
