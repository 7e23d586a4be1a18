//! Choosing rows on our side: conditions given as data, evaluated on Arrow batches, for sources whose engine has no SQL.
//!
//! Values compare in the order of their type: numbers by value (NaN above everything), times by time, text, uuids and
//! bytes by their bytes. Equal is what has the same canonical form ([`crate::blocks`]).

use crate::blocks::{form_of, is_long, push_field};
use crate::change::{Event, KeyRange};
use crate::error::{Error, Result, code};
use crate::plan::{Partition, ReadColumn, ReadSpec, Slice, Work};
use crate::query::{Comparison, Condition, Filter, KeyList, Term, Test};
use crate::schema::{Column, ColumnType, TableSchema};
use crate::source::{Extent, ReadContext, Source};
use crate::text;
use arrow_array::{Array, BooleanArray, RecordBatch};
use std::cmp::Ordering;
use std::collections::{BTreeSet, HashSet};

/// Refuses, by name, what an engine without expressions cannot read: joins, groups, SQL, columns of other tables.
pub fn columns_only(read: &ReadSpec, engine: &str) -> Result<()> {
    let what = if let Some(join) = read.joins.first() {
        format!("the join with {}", join.table)
    } else if let Some(group) = read.group_by.first() {
        format!("grouping by {group}")
    } else if let Some(Filter::Sql(sql)) = read.filters.iter().find(|f| matches!(f, Filter::Sql(_))) {
        format!("the condition {sql}")
    } else {
        let terms = read.columns.iter().map(ReadColumn::term);
        let tests = read.filters.iter().filter_map(|f| match f {
            Filter::Test(c) => Some(c.term.clone()),
            Filter::Sql(_) => None,
        });
        match terms.chain(tests).find(|t| column_name(read, t).is_none()) {
            Some(term) => format!("the expression {term}"),
            None => return Ok(()),
        }
    };
    Err(Error::new(
        code::UNSUPPORTED,
        format!("{engine} computes nothing: it cannot read {what}"),
    )
    .at("table", read.table.to_string())
    .hint("read plain columns, with filters of the form column, comparison, value; or load the files into a database first"))
}

/// The column of the table read that a term is.
fn column_name<'a>(read: &ReadSpec, term: &'a Term) -> Option<&'a str> {
    match term {
        Term::Column { relation, name } => {
            let own = relation
                .as_deref()
                .is_none_or(|r| r == read.alias.as_deref().unwrap_or(&read.table.name));
            own.then_some(name.as_str())
        }
        Term::Sql(_) => None,
    }
}

/// A value in the order of its type.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Integer(i128),
    Float(f64),
    /// Sign, number of digits before the point, all digits without zeros at either end.
    Decimal(i8, usize, Vec<u8>),
    Bytes(Vec<u8>),
}

impl Value {
    fn new(ty: &ColumnType, value: &str) -> Result<Value> {
        let malformed = || {
            Error::new(
                code::VALUE_MALFORMED,
                format!("a value is not of the type {ty} that it is compared as"),
            )
        };
        let ends = |v: i64| match v {
            i64::MAX => i128::MAX,
            i64::MIN => i128::MIN,
            v => i128::from(v),
        };
        Ok(match ty {
            ColumnType::Bool => Value::Integer(match value {
                "true" | "t" | "1" => 1,
                "false" | "f" | "0" => 0,
                _ => return Err(malformed()),
            }),
            ty if ty.is_integer() => Value::Integer(value.parse().map_err(|_| malformed())?),
            ColumnType::Float32 | ColumnType::Float64 => Value::Float(value.parse().map_err(|_| malformed())?),
            ColumnType::Decimal { .. } | ColumnType::Numeric => decimal(value).ok_or_else(malformed)?,
            ColumnType::Date => match text::parse_date(value).ok_or_else(malformed)? {
                i32::MAX => Value::Integer(i128::MAX),
                i32::MIN => Value::Integer(i128::MIN),
                days => Value::Integer(i128::from(days)),
            },
            ColumnType::Time => Value::Integer(i128::from(text::parse_time(value).ok_or_else(malformed)?)),
            ColumnType::Timestamp => Value::Integer(ends(text::parse_timestamp(value, false).ok_or_else(malformed)?)),
            ColumnType::TimestampTz => Value::Integer(ends(text::parse_timestamp(value, true).ok_or_else(malformed)?)),
            ColumnType::Char { .. } => Value::Bytes(value.trim_end_matches(' ').as_bytes().to_vec()),
            ColumnType::Uuid => Value::Bytes(value.to_ascii_lowercase().into_bytes()),
            ColumnType::Bytes => Value::Bytes(
                value
                    .strip_prefix("\\x")
                    .ok_or_else(malformed)?
                    .to_ascii_lowercase()
                    .into_bytes(),
            ),
            _ => Value::Bytes(value.as_bytes().to_vec()),
        })
    }

