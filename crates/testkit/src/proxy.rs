//! A TCP proxy that misbehaves on demand.
//!
//! It runs on a thread of its own, so that a test may block (on psql, on a whole program) while its bytes pass here.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};

use crate::{Port, wait_for};

/// What the proxy does to its connections, the open ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Passes everything on.
    Forward,
    /// Refuses new connections; open ones go on.
    Refuse,
    /// Accepts connections and keeps them open, but lets no byte through.
    Hang,
    /// Holds each piece of data back for this long.
    Delay(Duration),
    /// Lets this many more bytes pass to the server on each connection, then closes it.
    CutToServer(u64),
    /// Lets this many more bytes pass to the client on each connection, then closes it.
    CutToClient(u64),
    /// Resets connections, as a crashed machine does.
    Reset,
    /// Passes at most this many bytes a second each way on each connection.
    Throttle(u64),
}

/// What has passed so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Connections accepted.
    pub connections: u64,
    /// Connections cut or reset on purpose.
    pub broken: u64,
    /// Bytes passed to the server.
    pub to_server: u64,
    /// Bytes passed to the client.
    pub to_client: u64,
}

/// The mode in force. `turn` counts the settings, so that a cut counts its bytes anew after each.
#[derive(Debug, Clone, Copy)]
struct Order {
    mode: Mode,
    once: bool,
    turn: u64,
}

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    broken: AtomicU64,
    to_server: AtomicU64,
    to_client: AtomicU64,
    /// The last turn the listening side has obeyed.
    obeyed: AtomicU64,
}

/// A proxy in front of one server.
#[derive(Debug)]
pub struct FaultProxy {
    port: Port,
    upstream: SocketAddr,
    orders: Arc<watch::Sender<Order>>,
    counters: Arc<Counters>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FaultProxy {
    /// A forwarding proxy on a free port, in front of a port of 127.0.0.1.
    ///
    /// # Panics
    /// If it cannot listen.
    #[track_caller]
    pub fn to(port: u16) -> Self {
        let upstream = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let port = Port::free();
        let orders = Arc::new(watch::Sender::new(Order {
            mode: Mode::Forward,
            once: false,
            turn: 1,
        }));
        let counters = Arc::new(Counters::default());
        let (end, ended) = oneshot::channel();
        let serve = serve(port.number(), upstream, orders.clone(), counters.clone());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let thread = std::thread::spawn(move || {
            runtime.block_on(async move {
                tokio::select! {
                    _ = ended => {}
                    never = serve => match never {}
                }
            });
        });
        let proxy = Self {
            port,
            upstream,
            orders,
            counters,
            end: Some(end),
            thread: Some(thread),
        };
        proxy.settle(1);
        proxy
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// A URL of the server, led through the proxy.
    pub fn through(&self, url: &str) -> String {
        url.replace(&format!(":{}", self.upstream.port()), &format!(":{}", self.port()))
    }

    /// Changes the mode; it holds when this returns.
    #[track_caller]
    pub fn set(&self, mode: Mode) {
        self.order(mode, false);
    }

    /// Sets a mode that ends with the first connection it breaks; everything after is forwarded. Only the modes that
    /// break connections end this way.
    #[track_caller]
    pub fn set_once(&self, mode: Mode) {
        self.order(mode, true);
    }

    /// What has passed so far.
    pub fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::SeqCst);
        Counts {
            connections: read(&self.counters.connections),
            broken: read(&self.counters.broken),
            to_server: read(&self.counters.to_server),
            to_client: read(&self.counters.to_client),
        }
    }

    #[track_caller]
    fn order(&self, mode: Mode, once: bool) {
        self.orders.send_modify(|order| {
            *order = Order {
                mode,
                once,
                turn: order.turn + 1,
            }
        });
        // The guard of `borrow` must be gone before waiting: the proxy itself may have to write.
        let turn = self.orders.borrow().turn;
        self.settle(turn);
    }

