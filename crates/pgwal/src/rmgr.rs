//! Names of resource managers and of their records, as PostgreSQL spells them.

use crate::page::Major;
use std::borrow::Cow;
use std::fmt;

/// A part of the server that writes records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rmgr(u8);

const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

/// From here on numbers belong to extensions.
const FIRST_CUSTOM: u8 = 128;

impl Rmgr {
    /// The log itself.
    pub const XLOG: Rmgr = Rmgr(0);
    /// Transactions.
    pub const TRANSACTION: Rmgr = Rmgr(1);
    /// Relation files.
    pub const STORAGE: Rmgr = Rmgr(2);
    /// Databases.
    pub const DATABASE: Rmgr = Rmgr(4);
    /// Tablespaces.
    pub const TABLESPACE: Rmgr = Rmgr(5);
    /// What standbys need to know.
    pub const STANDBY: Rmgr = Rmgr(8);
    /// Rows, second part.
    pub const HEAP2: Rmgr = Rmgr(9);
    /// Rows.
    pub const HEAP: Rmgr = Rmgr(10);

    /// None for a number that no server uses.
    #[inline]
    pub fn new(number: u8) -> Option<Self> {
        (usize::from(number) < NAMES.len() || number >= FIRST_CUSTOM).then_some(Rmgr(number))
    }

    /// The number.
    #[inline]
    pub fn number(self) -> u8 {
        self.0
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Self> {
        let known = NAMES.iter().position(|n| n.eq_ignore_ascii_case(name));
        let custom = || name.strip_prefix("custom")?.parse().ok().and_then(Rmgr::new);
        known.map(|n| Rmgr(n as u8)).or_else(custom)
    }
}

impl fmt::Display for Rmgr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.get(usize::from(self.0)) {
            Some(name) => f.pad(name),
            None => f.pad(&format!("custom{:03}", self.0)),
        }
    }
}

/// What kind of record these bits mean, in PostgreSQL's word.
pub fn kind(major: Major, rmgr: Rmgr, info: u8) -> Cow<'static, str> {
    let info = info & 0xF0;
    let known = match rmgr.0 {
        0 => xlog(major, info),
        1 => transaction(info),
        2 => pick(info, &["", "CREATE", "TRUNCATE"]),
        3 => pick(info, &["ZEROPAGE", "TRUNCATE"]),
        4 => pick(info, &["CREATE_FILE_COPY", "CREATE_WAL_LOG", "DROP"]),
        5 => pick(info, &["CREATE", "DROP"]),
        6 => pick(info, &["ZERO_OFF_PAGE", "ZERO_MEM_PAGE", "CREATE_ID", "TRUNCATE_ID"]),
        7 => pick(info, &["UPDATE"]),
        8 => pick(info, &["LOCK", "RUNNING_XACTS", "INVALIDATIONS"]),
        9 => heap2(major, info),
        10 => heap(info),
        11 => pick(info, BTREE),
        12 => pick(info, HASH),
        13 => pick(info, GIN),
        14 => pick(info, GIST),
        15 => pick(info, &["LOG"]),
        16 => pick(info, SPGIST),
        17 => brin(info),
        18 => pick(info, &["ZEROPAGE", "TRUNCATE"]),
        19 => pick(info, &["SET", "DROP"]),
        20 => Some("Generic"),
        21 => pick(info, &["MESSAGE"]),
        _ => None,
    };
    known.map_or_else(|| format!("UNKNOWN ({info:x})").into(), Cow::Borrowed)
}

/// Kinds that are numbered in order; an empty name is none.
fn pick(info: u8, names: &[&'static str]) -> Option<&'static str> {
    names.get(usize::from(info >> 4)).copied().filter(|n| !n.is_empty())
}

fn xlog(major: Major, info: u8) -> Option<&'static str> {
    if info == 0xE0 && major < Major::V17 {
        return None;
    }
    pick(
        info,
        &[
            "CHECKPOINT_SHUTDOWN",
            "CHECKPOINT_ONLINE",
            "NOOP",
            "NEXTOID",
            "SWITCH",
            "BACKUP_END",
            "PARAMETER_CHANGE",
            "RESTORE_POINT",
            "FPW_CHANGE",
            "END_OF_RECOVERY",
            "FPI_FOR_HINT",
            "FPI",
            "",
            "OVERWRITE_CONTRECORD",
            "CHECKPOINT_REDO",
        ],
    )
}

fn transaction(info: u8) -> Option<&'static str> {
    pick(
        info & 0x70,
        &[
            "COMMIT",
            "PREPARE",
            "ABORT",
            "COMMIT_PREPARED",
            "ABORT_PREPARED",
            "ASSIGNMENT",
            "INVALIDATION",
        ],
    )
}

