//! What every strategy asks about one table: which columns are read, how they travel, how they are written.

use super::cut::Dimension;
use crate::change::RawFormat;
use crate::error::{Among, Error, Result, code};
use crate::keys::{self, KeyColumn};
use crate::plan::{DeleteGuard, PlannedTable, Publish, ReadColumn, ReadSpec, StoredForm, StoredHash, Widening};
use crate::query::{Condition, Filter, Join, Term};
use crate::schema::{Carrier, Column, ColumnType, TableId, TableSchema};
use crate::sink::{Destination, Fidelity};
use crate::source::Source;
use crate::stage::Stages;
use std::collections::BTreeMap;

/// A column the user chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ColumnChoice {
    /// Its name at the source.
    pub source: String,
    /// What is read, where it is not the column `source` of the table itself.
    pub term: Option<Term>,
    /// Its name at the destination.
    pub destination: String,
    /// The type the user wants at the destination; the source's where left out.
    pub ty: Option<ColumnType>,
    /// Carry it as text and store it as text.
    pub as_text: bool,
    /// NOT NULL at the destination, whatever the source says.
    pub not_null: bool,
    /// Whether it is written; `false` for one that is only needed on the way.
    pub written: bool,
}

impl ColumnChoice {
    /// A column under its own name and type.
    pub fn same(name: impl Into<String>) -> Self {
        let name = name.into();
        ColumnChoice {
            destination: name.clone(),
            source: name,
            term: None,
            ty: None,
            as_text: false,
            not_null: false,
            written: true,
        }
    }

    fn term(&self) -> Term {
        self.term.clone().unwrap_or_else(|| Term::column(&self.source))
    }
}

/// A column that the user wants to keep each row's hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowHashChoice {
    /// Its name at the destination.
    pub column: String,
    /// Its type, where the destination has no such column yet.
    pub ty: ColumnType,
    /// How it is written down.
    pub form: StoredForm,
    /// The columns whose changes count, in destination names; `None`: all that are written.
    pub of: Option<Vec<String>>,
}

/// What the user asked for, whatever the strategy.
#[derive(Debug, Clone)]
pub struct TableRequest {
    /// The pipeline's id.
    pub pipeline: String,
    /// The run's id.
    pub run_id: String,
    /// The table to read.
    pub source: TableId,
    /// Its name in terms, filters and joins.
    pub alias: Option<String>,
    /// Tables that are read along.
    pub joins: Vec<Join>,
    /// Conditions that rows must meet.
    pub filters: Vec<Filter>,
    /// The columns that make a group, in destination names; empty where rows stand for themselves.
    pub group_by: Vec<String>,
    /// The table to write.
    pub destination: TableId,
    /// The columns; `None` means all.
    pub columns: Option<Vec<ColumnChoice>>,
    /// The key in destination names; `None` means the source's primary key.
    pub key: Option<Vec<String>>,
    /// Dimensions that the user cuts work by, outermost first, each level at once; empty: the data decides.
    pub dimensions: Vec<Vec<Dimension>>,
    /// Rows per partition along an integer key, if fixed by the user.
    pub step: Option<u64>,
    /// Only rows that meet these, in source terms: a backfill. Rows outside stay as they are, and nothing is deleted.
    pub bounds: Vec<Condition>,
    /// When deletes are too many.
    pub guard: DeleteGuard,
    /// Whether rows may pass undecoded; `false` forces the slow path.
    pub raw: bool,
    /// No partition should be larger than this.
    pub partition_bytes: u64,
    /// Whether columns that the destination lacks are added to it.
    pub evolve: bool,
    /// Whether columns of the destination get a wider type where the source's values need it.
    pub widen: bool,
    /// Whether rows are only added: those whose keys the destination has stay as they are, and nothing is deleted.
    pub append_only: bool,
    /// Whether rows are only compared: then a column of the destination need not hold every value of the source's.
    pub compare_only: bool,
    /// Whether the user knows that no two keys are equal at the destination, whatever its collation calls equal.
    pub distinct_keys: bool,
    /// Whether all rows are read, or compared, in one partition, because a stage has to see them together.
    pub one_partition: bool,
    /// A column that keeps each row's hash.
    pub row_hash: Option<RowHashChoice>,
    /// What must not change while the run is unfinished.
    pub semantics: serde_json::Value,
    /// Now, RFC 3339 UTC.
    pub now: String,
}

