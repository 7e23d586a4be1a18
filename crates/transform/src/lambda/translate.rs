//! The tree of a lambda as a typed expression.

use super::ast::{Arithmetic, Comparison, Kind, Node, Piece, Style};
use super::functions::{Function, call};
use crate::position::{ExprError, did_you_mean};
use arrow_schema::{DataType, TimeUnit};
use datafusion_common::{Column, DFSchema, ScalarValue};
use datafusion_expr::expr::{Case, Cast};
use datafusion_expr::{Expr, ExprSchemable, Operator, binary_expr, lit};
use std::fmt;

/// Translates a lambda over the columns of a schema.
pub(crate) fn translate(text: &str, node: &Node, schema: &DFSchema) -> Result<Expr, ExprError> {
    let t = Translator { text, schema };
    let value = t.value(node)?;
    if value.ty == Type::Null {
        return Err(t.error(node, "the value is always None, so it has no type"));
    }
    Ok(value.expr)
}

/// Translates a lambda into its truth, as a filter needs it.
pub(crate) fn translate_truth(text: &str, node: &Node, schema: &DFSchema) -> Result<Expr, ExprError> {
    Translator { text, schema }.condition(node)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    Null,
    Bool,
    Int,
    Float,
    Decimal(u8, i8),
    Text,
    Date,
    Time,
    /// With a zone or without.
    Timestamp(bool),
    Bytes,
}

impl Type {
    fn arrow(self) -> DataType {
        match self {
            Type::Null => DataType::Null,
            Type::Bool => DataType::Boolean,
            Type::Int => DataType::Int64,
            Type::Float => DataType::Float64,
            Type::Decimal(p, s) => DataType::Decimal128(p, s),
            Type::Text => DataType::Utf8,
            Type::Date => DataType::Date32,
            Type::Time => DataType::Time64(TimeUnit::Microsecond),
            Type::Timestamp(zone) => DataType::Timestamp(TimeUnit::Microsecond, zone.then(|| "UTC".into())),
            Type::Bytes => DataType::Binary,
        }
    }

    pub(super) fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Float | Type::Decimal(..) | Type::Bool)
    }
}

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Type::Null => "None",
            Type::Bool => "a truth value",
            Type::Int => "a whole number",
            Type::Float => "a float",
            Type::Decimal(..) => "a decimal",
            Type::Text => "text",
            Type::Date => "a date",
            Type::Time => "a time",
            Type::Timestamp(_) => "a timestamp",
            Type::Bytes => "bytes",
        })
    }
}

#[derive(Debug, Clone)]
pub(super) struct Typed {
    pub(super) expr: Expr,
    pub(super) ty: Type,
    /// A number literal as it was written.
    written: Option<String>,
}

impl Typed {
    pub(super) fn new(expr: Expr, ty: Type) -> Self {
        Typed {
            expr,
            ty,
            written: None,
        }
    }

    pub(super) fn cast(self, ty: Type) -> Expr {
        if self.ty == ty {
            return self.expr;
        }
        if self.ty == Type::Null {
            return lit(ScalarValue::try_new_null(&ty.arrow()).unwrap_or(ScalarValue::Null));
        }
        Expr::Cast(Cast::new(Box::new(self.expr), ty.arrow()))
    }

    /// A truth value counts as 0 or 1.
    pub(super) fn counted(self) -> Self {
        if self.ty == Type::Bool {
            Typed::new(self.cast(Type::Int), Type::Int)
        } else {
            self
        }
    }

    /// A literal as the decimal that was written.
    fn as_written(&self) -> Option<Typed> {
        let text = self.written.as_deref()?;
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{fraction}");
        let value: i128 = digits.parse().ok()?;
        let scale = i8::try_from(fraction.len()).ok()?;
        let precision = digits.trim_start_matches(['-', '0']).len().max(fraction.len()).max(1);
        let precision = u8::try_from(precision).ok().filter(|p| *p <= 38)?;
        let value = lit(ScalarValue::Decimal128(Some(value), precision, scale));
        Some(Typed::new(value, Type::Decimal(precision, scale)))
    }
}

