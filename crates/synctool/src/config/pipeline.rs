//! The one model of a pipeline. Every generation of files is read into it; nothing else in the program knows how a file
//! was written.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::at::At;
use super::decode::Notice;
use super::error::ConfigError;
use super::stage::{Stage, StageWork};
use super::strategy::{HashAlgorithm, Strategy, StrategyKind};
use super::types::{DataType, SizedType};

/// A pipeline: one source, what happens on the way, one destination, and the ways to keep the two equal.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// Its id.
    pub name: At<String>,
    /// What it is for.
    pub description: Option<At<String>>,
    /// Whether a scheduler may run it.
    pub enabled: At<bool>,
    /// Where rows come from.
    pub source: Source,
    /// Where they go.
    pub destination: Destination,
    /// What the unit of the sync is.
    pub sync_type: At<SyncType>,
    /// Which columns.
    pub columns: Columns,
    /// Columns of the destination that identify a row; empty = the source's primary key (aggregates: the groups).
    pub key: Vec<At<String>>,
    /// Names of the columns that make a group; empty exactly where rows are copied. Every other column with a source or
    /// an `expr` is then an aggregate over the rows of a group.
    pub group_by: Vec<At<String>>,
    /// How a run is cut into partitions; where it says nothing, the data decides.
    pub partitioning: Partitioning,
    /// Partitions worked on at once; the global `workers` where there is none.
    pub max_concurrent_partitions: Option<At<u32>>,
    /// What happens to rows on their way, in this order.
    pub transform: Vec<Stage>,
    /// The algorithm of hashes, where it is to be that of the original; none = the engine's own.
    pub hash_algo: Option<At<HashAlgorithm>>,
    /// What happens when the source's columns change; none = nobody watches them: where all columns go along, new ones
    /// are added; a list stays what it is.
    pub schema_drift: Option<At<SchemaDrift>>,
    /// The ways to bring the destination up to date, at least one.
    pub strategies: Vec<Strategy>,
    /// What the destination may be asked to do.
    pub write: Write,
    /// Keys that were read and that have no effect, and datastores that this version cannot open.
    pub not_yet: Vec<Notice>,
}

/// Where rows come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Source {
    /// Name of the datastore.
    pub datastore: At<String>,
    /// Table as written; [`Source::table_ref`] takes it apart. Empty where a log of other tables is followed.
    #[serde(skip_serializing_if = "is_none")]
    pub table: At<String>,
    /// Schema, where it stands apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// The name of the table in filters, joins and columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<At<String>>,
    /// Further tables whose columns come along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Join>,
    /// The tables whose log is followed, in place of one.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<At<String>>,
    /// Conditions that a row must meet, all of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<At<Filter>>,
    /// The type that the pipeline says the datastore is of, to be checked against it.
    #[serde(skip)]
    pub type_name: Option<At<String>>,
}

fn is_none(table: &At<String>) -> bool {
    table.is_empty()
}

/// Where rows go.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Destination {
    /// Name of the datastore.
    pub datastore: At<String>,
    /// Table as written; [`Destination::table_ref`] takes it apart. Empty where the tables of a log keep their names.
    #[serde(skip_serializing_if = "is_none")]
    pub table: At<String>,
    /// Schema, where it stands apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// `false` = rows are only ever appended.
    pub supports_update: At<bool>,
    /// `true` = no two keys are equal in the destination's collation, whatever it calls equal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distinct_keys: Option<At<bool>>,
    /// Where SyncTool's own tables stand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_schema: Option<At<String>>,
    /// The type that the pipeline says the datastore is of, to be checked against it.
    #[serde(skip)]
    pub type_name: Option<At<String>>,
}

/// A table that is read along with the source's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Join {
    /// Table.
    pub table: At<String>,
    /// Schema; that of the source where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema: Option<At<String>>,
    /// Its name in the condition and in columns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alias: Option<At<String>>,
    /// The condition, in the source's SQL.
    pub on: At<String>,
    /// Which rows stay. Default: inner.
    #[serde(rename = "type", default)]
    pub kind: At<JoinKind>,
}

