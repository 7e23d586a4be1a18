//! From a chosen strategy to a plan.

use super::{RunOptions, definition, drift, groups, request};
use crate::config::{self, HashAlgorithm, Loaded, StampedBy, Strategy, StrategyKind, SyncType};
use std::collections::BTreeMap;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, Strategy as PlanStrategy, Verify};
use synctool_core::query::{Condition, Filter, Term, Test, keeps_rows};
use synctool_core::sink::Destination;
use synctool_core::source::Source;
use synctool_core::stage::Stages;
use synctool_core::strategy::aggregate::{self, AggregateRequest};
use synctool_core::strategy::cut::{self, By};
use synctool_core::strategy::delta::{self, Deletes, DeltaRequest};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::hash::{self, Form, HashRequestOptions};
use synctool_core::strategy::table::TableRequest;
use synctool_transform::Chain;

/// Whether these stages leave one row for each key of the pipeline, which none of them makes: whichever copy of a row it is,
/// it takes the place of the one before.
fn leaves_one(pipeline: &config::Pipeline, stages: &[&config::Stage]) -> bool {
    let in_key = |name: &config::At<String>| pipeline.key.iter().any(|k| **k == **name);
    let computes = |stage: &&config::Stage| match &stage.work {
        config::StageWork::Compute(columns) => columns.iter().any(|c| in_key(&c.name)),
        _ => false,
    };
    let dedups = |stage: &&config::Stage| match &stage.work {
        config::StageWork::Dedup(dedup) => dedup.keys.iter().all(in_key),
        _ => false,
    };
    stages.iter().any(dedups) && !stages.iter().any(computes)
}

/// What clocks and views may be late by, where a file says nothing.
const MARGIN: Duration = Duration::from_secs(1);

/// Both ends, and what happens between them.
pub(super) struct Ends<'a> {
    pub(super) loaded: &'a Loaded,
    pub(super) source: &'a dyn Source,
    pub(super) destination: &'a dyn Destination,
    pub(super) chain: &'a Chain,
    pub(super) options: &'a RunOptions,
}

