//! The statements that put loaded rows into an existing table, and the catalog facts they depend on.
//!
//! Rows are compared by their stored image (`record_image_ne`), not by `=`: that works for types without equality (json, xml,
//! point), sees a changed scale or sign of zero, and writes nothing that is already right.

use super::client::map_error;
use super::sql::ident;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{TableId, TableSchema};
use tokio_postgres::GenericClient;

/// A column of an existing table.
#[derive(Debug, Clone)]
pub(super) struct Existing {
    pub(super) name: String,
    /// As `format_type` prints it.
    pub(super) type_name: String,
    pub(super) not_null: bool,
    pub(super) has_default: bool,
    pub(super) generated: bool,
    /// `GENERATED ALWAYS AS IDENTITY`.
    pub(super) identity_always: bool,
    pub(super) identity: bool,
    /// Whether it may call different texts equal: citext, or a collation that is not deterministic.
    pub(super) folds: bool,
    /// Whether it may call different values equal: 1 and 1.0, a day and 24 hours, and everything that `folds`.
    pub(super) varies: bool,
    /// The type of arrays of its values, which are no arrays; 0 if there is none.
    pub(super) array: u32,
}

/// The types whose equal values are identical, as far as their collation does not say otherwise.
const IDENTICAL: &str = "'bool', '\"char\"', 'int2', 'int4', 'int8', 'oid', 'text', 'varchar', 'name', 'bytea', 'uuid', 'date', 'time', \
    'timetz', 'timestamp', 'timestamptz', 'inet', 'cidr', 'macaddr', 'macaddr8', 'money', 'bit', 'varbit', 'pg_lsn'";

/// The oid of a table (ordinary or partitioned), or `None` if there is none of that name.
pub(super) async fn oid_of(client: &impl GenericClient, table: &TableId) -> Result<Option<(u32, i8)>> {
    let row = client
        .query_opt(
            "SELECT c.oid, c.relkind FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE n.nspname = $1 AND c.relname = $2",
            &[&table.schema.as_deref().unwrap_or_default(), &table.name],
        )
        .await
        .map_err(|e| map_error(e, "looking for the table").at("table", table.to_string()))?;
    Ok(row.map(|r| (r.get(0), r.get(1))))
}

/// The columns of a table.
pub(super) async fn columns_of(client: &impl GenericClient, oid: u32) -> Result<Vec<Existing>> {
    let rows = client
        .query(
            &format!("SELECT attname::text, pg_catalog.format_type(atttypid, atttypmod), attnotnull, atthasdef, \
             attgenerated <> '', attidentity = 'a', attidentity <> '', \
             t.typname = 'citext' OR COALESCE(NOT c.collisdeterministic, false), \
             t.typtype <> 'e' AND COALESCE(NULLIF(t.typbasetype, 0), t.oid) <> ALL (ARRAY[{IDENTICAL}]::regtype[]::oid[]), \
             COALESCE(t.typarray, 0::oid) \
             FROM pg_catalog.pg_attribute LEFT JOIN pg_catalog.pg_type t ON t.oid = atttypid \
             LEFT JOIN pg_catalog.pg_collation c ON c.oid = attcollation WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum"),
            &[&oid],
        )
        .await
        .map_err(|e| map_error(e, "reading the table's columns"))?;
    Ok(rows
        .iter()
        .map(|r| Existing {
            name: r.get(0),
            type_name: r.get(1),
            not_null: r.get(2),
            has_default: r.get(3),
            generated: r.get(4),
            identity_always: r.get(5),
            identity: r.get(6),
            folds: r.get(7),
            varies: r.get::<_, bool>(7) || r.get::<_, bool>(8),
            array: r.get(9),
        })
        .collect())
}

/// What would not let a column of a table have another type: views, policies and triggers that name it.
pub(super) async fn held_by(client: &impl GenericClient, table: &TableId, column: &str) -> Result<Vec<String>> {
    let rows = client
        .query(
            "SELECT DISTINCT pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on it' \
             FROM pg_catalog.pg_depend d \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
             JOIN pg_catalog.pg_class c ON c.oid = a.attrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
             WHERE d.refclassid = 'pg_catalog.pg_class'::regclass AND n.nspname = $1 AND c.relname = $2 AND a.attname = $3 \
             AND d.classid IN ('pg_catalog.pg_rewrite'::regclass, 'pg_catalog.pg_policy'::regclass, 'pg_catalog.pg_trigger'::regclass) \
             ORDER BY 1",
            &[&table.schema.as_deref().unwrap_or_default(), &table.name, &column],
        )
        .await
        .map_err(|e| map_error(e, "looking for what depends on a column").at("table", table.to_string()))?;
    Ok(rows.iter().map(|r| r.get(0)).collect())
}

