//! What a program of one's own sees besides rows: other columns, emptied tables and messages, at their place among the
//! rows, in each of the ways in which it may look.

use super::*;
use async_trait::async_trait;
use synctool_connectors::postgres::log::capture::Initial;
use synctool_connectors::postgres::log::changes::Changes;
use synctool_connectors::postgres::log::consume::{Change, Handler, Row, Safe};
use synctool_core::change::{Event, KeyRange, Tx};
use synctool_core::progress::Position;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE u (id int PRIMARY KEY, b text)";

const CHANGES: &str = "BEGIN; INSERT INTO t VALUES (2, 'two'); ALTER TABLE t ADD COLUMN c int; INSERT INTO t VALUES (3, 'three', 33); \
    SELECT pg_logical_emit_message(true, 'app', 'inside'); TRUNCATE t, u RESTART IDENTITY; INSERT INTO t VALUES (4, 'four', 44); COMMIT";

const AFTER: &str = "SELECT pg_logical_emit_message(false, 'app', 'outside')";

/// One transaction, as it is to be told.
const TOLD: [&str; 9] = [
    "begin",
    "insert t 2 -",
    "schema t",
    "insert t 3 33",
    "message app inside",
    "truncate t",
    "truncate u",
    "insert t 4 44",
    "commit",
];

const OUTSIDE: &str = "message app outside";

async fn opened(c: &Capture) -> Changes {
    let builder = Changes::of(PostgresConfig::from_url(&c.url).unwrap()).for_tables(["t", "u"]);
    let builder = builder.slot(&c.options.slot).options(|o| o.heartbeat = None);
    builder.initial(Initial::Skip).open(None).await.unwrap()
}

/// The transaction stands there as it was made, and what came outside of it behind it.
#[track_caller]
fn assert_told(told: &[String]) {
    let begin = told.iter().position(|t| t == TOLD[0]).expect("a transaction");
    let one = &told[begin..(begin + TOLD.len()).min(told.len())];
    assert_eq!(one, TOLD, "{told:?}");
    let outside = told.iter().position(|t| t == OUTSIDE);
    assert!(outside.is_some_and(|at| at >= begin + TOLD.len()), "{told:?}");
}

fn inserted(row: &Row) -> String {
    let get = |column: &str| row.get(column).unwrap_or("-").to_owned();
    format!("insert {} {} {}", row.table.name, get("id"), get("c"))
}

/// Takes note of everything, until it hears what came last.
#[derive(Default)]
struct Heard(Vec<String>);

#[async_trait]
impl Handler for Heard {
    async fn begin(&mut self, _: &Tx) -> Result<()> {
        self.0.push("begin".into());
        Ok(())
    }
    async fn insert(&mut self, row: Row) -> Result<()> {
        self.0.push(inserted(&row));
        Ok(())
    }
    async fn update(&mut self, _: Row, _: Option<Row>) -> Result<()> {
        self.0.push("update".into());
        Ok(())
    }
    async fn delete(&mut self, _: Row) -> Result<()> {
        self.0.push("delete".into());
        Ok(())
    }
    async fn refresh(&mut self, _: Row) -> Result<()> {
        self.0.push("refresh".into());
        Ok(())
    }
    async fn replace(&mut self, table: &TableId, _: &KeyRange) -> Result<()> {
        self.0.push(format!("replace {}", table.name));
        Ok(())
    }
    async fn truncate(&mut self, table: &TableId) -> Result<()> {
        self.0.push(format!("truncate {}", table.name));
        Ok(())
    }
    async fn schema(&mut self, table: &TableId) -> Result<()> {
        self.0.push(format!("schema {}", table.name));
        Ok(())
    }
    async fn message(&mut self, prefix: &str, content: &[u8]) -> Result<()> {
        self.0
            .push(format!("message {prefix} {}", String::from_utf8_lossy(content)));
        Ok(())
    }
    async fn commit(&mut self, _: &Position) -> Result<Safe> {
        self.0.push("commit".into());
        Ok(match self.0.iter().any(|t| t == OUTSIDE) {
            true => Safe::Stop,
            false => Safe::Yes,
        })
    }
}

on_servers! {
    async fn rows_schemas_truncations_and_messages_come_in_order(version: PgVersion) {
        let c = Capture::new(version, &["t", "u"], TABLES);
        let mut changes = opened(&c).await;
        c.from.psql(CHANGES);
        c.from.psql(AFTER);
        let mut told = Vec::new();
        while told.last().is_none_or(|t| t != OUTSIDE) {
            let next = tokio::time::timeout(Duration::from_secs(60), changes.next_change()).await;
            told.push(match next.expect("in time").unwrap().expect("without end") {
                Change::Begin(_) => "begin".into(),
                Change::Insert(row) => inserted(&row),
                Change::Truncate(table) => format!("truncate {}", table.name),
                Change::Schema(table) => format!("schema {}", table.name),
                Change::Message { prefix, content } => format!("message {prefix} {}", String::from_utf8_lossy(&content)),
                Change::Commit { .. } => "commit".into(),
                other => format!("{other:?}"),
            });
        }
        assert_told(&told);
        changes.close().await.unwrap();
    }

    async fn a_handler_hears_of_schemas_truncations_and_messages(version: PgVersion) {
        let c = Capture::new(version, &["t", "u"], TABLES);
        let changes = opened(&c).await;
        c.from.psql(CHANGES);
        c.from.psql(AFTER);
        let mut heard = Heard::default();
        let handled = tokio::time::timeout(Duration::from_secs(60), changes.handle(&mut heard)).await;
        handled.expect("in time").unwrap();
        assert_told(&heard.0);
    }

    /// As events, they say all of it: which column came, with its type, and how tables were emptied.
    async fn events_say_what_became_of_tables(version: PgVersion) {
        let c = Capture::new(version, &["t", "u"], TABLES);
        let mut changes = opened(&c).await;
        c.from.psql(CHANGES);
        c.from.psql(AFTER);
        let (mut schemas, mut truncations, mut messages) = (Vec::new(), Vec::new(), Vec::new());
        let mut safe = None;
        while messages.len() < 2 {
            let next = tokio::time::timeout(Duration::from_secs(60), changes.next()).await;
            match next.expect("in time").unwrap().expect("without end") {
                Event::Schema(change) => schemas.push(change),
                Event::Truncate { tables, cascade, restart_identity } => {
                    let names: Vec<String> = tables.iter().map(|t| t.name.clone()).collect();
                    truncations.push((names, cascade, restart_identity));
                }
                Event::Message { prefix, content } => messages.push((prefix, content.to_vec())),
                Event::Boundary { position, .. } => safe = Some(position),
                _ => {}
            }
        }
        assert_eq!(schemas.len(), 1, "{schemas:?}");
        let difference = &schemas[0].difference;
        assert_eq!((schemas[0].table.name.as_str(), difference.missing.len()), ("t", 1));
        assert_eq!((difference.missing[0].name.as_str(), difference.missing[0].source_type.as_deref()), ("c", Some("integer")));
        assert!(difference.extra.is_empty() && difference.retyped.is_empty());
        assert_eq!(truncations, [(vec!["t".to_string(), "u".to_string()], false, true)]);
        let app = |content: &str| ("app".to_string(), content.as_bytes().to_vec());
        assert_eq!(messages, [app("inside"), app("outside")]);
        changes.acknowledge(&safe.expect("a place behind the transaction")).await.unwrap();
        changes.close().await.unwrap();
    }
}
