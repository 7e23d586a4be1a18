//! How the log comes here: streamed, or (a backlog, much faster) peeked by SQL. Either way one task reads it into a queue
//! of bounded bytes, so that keep-alives and feedback go on while a sink is slow.
//!
//! Streaming spends the server's time message by message; a peek decodes a whole backlog at once, but must be confirmed
//! before the next one. [`Feed`] begins with the one that suits the backlog, and changes between them by itself.

use super::super::client::{Connection, Postgres};
use super::super::copy::{self, Found, Frame};
use super::super::sql::{ident, literal};
use super::client::{Frames, Replication};
use super::pgoutput::Lsn;
use super::status::Steering;
use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_postgres::types::PgLsn;
use tokio_util::sync::CancellationToken;

/// Tuples of a peek are passed on in pieces of about this size.
const PIECE: usize = 256 << 10;

/// A server that answered none of so many calls in a row is gone.
const PATIENCE: u32 = 12;

/// Whoever had no room for a peek may have it after so long.
const ROOM_AGAIN: Duration = Duration::from_secs(600);

/// How long the server may take to let a slot go.
const FAREWELL: Duration = Duration::from_secs(5);

/// Where PostgreSQL's microseconds begin, in ours.
pub(super) const EPOCH: i64 = super::super::decode::EPOCH_MICROS;

/// What is read, and how.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) database: Postgres,
    pub(super) slot: String,
    pub(super) publication: String,
    /// Whether values come as types send them, not as they print them.
    pub(super) binary: bool,
    /// Whether messages can be asked for (14+).
    pub(super) messages: bool,
    /// A longer backlog is peeked; `None` always streams.
    pub(super) catch_up_bytes: Option<u64>,
    /// Changes per peek.
    pub(super) peek_changes: u32,
    pub(super) queue_bytes: usize,
    pub(super) max_row_bytes: usize,
    pub(super) status_interval: Duration,
    /// How often a stream looks whether it is so far behind that peeking is better.
    pub(super) lag_check: Duration,
    /// Who is told of peeks.
    pub(super) steering: Arc<Steering>,
}

impl Route {
    /// The plugin's options, as name and value.
    fn options(&self) -> Vec<(&'static str, String)> {
        let mut all = vec![
            ("proto_version", "1".to_string()),
            ("publication_names", ident(&self.publication)),
        ];
        if self.binary {
            all.push(("binary", "true".into()));
        }
        if self.messages {
            all.push(("messages", "true".into()));
        }
        all
    }

    fn start_replication(&self, from: Lsn) -> String {
        // The replication grammar knows no backslash escapes.
        let quoted = |v: &str| format!("'{}'", v.replace('\'', "''"));
        let options: Vec<String> = self
            .options()
            .iter()
            .map(|(k, v)| format!("{} {}", ident(k), quoted(v)))
            .collect();
        format!(
            "START_REPLICATION SLOT {} LOGICAL {} ({})",
            ident(&self.slot),
            PgLsn::from(from),
            options.join(", ")
        )
    }

    fn peek(&self) -> Result<String> {
        let mut arguments = vec![literal(&self.slot)?, "NULL".into(), self.peek_changes.to_string()];
        for (k, v) in self.options() {
            arguments.push(literal(k)?);
            arguments.push(literal(&v)?);
        }
        Ok(format!(
            "COPY (SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes({})) TO STDOUT (FORMAT binary)",
            arguments.join(", ")
        ))
    }
}

/// One thing that the log says.
#[derive(Debug, PartialEq)]
pub(super) enum Wal<'a> {
    /// A message of the plugin.
    Change(&'a [u8]),
    /// Every transaction that committed before this place has been sent.
    Reached(Lsn),
}

/// A part of the log, and the room it takes in the queue.
#[derive(Debug)]
pub(super) struct Piece {
    form: Form,
    bytes: Bytes,
    #[allow(dead_code, reason = "held for its drop")]
    room: Option<OwnedSemaphorePermit>,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// CopyData frames of a stream.
    Frames,
    /// Tuples of a COPY, one column.
    Tuples,
    /// Nothing more up to here.
    Reached(Lsn),
    Used,
}

fn broken() -> Error {
    Error::new(
        code::SERVER_ERROR,
        "the replication stream holds a frame that is not known",
    )
}

