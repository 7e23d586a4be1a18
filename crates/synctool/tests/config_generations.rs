//! Pipelines of every generation against the one model: every YAML block of the brief, the examples, and what
//! `config migrate` makes of them.

use std::path::{Path, PathBuf};

use synctool::config::*;

const BRIEF: &str = "tests/config/brief";
const STORES: &str = "tests/config/stores/brief.yaml";
const EXAMPLES: &str = "../../examples/configs";

fn loader() -> Loader {
    // No file of this folder, and no variable of this machine.
    Loader::new().env(|_| None).folder(BRIEF)
}

fn brief(file: &str) -> Loaded {
    loader()
        .datastores(Some(STORES.into()))
        .pipeline(&Path::new(BRIEF).join(file))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn example(file: &str) -> Loaded {
    loader()
        .pipeline(&Path::new(EXAMPLES).join(file))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn from_text(text: &str) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    loader().datastores(Some(STORES.into())).pipeline(&file)
}

fn good(text: &str) -> Pipeline {
    from_text(text)
        .unwrap_or_else(|errors| panic!("{errors}\n{text}"))
        .pipeline
}

/// What an example is, for comparisons: places apart, datastore types and notices are not part of what is written.
fn meaning(pipeline: &Pipeline) -> Pipeline {
    let mut pipeline = pipeline.clone();
    (
        pipeline.source.type_name,
        pipeline.destination.type_name,
        pipeline.not_yet,
    ) = (None, None, Vec::new());
    for stage in &mut pipeline.transform {
        if let StageWork::Enrich(enrich) = &mut stage.work {
            enrich.type_name = None;
        }
    }
    pipeline
}

/// Name, what it is at the source, name at the destination (none = not written).
fn columns(pipeline: &Pipeline) -> Vec<(&str, &str, Option<&str>)> {
    pipeline
        .listed()
        .iter()
        .map(|c| {
            let source = c.source.as_ref().or(c.expr.as_ref()).map_or("-", |s| s.as_str());
            (c.name.as_str(), source, c.is_written().then(|| c.dest.as_str()))
        })
        .collect()
}

/// Column at the source, step, unit, kind, destination.
fn cuts(dimensions: &[Dimension]) -> Vec<String> {
    dimensions
        .iter()
        .map(|d| {
            let step = d.step.as_ref().map_or_else(|| "-".into(), |s| s.to_string());
            let unit = d.step_unit.as_ref().map_or("", |u| u.name());
            let kind = format!("{:?}", *d.kind).to_lowercase();
            let there = d.destination.as_ref().map_or("-", |d| d.as_str());
            format!("{} {kind} {step}{unit} at {there}", d.column.as_str())
        })
        .collect()
}

fn stages(pipeline: &Pipeline) -> Vec<(&str, &str)> {
    let stages = pipeline.transform.iter();
    stages.map(|s| (s.name.as_str(), s.work.name())).collect()
}

fn key(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.key.iter().map(|k| k.as_str()).collect()
}

fn enrich<'a>(pipeline: &'a Pipeline, stage: &str) -> &'a Enrich {
    let found = pipeline.transform.iter().find(|s| *s.name == stage).unwrap();
    match &found.work {
        StageWork::Enrich(enrich) => enrich,
        other => panic!("{other:?}"),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The brief

/// Every YAML block of the brief, by its first line, and the fixture that holds it as printed. The fragments (F) run
/// merged into a complete pipeline, in the tests below.
const BLOCKS: &[(&str, &str)] = &[
    ("datastores:", "datastores.yaml"),
    ("name: \"users_sync\"", "my_first_pipeline.yaml"),
    ("redis:", "global_config.yaml"),
    ("name: \"advanced_sync_pipeline\"", "advanced_sync_pipeline.yaml"),
    ("name: \"users_row_sync\"", "users_row_sync.yaml"),
    (
        "name: \"user_daily_orders_aggregate\"",
        "user_daily_orders_aggregate.yaml",
    ),
    ("strategies:", "fragments/nested_aggregates.yaml"),
    ("backends:", "fragments/column_level.yaml"),
    ("# Global configuration", "fragments/hash_algorithms.yaml"),
    ("columns:", "fragments/audit_columns.yaml"),
    ("strategies:", "fragments/resume_options.yaml"),
    (
        "# Reduce batch sizes in pipeline config",
        "fragments/memory_issues.yaml",
    ),
];

#[test]
fn every_block_of_the_brief_has_its_fixture() {
    let mut listed: Vec<PathBuf> = Vec::new();
    for (first_line, fixture) in BLOCKS {
        let file = Path::new(BRIEF).join(fixture);
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text.lines().next(), Some(*first_line), "{fixture}");
        listed.push(file);
    }
    for folder in [BRIEF, "tests/config/brief/fragments"] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            assert!(
                path.is_dir() || listed.contains(&path),
                "{} is in no block",
                path.display()
            );
        }
    }
}

