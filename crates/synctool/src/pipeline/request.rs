//! From the model of a pipeline to the request that strategies plan: tables, columns, key, types, dimensions.
//!
//! `data_type` describes the destination and names a family where it leaves room: `integer` keeps the source's width,
//! `timestamp` keeps the source's zone, `decimal` without a precision keeps the source's. A type that the user spelt out
//! and that cannot hold every value of the source's column is a mistake of the file, told at its place.

use super::RunOptions;
use crate::config::{
    self, At, ColumnMapping, Columns, ConfigError, DataType, Datastore, DimensionKind, Filter, HashAlgorithm, JoinKind,
    Loaded, Operator, SchemaDrift, StepUnit, Strategy, SyncType, TableRef,
};
use synctool_core::error::{Error, Result, code};
use synctool_core::plan::{DeleteGuard, ReadColumn, ReadSpec, StoredForm};
use synctool_core::query::{self, Condition, Term, Test};
use synctool_core::schema::{Column, ColumnType, TableId, TableSchema};
use synctool_core::source::Source;
use synctool_core::strategy::cut::{self, By, Dimension, Unit, Zone};
use synctool_core::strategy::table::{ColumnChoice, RowHashChoice, TableRequest};
use synctool_core::written::canonical;

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
        crate::config::Connection::Mysql(m) => Some(m.database.to_string()),
        crate::config::Connection::WalArchive(a) => Some(a.schema.to_string()),
        _ => None,
    }
}

/// The tables a pipeline reads and writes.
pub(crate) fn tables(loaded: &Loaded) -> Result<(TableId, TableId)> {
    let source = &loaded.pipeline.source;
    if loaded.pipeline.log().is_some() && (source.table.is_empty() || loaded.pipeline.destination.table.is_empty()) {
        return Err(Error::new(
            code::UNSUPPORTED,
            format!("pipeline {} follows the log of several tables", *loaded.pipeline.name),
        )
        .hint("synctool cdc status shows how far it is, synctool cdc refresh compares and mends a table"));
    }
    let (from, to) = (loaded.source()?, loaded.destination()?);
    let read = loaded.pipeline.source.table_ref(from)?;
    let written = loaded.pipeline.destination.table_ref(to)?;
    Ok((table_id(read, from), table_id(written, to)))
}

/// What must stay the same while a run is unfinished: the pipeline's meaning, and the bounds of this run.
pub(crate) fn semantics(pipeline: &crate::config::Pipeline, strategy: &str, options: &RunOptions) -> serde_json::Value {
    let mut semantics = pipeline.semantics_of(strategy);
    if !options.bounds.is_empty() {
        semantics["bounds"] = serde_json::json!(options.bounds);
    }
    if options.repair {
        semantics["repair"] = true.into();
    }
    semantics
}

