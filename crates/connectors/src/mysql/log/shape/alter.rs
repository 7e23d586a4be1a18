//! What a statement of the log does to a followed table's columns.

use super::super::super::catalog::{CatalogColumn, CatalogTable};
use super::super::statements::{Effect, is_same};
use super::{Shape, ShapeColumn, same_carrier};
use crate::logs::{self, Drift};
use synctool_core::error::Result;
use synctool_core::schema::{Column, ColumnType, SchemaDifference};

/// A shape that a statement changed.
pub(in super::super) struct Altered {
    pub(in super::super) shape: Shape,
    /// What a sink must know of that.
    pub(in super::super) difference: SchemaDifference,
    /// Why the table is to be read again, if it is.
    pub(in super::super) anew: Option<String>,
}

impl Shape {
    /// The shape behind a statement that does this to the table, which the catalog has like this by now; `None` where
    /// nothing of it is ours. What went is judged at once where the policy lets it go, and with the next row otherwise: a
    /// column may be made again before.
    pub(in super::super) fn alter(&self, effects: &[&Effect], there: Option<&CatalogTable>) -> Result<Option<Altered>> {
        let mut next = self.clone();
        let (mut anew, mut went) = (None, SchemaDifference::default());
        let remade = effects.iter().any(|e| matches!(e, Effect::Remade(_)));
        for effect in effects {
            if let Effect::Dropped(_, name) = effect {
                next.loses(name, &mut went);
            }
        }
        let (renamed, back) = next.renames(effects);
        if back {
            anew = Some("has a column again that was gone".to_string());
        }
        if let (true, Some(there)) = (remade, there) {
            next.is_another(there, &mut went);
        }
        next.judge(&mut went, &renamed)?;
        for effect in effects {
            match effect {
                Effect::Added(_, name) if next.makes_again(name) => {
                    anew = Some(format!("lost column {name}, which was made again"));
                }
                Effect::Redefined(_, name) if next.columns.iter().any(|c| c.is(name)) => {
                    anew = Some(format!(
                        "has another definition of column {name}, which may have changed its values"
                    ));
                }
                Effect::Remade(_) => anew = Some("was made anew".to_string()),
                _ => {}
            }
        }
        let mut difference = next.other_types(there);
        next.judge(&mut difference, &[])?;
        difference.extra.extend(went.extra);
        next.rebuild();
        let same = anew.is_none() && renamed.is_empty() && next.columns == self.columns && next.left == self.left;
        Ok((!same).then_some(Altered {
            shape: next,
            difference,
            anew,
        }))
    }

    /// A column is not there any more.
    fn loses(&mut self, name: &str, went: &mut SchemaDifference) {
        self.left.retain(|l| !is_same(l, name));
        let (planned, lets_go) = (self.planned, self.drift.lets_go());
        let Some((at, column)) = self.columns.iter_mut().enumerate().find(|(_, c)| c.is(name)) else {
            return;
        };
        match at < planned {
            false => column.gone = true,
            true if lets_go => went.extra.push(column.column.clone()),
            true => column.lost = true,
        }
    }

    /// Columns have other names, all of them at once; says which, and whether one of them was taken for gone.
    fn renames(&mut self, effects: &[&Effect]) -> (Vec<(String, String)>, bool) {
        let (mut renamed, mut back) = (Vec::new(), false);
        let before: Vec<(String, bool)> = self.columns.iter().map(|c| (c.source.clone(), c.is_there())).collect();
        let left = self.left.clone();
        for effect in effects {
            let Effect::Renamed(_, from, to) = effect else { continue };
            for (name, was) in self.left.iter_mut().zip(&left) {
                if is_same(was, from) {
                    name.clone_from(to);
                }
            }
            let named = |there: bool| before.iter().position(|(n, t)| is_same(n, from) && *t == there);
            let Some(at) = named(true).or_else(|| named(false)) else {
                continue;
            };
            let column = &mut self.columns[at];
            back |= !column.is_there();
            (column.gone, column.lost) = (false, false);
            column.source.clone_from(to);
            tracing::info!(table = %self.table, from, to, "a column was renamed");
            renamed.push((from.clone(), to.clone()));
        }
        (renamed, back)
    }