impl Piece {
    /// What comes next and how many bytes it takes; `None` at the piece's end.
    pub(super) fn front(&self) -> Result<Option<(Wal<'_>, usize)>> {
        match self.form {
            Form::Used => Ok(None),
            Form::Reached(lsn) => Ok(Some((Wal::Reached(lsn), 0))),
            _ if self.bytes.is_empty() => Ok(None),
            Form::Frames => {
                let (head, rest) = self.bytes.split_first_chunk::<5>().ok_or_else(broken)?;
                let size = 1 + u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                let body = size.checked_sub(5).and_then(|n| rest.get(..n)).ok_or_else(broken)?;
                let wal = match body.first() {
                    Some(b'w') if body.len() >= 25 => Wal::Change(&body[25..]),
                    Some(b'k') if body.len() == 18 => Wal::Reached(end_of(body)),
                    _ => return Err(broken()),
                };
                Ok(Some((wal, size)))
            }
            Form::Tuples => {
                let Found::Tuple(size) = Frame::bare(&self.bytes).next(&self.bytes)? else {
                    return Err(broken());
                };
                match copy::fields(&self.bytes[..size]).next() {
                    Some(Some(data)) => Ok(Some((Wal::Change(data), size))),
                    _ => Err(broken()),
                }
            }
        }
    }

    /// Goes past what [`Piece::front`] gave.
    pub(super) fn advance(&mut self, size: usize) {
        match self.form {
            Form::Reached(_) => self.form = Form::Used,
            _ => self.bytes.advance(size),
        }
    }
}

/// The place in a keep-alive.
fn end_of(keepalive: &[u8]) -> Lsn {
    keepalive
        .get(1..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_be_bytes(*b))
}

/// The log as it comes. Dropping it ends the stream and frees the slot.
#[derive(Debug)]
pub(super) struct Feed {
    pieces: mpsc::UnboundedReceiver<Result<Piece>>,
    confirmed: watch::Sender<Lsn>,
    poke: Arc<Notify>,
    end: CancellationToken,
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

impl Feed {
    /// Reads from a place on, over a connection that is there already.
    pub(super) fn start(route: Route, link: Replication, from: Lsn, peek_first: bool) -> Feed {
        let (to, pieces) = mpsc::unbounded_channel();
        let (confirmed, receiver) = watch::channel(from);
        let (poke, end) = (Arc::new(Notify::new()), CancellationToken::new());
        let units = (route.queue_bytes >> 10).max(64) as u32;
        let line = Line {
            to,
            room: Arc::new(Semaphore::new(units as usize)),
            units,
            confirmed: receiver,
            poke: poke.clone(),
            end: end.clone(),
            sent: from,
        };
        tokio::spawn(drive(route, line, link, peek_first));
        Feed {
            pieces,
            confirmed,
            poke,
            end,
        }
    }

    /// The next part of the log. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Piece> {
        self.pieces
            .recv()
            .await
            .unwrap_or_else(|| Err(Error::new(code::CONNECTION_LOST, "the log's reader ended")))
    }

    /// Whether the next part is there already.
    pub(super) fn has_more(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// The log may be forgotten up to here.
    pub(super) fn confirm(&self, lsn: Lsn) {
        self.confirmed.send_if_modified(|old| {
            let newer = lsn > *old;
            *old = (*old).max(lsn);
            newer
        });
    }

    /// Asks how far the server is, for a [`Wal::Reached`] soon.
    pub(super) fn poke(&self) {
        self.poke.notify_one();
    }
}

/// A way in which the log comes here.
#[async_trait]
trait Transport: Send {
    /// Sends what the log says after `line.sent`, until another way is better or the line is ended.
    async fn run(&mut self, line: &mut Line) -> Result<Next>;
}

enum Next {
    Stream,
    /// Stream, because the server has no room to peek at this backlog.
    StreamOn,
    Peek,
    Over,
}

/// The task's end of a [`Feed`].
struct Line {
    to: mpsc::UnboundedSender<Result<Piece>>,
    room: Arc<Semaphore>,
    units: u32,
    confirmed: watch::Receiver<Lsn>,
    poke: Arc<Notify>,
    end: CancellationToken,
    /// The end of the last transaction sent.
    sent: Lsn,
}

impl Line {
    /// Waits for room in the queue; one piece larger than all of it passes alone.
    fn room(&self, bytes: usize) -> impl Future<Output = Option<OwnedSemaphorePermit>> + Send + use<> {
        let units = (bytes.div_ceil(1024) as u32).clamp(1, self.units);
        let room = self.room.clone();
        async move { room.acquire_many_owned(units).await.ok() }
    }

