//! What following a log needs of its server, looked at one by one; nothing is made.

use super::super::catalog;
use super::super::client::Connection;
use super::super::sql::{ident, table as quoted};
use super::identity::{Standing, check_publishable};
use super::source::{LogSource, usable};
use super::transport::end_of_log;
use super::{Watermarks, slot};
use synctool_core::error::{Error, Result};
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

impl LogSource {
    /// Looks at what following the log of these tables needs.
    pub(super) async fn examine_log(&self, tables: &[TableId]) -> Vec<Finding> {
        let connection = match self.database().connect().await {
            Ok(connection) => connection,
            Err(e) => return vec![Finding::of_error("connection", &e)],
        };
        let mut found = vec![match slot::check_server(&connection).await {
            Ok(()) => Finding::good("log of the server", "wal_level logical, may replicate"),
            Err(e) => Finding::of_error("log of the server", &e),
        }];
        found.extend(plugins(&connection).await);
        let mut add = |what: &str, looked: Result<Vec<Finding>>| match looked {
            Ok(findings) => found.extend(findings),
            Err(e) => found.push(Finding::of_error(what, &e)),
        };
        add("slots and senders", room(&connection, &self.options().slot).await);
        let name = format!("replication slot {}", self.options().slot);
        add(&name, self.slot(&connection, &name).await.map(|f| vec![f]));
        add("publication", self.publication(&connection, tables).await);
        add("watermarks", self.marks(&connection).await.map(|f| vec![f]));
        for table in tables {
            let looked = identity(&connection, table, &self.database().config().schema).await;
            add(&format!("replica identity of {table}"), looked.map(|f| vec![f]));
        }
        connection.recycle();
        found
    }

    async fn slot(&self, connection: &Connection, what: &str) -> Result<Finding> {
        let name = &self.options().slot;
        Ok(match slot::find(connection, name).await? {
            None => Finding::new(
                what,
                true,
                "not there yet; it is made when the log is first followed",
                "",
            ),
            Some(state) => {
                let confirmed = usable(name, &state)?;
                let behind = end_of_log(connection).await?.saturating_sub(confirmed);
                Finding::good(what, format!("{} MiB of log are to be read", behind >> 20))
            }
        })
    }

    async fn publication(&self, connection: &Connection, tables: &[TableId]) -> Result<Vec<Finding>> {
        let (name, schema) = (&self.options().publication, &self.database().config().schema);
        let what = format!("publication {name}");
        // What is refused is told with its replica identity.
        let mut good = Vec::with_capacity(tables.len());
        for table in tables {
            if check_publishable(connection, std::slice::from_ref(table), schema)
                .await
                .is_ok()
            {
                good.push(table.clone());
            }
        }
        if good.is_empty() && !tables.is_empty() {
            return Ok(Vec::new());
        }
        let tables = good.as_slice();
        let mut statements = Vec::new();
        slot::publication(
            connection,
            self.options(),
            tables,
            schema,
            slot::Missing::Tell(&mut statements),
        )
        .await?;
        if statements.is_empty() {
            return Ok(vec![Finding::good(what, "has every table")]);
        }
        // Making it needs rights that reading does not.
        let row = connection
            .query_one(
                "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE'), current_user::text, \
                 pg_catalog.current_database()::text",
                &[],
            )
            .await
            .map_err(|e| connection.error(e, "looking at rights"))?;
        let (create, user, database): (bool, String, String) = (row.get(0), row.get(1), row.get(2));
        let mut fix = Vec::new();
        if !create {
            fix.push(format!(
                "GRANT CREATE ON DATABASE {} TO {};",
                ident(&database),
                ident(&user)
            ));
        }
        for table in tables {
            let row = connection
                .query_one(
                    "SELECT pg_catalog.pg_has_role(relowner, 'USAGE') FROM pg_catalog.pg_class WHERE oid = $1",
                    &[&catalog::describe(connection, table, schema).await?.oid],
                )
                .await
                .map_err(|e| connection.error(e, "looking at rights"))?;
            if !row.get::<_, bool>(0) {
                fix.push(format!(
                    "ALTER TABLE {} OWNER TO {};",
                    quoted(table, schema),
                    ident(&user)
                ));
            }
        }
        let made: Vec<String> = statements.iter().map(|s| format!("{s};")).collect();
        Ok(vec![match fix.is_empty() {
            true => Finding::new(
                what,
                true,
                format!("is made or completed by the first run: {}", made.join(" ")),
                "",
            ),
            false => Finding::new(
                what,
                false,
                "is not complete, and the role may not make it",
                format!("let an administrator run: {}\nor: {}", made.join(" "), fix.join(" ")),
            ),
        }])
    }

