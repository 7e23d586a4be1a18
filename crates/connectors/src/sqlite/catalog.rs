//! What SQLite's catalog says of a table.

use super::client::failed;
use super::types::{self, Store};
use rusqlite::{Connection, OptionalExtension};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, TableId, TableSchema};

/// The prefix of everything we keep in a database.
pub(super) const OURS: &str = "_synctool_";

/// One column, as `PRAGMA table_xinfo` lists it.
#[derive(Debug, Clone)]
pub(super) struct CatalogColumn {
    pub(super) name: String,
    pub(super) declared: String,
    pub(super) not_null: bool,
    pub(super) generated: bool,
    /// Its place in the primary key, from 1; 0 if it is not in it.
    pub(super) key: i64,
    /// Its collation, where that is not by bytes; of views nobody knows.
    pub(super) collation: Option<String>,
}

impl CatalogColumn {
    /// Whether its collation calls different texts equal.
    pub(super) fn folds(&self) -> bool {
        self.collation.is_some()
    }
}

/// A table or view.
#[derive(Debug, Clone)]
pub(super) struct CatalogTable {
    /// The exact name.
    pub(super) name: String,
    /// `table`, `view`, `virtual` or `shadow`.
    pub(super) kind: String,
    pub(super) without_rowid: bool,
    pub(super) columns: Vec<CatalogColumn>,
    /// The sole INTEGER PRIMARY KEY column, which is the rowid itself.
    pub(super) rowid_column: Option<String>,
}

impl CatalogTable {
    /// The names of the primary key's columns.
    pub(super) fn key(&self) -> Vec<String> {
        let mut key: Vec<&CatalogColumn> = self.columns.iter().filter(|c| c.key > 0).collect();
        key.sort_by_key(|c| c.key);
        key.into_iter().map(|c| c.name.clone()).collect()
    }

    /// A column by name; SQLite's names ignore ASCII case.
    pub(super) fn column(&self, name: &str) -> Option<&CatalogColumn> {
        self.columns
            .iter()
            .find(|c| c.name == name)
            .or_else(|| self.columns.iter().find(|c| c.name.eq_ignore_ascii_case(name)))
    }

    /// Whether a column can never be NULL. SQLite allows NULL in a primary key that is not the rowid.
    pub(super) fn never_null(&self, column: &CatalogColumn) -> bool {
        column.not_null
            || (self.without_rowid && column.key > 0)
            || self.rowid_column.as_deref() == Some(column.name.as_str())
    }

    /// A name by which the rowid can be selected; none in views and tables without one, or if columns shadow all three.
    pub(super) fn rowid(&self) -> Option<&'static str> {
        if self.kind != "table" || self.without_rowid {
            return None;
        }
        ["rowid", "_rowid_", "oid"]
            .into_iter()
            .find(|n| self.column(n).is_none())
    }

    /// How values are written into a column.
    pub(super) fn store(&self, name: &str) -> Option<Store> {
        self.column(name).map(|c| types::store(&c.declared))
    }

    /// Columns and key in core's words.
    pub(super) fn schema(&self) -> TableSchema {
        let columns = self
            .columns
            .iter()
            .map(|c| Column {
                nullable: !self.never_null(c),
                generated: c.generated,
                identity: self.rowid_column.as_deref() == Some(c.name.as_str()),
                ..Column::new(&c.name, types::column_type(&c.declared)).with_source_type(&c.declared)
            })
            .collect();
        TableSchema {
            columns,
            key: self.key(),
        }
    }
}

/// The name of a table in SQLite, which has one schema for us.
pub(super) fn table_name(table: &TableId) -> Result<&str> {
    match table.schema.as_deref() {
        None => {}
        Some(s) if s.eq_ignore_ascii_case("main") => {}
        Some(s) => {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!("table {table}: a SQLite file has no schema {s}"),
            )
            .hint(format!("write the table as {}", TableId::bare(&table.name))));
        }
    }
    if table.name.contains('\0') {
        return Err(Error::new(
            code::IDENTIFIER,
            "a table name holds a NUL character, which SQLite cannot store",
        ));
    }
    Ok(&table.name)
}