    fn send(&self, form: Form, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        let _ = self.to.send(Ok(Piece { form, bytes, room }));
    }
}

async fn drive(route: Route, mut line: Line, link: Replication, peek_first: bool) {
    let mut first = Some(link);
    let (mut peeking, mut no_room) = (peek_first, None);
    loop {
        let next = if peeking {
            first = None;
            Peeking { route: route.clone() }.run(&mut line).await
        } else {
            let mut streaming = Streaming::new(route.clone(), first.take(), no_room.take());
            let next = streaming.run(&mut line).await;
            if let (Ok(_), Some(link)) = (&next, streaming.link) {
                link.end(FAREWELL).await;
            }
            next
        };
        match next {
            Ok(Next::Stream) => peeking = false,
            Ok(Next::StreamOn) => (peeking, no_room) = (false, Some(Instant::now())),
            Ok(Next::Peek) => peeking = true,
            Ok(Next::Over) => return,
            Err(e) => {
                let _ = line.to.send(Err(e));
                return;
            }
        }
    }
}

/// What may interrupt a stream.
enum Call {
    Tick,
    Confirmed,
    Poked,
    End,
}

struct Streaming {
    route: Route,
    link: Option<Replication>,
    received: Lsn,
    /// Whether the last change sent was a commit.
    between: bool,
    checked: Instant,
    /// When the server was last heard of.
    heard: Instant,
    /// When the server had no room to peek at the backlog that is streamed. One that comes later, or after a while, is
    /// tried again.
    no_room: Option<Instant>,
}

impl Streaming {
    fn new(route: Route, link: Option<Replication>, no_room: Option<Instant>) -> Self {
        Streaming {
            no_room,
            route,
            link,
            received: 0,
            between: true,
            checked: Instant::now(),
            heard: Instant::now(),
        }
    }

    /// Notes where the frames lead; says whether the server wants an answer.
    fn scan(&mut self, frames: &[u8], line: &mut Line) -> bool {
        let mut rest = frames;
        let mut answer = false;
        while let Some((head, body)) = rest.split_first_chunk::<5>() {
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let body_end = length.saturating_sub(4).min(body.len());
            let frame = &body[..body_end];
            match frame.first() {
                Some(b'w') => {
                    self.received = self.received.max(end_of(frame));
                    match frame.get(25) {
                        Some(b'C') => {
                            if let Some(end) = frame.get(35..).and_then(|b| b.first_chunk()) {
                                line.sent = line.sent.max(u64::from_be_bytes(*end));
                            }
                            self.between = true;
                        }
                        Some(b'B') => self.between = false,
                        _ => {}
                    }
                }
                Some(b'k') => {
                    self.received = self.received.max(end_of(frame));
                    answer |= frame.last() == Some(&1);
                }
                _ => {}
            }
            rest = &body[body_end..];
        }
        answer
    }

    async fn status(&mut self, line: &Line, reply: bool) -> Result<()> {
        let flushed = *line.confirmed.borrow();
        let Some(link) = &mut self.link else { return Ok(()) };
        link.status(self.received, flushed, now(), reply).await
    }

