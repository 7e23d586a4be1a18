//! Up to where a column stamped by the database has settled.
//!
//! A value that `NOW()` or a default stamps is the start of its statement. It becomes visible when its transaction
//! commits, so the first value that may still come is that of the oldest transaction or statement now running:
//! - `information_schema.INNODB_TRX` has every open transaction with its start, in whole seconds of the server's own time
//!   zone. The server fills this list only after a tenth of a second in which nobody read it, so a monitor can keep it
//!   old for ever: we look until it shows the very statement that reads it;
//! - a statement that waits for a lock on a table has stamped and is in no transaction yet: the process list has it
//!   (a SELECT stamps nothing, and a read-only transaction, such as our readers', commits nothing). Once it has the lock
//!   its transaction counts from then, and nothing that every server has (no performance schema) says how long it had
//!   waited: that is the margin's to cover;
//! - prepared XA transactions stay after their session is gone. After a restart of the server nobody knows when they
//!   stamped.
//!
//! A stamp is cut off to the digits that its column keeps, and `NOW()` without digits has whole seconds in any column: one
//! that is made later in the second of the bound may stand at its beginning. So the bound has whole seconds, too.

use super::client::{Session, number, text};
use super::sql::literal;
use super::types;
use mysql_async::Row;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::Settled;
use synctool_core::text::{parse_timestamp, write_timestamp};

/// What a clock read to the millisecond, and the moments between our statements, may hide.
const GRAIN_MICROS: i64 = 200_000;
const SECOND_MICROS: i64 = 1_000_000;
/// The server fills its list of transactions anew after a tenth of a second without readers.
const LIST_IDLE: Duration = Duration::from_millis(110);
/// Looks at the list before we give up.
const LOOKS: u32 = 30;

pub(super) async fn settled(
    session: &mut Session,
    table: &TableId,
    column: &Column,
    zone: Option<&str>,
    margin: Duration,
) -> Result<Settled> {
    let fixed = match &column.ty {
        ColumnType::TimestampTz => None,
        ColumnType::Timestamp | ColumnType::Date => Some(()),
        other => {
            return Err(Error::new(
                code::CONFIG_TYPE,
                format!(
                    "column {} of {table} is {other}: only a timestamp or date settles by the clock",
                    column.name
                ),
            )
            .hint("name a column that the database stamps with the time of the change"));
        }
    };
    // The clock first: what begins after it stamps later.
    let clock = session
        .row("SELECT CAST(UTC_TIMESTAMP(6) AS CHAR)", "reading the server's clock")
        .await?;
    let now = micros(text(&clock, 0))?;
    check_primary(session).await?;
    let mut oldest = now - GRAIN_MICROS;
    let mut held_by = None;
    for holder in running(session).await?.into_iter().chain(open(session, now).await?) {
        if holder.since < oldest {
            oldest = holder.since;
            held_by = Some(holder);
        }
    }
    let bound = whole_second(oldest - i64::try_from(margin.as_micros()).unwrap_or(i64::MAX / 4));
    let bound = match fixed {
        None => format!("{}+00", written(bound)),
        Some(()) => local(session, table, column, zone, bound).await?,
    };
    Ok(Settled {
        bound,
        now: format!("{}Z", written(now).replacen(' ', "T", 1)),
        held_by: held_by
            .filter(|h| now - GRAIN_MICROS - h.since > i64::try_from(margin.as_micros()).unwrap_or(i64::MAX))
            .map(|h| h.words(now)),
    })
}

/// The beginning of a moment's second.
fn whole_second(micros: i64) -> i64 {
    micros.div_euclid(SECOND_MICROS) * SECOND_MICROS
}

fn written(micros: i64) -> String {
    let mut text = String::new();
    write_timestamp(&mut text, micros, false);
    text
}

fn micros(text: Option<String>) -> Result<i64> {
    text.as_deref()
        .and_then(|t| parse_timestamp(t, false))
        .ok_or_else(|| Error::bug("the server's clock cannot be read"))
}

/// What may still stamp, or commit what it stamped.
struct Holder {
    since: i64,
    thread: u64,
    state: String,
    user: String,
}

impl Holder {
    fn words(&self, now: i64) -> String {
        let seconds = (now - self.since).max(0) / 1_000_000;
        let age = match seconds {
            0..120 => format!("{seconds} s"),
            _ => format!("{} min", seconds / 60),
        };
        let user = if self.user.is_empty() {
            String::new()
        } else {
            format!(", user {}", self.user)
        };
        match self.thread {
            0 => format!("a prepared XA transaction ({}), for {age}", self.state),
            n => format!("connection {n}, {} for {age}{user}", self.state),
        }
    }
}

