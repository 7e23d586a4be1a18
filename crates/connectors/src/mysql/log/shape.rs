//! What a followed table looks like at the place where the log is read: the plan's columns, and those that came since.

mod alter;

pub(super) use alter::Altered;

use super::super::catalog::{self, CatalogTable};
use super::super::client::{Session, number, text};
use super::super::sql::literal;
use super::capture;
use super::cells::{Cell, RENEW_TIMES};
use super::charset::{Charset, Charsets};
use super::logged::LoggedColumn;
use super::position::{Beyond, LogPosition, Typed};
use super::statements::is_same;
use crate::logs::{self, Drift, Drifting};
use crate::postgres::log::capture::{Initial, Remembered};
use crate::postgres::log::shape::travelling;
use arrow_schema::SchemaRef;
use std::collections::BTreeMap;
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{Plan, PlannedTable, ReadSpec};
use synctool_core::schema::{Column, ColumnType, SchemaDifference, TableId, TableSchema};

/// A table to follow.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    pub(super) read: ReadSpec,
    /// The key, in destination names.
    pub(super) key: Vec<String>,
    /// Those of its columns in which ranges are cut by the bytes of texts.
    by_bytes: Vec<String>,
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
            by_bytes: plan.columns_cut_by_bytes(&planned.read.table),
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
    /// Whether names of tables are the same in any case (`lower_case_table_names`).
    folds: bool,
    pub(super) columns: Vec<ShapeColumn>,
    /// So many of the columns are the plan's.
    pub(super) planned: usize,
    /// Columns of the table that nobody wants.
    others: Vec<String>,
    /// New columns that stay behind.
    left: Vec<String>,
    /// What becomes of it when its columns change.
    pub(super) drift: Drift,
    /// The places of the key's columns.
    pub(super) key: Vec<usize>,
    /// Those of its columns in which ranges are cut by the bytes of texts.
    pub(super) by_bytes: Vec<String>,
    pub(super) arrow: SchemaRef,
}

/// A column of a [`Shape`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ShapeColumn {
    /// Its name at the source, at this place of the log.
    pub(super) source: String,
    /// The same as somebody has it who knows the plan and the destination alone.
    planned_source: String,
    /// As the server declares it at this place of the log, as far as is known.
    pub(super) declared: String,
    /// As it travels, in the destination's name.
    pub(super) column: Column,
    /// Whether its rows may have a value that no event brought (a default).
    pub(super) filled: bool,
    /// A statement took it away, and no row has come since.
    pub(super) lost: bool,
    /// The source has it no more, and the policy goes on.
    pub(super) gone: bool,
    /// Whether the plan has it NOT NULL.
    required: bool,
    /// Whether it has another type than the plan says.
    widened: bool,
}

/// The shapes of all followed tables.
pub(super) type Shapes = crate::logs::Shapes<Shape>;

