//! Lets one row per key through, over a whole partition and not only a batch.
//!
//! Where rows are applied directly, under a key that equal rows share (a delta's window), a row that comes later and is
//! the better one goes out after the one that it replaces, as an upsert: sinks apply rows in order. Where rows are loaded
//! or compared there is no room for a second row of a key: there, rows wait until no better one can come.
//! Rows of one key must be in one partition: whoever plans a delta makes its window one where rows pass a dedup. And a
//! partition is committed as a whole, since another attempt knows nothing of the rows before.
//!
//! Memory is bounded: some 70 bytes and the order value per key, and a limit on keys; a limit on the bytes of rows that
//! wait. Beyond that they go on, and a better one that comes all the same ends the run.

use crate::chain::Step;
use crate::rows::{PerSchema, pick, place};
use crate::spec::{DedupSpec, Keep};
use arrow_array::UInt8Array;
use arrow_row::{RowConverter, SortField};
use arrow_schema::{DataType, SortOptions};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::stage::{Stage, Staged, Written};
use xxhash_rust::xxh3::xxh3_128;

/// The stage as it is configured.
#[derive(Debug, Clone)]
pub(crate) struct Dedup {
    name: Arc<str>,
    spec: Arc<DedupSpec>,
}

impl Dedup {
    pub(crate) fn new(name: &str, spec: DedupSpec) -> Result<Self> {
        if spec.keys.is_empty() {
            return Err(Error::new(code::CONFIG_INVALID, "dedup needs keys"));
        }
        Ok(Dedup {
            name: name.into(),
            spec: Arc::new(spec),
        })
    }

    fn opened(&self, waiting: Option<Waiting>) -> Box<dyn Stage> {
        Box::new(Deduplicating {
            config: self.clone(),
            plan: PerSchema::default(),
            seen: HashMap::new(),
            batches: 0,
            waiting,
        })
    }

    fn plan(&self, columns: &[Column]) -> Result<Plan> {
        let keys = self
            .spec
            .keys
            .iter()
            .map(|k| place(columns, k))
            .collect::<Result<Vec<_>>>()?;
        let order = match &self.spec.order_by {
            None => None,
            Some(name) => {
                let at = place(columns, name)?;
                let is_text = matches!(
                    columns[at].ty,
                    ColumnType::Text { .. } | ColumnType::Char { .. } | ColumnType::Native
                );
                if columns[at].arrow_type() == DataType::Utf8 && !is_text {
                    return Err(Error::new(
                        code::CONFIG_TYPE,
                        format!(
                            "dedup: column {name} ({}) travels as text, which does not sort by value",
                            columns[at].ty
                        ),
                    )
                    .hint("cast it first"));
                }
                Some(at)
            }
        };
        let converter = |places: &[usize], descending: bool| {
            let options = SortOptions {
                descending,
                // NULL is the least, whatever the direction.
                nulls_first: !descending,
            };
            let fields = places
                .iter()
                .map(|p| SortField::new_with_options(columns[*p].arrow_type(), options))
                .collect();
            RowConverter::new(fields).map_err(|e| Error::bug(format!("dedup: {e}")))
        };
        Ok(Plan {
            by_key: converter(&keys, false)?,
            by_order: order.map(|o| converter(&[o], self.spec.descending)).transpose()?,
            keys,
            order,
        })
    }
}

impl Step for Dedup {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        self.plan(&input.columns)?;
        Ok(input.clone())
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(self.opened(None))
    }

    fn open_for(&self, planned: &TableSchema, written: Written) -> Result<Box<dyn Stage>> {
        let spec = &self.spec;
        // Rows that are the same here are written under one key.
        let one_key = !planned.key.is_empty() && planned.key.iter().all(|k| spec.keys.contains(k));
        let waits = match written {
            // The first to come is never replaced.
            _ if spec.keep == Keep::First && spec.order_by.is_none() => false,
            Written::Stepwise => false,
            Written::InOrder => !one_key,
            Written::Once => true,
        };
        Ok(self.opened(waits.then(|| Waiting::new(spec.max_bytes))))
    }

    fn remembers(&self) -> bool {
        true
    }

    fn reads(&self) -> Vec<String> {
        self.spec.keys.iter().chain(&self.spec.order_by).cloned().collect()
    }
}

