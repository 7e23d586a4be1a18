//! Looks at everything that writing tables needs, each with its fix.

use super::client::{Connection, map_error};
use super::ddl::quoted;
use super::destination::PostgresDestination;
use super::integrity::{Integrity, may_replicate};
use super::merge::oid_of;
use super::sql::ident;
use synctool_core::error::Result;
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

/// Findings about a destination and the tables to write.
pub(super) async fn destination(destination: &PostgresDestination, tables: &[TableId]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let client = match destination.database.connect().await {
        Ok(client) => client,
        Err(e) => {
            findings.push(Finding::of_error("connection", &e));
            return findings;
        }
    };
    findings.push(Finding::good(
        "connection",
        format!("PostgreSQL {}", client.version() / 10_000),
    ));
    let looked = look(destination, &client, tables, &mut findings).await;
    if let Err(e) = looked {
        findings.push(Finding::of_error("examination", &e));
    }
    findings
}

fn right(what: String, has: bool, fix: String) -> Finding {
    Finding::new(what, has, if has { "granted" } else { "missing" }, fix)
}

async fn look(
    destination: &PostgresDestination,
    client: &Connection,
    tables: &[TableId],
    findings: &mut Vec<Finding>,
) -> Result<()> {
    let fail = |e| map_error(e, "examining the destination");
    let row = client
        .query_one(
            "SELECT current_user::text, pg_catalog.current_database()::text, \
             pg_catalog.current_setting('server_encoding'), pg_catalog.pg_is_in_recovery(), \
             pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), \
             pg_catalog.current_setting('synchronous_commit'), pg_catalog.current_setting('default_transaction_read_only'), \
             pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY')",
            &[],
        )
        .await
        .map_err(fail)?;
    let (role, database): (String, String) = (ident(row.get(0)), ident(row.get(1)));
    let encoding: &str = row.get(2);
    findings.push(Finding::new(
        "server encoding",
        encoding == "UTF8",
        encoding,
        "texts that this encoding lacks are refused; create the database with ENCODING 'UTF8'",
    ));
    let read_only = row.get::<_, bool>(3) || row.get::<_, &str>(6) == "on";
    findings.push(Finding::new(
        "writable",
        !read_only,
        if read_only { "standby or read-only" } else { "yes" },
        "connect to the primary",
    ));
    let sync: &str = row.get(5);
    findings.push(Finding::good(
        "synchronous_commit",
        if sync == "off" {
            "off: a source is acknowledged only up to what the server has flushed".to_string()
        } else {
            sync.to_string()
        },
    ));
    let may_create: bool = row.get(4);
    findings.push(right(
        "temporary tables (changes of a log are staged in them)".into(),
        row.get(7),
        format!("GRANT TEMPORARY ON DATABASE {database} TO {role};"),
    ));

    let control = &destination.options.control_schema;
    if destination.control.exists(&**client).await? {
        let c = ident(control);
        let has = client
            .query_one(
                "SELECT coalesce(bool_and(pg_catalog.has_table_privilege(c.oid, p)), true) FROM pg_catalog.pg_class c \
                 JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
                 pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p \
                 WHERE n.nspname = $1 AND c.relname IN ('generation', 'plan', 'checkpoint', 'history')",
                &[control],
            )
            .await
            .map_err(fail)?
            .get(0);
        findings.push(right(
            format!("control tables in schema {control}"),
            has,
            format!(
                "GRANT USAGE ON SCHEMA {c} TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {c} TO {role};"
            ),
        ));
    } else {
        findings.push(right(
            format!("making control schema {control}"),
            may_create,
            format!("GRANT CREATE ON DATABASE {database} TO {role};"),
        ));
    }

    let replicate = may_replicate(&**client, destination.version).await?;
    for table in tables {
        let schema = table.schema.as_deref().unwrap_or_default();
        let s = ident(schema);
        let create: Option<bool> = client
            .query_opt(
                "SELECT pg_catalog.has_schema_privilege(oid, 'CREATE') AND pg_catalog.has_schema_privilege(oid, 'USAGE') \
                 FROM pg_catalog.pg_namespace WHERE nspname = $1",
                &[&schema],
            )
            .await
            .map_err(fail)?
            .map(|r| r.get(0));
        findings.push(match create {
            Some(has) => right(
                format!("CREATE in schema {schema} (load tables)"),
                has,
                format!("GRANT USAGE, CREATE ON SCHEMA {s} TO {role};"),
            ),
            None => right(
                format!("making schema {schema}"),
                may_create,
                format!("GRANT CREATE ON DATABASE {database} TO {role}; or CREATE SCHEMA {s} AUTHORIZATION {role};"),
            ),
        });
        let Some((oid, _)) = oid_of(&**client, table).await? else {
            continue;
        };
        let has = client
            .query_one(
                "SELECT bool_and(pg_catalog.has_table_privilege($1::oid, p)) FROM \
                 pg_catalog.unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p",
                &[&oid],
            )
            .await
            .map_err(fail)?
            .get(0);
        let name = quoted(table);
        findings.push(right(
            format!("writing {table}"),
            has,
            format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO {role};"),
        ));
        let integrity = Integrity::of(&**client, oid).await?;
        if !integrity.is_free() {
            findings.push(match integrity.statement(replicate, table) {
                Ok(how) => Finding::good(format!("triggers and foreign keys of {table}"), how.unwrap_or_default()),
                Err(e) => Finding::new(
                    format!("triggers and foreign keys of {table}"),
                    false,
                    e.message(),
                    format!("GRANT SET ON PARAMETER session_replication_role TO {role};"),
                ),
            });
        }
    }
    Ok(())
}
