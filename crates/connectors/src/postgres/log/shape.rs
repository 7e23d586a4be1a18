//! What a followed table looks like at the place where the log is read: the plan's columns, and those that came since.

mod follow;
mod parts;

pub(super) use follow::Reshaped;
pub(super) use parts::{Parts, Ways, look, of_all};

use super::super::catalog;
use super::super::client::Connection;
use super::super::ddl;
use super::super::slices::{Order, Orders};
use super::super::sql::ident;
use super::super::types::Wire;
use super::membership::short;
use super::pgoutput::{Relation, RelationColumn};
use super::position::LogPosition;
use super::slot::Publication;
use crate::logs::{self, Drift, Drifting};
use arrow_schema::SchemaRef;
use postgres_types::Type;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, ReadColumn, ReadSpec};
use synctool_core::schema::{Carrier, Column, ColumnType, SchemaDifference, TableId, TableSchema};

/// A table to follow.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) read: ReadSpec,
    /// The key, in destination names.
    pub(super) key: Vec<String>,
    /// Those columns of it in which chunks are cut by the bytes of texts.
    pub(super) by_bytes: Vec<String>,
    /// The columns in the catalog when the plan was made: they tell a renamed column from a new one, and a type that
    /// was altered since.
    pub(super) known: Vec<Attribute>,
    /// The table's number then; 0 if nobody keeps the plan, and positions say everything.
    pub(super) oid: u32,
    /// In which files its rows were then, if the plan says.
    pub(super) files: String,
    /// Its partitions then, if the plan says.
    pub(super) parts: Option<Parts>,
    /// By what it was in the publication then, if the plan says.
    pub(super) member: Option<String>,
    /// What is to be read of it besides its log, at the beginning.
    pub(super) initial: Initial,
}

/// What is done with the rows that were there before the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initial {
    /// They are loaded, chunk by chunk.
    #[default]
    Load,
    /// They are made equal: rows that only the destination has go.
    Resync,
    /// They are left out.
    Skip,
}

/// What a plan remembers of a table for its log.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) initial: Initial,
    pub(crate) oid: u32,
    pub(super) columns: Vec<Attribute>,
    #[serde(default)]
    pub(crate) rows: Option<u64>,
    /// In which files its rows were.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) files: String,
    /// Its partitions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) parts: Option<Parts>,
    /// By what it was in the publication.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) member: Option<String>,
}

impl Remembered {
    /// A table of a log that knows its columns by their names alone.
    pub(crate) fn named(initial: Initial, names: impl Iterator<Item = String>, rows: Option<u64>) -> Self {
        let columns = names.map(|name| Attribute {
            name,
            number: 0,
            type_oid: 0,
            modifier: 0,
            filled: false,
            written: 0,
        });
        Remembered {
            initial,
            oid: 0,
            columns: columns.collect(),
            rows,
            files: String::new(),
            parts: None,
            member: None,
        }
    }

    /// The names of the columns that the table had.
    pub(crate) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|c| c.name.clone()).collect()
    }

    /// Under which name a plan remembers it.
    pub(crate) fn name(table: &TableId) -> String {
        format!("log:{table}")
    }

    /// Has a plan remember it of a table.
    pub(crate) fn keep(&self, plan: &mut Plan, table: &TableId) -> Result<()> {
        let text = serde_json::to_string(self).map_err(|e| Error::bug(e.to_string()))?;
        plan.remember.insert(Remembered::name(table), text);
        Ok(())
    }

    /// What a plan remembers of a table.
    pub(crate) fn of(plan: &Plan, table: &TableId) -> Self {
        plan.remember
            .get(&Remembered::name(table))
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default()
    }
}

impl Followed {
    pub(super) fn of(plan: &Plan, planned: &PlannedTable) -> Self {
        let remembered = Remembered::of(plan, &planned.read.table);
        Followed {
            read: planned.read.clone(),
            key: planned.schema.key.clone(),
            by_bytes: plan.columns_cut_by_bytes(&planned.read.table),
            known: remembered.columns,
            oid: remembered.oid,
            files: remembered.files,
            parts: remembered.parts,
            member: remembered.member,
            initial: remembered.initial,
        }
    }
}

