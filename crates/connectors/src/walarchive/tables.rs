//! Tables on both sides, and rows that travel between them without being looked at.

use super::sql;
use crate::postgres::Connection;
use bytes::Bytes;
use futures::{SinkExt, StreamExt, pin_mut};
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_pgwal::RelFile;

/// A table's quoted parts: schema and name.
pub type Name = (String, String);

/// A column, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type, in PostgreSQL's words.
    pub kind: String,
    /// Whether the server computes it.
    pub generated: bool,
    /// Its place in the primary key.
    pub key: Option<i32>,
}

/// A table that holds rows itself.
#[derive(Debug, Clone)]
pub struct Table {
    /// Schema and name.
    pub name: Name,
    /// Its columns in order.
    pub columns: Vec<Column>,
}

impl Table {
    /// The columns that are written.
    pub fn stored(&self) -> Vec<&str> {
        self.columns
            .iter()
            .filter(|c| !c.generated)
            .map(|c| c.name.as_str())
            .collect()
    }

    /// The primary key, in its order; empty if there is none.
    pub fn key(&self) -> Vec<(&str, &str)> {
        let mut key: Vec<_> = self.columns.iter().filter_map(|c| Some((c.key?, c))).collect();
        key.sort_by_key(|(place, _)| *place);
        key.into_iter()
            .map(|(_, c)| (c.name.as_str(), c.kind.as_str()))
            .collect()
    }

    /// What identifies a row: the key, or everything.
    pub fn identity(&self) -> Vec<&str> {
        match self.key() {
            key if key.is_empty() => self.stored(),
            key => key.into_iter().map(|(name, _)| name).collect(),
        }
    }

    /// `schema.name`, for people.
    pub fn display(&self) -> String {
        format!("{}.{}", self.name.0, self.name.1)
    }
}

/// Schema and name of what a user wrote: without a schema it is `public`.
pub fn parse_name(text: &str) -> Name {
    match text.split_once('.') {
        Some((schema, name)) => (schema.into(), name.into()),
        None => ("public".into(), text.into()),
    }
}

/// The tables behind a name that a user selected.
pub async fn leaves(session: &Connection, selected: &Name) -> Result<Vec<Table>> {
    let what = "reading the catalog";
    let rows = session
        .query(sql::LEAVES, &[&selected.0, &selected.1])
        .await
        .map_err(|e| session.error(e, what))?;
    let mut tables = Vec::new();
    for row in rows {
        let persistence: String = row.get(3);
        let name: Name = (row.get(0), row.get(1));
        if persistence != "p" {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!(
                    "table {}.{} is unlogged in production: its changes are not in WAL",
                    name.0, name.1
                ),
            ));
        }
        let oid: u32 = row.get(2);
        let columns = session
            .query(sql::COLUMNS, &[&oid])
            .await
            .map_err(|e| session.error(e, what))?;
        let column = |row: &tokio_postgres::Row| Column {
            name: row.get(0),
            kind: row.get(1),
            generated: row.get(2),
            key: Some(row.get::<_, i32>(3)).filter(|place| *place >= 0),
        };
        tables.push(Table {
            name,
            columns: columns.iter().map(column).collect(),
        });
    }
    Ok(tables)
}

/// The file of every table.
pub async fn files(session: &Connection) -> Result<BTreeMap<Name, RelFile>> {
    let rows = session
        .query(sql::FILES, &[])
        .await
        .map_err(|e| session.error(e, "reading the catalog"))?;
    let file = |row: &tokio_postgres::Row| {
        let name: Name = (row.get(0), row.get(1));
        let file = RelFile {
            tablespace: row.get(2),
            database: row.get(3),
            file: row.get::<_, Option<u32>>(4).unwrap_or_default(),
        };
        (name, file)
    };
    Ok(rows.iter().map(file).collect())
}

/// Lets rows flow from one COPY into another, byte for byte; returns how many.
pub async fn copy(from: &Connection, read: &str, to: &Connection, write: &str, what: &str) -> Result<u64> {
    let rows = from.copy_out(read).await.map_err(|e| from.error(e, what))?;
    let sink = to.copy_in::<_, Bytes>(write).await.map_err(|e| to.error(e, what))?;
    pin_mut!(rows, sink);
    while let Some(bytes) = rows.next().await {
        let bytes = bytes.map_err(|e| from.error(e, what))?;
        sink.send(bytes).await.map_err(|e| to.error(e, what))?;
    }
    sink.finish().await.map_err(|e| to.error(e, what))
}

/// Whether production holds a lock on the table that is not over at the scratch server's place.
pub async fn is_blocked(session: &Connection, table: &Table) -> Result<bool> {
    match session.batch_execute(&sql::probe(&table.name.0, &table.name.1)).await {
        Ok(()) => Ok(false),
        Err(e) if e.code().is_some_and(|code| code.code() == "55P03") => Ok(true),
        Err(e) => Err(session.error(e, &format!("reading {}", table.display()))),
    }
}
