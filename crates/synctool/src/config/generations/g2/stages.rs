//! Stages of the second generation between fetching and populating.

use super::super::super::at::At;
use super::super::super::error::ConfigError;
use super::super::super::form::{
    AsOfFile, CacheEntry, CacheFile, EnrichFile, EnrichOn, EnrichmentFile, FieldEntry, FieldFile, StageFile,
    enrichment_stages, transformations,
};
use super::super::super::pipeline::{Operator, Source};
use super::super::super::stage::{CacheStore, Dedup, EnrichJoin, EnrichKey, StageWork};
use super::columns::{by_name, is_column, merged};
use super::{Backend, G2Column, JoinType, StageConfig, StageEntry, StageKind};

/// The stages between fetching and populating, in their order.
pub(super) fn transform(
    stages: &[StageEntry],
    backends: &[Backend],
    general: &[G2Column],
    source: &Backend,
    errors: &mut Vec<ConfigError>,
) -> Vec<At<StageFile>> {
    let mut all: Vec<At<StageFile>> = Vec::new();
    for stage in stages {
        foreign_keys(stage, errors);
        if stage.kind.is_fixed() {
            continue;
        }
        let mut files: Vec<StageFile> = Vec::new();
        let nothing = StageConfig::default();
        let config = stage.config.as_ref().unwrap_or(&nothing);
        let computed = || {
            let said = stage.transformations.as_ref().or(config.transformations.as_ref());
            said.cloned().unwrap_or_default()
        };
        match *stage.kind {
            StageKind::Transform => {
                files.extend(transformations(computed(), errors).into_iter().map(StageFile::of));
            }
            StageKind::Enrich => {
                let enrichment = EnrichmentFile {
                    cache_backend: config.cache_backend.clone(),
                    cache_config: config.cache_config.clone(),
                    dimensions: config.dimensions.clone().unwrap_or_default(),
                    transformations: computed(),
                    ..EnrichmentFile::default()
                };
                let source = Source {
                    datastore: source.datastore_name.clone(),
                    table: source.table.clone(),
                    tables: Vec::new(),
                    schema: None,
                    alias: None,
                    joins: Vec::new(),
                    filters: Vec::new(),
                    type_name: None,
                };
                for made in enrichment_stages(enrichment, &source, errors) {
                    files.push(StageFile {
                        name: Some(made.name),
                        ..StageFile::of(made.work)
                    });
                }
            }
            StageKind::Join => files.extend(join(stage, config, backends, general, errors)),
            StageKind::Dedup => match &config.dedup_keys {
                Some(keys) => files.push(StageFile::of(StageWork::Dedup(Dedup::last((**keys).clone())))),
                None => errors.push(stage.kind.error("a stage of type dedup needs config.dedup_keys")),
            },
            StageKind::Batcher => {
                let size = config.target_batch_size.as_ref().or(config.batch_size.as_ref());
                let size = size.cloned().unwrap_or_else(|| stage.kind.with(1000));
                files.push(StageFile::of(StageWork::Batch(size)));
            }
            StageKind::Custom => errors.push(
                stage
                    .class_path
                    .as_ref()
                    .map_or_else(|| stage.kind.with(()), |c| c.with(()))
                    .error("a stage of type custom is a Python class, which SyncTool does not run")
                    .with_help("write what it does as a stage of type transform"),
            ),
            StageKind::Partition | StageKind::ChangeDetection | StageKind::DataFetch | StageKind::Populate => {}
        }
        for mut file in files {
            file.name = stage.name.clone().or(file.name);
            file.enabled.clone_from(&stage.enabled);
            file.applicable_on.clone_from(&stage.applicable_on);
            all.push(stage.kind.with(file));
        }
    }
    all
}

