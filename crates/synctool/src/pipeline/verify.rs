//! Proving that both ends hold the same rows, without changing any.

use super::draft::Ends;
use super::{Pipeline, RunOptions, choose, drift, misspelt, request};
use crate::config::{Deletes, SchemaDrift, Strategy};
use crate::state;
use async_trait::async_trait;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use synctool_core::budget::Budget;
use synctool_core::change::Event;
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::Compared;
use synctool_core::plan::{Partition, PlannedTable, ReadColumn, ReadSpec, Slice, Work};
use synctool_core::query::{Condition, Cut, KeyList, Term, Test};
use synctool_core::schema::{Column, ColumnType};
use synctool_core::sink::Destination;
use synctool_core::source::{ReadContext, Source};
use synctool_core::strategy::hash::{self, Difference, Judging, Key, Pair};
use synctool_core::strategy::table::TableRequest;
use synctool_core::strategy::{cut, delta};
use synctool_core::text;

/// Differing keys of a slice that are looked up at once to see whether they are only not yet synced.
const LOOKED_UP: usize = 100_000;
/// Keys asked for in one query.
const PAGE: usize = 1000;

/// What a caller may say about a verification.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// The strategy whose stages rows pass and whose range is compared; none = the whole table, through the stages of
    /// the strategy that a repair takes: that of an unfinished repair, else the first that may run.
    pub strategy: Option<String>,
    /// Partitions compared at once.
    pub workers: Option<usize>,
    /// Keys of differing rows that are told.
    pub keys: usize,
    /// Whether the destination remembers how far was proved. `false` writes nothing anywhere.
    pub remember: bool,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        VerifyOptions {
            strategy: None,
            workers: None,
            keys: 20,
            remember: true,
        }
    }
}

/// What was found.
#[derive(Debug, Clone, serde::Serialize)]
pub struct VerifyReport {
    /// The pipeline.
    pub pipeline: String,
    /// The table read, after its datastore.
    pub source: String,
    /// The table compared with it.
    pub destination: String,
    /// Rows at both ends, and those that differ. Rows that only wait for the next delta are not among these.
    pub compared: Compared,
    /// The range that was compared, where a strategy was named that is about some rows only.
    pub scope: Option<String>,
    /// Rows that differ because they changed after the last delta's window.
    pub pending: u64,
    /// Rows that only the destination has, where `deletes: none` leaves them there. They are no difference.
    pub kept: u64,
    /// Columns that a run would write and the destination does not have: what is in them was not compared.
    pub missing_columns: Vec<String>,
    /// Slices that were compared.
    pub slices: usize,
    /// Slices that differ.
    pub different_slices: Vec<String>,
    /// The key's columns.
    pub key: Vec<String>,
    /// Some keys that differ, and how.
    pub keys: Vec<DifferentKey>,
    /// Up to where both ends are proved equal: the delta's watermark, if there is one and nothing differs.
    pub verified_through: Option<String>,
    /// When an earlier verification found no difference, and up to where.
    pub proved_before: Option<Proved>,
    /// How rows were compared.
    pub reasons: Vec<String>,
}

/// A verification that found no difference, as the destination remembers it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Proved {
    /// When it began.
    pub at: String,
    /// The delta's watermark of then, if there was one.
    pub through: Option<String>,
}

impl Proved {
    const AT: &str = "verified_at";
    const THROUGH: &str = "verified_through";

    fn of(facts: &BTreeMap<String, String>) -> Option<Self> {
        Some(Proved {
            at: facts.get(Self::AT)?.clone(),
            through: facts.get(Self::THROUGH).cloned(),
        })
    }

    fn facts(self) -> BTreeMap<String, String> {
        let through = self.through.map(|t| (Self::THROUGH.to_string(), t));
        through.into_iter().chain([(Self::AT.to_string(), self.at)]).collect()
    }
}

