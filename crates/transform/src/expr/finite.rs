//! Floats that stay numbers: what leaves the finite ones rejects its row, where the engine goes on with infinity and
//! NaN. What was not finite before may stay so.

use crate::lambda::refused;
use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Float32Type, Float64Type};
use arrow_array::{Array, ArrayRef, PrimitiveArray};
use arrow_schema::{DataType, FieldRef, TimeUnit};
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion_common::{DFSchema, DataFusionError, Result};
use datafusion_expr::expr::Cast;
use datafusion_expr::{
    ColumnarValue, Expr, ExprSchemable, Operator, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature, Volatility,
};
use std::collections::HashSet;
use std::ops::{Add, Div, Mul, Rem, Sub};
use std::sync::{Arc, LazyLock};

/// A coerced expression whose arithmetic with floats is checked, and whose moments are compared in microseconds.
pub(super) fn checked(expr: Expr, schema: &DFSchema) -> Result<Expr> {
    expr.transform_up(|e| {
        Ok(match e {
            Expr::BinaryExpr(b) => {
                let float = b.left.get_type(schema)?;
                if is_arithmetic(b.op) && is_float(&float) && b.right.get_type(schema)? == float {
                    Transformed::yes(finite(Work::Arithmetic(b.op), vec![*b.left, *b.right]))
                } else if is_comparison(b.op) {
                    in_micros(Expr::BinaryExpr(b), schema)?
                } else {
                    Transformed::no(Expr::BinaryExpr(b))
                }
            }
            Expr::ScalarFunction(f) if !f.args.is_empty() && MATHEMATICAL.contains(f.func.name()) => {
                let e = Expr::ScalarFunction(f);
                let float = is_float(&e.get_type(schema)?);
                match e {
                    Expr::ScalarFunction(f) if float => Transformed::yes(finite(Work::Function(f.func), f.args)),
                    e => Transformed::no(e),
                }
            }
            e @ (Expr::Between(_) | Expr::InList(_) | Expr::Case(_)) => in_micros(e, schema)?,
            e => Transformed::no(e),
        })
    })
    .data()
}

/// What brings operands together in nanoseconds does so in microseconds, where all of them were brought.
fn in_micros(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let nanos = |ty: &DataType| matches!(ty, DataType::Timestamp(TimeUnit::Nanosecond, _));
    let mut others = false;
    expr.apply_children(|c| {
        others |= !matches!(c, Expr::Cast(_)) && nanos(&c.get_type(schema)?);
        Ok(datafusion_common::tree_node::TreeNodeRecursion::Continue)
    })?;
    if others {
        return Ok(Transformed::no(expr));
    }
    expr.map_children(|c| {
        Ok(match c {
            Expr::Cast(cast) => match cast.field.data_type() {
                DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
                    let to = DataType::Timestamp(TimeUnit::Microsecond, zone.clone());
                    Transformed::yes(Expr::Cast(Cast::new(cast.expr, to)))
                }
                _ => Transformed::no(Expr::Cast(cast)),
            },
            c => Transformed::no(c),
        })
    })
}

/// Functions of numbers; `nanvl` is there for NaN.
static MATHEMATICAL: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let all = datafusion_functions::math::functions().into_iter();
    all.map(|f| f.name().to_string()).filter(|n| n != "nanvl").collect()
});

fn is_float(ty: &DataType) -> bool {
    matches!(ty, DataType::Float32 | DataType::Float64)
}

fn is_arithmetic(op: Operator) -> bool {
    use Operator::*;
    matches!(op, Plus | Minus | Multiply | Divide | Modulo)
}

