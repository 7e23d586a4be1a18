//! Columns of the second generation: the nearer place wins, and each end knows them by another name.

use super::super::super::at::At;
use super::super::super::error::ConfigError;
use super::super::super::form::{ColumnFile, SourceName};
use super::G2Column;

/// Columns over what farther places say of the same names; of a name that stands twice both say something.
pub(super) fn merged(columns: &[At<G2Column>], farther: &[G2Column]) -> Vec<G2Column> {
    let mut all: Vec<G2Column> = Vec::new();
    for column in columns {
        match all.iter_mut().find(|c| *c.name == *column.name) {
            Some(twin) => *twin = column.over(twin),
            None => all.push((**column).clone()),
        }
    }
    for column in &mut all {
        for f in farther {
            if *f.name == *column.name {
                *column = column.over(f);
            }
        }
    }
    all
}

pub(super) fn by_name<'a>(columns: &'a [G2Column], name: &str) -> Option<&'a G2Column> {
    columns.iter().find(|c| **c.name == *name)
}

/// Whether a text names a column, and is no SQL to be computed.
pub(super) fn is_column(text: &str) -> bool {
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '$')
    };
    let parts: Vec<&str> = text.split('.').collect();
    let keyword = [
        "null",
        "true",
        "false",
        "current_date",
        "current_timestamp",
        "current_user",
    ];
    parts.len() <= 2 && parts.iter().all(|p| part(p)) && !keyword.contains(&text.to_ascii_lowercase().as_str())
}

/// The columns of the pipeline: those of the destination with what they are at the source, then those that are
/// fetched for stages alone.
pub(super) fn columns(
    at_source: &[G2Column],
    of_fetch: Option<&[G2Column]>,
    written: &[G2Column],
    own_hash: impl Fn(&str) -> bool,
    errors: &mut Vec<ConfigError>,
) -> Vec<At<ColumnFile>> {
    let read = of_fetch.unwrap_or(at_source);
    let mut all = Vec::new();
    for column in written {
        let source = by_name(read, &column.name).or_else(|| {
            // What stands for a partition column at the destination stands for the source's own column.
            by_name(at_source, &column.name).filter(|s| column.is_virtual() || s.is_hash())
        });
        let hash = source.is_some_and(G2Column::is_hash) || own_hash(&column.name);
        let dest = column.expr();
        if !column.is_virtual() && !is_column(dest) {
            errors.push(
                dest.error(format!(
                    "expr of column \"{}\" at the destination must be the name of a column",
                    column.name.shown()
                ))
                .with_help("SQL belongs to the source, or to a virtual column"),
            );
        }
        let mut file = ColumnFile {
            name: Some(column.name.clone()),
            dest: Some(if column.is_virtual() {
                column.name.clone()
            } else {
                dest.clone()
            }),
            is_virtual: column.is_virtual().then_some(true),
            dest_expr: column.expr.clone().filter(|_| column.is_virtual()),
            ..roles(column, source, hash)
        };
        (file.source, file.expr) = origin(source, hash);
        all.push(column.name.with(file));
    }
    for column in read
        .iter()
        .filter(|c| by_name(written, &c.name).is_none() && !written.is_empty())
    {
        let hash = column.is_hash();
        let (source, expr) = origin(Some(column), hash);
        all.push(column.name.with(ColumnFile {
            name: Some(column.name.clone()),
            source,
            expr,
            is_virtual: column.is_virtual().then_some(true),
            insert: (!column.is_virtual()).then_some(false),
            ..roles(&G2Column::default(), Some(column), hash)
        }));
    }
    if written.is_empty() {
        for column in read {
            let hash = column.is_hash();
            let (source, expr) = origin(Some(column), hash);
            all.push(column.name.with(ColumnFile {
                name: Some(column.name.clone()),
                source,
                expr,
                is_virtual: column.is_virtual().then_some(true),
                ..roles(column, Some(column), hash)
            }));
        }
    }
    all
}

/// What a column is at the source: a column, an expression, or nothing.
fn origin(source: Option<&G2Column>, hash: bool) -> (SourceName, Option<At<String>>) {
    match source {
        None => (SourceName::Made, None),
        Some(s) if s.is_virtual() && (hash || s.expr.is_none()) => (SourceName::Made, None),
        Some(s) if is_column(s.expr()) => (SourceName::Column(s.expr().clone()), None),
        Some(s) => (SourceName::NotSaid, Some(s.expr().clone())),
    }
}

/// Types and roles: the destination's word first.
fn roles(column: &G2Column, source: Option<&G2Column>, hash: bool) -> ColumnFile {
    let nothing = G2Column::default();
    let both = column.over(source.unwrap_or(&nothing));
    ColumnFile {
        data_type: column.data_type.clone().or_else(|| column.type_.clone()),
        precision: column.precision.clone(),
        scale: column.scale.clone(),
        length: column.max_length.clone().or_else(|| column.length.clone()),
        unique_column: both.unique_column,
        order_column: both.order_column,
        direction: both.direction,
        partition_column: both.partition_column,
        delta_column: both.delta_column,
        hash_key: hash.then_some(true),
        hash_column: both.hash_column,
        nullable: column.nullable,
        ..ColumnFile::default()
    }
}

#[cfg(test)]
mod tests {
    use super::is_column;

    #[test]
    fn columns_and_expressions() {
        for column in ["id", "u.id", "_x", "größe", "a$1"] {
            assert!(is_column(column), "{column}");
        }
        for sql in [
            "count(1)",
            "a + b",
            "CAST(x AS DATE)",
            "'x'",
            "1",
            "a.b.c",
            "current_date",
            "NULL",
            "",
        ] {
            assert!(!is_column(sql), "{sql}");
        }
    }
}
