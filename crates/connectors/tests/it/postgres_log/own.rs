//! Programs of one's own: the example, a stream, a handler, a batcher; tables read again while changes go on.

use super::*;
use async_trait::async_trait;
use futures::StreamExt;
use std::collections::BTreeMap;
use synctool_connectors::postgres::log::Watermarks;
use synctool_connectors::postgres::log::changes::{Changes, ChangesBuilder, Selection};
use synctool_connectors::postgres::log::consume::{BatchLimits, Batcher, Cell, Change, Handler, Row, Safe};
use synctool_core::change::{Event, KeyRange};
use synctool_core::progress::Position;

#[path = "../../../examples/users_restaurant_visit.rs"]
mod example;

const T: &str = "CREATE TABLE t (id int, k text, a text, big text, PRIMARY KEY (id, k)); ALTER TABLE t ALTER big SET STORAGE EXTERNAL;
    INSERT INTO t SELECT i, 'k', 'a' || i, repeat('b', 3000) FROM generate_series(1, 50) i";

fn builder(c: &Capture) -> ChangesBuilder {
    Changes::of(PostgresConfig::from_url(&c.url).unwrap())
        .for_tables(["t"])
        .slot(&c.options.slot)
        .options(|o| (o.heartbeat, o.chunk_rows) = (None, 7))
}

/// Whether the rows held are enough.
type Enough = Box<dyn Fn(&BTreeMap<Vec<String>, Vec<Cell>>) -> bool + Send>;

/// Rows by key, as a program would hold them.
#[derive(Default)]
struct Held {
    rows: BTreeMap<Vec<String>, Vec<Cell>>,
    commits: usize,
    batches: usize,
    /// How many rows are enough.
    until: Option<Enough>,
    fail_at: Option<usize>,
    last: Option<Position>,
}

impl Held {
    fn key(row: &Row) -> Vec<String> {
        row.key_values().into_iter().map(str::to_owned).collect()
    }

    fn put(&mut self, row: Row, from: Option<&Row>) {
        let key = Held::key(&row);
        let held = from.map_or_else(|| key.clone(), Held::key);
        // What is said in part of a row that is not held yet comes whole with its chunk.
        if !row.is_complete() && !self.rows.contains_key(&held) {
            return;
        }
        let mut cells = self.rows.get(&held).cloned().unwrap_or_else(|| row.cells.clone());
        for (cell, new) in cells.iter_mut().zip(row.cells) {
            if new != Cell::Absent {
                *cell = new;
            }
        }
        self.rows.insert(key, cells);
    }

    /// Takes the rows of a range away; their key is a number and a text.
    fn clear(&mut self, range: &KeyRange) {
        let order = |key: &[String]| (key[0].parse::<i64>().unwrap(), key[1].clone());
        let has = |key: &[String]| {
            let key = order(key);
            range.lower.as_ref().is_none_or(|l| order(l) <= key) && range.upper.as_ref().is_none_or(|u| key < order(u))
        };
        self.rows.retain(|key, _| !has(key));
    }

    fn says(&self) -> Safe {
        match self.until.as_ref().is_some_and(|enough| enough(&self.rows)) {
            true => Safe::Stop,
            false => Safe::Yes,
        }
    }

    fn same(&self, c: &Capture) {
        let text = |cell: &Cell| match cell {
            Cell::Text(t) => t.clone(),
            Cell::Null => String::new(),
            Cell::Absent => panic!("a value is missing"),
        };
        let one = |r: &Vec<Cell>| r.iter().map(text).collect::<Vec<_>>().join("|");
        let mut mine: Vec<String> = self.rows.values().map(one).collect();
        mine.sort_unstable();
        let mut theirs: Vec<String> = c
            .from
            .psql("SELECT concat_ws('|', id, k, coalesce(a, ''), coalesce(big, '')) FROM t")
            .lines()
            .map(str::to_owned)
            .collect();
        theirs.sort_unstable();
        assert_eq!(mine.len(), theirs.len());
        assert!(mine == theirs, "rows differ");
    }
}

