//! Up to where a column has settled that the database stamps with `now()`.
//!
//! A transaction stamps its rows with its start and shows them when it commits, so rows may appear behind what was read
//! already. Whatever an open transaction may yet write has its start or a later time: below the start of the oldest one
//! nothing changes any more, and below the clock nothing does where none is open. The margin covers the moment between
//! a transaction's start and the server's telling of it, and small steps of the clock.
//!
//! Nobody may be overlooked. A transaction that is not seen (no right to see it, statistics off, prepared and so
//! without a session, on the primary of a standby, or at the publisher of a subscription) makes this an error, never a
//! guess.

use super::source::READING;
use super::sql::literal;
use super::{Connection, Postgres, catalog};
use postgres_types::{ToSql, Type};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use synctool_core::schema::{Column, ColumnType, TableId};
use synctool_core::source::Settled;

/// Up to where `column` has settled.
pub(super) async fn bound(
    database: &Postgres,
    table: &TableId,
    column: &Column,
    zone: Option<&str>,
    margin: Duration,
) -> Result<Settled> {
    let place = |e: Error| e.at("table", table.to_string()).at("column", column.name.clone());
    let connection = database.connect().await?;
    connection.working(true);
    let (schema, name) = (table.schema.as_ref(), &table.name);
    let schema = schema.unwrap_or(&database.config().schema);
    refuse_subscribed(&connection, schema, name).await.map_err(place)?;
    let settled = settle(&connection, column, zone, margin).await.map_err(place)?;
    connection.working(false);
    connection.recycle();
    Ok(settled)
}

/// A session that holds the bound back.
struct Oldest {
    start: String,
    who: String,
    /// Whether it began longer ago than the margin.
    late: bool,
}

async fn settle(connection: &Connection, column: &Column, zone: Option<&str>, margin: Duration) -> Result<Settled> {
    let ty = stamped(column)?;
    const WHAT: &str = "looking at open transactions";
    // The clock first: whoever begins later has a later start.
    const CLOCK: &str = "SELECT pg_catalog.pg_is_in_recovery(), pg_catalog.clock_timestamp()::text, current_user::text";
    let rows = catalog::rows(connection, CLOCK, &[], WHAT).await?;
    let first = rows
        .first()
        .ok_or_else(|| Error::bug("a SELECT without FROM gave no row"))?;
    if first.get(0) {
        return Err(Error::new(
            code::UNSUPPORTED,
            "a standby does not show the transactions that are open on its primary, so nobody knows what has settled",
        )
        .hint("read from the primary, or set `stamped_by: app` with a lag"));
    }
    let (clock, role): (String, String) = (first.get(1), first.get(2));
    let oldest = oldest(connection, &clock, &role, margin).await?;
    // Preparing a transaction takes it out of the sessions after it is listed here, so this is looked at after them.
    refuse_prepared(connection).await?;

    let start = oldest.as_ref().map_or(&clock, |o| &o.start);
    let zone = match (zone, &column.ty) {
        (Some(zone), _) => zone.to_string(),
        (None, ColumnType::TimestampTz) => "UTC".into(),
        (None, _) => server_zone(connection).await?,
    };
    let sql = format!(
        "WITH hi AS (SELECT {start}::timestamptz - {margin} * interval '1 microsecond' AS hi) \
         SELECT ({bound})::{ty}::text, pg_catalog.to_char({clock}::timestamptz AT TIME ZONE 'UTC', \
                'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') FROM hi",
        start = literal(start)?,
        clock = literal(&clock)?,
        margin = margin.as_micros(),
        bound = in_domain(&column.ty, &zone)?,
    );
    let rows = catalog::rows(connection, &sql, &[], WHAT).await.map_err(|e| {
        match e.context().iter().any(|(k, v)| *k == "sqlstate" && v == "22023") {
            true => Error::new(code::CONFIG_INVALID, format!("the server knows no time zone {zone:?}"))
                .hint("write a name of the IANA database (Europe/Berlin)"),
            false => e,
        }
    })?;
    let row = rows.first().ok_or_else(|| Error::bug("a bound without a row"))?;
    Ok(Settled {
        bound: row.get(0),
        now: row.get(1),
        held_by: oldest.filter(|o| o.late).map(|o| o.who),
    })
}

