//! What the crash matrix in memory and the conformance suite of every connector run: the same options, tables and log.

use super::memory_log::MemoryLog;
use super::rows::{Row, Rows, text_schema};
use crate::engine::Options;
use crate::retry::RetryPolicy;
use crate::schema::{TableId, TableSchema};
use crate::strategy::full::{FullMode, FullRequest};
use crate::strategy::table::TableRequest;
use std::time::Duration;

/// Several partitions at once, a commit at every boundary, and no patience.
pub fn options() -> Options {
    Options {
        workers: 3,
        retry: RetryPolicy {
            attempts: 4,
            initial: Duration::from_millis(1),
            ..RetryPolicy::default()
        },
        commit_interval: Duration::ZERO,
        load_commit_interval: Duration::ZERO,
        ..Options::default()
    }
}

/// A row without NULL.
pub fn row(texts: &[&str]) -> Row {
    texts.iter().map(|t| Some(t.to_string())).collect()
}

/// So many rows of [`schema`], with NULLs and what trips programs up.
pub fn some_rows(n: usize) -> Rows {
    (0..n)
        .map(|i| {
            let id = format!("{i:04}");
            (
                vec![id.clone()],
                vec![
                    Some(id),
                    (i % 3 != 0).then(|| format!("näme '{i}'\t\\N")),
                    Some(String::new()),
                ],
            )
        })
        .collect()
}

/// Three text columns, the first of them the key.
pub fn schema() -> TableSchema {
    text_schema(&["id", "name", "big"], 1)
}

/// A full run of a table into one of the same name.
pub fn full_request(pipeline: &str, table: &TableId) -> FullRequest {
    FullRequest {
        table: TableRequest {
            run_id: "20260101_000000_abcdef".into(),
            partition_bytes: 64 << 20,
            semantics: serde_json::json!({"table": table.to_string()}),
            now: "2026-01-01T00:00:00Z".into(),
            ..TableRequest::new(pipeline, table.clone(), table.clone())
        },
        mode: FullMode::Auto,
        deletes: true,
        verify: None,
        remember: Default::default(),
    }
}

/// Two tables with everything a log can say: partial updates, key changes with and without every value, one key that
/// changes places with another, deletes, truncate.
pub fn eventful_log(items: &TableId, orders: &TableId) -> MemoryLog {
    let key = |k: &str| vec![k.to_string()];
    let log = MemoryLog::new(1);
    log.create(items, schema());
    log.create(orders, schema());
    let mut tx = log.begin(0);
    for r in some_rows(10).into_values() {
        tx = tx.put(items, r);
    }
    tx.put(orders, row(&["a", "1", "x"]))
        .put(orders, row(&["b", "2", "y"]))
        .commit();
    log.begin(0)
        .truncate(orders)
        .put(orders, row(&["c", "3", "z"]))
        .put(orders, row(&["c", "4", "z"]))
        .commit();
    log.begin(0)
        .update(items, &key("0003"), &[(1, Some("renamed".into()))])
        .update(items, &key("0003"), &[(2, None)])
        .update(items, &key("0004"), &[(0, Some("0104".into()))])
        .update(items, &key("0104"), &[(1, Some("moved and changed".into()))])
        .update(
            items,
            &key("0005"),
            &[(0, Some("0105".into())), (1, Some("n".into())), (2, None)],
        )
        .delete(items, &key("0006"))
        .put(items, row(&["0006", "back", "again"]))
        .delete(items, &key("0009"))
        .commit();
    log.begin(0)
        .update(items, &key("0001"), &[(0, Some("tmp".into()))])
        .update(items, &key("0002"), &[(0, Some("0001".into()))])
        .update(items, &key("tmp"), &[(0, Some("0002".into()))])
        .commit();
    log
}

/// Other people's transaction between the watermarks of a backfill.
pub fn others_meanwhile(log: &MemoryLog, items: &TableId) {
    let key = |k: &str| vec![k.to_string()];
    let items = items.clone();
    log.between(move |log| {
        log.begin(0)
            .update(&items, &key("0000"), &[(1, Some("in the window".into()))])
            .update(&items, &key("0007"), &[(0, Some("0000a".into()))])
            .delete(&items, &key("0001"))
            .put(&items, row(&["0000b", "new", "new"]))
            .commit();
    });
}
