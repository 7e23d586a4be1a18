//! Which row groups of a Parquet file can hold rows of some keys, by the smallest and largest value that the file says
//! of each (Parquet's `ColumnIndex` and `Statistics`; only the latter are used, which every writer of today writes).

use super::parquet::parquet_error;
use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Date32Type, Int8Type, Int16Type, Int32Type, Int64Type, Time64MicrosecondType,
    TimestampMicrosecondType, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use parquet::arrow::parquet_to_arrow_schema;
use parquet::file::metadata::{FileMetaData, ParquetMetaData, RowGroupMetaData};
use parquet::file::statistics::Statistics;
use std::collections::HashMap;
use std::path::Path;
use synctool_core::error::Result;

/// A value in an order that its type and Parquet's statistics have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Point {
    Int(i128),
    Bytes(Vec<u8>),
}

/// The values of one key column, sorted: what is looked for.
#[derive(Debug)]
pub(super) struct Wanted {
    column: String,
    ty: DataType,
    points: Vec<Point>,
}

impl Wanted {
    /// The values of a column; `None` for a type whose order is not the one of the statistics.
    pub(super) fn of(column: &str, array: &ArrayRef) -> Option<Wanted> {
        let rows = (0..array.len()).filter(|row| array.is_valid(*row));
        let mut points: Vec<Point> = match array.data_type() {
            DataType::Int8 => ints::<Int8Type>(array, rows),
            DataType::Int16 => ints::<Int16Type>(array, rows),
            DataType::Int32 => ints::<Int32Type>(array, rows),
            DataType::Int64 => ints::<Int64Type>(array, rows),
            DataType::UInt8 => ints::<UInt8Type>(array, rows),
            DataType::UInt16 => ints::<UInt16Type>(array, rows),
            DataType::UInt32 => ints::<UInt32Type>(array, rows),
            DataType::UInt64 => ints::<UInt64Type>(array, rows),
            DataType::Date32 => ints::<Date32Type>(array, rows),
            DataType::Time64(TimeUnit::Microsecond) => ints::<Time64MicrosecondType>(array, rows),
            DataType::Timestamp(TimeUnit::Microsecond, _) => ints::<TimestampMicrosecondType>(array, rows),
            DataType::Utf8 => {
                let values = array.as_string::<i32>();
                rows.map(|r| Point::Bytes(values.value(r).as_bytes().to_vec()))
                    .collect()
            }
            DataType::Binary => {
                let values = array.as_binary::<i32>();
                rows.map(|r| Point::Bytes(values.value(r).to_vec())).collect()
            }
            DataType::FixedSizeBinary(_) => {
                let values = array.as_fixed_size_binary();
                rows.map(|r| Point::Bytes(values.value(r).to_vec())).collect()
            }
            _ => return None,
        };
        points.sort_unstable();
        points.dedup();
        Some(Wanted {
            column: column.to_string(),
            ty: array.data_type().clone(),
            points,
        })
    }

    /// Whether a row group may hold one of the values. What is not known may be.
    fn may_be_in(&self, group: &RowGroupMetaData) -> bool {
        let leaf = group
            .columns()
            .iter()
            .find(|c| c.column_path().parts() == [self.column.as_str()]);
        let Some((min, max)) = leaf.and_then(|c| c.statistics()).and_then(|s| range(s, &self.ty)) else {
            return true;
        };
        let first = self.points.partition_point(|p| *p < min);
        self.points.get(first).is_some_and(|p| *p <= max)
    }
}

fn ints<T: ArrowPrimitiveType>(array: &ArrayRef, rows: impl Iterator<Item = usize>) -> Vec<Point>
where
    T::Native: Into<i128>,
{
    let values = array.as_primitive::<T>();
    rows.map(|row| Point::Int(values.value(row).into())).collect()
}

/// The smallest and largest value of a column chunk; a text may be cut, and then they are bounds all the same.
fn range(statistics: &Statistics, ty: &DataType) -> Option<(Point, Point)> {
    if statistics.is_min_max_deprecated() {
        return None;
    }
    let unsigned = matches!(
        ty,
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64
    );
    let narrow = |v: &i32| match unsigned {
        true => Point::Int(i128::from(*v as u32)),
        false => Point::Int(i128::from(*v)),
    };
    let wide = |v: &i64| match unsigned {
        true => Point::Int(i128::from(*v as u64)),
        false => Point::Int(i128::from(*v)),
    };
    match statistics {
        Statistics::Int32(s) => Some((narrow(s.min_opt()?), narrow(s.max_opt()?))),
        Statistics::Int64(s) => Some((wide(s.min_opt()?), wide(s.max_opt()?))),
        Statistics::ByteArray(_) | Statistics::FixedLenByteArray(_) => Some((
            Point::Bytes(statistics.min_bytes_opt()?.to_vec()),
            Point::Bytes(statistics.max_bytes_opt()?.to_vec()),
        )),
        _ => None,
    }
}

/// A run of row groups: the first, the one behind the last, and how many rows of the file stand before them.
pub(super) type Run = (usize, usize, u64);

/// The row groups that may hold rows whose key columns have these values.
pub(super) fn runs(path: &Path, footer: &ParquetMetaData, wanted: &[Wanted]) -> Result<Vec<Run>> {
    let types = decoded(path, footer.file_metadata())?;
    let usable: Vec<&Wanted> = wanted
        .iter()
        .filter(|w| types.get(w.column.as_str()) == Some(&w.ty))
        .collect();
    let mut runs: Vec<Run> = Vec::new();
    let mut before = 0;
    for (i, group) in footer.row_groups().iter().enumerate() {
        if usable.iter().all(|w| w.may_be_in(group)) {
            match runs.last_mut() {
                Some(run) if run.1 == i => run.1 = i + 1,
                _ => runs.push((i, i + 1, before)),
            }
        }
        before += group.num_rows().max(0) as u64;
    }
    Ok(runs)
}

/// The types that a file's columns have by themselves, without anything that a writer says beside.
pub(super) fn decoded(path: &Path, meta: &FileMetaData) -> Result<HashMap<String, DataType>> {
    let schema = parquet_to_arrow_schema(meta.schema_descr(), None).map_err(|e| parquet_error(path, e))?;
    Ok(schema
        .fields()
        .iter()
        .map(|f| (f.name().clone(), f.data_type().clone()))
        .collect())
}
