//! The staging table through which changes reach their table, and the statements that apply them.
//!
//! One staged row is one change (or the net of several changes of one key): its kind, the pattern of columns it carries,
//! the key (or whole row) it is found by, and its values.

use super::client::{Connection, map_error};
use super::control::Move;
use super::ddl::quoted;
use super::destination::Target;
use super::fold::is_exact;
use super::merge::{Mapping, Pair};
use super::rows::{CopyForm, RowEncoder};
use super::sql::ident;
use std::collections::HashSet;
use synctool_core::error::{Error, Result};
use synctool_core::ledger::Applied;
use synctool_core::schema::{Column, ColumnType, TableId};
use tokio_postgres::SimpleQueryMessage;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{self, Type};

/// What a staged row does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The row goes.
    Delete = 0,
    /// The row, if it is there, gets these values.
    Update = 1,
    /// The row gets these values, and is inserted if it is not there.
    Put = 2,
    /// The same, after the row was deleted before: what it writes is no update.
    Replace = 3,
    /// The row, if it is there, gets these values and another key.
    Move = 4,
}

/// A column of the destination as it is staged.
#[derive(Debug, Clone)]
struct Staged {
    /// Its quoted name at the destination.
    name: String,
    /// The destination's type, where the staged one is another.
    cast: Option<String>,
    /// Generated columns travel but are not written.
    written: bool,
    /// Whether it is the same in all rows of one key.
    fixed: bool,
    /// Whether a row to delete is found by its text too: an equal key may be another row's, or have come since.
    exactly: bool,
    /// Whether it is a time at both ends.
    timed: bool,
}

/// The staging table of one destination table. It is never analysed: without statistics the planner takes it for small
/// and looks its rows up by the table's index, which is right for a batch of changes of a large table.
#[derive(Debug)]
pub(super) struct Stage {
    /// Its quoted name in the session's temporary schema.
    name: String,
    table: String,
    columns: Vec<Staged>,
    /// The places of the columns a row is found by.
    pub(super) found_by: Vec<usize>,
    keyless: bool,
    create: String,
    pub(super) encoder: RowEncoder,
    pub(super) copy: String,
    /// The same for whole rows that need nothing beside their values ([`Stage::upsert`], [`Stage::straight`]).
    pub(super) values: RowEncoder,
    pub(super) copy_values: String,
    /// COPY of whole rows straight into the table, where they need nothing on the way.
    pub(super) straight: Option<String>,
    /// The way of a few rows, if besides that their values can be given as arrays.
    pub(super) few: Option<Few>,
}

/// Statements for rows that are given as one array per column. None of them needs the staging table.
#[derive(Debug)]
pub(super) struct Few {
    /// New rows; one that is there already is a conflict.
    pub(super) insert: String,
    /// The same as a part of the statement that ends the transaction ([`super::control::Moves::whole`]).
    pub(super) insert_whole: String,
    /// Rows, new or not; it says how many were inserted and how many updated.
    pub(super) upsert: String,
    /// Rows that are there; `None` where they are nothing but their key.
    pub(super) update: Option<String>,
    /// Rows by their key: its columns are all that it takes.
    pub(super) delete: String,
    /// The arrays' types, by column.
    pub(super) types: Vec<Type>,
}