#[test]
fn the_advanced_pipeline_of_the_brief() {
    let p = brief("advanced_sync_pipeline.yaml").pipeline;
    let told = |key: &str| p.not_yet.iter().filter(|n| n.key == key).count();
    assert_eq!(
        (told("cron"), told("page_size") + 1),
        (1, p.not_yet.len()),
        "{:?}",
        p.not_yet
    );
    assert_eq!(key(&p), ["order_id"]);
    assert_eq!(
        columns(&p),
        [
            ("order_id", "o.id", Some("order_id")),
            ("order_date", "o.order_date", Some("order_date")),
            ("total_amount", "o.total", Some("total_amount")),
            ("customer_name", "c.name", Some("customer_name")),
            ("updated_at", "o.updated_at", Some("updated_at")),
            // Fetched for the join, made by the stages.
            ("customer_id", "o.customer_id", None),
            ("customer_segment", "-", Some("customer_segment")),
            ("customer_score", "-", Some("customer_score")),
            ("total_with_tax", "-", Some("total_with_tax")),
        ]
    );
    let delta = p.strategy("delta_sync").unwrap();
    assert_eq!(cuts(&delta.primary_partitions), ["o.id range 50000 at order_id"]);
    assert_eq!(cuts(&delta.secondary_partitions), ["o.id range 100 at order_id"]);
    let hash = p.strategy("hash_sync").unwrap();
    assert_eq!(hash.prevent_update_unless_changed.as_deref(), Some(&true));
    assert!(*hash.match_row_count && hash.primary_partitions.is_empty());
    assert_eq!(stages(&p), [("customer_segment", "enrich"), ("compute", "compute")]);
    let segment = enrich(&p, "customer_segment");
    assert_eq!(
        (segment.datastore.as_str(), segment.table.as_str(), *segment.join),
        ("analytics_db", "customer_segments", EnrichJoin::Left)
    );
    assert_eq!(
        (segment.on[0].column.as_str(), segment.on[0].key.as_str()),
        ("customer_id", "customer_id")
    );
    assert_eq!(*segment.cache.store, CacheStore::Redis);
    assert_eq!(segment.cache.max_size.as_deref(), Some(&100_000));
    assert_eq!(segment.cache.ttl.as_deref(), Some(&Span::seconds(3600)));
    let StageWork::Compute(computed) = &p.transform[1].work else {
        panic!()
    };
    assert_eq!(
        computed[0].expression.as_str(),
        "lambda x: round(x['total_amount'] * 1.1, 2)"
    );
    assert_eq!(
        computed[0].expression.error("here").to_string(),
        "tests/config/brief/advanced_sync_pipeline.yaml:94:18: here"
    );
}

#[test]
fn the_row_level_pipeline_of_the_brief() {
    let p = brief("users_row_sync.yaml").pipeline;
    assert!(p.not_yet.iter().all(|n| n.key == "page_size"), "{:?}", p.not_yet);
    assert_eq!((*p.sync_type, key(&p)), (SyncType::RowLevel, vec!["id"]));
    let delta = p.strategy("delta_sync").unwrap();
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "updated_at");
    assert_eq!(cuts(&delta.primary_partitions), ["updated_at range 7200 at updated_at"]);
    assert_eq!(
        delta.primary_partitions[0].data_type.as_deref(),
        Some(&DataType::Timestamp)
    );
}

fn aggregate_text() -> String {
    std::fs::read_to_string(Path::new(BRIEF).join("user_daily_orders_aggregate.yaml")).unwrap()
}

