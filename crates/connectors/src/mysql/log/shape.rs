//! What a followed table looks like at the place where the log is read: the plan's columns, and those that came since.

use super::super::catalog::{self, CatalogColumn, CatalogTable};
use super::super::client::{Session, text};
use super::super::sql::literal;
use super::capture;
use super::cells::Cell;
use super::charset::{Charset, Charsets};
use super::logged::LoggedColumn;
use crate::postgres::log::capture::{Initial, Remembered};
use arrow_schema::SchemaRef;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, ReadSpec};
use synctool_core::schema::{Carrier, Column, ColumnType, SchemaDifference, TableId, TableSchema};

/// A table to follow.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) read: ReadSpec,
    /// The key, in destination names.
    pub(super) key: Vec<String>,
    /// All columns that the table had when the plan was made, wanted or not.
    pub(super) known: Vec<String>,
    /// What is to be read of it besides its log, at the beginning.
    pub(super) initial: Initial,
}

impl Followed {
    pub(super) fn of(plan: &Plan, planned: &PlannedTable) -> Self {
        let remembered = Remembered::of(plan, &planned.read.table);
        Followed {
            read: planned.read.clone(),
            key: planned.schema.key.clone(),
            known: remembered.names(),
            initial: remembered.initial,
        }
    }
}

/// A followed table as it is at one place of the log.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// As the plan calls it.
    pub(super) table: Arc<TableId>,
    /// With its database.
    pub(super) full: TableId,
    pub(super) columns: Vec<ShapeColumn>,
    /// So many of the columns are the plan's.
    pub(super) planned: usize,
    /// Columns of the table that nobody wants.
    others: Vec<String>,
    /// The places of the key's columns.
    pub(super) key: Vec<usize>,
    pub(super) arrow: SchemaRef,
}

/// A column of a [`Shape`].
#[derive(Debug, Clone)]
pub(super) struct ShapeColumn {
    /// Its name at the source.
    pub(super) source: String,
    /// As the server declares it at this place of the log, as far as is known.
    pub(super) declared: String,
    /// As it travels, in the destination's name.
    pub(super) column: Column,
    /// Whether its rows may have a value that no event brought (a default).
    pub(super) filled: bool,
}

/// The shapes of all followed tables.
pub(super) type Shapes = crate::logs::Shapes<Shape>;

impl Shapes {
    /// The followed table of a name in the log.
    pub(super) fn named(&self, schema: &str, name: &str) -> Option<usize> {
        self.all()
            .iter()
            .position(|s| s.full.name == name && s.full.schema.as_deref() == Some(schema))
    }
}

/// How rows of a table are laid out in the log, and where each value goes.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) cells: Vec<Cell>,
    /// For each column of the log, its place in the shape.
    pub(super) places: Vec<Option<usize>>,
}

/// What a look at a table of the log found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) layout: Arc<Layout>,
    /// The shape from here on, if it is another one.
    pub(super) reshaped: Option<Arc<Shape>>,
    /// What a sink must know of that.
    pub(super) difference: Option<SchemaDifference>,
}

impl Shape {
    /// A followed table as the plan has it, with columns that came earlier (by source name). Where it was not
    /// `followed_all_along`, those that came meanwhile are among them: the log does not tell their values.
    pub(super) async fn load(
        session: &mut Session,
        followed: &Followed,
        added: &[String],
        followed_all_along: bool,
    ) -> Result<Shape> {
        let there = catalog::find(session, &followed.read.table).await?;
        let now = |name: &str| there.as_ref().and_then(|t| t.column(name));
        let mut columns = Vec::new();
        for c in &followed.read.columns {
            columns.push(ShapeColumn {
                source: c.source.clone(),
                declared: c.column.source_type.clone().unwrap_or_default(),
                column: c.column.clone(),
                filled: false,
            });
        }
        let planned = columns.len();
        let mut added = added.to_vec();
        if !followed_all_along && !followed.known.is_empty() {
            let all = there.iter().flat_map(|t| &t.columns).filter(|c| !c.column.generated);
            let new = all.filter(|c| !followed.known.contains(&c.column.name) && !added.contains(&c.column.name));
            let new = Vec::from_iter(new.map(|c| c.column.name.clone()));
            added.extend(new);
        }
        for name in &added {
            let Some(found) = now(name) else { continue };
            columns.push(ShapeColumn {
                source: name.clone(),
                declared: found.declared.column_type.clone(),
                column: travelling(found.column.clone()),
                filled: false,
            });
        }
        let wanted = |name: &String| columns.iter().any(|c| c.source == *name);
        let mut shape = Shape {
            table: Arc::new(followed.read.table.clone()),
            full: catalog::qualified(session, &followed.read.table),
            others: followed.known.iter().filter(|n| !wanted(n)).cloned().collect(),
            columns,
            planned,
            key: Vec::new(),
            arrow: arrow_schema::Schema::empty().into(),
        };
        shape.key = TableSchema {
            columns: shape.columns.iter().map(|c| c.column.clone()).collect(),
            key: followed.key.clone(),
        }
        .key_indices()?;
        shape.rebuild();
        Ok(shape)
    }