#[async_trait]
impl Handler for Held {
    async fn insert(&mut self, row: Row) -> Result<()> {
        assert!(row.is_complete());
        self.put(row, None);
        Ok(())
    }
    async fn update(&mut self, row: Row, before: Option<Row>) -> Result<()> {
        self.put(row.clone(), before.as_ref());
        if let Some(before) = before.filter(|b| Held::key(b) != Held::key(&row)) {
            self.rows.remove(&Held::key(&before));
        }
        Ok(())
    }
    async fn delete(&mut self, row: Row) -> Result<()> {
        self.rows.remove(&Held::key(&row));
        Ok(())
    }
    async fn refresh(&mut self, row: Row) -> Result<()> {
        self.put(row, None);
        Ok(())
    }
    async fn replace(&mut self, _: &TableId, range: &KeyRange) -> Result<()> {
        self.clear(range);
        Ok(())
    }
    async fn truncate(&mut self, _: &TableId) -> Result<()> {
        self.rows.clear();
        Ok(())
    }
    async fn commit(&mut self, position: &Position) -> Result<Safe> {
        self.commits += 1;
        self.last = Some(position.clone());
        if self.fail_at == Some(self.commits) {
            return Err(synctool_core::error::Error::bug("the program failed"));
        }
        Ok(self.says())
    }
}

#[async_trait]
impl Batcher for Held {
    async fn moved(&mut self, _: &TableId, rows: Vec<(Row, Row)>) -> Result<()> {
        for (before, row) in rows {
            self.put(row, Some(&before));
            self.rows.remove(&Held::key(&before));
        }
        Ok(())
    }
    async fn delete(&mut self, _: &TableId, rows: Vec<Row>) -> Result<()> {
        for row in rows {
            self.rows.remove(&Held::key(&row));
        }
        Ok(())
    }
    async fn upsert(&mut self, _: &TableId, rows: Vec<Row>) -> Result<()> {
        rows.into_iter().for_each(|row| self.put(row, None));
        Ok(())
    }
    async fn replace(&mut self, _: &TableId, range: &KeyRange) -> Result<()> {
        self.clear(range);
        Ok(())
    }
    async fn truncate(&mut self, _: &TableId) -> Result<()> {
        self.rows.clear();
        Ok(())
    }
    async fn commit(&mut self, position: &Position) -> Result<Safe> {
        self.batches += 1;
        self.last = Some(position.clone());
        Ok(self.says())
    }
}

const CHANGES: &str = "
    BEGIN; UPDATE t SET a = 'x' WHERE id % 3 = 0; UPDATE t SET k = 'moved' WHERE id % 5 = 0; DELETE FROM t WHERE id = 8; COMMIT;
    INSERT INTO t VALUES (8, 'k', NULL, NULL), (100, 'k', 'new', ''); UPDATE t SET big = NULL WHERE id = 9";

/// Follows a log from where it was left to its present end, acknowledging all of it; says the rows that came.
async fn one_life(log: ChangesBuilder, last: &mut Option<Position>, shown: impl Fn(&Row) -> String) -> Vec<String> {
    let mut changes = log.open(last.as_ref()).await.unwrap();
    let mut rows = Vec::new();
    while let Some(change) = changes.next_change().await.unwrap() {
        match change {
            Change::Insert(row) | Change::Refresh(row) => rows.push(shown(&row)),
            Change::Commit { position, .. } => {
                changes.acknowledge(&position).await.unwrap();
                *last = Some(position);
            }
            _ => {}
        }
    }
    changes.close().await.unwrap();
    rows
}

