//! Columns of stages that take none.
//!
//! The original gave every stage columns of its own; a run here has one list. What a stage repeats of it is passed over
//! with a notice, and what it says otherwise is a mistake: rows would be cut or compared in another way than the file
//! says.

use super::super::super::at::At;
use super::super::super::decode::Notice;
use super::super::super::error::{ConfigError, suggestion};
use super::super::super::form::ColumnFile;
use super::{Backend, G2Column, StageEntry, StageKind};

/// Tells of them. `ends` are the source and the destination with what is known of their columns.
pub(super) fn unheard_columns(
    stages: &[StageEntry],
    ends: &[(&Backend, Vec<&G2Column>)],
    pipeline: &[At<ColumnFile>],
    notices: &mut Vec<Notice>,
    errors: &mut Vec<ConfigError>,
) {
    for (i, stage) in stages.iter().enumerate() {
        for (word, end) in [("source", &stage.source), ("destination", &stage.destination)] {
            let Some(end) = end.as_ref().filter(|_| !is_heard(stage, word)) else {
                continue;
            };
            let columns = end.columns.as_deref().unwrap_or_default();
            let Some(first) = columns.first() else { continue };
            let key = format!("stages[{i}].{word}.columns");
            let message = format!(
                "{key} has no effect: what counts are the columns of backend \"{}\"",
                end.name.shown()
            );
            notices.extend(Notice::at(first, &key, message));
            let Some((backend, known)) = ends.iter().find(|(b, _)| *b.name == *end.name) else {
                continue;
            };
            for column in columns {
                errors.extend(other_column(column, stage, backend, known));
                errors.extend(other_role(column, stage, pipeline));
            }
        }
    }
}

/// Whether the columns of an end are used.
fn is_heard(stage: &StageEntry, word: &str) -> bool {
    match (*stage.kind, word) {
        (StageKind::DataFetch | StageKind::Join, "source") => true,
        (StageKind::Populate, "destination") => stage.columns.is_none(),
        _ => false,
    }
}

/// What is wrong with a column that the backend does not have, or has as another one.
fn other_column(column: &G2Column, stage: &StageEntry, backend: &Backend, known: &[&G2Column]) -> Option<ConfigError> {
    let twins: Vec<&G2Column> = known.iter().copied().filter(|k| *k.name == *column.name).collect();
    let (name, of) = (column.name.shown(), backend.name.shown());
    // A backend without a list has all columns of its table, by their own names.
    if twins.is_empty() && backend.columns.as_ref().is_some_and(|listed| !listed.is_empty()) {
        let kind = stage.kind.name();
        let error = column.name.error(format!(
            "stage {kind} names column \"{name}\", which is not among those of backend \"{of}\""
        ));
        let mut names: Vec<&str> = known.iter().map(|k| k.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        return Some(match suggestion(&column.name, "columns", &names) {
            Some(help) => error.with_help(help),
            None => error,
        });
    }
    let expr = column.expr.as_ref()?;
    let own = match twins.first() {
        Some(twin) => twin.expr(),
        None => &column.name,
    };
    if twins.iter().any(|twin| *twin.expr() == *expr) || *own == *expr {
        return None;
    }
    let message = format!(
        "column \"{name}\" is \"{}\" in this stage and \"{}\" in backend \"{of}\"",
        expr.shown(),
        own.shown()
    );
    Some(expr.error(message).with_help("the backend's word counts: say it there"))
}

/// What is wrong with a role that the pipeline's column does not have.
fn other_role(column: &At<G2Column>, stage: &StageEntry, pipeline: &[At<ColumnFile>]) -> Option<ConfigError> {
    let named = |c: &&At<ColumnFile>| c.name.as_ref().is_some_and(|n| **n == *column.name);
    let there = pipeline.iter().find(named);
    let is = |role: fn(&ColumnFile) -> Option<bool>| there.and_then(|c| role(c));
    // That a column counts in comparisons is no default: where one says so, those that say nothing do not.
    let hashed = (column.hash_column, is(|c| c.hash_column));
    let flags = [
        ("unique_column", column.unique_column, is(|c| c.unique_column)),
        ("delta_column", column.delta_column, is(|c| c.delta_column)),
        ("hash_key", column.hash_key, is(|c| c.hash_key)),
    ];
    let other = |(said, is): (Option<bool>, Option<bool>)| said.is_some_and(|said| said != is.unwrap_or(false));
    let key = match hashed {
        (Some(said), is) if is != Some(said) => "hash_column",
        _ => flags.into_iter().find(|(_, said, is)| other((*said, *is)))?.0,
    };
    let message = format!(
        "{key} of column \"{}\" is said otherwise in this stage than for the pipeline",
        column.name.shown()
    );
    let help = format!(
        "stage {} has no columns of its own: say it in the backend",
        stage.kind.name()
    );
    Some(column.error(message).with_help(help))
}
