use synctool_testkit::Redis;

#[test]
fn starts_keeps_values_and_stops() {
    let redis = Redis::start();
    assert_eq!(redis.command(&["SET", "key", "a value"]), "OK");
    redis.kill9();
    redis.restart();
    assert_eq!(redis.command(&["GET", "key"]), "a value");
    assert_eq!(redis.command(&["XADD", "stream", "1-1", "field", "x"]), "1-1");
    redis.stop();
    assert!(std::net::TcpStream::connect(("127.0.0.1", redis.port())).is_err());
}
