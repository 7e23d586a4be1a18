//! Streams on which the rows of a COPY arrive in large messages.
//!
//! PostgreSQL sends a CopyData message per row, and sends whenever 8 KiB are full. Taken as it comes, that wakes two
//! tasks for every 8 KiB and takes a message apart for every row. Where CopyData messages begin and end means nothing,
//! so here as many as have arrived become one; everything else passes as it is.

use super::tls;
use std::error::Error;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready as try_ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::Socket;
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A joined message is at most this large: what the reader's buffer holds after doubling a few times.
const JOINED: usize = 64 << 10;
/// What is read at once. A larger message passes in pieces.
const BUFFER: usize = 2 * JOINED;
/// What is read at once before the first row: most connections never copy.
const SMALL_BUFFER: usize = 8 << 10;
/// Tag and length.
const HEADER: usize = 5;
const COPY_DATA: u8 = b'd';

/// A stream whose reader sees joined CopyData messages.
pub(super) struct Bulk<S> {
    inner: S,
    /// Bytes `from..to` have arrived and were not handed out.
    buffer: Box<[u8]>,
    from: usize,
    to: usize,
    /// What is left to hand out before the next look at headers …
    message: usize,
    /// … and how much of it before a header that was joined away.
    part: usize,
    ended: bool,
}

/// What stands at the beginning of the bytes.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// So many bytes that pass as they are, perhaps more than have arrived.
    Plain(usize),
    /// Whole CopyData messages with so many bytes of rows in all.
    Rows(usize),
    /// Too little to tell.
    More,
}

/// The tag of a message and its length without the tag, if that is one.
fn header(bytes: &[u8]) -> Option<(u8, Option<usize>)> {
    let head: &[u8; HEADER] = bytes.first_chunk()?;
    let length = i32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    Some((head[0], usize::try_from(length).ok().filter(|l| *l >= 4)))
}

fn look(bytes: &[u8]) -> Next {
    let (mut at, mut rows) = (0, 0);
    while let Some((tag, length)) = bytes.get(at..).and_then(header) {
        let Some(length) = length else {
            // Whoever reads the stream says what is wrong with it.
            at = if rows == 0 { usize::MAX } else { at };
            break;
        };
        let end = at + 1 + length;
        if tag != COPY_DATA || length == 4 || length >= BUFFER {
            if rows > 0 {
                break;
            }
            at = end;
        } else {
            let full = rows > 0 && HEADER + rows + length - 4 > JOINED;
            if (rows == 0 && at > 0) || end > bytes.len() || full {
                break;
            }
            rows += length - 4;
            at = end;
        }
    }
    match (rows, at) {
        (0, 0) => Next::More,
        (0, plain) => Next::Plain(plain),
        (rows, _) => Next::Rows(rows),
    }
}

impl<S: AsyncRead + Unpin> Bulk<S> {
    fn new(inner: S) -> Self {
        Bulk {
            inner,
            buffer: vec![0; SMALL_BUFFER].into(),
            from: 0,
            to: 0,
            message: 0,
            part: 0,
            ended: false,
        }
    }

    fn at_hand(&self) -> usize {
        self.to - self.from
    }