on_servers! {
    async fn a_handler_keeps_a_copy(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let mut copy = Held { until: Some(Box::new(|rows| rows.len() == 50)), ..Held::default() };
        builder(&c).open(None).await.unwrap().handle(&mut copy).await.unwrap();
        copy.until = Some(Box::new(|rows| rows.contains_key(&vec!["1000".into(), "end".into()])));
        let changes = builder(&c).open(copy.last.clone().as_ref()).await.unwrap();
        let (handled, ()) = tokio::join!(changes.handle(&mut copy), async {
            c.from.psql(CHANGES);
            c.from.psql("INSERT INTO t VALUES (1000, 'end', '', '')");
        });
        handled.unwrap();
        copy.same(&c);
        assert!(copy.commits > 3, "{}", copy.commits);
    }

    async fn a_batcher_keeps_a_copy(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let limits = BatchLimits { rows: 60, wait: Duration::from_millis(100) };
        let mut copy = Held { until: Some(Box::new(|rows| rows.len() == 50)), ..Held::default() };
        builder(&c).open(None).await.unwrap().batches(&mut copy, limits).await.unwrap();
        copy.until = Some(Box::new(|rows| rows.contains_key(&vec!["1000".into(), "end".into()])));
        let changes = builder(&c).open(copy.last.clone().as_ref()).await.unwrap();
        let (handled, ()) = tokio::join!(changes.batches(&mut copy, limits), async {
            c.from.psql(CHANGES);
            c.from.psql("UPDATE t SET id = id + 2000, a = a || '+' WHERE id < 20 AND k = 'k'; INSERT INTO t VALUES (1000, 'end', '', '')");
        });
        handled.unwrap();
        copy.same(&c);
        assert!(copy.batches > 0);
    }

    /// Rows that went without a word in the log are told by the ranges of keys that are read anew.
    async fn rows_that_went_unseen_are_told_by_their_range(version: PgVersion) {
        let limits = BatchLimits { rows: 10, wait: Duration::from_millis(100) };
        for batched in [false, true] {
            let c = Capture::new(version, &["t"], T);
            let mut copy = Held { until: Some(Box::new(|rows| rows.len() == 50)), ..Held::default() };
            builder(&c).open(None).await.unwrap().handle(&mut copy).await.unwrap();
            c.from.psql("ALTER PUBLICATION synctool DROP TABLE t; DELETE FROM t WHERE id % 3 = 0; UPDATE t SET a = 'unseen' WHERE id % 5 = 0;
                ALTER PUBLICATION synctool ADD TABLE t; INSERT INTO t VALUES (1000, 'end', '', '')");
            // All of them, and the last one.
            copy.until = Some(Box::new(|rows| rows.len() == 35 && !rows.contains_key(&vec!["48".into(), "k".into()])));
            let changes = builder(&c).open(copy.last.clone().as_ref()).await.unwrap();
            let handled = async {
                match batched {
                    false => changes.handle(&mut copy).await,
                    true => changes.batches(&mut copy, limits).await,
                }
            };
            tokio::time::timeout(Duration::from_secs(60), handled).await.expect("in time").unwrap();
            copy.same(&c);
        }
    }

    /// A table that is named later, or comes into the publication, brings the rows that it has, once.
    async fn a_table_that_is_named_later_is_loaded(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1);
            CREATE TABLE u (id int PRIMARY KEY, a text); INSERT INTO u VALUES (1, 'before'), (2, 'before')");
        let named = |tables: &[&'static str]| {
            let all = Changes::of(PostgresConfig::from_url(&c.url).unwrap()).for_tables(tables.iter().copied());
            all.slot(&c.options.slot).options(|o| (o.heartbeat, o.until_now) = (None, true))
        };
        let mut last = None;
        let mut life = async |tables: &[&'static str]| {
            let shown = |row: &Row| format!("{} {} {}", row.table.name, row.get("id").unwrap_or("-"), row.get("a").unwrap_or("-"));
            one_life(named(tables), &mut last, shown).await
        };
        assert_eq!(life(&["t"]).await, ["t 1 -"]);
        c.from.psql("UPDATE u SET a = 'unseen' WHERE id = 2");
        assert_eq!(life(&["t", "u"]).await, ["u 1 before", "u 2 unseen"]);
        assert!(life(&["t", "u"]).await.is_empty());
        c.from.psql("CREATE TABLE v (id int PRIMARY KEY); INSERT INTO v VALUES (7); ALTER PUBLICATION synctool ADD TABLE v");
        assert_eq!(life(&[]).await, ["v 7 -"]);
        // One that was left out for a while may have missed something.
        assert!(life(&["t", "v"]).await.is_empty());
        c.from.psql("INSERT INTO u VALUES (3, 'missed')");
        assert!(life(&["t", "v"]).await.is_empty());
        assert_eq!(life(&["t", "u", "v"]).await, ["u 1 before", "u 2 unseen", "u 3 missed"]);
    }

    /// What a program did not acknowledge comes again; what it did, does not.
    async fn what_is_not_acknowledged_comes_again(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let until_now = || builder(&c).options(|o| o.until_now = true);
        let mut copy = Held::default();
        until_now().open(None).await.unwrap().handle(&mut copy).await.unwrap();
        let (stream, safe) = until_now().open(None).await.unwrap().into_stream();
        let mut stream = std::pin::pin!(stream);
        let mut last = None;
        while let Some(change) = stream.next().await {
            if let Change::Commit { position, .. } = change.unwrap() {
                safe.acknowledge(&position);
                last = Some(position);
            }
        }
        c.from.psql(CHANGES);
        let mut failing = Held { fail_at: Some(1), ..Held::default() };
        let failed = until_now().open(last.as_ref()).await.unwrap().handle(&mut failing).await;
        assert!(failed.is_err());
        let mut copy_again = Held { rows: copy.rows.clone(), ..Held::default() };
        until_now().open(last.as_ref()).await.unwrap().handle(&mut copy_again).await.unwrap();
        copy_again.same(&c);
    }

    /// F53: where transactions come joined, a watermark's own ends before those behind it begin: a chunk takes its place
    /// there. Rows that came before it are told before it.
    async fn nothing_joins_a_watermark(version: PgVersion) {
        for watermarks in [Watermarks::Message, Watermarks::Table] {
            let c = Capture::new(version, &["t"], T);
            // Peeked, so that all of it is at hand at once.
            let until_now = || builder(&c).options(|o| {
                (o.until_now, o.together, o.catch_up_bytes, o.watermarks) = (true, true, Some(0), watermarks);
            });
            let mut last = None;
            let mut told = Vec::new();
            for round in 0..2 {
                let mut changes = until_now().open(last.as_ref()).await.unwrap();
                told.clear();
                while let Some(event) = changes.next().await.unwrap() {
                    match event {
                        Event::Rows(b) => told.push(format!("{} rows", b.len())),
                        Event::Boundary { position, .. } => {
                            told.push("end".into());
                            // A part of the backlog is read when the one before it is safe.
                            changes.acknowledge(&position).await.unwrap();
                            last = Some(position);
                        }
                        _ => {}
                    }
                }
                if round == 0 {
                    let mark = match watermarks {
                        Watermarks::Table => "INSERT INTO synctool.watermark VALUES ('x', 'high')",
                        _ => "SELECT pg_logical_emit_message(true, 'synctool.watermark', 'high x')",
                    };
                    for sql in ["UPDATE t SET a = 'one' WHERE id = 1", "UPDATE t SET a = 'two' WHERE id = 2", mark, "UPDATE t SET a = 'three' WHERE id IN (3, 4, 5)"] {
                        c.from.psql(sql);
                    }
                }
            }
            assert_eq!(told[..4], ["2 rows", "end", "3 rows", "end"], "{watermarks:?}: {told:?}");
        }
    }

    /// A table without a key is followed only where that is asked for: its rows from before do not come.
    async fn a_table_without_a_key_is_asked_for(version: PgVersion) {
        for all in [false, true] {
            let ddl = "CREATE TABLE bare (a int); INSERT INTO bare VALUES (1); ALTER TABLE bare REPLICA IDENTITY FULL";
            let c = Capture::new(version, &["bare"], ddl);
            let bare = || {
                let named = Changes::of(PostgresConfig::from_url(&c.url).unwrap()).for_tables((!all).then_some("bare"));
                named.slot(&c.options.slot).options(|o| o.heartbeat = None)
            };
            if all {
                c.from.psql("CREATE PUBLICATION synctool FOR TABLE bare");
            }
            let e = bare().open(None).await.unwrap_err();
            assert_eq!(e.code(), synctool_core::error::code::KEY_MISSING, "{e}");
            assert!(e.next_step().is_some_and(|n| n.contains("keyless")), "{e}");
            let made = "SELECT (SELECT count(*) FROM pg_publication) || ' ' || (SELECT count(*) FROM pg_replication_slots \
                WHERE database = current_database())";
            assert_eq!(c.from.psql(made), if all { "1 0" } else { "0 0" }, "nothing is made");
            let mut changes = bare().keyless(true).open(None).await.unwrap();
            c.from.psql("INSERT INTO bare VALUES (2); DELETE FROM bare WHERE a = 1");
            let seen = until(&mut changes, |c| matches!(c, Change::Delete(r) if r.get("a") == Some("1"))).await;
            let rows = seen.iter().filter(|c| matches!(c, Change::Insert(_) | Change::Refresh(_)));
            assert_eq!(rows.count(), 1, "{seen:?}");
            // What a row was is all by which it is found, also where that is nothing but NULL.
            c.from.psql("INSERT INTO bare VALUES (NULL); UPDATE bare SET a = 3 WHERE a IS NULL");
            let seen = until(&mut changes, |c| matches!(c, Change::Update { .. })).await;
            let was = |c: &Change| matches!(c, Change::Update { before: Some(b), .. } if b.cells == [Cell::Null]);
            assert!(seen.last().is_some_and(was), "{seen:?}");
        }
    }

    /// Rows are found by the columns of the replica identity, which are all that the log tells of deleted ones.
    async fn the_key_is_that_of_the_replica_identity(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, code text NOT NULL UNIQUE, a text);
            INSERT INTO t SELECT i, 'c' || i, 'a' FROM generate_series(1, 30) i; ALTER TABLE t REPLICA IDENTITY USING INDEX t_code_key");
        let mut changes = builder(&c).open(None).await.unwrap();
        let seen = until(&mut changes, |c| matches!(c, Change::Refresh(r) if r.get("code") == Some("c9"))).await;
        let keys = seen.iter().filter_map(|c| match c { Change::Refresh(r) => Some(r.key_values()), _ => None });
        assert!(keys.into_iter().all(|k| k.len() == 1 && k[0].starts_with('c')), "{seen:?}");
        c.from.psql("UPDATE t SET code = 'moved' WHERE id = 3; DELETE FROM t WHERE id = 4");
        let seen = until(&mut changes, |c| matches!(c, Change::Delete(r) if r.key_values() == ["c4"])).await;
        let moved = |c: &Change| matches!(c, Change::Update { row, before: Some(b) } if row.key_values() == ["moved"] && b.key_values() == ["c3"]);
        assert!(seen.iter().any(moved), "{seen:?}");
    }

    /// While a handler, a batcher or a stream has the changes, others steer them: read again, give up, pause, look.
    async fn changes_are_steered_from_beside(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let changes = builder(&c).open(None).await.unwrap();
        let control = changes.control();
        let mut copy = Held { until: Some(Box::new(|rows| rows.contains_key(&vec!["1000".into(), "end".into()]))), ..Held::default() };
        let handled = changes.handle(&mut copy);
        let beside = async {
            let loaded = |n| { let control = control.clone(); move || control.status().tables[0].put >= n };
            synctool_testkit::eventually("the load", Duration::from_secs(30), async || loaded(50)()).await;
            control.refresh(Selection::keys("t", [["3", "k"]])).await.unwrap();
            synctool_testkit::eventually("a row again", Duration::from_secs(30), async || loaded(51)()).await;
            control.pause(Pause::Chunks);
            control.refresh(Selection::table("t")).await.unwrap();
            synctool_testkit::eventually("the request to be heard", Duration::from_secs(30), async || {
                c.from.psql("UPDATE t SET a = a WHERE id = 1");
                control.clone().status().tables[0].backfill.is_some()
            }).await;
            control.cancel("t").unwrap();
            synctool_testkit::eventually("the end of it to be told", Duration::from_secs(30), async || {
                c.from.psql("UPDATE t SET a = a WHERE id = 1");
                let table = control.status().tables.remove(0);
                table.backfill.is_none() && table.cancelled.is_some()
            }).await;
            control.pause(Pause::None);
            control.refresh(Selection::table("t")).await.unwrap();
            synctool_testkit::eventually("all of it", Duration::from_secs(30), async || {
                c.from.psql("UPDATE t SET a = a WHERE id = 1");
                let table = control.status().tables.remove(0);
                table.backfill.is_none() && table.cancelled.is_none()
            }).await;
            c.from.psql("INSERT INTO t VALUES (1000, 'end', '', '')");
        };
        let (handled, ()) = tokio::join!(handled, beside);
        handled.unwrap();
        copy.same(&c);
        // A stream takes them away as well.
        let changes = builder(&c).open(copy.last.as_ref()).await.unwrap();
        let control = changes.control();
        let (stream, _) = changes.into_stream();
        let mut stream = std::pin::pin!(stream);
        control.refresh(Selection::keys("t", [["1000", "end"]])).await.unwrap();
        let next = async { loop {
            let change = stream.next().await.expect("without end").unwrap();
            if matches!(&change, Change::Refresh(r) if r.get("id") == Some("1000")) { break; }
        } };
        tokio::time::timeout(Duration::from_secs(30), next).await.expect("in time");
    }

    /// A load that is given up is known as such, also to a later life of the program, until it is read anew.
    async fn a_load_that_is_given_up_is_known(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let mut changes = builder(&c).open(None).await.unwrap();
        until(&mut changes, |c| matches!(c, Change::Refresh(_))).await;
        changes.cancel("t").unwrap();
        let cancelled = |changes: &Changes| changes.status().tables[0].cancelled.clone();
        let last = loop {
            c.from.psql("UPDATE t SET a = a WHERE id = 50");
            let seen = until(&mut changes, |c| matches!(c, Change::Commit { .. })).await;
            if let (Some(Change::Commit { position, .. }), Some(_)) = (seen.last(), cancelled(&changes)) {
                break position.clone();
            }
        };
        let told = cancelled(&changes).unwrap();
        assert!(told.kind == "load" && told.rows < 50, "{told:?}");
        changes.acknowledge(&last).await.unwrap();
        changes.close().await.unwrap();
        let mut changes = builder(&c).open(Some(&last)).await.unwrap();
        assert_eq!(cancelled(&changes), Some(told));
        changes.refresh(Selection::table("t")).await.unwrap();
        until(&mut changes, |c| matches!(c, Change::Refresh(r) if r.get("id") == Some("50"))).await;
        until(&mut changes, |c| matches!(c, Change::Commit { .. })).await;
        assert_eq!(cancelled(&changes), None);
    }

    /// Whoever opens again goes on with the columns that there were; what came and was rewritten meanwhile is seen.
    async fn columns_that_change_between_two_lives_are_seen(version: PgVersion) {
        let c = Capture::new(version, &["t"], "CREATE TABLE t (id int PRIMARY KEY, a text, b int); INSERT INTO t VALUES (1, 'one', 1), (2, 'two', 2)");
        let mut last = None;
        let mut life = async || {
            let shown = |row: &Row| {
                let cell = |c: &String| format!("{c} {}", row.get(c).unwrap_or("-"));
                row.columns.iter().map(cell).collect::<Vec<_>>().join(", ")
            };
            one_life(builder(&c).options(|o| o.until_now = true), &mut last, shown).await
        };
        assert_eq!(life().await, ["id 1, a one, b 1", "id 2, a two, b 2"]);
        c.from.psql("INSERT INTO t VALUES (3, 'three', 3); ALTER TABLE t ADD c int; INSERT INTO t VALUES (4, 'four', 4, 44)");
        assert_eq!(life().await, ["id 3, a three, b 3", "id 4, a four, b 4, c 44"]);
        c.from.psql("INSERT INTO t VALUES (5, 'five', 5, 55)");
        assert_eq!(life().await, ["id 5, a five, b 5, c 55"]);
        // The log says nothing of either.
        c.from.psql("ALTER TABLE t ALTER a TYPE text USING upper(a)");
        let upper = ["id 1, a ONE, b 1, c -", "id 2, a TWO, b 2, c -", "id 3, a THREE, b 3, c -", "id 4, a FOUR, b 4, c 44", "id 5, a FIVE, b 5, c 55"];
        assert_eq!(life().await, upper);
        c.from.psql("ALTER TABLE t DROP b, ADD b int DEFAULT 7");
        let again = ["id 1, a ONE, b 7, c -", "id 2, a TWO, b 7, c -", "id 3, a THREE, b 7, c -", "id 4, a FOUR, b 7, c 44", "id 5, a FIVE, b 7, c 55"];
        assert_eq!(life().await, again);
        c.from.psql("INSERT INTO t (id, a, b, c) VALUES (6, 'six', 6, 66)");
        assert_eq!(life().await, ["id 6, a six, b 6, c 66"]);
    }

    /// A transaction larger than a batch may be comes in parts, and commits once.
    async fn a_large_transaction_comes_in_parts(version: PgVersion) {
        struct Parts { inner: Held, sizes: Vec<usize>, since: usize, most: usize }
        #[async_trait]
        impl Batcher for Parts {
            async fn moved(&mut self, table: &TableId, rows: Vec<(Row, Row)>) -> Result<()> {
                self.inner.moved(table, rows).await
            }
            async fn upsert(&mut self, table: &TableId, rows: Vec<Row>) -> Result<()> {
                self.since += 1;
                self.sizes.push(rows.len());
                self.inner.upsert(table, rows).await
            }
            async fn delete(&mut self, table: &TableId, rows: Vec<Row>) -> Result<()> {
                Batcher::delete(&mut self.inner, table, rows).await
            }
            async fn replace(&mut self, table: &TableId, range: &KeyRange) -> Result<()> {
                Batcher::replace(&mut self.inner, table, range).await
            }
            async fn truncate(&mut self, table: &TableId) -> Result<()> {
                Batcher::truncate(&mut self.inner, table).await
            }
            async fn commit(&mut self, position: &Position) -> Result<Safe> {
                (self.most, self.since) = (self.most.max(self.since), 0);
                Batcher::commit(&mut self.inner, position).await
            }
        }
        let c = Capture::new(version, &["t"], T);
        let limits = BatchLimits { rows: 10, wait: Duration::from_millis(100) };
        // Both the load and the log are through.
        let enough: Enough = Box::new(|rows| rows.len() == 351 && rows.contains_key(&vec!["1000".into(), "end".into()]));
        let mut copy = Parts { inner: Held { until: Some(enough), ..Held::default() }, sizes: Vec::new(), since: 0, most: 0 };
        let changes = builder(&c).open(None).await.unwrap();
        let (handled, ()) = tokio::join!(changes.batches(&mut copy, limits), async {
            c.from.psql("BEGIN; INSERT INTO t SELECT i, 'k', 'n', repeat('b', 3000) FROM generate_series(2001, 2500) i;
                UPDATE t SET k = 'moved', a = 'x' WHERE id > 2100; DELETE FROM t WHERE id > 2300; UPDATE t SET a = 'y' WHERE id > 2050; COMMIT");
            c.from.psql("INSERT INTO t VALUES (1000, 'end', '', '')");
        });
        handled.unwrap();
        copy.inner.same(&c);
        assert!(copy.most >= 5 && copy.sizes.iter().all(|n| *n <= 100), "{} parts, {:?}", copy.most, copy.sizes);
    }

    /// Tables, and rows by key, are read again while changes go on; a pause holds them.
    async fn a_program_reads_again_and_pauses(version: PgVersion) {
        let c = Capture::new(version, &["t"], T);
        let mut changes = builder(&c).open(None).await.unwrap();
        let refreshed = |seen: &[Change]| seen.iter().filter(|c| matches!(c, Change::Refresh(_))).count();
        let is_row = |id: &'static str| move |c: &Change| matches!(c, Change::Refresh(r) if r.get("id") == Some(id));
        let seen = until(&mut changes, is_row("50")).await;
        assert_eq!(refreshed(&seen), 50);
        assert_eq!(changes.status().tables[0].put, 50);
        changes.refresh(Selection::keys("t", [["3", "k"], ["777", "k"]])).await.unwrap();
        let seen = until(&mut changes, is_row("3")).await;
        assert!(seen.iter().any(|c| matches!(c, Change::Delete(r) if r.get("id") == Some("777"))), "{seen:?}");
        assert!(changes.refresh(Selection::keys("t", [["3"]])).await.is_err());
        assert!(changes.refresh(Selection::table("nothing")).await.is_err());
        changes.refresh(Selection::table("public.t")).await.unwrap();
        let seen = until(&mut changes, is_row("50")).await;
        assert_eq!(refreshed(&seen), 50);
        changes.refresh_all();
        let seen = until(&mut changes, is_row("50")).await;
        assert_eq!(refreshed(&seen), 50);
        changes.pause(Pause::All);
        c.from.psql("INSERT INTO t VALUES (60, 'k', 'after', '')");
        let drained = async { loop { changes.next_change().await.unwrap(); } };
        let waited: std::result::Result<(), _> = tokio::time::timeout(Duration::from_millis(500), drained).await;
        assert!(waited.is_err());
        assert_eq!(changes.status().tables[0].inserted, 0, "it holds still");
        changes.pause(Pause::None);
        until(&mut changes, |c| matches!(c, Change::Insert(r) if r.get("id") == Some("60"))).await;
        changes.close().await.unwrap();
    }
}

