//! The one error type. A kind says what the engine should do; a code says what happened, for people and scripts.
//!
//! A message says what failed first, then where, then what to try next. It never holds a cell's value or a secret:
//! server DETAIL lines hold values, so connectors drop them before they build an [`Error`].

use std::fmt;

/// What should be done about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The user's input is wrong: a config file, a flag, a table that is not there.
    Config,
    /// A server cannot be reached or went away: retry with backoff.
    Unavailable,
    /// Lost a race with another transaction (deadlock, serialization failure): retry.
    Conflict,
    /// A newer run or writer has taken over: stop at once, write nothing.
    Fenced,
    /// A row cannot be carried: reject it or stop, by policy.
    Data,
    /// A policy says no (mass delete, destructive change): nothing was changed.
    Refused,
    /// This cannot be done by this connector or version.
    Unsupported,
    /// Somebody else is running the same pipeline.
    Locked,
    /// The user asked to stop; state is saved.
    Interrupted,
    /// Source and destination differ.
    Different,
    /// Failed for good: a missing right, a full disk, a broken file.
    Failed,
    /// A promise inside SyncTool was broken.
    Bug,
}

impl ErrorKind {
    /// The process exit code that stands for this kind (`docs/errors.md`).
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Config | ErrorKind::Unsupported => 2,
            ErrorKind::Different => 3,
            ErrorKind::Refused => 4,
            ErrorKind::Unavailable | ErrorKind::Conflict => 5,
            ErrorKind::Locked => 6,
            ErrorKind::Interrupted => 130,
            ErrorKind::Fenced | ErrorKind::Data | ErrorKind::Failed | ErrorKind::Bug => 1,
        }
    }

    /// Whether the engine may try the same work again.
    pub fn is_transient(self) -> bool {
        matches!(self, ErrorKind::Unavailable | ErrorKind::Conflict)
    }
}

/// One row of the table of codes.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `ST-<area>-<nnn>`: stable, never reused.
    pub id: &'static str,
    /// What the engine does about it.
    pub kind: ErrorKind,
    /// One sentence for the index of errors in the docs.
    pub meaning: &'static str,
}

