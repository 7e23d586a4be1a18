//! The functions that lambdas need beyond SQL's, as the expression engine knows functions.

use super::numbers::{self, Number, Outcome};
use super::texts;
use arrow_array::builder::{BooleanBuilder, Decimal128Builder, Float64Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::types::{
    Date32Type, Decimal128Type, Float64Type, Int64Type, Time64MicrosecondType, TimestampMicrosecondType,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::{DataType, TimeUnit};
use datafusion_common::{DataFusionError, Result};
use datafusion_expr::{ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::sync::Arc;
use synctool_core::text;

/// A function of Python. Arguments are whole numbers of 64 bits, floats of 64 bits, decimals of 128 bits, text, truth
/// values, days and times; any NULL among them gives NULL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Function {
    Divide,
    FloorDivide,
    Modulo,
    /// To a literal exponent.
    WholePower(u32),
    FloatPower,
    RoundWhole,
    Round(i32),
    Int,
    Float,
    Absolute,
    Str,
    Fixed(u8),
    Padded(u8),
    Length,
    Upper,
    Lower,
    Title,
    Capitalize,
    ZFill,
    /// Both, left or right; with one argument blanks go, with two the characters of the second.
    Strip {
        left: bool,
        right: bool,
    },
    /// Text, old, new and perhaps how many.
    Replace,
    StartsWith,
    EndsWith,
    Contains,
    /// `text.split()[i]`, or with the separator as second argument.
    SplitAt,
    CharAt,
    /// Which ends are given: text, from, to.
    Slice {
        from: bool,
        to: bool,
    },
}

/// Digits that the quotient of decimals keeps beyond its operands', and at least.
const QUOTIENT_DIGITS: (i8, i8) = (6, 16);

/// How a reason travels in the engine's errors.
pub(crate) const REASON: &str = "synctool reason: ";

/// The error that rejects a row for this reason.
pub(crate) fn refused(reason: &str) -> DataFusionError {
    DataFusionError::Execution(format!("{REASON}{reason}"))
}

/// The arguments of a call as columns of its rows.
pub(crate) fn columns(args: Vec<ColumnarValue>, rows: usize) -> Result<Vec<ArrayRef>> {
    args.into_iter().map(|a| a.into_array(rows)).collect()
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Python {
    function: Function,
    signature: Signature,
}

/// Calls a function.
pub(super) fn call(function: Function, args: Vec<Expr>) -> Expr {
    let udf = ScalarUDF::new_from_impl(Python {
        function,
        signature: Signature::variadic_any(Volatility::Immutable),
    });
    udf.call(args)
}

/// The quotient of two numbers, one of them a decimal and the other no float.
pub(crate) fn quotient(dividend: Expr, divisor: Expr) -> Expr {
    call(Function::Divide, vec![dividend, divisor])
}

fn scale_of(ty: Option<&DataType>) -> Option<i8> {
    match ty {
        Some(DataType::Decimal128(_, s)) => Some(*s),
        Some(DataType::Int64) => Some(0),
        _ => None,
    }
}

impl ScalarUDFImpl for Python {
    fn name(&self) -> &str {
        match self.function {
            Function::Divide => "python_divide",
            Function::FloorDivide => "python_floor_divide",
            Function::Modulo => "python_modulo",
            Function::WholePower(_) | Function::FloatPower => "python_power",
            Function::RoundWhole | Function::Round(_) => "python_round",
            Function::Int => "python_int",
            Function::Float => "python_float",
            Function::Absolute => "python_abs",
            Function::Str => "python_str",
            Function::Fixed(_) | Function::Padded(_) => "python_format",
            Function::Length => "python_len",
            Function::Upper => "python_upper",
            Function::Lower => "python_lower",
            Function::Title => "python_title",
            Function::Capitalize => "python_capitalize",
            Function::ZFill => "python_zfill",
            Function::Strip { .. } => "python_strip",
            Function::Replace => "python_replace",
            Function::StartsWith => "python_startswith",
            Function::EndsWith => "python_endswith",
            Function::Contains => "python_contains",
            Function::SplitAt => "python_split",
            Function::CharAt => "python_index",
            Function::Slice { .. } => "python_slice",
        }
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, args: &[DataType]) -> Result<DataType> {
        let decimal = |s: i8| DataType::Decimal128(38, s);
        let scales = || Some((scale_of(args.first())?, scale_of(args.get(1))?));
        let is_decimal = args.iter().take(2).any(|t| matches!(t, DataType::Decimal128(..)));
        Ok(match (&self.function, is_decimal) {
            (Function::Divide, true) => {
                let (a, b) = scales().unwrap_or_default();
                let (more, least) = QUOTIENT_DIGITS;
                decimal(a.max(b).saturating_add(more).max(least).min(37))
            }
            (Function::Divide | Function::FloatPower | Function::Float, _) => DataType::Float64,
            (Function::FloorDivide, true) => decimal(0),
            (Function::Modulo, true) => {
                let (a, b) = scales().unwrap_or_default();
                decimal(a.max(b))
            }
            (Function::FloorDivide | Function::Modulo, _) => {
                let float = args.contains(&DataType::Float64);
                if float { DataType::Float64 } else { DataType::Int64 }
            }
            (Function::WholePower(n), true) => decimal(scale_of(args.first()).unwrap_or_default() * *n as i8),
            (Function::Round(digits), true) => decimal((*digits).clamp(0, 37) as i8),
            (Function::WholePower(_) | Function::Round(_) | Function::Absolute, _) => args[0].clone(),
            (Function::RoundWhole | Function::Int | Function::Length, _) => DataType::Int64,
            (Function::StartsWith | Function::EndsWith | Function::Contains, _) => DataType::Boolean,
            _ => DataType::Utf8,
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let out = args.return_field.data_type().clone();
        let arrays = columns(args.args, rows)?;
        let mut to = Builder::new(&out)?;
        let scale = scale_of(Some(&out)).unwrap_or_default();
        let mut values = Vec::with_capacity(arrays.len());
        for row in 0..rows {
            if arrays.iter().any(|a| a.is_null(row)) {
                to.append(None)?;
                continue;
            }
            values.clear();
            for array in &arrays {
                values.push(Value::of(array, row)?);
            }
            match self.function.call(&values, scale) {
                Ok(value) => to.append(Some(value))?,
                Err(reason) => return Err(refused(reason)),
            }
        }
        Ok(ColumnarValue::Array(to.finish()))
    }
}

enum Value<'a> {
    Number(Number),
    Bool(bool),
    Text(&'a str),
    Made(String),
}

impl<'a> Value<'a> {
    fn of(array: &'a ArrayRef, row: usize) -> Result<Value<'a>> {
        Ok(match array.data_type() {
            DataType::Int64 => Value::Number(Number::Int(array.as_primitive::<Int64Type>().value(row))),
            DataType::Float64 => Value::Number(Number::Float(array.as_primitive::<Float64Type>().value(row))),
            DataType::Decimal128(_, s) => {
                Value::Number(Number::Decimal(array.as_primitive::<Decimal128Type>().value(row), *s))
            }
            DataType::Boolean => Value::Bool(array.as_boolean().value(row)),
            DataType::Utf8 => Value::Text(array.as_string::<i32>().value(row)),
            DataType::Date32 => {
                let mut out = String::new();
                text::write_date(&mut out, array.as_primitive::<Date32Type>().value(row));
                Value::Made(out)
            }
            DataType::Time64(TimeUnit::Microsecond) => {
                Value::Made(time(array.as_primitive::<Time64MicrosecondType>().value(row)))
            }
            DataType::Timestamp(TimeUnit::Microsecond, zone) => {
                let micros = array.as_primitive::<TimestampMicrosecondType>().value(row);
                let mut out = String::new();
                text::write_timestamp(&mut out, micros, false);
                if !matches!(micros, i64::MAX | i64::MIN) {
                    // Python prints all six digits or none.
                    let day = out.find(' ').map_or(0, |at| at + 1);
                    out.truncate(day);
                    out.push_str(&time(micros.rem_euclid(86_400_000_000)));
                    if zone.is_some() {
                        out.push_str("+00:00");
                    }
                }
                Value::Made(out)
            }
            other => return Err(DataFusionError::Internal(format!("no Python value of {other}"))),
        })
    }

    fn number(&self) -> Outcome<Number> {
        match self {
            Value::Number(n) => Ok(*n),
            Value::Bool(b) => Ok(Number::Int(i64::from(*b))),
            _ => Err(numbers::CAST),
        }
    }

    fn int(&self) -> Outcome<i64> {
        match self.number()? {
            Number::Int(v) => Ok(v),
            _ => Err(numbers::CAST),
        }
    }

    fn text(&self) -> &str {
        match self {
            Value::Text(t) => t,
            Value::Made(t) => t,
            _ => "",
        }
    }
}

fn time(micros: i64) -> String {
    let mut out = String::new();
    text::write_time(&mut out, micros - micros % 1_000_000);
    match micros % 1_000_000 {
        0 => out,
        us => format!("{out}.{us:06}"),
    }
}

impl Function {
    fn call(&self, args: &[Value<'_>], scale: i8) -> Outcome<Value<'static>> {
        let number = |i: usize| args[i].number();
        let text = |i: usize| args[i].text();
        let second = || args.get(1).map(Value::text);
        let made = |t: String| Ok(Value::Made(t));
        let counted = |n: Number| Ok(Value::Number(n));
        match self {
            Function::Divide => counted(numbers::divide(number(0)?, number(1)?, scale)?),
            Function::FloorDivide => counted(numbers::floor_divide(number(0)?, number(1)?)?),
            Function::Modulo => counted(numbers::modulo(number(0)?, number(1)?)?),
            Function::WholePower(n) => counted(numbers::whole_power(number(0)?, *n)?),
            Function::FloatPower => {
                let (base, exponent) = (numbers::to_float(number(0)?), numbers::to_float(number(1)?));
                counted(Number::Float(numbers::float_power(base, exponent)?))
            }
            Function::RoundWhole => counted(Number::Int(numbers::round_whole(number(0)?)?)),
            Function::Round(digits) => counted(numbers::round(number(0)?, *digits)?),
            Function::Int => counted(Number::Int(match &args[0] {
                Value::Text(t) => numbers::parse_int(t)?,
                v => numbers::to_int(v.number()?)?,
            })),
            Function::Float => counted(Number::Float(match &args[0] {
                Value::Text(t) => numbers::parse_float(t)?,
                v => numbers::to_float(v.number()?),
            })),
            Function::Absolute => counted(numbers::absolute(number(0)?)?),
            Function::Str => made(match &args[0] {
                Value::Number(n) => numbers::print(*n),
                Value::Bool(b) => if *b { "True" } else { "False" }.into(),
                v => v.text().to_string(),
            }),
            Function::Fixed(digits) => made(numbers::print_fixed(number(0)?, *digits)?),
            Function::Padded(width) => made(format!("{:0width$}", args[0].int()?, width = usize::from(*width))),
            Function::Length => counted(Number::Int(text(0).chars().count() as i64)),
            Function::Upper => made(text(0).to_uppercase()),
            Function::Lower => made(text(0).to_lowercase()),
            Function::Title => made(texts::title(text(0))),
            Function::Capitalize => made(texts::capitalize(text(0))),
            Function::ZFill => made(texts::zfill(text(0), args[1].int()?)),
            Function::Strip { left, right } => made(texts::strip(text(0), second(), *left, *right).to_string()),
            Function::Replace => {
                let (old, new) = (text(1), text(2));
                made(match args.get(3).map(Value::int).transpose()? {
                    Some(n) if n >= 0 => text(0).replacen(old, new, n as usize),
                    _ => text(0).replace(old, new),
                })
            }
            Function::StartsWith => Ok(Value::Bool(text(0).starts_with(text(1)))),
            Function::EndsWith => Ok(Value::Bool(text(0).ends_with(text(1)))),
            Function::Contains => Ok(Value::Bool(text(0).contains(text(1)))),
            Function::SplitAt => match args {
                [of, index] => made(texts::split_at(of.text(), None, index.int()?)?),
                [of, index, separator, ..] => made(texts::split_at(of.text(), Some(separator.text()), index.int()?)?),
                _ => Err(numbers::CAST),
            },
            Function::CharAt => made(texts::char_at(text(0), args[1].int()?)?),
            Function::Slice { from, to } => {
                let ends: Vec<i64> = args[1..].iter().map(Value::int).collect::<Outcome<_>>()?;
                let mut ends = ends.into_iter();
                let from = from.then(|| ends.next()).flatten();
                let to = to.then(|| ends.next()).flatten();
                made(texts::slice(text(0), from, to))
            }
        }
    }
}

enum Builder {
    Int(Int64Builder),
    Float(Float64Builder),
    Decimal(Decimal128Builder, u8, i8),
    Text(StringBuilder),
    Bool(BooleanBuilder),
}

impl Builder {
    fn new(ty: &DataType) -> Result<Self> {
        Ok(match ty {
            DataType::Int64 => Builder::Int(Int64Builder::new()),
            DataType::Float64 => Builder::Float(Float64Builder::new()),
            DataType::Decimal128(p, s) => Builder::Decimal(Decimal128Builder::new().with_data_type(ty.clone()), *p, *s),
            DataType::Utf8 => Builder::Text(StringBuilder::new()),
            DataType::Boolean => Builder::Bool(BooleanBuilder::new()),
            other => return Err(DataFusionError::Internal(format!("no Python function gives {other}"))),
        })
    }

    fn append(&mut self, value: Option<Value<'_>>) -> Result<()> {
        match (self, value) {
            (Builder::Int(b), None) => b.append_null(),
            (Builder::Float(b), None) => b.append_null(),
            (Builder::Decimal(b, ..), None) => b.append_null(),
            (Builder::Text(b), None) => b.append_null(),
            (Builder::Bool(b), None) => b.append_null(),
            (Builder::Int(b), Some(Value::Number(Number::Int(v)))) => b.append_value(v),
            (Builder::Float(b), Some(Value::Number(n))) => b.append_value(numbers::to_float(n)),
            (Builder::Decimal(b, p, s), Some(Value::Number(Number::Decimal(v, from)))) => {
                let v = numbers::rescale(v, from, *s).map_err(refused)?;
                if v.unsigned_abs() >= 10u128.pow(u32::from(*p)) {
                    return Err(refused(numbers::OVERFLOW));
                }
                b.append_value(v);
            }
            (Builder::Text(b), Some(v @ (Value::Text(_) | Value::Made(_)))) => b.append_value(v.text()),
            (Builder::Bool(b), Some(Value::Bool(v))) => b.append_value(v),
            _ => return Err(DataFusionError::Internal("a Python function gave another type".into())),
        }
        Ok(())
    }

    fn finish(self) -> ArrayRef {
        match self {
            Builder::Int(mut b) => Arc::new(b.finish()),
            Builder::Float(mut b) => Arc::new(b.finish()),
            Builder::Decimal(mut b, ..) => Arc::new(b.finish()),
            Builder::Text(mut b) => Arc::new(b.finish()),
            Builder::Bool(mut b) => Arc::new(b.finish()),
        }
    }
}