    /// Reads what has arrived behind what is there.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.at_hand() == 0 {
            (self.from, self.to) = (0, 0);
        } else if self.to == self.buffer.len() {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.at_hand());
        }
        let mut space = ReadBuf::new(&mut self.buffer[self.to..]);
        try_ready!(Pin::new(&mut self.inner).poll_read(cx, &mut space))?;
        let n = space.filled().len();
        self.ended = n == 0;
        self.to += n;
        Poll::Ready(Ok(()))
    }

    /// Finds out what comes next, once as much has arrived as is there to be had.
    fn poll_next_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (mut wanted, mut waits) = (JOINED, false);
        loop {
            while self.at_hand() < wanted.min(self.buffer.len()) && !self.ended && !waits {
                match self.poll_fill(cx) {
                    Poll::Ready(filled) => filled?,
                    Poll::Pending => waits = true,
                }
            }
            match look(&self.buffer[self.from..self.to]) {
                Next::Plain(bytes) => (self.message, self.part) = (bytes, bytes),
                Next::Rows(bytes) => {
                    let first = header(&self.buffer[self.from..]).and_then(|(_, length)| length);
                    let length = (4 + bytes) as u32;
                    self.buffer[self.from + 1..self.from + HEADER].copy_from_slice(&length.to_be_bytes());
                    (self.message, self.part) = (HEADER + bytes, 1 + first.unwrap_or_default());
                    self.grow();
                }
                Next::More if self.ended => (self.message, self.part) = (self.at_hand(), self.at_hand()),
                Next::More if waits => return Poll::Pending,
                Next::More => {
                    self.grow();
                    wanted = BUFFER;
                    continue;
                }
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn grow(&mut self) {
        if self.buffer.len() < BUFFER {
            let mut larger = vec![0; BUFFER];
            let at_hand = self.at_hand();
            larger[..at_hand].copy_from_slice(&self.buffer[self.from..self.to]);
            self.buffer = larger.into();
            (self.from, self.to) = (0, at_hand);
        }
    }

    /// Hands out what is there of the message.
    fn put(&mut self, out: &mut ReadBuf<'_>) {
        while self.message > 0 && out.remaining() > 0 {
            if self.part == 0 {
                let joined = header(&self.buffer[self.from..]).and_then(|(_, length)| length);
                self.part = joined.unwrap_or_default() - 4;
                self.from += HEADER;
            }
            let n = self.part.min(self.at_hand()).min(out.remaining());
            if n == 0 {
                return;
            }
            out.put_slice(&self.buffer[self.from..self.from + n]);
            self.from += n;
            self.message -= n;
            self.part -= n;
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bulk<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = out.filled().len();
        loop {
            if this.message == 0 {
                try_ready!(this.poll_next_message(cx))?;
            } else if this.at_hand() == 0 && !this.ended {
                try_ready!(this.poll_fill(cx))?;
            }
            this.put(out);
            if out.filled().len() > before || out.remaining() == 0 || this.ended {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bulk<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: TlsStream + Unpin> TlsStream for Bulk<S> {
    fn channel_binding(&self) -> ChannelBinding {
        self.inner.channel_binding()
    }
}

/// The bytes as they travel: encrypted or not.
pub(super) enum Wire {
    Plain(Socket),
    Encrypted(Box<Encrypted>),
}

type Encrypted = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream;

macro_rules! either {
    ($wire:expr, $stream:ident => $then:expr) => {
        match $wire.get_mut() {
            Wire::Plain($stream) => $then,
            Wire::Encrypted($stream) => $then,
        }
    };
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_read(cx, out))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        either!(self, s => Pin::new(s).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        either!(self, s => Pin::new(s).poll_shutdown(cx))
    }
}

impl TlsStream for Wire {
    fn channel_binding(&self) -> ChannelBinding {
        match self {
            Wire::Plain(_) => ChannelBinding::none(),
            Wire::Encrypted(s) => s.channel_binding(),
        }
    }
}

/// How a connection begins. To the driver it is a TLS connector that starts without asking the server
/// (`SslNegotiation::Direct`), because that is where a driver lets one put a stream of one's own on its socket; the
/// server is asked here.
#[derive(Clone)]
pub(super) enum Way {
    Plain,
    Encrypted {
        tls: MakeRustlsConnect,
        /// Goes on without, on the same connection, if the server does not encrypt.
        or_plain: bool,
    },
}

/// The connection ended before the server said whether it encrypts.
#[derive(Debug)]
pub(super) struct Lost(io::Error);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection was lost: {}", self.0)
    }
}

impl Error for Lost {}

/// Begins one connection.
pub(super) enum Handshake {
    Plain,
    Encrypted {
        tls: <MakeRustlsConnect as MakeTlsConnect<Socket>>::TlsConnect,
        or_plain: bool,
    },
}

impl MakeTlsConnect<Socket> for Way {
    type Stream = Bulk<Wire>;
    type TlsConnect = Handshake;
    type Error = <MakeRustlsConnect as MakeTlsConnect<Socket>>::Error;

    fn make_tls_connect(&mut self, domain: &str) -> Result<Handshake, Self::Error> {
        Ok(match self {
            Way::Plain => Handshake::Plain,
            Way::Encrypted { tls, or_plain } => Handshake::Encrypted {
                tls: MakeTlsConnect::<Socket>::make_tls_connect(tls, domain)?,
                or_plain: *or_plain,
            },
        })
    }
}

impl TlsConnect<Socket> for Handshake {
    type Stream = Bulk<Wire>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Bulk<Wire>, Self::Error>> + Send>>;

    fn connect(self, mut socket: Socket) -> Self::Future {
        Box::pin(async move {
            let Handshake::Encrypted { tls: connect, or_plain } = self else {
                return Ok(Bulk::new(Wire::Plain(socket)));
            };
            Ok(Bulk::new(match tls::is_offered(&mut socket).await.map_err(Lost)? {
                true => Wire::Encrypted(Box::new(connect.connect(socket).await?)),
                false if or_plain => Wire::Plain(socket),
                false => return Err("the server does not support TLS".into()),
            }))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use tokio::io::AsyncReadExt;

    /// Gives one piece per read, and nothing between them.
    struct Pieces(VecDeque<Vec<u8>>, bool);

    impl AsyncRead for Pieces {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.1 = !self.1;
            if self.1 {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            if let Some(mut piece) = self.0.pop_front() {
                if piece.len() > out.remaining() {
                    let rest = piece.split_off(out.remaining());
                    self.0.push_front(rest);
                }
                out.put_slice(&piece);
            }
            Poll::Ready(Ok(()))
        }
    }

    fn message(tag: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend((payload.len() as u32 + 4).to_be_bytes());
        out.extend(payload);
        out
    }

    /// Messages, with consecutive CopyData as one, and how many there are in all.
    fn joined(mut bytes: &[u8]) -> (Vec<(u8, Vec<u8>)>, usize) {
        let mut out: Vec<(u8, Vec<u8>)> = Vec::new();
        let mut count = 0;
        while let Some((tag, Some(length))) = header(bytes) {
            let payload = &bytes[HEADER..1 + length];
            match out.last_mut() {
                Some((b'd', rows)) if tag == b'd' => rows.extend(payload),
                _ => out.push((tag, payload.to_vec())),
            }
            bytes = &bytes[1 + length..];
            count += 1;
        }
        assert!(bytes.is_empty(), "the stream ends inside a message");
        (out, count)
    }

    fn through(pieces: Vec<Vec<u8>>) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut out = Vec::new();
            let mut stream = Bulk::new(Pieces(pieces.into(), false));
            stream.read_to_end(&mut out).await.unwrap();
            out
        })
    }

    proptest! {
        /// However the stream is cut into reads, and whatever the sizes, the same messages with the same rows come out.
        #[test]
        fn nothing_but_the_boundaries_of_rows_changes(
            messages in prop::collection::vec(
                (prop::sample::select(b"dddddTNE".to_vec()), prop_oneof![0usize..300, 60_000usize..140_000]), 0..40),
            piece in prop_oneof![1usize..50, 5_000usize..20_000, Just(1usize << 20)],
        ) {
            let mut bytes = Vec::new();
            for (i, (tag, size)) in messages.iter().enumerate() {
                bytes.extend(message(*tag, &vec![i as u8; *size]));
            }
            let piece = piece.max(bytes.len() / 5_000);
            let out = through(bytes.chunks(piece.max(1)).map(<[u8]>::to_vec).collect());
            prop_assert_eq!(joined(&out).0, joined(&bytes).0);
        }

        #[test]
        fn what_is_no_message_passes_as_it_is(bytes in prop::collection::vec(any::<u8>(), 0..50)) {
            let length = i32::from_be_bytes([0xff, 0, 0, 1]).to_be_bytes();
            let broken = [&b"d"[..], &length, &bytes].concat();
            prop_assert_eq!(through(vec![broken.clone()]), broken);
        }
    }

    #[test]
    fn rows_that_have_arrived_are_one_message() {
        let rows: Vec<u8> = (0..1000).flat_map(|i| message(b'd', &[i as u8; 100])).collect();
        let (before, after) = (message(b'H', b"xyz"), message(b'c', b""));
        let out = through(vec![[before, rows, after].concat()]);
        let (messages, count) = joined(&out);
        assert_eq!(messages.iter().map(|m| m.0).collect::<Vec<_>>(), b"Hdc");
        assert_eq!(messages[1].1.len(), 100_000);
        assert!(count < 10, "{count} messages for what fits into two");
    }
}