/// A followed table as it is at one place of the log.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As the plan calls it.
    pub(super) table: Arc<TableId>,
    pub(super) oid: u32,
    pub(super) columns: Vec<ShapeColumn>,
    /// So many of the columns are the plan's.
    pub(super) planned: usize,
    /// The places of the key's columns.
    pub(super) key: Vec<usize>,
    /// How each of them orders chunks.
    pub(super) orders: Vec<Order>,
    /// Which rows are published.
    pub(super) filter: Option<String>,
    /// What becomes of it when its columns change.
    pub(super) drift: Drift,
    /// Columns that stay behind.
    pub(super) left: Vec<String>,
    /// Columns that came later and went, with their numbers: the destination has them yet, under these names.
    pub(super) former: BTreeMap<String, i16>,
    /// Whether the publication leaves columns out: one that comes may have been there all the time.
    listed: bool,
    /// No column has a higher number of those that were there when the plan was made.
    highest: i16,
    /// In which files its rows were when it was last looked at; empty if that is not known.
    pub(super) files: String,
    /// The same as the plan has it.
    planned_files: String,
    /// Whether it has partitions, or could have.
    pub(super) partitioned: bool,
    /// Its partitions when they were last looked at.
    pub(super) parts: Parts,
    /// The same as the plan has it, if it says.
    planned_parts: Option<Parts>,
    /// How they are published.
    pub(super) ways: Ways,
    pub(super) arrow: SchemaRef,
}

/// A column of a [`Shape`].
#[derive(Debug, Clone)]
pub(super) struct ShapeColumn {
    /// Its name at the source, at this place of the log.
    pub(super) source: String,
    /// The same as somebody has it who knows the plan and the destination alone.
    planned_source: String,
    /// Its name at the source now, as far as is known.
    pub(super) now: String,
    /// Its place in the catalog, which a rename does not change; 0 if it is not there any more.
    pub(super) number: i16,
    /// The same as the plan has it; 0 if it does not say.
    planned_number: i16,
    /// By which transaction the catalog has it like this; 0 if that is not known.
    written: u32,
    /// The same as the plan has it.
    planned_written: u32,
    pub(super) type_oid: u32,
    pub(super) modifier: i32,
    /// As it travels, in the destination's name.
    pub(super) column: Column,
    /// Whether its rows may have a value that no event brought (a default).
    pub(super) filled: bool,
    /// Whether the catalog does not have it any more: chunks bring nothing of it.
    pub(super) gone: bool,
    /// Whether the plan has it NOT NULL.
    pub(super) required: bool,
    /// Whether it has another type than the plan says.
    pub(super) widened: bool,
}

impl ShapeColumn {
    /// Whether the log shows rows from before the column became what it is: its values are not of this type, and the
    /// table is read anew behind them.
    fn is_ahead(&self, logged: &RelationColumn<'_>, now: &[Attribute]) -> bool {
        let ours = (self.type_oid, self.modifier);
        let there = now.iter().find(|a| self.number > 0 && a.number == self.number);
        logged.name == self.source
            && (logged.type_oid, logged.modifier) != ours
            && there.is_some_and(|a| (a.type_oid, a.modifier) == ours)
    }
}

/// The shapes of all followed tables.
pub(super) type Shapes = crate::logs::Shapes<Shape>;

/// A shape as a reader begins with it.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) shape: Shape,
    /// Why no event may tell all that became of the table since it was last looked at, if that is so.
    pub(super) anew: Option<&'static str>,
}

/// A column was dropped and made again, or values were rewritten.
const REWRITTEN: &str = "a column of it was made again, or its values were rewritten";

/// A followed table as the catalog has it now.
#[derive(Debug, Clone)]
pub(super) struct Look {
    pub(super) oid: u32,
    pub(super) partitioned: bool,
    pub(super) columns: Vec<Attribute>,
    pub(super) parts: Parts,
    /// Those of its partitions that have rows.
    pub(super) leaves: Arc<HashSet<u32>>,
    /// In which files its rows and those of its partitions are: other ones after a statement that wrote all rows anew.
    pub(super) files: String,
}

