//! Stages: how they stand in files, and how they resolve.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::error::ConfigError;
use super::super::pipeline::{Filter, Operator, Source};
use super::super::secret::SecretUrl;
use super::super::stage::{
    AsOf, Cache, CacheStore, Cardinality, Computed, Dedup, Enrich, EnrichField, EnrichJoin, EnrichKey, FieldSource,
    Stage, StageWork, ValueMap,
};
use super::super::types::SizedType;
use super::super::units::Span;
use super::enrichment::{EnrichmentFile, PipelineConfigFile, enrichment_stages, transformations};

/// One stage on the way of rows: exactly one of the keys that say what it does.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct StageFile {
    /// Its name in accounts and messages. Default: what it does.
    pub(in super::super) name: Option<At<String>>,
    /// Whether it is passed through. Default: true.
    pub(in super::super) enabled: Option<At<bool>>,
    /// The strategies it is for, by name or type. Default: all.
    pub(in super::super) applicable_on: Option<ApplicableOn>,
    /// Computes columns.
    pub(in super::super) compute: Option<ComputeFile>,
    /// Gives columns another type: name to type.
    pub(in super::super) cast: Option<BTreeMap<String, At<SizedType>>>,
    /// Replaces values of a column by others.
    pub(in super::super) value_map: Option<ValueMap>,
    /// Lets rows through that meet every condition: an expression, or column, operator and value.
    pub(in super::super) filter: Option<FilterFile>,
    /// Of rows with the same values in these columns one stays: the last, or what is said.
    pub(in super::super) dedup: Option<DedupFile>,
    /// Adds columns of another table.
    pub(in super::super) enrich: Option<EnrichFile>,
    /// Makes batches of about this many rows.
    pub(in super::super) batch: Option<At<u32>>,
}

/// Strategies, by name or type.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "ApplicableOn", untagged)]
pub(in super::super) enum ApplicableOn {
    #[serde(rename = "text")]
    One(At<String>),
    #[serde(rename = "list")]
    Several(Vec<At<String>>),
    #[serde(rename = "map")]
    Apart(ApplicableOnApart),
}

/// Strategies, types and names apart.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct ApplicableOnApart {
    /// Types.
    #[serde(default)]
    types: Vec<At<String>>,
    /// Names.
    #[serde(default)]
    names: Vec<At<String>>,
}

impl StageFile {
    /// A stage that does what is said.
    pub(in super::super) fn of(work: StageWork) -> Self {
        let mut file = Self::default();
        match work {
            StageWork::Compute(columns) => file.compute = Some(ComputeFile::Several(columns)),
            StageWork::Cast(casts) => file.cast = Some(casts),
            StageWork::ValueMap(map) => file.value_map = Some(map),
            StageWork::Filter(filters) => file.filter = Some(FilterFile::Several(filters)),
            StageWork::Dedup(dedup) => file.dedup = Some(DedupFile::Full(dedup)),
            StageWork::Enrich(enrich) => file.enrich = Some((*enrich).into()),
            StageWork::Batch(size) => file.batch = Some(size),
        }
        file
    }
}

impl StageFile {
    /// The columns it makes.
    pub(in super::super) fn makes(&self) -> Vec<At<String>> {
        let mut names: Vec<At<String>> = Vec::new();
        match &self.compute {
            Some(ComputeFile::One(one)) => names.push(one.name.clone()),
            Some(ComputeFile::Several(several)) => names.extend(several.iter().map(|c| c.name.clone())),
            None => {}
        }
        for field in self.enrich.iter().flat_map(|e| e.fields.iter()) {
            match field {
                FieldEntry::Name(name) => names.push(name.clone()),
                FieldEntry::Field(field) => names.extend(field.dest.clone().or_else(|| field.source.clone())),
            }
        }
        names
    }
}

impl From<Enrich> for EnrichFile {
    fn from(enrich: Enrich) -> Self {
        let field = |f: EnrichField| {
            let mut file = FieldFile {
                dest: Some(f.dest),
                data_type: f.data_type,
                transform: f.transform,
                ..FieldFile::default()
            };
            match f.source {
                FieldSource::Source(column) => file.source = Some(column),
                FieldSource::Expr(sql) => file.expr = Some(sql),
                FieldSource::Hash(hash) => file.hash = Some(hash),
            }
            FieldEntry::Field(Box::new(file.into()))
        };
        Self {
            datastore: Some(enrich.datastore),
            table: enrich.table,
            schema: enrich.schema,
            filters: enrich.filters,
            join: Some(enrich.join),
            on: enrich.on.into_iter().map(EnrichOn::Pair).collect::<Vec<_>>().into(),
            as_of: enrich.as_of.map(|a| {
                At::from(AsOfFile {
                    column: a.column,
                    valid_from: a.valid_from,
                    valid_to: a.valid_to,
                    operator: Some(a.operator),
                    include_open_ended: Some(a.include_open_ended),
                })
            }),
            fields: enrich.fields.into_iter().map(field).collect::<Vec<_>>().into(),
            cardinality: Some(enrich.cardinality),
            cache: Some(CacheEntry::Full(CacheFile {
                store: Some(enrich.cache.store),
                url: enrich.cache.url,
                key_prefix: enrich.cache.key_prefix,
                ttl: enrich.cache.ttl,
                max_size: enrich.cache.max_size,
            })),
            type_name: enrich.type_name,
        }
    }
}

