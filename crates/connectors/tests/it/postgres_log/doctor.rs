//! What is told of a server before anything is made there: room, rights, settings.

use super::*;
use synctool_connectors::postgres::log::Watermarks;
use synctool_core::source::Finding;

const T: &str = "CREATE TABLE t (id int PRIMARY KEY, a text)";

#[track_caller]
fn found<'a>(findings: &'a [Finding], what: &str) -> &'a Finding {
    let found = findings.iter().find(|f| f.what == what);
    found.unwrap_or_else(|| panic!("nothing of {what}: {findings:?}"))
}

on_servers! {
    /// A server without a slot or a sender to spare.
    async fn a_server_without_room(version: PgVersion) {
        let server = Postgres::builder(version).setting("max_wal_senders", "0").setting("max_replication_slots", "0").start();
        let c = Capture::on(&server, &["t"], T);
        let findings = c.source(c.options.clone()).examine(&c.request.tables).await;
        for (what, setting) in [("WAL senders", "max_wal_senders = 10"), ("replication slots", "max_replication_slots = 10")] {
            let f = found(&findings, what);
            assert!(!f.ok && f.found.contains("0 of 0") && f.fix.contains(setting), "{f:?}");
        }
        let shared = Capture::new(version, &["t"], T);
        let findings = shared.source(shared.options.clone()).examine(&shared.request.tables).await;
        assert!(found(&findings, "WAL senders").ok && found(&findings, "replication slots").ok, "{findings:?}");
    }

    /// A role that may not follow the log, or not read a table: each with the statement that mends it, which does.
    async fn a_role_without_rights(version: PgVersion) {
        let server = Postgres::builder(version).start();
        let mut c = Capture::on(&server, &["t"], T);
        c.from.psql("CREATE ROLE guest LOGIN; GRANT CREATE ON SCHEMA public TO guest");
        c.url = c.from.url_as("guest");
        let examine = async || c.source(c.options.clone()).examine(&c.request.tables).await;
        let findings = examine().await;
        let log = found(&findings, "log of the server");
        assert!(!log.ok && log.fix == "ALTER ROLE \"guest\" REPLICATION;", "{log:?}");
        let read = found(&findings, "right to read public.t");
        assert!(!read.ok && read.fix.contains("GRANT SELECT ON \"public\".\"t\" TO \"guest\";"), "{read:?}");
        let e = c.catch_up().await.unwrap_err();
        assert_eq!(e.code(), synctool_core::error::code::PERMISSION, "{e}");
        c.from.psql(&format!("{} {}", log.fix, read.fix));
        let findings = examine().await;
        assert!(found(&findings, "log of the server").ok && found(&findings, "right to read public.t").ok, "{findings:?}");
        // Whoever takes a watermark away again has to find it.
        c.from.psql("CREATE SCHEMA synctool; CREATE TABLE synctool.watermark (selectionid varchar(50) PRIMARY KEY, wm_type varchar(10) NOT NULL);
            GRANT USAGE ON SCHEMA synctool TO guest; GRANT INSERT, DELETE ON synctool.watermark TO guest");
        let marked = LogOptions { watermarks: Watermarks::Table, ..c.options.clone() };
        let examine = async || c.source(marked.clone()).examine(&c.request.tables).await;
        let findings = examine().await;
        let marks = found(&findings, "watermarks");
        assert!(!marks.ok && marks.fix.contains("SELECT"), "{marks:?}");
        c.from.psql("GRANT SELECT ON synctool.watermark TO guest");
        let findings = examine().await;
        assert!(found(&findings, "watermarks").ok, "{findings:?}");
    }
}