/// Keys of a stage and of its config that belong to stages of another type.
fn foreign_keys(stage: &StageEntry, errors: &mut Vec<ConfigError>) {
    use StageKind as K;
    let mut tell = |key: &str, at: Option<At<()>>, kinds: &[StageKind]| {
        if let Some(at) = at.filter(|_| !kinds.contains(&stage.kind)) {
            let words: Vec<&str> = kinds.iter().map(|k| k.name()).collect();
            errors.push(at.error(format!(
                "{key} belongs to stages of type {}, and this one is {}",
                words.join(" and "),
                stage.kind.name()
            )));
        }
    };
    let computed = stage.transformations.as_ref().and_then(|v| Some(v.first()?.with(())));
    tell("transformations", computed, &[K::Transform, K::Enrich]);
    let columns = stage.columns.as_ref().and_then(|v| Some(v.first()?.with(())));
    tell("columns", columns, &[K::Populate]);
    let Some(c) = &stage.config else { return };
    type Key = (&'static str, Option<At<()>>, &'static [StageKind]);
    let all: [Key; 15] = [
        ("join_type", c.join_type.as_ref().map(|v| v.with(())), &[K::Join]),
        ("join_on", c.join_on.as_ref().map(|v| v.with(())), &[K::Join]),
        ("asof", c.asof.as_ref().map(|v| v.with(())), &[K::Join]),
        (
            "fetch_columns",
            c.fetch_columns.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Join],
        ),
        ("cardinality", c.cardinality.as_ref().map(|v| v.with(())), &[K::Join]),
        ("merge", c.merge.as_ref().map(|v| v.with(())), &[K::Join]),
        ("output_key", c.output_key.as_ref().map(|v| v.with(())), &[K::Join]),
        ("dedup_keys", c.dedup_keys.as_ref().map(|v| v.with(())), &[K::Dedup]),
        (
            "target_batch_size",
            c.target_batch_size.as_ref().map(|v| v.with(())),
            &[K::Batcher],
        ),
        (
            "cache_backend",
            c.cache_backend.as_ref().map(|v| v.with(())),
            &[K::Enrich],
        ),
        (
            "dimensions",
            c.dimensions.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Enrich],
        ),
        (
            "transformations",
            c.transformations.as_ref().and_then(|v| Some(v.first()?.with(()))),
            &[K::Transform, K::Enrich],
        ),
        ("page_size", c.page_size.as_ref().map(|v| v.with(())), &[K::DataFetch]),
        (
            "batch_size",
            c.batch_size.as_ref().map(|v| v.with(())),
            &[K::Batcher, K::Populate],
        ),
        ("cache", c.cache.as_ref().map(|v| v.with(())), &[K::Join]),
    ];
    for (key, at, kinds) in all {
        tell(&format!("config.{key}"), at, kinds);
    }
}