fn is_comparison(op: Operator) -> bool {
    use Operator::*;
    matches!(
        op,
        Eq | NotEq | Lt | LtEq | Gt | GtEq | IsDistinctFrom | IsNotDistinctFrom
    )
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Work {
    Arithmetic(Operator),
    Function(Arc<ScalarUDF>),
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Finite {
    work: Work,
    signature: Signature,
}

fn finite(work: Work, args: Vec<Expr>) -> Expr {
    // The arguments are coerced already.
    let signature = Signature::variadic_any(Volatility::Immutable);
    ScalarUDF::new_from_impl(Finite { work, signature }).call(args)
}

impl ScalarUDFImpl for Finite {
    fn name(&self) -> &str {
        match &self.work {
            Work::Arithmetic(_) => "arithmetic",
            Work::Function(f) => f.name(),
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        match &self.work {
            Work::Arithmetic(_) => Ok(types.first().cloned().unwrap_or(DataType::Float64)),
            Work::Function(f) => f.return_type(types),
        }
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs) -> Result<FieldRef> {
        match &self.work {
            Work::Arithmetic(_) => Ok(args.arg_fields[0].as_ref().clone().with_nullable(true).into()),
            Work::Function(f) => f.return_field_from_args(args),
        }
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let inputs = args.args.clone();
        let result = match &self.work {
            Work::Function(f) => f.invoke_with_args(args)?.into_array(rows)?,
            Work::Arithmetic(op) => {
                let (a, b) = (inputs[0].to_array(rows)?, inputs[1].to_array(rows)?);
                match a.data_type() {
                    DataType::Float32 => compute::<Float32Type>(*op, &a, &b)?,
                    _ => compute::<Float64Type>(*op, &a, &b)?,
                }
            }
        };
        let bad: Vec<(usize, f64)> = (0..result.len())
            .filter_map(|row| float(&result, row).filter(|v| !v.is_finite()).map(|v| (row, v)))
            .collect();
        if !bad.is_empty() {
            let inputs: Vec<ArrayRef> = inputs.iter().map(|i| i.to_array(rows)).collect::<Result<_>>()?;
            for (row, value) in bad {
                if inputs.iter().all(|i| float(i, row).is_none_or(f64::is_finite)) {
                    return Err(refused(self.why(&inputs, row, value)));
                }
            }
        }
        Ok(ColumnarValue::Array(result))
    }
}

impl Finite {
    fn why(&self, inputs: &[ArrayRef], row: usize, value: f64) -> &'static str {
        match &self.work {
            Work::Arithmetic(Operator::Divide | Operator::Modulo) if float(&inputs[1], row) == Some(0.0) => {
                "division_by_zero"
            }
            _ if value.is_nan() => "not_a_real_number",
            _ => "overflow",
        }
    }
}

/// The value of a row if it is a float.
fn float(array: &ArrayRef, row: usize) -> Option<f64> {
    if array.is_null(row) {
        return None;
    }
    match array.data_type() {
        DataType::Float32 => Some(array.as_primitive::<Float32Type>().value(row).into()),
        DataType::Float64 => Some(array.as_primitive::<Float64Type>().value(row)),
        _ => None,
    }
}

fn compute<T: ArrowPrimitiveType>(op: Operator, a: &ArrayRef, b: &ArrayRef) -> Result<ArrayRef>
where
    T::Native: Add<Output = T::Native>
        + Sub<Output = T::Native>
        + Mul<Output = T::Native>
        + Div<Output = T::Native>
        + Rem<Output = T::Native>,
{
    let work: fn(T::Native, T::Native) -> T::Native = match op {
        Operator::Plus => |a, b| a + b,
        Operator::Minus => |a, b| a - b,
        Operator::Multiply => |a, b| a * b,
        Operator::Divide => |a, b| a / b,
        Operator::Modulo => |a, b| a % b,
        op => return Err(DataFusionError::Internal(format!("{op} is no arithmetic"))),
    };
    let pairs = a.as_primitive::<T>().iter().zip(b.as_primitive::<T>().iter());
    let made: PrimitiveArray<T> = pairs.map(|(a, b)| Some(work(a?, b?))).collect();
    Ok(Arc::new(made))
}
