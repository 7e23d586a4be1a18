//! Stages that compute: what happens to rows between reader and sink.
//!
//! A configuration becomes [`StageSpec`]s, a [`Chain`] is built of them for one pipeline and one strategy, and the
//! engine opens a fresh set of stages for every partition. DataFusion's expression crates live behind the feature
//! `datafusion` of this crate and nowhere else; without it a chain with an expression is refused.

mod batch;
mod cast;
mod chain;
#[cfg(feature = "datafusion")]
mod compute;
mod convert;
mod dedup;
mod dimension;
mod enrich;
#[cfg(feature = "datafusion")]
mod expr;
#[cfg(feature = "datafusion")]
mod filter;
mod lambda;
#[cfg(not(feature = "datafusion"))]
mod no_expressions;
mod position;
mod project;
mod rows;
mod spec;
mod value_map;

pub use chain::{Chain, Sources, Step};
pub use dimension::{CachedDimension, Key, Lookup, LookupStats, Row, Rows, SourceLookup};
#[cfg(feature = "datafusion")]
pub use expr::{check, check_syntax};
#[cfg(not(feature = "datafusion"))]
pub use no_expressions::{check, check_syntax};
pub use position::ExprError;
pub use spec::{
    ApplicableOn, AsOf, CacheSpec, CastTo, Computed, DedupSpec, EnrichJoin, EnrichSpec, Field, JoinOn, Keep,
    NamedStage, Projected, RedisSpec, Several, StageSpec,
};
pub use value_map::ValueMap;