impl ApplicableOn {
    /// The first word, for its place.
    pub(in super::super) fn first(&self) -> Option<&At<String>> {
        match self {
            ApplicableOn::One(word) => Some(word),
            ApplicableOn::Several(words) => words.first(),
            ApplicableOn::Apart(apart) => apart.types.first().or(apart.names.first()),
        }
    }

    pub(in super::super) fn words(self) -> Vec<At<String>> {
        match self {
            ApplicableOn::One(word) => vec![word],
            ApplicableOn::Several(words) => words,
            ApplicableOn::Apart(apart) => apart.types.into_iter().chain(apart.names).collect(),
        }
    }
}

/// A computed column, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Compute", untagged)]
pub(in super::super) enum ComputeFile {
    #[serde(rename = "map")]
    One(Computed),
    #[serde(rename = "list")]
    Several(Vec<Computed>),
}

/// Columns of which the last row stays, or which one does.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Dedup", untagged)]
pub(in super::super) enum DedupFile {
    #[serde(rename = "list")]
    Keys(Vec<At<String>>),
    #[serde(rename = "map")]
    Full(Dedup),
}

/// A condition, or several.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "StageFilter", untagged)]
pub(in super::super) enum FilterFile {
    #[serde(rename = "text")]
    Expression(At<Filter>),
    #[serde(rename = "map")]
    Comparison(At<Filter>),
    #[serde(rename = "list")]
    Several(Vec<At<Filter>>),
}

/// Columns of another table that are added to rows.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct EnrichFile {
    /// Name of the datastore that has the table. Default: that of the source.
    pub(in super::super) datastore: Option<At<String>>,
    /// The table.
    pub(in super::super) table: At<String>,
    /// Its schema, where it stands apart.
    pub(in super::super) schema: Option<At<String>>,
    /// Conditions on its rows.
    #[serde(default)]
    pub(in super::super) filters: Vec<At<Filter>>,
    /// Which rows stay: left (the default), inner, as_of.
    pub(in super::super) join: Option<At<EnrichJoin>>,
    /// What must be equal: names of columns of both, or pairs.
    pub(in super::super) on: At<Vec<EnrichOn>>,
    /// Which of several rows is the one valid at a time.
    pub(in super::super) as_of: Option<At<AsOfFile>>,
    /// The columns that are added.
    pub(in super::super) fields: At<Vec<FieldEntry>>,
    /// Whether a row may have several partners. Default: one_to_one.
    pub(in super::super) cardinality: Option<At<Cardinality>>,
    /// Where rows of the table are kept between batches. Default: memory.
    pub(in super::super) cache: Option<CacheEntry>,
    #[serde(skip)]
    pub(in super::super) type_name: Option<At<String>>,
}

/// A column of both, or a pair.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "EnrichOn", untagged)]
pub(in super::super) enum EnrichOn {
    #[serde(rename = "text")]
    Same(At<String>),
    #[serde(rename = "map")]
    Pair(EnrichKey),
}

/// Which of several rows is the one valid at a time.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct AsOfFile {
    /// The column of the row that has the time.
    pub(in super::super) column: At<String>,
    /// The column of the table that has the begin of the validity.
    pub(in super::super) valid_from: At<String>,
    /// The column of the table that has its end. Default: the next row's begin.
    pub(in super::super) valid_to: Option<At<String>>,
    /// How the begin must stand to the row's time: <= (the default) or <.
    pub(in super::super) operator: Option<At<Operator>>,
    /// Whether a row without an end is still valid. Default: true.
    pub(in super::super) include_open_ended: Option<At<bool>>,
}

/// A column that is added: its name, or what is made of it.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "EnrichField", untagged)]
pub(in super::super) enum FieldEntry {
    #[serde(rename = "text")]
    Name(At<String>),
    #[serde(rename = "map")]
    Field(Box<At<FieldFile>>),
}

