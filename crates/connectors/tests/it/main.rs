//! Every connector against the real thing, in one binary.

#[cfg(feature = "duckdb")]
mod duckdb;
//! The connectors against the real thing: servers, databases, files.

mod object;
