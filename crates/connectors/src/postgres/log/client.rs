//! A replication connection: what drivers do not offer, because its stream goes both ways (CopyBoth).
//!
//! Startup, passwords and a few simple queries; then frames. Settings that values depend on are given at startup, as
//! in every other session of ours.

use super::super::client::{Postgres, server_error};
use super::super::{PostgresConfig, SslMode, tls};
use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::frontend;
use std::io;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};

const CONNECTING: &str = "connecting to PostgreSQL";

/// How long the server may take for an answer.
const ANSWER: Duration = Duration::from_secs(60);

/// Read so much at once.
const READ: usize = 256 << 10;

trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// A connection of the replication protocol to one database.
pub(super) struct Replication {
    socket: Box<dyn Socket>,
    input: BytesMut,
    server: String,
}

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct System {
    /// The cluster's number, kept by its copies and backups.
    pub(super) id: String,
    /// Its timeline: another one after each promotion or restore.
    pub(super) timeline: u32,
}

/// So much of a transaction waits for its end.
const GATHERED: usize = 4 << 10;

/// What stands at the beginning of the input.
pub(super) enum Frames {
    /// Whole CopyData frames, one after the other.
    Data(Bytes),
    /// Nothing whole.
    More,
    /// The server ended the stream.
    End,
}

/// Whether nothing of a transaction need follow a frame: it ends one, or stands outside of any. A message may, and is never
/// kept waiting.
fn is_an_end(frame: &[u8]) -> bool {
    frame.get(5) != Some(&b'w') || !matches!(frame.get(30), Some(change) if !b"CM".contains(change))
}

fn lost(e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(
        code::CONNECTION_LOST,
        format!("the replication connection was lost: {e}"),
    )
    .caused_by(e)
}

/// An answer to what takes a server no time; a line that fell silent must not be waited for.
async fn in_time<T>(what: &str, server: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| {
        let waited = ANSWER.as_secs();
        let text = format!("{what} failed: the server did not answer within {waited} s");
        Err(Error::new(code::CONNECTION_LOST, text).at("server", server))
    })
}

fn unexpected(what: &str) -> Error {
    Error::new(
        code::SERVER_ERROR,
        format!("{what}: the server answered what nobody asked"),
    )
}

impl Replication {
    /// Connects, encrypted as the configuration says.
    pub(super) async fn connect(database: &Postgres) -> Result<Replication> {
        let config = database.config();
        let limit = config.connect_timeout;
        tokio::time::timeout(limit, Self::dial(database))
            .await
            .map_err(|_| {
                Error::new(
                    code::SERVER_UNREACHABLE,
                    format!("PostgreSQL did not answer within {} s", limit.as_secs()),
                )
                .hint("check host, port and firewall, or raise connect_timeout")
            })?
            .map_err(|e| e.at("server", config.server()))
    }

    async fn dial(database: &Postgres) -> Result<Replication> {
        let config = database.config();
        if config.is_socket() || config.sslmode == SslMode::Disable {
            return Self::attempt(database, false).await;
        }
        match Self::attempt(database, true).await {
            Err(e) if config.sslmode == SslMode::Prefer && matches!(e.code().id, "ST-NET-004" | "ST-AUT-001") => {
                Self::attempt(database, false).await.map_err(|_| e)
            }
            other => other,
        }
    }

    async fn attempt(database: &Postgres, encrypt: bool) -> Result<Replication> {
        let config = database.config();
        let socket = Self::socket(database, encrypt).await?;
        let mut link = Replication {
            socket,
            input: BytesMut::with_capacity(READ),
            server: config.server(),
        };
        link.start(config).await?;
        Ok(link)
    }

