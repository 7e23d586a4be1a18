//! From the model of a pipeline to the request that the full strategy plans: columns, key, types, modes.
//!
//! `data_type` describes the destination and names a family where it leaves room: `integer` keeps the source's width,
//! `timestamp` keeps the source's zone, `decimal` without a precision keeps the source's. A type that the user spelt out
//! and that cannot hold every value of the source's column is a mistake of the file, told at its place.

use super::RunOptions;
use crate::config::{ColumnMapping, Columns, ConfigError, DataType, Datastore, Loaded, Strategy, TableRef};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{DeleteGuard, Verify};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::strategy::full::{ColumnChoice, FullMode, FullRequest};

/// No partition of a table is planned to be larger: what a kill loses at most.
const PARTITION_BYTES: u64 = 256 << 20;

/// A table of the configuration as the engine names it. The schema is always said, so that two spellings of one table are one.
pub(crate) fn table_id(table: TableRef, datastore: &Datastore) -> TableId {
    TableId {
        schema: table.schema.or_else(|| default_schema(datastore)),
        name: table.name,
    }
}

/// The schema of tables that are named without one.
pub(crate) fn default_schema(datastore: &Datastore) -> Option<String> {
    match &datastore.connection {
        crate::config::Connection::Postgres(p) => Some(p.schema.to_string()),
        _ => None,
    }
}

/// The tables a pipeline reads and writes.
pub(crate) fn tables(loaded: &Loaded) -> Result<(TableId, TableId)> {
    let (from, to) = (loaded.source()?, loaded.destination()?);
    let read = loaded.pipeline.source.table_ref(from)?;
    let written = loaded.pipeline.destination.table_ref(to)?;
    Ok((table_id(read, from), table_id(written, to)))
}

/// Refuses what this version reads and cannot do, rather than copying other rows than the user meant.
pub(crate) fn refuse_what_is_not_there_yet(loaded: &Loaded) -> Result<()> {
    let source = &loaded.pipeline.source;
    if let Some(filter) = source.filters.first() {
        let error = filter.error("filters are not in this version yet");
        return Err(error
            .with_help("leave the filter out, or read from a view that holds it")
            .into());
    }
    if let Some(join) = source.joins.first() {
        let error = join.table.error("joins are not in this version yet");
        return Err(error
            .with_help("leave the join out, or read from a view that holds it")
            .into());
    }
    if *loaded.pipeline.sync_type == crate::config::SyncType::Aggregate {
        let error = loaded
            .pipeline
            .sync_type
            .error("aggregates are not in this version yet");
        return Err(error.with_help("this version copies rows: sync_type row-level").into());
    }
    for stage in loaded.pipeline.transform.iter().filter(|s| *s.enabled) {
        use crate::config::StageWork;
        if !matches!(stage.work, StageWork::ValueMap(_) | StageWork::Batch(_)) {
            let error = stage
                .name
                .error(format!("stages that {} are not in this version yet", stage.work.name()));
            return Err(error
                .with_help("disable the stage, or read from a view that does it")
                .into());
        }
    }
    if let Columns::Listed(columns) = &loaded.pipeline.columns
        && let Some(made) = columns.iter().find(|c| c.source.is_none() && c.is_written())
    {
        let error = made.dest.error(format!(
            "column {} has no source: columns made on the way are not in this version yet",
            *made.dest
        ));
        return Err(error
            .with_help("leave the column out, or give it `insert: false`")
            .into());
    }
    Ok(())
}

/// What must stay the same while a run is unfinished: the pipeline's meaning, and the bounds of this run.
pub(crate) fn semantics(pipeline: &crate::config::Pipeline, strategy: &str, options: &RunOptions) -> serde_json::Value {
    let mut semantics = pipeline.semantics_of(strategy);
    if let Some(bounds) = &options.bounds {
        semantics["bounds"] = serde_json::json!(bounds);
    }
    semantics
}

/// What the full strategy is asked for.
pub(crate) fn full_request(
    loaded: &Loaded,
    strategy: &Strategy,
    options: &RunOptions,
    at_source: &TableSchema,
    run_id: &str,
    now: String,
) -> Result<FullRequest> {
    let pipeline = &loaded.pipeline;
    let (source, destination) = tables(loaded)?;
    let columns = match &pipeline.columns {
        Columns::All => None,
        Columns::Listed(listed) => Some(choices(listed, at_source, &source)?),
    };
    let key = (!pipeline.key.is_empty()).then(|| pipeline.key.iter().map(|k| k.to_string()).collect());
    let mode = match (options.full_mode, strategy.full_mode.as_deref()) {
        (Some(mode), _) => mode,
        (None, _) if !*pipeline.destination.supports_update => FullMode::Append,
        (None, Some(crate::config::FullMode::Swap)) => FullMode::Swap,
        (None, Some(crate::config::FullMode::Upsert)) => FullMode::Upsert,
        (None, None) => FullMode::Auto,
    };
    let verify = options.verify.or_else(|| {
        strategy.verify.as_deref().map(|verify| match verify {
            crate::config::Verify::None => Verify::None,
            crate::config::Verify::Count => Verify::Count,
            crate::config::Verify::Hash | crate::config::Verify::AfterRun => Verify::Hash,
        })
    });
    Ok(FullRequest {
        pipeline: pipeline.name.to_string(),
        run_id: run_id.into(),
        source,
        destination,
        columns,
        key,
        step: pipeline.partitioning.step.as_deref().copied(),
        bounds: options.bounds.clone(),
        mode,
        verify,
        guard: DeleteGuard {
            allow: options.allow_mass_delete || *pipeline.write.allow_mass_delete,
            ..DeleteGuard::default()
        },
        raw: options.raw,
        partition_bytes: PARTITION_BYTES,
        semantics: semantics(pipeline, &strategy.name, options),
        now,
    })
}

