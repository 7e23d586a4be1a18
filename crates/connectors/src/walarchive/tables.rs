//! Tables on both sides, and rows that travel between them without being looked at.

use super::scratch::blamed;
use super::sql;
use crate::postgres::Connection;
use bytes::{Bytes, BytesMut};
use futures::{SinkExt, StreamExt, pin_mut};
use std::collections::{BTreeMap, BTreeSet};
use synctool_core::error::{Error, Result, code};
use synctool_core::ledger::{Applied, Ledger};
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
    /// What must be the same besides: the labels of an enum, the rules of a domain, the fields of a composite type, the
    /// expression of a computed column.
    pub shape: String,
}

/// A table that holds rows itself.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Schema and name.
    pub name: Name,
    /// The name by which it was asked for.
    pub selected: String,
    /// Its columns in order.
    pub columns: Vec<Column>,
    /// The server's numbers of these: a column that is dropped and made again has another.
    pub numbers: Vec<i16>,
    /// Whether it is a plain table: no view, no table of another server.
    pub ordinary: bool,
    /// Whether its changes are in the log.
    pub logged: bool,
    /// By which access method it keeps its rows; a view has none.
    pub method: Option<String>,
    /// A table that inherits from it, if there is one; partitions do not count.
    pub heir: Option<String>,
}

/// What stands behind selected names.
#[derive(Debug, Clone, Default)]
pub struct Found {
    /// The names that were asked for.
    pub asked: Vec<String>,
    /// The tables, each once.
    pub tables: BTreeMap<Name, Table>,
    /// The selected names that mean something, each with the tables that hold its rows.
    pub names: BTreeMap<String, BTreeSet<Name>>,
}

/// Selected tables whose partitions here are not production's, and how they differ.
pub type Misparted = BTreeMap<Name, (Table, Error)>;

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
        display(&self.name)
    }

    /// How the table is made on its server, as text: it changes when production changes the table.
    pub fn shape(&self) -> String {
        format!("{:?} {:?}", self.columns, self.numbers)
    }

    /// Why the log does not have its rows and their changes, and what to do.
    pub fn refused(&self) -> Option<(String, &'static str)> {
        if !self.ordinary {
            let why = "is no table with rows of its own";
            return Some((why.into(), "name the tables that hold the rows"));
        }
        if !self.logged {
            let why = "is unlogged in production: its changes are not in WAL";
            return Some((why.into(), "ALTER TABLE … SET LOGGED in production, or leave it out"));
        }
        // Judged by its name, so that nothing is followed by mistake: how a method logs stands nowhere.
        if let Some(method) = self.method.as_deref().filter(|method| *method != "heap") {
            let why = format!("has the access method {method}: its changes are not logged as rows");
            let next = "ALTER TABLE … SET ACCESS METHOD heap in production, or leave it out";
            return Some((why, next));
        }
        let heir = self.heir.as_ref()?;
        let why = format!(
            "has tables that inherit from it ({heir}): it shows their rows as its own, and their changes come under \
             their own names"
        );
        let next = "make it a partitioned table; or leave it out, and name the tables that inherit from it";
        Some((why, next))
    }

    /// The local table must be as production's; the order of the columns does not matter.
    pub fn fits(&self, local: Option<&Table>) -> Result<()> {
        let table = self.display();
        if is_own(&self.name) {
            return Err(own(&table));
        }
        if let Some((why, next)) = self.refused() {
            return Err(Error::new(code::UNSUPPORTED, format!("table {table} {why}"))
                .at("table", table)
                .hint(next));
        }
        let Some(local) = local else {
            return Err(
                Error::new(code::TABLE_MISSING, format!("table {table} does not exist locally"))
                    .at("table", table.clone())
                    .hint(format!(
                        "create it as it is in production (pg_dump --schema-only), then: synctool datasync resync {table}"
                    )),
            );
        };
        if !local.ordinary {
            let what = format!("table {table} is no ordinary table locally");
            let next = format!(
                "put an ordinary table in its place, as it is in production, then: synctool datasync resync {table}"
            );
            return Err(Error::new(code::SCHEMA_MISMATCH, what).at("table", table).hint(next));
        }
        let sorted = |t: &Table| {
            let mut columns = t.columns.clone();
            columns.sort_by(|a, b| a.name.cmp(&b.name));
            columns
        };
        if sorted(self) == sorted(local) {
            return Ok(());
        }
        let different = |ours: &Table, theirs: &Table| {
            let each = ours
                .columns
                .iter()
                .filter(|c| !theirs.columns.contains(c))
                .map(Column::describe);
            match each.collect::<Vec<_>>().join(", ") {
                none if none.is_empty() => "nothing more".into(),
                some => some,
            }
        };
        let what = format!(
            "columns of {table} differ: production ({}), local ({})",
            different(self, local),
            different(local, self)
        );
        Err(Error::new(code::SCHEMA_MISMATCH, what)
            .at("table", table.clone())
            .hint(format!(
                "change the local table as production's was changed, then: synctool datasync resync {table}"
            )))
    }
}