    fn compare(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Integer(a), Value::Integer(b)) => a.cmp(b),
            (Value::Float(a), Value::Float(b)) => a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan())),
            (Value::Decimal(s, n, d), Value::Decimal(t, m, e)) => s.cmp(t).then_with(|| {
                let size = n.cmp(m).then_with(|| d.cmp(e));
                if *s < 0 { size.reverse() } else { size }
            }),
            (Value::Bytes(a), Value::Bytes(b)) => a.cmp(b),
            _ => Ordering::Equal,
        }
    }
}

/// How two canonical texts of a type compare; `None` where one of them is no value of it.
pub(crate) fn compared(ty: &ColumnType, a: &str, b: &str) -> Option<Ordering> {
    Some(Value::new(ty, a).ok()?.compare(&Value::new(ty, b).ok()?))
}

fn decimal(value: &str) -> Option<Value> {
    match value {
        "NaN" => return Some(Value::Decimal(3, 0, Vec::new())),
        "Infinity" => return Some(Value::Decimal(2, 0, Vec::new())),
        "-Infinity" => return Some(Value::Decimal(-2, 0, Vec::new())),
        _ => {}
    }
    let (sign, digits) = value.strip_prefix('-').map_or((1, value), |d| (-1, d));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let whole = whole.trim_start_matches('0');
    let all = format!("{whole}{fraction}");
    let digits = all.trim_end_matches('0');
    if digits.is_empty() {
        return Some(Value::Decimal(0, 0, Vec::new()));
    }
    Some(Value::Decimal(sign, whole.len(), digits.as_bytes().to_vec()))
}

/// Whether every engine orders values of a type alike.
fn has_order(ty: &ColumnType) -> bool {
    !is_long(ty) || matches!(ty, ColumnType::Text { .. } | ColumnType::Char { .. })
}

fn ordered(term: &Term, ty: &ColumnType) -> Result<()> {
    if has_order(ty) {
        return Ok(());
    }
    Err(Error::new(
        code::UNSUPPORTED,
        format!("{term} is of type {ty}, which has no order that engines share"),
    )
    .hint("compare for equality, or choose another column"))
}

/// A condition with its values read.
#[derive(Debug)]
enum Check {
    Range(usize, ColumnType, Option<Value>, Option<Value>),
    Compare(usize, ColumnType, Comparison, Value),
    In(usize, ColumnType, HashSet<Vec<u8>>),
    NotIn(usize, ColumnType, HashSet<Vec<u8>>),
    Null(usize, bool),
    NullOr(usize, Box<Check>),
    /// `lower <= key < upper`, part by part.
    Key(Vec<(usize, ColumnType)>, Option<Vec<Value>>, Option<Vec<Value>>),
    Keys(Vec<(usize, ColumnType)>, HashSet<Vec<u8>>),
}

/// What must be read and asked so that only the rows of a slice come out.
#[derive(Debug)]
pub struct Selection {
    /// The columns to read: those wanted, then those that only conditions need.
    pub columns: Vec<ReadColumn>,
    wanted: usize,
    checks: Vec<Check>,
}

impl Selection {
    /// The filters of `read` and the conditions of `slice`. `table` is the table as it is described.
    pub fn new(read: &ReadSpec, slice: &Slice, table: &TableSchema, engine: &str) -> Result<Selection> {
        columns_only(read, engine)?;
        let mut selection = Selection {
            columns: read.columns.clone(),
            wanted: read.columns.len(),
            checks: Vec::new(),
        };
        let tests = read.filters.iter().filter_map(|f| match f {
            Filter::Test(c) => Some(c),
            Filter::Sql(_) => None,
        });
        for condition in tests {
            let (_, ty) = selection.place(read, table, &condition.term)?;
            let check = selection.check(read, table, &condition.as_written(&ty))?;
            selection.checks.push(check);
        }
        match slice {
            Slice::All | Slice::File { .. } => {}
            Slice::Key(range) => selection.range(read, table, range)?,
            Slice::Cut(cut) => {
                for condition in &cut.conditions {
                    let check = selection.check(read, table, condition)?;
                    selection.checks.push(check);
                }
                if let Some(range) = &cut.key {
                    selection.range(read, table, range)?;
                }
            }
            Slice::Keys(list) => selection.keys(read, table, list)?,
        }
        Ok(selection)
    }

