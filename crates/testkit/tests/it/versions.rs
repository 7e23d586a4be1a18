use synctool_testkit::{PgVersion, Postgres};

#[tokio::test]
async fn every_supported_version_starts_and_decodes() {
    for version in PgVersion::ALL {
        let server = Postgres::start(version);
        let db = server.database("smoke");
        db.psql("CREATE TABLE t (id int PRIMARY KEY, v text)");
        db.psql("SELECT pg_create_logical_replication_slot('smoke', 'test_decoding')");
        db.psql("INSERT INTO t VALUES (1, 'one')");
        let changes = db.psql("SELECT data FROM pg_logical_slot_get_changes('smoke', NULL, NULL)");
        assert!(
            changes.contains("INSERT: id[integer]:1 v[text]:'one'"),
            "{version}: {changes}"
        );
        let row = db
            .connect()
            .await
            .query_one("SHOW server_version_num", &[])
            .await
            .unwrap();
        let number: u32 = row.get::<_, String>(0).parse().unwrap();
        assert_eq!(number / 10_000, u32::from(version.major()));
        let name = db.name().to_owned();
        drop(db);
        assert_eq!(
            server.psql(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")),
            "0",
            "{version}"
        );
    }
}