/// Whether Python takes a value for true.
fn truth(v: Typed) -> Expr {
    let test = match v.ty {
        Type::Null => return lit(false),
        Type::Bool => v.expr,
        Type::Int => binary_expr(v.expr, Operator::NotEq, lit(0i64)),
        Type::Float => binary_expr(unsigned_zero(v.expr), Operator::NotEq, lit(0f64)),
        Type::Decimal(p, s) => {
            let zero = lit(ScalarValue::Decimal128(Some(0), p, s));
            binary_expr(v.expr, Operator::NotEq, zero)
        }
        Type::Text => binary_expr(v.expr, Operator::NotEq, lit("")),
        Type::Bytes => binary_expr(v.expr, Operator::NotEq, lit(ScalarValue::Binary(Some(Vec::new())))),
        Type::Date | Type::Time | Type::Timestamp(_) => return Expr::IsNotNull(Box::new(v.expr)),
    };
    Expr::IsTrue(Box::new(test))
}

/// The engine orders -0.0 before 0.0; Python takes them for equal.
fn unsigned_zero(expr: Expr) -> Expr {
    binary_expr(expr, Operator::Plus, lit(0f64))
}

fn case(test: Expr, then: Expr, otherwise: Expr) -> Expr {
    Expr::Case(Case::new(
        None,
        vec![(Box::new(test), Box::new(then))],
        Some(Box::new(otherwise)),
    ))
}

pub(super) struct Translator<'a> {
    text: &'a str,
    schema: &'a DFSchema,
}

