//! Expressions over the columns of a table, in SQL or as a Python lambda ([`crate::lambda`]): typed when the plan is
//! made, evaluated batch by batch.
//!
//! How a column appears in an expression:
//!
//! - A column that travels as text appears in its own type: a `decimal(12,2)` carried as text is a decimal.
//! - `numeric` without a size is `decimal(38,10)`. A value with more digits (or NaN) refuses the row; it is never
//!   rounded.
//! - `uuid`, `json`, `jsonb`, `interval`, `timetz` and native types are their canonical text.
//! - Everything else is the type it says.
//!
//! A number with a point in SQL is a decimal, so arithmetic with decimals stays exact; only what the user rounds is
//! rounded (`round(x, 2)` in SQL goes away from zero at the half, in a lambda to the even neighbour as in Python), and
//! quotients, which have no end. A cast loses nothing or refuses the row ([`exact`]), floats stay numbers ([`finite`]),
//! and moments are counted in microseconds ([`moments`]).
//! Names of columns are exact, with or without double quotes.
//!
//! What goes wrong in one row (overflow, a cast, division by zero) costs that row, with a reason; the rest of the batch
//! is evaluated.

mod engine;
mod exact;
mod finite;
mod grammar;
mod moments;
mod view;

use crate::lambda;
use crate::position::{ExprError, did_you_mean};
use crate::rows::Failure;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_schema::{Field, Schema, SchemaRef};
use datafusion_common::{DFSchema, DataFusionError};
use datafusion_expr::Expr;
use datafusion_physical_expr::PhysicalExpr;
use std::sync::Arc;
use synctool_core::error::{Error, Result};
use synctool_core::schema::{Column, ColumnType};

/// Reads an expression without knowing the columns: mistakes of grammar only.
pub fn check_syntax(text: &str) -> Result<(), ExprError> {
    columns_of(text).map(|_| ())
}

/// The type that an expression over these columns has.
pub fn check(text: &str, columns: &[Column]) -> Result<ColumnType, ExprError> {
    Expression::compile("value", text, columns).map(|e| e.output.ty)
}

