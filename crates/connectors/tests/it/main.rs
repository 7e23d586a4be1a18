//! Every connector against the real thing, in one binary.

#[cfg(feature = "duckdb")]
mod duckdb;
mod object;
mod postgres_sink;
mod postgres_source;
mod postgres_tls;
mod sqlite;
mod types_page;
mod walarchive;
