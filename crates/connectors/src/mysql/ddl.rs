//! Tables we make: from a plan's schema, or with the definition of the table they will replace or be merged into.

use super::ENGINE;
use super::catalog::{self, CatalogColumn, CatalogTable, OURS};
use super::client::{Flavor, Session, text};
use super::sql::{check_ident, ident, list, literal, table as quoted};
use super::types::{self, Declared, store_as};
use std::collections::HashMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{PlannedTable, Publish};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::sink::not_widened;

/// The bytes of a key that InnoDB allows.
const MAX_KEY: usize = 3072;
/// The bytes of short values in a row, with room for the rest; the server's own limit is 65,535.
const MAX_ROW: usize = 60_000;

/// Refuses names and shapes that the server cannot have, and names like ours for a table that is not ours.
pub(super) fn check(table: &TableId, schema: &TableSchema, own: bool) -> Result<()> {
    let at = |e: Error| e.at("table", table.to_string());
    for name in table.schema.iter().chain([&table.name]) {
        check_ident(name).map_err(at)?;
    }
    if table.name.starts_with(OURS) && !own {
        return Err(at(Error::new(
            code::IDENTIFIER,
            format!("names that begin with {OURS} are reserved"),
        )));
    }
    if schema.columns.is_empty() {
        return Err(at(Error::new(code::SCHEMA_MISMATCH, "a table needs a column")));
    }
    let mut seen = HashMap::new();
    for c in &schema.columns {
        check_ident(&c.name).map_err(at)?;
        if let Some(other) = seen.insert(c.name.to_lowercase(), &c.name) {
            return Err(at(Error::new(
                code::IDENTIFIER,
                format!(
                    "columns {other} and {} are the same name to MySQL, which ignores case",
                    c.name
                ),
            )
            .hint("give one of them another name in the pipeline")));
        }
    }
    schema.key_indices().map(|_| ())
}

/// A type's name came from another server's catalog: outside of the labels of an enum it has few characters.
fn check_type(type_name: &str, column: &str) -> Result<()> {
    let mut inside = false;
    let plain = type_name.chars().all(|c| {
        if c == '\'' {
            inside = !inside;
            return true;
        }
        inside || c.is_ascii_alphanumeric() || matches!(c, ' ' | '(' | ')' | ',' | '_')
    });
    if plain && !inside && !type_name.contains('\\') {
        return Ok(());
    }
    Err(Error::new(
        code::CONFIG_TYPE,
        format!("column {column}: the name of its type cannot be used in a statement"),
    )
    .hint("set data_type for the column"))
}

/// The type of each column of a table that we make: as it was planned, and short where it is part of the key.
pub(super) fn column_types(flavor: &Flavor, schema: &TableSchema) -> Result<Vec<String>> {
    let mut types: Vec<String> = schema
        .columns
        .iter()
        .map(|c| {
            let name = store_as(flavor, ENGINE, c).type_name;
            check_type(&name, &c.name).map(|()| name)
        })
        .collect::<Result<_>>()?;
    let in_key = |i: usize| schema.key.contains(&schema.columns[i].name);
    let open = |t: &str| t.ends_with("text") || t.ends_with("blob");
    let fixed: usize = (0..types.len())
        .filter(|i| in_key(*i) && !open(&types[*i]))
        .map(|i| key_bytes(&types[i]))
        .sum();
    let flexible = (0..types.len()).filter(|i| in_key(*i) && open(&types[*i])).count();
    if let Some(each) = MAX_KEY.saturating_sub(fixed).checked_div(flexible) {
        for i in (0..types.len()).filter(|i| in_key(*i)) {
            if types[i].ends_with("text") {
                types[i] = format!("varchar({})", (each / 4).clamp(1, 768));
            } else if types[i].ends_with("blob") {
                types[i] = format!("varbinary({})", each.max(1));
            }
        }
    }
    let short: usize = types.iter().map(|t| key_bytes(t)).sum();
    if short > MAX_ROW {
        for i in (0..types.len()).filter(|i| !in_key(*i)) {
            if types[i].starts_with("varchar(") && key_bytes(&types[i]) > 256 {
                types[i] = "longtext".into();
            }
        }
    }
    Ok(types)
}