impl Shape {
    /// A followed table as the catalog has it, with columns that came earlier. Where it was not `followed_all_along`, those
    /// that came meanwhile are among them: the log does not tell their values.
    pub(super) async fn load(
        connection: &Connection,
        followed: &Followed,
        position: &LogPosition,
        followed_all_along: bool,
        (publication, whole): (&Publication, bool),
        (schema, drift): (&str, Drift),
    ) -> Result<Loaded> {
        let described = catalog::describe(connection, &followed.read.table, schema).await?;
        let Look {
            columns: now,
            files,
            parts,
            partitioned,
            ..
        } = look(connection, described.oid, &[]).await?;
        let known = |source: &str| now.iter().find(|a| a.name == source);
        let name = followed.read.table.to_string();
        // The numbers of a table that was made again mean nothing.
        let is_same = followed_all_along || followed.oid == described.oid;
        let numbers = position.numbers.get(&name).filter(|_| is_same);
        let noted = |column: &str| numbers.and_then(|n| n.get(column)).copied();
        let names = position.names.get(&name).filter(|_| is_same);
        let called = |column: &str| names.and_then(|n| n.get(column)).map(String::as_str);
        let written = position.written.get(&name);
        let written = |column: &str| written.and_then(|w| w.get(column)).copied();
        let noted_files = position.files.get(&name).unwrap_or(&followed.files);
        let moved = followed_all_along && !noted_files.is_empty() && *noted_files != files;
        let mut anew = false;
        let mut find = |source: &str, number: Option<i16>| match number {
            None => known(source),
            Some(number) => now.iter().find(|a| a.number == number).or_else(|| {
                let again = known(source);
                anew |= again.is_some();
                again
            }),
        };
        let (mut columns, mut rewritten) = (Vec::new(), false);
        for c in &followed.read.columns {
            // As the plan knew it; a table that was made again has other numbers.
            let then = followed
                .known
                .iter()
                .find(|a| a.name == c.source && followed.oid == described.oid);
            let planned_number = then.map_or(0, |a| a.number);
            let source = called(&c.column.name).unwrap_or(&c.source);
            let there = find(source, noted(&c.column.name).or(then.map(|a| a.number)));
            let typed = then.or(there);
            let before = written(&c.column.name).or(then.map(|a| a.written)).unwrap_or_default();
            let widened = position.types.get(&name).and_then(|t| t.get(&c.column.name)).copied();
            let typed = widened.or(typed.map(|a| (a.type_oid, a.modifier)));
            // Another type is judged where the log shows it; a wider one is taken at once, so that chunks can be read, and
            // the table is compared.
            let retyped = there.filter(|a| typed.is_some_and(|t| t != (a.type_oid, a.modifier)));
            let altered = there.is_some_and(|a| a.is_written_since(before));
            rewritten |= moved && altered && retyped.is_none();
            let mut known = ShapeColumn {
                source: source.to_string(),
                planned_source: c.source.clone(),
                now: there.map_or_else(|| source.to_string(), |a| a.name.clone()),
                number: there.map_or(0, |a| a.number),
                planned_number,
                planned_written: then.map_or(0, |a| a.written),
                written: match retyped {
                    Some(_) => before,
                    None => there.map_or(0, |a| a.written),
                },
                type_oid: typed.map_or(0, |t| t.0),
                modifier: typed.map_or(-1, |t| t.1),
                column: c.column.clone(),
                filled: false,
                gone: false,
                required: !c.column.nullable,
                widened: widened.is_some(),
            };
            let is_key = followed.key.contains(&c.column.name);
            if let Some((oid, modifier)) = widened {
                let logged = RelationColumn {
                    name: &c.source,
                    type_oid: oid,
                    modifier,
                    key: is_key,
                };
                known.becomes(of_type(connection, &logged).await?);
            }
            let ahead = retyped.filter(|_| drift == Drift::Evolve && !followed.key.is_empty());
            if let Some(a) = ahead
                && let Some(column) = described.schema.column(&a.name)
                && logs::widens(&known.column, column, is_key)
                && (known.column.ty != column.ty || ddl::rounds(&known.column, column))
            {
                (known.type_oid, known.modifier, known.written) = (a.type_oid, a.modifier, a.written);
                (known.widened, rewritten) = (true, true);
                known.becomes(column.clone());
            }
            let accepted = position.gone.get(&name).is_some_and(|g| g.contains(&c.column.name));
            if there.is_none() && !is_key && (accepted || (drift.lets_go() && !followed.key.is_empty())) {
                known.goes();
            }
            columns.push(known);
        }
        let planned = columns.len();
        let by_itself = publication.tables.iter().any(|p| p.table == described.table);
        let ways = Ways {
            whole,
            by_root: publication.via_root && by_itself,
        };
        let noted_parts = position.parts.get(&name).or(followed.parts.as_ref());
        let noted_parts = noted_parts.filter(|_| followed_all_along);
        let missed = noted_parts.and_then(|noted| noted.missed(&parts, ways));
        let leaves = match by_itself {
            true => Vec::new(),
            false => super::slot::leaves(connection, described.oid).await?,
        };
        let published = publication.entry(&described.table, &leaves)?;
        let mut added = position.added.get(&name).cloned().unwrap_or_default();
        let mut left = position.left.get(&name).cloned().unwrap_or_default();
        if !followed_all_along && !followed.known.is_empty() {
            let listed = published.and_then(|p| p.columns.as_deref());
            // Before 18 the list of published columns has generated ones, and the log has not.
            let may = connection.version() >= 180_000;
            let comes = |c: &&Column| listed.map_or(!c.generated, |l| (may || !c.generated) && l.contains(&c.name));
            // The catalog had some when the plan was made, and the publication did not.
            let is_new = |a: &&Attribute| match followed.oid == described.oid {
                true => columns.iter().all(|c| c.number != a.number && c.now != a.name),
                false => columns.iter().all(|c| c.now != a.name),
            };
            let came = now
                .iter()
                .filter(is_new)
                .filter_map(|a| described.schema.column(&a.name));
            let came = came.filter(comes).map(|c| c.name.clone());
            let came = Vec::from_iter(came.filter(|name| !added.contains(name) && !left.contains(name)));
            match drift {
                Drift::Discard => left.extend(came),
                _ => added.extend(came),
            }
        }
        let mut former = BTreeMap::new();
        for name in &added {
            // By its number it is known under any name.
            let source = called(name).unwrap_or(name);
            let Some(there) = find(source, noted(name)) else {
                former.insert(name.clone(), noted(name).unwrap_or_default());
                continue;
            };
            let Some(column) = described.schema.column(&there.name) else {
                continue;
            };
            // Where the plan is made anew at each start, it may have it by another name.
            if columns.iter().any(|c| c.number == there.number) {
                continue;
            }
            rewritten |= moved && there.is_written_since(written(name).unwrap_or_default());
            columns.push(ShapeColumn {
                source: source.to_string(),
                planned_source: name.clone(),
                now: there.name.clone(),
                number: there.number,
                planned_number: 0,
                planned_written: 0,
                written: there.written,
                type_oid: there.type_oid,
                modifier: there.modifier,
                column: travelling(Column {
                    name: name.clone(),
                    ..column.clone()
                }),
                filled: false,
                gone: false,
                required: false,
                widened: false,
            });
        }
        let list = published.and_then(|p| p.columns.as_deref());
        let plain = described.schema.columns.iter().filter(|c| !c.generated);
        let listed = list.is_some_and(|l| plain.clone().any(|c| !l.contains(&c.name)));
        let highest = match followed.oid == described.oid || followed.oid == 0 {
            true => followed.known.iter().map(|a| a.number).max().unwrap_or_default(),
            false => 0,
        };
        let mut shape = Shape {
            listed,
            highest,
            table: Arc::new(followed.read.table.clone()),
            oid: described.oid,
            columns,
            planned,
            key: Vec::new(),
            orders: Vec::new(),
            filter: published.and_then(|p| p.filter.clone()),
            drift,
            left,
            former,
            // Until the log has shown what came with them, it is not forgotten that the rows are in other ones now.
            files: match moved {
                true => noted_files.clone(),
                false => files,
            },
            planned_files: followed.files.clone(),
            partitioned,
            parts,
            planned_parts: followed.parts.clone(),
            ways,
            arrow: arrow_schema::Schema::empty().into(),
        };
        shape.key = TableSchema {
            columns: shape.columns.iter().map(|c| c.column.clone()).collect(),
            key: followed.key.clone(),
        }
        .key_indices()?;
        shape.orders = vec![Order::Own; shape.key.len()];
        if !followed.by_bytes.is_empty() {
            let key = shape.key.iter().map(|k| shape.columns[*k].now.clone());
            let orders = Orders::of(connection, shape.oid, &Vec::from_iter(key)).await?;
            for (order, k) in shape.orders.iter_mut().zip(&shape.key) {
                let column = &shape.columns[*k];
                if followed.by_bytes.contains(&column.column.name) && !orders.by_bytes.contains(&column.now) {
                    *order = Order::Bytes;
                }
            }
        }
        shape.rebuild();
        Ok(Loaded {
            shape,
            anew: missed.or((anew || rewritten).then_some(REWRITTEN)),
        })
    }

