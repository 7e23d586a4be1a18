//! Plans, fences and publishing.

use super::*;
use std::fs;
use synctool_core::engine::Engine;
use synctool_core::error::{Error, code};
use synctool_core::strategy::full::{self, FullMode, FullRequest};
use synctool_core::strategy::table::TableRequest;

fn formats() -> [Format; 2] {
    [parquet(), csv_format()]
}

fn assert_code(result: Result<impl std::fmt::Debug>, want: &synctool_core::error::Code) -> Error {
    let e = result.expect_err(want.meaning);
    assert_eq!(e.code(), want, "{e}");
    e
}

#[tokio::test]
async fn a_table_is_created_swapped_and_added_to() {
    for format in formats() {
        let dir = scratch();
        let files = open(dir.path(), format);
        let (to, from) = (files.destination(), files.source());
        let table = TableId::bare("items");
        assert_eq!(to.describe(&table).await.unwrap(), None);
        let create = plan("p", "items", &small_schema(), 2, Publish::Create);
        let parts = [vec![small_rows(0, 10), small_rows(10, 5)], vec![small_rows(15, 5)]];
        assert_eq!(load(&*to, create, &parts).await.unwrap(), Applied::inserts(20));
        assert_eq!(ids(&*from, "items").await, (0..20).collect::<Vec<_>>());
        assert_eq!(
            to.describe(&table).await.unwrap(),
            Some(small_schema()),
            "columns and key come back"
        );
        assert!(to.made_here(&table).await.unwrap() && !to.is_empty(&table).await.unwrap());
        assert_eq!(
            to.swap_obstacles(&table, &small_schema()).await.unwrap(),
            Vec::<String>::new()
        );

        let swap = plan("p", "items", &small_schema(), 1, Publish::Swap);
        let did = load(&*to, swap, &[vec![small_rows(100, 15)]]).await.unwrap();
        assert_eq!((did.written, did.inserted, did.deleted), (15, 15, 5));
        assert_eq!(ids(&*from, "items").await, (100..115).collect::<Vec<_>>());

        for first in [200, 300] {
            let append = plan("q", "items", &small_schema(), 1, Publish::Append);
            load(&*to, append, &[vec![small_rows(first, 2)]]).await.unwrap();
        }
        let want: Vec<i64> = (100..115).chain(200..202).chain(300..302).collect();
        assert_eq!(ids(&*from, "items").await, want);
        let kept: Vec<_> = fs::read_dir(dir.path().join("items")).unwrap().collect();
        assert_eq!(kept.len(), 4, "three files and one manifest: {kept:?}");
    }
}

#[tokio::test]
async fn a_single_file_is_replaced_by_one_rename() {
    for format in formats() {
        let dir = scratch();
        let path = dir.path().join(match format {
            Format::Csv(_) => "items.csv",
            Format::Parquet(_) => "items.parquet",
        });
        let files = open(&path, format);
        let (to, from) = (files.destination(), files.source());
        assert!(to.traits().single_partition);
        let create = plan("p", "items", &small_schema(), 1, Publish::Create);
        let batches = vec![small_rows(0, 3), small_rows(3, 3), small_rows(6, 1)];
        load(&*to, create, &[batches]).await.unwrap();
        assert_eq!(ids(&*from, "items").await, (0..7).collect::<Vec<_>>());
        assert_eq!(from.describe(&TableId::bare("items")).await.unwrap(), small_schema());
        assert!(to.made_here(&TableId::bare("items")).await.unwrap());
        let swap = plan("p", "items", &small_schema(), 1, Publish::Swap);
        load(&*to, swap, &[vec![small_rows(50, 7)]]).await.unwrap();
        assert_eq!(ids(&*from, "items").await, (50..57).collect::<Vec<_>>());
        let left: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(left.len(), 2, "the file and the control folder: {left:?}");
        assert_eq!(fs::read_dir(dir.path().join("_synctool/schema")).unwrap().count(), 1);
        let append = plan("p", "items", &small_schema(), 1, Publish::Append);
        assert_code(to.prepare(append).await, code::UNSUPPORTED);
        // Somebody else's file in its place is theirs.
        fs::write(&path, "id,name\n7,x\n").unwrap();
        assert!(!to.made_here(&TableId::bare("items")).await.unwrap());
    }
}