impl Stage {
    pub(super) fn new(target: &Target, mapping: &Mapping, number: usize) -> Result<Self> {
        let schema = &target.schema;
        let id = TableId::new("pg_temp", format!("_synctool_stage_{number}"));
        let keyless = schema.key.is_empty();
        let found_by = if keyless {
            (0..schema.columns.len()).collect()
        } else {
            schema.key_indices()?
        };
        let columns: Vec<Staged> = schema
            .columns
            .iter()
            .map(|c| {
                let name = ident(&c.name);
                let pair = mapping.all.iter().find(|p| p.name == name);
                Staged {
                    cast: pair.and_then(|p| p.cast.clone()),
                    written: pair.is_some(),
                    fixed: schema.key.contains(&c.name) && !pair.is_some_and(|p| p.varies),
                    // Changes of keys that have one form are folded by it, whatever their texts.
                    exactly: !keyless
                        && schema.key.contains(&c.name)
                        && pair.is_some_and(|p| p.folds || (p.varies && !is_exact(c))),
                    timed: matches!(c.ty, ColumnType::Timestamp | ColumnType::TimestampTz)
                        && pair.is_some_and(|p| p.cast.is_none()),
                    name,
                }
            })
            .collect();
        let mut names: Vec<String> = ["n", "kind", "pat", "many"].map(String::from).to_vec();
        let mut types: Vec<String> = vec!["integer".into(); 4];
        let mut staged: Vec<Column> = names.iter().map(|n| Column::new(n, ColumnType::Int32)).collect();
        for (prefix, places) in [("o", found_by.clone()), ("c", (0..columns.len()).collect())] {
            for i in places {
                names.push(format!("{prefix}{i}"));
                types.push(target.types[i].clone());
                staged.push(schema.columns[i].clone());
            }
        }
        let definition: Vec<String> = names.iter().zip(&types).map(|(n, t)| format!("{n} {t}")).collect();
        let encoder = RowEncoder::new(&staged, &types, None)?;
        let values = RowEncoder::new(&schema.columns, &target.types, None)?;
        let needs_nothing = columns.iter().all(|c| c.written && c.cast.is_none());
        let names_there = schema.columns.iter().map(|c| &c.name);
        let straight = needs_nothing.then(|| values.copy_statement(&target.table, names_there));
        let arrays = needs_nothing && values.form() == CopyForm::Binary;
        let name = quoted(&id);
        let mut stage = Stage {
            create: format!(
                "CREATE TEMPORARY TABLE {} ({}) ON COMMIT DELETE ROWS",
                ident(&id.name),
                definition.join(", ")
            ),
            copy: encoder.copy_statement(&id, &names),
            copy_values: values.copy_statement(&id, (0..columns.len()).map(|i| format!("c{i}"))),
            values,
            table: quoted(&target.table),
            name,
            columns,
            found_by,
            keyless,
            encoder,
            straight,
            few: None,
        };
        stage.few = arrays.then(|| stage.by_arrays(mapping)).flatten();
        Ok(stage)
    }

    /// Only where each type is one of the server's own: an array of another may be taken apart where a row of it is wanted.
    fn by_arrays(&self, mapping: &Mapping) -> Option<Few> {
        let array = |pair: &Pair| Type::from_oid(pair.array).filter(|ty| matches!(ty.kind(), types::Kind::Array(_)));
        let types = mapping.all.iter().map(array).collect::<Option<Vec<Type>>>()?;
        let rows_behind = |places: &[usize], others: usize| {
            let arrays: Vec<String> = (1..=places.len())
                .map(|n| format!("pg_catalog.unnest(${})", others + n))
                .collect();
            let names: Vec<String> = places.iter().map(|i| format!("c{i}")).collect();
            format!("ROWS FROM ({}) AS s({})", arrays.join(", "), names.join(", "))
        };
        let rows = |places: &[usize]| rows_behind(places, 0);
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let carried = self.carried(&vec![true; self.columns.len()], false);
        let found = self.matched("t", "c");
        // As COPY does, it writes identities that are always generated.
        let insert = |rows: String| {
            format!(
                "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {rows}",
                self.table,
                list(&all, |i| self.columns[i].name.clone()),
                list(&all, |i| self.value("c", i)),
            )
        };
        Some(Few {
            insert: insert(rows(&all)),
            insert_whole: insert(rows_behind(&all, Move::TYPES.len())),
            upsert: self.upsert_from(&rows(&all)),
            update: (!carried.is_empty()).then(|| {
                format!(
                    "UPDATE {} AS t SET {} FROM {} WHERE {found} AND {}",
                    self.table,
                    self.assignments(&carried),
                    rows(&all),
                    self.differs(&carried, |i| self.value("c", i))
                )
            }),
            delete: format!(
                "DELETE FROM {} AS t USING {} WHERE {found}",
                self.table,
                rows(&self.found_by)
            ),
            types,
        })
    }

    /// Makes the staging table, instead of one of an older shape.
    pub(super) fn create(&self) -> String {
        format!("DROP TABLE IF EXISTS {}; {}", self.name, self.create)
    }

    /// Makes staged rows quick to find by number, for those who take them one by one.
    pub(super) fn number(&self) -> String {
        let index = self.name.replace("_synctool_stage_", "_synctool_number_");
        let index = index.strip_prefix("\"pg_temp\".").unwrap_or(&index);
        format!("CREATE UNIQUE INDEX IF NOT EXISTS {index} ON {} (n)", self.name)
    }

    pub(super) fn clear(&self) -> String {
        format!("TRUNCATE {}", self.name)
    }

