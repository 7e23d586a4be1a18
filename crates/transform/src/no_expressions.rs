//! What expressions are in a build without them: an error.

use crate::lambda;
use crate::position::ExprError;
use synctool_core::error::code;
use synctool_core::schema::{Column, ColumnType};

pub(crate) const MISSING: &str = "this build has no expressions";

pub(crate) const HINT: &str = "build with --features datafusion";

/// Refuses; a lambda's own mistakes come first.
pub fn check_syntax(text: &str) -> Result<(), ExprError> {
    if lambda::is_lambda(text) {
        lambda::parse(text)?;
    }
    Err(ExprError {
        code: code::UNSUPPORTED,
        ..ExprError::new(text, 0, MISSING).hint(HINT)
    })
}

/// Refuses.
pub fn check(text: &str, columns: &[Column]) -> Result<ColumnType, ExprError> {
    let _ = columns;
    check_syntax(text).map(|()| ColumnType::Native)
}
