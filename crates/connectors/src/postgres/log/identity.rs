//! What a table must be so that its log can be followed, and so that publishing it harms nobody: judged before anything
//! is made at the source.

use super::super::catalog::{self, Described, Kind};
use super::super::client::Connection;
use postgres_types::{ToSql, Type};
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::TableId;

/// How a table tells its changes.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    /// What of it (the table, or a partition) has changes that are not in the log, if there is such a one.
    silent: Option<String>,
    /// A table that inherits from it, if there is one; partitions do not count.
    heir: Option<String>,
    /// Its replica identity, as the catalog says it: `d`, `i`, `f` or `n`.
    pub(super) identity: String,
    pub(super) primary: bool,
    /// Whether the server, once the table is published, lets its rows be updated and deleted.
    pub(super) identified: bool,
}

impl Standing {
    /// `None` for a table that is gone.
    pub(super) async fn of(connection: &Connection, oid: u32) -> Result<Option<Standing>> {
        // The server asks the partitions, not their root; a deferrable primary key identifies nothing.
        const SQL: &str = "
            WITH family AS (
                SELECT $1::oid AS relid UNION SELECT relid::oid FROM pg_catalog.pg_partition_tree($1::oid::regclass)
            ), told AS (
                SELECT CASE c.relreplident
                         WHEN 'f' THEN true
                         WHEN 'n' THEN false
                         ELSE EXISTS (SELECT FROM pg_catalog.pg_index i
                                      WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
                                        AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
                       END AS identified
                FROM family f JOIN pg_catalog.pg_class c ON c.oid = f.relid WHERE c.relkind = 'r'
            )
            SELECT (SELECT pg_catalog.min(pg_catalog.format('%s.%s', n.nspname, p.relname))
                    FROM family f JOIN pg_catalog.pg_class p ON p.oid = f.relid
                    JOIN pg_catalog.pg_namespace n ON n.oid = p.relnamespace
                    WHERE p.relpersistence <> 'p' OR p.relkind = 'f'),
                   (SELECT pg_catalog.min(pg_catalog.format('%s.%s', n.nspname, h.relname))
                    FROM pg_catalog.pg_inherits i JOIN pg_catalog.pg_class h ON h.oid = i.inhrelid
                    JOIN pg_catalog.pg_namespace n ON n.oid = h.relnamespace
                    WHERE i.inhparent = c.oid AND NOT h.relispartition),
                   c.relreplident::text,
                   EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisprimary),
                   (SELECT coalesce(pg_catalog.bool_and(identified), true) FROM told)
            FROM pg_catalog.pg_class c WHERE c.oid = $1";
        let what = "reading a table's replica identity";
        let rows = catalog::rows(connection, SQL, &[(&oid, Type::OID)], what).await?;
        Ok(rows.first().map(|row| Standing {
            silent: row.get(0),
            heir: row.get(1),
            identity: row.get(2),
            primary: row.get(3),
            identified: row.get(4),
        }))
    }

    /// Refuses a relation whose rows or changes the log does not have as its own.
    pub(super) fn check_followed(&self, table: &TableId, kind: Kind) -> Result<()> {
        let refused = |why: String| Error::new(code::UNSUPPORTED, why);
        if !matches!(kind, Kind::Table | Kind::Partitioned) {
            let kind = kind.name();
            return Err(
                refused(format!("{table} is a {kind}: the log has the changes of tables alone"))
                    .hint("name the tables that its rows come from, or read it by another strategy (full, hash)"),
            );
        }
        if let Some(silent) = &self.silent {
            return Err(refused(format!(
                "changes of {table} are not in the log: {silent} is an unlogged, temporary or foreign table"
            ))
            .hint(format!(
                "ALTER TABLE {silent} SET LOGGED; and, where it was followed before, run synctool repair then, because what \
                 changed meanwhile is in no log; or read it by another strategy (full, hash)"
            )));
        }
        if let Some(heir) = &self.heir {
            return Err(refused(format!(
                "{table} has tables that inherit from it ({heir}): it shows their rows as its own, and their changes come \
                 under their own names"
            ))
            .hint("make it a partitioned table; or leave it out, and name the tables that inherit from it"));
        }
        Ok(())
    }

