//! What reading and writing need of a server, looked at one by one.

use super::catalog;
use super::client::{Mysql, Session, number, text};
use super::destination::MysqlDestination;
use super::merge::Mapping;
use super::sql::{ident, table as quoted};
use synctool_core::error::{Result, code};
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

/// Looks at everything that reading these tables needs; `delta`: by a column that grows, too.
pub(super) async fn reading(database: &Mysql, tables: &[TableId], delta: bool) -> Vec<Finding> {
    let mut session = match database.connect().await {
        Ok(session) => session,
        Err(e) => return vec![Finding::of_error("connection", &e)],
    };
    let mut found = vec![connection(database, &session)];
    match server(&mut session).await {
        Ok(findings) => found.extend(findings),
        Err(e) => found.push(Finding::of_error("server", &e)),
    }
    let user = user(&mut session).await;
    if delta {
        found.push(sees_all(&mut session, &user).await);
    }
    for table in tables {
        match readable(&mut session, table, &user).await {
            Ok(findings) => found.extend(findings),
            Err(e) => found.push(Finding::of_error(format!("table {table}"), &e)),
        }
    }
    session.recycle();
    found
}

async fn sees_all(session: &mut Session, user: &str) -> Finding {
    match session
        .rows("SELECT count(*) FROM information_schema.INNODB_TRX", "looking")
        .await
    {
        Ok(_) => Finding::good(
            "right to see all transactions (PROCESS), for a gap-safe delta",
            "granted",
        ),
        Err(e) if e.code() == code::PERMISSION => Finding::new(
            "right to see all transactions (PROCESS), for a gap-safe delta",
            false,
            "missing",
            format!("GRANT PROCESS ON *.* TO {user};"),
        ),
        Err(e) => Finding::of_error("open transactions", &e),
    }
}

fn connection(database: &Mysql, session: &Session) -> Finding {
    Finding::good(
        "connection",
        format!("{} at {}", session.flavor().name(), database.config().server()),
    )
}

/// The user as a GRANT names it.
pub(super) async fn user(session: &mut Session) -> String {
    match session.row("SELECT CURRENT_USER()", "asking for the user").await {
        Ok(row) => {
            let whole = text(&row, 0).unwrap_or_default();
            let (name, host) = whole.rsplit_once('@').unwrap_or((&whole, "%"));
            format!("{}@{}", super::sql::literal(name), super::sql::literal(host))
        }
        Err(_) => "the user".into(),
    }
}

async fn server(session: &mut Session) -> Result<Vec<Finding>> {
    let row = session
        .row(
            "SELECT @@max_connections, @@max_allowed_packet, @@global.time_zone, @@read_only, @@lower_case_table_names",
            "examining the server",
        )
        .await?;
    let packet = number(&row, 1);
    let most = session.database().config().max_connections as u64;
    Ok(vec![
        Finding::new(
            "connections",
            number(&row, 0) >= most.min(4),
            format!("{} at the server; up to {most} are used", number(&row, 0)),
            "lower max_connections of this datastore, or raise it at the server",
        ),
        Finding::new(
            "max_allowed_packet",
            packet >= 16 << 20,
            format!("{packet} bytes: no value is larger"),
            "SET GLOBAL max_allowed_packet = 67108864, and the same in the server's configuration file",
        ),
        Finding::good(
            "time zone",
            format!(
                "{} at the server; our sessions use UTC",
                text(&row, 2).unwrap_or_default()
            ),
        ),
    ])
}

async fn readable(session: &mut Session, table: &TableId, user: &str) -> Result<Vec<Finding>> {
    let found = catalog::must_find(session, table).await?;
    let name = quoted(&found.table);
    let may = session
        .rows(&format!("SELECT 1 FROM {name} LIMIT 0"), &format!("reading {table}"))
        .await;
    let mut all = vec![match &may {
        Ok(_) => Finding::good(format!("right to read {}", found.table), "granted"),
        Err(e) if e.code() == code::PERMISSION => Finding::new(
            format!("right to read {}", found.table),
            false,
            "missing",
            format!("GRANT SELECT ON {name} TO {user};"),
        ),
        Err(e) => Finding::of_error(format!("reading {}", found.table), e),
    }];
    let key = found.key();
    if found.kind == "table" {
        all.push(Finding::new(
            format!("key of {}", found.table),
            !key.is_empty(),
            match key.is_empty() {
                true => "none: the table is read in one go".to_string(),
                false => key.join(", "),
            },
            format!("ALTER TABLE {name} ADD PRIMARY KEY (…);"),
        ));
        all.push(Finding::new(
            format!("engine of {}", found.table),
            found.transactional,
            if found.transactional {
                found.engine.clone()
            } else {
                format!(
                    "{}: it has no snapshots, so rows that change while they are read may be missed",
                    found.engine
                )
            },
            format!("ALTER TABLE {name} ENGINE = InnoDB;"),
        ));
    }
    Ok(all)
}

