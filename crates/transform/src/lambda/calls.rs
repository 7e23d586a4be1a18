//! Methods and functions of a lambda as typed expressions.

use super::SUPPORTED;
use super::ast::{Kind, Node};
use super::functions::{Function, call};
use super::translate::{Translator, Type, Typed};
use crate::position::ExprError;
use datafusion_common::ScalarValue;
use datafusion_expr::{Expr, Operator, binary_expr, lit};

impl Translator<'_> {
    fn arity(
        &self,
        node: &Node,
        name: &str,
        args: &[Node],
        allowed: std::ops::RangeInclusive<usize>,
    ) -> Result<(), ExprError> {
        if allowed.contains(&args.len()) {
            return Ok(());
        }
        Err(self
            .error(node, format!("{name} does not take {} arguments here", args.len()))
            .hint(SUPPORTED))
    }

    pub(super) fn method(&self, node: &Node, of: &Node, name: &str, args: &[Node]) -> Result<Typed, ExprError> {
        let simple = |function: Function, allowed: std::ops::RangeInclusive<usize>| -> Result<Typed, ExprError> {
            self.arity(node, name, args, allowed)?;
            let mut all = vec![self.text_of(of)?];
            for arg in args {
                all.push(self.text_of(arg)?);
            }
            Ok(Typed::new(call(function, all), Type::Text))
        };
        let strip = |left: bool, right: bool| simple(Function::Strip { left, right }, 0..=1);
        match name {
            "upper" => simple(Function::Upper, 0..=0),
            "lower" => simple(Function::Lower, 0..=0),
            "title" => simple(Function::Title, 0..=0),
            "capitalize" => simple(Function::Capitalize, 0..=0),
            "strip" => strip(true, true),
            "lstrip" => strip(true, false),
            "rstrip" => strip(false, true),
            "zfill" => {
                self.arity(node, name, args, 1..=1)?;
                let width = self.int_of(&args[0])?;
                Ok(Typed::new(
                    call(Function::ZFill, vec![self.text_of(of)?, width]),
                    Type::Text,
                ))
            }
            "replace" => {
                self.arity(node, name, args, 2..=3)?;
                let mut all = vec![self.text_of(of)?, self.text_of(&args[0])?, self.text_of(&args[1])?];
                if let Some(count) = args.get(2) {
                    all.push(self.int_of(count)?);
                }
                Ok(Typed::new(call(Function::Replace, all), Type::Text))
            }
            "startswith" => self.affix(node, Function::StartsWith, of, args),
            "endswith" => self.affix(node, Function::EndsWith, of, args),
            "split" => Err(self
                .error(node, "split gives a list, and a column holds one value")
                .hint("take one part: .split(',')[0]")),
            _ => Err(self
                .error(node, format!("the method .{name}() is not supported"))
                .hint(SUPPORTED)),
        }
    }

    fn affix(&self, node: &Node, function: Function, of: &Node, args: &[Node]) -> Result<Typed, ExprError> {
        self.arity(node, "it", args, 1..=1)?;
        let affixes = match &args[0].kind {
            Kind::List(items) => items.as_slice(),
            _ => args,
        };
        let mut any: Option<Expr> = None;
        for affix in affixes {
            let one = call(function.clone(), vec![self.text_of(of)?, self.text_of(affix)?]);
            any = Some(match any {
                None => one,
                Some(before) => binary_expr(before, Operator::Or, one),
            });
        }
        Ok(Typed::new(any.unwrap_or_else(|| lit(false)), Type::Bool))
    }

    pub(super) fn index(&self, of: &Node, index: &Node) -> Result<Typed, ExprError> {
        if let Kind::Method(text, name, args) = &of.kind
            && name == "split"
        {
            self.arity(of, name, args, 0..=1)?;
            let mut all = vec![self.text_of(text)?, self.int_of(index)?];
            if let Some(separator) = args.first() {
                all.push(self.text_of(separator)?);
            }
            return Ok(Typed::new(call(Function::SplitAt, all), Type::Text));
        }
        if let Kind::Text(_) = index.kind {
            return Err(self
                .error(index, "a value inside a column's value cannot be reached by name")
                .hint("write the expression in SQL, or let the source extract it"));
        }
        let args = vec![self.text_of(of)?, self.int_of(index)?];
        Ok(Typed::new(call(Function::CharAt, args), Type::Text))
    }

    pub(super) fn function(&self, node: &Node, name: &str, args: &[Node]) -> Result<Typed, ExprError> {
        match name {
            "round" => self.round(node, args),
            "str" => {
                self.arity(node, name, args, 1..=1)?;
                Ok(Typed::new(self.print(&args[0])?, Type::Text))
            }
            "bool" => {
                self.arity(node, name, args, 1..=1)?;
                Ok(Typed::new(self.condition(&args[0])?, Type::Bool))
            }
            "int" | "float" => {
                self.arity(node, name, args, 1..=1)?;
                let v = self.value(&args[0])?.counted();
                let (function, ty) = if name == "int" {
                    (Function::Int, Type::Int)
                } else {
                    (Function::Float, Type::Float)
                };
                match v.ty {
                    Type::Null => Ok(Typed::new(v.cast(ty), ty)),
                    t if t.is_number() || t == Type::Text => Ok(Typed::new(call(function, vec![v.expr]), ty)),
                    t => Err(self.wrong(&args[0], "a number or text", t)),
                }
            }
            "abs" => {
                self.arity(node, name, args, 1..=1)?;
                let v = self.number(&args[0])?;
                Ok(Typed::new(call(Function::Absolute, vec![v.expr]), v.ty))
            }
            "len" => {
                self.arity(node, name, args, 1..=1)?;
                Ok(Typed::new(
                    call(Function::Length, vec![self.text_of(&args[0])?]),
                    Type::Int,
                ))
            }
            "min" | "max" => self.extreme(node, name, args),
            _ => Err(self
                .error(node, format!("the function {name} is not supported"))
                .hint(SUPPORTED)),
        }
    }

    fn round(&self, node: &Node, args: &[Node]) -> Result<Typed, ExprError> {
        self.arity(node, "round", args, 1..=2)?;
        let v = self.number(&args[0])?;
        let digits = match args.get(1).map(|n| &n.kind) {
            None | Some(Kind::None) => return Ok(Typed::new(call(Function::RoundWhole, vec![v.expr]), Type::Int)),
            Some(Kind::Int(d)) => d.parse::<i32>().ok(),
            Some(Kind::Negate(n)) => match &n.kind {
                Kind::Int(d) => d.parse::<i32>().ok().map(|d| -d),
                _ => None,
            },
            Some(_) => None,
        };
        let digits = digits
            .filter(|d| (-400..=400).contains(d))
            .ok_or_else(|| self.error(&args[1], "the digits to round to must be a whole number, written out"))?;
        if matches!(v.ty, Type::Decimal(..)) && !(-37..=37).contains(&digits) {
            return Err(self.error(&args[1], "a decimal has no more than 37 digits after the point"));
        }
        self.typed(node, call(Function::Round(digits), vec![v.expr]))
    }

    fn extreme(&self, node: &Node, name: &str, args: &[Node]) -> Result<Typed, ExprError> {
        let items = match args {
            [
                Node {
                    kind: Kind::List(items),
                    ..
                },
            ] => items.as_slice(),
            _ => args,
        };
        let [first, rest @ ..] = items else {
            return Err(self.error(node, format!("{name} needs values")));
        };
        let operator = if name == "min" { Operator::Lt } else { Operator::Gt };
        let mut best = self.value(first)?;
        for item in rest {
            let next = self.value(item)?;
            let (a, b) = self.comparable(item, next.clone(), best.clone())?;
            let better = Expr::IsTrue(Box::new(binary_expr(a, operator, b)));
            let null = |v: &Typed| Expr::IsNull(Box::new(v.expr.clone()));
            let unknown = binary_expr(null(&next), Operator::Or, null(&best));
            let chosen = self.choose(node, better, next, best)?;
            let nothing = Typed::new(lit(ScalarValue::Null), Type::Null);
            best = self.choose(node, unknown, nothing, chosen)?;
        }
        Ok(best)
    }
}