    pub(super) fn rebuild(&mut self) {
        self.arrow = self.schema().arrow_schema();
    }

    /// The columns and key, in destination names.
    pub(super) fn schema(&self) -> TableSchema {
        TableSchema {
            columns: self.columns.iter().map(|c| c.column.clone()).collect(),
            key: self.key.iter().map(|k| self.columns[*k].column.name.clone()).collect(),
        }
    }

    /// What the catalog calls the columns of the key by now.
    pub(super) fn key_now(&self) -> Vec<String> {
        self.key.iter().map(|k| self.columns[*k].now.clone()).collect()
    }

    /// What stands for each column of the key where its order counts.
    pub(super) fn key_terms(&self) -> Vec<String> {
        // Qualified: a bare name would mean the selected text of a column that is cast, which sorts otherwise.
        let own = ident(&self.table.name);
        let key = self.key.iter().zip(&self.orders);
        key.map(|(k, order)| {
            let column = &self.columns[*k];
            let ty = column.column.source_type.as_deref().unwrap_or_default();
            order.term(&format!("{own}.{}", ident(&column.now)), ty)
        })
        .collect()
    }

    /// What a chunk selects: the columns that are there.
    pub(super) fn read(&self) -> ReadSpec {
        let there = self.columns.iter().filter(|c| !c.gone);
        let plain = |c: &ShapeColumn| ReadColumn::plain(&c.now, c.column.clone());
        ReadSpec::of(TableId::clone(&self.table), there.map(plain).collect())
    }

