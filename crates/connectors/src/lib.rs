//! Connectors: one folder each, with the same file names.

pub mod object;
