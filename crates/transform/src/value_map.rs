//! Replaces values of a column by others (`value_map` of the original).

use crate::chain::Step;
use crate::rows::PerSchema;
use arrow_array::{Array, ArrayRef, RecordBatch};
use async_trait::async_trait;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use synctool_core::blocks::{form_of, is_long};
use synctool_core::change::ChangeBatch;
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableSchema};
use synctool_core::stage::{Stage, Staged};
use synctool_core::text::{self, ColumnBuilder};
use synctool_core::written::{canonical, is_value};

/// Values of one column and what stands for them; others stay. Values are canonical texts ([`synctool_core::text`]).
#[derive(Debug, Clone)]
pub struct ValueMap {
    column: String,
    mapping: Arc<HashMap<String, Option<String>>>,
    /// Where what stands for a value is written.
    places: Arc<BTreeMap<String, String>>,
    /// Whether the column may not become longer.
    fixed: bool,
}

impl ValueMap {
    /// Maps values of a column; `None` is NULL.
    pub fn new(column: impl Into<String>, mapping: HashMap<String, Option<String>>) -> Self {
        ValueMap {
            column: column.into(),
            mapping: Arc::new(mapping),
            places: Arc::default(),
            fixed: false,
        }
    }

    /// The same, with the places of what stands for values, and whether the column's length was said.
    #[must_use]
    pub fn written(self, places: BTreeMap<String, String>, fixed: bool) -> Self {
        ValueMap {
            places: Arc::new(places),
            fixed,
            ..self
        }
    }

    /// Says that what stands for a value has no place in the column.
    fn misfit(&self, value: &str, column: &Column) -> Error {
        let place = self
            .places
            .get(value)
            .map_or(String::new(), |place| format!("{place}: "));
        Error::new(
            code::CONFIG_TYPE,
            format!(
                "{place}value_map: this is no value of column {}, which is {}",
                self.column, column.ty
            ),
        )
        .hint("write a value of the column's type, or give the column one that has room for it (data_type: text)")
    }

    /// What the map means for one of these columns.
    fn plan(&self, columns: Vec<Column>) -> Result<Plan> {
        let place = columns.iter().position(|c| c.name == self.column);
        let place = place.ok_or_else(|| Error::bug("value_map: the column is gone"))?;
        let ty = &columns[place].ty;
        let by_form = |(value, to): (&String, &Option<String>)| Some((form(ty, &canonical(value, ty)?)?, to.clone()));
        let equal = match is_long(ty) {
            // A text is only what it says.
            true => HashMap::new(),
            false => self.mapping.iter().filter_map(by_form).collect(),
        };
        Ok(Plan {
            place,
            column: columns[place].clone(),
            equal,
        })
    }

    fn map(&self, array: &ArrayRef, plan: &Plan) -> Result<ArrayRef> {
        let ty = &plan.column.ty;
        let mut builder = ColumnBuilder::new(&plan.column);
        let mut cell = String::new();
        for row in 0..array.len() {
            if array.is_null(row) {
                builder.append_null();
                continue;
            }
            cell.clear();
            text::write_cell(&mut cell, array, row)?;
            // Nobody need write the blanks that pad a char.
            let unpadded = || match ty {
                ColumnType::Char { .. } => self.mapping.get(cell.trim_end_matches(' ')),
                _ => None,
            };
            let written_otherwise = || match plan.equal.is_empty() {
                false => plan.equal.get(&form(ty, &cell)?),
                true => None,
            };
            match self.mapping.get(&cell).or_else(unpadded).or_else(written_otherwise) {
                None => builder.append_text(&cell)?,
                Some(to) => builder.append_cell(to.as_deref())?,
            }
        }
        Ok(builder.finish())
    }
}

impl Step for ValueMap {
    fn output(&self, input: &TableSchema) -> Result<TableSchema> {
        let mut output = input.clone();
        let column = output.column_mut(&self.column).ok_or_else(|| {
            let known: Vec<&str> = input.columns.iter().map(|c| c.name.as_str()).collect();
            Error::no_column(
                Among::Rows,
                &self.column,
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
            )
            .hint("compute another column from it, or name a `key` without it"));
        }
        // Every new value must have a place in the column.
        let mut all: Vec<(&String, &String)> = self
            .mapping
            .iter()
            .filter_map(|(k, to)| Some((k, to.as_ref()?)))
            .collect();
        all.sort_unstable();
        for (value, to) in all {
            match with_room(&column.ty, to) {
                Some(ty) if ty == column.ty => {}
                Some(ty) if !self.fixed => (column.ty, column.source_type) = (ty, None),
                _ => return Err(self.misfit(value, column)),
            }
        }
        Ok(output)
    }

    fn open(&self) -> Result<Box<dyn Stage>> {
        Ok(Box::new(Mapping {
            config: self.clone(),
            plan: PerSchema::default(),
        }))
    }

    fn reads(&self) -> Vec<String> {
        vec![self.column.clone()]
    }

    fn makes(&self) -> Vec<String> {
        self.reads()
    }

    fn written_at(&self, column: &str) -> Option<String> {
        (self.column == column).then(|| self.places.values().next().cloned())?
    }
}

/// A value in the form that all texts of it have in common; `None` if it is no value of the type.
fn form(ty: &ColumnType, value: &str) -> Option<Vec<u8>> {
    form_of([(ty, Some(value))]).ok()
}

/// The type that has room for what a column holds and for this: a text may become longer. `None` where it is no value of
/// its kind.
fn with_room(ty: &ColumnType, value: &str) -> Option<ColumnType> {
    let length = u32::try_from(value.chars().count()).unwrap_or(u32::MAX);
    match ty {
        ColumnType::Text { max: Some(max) } | ColumnType::Char { length: max } if length > *max => {
            Some(ColumnType::Text { max: Some(length) })
        }
        _ => is_value(value, ty).then(|| ty.clone()),
    }
}