/// Reads a table's or view's entry; `None` if there is none.
pub(super) fn find(conn: &Connection, name: &str) -> Result<Option<CatalogTable>> {
    let doing = || format!("reading the catalog entry of {name}");
    let found = conn
        .query_row(
            "SELECT name, type, wr FROM pragma_table_list WHERE schema = 'main' AND name = ?1 COLLATE NOCASE \
             ORDER BY name = ?1 DESC LIMIT 1",
            [name],
            |r| Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?, r.get::<_, bool>(2)?)),
        )
        .optional()
        .map_err(failed(doing))?;
    let Some((name, kind, without_rowid)) = found else {
        return Ok(None);
    };
    let columns = conn
        .prepare("SELECT name, type, \"notnull\", pk, hidden FROM pragma_table_xinfo(?1, 'main') ORDER BY cid")
        .and_then(|mut s| {
            s.query_map([&name], |r| {
                let hidden: i64 = r.get(4)?;
                Ok((
                    hidden,
                    CatalogColumn {
                        name: r.get(0)?,
                        declared: r.get::<_, Option<String>>(1)?.unwrap_or_default(),
                        not_null: r.get(2)?,
                        generated: hidden == 2 || hidden == 3,
                        key: r.get(3)?,
                        collation: None,
                    },
                ))
            })?
            .collect::<rusqlite::Result<Vec<_>>>()
        })
        .map_err(failed(doing))?;
    // Hidden columns of virtual tables are arguments, not values.
    let mut columns: Vec<CatalogColumn> = columns.into_iter().filter(|(h, _)| *h != 1).map(|(_, c)| c).collect();
    if kind == "table" {
        for column in &mut columns {
            let (_, collation, ..) = conn
                .column_metadata(Some("main"), name.as_str(), column.name.as_str())
                .map_err(failed(doing))?;
            let named = collation.map(|c| c.to_string_lossy().to_ascii_uppercase());
            column.collation = named.filter(|c| c != "BINARY");
        }
    }
    // `INTEGER PRIMARY KEY DESC` is a key with an index of its own, by an old mistake of SQLite's that stays.
    let key_index: bool = conn
        .query_row(
            "SELECT count(*) > 0 FROM pragma_index_list(?1, 'main') WHERE origin = 'pk'",
            [&name],
            |r| r.get(0),
        )
        .map_err(failed(doing))?;
    let mut key = columns.iter().filter(|c| c.key > 0);
    let rowid_column = match (key.next(), key.next()) {
        (Some(k), None)
            if k.declared.eq_ignore_ascii_case("INTEGER") && !key_index && !without_rowid && kind == "table" =>
        {
            Some(k.name.clone())
        }
        _ => None,
    };
    Ok(Some(CatalogTable {
        name,
        kind,
        without_rowid,
        columns,
        rowid_column,
    }))
}

/// Reads a table's entry; an error that names similar tables if there is none.
pub(super) fn must_find(conn: &Connection, table: &TableId) -> Result<CatalogTable> {
    let name = table_name(table)?;
    if let Some(found) = find(conn, name)? {
        return Ok(found);
    }
    let near = crate::names::near(name, names(conn)?.into_iter().map(|(n, _)| n));
    let error = Error::new(code::TABLE_MISSING, format!("table {table} does not exist"));
    Err(if near.is_empty() {
        error.hint("list the tables with `synctool conns discover`")
    } else {
        error.hint(format!("there is: {}", near.join(", ")))
    })
}

/// Names and kinds of the user's tables and views.
pub(super) fn names(conn: &Connection) -> Result<Vec<(String, String)>> {
    conn.prepare(
        "SELECT name, type FROM pragma_table_list WHERE schema = 'main' AND type IN ('table', 'view', 'virtual') \
         ORDER BY name",
    )
    .and_then(|mut s| {
        s.query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
            .collect::<rusqlite::Result<Vec<(String, String)>>>()
    })
    .map(|all| {
        all.into_iter()
            .filter(|(n, _)| !n.starts_with("sqlite_") && !n.starts_with(OURS))
            .collect()
    })
    .map_err(failed(|| "listing tables".into()))
}

/// Whether a unique index or the primary key covers exactly these columns, none of which can be NULL, so that they tell
/// rows apart and order them.
pub(super) fn is_key(conn: &Connection, table: &CatalogTable, columns: &[String]) -> Result<bool> {
    let same = |names: &[String]| {
        names.len() == columns.len() && names.iter().zip(columns).all(|(a, b)| a.eq_ignore_ascii_case(b))
    };
    if columns.is_empty() || table.kind != "table" {
        return Ok(false);
    }
    if same(&table.key()) {
        return Ok(true);
    }
    if !columns
        .iter()
        .all(|c| table.column(c).is_some_and(|c| table.never_null(c)))
    {
        return Ok(false);
    }
    Ok(unique_indexes(conn, &table.name)?.iter().any(|i| same(i)))
}

/// The columns of every whole unique index on plain columns.
pub(super) fn unique_indexes(conn: &Connection, table: &str) -> Result<Vec<Vec<String>>> {
    let doing = || format!("reading the indexes of {table}");
    let indexes: Vec<String> = conn
        .prepare("SELECT name FROM pragma_index_list(?1, 'main') WHERE \"unique\" AND NOT partial")
        .and_then(|mut s| s.query_map([table], |r| r.get(0))?.collect())
        .map_err(failed(doing))?;
    let mut found = Vec::new();
    for index in indexes {
        let columns: Vec<Option<String>> = conn
            .prepare("SELECT name FROM pragma_index_info(?1, 'main') ORDER BY seqno")
            .and_then(|mut s| s.query_map([&index], |r| r.get(0))?.collect())
            .map_err(failed(doing))?;
        // An index on an expression has a column without a name.
        found.extend(columns.into_iter().collect::<Option<Vec<String>>>());
    }
    Ok(found)
}
