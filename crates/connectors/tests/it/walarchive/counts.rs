//! Counts stand in the window, the ISO week and the month in which production committed, whatever clock and time zone the
//! local server has.

use synctool_connectors::postgres::PostgresConfig;
use synctool_connectors::walarchive::Board;
use synctool_connectors::walarchive::journal::{ALL, Counted, Net, Tallies, count, count_all};
use synctool_pgwal::Counts;
use synctool_testkit::{PgVersion, Postgres};

async fn periods_of(version: PgVersion) {
    let local = Postgres::shared(version).database("datasync");
    // Days begin elsewhere at another time, and one of them is an hour shorter.
    local.psql(&format!(
        "ALTER DATABASE {} SET timezone = 'America/New_York'",
        local.name()
    ));
    let board = Board::open(&PostgresConfig::from_url(&local.url()).unwrap())
        .await
        .unwrap();
    let inserted = |n: u64| Tallies {
        operations: Counts {
            inserted: n,
            ..Counts::default()
        },
        net: Net {
            added: n,
            ..Net::default()
        },
        ..Tallies::default()
    };
    // Each commit has a number of its own, so that a sum tells which were counted.
    let mut number = 1;
    let mut add = async |table: &str, at: &str, window: u32| {
        let hour = format!("SELECT floor(extract(epoch FROM '{at}+00'::timestamptz) / 3600)");
        let hour = local.psql(&hour).parse().unwrap();
        count(board.session(), table, hour, window, &inserted(number))
            .await
            .unwrap();
        number *= 2;
    };
    for at in [
        "2024-12-29 23:59", // Sunday, the last hour of week 52
        "2024-12-30 00:00", // Monday of week 1 of 2025, and still December
        "2024-12-30 05:59",
        "2024-12-30 06:00",
        "2024-12-31 23:00",
        "2025-01-01 00:00", // another month and year, the same week
        "2025-01-05 23:00",
        "2025-01-06 00:00", // week 2
    ] {
        add("border", at, 6).await;
    }
    let of = |table: &str, period: &str| {
        let sql = format!(
            "SELECT string_agg(to_char(starts_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24') || ' ' || to_char(ends_at AT TIME ZONE 'UTC', 'MM-DD HH24') || ': ' || added, ', ' ORDER BY starts_at)
             FROM data_sync_metrics WHERE table_name = '{table}' AND period = '{period}' AND added = net_added"
        );
        local.psql(&sql)
    };
    assert_eq!(
        of("border", "week"),
        "2024-12-23 00 12-30 00: 1, 2024-12-30 00 01-06 00: 126, 2025-01-06 00 01-13 00: 128"
    );
    assert_eq!(
        of("border", "month"),
        "2024-12-01 00 01-01 00: 31, 2025-01-01 00 02-01 00: 224"
    );
    assert_eq!(
        of("border", "window"),
        "2024-12-29 18 12-30 00: 1, 2024-12-30 00 12-30 06: 6, 2024-12-30 06 12-30 12: 8, 2024-12-31 18 01-01 00: 16, \
         2025-01-01 00 01-01 06: 32, 2025-01-05 18 01-06 00: 64, 2025-01-06 00 01-06 06: 128"
    );
    // A year with 53 weeks; the day of a leap year.
    for at in [
        "2020-02-29 23:00",
        "2020-03-01 00:00",
        "2020-12-27 23:00",
        "2020-12-28 00:00",
        "2021-01-03 23:00",
        "2021-01-04 00:00",
    ] {
        add("long", at, 24).await;
    }
    assert_eq!(
        of("long", "week"),
        "2020-02-24 00 03-02 00: 768, 2020-12-21 00 12-28 00: 1024, 2020-12-28 00 01-04 00: 6144, 2021-01-04 00 01-11 00: 8192"
    );
    assert_eq!(
        of("long", "month"),
        "2020-02-01 00 03-01 00: 256, 2020-03-01 00 04-01 00: 512, 2020-12-01 00 01-01 00: 3072, 2021-01-01 00 02-01 00: 12288"
    );
    // Windows of an hour follow each other where clocks are put forward (7:00 UTC in New York) and back (6:00 UTC).
    for at in [
        "2024-03-10 06:59",
        "2024-03-10 07:00",
        "2024-11-03 05:59",
        "2024-11-03 06:00",
        "2024-11-03 06:59",
    ] {
        add("hours", at, 1).await;
    }
    assert_eq!(
        of("hours", "window"),
        "2024-03-10 06 03-10 07: 16384, 2024-03-10 07 03-10 08: 32768, 2024-11-03 05 11-03 06: 65536, 2024-11-03 06 11-03 07: 393216"
    );
    // Windows that divide no day neither overlap nor leave a gap: 1970 began the first.
    for at in [
        "1970-01-01 06:59",
        "1970-01-01 07:00",
        "1970-01-02 03:00",
        "1969-12-31 23:00",
    ] {
        add("seven", at, 7).await;
    }
    assert_eq!(
        of("seven", "window"),
        "1969-12-31 17 01-01 00: 4194304, 1970-01-01 00 01-01 07: 524288, 1970-01-01 07 01-01 14: 1048576, 1970-01-01 21 01-02 04: 2097152"
    );
    // Another METRIC_FREQ begins windows of its own beside the old ones.
    add("border", "2024-12-30 01:00", 12).await;
    assert!(of("border", "window").contains("2024-12-30 00 12-30 12: 8388608"));
    assert!(of("border", "window").contains("2024-12-30 00 12-30 06: 6,"));

    // The rest adds up too; of the lag the largest stays, and what is incomplete stays so.
    let whole = |lag: f64, incomplete: bool| {
        let mut all = inserted(1);
        (all.operations.updated, all.operations.deleted) = (2, 3);
        (all.net.added, all.net.updated, all.net.deleted) = (4, 5, 6);
        (all.batches, all.transactions, all.segments, all.bytes, all.errors) = (7, 8, 9, 10, 11);
        (all.lag, all.incomplete) = (Some(lag), incomplete);
        all
    };
    let three = [(3.5, false), (9.25, true), (0.5, false)];
    for (lag, incomplete) in three {
        let tallies = whole(lag, incomplete);
        count(board.session(), ALL, 480_000, 24, &tallies).await.unwrap();
    }
    let sums = "SELECT DISTINCT added, updated, deleted, net_added, net_updated, net_deleted, batches, transactions, segments, wal_bytes, errors, max_lag_seconds, incomplete
        FROM data_sync_metrics WHERE table_name = '*'";
    assert_eq!(local.psql(sums), "3|6|9|12|15|18|21|24|27|30|33|9.25|t");
    assert_eq!(
        local.psql("SELECT count(*) FROM data_sync_metrics WHERE table_name = '*'"),
        "3"
    );

    // What is counted of an hour at once comes to the same.
    let mut counted = Counted::new();
    for (lag, incomplete) in three {
        let of_an_hour = counted.entry(("once".into(), 480_000)).or_default();
        of_an_hour.add(&whole(lag, incomplete));
    }
    counted.insert(("another".into(), 480_000), whole(1.0, false));
    count_all(board.session(), &counted, 24).await.unwrap();
    let of = |table: &str| local.psql(&sums.replace('*', table));
    assert_eq!(of("once"), "3|6|9|12|15|18|21|24|27|30|33|9.25|t");
    assert_eq!(of("another"), "1|2|3|4|5|6|7|8|9|10|11|1|f");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stand_in_the_periods_of_their_commit() {
    periods_of(PgVersion::V18).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_stand_in_the_periods_of_their_commit_15() {
    periods_of(PgVersion::V15).await;
}
