//! Plans: immutable and durable. Prepare stores a plan where the checkpoint lives; a resumed run loads it and never
//! plans again.

use crate::blocks::Blocks;
use crate::change::{KeyRange, RawFormat};
use crate::error::{Error, Result, code};
use crate::progress::{Checkpoint, Generation, PartitionId, PartitionState};
use crate::query::{Cut, Filter, Join, KeyList, Term};
use crate::schema::{Column, TableId, TableSchema};
use crate::strategy::hash::CompareSpec;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

/// How a run finds out what to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// Everything.
    Full,
    /// What changed since the watermark.
    Delta,
    /// What differs by hash.
    Hash,
    /// Groups whose rows changed.
    Aggregate,
    /// What a log says.
    Log,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Strategy::Full => "full",
            Strategy::Delta => "delta",
            Strategy::Hash => "hash",
            Strategy::Aggregate => "aggregate",
            Strategy::Log => "log",
        })
    }
}

/// One table of a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlannedTable {
    /// What to read, and in which form.
    pub read: ReadSpec,
    /// The destination table.
    pub destination: TableId,
    /// Its columns as they are written (names, types, carriers) and its key.
    pub schema: TableSchema,
    /// What is done with the rows at the end.
    pub publish: Publish,
    /// How rows that are read become changes of the table; `None` where each row is as it is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes: Option<Changes>,
    /// Whether columns that the destination lacks are added to it.
    #[serde(default)]
    pub evolve: bool,
    /// Columns of the destination that get a wider type before rows are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub widen: Vec<Widening>,
    /// How the table is compared, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<CompareSpec>,
    /// Whether the table is SyncTool's own (a key map, touched groups): its rows are booked apart from the user's.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub own: bool,
    /// The column that keeps each row's hash, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_hash: Option<StoredHash>,
}

/// A column of an existing table that gets a wider type when the plan is prepared: no value of its own is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Widening {
    /// Its name.
    pub column: String,
    /// The type that it gets, as the destination's DDL writes it.
    pub type_name: String,
    /// The statement that gives it.
    pub statement: String,
}

/// A column that keeps the hash of each row: computed here, as the last thing before the row is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredHash {
    /// The column: a 64-bit integer or a text.
    pub column: String,
    /// How the hash is written down.
    pub form: StoredForm,
    /// The columns that are hashed, in this order: the key, then what counts of the others by their names' bytes.
    pub of: Vec<String>,
}

/// How the MD5 of a row's canonical form is written down in a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredForm {
    /// Its first 32 bits as a number without a sign: what `md5_sum_hash` keeps. For people and other programs: too short to
    /// compare by.
    Sum,
    /// 32 hexadecimal digits; in an integer its first 64 bits: what `hash_md5_hash` keeps.
    Md5,
}

/// How the rows of a delta become changes: those that are gone travel as deletes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Changes {
    /// A column read whose value says that the row is gone: true, a number that is not zero, anything else but NULL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone: Option<String>,
    /// The value that says so, where it is not the usual one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tombstone_value: Option<String>,
    /// Whether rows whose keys the destination has are left out: nothing is updated or deleted.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub only_new: bool,
    /// Whether nothing is deleted, whatever becomes of a row at the source or in a stage.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub keeps: bool,
    /// Whether rows of a slice that do not meet the filters, or have no partner in a join that wants one, are deleted:
    /// they may have been written before they changed.
    pub unmatched: bool,
}

impl PlannedTable {
    /// Whole rows of `read` into a table, and nothing else about it.
    pub fn new(read: ReadSpec, destination: TableId, schema: TableSchema, publish: Publish) -> Self {
        PlannedTable {
            read,
            destination,
            schema,
            publish,
            changes: None,
            evolve: false,
            widen: Vec::new(),
            compare: None,
            own: false,
            row_hash: None,
        }
    }

