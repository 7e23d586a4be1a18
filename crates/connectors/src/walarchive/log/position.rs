//! Where a pipeline stands in production's log: an opaque text to everybody else, stored in the destination's own
//! transaction.

use super::super::replay::Stored;
use crate::postgres::log::status::Standing;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;
use synctool_pgwal::Lsn;

/// A place at which the scratch server stood, and everything before it is at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogPosition {
    /// Production's system id: its log and no other goes on here.
    pub(super) system: u64,
    pub(super) timeline: u32,
    #[serde(with = "text")]
    pub(super) at: Lsn,
    /// From here the log must be read again, to know what is open at `at`.
    #[serde(with = "text")]
    pub(super) restart: Lsn,
    /// Columns that came while the log was read, by table: beyond the plan's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) added: BTreeMap<String, Vec<String>>,
    /// Tables that could not be read here: they are read whole at the next place.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub(super) owed: BTreeSet<String>,
    /// When the last transaction before this place committed, microseconds UTC, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) committed_at: Option<i64>,
}

impl LogPosition {
    pub(super) fn parse(position: &Position) -> Result<Self> {
        serde_json::from_str(position.as_str())
            .map_err(|e| Error::new(code::STATE_STORE, "a stored position of the log cannot be read").caused_by(e))
    }

    pub(super) fn encode(&self) -> Position {
        Position(serde_json::to_string(self).expect("plain data"))
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            at: self.at.0,
            committed_at: self.committed_at,
        }
    }

    pub(super) fn stored(&self) -> Stored {
        Stored {
            timeline: self.timeline,
            at: self.at,
            restart: self.restart,
            furthest: self.at,
        }
    }
}

/// Places as people write them.
pub(super) mod text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use synctool_pgwal::Lsn;

    pub(in super::super) fn serialize<S: Serializer>(at: &Lsn, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(at)
    }

    pub(in super::super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<Lsn, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_what_they_write() {
        let position = LogPosition {
            system: u64::MAX,
            timeline: 3,
            at: Lsn(0x16_B374_D848),
            restart: Lsn(7),
            added: BTreeMap::from([("public.t".into(), vec!["c".into()])]),
            owed: BTreeSet::from(["public.u".into()]),
            committed_at: Some(1),
        };
        assert_eq!(LogPosition::parse(&position.encode()).unwrap(), position);
        let e = LogPosition::parse(&Position::from("{}")).unwrap_err();
        assert_eq!(e.code(), code::STATE_STORE);
    }
}