    pub(super) fn columns(&self) -> usize {
        self.columns.len()
    }

    fn value(&self, prefix: &str, i: usize) -> String {
        match &self.columns[i].cast {
            Some(ty) => format!("s.{prefix}{i}::{ty}"),
            None => format!("s.{prefix}{i}"),
        }
    }

    /// The destination's row `alias` is the one a staged row is about.
    fn found(&self, alias: &str) -> String {
        self.matched(alias, "o")
    }

    /// The destination's row `alias` has the key in these columns.
    fn matched(&self, alias: &str, prefix: &str) -> String {
        let parts: Vec<String> = self
            .found_by
            .iter()
            .map(|&i| format!("{alias}.{} = {}", self.columns[i].name, self.value(prefix, i)))
            .collect();
        parts.join(" AND ")
    }

    /// In a table without a key equal rows are told apart by nothing: one of them is taken.
    fn found_once(&self) -> String {
        let compared = || self.found_by.iter().filter(|&&i| self.columns[i].written);
        let there: Vec<String> = compared().map(|&i| format!("f.{}", self.columns[i].name)).collect();
        let old: Vec<String> = compared().map(|&i| self.value("o", i)).collect();
        format!(
            "(t.tableoid, t.ctid) = (SELECT f.tableoid, f.ctid FROM {} AS f WHERE pg_catalog.record_image_eq(ROW({}), ROW({})) LIMIT 1)",
            self.table,
            there.join(", "),
            old.join(", ")
        )
    }

    fn matches(&self) -> String {
        if self.keyless {
            self.found_once()
        } else {
            self.found("t")
        }
    }

    /// The places of written columns that a pattern carries.
    fn carried(&self, pattern: &[bool], keys: bool) -> Vec<usize> {
        (0..self.columns.len())
            .filter(|&i| pattern[i] && self.columns[i].written && (keys || !self.columns[i].fixed))
            .collect()
    }

    /// Which staged rows of several changes found their row.
    pub(super) fn existing(&self) -> String {
        format!(
            "SELECT s.n FROM {} AS s WHERE s.many = 1 AND EXISTS (SELECT FROM {} AS t WHERE {})",
            self.name,
            self.table,
            self.found("t")
        )
    }

    pub(super) fn delete(&self, filter: &str) -> String {
        // A row that another key, equal to this one, has taken meanwhile is not the one to go.
        let folding = self.found_by.iter().filter(|&&i| self.columns[i].exactly);
        let exactly: String = folding
            .map(|&i| {
                let (there, old) = (&self.columns[i].name, self.value("o", i));
                format!(" AND t.{there}::text COLLATE \"C\" = {old}::text COLLATE \"C\"")
            })
            .collect();
        format!(
            "DELETE FROM {} AS t USING {} AS s WHERE s.kind = {} AND {filter} AND {}{exactly}",
            self.table,
            self.name,
            Kind::Delete as i32,
            self.matches()
        )
    }

    /// Updates rows that differ; `None` if the pattern carries nothing to set.
    pub(super) fn update(&self, kinds: &[Kind], pattern: &[bool], filter: &str) -> Option<String> {
        let carried = self.carried(pattern, false);
        if carried.is_empty() {
            return None;
        }
        let differs = self.differs(&carried, |i| self.value("c", i));
        Some(format!("{} AND {differs}", self.set(&carried, kinds, filter)))
    }

    /// The image of the row in `t` is not that of the new values. Most rows that changed have another time, which is
    /// looked at first: to compare the images, both have to be made.
    fn differs(&self, places: &[usize], new: impl Fn(usize) -> String) -> String {
        let there = |i: usize| format!("t.{}", self.columns[i].name);
        let mut tests: Vec<String> = places
            .iter()
            .filter(|&&i| self.columns[i].timed)
            .map(|&i| format!("{} IS DISTINCT FROM {}", there(i), new(i)))
            .collect();
        tests.push(format!(
            "pg_catalog.record_image_ne(ROW({}), ROW({}))",
            list(places, there),
            list(places, &new)
        ));
        format!("({})", tests.join(" OR "))
    }

    fn assignments(&self, carried: &[usize]) -> String {
        list(carried, |i| {
            format!("{} = {}", self.columns[i].name, self.value("c", i))
        })
    }

