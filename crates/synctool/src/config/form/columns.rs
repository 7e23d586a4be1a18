//! Columns: how they stand in files, and how they resolve.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::at::At;
use super::super::decode::Notice;
use super::super::error::{ConfigError, nearest};
use super::super::pipeline::{ColumnMapping, Direction, Roles, find_column};
use super::super::types::{DataType, SizedType};

/// Which columns go along: the word all, or a list of names and mappings.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Columns", untagged)]
#[allow(dead_code, reason = "read and checked, and not acted upon in this version")]
pub(in super::super) enum ColumnsFile {
    #[serde(rename = "text")]
    All(At<AllColumns>),
    #[serde(rename = "list")]
    Listed(Vec<ColumnEntry>),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(in super::super) enum AllColumns {
    /// Every column of the source.
    All,
}

/// A column: its name, or how it is mapped.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "Column", untagged)]
pub(in super::super) enum ColumnEntry {
    #[serde(rename = "text")]
    Name(At<String>),
    #[serde(rename = "map")]
    Mapping(Box<At<ColumnFile>>),
}

/// How a column is mapped.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in super::super) struct ColumnFile {
    /// The column's name in stages, groups and partitions, and at both ends where `source` and `dest` do not say
    /// otherwise.
    pub(in super::super) name: Option<At<String>>,
    /// Name at the source, with the table's alias where there are joins; null = made on the way (by a stage, or as the
    /// hash of a row).
    #[serde(default)]
    pub(in super::super) source: SourceName,
    /// Another name of `source`.
    #[serde(default)]
    pub(in super::super) src: SourceName,
    /// Name at the destination. Default: that of the source.
    pub(in super::super) dest: Option<At<String>>,
    /// Type at the destination. Default: the source's.
    pub(in super::super) data_type: Option<At<SizedType>>,
    /// Another name of `data_type`.
    #[serde(rename = "type")]
    pub(in super::super) type_: Option<At<SizedType>>,
    /// Digits of a decimal.
    pub(in super::super) precision: Option<At<u32>>,
    /// Digits after the point.
    pub(in super::super) scale: Option<At<u32>>,
    /// Characters of a varchar or char.
    pub(in super::super) length: Option<At<u32>>,
    /// Another name of `length`.
    pub(in super::super) max_length: Option<At<u32>>,
    /// What the column is for.
    #[serde(default)]
    pub(in super::super) roles: Vec<At<Role>>,
    /// The role of the same name.
    pub(in super::super) unique_column: Option<bool>,
    /// Has no effect: rows are read in the order in which a run can go on after an interruption.
    pub(in super::super) order_column: Option<bool>,
    /// Has no effect, like order_column.
    pub(in super::super) direction: Option<Direction>,
    /// The role of the same name.
    pub(in super::super) partition_column: Option<bool>,
    /// The role of the same name.
    pub(in super::super) delta_column: Option<bool>,
    /// The column stores the hash of a row.
    pub(in super::super) hash_key: Option<bool>,
    /// Whether the column counts in comparisons.
    pub(in super::super) hash_column: Option<bool>,
    /// Whether NULL is allowed at the destination. Default: as at the source.
    pub(in super::super) nullable: Option<bool>,
    /// Carried as text.
    pub(in super::super) as_text: Option<bool>,
    /// false = read, and not written. Default: true.
    pub(in super::super) insert: Option<bool>,
    /// An expression in the source's SQL, in place of a column; in aggregates such as sum(amount).
    pub(in super::super) expr: Option<At<String>>,
    /// true = computed for the way alone, and no column of the destination. Default: false.
    #[serde(rename = "virtual")]
    pub(in super::super) is_virtual: Option<bool>,
    /// What stands for a virtual column at the destination, where runs are cut by it: a column or an expression.
    pub(in super::super) dest_expr: Option<At<String>>,
}

/// A name, nothing (made on the way), or not said.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename = "$by_kind")]
#[schemars(rename = "SourceName", untagged)]
pub(in super::super) enum SourceName {
    #[default]
    #[serde(skip)]
    NotSaid,
    #[serde(rename = "null")]
    Made,
    #[serde(rename = "text")]
    Column(At<String>),
}