fn choices(listed: &[ColumnMapping], at_source: &TableSchema, table: &TableId) -> Result<Vec<ColumnChoice>> {
    let mut choices = Vec::new();
    let mut errors = Vec::new();
    for mapping in listed.iter().filter(|m| m.is_written()) {
        let Some(source) = &mapping.source else { continue };
        match find(at_source, source) {
            None => {
                let names: Vec<&str> = at_source.columns.iter().map(|c| c.name.as_str()).collect();
                let error = source.error(format!("column {} is not in {table}", **source));
                errors.push(match crate::config::error::suggestion(source, "it has", &names) {
                    Some(help) => error.with_help(help),
                    None => error,
                });
            }
            Some(column) => match wanted_type(mapping, column) {
                Err(error) => errors.push(error),
                Ok(ty) => choices.push(ColumnChoice {
                    source: column.name.clone(),
                    destination: mapping.dest.to_string(),
                    ty,
                    as_text: mapping.as_text,
                    not_null: mapping.nullable == Some(false),
                }),
            },
        }
    }
    crate::config::ConfigErrors::check(errors)?;
    Ok(choices)
}

/// A column by the name in the file, which may carry the table's alias.
fn find<'a>(schema: &'a TableSchema, name: &str) -> Option<&'a Column> {
    schema
        .column(name)
        .or_else(|| schema.column(name.split_once('.').map(|(_, column)| column)?))
}

/// The type at the destination; `None` keeps the source's.
fn wanted_type(mapping: &ColumnMapping, column: &Column) -> Result<Option<ColumnType>, ConfigError> {
    let Some(data_type) = &mapping.data_type else {
        return Ok(None);
    };
    if mapping.as_text {
        return Ok(None);
    }
    let source = column.source_type.clone().unwrap_or_else(|| column.ty.to_string());
    let wanted = match family(**data_type, mapping, &column.ty) {
        Family::Source => return Ok(None),
        Family::Exactly(ty) => ty,
        Family::NotYet => {
            return Err(data_type
                .error(format!(
                    "column {} ({source}): data_type {} is not in this version yet",
                    column.name, **data_type
                ))
                .with_help("use uuid_text_dash, text or uuid"));
        }
    };
    if column.ty.fits(&wanted) {
        return Ok(Some(wanted));
    }
    let fitting = match wide_enough(&column.ty) {
        text if text == "text" => "`data_type: text`".to_owned(),
        wide => format!("`data_type: {wide}`, `data_type: text`"),
    };
    Err(data_type
        .error(format!(
            "column {} is {source} at the source, and data_type {wanted} cannot hold all its values",
            column.name
        ))
        .with_help(format!("use {fitting}, or leave data_type out")))
}

/// A type a user may write that holds every value of `ty`.
fn wide_enough(ty: &ColumnType) -> String {
    match ty {
        ColumnType::Numeric => "decimal".into(),
        ColumnType::Int8 => "smallint".into(),
        ColumnType::UInt8 | ColumnType::UInt16 => "integer".into(),
        ColumnType::UInt32 => "bigint".into(),
        ColumnType::UInt64 => "decimal".into(),
        ColumnType::Bytes => "binary".into(),
        ColumnType::Jsonb => "json".into(),
        ColumnType::TimeTz | ColumnType::Interval | ColumnType::Native => "text".into(),
        other => other.to_string(),
    }
}

enum Family {
    /// What the source has is of the family.
    Source,
    Exactly(ColumnType),
    NotYet,
}

