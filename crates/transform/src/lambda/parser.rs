//! Text to tree: Python's precedences, one function per level.

use super::SUPPORTED;
use super::ast::{Arithmetic, Comparison, Kind, Node, Piece, Style};
use super::lexer::{Placed, Token, tokens, unescape};
use crate::position::ExprError;

/// Deeper nesting is refused rather than overflowing the stack.
const DEPTH: usize = 64;

const FUNCTIONS: &[&str] = &["round", "str", "int", "float", "abs", "len", "min", "max", "bool"];

const METHODS: &[&str] = &[
    "upper",
    "lower",
    "strip",
    "lstrip",
    "rstrip",
    "replace",
    "split",
    "startswith",
    "endswith",
    "title",
    "capitalize",
    "zfill",
];

/// Reads `lambda x: …`.
pub(crate) fn parse(text: &str) -> Result<Node, ExprError> {
    let tokens = tokens(text, 0, text.len())?;
    let mut p = Parser {
        text,
        tokens,
        next: 0,
        row: String::new(),
        depth: 0,
    };
    p.word("lambda")?;
    let at = p.here();
    p.row = match p.take() {
        Token::Name(name) if !is_keyword(&name) => name,
        _ => return Err(p.error(at, "a lambda takes one row: lambda x: …")),
    };
    let at = p.here();
    match p.take() {
        Token::Sign(":") => {}
        Token::Sign(",") => return Err(p.error(at, "a lambda takes one row only")),
        _ => return Err(p.error(at, "a colon is missing after the row's name")),
    }
    p.whole()
}

struct Parser<'a> {
    text: &'a str,
    tokens: Vec<Placed>,
    next: usize,
    /// The lambda's parameter.
    row: String,
    depth: usize,
}

fn is_keyword(name: &str) -> bool {
    matches!(
        name,
        "and"
            | "or"
            | "not"
            | "in"
            | "is"
            | "if"
            | "else"
            | "None"
            | "True"
            | "False"
            | "lambda"
            | "for"
            | "await"
            | "yield"
            | "async"
            | "import"
            | "from"
            | "as"
            | "with"
            | "def"
            | "class"
            | "return"
            | "del"
            | "global"
    )
}