    async fn marks(&self, connection: &Connection) -> Result<Finding> {
        let what = "watermarks";
        let row = connection
            .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
            .await
            .map_err(|e| connection.error(e, "looking at the server"))?;
        let standby: bool = row.get(0);
        let by = self.options().watermarks;
        if standby && by != Watermarks::ReadOnly {
            let fix = "watermarks: read_only";
            return Ok(Finding::new(what, false, "a standby cannot be written to", fix));
        }
        let (sql, fix) = match by {
            Watermarks::ReadOnly => return Ok(Finding::good(what, "nothing is written at the source")),
            Watermarks::Message if connection.version() < 140_000 => {
                let found = "PostgreSQL before 14 does not show messages in its log";
                return Ok(Finding::new(what, false, found, "watermarks: table"));
            }
            Watermarks::Message => (
                "SELECT pg_catalog.bool_and(pg_catalog.has_function_privilege(oid, 'EXECUTE')) FROM pg_catalog.pg_proc \
                 WHERE proname = 'pg_logical_emit_message' AND pronamespace = 'pg_catalog'::regnamespace"
                    .to_owned(),
                "GRANT EXECUTE ON FUNCTION pg_catalog.pg_logical_emit_message(boolean, text, text) TO …; or watermarks: table",
            ),
            Watermarks::Table => {
                let table = self.options().watermark_table();
                match catalog::find(connection, &table, "public").await? {
                    Some(found) => (
                        format!(
                            "SELECT pg_catalog.has_table_privilege({oid}, 'INSERT') \
                             AND pg_catalog.has_table_privilege({oid}, 'DELETE') \
                             AND pg_catalog.has_table_privilege({oid}, 'SELECT')",
                            oid = found.oid
                        ),
                        "GRANT INSERT, DELETE, SELECT on the table of watermarks",
                    ),
                    None => (
                        "SELECT pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')".to_owned(),
                        "GRANT CREATE ON DATABASE … TO …; or let an administrator make the table of watermarks",
                    ),
                }
            }
        };
        let row = connection
            .query_one(&sql, &[])
            .await
            .map_err(|e| connection.error(e, "looking at rights"))?;
        let may: bool = row.get(0);
        let found = match (may, by) {
            (true, Watermarks::Message) => "by messages in the log",
            (true, _) => "by rows of a table",
            (false, _) => "the role may not write them",
        };
        Ok(Finding::new(what, may, found, fix))
    }
}

/// Newer servers name the plugins that slots may have.
async fn plugins(connection: &Connection) -> Option<Finding> {
    const SQL: &str = "SELECT pg_catalog.current_setting('output_plugin_libraries', true)";
    let row = connection.query_one(SQL, &[]).await.ok()?;
    let allowed: String = row.get::<_, Option<String>>(0)?;
    Some(Finding::new(
        "output plugins",
        allows_ours(&allowed),
        format!("output_plugin_libraries: {allowed}"),
        format!("ALTER SYSTEM SET output_plugin_libraries = {allowed}, pgoutput; then SELECT pg_reload_conf();"),
    ))
}

