//! SQLite against real files.

use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::testing::conformance::{self, Subject};
use tempfile::TempDir;

fn subject() -> (TempDir, Subject) {
    let dir = tempfile::tempdir().unwrap();
    let db = Sqlite::open(SqliteConfig::new(dir.path().join("a.db"))).unwrap();
    let subject = Subject {
        destination: db.destination(),
        source: db.source(),
        schema: None,
        merges: true,
    };
    (dir, subject)
}

#[tokio::test]
async fn conformance_loads() {
    let (_dir, s) = subject();
    conformance::loads(&s).await;
}

#[tokio::test]
async fn conformance_fences() {
    let (_dir, s) = subject();
    conformance::fences(&s).await;
}

#[tokio::test]
async fn conformance_changes() {
    let (_dir, s) = subject();
    conformance::changes(&s).await;
}

#[tokio::test]
async fn conformance_types() {
    let (_dir, s) = subject();
    conformance::types(&s).await;
}

#[tokio::test]
async fn conformance_crashes() {
    let (_dir, s) = subject();
    conformance::crashes(&s, 17).await;
}
