//! Strategies that follow a log: their own keys, and what else such a pipeline may say.

use super::super::at::At;
use super::super::error::ConfigError;
use super::super::pipeline::{Columns, Pipeline, SyncType};
use super::super::strategy::{LogSettings, StrategyKind};
use super::strategies::StrategyFile;

/// Whether one of the strategies follows a log.
pub(super) fn follows(strategies: &[At<StrategyFile>]) -> bool {
    strategies.iter().any(|s| *s.kind == StrategyKind::Log)
}

/// Takes the keys of a log out of a strategy; keys of a log in another kind of strategy are mistakes.
pub(super) fn settings(file: &mut StrategyFile, name: &At<String>, errors: &mut Vec<ConfigError>) -> LogSettings {
    let settings = LogSettings {
        slot: file.slot.take(),
        publication: file.publication.take(),
        control_schema: file.control_schema.take(),
        watermark_table: file.watermark_table.take(),
        watermarks: file.watermarks.take(),
        initial: file.initial.take(),
        chunk_rows: file.chunk_rows.take(),
        heartbeat: file.heartbeat.take(),
        catch_up: file.catch_up.take(),
        create: file.create.take(),
        failover: file.failover.take(),
        keyless: file.keyless.take(),
        wal_budget: file.wal_budget.take(),
        over_budget: file.over_budget.take(),
    };
    if *file.kind != StrategyKind::Log {
        for (key, place) in settings.places() {
            errors.push(place.error(format!(
                "{key} belongs to strategies of type log, and \"{}\" is {}",
                name.shown(),
                file.kind.name()
            )));
        }
    }
    if let Some(slot) = &settings.slot {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if slot.is_empty() || slot.len() > 63 || !slot.chars().all(plain) {
            errors.push(
                slot.error(format!("\"{}\" cannot be the name of a replication slot", slot.shown()))
                    .with_help("at most 63 lower-case letters, digits and underscores"),
            );
        }
    }
    for (key, text) in [
        ("publication", &settings.publication),
        ("control_schema", &settings.control_schema),
        ("watermark_table", &settings.watermark_table),
    ] {
        if let Some(text) = text.as_ref().filter(|t| t.is_empty() || t.len() > 63) {
            errors.push(text.error(format!("{key} must be a name of 1 to 63 bytes")));
        }
    }
    if let Some(zero) = settings.chunk_rows.as_ref().filter(|n| ***n == 0) {
        errors.push(zero.error("chunk_rows must be at least 1"));
    }
    if let (Some(what), None) = (&settings.over_budget, &settings.wal_budget) {
        errors.push(
            what.error("over_budget says what happens beyond wal_budget, and there is none")
                .with_help("write for example wal_budget: 20GiB"),
        );
    }
    settings
}

/// A log is followed whole: what else a pipeline may ask for belongs to the publication, or to other strategies.
pub(super) fn check(pipeline: &Pipeline, errors: &mut Vec<ConfigError>) {
    let log = pipeline.strategies.iter().find(|s| *s.kind == StrategyKind::Log);
    let Some(log) = log else {
        if let Some(first) = pipeline.source.tables.first() {
            errors.push(
                first
                    .error("source.tables belongs to pipelines that follow a log")
                    .with_help("write a strategy of type log, or name one source.table"),
            );
        }
        return;
    };
    for other in pipeline.strategies.iter().filter(|s| !std::ptr::eq(*s, log)) {
        errors.push(
            other
                .name
                .error(format!(
                    "strategy \"{}\" stands beside \"{}\", which follows the log and knows every change",
                    other.name.shown(),
                    log.name.shown()
                ))
                .with_help("leave it out: synctool cdc refresh compares and mends tables while the log goes on"),
        );
    }
    let tables = &pipeline.source.tables;
    if let (Some(first), true) = (tables.first(), has(&pipeline.source.table)) {
        errors.push(first.error("source.table and source.tables say the same; write one of them"));
    }
    for (at, table) in tables.iter().enumerate() {
        if table.trim().is_empty() {
            errors.push(table.error("a table of source.tables is empty"));
        }
        if tables[..at].iter().any(|t| **t == **table) {
            errors.push(table.error(format!("\"{}\" is named twice", table.shown())));
        }
    }
    let to = &pipeline.destination;
    if has(&to.table) && !has(&pipeline.source.table) {
        errors.push(
            to.table
                .error("destination.table names one table, and several are followed")
                .with_help("they keep their names: write destination.schema for the schema of all of them"),
        );
    }
    let mut refuse = |place: At<()>, what: &str, help: &str| {
        let message = format!("{what} in a pipeline that follows a log: rows are carried whole");
        errors.push(place.error(message).with_help(help));
    };
    let source = &pipeline.source;
    if let Some(first) = source.filters.first() {
        let help = "the server filters rows: ALTER PUBLICATION … SET TABLE t WHERE (…), from PostgreSQL 15 on";
        refuse(first.with(()), "a filter has no place", help);
    }
    if let Some(first) = source.joins.first() {
        refuse(
            first.table.with(()),
            "a join has no place",
            "join the copies at the destination",
        );
    }
    if let Columns::Listed(columns) = &pipeline.columns
        && let Some(first) = columns.first()
    {
        let help = "the server leaves out columns: ALTER PUBLICATION … SET TABLE t (a, b), from PostgreSQL 15 on";
        refuse(first.dest.with(()), "a list of columns has no place", help);
    }
    if let Some(first) = pipeline.key.first() {
        let help = "rows are found by the table's replica identity: its primary key, or REPLICA IDENTITY USING INDEX";
        refuse(first.with(()), "a key has no place", help);
    }
    if *pipeline.sync_type == SyncType::Aggregate {
        let help = "aggregate the copies at the destination, by a pipeline of its own";
        refuse(pipeline.sync_type.with(()), "an aggregate has no place", help);
    }
    if let Some(first) = pipeline.transform.first() {
        let help = "transform the copies at the destination, by a pipeline of its own";
        refuse(first.name.with(()), "a stage has no place", help);
    }
    if !*to.supports_update {
        refuse(
            to.supports_update.with(()),
            "supports_update: false has no place",
            "a log changes and deletes rows",
        );
    }
}

fn has(table: &At<String>) -> bool {
    !table.is_empty()
}