/// What a column is for.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(in super::super) enum Role {
    /// Part of what identifies a row.
    Unique,
    /// The same as unique.
    UniqueColumn,
    /// Runs are cut into partitions along it.
    Partition,
    /// The same as partition.
    PartitionColumn,
    /// Has no effect, like order_column.
    Order,
    /// The same as order.
    OrderColumn,
    /// It says when a row changed.
    Delta,
    /// The same as delta.
    DeltaColumn,
    /// It stores the hash of a row.
    HashKey,
    /// It comes from another table on the way.
    EnrichedKey,
}

pub(super) fn column(
    entry: ColumnEntry,
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) -> Option<ColumnMapping> {
    let file = match entry {
        ColumnEntry::Name(name) => return Some(ColumnMapping::same(name)),
        ColumnEntry::Mapping(file) => *file,
    };
    let place = file.with(());
    let file = file.into_inner();
    let is_virtual = file.is_virtual.unwrap_or(false);
    let roles_say = |plain: Role, long: Role| file.roles.iter().any(|r| **r == plain || **r == long);
    let hash_key = roles_say(Role::HashKey, Role::HashKey) || file.hash_key == Some(true);
    let ordered = roles_say(Role::Order, Role::OrderColumn) || file.order_column == Some(true);
    if ordered || file.direction.is_some() {
        unheard_order(&place, notices);
    }
    let said = match (file.source, file.src) {
        (SourceName::Column(_) | SourceName::Made, SourceName::Column(_) | SourceName::Made) => {
            errors.push(place.error("source and src of a column are the same key"));
            return None;
        }
        (SourceName::NotSaid, said) | (said, SourceName::NotSaid) => said,
    };
    if let (SourceName::Column(source), Some(_)) = (&said, &file.expr) {
        errors.push(source.error("a column has a source or an expr, and not both"));
    }
    let source = match said {
        SourceName::Column(name) => Some(name),
        SourceName::Made => None,
        SourceName::NotSaid if file.expr.is_some() || (is_virtual && hash_key) => None,
        SourceName::NotSaid => match file.name.clone().or_else(|| file.dest.clone()) {
            Some(name) => Some(name),
            None => {
                errors.push(place.error("a column needs its name: source, dest or name"));
                return None;
            }
        },
    };
    let Some(dest) = file
        .dest
        .clone()
        .or_else(|| file.name.clone())
        .or_else(|| source.as_ref().map(|s| s.with(last_part(s))))
    else {
        errors.push(place.error("a column without a source needs dest"));
        return None;
    };
    if let (Some(stands), false) = (&file.dest_expr, is_virtual) {
        errors.push(stands.error(format!(
            "dest_expr belongs to virtual columns, and {} is written",
            dest.shown()
        )));
    }
    if let (Some(_), Some(second)) = (&file.data_type, &file.type_) {
        errors.push(second.error("type and data_type of a column are the same key"));
    }
    if let (Some(_), Some(second)) = (&file.length, &file.max_length) {
        errors.push(second.error("length and max_length of a column are the same key"));
    }
    let sized = file.data_type.or(file.type_);
    let data_type = sized.as_ref().map(|t| t.data_type);
    let (precision, scale) = (file.precision, file.scale);
    let length = file.length.or(file.max_length);
    for (key, value) in [("precision", &precision), ("scale", &scale)] {
        if let (Some(value), Some(other)) = (value, data_type.filter(|t| *t != DataType::Decimal)) {
            errors.push(value.error(format!(
                "{key} belongs to decimal, and column {} is {other}",
                dest.shown()
            )));
        }
    }
    if let (Some(value), Some(other)) = (
        &length,
        data_type.filter(|t| !matches!(t, DataType::Varchar | DataType::Char)),
    ) {
        errors.push(value.error(format!(
            "length belongs to varchar and char, and column {} is {other}",
            dest.shown()
        )));
    }
    let sizes = sized.as_ref().map_or([None, None], |t| t.sizes);
    let decimal = data_type == Some(DataType::Decimal);
    let in_brackets = |i: usize, of_decimal: bool| sizes[i].filter(|_| decimal == of_decimal);
    let digits = precision.as_deref().copied().or(in_brackets(0, true));
    let after_point = scale.as_deref().copied().or(in_brackets(1, true));
    if let Some(scale_value) = after_point
        && digits.is_none_or(|digits| scale_value > digits)
    {
        let at = scale
            .as_ref()
            .map(|s| s.with(()))
            .or(sized.as_ref().map(|s| s.with(())))
            .unwrap_or(place);
        errors.push(at.error(match digits {
            Some(digits) => format!(
                "scale {scale_value} of column {} is more than its precision {digits}",
                dest.shown()
            ),
            None => format!("column {} has a scale and no precision", dest.shown()),
        }));
    }
    let length_value = length.as_deref().copied().or(in_brackets(0, false));
    if digits == Some(0) || length_value == Some(0) {
        let at = precision
            .as_ref()
            .or(length.as_ref())
            .map(|n| n.with(()))
            .or(sized.as_ref().map(|s| s.with(())));
        errors.push(at.unwrap_or_default().error(format!(
            "precision and length of column {} must be at least 1",
            dest.shown()
        )));
    }
    let has = roles_say;
    let roles = Roles {
        unique: has(Role::Unique, Role::UniqueColumn) || file.unique_column == Some(true),
        partition: has(Role::Partition, Role::PartitionColumn) || file.partition_column == Some(true),
        order: ordered.then(|| file.direction.unwrap_or_default()),
        delta: has(Role::Delta, Role::DeltaColumn) || file.delta_column == Some(true),
        hash_key,
        enriched: has(Role::EnrichedKey, Role::EnrichedKey),
    };
    Some(ColumnMapping {
        name: file.name.unwrap_or_else(|| dest.clone()),
        source,
        expr: file.expr,
        dest,
        dest_expr: file.dest_expr,
        is_virtual,
        data_type: sized.map(|t| t.with(t.data_type)),
        precision: digits,
        scale: after_point,
        length: length_value,
        roles,
        nullable: file.nullable,
        as_text: file.as_text.unwrap_or(false),
        insert: file.insert.unwrap_or(true),
        hashed: file.hash_column,
    })
}