struct Mapping {
    config: ValueMap,
    plan: PerSchema<Plan>,
}

/// What a map means for a column.
struct Plan {
    place: usize,
    column: Column,
    /// What stands for values, by the form that equal values have in common: `1` means `1.00`, too.
    equal: HashMap<Vec<u8>, Option<String>>,
}

#[async_trait]
impl Stage for Mapping {
    fn name(&self) -> &str {
        "value_map"
    }

    async fn apply(&mut self, mut batch: ChangeBatch) -> Result<Staged> {
        let schema = batch.rows.schema();
        let config = &self.config;
        let plan = self.plan.get(&schema, |columns| config.plan(columns))?;
        let mut arrays = batch.rows.columns().to_vec();
        arrays[plan.place] = config.map(&arrays[plan.place], plan)?;
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

    #[tokio::test]
    async fn equal_values_are_one_however_they_are_written() {
        let cents = ColumnType::Decimal { precision: 6, scale: 2 };
        for (ty, written, cells, wanted) in [
            (cents, "5", ["5.00", "6.00"], ["1.00", "6.00"]),
            (ColumnType::Float64, "5.0", ["5", "5.5"], ["1", "5.5"]),
            (ColumnType::Int32, "05", ["5", "50"], ["1", "50"]),
            (ColumnType::Text { max: None }, "5", ["5.00", "5"], ["5.00", "1"]),
        ] {
            let map = HashMap::from([(written.to_string(), Some("1".to_string()))]);
            let mut schema = schema();
            schema.columns[1] = Column::new("state", ty.clone());
            let rows = cells.map(|state| vec![Some("1".to_string()), Some(state.to_string())]);
            let batch = batch(&schema, &rows).unwrap();
            let batch = ChangeBatch::inserts(Arc::new(TableId::bare("t")), batch, Hold::none());
            let mut stage = ValueMap::new("state", map).open().unwrap();
            let staged = stage.apply(batch).await.unwrap();
            let found: Vec<_> = texts(&staged.batches[0].rows)
                .unwrap()
                .into_iter()
                .map(|r| r[1].clone().unwrap())
                .collect();
            assert_eq!(found, wanted, "{ty}");
        }
    }

    /// PostgreSQL gives a char with the blanks that pad it; a value that stays keeps them.
    #[tokio::test]
    async fn blanks_that_pad_a_char_do_not_count() {
        let map = HashMap::from([("active".to_string(), Some("A".to_string()))]);
        for (ty, wanted) in [
            (ColumnType::Char { length: 10 }, "A"),
            (ColumnType::Text { max: None }, "active    "),
        ] {
            let mut schema = schema();
            schema.columns[1] = Column::new("state", ty);
            let rows = ["active    ", "gone      "].map(|state| vec![Some("1".to_string()), Some(state.to_string())]);
            let batch = batch(&schema, &rows).unwrap();
            let batch = ChangeBatch::inserts(Arc::new(TableId::bare("t")), batch, Hold::none());
            let mut stage = ValueMap::new("state", map.clone()).open().unwrap();
            let staged = stage.apply(batch).await.unwrap();
            let found: Vec<_> = texts(&staged.batches[0].rows)
                .unwrap()
                .into_iter()
                .map(|r| r[1].clone())
                .collect();
            assert_eq!(found, [Some(wanted.to_string()), Some("gone      ".to_string())]);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_when_planned() {
        let to = |text: &str| HashMap::from([("1".to_string(), Some(text.to_string()))]);
        let code_of = |spec: ValueMap| {
            let error = spec.output(&schema()).unwrap_err();
            assert!(error.next_step().is_some(), "{error}");
            error.code()
        };
        assert_eq!(code_of(ValueMap::new("stat", to("2"))), code::COLUMN_MISSING);
        assert_eq!(code_of(ValueMap::new("id", to("2"))), code::CONFIG_INVALID);
        assert_eq!(code_of(ValueMap::new("state", to("many"))), code::CONFIG_TYPE);
    }

    /// The same whatever form the column travels in, with the place of the first one.
    #[test]
    fn what_is_no_value_is_told_at_its_place() {
        let map = HashMap::from(["1", "2"].map(|k| (k.to_string(), Some("many".to_string()))));
        let places = BTreeMap::from([("1", "p.yaml:3:9"), ("2", "p.yaml:3:18")].map(|(k, p)| (k.into(), p.into())));
        let mut schema = schema();
        schema.columns[1] = text::as_text(Column::new("state", ColumnType::Numeric));
        let e = ValueMap::new("state", map)
            .written(places, false)
            .output(&schema)
            .unwrap_err();
        assert!(e.message().starts_with("p.yaml:3:9: value_map:"), "{e}");
        assert!(!e.to_string().contains("many"), "{e}");
    }

    #[test]
    fn a_text_becomes_longer_unless_its_length_was_said() {
        let map = || HashMap::from([("A".to_string(), Some("active".to_string()))]);
        let mut schema = schema();
        for short in [ColumnType::Text { max: Some(1) }, ColumnType::Char { length: 1 }] {
            schema.columns[1] = Column::new("state", short);
            let output = ValueMap::new("state", map()).output(&schema).unwrap();
            assert_eq!(output.columns[1].ty, ColumnType::Text { max: Some(6) });
            let fixed = ValueMap::new("state", map()).written(BTreeMap::new(), true);
            assert_eq!(fixed.output(&schema).unwrap_err().code(), code::CONFIG_TYPE);
        }
    }
}
