//! What the parser reads and an expression does not mean, or means otherwise than the engine takes it: refused or
//! written anew before it is planned.

use super::engine::{Mistake, What, offset};
use super::moments;
use datafusion_sql::sqlparser::ast::{
    self, DataType, ExactNumberInfo, Query, Spanned, Value, ValueWithSpan, VisitMut, VisitorMut,
};
use datafusion_sql::sqlparser::tokenizer::Location;
use std::ops::ControlFlow;

/// Brings a parsed expression into the form that is planned.
pub(super) fn settle(text: &str, expr: &mut ast::Expr) -> Result<(), Mistake> {
    match expr.visit(&mut Rules) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(refusal) => Err(Mistake {
            offset: offset(text, refusal.at),
            what: What::Other(refusal.message),
        }),
    }
}

struct Refusal {
    at: Location,
    message: String,
}

fn refuse(at: Location, message: impl Into<String>) -> ControlFlow<Box<Refusal>> {
    let message = message.into();
    ControlFlow::Break(Box::new(Refusal { at, message }))
}

struct Rules;

impl VisitorMut for Rules {
    type Break = Box<Refusal>;

    fn pre_visit_query(&mut self, query: &mut Query) -> ControlFlow<Self::Break> {
        refuse(
            query.span().start,
            "subqueries are not possible in an expression, which sees the columns of its row",
        )
    }

    fn post_visit_expr(&mut self, expr: &mut ast::Expr) -> ControlFlow<Self::Break> {
        let at = expr.span().start;
        match expr {
            ast::Expr::Cast { data_type, .. } => cast_to(data_type, at),
            ast::Expr::TypedString(typed) => cast_to(&mut typed.data_type, at),
            ast::Expr::SimilarTo {
                pattern, escape_char, ..
            } => {
                let place = pattern.span();
                let escape = match escape_char.take().map(ValueWithSpan::into_string) {
                    None => Some('\\'),
                    Some(Some(text)) if text.chars().count() <= 1 => text.chars().next(),
                    Some(_) => return refuse(at, "the escape of SIMILAR TO is one character"),
                };
                let Some(written) = literal(pattern) else {
                    return refuse(place.start, "the pattern of SIMILAR TO must be written out, as a text");
                };
                match regular(&written, escape) {
                    Ok(made) => {
                        **pattern = ast::Expr::Value(Value::SingleQuotedString(made).with_span(place));
                        ControlFlow::Continue(())
                    }
                    Err(why) => refuse(place.start, why),
                }
            }
            ast::Expr::AtTimeZone { time_zone, .. } => {
                let place = time_zone.span();
                match literal(time_zone).as_deref().map(moments::marked) {
                    Some(Ok(marked)) => {
                        **time_zone = ast::Expr::Value(Value::SingleQuotedString(marked).with_span(place));
                        ControlFlow::Continue(())
                    }
                    Some(Err(why)) => refuse(place.start, why),
                    None => refuse(place.start, "the zone of AT TIME ZONE must be written out, as a text"),
                }
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

fn literal(expr: &ast::Expr) -> Option<String> {
    match expr {
        ast::Expr::Value(value) => value.value.clone().into_string(),
        _ => None,
    }
}

/// The engine takes sizes of text and of seconds for nothing and `float` for 32 bits.
fn cast_to(ty: &mut DataType, at: Location) -> ControlFlow<Box<Refusal>> {
    match ty {
        DataType::Varchar(Some(_))
        | DataType::Char(Some(_))
        | DataType::Character(Some(_))
        | DataType::CharacterVarying(Some(_))
        | DataType::CharVarying(Some(_))
        | DataType::Nvarchar(Some(_)) => refuse(
            at,
            "a CAST to text takes no length here: left(…, n) cuts, and the type of the column (`as`) refuses what is longer",
        ),
        DataType::Timestamp(Some(digits), _) if *digits != 6 => refuse(
            at,
            "a CAST to timestamp takes no digits of seconds here: date_trunc('second', …) cuts",
        ),
        DataType::Float(ExactNumberInfo::Precision(bits)) if *bits <= 24 => {
            *ty = DataType::Real;
            ControlFlow::Continue(())
        }
        DataType::Float(_) => {
            *ty = DataType::DoublePrecision;
            ControlFlow::Continue(())
        }
        _ => ControlFlow::Continue(()),
    }
}

/// A pattern of `SIMILAR TO` as a regular expression that matches the same texts.
fn regular(pattern: &str, escape: Option<char>) -> Result<String, &'static str> {
    let mut out = String::from("(?s)^(?:");
    let mut chars = pattern.chars().peekable();
    // Inside a class: whether nothing stands in it yet.
    let mut class: Option<bool> = None;
    while let Some(c) = chars.next() {
        if Some(c) == escape {
            let Some(next) = chars.next() else {
                return Err("the pattern of SIMILAR TO ends with its escape");
            };
            push_literal(&mut out, next);
            class = class.map(|_| false);
            continue;
        }
        match (class, c) {
            (Some(true), '^') => {
                out.push('^');
                continue;
            }
            (Some(false), ']') => {
                out.push(']');
                class = None;
                continue;
            }
            (Some(_), '[') if chars.peek() == Some(&':') => {
                out.push('[');
                for c in chars.by_ref() {
                    out.push(c);
                    if c == ']' {
                        break;
                    }
                }
            }
            (Some(_), '-') => out.push('-'),
            (None, '%') => out.push_str(".*"),
            (None, '_') => out.push('.'),
            (None, '(') => out.push_str("(?:"),
            (None, '|' | '*' | '+' | '?' | ')' | '{' | '}') => out.push(c),
            (None, '[') => {
                out.push('[');
                class = Some(true);
                continue;
            }
            _ => push_literal(&mut out, c),
        }
        class = class.map(|_| false);
    }
    if class.is_some() {
        return Err("the pattern of SIMILAR TO has a [ without its ]");
    }
    out.push_str(")$");
    Ok(out)
}

fn push_literal(out: &mut String, c: char) {
    if r"\.+*?()|[]{}^$#&-~".contains(c) {
        out.push('\\');
    }
    out.push(c);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_whole_texts() {
        let of = |p: &str| regular(p, Some('\\')).unwrap();
        assert_eq!(of("a%"), "(?s)^(?:a.*)$");
        assert_eq!(of("(b|c)_+"), "(?s)^(?:(?:b|c).+)$");
        assert_eq!(of("a.b^$"), r"(?s)^(?:a\.b\^\$)$");
        assert_eq!(of(r"10\%"), "(?s)^(?:10%)$");
        assert_eq!(of("[^a-z%[:digit:]]{2,3}"), "(?s)^(?:[^a-z%[:digit:]]{2,3})$");
        assert_eq!(of("[]a]"), r"(?s)^(?:[\]a])$");
        assert_eq!(regular("1#%", Some('#')).unwrap(), "(?s)^(?:1%)$");
        assert!(regular("a\\", Some('\\')).is_err() && regular("[a", None).is_err());
    }
}
