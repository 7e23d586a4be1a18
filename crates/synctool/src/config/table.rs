//! The name of a table, taken apart for one datastore.

use super::at::At;
use super::datastores::Datastore;
use super::error::ConfigError;
use super::pipeline::{Destination, Join, Source};
use super::stage::Enrich;

/// A table's name, taken apart for one datastore.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// Schema; none where the datastore has none.
    pub schema: Option<String>,
    /// Table, without quotes.
    pub name: String,
}

impl Source {
    /// The table, taken apart for its datastore. The schema is none where none was written: the connection's own.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

impl Destination {
    /// The table, taken apart for its datastore. The schema is none where none was written: the connection's own.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

impl Join {
    /// The table, taken apart for the source's datastore.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

impl Enrich {
    /// The table, taken apart for its datastore.
    pub fn table_ref(&self, datastore: &Datastore) -> Result<TableRef, ConfigError> {
        table_ref(&self.table, self.schema.as_ref(), datastore)
    }
}

pub(super) fn table_ref(
    table: &At<String>,
    schema: Option<&At<String>>,
    datastore: &Datastore,
) -> Result<TableRef, ConfigError> {
    if !datastore.connection.has_schemas() {
        return Ok(TableRef {
            schema: None,
            name: table.to_string(),
        });
    }
    match schema {
        // A schema of its own leaves nothing to take apart, so that any name can be written.
        Some(schema) => Ok(TableRef {
            schema: Some(schema.to_string()),
            name: table.to_string(),
        }),
        None => TableRef::parse(table).map_err(|message| table.error(message)),
    }
}

impl TableRef {
    /// Reads `table`, `schema.table`, and either part in double quotes.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (first, rest) = part(text)?;
        match rest.strip_prefix('.') {
            None if rest.is_empty() => Ok(TableRef {
                schema: None,
                name: first,
            }),
            None => Err("a table's name goes on after its closing quote".into()),
            Some(rest) => {
                let (second, rest) = part(rest)?;
                if !rest.is_empty() {
                    return Err(
                        "a table is named by at most schema and table; put a name with a dot in double quotes".into(),
                    );
                }
                Ok(TableRef {
                    schema: Some(first),
                    name: second,
                })
            }
        }
    }
}

/// One name and what follows it.
fn part(text: &str) -> Result<(String, &str), String> {
    let (name, rest) = match text.strip_prefix('"') {
        None => {
            let end = text.find('.').unwrap_or(text.len());
            (text[..end].to_owned(), &text[end..])
        }
        Some(quoted) => {
            let mut name = String::new();
            let mut rest = quoted;
            loop {
                let end = rest
                    .find('"')
                    .ok_or("a table's name has a double quote without its end")?;
                name.push_str(&rest[..end]);
                rest = &rest[end + 1..];
                match rest.strip_prefix('"') {
                    Some(after) => {
                        name.push('"');
                        rest = after;
                    }
                    None => break (name, rest),
                }
            }
        }
    };
    if name.is_empty() {
        Err("a part of the table's name is empty".into())
    } else {
        Ok((name, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names() {
        let table = |schema: Option<&str>, name: &str| TableRef {
            schema: schema.map(Into::into),
            name: name.into(),
        };
        assert_eq!(TableRef::parse("users"), Ok(table(None, "users")));
        assert_eq!(TableRef::parse("public.users"), Ok(table(Some("public"), "users")));
        assert_eq!(
            TableRef::parse("\"My.Schema\".\"a\"\"b\""),
            Ok(table(Some("My.Schema"), "a\"b"))
        );
        for wrong in ["", ".", "a.", "a.b.c", "\"a", "\"a\"b", "\"\"", ".a"] {
            assert!(TableRef::parse(wrong).is_err(), "{wrong}");
        }
    }
}