/// Which rows of a join stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum JoinKind {
    /// Those with a partner.
    #[default]
    Inner,
    /// All of the source's own.
    Left,
    /// All of the joined table's.
    Right,
    /// All.
    Full,
}

/// A condition on rows.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Filter", untagged)]
pub enum Filter {
    /// A condition in the source's SQL.
    #[serde(rename = "text")]
    Sql(String),
    /// A column compared with a value.
    #[serde(rename = "map")]
    Compare(Comparison),
}

impl Serialize for Filter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Filter::Sql(sql) => serializer.serialize_str(sql),
            Filter::Compare(comparison) => comparison.serialize(serializer),
        }
    }
}

/// A column compared with a value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Comparison {
    /// The column.
    pub column: At<String>,
    /// How. Default: =.
    #[serde(default)]
    pub operator: Operator,
    /// With what: a number, a text, true or false; a list for `in`.
    pub value: At<Value>,
}

/// How a column is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Operator {
    #[default]
    #[serde(rename = "=")]
    Equal,
    #[serde(rename = "!=")]
    NotEqual,
    #[serde(rename = "<")]
    Less,
    #[serde(rename = "<=")]
    LessOrEqual,
    #[serde(rename = ">")]
    Greater,
    #[serde(rename = ">=")]
    GreaterOrEqual,
    #[serde(rename = "in")]
    In,
}

/// Which columns go along.
#[derive(Debug, Clone, PartialEq)]
pub enum Columns {
    /// Every column of the source, under its own name and type.
    All,
    /// These.
    Listed(Vec<ColumnMapping>),
}

/// The unit of a sync.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum SyncType {
    /// Rows.
    #[default]
    RowLevel,
    /// Groups of rows, computed by the source.
    Aggregate,
}

/// What happens when the source's columns change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaDrift {
    /// The destination follows: columns are added, and by a log also widened.
    Evolve,
    /// The run is refused.
    Freeze,
    /// New columns stay behind.
    DiscardColumn,
    /// The pipeline waits until someone decides.
    Pause,
}

/// One column, from source to destination.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnMapping {
    /// Name on the way: in stages, groups and partitions. Unique in the pipeline.
    pub name: At<String>,
    /// Name at the source, with the table's alias where one was written (`o.id`); none = `expr` says it, or it is made
    /// on the way (by a stage, or as the hash of a row).
    pub source: Option<At<String>>,
    /// An expression of the source's SQL in place of a column.
    pub expr: Option<At<String>>,
    /// Name at the destination. Unique among the columns that are written.
    pub dest: At<String>,
    /// What stands for it at the destination, where it is not written and still compared or cut by: a column of the
    /// destination or an expression of its SQL.
    pub dest_expr: Option<At<String>>,
    /// It exists for the way alone: no column of the destination is made for it. Never written.
    pub is_virtual: bool,
    /// Type at the destination; none = the source's.
    pub data_type: Option<At<DataType>>,
    /// Digits of a decimal.
    pub precision: Option<u32>,
    /// Digits after the point.
    pub scale: Option<u32>,
    /// Characters of a varchar or char.
    pub length: Option<u32>,
    /// What the column is for.
    pub roles: Roles,
    /// Whether NULL is allowed at the destination; none = as at the source.
    pub nullable: Option<bool>,
    /// Carried as text, for a type without a counterpart.
    pub as_text: bool,
    /// `false` = read, and not written.
    pub insert: bool,
    /// Whether it counts in comparisons; none = it does unless another column says true.
    pub hashed: Option<bool>,
}

impl ColumnMapping {
    /// A column under the same name at both ends.
    pub fn same(name: impl Into<At<String>>) -> Self {
        let dest = name.into();
        Self {
            name: dest.clone(),
            source: Some(dest.clone()),
            expr: None,
            dest,
            dest_expr: None,
            is_virtual: false,
            data_type: None,
            precision: None,
            scale: None,
            length: None,
            roles: Roles::default(),
            nullable: None,
            as_text: false,
            insert: true,
            hashed: None,
        }
    }

