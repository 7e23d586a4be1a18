//! The suite that every connector passes.

use super::*;
use synctool_core::testing::conformance::{self, Subject};

fn subject(dir: &Path, format: Format) -> Subject {
    let files = open(dir, format);
    Subject {
        destination: files.destination(),
        source: files.source(),
        schema: None,
    }
}

async fn suite(format: Format) {
    let dir = scratch();
    let s = subject(dir.path(), format);
    conformance::loads(&s).await;
    conformance::fences(&s).await;
    conformance::memory(&s).await;
    conformance::types(&s).await;
}

#[tokio::test]
async fn parquet_passes_the_suite() {
    suite(parquet()).await;
}

#[tokio::test]
async fn csv_passes_the_suite() {
    suite(csv_format()).await;
}

/// Which calls fail: in a soak more of them.
fn every(usual: u64) -> u64 {
    match synctool_testkit::is_soak() {
        true => usual / 2,
        false => usual,
    }
}

#[tokio::test]
async fn every_call_may_fail_with_parquet() {
    let dir = scratch();
    conformance::crashes(&subject(dir.path(), parquet()), every(11)).await;
}

#[tokio::test]
async fn every_call_may_fail_with_csv() {
    let dir = scratch();
    conformance::crashes(&subject(dir.path(), csv_format()), every(13)).await;
}
