//! The configuration loader against files: good ones, every kind of mistake, and noise.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use synctool::config::*;

/// The password of every fixture; it must come out nowhere.
const SENTINEL: &str = "hunter2";

// Tests run in the crate's folder, so that messages hold paths that are the same everywhere.
const GOOD: &str = "tests/config/good";
const BRIEF: &str = "tests/config/brief";

fn env(name: &str) -> Option<String> {
    match name {
        "SHOP_USER" => Some("reader".into()),
        "SHOP_PORT" => Some("7000".into()),
        "WORDS" => Some("many".into()),
        _ => None,
    }
}

fn loader() -> Loader {
    Loader::new().env(env).folder(GOOD)
}

fn good(file: &str) -> Loaded {
    loader()
        .pipeline(&Path::new(GOOD).join(file))
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn brief(file: &str) -> Result<Loaded, ConfigErrors> {
    loader()
        .datastores(Some("tests/config/stores/brief.yaml".into()))
        .pipeline(&Path::new(BRIEF).join(file))
}

/// A pipeline from text, in a folder of its own.
fn from_text(text: &str) -> Result<Loaded, ConfigErrors> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    std::fs::write(&file, text).unwrap();
    loader().folder(folder.path()).pipeline(&file)
}

fn files(folder: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "yaml"))
        .collect();
    files.sort();
    files
}

// ---------------------------------------------------------------------------------------------------------------------
// Good files

#[test]
fn quick_start_of_the_brief_as_printed() {
    let loaded = brief("my_first_pipeline.yaml").unwrap();
    let p = &loaded.pipeline;
    assert_eq!(p.name.as_str(), "users_sync");
    assert_eq!(
        (p.source.datastore.as_str(), p.source.table.as_str()),
        ("source_db", "users")
    );
    let users = TableRef {
        schema: Some("public".into()),
        name: "users".into(),
    };
    assert_eq!(p.source.table_ref(loaded.source().unwrap()).unwrap(), users);
    let Columns::Listed(columns) = &p.columns else {
        panic!("{:?}", p.columns)
    };
    let types: Vec<_> = columns
        .iter()
        .map(|c| (c.dest.as_str(), c.data_type.as_deref().copied()))
        .collect();
    assert_eq!(
        types,
        [
            ("id", Some(DataType::Integer)),
            ("name", Some(DataType::Text)),
            ("email", Some(DataType::Text)),
            ("updated_at", Some(DataType::Timestamp)),
        ]
    );
    assert_eq!(p.key, ["id".into()]);
    assert_eq!(p.partitioning.column.as_ref().unwrap().as_str(), "id");
    assert_eq!(p.partitioning.step.as_deref(), Some(&10_000));
    let delta = p.strategy("delta").unwrap();
    assert_eq!(
        (delta.name.as_str(), *delta.kind),
        ("hourly_delta", StrategyKind::Delta)
    );
    assert_eq!(delta.column.as_ref().unwrap().as_str(), "updated_at");
    assert_eq!(delta.cron.as_ref().unwrap().as_str(), "0 * * * *");
    assert_eq!(delta.page_size.as_deref(), Some(&1000));
    let told: Vec<&str> = p.not_yet.iter().map(|n| n.key.as_str()).collect();
    assert_eq!(told, ["page_size", "cron"], "what has no effect is told");
    let Connection::Postgres(source) = &loaded.source().unwrap().connection else {
        panic!()
    };
    assert_eq!(
        (source.host.as_str(), *source.port, source.database.as_str()),
        ("localhost", 5432, "source_database")
    );
    assert_eq!(source.password.as_ref().unwrap().reveal(), "your_password");
}

/// The page that leads through the files: each of its blocks is a file that is read, without a key that has no effect.
#[test]
fn the_page_of_configuration_is_read_as_it_stands() {
    let page = std::fs::read_to_string("../../docs/configuration.md").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut names = Vec::new();
    for block in page.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        let name = text.lines().next().unwrap().trim_start_matches("# ");
        std::fs::write(folder.path().join(name), text).unwrap();
        names.push(name);
    }
    assert_eq!(
        names,
        [
            "datastores.yaml",
            "orders.yaml",
            "totals.yaml",
            "people.yaml",
            "synctool.yaml"
        ]
    );
    let loader = || Loader::new().env(|_| Some("x".into())).folder(GOOD);
    for name in &names[1..4] {
        let loaded = loader().pipeline(&folder.path().join(name));
        let loaded = loaded.unwrap_or_else(|errors| panic!("{errors}"));
        let told: Vec<String> = loaded.notices().map(ToString::to_string).collect();
        assert!(told.is_empty(), "{told:?}");
    }
    let global = loader()
        .global_config(Some(folder.path().join("synctool.yaml")))
        .global();
    let global = global.unwrap_or_else(|errors| panic!("{errors}"));
    assert!(global.not_yet.is_empty(), "{:?}", global.not_yet);
}