#[derive(Debug)]
struct Plan {
    keys: Vec<usize>,
    order: Option<usize>,
    by_key: RowConverter,
    by_order: Option<RowConverter>,
}

/// The row that stands for a key so far.
struct Seen {
    /// Its place in the batch at hand, if it is there.
    row: Option<u32>,
    order: Box<[u8]>,
    /// The number of the batch that it came in, or else of the last one before that had a row of this key.
    batch: Option<u32>,
}

struct Deduplicating {
    config: Dedup,
    plan: PerSchema<Plan>,
    seen: HashMap<u128, Seen>,
    /// How many batches came.
    batches: u32,
    /// Where a row must not go on before it is known to be the one.
    waiting: Option<Waiting>,
}

/// Rows of one batch that wait, one per key.
struct Part {
    number: u32,
    keys: Vec<u128>,
    rows: ChangeBatch,
}

impl Part {
    fn bytes(&self) -> usize {
        self.rows.bytes() + self.keys.len() * size_of::<u128>()
    }
}

/// Rows that wait until no better one can come. They are not counted in the process's budget, since whoever waits for the
/// budget may be the reader of the rows that end the waiting; they have a limit of their own.
struct Waiting {
    parts: Vec<Part>,
    bytes: usize,
    limit: usize,
    /// With more bytes, rows that others replaced are looked for.
    tidy_at: usize,
    /// Rows of batches before this one are gone.
    from: u32,
}

/// With less it is not worth while to look for rows that others replaced.
const UNTIDY_BYTES: usize = 8 << 20;

impl Waiting {
    fn new(limit: usize) -> Self {
        Waiting {
            parts: Vec::new(),
            bytes: 0,
            limit,
            tidy_at: UNTIDY_BYTES.min(limit),
            from: 0,
        }
    }

    /// Takes rows, and lets all of them go where they have become too many.
    fn add(&mut self, part: Part, seen: &HashMap<u128, Seen>) -> Result<Vec<ChangeBatch>> {
        if part.keys.is_empty() {
            return Ok(Vec::new());
        }
        self.bytes += part.bytes();
        self.parts.push(part);
        if self.bytes > self.tidy_at {
            self.tidy(seen)?;
        }
        match self.bytes > self.limit {
            true => Ok(self.release()),
            false => Ok(Vec::new()),
        }
    }

    /// Drops rows that others replaced.
    fn tidy(&mut self, seen: &HashMap<u128, Seen>) -> Result<()> {
        for part in std::mem::take(&mut self.parts) {
            let stands = |key: u128| seen.get(&key).is_some_and(|s| s.batch == Some(part.number));
            let (rows, keys): (Vec<u32>, Vec<u128>) = (0..)
                .zip(part.keys.iter().copied())
                .filter(|(_, key)| stands(*key))
                .unzip();
            match keys.len() {
                0 => {}
                all if all == part.keys.len() => self.parts.push(part),
                _ => self.parts.push(Part {
                    number: part.number,
                    keys,
                    rows: pick(&part.rows, &rows)?,
                }),
            }
        }
        self.bytes = self.parts.iter().map(Part::bytes).sum();
        self.tidy_at = (2 * self.bytes).max(UNTIDY_BYTES).min(self.limit);
        Ok(())
    }

    /// Lets all rows go.
    fn release(&mut self) -> Vec<ChangeBatch> {
        if let Some(last) = self.parts.last() {
            self.from = last.number + 1;
        }
        self.bytes = 0;
        std::mem::take(&mut self.parts).into_iter().map(|p| p.rows).collect()
    }
}

/// A row must be replaced that has gone on for good.
fn too_late(limit: usize) -> Error {
    Error::new(
        code::UNSUPPORTED,
        format!(
            "dedup: a better row came after the one it replaces had gone on; {} MiB of rows wait at most",
            limit >> 20
        ),
    )
    .hint("write fewer or smaller columns, or let the source give one row per key (a view with row_number())")
}

#[async_trait]
impl Stage for Deduplicating {
    fn name(&self) -> &str {
        &self.config.name
    }