#[tokio::test]
async fn a_table_that_is_a_file_in_a_folder_stays_one() {
    let dir = scratch();
    fs::write(dir.path().join("items.csv"), "id,name\n1,a\n2,b\n").unwrap();
    let files = open(dir.path(), csv_format());
    let (to, from) = (files.destination(), files.source());
    let swap = plan("p", "items", &small_schema(), 2, Publish::Swap);
    load(&*to, swap, &[vec![small_rows(0, 3)], vec![small_rows(3, 3)]])
        .await
        .unwrap();
    assert_eq!(
        fs::read_to_string(dir.path().join("items.csv")).unwrap(),
        "id,name\n0,name 0\n1,name 1\n2,name 2\n3,name 3\n4,name 4\n5,name 5\n"
    );
    assert_eq!(ids(&*from, "items").await, (0..6).collect::<Vec<_>>());
    let append = plan("p", "items", &small_schema(), 1, Publish::Append);
    assert_code(to.prepare(append).await, code::SCHEMA_MISMATCH);
}

#[tokio::test]
async fn empty_tables_keep_their_columns() {
    for format in formats() {
        let dir = scratch();
        let files = open(dir.path(), format);
        let (to, from) = (files.destination(), files.source());
        load(&*to, plan("p", "t", &small_schema(), 1, Publish::Create), &[vec![]])
            .await
            .unwrap();
        assert_eq!(read_table(&*from, "t").await.unwrap().num_rows(), 0);
        assert_eq!(from.describe(&TableId::bare("t")).await.unwrap(), small_schema());
        assert!(to.is_empty(&TableId::bare("t")).await.unwrap());
    }
}

