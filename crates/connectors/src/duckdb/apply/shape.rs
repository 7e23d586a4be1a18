//! The columns of a table that changes are applied to: those that it has, and those that come.

use super::super::session::{execute, rows as text_rows};
use super::super::sql::quote;
use super::super::types::store_as;
use super::{Applier, Target};
use adbc_driver_manager::ManagedConnection;
use std::collections::HashMap;
use synctool_core::change::SchemaChange;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column};

impl Applier {
    /// Adds the columns that a change of shape adds; anything else is refused. DuckDB refuses the commit of a transaction
    /// that changed rows of a table before it altered it: then the columns are added by themselves, and the writer
    /// starts over and finds them there.
    pub(super) fn reshape(&mut self, c: &mut ManagedConnection, change: &SchemaChange) -> Result<()> {
        let (index, target) = self.target(c, &change.table)?;
        change.must_only_add()?;
        let (name, missing) = (target.name.clone(), target.lacking(c, &change.difference.missing)?);
        let written = !missing.is_empty() && self.targets.values().any(Target::is_touched);
        if written {
            execute(c, "ROLLBACK", &[])?;
        }
        for column in missing {
            execute(c, &add_column(&name, column), &[]).map_err(|e| e.at("column", column.name.clone()))?;
        }
        if written {
            return Err(Error::new(
                code::CONFLICT,
                format!("columns were added to {name}; what was written since the last commit is written again"),
            ));
        }
        match self.targets.get_mut(&index) {
            Some(target) => target.adopt(c, &change.difference.missing),
            None => Err(Error::bug("a target was lost")),
        }
    }
}

impl Target {
    /// The table's columns: name and type.
    fn described(&self, c: &mut ManagedConnection) -> Result<Vec<(String, String)>> {
        let described = text_rows(c, &format!("DESCRIBE SELECT * FROM {}", self.name), &[])?;
        let pairs = described.into_iter().filter_map(|row| {
            let mut row = row.into_iter().flatten();
            Some((row.next()?, row.next()?))
        });
        Ok(pairs.collect())
    }

    /// Reads the names of the columns' types as they are stored.
    pub(super) fn look(&mut self, c: &mut ManagedConnection) -> Result<()> {
        let described = self.described(c)?;
        let ours = |name: &String| self.columns.iter().any(|c| c.name.eq_ignore_ascii_case(name));
        self.others = described
            .iter()
            .map(|(name, _)| name)
            .filter(|n| !ours(n))
            .cloned()
            .collect();
        if !self.others.is_empty() {
            let computed = self.computed(c)?;
            self.others.retain(|name| !computed.contains(name));
        }
        let types: HashMap<String, String> = described
            .into_iter()
            .map(|(name, ty)| (name.to_lowercase(), ty))
            .collect();
        self.types = self
            .columns
            .iter()
            .map(|c| {
                types.get(&c.name.to_lowercase()).cloned().ok_or_else(|| {
                    Error::new(
                        code::SCHEMA_MISMATCH,
                        format!("table {} has no column {}", self.name, c.name),
                    )
                })
            })
            .collect::<Result<_>>()?;
        for (column, stored) in self.columns.iter_mut().zip(&self.types) {
            // A text takes what its type has no place for.
            if stored == "VARCHAR" {
                column.carrier = Carrier::Text;
            }
        }
        Ok(())
    }

    /// The computed columns: an expression stands in the place of their default, and is none.
    fn computed(&self, c: &mut ManagedConnection) -> Result<Vec<String>> {
        let defaults = text_rows(c, &format!("DESCRIBE {}", self.name), &[])?;
        let has_default = |name: &String| {
            let found = defaults
                .iter()
                .find(|row| row.first().and_then(Option::as_ref) == Some(name));
            found.is_some_and(|row| row.get(4).is_some_and(Option::is_some))
        };
        let table = self.name.replace('\'', "''");
        let expressions = format!("SELECT name FROM pragma_table_info('{table}') WHERE dflt_value IS NOT NULL");
        let expressions = text_rows(c, &expressions, &[])?;
        let names = expressions.into_iter().flatten().flatten();
        Ok(names.filter(|name| !has_default(name)).collect())
    }

    /// The columns that the table does not have yet.
    fn lacking<'c>(&self, c: &mut ManagedConnection, columns: &'c [Column]) -> Result<Vec<&'c Column>> {
        let there = self.described(c)?;
        let is_there = |c: &Column| there.iter().any(|(name, _)| name.eq_ignore_ascii_case(&c.name));
        Ok(columns.iter().filter(|c| !is_there(c)).collect())
    }

    /// Whether anything was done to the table, or is to be done, since the last commit.
    fn is_touched(&self) -> bool {
        self.written || !self.now.is_empty() || !self.appended.is_empty()
    }

    /// Takes columns that the table has for ours.
    fn adopt(&mut self, c: &mut ManagedConnection, new: &[Column]) -> Result<()> {
        self.flush(c)?;
        for column in new {
            if !self.columns.iter().any(|c| c.name == column.name) {
                self.columns.push(Column {
                    carrier: store_as(column).carrier,
                    nullable: true,
                    ..column.clone()
                });
            }
        }
        self.look(c)
    }
}

/// `ALTER TABLE … ADD COLUMN`: rows that are there have NULL in it.
pub(in super::super) fn add_column(table: &str, column: &Column) -> String {
    format!(
        "ALTER TABLE {table} ADD COLUMN IF NOT EXISTS {} {}",
        quote(&column.name),
        store_as(column).type_name
    )
}