impl Column {
    fn describe(&self) -> String {
        let mut text = format!("{} {}", self.name, self.kind);
        if !self.shape.is_empty() {
            text.push_str(&format!(" [{}]", self.shape));
        }
        if let Some(place) = self.key {
            text.push_str(&format!(" key {}", place + 1));
        }
        text
    }
}

/// Whether Data Sync itself keeps a table or view of this name in the local database.
pub fn is_own(name: &Name) -> bool {
    let known = matches!(
        name.1.as_str(),
        "tables_to_sync"
            | "data_sync_logs"
            | "data_sync_metrics"
            | "data_sync_metrics_now"
            | "data_sync_metrics_closed"
            | "data_sync_errors"
            | "data_sync_status"
            | "data_sync_tables"
    );
    known && name.0 == "public"
}

/// Why a table of that name cannot be followed.
pub fn own(table: &str) -> Error {
    let what =
        format!("{table} is a table of Data Sync itself here: production's of the same name cannot be synced into it");
    Error::new(code::REFUSED, what)
        .at("table", table.to_owned())
        .hint(format!("synctool datasync remove-tables {table}"))
}

/// `schema.name`, for people.
pub fn display(name: &Name) -> String {
    format!("{}.{}", name.0, name.1)
}

/// Schema and name of what a user wrote: without a schema it is `public`.
pub fn parse_name(text: &str) -> Name {
    match text.split_once('.') {
        Some((schema, name)) => (schema.into(), name.into()),
        None => ("public".into(), text.into()),
    }
}

/// The tables behind selected names, on one side.
pub async fn find<'a>(session: &Connection, selected: impl IntoIterator<Item = &'a str>) -> Result<Found> {
    let selected: Vec<String> = selected.into_iter().map(str::to_owned).collect();
    let names = selected.iter().map(|text| parse_name(text)).collect();
    find_named(session, selected, names).await
}

/// The tables behind names that were taken apart already; `selected` is what they are called.
pub async fn find_named(session: &Connection, selected: Vec<String>, names: Vec<Name>) -> Result<Found> {
    let (schemas, names): (Vec<String>, Vec<String>) = names.into_iter().unzip();
    let rows = session
        .query(sql::TABLES, &[&schemas, &names])
        .await
        .map_err(|e| session.error(e, "reading the catalog"))?;
    let mut found = Found {
        asked: selected.clone(),
        ..Found::default()
    };
    for row in rows {
        let nth: i64 = row.get(0);
        let Some(text) = usize::try_from(nth - 1).ok().and_then(|nth| selected.get(nth)) else {
            continue;
        };
        let holders = found.names.entry(text.clone()).or_default();
        let (Some(schema), Some(name)) = (row.get::<_, Option<String>>(1), row.get(2)) else {
            continue;
        };
        let name: Name = (schema, name);
        holders.insert(name.clone());
        let (kind, persistence): (String, String) = (row.get(3), row.get(4));
        let table = found.tables.entry(name).or_insert_with_key(|name| Table {
            name: name.clone(),
            selected: text.clone(),
            columns: Vec::new(),
            numbers: Vec::new(),
            ordinary: kind == "r",
            logged: persistence == "p",
            method: row.get(11),
            heir: row.get(12),
        });
        // One that was asked for twice is listed under the first name.
        if let (Some(column), true) = (row.get::<_, Option<String>>(5), table.selected == *text) {
            table.columns.push(Column {
                name: column,
                kind: row.get(6),
                generated: row.get(7),
                key: row.get(8),
                shape: row.get(9),
            });
            table.numbers.push(row.get(10));
        }
    }
    Ok(found)
}

