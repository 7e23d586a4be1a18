//! Loading, creating, fences.

use super::*;
use synctool_connectors::postgres::CopyForm;
use synctool_core::error::code;

on_servers! {
    async fn a_table_is_created_with_key_not_null_and_identity(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::new("new-schema", "Odd \"Table\"");
        let mut schema = items();
        schema.columns[0].identity = true;
        let applied = run(
            &f.destination,
            plan(&table, &schema, Publish::Create, &["all"]),
            [item_rows([(1, "a", 1), (2, "b", 2)]), item_rows([(7, "tab\t\\N\n", 3)])],
        )
        .await
        .unwrap();
        assert_eq!(applied, Applied::inserts(3));
        let name = "\"new-schema\".\"Odd \"\"Table\"\"\"";
        assert_eq!(f.db.psql(&format!("SELECT count(*), max(length(name)) FROM {name}")), "3|7");
        // The identity goes on behind the largest value.
        assert_eq!(f.db.psql(&format!("INSERT INTO {name} (name) VALUES ('n') RETURNING id")), "8");
        assert_eq!(
            f.db.psql(&format!(
                "SELECT string_agg(conname || ' ' || contype::text, ',' ORDER BY conname) FROM pg_constraint \
                 WHERE conrelid = '{name}'::regclass AND contype = 'p'"
            )),
            "Odd \"Table\"_pkey p"
        );
        assert_eq!(
            f.db.psql("SELECT count(*) FROM pg_class WHERE relname LIKE '\\_synctool%'"),
            "0",
            "nothing of the load is left, in name or table"
        );
        assert_eq!(
            f.db.psql("SELECT count(*) FROM pg_constraint WHERE conname LIKE '\\_synctool%'"),
            "0"
        );
        assert_eq!(f.db.psql(&format!("SELECT reloptions IS NULL AND obj_description(oid) IS NULL FROM pg_class WHERE oid = '{name}'::regclass")), "t");
        assert!(f.destination.made_here(&table).await.unwrap());
        assert!(!f.destination.is_empty(&table).await.unwrap());
        let stored = f.destination.stored_plan("shop").await.unwrap().unwrap();
        assert!(stored.finished);
        assert_eq!(f.db.psql("SELECT publish, written, inserted FROM synctool.history"), "create|3|3");
        assert_eq!(f.db.psql("SELECT count(*) FROM synctool.checkpoint"), "0", "partitions are folded away");
    }

    async fn both_forms_of_copy_store_the_same(version: PgVersion) {
        let f = fixture(version).await;
        let columns = [
            (ColumnType::Bool, "true", "false"),
            (ColumnType::Int16, "-32768", "32767"),
            (ColumnType::Int32, "-2147483648", "2147483647"),
            (ColumnType::Int64, "-9223372036854775808", "9223372036854775807"),
            (ColumnType::UInt64, "18446744073709551615", "0"),
            (ColumnType::Decimal { precision: 30, scale: 5 }, "-1234567890123456789012345.00100", "0.00000"),
            (ColumnType::Numeric, "NaN", "-12345678901234567890.000000000000000000010"),
            (ColumnType::Float32, "0.1", "NaN"),
            (ColumnType::Float64, "-Infinity", "1e-300"),
            (ColumnType::Date, "0044-03-15 BC", "infinity"),
            (ColumnType::Time, "24:00:00", "00:00:00.000001"),
            (ColumnType::Timestamp, "-infinity", "1999-12-31 23:59:59.999999"),
            (ColumnType::TimestampTz, "4713-01-01 00:00:00+00 BC", "2038-01-19 03:14:08+00"),
            (ColumnType::Text { max: None }, "", "tab\tnew\nline\\N \u{1F600}"),
            (ColumnType::Text { max: Some(5) }, "\\N", "äöüß€"),
            (ColumnType::Bytes, "\\x", "\\x00ff5c6e"),
            (ColumnType::Uuid, "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"),
            (ColumnType::Json, "{\"b\":1, \"a\":1.0, \"a\":2}", "null"),
            (ColumnType::Jsonb, "{\"a\": 1}", "[1e10]"),
        ];
        let mut schema = TableSchema::default();
        for (i, (ty, ..)) in columns.iter().enumerate() {
            let mut c = Column::new(format!("c{i}"), ty.clone());
            c.carrier = f.destination.store_as("mysql", &c).carrier;
            schema.columns.push(c);
        }
        let low: Vec<Option<&str>> = columns.iter().map(|c| Some(c.1)).collect();
        let high: Vec<Option<&str>> = columns.iter().map(|c| Some(c.2)).collect();
        let null: Vec<Option<&str>> = columns.iter().map(|_| None).collect();
        let mut dumps = Vec::new();
        for (name, copy) in [("t", Some(CopyForm::Text)), ("b", None)] {
            let destination = open(&f.db.url(), DestinationOptions { copy, ..Default::default() }).await;
            let table = TableId::bare(name);
            run(
                &destination,
                plan(&table, &schema, Publish::Create, &["all"]),
                [batch(&schema, &[&low, &high, &null])],
            )
            .await
            .unwrap();
            dumps.push(dump(&f.db, name));
        }
        assert_eq!(dumps[0], dumps[1]);
        for (text, what) in [("18446744073709551615", "u64"), ("-12345678901234567890.000000000000000000010", "scale"), ("24:00:00", "midnight")] {
            assert!(dumps[0].contains(text), "{what} in {}", dumps[0]);
        }
        let types = f.db.psql("SELECT string_agg(format_type(atttypid, atttypmod), ',' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'b'::regclass AND attnum > 0");
        assert!(types.starts_with("boolean,smallint,integer,bigint,numeric(20,0),numeric(30,5),numeric,real"), "{types}");
    }

    async fn partitions_resume_where_they_stood(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        let p = f.destination.prepare(plan(&table, &items(), Publish::Create, &["a", "b"])).await.unwrap();
        assert_eq!(p.generation, Generation(1));
        let mut a = sink(&f.destination, &p, "a").await;
        a.write(inserts(&table, item_rows([(1, "one", 1)]))).await.unwrap();
        assert_eq!(a.commit(&[advance("a", None, "1", false)]).await.unwrap(), Applied::inserts(1));
        a.write(inserts(&table, item_rows([(2, "lost", 2)]))).await.unwrap();
        drop(a);
        let mut a = f.destination.open_sink(&p).await.unwrap();
        let state = a.recover(&["a".into()]).await.unwrap().remove(&PartitionId::from("a")).unwrap();
        assert_eq!(state.position, Some("1".into()));
        assert_eq!(state.applied, Applied::inserts(1));
        a.write(inserts(&table, item_rows([(2, "two", 2)]))).await.unwrap();
        a.commit(&[advance("a", Some("1"), "2", true)]).await.unwrap();
        assert_eq!(a.durable().await.unwrap()[&PartitionId::from("a")].position, Some("2".into()));
        a.release(&["a".into()]).await.unwrap();
        // An empty partition commits too.
        let mut b = sink(&f.destination, &p, "b").await;
        assert_eq!(b.commit(&[advance("b", None, "end", true)]).await.unwrap(), Applied::default());
        let checkpoint = f.destination.checkpoint(&p).await.unwrap();
        assert!(checkpoint.values().all(|s| s.done) && checkpoint.len() == 2);
        f.destination.seal(&p).await.unwrap();
        f.destination.seal(&p).await.unwrap();
        assert_eq!(f.destination.publish(&p).await.unwrap().applied, Applied::inserts(2));
        assert_eq!(dump(&f.db, "items"), "(1,one,1)\n(2,two,2)");
    }

    async fn older_writers_are_fenced_and_ended(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        let p = f.destination.prepare(plan(&table, &items(), Publish::Create, &["a"])).await.unwrap();
        // By epoch: the successor ends the session, whose COPY and locks go with it.
        let mut old = sink(&f.destination, &p, "a").await;
        old.write(inserts(&table, item_rows([(1, "zombie", 1)]))).await.unwrap();
        let mut new = sink(&f.destination, &p, "a").await;
        let e = old.commit(&[advance("a", None, "1", false)]).await.unwrap_err();
        assert_eq!(e.code(), code::CONNECTION_LOST, "{e}");
        new.write(inserts(&table, item_rows([(1, "right", 1)]))).await.unwrap();
        new.commit(&[advance("a", None, "1", false)]).await.unwrap();
        // By position: nobody commits from where the partition does not stand.
        new.write(inserts(&table, item_rows([(2, "again", 1)]))).await.unwrap();
        let e = new.commit(&[advance("a", None, "1", false)]).await.unwrap_err();
        assert_eq!(e.code(), code::FENCED, "{e}");
        drop(new);
        // By generation.
        let mut old = sink(&f.destination, &p, "a").await;
        f.db.psql("UPDATE synctool.checkpoint SET writer = NULL");
        let q = f.destination.prepare(plan(&table, &items(), Publish::Create, &["a"])).await.unwrap();
        assert_eq!(q.generation, Generation(2));
        let e = old.commit(&[advance("a", Some("1"), "2", false)]).await.unwrap_err();
        assert_eq!(e.code(), code::FENCED, "{e}");
        let e = f.destination.publish(&p).await.unwrap_err();
        assert_eq!(e.code(), code::FENCED, "{e}");
        let mut late = f.destination.open_sink(&p).await.unwrap();
        assert_eq!(late.recover(&["a".into()]).await.unwrap_err().code(), code::FENCED);
        assert_eq!(
            f.db.psql("SELECT count(*) FROM pg_class WHERE relname LIKE '\\_synctool\\_load%' AND relkind = 'r'"),
            "1",
            "the older generation's load table went"
        );
    }

    async fn an_epoch_fences_where_the_session_could_not_be_ended(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        let p = f.destination.prepare(plan(&table, &items(), Publish::Create, &["a"])).await.unwrap();
        let mut old = sink(&f.destination, &p, "a").await;
        old.write(inserts(&table, item_rows([(1, "zombie", 1)]))).await.unwrap();
        f.db.psql("UPDATE synctool.checkpoint SET writer = 'somebody'");
        let _new = sink(&f.destination, &p, "a").await;
        let e = old.commit(&[advance("a", None, "1", false)]).await.unwrap_err();
        assert_eq!(e.code(), code::FENCED, "{e}");
    }

    async fn a_backend_killed_in_mid_copy_loses_nothing_committed(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        let p = f.destination.prepare(plan(&table, &items(), Publish::Create, &["a"])).await.unwrap();
        let mut s = sink(&f.destination, &p, "a").await;
        s.write(inserts(&table, item_rows([(1, "kept", 1)]))).await.unwrap();
        s.commit(&[advance("a", None, "1", false)]).await.unwrap();
        s.write(inserts(&table, item_rows((2..50_000).map(|i| (i, "lost", 1))))).await.unwrap();
        f.db.psql("SELECT pg_terminate_backend(split_part(writer, '@', 1)::int) FROM synctool.checkpoint");
        let mut failed = None;
        for i in 0..1000 {
            let rows = item_rows((0..10_000).map(|n| (100_000 + i * 10_000 + n, "more", 1)));
            if let Err(e) = s.write(inserts(&table, rows)).await {
                failed = Some(e);
                break;
            }
        }
        let e = failed.expect("the writer noticed");
        assert_eq!(e.code(), code::CONNECTION_LOST, "{e}");
        drop(s);
        let mut s = f.destination.open_sink(&p).await.unwrap();
        let state = s.recover(&["a".into()]).await.unwrap().remove(&PartitionId::from("a")).unwrap();
        assert_eq!(state.position, Some("1".into()));
        s.commit(&[advance("a", Some("1"), "end", true)]).await.unwrap();
        f.destination.seal(&p).await.unwrap();
        f.destination.publish(&p).await.unwrap();
        assert_eq!(dump(&f.db, "items"), "(1,kept,1)");
    }

    async fn duplicate_keys_and_bad_names_are_told(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        let p = plan(&table, &items(), Publish::Create, &["all"]);
        let e = run(&f.destination, p.clone(), [item_rows([(1, "secret", 1), (1, "b", 2)])]).await.unwrap_err();
        assert_eq!(e.code(), code::DUPLICATE_KEY, "{e}");
        assert!(!e.to_string().contains("secret"));
        let long = TableId::bare("x".repeat(64));
        let e = f.destination.prepare(plan(&long, &items(), Publish::Create, &["all"])).await.unwrap_err();
        assert_eq!(e.code(), code::IDENTIFIER, "{e}");
        // The failed prepare changed nothing, the next one starts over.
        assert_eq!(f.db.psql("SELECT generation FROM synctool.generation"), "1");
        run(&f.destination, p, [item_rows([(1, "a", 1)])]).await.unwrap();
        f.destination.forget("shop").await.unwrap();
        assert!(f.destination.stored_plan("shop").await.unwrap().is_none());
        assert_eq!(f.db.psql("SELECT generation FROM synctool.generation"), "3");
    }

    async fn rows_that_vanish_before_publishing_are_noticed(version: PgVersion) {
        let f = fixture(version).await;
        let table = TableId::bare("items");
        for after_sealing in [false, true] {
            let p = f.destination.prepare(plan(&table, &items(), Publish::Create, &["all"])).await.unwrap();
            let mut s = sink(&f.destination, &p, "all").await;
            s.write(inserts(&table, item_rows([(1, "a", 1), (2, "b", 2)]))).await.unwrap();
            s.commit(&[advance("all", None, "end", true)]).await.unwrap();
            let steal = format!("DELETE FROM {} WHERE id = 1", p.load_name(0));
            if after_sealing {
                f.destination.seal(&p).await.unwrap();
                f.db.psql(&steal);
                f.db.psql(&format!("ANALYZE {}", p.load_name(0)));
            } else {
                f.db.psql(&steal);
                f.destination.seal(&p).await.unwrap();
            }
            let e = f.destination.publish(&p).await.unwrap_err();
            assert_eq!(e.code(), code::VERIFY_FAILED, "{e}");
        }
    }

    async fn a_dropped_control_schema_starts_over(version: PgVersion) {
        let f = fixture(version).await;
        let p = plan(&TableId::bare("items"), &items(), Publish::Create, &["all"]);
        f.destination.prepare(p.clone()).await.unwrap();
        f.db.psql("DROP SCHEMA synctool CASCADE");
        assert_eq!(run(&f.destination, p, [item_rows([(1, "a", 1)])]).await.unwrap(), Applied::inserts(1));
    }

    async fn several_tables_of_one_plan_are_loaded(version: PgVersion) {
        let f = fixture(version).await;
        let (a, b) = (TableId::bare("a"), TableId::bare("b"));
        let mut p = plan(&a, &items(), Publish::Create, &["one"]);
        let other = plan(&b, &items(), Publish::Create, &["two"]);
        p.tables.extend(other.tables);
        let mut partition = other.phases[0].partitions[0].clone();
        partition.table = 1;
        Arc::make_mut(&mut p.phases)[0].partitions.push(partition);
        let p = f.destination.prepare(p).await.unwrap();
        // One sink, both partitions, tables in turn, one commit.
        let mut s = f.destination.open_sink(&p).await.unwrap();
        s.recover(&["one".into(), "two".into()]).await.unwrap();
        for i in 0..3 {
            s.write(inserts(&a, item_rows([(i, "a", 1)]))).await.unwrap();
            s.write(inserts(&b, item_rows([(i, "b", 1), (i + 10, "b", 1)]))).await.unwrap();
        }
        let applied = s.commit(&[advance("one", None, "end", true), advance("two", None, "end", true)]).await.unwrap();
        assert_eq!(applied, Applied::inserts(9));
        drop(s);
        f.destination.seal(&p).await.unwrap();
        assert_eq!(f.destination.publish(&p).await.unwrap().applied.written, 9);
        assert_eq!(f.db.psql("SELECT (SELECT count(*) FROM a), (SELECT count(*) FROM b)"), "3|6");
    }

    async fn a_missing_right_names_its_grant(version: PgVersion) {
        let f = fixture(version).await;
        let role = format!("poor_{}", f.db.name());
        f.db.psql(&format!("CREATE ROLE {role} LOGIN"));
        let poor = open(&f.db.url_as(&role), DestinationOptions::default()).await;
        let p = plan(&TableId::bare("items"), &items(), Publish::Create, &["all"]);
        let e = poor.prepare(p.clone()).await.unwrap_err();
        assert_eq!(e.code(), code::PERMISSION, "{e}");
        assert!(e.next_step().unwrap().contains("GRANT CREATE ON DATABASE"), "{e}");
        let findings = poor.examine(&[TableId::bare("items")]).await;
        let missing = findings.iter().find(|f| !f.ok && f.what.contains("control")).unwrap();
        f.db.psql(&missing.fix);
        let missing = findings.iter().filter(|f| !f.ok && f.what.contains("CREATE in schema"));
        missing.for_each(|m| drop(f.db.psql(&m.fix)));
        assert_eq!(run(&poor, p, [item_rows([(1, "a", 1)])]).await.unwrap(), Applied::inserts(1));
        let findings = poor.examine(&[TableId::bare("items")]).await;
        assert!(findings.iter().all(|f| f.ok), "{findings:#?}");
        f.db.psql(&format!("REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
    }

    async fn many_make_the_control_tables_at_once(version: PgVersion) {
        let f = fixture(version).await;
        let mut running = Vec::new();
        for i in 0..6 {
            let d = f.destination.clone();
            let mut p = plan(&TableId::bare(format!("t{i}")), &items(), Publish::Create, &["all"]);
            p.pipeline = format!("p{i}");
            running.push(tokio::spawn(async move { d.prepare(p).await }));
        }
        for r in running {
            r.await.unwrap().unwrap();
        }
        assert_eq!(f.db.psql("SELECT count(*), sum(generation) FROM synctool.generation"), "6|6");
        assert!(f.destination.control_ddl().iter().all(|s| f.db.try_psql(s).is_ok()), "the printed DDL can be run again");
    }
}