impl TableRequest {
    /// Every column of a table, with defaults for the rest.
    pub fn new(pipeline: impl Into<String>, source: TableId, destination: TableId) -> Self {
        TableRequest {
            pipeline: pipeline.into(),
            run_id: "run".into(),
            source,
            alias: None,
            joins: Vec::new(),
            filters: Vec::new(),
            group_by: Vec::new(),
            destination,
            columns: None,
            key: None,
            dimensions: Vec::new(),
            step: None,
            bounds: Vec::new(),
            guard: DeleteGuard::default(),
            raw: true,
            partition_bytes: 256 << 20,
            evolve: false,
            widen: false,
            append_only: false,
            compare_only: false,
            distinct_keys: false,
            one_partition: false,
            row_hash: None,
            semantics: serde_json::Value::Null,
            now: "1970-01-01T00:00:00Z".into(),
        }
    }

    /// Whether the source computes nothing: whole columns of one table.
    fn is_plain(&self) -> bool {
        self.joins.is_empty()
            && self.filters.is_empty()
            && self.group_by.is_empty()
            && self.columns.iter().flatten().all(|c| c.term.is_none())
    }
}

/// One table with every column's way decided.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// What is read.
    pub read: ReadSpec,
    /// What is written, with the key.
    pub schema: TableSchema,
    /// The columns written whose values stages make or change.
    pub changed: Vec<String>,
    /// What is there.
    pub existing: Option<TableSchema>,
    /// The column that keeps each row's hash.
    pub row_hash: Option<StoredHash>,
    /// The columns of what is there that get a wider type.
    pub widen: Vec<Widening>,
    /// What is worth telling.
    pub reasons: Vec<String>,
}

impl Resolved {
    /// The planned table.
    pub fn planned(&self, request: &TableRequest, publish: Publish) -> PlannedTable {
        PlannedTable {
            evolve: request.evolve,
            widen: self.widen.clone(),
            row_hash: self.row_hash.clone(),
            ..PlannedTable::new(
                self.read.clone(),
                request.destination.clone(),
                self.schema.clone(),
                publish,
            )
        }
    }

    /// The key in source names, where every key column is a plain column of the table read; otherwise empty.
    pub fn source_key(&self) -> Vec<String> {
        let name = |k: &String| Some(self.key_column(k)?.name);
        let names: Option<Vec<String>> = self.schema.key.iter().map(name).collect();
        names.unwrap_or_default()
    }

    /// A column of the key as it is read, under its name at the source; `None` where it is no plain column of the table read.
    pub(super) fn key_column(&self, name: &str) -> Option<Column> {
        let read = self.read.columns.iter().find(|c| c.column.name == *name)?;
        match read.term() {
            Term::Column { relation, name } if self.is_own(relation.as_deref()) => Some(Column {
                name,
                ..read.column.clone()
            }),
            _ => None,
        }
    }