/// Keys that are understood and change nothing are told at their place.
#[test]
fn what_has_no_effect_is_told() {
    let told = |text: &str| -> Vec<String> {
        let loaded = from_text(text).unwrap();
        loaded.pipeline.not_yet.iter().map(ToString::to_string).collect()
    };
    let ends = "name: p\nsource: {datastore: a, table: t}\ndestination: {datastore: b, table: u}\n\
                datastores: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}\n";
    let groups = |delta: &str| {
        told(&format!(
            "{ends}sync_type: aggregate\ngroup_by: [user, day]\ncolumns: [{{source: user_id, dest: user}}, {{dest: day, expr: \"date(t.at)\"}}, {{dest: n, expr: count(*)}}]\n\
             strategies:\n  - {{name: d, type: delta, column: at, delta_partitions: [{delta}]}}\n"
        ))
    };
    assert_eq!(
        groups("{column: user, step: -1}, {column: at, step: 1, step_unit: day}"),
        [""; 0]
    );
    let other = groups("{column: region, step: -1}");
    assert!(
        matches!(&other[..], [one] if one.contains(":9:") && one.contains("this entry of delta_partitions has no effect")),
        "{other:?}"
    );
    let bounded = groups("{column: user, start: 10}");
    assert!(
        matches!(&bounded[..], [one] if one.contains("start, end and values of delta_partitions")),
        "{bounded:?}"
    );

    let kept = |pipeline: &str, first: &str, second: &str| {
        told(&format!(
            "{ends}key: [id]\ncolumns: [id, v, {{source: null, dest: sum, hash_key: true}}]\n{pipeline}\
             strategies: [{{name: x, type: hash{first}}}, {{name: y, type: hash{second}}}]\n"
        ))
    };
    assert_eq!(
        kept("hash_algo: md5_sum_hash\n", ", hash_algo: md5_sum_hash", ""),
        [""; 0]
    );
    for (pipeline, first, kept_as) in [
        ("hash_algo: md5_sum_hash\n", "", "md5_sum_hash"),
        ("", ", hash_algo: md5_sum_hash", "md5_sum_hash"),
    ] {
        let told = kept(pipeline, first, ", hash_algo: hash_md5_hash");
        let wanted = |one: &String| one.contains("hash_algo of strategy \"y\" has no effect") && one.ends_with(kept_as);
        assert!(matches!(&told[..], [one] if wanted(one)), "{told:?}");
    }

    let of = |strategy: &str| told(&format!("{ends}strategies: [{{{strategy}}}]\n"));
    for silent in [
        "type: hash, match_row_count: true, prevent_update_unless_changed: true",
        "type: full, wait_for_pipeline_lock: true, pipeline_lock_wait_timeout: 5m",
        "type: full, retry_backoff_multiplier: 3, initial_retry_delay: 2s",
        "type: delta, column: at, deletes: anti_join",
        "type: full, deletes: none",
    ] {
        assert_eq!(of(silent), [""; 0], "{silent}");
    }
    for (strategy, key) in [
        ("type: hash, match_row_count: false", "match_row_count"),
        (
            "type: hash, prevent_update_unless_changed: false",
            "prevent_update_unless_changed",
        ),
        ("type: full, match_row_count: true", "match_row_count"),
        ("type: full, deletes: anti_join", "deletes: anti_join"),
        ("type: hash, deletes: anti_join", "deletes: anti_join"),
        ("type: full, wait_for_table_lock: true", "wait_for_table_lock"),
        ("type: full, table_lock_wait_timeout: 30s", "table_lock_wait_timeout"),
        (
            "type: full, pipeline_lock_wait_timeout: 30s",
            "pipeline_lock_wait_timeout",
        ),
        ("type: full, max_retry_on_lock_failure: 3", "max_retry_on_lock_failure"),
        ("type: full, max_consecutive_failures: 3", "max_consecutive_failures"),
        ("type: full, page_size: 3", "page_size"),
        ("type: full, cron: 0 * * * *", "cron"),
        ("type: full, cron: 0 * * * *}, {type: hash, cron: 5 * * * *", "cron"),
    ] {
        let told = of(strategy);
        let wanted = |one: &String| one.contains(":5:") && one.contains(&format!(" {key} has no effect"));
        assert!(matches!(&told[..], [one] if wanted(one)), "{strategy}: {told:?}");
    }
}

/// The keys that the brief prints for datastores are known to all servers; what changes nothing is told by every command.
#[test]
fn keys_of_datastores_are_those_of_the_brief() {
    let datastores = |keys: &str, more: &str| {
        from_text(&format!(
            "name: p\nsource: {{datastore: a, table: t}}\ndestination: {{datastore: b, table: u}}\ndatastores:\n  \
             a: {{type: mysql{more}, connection: {{host: h, user: u, password: p{keys}}}}}\n  \
             b: {{type: postgres{more}, connection: {{host: h, user: u, dbname: d}}}}\n"
        ))
    };
    for keys in [
        ", database: shop",
        ", dbname: shop",
        ", schema: shop",
        ", dbname: shop, schema: shop",
        ", dbname: shop, min_connections: 2, max_connections: 4",
    ] {
        let loaded = datastores(keys, "").unwrap();
        let Connection::Mysql(mysql) = &loaded.source().unwrap().connection else {
            panic!()
        };
        assert_eq!(mysql.database.as_str(), "shop", "{keys}");
        let told: Vec<String> = loaded.notices().map(|n| n.key.clone()).collect();
        let wanted = if keys.contains("min") {
            vec!["datastores.a.connection.min_connections"]
        } else {
            vec![]
        };
        assert_eq!(told, wanted, "{keys}");
    }
    let loaded = datastores(
        ", dbname: shop",
        ", additional_capabilities: [cdc], disabled_capabilities: [x]",
    )
    .unwrap();
    let told: Vec<String> = loaded.notices().map(ToString::to_string).collect();
    assert_eq!(told.len(), 4, "{told:?}");
    assert!(
        told.iter()
            .all(|t| t.contains("capabilities") && t.contains("has no effect")),
        "{told:?}"
    );
    let errors = datastores(", dbname: shop, schema: other", "").unwrap_err().to_string();
    assert!(
        errors.contains("database, dbname and schema are the same key"),
        "{errors}"
    );
    let errors = datastores("", "").unwrap_err().to_string();
    assert!(errors.contains("missing key \"database\""), "{errors}");

    let file = "name: p\nsource: {datastore: a, table: t}\ndestination: {datastore: a, table: u}\n\
                datastores: {a: {type: postgres, connection: {host: h, user: u, dbname: d, min_connections: 2}}}\n";
    let loaded = from_text(file).unwrap();
    let told: Vec<String> = loaded.notices().map(|n| n.message.clone()).collect();
    assert_eq!(
        told,
        ["datastores.a.connection.min_connections has no effect in this version yet"]
    );
}