/// What every strategy is asked about the table. `needed` are columns that stages read, by their names on the way.
pub(crate) async fn table_request(
    loaded: &Loaded,
    strategy: &Strategy,
    options: &RunOptions,
    source: &dyn Source,
    needed: &[String],
    (run_id, now): (&str, String),
) -> Result<TableRequest> {
    let pipeline = &loaded.pipeline;
    let (read, written) = tables(loaded)?;
    let names = Names::of(loaded, &read)?;
    let mut request = TableRequest {
        run_id: run_id.into(),
        alias: pipeline.source.alias.as_deref().cloned(),
        joins: names.joins.clone(),
        filters: filters(&pipeline.source.filters, &names),
        key: (!pipeline.key.is_empty()).then(|| pipeline.key.iter().map(|k| k.to_string()).collect()),
        guard: DeleteGuard {
            allow: options.allow_mass_delete || *pipeline.write.allow_mass_delete,
            ..DeleteGuard::default()
        },
        raw: options.raw,
        partition_bytes: PARTITION_BYTES,
        evolve: match pipeline.schema_drift.as_deref() {
            Some(drift) => *drift == SchemaDrift::Evolve,
            None => matches!(pipeline.columns, Columns::All),
        },
        append_only: !*pipeline.destination.supports_update,
        compare_only: false,
        distinct_keys: pipeline.destination.distinct_keys.as_deref() == Some(&true),
        row_hash: row_hash(pipeline)?,
        semantics: semantics(pipeline, &strategy.name, options),
        now: now.clone(),
        ..TableRequest::new(pipeline.name.as_str(), read.clone(), written)
    };
    let at_source = source.describe(&read).await?;
    if *pipeline.sync_type == SyncType::Aggregate {
        request.group_by = pipeline.groups().map(|c| c.dest.to_string()).collect();
    }
    request.bounds = bounds(&options.bounds, &names, &at_source, &read)?;
    request.columns = columns(loaded, source, &names, &request, &at_source, needed).await?;
    request.dimensions = dimensions(loaded, strategy, source, &names, &request, &now).await?;
    // A strategy's range is its way of reading. What is compared without naming one is all that is to be equal.
    if options.repair && options.strategy.is_none() && !cut::limits(&request.dimensions).is_empty() {
        request.dimensions.clear();
    }
    // A step along the key is what sources cut themselves, into slices that they can resume inside.
    let step = pipeline.partitioning.step.as_deref().copied();
    let along_the_key = match &request.dimensions[..] {
        [] => true,
        [level] => match (&level[..], &at_source.key[..]) {
            (
                [
                    Dimension {
                        term: Term::Column { relation: None, name },
                        by: By::Step(_),
                        start: None,
                        end: None,
                        ..
                    },
                ],
                [key],
            ) => name == key && strategy.primary_partitions.is_empty(),
            _ => false,
        },
        _ => false,
    };
    if step.is_some() && along_the_key {
        request.dimensions.clear();
        request.step = step;
    }
    Ok(request)
}

/// The bounds of a backfill: columns of the source, values as canonical texts of their types.
fn bounds(said: &[Condition], names: &Names, at_source: &TableSchema, table: &TableId) -> Result<Vec<Condition>> {
    let one = |condition: &Condition| {
        let term = names.term(&condition.term.to_string());
        let Term::Column { relation: None, name } = &term else {
            return Ok(Condition {
                term,
                test: condition.test.clone(),
            });
        };
        let column = at_source.column(name).ok_or_else(|| {
            let known: Vec<&str> = at_source.columns.iter().map(|c| c.name.as_str()).collect();
            let error = Error::new(
                code::COLUMN_MISSING,
                format!("--bounds: column {name} is not in {table}"),
            );
            match config::error::suggestion(name, "it has", &known) {
                Some(help) => error.hint(help),
                None => error,
            }
        })?;
        let value = |text: &str| {
            canonical(text, &column.ty).ok_or_else(|| {
                Error::new(
                    code::CONFIG_INVALID,
                    format!("--bounds: a value of column {name} is no {}", column.ty),
                )
            })
        };
        let mut test = condition.test.clone();
        match &mut test {
            Test::Range { lower, upper } | Test::NullOrRange { lower, upper } => {
                for end in [lower, upper].into_iter().flatten() {
                    *end = value(end)?;
                }
            }
            Test::In(values) | Test::NullOrIn(values) => {
                for one in values {
                    *one = value(one)?;
                }
            }
            _ => {}
        }
        Ok(Condition { term, test })
    };
    said.iter().map(one).collect()
}

/// The tables of a pipeline by the names that its columns carry.
pub(crate) struct Names {
    own: Vec<String>,
    joins: Vec<query::Join>,
}

