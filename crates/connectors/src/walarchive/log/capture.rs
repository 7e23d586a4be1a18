//! The plan of a capture: which tables, by which keys, in which types, and what of them is read besides the log.

use super::super::tables;
use super::batch::parts;
use super::position::LogPosition;
use super::shape::full_name;
use super::source::{ArchiveLog, logged};
use crate::postgres::log::capture::{
    CaptureRequest, FROM, Initial, Remembered, carried, cut_keys, expected_rows, extended, from_of, key_columns,
    key_pairs,
};
use crate::postgres::{Connection, catalog};
use synctool_core::backfill::BackfillPosition;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, Publish};
use synctool_core::schema::TableId;
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// What must not change while the plan of a request is unfinished.
pub fn semantics(source: &ArchiveLog, request: &CaptureRequest) -> serde_json::Value {
    request.semantics_of(&source.options().slot, "")
}

/// Makes the plan of a capture from the catalog of the scratch server, which is brought to where it can be read.
pub async fn capture(source: &ArchiveLog, destination: &dyn Destination, request: CaptureRequest) -> Result<Plan> {
    draft(source, destination, request, None).await
}

/// The same beside a stored plan: what came by itself and cannot be followed is left out.
pub async fn draft(
    source: &ArchiveLog,
    destination: &dyn Destination,
    request: CaptureRequest,
    stored: Option<&Plan>,
) -> Result<Plan> {
    source.stand().await?;
    let session = source.session().await?;
    let wanted = match request.tables.is_empty() {
        true => logged(&session).await?,
        false => request.tables.clone(),
    };
    if wanted.is_empty() {
        return Err(
            Error::new(code::LOG_SETUP, "production's database has no table").hint("name the tables to capture")
        );
    }
    let mut plan = request.plan(semantics(source, &request));
    for table in wanted {
        if request.came_by_itself(stored, &table) {
            let checked = check_newcomer(&session, source.schema(), &request, &table).await;
            if request.leaves_out(&mut plan, &table, checked)? {
                continue;
            }
        }
        let planned = plan_table(source, destination, &request, &session, &table, &mut plan).await;
        planned.map_err(|e| e.at("table", table.to_string()))?;
    }
    session.recycle();
    Ok(plan)
}

/// Refuses a table that came by itself and cannot be followed (yet).
pub(super) async fn check_newcomer(
    session: &Connection,
    schema: &str,
    request: &CaptureRequest,
    table: &TableId,
) -> Result<()> {
    let described = catalog::describe(session, table, schema).await?;
    let found = tables::find_named(session, vec![table.to_string()], vec![full_name(table, schema)]).await?;
    parts(&found, table)?;
    match described.schema.key.is_empty() {
        true => request.check_keyless(table),
        false => Ok(()),
    }
}

async fn plan_table(
    source: &ArchiveLog,
    destination: &dyn Destination,
    request: &CaptureRequest,
    session: &Connection,
    table: &TableId,
    plan: &mut Plan,
) -> Result<()> {
    let described = catalog::describe(session, table, source.schema()).await?;
    let name = full_name(table, source.schema());
    let found = tables::find_named(session, vec![table.to_string()], vec![name]).await?;
    // Refuses what has no log of its rows.
    parts(&found, table)?;
    if described.schema.key.is_empty() {
        request.check_keyless(table)?;
        plan.reasons.push(format!(
            "{table} has no key: whole old rows find what changed; equal rows count as one another"
        ));
    }
    let to = request.target(table, &described.table, plan)?;
    let there = destination.describe(&to).await?;
    let ends = (source as &dyn Source, destination);
    let (read, schema) = carried(ends, table, &described.schema, there.as_ref(), &mut plan.reasons)?;
    // Without a key the rows are read in one go, which is no matter where nothing moves.
    let initial = request.initial(destination, &to, there.is_some(), true).await?;
    let names = described.schema.columns.iter().map(|c| c.name.clone());
    let rows = expected_rows(session, described.oid).await?;
    Remembered::named(initial, names, rows).keep(plan, table)?;
    let key = key_pairs(&read, &schema);
    let here = source.collations(table, &key.0).await?;
    let key = key_columns(here, key, request, destination, (&to, there.is_some())).await?;
    cut_keys(plan, (session, described.oid), &read, &key).await?;
    plan.tables.push(PlannedTable::new(read, to, schema, Publish::Direct));
    Ok(())
}

/// A plan for other tables than those of a stored one, which goes on where that one stands: tables that are new are
/// read beside the log, those that went are not followed any more. Whoever writes by the stored plan is fenced first.
pub async fn extend(
    source: &ArchiveLog,
    destination: &dyn Destination,
    stored: &Plan,
    request: CaptureRequest,
) -> Result<Plan> {
    let draft = Box::pin(draft(source, destination, request, Some(stored)));
    let mut plan = extended(destination, stored, draft).await?;
    owe(stored, &mut plan)?;
    Ok(plan)
}

/// New tables without a key cannot be read in chunks: they are read whole with the next batch.
fn owe(stored: &Plan, plan: &mut Plan) -> Result<()> {
    let Some(mut from) = from_of(plan).as_ref().map(BackfillPosition::parse).transpose()? else {
        return Ok(());
    };
    let Some(mut log) = from.log.as_ref().map(LogPosition::parse).transpose()? else {
        return Ok(());
    };
    for table in plan.tables.iter().filter(|t| t.schema.key.is_empty()) {
        let read = &table.read.table;
        from.pending.retain(|p| p.table != *read);
        let known = stored.tables.iter().any(|t| t.read.table == *read);
        if !known && Remembered::of(plan, read).initial != Initial::Skip {
            log.owed.insert(read.to_string());
        }
    }
    from.log = Some(log.encode());
    plan.remember.insert(FROM.into(), from.encode().0);
    Ok(())
}
