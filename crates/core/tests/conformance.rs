//! The destination in memory keeps the contract it is the reference of.

use std::sync::Arc;
use synctool_core::testing::conformance::{self, Subject};
use synctool_core::testing::memory::Memory;
use synctool_core::testing::memory_log::MemoryTables;

fn subject() -> Subject {
    let memory = Memory::default();
    Subject {
        destination: Arc::new(memory.clone()),
        source: Arc::new(MemoryTables(memory)),
        schema: None,
    }
}

#[tokio::test]
async fn loads() {
    conformance::loads(&subject()).await;
}

#[tokio::test]
async fn memory() {
    conformance::memory(&subject()).await;
}

#[tokio::test]
async fn fences() {
    conformance::fences(&subject()).await;
}

#[tokio::test]
async fn changes() {
    conformance::changes(&subject()).await;
}

#[tokio::test]
async fn types() {
    conformance::types(&subject()).await;
}

#[tokio::test]
async fn crashes() {
    conformance::crashes(&subject(), 17).await;
}
