//! Putting loaded tables in place: one transaction, guarded by the generation.

use super::catalog::{self, CatalogColumn, CatalogTable};
use super::client::failed;
use super::sql::{differs, equal, joined, list, quote};
use super::{control, ddl, types};
use rusqlite::Connection;
use synctool_core::error::{Error, Result, code};
use synctool_core::failpoint::failpoint;
use synctool_core::ledger::Applied;
use synctool_core::plan::{DeleteGuard, Plan, PlannedTable, Publish, Verify};
use synctool_core::sink::Published;

/// Publishes a plan; a finished one says what it did then.
pub(super) fn publish(conn: &mut Connection, plan: &Plan) -> Result<Published> {
    let applied = control::transaction(conn, |conn| {
        if let Some(applied) = control::finished(conn, plan)? {
            return Ok(applied);
        }
        control::check_generation(conn, plan)?;
        let loaded = check_partitions(conn, plan)?;
        let mut total = Applied::default();
        let mut tables = Vec::new();
        for (index, planned) in plan.tables.iter().enumerate() {
            let counts = match planned.publish {
                Publish::Direct => continue,
                _ => one_table(conn, plan, index, loaded[index])
                    .map_err(|e| e.at("table", planned.destination.to_string()))?,
            };
            total += counts;
            tables.push((planned.destination.name.clone(), word(&planned.publish), counts));
        }
        control::finish(conn, plan, total, &tables)?;
        failpoint("publish.before")?;
        Ok(total)
    })?;
    Ok(Published { applied })
}

fn word(publish: &Publish) -> &'static str {
    match publish {
        Publish::Direct => "direct",
        Publish::Create => "create",
        Publish::Swap => "swap",
        Publish::Merge { .. } => "merge",
        Publish::Append => "append",
    }
}

/// Rows handed over per table; refuses to publish while a partition is not done.
fn check_partitions(conn: &Connection, plan: &Plan) -> Result<Vec<u64>> {
    let checkpoint = control::checkpoint(conn, plan)?;
    let mut rows = vec![0; plan.tables.len()];
    for p in plan.partitions() {
        if !p.must_be_done() {
            continue;
        }
        let loads = plan.tables.get(p.table).is_some_and(|t| t.publish != Publish::Direct);
        match checkpoint.get(&p.id) {
            Some(state) if state.done && loads => rows[p.table] += state.applied.written,
            Some(state) if state.done => {}
            _ => {
                return Err(
                    Error::bug("a plan was to be published before all of its partitions were done")
                        .at("partition", p.id.as_str()),
                );
            }
        }
    }
    Ok(rows)
}

/// A count, which SQLite gives as a signed integer.
fn number(row: &rusqlite::Row<'_>) -> rusqlite::Result<u64> {
    row.get(0).map(i64::unsigned_abs)
}

fn count(conn: &Connection, table: &str) -> Result<u64> {
    conn.query_row(&format!("SELECT count(*) FROM {}", quote(table)), [], number)
        .map_err(failed(|| format!("counting the rows of {table}")))
}

fn one_table(conn: &Connection, plan: &Plan, index: usize, handed: u64) -> Result<Applied> {
    let planned = &plan.tables[index];
    let load = plan.load_name(index);
    let rows = count(conn, &load)?;
    if plan.verify != Verify::None && rows != handed {
        return Err(Error::new(
            code::VERIFY_FAILED,
            format!("{rows} rows are stored in the load table, {handed} were written to it"),
        )
        .hint("something else wrote into the load table; `synctool state reset` starts over"));
    }
    let name = catalog::table_name(&planned.destination)?;
    let existing = catalog::find(conn, name)?;
    let existing = match (&planned.publish, existing) {
        (Publish::Create, None) => {
            rename(conn, &load, name)?;
            return Ok(Applied::inserts(rows));
        }
        (Publish::Create, Some(_)) => {
            return Err(Error::new(
                code::SCHEMA_MISMATCH,
                "a table of this name appeared while it was loaded",
            )
            .hint("`synctool state reset` the pipeline and plan again"));
        }
        (_, Some(existing)) => existing,
        (_, None) => {
            return Err(Error::new(
                code::TABLE_MISSING,
                "the destination table went away while it was loaded",
            )
            .hint("`synctool state reset` the pipeline and plan again"));
        }
    };
    let orphans_before = orphans(conn, &existing.name)?;
    let applied = match planned.publish {
        Publish::Swap => swap(conn, &plan.guard, planned, &load, &existing, rows)?,
        Publish::Merge { delete_missing } => {
            let applied = merge(conn, &plan.guard, planned, &load, &existing, rows, delete_missing)?;
            ddl::drop_table(conn, &load)?;
            applied
        }
        _ => {
            let columns = written(planned, &existing);
            let sql = format!(
                "INSERT INTO {} ({columns}) SELECT {columns} FROM {}",
                quote(&existing.name),
                quote(&load),
                columns = list("", &columns)
            );
            conn.execute(&sql, [])
                .map_err(failed(|| format!("appending to {}", existing.name)))?;
            ddl::drop_table(conn, &load)?;
            Applied::inserts(rows)
        }
    };
    let lost = orphans(conn, &existing.name)?.saturating_sub(orphans_before);
    if lost > 0 {
        return Err(Error::new(
            code::CONSTRAINT,
            format!("{lost} more rows would refer to a row that is not there (foreign keys); nothing was published"),
        )
        .hint("load the parent tables first, or together"));
    }
    Ok(applied)
}

