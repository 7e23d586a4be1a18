//! Rows of the log into Arrow columns, consecutive rows of a table together.

use super::super::types::{Decoder, Wire};
use super::pgoutput::{Cell, Old, Tuple};
use super::shape::{Shape, ShapeColumn};
use crate::logs;
use arrow_array::ArrayRef;
use std::sync::Arc;
use synctool_core::budget::Hold;
use synctool_core::change::{ChangeBatch, Op};
use synctool_core::error::{Error, Result, code};
use synctool_core::text::ColumnBuilder;

/// One column's values, in the form in which the whole stream comes.
enum Field {
    Binary(Decoder),
    Text {
        to: ColumnBuilder,
        column: Box<ShapeColumn>,
    },
}

impl Field {
    fn new(column: &ShapeColumn, binary: bool) -> Field {
        if binary {
            return Field::Binary(Decoder::new(&column.column));
        }
        Field::Text {
            to: ColumnBuilder::new(&column.column),
            column: Box::new(column.clone()),
        }
    }

    fn null(&mut self) -> Result<()> {
        match self {
            Field::Binary(d) => d.extend(std::iter::once(None)),
            Field::Text { to, .. } => {
                to.append_null();
                Ok(())
            }
        }
    }

    #[inline]
    fn push(&mut self, cell: Cell<'_>) -> Result<()> {
        match (self, cell) {
            (field, Cell::Null | Cell::Unchanged) => field.null(),
            (Field::Binary(d), Cell::Binary(bytes)) => d.extend(std::iter::once(Some(bytes))),
            (Field::Text { to, column }, Cell::Text(bytes)) => {
                let text = std::str::from_utf8(bytes).map_err(|_| {
                    malformed(column, "a text is not UTF-8")
                        .hint("the database's encoding does not check texts (SQL_ASCII); correct the rows, or leave the column out")
                })?;
                // A cast to text, which is how tables are read, spells this type out.
                match (
                    text,
                    Wire::of_type_name(column.column.source_type.as_deref().unwrap_or_default()),
                ) {
                    ("t", Some(Wire::Bool)) => to.append_text("true"),
                    ("f", Some(Wire::Bool)) => to.append_text("false"),
                    _ => to.append_text(text),
                }
            }
            (Field::Text { column, .. }, _) => {
                Err(malformed(column, "a value comes in another form than was asked for"))
            }
            (Field::Binary(_), _) => Err(Error::new(
                code::VALUE_MALFORMED,
                "a value comes in another form than was asked for",
            )),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Field::Binary(d) => d.finish(),
            Field::Text { to, .. } => to.finish(),
        }
    }
}

fn malformed(column: &ShapeColumn, why: &str) -> Error {
    Error::new(code::VALUE_MALFORMED, format!("column {}: {why}", column.source))
}

/// Rows of one table that are being collected.
pub(super) struct Rows {
    shape: Arc<Shape>,
    binary: bool,
    fields: Vec<Field>,
    before: Option<Vec<Field>>,
    ops: Vec<u8>,
    /// The cells that carry no value: (column, row).
    absent: Vec<(usize, usize)>,
    bytes: usize,
    width: usize,
}

/// A row on its way into columns; `None` is a column that the change does not bring.
type Cells<'a> = Vec<Option<Cell<'a>>>;

/// Where each column of the log goes; `None` is one that nobody wants.
pub(super) type Places = Vec<Option<usize>>;

impl Rows {
    pub(super) fn new(shape: Arc<Shape>, binary: bool) -> Rows {
        let fields = shape.columns.iter().map(|c| Field::new(c, binary)).collect();
        let width = shape
            .columns
            .iter()
            .map(|c| c.column.arrow_type().primitive_width().unwrap_or(4))
            .sum();
        Rows {
            shape,
            binary,
            fields,
            before: None,
            ops: Vec::new(),
            absent: Vec::new(),
            bytes: 0,
            width,
        }
    }