    /// The columns as they come out of the stages: all that are written but the hash of the row, which is made last.
    pub fn staged(&self) -> TableSchema {
        let mut schema = self.schema.clone();
        if let Some(hash) = &self.row_hash {
            schema.columns.retain(|c| c.name != hash.column);
        }
        schema
    }

    /// The columns as the destination was asked to store them: the source's, in the types wanted. (`schema` has the
    /// destination's answer, with its own type names.)
    pub fn asked(&self) -> impl Iterator<Item = Column> + '_ {
        self.schema.columns.iter().map(|stored| {
            let read = self.read.columns.iter().find(|r| r.column.name == stored.name);
            let source_type = read
                .filter(|r| r.column.ty == stored.ty)
                .and_then(|r| r.column.source_type.clone());
            Column {
                source_type,
                nullable: read.map_or(stored.nullable, |r| r.column.nullable),
                ..stored.clone()
            }
        })
    }
}

/// What a reader reads of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadSpec {
    /// The source table.
    pub table: TableId,
    /// The columns, in destination order.
    pub columns: Vec<ReadColumn>,
    /// The wire form in which the rows pass undecoded, if both ends agreed on one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub raw: Option<RawFormat>,
    /// The table's name in terms, conditions and joins; its own where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Tables that are read along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Join>,
    /// Conditions that a row must meet, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// The columns (by their names in [`ReadColumn::column`]) whose equal values make one row of many; the other
    /// columns are aggregates then. Empty: every row stands for itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub group_by: Vec<String>,
    /// Whether all partitions must be read in one snapshot: they are cut by values that a row may change, so a row that
    /// changes between two snapshots would be read twice or never ([`crate::source::Source::shares_snapshot`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub one_snapshot: bool,
}

impl ReadSpec {
    /// Every column of a table under its own name.
    pub fn all(table: TableId, columns: &[Column]) -> Self {
        let columns = columns.iter().map(|c| ReadColumn::plain(&c.name, c.clone())).collect();
        ReadSpec::of(table, columns)
    }

    /// These columns of a table.
    pub fn of(table: TableId, columns: Vec<ReadColumn>) -> Self {
        ReadSpec {
            table,
            columns,
            raw: None,
            alias: None,
            joins: Vec::new(),
            filters: Vec::new(),
            group_by: Vec::new(),
            one_snapshot: false,
        }
    }

    /// Whether this is whole columns of one table and nothing else.
    pub fn is_plain(&self) -> bool {
        self.joins.is_empty()
            && self.filters.is_empty()
            && self.group_by.is_empty()
            && self.columns.iter().all(|c| c.term.is_none())
    }

    /// The columns that make a group, each with its place among those read.
    pub fn groups(&self) -> Result<Vec<(usize, &ReadColumn)>> {
        let find = |name: &String| {
            let mut columns = self.columns.iter().enumerate();
            columns.find(|(_, c)| c.column.name == *name).ok_or_else(|| {
                Error::new(
                    code::COLUMN_MISSING,
                    format!("rows are grouped by {name}, which is not among the columns"),
                )
                .at("table", self.table.to_string())
            })
        };
        self.group_by.iter().map(find).collect()
    }

    /// The schema of the batches the reader yields.
    pub fn schema(&self) -> TableSchema {
        TableSchema {
            columns: self.columns.iter().map(|c| c.column.clone()).collect(),
            key: Vec::new(),
        }
    }
}

/// One column to read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReadColumn {
    /// Its name at the source; for an expression, the name it was given.
    pub source: String,
    /// What is read, where it is not the column `source` of the table itself: an expression, or a column of a joined
    /// table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<Term>,
    /// What comes out: the destination's name, the source's type, and how it travels.
    pub column: Column,
}

impl ReadColumn {
    /// A column of the table itself.
    pub fn plain(source: impl Into<String>, column: Column) -> Self {
        ReadColumn {
            source: source.into(),
            term: None,
            column,
        }
    }

    /// What is read.
    pub fn term(&self) -> Term {
        self.term.clone().unwrap_or_else(|| Term::column(&self.source))
    }
}