    /// Refuses a table that cannot be published without the server refusing the application's updates and deletes from
    /// then on.
    fn check_published(&self, table: &TableId) -> Result<()> {
        if self.identified {
            return Ok(());
        }
        let (code, why, fix) = match (self.identity.as_str(), self.primary) {
            ("n", true) => (
                code::LOG_SETUP,
                "it has REPLICA IDENTITY NOTHING",
                "REPLICA IDENTITY DEFAULT;",
            ),
            ("d", true) => (
                code::LOG_SETUP,
                "its primary key is DEFERRABLE, which tells nobody which row is meant",
                "DROP CONSTRAINT …, ADD PRIMARY KEY (…); without DEFERRABLE",
            ),
            ("i", _) => (
                code::LOG_SETUP,
                "the index of its replica identity is gone",
                "REPLICA IDENTITY DEFAULT;",
            ),
            ("n" | "d", false) => (
                code::KEY_MISSING,
                "it has no key",
                "ADD PRIMARY KEY (…); or, with `keyless: true`, REPLICA IDENTITY FULL;",
            ),
            _ => (
                code::LOG_SETUP,
                "a partition of it has no replica identity",
                "ADD PRIMARY KEY (…); or REPLICA IDENTITY FULL for each of its partitions",
            ),
        };
        Err(Error::new(
            code,
            format!(
                "{table} is not published: {why}, so the server would refuse every UPDATE and DELETE of it from then on, the \
                 application's too"
            ),
        )
        .hint(format!(
            "ALTER TABLE {table} {fix} (a table that is only inserted into may be put into the publication by hand)"
        )))
    }
}

/// Refuses tables that are not to be put into a publication.
pub(super) async fn check_publishable(connection: &Connection, tables: &[TableId], schema: &str) -> Result<()> {
    for table in tables {
        // A table that does not exist has an error of its own, with similar names.
        let described = catalog::describe(connection, table, schema).await?;
        if let Some(standing) = Standing::of(connection, described.oid).await? {
            standing.check_followed(table, described.kind)?;
            standing.check_published(table)?;
        }
    }
    Ok(())
}

/// Refuses a table that cannot be followed by this key, whoever published it.
pub(super) async fn check_followable(connection: &Connection, described: &Described, key: &[String]) -> Result<()> {
    let table = (&described.table, described.oid);
    check(connection, table, described.kind, key, "").await
}

/// The same for a table that is followed already, by the names that its key's columns have now.
pub(super) async fn check_followed_on(connection: &Connection, table: (&TableId, u32), key: &[String]) -> Result<()> {
    const THEN: &str =
        "; then run again, and `synctool repair`, because keys that changed meanwhile may have met each other";
    check(connection, table, Kind::Table, key, THEN).await
}

async fn check(
    connection: &Connection,
    (table, oid): (&TableId, u32),
    kind: Kind,
    key: &[String],
    then: &str,
) -> Result<()> {
    let Some(standing) = Standing::of(connection, oid).await? else {
        return Ok(());
    };
    standing.check_followed(table, kind)?;
    check_immediate(connection, (table, oid), key, then).await
}

/// Refuses a key that may be broken inside a transaction: applied one after the other, rows that trade keys would
/// overwrite each other.
async fn check_immediate(
    connection: &Connection,
    (table, oid): (&TableId, u32),
    key: &[String],
    then: &str,
) -> Result<()> {
    const SQL: &str = "
        SELECT coalesce(NOT pg_catalog.bool_or(i.indimmediate), false)
        FROM pg_catalog.pg_index i
        WHERE i.indrelid = $1 AND i.indisunique AND i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL
          AND ARRAY(SELECT a.attname::text COLLATE \"C\"
                    FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
                    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                    WHERE k.place <= i.indnkeyatts ORDER BY 1)
            = ARRAY(SELECT n COLLATE \"C\" FROM pg_catalog.unnest($2::text[]) AS n ORDER BY 1)";
    if key.is_empty() {
        return Ok(());
    }
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&oid, Type::OID), (&key, Type::TEXT_ARRAY)];
    let rows = catalog::rows(connection, SQL, params, "reading a table's key").await?;
    if !rows.first().is_some_and(|r| r.get(0)) {
        return Ok(());
    }
    Err(Error::new(
        code::LOG_SETUP,
        format!(
            "the key of {table} ({}) is DEFERRABLE: within a transaction rows may trade keys, and the log tells one after \
             the other",
            key.join(", ")
        ),
    )
    .hint(format!(
        "ALTER TABLE {table} DROP CONSTRAINT …, ADD PRIMARY KEY (…); without DEFERRABLE; or make another unique index of NOT \
         NULL columns and ALTER TABLE {table} REPLICA IDENTITY USING INDEX …{then}"
    )))
}
