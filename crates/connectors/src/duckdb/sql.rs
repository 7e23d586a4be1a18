//! SQL text: quoting, and the control tables. Values are bound, never spliced.

use synctool_core::schema::TableId;

/// An identifier, exact bytes, quoted. DuckDB compares names without case all the same.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table, in `main` unless a schema is named.
pub(super) fn table(id: &TableId) -> String {
    format!("{}.{}", quote(id.schema.as_deref().unwrap_or("main")), quote(&id.name))
}

/// The statement that makes a table as it is, of a schema and a name; not told where texts have a collation by default.
pub(super) const MADE: &str = "SELECT sql FROM duckdb_tables() WHERE database_name = current_database() AND schema_name = ? \
     AND table_name = ? AND current_setting('default_collation') = ''";

/// Whether a table that is made so has columns with a collation.
pub(super) fn has_collations(made: &str) -> bool {
    made.to_ascii_uppercase().contains("COLLATE")
}

/// The collation of a column in the statement that makes its table.
pub(super) fn collation_of(made: &str, column: &str) -> Option<String> {
    let made = made.to_ascii_uppercase();
    [column.to_string(), quote(column)].iter().find_map(|name| {
        let before = format!("{} VARCHAR COLLATE ", name.to_ascii_uppercase());
        let mut found = made.match_indices(&before);
        let (at, _) = found.find(|(at, _)| made[..*at].ends_with(['(', ' ']))?;
        let named = made[at + before.len()..].split([' ', ',', ')']).next();
        named.map(str::to_string)
    })
}

/// Quoted names with a prefix, joined by commas.
pub(super) fn list<'a>(prefix: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .map(|n| format!("{prefix}{}", quote(n)))
        .collect::<Vec<_>>()
        .join(", ")
}

/// `a.k = b.k AND …`
pub(super) fn equal<'a>(a: &str, b: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .map(|n| format!("{a}.{0} = {b}.{0}", quote(n)))
        .collect::<Vec<_>>()
        .join(" AND ")
}

/// The control tables.
pub(super) const CONTROL: &[&str] = &[
    "CREATE TABLE IF NOT EXISTS main._synctool_generation (pipeline VARCHAR PRIMARY KEY, generation BIGINT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS main._synctool_plan (pipeline VARCHAR PRIMARY KEY, generation BIGINT NOT NULL, \
     plan VARCHAR NOT NULL, finished BOOLEAN NOT NULL, published VARCHAR)",
    "CREATE TABLE IF NOT EXISTS main._synctool_checkpoint (pipeline VARCHAR NOT NULL, generation BIGINT NOT NULL, \
     \"partition\" VARCHAR NOT NULL, epoch BIGINT NOT NULL, state VARCHAR NOT NULL)",
    "CREATE TABLE IF NOT EXISTS main._synctool_history (pipeline VARCHAR NOT NULL, generation BIGINT NOT NULL, \
     run_id VARCHAR NOT NULL, table_name VARCHAR NOT NULL, published VARCHAR NOT NULL, finished_at TIMESTAMP NOT NULL)",
    "CREATE TABLE IF NOT EXISTS main._synctool_memory (pipeline VARCHAR NOT NULL, fact VARCHAR NOT NULL, \
     value VARCHAR NOT NULL, PRIMARY KEY (pipeline, fact))",
    "CREATE TABLE IF NOT EXISTS main._synctool_rejects (pipeline VARCHAR NOT NULL, generation BIGINT NOT NULL, \
     \"partition\" VARCHAR NOT NULL, number BIGINT NOT NULL, run_id VARCHAR NOT NULL, stage VARCHAR NOT NULL, \
     table_name VARCHAR NOT NULL, reason VARCHAR NOT NULL, column_name VARCHAR, row_key VARCHAR NOT NULL, \
     rejected_at TIMESTAMP NOT NULL)",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collations_are_found_by_column() {
        let made =
            "CREATE TABLE t(k VARCHAR COLLATE NOCASE PRIMARY KEY, \"a k\" VARCHAR COLLATE nocase.noaccent, sk VARCHAR)";
        assert!(has_collations(made) && !has_collations("CREATE TABLE t(k VARCHAR)"));
        let found = ["k", "a k", "sk", "t"].map(|name| collation_of(made, name));
        assert_eq!(
            found,
            [Some("NOCASE".into()), Some("NOCASE.NOACCENT".into()), None, None]
        );
    }

    #[test]
    fn names_cannot_break_out() {
        assert_eq!(table(&TableId::new("a\"b", "c; --")), "\"a\"\"b\".\"c; --\"");
        assert_eq!(equal("l", "d", ["x", "y"]), "l.\"x\" = d.\"x\" AND l.\"y\" = d.\"y\"");
    }
}
