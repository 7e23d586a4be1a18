//! Strategies: each looks at both ends and makes a plan. They change nothing.
//!
//! | strategy | what it plans |
//! | --- | --- |
//! | [`full`] | read everything beside the table, put it in place in one step |
//! | [`delta`] | read what a cursor column says has changed since the last run, up to where it has settled |
//! | [`hash`] | compare both ends by blocks of row hashes, write only what differs |
//! | [`aggregate`] | find the groups whose rows changed, compute these groups anew |
//!
//! [`table`] is what they share: which columns travel how. [`cut`] cuts work by the user's own dimensions.

pub mod aggregate;
pub mod cut;
pub mod delta;
pub mod full;
pub mod hash;
pub(crate) mod present;
pub(crate) mod regroup;
mod steps;
pub mod table;
pub(crate) mod unmatched;
