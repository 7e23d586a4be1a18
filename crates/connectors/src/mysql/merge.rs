//! The statements that make a table equal to another one beside it, by key: delete, update, insert only what differs.

use super::catalog::CatalogTable;
use super::slices::goes_by_bytes;
use super::sql::{exact, ident, list};
use super::types::Writer;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, TableSchema};

/// Which columns of an existing table are written, and how.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    /// The planned columns that the destination does not compute itself.
    pub(super) columns: Vec<Column>,
    pub(super) writers: Vec<Writer>,
    /// The places of the key's columns.
    pub(super) key: Vec<usize>,
    /// Columns that the database computes: given in vain.
    pub(super) generated: Vec<String>,
    /// Whether every column of the table is written.
    pub(super) whole: bool,
    /// Whether a unique index besides the key could forbid an order of changes.
    pub(super) fragile: bool,
    /// Whether equal keys have equal bytes.
    pub(super) exact_key: bool,
    /// Whether the own order of each column is that of the bytes of its texts.
    pub(super) by_bytes: Vec<bool>,
    /// The columns of unique indexes that more than one key may have the values of.
    others: Vec<Vec<String>>,
}

impl Mapping {
    pub(super) fn new(existing: &CatalogTable, schema: &TableSchema) -> Result<Self> {
        if existing.kind != "table" {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!("{} is a {}, which cannot be written", existing.table, existing.kind),
            )
            .hint("name a table"));
        }
        if !existing.transactional {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!(
                    "the engine {} of {} has no transactions",
                    existing.engine, existing.table
                ),
            )
            .hint(format!(
                "ALTER TABLE {} ENGINE = InnoDB",
                super::sql::table(&existing.table)
            )));
        }
        let mut mapping = Mapping {
            columns: Vec::new(),
            writers: Vec::new(),
            key: Vec::new(),
            generated: Vec::new(),
            whole: false,
            fragile: existing
                .indexes
                .iter()
                .any(|i| i.unique && i.columns.iter().any(|c| !schema.key.contains(c))),
            exact_key: true,
            by_bytes: Vec::new(),
            others: Vec::new(),
        };
        let others = existing.indexes.iter().filter(|i| i.unique && i.whole);
        let others = others.filter(|i| !schema.key.iter().all(|k| i.columns.contains(k)));
        mapping.others = others.map(|i| i.columns.clone()).collect();
        for column in &schema.columns {
            let there = existing.column(&column.name).ok_or_else(|| {
                Error::new(
                    code::SCHEMA_MISMATCH,
                    format!("{} has no column {}", existing.table, column.name),
                )
                .hint("add the column, or leave it out of the pipeline")
            })?;
            if there.column.generated {
                mapping.generated.push(column.name.clone());
                continue;
            }
            if schema.key.contains(&column.name)
                && there
                    .collation
                    .as_ref()
                    .is_some_and(|(_, c)| !(c.ends_with("nopad_bin") || c == "utf8mb4_0900_bin"))
            {
                mapping.exact_key = false;
            }
            mapping.writers.push(Writer::new(column, &there.declared.column_type));
            mapping.by_bytes.push(goes_by_bytes(there));
            mapping.columns.push(column.clone());
        }
        for k in &schema.key {
            let at = mapping.columns.iter().position(|c| c.name == *k);
            mapping.key.push(at.ok_or_else(|| {
                Error::new(
                    code::COLUMN_MISSING,
                    format!("key column {k} is not among the columns written"),
                )
            })?);
        }
        let own = existing.columns.iter().filter(|c| !c.column.generated).count();
        mapping.whole = own == mapping.columns.len();
        Ok(mapping)
    }

    /// The names of the columns written.
    pub(super) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// The names of the key's columns.
    pub(super) fn key_names(&self) -> Vec<&str> {
        self.key.iter().map(|k| self.columns[*k].name.as_str()).collect()
    }

    /// `d.k = l.k AND …`
    fn same_key(&self) -> String {
        let terms: Vec<String> = self
            .key_names()
            .iter()
            .map(|k| format!("d.{q} = l.{q}", q = ident(k)))
            .collect();
        terms.join(" AND ")
    }

    fn first_key(&self) -> String {
        self.key_names().first().map_or(String::new(), |k| ident(k))
    }

    /// Columns that may differ between rows of one key: a collation may call different keys equal.
    fn values(&self) -> Vec<usize> {
        (0..self.columns.len())
            .filter(|i| !self.key.contains(i) || !self.exact_key)
            .collect()
    }

    fn differs(&self) -> Option<String> {
        let terms: Vec<String> = self
            .values()
            .iter()
            .map(|i| {
                let (name, text) = (ident(&self.columns[*i].name), self.writers[*i].is_text());
                format!(
                    "NOT ({} <=> {})",
                    exact(&format!("d.{name}"), text),
                    exact(&format!("l.{name}"), text)
                )
            })
            .collect();
        (!terms.is_empty()).then(|| format!("({})", terms.join(" OR ")))
    }

    /// Rows of `table` that are not in `load`.
    pub(super) fn delete_missing(&self, table: &str, load: &str, condition: Option<&str>) -> String {
        let more = condition.map_or(String::new(), |c| format!(" AND {c}"));
        format!(
            "DELETE d FROM {table} AS d LEFT JOIN {load} AS l ON {} WHERE l.{} IS NULL{more}",
            self.same_key(),
            self.first_key()
        )
    }

    /// Rows (where `condition` holds) of other keys that hold a unique value that a row of `load` is to have.
    pub(super) fn give_way(&self, table: &str, load: &str, condition: &str) -> Vec<String> {
        let more = match condition.is_empty() {
            true => String::new(),
            false => format!(" AND ({condition})"),
        };
        let written = |unique: &&Vec<String>| unique.iter().all(|u| self.columns.iter().any(|c| c.name == *u));
        let delete = |unique: &Vec<String>| {
            let same: Vec<String> = unique.iter().map(|u| format!("d.{q} = l.{q}", q = ident(u))).collect();
            format!(
                "DELETE d FROM {table} AS d JOIN {load} AS l ON {} WHERE NOT ({}){more}",
                same.join(" AND "),
                self.same_key()
            )
        };
        self.others.iter().filter(written).map(delete).collect()
    }

    /// How many rows of `table` are not in `load`.
    pub(super) fn count_missing(&self, table: &str, load: &str) -> String {
        format!(
            "SELECT count(*) FROM {table} AS d LEFT JOIN {load} AS l ON {} WHERE l.{} IS NULL",
            self.same_key(),
            self.first_key()
        )
    }

    /// Rows of both that differ get the values of `load`; `None` where there is nothing beside the key.
    pub(super) fn update_differing(&self, table: &str, load: &str) -> Option<String> {
        let set: Vec<String> = self
            .values()
            .iter()
            .map(|i| format!("d.{q} = l.{q}", q = ident(&self.columns[*i].name)))
            .collect();
        Some(format!(
            "UPDATE {table} AS d JOIN {load} AS l ON {} SET {} WHERE {}",
            self.same_key(),
            set.join(", "),
            self.differs()?
        ))
    }

    /// Rows of both that differ go: for values that only a row's absence lets another one have.
    pub(super) fn delete_differing(&self, table: &str, load: &str) -> Option<String> {
        Some(format!(
            "DELETE d FROM {table} AS d JOIN {load} AS l ON {} WHERE {}",
            self.same_key(),
            self.differs()?
        ))
    }

    /// Rows of `load` that `table` has not.
    pub(super) fn insert_missing(&self, table: &str, load: &str) -> String {
        let names = self.names();
        format!(
            "INSERT INTO {table} ({}) SELECT {} FROM {load} AS l LEFT JOIN {table} AS d ON {} WHERE d.{} IS NULL",
            list("", &names),
            list("l.", &names),
            self.same_key(),
            self.first_key()
        )
    }

    /// All rows of `load`.
    pub(super) fn insert_all(&self, table: &str, load: &str) -> String {
        let names = list("", &self.names());
        format!("INSERT INTO {table} ({names}) SELECT {names} FROM {load}")
    }
}