/// A column that is added.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct FieldFile {
    /// The column of the table. Default: that of the same name.
    pub(in super::super) source: Option<At<String>>,
    /// An expression in the SQL of the table's datastore, in place of a column.
    pub(in super::super) expr: Option<At<String>>,
    /// true = the hash of the other fields.
    pub(in super::super) hash: Option<bool>,
    /// Its name on the way. Default: that of the column.
    pub(in super::super) dest: Option<At<String>>,
    /// Its type. Default: that of the table.
    pub(in super::super) data_type: Option<At<SizedType>>,
    /// An expression over the value: lambda x: "abc" + x.
    pub(in super::super) transform: Option<At<String>>,
}

/// A cache: where, or how.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "CacheEntry", untagged)]
pub(in super::super) enum CacheEntry {
    #[serde(rename = "text")]
    Store(At<CacheStore>),
    #[serde(rename = "map")]
    Full(CacheFile),
}

/// Where rows of a joined table are kept between batches.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct CacheFile {
    /// none, memory or redis. Default: memory.
    pub(in super::super) store: Option<At<CacheStore>>,
    /// The address of a Redis. Default: the global one.
    pub(in super::super) url: Option<At<SecretUrl>>,
    /// What keys in a Redis begin with.
    pub(in super::super) key_prefix: Option<At<String>>,
    /// How long a row is good. Default: as long as the run.
    pub(in super::super) ttl: Option<At<Span>>,
    /// Rows at most. Default: by the memory budget.
    pub(in super::super) max_size: Option<At<u64>>,
}

// ---------------------------------------------------------------------------------------------------------------------
// From the form to the model

/// The stages of a file in their order: those of `transform`, those of strategies alone, enrichment, batches.
pub(super) struct StagesOfFile {
    pub(super) transform: Vec<At<StageFile>>,
    pub(super) enrichment: Option<EnrichmentFile>,
    /// Of the pipeline, and of strategies by name.
    pub(super) configs: Vec<(Option<At<String>>, PipelineConfigFile)>,
    /// The names of all strategies, in order.
    pub(super) strategies: Vec<At<String>>,
}

pub(super) fn resolve(file: StagesOfFile, source: &Source, errors: &mut Vec<ConfigError>) -> Vec<Stage> {
    let mut stages: Vec<Stage> = Vec::new();
    for entry in file.transform {
        stages.extend(stage(entry, source, errors));
    }
    let mut batches: Vec<Stage> = Vec::new();
    // Strategies that leave enrichment out.
    let mut without: Vec<At<String>> = Vec::new();
    for (strategy, config) in file.configs {
        let of_strategy: Vec<At<String>> = strategy.iter().cloned().collect();
        let (mut size, mut batcher) = (config.batch_size, None);
        if let Some(fixed) = config.stages {
            must_stay(
                "change_detection",
                fixed.change_detection.and_then(|s| s.enabled),
                errors,
            );
            must_stay("data_fetch", fixed.data_fetch.and_then(|s| s.enabled), errors);
            must_stay("populate", fixed.populate.and_then(|s| s.enabled), errors);
            if let Some(transform) = fixed.transform {
                let made = transformations(transform.transformations, errors);
                stages.extend(made.into_iter().map(|work| Stage {
                    enabled: transform.enabled.clone().unwrap_or_else(|| true.into()),
                    applicable_on: of_strategy.clone(),
                    ..Stage::new(work)
                }));
            }
            if fixed.enrich.and_then(|s| s.enabled).is_some_and(|enabled| !*enabled) {
                match &strategy {
                    Some(name) => without.push(name.clone()),
                    None => without.extend(file.strategies.iter().cloned()),
                }
            }
            if let Some(file) = fixed.batcher {
                size = file.target_batch_size.or(size);
                batcher = file.enabled;
            }
        }
        if let Some(size) = size {
            batches.push(Stage {
                enabled: batcher.unwrap_or_else(|| true.into()),
                applicable_on: of_strategy,
                ..Stage::new(StageWork::Batch(size))
            });
        }
    }
    if let Some(enrichment) = file.enrichment {
        let with: Vec<At<String>> = match without.is_empty() {
            true => Vec::new(),
            false => {
                let left_out = |name: &At<String>| without.iter().any(|w| **w == **name);
                file.strategies.iter().filter(|s| !left_out(s)).cloned().collect()
            }
        };
        let enabled = match (without.is_empty(), with.is_empty()) {
            (false, true) => Some(false.into()),
            _ => None,
        };
        for mut stage in enrichment_stages(enrichment, source, errors) {
            stage.enabled = enabled.clone().unwrap_or(stage.enabled);
            stage.applicable_on.clone_from(&with);
            stages.push(stage);
        }
    }
    stages.append(&mut batches);
    for stage in &stages {
        if let StageWork::Batch(size) = &stage.work
            && **size == 0
        {
            errors.push(size.error("a batch must have at least 1 row"));
        }
        for word in &stage.applicable_on {
            let kinds = ["full", "delta", "hash", "aggregate", "log"];
            let known = kinds.contains(&word.as_str()) || file.strategies.iter().any(|s| **s == **word);
            if !known {
                let named = file.strategies.iter().map(|s| s.as_str());
                let names: Vec<&str> = named.filter(|name| !kinds.contains(name)).chain(kinds).collect();
                let error = word.error(format!(
                    "stage \"{}\" is for \"{}\", which is no strategy",
                    stage.name.shown(),
                    word.shown()
                ));
                errors.push(
                    match super::super::error::suggestion(word, "strategies and types", &names) {
                        Some(help) => error.with_help(help),
                        None => error,
                    },
                );
            }
        }
    }
    stages
}