    /// Refuses a destination that may call keys equal which the source tells apart, unless the user knows better. Whoever
    /// loads all rows need not ask: a second row of a key ends a load.
    pub(super) async fn check_apart(
        &self,
        source: &dyn Source,
        destination: &dyn Destination,
        request: &TableRequest,
    ) -> Result<()> {
        let column = |k: &String| {
            let stored = self.schema.column(k)?;
            // The text of a uuid has one form, whoever writes it.
            let is_uuid =
                |c: &Column| c.ty == ColumnType::Uuid && matches!(stored.ty, ColumnType::Text { max: Some(32 | 36) });
            let read = self.key_column(k).filter(|c| !self.changed.contains(k) || is_uuid(c));
            // Of whole numbers nobody needs to ask.
            let asks = read.as_ref().is_none_or(|c| !c.ty.is_integer());
            asks.then(|| (read, stored.clone()))
        };
        let columns: Vec<_> = self.schema.key.iter().filter_map(column).collect();
        let needless = self.existing.is_none() || request.distinct_keys || request.compare_only;
        let Some(there) = destination.as_source().filter(|_| !needless && !columns.is_empty()) else {
            return Ok(());
        };
        let ends = ((source, &request.source), (&*there, &request.destination));
        let mut key = KeyColumn::ask(ends.0, ends.1, columns).await?;
        if !request.group_by.is_empty() {
            key = key.into_iter().map(KeyColumn::of_groups).collect();
        }
        keys::check_apart(&key).map_err(|e| e.at("table", request.destination.to_string()))
    }

    /// Whether a key is another one before the stages than after them.
    pub fn is_key_changed(&self) -> bool {
        self.schema.key.iter().any(|k| self.changed.contains(k))
    }

    /// Whether an alias means the table read.
    pub(super) fn is_own(&self, relation: Option<&str>) -> bool {
        relation.is_none_or(|r| Some(r) == self.read.alias.as_deref() || r == self.read.table.name)
    }

    /// The same condition at the destination; an error where its term is no column there.
    pub fn at_destination(&self, condition: &Condition) -> Result<Condition> {
        let read = self.read.columns.iter().find(|c| match (&c.term(), &condition.term) {
            (Term::Column { relation: a, name: x }, Term::Column { relation: b, name: y }) => {
                x == y && (a == b || (self.is_own(a.as_deref()) && self.is_own(b.as_deref())))
            }
            (a, b) => a == b,
        });
        let written = read.filter(|c| self.schema.column(&c.column.name).is_some());
        let column = written.ok_or_else(|| {
            Error::new(
                code::CONFIG_INVALID,
                format!(
                    "{} is no column of the destination, so it cannot bound a comparison",
                    condition.term
                ),
            )
            .hint("write the column too, or bound it by one that is written")
        })?;
        if self.changed.contains(&column.column.name) {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!(
                    "a stage changes {}, so it cannot bound a comparison: both ends have other values",
                    column.column.name
                ),
            )
            .hint("leave the bounds out, or bound it by a column that no stage changes"));
        }
        Ok(Condition {
            term: Term::column(&column.column.name),
            test: condition.test.clone(),
        })
    }

    /// The columns that the destination lacks.
    pub fn missing(&self) -> Vec<Column> {
        match &self.existing {
            Some(existing) => existing.difference(&self.schema).missing,
            None => Vec::new(),
        }
    }
}

