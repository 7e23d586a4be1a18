//! Every connector against the real thing, in one binary.

mod blocks;
#[cfg(feature = "duckdb")]
mod duckdb;
mod mysql;
mod object;
mod postgres_hashes;
mod postgres_log;
mod postgres_query;
mod postgres_settled;
mod postgres_sink;
mod postgres_source;
mod postgres_tls;
mod sqlite;
mod types_page;
mod walarchive;
