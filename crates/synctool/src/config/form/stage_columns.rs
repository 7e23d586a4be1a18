//! Columns that stages read from the source and make, where no column says them.

use super::super::at::At;
use super::super::error::{ConfigError, nearest};
use super::super::pipeline::{ColumnMapping, Filter, Source, find_column};
use super::super::stage::{Computed, Stage, StageWork};
use super::super::types::SizedType;

/// The name under which the original's lambdas see the hash of a row.
const HASH_OF_ROW: &str = "hash__";

/// Adds to the columns what stages read from the source and what they make, where no column says it.
pub(super) fn complete_columns(
    stages: &[Stage],
    source: &Source,
    columns: &mut Vec<ColumnMapping>,
    errors: &mut Vec<ConfigError>,
) {
    for stage in stages.iter().filter(|s| *s.enabled) {
        match &stage.work {
            StageWork::Compute(computed) => {
                for c in computed {
                    for read in reads(c) {
                        fetch(&read, source, columns, errors);
                    }
                    make(&c.name, c.data_type.as_ref(), columns);
                }
            }
            StageWork::Enrich(enrich) => {
                for key in &enrich.on {
                    fetch(&key.column, source, columns, errors);
                }
                if let Some(as_of) = &enrich.as_of {
                    fetch(&as_of.column, source, columns, errors);
                }
                for field in &enrich.fields {
                    make(&field.dest, field.data_type.as_ref(), columns);
                }
            }
            StageWork::Cast(casts) => {
                for (column, to) in casts {
                    must_be_there(&to.with(column.clone()), "cast", columns, errors);
                }
            }
            StageWork::ValueMap(map) => must_be_there(&map.column, "value_map", columns, errors),
            StageWork::Dedup(dedup) => {
                for key in &dedup.keys {
                    must_be_there(key, "dedup", columns, errors);
                }
                if let Some(by) = &dedup.by {
                    fetch(by, source, columns, errors);
                }
            }
            StageWork::Filter(filters) => {
                for filter in filters {
                    if let Filter::Compare(comparison) = &**filter {
                        fetch(&comparison.column, source, columns, errors);
                    }
                }
            }
            StageWork::Batch(_) => {}
        }
    }
    let makes = |column: &ColumnMapping| {
        stages.iter().filter(|s| *s.enabled).any(|stage| match &stage.work {
            StageWork::Compute(computed) => computed.iter().any(|c| column.is_called(&c.name)),
            StageWork::Enrich(enrich) => enrich.fields.iter().any(|f| column.is_called(&f.dest)),
            _ => false,
        })
    };
    for column in columns.iter() {
        if column.is_written() && !column.is_read() && !column.roles.hash_key && !makes(column) {
            errors.push(
                column
                    .dest
                    .error(format!(
                        "column \"{}\" has no source, and no stage makes it",
                        column.dest.shown()
                    ))
                    .with_help(
                        "give it a source or an expr, compute it in transform, or leave it out by `insert: false`",
                    ),
            );
        }
    }
}

/// What an expression reads: what it says it does, and every `x["name"]` in it.
fn reads(computed: &Computed) -> Vec<At<String>> {
    let mut names: Vec<At<String>> = computed.column.iter().chain(&computed.columns).cloned().collect();
    let text = computed.expression.as_str();
    for quote in ['"', '\''] {
        for piece in text.split(&format!("[{quote}")).skip(1) {
            if let Some((name, _)) = piece.split_once(&format!("{quote}]"))
                && !names.iter().any(|n| **n == *name)
            {
                names.push(computed.expression.with(name.to_owned()));
            }
        }
    }
    names
}

fn fetch(name: &At<String>, source: &Source, columns: &mut Vec<ColumnMapping>, errors: &mut Vec<ConfigError>) {
    if **name == HASH_OF_ROW {
        errors.push(
            name.error("a stage cannot read the hash of a row")
                .with_help("a column with `source: null` and `hash_key: true` gets it"),
        );
    } else if find_column(columns, name).is_none() {
        let at_source = match (&source.alias, name.contains('.')) {
            (Some(alias), false) => name.with(format!("{}.{}", **alias, **name)),
            _ => name.clone(),
        };
        columns.push(ColumnMapping::fetched(name.clone(), at_source));
    }
}

fn make(name: &At<String>, data_type: Option<&At<SizedType>>, columns: &mut Vec<ColumnMapping>) {
    if find_column(columns, name).is_none() {
        columns.push(ColumnMapping::made(name.clone()).with_type(data_type));
    }
}

fn must_be_there(name: &At<String>, whose: &str, columns: &[ColumnMapping], errors: &mut Vec<ConfigError>) {
    if find_column(columns, name).is_none() {
        let error = name.error(format!(
            "{whose} names \"{}\", which is not among the columns",
            name.shown()
        ));
        errors.push(match nearest(name, columns.iter().map(|c| c.name.as_str())) {
            Some(candidate) => error.with_help(format!("did you mean \"{candidate}\"?")),
            None => error,
        });
    }
}