    /// The names of the columns that are not the plan's, as the destination has them.
    pub(super) fn added(&self) -> Vec<String> {
        let added = self.columns[self.planned..].iter().map(|c| &c.column.name);
        added.chain(self.former.keys()).cloned().collect()
    }

    /// By which transactions the catalog has the columns as they are, where the plan does not say, by the columns' names
    /// at the destination.
    pub(super) fn written(&self) -> BTreeMap<String, u32> {
        let differ = self.columns.iter().filter(|c| c.written != c.planned_written);
        differ.map(|c| (c.column.name.clone(), c.written)).collect()
    }

    /// What the log calls the columns, where nobody would guess it, by the columns' names at the destination.
    pub(super) fn names(&self) -> BTreeMap<String, String> {
        let differ = self.columns.iter().filter(|c| c.source != c.planned_source);
        differ.map(|c| (c.column.name.clone(), c.source.clone())).collect()
    }

    /// In which files the rows are, if the plan does not say.
    pub(super) fn moved(&self) -> Option<&String> {
        Some(&self.files).filter(|files| **files != self.planned_files)
    }

    /// Its partitions, if the plan does not say.
    pub(super) fn parted(&self) -> Option<&Parts> {
        Some(&self.parts).filter(|parts| self.partitioned && Some(*parts) != self.planned_parts.as_ref())
    }

    /// The numbers of the columns that the plan does not say, by the columns' names at the destination.
    pub(super) fn numbers(&self) -> BTreeMap<String, i16> {
        let differ = self
            .columns
            .iter()
            .filter(|c| c.number > 0 && c.number != c.planned_number);
        let differ = differ.map(|c| (&c.column.name, c.number));
        let former = self.former.iter().map(|(name, number)| (name, *number));
        let former = former.filter(|(_, number)| *number > 0);
        differ
            .chain(former)
            .map(|(name, number)| (name.clone(), number))
            .collect()
    }

    /// What a sink must know that knows the plan's columns only.
    pub(super) fn beyond_plan(&self) -> SchemaDifference {
        logs::beyond_plan(&self.columns, self.planned)
    }

    /// Whether every value can come as its type sends it.
    pub(super) fn is_binary(&self) -> bool {
        self.columns.iter().all(|c| Wire::to_read(&c.column).is_some())
    }

    /// The shape with its columns by the names that they have in the catalog by now; one that came later and is gone is
    /// marked. Or what of the plan is not there any more.
    pub(super) fn as_named(&self, now: &[Attribute]) -> Result<Shape, &ShapeColumn> {
        let mut next = self.clone();
        for (at, (c, known)) in next.columns.iter_mut().zip(&self.columns).enumerate() {
            let there = now.iter().find(|a| match c.number {
                0 => a.name == c.now,
                number => a.number == number,
            });
            match there {
                Some(a) => c.now.clone_from(&a.name),
                None if at < self.planned && !known.gone => return Err(known),
                None => c.gone = true,
            }
        }
        Ok(next)
    }

