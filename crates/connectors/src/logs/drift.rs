//! What becomes of a followed table whose columns change, as the policy says: nothing is lost without a word.

use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, SchemaDifference, TableId};

/// What becomes of a log whose tables get other columns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Drift {
    /// New columns are followed; it ends before a row that lost a column or has another type.
    #[default]
    Added,
    /// The destination follows: columns are added and widened, and keep what they have where the source drops them.
    Evolve,
    /// New columns stay behind.
    Discard,
    /// It ends before the first row that has other columns.
    Freeze,
    /// The same: somebody has to decide.
    Pause,
}

impl Drift {
    /// Whether the others go on where a column is gone.
    pub(crate) fn lets_go(self) -> bool {
        matches!(self, Drift::Evolve | Drift::Discard)
    }

    /// Whether columns may not change at all.
    pub(crate) fn holds(self) -> bool {
        matches!(self, Drift::Freeze | Drift::Pause)
    }

    /// Why a log ends here whose columns may not change.
    pub(crate) fn refusal(self, table: &TableId, difference: &SchemaDifference, renamed: &[(String, String)]) -> Error {
        let name = |c: &Column| c.source_type.clone().unwrap_or_else(|| c.ty.to_string());
        let gone = difference.extra.iter().map(|c| format!("{} is gone", c.name));
        let other = difference.retyped.iter();
        let other = other.map(|(was, is)| format!("{} was {} and is {}", was.name, name(was), name(is)));
        let new = difference
            .missing
            .iter()
            .map(|c| format!("{} ({}) is new", c.name, name(c)));
        let renamed = renamed.iter().map(|(from, to)| format!("{from} is called {to}"));
        let all: Vec<String> = gone.chain(other).chain(renamed).chain(new).collect();
        self.refuse(format!("the columns of {table} changed: {}", all.join(", ")))
    }

    /// The refusal of changes that were told, by the policies that refuse.
    pub fn refuse(self, told: String) -> Error {
        match self {
            Drift::Pause => Error::new(code::REFUSED, format!("{told}, and the pipeline waits for a decision"))
                .hint("run once with --accept-schema to go on with the new columns"),
            _ => Error::new(code::SCHEMA_MISMATCH, format!("{told}, and schema_drift is freeze"))
                .hint("run once with --accept-schema, or set schema_drift to evolve or discard_column"),
        }
    }
}

/// Refuses every change of columns but new ones.
fn only_new(table: &TableId, difference: &SchemaDifference) -> Result<()> {
    let gone = difference.extra.first().map(|c| format!("column {} is gone", c.name));
    let other = difference.retyped.first();
    // Types of one kind are told apart by their engine's names.
    let named = |c: &Column, alike: bool| match &c.source_type {
        Some(name) if alike => name.clone(),
        _ => c.ty.to_string(),
    };
    let other = other.map(|(was, is)| {
        let alike = was.ty == is.ty;
        format!(
            "column {} was {} and is {}",
            was.name,
            named(was, alike),
            named(is, alike)
        )
    });
    match gone.or(other) {
        None => Ok(()),
        Some(what) => Err(Error::new(
            code::UNSUPPORTED,
            format!("{table} changed its shape: {what}; only new columns are followed"),
        )
        .hint(
            "schema_drift: evolve goes on without dropped columns and with wider types; \
             or change the destination table by hand and load it again",
        )),
    }
}

/// A column of a followed table, as far as the policies care for it.
pub(crate) trait Drifting {
    /// As it travels.
    fn column(&self) -> &Column;
    /// Whether the plan has it NOT NULL.
    fn is_required(&self) -> bool;
    /// Whether the source has it no more, and the policy goes on.
    fn is_gone(&self) -> bool;
    /// Whether it has another type than the plan says.
    fn is_widened(&self) -> bool;
    /// The source has it no more; the destination keeps what it has.
    fn goes(&mut self);
    /// It has a wider type from here on.
    fn widens(&mut self, column: Column);
}

/// Whether every value that a column has fits into another type, so that the destination's can be altered. One of times of
/// the same kind is another type only where it keeps more digits.
pub(crate) fn widens(was: &Column, is: &Column, is_key: bool) -> bool {
    let integers = was.ty.is_integer() && is.ty.is_integer();
    let wider = match was.ty == is.ty {
        true => was.widens_to(is),
        false => was.ty.fits(&is.ty),
    };
    // Another order of keys would mean other ranges.
    wider && (integers || !is_key)
}

/// What a sink must know of these columns, the first of which are those of the plan, that knows nothing else.
pub(crate) fn beyond_plan<C: Drifting>(columns: &[C], planned: usize) -> SchemaDifference {
    let (planned, added) = columns.split_at(planned);
    let column = |c: &C| c.column().clone();
    let gone = planned.iter().filter(|c| c.is_gone() && c.is_required());
    let widened = planned.iter().filter(|c| c.is_widened());
    SchemaDifference {
        missing: added.iter().map(column).collect(),
        extra: gone.map(column).collect(),
        retyped: widened.map(|c| (column(c), column(c))).collect(),
    }
}

/// Follows a difference of a table with this key as far as the policy lets it, or refuses it. What is left of it is the
/// sink's to do.
pub(crate) fn judge<C: Drifting>(
    (table, drift): (&TableId, Drift),
    key: &[String],
    columns: &mut [C],
    difference: &mut SchemaDifference,
    renamed: &[(String, String)],
) -> Result<()> {
    let nothing = *difference == SchemaDifference::default() && renamed.is_empty();
    if drift.holds() && !nothing {
        return Err(drift.refusal(table, difference, renamed));
    }
    if !drift.lets_go() {
        return only_new(table, difference);
    }
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
        if let Some(column) = columns.iter_mut().find(|c| c.column().name == gone.name) {
            column.goes();
            difference
                .extra
                .extend(column.is_required().then(|| column.column().clone()));
        }
    }
    for (was, is) in std::mem::take(&mut difference.retyped) {
        let column = columns.iter_mut().find(|c| c.column().name == was.name);
        let may = |c: &&mut C| drift == Drift::Evolve && widens(c.column(), &is, key.contains(&was.name));
        let Some(column) = column.filter(may) else {
            difference.retyped.push((was, is));
            return only_new(table, difference);
        };
        tracing::info!(%table, column = was.name, to = %is.ty, "a column has a wider type");
        column.widens(is);
        difference.retyped.push((was, column.column().clone()));
    }
    Ok(())
}