    #[track_caller]
    fn settle(&self, turn: u64) {
        let obeyed = || self.counters.obeyed.load(Ordering::SeqCst) >= turn;
        wait_for("the proxy to change its mode", Duration::from_secs(20), obeyed);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn serve(
    port: u16,
    upstream: SocketAddr,
    orders: Arc<watch::Sender<Order>>,
    counters: Arc<Counters>,
) -> std::convert::Infallible {
    let mut changes = orders.subscribe();
    let mut listener = None;
    loop {
        let order = *changes.borrow_and_update();
        if order.mode == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
                Ok(bound) => listener = Some(bound),
                // Somebody outside the kit has it for the moment; `set` gives up if it stays so.
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                }
            }
        }
        counters.obeyed.fetch_max(order.turn, Ordering::SeqCst);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            // The sender is ours, so this cannot fail.
            _ = changes.changed() => {}
            Ok((client, _)) = accepted => {
                counters.connections.fetch_add(1, Ordering::SeqCst);
                let connection = Connection { orders: orders.clone(), counters: counters.clone() };
                tokio::spawn(connection.run(client, upstream));
            }
        }
    }
}

struct Connection {
    orders: Arc<watch::Sender<Order>>,
    counters: Arc<Counters>,
}

/// Why a connection ends before its peers end it.
enum Broken {
    Cut,
    Reset,
    Io,
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Io
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToClient,
}

impl Connection {
    async fn run(self, mut client: TcpStream, upstream: SocketAddr) {
        let Ok(mut server) = TcpStream::connect(upstream).await else {
            return;
        };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let ended = tokio::try_join!(
            self.pump(from_client, to_server, Direction::ToServer),
            self.pump(from_server, to_client, Direction::ToClient),
        );
        match ended {
            Err(Broken::Reset) => {
                // With no time to linger, closing sends a reset instead of an orderly end.
                let _ = (client.set_zero_linger(), server.set_zero_linger());
            }
            Err(Broken::Cut) => {
                let _ = tokio::join!(client.shutdown(), server.shutdown());
            }
            Err(Broken::Io) | Ok(_) => {}
        }
    }

    /// Carries one direction until its end of file.
    async fn pump(&self, mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, direction: Direction) -> Result<(), Broken> {
        let counter = match direction {
            Direction::ToServer => &self.counters.to_server,
            Direction::ToClient => &self.counters.to_client,
        };
        let mut changes = self.orders.subscribe();
        let (mut turn, mut passed) = (0, 0);
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let order = *changes.borrow_and_update();
            if turn != order.turn {
                (turn, passed) = (order.turn, 0);
            }
            let mut most = buffer.len();
            match (order.mode, direction) {
                (Mode::Hang, _) => {
                    let _ = changes.changed().await;
                    continue;
                }
                (Mode::Reset, _) if self.may_break(order) => return Err(Broken::Reset),
                (Mode::CutToServer(limit), Direction::ToServer) | (Mode::CutToClient(limit), Direction::ToClient) => {
                    let left = limit.saturating_sub(passed);
                    if left == 0 && self.may_break(order) {
                        return Err(Broken::Cut);
                    }
                    most = most.min(usize::try_from(left.max(1)).unwrap_or(usize::MAX));
                }
                // Small pieces, so that the pace is even.
                (Mode::Throttle(rate), _) => most = most.min(usize::try_from(rate / 20).unwrap_or(usize::MAX).max(1)),
                _ => {}
            }
            let count = tokio::select! {
                biased;
                _ = changes.changed() => continue,
                count = from.read(&mut buffer[..most]) => count?,
            };
            if count == 0 {
                to.shutdown().await?;
                return Ok(());
            }
            match order.mode {
                Mode::Delay(time) => tokio::time::sleep(time).await,
                Mode::Throttle(rate) => {
                    tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate.max(1) as f64)).await;
                }
                _ => {}
            }
            to.write_all(&buffer[..count]).await?;
            passed += count as u64;
            counter.fetch_add(count as u64, Ordering::SeqCst);
        }
    }

    /// Whether this connection is to be broken under `order`; of a mode set once, only the first is.
    fn may_break(&self, order: Order) -> bool {
        let mine = !order.once
            || self.orders.send_if_modified(|current| {
                let first = current.turn == order.turn && current.once;
                if first {
                    *current = Order {
                        mode: Mode::Forward,
                        once: false,
                        turn: current.turn + 1,
                    };
                }
                first
            });
        if mine {
            self.counters.broken.fetch_add(1, Ordering::SeqCst);
        }
        mine
    }
}
