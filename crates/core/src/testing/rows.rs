//! Small tables as texts, and batches made of them.

use crate::error::Result;
use crate::schema::{Column, ColumnType, TableSchema};
use crate::text::{self, ColumnBuilder};
use arrow_array::RecordBatch;
use std::collections::BTreeMap;

/// A row as canonical texts; `None` is NULL.
pub type Row = Vec<Option<String>>;

/// Key → row. Keys order as text.
pub type Rows = BTreeMap<Vec<String>, Row>;

/// A table of text columns with the first `key` of them as its key.
pub fn text_schema(columns: &[&str], key: usize) -> TableSchema {
    TableSchema {
        columns: columns
            .iter()
            .enumerate()
            .map(|(i, name)| {
                let c = Column::new(*name, ColumnType::Text { max: None });
                if i < key { c.not_null() } else { c }
            })
            .collect(),
        key: columns[..key].iter().map(ToString::to_string).collect(),
    }
}

/// A batch in a schema from texts.
pub fn batch<'a>(schema: &TableSchema, rows: impl IntoIterator<Item = &'a Row>) -> Result<RecordBatch> {
    let mut builders: Vec<ColumnBuilder> = schema.columns.iter().map(ColumnBuilder::new).collect();
    for row in rows {
        for (builder, cell) in builders.iter_mut().zip(row) {
            builder.append_cell(cell.as_deref())?;
        }
    }
    let arrays = builders.iter_mut().map(ColumnBuilder::finish).collect();
    RecordBatch::try_new(schema.arrow_schema(), arrays).map_err(|e| crate::error::Error::bug(e.to_string()))
}

/// The rows of a batch as texts.
pub fn texts(batch: &RecordBatch) -> Result<Vec<Row>> {
    (0..batch.num_rows())
        .map(|r| batch.columns().iter().map(|c| text::cell(c, r)).collect())
        .collect()
}

/// The key of a row.
pub fn key_of(schema: &TableSchema, row: &Row) -> Result<Vec<String>> {
    Ok(schema
        .key_indices()?
        .into_iter()
        .map(|i| row[i].clone().unwrap_or_default())
        .collect())
}
