//! Replaces values of a column by others (`value_map` of the original).

use crate::chain::Step;
use arrow_array::{Array, ArrayRef, RecordBatch};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::Arc;
use synctool_core::change::ChangeBatch;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, META_COLUMN, TableSchema};
use synctool_core::stage::{Stage, Staged};
use synctool_core::text::{self, ColumnBuilder};

/// Values of one column and what stands for them; others stay. Values are canonical texts ([`synctool_core::text`]).
#[derive(Debug, Clone)]
pub struct ValueMap {
    column: String,
    mapping: Arc<HashMap<String, Option<String>>>,
}

impl ValueMap {
    /// Maps values of a column; `None` is NULL.
    pub fn new(column: impl Into<String>, mapping: HashMap<String, Option<String>>) -> Self {
        ValueMap {
            column: column.into(),
            mapping: Arc::new(mapping),
        }
    }

    fn map(&self, array: &ArrayRef, column: &Column) -> Result<ArrayRef> {
        let mut builder = ColumnBuilder::new(column);
        let mut cell = String::new();
        for row in 0..array.len() {
            if array.is_null(row) {
                builder.append_null();
                continue;
            }
            cell.clear();
            text::write_cell(&mut cell, array, row)?;
            match self.mapping.get(&cell) {
                None => builder.append_text(&cell)?,
                Some(Some(to)) => builder.append_text(to)?,
                Some(None) => builder.append_null(),
            }
        }
        Ok(builder.finish())
    }
}

impl Step for ValueMap {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let column = input.column(&self.column).ok_or_else(|| {
            let known: Vec<&str> = input.columns.iter().map(|c| c.name.as_str()).collect();
            Error::new(
                code::COLUMN_MISSING,
                format!("value_map: column {} is not in the pipeline", self.column),
            )
            .hint(format!("it has: {}", known.join(", ")))
        })?;
        if input.key.contains(&self.column) {
            return Err(Error::new(
                code::CONFIG_INVALID,
                format!(
                    "value_map: column {} is part of the key, and two rows could get the same one",
                    self.column
                ),
            ));
        }
        // Every new value must have a place in the column.
        let mut builder = ColumnBuilder::new(column);
        self.mapping
            .values()
            .flatten()
            .try_for_each(|to| builder.append_text(to))?;
        Ok(input.clone())
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(self.clone()))
    }

    fn reads(&self) -> Vec<String> {
        vec![self.column.clone()]
    }

    fn makes(&self) -> Vec<String> {
        self.reads()
    }
}

#[async_trait]
impl Stage for ValueMap {
    fn name(&self) -> &str {
        "value_map"
    }

    async fn apply(&mut self, mut batch: ChangeBatch) -> Result<Staged> {
        let schema = batch.rows.schema();
        let index = schema
            .index_of(&self.column)
            .map_err(|_| Error::bug("value_map: the column is gone"))?;
        let column = schema
            .field(index)
            .metadata()
            .get(META_COLUMN)
            .and_then(|json| serde_json::from_str::<Column>(json).ok())
            .ok_or_else(|| Error::bug("value_map: a batch without column metadata"))?;
        let mut arrays = batch.rows.columns().to_vec();
        arrays[index] = self.map(&arrays[index], &column)?;
        batch.rows = RecordBatch::try_new(schema, arrays).map_err(|e| Error::bug(e.to_string()))?;
        Ok(Staged::all(batch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synctool_core::budget::Hold;
    use synctool_core::schema::{ColumnType, TableId};
    use synctool_core::testing::rows::{batch, texts};

    fn schema() -> TableSchema {
        TableSchema {
            columns: vec![
                Column::new("id", ColumnType::Int64).not_null(),
                Column::new("state", ColumnType::Int32),
            ],
            key: vec!["id".into()],
        }
    }

    #[tokio::test]
    async fn values_are_replaced_and_the_rest_stays() {
        let map = HashMap::from([("1".to_string(), Some("10".to_string())), ("2".to_string(), None)]);
        let spec = ValueMap::new("state", map);
        assert_eq!(spec.output(&schema()).unwrap(), schema());
        let row = |id: &str, state: Option<&str>| vec![Some(id.to_string()), state.map(ToString::to_string)];
        let rows = [
            row("1", Some("1")),
            row("2", Some("2")),
            row("3", Some("3")),
            row("4", None),
        ];
        let batch = batch(&schema(), &rows).unwrap();
        let batch = ChangeBatch::inserts(Arc::new(TableId::bare("t")), batch, Hold::none());
        let Staged { batches, account, .. } = spec.open().unwrap().apply(batch).await.unwrap();
        let found: Vec<_> = texts(&batches[0].rows)
            .unwrap()
            .into_iter()
            .map(|r| r[1].clone())
            .collect();
        assert_eq!(found, [Some("10".to_string()), None, Some("3".to_string()), None]);
        assert_eq!((account.rows_in, account.rows_out), (4, 4));
    }

    #[test]
    fn what_cannot_be_is_refused_when_planned() {
        let to = |text: &str| HashMap::from([("1".to_string(), Some(text.to_string()))]);
        let code_of = |spec: ValueMap| spec.output(&schema()).unwrap_err().code();
        assert_eq!(code_of(ValueMap::new("stat", to("2"))), code::COLUMN_MISSING);
        assert_eq!(code_of(ValueMap::new("id", to("2"))), code::CONFIG_INVALID);
        assert_eq!(code_of(ValueMap::new("state", to("many"))), code::VALUE_MALFORMED);
    }
}