/// What is done with rows that were loaded beside the destination table, in one step at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Publish {
    /// Nothing: rows are applied to the destination table directly, as a log says.
    Direct,
    /// The table does not exist yet: the loaded one takes its name.
    Create,
    /// The loaded table takes the place of the existing one; grants, indexes, views and comments stay.
    Swap,
    /// The difference is applied in place: missing rows inserted, differing ones updated, and (with
    /// `delete_missing`) those that only the destination has deleted.
    Merge {
        /// Whether rows that the source does not have are deleted.
        delete_missing: bool,
    },
    /// The loaded rows are added: the only thing besides a replacement that a table without a key allows.
    Append,
}

/// When a run may delete or replace rows at the destination.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct DeleteGuard {
    /// More than this share of the destination's rows …
    pub max_percent: f64,
    /// … and more than this many rows stops the run, as does an empty source with a non-empty destination.
    pub max_rows: u64,
    /// The user said that it is meant.
    pub allow: bool,
}

impl Default for DeleteGuard {
    fn default() -> Self {
        DeleteGuard {
            max_percent: 30.0,
            max_rows: 1000,
            allow: false,
        }
    }
}

impl DeleteGuard {
    /// Whether deleting `deleted` of `before` rows in favour of `after` rows is allowed.
    pub fn allows(&self, before: u64, deleted: u64, after: u64) -> bool {
        let emptied = after == 0 && before > 0;
        let too_many = deleted > self.max_rows && deleted as f64 > before as f64 * self.max_percent / 100.0;
        self.allow || !(emptied || too_many)
    }

    /// Refuses a load that would delete more of a table than is allowed, before anything is changed.
    pub fn check(&self, table: &TableId, before: u64, deleted: u64, after: u64) -> Result<()> {
        match self.allows(before, deleted, after) {
            true => Ok(()),
            false => Err(Error::new(
                code::MASS_DELETE,
                format!(
                    "{deleted} of {before} rows of {table} would be deleted in favour of {after}; nothing was changed"
                ),
            )
            .hint("check the source; if it is meant, run again with --allow-mass-delete")),
        }
    }
}

/// How the stored rows of a load are proved before they are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verify {
    /// The row counts of both ends.
    #[default]
    Count,
    /// A hash of what was read against a hash of what was stored.
    Hash,
    /// Not at all.
    None,
}

/// The unit of progress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Partition {
    /// Its readable name, unique in the plan.
    pub id: PartitionId,
    /// Which of the plan's tables, by index.
    #[serde(default)]
    pub table: usize,
    /// What to do.
    pub work: Work,
    /// Rows expected, for progress only.
    #[serde(default)]
    pub estimated_rows: u64,
    /// Bytes expected, for progress only.
    #[serde(default)]
    pub estimated_bytes: u64,
}

impl Partition {
    /// Work on the plan's first table, with nothing estimated.
    pub fn new(id: impl Into<PartitionId>, work: Work) -> Self {
        Partition {
            id: id.into(),
            table: 0,
            work,
            estimated_rows: 0,
            estimated_bytes: 0,
        }
    }

    /// Whether a plan may be published only once this is done: a log has no end, and deletes of a slice in which a
    /// comparison found none are not even begun.
    pub fn must_be_done(&self) -> bool {
        match &self.work {
            Work::Log => false,
            Work::Compare(compare) => compare.repair != Repair::Deletes,
            _ => true,
        }
    }
}