fn join(
    stage: &StageEntry,
    config: &StageConfig,
    backends: &[Backend],
    general: &[G2Column],
    errors: &mut Vec<ConfigError>,
) -> Option<StageFile> {
    let Some(end) = &stage.source else {
        errors.push(
            stage
                .kind
                .error("a stage of type join needs source, the backend that is joined"),
        );
        return None;
    };
    let backend = backends.iter().find(|b| *b.name == *end.name)?;
    let mut table = merged(backend.columns.as_deref().unwrap_or_default(), general);
    if let Some(columns) = &end.columns {
        let farther: Vec<G2Column> = table.iter().chain(general).cloned().collect();
        table = merged(columns, &farther);
    }
    let real =
        |name: &At<String>| by_name(&table, name).map_or_else(|| name.clone(), |c| name.with(c.expr().to_string()));
    if let Some(merge) = config.merge.as_ref().filter(|m| !***m) {
        errors.push(
            merge
                .error("merge: false keeps joined rows apart, which is not supported")
                .with_help("leave it out: joined columns are added to the row"),
        );
    }
    let kind = config
        .join_type
        .clone()
        .unwrap_or_else(|| stage.kind.with(JoinType::Left));
    let join = match *kind {
        JoinType::Left => EnrichJoin::Left,
        JoinType::Inner => EnrichJoin::Inner,
        JoinType::AsofLeft => EnrichJoin::AsOf,
        JoinType::Right => {
            errors.push(
                kind.error("a right join adds rows that the source does not have")
                    .with_help("use left or inner, or join in the source backend"),
            );
            return None;
        }
    };
    let Some(pairs) = &config.join_on else {
        errors.push(stage.kind.error("a stage of type join needs config.join_on"));
        return None;
    };
    let mut on: Vec<EnrichOn> = Vec::new();
    let mut keys: Vec<&str> = Vec::new();
    let mut as_of: Option<At<AsOfFile>> = None;
    for pair in pairs.iter() {
        keys.push(&pair.backend_key);
        let operator = pair
            .operator
            .clone()
            .unwrap_or_else(|| pair.data_key.with(Operator::Equal));
        // The original says how the row's value stands to the backend's.
        let begins = match *operator {
            Operator::Equal => {
                on.push(EnrichOn::Pair(EnrichKey {
                    column: pair.data_key.clone(),
                    key: real(&pair.backend_key),
                }));
                continue;
            }
            Operator::GreaterOrEqual => Operator::LessOrEqual,
            Operator::Greater => Operator::Less,
            _ => {
                errors.push(
                    operator
                        .error("a join compares by =, and with asof_left one pair by >= or >")
                        .with_help("data_key >= backend_key takes the newest row that had begun by then"),
                );
                continue;
            }
        };
        if join != EnrichJoin::AsOf || as_of.is_some() || config.asof.is_some() {
            errors.push(operator.error("one pair of a join of type asof_left may compare by >= or >, and no other"));
            continue;
        }
        as_of = Some(pair.data_key.with(AsOfFile {
            column: pair.data_key.clone(),
            valid_from: real(&pair.backend_key),
            valid_to: None,
            operator: Some(operator.with(begins)),
            include_open_ended: None,
        }));
    }
    if let Some(said) = &config.asof {
        as_of = Some(said.with(AsOfFile {
            column: said.data_key.clone(),
            valid_from: real(&said.valid_from_column),
            valid_to: said.valid_to_column.as_ref().map(real),
            operator: said.operator.clone(),
            include_open_ended: said.include_open_ended.clone(),
        }));
    }
    let added = match &config.fetch_columns {
        Some(columns) => merged(columns, &table),
        None => table.clone(),
    };
    let fields: Vec<FieldEntry> = added
        .iter()
        .filter(|c| !keys.contains(&c.name.as_str()))
        .map(|c| {
            let mut field = FieldFile {
                dest: Some(c.name.clone()),
                ..FieldFile::default()
            };
            match (c.is_virtual() && c.is_hash(), is_column(c.expr())) {
                (true, _) => field.hash = Some(true),
                (false, true) => field.source = Some(c.expr().clone()),
                (false, false) => field.expr = Some(c.expr().clone()),
            }
            FieldEntry::Field(Box::new(c.name.with(field)))
        })
        .collect();
    let cache = config.cache.as_ref().map(|c| {
        let off = c.enabled.as_ref().filter(|e| !***e).map(|e| e.with(CacheStore::None));
        CacheEntry::Full(CacheFile {
            store: off.or_else(|| c.backend.clone()),
            url: c.url.clone(),
            key_prefix: c.key_prefix.clone(),
            ttl: c.ttl.clone(),
            max_size: c.max_size.clone().or_else(|| c.maxsize.clone()),
        })
    });
    Some(StageFile {
        enrich: Some(EnrichFile {
            datastore: Some(backend.datastore_name.clone()),
            table: backend.table.clone(),
            schema: backend.schema.clone(),
            filters: backend.filters.clone().unwrap_or_default(),
            join: Some(kind.with(join)),
            on: pairs.with(on),
            as_of,
            fields: end.name.with(fields),
            cardinality: config.cardinality.clone(),
            cache,
            type_name: backend.type_name.clone(),
        }),
        ..StageFile::default()
    })
}