/// The bytes that a value may take in a key or row.
fn key_bytes(type_name: &str) -> usize {
    let n = type_name
        .split_once('(')
        .and_then(|(_, rest)| rest.split([')', ',']).next())
        .and_then(|n| n.parse::<usize>().ok())
        .unwrap_or(8);
    match type_name.split('(').next().unwrap_or_default() {
        "varchar" | "char" => n * 4,
        "varbinary" | "binary" => n,
        "decimal" => n / 2 + 2,
        _ => 8,
    }
}

/// The charset and collation of texts in a column that we make.
fn collation(flavor: &Flavor, c: &Column, type_name: &str) -> Option<(&'static str, &'static str)> {
    let is_text = types::TEXTS.contains(&type_name.split('(').next().unwrap_or_default());
    is_text.then(|| match c.ty {
        ColumnType::Uuid => ("ascii", "ascii_bin"),
        _ => ("utf8mb4", flavor.collation()),
    })
}

/// One column of a table that we make.
fn column(flavor: &Flavor, c: &Column, type_name: &str, not_null: bool) -> String {
    let mut text = format!("{} {type_name}", ident(&c.name));
    if let Some((charset, collation)) = collation(flavor, c, type_name) {
        text.push_str(&format!(" CHARACTER SET {charset} COLLATE {collation}"));
    }
    // Said outright: a TIMESTAMP without either gets a default and moves with every update.
    text.push_str(if not_null { " NOT NULL" } else { " NULL" });
    if not_null && type_name.starts_with("timestamp") {
        let digits = type_name.strip_prefix("timestamp").unwrap_or_default();
        text.push_str(&format!(" DEFAULT CURRENT_TIMESTAMP{digits}"));
    }
    if let Some(comment) = types::comment(type_name, &c.ty) {
        text.push_str(&format!(" COMMENT {}", literal(&comment)));
    }
    text
}

/// `CREATE TABLE` for a new table of our own types.
pub(super) fn create_table(flavor: &Flavor, name: &TableId, schema: &TableSchema) -> Result<String> {
    let types = column_types(flavor, schema)?;
    let mut parts: Vec<String> = schema
        .columns
        .iter()
        .zip(&types)
        .map(|(c, t)| {
            let mut text = column(flavor, c, t, !c.nullable || schema.key.contains(&c.name));
            let integer = ["tinyint", "smallint", "int", "bigint"]
                .iter()
                .any(|i| t.starts_with(i));
            if c.identity && integer && schema.key.first() == Some(&c.name) {
                text.push_str(" AUTO_INCREMENT");
            }
            text
        })
        .collect();
    if !schema.key.is_empty() {
        parts.push(format!("PRIMARY KEY ({})", list("", &schema.key)));
    }
    Ok(create(name, &parts))
}

fn create(name: &TableId, parts: &[String]) -> String {
    format!(
        "CREATE TABLE {} ({}) ENGINE = InnoDB ROW_FORMAT = DYNAMIC DEFAULT CHARACTER SET utf8mb4",
        quoted(name),
        parts.join(", ")
    )
}

/// `CREATE TABLE` for rows beside an existing table: with that table's own types and collations, so that values are
/// stored and compared the same way in both. `temporary` for one session; then without a key.
pub(super) fn create_beside(
    name: &TableId,
    schema: &TableSchema,
    existing: &CatalogTable,
    temporary: bool,
) -> Result<String> {
    let mut parts = Vec::new();
    for c in &schema.columns {
        let there = existing.must_column(&c.name)?;
        if there.column.generated {
            continue;
        }
        let mut text = format!("{} {}", ident(&c.name), there.declared.column_type);
        if let Some((charset, collation)) = &there.collation {
            text.push_str(&format!(" CHARACTER SET {charset} COLLATE {collation}"));
        }
        // Only the destination itself minds NULL; a TIMESTAMP must be told that it may be.
        let key = schema.key.contains(&c.name);
        text.push_str(if key && !temporary { " NOT NULL" } else { " NULL" });
        if key && there.declared.column_type.starts_with("timestamp") && !temporary {
            let digits = there.declared.column_type.strip_prefix("timestamp").unwrap_or_default();
            text.push_str(&format!(" DEFAULT CURRENT_TIMESTAMP{digits}"));
        }
        parts.push(text);
    }
    if !schema.key.is_empty() {
        let kind = if temporary { "KEY" } else { "PRIMARY KEY" };
        parts.push(format!("{kind} ({})", list("", &schema.key)));
    }
    let sql = create(name, &parts);
    Ok(if temporary {
        sql.replacen("CREATE TABLE", "CREATE TEMPORARY TABLE IF NOT EXISTS", 1)
    } else {
        sql
    })
}