    /// A column that a stage makes.
    pub fn made(name: impl Into<At<String>>) -> Self {
        Self {
            source: None,
            ..Self::same(name)
        }
    }

    /// The same with a type at the destination.
    #[must_use]
    pub(super) fn with_type(mut self, sized: Option<&At<SizedType>>) -> Self {
        let Some(sized) = sized else { return self };
        let [first, second] = sized.sizes;
        self.data_type = Some(sized.with(sized.data_type));
        match sized.data_type {
            DataType::Decimal => (self.precision, self.scale) = (first, second),
            _ => self.length = first,
        }
        self
    }

    /// A column that stages read and that is not written.
    pub fn fetched(name: impl Into<At<String>>, source: At<String>) -> Self {
        Self {
            source: Some(source),
            insert: false,
            ..Self::same(name)
        }
    }

    /// Whether `name` means this column: its name on the way or at either end, with or without the alias.
    pub fn is_called(&self, name: &str) -> bool {
        let source = self.source.as_ref().map_or("", |s| s.as_str());
        *name == **self.name || *name == **self.dest || name == source || source.rsplit('.').next() == Some(name)
    }

    /// Whether the source computes or holds it.
    pub fn is_read(&self) -> bool {
        self.source.is_some() || self.expr.is_some()
    }

    /// Whether it is a column of the destination.
    pub fn is_written(&self) -> bool {
        self.insert && !self.is_virtual
    }
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles {
    /// Part of what identifies a row.
    pub unique: bool,
    /// Runs are cut into partitions along it.
    pub partition: bool,
    /// Rows are ordered by it.
    pub order: Option<Direction>,
    /// It says when a row changed.
    pub delta: bool,
    /// It stores the hash of a row.
    pub hash_key: bool,
    /// It comes from another table on the way.
    pub enriched: bool,
}

/// Up or down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum Direction {
    #[default]
    Asc,
    Desc,
}

/// How a run is cut into partitions.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Partitioning {
    /// The column, as it is called at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<At<String>>,
    /// The width of a partition in units of the column (keys, seconds).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<At<u64>>,
}

/// What the destination may be asked to do.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Write {
    /// Deletes of more than 30 % and more than 1,000 rows, and an empty source, are carried out and not refused.
    pub allow_mass_delete: At<bool>,
    /// Rows that may be rejected before a run fails.
    pub reject_limit: At<u64>,
}

impl Pipeline {
    /// A pipeline that copies one table, with every default.
    pub fn copy(name: &str, source: (&str, &str), destination: (&str, &str)) -> Self {
        Self {
            name: name.into(),
            description: None,
            enabled: true.into(),
            source: Source {
                datastore: source.0.into(),
                table: source.1.into(),
                tables: Vec::new(),
                schema: None,
                alias: None,
                joins: Vec::new(),
                filters: Vec::new(),
                type_name: None,
            },
            destination: Destination {
                datastore: destination.0.into(),
                table: destination.1.into(),
                schema: None,
                supports_update: true.into(),
                distinct_keys: None,
                control_schema: None,
                type_name: None,
            },
            sync_type: SyncType::RowLevel.into(),
            columns: Columns::All,
            key: Vec::new(),
            group_by: Vec::new(),
            partitioning: Partitioning::default(),
            max_concurrent_partitions: None,
            strategies: vec![Strategy::new(StrategyKind::Full)],
            write: Write::default(),
            transform: Vec::new(),
            hash_algo: None,
            schema_drift: None,
            not_yet: Vec::new(),
        }
    }

    /// The strategy that follows the source's log, if that is what the pipeline does.
    pub fn log(&self) -> Option<&Strategy> {
        self.strategies.iter().find(|s| *s.kind == StrategyKind::Log)
    }

    /// The columns where they are listed; empty where all go along.
    pub fn listed(&self) -> &[ColumnMapping] {
        match &self.columns {
            Columns::All => &[],
            Columns::Listed(columns) => columns,
        }
    }

    /// The listed column that a name means: by its name on the way first, then by its name at an end.
    pub fn column(&self, name: &str) -> Option<&ColumnMapping> {
        find_column(self.listed(), name)
    }