/// The fixed stages are what a run is.
pub(in super::super) fn must_stay(name: &str, enabled: Option<At<bool>>, errors: &mut Vec<ConfigError>) {
    if let Some(off) = enabled.filter(|enabled| !**enabled) {
        errors.push(
            off.error(format!("stage {name} cannot be disabled: a run is made of it"))
                .with_help("disable the strategy or the pipeline instead"),
        );
    }
}

fn stage(entry: At<StageFile>, source: &Source, errors: &mut Vec<ConfigError>) -> Option<Stage> {
    let place = entry.with(());
    let file = entry.into_inner();
    let mut works: Vec<StageWork> = Vec::new();
    works.extend(file.compute.map(|c| {
        StageWork::Compute(match c {
            ComputeFile::One(one) => vec![one],
            ComputeFile::Several(several) => several,
        })
    }));
    works.extend(file.cast.map(StageWork::Cast));
    works.extend(file.value_map.map(StageWork::ValueMap));
    works.extend(file.filter.map(|f| {
        StageWork::Filter(match f {
            FilterFile::Expression(one) | FilterFile::Comparison(one) => vec![one],
            FilterFile::Several(several) => several,
        })
    }));
    works.extend(file.dedup.map(|d| {
        StageWork::Dedup(match d {
            DedupFile::Keys(keys) => Dedup::last(keys),
            DedupFile::Full(dedup) => dedup,
        })
    }));
    works.extend(
        file.enrich
            .map(|e| StageWork::Enrich(Box::new(enrich(e, source, errors)))),
    );
    works.extend(file.batch.map(StageWork::Batch));
    const KEYS: &str = "a stage has exactly one of compute, cast, value_map, filter, dedup, enrich, batch";
    if works.len() > 1 {
        let names: Vec<&str> = works.iter().map(StageWork::name).collect();
        errors.push(
            place
                .error(format!(
                    "a stage does one thing, and this one says {}",
                    names.join(", ")
                ))
                .with_help("write a stage for each"),
        );
        return None;
    }
    let Some(work) = works.pop() else {
        errors.push(place.error("a stage says nothing to do").with_help(KEYS));
        return None;
    };
    let empty = match &work {
        StageWork::Compute(columns) => columns.is_empty(),
        StageWork::Cast(casts) => casts.is_empty(),
        StageWork::Filter(filters) => filters.is_empty(),
        StageWork::Dedup(dedup) => dedup.keys.is_empty(),
        StageWork::ValueMap(_) | StageWork::Enrich(_) | StageWork::Batch(_) => false,
    };
    if empty {
        errors.push(place.error(format!("{} of a stage is empty", work.name())));
    }
    let applicable_on = file.applicable_on.map(ApplicableOn::words);
    if applicable_on.as_ref().is_some_and(Vec::is_empty) {
        errors.push(
            place
                .error("applicable_on names no strategy")
                .with_help("leave it out for all of them, or write `enabled: false`"),
        );
    }
    Some(Stage {
        name: file.name.unwrap_or_else(|| work.name().into()),
        enabled: file.enabled.unwrap_or_else(|| true.into()),
        applicable_on: applicable_on.unwrap_or_default(),
        work,
    })
}

