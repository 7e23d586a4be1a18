//! The plan of a capture: which tables, by which keys, in which types, and what of them is read besides the log.

use super::super::catalog::{self, CatalogColumn, CatalogTable};
use super::super::client::{Session, text};
use super::super::slices;
use super::super::sql::{literal, table as quoted};
use super::chunks;
use super::source::{BinlogSource, check_server, tables_of};
use super::statements::cascading_key;
use crate::postgres::log::capture::{CaptureRequest, Remembered, carried, extended, key_columns, key_pairs};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, Publish};
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::sink::Destination;
use synctool_core::source::Source;

/// What must not change while the plan of a request is unfinished.
pub fn semantics(source: &BinlogSource, request: &CaptureRequest) -> serde_json::Value {
    request.semantics_of(&source.options().slot, "")
}

/// Makes the plan of a capture: checks the server and reads the catalog. Nothing is changed.
pub async fn capture(source: &BinlogSource, destination: &dyn Destination, request: CaptureRequest) -> Result<Plan> {
    draft(source, destination, request, None).await
}

/// The same beside a stored plan: what came by itself and cannot be followed is left out.
pub async fn draft(
    source: &BinlogSource,
    destination: &dyn Destination,
    request: CaptureRequest,
    stored: Option<&Plan>,
) -> Result<Plan> {
    let mut session = source.database().connect().await?;
    check_server(&mut session).await?;
    let wanted = match request.tables.is_empty() {
        true => tables_of(&mut session).await?,
        false => request.tables.clone(),
    };
    if wanted.is_empty() {
        return Err(Error::new(
            code::LOG_SETUP,
            format!("the database {} has no table", source.database().config().database),
        )
        .hint("name the tables to capture"));
    }
    let mut plan = request.plan(semantics(source, &request));
    for table in wanted {
        if request.came_by_itself(stored, &table) {
            let checked = check_newcomer(&mut session, &request, &table).await;
            if request.leaves_out(&mut plan, &table, checked)? {
                continue;
            }
        }
        let planned = plan_table(source, destination, &request, &mut session, &table, &mut plan).await;
        planned.map_err(|e| e.at("table", table.to_string()))?;
    }
    session.recycle();
    Ok(plan)
}

/// Refuses a table that came by itself and cannot be followed (yet).
pub(super) async fn check_newcomer(session: &mut Session, request: &CaptureRequest, table: &TableId) -> Result<()> {
    let there = catalog::must_find(session, table).await?;
    check_table(session, &there).await?;
    match key(&there).is_empty() {
        true => request.check_keyless(table),
        false => Ok(()),
    }
}

async fn plan_table(
    source: &BinlogSource,
    destination: &dyn Destination,
    request: &CaptureRequest,
    session: &mut Session,
    table: &TableId,
    plan: &mut Plan,
) -> Result<()> {
    let there = catalog::must_find(session, table).await?;
    check_table(session, &there).await?;
    let key = key(&there);
    if key.is_empty() {
        request.check_keyless(table)?;
        plan.reasons.push(format!(
            "{table} has no key: whole old rows find what changed; equal rows count as one another"
        ));
    }
    let to = request.target(table, &there.table, plan)?;
    let existing = destination.describe(&to).await?;
    let computed = |column: &Column| {
        let at_destination = existing.as_ref().and_then(|t| t.column(&column.name));
        column.generated || at_destination.is_some_and(|e| e.generated)
    };
    let as_json = |c: &&CatalogColumn| c.declared.data_type == "json" && !computed(&c.column);
    if let Some(found) = there.columns.iter().find(as_json) {
        return Err(Error::new(
            code::TYPE_UNSUPPORTED,
            format!(
                "column {} is JSON as MySQL logs it, which is not read",
                found.column.name
            ),
        )
        .hint("leave the table out of the pipeline"));
    }
    let columns = TableSchema {
        columns: there.columns.iter().map(|c| c.column.clone()).collect(),
        key,
    };
    let ends = (source as &dyn Source, destination);
    let (read, schema) = carried(ends, table, &columns, existing.as_ref(), &mut plan.reasons)?;
    let keyed = !schema.key.is_empty();
    let initial = request.initial(destination, &to, existing.is_some(), keyed).await?;
    let declared = |name: &str| {
        let found = there.columns.iter().find(|c| c.column.name == name);
        found.map_or("", |c| &c.declared.column_type)
    };
    let key = key_pairs(&read, &schema);
    let flavor = session.flavor();
    let collation = |c: &Column| there.column(&c.name).map(|c| slices::collation(&flavor, c));
    let here = key.0.iter().map(|c| collation(c).unwrap_or_default()).collect();
    let key = key_columns(here, key, request, destination, (&to, existing.is_some())).await?;
    let in_order = |c: &Column| chunks::is_ordered(&c.ty, declared(&c.name));
    let exact = key
        .iter()
        .filter(|k| k.is_cut_by_bytes() || !k.read.as_ref().is_some_and(in_order));
    plan.cut_by_bytes(table, exact.map(|k| k.stored.name.clone()).collect());
    let names = there.columns.iter().map(|c| c.column.name.clone());
    Remembered::named(initial, names, Some(there.rows)).keep(plan, table)?;
    plan.tables.push(PlannedTable::new(read, to, schema, Publish::Direct));
    Ok(())
}