/// Whether a table of the planned columns can have the whole definition of the existing one.
pub(super) fn same_shape(schema: &TableSchema, existing: &CatalogTable) -> bool {
    existing.columns.len() == schema.columns.len()
        && existing.key() == schema.key
        && schema.columns.iter().all(|c| {
            existing
                .column(&c.name)
                .is_some_and(|t| !t.column.generated && c.ty.fits(&t.column.ty))
        })
}

/// `ALTER TABLE … ADD COLUMN`; rows from before have no value for it.
pub(super) fn add_column(flavor: &Flavor, table: &TableId, c: &Column) -> Result<String> {
    check_ident(&c.name)?;
    let type_name = store_as(flavor, ENGINE, c).type_name;
    check_type(&type_name, &c.name)?;
    Ok(format!(
        "ALTER TABLE {} ADD COLUMN {}",
        quoted(table),
        column(flavor, c, &type_name, false)
    ))
}

/// Adds to a table's entry the planned columns that it lacks, if the plan says so; the statements that add them.
pub(super) fn evolve(flavor: &Flavor, planned: &PlannedTable, existing: &mut CatalogTable) -> Result<Vec<String>> {
    let mut statements = Vec::new();
    if !planned.evolve || matches!(planned.publish, Publish::Create | Publish::Swap) {
        return Ok(statements);
    }
    for c in &planned.schema.columns {
        if existing.column(&c.name).is_some() || planned.schema.key.contains(&c.name) {
            continue;
        }
        statements.push(add_column(flavor, &existing.table, c)?);
        existing.columns.push(CatalogColumn {
            column: Column {
                nullable: true,
                ..c.clone()
            },
            ..to_make(flavor, c)
        });
    }
    Ok(statements)
}

/// A column that we would make, as the catalog will have it.
pub(super) fn to_make(flavor: &Flavor, c: &Column) -> CatalogColumn {
    let column_type = store_as(flavor, ENGINE, c).type_name;
    let collation = collation(flavor, c, &column_type);
    CatalogColumn {
        column: c.clone(),
        declared: Declared {
            column_type,
            ..Declared::default()
        },
        collation: collation.map(|(charset, collation)| (charset.into(), collation.into())),
    }
}

/// The statement that gives a column a wider type and leaves the rest of its definition as it is; `None` where it would not
/// become wider, or would become something else.
pub(super) async fn widen(
    session: &mut Session,
    table: &TableId,
    there: &Column,
    wanted: &Column,
) -> Result<Option<String>> {
    let (Some(has), Some(gets)) = (&there.source_type, &wanted.source_type) else {
        return Ok(None);
    };
    let same = there.ty == wanted.ty;
    let wider = match same {
        true => base(has) == base(gets) && second_digits(has) < second_digits(gets),
        // A number kept as a text, or a text that only a comment calls another type, is not the same kind.
        false => types::comment(gets, &wanted.ty).is_none() && !(there.ty.is_integer() && gets.ends_with("text")),
    };
    if !wider {
        return Ok(None);
    }
    let existing = catalog::must_find(session, table).await?;
    let is_key = existing.indexes.iter().any(|i| i.columns.contains(&there.name));
    if is_key && gets.ends_with("text") {
        return Ok(None);
    }
    check_type(gets, &there.name)?;
    let rows = session
        .rows(
            &format!("SHOW CREATE TABLE {}", quoted(table)),
            "reading the table's definition",
        )
        .await?;
    let create = rows.first().and_then(|r| text(r, 1)).unwrap_or_default();
    let Some(rest) = definition(&create, &there.name).and_then(|d| d.strip_prefix(has.as_str())) else {
        return Ok(None);
    };
    let statement = format!(
        "ALTER TABLE {} MODIFY COLUMN {} {gets}{rest}",
        quoted(table),
        ident(&there.name)
    );
    let obstacles = catalog::foreign_keys_of(session, table, &there.name).await?;
    match obstacles.is_empty() {
        true => Ok(Some(statement)),
        false => Err(not_widened(table, there, &obstacles, &statement)),
    }
}

