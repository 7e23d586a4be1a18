//! Types: Parquet's → ours, and how our columns are stored.

use arrow_schema::DataType;
use parquet::arrow::parquet_to_arrow_schema;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::file::metadata::FileMetaData;
use parquet::schema::types::{SchemaDescriptor, Type};
use std::sync::Arc;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Carrier, Column, ColumnType, META_COLUMN, TableSchema};
use synctool_core::sink::{Fidelity, StoredAs};

/// The key of a file's own metadata under which the names of the table's key columns stand, as JSON.
pub(super) const META_KEY: &str = "synctool.key";

/// A top-level column of a Parquet file.
#[derive(Debug, Clone)]
pub(super) struct FileColumn {
    /// What it is for us.
    pub(super) column: Column,
    /// Whether it is Parquet's old 96-bit timestamp.
    pub(super) int96: bool,
    /// Why it cannot be read.
    pub(super) unsupported: Option<&'static str>,
}

/// The columns of a Parquet file. A column that we wrote comes back exactly as it was.
pub(super) fn file_columns(meta: &FileMetaData) -> Result<Vec<FileColumn>> {
    let descr = meta.schema_descr();
    let broken = |e: parquet::errors::ParquetError| {
        Error::new(
            code::TYPE_UNSUPPORTED,
            format!("a column type of the file is not supported: {e}"),
        )
    };
    let arrow = parquet_to_arrow_schema(descr, None).map_err(broken)?;
    // Somebody else's embedded Arrow schema may be one that we cannot read; only ours matters.
    let ours = parquet_to_arrow_schema(descr, meta.key_value_metadata()).ok();
    let mut columns = Vec::new();
    for (i, (field, parquet)) in arrow.fields().iter().zip(descr.root_schema().get_fields()).enumerate() {
        let (ty, source_type) = map(field.data_type(), parquet);
        let mut column = Column::new(field.name(), ty).with_source_type(source_type);
        column.nullable = field.is_nullable();
        let written: Option<Column> = ours
            .as_ref()
            .and_then(|s| serde_json::from_str(s.field(i).metadata().get(META_COLUMN)?).ok());
        if let Some(mut w) = written
            && w.name == column.name
            && w.arrow_type() == column.arrow_type()
        {
            w.nullable = column.nullable;
            column = w;
        }
        columns.push(FileColumn {
            unsupported: matches!(field.data_type(), DataType::Interval(_))
                .then_some("Parquet's INTERVAL has months, days and milliseconds that no reader here keeps apart"),
            int96: parquet.is_primitive() && parquet.get_physical_type() == Physical::INT96,
            column,
        });
    }
    Ok(columns)
}

/// The key that we wrote into a file's metadata.
pub(super) fn file_key(meta: &FileMetaData) -> Vec<String> {
    meta.key_value_metadata()
        .into_iter()
        .flatten()
        .find(|kv| kv.key == META_KEY)
        .and_then(|kv| serde_json::from_str(kv.value.as_deref()?).ok())
        .unwrap_or_default()
}

fn map(decoded: &DataType, parquet: &Type) -> (ColumnType, String) {
    use ColumnType as T;
    let logical = parquet.get_basic_info().logical_type_ref();
    let converted = parquet.get_basic_info().converted_type();
    let ty = match decoded {
        DataType::Boolean => T::Bool,
        DataType::Int8 => T::Int8,
        DataType::Int16 => T::Int16,
        DataType::Int32 => T::Int32,
        DataType::Int64 => T::Int64,
        DataType::UInt8 => T::UInt8,
        DataType::UInt16 => T::UInt16,
        DataType::UInt32 => T::UInt32,
        DataType::UInt64 => T::UInt64,
        DataType::Float16 | DataType::Float32 => T::Float32,
        DataType::Float64 => T::Float64,
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => T::Decimal {
            precision: u16::from(*p),
            scale: i16::from(*s),
        },
        DataType::Date32 => T::Date,
        DataType::Time32(_) | DataType::Time64(_) => T::Time,
        DataType::Timestamp(_, None) => T::Timestamp,
        DataType::Timestamp(_, Some(_)) => T::TimestampTz,
        DataType::Utf8 if is_json(parquet) => T::Json,
        DataType::Utf8 | DataType::Null => T::Text { max: None },
        DataType::Binary if matches!(logical, Some(LogicalType::Enum)) || converted == ConvertedType::ENUM => {
            T::Text { max: None }
        }
        DataType::FixedSizeBinary(16) if matches!(logical, Some(LogicalType::Uuid)) => T::Uuid,
        DataType::Binary | DataType::FixedSizeBinary(_) => T::Bytes,
        DataType::Interval(_) => T::Interval,
        _ => T::Native,
    };
    (ty, type_name(decoded, parquet))
}

fn is_json(parquet: &Type) -> bool {
    let info = parquet.get_basic_info();
    matches!(info.logical_type_ref(), Some(LogicalType::Json)) || info.converted_type() == ConvertedType::JSON
}