#[test]
fn the_aggregate_of_the_brief() {
    let loaded = brief("user_daily_orders_aggregate.yaml");
    let p = &loaded.pipeline;
    assert_eq!(p.name.as_str(), "user_daily_orders_aggregate");
    assert_eq!((*p.sync_type, key(p)), (SyncType::Aggregate, vec!["user_id", "date"]));
    assert_eq!(
        (p.source.table.as_str(), p.destination.table.as_str()),
        ("orders", "user_daily_orders_aggregate")
    );
    assert_eq!(p.destination.schema.as_ref().unwrap().as_str(), "analytics");
    assert_eq!(
        columns(p),
        [
            ("user_id", "user_id", Some("user_id")),
            ("date", "CAST(order_date AS DATE)", Some("date")),
            ("amount", "sum(amount)", Some("amount")),
            ("discount", "sum(discount)", Some("discount")),
            ("num_orders", "count(1)", Some("num_orders")),
            ("last_updated_at", "max(updated_at)", Some("last_updated_at")),
            ("checksum_int", "-", Some("checksum_int")),
            ("order_date", "order_date", None),
        ]
    );
    let groups: Vec<&str> = p.groups().map(|c| c.name.as_str()).collect();
    let aggregates: Vec<&str> = p.aggregates().map(|c| c.name.as_str()).collect();
    assert_eq!(groups, ["user_id", "date"]);
    assert_eq!(aggregates, ["amount", "discount", "num_orders", "last_updated_at"]);
    assert!(p.column("checksum_int").unwrap().roles.hash_key);
    let delta = p.strategy("delta").unwrap();
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "updated_at");
    assert_eq!(cuts(&delta.primary_partitions), ["updated_at range 2hour at -"]);
    assert!(*delta.primary_partitions[0].bounded);
    // The virtual column says what stands for the source's order_date at the destination.
    assert_eq!(
        cuts(&delta.delta_partitions),
        ["user_id value - at user_id", "order_date range 1day at date"]
    );
    assert_eq!(stages(p), [("dedup", "dedup"), ("data_batcher", "batch")]);
    assert!(p.transform[0].applies_to(delta));
    assert!(!p.transform[0].applies_to(&Strategy::new(StrategyKind::Hash)));
    let keys: Vec<&str> = p.not_yet.iter().map(|n| n.key.as_str()).collect();
    assert_eq!(keys, ["strategies[0].use_pagination", "page_size", "cron"]);
}

/// Stages that take no columns may repeat those of their backends, as the original's files do: it is told, and changes
/// nothing.
#[test]
fn columns_that_a_stage_repeats_are_told() {
    let bare = "    source:\n      name: source_backend\n    destination:\n      name: destination_backend\n";
    let listed = "    source: {name: source_backend, columns: [{name: user_id}, {name: order_date, data_type: datetime}]}\n\
                  \x20   destination: {name: destination_backend, columns: [{name: user_id, unique_column: true}, \
                  {name: order_date, expr: date}]}\n";
    let text = aggregate_text();
    let (plain, told) = (good(&text), good(&text.replacen(bare, listed, 1)));
    let keys = |p: &Pipeline| -> Vec<String> { p.not_yet.iter().map(|n| n.key.clone()).collect() };
    let columns: Vec<String> = keys(&told).into_iter().filter(|k| k.ends_with("columns")).collect();
    assert_eq!(columns, ["stages[0].source.columns", "stages[0].destination.columns"]);
    assert_eq!(keys(&told).len(), keys(&plain).len() + 2);
    assert_eq!(meaning(&told), meaning(&plain));
}

#[test]
fn the_nested_partitions_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/nested_aggregates.yaml")).unwrap();
    let text = aggregate_text();
    let (before, rest) = text.split_once("strategies:").unwrap();
    let (_, after) = rest.split_once("backends:").unwrap();
    // The stage that is for deltas alone stays.
    let p = good(&format!("{before}{fragment}\nbackends:{after}"));
    let hash = p.strategy("hash").unwrap();
    assert_eq!(
        cuts(&hash.primary_partitions),
        ["order_date range 1month at date", "user_id range 50 at user_id"]
    );
    assert_eq!(
        cuts(&hash.secondary_partitions),
        ["order_date range 1day at date", "user_id range 5 at user_id"]
    );
}

#[test]
fn column_level_detection_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/column_level.yaml")).unwrap();
    let ends = "- name: \"source_backend\"\n    datastore_name: source_db\n    table: users";
    let p = good(&format!(
        "{}  - name: destination_backend\n    datastore_name: dest_db\n    table: users_copy\n    columns:\n\
         {}      - {{name: checksum, data_type: varchar, hash_key: true}}\n\
         strategies: [{{name: hash, type: hash}}]\n",
        fragment.replace("- name: \"source_backend\"", ends),
        ["user_id", "name", "email", "last_login"]
            .map(|c| format!("      - name: {c}\n"))
            .concat(),
    ));
    let hashed: Vec<_> = p.listed().iter().map(|c| (c.name.as_str(), c.hashed)).collect();
    assert_eq!(
        hashed,
        [
            ("user_id", Some(true)),
            ("name", Some(true)),
            ("email", Some(true)),
            ("last_login", Some(false)),
            ("checksum", None)
        ]
    );
    let checksum = p.column("checksum").unwrap();
    assert!(checksum.roles.hash_key && checksum.is_written() && !checksum.is_read());
    // Without a column at the destination it is computed and stored nowhere.
    let bare = good(&format!(
        "{}  - {{name: destination_backend, datastore_name: dest_db, table: users_copy}}\nstrategies: [{{type: hash}}]\n",
        fragment.replace("- name: \"source_backend\"", ends),
    ));
    let checksum = bare.column("checksum").unwrap();
    assert!(checksum.roles.hash_key && checksum.is_virtual && !checksum.is_written());
}

