//! Rows of the log into Arrow columns, consecutive rows of a table together.

use super::super::types;
use super::shape::{Layout, Shape};
use crate::logs;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::text::ColumnBuilder;

/// A value of a row: not there, NULL, or its bytes and the log's column that reads them.
type Value<'a> = Option<Option<(usize, &'a [u8])>>;

/// A row on its way into columns, in the shape's order.
pub(super) type Image<'a> = Vec<Value<'a>>;

/// Takes one image of a row from the front of an event's rows. `present` has a bit for every column of the table.
pub(super) fn image<'a>(layout: &Layout, width: usize, present: &[bool], rows: &mut &'a [u8]) -> Result<Image<'a>> {
    let short = || Error::new(code::VALUE_MALFORMED, "a row of the log is cut off");
    let count = present.iter().take(layout.cells.len()).filter(|p| **p).count();
    let (nulls, rest) = rows.split_at_checked(count.div_ceil(8)).ok_or_else(short)?;
    *rows = rest;
    let mut image = vec![None; width];
    let mut at = 0;
    for (i, cell) in layout.cells.iter().enumerate() {
        if present.get(i) != Some(&true) {
            continue;
        }
        let null = nulls[at / 8] >> (at % 8) & 1 == 1;
        at += 1;
        let value = match null {
            true => None,
            false => Some((i, cell.take(rows)?)),
        };
        if let Some(place) = layout.places[i] {
            image[place] = Some(value);
        }
    }
    Ok(image)
}

/// Rows of one table that are being collected.
pub(super) struct Rows {
    shape: Arc<Shape>,
    fields: Vec<ColumnBuilder>,
    before: Option<Vec<ColumnBuilder>>,
    ops: Vec<u8>,
    /// The cells that carry no value: (column, row).
    absent: Vec<(usize, usize)>,
    bytes: usize,
    scratch: Vec<u8>,
}

impl Rows {
    pub(super) fn new(shape: Arc<Shape>) -> Rows {
        Rows {
            fields: Rows::fields(&shape),
            shape,
            before: None,
            ops: Vec::new(),
            absent: Vec::new(),
            bytes: 0,
            scratch: Vec::new(),
        }
    }

    fn fields(shape: &Shape) -> Vec<ColumnBuilder> {
        shape.columns.iter().map(|c| ColumnBuilder::new(&c.column)).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a row that came.
    pub(super) fn insert(&mut self, layout: &Layout, new: &Image<'_>) -> Result<()> {
        let said = |at: usize| layout.places.contains(&Some(at));
        if let Some(at) = (0..new.len()).find(|at| new[*at].is_none() && said(*at)) {
            return Err(partial(&self.shape, at));
        }
        self.add(Op::Insert, layout, new, None)
    }

    /// Adds a row that changed.
    pub(super) fn update<'a>(&mut self, layout: &Layout, old: &Image<'a>, mut new: Image<'a>) -> Result<()> {
        // What the new image leaves out is as it was, where the old one says it.
        for (new, old) in new.iter_mut().zip(old) {
            if new.is_none() {
                new.clone_from(old);
            }
        }
        let key = &self.shape.key;
        let moved = key.is_empty() || key.iter().any(|k| old[*k] != new[*k]);
        self.add(Op::Update, layout, &new, moved.then_some(old))
    }

    /// Adds a row that went.
    pub(super) fn delete(&mut self, layout: &Layout, old: &Image<'_>) -> Result<()> {
        let keyless = self.shape.key.is_empty();
        self.add(Op::Delete, layout, old, keyless.then_some(old))
    }

    fn add(&mut self, op: Op, layout: &Layout, cells: &Image<'_>, before: Option<&Image<'_>>) -> Result<()> {
        let row = self.ops.len();
        for (i, value) in cells.iter().enumerate() {
            // A new row is whole without what its table has no more.
            let whole = op == Op::Insert && self.shape.columns[i].gone;
            if value.is_none() && !whole {
                self.absent.push((i, row));
            }
            let field = &mut self.fields[i];
            self.bytes += put(&self.shape, layout, i, *value, field, &mut self.scratch)?;
        }
        if let Some(cells) = before {
            if self.before.is_none() {
                let mut fields = Rows::fields(&self.shape);
                for field in &mut fields {
                    (0..row).for_each(|_| field.append_null());
                }
                self.before = Some(fields);
            }
            for (i, field) in self.before.iter_mut().flatten().enumerate() {
                self.bytes += put(&self.shape, layout, i, cells[i], field, &mut self.scratch)?;
            }
        } else if let Some(fields) = &mut self.before {
            fields.iter_mut().for_each(ColumnBuilder::append_null);
        }
        self.ops.push(op as u8);
        Ok(())
    }

    /// The rows so far; the collection starts over.
    pub(super) fn finish(&mut self, hold: Hold) -> Result<ChangeBatch> {
        let columns = |fields: &mut Vec<_>| fields.iter_mut().map(ColumnBuilder::finish).collect();
        let rows = columns(&mut self.fields);
        let before = self.before.take().map(|mut b| columns(&mut b));
        let (ops, absent) = (std::mem::take(&mut self.ops), std::mem::take(&mut self.absent));
        self.bytes = 0;
        logs::batch((&self.shape.table, &self.shape.arrow), rows, before, ops, absent, hold)
    }
}

/// Adds a value to a column, the way that rows of a query go; says how many bytes it has.
fn put(
    shape: &Shape,
    layout: &Layout,
    at: usize,
    value: Value<'_>,
    field: &mut ColumnBuilder,
    scratch: &mut Vec<u8>,
) -> Result<usize> {
    let Some(Some((logged, bytes))) = value else {
        field.append_null();
        return Ok(8);
    };
    scratch.clear();
    layout.cells[logged].print(bytes, scratch)?;
    types::read_cell(&shape.columns[at].column, field, scratch)?;
    Ok(scratch.len() + 8)
}

fn partial(shape: &Shape, at: usize) -> Error {
    Error::new(
        code::LOG_SETUP,
        format!(
            "a new row of {} comes without its column {}: the log holds parts of rows only (binlog_row_image)",
            shape.table, shape.columns[at].source
        ),
    )
}
