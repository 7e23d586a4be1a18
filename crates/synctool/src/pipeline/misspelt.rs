//! Where the file names a column that is not there.

use crate::config::{At, Deletes, Enrich, FieldSource, Filter, Loaded, Origin, Stage, StageWork, Strategy};
use synctool_core::error::{Among, Error};

/// A word of the file that may be a column's name, and where it stands.
type Mention<'a> = (&'a str, Option<&'a Origin>);

/// An error over a column that is not there, with the place at which the file names it.
pub(super) fn placed(error: Error, loaded: &Loaded, strategy: &Strategy) -> Error {
    let Some((among, column)) = error.missing_column() else {
        return error;
    };
    let stages = loaded.pipeline.transform.iter().filter(|s| s.applies_to(strategy));
    let mentions: Vec<Mention> = match among {
        Among::Table => of_source(loaded, strategy),
        Among::Rows => stages.flat_map(of_rows).collect(),
        Among::Dimension => stages.flat_map(of_dimension).collect(),
    };
    // With the alias of its table or without.
    let missing = |(name, _): &&Mention| *name == column || name.rsplit('.').next() == Some(column);
    let origin = mentions.iter().find(missing).and_then(|(_, origin)| *origin);
    match origin.map(ToString::to_string) {
        Some(place) => error.at("written at", place),
        None => error,
    }
}

/// What is said of the source's columns, other than by `columns`.
fn of_source<'a>(loaded: &'a Loaded, strategy: &'a Strategy) -> Vec<Mention<'a>> {
    let pipeline = &loaded.pipeline;
    let mut found: Vec<Mention> = strategy.column.iter().chain(&pipeline.key).map(whole).collect();
    found.extend(strategy.dimensions().map(|d| whole(&d.column)));
    found.extend(pipeline.partitioning.column.iter().map(whole));
    if let Some(Deletes::Tombstone(tombstone)) = strategy.deletes.as_deref() {
        found.push(whole(&tombstone.column));
    }
    found.extend(pipeline.source.filters.iter().flat_map(of_filter));
    found
}

/// The columns of rows that a stage reads.
fn of_rows(stage: &Stage) -> Vec<Mention<'_>> {
    match &stage.work {
        StageWork::Compute(columns) => {
            let one = columns.iter().flat_map(|c| {
                let said = c.column.iter().chain(&c.columns).map(whole);
                said.chain(words(&c.expression, c.expression.origin()))
            });
            one.collect()
        }
        StageWork::Cast(casts) => casts
            .iter()
            .map(|(column, to)| (column.as_str(), to.origin()))
            .collect(),
        StageWork::ValueMap(map) => vec![whole(&map.column)],
        StageWork::Filter(filters) => filters.iter().flat_map(of_filter).collect(),
        StageWork::Dedup(dedup) => dedup.keys.iter().chain(&dedup.by).map(whole).collect(),
        StageWork::Enrich(enrich) => {
            let mut found: Vec<Mention> = enrich.on.iter().map(|on| whole(&on.column)).collect();
            found.extend(enrich.as_of.iter().map(|as_of| whole(&as_of.column)));
            let transforms = enrich.fields.iter().filter_map(|f| f.transform.as_ref());
            found.extend(transforms.flat_map(|t| words(t, t.origin())));
            found
        }
        StageWork::Batch(_) => Vec::new(),
    }
}

/// The columns of the table that a stage adds columns of.
fn of_dimension(stage: &Stage) -> Vec<Mention<'_>> {
    let StageWork::Enrich(enrich) = &stage.work else {
        return Vec::new();
    };
    let enrich: &Enrich = enrich;
    let mut found: Vec<Mention> = enrich.on.iter().map(|on| whole(&on.key)).collect();
    if let Some(as_of) = &enrich.as_of {
        found.push(whole(&as_of.valid_from));
        found.extend(as_of.valid_to.iter().map(whole));
    }
    found.extend(enrich.fields.iter().filter_map(|field| match &field.source {
        FieldSource::Source(column) => Some(whole(column)),
        _ => None,
    }));
    found
}

fn of_filter(filter: &At<Filter>) -> Vec<Mention<'_>> {
    match &**filter {
        Filter::Compare(comparison) => vec![whole(&comparison.column)],
        Filter::Sql(sql) => words(sql, filter.origin()).collect(),
    }
}

/// A column that is named by itself.
fn whole(column: &At<String>) -> Mention<'_> {
    (column.as_str(), column.origin())
}

fn words<'a>(text: &'a str, origin: Option<&'a Origin>) -> impl Iterator<Item = Mention<'a>> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_'))
        .filter(|word| !word.is_empty())
        .map(move |word| (word, origin))
}