fn rename(conn: &Connection, from: &str, to: &str) -> Result<()> {
    conn.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", quote(from), quote(to)))
        .map_err(failed(|| format!("renaming the loaded table to {to}")))
}

/// The columns that are copied: those of the plan that the destination does not compute itself.
fn written(planned: &PlannedTable, existing: &CatalogTable) -> Vec<String> {
    planned
        .schema
        .columns
        .iter()
        .filter(|c| existing.column(&c.name).is_some_and(|t| !t.generated))
        .map(|c| c.name.clone())
        .collect()
}

/// Rows without their parent, in this table and in those that refer to it.
fn orphans(conn: &Connection, table: &str) -> Result<u64> {
    let mut involved = ddl::referring(conn, table)?;
    if ddl::has_parents(conn, table)? {
        involved.push(table.to_string());
    }
    let mut found = 0;
    for name in involved {
        found += conn
            .query_row("SELECT count(*) FROM pragma_foreign_key_check(?1)", [&name], number)
            .map_err(failed(|| format!("checking the foreign keys of {name}")))?;
    }
    Ok(found)
}

/// `d.k1 = l.k1 AND …`
fn same_key(planned: &PlannedTable) -> String {
    equal(
        planned
            .schema
            .key
            .iter()
            .map(|k| (format!("d.{}", quote(k)), format!("l.{}", quote(k)))),
    )
}

fn swap(
    conn: &Connection,
    guard: &DeleteGuard,
    planned: &PlannedTable,
    load: &str,
    existing: &CatalogTable,
    rows: u64,
) -> Result<Applied> {
    let (name, doing) = (&existing.name, || format!("swapping {}", existing.name));
    let before = count(conn, name)?;
    let deleted = if planned.schema.key.is_empty() {
        before.saturating_sub(rows)
    } else {
        conn.query_row(
            &format!(
                "SELECT count(*) FROM {} AS d WHERE NOT EXISTS (SELECT 1 FROM {} AS l WHERE {})",
                quote(name),
                quote(load),
                same_key(planned)
            ),
            [],
            number,
        )
        .map_err(failed(doing))?
    };
    guard.check(&planned.destination, before, deleted, rows)?;
    let triggers = ddl::attached(conn, name, "trigger")?;
    if !triggers.is_empty() {
        return Err(Error::new(
            code::SWAP_REFUSED,
            "the table has got triggers, which a swap would lose",
        )
        .hint("use full_mode: upsert"));
    }
    let indexes = ddl::attached(conn, name, "index")?;
    let counter = sequence(conn, name)?;
    ddl::drop_table(conn, name)?;
    rename(conn, load, name)?;
    for (index, sql) in indexes {
        conn.execute_batch(&sql)
            .map_err(failed(|| format!("building index {index} again")))?;
    }
    if let Some(counter) = counter {
        // Numbers that were given away once are not given again.
        conn.execute(
            "UPDATE sqlite_sequence SET seq = max(seq, ?2) WHERE name = ?1",
            rusqlite::params![name, counter],
        )
        .map_err(failed(doing))?;
    }
    Ok(Applied::swapped(before, deleted, rows))
}

/// Where a table's AUTOINCREMENT stands.
fn sequence(conn: &Connection, table: &str) -> Result<Option<i64>> {
    use rusqlite::OptionalExtension;
    let doing = || format!("reading the counter of {table}");
    let kept: bool = conn
        .query_row(
            "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence')",
            [],
            |r| r.get(0),
        )
        .map_err(failed(doing))?;
    if !kept {
        return Ok(None);
    }
    conn.query_row("SELECT seq FROM sqlite_sequence WHERE name = ?1", [table], |r| r.get(0))
        .optional()
        .map_err(failed(doing))
}