impl Names {
    pub(crate) fn of(loaded: &Loaded, read: &TableId) -> Result<Self> {
        let from = loaded.source()?;
        let source = &loaded.pipeline.source;
        let mut own = vec![read.name.clone()];
        own.extend(source.alias.as_deref().cloned());
        let joins = source
            .joins
            .iter()
            .map(|join| {
                let mut named = join.table_ref(from)?;
                named.schema = named.schema.or_else(|| read.schema.clone());
                Ok(query::Join {
                    table: table_id(named, from),
                    alias: join.alias.as_deref().cloned(),
                    kind: match *join.kind {
                        JoinKind::Inner => query::JoinKind::Inner,
                        JoinKind::Left => query::JoinKind::Left,
                        JoinKind::Right => query::JoinKind::Right,
                        JoinKind::Full => query::JoinKind::Full,
                    },
                    on: join.on.to_string(),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Names { own, joins })
    }

    /// A column by its name in the file, which may carry a table's alias or name.
    pub(crate) fn term(&self, name: &str) -> Term {
        if let Some((relation, column)) = name.split_once('.') {
            if self.own.iter().any(|own| own == relation) {
                return Term::column(column);
            }
            let joined = |j: &query::Join| j.alias.as_deref() == Some(relation) || j.table.name == relation;
            if self.joins.iter().any(joined) {
                return Term::Column {
                    relation: Some(relation.into()),
                    name: column.into(),
                };
            }
        }
        Term::column(name)
    }
}

/// The column or expression that says when a row changed, where a strategy names one.
pub(crate) fn cursor(pipeline: &config::Pipeline, strategy: &Strategy, names: &Names) -> Option<Term> {
    let column = strategy.column.as_ref()?;
    let grouped = *pipeline.sync_type == SyncType::Aggregate && !pipeline.group_by.is_empty();
    // An aggregate may be called like the column that it is made of; what changes is a row of the source.
    let of_rows = |c: &&ColumnMapping| !grouped || c.expr.is_none() || pipeline.groups().any(|g| *g.dest == *c.dest);
    let named = pipeline.column(column).filter(of_rows);
    Some(match named.map(|c| (c.source.as_ref(), c.expr.as_ref())) {
        Some((Some(source), _)) => names.term(source),
        Some((None, Some(expr))) => Term::Sql(expr.to_string()),
        _ => names.term(column),
    })
}

/// The conditions on a dimension's rows, which stand alone in their query.
pub(crate) fn dimension_filters(written: &[At<Filter>]) -> Vec<query::Filter> {
    let alone = Names {
        own: Vec::new(),
        joins: Vec::new(),
    };
    filters(written, &alone)
}

fn filters(written: &[At<Filter>], names: &Names) -> Vec<query::Filter> {
    written
        .iter()
        .map(|filter| match &**filter {
            Filter::Sql(sql) => query::Filter::Sql(sql.clone()),
            Filter::Compare(c) => query::Filter::Test(Condition {
                term: names.term(&c.column),
                test: test(c.operator, &c.value),
            }),
        })
        .collect()
}

fn test(operator: Operator, value: &serde_json::Value) -> Test {
    let text = |v: &serde_json::Value| match v {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let compare = |comparison| match value.is_null() {
        true => Test::Null,
        false => Test::Compare(comparison, text(value)),
    };
    match operator {
        Operator::In => Test::In(match value {
            serde_json::Value::Array(values) => values.iter().map(text).collect(),
            one => vec![text(one)],
        }),
        Operator::NotEqual if value.is_null() => Test::NotNull,
        Operator::Equal => compare(query::Comparison::Equal),
        Operator::NotEqual => compare(query::Comparison::NotEqual),
        Operator::Less => compare(query::Comparison::Less),
        Operator::LessOrEqual => compare(query::Comparison::LessOrEqual),
        Operator::Greater => compare(query::Comparison::Greater),
        Operator::GreaterOrEqual => compare(query::Comparison::GreaterOrEqual),
    }
}

/// The columns that are read: those that are written and those that stages need. `None` where all go along untouched.
async fn columns(
    loaded: &Loaded,
    source: &dyn Source,
    names: &Names,
    request: &TableRequest,
    at_source: &TableSchema,
    needed: &[String],
) -> Result<Option<Vec<ColumnChoice>>> {
    let mut read: Vec<(Option<&ColumnMapping>, ColumnChoice)> = Vec::new();
    let mut errors = Vec::new();
    match &loaded.pipeline.columns {
        Columns::All if needed.iter().all(|n| at_source.column(n).is_some()) => return Ok(None),
        Columns::All => {
            let same = at_source.columns.iter().map(|c| (None, ColumnChoice::same(&c.name)));
            read.extend(same);
        }
        Columns::Listed(listed) => {
            for mapping in listed {
                let is_needed = needed.contains(&*mapping.name);
                if !mapping.is_read() || !(mapping.is_written() || is_needed) {
                    continue;
                }
                let choice = match choice(mapping, names, at_source, request) {
                    Ok(choice) => choice,
                    Err(error) => {
                        errors.push(error);
                        continue;
                    }
                };
                // Stages know it under its name on the way; the destination under its own.
                if is_needed && mapping.is_written() && *mapping.name != *mapping.dest {
                    let on_the_way = ColumnChoice {
                        destination: mapping.name.to_string(),
                        written: false,
                        ..choice.clone()
                    };
                    read.push((None, on_the_way));
                }
                read.push((Some(mapping), choice));
            }
        }
    }
    crate::config::ConfigErrors::check(errors)?;
    for name in needed {
        if !read.iter().any(|(_, c)| c.destination == *name) {
            let term = names.term(name);
            let (source, term) = match term {
                Term::Column { relation: None, name } if at_source.column(&name).is_some() => (name, None),
                Term::Column { relation: Some(_), .. } => (name.clone(), Some(term)),
                // A stage before makes it, or the chain says that nobody does.
                _ => continue,
            };
            read.push((
                None,
                ColumnChoice {
                    source,
                    term,
                    written: false,
                    ..ColumnChoice::same(name)
                },
            ));
        }
    }
    let described = describe(source, request, &read).await?;
    let mut errors = Vec::new();
    let mut choices = Vec::with_capacity(read.len());
    for ((mapping, mut choice), column) in read.into_iter().zip(described) {
        if let Some(mapping) = mapping {
            match wanted_type(mapping, &column) {
                Ok(ty) => choice.ty = ty,
                Err(error) => errors.push(error),
            }
        }
        choices.push(choice);
    }
    crate::config::ConfigErrors::check(errors)?;
    Ok(Some(choices))
}

async fn describe(
    source: &dyn Source,
    request: &TableRequest,
    read: &[(Option<&ColumnMapping>, ColumnChoice)],
) -> Result<Vec<Column>> {
    let columns = read
        .iter()
        .map(|(_, c)| ReadColumn {
            source: c.source.clone(),
            term: c.term.clone(),
            column: Column::new(&c.destination, ColumnType::Native),
        })
        .collect();
    let spec = ReadSpec {
        alias: request.alias.clone(),
        joins: request.joins.clone(),
        group_by: request.group_by.clone(),
        ..ReadSpec::of(request.source.clone(), columns)
    };
    source.describe_query(&spec).await
}

fn choice(
    mapping: &ColumnMapping,
    names: &Names,
    at_source: &TableSchema,
    request: &TableRequest,
) -> Result<ColumnChoice, ConfigError> {
    let named = ColumnChoice {
        as_text: mapping.as_text,
        not_null: mapping.nullable == Some(false),
        written: mapping.is_written(),
        ..ColumnChoice::same(match mapping.is_written() {
            true => mapping.dest.to_string(),
            false => mapping.name.to_string(),
        })
    };
    if let Some(expr) = &mapping.expr {
        return Ok(ColumnChoice {
            source: mapping.name.to_string(),
            term: Some(Term::Sql(expr.to_string())),
            ..named
        });
    }
    let Some(source) = &mapping.source else {
        return Err(mapping.dest.error(format!("column {} has no source", *mapping.dest)));
    };
    let term = names.term(source);
    match &term {
        Term::Column { relation: None, name } => match at_source.column(name) {
            Some(column) => Ok(ColumnChoice {
                source: column.name.clone(),
                ..named
            }),
            None => {
                let known: Vec<&str> = at_source.columns.iter().map(|c| c.name.as_str()).collect();
                let error = source.error(format!("column {} is not in {}", **source, request.source));
                Err(match crate::config::error::suggestion(source, "it has", &known) {
                    Some(help) => error.with_help(help),
                    None => error,
                })
            }
        },
        _ => Ok(ColumnChoice {
            source: source.to_string(),
            term: Some(term),
            ..named
        }),
    }
}

/// The column that keeps each row's hash.
fn row_hash(pipeline: &config::Pipeline) -> Result<Option<RowHashChoice>> {
    let Some(mapping) = pipeline.kept_hash() else {
        return Ok(None);
    };
    let text = ColumnType::Text { max: None };
    let ty = match (&mapping.data_type, pipeline.kept_hash_algo()) {
        (Some(said), _) if **said == DataType::UuidText => ColumnType::Char { length: 32 },
        (Some(said), _) => match family(**said, mapping, &text) {
            Family::Exactly(ty) => ty,
            Family::Source => text,
        },
        (None, Some(HashAlgorithm::Md5SumHash)) => ColumnType::Int64,
        (None, _) => text,
    };
    let form = match pipeline.kept_hash_algo() {
        Some(HashAlgorithm::Md5SumHash) => StoredForm::Sum,
        _ => StoredForm::Md5,
    };
    Ok(Some(RowHashChoice {
        column: mapping.dest.to_string(),
        ty,
        form,
        of: tracked(pipeline),
    }))
}

/// The columns whose changes count in comparisons, in destination names; `None`: all that are written.
pub(crate) fn tracked(pipeline: &crate::config::Pipeline) -> Option<Vec<String>> {
    let Columns::Listed(listed) = &pipeline.columns else {
        return None;
    };
    let written = || listed.iter().filter(|c| c.is_written() && !c.roles.hash_key);
    let said = listed
        .iter()
        .any(|c| c.hashed.is_some() || (c.roles.hash_key && c.is_written()));
    let only = written().any(|c| c.hashed == Some(true));
    said.then(|| {
        written()
            .filter(|c| match only {
                true => c.hashed == Some(true),
                false => c.hashed != Some(false),
            })
            .map(|c| c.dest.to_string())
            .collect()
    })
}

/// The user's dimensions, level by level.
async fn dimensions(
    loaded: &Loaded,
    strategy: &Strategy,
    source: &dyn Source,
    names: &Names,
    request: &TableRequest,
    now: &str,
) -> Result<Vec<Vec<Dimension>>> {
    let of_pipeline: Vec<config::Dimension> = match (
        &loaded.pipeline.partitioning.column,
        strategy.primary_partitions.is_empty(),
    ) {
        (Some(column), true) => {
            let mut dimension = config::Dimension::range(column.clone());
            dimension.step.clone_from(&loaded.pipeline.partitioning.step);
            if let Some(mapping) = loaded.pipeline.column(column) {
                dimension.expr.clone_from(&mapping.expr);
                dimension.destination = mapping.is_written().then(|| mapping.dest.clone());
            }
            vec![dimension]
        }
        _ => Vec::new(),
    };
    let mut levels = Vec::new();
    for level in [
        &of_pipeline,
        &strategy.primary_partitions,
        &strategy.secondary_partitions,
    ] {
        let mut dimensions = Vec::new();
        for written in level {
            dimensions.extend(dimension(written, strategy, source, names, request, now).await?);
        }
        if !dimensions.is_empty() {
            levels.push(dimensions);
        }
    }
    Ok(levels)
}

/// One dimension; `None` where its width is left to the data and all of it is read.
async fn dimension(
    written: &config::Dimension,
    strategy: &Strategy,
    source: &dyn Source,
    names: &Names,
    request: &TableRequest,
    now: &str,
) -> Result<Option<Dimension>> {
    let term = match &written.expr {
        Some(expr) => Term::Sql(expr.to_string()),
        None => names.term(&written.column),
    };
    let spec = ReadSpec {
        alias: request.alias.clone(),
        joins: request.joins.clone(),
        ..ReadSpec::of(
            request.source.clone(),
            vec![ReadColumn {
                source: written.column.to_string(),
                term: Some(term.clone()),
                column: Column::new("dimension", ColumnType::Native),
            }],
        )
    };
    let spec = plain_if_possible(spec);
    let column = source
        .describe_query(&spec)
        .await?
        .pop()
        .ok_or_else(|| Error::bug("a dimension was not described"))?;
    let zone = zone_of(written, strategy)?;
    let no_value = |at: At<()>| -> Error {
        let message = format!("is no value of column {} ({})", *written.column, column.ty);
        at.error(message).into()
    };
    let by = match *written.kind {
        DimensionKind::Value => By::Values,
        DimensionKind::List => {
            let text = |v: &At<String>| canonical(v, &column.ty).ok_or_else(|| no_value(v.with(())));
            By::List(written.values.iter().map(text).collect::<Result<_>>()?)
        }
        DimensionKind::Range => match ranges_of(written, &column, zone)? {
            Some(by) => by,
            None if written.start.is_none() && written.end.is_none() => return Ok(None),
            None => By::Whole,
        },
    };
    let bound = |bound: &Option<At<config::Bound>>| match bound {
        None => Ok(None),
        Some(at) => moment_text(at, &column.ty, zone, now)
            .map(Some)
            .ok_or_else(|| no_value(at.with(()))),
    };
    let destination = written.destination.as_ref().map(|d| {
        match request.columns.iter().flatten().any(|c| c.destination == **d) || request.columns.is_none() {
            true => Term::column(d.as_str()),
            false => Term::Sql(d.to_string()),
        }
    });
    let same_name = || match &term {
        Term::Column { name, .. } if request.columns.is_none() => Some(Term::column(name)),
        _ => None,
    };
    Ok(Some(Dimension {
        destination: destination.or_else(same_name),
        name: match &term {
            Term::Column { name, .. } => name.clone(),
            _ => written.column.to_string(),
        },
        ty: column.ty.clone(),
        nullable: column.nullable,
        by,
        start: bound(&written.start)?,
        end: bound(&written.end)?,
        immutable: *written.immutable,
        term,
    }))
}

/// A column of the table itself needs no expression.
pub(crate) fn plain_if_possible(mut spec: ReadSpec) -> ReadSpec {
    if spec.joins.is_empty() {
        for column in &mut spec.columns {
            if let Some(Term::Column { relation: None, name }) = &column.term {
                column.source.clone_from(name);
                column.term = None;
            }
        }
    }
    spec
}

/// How a column is cut; a file's that has no value yet is not.
fn ranges_of(written: &config::Dimension, column: &Column, zone: Zone) -> Result<Option<By>> {
    match column.has_no_value() {
        true => Ok(None),
        false => range(written, &column.ty, zone),
    }
}

fn range(written: &config::Dimension, ty: &ColumnType, zone: Zone) -> Result<Option<By>> {
    use ColumnType as T;
    let Some(step) = &written.step else { return Ok(None) };
    let step_unit = written.step_unit.as_deref();
    let unit = |unit: StepUnit| match unit {
        StepUnit::Second | StepUnit::Timestamp => Unit::Second,
        StepUnit::Minute => Unit::Minute,
        StepUnit::Hour => Unit::Hour,
        StepUnit::Day => Unit::Day,
        StepUnit::Week => Unit::Week,
        StepUnit::Month => Unit::Month,
        StepUnit::Quarter => Unit::Quarter,
        StepUnit::Year => Unit::Year,
    };
    Ok(Some(match ty {
        T::Date | T::Timestamp | T::TimestampTz => {
            let unit = match step_unit {
                Some(u) => unit(*u),
                None if *ty == T::Date => Unit::Day,
                None => Unit::Second,
            };
            By::Time {
                step: **step,
                unit,
                zone,
            }
        }
        T::Uuid => By::UuidPrefix(**step),
        T::Text { .. } if is_uuid(written) => By::UuidPrefix(**step),
        T::Int8
        | T::Int16
        | T::Int32
        | T::Int64
        | T::UInt8
        | T::UInt16
        | T::UInt32
        | T::UInt64
        | T::Decimal { .. }
        | T::Numeric => By::Step(**step),
        other => {
            return Err(written
                .column
                .error(format!(
                    "column {} is {other}, which has no ranges of a step",
                    *written.column
                ))
                .with_help("use `type: value`, a list of values or `start` and `end`; a uuid that is kept as a text is cut with data_type: uuid")
                .into());
        }
    }))
}

/// Whether a dimension is said to be a uuid, whatever its column is.
fn is_uuid(written: &config::Dimension) -> bool {
    let said = written.data_type.as_deref();
    said.is_some_and(|t| matches!(t, DataType::Uuid | DataType::UuidText | DataType::UuidTextDash))
}

/// The zone in which units begin.
fn zone_of(written: &config::Dimension, strategy: &Strategy) -> Result<Zone> {
    let Some(zone) = written.time_zone.as_ref().or(strategy.time_zone.as_ref()) else {
        return Ok(Zone::UTC);
    };
    Zone::parse(zone).ok_or_else(|| {
        Error::from(
            zone.error(format!("{} is no time zone", **zone))
                .with_help("write UTC, a name such as Europe/Berlin, or an offset such as +05:30"),
        )
    })
}

/// An end of a dimension as canonical text of its type.
fn moment_text(bound: &config::Bound, ty: &ColumnType, zone: Zone, now: &str) -> Option<String> {
    const DAY: i64 = 86_400_000_000;
    let (midnight, seconds) = match bound {
        config::Bound::Value(text) => return canonical(text, ty),
        config::Bound::Moment { midnight, seconds } => (*midnight, *seconds),
    };
    let mut at = chrono::DateTime::parse_from_rfc3339(now).ok()?.timestamp() * 1_000_000;
    if midnight {
        at = zone.instant(zone.local(at).div_euclid(DAY) * DAY)?;
    }
    let micros = at.checked_add(seconds.checked_mul(1_000_000)?)?;
    let mut out = String::new();
    match ty {
        ColumnType::TimestampTz => synctool_core::text::write_timestamp(&mut out, micros, true),
        ColumnType::Timestamp => synctool_core::text::write_timestamp(&mut out, zone.local(micros), false),
        ColumnType::Date => {
            let days = zone.local(micros).div_euclid(DAY);
            synctool_core::text::write_date(&mut out, i32::try_from(days).ok()?);
        }
        _ => out = (micros / 1_000_000).to_string(),
    }
    Some(out)
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
    };
    if column.has_no_value() || column.ty.fits(&wanted) {
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
}

fn family(wanted: DataType, mapping: &ColumnMapping, source: &ColumnType) -> Family {
    use ColumnType as T;
    let keep_or = |keep: bool, ty: T| if keep { Family::Source } else { Family::Exactly(ty) };
    match wanted {
        DataType::Integer => keep_or(source.is_integer(), T::Int32),
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
        DataType::UuidTextDash if *source == T::Uuid => Family::Exactly(T::Char { length: 36 }),
        // The last stage makes them.
        DataType::UuidText | DataType::UuidTextDash => Family::Source,
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