/// Looks at both ends and decides every column's way.
pub async fn resolve(
    source: &dyn Source,
    destination: &dyn Destination,
    stages: &dyn Stages,
    request: &TableRequest,
) -> Result<Resolved> {
    let mut reasons = Vec::new();
    let at_source = source.describe(&request.source).await?;
    let mut existing = destination.describe(&request.destination).await?;
    let mut read = ReadSpec {
        alias: request.alias.clone(),
        joins: request.joins.clone(),
        filters: request.filters.clone(),
        group_by: request.group_by.clone(),
        ..ReadSpec::of(request.source.clone(), Vec::new())
    };
    let columns = choose(source, request, &at_source, &read).await?;
    let key = key(request, &at_source, &columns)?;
    let mut before = TableSchema {
        columns: Vec::new(),
        key,
    };
    let mut unwritten: Vec<String> = Vec::new();
    // Columns that do not fit as they are read, and that a stage may make fit.
    let mut unfit: BTreeMap<String, Error> = BTreeMap::new();
    let mut widen = Vec::new();
    let may_widen = request.widen && !request.compare_only;
    for (choice, column) in &columns {
        let as_read = choice.written && !stages.changes(&choice.destination);
        let there = existing.as_ref().and_then(|e| e.column(&choice.destination));
        let column = &told(column, choice, there.filter(|_| as_read));
        // What cannot be carried at all is told where its way is decided.
        if may_widen
            && as_read
            && let Some(there) = existing.as_mut().and_then(|e| e.column_mut(&choice.destination))
            && let Ok((_, wanted)) = carry(source, destination, choice, column, None)
        {
            widen.extend(widened(destination, &request.destination, wanted, there).await?);
        }
        let there = existing.as_ref().and_then(|e| e.column(&choice.destination));
        let must_fit = there.filter(|_| !request.compare_only);
        let mut written = choice.written;
        if written && there.is_some_and(|t| t.generated) {
            reasons.push(format!(
                "column {} is generated by the destination and not written",
                choice.destination
            ));
            if stages.is_empty() {
                continue;
            }
            written = false;
        }
        let (from, mut to) = match written {
            true => match carry(source, destination, choice, column, must_fit) {
                Err(e) if must_fit.is_some() && stages.changes(&choice.destination) => {
                    unfit.insert(choice.destination.clone(), e);
                    carry(source, destination, choice, column, None)?
                }
                way => way?,
            },
            false => {
                unwritten.push(choice.destination.clone());
                let column = Column {
                    name: choice.destination.clone(),
                    ..column.clone()
                };
                (column.clone(), column)
            }
        };
        if before.key.contains(&to.name) || choice.not_null {
            to.nullable = false;
        }
        read.columns.push(ReadColumn {
            source: choice.source.clone(),
            term: choice.term.clone(),
            column: from,
        });
        before.columns.push(to);
    }
    let mut schema = stages.output(&before)?;
    schema.columns.retain(|c| !unwritten.contains(&c.name));
    for column in &mut schema.columns {
        let passed = before.column(&column.name).is_some_and(|b| b.ty == column.ty);
        if !passed {
            let mut wanted = column.clone();
            if may_widen
                && let Some(there) = existing.as_mut().and_then(|e| e.column_mut(&column.name))
                && store_made(destination, &mut wanted, None).is_ok()
            {
                widen.extend(widened(destination, &request.destination, wanted, there).await?);
            }
            let there = existing.as_ref().and_then(|e| e.column(&column.name));
            let made = store_made(destination, column, there.filter(|_| !request.compare_only));
            made.map_err(|e| match stages.written_at(&column.name) {
                Some(place) => e.at("written at", place),
                None => e,
            })?;
        } else if let Some(e) = unfit.remove(&column.name) {
            return Err(e);
        }
    }
    reasons.extend(widen.iter().map(|w: &Widening| {
        let (column, type_name) = (&w.column, &w.type_name);
        format!(
            "column {column} becomes {type_name} at the destination, to hold every value: {}",
            w.statement
        )
    }));
    let row_hash = match &request.row_hash {
        Some(choice) => stored_hash(
            destination,
            choice,
            existing.as_ref(),
            request.evolve,
            &mut schema,
            &mut reasons,
        )?,
        None => None,
    };
    if let Some(lost) = schema.key.iter().find(|k| schema.column(k).is_none()) {
        let written: Vec<&str> = schema.columns.iter().map(|c| c.name.as_str()).collect();
        return Err(Error::no_column(
            Among::Table,
            lost,
            format!("key column {lost} is not among the columns written"),
        )
        .hint(format!(
            "write the column too, or name as `key` columns that are written: {}",
            written.join(", ")
        )));
    }
    // Times that are stored as we would store instants are read back as what was written.
    for there in existing.iter_mut().flat_map(|e| &mut e.columns) {
        let own = destination.store_as(destination.engine(), there).type_name;
        let written = schema.column(&there.name).filter(|w| w.source_type == Some(own));
        if there.ty == ColumnType::Timestamp && written.is_some_and(|w| w.ty == ColumnType::TimestampTz) {
            there.ty = ColumnType::TimestampTz;
        }
    }
    if request.raw && stages.is_empty() && unwritten.is_empty() && row_hash.is_none() && read.is_plain() {
        read.raw = agree_on_raw(source, destination, &read, &schema);
    }
    let changed = schema.columns.iter().map(|c| &c.name).filter(|c| stages.changes(c));
    Ok(Resolved {
        changed: changed.cloned().collect(),
        read,
        schema,
        existing,
        row_hash,
        widen,
        reasons,
    })
}