/// Refuses loaded rows that are one here, of which an update has taken any: the load table has the types of the existing
/// one, and not its collations.
fn check_shared(conn: &Connection, planned: &PlannedTable, load: &str, existing: &CatalogTable) -> Result<()> {
    let sql = format!(
        "SELECT EXISTS (SELECT 1 FROM {} AS l JOIN {} AS d ON {} GROUP BY {} HAVING count(*) > 1)",
        quote(load),
        quote(&existing.name),
        same_key(planned),
        list("d.", &planned.schema.key)
    );
    let shared: bool = conn
        .query_row(&sql, [], |r| r.get(0))
        .map_err(failed(|| format!("comparing the keys of {}", existing.name)))?;
    match shared {
        true => Err(Error::equal_at_destination()),
        false => Ok(()),
    }
}

fn merge(
    conn: &Connection,
    guard: &DeleteGuard,
    planned: &PlannedTable,
    load: &str,
    existing: &CatalogTable,
    rows: u64,
    delete_missing: bool,
) -> Result<Applied> {
    if planned.schema.key.is_empty() {
        return Err(Error::new(
            code::KEY_MISSING,
            "merging needs a key, and the table has none",
        ));
    }
    let doing = || format!("merging into {}", existing.name);
    let run = |sql: &str| conn.execute(sql, []).map(|n| n as u64).map_err(failed(doing));
    let (d, l, on) = (quote(&existing.name), quote(load), same_key(planned));
    let columns = written(planned, existing);
    let before = count(conn, &existing.name)?;
    let mut deleted = 0;
    if delete_missing {
        deleted = run(&format!(
            "DELETE FROM {d} AS d WHERE NOT EXISTS (SELECT 1 FROM {l} AS l WHERE {on})"
        ))?;
        guard.check(&planned.destination, before, deleted, rows)?;
    }
    let folds = |c: &String| existing.column(c).is_some_and(CatalogColumn::folds);
    let values: Vec<&String> = columns
        .iter()
        .filter(|c| !planned.schema.key.contains(c) || folds(c))
        .collect();
    let mut updated = 0;
    if !values.is_empty() {
        let different: Vec<String> = values
            .iter()
            .map(|c| {
                let affinity = existing
                    .column(c)
                    .map_or(types::Affinity::Blob, |t| types::affinity(&t.declared));
                differs(&format!("d.{}", quote(c)), &format!("l.{}", quote(c)), affinity)
            })
            .collect();
        let different = joined(&different, "OR");
        let secondary = catalog::unique_indexes(conn, &existing.name)?.iter().any(|index| {
            index
                .iter()
                .any(|c| !planned.schema.key.iter().any(|k| k.eq_ignore_ascii_case(c)))
        });
        let whole = existing.columns.iter().filter(|c| !c.generated).count() == columns.len();
        updated = if secondary && whole {
            // Rows may exchange their unique values, which no order of updates allows: those that differ go, and come
            // back with the missing ones.
            run(&format!(
                "DELETE FROM {d} AS d WHERE EXISTS (SELECT 1 FROM {l} AS l WHERE {on} AND {different})"
            ))?
        } else {
            let set: Vec<String> = values.iter().map(|c| format!("{q} = l.{q}", q = quote(c))).collect();
            run(&format!(
                "UPDATE {d} AS d SET {} FROM {l} AS l WHERE {on} AND {different}",
                set.join(", ")
            ))?
        };
    }
    let names = list("", &columns);
    let put = run(&format!(
        "INSERT INTO {d} ({names}) SELECT {names} FROM {l} AS l WHERE NOT EXISTS (SELECT 1 FROM {d} AS d WHERE {on})"
    ))?;
    if planned.schema.key.iter().any(folds) {
        check_shared(conn, planned, load, existing)?;
    }
    let after = count(conn, &existing.name)?;
    let inserted = after + deleted - before;
    if put != inserted && put != inserted + updated {
        return Err(Error::bug("a merge lost count of its rows"));
    }
    Ok(Applied {
        written: rows,
        inserted,
        updated,
        deleted,
        unchanged: rows
            .checked_sub(inserted + updated)
            .ok_or_else(Error::doubled_at_destination)?,
        ..Applied::default()
    })
}
