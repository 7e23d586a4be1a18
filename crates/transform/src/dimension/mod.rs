//! Dimensions: rows of other tables, looked up by key and kept for a while.

mod cache;
mod key;
mod lru;
mod redis;
mod source;

pub use cache::{CachedDimension, LookupStats};
pub(crate) use key::KeyForm;
pub use source::SourceLookup;

use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::error::Result;

/// The key of a dimension's row: texts in the form of the dimension's columns.
pub type Key = Vec<String>;

/// The fields of a row as canonical texts; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// All rows of a key.
pub type Rows = Arc<Vec<Row>>;

/// Finds rows by keys, many at once.
#[async_trait]
pub trait Lookup: Send + Sync {
    /// The rows of each key; a key without rows is missing, or has none.
    async fn fetch(&self, keys: &[Key]) -> Result<HashMap<Key, Rows>>;
}