    /// Whether the backlog is so long that peeking is better.
    async fn is_behind(&mut self, line: &Line) -> Result<bool> {
        let Some(limit) = self.route.catch_up_bytes else {
            return Ok(false);
        };
        // A full queue says that we are the slow ones.
        if !self.between || line.room.available_permits() == 0 || self.checked.elapsed() < self.route.lag_check {
            return Ok(false);
        }
        self.checked = Instant::now();
        let connection = self.route.database.connect().await?;
        let end = end_of_log(&connection).await?;
        connection.recycle();
        let behind = end.saturating_sub(line.sent.max(self.received)) > limit;
        self.no_room = self.no_room.filter(|since| behind && since.elapsed() < ROOM_AGAIN);
        Ok(behind && self.no_room.is_none())
    }
}

#[async_trait]
impl Transport for Streaming {
    async fn run(&mut self, line: &mut Line) -> Result<Next> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => Replication::connect(&self.route.database).await?,
        };
        let what = format!("streaming from slot {}", self.route.slot);
        link.stream(&self.route.start_replication(line.sent), &what).await?;
        self.link = Some(link);
        let mut tick = interval(self.route.status_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (poke, end, mut confirmed) = (line.poke.clone(), line.end.clone(), line.confirmed.clone());
        let call = async |tick: &mut tokio::time::Interval, confirmed: &mut watch::Receiver<Lsn>| {
            tokio::select! {
                biased;
                () = end.cancelled() => Call::End,
                _ = tick.tick() => Call::Tick,
                () = poke.notified() => Call::Poked,
                changed = confirmed.changed() => if changed.is_ok() { Call::Confirmed } else { Call::End },
            }
        };
        loop {
            let Some(link) = &mut self.link else {
                return Ok(Next::Over);
            };
            let interrupted = match link.frames(self.route.max_row_bytes)? {
                Frames::End => {
                    return Err(Error::new(
                        code::CONNECTION_LOST,
                        "the server ended the replication stream",
                    ));
                }
                Frames::Data(bytes) => {
                    let answer = self.scan(&bytes, line);
                    let mut room = std::pin::pin!(line.room(bytes.len()));
                    let permit = loop {
                        let calls = tokio::select! {
                            biased;
                            permit = &mut room => break permit,
                            calls = call(&mut tick, &mut confirmed) => calls,
                        };
                        match calls {
                            Call::End => return Ok(Next::Over),
                            _ => self.status(line, false).await?,
                        }
                    };
                    self.heard = Instant::now();
                    line.send(Form::Frames, bytes, permit);
                    if answer {
                        self.status(line, false).await?;
                    }
                    continue;
                }
                Frames::More => tokio::select! {
                    filled = link.fill() => {
                        filled?;
                        self.heard = Instant::now();
                        continue;
                    }
                    calls = call(&mut tick, &mut confirmed) => calls,
                },
            };
            match interrupted {
                Call::End => {
                    self.status(line, false).await?;
                    return Ok(Next::Over);
                }
                Call::Confirmed => self.status(line, false).await?,
                Call::Poked => self.status(line, true).await?,
                Call::Tick if self.heard.elapsed() > self.route.status_interval * PATIENCE => {
                    return Err(Error::new(
                        code::CONNECTION_LOST,
                        "the server does not answer on the replication connection",
                    ));
                }
                Call::Tick => {
                    self.status(line, true).await?;
                    if self.is_behind(line).await? {
                        return Ok(Next::Peek);
                    }
                }
            }
        }
    }
}

struct Peeking {
    route: Route,
}

#[async_trait]
impl Transport for Peeking {
    async fn run(&mut self, line: &mut Line) -> Result<Next> {
        let connection = self.route.database.connect().await?;
        connection.working(true);
        loop {
            // What is peeked again after the slot moved is only what is new.
            let sent = line.sent;
            tokio::select! {
                done = line.confirmed.wait_for(|c| *c >= sent) => if done.is_err() { return Ok(Next::Over) },
                () = line.end.cancelled() => return Ok(Next::Over),
            }
            advance(&connection, &self.route.slot, sent).await?;
            let end = end_of_log(&connection).await?;
            let over = line.end.clone();
            self.route.steering.peeks();
            let peeked = tokio::select! {
                peeked = self.peek(&connection, line) => peeked?,
                () = over.cancelled() => return Ok(Next::Over),
            };
            let Some(peeked) = peeked else {
                return Ok(Next::StreamOn);
            };
            let whole = peeked < u64::from(self.route.peek_changes);
            if whole {
                line.send(Form::Reached(end), Bytes::new(), None);
            }
            let behind = end_of_log(&connection).await?.saturating_sub(end);
            if whole && behind < self.route.catch_up_bytes.unwrap_or(u64::MAX) {
                connection.working(false);
                connection.recycle();
                return Ok(Next::Stream);
            }
        }
    }
}