/// Rows are read in an order of the program's; who asks for another one is told, once, however he says it.
#[test]
fn an_order_of_rows_is_told_to_have_no_effect() {
    for column in [
        "{source: id, order_column: true}",
        "{source: id, roles: [order]}",
        "{source: id, roles: [order_column], direction: desc}",
        "{source: id, direction: desc}",
    ] {
        let loaded = from_text(&format!(
            "name: p\nsource: {{datastore: a, table: t}}\ndestination: {{datastore: b, table: u}}\n\
             datastores: {{a: {{type: sqlite, path: a.db}}, b: {{type: sqlite, path: b.db}}}}\n\
             columns: [{column}, {{source: v, order_column: true}}]\n"
        ))
        .unwrap();
        let told: Vec<String> = loaded.notices().map(ToString::to_string).collect();
        let wanted = |one: &String| one.contains(":5:11: order_column and direction have no effect");
        assert!(matches!(&told[..], [one] if wanted(one)), "{column}: {told:?}");
    }
    let told = good("second_dialect.yaml").pipeline.not_yet;
    assert!(told.iter().any(|n| n.key == "order_column"), "{told:?}");
}

#[test]
fn complete_pipeline_of_the_brief_as_printed() {
    let p = brief("advanced_sync_pipeline.yaml").unwrap().pipeline;
    assert_eq!(p.source.alias.as_ref().unwrap().as_str(), "o");
    assert_eq!(
        (p.source.joins[0].table.as_str(), *p.source.joins[0].kind),
        ("customers", JoinKind::Left)
    );
    assert_eq!(*p.source.filters[0], Filter::Sql("o.status = 'active'".into()));
    assert_eq!(p.key, ["order_id".into()]);
    // partition_column says id; the role says which id.
    assert_eq!(p.partitioning.column.as_ref().unwrap().as_str(), "o.id");
    assert_eq!(
        p.strategy("delta").unwrap().column.as_ref().unwrap().as_str(),
        "o.updated_at"
    );
    assert_eq!(p.max_concurrent_partitions.as_deref(), Some(&4));
}

#[test]
fn the_second_dialect_of_column_map() {
    let p = good("second_dialect.yaml").pipeline;
    let Columns::Listed(columns) = &p.columns else { panic!() };
    let id = &columns[0];
    assert_eq!(
        (id.source.as_ref().unwrap().as_str(), id.dest.as_str()),
        ("id", "user_id")
    );
    assert_eq!(
        id.roles,
        Roles {
            unique: true,
            order: Some(Direction::Asc),
            ..Roles::default()
        }
    );
    assert_eq!(columns[2].source, None);
    assert_eq!(
        (columns[2].data_type.as_deref(), columns[2].length),
        (Some(&DataType::Varchar), Some(100))
    );
    assert!(columns[3].roles.hash_key && !columns[3].insert);
    assert_eq!(p.partitioning.column.as_ref().unwrap().as_str(), "id");
    assert_eq!(p.strategies[0].column.as_ref().unwrap().as_str(), "updated_at");
    let Filter::Compare(filter) = &*p.source.filters[0] else {
        panic!()
    };
    assert_eq!((filter.operator, &*filter.value), (Operator::Greater, &json!(5)));
}

#[test]
fn the_shortest_pipeline() {
    let loaded = good("users.yaml");
    assert_eq!(loaded.pipeline.columns, Columns::All);
    assert_eq!(loaded.pipeline.strategies, [Strategy::new(StrategyKind::Full)]);
    assert!(*loaded.pipeline.enabled && *loaded.pipeline.destination.supports_update);
    assert_eq!(*loaded.workers(), 2);
    let Connection::Postgres(shop) = &loaded.source().unwrap().connection else {
        panic!()
    };
    assert_eq!(
        (shop.host.as_str(), *shop.port, shop.user.as_str()),
        ("localhost", 7000, "reader")
    );
    assert_eq!(shop.password.as_ref().unwrap().reveal(), SENTINEL);
    assert_eq!(
        shop.sslrootcert.as_ref().unwrap().as_path(),
        Path::new("tests/config/good/certs/root.pem")
    );
    assert_eq!(shop.statement_timeout.as_deref(), Some(&Span::seconds(900)));
    let Connection::Postgres(warehouse) = &loaded.destination().unwrap().connection else {
        panic!()
    };
    assert_eq!(
        (*warehouse.port, *warehouse.sslmode, warehouse.schema.as_str()),
        (5433, SslMode::Require, "staging")
    );
    assert_eq!(warehouse.password.as_ref().unwrap().reveal(), SENTINEL);
}

#[test]
fn one_file_is_enough() {
    let loaded = good("one_file.yaml");
    assert_eq!(loaded.pipeline.name.as_str(), "one_file");
    assert_eq!(loaded.datastores.found_in(), None);
    let source = loaded.source().unwrap();
    assert_eq!(source.display_uri(), "csv:tests/config/good/in");
    // No schemas there: a dot is part of the name.
    let table = loaded.pipeline.source.table_ref(source).unwrap();
    assert_eq!(
        table,
        TableRef {
            schema: None,
            name: "people.csv".into()
        }
    );
}