    async fn apply(&mut self, batch: ChangeBatch) -> Result<Staged> {
        let config = &self.config;
        let plan = self.plan.get(&batch.rows.schema(), |columns| config.plan(&columns))?;
        let convert = |converter: &RowConverter, places: &[usize]| {
            let columns: Vec<_> = places.iter().map(|p| batch.rows.column(*p).clone()).collect();
            converter
                .convert_columns(&columns)
                .map_err(|e| Error::bug(format!("dedup: {e}")))
        };
        let keys = convert(&plan.by_key, &plan.keys)?;
        let orders = match (&plan.by_order, plan.order) {
            (Some(converter), Some(at)) => Some(convert(converter, &[at])?),
            _ => None,
        };
        let number = self.batches;
        self.batches += 1;
        let gone_before = self.waiting.as_ref().map_or(0, |w| w.from);
        let (mut superseded, mut deduplicated) = (0u64, 0u64);
        let mut touched: Vec<u128> = Vec::with_capacity(batch.len());
        for row in 0..batch.len() {
            let hash = xxh3_128(keys.row(row).as_ref());
            let order: &[u8] = orders.as_ref().map_or(&[], |o| o.row(row).data());
            let Some(seen) = self.seen.get_mut(&hash) else {
                if self.seen.len() >= config.spec.max_keys {
                    return Err(Error::new(
                        code::UNSUPPORTED,
                        format!("dedup remembers {} keys at most in a partition", config.spec.max_keys),
                    )
                    .hint("make the window smaller, or raise max_keys"));
                }
                touched.push(hash);
                let new = Seen {
                    row: Some(row as u32),
                    order: order.into(),
                    batch: None,
                };
                self.seen.insert(hash, new);
                continue;
            };
            // Of rows that are equal in order, the last or first to come stays.
            let better = match config.spec.keep {
                Keep::Last => order >= &*seen.order,
                Keep::First => order < &*seen.order,
            };
            if !better {
                deduplicated += 1;
                continue;
            }
            if seen.batch.is_some_and(|b| b < gone_before) {
                return Err(too_late(config.spec.max_bytes));
            }
            match seen.row {
                Some(_) => superseded += 1,
                None => touched.push(hash),
            }
            seen.row = Some(row as u32);
            if *seen.order != *order {
                seen.order = order.into();
            }
        }
        let mut kept: Vec<(u32, u128, bool)> = Vec::with_capacity(touched.len());
        for hash in touched {
            if let Some(seen) = self.seen.get_mut(&hash)
                && let Some(row) = seen.row.take()
            {
                kept.push((row, hash, seen.batch.replace(number).is_some()));
            }
        }
        kept.sort_unstable();
        let rows_in = batch.len() as u64;
        let replacing = kept.iter().filter(|(.., replaces)| *replaces).count() as u64;
        let rows: Vec<u32> = kept.iter().map(|(row, ..)| *row).collect();
        let mut out = if rows.len() == batch.len() {
            batch
        } else {
            pick(&batch, &rows)?
        };
        let batches = match &mut self.waiting {
            Some(waiting) => {
                superseded += replacing;
                out.hold = Hold::none();
                let part = Part {
                    number,
                    keys: kept.iter().map(|(_, key, _)| *key).collect(),
                    rows: out,
                };
                waiting.add(part, &self.seen)?
            }
            None => {
                if replacing > 0 {
                    let op = |(at, (.., replaces)): (usize, &(u32, u128, bool))| match out.ops.get(at) {
                        Op::Insert if *replaces => Op::Upsert as u8,
                        op => op as u8,
                    };
                    let ops: Vec<u8> = kept.iter().enumerate().map(op).collect();
                    out.ops = Ops::Each(UInt8Array::from(ops));
                }
                if out.is_empty() { Vec::new() } else { vec![out] }
            }
        };
        Ok(Staged {
            account: StageAccount {
                rows_in,
                rows_out: batches.iter().map(|b| b.len() as u64).sum(),
                superseded,
                deduplicated,
                ..StageAccount::default()
            },
            batches,
            rejects: Vec::new(),
        })
    }

    async fn finish(&mut self) -> Result<Staged> {
        let Some(waiting) = &mut self.waiting else {
            return Ok(Staged::default());
        };
        waiting.tidy(&self.seen)?;
        let batches = waiting.release();
        Ok(Staged {
            account: StageAccount {
                rows_out: batches.iter().map(|b| b.len() as u64).sum(),
                ..StageAccount::default()
            },
            batches,
            rejects: Vec::new(),
        })
    }
}