/// One column to write.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    /// Its quoted name, on both sides.
    pub(super) name: String,
    /// The destination's type, where the loaded one is another.
    pub(super) cast: Option<String>,
    pub(super) identity_always: bool,
    /// Whether different texts in it may be equal.
    pub(super) folds: bool,
    /// Whether different values in it may be equal, so that a row found by it may have to get it too.
    pub(super) varies: bool,
    /// The destination's type of arrays of its values; 0 if there is none.
    pub(super) array: u32,
}

impl Pair {
    /// The loaded value, as the destination's type.
    pub(super) fn loaded(&self, alias: &str) -> String {
        match &self.cast {
            Some(ty) => format!("{alias}.{}::{ty}", self.name),
            None => format!("{alias}.{}", self.name),
        }
    }
}

/// Which columns of a table are written by which loaded ones.
#[derive(Debug, Clone)]
pub(super) struct Mapping {
    pub(super) key: Vec<Pair>,
    /// All columns written, the key's too.
    pub(super) all: Vec<Pair>,
    /// Those that may differ between rows of one key.
    pub(super) rest: Vec<Pair>,
    /// Whether the destination has no column besides these.
    pub(super) whole: bool,
}

impl Mapping {
    /// Fits loaded columns (`schema`, stored as `types`) to an existing table. Generated columns are never written.
    pub(super) fn new(table: &TableId, schema: &TableSchema, types: &[String], existing: &[Existing]) -> Result<Self> {
        let mut mapping = Mapping {
            key: Vec::new(),
            all: Vec::new(),
            rest: Vec::new(),
            whole: true,
        };
        let mut by_name = Vec::new();
        for (c, ty) in schema.columns.iter().zip(types) {
            let there = existing.iter().find(|e| e.name == c.name).ok_or_else(|| {
                Error::new(code::SCHEMA_MISMATCH, format!("{table} has no column {}", c.name))
                    .hint("add the column, or leave it out of the pipeline")
            })?;
            if there.generated {
                continue;
            }
            let pair = Pair {
                name: ident(&c.name),
                cast: (there.type_name != *ty).then(|| uncut(&there.type_name)),
                identity_always: there.identity_always,
                folds: there.folds,
                varies: there.varies,
                array: there.array,
            };
            by_name.push((c.name.as_str(), pair));
        }
        for k in &schema.key {
            let pair = by_name.iter().find(|(n, _)| n == k).ok_or_else(|| {
                Error::new(
                    code::COLUMN_MISSING,
                    format!("key column {k} of {table} is not written"),
                )
            })?;
            mapping.key.push(pair.1.clone());
        }
        for e in existing {
            if e.generated || by_name.iter().any(|(n, _)| *n == e.name) {
                continue;
            }
            mapping.whole = false;
            if e.not_null && !e.has_default && !e.identity {
                return Err(Error::new(
                    code::SCHEMA_MISMATCH,
                    format!(
                        "{table} has a column {} that is NOT NULL without a default and is not written",
                        e.name
                    ),
                )
                .hint("map a source column to it, or give it a default"));
            }
        }
        for (name, pair) in by_name {
            if pair.varies || !schema.key.iter().any(|k| k == name) {
                mapping.rest.push(pair.clone());
            }
            mapping.all.push(pair);
        }
        Ok(mapping)
    }

    /// Columns that no UPDATE may set.
    pub(super) fn check_updatable(&self, table: &TableId) -> Result<()> {
        match self.rest.iter().find(|p| p.identity_always) {
            None => Ok(()),
            Some(p) => Err(Error::new(
                code::SCHEMA_MISMATCH,
                format!("column {} of {table} is GENERATED ALWAYS AS IDENTITY and not part of the key: it cannot be updated", p.name),
            )
            .hint(format!("ALTER TABLE … ALTER COLUMN {} SET GENERATED BY DEFAULT", p.name))),
        }
    }

    fn same_key(&self, table: &str, loaded: &str) -> String {
        let parts: Vec<String> = self
            .key
            .iter()
            .map(|p| format!("{table}.{} = {}", p.name, p.loaded(loaded)))
            .collect();
        parts.join(" AND ")
    }

