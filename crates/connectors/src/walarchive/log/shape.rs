//! A followed table: what of it is read, and how its rows travel.

use super::super::sql;
use super::super::tables::Name;
use crate::postgres::log::capture::{Initial, Remembered};
use crate::postgres::slices::Order;
use crate::postgres::sql::ident;
use arrow_schema::SchemaRef;
use std::sync::Arc;
use synctool_core::error::Result;
use synctool_core::plan::{Plan, PlannedTable, ReadColumn, ReadSpec};
use synctool_core::schema::{Column, TableId, TableSchema};

/// A table to follow, as the plan has it.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) read: ReadSpec,
    /// The key, in destination names.
    pub(super) key: Vec<String>,
    /// Those columns of it in which chunks are cut by the bytes of texts.
    pub(super) by_bytes: Vec<String>,
    /// The columns that the table had when the plan was made, also those that are left out.
    pub(super) known: Vec<String>,
    pub(super) initial: Initial,
}

impl Followed {
    pub(super) fn of(plan: &Plan, planned: &PlannedTable) -> Self {
        let remembered = Remembered::of(plan, &planned.read.table);
        Followed {
            read: planned.read.clone(),
            key: planned.schema.key.clone(),
            by_bytes: plan.columns_cut_by_bytes(&planned.read.table),
            known: remembered.names(),
            initial: remembered.initial,
        }
    }
}

/// The same as it is at the scratch server's place.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As the plan calls it.
    pub(super) table: Arc<TableId>,
    /// Schema and name.
    pub(super) name: Name,
    /// Whether its rows are in its partitions.
    pub(super) parted: bool,
    /// What is read of a row.
    pub(super) read: ReadSpec,
    /// So many of its columns are the plan's.
    pub(super) planned: usize,
    /// Columns of the table that are not read.
    pub(super) others: Vec<String>,
    /// The places of the key's columns.
    pub(super) key: Vec<usize>,
    by_bytes: Vec<String>,
    pub(super) arrow: SchemaRef,
}

/// A table's schema and name.
pub(super) fn full_name(table: &TableId, default_schema: &str) -> Name {
    let schema = table.schema.as_deref().unwrap_or(default_schema);
    (schema.into(), table.name.clone())
}

/// The shapes of all followed tables.
pub(super) type Shapes = crate::logs::Shapes<Shape>;

impl Shape {
    /// A table with columns that came since the plan was made.
    pub(super) fn new(followed: &Followed, added: &[Column], parted: bool, default_schema: &str) -> Result<Shape> {
        let read = followed.read.clone();
        let schema = TableSchema {
            columns: read.columns.iter().map(|c| c.column.clone()).collect(),
            key: followed.key.clone(),
        };
        let table = &read.table;
        let others = followed.known.iter();
        let others = others.filter(|name| !read.columns.iter().any(|c| c.source == **name));
        let mut shape = Shape {
            table: Arc::new(table.clone()),
            name: full_name(table, default_schema),
            parted,
            planned: read.columns.len(),
            others: others.cloned().collect(),
            key: schema.key_indices()?,
            by_bytes: followed.by_bytes.clone(),
            arrow: schema.arrow_schema(),
            read,
        };
        shape.add(added);
        Ok(shape)
    }

    /// Reads more columns from now on.
    pub(super) fn add(&mut self, columns: &[Column]) {
        let plain = |c: &Column| ReadColumn::plain(c.name.clone(), c.clone());
        self.read.columns.extend(columns.iter().map(plain));
        self.arrow = self.schema().arrow_schema();
    }

    /// Where all its rows are, for a statement.
    pub(super) fn from(&self) -> String {
        let table = sql::table(&self.name.0, &self.name.1);
        match self.parted {
            true => table,
            false => format!("ONLY {table}"),
        }
    }

    /// The columns and key, in destination names.
    pub(super) fn schema(&self) -> TableSchema {
        let columns: Vec<Column> = self.read.columns.iter().map(|c| c.column.clone()).collect();
        let key = self.key.iter().map(|k| columns[*k].name.clone()).collect();
        TableSchema { columns, key }
    }

    /// The key's columns in the source's names.
    pub(super) fn key_sources(&self) -> Vec<String> {
        self.key.iter().map(|k| self.read.columns[*k].source.clone()).collect()
    }

    /// What stands for each of them where its order counts.
    pub(super) fn key_terms(&self) -> Vec<String> {
        let own = ident(&self.name.1);
        let term = |k: &usize| {
            let read = &self.read.columns[*k];
            let order = match self.by_bytes.contains(&read.column.name) {
                true => Order::Bytes,
                false => Order::Own,
            };
            let ty = read.column.source_type.as_deref().unwrap_or_default();
            order.term(&format!("{own}.{}", ident(&read.source)), ty)
        };
        self.key.iter().map(term).collect()
    }

    /// What identifies a row: its key, or everything.
    pub(super) fn identity(&self) -> Vec<usize> {
        match self.key.is_empty() {
            true => (0..self.read.columns.len()).collect(),
            false => self.key.clone(),
        }
    }

    /// Reading some of the columns.
    pub(super) fn reading(&self, columns: &[usize]) -> (ReadSpec, SchemaRef) {
        let columns = columns.iter().map(|c| self.read.columns[*c].clone()).collect();
        let read = ReadSpec::of(TableId::clone(&self.table), columns);
        let arrow = read.schema().arrow_schema();
        (read, arrow)
    }

    /// The names of the columns that are not the plan's.
    pub(super) fn added(&self) -> Vec<String> {
        self.added_columns().into_iter().map(|c| c.name).collect()
    }

    /// The columns that are not the plan's, for a sink that does not know of them.
    pub(super) fn added_columns(&self) -> Vec<Column> {
        self.read.columns[self.planned..]
            .iter()
            .map(|c| c.column.clone())
            .collect()
    }
}
