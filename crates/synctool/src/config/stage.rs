//! The model of what happens to rows on their way.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize};

use super::at::At;
use super::pipeline::{Filter, Operator};
use super::secret::SecretUrl;
use super::strategy::Strategy;
use super::types::SizedType;
use super::units::Span;

/// One stage on the way of rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Stage {
    /// Its name in accounts and messages.
    pub name: At<String>,
    /// Whether it is passed through.
    pub enabled: At<bool>,
    /// Names or types of the strategies it is for; empty = all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applicable_on: Vec<At<String>>,
    /// What it does.
    #[serde(flatten)]
    pub work: StageWork,
}

impl Stage {
    /// A stage for every strategy, named after what it does.
    pub fn new(work: StageWork) -> Self {
        Self {
            name: work.name().into(),
            enabled: true.into(),
            applicable_on: Vec::new(),
            work,
        }
    }

    /// Whether rows of a strategy go through it.
    pub fn applies_to(&self, strategy: &Strategy) -> bool {
        let meant = |word: &At<String>| **word == *strategy.name || **word == strategy.kind.name();
        *self.enabled && (self.applicable_on.is_empty() || self.applicable_on.iter().any(meant))
    }
}

/// What a stage does.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageWork {
    /// Computes columns.
    Compute(Vec<Computed>),
    /// Gives columns another type, by name.
    Cast(BTreeMap<String, At<SizedType>>),
    /// Replaces values of a column by others.
    ValueMap(ValueMap),
    /// Lets rows through that meet every condition.
    Filter(Vec<At<Filter>>),
    /// Of rows with the same values in some columns one stays.
    Dedup(Dedup),
    /// Adds columns of another table.
    Enrich(Box<Enrich>),
    /// Makes batches of about this many rows.
    Batch(At<u32>),
}

impl StageWork {
    /// The word of its key.
    pub fn name(&self) -> &'static str {
        match self {
            StageWork::Compute(_) => "compute",
            StageWork::Cast(_) => "cast",
            StageWork::ValueMap(_) => "value_map",
            StageWork::Filter(_) => "filter",
            StageWork::Dedup(_) => "dedup",
            StageWork::Enrich(_) => "enrich",
            StageWork::Batch(_) => "batch",
        }
    }
}

/// Which of rows with the same values in some columns stays.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Dedup {
    /// The columns.
    pub keys: Vec<At<String>>,
    /// Which one: the last (the default) or the first.
    #[serde(default)]
    pub keep: At<Keep>,
    /// The column that says which is first and which is last. Default: they are taken as they come.
    pub by: Option<At<String>>,
}

impl Dedup {
    /// The last of the rows, as they come.
    pub fn last(keys: Vec<At<String>>) -> Self {
        Self {
            keys,
            keep: At::default(),
            by: None,
        }
    }
}

/// Columns alone where nothing else is said, as in files.
impl Serialize for Dedup {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if *self.keep == Keep::Last && self.by.is_none() {
            return self.keys.serialize(serializer);
        }
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("keys", &self.keys)?;
        map.serialize_entry("keep", &self.keep)?;
        if let Some(by) = &self.by {
            map.serialize_entry("by", by)?;
        }
        map.end()
    }
}

/// Which of several rows stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// The last.
    #[default]
    Last,
    /// The first.
    First,
}

/// A column that is computed from others of its row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Computed {
    /// The column that gets the value; one that is there already is replaced.
    pub name: At<String>,
    /// The expression: `lambda x: x["first_name"] + " " + x["last_name"]`, or what stands after the colon.
    pub expression: At<String>,
    /// The one column whose value the expression is over, which it calls by its parameter: `lambda x: str(x)`. Default:
    /// it is over the row.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<At<String>>,
    /// The columns it reads, where the expression alone does not tell.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<At<String>>,
    /// The type of the result. Default: that of the expression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<At<SizedType>>,
}

/// Values of a column and what stands for them; others stay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ValueMap {
    /// The column, as it is called on the way.
    pub column: At<String>,
    /// Value to new value; null = NULL.
    pub mapping: BTreeMap<String, Option<At<String>>>,
}

/// Columns of another table that are added to rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Enrich {
    /// Name of the datastore that has the table.
    pub datastore: At<String>,
    /// The table.
    pub table: At<String>,
    /// Its schema, where it stands apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// Conditions on its rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<At<Filter>>,
    /// Which rows stay.
    pub join: At<EnrichJoin>,
    /// What must be equal. Never empty.
    pub on: Vec<EnrichKey>,
    /// Which of several rows is the one valid at a time; present exactly for [`EnrichJoin::AsOf`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<AsOf>,
    /// The columns that are added.
    pub fields: Vec<EnrichField>,
    /// Whether a row may have several partners.
    pub cardinality: At<Cardinality>,
    /// Where rows of the table are kept between batches.
    pub cache: Cache,
    /// The type that the pipeline says the datastore is of, to be checked against it.
    #[serde(skip)]
    pub type_name: Option<At<String>>,
}

/// Which rows stay when a table is joined on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EnrichJoin {
    /// All; without a partner the added columns are NULL.
    #[default]
    Left,
    /// Those with a partner.
    Inner,
    /// All; the partner is the one that was valid at the row's time.
    AsOf,
}

/// A pair of columns that are compared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct EnrichKey {
    /// The column of the row.
    pub column: At<String>,
    /// The column of the table.
    pub key: At<String>,
}

/// Which of several rows is the one valid at a time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AsOf {
    /// The column of the row that has the time.
    pub column: At<String>,
    /// The column of the table that has the begin of the validity.
    pub valid_from: At<String>,
    /// The column of the table that has its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid_to: Option<At<String>>,
    /// How `valid_from` must stand to the row's time: `<=` or `<`.
    pub operator: At<Operator>,
    /// Whether a row without an end is still valid.
    pub include_open_ended: At<bool>,
}

/// A column that is added.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EnrichField {
    /// What is added.
    #[serde(flatten)]
    pub source: FieldSource,
    /// Its name on the way.
    pub dest: At<String>,
    /// Its type; none = that of the table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_type: Option<At<SizedType>>,
    /// An expression over the value, which it calls by its parameter: `lambda x: "abc" + x`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform: Option<At<String>>,
}

/// What a field of an enrichment is made of.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FieldSource {
    /// A column of the table.
    Source(At<String>),
    /// An expression in the SQL of the table's datastore.
    Expr(At<String>),
    /// The hash of the other fields that come from columns.
    Hash(bool),
}

/// Whether a row may have several partners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cardinality {
    /// One at most: a row with several partners is rejected.
    #[default]
    OneToOne,
    /// Any number; the row comes once for each.
    OneToMany,
}

/// Where rows of a joined table are kept between batches.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Cache {
    /// Where.
    pub store: At<CacheStore>,
    /// The address of a Redis; none = the global one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<At<SecretUrl>>,
    /// What keys in a Redis begin with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<At<String>>,
    /// How long a row is good; none = as long as the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<At<Span>>,
    /// Rows at most; the least recently used go first. None = by the memory budget.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_size: Option<At<u64>>,
}

/// Where a cache stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheStore {
    /// Nowhere: every batch asks.
    None,
    /// In the process.
    #[default]
    Memory,
    /// In a Redis, shared by workers.
    Redis,
}