/// A column with the type that it has to have where it shows no value to guess one from: what was asked for, or that of
/// the column in which it is stored.
fn told(column: &Column, choice: &ColumnChoice, there: Option<&Column>) -> Column {
    if !column.has_no_value() {
        return column.clone();
    }
    let there = there.map(|t| &t.ty).filter(|ty| **ty != ColumnType::Native);
    Column {
        ty: choice.ty.as_ref().or(there).unwrap_or(&column.ty).clone(),
        source_type: None,
        ..column.clone()
    }
}

/// Has a column of the destination become as wide as what is stored in it, where the destination can: from here on it is
/// of that type.
async fn widened(
    destination: &dyn Destination,
    table: &TableId,
    wanted: Column,
    there: &mut Column,
) -> Result<Option<Widening>> {
    if there.generated || !there.widens_to(&wanted) {
        return Ok(None);
    }
    let statement = destination.widen(table, there, &wanted).await?;
    Ok(statement.map(|statement| {
        there.ty = wanted.ty;
        there.source_type.clone_from(&wanted.source_type);
        Widening {
            column: there.name.clone(),
            type_name: wanted.source_type.unwrap_or_default(),
            statement,
        }
    }))
}

/// Adds the column that keeps rows' hashes to what is written.
fn stored_hash(
    destination: &dyn Destination,
    choice: &RowHashChoice,
    existing: Option<&TableSchema>,
    evolve: bool,
    schema: &mut TableSchema,
    reasons: &mut Vec<String>,
) -> Result<Option<StoredHash>> {
    let there = existing.and_then(|e| e.column(&choice.column));
    if existing.is_some() && there.is_none() && !evolve {
        reasons.push(format!(
            "the destination has no column {}, so the hashes of rows are not kept",
            choice.column
        ));
        return Ok(None);
    }
    let ty = there.map_or(&choice.ty, |t| &t.ty);
    let holds = match ty {
        ColumnType::Int64 => true,
        ColumnType::Text { max } => max.is_none_or(|m| m >= 32),
        ColumnType::Char { length } => *length >= 32,
        _ => false,
    };
    if !holds {
        return Err(
            refused(&choice.column, &ty.to_string(), "the hash of a row does not fit".into())
                .hint("a hash_key is a bigint, a text or a varchar of at least 32 characters"),
        );
    }
    let mut column = Column::new(&choice.column, ty.clone());
    store_made(destination, &mut column, there)?;
    let counts = |c: &&Column| match &choice.of {
        Some(of) => of.contains(&c.name),
        None => true,
    };
    let others = schema
        .columns
        .iter()
        .filter(|c| !schema.key.contains(&c.name))
        .filter(counts);
    let mut others: Vec<String> = others.map(|c| c.name.clone()).collect();
    others.sort_unstable();
    let of = [schema.key.clone(), others].concat();
    schema.columns.retain(|c| c.name != choice.column);
    schema.columns.push(column);
    Ok(Some(StoredHash {
        column: choice.column.clone(),
        form: choice.form,
        of,
    }))
}

async fn choose(
    source: &dyn Source,
    request: &TableRequest,
    at_source: &TableSchema,
    relation: &ReadSpec,
) -> Result<Vec<(ColumnChoice, Column)>> {
    let choices: Vec<ColumnChoice> = match &request.columns {
        Some(choices) => choices.clone(),
        None => at_source.columns.iter().map(|c| ColumnChoice::same(&c.name)).collect(),
    };
    if request.is_plain() {
        return choices
            .into_iter()
            .map(|choice| {
                let column = at_source.must_column(&choice.source, &request.source)?.clone();
                Ok((choice, column))
            })
            .collect();
    }
    let asked = ReadSpec {
        columns: choices
            .iter()
            .map(|c| ReadColumn {
                source: c.source.clone(),
                term: Some(c.term()),
                column: Column::new(&c.destination, ColumnType::Native),
            })
            .collect(),
        ..relation.clone()
    };
    let columns = source.describe_query(&asked).await?;
    if columns.len() != choices.len() {
        return Err(Error::bug(
            "the source described another number of columns than it was asked for",
        ));
    }
    Ok(choices.into_iter().zip(columns).collect())
}