macro_rules! codes {
    ($($name:ident = $id:literal, $kind:ident, $meaning:literal;)*) => {
        /// Every code, by name.
        pub mod code {
            use super::{Code, ErrorKind};
            $(#[doc = $meaning] pub const $name: &Code = &Code { id: $id, kind: ErrorKind::$kind, meaning: $meaning };)*
            /// The whole table, for the docs and for tests.
            pub const ALL: &[&Code] = &[$($name),*];
        }
    };
}

codes! {
    CONFIG_INVALID = "ST-CFG-001", Config, "A configuration file or flag is wrong.";
    CONFIG_CHANGED = "ST-CFG-002", Config, "The pipeline changed while one of its runs is unfinished.";
    CONFIG_URI = "ST-CFG-003", Config, "A connection URI cannot be read.";
    CONFIG_TYPE = "ST-CFG-004", Config, "A column's type cannot be carried to the destination as configured.";
    TABLE_MISSING = "ST-CFG-010", Config, "A table does not exist, or may not be seen.";
    COLUMN_MISSING = "ST-CFG-011", Config, "A column does not exist.";
    DATABASE_MISSING = "ST-CFG-012", Config, "A database does not exist.";
    KEY_MISSING = "ST-CFG-013", Config, "The work asked for needs a key and the table has none.";
    SCHEMA_MISMATCH = "ST-CFG-014", Config, "The destination table does not fit the columns to write.";
    IDENTIFIER = "ST-CFG-015", Config, "A name is too long for the destination or collides there.";
    SERVER_UNREACHABLE = "ST-NET-001", Unavailable, "A server does not answer.";
    CONNECTION_LOST = "ST-NET-002", Unavailable, "A connection broke in the middle of work.";
    SERVER_BUSY = "ST-NET-003", Unavailable, "A server has no connection, memory or time left for us at the moment.";
    TLS_FAILED = "ST-NET-004", Failed, "An encrypted connection could not be made or trusted.";
    AUTH_FAILED = "ST-AUT-001", Failed, "A server refused the user or the password.";
    PERMISSION = "ST-AUT-002", Failed, "A right is missing.";
    CONFLICT = "ST-TXN-001", Conflict, "A transaction lost against another one.";
    FENCED = "ST-TXN-002", Fenced, "A newer run or writer has taken over this work.";
    LOCKED = "ST-TXN-003", Locked, "The pipeline is already running.";
    VALUE_UNSUPPORTED = "ST-DAT-001", Data, "A value cannot be stored at the destination.";
    VALUE_MALFORMED = "ST-DAT-002", Data, "A value from the source cannot be decoded.";
    ROW_TOO_LARGE = "ST-DAT-003", Data, "A row is larger than the configured limit.";
    CONSTRAINT = "ST-DAT-004", Data, "A row breaks a constraint of the destination.";
    DUPLICATE_KEY = "ST-DAT-005", Data, "Two rows have the same key.";
    ROW_REJECTED = "ST-DAT-006", Data, "A stage rejected more rows than the limit allows.";
    TYPE_UNSUPPORTED = "ST-TYP-001", Unsupported, "A column type is not supported.";
    UNSUPPORTED = "ST-UNS-001", Unsupported, "This is not supported.";
    SERVER_VERSION = "ST-UNS-002", Unsupported, "A server's version is not supported.";
    REFUSED = "ST-POL-001", Refused, "A policy forbids this change.";
    MASS_DELETE = "ST-POL-002", Refused, "More rows would be deleted than the guard allows.";
    SWAP_REFUSED = "ST-POL-003", Refused, "The destination table cannot be replaced by a swap without losing something.";
    SNAPSHOT_LOST = "ST-SNP-001", Failed, "The snapshot that all parts of a load must be read in is gone.";
    LOG_OTHER_SERVER = "ST-LOG-001", Refused, "The position belongs to the log of another server or database.";
    LOG_DIVERGED = "ST-LOG-002", Refused, "The server was restored to a time before the position, or went another way since.";
    LOG_SKIPPED = "ST-LOG-003", Refused, "The replication slot is beyond the position: changes would be skipped.";
    LOG_LOST = "ST-LOG-004", Refused, "The server does not have the log any more that is needed.";
    LOG_SETUP = "ST-LOG-005", Config, "A replication slot, a publication or a setting of the server is not what following its log needs.";
    DIFFERENT = "ST-VER-001", Different, "Source and destination differ.";
    VERIFY_FAILED = "ST-VER-002", Failed, "What was stored is not what was read.";
    LEDGER = "ST-VER-003", Failed, "The run's row accounts do not balance.";
    DISK_FULL = "ST-IO-001", Failed, "A disk is full.";
    FILE = "ST-IO-002", Failed, "A file cannot be read or written.";
    FILE_MALFORMED = "ST-IO-003", Data, "A file is not what it should be.";
    WAL_MISSING = "ST-WAL-001", Failed, "A WAL segment is missing from the archive.";
    WAL_DAMAGED = "ST-WAL-002", Failed, "A WAL segment of the archive is damaged or incomplete.";
    WAL_FOREIGN = "ST-WAL-003", Config, "A WAL segment or a base backup belongs to another server.";
    WAL_TIMELINE = "ST-WAL-004", Failed, "Production went on on a timeline that cannot be followed.";
    SCRATCH = "ST-WAL-005", Failed, "The scratch server cannot be used.";
    STATE_STORE = "ST-STA-001", Failed, "The state store cannot be used.";
    RUN_UNKNOWN = "ST-STA-002", Config, "There is no such run.";
    SERVER_ERROR = "ST-SRV-001", Failed, "A server reported an error.";
    INTERRUPTED = "ST-INT-001", Interrupted, "Stopped on request; the state is saved.";
    INJECTED = "ST-TST-001", Unavailable, "A fault that a test asked for.";
    BUG = "ST-BUG-001", Bug, "A promise inside SyncTool was broken; please report it.";
}

/// An error with a stable code, a sentence, the place, the next step and the cause.
#[derive(Debug)]
pub struct Error(Box<Inner>);

#[derive(Debug)]
struct Inner {
    code: &'static Code,
    message: String,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    missing: Option<(Among, String)>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What a column is missing among.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// The columns of a table that is read or written.
    Table,
    /// The columns of rows on their way through stages.
    Rows,
    /// The columns of a table that a stage looks rows up in.
    Dimension,
}

/// The result of almost everything here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error with its code and one sentence saying what failed.
    pub fn new(code: &'static Code, message: impl Into<String>) -> Self {
        Error(Box::new(Inner {
            code,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            missing: None,
            source: None,
        }))
    }

    /// A column that is not there. Its name is kept for whoever knows where it is written.
    pub fn no_column(among: Among, name: &str, message: impl Into<String>) -> Self {
        let mut error = Error::new(code::COLUMN_MISSING, message);
        error.0.missing = Some((among, name.to_string()));
        error
    }

    /// A broken promise inside SyncTool.
    pub fn bug(message: impl Into<String>) -> Self {
        Error::new(code::BUG, message)
    }

    /// More rows changed than there were keys to change.
    pub fn doubled_at_destination() -> Self {
        Error::new(code::DUPLICATE_KEY, "the destination holds several rows of one key")
            .hint("remove all but one of them, and make the key unique there")
    }

    /// Loaded rows whose keys are several at the source and one at the destination.
    pub fn equal_at_destination() -> Self {
        Error::new(
            code::DUPLICATE_KEY,
            "the destination calls keys of several loaded rows equal; nothing was changed",
        )
        .hint("give the key's columns there a collation that tells all keys apart, or keep one row of each")
    }

    /// A destination's stored plan is none to this version.
    pub fn unreadable_plan(pipeline: &str) -> Self {
        Error::new(
            code::STATE_STORE,
            format!("the stored plan of pipeline {pipeline} cannot be read"),
        )
        .hint(format!("start over: synctool state reset {pipeline}"))
    }

    /// A table that a plan made is not there any more.
    pub fn gone_at_destination(table: &crate::schema::TableId) -> Self {
        Error::new(
            code::TABLE_MISSING,
            format!("{table} does not exist at the destination any more: the pipeline made it or wrote to it before"),
        )
        .hint(
            "make it again, empty and with its key, run again, and let `synctool repair` fill it; or start over: `synctool state \
             reset`, then a run loads everything",
        )
    }

    /// A row that cannot be told from others.
    pub fn without_key() -> Self {
        Error::new(code::VALUE_MALFORMED, "a row came without its key, or with NULL in it").hint(
            "filter such rows out, or name another key; a log's source must send the key of every change (PostgreSQL: \
             REPLICA IDENTITY)",
        )
    }

    /// A row to insert that does not bring a value of a column.
    pub fn not_whole(column: &str) -> Self {
        Error::new(
            code::VALUE_MALFORMED,
            format!("a row to insert came without a value of column {column}, which is not the same as NULL"),
        )
        .hint(
            "the source's log should have brought it: load the table anew (`synctool state reset`, then a run), and please \
             report it",
        )
    }

    /// Adds where it happened (`pipeline`, `table`, `partition`, `server` …); the first value of a key stays.
    pub fn at(mut self, key: &'static str, value: impl Into<String>) -> Self {
        if !self.0.context.iter().any(|(k, _)| *k == key) {
            self.0.context.push((key, value.into()));
        }
        self
    }

    /// Adds the next command or step to try; the first hint stays.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint.get_or_insert_with(|| hint.into());
        self
    }

    /// Adds what to do about loaded rows of one key, if that is what this error is about.
    pub fn hint_of_doubles(self) -> Self {
        match self.code() == code::DUPLICATE_KEY {
            true => self.hint(
                "name as `key` all columns that identify a row, or keep one row of each: `transform: [{dedup: [id]}]`",
            ),
            false => self,
        }
    }

    /// Puts a step in the place of the one that was given, for whom that one is no help.
    pub fn hint_instead(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Keeps the cause.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// What the engine should do.
    pub fn kind(&self) -> ErrorKind {
        self.0.code.kind
    }

    /// The stable code.
    pub fn code(&self) -> &'static Code {
        self.0.code
    }

    /// The column that is not there, if that is what this is about.
    pub fn missing_column(&self) -> Option<(Among, &str)> {
        self.0.missing.as_ref().map(|(among, name)| (*among, name.as_str()))
    }

    /// The sentence without place and hint.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// Where it happened, in the order it was added.
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The next step, if there is one to offer.
    pub fn next_step(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.message)?;
        if !self.0.context.is_empty() {
            let place: Vec<String> = self.0.context.iter().map(|(k, v)| format!("{k} {v}")).collect();
            write!(f, " ({})", place.join(", "))?;
        }
        write!(f, " [{}]", self.0.code.id)?;
        if let Some(hint) = &self.0.hint {
            write!(f, "\n  next: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|s| s as _)
    }
}

/// Why a file cannot be read. Of one that is not there the standard library says "entity not found".
pub fn io_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or folder".into(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let mut seen = HashSet::new();
        for c in code::ALL {
            assert!(seen.insert(c.id), "{} is given twice", c.id);
            let parts: Vec<&str> = c.id.split('-').collect();
            assert!(
                parts.len() == 3 && parts[0] == "ST" && parts[2].len() == 3,
                "{} is not ST-<area>-<nnn>",
                c.id
            );
            assert!(c.meaning.ends_with('.'), "{} has no sentence", c.id);
        }
    }

    #[test]
    fn a_message_says_what_where_and_next() {
        let e = Error::new(code::TABLE_MISSING, "table shop.items does not exist")
            .at("pipeline", "p1")
            .at("pipeline", "ignored")
            .hint("synctool conns discover shop");
        let text = e.to_string();
        assert_eq!(
            text,
            "table shop.items does not exist (pipeline p1) [ST-CFG-010]\n  next: synctool conns discover shop"
        );
        assert_eq!(e.kind().exit_code(), 2);
    }
}
