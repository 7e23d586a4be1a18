//! What the server's catalog (information_schema) says of tables.

use super::client::{Session, number, text};
use super::sql::literal;
use super::types::{self, Declared};
use std::collections::BTreeMap;
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::schema::{Column, TableId, TableSchema};
use synctool_core::source::TableInfo;

/// The prefix of everything we keep in a database.
pub(super) const OURS: &str = "_synctool_";

/// One column.
#[derive(Debug, Clone)]
pub(super) struct CatalogColumn {
    /// In core's words.
    pub(super) column: Column,
    /// As the server declares it.
    pub(super) declared: Declared,
    /// The charset and collation of a text.
    pub(super) collation: Option<(String, String)>,
}

/// A unique index or key on whole columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Index {
    pub(super) name: String,
    pub(super) unique: bool,
    pub(super) columns: Vec<String>,
    /// Every column counts in its whole length.
    pub(super) whole: bool,
}

/// A table or view.
#[derive(Debug, Clone)]
pub(super) struct CatalogTable {
    /// Its name, with its database.
    pub(super) table: TableId,
    /// `table`, `view` …
    pub(super) kind: String,
    pub(super) columns: Vec<CatalogColumn>,
    pub(super) indexes: Vec<Index>,
    /// By the server's estimate.
    pub(super) rows: u64,
    pub(super) bytes: u64,
    /// Whether its engine has transactions.
    pub(super) transactional: bool,
    pub(super) engine: String,
}

impl CatalogTable {
    /// The names of the primary key's columns.
    pub(super) fn key(&self) -> Vec<String> {
        self.indexes
            .iter()
            .find(|i| i.name == "PRIMARY" && i.whole)
            .map_or(Vec::new(), |i| i.columns.clone())
    }

    /// A column by name; column names ignore case.
    pub(super) fn column(&self, name: &str) -> Option<&CatalogColumn> {
        self.columns
            .iter()
            .find(|c| c.column.name == name)
            .or_else(|| self.columns.iter().find(|c| c.column.name.eq_ignore_ascii_case(name)))
    }

    /// A column by name; an error that names those it has.
    pub(super) fn must_column(&self, name: &str) -> Result<&CatalogColumn> {
        self.column(name).ok_or_else(|| {
            let known: Vec<&str> = self.columns.iter().map(|c| c.column.name.as_str()).collect();
            Error::no_column(Among::Table, name, format!("column {name} is not in {}", self.table))
                .hint(format!("it has: {}", known.join(", ")))
        })
    }

    /// Whether a unique index covers exactly these columns, none of which can be NULL, so that they tell rows apart.
    pub(super) fn is_key(&self, columns: &[String]) -> bool {
        !columns.is_empty()
            && columns
                .iter()
                .all(|c| self.column(c).is_some_and(|c| !c.column.nullable))
            && self.indexes.iter().any(|i| i.unique && i.whole && i.columns == columns)
    }

    /// Columns and key in core's words.
    pub(super) fn schema(&self) -> TableSchema {
        TableSchema {
            columns: self.columns.iter().map(|c| c.column.clone()).collect(),
            key: self.key(),
        }
    }
}

/// A table's name with its database.
pub(super) fn qualified(session: &Session, table: &TableId) -> TableId {
    let database = &session.database().config().database;
    TableId {
        schema: Some(table.schema.clone().unwrap_or_else(|| database.clone())),
        name: table.name.clone(),
    }
}

/// Its database and its name, as SQL has them.
fn literals(table: &TableId) -> (String, String) {
    (
        literal(table.schema.as_deref().unwrap_or_default()),
        literal(&table.name),
    )
}

/// Whether a table or a view has this name.
pub(super) async fn is_there(session: &mut Session, table: &TableId) -> Result<bool> {
    let (schema, name) = literals(&qualified(session, table));
    let sql = format!("SELECT 1 FROM information_schema.TABLES WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = {name}");
    Ok(!session.rows(&sql, "looking for a table").await?.is_empty())
}