fn heap(info: u8) -> Option<&'static str> {
    match info {
        0x80 => Some("INSERT+INIT"),
        0xA0 => Some("UPDATE+INIT"),
        0xC0 => Some("HOT_UPDATE+INIT"),
        _ => pick(
            info,
            &[
                "INSERT",
                "DELETE",
                "UPDATE",
                "TRUNCATE",
                "HOT_UPDATE",
                "HEAP_CONFIRM",
                "LOCK",
                "INPLACE",
            ],
        ),
    }
}

fn heap2(major: Major, info: u8) -> Option<&'static str> {
    let pruning = match major {
        Major::V15 | Major::V16 => ["PRUNE", "VACUUM", "FREEZE_PAGE"],
        Major::V17 | Major::V18 => ["PRUNE_ON_ACCESS", "PRUNE_VACUUM_SCAN", "PRUNE_VACUUM_CLEANUP"],
    };
    match info {
        0x10..=0x30 => pick(info - 0x10, &pruning),
        0xD0 => Some("MULTI_INSERT+INIT"),
        _ => pick(
            info,
            &[
                "REWRITE",
                "",
                "",
                "",
                "VISIBLE",
                "MULTI_INSERT",
                "LOCK_UPDATED",
                "NEW_CID",
            ],
        ),
    }
}

fn brin(info: u8) -> Option<&'static str> {
    match info {
        0x90 => Some("INSERT+INIT"),
        0xA0 => Some("UPDATE+INIT"),
        _ => pick(
            info,
            &[
                "CREATE_INDEX",
                "INSERT",
                "UPDATE",
                "SAMEPAGE_UPDATE",
                "REVMAP_EXTEND",
                "DESUMMARIZE",
            ],
        ),
    }
}

const BTREE: &[&str] = &[
    "INSERT_LEAF",
    "INSERT_UPPER",
    "INSERT_META",
    "SPLIT_L",
    "SPLIT_R",
    "INSERT_POST",
    "DEDUP",
    "DELETE",
    "UNLINK_PAGE",
    "UNLINK_PAGE_META",
    "NEWROOT",
    "MARK_PAGE_HALFDEAD",
    "VACUUM",
    "REUSE_PAGE",
    "META_CLEANUP",
];

const HASH: &[&str] = &[
    "INIT_META_PAGE",
    "INIT_BITMAP_PAGE",
    "INSERT",
    "ADD_OVFL_PAGE",
    "SPLIT_ALLOCATE_PAGE",
    "SPLIT_PAGE",
    "SPLIT_COMPLETE",
    "MOVE_PAGE_CONTENTS",
    "SQUEEZE_PAGE",
    "DELETE",
    "SPLIT_CLEANUP",
    "UPDATE_META_PAGE",
    "VACUUM_ONE_PAGE",
];

const GIN: &[&str] = &[
    "",
    "CREATE_PTREE",
    "INSERT",
    "SPLIT",
    "VACUUM_PAGE",
    "DELETE_PAGE",
    "UPDATE_META_PAGE",
    "INSERT_LISTPAGE",
    "DELETE_LISTPAGE",
    "VACUUM_DATA_LEAF_PAGE",
];

const GIST: &[&str] = &[
    "PAGE_UPDATE",
    "DELETE",
    "PAGE_REUSE",
    "PAGE_SPLIT",
    "",
    "",
    "PAGE_DELETE",
    "ASSIGN_LSN",
];

const SPGIST: &[&str] = &[
    "",
    "ADD_LEAF",
    "MOVE_LEAFS",
    "ADD_NODE",
    "SPLIT_TUPLE",
    "PICKSPLIT",
    "VACUUM_LEAF",
    "VACUUM_ROOT",
    "VACUUM_REDIRECT",
];