impl Peeking {
    /// Sends a part of the backlog, which ends with a transaction; says how many messages it had. `None` where the server
    /// lacks the room to peek: it keeps the whole part in a temporary file before it sends the first message.
    async fn peek(&self, connection: &Connection, line: &mut Line) -> Result<Option<u64>> {
        let what = format!("peeking into slot {}", self.route.slot);
        let stream = connection
            .copy_out(&self.route.peek()?)
            .await
            .map_err(|e| connection.error(e, &what))?;
        let mut stream = std::pin::pin!(stream);
        let (mut frame, mut input, mut tuples) = (Frame::new(1), BytesMut::new(), BytesMut::new());
        let mut count = 0;
        while let Some(bytes) = stream.next().await {
            match bytes {
                Ok(bytes) => input.extend_from_slice(&bytes),
                Err(e) if count == 0 && lacks_room(&e) => {
                    let e = connection.error(e, &what);
                    tracing::warn!(error = %e, "the backlog cannot be peeked and is streamed");
                    return Ok(None);
                }
                Err(e) => return Err(connection.error(e, &what)),
            }
            loop {
                match frame.next(&input)? {
                    Found::More => break,
                    Found::Skip(n) => input.advance(n),
                    Found::Tuple(n) => {
                        if n > self.route.max_row_bytes {
                            return Err(Error::new(
                                code::ROW_TOO_LARGE,
                                format!(
                                    "a change in the log has {n} bytes, the limit is {}",
                                    self.route.max_row_bytes
                                ),
                            )
                            .hint("raise max_row_bytes; nothing was lost: the log is read from the same place again"));
                        }
                        let tuple = &input[..n];
                        if let Some(Some(data)) = copy::fields(tuple).next()
                            && data.first() == Some(&b'C')
                            && let Some(end) = data.get(10..).and_then(|b| b.first_chunk())
                        {
                            line.sent = line.sent.max(u64::from_be_bytes(*end));
                        }
                        tuples.extend_from_slice(tuple);
                        input.advance(n);
                        count += 1;
                    }
                }
            }
            if tuples.len() >= PIECE {
                let room = line.room(tuples.len()).await;
                line.send(Form::Tuples, tuples.split().freeze(), room);
            }
        }
        if !frame.ended() {
            return Err(Error::new(
                code::CONNECTION_LOST,
                format!("{what} failed: it ended in the middle"),
            ));
        }
        if !tuples.is_empty() {
            let room = line.room(tuples.len()).await;
            line.send(Form::Tuples, tuples.freeze(), room);
        }
        Ok(Some(count))
    }
}

/// Whether the server ran out of something: `temp_file_limit`, disk, memory.
fn lacks_room(e: &tokio_postgres::Error) -> bool {
    e.code().is_some_and(|code| code.code().starts_with("53"))
}

/// Lets the server forget the log up to a place.
async fn advance(connection: &Connection, slot: &str, to: Lsn) -> Result<()> {
    connection
        .query(
            "SELECT pg_catalog.pg_replication_slot_advance(slot_name, $2) FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = $1::text AND confirmed_flush_lsn < $2",
            &[&slot, &PgLsn::from(to)],
        )
        .await
        .map(|_| ())
        .map_err(|e| connection.error(e, "advancing the slot"))
}

/// Up to where the log is written, on a primary or a standby.
pub(super) async fn end_of_log(connection: &Connection) -> Result<Lsn> {
    let row = connection
        .query_one(
            "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
             ELSE pg_catalog.pg_current_wal_flush_lsn() END",
            &[],
        )
        .await
        .map_err(|e| connection.error(e, "asking for the end of the log"))?;
    Ok(row.get::<_, PgLsn>(0).into())
}

/// Now, microseconds since 2000-01-01 UTC.
fn now() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    since.as_micros() as i64 - EPOCH
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: ProptestConfig::default().cases.max(1000),
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Whatever stands in a piece, each step takes something of it, or is its end.
        #[test]
        fn pieces_of_any_bytes_never_panic(
            frames in prop::collection::vec(
                (prop_oneof![Just(b'w'), Just(b'k'), any::<u8>()], prop::collection::vec(any::<u8>(), 0..40)), 0..4),
            rest in any::<Vec<u8>>(),
            tuples in any::<bool>(),
        ) {
            let mut bytes = Vec::new();
            for (kind, body) in &frames {
                bytes.push(b'd');
                bytes.extend((body.len() as u32 + 5).to_be_bytes());
                bytes.push(*kind);
                bytes.extend(body);
            }
            bytes.extend(rest);
            let form = if tuples { Form::Tuples } else { Form::Frames };
            let mut piece = Piece { form, bytes: bytes.into(), room: None };
            loop {
                let size = match piece.front() {
                    Ok(Some((_, size))) => size,
                    Ok(None) | Err(_) => break,
                };
                prop_assert!(size > 0 && size <= piece.bytes.len());
                piece.advance(size);
            }
        }
    }
}
