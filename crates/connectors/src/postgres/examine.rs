//! What reading needs of a server, looked at one by one.

use super::catalog::{self, Kind};
use super::sql::ident;
use super::{Connection, Postgres};
use postgres_types::Type;
use synctool_core::error::Result;
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

/// Looks at everything that reading these tables needs.
pub(super) async fn reading(database: &Postgres, tables: &[TableId]) -> Vec<Finding> {
    let connection = match database.connect().await {
        Ok(connection) => connection,
        Err(e) => return vec![Finding::of_error("connection", &e)],
    };
    let mut found = Vec::new();
    match server(&connection, database).await {
        Ok(findings) => found.extend(findings),
        Err(e) => found.push(Finding::of_error("server", &e)),
    }
    for table in tables {
        match readable(&connection, database, table).await {
            Ok(findings) => found.extend(findings),
            Err(e) => found.push(Finding::of_error(format!("table {table}"), &e)),
        }
    }
    connection.recycle();
    found
}

async fn server(connection: &Connection, database: &Postgres) -> Result<Vec<Finding>> {
    const SQL: &str = "
        SELECT pg_catalog.current_setting('server_version'),
               pg_catalog.pg_is_in_recovery(),
               pg_catalog.current_setting('max_connections')::int
                 - pg_catalog.current_setting('superuser_reserved_connections')::int,
               (SELECT coalesce(sum(numbackends), 0)::int FROM pg_catalog.pg_stat_database),
               pg_catalog.pg_has_role(current_user, 'pg_read_all_stats', 'USAGE'),
               (SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'statement_timeout'),
               current_user::text,
               pg_catalog.current_setting('hot_standby_feedback'),
               pg_catalog.current_setting('server_encoding')";
    let rows = catalog::rows(connection, SQL, &[], "examining the server").await?;
    let Some(row) = rows.first() else { return Ok(Vec::new()) };
    let config = database.config();
    let user: String = row.get(6);
    let (limit, used): (i32, i32) = (row.get(2), row.get(3));
    let free = (limit - used).max(0);
    let encrypted = connection.is_encrypted();
    let mut found = vec![
        Finding::new(
            "connection",
            true,
            format!(
                "PostgreSQL {} at {}, {}",
                row.get::<_, String>(0),
                config.server(),
                if encrypted { "encrypted" } else { "not encrypted" }
            ),
            "",
        ),
        Finding::new(
            "connections free",
            free as usize >= config.max_connections.min(4),
            format!("{free} of {limit}; up to {} are used", config.max_connections),
            "lower max_connections of this datastore, or raise it at the server",
        ),
        Finding::new(
            "right to see all sessions (pg_read_all_stats), for a gap-safe delta",
            row.get(4),
            if row.get(4) { "granted" } else { "missing" },
            format!("GRANT pg_read_all_stats TO {};", ident(&user)),
        ),
    ];
    let role_timeout: String = row.get::<_, Option<String>>(5).unwrap_or_default();
    let own = config.statement_timeout;
    found.push(Finding::new(
        "statement_timeout",
        true,
        match own {
            Some(limit) => format!("{} ms by this datastore's configuration", limit.as_millis()),
            None if role_timeout == "0" => "none".to_string(),
            None => format!("{role_timeout} ms by default, switched off for our sessions"),
        },
        "",
    ));
    let standby: bool = row.get(1);
    found.push(if standby {
        Finding::new(
            "primary or standby",
            row.get::<_, String>(7) == "on",
            "a standby; without hot_standby_feedback the primary's vacuum may cancel long reads",
            "ALTER SYSTEM SET hot_standby_feedback = on; SELECT pg_reload_conf();",
        )
    } else {
        Finding::good("primary or standby", "the primary")
    });
    let encoding: String = row.get(8);
    found.push(Finding::new(
        "encoding",
        encoding != "SQL_ASCII",
        encoding.clone(),
        "SQL_ASCII checks no text: rows that are not UTF-8 stop a run; move the database to UTF8",
    ));
    Ok(found)
}

async fn readable(connection: &Connection, database: &Postgres, table: &TableId) -> Result<Vec<Finding>> {
    const SQL: &str = "SELECT pg_catalog.has_table_privilege($1::oid, 'SELECT') AND pg_catalog.has_schema_privilege(\
         (SELECT relnamespace FROM pg_catalog.pg_class WHERE oid = $1), 'USAGE'), \
         pg_catalog.row_security_active($1::oid)";
    let config = database.config();
    let described = catalog::describe(connection, table, &config.schema).await?;
    let what = format!("examining {table}");
    let rows = catalog::rows(connection, SQL, &[(&described.oid, Type::OID)], &what).await?;
    let may = rows.first().is_some_and(|r| r.get(0));
    let hidden = rows.first().is_some_and(|r| r.get(1));
    let key = &described.schema.key;
    let view = matches!(described.kind, Kind::View | Kind::Foreign);
    let name = &described.table;
    Ok(vec![
        Finding::new(
            format!("right to read {name}"),
            may,
            if may { "granted" } else { "missing" },
            catalog::grant_select(name, &config.schema, &config.user),
        ),
        Finding::new(
            format!("row security of {name}"),
            !hidden,
            if hidden {
                "policies hide rows from this role"
            } else {
                "hides nothing"
            },
            format!("ALTER ROLE {} BYPASSRLS;", ident(&config.user)),
        ),
        Finding::new(
            format!("key of {name}"),
            !key.is_empty() || view,
            match key.is_empty() {
                true => format!("none: the {} is read in one go", described.kind.name()),
                false => key.join(", "),
            },
            format!(
                "ALTER TABLE {} ADD PRIMARY KEY (…);",
                super::sql::table(name, &config.schema)
            ),
        ),
    ])
}