    /// Deletes rows whose key was not loaded.
    pub(super) fn delete_missing(&self, table: &str, load: &str) -> String {
        format!(
            "DELETE FROM {table} AS t WHERE NOT EXISTS (SELECT FROM {load} AS l WHERE {})",
            self.same_key("t", "l")
        )
    }

    /// Updates rows that differ; `None` where there is nothing but the key.
    pub(super) fn update_differing(&self, table: &str, load: &str) -> Option<String> {
        if self.rest.is_empty() {
            return None;
        }
        let set: Vec<String> = self
            .rest
            .iter()
            .map(|p| format!("{} = {}", p.name, p.loaded("l")))
            .collect();
        Some(format!(
            "UPDATE {table} AS t SET {} FROM {load} AS l WHERE {} AND {}",
            set.join(", "),
            self.same_key("t", "l"),
            differs(&self.rest, "l")
        ))
    }

    /// Deletes rows that differ, where updating them one after the other breaks a unique index in between.
    pub(super) fn delete_differing(&self, table: &str, load: &str) -> String {
        format!(
            "DELETE FROM {table} AS t USING {load} AS l WHERE {} AND {}",
            self.same_key("t", "l"),
            differs(&self.rest, "l")
        )
    }

    /// Inserts rows whose key is not there.
    pub(super) fn insert_missing(&self, table: &str, load: &str) -> String {
        format!(
            "{} WHERE NOT EXISTS (SELECT FROM {table} AS t WHERE {})",
            self.insert_all(table, load),
            self.same_key("t", "l")
        )
    }

    /// Inserts all loaded rows.
    pub(super) fn insert_all(&self, table: &str, load: &str) -> String {
        let names: Vec<&str> = self.all.iter().map(|p| p.name.as_str()).collect();
        let values: Vec<String> = self.all.iter().map(|p| p.loaded("l")).collect();
        format!(
            "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE SELECT {} FROM {load} AS l",
            names.join(", "),
            values.join(", ")
        )
    }

    /// Counts loaded rows whose key is there.
    pub(super) fn count_common(&self, table: &str, load: &str) -> String {
        format!(
            "SELECT pg_catalog.count(*) FROM {load} AS l JOIN {table} AS t ON {}",
            self.same_key("t", "l")
        )
    }

    /// Counts the table's rows that several loaded ones are. The load table has our types and none of the table's
    /// collations, so its own key may tell apart what is one here; `None` where it cannot.
    pub(super) fn count_shared(&self, table: &str, load: &str) -> Option<String> {
        let folds = |p: &Pair| p.folds || (p.varies && p.cast.is_some());
        if !self.key.iter().any(folds) {
            return None;
        }
        let key: Vec<String> = self.key.iter().map(|p| format!("t.{}", p.name)).collect();
        Some(format!(
            "SELECT pg_catalog.count(*) FROM (SELECT 1 FROM {load} AS l JOIN {table} AS t ON {} GROUP BY {} \
             HAVING pg_catalog.count(*) > 1) AS shared",
            self.same_key("t", "l"),
            key.join(", ")
        ))
    }
}

/// A type as a cast that cuts nothing: an explicit one to `character varying(9)` cuts silently, where writing what is too
/// long into such a column is refused.
fn uncut(type_name: &str) -> String {
    for varying in ["character varying", "bit varying"] {
        if let Some((_, end)) = type_name
            .strip_prefix(varying)
            .and_then(|length| length.strip_prefix('('))
            .and_then(|length| length.split_once(')'))
        {
            return format!("{varying}{end}");
        }
    }
    type_name.to_owned()
}

/// The image of the row in `t` is not that of the loaded one.
pub(super) fn differs(pairs: &[Pair], loaded: &str) -> String {
    let there: Vec<String> = pairs.iter().map(|p| format!("t.{}", p.name)).collect();
    let new: Vec<String> = pairs.iter().map(|p| p.loaded(loaded)).collect();
    format!(
        "pg_catalog.record_image_ne(ROW({}), ROW({}))",
        there.join(", "),
        new.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cast_cuts_nothing() {
        for (there, cast) in [
            ("character varying(9)", "character varying"),
            ("character varying(9)[]", "character varying[]"),
            ("bit varying(3)", "bit varying"),
            ("character varying", "character varying"),
            ("character(5)", "character(5)"),
            ("numeric(10,2)", "numeric(10,2)"),
            ("\"character varying(9)\"", "\"character varying(9)\""),
        ] {
            assert_eq!(uncut(there), cast);
        }
    }
}