    /// The place of a column among those read, and its type.
    fn place(&mut self, read: &ReadSpec, table: &TableSchema, term: &Term) -> Result<(usize, ColumnType)> {
        let name = column_name(read, term)
            .ok_or_else(|| Error::new(code::UNSUPPORTED, format!("{term} is not a column of {}", read.table)))?;
        let is = |c: &ReadColumn| c.term() == Term::column(name) || c.term.as_ref() == Some(term);
        if let Some(at) = self.columns.iter().position(is) {
            return Ok((at, self.columns[at].column.ty.clone()));
        }
        let found = table.must_column(name, &read.table)?;
        self.columns.push(ReadColumn::plain(name, found.clone()));
        Ok((self.columns.len() - 1, found.ty.clone()))
    }

    fn check(&mut self, read: &ReadSpec, table: &TableSchema, condition: &Condition) -> Result<Check> {
        let term = &condition.term;
        let (at, ty) = self.place(read, table, term)?;
        let value = |v: &String| Value::new(&ty, v).map_err(|e| e.at("column", term.to_string()));
        Ok(match &condition.test {
            Test::Range { lower, upper } => {
                ordered(term, &ty)?;
                let (lower, upper) = (
                    lower.as_ref().map(value).transpose()?,
                    upper.as_ref().map(value).transpose()?,
                );
                Check::Range(at, ty.clone(), lower, upper)
            }
            Test::In(values) => {
                let forms = values.iter().map(|v| form(&ty, Some(v))).collect::<Result<_>>()?;
                Check::In(at, ty.clone(), forms)
            }
            Test::NotIn(values) => {
                let forms = values.iter().map(|v| form(&ty, Some(v))).collect::<Result<_>>()?;
                Check::NotIn(at, ty.clone(), forms)
            }
            Test::Compare(how, v) => {
                if !matches!(how, Comparison::Equal | Comparison::NotEqual) {
                    ordered(term, &ty)?;
                }
                Check::Compare(at, ty.clone(), *how, value(v)?)
            }
            Test::Null => Check::Null(at, true),
            Test::NotNull => Check::Null(at, false),
            Test::NullOrIn(_) | Test::NullOrNotIn(_) | Test::NullOrRange { .. } => {
                Check::NullOr(at, Box::new(self.check(read, table, &condition.without_null())?))
            }
        })
    }

    fn range(&mut self, read: &ReadSpec, table: &TableSchema, range: &KeyRange) -> Result<()> {
        let mut places = Vec::new();
        for name in &range.columns {
            let term = Term::column(name);
            let (at, ty) = self.place(read, table, &term)?;
            ordered(&term, &ty)?;
            places.push((at, ty));
        }
        let bound = |values: &Option<Vec<String>>| -> Result<Option<Vec<Value>>> {
            let Some(values) = values else { return Ok(None) };
            if values.len() != places.len() {
                return Err(Error::bug("a range's bound has another number of columns"));
            }
            let parts = places.iter().zip(values).map(|((_, ty), v)| Value::new(ty, v));
            parts.collect::<Result<_>>().map(Some)
        };
        let (lower, upper) = (bound(&range.lower)?, bound(&range.upper)?);
        self.checks.push(Check::Key(places, lower, upper));
        Ok(())
    }

    fn keys(&mut self, read: &ReadSpec, table: &TableSchema, list: &KeyList) -> Result<()> {
        let places = list
            .terms
            .iter()
            .map(|t| self.place(read, table, t))
            .collect::<Result<Vec<_>>>()?;
        let mut forms = HashSet::new();
        for key in &list.keys {
            if key.len() != places.len() {
                return Err(Error::bug("a key has another number of parts than its list has terms"));
            }
            let types = places.iter().map(|(_, ty)| ty);
            forms.insert(form_of(types.zip(key.iter().map(Option::as_deref)))?);
        }
        self.checks.push(Check::Keys(places, forms));
        Ok(())
    }

    /// Whether every row is taken.
    pub fn takes_all(&self) -> bool {
        self.checks.is_empty()
    }

