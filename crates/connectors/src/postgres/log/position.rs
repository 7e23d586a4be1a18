//! Where a log was read up to, and whose log it is: an opaque text to everybody else, stored in the destination's own
//! transaction. What does not belong together is refused before a byte is read.

use super::client::System;
use super::pgoutput::Lsn;
use super::shape::{Parts, Shape};
use super::status::Standing;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::progress::Position;
use tokio_postgres::types::PgLsn;

/// A place in the log of one slot of one database of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LogPosition {
    /// Every transaction that ends before this place is at the sink.
    #[serde(with = "lsn_text")]
    pub(super) lsn: Lsn,
    pub(super) origin: Origin,
    /// Columns that came while the log was read, by table: beyond the plan's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) added: BTreeMap<String, Vec<String>>,
    /// By what each table was in the publication (`membership`); older positions do not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) members: BTreeMap<String, String>,
    /// The numbers of columns, by table and column, where they are not those that the plan says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) numbers: BTreeMap<String, BTreeMap<String, i16>>,
    /// By which transactions the catalog has columns as they are, by table and column, where the plan does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) written: BTreeMap<String, BTreeMap<String, u32>>,
    /// In which files the rows of tables are, where the plan does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) files: BTreeMap<String, String>,
    /// The partitions of tables, where the plan does not say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) parts: BTreeMap<String, Parts>,
    /// What the log calls columns, by table and column, where that is not what the plan says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) names: BTreeMap<String, BTreeMap<String, String>>,
    /// Columns of the plan that the source has not any more, by table, as the destination calls them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) gone: BTreeMap<String, Vec<String>>,
    /// The types of columns that were widened, by table and column.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) types: BTreeMap<String, BTreeMap<String, (u32, i32)>>,
    /// Columns that stay behind, by table.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) left: BTreeMap<String, Vec<String>>,
    /// When the last transaction before this place committed, microseconds UTC, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) committed_at: Option<i64>,
}

/// Whose log it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub(super) system: String,
    pub(super) timeline: u32,
    pub(super) database: u32,
    pub(super) slot: String,
}

impl Origin {
    /// Whether what came later in one need not be in the other: another cluster, database or timeline.
    pub(super) fn is_another_history(&self, other: &Origin) -> bool {
        (&self.system, self.timeline, self.database) != (&other.system, other.timeline, other.database)
    }
}

mod lsn_text {
    use super::*;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(lsn: &Lsn, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&PgLsn::from(*lsn))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Lsn, D::Error> {
        let text = String::deserialize(d)?;
        let lsn: PgLsn = text.parse().map_err(|_| D::Error::custom("not a place in a log"))?;
        Ok(lsn.into())
    }
}

fn keep<T>(all: &mut BTreeMap<String, T>, table: &str, value: Option<T>) {
    match value {
        Some(value) => drop(all.insert(table.to_owned(), value)),
        None => drop(all.remove(table)),
    }
}