/// Looks at everything that writing these tables needs.
pub(super) async fn writing(destination: &MysqlDestination, tables: &[TableId]) -> Vec<Finding> {
    let mut session = match destination.database.connect().await {
        Ok(session) => session,
        Err(e) => return vec![Finding::of_error("connection", &e)],
    };
    let mut found = vec![connection(&destination.database, &session)];
    match server(&mut session).await {
        Ok(findings) => found.extend(findings),
        Err(e) => found.push(Finding::of_error("server", &e)),
    }
    if let Err(e) = look(destination, &mut session, tables, &mut found).await {
        found.push(Finding::of_error("examination", &e));
    }
    session.recycle();
    found
}

async fn look(
    destination: &MysqlDestination,
    session: &mut Session,
    tables: &[TableId],
    found: &mut Vec<Finding>,
) -> Result<()> {
    let user = user(session).await;
    let row = session
        .row(
            "SELECT @@read_only, @@local_infile, @@log_bin, @@binlog_format, @@innodb_flush_log_at_trx_commit",
            "examining the destination",
        )
        .await?;
    found.push(Finding::new(
        "writable",
        number(&row, 0) == 0,
        if number(&row, 0) == 0 { "yes" } else { "read-only" },
        "connect to the primary",
    ));
    found.push(Finding::good(
        "LOAD DATA LOCAL INFILE",
        if number(&row, 1) == 1 {
            "allowed"
        } else {
            "not allowed: rows are loaded by INSERT, which is slower (SET GLOBAL local_infile = 1 allows it)"
        },
    ));
    let format = text(&row, 3).unwrap_or_default();
    let fine = number(&row, 2) == 0 || !format.eq_ignore_ascii_case("STATEMENT");
    found.push(Finding::new(
        "binlog_format",
        fine,
        format,
        "SET GLOBAL binlog_format = 'ROW', and the same in the server's configuration file: READ COMMITTED needs it",
    ));
    found.push(Finding::good(
        "innodb_flush_log_at_trx_commit",
        match number(&row, 4) {
            1 => "1: a commit survives a power cut".to_string(),
            n => format!("{n}: a power cut may take the last commits, rows and positions together"),
        },
    ));
    let control = destination.control.database();
    found.push(match destination.control.exists(session).await {
        Ok(true) => Finding::good("control tables", format!("they are in {control}")),
        Ok(false) => Finding::good("control tables", format!("they will be made in {control}")),
        Err(e) => Finding::of_error("control tables", &e),
    });
    for table in tables {
        let schema = table.schema.as_deref().unwrap_or_default();
        let probe = quoted(&TableId::new(schema, format!("_synctool_probe_{}", session.id())));
        let create = session
            .run(
                &format!("CREATE TEMPORARY TABLE {probe} (a int) ENGINE = InnoDB"),
                "making a temporary table",
            )
            .await;
        found.push(match create {
            Ok(_) => {
                session
                    .run(&format!("DROP TEMPORARY TABLE {probe}"), "dropping it")
                    .await?;
                Finding::good(
                    format!("temporary tables in {schema} (changes of a log are staged in them)"),
                    "granted",
                )
            }
            Err(e) if matches!(e.code().id, "ST-AUT-002") => Finding::new(
                format!("temporary tables in {schema}"),
                false,
                "missing",
                format!("GRANT CREATE TEMPORARY TABLES ON {}.* TO {user};", ident(schema)),
            ),
            Err(e) => Finding::of_error(format!("temporary tables in {schema}"), &e),
        });
        let may = rights(session, schema).await?;
        let missing: Vec<&str> = ["CREATE", "DROP", "ALTER", "SELECT", "INSERT", "UPDATE", "DELETE"]
            .into_iter()
            .filter(|r| !may.iter().any(|m| m == r))
            .collect();
        found.push(Finding::new(
            format!("rights in {schema}"),
            missing.is_empty(),
            if missing.is_empty() {
                "granted".to_string()
            } else {
                format!("missing: {}", missing.join(", "))
            },
            format!("GRANT {} ON {}.* TO {user};", missing.join(", "), ident(schema)),
        ));
        let Some(existing) = catalog::find(session, table).await? else {
            found.push(Finding::good(format!("table {table}"), "it will be created"));
            continue;
        };
        if let Err(e) = Mapping::new(&existing, &existing.schema()) {
            found.push(Finding::of_error(format!("table {table}"), &e));
        }
        let triggers = catalog::triggers(session, table).await?;
        if !triggers.is_empty() {
            found.push(Finding::good(
                format!("triggers of {table}"),
                format!("they fire for what SyncTool writes: {}", triggers.join(", ")),
            ));
        }
        if !catalog::foreign_keys(session, table).await?.is_empty() {
            found.push(Finding::good(
                format!("foreign keys of {table}"),
                "they are not checked while SyncTool writes (foreign_key_checks = 0)",
            ));
        }
    }
    Ok(())
}

/// The rights of this user on a database, global ones included. Roles and column rights are not looked into.
async fn rights(session: &mut Session, schema: &str) -> Result<Vec<String>> {
    let rows = session
        .rows(
            &format!(
                "SELECT PRIVILEGE_TYPE FROM information_schema.USER_PRIVILEGES \
                 UNION SELECT PRIVILEGE_TYPE FROM information_schema.SCHEMA_PRIVILEGES WHERE {} LIKE TABLE_SCHEMA",
                super::sql::literal(schema)
            ),
            "reading the rights",
        )
        .await?;
    Ok(rows.iter().filter_map(|r| text(r, 0)).collect())
}
