//! What strategies besides the full load need: facts that are remembered, tables that grow columns, repairs of rows.

use super::*;
use std::collections::BTreeMap;
use synctool_core::change::{KeyRange, Op, Ops};
use synctool_core::error::code;
use synctool_core::source::ReadContext;

fn facts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect()
}

fn change(table: &TableId, rows: RecordBatch, op: Op) -> Event {
    let table = Arc::new(table.clone());
    Event::Rows(ChangeBatch::new(table, rows, Ops::All(op), None, None, Hold::none()).unwrap())
}

on_servers! {
    /// What a plan remembers is there with its end, not before.
    async fn facts_are_remembered_with_the_plan(version: PgVersion) {
        let f = fixture(version).await;
        assert_eq!(f.destination.remembered("shop").await.unwrap(), BTreeMap::new());
        let table = TableId::new("public", "items");
        let mut p = plan(&table, &items(), Publish::Create, &["all"]);
        p.remember = facts(&[("hi", "2026-01-01"), ("through", "7")]);
        let p = f.destination.prepare(p).await.unwrap();
        let mut s = sink(&f.destination, &p, "all").await;
        s.commit(&[advance("all", None, "end", true)]).await.unwrap();
        drop(s);
        f.destination.seal(&p).await.unwrap();
        assert_eq!(f.destination.remembered("shop").await.unwrap(), BTreeMap::new());
        f.destination.publish(&p).await.unwrap();
        assert_eq!(f.destination.remembered("shop").await.unwrap(), p.remember);
        f.destination.remember("shop", &facts(&[("hi", "2026-02-02"), ("new", "it's")])).await.unwrap();
        f.destination.publish(&p).await.unwrap();
        let now = f.destination.remembered("shop").await.unwrap();
        assert_eq!(now, facts(&[("hi", "2026-02-02"), ("through", "7"), ("new", "it's")]));
        assert_eq!(f.destination.remembered("other").await.unwrap(), BTreeMap::new());
        f.destination.forget("shop").await.unwrap();
        assert_eq!(f.destination.remembered("shop").await.unwrap(), BTreeMap::new());
    }

    /// Control tables of the first version get what they lack, and keep what they have.
    async fn older_control_tables_are_completed(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::new("public", "items");
        run(&f.destination, plan(&table, &items(), Publish::Create, &["all"]), [item_rows([(1, "a", 1)])]).await.unwrap();
        f.db.psql("DROP TABLE synctool.memory; DELETE FROM synctool.format_version; INSERT INTO synctool.format_version VALUES (1)");
        assert_eq!(f.destination.remembered("shop").await.unwrap(), BTreeMap::new());
        assert!(f.destination.stored_plan("shop").await.unwrap().unwrap().finished);
        let preview = f.destination.preview(&plan(&table, &items(), Publish::Append, &["all"])).await.unwrap();
        assert!(preview.iter().any(|s| s.contains("memory")), "{preview:?}");
        f.destination.remember("shop", &facts(&[("a", "b")])).await.unwrap();
        assert_eq!(f.destination.remembered("shop").await.unwrap(), facts(&[("a", "b")]));
        assert!(f.destination.stored_plan("shop").await.unwrap().unwrap().finished);
    }

    /// Columns that a table lacks are added where the plan says so, and only there.
    async fn tables_grow_columns(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::new("public", "items");
        for (publish, partition) in [
            (Publish::Direct, "p"),
            (Publish::Merge { delete_missing: false }, "all"),
            (Publish::Append, "all"),
        ] {
            f.db.psql("DROP TABLE IF EXISTS items; CREATE TABLE items (id bigint PRIMARY KEY, extra int DEFAULT 7); INSERT INTO items VALUES (1)");
            let mut p = plan(&table, &items(), publish.clone(), &[partition]);
            let e = f.destination.prepare(p.clone()).await.unwrap_err();
            assert_eq!(e.code(), code::SCHEMA_MISMATCH);
            p.tables[0].evolve = true;
            let preview = f.destination.preview(&p).await.unwrap().join("\n");
            assert!(preview.contains("ADD COLUMN IF NOT EXISTS \"name\" text") && preview.contains("ACCESS EXCLUSIVE"), "{preview}");
            assert_eq!(f.db.psql("SELECT count(*) FROM pg_attribute WHERE attrelid = 'items'::regclass AND attnum > 0"), "2");
            let p = f.destination.prepare(p).await.unwrap();
            let mut s = sink(&f.destination, &p, partition).await;
            match publish {
                Publish::Direct => s.write(change(&table, item_rows([(1, "one", 1), (2, "two", 2)]), Op::Upsert)).await.unwrap(),
                Publish::Append => s.write(inserts(&table, item_rows([(2, "two", 2)]))).await.unwrap(),
                _ => s.write(inserts(&table, item_rows([(1, "one", 1), (2, "two", 2)]))).await.unwrap(),
            }
            s.commit(&[advance(partition, None, "end", true)]).await.unwrap();
            drop(s);
            f.destination.seal(&p).await.unwrap();
            f.destination.publish(&p).await.unwrap();
            let first = if publish == Publish::Append { "(1,7,,)" } else { "(1,7,one,1)" };
            assert_eq!(dump(&f.db, "items"), format!("{first}\n(2,7,two,2)"), "{publish:?}");
            assert!(!f.destination.preview(&p).await.unwrap().join("\n").contains("ADD COLUMN"), "a second plan adds nothing");
        }
        f.db.psql("DROP TABLE items; CREATE TABLE items (name text)");
        let mut p = plan(&table, &items(), Publish::Direct, &["p"]);
        p.tables[0].evolve = true;
        let e = f.destination.prepare(p).await.unwrap_err();
        assert!(e.code() == code::SCHEMA_MISMATCH && e.to_string().contains("key column id"), "{e}");
    }

    /// Rows are repaired in a table that has columns of its own, and every one is accounted for.
    async fn repairs_leave_other_columns_alone(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::new("deep", "items");
        // Schema, table and key are made where they are missing.
        let p = f.destination.prepare(plan(&table, &items(), Publish::Direct, &["p"])).await.unwrap();
        assert_eq!(f.db.psql("SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = 'deep.items'::regclass AND contype = 'p'"), "PRIMARY KEY (id)");
        f.db.psql("ALTER TABLE deep.items ADD COLUMN note text DEFAULT 'mine'");
        f.db.psql("INSERT INTO deep.items SELECT i, 'n' || i, i FROM generate_series(1, 10) i; UPDATE deep.items SET note = 'kept' WHERE id = 3");
        let mut s = sink(&f.destination, &p, "p").await;
        s.write(change(&table, item_rows([(3, "new", 3), (4, "n4", 4), (11, "n11", 11)]), Op::Upsert)).await.unwrap();
        s.write(change(&table, item_rows([(5, "", 0), (99, "", 0)]), Op::Delete)).await.unwrap();
        let applied = s.commit(&[advance("p", None, "1", false)]).await.unwrap();
        let wanted = Applied { written: 5, inserted: 1, updated: 1, deleted: 1, unchanged: 2, removed: 0, own: 0 };
        assert_eq!(applied, wanted);
        let range = KeyRange {
            columns: vec!["id".into()],
            lower: Some(vec!["6".into()]),
            upper: Some(vec!["9".into()]),
        };
        let rows = item_rows([(6, "n6", 6), (7, "seven", 7)]);
        s.write(Event::ReplaceRange { table: Arc::new(table.clone()), range, rows }).await.unwrap();
        let applied = s.commit(&[advance("p", Some("1"), "2", true)]).await.unwrap();
        let wanted = Applied { written: 2, inserted: 0, updated: 1, deleted: 0, unchanged: 1, removed: 1, own: 0 };
        assert_eq!(applied, wanted);
        assert_eq!(f.db.psql("SELECT string_agg(id || name || note, ' ' ORDER BY id) FROM deep.items"),
            "1n1mine 2n2mine 3newkept 4n4mine 6n6mine 7sevenmine 9n9mine 10n10mine 11n11mine");
    }

    /// Each reader of a destination sees what is committed when it opens.
    async fn a_destination_is_read_as_it_is(version: PgVersion) {
        let f = fixture(version).await;
        f.db.psql("CREATE TABLE items (id bigint PRIMARY KEY, name text, price int)");
        let source = f.destination.as_source().unwrap();
        let table = TableId::new("public", "items");
        let read = ReadSpec::all(table.clone(), &source.describe(&table).await.unwrap().columns);
        let all = Partition::new("p", Work::Read(Slice::All));
        for n in 1..4u64 {
            f.db.psql(&format!("INSERT INTO items VALUES ({n})"));
            let mut reader = source.open(&read, &all, None, &ReadContext::default()).await.unwrap();
            let mut seen = 0;
            while let Some(event) = reader.next().await.unwrap() {
                seen += event.rows();
            }
            assert_eq!(seen, n);
        }
    }
}