/// Takes changes up to one that is enough.
async fn until(changes: &mut Changes, enough: impl Fn(&Change) -> bool) -> Vec<Change> {
    let mut seen = Vec::new();
    loop {
        let next = tokio::time::timeout(Duration::from_secs(30), changes.next_change()).await;
        let change = next.expect("in time").unwrap().expect("without end");
        let over = enough(&change);
        seen.push(change);
        if over {
            return seen;
        }
    }
}

/// The walk-through of the original, from end to end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_restaurant_and_visit() {
    let db = Postgres::shared(PgVersion::V15).database("walk");
    let (url, slot) = (db.url(), format!("walk_{}", db.name()));
    // Slot and publication are those that the environment names.
    let named = Changes::from_variables(|variable| match variable {
        "POSTGRES_CONNSTR" => Some(url.clone()),
        "DBSYNC_REPLSLOT" => Some(slot.clone()),
        "DBSYNC_PUBNAME" => Some("walked".into()),
        _ => None,
    });
    let named = named.unwrap();
    let (seen, equal) = example::run(&named).await.unwrap();
    assert!(equal && seen >= 2 + 6, "{seen} changes");
    let made = db.psql("SELECT slot_name || ' ' || pubname FROM pg_replication_slots, pg_publication WHERE database = current_database()");
    assert_eq!(made, format!("{slot} walked"));
    let (_, equal) = example::run(&named).await.unwrap();
    assert!(equal, "a second walk goes on");
}