fn key(request: &TableRequest, at_source: &TableSchema, columns: &[(ColumnChoice, Column)]) -> Result<Vec<String>> {
    if let Some(key) = &request.key {
        return Ok(key.clone());
    }
    if !request.group_by.is_empty() {
        return Ok(request.group_by.clone());
    }
    let plain = |c: &ColumnChoice, k: &str| match &c.term {
        None => c.source == k,
        Some(Term::Column { relation: None, name }) => name == k,
        Some(Term::Column {
            relation: Some(relation),
            name,
        }) => name == k && (Some(relation) == request.alias.as_ref() || *relation == request.source.name),
        Some(_) => false,
    };
    let renamed: Vec<Option<String>> = at_source
        .key
        .iter()
        .map(|k| {
            columns
                .iter()
                .find(|(c, _)| c.written && plain(c, k))
                .map(|(c, _)| c.destination.clone())
        })
        .collect();
    // A key that is not written whole is no key at the destination.
    Ok(renamed.into_iter().collect::<Option<Vec<_>>>().unwrap_or_default())
}

fn refused(column: &str, ty: &str, why: String) -> Error {
    Error::new(code::CONFIG_TYPE, format!("column {column} ({ty}): {why}"))
}

/// How a column of a table travels under its own name and is stored, as [`resolve`] decides it: for work that reads whole
/// tables in another way. `there` is the destination's column of that name, if it has one.
pub fn carry_plain(
    source: &dyn Source,
    destination: &dyn Destination,
    column: &Column,
    there: Option<&Column>,
) -> Result<(ReadColumn, Column)> {
    let (from, to) = carry(source, destination, &ColumnChoice::same(&column.name), column, there)?;
    Ok((ReadColumn::plain(&column.name, from), to))
}

/// The same for a column that is carried and stored as its text.
pub fn carry_as_text(
    source: &dyn Source,
    destination: &dyn Destination,
    column: &Column,
    there: Option<&Column>,
) -> Result<(ReadColumn, Column)> {
    let choice = ColumnChoice {
        as_text: true,
        ..ColumnChoice::same(&column.name)
    };
    let (from, to) = carry(source, destination, &choice, column, there)?;
    Ok((ReadColumn::plain(&column.name, from), to))
}

/// How a column is read and how it is written; both in the same Arrow type.
fn carry(
    source: &dyn Source,
    destination: &dyn Destination,
    choice: &ColumnChoice,
    column: &Column,
    there: Option<&Column>,
) -> Result<(Column, Column)> {
    let mut from = column.clone();
    from.name = choice.destination.clone();
    from.generated = false;
    let mut to = from.clone();
    let refuse = |why: String| {
        refused(&choice.source, &describe_type(column), why).hint(format!(
            "set `data_type: text` for column {}, or leave it out",
            choice.destination
        ))
    };
    if choice.as_text {
        to.ty = ColumnType::Text { max: None };
    } else if let Some(ty) = &choice.ty
        && *ty != column.ty
    {
        if !column.ty.fits(ty) {
            return Err(refuse(format!("data_type {ty} cannot hold all its values")));
        }
        to.ty = ty.clone();
    }
    if to.ty != column.ty {
        to.source_type = None;
    }
    let stored = destination.store_as(source.engine(), &to);
    if let Fidelity::Refused(why) = &stored.fidelity {
        return Err(refuse(format!("{} cannot store it: {why}", destination.engine())));
    }
    if let Some(there) = there
        && there.ty != to.ty
        && !(to.ty.fits(&there.ty) || same_stored(source, destination, &to, there))
    {
        return Err(does_not_fit(there, &describe_type(column)));
    }
    let as_text = to.ty != column.ty && to.arrow_type() != from.arrow_type();
    to.carrier = if as_text { Carrier::Text } else { stored.carrier };
    from.carrier = to.carrier;
    if from.arrow_type() != to.arrow_type() {
        // Types of different Arrow forms meet in text.
        (from.carrier, to.carrier) = (Carrier::Text, Carrier::Text);
    }
    // From here on the column is the destination's, and so is the name of its type: `INTEGER` is not the same
    // everywhere.
    to.source_type = Some(own_type(destination, &to, there, stored.type_name)?);
    Ok((from, to))
}

