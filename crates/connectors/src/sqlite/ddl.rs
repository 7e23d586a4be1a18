//! Tables we make: from a plan's schema, or with the definition of the table they will replace.

use super::catalog::{self, CatalogTable, OURS};
use super::client::failed;
use super::sql::{list, quote};
use super::types;
use rusqlite::Connection;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{PlannedTable, Publish};
use synctool_core::schema::{Column, ColumnType, TableSchema};

/// SQLite's own limit, unless somebody compiled it differently.
const MAX_COLUMNS: usize = 2000;

/// Refuses names and shapes that SQLite cannot have, and names like ours for a table that is not ours.
pub(super) fn check(name: &str, schema: &TableSchema, own: bool) -> Result<()> {
    let bad = |text: String| Err(Error::new(code::IDENTIFIER, text).at("table", name));
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("sqlite_") || lower.starts_with(OURS) && !own {
        return bad(format!("names that begin with sqlite_ or {OURS} are reserved"));
    }
    if schema.columns.is_empty() {
        return Err(Error::new(code::SCHEMA_MISMATCH, "a SQLite table needs a column").at("table", name));
    }
    if schema.columns.len() > MAX_COLUMNS {
        return Err(Error::new(
            code::SCHEMA_MISMATCH,
            format!(
                "SQLite allows {MAX_COLUMNS} columns, this table has {}",
                schema.columns.len()
            ),
        )
        .at("table", name)
        .hint("leave columns out of the pipeline"));
    }
    let mut seen = std::collections::HashMap::new();
    for c in &schema.columns {
        if c.name.contains('\0') {
            return bad("a column name holds a NUL character, which SQLite cannot store".into());
        }
        if let Some(other) = seen.insert(c.name.to_ascii_lowercase(), &c.name) {
            return bad(format!(
                "columns {other} and {} are the same name to SQLite, which ignores case",
                c.name
            ));
        }
    }
    schema.key_indices().map(|_| ())
}

/// `CREATE TABLE` for a schema; `declared` gives each column's type.
fn create_sql(name: &str, schema: &TableSchema, declared: impl Fn(&str) -> Option<String>) -> String {
    let mut parts: Vec<String> = schema
        .columns
        .iter()
        .map(|c| {
            let ty = declared(&c.name).unwrap_or_else(|| types::declared(&c.ty));
            let not_null = !c.nullable || schema.key.contains(&c.name);
            format!("{} {ty}{}", quote(&c.name), if not_null { " NOT NULL" } else { "" })
        })
        .collect();
    if !schema.key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", list("", &schema.key)));
    }
    format!("CREATE TABLE {} ({})", quote(name), parts.join(", "))
}

/// A declared type for another definition: an odd one was quoted there and is quoted here.
fn as_written(declared: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ' ' | '(' | ')' | ',' | '+' | '-');
    if declared.chars().all(plain) {
        declared.to_string()
    } else {
        quote(declared)
    }
}

/// `CREATE TABLE` for a new table of our own types.
pub(super) fn create_table(name: &str, schema: &TableSchema) -> String {
    create_sql(name, schema, |_| None)
}

/// `CREATE TABLE` for the table that rows are loaded into. Beside an existing table it has that table's declared types,
/// so that values are stored the same way in both; one that will take its place has its whole definition.
pub(super) fn create_load(
    conn: &Connection,
    load: &str,
    planned: &PlannedTable,
    existing: Option<&CatalogTable>,
) -> Result<String> {
    let Some(existing) = existing else {
        return Ok(create_table(load, &planned.schema));
    };
    if planned.publish == Publish::Swap {
        let same_columns = existing.columns.len() == planned.schema.columns.len()
            && planned.schema.columns.iter().all(|c| {
                existing
                    .column(&c.name)
                    .is_some_and(|t| !t.generated && c.ty.fits(&types::column_type(&t.declared)))
            });
        if !same_columns {
            return Ok(create_table(load, &planned.schema));
        }
        return renamed(&table_sql(conn, &existing.name)?, load).ok_or_else(|| {
            Error::new(
                code::SWAP_REFUSED,
                format!("the definition of {} cannot be read", existing.name),
            )
            .hint("use full_mode: upsert")
        });
    }
    let declared = |column: &str| existing.column(column).map(|c| as_written(&c.declared));
    Ok(create_sql(load, &planned.schema, declared))
}

/// The text that created a table.
pub(super) fn table_sql(conn: &Connection, name: &str) -> Result<String> {
    conn.query_row(
        "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = ?1",
        [name],
        |r| r.get(0),
    )
    .map_err(failed(|| format!("reading the definition of {name}")))
}

/// The definition with another name. SQLite stores `CREATE TABLE `, the name as it was written, and the rest.
fn renamed(sql: &str, name: &str) -> Option<String> {
    let rest = sql.strip_prefix("CREATE TABLE ")?;
    let mut chars = rest.char_indices();
    let (_, first) = chars.next()?;
    let close = match first {
        '"' | '`' | '\'' => first,
        '[' => ']',
        _ => {
            let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()))?;
            return Some(format!("CREATE TABLE {}{}", quote(name), &rest[end..]));
        }
    };
    while let Some((at, c)) = chars.next() {
        if c != close {
            continue;
        }
        // A doubled quote stands for itself; brackets have no such form.
        if close != ']' && rest[at + 1..].starts_with(close) {
            chars.next();
            continue;
        }
        return Some(format!("CREATE TABLE {}{}", quote(name), &rest[at + 1..]));
    }
    None
}

/// `ALTER TABLE … ADD COLUMN`. NOT NULL would need a default, so a new column takes NULL.
pub(super) fn add_column(table: &str, column: &Column) -> String {
    format!(
        "ALTER TABLE {} ADD COLUMN {} {}",
        quote(table),
        quote(&column.name),
        types::declared(&column.ty)
    )
}