    /// The names of the datastores it needs: those of its ends, then those of its stages.
    pub fn datastores(&self) -> impl Iterator<Item = &At<String>> {
        let of_stages = self.transform.iter().filter_map(|stage| match &stage.work {
            StageWork::Enrich(enrich) => Some(&enrich.datastore),
            _ => None,
        });
        [&self.source.datastore, &self.destination.datastore]
            .into_iter()
            .chain(of_stages)
    }

    /// The algorithm of a strategy's hashes.
    pub fn hash_algo_of(&self, strategy: &Strategy) -> Option<HashAlgorithm> {
        strategy.hash_algo.as_ref().or(self.hash_algo.as_ref()).map(|a| **a)
    }

    /// The algorithm of hashes that are kept, which all strategies write alike: the pipeline's, else the first that a
    /// strategy says.
    pub fn kept_hash_algo(&self) -> Option<HashAlgorithm> {
        let of_strategies = || self.strategies.iter().find_map(|s| s.hash_algo.as_deref());
        self.hash_algo.as_deref().or_else(of_strategies).copied()
    }

    /// The column that keeps each row's hash: one with `hash_key` that is written and that the source does not have.
    pub fn kept_hash(&self) -> Option<&ColumnMapping> {
        let keeps = |c: &&ColumnMapping| c.roles.hash_key && c.is_written() && !c.is_read();
        self.listed().iter().find(keeps)
    }

    /// The columns that make a group, in the order of `group_by`.
    pub fn groups(&self) -> impl Iterator<Item = &ColumnMapping> {
        self.group_by.iter().filter_map(|name| self.column(name))
    }

    /// The columns that are computed over the rows of a group.
    pub fn aggregates(&self) -> impl Iterator<Item = &ColumnMapping> {
        let grouped = |c: &ColumnMapping| self.group_by.iter().any(|name| c.is_called(name));
        let aggregate = *self.sync_type == SyncType::Aggregate;
        self.listed()
            .iter()
            .filter(move |c| aggregate && c.is_read() && !c.is_virtual && !grouped(c))
    }

    /// The strategy that `wanted` means: by name first, then by type if exactly one is of it.
    pub fn strategy(&self, wanted: &str) -> Result<&Strategy, ConfigError> {
        if let Some(strategy) = self.strategies.iter().find(|s| **s.name == *wanted) {
            return Ok(strategy);
        }
        let mut of_type = self.strategies.iter().filter(|s| s.kind.name() == wanted);
        match (of_type.next(), of_type.next()) {
            (Some(strategy), None) => Ok(strategy),
            (Some(_), Some(_)) => {
                let names: Vec<&str> = self
                    .strategies
                    .iter()
                    .filter(|s| s.kind.name() == wanted)
                    .map(|s| s.name.as_str())
                    .collect();
                Err(self
                    .name
                    .error(format!("several strategies are of type {wanted}"))
                    .with_help(format!("name one: {}", names.join(", "))))
            }
            (None, _) => {
                let names: Vec<&str> = self.strategies.iter().map(|s| s.name.as_str()).collect();
                let error = self
                    .name
                    .error(format!("pipeline {} has no strategy \"{wanted}\"", self.name.shown()));
                // A type that could be there is more likely meant than a name that looks alike.
                let is_type = ["full", "delta", "hash"].contains(&wanted);
                Err(match super::error::suggestion(wanted, "strategies", &names) {
                    _ if is_type => error.with_help(format!(
                        "it has: {}; add to its strategies: - {{name: {wanted}, type: {wanted}}}",
                        names.join(", ")
                    )),
                    Some(help) => error.with_help(help),
                    None => error,
                })
            }
        }
    }
}

/// The column that a name means: by its name on the way first, then by its name at an end.
pub(super) fn find_column<'a>(listed: &'a [ColumnMapping], name: &str) -> Option<&'a ColumnMapping> {
    listed
        .iter()
        .find(|c| **c.name == *name)
        .or_else(|| listed.iter().find(|c| c.is_called(name)))
}