/// Whether a list of libraries has ours, whatever stands around its name.
fn allows_ours(list: &str) -> bool {
    let bare = |name: &str| name.trim().trim_matches(['"', '\'']).trim().to_owned();
    list.split(',').map(bare).any(|name| {
        let name = name.strip_prefix("$libdir/").unwrap_or(&name);
        name == "pgoutput" || name == "pgoutput.so"
    })
}

/// Whether there is room for a slot and a sender more.
async fn room(connection: &Connection, slot: &str) -> Result<Vec<Finding>> {
    const SQL: &str = "
        SELECT pg_catalog.current_setting('max_replication_slots')::int,
               (SELECT count(*)::int FROM pg_catalog.pg_replication_slots WHERE slot_name <> $1::text),
               pg_catalog.current_setting('max_wal_senders')::int,
               (SELECT count(*)::int FROM pg_catalog.pg_stat_replication
                WHERE pid IS DISTINCT FROM (SELECT active_pid FROM pg_catalog.pg_replication_slots WHERE slot_name = $1::text))";
    let row = connection
        .query_one(SQL, &[&slot])
        .await
        .map_err(|e| connection.error(e, "looking at slots and senders"))?;
    let one = |what: &str, setting: &str, most: i32, used: i32| {
        Finding::new(
            what,
            used < most,
            format!("{used} of {most} are taken by others"),
            format!("ALTER SYSTEM SET {setting} = {}; then restart the server", most + 10),
        )
    };
    Ok(vec![
        one("replication slots", "max_replication_slots", row.get(0), row.get(1)),
        one("WAL senders", "max_wal_senders", row.get(2), row.get(3)),
    ])
}

/// Whether updates and deletes of a table say which row they mean.
async fn identity(connection: &Connection, table: &TableId, schema: &str) -> Result<Finding> {
    let described = catalog::describe(connection, table, schema).await?;
    let Some(standing) = Standing::of(connection, described.oid).await? else {
        return Err(Error::bug("a table is gone that was described just now"));
    };
    let what = format!("replica identity of {table}");
    if let Err(e) = standing.check_followed(table, described.kind) {
        return Ok(Finding::of_error(&what, &e));
    }
    let alter = |fix: &str| format!("ALTER TABLE {} {fix}", quoted(table, schema));
    Ok(match (standing.identity.as_str(), standing.primary) {
        (_, true) if !standing.identified && standing.identity != "n" => Finding::new(
            what,
            false,
            "the primary key is DEFERRABLE or its index is gone: the server refuses updates and deletes",
            alter("DROP CONSTRAINT …, ADD PRIMARY KEY (…); without DEFERRABLE"),
        ),
        ("i", _) if standing.identified => Finding::good(what, "a unique index"),
        ("d", true) => Finding::good(what, "the primary key"),
        ("f", true) => Finding::good(what, "whole old rows; the primary key would do and is less"),
        ("f", false) => Finding::good(what, "whole old rows: there is no key"),
        ("n", true) => Finding::new(
            what,
            false,
            "none: the server refuses updates and deletes",
            alter("REPLICA IDENTITY DEFAULT;"),
        ),
        _ => Finding::new(
            what,
            false,
            "there is no key: rows that are there cannot be loaded, and the server refuses updates and deletes",
            alter("ADD PRIMARY KEY (…); or, with `keyless: true`, REPLICA IDENTITY FULL;"),
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::allows_ours;

    #[test]
    fn a_list_of_plugins_is_read() {
        for list in [
            "pgoutput",
            "wal2json, pgoutput",
            " test_decoding ,\"pgoutput\"",
            "$libdir/pgoutput",
            "a,pgoutput.so",
        ] {
            assert!(allows_ours(list), "{list}");
        }
        for list in [
            "",
            "wal2json",
            "pgoutput2",
            "my_pgoutput, test_decoding",
            "pgoutput wal2json",
        ] {
            assert!(!allows_ours(list), "{list}");
        }
    }
}
