//! How a followed table's shape goes along with what the log and the catalog say of its columns.

use super::super::super::client::Connection;
use super::super::super::types::Wire;
use super::super::pgoutput::{Relation, RelationColumn};
use super::{Attribute, Look, Parts, REWRITTEN, Shape, ShapeColumn, of_type, travelling};
use crate::logs::Drift;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, SchemaDifference};

impl Shape {
    /// Fits the shape to what the log says of the table from here on: what came, went, got another type or name. The
    /// catalog was looked at after that was written.
    pub(in super::super) async fn follow(
        &self,
        connection: &Connection,
        relation: &Relation<'_>,
        look: &Look,
    ) -> Result<Option<Reshaped>> {
        let has = |c: &ShapeColumn| relation.columns.iter().any(|r| r.name == c.source);
        let (now, files) = (&look.columns, &look.files);
        let missed = self.missed(&look.parts)?;
        let same = |c: &ShapeColumn| {
            let logged = relation.columns.iter().find(|r| r.name == c.source);
            logged.is_some_and(|r| (r.type_oid, r.modifier) == (c.type_oid, c.modifier) || c.is_ahead(r, now))
        };
        let stays = |name: &str| self.drift == Drift::Discard && self.left.iter().any(|l| l == name);
        let is_new = |r: &&RelationColumn<'_>| !self.columns.iter().any(|c| c.source == r.name) && !stays(r.name);
        // A column that came later than this place of the log is no news, nor is one that is gone.
        let settled = self
            .columns
            .iter()
            .take(self.planned)
            .all(|c| same(c) || (c.gone && !has(c)))
            && self.columns.iter().skip(self.planned).all(|c| match has(c) {
                true => same(c),
                false => c.gone || now.iter().any(|a| c.number > 0 && a.number == c.number),
            });
        let again = self.made_again(now, relation);
        // Rows in other files, and a column that was altered: its values may have been rewritten, which no row tells.
        let moved = !self.files.is_empty() && self.files != *files;
        // Where the catalog is ahead with another type, that is judged when the log shows it.
        let ahead = |a: &Attribute| {
            let logged = relation.columns.iter().find(|r| r.name == a.name);
            logged.is_none_or(|r| (r.type_oid, r.modifier) != (a.type_oid, a.modifier))
        };
        let altered = |c: &ShapeColumn| {
            let there = now.iter().find(|a| c.number > 0 && a.number == c.number);
            there.is_some_and(|a| a.is_written_since(c.written) && !ahead(a))
        };
        let rewritten = moved && self.columns.iter().any(altered);
        let settled = settled && !moved && self.parts == look.parts && !self.columns.iter().any(altered);
        if settled && again.is_empty() && !relation.columns.iter().any(|r| is_new(&r)) {
            return Ok(None);
        }
        let mut next = self.clone();
        next.files.clone_from(files);
        next.parts.clone_from(&look.parts);
        for (at, number) in &again {
            next.columns[*at].number = *number;
            next.columns[*at].now.clone_from(&self.columns[*at].source);
            next.columns[*at].gone = false;
        }
        let (renamed, mut unsure) = next.renamed(now, relation);
        let mut names = Vec::new();
        for (at, to) in renamed {
            let c = &mut next.columns[at];
            tracing::info!(table = %self.table, from = c.source, to, "a column was renamed");
            names.push((std::mem::replace(&mut c.source, to.clone()), to));
        }
        for c in &mut next.columns {
            if let Some(a) = now.iter().find(|a| c.number > 0 && a.number == c.number) {
                c.now.clone_from(&a.name);
                if !ahead(a) {
                    c.written = a.written;
                }
            }
        }
        let mut difference = SchemaDifference::default();
        for (at, c) in next.columns.iter_mut().enumerate() {
            if relation.columns.iter().any(|r| r.name == c.source) {
                continue;
            }
            match at < self.planned {
                true if c.gone => {}
                true => difference.extra.push(c.column.clone()),
                false => c.gone |= !now.iter().any(|a| c.number > 0 && a.number == c.number),
            }
        }
        for r in relation.columns.iter() {
            let there = now.iter().find(|a| a.name == r.name);
            match next.columns.iter_mut().find(|c| c.source == r.name) {
                Some(c) if c.type_oid == 0 => (c.type_oid, c.modifier) = (r.type_oid, r.modifier),
                Some(c) if c.is_ahead(r, now) => {}
                Some(c) if (c.type_oid, c.modifier) != (r.type_oid, r.modifier) => {
                    let column = of_type(connection, r).await?;
                    // Texts of any kind come as texts; the bytes of another type would be taken for one.
                    let texts = c.column.ty == (ColumnType::Text { max: None })
                        && Wire::of_column_type(&column.ty) == Some(Wire::Text);
                    let kept =
                        texts || (column.ty == c.column.ty && holds(&c.column, &column, (c.modifier, r.modifier)));
                    let want = Column {
                        name: c.column.name.clone(),
                        ..column
                    };
                    if !kept {
                        difference.retyped.push((c.column.clone(), want));
                    }
                    (c.type_oid, c.modifier) = (r.type_oid, r.modifier);
                }
                Some(_) => {}
                None if self.drift == Drift::Discard => {
                    if !next.left.iter().any(|l| l == r.name) {
                        tracing::warn!(table = %self.table, column = r.name, "a column came at the source: left behind");
                        next.left.push(r.name.to_string());
                    }
                }
                None => {
                    // What was left behind may be called otherwise by now.
                    unsure |= !std::mem::take(&mut next.left).is_empty();
                    // The destination has the values of the one that had this name before.
                    unsure |= next.former.remove(r.name).is_some();
                    let column = travelling(of_type(connection, r).await?);
                    difference.missing.push(column.clone());
                    next.columns.push(ShapeColumn {
                        source: r.name.to_string(),
                        planned_source: r.name.to_string(),
                        now: r.name.to_string(),
                        number: there.map_or(0, |a| a.number),
                        planned_number: 0,
                        planned_written: 0,
                        written: there.map_or(0, |a| a.written),
                        type_oid: r.type_oid,
                        modifier: r.modifier,
                        column,
                        // Whatever was in it when the rows moved, or before it was published, is in no row of the log.
                        filled: there.is_some_and(|a| a.filled || moved || self.listed || a.number <= self.highest),
                        gone: there.is_none(),
                        required: false,
                        widened: false,
                    });
                }
            }
        }
        next.judge(&mut difference, &names)?;
        next.rebuild();
        let quiet = difference == SchemaDifference::default();
        Ok(Some(Reshaped {
            shape: Arc::new(next),
            difference: (!quiet).then_some(difference),
            anew: missed.or((!again.is_empty() || rewritten || unsure).then_some(REWRITTEN)),
        }))
    }