/// A key that differs.
#[derive(Debug, Clone, serde::Serialize)]
pub struct DifferentKey {
    /// How.
    pub how: Difference,
    /// The values of the key's columns.
    pub key: Key,
}

impl VerifyReport {
    /// Whether both ends hold the same rows in the same columns.
    pub fn is_equal(&self) -> bool {
        self.compared.differ() == 0 && self.missing_columns.is_empty()
    }

    /// An error of kind "different" if they do not. `mend` is the command that makes them equal.
    pub fn into_result(self, mend: &str) -> Result<Self> {
        if self.is_equal() {
            return Ok(self);
        }
        let c = &self.compared;
        let mut what = format!(
            "{} rows differ, {} are missing and {} are too many at the destination",
            c.differing, c.only_source, c.only_destination
        );
        if !self.missing_columns.is_empty() {
            what.push_str(&format!(", which has no column {}", self.missing_columns.join(", ")));
        }
        Err(Error::new(code::DIFFERENT, what)
            .at("pipeline", &self.pipeline)
            .hint(mend))
    }
}

impl Pipeline {
    /// Compares both ends row by row, by hashes of blocks. Rows that changed after the last delta's window are told
    /// apart. Changes nothing but what the destination remembers of it.
    pub async fn verify(&self, options: &VerifyOptions) -> Result<VerifyReport> {
        let loaded = self.config();
        let (source, destination) = (self.open_source().await?, self.open_destination().await?);
        let strategy = choose::of_comparison(&*destination, &loaded.pipeline, options.strategy.as_deref()).await?;
        let chain = self.chain(&strategy.name, &*source, None).await?;
        let run_options = RunOptions {
            strategy: options.strategy.clone(),
            repair: true,
            workers: options.workers,
            ..RunOptions::default()
        };
        let ends = Ends {
            loaded,
            source: &*source,
            destination: &*destination,
            chain: &chain,
            options: &run_options,
        };
        let now = state::rfc3339(&state::now());
        let needed = chain.needs();
        let table = request::table_request(
            loaded,
            strategy,
            &run_options,
            &*source,
            &needed,
            ("verify", now.clone()),
        )
        .await?;
        let table = self.to_compare(table, &*source, &*destination).await?;
        let scope = scope(strategy, &table);
        let Some(there) = destination.describe(&table.destination).await? else {
            return Err(Error::new(
                code::TABLE_MISSING,
                format!("{} does not exist, so there is nothing to compare", table.destination),
            )
            .at("destination", destination.engine())
            .hint("check its name; a run of the pipeline would make it"));
        };
        let asked = ends
            .hash_request(strategy, ends.living(table).await?, true, BTreeMap::new())
            .await?;
        let prepared = hash::prepare(&*source, &*destination, &chain, &asked).await;
        let (planned, compares, reasons) = prepared.map_err(|e| misspelt::placed(e, loaded, strategy))?;
        let missing = planned
            .schema
            .columns
            .iter()
            .filter(|c| there.column(&c.name).is_none());
        let missing_columns: Vec<String> = missing.map(|c| c.name.clone()).collect();
        let workers = options.workers.unwrap_or_else(|| self.connections());
        let context = ReadContext {
            budget: Budget::new(loaded.global.memory.0 as usize),
            ..ReadContext::default()
        };
        let back = destination.as_source().ok_or_else(|| {
            Error::new(
                code::UNSUPPORTED,
                format!("{} cannot be read back", destination.engine()),
            )
        })?;
        let pair = Arc::new(Pair::new(source.clone(), back, Arc::new(chain), &planned, &context)?);
        let slices = compares.len();
        let remembered = destination.remembered(self.name()).await?;
        let marks = self.marks(strategy, &remembered)?;
        let made_key = planned.compare.as_ref().is_some_and(|c| c.made_key);
        let waiting: Option<Box<dyn hash::Waiting + '_>> = match &marks[..] {
            [] => None,
            marks if made_key => Some(Box::new(WrittenLater::of(pair.clone(), marks))),
            marks => Some(Box::new(Waiting::of(&source, &planned, marks, &context).await?)),
        };
        let judging = Judging {
            keys: options.keys,
            waiting: waiting.as_deref(),
            piece: LOOKED_UP,
            keeps: matches!(strategy.deletes.as_deref(), Some(Deletes::None)),
        };
        let found = hash::differences(pair, compares, judging, workers).await?;
        let proved = found.is_equal() && missing_columns.is_empty() && scope.is_none();
        // What lies before any of them does not wait for all of them.
        let through = marks.into_iter().next().map(|(_, through)| through).filter(|_| proved);
        let report = VerifyReport {
            pipeline: self.name().to_string(),
            source: format!("{}:{}", *loaded.pipeline.source.datastore, planned.read.table),
            destination: format!("{}:{}", *loaded.pipeline.destination.datastore, planned.destination),
            compared: found.counts,
            scope,
            pending: found.waiting,
            kept: found.kept,
            missing_columns,
            slices,
            different_slices: found.different,
            key: planned.schema.key.clone(),
            keys: found
                .keys
                .into_iter()
                .map(|(how, key)| DifferentKey { how, key })
                .collect(),
            verified_through: through.clone(),
            proved_before: Proved::of(&remembered),
            reasons,
        };
        if options.remember && proved {
            let proved = Proved { at: now, through };
            destination.remember(self.name(), &proved.facts()).await?;
        }
        Ok(report)
    }

    /// A table that is compared and not brought up to date.
    async fn to_compare(
        &self,
        mut table: TableRequest,
        source: &dyn Source,
        destination: &dyn Destination,
    ) -> Result<TableRequest> {
        table.compare_only = true;
        let discards = self.config().pipeline.schema_drift.as_deref() == Some(&SchemaDrift::DiscardColumn);
        if discards && table.columns.is_none() {
            let at_source = source.describe(&table.source).await?;
            drift::leave_behind(destination, &at_source, &mut table).await?;
        }
        Ok(table)
    }

    /// Where the next deltas begin: the cursors of those that are enabled, or by whose way is compared, each with its
    /// watermark. Tables read along have others, which say nothing of a row of the table itself.
    fn marks(&self, by: &Strategy, remembered: &BTreeMap<String, String>) -> Result<Vec<(Term, String)>> {
        let strategies = self.config().pipeline.strategies.iter();
        let meant = strategies.filter(|s| *s.enabled || *s.name == *by.name);
        let mut marks: Vec<(Term, String)> = Vec::new();
        for (_, cursor, through) in self.watermarks(meant, remembered)? {
            if !marks.iter().any(|(known, _)| *known == cursor) {
                marks.push((cursor, through));
            }
        }
        Ok(marks)
    }
}