    /// Another table has the name: its columns are those of these names.
    pub(super) fn is_another(&mut self, there: &CatalogTable, went: &mut SchemaDifference) {
        let has = |name: &str| there.columns.iter().any(|c| is_same(&c.column.name, name));
        let lets_go = self.drift.lets_go();
        for (at, column) in self.columns.iter_mut().enumerate() {
            if has(&column.planned_source) {
                column.source.clone_from(&column.planned_source);
                (column.gone, column.lost) = (false, false);
            }
            match column.is_there() && !has(&column.source) {
                false => {}
                true if at >= self.planned => column.gone = true,
                // What rows are found by is judged with them: it may have another name by now.
                true if lets_go && !self.key.contains(&at) => went.extra.push(column.column.clone()),
                true => {}
            }
        }
    }

    /// A column came: whether it is one that went, or takes the name of one that has another name.
    fn makes_again(&mut self, name: &str) -> bool {
        let is_it = |c: &&mut ShapeColumn| match is_same(&c.source, name) {
            true => !c.is_there(),
            false => is_same(&c.planned_source, name),
        };
        let Some(column) = self.columns.iter_mut().find(is_it) else {
            return false;
        };
        let was = std::mem::replace(&mut column.source, name.to_string());
        if !is_same(&was, name) && column.is_there() {
            // What had the name until now comes as a new column, with its values from before.
            self.left.push(was);
        }
        (column.gone, column.lost) = (false, false);
        true
    }

    /// The columns that the catalog has with another type.
    pub(super) fn other_types(&mut self, there: Option<&CatalogTable>) -> SchemaDifference {
        let (mut difference, drift) = (SchemaDifference::default(), self.drift);
        for column in self.columns.iter_mut().filter(|c| c.is_there()) {
            let Some(found) = there.and_then(|t| t.column(&column.source)) else {
                continue;
            };
            if !column.is_of(found, drift) {
                difference.retyped.push(column.retyped(&found.column));
            } else if found.column.ty == column.column.ty {
                column.declared.clone_from(&found.declared.column_type);
            }
        }
        difference
    }
}

impl ShapeColumn {
    /// Whether the policy takes a column of the catalog for what this one is.
    fn is_of(&self, found: &CatalogColumn, drift: Drift) -> bool {
        let (was, is) = (&self.column.ty, &found.column.ty);
        let within = is.fits(was);
        match drift {
            _ if is == was || found.declared.column_type == self.declared || (self.widened && within) => true,
            Drift::Freeze | Drift::Pause => false,
            Drift::Evolve => same_carrier(is, was) && within,
            Drift::Added | Drift::Discard => *was == (ColumnType::Text { max: None }) || same_carrier(is, was),
        }
    }

    /// Whether it takes the values of a column of the catalog, as the server prints them.
    pub(in super::super) fn takes(&self, found: &CatalogColumn, drift: Drift) -> bool {
        let (was, is) = (&self.column.ty, &found.column.ty);
        // Where the policy never alters texts, those of any length come.
        let texts = matches!(drift, Drift::Added | Drift::Discard) && same_carrier(is, was);
        let json = matches!((is, was), (ColumnType::Text { max: None }, ColumnType::Json));
        is == was || found.declared.column_type == self.declared || is.fits(was) || texts || json
    }
}

impl logs::Drifting for ShapeColumn {
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
        (self.gone, self.lost) = (true, false);
        self.column.nullable = true;
    }

    fn widens(&mut self, column: Column) {
        self.declared = column.source_type.clone().unwrap_or_default();
        let name = std::mem::take(&mut self.column.name);
        self.column = Column {
            name,
            nullable: self.column.nullable,
            ..super::travelling(column)
        };
        self.widened = true;
    }
}
