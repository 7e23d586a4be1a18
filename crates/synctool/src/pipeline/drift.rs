//! What happens when the source's columns are not those of the last run.
//!
//! The destination remembers the columns that a run read, with their types, together with its data. Only pipelines that
//! say `schema_drift` are watched; the others go by what planning finds out.

use super::draft::Ends;
use super::request;
use crate::config::{Columns, SchemaDrift};
use std::collections::BTreeMap;
use synctool_connectors::postgres::log::Drift;
use synctool_core::error::{Error, Result};
use synctool_core::query::Term;
use synctool_core::schema::{Column, TableSchema};
use synctool_core::sink::Destination;
use synctool_core::strategy::table::{ColumnChoice, TableRequest};

/// The name under which the destination remembers the source's columns.
const COLUMNS: &str = "source:columns";

impl From<SchemaDrift> for Drift {
    fn from(policy: SchemaDrift) -> Self {
        match policy {
            SchemaDrift::Evolve => Drift::Evolve,
            SchemaDrift::DiscardColumn => Drift::Discard,
            SchemaDrift::Freeze => Drift::Freeze,
            SchemaDrift::Pause => Drift::Pause,
        }
    }
}

/// What a plan has of the policy.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// What the destination remembers when the plan is done.
    pub(super) remember: BTreeMap<String, String>,
    /// What is worth telling.
    pub(super) reasons: Vec<String>,
}

/// Applies the pipeline's policy to the columns that the source has now: refuses the run, leaves columns behind, or lets
/// it go on.
pub(super) async fn watch(ends: &Ends<'_>, table: &mut TableRequest) -> Result<Watched> {
    let (pipeline, destination) = (&ends.loaded.pipeline, ends.destination);
    let Some(policy) = pipeline.schema_drift.as_deref() else {
        return Ok(Watched::default());
    };
    let accepted = ends.options.accept_schema;
    let at_source = ends.source.describe(&table.source).await?;
    let mut watched = Watched::default();
    let all = matches!(pipeline.columns, Columns::All);
    let mut now: BTreeMap<String, String> = at_source
        .columns
        .iter()
        .filter(|c| all || pipeline.column(&c.name).is_some())
        .map(|c| (c.name.clone(), native(c)))
        .collect();
    now.extend(of_joined(ends, table).await?);
    let remembered = destination.remembered(pipeline.name.as_str()).await?;
    let before = remembered
        .get(COLUMNS)
        .and_then(|text| serde_json::from_str::<BTreeMap<String, String>>(text).ok());
    // A file's column that has no value now is of the type that it had.
    for column in at_source.columns.iter().filter(|c| c.has_no_value()) {
        let was = before.as_ref().and_then(|before| before.get(&column.name));
        if let (Some(ty), Some(was)) = (now.get_mut(&column.name), was) {
            ty.clone_from(was);
        }
    }
    let changes = before.map_or_else(Vec::new, |before| differences(&before, &now, all));
    if !changes.is_empty() {
        let told = format!("the columns of {} changed: {}", table.source, changes.join(", "));
        match policy {
            _ if accepted => watched.reasons.push(format!("{told}; this was accepted")),
            SchemaDrift::Freeze | SchemaDrift::Pause => return Err(Drift::from(*policy).refuse(told)),
            SchemaDrift::Evolve | SchemaDrift::DiscardColumn => watched.reasons.push(told),
        }
    }
    if *policy == SchemaDrift::DiscardColumn && table.columns.is_none() {
        let left = leave_behind(destination, &at_source, table).await?;
        if !left.is_empty() {
            let left = left.join(", ");
            watched
                .reasons
                .push(format!("the destination has no column {left}: left behind"));
        }
    }
    table.evolve |= accepted;
    table.widen = accepted || *policy == SchemaDrift::Evolve;
    let text = serde_json::to_string(&now).map_err(|e| Error::bug(format!("columns as text: {e}")))?;
    watched.remember.insert(COLUMNS.into(), text);
    Ok(watched)
}

/// The type of a column in its engine's words.
fn native(column: &Column) -> String {
    column.source_type.clone().unwrap_or_else(|| column.ty.to_string())
}

/// The columns that the pipeline reads of joined tables, as its file calls them, with their types.
async fn of_joined(ends: &Ends<'_>, table: &TableRequest) -> Result<BTreeMap<String, String>> {
    let names = request::Names::of(ends.loaded, &table.source)?;
    let listed = ends.loaded.pipeline.listed().iter();
    let read: Vec<(String, String)> = listed
        .filter_map(|c| match names.term(c.source.as_ref()?) {
            Term::Column {
                relation: Some(relation),
                name,
            } => Some((relation, name)),
            _ => None,
        })
        .collect();
    let mut found = BTreeMap::new();
    for join in &table.joins {
        let is = |relation: &str| join.alias.as_deref() == Some(relation) || join.table.name == relation;
        let of_it: Vec<_> = read.iter().filter(|(relation, _)| is(relation)).collect();
        if of_it.is_empty() {
            continue;
        }
        let there = ends.source.describe(&join.table).await?;
        for (relation, name) in of_it {
            if let Some(column) = there.column(name) {
                found.insert(format!("{relation}.{name}"), native(column));
            }
        }
    }
    Ok(found)
}

/// New columns of a listed pipeline are its author's doing; those of the whole table are the source's.
fn differences(before: &BTreeMap<String, String>, now: &BTreeMap<String, String>, all: bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, ty) in before {
        match now.get(name) {
            None => found.push(format!("{name} is gone")),
            Some(other) if other != ty => found.push(format!("{name} was {ty} and is {other}")),
            Some(_) => {}
        }
    }
    if all {
        let new = now.iter().filter(|(name, _)| !before.contains_key(*name));
        found.extend(new.map(|(name, ty)| format!("{name} ({ty}) is new")));
    }
    found
}

/// Leaves out the columns that the destination lacks; says which.
pub(super) async fn leave_behind(
    destination: &dyn Destination,
    at_source: &TableSchema,
    table: &mut TableRequest,
) -> Result<Vec<String>> {
    let Some(there) = destination.describe(&table.destination).await? else {
        return Ok(Vec::new());
    };
    let (known, new): (Vec<_>, Vec<_>) = at_source.columns.iter().partition(|c| there.column(&c.name).is_some());
    if !new.is_empty() {
        table.columns = Some(known.iter().map(|c| ColumnChoice::same(&c.name)).collect());
    }
    Ok(new.iter().map(|c| c.name.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_change_is_told() {
        let columns = |of: &[(&str, &str)]| of.iter().map(|(n, t)| (n.to_string(), t.to_string())).collect();
        let before: BTreeMap<String, String> = columns(&[("a", "int4"), ("b", "text"), ("c", "date")]);
        let now = columns(&[("a", "int8"), ("c", "date"), ("d", "uuid")]);
        assert_eq!(
            differences(&before, &now, true),
            ["a was int4 and is int8", "b is gone", "d (uuid) is new"]
        );
        assert_eq!(
            differences(&before, &now, false),
            ["a was int4 and is int8", "b is gone"]
        );
        assert!(differences(&before, &before, true).is_empty());
    }
}