    /// Whether the log has values of a type that a column had before it was widened: as texts they are values of the wider
    /// one too.
    pub(super) fn has_narrower(&self, relation: &Relation<'_>) -> bool {
        let other = |c: &ShapeColumn, r: &RelationColumn<'_>| {
            c.source == r.name && (c.type_oid, c.modifier) != (r.type_oid, r.modifier)
        };
        let mut widened = self.columns.iter().filter(|c| c.widened);
        widened.any(|c| relation.columns.iter().any(|r| other(c, r)))
    }

    /// Where the columns of the log go; `None` for what nobody wants, or is of another type than the column has by now.
    pub(super) fn places(&self, relation: &Relation<'_>) -> Vec<Option<usize>> {
        let place = |r: &RelationColumn<'_>| {
            let at = self.columns.iter().position(|c| c.source == r.name)?;
            let c = &self.columns[at];
            (c.type_oid == 0 || c.widened || (c.type_oid, c.modifier) == (r.type_oid, r.modifier)).then_some(at)
        };
        relation.columns.iter().map(place).collect()
    }
}

/// How a column travels that no plan has agreed on: decimals as text, so that every digit and NaN survive.
pub(crate) fn travelling(mut column: Column) -> Column {
    if matches!(column.ty, ColumnType::Decimal { .. } | ColumnType::Numeric) {
        column.carrier = Carrier::Text;
    }
    column.nullable = true;
    column.generated = false;
    column.identity = false;
    column
}

/// A column in the catalog.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Attribute {
    pub(super) name: String,
    number: i16,
    type_oid: u32,
    modifier: i32,
    #[serde(default)]
    filled: bool,
    /// By which transaction the catalog has it like this.
    #[serde(default)]
    written: u32,
}

impl Attribute {
    /// Whether it was altered since a transaction wrote it, if that is known.
    fn is_written_since(&self, before: u32) -> bool {
        before != 0 && self.written != before
    }
}

/// Those of a table's columns that were there when its log was opened first, where nobody keeps the plan of then and
/// positions say all numbers. Others come by the log, at their place.
pub(super) fn planned_at(position: &LogPosition, table: &TableId, now: &[Attribute]) -> Vec<Attribute> {
    let name = table.to_string();
    let (numbers, added) = (position.numbers.get(&name), position.added.get(&name));
    let is_planned = |column: &String| added.is_none_or(|added| !added.contains(column));
    let planned = numbers.into_iter().flatten().filter(|(column, _)| is_planned(column));
    let planned: Vec<(&String, &i16)> = planned.collect();
    let is_it = |a: &&Attribute| {
        planned
            .iter()
            .any(|(column, number)| match now.iter().any(|o| o.number == **number) {
                true => a.number == **number,
                // It was made again.
                false => a.name == **column,
            })
    };
    let found: Vec<Attribute> = now.iter().filter(is_it).cloned().collect();
    match found.is_empty() {
        // A position from before tables said it, or a table that it does not have.
        true => now.to_vec(),
        false => found,
    }
}

/// A column as its type in the log says, whatever the catalog has by now.
async fn of_type(connection: &Connection, column: &RelationColumn<'_>) -> Result<Column> {
    const SQL: &str = "
        WITH RECURSIVE base(depth, typid, typmod) AS (
            SELECT 0, $1::oid, $2::int4
            UNION ALL
            SELECT b.depth + 1, t.typbasetype, t.typtypmod
            FROM base b JOIN pg_catalog.pg_type t ON t.oid = b.typid WHERE t.typtype = 'd'
        )
        SELECT typid, typmod, pg_catalog.format_type($1::oid, $2::int4) FROM base ORDER BY depth DESC LIMIT 1";
    let params: &[(&(dyn postgres_types::ToSql + Sync), Type)] =
        &[(&column.type_oid, Type::OID), (&column.modifier, Type::INT4)];
    let rows = catalog::rows(connection, SQL, params, "reading a column's type").await?;
    let row = rows.first().ok_or_else(|| {
        Error::new(
            code::TYPE_UNSUPPORTED,
            format!("the type of column {} is not in the catalog any more", column.name),
        )
    })?;
    Ok(
        Column::new(column.name, catalog::column_type(row.get(0), row.get(1)))
            .with_source_type(row.get::<_, String>(2)),
    )
}