    fn set(&self, carried: &[usize], kinds: &[Kind], filter: &str) -> String {
        let kinds: Vec<String> = kinds.iter().map(|k| (*k as i32).to_string()).collect();
        format!(
            "UPDATE {} AS t SET {} FROM {} AS s WHERE s.kind IN ({}) AND {filter} AND {}",
            self.table,
            self.assignments(carried),
            self.name,
            kinds.join(", "),
            self.matches()
        )
    }

    /// Inserts rows that are not there (all of them, where there is no key).
    pub(super) fn insert(&self, pattern: &[bool], filter: &str) -> String {
        let carried = self.carried(pattern, true);
        let missing = if self.keyless {
            String::new()
        } else {
            format!(
                " AND NOT EXISTS (SELECT FROM {} AS t WHERE {})",
                self.table,
                self.found("t")
            )
        };
        format!(
            "INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {} AS s WHERE s.kind IN ({}, {}) AND {filter}{missing}",
            self.table,
            list(&carried, |i| self.columns[i].name.clone()),
            list(&carried, |i| self.value("c", i)),
            self.name,
            Kind::Put as i32,
            Kind::Replace as i32
        )
    }

    /// Inserts whole rows and updates those that are there and differ, looking each key up once; counts both. It needs a
    /// unique index of exactly the key.
    pub(super) fn upsert(&self) -> String {
        self.upsert_from(&format!("{} AS s", self.name))
    }

    fn upsert_from(&self, rows: &str) -> String {
        let whole = vec![true; self.columns.len()];
        let (all, rest) = (self.carried(&whole, true), self.carried(&whole, false));
        let name = |i: usize| self.columns[i].name.clone();
        let otherwise = match rest.is_empty() {
            true => "NOTHING".to_string(),
            false => format!(
                "UPDATE SET {set} WHERE {differs}",
                set = list(&rest, |i| format!("{0} = excluded.{0}", self.columns[i].name)),
                differs = self.differs(&rest, |i| format!("excluded.{}", self.columns[i].name)),
            ),
        };
        format!(
            "WITH w AS (INSERT INTO {table} AS t ({names}) OVERRIDING SYSTEM VALUE SELECT {values} FROM {rows} \
             ON CONFLICT ({key}) DO {otherwise} RETURNING t.xmax = 0 AS fresh) \
             SELECT pg_catalog.count(*) FILTER (WHERE fresh), pg_catalog.count(*) FILTER (WHERE NOT fresh) FROM w",
            table = self.table,
            names = list(&all, name),
            values = list(&all, |i| self.value("c", i)),
            key = list(&self.found_by, name),
        )
    }

    /// Takes away rows that stand where others move to. A row whose new key is equal to its old one is in nobody's way.
    pub(super) fn clear_way(&self, filter: &str) -> String {
        let target: Vec<String> = self
            .found_by
            .iter()
            .map(|&i| format!("t.{} = {}", self.columns[i].name, self.value("c", i)))
            .collect();
        format!(
            "DELETE FROM {t} AS t USING {} AS s WHERE s.kind = {} AND {filter} AND {} AND NOT ({}) AND EXISTS (SELECT FROM {t} AS f WHERE {})",
            self.name,
            Kind::Move as i32,
            target.join(" AND "),
            self.found("t"),
            self.found("f"),
            t = self.table
        )
    }

    /// Gives rows their new key and values.
    pub(super) fn move_keys(&self, pattern: &[bool], filter: &str) -> String {
        self.set(&self.carried(pattern, true), &[Kind::Move], filter)
    }

    /// Takes away rows of a range and other keys that hold a value of a unique index (by its columns) that a staged row is
    /// to have.
    pub(super) fn give_way(&self, unique: &[String], range: &str) -> Option<String> {
        let range = if range.is_empty() { "true" } else { range };
        let same: Option<Vec<String>> = unique
            .iter()
            .map(|name| {
                let i = self.columns.iter().position(|c| c.written && c.name == *name)?;
                Some(format!("t.{name} = {}", self.value("c", i)))
            })
            .collect();
        Some(format!(
            "DELETE FROM {0} AS t WHERE {range} AND EXISTS (SELECT FROM {1} AS s WHERE {2} AND NOT ({3}))",
            self.table,
            self.name,
            same?.join(" AND "),
            self.found("t")
        ))
    }

    /// Deletes rows of a range that were not staged.
    pub(super) fn delete_others(&self, range: &str) -> String {
        let range = if range.is_empty() { "true" } else { range };
        format!(
            "DELETE FROM {} AS t WHERE {range} AND NOT EXISTS (SELECT FROM {} AS s WHERE {})",
            self.table,
            self.name,
            self.found("t")
        )
    }
}