/// How the file itself would say it: `int64`, `timestamp(ns)`, `list<…>`.
fn type_name(decoded: &DataType, parquet: &Type) -> String {
    use arrow_schema::TimeUnit as U;
    let unit = |u: &U| match u {
        U::Second => "s",
        U::Millisecond => "ms",
        U::Microsecond => "us",
        U::Nanosecond => "ns",
    };
    if parquet.is_primitive() && parquet.get_physical_type() == Physical::INT96 {
        return "int96".into();
    }
    match decoded {
        DataType::Timestamp(u, zone) => format!("timestamp({}{})", unit(u), if zone.is_some() { ", utc" } else { "" }),
        DataType::Time32(u) | DataType::Time64(u) => format!("time({})", unit(u)),
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => format!("decimal({p},{s})"),
        DataType::Utf8 if is_json(parquet) => "json".into(),
        DataType::Utf8 => "string".into(),
        DataType::Binary if parquet.get_basic_info().logical_type_ref().is_some() => "enum".into(),
        DataType::Binary => "byte_array".into(),
        DataType::FixedSizeBinary(n) => format!("fixed_len_byte_array({n})"),
        DataType::Interval(_) => "interval".into(),
        DataType::List(f) => format!("list<{}>", f.data_type().to_string().to_lowercase()),
        DataType::Map(..) => "map".into(),
        DataType::Struct(_) => "struct".into(),
        other => other.to_string().to_lowercase(),
    }
}

/// How a column is stored in Parquet.
pub(super) fn store_in_parquet(column: &Column) -> StoredAs {
    use ColumnType as T;
    let typed = Column {
        carrier: Carrier::Arrow,
        ..column.clone()
    };
    let (type_name, fidelity) = match (&column.ty, typed.arrow_type()) {
        (T::Json | T::Jsonb, _) => ("JSON".to_string(), Fidelity::Exact),
        (T::Decimal { .. } | T::Numeric | T::TimeTz | T::Interval | T::Native, DataType::Utf8) => (
            "STRING".into(),
            Fidelity::Widened("text; the type stands in the file's metadata".into()),
        ),
        (_, DataType::Utf8) => ("STRING".into(), Fidelity::Exact),
        (_, DataType::Decimal128(p, s) | DataType::Decimal256(p, s)) => (format!("DECIMAL({p},{s})"), Fidelity::Exact),
        (T::Date | T::Timestamp | T::TimestampTz, ty) => {
            let name = match ty {
                DataType::Date32 => "DATE",
                DataType::Timestamp(_, None) => "TIMESTAMP(MICROS)",
                _ => "TIMESTAMP(MICROS, UTC)",
            };
            (name.into(), Fidelity::Exact)
        }
        (_, DataType::Time64(_)) => ("TIME(MICROS)".into(), Fidelity::Exact),
        (_, DataType::FixedSizeBinary(_)) => ("UUID".into(), Fidelity::Exact),
        (_, DataType::Binary) => ("BYTE_ARRAY".into(), Fidelity::Exact),
        (_, other) => (other.to_string().to_uppercase(), Fidelity::Exact),
    };
    StoredAs {
        carrier: Carrier::Arrow,
        type_name,
        fidelity,
    }
}

/// How a column is stored in CSV: as its canonical text, with its type in the schema that stands beside the file.
pub(super) fn store_in_csv(column: &Column) -> StoredAs {
    StoredAs {
        type_name: column.ty.to_string(),
        carrier: Carrier::Arrow,
        fidelity: Fidelity::Exact,
    }
}

/// The Parquet schema of a table: Arrow's own mapping, with the logical types that it leaves out.
pub(super) fn parquet_schema(schema: &TableSchema, arrow: &arrow_schema::Schema) -> Result<SchemaDescriptor> {
    let bug = |e: parquet::errors::ParquetError| Error::bug(format!("Parquet schema: {e}"));
    let plain = parquet::arrow::ArrowSchemaConverter::new()
        .schema_root("schema")
        .convert(arrow)
        .map_err(bug)?;
    let mut fields = Vec::new();
    for (field, column) in plain.root_schema().get_fields().iter().zip(&schema.columns) {
        let logical = match (&column.ty, column.carrier) {
            (ColumnType::Uuid, Carrier::Arrow) => Some((Physical::FIXED_LEN_BYTE_ARRAY, LogicalType::Uuid)),
            (ColumnType::Json | ColumnType::Jsonb, _) => Some((Physical::BYTE_ARRAY, LogicalType::Json)),
            _ => None,
        };
        let Some((physical, logical)) = logical else {
            fields.push(field.clone());
            continue;
        };
        let repetition = if column.nullable {
            Repetition::OPTIONAL
        } else {
            Repetition::REQUIRED
        };
        let mut builder = Type::primitive_type_builder(&column.name, physical)
            .with_repetition(repetition)
            .with_logical_type(Some(logical));
        if physical == Physical::FIXED_LEN_BYTE_ARRAY {
            builder = builder.with_length(16);
        }
        fields.push(Arc::new(builder.build().map_err(bug)?));
    }
    let root = Type::group_type_builder("schema")
        .with_fields(fields)
        .build()
        .map_err(bug)?;
    Ok(SchemaDescriptor::new(Arc::new(root)))
}
