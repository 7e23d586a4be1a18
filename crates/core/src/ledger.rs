//! The row accounts of a run. They must balance: a leak fails the run.
//!
//! Every stage: in + expanded = out + filtered + deduplicated + merged + superseded + rejected.
//! The sink: written = inserted + updated + deleted + unchanged.

use crate::error::{Error, Result, code};
use serde::{Deserialize, Serialize};
use std::ops::AddAssign;

/// What one stage did with rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct StageAccount {
    /// Rows that came in.
    pub rows_in: u64,
    /// Rows made in addition (one row became several).
    pub expanded: u64,
    /// Rows that went out.
    pub rows_out: u64,
    /// Rows a filter dropped.
    pub filtered: u64,
    /// Rows dropped because another row with the same key stands for them.
    pub deduplicated: u64,
    /// Rows folded into one (aggregation).
    pub merged: u64,
    /// Rows a later change of the same row replaced.
    pub superseded: u64,
    /// Rows put aside with a reason.
    pub rejected: u64,
}

impl StageAccount {
    fn balances(&self) -> bool {
        self.rows_in + self.expanded
            == self.rows_out + self.filtered + self.deduplicated + self.merged + self.superseded + self.rejected
    }
}

impl AddAssign for StageAccount {
    fn add_assign(&mut self, o: Self) {
        self.rows_in += o.rows_in;
        self.expanded += o.expanded;
        self.rows_out += o.rows_out;
        self.filtered += o.filtered;
        self.deduplicated += o.deduplicated;
        self.merged += o.merged;
        self.superseded += o.superseded;
        self.rejected += o.rejected;
    }
}

/// Count, bytes and an order-free hash of a set of rows. Two 64-bit modular sums of a 128-bit row hash, never XOR:
/// equal pairs would cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Rows.
    pub rows: u64,
    /// Bytes, in the form they travelled.
    pub bytes: u64,
    /// Sum of the high halves of the row hashes, modulo 2^64.
    pub hash_high: u64,
    /// Sum of the low halves.
    pub hash_low: u64,
}

impl Tally {
    /// Adds one row's hash.
    pub fn add_row(&mut self, hash: u128) {
        self.rows += 1;
        self.hash_high = self.hash_high.wrapping_add((hash >> 64) as u64);
        self.hash_low = self.hash_low.wrapping_add(hash as u64);
    }

    /// Whether both stand for the same set of rows.
    pub fn same_rows(&self, other: &Tally) -> bool {
        (self.rows, self.hash_high, self.hash_low) == (other.rows, other.hash_high, other.hash_low)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, o: Self) {
        self.rows += o.rows;
        self.bytes += o.bytes;
        self.hash_high = self.hash_high.wrapping_add(o.hash_high);
        self.hash_low = self.hash_low.wrapping_add(o.hash_low);
    }
}

/// What a sink did with the rows given to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Applied {
    /// Rows given to it.
    pub written: u64,
    /// Rows that were new.
    pub inserted: u64,
    /// Rows that changed.
    pub updated: u64,
    /// Rows that went.
    pub deleted: u64,
    /// Rows that were already right, or a delete of a row that was not there.
    pub unchanged: u64,
    /// Rows that only the destination had and that a replaced range took away: they were never given to the sink, so
    /// they stand beside `written`.
    pub removed: u64,
    /// Rows of SyncTool's own tables (key maps, touched groups): in none of the other counts.
    pub own: u64,
}

impl Applied {
    /// The same, booked as rows of a table of our own.
    #[must_use]
    pub fn as_own(self) -> Self {
        Applied {
            own: self.written,
            ..Applied::default()
        }
    }

    /// `rows` inserted, nothing else.
    pub fn inserts(rows: u64) -> Self {
        Applied {
            written: rows,
            inserted: rows,
            ..Applied::default()
        }
    }

    /// Books as unchanged what was written and nothing was done for. An error if more was done than was written.
    pub fn balance(&mut self) -> Result<()> {
        let done = self.inserted + self.updated + self.deleted;
        let unchanged = self.written.checked_sub(done);
        self.unchanged = unchanged.ok_or_else(Error::doubled_at_destination)?;
        Ok(())
    }

    /// `rows` took the place of `before` ones, of which `deleted` have no successor of the same key. The others count as
    /// updated: nobody compared them.
    pub fn swapped(before: u64, deleted: u64, rows: u64) -> Self {
        let common = before.saturating_sub(deleted).min(rows);
        Applied {
            written: rows,
            inserted: rows - common,
            updated: common,
            deleted,
            ..Applied::default()
        }
    }
}

impl AddAssign for Applied {
    fn add_assign(&mut self, o: Self) {
        self.written += o.written;
        self.inserted += o.inserted;
        self.updated += o.updated;
        self.deleted += o.deleted;
        self.unchanged += o.unchanged;
        self.removed += o.removed;
        self.own += o.own;
    }
}

/// Rows that were compared by hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Compared {
    /// Rows of the source.
    pub source: u64,
    /// Rows of the destination.
    pub destination: u64,
    /// Rows that both have with other values.
    pub differing: u64,
    /// Rows that only the source has.
    pub only_source: u64,
    /// Rows that only the destination has.
    pub only_destination: u64,
}