    async fn socket(database: &Postgres, encrypt: bool) -> Result<Box<dyn Socket>> {
        let config = database.config();
        let unreachable = |e: io::Error| {
            Error::new(
                code::SERVER_UNREACHABLE,
                format!("connecting to PostgreSQL failed: {e}"),
            )
            .hint("check host and port, and that the server runs and listens there")
        };
        if config.is_socket() {
            let path = format!("{}/.s.PGSQL.{}", config.host, config.port);
            return Ok(Box::new(UnixStream::connect(path).await.map_err(unreachable)?));
        }
        let mut plain = TcpStream::connect((config.host.as_str(), config.port))
            .await
            .map_err(unreachable)?;
        plain.set_nodelay(true).map_err(unreachable)?;
        let Some(mut connector) = database.tls().filter(|_| encrypt) else {
            return Ok(Box::new(plain));
        };
        let offered = tls::is_offered(&mut plain).await.map_err(lost)?;
        let failed = |why: String| {
            Error::new(
                code::TLS_FAILED,
                format!("encrypting the replication connection failed: {why}"),
            )
            .hint(
                "check sslmode and sslrootcert against the server's certificate (openssl s_client -starttls postgres)",
            )
        };
        if !offered {
            if config.sslmode == SslMode::Prefer {
                return Ok(Box::new(plain));
            }
            return Err(failed("the server does not support it".into()));
        }
        let connect = <_ as MakeTlsConnect<TcpStream>>::make_tls_connect(&mut connector, &config.host)
            .map_err(|e| failed(e.to_string()))?;
        Ok(Box::new(
            connect.connect(plain).await.map_err(|e| failed(e.to_string()))?,
        ))
    }

    async fn start(&mut self, config: &PostgresConfig) -> Result<()> {
        let parameters = [
            ("user", config.user.as_str()),
            ("database", &config.database),
            ("replication", "database"),
            ("application_name", &config.application_name),
            ("client_encoding", "UTF8"),
            ("DateStyle", "ISO, YMD"),
            ("IntervalStyle", "postgres"),
            ("TimeZone", "UTC"),
            ("extra_float_digits", "1"),
            ("bytea_output", "hex"),
            ("xmlbinary", "base64"),
            ("lc_monetary", "C"),
            ("search_path", ""),
            ("statement_timeout", "0"),
            ("idle_in_transaction_session_timeout", "0"),
        ];
        let mut out = BytesMut::new();
        frontend::startup_message(parameters, &mut out).map_err(lost)?;
        self.send(&out).await?;
        self.log_in(config).await?;
        loop {
            match self.message(CONNECTING).await? {
                (b'Z', _) => return Ok(()),
                (b'K' | b'S' | b'N', _) => {}
                _ => return Err(unexpected(CONNECTING)),
            }
        }
    }

