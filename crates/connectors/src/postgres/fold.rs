//! Changes gathered before they are applied, folded by key into their net effect.
//!
//! What several changes of one key do depends on whether the row is there before them. Both outcomes are counted while
//! folding; the server says later which one it was.

use super::stage::Kind;
use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch, StringArray};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use synctool_core::change::ChangeBatch;
use synctool_core::ledger::Applied;
use synctool_core::schema::{Column, ColumnType};

/// A key's bytes.
pub(super) type Key = Box<[u8]>;
/// A row of a gathered batch.
pub(super) type Place = (u32, u32);

/// Changes that are not applied yet.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) batches: Vec<RecordBatch>,
    pub(super) bytes: usize,
    /// All changes in their order.
    pub(super) changes: Vec<Change>,
    pub(super) nets: Vec<Net>,
    /// How many of the changes went another way already.
    pub(super) done: usize,
    by_key: HashMap<Key, usize>,
    /// Keys that change, and keys they change into.
    moving: HashSet<Key>,
}

impl Pending {
    /// Keeps a batch; says where its rows and its rows before stand.
    pub(super) fn add(&mut self, batch: &ChangeBatch) -> (u32, u32) {
        let new = self.batches.len() as u32;
        self.batches.push(batch.rows.clone());
        self.bytes += batch.bytes();
        match &batch.before {
            Some(before) => {
                self.batches.push(before.clone());
                (new, new + 1)
            }
            None => (new, new),
        }
    }

    /// Gathers a change that keeps its key.
    pub(super) fn fold(&mut self, change: Change, key: &Key, columns: usize) {
        let Some(&at) = self.by_key.get(key) else {
            let mut net = Net {
                change: change.clone(),
                many: false,
                counts: [Applied::default(); 2],
                alive: [false, true],
                last_updates: false,
            };
            net.count(change.kind);
            self.by_key.insert(key.clone(), self.nets.len());
            self.nets.push(net);
            self.changes.push(change);
            return;
        };
        let net = &mut self.nets[at];
        let had = &net.change;
        let merged = match (had.kind, change.kind) {
            (_, Kind::Delete) => change.clone(),
            (Kind::Delete, Kind::Update) => had.clone(),
            // Rows to put are whole.
            (Kind::Delete, Kind::Put) => Change {
                kind: Kind::Replace,
                ..change.clone()
            },
            (Kind::Update, Kind::Put) => change.clone(),
            (kind, _) => Change {
                kind,
                old: change.old,
                cells: had.cells.under(&change.cells, columns),
                new: New::No,
            },
        };
        net.count(change.kind);
        net.many = true;
        net.change = merged;
        self.changes.push(change);
    }

    /// Takes out the rows that are new as far as is known: each the only change of its key, and of none that is `known`.
    /// The keys that are not of a first load are known from here on, up to so many. Nothing can be gathered afterwards.
    pub(super) fn take_new(&mut self, known: &mut HashSet<Key>, most: usize) -> Vec<Net> {
        let mut new = vec![false; self.nets.len()];
        for (key, at) in std::mem::take(&mut self.by_key) {
            let net = &self.nets[at];
            let alone = !net.many && net.change.cells.is_whole();
            let is_known = match net.change.new {
                // Its chunk came, and no other will.
                New::Loaded => known.remove(&key),
                _ => known.contains(&key),
            };
            new[at] = alone && net.change.new != New::No && !is_known;
            if net.change.new != New::Loaded && known.len() < most {
                known.insert(key);
            }
        }
        let mut new = new.into_iter();
        self.nets.extract_if(.., |_| new.next() == Some(true)).collect()
    }

    /// Gathers a change of a key. Key changes are applied before everything else that is gathered, so neither key may
    /// have been touched before; what touches them later comes after them. `false` if what is gathered must be applied
    /// before it.
    pub(super) fn fold_move(&mut self, change: Change, old: Key, new: &Key) -> bool {
        let touched = |k: &Key| self.by_key.contains_key(k) || self.moving.contains(k);
        if touched(&old) || touched(new) {
            return false;
        }
        self.moving.insert(old);
        self.moving.insert(new.clone());
        self.changes.push(change);
        true
    }
}