impl Parser<'_> {
    fn error(&self, at: usize, message: impl Into<String>) -> ExprError {
        ExprError::new(self.text, at, message).hint(SUPPORTED)
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.next].token
    }

    fn here(&self) -> usize {
        self.tokens[self.next].at
    }

    fn take(&mut self) -> Token {
        let token = self.tokens[self.next].token.clone();
        if self.next + 1 < self.tokens.len() {
            self.next += 1;
        }
        token
    }

    fn sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(s) if *s == sign);
        if found {
            self.take();
        }
        found
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Name(n) if n == word)
    }

    fn word(&mut self, word: &str) -> Result<(), ExprError> {
        if self.is_word(word) {
            self.take();
            return Ok(());
        }
        Err(self.error(self.here(), format!("{word:?} is expected here")))
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), ExprError> {
        if self.sign(sign) {
            return Ok(());
        }
        Err(self.error(self.here(), format!("{sign:?} is expected here")))
    }

    /// One expression and nothing behind it.
    fn whole(&mut self) -> Result<Node, ExprError> {
        let node = self.expression()?;
        match self.peek() {
            Token::End => Ok(node),
            Token::Sign(",") => Err(self.error(self.here(), "a lambda gives one value, not several")),
            _ => Err(self.error(self.here(), "the expression should end here")),
        }
    }

    fn expression(&mut self) -> Result<Node, ExprError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error(self.here(), "the expression is nested too deeply"));
        }
        let node = self.conditional();
        self.depth -= 1;
        node
    }

    fn conditional(&mut self) -> Result<Node, ExprError> {
        if self.is_word("lambda") {
            return Err(self.error(self.here(), "a lambda inside a lambda is not supported"));
        }
        let then = self.or()?;
        if !self.is_word("if") {
            return Ok(then);
        }
        self.take();
        let test = self.or()?;
        self.word("else")?;
        let otherwise = self.expression()?;
        Ok(Node {
            at: then.at,
            kind: Kind::If {
                test: Box::new(test),
                then: Box::new(then),
                otherwise: Box::new(otherwise),
            },
        })
    }

    fn or(&mut self) -> Result<Node, ExprError> {
        let mut left = self.and()?;
        while self.is_word("or") {
            self.take();
            let right = self.and()?;
            left = Node {
                at: left.at,
                kind: Kind::Or(Box::new(left), Box::new(right)),
            };
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Node, ExprError> {
        let mut left = self.not()?;
        while self.is_word("and") {
            self.take();
            let right = self.not()?;
            left = Node {
                at: left.at,
                kind: Kind::And(Box::new(left), Box::new(right)),
            };
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Node, ExprError> {
        let at = self.here();
        if !self.is_word("not") {
            return self.comparison();
        }
        self.take();
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error(at, "the expression is nested too deeply"));
        }
        let of = self.not()?;
        self.depth -= 1;
        Ok(Node {
            at,
            kind: Kind::Not(Box::new(of)),
        })
    }

    fn comparison(&mut self) -> Result<Node, ExprError> {
        let first = self.sum()?;
        let mut rest = Vec::new();
        while let Some(op) = self.comparison_sign()? {
            rest.push((op, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        Ok(Node {
            at: first.at,
            kind: Kind::Compare(Box::new(first), rest),
        })
    }

    fn comparison_sign(&mut self) -> Result<Option<Comparison>, ExprError> {
        let op = match self.peek() {
            Token::Sign("==") => Comparison::Equal,
            Token::Sign("!=") => Comparison::NotEqual,
            Token::Sign("<") => Comparison::Less,
            Token::Sign("<=") => Comparison::LessOrEqual,
            Token::Sign(">") => Comparison::Greater,
            Token::Sign(">=") => Comparison::GreaterOrEqual,
            Token::Name(n) if n == "in" => Comparison::In,
            Token::Name(n) if n == "is" => {
                self.take();
                if self.is_word("not") {
                    self.take();
                    return Ok(Some(Comparison::IsNot));
                }
                return Ok(Some(Comparison::Is));
            }
            Token::Name(n) if n == "not" => {
                self.take();
                self.word("in")?;
                return Ok(Some(Comparison::NotIn));
            }
            _ => return Ok(None),
        };
        self.take();
        Ok(Some(op))
    }

    fn sum(&mut self) -> Result<Node, ExprError> {
        let mut left = self.product()?;
        loop {
            let op = match self.peek() {
                Token::Sign("+") => Arithmetic::Add,
                Token::Sign("-") => Arithmetic::Subtract,
                Token::Sign(s @ ("&" | "|" | "^" | "<<" | ">>")) => {
                    let message = format!("the operator {s} is not supported");
                    return Err(self.error(self.here(), message));
                }
                _ => return Ok(left),
            };
            self.take();
            let right = self.product()?;
            left = binary(op, left, right);
        }
    }

    fn product(&mut self) -> Result<Node, ExprError> {
        let mut left = self.signed()?;
        loop {
            let op = match self.peek() {
                Token::Sign("*") => Arithmetic::Multiply,
                Token::Sign("/") => Arithmetic::Divide,
                Token::Sign("//") => Arithmetic::FloorDivide,
                Token::Sign("%") => Arithmetic::Modulo,
                Token::Sign("@") => return Err(self.error(self.here(), "the operator @ is not supported")),
                _ => return Ok(left),
            };
            self.take();
            let right = self.signed()?;
            left = binary(op, left, right);
        }
    }

    fn signed(&mut self) -> Result<Node, ExprError> {
        let at = self.here();
        let wrap = match self.peek() {
            Token::Sign("-") => Kind::Negate,
            Token::Sign("+") => Kind::Plus,
            Token::Sign("~") => return Err(self.error(at, "the operator ~ is not supported")),
            _ => return self.power(),
        };
        self.take();
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error(at, "the expression is nested too deeply"));
        }
        let of = self.signed()?;
        self.depth -= 1;
        Ok(Node {
            at,
            kind: wrap(Box::new(of)),
        })
    }

    fn power(&mut self) -> Result<Node, ExprError> {
        let base = self.postfix()?;
        if !self.sign("**") {
            return Ok(base);
        }
        let exponent = self.signed()?;
        Ok(binary(Arithmetic::Power, base, exponent))
    }

    fn postfix(&mut self) -> Result<Node, ExprError> {
        let mut node = self.atom()?;
        loop {
            let at = self.here();
            if self.sign("[") {
                node = self.subscript(node)?;
            } else if self.sign(".") {
                let place = self.here();
                let Token::Name(name) = self.take() else {
                    return Err(self.error(place, "a method's name is expected here"));
                };
                if !self.sign("(") {
                    return Err(self.error(place, format!("the attribute .{name} is not supported")));
                }
                if !METHODS.contains(&name.as_str()) {
                    return Err(self.error(place, format!("the method .{name}() is not supported")));
                }
                let args = self.arguments()?;
                node = Node {
                    at: place,
                    kind: Kind::Method(Box::new(node), name, args),
                };
            } else if matches!(self.peek(), Token::Sign("(")) {
                return Err(self.error(at, "this cannot be called"));
            } else {
                return Ok(node);
            }
        }
    }

    fn subscript(&mut self, of: Node) -> Result<Node, ExprError> {
        let at = of.at;
        let end = |p: &Self| matches!(p.peek(), Token::Sign(":" | "]"));
        let from = if end(self) {
            None
        } else {
            Some(Box::new(self.expression()?))
        };
        if !self.sign(":") {
            let index = from.ok_or_else(|| self.error(self.here(), "an index is missing"))?;
            self.expect("]")?;
            return Ok(Node {
                at,
                kind: Kind::Index(Box::new(of), index),
            });
        }
        let to = if end(self) {
            None
        } else {
            Some(Box::new(self.expression()?))
        };
        if matches!(self.peek(), Token::Sign(":")) {
            return Err(self.error(self.here(), "a slice with a step is not supported"));
        }
        self.expect("]")?;
        Ok(Node {
            at,
            kind: Kind::Slice(Box::new(of), from, to),
        })
    }

    /// After the opening bracket.
    fn arguments(&mut self) -> Result<Vec<Node>, ExprError> {
        let mut args = Vec::new();
        loop {
            if self.sign(")") {
                return Ok(args);
            }
            if matches!(self.peek(), Token::Sign("*" | "**")) {
                return Err(self.error(self.here(), "unpacked arguments are not supported"));
            }
            args.push(self.expression()?);
            if matches!(self.peek(), Token::Sign("=")) {
                return Err(self.error(self.here(), "named arguments are not supported"));
            }
            if self.is_word("for") {
                return Err(self.error(self.here(), "comprehensions are not supported"));
            }
            if !self.sign(",") {
                self.expect(")")?;
                return Ok(args);
            }
        }
    }

    fn atom(&mut self) -> Result<Node, ExprError> {
        let (at, inside) = (self.here(), self.tokens[self.next].inside);
        let kind = match self.take() {
            Token::Int(digits) => Kind::Int(digits),
            Token::Float(written) => Kind::Float(written),
            Token::Text(first) => self.texts(first)?,
            Token::Format { body, raw } => Kind::Format(self.pieces(&body, inside, raw)?),
            Token::Name(name) => match name.as_str() {
                "None" => Kind::None,
                "True" => Kind::Bool(true),
                "False" => Kind::Bool(false),
                n if n == self.row => return self.column(at),
                n if is_keyword(n) => return Err(self.error(at, format!("{n} is not supported here"))),
                n if matches!(self.peek(), Token::Sign("(")) => {
                    if !FUNCTIONS.contains(&n) {
                        return Err(self.error(at, format!("the function {n} is not supported")));
                    }
                    self.take();
                    Kind::Call(name, self.arguments()?)
                }
                _ => {
                    let message = format!("{name} is unknown; the row is {}", self.row);
                    return Err(self.error(at, message).hint(format!(
                        "write {0}['{name}'] for the column, or '{name}' for the text",
                        self.row
                    )));
                }
            },
            Token::Sign("(") => return self.bracketed(at, ")"),
            Token::Sign("[") => return self.bracketed(at, "]"),
            Token::Sign("{") => return Err(self.error(at, "dicts and sets are not supported")),
            Token::End => return Err(self.error(at, "the expression ends too early")),
            Token::Sign(s) => return Err(self.error(at, format!("{s} is not expected here"))),
        };
        Ok(Node { at, kind })
    }

    /// Strings beside each other are one.
    fn texts(&mut self, mut text: String) -> Result<Kind, ExprError> {
        loop {
            match self.peek() {
                Token::Text(more) => {
                    text.push_str(more);
                    self.take();
                }
                Token::Format { .. } => {
                    return Err(self.error(self.here(), "put + between a string and an f-string"));
                }
                _ => return Ok(Kind::Text(text)),
            }
        }
    }

    /// After the row's name: `['a']`, `.get('a')`.
    fn column(&mut self, at: usize) -> Result<Node, ExprError> {
        if self.sign("[") {
            let place = self.here();
            let Token::Text(name) = self.take() else {
                return Err(self.error(place, "a column's name in quotes is expected here"));
            };
            self.expect("]")?;
            return Ok(Node {
                at,
                kind: Kind::Column(name),
            });
        }
        let place = self.here();
        if self.sign(".") {
            let method = self.here();
            match self.take() {
                Token::Name(n) if n == "get" => {}
                Token::Name(n) => {
                    return Err(self
                        .error(method, format!("the row has no {n}"))
                        .hint(format!("write {}['{n}'] for the column", self.row)));
                }
                _ => return Err(self.error(method, "a name is expected here")),
            }
            self.expect("(")?;
            let args = self.arguments()?;
            let mut args = args.into_iter();
            return match (args.next(), args.next(), args.next()) {
                (
                    Some(Node {
                        kind: Kind::Text(name), ..
                    }),
                    _,
                    None,
                ) => Ok(Node {
                    at,
                    kind: Kind::Column(name),
                }),
                _ => Err(self.error(method, "get takes a column's name in quotes, and a default at most")),
            };
        }
        Err(self.error(
            place,
            format!("the row itself is no value: write {}['column']", self.row),
        ))
    }

    /// After `(` or `[`.
    fn bracketed(&mut self, at: usize, close: &'static str) -> Result<Node, ExprError> {
        let mut items = Vec::new();
        let mut list = close == "]";
        while !self.sign(close) {
            items.push(self.expression()?);
            if self.is_word("for") {
                return Err(self.error(self.here(), "comprehensions are not supported"));
            }
            if self.sign(",") {
                list = true;
            } else {
                self.expect(close)?;
                break;
            }
        }
        match (list, items.len()) {
            (false, 1) => Ok(items.remove(0)),
            _ => Ok(Node {
                at,
                kind: Kind::List(items),
            }),
        }
    }

    fn pieces(&mut self, body: &str, inside: usize, raw: bool) -> Result<Vec<Piece>, ExprError> {
        let mut pieces = Vec::new();
        let mut at = 0;
        let mut text_from = 0;
        let literal = |p: &Self, from: usize, to: usize, pieces: &mut Vec<Piece>| -> Result<(), ExprError> {
            if from < to {
                let part = &body[from..to];
                let part = if raw {
                    part.into()
                } else {
                    unescape(p.text, inside + from, part)?
                };
                pieces.push(Piece::Text(part.replace("{{", "{").replace("}}", "}")));
            }
            Ok(())
        };
        while at < body.len() {
            let rest = &body[at..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                at += 2;
            } else if rest.starts_with('}') {
                return Err(self.error(inside + at, "a single } in an f-string"));
            } else if rest.starts_with('{') {
                literal(self, text_from, at, &mut pieces)?;
                let (node, style, length) = self.replacement(body, at, inside)?;
                pieces.push(Piece::Value(node, style));
                at += length;
                text_from = at;
            } else {
                at += rest.chars().next().map_or(1, char::len_utf8);
            }
        }
        literal(self, text_from, body.len(), &mut pieces)?;
        Ok(pieces)
    }

    /// A `{value:style}` at `at`; gives its length too.
    fn replacement(&mut self, body: &str, at: usize, inside: usize) -> Result<(Node, Style, usize), ExprError> {
        let (mut depth, mut quote, mut colon) = (0usize, None, None);
        let mut close = None;
        for (i, c) in body[at + 1..].char_indices() {
            let i = at + 1 + i;
            match c {
                c if quote == Some(c) => quote = None,
                _ if quote.is_some() => {}
                '\'' | '"' => quote = Some(c),
                '(' | '[' | '{' => depth += 1,
                '}' if depth == 0 => {
                    close = Some(i);
                    break;
                }
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                ':' if depth == 0 && colon.is_none() => colon = Some(i),
                '!' if depth == 0 && !body[i + 1..].starts_with('=') => {
                    return Err(self.error(inside + i, "!r, !s and !a are not supported in an f-string"));
                }
                _ => {}
            }
        }
        let close = close.ok_or_else(|| self.error(inside + at, "the { is not closed"))?;
        let end = colon.unwrap_or(close);
        let style = match colon {
            None => Style::Plain,
            Some(colon) => style(&body[colon + 1..close]).ok_or_else(|| {
                ExprError::new(self.text, inside + colon + 1, "this format is not supported")
                    .hint("a format may be .2f (digits after the point) or 05d (zeros before)")
            })?,
        };
        let mut sub = Parser {
            text: self.text,
            tokens: tokens(self.text, inside + at + 1, inside + end)?,
            next: 0,
            row: self.row.clone(),
            depth: self.depth + 1,
        };
        Ok((sub.whole()?, style, close + 1 - at))
    }
}

fn style(text: &str) -> Option<Style> {
    if text.is_empty() {
        return Some(Style::Plain);
    }
    if let Some(digits) = text.strip_prefix('.').and_then(|t| t.strip_suffix('f')) {
        return digits.parse().ok().filter(|d| *d <= 30).map(Style::Fixed);
    }
    let width = text.strip_prefix('0')?.strip_suffix('d')?;
    width.parse().ok().map(Style::Padded)
}

fn binary(op: Arithmetic, left: Node, right: Node) -> Node {
    Node {
        at: left.at,
        kind: Kind::Binary(op, Box::new(left), Box::new(right)),
    }
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