/// The columns that an expression names, whether they are there or not.
pub(crate) fn columns_of(text: &str) -> Result<Vec<String>, ExprError> {
    let mut found = Vec::new();
    if lambda::is_lambda(text) {
        lambda::parse(text)?.columns(&mut found);
    } else {
        engine::names(text, &mut found)?;
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// An expression, ready for batches of one schema.
#[derive(Debug)]
pub(crate) struct Expression {
    /// What comes out.
    pub(crate) output: Column,
    /// The columns it reads, by their places in the batch.
    pub(crate) inputs: Vec<usize>,
    columns: Vec<Column>,
    work: Work,
}

#[derive(Debug)]
enum Work {
    /// The column itself, in whatever form it travels.
    Copy,
    Compute {
        physical: Arc<dyn PhysicalExpr>,
        schema: SchemaRef,
        result: view::Output,
    },
}

impl Expression {
    /// Compiles a text into a value for the column `name`.
    pub(crate) fn compile(name: &str, text: &str, columns: &[Column]) -> Result<Expression, ExprError> {
        Self::build(name, text, columns, false)
    }

    /// Compiles a text into a condition.
    pub(crate) fn condition(text: &str, columns: &[Column]) -> Result<Expression, ExprError> {
        let e = Self::build("condition", text, columns, true)?;
        if e.output.ty != ColumnType::Bool {
            let message = format!("a condition is true or false, and this is {}", e.output.ty);
            return Err(ExprError::new(text, 0, message));
        }
        Ok(e)
    }

    fn build(name: &str, text: &str, columns: &[Column], truth: bool) -> Result<Expression, ExprError> {
        let fields: Vec<Field> = columns
            .iter()
            .map(|c| Field::new(&c.name, view::appears_as(c), true))
            .collect();
        let whole =
            DFSchema::try_from(Schema::new(fields.clone())).map_err(|e| ExprError::new(text, 0, first_line(&e)))?;
        let logical = if lambda::is_lambda(text) {
            let node = lambda::parse(text)?;
            let translated = match truth {
                true => lambda::translate_truth(text, &node, &whole)?,
                false => lambda::translate(text, &node, &whole)?,
            };
            engine::prepare(translated, &whole).map_err(|e| ExprError::new(text, 0, first_line(&e)))?
        } else {
            engine::plan(text, &whole).map_err(|m| explain(text, m, columns))?
        };
        if let Expr::Column(c) = &logical
            && let Some(at) = columns.iter().position(|k| k.name == c.name)
        {
            let output = Column {
                name: name.to_string(),
                nullable: true,
                generated: false,
                identity: false,
                ..columns[at].clone()
            };
            return Ok(Expression {
                output,
                inputs: vec![at],
                columns: vec![columns[at].clone()],
                work: Work::Copy,
            });
        }
        let used = logical.column_refs();
        let inputs: Vec<usize> = (0..columns.len())
            .filter(|i| used.iter().any(|c| c.name == columns[*i].name))
            .collect();
        let schema = Arc::new(Schema::new(
            inputs.iter().map(|i| fields[*i].clone()).collect::<Vec<_>>(),
        ));
        let physical = engine::physical(&logical, &schema).map_err(|e| ExprError::new(text, 0, first_line(&e)))?;
        let ty = physical
            .data_type(&schema)
            .map_err(|e| ExprError::new(text, 0, first_line(&e)))?;
        let result =
            view::Output::of(&ty).map_err(|m| ExprError::new(text, 0, m).hint("CAST it to the type you want"))?;
        Ok(Expression {
            output: Column::new(name, result.ty.clone()),
            columns: inputs.iter().map(|i| columns[*i].clone()).collect(),
            inputs,
            work: Work::Compute {
                physical,
                schema,
                result,
            },
        })
    }

    /// The value of every row; a row without one is NULL and stands among the failures.
    pub(crate) fn evaluate(&self, batch: &RecordBatch) -> Result<(ArrayRef, Vec<Failure>)> {
        let (physical, schema, result) = match &self.work {
            Work::Copy => return Ok((batch.column(self.inputs[0]).clone(), Vec::new())),
            Work::Compute {
                physical,
                schema,
                result,
            } => (physical, schema, result),
        };
        let mut failures = Vec::new();
        let mut arrays = Vec::with_capacity(self.inputs.len());
        for (at, column) in self.inputs.iter().zip(&self.columns) {
            arrays.push(view::present(batch.column(*at), column, &mut failures)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let rows = RecordBatch::try_new_with_options(schema.clone(), arrays, &options)
            .map_err(|e| Error::bug(format!("expression: {e}")))?;
        let mut parts = Vec::new();
        isolate(physical, result, &rows, 0, &mut parts, &mut failures)?;
        let parts: Vec<&dyn Array> = parts.iter().map(AsRef::as_ref).collect();
        let value = match parts.as_slice() {
            [] => new_null_array(&result.arrow, 0),
            [_] => arrow_array::make_array(parts[0].to_data()),
            _ => arrow_select::concat::concat(&parts).map_err(|e| Error::bug(format!("expression: {e}")))?,
        };
        failures.sort_unstable();
        failures.dedup_by_key(|f| f.0);
        Ok((value, failures))
    }
}

/// Evaluates rows; where that fails, halves them until the rows that fail stand alone.
fn isolate(
    physical: &Arc<dyn PhysicalExpr>,
    result: &view::Output,
    rows: &RecordBatch,
    from: usize,
    parts: &mut Vec<ArrayRef>,
    failures: &mut Vec<Failure>,
) -> Result<()> {
    let count = rows.num_rows();
    if count == 0 {
        return Ok(());
    }
    let value = physical.evaluate(rows).and_then(|v| v.into_array(count));
    let error = match value {
        Ok(array) => {
            parts.push(result.settle(array, from, failures)?);
            return Ok(());
        }
        Err(e) => e,
    };
    let reason = reason(&error)?;
    if count == 1 {
        failures.push((from, reason));
        parts.push(new_null_array(&result.arrow, 1));
        return Ok(());
    }
    let half = count / 2;
    isolate(physical, result, &rows.slice(0, half), from, parts, failures)?;
    isolate(
        physical,
        result,
        &rows.slice(half, count - half),
        from + half,
        parts,
        failures,
    )
}

/// Why a row failed, without its values; an error that is not the row's fault goes on.
fn reason(error: &DataFusionError) -> Result<&'static str> {
    let root = error.find_root();
    let text = match root {
        DataFusionError::Execution(_) | DataFusionError::ArrowError(..) => root.to_string(),
        // The values of the row may stand in the text.
        _ => return Err(Error::bug("an expression that was planned cannot be evaluated")),
    };
    if let Some(at) = text.find(lambda::REASON) {
        let word = &text[at + lambda::REASON.len()..];
        let known = [
            "overflow",
            "division_by_zero",
            "bad_cast",
            "out_of_range",
            "not_a_real_number",
            "empty_separator",
            "finer_than_microseconds",
            "too_long",
        ];
        return Ok(known.into_iter().find(|k| word.starts_with(k)).unwrap_or("evaluation"));
    }
    let text = text.to_lowercase();
    Ok(
        if text.contains("divide by zero") || text.contains("division by zero") {
            "division_by_zero"
        } else if text.contains("overflow") || text.contains("out of range") || text.contains("too large") {
            "overflow"
        } else if text.contains("cast") || text.contains("pars") || text.contains("invalid") {
            "bad_cast"
        } else {
            "evaluation"
        },
    )
}

fn first_line(e: &DataFusionError) -> String {
    let text = e.find_root().message().to_string();
    text.lines().next().unwrap_or_default().to_string()
}

/// A mistake in SQL in our words.
fn explain(text: &str, mistake: engine::Mistake, columns: &[Column]) -> ExprError {
    let error = |message: String| ExprError::new(text, mistake.offset, message);
    match mistake.what {
        engine::What::Column(name) => ExprError {
            missing: Some(name.clone()),
            ..error(format!("column {name} is not in the pipeline"))
                .hint(did_you_mean(&name, columns.iter().map(|c| c.name.as_str())))
        },
        engine::What::Function(name) => {
            let known = engine::function_names();
            error(format!("there is no function {name}")).hint(
                match crate::position::nearest(&name, known.iter().map(String::as_str)) {
                    Some(near) => format!("did you mean {near}?"),
                    None => "functions are those of DataFusion's SQL".to_string(),
                },
            )
        }
        engine::What::Other(message) => error(message),
    }
}
