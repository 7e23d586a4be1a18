use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use synctool_testkit::proxy::{FaultProxy, Mode};
use synctool_testkit::{PgVersion, Postgres, wait_for};

const LIMIT: Duration = Duration::from_secs(30);

/// Sends back what it gets, on any number of connections, until the process ends.
fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut from = stream.try_clone().unwrap();
                let mut to = stream;
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    });
    port
}

fn connect(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}

fn round_trip(stream: &mut TcpStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

#[test]
fn forwards_both_ways_and_counts() {
    let proxy = FaultProxy::to(echo());
    let mut stream = connect(&proxy);
    assert_eq!(round_trip(&mut stream, "hello"), "hello");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0, "the end of input travels too");
    let counts = proxy.counts();
    assert_eq!(
        (counts.connections, counts.broken, counts.to_server, counts.to_client),
        (1, 0, 5, 5)
    );
}

#[test]
fn refuses_new_connections_and_accepts_them_again() {
    let proxy = FaultProxy::to(echo());
    let mut open = connect(&proxy);
    assert_eq!(round_trip(&mut open, "a"), "a");
    for _ in 0..10 {
        proxy.set(Mode::Refuse);
        let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set(Mode::Forward);
        assert_eq!(round_trip(&mut connect(&proxy), "b"), "b");
    }
    assert_eq!(round_trip(&mut open, "c"), "c", "an open connection goes on");
}

#[test]
fn a_hanging_connection_goes_on_later() {
    let proxy = FaultProxy::to(echo());
    let mut stream = connect(&proxy);
    assert_eq!(round_trip(&mut stream, "a"), "a");
    proxy.set(Mode::Hang);
    stream.write_all(b"later").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
    let silence = stream.read(&mut [0; 5]).unwrap_err();
    assert!(
        matches!(silence.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{silence}"
    );
    proxy.set(Mode::Forward);
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"later");
}

#[test]
fn delays_each_way() {
    let proxy = FaultProxy::to(echo());
    let mut stream = connect(&proxy);
    assert_eq!(round_trip(&mut stream, "a"), "a");
    proxy.set(Mode::Delay(Duration::from_millis(60)));
    let start = Instant::now();
    assert_eq!(round_trip(&mut stream, "slow"), "slow");
    assert!(start.elapsed() >= Duration::from_millis(120), "{:?}", start.elapsed());
}

#[test]
fn throttles() {
    let proxy = FaultProxy::to(echo());
    let mut stream = connect(&proxy);
    proxy.set(Mode::Throttle(100_000));
    let start = Instant::now();
    round_trip(&mut stream, &"x".repeat(20_000));
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
}

#[test]
fn cuts_after_exactly_so_many_bytes() {
    for (mode, to_server, to_client) in [
        (Mode::CutToClient(1_000), 5_000, 1_000),
        (Mode::CutToServer(700), 700, 700),
    ] {
        let proxy = FaultProxy::to(echo());
        proxy.set(mode);
        let mut stream = connect(&proxy);
        // The cut may come while this is still being sent.
        let _ = stream.write_all(&[7; 5_000]);
        let mut got = Vec::new();
        let mut piece = [0; 512];
        while let Ok(count @ 1..) = stream.read(&mut piece) {
            got.extend_from_slice(&piece[..count]);
        }
        let counts = proxy.counts();
        assert_eq!(counts.broken, 1);
        assert!(
            counts.to_server <= to_server && counts.to_client <= to_client,
            "{counts:?}"
        );
        if mode == Mode::CutToClient(1_000) {
            assert_eq!(got.len(), 1_000);
        } else {
            assert_eq!(counts.to_server, 700);
        }
    }
}

#[test]
fn a_mode_set_once_breaks_one_connection() {
    let proxy = FaultProxy::to(echo());
    let mut streams: Vec<TcpStream> = (0..5).map(|_| connect(&proxy)).collect();
    for stream in &mut streams {
        assert_eq!(round_trip(stream, "a"), "a");
    }
    proxy.set_once(Mode::Reset);
    wait_for("the reset", LIMIT, || proxy.counts().broken == 1);
    let alive = streams.iter_mut().filter_map(|stream| {
        stream.write_all(b"b").ok()?;
        stream.read_exact(&mut [0]).ok()
    });
    assert_eq!(alive.count(), 4);
    assert_eq!(proxy.counts().broken, 1);
}

#[test]
fn a_reset_is_not_an_orderly_end() {
    let proxy = FaultProxy::to(echo());
    let mut stream = connect(&proxy);
    assert_eq!(round_trip(&mut stream, "a"), "a");
    proxy.set(Mode::Reset);
    assert_eq!(stream.read(&mut [0; 1]).unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn stands_in_front_of_a_real_server() {
    let server = Postgres::shared(PgVersion::V18);
    let db = server.database("proxy");
    let proxy = FaultProxy::to(server.port());
    let url = proxy.through(&db.url());
    assert_ne!(url, db.url());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    let rows = "SELECT repeat('x', 1000) FROM generate_series(1, 1000)";
    assert_eq!(client.query(rows, &[]).await.unwrap().len(), 1000);
    proxy.set_once(Mode::CutToClient(100_000));
    assert!(client.query(rows, &[]).await.is_err());
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(client.query(rows, &[]).await.unwrap().len(), 1000);
}
