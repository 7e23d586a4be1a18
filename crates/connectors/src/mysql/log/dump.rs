//! The connection that the log comes by: we are a replica to the server.

use super::super::client::Mysql;
use super::super::errors::map_error;
use super::gtid::{Gtid, Gtids};
use super::position::{Last, Place};
use super::statements::{Effect, effects};
use futures::StreamExt;
use mysql_async::binlog::EventType;
use mysql_async::binlog::events::{Event, EventData, ExecuteLoadQueryEvent, QueryEvent, RotateEvent};
use mysql_async::{BinlogStream, Error as Wire};
use std::time::Duration;
use synctool_core::error::{Error, Result, code};
use xxhash_rust::xxh3::Xxh3;

/// The server says so often that there is nothing to say, and where its log ends then.
const HEARTBEAT: Duration = Duration::from_millis(250);

/// A server that says nothing for so long is gone.
const SILENCE: Duration = Duration::from_secs(120);

// What MariaDB has beside MySQL's events.
const MARIADB_GTID: u8 = 162;
const MARIADB_COMPRESSED: std::ops::RangeInclusive<u8> = 165..=171;
/// The text of a statement for people, a mark for recovery, the transactions before a file, how a file is encrypted.
const MARIADB_QUIET: [u8; 4] = [160, 161, 163, 164];

/// Events that change no row: they frame files, or prepare what the statement behind them does.
const QUIET: [EventType; 10] = [
    EventType::FORMAT_DESCRIPTION_EVENT,
    EventType::STOP_EVENT,
    EventType::IGNORABLE_EVENT,
    EventType::ROWS_QUERY_EVENT,
    EventType::INTVAR_EVENT,
    EventType::RAND_EVENT,
    EventType::USER_VAR_EVENT,
    EventType::BEGIN_LOAD_QUERY_EVENT,
    EventType::APPEND_BLOCK_EVENT,
    EventType::DELETE_FILE_EVENT,
];

/// A replica may pass over the event.
const IGNORABLE: u16 = 0x80;

// What the flags of a transaction say, and the byte behind them.
const STANDALONE: u8 = 1;
const GROUP_COMMIT: u8 = 2;
const XA: u8 = 64 | 128;
const START_ALTER: u8 = 2;
const ROLLBACK_ALTER: u8 = 8;

/// The log as it comes.
pub(super) struct Dump {
    stream: BinlogStream,
    server: String,
    /// How long the names of the log's files are.
    name: usize,
    /// Whether the server has said yet how its events end: the first of all has a checksum that is taken for its text.
    described: bool,
    /// The first event, which always comes.
    first: Option<Event>,
}

impl std::fmt::Debug for Dump {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dump")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// A transaction of the log, or a statement that is one.
#[derive(Debug, Clone)]
pub(super) struct Group {
    pub(super) gtid: Gtid,
    /// When it was logged, seconds UTC.
    pub(super) second: u32,
    /// One statement follows, and nothing says that it ends.
    pub(super) standalone: bool,
    /// The statement does nothing: an ALTER that is logged in two phases (`binlog_alter_two_phase`) begins, or was undone.
    pub(super) undone: bool,
}

/// What a transaction holds, as a hash: the rows however they are parted into events, and the statements.
#[derive(Default)]
pub(super) struct Content(Xxh3);

impl Content {
    /// Adds an event of the transaction.
    pub(super) fn add(&mut self, event: &Event) -> Result<()> {
        let kind = event.header().event_type_raw();
        let told = kind == EventType::QUERY_EVENT as u8
            || kind == EventType::EXECUTE_LOAD_QUERY_EVENT as u8
            || (EventType::WRITE_ROWS_EVENT_V1 as u8..=EventType::DELETE_ROWS_EVENT_V1 as u8).contains(&kind)
            || (EventType::WRITE_ROWS_EVENT as u8..=EventType::DELETE_ROWS_EVENT as u8).contains(&kind);
        if !told {
            return Ok(());
        }
        match event.read_data().map_err(malformed)? {
            Some(EventData::RowsEvent(rows)) => self.0.update(rows.rows_data()),
            Some(EventData::QueryEvent(query)) => self.0.update(query.query_raw()),
            Some(EventData::ExecuteLoadQueryEvent(load)) => self.0.update(load.query_raw()),
            _ => {}
        }
        Ok(())
    }

    pub(super) fn digest(&self) -> u64 {
        self.0.digest()
    }
}

/// What an event is to us.
pub(super) enum Said {
    /// A transaction begins.
    Begin(Group),
    /// A statement, and the database it was said in.
    Statement {
        effects: Vec<Effect>,
        sql: String,
        schema: String,
    },
    /// The transaction ends, and counts.
    Commit,
    /// It is prepared, and counts later or never.
    Prepared,
    /// A table is described.
    Table,
    /// Rows.
    Rows(Change),
    /// The log goes on in another file, at an offset.
    Rotate(Vec<u8>, u64),
    /// The server knows of changes that are not in its log.
    Incident,
    /// There is nothing more at the moment.
    Waiting,
    /// Nothing that we mind.
    Other,
}

/// What rows are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    Insert,
    Update,
    Delete,
}