impl LogPosition {
    /// A place from which on every table is as the plan says.
    pub(super) fn new(lsn: Lsn, origin: Origin) -> Self {
        LogPosition {
            lsn,
            origin,
            added: BTreeMap::new(),
            members: BTreeMap::new(),
            numbers: BTreeMap::new(),
            written: BTreeMap::new(),
            files: BTreeMap::new(),
            parts: BTreeMap::new(),
            names: BTreeMap::new(),
            gone: BTreeMap::new(),
            types: BTreeMap::new(),
            left: BTreeMap::new(),
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

    /// Keeps of a table's shape what a later reader could not know.
    pub(super) fn keep(&mut self, shape: &Shape) {
        let table = shape.table.to_string();
        let (added, numbers) = (shape.added(), shape.numbers());
        if !added.is_empty() {
            self.added.insert(table.clone(), added);
        }
        keep(&mut self.numbers, &table, Some(numbers).filter(|n| !n.is_empty()));
        keep(
            &mut self.written,
            &table,
            Some(shape.written()).filter(|w| !w.is_empty()),
        );
        keep(&mut self.files, &table, shape.moved().cloned());
        keep(&mut self.parts, &table, shape.parted().cloned());
        keep(&mut self.names, &table, Some(shape.names()).filter(|n| !n.is_empty()));
        keep(&mut self.gone, &table, Some(shape.gone()).filter(|g| !g.is_empty()));
        keep(&mut self.types, &table, Some(shape.widened()).filter(|w| !w.is_empty()));
        keep(
            &mut self.left,
            &table,
            Some(shape.left.clone()).filter(|l| !l.is_empty()),
        );
    }

    pub(super) fn standing(&self) -> Standing {
        Standing {
            at: self.lsn,
            committed_at: self.committed_at,
        }
    }
}

/// A slot as the server has it now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct SlotState {
    /// Up to where it was confirmed; `None` if its creation never ended.
    pub(super) confirmed: Option<Lsn>,
    /// Why the server has given it up, if it has.
    pub(super) lost: Option<String>,
}

/// What to do about a log that cannot be followed on.
pub(super) const REPAIR: &str = "run with --repair: a new slot is made and every table is compared and made equal, \
     deletes included, while its log goes on";

/// Whether the server's log goes on where the position stands.
pub(super) fn check(
    stored: &LogPosition,
    system: &System,
    database: u32,
    name: &str,
    slot: Option<&SlotState>,
    history: &[(u32, Lsn)],
    end: Lsn,
) -> Result<()> {
    let at = PgLsn::from(stored.lsn);
    let refuse = |code, why: String| {
        Err(Error::new(code, why)
            .at("position", at.to_string())
            .at("slot", name)
            .hint(REPAIR))
    };
    if stored.origin.system != system.id {
        let why = format!(
            "the position belongs to the cluster {}, and this server is of cluster {}",
            stored.origin.system, system.id
        );
        return refuse(code::LOG_OTHER_SERVER, why);
    }
    if stored.origin.database != database {
        return refuse(
            code::LOG_OTHER_SERVER,
            "the position belongs to another database of this server (or this one was dropped and made again)".into(),
        );
    }
    if stored.origin.slot != name {
        let why = format!(
            "the position belongs to the slot {}, and slot {name} is to be read",
            stored.origin.slot
        );
        return refuse(code::LOG_OTHER_SERVER, why);
    }
    if stored.origin.timeline != system.timeline {
        let left = history.iter().find(|(t, _)| *t == stored.origin.timeline);
        match left {
            Some((_, left)) if stored.lsn <= *left => {}
            Some((timeline, left)) => {
                let why = format!(
                    "the server left timeline {timeline} at {}, before the position: it was restored or failed over, and \
                     the destination holds changes that it never had",
                    PgLsn::from(*left)
                );
                return refuse(code::LOG_DIVERGED, why);
            }
            None => {
                let why = format!(
                    "the server's timeline {} does not come from timeline {} of the position",
                    system.timeline, stored.origin.timeline
                );
                return refuse(code::LOG_DIVERGED, why);
            }
        }
    }
    if stored.lsn > end {
        let why = format!(
            "the server's log ends at {}, before the position: it was restored to an earlier time",
            PgLsn::from(end)
        );
        return refuse(code::LOG_DIVERGED, why);
    }
    let Some(slot) = slot else {
        return refuse(
            code::LOG_LOST,
            "the replication slot is gone, and with it the log since the position".into(),
        );
    };
    if let Some(why) = &slot.lost {
        return refuse(
            code::LOG_LOST,
            format!("the server gave the replication slot up ({why})"),
        );
    }
    match slot.confirmed {
        None => refuse(
            code::LOG_LOST,
            "the making of the replication slot was never finished".into(),
        ),
        Some(confirmed) if confirmed > stored.lsn => {
            let why = format!(
                "the slot was confirmed up to {} by somebody else or made again, or the destination was set back: changes \
                 since the position would be skipped",
                PgLsn::from(confirmed)
            );
            refuse(code::LOG_SKIPPED, why)
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored() -> LogPosition {
        let origin = Origin {
            system: "7".into(),
            timeline: 2,
            database: 16_384,
            slot: "s".into(),
        };
        LogPosition::new(0x1_0000_0100, origin)
    }

    fn system(timeline: u32) -> System {
        System {
            id: "7".into(),
            timeline,
        }
    }

    #[test]
    fn positions_read_what_they_write() {
        let mut p = stored();
        assert_eq!(LogPosition::parse(&p.encode()).unwrap(), p);
        assert!(p.encode().as_str().contains("1/100"), "{}", p.encode());
        p.added.insert("public.t".into(), vec!["x".into()]);
        p.members.insert("public.t".into(), "16384:16400".into());
        p.numbers.insert("public.t".into(), BTreeMap::from([("x".into(), 4)]));
        assert_eq!(LogPosition::parse(&p.encode()).unwrap(), p);
        assert_eq!(
            LogPosition::parse(&Position::from("{}")).unwrap_err().code(),
            code::STATE_STORE
        );
    }

    #[test]
    fn what_does_not_belong_together_is_refused() {
        let good = SlotState {
            confirmed: Some(0x1_0000_0000),
            lost: None,
        };
        let end = 0x2_0000_0000;
        let verdict =
            |p: &LogPosition, system: &System, db, slot: Option<&SlotState>, history: &[(u32, Lsn)], end| match check(
                p, system, db, "s", slot, history, end,
            ) {
                Ok(()) => "ok",
                Err(e) => {
                    assert!(e.next_step().is_some_and(|h| h.contains("--repair")), "{e}");
                    e.code().id
                }
            };
        let p = stored();
        assert_eq!(verdict(&p, &system(2), 16_384, Some(&good), &[], end), "ok");
        let other = System {
            id: "8".into(),
            timeline: 2,
        };
        assert_eq!(
            verdict(&p, &other, 16_384, Some(&good), &[], end),
            code::LOG_OTHER_SERVER.id
        );
        assert_eq!(
            verdict(&p, &system(2), 5, Some(&good), &[], end),
            code::LOG_OTHER_SERVER.id
        );
        let mut elsewhere = stored();
        elsewhere.origin.slot = "t".into();
        assert_eq!(
            verdict(&elsewhere, &system(2), 16_384, Some(&good), &[], end),
            code::LOG_OTHER_SERVER.id
        );
        // Failed over to a server that has all we have read, and to one that has not.
        let after = [(1, 5), (2, 0x1_0000_0100)];
        let before = [(1, 5), (2, 0x1_0000_00ff)];
        assert_eq!(verdict(&p, &system(3), 16_384, Some(&good), &after, end), "ok");
        assert_eq!(
            verdict(&p, &system(3), 16_384, Some(&good), &before, end),
            code::LOG_DIVERGED.id
        );
        assert_eq!(
            verdict(&p, &system(3), 16_384, Some(&good), &[(1, 5)], end),
            code::LOG_DIVERGED.id
        );
        assert_eq!(
            verdict(&p, &system(2), 16_384, Some(&good), &[], 0x1_0000_0000),
            code::LOG_DIVERGED.id
        );
        assert_eq!(verdict(&p, &system(2), 16_384, None, &[], end), code::LOG_LOST.id);
        let lost = SlotState {
            lost: Some("wal_removed".into()),
            ..good.clone()
        };
        assert_eq!(
            verdict(&p, &system(2), 16_384, Some(&lost), &[], end),
            code::LOG_LOST.id
        );
        let unmade = SlotState::default();
        assert_eq!(
            verdict(&p, &system(2), 16_384, Some(&unmade), &[], end),
            code::LOG_LOST.id
        );
        let moved = SlotState {
            confirmed: Some(p.lsn + 1),
            lost: None,
        };
        assert_eq!(
            verdict(&p, &system(2), 16_384, Some(&moved), &[], end),
            code::LOG_SKIPPED.id
        );
        let behind = SlotState {
            confirmed: Some(p.lsn),
            lost: None,
        };
        assert_eq!(verdict(&p, &system(2), 16_384, Some(&behind), &[], end), "ok");
    }
}
