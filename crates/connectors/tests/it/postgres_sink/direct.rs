//! Changes applied by op.

use super::*;
use arrow_array::UInt8Array;
use arrow_buffer::BooleanBuffer;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof};
use proptest::test_runner::{Config, TestRunner};
use std::collections::BTreeMap;
use synctool_core::change::{KeyRange, Op, Ops, Presence, SchemaChange};
use synctool_core::error::code;
use synctool_core::schema::SchemaDifference;

/// One change of an item, with the cells it carries.
#[derive(Debug, Clone)]
struct Change {
    op: Op,
    id: i64,
    /// The key before, where it changed.
    from: Option<i64>,
    name: Option<Option<&'static str>>,
    price: Option<i32>,
}

type Model = BTreeMap<i64, (Option<&'static str>, Option<i32>)>;

/// Applies a change as the words in the contract say; `None` if it breaks the unique name.
fn apply(model: &mut Model, c: &Change, unique: bool, counts: &mut Applied) -> Option<()> {
    let mut next = model.clone();
    let mut n = *counts;
    n.written += 1;
    let over = |old: (Option<&'static str>, Option<i32>)| (c.name.unwrap_or(old.0), c.price.map_or(old.1, Some));
    match (c.op, c.from.filter(|f| *f != c.id)) {
        (Op::Delete, _) => match next.remove(&c.id) {
            Some(_) => n.deleted += 1,
            None => n.unchanged += 1,
        },
        (Op::Update, Some(from)) => match next.remove(&from) {
            Some(row) => {
                n.removed += u64::from(next.remove(&c.id).is_some());
                next.insert(c.id, over(row));
                n.updated += 1;
            }
            None => n.unchanged += 1,
        },
        (Op::Update, None) => match next.get_mut(&c.id) {
            Some(row) => {
                *row = over(*row);
                n.updated += 1;
            }
            None => n.unchanged += 1,
        },
        (Op::Insert | Op::Upsert, _) => match next.get_mut(&c.id) {
            Some(row) => {
                *row = over(*row);
                n.updated += 1;
            }
            None => {
                next.insert(c.id, over((None, None)));
                n.inserted += 1;
            }
        },
    }
    let mut names: Vec<_> = next.values().filter_map(|r| r.0).collect();
    names.sort_unstable();
    if unique && names.windows(2).any(|w| w[0] == w[1]) {
        return None;
    }
    (*model, *counts) = (next, n);
    Some(())
}

fn changes() -> impl Strategy<Value = Vec<Vec<Change>>> {
    let name = prop_oneof![
        Just(None),
        (0usize..5).prop_map(|i| Some([None, Some("a"), Some("b"), Some("c"), Some("d")][i]))
    ];
    let one = (0u8..10, 0i64..6, 0i64..6, name, any::<bool>()).prop_map(|(op, id, from, name, whole)| {
        let (op, from) = match op {
            0..=1 => (Op::Insert, None),
            2..=3 => (Op::Upsert, None),
            4..=5 => (Op::Delete, None),
            6..=7 => (Op::Update, None),
            _ => (Op::Update, Some(from)),
        };
        Change {
            op,
            id,
            from,
            // Rows to insert bring all of their values.
            name: match whole || matches!(op, Op::Insert | Op::Upsert) {
                true => Some(name.flatten()),
                false => name,
            },
            price: Some(0),
        }
    });
    // A transaction of the source, as the sink commits it; batches are cut from it below.
    vec(vec(one, 0..14), 1..4)
}

fn as_batch(table: &TableId, schema: &TableSchema, changes: &[Change]) -> Event {
    let cells: Vec<[Option<String>; 3]> = changes
        .iter()
        .map(|c| {
            let whole = c.op != Op::Delete;
            [
                Some(c.id.to_string()),
                c.name.flatten().filter(|_| whole).map(String::from),
                c.price.filter(|_| whole).map(|p| p.to_string()),
            ]
        })
        .collect();
    let rows = |cells: &[[Option<String>; 3]]| {
        let rows: Vec<Vec<Option<&str>>> = cells.iter().map(|r| r.iter().map(Option::as_deref).collect()).collect();
        batch(schema, &rows.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let before: Vec<[Option<String>; 3]> = changes
        .iter()
        .map(|c| [c.from.map(|f| f.to_string()), None, None])
        .collect();
    let present = |has: fn(&Change) -> bool| Some(changes.iter().map(has).collect::<BooleanBuffer>());
    Event::Rows(
        ChangeBatch::new(
            Arc::new(table.clone()),
            rows(&cells),
            Ops::Each(changes.iter().map(|c| c.op as u8).collect::<UInt8Array>()),
            Some(Presence(vec![
                None,
                present(|c| c.name.is_some()),
                present(|c| c.price.is_some()),
            ])),
            changes.iter().any(|c| c.from.is_some()).then(|| rows(&before)),
            Hold::none(),
        )
        .unwrap(),
    )
}

/// Random transactions do at the server what they do to a map.
async fn model(version: PgVersion, ddl: &str, unique: bool, key: ColumnType, cases: u32) {
    let f = fixture(version).await;
    f.db.psql(ddl);
    let table = TableId::new("public", "items");
    let mut schema = items();
    schema.columns[0].ty = key;
    schema.columns[0].carrier = f.destination.store_as("mysql", &schema.columns[0]).carrier;
    let p = f
        .destination
        .prepare(plan(&table, &schema, Publish::Direct, &["log"]))
        .await
        .unwrap();
    let client = f.db.connect().await;
    let runner = TestRunner::new(Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    });
    let mut runner = runner;
    let handle = tokio::runtime::Handle::current();
    let outcome = tokio::task::block_in_place(|| {
        runner.run(&changes(), |transactions| {
            handle.block_on(async {
                client
                    .batch_execute("TRUNCATE items; UPDATE synctool.checkpoint SET position = NULL")
                    .await
                    .unwrap();
                let mut s = f.destination.open_sink(&p).await.unwrap();
                s.recover(&["log".into()]).await.unwrap();
                let mut state = Model::new();
                let mut at: Option<String> = None;
                let mut price = 0;
                for (i, transaction) in transactions.into_iter().enumerate() {
                    let mut wanted = Applied::default();
                    let mut done = Vec::new();
                    for mut c in transaction {
                        // Every value is another one, so that no update finds its row as it should be.
                        price += 1;
                        c.price = Some(price);
                        if apply(&mut state, &c, unique, &mut wanted).is_some() {
                            done.push(c);
                        }
                    }
                    for part in done.chunks(3) {
                        s.write(as_batch(&table, &schema, part)).await.unwrap();
                    }
                    let to = i.to_string();
                    let applied = s.commit(&[advance("log", at.as_deref(), &to, false)]).await.unwrap();
                    at = Some(to);
                    let rows = client
                        .query("SELECT id::text, name, price FROM items ORDER BY id", &[])
                        .await
                        .unwrap();
                    let stored: Vec<(i64, Option<String>, Option<i32>)> = rows
                        .iter()
                        .map(|r| (r.get::<_, &str>(0).parse().unwrap(), r.get(1), r.get(2)))
                        .collect();
                    let expected: Vec<_> = state.iter().map(|(k, v)| (*k, v.0.map(String::from), v.1)).collect();
                    prop_assert_eq!(stored, expected, "after {:?}", done);
                    prop_assert_eq!(applied, wanted, "after {:?}", done);
                }
                Ok(())
            })
        })
    });
    outcome.unwrap_or_else(|e| panic!("{e}"));
}

async fn direct(f: &Fixture, schema: &TableSchema) -> (TableId, Plan, Box<dyn Sink>) {
    let table = TableId::new("public", "items");
    let p = f
        .destination
        .prepare(plan(&table, schema, Publish::Direct, &["log"]))
        .await
        .unwrap();
    let s = sink(&f.destination, &p, "log").await;
    (table, p, s)
}

/// A plan of a log with items.
fn log_plan(table: &TableId) -> Plan {
    let mut p = plan(table, &items(), Publish::Direct, &["log"]);
    let mut phases = p.phases.to_vec();
    phases[0].partitions[0].work = Work::Log;
    p.phases = phases.into();
    p
}

fn rows(table: &TableId, op: Op, rows: RecordBatch) -> Event {
    Event::Rows(ChangeBatch::new(Arc::new(table.clone()), rows, Ops::All(op), None, None, Hold::none()).unwrap())
}

on_servers! {
    async fn random_changes_do_what_they_do_to_a_map(version: PgVersion) {
        model(version, "CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer)", false, ColumnType::Int64, 60).await;
    }

    async fn random_changes_with_a_unique_column(version: PgVersion) {
        model(version, "CREATE TABLE items (id bigint PRIMARY KEY, name text UNIQUE, price integer)", true, ColumnType::Int64, 60).await;
    }

    async fn random_changes_row_by_row(version: PgVersion) {
        model(version, "CREATE TABLE items (id double precision PRIMARY KEY, name text UNIQUE, price integer)", true, ColumnType::Float64, 30).await;
    }

    async fn random_changes_with_a_numeric_key(version: PgVersion) {
        model(version, "CREATE TABLE items (id numeric PRIMARY KEY, name text, price integer)", false, ColumnType::Numeric, 20).await;
    }

    async fn equal_keys_in_two_forms_are_one(version: PgVersion) {
        let f = fixture(version).await;
        let mut schema = items();
        schema.columns[0] = Column::new("id", ColumnType::Numeric).not_null();
        schema.columns[0].carrier = synctool_core::schema::Carrier::Text;
        schema.columns[1] = Column::new("name", ColumnType::Char { length: 5 }).with_source_type("character(5)").not_null();
        schema.key.push("name".into());
        let (table, _, mut s) = direct(&f, &schema).await;
        let row = |id: &'static str, name: &'static str, price: &'static str| batch(&schema, &[&[Some(id), Some(name), Some(price)]]);
        s.write(rows(&table, Op::Insert, row("1.50", "a", "1"))).await.unwrap();
        s.write(rows(&table, Op::Update, row("1.5", "a   ", "2"))).await.unwrap();
        s.write(rows(&table, Op::Insert, row("100", "a", "3"))).await.unwrap();
        s.write(rows(&table, Op::Delete, row("1", "a", "0"))).await.unwrap();
        let applied = s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 4, inserted: 2, updated: 1, unchanged: 1, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT id::float8, price FROM items ORDER BY 1"), "1.5|2\n100|3");
    }

    async fn a_missing_table_is_made_and_rows_that_are_right_are_left(version: PgVersion) {
        let f = fixture(version).await;
        let (table, p, mut s) = direct(&f, &items()).await;
        s.write(rows(&table, Op::Insert, item_rows([(1, "a", 1), (2, "b", 2)]))).await.unwrap();
        assert_eq!(f.db.psql("SELECT count(*) FROM items"), "0", "nothing is visible before the commit");
        assert_eq!(s.commit(&[advance("log", None, "1", false)]).await.unwrap(), Applied::inserts(2));
        let before = f.db.psql("SELECT string_agg(ctid::text, ' ') FROM items");
        s.write(rows(&table, Op::Insert, item_rows([(1, "a", 1)]))).await.unwrap();
        s.write(rows(&table, Op::Upsert, item_rows([(2, "b", 2)]))).await.unwrap();
        let again = s.commit(&[advance("log", Some("1"), "2", false)]).await.unwrap();
        assert_eq!(again, Applied { written: 2, unchanged: 2, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT string_agg(ctid::text, ' ') FROM items"), before);
        // A new sink goes on where the old one stood; what was not committed is gone.
        s.write(rows(&table, Op::Delete, item_rows([(1, "", 0)]))).await.unwrap();
        drop(s);
        let mut s = f.destination.open_sink(&p).await.unwrap();
        let state = s.recover(&["log".into()]).await.unwrap().remove(&PartitionId::from("log")).unwrap();
        assert_eq!((state.position, state.applied.written), (Some("2".into()), 4));
        assert_eq!(f.db.psql("SELECT count(*) FROM items"), "2");
        assert_eq!(f.destination.publish(&p).await.unwrap().applied.written, 4);
    }

    async fn new_rows_that_are_there_already_are_put(version: PgVersion) {
        let f = fixture(version).await;
        let (table, _, mut s) = direct(&f, &items()).await;
        s.write(rows(&table, Op::Insert, item_rows([(1, "a", 1), (2, "b", 2)]))).await.unwrap();
        assert_eq!(s.commit(&[advance("log", None, "1", false)]).await.unwrap(), Applied::inserts(2));
        s.write(rows(&table, Op::Insert, item_rows([(3, "c", 3), (2, "z", 9), (1, "a", 1)]))).await.unwrap();
        let applied = s.commit(&[advance("log", Some("1"), "2", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 3, inserted: 1, updated: 1, unchanged: 1, ..Applied::default() });
        s.write(rows(&table, Op::Insert, item_rows([(4, "d", 4)]))).await.unwrap();
        assert_eq!(s.commit(&[advance("log", Some("2"), "3", false)]).await.unwrap(), Applied::inserts(1));
        assert_eq!(f.db.psql("SELECT string_agg(id || name || price, ' ' ORDER BY id) FROM items"), "1a1 2z9 3c3 4d4");
    }

    /// What was staged earlier in a transaction is not done once more with the few new rows at its end, one of which is there.
    async fn what_was_staged_before_is_done_once(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer UNIQUE); INSERT INTO items VALUES (7, 'old', 7)");
        let (table, _, mut s) = direct(&f, &items()).await;
        // So much is applied at once: an update of a row that is not there.
        let wide = "x".repeat(1 << 20);
        s.write(rows(&table, Op::Update, batch(&items(), &[&[Some("3"), Some(&wide), Some("3")]]))).await.unwrap();
        s.write(rows(&table, Op::Insert, item_rows([(5, "e", 5), (7, "g", 7)]))).await.unwrap();
        let applied = s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 3, inserted: 1, updated: 1, unchanged: 1, ..Applied::default() });
        assert_eq!(dump(&f.db, "items"), "(5,e,5)\n(7,g,7)");
    }

    /// Where few changes of several tables travel together, a value that cannot be stored is told with its table.
    async fn the_table_of_a_refused_value_is_told(version: PgVersion) {
        let f = fixture(version).await;
        let tables = ["items", "others"].map(|name| TableId::new("public", name));
        let mut p = plan(&tables[0], &items(), Publish::Direct, &["log"]);
        let mut others = p.tables[0].clone();
        (others.read, others.destination) = (ReadSpec::all(tables[1].clone(), &items().columns), tables[1].clone());
        p.tables.push(others);
        let p = f.destination.prepare(p).await.unwrap();
        for (op, beside) in [(Op::Insert, false), (Op::Insert, true), (Op::Upsert, true)] {
            let mut s = sink(&f.destination, &p, "log").await;
            if beside {
                s.write(rows(&tables[0], op, item_rows([(1, "a", 1)]))).await.unwrap();
            }
            s.write(rows(&tables[1], op, batch(&items(), &[&[Some("2"), Some("a\0b"), None]]))).await.unwrap();
            let e = s.commit(&[advance("log", None, "1", false)]).await.unwrap_err();
            let named = e.context().iter().find(|(place, _)| *place == "table").map(|(_, name)| name.as_str());
            assert_eq!(named, Some("public.others"), "{op:?}, {beside}: {e}");
        }
    }

    /// Nobody sends such rows, and whoever did would have NULLs and defaults written for what is there at the source.
    async fn rows_to_insert_that_lack_a_value_are_refused(version: PgVersion) {
        for op in [Op::Insert, Op::Upsert] {
            let f = fixture(version).await;
            let (table, _, mut s) = direct(&f, &items()).await;
            let lacking = Change { op, id: 1, from: None, name: None, price: Some(1) };
            let e = s.write(as_batch(&table, &items(), &[lacking])).await.unwrap_err();
            assert_eq!(e.code(), code::VALUE_MALFORMED, "{op:?}: {e}");
            assert!(e.to_string().contains("column name") && e.to_string().contains("items"), "{e}");
            assert!(e.next_step().is_some(), "{e}");
            drop(s);
            assert_eq!(f.db.psql("SELECT count(*) FROM items"), "0");
        }
    }

    async fn ranges_truncates_nets_and_new_columns(version: PgVersion) {
        let f = fixture(version).await;
        let (table, _, mut s) = direct(&f, &items()).await;
        let t = Arc::new(table.clone());
        s.write(rows(&table, Op::Insert, item_rows((1..=10).map(|i| (i, "n", 1))))).await.unwrap();
        s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        let range = KeyRange { columns: vec!["id".into()], lower: Some(vec!["3".into()]), upper: Some(vec!["7".into()]) };
        s.write(Event::ReplaceRange { table: t.clone(), range: range.clone(), rows: item_rows([(4, "n", 1), (5, "x", 5), (7, "n", 1)]) }).await.unwrap();
        let applied = s.commit(&[advance("log", Some("1"), "2", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 3, updated: 1, unchanged: 2, removed: 2, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT string_agg(id || name, ' ' ORDER BY id) FROM items"), "1n 2n 4n 5x 7n 8n 9n 10n");
        s.write(Event::ReplaceRange { table: t.clone(), range, rows: RecordBatch::new_empty(items().arrow_schema()) }).await.unwrap();
        s.write(Event::Net { table: t.clone(), remove: item_rows([(1, "", 0), (2, "", 0)]), insert: item_rows([(2, "back", 2), (20, "new", 3)]) }).await.unwrap();
        let applied = s.commit(&[advance("log", Some("2"), "3", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 4, inserted: 2, deleted: 2, removed: 2, ..Applied::default() });
        let added = Column::new("added", ColumnType::Date).with_source_type("date");
        let change = SchemaChange { table: t.clone(), difference: SchemaDifference { missing: vec![added.clone()], ..Default::default() } };
        s.write(Event::Schema(change)).await.unwrap();
        let mut wider = items();
        wider.columns.push(added);
        s.write(rows(&table, Op::Insert, batch(&wider, &[&[Some("30"), None, None, Some("2024-02-29")]]))).await.unwrap();
        s.commit(&[advance("log", Some("3"), "4", false)]).await.unwrap();
        assert_eq!(f.db.psql("SELECT added FROM items WHERE id = 30"), "2024-02-29");
        let gone = SchemaChange { table: t.clone(), difference: SchemaDifference { extra: vec![items().columns[1].clone()], ..Default::default() } };
        // Whether a column may go is the reader's to say; here it stays with its values.
        s.write(Event::Schema(gone)).await.unwrap();
        s.commit(&[advance("log", Some("4"), "5", false)]).await.unwrap();
        assert_eq!(f.db.psql("SELECT count(name) FROM items WHERE name = 'n'"), "4");
        drop(s);
        // The plan does not know the new column; a sink that starts over learns it from the rows.
        let p = f.destination.stored_plan("shop").await.unwrap().unwrap().plan;
        let mut s = sink(&f.destination, &p, "log").await;
        s.write(rows(&table, Op::Update, batch(&wider, &[&[Some("30"), Some("later"), None, None]]))).await.unwrap();
        s.write(Event::Truncate { tables: vec![t.clone()], cascade: false, restart_identity: true }).await.unwrap();
        s.write(rows(&table, Op::Insert, batch(&wider, &[&[Some("1"), None, None, None]]))).await.unwrap();
        s.commit(&[advance("log", Some("5"), "6", false)]).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,,,)");
    }

    async fn emptying_a_table_spares_those_that_refer_to_it(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, name text, price integer);
            CREATE TABLE notes (item bigint REFERENCES items ON DELETE CASCADE); INSERT INTO items (name) VALUES ('a'), ('b'); INSERT INTO notes VALUES (1)");
        let (table, _, mut s) = direct(&f, &items()).await;
        s.write(Event::Truncate { tables: vec![Arc::new(table.clone())], cascade: true, restart_identity: true }).await.unwrap();
        s.write(rows(&table, Op::Insert, item_rows([(9, "n", 1)]))).await.unwrap();
        s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(f.db.psql("SELECT (SELECT string_agg(id::text, ' ') FROM items), (SELECT count(*) FROM notes)"), "9|1");
        assert_eq!(f.db.psql("INSERT INTO items (name) VALUES ('first') RETURNING id"), "1");
    }

    async fn tables_without_a_key_take_inserts_and_whole_old_rows(version: PgVersion) {
        let f = fixture(version).await;
        let mut schema = items();
        schema.key.clear();
        let (table, p, mut s) = direct(&f, &schema).await;
        s.write(rows(&table, Op::Insert, item_rows([(1, "a", 1), (1, "a", 1), (2, "b", 2)]))).await.unwrap();
        let old = item_rows([(1, "a", 1), (2, "b", 2)]);
        let new = item_rows([(1, "a", 1), (2, "c", 3)]);
        let ops = Ops::Each([Op::Delete as u8, Op::Update as u8].into_iter().collect::<UInt8Array>());
        s.write(Event::Rows(ChangeBatch::new(Arc::new(table.clone()), new, ops, None, Some(old), Hold::none()).unwrap())).await.unwrap();
        let applied = s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 5, inserted: 3, deleted: 1, updated: 1, ..Applied::default() });
        assert_eq!(dump(&f.db, "items"), "(1,a,1)\n(2,c,3)");
        let mut s = sink(&f.destination, &p, "log").await;
        let e = s.write(rows(&table, Op::Delete, item_rows([(1, "a", 1)]))).await.unwrap_err();
        assert_eq!(e.code(), code::UNSUPPORTED, "{e}");
    }

    async fn every_kind_of_column_is_staged(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TYPE mood AS ENUM ('sad', 'glad'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
            CREATE TABLE items (a text, b date, m mood, i interval, n inet[], j json, d positive, u uuid, x int GENERATED ALWAYS AS IDENTITY,
              g int GENERATED ALWAYS AS (d * 2) STORED, PRIMARY KEY (b, a))");
        let table = TableId::new("public", "items");
        let mut schema = f.destination.describe(&table).await.unwrap().unwrap();
        schema.columns.retain(|c| c.name != "x");
        schema.columns.iter_mut().for_each(|c| c.carrier = f.destination.store_as("postgresql", c).carrier);
        let (table, _, mut s) = direct(&f, &schema).await;
        let row = |a: &'static str, d: &'static str| [Some(a), Some("0044-03-15 BC"), Some("glad"), Some("1 mon 2 days 00:00:03.5"), Some("{10.0.0.1,NULL}"), Some("{\"a\" : 1}"), Some(d), Some("00000000-0000-0000-0000-00000000000a"), None];
        s.write(rows(&table, Op::Insert, batch(&schema, &[&row("k", "1"), &row("l", "2")]))).await.unwrap();
        s.write(rows(&table, Op::Update, batch(&schema, &[&row("l", "7")]))).await.unwrap();
        s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(f.db.psql("SELECT a, b, m, i, n, j, d, g, x FROM items ORDER BY a"),
            "k|0044-03-15 BC|glad|1 mon 2 days 00:00:03.5|{10.0.0.1,NULL}|{\"a\" : 1}|1|2|1\nl|0044-03-15 BC|glad|1 mon 2 days 00:00:03.5|{10.0.0.1,NULL}|{\"a\" : 1}|7|14|2");
    }

    async fn wide_rows_and_large_groups_pass(version: PgVersion) {
        let f = fixture(version).await;
        let (table, _, mut s) = direct(&f, &items()).await;
        let wide = "x".repeat(3 << 20);
        let cells: Vec<[String; 3]> = (0..4).map(|i| [i.to_string(), wide.clone(), "1".into()]).collect();
        for row in &cells {
            let row: Vec<Option<&str>> = row.iter().map(|c| Some(c.as_str())).collect();
            s.write(rows(&table, Op::Insert, batch(&items(), &[&row]))).await.unwrap();
        }
        s.write(rows(&table, Op::Insert, item_rows((10..20_010).map(|i| (i, "n", 1))))).await.unwrap();
        s.write(rows(&table, Op::Delete, item_rows((10..10_010).map(|i| (i, "", 0))))).await.unwrap();
        let applied = s.commit(&[advance("log", None, "1", false)]).await.unwrap();
        assert_eq!(applied, Applied { written: 30_004, inserted: 20_004, deleted: 10_000, ..Applied::default() });
        assert_eq!(f.db.psql("SELECT count(*), sum(length(name)) FROM items"), format!("10004|{}", 4 * (3 << 20) + 10_000));
    }

    /// A log's commits do not wait for the disk: what is called durable before a crash of the server is there after it,
    /// and what is there is where its position says.
    async fn what_is_called_durable_survives_a_crash_of_the_server(version: PgVersion) {
        let server = Postgres::builder(version).setting("wal_writer_delay", "10s").start();
        let db = server.database("sink");
        let f = Fixture { destination: open(&db.url(), DestinationOptions::default()).await, db };
        let table = TableId::new("public", "items");
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text, price integer)");
        let p = f.destination.prepare(log_plan(&table)).await.unwrap();
        let log = PartitionId::from("log");
        let mut s = sink(&f.destination, &p, "log").await;
        let mut at: Option<String> = None;
        let (mut behind, mut settled) = (0, None);
        for i in 1..=40 {
            s.write(rows(&table, Op::Insert, item_rows([(i, "x", 1)]))).await.unwrap();
            s.commit(&[advance("log", at.as_deref(), &i.to_string(), false)]).await.unwrap();
            at = Some(i.to_string());
            let durable = s.durable().await.unwrap()[&log].position.clone();
            behind += u32::from(durable != Some(Position::from(i.to_string().as_str())));
            if i == 20 {
                let durable = s.settle().await.unwrap()[&log].position.clone();
                assert_eq!(durable, Some("20".into()));
                settled = durable;
            }
        }
        assert!(behind > 20, "commits waited for the disk: {behind} did not");
        let said = s.durable().await.unwrap()[&log].position.clone().or(settled).unwrap();
        server.kill9();
        server.restart();
        drop(s);
        let fresh = open(&f.db.url(), DestinationOptions::default()).await;
        let mut s = fresh.open_sink(&p).await.unwrap();
        let stands = s.recover(std::slice::from_ref(&log)).await.unwrap()[&log].position.clone().unwrap();
        let number = |p: &Position| p.as_str().parse::<u32>().unwrap();
        assert!(number(&stands) >= number(&said) && number(&said) >= 20, "{said:?} was durable, {stands:?} is there");
        assert_eq!(f.db.psql("SELECT count(*), max(id) FROM items"), format!("{0}|{0}", number(&stands)));
    }

    /// What is settled is durable, also while others write at the destination.
    async fn what_is_settled_is_durable_beside_others(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::new("public", "items");
        f.db.psql("CREATE TABLE noise (n bigint)");
        let p = f.destination.prepare(log_plan(&table)).await.unwrap();
        let log = PartitionId::from("log");
        let mut s = sink(&f.destination, &p, "log").await;
        let other = f.db.connect().await;
        let noise = tokio::spawn(async move {
            other.batch_execute("INSERT INTO noise SELECT generate_series(1, 300000)").await
        });
        let (mut at, mut i): (Option<String>, i64) = (None, 0);
        loop {
            i += 1;
            s.write(rows(&table, Op::Insert, item_rows([(i, "x", 1)]))).await.unwrap();
            s.commit(&[advance("log", at.as_deref(), &i.to_string(), false)]).await.unwrap();
            at = Some(i.to_string());
            let settled = s.settle().await.unwrap()[&log].position.clone();
            assert_eq!(settled.as_ref().map(Position::as_str), at.as_deref());
            if noise.is_finished() {
                break;
            }
        }
        noise.await.unwrap().unwrap();
    }

    /// What a sink finds counts as durable, so it is on the disk, also where no commit of the server waits for that.
    async fn what_a_sink_finds_survives_a_crash_of_the_server(version: PgVersion) {
        let lazy = Postgres::builder(version).setting("wal_writer_delay", "10s").setting("synchronous_commit", "off");
        let server = lazy.start();
        let db = server.database("sink");
        let f = Fixture { destination: open(&db.url(), DestinationOptions::default()).await, db };
        let (table, p, mut s) = direct(&f, &items()).await;
        let log = PartitionId::from("log");
        let mut at: Option<String> = None;
        for i in 1..=10 {
            s.write(rows(&table, Op::Insert, item_rows([(i, "x", 1)]))).await.unwrap();
            s.commit(&[advance("log", at.as_deref(), &i.to_string(), false)]).await.unwrap();
            at = Some(i.to_string());
        }
        drop(s);
        let mut s = f.destination.open_sink(&p).await.unwrap();
        let found = s.recover(std::slice::from_ref(&log)).await.unwrap()[&log].position.clone();
        assert_eq!(found, Some("10".into()));
        server.kill9();
        server.restart();
        drop(s);
        let fresh = open(&f.db.url(), DestinationOptions::default()).await;
        let mut s = fresh.open_sink(&p).await.unwrap();
        let stands = s.recover(std::slice::from_ref(&log)).await.unwrap()[&log].position.clone();
        assert_eq!(stands, found, "the source was told that it may forget this");
        assert_eq!(f.db.psql("SELECT count(*) FROM items"), "10");
    }

    async fn a_direct_sink_is_fenced_too(version: PgVersion) {
        let f = fixture(version).await;
        let (table, p, mut old) = direct(&f, &items()).await;
        old.write(rows(&table, Op::Insert, item_rows([(1, "zombie", 1)]))).await.unwrap();
        f.db.psql("UPDATE synctool.checkpoint SET writer = NULL");
        let mut new = sink(&f.destination, &p, "log").await;
        new.write(rows(&table, Op::Insert, item_rows([(1, "right", 1)]))).await.unwrap();
        new.commit(&[advance("log", None, "1", false)]).await.unwrap();
        let e = old.commit(&[advance("log", None, "1", false)]).await.unwrap_err();
        assert_eq!(e.code(), code::FENCED, "{e}");
        drop(old);
        assert_eq!(dump(&f.db, "items"), "(1,right,1)");
        // Asynchronous commits are durable only once they are flushed.
        f.db.psql(&format!("ALTER DATABASE {} SET synchronous_commit = off", f.db.name()));
        let mut lazy = sink(&f.destination, &p, "log").await;
        lazy.write(rows(&table, Op::Delete, item_rows([(1, "", 1)]))).await.unwrap();
        lazy.commit(&[advance("log", Some("1"), "2", false)]).await.unwrap();
        let lazy = tokio::sync::Mutex::new(lazy);
        synctool_testkit::eventually("the flush of the WAL", std::time::Duration::from_secs(20), async || {
            lazy.lock().await.durable().await.unwrap()[&PartitionId::from("log")].position == Some("2".into())
        }).await;
    }

    /// A newer run raises the generation and then takes the partitions: a commit waits for it and is refused, where the other
    /// order would have both wait for each other. With few new rows, and with several steps.
    async fn a_commit_beside_a_newer_run_waits_for_it(version: PgVersion) {
        for op in [Op::Insert, Op::Upsert] {
            let f = fixture(version).await;
            let (table, _, mut s) = direct(&f, &items()).await;
            let newer = f.db.connect().await;
            newer.batch_execute("BEGIN; UPDATE synctool.generation SET generation = generation + 1").await.unwrap();
            s.write(rows(&table, op, item_rows([(1, "zombie", 1)]))).await.unwrap();
            let goes_on = async {
                let waits = "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
                let limit = std::time::Duration::from_secs(20);
                synctool_testkit::eventually("the commit to wait", limit, async || f.db.psql(waits) == "t").await;
                newer.batch_execute("DELETE FROM synctool.checkpoint; COMMIT").await
            };
            let step = [advance("log", None, "1", false)];
            let (refused, raised) = tokio::join!(s.commit(&step), goes_on);
            raised.unwrap();
            assert_eq!(refused.unwrap_err().code(), code::FENCED, "{op:?}");
            assert_eq!(f.db.psql("SELECT count(*) FROM items"), "0");
        }
    }
}