/// The column's type as a cast: a column that keeps fewer digits rounds its stamps, and the bound must be rounded with
/// them.
fn stamped(column: &Column) -> Result<&str> {
    let plain = match column.ty {
        ColumnType::TimestampTz => "timestamptz",
        ColumnType::Timestamp => "timestamp",
        ColumnType::Date => "date",
        _ => {
            return Err(Error::new(
                code::CONFIG_TYPE,
                format!(
                    "column {} of type {} holds no time, so it is not stamped",
                    column.name, column.ty
                ),
            )
            .hint("take a column of type timestamptz, timestamp or date that every change sets to now()"));
        }
    };
    Ok(column.source_type.as_deref().unwrap_or(plain))
}

/// The instant `hi` as a value of the column. Where the clocks of a zone go back, wall-clock times come again: the
/// smallest one that is still to come is the bound. Zones change by quarters of an hour and by hours, at such times.
fn in_domain(ty: &ColumnType, zone: &str) -> Result<String> {
    if *ty == ColumnType::TimestampTz {
        return Ok("hi".into());
    }
    let zone = literal(zone)?;
    Ok(format!(
        "SELECT min(t AT TIME ZONE {zone}) FROM (SELECT hi AS t UNION ALL \
         SELECT q FROM pg_catalog.generate_series(pg_catalog.date_trunc('hour', hi), hi + interval '25 hours', \
         interval '15 minutes') AS q WHERE q > hi) AS later"
    ))
}

/// The zone in which sessions of this role and database live; ours is UTC.
async fn server_zone(connection: &Connection) -> Result<String> {
    const SQL: &str = "SELECT reset_val FROM pg_catalog.pg_settings WHERE name = 'TimeZone'";
    let rows = catalog::rows(connection, SQL, &[], "reading the server's time zone").await?;
    rows.first()
        .and_then(|r| r.get::<_, Option<String>>(0))
        .ok_or_else(|| Error::bug("the server has no time zone"))
}

/// The open transaction that began first, of all sessions of this database that may write. Those without a transaction
/// id count too: theirs may come. Not counted are the server's own workers that write no rows, helpers of a session
/// that is counted itself, and our reading sessions as long as they have written nothing.
async fn oldest(connection: &Connection, clock: &str, role: &str, margin: Duration) -> Result<Option<Oldest>> {
    let sql = format!(
        "SELECT a.pid, coalesce(a.usename::text, '(unknown)'), a.state, a.xact_start::text, \
                a.backend_type IS NULL AND a.query = '<insufficient privilege>', \
                pg_catalog.date_part('epoch', {clock}::timestamptz - a.xact_start) \
         FROM pg_catalog.pg_stat_activity a \
         WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid() \
           AND (a.backend_type IS NULL OR a.backend_type NOT IN \
                ('autovacuum worker', 'autovacuum launcher', 'walsender', 'parallel worker', \
                 'logical replication launcher')) \
           AND NOT (a.backend_xid IS NULL AND a.backend_type = 'client backend' \
                    AND pg_catalog.starts_with(a.application_name, {reading})) \
         ORDER BY a.xact_start NULLS LAST",
        clock = literal(clock)?,
        reading = literal(READING)?,
    );
    let rows = catalog::rows(connection, &sql, &[], "looking at open transactions").await?;
    for row in &rows {
        let (pid, user): (i32, String) = (row.get(0), row.get(1));
        if row.get::<_, Option<bool>>(4) == Some(true) {
            return Err(Error::new(
                code::PERMISSION,
                format!(
                    "role {role} may not see whether the session of user {user} (pid {pid}) has a transaction open, so \
                     nobody knows which rows have settled"
                ),
            )
            .hint(format!("GRANT pg_read_all_stats TO {};", super::sql::ident(role))));
        }
        if row.get::<_, Option<&str>>(2) == Some("disabled") {
            return Err(Error::new(
                code::UNSUPPORTED,
                format!("the session of user {user} (pid {pid}) has track_activities off and shows no transaction"),
            )
            .hint(
                "set track_activities = on for every session of this database, or set `stamped_by: app` with a lag",
            ));
        }
    }
    let Some(row) = rows.first() else { return Ok(None) };
    let Some(start) = row.get::<_, Option<String>>(3) else {
        return Ok(None);
    };
    let age = row.get::<_, Option<f64>>(5).unwrap_or_default();
    if age <= 0.0 {
        // It began after the clock was read.
        return Ok(None);
    }
    let (pid, user): (i32, String) = (row.get(0), row.get(1));
    let state = row.get::<_, Option<&str>>(2).unwrap_or("starting");
    Ok(Some(Oldest {
        start,
        who: format!("pid {pid}, {state}, transaction open for {}, user {user}", span(age)),
        late: age > margin.as_secs_f64(),
    }))
}