    /// Why the log does not tell all that became of the table's partitions, given those that it has now. One that nothing
    /// publishes ends the reading: opened anew, the log has it.
    fn missed(&self, now: &Parts) -> Result<Option<&'static str>> {
        let missed = self.parts.missed(now, self.ways);
        match missed {
            Some(_) if !self.ways.whole => Err(Error::new(
                code::CONFLICT,
                format!(
                    "{} has other partitions, and they are published one by one: its log is opened again",
                    self.table
                ),
            )),
            missed => Ok(missed),
        }
    }

    /// The shape with the partitions that are there now, if the log does not tell all that became of them.
    pub(in super::super) fn parted_anew(&self, now: Parts) -> Result<Option<Reshaped>> {
        let missed = self.missed(&now)?;
        Ok(missed.map(|why| Reshaped {
            shape: Arc::new(Shape {
                parts: now,
                ..self.clone()
            }),
            difference: None,
            anew: Some(why),
        }))
    }

    /// The columns that have other names in the log than before, and those names; and whether that is not sure, so that
    /// the table is to be compared. The catalog may be ahead of the log: a name that it does not know may be one between.
    fn renamed(&self, now: &[Attribute], relation: &Relation<'_>) -> (Vec<(usize, String)>, bool) {
        let logged = |name: &str| relation.columns.iter().any(|r| r.name == name);
        let known = |name: &str| self.columns.iter().any(|c| c.source == name);
        let (mut renamed, mut between, mut unsure) = (Vec::new(), Vec::new(), false);
        for (at, c) in self.columns.iter().enumerate() {
            let Some(a) = now.iter().find(|a| c.number > 0 && a.number == c.number) else {
                continue;
            };
            match (logged(&c.source), logged(&a.name)) {
                _ if a.name == c.source && logged(&c.source) => {}
                (false, true) if !known(&a.name) => renamed.push((at, a.name.clone())),
                (false, false) => between.push((at, a.number)),
                // Its old name is another column's already.
                (true, true) if !known(&a.name) && !now.iter().any(|o| o.name == c.source) => {
                    renamed.push((at, a.name.clone()));
                    unsure = true;
                }
                _ => {}
            }
        }
        // Columns stand in the order of their numbers.
        between.sort_by_key(|(_, number)| *number);
        let left_by_others = |name: &str| renamed.iter().any(|(at, _)| self.columns[*at].source == name);
        let mut unknown: Vec<&RelationColumn<'_>> = relation.columns.iter().collect();
        unknown.retain(|r| !now.iter().any(|a| a.name == r.name) && (!known(r.name) || left_by_others(r.name)));
        let fits = |c: &ShapeColumn, r: &RelationColumn<'_>| (r.type_oid, r.modifier) == (c.type_oid, c.modifier);
        let all = between.len() == unknown.len()
            && between
                .iter()
                .zip(&unknown)
                .all(|((at, _), r)| fits(&self.columns[*at], r));
        for (nth, (at, _)) in between.iter().enumerate() {
            let c = &self.columns[*at];
            let mut may = unknown.iter().filter(|r| fits(c, r));
            match (may.next(), may.next()) {
                _ if all => renamed.push((*at, unknown[nth].name.to_string())),
                (Some(r), None) if between.len() == 1 => renamed.push((*at, r.name.to_string())),
                (None, _) => {}
                _ => unsure = true,
            }
        }
        (renamed, unsure)
    }

    /// The columns that are other ones now under the names that the log has, with their numbers: dropped and made again,
    /// or renamed with another one in their place. The catalog may be ahead of the log: what is read again by its word is
    /// read once, after everything that the log has meanwhile.
    fn made_again(&self, now: &[Attribute], relation: &Relation<'_>) -> Vec<(usize, i16)> {
        let logged = |name: &str| relation.columns.iter().any(|r| r.name == name);
        let known = self.columns.iter().enumerate().filter(|(_, c)| logged(&c.source));
        let other = known.filter_map(|(at, c)| {
            let there = now.iter().find(|a| a.name == c.source && a.number != c.number)?;
            // One of another type is not in the log yet.
            let is_it = |r: &RelationColumn<'_>| {
                r.name == c.source && (r.type_oid, r.modifier) == (there.type_oid, there.modifier)
            };
            relation.columns.iter().any(is_it).then_some(())?;
            // One that has another name now, which the log does not say yet, is followed when it does.
            let elsewhere = now.iter().find(|a| a.number == c.number);
            elsewhere.is_none_or(|a| logged(&a.name)).then_some((at, there.number))
        });
        other.collect()
    }
}

