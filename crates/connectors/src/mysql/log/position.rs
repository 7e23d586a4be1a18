//! Where a log was read up to, and whose log it is: an opaque text to everybody else, stored in the destination's own
//! transaction.

use super::gtid::{Gtid, Gtids};
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;

/// A place in the files of one server's log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) offset: u64,
}

impl Place {
    /// The files are numbered.
    fn number(&self) -> u64 {
        let digits = self.file.rsplit_once('.').map_or("", |(_, digits)| digits);
        digits.parse().unwrap_or(0)
    }

    /// One number that grows as the log does.
    pub(super) fn ordinal(&self) -> u64 {
        self.number() << 40 | self.offset & ((1 << 40) - 1)
    }

    /// Goes on to an offset of the same file. Events say its low 32 bits only.
    pub(super) fn go_to(&mut self, offset: u32) {
        let mut full = self.offset & !u64::from(u32::MAX) | u64::from(offset);
        if full + (1 << 31) < self.offset {
            full += 1 << 32;
        }
        self.offset = self.offset.max(full);
    }
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> Ordering {
        self.ordinal().cmp(&other.ordinal())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.offset)
    }
}

/// What a stored ordinal of a place was, as people write it; the files' common name is not in it.
pub(super) fn shown(ordinal: u64) -> String {
    format!("{:06}:{}", ordinal >> 40, ordinal & ((1 << 40) - 1))
}

/// The last transaction that was read: it is asked for once more, to see that the log is the one that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Last {
    pub(super) gtid: Gtid,
    /// Its second, as the log says it; replicas keep it.
    pub(super) second: u32,
    /// A hash of its rows and statements, which replicas keep, too.
    pub(super) content: u64,
    /// The position before it.
    pub(super) before: Gtids,
}

/// Which server it was.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) server_id: u32,
    /// The server's own name for itself, where its version has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
}

/// How a table differs from what the plan says, by the names of columns at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Beyond {
    /// What the log calls columns that were renamed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) names: BTreeMap<String, String>,
    /// Columns of the plan, or later ones, that the source has no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) gone: Vec<String>,
    /// Types of columns that came later, or have a wider one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) types: BTreeMap<String, Typed>,
    /// Columns that stay behind, by their names at the source.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) left: Vec<String>,
}

/// A column's type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Typed {
    /// As the server declares it.
    pub(super) declared: String,
    /// In core's words.
    pub(super) ty: String,
}

/// A place in the log of one server, or of those that replicate it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogPosition {
    /// Every transaction up to these is at the sink.
    pub(super) gtids: Gtids,
    /// The same in the files of the server it was read from.
    pub(super) place: Place,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last: Option<Last>,
    pub(super) origin: Origin,
    /// Columns that came while the log was read, by table: beyond the plan's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) added: BTreeMap<String, Vec<String>>,
    /// Columns that went, by table: one that comes again under its name is another one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) dropped: BTreeMap<String, Vec<String>>,
    /// What else of a table is another one than the plan says, by table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) tables: BTreeMap<String, Beyond>,
    /// When the last transaction before this place committed, microseconds UTC, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) committed_at: Option<i64>,
}

impl LogPosition {
    /// Before anything was read.
    pub(super) fn nowhere() -> Self {
        LogPosition {
            gtids: Gtids::default(),
            place: Place::default(),
            last: None,
            origin: Origin::default(),
            added: BTreeMap::new(),
            dropped: BTreeMap::new(),
            tables: BTreeMap::new(),
            committed_at: None,
        }
    }

    pub(super) fn parse(position: &Position) -> Result<Self> {
        serde_json::from_str(position.as_str())
            .map_err(|e| Error::new(code::STATE_STORE, "a stored position of the log cannot be read").caused_by(e))
    }

    pub(super) fn encode(&self) -> Position {
        Position(serde_json::to_string(self).expect("plain data"))
    }
}

/// What to do about a log that cannot be followed on.
pub(super) const REPAIR: &str = "run with --repair: the log is followed from now on and every table is compared and made \
     equal, deletes included, meanwhile";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_read_what_they_write() {
        let position = LogPosition {
            gtids: "0-1-7".parse().unwrap(),
            place: Place {
                file: "binlog.000012".into(),
                offset: 345,
            },
            last: Some(Last {
                gtid: "0-1-7".parse().unwrap(),
                second: 9,
                content: u64::MAX,
                before: "0-1-6".parse().unwrap(),
            }),
            origin: Origin::default(),
            added: BTreeMap::new(),
            dropped: BTreeMap::from([("shop.t".into(), vec!["a".into()])]),
            tables: BTreeMap::from([(
                "shop.t".into(),
                Beyond {
                    names: BTreeMap::from([("a".into(), "b".into())]),
                    ..Beyond::default()
                },
            )]),
            committed_at: Some(1),
        };
        assert_eq!(LogPosition::parse(&position.encode()).unwrap(), position);
        let e = LogPosition::parse(&Position::from("{}")).unwrap_err();
        assert_eq!(e.code(), code::STATE_STORE);
    }

    #[test]
    fn places_are_in_order() {
        let at = |file: &str, offset| Place {
            file: file.into(),
            offset,
        };
        assert!(at("b.000009", 900) < at("b.000010", 4) && at("b.000010", 4) < at("b.000010", 5));
        let mut place = at("b.000001", (1 << 32) - 10);
        // A transaction beyond 4 GiB: events say the low bits only.
        place.go_to(20);
        assert_eq!(place.offset, (1 << 32) + 20);
        place.go_to(10);
        assert_eq!(place.offset, (1 << 32) + 20, "never back");
    }
}
