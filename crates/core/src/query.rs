//! What may be read of a source beyond whole columns of one table: joins, conditions, expressions and groups.
//!
//! SQL text in here is the user's own, in the dialect of the source, and stays text until a connector puts it into a
//! statement; everything else (names, values) is data that the connector quotes. A source whose engine speaks no SQL
//! (files) refuses expressions and joins when the plan is made.

use crate::change::KeyRange;
use crate::schema::ColumnType;
use crate::written::canonical;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Something that has a value for every row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Term {
    /// A column, of the table read or of a joined one.
    Column {
        /// The alias (or name) of the table; `None` means the table read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        relation: Option<String>,
        /// The exact name.
        name: String,
    },
    /// An expression in the source's SQL.
    Sql(String),
}

impl Term {
    /// A column of the table read.
    pub fn column(name: impl Into<String>) -> Self {
        Term::Column {
            relation: None,
            name: name.into(),
        }
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Term::Column { relation: None, name } => f.write_str(name),
            Term::Column {
                relation: Some(relation),
                name,
            } => write!(f, "{relation}.{name}"),
            Term::Sql(sql) => f.write_str(sql),
        }
    }
}

/// Which rows of a join stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JoinKind {
    /// Those with a partner.
    Inner,
    /// All of the table read.
    Left,
    /// All of the joined table.
    Right,
    /// All.
    Full,
}

/// A table that is read along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    /// The table.
    pub table: crate::schema::TableId,
    /// Its name in terms and in the condition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
    /// Which rows stay.
    pub kind: JoinKind,
    /// The condition, in the source's SQL.
    pub on: String,
}

/// Whether every row of a join belongs to one of the table read.
pub fn keeps_rows(joins: &[Join]) -> bool {
    joins.iter().all(|j| matches!(j.kind, JoinKind::Inner | JoinKind::Left))
}

/// A condition on rows, in the source's SQL or as data.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filter {
    /// SQL that is true, false or NULL; only true keeps a row.
    Sql(String),
    /// A test of a term.
    Test(Condition),
}

/// A test of one term.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Condition {
    /// What is tested.
    pub term: Term,
    /// How.
    pub test: Test,
}

impl Condition {
    /// The same of a filter, whose values stand as a person wrote them (`2024-01-15`, `2024-01-15T02:00:00+02:00`,
    /// `yes`): of truths, days and moments the canonical text of the term's type. What is no value of it stays, for the
    /// engine to judge, and so does a time of day beside a column of days.
    pub fn as_written(&self, ty: &ColumnType) -> Condition {
        let value = |text: &String| match ty {
            ColumnType::Date if text.contains(':') => text.clone(),
            ColumnType::Bool | ColumnType::Date | ColumnType::Timestamp | ColumnType::TimestampTz => {
                canonical(text, ty).unwrap_or_else(|| text.clone())
            }
            _ => text.clone(),
        };
        Condition {
            term: self.term.clone(),
            test: match &self.test {
                Test::Compare(how, text) => Test::Compare(*how, value(text)),
                Test::In(values) => Test::In(values.iter().map(value).collect()),
                other => other.clone(),
            },
        }
    }

    /// What is left of a test that NULL meets too, without NULL.
    #[must_use]
    pub fn without_null(&self) -> Condition {
        let test = match self.test.clone() {
            Test::NullOrIn(values) => Test::In(values),
            Test::NullOrNotIn(values) => Test::NotIn(values),
            Test::NullOrRange { lower, upper } => Test::Range { lower, upper },
            other => other,
        };
        let term = self.term.clone();
        Condition { term, test }
    }
}

/// A test. Values are canonical texts ([`crate::text`]) of the term's type; the connector makes literals of them that
/// compare in the term's own order.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// `lower <= term < upper`; an open side is `None`. NULL is in no range.
    Range {
        /// The first value inside.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lower: Option<String>,
        /// The first value behind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<String>,
    },
    /// One of these values; NULL is none of them.
    In(Vec<String>),
    /// None of these values; NULL is not meant either.
    NotIn(Vec<String>),
    /// A comparison.
    Compare(Comparison, String),
    /// NULL.
    Null,
    /// Not NULL.
    NotNull,
    /// One of these values, or NULL. There is at least one.
    NullOrIn(Vec<String>),
    /// NULL, or none of these values. There is at least one.
    NullOrNotIn(Vec<String>),
    /// NULL, or in a range as [`Test::Range`] has it.
    NullOrRange {
        /// The first value inside.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        lower: Option<String>,
        /// The first value behind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        upper: Option<String>,
    },
}

/// How a value is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Comparison {
    /// `=`
    Equal,
    /// `<>`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

impl Comparison {
    /// The operator, the same in every SQL.
    pub fn sql(self) -> &'static str {
        match self {
            Comparison::Equal => "=",
            Comparison::NotEqual => "<>",
            Comparison::Less => "<",
            Comparison::LessOrEqual => "<=",
            Comparison::Greater => ">",
            Comparison::GreaterOrEqual => ">=",
        }
    }
}

/// A slice cut by conditions, all of which must hold, and by a range of keys inside them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cut {
    /// The conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The range of keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyRange>,
}

/// Rows (or groups) named one by one. Never part of a stored plan: readers that follow other rows make them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyList {
    /// What identifies a row.
    pub terms: Vec<Term>,
    /// The values, as canonical texts, in the order of the terms. `None` is NULL and means rows where the term is NULL.
    pub keys: Vec<Vec<Option<String>>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_filters_may_be_written_as_people_write_them() {
        use ColumnType as T;
        let of = |text: &str, ty: &T| {
            let condition = Condition {
                term: Term::column("c"),
                test: Test::Compare(Comparison::Less, text.into()),
            };
            match condition.as_written(ty).test {
                Test::Compare(Comparison::Less, text) => text,
                other => panic!("{other:?}"),
            }
        };
        for (written, ty, canonical) in [
            ("2024-01-15", T::Timestamp, "2024-01-15 00:00:00"),
            ("2024-01-15T02:00:00+02:00", T::TimestampTz, "2024-01-15 00:00:00+00"),
            ("2024-01-15T00:00:00Z", T::TimestampTz, "2024-01-15 00:00:00+00"),
            ("2024-01-15 00:00:00+00", T::TimestampTz, "2024-01-15 00:00:00+00"),
            ("infinity", T::TimestampTz, "infinity"),
            ("2024-01-15", T::Date, "2024-01-15"),
            ("2024-01-15 12:00", T::Date, "2024-01-15 12:00"),
            ("yes", T::Bool, "true"),
            ("today", T::Date, "today"),
            (" 2024-01-15", T::Text { max: None }, " 2024-01-15"),
            ("5.5", T::Int32, "5.5"),
        ] {
            assert_eq!(of(written, &ty), canonical, "{written} as {ty}");
        }
        let listed = Condition {
            term: Term::column("c"),
            test: Test::In(vec!["no".into(), "1".into()]),
        };
        assert_eq!(
            listed.as_written(&T::Bool).test,
            Test::In(vec!["false".into(), "true".into()])
        );
    }
}
