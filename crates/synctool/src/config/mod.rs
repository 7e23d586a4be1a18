//! Configuration: pipelines, datastores and the global file, from YAML to checked values that know where they stand.
//!
//! ```no_run
//! use synctool::config::Loader;
//!
//! let loaded = Loader::new().pipeline("pipelines/users.yaml".as_ref())?;
//! println!("{} reads {}", *loaded.pipeline.name, loaded.source()?.display_uri());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! The way of a file: text → tree with places (`text`) → variables put in (`vars`) → structs by serde (`decode`)
//! → older generations turned into the current form (`generations`) → defaults, rules, the model (`form`).
//! The structs that are decoded are the only description of the files: the JSON Schema is derived from the same ones.
//! Mistakes are collected, with their places; a secret is in no message and no output.

mod at;
mod bounds;
mod datastores;
mod datasync;
mod decode;
pub(crate) mod error;
pub(crate) mod expression;
mod form;
mod generations;
mod global;
mod load;
mod meaning;
mod migrate;
mod moment;
mod pipeline;
mod schema;
mod secret;
mod show;
mod stage;
mod strategy;
mod table;
mod text;
mod toml_text;
mod types;
mod units;
mod uri;
mod vars;
mod walarchive;

pub use at::{At, Origin};
pub use bounds::parse_bounds;
pub use datastores::{
    Archived, Connection, CsvOptions, DATASTORE_TYPES, Datastore, Datastores, FoundIn, Mysql, Postgres, SslMode,
};
pub use datasync::{DATA_SYNC_CONFIG, DataSync};
pub use decode::Notice;
pub use error::{ConfigError, ConfigErrors};
pub use global::{
    BuildSystem, DdlCheck, Global, Http, LogBatching, OnBuildFailure, Redis, Scheduler, State, Storage, Worker,
};
pub use load::{Found, Loaded, Loader};
pub use meaning::semantic_difference;
pub use migrate::Migrated;
pub use pipeline::{
    ColumnMapping, Columns, Comparison, Destination, Direction, Filter, Join, JoinKind, Operator, Partitioning,
    Pipeline, Roles, SchemaDrift, Source, SyncType, Write,
};
pub use schema::{SchemaOf, schema};
pub use secret::{Secret, SecretUrl};
pub use show::SavedPipeline;
pub use stage::{
    AsOf, Cache, CacheStore, Cardinality, Computed, Dedup, Enrich, EnrichField, EnrichJoin, EnrichKey, FieldSource,
    Keep, Stage, StageWork, ValueMap,
};
pub use strategy::{
    Bound, CursorTable, Deletes, Dimension, DimensionKind, FullMode, HashAlgorithm, InitialRows, LogSettings,
    OverBudget, Scheduling, StampedBy, StepUnit, Strategy, StrategyKind, Tombstone, Verify, WatermarkKind,
};
pub use table::TableRef;
pub use types::{DataType, SizedType};
pub use units::{ByteSize, Span};
pub use walarchive::{ArchivePlace, BackupPlace, BucketPlace, WalArchive};