/// The declared type that is as wide as a type, for a column that is there. `INTEGER` would make a key another thing.
fn wider(ty: &ColumnType) -> String {
    match ty {
        ColumnType::Int64 => "INT64BIT".into(),
        ty => types::declared(ty),
    }
}

/// The statement that declares a column wider: values are stored as they were, because both names have one affinity. SQLite
/// has no ALTER for that and describes this way; `None` where the definition is not as we would write it.
pub(super) fn widen(conn: &Connection, table: &str, there: &Column, wanted: &Column) -> Result<Option<String>> {
    let has = there.source_type.as_deref().unwrap_or_default();
    let gets = wider(&wanted.ty);
    if there.ty == wanted.ty || types::affinity(has) != types::affinity(&gets) {
        return Ok(None);
    }
    let (old, new) = (
        format!("{} {has}", quote(&there.name)),
        format!("{} {gets}", quote(&there.name)),
    );
    if table_sql(conn, table)?.matches(&old).count() != 1 {
        return Ok(None);
    }
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    Ok(Some(format!(
        "PRAGMA writable_schema = ON; \
         UPDATE sqlite_master SET sql = replace(sql, {}, {}) WHERE type = 'table' AND name = {}; \
         PRAGMA writable_schema = RESET",
        literal(&old),
        literal(&new),
        literal(table)
    )))
}

/// Gives a table's entry the types that its columns are widened to; the statements that do it.
pub(super) fn widened(planned: &PlannedTable, existing: &mut CatalogTable) -> Vec<String> {
    for widened in &planned.widen {
        let there = existing.columns.iter_mut().filter(|c| c.name == widened.column);
        let wanted = planned.schema.column(&widened.column);
        there.zip(wanted).for_each(|(c, wanted)| c.declared = wider(&wanted.ty));
    }
    planned.widen.iter().map(|w| w.statement.clone()).collect()
}

/// Has connections that know the definitions read them again.
pub(super) fn tell_others(conn: &Connection) -> Result<()> {
    let version: i64 = conn
        .pragma_query_value(None, "schema_version", |r| r.get(0))
        .map_err(failed(|| "reading the version of the definitions".into()))?;
    conn.pragma_update(None, "schema_version", version + 1)
        .map_err(failed(|| "raising the version of the definitions".into()))
}

/// Names of the load tables of a pipeline: all of them, whichever generation.
pub(super) fn load_tables(conn: &Connection, pipeline: &str) -> Result<Vec<String>> {
    let prefix = format!("{OURS}load_{}_", synctool_core::plan::short_hash(pipeline));
    conn.prepare("SELECT name FROM sqlite_master WHERE type = 'table' AND substr(name, 1, length(?1)) = ?1")
        .and_then(|mut s| s.query_map([prefix], |r| r.get(0))?.collect())
        .map_err(failed(|| "listing load tables".into()))
}

/// `DROP TABLE IF EXISTS`.
pub(super) fn drop_table(conn: &Connection, name: &str) -> Result<()> {
    conn.execute_batch(&format!("DROP TABLE IF EXISTS {}", quote(name)))
        .map_err(failed(|| format!("dropping {name}")))
}

/// Names and definitions of what hangs on a table and goes with it: its own indexes, or its triggers.
pub(super) fn attached(conn: &Connection, table: &str, kind: &str) -> Result<Vec<(String, String)>> {
    conn.prepare(
        "SELECT name, sql FROM sqlite_master WHERE type = ?2 AND tbl_name = ?1 COLLATE NOCASE AND sql IS NOT NULL ORDER BY rowid",
    )
    .and_then(|mut s| s.query_map([table, kind], |r| Ok((r.get(0)?, r.get(1)?)))?.collect())
    .map_err(failed(|| format!("reading the {kind}s of {table}")))
}

/// Tables whose foreign keys refer to a table.
pub(super) fn referring(conn: &Connection, table: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for (name, kind) in catalog::names(conn)? {
        if kind != "table" || name.eq_ignore_ascii_case(table) {
            continue;
        }
        let refers: bool = conn
            .query_row(
                "SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_list(?1, 'main') WHERE \"table\" = ?2 COLLATE NOCASE)",
                [&name, table],
                |r| r.get(0),
            )
            .map_err(failed(|| format!("reading the foreign keys of {name}")))?;
        if refers {
            found.push(name);
        }
    }
    Ok(found)
}

/// Whether a table has foreign keys of its own.
pub(super) fn has_parents(conn: &Connection, table: &str) -> Result<bool> {
    conn.query_row(
        "SELECT EXISTS (SELECT 1 FROM pragma_foreign_key_list(?1, 'main'))",
        [table],
        |r| r.get(0),
    )
    .map_err(failed(|| format!("reading the foreign keys of {table}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_definition_gets_another_name_however_the_first_was_written() {
        for (sql, rest) in [
            ("CREATE TABLE items(id INTEGER)", "(id INTEGER)"),
            ("CREATE TABLE \"a \"\" (b\" (id)", " (id)"),
            ("CREATE TABLE [a ]b]] (id)", "b]] (id)"),
            ("CREATE TABLE `a``b`(id) STRICT", "(id) STRICT"),
            ("CREATE TABLE 'x'(id) WITHOUT ROWID", "(id) WITHOUT ROWID"),
            ("CREATE TABLE größe$1 (id)", " (id)"),
        ] {
            assert_eq!(renamed(sql, "n\"").unwrap(), format!("CREATE TABLE \"n\"\"\"{rest}"));
        }
        assert_eq!(renamed("CREATE VIRTUAL TABLE x USING fts5(a)", "y"), None);
    }
}
