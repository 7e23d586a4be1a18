//! What becomes of a followed table whose columns change, as the policy says: nothing is lost without a word.

use super::shape::{Shape, ShapeColumn, travelling};
use crate::logs;
use std::collections::BTreeMap;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, SchemaDifference};

impl ShapeColumn {
    /// The column has another type from here on.
    pub(super) fn becomes(&mut self, column: Column) {
        let name = std::mem::take(&mut self.column.name);
        self.column = Column {
            name,
            nullable: self.column.nullable,
            ..travelling(column)
        };
    }

    /// Whether every value that the column has fits into another type, so that the destination's can be altered.
    pub(super) fn widens_to(&self, column: &Column, is_key: bool) -> bool {
        let integers = self.column.ty.is_integer() && column.ty.is_integer();
        // Another order of keys would mean other ranges.
        self.column.ty != column.ty && self.column.ty.fits(&column.ty) && (integers || !is_key)
    }

    /// The source has it no more; the destination keeps what it has.
    pub(super) fn goes(&mut self) {
        self.gone = true;
        self.column.nullable = true;
    }
}

impl Shape {
    /// Columns of the plan that are gone.
    pub(super) fn gone(&self) -> Vec<String> {
        let gone = self.columns[..self.planned].iter().filter(|c| c.gone);
        gone.map(|c| c.column.name.clone()).collect()
    }

    /// The types of columns that were widened.
    pub(super) fn widened(&self) -> BTreeMap<String, (u32, i32)> {
        let widened = self.columns[..self.planned].iter().filter(|c| c.widened);
        widened
            .map(|c| (c.column.name.clone(), (c.type_oid, c.modifier)))
            .collect()
    }

    /// Follows a difference as far as the policy lets it, or refuses it. What is left of it is the sink's to do.
    pub(super) fn judge(&mut self, difference: &mut SchemaDifference, renamed: &[(String, String)]) -> Result<()> {
        let table = self.table.clone();
        let nothing = *difference == SchemaDifference::default() && renamed.is_empty();
        if self.drift.holds() && !nothing {
            return Err(self.drift.refusal(&table, difference, renamed));
        }
        if !self.drift.lets_go() {
            return logs::only_new(&table, difference);
        }
        let key: Vec<String> = self.key.iter().map(|k| self.columns[*k].column.name.clone()).collect();
        for gone in std::mem::take(&mut difference.extra) {
            if key.is_empty() || key.contains(&gone.name) {
                let why = match key.is_empty() {
                    true => "a table without a key finds its rows by all columns",
                    false => "rows are found by it",
                };
                return Err(Error::new(
                    code::UNSUPPORTED,
                    format!("{table} changed its shape: column {} is gone, and {why}", gone.name),
                )
                .hint("start over with the table as it is now: synctool state reset"));
            }
            tracing::warn!(%table, column = gone.name, "a column is gone at the source: the destination keeps what it has");
            let of_it = self.columns.iter_mut().find(|c| c.column.name == gone.name);
            if let Some(column) = of_it {
                column.goes();
                difference.extra.extend(column.required.then(|| column.column.clone()));
            }
        }
        let evolves = self.drift == logs::Drift::Evolve;
        for (was, is) in std::mem::take(&mut difference.retyped) {
            let column = self.columns.iter_mut().find(|c| c.column.name == was.name);
            let Some(column) = column.filter(|c| evolves && c.widens_to(&is, key.contains(&was.name))) else {
                difference.retyped.push((was, is));
                return logs::only_new(&table, difference);
            };
            tracing::info!(%table, column = was.name, to = %is.ty, "a column has a wider type");
            column.becomes(is);
            column.widened = true;
            difference.retyped.push((was, column.column.clone()));
        }
        Ok(())
    }
}