    pub(super) fn shape(&self) -> &Arc<Shape> {
        &self.shape
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn cells<'a>(&self, tuple: Tuple<'a>, places: &Places) -> Result<Cells<'a>> {
        if tuple.len() != places.len() {
            return Err(Error::new(
                code::VALUE_MALFORMED,
                format!(
                    "a row of {} in the log has another number of values than the table",
                    self.shape.table
                ),
            ));
        }
        let mut cells = vec![None; self.fields.len()];
        for (cell, place) in tuple.cells().zip(places) {
            if let Some(place) = place {
                cells[*place] = Some(cell);
            }
        }
        Ok(cells)
    }

    /// Adds a row that came or changed.
    pub(super) fn put(&mut self, op: Op, new: Tuple<'_>, old: Option<Old<'_>>, places: &Places) -> Result<()> {
        let mut cells = self.cells(new, places)?;
        let before = old.map(|old| self.cells(old.tuple(), places)).transpose()?;
        // The old row has what the new one leaves out: all of it, or its key, where a value of that is stored out of line.
        let whole = matches!(old, Some(Old::Row(_)));
        for (i, (cell, old)) in cells.iter_mut().zip(before.iter().flatten()).enumerate() {
            if *cell == Some(Cell::Unchanged) && (whole || self.shape.key.contains(&i)) {
                *cell = *old;
            }
        }
        self.add(
            op,
            &cells,
            before.as_ref(),
            new.size() + old.map_or(0, |o| o.tuple().size()),
        )
    }

    /// Adds a row that went.
    pub(super) fn remove(&mut self, old: Old<'_>, places: &Places) -> Result<()> {
        let mut cells = self.cells(old.tuple(), places)?;
        if let Old::Key(_) = old {
            for (i, cell) in cells.iter_mut().enumerate() {
                if !self.shape.key.contains(&i) {
                    *cell = None;
                }
            }
        }
        let keyless = self.shape.key.is_empty();
        let before = keyless.then(|| cells.clone());
        self.add(Op::Delete, &cells, before.as_ref(), old.tuple().size())
    }

    fn add(&mut self, op: Op, cells: &Cells<'_>, before: Option<&Cells<'_>>, size: usize) -> Result<()> {
        let row = self.ops.len();
        for (i, (field, cell)) in self.fields.iter_mut().zip(cells).enumerate() {
            match cell {
                // A new row is whole without what its table has no more.
                None if op == Op::Insert && self.shape.columns[i].gone => field.null()?,
                Some(Cell::Unchanged) | None => {
                    field.null()?;
                    self.absent.push((i, row));
                }
                Some(cell) => field.push(*cell)?,
            }
        }
        if let Some(cells) = before {
            let (shape, binary) = (&self.shape, self.binary);
            if self.before.is_none() {
                let mut fields: Vec<Field> = shape.columns.iter().map(|c| Field::new(c, binary)).collect();
                for field in &mut fields {
                    (0..row).try_for_each(|_| field.null())?;
                }
                self.before = Some(fields);
            }
            for (field, cell) in self.before.iter_mut().flatten().zip(cells) {
                field.push(cell.unwrap_or(Cell::Null))?;
            }
        } else if let Some(fields) = &mut self.before {
            fields.iter_mut().try_for_each(Field::null)?;
        }
        self.ops.push(op as u8);
        self.bytes += size.max(self.width);
        Ok(())
    }

    /// The rows so far; the collection starts over.
    pub(super) fn finish(&mut self, hold: Hold) -> Result<ChangeBatch> {
        let columns = |fields: &mut Vec<_>| fields.iter_mut().map(Field::finish).collect();
        let rows = columns(&mut self.fields);
        let before = self.before.take().map(|mut b| columns(&mut b));
        let (ops, absent) = (std::mem::take(&mut self.ops), std::mem::take(&mut self.absent));
        self.bytes = 0;
        logs::batch((&self.shape.table, &self.shape.arrow), rows, before, ops, absent, hold)
    }
}