/// The work of a partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Read a slice of a table.
    Read(Slice),
    /// Compare a slice of the source with the same rows of the destination by hash, and repair what differs.
    Compare(Compare),
    /// Find the groups that rows of a slice are in, and were in before.
    Touch {
        /// The rows, at the source.
        slice: Slice,
        /// The key map is only filled: no group is touched.
        fill: bool,
    },
    /// Find the rows of the key map that the source does not have any more: touch the groups they were in, or
    /// ([`Repair::Deletes`]) forget them.
    Vanished(Compare),
    /// Compute touched groups anew: those of this shard.
    Recompute {
        /// The shard.
        shard: u32,
        /// Of how many.
        shards: u32,
        /// Whether groups without rows are deleted; otherwise they are counted and left to a later phase, so that the
        /// guard knows their number before the first one goes.
        #[serde(default)]
        deletes: bool,
        /// Whether a stage writes groups otherwise than they are read, so that the destination cannot be asked for one.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        renamed: bool,
        /// What counts a group's rows that the next window reads, or read already: of such a group it is not known which
        /// rows were counted, and it is left to the next run too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsettled: Option<Term>,
    },
    /// Compute all groups.
    Regroup {
        /// As in [`Work::Recompute`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        unsettled: Option<Term>,
    },
    /// Empty the plan's tables behind the first: what an aggregate remembers of rows and groups.
    Clear,
    /// Follow a log, without end.
    Log,
}

/// The same rows, as each end names them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Compare {
    /// At the source, in its terms.
    pub source: Slice,
    /// At the destination, in its column names.
    pub destination: Slice,
    /// How both ends group rows.
    pub blocks: Blocks,
    /// What is done about differences.
    pub repair: Repair,
    /// Rows expected, for progress only.
    #[serde(default)]
    pub estimated_rows: u64,
}

/// What is done about rows that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Rows that are missing or differ are written; those that only the destination has are counted.
    Upserts,
    /// Rows that are missing are written; all others stay as they are.
    Inserts,
    /// Only keys are compared; those that only the destination has are counted.
    Find,
    /// Those that only the destination has are deleted: the ones an earlier phase found, or, after a crash, those that are
    /// found again before this one begins.
    Deletes,
}

/// A slice of a table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slice {
    /// All of it.
    All,
    /// Keys in a half-open range. Key ranges of a plan have no gaps: the first has no lower bound, the last no upper.
    Key(KeyRange),
    /// Rows that meet conditions.
    Cut(Cut),
    /// Rows named one by one, in no order; a name that is not there is no error.
    Keys(KeyList),
    /// One file of a table made of files, relative to its folder, and which of its row groups (`None`: all).
    File {
        /// The file.
        path: String,
        /// The half-open range of row groups.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        groups: Option<(usize, usize)>,
        /// What the file was when the slice was made, where another in its place must not be read with the other slices.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stamp: Option<String>,
    },
}

/// Partitions that may run beside each other; the next phase starts when all of them are done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name in progress and logs.
    pub name: String,
    /// Its partitions.
    pub partitions: Vec<Partition>,
}

/// By this name a plan remembers which tables' ranges of keys its log cuts by the bytes of texts, and in which columns.
const KEYS_BY_BYTES: &str = "log:keys-by-bytes";

/// A plan: what one run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The pipeline's id.
    pub pipeline: String,
    /// The run that made it.
    pub run_id: String,
    /// Its number at the destination; given by prepare.
    #[serde(default)]
    pub generation: Generation,
    /// How it was made.
    pub strategy: Strategy,
    /// Why this strategy and this way, one sentence each, for people.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What must not change while it is unfinished (tables, keys, filters, columns), as a value, so that a change can be named.
    pub semantics: serde_json::Value,
    /// Its tables.
    pub tables: Vec<PlannedTable>,
    /// Its phases, in order. Shared, because every writer has the plan and there may be thousands of partitions.
    #[serde(with = "shared")]
    pub phases: Arc<Vec<Phase>>,
    /// How loads are proved.
    #[serde(default)]
    pub verify: Verify,
    /// When deletes are too many.
    #[serde(default)]
    pub guard: DeleteGuard,
    /// What the destination remembers for the pipeline once the plan is published, beside what it remembers already
    /// (a delta's watermark, how far was verified). Written in the transaction that finishes the plan.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub remember: BTreeMap<String, String>,
    /// When it was made, RFC 3339 UTC.
    pub created_at: String,
}