impl Ends<'_> {
    /// The plan of a strategy. Reads catalogs, statistics and what the destination remembers; changes nothing.
    pub(super) async fn plan(&self, strategy: &Strategy, run_id: &str, now: String) -> Result<Plan> {
        let needed = self.chain.needs();
        let mut table =
            request::table_request(self.loaded, strategy, self.options, self.source, &needed, (run_id, now)).await?;
        let watched = drift::watch(self, &mut table).await?;
        let leaves = self.leaves_rows(strategy, &table).await?;
        let definition = match self.options.repair || leaves {
            true => None,
            false => self.definition(strategy, &table).await?,
        };
        let mut plan = self.of_kind(strategy, table, leaves).await?;
        if *self.loaded.pipeline.sync_type == SyncType::Aggregate && plan.strategy != PlanStrategy::Aggregate {
            let remembered = self.destination.remembered(&plan.pipeline).await?;
            aggregate::written_by_another(&mut plan, &remembered);
        }
        definition::put_meaning(&mut plan.remember, &self.loaded.pipeline, strategy);
        plan.remember
            .extend(definition.map(|d| (definition::DEFINITION.into(), d)));
        plan.remember.extend(watched.remember);
        plan.reasons.extend(watched.reasons);
        Ok(plan)
    }

    /// What the destination remembers of the pipeline's meaning once the run is done; `None`: what it did before.
    async fn definition(&self, strategy: &Strategy, table: &TableRequest) -> Result<Option<String>> {
        let along = strategy.kind.has_cursor();
        let part = !table.bounds.is_empty() || !along && !cut::limits(&table.dimensions).is_empty();
        Ok(match part {
            false => Some(definition::of(&self.loaded.pipeline)),
            true => definition::is_empty(self.destination, &table.destination)
                .await?
                .then(|| definition::PARTIAL.into()),
        })
    }

    /// Whether a load or a comparison leaves rows that the table is not to have: nothing proves then that a delta's work up
    /// to now is done.
    async fn leaves_rows(&self, strategy: &Strategy, table: &TableRequest) -> Result<bool> {
        let keeps = matches!(strategy.deletes.as_deref(), Some(config::Deletes::None));
        let all = matches!(*strategy.kind, StrategyKind::Full | StrategyKind::Hash);
        Ok(keeps && all && !definition::is_empty(self.destination, &table.destination).await?)
    }

    async fn of_kind(&self, strategy: &Strategy, table: TableRequest, leaves: bool) -> Result<Plan> {
        let aggregate = *self.loaded.pipeline.sync_type == SyncType::Aggregate;
        if table.append_only {
            self.only_appends(strategy, aggregate)?;
        }
        match *strategy.kind {
            _ if self.options.repair => {
                self.hash(strategy, self.living(table).await?, BTreeMap::new(), None)
                    .await
            }
            StrategyKind::Full => {
                let remember = match leaves {
                    true => BTreeMap::new(),
                    false => self.watermark_of_others(strategy, &table).await,
                };
                self.full(strategy, self.living(table).await?, remember).await
            }
            StrategyKind::Hash if definition::is_empty(self.destination, &table.destination).await? => {
                let mut plan = self.full(strategy, self.living(table).await?, BTreeMap::new()).await?;
                plan.reasons
                    .insert(0, "the destination is empty, so everything is loaded".into());
                Ok(plan)
            }
            StrategyKind::Hash => {
                let table = self.living(table).await?;
                self.hash(strategy, table, BTreeMap::new(), None).await
            }
            StrategyKind::Aggregate => self.aggregate(strategy, self.living(table).await?).await,
            StrategyKind::Delta if aggregate => self.aggregate(strategy, self.living(table).await?).await,
            StrategyKind::Delta => {
                let unseen = self.unseen(strategy, &table);
                let mut plan = self.delta(strategy, table).await?;
                plan.reasons.extend(unseen);
                Ok(plan)
            }
            StrategyKind::Log => Err(Error::bug("a log is planned by its own way")),
        }
    }

    /// Refuses what a destination that takes no updates cannot be asked for.
    fn only_appends(&self, strategy: &Strategy, aggregate: bool) -> Result<()> {
        let said = &self.loaded.pipeline.destination.supports_update;
        if aggregate && *strategy.kind != StrategyKind::Full {
            return Err(said
                .error("groups change with their rows, and `supports_update: false` lets no row change")
                .with_help("leave supports_update out, or use a strategy of type full")
                .into());
        }
        match &strategy.deletes {
            Some(deletes) if matches!(**deletes, config::Deletes::AntiJoin) => Err(deletes
                .error("`deletes: anti_join` deletes rows, and `supports_update: false` says that none may be")
                .with_help("leave one of them out")
                .into()),
            _ => Ok(()),
        }
    }

    /// Without the rows that a tombstone column calls gone: a delta deletes them, so nothing else may bring them back.
    pub(super) async fn living(&self, mut table: TableRequest) -> Result<TableRequest> {
        let names = request::Names::of(self.loaded, &table.source)?;
        for strategy in &self.loaded.pipeline.strategies {
            let Some(config::Deletes::Tombstone(tombstone)) = strategy.deletes.as_deref() else {
                continue;
            };
            let term = names.term(&tombstone.column);
            let Term::Column { relation: None, name } = &term else {
                continue;
            };
            let at_source = self.source.describe(&table.source).await?;
            let Some(column) = at_source.column(name) else {
                continue;
            };
            let test = delta::living(&column.ty, tombstone.value.as_deref().map(String::as_str))?;
            table.filters.push(Filter::Test(Condition { term, test }));
        }
        Ok(table)
    }

    /// What a delta does not see, and what would.
    fn unseen(&self, strategy: &Strategy, table: &TableRequest) -> Vec<String> {
        let kinds = || self.loaded.pipeline.strategies.iter().map(|s| *s.kind);
        let mut told = Vec::new();
        for join in &table.joins {
            let name = join.alias.as_ref().unwrap_or(&join.table.name);
            let followed = |table: &str| table == name || table == join.table.name;
            if !strategy.cursor_tables.iter().any(|c| followed(&c.table)) {
                told.push(format!(
                    "changes of {name} alone are not seen: name the column that stamps them in `cursor_tables`, or compare by a \
                     strategy of type hash"
                ));
            }
        }
        for stage in self.loaded.pipeline.transform.iter().filter(|s| s.applies_to(strategy)) {
            if let config::StageWork::Enrich(enrich) = &stage.work {
                told.push(format!(
                    "changes of {} alone are not seen: rows get its values when they change themselves; a strategy of type hash \
                     brings all of them up to date",
                    *enrich.table
                ));
            }
        }
        if matches!(strategy.stamped_by.as_deref(), Some(StampedBy::App)) && !kinds().any(|k| k == StrategyKind::Hash) {
            told.push(
                "the application stamps the rows: what is committed later than `lag` after its stamp is not seen; add a strategy \
                 of type hash, which finds it"
                    .into(),
            );
        }
        told
    }

    async fn full(&self, strategy: &Strategy, table: TableRequest, remember: BTreeMap<String, String>) -> Result<Plan> {
        let table = self.together(strategy, table).await?;
        let table = groups::whole(self.source.engine(), strategy, table)?;
        let options = self.options;
        let mode = match (options.full_mode, strategy.full_mode.as_deref()) {
            (Some(mode), _) => mode,
            (None, _) if !*self.loaded.pipeline.destination.supports_update => FullMode::Append,
            (None, Some(config::FullMode::Swap)) => FullMode::Swap,
            (None, Some(config::FullMode::Upsert)) => FullMode::Upsert,
            (None, None) => FullMode::Auto,
        };
        let verify = options.verify.or_else(|| {
            strategy.verify.as_deref().map(|verify| match verify {
                config::Verify::None => Verify::None,
                config::Verify::Count => Verify::Count,
                config::Verify::Hash | config::Verify::AfterRun => Verify::Hash,
            })
        });
        let request = FullRequest {
            table,
            mode,
            deletes: !matches!(strategy.deletes.as_deref(), Some(config::Deletes::None)),
            verify,
            remember,
        };
        full::plan(self.source, self.destination, self.chain, request).await
    }

    /// A full run is a good moment for the watermark of a delta that has none: what had settled before the load began
    /// is in it. Where that cannot be told, the delta finds out itself.
    async fn watermark_of_others(&self, strategy: &Strategy, table: &TableRequest) -> BTreeMap<String, String> {
        let mut remember = BTreeMap::new();
        let partial = !table.bounds.is_empty() || !cut::limits(&table.dimensions).is_empty();
        if partial || *self.loaded.pipeline.sync_type == SyncType::Aggregate {
            return remember;
        }
        let needed = self.chain.needs();
        for other in &self.loaded.pipeline.strategies {
            if *other.kind != StrategyKind::Delta || !*other.enabled || std::ptr::eq(other, strategy) {
                continue;
            }
            // What the stages of one leave out, those of the other may not.
            if !self.loaded.pipeline.pass_alike(strategy, other) {
                continue;
            }
            let window = async {
                let run = (table.run_id.as_str(), table.now.clone());
                let table = request::table_request(self.loaded, other, self.options, self.source, &needed, run).await?;
                let request = self.delta_request(other, table)?;
                let column = delta::cursor_column(self.source, &request).await?;
                let mut marks = Vec::new();
                for (own, _, window) in delta::joined_windows(self.source, &request, &remember).await? {
                    marks.push((delta::watermark_name(&own.cursor), window.watermark));
                }
                let window = delta::window(self.source, &request, &column, None).await?;
                marks.push((delta::watermark_name(&request.cursor), window.watermark));
                Ok::<_, Error>(marks)
            };
            if let Ok(marks) = window.await {
                let mut own = BTreeMap::new();
                for (name, mark) in marks.into_iter().filter_map(|(name, mark)| Some((name, mark?))) {
                    own.insert(definition::begun_at(&name), String::new());
                    own.insert(name, mark);
                }
                definition::put_meaning(&mut own, &self.loaded.pipeline, other);
                remember.extend(own);
            }
        }
        remember
    }

    async fn hash(
        &self,
        strategy: &Strategy,
        table: TableRequest,
        remember: BTreeMap<String, String>,
        why: Option<String>,
    ) -> Result<Plan> {
        let deletes = !matches!(strategy.deletes.as_deref(), Some(config::Deletes::None));
        let request = self.hash_request(strategy, table, deletes, remember).await?;
        let mut plan = hash::plan(self.source, self.destination, self.chain, &request).await?;
        if let Some(why) = why {
            plan.reasons.insert(0, why);
        }
        Ok(plan)
    }

    /// A comparison of both ends as the pipeline wants it.
    pub(super) async fn hash_request(
        &self,
        strategy: &Strategy,
        table: TableRequest,
        deletes: bool,
        remember: BTreeMap<String, String>,
    ) -> Result<HashRequestOptions> {
        let mut table = self.together(strategy, table).await?;
        if table.one_partition {
            if let Some(limit) = cut::limits(&table.dimensions).first() {
                return Err(strategy
                    .name
                    .error(format!(
                        "a dedup has to see all rows, and strategy {} compares only some of them ({})",
                        *strategy.name,
                        cut::told(limit)
                    ))
                    .with_help("say in `filters` which rows the table is to hold, or dedup by the key of the source")
                    .into());
            }
            table.dimensions.clear();
        }
        let table = groups::whole(self.source.engine(), strategy, table)?;
        let pipeline = &self.loaded.pipeline;
        let stored = pipeline
            .listed()
            .iter()
            .find(|c| c.roles.hash_key && c.is_read() && c.is_written());
        Ok(HashRequestOptions {
            tracked: request::tracked(pipeline),
            form: match stored {
                Some(column) => Form::Stored(column.dest.to_string()),
                None => match pipeline.hash_algo_of(strategy).or_else(|| pipeline.kept_hash_algo()) {
                    None => Form::Auto,
                    Some(HashAlgorithm::Canonical) => Form::Canonical,
                    // The original's algorithms are MD5 of the whole row, in either of its ways of adding them up.
                    Some(HashAlgorithm::Md5SumHash | HashAlgorithm::HashMd5Hash) => Form::Md5,
                },
            },
            deletes,
            remember,
            table,
        })
    }

    fn delta_request(&self, strategy: &Strategy, mut table: TableRequest) -> Result<DeltaRequest> {
        let pipeline = &self.loaded.pipeline;
        let names = request::Names::of(self.loaded, &table.source)?;
        let Some(cursor) = request::cursor(pipeline, strategy, &names) else {
            return Err(strategy
                .name
                .error(format!(
                    "strategy {} has no column that says when a row changed",
                    *strategy.name
                ))
                .with_help("name it with `column`")
                .into());
        };
        let joined = strategy
            .cursor_tables
            .iter()
            .map(|cursor| {
                let called = |j: &&synctool_core::query::Join| {
                    j.alias.as_deref() == Some(cursor.table.as_str()) || j.table.name == **cursor.table
                };
                match table.joins.iter().find(called) {
                    Some(join) => Ok(delta::JoinedCursor {
                        table: join.table.clone(),
                        cursor: Term::Column {
                            relation: Some(cursor.table.to_string()),
                            name: cursor.column.to_string(),
                        },
                    }),
                    None => Err(Error::from(
                        cursor.table.error(format!("{} is no table of a join", *cursor.table)),
                    )),
                }
            })
            .collect::<Result<Vec<_>>>()?;
        let same = |c: &Condition| c.term == cursor;
        let bounds = table.bounds.iter().find(|c| same(c)).and_then(|c| match &c.test {
            Test::Range { lower, upper } => Some((lower.clone(), upper.clone())),
            _ => None,
        });
        // A backfill by another column reads the cursor's whole range.
        let bounds = bounds.or((!table.bounds.is_empty()).then_some((None, None)));
        let dimension = table.dimensions.iter().flatten().find(|d| d.term == cursor).cloned();
        let written = strategy
            .dimensions()
            .find(|d| *d.bounded && names.term(&d.column) == cursor);
        table
            .dimensions
            .iter_mut()
            .for_each(|level| level.retain(|d| d.term != cursor));
        table.dimensions.retain(|level| !level.is_empty());
        if let Some(limit) = cut::limits(&table.dimensions).first() {
            return Err(strategy
                .name
                .error(format!(
                    "strategy {} reads changes of {cursor}, and only some values of {}: rows that come among these unchanged would be missed",
                    *strategy.name, limit.term
                ))
                .with_help(format!(
                    "say in `filters` which rows the table is to hold; a delta's partitions have a start and an end along {cursor} only"
                ))
                .into());
        }
        let first = dimension.as_ref().and_then(|d| d.start.clone());
        let last = dimension.as_ref().and_then(|d| d.end.clone());
        Ok(DeltaRequest {
            stamped_by: match strategy.stamped_by.as_deref() {
                Some(StampedBy::App) => delta::StampedBy::App {
                    lag: strategy.lag.as_deref().map_or(Duration::ZERO, |lag| lag.0),
                },
                _ => delta::StampedBy::Database {
                    margin: strategy.margin.as_deref().map_or(MARGIN, |margin| margin.0),
                },
            },
            zone: strategy.time_zone.as_deref().cloned(),
            deletes: match strategy.deletes.as_deref() {
                None => Deletes::Unseen,
                Some(config::Deletes::None) => Deletes::Never,
                Some(config::Deletes::AntiJoin) => Deletes::AntiJoin,
                Some(config::Deletes::Tombstone(tombstone)) => Deletes::Tombstone(delta::Tombstone {
                    column: match names.term(&tombstone.column) {
                        Term::Column { name, .. } => name,
                        other => other.to_string(),
                    },
                    value: tombstone.value.as_deref().cloned(),
                }),
            },
            // A first window that only looks at the last step begins one step before now.
            bounded: written.is_some(),
            window: dimension
                .map(|d| d.by)
                .filter(|by| !matches!(by, By::Values | By::List(_) | By::Whole)),
            first,
            last,
            whole: false,
            bounds,
            cursor,
            joined,
            table,
        })
    }

    /// Refuses rows that become several where nothing takes a copy away once a row has fewer partners than before: a delta
    /// does if its keys tell the copies apart and are compared, or if one of them is left for each key. One that only adds
    /// rows keeps what was there by its nature.
    fn copies_can_go(&self, strategy: &Strategy, adds: bool, groups: bool) -> Result<()> {
        let pipeline = &self.loaded.pipeline;
        let compares = matches!(strategy.deletes.as_deref(), Some(config::Deletes::AntiJoin));
        let stages: Vec<&config::Stage> = pipeline.transform.iter().filter(|s| s.applies_to(strategy)).collect();
        for (n, stage) in stages.iter().enumerate() {
            let config::StageWork::Enrich(enrich) = &stage.work else {
                continue;
            };
            let apart = enrich
                .fields
                .iter()
                .any(|f| pipeline.key.iter().any(|k| **k == *f.dest));
            let goes = match apart {
                true => compares || adds,
                false => leaves_one(pipeline, &stages[n..]),
            };
            let goes = goes && !groups;
            // Of several rows one is valid at a time.
            let one = *enrich.cardinality == config::Cardinality::OneToOne || enrich.as_of.is_some();
            if one || goes {
                continue;
            }
            let what = format!(
                "a row may have several partners in {}, and strategy {} would leave a copy of it behind once it has fewer",
                *enrich.table, *strategy.name
            );
            let help = match groups {
                true => "use a strategy of type full or hash",
                false => {
                    "name a column of `fields` that tells the copies apart in `key`, and set `deletes: anti_join`; or use a \
                     strategy of type full or hash"
                }
            };
            return Err(enrich.cardinality.error(what).with_help(help).into());
        }
        Ok(())
    }

    async fn delta(&self, strategy: &Strategy, table: TableRequest) -> Result<Plan> {
        self.copies_can_go(strategy, table.append_only, false)?;
        let table = match table.append_only {
            // Rows that are gone are not deleted, and not added either.
            true => self.living(table).await?,
            false => table,
        };
        let mut request = self.delta_request(strategy, table.clone())?;
        request.whole = self.meets_all_rows(strategy, &table).await?;
        if let Some(cursor) = strategy.cursor_tables.first().filter(|_| request.whole) {
            return Err(cursor
                .table
                .error("a dedup looks at all rows of a window, and cursor_tables make several windows")
                .with_help("leave cursor_tables out and compare by a hash strategy, or dedup by the key of the source")
                .into());
        }
        if let (true, Deletes::AntiJoin, Some(deletes)) = (request.whole, &request.deletes, &strategy.deletes) {
            return Err(deletes
                .error("a dedup gives several rows of the source one key, so their keys cannot be compared with those of the destination")
                .with_help("leave `deletes: anti_join` out and run a strategy of type full for deletes, or dedup by the key of the source")
                .into());
        }
        let name = delta::watermark_name(&request.cursor);
        let known = definition::known(self.destination, &self.loaded.pipeline, &table.destination).await?;
        let known = known.for_strategy(&self.loaded.pipeline, strategy);
        let (remembered, mut doubt) = (&known.counts, known.doubt);
        let mut after = remembered.get(&name).map(String::as_str);
        let column = delta::cursor_column(self.source, &request).await?;
        let began = known.all.get(&definition::begun_at(&name)).filter(|at| !at.is_empty());
        if let (Some(_), Some(began), None) = (after, began, &request.bounds) {
            let own = delta::window(self.source, &request, &column, None).await?.lower;
            if own.is_none_or(|own| delta::is_before(&column.ty, &own, began)) {
                after = None;
                doubt = Some("the window before began later than this delta does, so its watermark does not count");
            }
        }
        let joined = delta::joined_windows(self.source, &request, remembered).await?;
        let mut window = delta::window(self.source, &request, &column, after).await?;
        if let (None, Some(old), Some(lower)) = (after, known.all.get(&name), &window.lower)
            && delta::is_before(&column.ty, old, lower)
        {
            // A window that does not begin at the first row skips nothing that no run has read.
            window = delta::window(self.source, &request, &column, Some(old)).await?;
        }
        let begun = (after.is_none() && request.bounds.is_none()).then(|| window.lower.clone().unwrap_or_default());
        let begun = begun.map(|at| (definition::begun_at(&name), at));
        let unknown = |(own, ..): &&(DeltaRequest, _, _)| !remembered.contains_key(&delta::watermark_name(&own.cursor));
        let begins = request.bounds.is_none()
            && (after.is_none() && window.lower.is_none() || joined.iter().find(unknown).is_some());
        // Rows that a dedup sends after those that they replace are applied in their order, and by no load.
        if begins && !request.whole {
            // What no later run could do is said before the first one.
            delta::check(self.source, self.destination, self.chain, &request).await?;
            let table = self.living(table).await?;
            let mut remember = BTreeMap::from_iter(begun);
            remember.extend(window.watermark.clone().map(|w| (name, w)));
            for (own, _, window) in joined {
                remember.extend(window.watermark.map(|w| (delta::watermark_name(&own.cursor), w)));
            }
            if known.empty {
                let mut plan = self.full(strategy, table, remember).await?;
                plan.reasons.insert(
                    0,
                    format!(
                        "the destination is empty: everything is loaded, and the next delta goes on from {}",
                        window.watermark.as_deref().unwrap_or("the first row")
                    ),
                );
                return Ok(plan);
            }
            let why = doubt.unwrap_or("the destination has rows of unknown age");
            let why = format!("{why}: all rows are compared once, and the next delta goes on from there");
            return self.hash(strategy, table, remember, Some(why)).await;
        }
        let mut plan = delta::plan(
            self.source,
            self.destination,
            self.chain,
            &request,
            &column,
            window,
            joined,
        )
        .await?;
        plan.remember.extend(begun);
        plan.reasons.extend(doubt.map(String::from));
        Ok(plan)
    }

    /// A table whose rows a dedup has to see together is read in one partition: cut by anything, it would have one winner
    /// per partition.
    async fn together(&self, strategy: &Strategy, mut table: TableRequest) -> Result<TableRequest> {
        table.one_partition = self.meets_all_rows(strategy, &table).await?;
        Ok(table)
    }

    /// The dedups that a strategy's rows pass.
    fn dedups(&self, strategy: &Strategy) -> impl Iterator<Item = &config::Dedup> {
        let stages = self.loaded.pipeline.transform.iter().filter(|s| s.applies_to(strategy));
        stages.filter_map(|s| match &s.work {
            config::StageWork::Dedup(dedup) => Some(dedup),
            _ => None,
        })
    }

    /// Whether a dedup has to see all rows of a window or table: it does unless each row that is read has a key of its own.
    async fn meets_all_rows(&self, strategy: &Strategy, table: &TableRequest) -> Result<bool> {
        let pipeline = &self.loaded.pipeline;
        let mut dedups = self.dedups(strategy).peekable();
        if dedups.peek().is_none() {
            return Ok(false);
        }
        let is_called =
            |key: &str, group: &str| key == group || pipeline.column(key).is_some_and(|c| **c.dest == *group);
        let names = request::Names::of(self.loaded, &table.source)?;
        let at_source = self.source.describe(&table.source).await?;
        let read = |key: &config::At<String>| match pipeline.column(key) {
            Some(column) => column.source.as_ref().map(|s| names.term(s)),
            None => Some(names.term(key)),
        };
        let by_row = |dedup: &config::Dedup| {
            if !table.group_by.is_empty() {
                // Each group is read once, and whole.
                return table
                    .group_by
                    .iter()
                    .all(|group| dedup.keys.iter().any(|k| is_called(k, group)));
            }
            let keys: Vec<Term> = dedup.keys.iter().filter_map(read).collect();
            let own = at_source.key.iter().all(|k| keys.contains(&Term::column(k)));
            own && !at_source.key.is_empty() && table.joins.is_empty()
        };
        Ok(!dedups.all(by_row))
    }

    async fn aggregate(&self, strategy: &Strategy, table: TableRequest) -> Result<Plan> {
        self.copies_can_go(strategy, table.append_only, true)?;
        if table.group_by.is_empty() {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("strategy {} needs the columns that make a group", *strategy.name),
            )
            .hint("set `sync_type: aggregate` and `group_by`"));
        }
        for dedup in self.dedups(strategy) {
            let is = |group: &&String| {
                let column = |k| self.loaded.pipeline.column(k).is_some_and(|c| *c.dest == **group);
                dedup.keys.iter().any(|k| **k == **group || column(k))
            };
            if let (Some(lost), Some(key)) = (table.group_by.iter().find(|g| !is(g)), dedup.keys.first()) {
                return Err(key
                    .error(format!("a dedup of groups that leaves out {lost} would drop groups"))
                    .with_help(format!(
                        "dedup by all that makes a group: {}",
                        table.group_by.join(", ")
                    ))
                    .into());
            }
        }
        let at_source = self.source.describe(&table.source).await?;
        let known = definition::known(self.destination, &self.loaded.pipeline, &table.destination).await?;
        let known = known.for_strategy(&self.loaded.pipeline, strategy);
        let mut delta = self.delta_request(strategy, table)?;
        if strategy.primary_partitions.is_empty() {
            // Those of the pipeline cut groups; the window of changed rows is cut by the strategy's own.
            delta.table.dimensions.clear();
        }
        let request = AggregateRequest {
            row_key: match keeps_rows(&delta.table.joins) {
                true => at_source.key,
                false => Vec::new(),
            },
            delta,
        };
        let mut plan = aggregate::plan(
            self.source,
            self.destination,
            self.chain as &dyn Stages,
            &request,
            &known.counts,
        )
        .await?;
        plan.reasons.extend(known.doubt.map(String::from));
        Ok(plan)
    }
}