impl Compared {
    /// Rows that are not the same at both ends.
    pub fn differ(&self) -> u64 {
        self.differing + self.only_source + self.only_destination
    }
}

impl AddAssign for Compared {
    fn add_assign(&mut self, o: Self) {
        self.source += o.source;
        self.destination += o.destination;
        self.differing += o.differing;
        self.only_source += o.only_source;
        self.only_destination += o.only_destination;
    }
}

/// The engine's accounts of a partition: what was read, what each stage did, what was handed to the sink.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Accounts {
    /// What came out of the reader.
    pub read: Tally,
    /// Stage name and account, in pipeline order.
    pub stages: Vec<(String, StageAccount)>,
    /// What was handed to the sink; its hash is what a verified load must have stored.
    pub written: Tally,
    /// What was compared by hash.
    pub compared: Compared,
    /// Rows handed to the sink for SyncTool's own tables: in none of the other accounts.
    pub own: u64,
}

impl Accounts {
    /// The account of a stage, opened at the end if it is new.
    pub fn stage(&mut self, name: &str) -> &mut StageAccount {
        let at = self.stages.iter().position(|(n, _)| n == name).unwrap_or_else(|| {
            self.stages.push((name.to_string(), StageAccount::default()));
            self.stages.len() - 1
        });
        &mut self.stages[at].1
    }
}

impl AddAssign<&Accounts> for Accounts {
    fn add_assign(&mut self, o: &Accounts) {
        self.read += o.read;
        self.written += o.written;
        self.compared += o.compared;
        self.own += o.own;
        for (name, account) in &o.stages {
            self.stage(name).add_assign(*account);
        }
    }
}

/// A run's accounts: everything read, staged and applied, and what publishing the load did.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ledger {
    /// All partitions together.
    pub accounts: Accounts,
    /// What the sink did while partitions were written.
    pub applied: Applied,
    /// What publishing did at the destination table (swap, merge); `None` where rows were applied directly. Here
    /// `deleted` counts rows that only the destination had, so it stands beside `written`, not in it.
    pub published: Option<Applied>,
}

impl Ledger {
    /// Adds a partition.
    pub fn add(&mut self, accounts: &Accounts, applied: Applied) {
        self.accounts += accounts;
        self.applied += applied;
    }

    /// What happened to the destination's rows.
    pub fn outcome(&self) -> Applied {
        self.published.unwrap_or(self.applied)
    }

    /// Fails with the account that does not balance.
    pub fn check(&self) -> Result<()> {
        let leak = |text: String| {
            Err(Error::new(code::LEDGER, text)
                .hint("the destination was not changed further; report this with the run's log"))
        };
        let mut from = "the reader";
        let mut rows = self.accounts.read.rows;
        for (name, s) in &self.accounts.stages {
            if s.rows_in != rows {
                return leak(format!("{from} gave {rows} rows, stage {name} got {}", s.rows_in));
            }
            if !s.balances() {
                return leak(format!("stage {name} does not balance: {s:?}"));
            }
            (from, rows) = (name, s.rows_out);
        }
        let a = self.applied;
        if self.accounts.written.rows != rows || a.written != rows {
            return leak(format!(
                "{from} gave {rows} rows, {} were handed to the sink, which accounts for {}",
                self.accounts.written.rows, a.written
            ));
        }
        if a.own != self.accounts.own {
            return leak(format!(
                "{} rows of our own were handed to the sink, which accounts for {}",
                self.accounts.own, a.own
            ));
        }
        if a.written != a.inserted + a.updated + a.deleted + a.unchanged {
            return leak(format!("the sink does not balance: {a:?}"));
        }
        if let Some(p) = self.published
            && (p.written != rows || p.written != p.inserted + p.updated + p.unchanged)
        {
            return leak(format!("publishing {rows} rows does not balance: {p:?}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn balanced() -> Ledger {
        let mut l = Ledger::default();
        l.accounts.read.rows = 10;
        *l.accounts.stage("filter") = StageAccount {
            rows_in: 10,
            rows_out: 7,
            filtered: 3,
            ..Default::default()
        };
        l.accounts.written.rows = 7;
        l.applied = Applied {
            written: 7,
            inserted: 4,
            updated: 2,
            unchanged: 1,
            ..Applied::default()
        };
        l
    }

    #[test]
    fn a_leak_anywhere_fails() {
        balanced().check().unwrap();
        let mut stage = balanced();
        stage.accounts.stage("filter").filtered = 2;
        let mut handed = balanced();
        handed.accounts.written.rows = 8;
        let mut sink = balanced();
        sink.applied.inserted = 5;
        let mut lost = balanced();
        lost.applied.written = 6;
        for l in [stage, handed, sink, lost] {
            assert_eq!(l.check().unwrap_err().code().id, "ST-VER-003");
        }
    }

    #[test]
    fn pairs_do_not_cancel_in_a_tally() {
        let (mut a, mut b) = (Tally::default(), Tally::default());
        a.add_row(7);
        a.add_row(7);
        b.add_row(9);
        b.add_row(9);
        assert!(!a.same_rows(&b));
    }
}