/// One change.
#[derive(Clone)]
pub(super) struct Change {
    pub(super) kind: Kind,
    /// Where the key (or whole row) it is found by stands.
    pub(super) old: Place,
    pub(super) cells: Cells,
    pub(super) new: New,
}

/// Whether a row is probably not there yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum New {
    No,
    /// The log says that it came.
    Inserted,
    /// It is one of a first load.
    Loaded,
}

/// Where the values of a row come from.
#[derive(Clone)]
pub(super) enum Cells {
    /// All columns from one row.
    Whole(Place),
    /// Each column from its own; `None` is absent.
    Mixed(Vec<Option<Place>>),
}

impl Cells {
    pub(super) fn at(&self, column: usize) -> Option<Place> {
        match self {
            Cells::Whole(place) => Some(*place),
            Cells::Mixed(places) => places[column],
        }
    }

    pub(super) fn is_whole(&self) -> bool {
        matches!(self, Cells::Whole(_))
    }

    /// These values with others laid over them.
    fn under(&self, over: &Cells, columns: usize) -> Cells {
        match over {
            Cells::Whole(_) => over.clone(),
            Cells::Mixed(_) => Cells::Mixed((0..columns).map(|c| over.at(c).or(self.at(c))).collect()),
        }
    }
}

/// The net effect of changes of one key.
pub(super) struct Net {
    pub(super) change: Change,
    pub(super) many: bool,
    /// What the changes do one after the other: if the row is missing before, and if it is there.
    pub(super) counts: [Applied; 2],
    alive: [bool; 2],
    /// Whether the last change updates a row that was there before.
    pub(super) last_updates: bool,
}

impl Net {
    /// Counts one change under both outcomes.
    fn count(&mut self, kind: Kind) {
        for there in [0, 1] {
            let c = &mut self.counts[there];
            let was = self.alive[there];
            self.alive[there] = match kind {
                Kind::Delete => false,
                Kind::Put | Kind::Replace => true,
                Kind::Update | Kind::Move => was,
            };
            match (kind, was) {
                (Kind::Delete, true) => c.deleted += 1,
                (Kind::Put | Kind::Replace, false) => c.inserted += 1,
                (Kind::Put | Kind::Replace | Kind::Update | Kind::Move, true) => c.updated += 1,
                (Kind::Delete | Kind::Update | Kind::Move, false) => c.unchanged += 1,
            }
            if there == 1 {
                self.last_updates = was && kind != Kind::Delete;
            }
        }
    }
}

/// Which of the patterns a change carries.
pub(super) fn pattern_of(change: &Change, patterns: &[Vec<bool>]) -> usize {
    match &change.cells {
        Cells::Mixed(places) if change.kind != Kind::Delete => patterns
            .iter()
            .position(|p| p.iter().zip(places).all(|(a, b)| *a == b.is_some()))
            .unwrap_or(0),
        _ => 0,
    }
}

/// Keys whose equality at the server is the equality of their bytes here.
pub(super) fn is_exact(column: &Column) -> bool {
    matches!(
        column.ty,
        ColumnType::Bool
            | ColumnType::Int8
            | ColumnType::Int16
            | ColumnType::Int32
            | ColumnType::Int64
            | ColumnType::UInt8
            | ColumnType::UInt16
            | ColumnType::UInt32
            | ColumnType::UInt64
            | ColumnType::Date
            | ColumnType::Timestamp
            | ColumnType::TimestampTz
            | ColumnType::Decimal { .. }
            | ColumnType::Numeric
            | ColumnType::Text { .. }
            | ColumnType::Char { .. }
            | ColumnType::Bytes
            | ColumnType::Uuid
    )
}

/// A key column whose texts are brought into one form: `1.50` and `1.5` are the same number, and char(n) ignores the
/// blanks at its end.
pub(super) fn one_form(column: &Column, array: &ArrayRef) -> ArrayRef {
    let Some(texts) = array.as_string_opt::<i32>() else {
        return array.clone();
    };
    let form: fn(&str) -> &str = match column.ty {
        ColumnType::Decimal { .. } | ColumnType::Numeric => |n| match n.contains('.') {
            true => n.trim_end_matches('0').trim_end_matches('.'),
            false => n,
        },
        ColumnType::Char { .. } => |t| t.trim_end_matches(' '),
        _ => return array.clone(),
    };
    Arc::new(texts.iter().map(|t| t.map(form)).collect::<StringArray>())
}