impl Dump {
    /// Asks for everything after these transactions. `id` is the number that we are known by, `end` where the log ends.
    pub(super) async fn open(database: &Mysql, id: u32, after: &Gtids, end: &Place) -> Result<Dump> {
        let settings = [
            "SET @mariadb_slave_capability = 4".to_string(),
            format!("SET @slave_connect_state = '{after}'"),
            "SET @slave_gtid_strict_mode = 1".to_string(),
            format!("SET @master_heartbeat_period = {}", HEARTBEAT.as_nanos()),
        ];
        let mut dump = Dump {
            stream: database.binlog(&settings, id).await?,
            server: database.config().server(),
            name: end.file.len(),
            described: false,
            first: None,
        };
        // What is refused is refused now.
        dump.first = Some(dump.next().await?);
        Ok(dump)
    }

    /// The next event. Cancel safe: the stream keeps what it has read.
    pub(super) async fn next(&mut self) -> Result<Event> {
        if let Some(first) = self.first.take() {
            return Ok(first);
        }
        let lost = |why: &str| {
            Error::new(code::CONNECTION_LOST, format!("reading the log failed: {why}"))
                .hint("the log is read again from the last commit")
        };
        let next = tokio::time::timeout(SILENCE, self.stream.next()).await;
        let event = match next {
            Err(_) => Err(lost("the server fell silent")),
            Ok(None) => Err(lost("the server ended it")),
            Ok(Some(event)) => event.map_err(refused),
        };
        let event = event.map_err(|e| e.at("server", &self.server))?;
        self.described |= event.header().event_type_raw() == EventType::FORMAT_DESCRIPTION_EVENT as u8;
        Ok(event)
    }

    /// What an event says that came just now.
    pub(super) fn said(&self, event: &Event) -> Result<Said> {
        let mut said = said(event)?;
        if let Said::Rotate(bytes, _) = &mut said
            && !self.described
        {
            bytes.truncate(self.name);
        }
        Ok(said)
    }

    /// Takes the transaction that was read last once more, and says where it ends. Another one there means another log.
    /// `end` is where the server's log ends.
    pub(super) async fn prove(&mut self, last: &Last, end: &Place) -> Result<Place> {
        let (mut group, mut place): (Option<Group>, _) = (None, Place::default());
        let mut content = Content::default();
        loop {
            let event = self.next().await?;
            let said = self.said(&event)?;
            if let Some(to) = said.rotated() {
                place = to;
            } else if event.header().log_pos() > 0 {
                place.go_to(event.header().log_pos());
            }
            if group.is_some() {
                content.add(&event)?;
            }
            match (&said, &group) {
                (Said::Begin(found), _) => {
                    if found.gtid != last.gtid || found.second != last.second {
                        return Err(Error::new(
                            code::LOG_OTHER_SERVER,
                            format!(
                                "where the transaction {} was read, the server's log has {}{}",
                                last.gtid,
                                found.gtid,
                                match found.gtid == last.gtid {
                                    true => " of another time",
                                    false => "",
                                }
                            ),
                        ));
                    }
                    group = Some(found.clone());
                }
                (said, Some(group)) if said.ends(group) => {
                    if content.digest() != last.content {
                        return Err(Error::new(
                            code::LOG_OTHER_SERVER,
                            format!(
                                "the server's log has another transaction {} than the one that was read",
                                last.gtid
                            ),
                        ));
                    }
                    return Ok(place);
                }
                // A server that is behind the position waits for what is to come, and says so.
                (Said::Waiting, None) if place >= *end => {
                    return Err(Error::new(
                        code::LOG_DIVERGED,
                        format!("the server's log ends before the transaction {}", last.gtid),
                    ));
                }
                _ => {}
            }
        }
    }
}

impl Said {
    /// Where the log goes on.
    pub(super) fn rotated(&self) -> Option<Place> {
        match self {
            Said::Rotate(name, offset) => Some(Place {
                file: String::from_utf8_lossy(name).into_owned(),
                offset: *offset,
            }),
            _ => None,
        }
    }

    /// Whether a transaction is over with this.
    pub(super) fn ends(&self, group: &Group) -> bool {
        match self {
            Said::Commit | Said::Prepared => true,
            Said::Statement { effects, .. } => {
                group.standalone || effects.iter().any(|e| matches!(e, Effect::Commit | Effect::Rollback))
            }
            _ => false,
        }
    }
}

fn malformed(e: std::io::Error) -> Error {
    Error::new(code::SERVER_ERROR, "an event of the log cannot be read").caused_by(e)
}