fn family(wanted: DataType, mapping: &ColumnMapping, source: &ColumnType) -> Family {
    use ColumnType as T;
    let keep_or = |keep: bool, ty: T| if keep { Family::Source } else { Family::Exactly(ty) };
    let is_integer = matches!(
        source,
        T::Int8 | T::Int16 | T::Int32 | T::Int64 | T::UInt8 | T::UInt16 | T::UInt32 | T::UInt64
    );
    match wanted {
        DataType::Integer => keep_or(is_integer, T::Int32),
        DataType::SmallInt => Family::Exactly(T::Int16),
        DataType::BigInt => Family::Exactly(T::Int64),
        DataType::Float => Family::Exactly(T::Float32),
        DataType::Double => Family::Exactly(T::Float64),
        DataType::Decimal => match (mapping.precision, mapping.scale) {
            (Some(precision), scale) => Family::Exactly(T::Decimal {
                precision: precision.min(u32::from(u16::MAX)) as u16,
                scale: scale.unwrap_or(0).min(i16::MAX as u32) as i16,
            }),
            (None, _) => keep_or(matches!(source, T::Decimal { .. } | T::Numeric), T::Numeric),
        },
        DataType::Varchar => match mapping.length {
            Some(n) => Family::Exactly(T::Text { max: Some(n) }),
            None => keep_or(matches!(source, T::Text { .. } | T::Char { .. }), T::Text { max: None }),
        },
        DataType::Char => match mapping.length {
            Some(length) => Family::Exactly(T::Char { length }),
            None => keep_or(matches!(source, T::Char { .. }), T::Char { length: 1 }),
        },
        DataType::Text => Family::Exactly(T::Text { max: None }),
        DataType::Date => Family::Exactly(T::Date),
        DataType::Time => keep_or(matches!(source, T::Time | T::TimeTz), T::Time),
        DataType::Timestamp => keep_or(matches!(source, T::TimestampTz), T::Timestamp),
        DataType::TimestampTz => Family::Exactly(T::TimestampTz),
        DataType::Boolean => Family::Exactly(T::Bool),
        DataType::Binary => Family::Exactly(T::Bytes),
        DataType::Json => keep_or(matches!(source, T::Jsonb), T::Json),
        DataType::Uuid => Family::Exactly(T::Uuid),
        DataType::UuidTextDash => Family::Exactly(T::Text { max: None }),
        DataType::UuidText if *source == T::Uuid => Family::NotYet,
        DataType::UuidText => Family::Exactly(T::Text { max: None }),
    }
}

/// The strategy a run follows: the one named, else the default one, else the only or first enabled one.
pub(crate) fn choose_strategy<'a>(loaded: &'a Loaded, named: Option<&str>) -> Result<(&'a Strategy, String)> {
    let pipeline = &loaded.pipeline;
    if let Some(name) = named {
        let strategy = pipeline.strategy(name)?;
        return Ok((strategy, format!("strategy {}: named by the caller", *strategy.name)));
    }
    let enabled: Vec<&Strategy> = pipeline
        .strategies
        .iter()
        .filter(|s| *s.enabled && *s.default)
        .collect();
    match enabled[..] {
        [] => Err(
            Error::new(code::CONFIG_INVALID, "no strategy of the pipeline is enabled")
                .at("pipeline", pipeline.name.as_str())
                .hint("set `enabled: true` for one, or name one with --strategy"),
        ),
        [only] => Ok((only, format!("strategy {}: the only one enabled", *only.name))),
        [first, ..] => Ok((
            first,
            format!(
                "strategy {}: the first of {} enabled ones; --strategy names another",
                *first.name,
                enabled.len()
            ),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(data_type: DataType, source: ColumnType) -> Result<Option<ColumnType>, String> {
        let mut mapping = ColumnMapping::same("c");
        mapping.data_type = Some(data_type.into());
        wanted_type(&mapping, &Column::new("c", source)).map_err(|e| e.to_string())
    }

    #[test]
    fn families_keep_what_the_source_has() {
        use ColumnType as T;
        assert_eq!(mapped(DataType::Integer, T::Int64), Ok(None));
        assert_eq!(mapped(DataType::Timestamp, T::TimestampTz), Ok(None));
        let decimal = T::Decimal {
            precision: 12,
            scale: 2,
        };
        assert_eq!(mapped(DataType::Decimal, decimal), Ok(None));
        assert_eq!(mapped(DataType::Text, T::Int32), Ok(Some(T::Text { max: None })));
        assert_eq!(mapped(DataType::BigInt, T::Int32), Ok(Some(T::Int64)));
    }

    #[test]
    fn narrowing_is_refused_with_what_would_fit() {
        use ColumnType as T;
        let narrow = mapped(DataType::SmallInt, T::Int64).unwrap_err();
        assert!(
            narrow.contains("data_type smallint cannot hold") && narrow.contains("bigint"),
            "{narrow}"
        );
        let mut mapping = ColumnMapping::same("price");
        mapping.data_type = Some(DataType::Decimal.into());
        (mapping.precision, mapping.scale) = (Some(8), Some(2));
        let column = Column::new(
            "price",
            T::Decimal {
                precision: 12,
                scale: 2,
            },
        );
        assert!(wanted_type(&mapping, &column).is_err());
        mapping.precision = Some(14);
        assert!(wanted_type(&mapping, &column).is_ok());
        let mut mapping = ColumnMapping::same("name");
        mapping.data_type = Some(DataType::Varchar.into());
        mapping.length = Some(10);
        assert!(wanted_type(&mapping, &Column::new("name", T::Text { max: None })).is_err());
    }
}
