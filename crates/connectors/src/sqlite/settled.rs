//! Up to where a column that the database stamps has settled.
//!
//! SQLite has one writer at a time: from its first write to its commit a transaction holds the file's write lock, and
//! `datetime('now')` inside it is asked for after the lock was taken. So write transactions, and the stamps they make, do
//! not overlap:
//!
//! - If we take the clock and *then* get the write lock, no transaction is open, and every later one begins, and stamps,
//!   after the clock we took. The bound is that clock.
//! - If somebody has the lock, their stamps are not older than the newest one that is committed, because they began when it
//!   was. The bound is that stamp: rows of its second wait.
//! - If we may not take the lock (a read-only file), the same holds: the newest committed stamp is the bound.
//!
//! The clock is the machine's, for us and for every writer, as SQLite files are not shared between hosts; a clock that is
//! set back is what the margin is for. Stamps mostly have whole seconds, so the bound has, too: one made later in the
//! second of the bound is not smaller than it. The bound is in the form that the column stores.

use super::SqliteConfig;
use super::catalog;
use super::client::{Access, failed, with_connection};
use super::sql::quote;
use super::types;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::{Among, Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::Settled;
use synctool_core::text;

/// How long to wait for the lock before somebody is said to hold it.
const PATIENCE: Duration = Duration::from_secs(1);
const SECOND: i64 = 1_000_000;

/// How a column says when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// Days, or date and time, that SQLite's date functions read; compared by their meaning.
    Date,
    Timestamp,
    Instant,
    /// Text without a type: compared letter by letter, so the character between date and time matters.
    Text(char),
    /// Since 1970, so many in a second.
    Epoch(i64),
}

pub(super) async fn settled(
    config: &Arc<SqliteConfig>,
    table: &TableId,
    column: &Column,
    zone: Option<&str>,
    margin: Duration,
) -> Result<Settled> {
    let offset = offset(zone)?;
    let (table, column) = (table.clone(), column.clone());
    let patience = config.busy_timeout.min(PATIENCE);
    let usual = config.busy_timeout;
    with_connection(config, Access::Look, move |conn| {
        let set = |conn: &Connection, t| conn.busy_timeout(t).map_err(failed(|| "setting the timeout".into()));
        let now = chrono::Utc::now();
        set(conn, patience)?;
        let held_by = lock(conn)?;
        set(conn, usual)?;
        let margin = i64::try_from(margin.as_micros()).unwrap_or(i64::MAX);
        let (form, newest) = look(conn, &table, &column, now.timestamp_micros() + offset)?;
        let clock = now.timestamp_micros() + offset;
        let at = match held_by {
            None => clock,
            // Without any row there is nothing to read, either.
            Some(_) => newest.map_or(0, |n| n.min(clock)),
        };
        let at = at.saturating_sub(margin);
        Ok(Settled {
            bound: form.text(at),
            now: now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
            held_by,
        })
    })
    .await
}

/// Takes the write lock and gives it back; who has it otherwise.
fn lock(conn: &Connection) -> Result<Option<String>> {
    match conn.execute_batch("BEGIN IMMEDIATE; ROLLBACK") {
        Ok(()) => Ok(None),
        Err(e) => match e.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy) => Ok(Some("another connection has a write transaction open".into())),
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::CannotOpen) => Ok(Some(
                "the file may not be written, so nobody can prove that no write transaction is open".into(),
            )),
            _ => Err(failed(|| "looking for open write transactions".into())(e)),
        },
    }
}

/// The offset of a column without a zone, in microseconds. SQLite's own stamps are in UTC.
fn offset(zone: Option<&str>) -> Result<i64> {
    let zone = zone.unwrap_or("UTC");
    if matches!(zone, "UTC" | "utc" | "Z" | "Etc/UTC") {
        return Ok(0);
    }
    // An instant with that offset says how far it is from UTC.
    text::parse_timestamp(&format!("2000-01-01 00:00:00{zone}"), true)
        .zip(text::parse_timestamp("2000-01-01 00:00:00", false))
        .map(|(utc, naive)| naive - utc)
        .ok_or_else(|| {
            Error::new(
                code::CONFIG_INVALID,
                format!("time zone {zone}: stamps of a SQLite column are in UTC or in a fixed offset such as +02:00"),
            )
            .hint("an hour that comes twice a year is no bound: stamp with datetime('now'), which is UTC")
        })
}