fn enrich(file: EnrichFile, source: &Source, errors: &mut Vec<ConfigError>) -> Enrich {
    let join = file.join.unwrap_or_else(|| match file.as_of {
        Some(_) => EnrichJoin::AsOf.into(),
        None => EnrichJoin::Left.into(),
    });
    match (*join, &file.as_of) {
        (EnrichJoin::AsOf, None) => errors.push(
            join.error("join as_of needs to know which row is valid when")
                .with_help("write as_of: {column: …, valid_from: …, valid_to: …}"),
        ),
        (EnrichJoin::Left | EnrichJoin::Inner, Some(as_of)) => {
            errors.push(as_of.error("as_of belongs to join: as_of"));
        }
        _ => {}
    }
    let on_place = file.on.with(());
    let on: Vec<EnrichKey> = file
        .on
        .into_inner()
        .into_iter()
        .map(|on| match on {
            EnrichOn::Same(name) => EnrichKey {
                column: name.clone(),
                key: name,
            },
            EnrichOn::Pair(pair) => pair,
        })
        .collect();
    if on.is_empty() {
        errors.push(on_place.error("an enrichment needs at least one column to join on"));
    }
    let fields = fields(file.fields, errors);
    let as_of = file.as_of.map(|as_of| {
        let as_of = as_of.into_inner();
        let operator = as_of.operator.unwrap_or_else(|| Operator::LessOrEqual.into());
        if !matches!(*operator, Operator::LessOrEqual | Operator::Less) {
            errors.push(
                operator
                    .error("the operator of as_of must be <= or <")
                    .with_help("it says how valid_from stands to the row's time"),
            );
        }
        AsOf {
            column: as_of.column,
            valid_from: as_of.valid_from,
            valid_to: as_of.valid_to,
            operator,
            include_open_ended: as_of.include_open_ended.unwrap_or_else(|| true.into()),
        }
    });
    let cache = match file.cache {
        None => Cache::default(),
        Some(CacheEntry::Store(store)) => Cache {
            store,
            ..Cache::default()
        },
        Some(CacheEntry::Full(file)) => {
            let store = file.store.unwrap_or_default();
            let of_redis = [
                ("url", file.url.as_ref().map(|u| u.with(()))),
                ("key_prefix", file.key_prefix.as_ref().map(|k| k.with(()))),
            ];
            for (key, at) in of_redis {
                if let Some(at) = at.filter(|_| *store != CacheStore::Redis) {
                    errors.push(at.error(format!("{key} belongs to a cache in redis")));
                }
            }
            if let Some(zero) = file.max_size.as_ref().filter(|n| ***n == 0) {
                errors.push(
                    zero.error("max_size of a cache must be at least 1")
                        .with_help("cache: none keeps nothing"),
                );
            }
            Cache {
                store,
                url: file.url,
                key_prefix: file.key_prefix,
                ttl: file.ttl,
                max_size: file.max_size,
            }
        }
    };
    Enrich {
        datastore: file.datastore.unwrap_or_else(|| source.datastore.clone()),
        table: file.table,
        schema: file.schema,
        filters: file.filters,
        join,
        on,
        as_of,
        fields,
        cardinality: file.cardinality.unwrap_or_default(),
        cache,
        type_name: file.type_name,
    }
}

pub(super) fn fields(entries: At<Vec<FieldEntry>>, errors: &mut Vec<ConfigError>) -> Vec<EnrichField> {
    let place = entries.with(());
    let mut fields: Vec<EnrichField> = Vec::new();
    for entry in entries.into_inner() {
        let file = match entry {
            FieldEntry::Name(name) => At::from(FieldFile {
                source: Some(name),
                ..FieldFile::default()
            }),
            FieldEntry::Field(file) => *file,
        };
        let at = file.with(());
        let file = file.into_inner();
        let hash = file.hash == Some(true);
        if usize::from(file.source.is_some()) + usize::from(file.expr.is_some()) + usize::from(hash) > 1 {
            errors.push(at.error("a field has a source, an expr or hash, and not several"));
        }
        let dest = file.dest.clone().or_else(|| file.source.clone());
        let Some(dest) = dest else {
            errors.push(at.error("a field needs its name: source or dest"));
            continue;
        };
        let source = match (file.source, file.expr) {
            _ if hash => FieldSource::Hash(true),
            (_, Some(sql)) => FieldSource::Expr(sql),
            (Some(column), None) => FieldSource::Source(column),
            (None, None) => FieldSource::Source(dest.clone()),
        };
        if fields.iter().any(|f| *f.dest == *dest) {
            errors.push(dest.error(format!("field \"{}\" is added twice", dest.shown())));
        }
        fields.push(EnrichField {
            source,
            dest,
            data_type: file.data_type,
            transform: file.transform,
        });
    }
    if fields.is_empty() {
        errors.push(place.error("an enrichment adds no fields"));
    }
    fields
}