#[test]
fn merge_keys_and_aliases() {
    let p = good("merged.yaml").pipeline;
    assert_eq!(
        (p.destination.datastore.as_str(), p.destination.table.as_str()),
        ("warehouse", "users")
    );
}

#[test]
fn files_of_datastores() {
    let datastores = loader().datastores_in(Path::new(GOOD)).unwrap();
    let names: Vec<&str> = datastores.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names, ["duck", "exports", "lake", "local", "olap", "shop", "warehouse"]);
    let get = |name: &str| datastores.get(&name.into());
    let Connection::Csv { path, options } = &get("exports").unwrap().connection else {
        panic!()
    };
    assert_eq!(path.as_path(), Path::new("tests/config/good/exports"));
    assert_eq!(
        *options,
        CsvOptions {
            delimiter: '\t',
            header: false,
            null: "\\N".into(),
            quote: '"'
        }
    );
    let Connection::DuckDb { library, .. } = &get("duck").unwrap().connection else {
        panic!()
    };
    assert_eq!(
        library.as_ref().unwrap().as_path(),
        Path::new("/opt/duckdb/libduckdb.so")
    );
    assert_eq!(
        get("olap").unwrap_err().to_string(),
        "tests/config/good/datastores.yaml:26:9: datastore \"olap\" is of type starrocks, which is not in this version yet; \
         this version opens postgres, mysql, sqlite, duckdb, csv, parquet, wal_archive"
    );
    assert_eq!(
        datastores.place("shop").unwrap(),
        "tests/config/good/datastores.yaml:3:5"
    );
}

#[test]
fn datastores_are_looked_up_in_order() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    std::fs::create_dir_all(at("configs/pipelines")).unwrap();
    let pipeline = at("configs/pipelines/p.yaml");
    std::fs::write(
        &pipeline,
        "source: {datastore: a, table: t}\ndestination: {datastore: a, table: u}\n",
    )
    .unwrap();
    let write = |path: &str, db: &str| {
        std::fs::write(at(path), format!("datastores: {{a: {{type: sqlite, path: {db}}}}}\n")).unwrap();
    };
    let load = |loader: Loader| {
        let loaded = loader.folder(root.path()).pipeline(&pipeline)?;
        let found = loaded.datastores.found_in().unwrap().clone();
        let uri = loaded.source()?.display_uri();
        Ok::<_, ConfigErrors>((
            found.path.strip_prefix(root.path()).unwrap().to_owned(),
            found.rule,
            uri,
        ))
    };
    // Nowhere.
    let error = load(loader()).unwrap_err().to_string();
    let looked = format!(
        "looked for {}, {}",
        at("configs/pipelines/datastores.yaml").display(),
        at("configs/datastores.yaml").display()
    );
    assert!(
        error.contains(&looked) && error.contains("there is no datastore \"a\""),
        "{error}"
    );
    // Above, beside, named by the global configuration, named by the command line: each outranks the ones before.
    let db = |folder: &str, file: &str| format!("sqlite:{}", at(folder).join(file).display());
    write("configs/datastores.yaml", "above.db");
    assert_eq!(
        load(loader()).unwrap(),
        (
            "configs/datastores.yaml".into(),
            "in the folder above the pipeline".into(),
            db("configs", "above.db")
        )
    );
    write("configs/pipelines/datastores.yaml", "beside.db");
    assert_eq!(
        load(loader()).unwrap(),
        (
            "configs/pipelines/datastores.yaml".into(),
            "beside the pipeline".into(),
            db("configs/pipelines", "beside.db")
        )
    );
    write("global.yaml", "global.db");
    std::fs::write(at("synctool.yaml"), "build_system: {datastores_path: global.yaml}\n").unwrap();
    let (path, rule, uri) = load(loader()).unwrap();
    assert_eq!((path, uri), ("global.yaml".into(), db("", "global.db")));
    assert_eq!(rule, format!("datastores_path of {}", at("synctool.yaml").display()));
    write("named.yaml", "named.db");
    assert_eq!(
        load(loader().datastores(Some(at("named.yaml")))).unwrap(),
        ("named.yaml".into(), "--datastores".into(), db("", "named.db"))
    );
}

