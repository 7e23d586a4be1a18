//! Stages as plain values: what a configuration says, whatever its format.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;
use synctool_core::query::Filter;
use synctool_core::schema::{ColumnType, TableId};

/// A stage with the name it has in the ledger.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NamedStage {
    /// Its name; the kind's own where there is none. Names that occur twice get a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does.
    #[serde(flatten)]
    pub spec: StageSpec,
}

impl From<StageSpec> for NamedStage {
    fn from(spec: StageSpec) -> Self {
        NamedStage { name: None, spec }
    }
}

/// What a stage does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[allow(clippy::large_enum_variant, reason = "a pipeline has a handful of them")]
pub enum StageSpec {
    /// Adds columns, or replaces them, one after the other.
    Compute {
        /// The columns in order; a later one sees the earlier ones.
        columns: Vec<Computed>,
    },
    /// Lets rows through.
    Filter {
        /// SQL or a lambda; only true lets a row through.
        condition: String,
    },
    /// Turns columns into other types, checked value by value.
    Cast {
        /// Which columns into what.
        casts: Vec<CastTo>,
    },
    /// Replaces values of one column.
    ValueMap {
        /// The column.
        column: String,
        /// Canonical texts and what stands for them; `None` is NULL. Others stay.
        mapping: BTreeMap<String, Option<String>>,
        /// Where what stands for a text is written, for messages.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        places: BTreeMap<String, String>,
        /// Whether the column's length was said, so that no value may be longer.
        #[serde(default)]
        fixed: bool,
    },
    /// Lets one row per key through.
    Dedup(DedupSpec),
    /// Adds columns of another table.
    Enrich(EnrichSpec),
    /// Cuts and joins batches to a size.
    Batch {
        /// Rows per batch; a boundary ends a batch early.
        target_rows: usize,
    },
    /// Chooses the columns that are written, in order.
    Project {
        /// The columns.
        columns: Vec<Projected>,
    },
}

impl StageSpec {
    /// The name of the kind.
    pub fn kind(&self) -> &'static str {
        match self {
            StageSpec::Compute { .. } => "compute",
            StageSpec::Filter { .. } => "filter",
            StageSpec::Cast { .. } => "cast",
            StageSpec::ValueMap { .. } => "value_map",
            StageSpec::Dedup(_) => "dedup",
            StageSpec::Enrich(_) => "enrich",
            StageSpec::Batch { .. } => "batch",
            StageSpec::Project { .. } => "project",
        }
    }
}

/// A computed column.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Computed {
    /// The column it makes or replaces.
    pub name: String,
    /// SQL, or a Python lambda if it begins with `lambda`.
    pub expression: String,
    /// The type to turn the result into, checked; `None` is the expression's own.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub to: Option<ColumnType>,
}

/// One cast.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CastTo {
    /// The column.
    pub column: String,
    /// The new type.
    pub to: ColumnType,
}

/// One column that is written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projected {
    /// The column on the way.
    pub from: String,
    /// Its name from here on.
    pub name: String,
    /// Its type from here on, checked value by value; `None` keeps it.
    #[serde(default, rename = "as", skip_serializing_if = "Option::is_none")]
    pub to: Option<ColumnType>,
}

/// Which of several rows with the same key stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The last.
    #[default]
    Last,
    /// The first.
    First,
}

/// One row per key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupSpec {
    /// What makes rows the same.
    pub keys: Vec<String>,
    /// What orders them; `None` is the order in which they come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_by: Option<String>,
    /// Whether larger values come first.
    #[serde(default)]
    pub descending: bool,
    /// Which one stays.
    #[serde(default)]
    pub keep: Keep,
    /// So many keys at most are remembered; more stop the run.
    #[serde(default = "max_keys")]
    pub max_keys: usize,
    /// So many bytes of rows at most are held until no better one can come.
    #[serde(default = "max_bytes")]
    pub max_bytes: usize,
}

fn max_keys() -> usize {
    20_000_000
}

fn max_bytes() -> usize {
    512 << 20
}

impl DedupSpec {
    /// The last row of each key.
    pub fn last(keys: impl IntoIterator<Item = impl Into<String>>) -> Self {
        DedupSpec {
            keys: keys.into_iter().map(Into::into).collect(),
            order_by: None,
            descending: false,
            keep: Keep::Last,
            max_keys: max_keys(),
            max_bytes: max_bytes(),
        }
    }
}

/// A pair of columns that must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinOn {
    /// The column on the way.
    pub column: String,
    /// The dimension's column.
    pub key: String,
}

/// A column taken from a dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name there.
    pub source: String,
    /// Its name here.
    pub dest: String,
}

/// What happens to rows without a partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnrichJoin {
    /// They stay, with NULL.
    #[default]
    Left,
    /// They are filtered.
    Inner,
}

/// What happens to rows with several partners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Several {
    /// They are rejected: the dimension should have one row per key.
    #[default]
    Refuse,
    /// They become as many rows.
    Expand,
}