    /// The rows that meet every condition, in the columns wanted. `rows` has [`Selection::columns`].
    pub fn apply(&self, rows: &RecordBatch) -> Result<RecordBatch> {
        let wanted: Vec<usize> = (0..self.wanted).collect();
        let arrow = |e: arrow_schema::ArrowError| Error::bug(format!("choosing rows: {e}"));
        if self.takes_all() {
            return rows.project(&wanted).map_err(arrow);
        }
        let mut keep = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            let mut all = true;
            for check in &self.checks {
                if !check.holds(rows, row)? {
                    all = false;
                    break;
                }
            }
            keep.push(all);
        }
        let rows = rows.project(&wanted).map_err(arrow)?;
        let kept: Vec<usize> = keep.iter().enumerate().filter(|(_, k)| **k).map(|(i, _)| i).collect();
        if kept.len() == rows.num_rows() {
            return Ok(rows);
        }
        arrow_select::filter::filter_record_batch(&rows, &BooleanArray::from(keep)).map_err(arrow)
    }
}

fn form(ty: &ColumnType, value: Option<&str>) -> Result<Vec<u8>> {
    form_of([(ty, value)])
}

fn cell(rows: &RecordBatch, at: usize, ty: &ColumnType, row: usize) -> Result<Option<Value>> {
    text::cell(rows.column(at), row)?
        .map(|v| Value::new(ty, &v))
        .transpose()
}

fn compare_all(a: &[Value], b: &[Value]) -> Ordering {
    a.iter()
        .zip(b)
        .map(|(a, b)| a.compare(b))
        .find(|o| o.is_ne())
        .unwrap_or(Ordering::Equal)
}

impl Check {
    fn holds(&self, rows: &RecordBatch, row: usize) -> Result<bool> {
        Ok(match self {
            Check::Null(at, null) => rows.column(*at).is_null(row) == *null,
            Check::NullOr(at, other) => rows.column(*at).is_null(row) || other.holds(rows, row)?,
            Check::Range(at, ty, lower, upper) => cell(rows, *at, ty, row)?.is_some_and(|v| {
                lower.as_ref().is_none_or(|l| v.compare(l).is_ge())
                    && upper.as_ref().is_none_or(|u| v.compare(u).is_lt())
            }),
            Check::Compare(at, ty, how, value) => cell(rows, *at, ty, row)?.is_some_and(|v| {
                let found = v.compare(value);
                match how {
                    Comparison::Equal => found.is_eq(),
                    Comparison::NotEqual => found.is_ne(),
                    Comparison::Less => found.is_lt(),
                    Comparison::LessOrEqual => found.is_le(),
                    Comparison::Greater => found.is_gt(),
                    Comparison::GreaterOrEqual => found.is_ge(),
                }
            }),
            Check::In(at, ty, forms) => match text::cell(rows.column(*at), row)? {
                Some(v) => forms.contains(&form(ty, Some(&v))?),
                None => false,
            },
            Check::NotIn(at, ty, forms) => match text::cell(rows.column(*at), row)? {
                Some(v) => !forms.contains(&form(ty, Some(&v))?),
                None => false,
            },
            Check::Key(places, lower, upper) => {
                let mut key = Vec::with_capacity(places.len());
                for (at, ty) in places {
                    match cell(rows, *at, ty, row)? {
                        Some(v) => key.push(v),
                        None => return Ok(false),
                    }
                }
                lower.as_ref().is_none_or(|l| compare_all(&key, l).is_ge())
                    && upper.as_ref().is_none_or(|u| compare_all(&key, u).is_lt())
            }
            Check::Keys(places, forms) => {
                let mut out = Vec::new();
                for (at, ty) in places {
                    push_field(&mut out, ty, text::cell(rows.column(*at), row)?.as_deref())?;
                }
                forms.contains(&out)
            }
        })
    }
}

