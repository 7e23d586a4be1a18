//! Lets one row per key through, over a whole partition and not only a batch.
//!
//! A row that comes later and is the better one goes out after the one that it replaces, as an upsert: sinks apply rows
//! in order. So this is for partitions whose rows are applied directly (a delta's window). A partition that loads a
//! table beside its place has no room for a second row of a key: there, keep the first, or let the window be one batch.
//! Rows of one key must be in one partition: whoever plans a delta makes its window one where rows pass a dedup.
//!
//! Memory is bounded: some 70 bytes and the order value per key, and a limit on keys.

use crate::chain::Step;
use crate::rows::{PerSchema, pick, place};
use crate::spec::{DedupSpec, Keep};
use arrow_array::UInt8Array;
use arrow_row::{RowConverter, SortField};
use arrow_schema::SortOptions;
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::change::{ChangeBatch, Op, Ops};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::StageAccount;
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::stage::{Stage, Staged};
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
                if matches!(columns[at].ty, ColumnType::Numeric) || columns[at].arrow_type() != own_type(&columns[at]) {
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

fn own_type(column: &Column) -> arrow_schema::DataType {
    Column::new("", column.ty.clone()).arrow_type()
}

impl Step for Dedup {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        self.plan(&input.columns)?;
        Ok(input.clone())
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Deduplicating {
            config: self.clone(),
            plan: PerSchema::default(),
            seen: HashMap::new(),
        }))
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
    /// Whether an earlier batch had a row of this key.
    sent: bool,
}

struct Deduplicating {
    config: Dedup,
    plan: PerSchema<Plan>,
    seen: HashMap<u128, Seen>,
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
                    sent: false,
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
            match seen.row {
                Some(_) => superseded += 1,
                None => touched.push(hash),
            }
            seen.row = Some(row as u32);
            if *seen.order != *order {
                seen.order = order.into();
            }
        }
        let mut kept: Vec<(u32, bool)> = Vec::with_capacity(touched.len());
        for hash in touched {
            if let Some(seen) = self.seen.get_mut(&hash)
                && let Some(row) = seen.row.take()
            {
                kept.push((row, seen.sent));
                seen.sent = true;
            }
        }
        kept.sort_unstable();
        let account = StageAccount {
            rows_in: batch.len() as u64,
            rows_out: kept.len() as u64,
            superseded,
            deduplicated,
            ..StageAccount::default()
        };
        let again = kept.iter().any(|(_, sent)| *sent);
        let rows: Vec<u32> = kept.iter().map(|(row, _)| *row).collect();
        let mut out = if rows.len() == batch.len() {
            batch
        } else {
            pick(&batch, &rows)?
        };
        if again {
            let op = |(at, (_, sent)): (usize, &(u32, bool))| match out.ops.get(at) {
                Op::Insert if *sent => Op::Upsert as u8,
                op => op as u8,
            };
            let ops: Vec<u8> = kept.iter().enumerate().map(op).collect();
            out.ops = Ops::Each(UInt8Array::from(ops));
        }
        Ok(Staged {
            batches: if out.is_empty() { Vec::new() } else { vec![out] },
            account,
            rejects: Vec::new(),
        })
    }
}
