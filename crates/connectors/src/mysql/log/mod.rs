//! The binary log of a MariaDB server: every committed change, in order, as events of the engine; and tables as they
//! stand, read in chunks beside it.
//!
//! [`BinlogSource`] follows it as a replica does, by global transaction ids. Its positions say whose log they belong to
//! and live in the destination's own transaction. Nothing is written at the source and nothing is kept there for us: a
//! chunk is read under a snapshot whose place in the log the server knows exactly, and what the server has purged before
//! it was read is lost, and said to be.
//!
//! ```text
//!  server ──events──► dump ──► logged, cells ──► LogReader ──► Backfill ──► engine
//!                                 chunks of tables ──────────────┘
//! ```

pub mod capture;
mod cells;
mod charset;
mod chunks;
#[cfg(test)]
mod decoding_tests;
mod dump;
mod examine;
mod gtid;
mod logged;
mod position;
mod reader;
mod rows;
mod shape;
mod source;
mod statements;

pub use source::BinlogSource;