/// What there is for each of these columns, as a list.
fn list(places: &[usize], show: impl Fn(usize) -> String) -> String {
    places.iter().map(|&i| show(i)).collect::<Vec<_>>().join(", ")
}

/// Why applying failed.
pub(super) enum Failed {
    /// A unique index or exclusion was broken, perhaps only by our order.
    Conflict(Error),
    Other(Error),
}

impl From<tokio_postgres::Error> for Failed {
    fn from(e: tokio_postgres::Error) -> Self {
        let conflict = matches!(
            e.code(),
            Some(&SqlState::UNIQUE_VIOLATION | &SqlState::EXCLUSION_VIOLATION)
        );
        let e = map_error(e, "applying changes");
        if conflict {
            Failed::Conflict(e)
        } else {
            Failed::Other(e)
        }
    }
}

impl From<Error> for Failed {
    fn from(e: Error) -> Self {
        Failed::Other(e)
    }
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Conflict(e) | Failed::Other(e) => e,
        }
    }
}

impl Failed {
    /// For a transaction of one statement: where a division refused it, its steps say which of them it was.
    pub(super) fn or_refused(e: tokio_postgres::Error) -> Self {
        match e.code() == Some(&SqlState::DIVISION_BY_ZERO) {
            true => Failed::Conflict(map_error(e, "committing")),
            false => e.into(),
        }
    }

    /// The same, with its table.
    pub(super) fn at(self, table: &TableId) -> Self {
        match self {
            Failed::Conflict(e) => Failed::Conflict(e.at("table", table.to_string())),
            Failed::Other(e) => Failed::Other(e.at("table", table.to_string())),
        }
    }

    pub(super) fn error(self, table: &TableId) -> Error {
        self.at(table).into()
    }
}

/// What the rows a statement touches are counted as.
#[derive(Clone, Copy)]
pub(super) enum Count {
    Inserted,
    Updated,
    Deleted,
    Removed,
    Nothing,
}

/// Statements that travel together.
#[derive(Default)]
pub(super) struct Batch {
    statements: Vec<String>,
    counts: Vec<Count>,
}

impl Batch {
    pub(super) fn add(&mut self, statement: String, count: Count) {
        self.statements.push(statement);
        self.counts.push(count);
    }

    /// Runs them and counts; says the numbers that a SELECT among them gave.
    pub(super) async fn run(self, session: &Connection, applied: &mut Applied) -> Result<HashSet<i32>, Failed> {
        if self.statements.is_empty() {
            return Ok(HashSet::new());
        }
        let answer = counts(session, &self.statements.join(";\n")).await?;
        for (count, n) in self.counts.iter().zip(answer.affected) {
            match count {
                Count::Inserted => applied.inserted += n,
                Count::Updated => applied.updated += n,
                Count::Deleted => applied.deleted += n,
                Count::Removed => applied.removed += n,
                Count::Nothing => {}
            }
        }
        Ok(answer.numbers)
    }
}

/// Runs a statement that gives how many rows it inserted and how many it updated.
pub(super) async fn upserted(session: &Connection, statement: &str) -> Result<(u64, u64), Failed> {
    for message in session.simple_query(statement).await? {
        if let SimpleQueryMessage::Row(row) = message {
            let number = |i: usize| row.get(i).and_then(|n| n.parse().ok()).unwrap_or(0);
            return Ok((number(0), number(1)));
        }
    }
    Err(Failed::Other(Error::bug("a count gave no row")))
}

/// What a round trip gave.
pub(super) struct Answer {
    /// Rows touched, by statement.
    pub(super) affected: Vec<u64>,
    numbers: HashSet<i32>,
}

/// Runs statements in one round trip.
pub(super) async fn counts(session: &Connection, statements: &str) -> Result<Answer, Failed> {
    let mut answer = Answer {
        affected: Vec::new(),
        numbers: HashSet::new(),
    };
    for message in session.simple_query(statements).await? {
        match message {
            SimpleQueryMessage::CommandComplete(n) => answer.affected.push(n),
            SimpleQueryMessage::Row(row) => answer.numbers.extend(row.get(0).and_then(|n| n.parse::<i32>().ok())),
            _ => {}
        }
    }
    Ok(answer)
}
