//! What following a log needs of its server, looked at one by one; nothing is made.

use super::super::catalog::{self, CatalogTable};
use super::super::client::{Session, number, text};
use super::super::examine::user;
use super::capture;
use super::dump::Dump;
use super::position::Place;
use super::source::{BinlogSource, check_server, rand_id};
use synctool_core::error::{Result, code};
use synctool_core::schema::TableId;
use synctool_core::source::Finding;

impl BinlogSource {
    /// Looks at what following the log of these tables needs.
    pub(super) async fn examine_log(&self, tables: &[TableId]) -> Vec<Finding> {
        let mut session = match self.database().connect().await {
            Ok(session) => session,
            Err(e) => return vec![Finding::of_error("connection", &e)],
        };
        let what = "log of the server";
        let mut found = vec![match check_server(&mut session).await {
            Ok(()) => Finding::good(what, "binary log of whole rows"),
            Err(e) => Finding::of_error(what, &e),
        }];
        if !found[0].ok {
            return found;
        }
        match settings(&mut session).await {
            Ok(settings) => found.extend(settings),
            Err(e) => found.push(Finding::of_error("settings of the log", &e)),
        }
        found.push(self.right(&mut session).await);
        for table in tables {
            found.push(match catalog::must_find(&mut session, table).await {
                Err(e) => Finding::of_error(format!("table {table}"), &e),
                Ok(there) => match capture::check_table(&mut session, &there).await {
                    Err(e) => Finding::of_error(format!("table {table} in its log"), &e),
                    Ok(()) => key_of(table, &there),
                },
            });
        }
        session.recycle();
        found
    }

    /// Whether the server hands out its log to this user.
    async fn right(&self, session: &mut Session) -> Finding {
        let what = "right to read the log (REPLICATION SLAVE)";
        let user = user(session).await;
        let grant = format!("GRANT REPLICATION SLAVE ON *.* TO {user};");
        let row = session.row("SELECT @@gtid_binlog_pos", "asking for the position").await;
        let here = row
            .ok()
            .and_then(|r| text(&r, 0))
            .unwrap_or_default()
            .parse()
            .unwrap_or_default();
        let opened = async {
            let mut dump = Dump::open(self.database(), 1 << 31 | rand_id(), &here, &Place::default()).await?;
            dump.next().await
        };
        match opened.await {
            Ok(_) => Finding::good(what, "granted"),
            Err(e) if e.code() == code::PERMISSION => Finding::new(what, false, "missing", grant),
            Err(e) => Finding::of_error(what, &e),
        }
    }
}

/// Whether changes find their row.
fn key_of(table: &TableId, there: &CatalogTable) -> Finding {
    let what = format!("key of {table} in its log");
    match capture::key(there) {
        key if key.is_empty() => Finding::new(
            what,
            false,
            "none: only what comes from now on can be followed, and only with keyless: true",
            format!("ALTER TABLE {table} ADD PRIMARY KEY (…);"),
        ),
        key => Finding::good(what, key.join(", ")),
    }
}

async fn settings(session: &mut Session) -> Result<Vec<Finding>> {
    let rows = session
        .rows(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('binlog_row_metadata', 'gtid_strict_mode', 'log_bin_compress', \
             'expire_logs_days', 'binlog_expire_logs_seconds', 'log_slave_updates', 'server_id')",
            "looking at the log's settings",
        )
        .await?;
    let value = |name: &str| {
        let row = rows.iter().find(|r| text(r, 0).as_deref() == Some(name));
        row.and_then(|r| text(r, 1)).unwrap_or_default()
    };
    let metadata = value("binlog_row_metadata");
    let compress = value("log_bin_compress");
    let strict = value("gtid_strict_mode");
    let seconds: f64 = value("binlog_expire_logs_seconds").parse().unwrap_or(0.0);
    let days: f64 = value("expire_logs_days").parse().unwrap_or(0.0);
    let kept = match (seconds, days) {
        (s, _) if s > 0.0 => format!("{:.1} days", s / 86_400.0),
        (_, d) if d > 0.0 => format!("{d:.1} days"),
        _ => "until somebody purges it".into(),
    };
    let replica = session
        .rows("SHOW GLOBAL VARIABLES LIKE 'read\\_only'", "looking")
        .await?;
    let read_only = replica
        .first()
        .and_then(|r| text(r, 1))
        .is_some_and(|v| v != "OFF" && v != "0");
    let mut found = vec![
        Finding::new(
            "binlog_row_metadata",
            metadata.eq_ignore_ascii_case("FULL"),
            format!(
                "{metadata}: {}",
                match metadata.eq_ignore_ascii_case("FULL") {
                    true => "the log names its columns",
                    false => "the log does not name its columns, so altered tables may have to be compared anew",
                }
            ),
            "SET GLOBAL binlog_row_metadata = 'FULL', and the same in the server's configuration file",
        ),
        Finding::new(
            "log_bin_compress",
            compress != "ON",
            format!(
                "{compress}{}",
                if compress == "ON" {
                    ": compressed events are not read"
                } else {
                    ""
                }
            ),
            "SET GLOBAL log_bin_compress = OFF, and the same in the server's configuration file",
        ),
        Finding::new(
            "gtid_strict_mode",
            true,
            match strict.as_str() {
                "ON" | "1" => "ON".to_string(),
                other => format!("{other}: ON keeps the order of transaction ids, which positions rely on"),
            },
            "",
        ),
        Finding::new(
            "the log is kept",
            true,
            format!("{kept}; what is purged before it was read is lost, and then told"),
            "",
        ),
    ];
    if read_only {
        let own = value("log_slave_updates");
        found.push(Finding::new(
            "log_slave_updates",
            own == "ON" || own == "1",
            format!("{own} on a server that is read-only"),
            "set log_slave_updates in the server's configuration file and restart it, or follow the primary",
        ));
    }
    let transactions = session.row("SELECT @@global.server_id", "looking").await?;
    found.push(Finding::new(
        "server_id",
        number(&transactions, 0) > 0,
        number(&transactions, 0).to_string(),
        "set server_id in the server's configuration file to a number that no other server has",
    ));
    Ok(found)
}
