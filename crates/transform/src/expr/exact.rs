//! What a user writes stays exact: casts that lose nothing, quotients with digits enough, signs that do not wrap and
//! moments in microseconds. Explicit casts are told apart from those that the engine adds to bring operands together,
//! so this comes before its coercion.

use super::moments;
use super::view::Output;
use crate::convert;
use crate::lambda::{quotient, refused};
use arrow_array::cast::AsArray;
use arrow_array::types::{Date32Type, Int64Type, TimestampMicrosecondType, TimestampNanosecondType};
use arrow_array::{Array, ArrayRef, Date32Array, TimestampMicrosecondArray, new_null_array};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};
use datafusion_common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion_common::{DFSchema, Result, ScalarValue, plan_err};
use datafusion_expr::expr::Cast;
use datafusion_expr::{
    BinaryExpr, ColumnarValue, Expr, ExprSchemable, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    Volatility, binary_expr, lit,
};
use datafusion_optimizer::simplify_expressions::ExprSimplifier;
use std::sync::Arc;
use synctool_core::schema::Column;

/// An expression as it is meant, not coerced yet.
pub(super) fn as_meant(expr: Expr, schema: &DFSchema, simplifier: &ExprSimplifier) -> Result<Expr> {
    let type_of = |e: &Expr| {
        let coerced = simplifier.coerce(e.clone(), schema)?;
        coerced.get_type(schema)
    };
    expr.transform_up(|e| {
        Ok(Transformed::yes(match e {
            Expr::Cast(c) => cast(*c.expr, c.field.data_type(), false)?,
            Expr::TryCast(c) => cast(*c.expr, c.field.data_type(), true)?,
            Expr::Negative(of) => match type_of(&of)? {
                // A difference is checked for overflow, a sign is not.
                ty if ty.is_signed_integer() => binary_expr(lit(ScalarValue::new_zero(&ty)?), Operator::Minus, *of),
                _ => Expr::Negative(of),
            },
            Expr::BinaryExpr(b) if b.op == Operator::Divide => divide(b, type_of)?,
            Expr::ScalarFunction(f) => {
                let e = Expr::ScalarFunction(f);
                match type_of(&e)? {
                    DataType::Timestamp(TimeUnit::Nanosecond, zone) => {
                        exact(e, DataType::Timestamp(TimeUnit::Microsecond, zone), false)
                    }
                    _ => e,
                }
            }
            e => return Ok(Transformed::no(e)),
        }))
    })
    .data()
}

fn divide(b: BinaryExpr, type_of: impl Fn(&Expr) -> Result<DataType>) -> Result<Expr> {
    let decimal = |ty: &DataType| matches!(ty, DataType::Decimal128(..) | DataType::Decimal256(..));
    let types = (type_of(&b.left)?, type_of(&b.right)?);
    let exact = |ty: &DataType| decimal(ty) || ty.is_integer();
    if !(decimal(&types.0) || decimal(&types.1)) || !(exact(&types.0) && exact(&types.1)) {
        return Ok(Expr::BinaryExpr(b));
    }
    let operand = |e: Expr, ty: DataType| match ty {
        DataType::Decimal128(..) | DataType::Int64 => Ok(e),
        DataType::UInt64 => Ok(Expr::Cast(Cast::new(Box::new(e), DataType::Decimal128(20, 0)))),
        DataType::Decimal256(..) => plan_err!("decimals with more than 38 digits are not divided: cast them to fewer"),
        _ => Ok(Expr::Cast(Cast::new(Box::new(e), DataType::Int64))),
    };
    Ok(quotient(operand(*b.left, types.0)?, operand(*b.right, types.1)?))
}

fn cast(expr: Expr, to: &DataType, lenient: bool) -> Result<Expr> {
    let to = match to {
        DataType::Interval(_) | DataType::Duration(_) => return Ok(Expr::Cast(Cast::new(Box::new(expr), to.clone()))),
        DataType::Timestamp(_, zone) => {
            if let Some(zone) = zone.as_deref().and_then(moments::unmarked) {
                return moments::at_zone(expr, zone);
            }
            DataType::Timestamp(TimeUnit::Microsecond, zone.clone())
        }
        DataType::Time32(_) | DataType::Time64(_) => DataType::Time64(TimeUnit::Microsecond),
        to => to.clone(),
    };
    let Expr::Literal(value, _) = &expr else {
        return Ok(exact(expr, to, lenient));
    };
    match convert(&value.to_array()?, &to, lenient) {
        Ok(made) => Ok(lit(ScalarValue::try_from_array(&made, 0)?)),
        Err(_) => {
            let name = Output::of(&to).map_or_else(|_| to.to_string(), |o| o.ty.to_string());
            plan_err!("this value does not become {name}: nothing is rounded or cut")
        }
    }
}

fn exact(expr: Expr, to: DataType, lenient: bool) -> Expr {
    ScalarUDF::new_from_impl(Exact {
        to,
        lenient,
        signature: Signature::any(1, Volatility::Immutable),
    })
    .call(vec![expr])
}

/// A cast that a user wrote.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Exact {
    to: DataType,
    /// What has no place in the type is NULL (`TRY_CAST`).
    lenient: bool,
    signature: Signature,
}