/// The selected tables that show other rows here than in production although all that is followed is equal, because
/// their partitions are others.
pub async fn misparted(local: &Connection, there: &Found, here: &Found) -> Result<Misparted> {
    let mut all = Misparted::new();
    for (selected, theirs) in &there.names {
        let name = parse_name(selected);
        // A plain table holds its rows itself.
        let Some(ours) = here.names.get(selected).filter(|_| !there.tables.contains_key(&name)) else {
            continue;
        };
        let mut gone = Vec::new();
        for leaf in ours.difference(theirs) {
            // One that was made ahead of production's shows nothing yet.
            if is_used(local, leaf).await? {
                gone.push(display(leaf));
            }
        }
        // One that is not here at all is told under its own name.
        let new = theirs.difference(ours).filter(|leaf| here.tables.contains_key(*leaf));
        let new: Vec<String> = new.map(display).collect();
        if gone.is_empty() && new.is_empty() {
            continue;
        }
        let told = |of_gone: &str, of_new: &str| {
            let both = [(of_gone, &gone), (of_new, &new)];
            let each = both.iter().filter(|(_, leaves)| !leaves.is_empty());
            let each = each.map(|(what, leaves)| format!("{what} {}", leaves.join(", ")));
            each.collect::<Vec<_>>().join("; ")
        };
        let table = display(&name);
        let what = format!(
            "table {table} has other partitions here than in production ({})",
            told("only here:", "only there:")
        );
        let next = format!(
            "here, as in production: {}; it is looked at again with the next batch, and by: synctool datasync verify",
            told("DETACH or DROP", "ATTACH")
        );
        let trouble = Error::new(code::SCHEMA_MISMATCH, what).at("table", table).hint(next);
        let table = Table {
            name: name.clone(),
            selected: selected.clone(),
            ..Table::default()
        };
        all.insert(name, (table, trouble));
    }
    Ok(all)
}

/// Whether a table had rows since it was made or emptied, as its size tells: that needs no right to read it.
async fn is_used(local: &Connection, name: &Name) -> Result<bool> {
    let row = local.query_opt(sql::BLOCKS, &[&name.0, &name.1]).await;
    let row = row.map_err(|e| local.error(e, &format!("reading {}", display(name))))?;
    let blocks = row.and_then(|row| row.get::<_, Option<i64>>(0));
    Ok(blocks.is_some_and(|blocks| blocks > 0))
}

