//! Names and values as PostgreSQL reads them. Values are bound wherever the server allows; COPY does not.

use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;

/// The longest name the server keeps, in bytes; a longer one would be cut silently.
pub const MAX_NAME: usize = 63;

/// A quoted name, byte for byte.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Refuses a name that the server would change or cannot hold.
pub fn check_ident(name: &str) -> Result<()> {
    let why = if name.is_empty() {
        "is empty".to_string()
    } else if name.contains('\0') {
        "holds a NUL byte".to_string()
    } else if name.len() > MAX_NAME {
        format!("has {} bytes, PostgreSQL keeps {MAX_NAME}", name.len())
    } else {
        return Ok(());
    };
    Err(Error::new(code::IDENTIFIER, format!("the name {name:?} {why}")).hint("choose another name"))
}

/// A table's quoted name with its schema.
pub fn table(id: &TableId, default_schema: &str) -> String {
    format!(
        "{}.{}",
        ident(id.schema.as_deref().unwrap_or(default_schema)),
        ident(&id.name)
    )
}

/// Quoted names with commas between them.
pub fn idents<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|n| ident(n.as_ref())).collect();
    quoted.join(", ")
}

/// A text literal, for statements that take no parameters. Backslashes are safe whatever
/// `standard_conforming_strings` says, and a NUL (which no text of PostgreSQL holds) is refused.
pub fn literal(value: &str) -> Result<String> {
    if value.contains('\0') {
        return Err(Error::new(
            code::VALUE_UNSUPPORTED,
            "a text with a NUL byte cannot be given to PostgreSQL",
        ));
    }
    let quoted = value.replace('\'', "''");
    Ok(if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_their_bytes() {
        assert_eq!(ident(r#"a"b"#), r#""a""b""#);
        assert_eq!(table(&TableId::bare("Odd.Name"), "public"), r#""public"."Odd.Name""#);
        assert_eq!(table(&TableId::new("s-1", "x"), "public"), r#""s-1"."x""#);
        assert_eq!(idents(["a", "B"]), r#""a", "B""#);
        for bad in ["", "a\0b", &"x".repeat(64)] {
            assert_eq!(check_ident(bad).unwrap_err().code(), code::IDENTIFIER);
        }
        check_ident(&"ä".repeat(31)).unwrap();
    }

    #[test]
    fn literals_cannot_be_left() {
        assert_eq!(literal("it's").unwrap(), "'it''s'");
        assert_eq!(literal(r"\'; drop table t; --").unwrap(), r"E'\\''; drop table t; --'");
        assert!(literal("a\0").is_err());
    }
}