/// Phases are stored as the list that they are.
mod shared {
    use super::{Arc, Phase};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(phases: &Arc<Vec<Phase>>, serializer: S) -> Result<S::Ok, S::Error> {
        phases.as_slice().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Vec<Phase>>, D::Error> {
        Vec::deserialize(deserializer).map(Arc::new)
    }
}

impl Plan {
    /// All partitions of all phases.
    pub fn partitions(&self) -> impl Iterator<Item = &Partition> {
        self.phases.iter().flat_map(|p| &p.partitions)
    }

    /// Fails where two partitions have one id: what one of them did would count as the other's.
    pub(crate) fn check_ids(&self) -> Result<()> {
        let mut seen = HashSet::new();
        for partition in self.partitions() {
            if !seen.insert(&partition.id) {
                return Err(Error::bug("two partitions have the same id").at("partition", partition.id.as_str()));
            }
        }
        Ok(())
    }

    /// Whether what is done of it is of no use to a run that goes on: all of it must be read in one snapshot, and that
    /// ended with the run which had it.
    pub fn is_stale(&self, checkpoint: &Checkpoint) -> bool {
        let begun = |p: &Partition| checkpoint.get(&p.id).is_some_and(PartitionState::has_begun);
        let done = |p: &Partition| checkpoint.get(&p.id).is_some_and(|s| s.done);
        self.tables.iter().any(|t| t.read.one_snapshot) && self.partitions().any(begun) && !self.partitions().all(done)
    }

    /// Says, as a reason of the plan that comes after it, that a stale plan starts over.
    pub fn starts_over(&self) -> String {
        format!(
            "run {} was interrupted and starts over: its partitions must be read in one snapshot, which is gone",
            self.run_id
        )
    }

    /// Says in which columns of its key (in destination names) ranges of a table are cut by the bytes of texts. The
    /// others have the source's own order, which the destination must have, too ([`KeyColumn::is_cut_by_bytes`]).
    ///
    /// [`KeyColumn::is_cut_by_bytes`]: crate::keys::KeyColumn::is_cut_by_bytes
    pub fn cut_by_bytes(&mut self, table: &TableId, columns: Vec<String>) {
        let mut all = self.cut_tables();
        all.insert(table.to_string(), columns);
        all.retain(|_, columns| !columns.is_empty());
        self.remember
            .insert(KEYS_BY_BYTES.to_string(), serde_json::json!(all).to_string());
    }

    /// The columns of a table's key in which ranges are cut by the bytes of texts.
    pub fn columns_cut_by_bytes(&self, table: &TableId) -> Vec<String> {
        self.cut_tables().remove(&table.to_string()).unwrap_or_default()
    }

    fn cut_tables(&self) -> BTreeMap<String, Vec<String>> {
        let all = self.remember.get(KEYS_BY_BYTES);
        all.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    /// The name of the table that rows are loaded into beside the destination table `index`. It depends on the
    /// generation, so a zombie of an older run writes into a table that nobody reads.
    pub fn load_name(&self, index: usize) -> String {
        format!(
            "_synctool_load_{}_{}_{index}",
            short_hash(&self.pipeline),
            self.generation
        )
    }
}

/// Eight hex digits that stand for a text in generated names.
pub fn short_hash(text: &str) -> String {
    format!("{:08x}", xxhash_rust::xxh3::xxh3_64(text.as_bytes()) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guard_stops_mass_deletes_and_emptying() {
        let g = DeleteGuard::default();
        assert!(g.allows(10_000, 1000, 9000));
        assert!(g.allows(100_000, 30_000, 70_000));
        assert!(!g.allows(100_000, 30_001, 69_999));
        assert!(g.allows(100, 90, 10), "small tables may change wholly");
        assert!(!g.allows(5, 5, 0), "an empty source never empties the destination");
        assert!(DeleteGuard { allow: true, ..g }.allows(5, 5, 0));
        assert!(g.allows(0, 0, 0));
    }
}