    fn rebuild(&mut self) {
        self.arrow = self.schema().arrow_schema();
    }

    /// The columns and key, in destination names.
    pub(super) fn schema(&self) -> TableSchema {
        TableSchema {
            columns: self.columns.iter().map(|c| c.column.clone()).collect(),
            key: self.key.iter().map(|k| self.columns[*k].column.name.clone()).collect(),
        }
    }

    /// The names of the columns that are not the plan's.
    pub(super) fn added(&self) -> Vec<String> {
        self.columns[self.planned..].iter().map(|c| c.source.clone()).collect()
    }

    /// The columns that are not the plan's, for a sink that does not know of them.
    pub(super) fn added_columns(&self) -> Vec<Column> {
        self.columns[self.planned..].iter().map(|c| c.column.clone()).collect()
    }

    /// Refuses a table that, as it is now, has changes that are not in its log, or values of other types. One that is
    /// gone has none.
    pub(super) async fn check(&self, session: &mut Session) -> Result<()> {
        let Some(there) = catalog::find(session, &self.full).await? else {
            return Ok(());
        };
        if there.kind != "table" {
            return Ok(());
        }
        capture::check_table(session, &there).await?;
        let mut difference = SchemaDifference::default();
        for c in &self.columns {
            let found = there.column(&c.source);
            let found = found.filter(|f| f.declared.column_type != c.declared && !keeps(&f.column.ty, &c.column.ty));
            difference.retyped.extend(found.map(|f| c.retyped(f)));
        }
        crate::logs::only_new(&self.table, &difference)
    }

    /// Fits the shape to what the log says of the table from here on, and says how its rows are taken.
    pub(super) async fn look(
        &self,
        session: &mut Session,
        charsets: &mut Charsets,
        logged: &[LoggedColumn],
    ) -> Result<Looked> {
        let there = catalog::find(session, &self.full).await?;
        let names = self.names(logged, there.as_ref())?;
        let mut next = self.clone();
        let (mut difference, mut changed) = (SchemaDifference::default(), false);
        for c in &mut next.columns {
            let Some(at) = names.iter().position(|n| *n == c.source) else {
                if self.is_planned(c) {
                    difference.extra.push(c.column.clone());
                }
                continue;
            };
            if logged[at].fits(&c.declared) {
                continue;
            }
            // Altered: the catalog says to what, unless it was altered once more since.
            let found = there.as_ref().and_then(|t| t.column(&c.source));
            let found = found.filter(|f| logged[at].fits(&f.declared.column_type));
            let Some(found) = found else {
                return Err(Error::new(
                    code::SCHEMA_MISMATCH,
                    format!(
                        "column {} of {} is {} for us, and the log has another type that the catalog does not have either",
                        c.source, self.table, c.declared
                    ),
                )
                .hint("it was altered more than once; run once with --restart to load the table anew"));
            };
            c.declared.clone_from(&found.declared.column_type);
            changed = true;
            if !keeps(&found.column.ty, &c.column.ty) {
                difference.retyped.push(c.retyped(found));
            }
        }
        let defaults = match names.iter().all(|n| self.knows(n)) {
            true => Vec::new(),
            false => filled(session, &self.full).await?,
        };
        for name in &names {
            if self.knows(name) {
                continue;
            }
            // One that went again before we came is no news.
            let Some(found) = there.as_ref().and_then(|t| t.column(name)) else {
                continue;
            };
            if found.column.generated {
                next.others.push(name.clone());
                continue;
            }
            let column = travelling(found.column.clone());
            difference.missing.push(column.clone());
            next.columns.push(ShapeColumn {
                source: name.clone(),
                declared: found.declared.column_type.clone(),
                column,
                filled: defaults.contains(name),
            });
        }
        next.rebuild();
        let mut layout = Layout {
            cells: Vec::with_capacity(logged.len()),
            places: Vec::with_capacity(logged.len()),
        };
        for (column, name) in logged.iter().zip(&names) {
            let place = next.columns.iter().position(|c| c.source == *name);
            layout.places.push(place);
            layout.cells.push(match place {
                None => Cell::skipped(column),
                Some(place) => {
                    let said = column.collation.and_then(|c| charsets.name(c)).map(str::to_string);
                    let declared = there
                        .as_ref()
                        .and_then(|t| t.column(name))
                        .and_then(|c| c.collation.clone());
                    let charset = said.or(declared.map(|(charset, _)| charset));
                    let is_bytes = matches!(next.columns[place].column.ty, ColumnType::Bytes);
                    let charset = match charset {
                        _ if is_bytes => Charset::Binary,
                        Some(charset) => charsets.reader(session, &charset).await?,
                        None => Charset::Utf8,
                    };
                    Cell::new(column, name, &next.columns[place].declared, charset)
                        .map_err(|e| e.at("table", self.table.to_string()))?
                }
            });
        }
        let quiet = difference == SchemaDifference::default();
        let reshaped = (changed || !quiet || next.others.len() != self.others.len()).then(|| Arc::new(next));
        Ok(Looked {
            layout: Arc::new(layout),
            reshaped,
            difference: (!quiet).then_some(difference),
        })
    }