/// Reads a table's columns, in order; none if there is no such table.
pub(super) async fn columns(session: &mut Session, table: &TableId) -> Result<Vec<CatalogColumn>> {
    let table = qualified(session, table);
    let what = format!("reading the columns of {table}");
    let (schema, name) = literals(&table);
    let json: Vec<String> = if session.flavor().mariadb {
        session
            .rows(
                &format!(
                    "SELECT CHECK_CLAUSE FROM information_schema.CHECK_CONSTRAINTS \
                     WHERE CONSTRAINT_SCHEMA = {schema} AND TABLE_NAME = {name} AND CHECK_CLAUSE LIKE 'json_valid(%'"
                ),
                &what,
            )
            .await?
            .iter()
            .filter_map(|r| text(r, 0))
            .collect()
    } else {
        Vec::new()
    };
    let columns = session
        .rows(
            &format!(
                "SELECT COLUMN_NAME, DATA_TYPE, COLUMN_TYPE, IS_NULLABLE, CHARACTER_MAXIMUM_LENGTH, NUMERIC_PRECISION, \
                 NUMERIC_SCALE, EXTRA, COLUMN_COMMENT, CHARACTER_SET_NAME, COLLATION_NAME \
                 FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {schema} AND TABLE_NAME = {name} \
                 ORDER BY ORDINAL_POSITION"
            ),
            &what,
        )
        .await?
        .iter()
        .map(|r| {
            let name = text(r, 0).unwrap_or_default();
            let extra = text(r, 7).unwrap_or_default().to_uppercase();
            let declared = Declared {
                data_type: text(r, 1).unwrap_or_default().to_lowercase(),
                column_type: text(r, 2).unwrap_or_default(),
                precision: number(r, 5),
                scale: number(r, 6),
                characters: number(r, 4),
                comment: text(r, 8).unwrap_or_default(),
                json: json.contains(&format!("json_valid({})", super::sql::ident(&name))),
            };
            CatalogColumn {
                column: Column {
                    nullable: text(r, 3).as_deref() == Some("YES"),
                    generated: ["VIRTUAL GENERATED", "STORED GENERATED", "PERSISTENT"]
                        .iter()
                        .any(|g| extra.contains(g)),
                    identity: extra.contains("AUTO_INCREMENT"),
                    ..Column::new(name, types::column_type(&declared)).with_source_type(&declared.column_type)
                },
                declared,
                collation: text(r, 9).zip(text(r, 10)),
            }
        })
        .collect();
    Ok(columns)
}

/// Reads a table's or view's entry; `None` if there is none, or it may not be seen.
pub(super) async fn find(session: &mut Session, table: &TableId) -> Result<Option<CatalogTable>> {
    let table = qualified(session, table);
    let what = format!("reading the catalog entry of {table}");
    let (schema, name) = literals(&table);
    let of = format!("TABLE_SCHEMA = {schema} AND TABLE_NAME = {name}");
    let found = session
        .rows(
            &format!(
                "SELECT t.TABLE_TYPE, t.TABLE_ROWS, t.DATA_LENGTH, t.ENGINE, e.TRANSACTIONS \
                 FROM information_schema.TABLES t LEFT JOIN information_schema.ENGINES e ON e.ENGINE = t.ENGINE \
                 WHERE {of}"
            ),
            &what,
        )
        .await?;
    let Some(entry) = found.first() else { return Ok(None) };
    let kind = match text(entry, 0).unwrap_or_default().as_str() {
        "BASE TABLE" | "SYSTEM VERSIONED" => "table".to_string(),
        other => other.to_lowercase(),
    };
    let columns = columns(session, &table).await?;
    let parts = session
        .rows(
            &format!(
                "SELECT INDEX_NAME, COLUMN_NAME, NON_UNIQUE, SUB_PART FROM information_schema.STATISTICS \
                 WHERE {of} ORDER BY INDEX_NAME, SEQ_IN_INDEX"
            ),
            &what,
        )
        .await?;
    let mut indexes: BTreeMap<String, Index> = BTreeMap::new();
    for r in &parts {
        let name = text(r, 0).unwrap_or_default();
        let index = indexes.entry(name.clone()).or_insert(Index {
            name,
            unique: number(r, 2) == 0,
            columns: Vec::new(),
            whole: true,
        });
        // An expression has no column; a prefix does not tell rows apart.
        index.whole &= text(r, 1).is_some() && text(r, 3).is_none();
        index.columns.extend(text(r, 1));
    }
    Ok(Some(CatalogTable {
        table,
        kind,
        columns,
        indexes: indexes.into_values().collect(),
        rows: number(entry, 1),
        bytes: number(entry, 2),
        transactional: text(entry, 4).as_deref() == Some("YES"),
        engine: text(entry, 3).unwrap_or_default(),
    }))
}

/// Reads a table's entry; an error that names similar tables if there is none.
pub(super) async fn must_find(session: &mut Session, table: &TableId) -> Result<CatalogTable> {
    if let Some(found) = find(session, table).await? {
        return Ok(found);
    }
    let schema = qualified(session, table).schema;
    let names = tables(session, schema.as_deref()).await?;
    let near = crate::names::near(&table.name, names.into_iter().map(|t| t.table.name));
    let error = Error::new(
        code::TABLE_MISSING,
        format!("table {table} does not exist, or this user may not see it"),
    );
    Err(if near.is_empty() {
        error.hint(format!(
            "list the tables with `synctool conns discover`, or GRANT SELECT ON {}.* TO the user",
            super::sql::ident(schema.as_deref().unwrap_or_default())
        ))
    } else {
        error.hint(format!("there is: {}", near.join(", ")))
    })
}