/// A join by the time at which a dimension's row is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AsOf {
    /// The column on the way.
    pub column: String,
    /// The dimension's column with the first value at which a row is valid.
    pub valid_from: String,
    /// The dimension's column with the end of validity, if it has one; NULL is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_to: Option<String>,
    /// `<` instead of `<=` between `valid_from` and the column.
    #[serde(default)]
    pub after: bool,
    /// Whether a row is still valid at `valid_to` itself.
    #[serde(default)]
    pub to_inclusive: bool,
    /// Whether rows with an open end count.
    #[serde(default = "yes")]
    pub include_open_ended: bool,
}

fn yes() -> bool {
    true
}

/// A dimension and how it is joined.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EnrichSpec {
    /// The dimension's name, in messages and cache keys.
    pub dimension: String,
    /// The datastore that has it.
    pub datastore: String,
    /// Its table.
    pub table: TableId,
    /// What must be equal.
    pub on: Vec<JoinOn>,
    /// What is taken.
    pub fields: Vec<Field>,
    /// A column that gets the hash of the fields of each partner: 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
    /// Conditions that rows of the dimension must meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
    /// Rows without a partner.
    #[serde(default)]
    pub join: EnrichJoin,
    /// Rows with several partners.
    #[serde(default)]
    pub several: Several,
    /// Validity, for a join by time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub as_of: Option<AsOf>,
    /// How rows of the dimension are kept.
    #[serde(default)]
    pub cache: CacheSpec,
}

/// How a dimension's rows are kept between lookups.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheSpec {
    /// Keys in memory, the least recently used go first.
    pub max_size: usize,
    /// How long a row counts as true, there or missing.
    pub ttl: Duration,
    /// A Redis beside the memory, shared by processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redis: Option<RedisSpec>,
}

impl Default for CacheSpec {
    fn default() -> Self {
        CacheSpec {
            max_size: 100_000,
            ttl: Duration::from_secs(3600),
            redis: None,
        }
    }
}

/// A Redis for dimension rows.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RedisSpec {
    /// Its URL; it may hold a password, so it is never written.
    #[serde(skip_serializing, default)]
    pub url: String,
    /// What keys begin with.
    #[serde(default = "prefix")]
    pub prefix: String,
    /// The run whose rows they are, so that no other one finds them; `None` shares them for as long as they are good.
    #[serde(skip)]
    pub run: Option<String>,
}

fn prefix() -> String {
    "synctool:dimension".into()
}

impl RedisSpec {
    /// A Redis at a URL.
    pub fn new(url: impl Into<String>) -> Self {
        RedisSpec {
            url: url.into(),
            prefix: prefix(),
            run: None,
        }
    }
}

impl fmt::Debug for RedisSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisSpec")
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// The strategies for which a stage is there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ApplicableOn {
    /// All of them.
    #[default]
    All,
    /// The one with this name or of this type.
    One(String),
    /// Those with one of these names or of one of these types.
    Any(Vec<String>),
    /// Those with one of these names, or of one of these types.
    Listed {
        /// Types.
        #[serde(default)]
        types: Vec<String>,
        /// Names.
        #[serde(default)]
        names: Vec<String>,
    },
}

impl ApplicableOn {
    /// Whether the stage is there for a strategy.
    pub fn matches(&self, name: &str, kind: &str) -> bool {
        let either = |t: &String| t == name || t == kind;
        match self {
            ApplicableOn::All => true,
            ApplicableOn::One(t) => either(t),
            ApplicableOn::Any(list) => list.iter().any(either),
            ApplicableOn::Listed { types, names } => types.iter().any(|t| t == kind) || names.iter().any(|n| n == name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_applicable_by_name_or_type() {
        let read = |text: &str| serde_json::from_str::<ApplicableOn>(text).unwrap();
        for (text, delta) in [
            ("null", true),
            ("\"delta\"", true),
            ("\"hourly\"", true),
            ("\"hash\"", false),
            ("[\"hash\",\"delta\"]", true),
            ("{\"types\":[\"hash\"],\"names\":[\"hourly\"]}", true),
            ("{\"types\":[\"hourly\"]}", false),
        ] {
            assert_eq!(read(text).matches("hourly", "delta"), delta, "{text}");
        }
    }

    #[test]
    fn a_stage_survives_text_and_the_redis_password_does_not() {
        let mut spec = EnrichSpec {
            dimension: "segments".into(),
            datastore: "analytics".into(),
            table: TableId::bare("segments"),
            on: vec![JoinOn {
                column: "customer_id".into(),
                key: "id".into(),
            }],
            fields: Vec::new(),
            hash: None,
            filters: Vec::new(),
            join: EnrichJoin::Inner,
            several: Several::Expand,
            as_of: None,
            cache: CacheSpec {
                redis: Some(RedisSpec::new("redis://:sesame@localhost/")),
                ..CacheSpec::default()
            },
        };
        let stage = NamedStage::from(StageSpec::Enrich(spec.clone()));
        let text = serde_json::to_string(&stage).unwrap();
        assert!(
            !text.contains("sesame") && !format!("{stage:?}").contains("sesame"),
            "{text}"
        );
        if let Some(redis) = &mut spec.cache.redis {
            redis.url.clear();
        }
        assert_eq!(
            serde_json::from_str::<NamedStage>(&text).unwrap().spec,
            StageSpec::Enrich(spec)
        );
    }
}