impl ScalarUDFImpl for Exact {
    fn name(&self) -> &str {
        "cast"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.to.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        each(&args.args[0], |array| convert(array, &self.to, self.lenient))
    }
}

/// Work on one argument; a constant stays one.
pub(super) fn each(
    value: &ColumnarValue,
    work: impl Fn(&ArrayRef) -> std::result::Result<ArrayRef, &'static str>,
) -> Result<ColumnarValue> {
    Ok(match value {
        ColumnarValue::Array(array) => ColumnarValue::Array(work(array).map_err(refused)?),
        ColumnarValue::Scalar(scalar) => {
            let made = work(&scalar.to_array()?).map_err(refused)?;
            ColumnarValue::Scalar(ScalarValue::try_from_array(&made, 0)?)
        }
    })
}

const FINER: &str = "finer_than_microseconds";
const BAD: &str = "bad_cast";

/// Values in another type, whole or not at all.
fn convert(array: &ArrayRef, to: &DataType, lenient: bool) -> std::result::Result<ArrayRef, &'static str> {
    use DataType::*;
    let by_engine = |array: &ArrayRef, to: &DataType| {
        let options = CastOptions {
            safe: lenient,
            ..CastOptions::default()
        };
        cast_with_options(array, to, &options).map_err(|_| BAD)
    };
    let unit = |t: &DataType| matches!(t, Timestamp(..));
    match (array.data_type(), to) {
        (from, to) if from == to => Ok(array.clone()),
        (Null, to) => Ok(new_null_array(to, array.len())),
        (Utf8View | LargeUtf8, to) => convert(&by_engine(array, &Utf8)?, to, lenient),
        (from, to) if widens(from, to) => by_engine(array, to),
        (from, to) if (number(from) || *from == Utf8) && number(to) => {
            let column = |ty: &DataType| Output::of(ty).map(|o| Column::new("", o.ty)).map_err(|_| BAD);
            let (made, failures) = convert::convert(array, &column(from)?, &column(to)?).map_err(|_| BAD)?;
            match failures.first() {
                Some((_, reason)) if !lenient => Err(reason),
                _ => by_engine(&made, to),
            }
        }
        (Date32, Timestamp(..)) => {
            let days = array.as_primitive::<Date32Type>();
            let made: TimestampMicrosecondArray = days.iter().map(|d| d.map(moments::of_day)).collect();
            by_engine(&(Arc::new(zoned(made, to)) as ArrayRef), to)
        }
        (Timestamp(TimeUnit::Microsecond, _), Date32) => {
            let micros = array.as_primitive::<TimestampMicrosecondType>();
            let made = micros.iter().map(|m| m.map(moments::day).transpose());
            let made: Date32Array = made.collect::<std::result::Result<_, _>>().map_err(|()| BAD)?;
            Ok(Arc::new(made))
        }
        (Timestamp(TimeUnit::Nanosecond, _), Timestamp(..)) => {
            let nanos = array.as_primitive::<TimestampNanosecondType>();
            if nanos.iter().flatten().any(|v| v % 1000 != 0) {
                return Err(FINER);
            }
            by_engine(array, to)
        }
        // A number is seconds since 1970.
        (from, Timestamp(..)) if from.is_integer() => {
            let seconds = by_engine(array, &Int64)?;
            let seconds = seconds.as_primitive::<Int64Type>();
            let made = seconds.iter().map(|s| match s {
                Some(s) => s.checked_mul(1_000_000).map(Some).ok_or("overflow"),
                None => Ok(None),
            });
            let made: TimestampMicrosecondArray = made.collect::<std::result::Result<_, _>>()?;
            Ok(Arc::new(zoned(made, to)))
        }
        (Utf8, to) if unit(to) || matches!(to, Time64(_)) => {
            if array.as_string::<i32>().iter().flatten().any(is_finer) {
                return Err(FINER);
            }
            by_engine(array, to)
        }
        _ => by_engine(array, to),
    }
}

fn zoned(array: TimestampMicrosecondArray, like: &DataType) -> TimestampMicrosecondArray {
    match like {
        DataType::Timestamp(_, zone) => array.with_timezone_opt(zone.clone()),
        _ => array,
    }
}

fn number(ty: &DataType) -> bool {
    ty.is_integer() || matches!(ty, DataType::Float32 | DataType::Float64 | DataType::Decimal128(_, 0..))
}

/// Casts in which the engine itself loses nothing, or fails.
fn widens(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (from, to) if from.is_integer() && to.is_integer() => true,
        (from, Decimal128(_, 0..)) => match from {
            Decimal128(_, s) => matches!(to, Decimal128(_, t) if s <= t),
            from => from.is_integer(),
        },
        (Int8 | Int16 | UInt8 | UInt16, Float32 | Float64) | (Int32 | UInt32 | Float32, Float64) => true,
        _ => false,
    }
}

fn is_finer(text: &str) -> bool {
    text.split_once('.').is_some_and(|(_, rest)| {
        let digits = rest.bytes().take_while(u8::is_ascii_digit);
        digits.skip(6).any(|b| b != b'0')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_beyond_microseconds_are_seen() {
        assert!(is_finer("2024-01-01 10:00:00.1234567") && !is_finer("2024-01-01 10:00:00.1234560+02"));
        assert!(!is_finer("10:00:00"));
    }
}