/// The file of every table.
pub async fn files(session: &Connection) -> Result<BTreeMap<Name, RelFile>> {
    let rows = session
        .query(sql::FILES, &[])
        .await
        .map_err(|e| blamed(session.error(e, "reading the catalog")))?;
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

/// Lets rows of the scratch server flow from one COPY into another, byte for byte; returns how many.
pub async fn copy(from: &Connection, read: &str, to: &Connection, write: &str, what: &str) -> Result<u64> {
    let mut read = Some(read.to_owned());
    copy_each(from, move || Ok(read.take()), to, write, what).await
}

/// What may stand in the way of rows that nothing else refuses.
pub const LEAVES_OUT: &str = "a trigger of the local table that acts when rows arrive (ENABLE ALWAYS or ENABLE REPLICA) leaves rows out: disable it";

/// The account of rows that one server gave and another one took, as every run keeps it: a leak is an error.
pub fn account(given: u64, taken: u64) -> Result<()> {
    let mut ledger = Ledger::default();
    ledger.accounts.read.rows = given;
    ledger.accounts.written.rows = given;
    ledger.applied = Applied::inserts(taken);
    ledger.check().map_err(|e| e.hint_instead(LEAVES_OUT))
}

/// Lets the rows of several COPYs of the scratch server, one after the other, flow into one; returns how many. As many must
/// arrive as were given.
pub async fn copy_each(
    from: &Connection,
    mut next: impl FnMut() -> Result<Option<String>>,
    to: &Connection,
    write: &str,
    what: &str,
) -> Result<u64> {
    /// Rows travel together in messages of about this many bytes.
    const MESSAGE: usize = 64 << 10;
    let sink = to.copy_in::<_, Bytes>(write).await.map_err(|e| to.error(e, what))?;
    pin_mut!(sink);
    let mut gathered = BytesMut::with_capacity(MESSAGE);
    let mut given = 0;
    while let Some(read) = next()? {
        let failed = |e| blamed(from.error(e, what));
        let rows = from.copy_out(&read).await.map_err(failed)?;
        pin_mut!(rows);
        while let Some(bytes) = rows.next().await {
            let bytes = bytes.map_err(failed)?;
            // Each row is a line; a line break in a value is written otherwise.
            given += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
            gathered.extend_from_slice(&bytes);
            if gathered.len() >= MESSAGE {
                let message = std::mem::replace(&mut gathered, BytesMut::with_capacity(MESSAGE + MESSAGE / 4));
                sink.send(message.freeze()).await.map_err(|e| to.error(e, what))?;
            }
        }
    }
    sink.send(gathered.freeze()).await.map_err(|e| to.error(e, what))?;
    let taken = sink.finish().await.map_err(|e| to.error(e, what))?;
    account(given, taken)?;
    Ok(taken)
}

/// By which operators the columns of unique indexes are found.
pub async fn equals(session: &Connection, name: &Name) -> Result<BTreeMap<String, String>> {
    let rows = session.query(sql::EQUALS, &[&name.0, &name.1]).await;
    let rows = rows.map_err(|e| session.error(e, &format!("reading the indexes of {}", display(name))))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A key with its operators.
pub fn found_by<'a>(key: &[(&'a str, &'a str)], equals: &'a BTreeMap<String, String>) -> Vec<sql::KeyColumn<'a>> {
    let operator = |column: &str| equals.get(column).map_or("OPERATOR(pg_catalog.=)", String::as_str);
    key.iter()
        .map(|(column, kind)| (*column, *kind, operator(column)))
        .collect()
}

/// Whether production holds a lock that is not over at the scratch server's place: on the table, or on what else is read
/// with it, its indexes and where its long values are.
pub async fn is_blocked(session: &Connection, table: &Table) -> Result<bool> {
    // A standby cannot read these at all; that is told elsewhere.
    if !table.ordinary || !table.logged {
        return Ok(false);
    }
    let row = session.query_one(sql::IS_LOCKED, &[&table.name.0, &table.name.1]).await;
    let row = row.map_err(|e| blamed(session.error(e, &format!("looking for locks on {}", table.display()))))?;
    Ok(row.get(0))
}

/// How many rows a table has, as its size tells: nobody gathers statistics on a standby.
pub async fn estimated_rows(session: &Connection, table: &Table) -> Result<u64> {
    /// Rows of a block, about.
    const DENSITY: u64 = 60;
    let row = session.query_one(sql::BLOCKS, &[&table.name.0, &table.name.1]).await;
    let row = row.map_err(|e| blamed(session.error(e, &format!("reading {}", table.display()))))?;
    Ok(u64::try_from(row.get::<_, i64>(0)).unwrap_or_default() * DENSITY)
}
