//! Mistakes in expressions, with their place in the expression's own text.

use std::fmt;
use synctool_core::error::{Among, Code, Error, code};

/// A mistake in an expression. The place is inside the expression's text, so that whoever knows where the text stands
/// (a file, a line) can add the two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExprError {
    /// What is wrong, in one sentence.
    pub message: String,
    /// Where, as a byte offset into the text.
    pub offset: usize,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What to do instead.
    pub hint: Option<String>,
    pub(crate) code: &'static Code,
    /// The column that is not there, if that is the mistake.
    pub(crate) missing: Option<String>,
}

impl ExprError {
    pub(crate) fn new(text: &str, offset: usize, message: impl Into<String>) -> Self {
        let mut offset = offset.min(text.len());
        while !text.is_char_boundary(offset) {
            offset -= 1;
        }
        let before = &text[..offset];
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        ExprError {
            message: message.into(),
            offset,
            line: 1 + before.bytes().filter(|b| *b == b'\n').count(),
            column: 1 + before[start..].chars().count(),
            hint: None,
            code: code::CONFIG_INVALID,
            missing: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint.get_or_insert_with(|| hint.into());
        self
    }
}

impl fmt::Display for ExprError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: {}", self.line, self.column, self.message)
    }
}

impl std::error::Error for ExprError {}

impl From<ExprError> for Error {
    fn from(e: ExprError) -> Error {
        let error = match &e.missing {
            Some(column) => Error::no_column(Among::Rows, column, &e.message),
            None => Error::new(e.code, &e.message),
        };
        let error = error.at("position", format!("{}:{}", e.line, e.column));
        match &e.hint {
            Some(hint) => error.hint(hint.clone()),
            None => error,
        }
    }
}

/// The name among `known` that was probably meant.
pub(crate) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = name.to_lowercase();
    known
        .into_iter()
        .map(|k| (strsim::damerau_levenshtein(&wanted, &k.to_lowercase()), k))
        .filter(|(distance, k)| *distance <= 1 + k.len().min(name.len()) / 3)
        .min()
        .map(|(_, k)| k)
}

/// The sentence about a name that is not there.
pub(crate) fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match nearest(name, known.clone()) {
        Some(near) => format!("did you mean {near}?"),
        None => {
            let all: Vec<&str> = known.into_iter().take(40).collect();
            format!("it has: {}", all.join(", "))
        }
    }
}
