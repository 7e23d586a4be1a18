//! SQL text: quoting, and the statements that read and compare rows. Values are bound where that can be.

use super::types::{Affinity, Cell};

/// An identifier, exact bytes, quoted.
pub(super) fn quote(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 2);
    out.push('"');
    for c in name.chars() {
        if c == '"' {
            out.push('"');
        }
        out.push(c);
    }
    out.push('"');
    out
}

/// A value, where none can be bound.
pub(super) fn literal(value: &Cell<'_>) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    match value {
        Cell::Null => "NULL".into(),
        Cell::Integer(i) => i.to_string(),
        Cell::Real(r) if r.is_infinite() => if *r > 0.0 { "9e999" } else { "-9e999" }.into(),
        Cell::Real(r) => format!("{r:?}"),
        // A text in quotes would end with its first zero byte.
        Cell::Text(t) if t.contains('\0') => format!("CAST(X'{}' AS TEXT)", hex(t.as_bytes())),
        Cell::Text(t) => format!("'{}'", t.replace('\'', "''")),
        Cell::Blob(b) => format!("X'{}'", hex(b)),
    }
}

/// Quoted names, joined by commas, each with a prefix such as `l.`.
pub(super) fn list<S: AsRef<str>>(prefix: &str, names: &[S]) -> String {
    names
        .iter()
        .map(|n| format!("{prefix}{}", quote(n.as_ref())))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `?1, ?2, …`
pub(super) fn placeholders(from: usize, count: usize) -> String {
    (from..from + count)
        .map(|i| format!("?{i}"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// Terms joined as a balanced tree: SQLite limits the depth of an expression, and a thousand columns in a row is deeper.
pub(super) fn joined(terms: &[String], by: &str) -> String {
    match terms {
        [] => "1".into(),
        [one] => one.clone(),
        many => {
            let (a, b) = many.split_at(many.len() / 2);
            format!("({} {by} {})", joined(a, by), joined(b, by))
        }
    }
}

/// Whether two values are stored differently: NULL equals NULL, 1, 1.0 and '1' are three values, and a column's
/// collation does not hide a difference in case.
pub(super) fn differs(a: &str, b: &str, affinity: Affinity) -> String {
    match affinity {
        // Here 1.0 becomes 1 when it is stored, which a value not yet stored does not show.
        Affinity::Integer | Affinity::Numeric => format!("{a} COLLATE BINARY IS NOT {b}"),
        _ => format!("({a} COLLATE BINARY IS NOT {b} OR typeof({a}) <> typeof({b}))"),
    }
}

/// `a = b AND …` over pairs of terms.
pub(super) fn equal(pairs: impl Iterator<Item = (String, String)>) -> String {
    let terms: Vec<String> = pairs.map(|(a, b)| format!("{a} = {b}")).collect();
    joined(&terms, "AND")
}

/// `(a, b) op (?n, …)`, plain for one column.
pub(super) fn row_compare(columns: &[String], op: &str, first_parameter: usize) -> String {
    let (left, right) = (list("", columns), placeholders(first_parameter, columns.len()));
    match columns.len() {
        1 => format!("{left} {op} {right}"),
        _ => format!("({left}) {op} ({right})"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(quote("a\"; DROP TABLE x; --"), "\"a\"\"; DROP TABLE x; --\"");
        assert_eq!(list("l.", &["a", "b c"]), "l.\"a\", l.\"b c\"");
    }

    #[test]
    fn a_thousand_terms_stay_shallow() {
        let terms: Vec<String> = (0..2000).map(|i| format!("c{i}")).collect();
        let text = joined(&terms, "OR");
        let mut depth = 0_i32;
        let deepest = text.chars().map(|c| {
            depth += i32::from(c == '(') - i32::from(c == ')');
            depth
        });
        assert!(deepest.max().unwrap() <= 11);
        assert_eq!(text.matches("OR").count(), 1999);
    }
}
