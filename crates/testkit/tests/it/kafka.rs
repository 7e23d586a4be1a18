use synctool_testkit::Kafka;

#[test]
fn starts_creates_a_topic_and_stops() {
    let kafka = Kafka::start();
    kafka.create_topic("orders", 3);
    assert_eq!(kafka.partitions("orders"), 3);
    kafka.create_topic("single", 1);
    assert_eq!(kafka.partitions("single"), 1);
    kafka.stop();
    assert!(std::net::TcpStream::connect(kafka.bootstrap()).is_err());
}