/// The form of a column, and its newest stamp up to a time.
fn look(conn: &Connection, table: &TableId, column: &Column, until: i64) -> Result<(Form, Option<i64>)> {
    let found = catalog::must_find(conn, table)?;
    let there = found.column(&column.name).ok_or_else(|| {
        Error::no_column(
            Among::Table,
            &column.name,
            format!("column {} is not in {table}", column.name),
        )
    })?;
    let (t, c) = (quote(&found.name), quote(&there.name));
    let doing = || format!("looking at the newest {} of {}", column.name, found.name);
    let newest = |function: &str, until: i64| -> Result<Option<i64>> {
        let sql = format!("SELECT max({function}({c})) FROM {t} WHERE {function}({c}) <= ?1 AND {function}({c}) > ?2");
        conn.query_row(&sql, params![until, i64::MIN], |r| r.get(0))
            .optional()
            .map(Option::flatten)
            .map_err(failed(doing))
    };
    let day = 86_400 * SECOND;
    match types::column_type(&there.declared) {
        ColumnType::Timestamp => Ok((Form::Timestamp, newest("_synctool_timestamp", until)?)),
        ColumnType::TimestampTz => Ok((Form::Instant, newest("_synctool_instant", until)?)),
        ColumnType::Date => {
            let newest = newest("_synctool_date", until.div_euclid(day))?;
            Ok((Form::Date, newest.map(|d| d.saturating_mul(day))))
        }
        ColumnType::Text { .. } => {
            // Ends that shift the time are local times, whose letters do not sort.
            let sql = format!(
                "SELECT count(*) FILTER (WHERE substr({c}, 11, 1) = ' '), count(*) FILTER (WHERE substr({c}, 11, 1) = 'T'), \
                 count(*) FILTER (WHERE typeof({c}) <> 'text' \
                 OR {c} NOT GLOB '[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9][ T][0-9][0-9]:[0-9][0-9]*' \
                 OR ({c} GLOB '*[+-][0-9][0-9]:[0-9][0-9]' AND {c} NOT GLOB '*+00:00')) FROM {t} WHERE {c} IS NOT NULL"
            );
            let (blank, letter, odd): (i64, i64, i64) = conn
                .query_row(&sql, [], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
                .map_err(failed(doing))?;
            if odd > 0 {
                return Err(unreadable(
                    column,
                    &format!("{odd} of its values are no UTC times in ISO form"),
                ));
            }
            // Where both are used, a blank sorts before everything that is later.
            let form = Form::Text(if letter > 0 && blank == 0 { 'T' } else { ' ' });
            let newest: Option<String> = conn
                .query_row(
                    &format!("SELECT max(substr({c}, 1, 19)) FROM {t} WHERE {c} COLLATE BINARY < ?1"),
                    [form.text(until + SECOND)],
                    |r| r.get(0),
                )
                .map_err(failed(doing))?;
            let newest = newest.map(|n| text::parse_timestamp(n.trim_end_matches('Z'), false));
            match newest {
                Some(None) => Err(unreadable(column, "its newest value is no time in ISO form")),
                found => Ok((form, found.flatten())),
            }
        }
        ColumnType::Int64 => {
            let sql = format!("SELECT max({c}), max(typeof({c})) FROM {t} WHERE {c} IS NOT NULL");
            let (newest, kind): (Option<i64>, Option<String>) = conn
                .query_row(&sql, [], |r| Ok((r.get(0)?, r.get(1)?)))
                .map_err(failed(doing))?;
            if kind.is_some_and(|k| k != "integer") {
                return Err(unreadable(column, "not all of its values are integers"));
            }
            // Seconds and milliseconds of our times cannot be taken for each other.
            let per_second = match newest {
                None => 1,
                Some(n) if (100_000_000..100_000_000_000).contains(&n) => 1,
                Some(n) if (100_000_000_000..100_000_000_000_000).contains(&n) => 1000,
                Some(_) => {
                    return Err(unreadable(
                        column,
                        "its values are neither seconds nor milliseconds since 1970",
                    ));
                }
            };
            Ok((
                Form::Epoch(per_second),
                newest.map(|n| n.saturating_mul(SECOND / per_second)),
            ))
        }
        other => Err(unreadable(column, &format!("it is of type {other}"))),
    }
}

fn unreadable(column: &Column, why: &str) -> Error {
    Error::new(
        code::UNSUPPORTED,
        format!("column {} cannot be read as the time of a change: {why}", column.name),
    )
    .hint("stamp with datetime('now') or unixepoch(), or set `stamped_by: app` with a lag")
}

impl Form {
    /// A time in the form of the column, cut to the second (or day).
    fn text(self, micros: i64) -> String {
        let seconds = micros.div_euclid(SECOND);
        let stamp = |instant| {
            let mut out = String::new();
            text::write_timestamp(&mut out, seconds * SECOND, instant);
            out
        };
        match self {
            Form::Date => {
                let mut out = String::new();
                text::write_date(&mut out, seconds.div_euclid(86_400) as i32);
                out
            }
            Form::Timestamp => stamp(false),
            Form::Instant => stamp(true),
            Form::Text(between) => stamp(false).replacen(' ', &between.to_string(), 1),
            Form::Epoch(per_second) => (seconds * per_second).to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_in_the_columns_form() {
        let at = text::parse_timestamp("2024-01-31 23:59:59.9", false).unwrap();
        assert_eq!(Form::Date.text(at), "2024-01-31");
        assert_eq!(Form::Timestamp.text(at), "2024-01-31 23:59:59");
        assert_eq!(Form::Instant.text(at), "2024-01-31 23:59:59+00");
        assert_eq!(Form::Text('T').text(at), "2024-01-31T23:59:59");
        assert_eq!(Form::Epoch(1000).text(at), "1706745599000");
    }

    #[test]
    fn zones_without_summer_are_known() {
        assert_eq!(offset(None).unwrap(), 0);
        assert_eq!(offset(Some("+05:30")).unwrap(), 19_800 * SECOND);
        assert_eq!(offset(Some("-03")).unwrap(), -10_800 * SECOND);
        assert!(offset(Some("Europe/Berlin")).is_err());
    }
}