/// The name of the type in which a column is written: that of the destination's own one where it keeps fewer digits.
fn own_type(
    destination: &dyn Destination,
    column: &Column,
    there: Option<&Column>,
    type_name: String,
) -> Result<String> {
    let own = match there.filter(|t| t.ty == column.ty) {
        Some(there) => destination.narrowed(there, &type_name)?,
        None => None,
    };
    Ok(own.unwrap_or(type_name))
}

fn does_not_fit(there: &Column, wanted: &str) -> Error {
    Error::new(
        code::SCHEMA_MISMATCH,
        format!(
            "column {} is {} at the destination, which cannot hold all values of {wanted}",
            there.name,
            describe_type(there),
        ),
    )
    .hint("change the destination's column (where it only has to become wider, `schema_drift: evolve` does), or map to another one")
}

/// A column that stages made: stored as the destination stores its type.
fn store_made(destination: &dyn Destination, column: &mut Column, there: Option<&Column>) -> Result<()> {
    column.source_type = None;
    let stored = destination.store_as(ENGINE, column);
    if let Fidelity::Refused(why) = &stored.fidelity {
        let why = format!("{} cannot store it: {why}", destination.engine());
        return Err(refused(&column.name, &column.ty.to_string(), why)
            .hint("give the column a `data_type` that is stored there, such as text"));
    }
    if let Some(there) = there
        && there.ty != column.ty
        && !column.ty.fits(&there.ty)
        && destination.store_as(destination.engine(), there).type_name != stored.type_name
    {
        return Err(does_not_fit(there, &column.ty.to_string()));
    }
    column.carrier = stored.carrier;
    column.source_type = Some(own_type(destination, column, there, stored.type_name)?);
    Ok(())
}

/// The engine of columns that no database made.
const ENGINE: &str = "synctool";

/// Whether the destination would store both the same way: what it made itself reads back as its own type.
fn same_stored(source: &dyn Source, destination: &dyn Destination, wanted: &Column, there: &Column) -> bool {
    let own = destination.store_as(destination.engine(), there).type_name;
    destination.store_as(source.engine(), wanted).type_name == own
}

fn describe_type(column: &Column) -> String {
    column.source_type.clone().unwrap_or_else(|| column.ty.to_string())
}

fn agree_on_raw(
    source: &dyn Source,
    destination: &dyn Destination,
    read: &ReadSpec,
    schema: &TableSchema,
) -> Option<RawFormat> {
    let same = read
        .columns
        .iter()
        .zip(&schema.columns)
        .all(|(r, w)| r.column.ty == w.ty);
    let from: Vec<(String, Column)> = read
        .columns
        .iter()
        .map(|c| (c.source.clone(), c.column.clone()))
        .collect();
    let to: Vec<(String, Column)> = schema.columns.iter().map(|c| (c.name.clone(), c.clone())).collect();
    let format = source.raw_format(&from)?;
    (same && destination.accepts_raw(&format, &to)).then_some(format)
}

/// Says that something needs a key.
pub fn no_key(table: &TableId, what: &str) -> Error {
    Error::new(code::KEY_MISSING, format!("{what} needs a key, and {table} has none"))
        .hint("name the key columns: `key: [id]` in a pipeline, `--key id` of a command")
}