    fn is_planned(&self, column: &ShapeColumn) -> bool {
        self.columns[..self.planned].iter().any(|c| c.source == column.source)
    }

    fn knows(&self, name: &String) -> bool {
        self.others.contains(name) || self.columns.iter().any(|c| c.source == *name)
    }

    /// The names of the log's columns: what it says, or what the catalog says where that can be the same table.
    fn names(&self, logged: &[LoggedColumn], there: Option<&CatalogTable>) -> Result<Vec<String>> {
        if let Some(said) = logged.iter().map(|c| c.name.clone()).collect::<Option<Vec<_>>>() {
            return Ok(said);
        }
        let fits = there.filter(|t| {
            t.columns.len() == logged.len()
                && (t.columns.iter().zip(logged)).all(|(c, l)| l.fits(&c.declared.column_type))
        });
        match fits {
            Some(t) => Ok(t.columns.iter().map(|c| c.column.name.clone()).collect()),
            None => Err(Error::new(
                code::LOG_SETUP,
                format!(
                    "{} had other columns at this place of the log than it has now, and the log does not name them",
                    self.table
                ),
            )
            .hint(
                "SET GLOBAL binlog_row_metadata = 'FULL' for what is logged from now on, and start over: synctool state reset",
            )),
        }
    }
}

impl ShapeColumn {
    /// The change to what the catalog has now.
    fn retyped(&self, found: &CatalogColumn) -> (Column, Column) {
        let want = Column {
            name: self.column.name.clone(),
            ..found.column.clone()
        };
        (self.column.clone(), want)
    }
}

/// Whether values of a new type travel as those of the one before did.
fn keeps(new: &ColumnType, was: &ColumnType) -> bool {
    new == was || *was == (ColumnType::Text { max: None }) || same_carrier(new, was)
}

/// Whether values of both travel in one form, so that nothing but the declaration changes.
fn same_carrier(a: &ColumnType, b: &ColumnType) -> bool {
    use ColumnType::{Char, Text};
    matches!((a, b), (Text { .. } | Char { .. }, Text { .. } | Char { .. }))
}

/// How a column travels that no plan has agreed on: decimals as text, so that every digit survives.
fn travelling(mut column: Column) -> Column {
    if matches!(column.ty, ColumnType::Decimal { .. } | ColumnType::Numeric) {
        column.carrier = Carrier::Text;
    }
    column.nullable = true;
    column.generated = false;
    column.identity = false;
    column
}

/// The columns that give a value to rows which say none.
async fn filled(session: &mut Session, table: &TableId) -> Result<Vec<String>> {
    let rows = session
        .rows(
            &format!(
                "SELECT COLUMN_NAME FROM information_schema.COLUMNS WHERE TABLE_SCHEMA = {} AND TABLE_NAME = {} \
                 AND (IS_NULLABLE = 'NO' OR COALESCE(COLUMN_DEFAULT, 'NULL') <> 'NULL')",
                literal(table.schema.as_deref().unwrap_or_default()),
                literal(&table.name)
            ),
            "reading the defaults of columns",
        )
        .await?;
    Ok(rows.iter().filter_map(|r| text(r, 0)).collect())
}