/// A replica applies what was stamped at its primary, later and in transactions of its own.
async fn check_primary(session: &mut Session) -> Result<()> {
    let rows = session
        .rows(
            "SELECT count(*) FROM information_schema.PROCESSLIST WHERE USER = 'system user' \
             AND COMMAND IN ('Slave_SQL', 'Slave_worker', 'Slave_IO', 'Query', 'Connect')",
            "looking for replication",
        )
        .await?;
    if rows.first().is_none_or(|r| number(r, 0) == 0) {
        return Ok(());
    }
    Err(Error::new(
        code::UNSUPPORTED,
        "the server is a replica, where transactions of its primary arrive late: nobody knows here which rows have settled",
    )
    .hint("read from the primary, or set `stamped_by: app` with a lag"))
}

/// Statements that run now.
async fn running(session: &mut Session) -> Result<Vec<Holder>> {
    // MariaDB counts milliseconds; MySQL whole seconds, cut off.
    let age = if session.flavor().mariadb {
        "TIME_MS"
    } else {
        "(TIME + 1) * 1000"
    };
    let rows = session
        .rows(
            &format!(
                "SELECT CAST(UTC_TIMESTAMP(6) - INTERVAL CAST({age} * 1000 AS SIGNED) MICROSECOND AS CHAR), ID, \
                 LOWER(COALESCE(NULLIF(STATE, ''), COMMAND)), USER FROM information_schema.PROCESSLIST \
                 WHERE ID <> CONNECTION_ID() AND COMMAND IN ('Query', 'Execute', 'Prepare', 'Connect', 'Delayed insert', 'Killed') \
                 AND USER <> 'event_scheduler' AND COALESCE(INFO, '') NOT LIKE 'SELECT%'"
            ),
            "listing running statements",
        )
        .await?;
    rows.iter()
        .map(|r| {
            Ok(Holder {
                since: micros(text(r, 0))? - GRAIN_MICROS,
                thread: number(r, 1),
                state: text(r, 2).unwrap_or_default(),
                user: text(r, 3).unwrap_or_default(),
            })
        })
        .collect()
}

/// Open transactions, prepared ones included.
async fn open(session: &mut Session, now: i64) -> Result<Vec<Holder>> {
    let missing = |e: Error| {
        if e.code() != code::PERMISSION {
            return e;
        }
        Error::new(
            code::PERMISSION,
            "open transactions cannot be seen without the PROCESS privilege, so nobody knows which rows have settled",
        )
        .hint("GRANT PROCESS ON *.* TO the user")
    };
    let prepared = session
        .rows("XA RECOVER", "listing prepared transactions")
        .await
        .map_err(|e| {
            if e.code() == code::PERMISSION || e.context().contains(&("errno", "1401".into())) {
                return Error::new(code::PERMISSION, "prepared XA transactions cannot be seen")
                    .hint("GRANT XA_RECOVER_ADMIN ON *.* TO the user");
            }
            e
        })?
        .len();
    let rows = fresh_list(session, now).await.map_err(missing)?;
    let mut holders = Vec::new();
    let mut detached = 0;
    for r in &rows {
        let started = micros(text(r, 0))?;
        let gone = text(r, 6).is_none();
        if gone && prepared > 0 {
            detached += 1;
            // A recovered transaction has the time of the restart for its start.
            if started <= micros(text(r, 3))? + 10_000_000 {
                return Err(unknown_age(prepared));
            }
        }
        let state = match text(r, 5).as_deref() {
            Some("Sleep") => "idle in transaction".to_string(),
            _ => text(r, 2).unwrap_or_default(),
        };
        holders.push(Holder {
            since: started,
            thread: if gone { 0 } else { number(r, 1) },
            state,
            user: text(r, 4).unwrap_or_default(),
        });
    }
    if prepared > 0 && detached == 0 && holders.len() < prepared {
        return Err(unknown_age(prepared));
    }
    Ok(holders)
}