/// An order of columns is told once, at the first column that has one.
fn unheard_order(column: &At<()>, notices: &mut Vec<Notice>) {
    let key = "order_column";
    if notices.iter().all(|n| n.key != key) {
        let message = "order_column and direction have no effect: rows are read in the order in which a run can go on after an \
                       interruption";
        notices.extend(Notice::at(column, key, message.into()));
    }
}

/// `o.id` → `id`.
fn last_part(name: &str) -> String {
    name.rsplit('.').next().unwrap_or(name).to_owned()
}

pub(super) fn check_columns(columns: &[ColumnMapping], errors: &mut Vec<ConfigError>) {
    for (i, column) in columns.iter().enumerate() {
        if column.dest.trim().is_empty() {
            errors.push(column.dest.error("a column's name is empty"));
        } else if columns[..i]
            .iter()
            .any(|c| *c.dest == *column.dest && c.is_written() && column.is_written())
        {
            errors.push(
                column
                    .dest
                    .error(format!("column \"{}\" is written twice", column.dest.shown())),
            );
        } else if columns[..i].iter().any(|c| *c.name == *column.name) {
            errors.push(
                column
                    .name
                    .error(format!("two columns are named \"{}\"", column.name.shown())),
            );
        }
    }
    type Has = fn(&Roles) -> bool;
    let at_most_one: [(&str, Has); 3] = [
        ("partition_column", |roles| roles.partition),
        ("delta_column", |roles| roles.delta),
        ("hash_key", |roles| roles.hash_key),
    ];
    for (role, has) in at_most_one {
        let mut with_role = columns.iter().filter(|c| has(&c.roles));
        if let (Some(first), Some(second)) = (with_role.next(), with_role.next()) {
            errors.push(second.dest.error(format!(
                "two columns have the role {role}: {} and {}",
                first.dest.shown(),
                second.dest.shown()
            )));
        }
    }
}

/// A column that is named elsewhere must be among those listed, where they are listed.
pub(super) fn known_column<'a>(
    name: &At<String>,
    whose: &str,
    listed: &'a [ColumnMapping],
    errors: &mut Vec<ConfigError>,
) -> Option<&'a ColumnMapping> {
    let found = find_column(listed, name);
    if found.is_none() && !listed.is_empty() {
        let error = name.error(format!(
            "{whose} names \"{}\", which is not among the columns",
            name.shown()
        ));
        errors.push(match nearest(name, listed.iter().map(|c| c.name.as_str())) {
            Some(candidate) => error.with_help(format!("did you mean \"{candidate}\"?")),
            None => error,
        });
    }
    found
}