/// The user's tables and views that this user may see.
pub(super) async fn tables(session: &mut Session, schema: Option<&str>) -> Result<Vec<TableInfo>> {
    let filter = match schema {
        Some(s) => format!("TABLE_SCHEMA = {}", literal(s)),
        None => "TABLE_SCHEMA NOT IN ('mysql', 'information_schema', 'performance_schema', 'sys')".into(),
    };
    let rows = session
        .rows(
            &format!(
                "SELECT TABLE_SCHEMA, TABLE_NAME, TABLE_TYPE, TABLE_ROWS, DATA_LENGTH + INDEX_LENGTH \
                 FROM information_schema.TABLES WHERE {filter} AND TABLE_TYPE <> 'SEQUENCE' ORDER BY 1, 2"
            ),
            "listing tables",
        )
        .await?;
    Ok(rows
        .iter()
        .filter_map(|r| Some((text(r, 0)?, text(r, 1)?, r)))
        .filter(|(_, name, _)| !name.starts_with(OURS))
        .map(|(schema, name, r)| {
            let view = text(r, 2).is_some_and(|t| t.contains("VIEW"));
            TableInfo {
                table: TableId::new(schema, name),
                kind: if view { "view" } else { "table" }.into(),
                rows: (!view).then(|| number(r, 3)),
                bytes: (!view).then(|| number(r, 4)),
            }
        })
        .collect())
}

/// Names of the triggers of a table.
pub(super) async fn triggers(session: &mut Session, table: &TableId) -> Result<Vec<String>> {
    let table = qualified(session, table);
    let rows = session
        .rows(
            &format!(
                "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS \
                 WHERE EVENT_OBJECT_SCHEMA = {} AND EVENT_OBJECT_TABLE = {} ORDER BY 1",
                literal(table.schema.as_deref().unwrap_or_default()),
                literal(&table.name)
            ),
            "reading the triggers",
        )
        .await?;
    Ok(rows.iter().filter_map(|r| text(r, 0)).collect())
}

/// Foreign keys that a column is part of, or that refer to it, in words.
pub(super) async fn foreign_keys_of(session: &mut Session, table: &TableId, column: &str) -> Result<Vec<String>> {
    let table = qualified(session, table);
    let ((schema, name), column) = (literals(&table), literal(column));
    let rows = session
        .rows(
            &format!(
                "SELECT DISTINCT CONSTRAINT_NAME, TABLE_SCHEMA, TABLE_NAME FROM information_schema.KEY_COLUMN_USAGE \
                 WHERE REFERENCED_TABLE_NAME IS NOT NULL \
                 AND ((TABLE_SCHEMA = {schema} AND TABLE_NAME = {name} AND COLUMN_NAME = {column}) \
                 OR (REFERENCED_TABLE_SCHEMA = {schema} AND REFERENCED_TABLE_NAME = {name} AND REFERENCED_COLUMN_NAME = {column})) \
                 ORDER BY 1"
            ),
            "reading the foreign keys",
        )
        .await?;
    let word = |r, i| text(r, i).unwrap_or_default();
    Ok(rows
        .iter()
        .map(|r| format!("foreign key {} of {}.{} holds it", word(r, 0), word(r, 1), word(r, 2)))
        .collect())
}

/// Foreign keys of a table, and of others that refer to it, in words.
pub(super) async fn foreign_keys(session: &mut Session, table: &TableId) -> Result<Vec<String>> {
    let table = qualified(session, table);
    let (schema, name) = literals(&table);
    let rows = session
        .rows(
            &format!(
                "SELECT DISTINCT CONSTRAINT_NAME, TABLE_SCHEMA, TABLE_NAME, \
                 TABLE_SCHEMA = {schema} AND TABLE_NAME = {name} FROM information_schema.KEY_COLUMN_USAGE \
                 WHERE REFERENCED_TABLE_NAME IS NOT NULL AND ((TABLE_SCHEMA = {schema} AND TABLE_NAME = {name}) \
                 OR (REFERENCED_TABLE_SCHEMA = {schema} AND REFERENCED_TABLE_NAME = {name})) ORDER BY 1"
            ),
            "reading the foreign keys",
        )
        .await?;
    Ok(rows
        .iter()
        .map(|r| {
            let constraint = text(r, 0).unwrap_or_default();
            if number(r, 3) == 1 {
                format!("its foreign key {constraint}")
            } else {
                format!(
                    "the foreign key {constraint} of {}.{}, which refers to it",
                    text(r, 1).unwrap_or_default(),
                    text(r, 2).unwrap_or_default()
                )
            }
        })
        .collect())
}