/// The list of open transactions as it is now, without our own.
async fn fresh_list(session: &mut Session, now: i64) -> Result<Vec<Row>> {
    let what = "listing open transactions";
    let status = if session.flavor().mariadb {
        "information_schema.GLOBAL_STATUS"
    } else {
        "performance_schema.global_status"
    };
    // Our own transaction is listed with its statement, which no other had: that tells whether the list was made for it.
    session.run("START TRANSACTION WITH CONSISTENT SNAPSHOT", what).await?;
    for look in 0..LOOKS {
        let mark = format!("settled {now} {look}");
        // Where the clock was set back for winter, an hour comes twice: the earlier one counts.
        let rows = session
            .rows(
                &format!(
                    "SELECT /* {mark} */ CAST(IF(CONVERT_TZ(u - INTERVAL 1 HOUR, '+00:00', 'SYSTEM') = trx_started, \
                     u - INTERVAL 1 HOUR, u) AS CHAR), trx_mysql_thread_id, LOWER(trx_state), \
                     CAST(UTC_TIMESTAMP(6) - INTERVAL uptime SECOND AS CHAR), COALESCE(p.USER, ''), p.COMMAND, p.ID, own, \
                     own AND COALESCE(trx_query, '') LIKE 'SELECT /* {mark} */%' \
                     FROM (SELECT trx_started, trx_mysql_thread_id, trx_state, trx_query, \
                     CONVERT_TZ(trx_started, 'SYSTEM', '+00:00') AS u, trx_mysql_thread_id = CONNECTION_ID() AS own, \
                     (SELECT VARIABLE_VALUE FROM {status} WHERE VARIABLE_NAME = 'UPTIME') AS uptime \
                     FROM information_schema.INNODB_TRX WHERE trx_mysql_thread_id = CONNECTION_ID() \
                     OR trx_is_read_only = 0 AND trx_autocommit_non_locking = 0) AS t \
                     LEFT JOIN information_schema.PROCESSLIST p ON p.ID = t.trx_mysql_thread_id"
                ),
                what,
            )
            .await?;
        let (own, others): (Vec<Row>, Vec<Row>) = rows.into_iter().partition(|r| number(r, 7) == 1);
        if own.iter().any(|r| number(r, 8) == 1) {
            session.run("ROLLBACK", what).await?;
            return Ok(others);
        }
        tokio::time::sleep(LIST_IDLE).await;
    }
    Err(Error::new(
        code::SERVER_BUSY,
        "the server's list of open transactions stays old, because something reads INNODB_TRX many times a second",
    )
    .hint("let the monitoring read information_schema.INNODB_TRX less often than every 0.1 s"))
}

fn unknown_age(prepared: usize) -> Error {
    Error::new(
        code::UNSUPPORTED,
        format!("{prepared} prepared XA transactions are open, and nobody knows when they began"),
    )
    .hint("XA RECOVER lists them: commit or roll them back")
}

/// A moment and the quarters of an hour of the day that follows it: at one of them clocks are set, if they are.
fn later(micros: i64) -> impl Iterator<Item = i64> {
    const QUARTER: i64 = 900 * SECOND_MICROS;
    let next = micros.div_euclid(QUARTER) + 1;
    std::iter::once(micros).chain((next..=next + 100).map(|n| n * QUARTER))
}

/// A moment as a column without a zone has it. Where clocks are set back, wall-clock times come again: the smallest one
/// that is still to come is the bound.
async fn local(
    session: &mut Session,
    table: &TableId,
    column: &Column,
    zone: Option<&str>,
    bound: i64,
) -> Result<String> {
    let zone = match zone {
        Some(zone) => zone.to_string(),
        None => {
            let row = session
                .row("SELECT @@global.time_zone", "reading the server's time zone")
                .await?;
            text(&row, 0).unwrap_or_else(|| "SYSTEM".into())
        }
    };
    let named = if zone.eq_ignore_ascii_case("UTC") {
        "+00:00"
    } else {
        &zone
    };
    let moments: Vec<String> = later(bound)
        .map(|at| format!("SELECT {} AS t", literal(&written(at))))
        .collect();
    let row = session
        .row(
            &format!(
                "SELECT CAST(MIN(CONVERT_TZ(CAST(t AS DATETIME(6)), '+00:00', {})) AS CHAR) FROM ({}) AS later",
                literal(named),
                moments.join(" UNION ALL ")
            ),
            "converting the bound to the column's time zone",
        )
        .await?;
    let found = text(&row, 0).ok_or_else(|| {
        Error::new(
            code::CONFIG_INVALID,
            format!(
                "the server does not know the time zone {zone} of column {} of {table}",
                column.name
            ),
        )
        .hint("load the zones with mariadb-tzinfo-to-sql (mysql_tzinfo_to_sql), or give an offset such as +02:00")
    })?;
    Ok(match column.ty {
        ColumnType::Date => found.get(..10).unwrap_or(&found).to_string(),
        _ => types::canonical(&Column::new(&column.name, ColumnType::Timestamp), found.as_bytes())?,
    })
}