/// Reads some terms of a slice, row by row, as texts.
async fn each(
    source: &dyn Source,
    read: &ReadSpec,
    terms: &[Term],
    slice: &Slice,
    mut take: impl FnMut(&[Column], Vec<Option<String>>) -> Result<bool> + Send,
) -> Result<()> {
    let mut columns: Vec<ReadColumn> = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let name = column_name(read, term).unwrap_or_default();
        columns.push(ReadColumn {
            source: name.to_string(),
            term: Some(term.clone()),
            column: Column::new(format!("{name}_{i}"), ColumnType::Native),
        });
    }
    let mut read = ReadSpec {
        columns,
        raw: None,
        ..read.clone()
    };
    let described = source.describe_query(&read).await?;
    for (column, found) in read.columns.iter_mut().zip(&described) {
        column.term = None;
        column.column = Column {
            name: column.column.name.clone(),
            ..found.clone()
        };
    }
    let partition = Partition::new("look", Work::Read(slice.clone()));
    let mut reader = source.open(&read, &partition, None, &ReadContext::default()).await?;
    while let Some(event) = reader.next().await? {
        let Event::Rows(batch) = event else { continue };
        for row in 0..batch.len() {
            let texts = batch.rows.columns().iter().map(|c| text::cell(c, row));
            if !take(&described, texts.collect::<Result<_>>()?)? {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// [`Source::extent`] by reading every row of the slice.
pub async fn extent_by_reading(
    source: &dyn Source,
    read: &ReadSpec,
    term: &Term,
    slice: &Slice,
) -> Result<Option<Extent>> {
    let mut found: Option<[(Value, String); 2]> = None;
    each(source, read, std::slice::from_ref(term), slice, |columns, row| {
        ordered(term, &columns[0].ty)?;
        let Some(text) = row.into_iter().next().flatten() else {
            return Ok(true);
        };
        let value = Value::new(&columns[0].ty, &text)?;
        match &mut found {
            None => found = Some([(value.clone(), text.clone()), (value, text)]),
            Some([min, _]) if value.compare(&min.0).is_lt() => *min = (value, text),
            Some([_, max]) if value.compare(&max.0).is_gt() => *max = (value, text),
            Some(_) => {}
        }
        Ok(true)
    })
    .await?;
    Ok(found.map(|[min, max]| Extent { min: min.1, max: max.1 }))
}

/// [`Source::distinct`] by reading every row of the slice, in the order of the texts.
pub async fn distinct_by_reading(
    source: &dyn Source,
    read: &ReadSpec,
    terms: &[Term],
    slice: &Slice,
    limit: usize,
) -> Result<Vec<Vec<Option<String>>>> {
    let mut found = BTreeSet::new();
    each(source, read, terms, slice, |_, row| {
        found.insert(row);
        Ok(found.len() < limit)
    })
    .await?;
    Ok(found.into_iter().take(limit).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::query::Cut;
    use crate::schema::TableId;
    use crate::testing::rows::{batch, texts};

    fn table() -> TableSchema {
        TableSchema {
            columns: vec![
                Column::new("id", ColumnType::Int64).not_null(),
                Column::new("price", ColumnType::Numeric),
                Column::new("at", ColumnType::TimestampTz),
                Column::new("f", ColumnType::Float64),
                Column::new("j", ColumnType::Json),
            ],
            key: vec!["id".into()],
        }
    }

    /// The ids of the rows that meet a condition.
    fn ids(conditions: &[(&str, Test)]) -> Vec<String> {
        let table = table();
        let rows: Vec<Vec<Option<String>>> = [
            ["1", "1.10", "2024-01-01 00:00:00+00", "-0", "1"],
            ["2", "-12.5", "infinity", "NaN", "2"],
            ["3", "NaN", "0044-03-15 00:00:00+00 BC", "Infinity", "1"],
            ["10", "9", "NULL", "NULL", "NULL"],
            ["-4", "100", "2024-01-01 00:00:00.5+00", "2", "1"],
        ]
        .iter()
        .map(|r| r.iter().map(|c| (*c != "NULL").then(|| c.to_string())).collect())
        .collect();
        let mut read = ReadSpec::all(TableId::bare("t"), &table.columns[..1]);
        read.alias = Some("x".into());
        let slice = Slice::Cut(Cut {
            conditions: conditions
                .iter()
                .map(|(name, test)| Condition {
                    term: Term::Column {
                        relation: Some("x".into()),
                        name: name.to_string(),
                    },
                    test: test.clone(),
                })
                .collect(),
            key: None,
        });
        let selection = Selection::new(&read, &slice, &table, "memory").unwrap();
        let all = batch(&table, &rows).unwrap();
        let places: Vec<usize> = selection
            .columns
            .iter()
            .map(|c| table.index_of(&c.source).unwrap())
            .collect();
        let chosen = selection.apply(&all.project(&places).unwrap()).unwrap();
        assert_eq!(chosen.num_columns(), 1);
        texts(&chosen)
            .unwrap()
            .into_iter()
            .map(|r| r[0].clone().unwrap())
            .collect()
    }

    fn range(lower: Option<&str>, upper: Option<&str>) -> Test {
        Test::Range {
            lower: lower.map(Into::into),
            upper: upper.map(Into::into),
        }
    }

    #[test]
    fn values_compare_as_their_type_does() {
        assert_eq!(ids(&[("id", range(Some("2"), Some("10")))]), ["2", "3"]);
        assert_eq!(ids(&[("price", range(Some("-12.50"), Some("10")))]), ["1", "2", "10"]);
        assert_eq!(ids(&[("price", range(Some("100.0"), None))]), ["3", "-4"]);
        assert_eq!(
            ids(&[("at", range(None, Some("2024-01-01 00:00:00.5+00")))]),
            ["1", "3"]
        );
        assert_eq!(ids(&[("at", range(Some("9999-12-31 00:00:00+00"), None))]), ["2"]);
        assert_eq!(ids(&[("f", Test::Compare(Comparison::Equal, "0".into()))]), ["1"]);
        assert_eq!(
            ids(&[("f", Test::Compare(Comparison::Greater, "2".into()))]),
            ["2", "3"]
        );
        assert_eq!(
            ids(&[("price", Test::In(vec!["1.1".into(), "9.0".into()]))]),
            ["1", "10"]
        );
        assert_eq!(ids(&[("at", Test::Null), ("id", Test::NotNull)]), ["10"]);
        assert_eq!(ids(&[("j", Test::Compare(Comparison::NotEqual, "1".into()))]), ["2"]);
        assert_eq!(ids(&[]).len(), 5);
    }

    #[test]
    fn values_of_filters_may_be_written_as_people_write_them() {
        let table = table();
        let mut read = ReadSpec::all(TableId::bare("t"), &table.columns);
        read.filters = vec![Filter::Test(Condition {
            term: Term::column("at"),
            test: Test::Compare(Comparison::GreaterOrEqual, "2024-01-01".into()),
        })];
        let selection = Selection::new(&read, &Slice::All, &table, "memory").unwrap();
        let row = |at: &str| vec![Some("1".to_owned()), None, Some(at.to_owned()), None, None];
        let rows = [row("2023-12-31 23:59:59+00"), row("2024-01-01 00:00:00+00")];
        let chosen = selection.apply(&batch(&table, &rows).unwrap()).unwrap();
        assert_eq!(texts(&chosen).unwrap()[0][2].as_deref(), Some("2024-01-01 00:00:00+00"));
        assert_eq!(chosen.num_rows(), 1);
    }

    #[test]
    fn keys_are_found_by_value_and_by_null() {
        let table = table();
        let read = ReadSpec::all(TableId::bare("t"), &table.columns);
        let list = KeyList {
            terms: vec![Term::column("price"), Term::column("j")],
            keys: vec![
                vec![Some("1.1".into()), Some("1".into())],
                vec![Some("9.00".into()), None],
            ],
        };
        let selection = Selection::new(&read, &Slice::Keys(list), &table, "memory").unwrap();
        let some = |t: &str| Some(t.to_string());
        let rows = batch(
            &table,
            &[
                vec![some("1"), some("1.10"), None, None, some("1")],
                vec![some("2"), some("1.10"), None, None, None],
                vec![some("3"), some("9"), None, None, None],
            ],
        )
        .unwrap();
        let chosen = texts(&selection.apply(&rows).unwrap()).unwrap();
        assert_eq!(
            chosen.iter().map(|r| r[0].clone().unwrap()).collect::<Vec<_>>(),
            ["1", "3"]
        );
    }

    #[test]
    fn what_cannot_be_computed_is_refused_by_name() {
        let table = table();
        let plain = ReadSpec::all(TableId::bare("t"), &table.columns);
        let named = |change: &dyn Fn(&mut ReadSpec)| {
            let mut read = plain.clone();
            change(&mut read);
            let e = Selection::new(&read, &Slice::All, &table, "parquet").unwrap_err();
            assert_eq!(e.code(), code::UNSUPPORTED);
            e.to_string()
        };
        assert!(named(&|r| r.filters.push(Filter::Sql("id > 3".into()))).contains("id > 3"));
        assert!(named(&|r| r.columns[1].term = Some(Term::Sql("id + 1".into()))).contains("id + 1"));
        assert!(named(&|r| r.group_by.push("id".into())).contains("grouping by id"));
        let order = Slice::Cut(Cut {
            conditions: vec![Condition {
                term: Term::column("j"),
                test: range(Some("1"), None),
            }],
            key: None,
        });
        let e = Selection::new(&plain, &order, &table, "parquet").unwrap_err();
        assert!(e.to_string().contains("no order"), "{e}");
    }
}