/// A column's definition behind its name, as `SHOW CREATE TABLE` has it.
fn definition<'a>(create: &'a str, column: &str) -> Option<&'a str> {
    let begin = format!("{} ", ident(column));
    let line = create.lines().find_map(|line| line.trim().strip_prefix(&begin))?;
    Some(line.strip_suffix(',').unwrap_or(line))
}

fn base(type_name: &str) -> &str {
    type_name.split('(').next().unwrap_or_default()
}

/// The digits of a second that a type of times keeps.
fn second_digits(type_name: &str) -> u8 {
    let said = type_name.split_once('(').and_then(|(_, rest)| rest.split(')').next());
    said.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Gives a table's entry the types that its columns are widened to; the statements that do it.
pub(super) fn widened(planned: &PlannedTable, existing: &mut CatalogTable) -> Vec<String> {
    for widened in &planned.widen {
        let there = existing.columns.iter_mut().filter(|c| c.column.name == widened.column);
        there.for_each(|c| {
            c.declared.column_type.clone_from(&widened.type_name);
            c.column.source_type = Some(widened.type_name.clone());
            if let Some(wanted) = planned.schema.column(&widened.column) {
                c.column.ty = wanted.ty.clone();
            }
        });
    }
    planned.widen.iter().map(|w| w.statement.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flavor() -> Flavor {
        Flavor {
            mariadb: true,
            version: "10.11.0".into(),
            max_packet: 1 << 24,
            local_infile: true,
        }
    }

    #[test]
    fn a_definition_is_found_by_its_column() {
        let create = "CREATE TABLE `t` (\n  `id` int(11) NOT NULL,\n  `i` varchar(9) DEFAULT 'a,' COMMENT 'x',\n  PRIMARY KEY (`id`)\n)";
        assert_eq!(definition(create, "id"), Some("int(11) NOT NULL"));
        assert_eq!(definition(create, "i"), Some("varchar(9) DEFAULT 'a,' COMMENT 'x'"));
        assert_eq!(definition(create, "d"), None);
    }

    #[test]
    fn keys_are_short_and_say_what_they_were() {
        let text = |n: &str| Column::new(n, ColumnType::Text { max: None }).not_null();
        let schema = TableSchema {
            columns: vec![
                text("a"),
                Column::new("n", ColumnType::Int64).not_null(),
                text("b"),
                Column::new("blob", ColumnType::Bytes),
            ],
            key: vec!["a".into(), "n".into(), "b".into()],
        };
        assert_eq!(
            column_types(&flavor(), &schema).unwrap(),
            ["varchar(383)", "bigint", "varchar(383)", "longblob"]
        );
        let sql = create_table(&flavor(), &TableId::bare("t"), &schema).unwrap();
        assert!(sql.contains("COMMENT 'synctool:text'"), "{sql}");
        assert!(sql.contains("PRIMARY KEY (`a`, `n`, `b`)"), "{sql}");
    }

    #[test]
    fn a_type_of_another_server_cannot_break_out() {
        let column = |t: &str| {
            let c = Column::new("c", ColumnType::Text { max: None }).with_source_type(t);
            column_types(
                &flavor(),
                &TableSchema {
                    columns: vec![c],
                    key: Vec::new(),
                },
            )
        };
        assert_eq!(column("enum('a; b','it''s')").unwrap(), ["enum('a; b','it''s')"]);
        assert!(column("int; DROP TABLE x").is_err());
        assert!(column("enum('a\\')").is_err());
    }

    #[test]
    fn many_long_texts_do_not_fill_a_row() {
        let schema = TableSchema {
            columns: (0..40)
                .map(|i| Column::new(format!("c{i}"), ColumnType::Text { max: Some(900) }))
                .collect(),
            key: Vec::new(),
        };
        assert!(
            column_types(&flavor(), &schema)
                .unwrap()
                .iter()
                .all(|t| t == "longtext")
        );
    }

    #[test]
    fn names_that_fold_together_are_refused() {
        let c = |n: &str| Column::new(n, ColumnType::Int32);
        let schema = |a: &str, b: &str| TableSchema {
            columns: vec![c(a), c(b)],
            key: Vec::new(),
        };
        assert!(check(&TableId::bare("t"), &schema("Id", "id"), false).is_err());
        assert!(check(&TableId::bare("_synctool_x"), &schema("a", "b"), false).is_err());
        assert!(check(&TableId::bare("t"), &schema("a", "b"), false).is_ok());
    }
}
