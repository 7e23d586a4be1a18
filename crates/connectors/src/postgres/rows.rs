//! Batches as the rows of COPY … FROM STDIN: binary where every column has a binary form here, text otherwise.

use super::ddl::quoted;
use super::digits::Digits;
use super::sql::idents;
use super::types::{Cells, Encoder, copy_text_field};
use arrow_array::{Array, RecordBatch};
use bytes::{BufMut, BytesMut};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, TableId};
use tokio_postgres::types::{IsNull, Kind, ToSql, Type, to_sql_checked};

/// The form of the rows of a COPY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyForm {
    /// Values as the server keeps them.
    Binary,
    /// Values as it prints them.
    Text,
}

/// Turns batches of one table's columns into rows of a COPY.
#[derive(Debug, Clone)]
pub(super) struct RowEncoder {
    form: CopyForm,
    /// Only for [`CopyForm::Binary`].
    encoders: Vec<Encoder>,
    /// What each column keeps of its values.
    digits: Vec<Option<Digits>>,
}

impl RowEncoder {
    /// `types` are the columns' types at the server. `None` leaves the form to us.
    pub(super) fn new(columns: &[Column], types: &[String], form: Option<CopyForm>) -> Result<Self> {
        let mut encoders = Vec::with_capacity(columns.len());
        let digits = columns.iter().zip(types).map(|(c, ty)| Digits::of(&c.name, ty));
        for (c, ty) in columns.iter().zip(types) {
            match Encoder::new(c, ty) {
                Some(encoder) => encoders.push(encoder),
                None if form == Some(CopyForm::Binary) => {
                    return Err(Error::new(
                        code::UNSUPPORTED,
                        format!("column {} of type {ty} has no binary form here", c.name),
                    )
                    .hint("leave the form of COPY to SyncTool"));
                }
                None => {}
            }
        }
        let all = encoders.len() == columns.len();
        Ok(RowEncoder {
            form: form.unwrap_or(if all { CopyForm::Binary } else { CopyForm::Text }),
            encoders,
            digits: digits.collect(),
        })
    }

    /// For rows that are in binary form already.
    pub(super) fn raw() -> Self {
        RowEncoder {
            form: CopyForm::Binary,
            encoders: Vec::new(),
            digits: Vec::new(),
        }
    }

    /// The statement that takes the rows.
    pub(super) fn copy_statement<S: AsRef<str>>(
        &self,
        table: &TableId,
        columns: impl IntoIterator<Item = S>,
    ) -> String {
        let form = match self.form {
            CopyForm::Binary => "binary",
            CopyForm::Text => "text",
        };
        format!(
            "COPY {} ({}) FROM STDIN (FORMAT {form})",
            quoted(table),
            idents(columns)
        )
    }

    pub(super) fn form(&self) -> CopyForm {
        self.form
    }

    /// A batch's rows, ready to be written.
    pub(super) fn bind<'a>(&'a self, batch: &'a RecordBatch) -> Result<Rows<'a>> {
        if batch.num_columns() != self.digits.len() {
            return Err(Error::bug(format!(
                "{} columns come where the table has {}",
                batch.num_columns(),
                self.digits.len()
            )));
        }
        let columns = batch.columns().iter();
        Ok(match self.form {
            CopyForm::Binary => Rows::Binary(
                self.encoders
                    .iter()
                    .zip(columns)
                    .map(|(e, c)| e.bind(c.as_ref()))
                    .collect::<Result<_>>()?,
            ),
            CopyForm::Text => Rows::Text(
                columns
                    .zip(&self.digits)
                    .map(|(c, digits)| (c.as_ref(), digits.as_ref()))
                    .collect(),
            ),
        })
    }

    /// Rows, each of a batch, as one array for each of these columns: the binary form that parameters of their types have.
    pub(super) fn arrays(
        &self,
        batches: &[RecordBatch],
        rows: &[(usize, usize)],
        columns: &[usize],
        types: &[Type],
    ) -> Result<Vec<Parameter>> {
        let mut cells = Vec::with_capacity(batches.len());
        for batch in batches {
            match self.bind(batch)? {
                Rows::Binary(columns) => cells.push(columns),
                Rows::Text(_) => return Err(Error::bug("arrays of values without a binary form")),
            }
        }
        let array = |&column: &usize| -> Result<Parameter> {
            let Kind::Array(element) = types[column].kind() else {
                return Err(Error::bug("a parameter that is no array"));
            };
            let mut out = BytesMut::new();
            // One dimension that begins at 1, perhaps with NULLs.
            for word in [1, 1, element.oid() as i32, rows.len() as i32, 1] {
                out.put_i32(word);
            }
            for &(batch, row) in rows {
                cells[batch][column].write(row, &mut out)?;
            }
            Ok(Parameter(out))
        };
        columns.iter().map(array).collect()
    }
}

/// A parameter that is in its binary form already.
#[derive(Debug)]
pub(super) struct Parameter(BytesMut);

impl ToSql for Parameter {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    to_sql_checked!();
}

/// The rows of one batch.
pub(super) enum Rows<'a> {
    Binary(Vec<Cells<'a>>),
    Text(Vec<(&'a dyn Array, Option<&'a Digits>)>),
}

impl Rows<'_> {
    /// Appends a row.
    pub(super) fn write(&self, row: usize, out: &mut BytesMut) -> Result<()> {
        match self {
            Rows::Binary(cells) => {
                out.put_i16(cells.len() as i16);
                cells.iter().try_for_each(|c| c.write(row, out))
            }
            Rows::Text(columns) => {
                for (i, (column, digits)) in columns.iter().enumerate() {
                    if i > 0 {
                        out.put_u8(b'\t');
                    }
                    if let Some(digits) = digits {
                        digits.check(*column, row)?;
                    }
                    copy_text_field(out, *column, row)?;
                }
                out.put_u8(b'\n');
                Ok(())
            }
        }
    }
}