    async fn log_in(&mut self, config: &PostgresConfig) -> Result<()> {
        let refused = |why: &str| {
            Error::new(code::AUTH_FAILED, format!("{CONNECTING} failed: {why}"))
                .hint("check user and password of this datastore")
        };
        let password = || {
            let given = config.password.as_deref().map(str::as_bytes);
            given.ok_or_else(|| refused("the server asks for a password and none is configured"))
        };
        let mut out = BytesMut::new();
        match self.authentication().await? {
            (0, _) => return Ok(()),
            (3, _) => {
                frontend::password_message(password()?, &mut out).map_err(lost)?;
                self.send(&out).await?;
            }
            (5, salt) => {
                let salt = salt.first_chunk().ok_or_else(|| unexpected(CONNECTING))?;
                let hash = md5_hash(config.user.as_bytes(), password()?, *salt);
                frontend::password_message(hash.as_bytes(), &mut out).map_err(lost)?;
                self.send(&out).await?;
            }
            (10, mechanisms) => {
                if !mechanisms.split(|b| *b == 0).any(|m| m == SCRAM_SHA_256.as_bytes()) {
                    return Err(refused("the server offers no way to log in that is known here"));
                }
                let mut scram = ScramSha256::new(password()?, ChannelBinding::unsupported());
                frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), &mut out).map_err(lost)?;
                self.send(&out).await?;
                let broken = |_: io::Error| refused("the server's answer to SCRAM is not right");
                let (11, challenge) = self.authentication().await? else {
                    return Err(unexpected(CONNECTING));
                };
                scram.update(&challenge).map_err(broken)?;
                out.clear();
                frontend::sasl_response(scram.message(), &mut out).map_err(lost)?;
                self.send(&out).await?;
                let (12, proof) = self.authentication().await? else {
                    return Err(unexpected(CONNECTING));
                };
                scram.finish(&proof).map_err(broken)?;
            }
            _ => return Err(refused("the server asks for a way to log in that is not known here")),
        }
        match self.authentication().await? {
            (0, _) => Ok(()),
            _ => Err(unexpected(CONNECTING)),
        }
    }

    /// What the server asks for next: a number and what belongs to it.
    async fn authentication(&mut self) -> Result<(u32, Bytes)> {
        match self.message(CONNECTING).await? {
            (b'R', mut body) if body.len() >= 4 => Ok((body.get_u32(), body)),
            _ => Err(unexpected(CONNECTING)),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.write_all(bytes).await.map_err(lost)?;
        self.socket.flush().await.map_err(lost)
    }

    /// Waits for more input. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<()> {
        // What was taken out still holds its block: a server that sends little at a time must not get one per read.
        if self.input.capacity() - self.input.len() < READ / 4 {
            self.input.reserve(READ);
        }
        match self.socket.read_buf(&mut self.input).await.map_err(lost)? {
            0 => Err(
                Error::new(code::CONNECTION_LOST, "the server closed the replication connection")
                    .at("server", &self.server),
            ),
            _ => Ok(()),
        }
    }

    /// The next message outside a stream: its tag and body. The server's error is ours.
    async fn message(&mut self, what: &str) -> Result<(u8, Bytes)> {
        loop {
            match self.take()? {
                Some((b'E', body)) => return Err(answer(&body, what).at("server", &self.server)),
                Some(message) => return Ok(message),
                None => self.fill().await?,
            }
        }
    }

    /// A whole message from the input, if there is one.
    fn take(&mut self) -> Result<Option<(u8, Bytes)>> {
        let Some(end) = self.frame_end(0)? else { return Ok(None) };
        let mut frame = self.input.split_to(end).freeze();
        let tag = frame.get_u8();
        frame.advance(4);
        Ok(Some((tag, frame)))
    }

    /// The rows of a simple query or replication command.
    pub(super) async fn query(&mut self, sql: &str, what: &str) -> Result<Vec<Vec<Option<String>>>> {
        let server = self.server.clone();
        in_time(what, &server, self.answered(sql, what)).await
    }

    async fn answered(&mut self, sql: &str, what: &str) -> Result<Vec<Vec<Option<String>>>> {
        let mut out = BytesMut::new();
        frontend::query(sql, &mut out).map_err(lost)?;
        self.send(&out).await?;
        let mut rows = Vec::new();
        loop {
            match self.message(what).await? {
                (b'D', body) => rows.push(cells(body).ok_or_else(|| unexpected(what))?),
                (b'Z', _) => return Ok(rows),
                (b'T' | b'C' | b'N' | b'S' | b'I', _) => {}
                _ => return Err(unexpected(what)),
            }
        }
    }

    /// Which cluster this is, and on which timeline.
    pub(super) async fn identify(&mut self) -> Result<System> {
        const WHAT: &str = "identifying the server";
        let rows = self.query("IDENTIFY_SYSTEM", WHAT).await?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(id), Some(timeline), ..]) => Ok(System {
                id: id.clone(),
                timeline: timeline.parse().map_err(|_| unexpected(WHAT))?,
            }),
            _ => Err(unexpected(WHAT)),
        }
    }

    /// Where this timeline left earlier ones: (timeline, the place where it was left).
    pub(super) async fn history(&mut self, timeline: u32) -> Result<Vec<(u32, u64)>> {
        if timeline <= 1 {
            return Ok(Vec::new());
        }
        let rows = self
            .query(
                &format!("TIMELINE_HISTORY {timeline}"),
                "reading the timeline's history",
            )
            .await?;
        let text = rows
            .first()
            .and_then(|r| r.get(1))
            .cloned()
            .flatten()
            .unwrap_or_default();
        let line = |line: &str| {
            let mut words = line.split_whitespace();
            let timeline = words.next()?.parse().ok()?;
            let at: tokio_postgres::types::PgLsn = words.next()?.parse().ok()?;
            Some((timeline, u64::from(at)))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    /// Starts streaming; from here on only [`Self::frames`] and [`Self::status`] are used.
    pub(super) async fn stream(&mut self, command: &str, what: &str) -> Result<()> {
        let server = self.server.clone();
        in_time(what, &server, self.started(command, what)).await
    }

    async fn started(&mut self, command: &str, what: &str) -> Result<()> {
        let mut out = BytesMut::new();
        frontend::query(command, &mut out).map_err(lost)?;
        self.send(&out).await?;
        loop {
            match self.message(what).await? {
                (b'W', _) => return Ok(()),
                (b'N' | b'S', _) => {}
                _ => return Err(unexpected(what)),
            }
        }
    }

    fn frame_end(&self, at: usize) -> Result<Option<usize>> {
        let Some(length) = self.input.get(at + 1..).and_then(|b| b.first_chunk()) else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length < 4 {
            return Err(unexpected("streaming the log"));
        }
        Ok(Some(at + 1 + length).filter(|end| *end <= self.input.len()))
    }

    /// The whole frames at hand. A frame of more than `most` bytes is refused before it is here.
    pub(super) fn frames(&mut self, most: usize) -> Result<Frames> {
        let (mut end, mut last) = (0, 0);
        while self.input.get(end) == Some(&b'd') {
            match self.frame_end(end)? {
                Some(next) => (last, end) = (end, next),
                None => break,
            }
        }
        if end > 0 {
            // The server sends each message of a transaction by itself, and whoever takes it has to be woken: a small
            // transaction goes on when it is whole.
            let waits = end < GATHERED && end == self.input.len() && !is_an_end(&self.input[last..end]);
            return Ok(match waits {
                true => Frames::More,
                false => Frames::Data(self.input.split_to(end).freeze()),
            });
        }
        if self.input.first() == Some(&b'd')
            && let Some(length) = self.input.get(1..).and_then(|b| b.first_chunk())
        {
            let length = u32::from_be_bytes(*length) as usize;
            if length > most {
                return Err(Error::new(
                    code::ROW_TOO_LARGE,
                    format!("a change in the log has {length} bytes, the limit is {most}"),
                )
                .hint("raise max_row_bytes; nothing was lost: the log is read from the same place again"));
            }
            self.input.reserve(length.saturating_sub(self.input.len()) + 1);
            return Ok(Frames::More);
        }
        if self.input.is_empty() {
            return Ok(Frames::More);
        }
        match self.take()? {
            None => Ok(Frames::More),
            Some((b'E', body)) => Err(answer(&body, "streaming the log").at("server", &self.server)),
            Some((b'N' | b'S', _)) => self.frames(most),
            Some((b'c' | b'C' | b'Z', _)) => Ok(Frames::End),
            Some(_) => Err(unexpected("streaming the log")),
        }
    }

    /// Tells the server how far we are; `flushed` is what it may forget.
    pub(super) async fn status(&mut self, received: u64, flushed: u64, now: i64, reply: bool) -> Result<()> {
        let mut frame = [0u8; 39];
        frame[0] = b'd';
        frame[1..5].copy_from_slice(&38u32.to_be_bytes());
        frame[5] = b'r';
        frame[6..14].copy_from_slice(&received.max(flushed).to_be_bytes());
        frame[14..22].copy_from_slice(&flushed.to_be_bytes());
        frame[22..30].copy_from_slice(&flushed.to_be_bytes());
        frame[30..38].copy_from_slice(&now.to_be_bytes());
        frame[38] = u8::from(reply);
        self.send(&frame).await
    }

    /// Ends a stream in order, so that the slot is free at once. Waits for the server, but not for long.
    pub(super) async fn end(mut self, limit: Duration) {
        let mut out = BytesMut::new();
        frontend::copy_done(&mut out);
        frontend::terminate(&mut out);
        let farewell = async {
            self.send(&out).await?;
            loop {
                self.input.clear();
                self.fill().await?;
            }
            #[allow(unreachable_code, reason = "the block's type")]
            Ok::<(), Error>(())
        };
        let _ = tokio::time::timeout(limit, farewell).await;
    }
}

/// The cells of a row.
fn cells(mut body: Bytes) -> Option<Vec<Option<String>>> {
    let count = body.try_get_u16().ok()?;
    (0..count)
        .map(|_| match usize::try_from(body.try_get_i32().ok()?) {
            Err(_) => Some(None),
            Ok(n) if n <= body.len() => Some(Some(String::from_utf8_lossy(&body.split_to(n)).into_owned())),
            Ok(_) => None,
        })
        .collect()
}

/// A server's error: its fields are a letter and a text each.
fn answer(body: &[u8], what: &str) -> Error {
    let field = |letter: u8| {
        let found = body.split(|b| *b == 0).find(|f| f.first() == Some(&letter))?;
        Some(String::from_utf8_lossy(&found[1..]).into_owned())
    };
    server_error(&field(b'C').unwrap_or_default(), &field(b'M').unwrap_or_default(), what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_small_transaction_comes_whole() {
        let change = |tag: u8, size: usize| {
            let mut frame = vec![b'd'];
            frame.extend((size as u32 + 30).to_be_bytes());
            frame.push(b'w');
            frame.extend([0; 24]);
            frame.push(tag);
            frame.extend(vec![7; size]);
            frame
        };
        let keepalive = [b"d\x00\x00\x00\x16k".as_slice(), &[0; 17]].concat();
        let (ours, mut server) = tokio::io::duplex(1 << 20);
        let mut link = Replication {
            socket: Box::new(ours),
            input: BytesMut::new(),
            server: "a test".into(),
        };
        let mut comes = async |frame: &[u8]| {
            server.write_all(frame).await.unwrap();
            link.fill().await.unwrap();
            match link.frames(1 << 20).unwrap() {
                Frames::Data(bytes) => bytes.len(),
                Frames::More => 0,
                Frames::End => panic!("nothing ended"),
            }
        };
        let (begin, row, commit) = (change(b'B', 20), change(b'I', 40), change(b'C', 25));
        assert_eq!(comes(&begin).await, 0);
        assert_eq!(comes(&row).await, 0);
        assert_eq!(comes(&commit).await, begin.len() + row.len() + commit.len());
        // What stands outside of a transaction, or says that the server is well, keeps nobody waiting.
        let message = change(b'M', 9);
        assert_eq!(comes(&message).await, message.len());
        assert_eq!(comes(&keepalive).await, keepalive.len());
        assert_eq!(comes(&begin).await, 0);
        assert_eq!(comes(&keepalive).await, begin.len() + keepalive.len());
        // A large one comes as it comes, and a part of a row lets go what is before it.
        let large = change(b'I', GATHERED);
        assert_eq!(comes(&large).await, large.len());
        assert_eq!(comes(&begin).await, 0);
        assert_eq!(comes(&large[..9]).await, begin.len());
    }

    #[tokio::test]
    async fn frames_that_come_one_by_one_share_their_memory() {
        let (ours, mut server) = tokio::io::duplex(64);
        let mut link = Replication {
            socket: Box::new(ours),
            input: BytesMut::new(),
            server: "a test".into(),
        };
        let frame = [b"d\x00\x00\x00\x34".as_slice(), &[7; 48]].concat();
        let mut held: Vec<Bytes> = Vec::new();
        for _ in 0..2_000 {
            server.write_all(&frame).await.unwrap();
            let bytes = loop {
                match link.frames(1 << 20).unwrap() {
                    Frames::Data(bytes) => break bytes,
                    Frames::More => link.fill().await.unwrap(),
                    Frames::End => panic!("nothing ended"),
                }
            };
            assert_eq!(bytes, frame);
            held.push(bytes);
        }
        let end = |b: &Bytes| b.as_ptr() as usize + b.len();
        let blocks = held.windows(2).filter(|w| end(&w[0]) != w[1].as_ptr() as usize).count();
        assert!(
            blocks < 5,
            "{} KiB of frames lie in {blocks} blocks",
            held.len() * frame.len() / 1024
        );
    }
}