/// What an event says, as far as it says it itself.
pub(super) fn said(event: &Event) -> Result<Said> {
    let kind = event.header().event_type_raw();
    let is = |ty: EventType| kind == ty as u8;
    if kind == MARIADB_GTID {
        let data = event.data();
        let field = |from: usize, to: usize| {
            let bytes = data
                .get(from..to)
                .ok_or_else(|| Error::new(code::SERVER_ERROR, "a transaction id is cut off"))?;
            Ok::<u64, Error>(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
        };
        let flags = field(12, 13)? as u8;
        return Ok(Said::Begin(Group {
            gtid: Gtid {
                domain: field(8, 12)? as u32,
                server: event.header().server_id(),
                sequence: field(0, 8)?,
            },
            second: event.header().timestamp(),
            standalone: flags & STANDALONE != 0,
            undone: is_undone(data, flags),
        }));
    }
    if MARIADB_COMPRESSED.contains(&kind) {
        return Err(
            Error::new(code::LOG_SETUP, "the log holds compressed events, which are not read")
                .hint("SET GLOBAL log_bin_compress = OFF, and start over: synctool state reset"),
        );
    }
    if is(EventType::INCIDENT_EVENT) {
        return Ok(Said::Incident);
    }
    Ok(match kind {
        _ if is(EventType::ROTATE_EVENT) => {
            let rotate: RotateEvent<'_> = event.read_event().map_err(malformed)?;
            Said::Rotate(rotate.name_raw().to_vec(), rotate.position())
        }
        _ if is(EventType::QUERY_EVENT) => {
            let query: QueryEvent<'_> = event.read_event().map_err(malformed)?;
            statement(query.query().into_owned(), query.schema().into_owned())
        }
        // LOAD DATA that is logged as a statement, behind the events that bring its file.
        _ if is(EventType::EXECUTE_LOAD_QUERY_EVENT) => {
            let load: ExecuteLoadQueryEvent<'_> = event.read_event().map_err(malformed)?;
            statement(load.query().into_owned(), load.schema().into_owned())
        }
        _ if is(EventType::HEARTBEAT_EVENT) => Said::Waiting,
        _ if is(EventType::XID_EVENT) => Said::Commit,
        _ if is(EventType::XA_PREPARE_LOG_EVENT) => Said::Prepared,
        _ if is(EventType::TABLE_MAP_EVENT) => Said::Table,
        _ if is(EventType::WRITE_ROWS_EVENT) || is(EventType::WRITE_ROWS_EVENT_V1) => Said::Rows(Change::Insert),
        _ if is(EventType::UPDATE_ROWS_EVENT) || is(EventType::UPDATE_ROWS_EVENT_V1) => Said::Rows(Change::Update),
        _ if is(EventType::DELETE_ROWS_EVENT) || is(EventType::DELETE_ROWS_EVENT_V1) => Said::Rows(Change::Delete),
        _ if QUIET.iter().any(|quiet| is(*quiet)) || MARIADB_QUIET.contains(&kind) => Said::Other,
        _ if event.header().flags_raw() & IGNORABLE != 0 => Said::Other,
        // It may change rows, and a replica that does not know it stops, too.
        _ => {
            return Err(Error::new(
                code::LOG_SETUP,
                format!("the log holds an event of a kind that is not read here ({kind})"),
            )
            .hint(
                "docs/mysql.md says which versions of the server are tested; behind the event: synctool state reset",
            ));
        }
    })
}

/// Whether a transaction of these flags is an ALTER that only begins, or was undone. The byte that says so stands behind the
/// number of a group commit and the name of a prepared transaction, where there are such.
fn is_undone(data: &[u8], flags: u8) -> bool {
    let mut at = 13;
    if flags & GROUP_COMMIT != 0 {
        at += 8;
    }
    if flags & XA != 0 {
        let lengths = data.get(at + 4..at + 6).unwrap_or_default();
        at += 6 + lengths.iter().map(|n| usize::from(*n)).sum::<usize>();
    }
    data.get(at)
        .is_some_and(|more| more & (START_ALTER | ROLLBACK_ALTER) != 0)
}

fn statement(sql: String, schema: String) -> Said {
    Said::Statement {
        effects: effects(&sql),
        sql,
        schema,
    }
}

/// Why the server does not hand out its log.
fn refused(e: Wire) -> Error {
    let Wire::Server(server) = &e else {
        return map_error(e, "reading the log");
    };
    let says = &server.message;
    let code = match server.code {
        1236 | 4052 if says.contains("same server") => {
            return Error::new(
                code::CONFLICT,
                "another process reads the log by the same name, and the server ended the elder of the two",
            )
            .hint("stop the other one, or give this pipeline a slot of its own: it is the name by which the server knows us");
        }
        1236 if says.contains("not in the master") || says.contains("diverged") => code::LOG_DIVERGED,
        1236 if says.contains("purged") || says.contains("Could not find GTID state") => code::LOG_LOST,
        1236 => code::LOG_LOST,
        _ => return map_error(e, "reading the log").hint("the user needs: GRANT REPLICATION SLAVE ON *.* TO the user"),
    };
    Error::new(
        code,
        format!("the server does not hand out its log from this position on: {says}"),
    )
}
