//! Python lambdas (`lambda x: round(x['total_amount'] * 1.1, 2)`), read and never evaluated as Python.
//!
//! A lambda takes one row and gives one value. It is parsed here and translated into an expression over the columns
//! (`translate`, with the feature `datafusion`) that means what Python means: `//` floors, `%` takes the divisor's sign,
//! `round` goes to the even neighbour, `and`/`or` give an operand. What differs, because a column has one type and
//! NULL is not an exception:
//!
//! - NULL (None) in arithmetic, in a comparison by order, in a method or function gives NULL where Python would raise.
//!   `==`, `!=`, `in`, `is`, truth and conditional expressions treat it as Python treats None.
//! - A number written with a point is that decimal beside a decimal column, not the nearest binary fraction.
//! - Whole numbers have 64 bits; what does not fit refuses the row. So does whatever Python would raise for
//!   (division by zero, an index out of range, `int('x')`).
//! - `x.get('a', default)` is the column `a`: every row has every column, so the default never counts.
//! - NaN equals itself and is larger than any number, as in PostgreSQL; `str()` of NULL is NULL.
//! - Dividing decimals keeps 16 digits after the point, or six more than the operands have if those are more, rounded
//!   half away from zero, as SQL's division does here.

mod ast;
#[cfg(feature = "datafusion")]
mod calls;
#[cfg(feature = "datafusion")]
mod functions;
mod lexer;
#[cfg(feature = "datafusion")]
mod numbers;
mod parser;
#[cfg(feature = "datafusion")]
mod texts;
#[cfg(feature = "datafusion")]
mod translate;

#[cfg(feature = "datafusion")]
pub(crate) use functions::{REASON, columns, quotient, refused};
pub(crate) use parser::parse;
#[cfg(feature = "datafusion")]
pub(crate) use translate::{translate, translate_truth};

/// Whether a text is a lambda rather than SQL.
pub(crate) fn is_lambda(text: &str) -> bool {
    text.trim_start()
        .strip_prefix("lambda")
        .is_some_and(|rest| rest.starts_with(|c: char| c.is_whitespace() || c == ':'))
}

/// What to say about anything that is not understood.
pub(crate) const SUPPORTED: &str = "a lambda may use x['column'], x.get('column'), literals, + - * / // % **, \
comparisons, is None, in (…), and/or/not, a if c else b, f-strings, slices, the methods upper lower strip lstrip rstrip \
replace split(sep)[i] startswith endswith title capitalize zfill, and the functions round str int float abs len min max \
bool; write SQL for anything else";