#[test]
fn the_audit_columns_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/audit_columns.yaml")).unwrap();
    let ends = "source: {datastore: source_db, table: products}\ndestination: {datastore: dest_db, table: products}\n";
    let p = good(&format!("{ends}{fragment}"));
    let tracked: Vec<&str> = p
        .listed()
        .iter()
        .filter(|c| c.hashed == Some(true))
        .map(|c| c.dest.as_str())
        .collect();
    assert_eq!(tracked, ["product_id", "name", "price", "category"]);
    assert_eq!(p.listed().iter().filter(|c| c.hashed == Some(false)).count(), 4);
}

#[test]
fn the_hash_algorithms_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/hash_algorithms.yaml")).unwrap();
    let ends = "source: {datastore: source_db, table: users}\ndestination: {datastore: dest_db, table: users}\n";
    let p = good(&format!("{ends}{fragment}"));
    assert_eq!(
        p.hash_algo_of(p.strategy("hash_sync").unwrap()),
        Some(HashAlgorithm::Md5SumHash)
    );
}

#[test]
fn the_resume_options_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/resume_options.yaml")).unwrap();
    let ends = "source: {datastore: source_db, table: users}\ndestination: {datastore: dest_db, table: users}\n";
    let p = good(&format!("{ends}{fragment}"));
    let delta = p.strategy("delta_sync").unwrap();
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "updated_at");
    assert_eq!(cuts(&delta.primary_partitions), ["updated_at range 7200 at -"]);
    assert_eq!(cuts(&delta.secondary_partitions), ["id range 10000 at -"]);
}

