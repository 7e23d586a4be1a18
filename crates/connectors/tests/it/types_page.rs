//! The page of types in the docs is what the destinations say, for every column of the conformance suite, which proves
//! it (`testing::conformance::types`). `BLESS=1` writes it anew; DuckDB's column needs the feature.

use std::fmt::Write;
use std::sync::Arc;
use synctool_connectors::mysql::{Mysql, MysqlConfig};
use synctool_connectors::object::{CsvOptions, Format, ObjectConfig, Objects, ParquetOptions};
use synctool_connectors::postgres::{DestinationOptions, Postgres as Database, PostgresConfig, PostgresDestination};
use synctool_connectors::sqlite::{Sqlite, SqliteConfig};
use synctool_core::schema::Column;
use synctool_core::sink::{Destination, Fidelity};
use synctool_core::testing::conformance::edges;
use synctool_testkit::{MariaDb, PgVersion, Postgres};

fn cell(destination: &dyn Destination, column: &Column) -> String {
    let stored = destination.store_as("memory", column);
    let class = match stored.fidelity {
        Fidelity::Exact => "exact".to_string(),
        Fidelity::Widened(note) => format!("widened: {note}"),
        Fidelity::Normalised(note) => format!("normalised: {note}"),
        Fidelity::Refused(note) => format!("refused: {note}"),
    };
    format!("`{}` {class}", stored.type_name).replace('|', "\\|")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_of_types_is_what_destinations_say() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = Postgres::shared(PgVersion::V18).database("types_page");
    let postgres = Database::open(PostgresConfig::from_url(&database.url()).expect("a URL")).expect("opens");
    let postgres = PostgresDestination::open(postgres, DestinationOptions::default())
        .await
        .expect("opens");
    let server = MariaDb::shared();
    let mysql = server.database("types_page");
    let mysql = Mysql::open(MysqlConfig::new("127.0.0.1", server.port(), "root", mysql.name()))
        .expect("opens")
        .destination()
        .await
        .expect("opens");
    let objects = |format| {
        let config = ObjectConfig {
            path: folder.path().to_path_buf(),
            format,
        };
        Objects::open(config).expect("opens").destination()
    };
    let sqlite = Sqlite::open(SqliteConfig::new(folder.path().join("t.db")))
        .expect("opens")
        .destination();
    #[allow(unused_mut, reason = "DuckDB is a feature")]
    let mut ends: Vec<(&str, Arc<dyn Destination>)> = vec![
        ("PostgreSQL", Arc::new(postgres)),
        ("MySQL", mysql),
        ("SQLite", sqlite),
        ("Parquet", objects(Format::Parquet(ParquetOptions::default()))),
        ("CSV", objects(Format::Csv(CsvOptions::default()))),
    ];
    #[cfg(feature = "duckdb")]
    {
        use synctool_connectors::duckdb::{DuckDb, DuckDbConfig};
        let library = Some(synctool_testkit::libduckdb());
        let config = DuckDbConfig {
            path: folder.path().join("t.duckdb"),
            library,
            create: true,
        };
        ends.push(("DuckDB", DuckDb::open(config).await.expect("opens").destination()));
    }
    let names: Vec<&str> = ends.iter().map(|(name, _)| *name).collect();
    let mut page = format!(
        "# Types\n\nHow each destination stores a column, and how faithfully. *exact*: every value arrives as it was. *widened*: in a\n\
         wider type. *normalised*: in another, documented form. *refused*: said when the plan is made, before a row is read.\n\
         `synctool plan` prints the same for your table. This page is made by `tests/it/types_page.rs` from what the\n\
         destinations say; the conformance suite (`testing::conformance::types`) holds them to it, with the edge values of\n\
         every type.\n\n| type | {} |\n|{}\n",
        names.join(" | "),
        " --- |".repeat(names.len() + 1)
    );
    for edge in edges() {
        let column = Column::new("c", edge.ty.clone());
        let cells: Vec<String> = ends.iter().map(|(_, d)| cell(d.as_ref(), &column)).collect();
        let _ = writeln!(page, "| {} | {} |", edge.ty, cells.join(" | "));
    }
    page.push_str(
        "\nBetween PostgreSQL servers every built-in type passes undecoded, letter by letter, where no stage looks at values.\n\
         Arrays, enums, ranges, composites and other types of its own travel as the text PostgreSQL prints and are read back\n\
         by the same type where it exists at the destination.\n\n\
         Values that no type of a destination can hold stop the run with `ST-DAT-001` and name the column, never the value:\n\
         infinite dates and timestamps and NaN decimals in Parquet (and NaN decimals in DuckDB); infinity, NaN, negative zero and years before\n\
         Christ or beyond 9999 in MySQL. `as_text: true` on the column carries them as text.\n\
         \n\
         A column that is there and keeps fewer digits than a value has would round it, and no server tells: into PostgreSQL and\n\
         MySQL such a value stops the run (`ST-DAT-001`), and those with no more digits are stored\n\
         (`synctool/tests/promises/changes.rs::a_column_that_keeps_fewer_digits_rounds_nothing`; a domain's digits are not seen). Arrays of exact numbers or floats\n\
         that an array of the destination would round, and intervals whose fields it would cut, are refused by the plan\n\
         (`synctool/tests/promises/changes.rs::arrays_and_intervals_are_not_rounded`). Other destinations have no such columns, but for texts that DuckDB casts.\n",
    );
    // Without the feature the page has a column less; the full one is what stands in the docs.
    if cfg!(feature = "duckdb") {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/types.md");
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(file, &page).expect("docs are writable");
        }
        assert_eq!(
            std::fs::read_to_string(file).unwrap_or_default(),
            page,
            "docs/types.md is old: run with BLESS=1"
        );
    } else {
        assert!(page.contains("| boolean |"));
    }
}
