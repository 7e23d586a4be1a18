use synctool_testkit::ClickHouse;

#[test]
fn speaks_clickhouse_over_http() {
    let server = ClickHouse::start();
    server.sql("CREATE TABLE t (id Int32, v Nullable(String)) ENGINE = ReplacingMergeTree ORDER BY id");

    // Data in the statement, as a body of text, and as a binary body.
    server.sql("INSERT INTO t VALUES (1, 'one; SELECT')");
    server.sql("INSERT INTO t FORMAT TabSeparated\n2\ttwo\n3\t\\N\n");
    let insert = "/?query=INSERT%20INTO%20t%20(id,%20v)%20FORMAT%20RowBinary&max_insert_threads=1";
    let row = [&4_i32.to_le_bytes()[..], &[0, 2, 0xc3, 0xa4]].concat();
    assert_eq!(server.request(insert, &row).unwrap(), (200, String::new()));
    assert_eq!(
        server.sql("SELECT * FROM t ORDER BY id"),
        "1\tone; SELECT\n2\ttwo\n3\t\\N\n4\tä"
    );

    // Parameters, settings of one request, another format, another database.
    let answer = server.request(
        "/?param_id=2&default_format=JSONEachRow",
        b"SELECT v FROM t WHERE id = {id:Int32}",
    );
    assert_eq!(answer.unwrap(), (200, "{\"v\":\"two\"}\n".into()));
    let threads = "SELECT getSetting('max_block_size')";
    assert_eq!(
        server.request("/?max_block_size=77", threads.as_bytes()).unwrap().1,
        "77\n"
    );
    assert_ne!(server.sql(threads), "77");
    server.sql("CREATE DATABASE other");
    assert_eq!(
        server
            .request("/?database=other", b"SELECT currentDatabase()")
            .unwrap()
            .1,
        "other\n"
    );

    // Errors carry the server's code and a status.
    let (status, text) = server.request("/", b"SELECT * FROM missing").unwrap();
    assert_eq!((status, text.contains("Code: 60.")), (404, true), "{text}");
    let (status, text) = server.request("/?user=default&password=wrong", b"SELECT 1").unwrap();
    assert_eq!((status, text.contains("Code: 516.")), (403, true), "{text}");
    let (status, text) = server.request("/?no_such_setting=1", b"SELECT 1").unwrap();
    assert_eq!((status, text.contains("Code: 115.")), (404, true), "{text}");

    server.kill9();
    server.restart();
    assert_eq!(server.sql("SELECT count() FROM t"), "4");
    server.stop();
    assert!(server.try_sql("SELECT 1").is_err());
}
