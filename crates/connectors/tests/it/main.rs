//! Every connector against the real thing, in one binary.

#[cfg(feature = "duckdb")]
mod duckdb;
mod object;
mod sqlite;
