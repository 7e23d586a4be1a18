//! What becomes of a followed table whose columns change, as the policy says.

use super::shape::{Shape, ShapeColumn, travelling};
use crate::logs::{self, Drifting};
use std::collections::BTreeMap;
use synctool_core::error::Result;
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
}

impl Drifting for ShapeColumn {
    fn column(&self) -> &Column {
        &self.column
    }

    fn is_required(&self) -> bool {
        self.required
    }

    fn is_gone(&self) -> bool {
        self.gone
    }

    fn is_widened(&self) -> bool {
        self.widened
    }

    fn goes(&mut self) {
        self.gone = true;
        self.column.nullable = true;
    }

    fn widens(&mut self, column: Column) {
        self.becomes(column);
        self.widened = true;
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
        let key: Vec<String> = self.key.iter().map(|k| self.columns[*k].column.name.clone()).collect();
        let of = (&*self.table, self.drift);
        logs::judge(of, &key, &mut self.columns, difference, renamed)
    }
}