/// Refuses what has no log of its rows.
pub(super) async fn check_table(session: &mut Session, there: &CatalogTable) -> Result<()> {
    let table = &there.table;
    if there.kind != "table" {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!("{table} is a {}: its rows are not in the log", there.kind),
        ));
    }
    if !there.transactional {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!(
                "{table} has the engine {}, which has no transactions and no snapshots",
                there.engine
            ),
        )
        .hint(format!("ALTER TABLE {table} ENGINE = InnoDB;")));
    }
    // The catalog of foreign keys is shown to those only who may write; the definition to everybody who may read.
    let create = session
        .row(
            &format!("SHOW CREATE TABLE {}", quoted(table)),
            "looking at a table's foreign keys",
        )
        .await?;
    if let Some(key) = text(&create, 1).and_then(|create| cascading_key(&create)) {
        return Err(cascades(table, key.as_deref()).hint(
            "make it RESTRICT and change the rows by statements, or copy the table by a strategy that compares",
        ));
    }
    let versioned = session
        .rows(
            &format!(
                "SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} \
                 AND TABLE_TYPE = 'SYSTEM VERSIONED'",
                literal(table.schema.as_deref().unwrap_or_default()),
                literal(&table.name)
            ),
            "looking at a table's kind",
        )
        .await?;
    if !versioned.is_empty() {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!("{table} is versioned by the server, and its log holds the rows of every version"),
        )
        .hint("read it by a delta or hash strategy"));
    }
    Ok(())
}

/// What a foreign key does that the server's engine, and not its log, knows of.
pub(super) fn cascades(table: &TableId, key: Option<&str>) -> Error {
    let key = key.map_or_else(|| "a foreign key".into(), |key| format!("the foreign key {key}"));
    Error::new(
        code::UNSUPPORTED,
        format!("{key} of {table} changes rows (CASCADE, SET NULL), which the server does not log"),
    )
}

/// The columns by which changes find their row: the primary key, or a unique one that no row escapes.
pub(super) fn key(there: &CatalogTable) -> Vec<String> {
    let primary = there.key();
    if !primary.is_empty() {
        return primary;
    }
    let unique = there.indexes.iter().find(|i| there.is_key(&i.columns));
    unique.map_or(Vec::new(), |i| i.columns.clone())
}

/// A plan for other tables than those of a stored one, which goes on where that one stands: tables that are new are
/// read beside the log, those that went are not followed any more. Whoever writes by the stored plan is fenced first.
pub async fn extend(
    source: &BinlogSource,
    destination: &dyn Destination,
    stored: &Plan,
    request: CaptureRequest,
) -> Result<Plan> {
    let draft = Box::pin(draft(source, destination, request, Some(stored)));
    extended(destination, stored, draft).await
}