#[test]
fn the_global_file_of_the_brief_and_its_defaults() {
    let global = |loader: Loader| loader.global().unwrap();
    let told = |notices: &[Notice]| -> Vec<String> { notices.iter().map(|n| n.key.clone()).collect() };
    let brief = global(loader().global_config(Some(format!("{BRIEF}/global_config.yaml").into())));
    assert_eq!(brief.redis.url.reveal(), "redis://localhost:6379");
    assert_eq!(brief.scheduler.slot_definitions["high_priority"], 5.into());
    assert_eq!((*brief.worker.max_jobs, *brief.scheduler.http_port), (4, 8001));
    assert_eq!(*brief.scheduler.check_interval, Span::seconds(60));
    assert_eq!(brief.storage.state_dir.as_path(), Path::new("./data/pipeline_states"));
    assert_eq!(
        brief.datastores_path.unwrap().as_path(),
        Path::new("./examples/configs/datastores.yaml")
    );
    assert_eq!(*brief.build_system.ddl_check_on_build, DdlCheck::Required);
    assert_eq!(told(&brief.not_yet), ["scheduler", "worker", "build_system"]);
    assert!(
        brief
            .not_yet
            .iter()
            .all(|n| n.message.contains("no effect") && n.message.ends_with("with a later version")),
        "{:?}",
        brief.not_yet
    );

    let defaults = global(loader());
    assert_eq!(
        (defaults.file, *defaults.memory, *defaults.workers),
        (None, ByteSize::mib(256), 2)
    );
    assert_eq!(
        defaults.state,
        State::Sqlite {
            path: PathBuf::from("./data/state.db").into()
        }
    );
    assert_eq!(defaults.storage.logs_dir.as_path(), Path::new("./data/logs"));

    let full = || loader().global_config(Some(format!("{GOOD}/global.yaml").into()));
    let file = global(full());
    assert_eq!(*file.memory, ByteSize(3 << 29));
    assert_eq!(file.storage.logs_dir.as_path(), Path::new("/var/log/synctool"));
    assert_eq!(
        file.storage.metrics_dir.as_path(),
        Path::new("/var/lib/synctool/metrics")
    );
    assert_eq!((*file.redis.db, *file.scheduler.check_interval), (3, Span::seconds(10)));
    assert_eq!(
        told(&file.not_yet),
        [
            "scheduler",
            "worker",
            "http",
            "log_batching",
            "config_manager",
            "build_system"
        ]
    );

    // The command line's folder outranks every place the file names.
    let moved = global(full().data_dir(Some("/tmp/d".into())));
    assert_eq!(moved.storage.logs_dir.as_path(), Path::new("/tmp/d/logs"));
    assert_eq!(moved.data_dir.as_path(), Path::new("/tmp/d"));
}

/// The database of Redis may stand in its URL or beside it, and not differently in both.
#[test]
fn the_database_of_redis_is_heard() {
    let folder = tempfile::tempdir().unwrap();
    let global = |redis: &str| {
        std::fs::write(folder.path().join("synctool.yaml"), format!("redis: {{{redis}}}\n")).unwrap();
        loader().folder(folder.path()).global()
    };
    for (redis, url, db) in [
        ("url: \"redis://h:6379\"", "redis://h:6379", 0),
        ("url: \"redis://h\", db: 0", "redis://h", 0),
        ("db: 3", "redis://localhost:6379/3", 3),
        ("url: \"redis://:pw@h:6379/\", database: 3", "redis://:pw@h:6379/3", 3),
        ("url: \"redis://h/3\"", "redis://h/3", 3),
        ("url: \"redis://h/3\", db: 3", "redis://h/3", 3),
        (
            "url: \"rediss://h?protocol=resp3#insecure\", db: 2",
            "rediss://h/2?protocol=resp3#insecure",
            2,
        ),
        (
            "url: \"redis+unix:///run/r.sock\", db: 2",
            "redis+unix:///run/r.sock?db=2",
            2,
        ),
        (
            "url: \"unix:///run/r.sock?user=u\", db: 2",
            "unix:///run/r.sock?db=2&user=u",
            2,
        ),
        ("url: \"unix:///run/r.sock?db=4\"", "unix:///run/r.sock?db=4", 4),
    ] {
        let global = global(redis).unwrap_or_else(|errors| panic!("{redis}: {errors}"));
        assert_eq!(
            (global.redis.url_of_database().as_str(), *global.redis.db),
            (url, db),
            "{redis}"
        );
        assert!(global.not_yet.is_empty(), "{:?}", global.not_yet);
    }
    let refused = global("url: \"redis://:hunter2@h/3\", db: 0").unwrap_err().to_string();
    assert!(
        refused.contains("synctool.yaml:1:42: redis.db is 0, and redis.url names database 3; name it in one place"),
        "{refused}"
    );
    assert!(!refused.contains(SENTINEL), "{refused}");
}