impl Translator<'_> {
    pub(super) fn error(&self, node: &Node, message: impl Into<String>) -> ExprError {
        ExprError::new(self.text, node.at, message)
    }

    pub(super) fn value(&self, node: &Node) -> Result<Typed, ExprError> {
        Ok(match &node.kind {
            Kind::None => Typed::new(lit(ScalarValue::Null), Type::Null),
            Kind::Bool(b) => Typed::new(lit(*b), Type::Bool),
            Kind::Int(digits) => self.int(node, digits.clone())?,
            Kind::Float(written) => {
                let value: f64 = written
                    .parse()
                    .map_err(|_| self.error(node, "this number cannot be read"))?;
                Typed {
                    expr: lit(value),
                    ty: Type::Float,
                    written: Some(written.clone()),
                }
            }
            Kind::Text(t) => Typed::new(lit(t.as_str()), Type::Text),
            Kind::Column(name) => self.column(node, name)?,
            Kind::Negate(of) => self.negate(of)?,
            Kind::Plus(of) => self.number(of)?,
            Kind::Not(of) => Typed::new(Expr::Not(Box::new(self.condition(of)?)), Type::Bool),
            Kind::Binary(op, a, b) => self.arithmetic(node, *op, a, b)?,
            Kind::Compare(first, rest) => self.compare(first, rest)?,
            Kind::And(a, b) => {
                let (left, right) = (self.value(a)?, self.value(b)?);
                let test = truth(left.clone());
                self.choose(node, test, right, left)?
            }
            Kind::Or(a, b) => {
                let (left, right) = (self.value(a)?, self.value(b)?);
                let test = truth(left.clone());
                self.choose(node, test, left, right)?
            }
            Kind::If { test, then, otherwise } => {
                let test = self.condition(test)?;
                self.choose(node, test, self.value(then)?, self.value(otherwise)?)?
            }
            Kind::Format(pieces) => self.format(pieces)?,
            Kind::Method(of, name, args) => self.method(node, of, name, args)?,
            Kind::Call(name, args) => self.function(node, name, args)?,
            Kind::Index(of, index) => self.index(of, index)?,
            Kind::Slice(of, from, to) => {
                let mut args = vec![self.text_of(of)?];
                for end in [from, to].into_iter().flatten() {
                    args.push(self.int_of(end)?);
                }
                let function = Function::Slice {
                    from: from.is_some(),
                    to: to.is_some(),
                };
                Typed::new(call(function, args), Type::Text)
            }
            Kind::List(_) => {
                return Err(self
                    .error(node, "a list or tuple is no value of a column")
                    .hint("lists stand behind `in`, and in min, max, startswith and endswith"));
            }
        })
    }

    /// Whether Python takes a value for true. What stands in a condition only counts as that, so that the operands of
    /// `and` and `or` may have two types; as in Python the second one is not looked at where the first decides.
    pub(super) fn condition(&self, node: &Node) -> Result<Expr, ExprError> {
        Ok(match &node.kind {
            Kind::And(a, b) => case(self.condition(a)?, self.condition(b)?, lit(false)),
            Kind::Or(a, b) => case(self.condition(a)?, lit(true), self.condition(b)?),
            Kind::If { test, then, otherwise } => {
                case(self.condition(test)?, self.condition(then)?, self.condition(otherwise)?)
            }
            _ => truth(self.value(node)?),
        })
    }

    fn int(&self, node: &Node, digits: String) -> Result<Typed, ExprError> {
        let value: i64 = digits
            .parse()
            .map_err(|_| self.error(node, "this number has more than 64 bits"))?;
        Ok(Typed {
            expr: lit(value),
            ty: Type::Int,
            written: Some(digits),
        })
    }

    fn negate(&self, of: &Node) -> Result<Typed, ExprError> {
        if let Kind::Int(digits) = &of.kind {
            return self.int(of, format!("-{digits}"));
        }
        let v = self.number(of)?;
        let written = v.written.as_ref().map(|w| format!("-{w}"));
        let expr = match v.ty {
            // A difference is checked for overflow, a sign is not.
            Type::Int => binary_expr(lit(0i64), Operator::Minus, v.expr),
            _ => Expr::Negative(Box::new(v.expr)),
        };
        Ok(Typed {
            expr,
            ty: v.ty,
            written,
        })
    }

    fn column(&self, node: &Node, name: &str) -> Result<Typed, ExprError> {
        let field = self.schema.fields().iter().find(|f| f.name() == name).ok_or_else(|| {
            let known = self.schema.fields().iter().map(|f| f.name().as_str());
            ExprError {
                missing: Some(name.to_string()),
                ..self
                    .error(node, format!("column {name} is not in the pipeline"))
                    .hint(did_you_mean(name, known))
            }
        })?;
        let column = Typed::new(Expr::Column(Column::from_name(name)), Type::Null);
        let widened = |ty: Type| Typed::new(Expr::Cast(Cast::new(Box::new(column.expr.clone()), ty.arrow())), ty);
        let as_is = |ty: Type| Typed::new(column.expr.clone(), ty);
        Ok(match field.data_type() {
            DataType::Boolean => as_is(Type::Bool),
            DataType::Int64 => as_is(Type::Int),
            DataType::Int8 | DataType::Int16 | DataType::Int32 => widened(Type::Int),
            DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => widened(Type::Int),
            DataType::Float64 => as_is(Type::Float),
            DataType::Float32 => widened(Type::Float),
            DataType::Decimal128(p, s) => as_is(Type::Decimal(*p, *s)),
            DataType::Utf8 => as_is(Type::Text),
            DataType::Date32 => as_is(Type::Date),
            DataType::Time64(TimeUnit::Microsecond) => as_is(Type::Time),
            DataType::Timestamp(TimeUnit::Microsecond, zone) => as_is(Type::Timestamp(zone.is_some())),
            DataType::Binary => as_is(Type::Bytes),
            other => {
                return Err(self
                    .error(node, format!("column {name} ({other}) has no place in a lambda"))
                    .hint("write the expression in SQL"));
            }
        })
    }

    pub(super) fn wrong(&self, node: &Node, wanted: &str, found: Type) -> ExprError {
        self.error(node, format!("{wanted} is needed here, and this is {found}"))
    }

    pub(super) fn number(&self, node: &Node) -> Result<Typed, ExprError> {
        let v = self.value(node)?;
        match v.ty {
            t if t.is_number() => Ok(v.counted()),
            Type::Null => Ok(Typed::new(v.cast(Type::Int), Type::Int)),
            t => Err(self.wrong(node, "a number", t)),
        }
    }

    pub(super) fn text_of(&self, node: &Node) -> Result<Expr, ExprError> {
        let v = self.value(node)?;
        match v.ty {
            Type::Text | Type::Null => Ok(v.cast(Type::Text)),
            t => Err(self.wrong(node, "text", t).hint("str(…) makes text of it")),
        }
    }

    pub(super) fn int_of(&self, node: &Node) -> Result<Expr, ExprError> {
        let v = self.value(node)?;
        match v.ty {
            Type::Int | Type::Bool | Type::Null => Ok(v.cast(Type::Int)),
            t => Err(self.wrong(node, "a whole number", t)),
        }
    }

    /// Two numbers in one type.
    fn unify(&self, a: Typed, b: Typed) -> (Expr, Expr, Type) {
        let (a, b) = (a.counted(), b.counted());
        let written = |v: &Typed| v.as_written();
        match (a.ty, b.ty) {
            (Type::Int, Type::Int) => (a.expr, b.expr, Type::Int),
            (Type::Decimal(..), Type::Decimal(..)) => decimals(a, b),
            (Type::Decimal(..), Type::Int | Type::Float) if b.written.is_some() && written(&b).is_some() => {
                let b = written(&b).unwrap_or(b);
                decimals(a, b)
            }
            (Type::Int | Type::Float, Type::Decimal(..)) if a.written.is_some() && written(&a).is_some() => {
                let a = written(&a).unwrap_or(a);
                decimals(a, b)
            }
            (Type::Decimal(..), Type::Int) => {
                let ty = Type::Decimal(19, 0);
                decimals(a, Typed::new(b.cast(ty), ty))
            }
            (Type::Int, Type::Decimal(..)) => {
                let ty = Type::Decimal(19, 0);
                decimals(Typed::new(a.cast(ty), ty), b)
            }
            _ => {
                let float = |v: Typed| match v.ty {
                    Type::Decimal(..) => call(Function::Float, vec![v.expr]),
                    _ => v.cast(Type::Float),
                };
                (float(a), float(b), Type::Float)
            }
        }
    }

    fn arithmetic(&self, node: &Node, op: Arithmetic, left: &Node, right: &Node) -> Result<Typed, ExprError> {
        let (a, b) = (self.value(left)?, self.value(right)?);
        if op == Arithmetic::Add && (a.ty == Type::Text || b.ty == Type::Text) {
            let text = |v: Typed, node: &Node| match v.ty {
                Type::Text | Type::Null => Ok(v.cast(Type::Text)),
                t => Err(self
                    .error(node, format!("text + {t}: Python adds text to text only"))
                    .hint("write str(…) around it")),
            };
            let sum = binary_expr(text(a, left)?, Operator::StringConcat, text(b, right)?);
            return Ok(Typed::new(sum, Type::Text));
        }
        if op == Arithmetic::Modulo && a.ty == Type::Text {
            return Err(self
                .error(node, "formatting with % is not supported")
                .hint("write an f-string"));
        }
        if matches!(a.ty, Type::Date | Type::Time | Type::Timestamp(_)) {
            return Err(self
                .error(node, format!("arithmetic with {} is not supported", a.ty))
                .hint("write the expression in SQL: \"due\" + INTERVAL '1 day'"));
        }
        let (a, b) = (self.number(left)?, self.number(right)?);
        if op == Arithmetic::Power {
            return self.power(right, a, b);
        }
        let (a, b, ty) = self.unify(a, b);
        let operator = match op {
            Arithmetic::Add => Operator::Plus,
            Arithmetic::Subtract => Operator::Minus,
            Arithmetic::Multiply => Operator::Multiply,
            _ => {
                let function = match op {
                    Arithmetic::Divide => Function::Divide,
                    Arithmetic::FloorDivide => Function::FloorDivide,
                    _ => Function::Modulo,
                };
                // Whole numbers divide to a float, and the conversion is part of it.
                return self.typed(node, call(function, vec![a, b]));
            }
        };
        match ty {
            Type::Decimal(..) => self.typed(node, binary_expr(a, operator, b)),
            ty => Ok(Typed::new(binary_expr(a, operator, b), ty)),
        }
    }

    fn power(&self, exponent: &Node, a: Typed, b: Typed) -> Result<Typed, ExprError> {
        let literal = match &exponent.kind {
            Kind::Int(d) => d.parse::<u32>().ok(),
            _ => None,
        };
        match (literal, a.ty, b.ty) {
            (Some(n), Type::Int | Type::Float, _) => Ok(Typed::new(call(Function::WholePower(n), vec![a.expr]), a.ty)),
            (Some(n), Type::Decimal(_, s), _) if u32::from(s.unsigned_abs()) * n <= 37 => Ok(Typed::new(
                call(Function::WholePower(n), vec![a.expr]),
                Type::Decimal(38, s * n as i8),
            )),
            (_, Type::Float, _) | (_, _, Type::Float) => Ok(Typed::new(
                call(Function::FloatPower, vec![a.expr, b.expr]),
                Type::Float,
            )),
            (_, Type::Int, Type::Int) if matches!(&exponent.kind, Kind::Negate(of) if matches!(of.kind, Kind::Int(_))) => {
                Ok(Typed::new(
                    call(Function::FloatPower, vec![a.expr, b.expr]),
                    Type::Float,
                ))
            }
            _ => Err(self
                .error(exponent, "the exponent must be a small whole number, written out")
                .hint("float(…) ** … takes any exponent")),
        }
    }

    /// An expression whose type the engine knows.
    pub(super) fn typed(&self, node: &Node, expr: Expr) -> Result<Typed, ExprError> {
        let ty = match expr.get_type(self.schema) {
            Ok(DataType::Int64) => Type::Int,
            Ok(DataType::Float64) => Type::Float,
            Ok(DataType::Decimal128(p, s)) => Type::Decimal(p, s),
            Ok(DataType::Boolean) => Type::Bool,
            Ok(DataType::Utf8) => Type::Text,
            _ => {
                return Err(self
                    .error(node, "the result has more digits than a decimal keeps")
                    .hint("round the operands"));
            }
        };
        Ok(Typed::new(expr, ty))
    }

    fn compare(&self, first: &Node, rest: &[(Comparison, Node)]) -> Result<Typed, ExprError> {
        let mut left = first;
        let mut all: Option<Expr> = None;
        for (op, right) in rest {
            let one = self.comparison(*op, left, right)?;
            all = Some(match all {
                None => one,
                Some(before) => binary_expr(before, Operator::And, one),
            });
            left = right;
        }
        Ok(Typed::new(all.unwrap_or_else(|| lit(true)), Type::Bool))
    }

    fn comparison(&self, op: Comparison, left: &Node, right: &Node) -> Result<Expr, ExprError> {
        if let Comparison::In | Comparison::NotIn = op {
            let inside = self.contained(left, right)?;
            return Ok(if op == Comparison::In {
                inside
            } else {
                Expr::Not(Box::new(inside))
            });
        }
        let (a, b) = (self.value(left)?, self.value(right)?);
        if let Comparison::Is | Comparison::IsNot = op {
            let of = match (a.ty, b.ty) {
                (_, Type::Null) => a.expr,
                (Type::Null, _) => b.expr,
                _ => return Err(self.error(right, "`is` compares with None only").hint("write ==")),
            };
            return Ok(match op {
                Comparison::Is => Expr::IsNull(Box::new(of)),
                _ => Expr::IsNotNull(Box::new(of)),
            });
        }
        let operator = match op {
            Comparison::Equal => Operator::IsNotDistinctFrom,
            Comparison::NotEqual => Operator::IsDistinctFrom,
            Comparison::Less => Operator::Lt,
            Comparison::LessOrEqual => Operator::LtEq,
            Comparison::Greater => Operator::Gt,
            _ => Operator::GtEq,
        };
        let (a, b) = self.comparable(right, a, b)?;
        Ok(binary_expr(a, operator, b))
    }

    pub(super) fn comparable(&self, node: &Node, a: Typed, b: Typed) -> Result<(Expr, Expr), ExprError> {
        match (a.ty, b.ty) {
            (x, y) if x == y && !x.is_number() => Ok((a.expr, b.expr)),
            (Type::Bool, Type::Bool) => Ok((a.expr, b.expr)),
            (x, y) if x.is_number() && y.is_number() => Ok(match self.unify(a, b) {
                (a, b, Type::Float) => (unsigned_zero(a), unsigned_zero(b)),
                (a, b, _) => (a, b),
            }),
            (Type::Null, y) => Ok((a.cast(y), b.expr)),
            (x, Type::Null) => Ok((a.expr, b.cast(x))),
            (x, y) => Err(self
                .error(node, format!("{x} is never comparable with {y}"))
                .hint("bring both to one type: int(…), float(…) or str(…)")),
        }
    }

    fn contained(&self, left: &Node, right: &Node) -> Result<Expr, ExprError> {
        let Kind::List(items) = &right.kind else {
            let args = vec![self.text_of(right)?, self.text_of(left)?];
            return Ok(call(Function::Contains, args));
        };
        let mut any: Option<Expr> = None;
        for item in items {
            let one = self.comparison(Comparison::Equal, left, item)?;
            any = Some(match any {
                None => one,
                Some(before) => binary_expr(before, Operator::Or, one),
            });
        }
        Ok(any.unwrap_or_else(|| lit(false)))
    }

    /// One of two values, in one type.
    pub(super) fn choose(&self, node: &Node, test: Expr, then: Typed, otherwise: Typed) -> Result<Typed, ExprError> {
        let (a, b, ty) = match (then.ty, otherwise.ty) {
            (x, y) if x == y => (then.expr, otherwise.expr, x),
            (Type::Null, y) => (then.cast(y), otherwise.expr, y),
            (x, Type::Null) => (then.expr, otherwise.cast(x), x),
            (x, y) if x.is_number() && y.is_number() && x != Type::Bool && y != Type::Bool => {
                let (a, b, ty) = self.unify(then, otherwise);
                let cast = |expr: Expr| match ty {
                    Type::Decimal(..) => Expr::Cast(Cast::new(Box::new(expr), ty.arrow())),
                    _ => expr,
                };
                (cast(a), cast(b), ty)
            }
            (x, y) => {
                return Err(self
                    .error(
                        node,
                        format!("the value would be {x} or {y}, and a column has one type"),
                    )
                    .hint("bring both to one type: int(…), float(…) or str(…)"));
            }
        };
        Ok(Typed::new(case(test, a, b), ty))
    }

    fn format(&self, pieces: &[Piece]) -> Result<Typed, ExprError> {
        let mut all = lit("");
        for piece in pieces {
            let part = match piece {
                Piece::Text(t) => lit(t.as_str()),
                Piece::Value(node, Style::Plain) => self.print(node)?,
                Piece::Value(node, Style::Fixed(digits)) => {
                    call(Function::Fixed(*digits), vec![self.number(node)?.expr])
                }
                Piece::Value(node, Style::Padded(width)) => call(Function::Padded(*width), vec![self.int_of(node)?]),
            };
            all = binary_expr(all, Operator::StringConcat, part);
        }
        Ok(Typed::new(all, Type::Text))
    }

    /// `str(…)`
    pub(super) fn print(&self, node: &Node) -> Result<Expr, ExprError> {
        let v = self.value(node)?;
        match v.ty {
            Type::Text | Type::Null => Ok(v.cast(Type::Text)),
            Type::Bytes => Err(self
                .error(node, "bytes have no text of their own")
                .hint("encode them in SQL")),
            _ => Ok(call(Function::Str, vec![v.expr])),
        }
    }
}

fn decimals(a: Typed, b: Typed) -> (Expr, Expr, Type) {
    let (Type::Decimal(p, s), Type::Decimal(q, t)) = (a.ty, b.ty) else {
        return (a.expr, b.expr, a.ty);
    };
    let scale = s.max(t);
    let whole = (p as i8 - s).max(q as i8 - t);
    let precision = (whole + scale).clamp(1, 38) as u8;
    (a.expr, b.expr, Type::Decimal(precision, scale))
}