impl Shapes {
    /// The followed table of a name in the log.
    pub(super) fn named(&self, schema: &str, name: &str) -> Option<usize> {
        self.all().iter().position(|s| s.is_named(schema, name))
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

impl ShapeColumn {
    /// A column with what a position says of it.
    fn noted(planned_source: &str, column: Column, noted: &Beyond, dropped: &[String]) -> Result<ShapeColumn> {
        let source = noted.names.get(&column.name).map_or(planned_source, String::as_str);
        let gone = noted.gone.contains(&column.name);
        let mut known = ShapeColumn {
            source: source.to_string(),
            planned_source: planned_source.to_string(),
            declared: column.source_type.clone().unwrap_or_default(),
            filled: false,
            lost: !gone && dropped.iter().any(|d| is_same(d, source)),
            gone,
            required: !column.nullable,
            widened: false,
            column,
        };
        known.column.nullable |= gone;
        if let Some(typed) = noted.types.get(&known.column.name) {
            let ty = typed.ty.parse()?;
            known.widens(Column::new("", ty).with_source_type(&typed.declared));
        }
        Ok(known)
    }

    /// Whether the source has it.
    pub(super) fn is_there(&self) -> bool {
        !self.lost && !self.gone
    }

    /// Whether the source has it under this name.
    fn is(&self, name: &str) -> bool {
        self.is_there() && is_same(&self.source, name)
    }

    /// The change to another type.
    fn retyped(&self, column: &Column) -> (Column, Column) {
        let want = Column {
            name: self.column.name.clone(),
            ..column.clone()
        };
        (self.column.clone(), want)
    }
}

impl Shape {
    /// A followed table at a position. Where it was not `followed_all_along`, what became of its columns meanwhile is
    /// taken from the catalog: the log does not tell it.
    pub(super) async fn load(
        session: &mut Session,
        followed: &Followed,
        position: &LogPosition,
        followed_all_along: bool,
        drift: Drift,
    ) -> Result<Shape> {
        let there = catalog::find(session, &followed.read.table).await?;
        let case = session
            .row("SELECT @@lower_case_table_names", "looking at the names of tables")
            .await?;
        let (name, nothing) = (followed.read.table.to_string(), Beyond::default());
        let noted = position.tables.get(&name).unwrap_or(&nothing);
        let dropped = position.dropped.get(&name).map_or(&[][..], Vec::as_slice);
        let planned = followed.read.columns.iter();
        let mut columns = planned
            .map(|c| ShapeColumn::noted(&c.source, c.column.clone(), noted, dropped))
            .collect::<Result<Vec<_>>>()?;
        let planned = columns.len();
        let now = |name: &str| there.as_ref().and_then(|t| t.column(name));
        for name in position.added.get(&name).into_iter().flatten() {
            // One of an older position has no type there.
            let typed = noted.types.get(name).map(|_| Column::new(name, ColumnType::Native));
            let found = || now(name).map(|found| found.column.clone());
            if let Some(column) = typed.or_else(found) {
                columns.push(ShapeColumn::noted(name, travelling(column), noted, dropped)?);
            }
        }
        let wanted = |name: &String| columns.iter().any(|c| c.planned_source == *name);
        let mut shape = Shape {
            table: Arc::new(followed.read.table.clone()),
            full: catalog::qualified(session, &followed.read.table),
            folds: number(&case, 0) > 0,
            others: followed.known.iter().filter(|n| !wanted(n)).cloned().collect(),
            left: noted.left.clone(),
            drift,
            columns,
            planned,
            key: Vec::new(),
            by_bytes: followed.by_bytes.clone(),
            arrow: arrow_schema::Schema::empty().into(),
        };
        shape.key = TableSchema {
            columns: shape.columns.iter().map(|c| c.column.clone()).collect(),
            key: followed.key.clone(),
        }
        .key_indices()?;
        if drift.lets_go() {
            shape.settle()?;
        }
        if !followed_all_along
            && !followed.known.is_empty()
            && let Some(there) = &there
        {
            shape.catches_up(there)?;
        }
        shape.rebuild();
        Ok(shape)
    }

    /// Takes what became of the columns in a part of the log that is lost. A name that is new may be that of a column
    /// that was renamed: nobody can tell.
    fn catches_up(&mut self, there: &CatalogTable) -> Result<()> {
        let has = |c: &ShapeColumn| there.columns.iter().any(|t| is_same(&t.column.name, &c.source));
        let (planned, added) = self.columns.split_at_mut(self.planned);
        added.iter_mut().for_each(|c| c.gone |= !has(c));
        let gone = planned.iter().filter(|c| !c.gone && !has(c));
        let mut difference = SchemaDifference {
            extra: gone.map(|c| c.column.clone()).collect(),
            ..SchemaDifference::default()
        };
        planned
            .iter_mut()
            .filter(|c| has(c))
            .for_each(|c| (c.gone, c.lost) = (false, false));
        difference.retyped = self.other_types(Some(there)).retyped;
        self.judge(&mut difference, &[])?;
        for found in there.columns.iter().filter(|c| !c.column.generated) {
            let name = &found.column.name;
            if self.knows(name) || self.left.iter().any(|l| is_same(l, name)) {
                continue;
            }
            match self.drift {
                Drift::Discard => self.left.push(name.clone()),
                _ if self.columns.iter().any(|c| c.column.name == *name) => return Err(self.name_taken(name)),
                _ => self.columns.push(ShapeColumn::new(found.column.clone(), false)),
            }
        }
        Ok(())
    }

    /// Whether this is its name in the log.
    pub(super) fn is_named(&self, schema: &str, name: &str) -> bool {
        let same = |a: &str, b: &str| a == b || (self.folds && is_same(a, b));
        same(&self.full.name, name) && self.full.schema.as_deref().is_some_and(|own| same(own, schema))
    }

    /// Whether a statement has its name somewhere.
    pub(super) fn is_mentioned(&self, sql: &str) -> bool {
        let name = &self.full.name;
        sql.contains(name) || (self.folds && sql.to_lowercase().contains(&name.to_lowercase()))
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

    /// Has a position know how this table differs from the plan.
    pub(super) fn note(&self, position: &mut LogPosition) {
        fn put<T>(all: &mut BTreeMap<String, T>, table: &TableId, value: T, is_empty: bool) {
            match is_empty {
                true => all.remove(&table.to_string()),
                false => all.insert(table.to_string(), value),
            };
        }
        let added: Vec<String> = self.columns[self.planned..]
            .iter()
            .map(|c| c.column.name.clone())
            .collect();
        let lost: Vec<String> = self
            .columns
            .iter()
            .filter(|c| c.lost)
            .map(|c| c.source.clone())
            .collect();
        let renamed = self.columns.iter().filter(|c| c.source != c.planned_source);
        let gone = self.columns.iter().filter(|c| c.gone);
        let typed = |c: &ShapeColumn| Typed {
            declared: c.declared.clone(),
            ty: c.column.ty.to_string(),
        };
        let of_its_own = self
            .columns
            .iter()
            .enumerate()
            .filter(|(at, c)| *at >= self.planned || c.widened);
        let beyond = Beyond {
            names: renamed.map(|c| (c.column.name.clone(), c.source.clone())).collect(),
            gone: gone.map(|c| c.column.name.clone()).collect(),
            types: of_its_own.map(|(_, c)| (c.column.name.clone(), typed(c))).collect(),
            left: self.left.clone(),
        };
        let (no_added, no_lost, same) = (added.is_empty(), lost.is_empty(), beyond == Beyond::default());
        put(&mut position.added, &self.table, added, no_added);
        put(&mut position.dropped, &self.table, lost, no_lost);
        put(&mut position.tables, &self.table, beyond, same);
    }

    /// What a sink must know that knows the plan's columns only.
    pub(super) fn beyond_plan(&self) -> SchemaDifference {
        logs::beyond_plan(&self.columns, self.planned)
    }

    /// Follows a difference as far as the policy lets it, or refuses it. What is left of it is the sink's to do.
    pub(super) fn judge(&mut self, difference: &mut SchemaDifference, renamed: &[(String, String)]) -> Result<()> {
        let key = self.schema().key;
        logs::judge((&*self.table, self.drift), &key, &mut self.columns, difference, renamed)
    }

    /// Has the policy judge columns that went and that no row has shown yet.
    fn settle(&mut self) -> Result<()> {
        let lost = self.columns.iter().filter(|c| c.lost);
        let mut difference = SchemaDifference {
            extra: lost.map(|c| c.column.clone()).collect(),
            ..SchemaDifference::default()
        };
        self.judge(&mut difference, &[])
    }

    /// Refuses a table that lost columns which the policy does not let go: what is read of it has nothing of them.
    pub(super) fn check_whole(&self) -> Result<()> {
        self.clone().settle()
    }

    /// The table as the catalog has it by now; refuses one that has changes which are not in its log. One that is gone
    /// has none.
    pub(super) async fn check(&self, session: &mut Session) -> Result<Option<CatalogTable>> {
        let there = catalog::find(session, &self.full).await?;
        let there = there.filter(|t| t.kind == "table");
        if let Some(there) = &there {
            capture::check_table(session, there).await?;
        }
        Ok(there)
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
        let mut difference = SchemaDifference::default();
        for (at, c) in next.columns.iter_mut().enumerate() {
            let place = names.iter().position(|n| c.is(n));
            match place.map(|place| &logged[place]) {
                None if at < self.planned && !c.gone => difference.extra.push(c.column.clone()),
                None => {}
                Some(column) => difference
                    .retyped
                    .extend(c.follow(column, there.as_ref(), &self.table)?),
            }
        }
        if self.drift.lets_go() && !difference.extra.is_empty() && logged.iter().any(|c| c.name.is_none()) {
            return Err(self.unnamed());
        }
        let defaults = match names.iter().all(|n| self.knows(n)) {
            true => Vec::new(),
            false => filled(session, &self.full).await?,
        };
        for name in names.iter().filter(|n| !self.knows(n)) {
            let found = there.as_ref().and_then(|t| t.column(name)).map(|c| &c.column);
            let left = next.left.iter().position(|l| is_same(l, name));
            match found.filter(|_| self.drift != Drift::Discard) {
                _ if found.is_some_and(|c| c.generated) => next.others.push(name.clone()),
                Some(found) => {
                    let new = ShapeColumn::new(found.clone(), left.is_some() || defaults.contains(name));
                    if next.columns.iter().any(|c| c.column.name == new.column.name) {
                        return Err(self.name_taken(name));
                    }
                    if let Some(at) = left {
                        next.left.remove(at);
                    }
                    difference.missing.push(new.column.clone());
                    next.columns.push(new);
                }
                None if left.is_some() => {}
                None => {
                    // One that went again before we came is no news, but it may have another name by now.
                    if found.is_some() {
                        tracing::warn!(table = %self.table, column = name, "a column came at the source: left behind");
                    }
                    next.left.push(name.clone());
                }
            }
        }
        next.judge(&mut difference, &[])?;
        next.rebuild();
        let layout = next.layout(session, charsets, (logged, &names), there.as_ref()).await?;
        let quiet = difference == SchemaDifference::default();
        let same = quiet && next.columns == self.columns && (&next.others, &next.left) == (&self.others, &self.left);
        Ok(Looked {
            layout: Arc::new(layout),
            reshaped: (!same).then(|| Arc::new(next)),
            difference: (!quiet).then_some(difference),
        })
    }

    /// How rows of these columns are laid out, and where they go.
    async fn layout(
        &self,
        session: &mut Session,
        charsets: &mut Charsets,
        (logged, names): (&[LoggedColumn], &[String]),
        there: Option<&CatalogTable>,
    ) -> Result<Layout> {
        let mut layout = Layout {
            cells: Vec::with_capacity(logged.len()),
            places: Vec::with_capacity(logged.len()),
        };
        for (column, name) in logged.iter().zip(names) {
            let place = self.columns.iter().position(|c| c.is(name));
            layout.places.push(place);
            layout.cells.push(match place.map(|place| &self.columns[place]) {
                None => Cell::skipped(column),
                Some(ours) => {
                    let said = column.collation.and_then(|c| charsets.name(c)).map(str::to_string);
                    let declared = there.and_then(|t| t.column(name)).and_then(|c| c.collation.clone());
                    let charset = said.or(declared.map(|(charset, _)| charset));
                    let is_bytes = matches!(ours.column.ty, ColumnType::Bytes);
                    let charset = match charset {
                        _ if is_bytes => Charset::Binary,
                        Some(charset) => charsets.reader(session, &charset).await?,
                        None => Charset::Utf8,
                    };
                    let alone = column.column().filter(|_| !column.fits(&ours.declared));
                    let alone = alone.and_then(|c| c.source_type);
                    let cell = Cell::new(column, name, alone.as_ref().unwrap_or(&ours.declared), charset);
                    cell.map_err(|e| e.at("table", self.table.to_string()))?
                }
            });
        }
        Ok(layout)
    }

    fn knows(&self, name: &str) -> bool {
        let mut others = self.others.iter();
        others.any(|o| is_same(o, name)) || self.columns.iter().any(|c| is_same(&c.source, name))
    }

    fn name_taken(&self, name: &str) -> Error {
        Error::new(
            code::SCHEMA_MISMATCH,
            format!(
                "a new column {name} of {} has the name of one that was renamed, and the log does not say since when",
                self.table
            ),
        )
        .hint("run once with --restart to load the table anew")
    }

    fn unnamed(&self) -> Error {
        Error::new(
            code::LOG_SETUP,
            format!(
                "{} had other columns at this place of the log than it has now, and the log does not name them",
                self.table
            ),
        )
        .hint(
            "SET GLOBAL binlog_row_metadata = 'FULL' for what is logged from now on, and start over: synctool state reset",
        )
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
            None => Err(self.unnamed()),
        }
    }
}

impl ShapeColumn {
    /// A column that came. Its rows from before may have values where it is `filled`.
    fn new(column: Column, filled: bool) -> ShapeColumn {
        ShapeColumn {
            source: column.name.clone(),
            planned_source: column.name.clone(),
            declared: column.source_type.clone().unwrap_or_default(),
            column: travelling(column),
            filled,
            lost: false,
            gone: false,
            required: false,
            widened: false,
        }
    }

    /// Goes along with the log's column of its name: the change to another type, if that is one. The catalog says to
    /// what, unless the column was altered once more since; then the log does, for types that it says whole.
    fn follow(
        &mut self,
        logged: &LoggedColumn,
        there: Option<&CatalogTable>,
        table: &TableId,
    ) -> Result<Option<(Column, Column)>> {
        if logged.fits(&self.declared) {
            return Ok(None);
        }
        let found = there.and_then(|t| t.column(&self.source)).map(|c| &c.column);
        let found = found.filter(|f| logged.fits(f.source_type.as_deref().unwrap_or_default()));
        let alone = logged.column();
        let Some(is) = found.or(alone.as_ref()) else {
            if self.declared.contains("mariadb-5.3") {
                let what = format!("column {} of {table} is stored in the old form of times", self.source);
                return Err(Error::new(code::UNSUPPORTED, what).hint(RENEW_TIMES));
            }
            return Err(Error::new(
                code::SCHEMA_MISMATCH,
                format!(
                    "column {} of {table} is {} for us, and the log has another type that the catalog does not have either",
                    self.source, self.declared
                ),
            )
            .hint("it was altered more than once; run once with --restart to load the table anew"));
        };
        if self.widened && is.ty.fits(&self.column.ty) {
            return Ok(None);
        }
        if keeps(&is.ty, &self.column.ty) {
            self.declared = is.source_type.clone().unwrap_or_default();
            return Ok(None);
        }
        Ok(Some(self.retyped(is)))
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
