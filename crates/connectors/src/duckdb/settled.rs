//! Up to where a column that is stamped with `now()` has settled.
//!
//! One process may have a DuckDB file open for writing, and this one has it: the only transactions that can be open are
//! those of our own sinks. Where there is none, everything that will be stamped is stamped after the clock was taken
//! (`now()` is when its transaction began).
//!
//! A column without a zone holds what clocks showed whoever wrote it: in the zone of the session, which is the machine's
//! unless somebody says another one, and in UTC where DuckDB's extension `icu` is missing. Nothing tells afterwards which
//! it was. So without a word (`time_zone`) the smallest of both is the bound: rows may be read later than they could be,
//! and none is passed over.

use chrono::{DateTime, Local};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::Settled;
use synctool_core::strategy::cut::Zone;
use synctool_core::text;

/// At times that are multiples of this, clocks are set, if they are.
const QUARTER: i64 = 900_000_000;

/// Up to where a column has settled now, if nobody writes.
pub(super) fn settled(table: &TableId, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
    let now = chrono::Utc::now();
    let margin = i64::try_from(margin.as_micros()).unwrap_or(i64::MAX);
    let at = now.timestamp_micros().saturating_sub(margin);
    Ok(Settled {
        bound: bound(table, column, zone, at)?,
        now: now.to_rfc3339_opts(chrono::SecondsFormat::Micros, true),
        held_by: None,
    })
}

/// The smallest value that a stamp from this time on may have.
fn bound(table: &TableId, column: &Column, zone: Option<&str>, at: i64) -> Result<String> {
    let smallest = match (&column.ty, zone) {
        (ColumnType::TimestampTz, _) => at,
        (ColumnType::Timestamp, None) => in_either(at, machine),
        (ColumnType::Timestamp, Some(zone)) => {
            let zone = Zone::parse(zone).ok_or_else(|| {
                Error::new(code::CONFIG_INVALID, format!("{zone:?} is no time zone"))
                    .hint("write a name of the IANA database (Europe/Berlin), UTC or an offset (+02:00)")
            })?;
            smallest(at, |at| zone.local(at))
        }
        _ => {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!("column {} of {table} is no timestamp", column.name),
            )
            .hint("stamp with now() into a TIMESTAMPTZ or TIMESTAMP column, or set `stamped_by: app` with a lag"));
        }
    };
    let mut bound = String::new();
    text::write_timestamp(&mut bound, smallest, column.ty == ColumnType::TimestampTz);
    Ok(bound)
}

/// The smallest time that is shown from a time on, be it in UTC or by other clocks.
fn in_either(at: i64, shown: impl Fn(i64) -> i64) -> i64 {
    smallest(at, shown).min(at)
}

/// The smallest time that clocks show from a time on: where they are set back, times come again.
fn smallest(at: i64, shown: impl Fn(i64) -> i64) -> i64 {
    let next = at.div_euclid(QUARTER) + 1;
    let later = (next..=next + 100).map(|quarter| shown(quarter.saturating_mul(QUARTER)));
    later.fold(shown(at), i64::min)
}

/// What this machine's clocks show.
fn machine(at: i64) -> i64 {
    let shown = |at: DateTime<chrono::Utc>| at.with_timezone(&Local).naive_local().and_utc().timestamp_micros();
    DateTime::from_timestamp_micros(at).map_or(at, shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> i64 {
        text::parse_timestamp(text, false).unwrap()
    }

    fn of(ty: ColumnType, zone: Option<&str>, now: &str) -> Result<String> {
        bound(&TableId::bare("t"), &Column::new("c", ty), zone, at(now))
    }

    #[test]
    fn a_bound_is_what_clocks_of_the_columns_zone_show() {
        let shown = |zone: &str, now: &str| of(ColumnType::Timestamp, Some(zone), now).unwrap();
        assert_eq!(shown("UTC", "2026-07-01 12:00:00"), "2026-07-01 12:00:00");
        assert_eq!(shown("America/New_York", "2026-07-01 12:00:00"), "2026-07-01 08:00:00");
        assert_eq!(shown("+05:30", "2026-07-01 12:00:00"), "2026-07-01 17:30:00");
        // Clocks go back by an hour at 01:00 UTC: it is half past two twice.
        assert_eq!(shown("Europe/Berlin", "2026-10-25 00:30:00"), "2026-10-25 02:00:00");
        assert_eq!(shown("Europe/Berlin", "2026-10-25 01:30:00"), "2026-10-25 02:30:00");
        let instant = of(ColumnType::TimestampTz, Some("America/New_York"), "2026-07-01 12:00:00");
        assert_eq!(instant.unwrap(), "2026-07-01 12:00:00+00");
        let unknown = of(ColumnType::Timestamp, Some("Nowhere"), "2026-07-01 12:00:00");
        assert_eq!(unknown.unwrap_err().code(), code::CONFIG_INVALID);
        let other = of(ColumnType::Int64, None, "2026-07-01 12:00:00");
        assert_eq!(other.unwrap_err().code(), code::UNSUPPORTED);
    }

    /// West of UTC the next stamps are smaller than the time in UTC, which had been the bound: they were never read.
    #[test]
    fn without_a_zone_no_stamp_of_this_machine_is_passed_over() {
        let noon = at("2026-07-01 12:00:00");
        let beside = |zone: &str| in_either(noon, |at| Zone::parse(zone).unwrap().local(at));
        assert_eq!(beside("America/New_York"), at("2026-07-01 08:00:00"));
        assert_eq!(beside("Europe/Berlin"), noon, "it may be in UTC");
        let unsaid = at(&of(ColumnType::Timestamp, None, "2026-07-01 12:00:00").unwrap());
        assert!(unsaid <= noon && unsaid <= machine(noon));
    }
}
