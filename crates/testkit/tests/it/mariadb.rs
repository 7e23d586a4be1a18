use synctool_testkit::MariaDb;

#[test]
fn starts_logs_rows_and_stops() {
    let server = MariaDb::start();
    let db = server.database("kit");
    db.sql("CREATE TABLE t (id INT PRIMARY KEY, v TEXT); INSERT INTO t VALUES (1, 'å')");
    assert_eq!(db.sql("SELECT * FROM t"), "1\tå");
    assert_eq!(
        server.sql("SELECT @@binlog_format, @@binlog_row_image, @@time_zone, @@log_bin"),
        "ROW\tFULL\t+00:00\t1"
    );
    assert!(server.sql("SHOW BINLOG EVENTS").contains("Write_rows"));
    server.kill9();
    server.restart();
    assert_eq!(db.sql("SELECT count(*) FROM t"), "1");
    let name = db.name().to_owned();
    drop(db);
    assert_eq!(server.sql(&format!("SHOW DATABASES LIKE '{name}'")), "");
    server.stop();
    assert!(server.try_sql("", "SELECT 1").is_err());
}
