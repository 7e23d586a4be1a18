//! Python's tokens, as far as a lambda needs them.

use crate::position::ExprError;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Token {
    Name(String),
    Int(String),
    Float(String),
    Text(String),
    /// The raw inside of an f-string.
    Format {
        body: String,
        raw: bool,
    },
    /// An operator or bracket.
    Sign(&'static str),
    End,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) at: usize,
    /// Where an f-string's inside begins.
    pub(super) inside: usize,
}

/// Longer ones first.
const SIGNS: &[&str] = &[
    "**", "//", "==", "!=", "<=", ">=", "<<", ">>", ":=", "->", "+", "-", "*", "/", "%", "<", ">", "(", ")", "[", "]",
    "{", "}", ",", ":", ".", "=", "&", "|", "^", "~", "@", ";",
];

/// Splits `text[from..to]` into tokens; `text` is the whole expression, for the places of mistakes.
pub(super) fn tokens(text: &str, from: usize, to: usize) -> Result<Vec<Placed>, ExprError> {
    let mut out = Vec::new();
    let mut at = from;
    while at < to {
        let rest = &text[at..to];
        let c = rest.chars().next().expect("at < to");
        if c.is_whitespace() || rest.starts_with("\\\n") {
            at += if c == '\\' { 2 } else { c.len_utf8() };
            continue;
        }
        if c == '#' {
            at += rest.find('\n').unwrap_or(rest.len());
            continue;
        }
        let begin = at;
        let mut inside = at;
        let token = if let Some((prefix, quote)) = string_start(rest) {
            inside = at + prefix.len() + 1;
            let body = string_body(text, inside, to, quote, begin)?;
            at = inside + body.len() + 1;
            let (format, raw) = (prefix.contains(['f', 'F']), prefix.contains(['r', 'R']));
            if prefix.contains(['b', 'B']) {
                return Err(ExprError::new(text, begin, "bytes are not supported in a lambda").hint(super::SUPPORTED));
            }
            if format {
                Token::Format {
                    body: body.to_string(),
                    raw,
                }
            } else if raw {
                Token::Text(body.to_string())
            } else {
                Token::Text(unescape(text, inside, body)?)
            }
        } else if c.is_ascii_digit() || c == '.' && rest[1..].starts_with(|d: char| d.is_ascii_digit()) {
            let (token, length) = number(text, at, rest)?;
            at += length;
            token
        } else if c == '_' || c.is_alphabetic() {
            let length = rest
                .find(|c: char| c != '_' && !c.is_alphanumeric())
                .unwrap_or(rest.len());
            at += length;
            Token::Name(rest[..length].to_string())
        } else {
            let sign = SIGNS
                .iter()
                .find(|s| rest.starts_with(**s))
                .ok_or_else(|| ExprError::new(text, at, format!("{c:?} means nothing in a lambda")))?;
            at += sign.len();
            Token::Sign(sign)
        };
        out.push(Placed {
            token,
            at: begin,
            inside,
        });
    }
    out.push(Placed {
        token: Token::End,
        at: to,
        inside: to,
    });
    Ok(out)
}

/// The prefix and quote of a string literal that begins here.
fn string_start(rest: &str) -> Option<(&str, char)> {
    let length = rest.find(['\'', '"'])?;
    let prefix = &rest[..length];
    let known = matches!(
        prefix.to_ascii_lowercase().as_str(),
        "" | "r" | "f" | "b" | "u" | "rf" | "fr" | "rb" | "br"
    );
    known.then(|| (prefix, rest[length..].chars().next().expect("found")))
}

fn string_body(text: &str, inside: usize, to: usize, quote: char, begin: usize) -> Result<&str, ExprError> {
    let body = &text[inside..to];
    if body.starts_with(quote) && body[1..].starts_with(quote) {
        return Err(ExprError::new(
            text,
            begin,
            "strings with three quotes are not supported in a lambda",
        ));
    }
    let mut escaped = false;
    for (i, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '\n' => break,
            c if c == quote => return Ok(&body[..i]),
            _ => {}
        }
    }
    Err(ExprError::new(text, begin, "the string is not closed"))
}

/// The value of a string's inside.
pub(super) fn unescape(text: &str, inside: usize, body: &str) -> Result<String, ExprError> {
    let mut out = String::with_capacity(body.len());
    let mut chars = body.char_indices();
    while let Some((i, c)) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        let Some((_, e)) = chars.next() else { break };
        let code = |digits: usize, chars: &mut std::str::CharIndices<'_>| {
            let hex: String = chars.by_ref().take(digits).map(|(_, c)| c).collect();
            (hex.len() == digits)
                .then(|| u32::from_str_radix(&hex, 16).ok().and_then(char::from_u32))
                .flatten()
                .ok_or_else(|| ExprError::new(text, inside + i, "this escape is no character"))
        };
        out.push(match e {
            'n' => '\n',
            't' => '\t',
            'r' => '\r',
            '0' => '\0',
            '\\' | '\'' | '"' => e,
            'x' => code(2, &mut chars)?,
            'u' => code(4, &mut chars)?,
            'U' => code(8, &mut chars)?,
            '\n' => continue,
            _ => {
                return Err(
                    ExprError::new(text, inside + i, format!("the escape \\{e} is not supported"))
                        .hint("write r'…' for backslashes that mean themselves"),
                );
            }
        });
    }
    Ok(out)
}

fn number(text: &str, at: usize, rest: &str) -> Result<(Token, usize), ExprError> {
    let digits = |s: &str| s.find(|c: char| !c.is_ascii_digit() && c != '_').unwrap_or(s.len());
    let mut length = digits(rest);
    let mut float = false;
    if rest[length..].starts_with('.') {
        float = true;
        length += 1 + digits(&rest[length + 1..]);
    }
    if rest[length..].starts_with(['e', 'E']) {
        let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
        let exponent = digits(&rest[length + 1 + sign..]);
        if exponent > 0 {
            float = true;
            length += 1 + sign + exponent;
        }
    }
    let written = &rest[..length];
    let next = rest[length..].chars().next();
    if next.is_some_and(|c| c == '_' || c.is_alphanumeric())
        || written.ends_with('_')
        || written.contains("__")
        || !float && written.len() > 1 && written.starts_with('0') && !written.trim_matches(['0', '_']).is_empty()
    {
        return Err(ExprError::new(text, at, "this number cannot be read").hint("write it in decimal digits"));
    }
    let plain = written.replace('_', "");
    Ok((if float { Token::Float(plain) } else { Token::Int(plain) }, length))
}