/// What is compared, where that is not the whole table.
fn scope(strategy: &Strategy, table: &TableRequest) -> Option<String> {
    let limits = cut::limits(&table.dimensions);
    let told: Vec<String> = limits.iter().map(cut::told).collect();
    (!told.is_empty()).then(|| format!("only rows of strategy {}: {}", *strategy.name, told.join(" and ")))
}

/// Tells rows that differ from rows that only wait for the next delta: those whose cursor lies at or behind the
/// watermark at the source; where there are several deltas, behind that of each.
struct Waiting<'a> {
    source: &'a Arc<dyn Source>,
    table: &'a PlannedTable,
    read: ReadSpec,
    terms: Vec<Term>,
    /// The types of the cursors, which are read after the key, and their watermarks.
    marks: Vec<(ColumnType, String)>,
    context: &'a ReadContext,
}

impl<'a> Waiting<'a> {
    async fn of(
        source: &'a Arc<dyn Source>,
        table: &'a PlannedTable,
        marks: &[(Term, String)],
        context: &'a ReadContext,
    ) -> Result<Self> {
        let mut columns: Vec<ReadColumn> = Vec::new();
        for key in &table.schema.key {
            let read = table.read.columns.iter().find(|c| c.column.name == *key);
            columns.push(
                read.cloned()
                    .ok_or_else(|| Error::bug("a key column that is not read"))?,
            );
        }
        let terms: Vec<Term> = columns.iter().map(ReadColumn::term).collect();
        columns.extend(marks.iter().enumerate().map(|(i, (cursor, _))| ReadColumn {
            source: cursor.to_string(),
            term: Some(cursor.clone()),
            column: Column::new(format!("cursor{i}"), ColumnType::Native),
        }));
        let mut read = request::plain_if_possible(ReadSpec {
            alias: table.read.alias.clone(),
            joins: table.read.joins.clone(),
            ..ReadSpec::of(table.read.table.clone(), columns)
        });
        let described = source.describe_query(&read).await?;
        for (column, found) in read.columns.iter_mut().zip(described) {
            column.column = found;
        }
        let types = read.columns.iter().skip(terms.len()).map(|c| c.column.ty.clone());
        let marks = types.zip(marks.iter().map(|(_, through)| through.clone())).collect();
        Ok(Waiting {
            source,
            table,
            read,
            terms,
            marks,
            context,
        })
    }