#[test]
fn the_memory_options_of_the_brief() {
    let fragment = std::fs::read_to_string(Path::new(BRIEF).join("fragments/memory_issues.yaml")).unwrap();
    let ends = "source: {datastore: source_db, table: users}\ndestination: {datastore: dest_db, table: users}\n";
    let of_strategy: String = fragment.lines().map(|line| format!("    {line}\n")).collect();
    for text in [
        format!("{ends}{fragment}strategies: [{{name: s, type: full}}]\n"),
        format!("{ends}strategies:\n  - name: s\n    type: full\n{of_strategy}"),
    ] {
        let p = good(&text);
        assert_eq!(p.strategies[0].page_size.as_deref(), Some(&500));
        let StageWork::Batch(size) = &p.transform[0].work else {
            panic!("{:?}", p.transform)
        };
        assert_eq!(**size, 500);
        assert!(p.transform[0].applies_to(&p.strategies[0]));
        let keys: Vec<&str> = p.not_yet.iter().map(|n| n.key.rsplit('.').next().unwrap()).collect();
        assert_eq!(keys, ["max_concurrent_batches", "use_pagination", "page_size"]);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The examples

fn examples() -> Vec<PathBuf> {
    let mut all = Vec::new();
    for folder in [EXAMPLES.to_owned(), format!("{EXAMPLES}/pipelines")] {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name.ends_with(".yaml") && name != "datastores.yaml" {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

#[test]
fn every_example_loads_and_keeps_to_the_schema() {
    let validator = jsonschema::validator_for(&schema(SchemaOf::Pipeline)).unwrap();
    let mut names: Vec<String> = Vec::new();
    for file in examples() {
        let loaded = loader().pipeline(&file).unwrap_or_else(|errors| panic!("{errors}"));
        names.push(loaded.pipeline.name.to_string());
        let text = std::fs::read_to_string(&file).unwrap();
        let json: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let errors: Vec<String> = validator
            .iter_errors(&json)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
    }
    assert!(names.len() >= 12, "{names:?}");
}

/// What is shown, and what is migrated, means the same as the file, for every generation.
#[test]
fn shown_and_migrated_pipelines_are_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut files: Vec<(PathBuf, Option<PathBuf>)> = examples().into_iter().map(|file| (file, None)).collect();
    for name in [
        "my_first_pipeline",
        "advanced_sync_pipeline",
        "users_row_sync",
        "user_daily_orders_aggregate",
    ] {
        files.push((Path::new(BRIEF).join(format!("{name}.yaml")), Some(STORES.into())));
    }
    for name in ["everything", "second_dialect", "value_map", "one_file"] {
        files.push((
            Path::new("tests/config/good").join(format!("{name}.yaml")),
            Some("tests/config/good/datastores.yaml".into()),
        ));
    }
    for (file, stores) in files {
        let name = file.display().to_string();
        // A secret that becomes a variable is set; so are those of the fixtures.
        let loader = Loader::new()
            .env(|name| {
                ["_PASSWORD", "_USER"]
                    .iter()
                    .any(|end| name.ends_with(end))
                    .then(|| "x".to_owned())
            })
            .folder(BRIEF);
        let named = stores.or_else(|| Some(format!("{EXAMPLES}/datastores.yaml").into()));
        let loader = loader.datastores(named.clone());
        let before = loader.pipeline(&file).unwrap_or_else(|errors| panic!("{errors}"));
        let shown = folder.path().join("shown.yaml");
        std::fs::write(&shown, before.to_yaml()).unwrap();
        let migrated = folder.path().join("migrated.yaml");
        let new = loader.migrate(&file, false).unwrap_or_else(|errors| panic!("{errors}"));
        std::fs::write(&migrated, &new.yaml).unwrap();
        for again in [shown, migrated] {
            let text = std::fs::read_to_string(&again).unwrap();
            let after = loader
                .pipeline(&again)
                .unwrap_or_else(|errors| panic!("{name}: {errors}\n{text}"));
            assert_eq!(meaning(&after.pipeline), meaning(&before.pipeline), "{name}\n{text}");
            assert_eq!(
                after.pipeline.semantics(),
                before.pipeline.semantics(),
                "{name}\n{text}"
            );
        }
        // What was migrated is in the current form, and migrating it again changes nothing but its heading.
        let twice = loader.migrate(&folder.path().join("migrated.yaml"), false).unwrap();
        assert!(twice.is_current);
        let body = |text: &str| {
            text.lines()
                .filter(|l| !l.starts_with('#'))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        };
        assert_eq!(body(&twice.yaml), body(&new.yaml), "{name}");
    }
}

#[test]
fn a_migrated_file_keeps_variables_and_tells_what_moved() {
    let new = loader()
        .migrate(&Path::new(EXAMPLES).join("postgres_to_s3_delta_sync.yaml"), false)
        .unwrap();
    for line in [
        "# Written by `synctool config migrate` from postgres_to_s3_delta_sync.yaml, which was in the oldest generation (sync_job).",
        "#   sync_job.partition -> partitioning",
        "      host: ${SOURCE_HOST:localhost}",
        "      password: ${SOURCE_PASSWORD:postgres}",
        "    type: s3",
        "      s3_bucket: ${S3_BUCKET:my-data-bucket}",
    ] {
        let quoted = line.replacen("${", "\"${", 1) + "\"";
        assert!(
            new.yaml.lines().any(|l| l == line || l == quoted),
            "{line}\nis not in\n{}",
            new.yaml
        );
    }
    assert!(new.variables.is_empty(), "{:?}", new.variables);
}

#[test]
fn a_secret_that_is_written_out_is_not_printed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(
        &file,
        "source: {datastore: a, table: t}\ndestination: {datastore: b, table: u}\ndatastores:\n  \
         a: {type: postgres, connection: {host: h, port: 5433, user: u, password: hunter2, dbname: d}}\n  \
         b: {type: sqlite, path: \"b 1.db\"}\n",
    )
    .unwrap();
    let printed = loader().migrate(&file, false).unwrap();
    assert!(!printed.yaml.contains("hunter2"), "{}", printed.yaml);
    assert_eq!(printed.variables, ["A_PASSWORD"]);
    assert!(
        printed.yaml.contains("password: ${A_PASSWORD}") && printed.yaml.contains("port: 5433"),
        "{}",
        printed.yaml
    );
    // In place nothing is lost.
    let kept = loader().migrate(&file, true).unwrap();
    assert!(kept.yaml.contains("password: hunter2"), "{}", kept.yaml);
    std::fs::write(&file, &kept.yaml).unwrap();
    assert!(loader().pipeline(&file).is_ok());
}

#[test]
fn the_second_generation_with_joins_on_the_way() {
    let p = example("pipelines/postgres_postgres_join.yaml").pipeline;
    assert_eq!(key(&p), ["order_id"]);
    assert_eq!(
        columns(&p),
        [
            ("order_id", "id", Some("order_id")),
            ("order_date", "order_date", Some("order_date")),
            ("user_id", "user_id", Some("user_id")),
            ("product_id", "product_id", Some("product_id")),
            ("amount", "amount", Some("amount")),
            ("updated_at", "updated_at", Some("updated_at")),
            ("user_name", "-", Some("user_name")),
            ("product_name", "-", Some("product_name")),
            ("list_price", "-", Some("list_price")),
            ("order_hash", "-", Some("order_hash")),
            ("user_hash", "-", Some("user_hash")),
            ("first_name", "-", None),
            ("last_name", "-", None),
        ]
    );
    // The hash of a joined table is a column like another; the pipeline's own is the one.
    let hash_keys: Vec<&str> = p
        .listed()
        .iter()
        .filter(|c| c.roles.hash_key)
        .map(|c| c.dest.as_str())
        .collect();
    assert_eq!(hash_keys, ["order_hash"]);
    assert_eq!(
        (p.column("amount").unwrap().precision, p.column("amount").unwrap().scale),
        (Some(15), Some(2))
    );
    let user = enrich(&p, "join_user");
    assert_eq!((user.on[0].column.as_str(), user.on[0].key.as_str()), ("user_id", "id"));
    let fields: Vec<_> = user
        .fields
        .iter()
        .map(|f| (f.dest.as_str(), f.source.clone()))
        .collect();
    assert_eq!(
        fields,
        [
            ("first_name", FieldSource::Source("first_name".into())),
            ("last_name", FieldSource::Source("last_name".into())),
            ("user_hash", FieldSource::Hash(true)),
        ]
    );
    assert_eq!(
        (*user.cache.store, user.cache.ttl.as_deref()),
        (CacheStore::Redis, Some(&Span::seconds(60)))
    );
    assert_eq!(*enrich(&p, "join_product").join, EnrichJoin::Inner);
    let price = enrich(&p, "join_price");
    let as_of = price.as_of.as_ref().unwrap();
    assert_eq!(*price.join, EnrichJoin::AsOf);
    assert_eq!(
        (
            as_of.column.as_str(),
            as_of.valid_from.as_str(),
            as_of.valid_to.as_ref().unwrap().as_str()
        ),
        ("order_date", "starts_at", "ends_at")
    );
    assert_eq!(price.fields.len(), 1);
    let Filter::Compare(filter) = &*p.source.filters[0] else {
        panic!()
    };
    assert_eq!(
        (filter.column.as_str(), &*filter.value),
        ("deleted", &serde_json::json!(false))
    );
}

/// A backend that is joined on the way is of its datastore's type, as the ends are.
#[test]
fn a_joined_backend_of_another_type_is_told() {
    let file = Path::new(EXAMPLES).join("pipelines/postgres_postgres_join.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let of = |ty: &str| {
        text.replace(
            "- name: user_backend\n",
            &format!("- name: user_backend\n    type: {ty}\n"),
        )
    };
    assert_ne!(of("postgres"), text);
    good(&of("postgres"));
    let told = from_text(&of("mysql")).unwrap_err().to_string();
    let wanted = "type is \"mysql\" here, and datastore \"local_postgres\" is of type postgres";
    assert!(told.contains(wanted), "{told}");
}

#[test]
fn names_at_both_ends_and_on_the_way() {
    let p = example("pipelines/postgres_postgres.yaml").pipeline;
    let updated = p.column("updated_at").unwrap();
    assert_eq!(
        (
            updated.name.as_str(),
            updated.source.as_ref().unwrap().as_str(),
            updated.dest.as_str()
        ),
        ("updated_at", "u.updated_at", "source_updated_at")
    );
    let delta = p.strategy("delta").unwrap();
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "u.updated_at");
    assert_eq!(
        cuts(&delta.secondary_partitions),
        ["u.updated_at range 1800 at source_updated_at"]
    );
    assert_eq!(p.column("first_name").map(ColumnMapping::is_written), Some(false));
    let uuid = example("uuid_virtual_example.yaml").pipeline;
    assert_eq!(key(&uuid), ["id"]);
    let quantity = uuid.column("quantity").unwrap();
    assert_eq!((quantity.precision, quantity.scale), (Some(12), Some(3)));
    assert!(uuid.column("order_hash").unwrap().is_virtual);
    let hash_keys = uuid.listed().iter().filter(|c| c.roles.hash_key).count();
    assert_eq!(hash_keys, 1);
    let sum = example("pipelines/postgres_postgres_md5sum.yaml").pipeline;
    assert_eq!(
        sum.column("name").unwrap().expr.as_ref().unwrap().as_str(),
        "u.first_name || ' ' || u.last_name"
    );
}

#[test]
fn an_aggregate_under_the_name_of_its_column() {
    let p = example("pipelines/postgres_postgres_aggregate_bounded.yaml").pipeline;
    let updated = p.column("updated_at").unwrap();
    assert_eq!(
        (updated.expr.as_ref().unwrap().as_str(), updated.dest.as_str()),
        ("max(updated_at)", "last_updated_at")
    );
    // The delta goes by the rows' own column, of which the destination has none.
    let delta = p.strategy("delta").unwrap();
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "updated_at");
    assert_eq!(cuts(&delta.primary_partitions), ["updated_at range 1month at -"]);
    let full = p.strategy("full_till_date").unwrap();
    assert_eq!(
        full.primary_partitions[0].end.as_deref(),
        Some(&Bound::Value("2025-09-01".into()))
    );
    assert!(!*p.strategy("hash").unwrap().match_row_count);
}

#[test]
fn the_oldest_generation() {
    let loaded = example("postgres_to_s3_delta_sync.yaml");
    let p = &loaded.pipeline;
    assert_eq!(
        (p.source.table.as_str(), p.source.alias.as_ref().unwrap().as_str()),
        ("users", "u")
    );
    assert_eq!(
        (
            p.source.joins[0].table.as_str(),
            p.source.joins[0].alias.as_ref().unwrap().as_str()
        ),
        ("user_profiles", "p")
    );
    assert_eq!(
        (p.destination.table.as_str(), *p.destination.supports_update),
        ("users.parquet", false)
    );
    assert_eq!(key(p), ["user_id"]);
    assert_eq!(p.partitioning.column.as_ref().unwrap().as_str(), "u.updated_at");
    let delta = p.strategy("delta").unwrap();
    assert_eq!(
        cuts(&delta.primary_partitions),
        ["u.updated_at range 3600 at last_modified_at"]
    );
    assert_eq!(
        cuts(&delta.secondary_partitions),
        ["u.updated_at range 600 at last_modified_at"]
    );
    assert_eq!(stages(p), [("user_profile", "enrich"), ("compute", "compute")]);
    let StageWork::Compute(computed) = &p.transform[1].work else {
        panic!()
    };
    // It is over the value of one column, and not over the row.
    assert_eq!(computed[0].column.as_ref().unwrap().as_str(), "user_age");
    let Connection::Postgres(source) = &loaded.source().unwrap().connection else {
        panic!()
    };
    assert_eq!(source.database.as_str(), "source_database");
    // Valid, and not to be run.
    let refused = loaded.destination().unwrap_err().to_string();
    assert!(
        refused.contains("datastore \"destination\" is of type s3, which is not in this version yet"),
        "{refused}"
    );
    let notices: Vec<String> = loaded.notices().map(|n| n.message.clone()).collect();
    assert!(
        notices
            .iter()
            .any(|n| n.contains("is of type s3") && n.contains("cannot run")),
        "{notices:?}"
    );

    // A folder of this machine in place of a bucket.
    let text = std::fs::read_to_string(Path::new(EXAMPLES).join("postgres_to_s3_hash_sync.yaml")).unwrap();
    let (before, rest) = text.split_once("      s3_bucket: ${S3_BUCKET").unwrap();
    let (_, after) = rest.split_once("region: us-east-1\n").unwrap();
    let files = from_text(&format!("{before}      path: lake\n{after}")).unwrap_or_else(|errors| panic!("{errors}"));
    let Connection::Parquet { path } = &files.destination().unwrap().connection else {
        panic!()
    };
    assert!(path.ends_with("lake"));
    assert_eq!(*files.pipeline.strategies[0].kind, StrategyKind::Hash);
}

#[test]
fn the_first_generation_in_both_dialects() {
    let p = example("pipeline_example.yaml").pipeline;
    assert_eq!(
        stages(&p),
        [
            ("cast", "cast"),
            ("value_map", "value_map"),
            ("user_profile", "enrich"),
            ("batch", "batch")
        ]
    );
    let (full, hash) = (
        p.strategy("full_pipeline").unwrap(),
        p.strategy("hash_pipeline").unwrap(),
    );
    let passed = |s: &Strategy| p.transform.iter().filter(|stage| stage.applies_to(s)).count();
    assert_eq!((passed(full), passed(hash)), (4, 1));
    assert_eq!(cuts(&full.secondary_partitions), ["id range 100 at user_id"]);
    let second = example("scheduled_postgres_sync.yaml").pipeline;
    assert_eq!(second.partitioning.column.as_ref().unwrap().as_str(), "u.id");
    let checksum = second.column("checksum").unwrap();
    assert!(checksum.roles.hash_key && checksum.is_written() && !checksum.is_read());
    assert_eq!(second.column("first_name").map(ColumnMapping::is_written), Some(false));
    assert_eq!(
        second.strategy("delta").unwrap().column.as_ref().unwrap().as_str(),
        "u.updated_at"
    );
}

#[test]
fn the_current_form_says_it_all() {
    let p = example("enhanced_pipeline_example.yaml").pipeline;
    let told: Vec<&str> = p.not_yet.iter().map(|n| n.key.as_str()).collect();
    let wanted = [
        "order_column",
        "page_size",
        "max_consecutive_failures",
        "deletes",
        "cron",
    ];
    assert_eq!(told, wanted);
    let delta = p.strategy("incremental").unwrap();
    assert_eq!(delta.stamped_by.as_deref(), Some(&StampedBy::App));
    assert_eq!(delta.lag.as_deref(), Some(&Span::seconds(300)));
    let Some(Deletes::Tombstone(tombstone)) = delta.deletes.as_deref() else {
        panic!()
    };
    assert_eq!(tombstone.column.as_str(), "o.deleted_at");
    assert_eq!(delta.verify.as_deref(), Some(&Verify::AfterRun));
    assert_eq!(
        delta.primary_partitions[0].start.as_deref(),
        Some(&Bound::Moment {
            midnight: false,
            seconds: -30 * 86_400
        })
    );
    assert_eq!(delta.cursor_tables[0].table.as_str(), "c");
    let nightly = p.strategy("nightly").unwrap();
    assert_eq!(
        nightly.scheduling.pipeline_lock_wait_timeout.as_deref(),
        Some(&Span::seconds(300))
    );
    assert_eq!(nightly.scheduling.retry_backoff_multiplier.as_deref(), Some(&2.0));
    assert_eq!(nightly.max_concurrent_partitions.as_deref(), Some(&8));
    assert_eq!(
        p.strategy("weekly").unwrap().deletes.as_deref(),
        Some(&Deletes::AntiJoin)
    );
    assert_eq!(
        (p.schema_drift.as_deref(), *p.write.reject_limit),
        (Some(&SchemaDrift::Evolve), 10)
    );
    assert_eq!(p.transform[2].applicable_on, ["delta".into()]);
    let yaml = example("enhanced_pipeline_example.yaml").to_yaml();
    for line in [
        "  reject_limit: 10  # ../../examples/configs/enhanced_pipeline_example.yaml",
        "    stamped_by: app  # ../../examples/configs/enhanced_pipeline_example.yaml",
        "    match_row_count: true  # default",
    ] {
        assert!(yaml.lines().any(|l| l.starts_with(line)), "{line}\nis not in\n{yaml}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What must not change while a run is unfinished

#[test]
fn what_a_run_depends_on() {
    let base = "source: {datastore: source_db, table: t, alias: a, joins: [{table: j, on: a.x = j.x}], filters: [x > 1]}\n\
                destination: {datastore: dest_db, table: t}\n\
                columns: [{source: a.id, roles: [unique]}, {name: day, expr: date(at)}, {source: at, hash_column: true}]\n\
                transform: [{dedup: [id]}, {batch: 10}]\n\
                strategies: [{name: d, type: delta, column: at, primary_partitions: [{column: at, step: 10}], page_size: 5, \
                deletes: none, stamped_by: app, lag: 5m}]\n";
    let was = good(base).semantics_of("d");
    for (from, to) in [
        ("page_size: 5", "page_size: 7"),
        ("step: 10", "step: 20"),
        ("lag: 5m", "lag: 6m"),
        ("batch: 10", "batch: 20"),
        (
            "strategies:",
            "max_concurrent_partitions: 3\ndescription: other\nschema_drift: pause\nwrite: {reject_limit: 5}\nstrategies:",
        ),
        (
            "page_size: 5",
            "cron: 0 * * * *, enabled: false, verify: after_run, max_consecutive_failures: 9",
        ),
    ] {
        let text = base.replace(from, to);
        assert_ne!(text, base, "{from}");
        assert_eq!(
            semantic_difference(&was, &good(&text).semantics_of("d")),
            Vec::<String>::new(),
            "{to}"
        );
    }
    for (from, to, path) in [
        ("date(at)", "date(at) + 1", "columns.day.expr"),
        ("hash_column: true", "hash_column: false", "columns.at.hashed"),
        ("x > 1", "x > 2", "source.filters"),
        ("a.x = j.x", "a.y = j.y", "source.joins"),
        ("dedup: [id]", "dedup: [at]", "transform"),
        ("column: at, primary", "column: id, primary", "strategies.d.column"),
        ("step: 10}", "step: 10, start: 5}", "strategies.d.primary_partitions"),
        ("deletes: none", "deletes: anti_join", "strategies.d.deletes"),
        (
            "stamped_by: app, lag: 5m",
            "stamped_by: database",
            "strategies.d.stamped_by",
        ),
        ("roles: [unique]}", "dest: key}", "key"),
    ] {
        let text = base.replace(from, to);
        assert_ne!(text, base, "{from}");
        let differs = semantic_difference(&was, &good(&text).semantics_of("d"));
        assert!(differs.iter().any(|d| d == path), "{to}: {differs:?}");
    }
    let aggregate = brief("user_daily_orders_aggregate.yaml").pipeline.semantics_of("delta");
    let other =
        good(&aggregate_text().replace("group_by: [\"user_id\", \"date\"]", "group_by: [\"date\", \"user_id\"]"));
    assert_eq!(
        semantic_difference(&aggregate, &other.semantics_of("delta")),
        ["group_by"]
    );
}
