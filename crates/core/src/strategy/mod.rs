//! Strategies make plans.

pub mod full;
