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
mod datastores;
mod decode;
pub(crate) mod error;
mod form;
mod generations;
mod global;
mod load;
mod pipeline;
mod schema;
mod secret;
mod show;
mod text;
mod types;
mod units;
mod uri;
mod vars;

pub use at::{At, Origin};
pub use datastores::{
    Connection, CsvOptions, DATASTORE_TYPES, Datastore, Datastores, FoundIn, Mysql, Postgres, SslMode,
};
pub use decode::Notice;
pub use error::{ConfigError, ConfigErrors};
pub use global::{
    BuildSystem, DdlCheck, Global, Http, LogBatching, OnBuildFailure, Redis, Scheduler, State, Storage, Worker,
};
pub use load::{Found, Loaded, Loader};
pub use pipeline::{
    ColumnMapping, Columns, Comparison, Destination, Direction, Filter, FullMode, Join, JoinKind, Operator,
    Partitioning, Pipeline, Roles, Source, Strategy, StrategyKind, TableRef, Transform, ValueMap, Verify, Write,
    semantic_difference,
};
pub use schema::{SchemaOf, schema};
pub use secret::{Secret, SecretUrl};
pub use show::SavedPipeline;
pub use types::DataType;
pub use units::{ByteSize, Span};
