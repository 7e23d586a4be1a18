//! What tests of every connector share: destinations and logs in memory, injected faults, and the conformance suite.
//!
//! These are ordinary code, not test-only, so that the crates of the connectors can use them; nothing of the program does.

pub mod conformance;
pub mod faults;
pub mod memory;
pub mod memory_log;
pub mod rows;
pub mod scenario;