    /// A row without a cursor is read by every delta, so it may be newer than the last one.
    fn waits(&self, cursors: &[Option<String>]) -> bool {
        self.marks
            .iter()
            .zip(cursors)
            .all(|((ty, through), cursor)| cursor.as_ref().is_none_or(|c| !delta::is_before(ty, c, through)))
    }

    /// Which keys have a row that waits; a group has several rows.
    async fn waiting(&self, keys: &[(Difference, Key)]) -> Result<HashSet<Key>> {
        let partition = Partition {
            id: "verify".into(),
            table: 0,
            work: Work::Read(Slice::Keys(KeyList {
                terms: self.terms.clone(),
                keys: keys.iter().map(|(_, k)| k.clone()).collect(),
            })),
            estimated_rows: keys.len() as u64,
            estimated_bytes: 0,
        };
        let mut reader = self.source.open(&self.read, &partition, None, self.context).await?;
        let mut found = HashSet::new();
        let width = self.table.schema.key.len();
        while let Some(event) = reader.next().await? {
            let Event::Rows(batch) = event else { continue };
            for row in 0..batch.len() {
                let mut key = (0..width + self.marks.len())
                    .map(|i| text::cell(batch.rows.column(i).as_ref(), row))
                    .collect::<Result<Key>>()?;
                let cursors = key.split_off(width);
                if self.waits(&cursors) {
                    found.insert(key);
                }
            }
        }
        Ok(found)
    }
}

#[async_trait]
impl hash::Waiting for Waiting<'_> {
    async fn among(&self, keys: &[(Difference, Key)]) -> Result<HashSet<Key>> {
        let mut waiting = HashSet::new();
        for page in keys.chunks(PAGE) {
            waiting.extend(self.waiting(page).await?);
        }
        Ok(waiting)
    }
}

/// The same where stages make keys: the source is asked for all rows that wait, and they pass the stages.
struct WrittenLater {
    pair: Arc<Pair>,
    later: Slice,
}

impl WrittenLater {
    fn of(pair: Arc<Pair>, marks: &[(Term, String)]) -> Self {
        let behind = |(cursor, through): &(Term, String)| Condition {
            term: cursor.clone(),
            test: Test::NullOrRange {
                lower: Some(through.clone()),
                upper: None,
            },
        };
        let later = Slice::Cut(Cut {
            conditions: marks.iter().map(behind).collect(),
            key: None,
        });
        WrittenLater { pair, later }
    }
}

#[async_trait]
impl hash::Waiting for WrittenLater {
    async fn among(&self, keys: &[(Difference, Key)]) -> Result<HashSet<Key>> {
        let keys: Vec<Key> = keys.iter().map(|(_, key)| key.clone()).collect();
        self.pair.written(&keys, &self.later).await
    }
}