/// A span of time for people.
fn span(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.1} h", s / 3600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// A subscription brings rows with the stamps of their publisher, in transactions that begin here later. One that is
/// disabled is refused, too: what it brings once it is enabled again was stamped long before.
async fn refuse_subscribed(connection: &Connection, schema: &str, name: &str) -> Result<()> {
    // The table, what is read through it, and whose partitions all these are: a subscription names either. Its own
    // catalog hides the connection from most roles, the view shows names to all.
    let sql = format!(
        "WITH RECURSIVE seen(oid) AS (
            SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE n.nspname = $1 AND c.relname = $2
            UNION {}
        )
        SELECT l.srrelid::regclass::text,
               (SELECT min(s.subname::text) FROM pg_catalog.pg_stat_subscription s WHERE s.subid = l.srsubid)
        FROM pg_catalog.pg_subscription_rel l
        WHERE l.srrelid IN (
            SELECT oid FROM seen
            UNION
            SELECT a.relid::oid FROM seen, LATERAL pg_catalog.pg_partition_ancestors(seen.oid::regclass) AS a(relid))
        LIMIT 1",
        catalog::READ_THROUGH
    );
    let params: &[(&(dyn ToSql + Sync), Type)] = &[(&schema, Type::TEXT), (&name, Type::TEXT)];
    let rows = catalog::rows(connection, &sql, params, "looking for subscriptions").await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (table, subscription): (String, Option<String>) = (row.get(0), row.get(1));
    Err(Error::new(
        code::UNSUPPORTED,
        format!(
            "subscription {} writes {table}, where transactions of its publisher arrive late: nobody knows here which rows \
             have settled",
            subscription.unwrap_or_default()
        ),
    )
    .hint(
        "read from the publisher, or set `stamped_by: app` with a lag; where nothing comes from the subscription any more, \
         drop it",
    ))
}

/// A prepared transaction has no session any more, and nothing tells when it began: its rows may have any stamp.
async fn refuse_prepared(connection: &Connection) -> Result<()> {
    // Whoever is listed is undecided, so it holds back the xmin of every snapshot taken from now on.
    const SQL: &str = "SELECT p.gid, p.owner::text, p.prepared::text FROM pg_catalog.pg_prepared_xacts p \
         WHERE p.database = pg_catalog.current_database() ORDER BY p.prepared";
    let rows = catalog::rows(connection, SQL, &[], "looking for prepared transactions").await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let (gid, owner, since): (String, String, String) = (row.get(0), row.get(1), row.get(2));
    Err(Error::new(
        code::CONFLICT,
        format!(
            "transaction {gid:?} of user {owner} is prepared (since {since}) and neither committed nor rolled back; \
             its start is not known, so nobody knows which rows have settled"
        ),
    )
    .hint(format!(
        "COMMIT PREPARED or ROLLBACK PREPARED {}, or set `stamped_by: app` with a lag",
        literal(&gid)?
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_readable() {
        assert_eq!([span(3.2), span(840.0), span(9000.0)], ["3 s", "14 min", "2.5 h"]);
    }

    #[test]
    fn only_times_are_stamped() {
        let of = |ty| stamped(&Column::new("c", ty)).map(str::to_string);
        assert_eq!(of(ColumnType::TimestampTz).unwrap(), "timestamptz");
        assert_eq!(of(ColumnType::Int64).unwrap_err().code(), code::CONFIG_TYPE);
        let rounded = Column::new("c", ColumnType::Timestamp).with_source_type("timestamp(0) without time zone");
        assert_eq!(stamped(&rounded).unwrap(), "timestamp(0) without time zone");
    }
}