#[test]
fn pipelines_of_a_folder() {
    let root = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(root.path().join(name), text).unwrap();
    write(
        "datastores.yaml",
        "datastores: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}",
    );
    let pipeline = |name: &str| {
        format!("name: {name}\nsource: {{datastore: a, table: t}}\ndestination: {{datastore: b, table: t}}\n")
    };
    write("one.yaml", &pipeline("same"));
    write("three.yml", &pipeline("other"));
    write("two.yaml", &pipeline("same"));
    write("wrong.yaml", "nothing: here");
    write("notes.txt", "not a pipeline");
    let found = loader().folder(root.path()).pipelines_in(root.path()).unwrap();
    let seen: Vec<(String, bool)> = found
        .iter()
        .map(|f| {
            (
                f.file.file_name().unwrap().to_string_lossy().into_owned(),
                f.loaded.is_ok(),
            )
        })
        .collect();
    let expected = [
        ("one.yaml", true),
        ("three.yml", true),
        ("two.yaml", false),
        ("wrong.yaml", false),
    ];
    assert_eq!(seen, expected.map(|(name, ok)| (name.to_owned(), ok)));
    let twin = found[2].loaded.as_ref().unwrap_err().to_string();
    assert!(
        twin.contains("two.yaml:1:7: two pipelines are named \"same\"; the other is") && twin.ends_with("one.yaml"),
        "{twin}"
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Mistakes

/// Each file of `bad/` has its exact messages beside it; `BLESS=1` writes them anew, to be read before they are kept.
#[test]
fn every_mistake_is_told_with_its_place() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut differing = Vec::new();
    for file in files("tests/config/bad") {
        let errors = match loader().pipeline(&file) {
            Ok(_) => panic!("{} is good", file.display()),
            Err(errors) => format!("{errors}\n"),
        };
        assert!(!errors.contains(SENTINEL), "{errors}");
        let expected = file.with_extension("errors");
        if bless {
            std::fs::write(&expected, &errors).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != errors {
            differing.push(format!("{}:\n{errors}", expected.display()));
        }
    }
    assert!(
        differing.is_empty(),
        "messages differ from those on file:\n{}",
        differing.join("\n")
    );
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    let message = |loader: Loader| loader.folder(folder.path()).pipeline(&file).unwrap_err().to_string();
    assert_eq!(
        message(loader()),
        format!("{}: cannot be read: no such file or folder", file.display())
    );
    std::fs::write(&file, [b'n', 0xff, 0xfe]).unwrap();
    assert_eq!(
        message(loader()),
        format!("{}: the file is not UTF-8 text", file.display())
    );
    std::fs::write(
        &file,
        "source: {datastore: a, table: t}\ndestination: {datastore: b, table: t}\n",
    )
    .unwrap();
    let missing = folder.path().join("none.yaml");
    let errors = message(loader().datastores(Some(missing.clone())));
    assert_eq!(
        errors,
        format!("{}: cannot be read: no such file or folder", missing.display())
    );
}

#[test]
fn mistakes_of_all_three_files_are_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("p.yaml", "name: p\nsuorce: 1\n");
    write("datastores.yaml", "datastores:\n  a: {type: sqlite, pth: x}\n");
    write("synctool.yaml", "memory: lots\nworkers: 0\nstate: {type: postgres}\n");
    let errors = loader()
        .folder(folder.path())
        .pipeline(&folder.path().join("p.yaml"))
        .unwrap_err();
    let lines: Vec<String> = errors
        .iter()
        .map(|e| e.to_string().replace(&format!("{}/", folder.path().display()), ""))
        .collect();
    let starts = |start: &str| lines.iter().any(|line| line.starts_with(start));
    assert!(
        starts("p.yaml:2:1: unknown key \"suorce\" at the top of the file; did you mean \"source\"?"),
        "{lines:#?}"
    );
    assert!(starts("p.yaml:1:1: missing key \"source\""), "{lines:#?}");
    assert!(starts("p.yaml:1:1: missing key \"destination\""), "{lines:#?}");
    assert!(
        starts("synctool.yaml:1:9: memory must be a size, such as 64KiB"),
        "{lines:#?}"
    );
    assert!(
        starts("datastores.yaml:2:21: unknown key \"pth\" in datastores.a; did you mean \"path\"?"),
        "{lines:#?}"
    );
}

#[test]
fn a_strategy_is_found_by_name_then_by_type() {
    let p = good("everything.yaml").pipeline;
    assert_eq!(p.strategy("nightly").unwrap().name.as_str(), "nightly");
    assert_eq!(p.strategy("full").unwrap().name.as_str(), "nightly");
    assert_eq!(
        p.strategy("nihgtly").unwrap_err().to_string(),
        "tests/config/good/everything.yaml:2:7: pipeline everything has no strategy \"nihgtly\"; \
         did you mean \"nightly\"? strategies: changes, nightly, hash"
    );
}

#[test]
fn a_later_check_can_point_at_a_value() {
    let p = good("users.yaml").pipeline;
    assert_eq!(
        p.source.table.error("there is no such table").to_string(),
        "tests/config/good/users.yaml:2:34: there is no such table"
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// Secrets

#[test]
fn a_secret_comes_out_nowhere() {
    let loader = loader()
        .folder("")
        .global_config(Some(format!("{GOOD}/global.yaml").into()));
    let loaded = loader.pipeline(&Path::new(GOOD).join("users.yaml")).unwrap();
    let all = loader.datastores_in(Path::new(GOOD)).unwrap();
    let used = [loaded.source().unwrap(), loaded.destination().unwrap()];
    // They are there to begin with.
    for datastore in used {
        let Connection::Postgres(postgres) = &datastore.connection else {
            panic!()
        };
        assert_eq!(postgres.password.as_ref().unwrap().reveal(), SENTINEL);
    }
    assert!(loaded.global.redis.url.reveal().contains(SENTINEL));
    for output in [
        loaded.to_yaml(),
        loaded.to_json().to_string(),
        format!("{loaded:?}{loaded:#?}"),
        loaded.global.to_yaml(),
        loaded.global.to_json().to_string(),
        all.to_yaml(),
        all.to_json().to_string(),
        format!("{all:?}"),
        loaded.pipeline.save(&used).yaml,
        used.map(Datastore::display_uri).join(" "),
        loaded.pipeline.semantics().to_string(),
    ] {
        assert!(!output.contains(SENTINEL), "{output}");
    }
    let yaml = loaded.to_yaml();
    assert!(
        yaml.contains("password: \"***\"  # file shop_password (tests/config/good/datastores.yaml:10:17)"),
        "{yaml}"
    );
}

#[test]
fn values_of_secrets_files_and_secret_variables_are_masked_wherever_they_stand() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("pw"), SENTINEL).unwrap();
    let file = folder.path().join("p.yaml");
    let text = "name: p\ndescription: \"of ${API_TOKEN}\"\nsource: {datastore: a, table: \"t_${file:pw}\", filters: [\"x = '${API_TOKEN}'\", {column: y, value: \"${API_TOKEN}\"}]}\n\
                destination: {datastore: b, table: t}\n\
                datastores: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}\n";
    std::fs::write(&file, text).unwrap();
    let secret_env = |name: &str| (name == "API_TOKEN").then(|| SENTINEL.to_owned());
    let loaded = Loader::new()
        .env(secret_env)
        .folder(folder.path())
        .pipeline(&file)
        .unwrap();
    assert_eq!(loaded.pipeline.source.table.as_str(), "t_hunter2");
    for output in [
        loaded.to_yaml(),
        loaded.to_json().to_string(),
        format!("{loaded:?}"),
        loaded.pipeline.semantics().to_string(),
        loaded.pipeline.save(&[]).yaml,
    ] {
        assert!(!output.contains(SENTINEL), "{output}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Show, save, schema

#[test]
fn show_names_every_origin() {
    let loaded = good("users.yaml");
    let yaml = loaded.to_yaml();
    for line in [
        "# tests/config/good/users.yaml, resolved",
        "# datastores: tests/config/good/datastores.yaml (beside the pipeline)",
        "name: users  # tests/config/good/users.yaml:1:7",
        "  supports_update: true  # default",
        "      port: 7000  # env SHOP_PORT (tests/config/good/datastores.yaml:8:13)",
        "      host: localhost  # default of ${SHOP_HOST} (tests/config/good/datastores.yaml:7:13)",
        "      max_connections: 4  # tests/config/good/datastores.yaml:16:24",
        "      min_connections: 1  # default",
    ] {
        assert!(yaml.lines().any(|l| l == line), "{line}\nis not in\n{yaml}");
    }
    let json = loaded.to_json();
    assert_eq!(
        json["resolved"]["datastores"]["shop"]["connection"]["port"],
        json!(7000)
    );
    assert_eq!(
        json["origins"]["datastores.shop.connection.port"],
        json!("env SHOP_PORT (tests/config/good/datastores.yaml:8:13)")
    );
    assert_eq!(json["origins"]["enabled"], json!("default"));
}

/// What `show` prints is the current form: read again, it means the same.
#[test]
fn what_is_shown_reads_as_the_same_pipeline() {
    for loaded in [
        good("users.yaml"),
        good("everything.yaml"),
        good("second_dialect.yaml"),
        good("one_file.yaml"),
    ]
    .into_iter()
    .chain([
        brief("my_first_pipeline.yaml").unwrap(),
        brief("advanced_sync_pipeline.yaml").unwrap(),
    ]) {
        let shown = loaded.to_yaml();
        let again = from_text(&shown).unwrap_or_else(|errors| panic!("{errors}\n{shown}"));
        assert_eq!(again.pipeline.semantics(), loaded.pipeline.semantics(), "{shown}");
        let types_are_checked_already = |mut p: Pipeline| {
            (p.source.type_name, p.destination.type_name, p.not_yet) = (None, None, Vec::new());
            for stage in &mut p.transform {
                if let StageWork::Enrich(enrich) = &mut stage.work {
                    enrich.type_name = None;
                }
            }
            p
        };
        assert_eq!(
            types_are_checked_already(again.pipeline),
            types_are_checked_already(loaded.pipeline),
            "{shown}"
        );
    }
}

#[test]
fn a_saved_pipeline_is_short_and_reads_the_same() {
    let source = Datastore::from_uri("postgresql://u:hunter2@h:5433/shop?sslmode=require").unwrap();
    let destination = Datastore::from_uri("sqlite:out.db").unwrap();
    let pipeline = Pipeline::copy("users", (&source.name, "public.users"), (&destination.name, "users"));
    let saved = pipeline.save(&[&source, &destination]);
    assert_eq!(
        saved.yaml,
        "name: users
source:
  datastore: shop
  table: public.users
destination:
  datastore: out
  table: users
datastores:
  shop:
    type: postgres
    connection:
      host: h
      port: 5433
      user: u
      password: ${SHOP_PASSWORD}
      dbname: shop
      sslmode: require
  out:
    type: sqlite
    path: out.db
"
    );
    assert_eq!(saved.variables, ["SHOP_PASSWORD"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("users.yaml");
    std::fs::write(&file, &saved.yaml).unwrap();
    let env = |name: &str| (name == "SHOP_PASSWORD").then(|| SENTINEL.to_owned());
    let again = Loader::new().env(env).folder(folder.path()).pipeline(&file).unwrap();
    assert_eq!(again.pipeline, pipeline);
    assert_eq!(again.source().unwrap(), &source);
}

/// YAML as JSON, the way an editor sees it that checks against a schema.
fn as_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_saphyr::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn good_files_keep_to_the_schema_and_bad_ones_do_not() {
    let validator = |of| jsonschema::validator_for(&schema(of)).unwrap();
    let (pipeline, datastores, global) = (
        validator(SchemaOf::Pipeline),
        validator(SchemaOf::Datastores),
        validator(SchemaOf::Global),
    );
    let mut checked = 0;
    for file in files(GOOD).into_iter().chain(files(BRIEF)) {
        let name = file.file_name().unwrap().to_str().unwrap();
        let validator = match name {
            "datastores.yaml" => &datastores,
            "global.yaml" | "global_config.yaml" => &global,
            _ => &pipeline,
        };
        let mut json = as_json(&file);
        if let Some(map) = json.get_mut("datastores").and_then(Value::as_object_mut) {
            map.remove("olap");
        }
        let errors: Vec<String> = validator
            .iter_errors(&json)
            .map(|e| format!("{}: {e}", e.instance_path()))
            .collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", file.display());
        checked += 1;
    }
    assert!(checked >= 10, "only {checked} files");
    for name in [
        "unknown_keys",
        "wrong_types",
        "missing_keys",
        "words",
        "first_generation",
        "connections",
    ] {
        let json = as_json(&Path::new("tests/config/bad").join(name).with_extension("yaml"));
        assert!(!pipeline.is_valid(&json), "{name} keeps to the schema");
    }
}

#[test]
fn every_key_of_the_schema_is_described() {
    let schema = schema(SchemaOf::Pipeline);
    let strategy = &schema["$defs"]["StrategyFile"]["properties"];
    assert!(
        strategy["cron"]["description"]
            .as_str()
            .unwrap()
            .contains("day of week"),
        "{strategy}"
    );
    assert_eq!(schema["$defs"]["StrategyFile"]["additionalProperties"], json!(false));
}

// ---------------------------------------------------------------------------------------------------------------------
// Meaning

#[test]
fn the_hash_follows_the_meaning_and_not_the_layout() {
    let ends = "datastores: {a: {type: sqlite, path: a.db}, b: {type: sqlite, path: b.db}}\n";
    let load = |text: &str| {
        from_text(&format!("{text}{ends}"))
            .unwrap_or_else(|e| panic!("{e}"))
            .pipeline
    };
    let base = load(
        "name: p\nsource: {datastore: a, table: t, filters: ['x > 1']}\ndestination: {datastore: b, table: t}\n\
         columns: [{source: id, data_type: int, roles: [unique]}, {source: x, data_type: string}]\n\
         strategies: [{name: d, type: delta, column: x, cron: '0 * * * *', page_size: 5}]\n",
    );
    let same = load(
        "# a comment\ndescription: another\nname: p\nenabled: false\ndestination:\n  table: t\n  datastore: b\n\
         source:\n  datastore: a\n  table: t\n  filters: [x > 1]\nmax_concurrent_partitions: 9\n\
         columns: [{name: id, type: integer}, {source: x, dest: x, data_type: text}]\nkey: [id]\n\
         strategies: [{name: d, type: delta, column: x, cron: '5 * * * *', page_size: 50}, {name: more, type: full}]\n",
    );
    // The role is the only thing said differently that stands in the meaning; the key is the same.
    assert_eq!(
        semantic_difference(&base.semantics_of("d"), &same.semantics_of("d")),
        ["columns.id.unique"]
    );
    let other = load(
        "name: p\nsource: {datastore: a, table: t2, filters: ['x > 2']}\ndestination: {datastore: b, table: t}\n\
         columns: [{source: id, data_type: bigint, roles: [unique]}, {source: y, data_type: string}]\n\
         strategies: [{name: d, type: delta, column: y}]\n",
    );
    assert_eq!(
        semantic_difference(&base.semantics(), &other.semantics()),
        [
            "columns.id.data_type",
            "columns.x",
            "columns.y",
            "source.filters",
            "source.table",
            "strategies.d.column"
        ]
    );
    assert_ne!(base.semantics_of("d"), other.semantics_of("d"));
    // A store that reorders keys changes nothing.
    let stored: Value = serde_json::from_str(&base.semantics_of("d").to_string()).unwrap();
    assert!(semantic_difference(&stored, &base.semantics_of("d")).is_empty());
}

// ---------------------------------------------------------------------------------------------------------------------
// Noise

/// No text makes the loader panic, hang or blame nobody. The seed is fixed; `SYNCTOOL_SEED` and `SYNCTOOL_CASES` vary it.
#[test]
fn noise_is_refused_in_words() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |n| n.parse().unwrap());
    let seed = number("SYNCTOOL_SEED", 2);
    let mut random = StdRng::seed_from_u64(seed);
    let mut texts: Vec<String> = Vec::new();
    for folder in [GOOD, BRIEF, "tests/config/bad"] {
        texts.extend(files(folder).iter().filter_map(|f| std::fs::read_to_string(f).ok()));
    }
    let pieces = [
        "${",
        "}",
        "$${",
        "${A:${B}}",
        "${file:",
        ": ",
        "- ",
        "\n",
        "\t",
        "  ",
        "{",
        "[",
        "]",
        ",",
        "\"",
        "'",
        "|",
        ">",
        "&a ",
        "*a",
        "<<: ",
        "!!str ",
        "? ",
        "#",
        "~",
        "null",
        "-1",
        "1e999",
        "\u{feff}",
        "é",
        "\u{0}",
        "%",
        "---\n",
        "...",
        "columns",
        "type",
        "source",
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.yaml");
    let mut refused = 0;
    for case in 0..number("SYNCTOOL_CASES", 1500) {
        let mut text: Vec<char> = texts[random.random_range(0..texts.len())].chars().collect();
        for _ in 0..random.random_range(1..6) {
            let at = random.random_range(0..=text.len());
            let until = (at + random.random_range(0..12)).min(text.len());
            let piece = pieces[random.random_range(0..pieces.len())];
            match random.random_range(0..3) {
                0 => drop(text.drain(at..until)),
                1 => drop(text.splice(at..at, piece.chars())),
                _ => drop(text.splice(at..until, piece.chars())),
            }
        }
        let text: String = text.into_iter().collect();
        std::fs::write(&file, &text).unwrap();
        let load = || loader().folder(folder.path()).pipeline(&file);
        let result =
            std::panic::catch_unwind(load).unwrap_or_else(|_| panic!("panicked: seed {seed}, case {case}:\n{text}"));
        match result {
            Err(errors) => {
                refused += 1;
                let lines = text.lines().count() as u32 + 1;
                for error in errors.iter() {
                    assert!(
                        !error.message.is_empty() && error.line <= lines,
                        "seed {seed}, case {case}: {error}\n{text}"
                    );
                }
            }
            Ok(loaded) => {
                let shown = loaded.to_yaml();
                let again =
                    from_text(&shown).unwrap_or_else(|e| panic!("seed {seed}, case {case}: {e}\n{text}\n{shown}"));
                assert_eq!(
                    again.pipeline.semantics(),
                    loaded.pipeline.semantics(),
                    "seed {seed}, case {case}:\n{shown}"
                );
            }
        }
    }
    assert!(refused > 500, "only {refused} texts were refused");
}