/// Whether a destination that has the type of before holds all values of this one, which is of the same kind. A kind
/// says neither the digits of a second nor the fields of an interval, and nothing of a type that has no kind here: a
/// destination would round and cut by what it has of these, without a word.
fn holds(was: &Column, is: &Column, (before, now): (i32, i32)) -> bool {
    use ColumnType as T;
    // As many as there are, where it says none.
    let digits = |modifier: i32| if modifier < 0 { 6 } else { modifier };
    match was.ty {
        T::Time | T::TimeTz | T::Timestamp | T::TimestampTz => digits(now) <= digits(before),
        T::Interval => before < 0 || before == now,
        T::Native => was.source_type == is.source_type,
        _ => true,
    }
}

/// A shape that changed, and what a sink must know of it.
#[derive(Debug)]
pub(in super::super) struct Reshaped {
    pub(in super::super) shape: Arc<Shape>,
    pub(in super::super) difference: Option<SchemaDifference>,
    /// Why the table is to be read again, if it is.
    pub(in super::super) anew: Option<&'static str>,
}

impl Reshaped {
    /// Whether a column came whose rows may have a value that no event brings.
    pub(in super::super) fn fills(&self) -> bool {
        let new = self.difference.iter().flat_map(|d| &d.missing);
        let mut new = new.filter_map(|n| self.shape.columns.iter().find(|c| c.column.name == n.name));
        new.any(|c| c.filled)
    }
}
