//! Datastores: one folder each, the same file names everywhere.

#[cfg(feature = "duckdb")]
pub mod duckdb;
<<<<<<< HEAD
pub mod object;
=======
pub mod postgres;
>>>>>>> main
pub mod postgres;
