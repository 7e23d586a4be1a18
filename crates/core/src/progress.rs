//! How far a run is: partitions, positions, generations, epochs and the checkpoint that ties them to the data.

use crate::ledger::{Accounts, Applied};
use crate::stage::Reject;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

macro_rules! text_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);
        impl $name {
            /// The text itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl<T: Into<String>> From<T> for $name {
            fn from(s: T) -> Self {
                $name(s.into())
            }
        }
    };
}

text_newtype! {
    /// A partition: the unit of progress, ordered inside and independent of the others. Readable text.
    PartitionId
}
text_newtype! {
    /// A place in a partition, made by the source and opaque to everybody else; a reader resumes right after it.
    /// Positions need equality, not order.
    Position
}

/// The number of a plan for a pipeline at a destination: a newer plan fences everything older.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub i64);

/// The number of a writer of a partition: a newer writer fences the older ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One step of one partition, made durable with its data or not at all.
#[derive(Debug, Clone)]
pub struct Advance {
    /// Which partition.
    pub partition: PartitionId,
    /// Where it must stand now; the commit is refused if it stands anywhere else.
    pub from: Option<Position>,
    /// Where it stands afterwards.
    pub to: Position,
    /// Whether the partition is finished with this step.
    pub done: bool,
    /// The partition's accounts up to and including this step, for the ledger of a resumed run.
    pub accounts: Accounts,
    /// Rows that stages put aside in this step, with their numbers in the partition. A destination that can keeps them in
    /// the same transaction.
    pub rejects: Vec<(u64, Reject)>,
}

/// What the sink knows of one partition.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionState {
    /// Where it stands; `None` before its first commit.
    pub position: Option<Position>,
    /// Whether it is finished.
    pub done: bool,
    /// The accounts of the last commit.
    pub accounts: Accounts,
    /// What the sink did for it, all commits together.
    pub applied: Applied,
}

impl PartitionState {
    /// Whether anything of it was committed.
    pub fn has_begun(&self) -> bool {
        self.done || self.position.is_some()
    }
}

/// Partition → where it stands at the sink. The sink is the truth.
pub type Checkpoint = HashMap<PartitionId, PartitionState>;