#[tokio::test]
async fn an_older_writer_of_a_partition_is_fenced() {
    let dir = scratch();
    let files = open(dir.path(), parquet());
    let to = files.destination();
    let plan = to
        .prepare(plan("p", "t", &small_schema(), 1, Publish::Create))
        .await
        .unwrap();
    let mut zombie = sink_for(&*to, &plan, 0).await;
    zombie.write(rows_event(&plan, &small_rows(0, 10))).await.unwrap();
    let mut heir = sink_for(&*to, &plan, 0).await;
    heir.write(rows_event(&plan, &small_rows(100, 10))).await.unwrap();
    assert_code(zombie.commit(&[advance(&part(0), None, "1", true)]).await, code::FENCED);
    assert!(
        zombie.write(rows_event(&plan, &small_rows(0, 1))).await.is_err(),
        "useless after a failure"
    );
    heir.commit(&[advance(&part(0), None, "1", true)]).await.unwrap();
    // Whoever knows the old position is late too.
    let mut late = sink_for(&*to, &plan, 0).await;
    assert_code(late.commit(&[advance(&part(0), None, "1", true)]).await, code::FENCED);
    to.seal(&plan).await.unwrap();
    to.publish(&plan).await.unwrap();
    assert_eq!(ids(&*files.source(), "t").await, (100..110).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_older_generation_is_fenced_everywhere() {
    let dir = scratch();
    let files = open(dir.path(), parquet());
    let to = files.destination();
    let draft = plan("p", "t", &small_schema(), 1, Publish::Create);
    let old = to.prepare(draft.clone()).await.unwrap();
    let mut fresh = to.open_sink(&old).await.unwrap();
    let mut zombie = sink_for(&*to, &old, 0).await;
    zombie.write(rows_event(&old, &small_rows(0, 10))).await.unwrap();
    let mut sealed = sink_for(&*to, &old, 0).await;
    sealed.write(rows_event(&old, &small_rows(0, 10))).await.unwrap();
    sealed.commit(&[advance(&part(0), None, "1", true)]).await.unwrap();
    to.seal(&old).await.unwrap();
    let new = to.prepare(draft).await.unwrap();
    assert_eq!(new.generation.0, old.generation.0 + 1);
    assert_code(fresh.recover(&[part(0)]).await, code::FENCED);
    assert_code(zombie.commit(&[advance(&part(0), None, "1", true)]).await, code::FENCED);
    assert_code(to.open_sink(&old).await.map(|_| ()), code::FENCED);
    assert_code(to.seal(&old).await, code::FENCED);
    assert_code(to.publish(&old).await, code::FENCED);
    write_partition(&*to, &new, 0, &[small_rows(7, 1)]).await;
    to.seal(&new).await.unwrap();
    to.publish(&new).await.unwrap();
    assert_eq!(ids(&*files.source(), "t").await, [7]);
    to.forget("p").await.unwrap();
    assert_eq!(to.stored_plan("p").await.unwrap(), None);
    let after = to
        .prepare(plan("p", "t", &small_schema(), 1, Publish::Swap))
        .await
        .unwrap();
    assert!(after.generation > new.generation, "forgetting keeps the number");
}

#[tokio::test]
async fn many_writers_append_to_one_log() {
    let dir = scratch();
    let files = open(dir.path(), csv_format());
    let to = files.destination();
    let plan = to
        .prepare(plan("p", "t", &small_schema(), 8, Publish::Create))
        .await
        .unwrap();
    let mut running = tokio::task::JoinSet::new();
    for i in 0..8 {
        let (to, plan) = (to.clone(), plan.clone());
        running.spawn(async move {
            let batches: Vec<RecordBatch> = (0..10).map(|b| small_rows(i * 100 + b * 10, 10)).collect();
            write_partition(&*to, &plan, i as usize, &batches).await;
        });
    }
    running.join_all().await;
    let checkpoint = to.checkpoint(&plan).await.unwrap();
    assert!(checkpoint.len() == 8 && checkpoint.values().all(|s| s.done && s.applied.written == 100));
    to.seal(&plan).await.unwrap();
    let (back, name) = to.read_back(&plan, 0).unwrap();
    assert_eq!(ids(&*back, &name.name).await.len(), 800);
    to.publish(&plan).await.unwrap();
    assert_eq!(ids(&*files.source(), "t").await, (0..800).collect::<Vec<_>>());
}

#[tokio::test]
async fn several_partitions_are_committed_together() {
    let dir = scratch();
    let to = open(dir.path(), parquet()).destination();
    let plan = to
        .prepare(plan("p", "t", &small_schema(), 2, Publish::Create))
        .await
        .unwrap();
    let mut sink = to.open_sink(&plan).await.unwrap();
    sink.recover(&[part(0), part(1)]).await.unwrap();
    sink.write(rows_event(&plan, &small_rows(0, 4))).await.unwrap();
    let both = [advance(&part(0), None, "a", true), advance(&part(1), None, "b", true)];
    let applied = sink.commit(&both).await.unwrap();
    assert_eq!(applied, Applied::inserts(4));
    let checkpoint = to.checkpoint(&plan).await.unwrap();
    assert_eq!(checkpoint.values().map(|s| s.applied.written).sum::<u64>(), 4);
    assert!(checkpoint.values().all(|s| s.done));
}

#[tokio::test]
async fn what_files_cannot_do_is_refused() {
    let dir = scratch();
    let to = open(dir.path(), parquet()).destination();
    let try_plan = async |table: &str, publish| to.prepare(plan("p", table, &small_schema(), 1, publish)).await;
    assert!(!to.traits().applies_changes, "no log is followed into files");
    for bad in ["a/b", "_synctool_keys_1", "_x", ".x", "a\0b", &"x".repeat(201)] {
        assert_code(try_plan(bad, Publish::Create).await, code::IDENTIFIER);
    }
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was made");
    // Odd names are fine as long as a folder may have them.
    for odd in ["Select", "a b", "ä€😀", "x.y", "a\"b'c"] {
        load(
            &*to,
            plan("p", odd, &small_schema(), 1, Publish::Create),
            &[vec![small_rows(0, 1)]],
        )
        .await
        .unwrap();
        assert_eq!(ids(&*open(dir.path(), parquet()).source(), odd).await, [0], "{odd}");
    }
}

#[tokio::test]
async fn the_guard_stops_a_swap_to_nothing_and_null_stops_where_it_is_not_allowed() {
    let dir = scratch();
    let files = open(dir.path(), csv_format());
    let to = files.destination();
    load(
        &*to,
        plan("p", "t", &small_schema(), 1, Publish::Create),
        &[vec![small_rows(0, 10)]],
    )
    .await
    .unwrap();
    let emptied = load(&*to, plan("p", "t", &small_schema(), 1, Publish::Swap), &[vec![]]).await;
    assert_code(emptied, code::MASS_DELETE);
    assert_eq!(ids(&*files.source(), "t").await.len(), 10, "the table is as it was");
    let allowed = Plan {
        guard: DeleteGuard {
            allow: true,
            ..DeleteGuard::default()
        },
        ..plan("p", "t", &small_schema(), 1, Publish::Swap)
    };
    assert_eq!(load(&*to, allowed, &[vec![]]).await.unwrap().deleted, 10);

    let plan = to
        .prepare(plan("q", "u", &small_schema(), 1, Publish::Create))
        .await
        .unwrap();
    let mut sink = sink_for(&*to, &plan, 0).await;
    sink.write(rows_event(&plan, &batch(&small_schema(), &[vec![None, Some("x")]])))
        .await
        .unwrap();
    assert_code(
        sink.commit(&[advance(&part(0), None, "1", true)]).await,
        code::CONSTRAINT,
    );
}

#[tokio::test]
async fn a_full_disk_is_named_and_nothing_is_committed() {
    for format in formats() {
        let dir = scratch();
        let to = open(dir.path(), format).destination();
        let plan = to
            .prepare(plan("p", "t", &small_schema(), 1, Publish::Create))
            .await
            .unwrap();
        // The part file of the next writer is a door to a device that is always full.
        let control = fs::read_dir(dir.path().join("_synctool"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let hash = xxhash_rust::xxh3::xxh3_64(part(0).as_str().as_bytes());
        let name = format!("load-00000001/part/{hash:016x}-e1-1-0.{}", to.engine());
        std::os::unix::fs::symlink("/dev/full", control.join(name)).unwrap();
        let mut sink = sink_for(&*to, &plan, 0).await;
        sink.write(rows_event(&plan, &small_rows(0, 10))).await.unwrap();
        assert_code(
            sink.commit(&[advance(&part(0), None, "1", true)]).await,
            code::DISK_FULL,
        );
        assert!(to.checkpoint(&plan).await.unwrap()[&part(0)].position.is_none());
    }
}

#[tokio::test]
async fn missing_tables_are_named_with_those_that_are_there() {
    let dir = scratch();
    fs::write(dir.path().join("items.csv"), "a\n1\n").unwrap();
    fs::write(dir.path().join("notes.txt"), "no table").unwrap();
    fs::create_dir(dir.path().join("nothing")).unwrap();
    let from = open(dir.path(), csv_format()).source();
    let e = assert_code(from.describe(&TableId::bare("item")).await, code::TABLE_MISSING);
    assert!(e.to_string().contains("there are: items"), "{e}");
    let names: Vec<String> = from
        .tables(None)
        .await
        .unwrap()
        .into_iter()
        .map(|t| t.table.name)
        .collect();
    assert_eq!(names, ["items"]);
    assert_code(
        from.describe(&TableId::new("public", "items")).await,
        code::TABLE_MISSING,
    );
    let e = assert_code(
        open(&dir.path().join("nowhere"), csv_format())
            .source()
            .tables(None)
            .await,
        code::FILE,
    );
    assert!(e.to_string().contains("nowhere"));
    let findings = open(&dir.path().join("nowhere/yet"), parquet())
        .destination()
        .examine(&[TableId::bare("_x")])
        .await;
    assert_eq!(
        findings.iter().map(|f| f.ok).collect::<Vec<_>>(),
        [true, true, false],
        "{findings:?}"
    );
}

/// CSV → Parquet → CSV by the engine, verified by hash at each step.
#[tokio::test]
async fn the_engine_carries_tables_both_ways() {
    let dir = scratch();
    let first = open(&dir.path().join("in"), csv_format());
    let rows: Vec<RecordBatch> = (0..20).map(|i| small_rows(i * 500, 500)).collect();
    load(
        &*first.destination(),
        plan("seed", "items", &small_schema(), 1, Publish::Create),
        &[rows],
    )
    .await
    .unwrap();
    let second = open(&dir.path().join("lake"), parquet());
    let third = open(&dir.path().join("out/copy.csv"), csv_format());
    for (from, to, table, target) in [(&first, &second, "items", "items"), (&second, &third, "items", "copy")] {
        for _ in 0..2 {
            let engine = Arc::new(Engine::new(from.source(), to.destination()));
            let request = FullRequest {
                table: TableRequest {
                    run_id: "r".into(),
                    partition_bytes: 64 << 20,
                    semantics: serde_json::json!({}),
                    now: "2024-01-01T00:00:00Z".into(),
                    ..TableRequest::new("p", TableId::bare(table), TableId::bare(target))
                },
                mode: FullMode::Auto,
                deletes: true,
                verify: Some(Verify::Hash),
                remember: Default::default(),
            };
            let (source, destination) = (from.source(), to.destination());
            let draft = full::plan(&*source, &*destination, &synctool_core::stage::NoStages, request);
            let (plan, resumed) = engine.plan("p", &serde_json::json!({}), draft).await.unwrap();
            let report = engine.run(plan, resumed).await.unwrap();
            assert_eq!(report.verified.unwrap().rows, 10_000);
            assert_eq!(report.ledger.outcome().inserted, 10_000);
        }
    }
    assert_eq!(ids(&*third.source(), "copy").await, (0..10_000).collect::<Vec<_>>());
    let mut described = third.source().describe(&TableId::bare("copy")).await.unwrap();
    // The engine's own names of the types on the way are kept beside them.
    described.columns.iter_mut().for_each(|c| c.source_type = None);
    assert_eq!(described, small_schema());
}
